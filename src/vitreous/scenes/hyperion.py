"""EO-1 Hyperion, Level 1T: one GeoTIFF per band, B001 to B242.

Format: USGS, EO-1 Hyperion Level 1Gst / 1T product: radiance in W / (m² sr µm) = count / 40 in VNIR (bands 1 to 70)
and count / 80 in SWIR (71 to 242), unless ``*_MTL_L1T.TXT`` says other factors; 0 is no measurement. Only bands 8 to 57
and 77 to 224 are calibrated. Level 1R is HDF4, which is not read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from vitreous.errors import SceneError
from vitreous.scenes import geotiff
from vitreous.scenes.cube import make_scene
from vitreous.scenes.metadata_files import damaged, members, read_text
from vitreous.scenes.sensors import sensors
from vitreous.scenes.stacks import stacked
from vitreous.scenes.values import converted
from vitreous.scenes.wavelengths import joined

_BAND_FILE = re.compile(r"(?P<scene>EO1H\w+?)_B(?P<band>\d{3})_L1(?:T|GST)\.tiff?", re.I)
_FACTOR = re.compile(r"^\s*SCALING_FACTOR_(VNIR|SWIR)\s*=\s*(\S+)\s*$", re.M)
_FACTORS = {"VNIR": 40.0, "SWIR": 80.0}
_LAST_VNIR = 70
_CALIBRATED = {*range(8, 58), *range(77, 225)}


class _File(NamedTuple):
    path: Path
    scene: str
    band: int


def open(path: Path, **known: Any) -> xr.DataArray:
    """Open a Hyperion scene lazily, bands by wavelength; those that are not calibrated are marked as not good.

    Args:
        path: the product's folder.
        **known: arguments of :func:`make_scene` that win over what the product says.

    Raises:
        SceneError: several scenes, or damaged metadata.
    """
    return open_files(members(path, band_of), path, known)


def open_files(files: Sequence[_File], path: Path, known: Mapping[str, Any]) -> xr.DataArray:
    """Open some bands of one scene.

    Args:
        files: the bands.
        path: what the user asked for, for messages.
        known: arguments of :func:`make_scene`.

    Raises:
        SceneError: they are of several scenes, or the metadata are damaged.
    """
    scenes = sorted({file.scene.upper() for file in files})
    if len(scenes) > 1:
        raise SceneError(
            f"{path} holds {len(scenes)} Hyperion scenes: {', '.join(scenes[:4])}.",
            "Name the bands of one: " + scenes[0] + "_B*_L1T.TIF.",
        )
    table = sensors()["hyperion"].bands
    numbers = np.array([file.band for file in files])
    order, good = joined(
        np.array([table[band - 1].centre for band in numbers]),
        (numbers > _LAST_VNIR).astype(np.int64),
        np.isin(numbers, list(_CALIBRATED)),
    )
    files, numbers = [files[k] for k in order], numbers[order]
    cube, grid = stacked([geotiff.open(file.path) for file in files], str(path))
    factors = _factors(files[0])
    scales = np.where(numbers <= _LAST_VNIR, 1 / factors["VNIR"], 1 / factors["SWIR"])
    if "scale" in known:
        scales = np.full(len(files), float(known["scale"]))
    nodata = known.get("nodata", 0)
    facts: dict[str, Any] = {
        "wavelengths": [table[band - 1].centre for band in numbers],
        "fwhm": [table[band - 1].fwhm for band in numbers],
        "band_names": [table[band - 1].name for band in numbers],
        "good_band": good[order],
        "unit": "radiance",
        "scale": float(scales[0]),
        "nodata": nodata,
        "crs": grid.crs,
        "transform": grid.transform,
        **known,
    }
    if (scales != scales[0]).any():
        cube = converted(cube, scales=scales, nodata=() if nodata is None else (float(nodata),))
        facts |= {"scale": 1.0, "nodata": float("nan")}
    return make_scene(cube, source=str(path), **facts)


def band_of(path: Path) -> _File | None:
    """Return what a file's name says, None where it is no band of Hyperion."""
    match = _BAND_FILE.fullmatch(path.name)
    if match is None or not 1 <= int(match["band"]) <= len(sensors()["hyperion"].bands):
        return None
    return _File(path, match["scene"], int(match["band"]))


def is_product(path: Path) -> bool:
    """Return whether a folder holds bands of Hyperion."""
    return path.is_dir() and bool(members(path, band_of))


def _factors(file: _File) -> dict[str, float]:
    for path in sorted(file.path.absolute().parent.iterdir()):
        if re.fullmatch(rf"{re.escape(file.scene)}_MTL_L1\w+\.txt", path.name, re.I):
            try:
                said = {name: float(value) for name, value in _FACTOR.findall(read_text(path))}
            except ValueError as error:
                raise damaged(path) from error
            if not all(np.isfinite(value) and value > 0 for value in said.values()):
                raise damaged(path)
            return {**_FACTORS, **said}
    return _FACTORS
