import json
import math

import numpy as np
import pytest
import rasterio
from rasterio import Affine

from vitreous import open_scene
from vitreous.errors import SceneError
from vitreous.scenes import landsat
from vitreous.scenes.cube import read_window

SCENE = "LC08_L2SP_195028_20210612_20210621_02_T1"
PLACE = Affine(30, 0, 300000, 0, -30, 5200000)


def put_band(path, values, transform=PLACE):
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=1,
        height=values.shape[0],
        width=values.shape[1],
        dtype="uint16",
        nodata=0,
        crs="EPSG:32632",
        transform=transform,
    ) as dataset:
        dataset.write(values.astype("uint16"), 1)


def put_product(folder, scene=SCENE, bands=(1, 2, 3, 4, 5, 6, 7)):
    """Counts by band; the first pixel is fill, one under a cloud."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    level2 = "_L2" in scene
    counts = {}
    for band in bands:
        counts[band] = rng.integers(7273, 43636, (20, 24))
        counts[band][0, 0] = 0
        put_band(folder / f"{scene}_{'SR_' if level2 else ''}B{band}.TIF", counts[band])
    put_band(folder / f"{scene}_ST_B10.TIF", counts[bands[0]])
    quality = np.full((20, 24), 21824)
    quality[5, 6] = 22280  # cloud
    put_band(folder / f"{scene}_QA_PIXEL.TIF", quality)
    return counts


def mtl(level=2):
    """Groups and keys as in the product's file; those of Level 1 stand beside those of Level 2."""
    level1 = {f"REFLECTANCE_MULT_BAND_{b}": "2.0000E-05" for b in range(1, 10)}
    level1 |= {f"REFLECTANCE_ADD_BAND_{b}": "-0.100000" for b in range(1, 10)}
    surface = {f"REFLECTANCE_MULT_BAND_{b}": "2.75e-05" for b in range(1, 8)}
    surface |= {f"REFLECTANCE_ADD_BAND_{b}": "-0.2" for b in range(1, 8)}
    groups = {
        "IMAGE_ATTRIBUTES": {"SPACECRAFT_ID": "LANDSAT_8", "SUN_ELEVATION": "30.0"},
        "LEVEL1_RADIOMETRIC_RESCALING": level1,
    }
    if level == 2:
        groups["LEVEL2_SURFACE_REFLECTANCE_PARAMETERS"] = surface
    return groups


def as_text(groups):
    body = "\n".join(
        f"  GROUP = {name}\n"
        + "\n".join(f'    {key} = "{value}"' for key, value in keys.items())
        + f"\n  END_GROUP = {name}"
        for name, keys in groups.items()
    )
    return f"GROUP = LANDSAT_METADATA_FILE\n{body}\nEND_GROUP = LANDSAT_METADATA_FILE\nEND\n"


def as_xml(groups):
    body = "".join(
        f"<{name}>{''.join(f'<{k}>{v}</{k}>' for k, v in keys.items())}</{name}>"
        for name, keys in groups.items()
    )
    return f"<LANDSAT_METADATA_FILE>{body}</LANDSAT_METADATA_FILE>"


def test_surface_reflectance_of_a_folder(tmp_path):
    counts = put_product(tmp_path / SCENE)
    scene = open_scene(tmp_path / SCENE)
    assert list(scene.band_name.values) == ["B1", "B2", "B3", "B4", "B5", "B6", "B7"]
    np.testing.assert_allclose(scene.wavelength.values[[0, 6]], [442.96, 2200.73])
    np.testing.assert_allclose(scene.fwhm.values[0], 15.98)
    assert scene.attrs["unit"] == "reflectance"
    assert scene.rio.crs.to_epsg() == 32632
    assert scene.rio.transform(recalc=False) == PLACE
    window = read_window(scene, slice(0, 20), slice(0, 24))
    np.testing.assert_allclose(window[3, 2, 3], counts[4][2, 3] * 2.75e-5 - 0.2, rtol=1e-6)
    assert np.isnan(window[:, 0, 0]).all()
    assert np.isnan(window).any(axis=0).sum() == 1


def test_fill_in_one_band_is_no_measurement(tmp_path):
    counts = put_product(tmp_path / SCENE)
    counts[3][7, 7] = 0
    put_band(tmp_path / SCENE / f"{SCENE}_SR_B3.TIF", counts[3])
    window = read_window(open_scene(tmp_path / SCENE), slice(0, 20), slice(0, 24))
    assert np.isnan(window[:, 7, 7]).all()


@pytest.mark.parametrize("kind", ["txt", "json", "xml"])
def test_scale_of_the_metadata_in_all_three_forms(tmp_path, kind):
    counts = put_product(tmp_path)
    groups = mtl()
    groups["LEVEL2_SURFACE_REFLECTANCE_PARAMETERS"]["REFLECTANCE_MULT_BAND_4"] = "3e-05"
    text = {
        "txt": as_text(groups),
        "json": json.dumps({"LANDSAT_METADATA_FILE": groups}),
        "xml": as_xml(groups),
    }[kind]
    path = tmp_path / f"{SCENE}_MTL.{kind}"
    path.write_text(text)
    scene = open_scene(path)
    np.testing.assert_allclose(scene.values[3, 2, 3], counts[4][2, 3] * 3e-5 - 0.2, rtol=1e-6)
    np.testing.assert_allclose(scene.values[2, 2, 3], counts[3][2, 3] * 2.75e-5 - 0.2, rtol=1e-6)


def test_level_1_is_reflectance_under_the_sun_of_that_day(tmp_path):
    scene_id = "LC09_L1TP_195028_20220612_20230621_02_T1"
    counts = put_product(tmp_path, scene_id, (1, 2, 8, 9))
    (tmp_path / f"{scene_id}_MTL.txt").write_text(as_text(mtl(1)))
    scene = open_scene(tmp_path)
    assert list(scene.band_name.values) == ["B1", "B2", "B9"]  # 8 is panchromatic
    expected = (counts[9][2, 3] * 2e-5 - 0.1) / math.sin(math.radians(30))
    np.testing.assert_allclose(scene.values[2, 2, 3], expected, rtol=1e-6)


def test_level_1_without_metadata_stays_counts_with_a_warning(tmp_path):
    put_product(tmp_path, "LE07_L1TP_195028_20020612_20200621_02_T1", (1, 2, 3, 4, 5, 7))
    with pytest.warns(UserWarning, match="no MTL file"):
        scene = open_scene(tmp_path)
    assert scene.attrs["unit"] == "dn"
    assert scene.wavelength.values[0] == 477.5


@pytest.mark.parametrize(
    ("name", "centre"),
    [
        ("LT05_L2SP_195028_19990612_20200621_02_T1_SR_B5.TIF", 1675.5),
        ("LM05_L1TP_195028_19830612_20200621_02_T2_B2.TIF", 650),
        ("LM02_L1TP_195028_19770612_20200621_02_T2_B5.TIF", 650),
        ("LC09_L2SP_195028_20220612_20230621_02_T1_SR_B5.TIF", 864.6),
    ],
)
def test_bands_differ_between_instruments(tmp_path, name, centre):
    assert landsat.band_of(tmp_path / name).band.centre == pytest.approx(centre, abs=2)


@pytest.mark.parametrize("ending", ["B6_VCID_1", "ST_B6", "SR_QA_AEROSOL", "B8", "QA_PIXEL"])
def test_other_files_are_no_part_of_the_scene(tmp_path, ending):
    name = f"LE07_L{'2SP' if '_' in ending else '1TP'}_195028_20020612_20200621_02_T1_{ending}.TIF"
    assert landsat.band_of(tmp_path / name) is None


def test_quality_band_is_the_mask(tmp_path):
    put_product(tmp_path)
    window = read_window(open_scene(tmp_path, mask="qa"), slice(0, 20), slice(0, 24))
    assert np.isnan(window[:, 5, 6]).all()
    assert np.isfinite(window[:, 5, 7]).all()


def test_hints_win(tmp_path):
    put_product(tmp_path)
    scene = open_scene(tmp_path, unit="dn", wavelengths=[1000 + k for k in range(7)])
    assert scene.attrs["unit"] == "dn"
    assert scene.wavelength.values[6] == 1006


def test_two_scenes_are_a_question(tmp_path):
    put_product(tmp_path)
    put_product(tmp_path, SCENE.replace("20210612", "20210628"))
    with pytest.raises(SceneError, match="2 Landsat scenes"):
        open_scene(tmp_path)


def test_damaged_metadata_are_said(tmp_path):
    put_product(tmp_path)
    groups = mtl()
    del groups["LEVEL2_SURFACE_REFLECTANCE_PARAMETERS"]["REFLECTANCE_ADD_BAND_2"]
    (tmp_path / f"{SCENE}_MTL.txt").write_text(as_text(groups))
    with pytest.raises(SceneError, match="REFLECTANCE_ADD_BAND_2"):
        open_scene(tmp_path)
