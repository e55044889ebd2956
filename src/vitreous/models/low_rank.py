"""Truncated singular values: what few spectra explain is signal, the rest is noise."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from vitreous.catalog.arguments import Size
from vitreous.catalog.card import Card
from vitreous.layers.restorer import Restorer

CARD = Card(
    slug="low_rank",
    title="Low-rank approximation by truncated singular value decomposition",
    kind="filter",
    summary="Truncated SVD: keeps the spectral components above the noise level and drops the "
    "rest.",
    when="First choice for denoising: the best classical filter measured under white noise, "
    "close to a trained network, in under a second. Needs many correlated bands.",
    paper="threshold: Gavish and Donoho, IEEE TIT 60(8), 5040-5053",
    year=2014,
    tasks=["restore"],
    variants={"low_rank": {}},
    notes=[
        "Usage: Without rank=, the threshold is Gavish and Donoho's for unknown noise: "
        "omega(beta) times the median singular value, with their cubic approximation of omega.",
    ],
)


class LowRank(Restorer):
    """Approximates the pixels x bands matrix of a cube, less its mean spectrum, by one of low rank.

    Args:
        bands: bands that it was made for; it takes any.
        rank: components to keep; those above the threshold when None.
    """

    any_bands = True

    def __init__(self, bands: int, rank: int | None = None) -> None:
        super().__init__(bands)
        self.rank = rank

    def restore(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> Float[Tensor, "batch bands height width"]:
        """Denoise."""
        pixels = rearrange(x, "b c h w -> b (h w) c")
        mean = pixels.mean(1, keepdim=True)
        left, values, right = torch.linalg.svd(pixels - mean, full_matrices=False)
        kept = left * self._shrunk(values, pixels.shape[1:])[:, None] @ right + mean
        return rearrange(kept, "b (h w) c -> b c h w", h=x.shape[2])

    def _shrunk(self, values: Float[Tensor, "batch k"], shape: torch.Size) -> Tensor:
        """Return the singular values with those of noise set to 0."""
        if self.rank is not None:
            return values * (torch.arange(values.shape[1], device=values.device) < self.rank)
        share = min(shape) / max(shape)
        omega = 0.56 * share**3 - 0.95 * share**2 + 1.82 * share + 1.43
        kept = values > omega * values.median(1, keepdim=True).values
        kept[:, 0] = True  # of very few bands, the median is no noise: something must be left
        return values * kept


def build(bands: int, rank: Size | None = None) -> LowRank:
    """Build the filter."""
    if rank is not None and (not isinstance(rank, int) or rank < 1):
        raise ValueError("rank must be at least 1")
    return LowRank(bands, rank)
