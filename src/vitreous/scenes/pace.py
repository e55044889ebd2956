"""PACE OCI, Level 1B and the Level 2 products of surface reflectance (SFREFL) and ocean colour (AOP).

Format: NASA Ocean Biology, PACE OCI Level 1B and Level 2 data product user guides. Level 1B keeps three cubes in
``observation_data`` (``rhot_blue``, ``rhot_red``, ``rhot_SWIR``; bands, scans, pixels: reflectance at the top of the
atmosphere) and their band centres in ``sensor_band_parameters``. Level 2 keeps one in ``geophysical_data`` (``rhos``
or ``Rrs``; lines, pixels, bands) with the centres ``wavelength_3d``. Both lie on the sensor's grid. Blue and red bands
are 5 nm wide; widths of the others: NASA, PACE OCI instrument description.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.errors import SceneError
from vitreous.scenes import arrays
from vitreous.scenes.cube import LazyCube, check_shape, make_scene
from vitreous.scenes.hdf5 import Hdf5File
from vitreous.scenes.stacks import Joined, Values
from vitreous.scenes.wavelengths import joined

_PARTS = ("blue", "red", "SWIR")
_LEVEL2 = {"geophysical_data/rhos": "reflectance", "geophysical_data/Rrs": "dn"}  # Rrs is per sr
_CENTRES = "sensor_band_parameters/wavelength_3d"
_NARROW, _NARROW_END = 5.0, 900.0  # nm
_SWIR = {940: 45, 1038: 75, 1249: 30, 1378: 15, 1618: 75, 2130: 50, 2260: 75}
_SAME = 5.0  # nm between a band of a file and one of this table


def is_product(file: Hdf5File) -> bool:
    """Return whether an HDF5 file is laid out as one of OCI."""
    names = {info.name for info in file.arrays}
    if {f"observation_data/rhot_{part}" for part in _PARTS} <= names:
        return True
    return _CENTRES in names and not names.isdisjoint(_LEVEL2)


def open_product(file: Hdf5File, known: Mapping[str, Any]) -> xr.DataArray:
    """Open a file of OCI lazily, Level 1B with all its bands by wavelength.

    Args:
        file: the file.
        known: arguments of :func:`make_scene` that win over what it says.

    Raises:
        SceneError: the cubes differ in size, or lack their band centres.
    """
    names = {info.name for info in file.arrays}
    found = next((name for name in _LEVEL2 if name in names), None)
    if found is None:
        return _open_level_1b(file, known)
    centres = _read(file, _CENTRES)
    facts = {"wavelengths": centres, "fwhm": _widths(centres), "unit": _LEVEL2[found]}
    return arrays.open_cube(file, variable=found, known={**facts, **known})


def _open_level_1b(file: Hdf5File, known: Mapping[str, Any]) -> xr.DataArray:
    lists = [_read(file, f"sensor_band_parameters/{part}_wavelength") for part in _PARTS]
    own = {name: value for name, value in known.items() if name in {"scale", "nodata"}}
    cubes = [
        arrays.open_cube(
            file,
            variable=f"observation_data/rhot_{part}",
            axis_order="byx",
            known={"wavelengths": centres, "fwhm": _widths(centres), **own},
        )
        for part, centres in zip(_PARTS, lists, strict=True)
    ]
    sizes = {cube.shape[1:] for cube in cubes}
    if len(sizes) > 1:
        raise SceneError(
            f"{file.source}: its cubes have {sorted(sizes)} pixels.",
            "The file is damaged; variable=... opens one of them.",
        )
    counts = [cube.sizes["band"] for cube in cubes]
    centres = np.concatenate(lists)
    order, good = joined(centres, np.repeat(np.arange(len(counts)), counts))
    dtype = np.result_type(*(cube.dtype for cube in cubes))
    shape = check_shape((sum(counts), *sizes.pop()), file.source)
    reads = [Values(cube) for cube in cubes]
    facts: dict[str, Any] = {
        "wavelengths": centres[order],
        "fwhm": _widths(centres)[order],
        "good_band": good[order],
        "unit": "reflectance",
        "scale": cubes[0].attrs["scale"],
        "nodata": cubes[0].attrs["nodata"],
        **known,
    }
    cube = LazyCube(shape, dtype, Joined(reads, counts, order, dtype))
    return make_scene(cube, source=file.source, **facts)


def _read(file: Hdf5File, name: str) -> npt.NDArray[np.float64]:
    info = arrays.find_array(file, name)
    arrays.check_memory(info.nbytes, f"{file.source}: {info}")
    return np.asarray(file.read(name), dtype=np.float64).reshape(-1)


def _widths(centres: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Band widths, NaN where a band is not one of the instrument's."""
    table = np.array(list(_SWIR))
    index = np.abs(centres[:, None] - table).argmin(axis=1)
    near = np.abs(centres - table[index]) <= _SAME
    widths = np.where(near, np.array(list(_SWIR.values()), dtype=np.float64)[index], np.nan)
    return np.where(centres < _NARROW_END, _NARROW, widths)
