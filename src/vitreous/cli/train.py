"""``vitreous train``: every setting of the recipe as an option."""

from __future__ import annotations

from pathlib import Path

from vitreous.cli.recipes import command_line, recipe_verb
from vitreous.files import read_json
from vitreous.recipe import Recipe

TASK = "classify"


def train_and_show(recipe: Recipe, *, resume: bool = False) -> Path:
    """Train, print the scores and the products, and return the run folder."""
    from rich.console import Console

    from vitreous.cli.tables import print_metrics, print_run
    from vitreous.tasks import classify

    run = classify.train(recipe, resume=resume, command=command_line())
    console = Console()
    print_metrics(console, read_json(run / "metrics.json"))
    print_run(console, run)
    return run


train = recipe_verb(
    "train",
    Recipe,
    TASK,
    train_and_show,
    "Train a system on a labelled scene and write a run folder with map and report.",
)
