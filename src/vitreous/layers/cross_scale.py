"""Embedding at several scales, and positions of offsets by a small network (Wang et al., CrossFormer, 2022)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.layers.windows import WindowPositions, relative_index


class CrossScaleEmbed(nn.Module):
    """Convolutions of one stride and several kernels, whose channels lie side by side.

    Each kernel has half as many channels as the one before it, the last one as many as the one before it. Kernels are
    centred on their cell; where a kernel exceeds the stride by an odd number, it reaches farther below and right.

    Args:
        channels: of the input.
        dim: of the output, a multiple of ``2 ** (len(kernels) - 1)``.
        kernels: their sides, none below the stride.
        stride: of all.
        partial: what is left of a map below and on the right makes cells too, padded with zeros.
    """

    def __init__(
        self,
        channels: int,
        dim: int,
        kernels: Sequence[int],
        stride: int,
        partial: bool = True,
    ) -> None:
        super().__init__()
        self.stride, self.partial = stride, partial
        self.odd = [(kernel - stride) % 2 for kernel in kernels]
        self.projs = nn.ModuleList(
            nn.Conv2d(channels, width, kernel, stride, (kernel - stride) // 2)
            for kernel, width in zip(kernels, scale_widths(dim, len(kernels)), strict=True)
        )

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch h w dim"]:
        """Return the map."""
        if self.partial:
            x = _pad(x, *(-side % self.stride for side in x.shape[2:]))
        maps = [proj(_pad(x, odd, odd)) for proj, odd in zip(self.projs, self.odd, strict=True)]
        return rearrange(torch.cat(maps, 1), "b d h w -> b h w d")


def _pad(x: Tensor, below: int, right: int) -> Tensor:
    return F.pad(x, (0, right, 0, below)) if below or right else x


def scale_widths(dim: int, kernels: int) -> list[int]:
    """Return the channels of each kernel of :class:`CrossScaleEmbed`."""
    return [dim // 2 ** min(number + 1, kernels - 1) for number in range(kernels)]


class DynamicPositionBias(WindowPositions):
    """A score per head and offset between two tokens, by a network that reads the offset: it serves every window.

    Args:
        window: the usual window's rows and columns; others are computed alike.
        heads: number of heads.
        hidden: width of the network.
    """

    def __init__(self, window: int | tuple[int, int], heads: int, hidden: int) -> None:
        super().__init__(window)
        self.embed = nn.Linear(2, hidden)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, width))
            for width in (hidden, hidden, heads)
        )

    def forward(self, height: int, width: int) -> Float[Tensor, "heads tokens tokens"]:
        """Return the bias between all tokens of a ``height x width`` window."""
        like = self.embed.weight
        down, across = (
            torch.arange(1 - side, side, device=like.device, dtype=like.dtype)
            for side in (height, width)
        )
        scores = self.embed(torch.cartesian_prod(down, across))
        for layer in self.layers:
            scores = layer(scores)
        if (height, width) == self.window:
            return self.spread(scores, height, width)
        index = relative_index(height, width).to(like.device).reshape(height * width, -1)
        return scores[index].permute(2, 0, 1).contiguous()
