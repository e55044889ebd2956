"""MCTF's claim in miniature: three criteria merge better than similarity alone (arXiv 2403.10030).

A plain ViT is trained on images of 32 x 32 pixels in 8 x 8 tokens. Then, with its weights as they are, tokens are merged
in each of its last five blocks: by all three criteria; by similarity alone (one way, means by size; the attention is
reused as before); by similarity alone with everything else as in MCTF, to isolate the criteria; and as ToMe does it.
The claim is about six tokens fewer per block. So small a network gathers most of what it needs in its first blocks and
hardly notices, so that half of the tokens per block are merged too (down to the ten that MCTF's guard keeps; ToMe has
none), and besides accuracy the change of the scores from those of the dense network is measured. At last the network is
fine-tuned for five epochs, once with the paper's consistency loss and once, for comparison, with cross-entropy alone.
By default the images are toy digits on a rough texture; ``--data FOLDER`` takes real ones.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from vitreous.catalog.claims import Claim, claim, differences, exact, paired, scores
from vitreous.catalog.results import percents, table_of
from vitreous.catalog.study import Study
from vitreous.inference.cost import count_cost
from vitreous.methods._apply import apply
from vitreous.methods.reduce.mctf import Consistency
from vitreous.tasks.miniature import (
    TokenTask,
    cross_entropy,
    in_little,
    predict_images,
    token_task,
    trained_vit,
    tune_vit,
)

EPOCHS, TUNING, TUNING_RATE = 40, 5, 2e-4
FEW, HALF = 6, 32  # tokens fewer per block
R_MAX = 6
ALIKE = {"tau_info": 0.0, "tau_size": 0.0}
DENSE = "dense"
OURS, ALONE, BARE, TOME = "MCTF", "similarity alone", "MCTF by similarity alone", "ToMe"
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    OURS: ("mctf", {}),
    ALONE: ("mctf", {**ALIKE, "both_ways": False, "pooling": "size"}),
    BARE: ("mctf", ALIKE),
    TOME: ("tome", {}),
}
TUNED, PLAINLY = "MCTF, 5 epochs of consistency", "MCTF, 5 epochs of cross-entropy"

# What the claim demands, in points of accuracy.
LOSS, TUNED_LOSS = 3.0, 0.5


def main(quick: bool = False, full: bool = False, data: Path | None = None) -> None:
    """Measure everything; a full run writes ``results/mctf.json``, a quick one only checks that all of it runs."""
    study = Study(
        __file__,
        "three criteria for merging tokens",
        settings={"epochs": EPOCHS, "tuning": [TUNING, TUNING_RATE, R_MAX], "methods": METHODS},
        quick=quick,
        full=full,
        data=data,
    )
    for seed in study.seeds:
        study.group(partial(measure, seed, data, quick), seed=seed)
    study.finish(summary, claims, on=token_task(0, data).name)


def measure(seed: int, data: Path | None, quick: bool) -> list[dict[str, Any]]:
    """Train one network, reduce it in every way, and score all of them on the same images."""
    task = token_task(seed, data)
    task, epochs, tuning = (in_little(task), 1, 1) if quick else (task, EPOCHS, TUNING)
    dense = trained_vit(seed, task, epochs)
    expected = predict_images(dense, task.test.images)
    records = []
    for (arm, r), network in reduced(dense, seed, task, tuning).items():
        found = predict_images(network, task.test.images)
        records.append(
            {
                "system": arm,
                "r": r,
                "accuracy": float((found.argmax(1) == task.test.classes).float().mean()),
                "moved": float((found - expected).norm() / (expected - expected.mean(0)).norm()),
                "macs": count_cost(network, *task.test.images.shape[1:3]).macs,
            }
        )
    return records


def reduced(
    dense: nn.Module, seed: int, task: TokenTask, tuning: int
) -> dict[tuple[str, int], nn.Module]:
    """Return all networks to compare, by their name and how many tokens they merge per block."""
    networks = {(DENSE, 0): dense}
    for r in (FEW, HALF):
        for arm, (method, settings) in METHODS.items():
            blocks = [0, *[r] * 5] if method == "tome" else r
            networks[arm, r] = apply(dense, method, r=blocks, **settings).model
    for arm in (TUNED, PLAINLY):
        networks[arm, FEW] = network = copy.deepcopy(networks[OURS, FEW])
        loss = Consistency(network, R_MAX) if arm == TUNED else cross_entropy
        tune_vit(network, seed, task, tuning, learning_rate=TUNING_RATE, loss=loss)
    return networks


def summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the table: one row per system and number of tokens merged, over its seeds."""
    return table_of(
        records,
        {
            "multiply-adds, M": lambda own: round(own[0]["macs"] / 1e6, 2),
            "accuracy %": percents("accuracy"),
            "change of the scores %": percents("moved"),
        },
        keys={"system": "system", "merged per block": "r"},
    )


def claims(records: Sequence[dict[str, Any]]) -> list[Claim]:
    """Return what the paper claims, as measured."""
    macs = {(record["system"], record["r"]): record["macs"] for record in records}
    dense = scores(records, DENSE)

    def behind(arm: str) -> list[float]:
        return differences(scores(records, arm, r=FEW), dense)

    moved = partial(paired, records, OURS, score="moved", r=HALF)
    return [
        exact(
            "Multiply-adds relative to the dense network",
            macs[OURS, FEW] / macs[DENSE, 0],
            digits=2,
        ),
        claim(
            "Accuracy without training, MCTF vs similarity alone",
            paired(records, OURS, ALONE, r=FEW),
            at_least=0.0,
        ),
        claim("Accuracy without training, MCTF vs dense", behind(OURS), at_least=-LOSS),
        claim(
            f"Accuracy after {TUNING} epochs with the consistency loss, MCTF vs dense",
            behind(TUNED),
            at_least=-TUNED_LOSS,
        ),
        claim(f"Accuracy after {TUNING} epochs with cross-entropy, MCTF vs dense", behind(PLAINLY)),
        claim(
            "Accuracy with half of the tokens merged, MCTF vs similarity alone",
            paired(records, OURS, ALONE, r=HALF),
        ),
        claim(
            "Accuracy with half of the tokens merged, MCTF vs MCTF by similarity alone",
            paired(records, OURS, BARE, r=HALF),
        ),
        claim(
            "Change of the scores with half of the tokens merged, MCTF vs similarity alone",
            moved(theirs=ALONE),
        ),
        claim(
            "Change of the scores with half of the tokens merged, MCTF vs ToMe", moved(theirs=TOME)
        ),
    ]


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:], full="--full" in sys.argv[1:])
