"""ConvNeXt: a convolutional network brought step by step to the design of a Swin Transformer."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.catalog.arguments import Amount, Depths, ImageSize, Positive, Share, Size, Sizes
from vitreous.catalog.card import Card
from vitreous.errors import ModelError
from vitreous.layers import backbone
from vitreous.layers.adapter import AdapterSeam
from vitreous.layers.backbone import Backbone, FeatureInfo, linear_rates
from vitreous.layers.channelnorm import ChannelNorm
from vitreous.layers.drop import DropPath
from vitreous.layers.mlp import Mlp
from vitreous.layers.pooling import TIMM_POOLS, check_pool, pool_cells
from vitreous.layers.reference import norm_eps, refuse_others, rename_keys, substitute
from vitreous.layers.scale import LayerScale

CARD = Card(
    slug="convnext",
    title="A ConvNet for the 2020s",
    kind="model",
    summary="Depthwise 7 x 7 convolution, LayerNorm and an inverted bottleneck per block; four "
    "stages, no attention.",
    when="First network to try for dense mapping: a small ConvNeXt in mode dense was the most "
    "accurate network on the fixed split and maps tens of times faster than patch by patch. Also "
    "the convolutional baseline for every transformer.",
    paper="arXiv 2201.03545, CVPR 2022",
    year=2022,
    source_licence="MIT (facebookresearch/ConvNeXt): re-implemented from the paper",
    tasks=["classify"],
    variants={
        "convnext_tiny": {"dims": [96, 192, 384, 768], "depths": [3, 3, 9, 3]},
        "convnext_small": {"dims": [96, 192, 384, 768], "depths": [3, 3, 27, 3]},
        "convnext_base": {"dims": [128, 256, 512, 1024], "depths": [3, 3, 27, 3]},
        "convnext_large": {"dims": [192, 384, 768, 1536], "depths": [3, 3, 27, 3]},
        "convnext_xlarge": {"dims": [256, 512, 1024, 2048], "depths": [3, 3, 27, 3]},
        "convnext_iso_small": {
            "dims": [384, 384, 384, 384],
            "depths": [4, 5, 4, 5],
            "isotropic": True,
            "layer_scale": None,
        },
        "convnext_iso_base": {
            "dims": [768, 768, 768, 768],
            "depths": [4, 5, 4, 5],
            "isotropic": True,
            "layer_scale": None,
        },
        "convnext_iso_large": {
            "dims": [1024, 1024, 1024, 1024],
            "depths": [9, 9, 9, 9],
            "isotropic": True,
            "layer_scale": None,
        },
        "convnext_test": {"dims": [8, 12, 16, 24], "depths": [1, 1, 2, 1]},
    },
    published=[
        {"variant": "convnext_tiny", "parameters_m": 28.589, "gmacs": 4.5, "top1": 82.1},
        {"variant": "convnext_small", "parameters_m": 50.224, "gmacs": 8.7, "top1": 83.1},
        {"variant": "convnext_base", "parameters_m": 88.591, "gmacs": 15.4, "top1": 83.8},
        {"variant": "convnext_base", "image_size": 384, "gmacs": 45.0, "top1": 85.1},
        {"variant": "convnext_large", "parameters_m": 197.767, "gmacs": 34.4, "top1": 84.3},
        {"variant": "convnext_large", "image_size": 384, "gmacs": 101.0, "top1": 85.5},
        {"variant": "convnext_xlarge", "parameters_m": 350.0, "gmacs": 60.9, "top1": 87.0},
        {"variant": "convnext_xlarge", "image_size": 384, "gmacs": 179.0, "top1": 87.8},
        {"variant": "convnext_iso_small", "parameters_m": 22.31, "gmacs": 4.3, "top1": 78.7},
        {"variant": "convnext_iso_base", "parameters_m": 87.08, "gmacs": 16.9, "top1": 82.0},
        {"variant": "convnext_iso_large", "parameters_m": 306.0, "gmacs": 59.7, "top1": 82.6},
    ],
    recipe={
        "epochs": 300,
        "warmup_epochs": 20,
        "optimizer": "AdamW",
        "learning_rate": "4e-3 at batch 4096",
        "schedule": "cosine",
        "weight_decay": "0.05, not on norms, biases and layer scale",
        "augmentation": "RandAugment 9/0.5, mixup 0.8, cutmix 1.0, random erasing 0.25, label smoothing 0.1",
        "drop_path": {"tiny": 0.1, "small": 0.4, "base": 0.5, "large": 0.5},
        "weight_average": 0.9999,
        "fine_tuning": "30 epochs, 5e-5 at batch 512, weight decay 1e-8, layer decay 0.7 to 0.9, head_scale 0.001",
    },
    claim="A pure convolutional network outperforms Swin at equal cost (ImageNet-1k, tiny: 82.1 "
    "vs 81.3 %).",
    miniature="Two-stage networks of about 100 k parameters on handwritten digits: ConvNeXt "
    "blocks vs shifted-window attention and ResNet bottlenecks, and 7 x 7 vs 3 x 3 kernels.",
    notes=[
        "Usage: LayerScale starts at 1e-6, so an untrained network is close to a stack of "
        "downsampling layers. For short training from scratch a larger layer_scale learns faster.",
        "Usage: Feature maps for dense heads are the outputs of the stages. The LayerNorm that "
        "the reference's detection backbone adds to each belongs to the dense head here.",
        "Image size: Below 128 pixels the stride of the stem shrinks from 4 (isotropic variants: "
        "from 16, below 64 pixels) so that 4 x 4 cells remain where possible (stem_stride).",
        "Image size: Every downsampling rounds down: rows and columns that do not fill a cell "
        "are dropped, as in the reference.",
        "Checkpoints: Checkpoints of timm load, with its feed-forwards as linear layers or as "
        "1 x 1 convolutions. Its overlapping stems, its norm before pooling and ConvNeXt V2 are "
        "refused.",
        "Differs from the reference: The isotropic variants have one stage in the paper. Here "
        "their blocks are split into four groups of equal width so that dense heads find four "
        "levels; the computation is identical.",
        "Published figures: Accuracies of xlarge include pre-training on ImageNet-22k, all "
        "others are ImageNet-1k only. The published GFLOPs are multiply-adds.",
    ],
)


class Block(nn.Module):
    """Depth-wise convolution, one norm, one feed-forward, one residual branch (fig. 4 of the paper).

    The point-wise part works on the last axis, which on channels-last memory is a change of view.

    Args:
        dim: channels.
        kernel: side of the depth-wise kernel, odd.
        mlp_ratio: hidden width of the feed-forward over the channels.
        layer_scale: first value of the branch's factors; None leaves them out.
        drop_path: stochastic depth.
        norm_eps: of the normalisation.
    """

    def __init__(
        self,
        dim: int,
        kernel: int,
        mlp_ratio: float,
        layer_scale: float | None,
        drop_path: float,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.adapter = AdapterSeam(dim)
        self.scale = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "batch dim h w"]) -> Float[Tensor, "batch dim h w"]:
        """Apply the block."""
        mixed = rearrange(self.conv(x), "b d h w -> b h w d")
        branch = self.drop_path(self.scale(self.mlp(self.norm(mixed))))
        return x + rearrange(self.adapter(mixed, branch), "b h w d -> b d h w")


class ConvNeXt(Backbone):
    """ConvNeXt (arXiv 2201.03545), hierarchical or isotropic (its section 3.3).

    Args:
        bands: channels of the input.
        num_classes: classes.
        image_size: side of the image in pixels, or height and width. Other sizes are accepted too; what does not fill a cell at the end is
            left out at every step.
        dims: channels of each stage.
        depths: blocks of each stage.
        kernel: side of the depth-wise kernels, odd; of all stages, or of each.
        mlp_ratio: hidden width of the feed-forwards over the channels.
        layer_scale: first value of LayerScale; None leaves it out.
        isotropic: patches of 16 pixels without a norm, and no down-sampling between the stages.
        stem_stride: side of the stem's patches in pixels; 4 (isotropic: 16), or less on small images.
        head_scale: factor of the classifier's first weights (fine-tuning starts from 0.001).
        drop_path: stochastic depth of the last block, growing linearly from 0.
        norm_eps: of the normalisations.
        pool: how the last map's cells become one vector: ``mean``, ``max``, or ``mean_max``, the mean of both.

    Raises:
        ModelError: an image too small for its last map, widths or depths that do not fit, or an even kernel.
    """

    any_size = True
    band_parameters = ("downs.0.0.weight",)

    def __init__(
        self,
        bands: int,
        num_classes: int,
        image_size: ImageSize = 224,
        *,
        dims: Sizes = (96, 192, 384, 768),
        depths: Depths = (3, 3, 9, 3),
        kernel: Size | Sizes = 7,
        mlp_ratio: Positive = 4.0,
        layer_scale: Amount | None = 1e-6,
        isotropic: bool = False,
        stem_stride: Size | None = None,
        head_scale: Amount = 1.0,
        drop_path: Share = 0.0,
        norm_eps: Positive = 1e-6,
        pool: str = "mean",
    ) -> None:
        super().__init__(bands, num_classes, image_size)
        kernels = [kernel] * len(dims) if isinstance(kernel, int) else list(kernel)
        _check(dims, depths, kernels, isotropic)
        check_pool("convnext", pool)
        self.pool = pool
        step = 1 if isotropic else 2
        later = step ** (len(dims) - 1)
        stride = stem_stride or backbone.stem_stride(image_size, 16 if isotropic else 4, later)
        self.num_features, self.head_scale = dims[-1], head_scale
        self.least_size = stride * later
        self.check_size(*self.size)
        self.feature_info = [FeatureInfo(dim, stride * step**k) for k, dim in enumerate(dims)]
        # The first "down-sampling" is the stem.
        norm = nn.Identity() if isotropic else ChannelNorm(dims[0], norm_eps)
        self.downs = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(bands, dims[0], stride, stride=stride), norm)]
        )
        for before, dim in itertools.pairwise(dims):
            between = nn.Sequential(
                ChannelNorm(before, norm_eps), nn.Conv2d(before, dim, 2, stride=2)
            )
            self.downs.append(nn.Identity() if isotropic else between)
        rates = iter(linear_rates(drop_path, sum(depths)))
        self.stages = nn.ModuleList(
            nn.ModuleList(
                Block(dim, side, mlp_ratio, layer_scale, next(rates), norm_eps)
                for _ in range(depth)
            )
            for dim, depth, side in zip(dims, depths, kernels, strict=True)
        )
        self.norm = nn.LayerNorm(dims[-1], eps=norm_eps)
        self.head = self.make_head(num_classes)
        self._init_weights()

    def _init_weights(self) -> None:
        for module in [*self.downs.modules(), *self.stages.modules()]:
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward_features(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> Float[Tensor, "batch dim h w"]:
        """Return the last stage's map."""
        return self.level_maps(x)[-1]

    def forward_head(self, features: Float[Tensor, "batch dim h w"]) -> Float[Tensor, "batch c"]:
        """Classify what all cells are pooled to, normalised: the norm follows the pooling."""
        return self.head(self.norm(pool_cells(features, self.pool, (2, 3))))

    def level_maps(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> list[Float[Tensor, "batch dim h w"]]:
        """Return the map behind each stage, not normalised; heights and widths are floored."""
        levels = []
        for down, stage in zip(self.downs, self.stages, strict=True):
            x = down(x)
            assert isinstance(stage, nn.ModuleList)
            for block in stage:
                x = self.run(block, x)
            levels.append(x)
        return levels


def _check(
    dims: Sequence[int], depths: Sequence[int], kernels: Sequence[int], isotropic: bool
) -> None:
    for count, what in ((len(dims), "widths"), (len(kernels), "kernels")):
        if count != len(depths) or not count:
            raise ModelError(
                f"convnext has {count} {what} for {len(depths)} depths.",
                "Give one of each for every stage.",
            )
    even = [kernel for kernel in kernels if kernel % 2 == 0]
    if even:
        raise ModelError(
            f"convnext cannot centre a kernel of {even[0]} cells.", "Give an odd kernel."
        )
    if isotropic and len(set(dims)) > 1:
        raise ModelError(
            f"An isotropic convnext has one width, not {list(dims)}.",
            "Give the same width for every stage in dims.",
        )


build = ConvNeXt

LAYOUTS = {
    "timm's ConvNeXt": (r"^stages\.\d+\.blocks\.\d+\.conv_dw\.weight$", r"^stem\.0\.", r"!\.grn\."),
    "the authors' ConvNeXt": (
        r"^downsample_layers\.0\.0\.weight$",
        r"^stages\.\d+\.\d+\.dwconv\.",
        r"!\.grn\.",
    ),
    "the authors' isotropic ConvNeXt": (r"^stem\.weight$", r"^blocks\.\d+\.dwconv\.", r"!\.grn\."),
}
_NAMES = (
    (r"^downsample_layers\.", "downs."),
    (r"^stages\.(\d+)\.downsample\.", r"downs.\1."),
    (r"^stem\.(?=\d)", "downs.0."),
    (r"^stem\.", "downs.0.0."),
    (r"^(stages\.\d+)\.blocks\.", r"\1."),
    (r"\.(?:dwconv|conv_dw)\.", ".conv."),
    (r"\.pwconv([12])\.", r".mlp.fc\1."),
    (r"\.gamma$", ".scale.gamma"),
    (r"^head\.norm\.", "norm."),
    (r"^head\.fc\.", "head."),
)


def rename(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give weights in the authors' layout, hierarchical or isotropic, or in timm's our names."""
    depth = sum(bool(re.fullmatch(r"blocks\.\d+\.dwconv\.weight", key)) for key in state_dict)
    places = [(stage, at) for stage, part in enumerate(_quarters(depth)) for at in range(part)]

    def place(found: re.Match[str]) -> str:
        number = int(found[1])
        stage, at = places[number] if number < depth else (len(places), number)
        return f"stages.{stage}.{at}."

    renamed = rename_keys(state_dict, partial(substitute, ((r"^blocks\.(\d+)\.", place), *_NAMES)))
    # timm's feed-forward may be two convolutions of one cell, which are linear layers.
    return {
        key: value[:, :, 0, 0]
        if ".mlp.fc" in key and value.ndim == 4 and value.shape[2:] == (1, 1)
        else value
        for key, value in renamed.items()
    }


def read_settings(
    weights: Mapping[str, Tensor], image_size: ImageSize | None = None
) -> dict[str, Any]:
    """Return what weights under our names say about options that a variant leaves open."""
    settings: dict[str, Any] = {}
    if "stages.0.0.norm.weight" in weights and "stages.0.0.scale.gamma" not in weights:
        settings["layer_scale"] = None
    return settings


def _quarters(depth: int) -> list[int]:
    """Return how many of an isotropic network's blocks lie in each of four parts, or fewer where it is that short."""
    parts = min(4, depth)
    ends = [depth * k // parts for k in range(parts + 1)] if parts else [0]
    return [end - start for start, end in itertools.pairwise(ends)]


# Values of timm's arguments that change nothing, or that ours has.
_OFFERED: dict[str, tuple[Any, ...]] = {
    "global_pool": tuple(TIMM_POOLS),
    "output_stride": (32,),
    "stem_type": ("patch",),
    "patch_size": (1, 3, 4),  # of others, timm halves the stages' maps elsewhere
    "head_norm_first": (False,),
    "head_hidden_size": (None,),
    "conv_bias": (True,),
    "use_grn": (False,),
    "act_layer": ("gelu", nn.GELU),
    "norm_layer": (None, "layernorm", "layernorm2d"),
}


def from_reference(state_dict: Mapping[str, Tensor], kwargs: Mapping[str, Any]) -> ConvNeXt:
    """Build the model from the arguments of the authors' ConvNeXt or ConvNeXtIsotropic, or of timm's, and load their weights.

    Raises:
        ModelError: an argument that we do not offer.
    """
    refuse_others("convnext", kwargs, _OFFERED)
    isotropic = "stem.weight" in state_dict
    if isotropic:
        depths = _quarters(kwargs.get("depth", 18))
        dims = [kwargs.get("dim", 384)] * len(depths)
    else:
        depths = kwargs.get("depths", [3, 3, 9, 3])
        dims = kwargs.get("dims", [96, 192, 384, 768])
    default = 0 if isotropic else 1e-6
    scale = kwargs.get("ls_init_value", kwargs.get("layer_scale_init_value", default))
    if "stem.0.weight" in state_dict and scale is not None:
        scale = scale or 1e-6  # timm keeps the factors unless told None
    model = ConvNeXt(
        bands=kwargs.get("in_chans", 3),
        num_classes=kwargs.get("num_classes", 1000),
        dims=dims,
        depths=depths,
        kernel=kwargs.get("kernel_sizes", 7),
        layer_scale=scale or None,
        isotropic=isotropic,
        stem_stride=16 if isotropic else kwargs.get("patch_size", 4),
        head_scale=kwargs.get("head_init_scale", 1.0),
        drop_path=kwargs.get("drop_path_rate", 0.0),
        norm_eps=norm_eps(kwargs, 1e-6),
        pool=TIMM_POOLS[kwargs.get("global_pool", "avg")],
    )
    model.load_state_dict(rename(state_dict))
    return model
