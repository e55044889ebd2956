"""Where pixels lie: whether two grids are the same, and values of one on the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.scenes.cube import georeference

GRID_TOLERANCE = 0.01  # of a pixel: grids that agree this well are the same grid
_LOOKED_AT = 33  # rows and columns by which an overlap is told
_STRIP = 2**22  # pixels placed at a time
_NUDGE = 1e-6  # of a pixel: a centre on an edge always falls to the same side


class Grid(NamedTuple):
    """Size and place of an image.

    Attributes:
        size: ``(rows, columns)``.
        crs: the coordinate system, None where unknown.
        transform: pixel corner to CRS, None where unknown.
    """

    size: tuple[int, int]
    crs: Any = None
    transform: Any = None

    @classmethod
    def of(cls, image: xr.DataArray) -> Grid:
        """Return the grid of a scene or of labels."""
        return cls((int(image.sizes["y"]), int(image.sizes["x"])), *georeference(image))

    def same_crs(self, other: Grid) -> bool:
        """True where both have one CRS, or one of them says none."""
        return self.crs is None or other.crs is None or self.crs == other.crs

    def agrees(self, other: Grid) -> bool:
        """True where both show the same pixels, as far as they say where they lie."""
        if self.size != other.size or not self.same_crs(other):
            return False
        if self.transform is None or other.transform is None:
            return True
        return shift(self.transform, other.transform, other.size) <= GRID_TOLERANCE

    def __str__(self) -> str:
        size = f"{self.size[0]} x {self.size[1]} pixels"
        return size if self.crs is None else f"{size} in {crs_name(self.crs)}"


def crs_name(crs: Any) -> str:
    """Return ``EPSG:32632``, or words where a CRS has no code."""
    return str(crs.to_string()) if crs.to_epsg() else "a CRS without EPSG code"


def shift(first: Any, second: Any, size: tuple[int, int]) -> float:
    """Return the largest distance between the corners of two grids, in pixels of the second."""
    corners = [(0, 0), (size[1], 0), (0, size[0]), (size[1], size[0])]
    placed = [_apply(~second, *_apply(first, *corner)) for corner in corners]
    pairs = zip(placed, corners, strict=True)
    return max(max(abs(x - c), abs(y - r)) for (x, y), (c, r) in pairs)


def nearest(
    values: npt.NDArray[Any], own: Grid, wanted: Grid, fill: Any, rows: slice | None = None
) -> npt.NDArray[Any]:
    """Return an image's values at the pixel centres of another grid; nothing is interpolated.

    Args:
        values: ``(rows, columns)``.
        own: their grid, with a transform.
        wanted: the other grid, with a transform.
        fill: the value beyond the image's edge.
        rows: rows of ``wanted``; all when None.

    Returns:
        ``(rows, columns)`` of the wanted grid, in the values' type.
    """
    height, width = wanted.size
    span = range(*(rows or slice(None)).indices(height))
    result = np.full((len(span), width), fill, dtype=values.dtype)
    strip = max(1, _STRIP // width)
    for start in range(0, len(span), strip):
        part = np.asarray(span[start : start + strip])
        row, column = pixels_at(own, wanted, part, np.arange(width))
        inside = (row >= 0) & (row < own.size[0]) & (column >= 0) & (column < own.size[1])
        result[start : start + strip][inside] = values[row[inside], column[inside]]
    return result


def nearest_window(
    read: Callable[[slice, slice], npt.NDArray[Any]],
    own: Grid,
    wanted: Grid,
    rows: slice,
    columns: slice,
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Read the part of an image that covers a window of another grid; nothing is interpolated.

    Without a place the pixels of both are counted from the same corner.

    Args:
        read: gives some rows and columns of the image.
        own: its grid.
        wanted: the other grid.
        rows: rows of ``wanted``, with explicit bounds and a positive step.
        columns: likewise.

    Returns:
        Values ``(rows, columns)``, and False where they lie beyond the image's edge; the values are 0 there.
    """
    row_index = np.arange(rows.start, rows.stop, rows.step)
    column_index = np.arange(columns.start, columns.stop, columns.step)
    if own.transform is None or wanted.transform is None:
        row, column = np.meshgrid(row_index, column_index, indexing="ij")
    else:
        row, column = pixels_at(own, wanted, row_index, column_index)
    inside = (row >= 0) & (row < own.size[0]) & (column >= 0) & (column < own.size[1])
    if not inside.any():
        return np.zeros(row.shape, dtype=np.uint8), inside
    row, column = row[inside], column[inside]
    top, left = int(row.min()), int(column.min())
    stored = read(slice(top, int(row.max()) + 1, 1), slice(left, int(column.max()) + 1, 1))
    values = np.zeros(inside.shape, dtype=stored.dtype)
    values[inside] = stored[row - top, column - left]
    return values, inside


def overlap(first: Grid, second: Grid) -> bool:
    """Return whether two images show any ground together; True where one of them has no place."""
    if first.transform is None or second.transform is None:
        return True
    return _meets(first, second) or _meets(second, first)


def _meets(own: Grid, wanted: Grid) -> bool:
    """Whether any of a few pixels of one grid, spread evenly, lies in the other."""
    rows, columns = (np.unique(np.linspace(0, n - 1, _LOOKED_AT).astype(int)) for n in wanted.size)
    row, column = pixels_at(own, wanted, rows, columns)
    inside = (row >= 0) & (row < own.size[0]) & (column >= 0) & (column < own.size[1])
    return bool(inside.any())


def pixels_at(
    own: Grid, wanted: Grid, rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the rows and columns of ``own`` in which the pixel centres of ``wanted`` lie.

    Args:
        own: the grid that is looked up in.
        wanted: the grid whose pixels are asked for.
        rows: ``(r,)`` rows of ``wanted``.
        columns: ``(c,)`` columns of ``wanted``.

    Returns:
        Two arrays ``(r, c)``; beyond the edge they are negative or too large.
    """
    column, row = np.meshgrid(columns + 0.5, rows + 0.5)
    x, y = _apply(wanted.transform, column, row)
    if not own.same_crs(wanted):
        from pyproj import Transformer

        to_own = Transformer.from_crs(wanted.crs.to_wkt(), own.crs.to_wkt(), always_xy=True)
        x, y = to_own.transform(x, y)
    own_column, own_row = _apply(~own.transform, np.asarray(x), np.asarray(y))
    far = 2**40  # what a projection cannot place becomes infinite
    own_column, own_row = (
        np.clip(np.nan_to_num(v, nan=-far), -far, far) for v in (own_column, own_row)
    )
    return (
        np.floor(own_row + _NUDGE).astype(np.int64),
        np.floor(own_column + _NUDGE).astype(np.int64),
    )


def _apply(transform: Any, x: Any, y: Any) -> tuple[Any, Any]:
    """Return transformed coordinates, of numbers and of arrays (affine's own operator is being renamed)."""
    a, b, c, d, e, f = tuple(transform)[:6]
    return a * x + b * y + c, d * x + e * y + f
