"""The place beside a block's feed-forward where a method puts an adapter."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class AdapterSeam(nn.Module):
    """What stands in the place of an adapter that is not there; it changes nothing and has no weights.

    A block calls it with the tokens that its feed-forward's branch reads, before the norm, and with what the branch
    gives, stochastic depth included; what it returns is added to the trunk. A method replaces it by a module that is
    called alike (``set_submodule``).

    Args:
        dim: token width, for the adapter to be built for.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(
        self, tokens: Float[Tensor, "*batch dim"], branch: Float[Tensor, "*batch dim"]
    ) -> Float[Tensor, "*batch dim"]:
        """Return ``branch``."""
        return branch
