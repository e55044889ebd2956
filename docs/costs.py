"""Count parameters and multiply-adds of every variant into docs/costs.json, which docs/generate.py reads.

Nothing is computed: networks are built on the meta device. That takes minutes for all of them, so only variants whose
arguments or input have changed are counted again. ``stale`` tells which those are without building anything.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from vitreous.catalog.card import Card
from vitreous.catalog.registry import cards, kind_of

COSTS = Path(__file__).parent / "costs.json"
IMAGE = {"bands": 3, "image_size": 224, "num_classes": 1000}
PATCH = {"bands": 15, "image_size": 15, "num_classes": 16}  # a patch of a reduced scene
CUBE = {"bands": 31, "image_size": 64}


def networks() -> dict[str, tuple[Card, dict[str, int]]]:
    """Return card and input of every variant that is a network; the tiny ones for tests are left out."""
    return {
        name: (card, _input(card, name))
        for card in cards()
        if kind_of(card.slug).gradient
        for name in card.variants
        if not name.endswith("_test")
    }


def recorded() -> dict[str, dict[str, Any]]:
    """Return what has been counted, by variant."""
    return json.loads(COSTS.read_text(encoding="utf-8")) if COSTS.is_file() else {}


def stale() -> list[str]:
    """Return variants that are not counted with the arguments and the input they have today."""
    known = recorded()
    return [
        name
        for name, (card, shape) in networks().items()
        if known.get(name, {}).get("of") != _fingerprint(card.variants[name], shape)
    ]


def count(name: str, card: Card, shape: dict[str, int]) -> dict[str, Any]:
    """Build a variant on the meta device and count it."""
    import torch

    from vitreous.catalog.registry import create_model, sizes_for
    from vitreous.inference.cost import count_cost

    with torch.device("meta"):
        model = create_model(name, bands=shape["bands"], **sizes_for(name, **shape))
    cost = count_cost(model, shape["bands"], shape["image_size"])
    return {
        "of": _fingerprint(card.variants[name], shape),
        **shape,
        "parameters": cost.parameters,
        "macs": cost.macs,
    }


def _input(card: Card, name: str) -> dict[str, int]:
    """Return what a variant is counted on: what its published row names, or the usual input of its kind."""
    rows = [row for row in card.published if "arguments" not in row]
    own = [row for row in rows if row.get("variant") == name]
    shared = (
        rows if all("bands" in row for row in rows) else []
    )  # all are of the same kind of image
    row = next(iter(own or shared), {})
    sizes = kind_of(card.slug).sizes
    if not sizes:  # cubes of any size: one for all of them
        usual = CUBE
    else:
        usual = PATCH if name.endswith("_patch") or card.slug == "lola_specvit" else IMAGE
    named = {key: row[key] for key in ("bands", *sizes) if row.get(key)}
    return {**usual, **named}


def _fingerprint(arguments: dict[str, Any], shape: dict[str, int]) -> str:
    return hashlib.sha256(json.dumps([arguments, shape], sort_keys=True).encode()).hexdigest()[:12]


def main() -> None:
    """Count what is stale, forget variants that are gone, and write the file."""
    known, today = recorded(), networks()
    for name in stale():
        card, shape = today[name]
        known[name] = count(name, card, shape)
        print(name, known[name])
    kept = {name: known[name] for name in today}  # in the order of the cards
    COSTS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
