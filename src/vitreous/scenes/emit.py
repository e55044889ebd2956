"""EMIT's NetCDF-4 scenes, and other NetCDF-4 or HDF5 files that hold a cube.

Layout: EMIT L1B and L2A product user guides (LP DAAC, V001): ``reflectance`` or ``radiance`` (downtrack, crosstrack,
bands), -9999 = no measurement; ``sensor_band_parameters/wavelengths``, ``fwhm`` (nm) and ``good_wavelengths``; in
``location`` the geometry lookup table (GLT) ``glt_x`` and ``glt_y``: for each pixel of the map grid the column and
row of the measured pixel, counted from 1, 0 where there is none; global attributes ``spatial_ref`` and
``geotransform`` (GDAL's order) for the map grid.

The measured grid has no map projection, so a scene with a GLT is opened on its map grid unless ``ortho=False``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.errors import SceneError
from vitreous.scenes import arrays, pace, prisma, tanager
from vitreous.scenes.attributes import flag_of
from vitreous.scenes.axes import Axes
from vitreous.scenes.cube import LabelImage, LazyCube, Window, check_shape, make_scene
from vitreous.scenes.hdf5 import Hdf5File

GLT = ("location/glt_y", "location/glt_x")
_CUBES = ("reflectance", "radiance")
_PRODUCTS = (prisma, tanager, pace)  # with a layout of their own
_TILE = 128  # a tile of the map grid is a small rhombus of the measured one; a whole row would be nearly all of it


def open(  # the name that every reader has
    path: Path,
    *,
    variable: str | None = None,
    axis_order: str | None = None,
    wavelength_unit: str | None = None,
    ortho: bool | None = None,
    **known: Any,
) -> xr.DataArray:
    """Open an EMIT scene, or the cube of another NetCDF-4 or HDF5 file.

    Args:
        path: the file.
        variable: the array's name; needed only where several could be meant.
        axis_order: ``yxb``, ``byx`` or ``ybx``; needed only where the shape is ambiguous.
        wavelength_unit: ``nm`` or ``um``, instead of what the file says or leaves open.
        ortho: True for the map grid through the GLT (nearest measured pixel, nothing is interpolated), False for
            the measured grid, which has no CRS; None takes the map grid where there is a GLT.
        **known: arguments of :func:`make_scene` that win over what the file says.

    Raises:
        SceneError: the file is damaged, holds no cube or several, or has no GLT where ``ortho`` asks for one.
    """
    ortho = flag_of("ortho", ortho)
    file = Hdf5File(path)
    product = next((p for p in _PRODUCTS if variable is None and p.is_product(file)), None)
    if product is not None:
        _check_grid(file, ortho)
        return product.open_product(file, known)
    names = {a.name for a in file.arrays}
    if variable is None:
        variable = next((name for name in _CUBES if name in names), None)
    has_glt = names.issuperset(GLT)
    if not has_glt:
        _check_grid(file, ortho)
    if has_glt and ortho is not False:
        return _open_ortho(file, variable, axis_order, wavelength_unit, known)
    return arrays.open_cube(
        file,
        variable=variable,
        axis_order=axis_order,
        wavelength_unit=wavelength_unit,
        known=known,
    )


def _check_grid(file: Hdf5File, ortho: bool | None) -> None:
    if ortho:
        raise SceneError(
            f"{file.source} has no geometry lookup table ({' and '.join(GLT)}).",
            "Leave out ortho=True.",
        )


def open_labels(path: Path, *, variable: str | None = None) -> LabelImage:
    """Return the label image of a NetCDF-4 or HDF5 file.

    Args:
        path: the file.
        variable: the array's name; needed only where several could be meant.

    Raises:
        SceneError: the file is damaged, or holds no image or several.
    """
    return arrays.open_label_image(Hdf5File(path), variable=variable)


def _open_ortho(
    file: Hdf5File,
    variable: str | None,
    axis_order: str | None,
    wavelength_unit: str | None,
    known: Mapping[str, Any],
) -> xr.DataArray:
    from affine import Affine

    measured = arrays.open_cube(
        file,
        variable=variable,
        axis_order=axis_order,
        wavelength_unit=wavelength_unit,
        known=known,
    )
    info = arrays.choose_cube(file, variable)
    axes = arrays.find_axes(file, info, axis_order, known)
    rows, columns = (arrays.find_array(file, name) for name in GLT)
    if (
        rows.shape != columns.shape
        or len(rows.shape) != 2
        or not {rows.dtype.kind, columns.dtype.kind} <= set("iuf")
    ):
        raise SceneError(
            f"{file.source} has a lookup table of {rows} and {columns}.",
            "Open it with ortho=False.",
        )
    shape = check_shape((measured.sizes["band"], *rows.shape), file.source)
    nodata = measured.attrs["nodata"]
    if nodata is None:
        nodata = float("nan") if info.dtype.kind == "f" else 0.0
    numbers = arrays.gdal_transform(file.attrs.get("geotransform"))
    wkt = file.attrs.get("spatial_ref")
    facts: dict[str, Any] = {
        name: measured[coordinate].values
        for name, coordinate in (
            ("wavelengths", "wavelength"),
            ("fwhm", "fwhm"),
            ("good_band", "good_band"),
            ("band_names", "band_name"),
        )
        if coordinate in measured.coords
    }
    return make_scene(
        LazyCube(shape, info.dtype, _OrthoReader(file, info.name, axes, info.shape, nodata)),
        **facts,
        unit=measured.attrs["unit"],
        scale=measured.attrs["scale"],
        nodata=nodata,
        crs=arrays.parse_crs(wkt, file.source) if isinstance(wkt, str) else None,
        transform=None if numbers is None else Affine.from_gdal(*numbers),
        source=file.source,
    )


def _as_index(numbers: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Positions counted from 1, 0 for none: products of 2026 keep them as floats with NaN outside."""
    known = np.where(np.isfinite(numbers), numbers, 0) if numbers.dtype.kind == "f" else numbers
    return np.rint(np.clip(known, -(2**40), 2**40)).astype(np.int64)


class _OrthoReader:
    """Reads windows of the map grid by looking the measured pixels up in the GLT."""

    def __init__(
        self, file: Hdf5File, name: str, axes: Axes, shape: tuple[int, ...], nodata: float
    ) -> None:
        self._file, self._name, self._axes = file, name, axes
        self._height, self._width = shape[axes[1]], shape[axes[2]]
        self._nodata = nodata

    def __call__(self, window: Window) -> npt.NDArray[Any]:
        bands, *space = window
        rows, columns = (_as_index(self._file.read(name, tuple(space))) for name in GLT)
        # The GLT convention marks pixels filled from a neighbour by a minus sign; they are as good as any.
        rows, columns = np.abs(rows) - 1, np.abs(columns) - 1
        if rows.max(initial=-1) >= self._height or columns.max(initial=-1) >= self._width:
            raise SceneError(
                f"{self._file.source}: the lookup table points outside the {self._height} x {self._width} "
                "measured pixels.",
                "The file is damaged; ortho=False opens the measured grid.",
            )
        dtype = arrays.find_array(self._file, self._name).dtype
        count = len(range(bands.start, bands.stop, bands.step))
        result = np.full((count, *rows.shape), self._nodata, dtype=dtype)
        for top in range(0, rows.shape[0], _TILE):
            for left in range(0, rows.shape[1], _TILE):
                tile = (slice(top, top + _TILE), slice(left, left + _TILE))
                self._gather(bands, rows[tile], columns[tile], result[:, *tile])
        return result

    def _gather(
        self,
        bands: slice,
        rows: npt.NDArray[np.int64],
        columns: npt.NDArray[np.int64],
        out: npt.NDArray[Any],
    ) -> None:
        """Fill the measured pixels of one tile of the map grid into ``out``."""
        known = (rows >= 0) & (columns >= 0)
        if not known.any():
            return
        top, left = int(rows[known].min()), int(columns[known].min())
        box = (slice(top, int(rows[known].max()) + 1), slice(left, int(columns[known].max()) + 1))
        key = [slice(None)] * 3
        for axis, part in zip(self._axes, (bands, *box), strict=True):
            key[axis] = part
        measured = self._file.read(self._name, tuple(key)).transpose(self._axes)
        out[:, known] = measured[:, rows[known] - top, columns[known] - left]
