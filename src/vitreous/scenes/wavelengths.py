"""Wavelengths: their units, whether numbers can be wavelengths at all, and what names of bands say about them.

This is the one place that turns a file's numbers into nanometres. Units are often missing or wrong, so they are
compared with the numbers: optical instruments measure between 100 nm and 20 µm.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from vitreous.errors import SceneError

WIDTHS = (1e-4, 1.0)  # of the centre: from the finest spectrometer to a panchromatic band
LIGHT = (100.0, 20_000.0)  # nm: from ultraviolet to thermal infrared

_NM_PER = {"nm": 1.0, "um": 1e3, "mm": 1e6, "cm": 1e7, "m": 1e9, "angstrom": 0.1}
_SPELLINGS = {
    "nm": ("nm", "nanometer", "nanometre", "nanomet"),
    "um": ("um", "µm", "μm", "micron", "micrometer", "micrometre", "mcm", "micro meter"),
    "mm": ("mm", "millimeter", "millimetre"),
    "cm": ("cm", "centimeter", "centimetre"),
    "m": ("m", "meter", "metre"),
    "angstrom": ("angstrom", "ångström", "å", "a"),
    "cm-1": ("cm-1", "cm^-1", "1/cm", "wavenumber", "cm**-1"),
}
_UNITS = {word: unit for unit, words in _SPELLINGS.items() for word in words}
_UNSAID = {"unknown", "none", "", "1", "-", "unitless", "n/a"}
_GUESSES = ("nm", "um", "m")  # what a file may mean that says nothing, or says it wrongly

_IN_NAME = re.compile(
    r"(?<![\w.])(\d+(?:\.\d+)?(?:e[+-]?\d+)?)\s*"
    r"(nm|um|µm|μm|nanomet\w+|micromet\w+|microns?|angstr\w+)\b",
    re.I,
)
# Ocean colour and its like: the quantity, then the centre in nm.
_QUANTITY = re.compile(
    r"(?:rrs|rho[a-z]?|refl|reflectance|nlw|lw|lt|radiance|wavelength|wl|lambda)[ _-]?(\d{3,4}(?:\.\d+)?)",
    re.I,
)
_NUMBER = re.compile(r"\s*\d+(?:\.\d+)?\s*")
_UNIT_IN_NAME = re.compile(r"(?:^|[\s_(\[])(nm|um|µm|μm)(?:$|[\s_)\]])", re.I)

Floats: TypeAlias = npt.NDArray[np.float64]


class Spectral(NamedTuple):
    """Band centres and widths in nm, None where unknown."""

    centres: Floats | None
    widths: Floats | None


def known_unit(unit: str | None) -> str | None:
    """Return a unit's usual short name (``nm``, ``um`` ...), or None where nothing is said.

    Raises:
        SceneError: it is no unit of wavelengths.
    """
    word = (unit or "").strip().strip("[]()").lower()
    if word in _UNSAID:
        return None
    found = _UNITS.get(word) or _UNITS.get(word.removesuffix("s"))
    if found is None:
        raise SceneError(
            f"'{unit}' is not a wavelength unit.",
            f"Known units are nm, µm (um), {', '.join(name for name in _SPELLINGS if name not in {'nm', 'um'})}.",
        )
    return found


def spectral(
    centres: Sequence[float] | npt.NDArray[Any] | None,
    widths: Sequence[float] | npt.NDArray[Any] | None,
    unit: str | None,
    source: str,
    *,
    width_unit: str | None = None,
    certain: bool = False,
    setting: str = "--hints wavelength_unit=",
) -> Spectral:
    """Turn a file's band centres and widths into nanometres, with the unit that fits.

    A unit that is missing is told by the numbers, with a warning. A unit that contradicts them (0.45 nm) is
    corrected where exactly one other unit fits, with a warning; where the user said it, it is refused.

    Args:
        centres: the numbers as the file gives them; 0 stands for a band that is not used.
        widths: likewise.
        unit: of the centres, as the file spells it.
        source: the file's name, for messages.
        width_unit: of the widths, where they have their own; else they share that of the centres.
        certain: the user, not the file, says the unit.
        setting: where the user says it, for messages; the unit follows.

    Raises:
        SceneError: a unit that is none, or one of the user's that cannot be right.
    """
    stated = known_unit(unit)
    own_unit = known_unit(width_unit)
    right = stated
    nanometres = None
    if centres is not None and _only_count(centres, stated, source):
        centres = None
    if centres is not None:
        numbers = np.asarray(centres, dtype=np.float64)
        right = _fitting_unit(numbers, stated, source, certain, setting)
        nanometres = _to_nm(numbers, right)
    if widths is None:
        return Spectral(nanometres, None)
    spans = np.asarray(widths, dtype=np.float64)
    if own_unit is not None and own_unit != stated:
        right = own_unit
    if right == "cm-1":  # d(1/v) = dv / v^2
        if nanometres is None:
            return Spectral(None, None)
        return Spectral(nanometres, spans * nanometres**2 / 1e7)
    if nanometres is not None:
        right = _fitting_width_unit(spans, right or "nm", nanometres, source)
    return Spectral(nanometres, spans * _NM_PER[right or "nm"])


def from_names(names: Sequence[str]) -> Floats | None:
    """Return the band centres in nm that names such as ``Band 1 (402.4 Nanometers)`` or ``Rrs_443`` hold, None where any has none."""
    quantities = [_QUANTITY.fullmatch(name.strip()) for name in names]
    if names and all(quantities):
        return np.array([float(match[1]) for match in quantities if match])
    found = [_IN_NAME.findall(name) for name in names]
    if not found or not all(found):
        return None
    # "402.4 nm (FWHM 10 nm)": the centre comes first.
    values = [
        _to_nm(np.array([float(hits[0][0])]), known_unit(_plain_unit(hits[0][1])))[0]
        for hits in found
    ]
    return np.array(values)


def numbers_as_names(names: Sequence[str]) -> list[float] | None:
    """Return names that are nothing but numbers (``450.5``) as such, if they can be wavelengths; else None."""
    if not names or not all(_NUMBER.fullmatch(name) for name in names):
        return None
    values = np.array([float(name) for name in names])
    # Whole numbers as small as micrometres count the bands.
    counted = bool(np.all(values == np.round(values)))
    light = _is_light(values, "nm") or (_is_light(values, "um") and not counted)
    return values.tolist() if light else None


def joined(
    centres: npt.NDArray[np.float64],
    detector: npt.NDArray[np.int64],
    usable: npt.NDArray[np.bool_] | None = None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return the order of the bands of several detectors by wavelength, and which are needed.

    Where one detector overlaps with the next, the first keeps its bands below the middle of the overlap and the second those above:
    the ends of a detector's range are its noisiest bands.

    Args:
        centres: ``(bands,)`` in nm, 0 for bands that are not used, which come last.
        detector: ``(bands,)`` numbers from 0 on, by wavelength.
        usable: ``(bands,)`` False for bands that are not; all with a centre when None.

    Returns:
        Indices ``(bands,)``, and True (in the order of ``centres``) for bands that are needed.
    """
    used = centres > 0
    order = np.argsort(np.where(used, centres, np.inf), kind="stable")
    used = used if usable is None else used & usable
    good = used.copy()
    for k in range(int(detector.max(initial=0))):
        first, second = used & (detector == k), used & (detector == k + 1)
        if first.any() and second.any():
            low, high = centres[second].min(), centres[first].max()
            middle = (low + high) / 2
            if low < high:
                good &= ~((first & (centres > middle)) | (second & (centres <= middle)))
    return order, good


def unit_in_name(name: str) -> str | None:
    """Return the unit in a column's or variable's name such as ``wavelength_nm``, None where there is none."""
    match = _UNIT_IN_NAME.search(name)
    return None if match is None else known_unit(match[1])


def _only_count(
    values: Sequence[float] | npt.NDArray[Any], stated: str | None, source: str
) -> bool:
    """True for 0, 1, 2, ... or 1, 2, 3, ...: what some files call wavelengths."""
    numbers = np.asarray(values, dtype=np.float64)
    counted = numbers.size > 1 and numbers[0] in {0.0, 1.0} and np.all(np.diff(numbers) == 1)
    if not counted or (stated is not None and _is_light(numbers, stated)):
        return False
    warnings.warn(
        f"{source} only counts the bands ({_span(numbers)}); these are not used as wavelengths.",
        stacklevel=4,
    )
    return True


def _plain_unit(word: str) -> str:
    word = word.lower()
    for start, unit in (("nanomet", "nm"), ("micro", "um"), ("angstr", "angstrom")):
        if word.startswith(start):
            return unit
    return word


def _fitting_unit(
    numbers: Floats, stated: str | None, source: str, certain: bool, setting: str
) -> str:
    fits = [unit for unit in _GUESSES if _is_light(numbers, unit)]
    span = _span(numbers)
    if stated is None:
        guess = fits[0] if fits else "um" if numbers.size and np.nanmax(numbers) < 100 else "nm"
        warnings.warn(
            f"{source} gives no wavelength unit; {span} is assumed to be {guess} "
            f"(override with {setting}...).",
            stacklevel=4,
        )
        return guess
    if _is_light(numbers, stated) or not np.any(numbers > 0):
        return stated
    if len(fits) == 1 and certain:
        raise SceneError(
            f"{source}: wavelengths of {span} {stated} lie outside the optical range.",
            f"They would be valid in {fits[0]}: use {setting}{fits[0]}.",
        )
    if len(fits) == 1:
        warnings.warn(
            f"{source} gives wavelengths of {span} {stated}, outside the optical range; assumed to be {fits[0]} "
            f"(override with {setting}...).",
            stacklevel=4,
        )
        return fits[0]
    warnings.warn(
        f"{source} gives wavelengths of {span} {stated}, outside the optical range in any unit.",
        stacklevel=4,
    )
    return stated


def say_odd_widths(spans: Floats, centres: Floats, source: str) -> None:
    """Warn where band widths cannot be those of their bands, because they come from different sources.

    Args:
        spans: ``(bands,)`` in nm.
        centres: ``(bands,)`` in nm.
        source: the file's name.
    """
    if _suits(spans, centres, "nm"):
        return
    fits = [unit for unit in _GUESSES if _suits(spans, centres, unit)]
    advice = f"they would match in {fits[0]}" if len(fits) == 1 else "set fwhm=..."
    warnings.warn(
        f"{source} has band widths of {_span(spans)} nm, which do not match its wavelengths of {_span(centres)} nm "
        f"({advice}).",
        stacklevel=4,
    )


def _suits(spans: Floats, centres: Floats, unit: str) -> bool:
    """Whether widths in a unit can be those of bands at these centres; True where neither is known."""
    known = np.isfinite(spans) & (spans > 0) & np.isfinite(centres) & (centres > 0)
    if not known.any():
        return True
    share = float(np.median(spans[known] * _NM_PER[unit] / centres[known]))
    return WIDTHS[0] <= share <= WIDTHS[1]


def _fitting_width_unit(spans: Floats, stated: str, centres: Floats, source: str) -> str:
    """The unit in which widths suit their band centres: files give both in one, and mean two."""
    fits = [unit for unit in _GUESSES if _suits(spans, centres, unit)]
    if _suits(spans, centres, stated) or len(fits) != 1:
        return stated
    warnings.warn(
        f"{source} gives band widths of {_span(spans)} {stated}, which do not match its wavelengths; assumed to be "
        f"{fits[0]}.",
        stacklevel=4,
    )
    return fits[0]


def _to_nm(numbers: Floats, unit: str | None) -> Floats:
    if unit == "cm-1":
        return np.divide(1e7, numbers, out=np.zeros_like(numbers), where=numbers != 0)
    factor = _NM_PER[unit or "nm"]
    # Decimal numbers stay what they were: 402.4e-9 m is 402.4 nm, not 402.40000000000003.
    return numbers if factor == 1 else np.round(numbers * factor, 9)


def _is_light(numbers: Floats, unit: str) -> bool:
    """True where all used bands (those that are not 0) lie in the optical range."""
    used = numbers[np.isfinite(numbers) & (numbers != 0)]
    if used.size == 0:
        return False
    nm = _to_nm(used, unit)
    return bool(nm.min() >= LIGHT[0] and nm.max() <= LIGHT[1])


def _span(numbers: Floats) -> str:
    known = numbers[np.isfinite(numbers) & (numbers != 0)]
    if known.size == 0:
        return "nothing"
    return f"{known.min():g}" if known.size == 1 else f"{known.min():g} to {known.max():g}"
