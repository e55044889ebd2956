"""Merging tokens by bipartite matching: who goes together, and the sums over those who do.

The patches' tokens are dealt out in turn into two halves, targets (the first, third, ...) and sources (the second,
fourth, ...), and only pairs of one of each are looked at (Bolya et al., Token Merging, 2023, section 3). With one
token in front this is the division into odd and even places; tokens in front are in no half and stay as they are.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Grouping(NamedTuple):
    """Which tokens become one.

    Attributes:
        rows: the group of every token, counted through the whole batch: image x kept + group within the image.
        kept: groups per image.
    """

    rows: Int[Tensor, "batch_x_tokens"]
    kept: int

    def sum(self, x: Float[Tensor, "batch tokens *dim"]) -> Float[Tensor, "batch groups *dim"]:
        """Return the sum over each group.

        Whole rows of a flat batch are added: an addition by elements takes ten times as long.
        """
        empty = x.new_zeros(x.shape[0] * self.kept, *x.shape[2:])
        return empty.index_add_(0, self.rows, x.flatten(0, 1)).unflatten(0, (-1, self.kept))

    def spread(self, x: Float[Tensor, "batch groups *dim"]) -> Float[Tensor, "batch tokens *dim"]:
        """Return for every token what belongs to its group."""
        return x.flatten(0, 1).index_select(0, self.rows).unflatten(0, (x.shape[0], -1))

    def numbers(self, batch: int) -> Int[Tensor, "batch tokens"]:
        """Return the group of every token, counted within its image."""
        first = torch.arange(batch, device=self.rows.device)[:, None] * self.kept
        return self.rows.view(batch, -1) - first

    def shares(self, weight: Float[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens 1"]:
        """Return each token's part of its group's weight: the factors of a weighted mean, exactly 1 where alone."""
        return (weight / self.spread(self.sum(weight)))[..., None]


def cosines(
    x: Float[Tensor, "batch tokens dim"], prefix: int
) -> Float[Tensor, "batch sources targets"]:
    """Return the cosine of each source with each target; no gradient flows through it.

    Args:
        x: what is compared; the tokens in front included.
        prefix: tokens in front.
    """
    x = x.detach()
    sources, targets = _halves(x, prefix)
    inverse = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(1e-12).reciprocal()
    left, right = _halves(inverse, prefix)
    return sources @ targets.mT * left * right.mT


def outer(f: Float[Tensor, "batch tokens"], prefix: int) -> Float[Tensor, "batch sources targets"]:
    """Return the product of a figure of each source with that of each target."""
    left, right = _halves(f[..., None], prefix)
    return left * right.mT


def match(
    scores: Float[Tensor, "batch sources targets"], merged: int, prefix: int, *, both_ways: bool
) -> Grouping:
    """Merge the best pairs, each of one source and one target.

    One way, the ``merged`` sources with the best partner go to it. Both ways (arXiv 2403.10030), half
    of them go first, and then the other half of the targets, with all that came to them, to the best of the sources
    that are left.

    Args:
        scores: how well a source and a target go together.
        merged: how many tokens fewer there will be; at most as many as there are sources.
        prefix: tokens in front, which no score is about.
        both_ways: merge both ways.

    Returns:
        Groups in this order: the tokens in front, the sources that are left, the targets that are left; both in their
        old order, but targets of which some were merged by falling score.
    """
    batch, sources, targets = scores.shape
    first = merged // 2 if both_ways else merged
    second = merged - first
    best, partner = scores.max(2)
    gone = torch.zeros_like(best, dtype=torch.bool)
    gone = gone.scatter(
        1, best.topk(first, dim=1, sorted=False).indices, 1
    )  # True is no Scalar to torch.jit.trace
    source_group = (~gone).cumsum(1) + (prefix - 1)
    number = torch.arange(targets, device=scores.device).expand(batch, -1)
    target_group = number + (prefix + sources - merged)
    if second:
        best, back = scores.masked_fill(gone[..., None], -torch.inf).max(1)
        order = best.argsort(1, descending=True)
        rank = torch.zeros_like(order).scatter(1, order, number)
        target_group = rank + (prefix + sources - merged)
        target_group = torch.where(rank < second, source_group.gather(1, back), target_group)
    source_group = torch.where(gone, target_group.gather(1, partner), source_group)
    return _grouping(source_group, target_group, prefix, merged)


def _halves(x: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
    """Return sources and targets."""
    return x[:, prefix + 1 :: 2], x[:, prefix::2]


def _grouping(
    sources: Int[Tensor, "batch sources"],
    targets: Int[Tensor, "batch targets"],
    prefix: int,
    merged: int,
) -> Grouping:
    """Put the groups of all tokens in the tokens' order."""
    batch, device = (
        sources.shape[0],
        sources.device,
    )  # not len(), which would fix it in an exported graph
    front = torch.arange(prefix, device=device).expand(batch, -1)
    place = torch.arange(sources.shape[1] + targets.shape[1], device=device)
    patches = torch.cat([targets, sources], 1)[:, place // 2 + place % 2 * targets.shape[1]]
    groups = torch.cat([front, patches], 1)
    count = groups.shape[1] - merged
    first = torch.arange(batch, device=device)[:, None] * count
    return Grouping((groups + first).flatten(), count)
