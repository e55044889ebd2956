"""The choice that a comparison makes: no system of its own (``vitreous/tasks/auto.py``)."""

from __future__ import annotations

from vitreous.catalog.card import Card

CARD = Card(
    slug="auto",
    title="Candidates compared by spatial cross-validation",
    kind="choice",
    summary="Compares classifiers on the training pixels of the scene itself, with whole blocks "
    "left out, and trains the best of them, or an ensemble of the best.",
    when="First choice: what maps unseen ground best depends on the scene, its labels and the "
    "split, and a comparison takes minutes.",
    paper="Roberts et al., Ecography 40(8), 913-929",
    year=2017,
    tasks=["classify"],
    variants={"auto": {}},
    notes=[
        "Usage: --budget limits the comparison, --candidates names what takes part in it.",
        "Usage: Validation pixels train as well, because cross-validation replaces them; test "
        "pixels are never touched.",
    ],
)
