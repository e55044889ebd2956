"""Sentinel-1: images of one polarisation each, of a GRD product or radiometrically terrain corrected (RTC).

Format: ESA, Sentinel-1 Product Specification: ``measurement/s1a-iw-grd-vv-*.tiff`` (amplitude as counts, 0 = no
measurement), on the radar's grid. RTC products (ASF and others) name their files ``*_VV.tif`` and ``*_VH.tif``, and lie on a map
grid. Values stay what the files hold; radar has no wavelengths in this sense, so bands have names only.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from vitreous.errors import SceneError
from vitreous.scenes import geotiff
from vitreous.scenes.cube import make_scene
from vitreous.scenes.stacks import stacked
from vitreous.scenes.values import converted

_ORDER = ("VV", "VH", "HH", "HV")
_FILE = re.compile(r"(?:.*[-_])?(?P<polarisation>VV|VH|HH|HV)(?P<rest>[-_.].*)?\.tiff?", re.I)
_GRD = re.compile(r"s1[a-d]-\w+-grd-.*", re.I)


def open(path: Path, **known: Any) -> xr.DataArray:
    """Open the polarisations of a Sentinel-1 product as the bands of a scene.

    Args:
        path: the folder of a product (``*.SAFE``), or one that holds its images.
        **known: arguments of :func:`make_scene` that win over what the product says.

    Raises:
        SceneError: a polarisation is there several times.
    """
    found = _images(path)
    twice = [name for name, files in found.items() if len(files) > 1]
    if twice:
        raise SceneError(
            f"{path} holds {len(found[twice[0]])} images of {twice[0]}.",
            'Name the images of one: --scene "NAME_{VV,VH}.tif".',
        )
    files = {name: found[name][0] for name in _ORDER if name in found}
    images = [geotiff.open(file) for file in files.values()]
    cube, grid = stacked(images, str(path))
    grd = all(_GRD.match(file.name) for file in files.values())
    said = {image.attrs["nodata"] for image in images}
    facts: dict[str, Any] = {
        "band_names": list(files),
        "nodata": 0 if grd else said.pop() if len(said) == 1 else None,
        "crs": grid.crs,
        "transform": grid.transform,
        **known,
    }
    if not grd and said:
        own = np.array([np.nan if (v := i.attrs["nodata"]) is None else v for i in images])
        cube = converted(cube, nodata_of=own)
        facts["nodata"] = float("nan")
    return make_scene(cube, source=str(path), **facts)


def is_product(path: Path) -> bool:
    """Return whether a folder holds images of two polarisations."""
    return path.is_dir() and len(_images(path)) > 1


def _images(folder: Path) -> dict[str, list[Path]]:
    """Images by polarisation: of a GRD product its measurements, else those whose names begin alike."""
    measured = folder / "measurement"
    files = sorted((measured if measured.is_dir() else folder).iterdir())
    found: dict[str, list[Path]] = {}
    for file in files:
        match = _FILE.fullmatch(file.name)
        if match is not None:
            found.setdefault(match["polarisation"].upper(), []).append(file)
    return found
