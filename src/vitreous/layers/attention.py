"""The one attention function of the house."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def attention(
    query: Float[Tensor, "*batch heads queries width"],
    key: Float[Tensor, "*batch heads keys width"],
    value: Float[Tensor, "*batch heads keys value_width"],
    bias: Float[Tensor, "*#batch #heads #queries keys"] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "*batch heads queries value_width"]:
    """Scaled dot-product attention, fused where the machine can.

    Args:
        query: queries.
        key: keys.
        value: values.
        bias: added to the scores before the softmax (relative positions; -inf hides a key).
        scale: factor of the scores; width^-0.5 where not given.
    """
    batch = query.shape[:-3]
    if bias is not None and bias.ndim == 3:
        bias = bias[None]  # the fused kernels take a bias of two or four axes, not of three
    if len(batch) == 1:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)
    if torch.compiler.is_exporting():  # a graph for other runtimes gains nothing from our detour
        return _attention(query, key, value, bias, scale)
    if bias is not None and bias.requires_grad and query.device.type == "cpu":
        # The processor's fused kernel has no gradient for a bias; what stands in for it is slower than these steps.
        return _attention(query, key, value, bias, scale)
    # The fused kernels only take one batch dimension.
    if bias is not None:
        bias = (
            bias.reshape(1, *bias.shape[-3:])
            if bias.shape[:-3].numel() == 1
            else bias.expand(*batch, *bias.shape[-3:]).flatten(0, -4)
        )
    query, key, value = (x.flatten(0, len(batch) - 1) for x in (query, key, value))
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)
    return mixed.unflatten(0, batch)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float | None
) -> Tensor:
    """Compute :func:`attention` step by step."""
    scores = query * (query.shape[-1] ** -0.5 if scale is None else scale) @ key.transpose(-2, -1)
    return (scores if bias is None else scores + bias).softmax(-1) @ value


class MatMul(nn.Module):
    """A matrix product as a module, so that a method can see or replace it."""

    def forward(
        self, a: Float[Tensor, "*batch n k"], b: Float[Tensor, "*batch k m"]
    ) -> Float[Tensor, "*batch n m"]:
        """Return ``a @ b``."""
        return a @ b


class Scores(nn.Module):
    """What stands between scores and softmax where nothing does: it changes nothing.

    A model or a method replaces it (``set_submodule``) by a module that is called alike: masks that know the places of
    tokens, temperatures, noise.
    """

    def forward(
        self, scores: Float[Tensor, "*batch heads queries keys"], grid: tuple[int, int] | None
    ) -> Float[Tensor, "*batch heads queries keys"]:
        """Return the scores.

        Args:
            scores: scaled products of queries and keys, biases added.
            grid: rows and columns of the tokens' grid, or of a window of it; tokens that lie on none come before it. Where
                keys are fewer than queries, it is the queries'. None where tokens lie on no grid.
        """
        return scores


class AttentionCore(nn.Module):
    """The part of attention without weights: softmax(scale q k^T + bias) v.

    Fused by default. A method that must see or change the steps sets ``explicit`` and replaces ``matmul_qk``,
    ``softmax`` or ``matmul_av``. Where ``scores`` is replaced, the steps are computed one by one without being told.

    Args:
        scale: factor of the scores; width^-0.5 where not given.
    """

    def __init__(self, scale: float | None = None) -> None:
        super().__init__()
        self.scale = scale
        self.explicit = False
        self.matmul_qk = MatMul()
        self.scores: nn.Module = Scores()
        self.softmax = nn.Softmax(dim=-1)
        self.matmul_av = MatMul()

    @property
    def fused(self) -> bool:
        """Whether nobody has to see the steps."""
        return not self.explicit and type(self.scores) is Scores

    def forward(
        self,
        query: Float[Tensor, "*batch heads queries width"],
        key: Float[Tensor, "*batch heads keys width"],
        value: Float[Tensor, "*batch heads keys value_width"],
        bias: Float[Tensor, "*#batch #heads #queries keys"] | None = None,
        grid: tuple[int, int] | None = None,
    ) -> Float[Tensor, "*batch heads queries value_width"]:
        """Attend; the arguments are those of :func:`attention` and of :meth:`weights`."""
        if self.fused:
            return attention(query, key, value, bias, self.scale)
        return self.matmul_av(self.weights(query, key, bias, grid), value)

    def weights(
        self,
        query: Float[Tensor, "*batch heads queries width"],
        key: Float[Tensor, "*batch heads keys width"],
        bias: Float[Tensor, "*#batch #heads #queries keys"] | None = None,
        grid: tuple[int, int] | None = None,
    ) -> Float[Tensor, "*batch heads queries keys"]:
        """Return softmax(scores(scale q k^T + bias)), step by step.

        Args:
            query: queries; all of them, or those whose weights are wanted.
            key: keys.
            bias: added to the scores.
            grid: rows and columns of the tokens, for what changes scores by place.
        """
        scale = query.shape[-1] ** -0.5 if self.scale is None else self.scale
        scores = self.matmul_qk(query * scale, key.transpose(-2, -1))
        if bias is not None:
            scores = scores + bias
        return self.softmax(self.scores(scores, grid))
