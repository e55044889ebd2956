"""CvT: tokens embedded by overlapping convolutions, queries, keys and values projected by depth-wise ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.catalog.arguments import (
    Count,
    Counts,
    Depths,
    ImageSize,
    Positive,
    Positives,
    Share,
    Shares,
    Size,
    Sizes,
)
from vitreous.catalog.card import Card
from vitreous.errors import ModelError
from vitreous.layers.adapter import AdapterSeam
from vitreous.layers.attention import AttentionCore
from vitreous.layers.backbone import Backbone, FeatureInfo, init_linear, linear_rates, stem_stride
from vitreous.layers.convnorm import ConvNorm
from vitreous.layers.drop import DropPath
from vitreous.layers.mlp import Mlp
from vitreous.layers.positions import resize_positions
from vitreous.layers.reference import rename_keys, substitute

CARD = Card(
    slug="cvt",
    title="CvT: Introducing Convolutions to Vision Transformers",
    kind="model",
    summary="Three stages; strided convolutions embed the tokens, and depthwise convolutions "
    "project queries, keys and values.",
    when="A pyramid without position embeddings, for images of varying size; as accurate "
    "without them as with them, and ahead of a plain ViT of its size on toy data.",
    paper="arXiv 2103.15808 (ICCV 2021)",
    year=2021,
    source_licence="MIT (microsoft/CvT): re-implemented from the equations",
    tasks=["classify"],
    variants={
        "cvt_13": {
            "dims": [64, 192, 384],
            "depths": [1, 2, 10],
            "heads": [1, 3, 6],
            "drop_path": 0.1,
        },
        "cvt_21": {
            "dims": [64, 192, 384],
            "depths": [1, 4, 16],
            "heads": [1, 3, 6],
            "drop_path": 0.1,
        },
        "cvt_w24": {
            "dims": [192, 768, 1024],
            "depths": [2, 2, 20],
            "heads": [3, 12, 16],
            "drop_path": 0.3,
        },
        "cvt_test": {
            "dims": [8, 16, 24],
            "depths": [1, 1, 2],
            "heads": [1, 2, 3],
            "mlp_ratio": 2.0,
            "class_token": False,
        },
    },
    published=[
        {"variant": "cvt_13", "parameters_m": 20.00, "gmacs": 4.57, "top1": 81.6},
        {
            "variant": "cvt_13",
            "image_size": 384,
            "parameters_m": 20.00,
            "gmacs": 16.27,
            "top1": 83.0,
            "top1_from_22k": 83.3,
        },
        {"variant": "cvt_21", "parameters_m": 31.62, "gmacs": 7.18, "top1": 82.5},
        {
            "variant": "cvt_21",
            "image_size": 384,
            "parameters_m": 31.62,
            "gmacs": 24.9,
            "top1": 83.3,
            "top1_from_22k": 84.9,
        },
        {
            "variant": "cvt_w24",
            "image_size": 384,
            "parameters_m": 277.20,
            "gmacs": 193.2,
            "top1_from_22k": 87.6,
        },
    ],
    recipe={
        "optimizer": "AdamW",
        "epochs": 300,
        "learning_rate": "2.5e-4 (cvt_13), 1.25e-4 (others) per GPU, times the GPUs",
        "batch_size": "256 (cvt_13), 128 (others) per GPU",
        "schedule": "cosine to 1e-5, 5 epochs warm-up from 1e-6, 10 cool-down",
        "weight_decay": "0.05 (cvt_13), 0.1 (others); none on norms and biases",
        "augment": "RandAugment m9, mixup 0.8, cutmix 1, erasing 0.25, jitter 0.4, smoothing 0.1",
    },
    claim="81.6 % on ImageNet with 20 M parameters, DeiT-S 79.8 % with 22 M; without position "
    "embeddings DeiT-S loses 1.8 points, CvT none.",
    miniature="Digits of 16 x 16 pixels, networks of equal size. Required: CvT at least as "
    "accurate as a plain ViT with position embeddings; without them the ViT loses at least 2 "
    "points, CvT at most 1.",
    notes=[
        "Usage: With a class token, no score depends on the patch tokens of the last block, so "
        "its query convolution only gets gradients from dense heads. cvt_test pools by the mean, "
        "where every parameter gets one.",
        "Image size: The stem's stride of 4 shrinks on small images (strides). Its padding "
        "follows from the stride, (kernel - stride + 1) // 2, the least that keeps size // "
        "stride cells.",
        "Checkpoints: Attention is scaled by the width of the stage, not of a head; the "
        "published weights need it.",
        "As in the reference: The class token enters in the last stage and bypasses the convolutions.",
        "Differs from the reference: The authors squeeze all axes of length 1 before the head, "
        "so a single image loses its batch axis; here it keeps it.",
        "Differs from the reference: projection='linear' works; it fails in the authors' code. "
        "Their option for a position embedding has no effect; positions=True adds one per stage, "
        "as in the paper's ablation.",
        "Published figures: gmacs are those of the authors' counter, or ours at their sizes; "
        "their README rounds cvt_13 to 4.5.",
        "Not included: Dropout, which is 0 in every published model.",
    ],
)


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x), an approximation of GELU."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply it."""
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, type[nn.Module]] = {"quick_gelu": QuickGELU, "gelu": nn.GELU}


class Projection(NamedTuple):
    """How a stage's attention makes queries, keys and values.

    Attributes:
        method: ``conv`` (depth-wise convolution and norm), ``average`` (of keys and values) or ``linear``.
        kernel: side of the kernel.
        key_stride: stride of keys and values; queries have stride 1.
        key_padding: padding of keys and values; None keeps the size at stride 1.
        bias: whether the linear maps that follow have a bias.
    """

    method: str
    kernel: int
    key_stride: int
    key_padding: int | None
    bias: bool

    def query_mixer(self, dim: int) -> nn.Module:
        """Return what queries go through before their linear map."""
        if self.method == "conv":
            return ConvNorm(dim, dim, self.kernel, groups=dim)
        return nn.Identity()

    def key_mixer(self, dim: int) -> nn.Module:
        """Return what keys or values go through before their linear map."""
        padding = self.kernel // 2 if self.key_padding is None else self.key_padding
        if self.method == "conv":
            return ConvNorm(
                dim, dim, self.kernel, stride=self.key_stride, padding=padding, groups=dim
            )
        if self.method == "average":
            return nn.AvgPool2d(self.kernel, self.key_stride, padding, ceil_mode=True)
        return nn.Identity()


class ConvEmbed(nn.Module):
    """Convolutional token embedding (section 3.1): an overlapping convolution, then a norm over channels."""

    def __init__(self, inputs: int, dim: int, kernel: int, stride: int, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, dim, kernel, stride, padding)
        self.norm = nn.LayerNorm(dim)

    def forward(
        self, x: Float[Tensor, "batch inputs height width"]
    ) -> Float[Tensor, "batch h w dim"]:
        """Return the map of tokens, channels last."""
        return self.norm(rearrange(self.conv(x), "b d h w -> b h w d"))


class ConvAttention(nn.Module):
    """Attention with convolutional projections (section 3.2, eq. 2); the class token bypasses the convolutions.

    Args:
        dim: token width.
        heads: attention heads.
        projection: how queries, keys and values are made.
        prefix: tokens in front that are no part of the map.
    """

    def __init__(self, dim: int, heads: int, projection: Projection, prefix: int) -> None:
        super().__init__()
        self.heads, self.prefix = heads, prefix
        self.mix_query = projection.query_mixer(dim)
        self.mix_key = projection.key_mixer(dim)
        self.mix_value = projection.key_mixer(dim)
        self.query = nn.Linear(dim, dim, bias=projection.bias)
        self.key = nn.Linear(dim, dim, bias=projection.bias)
        self.value = nn.Linear(dim, dim, bias=projection.bias)
        self.core = AttentionCore(dim**-0.5)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], height: int
    ) -> Float[Tensor, "batch tokens dim"]:
        """Mix the tokens of a map of ``height`` rows, and what is in front of it."""
        front = x[:, : self.prefix]
        cells = rearrange(x[:, self.prefix :], "b (h w) d -> b d h w", h=height)

        def split(mixed: Tensor, linear: nn.Module) -> Tensor:
            tokens = rearrange(mixed, "b d h w -> b (h w) d")
            if self.prefix:
                tokens = torch.cat([front, tokens], 1)
            return rearrange(linear(tokens), "b n (h d) -> b h n d", h=self.heads)

        mixed = self.core(
            split(self.mix_query(cells), self.query),
            split(self.mix_key(cells), self.key),
            split(self.mix_value(cells), self.value),
            grid=(cells.shape[2], cells.shape[3]),
        )
        return self.proj(rearrange(mixed, "b h n d -> b n (h d)"))


class Block(nn.Module):
    """Convolutional attention and feed-forward, each on a normalised residual branch."""

    def __init__(
        self, dim: int, attn: ConvAttention, hidden: int, act: type[nn.Module], drop_path: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, hidden, act)
        self.adapter = AdapterSeam(dim)
        self.drop_path = DropPath(drop_path)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], height: int
    ) -> Float[Tensor, "batch tokens dim"]:
        """Apply the block to a map of ``height`` rows."""
        x = x + self.drop_path(self.attn(self.norm1(x), height))
        return x + self.adapter(x, self.drop_path(self.mlp(self.norm2(x))))


class Stage(nn.Module):
    """Embedding and blocks of one resolution.

    Args:
        embed: makes the tokens.
        blocks: what follows.
        dim: token width.
        class_token: whether a class token is put in front of the tokens.
        grid: rows and columns of the map for which positions are learned; None learns none.
    """

    def __init__(
        self,
        embed: ConvEmbed,
        blocks: Sequence[Block],
        dim: int,
        class_token: bool,
        grid: tuple[int, int] | None,
    ) -> None:
        super().__init__()
        self.embed, self.grid = embed, grid
        self.pos_embed = (
            None if grid is None else nn.Parameter(torch.zeros(1, math.prod(grid), dim))
        )
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim)) if class_token else None
        self.blocks = nn.ModuleList(blocks)

    def tokens(
        self, x: Float[Tensor, "batch inputs height width"]
    ) -> tuple[Float[Tensor, "batch tokens dim"], int]:
        """Return the tokens that the blocks start from, and the rows of their map."""
        cells = self.embed(x)
        height, width = cells.shape[1:3]
        tokens = rearrange(cells, "b h w d -> b (h w) d")
        if self.pos_embed is not None:
            tokens = tokens + resize_positions(self.pos_embed, (height, width), grid=self.grid)
        if self.class_token is not None:
            tokens = torch.cat([self.class_token.expand(x.shape[0], -1, -1), tokens], 1)
        return tokens, height

    def cells(
        self, tokens: Float[Tensor, "batch tokens dim"], height: int
    ) -> Float[Tensor, "batch dim h w"]:
        """Return the tokens' map, without the class token."""
        front = 0 if self.class_token is None else 1
        return rearrange(tokens[:, front:], "b (h w) d -> b d h w", h=height)


class CvT(Backbone):
    """Convolutional vision transformer (arXiv 2103.15808).

    Images of any size work: each embedding leaves ``(size + 2 padding - kernel) // stride + 1`` cells per side. An
    argument that takes one value per stage takes a single value for all as well, unless it says otherwise.

    Args:
        bands: channels of the input.
        num_classes: classes.
        image_size: side of the image in pixels, or height and width; decides the first stride where ``strides`` are not given.
        dims: token width per stage.
        depths: blocks per stage.
        heads: attention heads per stage.
        mlp_ratio: hidden width of the feed-forward over the token width.
        kernels: side of the embeddings' kernels, per stage; 7, then 3.
        strides: of the embeddings, per stage; 4, then 2, and on small images a first one that leaves 4 x 4 cells.
        paddings: of the embeddings, per stage; ``(kernel - stride + 1) // 2``.
        projection: ``conv``, ``average`` or ``linear``, per stage (see :class:`Projection`).
        qkv_kernel: side of the projections' kernels.
        key_stride: stride of keys and values.
        key_padding: padding of keys and values; half the kernel.
        qkv_bias: whether the linear maps of queries, keys and values have a bias.
        class_token: whether the head reads a class token, of the last stage, instead of the mean; or one per stage.
        positions: learn a position embedding in each stage (the paper's ablation; it is better without).
        act: ``quick_gelu`` or ``gelu``.
        drop_path: stochastic depth, within a stage growing linearly from 0; a single value is the last stage's.

    Raises:
        ModelError: lists of different lengths, heads that do not divide the width, or a name that is not listed.
    """

    any_size = True
    band_parameters = ("stages.0.embed.conv.weight",)
    undecayed = ("class_token", "pos_embed")

    def __init__(
        self,
        bands: int,
        num_classes: int,
        image_size: ImageSize = 224,
        *,
        dims: Sizes = (64, 192, 384),
        depths: Depths = (1, 2, 10),
        heads: Sizes = (1, 3, 6),
        mlp_ratio: Positive | Positives = 4.0,
        kernels: Sizes | None = None,
        strides: Sizes | None = None,
        paddings: Counts | None = None,
        projection: str | Sequence[str] = "conv",
        qkv_kernel: Size | Sizes = 3,
        key_stride: Size | Sizes = 2,
        key_padding: Count | Counts | None = None,
        qkv_bias: bool | Sequence[bool] = True,
        class_token: bool | Sequence[bool] = True,
        positions: bool = False,
        act: str = "quick_gelu",
        drop_path: Share | Shares = 0.0,
    ) -> None:
        super().__init__(bands, num_classes, image_size)
        count = len(dims)
        later = [2] * (count - 1)
        kernels = kernels or [7, *[3] * (count - 1)]
        strides = strides or [stem_stride(image_size, 4, later=2 ** (count - 1)), *later]
        paddings = paddings or [(k - s + 1) // 2 for k, s in zip(kernels, strides, strict=False)]
        tokens = _per_stage(class_token, count, last=True)
        rates = _per_stage(drop_path, count, last=True)
        ratios = _per_stage(mlp_ratio, count)
        projections = [
            Projection(*settings)
            for settings in zip(
                *(
                    _per_stage(given, count)
                    for given in (projection, qkv_kernel, key_stride, key_padding, qkv_bias)
                ),
                strict=False,
            )
        ]
        lists = (
            dims,
            depths,
            heads,
            kernels,
            strides,
            paddings,
            tokens,
            rates,
            ratios,
            projections,
        )
        _check(lists, act, self.size)
        self.least_size = _least_size(kernels, strides, paddings)
        self.check_size(*self.size)
        self.num_features, self.class_token = dims[-1], bool(tokens[-1])
        self.feature_info = []
        self.stages = nn.ModuleList()
        inputs, (height, width), stride = bands, self.size, 1
        for i, dim in enumerate(dims):
            height, width = (
                (side + 2 * paddings[i] - kernels[i]) // strides[i] + 1 for side in (height, width)
            )
            stride *= strides[i]
            blocks = [
                Block(
                    dim,
                    ConvAttention(dim, heads[i], projections[i], int(tokens[i])),
                    int(dim * ratios[i]),
                    ACTIVATIONS[act],
                    rate,
                )
                for rate in linear_rates(rates[i], depths[i])
            ]
            embed = ConvEmbed(inputs, dim, kernels[i], strides[i], paddings[i])
            grid = (height, width) if positions else None
            self.stages.append(Stage(embed, blocks, dim, bool(tokens[i]), grid))
            self.feature_info.append(FeatureInfo(dim, stride))
            inputs = dim
        self.norm = nn.LayerNorm(self.num_features)
        self.head = self.make_head(num_classes)
        self._init_weights()

    def _init_weights(self) -> None:
        init_linear(self)
        for name, parameter in self.named_parameters():
            if name.endswith(self.undecayed):
                nn.init.trunc_normal_(parameter, std=0.02)

    def _run_stages(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the map of each stage, and the last stage's tokens, class token first; none is normalised."""
        maps = []
        for stage in self.stages:
            assert isinstance(stage, Stage)
            tokens, height = stage.tokens(x)
            for block in stage.blocks:
                tokens = self.run(block, tokens, height)
            x = stage.cells(tokens, height)
            maps.append(x)
        return maps, tokens

    def forward_features(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Return the last stage's tokens, normalised; the class token, where there is one, is the first."""
        return self.norm(self._run_stages(x)[1])

    def forward_head(
        self, features: Float[Tensor, "batch tokens dim"]
    ) -> Float[Tensor, "batch classes"]:
        """Classify the class token, or the tokens' mean."""
        return self.head(features[:, 0] if self.class_token else features.mean(1))

    def level_maps(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> list[Float[Tensor, "batch channels h w"]]:
        """Return the map of each stage; the last one normalised, without the class token."""
        maps, tokens = self._run_stages(x)
        front = int(self.class_token)
        last = rearrange(self.norm(tokens[:, front:]), "b (h w) d -> b d h w", h=maps[-1].shape[2])
        return [*maps[:-1], last]


def _least_size(kernels: Sequence[int], strides: Sequence[int], paddings: Sequence[int]) -> int:
    """Return the side of the smallest image that leaves a cell in every stage."""
    side = 1
    for kernel, stride, padding in zip(
        reversed(kernels), reversed(strides), reversed(paddings), strict=True
    ):
        side = max(1, (side - 1) * stride + kernel - 2 * padding)
    return side


def _per_stage(value: Any, count: int, last: bool = False) -> list[Any]:
    """Return one value per stage; ``last`` gives a single value to the last stage and nothing to the others."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return list(value)
    return [type(value)()] * (count - 1) + [value] if last else [value] * count


def _check(lists: Sequence[Sequence[Any]], act: str, size: tuple[int, int]) -> None:
    dims, _, heads, *_, projections = lists
    if len({len(given) for given in lists}) > 1:
        raise ModelError(
            f"cvt got settings for {sorted({len(given) for given in lists})} stages.",
            "Give one of each per stage.",
        )
    for stage, (dim, count) in enumerate(zip(dims, heads, strict=True)):
        if dim % count:
            raise ModelError(
                f"Stage {stage} of cvt has width {dim}, not divisible by {count} heads.",
                "Change dims or heads.",
            )
    for projection in projections:
        if projection.method not in {"conv", "average", "linear"}:
            raise ModelError(
                f"cvt has no projection '{projection.method}'.", "Choose conv, average or linear."
            )
        if projection.method == "conv" and projection.kernel % 2 == 0:
            raise ModelError(
                f"A kernel of {projection.kernel} cannot keep the number of queries.",
                "Give an odd qkv_kernel.",
            )
    if act not in ACTIVATIONS:
        raise ModelError(f"cvt has no activation '{act}'.", f"Choose one of {list(ACTIVATIONS)}.")
    if min(size) < 4:
        raise ModelError(
            f"cvt needs images of at least 4 x 4 pixels, not {size[0]} x {size[1]}.",
            "Give a larger patch.",
        )


build = CvT


def resize(
    state_dict: Mapping[str, Tensor], model: CvT, source: CvT | None = None
) -> dict[str, Tensor]:
    """Resample learned positions, where there are any, to the maps of ``model``."""
    resized = dict(state_dict)
    for number, stage in enumerate(model.stages):
        key = f"stages.{number}.pos_embed"
        assert isinstance(stage, Stage)
        if key in resized and stage.grid is not None:
            before = None if source is None else source.get_submodule(f"stages.{number}")
            grid = before.grid if isinstance(before, Stage) else None
            resized[key] = resize_positions(resized[key], stage.grid, grid=grid)
    return resized


_NAMES = (
    (r"^stage(\d+)\.", r"stages.\1."),
    (r"\.patch_embed\.proj\.", ".embed.conv."),
    (r"\.patch_embed\.norm\.", ".embed.norm."),
    (r"\.cls_token$", ".class_token"),
    *(
        rename
        for short, name in (("q", "query"), ("k", "key"), ("v", "value"))
        for rename in (
            (rf"\.conv_proj_{short}\.conv\.", f".mix_{name}.conv."),
            (rf"\.conv_proj_{short}\.bn\.", f".mix_{name}.norm."),
            (rf"\.proj_{short}\.", f".{name}."),
        )
    ),
)


LAYOUTS = {
    "the authors' CvT": (r"^stage0\.blocks\.0\.attn\.(conv_)?proj_q\.", r"^stage0\.patch_embed\.")
}


def rename(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give weights in the authors' layout our names."""
    return rename_keys(state_dict, partial(substitute, _NAMES))


def from_reference(state_dict: Mapping[str, Tensor], kwargs: Mapping[str, Any]) -> CvT:
    """Build the model from the authors' arguments and load their weights (layout of microsoft/CvT)."""
    spec = kwargs["spec"]
    methods = {"dw_bn": "conv", "avg": "average", "linear": "linear"}
    act = kwargs.get("act_layer", nn.GELU)
    model = CvT(
        bands=kwargs.get("in_chans", 3),
        num_classes=kwargs.get("num_classes", 1000),
        dims=spec["DIM_EMBED"],
        depths=spec["DEPTH"],
        heads=spec["NUM_HEADS"],
        mlp_ratio=spec["MLP_RATIO"],
        kernels=spec["PATCH_SIZE"],
        strides=spec["PATCH_STRIDE"],
        paddings=spec["PATCH_PADDING"],
        projection=[methods[method] for method in spec["QKV_PROJ_METHOD"]],
        qkv_kernel=spec["KERNEL_QKV"],
        key_stride=spec["STRIDE_KV"],
        key_padding=spec["PADDING_KV"],
        qkv_bias=spec["QKV_BIAS"],
        class_token=spec["CLS_TOKEN"],
        act="quick_gelu" if "QuickGELU" in getattr(act, "__name__", str(act)) else "gelu",
        drop_path=spec["DROP_PATH_RATE"],
    )
    model.load_state_dict(rename(state_dict))
    return model
