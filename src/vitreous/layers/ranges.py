"""From physical values to those that restorers see, and back."""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vitreous.errors import ConfigError, ModelError, did_you_mean

SCOPES = ("band", "scene")  # what has a range of its own
TAILS = (0.1, 99.9)  # percentiles: a single spike must not decide what "white" is


class BandRange(nn.Module):
    """Scales every band so that its darkest and brightest usual values become 0 and 1.

    Args:
        bands: bands of the cubes.

    Attributes:
        low: what becomes 0, per band.
        span: what becomes 1, less ``low``; 1 for constant bands, which become 0.
    """

    low: Tensor
    span: Tensor

    def __init__(self, bands: int) -> None:
        super().__init__()
        self.register_buffer("low", torch.zeros(bands))
        self.register_buffer("span", torch.ones(bands))

    @classmethod
    def fit(cls, spectra: npt.NDArray[np.floating], per: str = "band") -> BandRange:
        """Fit on the spectra of some pixels.

        Args:
            spectra: ``(pixels, bands)``, finite.
            per: ``band``, or ``scene`` for one range for all bands.

        Raises:
            ModelError: no pixel, or all of them alike.
            ConfigError: ``per`` is neither.
        """
        if per not in SCOPES:
            raise ConfigError(f"Value ranges cannot be per '{per}'.", did_you_mean(per, SCOPES))
        x = np.asarray(spectra, dtype=np.float64)
        if not x.size:
            raise ModelError(
                "There are no valid pixels to compute the value range from.",
                "Check the scene's no-data value and bad bands with 'vitreous info'.",
            )
        axis = 0 if per == "band" else None
        low, high = (np.broadcast_to(p, x.shape[1]) for p in np.percentile(x, TAILS, axis=axis))
        constant = high - low <= 1e-9 * np.maximum(np.abs(high), 1e-30)
        if constant.all():
            raise ModelError("All pixels have the same spectrum.", "Check the scene.")
        if constant.any():
            warnings.warn(
                f"{int(constant.sum())} bands are constant and carry no information.", stacklevel=2
            )
        fitted = cls(x.shape[1])
        fitted.low.copy_(torch.from_numpy(low.copy()))
        fitted.span.copy_(torch.from_numpy(np.where(constant, 1.0, high - low)))
        return fitted

    def forward(
        self, x: Float[Tensor, "*batch bands height width"]
    ) -> Float[Tensor, "*batch bands height width"]:
        """Scale physical values."""
        return (x - self.low[:, None, None]) / self.span[:, None, None]

    def inverse(
        self, x: Float[Tensor, "*batch bands height width"]
    ) -> Float[Tensor, "*batch bands height width"]:
        """Return physical values."""
        return x * self.span[:, None, None] + self.low[:, None, None]


def fill_invalid(
    x: Float[Tensor, "bands height width"],
) -> tuple[Float[Tensor, "bands height width"], Bool[Tensor, "height width"]]:
    """Put the mean spectrum of the valid pixels where there is none, and tell which were valid.

    Where no pixel is valid, zeros are put.
    """
    valid = torch.isfinite(x).all(0)
    if valid.all():
        return x, valid
    mean = x[:, valid].mean(1) if valid.any() else torch.zeros_like(x[:, 0, 0])
    return torch.where(valid, x, mean[:, None, None]), valid


def fill_tiles(
    x: Float[Tensor, "tiles bands height width"],
) -> Float[Tensor, "tiles bands height width"]:
    """Do what :func:`fill_invalid` does with each tile, by operators that every graph has."""
    valid = x.isfinite().all(1, keepdim=True)
    count = valid.sum((2, 3), keepdim=True).clamp(min=1)
    mean = torch.where(valid, x, 0.0).sum((2, 3), keepdim=True) / count
    return torch.where(valid, x, mean)
