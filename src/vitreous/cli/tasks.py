"""The verbs that train: one per task, made from its row in the table and from its recipe."""

from __future__ import annotations

import functools
import shlex
import sys
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

from vitreous.catalog.lookup import load
from vitreous.catalog.tasks import Task, module_of
from vitreous.files import read_json


class TaskCommand(TyperCommand):
    """The command of a task, whose options are only made when it is called.

    A hundred options need the recipe, and that of somebody else's task the package it stands in: neither is imported
    to list the verbs.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        super().__init__(task.verb, help=task.description)

    @functools.cached_property
    def complete(self) -> Any:
        """The command with its options."""
        return command_of(self.task)

    @property
    def params(self) -> Any:
        """Its options."""
        return self.complete.params

    @params.setter
    def params(self, value: Any) -> None:
        """Let the base class believe that it has set them."""

    def make_context(self, *words: Any, **named: Any) -> Any:
        """Parse arguments as the complete command does."""
        return self.complete.make_context(*words, **named)


def command_of(task: Task) -> Any:
    """Return the whole command of a task, with one option per setting of its recipe."""
    from vitreous.cli.recipes import recipe_verb

    def run_and_show(recipe: Any, *, resume: bool) -> Path:
        return train_and_show(task, recipe, resume=resume)

    verb = recipe_verb(task.verb, load(task.recipe), task.name, run_and_show, task.description)
    app = typer.Typer(
        add_completion=False, context_settings={"help_option_names": ["-h", "--help"]}
    )
    app.command(task.verb)(verb)
    return typer.main.get_command(app)


def train_and_show(task: Task, recipe: Any, *, resume: bool = False) -> Path:
    """Train, print the scores and the products, and return the run folder."""
    from rich.console import Console

    from vitreous.cli.recipes import command_line
    from vitreous.cli.tables import print_run

    if "torch" not in sys.modules:  # which takes seconds, on a busy machine a minute
        typer.echo("loading PyTorch")
    run = module_of(task).train(recipe, resume=resume, command=command_line())
    console = Console()
    load(task.shown)(console, read_json(run / "metrics.json"))
    print_run(console, run, task)
    if task.next:
        console.print(
            "\n" + task.next.format(run=shlex.quote(str(run)), model=recipe.model),
            soft_wrap=True,
            highlight=False,
        )
    return run
