"""Scenes that are computed while they are written: in every format, whole or not at all."""

from __future__ import annotations

import resource
import signal

import numpy as np
import pytest
from affine import Affine
from rasterio.windows import Window

from smooth_scene import Mixer, restorer_of, smooth_cube, smooth_scene
from vitreous.errors import ModelError, SceneError, VitreousError
from vitreous.inference.restore import restored_scene
from vitreous.scenes import open_scene, write_scene
from vitreous.scenes.cube import LazyCube, make_scene

NAMES = ["r.tif", "r.tiff", "r.hdr", "r.img", "r.dat", "r.npy", "r.zarr"]
TRANSFORM = Affine(30, 0, 5e5, 0, -30, 4e6)


def restored(height=75, width=40):
    values = smooth_cube(6, height, width)
    values[:, 3:5, 6] = np.nan
    scene = smooth_scene(values, fwhm=[9] * 6, crs="EPSG:32611", transform=TRANSFORM)
    return restored_scene(restorer_of(scene, Mixer(6, 2)), scene)


@pytest.mark.parametrize("name", NAMES)
def test_a_restored_scene_reopens_equal(tmp_path, name):
    scene = restored()
    write_scene(scene, tmp_path / name)
    again = open_scene(tmp_path / name)
    np.testing.assert_array_equal(again.values, scene.values)
    assert again.dtype == np.float32
    np.testing.assert_allclose(again["wavelength"], scene["wavelength"])
    np.testing.assert_allclose(again["fwhm"], scene["fwhm"])
    assert again.attrs["unit"] == "reflectance"
    assert again.rio.crs == scene.rio.crs
    assert again.rio.transform(recalc=False).almost_equals(TRANSFORM * Affine.scale(0.5))
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("name", ["r.png", "r", "r.mat", "r.nc"])
def test_other_endings_are_refused_before_anything_is_computed(tmp_path, name):
    def compute(window):
        raise AssertionError("nothing is read")

    scene = make_scene(LazyCube((2, 9, 9), np.float32, compute))
    with pytest.raises(SceneError, match="suffix of a writable format"):
        write_scene(scene, tmp_path / name)
    assert not list(tmp_path.iterdir())


def failing(error, height=900):
    """A scene that cannot be computed to its end."""

    def compute(window):
        if window[1].stop > height // 2:
            raise error
        return np.zeros(tuple(len(range(s.start, s.stop, s.step)) for s in window), np.float32)

    return make_scene(LazyCube((3, height, 50), np.float32, compute), crs="EPSG:32611", transform=TRANSFORM)  # fmt: skip


@pytest.mark.parametrize("error", [ModelError("It diverged.", "Train again."), KeyboardInterrupt()])
@pytest.mark.parametrize("name", ["r.tif", "r.hdr", "r.npy", "r.zarr"])
def test_what_fails_on_the_way_leaves_nothing(tmp_path, name, error):
    with pytest.raises(type(error)):
        write_scene(failing(error), tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["r.tif", "r.hdr", "r.npy", "r.zarr"])
def test_what_fails_on_the_way_keeps_what_was_there(tmp_path, name):
    write_scene(restored(), tmp_path / name)
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(ModelError):
        write_scene(failing(ModelError("It diverged.", "")), tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} == before
    np.testing.assert_array_equal(open_scene(tmp_path / name).values, restored().values)


@pytest.mark.parametrize("name", ["r.tif", "r.hdr", "r.npy", "r.zarr"])
def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, name):
    noise = np.random.default_rng(0).normal(size=(6, 90, 90)).astype(np.float32)
    scene = make_scene(noise, crs="EPSG:32611", transform=TRANSFORM)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A write beyond the limit then fails like a full disk.
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(VitreousError, match=r"r\.\w+ (was not|could not be) written"):
            write_scene(scene, tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["r.tif", "r.hdr", "r.npy", "r.zarr"])
def test_a_crop_by_rioxarray_is_written_in_its_place(tmp_path, name):
    scene = make_scene(smooth_cube(3, 20, 30), crs="EPSG:32611", transform=TRANSFORM)
    write_scene(scene, tmp_path / f"whole_{name}")
    part = open_scene(tmp_path / f"whole_{name}").rio.isel_window(Window(7, 4, 10, 9))
    write_scene(part, tmp_path / name)
    again = open_scene(tmp_path / name)
    np.testing.assert_array_equal(again.values, scene.values[:, 4:13, 7:17])
    assert again.rio.transform().almost_equals(TRANSFORM @ Affine.translation(7, 4))
