"""What fewer tokens bring on this machine: wall-clock speed-up against the multiply-adds that are saved.

DeiT-S at 224 pixels with random weights, dense and with each method, on the CPU. All of them take turns on the same
images, so that whatever else the machine does hits all alike; each round's times are divided by the dense network's
of the same round. Asked for: a speed-up of 85 % of the ratio of multiply-adds for the published methods, and no
method slower than dense.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial
from statistics import median
from typing import Any

import torch
from _common import RESULTS, show
from rich.console import Console
from torch import nn

from vitreous.catalog.registry import create_model
from vitreous.catalog.results import write_result
from vitreous.inference.bench import by_turns
from vitreous.inference.cost import count_cost
from vitreous.methods._apply import apply

RESULT = RESULTS / "token_reduction.json"
TITLE = "Token reduction on DeiT-S at 224 pixels"
DENSE = "dense"
# Names in the table, methods and settings: each paper's own, about alike in cost where it has several.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "EViT, keep 0.7": ("evit", {"keep_rate": 0.7}),
    "MCTF, r = 16": ("mctf", {}),
    "MCTF, 0.35 in three blocks": ("mctf_fast", {}),
    "GTP, P = 8": ("gtp_vit", {"leaving": 8}),
    "GTP, P = 8, all weights": ("gtp_vit", {"leaving": 8, "theta": 1.0}),
    "ToMe, r = 13": ("tome", {"r": 13}),
    "random, keep 0.7": ("random_drop", {"keep_rate": 0.7}),
}
PUBLISHED = [name for name, (method, _) in METHODS.items() if method not in {"tome", "random_drop"}]
BATCHES = (8, 32)
ROUNDS = 9
SIZE = 224
SHARE = 0.85  # of the ratio of multiply-adds
console = Console(stderr=True, soft_wrap=True)


def build() -> dict[str, nn.Module]:
    """Return the dense network and what the methods make of it."""
    torch.manual_seed(0)
    dense = create_model("vit_small", bands=3, num_classes=1000, image_size=SIZE).eval()
    return {DENSE: dense} | {
        label: apply(dense, method, **settings).model
        for label, (method, settings) in METHODS.items()
    }


@torch.inference_mode()
def measure(networks: Mapping[str, nn.Module], batch: int, rounds: int) -> dict[str, list[float]]:
    """Return each network's seconds per call, round by round."""
    images = torch.randn(batch, 3, SIZE, SIZE)
    return by_turns(
        {label: partial(network, images) for label, network in networks.items()},
        rounds,
        warm_up=1,
        told=lambda number: console.print(
            f"batch {batch}, round {number} of {rounds}", highlight=False
        ),
    )


def summary(
    seconds: Mapping[str, list[float]], macs: Mapping[str, int], batch: int
) -> list[dict[str, Any]]:
    """Return the table's rows of one batch size."""
    rows = []
    for label, own in seconds.items():
        ratio = macs[DENSE] / macs[label]
        speedup = median(a / b for a, b in zip(seconds[DENSE], own, strict=True))
        rows.append(
            {
                "batch": batch,
                "network": label,
                "multiply-adds, G": round(macs[label] / 1e9, 3),
                "ms per image": round(1e3 * median(own) / batch, 1),
                "multiply-adds saved, times": round(ratio, 3),
                "speed-up, times": round(speedup, 3),
                "share of it": round(speedup / ratio, 3),
            }
        )
    return rows


def conclude(rows: list[dict[str, Any]]) -> str:
    """Say whether what was asked for is reached, and where not."""
    reduced = [row for row in rows if row["network"] != DENSE]
    short = [row for row in reduced if row["network"] in PUBLISHED and row["share of it"] < SHARE]
    slower = [row for row in reduced if row["speed-up, times"] < 1]
    shares = [row["share of it"] for row in reduced if row["network"] in PUBLISHED]
    return (
        f"The published methods turn {min(shares):.0%} to {max(shares):.0%} of the multiply-add ratio into speed-up "
        f"(required: {SHARE:.0%}); below that: {_missed(short)}. Slower than the dense network: {_missed(slower)}."
    )


def _missed(rows: list[dict[str, Any]]) -> str:
    return ", ".join(f"{row['network']} at batch {row['batch']}" for row in rows) or "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args()
    networks = build()
    macs = {label: count_cost(network, 3, SIZE).macs for label, network in networks.items()}
    rows = []
    for batch in given.batches:
        rows += summary(measure(networks, batch, given.rounds), macs, batch)
    show(TITLE, rows)
    print(conclude(rows))
    if (given.batches, given.rounds) == (list(BATCHES), ROUNDS):
        write_result(
            RESULT,
            title=TITLE,
            command="python benchmarks/token_reduction.py",
            rows=rows,
            conclusion=conclude(rows),
            threads=torch.get_num_threads(),
        )


if __name__ == "__main__":
    main()
