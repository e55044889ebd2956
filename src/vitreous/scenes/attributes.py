"""What attributes say, whatever their spelling.

One value has many names: ``_FillValue``, ``missing_value``, ``Data_Ignore_Value``, ``data ignore value``. Capitals,
blanks and underscores never count. Here is the one list of names for each fact, and the one way to read a number.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

from vitreous.errors import SceneError

# In the order in which they are believed.
NODATA = (
    "nodata",
    "_FillValue",
    "missing_value",
    "data ignore value",
    "data ignore values",
    "nodata value",
    "nodata values",
    "no data",
    "no data value",
    "no data values",
    "no data flag",
    "fill_value",
    "fill values",
    "fill",
    "missing",
    "missing values",
    "missing data",
    "missing data value",
    "ignore value",
    "null value",
    "bad value",
    "bad data value",
    "invalid value",
    "invalid data value",
    "background value",
)
SCALES = ("scale_factor", "reflectance scale factor", "scale")
OFFSETS = ("add_offset", "offset", "intercept")
UNITS = ("units", "unit", "wavelength units", "wavelength unit")
CENTRES = {
    *(
        "wavelength",
        "wavelengths",
        "wavelength3d",
        "wl",
        "wls",
        "wvl",
        "wave",
        "lambda",
        "wavelengthvector",
    ),
    *("wavelengthnm", "wavelengthum", "wavelengthsnm", "wavelengthsum", "bandwavelengths"),
    *("bandcenter", "bandcenters", "bandcentre", "bandcentres", "centers", "centres"),
    *("centerwavelength", "centerwavelengths", "centrewavelength", "centrewavelengths"),
    *("centralwavelength", "centralwavelengths", "wavelengthcenters", "wavelengthcentres"),
}
WIDTHS = {"fwhm", "fwhms", "fwhmnm", "fwhmum", "bandwidth", "bandwidths", "bandfwhm"}
GOOD = {"goodband", "goodbands", "goodwavelength", "goodwavelengths", "bbl", "bandmask"}
_PRISMA = re.compile(r"list(cw|fwhm)(vnir|swir|pan)?")  # List_Cw_Vnir, List_Fwhm_Swir


class Stored(NamedTuple):
    """How stored values become physical ones.

    Attributes:
        scale: physical value = stored value x scale + offset; None where nothing is said.
        offset: 0 nearly always.
        nodata: the stored values that mean "no measurement", the first one first.
        limits: smallest and largest valid stored value, None where nothing is said.
    """

    scale: float | None
    offset: float
    nodata: tuple[float, ...]
    limits: tuple[float, float] | None


def key_of(name: str) -> str:
    """Return a name without capitals, blanks, underscores and the like."""
    return re.sub(r"[^a-z0-9]+", "", name.lower())


def find(attrs: Mapping[str, Any], *names: str) -> Any:
    """Return the value of the first of ``names`` that ``attrs`` has in any spelling; None where it has none."""
    by_key = {key_of(name): value for name, value in attrs.items()}
    return next(
        (by_key[key_of(name)] for name in names if by_key.get(key_of(name)) is not None), None
    )


def is_named(name: str, known: set[str]) -> bool:
    """True where a variable's or attribute's name, without its groups, is one of the known ones in any spelling."""
    key = key_of(name.rpartition("/")[2])
    match = _PRISMA.fullmatch(key)
    if match is not None:
        return known is (CENTRES if match[1] == "cw" else WIDTHS)
    return key in known


def number(value: Any) -> float | None:
    """Return a number in any of its disguises, None where it is none.

    Texts are numbers too, lists of one, and the base64 of eight bytes by which xarray keeps floats in Zarr 3.
    """
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is None or isinstance(value, list):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return _from_base64(value) if isinstance(value, str) else None


def number_of(name: str, value: Any) -> float:
    """Return the number that a hint gives, also as text.

    Raises:
        SceneError: it is not a number.
    """
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise SceneError(f"{name} is '{value}'.", "It must be a number.") from error


def flag_of(name: str, value: Any) -> bool | None:
    """Return yes or no that a hint gives, also as text; None where it gives nothing.

    Raises:
        SceneError: it is neither.
    """
    flags = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if value is not None and str(value).lower() not in flags:
        raise SceneError(f"{name} is '{value}'.", "Use true or false.")
    return None if value is None else flags[str(value).lower()]


def numbers(value: Any) -> list[float] | None:
    """Return a list of numbers, also from text such as ``{1, 2, 3}``; None where it is none."""
    if isinstance(value, str):
        value = [part for part in re.split(r"[,;\s]+", value.strip("{}[]() \n\t")) if part]
    if not isinstance(value, list) or not value:
        return None
    found = [number(item) for item in value]
    return (
        None
        if any(item is None for item in found)
        else [float(item) for item in found if item is not None]
    )


def stored(attrs: Mapping[str, Any]) -> Stored:
    """Return what attributes say about stored values: ours, those of CF and xarray, and those of products.

    ``scale_factor`` multiplies (CF), and so does ``slope``. Under any other spelling (NEON's ``Scale_Factor`` of 10000) a
    number above 1 is the divisor by which reflectance was made whole numbers. A ``gain`` counts beside an offset; alone it
    may be that of the detector.
    """
    offset = number(find(attrs, *OFFSETS))
    scale = number(attrs.get("scale", attrs.get("scale_factor", find(attrs, "slope"))))
    if scale is None and offset is not None:
        scale = number(find(attrs, "gain"))
    if scale is None:
        scale = divided(number(find(attrs, *SCALES)))
    offset = offset or 0.0
    return Stored(scale, offset, _nodata(attrs), _limits(attrs))


def divided(factor: float | None) -> float | None:
    """Return a reflectance scale factor as a multiplier: above 1 it is a divisor (10000)."""
    return 1 / factor if factor is not None and factor > 1 else factor


def _nodata(attrs: Mapping[str, Any]) -> tuple[float, ...]:
    found: list[float] = []
    for name in NODATA:
        value = find(attrs, name)
        several = [number(item) for item in value] if isinstance(value, list) else [number(value)]
        for one in several:
            if one is not None and not any(one == k or (one != one and k != k) for k in found):
                found.append(one)
    return tuple(found)


def _limits(attrs: Mapping[str, Any]) -> tuple[float, float] | None:
    pair = numbers(find(attrs, "valid_range"))
    low, high = number(find(attrs, "valid_min")), number(find(attrs, "valid_max"))
    if pair is not None and len(pair) == 2:
        low, high = pair
    if low is None and high is None:
        return None
    return (-math.inf if low is None else low, math.inf if high is None else high)


def _from_base64(text: str) -> float | None:
    try:
        raw = base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        return None
    return float(struct.unpack("<d", raw)[0]) if len(raw) == 8 else None
