"""``vitreous info``: what a scene file holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitreous.cli.options import Hints, Mask, Untrusted, scene_hints

if TYPE_CHECKING:
    import xarray as xr

PREVIEW_SIDE = 1024  # pixels; a picture for a look, however big the scene


def info(
    scene: Annotated[str, typer.Argument(help="Scene file, or the name of a built-in sample.")],
    hints: Hints = None,
    mask: Mask = None,
    untrusted: Untrusted = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    preview: Annotated[
        Path | None,
        typer.Option(metavar="OUT.png", help="Also write a true- or false-colour preview."),
    ] = None,
) -> None:
    """Show a scene's size, bands, wavelengths, unit and location without reading its pixels."""
    from vitreous.scenes.samples import open_named

    opened = open_named(scene, scene_hints(hints, mask), untrusted=untrusted)
    facts = describe(opened.scene)
    if opened.labels is not None:
        facts["labels"] = describe_labels(opened.labels)
    if as_json:
        typer.echo(json.dumps(facts, indent=1))
    else:
        _print(facts)
    if preview is not None:
        write_preview(opened.scene, preview)


def describe(scene: xr.DataArray) -> dict[str, Any]:
    """Return the facts of a scene as plain values; nothing of its pixels is read."""
    import numpy as np

    from vitreous.scenes.cube import marked_good, wavelengths_of

    bands, height, width = (int(scene.sizes[dim]) for dim in ("band", "y", "x"))
    good = marked_good(scene)
    centres = wavelengths_of(scene)
    nodata = scene.attrs.get("nodata")
    return {
        "source": str(scene.attrs.get("source", "")),
        "width": width,
        "height": height,
        "bands": bands,
        "bad_bands": [band + 1 for band in range(bands) if not good[band]],
        "wavelengths_nm": None
        if centres is None
        else [float(np.nanmin(centres)), float(np.nanmax(centres))],
        "data_type": str(scene.dtype),
        "megabytes": round(bands * height * width * scene.dtype.itemsize / 1e6, 1),
        "unit": scene.attrs["unit"],
        "scale": float(scene.attrs["scale"]),
        "nodata": None if nodata is None else str(nodata) if nodata != nodata else float(nodata),
        **_place(scene),
    }


def describe_labels(labels: xr.DataArray) -> dict[str, int]:
    """Return the number of labelled pixels per class name."""
    import numpy as np

    names = labels.attrs["class_names"]
    counts = np.bincount(labels.values.ravel(), minlength=len(names) + 1)
    return {name: int(count) for name, count in zip(names, counts[1:], strict=True)}


def write_preview(scene: xr.DataArray, path: Path) -> None:
    """Write a colour picture of at most 1024 pixels a side, stretched from the 2nd to the 98th percentile."""
    import numpy as np
    from matplotlib.image import imsave

    from vitreous.errors import VitreousError
    from vitreous.files import atomic_path
    from vitreous.scenes.cube import read_window, rgb_bands

    if path.suffix.lower() != ".png":
        raise VitreousError(
            f"The preview {path} does not end in .png.", "Give it a name that ends in .png."
        )
    step = max(1, -(-max(scene.sizes["y"], scene.sizes["x"]) // PREVIEW_SIDE))
    bands = np.asarray(rgb_bands(scene))
    # Every step-th row on its own: a strided read of a big file would otherwise load all of it.
    rows = range(0, scene.sizes["y"], step)
    everywhere = slice(0, scene.sizes["x"])
    lines = [
        read_window(scene, slice(row, row + 1), everywhere, bands)[:, 0, ::step] for row in rows
    ]
    picture = np.stack(lines, axis=1).transpose(1, 2, 0)
    valid = np.isfinite(picture)
    if valid.any():
        low, high = np.nanpercentile(picture, [2, 98], axis=(0, 1))
        picture = np.clip((picture - low) / np.maximum(high - low, 1e-12), 0, 1)
    alpha = valid.all(axis=2, keepdims=True)
    with atomic_path(path) as temporary:
        imsave(temporary, np.concatenate([np.where(alpha, picture, 0), alpha], axis=2))


def _place(scene: xr.DataArray) -> dict[str, Any]:
    """Return CRS, pixel size and the box around the four corners (also of a rotated scene)."""
    import math

    from vitreous.scenes.cube import georeference

    crs, transform = georeference(scene)
    place: dict[str, Any] = {"crs": None if crs is None else crs.to_string()}
    if transform is None or transform.is_identity:
        return {**place, "pixel_size": None, "rotation_degrees": None, "bounds": None}
    width, height = scene.sizes["x"], scene.sizes["y"]
    corners = ((0, 0), (width, 0), (0, height), (width, height))
    x = [transform.a * column + transform.b * row + transform.c for column, row in corners]
    y = [transform.d * column + transform.e * row + transform.f for column, row in corners]
    return {
        **place,
        "pixel_size": [math.hypot(transform.a, transform.d), math.hypot(transform.b, transform.e)],
        "rotation_degrees": math.degrees(math.atan2(transform.d, transform.a)),
        "bounds": [min(x), min(y), max(x), max(y)],
    }


def _print(facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from vitreous.cli.tables import show

    table = Table(show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, text in _rows(facts):
        table.add_row(name, escape(text))
    console = Console()
    # On one line however long, so that it can be copied.
    console.print(facts["source"], soft_wrap=True, markup=False, highlight=False, style="italic")
    show(table, console)
    if "labels" in facts:
        labels = Table("class", "name", "pixels", title="Labels", title_justify="left")
        labels.columns[2].justify = "right"
        for value, (name, count) in enumerate(facts["labels"].items(), start=1):
            labels.add_row(str(value), escape(name), f"{count:,}")
        show(labels, console)


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the facts in words, one row each."""
    noun = "band" if facts["bands"] == 1 else "bands"
    span, bounds, pixel = facts["wavelengths_nm"], facts["bounds"], facts["pixel_size"]
    bad = facts["bad_bands"]
    rotation = facts["rotation_degrees"] or 0
    return [
        ("size", f"{facts['width']} x {facts['height']} pixels, {facts['bands']} {noun}"),
        ("values", f"{facts['data_type']}, {facts['megabytes']:,} MB"),
        ("wavelengths", f"{span[0]:.1f} to {span[1]:.1f} nm" if span else "not given"),
        ("bad bands", f"{len(bad)}: {ranges(bad)}" if bad else "none marked"),
        ("unit", f"{facts['unit']} = stored value x {facts['scale']:g}"),
        ("nodata", "none" if facts["nodata"] is None else f"{facts['nodata']}"),
        ("CRS", facts["crs"] or "none: maps will not be georeferenced"),
        ("pixel size", f"{pixel[0]:g} x {pixel[1]:g}" if pixel else "not given"),
        ("rotation", f"{rotation:.2f} degrees" if abs(rotation) > 1e-9 else "none"),
        ("bounds", ", ".join(f"{edge:.8g}" for edge in bounds) if bounds else "not given"),
    ]


def ranges(numbers: list[int]) -> str:
    """Return rising numbers in short: ``1-3, 7``."""
    groups: list[list[int]] = []
    for number in numbers:
        if groups and number == groups[-1][1] + 1:
            groups[-1][1] = number
        else:
            groups.append([number, number])
    return ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in groups)
