"""Training tiles for networks that label all of their pixels at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitreous.data.packed import PackedImage
from vitreous.data.regions import (
    Group,
    LabelledArea,
    PixelRegions,
    Region,
    RegionBatch,
    grid_shift,
    orient,
    read_square,
)

# A step on one tile would be a step on its few classes. Of the same number of tiles, twice as many steps of two were
# better than steps of four (94.2 against 93.1 % OA on the fixed split of Indian Pines, one run each).
TILES = 2
AREA = 512**2  # pixels of the tiles of a step: memory in training
FILLINGS = 8  # crops of other ground, at most, for what a tile may not show


class TilePixels(PixelRegions):
    """The labelled pixels of some scenes, served in tiles whose every labelled pixel counts at once.

    A tile costs the same for one labelled pixel as for all, so none is divided, and pixels are not shuffled among
    batches; the grid of the tiles moves from pass to pass. Of the labelled pixels no list is kept, so that memory does
    not grow with their number.

    What lies far from all labelled pixels may not be seen, and is zero in the cubes. A map is not made of islands in a
    sea of zeros, and their outlines are a way to know the fields again. So the sea is filled with other ground that may
    be seen, different each time (33.2 instead of 29.0 % OA on blocks of Indian Pines, one run each).

    Args:
        areas: the scenes.
        margin: context on each side of a tile, the cubes' border.
        side: side of a tile without its margin.
    """

    def __init__(self, areas: Sequence[LabelledArea], *, margin: int, side: int) -> None:
        self.areas = list(areas)
        self.half, self.margin, self.side = 0, margin, side
        self._ends = np.cumsum([len(area.classes) for area in self.areas])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def class_counts(self, count: int) -> Int[Tensor, "classes"]:
        """Return how many pixels there are of each class."""
        totals = np.sum([area.classes.counts(count + 1) for area in self.areas], axis=0)
        return torch.from_numpy(totals[1:])

    @property
    def shared(self) -> bool:
        """Nothing is left to do per pixel behind the shared part: one step per batch."""
        return False

    def steps(self, batch_size: int) -> float:
        """Return how many batches of tiles make one pass over all pixels."""
        return len(self.plan(batch_size))

    def plan(self, batch_size: int, generator: torch.Generator | None = None) -> list[Group]:
        """Divide all pixels into batches of tiles.

        Args:
            batch_size: not needed; the tiles decide.
            generator: shuffles the tiles and shifts their grid; None keeps the order of the scenes.
        """
        shift = grid_shift(self.areas, self.side, self.margin, generator)
        tiles = [
            Region(number, top, left, torch.empty(0, dtype=torch.int64))
            for number, area in enumerate(self.areas)
            for top, left in _labelled_tiles(area.classes, self.side, shift)
        ]
        if generator is not None:
            tiles = [tiles[i] for i in torch.randperm(len(tiles), generator=generator).tolist()]
        most = max(1, min(TILES, AREA // (self.side + 2 * self.margin) ** 2))
        # As many in each as can be: a last batch of one tile would be a step in its own direction.
        parts = torch.arange(len(tiles)).tensor_split(-(-len(tiles) // most))
        return [[tiles[i] for i in part.tolist()] for part in parts]

    def collate(self, group: Group, generator: torch.Generator | None = None) -> RegionBatch:
        """Cut one batch of the plan and fill what may not be seen; with a generator, turn each tile."""
        batch = super().collate(group, generator)
        if generator is None:  # the same tiles are filled the same way
            generator = torch.Generator().manual_seed(len(self))
        for tile in batch.regions:
            self._fill(tile, generator)
        return batch

    def _labelled(self, region: Region) -> tuple[Tensor, Tensor, Tensor]:
        """Return rows, columns and classes of all labelled pixels of a tile."""
        classes = self.areas[region.area].classes
        spans = [
            slice(max(first, 0), min(first + self.side, size))
            for first, size in zip((region.top, region.left), classes.shape, strict=True)
        ]
        values = classes.read(*spans)
        rows, columns = np.nonzero(values)
        own = torch.from_numpy(values[rows, columns].astype(np.int64) - 1)
        return (
            torch.from_numpy(rows + spans[0].start),
            torch.from_numpy(columns + spans[1].start),
            own,
        )

    def _fill(self, tile: Float[Tensor, "channels size size"], generator: torch.Generator) -> None:
        """Put ground around other labelled pixels where a tile is empty."""
        for _ in range(FILLINGS):
            empty = (tile == 0).all(0)
            if not empty.any():
                return
            size = tile.shape[-1]
            pixel, down, across, turn = (
                int(torch.randint(most, (), generator=generator))
                for most in (len(self), size, size, 8)
            )
            number = int(np.searchsorted(self._ends, pixel, side="right"))
            area = self.areas[number]
            before = int(self._ends[number - 1]) if number else 0
            row, column = area.classes.place(pixel - before)
            other = read_square(area.cube, row - down, column - across, size)
            tile.copy_(torch.where(empty, orient(other, turn), tile))


def _labelled_tiles(
    classes: PackedImage, side: int, shift: tuple[int, int]
) -> list[tuple[int, int]]:
    """Return first row and column of the tiles with labelled pixels, in the order of the scene."""
    counts = (classes.whole() > 0).astype(np.int64)
    firsts = []
    for axis, before in enumerate(shift):
        first = np.arange(-before, classes.shape[axis], side)
        firsts.append(first)
        counts = np.add.reduceat(counts, np.maximum(first, 0), axis=axis)
    return [
        (int(firsts[0][down]), int(firsts[1][across])) for down, across in np.argwhere(counts > 0)
    ]
