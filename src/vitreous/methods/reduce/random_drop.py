"""Dropping patches at random: what every choice of tokens must beat."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vitreous.catalog.card import Card
from vitreous.layers.tokens import gather_tokens, keep_left, returned
from vitreous.layers.transformer import Block, Carry, Grid
from vitreous.methods.reduce._install import budget, check_blocks, put, quarters, rows, trunk

CARD = Card(
    slug="random_drop",
    title="Random token dropping",
    kind="method",
    summary="Keeps a random subset of the patches in three blocks.",
    when="Baseline for token reduction.",
    paper="the baseline of arXiv 2202.07800, table 1",
    year=2022,
    tasks=["classify"],
    models=["vit_*", "ggem_*", "t2t_vit_*", "channelvit_*", "satmae_pp_*"],
    variants={"random_drop": {"keep_rate": 0.7}},
    notes=[
        "Usage: At inference all images lose the same positions, drawn from seed and block, so "
        "that predictions are repeatable and independent of the batch. In training every image "
        "loses its own, at every step anew.",
        "Usage: In mode dense, patches that were dropped return to the decoder's maps as they left.",
        "Usage: Nothing is fused.",
    ],
)


class RandomTokens(nn.Module):
    """One block's attention, and a random choice of tokens behind it.

    Args:
        keep_rate: share of the patches to keep, rounded up.
        prefix: tokens in front of the patches, which all stay.
        tokens: how many patches to keep, in place of ``keep_rate``.
        seed: of the places that are kept in evaluation.
    """

    def __init__(
        self, keep_rate: float, prefix: int, *, tokens: int | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        self.keep_rate, self.prefix, self.tokens, self.seed = keep_rate, prefix, tokens, seed

    def after(self, patches: int) -> int:
        """Return how many of so many patches stay."""
        if self.tokens is not None:
            return min(self.tokens, patches)
        return math.ceil(self.keep_rate * patches)

    restore = staticmethod(returned)

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        block: Block,
        carry: Carry | None,
        grid: Grid | None = None,
    ) -> tuple[Float[Tensor, "batch kept dim"], Carry | None]:
        """Attend, then drop patches."""
        x = block.attend(x, grid=grid)
        patches = x.shape[1] - self.prefix
        kept = self.after(patches)
        if kept == patches:
            return x, carry
        front = x[:, : self.prefix]
        if self.training:
            drawn = torch.rand(x.shape[0], patches, device=x.device).topk(kept, dim=1).indices
            stay = drawn + self.prefix
            chosen = gather_tokens(x, stay)
        else:
            stay = self.places(patches, kept).to(x.device)[None]
            chosen = x[:, stay[0]]
        handed = keep_left(carry or {}, x, stay, front=self.prefix)
        return torch.cat([front, chosen], 1), handed

    def places(self, patches: int, kept: int) -> Int[Tensor, "kept"]:
        """Return the places that evaluation keeps, in their order."""
        chosen = random.Random(self.seed).sample(range(patches), kept)
        return torch.tensor(sorted(chosen)) + self.prefix

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"keep_rate={self.keep_rate:g}, tokens={self.tokens}, seed={self.seed}"


def install(
    model: nn.Module,
    *,
    keep_rate: float | Sequence[float] = 0.7,
    blocks: Sequence[int] | None = None,
    tokens: int | Sequence[int] | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Let blocks of ``model`` drop patches at random.

    Args:
        model: a model whose tokens may lose their places.
        keep_rate: share of a block's patches that stay, above 0 and up to 1; one for all blocks, or one each.
        blocks: numbers of the blocks that drop, from 0; None: after each quarter of the depth.
        tokens: how many patches stay, in place of ``keep_rate``; one for all, or one each.
        seed: of the places that are kept in evaluation.

    Returns:
        The blocks, and how many tokens they take in and hand on.

    Raises:
        ModelError: another kind of model, or settings out of range.
    """
    network = trunk(model, "random_drop")
    depth = len(network.blocks)
    numbers = quarters(depth) if blocks is None else list(blocks)
    check_blocks(numbers, depth, "random_drop")
    shares = budget(keep_rate, tokens, len(numbers), "random_drop")
    reducers = {
        number: RandomTokens(rate, network.prefix, tokens=count, seed=depth * seed + number)
        for number, (rate, count) in zip(numbers, shares, strict=True)
    }
    put(network, reducers)
    return rows(model, network, reducers)
