"""Fourier transforms of maps: a filter per frequency, and its way to other grids (Rao et al., GFNet, 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.catalog.arguments import ImageSize
from vitreous.layers.sizes import as_size


def resize_filter(
    weight: Float[Tensor, "rows half_columns dim 2"],
    size: tuple[int, int],
    grid: tuple[int, int] | None = None,
) -> Float[Tensor, "new_rows new_half_columns dim 2"]:
    """Carry the filter of a grid to another grid: pad or crop its kernel around the origin.

    The response to a kernel smaller than both grids is the same on both, up to their edges.

    Args:
        weight: real and imaginary parts of the filter.
        size: rows and columns wanted.
        grid: rows and columns of the filter's grid; a square's where not given. Half a spectrum does not tell an even
            number of columns from an odd one.
    """
    grid = grid or (weight.shape[0], weight.shape[0])
    if grid == size:
        return weight
    kernel = torch.fft.irfft2(torch.view_as_complex(weight), s=grid, dim=(0, 1))
    kernel = torch.fft.fftshift(kernel, dim=(0, 1))
    edges = []  # the origin of a shifted kernel is at side // 2
    for new, old in zip(reversed(size), reversed(grid), strict=True):
        before = new // 2 - old // 2
        edges += [before, new - old - before]
    kernel = torch.fft.ifftshift(F.pad(kernel, (0, 0, *edges)), dim=(0, 1))
    return torch.view_as_real(torch.fft.rfft2(kernel, dim=(0, 1)))


def interpolate_filter(
    weight: Float[Tensor, "rows half_columns dim 2"], size: tuple[int, int]
) -> Float[Tensor, "new_rows new_half_columns dim 2"]:
    """Carry the filter of a grid to another grid by interpolation between its frequencies, corners aligned (GFNet, HorNet).

    Where the half spectra are alike, it stays as it is.

    Args:
        weight: real and imaginary parts of the filter, which are interpolated each by itself.
        size: rows and columns of the grid wanted.
    """
    wanted = (size[0], size[1] // 2 + 1)
    if weight.shape[:2] == wanted:
        return weight
    parts = F.interpolate(weight.permute(3, 2, 0, 1), wanted, mode="bilinear", align_corners=True)
    return parts.permute(2, 3, 1, 0).contiguous()


class SpectralGate(nn.Module):
    """Multiply each frequency of each channel by a learned complex number: a convolution over the whole map.

    Args:
        dim: channels.
        grid: rows and columns of the map, or its side.
        interpolate: carry the filter to other grids by :func:`interpolate_filter` rather than :func:`resize_filter`.
    """

    fan_in = 2  # a part of a product of complex numbers is a sum of two products

    def __init__(self, dim: int, grid: ImageSize, interpolate: bool = False) -> None:
        super().__init__()
        self.grid, self.interpolate = as_size(grid), interpolate
        rows, columns = self.grid
        self.weight = nn.Parameter(torch.randn(rows, columns // 2 + 1, dim, 2) * 0.02)

    def forward(self, x: Float[Tensor, "batch h w dim"]) -> Float[Tensor, "batch h w dim"]:
        """Filter; in float32 at least, because a Fourier transform has no less."""
        size, kind = (x.shape[1], x.shape[2]), torch.promote_types(x.dtype, torch.float32)
        gate = torch.view_as_complex(self.carried(self.weight.to(kind), size, self.grid))
        spectrum = torch.fft.rfft2(x.to(kind), dim=(1, 2), norm="ortho")
        # The size, because half a spectrum does not tell odd widths from even ones.
        return torch.fft.irfft2(spectrum * gate, s=size, dim=(1, 2), norm="ortho").to(x.dtype)

    def carried(
        self, weight: Tensor, size: tuple[int, int], grid: tuple[int, int] | None
    ) -> Float[Tensor, "rows half_columns dim 2"]:
        """Return a filter for a grid of ``size``, made of one for ``grid``; None is a square's."""
        if self.interpolate:
            return interpolate_filter(weight, size)
        return resize_filter(weight, size, grid)


def resize_gates(
    state_dict: Mapping[str, Tensor], model: nn.Module, source: nn.Module | None
) -> dict[str, Tensor]:
    """Carry all filters among a network's weights to its own grids.

    Args:
        state_dict: the weights.
        model: the network.
        source: the network that they were made for. Where nobody knows it, filters of the right shape stay as they are,
            and others are taken for those of squares.
    """
    resized = dict(state_dict)
    for name, part in model.named_modules():
        if isinstance(part, SpectralGate) and (key := f"{name}.weight") in resized:
            if source is None and resized[key].shape == part.weight.shape:
                continue
            old = None if source is None else cast("SpectralGate", source.get_submodule(name)).grid
            resized[key] = part.carried(resized[key], part.grid, old)
    return resized
