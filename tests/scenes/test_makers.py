"""Files as instruments and their makers write them, which the readers of the formats open."""

import h5py
import numpy as np
import pytest
from rasterio.crs import CRS

from vitreous import open_scene

BANDS, ROWS, COLUMNS = 10, 12, 14
CENTRES = [376.8 + 5 * k for k in range(BANDS)]
LISTED = ", ".join(f"{c:.2f}" for c in CENTRES)
HEAD = f"ENVI\nsamples = {COLUMNS}\nlines = {ROWS}\nbands = {BANDS}\nheader offset = 0\ninterleave = bil\n"

ENVI = {
    # AVIRIS-NG and AVIRIS-3: one value per band in lists of their own, a rotated grid, blanks around words
    "ang20180814t224053_corr_v2r2_img": (
        "<f4",
        f"""description = {{
  Reflectance, atmospherically corrected }}
file type = ENVI Standard
data type = 4
byte order = 0
map info = {{UTM , 1 , 1 , 724522.127 , 4074620.759 , 5.0 , 5.0 , 12 , North , WGS-84 , units=Meters , rotation=75.0}}
correction factors = {{ {", ".join(["1.0"] * BANDS)} }}
wavelength units = Nanometers
wavelength = {{ {LISTED} }}
fwhm = {{ {", ".join(["5.6"] * BANDS)} }}
smoothing factors = {{ {", ".join(["1.0"] * BANDS)} }}
data ignore value = -9999
bbl = {{ 0, {", ".join(["1"] * (BANDS - 1))} }}
""",
        {"unit": "reflectance", "nodata": -9999.0, "fwhm": 5.6, "epsg": 32612, "bad": [0]},
    ),
    "ang20180814t224053_rdn_v2r2_img": (
        "<f4",
        f"data type = 4\nbyte order = 0\nwavelength units = Nanometers\nwavelength = {{ {LISTED} }}\n",
        {"unit": "radiance"},
    ),
    # HySpex: a description of many lines with its own equals signs
    "HySpex_SWIR_384_SN3127_raw.hyspex": (
        "<u2",
        f"""description = {{
Frameperiod = 10000
Binning = 1
Effective bits = 16
Serialnumber = 3127
}}
file type = ENVI Standard
data type = 12
sensor type = Unknown
byte order = 0
default bands = {{1,2,3}}
wavelength units = nm
pixelsize x = 0.000730
wavelength = {{{LISTED}}}
gain = 1
""",
        {"unit": "dn", "nodata": None},
    ),
    # Headwall: no ending, no unit of wavelengths, nested braces, a factor that makes reflectance
    "raw_0_rd_rf": (
        "<u2",
        f"""data type = 12
bit depth = 12
framerate = 125
reflectance scale factor = 10000
byte order = 0
wavelength = {{
{LISTED.replace(", ", chr(10) + ",")}
}}
rotation = {{ {{1,0}}, {{0,1}} }}
label = {{ raw }}
""",
        {"unit": "reflectance", "scale": 1e-4},
    ),
    # Specim IQ: a capital in the key, an empty line, comments, words in braces
    "REFLECTANCE_2018-09-11_001.dat": (
        "<f4",
        f"""file type = ENVI

data type = 4
byte order = 0
sensor type = SPECIM IQ
errors = {{none}}
acquisition date = DATE(yyyy-mm-dd): 2018-09-11
binning = {{1,1}}
himg = {{1, 512}}
Wavelength = {{
{LISTED.replace(", ", "," + chr(10))}
}}
;AIE = Auto
""",
        {"unit": "reflectance"},
    ),
}


@pytest.mark.parametrize("name", ENVI)
@pytest.mark.filterwarnings("ignore:.*names no wavelength unit")
def test_envi_of_every_maker(tmp_path, name):
    dtype, header, expected = ENVI[name]
    cube = (np.random.default_rng(0).random((ROWS, BANDS, COLUMNS)) * 100).astype(dtype)
    cube.tofile(tmp_path / name)
    stem = name.rpartition(".")[0] or name
    (tmp_path / f"{stem}.hdr").write_text(HEAD + header)
    for asked in (name, f"{stem}.hdr"):
        scene = open_scene(tmp_path / asked)
        np.testing.assert_array_equal(scene.values, cube.transpose(1, 0, 2))
        np.testing.assert_allclose(scene.wavelength, CENTRES, atol=0.01)
        assert scene.attrs["unit"] == expected["unit"]
        assert scene.attrs["scale"] == pytest.approx(expected.get("scale", 1))
        assert scene.attrs["nodata"] == expected.get("nodata")
        if "fwhm" in expected:
            np.testing.assert_allclose(scene.fwhm, expected["fwhm"])
        if "epsg" in expected:
            assert scene.rio.crs.to_epsg() == expected["epsg"]
        if "bad" in expected:
            assert np.flatnonzero(~scene.good_band.values).tolist() == expected["bad"]


@pytest.mark.parametrize("unit", ["reflectance", "radiance"])
def test_orthorectified_aviris_3(tmp_path, unit):
    cube = np.random.default_rng(0).random((BANDS, ROWS, COLUMNS)).astype("f4")
    with h5py.File(tmp_path / "AV3_ORT.nc", "w") as file:
        group = file.create_group(unit)
        values = group.create_dataset(unit, data=cube)
        values.attrs["_FillValue"] = np.float32(-9999)
        values.attrs["grid_mapping"] = "transverse_mercator"
        group["wavelength"] = np.array(CENTRES, "f4")
        group["wavelength"].attrs["units"] = "nm"
        group["fwhm"] = np.full(BANDS, 7.4, "f4")
        file["easting"] = 500000 + 5 * np.arange(COLUMNS) + 2.5
        file["northing"] = 4000000 - 5 * np.arange(ROWS) - 2.5
        mapping = file.create_dataset("transverse_mercator", data=np.zeros((), "S1"))
        mapping.attrs["spatial_ref"] = CRS.from_epsg(32611).to_wkt()
        for axis, name in enumerate((f"{unit}/wavelength", "northing", "easting")):
            file[name].make_scale(name.rpartition("/")[2])
            values.dims[axis].attach_scale(file[name])
    scene = open_scene(tmp_path / "AV3_ORT.nc")
    np.testing.assert_array_equal(scene.values, cube)
    np.testing.assert_allclose(scene.wavelength, CENTRES, rtol=1e-6)
    np.testing.assert_allclose(scene.fwhm, 7.4, rtol=1e-6)
    assert (scene.attrs["unit"], scene.attrs["nodata"]) == (unit, -9999)
    assert scene.rio.crs.to_epsg() == 32611
    np.testing.assert_allclose(
        scene.rio.transform(recalc=False)[:6], (5, 0, 500000, 0, -5, 4000000)
    )
