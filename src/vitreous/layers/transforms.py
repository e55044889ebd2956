"""Fourier transforms of maps: a filter per frequency, and its way to other grids (Rao et al., GFNet, 2021)."""

from __future__ import annotations

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


class SpectralGate(nn.Module):
    """Multiply each frequency of each channel by a learned complex number: a convolution over the whole map.

    Args:
        dim: channels.
        grid: rows and columns of the map, or its side.
    """

    fan_in = 2  # a part of a product of complex numbers is a sum of two products

    def __init__(self, dim: int, grid: ImageSize) -> None:
        super().__init__()
        self.grid = as_size(grid)
        rows, columns = self.grid
        self.weight = nn.Parameter(torch.randn(rows, columns // 2 + 1, dim, 2) * 0.02)

    def forward(self, x: Float[Tensor, "batch h w dim"]) -> Float[Tensor, "batch h w dim"]:
        """Filter; in float32, because a Fourier transform has no other."""
        size = (x.shape[1], x.shape[2])
        gate = torch.view_as_complex(resize_filter(self.weight.float(), size, self.grid))
        spectrum = torch.fft.rfft2(x.float(), dim=(1, 2), norm="ortho")
        # The size, because half a spectrum does not tell odd widths from even ones.
        return torch.fft.irfft2(spectrum * gate, s=size, dim=(1, 2), norm="ortho").to(x.dtype)
