"""Single spectra and libraries of them: ENVI's ``.sli``, and text as instruments and libraries write it.

Texts: two or more columns (wavelength, then spectra) with or without headings, as of ASD, Spectral Evolution (``.sed``)
and spreadsheets; the header lines of ECOSTRESS (``X Units:``, ``Y Units:``); one spectrum per row under a row of wavelengths;
and the single column of the USGS library, whose wavelengths are a file of their own. Percent becomes fractions, and
numbers below -1e30 (USGS) are missing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vitreous.errors import SceneError
from vitreous.files import write_text
from vitreous.scenes import envi
from vitreous.scenes.attributes import key_of
from vitreous.scenes.cube import HUGE, is_nodata
from vitreous.scenes.formats import local_path
from vitreous.scenes.metadata_files import read_text
from vitreous.scenes.wavelengths import numbers_as_names, spectral, unit_in_name

_FIELD = re.compile(r"\s*([A-Za-z][\w .#/()-]*?)\s*[:=]\s*(.*?)\s*$")
_PERCENT = re.compile(r"percent|%", re.I)
_USGS = re.compile(r"splib\w*\s+Record=\d+:\s*(.*?)\s*$", re.I)
_DIVIDERS = ("\t", ";", ",", None)  # None: blanks
_WAVELENGTHS = re.compile(r"wave|wvl|^wl|lambda|^nm$|^um$|^x$", re.I)
_UNITS = re.compile(r"\b(nanomet\w+|micromet\w+|microns?|nm|[uµ]m)\b", re.I)


class Spectra(NamedTuple):
    """Spectra with one set of bands.

    Attributes:
        values: ``(spectra, bands)``, physical values, NaN where missing.
        wavelengths: ``(bands,)`` in nm.
        names: one per spectrum.
        fwhm: ``(bands,)`` in nm, where known.
        unit: ``reflectance``, ``radiance`` or ``dn``.
    """

    values: npt.NDArray[np.float64]
    wavelengths: npt.NDArray[np.float64]
    names: list[str]
    fwhm: npt.NDArray[np.float64] | None = None
    unit: str = "dn"


def read_spectra(
    path: str | Path,
    *,
    wavelengths: str | Path | Sequence[float] | None = None,
    wavelength_unit: str | None = None,
) -> Spectra:
    """Read the spectra of a file, bands by wavelength.

    Args:
        path: an ENVI spectral library (``.sli`` or its header), or a text.
        wavelengths: band centres, or the text that holds them, for a file without.
        wavelength_unit: ``nm`` or ``um``, instead of what the file says or leaves open.

    Raises:
        SceneError: nothing that can be read, or no wavelengths.
    """
    file = local_path(path)
    if envi.has_header(file) or file.suffix.lower() in {".hdr", ".sli"}:
        return _of_library(file, wavelength_unit)
    table = _read_table(file)
    centres: npt.NDArray[np.float64] | None = None
    if table.rows_are_spectra:
        centres, values = table.centres, table.numbers
    elif table.numbers.shape[1] == 1:
        values = table.numbers.T
    else:
        column = next((k for k, name in enumerate(table.columns) if _WAVELENGTHS.search(name)), 0)
        centres = table.numbers[:, column]
        values = np.delete(table.numbers, column, axis=1).T
    unit = wavelength_unit or table.unit
    if wavelengths is not None:
        centres, unit = _given(wavelengths), wavelength_unit
    if centres is None:
        raise SceneError(
            f"{file} holds no wavelengths.",
            "The USGS library keeps them in a file of their own: give it as wavelengths=.",
        )
    if centres.size != values.shape[1]:
        raise SceneError(
            f"{file} has {values.shape[1]} bands, but {centres.size} wavelengths are given.",
            "Give those of its instrument.",
        )
    found = spectral(
        centres,
        None,
        unit,
        str(file),
        certain=wavelength_unit is not None,
        setting="--wavelength-unit ",
    ).centres
    assert found is not None
    return _sorted(
        Spectra(values * table.scale, found, table.names(file, len(values)), None, table.kind)
    )


def write_spectra(spectra: Spectra, path: str | Path) -> None:
    """Write spectra as a text that :func:`read_spectra` reads: a column of wavelengths in nm, then one per spectrum.

    Args:
        spectra: the spectra; where their wavelengths are not known (NaN), the first column counts the bands.
        path: the file.

    Raises:
        VitreousError: the disk is full or the folder cannot be written.
    """
    known = bool(np.isfinite(spectra.wavelengths).all())
    first = spectra.wavelengths if known else np.arange(1, spectra.values.shape[1] + 1)
    names = [" ".join(re.sub(r'[,;"]', " ", name).split()) for name in spectra.names]
    head = ",".join(["wavelength_nm" if known else "band", *names])
    rows = [
        ",".join([f"{where:.10g}", *(f"{value:.9g}" for value in column)])
        for where, column in zip(first, spectra.values.T, strict=True)
    ]
    write_text(path, "\n".join([head, *rows]) + "\n")


class _Table(NamedTuple):
    """The numbers of a text, and what it says about them."""

    numbers: npt.NDArray[np.float64]
    columns: list[str]
    labels: list[str]
    title: str
    unit: str | None
    scale: float
    kind: str
    centres: npt.NDArray[np.float64] | None = None

    @property
    def rows_are_spectra(self) -> bool:
        return self.centres is not None

    def names(self, file: Path, count: int) -> list[str]:
        """Names of the spectra: of rows, of columns, or that of the file."""
        if self.rows_are_spectra:
            return self.labels
        others = [name for name in self.columns if not _WAVELENGTHS.search(name)]
        if len(others) == count and count > 1:
            return others
        title = self.title or (others[0] if len(others) == 1 else file.stem)
        return [title] if count == 1 else [f"{title} {k + 1}" for k in range(count)]


def _of_library(file: Path, unit: str | None) -> Spectra:
    library = envi.open_library(file, unit)
    stored = library.values.astype(np.float64)
    missing = ~(np.abs(stored) < HUGE)
    if library.nodata is not None:
        missing |= is_nodata(library.values, library.nodata)
    centres = library.facts.get("wavelengths")
    if centres is None:
        raise SceneError(f"{file} gives no wavelengths.", "Add them to its header.")
    names = library.names or [f"spectrum {k + 1}" for k in range(len(stored))]
    values = np.where(missing, np.nan, stored * library.scale)
    return _sorted(
        Spectra(values, np.asarray(centres), names, library.facts.get("fwhm"), library.unit)
    )


def _sorted(spectra: Spectra) -> Spectra:
    order = np.argsort(spectra.wavelengths, kind="stable")
    return spectra._replace(
        values=spectra.values[:, order],
        wavelengths=spectra.wavelengths[order],
        fwhm=None if spectra.fwhm is None else np.asarray(spectra.fwhm)[order],
    )


def _given(wavelengths: Any) -> npt.NDArray[np.float64]:
    if isinstance(wavelengths, (str, Path)):
        numbers = _read_table(local_path(wavelengths)).numbers
        return numbers[:, 0]
    return np.asarray(wavelengths, dtype=np.float64)


def _read_table(file: Path) -> _Table:
    """Divide a text into what it says and its rows of numbers."""
    lines = [line for line in read_text(file).splitlines() if line.strip()]
    divider = _divider(lines)
    rows = [_cells(line, divider) for line in lines]
    start = next((k for k, row in enumerate(rows) if _numbers(row) is not None), None)
    across = _across(rows)
    if across is not None:
        return across
    if start is None:
        raise SceneError(f"{file} holds no rows of numbers.", "It is not a text of spectra.")
    numbers = [_numbers(row) for row in rows[start:]]
    width = len(numbers[0] or ())
    for k, row in enumerate(numbers):
        if row is None or len(row) != width:
            raise SceneError(
                f"{file}: row {start + k + 1} of its text is not {width} numbers.",
                "The file is damaged, or no text of spectra.",
            )
    values = np.array(numbers, dtype=np.float64)
    head = lines[:start]
    columns = rows[start - 1] if start and len(rows[start - 1]) == width else []
    if columns and width == 1:
        columns = []
    said = {key_of(match[1]): match[2] for line in head if (match := _FIELD.match(line))}
    above = said.get("yunits", "") or " ".join(columns)
    title = said.get("name", "")
    for line in head:
        match = _USGS.search(line)
        title = match[1] if match else title
    kind = (
        "reflectance" if re.search("refl", f"{above} {said.get('measurement', '')}", re.I) else "dn"
    )
    values = np.where(values < -HUGE, np.nan, values)
    scale = 0.01 if _PERCENT.search(above) else 1.0
    return _Table(values, columns, [], title, _unit(said, columns), scale, kind)


def _across(rows: list[list[str]]) -> _Table | None:
    """Spectra in rows under a row of wavelengths, each with a name in front."""
    if len(rows) < 2 or len(rows[0]) < 3 or _numbers(rows[0][:1]) is not None:
        return None
    if numbers_as_names(rows[0][1:]) is None or any(len(row) != len(rows[0]) for row in rows):
        return None
    values = [_numbers(row[1:]) for row in rows[1:]]
    centres = _numbers(rows[0][1:])
    if centres is None or any(row is None for row in values):
        return None
    return _Table(
        np.array(values, dtype=np.float64),
        [],
        [row[0] for row in rows[1:]],
        "",
        unit_in_name(rows[0][0]),
        1.0,
        "dn",
        np.array(centres),
    )


def _divider(lines: list[str]) -> str | None:
    last = lines[-1] if lines else ""
    return next((mark for mark in _DIVIDERS if mark is not None and mark in last.strip()), None)


def _cells(line: str, divider: str | None) -> list[str]:
    cells = line.split() if divider is None else line.split(divider)
    cells = [cell.strip().strip('"') for cell in cells]
    return cells[:-1] if divider is not None and len(cells) > 1 and not cells[-1] else cells


def _numbers(cells: list[str]) -> list[float] | None:
    try:
        return [float(cell) for cell in cells]
    except ValueError:
        return None


def _unit(said: dict[str, str], columns: list[str]) -> str | None:
    """The unit of the wavelengths, from a header line or a heading."""
    texts = [said.get("xunits", ""), *(name for name in columns if _WAVELENGTHS.search(name))]
    for text in texts:
        match = _UNITS.search(text.replace("_", " "))
        if match is not None:
            return "nm" if match[1].lower().startswith("n") else "um"
    return None
