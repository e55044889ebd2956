"""Materials found by their spectrum: spectral angle mapper, matched filter, ACE and CEM.

- SAM: F. A. Kruse et al. (1993), Remote Sensing of Environment 44.
- Matched filter and ACE: D. Manolakis, D. Marden, G. A. Shaw (2003), Lincoln Laboratory Journal 14(1).
- CEM: W. H. Farrand, J. C. Harsanyi (1997), Remote Sensing of Environment 59.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from vitreous.analysis.preview import Look
from vitreous.analysis.result import Result, facts_of, in_bands
from vitreous.analysis.statistics import Background, Moments, scene_moments
from vitreous.analysis.streams import (
    Floats,
    OfSpectra,
    Passes,
    Progress,
    pixelwise,
    prepared,
    source_of,
)
from vitreous.analysis.target_spectra import Library, Targets, find_targets
from vitreous.errors import SceneError

Pixels = Sequence[tuple[int, int]]
_AT_MEAN = (
    1e-12  # of its own size: a target this near to the mean spectrum has no direction from it
)


def sam(
    scene: xr.DataArray,
    *,
    library: Library | str | Path | None = None,
    pixels: Pixels = (),
    progress: Progress | None = None,
) -> Result:
    """Return the angles between each spectrum and those that are looked for, in radians: 0 is the same shape.

    Args:
        scene: the scene.
        library: spectra that are looked for.
        pixels: ``(row, column)`` of pixels whose spectra are looked for, counted from 0.
        progress: called with (pixels done, pixels in all).

    Raises:
        VitreousError: the spectra do not fit the scene.
    """
    scene, bands = prepared(scene)
    targets = find_targets(scene, bands, library, pixels, shape_only=True)
    unit = targets.values / np.linalg.norm(targets.values, axis=1, keepdims=True)

    def angles(spectra: Floats) -> Floats:
        length = np.linalg.norm(spectra, axis=1, keepdims=True)
        with np.errstate(invalid="ignore", divide="ignore"):  # a black pixel has no angle: NaN
            cosines = spectra @ unit.T / length
        found: Floats = np.arccos(np.clip(cosines, -1, 1))
        return found

    return _result("sam", scene, targets, angles, Passes(scene, 1, progress), "angle in radians")


def matched_filter(
    scene: xr.DataArray,
    *,
    library: Library | str | Path | None = None,
    pixels: Pixels = (),
    progress: Progress | None = None,
) -> Result:
    """Return scores of the matched filter: 0 for the mean of the scene, 1 for the spectrum that is looked for.

    Args:
        scene: the scene, whose valid pixels are the background.
        library: spectra that are looked for.
        pixels: ``(row, column)`` of pixels whose spectra are looked for, counted from 0.
        progress: called with (pixels done, pixels in all).

    Raises:
        VitreousError: the spectra do not fit the scene.
    """

    def filters(moments: Moments, targets: Targets, source: str) -> OfSpectra:
        background = Background.of(moments.mean, moments.covariance, source)
        apart = _from_mean(targets, moments.mean)
        weights = background.inverse @ apart.T
        weights /= np.einsum("tb,bt->t", apart, weights)
        return lambda spectra: (spectra - background.mean) @ weights

    return _detected("mf", scene, library, pixels, filters, progress)


def ace(
    scene: xr.DataArray,
    *,
    library: Library | str | Path | None = None,
    pixels: Pixels = (),
    progress: Progress | None = None,
) -> Result:
    """Return scores of the adaptive coherence estimator: squared cosines in whitened space, 0 to 1.

    Args:
        scene: the scene, whose valid pixels are the background.
        library: spectra that are looked for.
        pixels: ``(row, column)`` of pixels whose spectra are looked for, counted from 0.
        progress: called with (pixels done, pixels in all).

    Raises:
        VitreousError: the spectra do not fit the scene.
    """

    def filters(moments: Moments, targets: Targets, source: str) -> OfSpectra:
        background = Background.of(moments.mean, moments.covariance, source)
        apart = _from_mean(targets, moments.mean)
        weights = background.inverse @ apart.T
        strength = np.einsum("tb,bt->t", apart, weights)

        def cosines(spectra: Floats) -> Floats:
            distance = background.distances(spectra)[:, None]
            with np.errstate(invalid="ignore", divide="ignore"):
                found = ((spectra - background.mean) @ weights) ** 2 / (strength * distance)
            return np.where(distance > 0, found, 0.0)  # the mean itself lies in no direction

        return cosines

    return _detected("ace", scene, library, pixels, filters, progress)


def cem(
    scene: xr.DataArray,
    *,
    library: Library | str | Path | None = None,
    pixels: Pixels = (),
    progress: Progress | None = None,
) -> Result:
    """Return scores of constrained energy minimisation: 1 for the spectrum that is looked for, least power for all else.

    Args:
        scene: the scene, whose valid pixels are the background.
        library: spectra that are looked for.
        pixels: ``(row, column)`` of pixels whose spectra are looked for, counted from 0.
        progress: called with (pixels done, pixels in all).

    Raises:
        VitreousError: the spectra do not fit the scene.
    """

    def filters(moments: Moments, targets: Targets, source: str) -> OfSpectra:
        zero = np.zeros_like(moments.mean)
        inverse = Background.of(zero, moments.correlation, source).inverse
        weights = inverse @ targets.values.T
        weights /= np.einsum("tb,bt->t", targets.values, weights)
        return lambda spectra: spectra @ weights

    return _detected("cem", scene, library, pixels, filters, progress)


Filters = Callable[[Moments, Targets, str], OfSpectra]


def _detected(
    name: str,
    scene: xr.DataArray,
    library: Library | str | Path | None,
    pixels: Pixels,
    filters: Filters,
    progress: Progress | None,
) -> Result:
    """Gather the background, and score every pixel."""
    scene, bands = prepared(scene)
    targets = find_targets(scene, bands, library, pixels)
    passes = Passes(scene, 2, progress)
    moments = scene_moments(scene, targets.bands, passes)
    scores = filters(moments, targets, source_of(scene))
    return _result(name, scene, targets, scores, passes, "score")


def _from_mean(targets: Targets, mean: Floats) -> Floats:
    """Return how far targets are from the mean spectrum, ``(targets, bands)``.

    Raises:
        SceneError: one is the mean spectrum.
    """
    apart = targets.values - mean
    for name, row in zip(targets.names, apart, strict=True):
        if np.linalg.norm(row) <= _AT_MEAN * np.linalg.norm(mean):
            raise SceneError(
                f"'{name}' is the mean spectrum of the scene: nothing tells it from the background.",
                "Choose another spectrum, or use 'vitreous analyse sam'.",
            )
    return apart


def _result(
    name: str,
    scene: xr.DataArray,
    targets: Targets,
    scores: OfSpectra,
    passes: Passes,
    what: str,
) -> Result:
    names = [f"{name.upper()} {target}" for target in targets.names]
    return Result(
        pixelwise(scene, targets.bands, names, scores, passes),
        facts_of(
            name,
            scene,
            targets.bands,
            targets=targets.names,
            bands_compared=int(targets.bands.size),
            score=what,
        ),
        f"{what.capitalize()} of {len(names)} {'spectrum' if len(names) == 1 else 'spectra'} in {targets.bands.size} bands.",
        in_bands(scene, targets.bands, targets.values, targets.names),
        Look("viridis_r" if name == "sam" else "viridis", title=str(scene.attrs.get("unit", ""))),
    )
