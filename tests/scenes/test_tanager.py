import json

import h5py
import numpy as np
import pytest
from rasterio import Affine

from vitreous import open_scene
from vitreous.errors import SceneError
from vitreous.scenes.cube import read_window

BANDS, ROWS, COLUMNS = 12, 20, 24
CENTRES = np.linspace(376.4, 2499.0, BANDS)
FRAMING = {"epsg_code": 32734, "rows": ROWS, "cols": COLUMNS}
FRAMING["geotransform"] = [345660.0, 30.0, 0.0, 6286110.0, 0.0, -30.0]
STRUCTURE = """GROUP=GridStructure
    GROUP=GRID_1
        GridName="HYP"
        XDim=24
        YDim=20
        UpperLeftPointMtrs=(345660.000000,6286110.000000)
        LowerRightMtrs=(346380.000000,6285510.000000)
"""


def write(path, kind="SWATHS", name="surface_reflectance", framing=None, structure=None):
    """A file in Tanager's layout; one pixel outside the footprint."""
    cube = np.random.default_rng(0).random((BANDS, ROWS, COLUMNS)).astype("f4")
    hidden = np.zeros((ROWS, COLUMNS), "u1")
    hidden[0, 0] = 1
    with h5py.File(path, "w") as file:
        group = file.create_group(f"HDFEOS/{kind}/HYP")
        fields = group.create_group("Data Fields")
        values = fields.create_dataset(name, data=cube)
        values.attrs["wavelengths"] = CENTRES
        values.attrs["fwhm"] = np.full(BANDS, 5.5)
        if name == "surface_reflectance":
            values.attrs["good_wavelengths"] = (np.arange(BANDS) != 4).astype("i4")
        fields["nodata_pixels"] = hidden
        fields["sun_zenith"] = np.zeros((ROWS, COLUMNS), "f4")
        if kind == "SWATHS":
            places = group.create_group("Geolocation Fields")
            places["Latitude"] = places["Longitude"] = np.zeros((ROWS, COLUMNS))
            places.attrs["Planet_Ortho_Framing"] = json.dumps(FRAMING)
        else:
            group.attrs["epsg_code"] = 32734
            if framing is not None:
                group.attrs["Planet_Ortho_Framing"] = framing
            if structure is not None:
                file["HDFEOS INFORMATION/StructMetadata.0"] = structure
    return cube


def test_reflectance_on_the_grid_of_the_sensor(tmp_path):
    cube = write(tmp_path / "a.h5")
    scene = open_scene(tmp_path / "a.h5")
    np.testing.assert_allclose(scene.wavelength, CENTRES)
    np.testing.assert_allclose(scene.fwhm, 5.5)
    assert np.flatnonzero(~scene.good_band.values).tolist() == [4]
    assert scene.attrs["unit"] == "reflectance"
    assert scene.rio.crs is None
    np.testing.assert_array_equal(scene.values[:, 1:], cube[:, 1:])
    window = read_window(scene, slice(0, ROWS), slice(0, COLUMNS))
    assert np.argwhere(np.isnan(window[0])).tolist() == [[0, 0]]


@pytest.mark.parametrize("place", [{"framing": json.dumps(FRAMING)}, {"structure": STRUCTURE}])
def test_place_of_an_ortho_product(tmp_path, place):
    write(tmp_path / "a.h5", "GRIDS", "toa_radiance", **place)
    scene = open_scene(tmp_path / "a.h5")
    assert scene.attrs["unit"] == "radiance"
    assert scene.rio.crs.to_epsg() == 32734
    assert scene.rio.transform(recalc=False) == Affine(30, 0, 345660, 0, -30, 6286110)


def test_hints_win(tmp_path):
    write(tmp_path / "a.h5", name="toa_radiance")
    scene = open_scene(tmp_path / "a.h5", unit="dn", scale=2)
    assert (scene.attrs["unit"], scene.attrs["scale"]) == ("dn", 2)


def test_a_damaged_framing_is_said(tmp_path):
    write(tmp_path / "a.h5", "GRIDS", framing="{")
    with pytest.raises(SceneError, match="Planet_Ortho_Framing"):
        open_scene(tmp_path / "a.h5")
