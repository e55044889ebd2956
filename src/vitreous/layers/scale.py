"""LayerScale (Touvron et al., CaiT, 2021)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LayerScale(nn.Module):
    """A learned factor per channel.

    Args:
        dim: channels.
        init: first value of every factor.
        channels_first: the channels are the second axis instead of the last.
    """

    def __init__(self, dim: int, init: float, channels_first: bool = False) -> None:
        super().__init__()
        self.channels_first = channels_first
        self.gamma = nn.Parameter(torch.full((dim,), float(init)))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` times its factors."""
        return x * (self.gamma[:, None, None] if self.channels_first else self.gamma)
