"""CvT's claim in miniature: convolutional tokens need no position embedding (arXiv 2103.15808, tables 2 and 4).

Digits of 16 x 16 pixels, a task in which places matter. Four systems of about as many parameters are trained by one
recipe: a CvT of two stages and a plain ViT with tokens of 4 x 4 pixels, each with and without learned positions. Both
end with 4 x 4 tokens. The digits are scikit-learn's (8 x 8, enlarged); each seed draws another division of them.
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
from torch import Tensor

from vitreous.catalog.registry import create_model
from vitreous.catalog.results import percent, verdict, write_result
from vitreous.tasks.miniature import accuracy, fit_images

SEEDS, EPOCHS, TRAIN = 3, 15, 1200
SIZE = {"bands": 1, "num_classes": 10, "image_size": 16}
TWO_STAGES = {
    "dims": [32, 64],
    "depths": [1, 3],
    "heads": [1, 2],
    "mlp_ratio": 4.0,
    "drop_path": 0.0,
}
PLAIN = {"dim": 64, "depth": 4, "heads": 2, "token_size": 4, "mlp_ratio": 4.0}
ARMS = ("CvT", "CvT with positions", "ViT with positions", "ViT without positions")

# What the claim demands, in points of accuracy.
LOSS_OF_VIT = 2.0  # without positions, at least
LOSS_OF_CVT = 1.0  # at most

RESULT = Path(__file__).parent / "results" / "cvt.json"


def main(quick: bool = False) -> None:
    """Measure everything and write ``results/cvt.json``; ``quick`` runs it all in little and writes nothing."""
    started = time.perf_counter()
    records = []
    for seed in range(1 if quick else SEEDS):
        data = digits(seed)
        for arm in ARMS:
            records.append(measure(arm, seed, data, epochs=1 if quick else EPOCHS))
            print(records[-1], file=sys.stderr)
    if quick:
        return
    write_result(
        RESULT,
        title="cvt: convolutions instead of position embeddings (digits)",
        command="vitreous reproduce cvt",
        rows=summary(records),
        conclusion=conclude(records),
        epochs=EPOCHS,
        seconds=time.perf_counter() - started,
        runs=records,
    )


def digits(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return images ``(count, 1, 16, 16)`` around 0 and classes: to train with, then to test with."""
    loaded = load_digits()
    images = torch.as_tensor(loaded.images, dtype=torch.float32)[:, None] / 8 - 1
    images = F.interpolate(images, scale_factor=2, mode="bilinear")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    classes = torch.as_tensor(loaded.target)
    train, test = order[:TRAIN], order[TRAIN:]
    return images[train], classes[train], images[test], classes[test]


def build(arm: str) -> torch.nn.Module:
    """Return a system with fresh weights."""
    if arm.startswith("CvT"):
        return create_model("cvt_13", **SIZE, **TWO_STAGES, positions="with " in arm)
    model: Any = create_model("vit_tiny", **SIZE, **PLAIN)
    if "without" in arm:
        torch.nn.init.zeros_(model.pos_embed)
        model.pos_embed.requires_grad_(False)
    return model


def measure(
    arm: str, seed: int, data: tuple[Tensor, Tensor, Tensor, Tensor], epochs: int
) -> dict[str, Any]:
    """Train and score one system."""
    torch.manual_seed(seed)
    model, started = build(arm), time.perf_counter()
    fit_images(model, *data[:2], epochs=epochs, seed=seed)
    seconds = time.perf_counter() - started
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    score = accuracy(model, *data[2:])
    return {
        "system": arm,
        "seed": seed,
        "accuracy": score,
        "parameters": trained,
        "seconds": seconds,
    }


def summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the table: one row per system, over its seeds."""
    rows = []
    for arm in dict.fromkeys(r["system"] for r in records):
        own = [r for r in records if r["system"] == arm]
        scores = percent([r["accuracy"] for r in own])
        rows.append(
            {
                "system": arm,
                "seeds": len(own),
                "parameters": own[0]["parameters"],
                "accuracy %": scores,
            }
        )
    return rows


def conclude(records: Sequence[dict[str, Any]]) -> str:
    """Say in words what the numbers say of the claim, also where it does not hold."""
    cvt, placed_cvt, vit, lost_vit = (
        100 * mean(r["accuracy"] for r in records if r["system"] == arm) for arm in ARMS
    )
    return (
        f"CvT without positions is {cvt - vit:+.1f} points from the ViT with them; that it is at least as good: "
        f"{verdict(cvt >= vit)}. Without positions the ViT loses {vit - lost_vit:.1f} points, where the claim "
        f"demands {LOSS_OF_VIT:.0f} or more: {verdict(vit - lost_vit >= LOSS_OF_VIT)}; the CvT loses "
        f"{placed_cvt - cvt:.1f}, at most {LOSS_OF_CVT:.0f}: {verdict(placed_cvt - cvt <= LOSS_OF_CVT)}."
    )


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:])
