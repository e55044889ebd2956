"""DHVT: a plain transformer for small data, with convolutions in embedding and feed-forward, and tokens that stand for heads."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.catalog.arguments import Depth, ImageSize, Positive, Share, Size
from vitreous.catalog.card import Card
from vitreous.errors import ModelError
from vitreous.layers.adapter import AdapterSeam
from vitreous.layers.backbone import Backbone, FeatureInfo, init_linear, linear_rates, stem_stride
from vitreous.layers.convnorm import ConvNorm
from vitreous.layers.drop import DropPath
from vitreous.layers.mlp import Mlp
from vitreous.layers.reference import (
    norm_eps,
    one_side,
    pair,
    refuse_others,
    rename_keys,
    substitute,
)
from vitreous.layers.transformer import Attention, Grid

CARD = Card(
    slug="dhvt",
    title="Bridging the Gap Between Vision Transformers and Convolutional Neural Networks on Small Datasets",
    kind="model",
    summary="A plain ViT with overlapping convolutions as embedding, a depthwise convolution in its "
    "feed-forwards, and tokens by which attention heads tell each other what they see.",
    when="A ViT from scratch with few labels; it has no position table, so that images of any size fit.",
    paper="arXiv 2210.05958 (NeurIPS 2022)",
    year=2022,
    source_licence="Apache-2.0 (ArieSeirack/DHVT): re-implemented from the equations",
    tasks=["classify"],
    variants={
        "dhvt_tiny": {"dim": 192, "heads": 3, "drop_path": 0.1},
        "dhvt_small": {"dim": 384, "heads": 6, "drop_path": 0.1},
        "dhvt_tiny_p4": {"dim": 192, "heads": 4, "token_size": 4, "drop_path": 0.1},
        "dhvt_small_p4": {"dim": 384, "heads": 8, "token_size": 4, "drop_path": 0.1},
        "dhvt_tiny_p2": {"dim": 192, "heads": 4, "token_size": 2, "drop_path": 0.1},
        "dhvt_small_p2": {"dim": 384, "heads": 8, "token_size": 2, "drop_path": 0.1},
        "dhvt_test": {"dim": 16, "depth": 2, "heads": 4, "mlp_ratio": 2.0, "token_size": 4},
    },
    published=[
        {
            "variant": "dhvt_tiny",
            "parameters_m": 6.267,
            "readme_gmacs": 1.4,
            "top1": 77.6,
        },
        {
            "variant": "dhvt_small",
            "parameters_m": 24.041,
            "readme_gmacs": 5.1,
            "top1": 82.3,
        },
        {
            "variant": "dhvt_tiny_p4",
            "image_size": 32,
            "num_classes": 100,
            "parameters_m": 6.009,
        },
        {
            "variant": "dhvt_small_p4",
            "image_size": 32,
            "num_classes": 100,
            "parameters_m": 23.425,
        },
        {
            "variant": "dhvt_tiny_p2",
            "image_size": 32,
            "num_classes": 100,
            "parameters_m": 5.845,
        },
        {
            "variant": "dhvt_small_p2",
            "image_size": 32,
            "num_classes": 100,
            "parameters_m": 22.767,
            "top1_cifar100": 85.68,
        },
        {
            "variant": "dhvt_tiny",
            "arguments": {"heads": 4},
            "num_classes": 345,
            "parameters_m": 6.106,
        },
        {"variant": "dhvt_small", "num_classes": 345, "parameters_m": 23.788},
    ],
    recipe={
        "optimizer": "AdamW",
        "epochs": 300,
        "learning_rate": "1e-3 (CIFAR, DomainNet), 5e-4 (ImageNet), x batch size / 512",
        "batch_size": "512 (CIFAR), 256 (ImageNet)",
        "schedule": "cosine, warm-up of 5 (CIFAR), 10 (ImageNet) or 20 epochs (DomainNet)",
        "weight_decay": 0.05,
        "augmentation": "RandAugment m9, mixup 0.8, cutmix 1, erasing 0.25, label smoothing 0.1, repeated",
    },
    claim="From scratch on small data no longer behind convolutional networks: 85.68 % on CIFAR-100 "
    "with 22.8 M parameters.",
    miniature="Digits and Indian Pines with few labels, networks of equal size. Required: 3 points above "
    "a plain ViT, at most 1.5 points below a ResNet; each convolution helps, or costs 0.5 points at most.",
    notes=[
        "Usage: Heads tell each other what they see by a token each, which exists inside attention only.",
        "Image size: No position table. token_size is 16, or on small images what leaves 7 x 7 "
        "tokens; each halving rounds up. The authors' grid must be square, ours need not be.",
        "Checkpoints: The authors' checkpoints load.",
        "As in the reference: A stem of one convolution ends with a GELU, longer ones do not.",
        "As in the reference: Descriptors of heads are means over all tokens, the class token included. "
        "The class token is multiplied by what the feed-forward gives, without a sigmoid.",
        "Differs from the reference: Plain batch norms instead of synchronised ones; any number of bands "
        "(theirs is fixed to 3).",
        "Not specified in the paper: Tokens of 8 pixels and of 1 have a stem of three convolutions and of one.",
        "Published figures: Parameters are those of the authors' code at 100 (CIFAR, 32 pixels), 345 "
        "(DomainNet) and 1000 classes.",
    ],
)


class ChannelAffine(nn.Module):
    """A learned factor and offset per channel of a map.

    Args:
        channels: how many.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(
        self, x: Float[Tensor, "batch channels h w"]
    ) -> Float[Tensor, "batch channels h w"]:
        """Apply both."""
        return x * self.alpha + self.beta


class OverlappingEmbed(nn.Module):
    """Sequential overlapping patch embedding (SOPE): convolutions of stride 2 between two affine maps.

    Args:
        bands: channels of the image.
        dim: token width; half as many channels before each further halving.
        side: of a token in pixels, a power of 2.
    """

    def __init__(self, bands: int, dim: int, side: int) -> None:
        super().__init__()
        halvings = max(side.bit_length() - 1, 1)
        widths = [bands, *(dim // 2**left for left in reversed(range(halvings)))]
        self.before = ChannelAffine(bands)
        self.layers = nn.Sequential()
        for inputs, outputs in itertools.pairwise(widths):
            self.layers.extend(
                [ConvNorm(inputs, outputs, 3, stride=min(side, 2)), nn.GELU()],
            )
        if halvings > 1:
            self.layers.pop(-1)
        self.after = ChannelAffine(dim)

    def forward(self, x: Float[Tensor, "batch bands height width"]) -> Float[Tensor, "batch d h w"]:
        """Return the map of tokens."""
        return self.after(self.layers(self.before(x)))


class HeadInteraction(Attention):
    """Self-attention in which every head is described by a token, too (HI-MHSA).

    Args:
        dim: token width.
        heads: number of heads.
        qkv_bias: give queries, keys and values a bias.
        scale: factor of the scores; head width^-0.5 where not given.
    """

    def __init__(self, dim: int, heads: int, qkv_bias: bool, scale: float | None) -> None:
        super().__init__(dim, heads, qkv_bias, scale)
        self.describe = nn.Linear(dim // heads, dim)
        self.norm = nn.LayerNorm(dim // heads)
        self.act = nn.GELU()
        self.positions = nn.Parameter(torch.zeros(1, heads, dim))
        nn.init.trunc_normal_(self.positions, std=0.02)

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        turn: Tensor | None = None,
        grid: Grid | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Attend; the first token is the class token, and receives what the heads' tokens gathered."""
        mixed = super().forward(torch.cat([self.describe_heads(x), x], 1), turn, grid)
        described, tokens = mixed[:, : self.heads], mixed[:, self.heads :]
        first = tokens[:, :1] + described.mean(1, keepdim=True)
        return torch.cat([first, tokens[:, 1:]], 1)

    def describe_heads(
        self, x: Float[Tensor, "batch tokens dim"]
    ) -> Float[Tensor, "batch heads dim"]:
        """Return a token per head, made of the mean of its channels."""
        means = rearrange(x.mean(1), "b (h d) -> b h d", h=self.heads)
        parts = rearrange(self.describe(means), "b h (g d) -> b h g d", g=self.heads)
        return self.act(self.norm(parts)).flatten(2) + self.positions


class AggregationFeedForward(nn.Module):
    """Dynamic aggregation feed-forward (DAFF): convolutions of the cells, whose mean weighs the class token's channels.

    Args:
        dim: token width.
        hidden: channels between.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(dim, hidden, 1), nn.BatchNorm2d(hidden), nn.GELU())
        self.mix = nn.Sequential(
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden),
            nn.BatchNorm2d(hidden),
            nn.GELU(),
        )
        self.reduce = nn.Sequential(nn.Conv2d(hidden, dim, 1), nn.BatchNorm2d(dim))
        self.compress = nn.Linear(dim, dim // 4)
        self.act = nn.GELU()
        self.excite = nn.Linear(dim // 4, dim)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], grid: Grid
    ) -> Float[Tensor, "batch tokens dim"]:
        """Apply the layers to a class token and the cells of a grid."""
        cells = rearrange(x[:, 1:], "b (h w) d -> b d h w", h=grid[0], w=grid[1])
        hidden = self.expand(cells)
        cells = self.reduce(self.mix(hidden) + hidden)
        weight = self.excite(self.act(self.compress(cells.mean((2, 3)))))
        first = x[:, :1] * weight[:, None]
        return torch.cat([first, rearrange(cells, "b d h w -> b (h w) d")], 1)


class Block(nn.Module):
    """Attention and feed-forward, each on a normalised residual branch.

    Args:
        dim: token width.
        mixer: attention.
        mlp: feed-forward; of a class token and a grid, or of each token.
        drop_path: stochastic depth.
        eps: of the norms.
    """

    def __init__(
        self, dim: int, mixer: Attention, mlp: nn.Module, drop_path: float, eps: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps)
        self.interaction = mixer
        self.norm2 = nn.LayerNorm(dim, eps)
        self.mlp = mlp
        self.adapter = AdapterSeam(dim)
        self.drop_path = DropPath(drop_path)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], grid: Grid
    ) -> Float[Tensor, "batch tokens dim"]:
        """Apply both branches to a class token and the cells of a grid."""
        x = x + self.drop_path(self.interaction(self.norm1(x), None, grid))
        tokens = self.norm2(x)
        knows_grid = isinstance(self.mlp, AggregationFeedForward)
        branch = self.mlp(tokens, grid) if knows_grid else self.mlp(tokens)
        return x + self.adapter(x, self.drop_path(branch))


class DHVT(Backbone):
    """Dynamic hybrid vision transformer (arXiv 2210.05958).

    Args:
        bands: channels of the input.
        num_classes: classes.
        image_size: side of the image in pixels, or height and width; decides the side of tokens where it is not given.
            Other sizes are accepted too; the last row and column of tokens may reach beyond the image.
        token_size: side of a token in pixels: 16, 8, 4, 2 or 1; 16, or on small images what leaves 7 x 7 tokens.
        dim: token width, a multiple of 4.
        depth: blocks.
        heads: attention heads.
        mlp_ratio: hidden width of the feed-forwards over the token width.
        head_tokens: let heads tell each other what they see; False leaves plain attention (the paper's ablation).
        aggregation: feed-forwards that convolve and weigh the class token; False leaves plain ones (the paper's ablation).
        qkv_bias: give queries, keys and values a bias.
        qk_scale: factor of the scores; head width^-0.5 where not given.
        drop_path: stochastic depth of the last block, growing linearly from 0.
        norm_eps: of the norms in and after the blocks.

    Raises:
        ModelError: heads that do not divide the width, a width that the stem cannot halve, or another side of tokens.
    """

    any_size = True
    band_parameters = ("embed.before.alpha", "embed.before.beta", "embed.layers.0.conv.weight")
    band_tables = ("embed.before.alpha", "embed.before.beta")
    undecayed = ("class_token", "positions", "alpha", "beta")

    def __init__(
        self,
        bands: int,
        num_classes: int,
        image_size: ImageSize = 224,
        *,
        token_size: Size | None = None,
        dim: Size = 192,
        depth: Depth = 12,
        heads: Size = 3,
        mlp_ratio: Positive = 4.0,
        head_tokens: bool = True,
        aggregation: bool = True,
        qkv_bias: bool = True,
        qk_scale: Positive | None = None,
        drop_path: Share = 0.0,
        norm_eps: Positive = 1e-6,
    ) -> None:
        super().__init__(bands, num_classes, image_size)
        side = token_size or stem_stride(image_size, 16, cells=7)
        _check(dim, heads, side)
        self.num_features = dim
        self.feature_info = [FeatureInfo(dim, side)] * min(4, depth)
        self.embed = OverlappingEmbed(bands, dim, side)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        hidden = int(dim * mlp_ratio)
        attention = HeadInteraction if head_tokens else Attention
        feed = AggregationFeedForward if aggregation else Mlp
        self.blocks = nn.ModuleList(
            Block(dim, attention(dim, heads, qkv_bias, qk_scale), feed(dim, hidden), rate, norm_eps)
            for rate in linear_rates(drop_path, depth)
        )
        self.norm = nn.LayerNorm(dim, norm_eps)
        self.head = self.make_head(num_classes)
        init_linear(self)
        nn.init.trunc_normal_(self.class_token, std=0.02)

    def _trunk(
        self, x: Float[Tensor, "batch bands height width"], wanted: Collection[int] = ()
    ) -> tuple[Float[Tensor, "batch tokens dim"], list[Float[Tensor, "batch dim h w"]]]:
        """Return the normalised tokens, and the normalised maps behind the blocks with the wanted numbers."""
        cells = self.embed(x)
        grid = (cells.shape[2], cells.shape[3])
        first = self.class_token.expand(x.shape[0], -1, -1)
        tokens, maps = torch.cat([first, rearrange(cells, "b d h w -> b (h w) d")], 1), []
        for number, block in enumerate(self.blocks, start=1):
            tokens = self.run(block, tokens, grid)
            if number in wanted:
                normed = self.norm(tokens)[:, 1:]
                maps.append(rearrange(normed, "b (h w) d -> b d h w", h=grid[0]))
        return self.norm(tokens), maps

    def forward_features(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Return the last block's tokens, normalised; the class token first."""
        return self._trunk(x)[0]

    def forward_head(
        self, features: Float[Tensor, "batch tokens dim"]
    ) -> Float[Tensor, "batch classes"]:
        """Classify the class token."""
        return self.head(features[:, 0])

    def level_maps(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> list[Float[Tensor, "batch dim h w"]]:
        """Return the tokens' maps behind evenly spaced blocks, normalised."""
        count = len(self.feature_info)
        ends = [len(self.blocks) * (k + 1) // count for k in range(count)]
        return self._trunk(x, ends)[1]


def _check(dim: int, heads: int, side: int) -> None:
    if side not in {1, 2, 4, 8, 16}:
        raise ModelError(
            f"dhvt halves images, and has no tokens of {side} pixels.",
            "Give a token_size of 16, 8, 4, 2 or 1.",
        )
    if dim % heads:
        raise ModelError(f"dhvt has width {dim}, not divisible by {heads} heads.")
    least = max(4, side // 2)
    if dim % least:
        raise ModelError(
            f"dhvt cannot divide a width of {dim} by {least}, as its stem and its class token need.",
            f"Give a multiple of {least}.",
        )


build = DHVT

LAYOUTS = {
    "the authors' DHVT": (
        r"^patch_embed\.pre_affine\.alpha$",
        r"^blocks\.0\.attn\.ht_proj\.weight$",
    ),
}
_PARTS = {"conv1": "expand.0", "bn1": "expand.1", "conv2": "mix.0", "bn2": "mix.1"}
_PARTS |= {"conv3": "reduce.0", "bn3": "reduce.1"}
_NAMES = (
    (r"^cls_token$", "class_token"),
    (
        r"^patch_embed\.proj\.(\d)\.([01])\.",
        lambda found: f"embed.layers.{found[1]}.{('conv', 'norm')[int(found[2])]}.",
    ),
    (r"^patch_embed\.pre_affine\.", "embed.before."),
    (r"^patch_embed\.post_affine\.", "embed.after."),
    (r"\.attn\.pos_embed$", ".interaction.positions"),
    (r"\.attn\.ht_proj\.", ".interaction.describe."),
    (r"\.attn\.ht_norm\.", ".interaction.norm."),
    (r"\.attn\.", ".interaction."),
    (r"\.mlp\.((?:conv|bn)[123])\.", lambda found: f".mlp.{_PARTS[found[1]]}."),
    (r"\.mlp\.excitation\.", ".mlp.excite."),
)


def rename(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give weights in the authors' layout our names."""
    return rename_keys(state_dict, partial(substitute, _NAMES))


# Values of the authors' arguments that change nothing, or that ours has.
_OFFERED: dict[str, tuple[Any, ...]] = {
    "apply_dhvt": (True,),
    "distilled": (False,),
    "representation_size": (None,),
    "act_layer": (None, "gelu", nn.GELU),
}


def from_reference(state_dict: Mapping[str, Tensor], kwargs: Mapping[str, Any]) -> DHVT:
    """Build the model from the arguments of the authors' VisionTransformer and load their weights.

    Their ``in_chans`` has no effect: the bands are those of the weights, and so are width and heads where
    no argument tells them.

    Raises:
        ModelError: an argument that we do not offer.
    """
    refuse_others("dhvt", kwargs, _OFFERED)
    side = one_side("dhvt", kwargs.get("patch_size", 16), "patches")
    refuse_others("dhvt", {"patch_size": side}, {"patch_size": (16, 4, 2)})
    model = DHVT(
        bands=state_dict["patch_embed.pre_affine.alpha"].shape[1],
        num_classes=kwargs.get("num_classes", 1000),
        image_size=pair(kwargs.get("img_size", 224)),
        token_size=side,
        dim=kwargs.get("embed_dim", state_dict["cls_token"].shape[-1]),
        depth=kwargs.get("depth", 12),
        heads=kwargs.get("num_heads", state_dict["blocks.0.attn.pos_embed"].shape[1]),
        mlp_ratio=kwargs.get("mlp_ratio", 4.0),
        qkv_bias=kwargs.get("qkv_bias", "blocks.0.attn.qkv.bias" in state_dict),
        qk_scale=kwargs.get("qk_scale"),
        drop_path=kwargs.get("drop_path_rate", 0.0),
        norm_eps=norm_eps(kwargs, 1e-6),
    )
    model.load_state_dict(rename(state_dict))
    return model
