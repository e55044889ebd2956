"""Training tiles: every labelled pixel once in a pass, in its place, and nothing of the scene beyond its surroundings."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vitreous.data.tiles import TILES, TilePixels

HEIGHT, WIDTH, MARGIN, SIDE = 37, 52, 3, 10


def tiles_of(pixels):
    """Pixel ``p`` has class ``p``; the cube's value names its place, its border is -1."""
    cube = np.full((1, HEIGHT + 2 * MARGIN, WIDTH + 2 * MARGIN), -1, np.float32)
    cube[0, MARGIN:-MARGIN, MARGIN:-MARGIN] = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    facts = {"width": WIDTH, "half": 0, "margin": MARGIN, "side": SIDE}
    return TilePixels(torch.from_numpy(cube), pixels, pixels, **facts)


def a_few(count=90):
    return np.random.default_rng(0).choice(HEIGHT * WIDTH, count, replace=False)


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_every_pixel_once_and_in_its_place(seed):
    pixels = a_few()
    tiles = tiles_of(pixels)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    plan = tiles.plan(1, generator)
    found = []
    for group in plan:
        batch = tiles.collate(group, generator)
        assert batch.regions.shape[1:] == (1, SIDE + 2 * MARGIN, SIDE + 2 * MARGIN)
        values = batch.regions.permute(0, 2, 3, 1).flatten()
        assert torch.equal(values[batch.index.flatten()].long(), batch.classes)
        found += batch.classes.tolist()
    assert sorted(found) == sorted(pixels.tolist())


def test_batches_are_of_several_tiles_and_nearly_equal():
    counts = [len(group) for group in tiles_of(a_few()).plan(64)]
    assert max(counts) <= TILES
    assert max(counts) - min(counts) <= 1
    assert len(tiles_of(a_few(1)).plan(64)) == 1


def test_a_tile_is_never_divided():
    tiles = tiles_of(np.arange(HEIGHT * WIDTH))
    places = [(top, left) for group in tiles.plan(1) for top, left, _ in group]
    assert len(places) == len(set(places)) == 4 * 6


def test_the_grid_moves_from_pass_to_pass():
    tiles = tiles_of(a_few())
    generator = torch.Generator().manual_seed(0)
    offsets = {
        (top % SIDE, left % SIDE)
        for _ in range(20)
        for group in tiles.plan(1, generator)
        for top, left, _ in group
    }
    assert len(offsets) > 10
