"""ConvNeXt's claim in miniature: its block against a window-attention block and a ResNet bottleneck (arXiv 2201.03545).

Two-stage networks on handwritten digits, which differ in their blocks alone: stem, down-sampling, head, number of blocks
and recipe are the same, and widths are chosen so that all have about 100 000 parameters. The digits are enlarged to
12 x 12 pixels, so that a token of 2 x 2 has a content of its own: attention among single pixels hardly learns.

- blocks: is ConvNeXt's at least as accurate as shifted-window attention?
- road map: with kernels of 7, is it at most half a point behind itself with kernels of 3?
- time: does its forward pass take less CPU time (of one thread) per multiply-add than window attention's?
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from sklearn.datasets import load_digits
from torch import Tensor, nn

from vitreous.catalog.results import percent, verdict, write_result
from vitreous.inference.cost import count_cost
from vitreous.layers.attention import AttentionCore
from vitreous.layers.mlp import Mlp
from vitreous.layers.windows import RelativePositionBias, partition, reverse
from vitreous.models.convnext import ConvNeXt
from vitreous.tasks.miniature import accuracy, fit_images

PARAMETERS, DEPTHS, SIDE, TOKEN = 100_000, (2, 2), 12, 2
SEEDS, EPOCHS, TRAIN_IMAGES, BATCH = 3, 40, 600, 50
LEARNING_RATE = 3e-3
TIMED, TIMED_BATCH = 50, 64
WINDOW = 3
SLACK = 0.5  # points that kernels of 7 may be behind kernels of 3

RESULT = Path(__file__).parent / "results" / "convnext.json"
OURS, SMALL_KERNEL, WINDOWS, RESNET = "ConvNeXt, 7 x 7", "ConvNeXt, 3 x 3", "windows", "ResNet"


class Bottleneck(nn.Module):
    """ResNet's block: 1 x 1, 3 x 3 and 1 x 1 convolutions, each with a batch norm."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        inner = dim // 4
        self.branch = nn.Sequential(
            *(nn.Conv2d(dim, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU()),
            *(nn.Conv2d(inner, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner), nn.ReLU()),
            *(nn.Conv2d(inner, dim, 1, bias=False), nn.BatchNorm2d(dim)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to a map."""
        return torch.relu(x + self.branch(x))


class WindowBlock(nn.Module):
    """Swin's block on a square map: attention within windows, shifted by half a window where asked, then an MLP."""

    def __init__(self, dim: int, heads: int, side: int, shift: int) -> None:
        super().__init__()
        self.heads, self.shift = heads, shift
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.bias, self.core = RelativePositionBias(WINDOW, heads), AttentionCore()
        self.mlp = Mlp(dim, 4 * dim)
        # After the roll, a window may hold cells from opposite borders, which must not see each other.
        edge = torch.zeros(side)
        edge[side - WINDOW :], edge[side - shift :] = 1, 2
        edge = edge if shift else torch.zeros(side)
        origin = partition((3 * edge[:, None] + edge)[None, :, :, None], (WINDOW, WINDOW))[
            0, ..., 0
        ]
        foreign = origin[:, None, :, None] != origin[:, None, None, :]
        self.register_buffer("hidden", torch.zeros(foreign.shape).masked_fill(foreign, -torch.inf))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to a map, channels first."""
        x = x.permute(0, 2, 3, 1)
        cells = self.norm1(x).roll((-self.shift, -self.shift), (1, 2))
        parts = rearrange(
            self.qkv(partition(cells, (WINDOW, WINDOW))),
            "b n t (c g d) -> c b n g t d",
            c=3,
            g=self.heads,
        )
        bias = self.bias(WINDOW, WINDOW)
        mixed = self.core(*parts, bias + self.hidden if self.shift else bias)
        mixed = self.proj(rearrange(mixed, "b n g t d -> b n t (g d)"))
        mixed = reverse(mixed, (WINDOW, WINDOW), *x.shape[1:3])
        x = x + mixed.roll((self.shift, self.shift), (1, 2))
        return (x + self.mlp(self.norm2(x))).permute(0, 3, 1, 2)


def network(name: str, width: int) -> ConvNeXt:
    """Build a network of some width; the stages' blocks are replaced where they are not ConvNeXt's."""
    kernel = 3 if name == SMALL_KERNEL else 7
    dims = (width, 2 * width)
    net = ConvNeXt(1, 10, SIDE, dims=dims, depths=DEPTHS, kernel=kernel, stem_stride=TOKEN)
    for number, (stage, dim) in enumerate(zip(net.stages, dims, strict=True)):
        side = SIDE // TOKEN // 2**number
        for at in range(len(stage)):
            if name == RESNET:
                stage[at] = Bottleneck(dim)
            elif name == WINDOWS:
                shift = WINDOW // 2 if at % 2 and side > WINDOW else 0
                stage[at] = WindowBlock(dim, 2 * 2**number, side, shift)
    return net


def width_of(name: str) -> int:
    """Return the width, a multiple of 4, whose network has about the wanted number of parameters."""

    def miss(width: int) -> int:
        with torch.device("meta"):
            return abs(sum(p.numel() for p in network(name, width).parameters()) - PARAMETERS)

    return min(range(8, 129, 4), key=miss)


def main(quick: bool = False) -> None:
    """Measure everything and write ``results/convnext.json``; ``quick`` runs it all in little and writes nothing."""
    started = time.perf_counter()
    torch.set_num_threads(1)
    seeds, epochs, timed = (1, 1, 2) if quick else (SEEDS, EPOCHS, TIMED)
    digits = load_digits()
    images = torch.tensor(digits.images / 16 - 0.3, dtype=torch.float32)[:, None]
    images = F.interpolate(images, (SIDE, SIDE), mode="bilinear")
    classes = torch.tensor(digits.target)
    makers = {
        name: functools.partial(network, name, width_of(name))
        for name in (OURS, SMALL_KERNEL, WINDOWS, RESNET)
    }
    runs = []
    for seed in range(seeds):
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        train, test = order[:TRAIN_IMAGES], order[TRAIN_IMAGES:]
        for name, make in makers.items():
            torch.manual_seed(seed)
            net = make()
            fit_images(
                net,
                images[train],
                classes[train],
                epochs=epochs,
                batch_size=BATCH,
                learning_rate=LEARNING_RATE,
                seed=seed,
            )
            found = accuracy(net, images[test], classes[test])
            runs.append({"system": name, "seed": seed, "accuracy": found})
            print(f"{name:16} seed {seed}  {found:.4f}", file=sys.stderr)
    times = forward_times(makers, images[:TIMED_BATCH], timed)
    costs = {name: count_cost(make(), 1, SIDE) for name, make in makers.items()}
    rows = [
        {
            "blocks": name,
            "seeds": seeds,
            "parameters": costs[name].parameters,
            "M multiply-adds": round(costs[name].macs / 1e6, 2),
            "accuracy %": percent(accuracies(runs, name)),
            "CPU ms per image": round(1e3 * times[name] / TIMED_BATCH, 4),
            "ns per 1000 multiply-adds": round(
                1e12 * times[name] / costs[name].macs / TIMED_BATCH, 2
            ),
        }
        for name in makers
    ]
    conclusion = conclude(rows, runs)
    if quick:
        return
    write_result(
        RESULT,
        title="convnext: its block against window attention and ResNet's (digits, 100 k parameters)",
        command="vitreous reproduce convnext",
        rows=rows,
        conclusion=conclusion,
        epochs=EPOCHS,
        train_images=TRAIN_IMAGES,
        seconds=time.perf_counter() - started,
        runs=runs,
    )


@torch.inference_mode()
def forward_times(
    makers: dict[str, Callable[[], ConvNeXt]], images: Tensor, rounds: int
) -> dict[str, float]:
    """Return the median CPU seconds of a forward pass; the networks take turns."""
    nets = {name: make().eval() for name, make in makers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in nets}
    for _ in range(rounds):
        for name, net in nets.items():
            start = time.process_time()
            net(images)
            seconds[name].append(time.process_time() - start)
    return {name: median(found) for name, found in seconds.items()}


def accuracies(runs: list[dict[str, Any]], name: str) -> list[float]:
    return [r["accuracy"] for r in runs if r["system"] == name]


def conclude(rows: list[dict[str, Any]], runs: list[dict[str, Any]]) -> str:
    """Say in words what the numbers say of the claim, also where it does not hold."""
    ours, small, windows, resnet = (
        100 * mean(accuracies(runs, name)) for name in (OURS, SMALL_KERNEL, WINDOWS, RESNET)
    )
    pace = {row["blocks"]: row["ns per 1000 multiply-adds"] for row in rows}
    return (
        f"ConvNeXt's blocks are {ours - windows:+.2f} points from window attention, where the claim demands 0 or more: "
        f"{verdict(ours >= windows)} ({ours - resnet:+.2f} from ResNet's bottlenecks). Kernels of 7 are "
        f"{ours - small:+.2f} points from kernels of 3, where at most {SLACK} behind is allowed: "
        f"{verdict(ours >= small - SLACK)}. They take {pace[OURS]:.1f} ns per 1000 multiply-adds against "
        f"{pace[WINDOWS]:.1f} of window attention, where less is demanded: {verdict(pace[OURS] < pace[WINDOWS])}."
    )


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:])
