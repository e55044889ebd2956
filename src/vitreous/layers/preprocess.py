"""From a raw cube in physical units to a model's channels, as part of the model."""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.errors import ModelError


class Preprocess(nn.Module):
    """An affine map per pixel: z = A (x - m).

    A holds the scaling per band (z-score), the principal components and their whitening, multiplied out. Pixels
    without a valid measurement (NaN in any band) become the mean, which is z = 0. The buffers travel with every
    checkpoint and export, so a trained model takes raw cubes.

    Args:
        bands: bands of the input.
        channels: channels of the output.
    """

    matrix: Tensor
    mean: Tensor

    def __init__(self, bands: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.zeros(channels, bands))
        self.register_buffer("mean", torch.zeros(bands))

    @classmethod
    def fit(
        cls,
        spectra: npt.NDArray[np.floating],
        *,
        reduction: str = "pca",
        components: int = 15,
        whiten: bool = True,
        standardize: bool = False,
    ) -> Preprocess:
        """Fit on training spectra.

        Args:
            spectra: ``(pixels, bands)``, finite.
            reduction: ``pca``, or ``none`` for a z-score per band.
            components: principal components to keep; fewer where the spectra span fewer.
            whiten: scale components to unit variance; otherwise only the first has it.
            standardize: z-score the bands before the components are found.

        Raises:
            ModelError: fewer than two spectra, or all alike.
        """
        x = np.asarray(spectra, dtype=np.float64)
        if len(x) < 2:
            raise ModelError(
                f"Preprocessing needs at least 2 training pixels, not {len(x)}.",
                "Label more pixels.",
            )
        mean, deviation = x.mean(0), x.std(0)
        constant = deviation <= 1e-9 * np.maximum(np.abs(mean), 1e-30)
        if constant.all():
            raise ModelError(
                "All training pixels have the same spectrum.", "Check the labels and the scene."
            )
        if constant.any():
            warnings.warn(
                f"{int(constant.sum())} bands are constant and carry no information.", stacklevel=2
            )
        scale = np.where(constant, 0.0, 1.0 / np.where(constant, 1.0, deviation))
        if reduction == "none":
            matrix = np.diag(scale)
        else:
            weight = scale if standardize else (~constant).astype(np.float64)
            matrix = _components((x - mean) * weight, components, whiten) * weight
        fitted = cls(x.shape[1], len(matrix))
        fitted.matrix.copy_(torch.from_numpy(matrix))
        fitted.mean.copy_(torch.from_numpy(mean))
        return fitted

    @property
    def bands(self) -> int:
        """Bands of the input."""
        return self.matrix.shape[1]

    @property
    def channels(self) -> int:
        """Channels of the output."""
        return self.matrix.shape[0]

    def forward(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Map raw physical values to channels; invalid pixels to 0."""
        mean = self.mean[None, :, None, None]
        valid = torch.isfinite(x).all(dim=1, keepdim=True)
        centred = torch.where(valid, x - mean, torch.zeros_like(x))
        return F.conv2d(centred, self.matrix[:, :, None, None])

    def dark(self) -> Float[Tensor, "channels"]:
        """Return the channels of a pixel without light (x = 0): the direction in which illumination moves."""
        return -self.matrix @ self.mean


def _components(
    centred: npt.NDArray[np.float64], components: int, whiten: bool
) -> npt.NDArray[np.float64]:
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    deviation = singular / np.sqrt(len(centred) - 1)
    rank = int((deviation > 1e-6 * deviation[0]).sum())
    if rank < components:
        warnings.warn(
            f"The training pixels span {rank} components; {components} were asked for.",
            stacklevel=3,
        )
    kept = slice(0, min(components, rank))
    # SVD signs are arbitrary; fix them so that refitting gives the same channels on every machine.
    signs = np.sign(directions[kept][np.arange(kept.stop), np.abs(directions[kept]).argmax(1)])
    scale = deviation[kept] if whiten else np.full(kept.stop, deviation[0])
    return np.asarray(directions[kept] * (signs / scale)[:, None])
