"""Scenes read tile by tile: what statistics are gathered from, and what products are computed by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.data.pixels import reading
from vitreous.errors import SceneError
from vitreous.scenes.cube import (
    LazyCube,
    Window,
    georeference,
    good_bands,
    make_scene,
    read_window,
)
from vitreous.scenes.dead_bands import without_dead_bands

SIDE = 128  # pixels of a tile: tens of megabytes at hundreds of bands

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]
Mask: TypeAlias = npt.NDArray[np.bool_]
Progress: TypeAlias = Callable[[int, int], None]
# (pixels, bands) to (pixels, bands of the product)
OfSpectra: TypeAlias = Callable[[Floats], Floats]
# rows and columns of the scene to (bands of the product, rows, columns)
OfPlaces: TypeAlias = Callable[[slice, slice], npt.NDArray[np.float32]]


class Passes:
    """Counts the pixels of several passes over a scene, the one that computes the product included.

    Args:
        scene: the scene.
        count: how many passes there will be; it may be corrected later.
        progress: called with (pixels done, pixels in all).
    """

    def __init__(self, scene: xr.DataArray, count: int, progress: Progress | None = None) -> None:
        self.count = count
        self._pixels = scene.sizes["y"] * scene.sizes["x"]
        self._done, self._progress = 0, progress

    def last(self) -> None:
        """Correct the count: one pass is left."""
        self.count = -(-self._done // self._pixels) + 1

    def add(self, pixels: int) -> None:
        """Count some pixels."""
        self._done += pixels
        if self._progress is not None:
            total = self.count * self._pixels
            self._progress(min(self._done, total), total)


class Tile(NamedTuple):
    """A rectangle of a scene.

    Attributes:
        rows: of the scene.
        columns: of the scene.
        values: ``(bands, rows, columns)`` physical values, NaN where invalid.
    """

    rows: slice
    columns: slice
    values: npt.NDArray[np.float32]

    @property
    def valid(self) -> Mask:
        """``(rows, columns)``, True where a pixel is valid."""
        return np.asarray(np.isfinite(self.values).all(axis=0))

    @property
    def spectra(self) -> Floats:
        """``(valid pixels, bands)``."""
        return self.values[:, self.valid].T.astype(np.float64)

    @property
    def pixels(self) -> Ints:
        """``(valid pixels, 2)`` rows and columns of the scene, as in :attr:`spectra`."""
        corner = np.array([self.rows.start, self.columns.start])
        return np.argwhere(self.valid) + corner


def source_of(scene: xr.DataArray) -> str:
    """Return the name of a scene for messages."""
    return str(scene.attrs.get("source") or "The scene")


def prepared(scene: xr.DataArray) -> tuple[xr.DataArray, Ints]:
    """Return a scene without dead bands, and the bands that may be used."""
    alive = without_dead_bands(scene)
    return alive, good_bands(alive).astype(np.int64)


def tiles(
    scene: xr.DataArray, bands: Ints, passes: Passes | None = None, beyond: int = 0
) -> Iterator[Tile]:
    """Read a scene in squares, row by row.

    Args:
        scene: the scene.
        bands: which bands.
        passes: what counts the pixels.
        beyond: rows and columns below and to the right that tiles share with the next ones.

    Raises:
        SceneError: the file breaks off.
    """
    height, width = scene.sizes["y"], scene.sizes["x"]
    with reading(scene):
        for rows, columns in squares(slice(0, height), slice(0, width)):
            wider = slice(rows.start, min(height, rows.stop + beyond))
            longer = slice(columns.start, min(width, columns.stop + beyond))
            yield Tile(wider, longer, read_window(scene, wider, longer, bands))
            if passes is not None:
                passes.add((rows.stop - rows.start) * (columns.stop - columns.start))


def pixelwise(
    scene: xr.DataArray,
    bands: Ints,
    names: Sequence[str],
    function: OfSpectra,
    passes: Passes | None = None,
) -> xr.DataArray:
    """Return the image of what a function makes of each spectrum, computed when it is read.

    Args:
        scene: the scene.
        bands: of it that the function takes.
        names: of the product's bands.
        function: of valid spectra.
        passes: what counts the pixels.
    """

    def compute(rows: slice, columns: slice) -> npt.NDArray[np.float32]:
        tile = Tile(rows, columns, read_window(scene, rows, columns, bands))
        result = np.full((len(names), *tile.values.shape[1:]), np.nan, dtype=np.float32)
        spectra = tile.spectra
        if len(spectra):
            result[:, tile.valid] = function(spectra).T
        return result

    return image_like(scene, names, compute, passes)


def image_like(
    scene: xr.DataArray, names: Sequence[str], compute: OfPlaces, passes: Passes | None = None
) -> xr.DataArray:
    """Return a lazy image on the grid of a scene: float32, NaN where invalid.

    Args:
        scene: the scene.
        names: of the image's bands.
        compute: gives the values of some rows and columns.
        passes: what counts the pixels.
    """
    crs, transform = georeference(scene)
    shape = (len(names), scene.sizes["y"], scene.sizes["x"])
    return make_scene(
        LazyCube(shape, np.float32, _Image(scene, len(names), compute, passes)),
        band_names=list(names),
        nodata=float("nan"),
        crs=crs,
        transform=transform,
        source=str(scene.attrs.get("source") or ""),
    )


class _Image:
    """Computes windows of an image square by square."""

    def __init__(
        self, scene: xr.DataArray, count: int, compute: OfPlaces, passes: Passes | None
    ) -> None:
        self._scene, self._count = scene, count
        self._compute, self._passes = compute, passes

    def __call__(self, window: Window) -> npt.NDArray[np.float32]:
        bands, rows, columns = window
        size = (self._count, max(0, rows.stop - rows.start), max(0, columns.stop - columns.start))
        result = np.empty(size, dtype=np.float32)
        with reading(self._scene):
            for down, across in squares(rows, columns):
                inside = (
                    slice(down.start - rows.start, down.stop - rows.start),
                    slice(across.start - columns.start, across.stop - columns.start),
                )
                result[:, inside[0], inside[1]] = self._compute(down, across)
                if self._passes is not None:
                    self._passes.add((down.stop - down.start) * (across.stop - across.start))
        return result[bands, :: rows.step, :: columns.step]


def squares(rows: slice, columns: slice) -> Iterator[tuple[slice, slice]]:
    """Yield squares that cover some rows and columns, row by row; the last ones are smaller."""
    for top in range(rows.start, rows.stop, SIDE):
        for left in range(columns.start, columns.stop, SIDE):
            yield (
                slice(top, min(top + SIDE, rows.stop)),
                slice(left, min(left + SIDE, columns.stop)),
            )


def spectrum_at(scene: xr.DataArray, bands: Ints, row: int, column: int) -> Floats:
    """Return the spectrum of a pixel, ``(bands,)``.

    Args:
        scene: the scene.
        bands: which bands.
        row: counted from 0.
        column: counted from 0.

    Raises:
        SceneError: the pixel lies outside of the scene, or is invalid.
    """
    height, width = scene.sizes["y"], scene.sizes["x"]
    if not (0 <= row < height and 0 <= column < width):
        raise SceneError(
            f"The pixel at row {row}, column {column} lies outside of the scene, which has {height} rows and {width} "
            "columns.",
            "Rows and columns are counted from 0.",
        )
    with reading(scene):
        found = read_window(scene, slice(row, row + 1), slice(column, column + 1), bands)[:, 0, 0]
    if not np.isfinite(found).all():
        raise SceneError(
            f"The pixel at row {row}, column {column} of {source_of(scene)} has no valid measurement.",
            "Choose another pixel.",
        )
    return found.astype(np.float64)
