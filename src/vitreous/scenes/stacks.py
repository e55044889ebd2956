"""Bands put together and taken out: several images as one cube on one grid, and some bands of a scene."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.errors import SceneError
from vitreous.scenes.cube import LazyCube, ReadWindow, Window, check_shape
from vitreous.scenes.grids import Grid, nearest_window, overlap


def stacked(images: Sequence[xr.DataArray], source: str) -> tuple[LazyCube, Grid]:
    """Return the stored values of several scenes of one band as one cube, and its grid.

    Images on another grid are resampled to the nearest pixel of the finest one, and a warning says so; beyond
    their edge the cube is NaN.

    Args:
        images: scenes of one band.
        source: what they belong to, for messages.

    Raises:
        SceneError: an image has several bands, or sizes differ and nothing says where the images lie.
    """
    for image in images:
        if image.sizes["band"] != 1:
            raise SceneError(
                f"{image.attrs['source']} has {image.sizes['band']} bands.",
                "Several files make one scene where each holds one band.",
            )
    grids = [Grid.of(image) for image in images]
    wanted = min(grids, key=_pixel_size)
    others = [k for k, grid in enumerate(grids) if not grid.agrees(wanted)]
    for k in others:
        if grids[k].transform is None or wanted.transform is None:
            raise SceneError(
                f"{source}: {images[k].attrs['source']} has {grids[k]}, others {wanted}.",
                "Bands without georeferencing must have one size.",
            )
        if not overlap(grids[k], wanted):
            raise SceneError(
                f"{source}: {images[k].attrs['source']} ({grids[k]}) does not overlap with other bands ({wanted}).",
                "Name files of one scene.",
            )
    if others:
        warnings.warn(
            f"{source}: {len(others)} of {len(images)} bands are resampled to the nearest pixel of {wanted}.",
            stacklevel=4,
        )
    dtype = np.result_type(*(image.dtype for image in images))
    dtype = np.result_type(dtype, np.float32) if others else dtype
    shape = check_shape((len(images), *wanted.size), source)
    return LazyCube(shape, dtype, _Stack(images, grids, wanted, dtype)), wanted


class Values:
    """Reads windows of a scene's stored values.

    Args:
        scene: the scene.
    """

    def __init__(self, scene: xr.DataArray) -> None:
        self._variable = scene.variable

    def __call__(self, window: Window) -> npt.NDArray[Any]:
        """Read one window."""
        return np.asarray(self._variable[window].values)


class Picked:
    """Reads some bands of a scene, in any order.

    Args:
        variable: of the scene.
        index: which bands.
    """

    def __init__(self, variable: xr.Variable, index: npt.NDArray[np.int64]) -> None:
        self._variable, self._index = variable, index

    def __call__(self, window: Window) -> npt.NDArray[Any]:
        """Read one window of these bands."""
        bands, rows, columns = window
        index = self._index[bands]
        if index.size == 0:
            return np.asarray(self._variable[0:0, rows, columns].values)
        first = int(index.min())
        stored = self._variable[first : int(index.max()) + 1, rows, columns]
        return np.asarray(stored.values)[index - first]


class Joined:
    """Reads bands of several cubes of one size in a common order.

    Args:
        cubes: read windows of each.
        counts: bands of each.
        order: bands, counted through all cubes.
        dtype: of the values.
    """

    def __init__(
        self,
        cubes: Sequence[ReadWindow],
        counts: Sequence[int],
        order: npt.NDArray[np.int64],
        dtype: np.dtype[Any],
    ) -> None:
        self._cubes, self._order, self._dtype = cubes, order, dtype
        self._starts = np.concatenate([[0], np.cumsum(counts)])

    def __call__(self, window: Window) -> npt.NDArray[Any]:
        """Read one window."""
        bands, rows, columns = window
        wanted = self._order[bands]
        size = [len(range(part.start, part.stop, part.step)) for part in (rows, columns)]
        values = np.empty((wanted.size, *size), dtype=self._dtype)
        for read, start, stop in zip(self._cubes, self._starts, self._starts[1:], strict=False):
            own = (wanted >= start) & (wanted < stop)
            if own.any() and values.size:
                index = wanted[own] - start
                low = int(index.min())
                stored = read((slice(low, int(index.max()) + 1, 1), rows, columns))
                values[own] = stored[index - low]
        return values


def _pixel_size(grid: Grid) -> float:
    if grid.transform is None:
        return 1 / (grid.size[0] * grid.size[1])
    return abs(float(grid.transform.determinant))


class _Stack:
    """Reads windows of the common grid, band by band."""

    def __init__(
        self,
        images: Sequence[xr.DataArray],
        grids: Sequence[Grid],
        wanted: Grid,
        dtype: np.dtype[Any],
    ) -> None:
        self._variables = [image.variable for image in images]
        self._grids, self._wanted, self._dtype = grids, wanted, dtype

    def __call__(self, window: Window) -> npt.NDArray[Any]:
        bands, rows, columns = window
        size = [len(range(part.start, part.stop, part.step)) for part in window]
        values = np.empty(size, dtype=self._dtype)
        if values.size:
            for k, band in enumerate(range(bands.start, bands.stop, bands.step)):
                values[k] = self._read(band, rows, columns)
        return values

    def _read(self, band: int, rows: slice, columns: slice) -> npt.NDArray[Any]:
        variable, own = self._variables[band], self._grids[band]
        if own.agrees(self._wanted):
            return np.asarray(variable[0, rows, columns].values)
        values, inside = nearest_window(
            lambda r, c: np.asarray(variable[0, r, c].values), own, self._wanted, rows, columns
        )
        return np.where(inside, values.astype(self._dtype), np.nan)
