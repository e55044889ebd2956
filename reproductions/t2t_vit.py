"""T2T-ViT's claim in miniature: tokens merged step by step against tokens cut in one go (arXiv 2101.11986).

Images of 32 x 32 pixels, 64 tokens of width 64, and the same trunk for all. What differs is how an image becomes tokens:

- performer, transformer: two soft splits of stride 2 with one token layer between them, of either kind;
- patches: squares of 4 pixels, one linear map;
- convolutions: two of stride 2 with kernels of 3, as wide as the token layer.

All start with weights scaled to their width, and each takes the best of three learning rates, chosen on validation images
with a seed that is not reported. By default the images are toy digits, enlarged, and the trunk has four blocks; ``--data
FOLDER`` takes real ones, shifted and mirrored in training, for which two blocks are trained longer in the same time.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitreous.catalog.claims import Claim, claim, exact, paired
from vitreous.catalog.results import first, percents, table_of
from vitreous.catalog.study import Study
from vitreous.inference.cost import count_cost
from vitreous.models.t2t_vit import T2TViT
from vitreous.tasks.miniature import (
    ImageTask,
    fit_task,
    image_task,
    scaled_init,
    shifted_and_mirrored,
)

SIDE, TOKEN_DIM = 32, 16
TRUNK: dict[str, Any] = {"dim": 64, "heads": 4, "mlp_ratio": 2}
TOY = {"depth": 4, "epochs": 15, "batch": 20, "training": 400}
REAL = {"depth": 2, "epochs": 12, "batch": 64}
RATES = (1e-3, 2e-3, 4e-3)
GAIN = 1.0  # points that T2T must be above patches
BETWEEN_KINDS = 2.0  # points that the two kinds of token layers may differ
SPREAD = 15.0  # percent by which parameters may differ
PERFORMER, TRANSFORMER, PATCHES, CONVOLUTIONS = ARMS = (
    "T2T, performer",
    "T2T, transformer",
    "patches",
    "convolutions",
)


def main(quick: bool = False, full: bool = False, data: Path | None = None) -> None:
    """Measure everything; a full run writes ``results/t2t_vit.json``, a quick one only checks that all of it runs."""
    settings = TOY if data is None else REAL
    study = Study(
        __file__,
        "soft splits compared with plain patches",
        settings={**settings, "rates": RATES, "trunk": TRUNK, "token_dim": TOKEN_DIM},
        quick=quick,
        full=full,
        data=data,
        few=2 if data is None else 1,  # real images take longer
    )
    measured = partial(
        measure,
        depth=settings["depth"],
        epochs=1 if quick else settings["epochs"],
        batch=settings["batch"],
        augment=None if data is None else shifted_and_mirrored,
    )
    study.compare(ARMS, RATES, partial(task, data=data), measured)
    study.finish(summary, claims, on=task(0, data).name)


def task(seed: int, data: Path | None) -> ImageTask:
    """Return the images of a seed."""
    if data is None:
        return image_task(seed, SIDE, training=TOY["training"])
    return image_task(seed, SIDE, data=data, validation=500)


def build(arm: str, bands: int, num_classes: int, depth: int) -> nn.Module:
    """Return a network with fresh weights: the trunk of T2T-ViT behind its own tokenizer or another."""
    model = T2TViT(
        bands,
        num_classes,
        SIDE,
        **TRUNK,
        depth=depth,
        token_dim=TOKEN_DIM,
        token_attention="transformer" if arm == TRANSFORMER else "performer",
        stem_stride=2,
        later_strides=(2,),
    )
    if arm == PATCHES:
        model.tokenizer = nn.Conv2d(bands, TRUNK["dim"], 4, stride=4)
    elif arm == CONVOLUTIONS:
        model.tokenizer = nn.Sequential(
            nn.Conv2d(bands, TOKEN_DIM, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(TOKEN_DIM, TRUNK["dim"], 3, stride=2, padding=1),
        )
    return scaled_init(model)


def measure(
    arm: str,
    seed: int,
    images: ImageTask,
    rate: float,
    *,
    depth: int,
    epochs: int,
    batch: int,
    augment: Any,
) -> dict[str, Any]:
    """Train and score one network."""
    torch.manual_seed(seed)
    bands = images.shape["bands"]
    model = build(arm, bands, images.num_classes, depth)
    record = fit_task(
        model, images, rate, epochs=epochs, batch_size=batch, seed=seed, augment=augment
    )
    cost = count_cost(model, bands, SIDE)
    return {
        **record,
        "parameters": cost.parameters,
        "macs": cost.macs,
    }


def summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the table: one row per network, over its seeds."""
    return table_of(
        records,
        {
            "parameters": first("parameters"),
            "multiply-adds, M": lambda own: round(own[0]["macs"] / 1e6, 1),
            "learning rate": first("learning_rate"),
            "accuracy %": percents("accuracy"),
        },
        keys={"tokenization": "system"},
    )


def claims(records: Sequence[dict[str, Any]]) -> list[Claim]:
    """Return what the paper claims, as measured."""
    sizes = [record["parameters"] for record in records]
    kinds = paired(records, PERFORMER, TRANSFORMER)
    return [
        claim(
            "Accuracy, T2T with Performer layers vs patches",
            paired(records, PERFORMER, PATCHES),
            at_least=GAIN,
        ),
        claim("Accuracy, Performer vs softmax layers", kinds, at_least=-BETWEEN_KINDS),
        claim("Accuracy, Performer vs softmax layers", kinds, at_most=BETWEEN_KINDS),
        claim(
            "Accuracy, T2T with Performer layers vs convolutions",
            paired(records, PERFORMER, CONVOLUTIONS),
        ),
        exact(
            "Parameters, largest vs smallest network",
            100 * (max(sizes) / min(sizes) - 1),
            at_most=SPREAD,
            unit="%",
            signed=True,
        ),
    ]


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:], full="--full" in sys.argv[1:])
