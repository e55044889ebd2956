"""What is done to the spectrum of a pixel by itself, so that its shape tells more than its brightness.

==========  =====================================================================================
kind        every spectrum ...
==========  =====================================================================================
none        stays as it is
snv         gets mean 0 and deviation 1 over its bands (standard normal variate; Barnes, Dhanoa and
            Lister, Applied Spectroscopy 43(5), 1989): gain and offset are gone
continuum   is divided by its upper convex hull over wavelength (Clark and Roush, JGR 89(B7), 1984):
            absorption features remain, 1 where there are none
derivative  becomes its slope per nm, of a parabola fitted to the neighbouring bands (Savitzky and
            Golay, Analytical Chemistry 36(8), 1964), by wavelength, so that gaps between bands count
brightness  gets the Euclidean length 1, so that the angle between two spectra is all that differs
==========  =====================================================================================

Where wavelengths are not known, bands count as evenly spaced.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.errors import ModelError

# Bands that a kind needs before spectra can differ.
KINDS = {"none": 1, "snv": 3, "continuum": 3, "derivative": 2, "brightness": 2}
WINDOW, DEGREE = 7, 2  # of the derivative: bands, and of the polynomial
FLAT = 1e-6  # of the largest value of a spectrum: less than that is rounding
CLOSEST = 1e-3  # of the median distance of bands: where two overlap, they are held so far apart


class Spectra(nn.Module):
    """Changes every spectrum by itself; finite values give finite values.

    What depends on wavelengths is in buffers, which :meth:`of` fills and files hold.

    Args:
        kind: one of :data:`KINDS`.
        bands: of the spectra.

    Raises:
        ModelError: no such kind, or too few bands for it.
    """

    slopes: Tensor
    positions: Tensor

    def __init__(self, kind: str, bands: int) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ModelError(f"Unknown spectral preprocessing: {kind}.", f"Use {_names()}.")
        if bands < KINDS[kind]:
            raise ModelError(
                f"Spectral preprocessing '{kind}' needs {KINDS[kind]} bands or more, not {bands}.",
                "Use --spectra none.",
            )
        self.kind, self.bands = kind, bands
        if kind == "derivative":
            self.register_buffer("slopes", torch.zeros(bands, bands))
        if kind == "continuum":
            self.register_buffer("positions", torch.zeros(bands))

    @classmethod
    def of(cls, kind: str, bands: int, wavelengths: Sequence[float] | None = None) -> Spectra:
        """Return what is ready for some bands.

        Args:
            kind: one of :data:`KINDS`.
            bands: of the spectra.
            wavelengths: ``(bands,)`` in any unit and order; evenly spaced when None.

        Raises:
            ModelError: no such kind, or too few bands for it.
        """
        made = cls(kind, bands)
        places = _increasing(range(bands) if wavelengths is None else wavelengths)
        if kind == "derivative":
            made.slopes.copy_(torch.from_numpy(_slopes(places)))
        if kind == "continuum":
            made.positions.copy_(torch.from_numpy(places))
        return made

    @property
    def keeps_gain(self) -> bool:
        """Whether brighter pixels have larger values still."""
        return self.kind in {"none", "derivative"}

    @property
    def keeps_offset(self) -> bool:
        """Whether light that is equal in all bands adds the same to every spectrum still."""
        return self.kind == "none"

    @property
    def constant(self) -> int:
        """How many bands are the same whatever the spectrum: a hull begins and ends with it."""
        return 2 if self.kind == "continuum" else 0

    def forward(self, x: Float[Tensor, "batch bands h w"]) -> Float[Tensor, "batch bands h w"]:
        """Change spectra of finite values."""
        if self.kind == "snv":
            return _standardized(x)
        if self.kind == "brightness":
            return _divided(x, torch.linalg.vector_norm(x, dim=1, keepdim=True), x)
        if self.kind == "derivative":
            return F.conv2d(x, self.slopes[:, :, None, None])
        if self.kind == "continuum":
            hull = upper_hull(x, self.positions)
            return _divided(x, hull, x).where(hull > _rounding(x), torch.ones_like(x))
        return x


def _names() -> str:
    return ", ".join(KINDS)


def _rounding(x: Float[Tensor, "batch bands h w"]) -> Float[Tensor, "batch 1 h w"]:
    """Return what is too small to be told from 0 in every spectrum."""
    return FLAT * x.abs().amax(1, keepdim=True)


def _divided(x: Tensor, by: Tensor, of: Tensor) -> Tensor:
    """Return ``x / by``, 0 where the divisor is too small beside the spectra ``of``."""
    told = by > _rounding(of)
    return torch.where(told, x / torch.where(told, by, torch.ones_like(by)), torch.zeros_like(x))


def _standardized(x: Float[Tensor, "batch bands h w"]) -> Float[Tensor, "batch bands h w"]:
    centred = x - x.mean(1, keepdim=True)
    return _divided(centred, centred.square().mean(1, keepdim=True).sqrt(), x)


def upper_hull(
    x: Float[Tensor, "batch bands h w"], positions: Float[Tensor, "bands"]
) -> Float[Tensor, "batch bands h w"]:
    """Return the upper convex hull of every spectrum, at its bands.

    From the first band on, the next corner of the hull is the band that is seen under the steepest slope. All spectra
    take this step together, at most once for each band.

    Args:
        x: the spectra.
        positions: of the bands, all different, in any order.
    """
    places = positions[None, :, None, None].expand_as(x)
    corner = positions.argmin().expand(x[:, :1].shape)
    hull = x
    for _ in range(x.shape[1] - 1):
        ahead_by = places - places.gather(1, corner)
        ahead = ahead_by > 0
        if not torch.compiler.is_exporting() and not ahead.any():
            break  # a graph has no such way out, and takes steps that change nothing
        rise = x - x.gather(1, corner)
        slope = torch.where(ahead, rise / torch.where(ahead, ahead_by, 1.0), -torch.inf)
        steepest, following = slope.max(1, keepdim=True)
        passed = ahead & (places < places.gather(1, following))
        line = x.gather(1, corner) + torch.where(passed, steepest, 0.0) * ahead_by
        hull = torch.where(passed, torch.maximum(line, x), hull)
        corner = torch.where(ahead.any(1, keepdim=True), following, corner)
    return hull


def _increasing(wavelengths: Sequence[float] | range) -> npt.NDArray[np.float64]:
    """Return positions of bands that all differ: detectors overlap, and a slope needs a distance."""
    places = np.asarray(wavelengths, dtype=np.float64)
    order = np.argsort(places, kind="stable")
    sorted_places = places[order]
    gaps = np.diff(sorted_places)
    usual = np.median(gaps[gaps > 0]) if (gaps > 0).any() else 1.0
    apart = np.maximum(gaps, CLOSEST * usual)
    places[order] = sorted_places[:1] + np.concatenate([[0.0], np.cumsum(apart)])
    return places


def _slopes(places: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return ``(bands, bands)``: times a spectrum, its slope at every band."""
    bands = len(places)
    window = min(WINDOW, bands)
    degree = min(DEGREE, window - 1)
    order = np.argsort(places, kind="stable")
    matrix = np.zeros((bands, bands))
    for rank, band in enumerate(order):
        first = min(max(rank - window // 2, 0), bands - window)
        near = order[first : first + window]
        distances = places[near] - places[band]
        scale = np.abs(distances).max()
        powers = np.vander(distances / scale, degree + 1, increasing=True)
        matrix[band, near] = np.linalg.pinv(powers)[1] / scale
    return matrix
