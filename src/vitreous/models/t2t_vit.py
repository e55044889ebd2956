"""Tokens-to-Token ViT: neighbouring tokens are merged step by step, then a deep and narrow transformer reads them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.catalog.arguments import Depth, ImageSize, Positive, Share, Size, Sizes
from vitreous.catalog.card import Card
from vitreous.errors import ModelError
from vitreous.layers.attention import AttentionCore
from vitreous.layers.backbone import FeatureInfo, init_linear, linear_rates
from vitreous.layers.backbone import stem_stride as shrunk_stride
from vitreous.layers.mlp import Mlp
from vitreous.layers.positions import resize_positions
from vitreous.layers.reference import begin, pair, rename_keys, substitute
from vitreous.layers.sizes import in_words
from vitreous.layers.transformer import Block, Grid
from vitreous.layers.trunk import Embedded, Trunk

CARD = Card(
    slug="t2t_vit",
    title="Tokens-to-Token ViT: Training Vision Transformers from Scratch on ImageNet",
    kind="model",
    summary="Overlapping neighbourhoods are merged into tokens in three steps with light "
    "attention in between, followed by a deep and narrow ViT.",
    when="Natural images without pre-training, where a plain ViT would be used. No advantage on "
    "hyperspectral patches has been measured.",
    paper="arXiv 2101.11986, ICCV 2021",
    year=2021,
    source_licence="Clear BSD (yitu-opensource/T2T-ViT): re-implemented from the equations",
    tasks=["classify"],
    variants={
        "t2t_vit_7": {"dim": 256, "depth": 7, "heads": 4, "mlp_ratio": 2.0},
        "t2t_vit_10": {"dim": 256, "depth": 10, "heads": 4, "mlp_ratio": 2.0},
        "t2t_vit_12": {"dim": 256, "depth": 12, "heads": 4, "mlp_ratio": 2.0},
        "t2t_vit_14": {"dim": 384, "depth": 14, "heads": 6},
        "t2t_vit_19": {"dim": 448, "depth": 19, "heads": 7},
        "t2t_vit_24": {"dim": 512, "depth": 24, "heads": 8},
        "t2t_vit_t_14": {"dim": 384, "depth": 14, "heads": 6, "token_attention": "transformer"},
        "t2t_vit_t_19": {"dim": 448, "depth": 19, "heads": 7, "token_attention": "transformer"},
        "t2t_vit_t_24": {"dim": 512, "depth": 24, "heads": 8, "token_attention": "transformer"},
        "t2t_vit_14_wide": {"dim": 768, "depth": 4, "heads": 12},
        "t2t_vit_14_resnext": {"dim": 384, "depth": 14, "heads": 32},
        "t2t_vit_test": {"dim": 16, "depth": 2, "heads": 2, "mlp_ratio": 2.0, "token_dim": 8},
    },
    published=[
        {"variant": "t2t_vit_7", "parameters_m": 4.26, "gmacs": 1.15, "top1": 71.7},
        {"variant": "t2t_vit_10", "parameters_m": 5.83, "top1": 75.2},
        {"variant": "t2t_vit_12", "parameters_m": 6.89, "top1": 76.5},
        {"variant": "t2t_vit_14", "parameters_m": 21.47, "gmacs": 4.78, "top1": 81.5},
        {"variant": "t2t_vit_14", "image_size": 384, "parameters_m": 21.47, "top1": 83.3},
        {"variant": "t2t_vit_19", "parameters_m": 39.09, "top1": 81.9},
        {"variant": "t2t_vit_24", "parameters_m": 64.00, "top1": 82.3},
        {"variant": "t2t_vit_t_14", "parameters_m": 21.47, "gmacs": 6.09, "top1": 81.7},
        {"variant": "t2t_vit_t_19", "parameters_m": 39.09, "top1": 82.4},
        {"variant": "t2t_vit_t_24", "parameters_m": 64.00, "top1": 82.6},
    ],
    recipe={
        "optimizer": "AdamW",
        "batch_size": 512,
        "learning_rate": 5e-4,
        "minimum_learning_rate": 1e-5,
        "weight_decay": 0.05,
        "epochs": 310,
        "warmup_epochs": 10,
        "schedule": "cosine",
        "drop_path": 0.1,
        "label_smoothing": 0.1,
        "mixup": 0.8,
        "cutmix": 1.0,
        "random_erasing": 0.25,
        "augmentation": "RandAugment m9",
        "weight_average": 0.99996,
    },
    claim="Trained from scratch on ImageNet, T2T-ViT-14 has half the size of the paper's "
    "ViT-S/16 and is 3.4 points more accurate (81.5 vs 78.1).",
    miniature="Digits enlarged to 32 pixels, 64 tokens, the same narrow backbone: two soft "
    "splits with one token layer vs plain patches and a convolutional stem, and Performer vs "
    "softmax token layers.",
    notes=[
        "Usage: t2t_vit_14_resnext (32 heads) and t2t_vit_14_wide are comparisons from the paper.",
        "Image size: The stride of the first soft split, 4, shrinks on images that would have "
        "fewer than 7 x 7 tokens. A split of stride s takes neighbourhoods of 2s - 1, as 7/4 and "
        "3/2 in the paper; at stride 1 the first tokens are pixels.",
        "Image size: A soft split of stride 4 pads by 2 and drops incomplete neighbourhoods; one "
        "of stride 2 pads by 1.",
        "Image size: Position embeddings are fixed sines of the token index, with the class "
        "token at 0. For other grids they are resampled bicubically, as the authors do for 384 "
        "pixels. Images need not be square.",
        "Checkpoints: Early published weights were trained with scores scaled by dim^-0.5: set "
        "qk_scale.",
        "Checkpoints: Weights of the first token layer keep bands as a separate axis: (out, "
        "bands, rows, columns).",
        "As in the reference: Scores of token layers are scaled by the width before the "
        "projection (147, 576), and random directions have length sqrt(rows) with half as many "
        "rows as channels, so that for small q and k the kernel is exp(q k / 2 - (q q + k k) / "
        "4) rather than Performer's exp(q k).",
        "Published figures: Parameters are the trained ones. The authors also count fixed random "
        "features and positions (21.55 M for t2t_vit_14), which are buffers here.",
        "Not included: The paper's dense, squeeze-and-excitation and ghost backbones.",
    ],
)

LIFTED = 2.0**20
PERFORMER_DROPOUT = 0.1  # after projection and feed-forward; the softmax token layers have none


class RandomFeatureCore(nn.Module):
    """Attention linear in the number of tokens (Choromanski et al., Performer, 2021; eq. 5 there).

    exp(q k^T) is the mean of phi(q) phi(k)^T over random directions, phi(u) = exp(W u - |u|^2 / 2) / sqrt(rows).
    Directions of length sqrt(width) are what this needs; see the card about shorter ones.

    Args:
        width: channels of queries and keys.
        rows: random directions, orthogonal and of length sqrt(rows), drawn once.
        eps: keeps tokens that no key resembles from dividing by 0.
    """

    directions: Tensor

    def __init__(self, width: int, rows: int, eps: float = 1e-8) -> None:
        super().__init__()
        self.eps = eps
        directions = nn.init.orthogonal_(torch.empty(rows, width)) * math.sqrt(rows)
        self.register_buffer("directions", directions)

    def features(self, x: Float[Tensor, "*batch tokens width"]) -> Float[Tensor, "*batch tokens m"]:
        """Return phi(x) in float32: exponentials of unnormalised numbers need its range."""
        x, directions = x.float(), self.directions.float()
        exponent = x @ directions.T - x.square().sum(-1, keepdim=True) / 2
        return exponent.exp() / math.sqrt(len(directions))

    def forward(
        self,
        query: Float[Tensor, "batch heads queries width"],
        key: Float[Tensor, "batch heads keys width"],
        value: Float[Tensor, "batch heads keys value_width"],
        bias: None = None,
        grid: Grid | None = None,
    ) -> Float[Tensor, "batch heads queries value_width"]:
        """Attend; there are no scores that a bias or a grid could be about."""
        with _full_precision(query.device):
            asked, offered, eps = self.features(query), self.features(key), self.eps
            if (
                torch.compiler.is_exporting()
            ):  # graph optimisers take 1e-8 for nothing; a power of two keeps every bit
                asked, eps = asked * LIFTED, eps * LIFTED
            mixed = asked @ (offered.transpose(-2, -1) @ value.float())
            total = asked @ offered.sum(-2).unsqueeze(-1)
            return (mixed / (total + eps)).to(value.dtype)


class NeighbourhoodNorm(nn.Module):
    """LayerNorm over all numbers of a neighbourhood.

    Args:
        channels: of the map that was split.
        kernel: side of the neighbourhood.
    """

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(1, channels, kernel, kernel))

    def forward(
        self, x: Float[Tensor, "batch tokens width"]
    ) -> Float[Tensor, "batch tokens width"]:
        """Normalise ``(channels, rows, columns)``, flattened."""
        return F.layer_norm(x, x.shape[-1:], self.weight.flatten(), self.bias.flatten())


class NeighbourhoodLinear(nn.Module):
    """A linear layer on all numbers of a neighbourhood.

    Args:
        channels: of the map that was split.
        kernel: side of the neighbourhood.
        out: width of the result.
        bias: add a vector.
    """

    def __init__(self, channels: int, kernel: int, out: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out, channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out)) if bias else None
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens out"]:
        """Project ``(channels, rows, columns)``, flattened."""
        return F.linear(x, self.weight.flatten(1), self.bias)


class TokenLayer(nn.Module):
    """A light transformer layer that narrows tokens; the values take the place of the residual (section 3.1).

    Args:
        channels: of the map that was split.
        kernel: side of a neighbourhood.
        dim: width of the result.
        token_attention: ``performer`` or ``transformer``.
    """

    def __init__(self, channels: int, kernel: int, dim: int, token_attention: str) -> None:
        super().__init__()
        performer = token_attention == "performer"
        self.norm1 = NeighbourhoodNorm(channels, kernel)
        self.qkv = NeighbourhoodLinear(channels, kernel, 3 * dim, bias=performer)
        self.core: nn.Module = (
            RandomFeatureCore(dim, dim // 2)
            if performer
            else AttentionCore(scale=(channels * kernel**2) ** -0.5)
        )
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, dim)
        self.drop = nn.Dropout(PERFORMER_DROPOUT if performer else 0.0)

    def forward(
        self, x: Float[Tensor, "batch tokens width"], grid: Grid | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """Mix the tokens with a single head; ``grid`` are their rows and columns."""
        query, key, value = self.qkv(self.norm1(x)).unsqueeze(1).chunk(3, -1)
        x = (value + self.drop(self.proj(self.core(query, key, value, None, grid)))).squeeze(1)
        return x + self.drop(self.mlp(self.norm2(x)))


class TokensToToken(nn.Module):
    """Soft splits with a token layer between each two (section 3.1, fig. 3).

    Args:
        bands: channels of the image.
        token_dim: width of the tokens in between.
        dim: width of the tokens at the end.
        strides: of the soft splits.
        token_attention: ``performer`` or ``transformer``.
    """

    def __init__(
        self, bands: int, token_dim: int, dim: int, strides: Sequence[int], token_attention: str
    ) -> None:
        super().__init__()
        self.strides = tuple(strides)
        kernels = [2 * stride - 1 for stride in strides]
        widths = [bands] + [token_dim] * (len(kernels) - 2)
        self.layers = nn.ModuleList(
            TokenLayer(width, kernel, token_dim, token_attention)
            for width, kernel in zip(widths, kernels[:-1], strict=True)
        )
        self.project = nn.Linear(token_dim * kernels[-1] ** 2, dim)

    def forward(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> Float[Tensor, "batch dim h w"]:
        """Return the map of tokens."""
        for layer, stride in zip(self.layers, self.strides[:-1], strict=True):
            grid = _split_sizes(x, stride)
            x = _as_map(layer(soft_split(x, stride), grid), grid)
        last = self.strides[-1]
        return _as_map(self.project(soft_split(x, last)), _split_sizes(x, last))


class T2TViT(Trunk):
    """Tokens-to-Token vision transformer (arXiv 2101.11986).

    Args:
        bands: channels of the input.
        num_classes: classes.
        image_size: side of the image in pixels, or its height and width; what does not fill a neighbourhood at the end
            is left out.
        dim: token width.
        depth: number of blocks.
        heads: attention heads.
        mlp_ratio: hidden width of the feed-forward over the token width.
        token_dim: width of the tokens between soft splits.
        token_attention: of the layers between soft splits: ``performer`` (linear cost) or ``transformer``.
        stem_stride: stride of the first soft split; 4, or on small images what leaves 7 x 7 tokens.
        later_strides: strides of the other soft splits.
        qkv_bias: give queries, keys and values of the blocks a bias.
        qk_scale: factor of the blocks' scores; head width^-0.5 where not given.
        drop_path: stochastic depth of the last block, growing linearly from 0.

    Raises:
        ModelError: heads that do not divide the width, no second soft split, an image that ends before the last one,
            or an unknown attention.
    """

    any_size = True
    band_parameters = (
        "tokenizer.layers.0.norm1.weight",
        "tokenizer.layers.0.norm1.bias",
        "tokenizer.layers.0.qkv.weight",
    )
    undecayed = ("class_token", "norm1.weight", "norm1.bias")
    positions: Tensor

    def __init__(
        self,
        bands: int,
        num_classes: int,
        image_size: ImageSize = 224,
        *,
        dim: Size = 384,
        depth: Depth = 14,
        heads: Size = 6,
        mlp_ratio: Positive = 3.0,
        token_dim: Size = 64,
        token_attention: str = "performer",
        stem_stride: Size | None = None,
        later_strides: Sizes = (2, 2),
        qkv_bias: bool = False,
        qk_scale: Positive | None = None,
        drop_path: Share = 0.0,
    ) -> None:
        super().__init__(bands, num_classes, image_size)
        first = stem_stride or shrunk_stride(image_size, 4, math.prod(later_strides), cells=7)
        strides = (first, *later_strides)
        _check(dim, heads, strides, token_attention)
        self.grid, self.least_size = _grid(self.size, strides), _least_size(strides)
        self.num_features = dim
        self.feature_info = [FeatureInfo(dim, math.prod(strides))] * min(4, depth)
        self.tokenizer: nn.Module = TokensToToken(bands, token_dim, dim, strides, token_attention)
        self.class_token = nn.Parameter(torch.empty(1, 1, dim))
        self.register_buffer("positions", sinusoids(1 + math.prod(self.grid), dim)[None])
        self.blocks = nn.ModuleList(
            Block(dim, heads, mlp_ratio, rate, None, qkv_bias, norm_eps=1e-5, scale=qk_scale)
            for rate in linear_rates(drop_path, depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.head = self.make_head(num_classes)
        init_linear(self)
        nn.init.trunc_normal_(self.class_token, std=0.02)

    def embed(self, x: Float[Tensor, "batch bands height width"]) -> Embedded:
        """Return the class token and the merged tokens with their positions."""
        tokens = self.run(self.tokenizer, x)
        grid = (tokens.shape[2], tokens.shape[3])
        tokens = rearrange(tokens, "b d h w -> b (h w) d")
        tokens = torch.cat([self.class_token.expand(x.shape[0], -1, -1), tokens], 1)
        places = resize_positions(self.positions, grid, 1, self.grid)
        return Embedded(tokens + places, None, grid)

    def forward_head(
        self, features: Float[Tensor, "batch tokens dim"]
    ) -> Float[Tensor, "batch classes"]:
        """Classify the class token."""
        return self.head(features[:, 0])


def _full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Switch automatic mixed precision off, on devices that have it."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def soft_split(
    x: Float[Tensor, "batch channels height width"], stride: int
) -> Float[Tensor, "batch tokens values"]:
    """Cut overlapping neighbourhoods of ``2 stride - 1`` pixels, ``stride`` apart (eq. 4), row by row."""
    kernel = 2 * stride - 1
    return F.unfold(x, kernel, padding=stride // 2, stride=stride).transpose(1, 2)


def split_size(side: int, stride: int) -> int:
    """Return how many neighbourhoods :func:`soft_split` cuts along a side."""
    return (side + 2 * (stride // 2) - (2 * stride - 1)) // stride + 1


def _split_sizes(x: Float[Tensor, "batch channels height width"], stride: int) -> Grid:
    """Return how many rows and columns of neighbourhoods :func:`soft_split` cuts."""
    return split_size(x.shape[2], stride), split_size(x.shape[3], stride)


def _as_map(x: Float[Tensor, "batch tokens dim"], grid: Grid) -> Float[Tensor, "batch dim h w"]:
    return rearrange(x, "b (h w) d -> b d h w", h=grid[0], w=grid[1])


def sinusoids(count: int, dim: int) -> Float[Tensor, "count dim"]:
    """Return sines (even channels) and cosines (odd ones) of position / 10000^(2i / dim) (Vaswani et al., 2017)."""
    channel = torch.arange(dim, dtype=torch.float64)
    angle = torch.arange(count, dtype=torch.float64)[:, None] / 10000 ** (2 * (channel // 2) / dim)
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float()


def _least_size(strides: Sequence[int]) -> int:
    """Return the side of the smallest image of which the soft splits leave a token."""
    side = 1
    for stride in reversed(strides):
        side = (side - 1) * stride + (2 * stride - 1) - 2 * (stride // 2)
    return max(side, 1)


def _grid(size: tuple[int, int], strides: Sequence[int]) -> tuple[int, int]:
    """Return how many rows and columns of tokens the soft splits leave of an image."""
    rows, columns = size
    for stride in strides:
        rows, columns = split_size(rows, stride), split_size(columns, stride)
    if min(rows, columns) < 1:
        raise ModelError(
            f"t2t_vit has no tokens left of an image of {in_words(size)} pixels with strides {strides}.",
            "Give smaller strides.",
        )
    return rows, columns


def _check(dim: int, heads: int, strides: Sequence[int], token_attention: str) -> None:
    if token_attention not in {"performer", "transformer"}:
        raise ModelError(
            f"t2t_vit has no '{token_attention}' attention between soft splits.",
            "Choose performer or transformer.",
        )
    if len(strides) < 2 or min(strides) < 1:
        raise ModelError(
            f"t2t_vit cannot split with strides {strides}.",
            "Give at least one stride in later_strides, each 1 or more.",
        )
    if dim % heads:
        raise ModelError(f"t2t_vit has width {dim}, not divisible by {heads} heads.", "Change one.")


build = T2TViT


_NAMES = {
    "cls_token": "class_token",
    "pos_embed": "positions",
    "tokens_to_token.attention1.": "tokenizer.layers.0.",
    "tokens_to_token.attention2.": "tokenizer.layers.1.",
    "tokens_to_token.project.": "tokenizer.project.",
}
# Of a token layer, of either kind.
_LAYER_NAMES = (
    (r"\.attn\.", "."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.2\.", ".mlp.fc2."),
    (r"\.kqv\.", ".qkv."),
    (r"\.w$", ".core.directions"),
)


LAYOUTS = {"the authors' T2T-ViT": (r"^tokens_to_token\.project\.",)}


def rename(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give weights in the authors' layout our names, shapes, and order of queries, keys and values."""
    turned = {key: _turn(key, value) for key, value in state_dict.items()}
    return rename_keys(turned, _our_name)


def _our_name(key: str) -> str:
    key = begin(_NAMES, key)
    return substitute(_LAYER_NAMES, key) if key.startswith("tokenizer.layers.") else key


def _turn(key: str, value: Tensor) -> Tensor:
    """Return a tensor of a token layer as ours is."""
    name = _our_name(key)
    if not name.startswith("tokenizer.layers."):
        return value
    if ".kqv." in key:
        keys, queries, values = value.chunk(3)
        value = torch.cat([queries, keys, values])
    if ".norm1." in name or name.endswith("qkv.weight"):
        kernel = 7 if ".layers.0." in name else 3
        value = rearrange(
            value.reshape(-1, value.shape[-1]), "o (c h w) -> o c h w", h=kernel, w=kernel
        )
    return value


def resize(
    state_dict: Mapping[str, Tensor], model: T2TViT, source: T2TViT | None = None
) -> dict[str, Tensor]:
    """Resample the fixed positions to the grid of ``model``, so that they stay what was trained with."""
    resized = dict(state_dict)
    if "positions" in resized:
        old = None if source is None else source.grid
        resized["positions"] = resize_positions(resized["positions"], model.grid, 1, old)
    return resized


def from_reference(state_dict: Mapping[str, Tensor], kwargs: Mapping[str, Any]) -> T2TViT:
    """Build the model from the arguments of the authors' T2T_ViT and load their weights."""
    model = T2TViT(
        bands=kwargs.get("in_chans", 3),
        num_classes=kwargs.get("num_classes", 1000),
        image_size=pair(kwargs.get("img_size", 224)),
        dim=kwargs.get("embed_dim", 768),
        depth=kwargs.get("depth", 12),
        heads=kwargs.get("num_heads", 12),
        mlp_ratio=kwargs.get("mlp_ratio", 4.0),
        token_dim=kwargs.get("token_dim", 64),
        token_attention=kwargs.get("tokens_type", "performer"),
        stem_stride=4,
        qkv_bias=kwargs.get("qkv_bias", False),
        qk_scale=kwargs.get("qk_scale"),
        drop_path=kwargs.get("drop_path_rate", 0.0),
    )
    model.load_state_dict(rename(state_dict))
    return model
