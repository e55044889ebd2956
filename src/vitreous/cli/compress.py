"""``vitreous compress``: make a trained run smaller or faster."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from vitreous.cli.options import check_run, key_values


def compress(
    run: Annotated[Path, typer.Argument(help="Run folder of a trained network (left unchanged).")],
    method: Annotated[
        list[str],
        typer.Option(
            help="Compression method (see 'vitreous methods'); several are applied one after the other."
        ),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Setting of a method, e.g. 'bits=[4, 4]' or 'ptq_minmax.bits=[4, 4]'.",
        ),
    ] = None,
    images: Annotated[
        int,
        typer.Option(
            min=8,
            max=1_000_000,
            metavar="N",
            help="Number of training pixels, crops or images for calibration.",
        ),
    ] = 64,
    max_drop: Annotated[
        float,
        typer.Option(
            min=0,
            max=100,
            metavar="LOSS",
            help="Largest accepted loss: OA, top-1 or mAP in points, PSNR in dB.",
        ),
    ] = 0.5,
    tune_epochs: Annotated[
        int,
        typer.Option(
            min=0,
            max=1_000_000,
            metavar="N",
            help="Epochs of training after each method but quantization (0: none).",
        ),
    ] = 0,
    tune_rate: Annotated[
        float,
        typer.Option(
            min=1e-6,
            max=100,
            metavar="SHARE",
            help="Learning rate of that training, as a share of the run's.",
        ),
    ] = 0.1,
) -> None:
    """Compress a trained run into a new run, and report accuracy, size and speed before and after.

    Only training and validation data are used to calibrate, to train and to check accuracy. If quantization loses too much,
    the most sensitive layers stay unquantized; if that does not help, nothing is written.
    """
    check_run(run)

    from rich.console import Console

    from vitreous.cli.tables import compress_table, show
    from vitreous.tasks.compress import compress as do

    done = do(
        run,
        method,
        key_values(settings or [], "--set"),
        images=images,
        max_drop=max_drop,
        tune_epochs=tune_epochs,
        tune_rate=tune_rate,
        command=shlex.join(["vitreous", *sys.argv[1:]]),
    )
    console = Console()
    show(compress_table(done.rows), console)
    for note in done.notes:
        console.print(note, highlight=False)
    console.print(f"run {done.path}", highlight=False, soft_wrap=True)
