"""GTP-ViT's claim in miniature: propagating what leaves is worth it (arXiv 2311.03035, tables 1 and 4).

A plain ViT is trained on images of 32 x 32 pixels in 8 x 8 patches and then left as it is, while four patches leave in
each of its six blocks: lost (pruning), averaged into one token, or propagated along the graph; and, for comparison,
merged by bipartite matching (ToMe), or chosen at random and lost. So small a network has soon gathered what it needs
and hardly notices, so that ten per block leave too, after which four are left. The settings of GTP, of pruning and of
the mean token are searched on validation images, six of each; ToMe and random pruning have none. By default the images
are toy digits on a rough texture; ``--data FOLDER`` takes real ones.

The time of choosing and propagating is compared with that of bipartite matching and merging, at the size of DeiT-S and
8 of 196 patches fewer.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from vitreous.catalog.claims import Claim, claim, differences, paired, scores
from vitreous.catalog.registry import create_model
from vitreous.catalog.results import percents, table_of
from vitreous.catalog.study import Study
from vitreous.inference.bench import timed
from vitreous.inference.cost import count_cost
from vitreous.layers.matching import cosines, match
from vitreous.methods._apply import apply
from vitreous.methods.reduce.gtp_vit import Propagation, ranked
from vitreous.tasks.miniature import TokenTask, accuracy, in_little, token_task, trained_vit

EPOCHS = 40
LEAVING, MANY = 4, 10  # patches per block
DENSE, PRUNED, FUSED, OURS, TOME, RANDOM = (
    "dense",
    "pruning",
    "mean token",
    "GTP",
    "ToMe",
    "random pruning",
)
REDUCED = (PRUNED, FUSED, OURS, TOME, RANDOM)
THETAS, FEW_THETAS, ALPHAS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5), (1.0, 0.8, 0.6), (0.1, 0.3)
# Settings to choose from; as many for every system that has any.
CANDIDATES: dict[str, list[dict[str, Any]]] = {
    PRUNED: [{"theta": theta, "propagation": "none"} for theta in THETAS],
    FUSED: [{"theta": theta, "propagation": "mean"} for theta in THETAS],
    OURS: [
        {"theta": theta, "alpha": alpha} for theta, alpha in itertools.product(FEW_THETAS, ALPHAS)
    ],
    TOME: [{}],
    RANDOM: [{"theta": 1.0, "propagation": "none", "selection": "random"}],
}

# What the claim demands, in points of accuracy.
GAIN, LOSS = 0.5, 3.0
PUBLISHED_SIZE = {"batch": 8, "tokens": 197, "dim": 384, "heads": 6, "leaving": 8}


def main(quick: bool = False, full: bool = False, data: Path | None = None) -> None:
    """Measure everything; a full run writes ``results/gtp_vit.json``, a quick one only checks that all of it runs."""
    study = Study(
        __file__,
        "propagating removed tokens",
        settings={"epochs": EPOCHS, "leaving": [LEAVING, MANY], "candidates": CANDIDATES},
        quick=quick,
        full=full,
        data=data,
    )
    for seed in study.seeds:
        study.group(partial(measure, seed, data, quick), seed=seed)
    milliseconds = compare_times(2 if quick else 30)
    study.finish(summary, claims, on=token_task(0, data).name, milliseconds=milliseconds)


def measure(seed: int, data: Path | None, quick: bool) -> list[dict[str, Any]]:
    """Train one network, search each way's settings, and score all of them on the same images."""
    task = token_task(seed, data)
    task, epochs = (in_little(task), 1) if quick else (task, EPOCHS)
    dense = trained_vit(seed, task, epochs)
    records = []
    for arm, leaving in [(DENSE, 0), *itertools.product(REDUCED, (LEAVING, MANY))]:
        network, settings = best(dense, arm, leaving, task)
        records.append(
            {
                "system": arm,
                "leaving": leaving,
                "settings": settings,
                "accuracy": accuracy(network, *task.test),
                "macs": count_cost(network, *task.test.images.shape[1:3]).macs,
            }
        )
    return records


def best(
    dense: nn.Module, arm: str, leaving: int, task: TokenTask
) -> tuple[nn.Module, dict[str, Any]]:
    """Return what a way makes of the network, with the settings that are best on the validation images."""
    if arm == DENSE:
        return dense, {}
    if arm == TOME:
        return apply(dense, "tome", r=leaving).model, {}
    found = [
        (apply(dense, "gtp_vit", leaving=leaving, **settings).model, settings)
        for settings in CANDIDATES[arm]
    ]
    return max(found, key=lambda one: accuracy(one[0], *task.validation))


def compare_times(repeats: int) -> dict[str, list[float]]:
    """Return the milliseconds of both ways to lose eight tokens, behind the same attention, measured alternately."""
    size = PUBLISHED_SIZE
    torch.manual_seed(0)
    x = torch.randn(size["batch"], size["tokens"], size["dim"])
    shape = (size["batch"], size["heads"], size["tokens"])
    keys = torch.randn(*shape, size["dim"] // size["heads"])
    weights = torch.randn(*shape, size["tokens"]).softmax(-1)
    network = create_model("vit_small", bands=3, num_classes=2, image_size=224)
    reducer = apply(network, "gtp_vit", leaving=size["leaving"]).model.blocks[0].reducer  # type: ignore[union-attr,index]
    assert isinstance(reducer, Propagation)
    carry = reducer.begin(x)
    front = torch.zeros(size["batch"], 1, dtype=torch.long)
    ones = torch.ones(size["batch"], size["tokens"])

    def propagate() -> None:
        order = 1 + ranked(reducer.score(weights))
        stay, leave = order[:, : -size["leaving"]], order[:, -size["leaving"] :]
        reducer.propagate(x, torch.cat([front, stay], 1), leave, carry)

    def merge() -> None:
        groups = match(cosines(keys.mean(1), 1), size["leaving"], 1, both_ways=False)
        groups.sum(x * groups.shares(ones))

    ways: dict[str, Callable[[], None]] = {"propagation": propagate, "matching": merge}
    found: dict[str, list[float]] = {name: [] for name in ways}
    with torch.inference_mode():
        for _, (name, way) in itertools.product(range(repeats), ways.items()):
            found[name].append(1e3 * median(timed(way, 3)))
    return found


def summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the table: one row per system and number of patches that leave, over its seeds."""
    return table_of(
        records,
        {
            "multiply-adds, M": lambda own: round(own[0]["macs"] / 1e6, 2),
            "accuracy %": percents("accuracy"),
        },
        keys={"system": "system", "removed per block": "leaving"},
    )


def claims(records: Sequence[dict[str, Any]], milliseconds: dict[str, list[float]]) -> list[Claim]:
    """Return what the paper claims, as measured."""
    found = []
    for leaving, gain in ((LEAVING, GAIN), (MANY, None)):
        where = f"{leaving} patches removed per block"
        for other in (PRUNED, FUSED, TOME, RANDOM):
            gains = paired(records, OURS, other, leaving=leaving)
            required = gain if other == PRUNED else None
            found.append(claim(f"Accuracy at {where}, GTP vs {other}", gains, at_least=required))
    behind = differences(scores(records, OURS, leaving=LEAVING), scores(records, DENSE))
    pairs = zip(milliseconds["propagation"], milliseconds["matching"], strict=True)
    ratios = [ours / theirs for ours, theirs in pairs]
    return [
        *found,
        claim(
            f"Accuracy at {LEAVING} patches removed per block, GTP vs dense", behind, at_least=-LOSS
        ),
        claim(
            "Time of selection and propagation relative to matching and merging",
            ratios,
            at_most=1.0,
            unit="",
            digits=2,
            signed=False,
            samples="rounds",
        ),
    ]


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:], full="--full" in sys.argv[1:])
