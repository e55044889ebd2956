"""The trunk that plain vision transformers share: a row of blocks over tokens, which methods may make fewer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.catalog.arguments import ImageSize
from vitreous.errors import ModelError
from vitreous.layers.backbone import Backbone
from vitreous.layers.transformer import Block, Carry, Grid


class Embedded(NamedTuple):
    """What the first block gets.

    Attributes:
        tokens: those in front, then the cells of the grid row by row; of several grids, one after the other.
        turn: angles by which queries and keys turn, ``(tokens, half of a head's width)``, or None.
        grid: rows and columns.
    """

    tokens: Tensor
    turn: Tensor | None
    grid: Grid


class LastPath(nn.Module):
    """The sum that a trunk ends with: the last of its running sums."""

    def forward(
        self, paths: Sequence[Float[Tensor, "batch tokens dim"]]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Return the last one."""
        return paths[-1]


class Trunk(Backbone):
    """A network that embeds an image as tokens and applies a row of blocks to them.

    A subclass sets ``blocks`` (``layers/transformer.py``), ``norm``, ``grid``, where there is one ``class_token``, and
    writes :meth:`embed` and :meth:`forward_head`.

    Attributes:
        grid: rows and columns of tokens, at the size that the network is built for.
        prefix: tokens in front of the grid's, of which a class token is the first.
        stacked: how many grids of tokens lie one after the other (of bands, or of groups of them); a level is their mean.
        join: makes the trunk's output of its running sums, ``join(paths)``: the embedded tokens, and those behind each
            branch of each block. The default, :class:`LastPath`, is not called, and no sum is kept for it.
    """

    reducible = True
    grid: Grid
    stacked = 1
    prefix = 1
    blocks: nn.ModuleList
    norm: nn.Module

    def __init__(self, bands: int, num_classes: int, image_size: ImageSize) -> None:
        super().__init__(bands, num_classes, image_size)
        self.join: nn.Module = LastPath()

    def embed(self, x: Float[Tensor, "batch bands height width"]) -> Embedded:
        """Return the tokens with their positions."""
        raise NotImplementedError

    @property
    def joins(self) -> bool:
        """Whether the output is more than the last of the running sums."""
        return not isinstance(self.join, LastPath)

    @property
    def patches(self) -> int:
        """Tokens behind those in front, at the size that the network is built for."""
        return self.stacked * self.grid[0] * self.grid[1]

    def forward_features(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Return the last block's tokens, normalised; those in front first."""
        return self.norm(self.run_blocks(self.embed(x)))

    def level_maps(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> list[Float[Tensor, "batch dim h w"]]:
        """Return the patches' maps behind evenly spaced blocks, normalised; all have the stride of a token.

        Where tokens are reduced, they return to the full grid first.

        Raises:
            ModelError: tokens are reduced by a method that brings no way back.
        """
        return self.maps(self.embed(x))

    def maps(self, given: Embedded) -> list[Float[Tensor, "batch dim h w"]]:
        """Return what :meth:`level_maps` does, of embedded tokens."""
        count = len(self.feature_info)
        ends = [len(self.blocks) * (k + 1) // count for k in range(count)]
        return [self._map(tokens, given.grid) for tokens in self.run_to(given, ends)]

    def run_blocks(self, given: Embedded) -> Float[Tensor, "batch kept dim"]:
        """Return the tokens behind the last block, fewer where they are reduced; not normalised."""
        if self.joins:
            return self.run_to(given, [len(self.blocks)])[0]
        tokens, carry = given.tokens, None
        for block in self.blocks:
            tokens, carry = self.run(block, tokens, given.turn, carry, given.grid)
        return tokens

    def run_to(
        self, given: Embedded, ends: Collection[int]
    ) -> list[Float[Tensor, "batch tokens dim"]]:
        """Return the full grid's tokens behind the blocks with the numbers ``ends``, counted from 1.

        Those behind the last block are the trunk's output. The first block is handed ``origin``, the tokens' numbers; where
        a reducer finds this, it keeps what its ``restore`` needs.

        Raises:
            ModelError: tokens are reduced by a method that brings no way back.
        """
        tokens, last = given.tokens, len(self.blocks)
        carry = {**self._origin(tokens), **({"middle": tokens} if self.joins else {})} or None
        found, paths = [], [tokens]
        restore: Callable[[Tensor, Carry | None], Tensor] | None = None
        for number, block in enumerate(self._blocks(), start=1):
            tokens, carry = self.run(block, tokens, given.turn, carry, given.grid)
            for reducer in block.reducers:
                restore = cast("Any", reducer).restore
            if self.joins:
                paths += [carry["middle"], tokens]
            if number in ends:
                whole = self.join(paths) if self.joins and number == last else tokens
                found.append(whole if restore is None else restore(whole, carry))
        return found

    def _blocks(self) -> Iterator[Block]:
        return cast("Iterator[Block]", iter(self.blocks))

    def _origin(self, tokens: Float[Tensor, "batch tokens dim"]) -> Carry:
        """Return what reducers start from who are to bring the tokens back; nothing where none are reduced."""
        reducers = [reducer for block in self._blocks() for reducer in block.reducers]
        for reducer in reducers:
            if not hasattr(reducer, "restore"):
                raise ModelError(
                    f"{type(reducer).__name__} does not bring tokens back, so that there are no feature maps.",
                    "Use mode 'patch' or 'scene', or another token reduction.",
                )
        numbers = torch.arange(tokens.shape[1], device=tokens.device)
        return {"origin": numbers.expand(tokens.shape[0], -1)} if reducers else {}

    def _map(
        self, tokens: Float[Tensor, "batch tokens dim"], grid: Grid
    ) -> Float[Tensor, "batch dim h w"]:
        cells = self.norm(tokens)[:, self.prefix :]
        if self.stacked == 1:
            return rearrange(cells, "b (h w) d -> b d h w", h=grid[0])
        return reduce(cells, "b (g h w) d -> b d h w", "mean", h=grid[0], w=grid[1])
