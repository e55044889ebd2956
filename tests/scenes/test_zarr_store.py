import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from affine import Affine

from vitreous.errors import SceneError, VitreousError
from vitreous.scenes import zarr_store
from vitreous.scenes.cube import LazyCube, georeference, make_scene, read_window

PLACE = Affine(30, 0, 600000, 0, -30, 4500000)


def some_scene() -> xr.DataArray:
    return make_scene(
        np.random.default_rng(0).integers(0, 9999, (6, 100, 70)).astype("i2"),
        wavelengths=[450, 550, 650, 850, 1600, 2200],
        fwhm=[20.0] * 6,
        good_band=[True, True, True, True, False, True],
        band_names=["B1", "B2", "B3", "B4", "cirrus", "B7"],
        unit="reflectance",
        scale=1e-4,
        nodata=-9999,
        crs="EPSG:32614",
        transform=PLACE,
    )


@pytest.fixture(params=[2, 3])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    zarr_store.write(some_scene(), tmp_path / "scene.zarr", zarr_format=request.param)
    return tmp_path / "scene.zarr"


def test_round_trip_keeps_everything(store: Path) -> None:
    read, written = zarr_store.open(store), some_scene()
    np.testing.assert_array_equal(read.values, written.values)
    assert read.dtype == written.dtype
    for name in ("wavelength", "fwhm", "good_band", "band_name"):
        np.testing.assert_array_equal(read[name].values, written[name].values)
    assert {k: read.attrs[k] for k in ("unit", "scale", "nodata")} == {
        "unit": "reflectance",
        "scale": 1e-4,
        "nodata": -9999,
    }
    assert read.rio.crs == written.rio.crs
    assert read.rio.transform(recalc=False) == PLACE
    assert [p.name for p in store.parent.iterdir()] == ["scene.zarr"]


def test_a_window_is_the_part_of_the_whole(store: Path) -> None:
    scene = zarr_store.open(store)
    expected = some_scene().values[:4, 60:90, 3:68].astype(np.float32) * np.float32(1e-4)
    window = read_window(scene, slice(60, 90), slice(3, 68), np.arange(4))
    np.testing.assert_allclose(window, expected, rtol=1e-6)


def test_xarray_opens_what_we_write(store: Path) -> None:
    with xr.open_zarr(store, chunks=None, consolidated=False, mask_and_scale=False) as dataset:
        assert dataset.scene.dims == ("band", "y", "x")
        np.testing.assert_array_equal(dataset.scene.values, some_scene().values)
        np.testing.assert_array_equal(dataset.wavelength.values, [450, 550, 650, 850, 1600, 2200])
        assert dataset.scene.rio.crs.to_epsg() == 32614
        assert dataset.scene.rio.transform() == PLACE
        part = dataset.scene[:, 5:20, 40:10:-2]
        assert part.rio.transform(recalc=True) == PLACE @ Affine(-2, 0, 41.5, 0, 1, 5)
        assert georeference(part)[1] == PLACE @ Affine(-2, 0, 41.5, 0, 1, 5)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.filterwarnings("ignore")
def test_we_open_what_xarray_writes(tmp_path: Path, zarr_format: int) -> None:
    scene = some_scene().transpose("y", "x", "band")
    scene.wavelength.attrs["units"] = "nm"
    assert (
        "GeoTransform" not in scene.spatial_ref.attrs
    )  # only the pixel centres tell where it lies
    scene.to_dataset(name="rfl").to_zarr(tmp_path / "x.zarr", zarr_format=zarr_format)
    read = zarr_store.open(tmp_path / "x.zarr")
    np.testing.assert_array_equal(read.values, some_scene().values)
    assert read.rio.crs.to_epsg() == 32614
    assert read.rio.transform(recalc=False).almost_equals(PLACE, 1e-6)
    assert read.attrs["unit"] == "reflectance"
    assert read.wavelength.values.tolist() == [450, 550, 650, 850, 1600, 2200]


@pytest.mark.parametrize("names", ["B1", ["B1", "B2"], [1, 2, 3, 4, 5, 6], {"B1": 1}])
def test_band_names_that_are_none_are_left_out(store: Path, names: object) -> None:
    zarr.open_group(store)["scene"].attrs["band_names"] = names
    assert "band_name" not in zarr_store.open(store).coords


def test_a_single_array_without_names_opens(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a.zarr", data=np.zeros((30, 30, 5), "u1"))
    assert zarr_store.open(tmp_path / "a.zarr").shape == (5, 30, 30)


def test_labels(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    group.create_array("gt", data=np.arange(12).reshape(3, 4))
    np.testing.assert_array_equal(
        zarr_store.open_labels(tmp_path / "a.zarr").values, np.arange(12).reshape(3, 4)
    )


def test_a_failing_write_leaves_the_old_store(store: Path) -> None:
    def fail(window: object) -> np.ndarray:
        raise SceneError("the source broke")

    with pytest.raises(SceneError, match="broke"):
        zarr_store.write(make_scene(LazyCube((3, 4, 5), "u1", fail)), store)
    np.testing.assert_array_equal(zarr_store.open(store).values, some_scene().values)
    assert [p.name for p in store.parent.iterdir()] == ["scene.zarr"]
    zarr_store.write(make_scene(np.ones((2, 3, 4))), store)
    assert zarr_store.open(store).shape == (2, 3, 4)


def test_nothing_but_a_store_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(VitreousError, match="not a Zarr store"):
        zarr_store.write(some_scene(), tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_a_codec_that_unpickles_is_refused(tmp_path: Path) -> None:
    zarr_store.write(some_scene(), tmp_path / "a.zarr", zarr_format=2)
    head = tmp_path / "a.zarr" / "scene" / ".zarray"
    content = json.loads(head.read_text())
    content["filters"] = [{"id": "pickle", "protocol": 2}]
    head.write_text(json.dumps(content))
    with pytest.raises(SceneError, match="pickle"):
        zarr_store.open(tmp_path / "a.zarr", variable="scene")


@pytest.mark.parametrize(
    "change", [{"shape": [2**40] * 3}, {"shape": [6, -100, 70]}, {"shape": "x"}, {"data_type": "o"}]
)
def test_metadata_that_lies_is_refused(tmp_path: Path, change: dict) -> None:
    zarr_store.write(some_scene(), tmp_path / "a.zarr")
    head = tmp_path / "a.zarr" / "scene" / "zarr.json"
    head.write_text(json.dumps({**json.loads(head.read_text()), **change}))
    with pytest.raises(SceneError):
        zarr_store.open(tmp_path / "a.zarr")


def test_a_chunk_larger_than_the_machine_is_refused(tmp_path: Path) -> None:
    zarr_store.write(some_scene(), tmp_path / "a.zarr")
    head = tmp_path / "a.zarr" / "scene" / "zarr.json"
    content = json.loads(head.read_text())
    content["chunk_grid"]["configuration"]["chunk_shape"] = [2**20, 2**20, 2**20]
    head.write_text(json.dumps(content))
    scene = zarr_store.open(tmp_path / "a.zarr")
    with pytest.raises(SceneError, match="memory"):
        read_window(scene, slice(0, 2), slice(0, 2))
