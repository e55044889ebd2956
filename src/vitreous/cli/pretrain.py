"""``vitreous pretrain``: learn from a scene without labels."""

from __future__ import annotations

from pathlib import Path

import typer

from vitreous.cli.recipes import command_line, recipe_verb
from vitreous.files import read_json
from vitreous.recipe import PretrainRecipe

TASK = "pretrain"


def pretrain_and_show(recipe: PretrainRecipe, *, resume: bool = False) -> Path:
    """Pre-train, print what was reached and the products, and return the run folder."""
    from rich.console import Console

    from vitreous.cli.tables import print_run
    from vitreous.tasks import pretrain as task

    run = task.train(recipe, resume=resume, command=command_line())
    metrics = read_json(run / "metrics.json")
    for name in ("train_loss", "val_loss"):
        if metrics[name] is not None:
            typer.echo(f"{name.replace('_', ' ')}: {metrics[name]:.4f}")
    print_run(Console(), run)
    typer.echo(f"\nFine-tune it with: vitreous train --model {recipe.model} --init {run}")
    return run


pretrain = recipe_verb(
    "pretrain",
    PretrainRecipe,
    TASK,
    pretrain_and_show,
    "Pre-train a network on a scene without labels; fine-tune it with 'vitreous train --init RUN'.",
)
