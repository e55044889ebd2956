"""Pooling of cells and tokens: means, maxima, and generalised means (Radenović et al., 2018; Ko et al., GGeM, 2022)."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.errors import ModelError


class GroupGeneralizedMean(nn.Module):
    """Generalised mean over tokens, one learned exponent per group of channels (arXiv 2212.04114, eq. 3).

    Exponent 1 is the mean (of values clamped at ``eps``), infinity the maximum. One group is GeM; a group per
    attention head is GGeM. Negative values are clamped: that loss is part of the definition.

    Args:
        dim: channels.
        groups: groups of consecutive channels.
        exponent: first value of every exponent.
        eps: smallest value, and smallest exponent.
    """

    def __init__(self, dim: int, groups: int, exponent: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        if dim % groups:
            raise ValueError(f"{dim} channels cannot be divided into {groups} groups")
        self.groups, self.eps = groups, eps
        self.p = nn.Parameter(torch.full((groups,), float(exponent)))

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch dim"]:
        """Pool the tokens; computed in float32 as exp(log-mean-exp(p log x) / p), which cannot overflow."""
        logs = rearrange(x.float(), "b n (g c) -> b n g c", g=self.groups).clamp(min=self.eps).log()
        p = self.p.float().clamp(min=self.eps)[:, None]
        count = torch.tensor(x.shape[1], dtype=torch.float32, device=x.device).log()
        pooled = ((torch.logsumexp(p * logs, 1) - count) / p).exp()
        return rearrange(pooled, "b g c -> b (g c)").to(x.dtype)


def pool_cells(x: Float[Tensor, "batch ..."], how: str, axes: tuple[int, ...]) -> Tensor:
    """Return one vector per image: the ``mean`` of all cells, their ``max``, or ``mean_max``, the mean of both."""
    if how == "mean":
        return x.mean(axes)
    if how == "max":
        return x.amax(axes)
    return (x.mean(axes) + x.amax(axes)) / 2


POOLS = ("mean", "max", "mean_max")
TIMM_POOLS = {"avg": "mean", "max": "max", "avgmax": "mean_max"}  # timm's names of them


def check_pool(slug: str, how: str, known: tuple[str, ...] = POOLS) -> None:
    """Refuse a pooling that an architecture does not have.

    Raises:
        ModelError: it is not in ``known``.
    """
    if how not in known:
        raise ModelError(
            f"{slug} cannot pool by '{how}'.", f"Choose {', '.join(known[:-1])} or {known[-1]}."
        )
