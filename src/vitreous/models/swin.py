"""Swin Transformer: attention inside windows, whose grid moves by half a window from block to block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from vitreous.catalog.arguments import Depths, ImageSize, Positive, Share, Size, Sizes
from vitreous.catalog.card import Card
from vitreous.errors import ModelError
from vitreous.layers.pooling import TIMM_POOLS
from vitreous.layers.reference import one_side, pair, refuse_eps, refuse_others
from vitreous.layers.window_blocks import WindowBlock
from vitreous.layers.window_trunk import (
    AUTHORS_LAYOUT,
    LAYOUT,
    WindowTransformer,
    cut_as,
    divided,
    read_window_settings,
    rename_windows,
    resize_windows,
)

CARD = Card(
    slug="swin",
    title="Swin Transformer: Hierarchical Vision Transformer using Shifted Windows",
    kind="model",
    summary="A pyramid with attention inside local windows, which are shifted in every second "
    "block.",
    when="Backbone for dense tasks on large images, where global attention is too expensive. "
    "Slow on small patches.",
    paper="arXiv 2103.14030; ICCV 2021",
    year=2021,
    source_licence="MIT (microsoft/Swin-Transformer): re-implemented from the equations",
    tasks=["classify"],
    variants={
        "swin_tiny": {
            "dim": 96,
            "depths": [2, 2, 6, 2],
            "heads": [3, 6, 12, 24],
            "window": 7,
            "drop_path": 0.2,
        },
        "swin_small": {
            "dim": 96,
            "depths": [2, 2, 18, 2],
            "heads": [3, 6, 12, 24],
            "window": 7,
            "drop_path": 0.3,
        },
        "swin_base": {
            "dim": 128,
            "depths": [2, 2, 18, 2],
            "heads": [4, 8, 16, 32],
            "window": 7,
            "drop_path": 0.5,
        },
        "swin_base_384": {
            "dim": 128,
            "depths": [2, 2, 18, 2],
            "heads": [4, 8, 16, 32],
            "window": 12,
            "drop_path": 0.5,
        },
        "swin_large": {
            "dim": 192,
            "depths": [2, 2, 18, 2],
            "heads": [6, 12, 24, 48],
            "window": 7,
            "drop_path": 0.2,
        },
        "swin_large_384": {
            "dim": 192,
            "depths": [2, 2, 18, 2],
            "heads": [6, 12, 24, 48],
            "window": 12,
            "drop_path": 0.2,
        },
        "swin_test": {
            "dim": 8,
            "depths": [2, 2],
            "heads": [2, 4],
            "window": 4,
            "mlp_ratio": 2.0,
        },
    },
    published=[
        {"variant": "swin_tiny", "parameters_m": 28.288, "gmacs": 4.49, "top1": 81.2},
        {"variant": "swin_small", "parameters_m": 49.606, "gmacs": 8.75, "top1": 83.2},
        {"variant": "swin_base", "parameters_m": 87.768, "gmacs": 15.44, "top1": 83.5},
        {
            "variant": "swin_base_384",
            "image_size": 384,
            "parameters_m": 87.904,
            "gmacs": 47.11,
            "top1": 84.5,
        },
        {
            "variant": "swin_large",
            "parameters_m": 196.532,
            "gmacs": 34.49,
            "top1": 86.3,
            "source": "pre-trained on ImageNet-22K",
        },
        {
            "variant": "swin_large_384",
            "image_size": 384,
            "parameters_m": 196.736,
            "gmacs": 103.95,
            "top1": 87.3,
            "source": "pre-trained on ImageNet-22K",
        },
    ],
    recipe={
        "optimizer": "adamw",
        "learning_rate": 1e-3,
        "batch_size": 1024,
        "weight_decay": 0.05,
        "epochs": 300,
        "warmup_epochs": 20,
        "schedule": "cosine",
        "clip": 5.0,
        "label_smoothing": 0.1,
        "mixup": 0.8,
        "cutmix": 1.0,
        "random_augment": "m9, std 0.5",
        "erasing": 0.25,
        "jitter": 0.4,
    },
    claim="81.3 % on ImageNet at the cost of DeiT-S (79.8 %), and a cost linear in image size; "
    "shifted windows are worth 1.1 points.",
    miniature="Images of 32 x 32 pixels with two glyphs in different windows: same or different? "
    "Required: shifted windows at least 3 points above fixed windows; multiply-adds of window "
    "attention grow by a factor of 4, not 16, when the side doubles.",
    notes=[
        "Image size: Patches are 4 pixels at 224; on smaller images they shrink so that 4 x 4 "
        "cells remain (token_size).",
        "Image size: The authors' classifier needs sizes that divide evenly. Here maps are "
        "zero-padded at the bottom and right, as in their detection code, and padded cells are "
        "masked.",
        "Image size: A stage whose map is not larger than a window is a single window without "
        "shift, as published. On oblong images this is decided along each axis, as in timm. The "
        "authors cut a map with one short axis into square windows of that length and shift none; "
        "from_reference does so for their layout (window and shift take one value per stage).",
        "Checkpoints: Checkpoints of timm load. Where a window does not divide a map, timm "
        "shifts before it pads and lets padded cells take part in attention; mask_padding=False "
        "reproduces that, and from_reference sets it for timm's layout. Its windows may be "
        "rectangular and are clipped to the map along each axis.",
        "Differs from the reference: Pairs of cells that are not neighbours are masked with "
        "-inf, where the authors subtract 100.",
        "Published figures: Published costs are the authors' count, which includes "
        "normalisation; ours does not.",
        "Not included: Dropout (0 in every published setting) and the Swin-MLP variants.",
    ],
)


class SwinTransformer(WindowTransformer):
    """Swin Transformer (arXiv 2103.14030).

    Sides that a token, a merge or a window does not divide are padded with zeros below and on the right; no
    token attends to padding. Images of other sizes than ``image_size`` work with the windows it was built with.

    Args:
        bands: channels of the input.
        num_classes: classes; with 0 the pooled features are returned.
        image_size: side of the image in pixels, or height and width: decides ``token_size`` and the windows of stages
            with small maps.
        dim: token width of the first stage; each further stage doubles it.
        depths: blocks of each stage.
        heads: attention heads of each stage.
        window: side of a window in tokens, or for each stage one of its own, a side or rows and columns; a stage with
            fewer tokens along an axis is not cut along it.
        token_size: side of a token of the first stage in pixels; 4, or on small images what leaves 4 x 4 tokens in
            the last stage.
        mlp_ratio: hidden width of the feed-forward over the token width.
        drop_path: stochastic depth of the last block, growing linearly from 0.
        shift: move the windows of every second block by half their side (the paper's ablation turns it off); or for
            each stage, whether down and whether across.
        absolute_positions: add learned positions to the tokens of the first stage.
        qkv_bias: give the projections to query, key and value a bias.
        scale: factor of the attention scores; (width of a head)^-0.5 where not given.
        stem_norm: normalise the tokens of the first stage.
        partial_tokens: what is left of an image below and on the right makes tokens too, padded with zeros; False
            leaves it out, as the authors and timm do.
        mask_padding: no cell attends to cells that padding added; False repeats what timm does, which shifts the
            windows before it pads and lets padding take part.
        pool: how the last map's cells become one vector: ``mean``, ``max``, or ``mean_max``, the mean of both.

    Raises:
        ModelError: depths and heads of unequal numbers, heads that do not divide a width, or no window.
    """

    slug = CARD.slug

    def __init__(
        self,
        bands: int,
        num_classes: int,
        image_size: ImageSize = 224,
        *,
        dim: Size = 96,
        depths: Depths = (2, 2, 6, 2),
        heads: Sizes = (3, 6, 12, 24),
        window: Size | Sequence[Size | Sizes] = 7,
        token_size: Size | None = None,
        mlp_ratio: Positive = 4.0,
        drop_path: Share = 0.0,
        shift: bool | Sequence[Sequence[bool]] = True,
        absolute_positions: bool = False,
        qkv_bias: bool = True,
        scale: Positive | None = None,
        stem_norm: bool = True,
        partial_tokens: bool = True,
        mask_padding: bool = True,
        pool: str = "mean",
    ) -> None:
        super().__init__(
            bands,
            num_classes,
            image_size,
            dim=dim,
            depths=depths,
            heads=heads,
            window=window,
            token_size=token_size,
            drop_path=drop_path,
            shift=shift,
            absolute_positions=absolute_positions,
            stem_norm=stem_norm,
            partial_tokens=partial_tokens,
            pool=pool,
            block=partial(
                WindowBlock,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                scale=scale,
                mask_padding=mask_padding,
            ),
        )


build = SwinTransformer


LAYOUTS = {
    "timm's Swin": (*LAYOUT, r"!^layers\.0\.downsample\.", r"!^head\.weight$"),
    "the authors' Swin": AUTHORS_LAYOUT,
}


def rename(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give weights of the authors or of timm our names; what follows from the size (masks, indices) is left out."""
    return rename_windows(state_dict)


read_settings, resize = read_window_settings, resize_windows


# Values of timm's arguments that change nothing, or that ours has.
_OFFERED: dict[str, tuple[Any, ...]] = {
    "global_pool": tuple(TIMM_POOLS),
    "always_partition": (False,),
    "head_dim": (None,),
}


def from_reference(state_dict: Mapping[str, Tensor], kwargs: Mapping[str, Any]) -> SwinTransformer:
    """Build the model from the arguments of the authors' or timm's SwinTransformer and load its weights.

    Raises:
        ModelError: patches that are not square, or an argument that we do not offer.
    """
    refuse_others("swin", kwargs, _OFFERED)
    refuse_eps("swin", kwargs, 1e-5)
    depths = kwargs.get("depths", (2, 2, 6, 2))
    image = pair(kwargs.get("img_size", 224))
    timm = not any(key.startswith(("layers.0.downsample.", "head.weight")) for key in state_dict)
    token = one_side("swin", kwargs.get("patch_size", 4), "patches")
    grid = divided(image, token, 0)
    windows = _windows(kwargs.get("window_size", 7), len(depths))
    cut = [
        cut_as(window, divided(grid, 2**stage, 0), square=not timm)
        for stage, window in enumerate(windows)
    ]
    model = SwinTransformer(
        bands=kwargs.get("in_chans", 3),
        num_classes=kwargs.get("num_classes", 1000),
        image_size=image,
        token_size=token,
        dim=_first_width(kwargs.get("embed_dim", 96)),
        depths=depths,
        heads=kwargs.get("num_heads", (3, 6, 12, 24)),
        window=[window for window, _ in cut],
        shift=[moves for _, moves in cut],
        mlp_ratio=_one(kwargs.get("mlp_ratio", 4.0), "mlp_ratio"),
        drop_path=kwargs.get("drop_path_rate", 0.1),
        absolute_positions=kwargs.get("ape", False),
        qkv_bias=kwargs.get("qkv_bias", True),
        scale=kwargs.get("qk_scale") or None,
        stem_norm=kwargs.get("patch_norm", True),
        partial_tokens=False,
        mask_padding=not timm,  # the authors' code never pads
        pool=TIMM_POOLS[kwargs.get("global_pool", "avg")],
    )
    model.load_state_dict(rename(state_dict))
    return model


def _windows(given: Any, stages: int) -> list[tuple[int, int]]:
    """Return the window of each stage; two numbers are rows and columns for all stages, as in timm."""
    alone = isinstance(given, int) or (len(given) == 2 and isinstance(given[0], int))
    windows = [pair(given)] * stages if alone else [pair(window) for window in given]
    if len(windows) != stages:
        raise ModelError(
            f"swin has windows for {len(windows)} stages of {stages}; they do not fit.",
            "Give one side for all stages, or one window per stage.",
        )
    return windows


def _first_width(given: int | Sequence[int]) -> int:
    """Return the first stage's width, of widths that double."""
    widths = [given] if isinstance(given, int) else list(given)
    if widths != [widths[0] * 2**stage for stage in range(len(widths))]:
        raise ModelError(
            f"swin doubles its width from stage to stage, unlike embed_dim={widths}.",
            "Give one number.",
        )
    return widths[0]


def _one(given: Any, what: str) -> float:
    """Return a setting that is the same in every stage."""
    values = {*given} if isinstance(given, list | tuple) else {given}
    if len(values) != 1:
        raise ModelError(f"swin has one {what} for all stages, not {given}.", "Give one number.")
    value: float = values.pop()
    return value
