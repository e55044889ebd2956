"""Bicubic enlargement: what every super-resolver has to beat."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vitreous.catalog.arguments import Size
from vitreous.catalog.card import Card
from vitreous.layers.restorer import Restorer

CARD = Card(
    slug="bicubic",
    title="Bicubic interpolation",
    kind="filter",
    summary="Cubic convolution, band by band.",
    when="Baseline for super-resolution; no training.",
    paper="Keys, IEEE TASSP 29(6), 1153-1160",
    year=1981,
    tasks=["restore"],
    variants={"bicubic": {}},
)


class Bicubic(Restorer):
    """Enlarges ``scale`` times."""

    any_bands = True
    reach = 2

    def __init__(self, bands: int, scale: int) -> None:
        super().__init__(bands)
        self.scale = scale

    def restore(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> Float[Tensor, "batch bands {self.scale}*height {self.scale}*width"]:
        """Enlarge."""
        # Only with antialias is PyTorch's kernel that of Keys, which continues a ramp: a = -1/2, not -3/4.
        return F.interpolate(x, scale_factor=self.scale, mode="bicubic", antialias=True)


def build(bands: int, scale: Size = 4) -> Bicubic:
    """Build the filter for ``scale`` times finer cubes."""
    if not isinstance(scale, int) or scale < 1:
        raise ValueError("scale must be a positive integer")
    return Bicubic(bands, scale)
