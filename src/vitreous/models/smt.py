"""SMT: maps are modulated by convolutions of several sizes first, by attention later, and by both in turn between."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.catalog.arguments import (
    Amount,
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
from vitreous.layers import backbone
from vitreous.layers.adapter import AdapterSeam
from vitreous.layers.backbone import Backbone, FeatureInfo, init_linear, linear_rates
from vitreous.layers.convmix import ConvMlp, Reduce
from vitreous.layers.drop import DropPath
from vitreous.layers.reference import join, norm_eps, refuse_others, rename_keys, substitute
from vitreous.layers.scale import LayerScale
from vitreous.layers.transformer import Attention

CARD = Card(
    slug="smt",
    title="Scale-Aware Modulation Meet Transformer",
    kind="model",
    summary="A pyramid whose early blocks multiply values by depthwise convolutions of several "
    "kernel sizes, and whose late blocks use attention.",
    when="A pyramid for images of varying size, dense maps included: the cost of its fine maps "
    "grows with their cells, not with the square of them.",
    paper="arXiv 2307.08579 (ICCV 2023)",
    year=2023,
    source_licence="MIT (AFeng-x/SMT): re-implemented from the equations",
    tasks=["classify"],
    variants={
        "smt_tiny": {
            "dims": [64, 128, 256, 512],
            "depths": [2, 2, 8, 1],
            "mlp_ratios": [4.0, 4.0, 4.0, 2.0],
            "drop_path": 0.1,
        },
        "smt_small": {
            "dims": [64, 128, 256, 512],
            "depths": [3, 4, 18, 2],
            "mlp_ratios": [4.0, 4.0, 4.0, 2.0],
            "drop_path": 0.2,
        },
        "smt_base": {
            "dims": [64, 128, 256, 512],
            "depths": [4, 6, 28, 2],
            "mlp_ratios": [8.0, 6.0, 4.0, 2.0],
            "stem_kernel": 7,
            "drop_path": 0.3,
        },
        "smt_large": {
            "dims": [96, 192, 384, 768],
            "depths": [4, 6, 28, 4],
            "mlp_ratios": [8.0, 6.0, 4.0, 2.0],
            "attention_heads": [1, 1, 8, 16],
            "stem_kernel": 7,
            "layer_scale": 1e-4,
            "drop_path": 0.1,
        },
        "smt_test": {
            "dims": [8, 8, 16, 16],
            "depths": [1, 1, 2, 1],
            "mlp_ratios": [2.0, 2.0, 2.0, 2.0],
            "modulation_heads": [2, 2, 4, 1],
            "attention_heads": [1, 1, 2, 2],
            "layer_scale": 1e-4,
        },
    },
    published=[
        {"variant": "smt_tiny", "parameters_m": 11.51, "gmacs": 2.46, "top1": 82.2},
        {"variant": "smt_small", "parameters_m": 22.55, "gmacs": 4.84, "top1": 83.7},
        {"variant": "smt_base", "parameters_m": 32.04, "gmacs": 7.97, "top1": 84.3},
        {
            "variant": "smt_large",
            "parameters_m": 80.59,
            "gmacs": 17.91,
            "top1_from_22k": 87.1,
        },
        {
            "variant": "smt_large",
            "image_size": 384,
            "parameters_m": 80.59,
            "gmacs": 55.06,
            "top1_from_22k": 88.1,
        },
    ],
    recipe={
        "optimizer": "AdamW",
        "epochs": 300,
        "learning_rate": "1e-3 x batch size / 512",
        "schedule": "cosine to 1e-6, 5 epochs warm-up from 1e-7",
        "weight_decay": 0.05,
        "clip": 5.0,
        "augmentation": "RandAugment m9, jitter 0.4, erasing 0.25, mixup 0.2, cutmix 1, label smoothing 0.1",
    },
    claim="T reaches 82.2 % ImageNet top-1 with 11.5 M parameters; B 84.3 % with 32 M and 7.7 G "
    "multiply-adds, Swin-B 83.5 % with 88 M and 15.4 G. Kernels of several sizes, their "
    "aggregation and the order of the blocks each help.",
    miniature="Indian Pines, two stages at 24 x 24 and 12 x 12 cells. Required: at most 0.3 points "
    "below kernels of one size, at least as accurate as attention only, at fewer multiply-adds.",
    notes=[
        "Usage: In an alternating stage, even blocks (from 0) modulate and odd ones attend.",
        "Usage: The claim is measured on Indian Pines; Salinas and Pavia University are not available here.",
        "Image size: The stem's stride of 4 shrinks on small images (stem_stride), the second "
        "convolution's stride first. Its kernel of 2 x 2 then sees a row and a column of zeros "
        "below and on the right, so that no cell is lost; at stride 4 it leaves out an odd last "
        "row or column, as the reference does. Later maps round up.",
        "Checkpoints: The authors' checkpoints load, of maps of any size.",
        "As in the reference: Values are convolved in their order of heads and channels, and the "
        "result is added to what attention gives, before the projection.",
        "As in the reference: LayerNorm behind stem and reductions has an eps of 1e-5, all others of 1e-6.",
        "Differs from the reference: The last modulator is not kept on the module, which would "
        "hold its memory. Widths that their heads do not divide are refused.",
        "Published figures: gmacs and parameters are those of the authors' code; their README "
        "rounds S to 21 M (22.55 M) and counts 2.4, 4.7, 7.7, 17.6 and 51.6 G.",
        "Published figures: Paper and code disagree on mixup (0.8 and 0.2).",
    ],
)

MIXERS = ("modulation", "alternate", "attention")


class Modulation(nn.Module):
    """Scale-aware modulation (section 3.1): values times what convolutions of growing size see, aggregated.

    Args:
        dim: channels.
        heads: parts of the channels, each with a kernel of its own.
        kernel_step: by how much kernels grow from head to head; the first is 3 x 3.
        expand: width between the aggregation's two convolutions, over the channels; 0 leaves the aggregation out.
        bias: give the linear maps of values and of what is convolved a bias.
    """

    def __init__(self, dim: int, heads: int, kernel_step: int, expand: int, bias: bool) -> None:
        super().__init__()
        self.value = nn.Linear(dim, dim, bias=bias)
        self.source = nn.Linear(dim, dim, bias=bias)
        width = dim // heads
        sides = [3 + kernel_step * head for head in range(heads)]
        self.heads = nn.ModuleList(
            nn.Conv2d(width, width, side, padding=side // 2, groups=width) for side in sides
        )
        # A group holds one channel of each head.
        self.aggregate = (
            nn.Sequential(
                nn.Conv2d(dim, expand * dim, 1, groups=width),
                nn.BatchNorm2d(expand * dim),
                nn.GELU(),
                nn.Conv2d(expand * dim, dim, 1),
            )
            if expand
            else nn.Identity()
        )
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "batch h w dim"]) -> Float[Tensor, "batch h w dim"]:
        """Modulate."""
        return self.proj(self.modulator(x) * self.value(x))

    def modulator(self, x: Float[Tensor, "batch h w dim"]) -> Float[Tensor, "batch h w dim"]:
        """Return what values are multiplied by."""
        parts = self.source(x).permute(0, 3, 1, 2).chunk(len(self.heads), 1)
        seen = [conv(part) for conv, part in zip(self.heads, parts, strict=True)]
        # Channels last: channel c of head m becomes channel c * heads + m.
        mixed = torch.stack([part.permute(0, 2, 3, 1) for part in seen], -1).flatten(-2)
        return self.aggregate(mixed.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class LocalAttention(Attention):
    """Self-attention among all cells of a map, and a depthwise convolution of the values beside it.

    Args:
        dim: channels.
        heads: number of heads.
        bias: give queries, keys and values a bias.
        scale: factor of the scores; head width^-0.5 where not given.
    """

    def __init__(self, dim: int, heads: int, bias: bool, scale: float | None) -> None:
        super().__init__(dim, heads, bias, scale)
        self.local = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(  # type: ignore[override]  # a map instead of tokens
        self, x: Float[Tensor, "batch h w dim"]
    ) -> Float[Tensor, "batch h w dim"]:
        """Attend."""
        size = (x.shape[1], x.shape[2])
        query, key, value = self.project(x.flatten(1, 2))
        mixed = self.core(query, key, value, grid=size)
        both = (rearrange(part, "b g (h w) d -> b h w (g d)", h=size[0]) for part in (mixed, value))
        mixed, values = both
        local = self.local(values.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.proj(mixed + local)


class Block(nn.Module):
    """Mixer and feed-forward, each on a normalised residual branch.

    Args:
        dim: channels.
        mixer: among the cells.
        hidden: channels inside the feed-forward.
        layer_scale: first value of the branches' factors; None leaves them out.
        drop_path: stochastic depth.
        eps: of the norms.
    """

    def __init__(
        self,
        dim: int,
        mixer: nn.Module,
        hidden: int,
        layer_scale: float | None,
        drop_path: float,
        eps: float,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps)
        self.mixer = mixer
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps)
        self.mlp = ConvMlp(dim, hidden, residual=True)
        self.adapter = AdapterSeam(dim)
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "batch h w dim"]) -> Float[Tensor, "batch h w dim"]:
        """Apply both branches."""
        x = x + self.drop_path(self.ls1(self.mixer(self.norm1(x))))
        return x + self.adapter(x, self.drop_path(self.ls2(self.mlp(self.norm2(x)))))


class Stem(nn.Module):
    """Two convolutions, each with a stride of 2 or 1, and a norm.

    Args:
        bands: channels of the image.
        dim: channels of the map.
        kernel: side of the first kernel.
        stride: of both together: 4, 2 or 1.
    """

    def __init__(self, bands: int, dim: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.pixels = nn.Conv2d(bands, dim, kernel, min(stride, 2), padding=kernel // 2, bias=False)
        self.hidden = nn.Sequential(nn.BatchNorm2d(dim), nn.ReLU())
        self.padding = 0 if stride == 4 else 1
        self.reduce = nn.Conv2d(dim, dim, 2, max(stride // 2, 1))
        self.norm = nn.LayerNorm(dim)  # its eps is 1e-5 also where the blocks' is not

    def forward(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> Float[Tensor, "batch h w dim"]:
        """Return the map."""
        hidden = F.pad(self.hidden(self.pixels(x)), (0, self.padding, 0, self.padding))
        return self.norm(self.reduce(hidden).permute(0, 2, 3, 1))


class SMT(Backbone):
    """Scale-aware modulation transformer (arXiv 2307.08579).

    Args:
        bands: channels of the input.
        num_classes: classes.
        image_size: side of the image in pixels, or height and width; decides the stem's stride. Other sizes are accepted too.
        dims: channels of each stage.
        depths: blocks of each stage.
        mlp_ratios: hidden width of the feed-forwards over the channels, of each stage.
        mixers: of each stage: ``modulation``, ``attention``, or ``alternate``, which begins with modulation; where not
            given, the last two stages alternate and attend, all others modulate.
        modulation_heads: kernels that the channels are divided among, of each stage; 4 where not given.
        attention_heads: attention heads of each stage; a head per 32 channels where not given.
        kernel_step: by how much kernels grow from head to head, even; the first is 3 x 3.
        expand: width between the two convolutions of the aggregation, over the channels; 0 leaves the aggregation out.
        qkv_bias: give the linear maps before modulation and attention a bias.
        qk_scale: factor of the attention's scores; head width^-0.5 where not given.
        layer_scale: first value of the residual branches' factors; None leaves them out.
        stem_kernel: side of the stem's first kernel, 3 or 7.
        stem_stride: stride of the stem, 4, 2 or 1; 4, or on small images what leaves 4 x 4 cells on the last map.
        drop_path: stochastic depth of the last block, growing linearly from 0.
        norm_eps: of the norms in and after the blocks.

    Raises:
        ModelError: lists of different lengths, heads that do not divide their width, an unknown mixer, or a kernel or
            stride that the stem cannot have.
    """

    any_size = True
    band_parameters = ("embeds.0.pixels.weight",)

    def __init__(
        self,
        bands: int,
        num_classes: int,
        image_size: ImageSize = 224,
        *,
        dims: Sizes = (64, 128, 256, 512),
        depths: Depths = (2, 2, 8, 1),
        mlp_ratios: Positives = (4.0, 4.0, 4.0, 2.0),
        mixers: Sequence[str] | None = None,
        modulation_heads: Sizes | None = None,
        attention_heads: Sizes | None = None,
        kernel_step: Count = 2,
        expand: Count = 2,
        qkv_bias: bool = True,
        qk_scale: Positive | None = None,
        layer_scale: Amount | None = None,
        stem_kernel: Size = 3,
        stem_stride: Size | None = None,
        drop_path: Share = 0.0,
        norm_eps: Positive = 1e-6,
    ) -> None:
        super().__init__(bands, num_classes, image_size)
        stages = len(dims)
        published = ["modulation", "modulation", "alternate", "attention"]
        mixers = list(mixers or ["modulation"] * (stages - 4) + published[-stages:])
        modulation_heads = modulation_heads or [4] * stages
        attention_heads = attention_heads or [max(dim // 32, 1) for dim in dims]
        stride = stem_stride or backbone.stem_stride(image_size, 4, later=2 ** (stages - 1))
        _check_stages(dims, depths, mlp_ratios, mixers, modulation_heads, attention_heads)
        _check_convolutions(kernel_step, stem_kernel, stride)
        self.num_features = dims[-1]
        self.least_size = 3 if stride == 4 else 1
        self.check_size(*self.size)
        self.feature_info = [FeatureInfo(dim, stride * 2**stage) for stage, dim in enumerate(dims)]
        reductions = [Reduce(before, dim) for before, dim in itertools.pairwise(dims)]
        self.embeds = nn.ModuleList([Stem(bands, dims[0], stem_kernel, stride), *reductions])
        rates = iter(linear_rates(drop_path, sum(depths)))
        self.stages = nn.ModuleList()
        for stage, dim in enumerate(dims):
            modulate: Callable[[], nn.Module] = partial(
                Modulation, dim, modulation_heads[stage], kernel_step, expand, qkv_bias
            )
            attend: Callable[[], nn.Module] = partial(
                LocalAttention, dim, attention_heads[stage], qkv_bias, qk_scale
            )
            makers = {
                "modulation": (modulate, modulate),
                "alternate": (modulate, attend),
                "attention": (attend, attend),
            }[mixers[stage]]
            hidden = int(dim * mlp_ratios[stage])
            self.stages.append(
                nn.ModuleList(
                    Block(dim, makers[at % 2](), hidden, layer_scale, next(rates), norm_eps)
                    for at in range(depths[stage])
                )
            )
        self.norms = nn.ModuleList(nn.LayerNorm(dim, norm_eps) for dim in dims)
        self.head = self.make_head(num_classes)
        self._init_weights()

    def _init_weights(self) -> None:
        init_linear(self)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                fan_out = part.kernel_size[0] ** 2 * part.out_channels // part.groups
                nn.init.normal_(part.weight, std=(2 / fan_out) ** 0.5)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)

    def forward_features(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> Float[Tensor, "batch dim h w"]:
        """Return the last stage's map, normalised."""
        return self.level_maps(x)[-1]

    def forward_head(
        self, features: Float[Tensor, "batch dim h w"]
    ) -> Float[Tensor, "batch classes"]:
        """Classify the mean of the cells."""
        return self.head(features.mean((2, 3)))

    def level_maps(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> list[Float[Tensor, "batch dim h w"]]:
        """Return the normalised map of each stage."""
        levels = []
        for embed, blocks, norm in zip(self.embeds, self.stages, self.norms, strict=True):
            x = embed(x)
            for block in blocks.children():
                x = self.run(block, x)
            x = norm(x)
            levels.append(x.permute(0, 3, 1, 2))
        return levels


def _check_stages(
    dims: Sequence[int],
    depths: Sequence[int],
    mlp_ratios: Sequence[float],
    mixers: Sequence[str],
    modulation_heads: Sequence[int],
    attention_heads: Sequence[int],
) -> None:
    lists = (dims, depths, mlp_ratios, mixers, modulation_heads, attention_heads)
    if len(set(map(len, lists))) > 1:
        raise ModelError(
            f"smt has settings of stages of different lengths: {', '.join(str(len(one)) for one in lists)}.",
            "Give one value per stage in dims, depths, mlp_ratios, mixers, modulation_heads and attention_heads.",
        )
    for dim, mixer, *heads in zip(dims, mixers, modulation_heads, attention_heads, strict=True):
        if mixer not in MIXERS:
            raise ModelError(f"smt has no mixer '{mixer}'.", f"Choose {', '.join(MIXERS)}.")
        used = {"modulation": heads[:1], "alternate": heads, "attention": heads[1:]}[mixer]
        for count in used:
            if dim % count:
                raise ModelError(
                    f"smt has width {dim}, not divisible by {count} heads.",
                    "Change the width or the heads.",
                )


def _check_convolutions(kernel_step: int, stem_kernel: int, stride: int) -> None:
    if kernel_step % 2:
        raise ModelError(
            f"smt cannot centre kernels that grow by {kernel_step}.", "Give an even kernel_step."
        )
    if stem_kernel not in {3, 7}:
        raise ModelError(
            f"smt's stem has no kernel of {stem_kernel} x {stem_kernel}.",
            "Give a stem_kernel of 3 or 7.",
        )
    if stride not in {1, 2, 4}:
        raise ModelError(
            f"smt's stem of two convolutions cannot have a stride of {stride}.",
            "Give a stem_stride of 1, 2 or 4.",
        )


build = SMT

LAYOUTS = {
    "the authors' SMT": (r"^block1\.0\.attn\.(local_conv_1|local_conv)\.weight$",),
}
_NUMBERED = {"patch_embed": "embeds", "block": "stages", "norm": "norms"}  # from 1 there, 0 here
_STEM = {"0": "pixels", "1": "hidden.0", "3": "reduce"}
_NAMES = (
    (r"^patch_embed1\.conv\.(\d)\.", lambda found: f"embeds.0.{_STEM.get(found[1], found[1])}."),
    (
        r"^(patch_embed|block|norm)(\d+)\.",
        lambda found: f"{_NUMBERED[found[1]]}.{int(found[2]) - 1}.",
    ),
    (r"\.gamma_([12])$", r".ls\1.gamma"),
    (r"\.dwconv\.dwconv\.", ".dwconv."),
    (r"\.attn\.v\.", ".mixer.value."),
    (r"\.attn\.s\.", ".mixer.source."),
    (r"\.attn\.local_conv_(\d+)\.", lambda found: f".mixer.heads.{int(found[1]) - 1}."),
    (r"\.attn\.proj0\.", ".mixer.aggregate.0."),
    (r"\.attn\.bn\.", ".mixer.aggregate.1."),
    (r"\.attn\.proj1\.", ".mixer.aggregate.3."),
    (r"\.attn\.local_conv\.", ".mixer.local."),
    (r"\.attn\.", ".mixer."),
)


def rename(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give weights in the authors' layout our names, and join queries with their keys and values."""
    joined = join(state_dict, (".attn.q.", ".attn.kv."), ".attn.qkv.", (1, 2))
    return rename_keys(joined, partial(substitute, _NAMES))


def read_settings(
    weights: Mapping[str, Tensor], image_size: ImageSize | None = None
) -> dict[str, Any]:
    """Return what weights under our names say about options that a variant leaves open."""
    return {
        "layer_scale": 1e-4 if any(re.search(r"\.ls1\.gamma$", key) for key in weights) else None
    }


def from_reference(state_dict: Mapping[str, Tensor], kwargs: Mapping[str, Any]) -> SMT:
    """Build the model from the arguments of the authors' SMT and load their weights.

    Their heads may hold anything where a stage has none of the kind, usually -1.

    Raises:
        ModelError: an argument that we do not offer.
    """
    refuse_others("smt", kwargs, {"head_conv": (3, 7)})
    stages = kwargs.get("num_stages", 4)
    modulate = kwargs.get("ca_attentions", [1, 1, 1, 0])[:stages]
    mixers = [
        ("alternate" if stage == 2 else "modulation") if own == 1 else "attention"
        for stage, own in enumerate(modulate)
    ]
    model = SMT(
        bands=state_dict["patch_embed1.conv.0.weight"].shape[1],
        num_classes=kwargs.get("num_classes", 1000),
        image_size=kwargs.get("img_size", 224),
        dims=kwargs.get("embed_dims", [64, 128, 256, 512])[:stages],
        depths=kwargs.get("depths", [2, 2, 8, 1])[:stages],
        mlp_ratios=kwargs.get("mlp_ratios", [8, 6, 4, 2])[:stages],
        mixers=mixers,
        modulation_heads=kwargs.get("ca_num_heads", [4, 4, 4, -1])[:stages],
        attention_heads=kwargs.get("sa_num_heads", [-1, -1, 8, 16])[:stages],
        expand=kwargs.get("expand_ratio", 2),
        qkv_bias=kwargs.get(
            "qkv_bias", any(re.search(r"attn\.[vq]\.bias$", key) for key in state_dict)
        ),
        qk_scale=kwargs.get("qk_scale"),
        layer_scale=kwargs.get("layerscale_value", 1e-4) if kwargs.get("use_layerscale") else None,
        stem_kernel=kwargs.get("head_conv", 3),
        stem_stride=4,
        drop_path=kwargs.get("drop_path_rate", 0.0),
        norm_eps=norm_eps(kwargs, 1e-6),
    )
    model.load_state_dict(rename(state_dict))
    return model
