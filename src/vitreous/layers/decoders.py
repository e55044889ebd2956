"""Light decoders: from a network's maps, fine to coarse, to class scores of every pixel.

Norms are taken over the channels of each cell by itself. What surrounds a pixel is not the same in training and inference
(see ``data/tiles.py``): statistics over a map, let alone a batch, would be of something else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.errors import ModelError, did_you_mean
from vitreous.layers.backbone import Backbone, FeatureInfo

POOLED = (1, 2, 3, 6)  # cells per side of the pooled maps (Zhao et al., PSPNet, 2017)


class CellNorm(nn.LayerNorm):
    """Layer norm over the channels of each cell of a map."""

    def forward(self, x: Float[Tensor, "batch dim h w"]) -> Float[Tensor, "batch dim h w"]:
        """Normalise."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvCell(nn.Sequential):
    """Convolution, norm, GELU.

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        kernel: side of the kernel, odd.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        super().__init__(convolution, CellNorm(outputs), nn.GELU())


class FeaturePyramid(nn.Module):
    """Coarse maps added to finer ones, from the top down (Lin et al., FPN, 2017); the finest one is the result.

    Args:
        levels: what :meth:`~vitreous.layers.backbone.Backbone.forward_levels` gives, fine to coarse.
        width: channels of the result.

    Attributes:
        stride: side of a cell of the result in pixels.
    """

    stride: float

    def __init__(self, levels: Sequence[FeatureInfo], width: int) -> None:
        super().__init__()
        self.pyramid = Pyramid(levels, width)
        self.stride = self.pyramid.strides[0]
        self.smooth = ConvCell(width, width, 3)

    def forward(
        self, levels: Sequence[Float[Tensor, "batch _ _ _"]]
    ) -> Float[Tensor, "batch width fine_h fine_w"]:
        """Merge the levels."""
        return self.smooth(self.pyramid.descend(self.pyramid.laterals_of(levels))[0])


class UnifiedPerception(nn.Module):
    """A feature pyramid below a pyramid of pooled context, all its levels fused (Xiao et al., UPerNet, 2018).

    Args:
        levels: what :meth:`~vitreous.layers.backbone.Backbone.forward_levels` gives, fine to coarse.
        width: channels of the result.

    Attributes:
        stride: side of a cell of the result in pixels.
    """

    stride: float

    def __init__(self, levels: Sequence[FeatureInfo], width: int) -> None:
        super().__init__()
        self.pyramid = Pyramid(levels, width)
        self.stride = self.pyramid.strides[0]
        part = max(1, width // len(POOLED))
        self.pooled = nn.ModuleList(ConvCell(width, part, 1) for _ in POOLED)
        self.context = ConvCell(width + part * len(POOLED), width, 3)
        self.smooth = nn.ModuleList(ConvCell(width, width, 3) for _ in levels[1:])
        self.fuse = ConvCell(width * len(levels), width, 3)

    def forward(
        self, levels: Sequence[Float[Tensor, "batch _ _ _"]]
    ) -> Float[Tensor, "batch width fine_h fine_w"]:
        """Merge the levels."""
        *maps, coarsest = self.pyramid.laterals_of(levels)
        maps = self.pyramid.descend([*maps, self._with_context(coarsest)])
        strides, size = self.pyramid.strides, maps[0].shape[2:]
        for number, smooth in enumerate(self.smooth):  # the coarsest one is smooth already
            maps[number] = smooth(maps[number])
        spread = [resize(m, s / self.stride, size) for m, s in zip(maps, strides, strict=True)]
        return self.fuse(torch.cat(spread, 1))

    def _with_context(
        self, x: Float[Tensor, "batch width h w"]
    ) -> Float[Tensor, "batch width h w"]:
        parts = [
            F.interpolate(pooled(F.adaptive_avg_pool2d(x, cells)), x.shape[2:], mode="bilinear")
            for cells, pooled in zip(POOLED, self.pooled, strict=True)
        ]
        return self.context(torch.cat([x, *parts], 1))


class Pyramid(nn.Module):
    """What both decoders share: every level brought to one width, and the way from coarse to fine.

    Args:
        levels: channels and strides, fine to coarse. Where all strides are the same, as in a plain ViT, the levels are
            resampled to twice the resolution, the same, a half, a quarter (after Li et al., ViTDet, 2022).
        width: channels of every level.

    Attributes:
        strides: side of a cell of each level in pixels.
    """

    def __init__(self, levels: Sequence[FeatureInfo], width: int) -> None:
        super().__init__()
        self.strides = [float(info.stride) for info in levels]
        self.zooms = [1.0] * len(levels)
        if len(levels) > 1 and len(set(self.strides)) == 1:
            self.zooms = [2.0 ** (1 - number) for number in range(len(levels))]
            self.strides = [s / zoom for s, zoom in zip(self.strides, self.zooms, strict=True)]
        self.laterals = nn.ModuleList(
            nn.Sequential(CellNorm(info.channels), nn.Conv2d(info.channels, width, 1))
            for info in levels
        )

    def laterals_of(
        self, levels: Sequence[Float[Tensor, "batch _ _ _"]]
    ) -> list[Float[Tensor, "batch width _ _"]]:
        """Bring every level to one width, and to the resolution of its place in the pyramid."""
        return [
            zoomed(lateral(level), zoom)
            for level, lateral, zoom in zip(levels, self.laterals, self.zooms, strict=True)
        ]

    def descend(
        self, maps: Sequence[Float[Tensor, "batch width _ _"]]
    ) -> list[Float[Tensor, "batch width _ _"]]:
        """Add to each map what is coarser than it."""
        merged = [maps[-1]]
        for number in range(len(maps) - 2, -1, -1):
            ratio = self.strides[number + 1] / self.strides[number]
            merged.append(maps[number] + resize(merged[-1], ratio, maps[number].shape[2:]))
        return merged[::-1]


Decoder: TypeAlias = FeaturePyramid | UnifiedPerception
DECODERS: dict[str, type[Decoder]] = {"fpn": FeaturePyramid, "upernet": UnifiedPerception}


class DenseNet(nn.Module):
    """A network whose head is a decoder: class scores of every pixel of an image.

    The decoder's map is as coarse as the network's first level. A spectrum is the sharpest thing that a spectral image
    has, so each pixel's own is added at full resolution, before the classifier.

    Args:
        trunk: the network; its own classifier is taken off.
        decoder: ``fpn`` or ``upernet``.
        width: channels of the decoder.

    Attributes:
        head: the classifier of a pixel.

    Raises:
        ModelError: there is no such decoder, or the network has no levels.
    """

    def __init__(self, trunk: nn.Module, decoder: str = "fpn", width: int = 64) -> None:
        super().__init__()
        if decoder not in DECODERS:
            raise ModelError(f"Unknown decoder: {decoder}.", did_you_mean(decoder, DECODERS))
        if not isinstance(trunk, Backbone) or not trunk.feature_info:
            raise ModelError(
                f"{type(trunk).__name__} has no feature maps for a decoder.",
                "Use another --model, or another --mode.",
            )
        self.trunk, self.num_classes = trunk, trunk.num_classes
        self.kind, self.width = decoder, width
        trunk.head = nn.Identity()
        self.decoder: Decoder = DECODERS[decoder](trunk.feature_info, width)
        self.detail = nn.Conv2d(trunk.bands, width, 1)
        self.norm = CellNorm(width)
        self.act = nn.GELU()
        self.head = _pixel_head(width, trunk.num_classes)

    def forward(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> Float[Tensor, "batch classes height width"]:
        """Score every pixel.

        Raises:
            ModelError: images of other bands, or of a size that the network was not built for.
        """
        map_ = self.decoder(self.trunk.forward_levels(x))
        full = resize(map_, self.decoder.stride, x.shape[2:]) + self.detail(x)
        return self.head(self.act(self.norm(full)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def reset_head(self, num_classes: int) -> None:
        """Replace the classifier by a new one; with 0 classes each pixel's features are returned."""
        like = self.detail.weight
        self.num_classes = num_classes
        self.head = _pixel_head(self.width, num_classes).to(like.device, like.dtype)

    def no_weight_decay(self) -> set[str]:
        """Name the parameters that weight decay should leave alone: vectors, and what the trunk spares."""
        spared = {f"trunk.{name}" for name in self.trunk.no_weight_decay()}
        return spared | {name for name, parameter in self.named_parameters() if parameter.ndim <= 1}


def _pixel_head(width: int, num_classes: int) -> nn.Module:
    return nn.Linear(width, num_classes) if num_classes else nn.Identity()


def zoomed(
    x: Float[Tensor, "batch channels h w"], zoom: float
) -> Float[Tensor, "batch channels zoomed_h zoomed_w"]:
    """Return a map at ``zoom`` times its resolution, a power of two; an incomplete last cell is kept."""
    if zoom >= 1:
        return resize(x, zoom, [int(side * zoom) for side in x.shape[2:]])
    return F.avg_pool2d(x, int(1 / zoom), ceil_mode=True)


def resize(
    x: Float[Tensor, "batch channels h w"], ratio: float, size: Sequence[int]
) -> Float[Tensor, "batch channels height width"]:
    """Enlarge a map by ``ratio``, cell k to the pixels from k ratio to (k + 1) ratio, and cut it to ``size``.

    Networks round the sizes of their maps, so stretching a map to ``size`` would move it against the image by up to a
    cell. What is beyond the last cell repeats it.
    """
    if ratio != 1:
        x = F.interpolate(x, scale_factor=ratio, mode="bilinear", align_corners=False)
    x = x[..., : size[0], : size[1]]
    down, across = size[0] - x.shape[2], size[1] - x.shape[3]
    return F.pad(x, (0, across, 0, down), mode="replicate") if down or across else x
