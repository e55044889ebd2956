"""CrossViT: two branches with tokens of different size, each class token asking the other branch's patches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.catalog.arguments import (
    ImageSize,
    Positive,
    Positives,
    Share,
    Size,
    Sizes,
    StageDepths,
)
from vitreous.catalog.card import Card
from vitreous.errors import ModelError
from vitreous.layers.attention import AttentionCore
from vitreous.layers.backbone import Backbone, FeatureInfo, init_linear, linear_rates, stem_stride
from vitreous.layers.drop import DropPath
from vitreous.layers.pooling import check_pool
from vitreous.layers.positions import resize_positions
from vitreous.layers.reference import (
    join,
    norm_eps,
    pair,
    refuse_others,
    rename_keys,
    substitute,
)
from vitreous.layers.sizes import as_size, in_words, plain_size, whole_cells
from vitreous.layers.transformer import Block, Grid

CARD = Card(
    slug="crossvit",
    title="CrossViT: Cross-Attention Multi-Scale Vision Transformer for Image Classification",
    kind="model",
    summary="Two ViT branches with small and large patches; each branch's class token attends to "
    "the other branch's patches.",
    when="Objects at two scales, in images much larger than a token. The gain over a single "
    "branch measured here was below 1 point.",
    paper="arXiv 2103.14899, ICCV 2021",
    year=2021,
    source_licence="Apache-2.0 (IBM/CrossViT): re-implemented from the equations",
    tasks=["classify"],
    variants={
        "crossvit_tiny": {
            "dims": [96, 192],
            "depths": [[1, 4, 1], [1, 4, 1], [1, 4, 1]],
            "heads": [3, 3],
            "mlp_ratio": [4, 4],
        },
        "crossvit_small": {
            "dims": [192, 384],
            "depths": [[1, 4, 1], [1, 4, 1], [1, 4, 1]],
            "heads": [6, 6],
            "mlp_ratio": [4, 4],
        },
        "crossvit_base": {
            "dims": [384, 768],
            "depths": [[1, 4, 1], [1, 4, 1], [1, 4, 1]],
            "heads": [12, 12],
            "mlp_ratio": [4, 4],
        },
        "crossvit_9": {
            "dims": [128, 256],
            "depths": [[1, 3, 1], [1, 3, 1], [1, 3, 1]],
            "heads": [4, 4],
        },
        "crossvit_15": {
            "dims": [192, 384],
            "depths": [[1, 5, 1], [1, 5, 1], [1, 5, 1]],
            "heads": [6, 6],
        },
        "crossvit_18": {
            "dims": [224, 448],
            "depths": [[1, 6, 1], [1, 6, 1], [1, 6, 1]],
            "heads": [7, 7],
        },
        "crossvit_9_dagger": {
            "dims": [128, 256],
            "depths": [[1, 3, 1], [1, 3, 1], [1, 3, 1]],
            "heads": [4, 4],
            "conv_stem": True,
        },
        "crossvit_15_dagger": {
            "dims": [192, 384],
            "depths": [[1, 5, 1], [1, 5, 1], [1, 5, 1]],
            "heads": [6, 6],
            "conv_stem": True,
        },
        "crossvit_18_dagger": {
            "dims": [224, 448],
            "depths": [[1, 6, 1], [1, 6, 1], [1, 6, 1]],
            "heads": [7, 7],
            "conv_stem": True,
        },
        "crossvit_test": {
            "dims": [8, 16],
            "depths": [[1, 2, 1], [1, 1, 2]],
            "heads": [2, 2],
            "mlp_ratio": [2, 2],
            "conv_stem": True,
        },
    },
    published=[
        {"variant": "crossvit_tiny", "parameters_m": 7.01, "gmacs": 1.56, "top1": 73.4},
        {"variant": "crossvit_small", "parameters_m": 26.86, "gmacs": 5.62, "top1": 81.0},
        {"variant": "crossvit_base", "parameters_m": 105.03, "gmacs": 21.19, "top1": 82.2},
        {"variant": "crossvit_9", "parameters_m": 8.55, "gmacs": 1.84, "top1": 73.9},
        {"variant": "crossvit_15", "parameters_m": 27.53, "gmacs": 5.79, "top1": 81.5},
        {"variant": "crossvit_18", "parameters_m": 43.27, "gmacs": 9.03, "top1": 82.5},
        {"variant": "crossvit_9_dagger", "parameters_m": 8.78, "gmacs": 1.98, "top1": 77.1},
        {"variant": "crossvit_15_dagger", "parameters_m": 28.21, "gmacs": 6.11, "top1": 82.3},
        {"variant": "crossvit_18_dagger", "parameters_m": 44.27, "gmacs": 9.47, "top1": 82.8},
        {
            "variant": "crossvit_15_dagger",
            "image_size": 384,
            "parameters_m": 28.50,
            "gmacs": 21.40,
            "top1": 83.5,
        },
        {
            "variant": "crossvit_18_dagger",
            "image_size": 384,
            "parameters_m": 44.61,
            "gmacs": 32.41,
            "top1": 83.9,
        },
    ],
    recipe={
        "optimizer": "AdamW",
        "batch_size": 4096,
        "learning_rate": 4e-3,
        "weight_decay": 0.1,
        "epochs": 300,
        "warmup_epochs": 30,
        "schedule": "cosine",
        "drop_path": 0.1,
        "label_smoothing": 0.1,
        "mixup": 0.8,
        "cutmix": 1.0,
        "random_erasing": 0.25,
        "augmentation": "RandAugment m9, repeated",
    },
    claim="About two points above DeiT at a slightly higher cost (CrossViT-15 81.5 vs DeiT-S "
    "79.8); cross-attention of class tokens outperforms no fusion, all-token fusion and summed "
    "class tokens.",
    miniature="Indian Pines, 6 principal components, patches of 24 pixels, branches with tokens "
    "of 3 and 4 pixels: cross-attention vs the same network with summed class tokens, and vs a "
    "single branch of equal size; test pixels drawn at random, and for one seed on spatial "
    "blocks.",
    notes=[
        "Image size: On small images the large token shrinks until 7 x 7 fit; the small one is "
        "3/4 of it, rounded up. An image whose side is not a multiple of a branch's token is "
        "resampled, as the paper does for the small branch.",
        "Image size: Images of another size than the network was built for are resampled to the "
        "branches' sizes, as in the authors' code, which compares only the height; here both "
        "sides are compared. Maps for dense heads are resampled back to the image's shape.",
        "Image size: Branch sizes follow one rule that reproduces all published ones (240 and "
        "224; 408 and 384): the small branch has sqrt(2) times as many tokens per side as the "
        "large one.",
        "Image size: The convolutional stem is published for tokens of 12 and 16 pixels; for "
        "smaller tokens its strides shrink and the kernels stay.",
        "Checkpoints: Checkpoints of timm load. timm's default is a bias for queries, keys and "
        "values and an eps of 1e-6, the authors' class has neither; from_reference tells them "
        "apart by the names of their tensors.",
        "Differs from the reference: With two or more cross-attention blocks in a row, the "
        "authors' code keeps only the class token after the first, so that later blocks attend "
        "to that token alone. Here the patches are kept; lone_class_token=True reproduces "
        "theirs. No published network has more than one block.",
        "Differs from the reference: The authors' depths count 0 cross-attention blocks where "
        "there is one; depths here say 1.",
        "Usage: Stochastic depth increases linearly over the large branch; "
        "the cross-attention of a multi-scale block uses the rate of the last of them.",
        "Published figures: Parameters and multiply-adds are exact counts; the paper rounds them "
        "(7.01 M to 6.9, 105.03 M to 104.7).",
    ],
)

# Strides of the convolutional stem's three layers, by the side of a token in pixels.
STEM_STRIDES = {
    16: (4, 2, 2),
    12: (4, 3, 1),
    8: (2, 2, 2),
    6: (2, 3, 1),
    4: (1, 2, 2),
    3: (1, 3, 1),
    2: (1, 2, 1),
    1: (1, 1, 1),
}


class Details(NamedTuple):
    """What all blocks of a network share; see :class:`CrossViT`."""

    qkv_bias: bool
    cross_scale: float | None
    lone_class_token: bool
    norm_eps: float


class CrossAttention(nn.Module):
    """The first token asks all tokens, itself among them: linear in their number (eqs. 4 and 5).

    Args:
        dim: token width.
        heads: number of heads.
        drop_path: stochastic depth.
        details: what all blocks share.
    """

    def __init__(self, dim: int, heads: int, drop_path: float, details: Details) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim, eps=details.norm_eps)
        self.query = nn.Linear(dim, dim, bias=details.qkv_bias)
        self.key_value = nn.Linear(dim, 2 * dim, bias=details.qkv_bias)
        self.core = AttentionCore(details.cross_scale)
        self.proj = nn.Linear(dim, dim)
        self.drop_path = DropPath(drop_path)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], grid: Grid | None = None
    ) -> Float[Tensor, "batch 1 dim"]:
        """Return the first token with what it learned; ``grid`` are rows and columns of the others."""
        normed = self.norm(x)
        query = rearrange(self.query(normed[:, :1]), "b n (h d) -> b h n d", h=self.heads)
        key, value = rearrange(
            self.key_value(normed), "b n (c h d) -> c b h n d", c=2, h=self.heads
        ).unbind(0)
        mixed = rearrange(self.core(query, key, value, grid=grid), "b h n d -> b n (h d)")
        return x[:, :1] + self.drop_path(self.proj(mixed))


class Fusion(nn.Module):
    """One direction of a multi-scale block: a class token visits the other branch's patches (section 3.3).

    Args:
        dim: width of the class token.
        other: width of the other branch, in which the attention takes place.
        heads: the other branch's heads.
        depth: cross-attention blocks in a row.
        drop_path: stochastic depth.
        details: what all blocks share.
    """

    def __init__(
        self, dim: int, other: int, heads: int, depth: int, drop_path: float, details: Details
    ) -> None:
        super().__init__()
        self.lone_class_token = details.lone_class_token
        self.proj = _project(dim, other, details.norm_eps)
        self.blocks = nn.ModuleList(
            CrossAttention(other, heads, drop_path, details) for _ in range(depth)
        )
        self.back = _project(other, dim, details.norm_eps)

    def forward(
        self,
        class_token: Float[Tensor, "batch 1 dim"],
        patches: Float[Tensor, "batch patches other"],
        grid: Grid | None = None,
    ) -> Float[Tensor, "batch 1 dim"]:
        """Return the new class token; the old one lives on only in what was projected."""
        token = self.proj(class_token)
        for number, block in enumerate(self.blocks):
            alone = number > 0 and self.lone_class_token
            token = block(token) if alone else block(torch.cat([token, patches], 1), grid)
        return self.back(token)


class BranchBlocks(nn.ModuleList):
    """Blocks of one branch, one after the other."""

    def forward(
        self, tokens: Float[Tensor, "batch tokens dim"], grid: Grid | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """Apply them; ``grid`` are rows and columns of the tokens behind the first."""
        for block in self:
            tokens, _ = block(tokens, grid=grid)
        return tokens


class MultiScaleBlock(nn.Module):
    """Blocks of each branch, then both class tokens cross over at the same time (fig. 3).

    Args:
        dims: widths of the branches.
        heads: attention heads of the branches.
        mlp_ratio: hidden width of the feed-forward over the token width, per branch.
        depth: blocks of the small branch, of the large branch, and of cross-attention.
        rates: stochastic depth of each of the longer branch's blocks.
        details: what all blocks share.
    """

    def __init__(
        self,
        dims: Sequence[int],
        heads: Sequence[int],
        mlp_ratio: Sequence[float],
        depth: Sequence[int],
        rates: Sequence[float],
        details: Details,
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            BranchBlocks(
                Block(dim, head, ratio, rate, None, details.qkv_bias, details.norm_eps)
                for rate in rates[:length]
            )
            for dim, head, ratio, length in zip(dims, heads, mlp_ratio, depth[:2], strict=True)
        )
        last = rates[-1] if rates else 0.0
        self.fusions = nn.ModuleList(
            Fusion(dims[i], dims[1 - i], heads[1 - i], depth[2], last, details) for i in range(2)
        )

    def forward(
        self,
        small: Float[Tensor, "batch tokens dim"],
        large: Float[Tensor, "batch fewer wider"],
        grids: Sequence[Grid | None] = (None, None),
    ) -> tuple[Float[Tensor, "batch tokens dim"], Float[Tensor, "batch fewer wider"]]:
        """Return the tokens of both branches; fusion changes only the class tokens, which come first.

        Args:
            small: tokens of the small branch.
            large: tokens of the large branch.
            grids: rows and columns of both.
        """
        small, large = self.branches[0](small, grids[0]), self.branches[1](large, grids[1])
        from_large = self.fusions[0](small[:, :1], large[:, 1:], grids[1])
        from_small = self.fusions[1](large[:, :1], small[:, 1:], grids[0])
        return torch.cat([from_large, small[:, 1:]], 1), torch.cat([from_small, large[:, 1:]], 1)


class Branch(nn.Module):
    """Where a branch begins: its image, cut into tokens with their positions.

    Args:
        bands: channels of the image.
        dim: token width.
        token_size: side of a token in pixels of the branch's image.
        size: rows and columns of the branch's image, to which others are resampled.
        conv_stem: three convolutions instead of one (dagger).
    """

    def __init__(
        self, bands: int, dim: int, token_size: int, size: tuple[int, int], conv_stem: bool
    ) -> None:
        super().__init__()
        self.size = size
        embed = _conv_stem if conv_stem else _patches
        self.patch_embed = embed(bands, dim, token_size)
        self.class_token = nn.Parameter(torch.empty(1, 1, dim))
        self.pos_embed = nn.Parameter(
            torch.empty(1, 1 + math.prod(side // token_size for side in size), dim)
        )
        nn.init.trunc_normal_(self.class_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Return the class token and the patches with their positions."""
        if x.shape[2:] != self.size:
            x = F.interpolate(x, self.size, mode="bicubic", align_corners=False)
        patches = rearrange(self.patch_embed(x), "b d h w -> b (h w) d")
        return torch.cat([self.class_token.expand(x.shape[0], -1, -1), patches], 1) + self.pos_embed


class CrossViT(Backbone):
    """Dual-branch vision transformer (arXiv 2103.14899).

    Images of any size are resampled to the two sizes at which the branches work.

    Args:
        bands: channels of the input.
        num_classes: classes.
        image_size: side of the image in pixels, or its height and width.
        dims: widths of the small and the large branch (small and large are its tokens).
        depths: of each multi-scale block: blocks of the small branch, of the large one, and of cross-attention.
        heads: attention heads per branch.
        mlp_ratio: hidden width of the feed-forward over the token width, per branch.
        token_sizes: sides of the branches' tokens; 12 and 16, or on small images what leaves 7 x 7 large tokens.
        branch_sizes: sides of the branches' images, or their rows and columns; where not given, what holds whole large tokens, and twice as
            many small ones.
        conv_stem: embed patches by three convolutions (dagger) instead of one.
        qkv_bias: give queries, keys and values a bias.
        cross_scale: factor of the scores in cross-attention; head width^-0.5 where not given (the authors' first
            weights were trained with another).
        lone_class_token: repeat cross-attention without the patches, as the authors' code does.
        norm_eps: of the normalisations.
        drop_path: stochastic depth of the last block, growing linearly from 0.
        pool: ``class`` tokens or the ``mean`` of each branch's patches.

    Raises:
        ModelError: not two branches, heads that do not divide the width, an image smaller than a token, or a token
            for which there is no convolutional stem.
    """

    any_size = True
    band_parameters = ("branches.0.patch_embed.0.weight", "branches.1.patch_embed.0.weight")
    undecayed = ("pos_embed", "class_token")

    def __init__(
        self,
        bands: int,
        num_classes: int,
        image_size: ImageSize = 224,
        *,
        dims: Sizes = (192, 384),
        depths: StageDepths = ((1, 5, 1),) * 3,
        heads: Sizes = (6, 6),
        mlp_ratio: Positives = (3, 3),
        token_sizes: Sizes | None = None,
        branch_sizes: Sequence[Size | Sizes] | None = None,
        conv_stem: bool = False,
        qkv_bias: bool = True,
        cross_scale: Positive | None = None,
        lone_class_token: bool = False,
        norm_eps: Positive = 1e-6,
        drop_path: Share = 0.0,
        pool: str = "class",
    ) -> None:
        super().__init__(bands, num_classes, image_size)
        check_pool("crossvit", pool, ("class", "mean"))
        self.pool = pool
        tokens = tuple(token_sizes or default_token_sizes(image_size))
        _check_blocks(dims, heads, mlp_ratio, depths)
        sizes = _checked_sizes(self.size, tokens, branch_sizes, conv_stem)
        self.dims, self.num_features = tuple(dims), sum(dims)
        self.grids = [
            (size[0] // token, size[1] // token) for size, token in zip(sizes, tokens, strict=True)
        ]
        self.feature_info = [
            FeatureInfo(dim, _stride(self.size, grid))
            for dim, grid in zip(dims, self.grids, strict=True)
        ]
        self.branches = nn.ModuleList(
            Branch(bands, dim, token, size, conv_stem)
            for dim, token, size in zip(dims, tokens, sizes, strict=True)
        )
        lengths = [max(depth[:2]) for depth in depths]
        rates = linear_rates(drop_path, sum(lengths))
        starts = [sum(lengths[:number]) for number in range(len(lengths))]
        details = Details(qkv_bias, cross_scale, lone_class_token, norm_eps)
        self.blocks = nn.ModuleList(
            MultiScaleBlock(dims, heads, mlp_ratio, depth, rates[start : start + length], details)
            for depth, start, length in zip(depths, starts, lengths, strict=True)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(dim, eps=norm_eps) for dim in dims)
        init_linear(self)
        self.head = self.make_head(num_classes)

    def new_head(self, num_classes: int) -> nn.ModuleList:
        """Return one linear classifier per branch."""
        heads = nn.ModuleList(nn.Linear(dim, num_classes) for dim in self.dims)
        init_linear(heads)
        return heads

    def forward_features(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> tuple[Float[Tensor, "batch tokens dim"], Float[Tensor, "batch fewer wider"]]:
        """Return the normalised tokens of the small and of the large branch, class tokens first."""
        small, large = (branch(x) for branch in self.branches)
        for block in self.blocks:
            small, large = self.run(block, small, large, self.grids)
        return self.norms[0](small), self.norms[1](large)

    def forward_head(
        self, features: tuple[Float[Tensor, "batch tokens dim"], Float[Tensor, "batch fewer wider"]]
    ) -> Float[Tensor, "batch classes"]:
        """Return the mean of the two classifiers' scores; without classes, both pooled branches side by side."""
        small, large = (
            tokens[:, 0] if self.pool == "class" else tokens[:, 1:].mean(1) for tokens in features
        )
        if not isinstance(self.head, nn.ModuleList):
            return self.head(torch.cat([small, large], 1))
        return (self.head[0](small) + self.head[1](large)) / 2

    def level_maps(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> list[Float[Tensor, "batch channels h w"]]:
        """Return the patches' maps of the small and of the large branch.

        A branch's grid covers the whole image, whatever its shape: here it is resampled to cells of the stride
        that is declared, so that each lies where it says.
        """
        size = (int(x.shape[2]), int(x.shape[3]))
        return [
            to_cells(rearrange(tokens[:, 1:], "b (h w) d -> b d h w", h=grid[0]), size, info.stride)
            for tokens, grid, info in zip(
                self.forward_features(x), self.grids, self.feature_info, strict=True
            )
        ]


def to_cells(
    x: Float[Tensor, "batch dim h w"], size: tuple[int, int], stride: int
) -> Float[Tensor, "batch dim h2 w2"]:
    """Resample a map that covers an image of ``size`` pixels to cells of ``stride`` pixels; the last may be incomplete."""
    if (x.shape[2] * stride, x.shape[3] * stride) == size:
        return x
    rows, columns = (
        _interpolation(cells, side, stride).to(x)
        for cells, side in zip(x.shape[2:], size, strict=True)
    )
    return rows @ x @ columns.mT


def _interpolation(cells: int, side: int, stride: int) -> Float[Tensor, "wanted cells"]:
    """Return linear interpolation at the centres of cells of ``stride`` pixels, from ``cells`` that fill ``side``."""
    wanted = -(-side // stride)
    place = (torch.arange(wanted) + 0.5) * (stride * cells / side) - 0.5
    place = place.clamp(0, cells - 1)
    return (1 - (place[:, None] - torch.arange(cells)).abs()).clamp(min=0)


def _stride(size: tuple[int, int], grid: tuple[int, int]) -> int:
    """Return the stride in pixels that a grid over an image is declared to have: that of its closer cells."""
    return max(1, min(side // cells for side, cells in zip(size, grid, strict=True)))


def default_token_sizes(image_size: ImageSize) -> tuple[int, int]:
    """Return the sides of small and large tokens: 12 and 16, less on images with fewer than 7 x 7 of them."""
    large = stem_stride(image_size, 16, cells=7)
    return -(-3 * large // 4), large


def default_branch_sizes(
    image_size: ImageSize, token_sizes: Sequence[int]
) -> tuple[ImageSize, ImageSize]:
    """Return the sizes of the branches' images: whole large tokens, and sqrt(2) as many small ones per side."""
    small, large = token_sizes
    rows, columns = whole_cells(as_size(image_size), large)
    finer = (small * round(2**0.5 * rows), small * round(2**0.5 * columns))
    return plain_size(finer), plain_size((large * rows, large * columns))


def _project(dim: int, out: int, eps: float) -> nn.Sequential:
    """Normalise before a class token changes its branch."""
    return nn.Sequential(nn.LayerNorm(dim, eps=eps), nn.GELU(), nn.Linear(dim, out))


def _patches(bands: int, dim: int, token_size: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(bands, dim, token_size, stride=token_size))


def _conv_stem(bands: int, dim: int, token_size: int) -> nn.Sequential:
    first, second, third = STEM_STRIDES[token_size]
    return nn.Sequential(
        nn.Conv2d(bands, dim // 4, 7, stride=first, padding=3),
        nn.ReLU(),
        # A stride as wide as the kernel tiles the map, so nothing is padded.
        nn.Conv2d(dim // 4, dim // 2, 3, stride=second, padding=0 if second == 3 else 1),
        nn.ReLU(),
        nn.Conv2d(dim // 2, dim, 3, stride=third, padding=1),
    )


def _check_blocks(
    dims: Sequence[int],
    heads: Sequence[int],
    mlp_ratio: Sequence[float],
    depths: Sequence[Sequence[int]],
) -> None:
    if any(len(given) != 2 for given in (dims, heads, mlp_ratio)):
        raise ModelError(
            "crossvit has two branches.", "Give two values each for dims, heads and mlp_ratio."
        )
    if any(len(depth) != 3 or min(depth[:2]) < 0 or depth[2] < 1 for depth in depths):
        raise ModelError(
            f"crossvit cannot be built with depths {depths}.",
            "Give three numbers per multi-scale block: small, large, and at least one of cross-attention.",
        )
    for dim, count in zip(dims, heads, strict=True):
        if dim % count:
            raise ModelError(
                f"crossvit has width {dim}, not divisible by {count} heads.", "Change either."
            )


def _checked_sizes(
    image_size: tuple[int, int],
    tokens: Sequence[int],
    given: Sequence[int | Sequence[int]] | None,
    conv_stem: bool,
) -> list[tuple[int, int]]:
    """Return rows and columns of the branches' images, once they are known to fit the tokens."""
    if len(tokens) != 2 or (given is not None and len(given) != 2):
        raise ModelError(
            "crossvit has two branches.", "Give two values each for token_sizes and branch_sizes."
        )
    sizes = [pair(size) for size in given or default_branch_sizes(image_size, tokens)]
    for token, size in zip(tokens, sizes, strict=True):
        if min(size) < token:
            raise ModelError(
                f"crossvit cuts tokens of {token} pixels; an image of {in_words(image_size)} has none.",
                "Give smaller token_sizes.",
            )
        if conv_stem and (token not in STEM_STRIDES or any(side % token for side in size)):
            raise ModelError(
                f"crossvit has no convolutional stem for tokens of {token} on {size[0]} x {size[1]} pixels.",
                f"Choose tokens of {sorted(STEM_STRIDES)} that divide branch_sizes, or conv_stem=False.",
            )
    return sizes


build = CrossViT

LAYOUTS = {
    "timm's CrossViT": (r"^pos_embed_0$", r"^blocks\.0\.fusion\.0\."),
    "the authors' CrossViT": (r"^pos_embed\.0$", r"^blocks\.0\.fusion\.0\."),
}
_NAMES = (
    (r"^patch_embed\.(\d)\.proj\.(weight|bias)$", r"branches.\1.patch_embed.0.\2"),
    (r"^patch_embed\.(\d)\.proj\.", r"branches.\1.patch_embed."),
    (r"^pos_embed[._](\d)$", r"branches.\1.pos_embed"),
    (r"^cls_token[._](\d)$", r"branches.\1.class_token"),
    (r"^norm\.(\d)\.", r"norms.\1."),
    (r"^(blocks\.\d+)\.blocks\.", r"\1.branches."),
    (r"\.projs\.(\d)\.", r".fusions.\1.proj."),
    (r"\.revert_projs\.(\d)\.", r".fusions.\1.back."),
    (r"\.fusion\.(\d)\.(norm1|attn)\.", r".fusions.\1.blocks.0.\2."),
    (r"\.fusion\.(\d)\.(\d+)\.", r".fusions.\1.blocks.\2."),
    (r"(fusions\.\d\.blocks\.\d+\.)norm1\.", r"\1norm."),
    (r"(fusions\.\d\.blocks\.\d+\.)attn\.proj\.", r"\1proj."),
    (r"(fusions\.\d\.blocks\.\d+\.)attn\.wq\.", r"\1query."),
    (r"(fusions\.\d\.blocks\.\d+\.)attn\.wkv\.", r"\1key_value."),
)


def rename(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give weights in the authors' layout or in timm's our names; their keys and values become one layer."""
    joined = join(state_dict, (".attn.wk.", ".attn.wv."), ".attn.wkv.")
    return rename_keys(joined, partial(substitute, _NAMES))


def read_settings(
    weights: Mapping[str, Tensor], image_size: ImageSize | None = None
) -> dict[str, Any]:
    """Return what weights under our names say about options that a variant leaves open."""
    return {
        "conv_stem": "branches.0.patch_embed.2.weight" in weights,
        "qkv_bias": "blocks.0.fusions.0.blocks.0.query.bias" in weights,
    }


def resize(
    state_dict: Mapping[str, Tensor], model: CrossViT, source: CrossViT | None = None
) -> dict[str, Tensor]:
    """Resample the branches' positions to the grids of ``model``."""
    resized = dict(state_dict)
    for number, grid in enumerate(model.grids):
        name = f"branches.{number}.pos_embed"
        if name in resized:
            old = None if source is None else source.grids[number]
            resized[name] = resize_positions(resized[name], grid, 1, old)
    return resized


# Values of timm's arguments that change nothing, or that ours has.
_OFFERED: dict[str, tuple[Any, ...]] = {"global_pool": ("token", "avg"), "crop_scale": (False,)}


def from_reference(state_dict: Mapping[str, Tensor], kwargs: Mapping[str, Any]) -> CrossViT:
    """Build the model from the arguments of the authors' VisionTransformer or of timm's CrossVit and load their weights.

    The authors give the side of each branch's image, timm the image's size and each branch's share of it
    (``img_scale``). The defaults of biases and of the normalisations' eps differ, too.

    Raises:
        ModelError: an argument that we do not offer.
    """
    refuse_others("crossvit", kwargs, _OFFERED)
    timm = "pos_embed_0" in state_dict
    sizes = _timm_sizes(kwargs) if timm else _sizes(kwargs)
    model = CrossViT(
        bands=kwargs.get("in_chans", 3),
        num_classes=kwargs.get("num_classes", 1000),
        image_size=sizes[1],
        dims=kwargs.get("embed_dim", (192, 384)),
        depths=[[*d[:2], max(1, d[2])] for d in kwargs.get("depth", [[1, 3, 1]] * 3)],
        heads=kwargs.get("num_heads", (6, 12)),
        mlp_ratio=list(kwargs.get("mlp_ratio", (2, 2)))[:2],
        token_sizes=kwargs.get("patch_size", (8, 16)),
        branch_sizes=sizes,
        conv_stem=kwargs.get("multi_conv", False),
        qkv_bias=kwargs.get("qkv_bias", timm),
        cross_scale=kwargs.get("qk_scale"),
        lone_class_token=True,
        norm_eps=norm_eps(kwargs, 1e-6 if timm else 1e-5),
        drop_path=kwargs.get("drop_path_rate", 0.0),
        pool="mean" if kwargs.get("global_pool") == "avg" else "class",
    )
    model.load_state_dict(rename(state_dict))
    return model


def _sizes(kwargs: Mapping[str, Any]) -> list[tuple[int, int]]:
    size = kwargs.get("img_size", 224)
    return [pair(side) for side in ([size, size] if isinstance(size, int) else size)]


def _timm_sizes(kwargs: Mapping[str, Any]) -> list[tuple[int, int]]:
    rows, columns = pair(kwargs.get("img_size", 224))
    shares = kwargs.get("img_scale", (1.0, 1.0))
    shares = [shares] * 2 if isinstance(shares, int | float) else shares
    return [(int(rows * share), int(columns * share)) for share in shares]
