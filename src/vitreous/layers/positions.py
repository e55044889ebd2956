"""Positions of tokens on a grid: tables, and the part of a trunk that adds them or turns by them."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


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
        grid: rows and columns of the table. Where nobody knows, they are those that are wanted if there are as many
            cells, else a square's.
    """
    fixed, cells = table[:, :prefix], table[:, prefix:]
    if grid is None:
        count = int(cells.shape[1])  # a tensor while a graph is traced
        side = math.isqrt(count)
        grid = size if count == math.prod(size) else (side, side)
    if grid == size:
        return table
    rows, columns = grid
    image = rearrange(cells, "1 (h w) d -> 1 d h w", h=rows, w=columns)
    image = resize_map(image, size)
    return torch.cat([fixed, rearrange(image, "1 d h w -> 1 (h w) d")], 1)


def resize_map(
    image: Float[Tensor, "*batch height width"],
    size: tuple[int, int],
    steps: tuple[float, float] | None = None,
) -> Float[Tensor, "*batch new_height new_width"]:
    """Resample learned maps bicubically, as ``F.interpolate`` does.

    By two matrix products: ONNX tools compute the resizing of constants in advance, and some of them wrongly.

    Args:
        image: the maps.
        size: rows and columns wanted.
        steps: from one wanted row and column to the next, in those that there are; their ratio where not given.
    """
    # Numbers, although sizes are tensors while a graph is traced.
    sides = [(int(old), int(new)) for old, new in zip(image.shape[-2:], size, strict=True)]
    down, across = (
        torch.from_numpy(cubic_weights(old, new, old / new if steps is None else steps[axis]))
        for axis, (old, new) in enumerate(sides)
    )
    return down.to(image) @ image @ across.to(image).mT


@lru_cache(maxsize=64)
def cubic_weights(length: int, wanted: int, step: float) -> npt.NDArray[np.float64]:
    """Return the weights by which values of a line become values elsewhere on the same line, ``(wanted, length)``.

    Keys' cubic convolution with a = -0.75; the centre of a cell lies half a cell from its ends, and the values of the
    first and the last cell are repeated beyond them.

    Args:
        length: values that there are.
        wanted: values that are wanted.
        step: from one wanted value to the next, in values that there are.
    """
    weights = np.zeros((wanted, length))
    rows = np.arange(wanted)
    places = (rows + 0.5) * step - 0.5
    first = np.floor(places).astype(int)
    for tap in range(-1, 3):
        away = np.abs(places - first - tap)
        near = (1.25 * away - 2.25) * away**2 + 1
        far = -0.75 * (((away - 5) * away + 8) * away - 4)
        columns = np.clip(first + tap, 0, length - 1)
        np.add.at(weights, (rows, columns), np.where(away <= 1, near, far))
    return weights


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


def rotary_angles(
    width: int, height: int, columns: int, base: float = 100.0
) -> Float[Tensor, "cells half_width"]:
    """Return the angle of each pair of channels: half of the pairs turn with the row, half with the column.

    Args:
        width: channels of a head, a multiple of 4.
        height: rows of the grid.
        columns: columns of the grid.
        base: ratio of the slowest to the fastest turn.
    """
    omega = base ** -(torch.arange(width // 4) / (width // 4))
    rows = torch.arange(height).repeat_interleave(columns)[:, None] * omega
    across = torch.arange(columns).repeat(height)[:, None] * omega
    return torch.cat([rows, across], 1)


def rotate(
    x: Float[Tensor, "batch heads tokens width"], angle: Float[Tensor, "tokens half_width"]
) -> Float[Tensor, "batch heads tokens width"]:
    """Turn consecutive pairs of channels (Su et al., RoFormer, 2021)."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


class Positions(nn.Module):
    """How a trunk tells tokens where they are: not at all. Other ways are subclasses.

    Attributes:
        bound: what tokens have of their places in every block, so that they cannot be moved, merged or left out: "" or a
            word for it.
    """

    bound = ""

    def embed(
        self, tokens: Float[Tensor, "batch tokens dim"], grid: tuple[int, int]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Return the tokens with what tells their places.

        Args:
            tokens: those in front, then the cells of the grid row by row.
            grid: rows and columns.
        """
        return tokens

    def turn(self, grid: tuple[int, int]) -> Float[Tensor, "cells half_width"] | None:
        """Return the angles by which the cells' queries and keys turn in every block; None: they do not."""
        return None


class SincosPositions(Positions):
    """Fixed sines (:func:`sincos_2d`) are added to the cells."""

    def embed(
        self, tokens: Float[Tensor, "batch tokens dim"], grid: tuple[int, int]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Return the tokens with sines added to the grid's."""
        fixed = sincos_2d(tokens.shape[-1], *grid).to(tokens)
        return tokens + F.pad(fixed, (0, 0, tokens.shape[1] - fixed.shape[0], 0))


class RotaryPositions(Positions):
    """Queries and keys turn with row and column (:func:`rotary_angles`).

    Args:
        width: channels of a head, a multiple of 4.
    """

    bound = "rotary positions"

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def turn(self, grid: tuple[int, int]) -> Float[Tensor, "cells half_width"]:
        """Return the angles."""
        return rotary_angles(self.width, *grid)
