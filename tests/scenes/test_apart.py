"""Files of others are read in a process of their own: the same scenes, and a message where it crashes or hangs."""

import json
import os
import pickle
import signal
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from affine import Affine

import vitreous
from vitreous.errors import SceneError
from vitreous.recipe import make_recipe
from vitreous.scenes import apart
from vitreous.scenes.cube import georeference, make_scene
from vitreous.tasks.labelled import open_labelled

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="the memory limit needs Linux"
)
CUBE = np.arange(240, dtype=np.int16).reshape(6, 5, 8)


@pytest.fixture
def scene_file(tmp_path):
    scene = make_scene(
        CUBE,
        wavelengths=[450, 550, 650, 850, 0, 2200],
        fwhm=[10.0] * 6,
        band_names=list("abcdef"),
        unit="reflectance",
        scale=1e-4,
        nodata=-9999,
        crs="EPSG:32633",
        transform=Affine(10, 0, 600000, 0, -10, 5000000),
    )
    vitreous.write_scene(scene, tmp_path / "scene.tif")
    return tmp_path / "scene.tif"


def damaged_heap(path):
    """A file whose string attribute lies in a global heap without sizes: libhdf5 loops there without end."""
    with h5py.File(path, "w") as file:
        file["cube"] = CUBE
        file["cube"].attrs["note"] = "a string in the global heap"
    content = bytearray(path.read_bytes())
    at = content.index(b"GCOL") + 16  # behind the heap's own header
    content[at : at + 16] = bytes(16)
    path.write_bytes(content)
    return path


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_scene_is_the_same_as_without(scene_file):
    usual = vitreous.open_scene(scene_file, bands="1-4,6")
    apart_ = vitreous.open_scene(scene_file, untrusted=True, bands="1-4,6")
    assert apart_.attrs == usual.attrs
    assert apart_.dtype == usual.dtype
    for name in ("wavelength", "fwhm", "good_band", "band_name"):
        assert (name in apart_.coords) == (name in usual.coords), name
        if name in usual.coords:
            np.testing.assert_array_equal(apart_[name].values, usual[name].values)
    assert apart_.rio.crs == usual.rio.crs
    assert apart_.rio.transform(recalc=False) == usual.rio.transform(recalc=False)
    np.testing.assert_array_equal(apart_.values, usual.values)
    np.testing.assert_array_equal(apart_[::2, 1:4, ::3].values, usual[::2, 1:4, ::3].values)
    again = pickle.loads(pickle.dumps(apart_))  # as workers of a data loader get it
    np.testing.assert_array_equal(again[0].values, usual[0].values)


def test_warnings_and_messages_come_through(scene_file):
    with pytest.warns(UserWarning, match="gives no wavelength unit"):
        vitreous.open_scene(scene_file, untrusted=True, wavelengths=[410, 420, 430, 440, 450, 460])
    with pytest.raises(SceneError, match="Unknown hint 'varable'"):
        vitreous.open_scene(scene_file, untrusted=True, varable="cube")


def test_the_process_is_used_again(scene_file):
    vitreous.open_scene(scene_file, untrusted=True)
    first = apart._reader()._process.pid
    start = time.perf_counter()
    for _ in range(10):
        vitreous.open_scene(scene_file, untrusted=True)
    assert apart._reader()._process.pid == first
    assert time.perf_counter() - start < 5  # a new one would need two seconds each


def test_a_file_that_hangs_its_reader_is_told_of(tmp_path, monkeypatch, scene_file):
    vitreous.open_scene(scene_file, untrusted=True)  # the libraries are loaded
    monkeypatch.setattr(apart, "SECONDS", 2.0)
    path = damaged_heap(tmp_path / "scene.nc")
    start = time.perf_counter()
    with pytest.raises(SceneError, match=r"scene\.nc was not read within 2 s"):
        vitreous.open_scene(path, untrusted=True)
    assert time.perf_counter() - start < 10
    monkeypatch.undo()
    assert vitreous.open_scene(scene_file, untrusted=True).shape == (6, 5, 8)  # by another process


def test_a_file_that_crashes_its_reader_is_told_of(scene_file):
    scene = vitreous.open_scene(scene_file, untrusted=True)
    process = apart._reader()._process
    os.kill(process.pid, signal.SIGSEGV)
    process.poll = lambda: None  # as if it had ended just after it was asked
    with pytest.raises(SceneError, match=r"scene\.tif ended the process that read it"):
        scene[0].values  # noqa: B018
    assert scene[0].values.shape == (5, 8)  # by another process


def test_memory_is_limited(tmp_path):
    with h5py.File(
        tmp_path / "big.h5", "w"
    ) as file:  # 6 GB of fill values in a file of a few kilobytes
        file.create_dataset("cube", (6, 25_000, 20_000), "i2", chunks=(6, 2500, 2000))
    scene = vitreous.open_scene(tmp_path / "big.h5", untrusted=True, axis_order="byx")
    with pytest.raises(SceneError, match="memory"):
        scene.values  # noqa: B018


def test_the_command_line_reads_so(cli, tmp_path, scene_file):
    done = cli("info", scene_file, "--untrusted", "--json")
    assert done.returncode == 0, done.stderr
    assert '"width": 8' in done.stdout


@pytest.fixture
def label_file(tmp_path):
    codes = np.array([[10, 10, 20, 255, 30, 10, 20, 20]] * 5, dtype=np.uint8)
    place = {"crs": "EPSG:32633", "transform": Affine(10, 0, 600000, 0, -10, 5000000)}
    vitreous.write_scene(make_scene(codes[None], **place), tmp_path / "labels.tif")
    return tmp_path / "labels.tif"


def assert_same_labels(found, usual):
    np.testing.assert_array_equal(found.values, usual.values)
    assert found.attrs == usual.attrs
    assert georeference(found) == georeference(usual)
    assert found.dtype == usual.dtype


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "hints",
    [
        {},
        {"nodata": "none"},
        {"class_names": ["forest", "water", "built"]},
        {"class_names": {10: "forest", 20: "water", 30: "built"}},
        {"classes": "worldcover", "nodata": [255]},
    ],
)
def test_labels_are_the_same_as_without(label_file, scene_file, hints):
    scene = vitreous.open_scene(scene_file)
    for like in (None, scene, scene[:, 1:4, ::-1]):
        usual = vitreous.open_labels(label_file, like, **hints)
        assert_same_labels(vitreous.open_labels(label_file, like, untrusted=True, **hints), usual)


def test_features_are_the_same_as_without(tmp_path, scene_file):
    scene = vitreous.open_scene(scene_file)
    square = {"type": "Polygon", "coordinates": [[[600010, 4999990], [600050, 4999990], [600050, 4999960], [600010, 4999990]]]}  # fmt: skip
    feature = {"type": "Feature", "properties": {"crop": "maize"}, "geometry": square}
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}}
    collection = {"type": "FeatureCollection", "crs": crs, "features": [feature]}
    path = tmp_path / "fields.geojson"
    path.write_text(json.dumps(collection))
    usual = vitreous.open_labels(path, scene, "crop")
    assert usual.values.any()
    assert_same_labels(vitreous.open_labels(path, scene, "crop", untrusted=True), usual)


def test_warnings_and_messages_of_labels_come_through(label_file, tmp_path):
    with pytest.warns(UserWarning, match="5 pixels with 255 are treated as unlabelled"):
        vitreous.open_labels(label_file, untrusted=True)
    with pytest.raises(SceneError, match="Unknown hint 'pge'"):
        vitreous.open_labels(label_file, untrusted=True, pge=2)
    with pytest.raises(SceneError, match="does not exist"):
        vitreous.open_labels(tmp_path / "none.tif", untrusted=True)


def test_labels_that_hang_their_reader_are_told_of(tmp_path, monkeypatch, scene_file):
    vitreous.open_scene(scene_file, untrusted=True)  # the libraries are loaded
    monkeypatch.setattr(apart, "SECONDS", 2.0)
    with pytest.raises(SceneError, match=r"labels\.nc was not read within 2 s"):
        vitreous.open_labels(damaged_heap(tmp_path / "labels.nc"), untrusted=True)


@pytest.mark.parametrize("key", ["scene", "labels"])
def test_a_recipe_reads_all_its_files_so(tmp_path, scene_file, label_file, key, monkeypatch):
    monkeypatch.setattr(apart, "SECONDS", 10.0)
    files = {"scene": scene_file, "labels": label_file, key: damaged_heap(tmp_path / f"{key}.nc")}
    recipe = make_recipe({name: str(path) for name, path in files.items()} | {"untrusted": True})
    with pytest.raises(SceneError, match=rf"{key}\.nc was not read within 10 s"):
        open_labelled(recipe)
