"""``vitreous demo``: the main job on the built-in scene."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from vitreous.catalog.tasks import TASKS

DEMO: dict[str, Any] = {
    "scene": "indian_pines",
    "split": "fixed",
    "budget": "90s",  # of a demonstration that takes less than three minutes
    "name": "demo",
}


def demo(
    runs: Annotated[str, typer.Option(help="Folder that runs are written to.")] = "runs",
) -> None:
    """Choose and train a system on the built-in Indian Pines scene, map it and write the report (a few minutes)."""
    from vitreous.cli.recipes import hint_to_resume
    from vitreous.cli.tasks import train_and_show
    from vitreous.recipe import make_recipe

    typer.echo(
        "Indian Pines: AVIRIS, 145 x 145 pixels, 200 bands, 16 classes (Baumgardner, Biehl and Landgrebe,"
    )
    typer.echo("doi:10.4231/R7RX991C, CC BY 3.0), with the standard split of 695 training pixels.")
    recipe = make_recipe({**DEMO, "runs": runs})
    task = TASKS["classify"]
    with hint_to_resume(task.verb, task.name, recipe):
        run = train_and_show(task, recipe)
    report = (run / "report.html").resolve()
    typer.echo(f"\nOpen the report in a browser: {report.as_uri()}")
