"""MCTF: merge tokens that are alike, that little attention goes to, and that are small."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from vitreous.catalog.card import Card
from vitreous.errors import ModelError
from vitreous.layers.matching import Grouping, cosines, match, outer
from vitreous.layers.tokens import keep_merged, log_size, unmerged
from vitreous.layers.transformer import Block, Carry, Grid
from vitreous.methods._apply import apply
from vitreous.methods.reduce._install import check_blocks, per_block, put, quarters, rows, trunk
from vitreous.models import vit
from vitreous.models.vit import VisionTransformer

CARD = Card(
    slug="mctf",
    title="Multi-criteria Token Fusion with One-step-ahead Attention for Efficient Vision Transformers",
    kind="method",
    summary="Merges pairs of tokens by similarity, attention and size before the attention of a "
    "block, using that block's own weights one step ahead.",
    when="Faster trained ViTs, without training or after a short fine-tuning. No loss at 20 % "
    "fewer multiply-adds here; its advantage over tome only shows at strong reduction.",
    paper="arXiv 2403.10030",
    year=2024,
    source_licence="MIT (mlvlab/MCTF): re-implemented from the equations",
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
    variants={"mctf": {}, "mctf_fast": {"r": 0.35, "blocks": "quarters"}},
    published=[
        {"variant": "mctf", "model": "vit_tiny", "gmacs": 0.705, "top1": 72.7, "dense_top1": 72.2},
        {"variant": "mctf_fast", "model": "vit_tiny", "gmacs": 0.745, "top1": 72.7},
        {"variant": "mctf", "model": "vit_small", "gmacs": 2.594, "top1": 80.1, "dense_top1": 79.8},
        {"variant": "mctf_fast", "model": "vit_small", "gmacs": 2.75, "top1": 80.1},
    ],
    recipe={
        "start": "trained weights",
        "epochs": 30,
        "optimizer": "adamw",
        "learning_rate": 1.5e-5,
        "batch_size": 1024,
        "loss": "mctf.Consistency",
    },
    claim="44 % fewer multiply-adds at 0.5 (DeiT-T) and 0.3 (DeiT-S) points higher accuracy "
    "after 30 epochs.",
    miniature="Digits on texture, 8 x 8 tokens, a ViT of width 48 and depth 6, 6 tokens fewer in "
    "each of the last five blocks. Required: without training, not below merging by similarity "
    "alone and at most 3 points below the dense network; after 5 epochs with the consistency "
    "loss at most 0.5 points below it.",
    notes=[
        "Usage: A ratio refers to the patches. In models with pooled patches a merged token "
        "counts once.",
        "Usage: Where 'qkv' has been replaced (adapter, quantizer), it is evaluated twice: for "
        "queries and keys, and for the values of the merged tokens.",
        "Usage: In mode dense, every cell gets the token that stands for it before the decoder reads "
        "the map.",
        "Differs from the reference: Distillation and register tokens are kept like the class "
        "token, the only one the authors have.",
        "Differs from the reference: Reused attention is not fused itself: A' V' is computed as "
        "the merged rows of A V'', where V'' gives every token the value of its group. The sum "
        "is the same, without materialising attention.",
        "Differs from the reference: The maxima that normalise inverse attention and size change "
        "neither order nor mean and are left out. Max pooling, the authors' fourth option, is "
        "not offered.",
        "As in the reference: A count never goes below 10 tokens, a ratio stops at 10; where "
        "their count becomes negative, nothing is merged.",
    ],
)

FEWEST = 10  # tokens of an image that are left in any case
POOLINGS = ("attention", "size", "mean")
WAYS = ("ahead", "precise", "behind")


def install(
    model: nn.Module,
    *,
    r: float | Sequence[float] = 16,
    blocks: Sequence[int] | str = "all",
    tau_sim: float = 1.0,
    tau_info: float = 20.0,
    tau_size: float = 40.0,
    both_ways: bool = True,
    pooling: str = "attention",
    attention: str = "ahead",
    proportional: bool = True,
) -> list[dict[str, Any]]:
    """Let blocks of a plain transformer merge tokens.

    Args:
        model: a model whose tokens may lose their places.
        r: tokens fewer per block, at most half of the patches; below 1 a share of the patches. One for all blocks, or
            one for each. 0 leaves the model as it is, bit for bit.
        blocks: numbers of the blocks that merge, from 0; ``all``: all but the first; ``quarters``: after each
            quarter of the depth but the last (3, 6 and 9 of 12).
        tau_sim: temperature of likeness; 0 leaves the criterion out.
        tau_info: temperature of how little attention a token gets; 0 leaves it out.
        tau_size: temperature of how few patches a token stands for; 0 leaves it out.
        both_ways: merge half of the tokens into one half of the patches and the others the other way round.
        pooling: what weighs a token in the mean: ``attention`` times size, ``size``, or nothing (``mean``).
        attention: whose attention says what is informative: ``ahead``, the block's own from before merging, which is
            reused for its output; ``precise``, the same, but computed again for the output; ``behind``, that of the
            block before, so that tokens are merged one block later.
        proportional: let a key weigh as much as the patches that it stands for.

    Returns:
        The blocks and their tokens before and after.

    Raises:
        ModelError: a setting out of its range, or a model that this cannot serve.
    """
    network = trunk(model, "mctf")
    depth = len(network.blocks)
    numbers = _numbers(blocks, depth)
    amounts = dict(zip(numbers, per_block(r, len(numbers), "mctf", "r"), strict=True))
    _check(list(amounts.values()), (tau_sim, tau_info, tau_size), pooling, attention)
    if attention == "behind":
        amounts = {number + 1: amount for number, amount in amounts.items() if number + 1 < depth}
    reducers = {
        number: Fusion(
            amounts.get(number, 0),
            network.prefix,
            tau=(tau_sim, tau_info, tau_size),
            both_ways=both_ways,
            pooling=pooling,
            attention=attention,
            proportional=proportional,
            looks=attention == "behind" and amounts.get(number + 1, 0) > 0,
        )
        for number in range(numbers[0], depth)
    }
    put(network, reducers)
    return rows(model, network, reducers)


class Fusion(nn.Module):
    """Merges tokens and applies the attention of one block.

    Args:
        r: tokens fewer; below 1 a share of the patches.
        prefix: tokens in front of the patches, which stay.
        tau: temperatures of likeness, attention and size.
        both_ways: merge both ways.
        pooling: ``attention``, ``size`` or ``mean``.
        attention: ``ahead``, ``precise`` or ``behind``.
        proportional: let a key weigh as much as the patches that it stands for.
        looks: measure the attention for the block that comes next, which merges ``behind``.
    """

    def __init__(
        self,
        r: float,
        prefix: int,
        *,
        tau: tuple[float, float, float] = (1.0, 20.0, 40.0),
        both_ways: bool = True,
        pooling: str = "attention",
        attention: str = "ahead",
        proportional: bool = True,
        looks: bool = False,
    ) -> None:
        super().__init__()
        self.r, self.prefix, self.tau = r, prefix, tau
        self.both_ways, self.pooling, self.attention = both_ways, pooling, attention
        self.proportional, self.looks = proportional, looks

    def after(self, patches: int) -> int:
        """Return how many of so many patches' tokens there will be."""
        if patches + self.prefix <= FEWEST:
            return patches
        room = patches + self.prefix - FEWEST
        wanted = int(patches * self.r) if self.r < 1 else min(int(self.r), room)
        return patches - min(wanted, patches // 2)

    restore = staticmethod(unmerged)

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        block: Block,
        carry: Carry | None,
        grid: Grid | None = None,
    ) -> tuple[Float[Tensor, "batch kept dim"], Carry | None]:
        """Return the tokens after the attention, and with ``size`` how many patches each stands for."""
        carry = carry or {}
        patches = x.shape[1] - self.prefix
        count = patches - self.after(patches)
        if self.attention == "behind":
            return self._behind(x, block, carry, count, grid)
        if not count:
            return self._attend(x, block, carry, grid), carry
        if self.attention == "ahead":
            return self._ahead(x, block, carry, count, grid)
        return self._precise(x, block, carry, count, grid)

    def fuse(
        self,
        x: Float[Tensor, "batch tokens dim"],
        mass: Float[Tensor, "batch tokens"],
        size: Float[Tensor, "batch tokens"] | None,
        count: int,
    ) -> tuple[Grouping, Float[Tensor, "batch tokens 1"], Float[Tensor, "batch kept"]]:
        """Decide what to merge.

        Args:
            x: tokens, whose likeness counts.
            mass: mean attention that each gets.
            size: patches that each stands for; None: one.
            count: how many tokens fewer there will be.

        Returns:
            The groups, each token's share in its group's mean, and the groups' sizes.
        """
        mass = mass.clamp_min(torch.finfo(mass.dtype).tiny)  # attention may round to nothing
        groups = match(self._scores(x, mass, size), count, self.prefix, both_ways=self.both_ways)
        size = torch.ones_like(mass) if size is None else size
        weight = {"attention": mass * size, "size": size, "mean": torch.ones_like(size)}
        return groups, groups.shares(weight[self.pooling]), groups.sum(size)

    def _scores(
        self, x: Tensor, mass: Tensor, size: Tensor | None
    ) -> Float[Tensor, "batch sources targets"]:
        """Return the product of the criteria, each to the power of 1 / tau."""
        likeness, information, smallness = self.tau
        factor = torch.ones_like(mass)
        if information:
            factor = mass ** (-1 / information)
        if smallness and size is not None:
            factor = factor * size ** (-1 / smallness)
        scores = outer(factor, self.prefix)
        if likeness:
            alike = (cosines(x, self.prefix) + 1).clamp_min(0) / 2
            scores = scores * (alike if likeness == 1 else alike ** (1 / likeness))
        return scores

    def _ahead(
        self, x: Tensor, block: Block, carry: Carry, count: int, grid: Grid | None
    ) -> tuple[Tensor, Carry]:
        """Merge by the attention of all tokens, and give its merged rows and columns to the merged ones."""
        attn = block.attn
        weights = self._weights(x, block, carry, grid)
        groups, shares, size = self.fuse(x, mean_attention(weights), carry.get("size"), count)
        x = groups.sum(x * shares)
        value = groups.spread(_project(attn.qkv, block.norm1(x), 2, 3))
        mixed = attn.core.matmul_av(weights, _heads(value, attn.heads))
        mixed = groups.sum(rearrange(mixed, "b h n d -> b n (h d)") * shares)
        return block.add(x, attn.proj(mixed)), {"size": size, **keep_merged(carry, groups)}

    def _precise(
        self, x: Tensor, block: Block, carry: Carry, count: int, grid: Grid | None
    ) -> tuple[Tensor, Carry]:
        """Merge by the attention of all tokens, then attend anew."""
        with torch.no_grad():
            weights = self._weights(x, block, carry, grid)
        groups, shares, size = self.fuse(x, mean_attention(weights), carry.get("size"), count)
        carry = {"size": size, **keep_merged(carry, groups)}
        return self._attend(groups.sum(x * shares), block, carry, grid), carry

    def _behind(
        self, x: Tensor, block: Block, carry: Carry, count: int, grid: Grid | None
    ) -> tuple[Tensor, Carry]:
        """Merge by the attention of the block before, then attend."""
        if count:
            groups, shares, size = self.fuse(x, carry["mass"], carry.get("size"), count)
            x = groups.sum(x * shares)
            carry = {"size": size, **keep_merged(carry, groups)}
        if not self.looks:
            return self._attend(x, block, carry, grid), carry
        attn = block.attn
        trace = attn.project(block.norm1(x))
        weights = attn.core.weights(trace.query, trace.key, self._bias(carry), grid)
        mixed = attn.join(attn.core.matmul_av(weights, trace.value))
        return block.add(x, mixed), {**carry, "mass": mean_attention(weights)}

    def _weights(
        self, x: Tensor, block: Block, carry: Carry, grid: Grid | None
    ) -> Float[Tensor, "batch heads tokens tokens"]:
        """Return the block's attention; no values are projected for it."""
        attn = block.attn
        both = _project(attn.qkv, block.norm1(x), 0, 2)
        query, key = (_heads(part, attn.heads) for part in both.chunk(2, -1))
        return attn.core.weights(query, key, self._bias(carry), grid)

    def _attend(self, x: Tensor, block: Block, carry: Carry, grid: Grid | None) -> Tensor:
        """Apply the attention as it is, fused."""
        trace = block.attn.project(block.norm1(x))
        return block.add(x, block.attn.mix(trace, self._bias(carry), grid))

    def _bias(self, carry: Carry) -> Tensor | None:
        return log_size(carry["size"]) if self.proportional and "size" in carry else None

    def extra_repr(self) -> str:
        """Show the settings."""
        return (
            f"r={self.r:g}, tau={self.tau}, both_ways={self.both_ways}, pooling={self.pooling}, "
            f"attention={self.attention}, proportional={self.proportional}"
        )


class Consistency:
    """The loss of training with token reduction consistency: one network run twice on each batch.

    The student merges as the network is set up to, the teacher a random amount. Both are trained on the classes, and
    where the student is sure of the right class, its features are drawn to the teacher's:

        L = CE(student) + CE(teacher) + weight * mean over sure samples of mean((student - teacher)^2)

    It is called with (model, images, classes), as losses of ``tasks/miniature.py`` are.

    Args:
        model: a network that this method was applied to, and the one that will be trained: the teacher has its
            parameters. A new head calls for a new loss.
        r_max: the teacher's r is drawn from 0 up to it: a number of tokens, or up to 1 a share of the patches.
        weight: of the third term.
        confidence: probability of the right class above which the student is sure; of mixed classes, the mean.

    Raises:
        ModelError: the network merges no tokens in this way, or the teacher would have nothing to draw from.
    """

    def __init__(
        self, model: nn.Module, r_max: float, *, weight: float = 3.0, confidence: float = 0.4
    ) -> None:
        if r_max <= 0:
            raise ModelError(f"r_max = {r_max:g} is out of range.", "Use a value above 0.")
        # The teacher's r must last until the backward pass, where checkpointing runs the blocks again: so it has
        # blocks of its own, around the same parameters.
        teacher = copy.deepcopy(model, {id(p): p for p in model.parameters()})
        self._reducers = [m for m in teacher.modules() if isinstance(m, Fusion) and m.r > 0]
        if not self._reducers or not isinstance(teacher, VisionTransformer):
            raise ModelError(
                "The network merges no tokens, so there is no student to train.",
                "Apply the method 'mctf' first, with r above 0.",
            )
        self._teacher = teacher
        self.r_max, self.weight, self.confidence = r_max, weight, confidence

    def __call__(
        self,
        model: nn.Module,
        images: Float[Tensor, "batch bands height width"],
        classes: Int[Tensor, "batch"] | Float[Tensor, "batch classes"],
    ) -> Float[Tensor, ""]:
        """Return the loss of a batch; draws from torch's generator.

        Args:
            model: the network in training.
            images: its input.
            classes: numbers from 0, or the classes' shares in each image.
        """
        assert isinstance(model, VisionTransformer)
        teacher = self._drawn(model.training)
        features, guide = model.forward_features(images), teacher.forward_features(images)
        scores = model.forward_head(features)
        distance = (model.pool_tokens(features) - teacher.pool_tokens(guide).detach()).square()
        sure = (_right(scores.detach(), classes) > self.confidence).to(distance.dtype)
        apart = (distance.mean(1) * sure).sum() / sure.sum().clamp_min(1)
        student = F.cross_entropy(scores, classes)
        return student + F.cross_entropy(teacher.forward_head(guide), classes) + self.weight * apart

    def _drawn(self, training: bool) -> VisionTransformer:
        """Return the teacher with a new r."""
        r = float(torch.rand(())) * self.r_max
        for reducer in self._reducers:
            reducer.r = r if self.r_max <= 1 else int(r)
        return self._teacher.train(training)


def from_reference(
    state_dict: Mapping[str, Tensor], kwargs: Mapping[str, Any]
) -> VisionTransformer:
    """Build the authors' VisionTransformer from its arguments, load its weights, and apply this method as they do.

    ``mctf_type`` is (r, the teacher's r, tracing, proportional attention, whose attention, three temperatures, both
    ways, pooling, unused); tracing and the teacher belong to analysis and training.

    Raises:
        ModelError: they pool by the maximum.
    """
    model = vit.from_reference(state_dict, {**kwargs, "img_size": kwargs["input_size"]})
    r, _, _, proportional, ahead, likeness, information, smallness, both_ways, pooling, *_ = kwargs[
        "mctf_type"
    ]
    if not kwargs["use_mctf"] or not kwargs["activate_layer"]:
        return model
    if pooling == 2:
        raise ModelError("Max pooling of merged tokens is not supported.", "Use another pooling.")
    reduced = apply(
        model,
        "mctf",
        r=r,
        blocks=list(kwargs["activate_layer"]),
        tau_sim=likeness,
        tau_info=information,
        tau_size=smallness,
        both_ways=bool(both_ways),
        pooling={1: "attention", 3: "mean"}.get(pooling, "size"),
        attention={0: "behind", 1: "ahead"}.get(ahead, "precise"),
        proportional=bool(proportional),
    ).model
    assert isinstance(reduced, VisionTransformer)
    return reduced


def mean_attention(
    weights: Float[Tensor, "batch heads queries tokens"],
) -> Float[Tensor, "batch tokens"]:
    """Return the mean attention that each token gets, over heads and queries; no gradient flows through it."""
    return weights.detach().flatten(1, 2).mean(1)


def _right(
    scores: Float[Tensor, "batch classes"],
    truth: Int[Tensor, "batch"] | Float[Tensor, "batch classes"],
) -> Float[Tensor, "batch"]:
    """Return the probability of the right class; of several, the mean by their shares."""
    shares = truth if truth.is_floating_point() else F.one_hot(truth, scores.shape[1])
    return (scores.softmax(1) * shares).sum(1)


def _project(
    qkv: nn.Module, x: Float[Tensor, "batch tokens dim"], first: int, last: int
) -> Float[Tensor, "batch tokens width"]:
    """Return some of queries (0), keys (1) and values (2), up to but without the last.

    Only the rows of the weight that are asked for are used, unless the layer is more than a linear one.
    """
    if type(qkv) is not nn.Linear:
        full: Tensor = qkv(x)
        width = full.shape[-1] // 3
        return full[..., first * width : last * width]
    width = qkv.out_features // 3
    rows = slice(first * width, last * width)
    return F.linear(x, qkv.weight[rows], None if qkv.bias is None else qkv.bias[rows])


def _heads(
    x: Float[Tensor, "batch tokens dim"], heads: int
) -> Float[Tensor, "batch heads tokens width"]:
    return rearrange(x, "b n (h d) -> b h n d", h=heads)


def _numbers(blocks: Sequence[int] | str, depth: int) -> list[int]:
    """Return the blocks that merge.

    Raises:
        ModelError: they are not there.
    """
    if blocks == "all":
        return list(range(1, depth)) or [0]
    if blocks == "quarters":
        return quarters(depth)
    if isinstance(blocks, str):
        raise ModelError(
            f"'mctf' does not support blocks='{blocks}'.",
            "Give 'all', 'quarters' or a list of numbers.",
        )
    check_blocks(blocks, depth, "mctf")
    return list(blocks)


def _check(amounts: Sequence[float], tau: Sequence[float], pooling: str, attention: str) -> None:
    """Refuse settings out of their range."""
    for r in amounts:
        if r < 0 or (r > 1 and r != int(r)):
            raise ModelError(
                f"'mctf' cannot merge {r:g} tokens.",
                "Give r as an integer, or below 1 as a fraction of the patches; 0 merges none.",
            )
    if min(tau) < 0:
        raise ModelError(
            f"The temperature tau = {min(tau):g} is out of range.",
            "Use a value above 0, or 0 to disable the criterion.",
        )
    for value, known, name in ((pooling, POOLINGS, "pooling"), (attention, WAYS, "attention")):
        if value not in known:
            raise ModelError(
                f"'mctf' has no {name} '{value}'.", f"Choose one of {', '.join(known)}."
            )
