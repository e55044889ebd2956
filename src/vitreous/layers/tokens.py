"""What methods that reduce tokens have in common: picking tokens, and attention that can be looked at."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitreous.layers.attention import AttentionCore


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


def attention_weights(
    core: AttentionCore,
    query: Float[Tensor, "batch heads queries width"],
    key: Float[Tensor, "batch heads keys width"],
    bias: Float[Tensor, "#batch #heads #queries keys"] | None = None,
) -> Float[Tensor, "batch heads queries keys"]:
    """Return softmax(scale q k^T + bias), step by step through the modules of ``core``.

    What replaces these modules (quantizers) has its way here too.

    Args:
        core: whose scale and steps to use.
        query: queries; all of them, or those whose weights are wanted.
        key: keys.
        bias: added to the scores.
    """
    scale = query.shape[-1] ** -0.5 if core.scale is None else core.scale
    scores = core.matmul_qk(query * scale, key.transpose(-2, -1))
    return core.softmax(scores if bias is None else scores + bias)


def log_size(size: Float[Tensor, "batch tokens"]) -> Float[Tensor, "batch 1 1 tokens"]:
    """Return the bias that lets a key weigh as much as the ``size`` tokens that it stands for."""
    return size.log()[:, None, None]
