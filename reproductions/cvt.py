"""CvT's claim in miniature: convolutional tokens need no position embedding (arXiv 2103.15808, tables 2 and 4).

Four systems of about as many parameters are trained by one recipe, on images in which places matter: a CvT of two
stages and a plain ViT with tokens of 4 x 4 pixels, each with and without learned positions. Both end with equally many
tokens. All start with weights scaled to their width, and each takes the best of three learning rates, chosen on
validation images with a seed that is not reported. By default the images are toy digits of 16 x 16 pixels;
``--data FOLDER`` takes real ones of 32 x 32.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vitreous.catalog.claims import Claim, claim, paired
from vitreous.catalog.registry import create_model
from vitreous.catalog.results import first, percents, table_of
from vitreous.catalog.study import Study
from vitreous.tasks.miniature import (
    ImageTask,
    fit_task,
    image_task,
    in_little,
    scaled_init,
)

EPOCHS, RATES = 15, (1e-3, 2e-3, 4e-3)
TWO_STAGES = {
    "dims": [32, 64],
    "depths": [1, 3],
    "heads": [1, 2],
    "mlp_ratio": 4.0,
    "drop_path": 0.0,
}
PLAIN = {"dim": 64, "depth": 4, "heads": 2, "token_size": 4, "mlp_ratio": 4.0}
OURS, PLACED, VIT, LOST = ARMS = (
    "CvT",
    "CvT with positions",
    "ViT with positions",
    "ViT without positions",
)

# What the claim demands, in points of accuracy.
LOSS_OF_VIT = 2.0  # without positions, at least
LOSS_OF_CVT = 1.0  # at most


def main(quick: bool = False, full: bool = False, data: Path | None = None) -> None:
    """Measure everything; a full run writes ``results/cvt.json``, a quick one only checks that all of it runs."""
    study = Study(
        __file__,
        "convolutions instead of position embeddings",
        settings={"epochs": EPOCHS, "rates": RATES, "cvt": TWO_STAGES, "vit": PLAIN},
        quick=quick,
        full=full,
        data=data,
    )
    epochs = 1 if quick else EPOCHS
    images = partial(task, data=data, quick=quick)
    study.compare(ARMS, RATES, images, partial(measure, epochs=epochs))
    study.finish(summary, claims, on=images(0).name)


def task(seed: int, data: Path | None, quick: bool) -> ImageTask:
    """Return the images of a seed."""
    found = image_task(seed, 16 if data is None else 32, data=data)
    return in_little(found) if quick else found


def build(arm: str, shape: dict[str, int]) -> torch.nn.Module:
    """Return a system with fresh weights."""
    if arm in (OURS, PLACED):
        return scaled_init(create_model("cvt_13", **shape, **TWO_STAGES, positions=arm == PLACED))
    model: Any = scaled_init(create_model("vit_tiny", **shape, **PLAIN))
    if arm == LOST:
        torch.nn.init.zeros_(model.pos_embed)
        model.pos_embed.requires_grad_(False)
    return model


def measure(arm: str, seed: int, images: ImageTask, rate: float, *, epochs: int) -> dict[str, Any]:
    """Train and score one system."""
    torch.manual_seed(seed)
    model = build(arm, images.shape)
    record = fit_task(model, images, rate, epochs=epochs, seed=seed)
    return {
        **record,
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }


def summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the table: one row per system, over its seeds."""
    return table_of(
        records,
        {
            "parameters": first("parameters"),
            "learning rate": first("learning_rate"),
            "accuracy %": percents("accuracy"),
        },
    )


def claims(records: Sequence[dict[str, Any]]) -> list[Claim]:
    """Return what the paper claims, as measured."""
    return [
        claim("Accuracy, CvT vs ViT with positions", paired(records, OURS, VIT), at_least=0.0),
        claim("Gain of the ViT from positions", paired(records, VIT, LOST), at_least=LOSS_OF_VIT),
        claim("Gain of the CvT from positions", paired(records, PLACED, OURS), at_most=LOSS_OF_CVT),
    ]


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:], full="--full" in sys.argv[1:])
