"""``vitreous predict``: map or restore a scene with a trained run, or map it with an export of one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitreous.cli.options import (
    RUNTIMES,
    Hints,
    Mask,
    Untrusted,
    check_overwrite,
    check_run_or_export,
    check_runtime,
    free_output,
    scene_hints,
)
from vitreous.errors import ConfigError
from vitreous.files import task_of

if TYPE_CHECKING:
    import xarray as xr

    from vitreous.inference.runtimes import Exported
    from vitreous.tasks.runs import Run

MAP, RESTORED = "map.tif", "restored.tif"  # where no name is given


def predict(
    run: Annotated[
        Path, typer.Argument(help="Run folder of a trained system, or folder of an export.")
    ],
    scene: Annotated[str, typer.Argument(help="Scene file, or the name of a built-in sample.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            metavar="OUT.tif",
            help="Output file, a COG (default: map.tif or restored.tif, unless it exists).",
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Without -o: replace an existing map.tif or restored.tif."
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
    hints: Hints = None,
    mask: Mask = None,
    untrusted: Untrusted = False,
) -> None:
    """Map or restore a scene of any size, window by window, with constant memory."""
    exported = check_run_or_export(run)
    check_runtime(runtime)

    restores = not exported and task_of(run) == "restore"
    out = free_output(out, RESTORED if restores else MAP, overwrite)

    from vitreous.scenes.samples import open_named

    opened = open_named(scene, scene_hints(hints, mask), untrusted=untrusted)
    if restores:
        for option, value in (
            ("--probabilities", probabilities),
            ("--window", window),
            ("--workers", workers),
            ("--dask", dask),
            ("--runtime", runtime),
        ):
            if value is not None:
                raise ConfigError(
                    f"{option} applies to maps only, but {run} is a restorer.", "Omit it."
                )
        _restore(run, opened.scene, out)
        return

    from vitreous.inference.predict import predict_scene
    from vitreous.progress import progress_bar

    trained: Run | Exported
    if exported or runtime not in {None, "torch"}:
        from vitreous.tasks.export import load_for

        trained = load_for(run, runtime, trust=trust)
    else:
        from vitreous.tasks.runs import load_run

        trained = load_run(run)
    with progress_bar("mapping") as advance:
        done = predict_scene(
            trained.classifier,
            opened.scene,
            out,
            class_names=trained.class_names,
            class_colors=trained.class_colors,
            class_codes=trained.class_codes,
            probabilities=probabilities,
            window=window,
            workers=workers,
            dask=dask,
            progress=advance,
        )
    typer.echo(
        f"{done.pixels:,} pixels in {done.seconds:.1f} s ({done.pixels_per_second:,.0f} pixels/s)"
    )
    for path in done.paths:
        typer.echo(str(path))


def _restore(run: Path, scene: xr.DataArray, out: Path) -> None:
    """Restore a scene with a trained restorer."""
    import time

    from vitreous.inference.restore import restored_scene
    from vitreous.progress import progress_bar
    from vitreous.scenes import write_scene
    from vitreous.scenes.formats import find_writer
    from vitreous.tasks.restore import load_run

    started = time.perf_counter()
    find_writer(out)
    check_overwrite(out, scene)
    restorer = load_run(run).restorer
    with progress_bar("restoring") as advance:
        restored = restored_scene(restorer, scene, advance)
        write_scene(restored, out)
    seconds = time.perf_counter() - started
    pixels = restored.sizes["y"] * restored.sizes["x"]
    typer.echo(f"{pixels:,} pixels in {seconds:.1f} s ({pixels / seconds:,.0f} pixels/s)")
    typer.echo(str(out))
