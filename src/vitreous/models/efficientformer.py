"""EfficientFormer: pooling and convolutions on maps, then a few attention blocks on tokens, and one reshape between."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.catalog.arguments import (
    Amount,
    Count,
    Depths,
    ImageSize,
    Positive,
    Share,
    Size,
    Sizes,
)
from vitreous.catalog.card import Card
from vitreous.errors import CheckpointError, ModelError
from vitreous.layers import backbone
from vitreous.layers.adapter import AdapterSeam
from vitreous.layers.attention import AttentionCore
from vitreous.layers.backbone import Backbone, FeatureInfo, init_linear, linear_rates
from vitreous.layers.drop import DropPath
from vitreous.layers.mlp import Mlp
from vitreous.layers.reference import pair, refuse_eps, refuse_others, rename_keys, substitute
from vitreous.layers.scale import LayerScale
from vitreous.layers.windows import DistanceBias, resize_biases

CARD = Card(
    slug="efficientformer",
    title="EfficientFormer: Vision Transformers at MobileNet Speed",
    kind="model",
    summary="Pooling and convolutional feed-forwards on feature maps; attention only in the last "
    "blocks, on tokens.",
    when="Most accurate small architecture in the leaderboard, on both splits, and a good first "
    "choice for patches. Not faster per image than a plain ViT of equal multiply-adds on our CPU.",
    paper="arXiv 2206.01191, NeurIPS 2022",
    year=2022,
    source_licence="Snap's own terms (snap-research/EfficientFormer): re-implemented from the paper",
    tasks=["classify"],
    variants={
        "efficientformer_l1": {
            "dims": [48, 96, 224, 448],
            "depths": [3, 2, 6, 4],
            "attention_blocks": 1,
        },
        "efficientformer_l3": {
            "dims": [64, 128, 320, 512],
            "depths": [4, 4, 12, 6],
            "attention_blocks": 4,
        },
        "efficientformer_l7": {
            "dims": [96, 192, 384, 768],
            "depths": [6, 6, 18, 8],
            "attention_blocks": 8,
        },
        "efficientformer_test": {
            "dims": [8, 12, 16, 24],
            "depths": [1, 1, 1, 2],
            "attention_blocks": 1,
            "heads": 2,
            "key_dim": 8,
            "value_dim": 16,
            "mlp_ratio": 2.0,
        },
    },
    published=[
        {"variant": "efficientformer_l1", "parameters_m": 12.290, "gmacs": 1.3, "top1": 79.2},
        {
            "variant": "efficientformer_l1",
            "parameters_m": 11.841,
            "arguments": {"distilled": False},
        },
        {"variant": "efficientformer_l3", "parameters_m": 31.406, "gmacs": 3.9, "top1": 82.4},
        {
            "variant": "efficientformer_l3",
            "parameters_m": 30.893,
            "arguments": {"distilled": False},
        },
        {"variant": "efficientformer_l7", "parameters_m": 82.229, "gmacs": 10.2, "top1": 83.3},
        {
            "variant": "efficientformer_l7",
            "parameters_m": 81.460,
            "arguments": {"distilled": False},
        },
    ],
    recipe={
        "epochs": 300,
        "warmup_epochs": 5,
        "optimizer": "AdamW",
        "learning_rate": "1e-3 at batch 1024, cosine to 1e-5",
        "weight_decay": 0.025,
        "clip": "adaptive, 0.01",
        "augmentation": "RandAugment 9, mixup 0.8, cutmix 1.0, random erasing 0.25, label smoothing 0.1, repeated "
        "augmentation",
        "weight_average": 0.99996,
        "distillation": "hard, from RegNetY-16GF: half of the loss on the head, half on the distillation head",
    },
    claim="The accuracy of a transformer (79.2 % on ImageNet-1k, l1) at the latency of "
    "MobileNetV2 (1.6 ms on an iPhone 12).",
    miniature="CPU latency of l1 for one image vs a plain ViT of equal multiply-adds; and "
    "latency-driven slimming of a small supernet on handwritten digits vs a uniformly narrowed "
    "network of equal latency.",
    notes=[
        "Usage: With distillation, predictions average both heads; a training with a teacher "
        "(--distill) treats them apart. Published sizes include both heads.",
        "Usage: fuse folds batch norms into the convolutions before them, as is done for mobile "
        "deployment.",
        "Usage: LayerScale starts at 1e-5 (layer_scale).",
        "Image size: Attention biases are learned per head and offset, for the last feature map "
        "at image_size, rows and columns apart. On larger images, offsets beyond the largest known one share its bias; "
        "the reference only accepts 224 pixels.",
        "Image size: Strided 3 x 3 convolutions pad by one, so sizes are rounded up. Below 128 "
        "pixels the second, then also the first convolution of the stem loses its stride "
        "(stem_stride).",
        "Checkpoints: Checkpoints of timm load; its models always have both heads.",
        "Differs from the reference: attention_blocks=0 gives a pooling-only network whose map "
        "is flattened before the head; the reference never flattens it, and its head acts on the "
        "wrong axes.",
    ],
)


class Pooling(nn.Module):
    """The mean of the neighbours less the cell itself; what lies beyond the border does not count.

    Args:
        size: side of the neighbourhood, odd.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(size, stride=1, padding=size // 2, count_include_pad=False)

    def forward(self, x: Float[Tensor, "batch dim h w"]) -> Float[Tensor, "batch dim h w"]:
        """Mix neighbouring cells."""
        return self.pool(x) - x


class ConvMlp(nn.Module):
    """The feed-forward of a map: two convolutions of one cell, each with a batch norm.

    Args:
        dim: channels of input and output.
        hidden: channels between.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.norm1 = nn.BatchNorm2d(hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(hidden, dim, 1)
        self.norm2 = nn.BatchNorm2d(dim)

    def forward(self, x: Float[Tensor, "batch dim h w"]) -> Float[Tensor, "batch dim h w"]:
        """Apply both convolutions."""
        return self.norm2(self.fc2(self.act(self.norm1(self.fc1(x)))))


class MapBlock(nn.Module):
    """MB-4D: pooling and a feed-forward on a map (eq. 3).

    Args:
        dim: channels.
        mlp_ratio: hidden width of the feed-forward over the channels.
        pool_size: side of the pooled neighbourhood.
        layer_scale: first value of the branches' factors; None leaves them out.
        drop_path: stochastic depth.
    """

    def __init__(
        self,
        dim: int,
        mlp_ratio: float,
        pool_size: int,
        layer_scale: float | None,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.mixer = Pooling(pool_size)
        self.ls1 = _scale(dim, layer_scale, channels_first=True)
        self.mlp = ConvMlp(dim, int(dim * mlp_ratio))
        self.ls2 = _scale(dim, layer_scale, channels_first=True)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "batch dim h w"]) -> Float[Tensor, "batch dim h w"]:
        """Apply the block."""
        x = x + self.drop_path(self.ls1(self.mixer(x)))
        return x + self.drop_path(self.ls2(self.mlp(x)))


class Attention(nn.Module):
    """Multi-head self-attention with wide values and a bias by distance (eqs. 5 and 6).

    Args:
        dim: token width.
        heads: number of heads.
        key_dim: width of a head's queries and keys.
        value_dim: width of a head's values.
        grid: distances that the bias tells apart, each way, or down and across.
    """

    def __init__(
        self, dim: int, heads: int, key_dim: int, value_dim: int, grid: int | tuple[int, int]
    ) -> None:
        super().__init__()
        self.heads, self.widths = heads, [key_dim, key_dim, value_dim]
        self.qkv = nn.Linear(dim, heads * sum(self.widths))
        self.bias = DistanceBias(grid, heads)
        self.core = AttentionCore()
        self.proj = nn.Linear(heads * value_dim, dim)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], height: int, width: int
    ) -> Float[Tensor, "batch tokens dim"]:
        """Attend among the cells of a ``height x width`` map, which are the tokens row by row."""
        qkv = rearrange(self.qkv(x), "b n (g d) -> b g n d", g=self.heads)
        query, key, value = qkv.split(self.widths, -1)
        bias = self.bias(height, width).to(query.dtype)
        mixed = self.core(query, key, value, bias, (height, width))
        return self.proj(rearrange(mixed, "b g n d -> b n (g d)"))


class TokenBlock(nn.Module):
    """MB-3D: attention and a feed-forward on tokens, each on a normalised branch (eq. 4).

    Args:
        dim: token width.
        attention: the mixer.
        mlp_ratio: hidden width of the feed-forward over the token width.
        layer_scale: first value of the branches' factors; None leaves them out.
        drop_path: stochastic depth.
    """

    def __init__(
        self,
        dim: int,
        attention: Attention,
        mlp_ratio: float,
        layer_scale: float | None,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.mixer = attention
        self.ls1 = _scale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.adapter = AdapterSeam(dim)
        self.ls2 = _scale(dim, layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], height: int, width: int
    ) -> Float[Tensor, "batch tokens dim"]:
        """Apply the block to the cells of a ``height x width`` map."""
        x = x + self.drop_path(self.ls1(self.mixer(self.norm1(x), height, width)))
        return x + self.adapter(x, self.drop_path(self.ls2(self.mlp(self.norm2(x)))))


class EfficientFormer(Backbone):
    """EfficientFormer (arXiv 2206.01191, fig. 3): three stages and a part of the fourth on maps, the rest on tokens.

    Args:
        bands: channels of the input.
        num_classes: classes.
        image_size: side of the image in pixels, or height and width; it decides how many distances the attention tells apart. Other sizes
            are accepted too; sizes that do not divide are padded, so each map's side is rounded up.
        dims: channels of each of the four stages.
        depths: blocks of each stage.
        attention_blocks: how many of the last stage's blocks, its last ones, work on tokens.
        mlp_ratio: hidden width of the feed-forwards over the channels.
        heads: attention heads, whatever the width.
        key_dim: width of a head's queries and keys.
        value_dim: width of a head's values.
        pool_size: side of the pooled neighbourhood, odd.
        layer_scale: first value of LayerScale; None leaves it out.
        distilled: add a second head that learns from a teacher.
        stem_stride: stride of the stem, 4 (two convolutions of stride 2), 2 or 1; 4, or less on small images.
        drop_path: stochastic depth of the last block, growing linearly from 0.

    Raises:
        ModelError: not four stages, more attention blocks than the last stage has, an even neighbourhood, or a
            stride that two convolutions cannot have.
    """

    classifiers = ("head", "distillation_head")
    any_size = True
    band_parameters = ("patch_embed.0.weight",)

    def __init__(
        self,
        bands: int,
        num_classes: int,
        image_size: ImageSize = 224,
        *,
        dims: Sizes = (48, 96, 224, 448),
        depths: Depths = (3, 2, 6, 4),
        attention_blocks: Count = 1,
        mlp_ratio: Positive = 4.0,
        heads: Size = 8,
        key_dim: Size = 32,
        value_dim: Size = 128,
        pool_size: Size = 3,
        layer_scale: Amount | None = 1e-5,
        distilled: bool = True,
        stem_stride: Size | None = None,
        drop_path: Share = 0.0,
    ) -> None:
        super().__init__(bands, num_classes, image_size)
        stride = stem_stride or backbone.stem_stride(image_size, 4, 8)
        _check(dims, depths, attention_blocks, pool_size, stride)
        self.num_features = dims[-1]
        self.feature_info = [FeatureInfo(dim, stride * 2**k) for k, dim in enumerate(dims)]
        height, width = self.size
        self.grid = (-(-height // (8 * stride)), -(-width // (8 * stride)))
        self.patch_embed = nn.Sequential(
            *_down(bands, dims[0] // 2, 2 if stride > 1 else 1),
            nn.ReLU(),
            *_down(dims[0] // 2, dims[0], 2 if stride > 2 else 1),
            nn.ReLU(),
        )
        self.downs = nn.ModuleList([nn.Identity()])
        self.downs.extend(_down(before, dim, 2) for before, dim in itertools.pairwise(dims))
        rates = iter(linear_rates(drop_path, sum(depths)))
        map_depths = [*depths[:3], depths[3] - attention_blocks]
        self.stages = nn.ModuleList(
            nn.ModuleList(
                MapBlock(dim, mlp_ratio, pool_size, layer_scale, next(rates)) for _ in range(depth)
            )
            for dim, depth in zip(dims, map_depths, strict=True)
        )
        self.token_blocks = nn.ModuleList(
            TokenBlock(
                dims[-1],
                Attention(dims[-1], heads, key_dim, value_dim, self.grid),
                mlp_ratio,
                layer_scale,
                next(rates),
            )
            for _ in range(attention_blocks)
        )
        self.norm = nn.LayerNorm(dims[-1])
        self.head = self.make_head(num_classes)
        self.distillation_head = self.make_head(num_classes) if distilled else None
        self._init_weights()

    def _init_weights(self) -> None:
        init_linear(self)
        for module in self.stages.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def _maps(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> list[Float[Tensor, "batch dim h w"]]:
        """Return the map behind each stage; the last one's attention is yet to come."""
        maps = []
        # Channels-last memory: a sixth to a third faster, and the flattening is a change of view.
        x = self.patch_embed(x.contiguous(memory_format=torch.channels_last))
        for down, stage in zip(self.downs, self.stages, strict=True):
            x = down(x)
            assert isinstance(stage, nn.ModuleList)
            for block in stage:
                x = self.run(block, x)
            maps.append(x)
        return maps

    def _attend(self, x: Float[Tensor, "batch dim h w"]) -> Float[Tensor, "batch tokens dim"]:
        height, width = x.shape[2], x.shape[3]
        tokens = rearrange(x, "b d h w -> b (h w) d")  # the one reshape
        for block in self.token_blocks:
            tokens = self.run(block, tokens, height, width)
        return self.norm(tokens)

    def forward_features(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Return the normalised tokens of the last stage, row by row."""
        return self._attend(self._maps(x)[-1])

    def forward_heads(
        self, features: Float[Tensor, "batch tokens dim"]
    ) -> list[Float[Tensor, "batch classes"]]:
        """Return the scores of the head and, where there is one, of the distillation head."""
        pooled = features.mean(1)
        heads = (self.head, self.distillation_head)
        return [head(pooled) for head in heads if head is not None]

    def forward_head(
        self, features: Float[Tensor, "batch tokens dim"]
    ) -> Any:  # Float[Tensor, "batch classes"] or Heads
        """Classify the mean token; with two heads, the mean of both (see ``distilling``)."""
        scores = self.forward_heads(features)
        return scores[0] if len(scores) == 1 else self.join_heads(*scores)

    def level_maps(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> list[Float[Tensor, "batch dim h w"]]:
        """Return the map behind each stage, the last normalised; heights and widths are rounded up."""
        *maps, last = self._maps(x)
        return [*maps, rearrange(self._attend(last), "b (h w) d -> b d h w", h=last.shape[2])]


def _scale(dim: int, first: float | None, channels_first: bool = False) -> nn.Module:
    return nn.Identity() if first is None else LayerScale(dim, first, channels_first)


def _down(before: int, after: int, stride: int) -> nn.Sequential:
    """Return a convolution of 3 x 3 and its batch norm."""
    conv = nn.Conv2d(before, after, 3, stride=stride, padding=1)
    return nn.Sequential(conv, nn.BatchNorm2d(after))


def _check(
    dims: Sequence[int], depths: Sequence[int], attention_blocks: int, pool_size: int, stride: int
) -> None:
    if len(dims) != 4 or len(depths) != 4:
        raise ModelError(
            f"efficientformer has four stages, not {len(dims)} widths and {len(depths)} depths.",
            "Give four of each.",
        )
    if not 0 <= attention_blocks <= depths[3]:
        raise ModelError(
            f"efficientformer's last stage has {depths[3]} blocks, not {attention_blocks} for attention.",
            "Give fewer attention_blocks, or a deeper last stage.",
        )
    if pool_size % 2 == 0:
        raise ModelError(
            f"efficientformer cannot centre a neighbourhood of {pool_size} cells.",
            "Give an odd pool_size.",
        )
    if stride not in {1, 2, 4}:
        raise ModelError(
            f"efficientformer's stem of two convolutions cannot have a stride of {stride}.",
            "Give a stem_stride of 1, 2 or 4.",
        )


build = EfficientFormer


@torch.no_grad()
def fuse(model: EfficientFormer) -> EfficientFormer:
    """Fold every batch norm into its convolution, in place; only for prediction.

    Args:
        model: in eval mode.

    Raises:
        ModelError: the model is in training mode, where the statistics still change.
    """
    if model.training:
        raise ModelError("Batch norms cannot be folded in training mode.", "Call eval() first.")
    for module in model.modules():
        for conv, norm in itertools.pairwise([name for name, _ in module.named_children()]):
            if isinstance(getattr(module, norm), nn.BatchNorm2d):
                fused = nn.utils.fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm))
                setattr(module, conv, fused)
                setattr(module, norm, nn.Identity())
    return model


LAYOUTS = {
    "timm's EfficientFormer": (
        r"^stem\.conv1\.weight$",
        r"^stages\.\d+\.blocks\.\d+\.ls2\.gamma$",
        r"!\.token_mixer\.(q|stride_conv)\.",
    ),
    "the authors' EfficientFormer": (
        r"^network\.0\.0\.mlp\.fc1\.weight$",
        r"^patch_embed\.0\.weight$",
        r"^norm\.weight$",
    ),
}
_STEM = {"conv1": 0, "norm1": 1, "conv2": 3, "norm2": 4}
_NAMES = (
    # timm's
    (r"^stem\.(conv[12]|norm[12])\.", lambda found: f"patch_embed.{_STEM[found[1]]}."),
    (
        r"^stages\.(\d+)\.downsample\.(conv|norm)\.",
        lambda found: f"downs.{found[1]}.{int(found[2] == 'norm')}.",
    ),
    (r"^stages\.(\d+)\.blocks\.", r"stages.\1."),
    (r"^head_dist\.", "distillation_head."),
    # the authors'
    (
        r"^network\.(\d+)\.(proj|norm)\.",
        lambda found: f"downs.{int(found[1]) // 2 + 1}.{int(found[2] == 'norm')}.",
    ),
    (r"^network\.(\d+)\.", lambda found: f"stages.{int(found[1]) // 2}."),
    (r"^dist_head\.", "distillation_head."),
    (r"\.layer_scale_([12])$", r".ls\1.gamma"),
    # both
    (r"\.token_mixer\.attention_biases$", ".mixer.bias.table"),
    (r"\.token_mixer\.", ".mixer."),
)


def rename(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give weights in the authors' layout or in timm's our names."""
    learned = {
        key: value.T.contiguous() if key.endswith("attention_biases") and value.ndim == 2 else value
        for key, value in state_dict.items()
        if not key.endswith("attention_bias_idxs")
    }
    # In the last stage, the flattening has a number too; the tokens' blocks follow it.
    numbers = (
        re.match(r"(?:network\.6|stages\.3\.blocks)\.(\d+)\.token_mixer\.", key) for key in learned
    )
    first = min((int(found[1]) for found in numbers if found), default=math.inf)

    def token_block(found: re.Match[str]) -> str:
        number = int(found[1])
        return found[0] if number < first else f"token_blocks.{number - int(first)}."

    rules = (*_NAMES, (r"^stages\.3\.(\d+)\.", token_block))
    return rename_keys(learned, partial(substitute, rules))


def read_settings(
    weights: Mapping[str, Tensor], image_size: ImageSize | None = None
) -> dict[str, Any]:
    """Return what weights under our names say about options that a variant leaves open."""
    return {"distilled": "distillation_head.weight" in weights}


def resize(
    state_dict: Mapping[str, Tensor], model: EfficientFormer, source: EfficientFormer | None = None
) -> dict[str, Tensor]:
    """Give the biases by distance the model's distances: dropped where too many, the last repeated where too few.

    Distances count cells, whose size in pixels stays; so nothing changes on images of the size that the weights were
    learned on.
    """
    return resize_biases(state_dict, model, source)


# Values of arguments of the authors or of timm that change nothing, or that ours has.
_OFFERED: dict[str, tuple[Any, ...]] = {
    "down_patch_size": (3,),
    "down_stride": (2,),
    "down_pad": (1,),
    "fork_feat": (False,),
    "downsamples": (None, (True,) * 4, (False, True, True, True)),
    "global_pool": ("avg",),
    "act_layer": ("gelu", nn.GELU),
}


def from_reference(state_dict: Mapping[str, Tensor], kwargs: Mapping[str, Any]) -> EfficientFormer:
    """Build the model from the arguments of the authors' or timm's EfficientFormer and load their weights.

    Their attention has its shape written in its code, so it is read from the weights; the image's size follows. Of maps
    that are not square, the number of biases does not tell rows from columns: give ``resolution``, as their attention
    is given, or ``img_size``. timm calls ``depths`` and ``num_vit`` what the authors call ``layers`` and ``vit_num``, and always has both heads.

    Raises:
        ModelError: an argument that no published variant has and that we do not offer.
        CheckpointError: attention biases of an impossible shape.
    """
    refuse_others("efficientformer", kwargs, _OFFERED)
    refuse_eps("efficientformer", kwargs, 1e-5)
    attention = _attention_shape(state_dict, kwargs)
    rows, columns = attention.pop("grid")
    stem = "stem.conv1.weight" if "stem.conv1.weight" in state_dict else "patch_embed.0.weight"
    scaled = kwargs.get("use_layer_scale", True)
    model = EfficientFormer(
        bands=state_dict[stem].shape[1],
        num_classes=kwargs.get("num_classes", 1000),
        image_size=(32 * rows, 32 * columns),
        dims=kwargs.get("embed_dims", (48, 96, 224, 448)),
        depths=kwargs.get("depths", kwargs.get("layers", (3, 2, 6, 4))),
        attention_blocks=kwargs.get("num_vit", kwargs.get("vit_num", 0)),
        mlp_ratio=kwargs.get("mlp_ratios", 4),
        pool_size=kwargs.get("pool_size", 3),
        layer_scale=kwargs.get("layer_scale_init_value", 1e-5) if scaled else None,
        distilled=kwargs.get("distillation", True),
        stem_stride=4,
        drop_path=kwargs.get("drop_path_rate", 0.0),
        **attention,
    )
    model.load_state_dict(rename(state_dict))
    return model


def _stated_grid(kwargs: Mapping[str, Any]) -> tuple[int, int]:
    """Return the rows and columns of the last map that arguments tell, of published images where they tell none."""
    if "resolution" in kwargs:
        return pair(kwargs["resolution"])
    height, width = pair(kwargs.get("img_size", 224))
    return -(-height // 32), -(-width // 32)


def _attention_shape(state_dict: Mapping[str, Tensor], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return heads, widths and distances of the attention from its weights."""
    stated = _stated_grid(kwargs)
    prefix = next((k.removesuffix("qkv.weight") for k in state_dict if "mixer.qkv.w" in k), None)
    if prefix is None:
        return {"grid": stated}
    biases = state_dict[f"{prefix}attention_biases"]
    cells = biases.shape[-1] if biases.ndim == 2 else 0
    grid = stated if math.prod(stated) == cells else (math.isqrt(cells), math.isqrt(cells))
    if not cells or math.prod(grid) != cells or not biases.shape[0]:
        raise CheckpointError(
            f"{prefix}attention_biases has the shape {tuple(biases.shape)}, expected (heads, rows * columns) of a "
            f"square map or of {stated[0]} x {stated[1]} cells.",
            "The file is damaged or belongs to another model; of oblong maps, give resolution=(rows, columns).",
        )
    heads = biases.shape[0]
    value = state_dict[f"{prefix}proj.weight"].shape[1] // heads
    key = (state_dict[f"{prefix}qkv.weight"].shape[0] // heads - value) // 2
    return {"heads": heads, "key_dim": key, "value_dim": value, "grid": grid}
