"""Convolutions in a pyramid of token maps: feed-forwards that look at their neighbours, and steps to a coarser map."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class ConvMlp(nn.Module):
    """A feed-forward with a depthwise 3 x 3 convolution before its activation.

    Args:
        dim: channels of input and output.
        hidden: channels between.
        residual: add what the convolution reads to what it gives.
    """

    def __init__(self, dim: int, hidden: int, residual: bool = False) -> None:
        super().__init__()
        self.residual = residual
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "batch h w dim"]) -> Float[Tensor, "batch h w dim"]:
        """Apply the layers."""
        hidden = self.fc1(x)
        mixed = self.dwconv(hidden.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.fc2(self.act(mixed + hidden if self.residual else mixed))


class Reduce(nn.Module):
    """A 3 x 3 convolution with a stride, and a norm.

    Args:
        dim: channels of the input.
        out_dim: channels of the output.
        stride: cells of the input per cell of the output and side.
    """

    def __init__(self, dim: int, out_dim: int, stride: int = 2) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim, out_dim, 3, stride, padding=1)
        self.norm = nn.LayerNorm(out_dim)  # its eps is 1e-5 also where the blocks' is not

    def forward(self, x: Float[Tensor, "batch h w dim"]) -> Float[Tensor, "batch h2 w2 out_dim"]:
        """Return the smaller map."""
        return self.norm(self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
