"""SpectFormer: the first blocks mix tokens with a learned Fourier filter, the others with attention."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.catalog.arguments import (
    Count,
    Depths,
    ImageSize,
    Positive,
    Positives,
    Share,
    Size,
    Sizes,
)
from vitreous.catalog.card import Card
from vitreous.errors import ModelError
from vitreous.layers.adapter import AdapterSeam
from vitreous.layers.attention import AttentionCore
from vitreous.layers.backbone import Backbone, FeatureInfo, init_linear, linear_rates, stem_stride
from vitreous.layers.convmix import ConvMlp, Reduce
from vitreous.layers.drop import DropPath
from vitreous.layers.mlp import Mlp
from vitreous.layers.positions import resize_positions
from vitreous.layers.reference import join, pair, rename_keys, substitute
from vitreous.layers.sizes import whole_cells
from vitreous.layers.transformer import Attention, Grid
from vitreous.layers.transforms import SpectralGate, resize_gates

CARD = Card(
    slug="spectformer",
    title="SpectFormer: Frequency and Attention is what you need in a Vision Transformer",
    kind="model",
    summary="A ViT whose first blocks filter the token map in the Fourier domain and whose later "
    "blocks use attention.",
    when="In place of a plain ViT where cost matters: fewer multiply-adds, and no difference in "
    "accuracy was measured on held-out blocks.",
    paper="arXiv 2304.06446 (WACV 2025)",
    year=2025,
    source_licence="none (badripatro/SpectFormers has no licence file): re-implemented from the equations",
    tasks=["classify"],
    variants={
        "spectformer_tiny": {"dims": [256], "depths": [12], "heads": [4], "mlp_ratios": [4.0]},
        "spectformer_xsmall": {"dims": [384], "depths": [12], "heads": [6], "mlp_ratios": [4.0]},
        "spectformer_small": {
            "dims": [384],
            "depths": [19],
            "heads": [6],
            "mlp_ratios": [4.0],
            "drop_path": 0.15,
        },
        "spectformer_base": {
            "dims": [512],
            "depths": [19],
            "heads": [8],
            "mlp_ratios": [4.0],
            "drop_path": 0.25,
        },
        "spectformer_h_small": {
            "dims": [64, 128, 320, 448],
            "depths": [3, 4, 6, 3],
            "heads": [2, 4, 10, 14],
            "mlp_ratios": [8.0, 8.0, 4.0, 4.0],
            "alpha": 7,
            "stem_dim": 32,
            "token_labels": True,
        },
        "spectformer_h_base": {
            "dims": [64, 128, 320, 512],
            "depths": [3, 4, 12, 3],
            "heads": [2, 4, 10, 16],
            "mlp_ratios": [8.0, 8.0, 4.0, 4.0],
            "alpha": 7,
            "stem_dim": 64,
            "token_labels": True,
        },
        "spectformer_h_large": {
            "dims": [96, 192, 384, 512],
            "depths": [3, 6, 18, 3],
            "heads": [3, 6, 12, 16],
            "mlp_ratios": [8.0, 8.0, 4.0, 4.0],
            "alpha": 9,
            "stem_dim": 64,
            "token_labels": True,
        },
        "spectformer_test": {
            "dims": [16],
            "depths": [3],
            "heads": [2],
            "mlp_ratios": [2.0],
            "alpha": 1,
            "token_size": 3,
        },
        "spectformer_h_test": {
            "dims": [8, 8, 12, 16],
            "depths": [1, 1, 1, 1],
            "heads": [2, 2, 2, 2],
            "mlp_ratios": [2.0, 2.0, 2.0, 2.0],
            "alpha": 2,
            "stem_dim": 8,
            "token_labels": True,
        },
    },
    published=[
        {
            "variant": "spectformer_tiny",
            "parameters_m": 9.16,
            "gmacs": 1.84,
            "readme_gmacs": 1.8,
            "top1": 76.9,
        },
        {
            "variant": "spectformer_xsmall",
            "parameters_m": 20.03,
            "gmacs": 3.99,
            "readme_gmacs": 4.0,
            "top1": 80.2,
        },
        {
            "variant": "spectformer_small",
            "parameters_m": 32.45,
            "gmacs": 6.63,
            "readme_gmacs": 6.6,
            "top1": 81.7,
        },
        {
            "variant": "spectformer_base",
            "parameters_m": 57.16,
            "gmacs": 11.56,
            "readme_gmacs": 11.5,
            "top1": 82.1,
        },
        {
            "variant": "spectformer_h_small",
            "parameters_m": 22.23,
            "gmacs": 4.07,
            "readme_gmacs": 3.9,
            "top1": 84.3,
        },
        {
            "variant": "spectformer_h_base",
            "parameters_m": 33.05,
            "gmacs": 6.61,
            "readme_gmacs": 6.3,
            "top1": 85.0,
        },
        {
            "variant": "spectformer_h_large",
            "parameters_m": 54.68,
            "gmacs": 13.2,
            "readme_gmacs": 12.7,
            "top1": 85.7,
        },
    ],
    recipe={
        "optimizer": "AdamW",
        "learning_rate": "5e-4 x batch size / 512",
        "batch_size": 1024,
        "weight_decay": 0.05,
        "epochs": 300,
        "warmup_epochs": 5,
        "schedule": "cosine to 1e-5",
        "clip": 1.0,
        "augmentation": "RandAugment m9, mixup 0.8, cutmix 1, label smoothing 0.1; H: token labels instead, 310 epochs",
    },
    claim="Spectral blocks followed by attention outperform all-spectral, all-attention and the "
    "reverse order (H-S 84.3 % ImageNet top-1, about 2 points above GFNet-H and LIT of equal "
    "size).",
    miniature="Indian Pines, networks of similar size. Required: 2 spectral blocks of 6 at most "
    "0.5 points below the better of none and all, at fewer multiply-adds than none.",
    notes=[
        "Usage: alpha counts the spectral blocks over all stages; in the H family they fill the "
        "first two stages.",
        "Usage: With token labels, scores are those of the class token plus half the maximum "
        "over patches, also in training. The authors train both heads on per-patch labels and "
        "mix tokens, which belongs to a training recipe.",
        "Image size: On small images patches shrink so that 7 x 7 remain (single-resolution "
        "family), or the stem's stride of 4 does so that the last map keeps 4 x 4 cells (H "
        "family). Maps of H are rounded up; incomplete patches are dropped.",
        "Image size: A filter belongs to a grid. For another grid its spatial kernel, irfft2 of "
        "the filter, is zero-padded or cropped around its origin, so that it keeps its shape in "
        "cells. The authors' code accepts one size; GFNet interpolates.",
        "Differs from the reference: The authors fix 6 heads, which do not divide the widths of "
        "tiny and base; ours have 4 and 8, so that heads are 64 channels wide throughout.",
        "As in the reference: Spectral blocks of the single-resolution family have one residual "
        "around filter and feed-forward together, those of the H family have two.",
        "Published figures: Their README gives 22 M parameters for XS; their code has 20.03 M. "
        "Their multiply-adds (readme_gmacs) of the H family leave out the attention products, "
        "those of the other family do not; ours always count them. Fourier transforms are never "
        "counted.",
    ],
)


class MapAttention(Attention):
    """Multi-head self-attention among all cells of a map."""

    def forward(
        self,
        x: Float[Tensor, "batch h w dim"],
        turn: Tensor | None = None,
        grid: Grid | None = None,
    ) -> Float[Tensor, "batch h w dim"]:
        """Attend."""
        size = (x.shape[1], x.shape[2])
        return super().forward(x.flatten(1, 2), turn, size).unflatten(1, size)


class Block(nn.Module):
    """Mixer and feed-forward, each on a normalised residual branch.

    Args:
        dim: channels.
        mixer: among the cells.
        mlp: in each cell.
        drop_path: stochastic depth.
        eps: of the norms.
    """

    def __init__(
        self, dim: int, mixer: nn.Module, mlp: nn.Module, drop_path: float, eps: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps)
        self.mixer = mixer
        self.norm2 = nn.LayerNorm(dim, eps)
        self.mlp = mlp
        self.adapter = AdapterSeam(dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "batch h w dim"]) -> Float[Tensor, "batch h w dim"]:
        """Apply both branches."""
        x = x + self.drop_path(self.mixer(self.norm1(x)))
        return x + self.adapter(x, self.drop_path(self.mlp(self.norm2(x))))


class OneBranchBlock(Block):
    """Mixer and feed-forward, one after the other on a single residual branch, as in GFNet."""

    def forward(self, x: Float[Tensor, "batch h w dim"]) -> Float[Tensor, "batch h w dim"]:
        """Apply the branch."""
        mixed = self.mixer(self.norm1(x))
        return x + self.adapter(mixed, self.drop_path(self.mlp(self.norm2(mixed))))


class PatchEmbed(nn.Module):
    """Non-overlapping patches with learned positions.

    Args:
        bands: channels of the image.
        dim: channels of the map.
        side: of a patch in pixels.
        grid: rows and columns of the map.
    """

    def __init__(self, bands: int, dim: int, side: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.pixels = nn.Conv2d(bands, dim, side, side)
        self.grid = grid
        self.positions = nn.Parameter(torch.zeros(1, math.prod(grid), dim))
        nn.init.trunc_normal_(self.positions, std=0.02)

    def forward(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> Float[Tensor, "batch h w dim"]:
        """Return the map."""
        patches = self.pixels(x).permute(0, 2, 3, 1)
        size = (patches.shape[1], patches.shape[2])
        places = resize_positions(self.positions, size, grid=self.grid)
        return patches + places.unflatten(1, size)


class Stem(nn.Module):
    """Four convolutions, of which the first and the last take strides.

    Args:
        bands: channels of the image.
        hidden: channels between.
        dim: channels of the map.
        stride: 4, or 2 or 1 for small images.
    """

    def __init__(self, bands: int, hidden: int, dim: int, stride: int) -> None:
        super().__init__()
        self.pixels = nn.Conv2d(bands, hidden, 7, min(stride, 2), padding=3, bias=False)
        self.hidden = nn.Sequential(nn.BatchNorm2d(hidden), nn.ReLU(inplace=True))
        for _ in range(2):
            self.hidden.append(nn.Conv2d(hidden, hidden, 3, padding=1, bias=False))
            self.hidden.extend([nn.BatchNorm2d(hidden), nn.ReLU(inplace=True)])
        self.reduce = Reduce(hidden, dim, max(stride // 2, 1))

    def forward(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> Float[Tensor, "batch h w dim"]:
        """Return the map."""
        return self.reduce(self.hidden(self.pixels(x)).permute(0, 2, 3, 1))


class ClassBlock(nn.Module):
    """The class token, first the mean of all cells, attends to itself and the cells (Touvron et al., CaiT, 2021).

    Args:
        dim: token width.
        heads: number of heads.
        mlp_ratio: hidden width of the feed-forward over the token width.
        eps: of the norms.
    """

    def __init__(self, dim: int, heads: int, mlp_ratio: float, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim, eps)
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.core = AttentionCore()
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim, eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.adapter = AdapterSeam(dim)

    def attend(
        self, tokens: Float[Tensor, "batch tokens dim"], grid: Grid | None = None
    ) -> Float[Tensor, "batch 1 dim"]:
        """Return what the first token gathers; ``grid`` are rows and columns of the others."""
        query = rearrange(self.q(tokens[:, :1]), "b n (g d) -> b g n d", g=self.heads)
        key, value = rearrange(
            self.kv(tokens), "b n (c g d) -> c b g n d", c=2, g=self.heads
        ).unbind(0)
        mixed = self.core(query, key, value, grid=grid)
        return self.proj(rearrange(mixed, "b g n d -> b n (g d)"))

    def forward(self, x: Float[Tensor, "batch h w dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Return the class token followed by the unchanged cells."""
        grid, cells = (x.shape[1], x.shape[2]), x.flatten(1, 2)
        token = cells.mean(1, keepdim=True)
        token = token + self.attend(self.norm1(torch.cat([token, cells], 1)), grid)
        token = token + self.adapter(token, self.mlp(self.norm2(token)))
        return torch.cat([token, cells], 1)


class SpectFormer(Backbone):
    """SpectFormer (arXiv 2304.06446), of one resolution or a pyramid of stages (H).

    Args:
        bands: channels of the input.
        num_classes: classes.
        image_size: side of the image in pixels, or its height and width.
        dims: channels of each stage; one stage is the plain family, several are the H family.
        depths: blocks of each stage.
        heads: attention heads of each stage.
        mlp_ratios: hidden width of the feed-forwards over the width, of each stage.
        alpha: how many blocks are spectral: the first ones.
        attention_first: the last ``alpha`` blocks are spectral instead (the ablation).
        token_size: side of a patch in pixels, of the plain family; 16, or on small images what leaves 7 x 7 patches.
            What does not fill a patch at the end is left out.
        stem_dim: channels inside the stem, of the H family.
        stem_stride: stride of the stem, of the H family; 4, or on small images what leaves 4 x 4 cells on the last
            map. Maps round up.
        token_labels: add a head on the cells, of the H family; half its largest score is added to the class token's.
        drop_path: stochastic depth of the last block, growing linearly from 0.
        norm_eps: of the norms in and after the blocks.

    Raises:
        ModelError: lists of different lengths, heads that do not divide their width, an image smaller than a patch,
            or another stem stride than 1, 2 or 4.
    """

    classifiers = ("head", "cell_head")
    any_size = True
    band_parameters = ("embeds.0.pixels.weight",)
    undecayed = ("positions",)

    def __init__(
        self,
        bands: int,
        num_classes: int,
        image_size: ImageSize = 224,
        *,
        dims: Sizes = (384,),
        depths: Depths = (12,),
        heads: Sizes = (6,),
        mlp_ratios: Positives = (4.0,),
        alpha: Count = 4,
        attention_first: bool = False,
        token_size: Size | None = None,
        stem_dim: Size = 32,
        stem_stride: Size | None = None,
        token_labels: bool = False,
        drop_path: Share = 0.0,
        norm_eps: Positive = 1e-6,
    ) -> None:
        super().__init__(bands, num_classes, image_size)
        _check(dims, depths, heads, mlp_ratios, token_labels)
        self.pyramid, self.num_features = len(dims) > 1, dims[-1]
        self.stride = _first_stride(image_size, token_size, stem_stride, len(dims))
        self.least_size = 1 if self.pyramid else self.stride
        self.check_size(*self.size)
        grids = _grids(self.size, self.stride, len(dims))
        first = (
            Stem(bands, stem_dim, dims[0], self.stride)
            if self.pyramid
            else PatchEmbed(bands, dims[0], self.stride, grids[0])
        )
        reductions = [Reduce(a, b) for a, b in itertools.pairwise(dims)]
        self.embeds = nn.ModuleList([first, *reductions])
        spectral = [number < alpha for number in range(sum(depths))]
        mixers = iter(spectral[::-1] if attention_first else spectral)
        rates = iter(linear_rates(drop_path, sum(depths)))
        self.stages = nn.ModuleList()
        for dim, depth, count, ratio, grid in zip(
            dims, depths, heads, mlp_ratios, grids, strict=True
        ):
            shape = self.pyramid, dim, count, ratio, grid, norm_eps
            self.stages.append(
                nn.ModuleList(_block(next(mixers), next(rates), *shape) for _ in range(depth))
            )
        self.norms = nn.ModuleList(nn.LayerNorm(dim, norm_eps) for dim in dims)
        self.class_block = (
            ClassBlock(dims[-1], heads[-1], mlp_ratios[-1], norm_eps) if self.pyramid else None
        )
        self.head = self.make_head(num_classes)
        self.cell_head = self.make_head(num_classes) if token_labels else None
        self._set_levels(dims, depths)
        self._init_weights()

    def _set_levels(self, dims: Sequence[int], depths: Sequence[int]) -> None:
        """Levels are the stages, or quarters of the blocks where there is but one stage."""
        if self.pyramid:
            self.feature_info = [
                FeatureInfo(dim, self.stride * 2**stage) for stage, dim in enumerate(dims)
            ]
            self.level_ends = [sum(depths[: stage + 1]) for stage in range(len(dims))]
        else:
            count = min(4, depths[0])
            self.feature_info = [FeatureInfo(dims[0], self.stride)] * count
            self.level_ends = [depths[0] * (k + 1) // count for k in range(count)]

    def _init_weights(self) -> None:
        init_linear(self)
        if self.pyramid:
            for part in self.modules():
                if isinstance(part, nn.Conv2d):
                    # As in the authors' code: fan-out over the groups.
                    fan_out = part.kernel_size[0] ** 2 * part.out_channels // part.groups
                    nn.init.normal_(part.weight, std=(2 / fan_out) ** 0.5)
                    if part.bias is not None:
                        nn.init.zeros_(part.bias)

    def _trunk(
        self, x: Float[Tensor, "batch bands height width"], wanted: Collection[int] = ()
    ) -> tuple[Float[Tensor, "batch h w dim"], list[Float[Tensor, "batch _ _ _"]]]:
        """Return the last block's map, and the normalised maps after the blocks with the wanted numbers."""
        maps, number = [], 0
        for embed, blocks, norm in zip(self.embeds, self.stages, self.norms, strict=True):
            x = embed(x)
            for block in blocks.children():
                x = self.run(block, x)
                number += 1
                if number in wanted:
                    maps.append(norm(x).permute(0, 3, 1, 2))
            if norm is not self.norms[-1]:
                x = norm(x)
        return x, maps

    def forward_features(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Return the last block's cells, normalised; in the H family after the class token."""
        cells = self._trunk(x)[0]
        if self.class_block is None:
            return self.norms[-1](cells.flatten(1, 2))
        return self.norms[-1](self.class_block(cells))

    def forward_head(
        self, features: Float[Tensor, "batch tokens dim"]
    ) -> Float[Tensor, "batch classes"]:
        """Classify the mean of the cells, or the class token."""
        if not self.pyramid:
            return self.head(features.mean(1))
        scores = self.head(features[:, 0])
        if self.cell_head is None or not self.num_classes:
            return scores
        return scores + 0.5 * self.cell_head(features[:, 1:]).amax(1)

    def level_maps(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> list[Float[Tensor, "batch channels h w"]]:
        """Return the map of each stage; of one stage, the maps after each quarter of its blocks."""
        return self._trunk(x, self.level_ends)[1]


def _block(
    spectral: bool,
    drop_path: float,
    pyramid: bool,
    dim: int,
    heads: int,
    mlp_ratio: float,
    grid: tuple[int, int],
    eps: float,
) -> Block:
    mixer = SpectralGate(dim, grid) if spectral else MapAttention(dim, heads)
    mlp = (ConvMlp if pyramid else Mlp)(dim, int(dim * mlp_ratio))
    kind = OneBranchBlock if spectral and not pyramid else Block
    return kind(dim, mixer, mlp, drop_path, eps)


def _first_stride(
    image_size: ImageSize, token_size: int | None, stem: int | None, stages: int
) -> int:
    if stages == 1:
        return token_size or stem_stride(image_size, 16, cells=7)
    stride = stem or stem_stride(image_size, 4, later=2 ** (stages - 1))
    if stride not in {1, 2, 4}:
        raise ModelError(f"spectformer's stem has no stride {stride}.", "Choose 1, 2 or 4.")
    return stride


def _grids(size: tuple[int, int], stride: int, stages: int) -> list[tuple[int, int]]:
    """Return rows and columns of each stage's map: patches leave the rest out, strided convolutions round up."""
    if stages == 1:
        return [whole_cells(size, stride)]
    strides = [stride * 2**stage for stage in range(stages)]
    return [(-(-size[0] // step), -(-size[1] // step)) for step in strides]


def _check(
    dims: Sequence[int],
    depths: Sequence[int],
    heads: Sequence[int],
    mlp_ratios: Sequence[float],
    token_labels: bool,
) -> None:
    if not len(dims) == len(depths) == len(heads) == len(mlp_ratios) > 0:
        raise ModelError(
            "spectformer has dims, depths, heads and mlp_ratios of different lengths.",
            "Give one value per stage in each.",
        )
    for dim, count in zip(dims, heads, strict=True):
        if dim % count:
            raise ModelError(
                f"spectformer has width {dim}, not divisible by {count} heads.",
                "Change the width or the heads.",
            )
    if token_labels and len(dims) == 1:
        raise ModelError(
            "spectformer supports token labels in its H family only.",
            "Use several stages, or omit",
        )


build = SpectFormer

_NAMES = [
    # one resolution
    (r"patch_embed\.proj\.", "embeds.0.pixels."),
    (r"pos_embed$", "embeds.0.positions"),
    (r"blocks\.(\d+)\.", r"stages.0.\1."),
    (r"norm\.", "norms.0."),
    # H
    (r"patch_embed1\.conv\.0\.", "embeds.0.pixels."),
    (r"patch_embed1\.(proj|norm)\.", r"embeds.0.reduce.\1."),
    (r"post_network\.0\.(?:attn\.)?", "class_block."),
    (r"aux_head\.", "cell_head."),
]
_NUMBERED = {"patch_embed": "embeds", "block": "stages", "norm": "norms"}  # from 1 there, 0 here


LAYOUTS = {
    "the authors' SpectFormer": (r"^blocks\.\d+\.filter\.complex_weight$",),
    "the authors' SpectFormer-H": (r"^block1\.\d+\.filter\.complex_weight$",),
}


def rename(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give weights in the authors' two layouts our names, and join queries with their keys and values."""
    blocks = {key: value for key, value in state_dict.items() if key.startswith("block")}
    others = {key: value for key, value in state_dict.items() if key not in blocks}
    joined = join(blocks, (".attn.q.", ".attn.kv."), ".attn.qkv.", (1, 2))
    return rename_keys({**others, **joined}, _our_name)


def _our_name(key: str) -> str:
    key = substitute([(f"^{old}", new) for old, new in _NAMES], key)
    key = re.sub(
        r"^(patch_embed|block|norm)(\d)\.",
        lambda found: f"{_NUMBERED[found[1]]}.{int(found[2]) - 1}.",
        key,
    )
    # The second to last of the stem's convolutions; the first one is apart here.
    key = re.sub(r"^embeds\.0\.conv\.(\d)", lambda f: f"embeds.0.hidden.{int(f[1]) - 1}", key)
    key = re.sub(r"^(stages\.\d\.\d+)\.(?:filter|attn)\.(?:complex_)?", r"\1.mixer.", key)
    return key.replace(".dwconv.dwconv.", ".dwconv.")


def resize(
    state_dict: Mapping[str, Tensor], model: SpectFormer, source: SpectFormer | None = None
) -> dict[str, Tensor]:
    """Carry filters and positions to the grids of ``model``; of weights of unknown grids, to those of a square."""
    resized = resize_gates(state_dict, model, source)
    for name, part in model.named_modules():
        if isinstance(part, PatchEmbed) and (key := f"{name}.positions") in resized:
            old = None if source is None else cast("PatchEmbed", source.get_submodule(name)).grid
            resized[key] = resize_positions(resized[key], part.grid, grid=old)
    return resized


def from_reference(state_dict: Mapping[str, Tensor], kwargs: Mapping[str, Any]) -> SpectFormer:
    """Build the model from the arguments of either of the authors' two SpectFormers and load their weights."""
    spectral = sum(key.endswith("complex_weight") for key in state_dict)
    shared = {
        "bands": kwargs.get("in_chans", 3),
        "num_classes": kwargs.get("num_classes", 1000),
        "alpha": spectral,
        "drop_path": kwargs.get("drop_path_rate", 0.0),
    }
    own = _h_arguments if "patch_embed1.proj.weight" in state_dict else _plain_arguments
    model = SpectFormer(**shared, **own(state_dict, kwargs))
    model.load_state_dict(rename(state_dict))
    return model


def _plain_arguments(state_dict: Mapping[str, Tensor], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "image_size": pair(kwargs.get("img_size", 224)),
        "token_size": kwargs.get("patch_size", 16),
        "dims": [kwargs.get("embed_dim", 768)],
        "depths": [kwargs.get("depth", 12)],
        "heads": [6],  # whatever the width
        "mlp_ratios": [kwargs.get("mlp_ratio", 4.0)],
    }


def _h_arguments(state_dict: Mapping[str, Tensor], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    # The authors' class takes no image size: the first filter's grid tells, of which it has one half of the columns.
    rows, half = state_dict["block1.0.attn.complex_weight"].shape[:2]
    columns = rows if rows // 2 + 1 == half else 2 * (half - 1)
    return {
        "image_size": (4 * rows, 4 * columns),
        "stem_stride": 4,
        "stem_dim": kwargs.get("stem_hidden_dim", 32),
        "dims": kwargs.get("embed_dims", [64, 128, 320, 448]),
        "depths": kwargs.get("depths", [3, 4, 6, 3]),
        "heads": kwargs.get("num_heads", [2, 4, 10, 14]),
        "mlp_ratios": kwargs.get("mlp_ratios", [8, 8, 4, 4]),
        "token_labels": "aux_head.weight" in state_dict,
        # Their class norms with PyTorch's own eps unless it is given a layer, as by their named sizes.
        "norm_eps": getattr(kwargs.get("norm_layer"), "keywords", {}).get("eps", 1e-5),
    }
