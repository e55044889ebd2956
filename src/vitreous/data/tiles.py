"""Training tiles for networks that label all of their pixels at once."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from vitreous.data.regions import Group, PixelRegions, RegionBatch, orient

# A step on one tile would be a step on its few classes. Of the same number of tiles, twice as many steps of two were
# better than steps of four (94.2 against 93.1 % OA on the fixed split of Indian Pines, one run each).
TILES = 2
AREA = 512**2  # pixels of the tiles of a step: memory in training
FILLINGS = 8  # crops of other ground, at most, for what a tile may not show


class TilePixels(PixelRegions):
    """The labelled pixels of a scene, served in tiles whose every labelled pixel counts at once.

    A tile costs the same for one labelled pixel as for all, so none is divided, and pixels are not shuffled among
    batches; the grid of the tiles moves from pass to pass.

    What lies far from all labelled pixels may not be seen, and is zero in the cube. A map is not made of islands in a
    sea of zeros, and their outlines are a way to know the fields again. So the sea is filled with other ground that may
    be seen, different each time (33.2 instead of 29.0 % OA on blocks of Indian Pines, one run each).
    """

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
            generator: shuffles the tiles and shifts their grid; None keeps the order of the scene.
        """
        order = torch.arange(len(self))
        tiles = self._regions(order, self._corners(generator), len(self))
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
            other = self._crop(
                int(self.rows[pixel]) - down, int(self.columns[pixel]) - across, size
            )
            tile.copy_(torch.where(empty, orient(other, turn), tile))
