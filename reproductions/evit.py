"""EViT's claim in miniature: the class token knows which patches can go (arXiv 2202.07800, tables 1 and 4).

Digits lie near the middle of a rough texture, 32 x 32 pixels in 8 x 8 patches, so that most patches tell nothing. A
plain ViT is trained; then it is trained on for a few epochs, keeping 0.7 of the patches in two blocks: those that the
class token attends to, with and without fusing the others, or any. The dense network is trained on as long, so that
nothing is owed to the epochs. So small a network has gathered much of what it needs before the first patches go, so
that 0.3 are kept too. The digits are scikit-learn's (8 x 8, enlarged); each seed draws another division of them, and
every epoch and image another place and texture.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import nn

from vitreous.catalog.results import percent, verdict, write_result
from vitreous.inference.cost import count_cost
from vitreous.methods._apply import apply
from vitreous.tasks.miniature import (
    GROUND,
    accuracy,
    divided_digits,
    fit_images,
    on_ground,
    trained_on_ground,
)

SEEDS, EPOCHS, TUNING, BATCH = 3, 20, 3, 32
TUNING_RATE = 2e-4
COPIES = 2  # places of each test digit
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

RESULT = Path(__file__).parent / "results" / "evit.json"


def main(quick: bool = False) -> None:
    """Measure everything and write ``results/evit.json``; ``quick`` runs it all in little and writes nothing."""
    started = time.perf_counter()
    records = [
        record
        for seed in range(1 if quick else SEEDS)
        for record in measure(seed, *((1, 1) if quick else (EPOCHS, TUNING)))
    ]
    if quick:
        return
    write_result(
        RESULT,
        title="evit: the class token knows which patches can go (digits on texture)",
        command="vitreous reproduce evit",
        rows=summary(records),
        conclusion=conclude(records),
        epochs=EPOCHS,
        tuning_epochs=TUNING,
        seconds=time.perf_counter() - started,
        runs=records,
    )


def measure(seed: int, epochs: int, tuning: int) -> list[dict[str, Any]]:
    """Train one network, train it on in every form, and score all of them on the same images."""
    digits, classes, test_digits, test_classes = divided_digits(seed)
    generator = torch.Generator().manual_seed(1000 + seed)
    test = torch.cat([on_ground(test_digits, generator) for _ in range(COPIES)])
    truth = test_classes.repeat(COPIES)
    dense = trained_on_ground(seed, digits, classes, epochs)
    options: dict[str, Any] = {"batch_size": BATCH, "seed": seed, "augment": on_ground}
    networks: dict[str, nn.Module] = {DENSE: copy.deepcopy(dense)}
    for arm, (method, settings) in METHODS.items():
        networks[arm] = apply(dense, method, **settings).model
    records = []
    for arm, network in networks.items():
        before = accuracy(network, test, truth)
        tuned = {"epochs": tuning, "learning_rate": TUNING_RATE, "warmup": 0.0}
        fit_images(network, digits, classes, **tuned, **options)
        records.append(
            {
                "system": arm,
                "seed": seed,
                "accuracy before": before,
                "accuracy": accuracy(network, test, truth),
                "macs": count_cost(network, 1, GROUND).macs,
            }
        )
        print(records[-1], file=sys.stderr)
    return records


def summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the table: one row per system, over its seeds."""
    rows = []
    for arm in dict.fromkeys(r["system"] for r in records):
        own = [r for r in records if r["system"] == arm]
        rows.append(
            {
                "system": arm,
                "seeds": len(own),
                "multiply-adds, M": round(own[0]["macs"] / 1e6, 2),
                "accuracy untuned %": percent([r["accuracy before"] for r in own]),
                "accuracy %": percent([r["accuracy"] for r in own]),
            }
        )
    return rows


def conclude(records: Sequence[dict[str, Any]]) -> str:
    """Say in words what the numbers say of the claim, also where it does not hold."""
    points = {
        arm: 100 * mean(r["accuracy"] for r in records if r["system"] == arm)
        for arm in (DENSE, *METHODS)
    }
    macs = {r["system"]: r["macs"] for r in records}
    cost, behind = macs[OURS] / macs[DENSE], points[OURS] - points[DENSE]
    chosen, fused = points[OURS] - points[RANDOM], points[OURS] - points[BARE]
    return (
        f"EViT takes {cost:.0%} of the dense network's multiply-adds, where the claim demands at most {COST:.0%}: "
        f"{verdict(cost <= COST)}. It is {behind:+.1f} points from the dense network, trained on as long; that it is at "
        f"most {LOSS:g} behind: {verdict(behind >= -LOSS)}. Against patches kept at random it is {chosen:+.1f} points; "
        f"that it is ahead: {verdict(chosen > 0)}. Where only 0.3 are kept it is "
        f"{points[OURS_FEWER] - points[RANDOM_FEWER]:+.1f}. Fusing what is dropped is worth {fused:+.1f}."
    )


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:])
