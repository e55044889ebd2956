"""Changes of training spectra that leave their class as it is: light, haze, missing bands, mixing with the surroundings.

Training pixels come from a few fields of one hour. The same material elsewhere lies in more or less light, under more or
less haze, and shares its pixels with what lies around it. What a network sees is changed accordingly, in the space of its
channels z = A (s - m), where every one of these changes is linear in the bands s:

==============  ===========================================================================================
illumination    s (1 + g): z moves away from the channels of a pixel without light
haze            s + o, the same in all bands: z moves along the sum of the columns of A
background      (1 - a) s + a b, b the spectrum of an unlabelled pixel of the scene: a mixture of the channels
missing bands   a run of neighbouring bands becomes its mean. The bands are estimated from the channels (exactly
                where nothing was reduced, by least squares otherwise), and what they add to these is taken away
noise           z + n
==============  ===========================================================================================

All of it is drawn once for a region, a patch or tile, but for noise, which is drawn for every value.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vitreous.layers.preprocess import Preprocess

Regions = Float[Tensor, "regions channels height width"]


@dataclass(frozen=True)
class SpectralAugment:
    """Draws changes of training spectra, illumination apart (:func:`brightened`).

    Attributes:
        preprocess: makes channels of bands.
        offset: standard deviation of the haze, as a share of the mean brightness.
        background: largest share of an unlabelled pixel.
        missing: largest share of the bands that are missing.
        noise: standard deviation of the noise.
        unlabelled: channels of unlabelled pixels to mix with.
    """

    preprocess: Preprocess
    offset: float = 0.0
    background: float = 0.0
    missing: float = 0.0
    noise: float = 0.0
    unlabelled: Float[Tensor, "pixels channels"] | None = None

    def difference(self, regions: Regions) -> Regions | None:
        """Return what changes add to regions; None where nothing is changed."""
        steps = (self._mixed, self._hazed, self._without_bands, self._noisy)
        total: Tensor | None = None
        for step in steps:
            found = step(regions if total is None else regions + total)
            if found is not None:
                total = found if total is None else total + found
        return total

    def _mixed(self, regions: Regions) -> Regions | None:
        if not self.background or self.unlabelled is None:
            return None
        count, device = len(regions), regions.device
        chosen = torch.randint(len(self.unlabelled), (count,), device=device)
        share = self.background * torch.rand(count, 1, 1, 1, device=device)
        return share * (self.unlabelled.to(device)[chosen][:, :, None, None] - regions)

    def _hazed(self, regions: Regions) -> Regions | None:
        haze = self.preprocess.haze() if self.offset else None
        if haze is None:
            return None
        amount = self.offset * torch.randn(len(regions), 1, 1, 1, device=regions.device)
        return (amount * haze.to(regions.device)[:, None, None]).expand_as(regions)

    def _without_bands(self, regions: Regions) -> Regions | None:
        if not self.missing:
            return None
        matrix = self.preprocess.matrix.to(regions.device)
        kept = drawn_bands(len(regions), matrix.shape[1], self.missing, regions.device)
        bands = F.conv2d(regions, self._inverse.to(regions.device)[:, :, None, None])
        return -F.conv2d(bands * kept[:, :, None, None], matrix[:, :, None, None])

    @functools.cached_property
    def _inverse(self) -> Float[Tensor, "bands channels"]:
        """What makes bands, less their mean, of channels."""
        inverse: Tensor = torch.linalg.pinv(self.preprocess.matrix.double().cpu())
        return inverse.float()

    def _noisy(self, regions: Regions) -> Regions | None:
        return self.noise * torch.randn_like(regions) if self.noise else None


def drawn_bands(
    count: int, bands: int, most: float, device: torch.device
) -> Float[Tensor, "count bands"]:
    """Draw a run of neighbouring bands for each of ``count`` regions: 1 where a band is in it, else 0.

    Args:
        count: runs.
        bands: of the spectra.
        most: largest share of the bands in a run, which has one band at least and never all.
        device: of the result.
    """
    longest = min(max(1, round(most * bands)), bands - 1)
    if longest < 1:
        return torch.zeros(count, bands, device=device)
    length = torch.randint(1, longest + 1, (count, 1), device=device)
    start = (torch.rand(count, 1, device=device) * (bands - length + 1)).floor()
    place = torch.arange(bands, device=device)
    return ((place >= start) & (place < start + length)).float()


def brightened(regions: Regions, gain: Tensor, dark: Float[Tensor, "channels"] | None) -> Regions:
    """Return channels as they are where every value of the pixels is larger by a share.

    A gain g on the raw spectrum x moves z = A (x - m) to (1 + g) z - g z(0), exactly.

    Args:
        regions: the channels.
        gain: ``(regions, 1, 1, 1)`` the shares.
        dark: channels of a pixel without light; None where brighter light changes nothing.
    """
    if dark is None:
        return regions
    return (1 + gain) * regions - gain * dark.to(regions.device)[:, None, None]
