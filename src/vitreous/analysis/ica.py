"""Independent components: images whose values are as far from a normal distribution as can be.

FastICA (A. Hyvärinen, E. Oja 2000, Neural Networks 13) of scikit-learn, on principal components of unit variance. Means
and covariance are those of the whole scene; the rotation is found on a sample of its pixels.
"""

from __future__ import annotations

import warnings

import numpy as np
import xarray as xr

from vitreous.analysis.components import component_count, projected
from vitreous.analysis.pca import LOOK, sorted_eigen
from vitreous.analysis.result import Result, facts_of, in_bands
from vitreous.analysis.statistics import Moments, Sample, check_moments
from vitreous.analysis.streams import Floats, Passes, Progress, prepared, source_of, tiles
from vitreous.errors import ConfigError

SAMPLE = 10_000  # pixels
ROUNDS = 500
_LEAST = 1e-10  # of the first variance: a component of less holds rounding


def ica(
    scene: xr.DataArray,
    *,
    components: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Result:
    """Return independent components of a scene, those that are farthest from normal (by kurtosis) first.

    Args:
        scene: the scene.
        components: how many; ten at most when None.
        seed: of the sample and of the first rotation.
        progress: called with (pixels done, pixels in all).

    Raises:
        VitreousError: too many components, or a scene without valid pixels.
    """
    scene, bands = prepared(scene)
    count = component_count(components, scene, bands)
    passes = Passes(scene, 2, progress)
    moments, sample = Moments(bands.size), Sample(SAMPLE, scene.sizes["x"], seed)
    for tile in tiles(scene, bands, passes):
        moments.add(tile.spectra)
        sample.add(tile.spectra, tile.pixels)
    check_moments(moments, scene)
    values, vectors = sorted_eigen(moments.covariance)
    _check_count(count, values, scene)
    whitening = vectors[:, :count] / np.sqrt(values[:count])
    white = (sample.spectra - moments.mean) @ whitening
    weights = whitening @ _rotation(white, seed)
    weights, kurtosis = _ordered(weights, sample.spectra - moments.mean)
    names = [f"IC {k}" for k in range(1, count + 1)]
    return Result(
        projected(scene, bands, names, moments.mean, weights, passes),
        facts_of(
            "ica",
            scene,
            bands,
            valid_pixels=moments.count,
            sample=len(white),
            seed=seed,
            excess_kurtosis=kurtosis.tolist(),
        ),
        f"{count} independent components of {len(white):,} sampled pixels; excess kurtosis {kurtosis[0]:.3g} to "
        f"{kurtosis[-1]:.3g}.",
        in_bands(scene, bands, weights.T, names),
        LOOK,
    )


def _check_count(count: int, variances: Floats, scene: xr.DataArray) -> None:
    most = int((variances > _LEAST * variances[0]).sum())
    if count > most:
        raise ConfigError(
            f"{source_of(scene)} varies in {most} directions, too few for {count} independent components.",
            f"Choose at most {most} components.",
        )


def _rotation(white: Floats, seed: int) -> Floats:
    """The rotation ``(components, components)`` of white data that makes them independent."""
    from sklearn.decomposition import FastICA
    from sklearn.exceptions import ConvergenceWarning

    size = white.shape[1]
    first = np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))[0]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = FastICA(whiten=False, w_init=first, max_iter=ROUNDS, tol=1e-4).fit(white)
    if any(issubclass(one.category, ConvergenceWarning) for one in said):
        warnings.warn(
            f"FastICA has not converged after {ROUNDS} rounds: the components depend on the seed. Fewer components, or "
            "those of 'vitreous analyse mnf', are more certain.",
            stacklevel=3,
        )
    rotation: Floats = found.components_.T
    return rotation


def _ordered(weights: Floats, centred: Floats) -> tuple[Floats, Floats]:
    """Order components by the size of their excess kurtosis, and turn each so that its longer tail is positive."""
    scores = centred @ weights
    scores = scores - scores.mean(axis=0)
    scale = scores.std(axis=0)
    kurtosis = (scores**4).mean(axis=0) / scale**4 - 3
    order = np.argsort(-np.abs(kurtosis), kind="stable")
    tails = np.where((scores**3).mean(axis=0) < 0, -1.0, 1.0)
    return (weights * tails)[:, order], kurtosis[order]
