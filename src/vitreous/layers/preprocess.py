"""From a raw cube in physical units to a model's channels, as part of the model."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.errors import ModelError
from vitreous.layers.spectra import Spectra

REDUCTIONS = ("pca", "mnf", "none")
FIT_AT_ONCE = 2**14  # spectra
LEAST_NOISE = 1e-9  # variance in any direction, of the largest
FEWEST_PAIRS = 10  # of neighbouring pixels, to estimate noise from


class Preprocess(nn.Module):
    """What is done to each spectrum (:class:`Spectra`), then an affine map per pixel: z = A (s(x) - m).

    A holds the scaling per band (z-score), the components and their whitening, multiplied out. Pixels without a valid
    measurement (NaN in any band) become the mean, which is z = 0. The buffers travel with every checkpoint and export,
    so a trained model takes raw cubes.

    Args:
        bands: bands of the input.
        channels: channels of the output.
        spectra: what is done to each spectrum, one of ``vitreous.layers.spectra.KINDS``.
    """

    matrix: Tensor
    mean: Tensor

    def __init__(self, bands: int, channels: int, spectra: str = "none") -> None:
        super().__init__()
        self.spectra = Spectra(spectra, bands)
        self.register_buffer("matrix", torch.zeros(channels, bands))
        self.register_buffer("mean", torch.zeros(bands))

    @classmethod
    def fit(
        cls,
        pixels: npt.NDArray[np.floating],
        *,
        spectra: str = "none",
        wavelengths: Sequence[float] | None = None,
        reduction: str = "pca",
        components: int = 15,
        whiten: bool = True,
        standardize: bool = False,
        fractions: npt.NDArray[np.floating] | None = None,
    ) -> Preprocess:
        """Fit on training spectra.

        Args:
            pixels: ``(pixels, bands)``, finite.
            spectra: what is done to each spectrum, one of ``vitreous.layers.spectra.KINDS``.
            wavelengths: of the bands, where known.
            reduction: ``pca``; ``mnf`` for ``fractions``; or ``none`` for a z-score per band.
            components: components to keep; fewer where the spectra span fewer.
            whiten: scale components to unit variance; otherwise only the first has it.
            standardize: z-score the bands before the components are found.
            fractions: what :func:`noise_fractions` returned for the same spectra, for ``mnf``.

        Raises:
            ModelError: fewer than two spectra, or all alike; too few bands or neighbours for what is asked.
        """
        if len(pixels) < 2:
            raise ModelError(
                f"Preprocessing needs at least 2 training pixels, not {len(pixels)}.",
                "Label more pixels.",
            )
        each = Spectra.of(spectra, pixels.shape[1], wavelengths)
        x = _changed(each, pixels)
        mean, deviation = x.mean(0), x.std(0)
        constant = deviation <= 1e-9 * np.maximum(np.abs(mean), 1e-30)
        if constant.all():
            raise ModelError(
                "All training pixels have the same spectrum.", "Check the labels and the scene."
            )
        if constant.sum() > each.constant:
            warnings.warn(
                f"{int(constant.sum())} bands are constant and carry no information.", stacklevel=2
            )
        scale = np.where(constant, 0.0, 1.0 / np.where(constant, 1.0, deviation))
        if reduction == "none":
            matrix = np.diag(scale)
        else:
            weight = scale if standardize else (~constant).astype(np.float64)
            matrix = (
                _components((x - mean) * weight, components, whiten) * weight
                if fractions is None
                else np.asarray(fractions, dtype=np.float64)
            )
        fitted = cls(x.shape[1], len(matrix))
        fitted.spectra = each
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
        found = self.spectra(torch.where(valid, x, torch.zeros_like(x)))
        centred = torch.where(valid, found - mean, torch.zeros_like(x))
        return F.conv2d(centred, self.matrix[:, :, None, None])

    def dark(self) -> Float[Tensor, "channels"] | None:
        """Return the channels of a pixel without light (x = 0): the direction in which illumination moves.

        None where brighter light changes nothing.
        """
        return -self.matrix @ self.mean if self.spectra.keeps_gain else None

    def haze(self) -> Float[Tensor, "channels"] | None:
        """Return what light adds to the channels that is equal in all bands, and as bright as spectra are on average.

        None where spectra are changed so that this is gone, or is no longer the same for all.
        """
        if not self.spectra.keeps_offset:
            return None
        return self.matrix.sum(1) * self.mean.abs().mean()


def _changed(spectra: Spectra, pixels: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Return ``(pixels, bands)`` as a model sees them."""
    if spectra.kind == "none":
        return np.asarray(pixels, dtype=np.float64)
    found = np.empty(pixels.shape)
    for start in range(0, len(pixels), FIT_AT_ONCE):
        some = np.ascontiguousarray(pixels[start : start + FIT_AT_ONCE], dtype=np.float32)
        changed = spectra(torch.from_numpy(some)[:, :, None, None])
        found[start : start + FIT_AT_ONCE] = changed.flatten(1).numpy()
    return found


def noise_fractions(
    neighbours: npt.NDArray[np.floating],
    *,
    spectra: str = "none",
    wavelengths: Sequence[float] | None = None,
    components: int = 15,
    whiten: bool = True,
) -> npt.NDArray[np.float64]:
    """Return components of spectra by their signal-to-noise ratio, the best first (minimum noise fraction).

    Green et al., *A Transformation for Ordering Multispectral Data in Terms of Image Quality with Implications for Noise
    Removal*, IEEE TGRS 26(1), 1988. Differences of neighbouring pixels are noise, and what they are is signal; no labels
    are needed. The unit of a band does not matter.

    Args:
        neighbours: ``(pairs, 2, bands)`` spectra of neighbouring pixels.
        spectra: what is done to each spectrum, one of ``vitreous.layers.spectra.KINDS``.
        wavelengths: of the bands, where known.
        components: how many; fewer where the spectra span fewer.
        whiten: scale each to unit variance; otherwise only the first has it.

    Returns:
        ``(components, bands)``.

    Raises:
        ModelError: there are too few neighbours, or too few bands.
    """
    if len(neighbours) < FEWEST_PAIRS:
        raise ModelError(
            f"Minimum noise fraction (mnf) estimates the noise from neighbouring valid pixels; of {FEWEST_PAIRS} pairs at "
            f"least there are {len(neighbours)}.",
            "Use --reduction pca.",
        )
    each = Spectra.of(spectra, neighbours.shape[2], wavelengths)
    one, other = (_changed(each, neighbours[:, side]) for side in (0, 1))
    turn = _without_noise((one - other) / np.sqrt(2))
    return np.asarray(_components((one - one.mean(0)) @ turn, components, whiten) @ turn.T)


def _without_noise(noise: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return ``(bands, bands)``: centred spectra times this have noise of variance 1 in all directions."""
    from sklearn.covariance import ledoit_wolf

    deviation = np.sqrt(np.square(noise).mean(0))
    deviation[deviation == 0] = 1.0
    # Fewer pairs than bands leave directions without any noise: shrinking their correlations fills them.
    variances, directions = np.linalg.eigh(ledoit_wolf(noise / deviation, assume_centered=True)[0])
    scaled = directions / np.sqrt(np.maximum(variances, LEAST_NOISE * variances[-1]))
    return np.asarray((scaled @ directions.T) / deviation[:, None])


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
