"""FMViT-style networks: attention to pooled cells and two groups of convolutions in one block, branches that fuse at deployment."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.catalog.arguments import Depths, ImageSize, Positive, Share, Size, Sizes
from vitreous.catalog.card import Card
from vitreous.errors import ModelError
from vitreous.layers import backbone
from vitreous.layers.adapter import AdapterSeam
from vitreous.layers.attention import AttentionCore
from vitreous.layers.backbone import Backbone, FeatureInfo, linear_rates
from vitreous.layers.convnorm import ConvNorm, Fusable
from vitreous.layers.drop import DropPath

CARD = Card(
    slug="fmvit",
    title="FMViT: A multiple-frequency mixing Vision Transformer",
    kind="model",
    summary="A hybrid whose blocks join attention to pooled cells with two groups of convolutions, "
    "and whose parallel convolutions become one at deployment.",
    when="A network without LayerNorm that an export makes smaller and faster than the one that was "
    "trained; a reconstruction, not the authors' network.",
    paper="arXiv 2311.05707 (2023)",
    year=2023,
    source_licence="none (tany0699/FMViT holds no code): designed from the abstract",
    tasks=["classify"],
    variants={
        "fmvit_tiny": {
            "dims": [40, 80, 160, 320],
            "conv_blocks": [2, 2, 4, 2],
            "repeats": [1, 1, 1, 1],
            "drop_path": 0.1,
        },
        "fmvit_small": {
            "dims": [48, 96, 192, 384],
            "conv_blocks": [3, 3, 4, 2],
            "repeats": [1, 1, 2, 1],
            "drop_path": 0.2,
        },
        "fmvit_base": {
            "dims": [64, 128, 256, 512],
            "conv_blocks": [3, 3, 4, 2],
            "repeats": [1, 1, 3, 1],
            "drop_path": 0.3,
        },
        "fmvit_test": {
            "dims": [8, 24],
            "conv_blocks": [1, 1],
            "fusion_blocks": [0, 1],
            "repeats": [1, 1],
            "pools": [2, 2],
            "groups": [2, 4],
            "head_dim": 4,
        },
    },
    recipe={
        "optimizer": "AdamW",
        "epochs": 300,
        "learning_rate": "1e-3 to 2e-3 x batch size / 2048 (Next-ViT's; the paper's is not known)",
        "schedule": "cosine, 20 epochs warm-up",
        "weight_decay": 0.1,
        "augmentation": "RandAugment, mixup 0.8, cutmix 1, erasing 0.25, label smoothing 0.1",
    },
    claim="Better accuracy at a latency than convolutional networks, transformers and hybrids: 83.3 % "
    "ImageNet top-1 at ResNet-101's TensorRT latency (80.8 %), EfficientNet-B5's accuracy in 43 % "
    "less time, 78.5 % at MobileOne-S1's CoreML latency (75.9 %).",
    miniature="Textures under patterns of light. Required: mixing both at most 0.5 points below the "
    "better of attention alone and convolutions alone; fused scores within 1e-4, fewer parameters, "
    "at most 0.8 times the processor time.",
    notes=[
        "Usage: Exports and quantizers fuse the branches by themselves; "
        "vitreous.layers.convnorm.folded does it in Python.",
        "Usage: The claim is measured on textures of scikit-image, which has to be installed.",
        "Image size: The stem's stride of 4 shrinks on small images (stem_stride), its last "
        "convolution's first. Maps round up; pooled cells at the edge are means of the cells that "
        "are there.",
        "Not specified in the paper: The authors have published no code, and sizes, parameters and "
        "multiply-adds are not known to us. Known from the abstract: blocks that fuse groups of "
        "high- and low-frequency features, light convolutional blocks, convolutions in several "
        "groupings that fuse into one, and a light, reparameterised attention. All else is assumed: "
        "these are FMViT-style networks, and no figure of the paper is claimed for them.",
        "Not specified in the paper: Assumed are widths, depths and their order, groupings (2, 4 "
        "and 8 times as many groups), a quarter of the channels for convolutions of 3 x 3 and "
        "5 x 5 cells one after the other, pooling by 8, 4, 2 and 1, heads of 32 channels or the "
        "least more that divides, feed-forwards of 3 and 2 times the width, half the first width "
        "inside the stem, and that 3 x 3 mixers have a group per 32 channels.",
        "Not specified in the paper: A grouping that does not divide the channels is left out.",
        "Published figures: gMLP is the paper's name of its fusable convolution, which has nothing to "
        "do with the gated MLP of arXiv 2105.08050.",
        "Not included: Checkpoints; the authors have published none.",
    ],
)


class Affine(NamedTuple):
    """What a batch norm does to a channel in evaluation: times a factor, plus an offset; both in float64."""

    factor: Float[Tensor, "channels"]
    offset: Float[Tensor, "channels"]

    @classmethod
    def of(cls, norm: nn.BatchNorm2d) -> Affine:
        """Return that of a norm, by its running statistics."""
        assert norm.running_mean is not None
        assert norm.running_var is not None
        factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        return cls(factor, norm.bias.double() - norm.running_mean.double() * factor)

    def then(self, other: Affine) -> Affine:
        """Return this and another one after it as one."""
        return Affine(self.factor * other.factor, self.offset * other.factor + other.offset)


class MultiGroupConv(Fusable):
    """A convolution of branches, the gMLP of the paper: each sees other groups of channels, and one sees only its own cell.

    The branches are summed: one with the groups given, one with each multiple of them, and the input itself where the
    shapes match. All have a batch norm.

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        kernel: side of the kernels, odd.
        stride: their stride.
        base: groups of the first branch, and of the fused convolution.
        groups: multiples of the groups, one per further branch; those that do not divide the channels are left out.
            Without any, one convolution and its norm are all.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        stride: int = 1,
        base: int = 1,
        groups: Sequence[int] = (2, 4, 8),
    ) -> None:
        super().__init__()
        counts = [base * times for times in groups]
        fitting = [count for count in counts if not (inputs % count or outputs % count)]
        self.branches = nn.ModuleList(
            ConvNorm(inputs, outputs, kernel, stride=stride, groups=count)
            for count in [base, *fitting]
        )
        same = bool(groups) and inputs == outputs and stride == 1
        self.identity = nn.BatchNorm2d(inputs) if same else None

    def forward(self, x: Float[Tensor, "batch inputs h w"]) -> Float[Tensor, "batch outputs h2 w2"]:
        """Add up the branches."""
        first, *others = self.branches
        total = first(x)
        for branch in others:
            total = total + branch(x)
        return total if self.identity is None else total + self.identity(x)

    @torch.no_grad()
    def fused(self) -> nn.Conv2d:
        """Return one convolution that equals the sum."""
        first, *_ = branches = [cast("ConvNorm", branch) for branch in self.branches]
        parts = [
            (_regrouped(branch.conv.weight, branch.conv.groups, first.conv.groups), branch.norm)
            for branch in branches
        ]
        if self.identity is not None:
            itself = nn.init.dirac_(torch.empty_like(first.conv.weight), first.conv.groups)
            parts.append((itself, self.identity))
        scaled = [(weight.double(), Affine.of(norm)) for weight, norm in parts]
        weight = sum(weight * own.factor[:, None, None, None] for weight, own in scaled)
        offset = sum(own.offset for _, own in scaled)
        return _conv_of(first.conv, cast("Tensor", weight), cast("Tensor", offset))


def _regrouped(
    weight: Float[Tensor, "outputs own rows columns"], groups: int, wanted: int
) -> Float[Tensor, "outputs all rows columns"]:
    """Return a grouped kernel as one of fewer groups: zero between channels of different groups.

    Args:
        weight: of ``groups`` groups.
        groups: a multiple of ``wanted``.
        wanted: groups of the kernel returned.
    """
    outputs, own, rows, columns = weight.shape
    times = groups // wanted
    parts = weight.view(wanted, times, outputs // groups, own, rows, columns)
    wide = weight.new_zeros(wanted, times, outputs // groups, times, own, rows, columns)
    for part in range(times):
        wide[:, part, :, part] = parts[:, part]
    return wide.view(outputs, times * own, rows, columns)


def _conv_of(like: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """Return a convolution of the shape and type of another one, with a bias."""
    conv = nn.Conv2d(
        like.in_channels,
        like.out_channels,
        cast("tuple[int, int]", like.kernel_size),
        cast("tuple[int, int]", like.stride),
        cast("tuple[int, int]", like.padding),
        groups=like.groups,
        device=like.weight.device,
        dtype=like.weight.dtype,
    )
    assert conv.bias is not None
    conv.weight.copy_(weight)
    conv.bias.copy_(bias)
    return conv.requires_grad_(like.weight.requires_grad)


def _behind(affine: Affine, conv: nn.Conv2d) -> nn.Conv2d:
    """Return an ungrouped convolution of single cells that does first to its input what an affine map does."""
    weight = conv.weight.double()
    offset = weight[:, :, 0, 0] @ affine.offset
    bias = offset if conv.bias is None else offset + conv.bias.double()
    return _conv_of(conv, weight * affine.factor[:, None, None], bias)


class MapNorm(nn.BatchNorm2d, Fusable):
    """A batch norm that nothing follows which it could become a part of."""

    @torch.no_grad()
    def fused(self) -> nn.Conv2d:
        """Return a convolution of single cells and single channels."""
        own = Affine.of(self)
        like = nn.Conv2d(
            *(self.num_features, self.num_features, 1),
            groups=self.num_features,
            device=self.weight.device,
            dtype=self.weight.dtype,
        )
        return _conv_of(like, own.factor[:, None, None, None], own.offset)


class FeedForward(nn.Module):
    """Two convolutions of single cells with a ReLU between them.

    Args:
        fc1: the first.
        fc2: the second.
    """

    def __init__(self, fc1: nn.Module, fc2: nn.Module) -> None:
        super().__init__()
        self.fc1 = fc1
        self.act = nn.ReLU()
        self.fc2 = fc2

    def forward(self, x: Float[Tensor, "batch dim h w"]) -> Float[Tensor, "batch dim h w"]:
        """Apply both."""
        return self.fc2(self.act(self.fc1(x)))


class NormedFeedForward(FeedForward, Fusable):
    """A feed-forward as it is trained: with a norm behind its first convolution, and perhaps one before it.

    Args:
        dim: channels of input and output.
        ratio: channels between over ``dim``.
        norm_first: normalise the input.
    """

    def __init__(self, dim: int, ratio: float, norm_first: bool) -> None:
        hidden = int(dim * ratio)
        super().__init__(ConvNorm(dim, hidden), nn.Conv2d(hidden, dim, 1))
        self.norm = nn.BatchNorm2d(dim) if norm_first else None

    def forward(self, x: Float[Tensor, "batch dim h w"]) -> Float[Tensor, "batch dim h w"]:
        """Apply norm and convolutions."""
        return super().forward(x if self.norm is None else self.norm(x))

    @torch.no_grad()
    def fused(self) -> FeedForward:
        """Return the two convolutions, without norms."""
        first = cast("ConvNorm", self.fc1)
        own = Affine.of(first.norm)
        scaled = first.conv.weight.double() * own.factor[:, None, None, None]
        conv = _conv_of(first.conv, scaled, own.offset)
        if self.norm is not None:
            conv = _behind(Affine.of(self.norm), conv)
        return FeedForward(conv, self.fc2)


class PooledAttention(nn.Module):
    """Self-attention of every cell to means of neighbouring cells.

    Args:
        heads: number of heads.
        pool: side of the squares whose mean is one key and one value.
        query: makes queries.
        key: makes keys.
        value: makes values.
        proj: is applied to what was gathered.
    """

    def __init__(
        self,
        heads: int,
        pool: int,
        query: nn.Module,
        key: nn.Module,
        value: nn.Module,
        proj: nn.Module,
    ) -> None:
        super().__init__()
        self.heads, self.side = heads, pool
        self.query, self.key, self.value, self.proj = query, key, value, proj
        # Squares that reach beyond the edge are means of the cells that are there.
        self.pool = nn.AvgPool2d(pool, ceil_mode=True, count_include_pad=False)
        self.core = AttentionCore()

    def forward(self, x: Float[Tensor, "batch dim h w"]) -> Float[Tensor, "batch dim h w"]:
        """Attend."""
        return self.attend(x, self.pool(x))

    def attend(
        self, x: Float[Tensor, "batch dim h w"], pooled: Float[Tensor, "batch dim h2 w2"]
    ) -> Float[Tensor, "batch dim h w"]:
        """Attend from all cells to pooled ones."""
        parts = (self.query(x), self.key(pooled), self.value(pooled))
        rows = (rearrange(part, "b (g d) h w -> b g (h w) d", g=self.heads) for part in parts)
        mixed = self.core(*rows, grid=(x.shape[2], x.shape[3]))
        return self.proj(rearrange(mixed, "b g (h w) d -> b (g d) h w", h=x.shape[2]))


class LightAttention(PooledAttention, Fusable):
    """Pooled attention as it is trained (RLMHSA): normalised before and behind the pooling, with branches for its weights.

    Args:
        dim: channels.
        heads: number of heads.
        pool: side of the pooled squares.
        groups: of the branches, see :class:`MultiGroupConv`.
    """

    def __init__(self, dim: int, heads: int, pool: int, groups: Sequence[int]) -> None:
        query, key, value = (MultiGroupConv(dim, dim, groups=groups) for _ in range(3))
        super().__init__(heads, pool, query, key, value, nn.Conv2d(dim, dim, 1))
        self.norm = nn.BatchNorm2d(dim)
        self.pool_norm = nn.BatchNorm2d(dim)

    def forward(self, x: Float[Tensor, "batch dim h w"]) -> Float[Tensor, "batch dim h w"]:
        """Attend."""
        x = self.norm(x)
        return self.attend(x, self.pool_norm(self.pool(x)))

    @torch.no_grad()
    def fused(self) -> PooledAttention:
        """Return the same without norms and branches: means of normalised cells are normalised means."""
        before = Affine.of(self.norm)
        both = before.then(Affine.of(self.pool_norm))
        query, key, value = (
            cast("MultiGroupConv", part).fused() for part in (self.query, self.key, self.value)
        )
        plain = PooledAttention(
            *(self.heads, self.side),
            *(_behind(before, query), _behind(both, key), _behind(both, value)),
            self.proj,
        )
        plain.core = self.core  # which a method may have changed
        return plain


class ConvBlock(nn.Module):
    """Light convolutional fusion block (CFB): a mixer of 3 x 3 cells and a feed-forward, each on a residual branch.

    Args:
        dim: channels.
        ratio: hidden width of the feed-forward over the channels.
        groups: of the branches, see :class:`MultiGroupConv`.
        drop_path: stochastic depth.
    """

    def __init__(self, dim: int, ratio: float, groups: Sequence[int], drop_path: float) -> None:
        super().__init__()
        self.mixer = MultiGroupConv(dim, dim, 3, base=_divisor(dim, dim // 32), groups=groups)
        self.proj = nn.Conv2d(dim, dim, 1)
        self.mlp = NormedFeedForward(dim, ratio, norm_first=False)
        self.adapter = AdapterSeam(dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "batch dim h w"]) -> Float[Tensor, "batch dim h w"]:
        """Apply both branches."""
        x = x + self.drop_path(self.proj(self.mixer(x)))
        return _adapted(self.adapter, x, self.drop_path(self.mlp(x)))


class FusionBlock(nn.Module):
    """Multi-frequency fusion block (FMB): low frequencies by attention, high ones by two convolutions, side by side.

    Args:
        dim: channels.
        low: how many of them are for low frequencies.
        attend: whether low frequencies are mixed by attention.
        head_dim: least width of a head.
        pool: side of the squares that attention pools.
        ratio: hidden width of the feed-forward over the channels.
        groups: of the branches, see :class:`MultiGroupConv`.
        drop_path: stochastic depth.
    """

    def __init__(
        self,
        dim: int,
        low: int,
        attend: bool,
        head_dim: int,
        pool: int,
        ratio: float,
        groups: Sequence[int],
        drop_path: float,
    ) -> None:
        super().__init__()
        self.reduce = MultiGroupConv(dim, low, groups=groups)
        heads = _divisor(low, low // head_dim)
        self.attn = LightAttention(low, heads, pool, groups) if attend else None
        high = dim - low
        self.high: nn.Module | None = None
        if high:
            base = _divisor(high, high // 32)
            self.high = MultiGroupConv(low, high, groups=groups)
            self.near = MultiGroupConv(high, high, 3, base=base, groups=groups)
            self.wide = MultiGroupConv(high, high, 5, base=base, groups=groups)
        self.mlp = NormedFeedForward(dim, ratio, norm_first=True)
        self.adapter = AdapterSeam(dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "batch dim h w"]) -> Float[Tensor, "batch dim h w"]:
        """Mix the cells, and apply the feed-forward's branch."""
        x = self.reduce(x)
        if self.attn is not None:
            x = x + self.drop_path(self.attn(x))
        if self.high is not None:
            high = self.high(x)
            near = high + self.drop_path(self.near(high))
            wide = near + self.drop_path(self.wide(near))
            x = torch.cat([x, near + wide], 1)
        return _adapted(self.adapter, x, self.drop_path(self.mlp(x)))


def _adapted(
    adapter: nn.Module, x: Float[Tensor, "batch dim h w"], branch: Float[Tensor, "batch dim h w"]
) -> Float[Tensor, "batch dim h w"]:
    """Return a map with a branch added, and with what an adapter adds, whose channels come last."""
    tokens, given = x.permute(0, 2, 3, 1), branch.permute(0, 2, 3, 1)
    return x + adapter(tokens, given).permute(0, 3, 1, 2)


class Stem(nn.Sequential):
    """Four convolutions of 3 x 3, of which the first and the last take strides.

    Args:
        bands: channels of the image.
        dim: channels of the map; half as many between the convolutions.
        stride: 4, 2 or 1.
    """

    def __init__(self, bands: int, dim: int, stride: int) -> None:
        strides = [min(stride, 2), 1, 1, max(stride // 2, 1)]
        widths = [bands, *[dim // 2] * 3, dim]
        super().__init__()
        for (before, after), step in zip(itertools.pairwise(widths), strides, strict=True):
            self.extend([ConvNorm(before, after, 3, stride=step), nn.ReLU()])


class Downsample(nn.Sequential):
    """Means of 2 x 2 cells, of fewer at the edge, and a convolution of single cells.

    Args:
        dim: channels of the input.
        out_dim: channels of the output.
    """

    def __init__(self, dim: int, out_dim: int) -> None:
        pool = nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False)
        super().__init__(pool, ConvNorm(dim, out_dim))


class FMViT(Backbone):
    """FMViT-style network (after arXiv 2311.05707, whose wiring is not published; see the notes of the card).

    Args:
        bands: channels of the input.
        num_classes: classes.
        image_size: side of the image in pixels, or height and width; decides the stem's stride. Other sizes are accepted too.
        dims: channels of each stage.
        conv_blocks: convolutional blocks of each repetition, by stage.
        fusion_blocks: fusion blocks that follow them in each repetition, by stage; none in the first, one in others.
        repeats: repetitions of each stage.
        pools: side of the squares that attention pools, by stage; 8, 4, 2, 1, the last ones where there are fewer stages.
        groups: of the branches of all fusable convolutions, in multiples of their groups; empty for a single branch.
        low_share: share of a fusion block's channels for low frequencies.
        mixing: what fusion blocks mix by: ``both``, attention only (``low``) or convolutions only (``high``).
        head_dim: least width of an attention head.
        conv_ratio: hidden width of the convolutional blocks' feed-forwards over the channels.
        fusion_ratio: the same of fusion blocks.
        stem_stride: stride of the stem, 4, 2 or 1; 4, or on small images what leaves 4 x 4 cells on the last map.
        drop_path: stochastic depth of the last block, growing linearly from 0.

    Raises:
        ModelError: lists of different lengths, channels that cannot be divided as asked, an unknown mixing, or a stride that
            the stem cannot have.
    """

    any_size = True
    band_parameters = ("embeds.0.0.conv.weight",)

    def __init__(
        self,
        bands: int,
        num_classes: int,
        image_size: ImageSize = 224,
        *,
        dims: Sizes = (40, 80, 160, 320),
        conv_blocks: Depths = (2, 2, 4, 2),
        fusion_blocks: Depths | None = None,
        repeats: Depths | None = None,
        pools: Sizes | None = None,
        groups: Sequence[Size] = (2, 4, 8),
        low_share: Share = 0.75,
        mixing: str = "both",
        head_dim: Size = 32,
        conv_ratio: Positive = 3.0,
        fusion_ratio: Positive = 2.0,
        stem_stride: Size | None = None,
        drop_path: Share = 0.0,
    ) -> None:
        super().__init__(bands, num_classes, image_size)
        count = len(dims)
        fusion_blocks = [0, *[1] * (count - 1)] if fusion_blocks is None else fusion_blocks
        repeats = repeats or [1] * count
        pools = pools or [2 ** (count - 1 - stage) for stage in range(count)]
        stride = stem_stride or backbone.stem_stride(image_size, 4, later=2 ** (count - 1))
        _check(dims, (conv_blocks, fusion_blocks, repeats, pools), low_share, mixing, stride)
        self.num_features = dims[-1]
        self.feature_info = [FeatureInfo(dim, stride * 2**stage) for stage, dim in enumerate(dims)]
        downs = (Downsample(before, dim) for before, dim in itertools.pairwise(dims))
        self.embeds = nn.ModuleList([Stem(bands, dims[0], stride), *downs])
        kinds = [
            times * ("c" * conv + "f" * fusion)
            for times, conv, fusion in zip(repeats, conv_blocks, fusion_blocks, strict=True)
        ]
        rates = iter(linear_rates(drop_path, sum(map(len, kinds))))
        self.stages = nn.ModuleList()
        for dim, pool, row in zip(dims, pools, kinds, strict=True):
            low = {"both": int(dim * low_share), "low": dim, "high": int(dim * low_share)}[mixing]
            blocks = [
                ConvBlock(dim, conv_ratio, groups, next(rates))
                if kind == "c"
                else FusionBlock(
                    dim,
                    low,
                    mixing != "high",
                    *(head_dim, pool, fusion_ratio, groups, next(rates)),
                )
                for kind in row
            ]
            self.stages.append(nn.ModuleList(blocks))
        self.norm = MapNorm(dims[-1])
        self.head = self.make_head(num_classes)
        self._init_weights()

    def _init_weights(self) -> None:
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.trunc_normal_(part.weight, std=0.02)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)

    def forward_features(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> Float[Tensor, "batch dim h w"]:
        """Return the last stage's map, normalised."""
        return self.norm(self.level_maps(x)[-1])

    def forward_head(
        self, features: Float[Tensor, "batch dim h w"]
    ) -> Float[Tensor, "batch classes"]:
        """Classify the mean of the cells."""
        return self.head(features.mean((2, 3)))

    def level_maps(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> list[Float[Tensor, "batch dim h w"]]:
        """Return the map behind each stage, not normalised; heights and widths are rounded up."""
        levels = []
        x = x.contiguous(memory_format=torch.channels_last)
        for embed, blocks in zip(self.embeds, self.stages, strict=True):
            x = embed(x)
            for block in blocks.children():
                x = self.run(block, x)
            levels.append(x)
        return levels


def _divisor(number: int, most: int) -> int:
    """Return the largest divisor of a number that is not above ``most``, but at least 1."""
    return next(count for count in range(max(most, 1), 0, -1) if number % count == 0)


MIXINGS = ("both", "low", "high")


def _check(
    dims: Sequence[int],
    others: Sequence[Sequence[int]],
    low_share: float,
    mixing: str,
    stride: int,
) -> None:
    if any(len(one) != len(dims) for one in others):
        raise ModelError(
            f"fmvit has {len(dims)} widths, but {', '.join(str(len(one)) for one in others)} conv_blocks, "
            "fusion_blocks, repeats and pools.",
            "Give one value per stage in each.",
        )
    if mixing not in MIXINGS:
        raise ModelError(f"fmvit has no mixing '{mixing}'.", f"Choose {', '.join(MIXINGS)}.")
    for dim in dims:
        if mixing != "low" and not 0 < int(dim * low_share) < dim:
            raise ModelError(
                f"fmvit cannot divide {dim} channels into a share of {low_share:g} and the rest.",
                "Change low_share, or use mixing='low'.",
            )
    if dims[0] < 2:
        raise ModelError("fmvit's stem has half of 1 channel.", "Give a first width of 2 or more.")
    if stride not in {1, 2, 4}:
        raise ModelError(
            f"fmvit's stem of two strides cannot have a stride of {stride}.",
            "Give a stem_stride of 1, 2 or 4.",
        )


build = FMViT
