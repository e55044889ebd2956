"""Batches of training pixels, cut from one cube.

Patches around neighbouring pixels overlap almost entirely. They are never materialised: pixels are gathered into
square regions, a model computes its front-end once per region, and patches are read from its output by index.
A region of one pixel is an ordinary patch, so both ways are one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
import xarray as xr
from jaxtyping import Float, Int
from scipy import ndimage
from torch import Tensor

from vitreous.layers.preprocess import Preprocess
from vitreous.scenes.cube import read_window

STRIP_VALUES = 2**25  # values of a scene held at once while it is reduced (128 MiB of float32)
AREA = 192**2  # pixels of regions, margins included, in one pass of a front-end: memory in training
# Neighbouring pixels are of few classes. Steps on one place after another unlearn all others, and batch
# statistics of one place are no statistics; so a batch is drawn from many.
MIX = 16
SIDES = (16, 24, 32, 48, 64, 96, 128)


Group: TypeAlias = list[tuple[int, int, Tensor]]  # regions: first row, first column, their pixels


@dataclass
class RegionBatch:
    """Some regions of the cube and the labelled pixels in them.

    Attributes:
        regions: the crops, reduced channels.
        index: per pixel, the positions of its patch in the flattened ``(region, row, column)`` grid.
        classes: class of each pixel, from 0.
    """

    regions: Float[Tensor, "regions channels side side"]
    index: Int[Tensor, "pixels patch patch"]
    classes: Int[Tensor, "pixels"]

    def to(self, device: torch.device) -> RegionBatch:
        """Move to a device."""
        return RegionBatch(self.regions.to(device), self.index.to(device), self.classes.to(device))


def gather_patches(
    image: Float[Tensor, "regions channels height width"], index: Int[Tensor, "pixels patch patch"]
) -> Float[Tensor, "pixels channels patch patch"]:
    """Read patches by index; the result is channels-last in memory, which is what convolutions like best."""
    table = image.permute(0, 2, 3, 1).reshape(-1, image.shape[1])
    return F.embedding(index, table).permute(0, 3, 1, 2)


def patch_index(
    rows: Tensor, columns: Tensor, width: int, half: int
) -> Int[Tensor, "pixels patch patch"]:
    """Return flat positions of the patches around ``(rows, columns)`` in an image of ``width`` columns."""
    step = torch.arange(-half, half + 1, device=rows.device)
    return (rows[:, None, None] + step[:, None]) * width + columns[:, None, None] + step


class PixelRegions:
    """The labelled pixels of a scene, served in regions.

    Only pixels inside a patch of a given pixel are ever read: everything else of the cube stays zero, so no other
    part of the scene reaches a model through its normalisation statistics.

    Args:
        cube: reduced channels of the scene with ``margin`` pixels added on each side.
        pixels: flat indices of the labelled pixels.
        classes: their classes, from 0.
        width: width of the scene.
        half: half the patch side, rounded down.
        margin: context on each side of a pixel: ``half``, plus the reach of a shared front-end.
        side: side of a region in pixels without its margin; 1 gives single patches.
    """

    def __init__(
        self,
        cube: Float[Tensor, "channels height width"],
        pixels: npt.NDArray[np.int64],
        classes: npt.NDArray[np.int64],
        *,
        width: int,
        half: int,
        margin: int,
        side: int,
    ) -> None:
        self.cube, self.half, self.margin, self.side = cube, half, margin, side
        rows, columns = np.divmod(pixels, width)
        self.rows, self.columns = torch.from_numpy(rows), torch.from_numpy(columns)
        self.classes = torch.from_numpy(np.asarray(classes, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def shared(self) -> bool:
        """Whether pixels share a front-end, on one pass of which the rest of a network takes many steps."""
        return self.side > 1

    def steps(self, batch_size: int) -> float:
        """Return how many training steps of ``batch_size`` pixels make one pass over all of them."""
        return len(self) / batch_size

    def plan(self, batch_size: int, generator: torch.Generator | None = None) -> list[Group]:
        """Divide all pixels into batches of regions.

        Where the regions fit into one pass, every batch is drawn from all of them; else from ``MIX`` or more.

        Args:
            batch_size: most pixels of a batch; the last one takes one more where it would be left alone, because
                batch norms can make nothing of a single sample.
            generator: shuffles pixels and regions and shifts their grid; None keeps the order of the scene.
        """
        count = len(self)
        order = (
            torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
        )
        corners = self._corners(generator)
        if self.side > 1 and _together(len(corners.unique(dim=0)), self.side, self.margin):
            batches = order.tensor_split(-(-count // batch_size))
            return [self._regions(part, corners, len(part)) for part in batches]
        regions = self._regions(order, corners, _share(batch_size, self.side))
        if generator is not None:
            regions = [
                regions[i] for i in torch.randperm(len(regions), generator=generator).tolist()
            ]
        most = len(regions) if self.side == 1 else _regions_at_once(self.side, self.margin)
        return _pack(regions, batch_size, most)

    def _corners(self, generator: torch.Generator | None) -> Int[Tensor, "pixels 2"]:
        """Return the first row and column of each pixel's region."""
        down, across = 0, 0
        whole = self.side >= max(size - 2 * self.margin for size in self.cube.shape[1:])
        if generator is not None and self.side > 1 and not whole:
            down, across = torch.randint(self.side, (2,), generator=generator).tolist()
        shift = torch.tensor([down, across])
        return (torch.stack([self.rows, self.columns], 1) + shift) // self.side * self.side - shift

    def _regions(self, order: Tensor, corners: Tensor, most: int) -> Group:
        """Gather pixels into their regions, at most ``most`` in each, keeping their order."""
        keys, inverse = corners[order].unique(dim=0, return_inverse=True)
        by_region = order[torch.sort(inverse, stable=True).indices]
        members = by_region.split(torch.bincount(inverse, minlength=len(keys)).tolist())
        return [
            (int(key[0]), int(key[1]), part)
            for key, member in zip(keys, members, strict=True)
            for part in member.split(most)
        ]

    def collate(self, group: Group, generator: torch.Generator | None = None) -> RegionBatch:
        """Cut one batch of the plan; with a generator, turn each region into one of its eight orientations."""
        side = self.side + 2 * self.margin
        crops, indices, classes = [], [], []
        for number, (top, left, members) in enumerate(group):
            crop = self._crop(top, left, side)
            rows = self.rows[members] - top + self.margin
            columns = self.columns[members] - left + self.margin
            if generator is not None:
                turn = int(torch.randint(8, (1,), generator=generator))
                crop = orient(crop, turn)
                rows, columns = _orient_points(rows, columns, side, turn)
            crops.append(crop)
            indices.append(number * side * side + patch_index(rows, columns, side, self.half))
            classes.append(self.classes[members])
        return RegionBatch(torch.stack(crops), torch.cat(indices), torch.cat(classes))

    def _crop(self, top: int, left: int, side: int) -> Tensor:
        """Cut a region; ``top`` and ``left`` are scene coordinates, so the margin cancels out."""
        height, width = self.cube.shape[1:]
        crop = self.cube[:, max(top, 0) : top + side, max(left, 0) : left + side]
        above, before = max(-top, 0), max(-left, 0)
        below, after = max(top + side - height, 0), max(left + side - width, 0)
        return F.pad(crop, (before, after, above, below))


def best_side(pixels: npt.NDArray[np.int64], shape: tuple[int, int], margin: int, most: int) -> int:
    """Choose the region side that computes the fewest pixels for one pass over ``pixels``.

    Args:
        pixels: flat indices.
        shape: height and width of the scene.
        margin: context on each side of a region.
        most: pixels of a batch.
    """
    rows, columns = np.divmod(pixels, shape[1])

    def cost(side: int) -> float:
        _, counts = np.unique(np.stack([rows // side, columns // side]), axis=1, return_counts=True)
        if side > 1 and _together(len(counts), side, margin):
            regions = -(-len(pixels) // most) * len(counts)
        elif side > 1 and _regions_at_once(side, margin) < MIX:
            return math.inf
        else:
            regions = int((-(-counts // _share(most, side))).sum())
        return regions * (side + 2 * margin) ** 2

    sides = [side for side in (1, *SIDES, max(shape)) if side <= max(shape)]
    return min(sides, key=cost)


def _regions_at_once(side: int, margin: int) -> int:
    """Return how many regions may share a pass of the front-end."""
    return AREA // (side + 2 * margin) ** 2


def _together(regions: int, side: int, margin: int) -> bool:
    """Tell whether all regions may share a pass."""
    return regions <= _regions_at_once(side, margin)


def _share(batch_size: int, side: int) -> int:
    """Return how many pixels of a batch may come from one region."""
    return batch_size if side == 1 else max(1, batch_size // MIX)


def reduce_scene(
    scene: xr.DataArray,
    bands: npt.NDArray[np.int64],
    preprocess: Preprocess,
    pixels: npt.NDArray[np.int64],
    *,
    reach: int,
    padding: str,
) -> Float[Tensor, "channels height width"]:
    """Read the surroundings of ``pixels`` and reduce them to a model's channels.

    Args:
        scene: the scene.
        bands: bands to read, in the preprocessing's order.
        preprocess: fitted preprocessing.
        pixels: flat indices; what lies further than ``reach`` from all of them is not read and stays zero.
        reach: context in pixels on each side, also the border that is added.
        padding: ``reflect`` or ``zero`` beyond the scene's edge.

    Returns:
        ``(channels, height + 2 reach, width + 2 reach)``.
    """
    height, width = scene.sizes["y"], scene.sizes["x"]
    wanted = np.zeros((height, width), dtype=bool)
    wanted.flat[pixels] = True
    footprint = ndimage.maximum_filter(wanted, size=2 * reach + 1, mode="constant")
    cube = np.zeros((preprocess.channels, height, width), dtype=np.float32)
    strip = max(1, STRIP_VALUES // (len(bands) * width))
    for top in range(0, height, strip):
        rows = slice(top, min(top + strip, height))
        if not footprint[rows].any():
            continue
        columns = np.flatnonzero(footprint[rows].any(axis=0))
        across = slice(int(columns[0]), int(columns[-1]) + 1)
        raw = torch.from_numpy(read_window(scene, rows, across, bands))
        with torch.no_grad():
            reduced = preprocess(raw[None])[0].numpy()
        # Not a product: 0 times a value that overflowed would be NaN.
        cube[:, rows, across] = np.where(footprint[rows, across], reduced, np.float32(0))
    return torch.from_numpy(pad_border(cube, reach, padding))


def pad_border(
    window: npt.NDArray[np.float32], reach: int, padding: str
) -> npt.NDArray[np.float32]:
    """Add ``reach`` pixels around ``(channels, rows, columns)``: zeros, or reflections as often as it takes."""
    around = ((0, 0), (reach, reach), (reach, reach))
    if padding == "zero":
        return np.pad(window, around)
    return np.pad(window, around, mode="reflect")


def _pack(regions: Group, batch_size: int, most: int) -> list[Group]:
    """Put regions into batches of at most ``batch_size`` pixels and ``most`` regions, but for a pixel left alone."""
    groups: list[Group] = []
    room = 0
    for region in regions:
        count = len(region[2])
        if not groups or count > room or len(groups[-1]) == most:
            groups.append([])
            room = batch_size
        groups[-1].append(region)
        room -= count
    if batch_size > 1 and len(groups) > 1 and sum(len(region[2]) for region in groups[-1]) == 1:
        alone = groups.pop()
        groups[-1] += alone
    return groups


def orient(images: Tensor, turn: int) -> Tensor:
    """Turn the last two axes by ``turn`` quarters, and mirror them from 4 on: the eight orientations."""
    images = torch.rot90(images, turn % 4, (-2, -1))
    return images.flip(-1) if turn >= 4 else images


def _orient_points(rows: Tensor, columns: Tensor, side: int, turn: int) -> tuple[Tensor, Tensor]:
    for _ in range(turn % 4):
        rows, columns = side - 1 - columns, rows
    return (rows, side - 1 - columns) if turn >= 4 else (rows, columns)
