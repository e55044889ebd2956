"""SReT's claims in miniature: a second pass with the same weights, and slices that pay for it (arXiv 2111.05297).

Three networks with exactly the same weights are trained by one recipe: every block is applied once, twice, and twice with
attention inside slices of the sequence. The small projections between passes, which are not shared, are in all three; where
blocks are applied once, two of them follow one another. All start with weights scaled to their width, and each takes the
best of three learning rates, chosen on validation images with a seed that is not reported. By default the images are toy
digits of 16 x 16 pixels; ``--data FOLDER`` takes real ones of 32 x 32, shifted and mirrored in training.

And a count: slices need fewer multiply-adds.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitreous.catalog.claims import Claim, claim, exact, paired
from vitreous.catalog.registry import create_model
from vitreous.catalog.results import first, percents, table_of
from vitreous.catalog.study import Study
from vitreous.inference.cost import count_cost
from vitreous.models.sret import Stage
from vitreous.tasks.miniature import (
    ImageTask,
    fit_task,
    image_task,
    in_little,
    scaled_init,
    shifted_and_mirrored,
)

EPOCHS, BATCH, RATES = 15, 32, (1e-3, 2e-3, 4e-3)
TRAINING = 300  # of the digits
CELLS = 8  # of the first map, per side
NETWORK: dict[str, Any] = {
    "head_dim": 16,
    "depths": [4, 4],
    "heads": [2, 4],
    "mlp_ratio": 3.0,
    "drop_path": 0.0,
}
WHOLE: dict[str, Any] = {"groups": [1, 1], "groups_again": [1, 1]}
SLICES: dict[str, Any] = {"groups": [4, 2], "groups_again": [2, 1]}
ONCE, TWICE, SLICED = ARMS = "once", "twice", "twice, in slices"
LOSS = 1.0  # points that slices may cost


class OnceStage(Stage):
    """A stage that applies each block once, with all of its links."""

    def plan(self) -> Iterator[tuple[nn.Module, bool, nn.Module]]:
        """Give each application, the second ones of nothing."""
        for block, again, link in super().plan():
            yield (Pass() if again else block), again, link


class Pass(nn.Module):
    """What stands in the place of a block."""

    def forward(self, x: Tensor, again: bool) -> Tensor:
        """Return the tokens."""
        return x


def main(quick: bool = False, full: bool = False, data: Path | None = None) -> None:
    """Measure everything; a full run writes ``results/sret.json``, a quick one only checks that all of it runs."""
    study = Study(
        __file__,
        "blocks applied twice, and slices",
        settings={
            "epochs": EPOCHS,
            "batch": BATCH,
            "rates": RATES,
            "training": TRAINING,
            "network": NETWORK,
            "slices": SLICES,
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
    """Return the images of a seed."""
    if data is None:
        found = image_task(seed, 2 * CELLS, training=TRAINING)
    else:
        found = image_task(seed, 4 * CELLS, data=data, validation=500)
    return in_little(found) if quick else found


def build(arm: str, shape: dict[str, int]) -> nn.Module:
    """Return a network with fresh weights."""
    stride = shape["image_size"] // CELLS
    slices = SLICES if arm == SLICED else WHOLE
    model: Any = create_model("sret_tiny", **shape, **NETWORK, **slices, stem_stride=stride)
    if arm == ONCE:
        for number, stage in enumerate(model.stages):
            model.stages[number] = OnceStage(stage.reduce, stage.blocks, stage.links, False)
    return scaled_init(model)


def measure(
    arm: str, seed: int, images: ImageTask, rate: float, *, epochs: int, augment: Any
) -> dict[str, Any]:
    """Train and score one network."""
    torch.manual_seed(seed)
    model = build(arm, images.shape)
    record = fit_task(
        model, images, rate, epochs=epochs, batch_size=BATCH, seed=seed, augment=augment
    )
    cost = count_cost(model, images.shape["bands"], images.shape["image_size"])
    return {**record, "parameters": cost.parameters, "macs": cost.macs}


def summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the table: one row per network, over its seeds."""
    return table_of(
        records,
        {
            "parameters": first("parameters"),
            "multiply-adds": first("macs"),
            "learning rate": first("learning_rate"),
            "accuracy %": percents("accuracy"),
        },
        keys={"blocks applied": "system"},
    )


def claims(records: Sequence[dict[str, Any]]) -> list[Claim]:
    """Return what the paper claims, as measured."""
    macs = {record["system"]: record["macs"] for record in records}
    return [
        claim("Accuracy, blocks applied twice vs once", paired(records, TWICE, ONCE), at_least=0.0),
        claim("Accuracy, with slices vs without", paired(records, SLICED, TWICE), at_least=-LOSS),
        exact(
            "Multiply-adds, with slices over without",
            macs[SLICED] / macs[TWICE],
            at_most=1.0,
            digits=3,
        ),
    ]


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:], full="--full" in sys.argv[1:])
