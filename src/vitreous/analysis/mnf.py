"""Minimum noise fraction: images in the order of their signal-to-noise ratio.

A. A. Green, M. Berman, P. Switzer, M. D. Craig (1988), IEEE TGRS 26(1), in the form of noise-adjusted principal components
(J. B. Lee, A. S. Woodyatt, M. Berman 1990, IEEE TGRS 28(3)): the noise is made white, then principal components are taken.
"""

from __future__ import annotations

import warnings

import numpy as np
import xarray as xr

from vitreous.analysis.components import component_count, projected
from vitreous.analysis.pca import LOOK, sorted_eigen
from vitreous.analysis.result import Result, facts_of, in_bands
from vitreous.analysis.statistics import Moments, check_moments, turned
from vitreous.analysis.streams import Floats, Passes, Progress, prepared, source_of, tiles
from vitreous.errors import ConfigError, SceneError

ENOUGH = 10  # pixels per band, for covariances that tell signal from chance
_ROUNDING = 1e-12  # of the largest eigenvalue of the noise's correlations


def mnf(
    scene: xr.DataArray, *, components: int | None = None, progress: Progress | None = None
) -> Result:
    """Return the minimum noise fraction components of a scene.

    The noise is that of differences between diagonal neighbours (half their covariance). In every component it has the
    variance 1, and the variance of a component less 1 is its signal-to-noise ratio.

    Args:
        scene: the scene.
        components: how many; ten at most when None.
        progress: called with (pixels done, pixels in all).

    Raises:
        VitreousError: too many components, a scene without valid pixels, or one without noise.
    """
    scene, bands = prepared(scene)
    count = component_count(components, scene, bands)
    passes = Passes(scene, 2, progress)
    signal, noise = Moments(bands.size), Moments(bands.size)
    for tile in tiles(scene, bands, passes, beyond=1):
        own = tile._replace(
            values=tile.values[:, : _own(tile.rows, scene, "y"), : _own(tile.columns, scene, "x")]
        )
        signal.add(own.spectra)
        noise.add(_differences(tile.values))
    check_moments(signal, scene)
    whitening = _whitening(noise, scene)
    _warn_of_few(signal.count, scene, bands.size)
    values, vectors = sorted_eigen(whitening.T @ signal.covariance @ whitening)
    if components is not None and components > values.size:
        raise ConfigError(
            f"{components} components cannot be had of {source_of(scene)}: noise is in {values.size} directions of its bands.",
            f"Choose 1 to {values.size}.",
        )
    count = min(count, values.size)
    weights = turned(whitening @ vectors[:, :count])
    names = [f"MNF {k}" for k in range(1, count + 1)]
    above = int((values > 2).sum())
    return Result(
        projected(scene, bands, names, signal.mean, weights, passes),
        facts_of(
            "mnf",
            scene,
            bands,
            valid_pixels=signal.count,
            pairs_of_neighbours=noise.count,
            signal_to_noise=(values[:count] - 1).tolist(),
            above_noise=above,
        ),
        f"{above} of {values.size} components have more signal than noise; the ratio of the first is {values[0] - 1:.3g}.",
        in_bands(scene, bands, weights.T, names),
        LOOK,
    )


def _own(span: slice, scene: xr.DataArray, dim: str) -> int:
    """How many rows or columns of a tile are not those of the next one."""
    last = span.stop == scene.sizes[dim]
    return span.stop - span.start - (not last)


def _differences(values: np.ndarray) -> Floats:
    """Differences of diagonal neighbours that are both valid, ``(pairs, bands)``."""
    apart = values[:, :-1, :-1].astype(np.float64) - values[:, 1:, 1:]
    flat = apart.reshape(len(values), -1).T
    found: Floats = flat[np.isfinite(flat).all(axis=1)]
    return found


def _whitening(noise: Moments, scene: xr.DataArray) -> Floats:
    """Return what makes the noise white, ``(bands, directions)``; directions without noise are left out, with a warning.

    Raises:
        SceneError: there are too few neighbours, or no direction has noise.
    """
    source, bands = source_of(scene), noise.mean.size
    if noise.count <= bands:
        raise SceneError(
            f"{source} has {noise.count} pairs of valid diagonal neighbours, too few for the noise of {bands} bands.",
            "Take fewer bands (--hints bands=...), or 'vitreous analyse pca', which needs no noise.",
        )
    covariance = noise.covariance / 2
    deviation = np.sqrt(covariance.diagonal())
    scale = np.where(deviation > 0, 1 / np.where(deviation > 0, deviation, 1), 0)
    values, vectors = np.linalg.eigh(covariance * np.outer(scale, scale))
    kept = values > _ROUNDING * values[-1]
    if not kept.any():
        raise SceneError(
            f"The bands of {source} have no noise: neighbouring pixels are equal.",
            "Use 'vitreous analyse pca', which needs no noise.",
        )
    if not kept.all():
        warnings.warn(
            f"{source}: {bands - kept.sum()} of {bands} directions in its bands have no noise (constant bands, or bands "
            "computed from each other) and are left out.",
            stacklevel=3,
        )
    root: Floats = scale[:, None] * vectors[:, kept] / np.sqrt(values[kept])
    return root


def _warn_of_few(pixels: int, scene: xr.DataArray, bands: int) -> None:
    """Warn where so few pixels estimate the covariances that chance alone shows signal."""
    if pixels < ENOUGH * bands:
        warnings.warn(
            f"{source_of(scene)} has {pixels:,} valid pixels for {bands} bands; with fewer than {ENOUGH} per band, chance "
            "raises the first ratios of signal to noise, and the number of components above the noise.",
            stacklevel=3,
        )
