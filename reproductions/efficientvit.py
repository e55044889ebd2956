"""EfficientViT's claims in miniature: cheaper blocks that lose nothing, and images per second (arXiv 2305.07027).

- blocks: two networks with the same stem, reductions and head, about as many parameters, and one recipe; both take the
  best of three learning rates, chosen on validation images with a seed that is not reported. Ours has EfficientViT's
  blocks: one cascaded group attention between two pairs of depth-wise convolution and feed-forward. The other has the
  usual ones: one such pair and multi-head attention whose heads see all channels; there are more of them. Every attention
  is global. Their convolutions and linear layers start at the scale of their width and their branches at zero, in both.
  By default the images are toy digits of 16 x 16 pixels; ``--data FOLDER`` takes real ones of 32 x 32, shifted and
  mirrored in training, whose stem halves them once more.
- speed: EfficientViT-M2 against a hybrid of MobileViT-XXS's layout (arXiv 2110.02178) and size, images of 224 pixels
  in batches of 16, no norm folded.

Times are processor times of one thread, of systems that take turns.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from itertools import combinations, groupby
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vitreous.catalog.claims import Claim, claim, paired
from vitreous.catalog.registry import create_model
from vitreous.catalog.results import first, percents, table_of
from vitreous.catalog.study import Study
from vitreous.inference.bench import cpu_ratios
from vitreous.layers.attention import AttentionCore
from vitreous.layers.convnorm import ConvNorm
from vitreous.layers.windows import DistanceBias
from vitreous.models.efficientvit import Block, FeedForward, Residual
from vitreous.models.vit import Block as PlainBlock
from vitreous.tasks.miniature import (
    ImageTask,
    fit_task,
    image_task,
    scaled_init,
    shifted_and_mirrored,
)

EPOCHS, RATES = 10, (1e-3, 2e-3, 4e-3)
TRAINING = 1000  # of the digits
RUNS, BLOCK_BATCH, SPEED_BATCH = 9, 256, 16
OURS, USUAL = ARMS = "sandwich, cascaded groups", "multi-head, one feed-forward"
FAST = "efficientvit_m2"
BLOCK_TIME, FAST_TIME = "time of the usual blocks", "time of the hybrid"
HEADS, KEY_DIM, SIDE = 4, 8, 8  # 8 x 8 cells on the first map
SHAPE = {"dims": [24, 48, 72], "depths": [1, 2, 3], "heads": [HEADS] * 3, "key_dim": KEY_DIM}
DEPTHS = (2, 3, 4)  # of the usual blocks, for as many parameters
SLACK, SPEEDUP = 0.5, 2.0  # points of accuracy; times as many images per second


def main(quick: bool = False, full: bool = False, data: Path | None = None) -> None:
    """Measure everything; a full run writes ``results/efficientvit.json``, a quick one only checks that all of it runs."""
    study = Study(
        __file__,
        "sandwich layout, cascaded group attention and throughput",
        settings={
            "epochs": EPOCHS,
            "rates": RATES,
            "training": TRAINING,
            "shape": SHAPE,
            "usual_depths": DEPTHS,
        },
        quick=quick,
        full=full,
        data=data,
        few=2 if data is None else 1,  # real images take longer
    )
    measured = partial(
        measure,
        epochs=1 if quick else EPOCHS,
        augment=None if data is None else shifted_and_mirrored,
    )
    study.compare(ARMS, RATES, partial(task, data=data), measured)
    shape, runs = task(0, data).shape, 1 if quick else RUNS
    for seed in study.seeds:
        study.run(partial(time_of_blocks, seed, shape, runs), system=BLOCK_TIME, seed=seed)
        study.run(partial(time_of_hybrid, seed, runs), system=FAST_TIME, seed=seed)
    study.finish(summary, claims, on=task(0, data).name)


def task(seed: int, data: Path | None) -> ImageTask:
    """Return the images of a seed."""
    if data is None:
        return image_task(seed, 2 * SIDE, training=TRAINING)
    return image_task(seed, 4 * SIDE, data=data, validation=500)


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


def build(arm: str, shape: dict[str, int]) -> nn.Module:
    """Return a network with fresh weights: EfficientViT's blocks, or more of the usual ones."""
    stride = shape["image_size"] // SIDE
    model: Any = create_model("efficientvit_m0", **shape, **SHAPE, total_stride=stride, window=SIDE)
    if arm == OURS:
        return scaled_init(model)
    for i, (dim, depth) in enumerate(zip(SHAPE["dims"], DEPTHS, strict=True)):
        reduction = [part for part in model.stages[i] if not isinstance(part, Block)]
        blocks = [usual_block(dim, SIDE // 2**i) for _ in range(depth)]
        model.stages[i] = nn.ModuleList([*reduction, *blocks])
    return scaled_init(model)


def usual_block(dim: int, side: int) -> nn.Module:
    """Return depth-wise convolution, attention and feed-forward, one of each."""
    depthwise = ConvNorm(dim, dim, 3, groups=dim, gain=0.0)
    branches = (depthwise, MultiHead(dim, side), FeedForward(dim, 2 * dim))
    return nn.Sequential(*map(Residual, branches))


def measure(
    arm: str, seed: int, images: ImageTask, rate: float, *, epochs: int, augment: Any
) -> dict[str, Any]:
    """Train and score one network."""
    torch.manual_seed(seed)
    model = build(arm, images.shape)
    record = fit_task(model, images, rate, epochs=epochs, seed=seed, augment=augment)
    return {
        **record,
        "similarity": similarity_of_heads(model, images.test.images[:64]),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


@torch.inference_mode()
def time_of_blocks(seed: int, shape: dict[str, int], runs: int) -> dict[str, Any]:
    """Return, run by run, the time of the usual blocks over that of the sandwich."""
    torch.manual_seed(seed)
    usual, ours = (build(arm, shape).eval() for arm in (USUAL, OURS))
    side = shape["image_size"]
    images = torch.randn(BLOCK_BATCH, shape["bands"], side, side)
    return {"ratios": cpu_ratios(lambda: usual(images), lambda: ours(images), runs)}


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


@torch.inference_mode()
def time_of_hybrid(seed: int, runs: int) -> dict[str, Any]:
    """Return, run by run, the time of the hybrid over that of the published network."""
    torch.manual_seed(seed)
    fast = create_model(FAST, bands=3, num_classes=1000, image_size=224).eval()
    other = hybrid().eval()
    images = torch.randn(SPEED_BATCH, 3, 224, 224)
    return {"ratios": cpu_ratios(lambda: other(images), lambda: fast(images), runs)}


# -- from records to words --------------------------------------------------------------------------------


def summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the table: one row per kind of block, over its seeds."""
    return table_of(
        [record for record in records if record["system"] in ARMS],
        {
            "parameters": first("parameters"),
            "learning rate": first("learning_rate"),
            "accuracy %": percents("accuracy"),
            "similarity of heads": lambda own: f"{mean(r['similarity'] for r in own):.3f}",
        },
        keys={"blocks": "system"},
    )


def claims(records: Sequence[dict[str, Any]]) -> list[Claim]:
    """Return what the paper claims, as measured."""

    def speedup(text: str, system: str, required: float) -> Claim:
        ratios = [median(record["ratios"]) for record in records if record["system"] == system]
        text = f"Speed-up (processor time of one thread), {text}"
        return claim(text, ratios, at_least=required, unit="times", digits=2, signed=False)

    return [
        claim("Accuracy, sandwich vs usual blocks", paired(records, OURS, USUAL), at_least=-SLACK),
        speedup("sandwich over usual blocks", BLOCK_TIME, 1.0),
        claim(
            "Cosine similarity of the heads' feature maps, sandwich vs usual blocks",
            paired(records, OURS, USUAL, "similarity", factor=1.0),
            at_most=0.0,
            unit="",
            digits=3,
        ),
        speedup(f"{FAST} over a hybrid of MobileViT-XXS's size", FAST_TIME, SPEEDUP),
    ]


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:], full="--full" in sys.argv[1:])
