"""EfficientViT's claims in miniature: cheaper blocks that lose nothing, and images per second (arXiv 2305.07027).

- blocks: digits of 16 x 16 pixels (scikit-learn's, enlarged), two networks with the same stem, reductions and head,
  about as many parameters, and one recipe. Ours has EfficientViT's blocks: one cascaded group attention between two
  pairs of depth-wise convolution and feed-forward. The other has the usual ones: one such pair and multi-head
  attention whose heads see all channels; there are more of them. Every attention is global. Each seed draws another
  division of the digits.
- speed: EfficientViT-M2 against a hybrid of MobileViT-XXS's layout (arXiv 2110.02178) and size, images of 224 pixels
  in batches of 16, no norm folded.

Systems whose speed is compared take turns, so that other load on the machine meets both alike.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from itertools import combinations, groupby
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from sklearn.datasets import load_digits
from torch import Tensor, nn

from vitreous.catalog.registry import create_model
from vitreous.catalog.results import percent, verdict, write_result
from vitreous.layers.attention import AttentionCore
from vitreous.layers.convnorm import ConvNorm
from vitreous.layers.windows import DistanceBias
from vitreous.models.efficientvit import Block, FeedForward, Residual
from vitreous.models.vit import Block as PlainBlock
from vitreous.tasks.miniature import accuracy, fit_images

SEEDS, EPOCHS, TRAIN, ROUNDS = 3, 8, 1200, 9
OURS, USUAL = "sandwich, cascaded groups", "multi-head, one feed-forward"
FAST, HYBRID = "efficientvit_m2", "hybrid of MobileViT-XXS's size"
HEADS, KEY_DIM, SIDE = 4, 8, 8  # 8 x 8 cells on the first map
SHAPE = {"dims": [24, 48, 72], "depths": [1, 2, 3], "heads": [HEADS] * 3, "key_dim": KEY_DIM}
DEPTHS = (2, 3, 4)  # of the usual blocks, for as many parameters
SLACK, SPEEDUP = 0.5, 2.0  # points of accuracy; times as many images per second

RESULT = Path(__file__).parent / "results" / "efficientvit.json"


def main(quick: bool = False) -> None:
    """Measure everything and write ``results/efficientvit.json``; ``quick`` runs it in little and writes nothing."""
    started = time.perf_counter()
    records = []
    for seed in range(1 if quick else SEEDS):
        records += measure_blocks(
            seed, epochs=1 if quick else EPOCHS, rounds=2 if quick else ROUNDS
        )
        print(*records[-2:], sep="\n", file=sys.stderr)
    speeds = measure_speed(rounds=1 if quick else ROUNDS)
    print(speeds, file=sys.stderr)
    if quick:
        return
    write_result(
        RESULT,
        title="efficientvit: sandwich and cascaded group attention (digits), and images per second",
        command="vitreous reproduce efficientvit",
        rows=summary(records, speeds),
        conclusion=conclude(records, speeds),
        epochs=EPOCHS,
        seconds=time.perf_counter() - started,
        runs=records,
        speeds=speeds,
    )


# -- blocks -----------------------------------------------------------------------------------------------


class MultiHead(nn.Module):
    """Attention whose heads see all channels; everything else is ours, positions too, but the queries' convolution."""

    def __init__(self, dim: int, side: int) -> None:
        super().__init__()
        self.widths = (KEY_DIM, KEY_DIM, dim // HEADS)
        self.qkv = ConvNorm(dim, HEADS * sum(self.widths))
        self.position = DistanceBias(side, HEADS)
        self.core = AttentionCore()
        self.proj = ConvNorm(dim, dim, gain=0.0)

    def forward(self, x: Tensor) -> Tensor:
        """Mix all cells of ``(batch, dim, height, width)``."""
        parts = rearrange(self.qkv(x), "b (n d) h w -> b n (h w) d", n=HEADS)
        mixed = self.core(*parts.split(self.widths, -1), self.position(*x.shape[2:])[None])
        return self.proj(F.relu(rearrange(mixed, "b n (h w) d -> b (n d) h w", h=x.shape[2])))


def our_network() -> Any:
    """Return the network with EfficientViT's blocks."""
    size = {"bands": 1, "num_classes": 10, "image_size": 2 * SIDE, "total_stride": 2}
    return create_model("efficientvit_m0", **size, **SHAPE, window=SIDE)


def usual_network() -> nn.Module:
    """Return it with usual blocks, and more of them: as many parameters."""
    model = our_network()
    for i, (dim, depth) in enumerate(zip(SHAPE["dims"], DEPTHS, strict=True)):
        reduction = [part for part in model.stages[i] if not isinstance(part, Block)]
        blocks = [usual_block(dim, SIDE // 2**i) for _ in range(depth)]
        model.stages[i] = nn.ModuleList([*reduction, *blocks])
    return model


def usual_block(dim: int, side: int) -> nn.Module:
    """Return depth-wise convolution, attention and feed-forward, one of each."""
    depthwise = ConvNorm(dim, dim, 3, groups=dim, gain=0.0)
    branches = (depthwise, MultiHead(dim, side), FeedForward(dim, 2 * dim))
    return nn.Sequential(*map(Residual, branches))


def measure_blocks(seed: int, epochs: int, rounds: int) -> list[dict[str, Any]]:
    """Train and score both networks on one division of the digits, and time them by turns."""
    loaded = load_digits()
    images = torch.as_tensor(loaded.images, dtype=torch.float32)[:, None] / 8 - 1
    images = F.interpolate(images, scale_factor=2, mode="bilinear")
    classes = torch.as_tensor(loaded.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    train, test = order[:TRAIN], order[TRAIN:]
    torch.manual_seed(seed)
    models = {OURS: our_network(), USUAL: usual_network()}
    for model in models.values():
        fit_images(model, images[train], classes[train], epochs=epochs, seed=seed)
    seconds = time_by_turns(models, images[test[:256]], rounds)
    return [
        {
            "system": name,
            "seed": seed,
            "parameters": count(model),
            "accuracy": accuracy(model, images[test], classes[test]),
            "images_per_second": 256 / seconds[name],
            "similarity": similarity_of_heads(model, images[test[:64]]),
        }
        for name, model in models.items()
    ]


@torch.inference_mode()
def similarity_of_heads(model: nn.Module, images: Tensor) -> float:
    """Return the mean cosine between the attention maps of two heads of a layer."""
    seen: list[tuple[int, Tensor]] = []
    for layer, core in enumerate(m for m in model.modules() if isinstance(m, AttentionCore)):
        core.explicit = True
        core.softmax.register_forward_hook(
            lambda _, given, maps, layer=layer: seen.append((layer, maps.flatten(2)))
        )
    model(images)
    layers = [torch.cat([maps for _, maps in own], 1) for _, own in groupby(seen, lambda s: s[0])]
    pairs = list(combinations(range(HEADS), 2))
    return mean(
        float(F.cosine_similarity(maps[:, a], maps[:, b], -1).mean())
        for maps in layers
        for a, b in pairs
    )


# -- speed ------------------------------------------------------------------------------------------------


class Inverted(nn.Module):
    """MobileNetV2's inverted residual, twice as wide inside."""

    def __init__(self, dim: int, out: int, stride: int = 1) -> None:
        super().__init__()
        wide = 2 * dim
        depthwise = ConvNorm(wide, wide, 3, stride=stride, groups=wide)
        self.path = nn.Sequential(
            ConvNorm(dim, wide), nn.SiLU(), depthwise, nn.SiLU(), ConvNorm(wide, out)
        )
        self.skip = stride == 1 and dim == out

    def forward(self, x: Tensor) -> Tensor:
        """Apply it."""
        return x + self.path(x) if self.skip else self.path(x)


class Hybrid(nn.Module):
    """MobileViT's block: convolution, transformer among the cells of equal place in their 2 x 2 patch, fusion."""

    def __init__(self, channels: int, dim: int, depth: int) -> None:
        super().__init__()
        self.before = nn.Sequential(
            ConvNorm(channels, channels, 3), nn.SiLU(), nn.Conv2d(channels, dim, 1, bias=False)
        )
        self.blocks = nn.ModuleList(PlainBlock(dim, 4, 2.0, 0.0, None) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.after = nn.Sequential(ConvNorm(dim, channels), nn.SiLU())
        self.fuse = nn.Sequential(ConvNorm(2 * channels, channels, 3), nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        """Apply it; a row and a column are added where a side is odd."""
        height, width = x.shape[2:]
        cells = F.pad(self.before(x), (0, width % 2, 0, height % 2))
        rows = cells.shape[2] // 2
        tokens = rearrange(cells, "b d (h p) (w q) -> (b p q) (h w) d", p=2, q=2)
        for block in self.blocks:
            tokens, _ = block(tokens)
        tokens = self.norm(tokens)
        cells = rearrange(tokens, "(b p q) (h w) d -> b d (h p) (w q)", p=2, q=2, h=rows)
        return self.fuse(torch.cat([x, self.after(cells[:, :, :height, :width])], 1))


def hybrid() -> nn.Module:
    """Return a network of MobileViT-XXS's widths and depths: 1.3 million parameters."""
    return nn.Sequential(
        *(ConvNorm(3, 16, 3, stride=2), nn.SiLU(), Inverted(16, 16)),
        *(Inverted(16, 24, 2), Inverted(24, 24), Inverted(24, 24)),
        *(Inverted(24, 48, 2), Hybrid(48, 64, 2)),
        *(Inverted(48, 64, 2), Hybrid(64, 80, 4)),
        *(Inverted(64, 80, 2), Hybrid(80, 96, 3), ConvNorm(80, 320), nn.SiLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(320, 1000)),
    )


def measure_speed(rounds: int) -> list[dict[str, Any]]:
    """Time the published network and the hybrid."""
    fast = create_model(FAST, bands=3, num_classes=1000, image_size=224)
    models = {FAST: fast, HYBRID: hybrid()}
    seconds = time_by_turns(models, torch.randn(16, 3, 224, 224), rounds)
    return [
        {"system": name, "parameters": count(model), "images_per_second": 16 / seconds[name]}
        for name, model in models.items()
    ]


@torch.inference_mode()
def time_by_turns(models: dict[str, nn.Module], images: Tensor, rounds: int) -> dict[str, float]:
    """Return each network's median of seconds per batch, after one round that is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds + 1):
        for name, model in models.items():
            started = time.perf_counter()
            model.eval()(images)
            taken[name].append(time.perf_counter() - started)
    return {name: median(own[1:]) for name, own in taken.items()}


# -- from records to words --------------------------------------------------------------------------------


def count(model: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(p.numel() for p in model.parameters())


def summary(
    records: Sequence[dict[str, Any]], speeds: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return the table: blocks over their seeds, then published networks."""
    rows = []
    for name in (OURS, USUAL):
        own = [r for r in records if r["system"] == name]
        rows.append(
            {
                "part": "blocks, digits",
                "system": name,
                "parameters": own[0]["parameters"],
                "accuracy %": percent([r["accuracy"] for r in own]),
                "images/s": round(mean(r["images_per_second"] for r in own)),
                "similarity of heads": f"{mean(r['similarity'] for r in own):.3f}",
            }
        )
    for row in speeds:
        speed = round(row["images_per_second"], 1)
        rows.append(
            {
                "part": "speed, 224 pixels",
                "system": row["system"],
                "parameters": row["parameters"],
                "accuracy %": "",
                "images/s": speed,
                "similarity of heads": "",
            }
        )
    return rows


def conclude(records: Sequence[dict[str, Any]], speeds: Sequence[dict[str, Any]]) -> str:
    """Say in words what the numbers say of the claims, also where they do not hold."""
    ours, usual = (
        {
            key: mean(r[key] for r in records if r["system"] == name)
            for key in ("accuracy", "images_per_second", "similarity")
        }
        for name in (OURS, USUAL)
    )
    gain = 100 * (ours["accuracy"] - usual["accuracy"])
    faster = ours["images_per_second"] / usual["images_per_second"]
    alike = ours["similarity"] - usual["similarity"]
    speedup = speeds[0]["images_per_second"] / speeds[1]["images_per_second"]
    return (
        f"With as many parameters the sandwich is {gain:+.1f} points from the usual blocks, at most {SLACK} behind: "
        f"{verdict(gain >= -SLACK)}; it classifies {faster:.2f} times as many images per second, more than as many: "
        f"{verdict(faster > 1)}; the similarity of its heads' maps differs by {alike:+.3f}, below 0: "
        f"{verdict(alike < 0)}. M2 classifies {speedup:.2f} times as many images per second as the hybrid, more "
        f"than {SPEEDUP:.0f} times as many: {verdict(speedup > SPEEDUP)}."
    )


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:])
