"""Our architectures against timm's, in one process on one thread: forward, and forward with backward.

timm needs torchvision, which does not load beside the torch build that this project pins, so that both are measured in
an environment of their own (``make bench-peers``), with one torch for both. Calls alternate, and the least processor time
of each counts, so that other work on the machine matters little.
"""

from __future__ import annotations

import argparse
from functools import partial
from importlib import metadata
from statistics import median
from typing import Any

import torch
from _common import RESULTS, show
from rich.console import Console

from vitreous.catalog.registry import create_model
from vitreous.catalog.results import write_result
from vitreous.inference.bench import cpu_seconds

RESULT = RESULTS / "peers.json"
TITLE = "Architectures compared with timm"
PEERS = {  # ours, timm's name for the same network, and its image size
    "vit_small": ("vit_small_patch16_224", 224),
    "swin_tiny": ("swin_tiny_patch4_window7_224", 224),
    "convnext_tiny": ("convnext_tiny", 224),
    "crossvit_small": ("crossvit_small_240", 240),
    "efficientvit_m4": ("efficientvit_m4", 224),
    "efficientformer_l1": ("efficientformer_l1", 224),
    "tnt_small": ("tnt_s_patch16_224", 224),
}
BATCHES = (1, 8)
ROUNDS = 7
WAYS = ("forward", "forward and backward")
console = Console(stderr=True, soft_wrap=True)


def compare(name: str, batch: int, rounds: int) -> dict[str, Any]:
    """Time both networks with fresh weights."""
    import timm

    theirs, size = PEERS[name]
    torch.manual_seed(0)
    models = {
        "vitreous": create_model(name, bands=3, num_classes=1000, image_size=size),
        "timm": timm.create_model(theirs, num_classes=1000),
    }
    ours, peer = (sum(p.numel() for p in model.parameters()) for model in models.values())
    assert abs(ours - peer) < 0.01 * peer, f"{name} has {ours} parameters, {theirs} has {peer}"
    images = torch.randn(batch, 3, size, size)
    row: dict[str, Any] = {"model": name, "batch": batch}
    for way in WAYS:
        calls = {who: partial(_call, model, images, way) for who, model in models.items()}
        seconds = cpu_seconds(calls, rounds)
        row[f"{way}, ms"] = round(1e3 * seconds["vitreous"], 1)
        row[f"{way}, timm ms"] = round(1e3 * seconds["timm"], 1)
        row[f"{way}, speed-up"] = round(seconds["timm"] / seconds["vitreous"], 3)
    console.print(str(row), highlight=False)
    return row


def _call(model: torch.nn.Module, images: torch.Tensor, way: str) -> None:
    model.train(way != "forward")
    if way == "forward":
        with torch.inference_mode():
            model(images)
    else:
        model.zero_grad(set_to_none=True)
        scores = model(images)
        (sum(scores) if isinstance(scores, tuple) else scores).sum().backward()


def conclude(rows: list[dict[str, Any]]) -> str:
    """Say where ours is slower."""
    words = []
    for way in WAYS:
        ratios = {f"{r['model']} (batch {r['batch']})": r[f"{way}, speed-up"] for r in rows}
        slower = [f"{name} {ratio:.2f}" for name, ratio in ratios.items() if ratio < 0.98]
        words.append(
            f"{way.capitalize()}: median speed-up over timm {median(ratios.values()):.2f};  "
            + (f"slower: {', '.join(slower)}." if slower else "never slower.")
        )
    return " ".join(words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = [compare(name, batch, given.rounds) for name in given.models for batch in BATCHES]
    show(TITLE, rows)
    print(conclude(rows))
    if given.models == list(PEERS):
        write_result(
            RESULT,
            title=TITLE,
            command="make bench-peers",
            rows=rows,
            conclusion=conclude(rows),
            peers={name: metadata.version(name) for name in ("timm", "torchvision", "torch")},
        )


if __name__ == "__main__":
    main()
