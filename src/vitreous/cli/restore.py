"""``vitreous restore``: train a denoiser or super-resolver on a scene."""

from __future__ import annotations

from pathlib import Path

from vitreous.cli.recipes import command_line, recipe_verb
from vitreous.files import read_json
from vitreous.recipe import RestoreRecipe

TASK = "restore"


def restore_and_show(recipe: RestoreRecipe, *, resume: bool = False) -> Path:
    """Train, print the figures and the products, and return the run folder."""
    from rich.console import Console

    from vitreous.cli.tables import print_restoration, print_run
    from vitreous.tasks import restore as task

    run = task.train(recipe, resume=resume, command=command_line())
    console = Console()
    print_restoration(console, read_json(run / "metrics.json"))
    print_run(console, run)
    return run


restore = recipe_verb(
    "restore",
    RestoreRecipe,
    TASK,
    restore_and_show,
    "Train a denoiser or super-resolver on a scene, evaluate it on held-out ground, and restore the scene.",
)
