"""One sensor's scene as another would have measured it: bands resampled by spectral responses.

A band of the target is the mean of the spectrum, weighted by its response R: sum(R v) / sum(R) along the wavelengths. The
spectrum runs straight from one band centre of the source to the next. Bands of the source have widths of their own, by
which the spectrum is smoothed already: of a Gaussian target of width F only sqrt(F^2 - f^2) is left to smooth, where f is
the source's width there. Bands that both sensors have in common thus stay exactly what they are.

Known limits: a multispectral source says nothing about what lies between its bands, so targets are left out of which it
covers less than ``LEAST_COVERED``, or that are narrower than ``NARROWEST`` of its own bands.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.errors import SceneError, listed
from vitreous.scenes.cube import (
    LazyCube,
    Window,
    georeference,
    good_bands,
    make_scene,
    read_window,
    wavelengths_of,
)
from vitreous.scenes.dead_bands import without_dead_bands
from vitreous.scenes.formats import csv_rows, local_path, read_table
from vitreous.scenes.sensors import Sensor, banded
from vitreous.scenes.wavelengths import spectral, unit_in_name

LEAST_COVERED = 0.9  # of a target band's response
NARROWEST = 0.5  # of the source's width
_STRIP = 2**22  # values of the source that are read at a time
_SIGMAS = 3.5  # beyond, a Gaussian holds less than 0.05 %
_SAMPLES = 281  # of a Gaussian
_PER_FWHM = 2 * np.sqrt(2 * np.log(2))  # fwhm = 2.355 sigma
_WAVELENGTH = re.compile(r"wavelength|cent(er|re)|wl|wvl|lambda|nm$|um$", re.I)
_LIST_COLUMN = re.compile(r"fwhm|(band)?width|name$|band(_?name)?$", re.I)

Floats = npt.NDArray[np.float64]


class Response(NamedTuple):
    """How a band weights the spectrum.

    Attributes:
        name: of the band.
        centre: in nm.
        fwhm: in nm.
        wavelengths: of the curve's samples in nm, rising; None for a Gaussian.
        curve: the samples, none negative.
    """

    name: str
    centre: float
    fwhm: float
    wavelengths: Floats | None = None
    curve: Floats | None = None

    def sampled(self, smoothed: float = 0.0) -> tuple[Floats, Floats]:
        """Return wavelengths and weights that sum to one.

        Args:
            smoothed: fwhm in nm by which the spectrum is smoothed already; measured curves are taken as they are.
        """
        if self.wavelengths is not None and self.curve is not None:
            weights = self.curve * np.gradient(self.wavelengths)
            return self.wavelengths, weights / weights.sum()
        sigma = np.sqrt(max(self.fwhm**2 - smoothed**2, 0.0)) / _PER_FWHM
        steps = np.linspace(-_SIGMAS, _SIGMAS, _SAMPLES)
        weights = np.exp(-0.5 * steps**2)
        return self.centre + sigma * steps, weights / weights.sum()


def resample(scene: xr.DataArray, to: str | Path | Sensor) -> xr.DataArray:
    """Return a scene in the bands of another sensor; values are computed when they are read.

    Args:
        scene: a scene with wavelengths; bands that are not good take no part.
        to: a sensor (``sentinel2a``, ``sentinel2a:B04,B08``), or a CSV file: a list of band centres (columns
            ``wavelength`` and ``fwhm``, where the latter is missing as wide as they are apart), or response curves (a
            column ``wavelength`` and one per band).

    Returns:
        Physical values in the scene's unit, NaN where a source pixel is invalid. Bands that the source does not cover
        are left out, with a warning.

    Raises:
        SceneError: there is no such sensor or file, the scene has no wavelengths, or covers none of the bands.
    """
    source = str(scene.attrs.get("source") or "The scene")
    responses = read_responses(to)
    scene = without_dead_bands(scene)
    bands, centres, widths = source_bands(scene, source)
    weights, why_not = response_weights(responses, centres, widths)
    kept = np.array([not reason for reason in why_not], dtype=bool)
    target = to.title if isinstance(to, Sensor) else str(to)
    _say_left_out(responses, why_not, source, target, (centres.min(), centres.max()))
    chosen = [response for response, keep in zip(responses, kept, strict=True) if keep]
    crs, transform = georeference(scene)
    shape = (len(chosen), scene.sizes["y"], scene.sizes["x"])
    return make_scene(
        LazyCube(shape, np.float32, _Resampled(scene, bands, weights[kept])),
        wavelengths=[response.centre for response in chosen],
        fwhm=[response.fwhm for response in chosen],
        band_names=[response.name for response in chosen],
        unit=str(scene.attrs.get("unit", "dn")),
        nodata=float("nan"),
        crs=crs,
        transform=transform,
        source=str(scene.attrs.get("source") or ""),
    )


def read_responses(to: str | Path | Sensor) -> list[Response]:
    """Return the responses of a sensor's bands, or those in a CSV file (see :func:`resample`).

    Raises:
        SceneError: there is no such sensor or file, or it holds neither band centres nor responses.
    """
    if isinstance(to, Sensor):
        return [Response(*band) for band in to.bands]
    path = Path(to)
    if path.suffix.lower() not in {".csv", ".txt", ".tsv"} and not path.is_file():
        return [Response(*band) for band in banded(str(to)).bands]
    path = local_path(path)
    rows = csv_rows(path)
    head = rows[0] if rows else []
    others = [cell for cell in head[1:] if not _LIST_COLUMN.match(cell)]
    if head and others and _WAVELENGTH.match(head[0]) and not any(map(_is_number, head)):
        return _curves(path, rows)
    return _listed_bands(path)


@dataclass
class _Resampled:
    """Reads windows of the source and weights its bands.

    Attributes:
        scene: the source.
        bands: of it that take part.
        weights: ``(target bands, source bands)``.
    """

    scene: xr.DataArray
    bands: npt.NDArray[np.int64]
    weights: Floats

    def __call__(self, window: Window) -> npt.NDArray[np.float32]:
        bands, rows, columns = window
        weights = self.weights[bands]
        used = np.flatnonzero((weights != 0).any(axis=0))
        height, width = (len(range(part.start, part.stop, part.step)) for part in (rows, columns))
        result = np.empty((weights.shape[0], height, width), dtype=np.float32)
        if result.size == 0:
            return result
        # The source has many more bands than the result: it is read in strips of rows.
        strip = max(1, _STRIP // (used.size * (columns.stop - columns.start) * rows.step))
        for top in range(0, height, strip):
            first = rows.start + top * rows.step
            last = min(first + strip * rows.step, rows.stop)
            read = read_window(
                self.scene, slice(first, last), slice(columns.start, columns.stop), self.bands[used]
            )[:, :: rows.step, :: columns.step]
            for band, row in enumerate(weights[:, used]):
                result[band, top : top + strip] = np.tensordot(row, read, axes=1)
        return result


def source_bands(scene: xr.DataArray, source: str) -> tuple[npt.NDArray[np.int64], Floats, Floats]:
    """Return the bands that take part in rising order of their centres, those centres, and their widths in nm.

    Args:
        scene: the scene.
        source: its name, for messages.

    Raises:
        SceneError: it has no wavelengths, or no good band that has one.
    """
    wavelengths = wavelengths_of(scene)
    if wavelengths is None:
        raise SceneError(
            f"{source} has no wavelengths, so its bands cannot be resampled.",
            "Give them with wavelengths=... or sensor=... (--hints).",
        )
    bands = good_bands(scene)
    bands = bands[np.isfinite(wavelengths[bands])]
    bands = bands[np.argsort(wavelengths[bands], kind="stable")].astype(np.int64)
    if not bands.size:
        raise SceneError(f"{source} has no good band with a wavelength.", "Check its bad bands.")
    centres = wavelengths[bands]
    widths = scene["fwhm"].values[bands] if "fwhm" in scene.coords else np.zeros(bands.size)
    widths = np.nan_to_num(np.asarray(widths, dtype=np.float64))
    if bands.size == 1 and not widths.any():
        raise SceneError(f"{source} has one band of unknown width.", "Give it with fwhm=...")
    return bands, centres, np.where(widths > 0, widths, spacing(centres))


def spacing(centres: Floats) -> Floats:
    """Return how far each band is from the next, the median of the distances around it: gaps do not count.

    Args:
        centres: rising, in nm.
    """
    steps = np.diff(centres)
    steps = np.where(steps > 0, steps, np.nan)
    if not np.isfinite(steps).any():
        return np.zeros(centres.size)
    around = [steps[max(0, k - 2) : k + 2] for k in range(centres.size)]
    usual = float(np.nanmedian(steps))
    return np.array([np.nanmedian(part) if np.isfinite(part).any() else usual for part in around])


def response_weights(
    responses: list[Response], centres: Floats, widths: Floats
) -> tuple[Floats, list[str]]:
    """Return ``(targets, source bands)`` weights that sum to one, and why a target cannot be had.

    Args:
        responses: of the targets.
        centres: of the source's bands, rising, in nm.
        widths: of the source's bands, fwhm in nm.

    Returns:
        The weights, and for each target ``covered`` (the source covers too little of it), ``narrow`` (the source's bands
        are too wide for it), or nothing where it can be had.
    """
    # Narrow bands side by side leave no gap; between broad ones far apart nothing is measured.
    reach = np.maximum(widths, np.minimum(spacing(centres), 2 * widths))
    weights, why_not = np.zeros((len(responses), centres.size)), []
    for k, response in enumerate(responses):
        nearest = int(np.argmin(np.abs(centres - response.centre)))
        whole, share = response.sampled()
        covered = share[_covers(whole, centres, reach)].sum()
        if covered < LEAST_COVERED:
            why_not.append("covered")
            continue
        if response.fwhm < NARROWEST * widths[nearest]:
            why_not.append("narrow")
            continue
        why_not.append("")
        where, share = response.sampled(float(widths[nearest]))
        inside = _covers(where, centres, reach)
        weights[k] = _interpolation(where[inside], share[inside], centres)
        weights[k] /= weights[k].sum()
    return weights, why_not


def _covers(wavelengths: Floats, centres: Floats, reach: Floats) -> npt.NDArray[np.bool_]:
    """Where the source measures: within a band's width (or spacing) of its centre."""
    right = np.clip(np.searchsorted(centres, wavelengths), 1, max(1, centres.size - 1))
    near = [right - 1, np.minimum(right, centres.size - 1)]
    found: npt.NDArray[np.bool_] = np.any(
        [np.abs(wavelengths - centres[k]) <= reach[k] + 1e-9 for k in near], axis=0
    )
    return found


def _interpolation(wavelengths: Floats, shares: Floats, centres: Floats) -> Floats:
    """Weights of the source bands for a weighted sum of values interpolated at some wavelengths."""
    distinct, index, count = np.unique(centres, return_inverse=True, return_counts=True)
    weights = np.zeros(distinct.size)
    if distinct.size == 1:
        weights[0] = shares.sum()
    else:
        right = np.clip(np.searchsorted(distinct, wavelengths), 1, distinct.size - 1)
        left = right - 1
        fraction = (wavelengths - distinct[left]) / (distinct[right] - distinct[left])
        fraction = np.clip(
            fraction, 0.0, 1.0
        )  # beyond the first and last centre their values go on
        np.add.at(weights, left, shares * (1 - fraction))
        np.add.at(weights, right, shares * fraction)
    per_band: Floats = weights[index] / count[index]
    return per_band


def _say_left_out(
    responses: list[Response],
    why_not: list[str],
    source: str,
    target: str,
    span: tuple[float, float],
) -> None:
    missing = [r.name for r, why in zip(responses, why_not, strict=True) if why == "covered"]
    narrow = [r.name for r, why in zip(responses, why_not, strict=True) if why == "narrow"]
    if len(missing) + len(narrow) == len(responses):
        raise SceneError(
            f"{source} ({span[0]:.0f} to {span[1]:.0f} nm) measures none of the bands of {target}"
            f"{' as finely' if narrow else ''}.",
            "Choose another sensor; 'vitreous info' shows the wavelengths of a scene.",
        )
    if missing:
        warnings.warn(
            f"{source} does not cover {len(missing)} of the {len(responses)} bands of {target},"
            f" which are left out: {listed(missing)}.",
            stacklevel=3,
        )
    if narrow:
        warnings.warn(
            f"{source} has bands more than twice as wide as {len(narrow)} of the {len(responses)} bands of {target},"
            f" which are left out: {listed(narrow)}.",
            stacklevel=3,
        )


def _listed_bands(path: Path) -> list[Response]:
    """Gaussian responses from a list of centres, with widths or as wide as the bands are apart."""
    table = read_table(path, "wavelengths")
    found = spectral(table.centres, table.widths, table.unit, str(path))
    centres = found.centres if found.centres is not None else np.zeros(0)
    if centres.size == 0 or not np.all(np.isfinite(centres) & (centres > 0)):
        raise SceneError(f"{path} holds no list of wavelengths.", "They are positive numbers.")
    widths = found.widths
    if widths is None:
        if centres.size == 1:
            raise SceneError(f"{path} gives one band without a width.", "Add a column fwhm.")
        order = np.argsort(centres)
        widths = np.empty_like(centres)
        widths[order] = spacing(centres[order])
    if not np.all(widths > 0):
        raise SceneError(f"{path} has widths that are not positive.", "Correct its column fwhm.")
    pairs = zip(centres.tolist(), widths.tolist(), strict=True)
    return [Response(f"{centre:g} nm", centre, width) for centre, width in pairs]


def _curves(path: Path, rows: list[list[str]]) -> list[Response]:
    """Responses as samples: a column of wavelengths and one per band."""
    head, columns = rows[0], len(rows[0])
    if len(rows) < 4 or any(len(row) != columns for row in rows):
        raise SceneError(
            f"{path} holds no response curves.",
            "It needs three rows or more, each with all columns.",
        )
    try:
        table = np.array([[float(cell or 0) for cell in row] for row in rows[1:]])
    except ValueError as error:
        raise SceneError(f"{path} contains a value that is not a number ({error}).") from error
    nm = spectral(table[:, 0], None, unit_in_name(head[0]), str(path)).centres
    if nm is None or not np.all(np.isfinite(table)) or not np.all(np.diff(nm) > 0):
        raise SceneError(f"{path}: the wavelengths must rise from row to row.", "Sort the rows.")
    return [
        _curve(name or f"band {k}", nm, np.clip(column, 0, None), path)
        for k, (name, column) in enumerate(zip(head[1:], table.T[1:], strict=True), start=1)
    ]


def _curve(name: str, nm: Floats, curve: Floats, path: Path) -> Response:
    if not curve.any():
        raise SceneError(f"{path}: the response of '{name}' is 0 everywhere.", "Remove its column.")
    weights = curve * np.gradient(nm)
    above = np.flatnonzero(curve >= curve.max() / 2)
    # Half a step on each side: the flanks fall between two samples.
    width = nm[above[-1]] - nm[above[0]] + np.gradient(nm)[above[[0, -1]]].mean()
    return Response(name, float(np.average(nm, weights=weights)), float(width), nm, curve)


def _is_number(word: Any) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
