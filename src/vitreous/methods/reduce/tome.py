"""ToMe: merge the tokens whose keys are most alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from vitreous.catalog.card import Card
from vitreous.errors import ModelError
from vitreous.layers.matching import cosines, match
from vitreous.layers.tokens import keep_merged, log_size, unmerged
from vitreous.layers.transformer import Block, Carry, Grid
from vitreous.methods.reduce._install import per_block, put, rows, trunk

CARD = Card(
    slug="tome",
    title="Token Merging: Your ViT But Faster",
    kind="method",
    summary="Between attention and feed-forward of every block, merges pairs of tokens with "
    "similar keys into their mean, weighted by size.",
    when="First choice for token reduction without training: among the smallest losses measured "
    "here, and attention stays fused.",
    paper="arXiv 2210.09461",
    year=2023,
    source_licence="CC-BY-NC-4.0 (facebookresearch/ToMe): re-implemented from the paper",
    tasks=["classify"],
    models=[
        "vit_tiny*",
        "vit_small*",
        "vit_base*",
        "vit_large*",
        "vit_patch",
        "vit_test",
        "ggem_*",
        "t2t_vit_*",
        "channelvit_*",
        "satmae_pp_*",
    ],
    variants={"tome": {}},
    claim="Without training, ViT-L and ViT-H reach twice the throughput for 0.2 to 0.3 points of "
    "top-1 accuracy.",
    notes=[
        "Usage: r = 13 in all blocks is the paper's setting for DeiT-S.",
        "Usage: In models with pooled patches a merged token counts once; the paper's MAE models "
        "weight it by size.",
        "Usage: In mode dense, every cell gets the token that stands for it before the decoder reads "
        "the map.",
        "Differs from the reference: Patches alternate between the two sets, prefix tokens are "
        "in neither. With a class token this is the paper's partition; with a distillation token "
        "the sets are swapped.",
    ],
)


def install(model: nn.Module, *, r: int | Sequence[int] = 13) -> list[dict[str, Any]]:
    """Let every block of a plain transformer merge tokens.

    Args:
        model: a model whose tokens may lose their places.
        r: tokens fewer per block, at most half of its patches; one for all blocks, or one for each. 0 leaves the
            model as it is, bit for bit.

    Returns:
        The blocks and their tokens before and after.

    Raises:
        ModelError: r is negative or a fraction, or this is a model that the method cannot serve.
    """
    network = trunk(model, "tome")
    amounts = per_block(r, len(network.blocks), "tome", "r")
    for amount in amounts:
        if amount < 0 or amount != int(amount):
            raise ModelError(
                f"'tome' cannot merge {amount:g} tokens.",
                "Give r as an integer; 0 merges none.",
            )
    reducers = {
        number: Merging(int(amount), network.prefix) for number, amount in enumerate(amounts)
    }
    put(network, reducers)
    return rows(model, network, reducers)


class Merging(nn.Module):
    """Applies the attention of one block, then merges tokens (section 3 of the paper).

    Args:
        r: tokens fewer.
        prefix: tokens in front of the patches, which stay.
    """

    def __init__(self, r: int, prefix: int) -> None:
        super().__init__()
        self.r, self.prefix = r, prefix

    def after(self, patches: int) -> int:
        """Return how many of so many patches' tokens there will be."""
        return patches - min(self.r, patches // 2)

    restore = staticmethod(unmerged)

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        block: Block,
        carry: Carry | None,
        grid: Grid | None = None,
    ) -> tuple[Float[Tensor, "batch kept dim"], Carry | None]:
        """Return the tokens, and with ``size`` how many patches each stands for."""
        carry = carry or {}
        trace = block.attn.project(block.norm1(x))
        bias = log_size(carry["size"]) if "size" in carry else None
        x = block.add(x, block.attn.mix(trace, bias, grid))
        patches = x.shape[1] - self.prefix
        count = patches - self.after(patches)
        if not count:
            return x, carry
        scores = cosines(trace.key.mean(1), self.prefix)
        groups = match(scores, count, self.prefix, both_ways=False)
        size = carry["size"] if "size" in carry else x.new_ones(x.shape[:2])
        handed = {"size": groups.sum(size), **keep_merged(carry, groups)}
        return groups.sum(x * groups.shares(size)), handed

    def extra_repr(self) -> str:
        """Show the setting."""
        return f"r={self.r}"
