"""ChannelViT: every band has patches of its own, so attention runs over bands and places, and bands may be missing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from vitreous.catalog.arguments import Depth, ImageSize, Positive, Share, Size
from vitreous.catalog.card import Card
from vitreous.errors import ModelError
from vitreous.layers.backbone import Backbone, FeatureInfo, init_linear, linear_rates, stem_stride
from vitreous.layers.bands import resize_kernel
from vitreous.layers.positions import resize_map, resize_positions
from vitreous.layers.reference import pair, rename_keys
from vitreous.layers.sizes import check_tokens, whole_cells
from vitreous.layers.transformer import Block
from vitreous.layers.trunk import Embedded, Trunk

CARD = Card(
    slug="channelvit",
    title="Channel Vision Transformers: An Image Is Worth C x 16 x 16 Words",
    kind="model",
    summary="A ViT that tokenizes each channel separately with one shared patch embedding and "
    "adds a learned embedding per channel.",
    when="Few, heterogeneous channels of which some may be missing at inference; train with "
    "sampling=True. With all channels present a plain ViT was more accurate here.",
    paper="arXiv 2309.16108; ICLR 2024",
    year=2024,
    source_licence="CC-BY-NC-4.0 (insitro/ChannelViT): re-implemented from the equations",
    tasks=["classify"],
    input="bands",
    most_bands=32,  # attention is quadratic in them
    variants={
        "channelvit_tiny": {"dim": 192, "depth": 12, "heads": 3},
        "channelvit_small": {"dim": 384, "depth": 12, "heads": 6},
        "channelvit_small_8": {"dim": 384, "depth": 12, "heads": 6, "token_size": 8},
        "channelvit_base": {"dim": 768, "depth": 12, "heads": 12},
        "channelvit_patch": {
            "dim": 64,
            "depth": 4,
            "heads": 4,
            "token_size": 5,
            "drop_path": 0.1,
        },
        "channelvit_test": {"dim": 16, "depth": 2, "heads": 2, "token_size": 5, "mlp_ratio": 2.0},
    },
    published=[
        {"variant": "channelvit_tiny", "num_classes": 0, "parameters_m": 5.427},
        {"variant": "channelvit_small", "num_classes": 0, "parameters_m": 21.470},
        {
            "variant": "channelvit_small_8",
            "num_classes": 0,
            "bands": 18,
            "image_size": 32,
            "parameters_m": 21.333,
        },
        {"variant": "channelvit_base", "num_classes": 0, "parameters_m": 85.408},
    ],
    recipe={
        "optimizer": "adamw",
        "learning_rate": "5e-4 x batch / 256",
        "last_learning_rate": 1e-6,
        "weight_decay": "0.04 to 0.4, cosine",
        "warmup_epochs": 10,
        "schedule": "cosine",
        "drop_path": 0.1,
        "sampling": True,
    },
    claim="Trained with channel sampling, ChannelViT outperforms a ViT trained the same way when "
    "all channels are present, and by a wide margin when few are; sampling improves both.",
    miniature="Patches of 8 x 8 pixels, 8 channels averaged from neighbouring bands, tokens of 4 "
    "pixels, width 64, 4 blocks: ViT and ChannelViT, each with and without sampling, tested on "
    "random subsets of the channels. Required: sampled ChannelViT at least 1 point above sampled "
    "ViT on 4 channels and fewer; sampling worth 10 points on 2 channels; with all channels at "
    "most 1 point below ViT.",
    notes=[
        "Usage: The sequence length is bands times patches, and attention is quadratic in it: "
        "reduce a cube of hundreds of bands to a handful of channels first.",
        "Usage: sampling=True keeps a random number of channels, uniform from 1 to all, drawn "
        "once per batch and only in training. SampledInput gives any other architecture the same "
        "augmentation, as in the paper's baseline.",
        "Usage: forward and forward_features accept channels=, the indices of the bands that are "
        "present: one list per batch, or one per image. Maps and exports always read all bands.",
        "Usage: channelvit_patch is our variant for scene patches: tokens of 5 x 5 pixels, 9 per "
        "channel at 15 x 15.",
        "Image size: Tokens are 16 pixels at 224; on smaller images they shrink so that at least "
        "7 x 7 remain (token_size).",
        "Checkpoints: The authors published weights for ImageNet, JUMP-CP, Camelyon17 and "
        "So2Sat. For other bands, each new channel embedding is the mean of those of the nearest "
        "bands; fine-tune afterwards.",
        "Differs from the reference: The authors' code compares the number of tokens with that "
        "of positions and therefore resamples the position table by 0.1 cells even where it "
        "fits. Ours does not; published_positions=True reproduces theirs, which their "
        "checkpoints were trained with.",
        "Published figures: Parameter counts are without the classification head.",
    ],
)

Channels: TypeAlias = Sequence[int] | Int[Tensor, "given"] | Int[Tensor, "batch given"]


class ChannelViT(Trunk):
    """Vision Transformer over channels and places (arXiv 2309.16108, section 3).

    Args:
        bands: channels that it knows.
        num_classes: classes; with 0 the class token is returned.
        image_size: side of the image in pixels, or its height and width; what does not fill a token at the end is left
            out.
        dim: token width.
        depth: number of blocks.
        heads: attention heads.
        token_size: side of a token in pixels; 16, or on small images what leaves 7 x 7 places.
        mlp_ratio: hidden width of the feed-forward over the token width.
        drop_path: stochastic depth of the last block, growing linearly from 0.
        sampling: train on a random subset of the channels (hierarchical channel sampling).
        published_positions: stretch the position table as the authors' code does.

    Raises:
        ModelError: an image smaller than a token, or heads that do not divide the width.
    """

    any_size = True
    band_parameters = ("channel_embed",)
    band_tables = ("channel_embed",)
    undecayed = ("pos_embed", "class_token", "channel_embed")

    def __init__(
        self,
        bands: int,
        num_classes: int,
        image_size: ImageSize = 224,
        *,
        dim: Size = 384,
        depth: Depth = 12,
        heads: Size = 6,
        token_size: Size | None = None,
        mlp_ratio: Positive = 4.0,
        drop_path: Share = 0.0,
        sampling: bool = False,
        published_positions: bool = False,
    ) -> None:
        super().__init__(bands, num_classes, image_size)
        self.token_size = token_size or stem_stride(image_size, 16, cells=7)
        _check(self.size, self.token_size, dim, heads)
        self.num_features, self.least_size = dim, self.token_size
        self.grid, self.stacked = whole_cells(self.size, self.token_size), bands
        self.sampling, self.published_positions = sampling, published_positions
        self.feature_info = [FeatureInfo(dim, self.token_size)]
        self.patch_embed = nn.Conv2d(1, dim, self.token_size, stride=self.token_size)
        self.channel_embed = nn.Parameter(torch.empty(1, bands, dim))
        self.class_token = nn.Parameter(torch.empty(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + math.prod(self.grid), dim))
        self.blocks = nn.ModuleList(
            Block(dim, heads, mlp_ratio, rate) for rate in linear_rates(drop_path, depth)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = self.make_head(num_classes)
        init_linear(self)
        for table in (self.channel_embed, self.class_token, self.pos_embed):
            nn.init.trunc_normal_(table, std=0.02)

    def forward(
        self, x: Float[Tensor, "batch given height width"], channels: Channels | None = None
    ) -> Float[Tensor, "batch classes"]:
        """Classify images of all bands, or of some of them.

        Args:
            x: the images.
            channels: the number of the band that each channel of ``x`` is; all of them, in order, where not given.

        Raises:
            ModelError: channels that the network does not know, or not one number per channel of the images.
        """
        self._check_given(x, channels)
        return self.forward_head(self.forward_features(x, channels))

    def forward_features(
        self, x: Float[Tensor, "batch given height width"], channels: Channels | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """Return the last block's tokens, normalised: the class token, then the places of one channel after another.

        In training with ``sampling`` there are fewer channels than were given.
        """
        return self.norm(self.run_blocks(self.embed(x, channels)))

    def forward_head(
        self, features: Float[Tensor, "batch tokens dim"]
    ) -> Float[Tensor, "batch classes"]:
        """Classify the class token."""
        return self.head(features[:, 0])

    def forward_levels(
        self, x: Float[Tensor, "batch given height width"], channels: Channels | None = None
    ) -> list[Float[Tensor, "batch dim h w"]]:
        """Return one map, the mean over the channels' tokens; ``channels`` and errors as in :meth:`forward`."""
        self._check_given(x, channels)
        return self.maps(self.embed(x, channels))

    def _check_given(self, x: Tensor, channels: Channels | None) -> None:
        """Refuse images that do not fit; those of some channels need not have all bands."""
        if channels is None:
            self.check_bands(x)
        else:
            self._numbers(x, channels)
        self.check_size(x.shape[2], x.shape[3])

    def embed(
        self, x: Float[Tensor, "batch given height width"], channels: Channels | None = None
    ) -> Embedded:
        """Return the class token and the tokens of all channels, or of those that were drawn, with their positions."""
        numbers = None if channels is None else self._numbers(x, channels)
        if self.sampling and self.training:
            drawn = draw_channels(x.shape[1]).to(x.device)
            x, numbers = x[:, drawn], drawn if numbers is None else numbers[..., drawn]
        given = x.shape[1]
        patches = self.patch_embed(rearrange(x, "b c h w -> (b c) 1 h w"))
        grid = (patches.shape[2], patches.shape[3])
        positions = self.position_table(grid, given)
        front, places = positions[:, :1], positions[:, 1:]
        # Small tables are joined first, so that the tokens are read and written once.
        tokens = rearrange(patches, "(b c) d h w -> b c (h w) d", c=given) + (
            self._channel_vectors(numbers)[:, :, None] + places[:, None]
        )
        front = (self.class_token + front).expand(x.shape[0], -1, -1)
        tokens = torch.cat([front, rearrange(tokens, "b c n d -> b (c n) d")], 1)
        return Embedded(tokens, None, grid)

    def position_table(self, size: tuple[int, int], given: int) -> Float[Tensor, "1 positions dim"]:
        """Return the class token's position and those of a grid, which all channels share.

        Args:
            size: rows and columns of the grid.
            given: channels; the authors' code leaves the table alone for a single one.
        """
        exact = given == 1 and size == self.grid
        if self.published_positions and not exact:
            return stretch_positions(self.pos_embed, size, self.grid)
        return resize_positions(self.pos_embed, size, 1, self.grid)

    def _channel_vectors(
        self, numbers: Int[Tensor, "*batch given"] | None
    ) -> Float[Tensor, "#batch given dim"]:
        if numbers is None:
            return self.channel_embed
        vectors = self.channel_embed[0][numbers]
        return vectors if numbers.ndim == 2 else vectors[None]

    def _numbers(self, x: Tensor, channels: Channels) -> Int[Tensor, "*batch given"]:
        """Return the channels' numbers as a tensor, after a look at them."""
        numbers = torch.as_tensor(channels, device=x.device)
        fitting = {(x.shape[1],), (x.shape[0], x.shape[1])}
        if x.ndim != 4 or not x.shape[1] or tuple(numbers.shape) not in fitting:
            raise ModelError(
                f"{tuple(numbers.shape)} numbers of channels do not describe images {tuple(x.shape)}.",
                "Give one number per channel of the images.",
            )
        if numbers.is_floating_point() or numbers.min() < 0 or numbers.max() >= self.bands:
            raise ModelError(
                f"This network has channels 0 to {self.bands - 1}, not all of {numbers.tolist()}.",
                "Give numbers of bands that it was built for.",
            )
        return numbers


class SampledInput(nn.Module):
    """Hierarchical channel sampling for any architecture: the paper's baseline for ChannelViT (section 3.2).

    In training, all but the drawn channels are zero and the image is multiplied by channels over drawn channels. In
    use, images of some channels are completed in the same way.

    Args:
        model: what reads the images.
    """

    def __init__(self, model: Backbone) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, x: Float[Tensor, "batch given height width"], channels: Sequence[int] | None = None
    ) -> Float[Tensor, "batch *scores"]:
        """Classify images of all bands, or of those with the numbers ``channels``.

        Raises:
            ModelError: the numbers do not describe the images.
        """
        bands = self.model.bands
        numbers = torch.arange(x.shape[1]) if channels is None else torch.as_tensor(channels)
        if tuple(numbers.shape) != (x.shape[1],) or not set(numbers.tolist()) <= set(range(bands)):
            raise ModelError(
                f"Channels {numbers.tolist()} do not describe images {tuple(x.shape)} for {bands} bands.",
                "Give one number below the number of bands per channel of the images.",
            )
        if channels is None and x.shape[1] != bands:
            raise ModelError(
                f"Images {tuple(x.shape)} do not have all {bands} bands.",
                "Give the channels they have with channels=.",
            )
        if self.training:
            drawn = draw_channels(x.shape[1])
            x, numbers = x[:, drawn.to(x.device)], numbers[drawn]
        whole = x.new_zeros(x.shape[0], bands, *x.shape[2:])
        kept = numbers.to(x.device)
        return self.model(whole.index_copy(1, kept, x * (bands / len(numbers))))


def draw_channels(count: int) -> Int[Tensor, "drawn"]:
    """Draw how many channels to keep, from 1 to all, and then which, both uniformly; in ascending order."""
    drawn = int(torch.randint(1, count + 1, ()))
    return torch.randperm(count)[:drawn].sort().values


def stretch_positions(
    table: Float[Tensor, "1 tokens dim"], size: tuple[int, int], grid: tuple[int, int]
) -> Float[Tensor, "1 new_tokens dim"]:
    """Resample positions behind a class token's as the authors' code does: for a grid that is 0.1 cells larger.

    Args:
        table: positions of a grid, the first of which is the class token's.
        size: rows and columns wanted.
        grid: rows and columns of the table.
    """
    steps = (grid[0] / (int(size[0]) + 0.1), grid[1] / (int(size[1]) + 0.1))
    image = rearrange(table[:, 1:], "1 (h w) d -> 1 d h w", h=grid[0])
    image = resize_map(image, size, steps)
    return torch.cat([table[:, :1], rearrange(image, "1 d h w -> 1 (h w) d")], 1)


def _check(size: tuple[int, int], token_size: int, dim: int, heads: int) -> None:
    check_tokens("channelvit", size, token_size)
    if dim % heads:
        raise ModelError(
            f"channelvit has width {dim}, not divisible by {heads} heads.", "Change dim or heads."
        )


build = ChannelViT


AS_PUBLISHED = {"published_positions": True}  # how weights in this layout were trained
LAYOUTS = {"the authors' ChannelViT": (r"^patch_embed\.channel_embed\.weight$",)}


def rename(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the authors' weights our names; their projection has an axis of one channel more, their table one less."""
    names = {
        "patch_embed.proj.weight": "patch_embed.weight",
        "patch_embed.proj.bias": "patch_embed.bias",
        "patch_embed.channel_embed.weight": "channel_embed",
        "cls_token": "class_token",
    }
    renamed = rename_keys(state_dict, lambda key: names.get(key, key))
    if "patch_embed.proj.weight" in state_dict:
        renamed["patch_embed.weight"] = renamed["patch_embed.weight"].squeeze(2)
    if "patch_embed.channel_embed.weight" in state_dict:
        renamed["channel_embed"] = renamed["channel_embed"][None]
    return renamed


def resize(
    state_dict: Mapping[str, Tensor], model: ChannelViT, source: ChannelViT | None = None
) -> dict[str, Tensor]:
    """Resample positions to the grid of ``model``, and the projection to its tokens."""
    side, old = model.token_size, None if source is None else source.grid
    return {
        **state_dict,
        "pos_embed": resize_positions(state_dict["pos_embed"], model.grid, 1, old),
        "patch_embed.weight": resize_kernel(state_dict["patch_embed.weight"], (side, side)),
    }


def from_reference(state_dict: Mapping[str, Tensor], kwargs: Mapping[str, Any]) -> ChannelViT:
    """Build the model from the arguments of the authors' ChannelVisionTransformer and load its weights.

    Its positions are theirs (``published_positions``), as its weights expect. Of several sides in ``img_size`` their class
    reads the first alone, as that of a square; a table that fits both is taken for both.
    """
    token, sides = kwargs.get("patch_size", 16), pair(kwargs.get("img_size", 224))
    if state_dict["pos_embed"].shape[1] != 1 + math.prod(whole_cells(sides, token)):
        sides = (sides[0], sides[0])
    model = ChannelViT(
        bands=kwargs.get("in_chans", 3),
        num_classes=kwargs.get("num_classes", 0),
        image_size=sides,
        token_size=token,
        dim=kwargs.get("embed_dim", 768),
        depth=kwargs.get("depth", 12),
        heads=kwargs.get("num_heads", 12),
        mlp_ratio=kwargs.get("mlp_ratio", 4.0),
        drop_path=kwargs.get("drop_path_rate", 0.0),
        sampling=kwargs.get("enable_sample", False),
        published_positions=True,
    )
    without = not any(key.endswith(".attn.qkv.bias") for key in state_dict)
    zeros = {
        f"blocks.{number}.attn.qkv.bias": torch.zeros(3 * model.num_features)
        for number in range(len(model.blocks))
        if without and not kwargs.get("qkv_bias", False)  # theirs may have none; ours is then 0
    }
    model.load_state_dict({**zeros, **rename(state_dict)})
    return model
