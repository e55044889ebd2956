"""The encoder of SatMAE++: a ViT whose tokens are places of groups of bands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.catalog.arguments import Count, Depth, ImageSize, Positive, Share, Size
from vitreous.errors import ModelError
from vitreous.layers.backbone import FeatureInfo, linear_rates, stem_stride
from vitreous.layers.positions import resize_positions, sincos_2d
from vitreous.layers.sizes import check_tokens, whole_cells
from vitreous.layers.transformer import Block
from vitreous.layers.trunk import Embedded, Trunk

PUBLISHED_GROUPS = ((0, 1, 2, 6), (3, 4, 5, 7), (8, 9))
GROUPS = 3

Groups: TypeAlias = Sequence[Sequence[int]]


def default_groups(bands: int) -> tuple[tuple[int, ...], ...]:
    """Return the published groups of 10 bands; of others, three runs of neighbours whose sizes differ by 1 at most.

    Fewer than three bands are a group each.
    """
    if bands == sum(map(len, PUBLISHED_GROUPS)):
        return PUBLISHED_GROUPS
    count = min(GROUPS, bands)
    cuts = [-(-bands * k // count) for k in range(count + 1)]
    return tuple(tuple(range(cuts[k], cuts[k + 1])) for k in range(count))


class GroupEmbed(nn.Module):
    """Cut the bands of each group into patches, and project each group's by a weight of its own.

    Args:
        groups: numbers of bands; every band is in one group.
        dim: token width.
        size: side of a patch in pixels.
    """

    def __init__(self, groups: Groups, dim: int, size: int) -> None:
        super().__init__()
        self.order = [band for group in groups for band in group]
        self.sizes = [len(group) for group in groups]
        self.size = size
        self.fan_in = len(self.order) / len(groups) * size**2  # what each group sees, on average
        # One tensor, its second axis counting bands, is what layers/bands.py makes for other bands.
        self.weight = nn.Parameter(torch.empty(dim, len(self.order), size, size))
        self.bias = nn.Parameter(torch.zeros(len(groups), dim))
        with torch.no_grad():
            for group in groups:  # Xavier, as of one linear layer per group
                bound = (6 / (dim + len(group) * size**2)) ** 0.5
                self.weight[:, list(group)] = torch.empty(dim, len(group), size, size).uniform_(
                    -bound, bound
                )

    def forward(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> Float[Tensor, "batch groups dim h w"]:
        """Return a map of tokens per group; what does not fill a patch is left out."""
        parts = zip(self._grouped(x), self._grouped(self.weight), self.bias, strict=True)
        return torch.stack([F.conv2d(*part, stride=self.size) for part in parts], 1)

    def _grouped(self, x: Float[Tensor, "any bands *size"]) -> tuple[Tensor, ...]:
        in_order = self.order == sorted(self.order)
        return (x if in_order else x[:, self.order]).split(self.sizes, 1)


class GroupedTransformer(Trunk):
    """ViT over places and groups of bands (SatMAE, arXiv 2207.08051, section 3.3; SatMAE++, section 3).

    Args:
        bands: channels of the input.
        num_classes: classes; with 0 the pooled features are returned.
        image_size: side of the image in pixels, or its height and width; what does not fill a token at the end is left
            out.
        dim: token width.
        depth: number of blocks.
        heads: attention heads.
        groups: numbers of bands, every band in one group; :func:`default_groups` where not given.
        group_dim: how many of a token's channels tell its group, the others its place; a quarter where not given,
            and with 0 nothing tells the groups apart.
        token_size: side of a token in pixels; 8, or on small images what leaves 7 x 7 places.
        mlp_ratio: hidden width of the feed-forward over the token width.
        pool: ``cls`` (class token) or ``mean`` (over the other tokens, the last norm after it).
        norm_eps: of the normalisations.
        drop_path: stochastic depth of the last block, growing linearly from 0.

    Raises:
        ModelError: an image smaller than a token, a width that heads or positions do not divide, groups that miss or
            repeat a band, or no such pool.
    """

    norm: nn.LayerNorm
    any_size = True
    band_parameters = ("patch_embed.weight",)
    band_arguments = ("groups",)
    undecayed = ("pos_embed", "group_embed", "class_group_embed", "class_token", "patch_embed.bias")

    def __init__(
        self,
        bands: int,
        num_classes: int,
        image_size: ImageSize = 96,
        *,
        dim: Size = 768,
        depth: Depth = 12,
        heads: Size = 12,
        groups: Groups | None = None,
        group_dim: Count | None = None,
        token_size: Size | None = None,
        mlp_ratio: Positive = 4.0,
        pool: str = "cls",
        norm_eps: Positive = 1e-6,
        drop_path: Share = 0.0,
    ) -> None:
        super().__init__(bands, num_classes, image_size)
        self.groups = tuple(map(tuple, default_groups(bands) if groups is None else groups))
        self.token_size = token_size or stem_stride(image_size, 8, cells=7)
        self.num_features, self.mlp_ratio, self.pool = dim, mlp_ratio, pool
        self.group_dim = quarter(dim) if group_dim is None else group_dim
        self.grid, self.stacked = whole_cells(self.size, self.token_size), len(self.groups)
        self.least_size = self.token_size
        self._check(heads)
        self.feature_info = [FeatureInfo(dim, self.token_size)]
        self.patch_embed = GroupEmbed(self.groups, dim, self.token_size)
        self.class_token = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        place, group = sine_tables(dim, self.group_dim, self.grid, len(self.groups))
        self.pos_embed, self.group_embed = nn.Parameter(place), nn.Parameter(group)
        self.class_group_embed = nn.Parameter(torch.zeros(1, 1, self.group_dim))
        self.blocks = nn.ModuleList(
            Block(dim, heads, mlp_ratio, rate) for rate in linear_rates(drop_path, depth)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        init_linear(self.blocks)
        set_norms(self, norm_eps)
        self.head = self.make_head(num_classes)

    @property
    def tables(self) -> dict[str, nn.Parameter]:
        """The tables of places and groups, which pre-training leaves as they are."""
        names = ("pos_embed", "group_embed", "class_group_embed")
        return {name: self.get_parameter(name) for name in names}

    def embed(self, x: Float[Tensor, "batch bands height width"]) -> Embedded:
        """Return the class token, and those of :meth:`embed_cells`."""
        grid = whole_cells((x.shape[2], x.shape[3]), self.token_size)
        return Embedded(self._with_class(self.embed_cells(x)), None, grid)

    def embed_cells(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Return the tokens with their places and groups: all places of one group after another, no class token."""
        maps = self.patch_embed(x)
        size = (maps.shape[3], maps.shape[4])
        places = resize_positions(self.pos_embed, size, 1, self.grid)[:, 1:]
        return rearrange(maps, "b g d h w -> b (g h w) d") + join(places, self.group_embed)

    def encode(
        self, tokens: Float[Tensor, "batch tokens dim"]
    ) -> Float[Tensor, "batch tokens+1 dim"]:
        """Put the class token before embedded tokens, some of all of them, and apply the blocks; not normalised."""
        return self.run_blocks(Embedded(self._with_class(tokens), None, self.grid))

    def _with_class(
        self, tokens: Float[Tensor, "batch tokens dim"]
    ) -> Float[Tensor, "batch tokens+1 dim"]:
        front = torch.cat([self.pos_embed[:, :1], self.class_group_embed], -1) + self.class_token
        return torch.cat([front.expand(tokens.shape[0], -1, -1), tokens], 1)

    def forward_features(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Return the last block's tokens, the class token first; normalised unless they are pooled by their mean."""
        tokens = self.run_blocks(self.embed(x))
        return tokens if self.pool == "mean" else self.norm(tokens)

    def forward_head(
        self, features: Float[Tensor, "batch tokens dim"]
    ) -> Float[Tensor, "batch classes"]:
        """Classify the class token, or the mean of the others."""
        if self.pool == "mean":
            return self.head(self.norm(features[:, 1:].mean(1)))
        return self.head(features[:, 0])

    def _check(self, heads: int) -> None:
        check_tokens("satmae_pp", self.size, self.token_size)
        if sorted(band for group in self.groups for band in group) != [*range(self.bands)]:
            raise ModelError(
                f"The groups {self.groups} do not hold each of the bands 0 to {self.bands - 1} once.",
                "Put every band into one group.",
            )
        if not all(self.groups):
            raise ModelError("A channel group has no bands.", "Omit it.")
        if self.pool not in {"cls", "mean"}:
            raise ModelError(f"satmae_pp cannot pool by '{self.pool}'.", "Choose cls or mean.")
        check_width("satmae_pp", self.num_features, heads, self.group_dim)


def sine_tables(
    dim: int, group_dim: int, grid: tuple[int, int], groups: int
) -> tuple[Float[Tensor, "1 class_and_places place_dim"], Float[Tensor, "1 groups group_dim"]]:
    """Return fixed tables: of places, the class token's first, which is 0, and of groups.

    Args:
        dim: token width.
        group_dim: channels that tell the group; the others tell the place.
        grid: rows and columns of places.
        groups: how many.
    """
    places = F.pad(sincos_2d(dim - group_dim, *grid), (0, 0, 1, 0))
    # Groups stand in a row: of a grid's channels, the first half tells the column.
    return places[None], sincos_2d(2 * group_dim, 1, groups)[None, :, :group_dim].contiguous()


def join(
    places: Float[Tensor, "1 places place_dim"], groups: Float[Tensor, "1 groups group_dim"]
) -> Float[Tensor, "1 groups*places dim"]:
    """Return a vector per group and place, both parts side by side."""
    sizes = (-1, groups.shape[1], places.shape[1], -1)
    parts = [places[:, None].expand(sizes), groups[:, :, None].expand(sizes)]
    return torch.cat(parts, -1).flatten(1, 2)


def quarter(width: int) -> int:
    """Return a quarter of a width, so that both it and the rest can hold sines."""
    return width // 16 * 4


def init_linear(module: nn.Module) -> None:
    """Give linear layers the weights that MAE starts from."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)


def set_norms(module: nn.Module, eps: float) -> None:
    for part in module.modules():
        if isinstance(part, nn.LayerNorm):
            part.eps = eps


def check_width(what: str, width: int, heads: int, group_dim: int) -> None:
    if width % heads:
        raise ModelError(f"{what} has width {width}, not divisible by {heads} heads.")
    if group_dim % 2 or not 0 <= group_dim < width or (width - group_dim) % 4:
        raise ModelError(
            f"{what} cannot tell groups by {group_dim} of {width} channels.",
            "Give an even number that leaves a multiple of 4.",
        )
