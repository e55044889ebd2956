"""Attention and blocks inside windows that move by half their side (Liu et al., Swin Transformer, 2021)."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.layers.adapter import AdapterSeam
from vitreous.layers.attention import AttentionCore
from vitreous.layers.drop import DropPath
from vitreous.layers.mlp import Mlp
from vitreous.layers.sizes import as_size
from vitreous.layers.windows import (
    RelativePositionBias,
    pad_to,
    partition,
    reverse,
    window_grid,
    window_mask,
)


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows, with relative positions (eq. 4).

    Args:
        dim: token width.
        heads: number of heads.
        window: rows and columns of the largest window.
        qkv_bias: give the projections to query, key and value a bias.
        scale: factor of the scores; (dim / heads)^-0.5 where not given.
        position: gives the scores of offsets, called with a window's rows and columns; a table where not given.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        window: tuple[int, int],
        qkv_bias: bool = True,
        scale: float | None = None,
        position: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.position = position or RelativePositionBias(window, heads)
        self.core = AttentionCore(scale)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self,
        x: Float[Tensor, "batch windows tokens dim"],
        window: tuple[int, int],
        mask: Float[Tensor, "windows 1 #tokens tokens"] | None,
    ) -> Float[Tensor, "batch windows tokens dim"]:
        """Attend within each window; ``mask`` is added to the scores."""
        query, key, value = rearrange(
            self.qkv(x), "b n t (c h d) -> c b n h t d", c=3, h=self.heads
        ).unbind(0)
        bias = self.position(*window)
        bias = bias if mask is None else bias + mask
        mixed = self.core(query, key, value, bias, window)
        return self.proj(rearrange(mixed, "b n h t d -> b n t (h d)"))


class PairedWindowAttention(nn.Module):
    """Attention of which one half of the heads sees windows, the other half windows moved by half their side.

    So one layer joins what two blocks of Swin do one after the other (Zhang et al., StyleSwin, 2022). No cell attends to
    padding, or across the map's edges.

    Args:
        dim: token width.
        heads: number of heads, even.
        window: rows and columns of the largest window.
        qkv_bias: give the projections to query, key and value a bias.
        scale: factor of the scores; (dim / heads)^-0.5 where not given.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        window: tuple[int, int],
        qkv_bias: bool = True,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        self.window, self.heads = window, heads // 2
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.positions = nn.ModuleList(RelativePositionBias(window, self.heads) for _ in range(2))
        self.cores = nn.ModuleList(AttentionCore(scale) for _ in range(2))
        self.proj = nn.Linear(dim, dim)

    def forward(
        self, x: Float[Tensor, "batch height width dim"]
    ) -> Float[Tensor, "batch height width dim"]:
        """Attend."""
        halves = rearrange(self.qkv(x), "b h w (c s d) -> s b h w (c d)", c=3, s=2)
        mixed = [self._attend(half, shifted) for shifted, half in enumerate(halves.unbind(0))]
        return self.proj(torch.cat(mixed, -1))

    def _attend(
        self, qkv: Float[Tensor, "batch height width triple"], shifted: int
    ) -> Float[Tensor, "batch height width half"]:
        """Attend with one half of the heads, in moved windows or not."""
        height, width = qkv.shape[1:3]
        window, shift = window_grid(height, width, self.window, bool(shifted))
        mask = window_mask(qkv, self.window, bool(shifted))
        query, key, value = rearrange(
            partition(pad_to(qkv, window), window, shift),
            "b n t (c g d) -> c b n g t d",
            c=3,
            g=self.heads,
        ).unbind(0)
        bias = self.positions[shifted](*window)
        bias = bias if mask is None else bias + mask
        mixed = self.cores[shifted](query, key, value, bias, window)
        mixed = rearrange(mixed, "b n g t d -> b n t (g d)")
        padded = (height + -height % window[0], width + -width % window[1])
        return reverse(mixed, window, *padded, shift)[:, :height, :width]


class WindowBlock(nn.Module):
    """Attention in windows and feed-forward, each on a normalised residual branch (eq. 3).

    Args:
        dim: token width.
        heads: number of heads.
        window: side of a window, or its rows and columns.
        shifted: move the windows by half their side; along both axes, or down and across.
        mlp_ratio: hidden width of the feed-forward over the token width.
        drop_path: stochastic depth.
        qkv_bias: see :class:`WindowAttention`.
        scale: see :class:`WindowAttention`.
        mask_padding: no cell attends to cells that padding added (:func:`window_mask`).
        position: see :class:`WindowAttention`.

    Attributes:
        kind: what a block's mask depends on beside the map's size.
    """

    kind: Hashable

    def __init__(
        self,
        dim: int,
        heads: int,
        window: int | tuple[int, int],
        shifted: bool | tuple[bool, bool],
        mlp_ratio: float,
        drop_path: float,
        qkv_bias: bool = True,
        scale: float | None = None,
        mask_padding: bool = True,
        position: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.window, self.mask_padding = as_size(window), mask_padding
        self.kind = self.shifted = shifted
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, self.window, qkv_bias, scale, position)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.adapter = AdapterSeam(dim)
        self.drop_path = DropPath(drop_path)

    def forward(
        self,
        x: Float[Tensor, "batch height width dim"],
        mask: Float[Tensor, "windows 1 #tokens tokens"] | None,
    ) -> Float[Tensor, "batch height width dim"]:
        """Apply the block; ``mask`` is what :meth:`mask_of` gives for this map."""
        x = x + self.drop_path(self.mix(x, mask))
        return x + self.adapter(x, self.drop_path(self.mlp(self.norm2(x))))

    def mask_of(
        self, x: Float[Tensor, "batch height width dim"]
    ) -> Float[Tensor, "windows 1 #tokens tokens"] | None:
        """Return what hides some tokens of maps like ``x`` from others, or None."""
        return window_mask(x, self.window, self.shifted, self.mask_padding)

    def mix(
        self,
        x: Float[Tensor, "batch height width dim"],
        mask: Float[Tensor, "windows 1 #tokens tokens"] | None,
    ) -> Float[Tensor, "batch height width dim"]:
        """Return what the first branch adds."""
        return self.attend(self.norm1(x), mask)

    def attend(
        self,
        x: Float[Tensor, "batch height width dim"],
        mask: Float[Tensor, "windows 1 #tokens tokens"] | None,
    ) -> Float[Tensor, "batch height width dim"]:
        """Attend within the windows of a normalised map."""
        height, width = x.shape[1:3]
        window, shift = window_grid(height, width, self.window, self.shifted)
        if self.mask_padding:
            x = pad_to(x, window)
        shape = (x.shape[1], x.shape[2])
        mixed = self.attn(partition(x, window, shift), window, mask)
        return reverse(mixed, window, *shape, shift)[:, :height, :width]


class PatchMerging(nn.Module):
    """Join 2 x 2 neighbours into one token of twice the width (section 3.1).

    Args:
        dim: token width.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(
        self, x: Float[Tensor, "batch height width dim"]
    ) -> Float[Tensor, "batch half_height half_width twice_dim"]:
        """Halve the sides, rounded up."""
        # The neighbours' order is down first, then across.
        x = rearrange(pad_to(x, (2, 2)), "b (h r) (w c) d -> b h w (c r d)", r=2, c=2)
        return self.reduction(self.norm(x))


class WindowStage(nn.Module):
    """Blocks on maps of one size, of two kinds that alternate.

    Args:
        merge: what makes the maps from those of the stage before.
        blocks: the blocks; all have the same window.
    """

    def __init__(self, merge: nn.Module, blocks: Sequence[WindowBlock]) -> None:
        super().__init__()
        self.merge = merge
        self.blocks = nn.ModuleList(blocks)

    def plan(
        self, x: Float[Tensor, "batch height width dim"]
    ) -> Iterator[tuple[WindowBlock, Tensor | None]]:
        """Give each block with the mask that it needs for maps like ``x``; equal masks are made once."""
        made: dict[Hashable, Tensor | None] = {}
        for block in self.blocks:
            assert isinstance(block, WindowBlock)
            if block.kind not in made:
                made[block.kind] = block.mask_of(x)
            yield block, made[block.kind]
