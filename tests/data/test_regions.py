"""Regions: every pixel once, patches equal naive crops whatever the region, nothing read from elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from areas import labelled_area, packed
from vitreous.data.regions import (
    SIDES,
    PixelRegions,
    best_side,
    gather_patches,
    orient,
    pad_border,
    reduce_scene,
)
from vitreous.layers.preprocess import Preprocess
from vitreous.scenes.cube import make_scene, read_with_context

IDENTITY = Preprocess.fit(np.random.default_rng(0).normal(size=(20, 2)), reduction="none")
IDENTITY.matrix.copy_(torch.eye(2))
IDENTITY.mean.zero_()


def regions_of(height, width, pixels, *, half, margin, side, padding="reflect"):
    """Pixel ``p`` has class ``p``, so that batches can be traced back; values name their place."""
    cube = np.arange(1, 2 * height * width + 1, dtype=np.float32).reshape(2, height, width)
    padded = pad_border(cube, margin, padding)
    area = labelled_area(padded, pixels, pixels, width)
    regions = PixelRegions([area], half=half, margin=margin, side=side)
    return regions, padded


def naive_patch(padded, pixel, width, half, margin):
    row, column = divmod(int(pixel), width)
    row, column = row + margin, column + margin
    return padded[:, row - half : row + half + 1, column - half : column + half + 1]


@st.composite
def labelled(draw):
    height, width = draw(st.integers(1, 30)), draw(st.integers(1, 30))
    seed = draw(st.integers(0, 2**31))
    count = draw(st.integers(1, height * width))
    pixels = np.sort(np.random.default_rng(seed).choice(height * width, count, replace=False))
    return height, width, pixels


@settings(deadline=None, max_examples=80)
@given(
    labelled(),
    st.integers(0, 2),
    st.integers(0, 2),
    st.sampled_from([1, 2, 5, 16, 40]),
    st.integers(1, 50),
    st.none() | st.integers(0, 2**31),
)
def test_every_pixel_once_with_its_own_patch(scene, half, extra, side, batch_size, seed):
    height, width, pixels = scene
    margin = half + extra
    regions, padded = regions_of(height, width, pixels, half=half, margin=margin, side=side)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    seen = []
    plan = list(regions.plan(batch_size, generator))
    for number, group in enumerate(plan, start=1):
        batch = regions.collate(group)
        # A pixel left alone joins the last batch.
        most = batch_size + (number == len(plan) and batch_size > 1)
        assert 1 <= len(batch.classes) <= most
        patches = gather_patches(batch.regions, batch.index).numpy()
        for pixel, patch in zip(batch.classes.tolist(), patches, strict=True):
            np.testing.assert_array_equal(patch, naive_patch(padded, pixel, width, half, margin))
        seen += batch.classes.tolist()
    assert sorted(seen) == pixels.tolist()


def test_without_a_generator_the_order_is_the_scenes():
    regions, _ = regions_of(8, 9, np.arange(72), half=1, margin=1, side=1)
    plan = regions.plan(10)
    assert [int(members[0]) for group in plan for *_, members in group] == list(range(72))


@pytest.mark.parametrize("side", [1, 4, 11])
def test_patches_turn_with_their_region(side):
    """Each patch is one of the eight orientations of its naive crop; all eight occur, one per region."""
    height, width, half, margin = 7, 11, 2, 3
    pixels = np.array([0, width - 1, 3 * width + 5, (height - 1) * width, height * width - 1])
    # Zeros beyond the edge: a patch that mirrors itself would look alike from several sides.
    regions, padded = regions_of(
        height, width, pixels, half=half, margin=margin, side=side, padding="zero"
    )
    turns = set()
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        for group in regions.plan(100, generator):
            for region in group:
                batch = regions.collate([region], generator)
                patches = gather_patches(batch.regions, batch.index)
                same = [
                    turn
                    for turn in range(8)
                    if all(
                        torch.equal(
                            patch,
                            orient(
                                torch.tensor(naive_patch(padded, pixel, width, half, margin)), turn
                            ),
                        )
                        for pixel, patch in zip(batch.classes, patches, strict=True)
                    )
                ]
                assert len(same) == 1
                turns.update(same)
    assert turns == set(range(8))


def test_the_eight_orientations_are_those_of_a_square():
    image = torch.arange(9.0).reshape(1, 3, 3)
    turned = {tuple(orient(image, turn).flatten().tolist()) for turn in range(8)}
    assert len(turned) == 8
    assert all(values[4] == 4 for values in turned)


def test_the_grid_of_regions_shifts_only_with_a_generator():
    pixels = np.arange(400)
    regions, _ = regions_of(20, 20, pixels, half=0, margin=0, side=8)
    corners = {
        tuple(sorted({(top % 8, left % 8) for group in plan for _, top, left, _ in group}))
        for plan in (regions.plan(400, torch.Generator().manual_seed(seed)) for seed in range(20))
    }
    assert len(corners) > 5
    assert {(t % 8, x % 8) for g in regions.plan(400) for _, t, x, _ in g} == {(0, 0)}


@pytest.mark.parametrize("padding", ["reflect", "zero"])
@pytest.mark.parametrize("reach", [0, 2, 7])
def test_reduction_reads_only_the_surroundings(reach, padding):
    """What lies further away may be NaN, infinite or overflow: nothing changes, not even a sign of zero."""
    rng = np.random.default_rng(3)
    height, width = 19, 33
    values = rng.normal(size=(2, height, width)).astype(np.float32)
    pixels = np.array([0, 5 * width + 20, (height - 1) * width + 4])
    reached = np.zeros((height, width), bool)
    for row, column in zip(*np.divmod(pixels, width), strict=True):
        top, left = max(row - reach, 0), max(column - reach, 0)
        reached[top : row + reach + 1, left : column + reach + 1] = True
    large = Preprocess(2, 2)
    large.matrix.copy_(1e3 * torch.eye(2))

    def reduce(cube):
        scene = make_scene(cube, unit="reflectance")
        return reduce_scene(
            scene, np.array([0, 1]), large, pixels, reach=reach, padding=padding
        ).numpy()

    expected = reduce(values)
    inner = expected[:, reach : reach + height, reach : reach + width]
    np.testing.assert_array_equal(inner, np.where(reached, values * np.float32(1e3), 0))
    for elsewhere in (np.nan, np.inf, 3e38):
        changed = np.where(reached, values, np.float32(elsewhere))
        assert reduce(changed).tobytes() == expected.tobytes()


def test_strips_do_not_matter(monkeypatch):
    values = np.random.default_rng(1).normal(size=(2, 12, 9)).astype(np.float32)
    scene = make_scene(values, unit="reflectance")
    arguments = (scene, np.array([0, 1]), IDENTITY, np.array([0, 50, 107]))
    whole = reduce_scene(*arguments, reach=3, padding="reflect")
    monkeypatch.setattr("vitreous.data.regions.STRIP_VALUES", 2 * 9)
    assert torch.equal(reduce_scene(*arguments, reach=3, padding="reflect"), whole)


@pytest.mark.parametrize(("height", "width"), [(12, 9), (3, 20), (1, 6), (2, 2)])
@pytest.mark.parametrize("padding", ["reflect", "zero"])
def test_the_border_is_the_one_that_maps_are_made_with(height, width, padding):
    """Training and mapping must see the same beyond the edge, also in scenes smaller than the context."""
    values = np.random.default_rng(2).normal(size=(2, height, width)).astype(np.float32)
    scene = make_scene(values, unit="reflectance")
    bands, reach = np.array([0, 1]), 4
    trained = reduce_scene(
        scene, bands, IDENTITY, np.arange(height * width), reach=reach, padding=padding
    )
    mapped = read_with_context(scene, slice(0, height), slice(0, width), bands, reach, padding)
    np.testing.assert_array_equal(trained.numpy(), IDENTITY(torch.tensor(mapped)[None])[0].numpy())


def test_best_side():
    dense, lone = np.arange(100 * 100), np.array([0, 5050, 9999])
    assert best_side([packed(lone, (100, 100))], margin=10, most=1000) == 1
    assert best_side([packed(dense, (100, 100))], margin=10, most=100_000) == 100
    assert best_side([packed(dense, (100, 100))], margin=10, most=1) == 1
    # Larger scenes are never taken whole: their regions would strain memory.
    wide = np.arange(4 * 5000)
    assert best_side([packed(wide, (4, 5000))], margin=10, most=100_000) in (1, *SIDES)


@pytest.mark.parametrize("scene", [120, 600])
def test_a_batch_is_drawn_from_many_places(scene):
    """Of a class map in stripes, every batch has most classes: steps on one place unlearn the others."""
    pixels = np.arange(0, scene * scene, 7)
    side = best_side([packed(pixels, (scene, scene))], margin=2, most=512)
    regions, _ = regions_of(scene, scene, pixels, half=1, margin=2, side=side)
    plan = regions.plan(512, torch.Generator().manual_seed(0))
    full = [group for group in plan if sum(len(m) for *_, m in group) > 400]
    assert len(full) > len(plan) / 2
    for group in full:
        members = torch.cat([m for *_, m in group])
        stripes = (regions.rows[members] * 8 // scene).bincount(minlength=8)
        assert (stripes > 0).sum() >= 6


@settings(deadline=None, max_examples=30)
@given(labelled(), st.integers(0, 6), st.integers(1, 200))
def test_the_best_side_computes_no_more_than_single_patches(scene, margin, most):
    height, width, pixels = scene
    side = best_side([packed(pixels, (height, width))], margin, most)

    def computed(side):
        regions, _ = regions_of(height, width, pixels, half=0, margin=margin, side=side)
        return sum(len(group) for group in regions.plan(most)) * (side + 2 * margin) ** 2

    assert computed(side) <= computed(1)
