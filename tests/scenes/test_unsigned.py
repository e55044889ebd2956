"""NetCDF's ``_Unsigned``: whole numbers that are meant with the other sign."""

import h5py
import numpy as np
import pytest
import zarr

from vitreous import open_labels, open_scene
from vitreous.scenes.cube import read_window

CUBE = np.array([[[1, 200], [255, 128]]] * 3, "u1")


def put(path, values, **attrs):
    if path.suffix == ".zarr":
        group = zarr.open_group(path, mode="w")
        array = group.create_array("cube", data=values)
        array.attrs.update({k: v.item() if isinstance(v, np.generic) else v for k, v in attrs.items()})  # fmt: skip
    else:
        with h5py.File(path, "w") as file:
            file["cube"] = values
            file["cube"].attrs.update(attrs)
    return path


@pytest.mark.parametrize("name", ["a.nc", "a.zarr"])
@pytest.mark.parametrize("wide", [1, 2, 4])
def test_signed_values_that_mean_unsigned_ones(tmp_path, name, wide):
    top = 2 ** (8 * wide) - 1
    meant = np.array([[[1, top - 55], [top, 128]]] * 3, f"u{wide}")
    path = put(tmp_path / name, meant.view(f"i{wide}"), _Unsigned="true", _FillValue=np.array(-1, f"i{wide}")[()])  # fmt: skip
    scene = open_scene(path, axis_order="byx")
    assert scene.dtype == meant.dtype
    assert scene.attrs["nodata"] == top
    np.testing.assert_array_equal(scene.values, meant)
    valid = read_window(scene, slice(0, 2), slice(0, 2))
    assert np.isnan(valid[:, 1, 0]).all() and np.isfinite(valid).sum() == 9


def test_unsigned_values_that_mean_signed_ones(tmp_path):
    meant = np.array([[[1, -56], [-1, 100]]] * 3, "i1")
    path = put(tmp_path / "a.nc", meant.view("u1"), _Unsigned="false", _FillValue=np.uint8(255))
    scene = open_scene(path, axis_order="byx")
    assert (scene.dtype, scene.attrs["nodata"]) == (np.int8, -1)
    np.testing.assert_array_equal(scene.values, meant)


@pytest.mark.parametrize("word", ["true", "false", "nonsense", 3])
def test_it_changes_nothing_where_the_type_says_it(tmp_path, word):
    values = CUBE if word != "false" else CUBE.view("i1")
    scene = open_scene(put(tmp_path / "a.nc", values, _Unsigned=word), axis_order="byx")
    assert scene.dtype == values.dtype
    np.testing.assert_array_equal(scene.values, values)


def test_labels_too(tmp_path):
    codes = np.array([[1, 200, 255], [1, 200, 200]], "u1")
    path = put(tmp_path / "a.nc", codes.view("i1"), _Unsigned="true", _FillValue=np.int8(-1))
    labels = open_labels(path)
    assert labels.attrs["class_codes"] == [1, 200]
    assert labels.values.tolist() == [[1, 2, 0], [1, 2, 2]]


def test_limits_are_those_of_the_stored_type(tmp_path):
    path = put(tmp_path / "a.nc", CUBE.view("i1"), _Unsigned="true", valid_range=np.array([0, -56], "i1"))  # fmt: skip
    scene = open_scene(path, axis_order="byx")
    np.testing.assert_array_equal(scene.values[0], [[1, 200], [np.nan, 128]])
