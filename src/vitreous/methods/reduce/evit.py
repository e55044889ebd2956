"""EViT: keep the tokens that the class token attends to, and fuse the others into one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.catalog.card import Card
from vitreous.layers.tokens import gather_tokens, keep_left, returned
from vitreous.layers.transformer import Block, Carry, Grid
from vitreous.methods.reduce._install import budget, check_blocks, put, quarters, rows, trunk
from vitreous.models import vit
from vitreous.models.vit import VisionTransformer

CARD = Card(
    slug="evit",
    title="Not All Patches are What You Need: Expediting Vision Transformers via Token Reorganizations",
    kind="method",
    summary="In three blocks, keeps the patches with the highest attention from the class token "
    "and fuses the others into one token weighted by that attention.",
    when="ViTs with a class token that can be fine-tuned after reduction. Here it was not more "
    "accurate than dropping patches at random, and tome and mctf lost less without training.",
    paper="arXiv 2202.07800",
    year=2022,
    source_licence="Apache-2.0 (youweiliang/evit): re-implemented from the equations",
    tasks=["classify"],
    models=[
        "vit_tiny*",
        "vit_small*",
        "vit_base*",
        "vit_large*",
        "vit_test",
        "t2t_vit_*",
        "channelvit_*",
        "satmae_pp_*",
    ],
    variants={"evit": {"keep_rate": 0.7}},
    published=[
        {"model": "vit_small", "keep_rate": 0.9, "gmacs": 4.02, "parameters_m": 22.051},
        {"model": "vit_small", "keep_rate": 0.8, "gmacs": 3.48, "parameters_m": 22.051},
        {"model": "vit_small", "keep_rate": 0.7, "gmacs": 3.03, "parameters_m": 22.051},
        {"model": "vit_small", "keep_rate": 0.6, "gmacs": 2.64, "parameters_m": 22.051},
        {"model": "vit_small", "keep_rate": 0.5, "gmacs": 2.31, "parameters_m": 22.051},
        {"model": "vit_base", "keep_rate": 0.7, "gmacs": 11.61, "parameters_m": 86.568},
    ],
    recipe={
        "from scratch": {"epochs": 300, "start": 10, "shrink": 100, "batch": 2048},
        "fine-tuning": {"epochs": 30, "learning_rate": 2e-5, "weight_decay": 1e-6},
    },
    claim="DeiT-S keeping 0.7 of the patches in blocks 3, 6 and 9 is 50 % faster and loses 0.3 "
    "points of top-1 accuracy.",
    miniature="Digits on textured background, a small ViT fine-tuned with a keep rate of 0.7, "
    "compared with the dense network and with keeping patches at random.",
    notes=[
        "Usage: Block indices start at 0. The default blocks are at a quarter, half and three "
        "quarters of the depth, the paper's 3, 6 and 9 of 12.",
        "Usage: The keep rate falls in the course of a training; evaluation always uses the "
        "final one. The paper's epochs 10 and 110 of 300 are 0.033 and 0.367 of the training.",
        "Usage: The class token's attention row is computed separately, so attention itself "
        "stays fused.",
        "Usage: In mode dense, patches that were dropped return to the decoder's maps as they left.",
        "Differs from the reference: Only patches are dropped. The authors' code treats all "
        "tokens but the first as patches, so that it may drop a distillation token; here it is "
        "kept, and so are registers.",
    ],
)
START, SHRINK = (
    10 / 300,
    100 / 300,
)  # of training: when the keep rate begins to fall, and for how long


class AttentiveTokens(nn.Module):
    """One block's attention, and the choice of tokens behind it (arXiv 2202.07800, section 3).

    Args:
        keep_rate: share of the patches to keep, rounded up.
        prefix: tokens in front of the patches, which all stay.
        fuse: put one token at the end that stands for those that were dropped.
        tokens: how many patches to keep, in place of ``keep_rate``.

    Attributes:
        rate: the keep rate of training.
        start: share of a training after which the rate begins to fall from 1 to the final one.
        shrink: share of a training that the fall takes.
    """

    def __init__(
        self, keep_rate: float, prefix: int, *, fuse: bool = True, tokens: int | None = None
    ) -> None:
        super().__init__()
        self.keep_rate, self.prefix, self.fuse, self.tokens = keep_rate, prefix, fuse, tokens
        self.rate = keep_rate
        self.start, self.shrink = START, SHRINK

    def progress(self, done: float) -> None:
        """Set the keep rate of training to what the paper's schedule has at this point: half a cosine from 1 down.

        Args:
            done: share of the training that is done, from 0 to 1.
        """
        since = done - self.start
        fallen = min(max(since / self.shrink, 0.0), 1.0) if self.shrink > 0 else float(since >= 0)
        above = (1 + math.cos(math.pi * fallen)) / 2
        # exactly 1 before the fall and exactly the final rate after it
        self.rate = min(1.0, above + self.keep_rate * (1 - above))

    def kept(self, patches: int) -> int:
        """Return how many of so many patches stay."""
        if self.tokens is not None:
            return min(self.tokens, patches)
        return math.ceil((self.rate if self.training else self.keep_rate) * patches)

    def after(self, patches: int) -> int:
        """Return how many patches there are behind this block, the fused one among them."""
        kept = self.kept(patches)
        return kept + (self.fuse and kept < patches)

    restore = staticmethod(returned)

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        block: Block,
        carry: Carry | None,
        grid: Grid | None = None,
    ) -> tuple[Float[Tensor, "batch kept dim"], Carry | None]:
        """Attend, then drop patches."""
        patches = x.shape[1] - self.prefix
        kept = self.kept(patches)
        if kept == patches:
            return block.attend(x, grid=grid), carry
        trace = block.attn.project(block.norm1(x))
        weights = block.attn.core.weights(trace.query[:, :, :1], trace.key, grid=grid)
        x = block.add(x, block.attn.mix(trace, grid=grid))
        weights = weights[:, :, 0, self.prefix :].mean(1)
        return self._choose(x, weights, kept, carry or {})

    def _choose(
        self,
        x: Float[Tensor, "batch tokens dim"],
        weights: Float[Tensor, "batch patches"],
        kept: int,
        carry: Carry,
    ) -> tuple[Float[Tensor, "batch kept dim"], Carry]:
        places = weights.topk(kept, dim=1).indices
        stay = places + self.prefix
        parts = [x[:, : self.prefix], gather_tokens(x, stay)]
        if self.fuse:
            # What stays weighs nothing: one product, and no list of what is dropped. The weights of the dropped do
            # not sum to one; the paper leaves them so.
            dropped = weights.scatter(1, places, 0.0)
            parts.append(dropped[:, None] @ x[:, self.prefix :])
        handed = keep_left(carry, x, stay, front=self.prefix, added=int(self.fuse))
        return torch.cat(parts, 1), handed

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"keep_rate={self.keep_rate:g}, tokens={self.tokens}, fuse={self.fuse}"


def install(
    model: nn.Module,
    *,
    keep_rate: float | Sequence[float] = 0.7,
    blocks: Sequence[int] | None = None,
    fuse: bool = True,
    tokens: int | Sequence[int] | None = None,
) -> list[dict[str, Any]]:
    """Let blocks of ``model`` drop the patches that the class token hardly attends to.

    Args:
        model: a model with a class token, whose tokens may lose their places.
        keep_rate: share of a block's patches that stay, above 0 and up to 1; one for all blocks, or one each.
        blocks: numbers of the blocks that drop, from 0; None: after each quarter of the depth.
        fuse: put one token at the end in place of those that are dropped.
        tokens: how many patches stay (the fused one not counted), in place of ``keep_rate``; one for all, or one each.

    Returns:
        The blocks, and how many tokens they take in and hand on.

    Raises:
        ModelError: another kind of model, or settings out of range.
    """
    network = trunk(model, "evit", class_token=True)
    depth = len(network.blocks)
    numbers = quarters(depth) if blocks is None else list(blocks)
    check_blocks(numbers, depth, "evit")
    shares = budget(keep_rate, tokens, len(numbers), "evit")
    reducers = {
        number: AttentiveTokens(rate, network.prefix, fuse=fuse, tokens=count)
        for number, (rate, count) in zip(numbers, shares, strict=True)
    }
    put(network, reducers)
    return rows(model, network, reducers)


def reducers(model: nn.Module) -> Iterator[AttentiveTokens]:
    """Iterate over the blocks' reducers."""
    return (module for module in model.modules() if isinstance(module, AttentiveTokens))


def from_reference(
    state_dict: Mapping[str, Tensor], kwargs: Mapping[str, Any]
) -> VisionTransformer:
    """Build the model from the arguments of the authors' EViT and load their weights.

    ``keep_rate`` has one value per block; blocks with 1 keep everything.
    """
    model = vit.from_reference(state_dict, kwargs)
    depth = len(model.blocks)
    given = kwargs.get("keep_rate", 1)
    rates = [given] * depth if isinstance(given, int | float) else list(given)
    rates = rates * depth if len(rates) == 1 else rates
    blocks = [number for number, rate in enumerate(rates) if rate < 1]
    if blocks:
        chosen = [rates[number] for number in blocks]
        install(model, keep_rate=chosen, blocks=blocks, fuse=kwargs.get("fuse_token", False))
    return model
