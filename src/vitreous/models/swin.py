"""Swin Transformer: attention inside windows, whose grid moves by half a window from block to block."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vitreous.catalog.arguments import Depths, ImageSize, Positive, Share, Size, Sizes
from vitreous.catalog.card import Card
from vitreous.catalog.tensors import DERIVED
from vitreous.errors import ModelError
from vitreous.layers.adapter import AdapterSeam
from vitreous.layers.attention import AttentionCore
from vitreous.layers.backbone import Backbone, FeatureInfo, init_linear, linear_rates, stem_stride
from vitreous.layers.drop import DropPath
from vitreous.layers.mlp import Mlp
from vitreous.layers.pooling import TIMM_POOLS, check_pool, pool_cells
from vitreous.layers.positions import resize_positions
from vitreous.layers.reference import (
    one_side,
    pair,
    refuse_eps,
    refuse_others,
    rename_keys,
    substitute,
)
from vitreous.layers.sizes import as_size
from vitreous.layers.windows import RelativePositionBias, partition, resize_biases, reverse

CARD = Card(
    slug="swin",
    title="Swin Transformer: Hierarchical Vision Transformer using Shifted Windows",
    kind="model",
    summary="A pyramid with attention inside local windows, which are shifted in every second "
    "block.",
    when="Backbone for dense tasks on large images, where global attention is too expensive. "
    "Slow on small patches.",
    paper="arXiv 2103.14030; ICCV 2021",
    year=2021,
    source_licence="MIT (microsoft/Swin-Transformer): re-implemented from the equations",
    tasks=["classify"],
    variants={
        "swin_tiny": {
            "dim": 96,
            "depths": [2, 2, 6, 2],
            "heads": [3, 6, 12, 24],
            "window": 7,
            "drop_path": 0.2,
        },
        "swin_small": {
            "dim": 96,
            "depths": [2, 2, 18, 2],
            "heads": [3, 6, 12, 24],
            "window": 7,
            "drop_path": 0.3,
        },
        "swin_base": {
            "dim": 128,
            "depths": [2, 2, 18, 2],
            "heads": [4, 8, 16, 32],
            "window": 7,
            "drop_path": 0.5,
        },
        "swin_base_384": {
            "dim": 128,
            "depths": [2, 2, 18, 2],
            "heads": [4, 8, 16, 32],
            "window": 12,
            "drop_path": 0.5,
        },
        "swin_large": {
            "dim": 192,
            "depths": [2, 2, 18, 2],
            "heads": [6, 12, 24, 48],
            "window": 7,
            "drop_path": 0.2,
        },
        "swin_large_384": {
            "dim": 192,
            "depths": [2, 2, 18, 2],
            "heads": [6, 12, 24, 48],
            "window": 12,
            "drop_path": 0.2,
        },
        "swin_test": {
            "dim": 8,
            "depths": [2, 2],
            "heads": [2, 4],
            "window": 4,
            "mlp_ratio": 2.0,
        },
    },
    published=[
        {"variant": "swin_tiny", "parameters_m": 28.288, "gmacs": 4.49, "top1": 81.2},
        {"variant": "swin_small", "parameters_m": 49.606, "gmacs": 8.75, "top1": 83.2},
        {"variant": "swin_base", "parameters_m": 87.768, "gmacs": 15.44, "top1": 83.5},
        {
            "variant": "swin_base_384",
            "image_size": 384,
            "parameters_m": 87.904,
            "gmacs": 47.11,
            "top1": 84.5,
        },
        {
            "variant": "swin_large",
            "parameters_m": 196.532,
            "gmacs": 34.49,
            "top1": 86.3,
            "source": "pre-trained on ImageNet-22K",
        },
        {
            "variant": "swin_large_384",
            "image_size": 384,
            "parameters_m": 196.736,
            "gmacs": 103.95,
            "top1": 87.3,
            "source": "pre-trained on ImageNet-22K",
        },
    ],
    recipe={
        "optimizer": "adamw",
        "learning_rate": 1e-3,
        "batch_size": 1024,
        "weight_decay": 0.05,
        "epochs": 300,
        "warmup_epochs": 20,
        "schedule": "cosine",
        "clip": 5.0,
        "label_smoothing": 0.1,
        "mixup": 0.8,
        "cutmix": 1.0,
        "random_augment": "m9, std 0.5",
        "erasing": 0.25,
        "jitter": 0.4,
    },
    claim="81.3 % on ImageNet at the cost of DeiT-S (79.8 %), and a cost linear in image size; "
    "shifted windows are worth 1.1 points.",
    miniature="Images of 32 x 32 pixels with two glyphs in different windows: same or different? "
    "Required: shifted windows at least 3 points above fixed windows; multiply-adds of window "
    "attention grow by a factor of 4, not 16, when the side doubles.",
    notes=[
        "Image size: Patches are 4 pixels at 224; on smaller images they shrink so that 4 x 4 "
        "cells remain (token_size).",
        "Image size: The authors' classifier needs sizes that divide evenly. Here maps are "
        "zero-padded at the bottom and right, as in their detection code, and padded cells are "
        "masked.",
        "Image size: A stage whose map is not larger than a window is a single window without "
        "shift, as published. On oblong images this is decided along each axis, as in timm. The "
        "authors cut a map with one short axis into square windows of that length and shift none; "
        "from_reference does so for their layout (window and shift take one value per stage).",
        "Checkpoints: Checkpoints of timm load. Where a window does not divide a map, timm "
        "shifts before it pads and lets padded cells take part in attention; mask_padding=False "
        "reproduces that, and from_reference sets it for timm's layout. Its windows may be "
        "rectangular and are clipped to the map along each axis.",
        "Differs from the reference: Pairs of cells that are not neighbours are masked with "
        "-inf, where the authors subtract 100.",
        "Published figures: Published costs are the authors' count, which includes "
        "normalisation; ours does not.",
        "Not included: Dropout (0 in every published setting) and the Swin-MLP variants.",
    ],
)


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows, with relative positions (eq. 4).

    Args:
        dim: token width.
        heads: number of heads.
        window: rows and columns of the largest window.
        qkv_bias: give the projections to query, key and value a bias.
        scale: factor of the scores; (dim / heads)^-0.5 where not given.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        window: tuple[int, int],
        qkv_bias: bool,
        scale: float | None,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.position = RelativePositionBias(window, heads)
        self.core = AttentionCore(scale)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self,
        x: Float[Tensor, "batch windows tokens dim"],
        window: tuple[int, int],
        mask: Float[Tensor, "windows 1 tokens tokens"] | None,
    ) -> Float[Tensor, "batch windows tokens dim"]:
        """Attend within each window; ``mask`` is added to the scores."""
        query, key, value = rearrange(
            self.qkv(x), "b n t (c h d) -> c b n h t d", c=3, h=self.heads
        ).unbind(0)
        bias = self.position(*window)
        bias = bias if mask is None else bias + mask
        mixed = self.core(query, key, value, bias, window)
        return self.proj(rearrange(mixed, "b n h t d -> b n t (h d)"))


class Block(nn.Module):
    """Attention in windows and feed-forward, each on a normalised residual branch (eq. 3).

    Args:
        dim: token width.
        heads: number of heads.
        window: side of a window, or its rows and columns.
        shifted: move the windows by half their side; along both axes, or down and across.
        mlp_ratio: hidden width of the feed-forward over the token width.
        drop_path: stochastic depth.
        qkv_bias: see :class:`WindowAttention`.
        scale: see :class:`WindowAttention`.
        mask_padding: see :class:`SwinTransformer`.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        window: int | tuple[int, int],
        shifted: bool | tuple[bool, bool],
        mlp_ratio: float,
        drop_path: float,
        qkv_bias: bool,
        scale: float | None,
        mask_padding: bool = True,
    ) -> None:
        super().__init__()
        self.window, self.shifted, self.mask_padding = as_size(window), shifted, mask_padding
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, self.window, qkv_bias, scale)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.adapter = AdapterSeam(dim)
        self.drop_path = DropPath(drop_path)

    def forward(
        self,
        x: Float[Tensor, "batch height width dim"],
        mask: Float[Tensor, "windows 1 tokens tokens"] | None,
    ) -> Float[Tensor, "batch height width dim"]:
        """Apply the block; ``mask`` is what :func:`window_mask` gives for this map."""
        x = x + self.drop_path(self._attend(self.norm1(x), mask))
        return x + self.adapter(x, self.drop_path(self.mlp(self.norm2(x))))

    def _attend(
        self,
        x: Float[Tensor, "batch height width dim"],
        mask: Float[Tensor, "windows 1 tokens tokens"] | None,
    ) -> Float[Tensor, "batch height width dim"]:
        height, width = x.shape[1:3]
        window, shift = window_grid(height, width, self.window, self.shifted)
        if self.mask_padding:
            x = pad_to(x, window)
        shape = (x.shape[1], x.shape[2])
        if any(shift):
            x = x.roll((-shift[0], -shift[1]), (1, 2))
        x = reverse(self.attn(partition(x, window), window, mask), window, *shape)
        if any(shift):
            x = x.roll(shift, (1, 2))
        return x[:, :height, :width]


class PatchMerging(nn.Module):
    """Join 2 x 2 neighbours into one token of twice the width (section 3.1).

    Args:
        dim: token width.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(
        self, x: Float[Tensor, "batch height width dim"]
    ) -> Float[Tensor, "batch half_height half_width twice_dim"]:
        """Halve the sides, rounded up."""
        # The neighbours' order is down first, then across.
        x = rearrange(pad_to(x, (2, 2)), "b (h r) (w c) d -> b h w (c r d)", r=2, c=2)
        return self.reduction(self.norm(x))


class Stage(nn.Module):
    """Blocks on maps of one size, regular and shifted windows alternating.

    Args:
        merge: what makes the maps from those of the stage before.
        blocks: the blocks; all have the same window.
    """

    def __init__(self, merge: nn.Module, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.merge = merge
        self.blocks = nn.ModuleList(blocks)

    def plan(
        self, x: Float[Tensor, "batch height width dim"]
    ) -> Iterator[tuple[Block, Tensor | None]]:
        """Give each block with the mask that it needs for maps like ``x``; equal masks are made once."""
        made: dict[bool | tuple[bool, bool], Tensor | None] = {}
        for block in self.blocks:
            assert isinstance(block, Block)
            if block.shifted not in made:
                made[block.shifted] = window_mask(
                    x, block.window, block.shifted, block.mask_padding
                )
            yield block, made[block.shifted]


class SwinTransformer(Backbone):
    """Swin Transformer (arXiv 2103.14030).

    Sides that a token, a merge or a window does not divide are padded with zeros below and on the right; no
    token attends to padding. Images of other sizes than ``image_size`` work with the windows it was built with.

    Args:
        bands: channels of the input.
        num_classes: classes; with 0 the pooled features are returned.
        image_size: side of the image in pixels, or height and width: decides ``token_size`` and the windows of stages
            with small maps.
        dim: token width of the first stage; each further stage doubles it.
        depths: blocks of each stage.
        heads: attention heads of each stage.
        window: side of a window in tokens, or for each stage one of its own, a side or rows and columns; a stage with
            fewer tokens along an axis is not cut along it.
        token_size: side of a token of the first stage in pixels; 4, or on small images what leaves 4 x 4 tokens in
            the last stage.
        mlp_ratio: hidden width of the feed-forward over the token width.
        drop_path: stochastic depth of the last block, growing linearly from 0.
        shift: move the windows of every second block by half their side (the paper's ablation turns it off); or for
            each stage, whether down and whether across.
        absolute_positions: add learned positions to the tokens of the first stage.
        qkv_bias: give the projections to query, key and value a bias.
        scale: factor of the attention scores; (width of a head)^-0.5 where not given.
        stem_norm: normalise the tokens of the first stage.
        partial_tokens: what is left of an image below and on the right makes tokens too, padded with zeros; False
            leaves it out, as the authors and timm do.
        mask_padding: no cell attends to cells that padding added; False repeats what timm does, which shifts the
            windows before it pads and lets padding take part.
        pool: how the last map's cells become one vector: ``mean``, ``max``, or ``mean_max``, the mean of both.

    Raises:
        ModelError: depths and heads of unequal numbers, heads that do not divide a width, or no window.
    """

    any_size = True
    band_parameters = ("patch_embed.weight",)
    undecayed = ("pos_embed", "position.table")

    def __init__(
        self,
        bands: int,
        num_classes: int,
        image_size: ImageSize = 224,
        *,
        dim: Size = 96,
        depths: Depths = (2, 2, 6, 2),
        heads: Sizes = (3, 6, 12, 24),
        window: Size | Sequence[Size | Sizes] = 7,
        token_size: Size | None = None,
        mlp_ratio: Positive = 4.0,
        drop_path: Share = 0.0,
        shift: bool | Sequence[Sequence[bool]] = True,
        absolute_positions: bool = False,
        qkv_bias: bool = True,
        scale: Positive | None = None,
        stem_norm: bool = True,
        partial_tokens: bool = True,
        mask_padding: bool = True,
        pool: str = "mean",
    ) -> None:
        super().__init__(bands, num_classes, image_size)
        stages = len(depths)
        windows = [window] * stages if isinstance(window, int) else list(window)
        sides = [pair(given) for given in windows]
        shifts = _shifts(shift, stages)
        _check(dim, depths, heads, sides)
        check_pool("swin", pool)
        self.pool = pool
        self.token_size = token_size or stem_stride(image_size, 4, later=2 ** (stages - 1))
        dims = [dim * 2**stage for stage in range(stages)]
        self.num_features = dims[-1]
        self.feature_info = [
            FeatureInfo(width, self.token_size * 2**stage) for stage, width in enumerate(dims)
        ]
        self.patch_embed = nn.Conv2d(bands, dim, self.token_size, stride=self.token_size)
        self.patch_norm = nn.LayerNorm(dim) if stem_norm else nn.Identity()
        self.partial_tokens = partial_tokens
        self.least_size = 1 if partial_tokens else self.token_size
        self.check_size(*self.size)
        rest = self.token_size - 1 if partial_tokens else 0
        self.grid = _divided(self.size, self.token_size, rest)
        self.pos_embed = (
            nn.Parameter(torch.zeros(1, math.prod(self.grid), dim)) if absolute_positions else None
        )
        rates = iter(linear_rates(drop_path, sum(depths)))
        self.stages = nn.ModuleList()
        for stage, (width, depth) in enumerate(zip(dims, depths, strict=True)):
            rows, columns = _divided(self.grid, 2**stage, 2**stage - 1)
            blocks = [
                Block(
                    width,
                    heads[stage],
                    (min(sides[stage][0], rows), min(sides[stage][1], columns)),
                    shifts[stage] if number % 2 == 1 else False,
                    mlp_ratio,
                    next(rates),
                    qkv_bias,
                    scale,
                    mask_padding,
                )
                for number in range(depth)
            ]
            self.stages.append(Stage(PatchMerging(width // 2) if stage else nn.Identity(), blocks))
        self.norm = nn.LayerNorm(self.num_features)
        self.head = self.make_head(num_classes)
        init_linear(self)
        if self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def embed(self, x: Float[Tensor, "batch bands height width"]) -> Float[Tensor, "batch h w dim"]:
        """Return the tokens of the first stage."""
        below, right = (-side % self.token_size for side in x.shape[2:])
        if self.partial_tokens and (below or right):
            x = F.pad(x, (0, right, 0, below))
        x = self.patch_norm(rearrange(self.patch_embed(x), "b d h w -> b h w d"))
        if self.pos_embed is None:
            return x
        table = resize_positions(self.pos_embed, (x.shape[1], x.shape[2]), grid=self.grid)
        return x + rearrange(table, "1 (h w) d -> 1 h w d", h=x.shape[1])

    def pyramid(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> Iterator[Float[Tensor, "batch h w dim"]]:
        """Give the map of each stage."""
        x = self.embed(x)
        for stage in self.stages:
            assert isinstance(stage, Stage)
            x = stage.merge(x)
            for block, mask in stage.plan(x):
                x = self.run(block, x, mask)
            yield x

    def forward_features(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Return the last stage's tokens, normalised."""
        *_, last = self.pyramid(x)
        return rearrange(self.norm(last), "b h w d -> b (h w) d")

    def forward_head(
        self, features: Float[Tensor, "batch tokens dim"]
    ) -> Float[Tensor, "batch classes"]:
        """Classify the pooled tokens."""
        return self.head(pool_cells(features, self.pool, (1,)))

    def level_maps(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> list[Float[Tensor, "batch channels h w"]]:
        """Return the maps of all stages, the last one normalised."""
        *maps, last = self.pyramid(x)
        return [rearrange(m, "b h w d -> b d h w") for m in (*maps, self.norm(last))]


def window_grid(
    height: int, width: int, window: int | tuple[int, int], shifted: bool | tuple[bool, bool]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the sides of the windows on a map, and how far they are shifted down and across.

    An axis no longer than a window is not cut, and there is nothing to shift along it.
    """
    moved = (shifted, shifted) if isinstance(shifted, bool) else shifted
    axes = list(zip(as_size(window), (height, width), moved, strict=True))
    rows, columns = (min(side, length) for side, length, _ in axes)
    down, across = (side // 2 if moves and length > side else 0 for side, length, moves in axes)
    return (rows, columns), (down, across)


def window_mask(
    x: Float[Tensor, "batch height width dim"],
    window: int | tuple[int, int],
    shifted: bool | tuple[bool, bool],
    mask_padding: bool = True,
) -> Float[Tensor, "windows 1 tokens tokens"] | None:
    """Return 0 for pairs of tokens that may attend to each other, -inf for others; None where all may.

    Rolling a map puts cells of opposite edges into one window, and padding adds cells that do not exist. Tokens only
    attend to tokens of their own kind. Without ``mask_padding`` only opposite edges are told apart, at the end of the
    padded map.
    """
    height, width = x.shape[1:3]
    sides, shift = window_grid(height, width, window, shifted)
    if not mask_padding:
        if not any(shift):
            return None
        height, width = (n + -n % side for n, side in zip((height, width), sides, strict=True))
    if not any(shift) and height % sides[0] == 0 and width % sides[1] == 0:
        return None
    rows = axis_kinds(height, sides[0], shift[0], x.device)
    columns = axis_kinds(width, sides[1], shift[1], x.device)
    kinds = 3 * rows[:, None] + columns[None, :]
    kinds = rearrange(kinds, "(i h) (j w) -> (i j) 1 (h w)", h=sides[0], w=sides[1])
    apart: Bool[Tensor, "windows 1 tokens tokens"] = kinds[..., :, None] != kinds[..., None, :]
    return x.new_zeros(apart.shape).masked_fill(apart, float("-inf"))


def axis_kinds(length: int, window: int, shift: int, device: torch.device) -> Int[Tensor, "padded"]:
    """Return the kind of each row or column of a padded and rolled map: 0 as it was, 1 wrapped around, 2 padding."""
    padded = length + -length % window
    source = (torch.arange(padded, device=device) + shift) % padded
    return (source < shift).long() + 2 * (source >= length).long()


def pad_to(
    x: Float[Tensor, "batch height width dim"], multiple: tuple[int, int]
) -> Float[Tensor, "batch padded_height padded_width dim"]:
    """Pad a map with zeros below and on the right to a multiple of a size."""
    below, right = -x.shape[1] % multiple[0], -x.shape[2] % multiple[1]
    return F.pad(x, (0, 0, 0, right, 0, below)) if below or right else x


def _shifts(given: bool | Sequence[Sequence[bool]], stages: int) -> list[tuple[bool, bool]]:
    """Return for each stage whether its shifted windows move down and across.

    Raises:
        ModelError: not two answers for each stage.
    """
    if isinstance(given, bool):
        return [(given, given)] * stages
    if len(given) != stages or any(len(moves) != 2 for moves in given):
        raise ModelError(
            f"swin has shift={given!r:.80} for {stages} stages.",
            "Give true or false, or for each stage whether windows move down and across.",
        )
    return [(bool(down), bool(across)) for down, across in given]


def _divided(sides: tuple[int, int], by: int, rest: int) -> tuple[int, int]:
    """Return both sides over a number; with a rest of ``by - 1``, rounded up."""
    return (sides[0] + rest) // by, (sides[1] + rest) // by


def _check(
    dim: int, depths: Sequence[int], heads: Sequence[int], windows: Sequence[tuple[int, int]]
) -> None:
    if not depths or len(depths) != len(heads):
        raise ModelError(
            f"swin has {len(depths)} stages of blocks and heads for {len(heads)}.",
            "Give depths and heads one number per stage.",
        )
    for stage, count in enumerate(heads):
        if dim * 2**stage % count:
            raise ModelError(
                f"swin's stage {stage + 1} has width {dim * 2**stage}, not divisible by {count} heads.",
                "Change dim or heads.",
            )
    if len(windows) != len(depths):
        raise ModelError(
            f"swin has windows for {len(windows)} stages of {len(depths)}.",
            "Give one side for all stages, or one window per stage.",
        )
    if any(min(window) < 1 for window in windows):
        raise ModelError(f"swin has no windows of {windows} tokens.", "Give windows of 1 or more.")


build = SwinTransformer


_TABLE = r"\.relative_position_bias_table$"
LAYOUTS = {
    "timm's Swin": (
        r"^layers\.\d+\.blocks\.\d+\.attn" + _TABLE,
        r"^patch_embed\.proj\.weight$",
        r"!^layers\.0\.downsample\.",
        r"!^head\.weight$",
    ),
    "the authors' Swin": (
        r"^layers\.\d+\.blocks\.\d+\.attn" + _TABLE,
        r"^patch_embed\.proj\.weight$",
        r"^(layers\.0\.downsample|head)\.",
        r"!^head\.fc\.",
    ),
}
_NAMES = (
    (r"^patch_embed\.proj\.", "patch_embed."),
    (r"^patch_embed\.norm\.", "patch_norm."),
    (r"^absolute_pos_embed$", "pos_embed"),
    (_TABLE, ".position.table"),
    (r"^head\.fc\.", "head."),
)


def rename(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give weights of the authors or of timm our names; what follows from the size (masks, indices) is left out."""
    learned = {key: value for key, value in state_dict.items() if not key.endswith(DERIVED)}
    # The authors' merging ends a stage and timm's begins the next, as ours does.
    later = int(any(key.startswith("layers.0.downsample.") for key in learned))

    def stage(found: re.Match[str]) -> str:
        if not found[2]:
            return f"stages.{found[1]}."
        return f"stages.{int(found[1]) + later}.merge."

    rules = (*_NAMES, (r"^layers\.(\d+)\.(downsample\.)?", stage))
    return rename_keys(learned, partial(substitute, rules))


def read_settings(
    weights: Mapping[str, Tensor], image_size: ImageSize | None = None
) -> dict[str, Any]:
    """Return what weights under our names say about options that a variant leaves open."""
    return {
        "qkv_bias": "stages.0.blocks.0.attn.qkv.bias" in weights,
        "stem_norm": "patch_norm.weight" in weights,
        "absolute_positions": "pos_embed" in weights,
    }


def resize(
    state_dict: Mapping[str, Tensor], model: SwinTransformer, source: SwinTransformer | None = None
) -> dict[str, Tensor]:
    """Resample position tables to the windows, and learned positions to the grid, of ``model``, bicubically."""
    resized = resize_biases(state_dict, model, source)
    if "pos_embed" in resized:
        grid = None if source is None else source.grid
        resized["pos_embed"] = resize_positions(resized["pos_embed"], model.grid, grid=grid)
    return resized


# Values of timm's arguments that change nothing, or that ours has.
_OFFERED: dict[str, tuple[Any, ...]] = {
    "global_pool": tuple(TIMM_POOLS),
    "always_partition": (False,),
    "head_dim": (None,),
}


def from_reference(state_dict: Mapping[str, Tensor], kwargs: Mapping[str, Any]) -> SwinTransformer:
    """Build the model from the arguments of the authors' or timm's SwinTransformer and load its weights.

    Raises:
        ModelError: patches that are not square, or an argument that we do not offer.
    """
    refuse_others("swin", kwargs, _OFFERED)
    refuse_eps("swin", kwargs, 1e-5)
    depths = kwargs.get("depths", (2, 2, 6, 2))
    image = pair(kwargs.get("img_size", 224))
    timm = not any(key.startswith(("layers.0.downsample.", "head.weight")) for key in state_dict)
    token = one_side("swin", kwargs.get("patch_size", 4), "patches")
    grid = _divided(image, token, 0)
    windows = _windows(kwargs.get("window_size", 7), len(depths))
    cut = [
        _cut(window, _divided(grid, 2**stage, 0), square=not timm)
        for stage, window in enumerate(windows)
    ]
    model = SwinTransformer(
        bands=kwargs.get("in_chans", 3),
        num_classes=kwargs.get("num_classes", 1000),
        image_size=image,
        token_size=token,
        dim=_first_width(kwargs.get("embed_dim", 96)),
        depths=depths,
        heads=kwargs.get("num_heads", (3, 6, 12, 24)),
        window=[window for window, _ in cut],
        shift=[moves for _, moves in cut],
        mlp_ratio=_one(kwargs.get("mlp_ratio", 4.0), "mlp_ratio"),
        drop_path=kwargs.get("drop_path_rate", 0.1),
        absolute_positions=kwargs.get("ape", False),
        qkv_bias=kwargs.get("qkv_bias", True),
        scale=kwargs.get("qk_scale") or None,
        stem_norm=kwargs.get("patch_norm", True),
        partial_tokens=False,
        mask_padding=not timm,  # the authors' code never pads
        pool=TIMM_POOLS[kwargs.get("global_pool", "avg")],
    )
    model.load_state_dict(rename(state_dict))
    return model


def _windows(given: Any, stages: int) -> list[tuple[int, int]]:
    """Return the window of each stage; two numbers are rows and columns for all stages, as in timm."""
    alone = isinstance(given, int) or (len(given) == 2 and isinstance(given[0], int))
    windows = [pair(given)] * stages if alone else [pair(window) for window in given]
    if len(windows) != stages:
        raise ModelError(
            f"swin has windows for {len(windows)} stages of {stages}; they do not fit.",
            "Give one side for all stages, or one window per stage.",
        )
    return windows


def _cut(
    window: tuple[int, int], cells: tuple[int, int], square: bool
) -> tuple[tuple[int, int], tuple[bool, bool]]:
    """Return a stage's windows as the references cut its map, and whether they move down and across.

    timm decides this along each axis. With the authors (``square``), a map that is no longer than a window along one
    axis has square windows of that length, and none of them moves. Both count a map's cells rounded down.
    """
    if square:
        side, shorter = min(window), min(cells)
        return (min(side, shorter),) * 2, (shorter > side,) * 2
    (rows, columns), (height, width) = window, cells
    return (min(rows, height), min(columns, width)), (height > rows, width > columns)


def _first_width(given: int | Sequence[int]) -> int:
    """Return the first stage's width, of widths that double."""
    widths = [given] if isinstance(given, int) else list(given)
    if widths != [widths[0] * 2**stage for stage in range(len(widths))]:
        raise ModelError(
            f"swin doubles its width from stage to stage, unlike embed_dim={widths}.",
            "Give one number.",
        )
    return widths[0]


def _one(given: Any, what: str) -> float:
    """Return a setting that is the same in every stage."""
    values = {*given} if isinstance(given, list | tuple) else {given}
    if len(values) != 1:
        raise ModelError(f"swin has one {what} for all stages, not {given}.", "Give one number.")
    value: float = values.pop()
    return value
