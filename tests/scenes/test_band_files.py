import numpy as np
import pytest
import rasterio
from rasterio import Affine
from test_landsat import SCENE, put_product
from test_sentinel2 import put_band as put_jp2

from vitreous import open_scene
from vitreous.errors import SceneError
from vitreous.scenes.cube import read_window

PLACE = Affine(10, 0, 300000, 0, -10, 5200000)


def put(path, value, size=12, side=10, nodata=None, count=1, **tags):
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=count,
        height=size,
        width=size,
        dtype="uint16",
        nodata=nodata,
        crs="EPSG:32632",
        transform=Affine(side, 0, PLACE.c, 0, -side, PLACE.f),
    ) as dataset:
        for band in range(1, count + 1):
            dataset.write(value + np.arange(size * size, dtype="uint16").reshape(size, size), band)
            dataset.update_tags(band, **tags)


def test_a_pattern_is_sorted_as_people_count(tmp_path):
    for band in (1, 2, 10, 11):
        put(tmp_path / f"plot_{band}_{400 + band}nm.tif", 1000 * band)
    scene = open_scene(tmp_path / "plot_*.tif")
    assert scene.wavelength.values.tolist() == [401, 402, 410, 411]
    assert scene.values[:, 0, 1].tolist() == [1001, 2001, 10001, 11001]
    assert scene.rio.transform(recalc=False) == PLACE


def test_names_of_sentinel_2_on_ten_metres(tmp_path):
    for band in (2, 3, 4, 8):
        put(tmp_path / f"B{band:02d}.tif", 1000 * band)
    put(tmp_path / "B09.tif", 1)
    with pytest.warns(UserWarning, match="treated as Sentinel-2"):
        scene = open_scene(str(tmp_path / "B0[2-8].tif"))
    assert list(scene.band_name.values) == ["B02", "B03", "B04", "B08"]
    np.testing.assert_allclose(scene.wavelength, [492.4, 559.8, 664.6, 832.8])


def test_unknown_bands_are_said_not_guessed(tmp_path):
    for band in (2, 3):
        put(tmp_path / f"B{band:02d}.tif", band, side=30)
    with pytest.warns(UserWarning, match="nothing says the band centres"):
        scene = open_scene(tmp_path / "B0?.tif")
    assert "wavelength" not in scene.coords
    assert open_scene(tmp_path / "B0?.tif", wavelengths=[500, 600]).wavelength.values[1] == 600


@pytest.mark.parametrize(("product", "centre"), [("L30", 654.59), ("S30", 664.6)])
def test_hls_has_two_kinds_of_b04(tmp_path, product, centre):
    for band in ("B03", "B04"):
        put(tmp_path / f"HLS.{product}.T32TLS.2021163T100559.v2.0.{band}.tif", 7, side=30)
    assert open_scene(tmp_path / "HLS*.tif").wavelength.values[1] == centre


@pytest.mark.parametrize(("unit", "centre"), [("S2A", 2202.4), ("S2B", 2185.7)])
def test_the_unit_of_sentinel_2_is_in_the_name(tmp_path, unit, centre):
    for band in ("B11", "B12"):
        put(tmp_path / f"{unit}_MSIL2A_20170617T113321_4_55_{band}.tif", 7, side=20)
    assert open_scene(tmp_path / "S2*.tif").wavelength.values[1] == pytest.approx(centre)


def test_a_list_keeps_its_order_and_reopens_by_its_source(tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    files = [tmp_path / "red_650nm.tif", tmp_path / "other" / "blue_450nm.tif"]
    for k, file in enumerate(files):
        put(file, 1000 * k)
    scene = open_scene(files)
    assert scene.wavelength.values.tolist() == [650, 450]
    monkeypatch.chdir("/")
    again = open_scene(scene.attrs["source"])
    np.testing.assert_array_equal(again, scene)


def test_coarser_bands_come_to_the_finest_grid(tmp_path):
    put(tmp_path / "a_500nm.tif", 0, size=12, side=10)
    put(tmp_path / "b_900nm.tif", 0, size=5, side=20, nodata=65535)
    with pytest.warns(UserWarning, match="1 of 2 bands are resampled"):
        scene = open_scene(tmp_path / "*.tif")
    assert scene.shape == (2, 12, 12)
    values = read_window(scene, slice(0, 12), slice(0, 12))
    assert values[1, 3, 2] == 1 * 5 + 1
    assert np.isnan(values[:, 10:]).all()  # the coarse band ends there
    np.testing.assert_array_equal(scene[1, 3:7, 1:9].values, scene.values[1, 3:7, 1:9])


def test_every_band_has_its_own_nodata(tmp_path):
    put(tmp_path / "a_500nm.tif", 0, nodata=5)
    put(tmp_path / "b_600nm.tif", 0, nodata=9)
    window = read_window(open_scene(tmp_path / "*.tif"), slice(0, 1), slice(0, 12))
    assert np.flatnonzero(np.isnan(window[0, 0])).tolist() == [5, 9]


def test_bands_of_landsat_keep_their_scale(tmp_path):
    counts = put_product(tmp_path)
    scene = open_scene(tmp_path / f"{SCENE}_SR_B[45].TIF")
    np.testing.assert_allclose(scene.wavelength, [654.59, 864.67])
    np.testing.assert_allclose(scene.values[0, 2, 3], counts[4][2, 3] * 2.75e-5 - 0.2, rtol=1e-6)


def test_bands_of_sentinel_2_keep_their_scale(tmp_path):
    values = {
        name: put_jp2(tmp_path / f"T33UUU_20230216T102101_{name}_10m.jp2", 10)
        for name in ("B02", "B03", "B04")
    }
    with pytest.warns(UserWarning):
        scene = open_scene(tmp_path / "*_{B04,B02}_10m.jp2")
    assert list(scene.band_name.values) == ["B04", "B02"]
    assert (scene.attrs["unit"], scene.attrs["scale"]) == ("reflectance", 1e-4)
    np.testing.assert_array_equal(scene.values[1], values["B02"].astype(int) - 1000)


@pytest.mark.parametrize(
    ("files", "asked", "complaint"),
    [
        ({}, "*.tif", "No file matches"),
        ({"a": 1, "b": 3}, "?.tif", "has 3 bands"),
        ({"a": 1}, "{a,b}.tif", "does not exist"),
        ({"a": 1}, "{a,a}.tif", "twice"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, files, asked, complaint):
    for name, count in files.items():
        put(tmp_path / f"{name}.tif", 0, count=count)
    with pytest.raises(SceneError, match=complaint):
        open_scene(tmp_path / asked)


def test_a_file_with_brackets_in_its_name_is_a_file(tmp_path):
    put(tmp_path / "scene[1].tif", 0, count=3)
    assert open_scene(tmp_path / "scene[1].tif").sizes["band"] == 3
