"""T2T-ViT's claim in miniature: tokens merged step by step against tokens cut in one go (arXiv 2101.11986).

Handwritten digits enlarged to 32 pixels, 64 tokens of width 64, and the same trunk of four blocks for all. What differs
is how an image becomes tokens:

- performer, transformer: two soft splits of stride 2 with one token layer between them, of either kind;
- patches: squares of 4 pixels, one linear map;
- convolutions: two of stride 2 with kernels of 3, as wide as the token layer.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from vitreous.catalog.results import percent, verdict, write_result
from vitreous.inference.cost import count_cost
from vitreous.models.t2t_vit import NeighbourhoodLinear, T2TViT
from vitreous.tasks.miniature import accuracy, fit_images

SIDE, DIM, DEPTH, HEADS, TOKEN_DIM = 32, 64, 4, 4, 16
SEEDS, EPOCHS, TRAIN_IMAGES, BATCH = 3, 15, 400, 20
GAIN = 1.0  # points that T2T must be above patches
BETWEEN_KINDS = 2.0  # points that the two kinds of token layers may differ
SPREAD = 0.15  # by which parameters may differ

RESULT = Path(__file__).parent / "results" / "t2t_vit.json"
PERFORMER, TRANSFORMER, PATCHES, CONVOLUTIONS = ARMS = (
    "T2T, performer",
    "T2T, transformer",
    "patches",
    "convolutions",
)


def main(quick: bool = False) -> None:
    """Train everything and write ``results/t2t_vit.json``; ``quick`` does so in little and writes nothing."""
    started = time.perf_counter()
    seeds, epochs, count = (1, 1, 40) if quick else (SEEDS, EPOCHS, TRAIN_IMAGES)
    images, classes = digits()
    records = []
    for seed in range(seeds):
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        train, test = order[:count], order[TRAIN_IMAGES : TRAIN_IMAGES + count if quick else None]
        for name in ARMS:
            torch.manual_seed(seed)
            model = make(name)
            fit_images(
                model, images[train], classes[train], epochs=epochs, batch_size=BATCH, seed=seed
            )
            cost = count_cost(model, 1, SIDE)
            records.append(
                {
                    "system": name,
                    "seed": seed,
                    "accuracy": accuracy(model, images[test], classes[test]),
                    "parameters": cost.parameters,
                    "macs": cost.macs,
                }
            )
            print(f"{name:16} seed {seed}  {100 * records[-1]['accuracy']:.2f}", file=sys.stderr)
    if quick:
        return
    write_result(
        RESULT,
        title="t2t_vit: merging tokens against cutting patches (digits at 32 pixels)",
        command="vitreous reproduce t2t_vit",
        rows=summary(records),
        conclusion=conclude(records),
        epochs=epochs,
        training_images=count,
        seconds=time.perf_counter() - started,
        runs=records,
    )


def digits() -> tuple[Tensor, Tensor]:
    """Return all digits of scikit-learn, enlarged from 8 to 32 pixels and standardised, and their classes."""
    found = load_digits()
    images = torch.from_numpy(found.images).float()[:, None]
    images = F.interpolate(images, (SIDE, SIDE), mode="bilinear", align_corners=False)
    return (images - images.mean()) / images.std(), torch.from_numpy(found.target).long()


def make(name: str) -> T2TViT:
    """Build one of the networks: the trunk of T2T-ViT behind its own tokenizer or another."""
    model = T2TViT(
        1,
        10,
        SIDE,
        dim=DIM,
        depth=DEPTH,
        heads=HEADS,
        mlp_ratio=2,
        token_dim=TOKEN_DIM,
        token_attention="transformer" if name == TRANSFORMER else "performer",
        stem_stride=2,
        later_strides=(2,),
    )
    if name == PATCHES:
        model.tokenizer = nn.Conv2d(1, DIM, 4, stride=4)
    elif name == CONVOLUTIONS:
        model.tokenizer = nn.Sequential(
            nn.Conv2d(1, TOKEN_DIM, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(TOKEN_DIM, DIM, 3, stride=2, padding=1),
        )
    for part in model.modules():
        # The usual deviation of 0.02 is made for widths of hundreds.
        if isinstance(part, nn.Linear | nn.Conv2d | NeighbourhoodLinear):
            nn.init.trunc_normal_(part.weight, std=part.weight[0].numel() ** -0.5)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    return model


def summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per network, over its seeds."""
    rows = []
    for name in ARMS:
        own = [r for r in records if r["system"] == name]
        rows.append(
            {
                "tokens by": name,
                "seeds": len(own),
                "parameters": own[0]["parameters"],
                "M multiply-adds": round(own[0]["macs"] / 1e6, 1),
                "accuracy %": percent([r["accuracy"] for r in own]),
            }
        )
    return rows


def conclude(records: Sequence[dict[str, Any]]) -> str:
    """Say in words what the numbers say of the claim, also where it does not hold."""
    performer, transformer, patches, convolutions = (
        100 * mean(r["accuracy"] for r in records if r["system"] == name) for name in ARMS
    )
    sizes = [r["parameters"] for r in records]
    spread = max(sizes) / min(sizes) - 1
    return (
        f"T2T with Performer layers is {performer - patches:+.1f} points from plain patches, where the claim demands "
        f"{GAIN:+.1f}: {verdict(performer >= patches + GAIN)}. Performer and softmax layers are "
        f"{abs(performer - transformer):.1f} points apart; that it is at most {BETWEEN_KINDS}: "
        f"{verdict(abs(performer - transformer) <= BETWEEN_KINDS)}. Convolutions of the same strides are "
        f"{convolutions - performer:+.1f} points from T2T. Parameters differ by {spread:.0%}; that it is at most "
        f"{SPREAD:.0%}: {verdict(spread <= SPREAD)}."
    )


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:])
