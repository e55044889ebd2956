"""Stochastic depth (Huang et al., 2016)."""

from __future__ import annotations

from torch import Tensor, nn


class DropPath(nn.Module):
    """Drop a residual branch of a whole sample with probability ``p`` in training; keep its expectation."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``, some samples zeroed, the others divided by the keep probability."""
        if not self.training or self.p == 0:
            return x
        keep = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.p)
        return x * keep / (1 - self.p)

    def extra_repr(self) -> str:
        """Show the probability."""
        return f"p={self.p:g}"
