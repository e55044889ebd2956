"""LayerNorm over the channels of a map."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map; its result lies channels-last in memory, as the blocks want it."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__(dim, eps=eps)

    def forward(self, x: Float[Tensor, "batch dim h w"]) -> Float[Tensor, "batch dim h w"]:
        """Normalise every cell."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
