"""EViT's claim in miniature: dropping patches by class-token attention (arXiv 2202.07800, tables 1 and 4).

A plain ViT is trained on images of 32 x 32 pixels in 8 x 8 patches; then it is fine-tuned for a few epochs, keeping 0.7
of the patches in two blocks: those that the class token attends to, with and without fusing the others, or random ones.
The dense network is fine-tuned for as long. So small a network has gathered much of what it needs before the first
patches go, so that 0.3 are kept too. By default the images are toy digits that lie near the middle of a rough texture,
so that most patches tell nothing; ``--data FOLDER`` takes real ones.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from vitreous.catalog.claims import Claim, claim, exact, paired
from vitreous.catalog.results import percents, table_of
from vitreous.catalog.study import Study
from vitreous.inference.cost import count_cost
from vitreous.methods._apply import apply
from vitreous.tasks.miniature import accuracy, in_little, token_task, trained_vit, tune_vit

EPOCHS, TUNING, TUNING_RATE = 40, 3, 2e-4
KEEP: dict[str, Any] = {"keep_rate": 0.7, "blocks": [1, 3]}
FEWER: dict[str, Any] = {**KEEP, "keep_rate": 0.3}
DENSE, OURS, BARE, RANDOM = "dense", "EViT", "EViT without fusion", "random patches"
OURS_FEWER, RANDOM_FEWER = "EViT, 0.3 kept", "random patches, 0.3 kept"
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    OURS: ("evit", KEEP),
    BARE: ("evit", {**KEEP, "fuse": False}),
    RANDOM: ("random_drop", KEEP),
    OURS_FEWER: ("evit", FEWER),
    RANDOM_FEWER: ("random_drop", FEWER),
}

# What the claim demands: share of the dense network's multiply-adds, and points of accuracy.
COST, LOSS = 0.75, 2.0


def main(quick: bool = False, full: bool = False, data: Path | None = None) -> None:
    """Measure everything; a full run writes ``results/evit.json``, a quick one only checks that all of it runs."""
    study = Study(
        __file__,
        "dropping patches by class-token attention",
        settings={"epochs": EPOCHS, "tuning": [TUNING, TUNING_RATE], "methods": METHODS},
        quick=quick,
        full=full,
        data=data,
    )
    for seed in study.seeds:
        study.group(partial(measure, seed, data, quick), seed=seed)
    study.finish(summary, claims, on=token_task(0, data).name)


def measure(seed: int, data: Path | None, quick: bool) -> list[dict[str, Any]]:
    """Train one network, fine-tune it in every form, and score all of them on the same images."""
    task = token_task(seed, data)
    task, epochs, tuning = (in_little(task), 1, 1) if quick else (task, EPOCHS, TUNING)
    dense = trained_vit(seed, task, epochs)
    networks: dict[str, nn.Module] = {DENSE: copy.deepcopy(dense)}
    for arm, (method, settings) in METHODS.items():
        networks[arm] = apply(dense, method, **settings).model
    records = []
    for arm, network in networks.items():
        before = accuracy(network, *task.test)
        tune_vit(network, seed, task, tuning, learning_rate=TUNING_RATE)
        records.append(
            {
                "system": arm,
                "accuracy before": before,
                "accuracy": accuracy(network, *task.test),
                "macs": count_cost(network, *task.test.images.shape[1:3]).macs,
            }
        )
    return records


def summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the table: one row per system, over its seeds."""
    return table_of(
        records,
        {
            "multiply-adds, M": lambda own: round(own[0]["macs"] / 1e6, 2),
            "accuracy before fine-tuning %": percents("accuracy before"),
            "accuracy %": percents("accuracy"),
        },
    )


def claims(records: Sequence[dict[str, Any]]) -> list[Claim]:
    """Return what the paper claims, as measured."""
    macs = {r["system"]: r["macs"] for r in records}
    cost = macs[OURS] / macs[DENSE]
    return [
        exact("Multiply-adds relative to the dense network", cost, at_most=COST, digits=2),
        claim("Accuracy, EViT vs dense", paired(records, OURS, DENSE), at_least=-LOSS),
        claim("Accuracy, EViT vs random patches", paired(records, OURS, RANDOM), at_least=0.0),
        claim(
            "Accuracy at keep rate 0.3, EViT vs random patches",
            paired(records, OURS_FEWER, RANDOM_FEWER),
        ),
        claim("Gain from fusing the dropped patches", paired(records, OURS, BARE)),
    ]


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:], full="--full" in sys.argv[1:])
