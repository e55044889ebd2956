"""``vitreous evaluate``: measure a run again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from vitreous.cli.options import check_run
from vitreous.files import task_of


def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print metrics.json instead of a table.")
    ] = False,
) -> None:
    """Evaluate a trained run again on its test pixels."""
    check_run(run)

    from rich.console import Console

    from vitreous.cli.tables import print_metrics, print_restoration
    from vitreous.tasks import classify, restore

    if task_of(run) == restore.TASK:
        metrics, show = restore.evaluate(run), print_restoration
    else:
        metrics, show = classify.evaluate(run), print_metrics
    if as_json:
        typer.echo(json.dumps(metrics, indent=1))
    else:
        show(Console(), metrics)
