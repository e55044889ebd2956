"""Restored scenes: what tiles make equals what the whole makes, however it is read, and each tile is made once."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from affine import Affine

from smooth_scene import Blur, Mixer, restorer_of, smooth_cube, smooth_scene, untiled
from vitreous.errors import ModelError
from vitreous.inference import restore
from vitreous.inference.restore import KEPT, SceneRestorer, restored_scene
from vitreous.layers.restorer import Restorer
from vitreous.scenes import numpy_files
from vitreous.scenes.cube import LazyCube, make_scene

TILE, STEP = 16, 12
SIZES = [(1, 1), (3, 40), (17, 2), (16, 16), (12, 24), (31, 50)]


def scene_of(height, width, **facts):
    rng = np.random.default_rng(height)
    return smooth_scene(rng.normal(0.5, 0.2, (6, height, width)).astype(np.float32), **facts)


def places(side):
    """Where tiles begin that cover ``side`` pixels."""
    return range(-(TILE - STEP), side, STEP)


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("size", SIZES)
def test_tiles_make_what_the_whole_makes(size, scale):
    scene = scene_of(*size)
    restorer = restorer_of(scene_of(20, 20), Mixer(6, scale))
    restored = restored_scene(restorer, scene)
    assert restored.shape == (6, size[0] * scale, size[1] * scale)
    np.testing.assert_allclose(restored.values, untiled(restorer, scene.values), atol=1e-5)
    assert restorer.net.tiles >= len(places(size[0])) * len(places(size[1]))


def plainest(restorer, values):
    """Blend tiles over a scene that is mirrored all around, a pixel's weights divided by their sum."""
    height, width = values.shape[1:]
    padded = np.pad(values, ((0, 0), (TILE, 2 * TILE), (TILE, 2 * TILE)), mode="reflect")
    ramp = [np.sin(np.pi / 2 * (k + 0.5) / 4) ** 2 for k in range(4)]
    along = np.array([*ramp, *[1.0] * (TILE - 8), *ramp[::-1]])
    total, weight = np.zeros(padded.shape), np.zeros(padded.shape[1:])
    for row, column in itertools.product(places(height), places(width)):
        place = np.s_[row + TILE : row + 2 * TILE, column + TILE : column + 2 * TILE]
        tile = np.ascontiguousarray(padded[(slice(None), *place)])
        total[(slice(None), *place)] += untiled(restorer, tile) * along[:, None] * along
        weight[place] += along[:, None] * along
    inner = np.s_[TILE : TILE + height, TILE : TILE + width]
    return total[(slice(None), *inner)] / weight[inner]


def test_tiles_that_differ_where_they_meet_are_blended():
    scene = scene_of(31, 50)
    restorer = restorer_of(scene, Blur(6))
    expected = plainest(restorer, scene.values)
    restored = restored_scene(restorer, scene).values
    np.testing.assert_allclose(restored, expected, atol=1e-5)
    assert np.abs(restored - untiled(restorer, scene.values)).max() > 1e-3


@pytest.mark.parametrize("scale", [1, 2])
def test_values_do_not_depend_on_how_they_are_read(scale):
    scene = scene_of(43, 37)
    restorer = restorer_of(scene, Mixer(6, scale))
    whole = restored_scene(restorer, scene).values
    lazy = restored_scene(restorer, scene)
    rng = np.random.default_rng(0)
    for _ in range(25):
        parts = [np.sort(rng.choice(n + 1, 2, replace=False)) for n in whole.shape]
        place = tuple(slice(a, b, int(rng.integers(1, 4))) for a, b in parts)
        np.testing.assert_array_equal(lazy[place].values, whole[place])
    np.testing.assert_array_equal(lazy[2].values, whole[2])
    np.testing.assert_array_equal(lazy[:, ::-1, -1].values, whole[:, ::-1, -1])
    np.testing.assert_array_equal(lazy[[4, 1], 9].values, whole[[4, 1], 9])


@pytest.mark.parametrize("nodata", [None, -9999.0])
def test_invalid_pixels_stay_invalid_and_do_not_spread(nodata):
    scene = scene_of(40, 45)
    values = scene.values.copy()
    void = np.nan if nodata is None else nodata
    values[:, 5:9, 20:31] = void
    values[2, 30, 7] = void  # one band is enough
    invalid = np.isnan(values).any(0) if nodata is None else (values == void).any(0)
    holed = smooth_scene(values, nodata=nodata)
    for scale in (1, 2):
        restorer = restorer_of(scene, Mixer(6, scale))
        found = restored_scene(restorer, holed).values
        wide = invalid.repeat(scale, 0).repeat(scale, 1)
        assert np.isnan(found[:, wide]).all()
        expected = untiled(restorer, scene.values)
        np.testing.assert_allclose(found[:, ~wide], expected[:, ~wide], atol=1e-5)


def test_tiles_without_a_valid_pixel_are_not_computed():
    values = np.full((6, 60, 60), np.nan, np.float32)
    values[:, 0, 0] = 0.5
    net = Mixer(6)
    restorer = restorer_of(scene_of(20, 20), net)
    found = restored_scene(restorer, smooth_scene(values)).values
    assert np.isfinite(found).sum() == 6
    # Tiles begin at -4 and 12; mirrored, the pixel lies in no other.
    assert net.tiles == 1


@pytest.mark.parametrize("scale", [1, 4])
def test_bands_unit_and_place_are_kept(scale):
    transform = Affine(30, 2, 5e5, 2, -30, 4e6)
    scene = scene_of(
        9, 8, fwhm=[9, 9, 9, 9, 10, 11], crs="EPSG:32611", transform=transform,
        source="somewhere.tif", good_band=[True] * 4 + [False, True], scale=0.5, nodata=0,
    )  # fmt: skip
    good = [0, 1, 2, 3, 5]
    restorer = restorer_of(scene, Mixer(5, scale))
    restored = restored_scene(restorer, scene)
    np.testing.assert_array_equal(restored["wavelength"], scene["wavelength"][good])
    np.testing.assert_array_equal(restored["fwhm"], [9, 9, 9, 9, 11])
    assert restored.rio.crs == scene.rio.crs
    assert restored.rio.transform(recalc=False).almost_equals(transform * Affine.scale(1 / scale))
    assert (restored.attrs["unit"], restored.attrs["scale"]) == ("reflectance", 1.0)
    assert np.isnan(restored.attrs["nodata"])
    corners = [scene.rio.transform(recalc=False) * (8, 9)]
    assert (restored.rio.transform(recalc=False) * (8 * scale, 9 * scale)) == pytest.approx(
        corners[0]
    )
    expected = untiled(restorer, scene.values[good] * np.float32(0.5))
    np.testing.assert_allclose(restored.values, expected, atol=1e-5)


def test_each_tile_is_computed_once_and_told(tmp_path, monkeypatch):
    scene = scene_of(100, 30)
    net = Mixer(6)
    told = []
    restored = restored_scene(restorer_of(scene, net), scene, lambda *count: told.append(count))
    monkeypatch.setattr(numpy_files, "_STRIP", 1)  # a row at a time
    numpy_files.write(restored, tmp_path / "r.npy")
    count = len(places(100)) * len(places(30))
    assert net.tiles == count
    assert told[0] == (0, count)
    assert told[-1] == (count, count)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_memory_is_flat_in_the_height():
    """Nothing taller than a tile is read, and no more rows of tiles are kept than blend."""
    read = []

    def endless(window):
        band, rows, columns = (np.arange(s.start, s.stop, s.step) for s in window)
        read.append(len(rows))
        return ((band[:, None, None] * 7 + rows[:, None] * 3 + columns) % 11).astype(np.float32)

    scene = smooth_scene(LazyCube((6, 5000, 20), np.float32, endless))
    restorer = restorer_of(scene_of(20, 20), Mixer(6))
    rows = restore._TileRows(restorer, scene, np.arange(6), None)
    for top in range(0, 200, 7):
        part = rows.read((slice(0, 6, 1), slice(top, top + 7, 1), slice(0, 20, 1)))
        assert part.shape == (6, 7, 20)
        assert len(rows.rows) <= KEPT
    assert max(read) <= TILE
    restored_scene(restorer, scene)[:, 4990:, :].values  # noqa: B018
    assert max(read) <= TILE


def test_bands_are_found_by_their_wavelengths():
    scene = scene_of(20, 30)
    restorer = restorer_of(scene, Mixer(6))
    order = [3, 0, 5, 1, 4, 2]
    more = np.concatenate([scene.values[order], np.zeros((1, 20, 30), np.float32)])
    centres = [*scene["wavelength"].values[order], 2000.0]
    shuffled = restored_scene(restorer, make_scene(more, wavelengths=centres, unit="reflectance"))
    np.testing.assert_array_equal(shuffled.values, restored_scene(restorer, scene).values)
    np.testing.assert_array_equal(shuffled["wavelength"], scene["wavelength"])


@pytest.mark.parametrize("net", [Mixer(6), Blur(6)])
def test_another_unit_is_refused(net):
    restorer = restorer_of(scene_of(20, 20), net)
    with pytest.raises(ModelError, match="trained on reflectance, the scene holds radiance"):
        restored_scene(restorer, scene_of(20, 20, unit="radiance"))


def test_other_bands_are_for_networks_that_take_any():
    other = smooth_scene(3 + 100 * smooth_cube(4, 30, 30), wavelengths=[500, 700, 1500, 2200.0])
    trained_on = scene_of(20, 20)
    with pytest.raises(ModelError, match="lacks 6 of the 6 bands"):
        restored_scene(restorer_of(trained_on, Mixer(6)), other)
    restorer = restorer_of(trained_on, Blur(6), per="scene")
    fitted, bands = restorer.fitted(other)
    assert list(bands) == [0, 1, 2, 3]
    assert fitted.ranges.span.unique().numel() == 1  # found in the scene itself, in its own way
    found = restored_scene(restorer, other).values
    np.testing.assert_allclose(found, plainest(fitted, other.values), rtol=1e-4, atol=1e-3)
    assert restorer.fitted(trained_on)[0] is restorer


class Broken(Restorer):
    """Gives infinity where it is bright."""

    def restore(self, x):
        return 1 / (x < 2).float() * x


def test_a_network_that_gives_no_numbers_is_told():
    scene = scene_of(60, 20)
    values = scene.values.copy()
    values[:, 50:] = 100
    restored = restored_scene(restorer_of(scene, Broken(6)), smooth_scene(values))
    assert np.isfinite(restored[:, :20].values).all()
    with pytest.raises(ModelError, match="NaN or infinity"):
        restored.values  # noqa: B018


@pytest.mark.parametrize("size", [0, 3, -16, 10**9, 16.5, "16"])
def test_absurd_tiles_are_refused(size):
    whole = restorer_of(scene_of(20, 20), Mixer(6))
    with pytest.raises(ValueError, match="tiles of"):
        SceneRestorer(whole.net, whole.ranges, whole.contract, tile_size=size)


def test_restoring_changes_neither_weights_nor_their_mode_of_use():
    scene = scene_of(20, 20)
    net = Blur(6)
    net.norm = torch.nn.BatchNorm2d(6)
    net.restore = lambda x: net.norm(x)
    restorer = restorer_of(scene, net).train()
    before = {name: tensor.clone() for name, tensor in restorer.state_dict().items()}
    first, second = (restored_scene(restorer, scene).values for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert all(torch.equal(before[name], t) for name, t in restorer.state_dict().items())
