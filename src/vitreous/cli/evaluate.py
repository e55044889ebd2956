"""``vitreous evaluate``: measure a run again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from vitreous.catalog.lookup import load
from vitreous.catalog.tasks import task_at
from vitreous.cli.options import Refine, RefineArgs, check_run, refinement_settings


def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    refine: Refine = None,
    refine_args: RefineArgs = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print metrics.json instead of a table.")
    ] = False,
) -> None:
    """Evaluate a trained run again on its held-out test data."""
    check_run(run)

    from rich.console import Console

    from vitreous.tasks import dispatch

    settings = refinement_settings(refine_args)
    metrics = dispatch.evaluate(run, refine=refine, refine_args=settings)
    if as_json:
        typer.echo(json.dumps(metrics, indent=1))
    else:
        load(task_at(run).shown)(Console(), metrics)
