import json
import os
import pickle
import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from rasterio import Affine

from vitreous import open_labels, open_scene
from vitreous.errors import SceneError, VitreousError
from vitreous.scenes import geotiff
from vitreous.scenes.cube import georeference, make_labels, make_scene, read_window

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

GRID = Affine(16.9, 3.5, 579717.18, 3.5, -16.9, 3714550.7)


def cube(dtype="uint16", shape=(4, 300, 270)):
    return np.random.default_rng(0).integers(0, 200, shape).astype(dtype)


def full_scene(dtype="uint16", **changes):
    facts = {
        "wavelengths": [365.9136593, 400.1, 1000 / 3, 2500],
        "fwhm": [9.8521, 10, 11.1, 1 / 3],
        "good_band": [True, False, True, True],
        "unit": "radiance",
        "scale": 1 / 3,
        "nodata": 7.0,
        "crs": "EPSG:32611",
        "transform": GRID,
        "band_names": ["a", "", "ä,{}", "B8A"],
    }
    return make_scene(cube(dtype), **{**facts, **changes})


def put(path, values, describe=lambda dataset: None, **profile):
    bands, height, width = values.shape
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=bands,
        height=height,
        width=width,
        dtype=values.dtype,
        **profile,
    ) as dataset:
        describe(dataset)
        dataset.write(values)
    return path


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_write_and_reopen_is_the_same_scene(tmp_path, dtype):
    scene = full_scene(dtype)
    geotiff.write(scene, tmp_path / "x.tif")
    again = open_scene(tmp_path / "x.tif").assign_attrs(source="")
    assert again.identical(scene)
    assert list(tmp_path.iterdir()) == [tmp_path / "x.tif"]


def test_scene_without_place_or_bands_survives(tmp_path):
    scene = make_scene(cube("float32", (1, 5, 4)), nodata=np.nan)
    geotiff.write(scene, tmp_path / "x.tif")
    again = open_scene(tmp_path / "x.tif").assign_attrs(source="")
    assert np.isnan(again.nodata)
    assert again.assign_attrs(nodata=None).identical(scene.assign_attrs(nodata=None))


def test_nodata_that_the_type_cannot_hold_is_dropped(tmp_path):
    geotiff.write(full_scene("uint8", nodata=-9999), tmp_path / "x.tif")
    assert open_scene(tmp_path / "x.tif").nodata is None


def offsets_of(path):
    """Positions of the directories and of the first pixel block of each, by the TIFF 6.0 specification."""
    raw = path.read_bytes()
    assert raw[:4] == b"II*\0"
    found, at = [], struct.unpack_from("<I", raw, 4)[0]
    while at:
        count = struct.unpack_from("<H", raw, at)[0]
        entries = [struct.unpack_from("<HHII", raw, at + 2 + 12 * k) for k in range(count)]
        _, _, blocks, value = next(e for e in entries if e[0] == 324)  # TileOffsets
        found.append((at, value if blocks == 1 else struct.unpack_from("<I", raw, value)[0]))
        at = struct.unpack_from("<I", raw, at + 2 + 12 * count)[0]
    return found


def test_scene_is_cloud_optimized_and_band_interleaved(tmp_path):
    geotiff.write(make_scene(cube(shape=(3, 1100, 700))), tmp_path / "x.tif")
    with rasterio.open(tmp_path / "x.tif") as dataset:
        assert dataset.interleaving.name == "band"
        assert dataset.block_shapes[0] == (256, 256)
        assert dataset.overviews(1) == [2, 4, 8]
    layout = offsets_of(tmp_path / "x.tif")
    directories, blocks = zip(*layout, strict=True)
    assert max(directories) < min(blocks)  # all directories first ...
    assert list(blocks) == sorted(blocks, reverse=True)  # ... then overviews, the coarsest first


@pytest.mark.skipif(
    rasterio.__gdal_version__ < "3.10", reason="GDAL keeps no wavelengths before 3.10"
)
def test_gdal_finds_wavelengths_where_it_keeps_them(tmp_path):
    geotiff.write(full_scene(), tmp_path / "x.tif")
    with rasterio.open(tmp_path / "x.tif") as dataset:
        assert float(dataset.tags(1, ns="IMAGERY")["CENTRAL_WAVELENGTH_UM"]) == pytest.approx(
            0.365914
        )
        assert float(dataset.tags(1, ns="IMAGERY")["FWHM_UM"]) == pytest.approx(0.0098521)
        assert dataset.tags(1)["wavelength_units"] == "Nanometers"


def test_windows_equal_the_whole(tmp_path):
    values = cube()
    scene = open_scene(put(tmp_path / "x.tif", values, tiled=True, blockxsize=64, blockysize=64))
    for key in (
        np.s_[1, 5, 7],
        np.s_[::2, 10:200:3, 250:],
        np.s_[::-1, ::-7, 3:4],
        np.s_[[2, 0], :, 5],
        np.s_[:, 4:4, :],
    ):
        np.testing.assert_array_equal(scene[key].values, values[key])


def test_threads_forks_and_pickles_read_the_same(tmp_path):
    values = cube()
    scene = open_scene(put(tmp_path / "x.tif", values))
    np.testing.assert_array_equal(
        scene[:, 0].values, values[:, 0]
    )  # a handle is open before the fork
    with ThreadPoolExecutor(4) as pool:
        rows = list(pool.map(lambda row: scene[:, row].values, range(100)))
    np.testing.assert_array_equal(np.stack(rows, 1), values[:, :100])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(scene))[0, :9].values, values[0, :9])
    child = os.fork()
    if child == 0:
        os._exit(0 if (scene[:, 200].values == values[:, 200]).all() else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_gdal_imagery_tags(tmp_path):
    def describe(dataset):
        for band in dataset.indexes:
            dataset.update_tags(
                band, ns="IMAGERY", CENTRAL_WAVELENGTH_UM=str(band / 2), FWHM_UM="0.01"
            )

    scene = open_scene(put(tmp_path / "x.tif", cube(), describe))
    np.testing.assert_allclose(scene.wavelength, [500, 1000, 1500, 2000])
    np.testing.assert_allclose(scene.fwhm, 10)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            ["Band 1 (482.5 Nanometers)", "565 nm", "0.66 µm", "x 1.65 micrometers"],
            [482.5, 565, 660, 1650],
        ),
        (["B02", "B8A", "B12", "B10"], [492.4, 864.7, 2202.4, 1373.5]),
        (["B02", "B05", "B06", "B07"], None),  # these could be Landsat's
        (["565 nm", "green", "", ""], None),
    ],
)
def test_wavelengths_in_descriptions(tmp_path, names, expected):
    def describe(dataset):
        dataset.descriptions = names

    scene = open_scene(put(tmp_path / "x.tif", cube(), describe))
    assert list(scene.band_name.values) == names
    if expected is None:
        assert "wavelength" not in scene.coords
    else:
        np.testing.assert_allclose(scene.wavelength, expected)


def test_damaged_wavelength_tags_warn(tmp_path):
    def describe(dataset):
        for band in dataset.indexes:
            dataset.update_tags(band, wavelength="x", wavelength_units="nm")

    path = put(tmp_path / "x.tif", cube(), describe)
    with pytest.warns(UserWarning, match="unusable wavelength"):
        assert "wavelength" not in open_scene(path).coords


def test_offsets_and_unequal_scales_are_applied(tmp_path):
    def describe(dataset):
        dataset.scales, dataset.offsets = [0.1, 0.2, 0.3, 0.4], [0, 1, 2, 3]

    values = cube("int16")
    values[:, 0, 0] = -1
    scene = open_scene(put(tmp_path / "x.tif", values, describe, nodata=-1))
    window = read_window(scene, slice(0, 9), slice(0, 9), np.array([3, 1]))
    assert np.isnan(window[:, 0, 0]).all()
    np.testing.assert_allclose(window[0, 1:], values[3, 1:9, :9] * 0.4 + 3, rtol=1e-6)
    np.testing.assert_allclose(window[1, 1:], values[1, 1:9, :9] * 0.2 + 1, rtol=1e-6)


def test_real_hls_chip(shared_data):
    path = shared_data / "hls_terratorch" / "regression_test_0_input.tif"
    scene = open_scene(path, unit="reflectance", scale=1e-4)
    with rasterio.open(path) as referee:
        np.testing.assert_array_equal(
            scene[:, 10:20, 30:50].values, referee.read()[:, 10:20, 30:50]
        )
        assert georeference(scene) == (referee.crs, referee.transform)
    assert scene.nodata == -9999


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 5000])
def test_truncated_files_are_explained(tmp_path, keep):
    whole = put(tmp_path / "x.tif", cube(), tiled=True, blockxsize=64, blockysize=64).read_bytes()
    (tmp_path / "x.tif").write_bytes(whole[:keep])
    with pytest.raises(SceneError, match=r"x\.tif"):
        open_scene(tmp_path / "x.tif").values.sum()


def test_text_that_is_named_tif(tmp_path):
    (tmp_path / "x.tif").write_text("no image at all")
    with pytest.raises(SceneError, match="GTiff"):
        open_scene(tmp_path / "x.tif")


def test_virtual_rasters_are_refused_under_any_name(tmp_path):
    put(tmp_path / "x.tif", cube())
    rasterio.shutil.copy(tmp_path / "x.tif", tmp_path / "x.vrt", driver="VRT")
    (tmp_path / "y.tif").write_bytes((tmp_path / "x.vrt").read_bytes())
    for name in ("x.vrt", "y.tif"):
        with pytest.raises(SceneError, match="virtual raster"):
            open_scene(tmp_path / name)
    with pytest.raises(SceneError, match="GTiff"):
        geotiff.open(tmp_path / "x.vrt")


def test_a_block_larger_than_any_file_is_refused(tmp_path):
    # A sparse file of 170 bytes whose single tile would need 1 GB to show one pixel.
    with rasterio.open(
        tmp_path / "x.tif",
        "w",
        driver="GTiff",
        count=1,
        height=32768,
        width=32768,
        dtype="uint8",
        tiled=True,
        blockxsize=32768,
        blockysize=32768,
        compress="deflate",
        sparse_ok=True,
    ):
        pass
    with pytest.raises(SceneError, match="blocks of 1073741824 bytes"):
        open_scene(tmp_path / "x.tif")


def test_complex_numbers_are_refused(tmp_path):
    path = put(tmp_path / "x.tif", cube("complex64"))
    with pytest.raises(SceneError, match="complex"):
        open_scene(path)


def test_full_disk_leaves_nothing(tmp_path, monkeypatch):
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr(geotiff.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(VitreousError, match="disk is full"):
        geotiff.write(full_scene(), tmp_path / "x.tif")
    assert not list(tmp_path.iterdir())


def test_interrupted_write_keeps_the_old_file(tmp_path, monkeypatch):
    geotiff.write(full_scene(), tmp_path / "x.tif")
    before = (tmp_path / "x.tif").read_bytes()

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(geotiff, "_describe", interrupt)
    with pytest.raises(KeyboardInterrupt):
        geotiff.write(full_scene(), tmp_path / "x.tif")
    assert (tmp_path / "x.tif").read_bytes() == before
    assert list(tmp_path.iterdir()) == [tmp_path / "x.tif"]


NAMES = ["water", "dry <soil> & ä", "a, {b}"]
COLORS = ["#0000ff", "#8b4513", "#00ff7f"]


def labels(values=None, names=NAMES, colors=COLORS):
    if values is None:
        values = np.random.default_rng(0).integers(0, 4, (300, 270))
    return make_labels(
        values, class_names=names, class_colors=colors, crs="EPSG:32611", transform=GRID
    )


def test_labels_survive(tmp_path):
    geotiff.write_labels(labels(), tmp_path / "map.tif")
    again = open_labels(tmp_path / "map.tif").assign_attrs(source="")
    assert again.identical(labels())
    with rasterio.open(tmp_path / "map.tif") as dataset:
        assert (dataset.dtypes[0], dataset.nodata, dataset.overviews(1)) == ("uint8", 0, [2])
        assert dataset.colormap(1)[2] == (0x8B, 0x45, 0x13, 255)


def test_gdal_knows_the_class_names(tmp_path):
    geotiff.write_labels(labels(), tmp_path / "map.tif")
    # GDAL's copy lists what it found in the file and beside it.
    rasterio.shutil.copy(tmp_path / "map.tif", tmp_path / "copy.vrt", driver="VRT")
    assert "<Category>dry &lt;soil&gt; &amp; ä</Category>" in (tmp_path / "copy.vrt").read_text()
    (tmp_path / "map.tif.aux.xml").unlink()
    assert open_labels(tmp_path / "map.tif").class_names == NAMES  # ours travel inside


def test_names_of_a_foreign_sidecar_are_read(tmp_path):
    path = put(tmp_path / "x.tif", np.array([[[0, 1], [2, 3]]], "uint8"))
    geotiff.write_category_names(path, ["one", "two"], [1, 2])
    assert open_labels(path).class_names == ["one", "two", "class 3"]


@pytest.mark.parametrize(
    "text", ["<broken", '<!DOCTYPE x [<!ENTITY a "b">]><x>&a;</x>', "\udcff", "<x/>"]
)
def test_useless_sidecars_are_ignored(tmp_path, text):
    path = put(tmp_path / "x.tif", np.array([[[0, 1], [2, 3]]], "uint8"))
    (tmp_path / "x.tif.aux.xml").write_bytes(text.encode(errors="surrogateescape"))
    assert open_labels(path).class_names == ["class 1", "class 2", "class 3"]


def test_many_classes_need_sixteen_bits(tmp_path):
    values = np.arange(301).reshape(7, 43)
    many = labels(values, [f"c{k}" for k in range(300)], None)
    geotiff.write_labels(many, tmp_path / "map.tif")
    again = open_labels(tmp_path / "map.tif").assign_attrs(source="")
    assert again.identical(many)


def test_nodata_of_labels_becomes_unlabelled(tmp_path):
    path = put(tmp_path / "x.tif", np.array([[[255, 1], [2, 2]]], "uint8"), nodata=255)
    np.testing.assert_array_equal(open_labels(path), [[0, 1], [2, 2]])
    path = put(tmp_path / "y.tif", np.array([[[-1, 1], [2, 2]]], "int16"))
    with pytest.warns(UserWarning, match="1 pixels with -1"):
        np.testing.assert_array_equal(open_labels(path), [[0, 1], [2, 2]])
    np.testing.assert_array_equal(open_labels(path, nodata=-1), [[0, 1], [2, 2]])


def test_overviews_of_labels_invent_no_class(tmp_path):
    geotiff.write_labels(
        labels(np.where(np.arange(270) % 2, 1, 3) + np.zeros((300, 1), int)), tmp_path / "m.tif"
    )
    with rasterio.open(tmp_path / "m.tif", overview_level=0) as dataset:
        assert set(np.unique(dataset.read(1))) <= {1, 3}


def test_class_names_tag_is_never_trusted(tmp_path):
    for tag in ("[", "[" * 100000, json.dumps({"a": 1}), "[]"):
        path = put(
            tmp_path / "x.tif",
            np.array([[[0, 1]]], "uint8"),
            lambda d, tag=tag: d.update_tags(1, CLASS_NAMES=tag),
        )
        assert open_labels(path).class_names == ["class 1"]


def put_named(path, names, **tags):
    with rasterio.open(path, "w", driver="GTiff", count=len(names), height=2, width=3, dtype="int16") as file:  # fmt: skip
        file.write(np.ones((len(names), 2, 3), "i2"))
        file.update_tags(**tags.pop("dataset", {}))
        file.update_tags(ns="ENVI", **tags)
        for band, name in enumerate(names, start=1):
            file.set_band_description(band, name)
    return path


@pytest.mark.parametrize(
    ("file", "names", "centres"),
    [
        ("a.tif", ["450", "550.5", "650"], [450, 550.5, 650]),
        ("a.tif", ["0.45", "0.55", "0.65"], [450, 550, 650]),
        ("a.tif", ["Rrs_443", "Rrs_560"], [443, 560]),
        ("a.tif", ["wavelength 443.5", "wavelength 560"], [443.5, 560]),
        ("a.tif", ["B4", "B8", "B8A"], [664.6, 832.8, 864.7]),
        ("S2B_MSIL2A_20230216T102101_stack.tif", ["B2", "B3"], [492.1, 559.0]),
        ("LC08_L2SP_193024_20200701_stack.tif", ["B2", "B5"], [482.04, 864.67]),
        ("a.tif", ["B2", "B5"], None),
        ("a.tif", ["1", "2", "3"], None),
        ("a.tif", ["", "", ""], None),
        ("a.tif", ["450", "forest"], None),
    ],
)
@pytest.mark.filterwarnings("ignore:.*no wavelength unit")
def test_names_of_bands_say_their_wavelengths(tmp_path, file, names, centres):
    scene = open_scene(put_named(tmp_path / file, names))
    found = scene.wavelength.values.tolist() if "wavelength" in scene.coords else None
    assert found == centres


@pytest.mark.parametrize("key", ["data_ignore_value", "NODATA", "missing value"])
@pytest.mark.parametrize("own", [True, False])
def test_nodata_in_tags_of_envi_and_others(tmp_path, key, own):
    tags = {key: "-9999"} if own else {"dataset": {key: "-9999"}}
    assert open_scene(put_named(tmp_path / "a.tif", ["a"], **tags)).attrs["nodata"] == -9999


def test_the_scale_of_envi_reaches_a_tiff(tmp_path):
    path = put_named(tmp_path / "a.tif", ["a"], reflectance_scale_factor="10000.0")
    assert (open_scene(path).attrs["unit"], open_scene(path).attrs["scale"]) == (
        "reflectance",
        1e-4,
    )
    assert open_scene(path, scale=0.5).attrs["scale"] == 0.5
    path = put_named(tmp_path / "b.tif", ["a"])
    text = "ENVI\nsamples = 3\nlines = 2\nbands = 1\ndata type = 2\ninterleave = bsq\n"
    path.with_suffix(".hdr").write_text(
        text + "reflectance scale factor = 1000\ndata ignore value = 0\n"
    )
    scene = open_scene(path)
    assert (scene.attrs["unit"], scene.attrs["scale"], scene.attrs["nodata"]) == ("reflectance", 1e-3, 0)  # fmt: skip
