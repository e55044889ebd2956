"""One map of many scenes: where they overlap, the mean of their probabilities decides.

The mosaic lies on the grid of the first scene, extended over all others. Those of another grid, resolution or coordinate
system are taken from by nearest pixel, so that no probability is invented. Every scene is mapped by itself, window by
window, into a hidden file of probabilities; then the mosaic is computed block by block, so that memory does not grow.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.errors import CollectionError, ConfigError
from vitreous.files import hidden_folder
from vitreous.inference.maps import Classes, Grid, map_products, no_georeference_warning
from vitreous.inference.picture import write_picture
from vitreous.inference.predict import Prediction, predict_scene
from vitreous.inference.windows import SceneClassifier, Scored, Window
from vitreous.scenes.grids import Grid as Place
from vitreous.scenes.grids import pixels_at

BLOCK = 512  # pixels of the mosaic computed at a time, along each side
MOST_PIXELS = 2**34  # of a mosaic: scenes on different continents make one of nothing


class _Part(NamedTuple):
    """One scene of the mosaic.

    Attributes:
        place: its grid.
        file: of its probabilities, open.
        rows: of the mosaic that it reaches.
        columns: likewise.
    """

    place: Place
    file: Any
    rows: slice
    columns: slice


def predict_mosaic(
    classifier: SceneClassifier,
    scenes: Sequence[xr.DataArray],
    names: Sequence[str],
    out: str | Path,
    *,
    class_names: Sequence[str],
    class_colors: Sequence[str],
    class_codes: Sequence[int] | None = None,
    probabilities: str | Path | None = None,
    window: int | None = None,
    workers: int | None = None,
    dask: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Prediction:
    """Map many scenes into one file.

    Args:
        classifier: a trained system.
        scenes: with the bands that it was trained on, georeferenced.
        names: of the scenes, for messages.
        out: the map, ``.tif``; see :func:`~vitreous.inference.predict.predict_scene`.
        class_names: as there.
        class_colors: as there.
        class_codes: as there.
        probabilities: also write the mean probabilities here, ``.tif``.
        window: as there.
        workers: as there.
        dask: as there.
        progress: called with (scenes done, scenes in all).

    Raises:
        CollectionError: scenes without a place.
        ConfigError: the mosaic would be too large, or the first scene is not north-up.
        VitreousError: a scene cannot be mapped, or the map not be written.
    """
    start = time.perf_counter()
    out = Path(out)
    classes = Classes(class_names, class_colors, tuple(class_codes or ()))
    places = [Place.of(scene) for scene in scenes]
    grid = mosaic_grid(places, names)
    target = Place((grid.height, grid.width), grid.crs, grid.transform)
    with hidden_folder(out.parent, f"{out.name}-scenes") as folder, ExitStack() as files:
        import rasterio

        parts = []
        for k, (scene, place) in enumerate(zip(scenes, places, strict=True)):
            if progress:
                progress(k, len(scenes))
            own = folder / f"{k}-probabilities.tif"
            predict_scene(
                classifier,
                scene,
                folder / f"{k}.tif",
                class_names=class_names,
                class_colors=class_colors,
                class_codes=class_codes,
                probabilities=own,
                window=window,
                workers=workers,
                dask=dask,
                png=False,
            )
            (folder / f"{k}.tif").unlink()
            rows, columns = _reach(place, target)
            with no_georeference_warning():
                file = files.enter_context(rasterio.open(own, driver="GTiff"))
            parts.append(_Part(place, file, rows, columns))
        with map_products(
            out, None if probabilities is None else Path(probabilities), grid, classes
        ) as writer:
            for top in range(0, grid.height, BLOCK):
                for left in range(0, grid.width, BLOCK):
                    height, width = min(BLOCK, grid.height - top), min(BLOCK, grid.width - left)
                    block = Window(top, left, height, width)
                    writer.write(block, _merged(parts, target, block, len(class_names)))
            class_pixels = tuple(int(n) for n in writer.class_pixels[1:])
    if progress:
        progress(len(scenes), len(scenes))
    picture = out.with_suffix(".png")
    write_picture(out, picture, classes, class_pixels, title=f"{len(scenes)} scenes")
    seconds = time.perf_counter() - start
    known = None if probabilities is None else Path(probabilities)
    return Prediction(out, picture, known, grid.height * grid.width, class_pixels, seconds, None)


def mosaic_grid(places: Sequence[Place], names: Sequence[str]) -> Grid:
    """Return the grid of the first scene, extended over all scenes.

    Raises:
        CollectionError: scenes without a coordinate system or a transform.
        ConfigError: the first scene is rotated, or the mosaic would be too large.
    """
    lost = [
        (name, "it has no georeference")
        for name, place in zip(names, places, strict=True)
        if place.crs is None or place.transform is None
    ]
    if lost:
        raise CollectionError(
            f"{len(lost)} of {len(places)} scenes have no place in a mosaic:",
            lost,
            "Omit --mosaic to write one map per scene.",
        )
    first = places[0]
    a, b, c, d, e, f = tuple(first.transform)[:6]
    if b or d:
        raise ConfigError(
            f"{names[0]} is rotated on its map grid, and a mosaic lies on the grid of the first scene.",
            "Put a north-up scene first, or omit --mosaic.",
        )
    corners = np.array([_corners(place, first) for place in places])  # in pixels of the first
    top, left = (int(np.floor(corners[:, 0, axis].min() + 1e-6)) for axis in (0, 1))
    bottom, right = (int(np.ceil(corners[:, 1, axis].max() - 1e-6)) for axis in (0, 1))
    height, width = bottom - top, right - left
    if height * width > MOST_PIXELS:
        raise ConfigError(
            f"The mosaic would have {height:,} x {width:,} pixels, because the scenes lie far apart.",
            "Map them in groups, or omit --mosaic.",
        )
    return Grid(
        height, width, first.crs, type(first.transform)(a, b, c + left * a, d, e, f + top * e)
    )


def _corners(place: Place, first: Place) -> npt.NDArray[np.float64]:
    """Return first and last row and column of a scene in (fractional) pixels of another: ``(2, 2)``."""
    if place.transform == first.transform and place.same_crs(first):
        return np.array([[0.0, 0.0], list(map(float, place.size))])
    from rasterio.warp import transform_bounds

    a, b, c, d, e, f = tuple(place.transform)[:6]
    corners = [(0, 0), (place.size[1], 0), (0, place.size[0]), (place.size[1], place.size[0])]
    x = [a * column + b * row + c for column, row in corners]
    y = [d * column + e * row + f for column, row in corners]
    bounds = (min(x), min(y), max(x), max(y))
    if not place.same_crs(first):
        bounds = transform_bounds(place.crs, first.crs, *bounds)
    west, south, east, north = bounds
    a, b, c, d, e, f = tuple(first.transform)[:6]
    columns = sorted(((west - c) / a, (east - c) / a))
    rows = sorted(((north - f) / e, (south - f) / e))
    return np.array([[rows[0], columns[0]], [rows[1], columns[1]]])


def _reach(place: Place, target: Place) -> tuple[slice, slice]:
    """Return which rows and columns of the mosaic a scene can reach."""
    (top, left), (bottom, right) = _corners(place, target)
    spans = ((top, bottom, target.size[0]), (left, right, target.size[1]))
    rows, columns = (
        slice(max(int(np.floor(low)) - 1, 0), min(int(np.ceil(high)) + 1, size))
        for low, high, size in spans
    )
    return rows, columns


def _merged(parts: Sequence[_Part], target: Place, block: Window, classes: int) -> Scored:
    """Return the mean probabilities of a block of the mosaic, and the classes that they decide."""
    total = np.zeros((classes, block.height, block.width), dtype=np.float32)
    count = np.zeros((block.height, block.width), dtype=np.float32)
    for part in parts:
        rows = slice(max(part.rows.start, block.row), min(part.rows.stop, block.row + block.height))
        columns = slice(
            max(part.columns.start, block.column),
            min(part.columns.stop, block.column + block.width),
        )
        if rows.start >= rows.stop or columns.start >= columns.stop:
            continue
        found, inside = _sampled(part, target, rows, columns)
        place = (
            slice(rows.start - block.row, rows.stop - block.row),
            slice(columns.start - block.column, columns.stop - block.column),
        )
        total[:, *place] += np.where(inside, found, 0)
        count[place] += inside
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / count
    numbers = np.where(count > 0, total.argmax(0) + 1, 0)
    return Scored(numbers.astype(np.uint16), mean)


def _sampled(
    part: _Part, target: Place, rows: slice, columns: slice
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Return a scene's probabilities at pixels of the mosaic, and where it has any."""
    from rasterio.windows import Window as RasterWindow

    row, column = pixels_at(
        part.place,
        target,
        np.arange(rows.start, rows.stop),
        np.arange(columns.start, columns.stop),
    )
    inside = (row >= 0) & (row < part.place.size[0]) & (column >= 0) & (column < part.place.size[1])
    found = np.full((part.file.count, *row.shape), np.nan, dtype=np.float32)
    if inside.any():
        down, across = row[inside], column[inside]
        top, left = int(down.min()), int(across.min())
        read = part.file.read(
            window=RasterWindow(left, top, int(across.max()) + 1 - left, int(down.max()) + 1 - top)
        )
        found[:, inside] = read[:, down - top, across - left]
    return found, inside & np.isfinite(found).all(0)
