"""The plain Vision Transformer family: the trunk of most methods, and the baseline of every architecture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, Self

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.catalog.arguments import (
    Amount,
    Count,
    Depth,
    ImageSize,
    Positive,
    Share,
    Size,
    Sizes,
)
from vitreous.catalog.card import Card
from vitreous.errors import ModelError
from vitreous.layers.backbone import FeatureInfo, init_linear, linear_rates, stem_stride
from vitreous.layers.pooling import (
    POOLS,
    TIMM_POOLS,
    GroupGeneralizedMean,
    check_pool,
    pool_cells,
)
from vitreous.layers.positions import (
    Positions,
    RotaryPositions,
    SincosPositions,
    resize_positions,
)
from vitreous.layers.reference import (
    begin,
    norm_eps,
    one_side,
    pair,
    refuse_others,
    rename_keys,
)
from vitreous.layers.sizes import as_size, check_tokens, whole_cells
from vitreous.layers.transformer import Block, Grid
from vitreous.layers.trunk import Embedded, Trunk

CARD = Card(
    slug="vit",
    title="An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale",
    kind="model",
    summary="Non-overlapping patches as tokens, global attention, GELU feed-forward.",
    when="Baseline for every architecture, and the backbone that all methods support. vit_patch, "
    "for scene patches, was the most accurate system with randomly drawn pixels.",
    paper="arXiv 2010.11929; distillation token: DeiT, arXiv 2012.12877",
    year=2021,
    source_licence="Apache-2.0 (google-research/vision_transformer): re-implemented from the equations",
    tasks=["classify"],
    variants={
        "vit_tiny": {"dim": 192, "depth": 12, "heads": 3},
        "vit_small": {"dim": 384, "depth": 12, "heads": 6},
        "vit_base": {"dim": 768, "depth": 12, "heads": 12},
        "vit_large": {"dim": 1024, "depth": 24, "heads": 16},
        "vit_tiny_distilled": {"dim": 192, "depth": 12, "heads": 3, "distilled": True},
        "vit_small_distilled": {"dim": 384, "depth": 12, "heads": 6, "distilled": True},
        "vit_base_distilled": {"dim": 768, "depth": 12, "heads": 12, "distilled": True},
        "vit_patch": {
            "dim": 128,
            "depth": 8,
            "heads": 4,
            "token_size": 3,
            "pool": "mean",
            "drop_path": 0.1,
        },
        "vit_test": {"dim": 16, "depth": 2, "heads": 2, "token_size": 3, "mlp_ratio": 2.0},
    },
    published=[
        {"variant": "vit_tiny", "parameters_m": 5.717, "gmacs": 1.26},
        {"variant": "vit_small", "parameters_m": 22.051, "gmacs": 4.61},
        {"variant": "vit_base", "parameters_m": 86.568, "gmacs": 17.58},
        {"variant": "vit_large", "parameters_m": 304.327, "gmacs": 61.60},
        {"variant": "vit_tiny_distilled", "parameters_m": 5.911},
        {"variant": "vit_small_distilled", "parameters_m": 22.437},
        {"variant": "vit_base_distilled", "parameters_m": 87.338},
    ],
    notes=[
        "Usage: vit_patch is our variant for small scene patches: sized like lola_specvit_tiny, "
        "tokens of 3 x 3 pixels.",
        "Usage: With a distillation token, predictions average both heads; a training with a "
        "teacher (--distill) treats them apart.",
        "Image size: Patches are 16 pixels at 224; on smaller images they shrink so that at "
        "least 7 x 7 remain (token_size).",
        "Checkpoints: vit_tiny to vit_base have the sizes of DeiT, whose weights load.",
        "Checkpoints: Checkpoints of timm load, including DeiT III (no position of the class "
        "token) and DINOv2 (registers, LayerScale). eps, pooling and grids that are not square "
        "follow timm's arguments. Query-key norms, a norm before the blocks (CLIP) and attention "
        "pooling are refused.",
    ],
)


class LearnedPositions(Positions):
    """A table of positions, resampled to other grids, is added to the tokens.

    The trunk keeps the table, under the name that weights have for it.

    Args:
        grid: rows and columns of the table.
        front: tokens in front of the grid that have a position in it.
    """

    def __init__(self, grid: Grid, front: int) -> None:
        super().__init__()
        self.grid, self.front = grid, front

    def embed(
        self, tokens: Float[Tensor, "batch tokens dim"], grid: Grid, table: Tensor | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """Return the tokens with the table added, which begins with those in front that have a position."""
        assert table is not None
        places = resize_positions(table, grid, self.front, self.grid)
        without = tokens.shape[1] - places.shape[1]
        return tokens + F.pad(places, (0, 0, without, 0))


class VisionTransformer(Trunk):
    """Plain ViT (arXiv 2010.11929, eqs. 1-4), with the options of its descendants.

    A variation is a file that passes parts of its own to :meth:`with_parts`.

    Args:
        bands: channels of the input.
        num_classes: classes.
        image_size: side of the image in pixels, or its height and width; what does not fill a token at the end is left
            out.
        dim: token width.
        depth: number of blocks.
        heads: attention heads.
        token_size: side of a token in pixels; 16, or on small images what leaves 7 x 7 tokens.
        mlp_ratio: hidden width of the feed-forward over the token width.
        pool: ``class`` (class token), or over the patches ``mean``, ``max``, ``mean_max`` (the mean of both), ``gem`` or ``ggem``
            (generalised mean, of all channels or per group of them, one group per head).
        norm_last: normalise after pooling instead of before, as MAE does with the mean; None: only with ``max``,
            ``mean_max``, ``gem`` and ``ggem``, which need the trunk's own values.
        positions: ``learned``, ``sincos`` (fixed), ``rotary`` (fixed, on queries and keys) or ``none``.
        distilled: add a distillation token with its own head (DeiT).
        registers: further tokens that nobody reads (Darcet et al., 2024).
        layer_scale: first value of LayerScale; None leaves it out.
        drop_path: stochastic depth of the last block, growing linearly from 0.
        class_token: whether there is one, also where another pooling ignores it; None: only with ``pool="class"``.
        class_position: whether class and distillation token have a learned position, too (not in DeiT III).
        grid: rows and columns of the learned positions; those of the image where not given.
        qkv_bias: give queries, keys and values a bias.
        norm_eps: of the normalisations.

    Raises:
        ModelError: an image smaller than a token, heads that do not divide the width, or a name that is not listed.
    """

    classifiers = ("head", "distillation_head")
    any_size = True
    band_parameters = ("patch_embed.weight",)
    undecayed = ("pos_embed", "class_token", "distillation_token", "register_tokens")

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
        pool: str = "class",
        norm_last: bool | None = None,
        positions: str = "learned",
        distilled: bool = False,
        registers: Count = 0,
        layer_scale: Amount | None = None,
        drop_path: Share = 0.0,
        class_token: bool | None = None,
        class_position: bool = True,
        grid: Sizes | None = None,
        qkv_bias: bool = True,
        norm_eps: Positive = 1e-6,
    ) -> None:
        super().__init__(bands, num_classes, image_size)
        self.token_size = token_size or stem_stride(image_size, 16, cells=7)
        _check(self.size, self.token_size, dim, heads, pool, positions, distilled)
        if norm_last and pool == "class":
            raise ModelError("norm_last needs pooled patches.", "Use another pool than 'class'.")
        if class_token is False and pool == "class":
            raise ModelError("pool='class' needs the class token.", "Use pool='mean' without it.")
        self.num_features, self.pool, self.least_size = dim, pool, self.token_size
        self.grid = whole_cells(self.size, self.token_size)
        self.class_position = class_position
        self.feature_info = [FeatureInfo(dim, self.token_size)] * min(4, depth)
        self.patch_embed = nn.Conv2d(bands, dim, self.token_size, stride=self.token_size)
        has_class = pool == "class" if class_token is None else class_token
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim)) if has_class else None
        self.distillation_token = nn.Parameter(torch.zeros(1, 1, dim)) if distilled else None
        self.register_tokens = nn.Parameter(torch.zeros(1, registers, dim)) if registers else None
        self.prefix = self._front + registers
        self.position_grid = pair(grid) if grid else self.grid
        self.pos_embed = (
            nn.Parameter(torch.zeros(1, self._positioned + math.prod(self.position_grid), dim))
            if positions == "learned"
            else None
        )
        self.positions = self._make_positions(positions, dim // heads)
        self.reducible = not self.positions.bound
        rates = linear_rates(drop_path, depth)
        self.blocks = nn.ModuleList(
            Block(dim, heads, mlp_ratio, rate, layer_scale, qkv_bias, norm_eps) for rate in rates
        )
        late = pool not in {"class", "mean"} if norm_last is None else norm_last
        groups = {"gem": 1, "ggem": heads}.get(pool)
        self.norm = nn.Identity() if late else nn.LayerNorm(dim, eps=norm_eps)
        self.pooling = GroupGeneralizedMean(dim, groups) if groups else nn.Identity()
        self.pooled_norm = nn.LayerNorm(dim, eps=norm_eps) if late else nn.Identity()
        self.head = self.make_head(num_classes)
        self.distillation_head = self.make_head(num_classes) if distilled else None
        self._init_weights()

    def with_parts(
        self,
        *,
        positions: Positions | None = None,
        join: nn.Module | None = None,
        reducible: bool | None = None,
    ) -> Self:
        """Put in a variation's parts, and return the network.

        Args:
            positions: how tokens are told their places (``layers/positions.py``), in place of what there is.
            join: makes the output of the trunk's running sums (``layers/trunk.py``).
            reducible: whether tokens may be merged and left out; where not given, whether positions allow it.
        """
        if positions is not None:
            self.positions, self.pos_embed = positions, None
            self.reducible = not positions.bound
        if join is not None:
            self.join = join
        if reducible is not None:
            self.reducible = reducible
        return self

    def _make_positions(self, kind: str, width: int) -> Positions:
        if kind == "learned":
            return LearnedPositions(self.position_grid, self._positioned)
        if kind == "rotary":
            return RotaryPositions(width)
        return SincosPositions() if kind == "sincos" else Positions()

    def _init_weights(self) -> None:
        init_linear(self)
        for name in ("pos_embed", "class_token", "distillation_token", "register_tokens"):
            if getattr(self, name) is not None:
                nn.init.trunc_normal_(getattr(self, name), std=0.02)

    @property
    def _front(self) -> int:
        """Class and distillation token."""
        return (self.class_token is not None) + (self.distillation_token is not None)

    @property
    def _positioned(self) -> int:
        """Tokens in front of the patches that have a learned position."""
        return self._front if self.class_position else 0

    def embed(self, x: Float[Tensor, "batch bands height width"]) -> Embedded:
        """Return the tokens with their positions; class, distillation and register tokens first."""
        patches = self.patch_embed(x)
        grid = (patches.shape[2], patches.shape[3])
        front = [
            token.expand(x.shape[0], -1, -1)
            for token in (self.class_token, self.distillation_token)
            if token is not None
        ]
        tokens = torch.cat([*front, rearrange(patches, "b d h w -> b (h w) d")], 1)
        table = {} if self.pos_embed is None else {"table": self.pos_embed}
        tokens = self.positions.embed(tokens, grid, **table)
        turn = self.positions.turn(grid)
        if turn is not None:
            turn = F.pad(turn, (0, 0, self.prefix, 0)).to(tokens)
        if self.register_tokens is not None:
            registers = self.register_tokens.expand(x.shape[0], -1, -1)
            head, patches = tokens[:, : len(front)], tokens[:, len(front) :]
            tokens = torch.cat([head, registers, patches], 1)
        return Embedded(tokens, turn, grid)

    def pool_tokens(
        self, features: Float[Tensor, "batch tokens dim"]
    ) -> Float[Tensor, "batch dim"]:
        """Return the one vector per image that the head reads."""
        patches = features[:, self.prefix :]
        if self.pool == "class":
            pooled = features[:, 0]
        elif self.pool in POOLS:
            pooled = pool_cells(patches, self.pool, (1,))
        else:
            pooled = self.pooling(patches)
        return self.pooled_norm(pooled)

    def forward_head(
        self, features: Float[Tensor, "batch tokens dim"]
    ) -> Any:  # Float[Tensor, "batch classes"] or Heads
        """Classify the pooled tokens; with a distillation token, the mean of both heads (see ``distilling``)."""
        logits = self.head(self.pool_tokens(features))
        if self.distillation_head is None:
            return logits
        return self.join_heads(logits, self.distillation_head(features[:, 1]))


def _check(
    size: tuple[int, int],
    token_size: int,
    dim: int,
    heads: int,
    pool: str,
    positions: str,
    distilled: bool,
) -> None:
    check_tokens("vit", size, token_size)
    if dim % heads:
        raise ModelError(f"vit has width {dim}, not divisible by {heads} heads.")
    check_pool("vit", pool, ("class", *POOLS, "gem", "ggem"))
    if positions not in {"learned", "sincos", "rotary", "none"}:
        raise ModelError(
            f"vit has no '{positions}' positions.", "Choose learned, sincos, rotary or none."
        )
    if distilled and pool != "class":
        raise ModelError("A distillation token needs a class token.", "Use pool='class'.")
    if positions in {"sincos", "rotary"} and (dim // heads) % 4:
        raise ModelError(
            f"{positions} positions need heads of a multiple of 4 channels, not {dim // heads}."
        )


build = VisionTransformer


LAYOUTS = {
    "timm's ViT": (
        r"^patch_embed\.proj\.weight$",
        r"^blocks\.\d+\.attn\.qkv\.weight$",
        r"^pos_embed$",
        r"!^(mask_token|tokens_to_token\.|channel_embed|patch_embed\.channel_embed|blocks\.\d+\.filter)",
    ),
}
_NAMES = {
    "patch_embed.proj.": "patch_embed.",
    "cls_token": "class_token",
    "dist_token": "distillation_token",
    "reg_token": "register_tokens",
    "head_dist.": "distillation_head.",
    "fc_norm.": "pooled_norm.",
}


def rename(state_dict: Mapping[str, Tensor], cells: int | None = None) -> dict[str, Tensor]:
    """Give weights in the layout of DeiT and timm our names.

    Where their positions count registers, too, these are added to the registers: it is the same sum.

    Args:
        state_dict: their weights.
        cells: patches that have a position; a square number of them where not given.
    """
    renamed = rename_keys(state_dict, partial(begin, _NAMES))
    positions, registers = renamed.get("pos_embed"), renamed.get("register_tokens")
    if positions is None or registers is None:
        return renamed
    front = sum(name in renamed for name in ("class_token", "distillation_token"))
    count = registers.shape[1]
    counted = positions.shape[1] - front - count
    if counted == cells or (cells is None and _is_square(counted)):
        own, patches = positions[:, front : front + count], positions[:, front + count :]
        renamed["register_tokens"] = registers + own
        renamed["pos_embed"] = torch.cat([positions[:, :front], patches], 1)
    return renamed


def _is_square(number: int) -> bool:
    return number > 0 and math.isqrt(number) ** 2 == number


def read_settings(
    weights: Mapping[str, Tensor], image_size: ImageSize | None = None
) -> dict[str, Any]:
    """Return what weights under our names say about options that a variant leaves open.

    Args:
        weights: the weights.
        image_size: of the images that they are thought to be for: its grid tells apart whether a table holds the class
            token's position; where it does not fit, a square's does.
    """
    late = "pooled_norm.weight" in weights
    has_class = "class_token" in weights
    settings: dict[str, Any] = {
        "pool": "class" if has_class and not late else "mean",
        "norm_last": True if late else None,
        "class_token": True if has_class and late else None,
        "distilled": "distillation_token" in weights,
        "layer_scale": 1e-5 if "blocks.0.ls1.gamma" in weights else None,
        "qkv_bias": "blocks.0.attn.qkv.bias" in weights
        or "blocks.0.attn.qkv.weight" not in weights,
    }
    if "register_tokens" in weights:
        settings["registers"] = weights["register_tokens"].shape[1]
    if "patch_embed.weight" in weights and weights["patch_embed.weight"].shape[-1] != 16:
        settings["token_size"] = weights["patch_embed.weight"].shape[-1]
    if "pos_embed" in weights:
        front = has_class + settings["distilled"]
        settings["class_position"] = _has_front(weights, front, image_size)
    return settings


def _has_front(weights: Mapping[str, Tensor], front: int, image_size: ImageSize | None) -> bool:
    """Tell whether a table of positions begins with those of ``front`` tokens in front of the grid."""
    positions = weights["pos_embed"].shape[1]
    if image_size is not None and "patch_embed.weight" in weights:
        grid = whole_cells(as_size(image_size), weights["patch_embed.weight"].shape[-1])
        if math.prod(grid) in {positions, positions - front}:
            return math.prod(grid) == positions - front
    return _is_square(positions - front) or not _is_square(positions)


def read_image_size(weights: Mapping[str, Tensor]) -> int | None:
    """Return the side of the images that weights under our names were trained on; None where they do not tell."""
    if not {"pos_embed", "patch_embed.weight"} <= weights.keys():
        return None
    front = sum(name in weights for name in ("class_token", "distillation_token"))
    cells = weights["pos_embed"].shape[1]
    sides = [math.isqrt(number) for number in (cells - front, cells) if _is_square(number)]
    return sides[0] * weights["patch_embed.weight"].shape[-1] if sides else None


def resize(
    state_dict: Mapping[str, Tensor],
    model: VisionTransformer,
    source: VisionTransformer | None = None,
) -> dict[str, Tensor]:
    """Resample learned positions to the grid of ``model``."""
    resized = dict(state_dict)
    if "pos_embed" in resized and model.pos_embed is not None:
        old = None if source is None else source.position_grid
        resized["pos_embed"] = resize_positions(
            resized["pos_embed"], model.position_grid, model._positioned, old
        )
    return resized


# Values of timm's arguments that change nothing, or that ours has.
_OFFERED: dict[str, tuple[Any, ...]] = {
    "global_pool": ("token", *TIMM_POOLS, True, False),
    "qk_norm": (False,),
    "scale_attn_norm": (False,),
    "scale_mlp_norm": (False,),
    "proj_bias": (True,),
    "pos_embed": ("learn",),
    "pre_norm": (False,),
    "final_norm": (True,),
    "pool_include_prefix": (False,),
    "dynamic_img_pad": (False,),
    "act_layer": (None, "gelu", nn.GELU),
    "embed_norm_layer": (None,),
}


def from_reference(
    state_dict: Mapping[str, Tensor], kwargs: Mapping[str, Any]
) -> VisionTransformer:
    """Build the model from the arguments of DeiT's and timm's VisionTransformer and load their weights.

    Raises:
        ModelError: an argument that we do not offer.
    """
    refuse_others("vit", kwargs, _OFFERED)
    pool, has_class = _pool(state_dict, kwargs)
    late = kwargs.get("fc_norm")
    if late is None:
        late = pool != "class" if "global_pool" in kwargs else "fc_norm.weight" in state_dict
    image, token = (
        pair(kwargs.get("img_size", 224)),
        one_side("vit", kwargs.get("patch_size", 16), "patches"),
    )
    grid = (image[0] // token, image[1] // token)
    positions = state_dict.get("pos_embed")
    scaled = any(".ls1." in key for key in state_dict)
    model = VisionTransformer(
        bands=kwargs.get("in_chans", 3),
        num_classes=kwargs.get("num_classes", 1000),
        image_size=image,
        token_size=token,
        dim=kwargs.get("embed_dim", 768),
        depth=kwargs.get("depth", 12),
        heads=kwargs.get("num_heads", 12),
        mlp_ratio=kwargs.get("mlp_ratio", 4.0),
        pool=pool,
        norm_last=late and pool != "class",
        distilled="dist_token" in state_dict,
        registers=state_dict["reg_token"].shape[1] if "reg_token" in state_dict else 0,
        layer_scale=kwargs.get("init_values") or (1.0 if scaled else None),
        drop_path=kwargs.get("drop_path_rate", 0.0),
        class_token=has_class,
        class_position=positions is None or positions.shape[1] != math.prod(grid),
        qkv_bias=kwargs.get("qkv_bias", True),
        norm_eps=norm_eps(kwargs, 1e-6),
    )
    weights = rename(state_dict, math.prod(grid))
    if late and pool == "class":  # to normalise before or after one token is chosen is the same
        weights = rename_keys(weights, partial(begin, {"pooled_norm.": "norm."}))
    model.load_state_dict(weights)
    return model


def _pool(state_dict: Mapping[str, Tensor], kwargs: Mapping[str, Any]) -> tuple[str, bool]:
    """Return the pooling, and whether there is a class token; of references without such arguments, from the weights."""
    has_class = kwargs.get("class_token", "cls_token" in state_dict)
    if "global_pool" not in kwargs:
        return ("class" if has_class else "mean"), has_class
    given = kwargs["global_pool"]
    if isinstance(given, bool):  # MAE and those that follow it
        given = "avg" if given else "token"
    return TIMM_POOLS.get(given, "class"), has_class
