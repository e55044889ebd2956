"""Files with one image per band: which are the bands, and in which order, or a question."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import scipy.io
import zarr
from affine import Affine

from vitreous import open_scene
from vitreous.errors import SceneError
from vitreous.scenes.cube import georeference, read_window

HEIGHT, WIDTH = 5, 8
X, Y = 500000 + 10.0 * np.arange(WIDTH) + 5, 4000000 - 10.0 * np.arange(HEIGHT) - 5


def image(number, dtype="i2"):
    return (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 9 + 10 * number).astype(dtype)


def put(path, images, dims=("y", "x"), **attrs):
    """NetCDF-4 as xarray writes it: coordinates, and one variable per band."""
    with h5py.File(path, "w") as file:
        file.attrs.update(attrs)
        for name, values in (("y", Y), ("x", X)):
            file[name] = values
            file[name].make_scale(name)
        for name, (values, own) in images.items():
            file[name] = values if dims == ("y", "x") else values.T
            file[name].attrs.update(own)
            for axis, dim in enumerate(dims):
                file[name].dims[axis].attach_scale(file[dim])
    return path


def bands_of(scene):
    return [str(name) for name in scene["band_name"].values]


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("dims", [("y", "x"), ("x", "y")])
@pytest.mark.parametrize("platform", ["Sentinel-2B", "sentinel-2b", "S2B_MSIL2A_20230216T102101"])
def test_bands_of_a_named_platform(tmp_path, platform, dims):
    images = {name: (image(k), {}) for k, name in enumerate(("B12", "B8A", "B02", "B11"))}
    scene = open_scene(put(tmp_path / "a.nc", images, dims, title=platform))
    assert bands_of(scene) == ["B02", "B8A", "B11", "B12"]
    assert scene.wavelength.values.tolist() == [492.1, 864.0, 1610.4, 2185.7]
    assert scene.fwhm.values.tolist() == [66, 22, 94, 185]
    np.testing.assert_array_equal(scene.values, [image(k) for k in (2, 1, 3, 0)])
    assert georeference(scene)[1] == Affine(10, 0, 500000, 0, -10, 4000000)


def test_landsat_counts_otherwise(tmp_path):
    images = {name: (image(k), {}) for k, name in enumerate(("B5", "B4"))}
    scene = open_scene(put(tmp_path / "a.nc", images, platform="LANDSAT_8"))
    assert (bands_of(scene), scene.wavelength.values.tolist()) == (["B4", "B5"], [654.59, 864.67])


def test_bands_that_say_their_centres(tmp_path):
    images = {
        f"refl_{k}": (image(k), {"radiation_wavelength": nm / 1000, "radiation_wavelength_unit": "um"})
        for k, nm in enumerate((865.0, 443.0, 560.0))
    }  # fmt: skip
    scene = open_scene(put(tmp_path / "a.nc", images))
    assert scene.wavelength.values.tolist() == [443, 560, 865]
    np.testing.assert_array_equal(scene[:, 0, 0], [10, 20, 0])


@pytest.mark.parametrize("name", ["Rrs_{}", "reflectance_{}", "b_{}nm"])
def test_centres_in_names(tmp_path, name):
    images = {name.format(nm): (image(k), {}) for k, nm in enumerate((1610, 443, 560))}
    images |= {"latitude": (image(7, "f4"), {}), "flags": (image(0), {"flag_masks": [1, 2]})}
    scene = open_scene(put(tmp_path / "a.nc", images))
    assert scene.wavelength.values.tolist() == [443, 560, 1610]
    assert scene.attrs["unit"] == ("reflectance" if name.startswith("refl") else "dn")


def test_what_nothing_says_is_asked(tmp_path):
    path = put(tmp_path / "a.nc", {f"B0{k}": (image(k), {}) for k in (2, 3, 4)})
    with pytest.raises(SceneError, match=r"3 images \(B02, B03, B04\).*wavelengths of any.*variable=B02,B03,B04"):  # fmt: skip
        open_scene(path)
    scene = open_scene(path, variable="B04, B02")
    assert bands_of(scene) == ["B04", "B02"] and "wavelength" not in scene.coords
    np.testing.assert_array_equal(scene.values, [image(4), image(2)])
    assert bands_of(open_scene(path, variable=["B03", "B02"])) == ["B03", "B02"]
    scene = open_scene(path, variable="B03,B02", wavelengths=[560, 490], wavelength_unit="nm")
    assert scene.wavelength.values.tolist() == [560, 490]
    scene = open_scene(path, sensor="sentinel2a:B04,B03")
    assert bands_of(scene) == ["B04", "B03"]
    np.testing.assert_array_equal(scene[:, 0, 0], [40, 30])
    assert scene.wavelength.values.tolist() == [664.6, 559.8]
    scene = open_scene(path, wavelengths=[490, 560, 665], wavelength_unit="nm")
    assert bands_of(scene) == ["B02", "B03", "B04"]
    with pytest.raises(SceneError, match="no variable 'B05'"):
        open_scene(path, variable="B02,B05")


def test_other_images_are_left_out_and_said(tmp_path):
    images = {name: (image(k), {}) for k, name in enumerate(("B8A", "B02", "cloud_probability"))}
    path = put(tmp_path / "a.nc", images)
    with pytest.warns(
        UserWarning, match="without a known wavelength are left out: cloud_probability"
    ):
        assert bands_of(open_scene(path)) == ["B02", "B8A"]


def test_images_that_are_stored_alike_keep_their_values(tmp_path):
    own = {"scale_factor": 1e-4, "_FillValue": np.int16(-9999), "units": "1"}
    images = {name: (image(k), own) for k, name in enumerate(("B02", "B8A"))}
    images["B02"][0][0, 0] = -9999
    scene = open_scene(put(tmp_path / "a.nc", images))
    assert (scene.dtype, scene.attrs["scale"], scene.attrs["nodata"]) == (np.int16, 1e-4, -9999)
    window = read_window(scene, slice(0, 1), slice(0, 2))
    np.testing.assert_allclose(window, [[[np.nan, 1e-4]], [[np.nan, 1.1e-3]]], rtol=1e-6)


def test_images_that_are_stored_differently_become_physical_values(tmp_path):
    images = {
        "B02": (image(1), {"scale_factor": 0.1, "_FillValue": np.int16(18)}),
        "B8A": (image(2), {"scale_factor": 0.2, "add_offset": -1.0, "_FillValue": np.int16(0)}),
    }
    scene = open_scene(put(tmp_path / "a.nc", images))
    assert (scene.dtype, scene.attrs["scale"]) == (np.float32, 1)
    stored = np.stack([image(1) * 0.1, image(2) * 0.2 - 1]).astype("f4")
    stored[0][image(1) == 18] = np.nan
    np.testing.assert_allclose(scene.values, stored, rtol=1e-6)


def test_images_of_several_sizes_are_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a"], file["b"] = np.ones((4, 5)), np.ones((8, 10))
    with pytest.raises(SceneError, match="do not have one size"):
        open_scene(tmp_path / "a.h5", variable="a,b")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("suffix", [".mat", ".npz", ".zarr"])
def test_other_files_of_arrays(tmp_path, suffix):
    images = {f"Rrs_{nm}": image(k, "f4") for k, nm in enumerate((560, 443))}
    path = tmp_path / f"a{suffix}"
    if suffix == ".mat":
        scipy.io.savemat(path, images)
    elif suffix == ".npz":
        np.savez(path, **images)
    else:
        group = zarr.open_group(path, mode="w")
        for name, values in images.items():
            group.create_array(name, data=values, dimension_names=("y", "x"))
    scene = open_scene(path)
    assert scene.wavelength.values.tolist() == [443, 560]
    np.testing.assert_array_equal(scene.values, [image(1), image(0)])
    np.testing.assert_array_equal(scene[1, 1:4:2, ::-1].values, image(0)[1:4:2, ::-1])
    assert open_scene(path, variable="Rrs_560,Rrs_443").wavelength.values.tolist() == [560, 443]


def test_a_time_of_length_1_does_not_count(tmp_path):
    with h5py.File(tmp_path / "a.nc", "w") as file:
        for k, name in enumerate(("B8A", "B02")):
            file[name] = image(k)[None]
    np.testing.assert_array_equal(open_scene(tmp_path / "a.nc").values, [image(1), image(0)])
