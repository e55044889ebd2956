"""Landsat Collection 2, Level 1 and Level 2: one GeoTIFF per band, and the MTL file that says what counts mean.

Format: USGS, Landsat 8-9 Collection 2 Level 2 Science Product Guide and Landsat Collection 2 Level 1 Data Format
Control Book: 0 is fill; surface reflectance = count x 2.75e-5 - 0.2; reflectance at the top of the atmosphere =
(count x ``REFLECTANCE_MULT`` + ``REFLECTANCE_ADD``) / sin(``SUN_ELEVATION``). The MTL file exists as text, JSON and XML.

A scene has the bands of reflected light on the 30 m grid (Level 1: 60 m for MSS). The panchromatic band, the thermal
bands and quality images are no part of it; ``mask=qa`` hides clouds by QA_PIXEL.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import xarray as xr

from vitreous.errors import SceneError
from vitreous.scenes import geotiff
from vitreous.scenes.cube import make_scene
from vitreous.scenes.metadata_files import damaged, members, read_json, read_text, read_xml
from vitreous.scenes.sensors import SensorBand, sensors
from vitreous.scenes.stacks import stacked
from vitreous.scenes.values import converted

# By the letter and the number of a product's name: LT04 and LT05 are the Thematic Mapper.
_SENSORS = {"T04": "landsat4", "T05": "landsat5", "E07": "landsat7"}
_SENSORS |= {f"{letter}08": "landsat8" for letter in "CO"}
_SENSORS |= {f"{letter}09": "landsat9" for letter in "CO"}
_SENSORS |= {
    f"M0{number}": "landsat1_mss" if number < 4 else "landsat4_mss" for number in range(1, 6)
}
SURFACE = (2.75e-5, -0.2)  # scale and offset of surface reflectance, the same for all Landsats

_BAND_FILE = re.compile(
    r"(?P<scene>L(?P<sensor>[COTEM])(?P<number>0\d)_L(?P<level>[12])\w\w_\d{6}_\d{8}_\d{8}_\d\d_\w\w)"
    r"_(?P<surface>SR_)?(?P<band>B\d)\.tiff?",
    re.I,
)
_MTL = re.compile(r"(?P<scene>L[COTEM]0\d_.*)_MTL\.(txt|json|xml)", re.I)
_LINE = re.compile(r"\s*(\w+)\s*=\s*(.*?)\s*$")

Facts = dict[tuple[str, str], str]  # (group, key) to value


class _File(NamedTuple):
    path: Path
    scene: str
    level: int
    band: SensorBand


def open(path: Path, **known: Any) -> xr.DataArray:
    """Open a Landsat scene lazily, bands in the order of the instrument.

    Args:
        path: the product's folder, or its MTL file.
        **known: arguments of :func:`make_scene` that win over what the product says.

    Raises:
        SceneError: no bands, several scenes, or damaged metadata.
    """
    folder = path if path.is_dir() else path.parent
    files = find_bands(folder)
    match = _MTL.fullmatch(path.name)
    if match is not None:
        files = [file for file in files if file.scene.lower() == match["scene"].lower()]
    if not files:
        raise SceneError(
            f"{path} has no Landsat bands beside it.",
            "Their names end in _SR_B2.TIF (Level 2) or _B2.TIF (Level 1).",
        )
    return open_files(files, path, known)


def open_files(files: Sequence[_File], path: Path, known: Mapping[str, Any]) -> xr.DataArray:
    """Open some bands of one scene.

    Args:
        files: the bands.
        path: what the user asked for, for messages.
        known: arguments of :func:`make_scene`.

    Raises:
        SceneError: they are of several scenes, or the metadata are damaged.
    """
    scenes = sorted({file.scene for file in files})
    if len(scenes) > 1:
        raise SceneError(
            f"{path} holds {len(scenes)} Landsat scenes: {', '.join(scenes[:4])}.",
            "Open the MTL file of the one you want.",
        )
    images = [geotiff.open(file.path) for file in files]
    cube, grid = stacked(images, str(path))
    facts: dict[str, Any] = {
        "wavelengths": [file.band.centre for file in files],
        "fwhm": [file.band.fwhm for file in files],
        "band_names": [file.band.name for file in files],
        "nodata": 0,
        "crs": grid.crs,
        "transform": grid.transform,
    }
    coefficients = _coefficients(files, path)
    if coefficients is None:
        return make_scene(cube, source=str(path), **{**facts, **known})
    facts["unit"] = "reflectance"
    scales, offsets = (np.array(column) for column in zip(*coefficients, strict=True))
    if "scale" in known:
        scales = np.full(len(files), float(known["scale"]))
    fill = known.get("nodata", 0)
    cube = converted(
        cube,
        scales=scales,
        offsets=offsets,
        nodata_of=np.full(len(files), np.nan if fill is None else float(fill)),
    )
    return make_scene(
        cube, source=str(path), **{**facts, **known, "scale": 1.0, "nodata": math.nan}
    )


def find_bands(folder: Path) -> list[_File]:
    """Return the bands of reflected light in a folder, in the order of the instrument, all scenes."""
    return sorted(members(folder, band_of), key=lambda file: (file.scene, file.band.name))


def band_of(path: Path) -> _File | None:
    """Return what a file's name says, None where it is no band of reflected light."""
    match = _BAND_FILE.fullmatch(path.name)
    if match is None or (match["level"] == "2") != bool(match["surface"]):
        return None
    named = _SENSORS.get(match["sensor"].upper() + match["number"])
    bands = {band.name: band for band in sensors()[named].bands} if named else {}
    band = bands.get(match["band"].upper())
    return band and _File(path, match["scene"], int(match["level"]), band)


def is_product(path: Path) -> bool:
    """Return whether a folder holds bands of Landsat, or a file is called as its metadata are."""
    return bool(find_bands(path)) if path.is_dir() else _MTL.fullmatch(path.name) is not None


def _coefficients(files: Sequence[_File], path: Path) -> list[tuple[float, float]] | None:
    """Scale and offset of each band; None, with a warning, where the counts cannot be converted."""
    mtl = _metadata_file(files[0])
    if mtl is None and files[0].level == 2:
        return [SURFACE] * len(files)
    if mtl is None:
        warnings.warn(
            f"{path} has no MTL file, which says how counts become reflectance; it is opened as counts.",
            stacklevel=4,
        )
        return None
    facts = _read_mtl(mtl)
    group = (
        "LEVEL2_SURFACE_REFLECTANCE_PARAMETERS"
        if files[0].level == 2
        else "LEVEL1_RADIOMETRIC_RESCALING"
    )
    try:
        # At the top of the atmosphere the stored reflectance is that of a sun in the zenith.
        sun = (
            1.0
            if files[0].level == 2
            else math.sin(math.radians(float(facts["IMAGE_ATTRIBUTES", "SUN_ELEVATION"])))
        )
        found = []
        for file in files:
            scale, offset = (
                float(facts[group, f"REFLECTANCE_{kind}_BAND_{file.band.name[1:]}"])
                for kind in ("MULT", "ADD")
            )
            found.append((scale / sun, offset / sun))
    except KeyError as error:
        raise SceneError(
            f"{mtl} does not say {error.args[0][1]} in {error.args[0][0]}.",
            "Download it again; only Collection 2 is read.",
        ) from error
    except (ValueError, ZeroDivisionError) as error:
        raise damaged(mtl) from error
    if not all(math.isfinite(offset) and scale > 0 for scale, offset in found):
        raise SceneError(f"{mtl} has an impossible scale or sun elevation.", "Download it again.")
    return found


def _metadata_file(file: _File) -> Path | None:
    for ending in ("txt", "json", "xml"):
        for name in (f"{file.scene}_MTL.{ending}", f"{file.scene}_MTL.{ending.upper()}"):
            if (file.path.parent / name).is_file():
                return file.path.parent / name
    return None


def _read_mtl(path: Path) -> Facts:
    """Values by group and key: keys such as REFLECTANCE_MULT_BAND_1 occur in several groups."""
    kind = path.suffix.lower()
    if kind == ".json":
        tree = read_json(path)
        if not isinstance(tree, dict):
            raise damaged(path)
        return dict(_of_json(tree))
    if kind == ".xml":
        return dict(_of_xml(read_xml(path)))
    facts, groups = {}, [""]
    for line in read_text(path).splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        key, value = match[1], match[2].strip('"')
        if key == "GROUP":
            groups.append(value)
        elif key == "END_GROUP":
            groups = groups[:-1] or [""]
        else:
            facts[groups[-1], key] = value
    return facts


def _of_json(
    tree: Mapping[str, Any], group: str = "", depth: int = 0
) -> Iterator[tuple[tuple[str, str], str]]:
    for key, value in tree.items():
        if isinstance(value, dict) and depth < 8:
            yield from _of_json(value, key, depth + 1)
        else:
            yield (group, key), str(value)


def _of_xml(root: ElementTree.Element) -> Iterator[tuple[tuple[str, str], str]]:
    for group in root.iter():
        for item in group:
            if len(item) == 0:
                yield (group.tag, item.tag), (item.text or "").strip()
