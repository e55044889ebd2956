"""``vitreous evaluate``: measure a run again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from vitreous.cli.options import check_run


def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print metrics.json instead of a table.")
    ] = False,
) -> None:
    """Measure a trained run on the test pixels of its split."""
    check_run(run)

    from rich.console import Console

    from vitreous.cli.tables import print_metrics
    from vitreous.tasks import classify

    metrics = classify.evaluate(run)
    if as_json:
        typer.echo(json.dumps(metrics, indent=1))
    else:
        print_metrics(Console(), metrics)
