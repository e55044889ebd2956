"""Principal components: uncorrelated images, those of the largest variance first."""

from __future__ import annotations

import numpy as np
import xarray as xr

from vitreous.analysis.components import component_count, projected
from vitreous.analysis.preview import Look
from vitreous.analysis.result import Result, facts_of, in_bands
from vitreous.analysis.statistics import scene_moments, turned
from vitreous.analysis.streams import Floats, Passes, Progress, prepared

LOOK = Look("gray", composite=True, title="loading")


def pca(
    scene: xr.DataArray, *, components: int | None = None, progress: Progress | None = None
) -> Result:
    """Return the principal components of a scene.

    Eigenvectors of the covariance of all valid pixels, of unit length; their largest entry is positive.

    Args:
        scene: the scene.
        components: how many; ten at most when None.
        progress: called with (pixels done, pixels in all).

    Raises:
        VitreousError: too many components, or a scene without valid pixels.
    """
    scene, bands = prepared(scene)
    count = component_count(components, scene, bands)
    passes = Passes(scene, 2, progress)
    moments = scene_moments(scene, bands, passes)
    values, vectors = sorted_eigen(moments.covariance)
    weights = turned(vectors[:, :count])
    names = [f"PC {k}" for k in range(1, count + 1)]
    shares = np.clip(values, 0, None) / np.clip(values, 0, None).sum()
    return Result(
        projected(scene, bands, names, moments.mean, weights, passes),
        facts_of(
            "pca",
            scene,
            bands,
            valid_pixels=moments.count,
            variances=values[:count].tolist(),
            shares_of_variance=shares[:count].tolist(),
        ),
        f"{count} principal components hold {shares[:count].sum():.1%} of the variance of {moments.count:,} pixels.",
        in_bands(scene, bands, weights.T, names),
        LOOK,
    )


def sorted_eigen(matrix: Floats) -> tuple[Floats, Floats]:
    """Return the eigenvalues of a symmetric matrix, the largest first, and the eigenvectors as columns."""
    values, vectors = np.linalg.eigh(matrix)
    return values[::-1], vectors[:, ::-1]
