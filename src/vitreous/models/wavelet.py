"""Wavelet shrinkage of bands or principal components."""

from __future__ import annotations

import numpy as np

from vitreous.catalog.card import Card
from vitreous.models._image_filter import Image, ImageFilter, restoration

CARD = Card(
    slug="wavelet",
    title="Adaptive wavelet thresholding for image denoising and compression (BayesShrink)",
    kind="filter",
    summary="Wavelet shrinkage with a threshold per level estimated from the data (BayesShrink).",
    when="A single noisy band, or with wavelet_pca a cube with white noise; no training. "
    "low_rank was better on cubes.",
    paper="Chang, Yu and Vetterli, IEEE TIP 9(9), 1532-1546",
    year=2000,
    source_licence="scikit-image: BSD-3-Clause (used as a library)",
    tasks=["restore"],
    variants={"wavelet": {}, "wavelet_pca": {"components": True}},
    notes=[
        "Usage: The noise level is estimated from the finest wavelet coefficients of each image.",
    ],
)


class Wavelet(ImageFilter):
    """Soft BayesShrink thresholds on an orthogonal wavelet (Daubechies 2)."""

    def denoise(self, image: Image) -> Image:
        """Return one image without its noise."""
        found = restoration().denoise_wavelet(image, wavelet="db2", rescale_sigma=True)
        return np.asarray(found, dtype=np.float32)


def build(bands: int, components: bool = False) -> Wavelet:
    """Build the filter."""
    restoration()
    return Wavelet(bands, components)
