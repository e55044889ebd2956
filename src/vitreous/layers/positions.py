"""Positions of tokens on a grid."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor


def resize_positions(
    table: Float[Tensor, "1 tokens dim"],
    size: tuple[int, int],
    prefix: int = 0,
    grid: tuple[int, int] | None = None,
) -> Float[Tensor, "1 new_tokens dim"]:
    """Resample learned positions of a grid to another grid, bicubically.

    Args:
        table: positions, the first ``prefix`` of which belong to no cell (class token, ...).
        size: rows and columns wanted.
        prefix: how many to keep as they are.
        grid: rows and columns of the table; a square's where not given.
    """
    fixed, cells = table[:, :prefix], table[:, prefix:]
    side = math.isqrt(int(cells.shape[1]))  # a tensor while a graph is traced
    rows, columns = grid or (side, side)
    if (rows, columns) == size:
        return table
    image = rearrange(cells, "1 (h w) d -> 1 d h w", h=rows, w=columns)
    image = F.interpolate(image, size, mode="bicubic", align_corners=False, antialias=False)
    return torch.cat([fixed, rearrange(image, "1 d h w -> 1 (h w) d")], 1)


def sincos_2d(
    dim: int, height: int, width: int, base: float = 10000.0
) -> Float[Tensor, "tokens dim"]:
    """Return fixed positions of a grid: a quarter of the channels each for sin and cos of row and column.

    The first half of the channels tells the column, as in MAE (He et al., 2022).

    Args:
        dim: channels, a multiple of 4.
        height: rows.
        width: columns.
        base: longest wavelength over 2 pi, in cells.
    """
    omega = base ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    rows = torch.arange(height, dtype=torch.float64).repeat_interleave(width)
    columns = torch.arange(width, dtype=torch.float64).repeat(height)
    parts = [f(at[:, None] * omega) for at in (columns, rows) for f in (torch.sin, torch.cos)]
    return torch.cat(parts, 1).float()
