"""Spectral indices, whose bands are found by wavelength.

Indices of broad bands are those of Awesome Spectral Indices (D. Montero et al. 2023, Scientific Data 10, 197), which the
package spyndex brings; indices of narrow bands are in :mod:`vitreous.analysis.narrow_indices`.
"""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

import numpy as np
import xarray as xr

from vitreous.analysis.narrow_indices import NARROW
from vitreous.analysis.preview import Look
from vitreous.analysis.result import Result, facts_of
from vitreous.analysis.streams import Floats, Ints, Passes, Progress, pixelwise, prepared, source_of
from vitreous.data.pixels import spread_spectra
from vitreous.errors import ConfigError, SceneError, did_you_mean, listed
from vitreous.scenes.cube import good_bands, wavelengths_of
from vitreous.scenes.resample import Response, response_weights, source_bands

NARROWER = 0.5  # of a broad band: narrower bands of the scene are averaged, not picked
SEVERAL = 3  # bands in the range at least
WIDER = 2.0  # than a broad band: such a band of the scene does not stand for it
NARROW_WIDTH = 20.0  # nm: wider bands do not resolve what narrow indices look at
NEAR = 6.0  # nm: half the spacing of spectrometers with bands every ten, and a little for drift
BRIGHT = 2.0  # no surface reflects more
THERMAL = 5000.0  # nm: these bands hold temperatures
_SKIPPED = {"kernel", "radar"}
_LAMBDA = "lambda"  # constants of this name are the wavelengths of bands
_NARROW = re.compile(r"\bR(\d{3,4})\b")
LOOK = Look("RdYlGn")


@dataclass(frozen=True)
class Index:
    """A spectral index.

    Attributes:
        name: its short name.
        title: in words.
        formula: of bands and constants.
        source: where it was published.
        ranges: first and last wavelength in nm of each broad band, by its name in the formula.
        points: wavelength in nm of each narrow band, likewise.
        constants: likewise; None where a value must be given.
    """

    name: str
    title: str
    formula: str
    source: str
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    points: dict[str, float] = field(default_factory=dict)
    constants: dict[str, float | None] = field(default_factory=dict)

    @property
    def bands(self) -> list[str]:
        """Names of its bands."""
        return [*self.ranges, *self.points]

    @functools.cached_property
    def code(self) -> CodeType:
        """The formula, compiled."""
        return compile(self.formula, self.name, "eval")

    def values(self, bands: Mapping[str, Any], constants: Mapping[str, float]) -> Any:
        """Compute it from reflectances; where it is not defined (0 / 0), it is NaN."""
        # Numbers of numpy divide by zero without an error.
        numbers = {name: np.float64(value) for name, value in constants.items()}
        names = {"__builtins__": {}, "log": np.log10, **numbers, **bands}
        with np.errstate(all="ignore"):
            found = np.asarray(eval(self.code, names), dtype=np.float64)
        return np.where(np.isfinite(found), found, np.nan)

    def free_of_scale(self, constants: Mapping[str, float]) -> bool:
        """Tell whether it is the same for all units: values times a factor give the same."""
        draw = np.random.default_rng(0).uniform(0.1, 0.6, (len(self.bands), 16))
        one, other = (
            self.values(dict(zip(self.bands, factor * draw, strict=True)), constants)
            for factor in (1.0, 0.37)
        )
        return bool(np.allclose(one, other, rtol=1e-9, equal_nan=True))


def known_indices() -> dict[str, Index]:
    """Return all indices by name: those of narrow bands, and where spyndex is installed those of broad ones."""
    return {**_broad(), **_narrow()}


def indices(
    scene: xr.DataArray,
    names: Sequence[str] = ("all",),
    *,
    constants: Mapping[str, float] | None = None,
    progress: Progress | None = None,
) -> Result:
    """Return spectral indices of a scene.

    A broad band of an index is the mean of the scene's bands in its range where three or more narrow ones (less than half
    its width) cover it, and else the one nearest to its middle; a narrow band is the nearest one within half its width or 6 nm.

    Args:
        scene: the scene, in reflectance; in other units only indices that a factor does not change.
        names: of indices, or ``all`` that the scene's bands allow.
        constants: that replace those of the formulas, such as ``L`` of SAVI.
        progress: called with (pixels done, pixels in all).

    Raises:
        VitreousError: there is no such index, or the scene lacks its bands or unit.
    """
    scene, _ = prepared(scene)
    given = dict(constants or {})
    finder = _Finder.of(scene)
    everything = [name.lower() for name in names] == ["all"]
    chosen = list(known_indices().values()) if everything else _named(names)
    _check_constants(given, chosen)
    ready, faults = [], {}
    for index in chosen:
        made = finder.ready(index, given)
        if isinstance(made, str):
            faults[index.name] = made
        else:
            ready.append(made)
    if (faults and not everything) or not ready:
        raise _lacking(faults, scene, everything)
    ready = _in_unit(scene, ready, everything)
    used = np.flatnonzero(
        np.any([row != 0 for one in ready for row in one.weights.values()], axis=0)
    )
    bands = finder.bands[used]

    def compute(spectra: Floats) -> Floats:
        columns = []
        for one in ready:
            values = {name: spectra @ row[used] for name, row in one.weights.items()}
            columns.append(np.broadcast_to(one.index.values(values, one.constants), len(spectra)))
        return np.column_stack(columns)

    image = pixelwise(
        scene, bands, [one.index.name for one in ready], compute, Passes(scene, 1, progress)
    )
    left = len(chosen) - len(ready)
    return Result(
        image,
        facts_of("indices", scene, bands, indices=[one.facts(finder) for one in ready]),
        f"{len(ready)} {'index' if len(ready) == 1 else 'indices'} from {bands.size} bands"
        f"{f'; {left} others need bands, constants or a unit that the scene lacks' if left else ''}.",
        None,
        LOOK,
    )


@dataclass(frozen=True)
class _Ready:
    """An index with the scene's bands for each of its own.

    Attributes:
        index: the index.
        weights: by the name of each of its bands, of the scene's bands.
        constants: all of them.
    """

    index: Index
    weights: dict[str, Floats]
    constants: dict[str, float]

    def facts(self, finder: _Finder) -> dict[str, Any]:
        """What it was computed from, JSON-ready."""
        return {
            "name": self.index.name,
            "title": self.index.title,
            "formula": self.index.formula,
            "source": self.index.source,
            "wavelengths_nm": {
                name: finder.centres[row != 0].tolist() for name, row in self.weights.items()
            },
            "constants": self.constants,
        }


@dataclass(frozen=True)
class _Finder:
    """Finds bands of a scene by wavelength.

    Attributes:
        bands: of the scene, in rising order of their centres.
        centres: in nm.
        widths: fwhm in nm.
    """

    bands: Ints
    centres: Floats
    widths: Floats

    @classmethod
    def of(cls, scene: xr.DataArray) -> _Finder:
        """Raises SceneError where a scene has no wavelengths."""
        if wavelengths_of(scene) is None:
            raise SceneError(
                f"{source_of(scene)} has no wavelengths, so the bands of an index cannot be found.",
                "Give them with wavelengths=... or sensor=... (--hints).",
            )
        return cls(*source_bands(scene, source_of(scene)))

    def ready(self, index: Index, given: Mapping[str, float]) -> _Ready | str:
        """Return an index with its bands, or what it lacks."""
        found = {name: self.broad(*span) for name, span in index.ranges.items()}
        found |= {name: self.narrow(where) for name, where in index.points.items()}
        lost = [_band_words(index, name) for name, row in found.items() if row is None]
        if lost:
            return " and ".join(lost)
        weights = {name: row for name, row in found.items() if row is not None}
        constants = {}
        for name, value in index.constants.items():
            own = weights.get(name.removeprefix(_LAMBDA))
            if name.startswith(_LAMBDA) and own is not None and name not in given:
                value = float(own @ self.centres)
            value = given.get(name, value)
            if value is None:
                return f"the constant {name} (--set {name}=...)"
            constants[name] = float(value)
        return _Ready(index, weights, constants)

    def broad(self, first: float, last: float) -> Floats | None:
        """Return weights of the scene's bands for a broad band, None where there are none."""
        inside = np.flatnonzero((self.centres >= first) & (self.centres <= last))
        middle, width = (first + last) / 2, last - first
        if not inside.size:
            return None
        nearest = inside[np.abs(self.centres[inside] - middle).argmin()]
        if self.widths[nearest] > WIDER * width:
            return None
        row = np.zeros(self.centres.size)
        several = self.widths[nearest] < NARROWER * width and inside.size >= SEVERAL
        chosen = inside if several and self._covers(first, last) else [nearest]
        row[chosen] = 1 / len(chosen)
        return row

    def _covers(self, first: float, last: float) -> bool:
        """Tell whether the scene measures a range without gaps."""
        grid = np.linspace(first, last, 101)
        response = Response("", (first + last) / 2, last - first, grid, np.ones(grid.size))
        return not response_weights([response], self.centres, self.widths)[1][0]

    def narrow(self, where: float) -> Floats | None:
        """Return weights of the scene's bands for a narrow band, None where there is none."""
        nearest = int(np.abs(self.centres - where).argmin())
        width = self.widths[nearest]
        apart = abs(self.centres[nearest] - where)
        if width > NARROW_WIDTH or apart > max(width / 2, NEAR):
            return None
        return np.eye(self.centres.size)[nearest]


def _named(names: Sequence[str]) -> list[Index]:
    known = known_indices()
    by_lower = {name.lower(): index for name, index in known.items()}
    chosen: dict[str, Index] = {}
    for name in names:
        index = by_lower.get(name.strip().lower())
        if index is None:
            raise ConfigError(f"Unknown index: {name}.", _what_there_is(name, known))
        chosen[index.name] = index
    return list(chosen.values())


def _what_there_is(name: str, known: Mapping[str, Index]) -> str:
    advice = did_you_mean(name, known)
    if len(known) == len(NARROW):
        return f"{advice} Those of broad bands come with spyndex: pip install 'vitreous[analysis]'."
    return f"{advice} 'vitreous analyse indices --list' shows all."


def _check_constants(given: Mapping[str, float], chosen: Sequence[Index]) -> None:
    known = {name for index in chosen for name in index.constants}
    for name, value in given.items():
        if name not in known:
            raise ConfigError(
                f"No chosen index has the constant '{name}'.",
                did_you_mean(name, known) if known else "Omit it.",
            )
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value):
            raise ConfigError(f"The constant {name} is {value}.", "It must be a number.")


def _lacking(faults: Mapping[str, str], scene: xr.DataArray, everything: bool) -> SceneError:
    centres = wavelengths_of(scene)
    assert centres is not None
    span = f"{np.nanmin(centres):.0f} to {np.nanmax(centres):.0f} nm"
    if everything:
        return SceneError(
            f"{source_of(scene)} ({span}) has the bands of no index.",
            "'vitreous analyse indices --list' shows which bands each needs.",
        )
    words = "; ".join(f"{name} lacks {what}" for name, what in faults.items())
    return SceneError(
        f"{source_of(scene)} ({span}) has not all bands: {words}.",
        "Choose indices that its bands allow, or 'all' for all of these.",
    )


def _band_words(index: Index, name: str) -> str:
    if name in index.points:
        return f"a band at {index.points[name]:.0f} nm of at most {NARROW_WIDTH:.0f} nm width"
    first, last = index.ranges[name]
    return f"{name} ({first:.0f} to {last:.0f} nm)"


def _in_unit(scene: xr.DataArray, ready: list[_Ready], everything: bool) -> list[_Ready]:
    """Leave out or refuse indices that need reflectance where the scene holds something else."""
    unit = str(scene.attrs.get("unit", "dn"))
    free = [one for one in ready if one.index.free_of_scale(one.constants)]
    bound = [one.index.name for one in ready if one not in free]
    what = _not_reflectance(scene, unit)
    if not what:
        return ready
    if bound and not (everything and free):
        raise SceneError(
            f"{listed(bound, 6)} {'needs' if len(bound) == 1 else 'need'} reflectance from 0 to 1, and {source_of(scene)} "
            f"{what}.",
            "If its values are reflectance times a factor, open it with --hints unit=reflectance --hints scale=0.0001 (or "
            "what the factor is).",
        )
    warnings.warn(
        f"{source_of(scene)} {what}: indices are those of its values, not of reflectance.",
        stacklevel=3,
    )
    return free


def _not_reflectance(scene: xr.DataArray, unit: str) -> str:
    """What a scene holds instead of reflectance from 0 to 1; empty where it is that."""
    if unit != "reflectance":
        return f"holds {unit}"
    seen = spread_spectra(scene, good_bands(scene).astype(np.int64))
    if seen.size and float(np.median(np.abs(seen).mean(axis=1))) > BRIGHT:
        return f"holds values around {np.median(np.abs(seen)):.0f}"
    return ""


@functools.cache
def _narrow() -> dict[str, Index]:
    return {
        name: Index(
            name,
            one.title,
            one.formula,
            one.source,
            points={f"R{nm}": float(nm) for nm in dict.fromkeys(_NARROW.findall(one.formula))},
        )
        for name, one in NARROW.items()
    }


@functools.cache
def _broad() -> dict[str, Index]:
    """The list of spyndex, without indices of radar, of kernels and of temperatures."""
    try:
        import spyndex
    except ImportError:
        return {}
    ranges = {
        name: (float(band.min_wavelength), float(band.max_wavelength))
        for name, band in spyndex.bands.items()
    }
    defaults = {name: constant.default for name, constant in spyndex.constants.items()}
    found = {}
    for name, one in spyndex.indices.items():
        needed = list(one.bands)
        own = {band: ranges[band] for band in needed if band in ranges}
        others = [word for word in needed if word not in ranges]
        if one.application_domain in _SKIPPED or not all(word in defaults for word in others):
            continue
        if any(last > THERMAL for _, last in own.values()):
            continue
        constants = {word: defaults[word] for word in others}
        found[name] = Index(
            name, one.long_name, one.formula, one.reference, own, constants=constants
        )
    return found
