import numpy as np
import pytest

from vitreous.errors import SceneError
from vitreous.scenes.spectra import Spectra, read_spectra, write_spectra

ECOSTRESS = """Name: Conifer canopy
Type: vegetation
Measurement: Directional Hemispherical Reflectance
First Column: X
Second Column: Y
X Units: Wavelength (micrometers)
Y Units: Reflectance (percent)
Number of X Values: 3

2.5\t40.0
1.0\t50.0
0.4\t5.0
"""
SED = """Comment: field
Version: 2.2 [1.3]
Instrument: PSR+3500_SN1738281 [1]
Units: None
Wavelength Range: 350,2500
Columns [2]:
Data:
Wvl\tReflect. %
350.0\t5.0
351.0\t6.0
352.0\t7.0
"""
ASD = "Wavelength,leaf.001,leaf.002\n350,0.05,0.06\n351,0.051,0.061\n352,0.052,0.062\n"
ACROSS = "wavelength_nm,400,500,600\nsoil,0.1,0.2,0.3\ngrass,0.05,0.1,0.04\n"
USGS = " splib07a Record=5: Actinolite HS116.1B ASDFRb AREF\n 0.1\n -1.23e+34\n 0.3\n"


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize(
    ("text", "centres", "values", "names", "unit"),
    [
        (ECOSTRESS, [400, 1000, 2500], [[0.05, 0.5, 0.4]], ["Conifer canopy"], "reflectance"),
        (ACROSS, [400, 500, 600], [[0.1, 0.2, 0.3], [0.05, 0.1, 0.04]], ["soil", "grass"], "dn"),
    ],
)
def test_texts_that_say_all(tmp_path, text, centres, values, names, unit):
    (tmp_path / "a.txt").write_text(text)
    spectra = read_spectra(tmp_path / "a.txt")
    np.testing.assert_allclose(spectra.wavelengths, centres)
    np.testing.assert_allclose(spectra.values, values)
    assert (spectra.names, spectra.unit) == (names, unit)


@pytest.mark.parametrize(
    ("text", "values", "names"),
    [
        (SED, [[0.05, 0.06, 0.07]], ["Reflect. %"]),
        (ASD, [[0.05, 0.051, 0.052], [0.06, 0.061, 0.062]], ["leaf.001", "leaf.002"]),
        ("350 0.05\n351 0.06\n352 0.07\n", [[0.05, 0.06, 0.07]], ["a"]),
    ],
)
def test_texts_without_a_unit_say_what_is_taken(tmp_path, text, values, names):
    (tmp_path / "a.txt").write_text(text)
    with pytest.warns(UserWarning, match=r"override with --wavelength-unit \.\.\."):
        spectra = read_spectra(tmp_path / "a.txt")
    np.testing.assert_allclose(spectra.wavelengths, [350, 351, 352])
    np.testing.assert_allclose(spectra.values, values)
    assert spectra.names == names
    assert (
        read_spectra(tmp_path / "a.txt", wavelength_unit="nm").values.shape == spectra.values.shape
    )


def test_usgs_keeps_wavelengths_in_a_file_of_their_own(tmp_path):
    (tmp_path / "a.txt").write_text(USGS)
    (tmp_path / "w.txt").write_text(
        " splib07a Record=1: Wavelengths ASD 0.35-2.5 microns\n 0.4\n 0.5\n 0.6\n"
    )
    with pytest.raises(SceneError, match="holds no wavelengths"):
        read_spectra(tmp_path / "a.txt")
    spectra = read_spectra(tmp_path / "a.txt", wavelengths=tmp_path / "w.txt", wavelength_unit="um")
    np.testing.assert_allclose(spectra.wavelengths, [400, 500, 600])
    np.testing.assert_allclose(spectra.values, [[0.1, np.nan, 0.3]])
    assert spectra.names == ["Actinolite HS116.1B ASDFRb AREF"]
    with pytest.raises(SceneError, match="3 bands, but 2 wavelengths"):
        read_spectra(tmp_path / "a.txt", wavelengths=[400, 500])


def test_an_envi_library(tmp_path):
    values = np.array([[0.1, 0.2, -1.23e34], [0.3, 0.4, 0.5]], "<f4")
    values.tofile(tmp_path / "a.sli")
    (tmp_path / "a.hdr").write_text(
        "ENVI\nsamples = 3\nlines = 2\nbands = 1\nheader offset = 0\nfile type = ENVI Spectral Library\n"
        "data type = 4\ninterleave = bsq\nbyte order = 0\nwavelength units = Micrometers\n"
        "reflectance scale factor = 1.0\ndata ignore value = -1.23e+034\n"
        "spectra names = {soil, grass}\nwavelength = {0.4, 0.5, 0.6}\nfwhm = {0.01, 0.01, 0.01}\n"
    )
    for name in ("a.sli", "a.hdr"):
        spectra = read_spectra(tmp_path / name)
        np.testing.assert_allclose(spectra.wavelengths, [400, 500, 600])
        np.testing.assert_allclose(spectra.fwhm, 10)
        np.testing.assert_allclose(spectra.values, [[0.1, 0.2, np.nan], [0.3, 0.4, 0.5]], rtol=1e-6)
        assert (spectra.names, spectra.unit) == (["soil", "grass"], "reflectance")


def test_the_usgs_library(shared_data):
    spectra = read_spectra(shared_data / "spectral_libraries/pycoal/s07_AV95_envi.sli")
    assert spectra.values.shape == (3139, 224)
    assert spectra.names[4].startswith("Actinolite HS116.1B")
    assert 360 < spectra.wavelengths[0] < spectra.wavelengths[-1] < 2520
    assert np.nanmax(spectra.values[4]) < 1.2


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("no numbers\n", "no rows of numbers"), ("1 2\n3\n", "is not 2 numbers")],
)
def test_what_is_no_spectrum_is_said(tmp_path, text, complaint):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(SceneError, match=complaint):
        read_spectra(tmp_path / "a.txt")


def test_written_spectra_are_read_again(tmp_path):
    values = np.array([[0.1, 0.25, np.nan], [0.3, 0.2, 0.1]])
    spectra = Spectra(values, np.array([400.5, 550.0, 2300.25]), ["wet soil, dark", "450"], None)
    write_spectra(spectra, tmp_path / "a.csv")
    again = read_spectra(tmp_path / "a.csv")
    np.testing.assert_allclose(again.values, values)
    np.testing.assert_allclose(again.wavelengths, spectra.wavelengths)
    assert again.names == ["wet soil dark", "450"]


def test_a_unit_of_the_users_that_cannot_be_right_names_the_librarys_option(tmp_path):
    (tmp_path / "a.txt").write_text("0.45 0.05\n0.55 0.06\n0.65 0.07\n")
    with pytest.raises(SceneError, match="use --wavelength-unit um"):
        read_spectra(tmp_path / "a.txt", wavelength_unit="nm")
