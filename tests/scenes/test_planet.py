import json

import numpy as np
import pytest
import rasterio
from rasterio import Affine

from vitreous import open_scene
from vitreous.errors import SceneError
from vitreous.scenes.cube import read_window

ITEM = "20230315_101112_34_2451_3B"


def put(path, values):
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=values.shape[0],
        height=values.shape[1],
        width=values.shape[2],
        dtype=values.dtype,
        crs="EPSG:32632",
        transform=Affine(3, 0, 300000, 0, -3, 5200000),
        photometric="minisblack",
    ) as dataset:
        dataset.write(values)


def put_scene(folder, name="AnalyticMS_SR_8b_clip", count=8):
    values = np.random.default_rng(0).integers(1, 5000, (count, 20, 24)).astype("uint16")
    values[:, 0, 0] = 0
    put(folder / f"{ITEM}_{name}.tif", values)
    mask = np.zeros((8, 20, 24), "uint8")
    mask[0] = 1
    mask[0, 4, 5], mask[5, 4, 5] = 0, 1  # a cloud
    put(folder / f"{ITEM}_udm2.tif", mask)
    return values


def metadata(coefficients, instrument="PSB.SD"):
    bands = "".join(
        f"<ps:bandSpecificMetadata><ps:bandNumber>{k}</ps:bandNumber>"
        "<ps:radiometricScaleFactor>0.01</ps:radiometricScaleFactor>"
        f"<ps:reflectanceCoefficient>{value}</ps:reflectanceCoefficient></ps:bandSpecificMetadata>"
        for k, value in enumerate(coefficients, start=1)
    )
    return (
        '<ps:EarthObservation xmlns:ps="http://schemas.planet.com/ps/v1/planet_product_metadata_geocorrected_level"'
        ' xmlns:eop="http://earth.esa.int/eop"><eop:instrument><eop:Instrument><eop:shortName>'
        f"{instrument}</eop:shortName></eop:Instrument></eop:instrument>{bands}</ps:EarthObservation>"
    )


@pytest.mark.parametrize("asked", ["", f"{ITEM}_AnalyticMS_SR_8b_clip.tif"])
def test_surface_reflectance_of_superdove(tmp_path, asked):
    values = put_scene(tmp_path)
    scene = open_scene(tmp_path / asked)
    assert list(scene.band_name.values)[:3] == ["coastal_blue", "blue", "green_i"]
    np.testing.assert_allclose(scene.wavelength.values[[0, 7]], [441.5, 865])
    assert (scene.attrs["unit"], scene.attrs["scale"], scene.attrs["nodata"]) == (
        "reflectance",
        1e-4,
        0,
    )
    np.testing.assert_array_equal(scene.values, values)
    assert scene.rio.crs.to_epsg() == 32632
    assert np.isnan(read_window(scene, slice(0, 1), slice(0, 1))).all()


def test_usable_data_mask(tmp_path):
    put_scene(tmp_path)
    window = read_window(open_scene(tmp_path, mask="udm2"), slice(0, 20), slice(0, 24))
    assert np.argwhere(np.isnan(window[0])).tolist() == [[0, 0], [4, 5]]


def test_radiance_becomes_reflectance_by_the_metadata(tmp_path):
    values = put_scene(tmp_path, "AnalyticMS_8b")
    scene = open_scene(tmp_path)
    assert (scene.attrs["unit"], scene.attrs["scale"]) == ("radiance", 0.01)
    coefficients = [2e-5 + k * 1e-6 for k in range(8)]
    (tmp_path / f"{ITEM}_AnalyticMS_8b_metadata.xml").write_text(metadata(coefficients))
    scene = open_scene(tmp_path)
    assert scene.attrs["unit"] == "reflectance"
    np.testing.assert_allclose(scene.values[7, 3, 4], values[7, 3, 4] * coefficients[7], rtol=1e-6)
    assert np.isnan(scene.values[:, 0, 0]).all()
    assert open_scene(tmp_path, scale=0.01, unit="radiance").attrs["scale"] == 0.01


@pytest.mark.parametrize(("instrument", "red"), [("PS2", 630), ("PSB.SD", 665)])
def test_four_bands_are_those_of_the_instrument(tmp_path, instrument, red):
    put_scene(tmp_path, "AnalyticMS_SR", 4)
    text = json.dumps({"id": ITEM[:-3], "properties": {"instrument": instrument}})
    (tmp_path / f"{ITEM[:-3]}_metadata.json").write_text(text)
    scene = open_scene(tmp_path)
    assert list(scene.band_name.values) == ["blue", "green", "red", "nir"]
    assert scene.wavelength.values[2] == red


def test_what_is_wrong_is_said(tmp_path):
    put_scene(tmp_path, "AnalyticMS_8b")
    (tmp_path / f"{ITEM}_AnalyticMS_8b_metadata.xml").write_text(metadata([1e-5] * 4))
    with pytest.raises(SceneError, match="4 reflectance coefficients for 8 bands"):
        open_scene(tmp_path)
    put_scene(tmp_path)
    with pytest.raises(SceneError, match="holds 2 images"):
        open_scene(tmp_path)


def test_a_guess_is_said(tmp_path):
    put_scene(tmp_path, "AnalyticMS_SR", 4)
    with pytest.warns(UserWarning, match="Dove or a SuperDove"):
        open_scene(tmp_path)
