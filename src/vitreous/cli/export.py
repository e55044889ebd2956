"""``vitreous export``: a trained run for other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitreous.cli.options import check_run
from vitreous.errors import ConfigError
from vitreous.inference.export_format import RUNTIMES

FORMATS = tuple(RUNTIMES)


def export(
    run: Annotated[Path, typer.Argument(help="Run folder of a trained network.")],
    form: Annotated[
        str,
        typer.Option("--format", metavar="|".join(FORMATS), help="Export format."),
    ] = "onnx",
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", metavar="FOLDER", help="Output folder (default: RUN/export-FORMAT)."
        ),
    ] = None,
    single: Annotated[
        bool,
        typer.Option(
            "--single",
            help="Write a single graph that maps a pixel's patch to its class, for use in other software.",
        ),
    ] = False,
) -> None:
    """Export a trained run (a classifier, a restorer or a network of images) to graphs that run without torch or vitreous.

    The graphs include preprocessing and take physical values; they are checked on the scene or the images of the run.
    'vitreous predict FOLDER SCENE' runs them.
    """
    if form not in FORMATS:
        raise ConfigError(f"Unknown format: {form}.", f"Choose {', '.join(FORMATS)}.")
    check_run(run)

    from vitreous.tasks.export import export_run

    written = export_run(run, form, out, single=single)
    for path in sorted(written.folder.iterdir()):
        typer.echo(f"{path}  {path.stat().st_size / 2**20:.2f} MiB")
    typer.echo(str(written.parity))
    if written.refined:
        typer.echo(
            "the graphs give probabilities before refinement and calibration; 'vitreous predict' applies both behind them, "
            "as export.json says"
        )
    if written.integer:
        typer.echo(f"{len(written.integer)} quantized layers are exported with integer arithmetic")
    if written.simulated:
        typer.echo(
            f"{len(written.simulated)} quantized layers remain simulated without a speed-up: integer arithmetic "
            "needs 8 bits and one scale per activation tensor"
        )
