"""CoSwin's claim in miniature: convolutions beside window attention, where images are small and few (arXiv 2509.08959).

Three networks of three stages on images of 32 x 32 pixels, with a fifth of the training images: CoSwin, the Swin that is
left without its convolutions, and a Swin as large as CoSwin, which is wider. The paper compares with a Swin of the same
shape, of which CoSwin has three times the weights: the second comparison tells whether it is the convolutions or the size
that helps. All start with weights scaled to their width, and each takes the best of three learning rates, chosen on
validation images with a seed that is not reported. By default the images are toy digits; ``--data FOLDER`` takes real
ones, shifted and mirrored in training.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitreous.catalog.claims import Claim, claim, paired
from vitreous.catalog.registry import create_model
from vitreous.catalog.results import first, percents, table_of
from vitreous.catalog.study import Study
from vitreous.data.images import Images
from vitreous.tasks.miniature import (
    ImageTask,
    fit_task,
    image_task,
    in_little,
    scaled_init,
    shifted_and_mirrored,
)

EPOCHS, BATCH, RATES = 20, 32, (1e-3, 2e-3, 4e-3)
SIDE, SHARE = 32, 5  # one training image in five
SHAPE: dict[str, Any] = {
    "dim": 24,
    "depths": [1, 2, 1],
    "heads": [2, 4, 8],
    "window": 4,
    "token_size": 2,
    "mlp_ratio": 2.0,
    "drop_path": 0.0,
}
OURS, SWIN, WIDE = ARMS = "CoSwin", "Swin", "Swin, as large"
GAIN = 1.0  # points above the Swin of the same shape


def main(quick: bool = False, full: bool = False, data: Path | None = None) -> None:
    """Measure everything; a full run writes ``results/coswin.json``, a quick one only checks that all of it runs."""
    study = Study(
        __file__,
        "convolutions beside window attention",
        settings={
            "epochs": EPOCHS,
            "batch": BATCH,
            "rates": RATES,
            "share": SHARE,
            "shape": SHAPE,
        },
        quick=quick,
        full=full,
        data=data,
        few=2 if data is None else 1,  # real images are more
    )
    images = partial(task, data=data, quick=quick)
    measured = partial(
        measure,
        epochs=1 if quick else EPOCHS,
        augment=None if data is None else shifted_and_mirrored,
    )
    study.compare(ARMS, RATES, images, measured)
    study.finish(summary, claims, on=images(0).name)


def task(seed: int, data: Path | None, quick: bool) -> ImageTask:
    """Return the images of a seed, of which a fifth are left to train with."""
    found = image_task(seed, SIDE, data=data, validation=200 if data is None else 500)
    count = len(found.train.images) // SHARE  # they lie in a random order
    found = found._replace(train=Images(*(values[:count] for values in found.train)))
    return in_little(found) if quick else found


def build(arm: str, shape: dict[str, int]) -> nn.Module:
    """Return a network with fresh weights."""
    if arm == OURS:
        return scaled_init(create_model("coswin_base", **shape, **SHAPE))
    return scaled_init(swin(shape, SHAPE["dim"] if arm == SWIN else width(shape)))


def swin(shape: dict[str, int], dim: int) -> nn.Module:
    """Return a Swin of CoSwin's shape, of some width."""
    return create_model("swin_tiny", **shape, **{**SHAPE, "dim": dim})


def width(shape: dict[str, int]) -> int:
    """Return the width with which a Swin comes nearest to CoSwin's number of weights; heads keep their number."""
    with torch.device("meta"):
        wanted = size(create_model("coswin_base", **shape, **SHAPE))
        return min(range(24, 97, 2), key=lambda dim: abs(size(swin(shape, dim)) - wanted))


def size(model: nn.Module) -> int:
    """Count parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def measure(
    arm: str, seed: int, images: ImageTask, rate: float, *, epochs: int, augment: Any
) -> dict[str, Any]:
    """Train and score one network."""
    torch.manual_seed(seed)
    model = build(arm, images.shape)
    record = fit_task(
        model, images, rate, epochs=epochs, batch_size=BATCH, seed=seed, augment=augment
    )
    return {**record, "parameters": size(model)}


def summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the table: one row per network, over its seeds."""
    return table_of(
        records,
        {
            "parameters": first("parameters"),
            "learning rate": first("learning_rate"),
            "accuracy %": percents("accuracy"),
        },
    )


def claims(records: Sequence[dict[str, Any]]) -> list[Claim]:
    """Return what the paper claims, and what it leaves open, as measured."""
    return [
        claim("Accuracy, CoSwin vs Swin of its shape", paired(records, OURS, SWIN), at_least=GAIN),
        claim("Accuracy, CoSwin vs Swin of its size", paired(records, OURS, WIDE), at_least=0.0),
    ]


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:], full="--full" in sys.argv[1:])
