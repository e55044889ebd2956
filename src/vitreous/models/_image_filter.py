"""Filters of scikit-image, as restorers."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from vitreous.errors import ModelError
from vitreous.layers.restorer import Restorer

Image = npt.NDArray[np.float32]


class ImageFilter(Restorer):
    """Denoises images one by one: the bands of a cube, or its principal components.

    A subclass writes :meth:`denoise`.

    Args:
        bands: bands that it was made for; it takes any.
        components: work on the principal components of the cube, where noise is told from signal more easily.
    """

    any_bands = True

    def __init__(self, bands: int, components: bool) -> None:
        super().__init__(bands)
        self.components = components

    def denoise(self, image: Image) -> Image:
        """Return one image, which is not constant, without its noise."""
        raise NotImplementedError

    def restore(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> Float[Tensor, "batch bands height width"]:
        """Denoise."""
        cubes = x.detach().cpu().numpy()
        restored = np.stack([self._cube(cube) for cube in cubes])
        return torch.from_numpy(restored).to(x)

    def _image(self, image: Image) -> Image:
        return image if float(np.ptp(image)) == 0 else self.denoise(image)

    def _cube(self, cube: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if not self.components:
            return np.stack([self._image(band) for band in cube])
        bands = cube.shape[0]
        flat = cube.reshape(bands, -1)
        mean = flat.mean(1, keepdims=True)
        directions = np.linalg.svd(flat - mean, full_matrices=False)[0]
        images = (directions.T @ (flat - mean)).reshape(-1, *cube.shape[1:])
        clean = np.stack([self._image(image) for image in images]).reshape(len(images), -1)
        return (directions @ clean + mean).reshape(cube.shape).astype(np.float32)


def restoration() -> Any:
    """Return ``skimage.restoration``.

    Raises:
        ModelError: it is not installed.
    """
    try:
        import pywt  # noqa: F401  (scikit-image asks for it only when it is used)
        from skimage import restoration as found
    except ImportError as error:
        raise ModelError(
            "scikit-image and PyWavelets are not installed.", "pip install 'vitreous[filters]'."
        ) from error
    return found
