"""The transformer block: attention and feed-forward over a row of tokens, with the seams that methods use."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.layers.adapter import AdapterSeam
from vitreous.layers.attention import AttentionCore
from vitreous.layers.drop import DropPath
from vitreous.layers.mlp import Mlp
from vitreous.layers.positions import rotate
from vitreous.layers.scale import LayerScale

Carry: TypeAlias = dict[str, Tensor]
Grid: TypeAlias = tuple[int, int]


class Trace(NamedTuple):
    """The attention's inputs of one block, ``(batch, heads, tokens, width)``."""

    query: Tensor
    key: Tensor
    value: Tensor


class Attention(nn.Module):
    """Multi-head self-attention.

    Args:
        dim: token width.
        heads: number of heads.
        qkv_bias: give queries, keys and values a bias.
        scale: factor of the scores; head width^-0.5 where not given.
    """

    def __init__(
        self, dim: int, heads: int, qkv_bias: bool = True, scale: float | None = None
    ) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.core = AttentionCore(scale)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        turn: Tensor | None = None,
        grid: Grid | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Attend; ``grid`` are rows and columns of the tokens, for what changes scores by place."""
        return self.mix(self.project(x, turn), grid=grid)

    def project(self, x: Float[Tensor, "batch tokens dim"], turn: Tensor | None = None) -> Trace:
        """Return queries, keys and values; ``turn`` holds the angles of rotary positions."""
        query, key, value = rearrange(
            self.qkv(x), "b n (c h d) -> c b h n d", c=3, h=self.heads
        ).unbind(0)
        if turn is not None:
            query, key = rotate(query, turn), rotate(key, turn)
        return Trace(query, key, value)

    def mix(
        self, trace: Trace, bias: Tensor | None = None, grid: Grid | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """Attend, and join the heads; ``bias`` is added to the scores."""
        return self.join(self.core(*trace, bias, grid))

    def join(
        self, mixed: Float[Tensor, "batch heads tokens width"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Put the heads side by side, and project."""
        return self.proj(rearrange(mixed, "b h n d -> b n (h d)"))


class Block(nn.Module):
    """Attention and feed-forward, each on a normalised residual branch.

    There are three seams for token reduction: ``before`` and ``after`` the block, and ``reducer``, which takes the place
    of :meth:`attend`. What stands there is called with the tokens, this block, what the reducer before it has handed on
    (None at first) and the rows and columns of the full grid, and returns the tokens, fewer or not, and what to hand on.
    A reducer may bring the way back, ``restore(tokens, carry) -> tokens of the full grid`` (``layers/trunk.py``).
    ``adapter`` is the seam for an adapter (``layers/adapter.py``).

    Args:
        dim: token width.
        heads: number of heads.
        mlp_ratio: hidden width of the feed-forward over the token width.
        drop_path: stochastic depth.
        layer_scale: first value of the residual branches' factors; None leaves them out.
        qkv_bias: give queries, keys and values a bias.
        norm_eps: of the normalisations.
        scale: factor of the attention's scores; head width^-0.5 where not given.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_ratio: float,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        qkv_bias: bool = True,
        norm_eps: float = 1e-6,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        self.before: nn.Module | None = None
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, heads, qkv_bias, scale)
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.reducer: nn.Module | None = None
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.adapter = AdapterSeam(dim)
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.drop_path = DropPath(drop_path)
        self.after: nn.Module | None = None

    @property
    def reducers(self) -> list[nn.Module]:
        """What reduces tokens here, in its order."""
        return [part for part in (self.before, self.reducer, self.after) if part is not None]

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        turn: Tensor | None = None,
        carry: Carry | None = None,
        grid: Grid | None = None,
    ) -> tuple[Float[Tensor, "batch kept dim"], Carry | None]:
        """Apply the block.

        Args:
            x: the tokens.
            turn: angles of rotary positions.
            carry: what the block before has handed on; where it holds ``middle``, that is replaced by the tokens between
                the two branches.
            grid: rows and columns of the full grid.
        """
        if self.before is not None:
            x, carry = self.before(x, self, carry, grid)
        if self.reducer is None:
            x = self.attend(x, turn, grid)
        else:
            x, carry = self.reducer(x, self, carry, grid)
        if carry is not None and "middle" in carry:
            carry = {**carry, "middle": x}
        x = self.feed(x)
        if self.after is not None:
            x, carry = self.after(x, self, carry, grid)
        return x, carry

    def attend(
        self,
        x: Float[Tensor, "batch tokens dim"],
        turn: Tensor | None = None,
        grid: Grid | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Apply the attention's branch."""
        return self.add(x, self.attn(self.norm1(x), turn, grid))

    def add(
        self, x: Float[Tensor, "batch tokens dim"], mixed: Float[Tensor, "batch tokens dim"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Add what the attention gave, scaled and with stochastic depth, to the tokens."""
        return x + self.drop_path(self.ls1(mixed))

    def feed(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Apply the feed-forward's branch, and the adapter beside it."""
        branch = self.drop_path(self.ls2(self.mlp(self.norm2(x))))
        return x + self.adapter(x, branch)
