"""SMT's claim in miniature: kernels of several sizes, their aggregation, and modulation before attention (arXiv 2307.08579).

Indian Pines (the cubes of Salinas and Pavia University are not available here), patches of 24 x 24 pixels of 6
principal components, two stages of 24 x 24 and 12 x 12 cells. Four networks are trained by one recipe: the first stage
modulates and the second alternates, as in the paper; the same with kernels of 3 x 3 only; the same without the
aggregation of the kernels' outputs; and attention in every block. All start with weights scaled to their width, and each
takes the best of three learning rates, chosen on validation pixels with a seed that is not reported. Pixels are drawn at
random, as is usual for this scene: test pixels lie inside training patches, so the accuracies compare systems and say
little else.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from vitreous.catalog.claims import Claim, claim, exact, paired
from vitreous.catalog.registry import create_model
from vitreous.catalog.results import first, percents, table_of
from vitreous.catalog.study import Study
from vitreous.inference.cost import count_cost
from vitreous.tasks.miniature import ImageTask, fit_task, random_task, scaled_init, turned

EPOCHS, BATCH, RATES = 15, 32, (1e-3, 2e-3, 4e-3)
PIXELS = {"training": 256, "validation": 256, "test": 1000}
SIDE, COMPONENTS = 24, 6
SHAPE: dict[str, Any] = {
    "dims": [32, 64],
    "depths": [2, 2],
    "mlp_ratios": [4.0, 4.0],
    "mixers": ["modulation", "alternate"],
    "modulation_heads": [4, 4],
    "attention_heads": [2, 4],
    "stem_stride": 1,
    "layer_scale": None,
}
SYSTEMS: dict[str, dict[str, Any]] = {
    "SMT": {},
    "kernels of 3 x 3": {"kernel_step": 0},
    "no aggregation": {"expand": 0},
    "attention only": {"mixers": ["attention", "attention"]},
}
OURS, ONE_SIZE, APART, ATTENTION = ARMS = tuple(SYSTEMS)
SLACK = 0.3  # points that ours may be behind kernels of one size


def main(quick: bool = False, full: bool = False) -> None:
    """Measure everything; a full run writes ``results/smt.json``, a quick one only checks that all of it runs."""
    study = Study(
        __file__,
        "modulation by kernels of several sizes before attention",
        settings={
            "epochs": EPOCHS,
            "batch": BATCH,
            "rates": RATES,
            "shape": SHAPE,
            "systems": SYSTEMS,
            **PIXELS,
        },
        quick=quick,
        full=full,
    )
    pixels = dict.fromkeys(PIXELS, 32) if quick else PIXELS
    epochs = 1 if quick else EPOCHS
    patches = partial(random_task, side=SIDE, components=COMPONENTS, **pixels)
    study.compare(ARMS, RATES, patches, partial(measure, epochs=epochs))
    study.finish(summary, claims, on="Indian Pines")


def measure(arm: str, seed: int, patches: ImageTask, rate: float, *, epochs: int) -> dict[str, Any]:
    """Train and score one network."""
    torch.manual_seed(seed)
    shape = {**SHAPE, **SYSTEMS[arm]}
    model = scaled_init(create_model("smt_test", **patches.shape, **shape))
    cost = count_cost(model, COMPONENTS, SIDE)
    record = fit_task(
        model, patches, rate, epochs=epochs, batch_size=BATCH, seed=seed, augment=turned
    )
    return {**record, "parameters": cost.parameters, "macs": cost.macs}


def summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the table: one row per network, over its seeds."""
    return table_of(
        records,
        {
            "parameters": first("parameters"),
            "multiply-adds, M": lambda own: round(own[0]["macs"] / 1e6, 1),
            "learning rate": first("learning_rate"),
            "OA %": percents("accuracy"),
        },
    )


def claims(records: Sequence[dict[str, Any]]) -> list[Claim]:
    """Return what the paper claims, as measured."""
    macs = {record["system"]: record["macs"] for record in records}
    return [
        claim("OA, SMT vs kernels of 3 x 3", paired(records, OURS, ONE_SIZE), at_least=-SLACK),
        claim("OA, SMT vs attention only", paired(records, OURS, ATTENTION), at_least=0.0),
        claim("OA, SMT vs no aggregation", paired(records, OURS, APART)),
        exact(
            "Multiply-adds vs attention only",
            100 * (macs[OURS] / macs[ATTENTION] - 1),
            at_most=0.0,
            unit="%",
            signed=True,
        ),
    ]


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:], full="--full" in sys.argv[1:])
