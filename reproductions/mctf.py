"""MCTF's claim in miniature: three criteria merge better than likeness alone (arXiv 2403.10030).

Digits lie at random places on a rough texture, 32 x 32 pixels in 8 x 8 tokens. A plain ViT is trained; then, with its
weights as they are, tokens are merged in each of its last five blocks: by all three criteria; by likeness alone (one
way, means by size; the attention is reused as before); by likeness alone with everything else as in MCTF, to see what
is owed to the criteria; and as ToMe does it. Six tokens fewer per block is what the claim is about. So small a network
gathers most of what it needs in its first blocks and hardly notices, so that half of the tokens per block are merged
too (down to the ten that MCTF's guard keeps; ToMe has none), and besides the accuracy it is measured how far the scores
move from those of the dense network. At last the network is trained on for five epochs, once with the consistency loss
of the paper and once, for comparison, with cross-entropy alone. The digits are scikit-learn's (8 x 8, enlarged); each
seed draws another division of them, and every epoch and image another place and texture.
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
from torch import Tensor, nn

from vitreous.catalog.results import percent, verdict, write_result
from vitreous.inference.cost import count_cost
from vitreous.methods._apply import apply
from vitreous.methods.reduce.mctf import Consistency
from vitreous.tasks.miniature import (
    GROUND,
    cross_entropy,
    divided_digits,
    fit_images,
    on_ground,
    predict_images,
    trained_on_ground,
)

SEEDS, EPOCHS, TUNING, BATCH = 3, 20, 5, 32
TUNING_RATE = 2e-4
COPIES = 2  # places of each test digit
FEW, HALF = 6, 32  # tokens fewer per block
R_MAX = 6
ALIKE = {"tau_info": 0.0, "tau_size": 0.0}
DENSE = "dense"
OURS, ALONE, BARE, TOME = "MCTF", "likeness alone", "MCTF by likeness alone", "ToMe"
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    OURS: ("mctf", {}),
    ALONE: ("mctf", {**ALIKE, "both_ways": False, "pooling": "size"}),
    BARE: ("mctf", ALIKE),
    TOME: ("tome", {}),
}
TUNED, PLAINLY = "MCTF, 5 epochs of consistency", "MCTF, 5 epochs of cross-entropy"

# What the claim demands, in points of accuracy.
LOSS, TUNED_LOSS = 3.0, 0.5

RESULT = Path(__file__).parent / "results" / "mctf.json"


def main(quick: bool = False) -> None:
    """Measure everything and write ``results/mctf.json``; ``quick`` runs it all in little and writes nothing."""
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
        title="mctf: three criteria for merging tokens (digits on texture)",
        command="vitreous reproduce mctf",
        rows=summary(records),
        conclusion=conclude(records),
        epochs=EPOCHS,
        seconds=time.perf_counter() - started,
        runs=records,
    )


def measure(seed: int, epochs: int, tuning: int) -> list[dict[str, Any]]:
    """Train one network, reduce it in every way, and score all of them on the same images."""
    digits, classes, test_digits, test_classes = divided_digits(seed)
    generator = torch.Generator().manual_seed(1000 + seed)
    test = torch.cat([on_ground(test_digits, generator) for _ in range(COPIES)])
    truth = test_classes.repeat(COPIES)
    dense = trained_on_ground(seed, digits, classes, epochs)
    expected = predict_images(dense, test)
    records = []
    for (arm, r), network in reduced(dense, seed, digits, classes, tuning).items():
        scores = predict_images(network, test)
        record = {
            "system": arm,
            "r": r,
            "seed": seed,
            "accuracy": float((scores.argmax(1) == truth).float().mean()),
            "moved": float((scores - expected).norm() / (expected - expected.mean(0)).norm()),
            "macs": count_cost(network, 1, GROUND).macs,
        }
        records.append(record)
        print(record, file=sys.stderr)
    return records


def reduced(
    dense: nn.Module, seed: int, digits: Tensor, classes: Tensor, tuning: int
) -> dict[tuple[str, int], nn.Module]:
    """Return all networks to compare, by their name and how many tokens they merge per block."""
    networks = {(DENSE, 0): dense}
    for r in (FEW, HALF):
        for arm, (method, settings) in METHODS.items():
            blocks = [0, *[r] * 5] if method == "tome" else r
            networks[arm, r] = apply(dense, method, r=blocks, **settings).model
    for arm in (TUNED, PLAINLY):
        networks[arm, FEW] = network = copy.deepcopy(networks[OURS, FEW])
        fit_images(
            network,
            digits,
            classes,
            epochs=tuning,
            batch_size=BATCH,
            learning_rate=TUNING_RATE,
            warmup=0.0,
            seed=seed,
            loss=Consistency(network, R_MAX) if arm == TUNED else cross_entropy,
            augment=on_ground,
        )
    return networks


def summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the table: one row per system and number of tokens merged, over its seeds."""
    rows = []
    for arm, r in dict.fromkeys((record["system"], record["r"]) for record in records):
        own = [record for record in records if (record["system"], record["r"]) == (arm, r)]
        rows.append(
            {
                "system": arm,
                "merged per block": r,
                "seeds": len(own),
                "multiply-adds, M": round(own[0]["macs"] / 1e6, 2),
                "accuracy %": percent([record["accuracy"] for record in own]),
                "scores moved %": percent([record["moved"] for record in own]),
            }
        )
    return rows


def conclude(records: Sequence[dict[str, Any]]) -> str:
    """Say in words what the numbers say of the claim, also where it does not hold."""

    def points(arm: str, r: int = FEW, what: str = "accuracy") -> float:
        return 100 * mean(x[what] for x in records if (x["system"], x["r"]) == (arm, r))

    macs = {(x["system"], x["r"]): x["macs"] for x in records}
    ahead, dense = points(OURS) - points(ALONE), points(DENSE, 0)
    ours, tuned, plainly = (points(arm) - dense for arm in (OURS, TUNED, PLAINLY))
    return (
        f"MCTF saves {1 - macs[OURS, FEW] / macs[DENSE, 0]:.0%} of the multiply-adds. With weights as they are it is "
        f"{ahead:+.1f} points from merging by likeness alone; that it is not behind: {verdict(ahead >= 0)}. It is "
        f"{ours:+.1f} points from the dense network, where the claim demands {-LOSS:+.1f}: {verdict(ours >= -LOSS)}. "
        f"After {TUNING} epochs with the consistency loss it is {tuned:+.1f} from it, where the claim demands "
        f"{-TUNED_LOSS:+.1f}: {verdict(tuned >= -TUNED_LOSS)}; with cross-entropy alone {plainly:+.1f}. Where half of "
        f"the tokens are merged per block, MCTF is {points(OURS, HALF) - points(ALONE, HALF):+.1f} points from likeness "
        f"alone and {points(OURS, HALF) - points(BARE, HALF):+.1f} from itself without the criteria of information and "
        f"size; its scores move by {points(OURS, HALF, 'moved'):.1f} %, those of likeness alone by "
        f"{points(ALONE, HALF, 'moved'):.1f} %, those of ToMe by {points(TOME, HALF, 'moved'):.1f} %."
    )


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:])
