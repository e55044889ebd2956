"""Training tiles: every labelled pixel once in a pass, in its place, and nothing of the scene beyond its surroundings."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from areas import labelled_area
from vitreous.data.regions import read_square
from vitreous.data.tiles import TILES, TilePixels

HEIGHT, WIDTH, MARGIN, SIDE = 37, 52, 3, 10


def tiles_of(pixels, seen=None):
    """Pixel ``p`` has class ``p`` and value ``p + 1``, where it is seen; the cube's border is -1."""
    cube = np.full((1, HEIGHT + 2 * MARGIN, WIDTH + 2 * MARGIN), -1, np.float32)
    cube[0, MARGIN:-MARGIN, MARGIN:-MARGIN] = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) + 1
    if seen is not None:
        cube[:, MARGIN:-MARGIN, MARGIN:-MARGIN] *= seen
    return TilePixels([labelled_area(cube, pixels, pixels, WIDTH)], margin=MARGIN, side=SIDE)


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
        assert torch.equal(values[batch.index.flatten()].long() - 1, batch.classes)
        found += batch.classes.tolist()
    assert sorted(found) == sorted(pixels.tolist())


def test_batches_are_of_several_tiles_and_nearly_equal():
    counts = [len(group) for group in tiles_of(a_few()).plan(64)]
    assert max(counts) <= TILES
    assert max(counts) - min(counts) <= 1
    assert len(tiles_of(a_few(1)).plan(64)) == 1


def test_a_tile_is_never_divided():
    tiles = tiles_of(np.arange(HEIGHT * WIDTH))
    places = [(top, left) for group in tiles.plan(1) for _, top, left, _ in group]
    assert len(places) == len(set(places)) == 4 * 6


def test_the_grid_moves_from_pass_to_pass():
    tiles = tiles_of(a_few())
    generator = torch.Generator().manual_seed(0)
    offsets = {
        (top % SIDE, left % SIDE)
        for _ in range(20)
        for group in tiles.plan(1, generator)
        for _, top, left, _ in group
    }
    assert len(offsets) > 10


def surroundings(pixels, reach=3):
    seen = np.zeros((HEIGHT, WIDTH), bool)
    for row, column in zip(*np.divmod(pixels, WIDTH), strict=True):
        seen[max(row - reach, 0) : row + reach + 1, max(column - reach, 0) : column + reach + 1] = 1
    return seen


@pytest.mark.parametrize("seed", [None, 0])
def test_what_may_not_be_seen_is_filled_with_what_may(seed):
    pixels = np.array([0, 5 * WIDTH + 20, 30 * WIDTH + 40, 31 * WIDTH + 45])
    seen = surroundings(pixels)
    assert seen.mean() < 0.15
    tiles = tiles_of(pixels, seen)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    plan = tiles.plan(64, generator)
    state = None if generator is None else generator.get_state()
    batches = [tiles.collate(group, generator) for group in plan]
    allowed = {-1, 0, *(1 + np.flatnonzero(seen)).tolist()}
    for batch in batches:
        assert set(batch.regions.flatten().long().tolist()) <= allowed
        assert (batch.regions != 0).float().mean() > 0.6
        values = batch.regions.permute(0, 2, 3, 1).flatten()
        assert torch.equal(values[batch.index.flatten()].long() - 1, batch.classes)
    if generator is not None:
        different = [tiles.collate(group, generator).regions for group in plan]
        assert not all(torch.equal(a.regions, b) for a, b in zip(batches, different, strict=True))
        generator.set_state(state)
    for group, batch in zip(plan, batches, strict=True):
        assert torch.equal(tiles.collate(group, generator).regions, batch.regions)


def test_what_may_be_seen_stays_as_it_is():
    pixels = a_few(40)
    seen = surroundings(pixels)
    tiles = tiles_of(pixels, seen)
    for group in tiles.plan(64):
        filled = tiles.collate(group).regions
        for (_, top, left, _), tile in zip(group, filled, strict=True):
            plain = read_square(tiles.areas[0].cube, top, left, SIDE + 2 * MARGIN)
            kept = plain != 0
            assert torch.equal(tile[kept], plain[kept])


def test_the_cube_is_left_alone():
    pixels = a_few(20)
    tiles = tiles_of(pixels, surroundings(pixels))
    before = tiles.areas[0].cube.clone()
    for group in tiles.plan(64):
        tiles.collate(group, torch.Generator().manual_seed(0))
    assert torch.equal(tiles.areas[0].cube, before)
