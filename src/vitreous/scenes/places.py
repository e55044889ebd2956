"""Where an image lies: its coordinates, CRS and transform, also of a part that xarray has cut out.

A transform is one sentence about a whole grid, which indexing does not change; coordinates are one number per row and
column, which it cuts along. So an image with a place carries coordinates, and its transform is computed from them:

- a plain grid has the usual ``x`` and ``y``, pixel centres in the CRS, by which it can also be selected;
- a rotated or sheared one, whose rows have no single ``y``, has ``column`` and ``row``: pixel centres counted in pixels
  from the corner of the whole grid.

Both keep the grid's own transform in an attribute, so that digits are not lost in the sums. rioxarray knows no rotated grid by
its coordinates: of a part, its accessor ``rio`` is told the transform here.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr
from rioxarray.raster_array import RasterArray

from vitreous.errors import SceneError

PLAIN, TURNED = ("x", "y"), ("column", "row")  # names of coordinates along x and y
_GRID = "grid_transform"  # attribute of the coordinates: (a, b, c, d, e, f), pixel corner to CRS
_EVEN = 1e-3  # of a step: coordinates in a file may be rounded that much
_ROUNDING = 1e-6  # of a pixel: what sums of large coordinates lose


def with_place(image: xr.DataArray, crs: Any, transform: Any, where: str) -> xr.DataArray:
    """Return a scene or labels with coordinates, CRS and transform, where known.

    Args:
        image: with the dims ``y`` and ``x``, and without a place.
        crs: anything rasterio understands as a CRS.
        transform: an affine transform (pixel corner to CRS).
        where: the file's name, for messages.

    Raises:
        SceneError: the CRS cannot be parsed.
    """
    transform = usable(transform, where)
    if transform is not None:
        image = _with_transform(image, transform)
    return image if crs is None else _with_crs(image, crs, where)


def usable(transform: Any, where: str) -> Any:
    """Return a transform, or None and a warning where it gives no pixel a size."""
    if transform is None or (np.isfinite(transform.determinant) and transform.determinant != 0):
        return transform
    warnings.warn(
        f"{where} has a transform that cannot be right (pixels of size 0); it is ignored.",
        stacklevel=4,
    )
    return None


def georeference(image: xr.DataArray) -> tuple[Any, Any]:
    """Return the CRS and the transform (pixel corner to CRS) of a scene or labels, None where unknown.

    Of a part that was cut out by indexing, they are those of the part. Where rows or columns are not evenly spaced (any more), it has
    no transform, and a warning says so.
    """
    crs = image.rio.crs
    stated = _stated(image)
    names = next((pair for pair in (PLAIN, TURNED) if _has(image, pair)), None)
    if names is None:
        return crs, stated
    spans = [evenly(image[name].values) for name in names]
    if None in spans:
        warnings.warn(
            f"{_name(image)} has rows or columns that are not evenly spaced, so it has no place.",
            stacklevel=3,
        )
        return crs, None
    grid = _grid_of(image, names)
    found = _transform_of(spans, grid)
    if found is None:  # a single row or column, of unknown height or width
        return crs, stated
    if stated is not None and list(stated[:6]) != grid and not _follows(found, stated):
        warnings.warn(
            f"{_name(image)} has a transform that contradicts its coordinates; the coordinates count. Where the transform is right, remove "
            f"them: scene.drop_vars({list(names)}).",
            stacklevel=3,
        )
    return crs, found


class PlacedRaster(RasterArray):  # type: ignore[misc]  # rioxarray has no types
    """rioxarray's accessor, which also knows the transform of a part cut out of a rotated grid."""

    def _cached_transform(self) -> Any:
        stated = super()._cached_transform()
        image = self._obj
        if stated is None or not _has(image, TURNED):
            return stated
        grid = _grid_of(image, TURNED)
        if grid is None or list(stated[:6]) != grid:  # another one was written
            return stated
        spans = [evenly(image[name].values) for name in TURNED]
        return None if None in spans else _transform_of(spans, grid)

    def transform(self, recalc: bool = False) -> Any:
        """Return the transform; of a grid turned by a right angle, too, whose pixels rioxarray takes to have no size."""
        if _has(self._obj, TURNED):
            own = self._cached_transform()
            if own is not None:
                return own
        return super().transform(recalc)


with warnings.catch_warnings():  # it replaces the one that it extends
    warnings.simplefilter("ignore", xr.core.extensions.AccessorRegistrationWarning)
    xr.register_dataarray_accessor("rio")(PlacedRaster)


class Span(NamedTuple):
    """Evenly spaced coordinates: the first, and the distance to the next (None where there is only one)."""

    first: float
    step: float | None


def evenly(values: npt.NDArray[Any]) -> Span | None:
    """Return where coordinates begin and how far they are apart, None where that differs.

    Args:
        values: the coordinates, as precise as their type: degrees in float32 are rounded to several metres.
    """
    precision = np.finfo(values.dtype).eps if values.dtype.kind == "f" else 0.0
    values = values.astype(np.float64)
    if not values.size or not np.isfinite(values).all():
        return None
    if values.size == 1:
        return Span(float(values[0]), None)
    step = float(values[-1] - values[0]) / (values.size - 1)
    slack = _EVEN * abs(step) + 4 * precision * float(np.abs(values).max())
    distance = np.abs(values - (values[0] + step * np.arange(values.size))).max()
    even = step != 0 and distance <= min(slack, abs(step) / 4)
    return Span(float(values[0]), step) if even else None


def _with_transform(image: xr.DataArray, transform: Any) -> xr.DataArray:
    a, b, c, d, e, f = numbers = [float(n) for n in tuple(transform)[:6]]
    across, down = (np.arange(image.sizes[dim]) + 0.5 for dim in PLAIN)
    turned = bool(b or d)
    columns, rows = (across, down) if turned else (c + a * across, f + e * down)
    image = image.assign_coords(
        {
            name: (dim, values, {_GRID: numbers})
            for name, dim, values in zip(
                TURNED if turned else PLAIN, PLAIN, (columns, rows), strict=True
            )
        }
    )
    # What rioxarray cannot compute from coordinates it finds here. Elsewhere it would be out of date in a part.
    return (
        image.rio.write_transform(transform) if turned or 1 in (across.size, down.size) else image
    )


def _with_crs(image: xr.DataArray, crs: Any, where: str) -> xr.DataArray:
    from pyproj.exceptions import ProjError
    from rasterio.errors import CRSError

    try:
        return image.rio.write_crs(crs)
    except (
        CRSError,
        ProjError,
        UnicodeError,
    ) as error:  # damaged WKT can pass one parser and fail in the other
        raise SceneError(
            f"{where} has a coordinate system that cannot be parsed ({error}).",
            "Correct it in the file's header, or remove it.",
        ) from error


def _stated(image: xr.DataArray) -> Any:
    """The transform that rioxarray keeps beside the CRS, None where there is none."""
    from affine import Affine

    if "spatial_ref" not in image.coords or "GeoTransform" not in image["spatial_ref"].attrs:
        return None
    text = image["spatial_ref"].attrs["GeoTransform"]
    return Affine.from_gdal(*(float(number) for number in text.split()))


def _has(image: xr.DataArray, names: Sequence[str]) -> bool:
    return all(
        name in image.coords and image[name].dims == (dim,) and image[name].dtype.kind in "iuf"
        for name, dim in zip(names, PLAIN, strict=True)
    )


def _name(image: xr.DataArray) -> str:
    return str(image.attrs.get("source") or "The scene")


def _grid_of(image: xr.DataArray, names: Sequence[str]) -> list[float] | None:
    """The transform of the whole grid, where the coordinates know it."""
    grids = [list(np.ravel(image[name].attrs.get(_GRID, ()))) for name in names]
    usable = grids[0] == grids[1] and len(grids[0]) == 6
    return grids[0] if usable else None


def _transform_of(spans: Sequence[Any], grid: list[float] | None) -> Any:
    """The transform of evenly spaced pixels, computed in pixels of their grid where it is known."""
    from affine import Affine

    across, down = spans
    if grid is None:
        if across.step is None or down.step is None:
            return None
        left, top = across.first - across.step / 2, down.first - down.step / 2
        return Affine(across.step, 0.0, left, 0.0, down.step, top)
    a, b, c, d, e, f = grid
    turned = bool(b or d)
    column, wide = _in_pixels(across, 0.0 if turned else c, 1.0 if turned else a)
    row, high = _in_pixels(down, 0.0 if turned else f, 1.0 if turned else e)
    left, top = column - wide / 2, row - high / 2
    return Affine(
        a * wide, b * high, a * left + b * top + c, d * wide, e * high, d * left + e * top + f
    )


def _in_pixels(span: Span, corner: float, size: float) -> tuple[float, float]:
    """First centre and step in pixels of the grid; a single pixel is as large as those of the grid."""
    step = 1.0 if span.step is None else _rounded(span.step / size)
    return _rounded((span.first - corner) / size), step


def _rounded(pixels: float) -> float:
    """Halves of a pixel are exact: centres, and means of several."""
    near = round(pixels * 2) / 2
    return near if abs(pixels - near) <= _ROUNDING * max(1.0, abs(pixels)) else pixels


def _follows(found: Any, stated: Any) -> bool:
    """True where one transform follows from the other by leaving out rows and columns, or turning their order."""
    inverse = ~stated
    centre = ((found.a + found.b) / 2 + found.c, (found.d + found.e) / 2 + found.f)
    whole = (
        *_moved(inverse, found.a, found.d),
        *_moved(inverse, found.b, found.e),
        *(
            n + shift + 0.5
            for n, shift in zip(_moved(inverse, *centre), (inverse.c, inverse.f), strict=True)
        ),
    )
    return all(abs(n - round(n)) <= _EVEN for n in whole)


def _moved(transform: Any, x: float, y: float) -> tuple[float, float]:
    """A step in the transform's coordinates, without its corner."""
    return transform.a * x + transform.b * y, transform.d * x + transform.e * y
