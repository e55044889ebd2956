import numpy as np
import pytest
from test_landsat import PLACE
from test_sentinel1 import put

from vitreous import open_scene
from vitreous.errors import SceneError
from vitreous.scenes.cube import read_window

SCENE = "EO1H1950282012231110KF"
BANDS = (7, 8, 56, 57, 77, 78, 100, 224, 225)


def put_product(folder, scene=SCENE, bands=BANDS):
    counts = {}
    for band in bands:
        counts[band] = np.random.default_rng(band).integers(1, 9000, (20, 24)).astype("int16")
        counts[band][0, 0] = 0
        put(folder / f"{scene}_B{band:03d}_L1T.TIF", counts[band], PLACE)
    return counts


def test_radiance_by_wavelength(tmp_path):
    counts = put_product(tmp_path)
    (tmp_path / f"{SCENE}_MTL_L1T.TXT").write_text(
        "GROUP = RADIANCE_SCALING\n  SCALING_FACTOR_VNIR = 40.00\n  SCALING_FACTOR_SWIR = 80.00\n"
    )
    scene = open_scene(tmp_path)
    assert (np.diff(scene.wavelength.values) > 0).all()
    names = list(scene.band_name.values)
    # 56 and 57 overlap with 77 and 78.
    assert {n for n, good in zip(names, scene.good_band.values, strict=True) if not good} == {
        "B007",
        "B057",
        "B077",
        "B225",
    }
    assert scene.attrs["unit"] == "radiance"
    for band, factor in ((8, 40), (100, 80)):
        k = names.index(f"B{band:03d}")
        np.testing.assert_allclose(scene.values[k, 2, 3], counts[band][2, 3] / factor)
    assert np.isnan(read_window(scene, slice(0, 1), slice(0, 1))).all()
    assert scene.rio.crs.to_epsg() == 32632
    assert scene.rio.transform(recalc=False) == PLACE


def test_some_bands_by_a_pattern(tmp_path):
    put_product(tmp_path)
    scene = open_scene(tmp_path / f"{SCENE}_B00[78]_L1T.TIF")
    assert list(scene.band_name.values) == ["B007", "B008"]
    assert (scene.attrs["scale"], scene.attrs["nodata"]) == (1 / 40, 0)


def test_two_scenes_and_level_1r_are_refused(tmp_path):
    put_product(tmp_path)
    put_product(tmp_path, SCENE.replace("231", "232"), (8,))
    with pytest.raises(SceneError, match="2 Hyperion scenes"):
        open_scene(tmp_path)
    (tmp_path / f"{SCENE}.L1R").write_bytes(b"\x0e\x03\x13\x01" + bytes(100))
    with pytest.raises(SceneError, match=r"HDF4 file.*Level 1T"):
        open_scene(tmp_path / f"{SCENE}.L1R")
