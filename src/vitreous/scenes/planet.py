"""PlanetScope scenes: four or eight bands in one GeoTIFF, and what their counts mean.

Format: Planet, PlanetScope product specification. Counts of surface reflectance (``_SR``) are reflectance x 10000;
other analytic images hold radiance x 100 in W / (m² sr µm), for which the product's ``_metadata.xml`` gives a
``reflectanceCoefficient`` per band (reflectance at the top of the atmosphere = count x coefficient). 0 is no
measurement. ``mask=udm2`` hides what the usable data mask does not call clear.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.errors import SceneError
from vitreous.scenes import geotiff
from vitreous.scenes.cube import LazyCube, georeference, make_scene
from vitreous.scenes.metadata_files import damaged, read_json, read_xml
from vitreous.scenes.sensors import sensors
from vitreous.scenes.stacks import Values
from vitreous.scenes.values import converted

_IMAGE = re.compile(
    r"(?P<item>\d{8}_\d{6}_.*?_?[13]B)_AnalyticMS(?P<surface>_SR)?(?:_8b)?(?:_harmonized)?(?:_clip)?"
    r"(?:_file_format)?\.tiff?",
    re.I,
)
_SURFACE, _RADIANCE = 1e-4, 0.01
_OLD = {"PS2", "PS2.SD"}


def open(path: Path, **known: Any) -> xr.DataArray:
    """Open a PlanetScope scene lazily.

    Args:
        path: the image, or a folder with one.
        **known: arguments of :func:`make_scene` that win over what the product says.

    Raises:
        SceneError: no image, several, one with another number of bands, or damaged metadata.
    """
    file = _image(path)
    match = _IMAGE.fullmatch(file.name)
    surface = bool(match and match["surface"])
    given = {"nodata": 0, **{name: v for name, v in known.items() if name == "nodata"}}
    image = geotiff.open(file, **given)
    count = image.sizes["band"]
    if count not in {4, 8}:
        raise SceneError(
            f"{file} has {count} bands; PlanetScope images have 4 or 8.",
            "Rename the file to open it as any GeoTIFF.",
        )
    crs, transform = georeference(image)
    facts: dict[str, Any] = {
        **_bands(file, count),
        "unit": "reflectance",
        "scale": _SURFACE,
        "nodata": image.attrs["nodata"],
        "crs": crs,
        "transform": transform,
    }
    cube = LazyCube(image.shape, image.dtype, Values(image))
    coefficients = None if surface else _coefficients(file, count)
    if not surface and coefficients is None:
        facts |= {"unit": "radiance", "scale": _RADIANCE}
    elif coefficients is not None and "scale" not in known:
        kept = () if facts["nodata"] is None else (float(facts["nodata"]),)
        cube = converted(cube, scales=coefficients, nodata=kept)
        known = {**known, "nodata": float("nan")}
        facts["scale"] = 1.0
    return make_scene(cube, source=str(path), **{**facts, **known})


def is_product(path: Path) -> bool:
    """Return whether a file is an analytic image of PlanetScope by its name, or a folder holds one."""
    if path.is_dir():
        return any(_IMAGE.fullmatch(file.name) for file in path.iterdir())
    return _IMAGE.fullmatch(path.name) is not None


def _image(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = sorted(file for file in path.iterdir() if _IMAGE.fullmatch(file.name))
    if len(found) != 1:
        names = ", ".join(file.name for file in found[:4])
        raise SceneError(f"{path} holds {len(found)} images: {names}.", "Open one of them.")
    return found[0]


def _bands(file: Path, count: int) -> dict[str, Any]:
    """Names, centres and widths; four bands are those of the instrument that the metadata name."""
    table = sensors()["superdove"].facts()
    if count == 8:
        return table
    instrument = _instrument(file)
    if not instrument:
        warnings.warn(
            f"{file} has no metadata that say whether a Dove or a SuperDove measured it; its bands are treated as those of"
            " a Dove (if not, set sensor=superdove:blue,green,red,nir).",
            stacklevel=4,
        )
    if not instrument or instrument in _OLD:
        return sensors()["planetscope"].facts()
    index = [table["band_names"].index(name) for name in ("blue", "green", "red", "nir")]
    return {name: [column[k] for k in index] for name, column in table.items()}


def _instrument(file: Path) -> str:
    """``PSB.SD`` for SuperDove, ``PS2`` for Dove, nothing where no metadata say it."""
    for path in _beside(file, "json"):
        content = read_json(path)
        properties = content.get("properties", content) if isinstance(content, dict) else {}
        if isinstance(properties, dict) and "instrument" in properties:
            return str(properties["instrument"])
    for path in _beside(file, "xml"):
        for element in read_xml(path).iter("Instrument"):
            return str(element.findtext("shortName") or "").strip()
    return ""


def _coefficients(file: Path, count: int) -> npt.NDArray[np.float64] | None:
    """Reflectance per count of each band; None without metadata."""
    for path in _beside(file, "xml"):
        found: dict[int, float] = {}
        try:
            for band in read_xml(path).iter("bandSpecificMetadata"):
                text = band.findtext("reflectanceCoefficient")
                if text:
                    found[int(band.findtext("bandNumber") or "")] = float(text)
        except ValueError as error:
            raise damaged(path) from error
        if sorted(found) != list(range(1, count + 1)):
            raise SceneError(
                f"{path} gives {len(found)} reflectance coefficients for {count} bands.",
                "Download it again, or move it away: the image opens as radiance then.",
            )
        values = np.array([found[k] for k in range(1, count + 1)])
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise damaged(path)
        return values
    return None


def _item(file: Path) -> str:
    match = _IMAGE.fullmatch(file.name)
    return match["item"] if match else ""


def _beside(file: Path, ending: str) -> Sequence[Path]:
    """Metadata files of the same item."""
    item = re.sub("_[13]B$", "", _item(file), flags=re.I).lower()
    return [
        path
        for path in sorted(file.absolute().parent.iterdir())
        if path.name.lower().startswith(item)
        and re.search(rf"_metadata(_clip)?\.{ending}$", path.name, re.I)
    ]
