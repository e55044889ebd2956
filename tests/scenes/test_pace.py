import h5py
import numpy as np
import pytest

from vitreous import open_scene
from vitreous.errors import SceneError
from vitreous.scenes.cube import read_window

ROWS, COLUMNS = 20, 24
PARTS = {
    "blue": np.arange(560, 606, 5.0),
    "red": np.arange(597.5, 640, 5.0),
    "SWIR": np.array([940, 1038, 1248, 1250, 2130.0]),
}


def write_level_1b(path, **sizes):
    rng = np.random.default_rng(0)
    cubes = {}
    with h5py.File(path, "w") as file:
        for part, centres in PARTS.items():
            shape = (centres.size, *sizes.get(part, (ROWS, COLUMNS)))
            cubes[part] = rng.random(shape).astype("f4")
            cubes[part][:, 0, 0] = -32767
            values = file.create_dataset(f"observation_data/rhot_{part}", data=cubes[part])
            values.attrs["_FillValue"] = np.float32(-32767)
            file[f"observation_data/qual_{part}"] = np.zeros(shape, "u1")
            file[f"sensor_band_parameters/{part}_wavelength"] = centres
        file["geolocation_data/latitude"] = np.zeros((ROWS, COLUMNS), "f4")
    return cubes


def write_level_2(path, name="rhos"):
    centres = np.array([346.0, 500, 700, 894.6, 1038, 2258])
    counts = np.random.default_rng(0).integers(-20000, 20000, (ROWS, COLUMNS, 6)).astype("i2")
    counts[0, 0] = -32767
    with h5py.File(path, "w") as file:
        values = file.create_dataset(f"geophysical_data/{name}", data=counts)
        values.attrs["_FillValue"] = np.int16(-32767)
        values.attrs["scale_factor"], values.attrs["add_offset"] = np.float32(2e-5), np.float32(0.5)
        file[f"geophysical_data/{name}_unc"] = np.zeros(counts.shape, "f4")
        file["geophysical_data/l2_flags"] = np.zeros((ROWS, COLUMNS), "i4")
        file["sensor_band_parameters/wavelength_3d"] = centres
        file["sensor_band_parameters/wavelength"] = np.linspace(314, 2258, 286)
        for field in ("latitude", "longitude"):
            file[f"navigation_data/{field}"] = np.zeros((ROWS, COLUMNS), "f4")
    return counts


def test_level_1b_joins_three_cubes(tmp_path):
    cubes = write_level_1b(tmp_path / "PACE_OCI.L1B.nc")
    scene = open_scene(tmp_path / "PACE_OCI.L1B.nc")
    centres = scene.wavelength.values
    assert (np.diff(centres) >= 0).all()
    assert scene.sizes["band"] == sum(len(c) for c in PARTS.values())
    # Blue and red overlap from 597.5 to 605 nm; the middle is 601.25 nm.
    assert centres[~scene.good_band.values].tolist() == [597.5, 605.0]
    assert scene.fwhm.values[0] == 5
    assert scene.fwhm.values[centres == 1038] == 75
    assert scene.attrs["unit"] == "reflectance"
    values = read_window(scene, slice(0, ROWS), slice(0, COLUMNS), np.arange(scene.sizes["band"]))
    assert np.argwhere(np.isnan(values[0])).tolist() == [[0, 0]]
    red = int(np.flatnonzero(centres == 632.5)[0])
    np.testing.assert_allclose(values[red, 3, 4], cubes["red"][7, 3, 4])
    np.testing.assert_allclose(values[-1, 3, 4], cubes["SWIR"][-1, 3, 4])


@pytest.mark.parametrize(("name", "unit"), [("rhos", "reflectance"), ("Rrs", "dn")])
@pytest.mark.filterwarnings("error::UserWarning")
def test_level_2(tmp_path, name, unit):
    counts = write_level_2(tmp_path / "PACE_OCI.L2.nc", name)
    scene = open_scene(tmp_path / "PACE_OCI.L2.nc")
    assert scene.wavelength.values.tolist() == [346.0, 500, 700, 894.6, 1038, 2258]
    assert scene.fwhm.values.tolist() == [5, 5, 5, 5, 75, 75]
    assert scene.attrs["unit"] == unit
    np.testing.assert_allclose(scene.values[2, 3, 4], counts[3, 4, 2] * 2e-5 + 0.5, rtol=1e-5)
    assert np.isnan(scene.values[:, 0, 0]).all()


def test_cubes_of_two_sizes_are_refused(tmp_path):
    write_level_1b(tmp_path / "a.nc", red=(ROWS, 12))
    with pytest.raises(SceneError, match="damaged"):
        open_scene(tmp_path / "a.nc")
