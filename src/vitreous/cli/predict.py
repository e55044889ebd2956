"""``vitreous predict``: map a scene with a trained run, or with an export of one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitreous.cli.options import (
    RUNTIMES,
    check_run_or_export,
    check_runtime,
    key_values,
    open_named,
)

if TYPE_CHECKING:
    from vitreous.inference.runtimes import Exported
    from vitreous.tasks.runs import Run


def predict(
    run: Annotated[
        Path, typer.Argument(help="Run folder of a trained system, or folder of an export.")
    ],
    scene: Annotated[str, typer.Argument(help="Scene file, or the name of a built-in sample.")],
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="OUT.tif", help="Class map to write (a COG).")
    ] = Path("map.tif"),
    probabilities: Annotated[
        Path | None, typer.Option(metavar="FILE.tif", help="Also write class probabilities here.")
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Side of the windows in pixels (automatic)."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Windows computed at a time.")
    ] = None,
    dask: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Dask scheduler that spreads the windows, or 'local'."
        ),
    ] = None,
    runtime: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(RUNTIMES),
            help="What computes (torch; of an export its own). A run is exported first where needed.",
        ),
    ] = None,
    trust: Annotated[
        bool,
        typer.Option("--trust", help="Run an export of the format torch, which is a program."),
    ] = False,
    hints: Annotated[
        list[str] | None,
        typer.Option("--hints", "--hint", metavar="KEY=VALUE", help="Hint for the scene's reader."),
    ] = None,
) -> None:
    """Map a scene of any size, window by window, with flat memory."""
    exported = check_run_or_export(run)
    check_runtime(runtime)

    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    from vitreous.inference.predict import predict_scene

    opened = open_named(scene, key_values(hints or [], "--hints"))
    trained: Run | Exported
    if exported or runtime not in {None, "torch"}:
        from vitreous.tasks.export import load_for

        trained = load_for(run, runtime, trust=trust)
    else:
        from vitreous.tasks.runs import load_run

        trained = load_run(run)
    columns = (TextColumn("mapping"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("pixels", total=None)
        done = predict_scene(
            trained.classifier,
            opened.scene,
            out,
            class_names=trained.class_names,
            class_colors=trained.class_colors,
            probabilities=probabilities,
            window=window,
            workers=workers,
            dask=dask,
            progress=lambda n, total: bar.update(task, completed=n, total=total),
        )
    typer.echo(
        f"{done.pixels:,} pixels in {done.seconds:.1f} s ({done.pixels_per_second:,.0f} pixels/s)"
    )
    for path in done.paths:
        typer.echo(str(path))
