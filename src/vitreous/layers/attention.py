"""The one attention function of the house."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def attention(
    query: Float[Tensor, "*batch heads queries width"],
    key: Float[Tensor, "*batch heads keys width"],
    value: Float[Tensor, "*batch heads keys width"],
    bias: Float[Tensor, "*#batch #heads #queries keys"] | None = None,
) -> Float[Tensor, "*batch heads queries width"]:
    """Scaled dot-product attention, fused where the machine can.

    Args:
        query: queries; scaled by width^-0.5 here.
        key: keys.
        value: values.
        bias: added to the scores before the softmax (relative positions; -inf hides a key).
    """
    batch = query.shape[:-3]
    if len(batch) == 1:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    # The fused kernels only take one batch dimension.
    if bias is not None:
        shared = bias.ndim == 3 or bias.shape[:-3].numel() == 1
        bias = (
            bias.reshape(1, *bias.shape[-3:])
            if shared
            else bias.expand(*batch, *bias.shape[-3:]).flatten(0, -4)
        )
    query, key, value = (x.flatten(0, len(batch) - 1) for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias).unflatten(0, batch)
