import h5py
import numpy as np
import pytest
from rasterio import Affine

from vitreous import open_scene
from vitreous.errors import SceneError
from vitreous.scenes.cube import read_window

VNIR = [0, 990, 960, 700, 500, 400]  # descending, as in the product; 0 is not used
SWIR = [2400, 1600, 1010, 970, 940, 0]
ROWS, COLUMNS = 20, 24


def write(path, level="2D", corners="centres", **attributes):
    """A file in PRISMA's layout; returns counts (rows, bands, columns) of both cubes."""
    rng = np.random.default_rng(3)
    cubes = [rng.integers(1, 65535, (ROWS, 6, COLUMNS)).astype("u2") for _ in range(2)]
    for cube in cubes:
        cube[0, :, 0] = 0
    with h5py.File(path, "w") as file:
        swath = file.create_group(f"HDFEOS/SWATHS/PRS_L{level}_HCO")
        swath["Data Fields/VNIR_Cube"], swath["Data Fields/SWIR_Cube"] = cubes
        swath["Data Fields/VNIR_PIXEL_L2_ERR_MATRIX"] = np.zeros((ROWS, 6, COLUMNS), "u1")
        swath["Geolocation Fields/Latitude"] = np.zeros((ROWS, COLUMNS))
        pan = file.create_group(f"HDFEOS/SWATHS/PRS_L{level}_PCO")
        pan["Data Fields/Cube"] = np.zeros((ROWS * 6, COLUMNS * 6), "u2")
        for part, centres in (("Vnir", VNIR), ("Swir", SWIR)):
            file.attrs[f"List_Cw_{part}"] = np.array(centres, "f4")
            file.attrs[f"List_Fwhm_{part}"] = np.where(np.array(centres) > 0, 10.5, 0).astype("f4")
            file.attrs[f"List_Cw_{part}_Flags"] = np.array([c > 0 for c in centres], "i4")
        if level == "1":
            for part in ("Vnir", "Swir"):
                file.attrs[f"ScaleFactor_{part}"] = np.float32(100)
                file.attrs[f"Offset_{part}"] = np.float32(0)
        else:
            for name, value in (("VnirMin", 0), ("VnirMax", 1), ("SwirMin", 0.1), ("SwirMax", 0.9)):
                file.attrs[f"L2Scale{name}"] = np.float32(value)
        if level == "2D":
            steps = 1 if corners == "centres" else 0
            file.attrs["Epsg_Code"] = np.uint32(32632)
            file.attrs["Product_ULcorner_easting"] = 500000.0
            file.attrs["Product_ULcorner_northing"] = 5000000.0
            file.attrs["Product_LRcorner_easting"] = 500000.0 + 30 * (COLUMNS - steps)
            file.attrs["Product_LRcorner_northing"] = 5000000.0 - 30 * (ROWS - steps)
        for name, value in attributes.items():
            file.attrs[name] = value
    return cubes


def test_both_cubes_by_wavelength(tmp_path):
    vnir, swir = write(tmp_path / "PRS_L2D_STD.he5")
    scene = open_scene(tmp_path / "PRS_L2D_STD.he5")
    centres = [400, 500, 700, 940, 960, 970, 990, 1010, 1600, 2400]
    assert scene.wavelength.values[:10].tolist() == centres
    assert np.isnan(scene.wavelength.values[10:]).all()
    assert list(scene.band_name.values[[0, 3, 4]]) == ["VNIR 6", "SWIR 5", "VNIR 3"]
    # The overlap is 940 to 990 nm: each detector keeps its half.
    good = [True, True, True, False, True, True, False, True, True, True, False, False]
    assert scene.good_band.values.tolist() == good
    assert scene.fwhm.values[0] == 10.5
    assert scene.attrs["unit"] == "reflectance"
    values = read_window(scene, slice(0, ROWS), slice(0, COLUMNS), np.arange(10))
    np.testing.assert_allclose(values[0, 5, 7], vnir[5, 5, 7] / 65535, rtol=1e-5)
    np.testing.assert_allclose(values[9, 5, 7], 0.1 + swir[5, 0, 7] * 0.8 / 65535, rtol=1e-5)
    assert np.flatnonzero(np.isnan(values[0])).tolist() == [0]


def test_any_window_is_part_of_the_whole(tmp_path):
    write(tmp_path / "a.he5")
    scene = open_scene(tmp_path / "a.he5")
    whole = scene.values
    for cut in (np.s_[2:9:2, 3:7, 5:11], np.s_[4, 1:2, ::3], np.s_[::-1, 5, 6]):
        np.testing.assert_array_equal(scene[cut].values, whole[cut])


@pytest.mark.parametrize(("corners", "west"), [("centres", 499985), ("edges", 500000)])
def test_place_of_level_2d(tmp_path, corners, west):
    write(tmp_path / "a.he5", corners=corners)
    scene = open_scene(tmp_path / "a.he5")
    assert scene.rio.crs.to_epsg() == 32632
    expected = Affine(30, 0, west, 0, -30, 5000000 + 500000 - west)
    assert scene.rio.transform(recalc=False) == expected


def test_level_1_is_radiance(tmp_path):
    vnir, _ = write(tmp_path / "PRS_L1_STD.he5", "1")
    scene = open_scene(tmp_path / "PRS_L1_STD.he5")
    assert (scene.attrs["unit"], scene.attrs["nodata"]) == ("radiance", 0)
    assert scene.attrs["scale"] == pytest.approx(0.01)
    assert scene.values[0, 5, 7] == vnir[5, 5, 7]
    assert scene.rio.crs is None


def test_one_cube_and_hints(tmp_path):
    write(tmp_path / "a.he5")
    name = "HDFEOS/SWATHS/PRS_L2D_HCO/Data Fields/VNIR_Cube"
    assert open_scene(tmp_path / "a.he5", variable=name).sizes["band"] == 6
    scene = open_scene(tmp_path / "a.he5", scale=0.5, unit="dn", nodata="none")
    assert (scene.attrs["scale"], scene.attrs["unit"], scene.attrs["nodata"]) == (0.5, "dn", None)


@pytest.mark.parametrize(
    ("attributes", "complaint"),
    [
        ({"List_Cw_Vnir": np.ones(5)}, "5 values for 6 bands"),
        ({"L2ScaleSwirMax": np.float32("nan")}, "L2ScaleSwirMax"),
        ({"L2ScaleSwirMax": np.float32(0)}, "impossible scale"),
    ],
)
def test_damaged_metadata_are_said(tmp_path, attributes, complaint):
    write(tmp_path / "a.he5", **attributes)
    with pytest.raises(SceneError, match=complaint):
        open_scene(tmp_path / "a.he5")
