"""``vitreous predict``: map or restore a scene, or classify images, with a trained run or an export of one."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from vitreous.catalog.tasks import Product, task_at
from vitreous.cli.options import (
    RUNTIMES,
    Hints,
    Mask,
    Refine,
    RefineArgs,
    Untrusted,
    check_run_or_export,
    check_runtime,
    free_output,
    key_values,
    refinement_settings,
    scene_hints,
)
from vitreous.errors import ConfigError
from vitreous.tasks.dispatch import check_options, check_product, predict_collection
from vitreous.tasks.dispatch import predict as apply_run


def predict(
    run: Annotated[
        Path, typer.Argument(help="Run folder of a trained system, or folder of an export.")
    ],
    scene: Annotated[
        str,
        typer.Argument(
            help="Scene file, or the name of a built-in sample; or a collection: a folder or table of scenes, or with "
            "-o FOLDER or --mosaic a pattern (in quotes); folder of images for a run of 'vitreous recognize'."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            metavar="OUT",
            help="Output file: a COG, of images a CSV table (default: map.tif, restored.tif or predictions.csv, unless "
            "it exists); of a collection the folder for one product per scene.",
        ),
    ] = None,
    mosaic: Annotated[
        bool,
        typer.Option(
            "--mosaic",
            help="Of a collection: write one map of all scenes; the mean of their probabilities decides where they "
            "overlap.",
        ),
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Without -o: replace an existing map.tif, restored.tif or predictions.csv; of a collection replace its "
            "products.",
        ),
    ] = False,
    probabilities: Annotated[
        Path | None,
        typer.Option(metavar="FILE.tif", help="Also write class probabilities to this file."),
    ] = None,
    uncertainty: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.tif",
            help="Also write how unsure the class of every pixel is: entropy, and 1 - the largest probability.",
        ),
    ] = None,
    novelty: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.tif",
            help="Also write how far every spectrum lies from the training spectra, as a percentile of the training "
            "pixels: 100 was never seen.",
        ),
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
    refine: Refine = None,
    refine_args: RefineArgs = None,
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
        "uncertainty": uncertainty,
        "novelty": novelty,
        "window": window,
        "workers": workers,
        "dask": dask,
        "runtime": runtime,
        "trust": trust or None,
        "refine": refine,
        "refine_args": refinement_settings(refine_args),
        "top": top,
    }
    check_product(task, run)
    if mosaic and task.takes == "images":
        raise ConfigError(f"--mosaic does not apply to {run}, a '{task.name}' run.", "Omit it.")
    if task.takes != "images" and (mosaic or _is_collection(scene, out)):
        done = predict_collection(
            run,
            scene,
            _collection_output(out, task.product, mosaic, overwrite),
            hints={**scene_hints(hints, mask), "untrusted": untrusted},
            mosaic=mosaic,
            overwrite=overwrite,
            **options,
        )
        _say(done)
        return
    out = free_output(out, task.product, overwrite)

    if task.takes == "images":
        _classify_images(
            run, scene, out, {**options, "mask": mask, "untrusted": untrusted or None}, hints
        )
        return

    from vitreous.scenes.samples import open_named

    check_options(task, run, options)
    opened = open_named(scene, scene_hints(hints, mask), untrusted=untrusted)
    _say([apply_run(run, opened.scene, out, **options)])


def _is_collection(scene: str, out: Path | None) -> bool:
    """Tell whether many scenes are named: a pattern is one scene of several files, unless a folder is to be filled."""
    from vitreous.data.collection import is_collection
    from vitreous.scenes.samples import SAMPLES

    if scene in SAMPLES and not Path(scene).exists():
        return False
    many = glob.has_magic(scene) and not Path(scene).exists()
    return is_collection(scene) or (many and out is not None and not out.suffix)


def _collection_output(out: Path | None, product: str, mosaic: bool, overwrite: bool) -> Path:
    """Return the file of a mosaic, or the folder of single products.

    Raises:
        ConfigError: no folder is named, or a file is.
    """
    if mosaic:
        return free_output(out, product, overwrite)
    if out is None or out.is_file() or out.suffix.lower() in {".tif", ".tiff"}:
        raise ConfigError(
            "A collection has one product per scene.",
            "Give the folder for them with -o FOLDER, or add --mosaic.",
        )
    return out


def _say(products: Sequence[Product]) -> None:
    pixels, seconds = (sum(getattr(one, key) for one in products) for key in ("pixels", "seconds"))
    typer.echo(f"{pixels:,} pixels in {seconds:.1f} s ({pixels / seconds:,.0f} pixels/s)")
    for product in products:
        for path in product.paths:
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
