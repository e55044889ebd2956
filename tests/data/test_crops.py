"""Parts of a scene and crops of them: nothing shared, nothing outside, nothing but the generator decides."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smooth_scene import smooth_scene
from vitreous.data.crops import Area, Crops, cut_scene, sample_spectra
from vitreous.errors import SceneError
from vitreous.scenes.cube import LazyCube, make_scene

ALL = np.arange(2)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def positions(height=30, width=20):
    """A scene whose two bands are the row and the column of each pixel."""
    return make_scene(np.indices((height, width)).astype(np.float32), source="p.tif")


def crops_of(scene, side=5, rows=(0, 30), columns=(0, 20)):
    return Crops(scene, ALL, Area(slice(*rows), slice(*columns)), side)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.lists(st.floats(0, 0.4), max_size=2))
def test_parts_cover_the_scene_and_share_no_pixel(height, width, shares):
    areas = cut_scene(positions(height, width), *shares)
    assert len(areas) == 1 + len(shares)
    seen = np.zeros((height, width), int)
    for area in areas:
        seen[area.rows, area.columns] += 1
    assert (seen == 1).all()
    for area, share in zip(areas[1:], shares, strict=True):
        assert max(height, width) * share == pytest.approx(
            area.shape[0 if height >= width else 1], abs=0.5
        )


def test_parts_follow_each_other_along_the_longer_side():
    for scene, longer in ((positions(30, 20), 0), (positions(20, 30), 1)):
        spans = [area[longer] for area in cut_scene(scene, 0.1, 0.2)]
        assert [(span.start, span.stop) for span in spans] == [(0, 21), (21, 24), (24, 30)]
        assert all(area[1 - longer] == slice(0, 20) for area in cut_scene(scene, 0.1, 0.2))
    assert cut_scene(positions(), 0.1)[1].to_json() == [27, 30, 0, 20]


def test_crops_lie_inside_their_area_and_reach_every_corner_of_it():
    crops = crops_of(positions(), 5, (10, 20), (4, 12)).draw(300, seeded(), flips=False)
    assert crops.shape == (300, 2, 5, 5)
    rows, columns = crops[:, 0], crops[:, 1]
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 19, 4, 11)
    assert (rows.diff(dim=1) == 1).all()
    assert (columns.diff(dim=2) == 1).all()


def test_the_generator_alone_decides():
    crops = crops_of(positions())
    torch.manual_seed(1)
    first = crops.draw(9, seeded(3), flips=True)
    torch.manual_seed(2)
    assert torch.equal(crops.draw(9, seeded(3), flips=True), first)
    assert not torch.equal(crops.draw(9, seeded(4), flips=True), first)
    generator = seeded(3)
    parts = [crops.draw(count, generator, flips=True) for count in (2, 7)]
    assert torch.equal(torch.cat(parts), first)  # one after the other, or all at once


def test_flips_turn_the_same_crops_every_way():
    crops = crops_of(positions())
    plain, turned = (crops.draw(64, seeded(), flips=flips) for flips in (False, True))
    torch.testing.assert_close(plain.sort(2)[0].sum((2, 3)), turned.sort(2)[0].sum((2, 3)))
    ways = {(float(c[0, 1, 0] - c[0, 0, 0]), float(c[1, 1, 0] - c[1, 0, 0]),
             float(c[0, 0, 1] - c[0, 0, 0]), float(c[1, 0, 1] - c[1, 0, 0])) for c in turned}  # fmt: skip
    assert len(ways) == 8


def test_crops_keep_to_where_most_pixels_are_valid():
    values = positions(30, 30).values.copy()
    values[:, :, :18] = np.nan
    crops = crops_of(make_scene(values), 5, (0, 30), (0, 30)).draw(40, seeded(), flips=False)
    assert torch.isfinite(crops[:, 0]).float().mean((1, 2)).min() >= 0.5
    assert torch.isnan(crops).any()  # some invalid pixels are part of it


def test_a_scene_without_valid_pixels_is_told():
    scene = make_scene(np.full((2, 30, 20), np.nan, np.float32), source="p.tif")
    with pytest.raises(SceneError, match=r"p\.tif has almost no valid pixels"):
        crops_of(scene).draw(1, seeded(), flips=False)


@pytest.mark.parametrize("rows, columns", [((0, 4), (0, 20)), ((0, 30), (3, 7)), ((5, 5), (0, 20))])
def test_an_area_smaller_than_a_crop_is_refused(rows, columns):
    with pytest.raises(SceneError, match=r"Crops of 5 x 5 pixels do not fit .* of p\.tif"):
        crops_of(positions(), 5, rows, columns)


def test_the_grid_lies_side_by_side_inside_the_area():
    crops = crops_of(positions(), 5, (3, 19), (2, 20))
    assert crops.grid() == [(r, c) for r in (3, 8, 13) for c in (2, 7, 12)]
    assert torch.equal(crops.read(8, 7)[:, 0, 0], torch.tensor([8.0, 7.0]))


def test_spectra_are_valid_ones_of_the_area_alone(monkeypatch):
    scene = smooth_scene()
    values = scene.values.copy()
    values[3, ::2] = np.nan
    area = Area(slice(10, 30), slice(5, 60))
    found = sample_spectra(smooth_scene(values), np.array([4, 3]), area)
    inside = values[:, 10:30, 5:60].reshape(6, -1).T
    expected = inside[np.isfinite(inside).all(1)][:, [4, 3]]
    np.testing.assert_array_equal(found, expected)
    monkeypatch.setattr("vitreous.data.crops.SAMPLED", 100)
    few = sample_spectra(smooth_scene(values), np.array([4, 3]), area)
    assert 20 <= len(few) <= 130
    assert {tuple(row) for row in few} <= {tuple(row) for row in expected}


def test_a_large_area_is_sampled_in_single_rows():
    """A strided window would make the reader of a file load the whole area."""
    read = []

    def values(window):
        read.append(window)
        return np.ones([len(range(s.start, s.stop, s.step)) for s in window], np.float32)

    scene = make_scene(LazyCube((3, 4000, 1000), np.float32, values))
    spectra = sample_spectra(scene, np.arange(3), Area(slice(0, 3000), slice(0, 1000)))
    assert 20_000 <= len(spectra) < 30_000
    assert {window[1].stop - window[1].start for window in read} == {1}
