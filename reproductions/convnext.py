"""ConvNeXt's claim in miniature: its block against a window-attention block and a ResNet bottleneck (arXiv 2201.03545).

Two-stage networks which differ in their blocks alone: stem, down-sampling, head, number of blocks and recipe are the same,
and widths are chosen so that all have about 100 000 parameters. All start with weights scaled to their width and without
LayerScale, which would silence ConvNeXt's blocks alone, and each takes the best of three learning rates, chosen on
validation images with a seed that is not reported. By default the images are toy digits of 12 x 12 pixels in tokens of
2 x 2: attention among single pixels hardly learns. ``--data FOLDER`` takes real images of 32 x 32 in tokens of 4 x 4,
shifted and mirrored in training.

- blocks: is ConvNeXt's at least as accurate as shifted-window attention?
- road map: with kernels of 7, is it at most half a point behind itself with kernels of 3?
- time: does its forward pass take less processor time (of one thread) per multiply-add than window attention's?
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vitreous.catalog.claims import Claim, claim, paired
from vitreous.catalog.results import first, percents, table_of
from vitreous.catalog.study import Study
from vitreous.inference.bench import cpu_ratios
from vitreous.inference.cost import count_cost
from vitreous.layers import window_blocks
from vitreous.layers.windows import window_mask
from vitreous.models.convnext import ConvNeXt
from vitreous.tasks.miniature import (
    ImageTask,
    fit_task,
    image_task,
    scaled_init,
    shifted_and_mirrored,
)


class Setting(NamedTuple):
    """What depends on the data: sides in pixels, but of the window in tokens."""

    side: int
    token: int
    window: int
    epochs: int


TOY, REAL = Setting(12, 2, 3, 40), Setting(32, 4, 4, 16)
PARAMETERS, DEPTHS = 100_000, (2, 2)
BATCH, RATES, TRAINING = 50, (1e-3, 3e-3, 9e-3), 600
TIMED, TIMED_BATCH = 50, 64
SLACK = 0.5  # points that kernels of 7 may be behind kernels of 3
OURS, SMALL_KERNEL, WINDOWS, RESNET = ARMS = (
    "ConvNeXt, 7 x 7",
    "ConvNeXt, 3 x 3",
    "windows",
    "ResNet",
)
TIME = "time"


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
    """Swin's block on maps of one size, channels first."""

    def __init__(self, dim: int, heads: int, side: int, window: int, shift: bool) -> None:
        super().__init__()
        self.block = window_blocks.WindowBlock(dim, heads, window, shift, 4.0, 0.0, True, None)
        self.register_buffer("mask", window_mask(torch.zeros(1, side, side, dim), window, shift))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to a map."""
        return self.block(x.permute(0, 2, 3, 1), self.mask).permute(0, 3, 1, 2)


def main(quick: bool = False, full: bool = False, data: Path | None = None) -> None:
    """Measure everything; a full run writes ``results/convnext.json``, a quick one only checks that all of it runs."""
    setting = TOY if data is None else REAL
    study = Study(
        __file__,
        "ConvNeXt blocks compared with window attention and ResNet bottlenecks, 100 k parameters",
        settings={"batch": BATCH, "rates": RATES, "training": TRAINING, **setting._asdict()},
        quick=quick,
        full=full,
        data=data,
        few=2 if data is None else 1,  # real images take longer
    )
    measured = partial(
        measure,
        setting=setting,
        epochs=1 if quick else setting.epochs,
        augment=None if data is None else shifted_and_mirrored,
    )
    study.compare(ARMS, RATES, partial(task, data=data), measured)
    shape = task(0, data).shape
    for seed in study.seeds:
        timed = partial(pace, seed, shape, setting, runs=2 if quick else TIMED)
        study.run(timed, system=TIME, seed=seed)
    study.finish(summary, claims, on=task(0, data).name)


def task(seed: int, data: Path | None) -> ImageTask:
    """Return the images of a seed."""
    if data is None:
        return image_task(seed, TOY.side, training=TRAINING)
    return image_task(seed, REAL.side, data=data, validation=500)


def network(arm: str, width: int, shape: dict[str, int], setting: Setting) -> ConvNeXt:
    """Return a network of some width; the stages' blocks are replaced where they are not ConvNeXt's."""
    dims = (width, 2 * width)
    net = ConvNeXt(
        **shape,
        dims=dims,
        depths=DEPTHS,
        kernel=3 if arm == SMALL_KERNEL else 7,
        layer_scale=None,
        stem_stride=setting.token,
    )
    for number, (stage, dim) in enumerate(zip(net.stages, dims, strict=True)):
        side = setting.side // setting.token // 2**number
        for at in range(len(stage)):
            if arm == RESNET:
                stage[at] = Bottleneck(dim)
            elif arm == WINDOWS:
                heads = 2 * 2**number
                stage[at] = WindowBlock(dim, heads, side, min(setting.window, side), at % 2 == 1)
    return net


def build(arm: str, shape: dict[str, int], setting: Setting) -> ConvNeXt:
    """Return the network whose width, a multiple of 4, gives about the wanted number of parameters."""

    def miss(width: int) -> int:
        with torch.device("meta"):
            model = network(arm, width, shape, setting)
        return abs(sum(p.numel() for p in model.parameters()) - PARAMETERS)

    net = network(arm, min(range(8, 129, 4), key=miss), shape, setting)
    scaled_init(net)
    return net


def measure(
    arm: str,
    seed: int,
    images: ImageTask,
    rate: float,
    *,
    setting: Setting,
    epochs: int,
    augment: Any,
) -> dict[str, Any]:
    """Train and score one network."""
    torch.manual_seed(seed)
    net = build(arm, images.shape, setting)
    record = fit_task(
        net, images, rate, epochs=epochs, batch_size=BATCH, seed=seed, augment=augment
    )
    cost = count_cost(net, images.shape["bands"], setting.side)
    return {
        **record,
        "parameters": cost.parameters,
        "macs": cost.macs,
    }


@torch.inference_mode()
def pace(seed: int, shape: dict[str, int], setting: Setting, *, runs: int) -> dict[str, Any]:
    """Return, run by run, ConvNeXt's processor time per multiply-add over that of window attention."""
    torch.manual_seed(seed)
    images = torch.randn(TIMED_BATCH, shape["bands"], setting.side, setting.side)
    ours, theirs = (build(arm, shape, setting).eval() for arm in (OURS, WINDOWS))
    macs = [count_cost(net, shape["bands"], setting.side).macs for net in (ours, theirs)]
    ratios = cpu_ratios(lambda: ours(images), lambda: theirs(images), runs)
    return {"ratios": [ratio * macs[1] / macs[0] for ratio in ratios]}


def summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the table: one row per kind of block, over its seeds."""
    return table_of(
        [record for record in records if record["system"] != TIME],
        {
            "parameters": first("parameters"),
            "multiply-adds, M": lambda own: round(own[0]["macs"] / 1e6, 2),
            "learning rate": first("learning_rate"),
            "accuracy %": percents("accuracy"),
        },
        keys={"blocks": "system"},
    )


def claims(records: Sequence[dict[str, Any]]) -> list[Claim]:
    """Return what the paper claims, as measured."""
    times = [median(record["ratios"]) for record in records if record["system"] == TIME]
    return [
        claim(
            "Accuracy, ConvNeXt vs window attention", paired(records, OURS, WINDOWS), at_least=0.0
        ),
        claim("Accuracy, kernels of 7 vs 3", paired(records, OURS, SMALL_KERNEL), at_least=-SLACK),
        claim("Accuracy, ConvNeXt vs ResNet bottlenecks", paired(records, OURS, RESNET)),
        claim(
            "Processor time of one thread per multiply-add, ConvNeXt over window attention",
            times,
            at_most=1.0,
            unit="times",
            digits=2,
            signed=False,
        ),
    ]


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:], full="--full" in sys.argv[1:])
