"""CrossFormer: tokens of several scales, and attention among neighbours and among tokens far apart in turn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.catalog.arguments import Depths, ImageSize, Positive, Positives, Share, Size, Sizes
from vitreous.catalog.card import Card
from vitreous.errors import ModelError
from vitreous.layers.backbone import FeatureInfo, init_linear, linear_rates, stem_stride
from vitreous.layers.cross_scale import CrossScaleEmbed, DynamicPositionBias
from vitreous.layers.reference import pair, refuse_eps, refuse_others
from vitreous.layers.window_blocks import WindowBlock, WindowStage
from vitreous.layers.window_trunk import (
    WindowPyramid,
    check_stages,
    divided,
    read_window_settings,
    rename_windows,
    resize_windows,
)
from vitreous.layers.windows import padding_bias, partition, reverse

CARD = Card(
    slug="crossformer",
    title="CrossFormer: A Versatile Vision Transformer Hinging on Cross-scale Attention",
    kind="model",
    summary="A pyramid whose tokens mix several patch sizes, and whose blocks attend to neighbours "
    "and to cells far apart in turn.",
    when="In place of Swin where distant parts of an image must meet early: its dilated groups span "
    "the whole map at the same cost.",
    paper="arXiv 2108.00154 (ICLR 2022)",
    year=2022,
    source_licence="MIT (cheerss/CrossFormer): re-implemented from the equations",
    tasks=["classify"],
    variants={
        "crossformer_tiny": {
            "dim": 64,
            "depths": [1, 1, 8, 6],
            "heads": [2, 4, 8, 16],
            "drop_path": 0.1,
        },
        "crossformer_small": {
            "dim": 96,
            "depths": [2, 2, 6, 2],
            "heads": [3, 6, 12, 24],
            "drop_path": 0.2,
        },
        "crossformer_base": {
            "dim": 96,
            "depths": [2, 2, 18, 2],
            "heads": [3, 6, 12, 24],
            "drop_path": 0.3,
        },
        "crossformer_large": {
            "dim": 128,
            "depths": [2, 2, 18, 2],
            "heads": [4, 8, 16, 32],
            "drop_path": 0.5,
        },
        "crossformer_test": {
            "dim": 16,
            "depths": [2, 2],
            "heads": [2, 4],
            "group": 3,
            "mlp_ratio": 2.0,
            "position_divisor": 2,
        },
    },
    published=[
        {"variant": "crossformer_tiny", "parameters_m": 27.777, "gmacs": 2.86, "top1": 81.5},
        {"variant": "crossformer_small", "parameters_m": 30.657, "gmacs": 4.91, "top1": 82.5},
        {"variant": "crossformer_base", "parameters_m": 51.972, "gmacs": 9.17, "top1": 83.4},
        {"variant": "crossformer_large", "parameters_m": 91.971, "gmacs": 16.12, "top1": 84.0},
    ],
    recipe={
        "optimizer": "adamw",
        "learning_rate": "5e-4 x batch size / 512",
        "batch_size": 1024,
        "weight_decay": 0.05,
        "epochs": 300,
        "warmup_epochs": 20,
        "schedule": "cosine to 5e-6",
        "clip": 5.0,
        "label_smoothing": 0.1,
        "mixup": 0.8,
        "cutmix": 1.0,
        "random_augment": "m9",
        "erasing": 0.25,
    },
    claim="Better than Swin of its size (82.5 % on ImageNet against 81.3 %); tokens of several scales "
    "and attention at long distance are worth about a point each.",
    miniature="Indian Pines, patches of 16 pixels (the paper's other data, Salinas, is not here): "
    "one kernel and neighbours alone, several kernels, and several kernels with distant groups. "
    "Required: no step loses accuracy; and where a label depends on two cells far apart, distant "
    "groups at least 5 points above neighbours alone.",
    notes=[
        "Image size: Patches are 4 pixels at 224; on smaller images they shrink so that 4 x 4 "
        "cells remain (token_size), and the kernels with them: 1, 2, 4 and 8 patches wide.",
        "Image size: Cells of a distant group lie as far apart as it takes for a group to span the "
        "map, whatever its size; at 224 these are the published intervals 8, 4, 2 and 1. Given "
        "intervals stay as they are. On oblong images this is decided along each axis.",
        "Image size: The authors take images whose maps divide evenly. Here maps are padded with "
        "zeros below and on the right, and padded cells are masked. Where a map of theirs is no "
        "longer than a group along one axis, it is cut into squares of that length, and none is "
        "dilated; from_reference does so.",
        "As in the reference: The network that scores offsets is dim / 16 wide in the authors' code "
        "and weights, dim / 4 in the paper (position_divisor).",
        "As in the reference: Layer norms stand behind the first embedding and before those between "
        "stages.",
        "Differs from the reference: Padded keys are masked with -inf, where the authors subtract a "
        "million; in groups of padding alone, whose results are cut off, nothing is masked.",
        "Not included: CrossFormer++ (progressive group sizes, amplitude cooling, the extra "
        "convolutions), which the authors' code also holds and from_reference refuses; dropout (0 in "
        "every published setting).",
    ],
)


class CrossFormerBlock(WindowBlock):
    """Attention in groups and feed-forward, each on a normalised residual branch.

    Args:
        dim: token width.
        heads: number of heads.
        group: rows and columns of a group.
        dilated: cells of a group are an interval apart; otherwise they are neighbours.
        interval: rows and columns from one cell to the next; where not given, a group spans the map.
        position_divisor: see :class:`CrossFormer`.
        mlp_ratio: hidden width of the feed-forward over the token width.
        drop_path: stochastic depth.
        qkv_bias: give the projections to query, key and value a bias.
        scale: factor of the scores; (dim / heads)^-0.5 where not given.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        group: tuple[int, int],
        dilated: bool,
        interval: tuple[int, int] | None,
        *,
        position_divisor: int,
        mlp_ratio: float,
        drop_path: float,
        qkv_bias: bool,
        scale: float | None,
    ) -> None:
        position = DynamicPositionBias(group, heads, max(1, dim // position_divisor))
        super().__init__(
            dim,
            heads,
            group,
            False,
            mlp_ratio,
            drop_path,
            qkv_bias=qkv_bias,
            scale=scale,
            position=position,
        )
        self.interval = interval
        self.kind = self.dilated = dilated

    def cut(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the sides of a group on a map, and how far apart its cells are, down and across."""
        rows, columns = min(self.window[0], height), min(self.window[1], width)
        if not self.dilated:
            return (rows, columns), (1, 1)
        spanning = (-(-height // rows), -(-width // columns))
        return (rows, columns), self.interval or spanning

    def mask_of(
        self, x: Float[Tensor, "batch height width dim"]
    ) -> Float[Tensor, "groups 1 1 tokens"] | None:
        """Return what hides padded cells as keys, or None where there are none."""
        height, width = x.shape[1:3]
        group, interval = self.cut(height, width)
        if height % (group[0] * interval[0]) == 0 and width % (group[1] * interval[1]) == 0:
            return None
        return padding_bias(height, width, group, x, interval)

    def attend(
        self,
        x: Float[Tensor, "batch height width dim"],
        mask: Float[Tensor, "groups 1 #tokens tokens"] | None,
    ) -> Float[Tensor, "batch height width dim"]:
        """Attend within the groups of a normalised map."""
        height, width = x.shape[1:3]
        group, interval = self.cut(height, width)
        mixed = self.attn(partition(x, group, interval=interval), group, mask)
        return reverse(mixed, group, height, width, interval=interval)


class CrossScaleMerge(nn.Module):
    """Normalise a map, and halve it by kernels of several sizes.

    Args:
        dim: token width; twice as wide after it.
        kernels: their sides.
    """

    def __init__(self, dim: int, kernels: Sequence[int]) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.embed = CrossScaleEmbed(dim, 2 * dim, kernels, 2)

    def forward(
        self, x: Float[Tensor, "batch height width dim"]
    ) -> Float[Tensor, "batch half_height half_width twice_dim"]:
        """Halve the sides, rounded up."""
        return self.embed(self.norm(x).permute(0, 3, 1, 2))


class CrossFormer(WindowPyramid):
    """CrossFormer (arXiv 2108.00154).

    Args:
        bands: channels of the input.
        num_classes: classes; with 0 the pooled features are returned.
        image_size: side of the image in pixels, or height and width: decides ``token_size``, and how large groups are
            that the network of positions is prepared for.
        dim: token width of the first stage; each further stage doubles it.
        depths: blocks of each stage, those with an odd number (from 0) dilated.
        heads: attention heads of each stage.
        group: side of a group in tokens, or for each stage one of its own; a map that is shorter along an axis is not cut
            along it.
        intervals: rows and columns from one cell of a dilated group to the next, one number per stage; where not given,
            what lets a group span the map.
        dilated: use dilated groups at all (the paper's ablation leaves them out).
        token_size: side of a token of the first stage in pixels; 4, or on small images what leaves 4 x 4 tokens in
            the last stage.
        kernels: sides of the first embedding's kernels in pixels; 1, 2, 4 and 8 tokens where not given.
        merge_kernels: of the embeddings between stages in cells, the same for all, or for each its own.
        position_divisor: the token width over that of the network that scores offsets; 16 in the authors' code, 4 in
            the paper.
        mlp_ratio: hidden width of the feed-forward over the token width, or for each stage its own.
        drop_path: stochastic depth of the last block, growing linearly from 0.
        absolute_positions: add learned positions to the tokens of the first stage.
        qkv_bias: give the projections to query, key and value a bias.
        scale: factor of the attention scores; (width of a head)^-0.5 where not given.
        stem_norm: normalise the tokens of the first stage.
        partial_tokens: what is left of an image below and on the right makes tokens too, padded with zeros; False
            leaves it out, as the authors do.

    Raises:
        ModelError: lists of unequal lengths, heads that do not divide a width, kernels smaller than their stride, or more
            kernels than a width can be divided among.
    """

    undecayed = ("pos_embed",)

    def __init__(
        self,
        bands: int,
        num_classes: int,
        image_size: ImageSize = 224,
        *,
        dim: Size = 96,
        depths: Depths = (2, 2, 6, 2),
        heads: Sizes = (3, 6, 12, 24),
        group: Size | Sizes = 7,
        intervals: Sizes | None = None,
        dilated: bool = True,
        token_size: Size | None = None,
        kernels: Sizes | None = None,
        merge_kernels: Sequence[Size | Sizes] = (2, 4),
        position_divisor: Size = 16,
        mlp_ratio: Positive | Positives = 4.0,
        drop_path: Share = 0.0,
        absolute_positions: bool = False,
        qkv_bias: bool = True,
        scale: Positive | None = None,
        stem_norm: bool = True,
        partial_tokens: bool = True,
    ) -> None:
        super().__init__(bands, num_classes, image_size)
        stages = len(depths)
        self.token_size = token_size or stem_stride(image_size, 4, later=2 ** (stages - 1))
        sides = tuple(kernels or (self.token_size * 2**k for k in range(4)))
        groups = _per_stage(group, stages, "group")
        ratios = _per_stage(mlp_ratio, stages, "mlp_ratio")
        steps = [None] * stages if intervals is None else _per_stage(intervals, stages, "intervals")
        merges = _merges(merge_kernels, stages)
        check_stages("crossformer", dim, depths, heads)
        _check_kernels(sides, self.token_size, dim)
        dims = [dim * 2**stage for stage in range(stages)]
        for sides_between, width in zip(merges, dims[1:], strict=True):
            _check_kernels(sides_between, 2, width)
        self.num_features, self.pool = dims[-1], "mean"
        self.feature_info = [
            FeatureInfo(width, self.token_size * 2**stage) for stage, width in enumerate(dims)
        ]
        self.least_size = 1 if partial_tokens else self.token_size
        self.check_size(*self.size)
        rest = self.token_size - 1 if partial_tokens else 0
        self.grid = divided(self.size, self.token_size, rest)
        self.patch_embed = CrossScaleEmbed(bands, dim, sides, self.token_size, partial_tokens)
        self.band_parameters = tuple(
            f"patch_embed.projs.{number}.weight" for number in range(len(sides))
        )
        self.patch_norm = nn.LayerNorm(dim) if stem_norm else nn.Identity()
        self.pos_embed = (
            nn.Parameter(torch.zeros(1, math.prod(self.grid), dim)) if absolute_positions else None
        )
        rates = iter(linear_rates(drop_path, sum(depths)))
        self.stages = nn.ModuleList()
        for stage, (width, depth) in enumerate(zip(dims, depths, strict=True)):
            rows, columns = divided(self.grid, 2**stage, 2**stage - 1)
            step = steps[stage]
            blocks = [
                CrossFormerBlock(
                    width,
                    heads[stage],
                    (min(groups[stage], rows), min(groups[stage], columns)),
                    dilated and number % 2 == 1,
                    None if step is None else (step, step),
                    position_divisor=position_divisor,
                    mlp_ratio=ratios[stage],
                    drop_path=next(rates),
                    qkv_bias=qkv_bias,
                    scale=scale,
                )
                for number in range(depth)
            ]
            merge = CrossScaleMerge(width // 2, merges[stage - 1]) if stage else nn.Identity()
            self.stages.append(WindowStage(merge, blocks))
        self.norm = nn.LayerNorm(self.num_features)
        self.head = self.make_head(num_classes)
        init_linear(self)
        if self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def embed(self, x: Float[Tensor, "batch bands height width"]) -> Float[Tensor, "batch h w dim"]:
        """Return the tokens of the first stage."""
        return self.place(self.patch_norm(self.patch_embed(x)))


def _per_stage(given: Any, stages: int, what: str) -> list[Any]:
    """Return a setting of each stage, of one for all or one for each.

    Raises:
        ModelError: not as many as stages.
    """
    values = list(given) if isinstance(given, list | tuple) else [given] * stages
    if len(values) != stages:
        raise ModelError(
            f"crossformer has {len(values)} values of {what} for {stages} stages.",
            "Give one value for all stages, or one per stage.",
        )
    return values


def _merges(given: Sequence[Any], stages: int) -> Sequence[Sequence[int]]:
    """Return the kernels between each two stages, of those for all or those for each."""
    if all(isinstance(side, int) for side in given):
        return [tuple(given)] * (stages - 1)
    between = [(kernels,) if isinstance(kernels, int) else tuple(kernels) for kernels in given]
    if len(between) < stages - 1:
        raise ModelError(
            f"crossformer has merge_kernels {given!r:.80} for {stages} stages.",
            "Give the same kernels for all, or a list of kernels for each stage but the first.",
        )
    return between[: stages - 1]


def _check_kernels(kernels: Sequence[int], stride: int, width: int) -> None:
    if not kernels or min(kernels) < stride:
        raise ModelError(
            f"crossformer has kernels of {', '.join(map(str, kernels)) or 'no'} cells at a stride of {stride}.",
            "Give kernels no smaller than the stride.",
        )
    if width % 2 ** (len(kernels) - 1):
        raise ModelError(
            f"crossformer cannot divide {width} channels among {len(kernels)} kernels, halving them each time.",
            "Give fewer kernels, or a width that is a larger power of two's multiple.",
        )


build = CrossFormer


LAYOUTS = {
    "the authors' CrossFormer": (
        r"^patch_embed\.projs\.0\.weight$",
        r"^layers\.0\.blocks\.\d+\.attn\.pos\.pos_proj\.weight$",
    ),
}
_NAMES = (
    (r"\.attn\.pos\.pos_proj\.", ".attn.position.embed."),
    (
        r"\.attn\.pos\.pos(\d)\.(\d)\.",
        lambda found: f".attn.position.layers.{int(found[1]) - 1}.{found[2]}.",
    ),
    (r"\.downsample\.reductions\.", ".downsample.embed.projs."),
)
_OFFSETS = ".attn.biases"  # the numbers that the network of positions reads


def rename(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give weights of the authors our names; what follows from the size (indices, offsets) is left out."""
    learned = {key: value for key, value in state_dict.items() if not key.endswith(_OFFSETS)}
    return rename_windows(learned, _NAMES)


read_settings, resize = read_window_settings, resize_windows


# Values of the reference's arguments that belong to CrossFormer++, and change nothing where they are these.
_OFFERED: dict[str, tuple[Any, ...]] = {
    "use_acl": (False,),
    "use_cpe": (False,),
    "use_extra_conv": (False,),
    "group_type": ("constant",),
    "pad_type": (0,),
}


def from_reference(state_dict: Mapping[str, Tensor], kwargs: Mapping[str, Any]) -> CrossFormer:
    """Build the model from the arguments of the authors' CrossFormer and load its weights.

    Raises:
        ModelError: an argument that we do not offer.
    """
    refuse_others("crossformer", kwargs, _OFFERED)
    refuse_eps("crossformer", kwargs, 1e-5)
    depths = kwargs.get("depths", (2, 2, 6, 2))
    image, kernels = pair(kwargs.get("img_size", 224)), list(kwargs.get("patch_size", [4]))
    grid = divided(image, kernels[0], 0)
    groups = _per_stage(kwargs.get("group_size", 7), len(depths), "group_size")
    steps = _per_stage(kwargs.get("crs_interval", (8, 4, 2, 1)), len(depths), "crs_interval")
    cut = [
        _authors_groups(group, step, divided(grid, 2**stage, 0))
        for stage, (group, step) in enumerate(zip(groups, steps, strict=True))
    ]
    model = CrossFormer(
        bands=kwargs.get("in_chans", 3),
        num_classes=kwargs.get("num_classes", 1000),
        image_size=image,
        token_size=kernels[0],
        kernels=kernels,
        merge_kernels=kwargs.get("merge_size", [[2], [2], [2]]),
        dim=kwargs.get("embed_dim", 96),
        depths=depths,
        heads=kwargs.get("num_heads", (3, 6, 12, 24)),
        group=[group for group, _ in cut],
        intervals=[step for _, step in cut],
        mlp_ratio=kwargs.get("mlp_ratio", 4.0),
        drop_path=kwargs.get("drop_path_rate", 0.1),
        absolute_positions=kwargs.get("ape", False),
        qkv_bias=kwargs.get("qkv_bias", True),
        scale=kwargs.get("qk_scale") or None,
        stem_norm=kwargs.get("patch_norm", True),
        partial_tokens=False,
    )
    model.load_state_dict(rename(state_dict))
    return model


def _authors_groups(group: int, step: int, cells: tuple[int, int]) -> tuple[int, int]:
    """Return the side of a stage's groups and their interval: a map no longer than a group is cut into neighbours."""
    shorter = min(cells)
    return (shorter, 1) if shorter <= group else (group, step)
