"""``vitreous predict``: map or restore a scene, or classify images, with a trained run or an export of one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vitreous.catalog.tasks import task_at
from vitreous.cli.options import (
    RUNTIMES,
    Hints,
    Mask,
    Untrusted,
    check_run_or_export,
    check_runtime,
    free_output,
    key_values,
    scene_hints,
)
from vitreous.tasks.dispatch import check_options, check_product
from vitreous.tasks.dispatch import predict as apply_run


def predict(
    run: Annotated[
        Path, typer.Argument(help="Run folder of a trained system, or folder of an export.")
    ],
    scene: Annotated[
        str,
        typer.Argument(
            help="Scene file, or the name of a built-in sample; folder of images for a run of 'vitreous recognize'."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            metavar="OUT",
            help="Output file: a COG, of images a CSV table (default: map.tif, restored.tif or predictions.csv, unless "
            "it exists).",
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Without -o: replace an existing map.tif, restored.tif or predictions.csv.",
        ),
    ] = False,
    probabilities: Annotated[
        Path | None,
        typer.Option(metavar="FILE.tif", help="Also write class probabilities to this file."),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(
            min=1, max=65536, metavar="N", help="Window size in pixels (default: automatic)."
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, max=1024, metavar="N", help="Number of windows processed in parallel."),
    ] = None,
    dask: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Dask scheduler to distribute the windows to, or 'local'."
        ),
    ] = None,
    runtime: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(RUNTIMES),
            help="Inference runtime (default: torch, or the export's own). A run is exported first if needed.",
        ),
    ] = None,
    trust: Annotated[
        bool,
        typer.Option(
            "--trust", help="Allow exports in torch format, which can run arbitrary code."
        ),
    ] = False,
    top: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1000,
            metavar="N",
            help="Of images: most probable classes to write (default: 5).",
        ),
    ] = None,
    hints: Hints = None,
    mask: Mask = None,
    untrusted: Untrusted = False,
) -> None:
    """Map or restore a scene of any size, window by window, with constant memory, or classify images."""
    check_run_or_export(run)
    check_runtime(runtime)
    task = task_at(run)
    options = {
        "probabilities": probabilities,
        "window": window,
        "workers": workers,
        "dask": dask,
        "runtime": runtime,
        "trust": trust or None,
        "top": top,
    }
    check_product(task, run)
    out = free_output(out, task.product, overwrite)

    if task.takes == "images":
        _classify_images(
            run, scene, out, {**options, "mask": mask, "untrusted": untrusted or None}, hints
        )
        return

    from vitreous.scenes.samples import open_named

    check_options(task, run, options)
    opened = open_named(scene, scene_hints(hints, mask), untrusted=untrusted)
    done = apply_run(run, opened.scene, out, **options)
    typer.echo(
        f"{done.pixels:,} pixels in {done.seconds:.1f} s ({done.pixels / done.seconds:,.0f} pixels/s)"
    )
    for path in done.paths:
        typer.echo(str(path))


def _classify_images(
    run: Path, folder: str, out: Path, options: dict[str, Any], hints: list[str] | None
) -> None:
    """Write the classes of the images of a folder."""
    if hints is not None:
        options["hints"] = key_values(hints, "--hints")
    done: Any = apply_run(run, folder, out, **options)
    rate = done.images / done.seconds
    typer.echo(f"{done.images:,} images in {done.seconds:.1f} s ({rate:,.0f} images/s)")
    typer.echo(str(out))
