"""How many endmembers a scene tells apart, and which of its pixels are the purest.

- HySime: J. M. Bioucas-Dias, J. M. P. Nascimento (2008), IEEE TGRS 46(8).
- N-FINDR: M. E. Winter (1999), Proceedings of SPIE 3753.
- Vertex component analysis: J. M. P. Nascimento, J. M. Bioucas-Dias (2005), IEEE TGRS 43(4).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import xarray as xr

from vitreous.analysis.pca import sorted_eigen
from vitreous.analysis.statistics import Moments
from vitreous.analysis.streams import Floats, Ints, Passes, tiles

ROUNDS = 5  # replacements for each endmember at most; two or three are usual
_LARGER = 1e-6  # of a volume: less is rounding
_RIDGE = 1e-12  # of the mean power of a band: noise-free scenes have no inverse
_LEAST_NOISE = 1e-5  # of the mean power of the signal, as the authors' program assumes


def signal_dimensions(correlation: Floats) -> int:
    """Return the dimension of the signal subspace by HySime: how many endmembers a scene tells apart.

    The noise of a band is what the other bands do not predict by a linear regression. Directions count that hold more
    power than twice the noise: to leave them out would cost more than to keep their noise.

    Args:
        correlation: ``(bands, bands)``: the mean of x xᵀ over all pixels.
    """
    bands = len(correlation)
    identity = np.eye(bands)
    inverse = np.linalg.inv(correlation + _RIDGE * correlation.trace() / bands * identity)
    # The residual of the regression of each band on all others is (R^-1 x)_i / (R^-1)_ii.
    residual = inverse / inverse.diagonal()[:, None]
    signal = (identity - residual) @ correlation @ (identity - residual).T
    noise = 1 / inverse.diagonal() + _LEAST_NOISE * signal.trace() / bands
    _, axes = sorted_eigen(signal)
    power = np.einsum("bk,bc,ck->k", axes, correlation, axes)
    unwanted = np.einsum("bk,b,bk->k", axes, noise, axes)
    return int((power > 2 * unwanted).sum())


class Pure(NamedTuple):
    """The purest pixels of a scene.

    Attributes:
        spectra: ``(endmembers, bands)``, in the subspace of the signal, without the noise outside of it.
        pixels: ``(endmembers, 2)`` their rows and columns.
    """

    spectra: Floats
    pixels: Ints


def largest_simplex(
    scene: xr.DataArray, bands: Ints, moments: Moments, start: Pure, passes: Passes
) -> Pure:
    """Find endmembers by N-FINDR: the pixels that span the largest volume in the space of principal components.

    Each pass over the scene finds, for every endmember, the pixel that would enlarge the volume most in its place; the best
    of these replacements is made, until none enlarges it. The ratio of the volumes is the pixel's share of the endmember
    that it replaces, so that one inverse gives all ratios.

    Args:
        scene: the scene.
        bands: of it.
        moments: its statistics.
        start: pixels to begin with.
        passes: what counts the pixels.
    """
    count = len(start.spectra)
    axes = sorted_eigen(moments.covariance)[1][:, : count - 1]

    def placed(spectra: Floats) -> Floats:
        return np.column_stack([np.ones(len(spectra)), (spectra - moments.mean) @ axes])

    vertices, pixels = placed(start.spectra), start.pixels.copy()
    for _ in range(ROUNDS * count):
        shares_of = np.linalg.pinv(vertices)
        ratios, best = np.zeros(count), np.zeros((count, count))
        places = np.zeros((count, 2), dtype=np.int64)
        for tile in tiles(scene, bands, passes):
            spectra = placed(tile.spectra)
            if not len(spectra):
                continue
            shares = np.abs(spectra @ shares_of)
            chosen = shares.argmax(axis=0)
            found = shares[chosen, np.arange(count)]
            better = found > ratios
            ratios[better], best[better] = found[better], spectra[chosen[better]]
            places[better] = tile.pixels[chosen[better]]
        k = int(ratios.argmax())
        if ratios[k] <= 1 + _LARGER:
            break
        vertices[k], pixels[k] = best[k], places[k]
    return Pure(moments.mean + vertices[:, 1:] @ axes.T, pixels)


def purest(
    scene: xr.DataArray, bands: Ints, moments: Moments, count: int, seed: int, passes: Passes
) -> Pure:
    """Find endmembers by vertex component analysis: vertices of the simplex that the spectra fill.

    Each pass over the scene finds the pixel that lies farthest in a random direction at right angles to the endmembers
    found so far.

    Args:
        scene: the scene.
        bands: of it.
        moments: its statistics.
        count: how many endmembers, two at least.
        seed: of the directions.
        passes: what counts the pixels; there are ``count`` + 1 passes at most.
    """
    snr = _signal_to_noise(moments, count)
    projection: _Perspective | _Parallel = _Perspective.of(moments, count)
    if snr <= 15 + 10 * np.log10(count):
        projection = _Parallel.of(moments, count, scene, bands, passes)
    random = np.random.default_rng(seed)
    found = np.zeros((count, count))
    found[-1, 0] = 1
    spectra, places = np.zeros((count, bands.size)), np.zeros((count, 2), dtype=np.int64)
    for k in range(count):
        direction = random.standard_normal(count)
        direction -= found @ np.linalg.pinv(found) @ direction
        direction /= np.linalg.norm(direction)
        farthest, spectrum = -1.0, np.zeros(bands.size)
        for tile in tiles(scene, bands, passes):
            own = tile.spectra
            if not len(own):
                continue
            lengths = np.abs(projection.reduced(own) @ direction)
            best = int(lengths.argmax())
            if lengths[best] > farthest:
                farthest, spectrum, places[k] = lengths[best], own[best], tile.pixels[best]
        found[:, k] = projection.reduced(spectrum[None])[0]
        spectra[k] = projection.denoised(spectrum)
    return Pure(spectra, places)


def _signal_to_noise(moments: Moments, count: int) -> float:
    """The ratio in dB of the power in the first components to that in the others."""
    bands = moments.mean.size
    values, _ = sorted_eigen(moments.covariance)
    centre = float(moments.mean @ moments.mean)
    power = float(values.sum()) + centre
    inside = float(values[:count].sum()) + centre
    signal, noise = inside - count / bands * power, power - inside
    if noise <= 0:
        return float("inf")
    return float(10 * np.log10(signal / noise)) if signal > 0 else float("-inf")


class _Perspective(NamedTuple):
    """Of much signal: every spectrum is scaled onto a plane, so that its brightness does not count."""

    axes: Floats
    centre: Floats

    @classmethod
    def of(cls, moments: Moments, count: int) -> _Perspective:
        axes = sorted_eigen(moments.correlation)[1][:, :count]
        return cls(axes, moments.mean @ axes)

    def reduced(self, spectra: Floats) -> Floats:
        """``(pixels, bands)`` to ``(pixels, count)``."""
        inside = spectra @ self.axes
        depth = inside @ self.centre
        # What lies at right angles to the mean, such as a black pixel, has no place on the plane.
        near = depth > 1e-9 * float(self.centre @ self.centre)
        return np.where(near[:, None], inside / np.where(near, depth, 1.0)[:, None], 0.0)

    def denoised(self, spectrum: Floats) -> Floats:
        """The part of a spectrum inside the subspace."""
        return self.axes @ (spectrum @ self.axes)


class _Parallel(NamedTuple):
    """Of much noise: a parallel projection, in which dark pixels are not blown up."""

    axes: Floats
    mean: Floats
    height: float

    @classmethod
    def of(
        cls, moments: Moments, count: int, scene: xr.DataArray, bands: Ints, passes: Passes
    ) -> _Parallel:
        axes = sorted_eigen(moments.covariance)[1][:, : count - 1]
        height = 0.0
        for tile in tiles(scene, bands, passes):
            lengths = np.linalg.norm((tile.spectra - moments.mean) @ axes, axis=1)
            height = max(height, float(lengths.max(initial=0)))
        return cls(axes, moments.mean, height)

    def reduced(self, spectra: Floats) -> Floats:
        """``(pixels, bands)`` to ``(pixels, count)``."""
        inside = (spectra - self.mean) @ self.axes
        return np.column_stack([inside, np.full(len(inside), self.height)])

    def denoised(self, spectrum: Floats) -> Floats:
        """The part of a spectrum inside the subspace."""
        return self.mean + self.axes @ ((spectrum - self.mean) @ self.axes)
