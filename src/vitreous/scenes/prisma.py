"""PRISMA, Level 1 and Level 2 (B, C, D): two cubes of one HDF5 file, joined and sorted by wavelength.

Format: ASI, PRISMA Products Specification Document (issue 2.3). In the swath ``PRS_L1_HCO`` or ``PRS_L2?_HCO`` lie
``VNIR_Cube`` and ``SWIR_Cube`` (rows, bands, columns; uint16, 0 = no measurement). Global attributes give band centres
and widths in nm (``List_Cw_Vnir``, ``List_Fwhm_Vnir``, 0 for bands that are not used, ``List_Cw_Vnir_Flags``) and
what counts mean: Level 1 radiance = count / ``ScaleFactor_Vnir`` - ``Offset_Vnir``; Level 2 = ``L2ScaleVnirMin`` +
count x (``L2ScaleVnirMax`` - ``L2ScaleVnirMin``) / 65535. Level 2B is radiance, 2C and 2D are reflectance. Only
Level 2D lies on a map grid; its corners are centres of pixels, unless they fit the pixels' edges.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.errors import SceneError
from vitreous.scenes import arrays
from vitreous.scenes.attributes import find, number, numbers
from vitreous.scenes.axes import Axes
from vitreous.scenes.cube import LazyCube, check_shape, make_scene
from vitreous.scenes.hdf5 import Hdf5File
from vitreous.scenes.stacks import Joined
from vitreous.scenes.values import converted
from vitreous.scenes.wavelengths import joined

_AXES: Axes = (1, 0, 2)
_PARTS = ("Vnir", "Swir")
_SIDE = 30.0  # m
_FULL = 65535  # the count that stands for the largest value


def is_product(file: Hdf5File) -> bool:
    """Return whether an HDF5 file holds PRISMA's cubes and their band centres."""
    names = {key.lower() for key in file.attrs}
    cubes = _cubes(file)
    return (
        len(cubes) == 2 and {"list_cw_vnir", "list_cw_swir"} <= names and _level(file) is not None
    )


def open_product(file: Hdf5File, known: Mapping[str, Any]) -> xr.DataArray:
    """Open a PRISMA file lazily: bands of both spectrometers by wavelength.

    Where the spectrometers overlap, each keeps its half and the other's bands are marked as not good.

    Args:
        file: the file.
        known: arguments of :func:`make_scene` that win over what it says.

    Raises:
        SceneError: the cubes differ in size, or their metadata are damaged.
    """
    cubes = _cubes(file)
    sizes = [(info.shape[0], info.shape[2]) for info in cubes]
    if sizes[0] != sizes[1]:
        raise SceneError(
            f"{file.source}: VNIR has {sizes[0]} pixels, SWIR {sizes[1]}.",
            "The file is damaged; variable=... opens one of them.",
        )
    counts = [info.shape[1] for info in cubes]
    centres, widths, used = (
        np.concatenate([reading(file, part, n) for part, n in zip(_PARTS, counts, strict=True)])
        for reading in (_centres, _widths, _flags)
    )
    order, good = joined(centres, np.repeat([0, 1], counts))
    level = _level(file)
    scales, offsets = _coefficients(file, level, counts)
    shape = check_shape((sum(counts), *sizes[0]), file.source)
    cube = LazyCube(
        shape,
        cubes[0].dtype,
        Joined(
            [arrays.WindowReader(file, info, _AXES) for info in cubes],
            counts,
            order,
            cubes[0].dtype,
        ),
    )
    facts: dict[str, Any] = {
        "wavelengths": centres[order],
        "good_band": (good & used & (centres > 0))[order],
        "unit": "reflectance" if level in {"2C", "2D"} else "radiance",
        "band_names": _band_names(counts, order),
    }
    if (widths > 0).any():
        facts["fwhm"] = widths[order]
    if level == "2D":
        facts |= _place(file, sizes[0])
    facts |= known
    if "scale" in known:
        scales, offsets = np.full(len(order), float(known["scale"])), np.zeros(len(order))
    nodata = known.get("nodata", 0)
    values = _converted(cube, scales[order], offsets[order], nodata)
    return make_scene(values[0], source=file.source, **{**facts, **values[1]})


def _converted(
    cube: LazyCube, scales: npt.NDArray[Any], offsets: npt.NDArray[Any], nodata: float | None
) -> tuple[LazyCube, dict[str, Any]]:
    if (scales == scales[0]).all() and not offsets.any():
        return cube, {"scale": float(scales[0]), "nodata": nodata}
    missing = () if nodata is None else (float(nodata),)
    return converted(cube, scales=scales, offsets=offsets, nodata=missing), {
        "scale": 1.0,
        "nodata": math.nan,
    }


def _cubes(file: Hdf5File) -> list[arrays.ArrayInfo]:
    """The cubes of VNIR and SWIR, in this order."""
    found = []
    for name in ("vnir_cube", "swir_cube"):
        found += [
            info
            for info in file.arrays
            if info.base_name == name and info.numeric and len(info.shape) == 3
        ][:1]
    return found


def _level(file: Hdf5File) -> str | None:
    """``1``, ``2B``, ``2C`` or ``2D``, as the swath is called; None where it is called otherwise."""
    groups = [part for info in _cubes(file) for part in info.name.split("/")]
    return next((g.split("_")[1][1:].upper() for g in groups if g.startswith("PRS_L")), None)


def _list(file: Hdf5File, name: str, count: int) -> npt.NDArray[np.float64] | None:
    values = numbers(find(file.attrs, name))
    if values is None:
        return None
    if len(values) != count:
        raise SceneError(
            f"{file.source}: {name} has {len(values)} values for {count} bands.",
            "The file is damaged; download it again.",
        )
    return np.array(values)


def _centres(file: Hdf5File, part: str, count: int) -> npt.NDArray[np.float64]:
    values = _list(file, f"List_Cw_{part}", count)
    if values is None:
        raise SceneError(f"{file.source} has no List_Cw_{part}.", "The file is damaged.")
    return values


def _widths(file: Hdf5File, part: str, count: int) -> npt.NDArray[np.float64]:
    values = _list(file, f"List_Fwhm_{part}", count)
    return np.zeros(count) if values is None else values


def _flags(file: Hdf5File, part: str, count: int) -> npt.NDArray[np.bool_]:
    values = _list(file, f"List_Cw_{part}_Flags", count)
    return np.ones(count, dtype=bool) if values is None else values != 0


def _coefficients(
    file: Hdf5File, level: str | None, counts: list[int]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Scale and offset of each band."""
    scales, offsets = [], []
    for part in _PARTS:
        if level == "1":
            factor = _number(file, f"ScaleFactor_{part}")
            scales.append(1 / factor if factor else math.inf)
            offsets.append(-_number(file, f"Offset_{part}", 0.0))
        else:
            low, high = (_number(file, f"L2Scale{part}{end}") for end in ("Min", "Max"))
            scales.append((high - low) / _FULL)
            offsets.append(low)
    if not all(math.isfinite(scale) and scale > 0 for scale in scales):
        raise SceneError(
            f"{file.source} has an impossible scale.", "The file is damaged; download it again."
        )
    return np.repeat(scales, counts), np.repeat(offsets, counts)


def _number(file: Hdf5File, name: str, default: float | None = None) -> float:
    value = number(find(file.attrs, name))
    if value is None:
        value = default
    if value is None or not math.isfinite(value):
        raise SceneError(
            f"{file.source} does not say {name}, without which its counts mean nothing.",
            "Download the file again; variable=... opens the counts of one cube.",
        )
    return value


def _band_names(counts: list[int], order: npt.NDArray[np.int64]) -> list[str]:
    names = [
        f"{part.upper()} {k + 1}" for part, n in zip(_PARTS, counts, strict=True) for k in range(n)
    ]
    return [names[k] for k in order]


def _place(file: Hdf5File, size: tuple[int, int]) -> dict[str, Any]:
    """CRS and transform of Level 2D."""
    from affine import Affine

    code = number(find(file.attrs, "Epsg_Code"))
    west, north, east, south = (
        number(find(file.attrs, f"Product_{corner}"))
        for corner in (
            "ULcorner_easting",
            "ULcorner_northing",
            "LRcorner_easting",
            "LRcorner_northing",
        )
    )
    if code is None or west is None or north is None:
        return {}
    half = _SIDE / 2
    if (
        east is not None
        and south is not None
        and (east - west, north - south) == (size[1] * _SIDE, size[0] * _SIDE)
    ):
        half = 0.0
    transform = Affine(_SIDE, 0, west - half, 0, -_SIDE, north + half)
    crs = arrays.epsg(code)
    return {"transform": transform} if crs is None else {"crs": crs, "transform": transform}
