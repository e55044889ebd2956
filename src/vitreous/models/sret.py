"""SReT: a pyramid whose blocks are each applied twice with the same weights, and attend within slices of the sequence."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.catalog.arguments import Depths, ImageSize, Positive, Share, Size, Sizes
from vitreous.catalog.card import Card
from vitreous.errors import CheckpointError, ModelError
from vitreous.layers.adapter import AdapterSeam
from vitreous.layers.backbone import Backbone, FeatureInfo, init_linear, stem_stride
from vitreous.layers.drop import DropPath
from vitreous.layers.mlp import Mlp
from vitreous.layers.positions import resize_positions
from vitreous.layers.reference import join, pair, rename_keys, substitute
from vitreous.layers.transformer import Attention
from vitreous.layers.windows import padding_bias, partition, reverse

CARD = Card(
    slug="sret",
    title="Sliced Recursive Transformer",
    kind="model",
    summary="A pyramid that applies each block twice with the same weights; attention inside slices "
    "of the sequence pays for the second pass.",
    when="Where a model file must be small: as deep as 20 blocks with the weights of 10.",
    paper="arXiv 2111.05297 (ECCV 2022)",
    year=2022,
    source_licence="MIT (szq0214/SReT): re-implemented from the equations",
    tasks=["classify"],
    variants={
        "sret_tiny": {
            "head_dim": 32,
            "depths": [4, 10, 6],
            "heads": [2, 4, 8],
            "mlp_ratio": 3.6,
            "drop_path": 0.1,
        },
        "sret_light": {
            "head_dim": 32,
            "depths": [4, 10, 6],
            "heads": [2, 4, 8],
            "mlp_ratio": 4.0,
            "drop_path": 0.1,
        },
        "sret_small": {
            "head_dim": 42,
            "depths": [4, 10, 6],
            "heads": [3, 6, 12],
            "mlp_ratio": 3.0,
            "link_ratio": 2.0,
            "drop_path": 0.1,
        },
        "sret_test": {
            "head_dim": 8,
            "depths": [2, 4],
            "heads": [1, 2],
            "groups": [4, 2],
            "groups_again": [2, 1],
            "mlp_ratio": 2.0,
        },
    },
    published=[
        {"variant": "sret_tiny", "parameters_m": 4.756, "readme_gmacs": 1.1, "top1": 76.0},
        {
            "variant": "sret_tiny",
            "arguments": {"groups": [1, 1, 1], "groups_again": [1, 1, 1]},
            "parameters_m": 4.756,
            "readme_gmacs": 1.4,
            "top1": 76.1,
        },
        {"variant": "sret_light", "parameters_m": 4.988, "readme_gmacs": 1.2, "top1": 76.7},
        {
            "variant": "sret_light",
            "arguments": {"groups": [1, 1, 1], "groups_again": [1, 1, 1]},
            "parameters_m": 4.988,
            "readme_gmacs": 1.4,
            "top1": 76.8,
        },
        {
            "variant": "sret_light",
            "arguments": {"groups": [16, 14, 1], "groups_again": [1, 1, 1]},
            "parameters_m": 4.988,
            "top1": 76.6,
        },
        {"variant": "sret_small", "parameters_m": 20.900, "readme_gmacs": 4.2, "top1": 81.9},
        {
            "variant": "sret_small",
            "arguments": {"groups": [1, 1, 1], "groups_again": [1, 1, 1]},
            "parameters_m": 20.900,
            "readme_gmacs": 4.7,
            "top1": 82.0,
        },
    ],
    recipe={
        "optimizer": "adamw",
        "learning_rate": "1e-3 x batch size / 512",
        "weight_decay": 0.05,
        "epochs": 300,
        "warmup_epochs": 30,
        "augmentation": "mixup, CutMix, RandAugment, as DeiT",
        "distillation": "soft labels of the teacher alone",
    },
    claim="A second pass with the same weights is worth about 2 points; slices save 10 to 30 % of the "
    "multiply-adds for 0.1 points.",
    miniature="Toy digits (--data FOLDER takes real images): each block once, twice, and twice with "
    "slices. Required: twice not below once, slices at most 1 point below none, at fewer "
    "multiply-adds.",
    notes=[
        "Usage: depths counts applications of blocks; loops of them share their weights. The small "
        "projections between them (links) are not shared.",
        "Usage: Where groups_again exceeds 1, tokens are put into another order for the second pass, "
        "at random in training. The authors draw it anew in evaluation too, so that scores change "
        "from call to call; here it is fixed there (steps of about 0.62 of the sequence).",
        "Image size: Positions are 8 pixels apart at 224, less on smaller images, so that 4 x 4 cells "
        "remain on the last map (stem_stride). The authors fix the size; here learned positions are "
        "resampled.",
        "Image size: The authors' slices must divide the sequence. Here the last slice may be "
        "shorter, and where tokens are few there are fewer slices.",
        "As in the reference: Stochastic depth has one rate per block, for all its passes; links have "
        "none.",
        "As in the reference: Passes are told apart by position, every second application being a "
        "second pass. That is wrong for other numbers of loops than 2, where passes are counted per "
        "block here; alternate_passes=True repeats the authors' rule, and from_reference sets it.",
        "Checkpoints: The authors' files hold each shared block once per pass; copies that differ are "
        "refused.",
        "Published figures: The README's multiply-adds are rounded to a tenth (readme_gmacs); ours "
        "include the attention products of every slice.",
        "Not included: Distillation, for which see deit; dropout (0 in every published setting).",
    ],
)


class SlicedAttention(Attention):
    """Multi-head self-attention within slices of the sequence."""

    def slice(
        self, x: Float[Tensor, "batch tokens dim"], groups: int, shuffle: bool = False
    ) -> Float[Tensor, "batch tokens dim"]:
        """Attend.

        Args:
            x: the tokens.
            groups: number of slices; the last one may be shorter.
            shuffle: cut the slices of the sequence in another order: a random one in training, else a fixed one.
        """
        tokens = int(x.shape[1])  # a tensor while a graph is traced
        length = -(-tokens // groups)
        orders = self._orders(tokens, x.device) if shuffle and length < tokens else None
        qkv = self.qkv(x if orders is None else x[:, orders[0]])
        query, key, value = rearrange(
            partition(qkv[:, None], (1, length)), "b g t (c h d) -> c b g h t d", c=3, h=self.heads
        ).unbind(0)
        bias = padding_bias(1, tokens, (1, length), qkv) if tokens % length else None
        mixed = rearrange(
            self.core(query, key, value, bias, (1, length)), "b g h t d -> b g t (h d)"
        )
        mixed = reverse(mixed, (1, length), 1, tokens)[:, 0]
        return self.proj(mixed if orders is None else mixed[:, orders[1]])

    def _orders(self, tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return another order of the tokens, and the way back."""
        if self.training:
            order = torch.randperm(tokens, device=device)
            return order, order.argsort()
        step, places = _step(tokens), torch.arange(tokens, device=device)
        return places * step % tokens, places * pow(step, -1, tokens) % tokens


def _step(tokens: int) -> int:
    """Return a step through a sequence that meets every token once, and neighbours far apart."""
    step = max(1, round(tokens * (5**0.5 - 1) / 2))
    while math.gcd(step, tokens) > 1:
        step += 1
    return step


class RecursiveBlock(nn.Module):
    """Attention and feed-forward, in sums with learned weights; it may be applied several times.

    Args:
        dim: token width.
        heads: number of heads.
        mlp_ratio: hidden width of the feed-forward over the token width.
        groups: slices in the first pass, and in the others.
        drop_path: stochastic depth.
    """

    def __init__(
        self, dim: int, heads: int, mlp_ratio: float, groups: tuple[int, int], drop_path: float
    ) -> None:
        super().__init__()
        self.groups = groups
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = SlicedAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.adapter = AdapterSeam(dim)
        self.weights = nn.Parameter(torch.ones(4))
        self.drop_path = DropPath(drop_path)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], again: bool = False
    ) -> Float[Tensor, "batch tokens dim"]:
        """Apply the block; ``again`` where it is not the first pass."""
        mixed = self.attn.slice(self.norm1(x), self.groups[again], again)
        x = self.weights[0] * x + self.drop_path(self.weights[1] * mixed)
        branch = self.drop_path(self.weights[3] * self.mlp(self.norm2(x)))
        return self.weights[2] * x + self.adapter(x, branch)


class Link(nn.Module):
    """What stands between two passes: a feed-forward in a sum with learned weights, not shared.

    Args:
        dim: token width.
        mlp_ratio: hidden width over the token width.
    """

    def __init__(self, dim: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.adapter = AdapterSeam(dim)
        self.weights = nn.Parameter(torch.ones(2))

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Apply it."""
        return self.weights[0] * x + self.adapter(x, self.weights[1] * self.mlp(self.norm(x)))


class Stage(nn.Module):
    """Blocks and links on a map of one size.

    Args:
        reduce: what makes the map from that of the stage before.
        blocks: the blocks, each of which is applied ``loops`` times in a row.
        links: behind each application.
        alternate: see ``alternate_passes`` of :class:`SReT`.
    """

    def __init__(
        self,
        reduce: nn.Module,
        blocks: Sequence[RecursiveBlock],
        links: Sequence[Link],
        alternate: bool,
    ) -> None:
        super().__init__()
        self.reduce = reduce
        self.blocks, self.links = nn.ModuleList(blocks), nn.ModuleList(links)
        self.loops, self.alternate = len(links) // max(len(blocks), 1), alternate

    def plan(self) -> Iterator[tuple[nn.Module, bool, nn.Module]]:
        """Give each application: the block, whether it was applied before, and the link behind it."""
        for number, link in enumerate(self.links):
            again = number % 2 == 1 if self.alternate else number % self.loops > 0
            yield self.blocks[number // self.loops], again, link


class SReT(Backbone):
    """Sliced Recursive Transformer (arXiv 2111.05297).

    Args:
        bands: channels of the input.
        num_classes: classes; with 0 the pooled features are returned.
        image_size: side of the image in pixels, or height and width.
        head_dim: width of a head; a stage is as wide as its heads together.
        depths: applications of blocks in each stage, a multiple of ``loops``.
        loops: how often each block is applied in a row; for each stage its own, or one for all.
        heads: attention heads of each stage.
        groups: slices of the sequence in a block's first pass, for each stage.
        groups_again: likewise in its other passes, where the sequence has another order.
        mlp_ratio: hidden width of the feed-forward over the token width.
        link_ratio: likewise of the links.
        stem_stride: pixels per cell of the first map and side, 8, 4, 2 or 1; 8, or on small images what leaves 4 x 4
            cells on the last map. Maps round up.
        drop_path: stochastic depth, growing from 0.
        alternate_passes: every second application is a second pass, whatever the loops, as in the authors' code.

    Raises:
        ModelError: lists of unequal lengths, depths that are no multiple of the loops, or another stride of the stem.
    """

    any_size = True
    band_parameters = ("convs.0.weight",)
    undecayed = ("pos_embed",)

    def __init__(
        self,
        bands: int,
        num_classes: int,
        image_size: ImageSize = 224,
        *,
        head_dim: Size | Sizes = 32,
        depths: Depths = (4, 10, 6),
        loops: Size | Sizes = 2,
        heads: Sizes = (2, 4, 8),
        groups: Sizes = (8, 4, 1),
        groups_again: Sizes = (2, 1, 1),
        mlp_ratio: Positive = 4.0,
        link_ratio: Positive = 1.0,
        stem_stride: Size | None = None,
        drop_path: Share = 0.0,
        alternate_passes: bool = False,
    ) -> None:
        super().__init__(bands, num_classes, image_size)
        stages = len(depths)
        widths, passes = _per_stage(head_dim, stages), _per_stage(loops, stages)
        _check(depths, passes, widths, heads, groups, groups_again)
        self.stride = stem_stride or _stride(image_size, stages)
        dims = [width * count for width, count in zip(widths, heads, strict=True)]
        self.convs = _stem(bands, dims[0], self.stride)
        self.grid = (-(-self.size[0] // self.stride), -(-self.size[1] // self.stride))
        self.pos_embed = nn.Parameter(torch.zeros(1, math.prod(self.grid), dims[0]))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.num_features = dims[-1]
        self.feature_info = [
            FeatureInfo(dim, self.stride * 2**stage) for stage, dim in enumerate(dims)
        ]
        self.stages = nn.ModuleList()
        for stage, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            first = sum(depths[:stage])
            blocks = [
                RecursiveBlock(
                    dim,
                    heads[stage],
                    mlp_ratio,
                    (groups[stage], groups_again[stage]),
                    drop_path * (first + number) / max(sum(depths), 1),
                )
                for number in range(depth // passes[stage])
            ]
            links = [Link(dim, link_ratio) for _ in range(depth)]
            reduce: nn.Module = nn.Identity()
            if stage:
                reduce = nn.Conv2d(dims[stage - 1], dim, 3, 2, 1, groups=dims[stage - 1])
            self.stages.append(Stage(reduce, blocks, links, alternate_passes))
        self.norm = nn.LayerNorm(self.num_features, eps=1e-6)
        self.head = self.make_head(num_classes)
        init_linear(self)

    def _maps(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> Iterator[Float[Tensor, "batch dim h w"]]:
        """Give the map of each stage."""
        x = self.convs(x)
        places = resize_positions(self.pos_embed, (x.shape[2], x.shape[3]), grid=self.grid)
        x = x + rearrange(places, "1 (h w) d -> 1 d h w", h=x.shape[2])
        for stage in self.stages:
            assert isinstance(stage, Stage)
            x = stage.reduce(x)
            size = (x.shape[2], x.shape[3])
            tokens = rearrange(x, "b d h w -> b (h w) d")
            for block, again, link in stage.plan():
                tokens = self.run(link, self.run(block, tokens, again))
            x = rearrange(tokens, "b (h w) d -> b d h w", h=size[0])
            yield x

    def forward_features(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> Float[Tensor, "batch dim h w"]:
        """Return the last stage's map."""
        *_, last = self._maps(x)
        return last

    def forward_head(
        self, features: Float[Tensor, "batch dim h w"]
    ) -> Float[Tensor, "batch classes"]:
        """Classify the mean of all cells, normalised."""
        return self.head(self.norm(features.mean((2, 3))))

    def level_maps(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> list[Float[Tensor, "batch channels h w"]]:
        """Return the maps of all stages, the last one normalised."""
        *maps, last = self._maps(x)
        return [*maps, self.norm(last.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)]


def _stem(bands: int, dim: int, stride: int) -> nn.Sequential:
    """Return three convolutions, of which the first ones halve the image until the stride is reached.

    Raises:
        ModelError: another stride than 8, 4, 2 or 1.
    """
    if stride not in {1, 2, 4, 8}:
        raise ModelError(f"sret's stem has no stride {stride}.", "Choose 1, 2, 4 or 8.")
    layers = nn.Sequential()
    for number, (inputs, outputs) in enumerate(((bands, dim // 2), (dim // 2, dim), (dim, dim))):
        step = 2 if stride >= 2 ** (number + 1) else 1
        layers.extend([nn.Conv2d(inputs, outputs, 3, step, 1), nn.BatchNorm2d(outputs), nn.ReLU()])
    return layers


def _stride(image_size: ImageSize, stages: int) -> int:
    return stem_stride(image_size, 8, later=2 ** (stages - 1))


def _per_stage(given: int | Sequence[int], stages: int) -> list[int]:
    return [given] * stages if isinstance(given, int) else list(given)


def _check(depths: Sequence[int], loops: Sequence[int], *others: Sequence[int]) -> None:
    if any(len(values) != len(depths) for values in (loops, *others)):
        raise ModelError(
            "sret has depths, loops, head_dim, heads, groups and groups_again of different lengths.",
            "Give one value per stage in each.",
        )
    for depth, times in zip(depths, loops, strict=True):
        if depth % times:
            raise ModelError(
                f"sret applies each block {times} times, which does not divide {depth} applications.",
                "Give depths that are multiples of loops.",
            )


build = SReT


LAYOUTS = {
    "the authors' SReT": (
        r"^patch_embed\.conv1\.weight$",
        r"^transformers\.0\.blocks\.0\.coefficient1\.bias$",
    ),
}
_NAMES = (
    (r"^patch_embed\.conv(\d)\.", lambda found: f"convs.{3 * int(found[1]) - 3}."),
    (r"^patch_embed\.bn(\d)\.", lambda found: f"convs.{3 * int(found[1]) - 2}."),
    (r"^pools\.(\d+)\.conv\.", lambda found: f"stages.{int(found[1]) + 1}.reduce."),
    (r"^transformers\.", "stages."),
)


def rename(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give weights of the authors our names: each block once, its weights of sums as one vector.

    Raises:
        CheckpointError: blocks that are not shared as the others of their stage.
    """
    weights = dict(state_dict)
    for count in (4, 2):
        parts = [f".coefficient{number}.bias" for number in range(1, count + 1)]
        weights = join(weights, parts, ".weights")
    if "pos_embed" in weights and weights["pos_embed"].ndim == 4:
        weights["pos_embed"] = rearrange(weights["pos_embed"], "1 d h w -> 1 (h w) d")
    return rename_keys(_once(weights), lambda key: substitute(_NAMES, key))


def _once(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Divide the authors' row of blocks and links, and drop the copies of blocks."""
    loops = _loops(weights)
    kept: dict[str, Tensor] = {}
    for key, value in weights.items():
        start, dot, rest = key.partition(".blocks.")
        number, _, part = rest.partition(".")
        if not dot or not number.isdecimal():
            kept[key] = value
        elif int(number) % 2:
            kept[f"{start}.links.{int(number) // 2}.{part.replace('norm1.', 'norm.')}"] = value
        else:
            name = f"{start}.blocks.{int(number) // 2 // loops[start]}.{part}"
            if name in kept and not torch.equal(kept[name], value):
                raise CheckpointError(
                    f"The tensor {key} differs from the copy of the block that shares its weights.",
                    "Give weights of a network that shares them as the others of its stage.",
                )
            kept[name] = value
    return kept


def _loops(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """Return how often the blocks of each stage are applied: how many copies of the first one stand in a row."""
    found: dict[str, int] = {}
    for key, value in weights.items():
        start, dot, rest = key.partition(".blocks.")
        number, _, part = rest.partition(".")
        if dot and number == "0" and part == "attn.qkv.weight":
            copies = 1
            while torch.equal(
                value, weights.get(f"{start}.blocks.{2 * copies}.{part}", value.new_empty(0))
            ):
                copies += 1
            found[start] = copies
    return found


def resize(
    state_dict: Mapping[str, Tensor], model: SReT, source: SReT | None = None
) -> dict[str, Tensor]:
    """Resample learned positions to the grid of ``model``, bicubically."""
    resized = dict(state_dict)
    if "pos_embed" in resized:
        grid = None if source is None else source.grid
        resized["pos_embed"] = resize_positions(resized["pos_embed"], model.grid, grid=grid)
    return resized


def from_reference(state_dict: Mapping[str, Tensor], kwargs: Mapping[str, Any]) -> SReT:
    """Build the model from the arguments of either of the authors' SReTs, with slices and without, and load its weights."""
    distinct = list(kwargs["recursive_num"])
    loops = [depth // own for depth, own in zip(kwargs["depth"], distinct, strict=True)]
    whole = [1] * len(distinct)
    model = SReT(
        bands=kwargs.get("in_chans", 3),
        num_classes=kwargs.get("num_classes", 1000),
        image_size=pair(kwargs["image_size"]),
        head_dim=kwargs["base_dims"],
        depths=[own * times for own, times in zip(distinct, loops, strict=True)],
        loops=loops,
        heads=kwargs["heads"],
        groups=kwargs.get("groups1", whole),
        groups_again=kwargs.get("groups2", whole),
        mlp_ratio=kwargs["mlp_ratio"],
        link_ratio=kwargs["np_mlp_ratio"],
        stem_stride=8,
        drop_path=kwargs.get("drop_path_rate", 0.0),
        alternate_passes=any(times != 2 for times in loops),
    )
    model.load_state_dict(rename(state_dict))
    return model
