"""Means and covariances of whole scenes, gathered tile by tile, and what is derived from them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.analysis.streams import Floats, Ints, Passes, source_of, tiles
from vitreous.errors import SceneError

# Of the largest eigenvalue: what is smaller cannot be told from rounding.
_ROUNDING = 10 * np.finfo(np.float64).eps


class Moments:
    """Count, mean and scatter of spectra that come in parts.

    Parts are merged by the update of Chan, Golub and LeVeque (1983, The American Statistician 37(3)), which keeps
    its digits where the mean is large compared with the deviation.

    Args:
        bands: of the spectra.
    """

    def __init__(self, bands: int) -> None:
        self.count = 0
        self.mean = np.zeros(bands)
        self.scatter = np.zeros((bands, bands))

    def add(self, spectra: Floats) -> None:
        """Add spectra, ``(pixels, bands)``."""
        count = len(spectra)
        if not count:
            return
        mean = spectra.mean(axis=0)
        centred = spectra - mean
        apart = mean - self.mean
        total = self.count + count
        self.scatter += centred.T @ centred
        self.scatter += np.outer(apart, apart) * (self.count * count / total)
        self.mean = self.mean + apart * (count / total)
        self.count = total

    @property
    def covariance(self) -> Floats:
        """``(bands, bands)``, of the sample (divided by the count less one)."""
        return self.scatter / max(1, self.count - 1)

    @property
    def correlation(self) -> Floats:
        """``(bands, bands)``: the mean of x xᵀ, without subtracting the mean spectrum."""
        return self.scatter / max(1, self.count) + np.outer(self.mean, self.mean)


def scene_moments(scene: xr.DataArray, bands: Ints, passes: Passes | None = None) -> Moments:
    """Return the statistics of all valid pixels of a scene.

    Raises:
        SceneError: there are too few, or all are equal.
    """
    moments = Moments(bands.size)
    for tile in tiles(scene, bands, passes):
        moments.add(tile.spectra)
    check_moments(moments, scene)
    return moments


def check_moments(moments: Moments, scene: xr.DataArray) -> None:
    """Refuse a scene whose covariance says nothing.

    Raises:
        SceneError: it has too few valid pixels, or all are equal.
    """
    bands, source = moments.mean.size, source_of(scene)
    if not moments.count:
        raise SceneError(
            f"{source} has no valid pixel.",
            "Check its no-data value and mask with 'vitreous info'.",
        )
    if moments.count <= bands:
        raise SceneError(
            f"{source} has {moments.count} valid pixels, too few for the covariance of {bands} bands.",
            f"Take fewer bands (--hints bands=...) or a scene of more than {bands} valid pixels.",
        )
    if not moments.scatter.diagonal().max() > 0:
        raise SceneError(
            f"All valid pixels of {source} hold the same spectrum.", "There is nothing to analyse."
        )


class Sample:
    """Some of a scene's pixels, drawn at random; which ones does not depend on the tiles they come in.

    The pixels with the smallest hashes of their places are kept.

    Args:
        size: how many.
        width: columns of the scene.
        seed: of the draw.
    """

    def __init__(self, size: int, width: int, seed: int = 0) -> None:
        self._size, self._width, self._seed = size, width, seed
        self._keys = np.zeros(0, dtype=np.uint64)
        self._spectra: Floats | None = None

    def add(self, spectra: Floats, pixels: Ints) -> None:
        """Offer spectra ``(pixels, bands)`` at ``(pixels, 2)`` rows and columns."""
        keys = _hashed(pixels[:, 0] * self._width + pixels[:, 1], self._seed)
        if self._spectra is not None:
            keys = np.concatenate([self._keys, keys])
            spectra = np.concatenate([self._spectra, spectra])
        kept = np.argsort(keys, kind="stable")[: self._size]
        self._keys, self._spectra = keys[kept], spectra[kept]

    @property
    def spectra(self) -> Floats:
        """``(pixels, bands)`` in an order of their own."""
        return np.zeros((0, 0)) if self._spectra is None else self._spectra


def _hashed(numbers: Ints, seed: int) -> npt.NDArray[np.uint64]:
    """SplitMix64 (Steele, Lea and Flood 2014) of numbers: every bit of the input reaches every bit of the output."""
    mixed = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15 * (seed + 1) % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


@dataclass(frozen=True)
class Background:
    """What spectra are compared with: a mean, and the inverse of a covariance.

    Attributes:
        mean: ``(bands,)``.
        inverse: ``(bands, bands)``.
        rank: how many directions have variance; the others count for nothing.
    """

    mean: Floats
    inverse: Floats
    rank: int

    @classmethod
    def of(cls, mean: Floats, covariance: Floats, source: str) -> Background:
        """Invert a covariance; directions without variance are left out, with a warning.

        Args:
            mean: ``(bands,)``.
            covariance: ``(bands, bands)``.
            source: the scene's name, for the warning.
        """
        # Bands in other units differ by orders of magnitude: correlations say which directions are empty.
        deviation = np.sqrt(covariance.diagonal())
        scale = np.where(deviation > 0, 1 / np.where(deviation > 0, deviation, 1), 0)
        values, vectors = np.linalg.eigh(covariance * np.outer(scale, scale))
        kept = values > values[-1] * values.size * _ROUNDING
        if not kept.all():
            warnings.warn(
                f"{source}: {values.size - kept.sum()} of {values.size} directions in its bands have no variance (constant "
                "bands, or bands computed from each other) and are left out.",
                stacklevel=3,
            )
        half = scale[:, None] * vectors[:, kept] / np.sqrt(values[kept])
        return cls(mean, half @ half.T, int(kept.sum()))

    def distances(self, spectra: Floats) -> Floats:
        """Return the squared Mahalanobis distances of ``(pixels, bands)``."""
        centred = spectra - self.mean
        found: Floats = np.einsum("nb,nb->n", centred @ self.inverse, centred)
        return found


def turned(vectors: Floats) -> Floats:
    """Return the columns of ``(bands, components)`` with the sign that makes their largest entry positive.

    The sign of an eigenvector is arbitrary; this one does not depend on the order of the bands.
    """
    largest = np.abs(vectors).argmax(axis=0)
    signs = np.sign(vectors[largest, np.arange(vectors.shape[1])])
    return vectors * np.where(signs == 0, 1, signs)
