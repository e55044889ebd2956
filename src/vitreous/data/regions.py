"""Batches of training pixels, cut from the cubes of one scene or many.

Patches around neighbouring pixels overlap almost entirely. They are never materialised: pixels are gathered into
square regions, a model computes its front-end once per region, and patches are read from its output by index.
A region of one pixel is an ordinary patch, so both ways are one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
import xarray as xr
from jaxtyping import Float, Int
from scipy import ndimage
from torch import Tensor

from vitreous.data.packed import PackedImage
from vitreous.layers.preprocess import Preprocess
from vitreous.scenes.cube import read_window

STRIP_VALUES = 2**25  # values of a scene held at once while it is reduced (128 MiB of float32)
AREA = 192**2  # pixels of regions, margins included, in one pass of a front-end: memory in training
# Neighbouring pixels are of few classes. Steps on one place after another unlearn all others, and batch
# statistics of one place are no statistics; so a batch is drawn from many.
MIX = 16
SIDES = (16, 24, 32, 48, 64, 96, 128)


class Cube(Protocol):
    """Reduced channels of a scene with a border: a tensor, or what reads windows of it when they are asked for."""

    @property
    def shape(self) -> Sequence[int]:
        """``(channels, height, width)``, the border included."""

    def __getitem__(self, window: tuple[slice, slice, slice], /) -> Tensor:
        """Return all channels of a window."""


@dataclass(frozen=True)
class LabelledArea:
    """A scene to learn from.

    Attributes:
        cube: its reduced channels, with a border as wide as the context of a pixel on each side.
        classes: ``(height, width)`` the classes of the pixels that take part from 1 on, 0 elsewhere.
    """

    cube: Cube
    classes: PackedImage


class Region(NamedTuple):
    """A square of a scene.

    Attributes:
        area: the scene's number.
        top: its first row; may lie before the scene.
        left: its first column.
        members: numbers of the labelled pixels in it that are of the batch.
    """

    area: int
    top: int
    left: int
    members: Int[Tensor, "pixels"]


Group: TypeAlias = list[Region]


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
    """The labelled pixels of some scenes, served in regions.

    Only pixels inside a patch of a given pixel are ever read: everything else of the cubes stays zero, so no other
    part of a scene reaches a model through its normalisation statistics.

    Args:
        areas: the scenes.
        half: half the patch side, rounded down.
        margin: context on each side of a pixel: ``half``, plus the reach of a shared front-end; the cubes' border.
        side: side of a region in pixels without its margin; 1 gives single patches.
    """

    def __init__(self, areas: Sequence[LabelledArea], *, half: int, margin: int, side: int) -> None:
        self.areas = list(areas)
        self.half, self.margin, self.side = half, margin, side
        places = [np.nonzero(area.classes.whole()) for area in self.areas]
        counts = torch.tensor([len(rows) for rows, _ in places])
        self.area = torch.arange(len(places)).repeat_interleave(counts)
        self.rows = torch.from_numpy(np.concatenate([rows for rows, _ in places]))
        self.columns = torch.from_numpy(np.concatenate([columns for _, columns in places]))
        classes = [
            area.classes.whole()[place] for area, place in zip(self.areas, places, strict=True)
        ]
        self.classes = torch.from_numpy(np.concatenate(classes).astype(np.int64) - 1)

    def __len__(self) -> int:
        return len(self.classes)

    def class_counts(self, count: int) -> Int[Tensor, "classes"]:
        """Return how many pixels there are of each class."""
        return torch.bincount(self.classes, minlength=count)

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
            generator: shuffles pixels and regions and shifts their grid; None keeps the order of the scenes.
        """
        count = len(self)
        order = (
            torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
        )
        shift = grid_shift(self.areas, self.side, self.margin, generator)
        keys = self._keys(shift)
        if self.side > 1 and _together(len(keys.unique()), self.side, self.margin):
            batches = order.tensor_split(-(-count // batch_size))
            return [self._regions(part, keys, shift, len(part)) for part in batches]
        regions = self._regions(order, keys, shift, _share(batch_size, self.side))
        if generator is not None:
            regions = [
                regions[i] for i in torch.randperm(len(regions), generator=generator).tolist()
            ]
        most = len(regions) if self.side == 1 else _regions_at_once(self.side, self.margin)
        return _pack(regions, batch_size, most)

    def _keys(self, shift: tuple[int, int]) -> Int[Tensor, "pixels"]:
        """Return one number for each pixel's region, ascending by scene, first row and first column."""
        cells = [
            (place + offset) // self.side
            for place, offset in zip((self.rows, self.columns), shift, strict=True)
        ]
        return (self.area * _MOST_CELLS + cells[0]) * _MOST_CELLS + cells[1]

    def _regions(self, order: Tensor, keys: Tensor, shift: tuple[int, int], most: int) -> Group:
        """Gather pixels into their regions, at most ``most`` in each, keeping their order."""
        found, inverse = keys[order].unique(return_inverse=True)
        by_region = order[torch.sort(inverse, stable=True).indices]
        members = by_region.split(torch.bincount(inverse, minlength=len(found)).tolist())
        return [
            Region(
                key // _MOST_CELLS**2,
                key // _MOST_CELLS % _MOST_CELLS * self.side - shift[0],
                key % _MOST_CELLS * self.side - shift[1],
                part,
            )
            for key, member in zip(found.tolist(), members, strict=True)
            for part in member.split(most)
        ]

    def collate(self, group: Group, generator: torch.Generator | None = None) -> RegionBatch:
        """Cut one batch of the plan; with a generator, turn each region into one of its eight orientations."""
        side = self.side + 2 * self.margin
        crops, indices, classes = [], [], []
        for number, region in enumerate(group):
            crop = read_square(self.areas[region.area].cube, region.top, region.left, side)
            rows, columns, own = self._labelled(region)
            rows, columns = rows - region.top + self.margin, columns - region.left + self.margin
            if generator is not None:
                turn = int(torch.randint(8, (1,), generator=generator))
                crop = orient(crop, turn)
                rows, columns = _orient_points(rows, columns, side, turn)
            crops.append(crop)
            indices.append(number * side * side + patch_index(rows, columns, side, self.half))
            classes.append(own)
        return RegionBatch(torch.stack(crops), torch.cat(indices), torch.cat(classes))

    def _labelled(self, region: Region) -> tuple[Tensor, Tensor, Tensor]:
        """Return rows, columns and classes of a region's pixels."""
        members = region.members
        return self.rows[members], self.columns[members], self.classes[members]


_MOST_CELLS = 2**20  # regions along one side of a scene


def grid_shift(
    areas: Sequence[LabelledArea], side: int, margin: int, generator: torch.Generator | None
) -> tuple[int, int]:
    """Return by how much the grid of regions lies before the first row and column of every scene.

    Args:
        areas: the scenes.
        side: of a region.
        margin: border of the cubes.
        generator: draws it; None for no shift, nor where one region holds a whole scene.
    """
    longest = max(size - 2 * margin for area in areas for size in area.cube.shape[1:])
    if generator is None or side == 1 or side >= longest:
        return 0, 0
    down, across = torch.randint(side, (2,), generator=generator).tolist()
    return down, across


def read_square(cube: Cube, top: int, left: int, side: int) -> Tensor:
    """Cut a region, zero beyond the cube; ``top`` and ``left`` are scene coordinates, so the margin cancels out."""
    height, width = cube.shape[1:]
    crop = cube[:, max(top, 0) : top + side, max(left, 0) : left + side]
    above, before = max(-top, 0), max(-left, 0)
    below, after = max(top + side - height, 0), max(left + side - width, 0)
    return F.pad(crop, (before, after, above, below))


def best_side(classes: Sequence[PackedImage], margin: int, most: int) -> int:
    """Choose the region side that computes the fewest pixels for one pass over the labelled pixels.

    Args:
        classes: images of some scenes, 0 where a pixel takes no part.
        margin: context on each side of a region.
        most: pixels of a batch.
    """
    places = [np.nonzero(image.whole()) for image in classes]
    rows, columns = (np.concatenate([place[axis] for place in places]) for axis in (0, 1))
    area = np.repeat(np.arange(len(places)), [len(place[0]) for place in places])
    pixels, shape = rows, np.max([image.shape for image in classes], axis=0).tolist()

    def cost(side: int) -> float:
        keys = (area * _MOST_CELLS + rows // side) * _MOST_CELLS + columns // side
        _, counts = np.unique(keys, return_counts=True)
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
    pixels: npt.NDArray[np.int64] | npt.NDArray[np.bool_],
    *,
    reach: int,
    padding: str,
) -> Float[Tensor, "channels height width"]:
    """Read the surroundings of ``pixels`` and reduce them to a model's channels.

    Args:
        scene: the scene.
        bands: bands to read, in the preprocessing's order.
        preprocess: fitted preprocessing.
        pixels: flat indices, or ``(height, width)`` which they are; what lies further than ``reach`` from all of them
            is not read and stays zero.
        reach: context in pixels on each side, also the border that is added.
        padding: ``reflect`` or ``zero`` beyond the scene's edge.

    Returns:
        ``(channels, height + 2 reach, width + 2 reach)``.
    """
    height, width = scene.sizes["y"], scene.sizes["x"]
    wanted = np.zeros((height, width), dtype=bool)
    wanted.ravel()[pixels.ravel()] = True
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


@dataclass(frozen=True)
class ReducedScene:
    """What :func:`reduce_scene` returns, read when it is asked for: of scenes that memory cannot hold together.

    Attributes:
        open: opens the scene.
        bands: bands to read, in the preprocessing's order.
        preprocess: fitted preprocessing.
        wanted: not 0 where a pixel takes part; what lies further than ``reach`` from all of those is zero.
        reach: context in pixels on each side, also the border.
        padding: ``reflect`` or ``zero`` beyond the scene's edge.
    """

    open: Callable[[], xr.DataArray]
    bands: npt.NDArray[np.int64]
    preprocess: Preprocess
    wanted: PackedImage
    reach: int
    padding: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(channels, height + 2 reach, width + 2 reach)``."""
        height, width = self.wanted.shape
        return self.preprocess.channels, height + 2 * self.reach, width + 2 * self.reach

    def __getitem__(self, window: tuple[slice, slice, slice]) -> Tensor:
        """Return all channels of a window."""
        rows, columns = (
            self._sources(size)[part]
            for size, part in zip(self.wanted.shape, window[1:], strict=True)
        )
        result = torch.zeros(self.preprocess.channels, len(rows), len(columns))
        inside = [axis >= 0 for axis in (rows, columns)]
        if not (inside[0].any() and inside[1].any()):
            return result
        spans = [
            slice(int(axis[held].min()), int(axis[held].max()) + 1)
            for axis, held in zip((rows, columns), inside, strict=True)
        ]
        found = self._read(*spans)
        down, across = (np.flatnonzero(held) for held in inside)
        result[:, down[:, None], across] = found[
            :, (rows[down] - spans[0].start)[:, None], columns[across] - spans[1].start
        ]
        return result

    def _sources(self, size: int) -> npt.NDArray[np.int64]:
        """Return which row or column of the scene each one of the cube shows; -1 for none."""
        own = np.arange(size)
        if self.padding == "zero":
            return np.pad(own, self.reach, constant_values=-1)
        return np.pad(own, self.reach, mode="reflect")

    def _read(self, rows: slice, columns: slice) -> Tensor:
        around = [
            slice(max(part.start - self.reach, 0), min(part.stop + self.reach, size))
            for part, size in zip((rows, columns), self.wanted.shape, strict=True)
        ]
        near = ndimage.maximum_filter(
            self.wanted.read(*around) > 0, size=2 * self.reach + 1, mode="constant"
        )
        down, across = rows.start - around[0].start, columns.start - around[1].start
        near = near[down:, across:][: rows.stop - rows.start, : columns.stop - columns.start]
        raw = torch.from_numpy(read_window(self.open(), rows, columns, self.bands))
        with torch.no_grad():
            reduced = self.preprocess(raw[None])[0]
        return torch.where(torch.from_numpy(near), reduced, 0.0)


@dataclass(frozen=True)
class Stacked:
    """The channels of several cubes of one size, one after the other.

    Attributes:
        cubes: the cubes.
    """

    cubes: Sequence[Cube]

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(channels, height, width)``."""
        height, width = self.cubes[0].shape[1:]
        return sum(cube.shape[0] for cube in self.cubes), height, width

    def __getitem__(self, window: tuple[slice, slice, slice]) -> Tensor:
        """Return all channels of a window."""
        return torch.cat([cube[window] for cube in self.cubes])


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
        count = len(region.members)
        if not groups or count > room or len(groups[-1]) == most:
            groups.append([])
            room = batch_size
        groups[-1].append(region)
        room -= count
    if (
        batch_size > 1
        and len(groups) > 1
        and sum(len(region.members) for region in groups[-1]) == 1
    ):
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
