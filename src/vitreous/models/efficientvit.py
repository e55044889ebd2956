"""EfficientViT (Microsoft): one attention between feed-forwards, whose heads see a slice of channels each, in a cascade."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.catalog.arguments import Depths, ImageSize, Positive, Share, Size, Sizes
from vitreous.catalog.card import Card
from vitreous.errors import ModelError
from vitreous.layers.attention import AttentionCore
from vitreous.layers.backbone import Backbone, FeatureInfo, linear_rates, stem_stride
from vitreous.layers.convnorm import ConvNorm
from vitreous.layers.drop import DropPath
from vitreous.layers.pooling import TIMM_POOLS, check_pool, pool_cells
from vitreous.layers.reference import pair, refuse_others, rename_keys, substitute
from vitreous.layers.sizes import as_size
from vitreous.layers.windows import (
    DistanceBias,
    padding_bias,
    partition,
    resize_biases,
    reverse,
)

CARD = Card(
    slug="efficientvit",
    title="EfficientViT: Memory Efficient Vision Transformer with Cascaded Group Attention",
    kind="model",
    summary="Convolutions and feed-forwards around a single attention per block, whose heads are "
    "cascaded.",
    when="High throughput on images of 128 pixels and more. Trains poorly with batches of one "
    "image (batch norm).",
    paper="arXiv 2305.07027 (CVPR 2023); not the model of the same name from MIT",
    year=2023,
    source_licence="MIT (microsoft/Cream): re-implemented from the equations",
    tasks=["classify"],
    variants={
        "efficientvit_m0": {
            "dims": [64, 128, 192],
            "depths": [1, 2, 3],
            "heads": [4, 4, 4],
            "kernels": [5, 5, 5, 5],
        },
        "efficientvit_m1": {
            "dims": [128, 144, 192],
            "depths": [1, 2, 3],
            "heads": [2, 3, 3],
            "kernels": [7, 5, 3, 3],
        },
        "efficientvit_m2": {
            "dims": [128, 192, 224],
            "depths": [1, 2, 3],
            "heads": [4, 3, 2],
            "kernels": [7, 5, 3, 3],
        },
        "efficientvit_m3": {
            "dims": [128, 240, 320],
            "depths": [1, 2, 3],
            "heads": [4, 3, 4],
            "kernels": [5, 5, 5, 5],
        },
        "efficientvit_m4": {
            "dims": [128, 256, 384],
            "depths": [1, 2, 3],
            "heads": [4, 4, 4],
            "kernels": [7, 5, 3, 3],
        },
        "efficientvit_m5": {
            "dims": [192, 288, 384],
            "depths": [1, 3, 4],
            "heads": [3, 3, 4],
            "kernels": [7, 5, 3, 3],
        },
        "efficientvit_test": {
            "dims": [16, 24, 32],
            "depths": [1, 1, 1],
            "heads": [2, 3, 4],
            "key_dim": 4,
            "window": 4,
            "kernels": [5, 3, 3, 3],
        },
    },
    published=[
        {"variant": "efficientvit_m0", "parameters_m": 2.349, "gmacs": 0.079, "top1": 63.2},
        {"variant": "efficientvit_m1", "parameters_m": 2.981, "gmacs": 0.167, "top1": 68.4},
        {"variant": "efficientvit_m2", "parameters_m": 4.188, "gmacs": 0.201, "top1": 70.8},
        {"variant": "efficientvit_m3", "parameters_m": 6.901, "gmacs": 0.263, "top1": 73.4},
        {"variant": "efficientvit_m4", "parameters_m": 8.804, "gmacs": 0.299, "top1": 74.3},
        {"variant": "efficientvit_m5", "parameters_m": 12.474, "gmacs": 0.522, "top1": 77.1},
    ],
    recipe={
        "optimizer": "AdamW",
        "epochs": 300,
        "learning_rate": 1e-3,
        "batch_size": 2048,
        "schedule": "cosine to 1e-5, 5 epochs warm-up",
        "weight_decay": "0.025; none on norms, biases and positions",
        "clip": "adaptive, 0.02",
        "augment": "RandAugment m9, mixup 0.8, cutmix 1, erasing 0.25, smoothing 0.1",
    },
    claim="M5 is 1.9 points more accurate on ImageNet than MobileNetV3-Large at 40 % (GPU) and "
    "45 % (CPU) higher throughput; M2 is 1.8 points more accurate than MobileViT-XXS at a 5.8x "
    "(GPU) and 3.7x (CPU) speed-up.",
    miniature="Digits, equal parameters: sandwich blocks with cascaded group attention at most "
    "0.5 points below blocks of multi-head attention and one feed-forward, faster, and with less "
    "similar attention maps. At 224 pixels on a CPU, M2 at more than twice the throughput of a "
    "hybrid of MobileViT-XXS's size.",
    notes=[
        "Usage: Feature maps at strides 16, 32 and 64, as in the paper's detectors.",
        "Usage: With distillation, predictions average both heads, also in training.",
        "Usage: drop_path is 0 in every published model.",
        "Image size: Image sizes other than image_size are accepted; the authors' code refuses "
        "them.",
        "Image size: Windows are no longer than the map along either axis. timm's are square, no "
        "longer than the map's shorter side, and stay so in from_reference.",
        "Image size: The stem's stride of 16 shrinks on small images (total_stride), first in "
        "its first convolutions.",
        "Checkpoints: Checkpoints of timm's EfficientVitMsra load; it has no distillation head.",
        "Differs from the reference: Where windows are padded, the authors let padded cells take "
        "part in attention. Here they are masked, so a window at the edge equals attention among "
        "its real cells; mask_padding=False reproduces theirs (from_reference sets it). At 224 "
        "pixels no window is padded.",
        "Differs from the reference: Window biases are looked up at each forward pass; the "
        "authors cache them, and the cache is stale after loading weights.",
        "Differs from the reference: A single training image is normalised by the head's running "
        "statistics; the authors' code fails on it.",
        "Not specified in the paper: Squeeze-and-excite has a quarter of its channels, rounded "
        "to a multiple of 8.",
        "Published figures: gmacs were published as FLOPs; they count multiply-adds.",
    ],
)


class Residual(nn.Module):
    """A branch added to its input."""

    def __init__(self, branch: nn.Module, drop_path: float = 0.0) -> None:
        super().__init__()
        self.branch = branch
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "batch dim h w"]) -> Float[Tensor, "batch dim h w"]:
        """Add the branch."""
        return x + self.drop_path(self.branch(x))


class FeedForward(nn.Module):
    """Two 1 x 1 convolutions, each normalised, with a ReLU between; zero at first."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = ConvNorm(dim, hidden)
        self.act = nn.ReLU()
        self.fc2 = ConvNorm(hidden, dim, gain=0.0)

    def forward(self, x: Float[Tensor, "batch dim h w"]) -> Float[Tensor, "batch dim h w"]:
        """Apply both."""
        return self.fc2(self.act(self.fc1(x)))


class CascadedGroupAttention(nn.Module):
    """Each head attends with its own slice of channels, to which the previous head's output is added (eqs. 2-4).

    Args:
        dim: channels, divided among the heads.
        heads: number of heads.
        key_dim: width of queries and keys; values are as wide as a head's slice.
        window: rows and columns of the largest map it is given.
        kernels: of the depth-wise convolution of the queries, per head.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        key_dim: int,
        window: int | tuple[int, int],
        kernels: Sequence[int],
    ) -> None:
        super().__init__()
        self.widths = (key_dim, key_dim, dim // heads)
        self.qkv = nn.ModuleList(ConvNorm(dim // heads, sum(self.widths)) for _ in range(heads))
        self.mix_query = nn.ModuleList(
            ConvNorm(key_dim, key_dim, kernel, groups=key_dim) for kernel in kernels[:heads]
        )
        self.position = DistanceBias(window, heads)
        self.core = AttentionCore()
        self.act = nn.ReLU()
        self.proj = ConvNorm(dim, dim, gain=0.0)

    def forward(
        self,
        x: Float[Tensor, "batch dim h w"],
        hidden: Float[Tensor, "batch 1 1 cells"] | None = None,
    ) -> Float[Tensor, "batch dim h w"]:
        """Mix the cells of each map.

        Args:
            x: maps.
            hidden: 0 for cells that are there, -inf for padded ones, which then change nothing.
        """
        height, width = x.shape[2:]
        biases = self.position(height, width)
        real = None if hidden is None else hidden.exp().unflatten(-1, (height, width)).squeeze(1)
        mixed: list[Tensor] = []
        slices = x.chunk(len(self.qkv), 1)
        for own, qkv, mix, bias in zip(slices, self.qkv, self.mix_query, biases, strict=True):
            query, key, value = qkv(own + mixed[-1] if mixed else own).split(self.widths, 1)
            query = mix(query if real is None else query * real)
            out = self.core(
                *(rearrange(part, "b d h w -> b 1 (h w) d") for part in (query, key, value)),
                bias[None, None] if hidden is None else bias + hidden,
                (height, width),
            )
            mixed.append(rearrange(out, "b 1 (h w) d -> b d h w", h=height))
        return self.proj(self.act(torch.cat(mixed, 1)))


class WindowAttention(nn.Module):
    """Cascaded group attention in windows; in one, where the map is no larger.

    Args:
        attn: the attention.
        window: side of a window, or its rows and columns.
        mask_padding: hide cells that complete windows at the lower and right edge.
    """

    def __init__(
        self, attn: CascadedGroupAttention, window: int | tuple[int, int], mask_padding: bool
    ) -> None:
        super().__init__()
        self.attn, self.mask_padding = attn, mask_padding
        self.window = as_size(window)

    def forward(self, x: Float[Tensor, "batch dim h w"]) -> Float[Tensor, "batch dim h w"]:
        """Mix the cells of each window."""
        batch, _, height, width = x.shape
        rows, columns = self.window
        if height <= rows and width <= columns:
            return self.attn(x)
        hidden = None
        if self.mask_padding and (height % rows or width % columns):
            hidden = padding_bias(height, width, self.window, x).repeat(batch, 1, 1, 1)
        windows = partition(rearrange(x, "b d h w -> b h w d"), self.window)
        maps = self.attn(rearrange(windows, "b n (h w) d -> (b n) d h w", h=rows), hidden)
        windows = rearrange(maps, "(b n) d h w -> b n (h w) d", b=batch)
        return rearrange(reverse(windows, self.window, height, width), "b h w d -> b d h w")


class SqueezeExcite(nn.Module):
    """A gate per channel, from the map's mean."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Float[Tensor, "batch dim h w"]) -> Float[Tensor, "batch dim h w"]:
        """Apply the gate."""
        return x * self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))).sigmoid()


def local_mixing(dim: int, hidden: int, drop_path: float = 0.0) -> nn.Sequential:
    """Return what stands on both sides of every attention and every reduction: depth-wise convolution, feed-forward."""
    depthwise = ConvNorm(dim, dim, 3, groups=dim, gain=0.0)
    return nn.Sequential(
        Residual(depthwise, drop_path), Residual(FeedForward(dim, hidden), drop_path)
    )


class Block(nn.Module):
    """The sandwich (section 3.1, eq. 1): one attention between two pairs of convolution and feed-forward."""

    def __init__(self, dim: int, hidden: int, attn: WindowAttention, drop_path: float) -> None:
        super().__init__()
        self.before = local_mixing(dim, hidden, drop_path)
        self.attn = Residual(attn, drop_path)
        self.after = local_mixing(dim, hidden, drop_path)

    def forward(self, x: Float[Tensor, "batch dim h w"]) -> Float[Tensor, "batch dim h w"]:
        """Apply the block."""
        return self.after(self.attn(self.before(x)))


class Downsample(nn.Module):
    """Half the resolution by an inverted residual with a gate, between two local mixings; ``ceil(size / 2)`` cells."""

    def __init__(self, dim: int, out: int, mlp_ratio: float) -> None:
        super().__init__()
        wide = 4 * dim
        self.before = local_mixing(dim, int(dim * mlp_ratio))
        self.merge = nn.Sequential(
            ConvNorm(dim, wide),
            nn.ReLU(),
            ConvNorm(wide, wide, 3, stride=2, groups=wide),
            nn.ReLU(),
            SqueezeExcite(wide, max(8, (dim + 4) // 8 * 8)),
            ConvNorm(wide, out),
        )
        self.after = local_mixing(out, int(out * mlp_ratio))

    def forward(self, x: Float[Tensor, "batch dim h w"]) -> Float[Tensor, "batch out h2 w2"]:
        """Reduce the map."""
        return self.after(self.merge(self.before(x)))


class HeadNorm(nn.BatchNorm1d):
    """Batch norm that takes its running statistics where a batch is one image, of which there are none."""

    def forward(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        """Normalise each channel."""
        if self.training and len(x) == 1:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(x)


class EfficientViT(Backbone):
    """EfficientViT of Microsoft (arXiv 2305.07027).

    Images of any size work: each halving rounds the number of cells up.

    Args:
        bands: channels of the input.
        num_classes: classes.
        image_size: side of the image in pixels, or height and width; decides the stem's stride, and windows are no
            longer than the map of such an image along either axis.
        dims: channels per stage, at least 8.
        depths: blocks per stage.
        heads: attention heads per stage.
        kernels: of the queries' convolution, per head; further ones are not used.
        key_dim: width of queries and keys, for all stages or per stage.
        window: side of the windows in cells, for all stages or per stage.
        mlp_ratio: hidden width of the feed-forwards over the number of channels.
        total_stride: stride of the stem, 1 to 16 and a power of 2; 16, or on small images what leaves 3 x 3 cells
            after the last stage.
        mask_padding: hide cells that complete windows; False for the published weights.
        distilled: a second head, whose scores are averaged with the first's.
        drop_path: stochastic depth of the last block, growing linearly from 0.
        pool: how the last map's cells become one vector: ``mean``, ``max``, or ``mean_max``, the mean of both.

    Raises:
        ModelError: lists of different lengths, widths that heads do not divide, a stride that the stem cannot have,
            or too few kernels.
    """

    classifiers = ("head", "distillation_head")
    any_size = True
    band_parameters = ("patch_embed.0.conv.weight",)
    undecayed = ("position.table",)

    def __init__(
        self,
        bands: int,
        num_classes: int,
        image_size: ImageSize = 224,
        *,
        dims: Sizes = (64, 128, 192),
        depths: Depths = (1, 2, 3),
        heads: Sizes = (4, 4, 4),
        kernels: Sizes = (5, 5, 5, 5),
        key_dim: Size | Sizes = 16,
        window: Size | Sizes = 7,
        mlp_ratio: Positive = 2.0,
        total_stride: Size | None = None,
        mask_padding: bool = True,
        distilled: bool = False,
        drop_path: Share = 0.0,
        pool: str = "mean",
    ) -> None:
        super().__init__(bands, num_classes, image_size)
        check_pool("efficientvit", pool)
        self.pool = pool
        key_dims, windows = (
            [v] * len(dims) if isinstance(v, int) else v for v in (key_dim, window)
        )
        stride = total_stride or stem_stride(image_size, 16, later=2 ** (len(dims) - 1), cells=3)
        _check((dims, depths, heads, key_dims, windows), kernels, stride)
        self.num_features = dims[-1]
        self.feature_info = [FeatureInfo(dim, stride * 2**i) for i, dim in enumerate(dims)]
        self.patch_embed = _stem(bands, dims[0], stride)
        rates = iter(linear_rates(drop_path, sum(depths)))
        self.stages = nn.ModuleList()
        for i, dim in enumerate(dims):
            rows, columns = (min(windows[i], -(-n // (stride * 2**i))) for n in self.size)
            stage: list[nn.Module] = [] if i == 0 else [Downsample(dims[i - 1], dim, mlp_ratio)]
            for _ in range(depths[i]):
                attn = CascadedGroupAttention(dim, heads[i], key_dims[i], (rows, columns), kernels)
                mixer = WindowAttention(attn, (rows, columns), mask_padding)
                stage.append(Block(dim, int(dim * mlp_ratio), mixer, next(rates)))
            self.stages.append(nn.ModuleList(stage))
        self.head = self.make_head(num_classes)
        self.distillation_head = self.make_head(num_classes) if distilled else None

    def new_head(self, num_classes: int) -> nn.Module:
        """Return a new classifier, which begins with a norm of its own."""
        return nn.Sequential(HeadNorm(self.num_features), super().new_head(num_classes))

    def level_maps(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> list[Float[Tensor, "batch channels h w"]]:
        """Return the map of each stage."""
        x = self.patch_embed(x)
        maps = []
        for stage in self.stages:
            for block in stage.children():
                x = self.run(block, x)
            maps.append(x)
        return maps

    def forward_features(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> Float[Tensor, "batch dim h w"]:
        """Return the last stage's map."""
        return self.level_maps(x)[-1]

    def forward_head(
        self, features: Float[Tensor, "batch dim h w"]
    ) -> Float[Tensor, "batch classes"]:
        """Classify the pooled map; with two heads, by the mean of both."""
        pooled = pool_cells(features, self.pool, (2, 3))
        logits = self.head(pooled)
        if self.distillation_head is None:
            return logits
        return (logits + self.distillation_head(pooled)) / 2


def _stem(bands: int, dim: int, stride: int) -> nn.Sequential:
    """Return four convolutions, as many of the last ones with stride 2 as ``stride`` takes."""
    widths = (bands, dim // 8, dim // 4, dim // 2, dim)
    layers: list[nn.Module] = []
    for i in range(4):
        step = 2 if stride >= 2 ** (4 - i) else 1
        layers += [ConvNorm(widths[i], widths[i + 1], 3, stride=step), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _check(lists: Sequence[Sequence[int]], kernels: Sequence[int], stride: int) -> None:
    dims, _, heads, *_ = lists
    if len({len(given) for given in lists}) > 1:
        raise ModelError(
            f"efficientvit got settings for {sorted({len(given) for given in lists})} stages.",
            "Give one of each per stage.",
        )
    for stage, (dim, count) in enumerate(zip(dims, heads, strict=True)):
        if dim % count:
            raise ModelError(
                f"Stage {stage} of efficientvit has width {dim}, not divisible by {count} heads.",
                "Change dims or heads.",
            )
    if dims[0] < 8:
        raise ModelError(
            f"The stem starts with dims[0] / 8 channels, and dims[0] is {dims[0]}.",
            "Give dims of at least 8.",
        )
    if len(kernels) < max(heads) or any(kernel % 2 == 0 for kernel in kernels):
        raise ModelError(
            f"efficientvit got kernels {list(kernels)} for {max(heads)} heads.",
            "Give an odd kernel for each head.",
        )
    if stride not in {1, 2, 4, 8, 16}:
        raise ModelError(
            f"The stem of efficientvit cannot have stride {stride}.", "Choose 1, 2, 4, 8 or 16."
        )


build = EfficientViT


def resize(
    state_dict: Mapping[str, Tensor], model: EfficientViT, source: EfficientViT | None = None
) -> dict[str, Tensor]:
    """Give the biases the windows of ``model``: a smaller window keeps the nearer offsets, a larger one repeats the farthest."""
    return resize_biases(state_dict, model, source)


AS_PUBLISHED = {"mask_padding": False}  # how weights in these layouts were trained
LAYOUTS = {
    "timm's EfficientViT (MSRA)": (
        r"^stages\.\d+\.blocks\.\d+\.mixer\.m\.attn\.qkvs\.0\.conv\.weight$",
    ),
    "the authors' EfficientViT (Microsoft)": (
        r"^blocks1\.\d+\.mixer\.m\.attn\.qkvs\.0\.c\.weight$",
    ),
}
_NAMES = (
    # timm's, into the authors'
    (r"^patch_embed\.conv(\d)\.", lambda m: f"patch_embed.{2 * (int(m[1]) - 1)}."),
    (r"^stages\.(\d+)\.downsample\.res1\.(\d)\.m\.", r"stages.\1.0.before.\2.branch."),
    (r"^stages\.(\d+)\.downsample\.res2\.(\d)\.m\.", r"stages.\1.0.after.\2.branch."),
    (r"^stages\.(\d+)\.downsample\.patchmerge\.", r"stages.\1.0.merge."),
    (r"^stages\.(\d+)\.blocks\.(\d+)\.", lambda m: f"stages.{m[1]}.{int(m[2]) + (m[1] != '0')}."),
    (r"(head\.)linear\.", r"\g<1>1."),
    # the authors'
    (r"^(blocks[23])\.([02])\.([01])\.m\.", r"\1.\2.\3.branch."),
    (r"^blocks([23])\.0\.", lambda m: f"stages.{int(m[1]) - 1}.0.before."),
    (r"^blocks([23])\.2\.", lambda m: f"stages.{int(m[1]) - 1}.0.after."),
    (r"^blocks([23])\.1\.", lambda m: f"stages.{int(m[1]) - 1}.0.merge."),
    (r"^blocks1\.", "stages.0."),
    (r"^blocks([23])\.(\d+)\.", lambda m: f"stages.{int(m[1]) - 1}.{int(m[2]) - 2}."),
    (r"\.merge\.conv([123])\.", lambda m: f".merge.{(0, 2, 5)[int(m[1]) - 1]}."),
    (r"\.merge\.se\.", ".merge.4."),
    (r"\.dw0\.m\.", ".before.0.branch."),
    (r"\.ffn0\.m\.", ".before.1.branch."),
    (r"\.mixer\.m\.", ".attn.branch."),
    (r"\.dw1\.m\.", ".after.0.branch."),
    (r"\.ffn1\.m\.", ".after.1.branch."),
    (r"\.pw([12])\.", r".fc\1."),
    (r"\.qkvs\.", ".qkv."),
    (r"\.dws\.", ".mix_query."),
    (r"\.proj\.1\.", ".proj."),
    (r"\.attention_biases$", ".position.table"),
    (r"^head_dist\.", "distillation_head."),
    (r"(head\.)bn\.", r"\g<1>0."),
    (r"(head\.)l\.", r"\g<1>1."),
    (r"\.c\.", ".conv."),
    (r"\.bn\.", ".norm."),
)


def rename(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give weights in the authors' layout or in timm's our names."""
    learned = {
        key: _turn(key, value)
        for key, value in state_dict.items()
        if not key.endswith("attention_bias_idxs")
    }
    return rename_keys(learned, partial(substitute, _NAMES))


def _turn(key: str, value: Tensor) -> Tensor:
    """Return a tensor as ours is: published files store some 1 x 1 convolutions as matrices."""
    if value.ndim != 2 or key.endswith((".l.weight", ".linear.weight")):
        return value
    return value.T if key.endswith("attention_biases") else value[:, :, None, None]


def read_settings(
    weights: Mapping[str, Tensor], image_size: ImageSize | None = None
) -> dict[str, Any]:
    """Return what weights under our names say about options that a variant leaves open."""
    return {"distilled": "distillation_head.1.weight" in weights}


# Values of timm's arguments that change nothing, or that ours has.
_OFFERED: dict[str, tuple[Any, ...]] = {
    "global_pool": tuple(TIMM_POOLS),
    "down_ops": (
        (("", 1), ("subsample", 2), ("subsample", 2)),
        [["", 1], ["subsample", 2], ["subsample", 2]],
    ),
}


def from_reference(state_dict: Mapping[str, Tensor], kwargs: Mapping[str, Any]) -> EfficientViT:
    """Build the model from the arguments of the authors (microsoft/Cream) or of timm's EfficientVitMsra and load their weights.

    Raises:
        ModelError: an argument that we do not offer.
    """
    refuse_others("efficientvit", kwargs, _OFFERED)
    image = pair(kwargs.get("img_size", 224))
    windows = kwargs.get("window_size", (7, 7, 7))
    # Their windows are square and no longer than a map's shorter side, which is rounded down where the stem rounds up.
    cells = [-(-(min(image) // 16) // 2**stage) for stage in range(len(windows))]
    model = EfficientViT(
        bands=kwargs.get("in_chans", 3),
        num_classes=kwargs.get("num_classes", 1000),
        image_size=image,
        dims=kwargs.get("embed_dim", (64, 128, 192)),
        depths=kwargs.get("depth", (1, 2, 3)),
        heads=kwargs.get("num_heads", (4, 4, 4)),
        kernels=kwargs.get("kernels", (5, 5, 5, 5)),
        key_dim=kwargs.get("key_dim", (16, 16, 16)),
        window=[min(window, most) for window, most in zip(windows, cells, strict=True)],
        total_stride=16,
        mask_padding=False,
        distilled=kwargs.get("distillation", False),
        pool=TIMM_POOLS[kwargs.get("global_pool", "avg")],
    )
    model.load_state_dict(rename(state_dict))
    return model
