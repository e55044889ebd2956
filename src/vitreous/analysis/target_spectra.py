"""Spectra that are looked for: those of a library as the scene would have measured them, or pixels of the scene."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from vitreous.analysis.streams import Floats, Ints, Mask, source_of, spectrum_at
from vitreous.data.pixels import spread_spectra
from vitreous.errors import ConfigError, SceneError, did_you_mean, listed
from vitreous.scenes.resample import Response, response_weights, source_bands, spacing
from vitreous.scenes.spectra import Spectra, read_spectra

MOST = 32  # targets of one analysis: one band of the product each
LEAST_BANDS = 3
OTHER_SCALE = 20.0  # times brighter or darker than the scene: another unit, no other material


@dataclass(frozen=True)
class Library:
    """Which spectra of which file are meant.

    Attributes:
        path: an ENVI spectral library or a text.
        names: of spectra, or patterns such as ``*kaolinite*``; all when empty.
        wavelengths: the text that holds the wavelengths of a file without (USGS).
        wavelength_unit: ``nm`` or ``um``, instead of what the file says.
        scale: what its values are multiplied with.
    """

    path: Path
    names: tuple[str, ...] = ()
    wavelengths: Path | None = None
    wavelength_unit: str | None = None
    scale: float = 1.0

    def read(self) -> Spectra:
        """Return the spectra that are meant.

        Raises:
            VitreousError: the file cannot be read, has no such spectrum, or more than an analysis takes.
        """
        if not (np.isfinite(self.scale) and self.scale > 0):
            raise ConfigError(
                f"The library's scale is {self.scale}.", "It must be a positive number."
            )
        every = read_spectra(
            self.path, wavelengths=self.wavelengths, wavelength_unit=self.wavelength_unit
        )
        every = every._replace(names=[" ".join(name.split()) for name in every.names])
        chosen = self._chosen(every.names)
        if len(chosen) > MOST:
            raise ConfigError(
                f"{self.path}: {len(chosen)} spectra are chosen, and an analysis takes {MOST} at most: "
                f"{listed([every.names[k] for k in chosen], 6)}.",
                "Name those that are looked for with --spectrum (patterns such as '*kaolinite*' too).",
            )
        return every._replace(
            values=every.values[chosen] * self.scale, names=[every.names[k] for k in chosen]
        )

    def _chosen(self, names: list[str]) -> list[int]:
        if not self.names:
            return list(range(len(names)))
        chosen: list[int] = []
        for wanted in self.names:
            found = _matching(wanted, names)
            if not found:
                raise ConfigError(
                    f"{self.path} has no spectrum '{wanted}'.", did_you_mean(wanted, names)
                )
            chosen += [k for k in found if k not in chosen]
        return chosen


def _matching(wanted: str, names: list[str]) -> list[int]:
    """Spectra of exactly this name, else those that a pattern fits; upper and lower case are the same."""
    lower = " ".join(wanted.lower().split())
    exact = [k for k, name in enumerate(names) if name.lower() == lower]
    return exact or [k for k, name in enumerate(names) if fnmatch.fnmatchcase(name.lower(), lower)]


@dataclass(frozen=True)
class Targets:
    """Spectra that are looked for, in bands of the scene.

    Attributes:
        names: one per spectrum.
        values: ``(targets, bands)`` in the scene's unit.
        bands: of the scene.
    """

    names: list[str]
    values: Floats
    bands: Ints


def find_targets(
    scene: xr.DataArray,
    bands: Ints,
    library: Library | str | Path | None,
    pixels: Sequence[tuple[int, int]],
    *,
    shape_only: bool = False,
) -> Targets:
    """Return the spectra that are looked for.

    Args:
        scene: the scene.
        bands: of it that may be used.
        library: spectra of a file; a path stands for all of its spectra.
        pixels: ``(row, column)`` of the scene, counted from 0.
        shape_only: the analysis compares shapes: brightness does not matter.

    Raises:
        VitreousError: neither or both are given, or they do not fit the scene.
    """
    if (library is None) == (not pixels):
        raise ConfigError(
            "Give the spectrum that is looked for either by a library or by pixels of the scene.",
            "Use --library FILE (with --spectrum NAME), or --pixel ROW,COLUMN.",
        )
    if library is None:
        values = np.stack([spectrum_at(scene, bands, row, column) for row, column in pixels])
        return Targets([f"pixel {row},{column}" for row, column in pixels], values, bands)
    chosen = library if isinstance(library, Library) else Library(Path(library))
    return as_measured(chosen.read(), scene, str(chosen.path), shape_only=shape_only)


def as_measured(
    spectra: Spectra, scene: xr.DataArray, file: str, *, shape_only: bool = False
) -> Targets:
    """Return spectra in the bands of a scene: averaged by the response of each band, a Gaussian of its width.

    Args:
        spectra: of any bands.
        scene: with wavelengths.
        file: where the spectra come from, for messages.
        shape_only: see :func:`find_targets`.

    Raises:
        SceneError: the spectra lie outside of the scene's range, or have another unit.
    """
    _check_unit(spectra, scene, file)
    bands, centres, widths = source_bands(scene, source_of(scene))
    responses = [
        Response(f"{centre:g} nm", float(centre), float(width))
        for centre, width in zip(centres, widths, strict=True)
    ]
    values = np.stack([_resampled(spectra, k, responses) for k in range(len(spectra.values))])
    covered = np.isfinite(values)
    shared = np.asarray(covered.all(axis=0))
    _check_shared(spectra, centres, covered, file, source_of(scene))
    chosen = Targets(list(spectra.names), values[:, shared], bands[shared])
    flat = [
        name
        for name, row in zip(chosen.names, chosen.values, strict=True)
        if not np.abs(row).max() > 0
    ]
    if flat:
        raise SceneError(
            f"{file}: {listed(flat, 6)} is 0 in all bands of the scene.", "Choose another spectrum."
        )
    if not shape_only:
        _check_scale(chosen, scene, file)
    return chosen


def _resampled(spectra: Spectra, number: int, responses: list[Response]) -> Floats:
    """One spectrum in other bands, NaN where it says nothing about them."""
    own = spectra.values[number]
    known = np.isfinite(own) & np.isfinite(spectra.wavelengths)
    if not known.any():
        return np.full(len(responses), np.nan)
    centres = spectra.wavelengths[known]
    apart = spacing(centres)
    widths = apart
    if spectra.fwhm is not None:
        said = np.nan_to_num(np.asarray(spectra.fwhm, dtype=np.float64)[known])
        widths = np.where(said > 0, said, apart)
    if known.sum() == 1 and not widths.any():
        return np.full(len(responses), np.nan)
    weights, why_not = response_weights(responses, centres, widths)
    result = weights @ own[known]
    result[[bool(reason) for reason in why_not]] = np.nan
    return result


def _check_shared(spectra: Spectra, centres: Floats, covered: Mask, file: str, source: str) -> None:
    """Refuse spectra of another range, and say which bands of the scene take no part."""
    known = spectra.wavelengths[np.isfinite(spectra.values).any(axis=0)]
    span = f"{known.min():.0f} to {known.max():.0f} nm" if known.size else "no wavelengths"
    shared = covered.all(axis=0)
    if shared.sum() < min(LEAST_BANDS, centres.size):
        raise SceneError(
            f"The spectra of {file} ({span}) have {int(shared.sum())} of the {centres.size} bands of {source} "
            f"({centres.min():.0f} to {centres.max():.0f} nm) in common.",
            "Choose spectra that cover the scene's range, or fewer at a time (--spectrum); if the range is wrong, give "
            "the unit of its wavelengths (--wavelength-unit nm or um).",
        )
    if not shared.all():
        lost = centres[~shared]
        fewest = int(covered.sum(axis=1).argmin())
        alone = "" if len(covered) == 1 else f" (fewest has '{spectra.names[fewest]}')"
        warnings.warn(
            f"{file} ({span}) does not cover {lost.size} of the {centres.size} bands of {source}, which take no part"
            f"{alone}: {listed([f'{nm:.0f}' for nm in lost], 8)} nm.",
            stacklevel=4,
        )


def _check_unit(spectra: Spectra, scene: xr.DataArray, file: str) -> None:
    """Refuse spectra that say another unit than the scene's."""
    unit = str(scene.attrs.get("unit", "dn"))
    if spectra.unit not in ("dn", unit):
        raise SceneError(
            f"{file} holds {spectra.unit}, but {source_of(scene)} holds {unit}.",
            f"If the scene's values are {spectra.unit} times a factor, open it with --hints unit={spectra.unit} (and --hints "
            "scale=...); else correct it for the atmosphere first, or look for a pixel of the scene (--pixel).",
        )


def _check_scale(targets: Targets, scene: xr.DataArray, file: str) -> None:
    """Refuse spectra that are many times brighter or darker than the scene."""
    measured = np.abs(spread_spectra(scene, targets.bands))
    if not measured.size:
        return
    own, theirs = float(np.median(np.abs(targets.values))), float(np.median(measured.mean(axis=1)))
    if not (own > 0 and theirs > 0) or 1 / OTHER_SCALE <= own / theirs <= OTHER_SCALE:
        return
    raise SceneError(
        f"The spectra of {file} are about {own:.3g}, the values of {source_of(scene)} about {theirs:.3g}: another unit.",
        f"Give the library's scale (--library-scale {10.0 ** round(np.log10(theirs / own)):g}?) or the scene's (--hints "
        "scale=...).",
    )
