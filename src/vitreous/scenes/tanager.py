"""Tanager: HDF-EOS5 files with radiance or surface reflectance, on the sensor's grid or a map grid.

Format: Planet, Tanager product specification (2025). ``HDFEOS/SWATHS/HYP`` (basic) or ``HDFEOS/GRIDS/HYP`` (ortho)
holds in ``Data Fields`` the cube ``toa_radiance`` or ``surface_reflectance`` (bands, rows, columns), whose attributes
are ``wavelengths``, ``fwhm`` (nm) and ``good_wavelengths``, and ``nodata_pixels`` (1 = no measurement). An ortho
product's place is in the attributes ``epsg_code`` and, as JSON, ``Planet_Ortho_Framing`` (``geotransform``), or in
the corners of HDF-EOS's ``StructMetadata.0``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.errors import SceneError
from vitreous.scenes import arrays
from vitreous.scenes.attributes import find, number
from vitreous.scenes.cube import LazyCube, georeference, make_scene
from vitreous.scenes.hdf5 import Hdf5File
from vitreous.scenes.places import with_place
from vitreous.scenes.stacks import Values
from vitreous.scenes.values import converted

_CUBE = re.compile(r"HDFEOS/(?:SWATHS|GRIDS)/HYP/Data Fields/(toa_radiance|surface_reflectance)")
_CORNERS = re.compile(
    r"(UpperLeftPointMtrs|LowerRightMtrs)\s*=\s*\(\s*([-+.\deE]+)\s*,\s*([-+.\deE]+)\s*\)"
)


def is_product(file: Hdf5File) -> bool:
    """Return whether an HDF5 file holds a cube of Tanager."""
    return any(_CUBE.fullmatch(info.name) for info in file.arrays)


def open_product(file: Hdf5File, known: Mapping[str, Any]) -> xr.DataArray:
    """Open a Tanager file lazily, reflectance where it has both.

    Args:
        file: the file.
        known: arguments of :func:`make_scene` that win over what it says.

    Raises:
        SceneError: the cube has other axes than a product's, or its metadata are damaged.
    """
    found = {match[1]: info for info in file.arrays if (match := _CUBE.fullmatch(info.name))}
    info = found.get("surface_reflectance") or found["toa_radiance"]
    scene = arrays.open_cube(file, variable=info.name, axis_order="byx", known=known)
    if info.base_name == "toa_radiance" and "unit" not in known:
        scene = scene.assign_attrs(unit="radiance")
    scene = _with_place(scene, file, info, known)
    name = f"{info.name.rpartition('/')[0]}/nodata_pixels"
    hidden = next((a for a in file.arrays if a.name == name), None)
    if hidden is None or hidden.shape != info.shape[1:]:
        return scene
    nodata = scene.attrs["nodata"]
    cube = converted(
        LazyCube(scene.shape, scene.dtype, Values(scene)),
        nodata=() if nodata is None else (nodata,),
        valid=(_Measured(file, name),),
    )
    again = make_scene(cube, source=file.source)
    return scene.copy(data=again.variable._data).assign_attrs({**scene.attrs, "nodata": math.nan})


def _with_place(
    scene: xr.DataArray, file: Hdf5File, info: arrays.ArrayInfo, known: Mapping[str, Any]
) -> xr.DataArray:
    """Give an ortho product its place; the grid of a basic one is the sensor's."""
    from affine import Affine

    if "/GRIDS/" not in info.name or georeference(scene)[1] is not None:
        return scene
    group = file.group_attrs("HDFEOS/GRIDS/HYP")
    framing = _framing(group, file)
    code = number(
        find(framing, "epsg_code") or find(group, "epsg_code") or find(info.attrs, "epsg_code")
    )
    numbers = arrays.gdal_transform(framing.get("geotransform"))
    transform = Affine.from_gdal(*numbers) if numbers else _of_corners(file, info.shape[1:])
    crs = None if code is None else arrays.epsg(code)
    return with_place(scene, crs, transform, file.source)


def _framing(group: Mapping[str, Any], file: Hdf5File) -> Mapping[str, Any]:
    text = find(group, "Planet_Ortho_Framing") or find(file.attrs, "Planet_Ortho_Framing")
    if not isinstance(text, str):
        return {}
    try:
        framing = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SceneError(
            f"{file.source} has a damaged Planet_Ortho_Framing.", "Download the file again."
        ) from error
    return framing if isinstance(framing, dict) else {}


def _of_corners(file: Hdf5File, size: tuple[int, ...]) -> Any:
    from affine import Affine

    text = file.attrs.get("StructMetadata.0")
    corners = {m[1]: (float(m[2]), float(m[3])) for m in _CORNERS.finditer(str(text or ""))}
    if len(corners) != 2:
        return None
    (west, north), (east, south) = corners["UpperLeftPointMtrs"], corners["LowerRightMtrs"]
    if east == west or north == south:
        return None
    return Affine((east - west) / size[1], 0, west, 0, (south - north) / size[0], north)


class _Measured:
    """Reads which pixels hold a measurement."""

    def __init__(self, file: Hdf5File, name: str) -> None:
        self._file, self._name = file, name

    def __call__(self, rows: slice, columns: slice) -> npt.NDArray[np.bool_]:
        measured: npt.NDArray[np.bool_] = self._file.read(self._name, (rows, columns)) == 0
        return measured
