"""The feed-forward of a transformer block."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class Mlp(nn.Module):
    """Two linear layers with an activation between them.

    Args:
        dim: width of input and output.
        hidden: width between.
        act: makes the activation.
        drop: dropout after each linear layer.
    """

    def __init__(
        self, dim: int, hidden: int, act: type[nn.Module] = nn.GELU, drop: float = 0.0
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = act()
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Apply both layers."""
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))
