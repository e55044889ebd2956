import warnings

import numpy as np
import pytest
import rasterio
from rasterio import Affine
from rasterio.errors import NotGeoreferencedWarning

from vitreous import open_scene
from vitreous.errors import SceneError
from vitreous.scenes.cube import read_window

PLACE = Affine(30, 0, 300000, 0, -30, 5200000)


def put(path, values, transform=None, nodata=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    place = {} if transform is None else {"crs": "EPSG:32632", "transform": transform}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(
            path,
            "w",
            driver="GTiff",
            count=1,
            height=values.shape[0],
            width=values.shape[1],
            dtype=values.dtype,
            nodata=nodata,
            **place,
        ) as dataset:
            dataset.write(values, 1)


@pytest.mark.filterwarnings("error::UserWarning")
def test_a_grd_product(tmp_path):
    folder = tmp_path / "S1A_IW_GRDH_1SDV_20210612T052611.SAFE"
    counts = {}
    for k, name in enumerate(("vh", "vv")):
        counts[name] = np.random.default_rng(k).integers(1, 900, (20, 24)).astype("uint16")
        counts[name][0, 0] = 0
        put(folder / f"measurement/s1a-iw-grd-{name}-20210612t052611-00{k}.tiff", counts[name])
    scene = open_scene(folder)
    assert list(scene.band_name.values) == ["VV", "VH"]
    assert (scene.attrs["unit"], scene.attrs["nodata"]) == ("dn", 0)
    assert "wavelength" not in scene.coords
    assert scene.rio.crs is None
    np.testing.assert_array_equal(scene.values[1], counts["vh"])


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("asked", ["", "*_{VV,VH}.tif"])
def test_a_terrain_corrected_pair(tmp_path, asked):
    values = {}
    for k, name in enumerate(("VV", "VH")):
        values[name] = np.random.default_rng(k).random((20, 24)).astype("f4")
        values[name][3, 4] = 0
        put(
            tmp_path / f"S1A_IW_20210612T052611_DVP_RTC30_G_gpuned_ABCD_{name}.tif",
            values[name],
            PLACE,
            0,
        )
    scene = open_scene(tmp_path / asked)
    assert list(scene.band_name.values) == ["VV", "VH"]
    np.testing.assert_array_equal(scene.values[0], values["VV"])
    assert scene.rio.transform(recalc=False) == PLACE
    assert np.isnan(read_window(scene, slice(3, 4), slice(4, 5))).all()


def test_two_dates_are_a_question(tmp_path):
    for day in ("12", "24"):
        for name in ("VV", "VH"):
            put(tmp_path / f"S1A_202106{day}_{name}.tif", np.ones((5, 6), "f4"), PLACE)
    with pytest.raises(SceneError, match="2 images of V"):
        open_scene(tmp_path)
