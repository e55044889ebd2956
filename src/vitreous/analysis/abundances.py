"""Fully constrained least squares: shares of endmembers that are not negative and sum to one.

The criterion is that of D. C. Heinz, C.-I. Chang (2001), IEEE TGRS 39(3). It is solved exactly by an active-set method (C. L.
Lawson, R. J. Hanson 1974, Solving Least Squares Problems, chapter 23) in which the sum is kept as an equality, for all
pixels at once: those with the same endmembers at work share a factorisation, as M. H. Van Benthem and M. R. Keenan (2004,
Journal of Chemometrics 18) do without that equality.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vitreous.analysis.streams import Floats, Mask

MOST = 62  # endmembers: which of them are at work is kept in the bits of an integer
_ZERO = 1e-12  # of the endmembers' size


def fcls(spectra: Floats, endmembers: Floats) -> Floats:
    """Return the shares of endmembers in spectra.

    Args:
        spectra: ``(pixels, bands)``.
        endmembers: ``(endmembers, bands)``, none a weighted mean of others.

    Returns:
        ``(pixels, endmembers)``, none negative, each row with the sum 1.
    """
    scale = np.abs(endmembers).max()
    gram = endmembers @ endmembers.T / scale**2
    projections = spectra @ endmembers.T / scale**2
    tolerance = _ZERO * float(np.trace(gram))
    count = len(endmembers)
    nearest = (gram.diagonal() - 2 * projections).argmin(axis=1)
    shares = np.eye(count)[nearest]
    support = shares > 0
    open_ = np.arange(len(spectra))
    for _ in range(3 * count):  # each round adds one endmember; beyond, only rounding is shuffled
        slope = projections[open_] - shares[open_] @ gram
        gain = slope - (shares[open_] * slope).sum(axis=1, keepdims=True)
        gain[support[open_]] = -np.inf
        best = gain.argmax(axis=1)
        better = gain[np.arange(open_.size), best] > tolerance
        open_, best = open_[better], best[better]
        if not open_.size:
            break
        support[open_, best] = True
        _settle(open_, shares, support, projections, gram)
    return shares


def _settle(
    pixels: npt.NDArray[np.int64], shares: Floats, support: Mask, projections: Floats, gram: Floats
) -> None:
    """Move some pixels to the best shares on their supports; endmembers that would become negative leave them."""
    for _ in range(gram.shape[0]):
        wanted = _on_support(support[pixels], projections[pixels], gram)
        negative = (wanted < 0) & support[pixels]
        going = negative.any(axis=1)
        shares[pixels[~going]] = wanted[~going]
        pixels, wanted, negative = pixels[going], wanted[going], negative[going]
        if not pixels.size:
            return
        now = shares[pixels]
        # As far towards the wanted shares as none becomes negative.
        with np.errstate(invalid="ignore", divide="ignore"):
            steps = np.where(negative, now / (now - wanted), np.inf)
        step = steps.min(axis=1, keepdims=True)
        moved = np.clip(now + step * (wanted - now), 0, None)
        leaving = negative & (steps <= step)
        moved[leaving] = 0
        shares[pixels] = moved / moved.sum(axis=1, keepdims=True)
        support[pixels] &= ~leaving


def _on_support(support: Mask, projections: Floats, gram: Floats) -> Floats:
    """The best shares that sum to one, of whatever sign, of the endmembers in each pixel's support."""
    codes = support @ (1 << np.arange(support.shape[1], dtype=np.int64))
    result = np.zeros(support.shape)
    for code in np.unique(codes):
        rows = np.flatnonzero(codes == code)
        members = np.flatnonzero(support[rows[0]])
        size = members.size
        system = np.ones((size + 1, size + 1))
        system[:size, :size] = gram[np.ix_(members, members)]
        system[size, size] = 0
        inverse = np.linalg.pinv(system, hermitian=True)
        found = projections[np.ix_(rows, members)] @ inverse[:size, :size] + inverse[size, :size]
        result[np.ix_(rows, members)] = found
    return result
