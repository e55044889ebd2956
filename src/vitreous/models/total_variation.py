"""Total variation denoising of bands."""

from __future__ import annotations

import numpy as np

from vitreous.catalog.arguments import Positive
from vitreous.catalog.card import Card
from vitreous.models._image_filter import Image, ImageFilter, restoration

CARD = Card(
    slug="total_variation",
    title="An algorithm for total variation minimization and applications",
    kind="filter",
    summary="Total-variation denoising: the piecewise smooth image closest to the noisy one, "
    "with sharp edges.",
    when="Scenes of homogeneous fields with sharp boundaries; no training.",
    paper="Chambolle, J. Math. Imaging Vis. 20, 89-97",
    year=2004,
    source_licence="scikit-image: BSD-3-Clause (used as a library)",
    tasks=["restore"],
    variants={"total_variation": {}},
    notes=[
        "Usage: The weight is a multiple of the noise level estimated from the image.",
    ],
)


class TotalVariation(ImageFilter):
    """Chambolle's projection.

    Args:
        bands: bands that it was made for; it takes any.
        components: work on principal components.
        strength: weight of the total variation in noise levels.
    """

    def __init__(self, bands: int, components: bool, strength: float) -> None:
        super().__init__(bands, components)
        self.strength = strength

    def denoise(self, image: Image) -> Image:
        """Return one image without its noise."""
        found = restoration()
        noise = float(found.estimate_sigma(image))
        if not noise > 0:  # nothing to remove
            return image
        clean = found.denoise_tv_chambolle(image, weight=self.strength * noise)
        return np.asarray(clean, dtype=np.float32)


def build(bands: int, components: bool = False, strength: Positive = 1.5) -> TotalVariation:
    """Build the filter."""
    restoration()
    if not strength > 0:
        raise ValueError("strength must be positive")
    return TotalVariation(bands, components, strength)
