"""How near a restored cube comes to the clean one: PSNR, SSIM, SAM and ERGAS.

PSNR and SSIM are means over the bands, on values scaled to the bands' ranges (peak 1). SAM is the mean angle between
spectra in degrees, and ERGAS the relative error over all bands (Wald, 2000), both on physical values. Where they are
not defined, a spectrum of zeros or a band whose mean is 0 is left out.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vitreous.errors import VitreousError
from vitreous.layers.ranges import BandRange, fill_invalid

FEWEST = 16  # pixels of a side: SSIM compares windows of 11


def quality(
    restored: Float[Tensor, "bands height width"],
    clean: Float[Tensor, "bands height width"],
    ranges: BandRange,
    scale: int = 1,
) -> dict[str, Any]:
    """Compare a restored cube with the clean one.

    Args:
        restored: physical values.
        clean: physical values, NaN where invalid; such pixels do not count.
        ranges: of the bands.
        scale: how many times coarser the degraded cube was; ERGAS is defined with it.

    Returns:
        ``psnr`` (dB), ``ssim``, ``sam`` (degrees), ``ergas``, and ``psnr_per_band``. An exact copy has a PSNR of
        infinity, which is given as 100. SAM and ERGAS are None where no spectrum or band is left.

    Raises:
        VitreousError: cubes of different sizes, too small ones, or no valid pixel.
    """
    # Takes seconds to import, and restoring needs none of it.
    from torchmetrics.functional.image import structural_similarity_index_measure

    if restored.shape != clean.shape:
        raise VitreousError(
            f"The restored cube has the shape {tuple(restored.shape)}, the reference {tuple(clean.shape)}.",
            "Compare cubes on the same grid.",
        )
    if min(clean.shape[1:]) < FEWEST:
        raise VitreousError(
            f"{clean.shape[1]} x {clean.shape[2]} pixels are too few for a comparison.",
            f"Hold out at least {FEWEST} x {FEWEST} for testing: raise test_fraction.",
        )
    clean, valid = fill_invalid(clean)
    if not valid.any():
        raise VitreousError("The reference has no valid pixels.", "Check its no-data value.")
    restored = torch.where(valid, restored, clean)
    a, b = ranges(restored), ranges(clean)
    errors = (a - b)[:, valid].square().mean(1)
    per_band = (-10 * torch.log10(errors.clamp(min=1e-10))).double()
    pixels = restored[:, valid].double(), clean[:, valid].double()
    ssim = structural_similarity_index_measure(a[:, None], b[:, None], data_range=1.0)
    assert isinstance(ssim, Tensor)
    return {
        "psnr": float(per_band.mean()),
        "ssim": float(ssim),
        "sam": _angle(*pixels),
        "ergas": _relative_error(*pixels, scale),
        "psnr_per_band": [round(float(value), 4) for value in per_band],
    }


def _angle(
    restored: Float[Tensor, "bands pixels"], clean: Float[Tensor, "bands pixels"]
) -> float | None:
    from torchmetrics.functional.image import spectral_angle_mapper

    known = (restored != 0).any(0) & (clean != 0).any(0)
    if not known.any():
        return None
    a, b = restored[None, :, known, None], clean[None, :, known, None]
    return float(torch.rad2deg(spectral_angle_mapper(a, b)))


def _relative_error(
    restored: Float[Tensor, "bands pixels"], clean: Float[Tensor, "bands pixels"], scale: int
) -> float | None:
    from torchmetrics.functional.image import error_relative_global_dimensionless_synthesis

    known = clean.mean(1) != 0
    if not known.any():
        return None
    a, b = restored[None, known, :, None], clean[None, known, :, None]
    return float(error_relative_global_dimensionless_synthesis(a, b, ratio=scale))
