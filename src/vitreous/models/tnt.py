"""Transformer in Transformer: tokens within tokens, an attention for each."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.catalog.arguments import Depth, ImageSize, Positive, Share, Size, Sizes
from vitreous.catalog.card import Card
from vitreous.errors import ModelError
from vitreous.layers.adapter import AdapterSeam
from vitreous.layers.backbone import Backbone, FeatureInfo, init_linear, linear_rates, stem_stride
from vitreous.layers.drop import DropPath
from vitreous.layers.mlp import Mlp
from vitreous.layers.pooling import check_pool
from vitreous.layers.positions import resize_positions
from vitreous.layers.reference import (
    begin,
    join,
    one_side,
    pair,
    refuse_eps,
    refuse_others,
    rename_keys,
)
from vitreous.layers.sizes import whole_cells
from vitreous.layers.transformer import Block, Grid

CARD = Card(
    slug="tnt",
    title="Transformer in Transformer",
    kind="model",
    summary="Every patch is divided into small words; an inner transformer attends within each "
    "patch and feeds the patch token.",
    when="To use or reproduce the published networks. No reliable gain over a plain ViT has been "
    "measured here, at a higher cost.",
    paper="arXiv 2103.00112 (NeurIPS 2021)",
    year=2021,
    source_licence="Apache-2.0 (huawei-noah/Efficient-AI-Backbones): re-implemented from the equations",
    tasks=["classify"],
    variants={
        "tnt_tiny": {"dim": 192, "inner_dim": 12, "depth": 12, "heads": 3, "inner_heads": 2},
        "tnt_small": {"dim": 384, "inner_dim": 24, "depth": 12, "heads": 6, "inner_heads": 4},
        "tnt_base": {"dim": 640, "inner_dim": 40, "depth": 12, "heads": 10, "inner_heads": 4},
        "tnt_test": {
            "dim": 16,
            "inner_dim": 4,
            "depth": 2,
            "heads": 2,
            "inner_heads": 2,
            "token_size": 3,
            "mlp_ratio": 2.0,
        },
    },
    published=[
        {"variant": "tnt_tiny", "parameters_m": 6.1, "gmacs": 1.4, "top1": 73.9},
        {"variant": "tnt_small", "parameters_m": 23.8, "gmacs": 5.2, "top1": 81.5},
        {"variant": "tnt_base", "parameters_m": 65.6, "gmacs": 14.1, "top1": 82.9},
    ],
    recipe={
        "optimizer": "AdamW",
        "learning_rate": 1e-3,
        "batch_size": 1024,
        "weight_decay": 0.05,
        "epochs": 300,
        "warmup_epochs": 5,
        "schedule": "cosine",
        "drop_path": 0.1,
        "augmentation": "RandAugment m9, mixup 0.8, cutmix 1, erasing 0.25, colour jitter 0.4, repeated",
        "ema": 0.99996,
    },
    claim="About 1.7 points of ImageNet top-1 above a plain ViT for 8 % more parameters and 14 % "
    "more multiply-adds (TNT-S 81.5 vs DeiT-S 79.8).",
    miniature="Digits of 16 pixels in patches of 8, randomly shifted in training. Required: at "
    "least 1 point above a plain ViT of equal size, and at most 0.3 points below itself without "
    "attention among words; the inner path costs less than a quarter of TNT-S.",
    notes=[
        "Image size: Patches are 16 pixels with words every 4 at 224. On smaller images they "
        "shrink (token_size) so that 7 x 7 remain, but not below 2 pixels, which leaves 2 x 2 "
        "words; the word stride is a quarter of a patch, at least one pixel.",
        "Image size: The convolution that makes the words zero-pads each patch, not the image.",
        "Checkpoints: Queries, keys and values come from one linear layer. The reference has one "
        "for queries and keys and one for values; they are joined when loading.",
        "Checkpoints: Checkpoints of timm load. The feed-forwards of its words have a fixed ratio "
        "of 4 (inner_mlp_ratio). Its older layout (legacy=True) is another computation and is "
        "refused.",
        "Differs from the reference: The reference holds an unused tensor of patches x width "
        "(outer_tokens). It is left out here, which is 0.04 to 0.13 M fewer parameters: 6.07, "
        "23.76 and 65.43 M.",
        "As in the reference: Stochastic depth drops the inner branches of single patches.",
        "Not included: Pyramid TNT (arXiv 2201.00978), which is another architecture.",
    ],
)


class Transformer(Block):
    """Attention and feed-forward, each on a normalised residual branch (eqs. 2-3 and 6-7): the inner and the outer.

    Args:
        dim: token width.
        heads: number of heads.
        mlp_ratio: hidden width of the feed-forward over the token width.
        bias: whether queries, keys and values have one.
        scale: factor of the attention's scores; head width^-0.5 where not given.
        drop_path: stochastic depth.
        excite: gate the feed-forward's channels by their mean over the tokens (:class:`Excite`).
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_ratio: float,
        bias: bool,
        scale: float | None,
        drop_path: float,
        excite: bool = False,
    ) -> None:
        super().__init__(dim, heads, mlp_ratio, drop_path, None, bias, 1e-5, scale)
        self.excite = Excite(dim) if excite else nn.Identity()

    def feed(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Apply the feed-forward's branch, its channels gated, and the adapter beside it."""
        branch = self.drop_path(self.excite(self.mlp(self.norm2(x))))
        return x + self.adapter(x, branch)


class FeedForward(nn.Module):
    """The ablation: words without attention.

    Args:
        dim: token width.
        mlp_ratio: hidden width of the feed-forward over the token width.
        drop_path: stochastic depth.
    """

    def __init__(self, dim: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.adapter = AdapterSeam(dim)
        self.drop_path = DropPath(drop_path)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], grid: Grid | None = None
    ) -> tuple[Float[Tensor, "batch tokens dim"], None]:
        """Apply the branch."""
        return x + self.adapter(x, self.drop_path(self.mlp(self.norm2(x)))), None


class Excite(nn.Module):
    """Multiply channels by 1 + tanh(...) of their mean over the tokens (squeeze and excitation; the paper's option).

    Args:
        dim: channels.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = dim // 4
        self.fc = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, dim), nn.Tanh()
        )

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Return ``x`` with its channels weighted."""
        return x + x * self.fc(x.mean(1, keepdim=True))


class WordsToSentence(nn.Module):
    """From all words of a patch to one vector of the outer width: norm, linear, norm (eq. 5).

    Args:
        words: words per patch.
        inner_dim: width of a word.
        dim: width of a sentence.
        bias: of the linear layer.
    """

    def __init__(self, words: int, inner_dim: int, dim: int, bias: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(words * inner_dim)
        self.proj = nn.Linear(words * inner_dim, dim, bias=bias)
        self.norm2 = nn.LayerNorm(dim)

    def forward(
        self, words: Float[Tensor, "sentences words inner_dim"], batch: int
    ) -> Float[Tensor, "batch patches dim"]:
        """Return the sentences of each image."""
        return self.norm2(self.proj(self.norm1(words.flatten(1)))).unflatten(0, (batch, -1))


class SentenceBlock(nn.Module):
    """Words attend within their patch, are added to its sentence, and sentences attend (eqs. 2-7).

    Args:
        words: rows and columns of a patch's words.
        inner: transformer of the words, or its feed-forward alone.
        outer: transformer of the sentences.
        inner_dim: width of a word.
        dim: width of a sentence.
    """

    def __init__(
        self, words: Grid, inner: nn.Module, outer: Transformer, inner_dim: int, dim: int
    ) -> None:
        super().__init__()
        self.words, self.inner = words, inner
        self.fold = WordsToSentence(math.prod(words), inner_dim, dim, bias=False)
        self.outer = outer

    def forward(
        self,
        words: Float[Tensor, "sentences words inner_dim"],
        sentences: Float[Tensor, "batch tokens dim"],
        grid: Grid | None = None,
    ) -> tuple[Float[Tensor, "sentences words inner_dim"], Float[Tensor, "batch tokens dim"]]:
        """Return words and sentences; the class token, the first one, gets nothing from the words.

        Args:
            words: of all patches.
            sentences: the class token, and one per patch.
            grid: rows and columns of the patches.
        """
        words, _ = self.inner(words, grid=self.words)
        told = sentences[:, 1:] + self.fold(words, sentences.shape[0])
        return words, self.outer(torch.cat([sentences[:, :1], told], 1), grid=grid)[0]


class TransformerInTransformer(Backbone):
    """TNT (arXiv 2103.00112).

    Args:
        bands: channels of the input.
        num_classes: classes.
        image_size: side of the image in pixels, or its height and width; what does not fill a patch at the end is left
            out.
        dim: width of a sentence (patch token).
        inner_dim: width of a word.
        depth: number of blocks.
        heads: attention heads among sentences.
        inner_heads: attention heads among words.
        token_size: side of a patch in pixels; 16, or on small images what leaves 7 x 7 patches, but at least 2.
        inner_stride: pixels between words; a quarter of ``token_size``, at least 1.
        mlp_ratio: hidden width of the feed-forwards over the token width.
        qkv_bias: whether queries, keys and values have a bias.
        qk_scale: factor of all attentions' scores; head width^-0.5 where not given.
        excite: squeeze and excitation behind the outer feed-forward.
        word_attention: False leaves the attention among words out (the ablation).
        drop_path: stochastic depth of the last block, growing linearly from 0.
        inner_mlp_ratio: of the words' feed-forwards; ``mlp_ratio`` where not given.
        grid: rows and columns of the sentences' learned positions; those of the image where not given.
        pool: ``class`` token or ``mean`` of the sentences.

    Raises:
        ModelError: an image smaller than a patch, or heads that do not divide their width.
    """

    any_size = True
    band_parameters = ("word_embed.weight",)
    undecayed = ("class_token", "inner_pos", "outer_pos")

    def __init__(
        self,
        bands: int,
        num_classes: int,
        image_size: ImageSize = 224,
        *,
        dim: Size = 384,
        inner_dim: Size = 24,
        depth: Depth = 12,
        heads: Size = 6,
        inner_heads: Size = 4,
        token_size: Size | None = None,
        inner_stride: Size | None = None,
        mlp_ratio: Positive = 4.0,
        qkv_bias: bool = False,
        qk_scale: Positive | None = None,
        excite: bool = False,
        word_attention: bool = True,
        drop_path: Share = 0.0,
        inner_mlp_ratio: Positive | None = None,
        grid: Sizes | None = None,
        pool: str = "class",
    ) -> None:
        super().__init__(bands, num_classes, image_size)
        check_pool("tnt", pool, ("class", "mean"))
        self.pool = pool
        for width, count in ((dim, heads), (inner_dim, inner_heads)):
            if width % count:
                raise ModelError(
                    f"tnt has width {width}, not divisible by {count} heads.",
                    "Change the width or the heads.",
                )
        self.token_size = token_size or max(stem_stride(image_size, 16, cells=7), 2)
        self.least_size = self.token_size
        self.check_size(*self.size)
        stride = inner_stride or max(self.token_size // 4, 1)
        side = -(-self.token_size // stride)
        words = side**2
        self.num_features = dim
        self.grid = whole_cells(self.size, self.token_size)
        self.position_grid = pair(grid) if grid else self.grid
        self.feature_info = [FeatureInfo(dim, self.token_size)] * min(4, depth)
        self.word_embed = nn.Conv2d(bands, inner_dim, 7, stride, padding=3)
        self.inner_pos = nn.Parameter(torch.zeros(1, words, inner_dim))
        self.sentence_embed = WordsToSentence(words, inner_dim, dim, bias=True)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.outer_pos = nn.Parameter(torch.zeros(1, 1 + math.prod(self.position_grid), dim))
        inner_ratio = mlp_ratio if inner_mlp_ratio is None else inner_mlp_ratio
        shared = qkv_bias, qk_scale
        self.blocks = nn.ModuleList(
            SentenceBlock(
                (side, side),
                Transformer(inner_dim, inner_heads, inner_ratio, *shared, rate)
                if word_attention
                else FeedForward(inner_dim, inner_ratio, rate),
                Transformer(dim, heads, mlp_ratio, *shared, rate, excite),
                inner_dim,
                dim,
            )
            for rate in linear_rates(drop_path, depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.head = self.make_head(num_classes)
        init_linear(self)
        for table in (self.class_token, self.inner_pos, self.outer_pos):
            nn.init.trunc_normal_(table, std=0.02)

    def embed(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> tuple[Float[Tensor, "sentences words inner_dim"], Float[Tensor, "batch tokens dim"], Grid]:
        """Return the words of all patches, the class token and sentences with their positions, and the sentences' grid."""
        side = self.token_size
        rows, columns = x.shape[2] // side, x.shape[3] // side
        patches = rearrange(
            x[:, :, : rows * side, : columns * side],
            "b c (i p) (j q) -> (b i j) c p q",
            p=side,
            q=side,
        )
        # Patch by patch, because the convolution must not see over a patch's border.
        words = rearrange(self.word_embed(patches), "n c p q -> n (p q) c") + self.inner_pos
        sentences = self.sentence_embed(words, x.shape[0])
        sentences = torch.cat([self.class_token.expand(x.shape[0], -1, -1), sentences], 1)
        grid = (rows, columns)
        places = resize_positions(self.outer_pos, grid, 1, self.position_grid)
        return words, sentences + places, grid

    def forward_features(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Return the class token and the sentences of the last block, normalised."""
        words, sentences, grid = self.embed(x)
        for block in self.blocks:
            words, sentences = self.run(block, words, sentences, grid)
        return self.norm(sentences)

    def forward_head(
        self, features: Float[Tensor, "batch tokens dim"]
    ) -> Float[Tensor, "batch classes"]:
        """Classify the class token, or the mean of the sentences."""
        return self.head(features[:, 0] if self.pool == "class" else features[:, 1:].mean(1))

    def level_maps(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> list[Float[Tensor, "batch dim h w"]]:
        """Return the sentences' maps after each quarter of the blocks; all have the stride of a patch."""
        words, sentences, grid = self.embed(x)
        levels = len(self.feature_info)
        wanted = [len(self.blocks) * (k + 1) // levels for k in range(levels)]
        maps = []
        for number, block in enumerate(self.blocks, start=1):
            words, sentences = self.run(block, words, sentences, grid)
            if number in wanted:
                patches = self.norm(sentences)[:, 1:]
                maps.append(rearrange(patches, "b (h w) d -> b d h w", h=grid[0]))
        return maps


build = TransformerInTransformer

LAYOUTS = {
    "timm's TNT": (r"^pixel_embed\.proj\.weight$", r"^patch_pos$"),
    "the authors' TNT": (r"^outer_pos$", r"^blocks\.\d+\.outer_attn\."),
}
UNREAD = ("outer_tokens",)  # the authors keep a tensor that nothing reads
_NAMES = {
    "patch_embed.proj.": "word_embed.",
    "pixel_embed.proj.": "word_embed.",
    "cls_token": "class_token",
    "patch_pos": "outer_pos",
    "pixel_pos": "inner_pos",
    "proj_norm": "sentence_embed.norm",
    "norm1_proj.": "sentence_embed.norm1.",
    "norm2_proj.": "sentence_embed.norm2.",
    "proj.": "sentence_embed.proj.",
}
_BLOCK_NAMES = {
    # the authors'
    "inner_norm": "inner.norm",
    "inner_attn.": "inner.attn.",
    "inner_mlp.": "inner.mlp.",
    "proj_norm": "fold.norm",
    "outer_norm": "outer.norm",
    "outer_attn.": "outer.attn.",
    "outer_mlp.": "outer.mlp.",
    "se_layer.": "outer.excite.",
    # timm's
    "norm_in.": "inner.norm1.",
    "attn_in.": "inner.attn.",
    "norm_mlp_in.": "inner.norm2.",
    "mlp_in.": "inner.mlp.",
    "norm1_proj.": "fold.norm1.",
    "norm2_proj.": "fold.norm2.",
    "norm_out.": "outer.norm1.",
    "attn_out.": "outer.attn.",
    "norm_mlp.": "outer.norm2.",
    "mlp.": "outer.mlp.",
    # both
    "proj.": "fold.proj.",
}


def rename(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give weights in the authors' layout or in timm's our names, and join their queries and keys with their values."""
    joined = join(state_dict, (".qk.", ".v."), ".qkv.", (2, 1))
    words = joined.get("pixel_pos")
    if words is not None and words.ndim == 4:  # timm's lie on a map
        joined["pixel_pos"] = rearrange(words, "1 d h w -> 1 (h w) d")
    return rename_keys(joined, _our_name)


def _our_name(key: str) -> str:
    found = re.match(r"blocks\.\d+\.", key)
    if found is None:
        return begin(_NAMES, key)
    return found[0] + begin(_BLOCK_NAMES, key.removeprefix(found[0]))


def read_settings(
    weights: Mapping[str, Tensor], image_size: ImageSize | None = None
) -> dict[str, Any]:
    """Return what weights under our names say about options that a variant leaves open."""
    return {
        "qkv_bias": "blocks.0.outer.attn.qkv.bias" in weights,
        "excite": any(".outer.excite." in key for key in weights),
    }


def resize(
    state_dict: Mapping[str, Tensor],
    model: TransformerInTransformer,
    source: TransformerInTransformer | None = None,
) -> dict[str, Tensor]:
    """Resample the positions of the sentences to the grid of ``model``."""
    resized = dict(state_dict)
    if "outer_pos" in resized:
        old = None if source is None else source.position_grid
        resized["outer_pos"] = resize_positions(resized["outer_pos"], model.position_grid, 1, old)
    return resized


# Values of timm's arguments that change nothing, or that ours has.
_OFFERED: dict[str, tuple[Any, ...]] = {
    "global_pool": ("token", "avg"),
    "legacy": (
        False,
    ),  # True: words are cut from a convolution of the whole image, and normalised one by one
}


def from_reference(
    state_dict: Mapping[str, Tensor], kwargs: Mapping[str, Any]
) -> TransformerInTransformer:
    """Build the model from the arguments of the authors' or timm's TNT and load their weights.

    Raises:
        ModelError: patches that are not square, or an argument that we do not offer.
    """
    refuse_others("tnt", kwargs, _OFFERED)
    refuse_eps("tnt", kwargs, 1e-5)
    token = one_side("tnt", kwargs.get("patch_size", 16), "patches")
    timm = "patch_pos" in state_dict
    names = _TIMM_ARGUMENTS if timm else _ARGUMENTS
    model = TransformerInTransformer(
        bands=kwargs.get("in_chans", 3),
        num_classes=kwargs.get("num_classes", 1000),
        image_size=pair(kwargs.get("img_size", 224)),
        dim=kwargs.get(names["dim"], 768),
        inner_dim=kwargs.get("inner_dim", 48),
        depth=kwargs.get("depth", 12),
        heads=kwargs.get(names["heads"], 12),
        inner_heads=kwargs.get(names["inner_heads"], 4),
        token_size=token,
        inner_stride=kwargs.get(names["inner_stride"], 4),
        mlp_ratio=kwargs.get("mlp_ratio", 4.0),
        inner_mlp_ratio=4.0 if timm else None,  # written in timm's code
        qkv_bias=kwargs.get("qkv_bias", False),
        qk_scale=kwargs.get("qk_scale") or None,
        excite=kwargs.get("se", 0) > 0,
        drop_path=kwargs.get("drop_path_rate", 0.0),
        pool="mean" if kwargs.get("global_pool") == "avg" else "class",
    )
    weights = rename(state_dict)
    model.load_state_dict({key: v for key, v in weights.items() if not key.startswith(UNREAD)})
    return model


_ARGUMENTS = {
    "dim": "outer_dim",
    "heads": "outer_num_heads",
    "inner_heads": "inner_num_heads",
    "inner_stride": "inner_stride",
}
_TIMM_ARGUMENTS = {
    "dim": "embed_dim",
    "heads": "num_heads_outer",
    "inner_heads": "num_heads_inner",
    "inner_stride": "first_stride",
}
