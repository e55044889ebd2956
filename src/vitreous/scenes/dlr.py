"""EnMAP (Level 1C, 2A) and DESIS (Level 1C, 2A): an image and a METADATA.XML that says what its bands are.

Formats: DLR, EnMAP Product Specification Document (EN-PCV-ICD-2009-2): ``bandCharacterisation/bandID`` with
``wavelengthCenterOfBand``, ``FWHMOfBand`` (nm), ``GainOfBand`` and ``OffsetOfBand``; DLR, DESIS data products and
``bandCharacterisation/band`` with ``wavelengthCenterOfBand``, ``wavelengthWidthOfBand``, ``gainOfBand`` and
``offsetOfBand``. Value = count x gain + offset: radiance in W / (m² sr nm) or its DESIS unit in Level 1C, reflectance
in Level 2A. ``backgroundValue`` means no measurement. EnMAP's images hold the bands of VNIR before those of SWIR.
"""

from __future__ import annotations

import math
import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.errors import SceneError
from vitreous.scenes.cube import LazyCube, georeference, make_scene
from vitreous.scenes.metadata_files import damaged, read_xml
from vitreous.scenes.stacks import Picked
from vitreous.scenes.values import converted
from vitreous.scenes.wavelengths import joined

_PRODUCT = r"(?:ENMAP\d\d-.*?|DESIS-HSI-.*?)"
_METADATA = re.compile(rf"({_PRODUCT})-?METADATA\.XML", re.I)
_IMAGE = re.compile(rf"({_PRODUCT})-?SPECTRAL_IMAGE\.(?:TIFF?|BSQ|BIL|BIP)", re.I)
_HALF = re.compile(rf"{_PRODUCT}-?SPECTRAL_IMAGE_(?:VNIR|SWIR)\.\w+", re.I)
_LEVEL = re.compile(r"L(1B|1C|2A)[-_]", re.I)
_TAGS = {  # EnMAP's, DESIS's
    "centre": ("wavelengthCenterOfBand",),
    "width": ("FWHMOfBand", "wavelengthWidthOfBand"),
    "gain": ("GainOfBand", "gainOfBand"),
    "offset": ("OffsetOfBand", "offsetOfBand"),
}
_REFLECTANCE = 1e-4  # per count of Level 2A


class _Bands(NamedTuple):
    """Columns of the table of bands."""

    centre: npt.NDArray[np.float64]
    width: npt.NDArray[np.float64]
    gain: npt.NDArray[np.float64]
    offset: npt.NDArray[np.float64]


def open(path: Path, **known: Any) -> xr.DataArray:
    """Open an EnMAP or DESIS product lazily, bands by wavelength.

    Where EnMAP's spectrometers overlap, each keeps its half and the other's bands are marked as not good.

    Args:
        path: the product's folder, its METADATA.XML or its spectral image.
        **known: arguments of :func:`make_scene` that win over what the product says.

    Raises:
        SceneError: a part of the product is missing or damaged.
    """
    from vitreous.scenes.formats import find_reader

    metadata, file = _parts(path)
    root = read_xml(metadata)
    bands = _bands(root, metadata)
    image: xr.DataArray = find_reader(file, products=False).open(
        file, **{name: value for name, value in known.items() if name == "nodata"}
    )
    if image.sizes["band"] != bands.centre.size:
        raise SceneError(
            f"{file} has {image.sizes['band']} bands, {metadata.name} describes {bands.centre.size}.",
            "They belong to different products; download the product again.",
        )
    detector = np.cumsum(np.diff(bands.centre, prepend=bands.centre[0]) < 0)
    order, good = joined(bands.centre, np.minimum(detector, 1))
    unit, scales, offsets = _values(root, metadata, bands)
    nodata = image.attrs["nodata"]
    if nodata is None and "nodata" not in known:
        nodata = _background(root)
    crs, transform = georeference(image)
    facts: dict[str, Any] = {
        "wavelengths": bands.centre[order],
        "fwhm": bands.width[order],
        "good_band": good[order],
        "band_names": [f"band {k + 1}" for k in order],
        "unit": unit,
        "nodata": nodata,
        "crs": crs,
        "transform": transform,
        **known,
    }
    cube = LazyCube(image.shape, image.dtype, Picked(image.variable, order))
    if "scale" in known:
        scales, offsets = np.full(order.size, float(known["scale"])), np.zeros(order.size)
    facts["scale"] = float(scales[0])
    if offsets.any() or (scales != scales[0]).any():
        kept = () if facts["nodata"] is None else (float(facts["nodata"]),)
        cube = converted(cube, scales=scales[order], offsets=offsets[order], nodata=kept)
        facts |= {"scale": 1.0, "nodata": math.nan}
    return make_scene(cube, source=str(path), **facts)


def is_product(path: Path) -> bool:
    """Return whether a folder or file is an EnMAP or DESIS product."""
    if not path.is_dir():
        if _IMAGE.fullmatch(path.name):
            return _beside(path, _METADATA) is not None
        return _METADATA.fullmatch(path.name) is not None
    return any(_METADATA.fullmatch(file.name) for file in path.iterdir())


def _parts(path: Path) -> tuple[Path, Path]:
    """The metadata and the image."""
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if _METADATA.fullmatch(file.name))
        if len(found) > 1:
            raise SceneError(
                f"{path} holds {len(found)} products.", "Open the METADATA.XML of one of them."
            )
        path = found[0]
    if _IMAGE.fullmatch(path.name):
        metadata = _beside(path, _METADATA)
        if metadata is None:
            raise SceneError(
                f"{path} has no METADATA.XML beside it.", "Download the whole product."
            )
        return metadata, path
    image = _beside(path, _IMAGE)
    if image is not None:
        return path, image
    if any(_HALF.fullmatch(file.name) for file in path.parent.iterdir()):
        raise SceneError(
            f"{path.parent} is a Level 1B product, whose spectrometers have a grid each.",
            "Open Level 1C or 2A, or one of the two images.",
        )
    raise SceneError(
        f"{path} has no spectral image beside it.", "Its name ends in -SPECTRAL_IMAGE.TIF."
    )


def _beside(path: Path, pattern: re.Pattern[str]) -> Path | None:
    """The other part of the product that ``path`` belongs to."""
    own = _METADATA.fullmatch(path.name) or _IMAGE.fullmatch(path.name)
    for file in sorted(path.absolute().parent.iterdir()):
        match = pattern.fullmatch(file.name)
        if own is not None and match is not None and match[1].lower() == own[1].lower():
            return file
    return None


def _bands(root: ElementTree.Element, path: Path) -> _Bands:
    table = root.find(".//bandCharacterisation")
    # DESIS has elements "band" elsewhere too.
    rows = (
        [] if table is None else [row for row in table if row.find(_TAGS["centre"][0]) is not None]
    )
    if not rows:
        raise SceneError(f"{path} describes no bands.", "Download the product again.")
    try:
        columns = [
            np.array([_number(row, tags, 0.0 if key == "offset" else None) for row in rows])
            for key, tags in _TAGS.items()
        ]
    except (TypeError, ValueError) as error:
        raise damaged(path) from error
    if not all(np.isfinite(column).all() for column in columns) or (columns[2] <= 0).any():
        raise damaged(path)
    return _Bands(*columns)


def _number(row: ElementTree.Element, tags: tuple[str, ...], default: float | None) -> float:
    text = next((found for tag in tags if (found := row.findtext(tag))), None)
    if text is None and default is not None:
        return default
    return float(text or "")


def _values(
    root: ElementTree.Element, path: Path, bands: _Bands
) -> tuple[str, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Unit, scale and offset of each band."""
    match = _LEVEL.search(path.name) or _LEVEL.search(f"L{root.findtext('.//level') or ''}-")
    level = match[1].upper() if match else ""
    if level != "2A":
        return "radiance", bands.gain, bands.offset
    if (bands.gain == bands.gain[0]).all() and not bands.offset.any():
        return "reflectance", bands.gain, bands.offset
    warnings.warn(
        f"{path.name} gives a scale of its own for each band of reflectance; {_REFLECTANCE:g} is used"
        " (if that is wrong, set scale=...).",
        stacklevel=4,
    )
    return "reflectance", np.full_like(bands.gain, _REFLECTANCE), np.zeros_like(bands.offset)


def _background(root: ElementTree.Element) -> float | None:
    text = root.findtext(".//backgroundValue")
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
