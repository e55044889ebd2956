"""HorNet's claim in miniature: features multiplied again and again, against once and against not at all (arXiv 2207.14284).

Indian Pines (the cubes of Salinas and Pavia University are not available here), patches of 24 x 24 pixels of 6
principal components, three stages. Three networks of as many parameters, up to 10 %, are trained by one recipe: gates of
orders 2, 3 and 4; gates of order 1; and ConvNeXt blocks with their plain 7 x 7 convolutions, somewhat wider. All start
with weights scaled to their width and without LayerScale, and each takes the best of three learning rates, chosen on
validation pixels with a seed that is not reported. Pixels are drawn at random, as is usual for this scene: test pixels
lie inside training patches, so the accuracies compare systems and say little else.

And a count: multiply-adds hardly grow with the order.
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

EPOCHS, BATCH, RATES = 15, 24, (1e-3, 2e-3, 4e-3)
PIXELS = {"training": 512, "validation": 512, "test": 1500}
SIDE, COMPONENTS = 24, 6
DEPTHS = {"depths": [1, 1, 2], "stem_stride": 1, "layer_scale": None}
GATED: dict[str, Any] = {"dim": 16, "spectral": [False] * 3, "kernel": 7, **DEPTHS}
SYSTEMS: dict[str, tuple[str, dict[str, Any]]] = {
    "HorNet, orders 2 to 4": ("hornet_test", {**GATED, "orders": [2, 3, 4]}),
    "HorNet, order 1": ("hornet_test", {**GATED, "orders": [1, 1, 1]}),
    "ConvNeXt": ("convnext_test", {"dims": [19, 38, 77], "kernel": 7, "mlp_ratio": 4.0, **DEPTHS}),
}
OURS, ONCE, CONVNEXT = ARMS = tuple(SYSTEMS)
SLACK = 0.5  # points that ours may be behind gating once
MOST_GROWTH = 10.0  # of the cost from order 2 to order 4, in percent


def main(quick: bool = False, full: bool = False) -> None:
    """Measure everything; a full run writes ``results/hornet.json``, a quick one only checks that all of it runs."""
    study = Study(
        __file__,
        "features multiplied again and again",
        settings={
            "epochs": EPOCHS,
            "batch": BATCH,
            "rates": RATES,
            "systems": SYSTEMS,
            **PIXELS,
        },
        quick=quick,
        full=full,
    )
    pixels = dict.fromkeys(PIXELS, 48) if quick else PIXELS
    epochs = 1 if quick else EPOCHS
    patches = partial(random_task, side=SIDE, components=COMPONENTS, **pixels)
    study.compare(ARMS, RATES, patches, partial(measure, epochs=epochs))
    growth = 100 * (gated_macs(4) / gated_macs(2) - 1)
    study.finish(summary, claims, on="Indian Pines", growth=growth)


def measure(arm: str, seed: int, patches: ImageTask, rate: float, *, epochs: int) -> dict[str, Any]:
    """Train and score one network."""
    torch.manual_seed(seed)
    variant, settings = SYSTEMS[arm]
    model = scaled_init(create_model(variant, **patches.shape, **settings))
    cost = count_cost(model, COMPONENTS, SIDE)
    record = fit_task(
        model, patches, rate, epochs=epochs, batch_size=BATCH, seed=seed, augment=turned
    )
    return {**record, "parameters": cost.parameters, "macs": cost.macs}


def gated_macs(order: int) -> int:
    """Return the multiply-adds of an image through a network whose gates are all of one order."""
    shape = {"bands": COMPONENTS, "num_classes": 16, "image_size": SIDE}
    model = create_model("hornet_test", **shape, **GATED, orders=[order] * 3)
    return count_cost(model, COMPONENTS, SIDE).macs


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


def claims(records: Sequence[dict[str, Any]], growth: float) -> list[Claim]:
    """Return what the paper claims, as measured."""
    return [
        claim("OA, HorNet vs ConvNeXt", paired(records, OURS, CONVNEXT), at_least=0.0),
        claim("OA, orders 2 to 4 vs order 1", paired(records, OURS, ONCE), at_least=-SLACK),
        exact(
            "Growth of multiply-adds from order 2 to order 4",
            growth,
            at_most=MOST_GROWTH,
            unit="%",
            signed=True,
        ),
    ]


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:], full="--full" in sys.argv[1:])
