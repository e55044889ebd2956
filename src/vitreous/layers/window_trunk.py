"""The pyramid of window attention that Swin and its variations share."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.catalog.arguments import ImageSize
from vitreous.catalog.tensors import DERIVED
from vitreous.errors import ModelError
from vitreous.layers.backbone import Backbone, FeatureInfo, init_linear, linear_rates, stem_stride
from vitreous.layers.pooling import check_pool, pool_cells
from vitreous.layers.positions import resize_positions
from vitreous.layers.reference import pair, rename_keys, substitute
from vitreous.layers.window_blocks import PatchMerging, WindowBlock, WindowStage
from vitreous.layers.windows import resize_biases


class WindowPyramid(Backbone):
    """Stages of blocks on maps, channels last, each stage on a smaller map than the one before.

    A subclass sets ``patch_norm``, ``pos_embed``, ``grid``, ``stages`` (of :class:`WindowStage`), ``norm`` and ``pool``,
    and writes :meth:`embed`.

    Attributes:
        grid: rows and columns of the first stage's map, at the size that the network is built for.
        pos_embed: learned positions of its cells, or None.
        pool: how the last map's cells become one vector (``layers/pooling.py``).
    """

    any_size = True
    undecayed: ClassVar[tuple[str, ...]] = ("pos_embed", "position.table")
    grid: tuple[int, int]
    pos_embed: nn.Parameter | None
    stages: nn.ModuleList
    norm: nn.Module
    pool: str

    def embed(self, x: Float[Tensor, "batch bands height width"]) -> Float[Tensor, "batch h w dim"]:
        """Return the tokens of the first stage."""
        raise NotImplementedError

    def place(self, x: Float[Tensor, "batch h w dim"]) -> Float[Tensor, "batch h w dim"]:
        """Add learned positions, where there are some."""
        if self.pos_embed is None:
            return x
        table = resize_positions(self.pos_embed, (x.shape[1], x.shape[2]), grid=self.grid)
        return x + rearrange(table, "1 (h w) d -> 1 h w d", h=x.shape[1])

    def pyramid(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> Iterator[Float[Tensor, "batch h w dim"]]:
        """Give the map of each stage."""
        x = self.embed(x)
        for stage in self.stages:
            assert isinstance(stage, WindowStage)
            x = stage.merge(x)
            for block, mask in stage.plan(x):
                x = self.run(block, x, mask)
            yield x

    def forward_features(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Return the last stage's tokens, normalised."""
        *_, last = self.pyramid(x)
        return rearrange(self.norm(last), "b h w d -> b (h w) d")

    def forward_head(
        self, features: Float[Tensor, "batch tokens dim"]
    ) -> Float[Tensor, "batch classes"]:
        """Classify the pooled tokens."""
        return self.head(pool_cells(features, self.pool, (1,)))

    def level_maps(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> list[Float[Tensor, "batch channels h w"]]:
        """Return the maps of all stages, the last one normalised."""
        *maps, last = self.pyramid(x)
        return [rearrange(m, "b h w d -> b d h w") for m in (*maps, self.norm(last))]


class WindowTransformer(WindowPyramid):
    """A pyramid of window attention.

    A subclass says in its signature what it offers and hands it on; what follows from the sizes is here. Sides that a
    token, a merge or a window does not divide are padded with zeros below and on the right.

    Args:
        bands: channels of the input.
        num_classes: classes; with 0 the pooled features are returned.
        image_size: side of the image in pixels, or height and width.
        dim: token width of the first stage; each further stage doubles it.
        depths: blocks of each stage.
        heads: attention heads of each stage.
        window: side of a window in tokens, or for each stage one of its own, a side or rows and columns; a stage with
            fewer tokens along an axis is not cut along it.
        token_size: side of a token of the first stage in pixels; 4, or on small images what leaves 4 x 4 tokens in
            the last stage.
        drop_path: stochastic depth of the last block, growing linearly from 0.
        shift: move the windows of every second block by half their side; or for each stage, whether down and whether
            across.
        absolute_positions: add learned positions to the tokens of the first stage.
        stem_norm: normalise the tokens of the first stage.
        partial_tokens: what is left of an image below and on the right makes tokens too, padded with zeros.
        pool: how the last map's cells become one vector: ``mean``, ``max``, or ``mean_max``, the mean of both.
        block: makes a block of ``(dim, heads, window, shifted, drop_path=...)``.

    Raises:
        ModelError: depths and heads of unequal numbers, heads that do not divide a width, or no window.
    """

    slug: ClassVar[str]
    band_parameters = ("patch_embed.weight",)

    def __init__(
        self,
        bands: int,
        num_classes: int,
        image_size: ImageSize,
        *,
        dim: int,
        depths: Sequence[int],
        heads: Sequence[int],
        window: int | Sequence[int | Sequence[int]],
        token_size: int | None,
        drop_path: float,
        shift: bool | Sequence[Sequence[bool]],
        absolute_positions: bool,
        stem_norm: bool,
        partial_tokens: bool,
        pool: str,
        block: Callable[..., WindowBlock],
    ) -> None:
        super().__init__(bands, num_classes, image_size)
        stages = len(depths)
        windows = [window] * stages if isinstance(window, int) else list(window)
        sides = [pair(given) for given in windows]
        shifts = self._shifts(shift, stages)
        self._check(dim, depths, heads, sides)
        check_pool(self.slug, pool)
        self.pool = pool
        self.token_size = token_size or stem_stride(image_size, 4, later=2 ** (stages - 1))
        dims = [dim * 2**stage for stage in range(stages)]
        self.num_features = dims[-1]
        self.feature_info = [
            FeatureInfo(width, self.token_size * 2**stage) for stage, width in enumerate(dims)
        ]
        self.patch_embed = nn.Conv2d(bands, dim, self.token_size, stride=self.token_size)
        self.patch_norm = nn.LayerNorm(dim) if stem_norm else nn.Identity()
        self.partial_tokens = partial_tokens
        self.least_size = 1 if partial_tokens else self.token_size
        self.check_size(*self.size)
        rest = self.token_size - 1 if partial_tokens else 0
        self.grid = divided(self.size, self.token_size, rest)
        self.pos_embed = (
            nn.Parameter(torch.zeros(1, math.prod(self.grid), dim)) if absolute_positions else None
        )
        rates = iter(linear_rates(drop_path, sum(depths)))
        self.stages = nn.ModuleList()
        for stage, (width, depth) in enumerate(zip(dims, depths, strict=True)):
            cells = divided(self.grid, 2**stage, 2**stage - 1)
            largest = (min(sides[stage][0], cells[0]), min(sides[stage][1], cells[1]))
            blocks = [
                block(
                    width,
                    heads[stage],
                    largest,
                    shifts[stage] if number % 2 == 1 else False,
                    drop_path=next(rates),
                )
                for number in range(depth)
            ]
            merge = PatchMerging(width // 2) if stage else nn.Identity()
            self.stages.append(WindowStage(merge, blocks))
        self.norm = nn.LayerNorm(self.num_features)
        self.head = self.make_head(num_classes)
        init_linear(self)
        if self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def embed(self, x: Float[Tensor, "batch bands height width"]) -> Float[Tensor, "batch h w dim"]:
        """Return the tokens of the first stage."""
        below, right = (-side % self.token_size for side in x.shape[2:])
        if self.partial_tokens and (below or right):
            x = F.pad(x, (0, right, 0, below))
        return self.place(self.patch_norm(rearrange(self.patch_embed(x), "b d h w -> b h w d")))

    def _shifts(
        self, given: bool | Sequence[Sequence[bool]], stages: int
    ) -> list[tuple[bool, bool]]:
        """Return for each stage whether its shifted windows move down and across.

        Raises:
            ModelError: not two answers for each stage.
        """
        if isinstance(given, bool):
            return [(given, given)] * stages
        if len(given) != stages or any(len(moves) != 2 for moves in given):
            raise ModelError(
                f"{self.slug} has shift={given!r:.80} for {stages} stages.",
                "Give true or false, or for each stage whether windows move down and across.",
            )
        return [(bool(down), bool(across)) for down, across in given]

    def _check(
        self,
        dim: int,
        depths: Sequence[int],
        heads: Sequence[int],
        windows: Sequence[tuple[int, int]],
    ) -> None:
        check_stages(self.slug, dim, depths, heads)
        if len(windows) != len(depths):
            raise ModelError(
                f"{self.slug} has windows for {len(windows)} stages of {len(depths)}.",
                "Give one side for all stages, or one window per stage.",
            )
        if any(min(window) < 1 for window in windows):
            raise ModelError(
                f"{self.slug} has no windows of {windows} tokens.", "Give windows of 1 or more."
            )


def check_stages(slug: str, dim: int, depths: Sequence[int], heads: Sequence[int]) -> None:
    """Refuse stages that cannot be built; each is twice as wide as the one before.

    Raises:
        ModelError: depths and heads of unequal numbers, or heads that do not divide a width.
    """
    if not depths or len(depths) != len(heads):
        raise ModelError(
            f"{slug} has {len(depths)} stages of blocks and heads for {len(heads)}.",
            "Give depths and heads one number per stage.",
        )
    for stage, count in enumerate(heads):
        if dim * 2**stage % count:
            raise ModelError(
                f"{slug}'s stage {stage + 1} has width {dim * 2**stage}, not divisible by {count} heads.",
                "Change dim or heads.",
            )


def divided(sides: tuple[int, int], by: int, rest: int) -> tuple[int, int]:
    """Return both sides over a number; with a rest of ``by - 1``, rounded up."""
    return (sides[0] + rest) // by, (sides[1] + rest) // by


def cut_as(
    window: tuple[int, int], cells: tuple[int, int], square: bool
) -> tuple[tuple[int, int], tuple[bool, bool]]:
    """Return a stage's windows as Swin's references cut its map, and whether they move down and across.

    timm decides this along each axis. With the authors (``square``), a map that is no longer than a window along one
    axis has square windows of that length, and none of them moves. Both count a map's cells rounded down.
    """
    if square:
        side, shorter = min(window), min(cells)
        return (min(side, shorter),) * 2, (shorter > side,) * 2
    (rows, columns), (height, width) = window, cells
    return (min(rows, height), min(columns, width)), (height > rows, width > columns)


_TABLE = r"\.relative_position_bias_table$"
LAYOUT = (r"^layers\.\d+\.blocks\.\d+\.attn" + _TABLE, r"^patch_embed\.proj\.weight$")
AUTHORS_LAYOUT = (*LAYOUT, r"^(layers\.0\.downsample|head)\.", r"!^head\.fc\.")
_NAMES = (
    (r"^patch_embed\.proj\.", "patch_embed."),
    (r"^patch_embed\.norm\.", "patch_norm."),
    (r"^absolute_pos_embed$", "pos_embed"),
    (_TABLE, ".position.table"),
    (r"^head\.fc\.", "head."),
)


def rename_windows(
    state_dict: Mapping[str, Tensor], further: Sequence[tuple[str, Any]] = ()
) -> dict[str, Tensor]:
    """Give weights under the names of Swin's authors or of timm our names; masks and indices are left out.

    Args:
        state_dict: the weights.
        further: replacements for what Swin does not have.
    """
    learned = {key: value for key, value in state_dict.items() if not key.endswith(DERIVED)}
    # The authors' merging ends a stage and timm's begins the next, as ours does.
    later = int(any(key.startswith("layers.0.downsample.") for key in learned))

    def stage(found: re.Match[str]) -> str:
        if not found[2]:
            return f"stages.{found[1]}."
        return f"stages.{int(found[1]) + later}.merge."

    rules = (*further, *_NAMES, (r"^layers\.(\d+)\.(downsample\.)?", stage))
    return rename_keys(learned, partial(substitute, rules))


def read_window_settings(
    weights: Mapping[str, Tensor], image_size: ImageSize | None = None
) -> dict[str, Any]:
    """Return what weights under our names say about options that a variant leaves open."""
    return {
        "qkv_bias": "stages.0.blocks.0.attn.qkv.bias" in weights,
        "stem_norm": "patch_norm.weight" in weights,
        "absolute_positions": "pos_embed" in weights,
    }


def resize_windows(
    state_dict: Mapping[str, Tensor],
    model: WindowPyramid,
    source: WindowPyramid | None = None,
) -> dict[str, Tensor]:
    """Resample position tables to the windows, and learned positions to the grid, of ``model``, bicubically."""
    resized = resize_biases(state_dict, model, source)
    if "pos_embed" in resized:
        grid = None if source is None else source.grid
        resized["pos_embed"] = resize_positions(resized["pos_embed"], model.grid, grid=grid)
    return resized
