"""What methods that reduce tokens have in common: picking them, and the way back to the grid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vitreous.layers.matching import Grouping
from vitreous.layers.transformer import Carry


def gather_tokens(
    x: Float[Tensor, "batch tokens dim"], places: Int[Tensor, "batch kept"]
) -> Float[Tensor, "batch kept dim"]:
    """Return the tokens at ``places``, in their order.

    Whole rows are copied: a gather by elements takes several times as long.
    """
    batch, tokens, dim = x.shape
    first = torch.arange(batch, device=x.device)[:, None] * tokens
    rows = x.flatten(0, 1).index_select(0, (places + first).flatten())
    return rows.view(*places.shape, dim)


def front_places(x: Float[Tensor, "batch tokens dim"], prefix: int) -> Int[Tensor, "batch prefix"]:
    """Return the places of the tokens in front, for each image."""
    return torch.arange(prefix, device=x.device).expand(x.shape[0], -1)


def log_size(size: Float[Tensor, "batch tokens"]) -> Float[Tensor, "batch 1 1 tokens"]:
    """Return the bias that lets a key weigh as much as the ``size`` tokens that it stands for."""
    return size.log()[:, None, None]


# -- the way back (layers/trunk.py) -------------------------------------------------------------------------
#
# Blocks that are to bring tokens back are handed ``origin``, the numbers of all tokens. Where tokens are merged, it
# becomes the number of the token that stands for each; where they leave, the place that each token had at first, and
# ``full`` holds all tokens as they were when last somebody left.


def keep_merged(carry: Carry, groups: Grouping) -> Carry:
    """Return what to hand on for :func:`unmerged`; nothing where nobody asks for it."""
    if "origin" not in carry:
        return {}
    return {"origin": groups.numbers(len(carry["origin"])).gather(1, carry["origin"])}


def unmerged(
    tokens: Float[Tensor, "batch kept dim"], carry: Carry
) -> Float[Tensor, "batch tokens dim"]:
    """Return for each token of the full grid the one that stands for it."""
    return gather_tokens(tokens, carry["origin"])


def keep_left(
    carry: Carry,
    x: Float[Tensor, "batch tokens dim"],
    stay: Int[Tensor, "#batch kept"],
    *,
    front: int = 0,
    added: int = 0,
) -> Carry:
    """Return what to hand on for :func:`returned`; nothing where nobody asks for it.

    Args:
        carry: what was handed on so far.
        x: the tokens before some of them leave.
        stay: the numbers of those that stay, in their new order.
        front: how many stay in front of them, and are not among them.
        added: how many tokens come behind them that belong to no place.
    """
    if "origin" not in carry:
        return {}
    places, full = carry["origin"], carry.get("full")
    stay = torch.cat([front_places(x, front), stay.expand(x.shape[0], -1)], 1)
    if full is None:
        full = x.new_zeros(
            x.shape[0], x.shape[1] + 1, x.shape[2]
        )  # the last: of tokens without a place
    full = full.scatter(1, _rows(places, x), x)
    kept = F.pad(places.gather(1, stay), (0, added), value=full.shape[1] - 1)
    return {"origin": kept, "full": full}


def returned(
    tokens: Float[Tensor, "batch kept dim"], carry: Carry
) -> Float[Tensor, "batch tokens dim"]:
    """Return all tokens of the full grid: those that left as they were when they left."""
    if "full" not in carry:
        return tokens
    return carry["full"].scatter(1, _rows(carry["origin"], tokens), tokens)[:, :-1]


def _rows(
    places: Int[Tensor, "batch tokens"], x: Float[Tensor, "batch tokens dim"]
) -> Int[Tensor, "batch tokens dim"]:
    return places[..., None].expand(-1, -1, x.shape[-1])
