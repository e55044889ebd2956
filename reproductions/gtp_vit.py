"""GTP-ViT's claim in miniature: what leaves is worth handing on (arXiv 2311.03035, tables 1 and 4).

Digits lie near the middle of a rough texture, 32 x 32 pixels in 8 x 8 patches. A plain ViT is trained and then left as
it is, while four patches leave in each of its six blocks: lost (pruning), made into one mean token, or handed on along
the graph; and, for comparison, merged by bipartite matching (ToMe), or chosen at random and lost. So small a network
has soon gathered what it needs and hardly notices, so that ten per block leave too, after which four are left. As in
the paper, theta, alpha and the number of neighbours are searched, here on training digits at new places; theta alone
for those that have no other. The digits are scikit-learn's (8 x 8, enlarged); each seed draws another division of
them, and every epoch and image another place and texture.

The time of choosing and handing on is compared with that of bipartite matching and merging, at the size of DeiT-S and 8
of 196 patches fewer.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor, nn

from vitreous.catalog.registry import create_model
from vitreous.catalog.results import percent, verdict, write_result
from vitreous.inference.bench import timed
from vitreous.inference.cost import count_cost
from vitreous.layers.matching import cosines, match
from vitreous.methods._apply import apply
from vitreous.methods.reduce.gtp_vit import Propagation, ranked
from vitreous.tasks.miniature import (
    GROUND,
    accuracy,
    divided_digits,
    on_ground,
    trained_on_ground,
)

SEEDS, EPOCHS = 3, 20
COPIES = 2  # places of each test digit
LEAVING, MANY = 4, 10  # patches per block
THETAS, ALPHAS, NEIGHBOURS = (1.0, 0.8, 0.6), (0.1, 0.2, 0.3, 0.5), (2, 8)
SEARCHED = 600  # images on which settings are compared
DENSE, PRUNED, FUSED, OURS, TOME, RANDOM = (
    "dense",
    "pruning",
    "mean token",
    "GTP",
    "ToMe",
    "random pruning",
)
REDUCED = (PRUNED, FUSED, OURS, TOME, RANDOM)

# What the claim demands, in points of accuracy.
GAIN, LOSS = 0.5, 3.0
PUBLISHED_SIZE = {"batch": 8, "tokens": 197, "dim": 384, "heads": 6, "leaving": 8}

RESULT = Path(__file__).parent / "results" / "gtp_vit.json"


def main(quick: bool = False) -> None:
    """Measure everything and write ``results/gtp_vit.json``; ``quick`` runs it all in little and writes nothing."""
    started = time.perf_counter()
    records = [
        record
        for seed in range(1 if quick else SEEDS)
        for record in measure(seed, *((1, 32) if quick else (EPOCHS, SEARCHED)))
    ]
    seconds = compare_times(2 if quick else 30)
    if quick:
        return
    write_result(
        RESULT,
        title="gtp_vit: what leaves is worth handing on (digits on texture)",
        command="vitreous reproduce gtp_vit",
        rows=summary(records),
        conclusion=conclude(records, seconds),
        epochs=EPOCHS,
        milliseconds={name: 1e3 * value for name, value in seconds.items()},
        seconds=time.perf_counter() - started,
        runs=records,
    )


def measure(seed: int, epochs: int, searched: int) -> list[dict[str, Any]]:
    """Train one network, search each way's settings, and score all of them on the same images."""
    digits, classes, test_digits, test_classes = divided_digits(seed)
    generator = torch.Generator().manual_seed(1000 + seed)
    test = torch.cat([on_ground(test_digits, generator) for _ in range(COPIES)])
    known = on_ground(digits[:searched], generator)
    dense = trained_on_ground(seed, digits, classes, epochs)
    records = []
    for arm, leaving in [(DENSE, 0), *itertools.product(REDUCED, (LEAVING, MANY))]:
        network, settings = searched_best(dense, arm, leaving, known, classes[:searched])
        records.append(
            {
                "system": arm,
                "leaving": leaving,
                "seed": seed,
                "settings": settings,
                "accuracy": accuracy(network, test, test_classes.repeat(COPIES)),
                "macs": count_cost(network, 1, GROUND).macs,
            }
        )
        print(records[-1], file=sys.stderr)
    return records


def searched_best(
    dense: nn.Module, arm: str, leaving: int, images: Tensor, classes: Tensor
) -> tuple[nn.Module, dict[str, Any]]:
    """Return what a way makes of the network, with the settings that suit these images best."""
    if arm == DENSE:
        return dense, {}
    if arm == TOME:
        return apply(dense, "tome", r=leaving).model, {}
    found = [
        (apply(dense, "gtp_vit", leaving=leaving, **settings).model, settings)
        for settings in candidates(arm)
    ]
    if len(found) == 1:
        return found[0]
    return max(found, key=lambda one: accuracy(one[0], images, classes))


def candidates(arm: str) -> list[dict[str, Any]]:
    """Return the settings to choose from."""
    if arm == OURS:
        names = ("theta", "alpha", "neighbours")
        grid = itertools.product(THETAS, ALPHAS, NEIGHBOURS)
        return [dict(zip(names, values, strict=True)) for values in grid]
    if arm == RANDOM:
        return [{"theta": 1.0, "propagation": "none", "selection": "random"}]
    way = "mean" if arm == FUSED else "none"
    return [{"theta": theta, "propagation": way} for theta in THETAS]


def compare_times(repeats: int) -> dict[str, float]:
    """Return the seconds of both ways to lose eight tokens, behind the same attention; they take turns."""
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
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with torch.inference_mode():
        for _, (name, way) in itertools.product(range(repeats), ways.items()):
            seconds[name].append(median(timed(way, 3)))
    return {name: median(values) for name, values in seconds.items()}


def summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the table: one row per system and number of patches that leave, over its seeds."""
    rows = []
    for arm, leaving in dict.fromkeys((r["system"], r["leaving"]) for r in records):
        own = [r for r in records if (r["system"], r["leaving"]) == (arm, leaving)]
        rows.append(
            {
                "system": arm,
                "leave per block": leaving,
                "seeds": len(own),
                "multiply-adds, M": round(own[0]["macs"] / 1e6, 2),
                "accuracy %": percent([r["accuracy"] for r in own]),
            }
        )
    return rows


def conclude(records: Sequence[dict[str, Any]], seconds: dict[str, float]) -> str:
    """Say in words what the numbers say of the claim, also where it does not hold."""

    def points(arm: str, leaving: int) -> float:
        found = [r for r in records if (r["system"], r["leaving"]) == (arm, leaving)]
        return 100 * mean(r["accuracy"] for r in found)

    gains = {
        leaving: {arm: points(OURS, leaving) - points(arm, leaving) for arm in REDUCED}
        for leaving in (LEAVING, MANY)
    }
    few, many = gains[LEAVING], gains[MANY]
    behind = points(OURS, LEAVING) - points(DENSE, 0)
    ours, theirs = (1e3 * seconds[name] for name in ("propagation", "matching"))
    return (
        f"Where {LEAVING} patches leave per block, GTP is {few[PRUNED]:+.1f} points from pruning, where the claim "
        f"demands {GAIN:+.1f}: {verdict(few[PRUNED] >= GAIN)}; and {few[FUSED]:+.1f} from a mean token, "
        f"{few[TOME]:+.1f} from ToMe, {few[RANDOM]:+.1f} from pruning at random. It is {behind:+.1f} from the dense "
        f"network; that it is at most {LOSS:g} behind: {verdict(behind >= -LOSS)}. Where {MANY} leave it is "
        f"{many[PRUNED]:+.1f} from pruning, {many[FUSED]:+.1f} from a mean token, {many[TOME]:+.1f} from ToMe and "
        f"{many[RANDOM]:+.1f} from pruning at random. Choosing and handing on takes {ours:.2f} ms, matching and "
        f"merging {theirs:.2f} ms; that it is faster: {verdict(ours < theirs)}."
    )


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:])
