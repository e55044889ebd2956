"""How bright the pixels of a training were, so that a scene in another unit or scale is noticed before it is mapped.

Units are named by files and by users, and both err: a scale factor that is applied once too often turns 3000 into 0.3
or 0.00003, and a network gives every such pixel the same class with confidence. What the values themselves say cannot
be mistaken: a pixel whose bands are nearly all many times brighter, or darker, than those of any training pixel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]

FACTOR = 5.0  # beyond the brightest or darkest training pixel
FEW_BANDS, MOST_BANDS = 5, 95  # percentiles over a pixel's bands: nearly all of them agree
TAILS = (0.1, 99.9)  # percentiles over the training pixels
DARK_BAND = (
    1e-2  # of the brightest band's level: absorption bands hold noise, whose ratios say nothing
)


@dataclass(frozen=True)
class Levels:
    """The brightness of training pixels.

    Attributes:
        typical: median of the magnitudes in each band; 0 for bands too dark to compare.
        darkest: a pixel's brightest bands, relative to ``typical``, of the darkest training pixels.
        brightest: a pixel's darkest bands, relative to ``typical``, of the brightest training pixels.
    """

    typical: tuple[float, ...]
    darkest: float
    brightest: float

    @classmethod
    def fit(cls, spectra: Floats) -> Levels | None:
        """Measure training pixels.

        Args:
            spectra: ``(pixels, bands)`` physical values, finite.

        Returns:
            Their levels, or None where there are no pixels, or every band is 0 in most of them.
        """
        if not len(spectra):
            return None
        typical = np.median(np.abs(np.asarray(spectra, dtype=np.float64)), axis=0)
        if not typical.max(initial=0) > 0:
            return None
        typical[typical < DARK_BAND * typical.max()] = 0
        unscaled = cls(tuple(typical.tolist()), 0.0, 0.0)
        low, high = unscaled._extremes(spectra)
        return replace(
            unscaled,
            darkest=float(np.percentile(high, TAILS[0])),
            brightest=float(np.percentile(low, TAILS[1])),
        )

    def share_outside(self, spectra: Floats) -> tuple[float, float]:
        """Return which shares of some pixels are far darker, and far brighter, than any training pixel.

        Args:
            spectra: ``(pixels, bands)`` physical values, finite.
        """
        if not len(spectra):
            return 0.0, 0.0
        low, high = self._extremes(spectra)
        dark = high * FACTOR < self.darkest
        return float(dark.mean()), float((low > self.brightest * FACTOR).mean())

    def scale_that_fits(self, spectra: Floats) -> float | None:
        """Return the power of ten by which these values become as bright as the training pixels.

        Args:
            spectra: ``(pixels, bands)`` physical values, finite.

        Returns:
            The factor, or None where there is none.
        """
        if not len(spectra):
            return None
        low, high = self._extremes(spectra)
        middle = float(np.median(np.sqrt(low * high)))
        if not middle > 0:
            return None
        factor = float(10.0 ** -np.round(np.log10(middle)))
        return factor if max(self.share_outside(factor * np.asarray(spectra))) < 0.5 else None

    def _extremes(self, spectra: Floats) -> tuple[Floats, Floats]:
        """Return the magnitudes of the darkest and of the brightest bands of pixels, relative to ``typical``."""
        typical = np.asarray(self.typical)
        used = typical > 0
        ratios = np.abs(np.asarray(spectra, dtype=np.float64)[:, used]) / typical[used]
        low, high = np.percentile(ratios, (FEW_BANDS, MOST_BANDS), axis=1)
        return low, high

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "typical": list(self.typical),
            "darkest": self.darkest,
            "brightest": self.brightest,
        }

    @classmethod
    def from_json(cls, value: Any) -> Levels:
        """Rebuild levels.

        Raises:
            LookupError, TypeError, ValueError: the values are no levels.
        """
        typical = tuple(float(v) for v in value["typical"])
        made = cls(typical, float(value["darkest"]), float(value["brightest"]))
        numbers = np.array([*typical, made.darkest, made.brightest])
        if not (np.isfinite(numbers).all() and numbers.min() >= 0 and max(typical) > 0):
            raise ValueError(f"levels of {value}")
        return made
