"""A network that labels all pixels of a tile at once, as a scene classifier."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vitreous.data.contract import BandContract
from vitreous.data.regions import RegionBatch, gather_patches
from vitreous.layers.decoders import DenseNet
from vitreous.layers.preprocess import Preprocess

OVERLAP = 4  # neighbouring tiles share one part in so many of their side
LARGEST_TILE = 512
PIXELS_AT_ONCE = 2**14  # pixels of the tiles of one forward pass: what stays in cache


class DenseClassifier(nn.Module):
    """Classifies every pixel of a window in overlapping tiles.

    Tiles lie on a grid of :attr:`step` pixels. Where two overlap, their probabilities are blended with weights that
    are squares of a sine and a cosine and so sum to one. Windows that begin on the grid, and end there or where the
    scene does, see the very tiles that their neighbours see: the map depends on them by rounding alone.

    In training, a tile holds only what is within ``patch_size // 2`` of a training or validation pixel (see
    ``data/tiles.py``). So no more of the scene is learned from than a classifier of patches of that size sees.

    Args:
        net: the network with its decoder, built for images of ``tile_size``.
        preprocess: fitted preprocessing.
        contract: the bands and unit it takes.
        patch_size: side of the square around a training pixel that is learned from, odd.
        tile_size: side of a tile.
        padding: ``reflect`` or ``zero``: what lies beyond a scene's edge.

    Raises:
        ValueError: tiles of no sensible size.
    """

    def __init__(
        self,
        net: DenseNet,
        preprocess: Preprocess,
        contract: BandContract,
        *,
        patch_size: int,
        tile_size: int,
        padding: str = "reflect",
    ) -> None:
        super().__init__()
        if not OVERLAP <= tile_size <= LARGEST_TILE:
            raise ValueError(f"tiles of {tile_size} pixels")
        self.net, self.preprocess, self.contract = net, preprocess, contract
        self.patch_size, self.tile_size, self.padding = patch_size, tile_size, padding

    @property
    def radius(self) -> int:
        """How far around a training pixel is learned from."""
        return self.patch_size // 2

    @property
    def receptive_size(self) -> int:
        """Side of the square of pixels around a training pixel that is learned from."""
        return self.patch_size

    @property
    def overlap(self) -> int:
        """Pixels that two neighbouring tiles share."""
        return self.tile_size // OVERLAP

    @property
    def step(self) -> int:
        """Distance of neighbouring tiles; windows had best begin at its multiples."""
        return self.tile_size - self.overlap

    @property
    def margin(self) -> int:
        """Context in pixels that a window needs on each side, so that every tile that reaches into it is whole."""
        return self.tile_size - 1

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.net.num_classes

    def settings(self) -> dict[str, Any]:
        """Return what it is rebuilt from, JSON-ready."""
        return {
            "mode": "dense",
            "patch_size": self.patch_size,
            "padding": self.padding,
            "tile_size": self.tile_size,
            "decoder": self.net.kind,
            "width": self.net.width,
        }

    # -- training -----------------------------------------------------------------------------------------

    def features(
        self, regions: Float[Tensor, "tiles channels size size"]
    ) -> Float[Tensor, "tiles classes size size"]:
        """Return the logits of every pixel of some tiles."""
        scores: Tensor = self.net(regions)
        return scores

    def read_patches(
        self, image: Float[Tensor, "tiles classes size size"], index: Int[Tensor, "pixels 1 1"]
    ) -> Float[Tensor, "pixels classes 1 1"]:
        """Read pixels by index from :meth:`features`."""
        return gather_patches(image, index)

    def score(
        self, patches: Float[Tensor, "pixels classes 1 1"]
    ) -> Float[Tensor, "pixels classes"]:
        """Return the logits that :meth:`read_patches` read."""
        return patches.flatten(1)

    def forward(self, batch: RegionBatch) -> Float[Tensor, "pixels classes"]:
        """Classify the pixels of a batch of tiles of reduced channels."""
        return self.score(self.read_patches(self.features(batch.regions), batch.index))

    # -- use ----------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def classify(self, window: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Classify every pixel of a window of raw physical values.

        Args:
            window: ``(bands, height + 2 margin, width + 2 margin)``, NaN where invalid.

        Returns:
            ``(classes, height, width)`` probabilities; zeros where the pixel itself is invalid.
        """
        self.eval()
        device = self.preprocess.mean.device
        raw = torch.from_numpy(np.ascontiguousarray(window)).to(device)
        height, width = (side - 2 * self.margin for side in window.shape[1:])
        inner = (
            slice(None),
            slice(self.margin, self.margin + height),
            slice(self.margin, self.margin + width),
        )
        valid = torch.isfinite(raw[inner]).all(0)
        blended = blend_tiles(
            self.probabilities, self.preprocess(raw[None]), valid, self.num_classes, self.tile_size
        )
        return (blended[inner] * valid).cpu().numpy()

    def probabilities(
        self, tiles: Float[Tensor, "tiles channels size size"]
    ) -> Float[Tensor, "tiles classes size size"]:
        """Return the probabilities of every pixel of some tiles."""
        return self.features(tiles).softmax(1)


def blend_tiles(
    classify: Callable[[Float[Tensor, "tiles channels size size"]], Tensor],
    image: Float[Tensor, "1 channels h w"],
    valid: Bool[Tensor, "height width"],
    classes: int,
    size: int,
) -> Float[Tensor, "classes h w"]:
    """Sum up the weighted probabilities of all tiles that reach a valid pixel.

    Args:
        classify: gives the probabilities of some tiles, ``(tiles, classes, size, size)``.
        image: the window with ``size - 1`` pixels of context on each side.
        valid: the pixels of the window that matter.
        classes: number of classes.
        size: side of a tile.
    """
    margin, overlap = size - 1, size // OVERLAP
    step = size - overlap
    first_one = margin - step  # the one before the window, which reaches into it
    corners = [
        (row, column)
        for row in range(first_one, margin + valid.shape[0], step)
        for column in range(first_one, margin + valid.shape[1], step)
    ]
    context = F.pad(valid, (margin, margin, margin, margin))
    corners = [(r, c) for r, c in corners if context[r : r + size, c : c + size].any()]
    weights = blending_weights(size, overlap).to(image.device)
    total = image.new_zeros(classes, *image.shape[2:])
    at_once = max(1, PIXELS_AT_ONCE // size**2)
    for first in range(0, len(corners), at_once):
        some = corners[first : first + at_once]
        tiles = torch.cat([image[:, :, r : r + size, c : c + size] for r, c in some])
        found = classify(tiles) * weights
        for (row, column), part in zip(some, found, strict=True):
            total[:, row : row + size, column : column + size] += part
    return total


def blending_weights(size: int, overlap: int) -> Float[Tensor, "size size"]:
    """Return the weights of a tile's pixels; those of tiles ``size - overlap`` apart sum to one.

    Args:
        size: side of the tile.
        overlap: pixels shared with the next tile, at most half of them.
    """
    rise = torch.sin(math.pi / 2 * (torch.arange(overlap) + 0.5) / overlap).square()
    along = torch.cat([rise, torch.ones(size - 2 * overlap), rise.flip(0)])
    return along[:, None] * along
