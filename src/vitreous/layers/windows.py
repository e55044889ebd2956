"""Cutting token maps into windows, masks and positions within them (Liu et al., Swin Transformer, 2021)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vitreous.layers.graphs import recording
from vitreous.layers.positions import resize_positions
from vitreous.layers.sizes import as_size


def partition(
    x: Float[Tensor, "batch height width dim"],
    window: tuple[int, int],
    shift: tuple[int, int] = (0, 0),
    interval: tuple[int, int] = (1, 1),
) -> Float[Tensor, "batch windows tokens dim"]:
    """Cut a map, zero-padded below and on the right where it does not divide, into windows of tokens.

    Args:
        x: the map.
        window: rows and columns of a window.
        shift: how far the windows begin below and right of the map's corner; what they leave there comes last.
        interval: cells from one row of a window to the next, and from column to column. A square of
            ``window * interval`` cells is cut into as many windows as its corner of ``interval`` has cells.
    """
    if any(shift):
        x = x.roll((-shift[0], -shift[1]), (1, 2))
    x = pad_to(x, (window[0] * interval[0], window[1] * interval[1]))
    (h, w), (k, m) = window, interval
    return rearrange(x, "b (i h k) (j w m) d -> b (i j k m) (h w) d", h=h, w=w, k=k, m=m)


def reverse(
    windows: Float[Tensor, "batch windows tokens dim"],
    window: tuple[int, int],
    height: int,
    width: int,
    shift: tuple[int, int] = (0, 0),
    interval: tuple[int, int] = (1, 1),
) -> Float[Tensor, "batch height width dim"]:
    """Undo :func:`partition`, dropping the padding."""
    across = -(-width // (window[1] * interval[1]))
    sizes = {"j": across, "k": interval[0], "m": interval[1], "h": window[0], "w": window[1]}
    x = rearrange(windows, "b (i j k m) (h w) d -> b (i h k) (j w m) d", **sizes)
    x = x[:, :height, :width]
    return x.roll(shift, (1, 2)) if any(shift) else x


def padding_bias(
    height: int,
    width: int,
    window: tuple[int, int],
    like: Tensor,
    interval: tuple[int, int] = (1, 1),
) -> Float[Tensor, "windows 1 1 tokens"]:
    """Return 0 for real cells, -inf for cells that padding added; 0 in windows of padding alone, whose rows are cut off."""
    real = like.new_ones(1, height, width, 1)
    windows = rearrange(partition(real, window, interval=interval), "1 n t 1 -> n 1 1 t")
    added = (windows == 0) & (windows.amax(-1, keepdim=True) > 0)
    return torch.zeros_like(windows).masked_fill(added, float("-inf"))


def window_grid(
    height: int, width: int, window: int | tuple[int, int], shifted: bool | tuple[bool, bool]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the sides of the windows on a map, and how far they are shifted down and across.

    An axis no longer than a window is not cut, and there is nothing to shift along it.
    """
    moved = (shifted, shifted) if isinstance(shifted, bool) else shifted
    axes = list(zip(as_size(window), (height, width), moved, strict=True))
    rows, columns = (min(side, length) for side, length, _ in axes)
    down, across = (side // 2 if moves and length > side else 0 for side, length, moves in axes)
    return (rows, columns), (down, across)


def window_mask(
    x: Float[Tensor, "batch height width dim"],
    window: int | tuple[int, int],
    shifted: bool | tuple[bool, bool],
    mask_padding: bool = True,
) -> Float[Tensor, "windows 1 tokens tokens"] | None:
    """Return 0 for pairs of tokens that may attend to each other, -inf for others; None where all may.

    Rolling a map puts cells of opposite edges into one window, and padding adds cells that do not exist. Tokens only
    attend to tokens of their own kind. Without ``mask_padding`` only opposite edges are told apart, at the end of the
    padded map.
    """
    height, width = x.shape[1:3]
    sides, shift = window_grid(height, width, window, shifted)
    if not mask_padding:
        if not any(shift):
            return None
        height, width = (n + -n % side for n, side in zip((height, width), sides, strict=True))
    if not any(shift) and height % sides[0] == 0 and width % sides[1] == 0:
        return None
    rows = axis_kinds(height, sides[0], shift[0], x.device)
    columns = axis_kinds(width, sides[1], shift[1], x.device)
    kinds = 3 * rows[:, None] + columns[None, :]
    kinds = rearrange(kinds, "(i h) (j w) -> (i j) 1 (h w)", h=sides[0], w=sides[1])
    apart: Bool[Tensor, "windows 1 tokens tokens"] = kinds[..., :, None] != kinds[..., None, :]
    return x.new_zeros(apart.shape).masked_fill(apart, float("-inf"))


def axis_kinds(length: int, window: int, shift: int, device: torch.device) -> Int[Tensor, "padded"]:
    """Return the kind of each row or column of a padded and rolled map: 0 as it was, 1 wrapped around, 2 padding."""
    padded = length + -length % window
    source = (torch.arange(padded, device=device) + shift) % padded
    return (source < shift).long() + 2 * (source >= length).long()


def pad_to(
    x: Float[Tensor, "batch height width dim"], multiple: tuple[int, int]
) -> Float[Tensor, "batch padded_height padded_width dim"]:
    """Pad a map with zeros below and on the right to a multiple of a size."""
    below, right = -x.shape[1] % multiple[0], -x.shape[2] % multiple[1]
    return F.pad(x, (0, 0, 0, right, 0, below)) if below or right else x


class WindowPositions(nn.Module):
    """What scores pairs of tokens of a window by the offset between them.

    Args:
        window: side of the largest window, or its rows and columns.
    """

    index: Tensor

    def __init__(self, window: int | tuple[int, int]) -> None:
        super().__init__()
        self.window = as_size(window)
        self.register_buffer("index", relative_index(*self.window), persistent=False)

    def spread(
        self, scores: Float[Tensor, "offsets heads"], height: int, width: int
    ) -> Float[Tensor, "heads tokens tokens"]:
        """Give each pair of tokens of a window, at most the largest one, the scores of their offset."""
        index = self.index[:height, :width, :height, :width].reshape(height * width, -1)
        return scores[index].permute(2, 0, 1).contiguous()

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        if self.index.is_meta:  # built without memory, and no file holds it
            self.index = relative_index(*self.window)


class RelativePositionBias(WindowPositions):
    """A learned score per head and offset between two tokens of a window.

    The table covers offsets up to ``window - 1`` each way, so one table serves every smaller window.

    Args:
        window: side of the largest window, or its rows and columns.
        heads: number of heads.
    """

    def __init__(self, window: int | tuple[int, int], heads: int) -> None:
        super().__init__(window)
        rows, columns = self.window
        self.table = nn.Parameter(torch.empty((2 * rows - 1) * (2 * columns - 1), heads))
        nn.init.trunc_normal_(self.table, std=0.02)
        self._expanded: tuple[tuple[Any, ...], Tensor] | None = None

    def forward(self, height: int, width: int) -> Float[Tensor, "heads tokens tokens"]:
        """Return the bias between all tokens of a ``height x width`` window; at inference it is expanded once."""
        if self.training or torch.is_grad_enabled() or recording():
            return self._expand(height, width)
        table = self.table
        # The version counts changes in place; a table replaced or moved has another address.
        version = 0 if table.is_inference() else table._version
        key = (height, width, table.data_ptr(), table.device, table.dtype, version)
        if self._expanded is None or self._expanded[0] != key:
            self._expanded = key, self._expand(height, width)
        return self._expanded[1]

    def resized(self, table: Tensor, window: tuple[int, int] | None) -> Tensor:
        """Make a table for this window of one that was learned for another, bicubically.

        Args:
            table: what was learned, ``(offsets, heads)``; left as it is where it cannot be that.
            window: the other window; a square's where not known.
        """
        offsets = _sides_of(table, None if window is None else _offsets(window), self.table)
        if offsets is None:
            return table
        return resize_positions(table[None], _offsets(self.window), grid=offsets)[0]

    def _expand(self, height: int, width: int) -> Tensor:
        return self.spread(self.table, height, width)

    def __getstate__(self) -> dict[str, Any]:
        """Copy and pickle without the expanded bias."""
        return {**super().__getstate__(), "_expanded": None}


class DistanceBias(RelativePositionBias):
    """A learned score per head and pair of distances, down and across, between two cells (as in LeViT).

    Args:
        window: distances each way, or down and across, from 0 to ``window - 1``; farther ones count as the last.
        heads: number of heads.
    """

    def __init__(self, window: int | tuple[int, int], heads: int) -> None:
        super().__init__(window, heads)
        self.table = nn.Parameter(torch.zeros(math.prod(self.window), heads))

    def resized(self, table: Tensor, window: tuple[int, int] | None) -> Tensor:
        """Make a table for these distances: others are dropped, and the farthest known one is repeated.

        Distances count cells, whose size in pixels stays; so nothing changes on images of the size that the table was
        learned on.

        Args:
            table: what was learned, ``(distances, heads)``; left as it is where it cannot be that.
            window: distances down and across that it tells apart; equally many where not known.
        """
        known = _sides_of(table, window, self.table)
        if known is None:
            return table
        down, across = (
            torch.arange(new, device=table.device).clamp(max=old - 1)
            for new, old in zip(self.window, known, strict=True)
        )
        return table[(down[:, None] * known[1] + across).flatten()]

    def _expand(self, height: int, width: int) -> Tensor:
        rows = torch.arange(height, device=self.table.device).repeat_interleave(width)
        columns = torch.arange(width, device=self.table.device).repeat(height)
        down, across = (
            (at[:, None] - at).abs().clamp(max=side - 1)
            for at, side in zip((rows, columns), self.window, strict=True)
        )
        return self.table[down * self.window[1] + across].permute(2, 0, 1).contiguous()


def resize_biases(
    state_dict: Mapping[str, Tensor], model: nn.Module, source: nn.Module | None
) -> dict[str, Tensor]:
    """Make the position tables of a model for its windows.

    Args:
        state_dict: weights of the model, made for other windows.
        model: what they are for.
        source: what they were made for; None where nobody knows.
    """
    resized = dict(state_dict)
    for name, module in model.named_modules():
        key = f"{name}.table"
        if isinstance(module, RelativePositionBias) and key in state_dict:
            before = None if source is None else source.get_submodule(name)
            window = before.window if isinstance(before, RelativePositionBias) else None
            resized[key] = module.resized(state_dict[key], window)
    return resized


def _offsets(window: tuple[int, int]) -> tuple[int, int]:
    return 2 * window[0] - 1, 2 * window[1] - 1


def _sides_of(table: Tensor, sides: tuple[int, int] | None, own: Tensor) -> tuple[int, int] | None:
    """Return the rows and columns of a flattened table; None where it fits already, or nobody knows."""
    if table.ndim != 2 or (sides is None and table.shape == own.shape):
        return None
    rows, columns = sides or (math.isqrt(len(table)),) * 2
    return (rows, columns) if len(table) and rows * columns == len(table) else None


def relative_index(rows: int, columns: int) -> Int[Tensor, "row column row column"]:
    """Return the row of a position table for each pair of tokens: offsets down and across, row by row."""
    down, across = (
        torch.arange(side)[:, None] - torch.arange(side)[None, :] + side - 1
        for side in (rows, columns)
    )
    return down[:, None, :, None] * (2 * columns - 1) + across[None, :, None, :]
