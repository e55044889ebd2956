"""CoSwin: Swin for small images, with a convolution of the whole map parallel to each attention."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.catalog.arguments import Depths, ImageSize, Positive, Share, Size, Sizes
from vitreous.catalog.card import Card
from vitreous.errors import ModelError
from vitreous.layers.reference import one_side, pair, refuse_eps
from vitreous.layers.window_blocks import WindowBlock
from vitreous.layers.window_trunk import (
    AUTHORS_LAYOUT,
    WindowTransformer,
    cut_as,
    divided,
    read_window_settings,
    rename_windows,
    resize_windows,
)

CARD = Card(
    slug="coswin",
    title="CoSwin: Convolution Enhanced Hierarchical Shifted Window Attention For Small-Scale Vision",
    kind="model",
    summary="Swin for small images: beside every window attention, a convolution of the whole map, "
    "added with a learned weight.",
    when="For small images and few labels, where windows alone learn slowly; the convolutions hold "
    "two thirds of the weights.",
    paper="arXiv 2509.08959 (2025)",
    year=2025,
    source_licence="none (anonymised code of the authors has no licence file): re-implemented from "
    "the equations",
    tasks=["classify"],
    variants={
        "coswin_base": {
            "dim": 96,
            "depths": [2, 6, 4],
            "heads": [3, 6, 12],
            "window": 4,
            "mlp_ratio": 2.0,
            "drop_path": 0.1,
        },
        "coswin_test": {
            "dim": 8,
            "depths": [2, 1],
            "heads": [2, 4],
            "window": 4,
            "mlp_ratio": 2.0,
        },
    },
    published=[
        {
            "variant": "coswin_base",
            "image_size": 32,
            "num_classes": 10,
            "parameters_m": 23.46,
            "gmacs": 0.80,
            "top1": 96.63,
            "data": "CIFAR-10",
        },
        {
            "variant": "coswin_base",
            "image_size": 32,
            "num_classes": 100,
            "parameters_m": 23.49,
            "gmacs": 0.80,
            "top1": 81.64,
            "data": "CIFAR-100",
        },
        {
            "variant": "coswin_base",
            "image_size": 64,
            "num_classes": 200,
            "parameters_m": 23.54,
            "gmacs": 0.80,
            "top1": 65.06,
            "data": "Tiny ImageNet",
        },
    ],
    recipe={
        "optimizer": "adamw",
        "learning_rate": 1e-3,
        "batch_size": 128,
        "weight_decay": "0.05, of all parameters",
        "epochs": 100,
        "warmup_epochs": 10,
        "schedule": "cosine per step",
        "label_smoothing": 0.1,
        "mixing": "half of the batches, CutMix or mixup alike",
        "augmentation": "flip, crop with 4 pixels of padding, AutoAugment, erasing 0.25, three "
        "copies of an image per round",
    },
    claim="Above Swin trained alike by 2.17 points on CIFAR-10, 4.92 on CIFAR-100 and 4.47 on Tiny "
    "ImageNet.",
    miniature="Toy digits of 32 x 32 pixels (--data FOLDER takes real images), a fifth of the training "
    "images: CoSwin, Swin of the same shape, and Swin as large as CoSwin. Required: at least 1 "
    "point above the former, and not below the latter.",
    notes=[
        "Image size: Tokens are 2 pixels at 32 and 4 pixels at 64, as published: what leaves 4 x 4 "
        "cells on the last map.",
        "Image size: Windows, padding and oblong images are as in swin. The authors' convolutions "
        "reshape any map to sqrt(N) x sqrt(N) cells; here they see its rows and columns. "
        "square_branch=True repeats what the authors do, and from_reference sets it where an "
        "oblong map of theirs has a square number of cells.",
        "As in the reference: The convolutions read the block's input as it is, not normalised, "
        "and stochastic depth drops attention and convolutions together.",
        "As in the reference: The hidden width is 1.1 times the width, rounded down (105, 211, "
        "422).",
        "Published figures: 16.4 of 23.5 M weights and 70 % of the multiply-adds are the "
        "convolutions', which the authors' own count of operations leaves out. The Swin that they "
        "compare with has 7.05 M weights where it has the same shape.",
        "Differs from the reference: Weight decay spares vectors, position tables and the weights "
        "of the sum; the authors decay all parameters.",
        "Not included: Dropout (0 in the published setting).",
    ],
)


class ConvBranch(nn.Module):
    """Two dense 3 x 3 convolutions of the token map, with a ReLU between them.

    Args:
        dim: token width.
        hidden: channels between.
        square: see :class:`CoSwin`.
    """

    def __init__(self, dim: int, hidden: int, square: bool) -> None:
        super().__init__()
        self.square = square
        self.conv1 = nn.Conv2d(dim, hidden, 3, padding=1)
        self.act = nn.ReLU()
        self.conv2 = nn.Conv2d(hidden, dim, 3, padding=1)

    def forward(
        self, x: Float[Tensor, "batch height width dim"]
    ) -> Float[Tensor, "batch height width dim"]:
        """Apply both."""
        cells = rearrange(x, "b h w d -> b d h w")
        if self.square:
            cells = cells.flatten(2).unflatten(2, _square(x.shape[1], x.shape[2]))
        cells = self.conv2(self.act(self.conv1(cells))).flatten(2)
        return rearrange(cells, "b d (h w) -> b h w d", h=x.shape[1])


class CoSwinBlock(WindowBlock):
    """Swin's block with a convolution parallel to its attention.

    Args:
        arguments: of :class:`WindowBlock`, whose first is the token width.
        expansion: the convolutions' hidden width over the token width.
        square_branch: see :class:`CoSwin`.
        options: of :class:`WindowBlock`.
    """

    def __init__(
        self, dim: int, *arguments: Any, expansion: float, square_branch: bool, **options: Any
    ) -> None:
        super().__init__(dim, *arguments, **options)
        self.branch = ConvBranch(dim, int(dim * expansion), square_branch)
        self.influence = nn.Parameter(torch.tensor(0.5))

    def mix(
        self,
        x: Float[Tensor, "batch height width dim"],
        mask: Float[Tensor, "windows 1 #tokens tokens"] | None,
    ) -> Float[Tensor, "batch height width dim"]:
        """Return the attention's output and the weighted convolution's."""
        return super().mix(x, mask) + self.influence.sigmoid() * self.branch(x)


class CoSwin(WindowTransformer):
    """CoSwin (arXiv 2509.08959).

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
        window: side of a window in tokens, or for each stage one of its own; a stage with fewer tokens along an axis is
            not cut along it.
        token_size: side of a token of the first stage in pixels; 4, or on small images what leaves 4 x 4 tokens in
            the last stage.
        mlp_ratio: hidden width of the feed-forward over the token width.
        expansion: hidden width of the convolutions over the token width.
        drop_path: stochastic depth of the last block, growing linearly from 0.
        shift: move the windows of every second block by half their side; or for each stage, whether down and whether
            across.
        absolute_positions: add learned positions to the tokens of the first stage.
        qkv_bias: give the projections to query, key and value a bias.
        scale: factor of the attention scores; (width of a head)^-0.5 where not given.
        stem_norm: normalise the tokens of the first stage.
        partial_tokens: what is left of an image below and on the right makes tokens too, padded with zeros; False
            leaves it out, as the authors do.
        square_branch: the convolutions see every map as one of as many rows as columns, as in the authors' code; a map
            whose number of cells is not a square is refused then.

    Raises:
        ModelError: depths and heads of unequal numbers, heads that do not divide a width, or no window.
    """

    slug = CARD.slug

    def __init__(
        self,
        bands: int,
        num_classes: int,
        image_size: ImageSize = 32,
        *,
        dim: Size = 96,
        depths: Depths = (2, 6, 4),
        heads: Sizes = (3, 6, 12),
        window: Size | Sequence[Size | Sizes] = 4,
        token_size: Size | None = None,
        mlp_ratio: Positive = 2.0,
        expansion: Positive = 1.1,
        drop_path: Share = 0.0,
        shift: bool | Sequence[Sequence[bool]] = True,
        absolute_positions: bool = False,
        qkv_bias: bool = True,
        scale: Positive | None = None,
        stem_norm: bool = True,
        partial_tokens: bool = True,
        square_branch: bool = False,
    ) -> None:
        if int(dim * expansion) < 1:
            raise ModelError(
                f"coswin's convolutions have no channels with expansion={expansion:g}.",
                "Give a larger expansion.",
            )
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
            pool="mean",
            block=partial(
                CoSwinBlock,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                scale=scale,
                expansion=expansion,
                square_branch=square_branch,
            ),
        )


def _square(rows: int, columns: int) -> tuple[int, int]:
    """Return the sides of a square of as many cells.

    Raises:
        ModelError: there is none.
    """
    side = math.isqrt(rows * columns)
    if side**2 != rows * columns:
        raise ModelError(
            f"coswin with square_branch takes maps of a square number of cells, not {rows} x {columns}.",
            "Resize the images, or build it without square_branch.",
        )
    return side, side


build = CoSwin


LAYOUTS = {"the authors' CoSwin": (*AUTHORS_LAYOUT, r"\.convInfluenceWeight$")}
_NAMES = (
    (r"\.convInfluenceWeight$", ".influence"),
    (r"\.conv\.conv\.0\.", ".branch.conv1."),
    (r"\.conv\.conv\.2\.", ".branch.conv2."),
)


def rename(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give weights of the authors our names; what follows from the size (masks, indices) is left out."""
    return rename_windows(state_dict, _NAMES)


read_settings, resize = read_window_settings, resize_windows


def from_reference(state_dict: Mapping[str, Tensor], kwargs: Mapping[str, Any]) -> CoSwin:
    """Build the model from the arguments of the authors' CoSwinTransformer and load its weights.

    Raises:
        ModelError: patches that are not square, or another eps of the norms.
    """
    refuse_eps("coswin", kwargs, 1e-5)
    image = pair(kwargs.get("img_size", 224))
    token = one_side("coswin", kwargs.get("patch_size", 4), "patches")
    grid = divided(image, token, 0)
    depths = kwargs.get("depths", (2, 2, 6, 2))
    window = pair(kwargs.get("window_size", 7))
    cut = [cut_as(window, divided(grid, 2**stage, 0), square=True) for stage in range(len(depths))]
    model = CoSwin(
        bands=kwargs.get("in_chans", 3),
        num_classes=kwargs.get("num_classes", 1000),
        image_size=image,
        token_size=token,
        dim=kwargs.get("embed_dim", 96),
        depths=depths,
        heads=kwargs.get("num_heads", (3, 6, 12, 24)),
        window=[sides for sides, _ in cut],
        shift=[moves for _, moves in cut],
        mlp_ratio=kwargs.get("mlp_ratio", 4.0),
        drop_path=kwargs.get("drop_path_rate", 0.1),
        absolute_positions=kwargs.get("ape", False),
        qkv_bias=kwargs.get("qkv_bias", True),
        scale=kwargs.get("qk_scale") or None,
        stem_norm=kwargs.get("patch_norm", True),
        partial_tokens=False,
        square_branch=grid[0] != grid[1] and math.isqrt(math.prod(grid)) ** 2 == math.prod(grid),
    )
    model.load_state_dict(rename(state_dict))
    return model
