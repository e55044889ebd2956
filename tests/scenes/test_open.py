import os
import subprocess
import sys

import numpy as np
import pytest
import rasterio

from vitreous import open_scene
from vitreous.errors import SceneError
from vitreous.scenes import envi, geotiff, numpy_files, zarr_store
from vitreous.scenes.cube import make_scene

WRITERS = {"x.dat": envi, "x.tif": geotiff, "x.npy": numpy_files, "x.zarr": zarr_store}


def scene(**facts):
    values = np.random.default_rng(0).integers(1, 99, (3, 20, 30)).astype("uint16")
    return make_scene(values, wavelengths=[450, 550, 650], crs="EPSG:32611", **facts)


@pytest.mark.parametrize("name", WRITERS)
def test_every_written_format_opens_as_the_same_scene(tmp_path, name):
    WRITERS[name].write(scene(unit="radiance", scale=0.5), tmp_path / name)
    again = open_scene(tmp_path / name)
    assert again.attrs["source"] == str(tmp_path / name)
    assert again.assign_attrs(source="").identical(scene(unit="radiance", scale=0.5))


@pytest.mark.parametrize("name", ["x.tif", "x.npy"])
@pytest.mark.parametrize("other", ["x", "x.dat", "x.img", "x.nc", "x.xyz"])
def test_content_decides_where_the_name_misleads(tmp_path, name, other):
    WRITERS[name].write(scene(), tmp_path / name)
    (tmp_path / name).rename(tmp_path / other)
    np.testing.assert_array_equal(open_scene(tmp_path / other).values, scene().values)


def test_pixels_that_look_like_another_format_stay_envi(tmp_path):
    values = np.full((1, 4, 4), int.from_bytes(b"II*\0", "little"), "uint32")
    envi.write(make_scene(values), tmp_path / "x.raw")
    np.testing.assert_array_equal(open_scene(tmp_path / "x.raw").values, values)


def test_capitals_and_text_paths(tmp_path):
    geotiff.write(scene(), tmp_path / "X.TIF")
    assert open_scene(str(tmp_path / "X.TIF")).shape == (3, 20, 30)


@pytest.mark.parametrize(
    "path",
    [
        "/vsicurl/http://example.org/x.tif",
        "/vsizip/x.zip/x.tif",
        "http://example.org/x.tif",
        "s3://bucket/x.tif",
        "zip:///x.zip!x.tif",
        "GTIFF_DIR:/x",
        "x\0.tif",
    ],
)
def test_only_local_files_are_opened(path):
    with pytest.raises(SceneError, match="not a local file"):
        open_scene(path)


def test_missing_files_suggest_their_neighbours(tmp_path):
    geotiff.write(scene(), tmp_path / "scene.tif")
    with pytest.raises(SceneError, match=r"Did you mean 'scene\.tif'"):
        open_scene(tmp_path / "scene.tiff")
    with pytest.raises(SceneError, match="does not exist"):
        open_scene(tmp_path / "nowhere" / "scene.tif")
    with pytest.raises(SceneError, match=r"cannot be read|does not exist"):
        open_scene("x" * 5000)


def test_empty_unknown_and_strange_files(tmp_path):
    (tmp_path / "x.tif").touch()
    with pytest.raises(SceneError, match="is empty"):
        open_scene(tmp_path / "x.tif")
    (tmp_path / "x.txt").write_text("hello")
    with pytest.raises(SceneError, match="Supported formats: ENVI"):
        open_scene(tmp_path / "x.txt")
    (tmp_path / "x.dat").write_text("hello")
    with pytest.raises(SceneError, match=r"no ENVI header.*x\.dat\.hdr or x\.hdr"):
        open_scene(tmp_path / "x.dat")
    (tmp_path / "x.nc").write_bytes(b"CDF\x01" + bytes(90))
    with pytest.raises(SceneError, match="netCDF-3"):
        open_scene(tmp_path / "x.nc")
    os.mkfifo(tmp_path / "pipe.tif")
    with pytest.raises(SceneError, match="neither a file nor a folder"):
        open_scene(tmp_path / "pipe.tif")


def test_unreadable_file_says_so(tmp_path, monkeypatch):
    geotiff.write(scene(), tmp_path / "x.tif")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(SceneError, match="Permission denied"):
        open_scene(tmp_path / "x.tif")


@pytest.mark.parametrize("name", WRITERS)
def test_common_hints_overrule_every_format(tmp_path, name):
    WRITERS[name].write(scene(), tmp_path / name)
    again = open_scene(
        tmp_path / name,
        unit="reflectance",
        scale="0.0001",
        nodata=7,
        wavelengths=[0.5, 0.6, 2.5],
        wavelength_unit="um",
    )
    assert (again.unit, again.scale, again.nodata) == ("reflectance", 1e-4, 7)
    np.testing.assert_allclose(again.wavelength, [500, 600, 2500])
    assert open_scene(tmp_path / name, nodata="none").nodata is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("450\n550\n650\n", [450, 550, 650]),
        ("wavelength\n450\n550\n650\n", [450, 550, 650]),
        ("band,wavelength_um,fwhm\n1,.45,.01\n2,.55,.01\n\n3,.65,.01\n", [450, 550, 650]),
        ("index,center_nm\n0,450\n1,550\n2,650\n", [450, 550, 650]),
    ],
)
@pytest.mark.filterwarnings("ignore:.*gives no wavelength unit")
def test_wavelengths_from_a_table(tmp_path, text, expected):
    geotiff.write(scene(), tmp_path / "x.tif")
    (tmp_path / "bands.csv").write_text(text)
    again = open_scene(tmp_path / "x.tif", wavelengths=tmp_path / "bands.csv")
    np.testing.assert_allclose(again.wavelength, expected)


@pytest.mark.filterwarnings("ignore:.*gives no wavelength unit")
@pytest.mark.parametrize(
    ("hints", "message"),
    [
        ({"unti": "dn"}, "Did you mean 'unit'"),
        ({"variable": "x"}, "Unknown hint 'variable'"),
        ({"unit": "dB"}, "dB"),
        ({"scale": 0}, "positive"),
        ({"scale": "big"}, "number"),
        ({"nodata": "x"}, "number"),
        ({"wavelengths": [450, 550]}, "3 bands but 2 values of wavelength"),
        ({"wavelengths": [500, -1, 600]}, "are invalid"),
        ({"wavelengths": ["a", "b", "c"]}, "not a list"),
        ({"wavelengths": 5}, "not a list"),
        ({"wavelengths": "missing.csv"}, "does not exist"),
        ({"wavelengths": [1, 2, 3], "wavelength_unit": "furlong"}, "furlong"),
    ],
)
def test_wrong_hints_are_refused(tmp_path, hints, message):
    geotiff.write(scene(), tmp_path / "x.tif")
    with pytest.raises(SceneError, match=message):
        open_scene(tmp_path / "x.tif", **hints)


@pytest.mark.parametrize(
    "text", ["a,b\n1,2\n", "wavelength\nx\n", "", "band,wavelength\n1\n", "\0"]
)
def test_useless_tables_are_refused(tmp_path, text):
    geotiff.write(scene(), tmp_path / "x.tif")
    (tmp_path / "bands.csv").write_text(text)
    with pytest.raises(SceneError):
        open_scene(tmp_path / "x.tif", wavelengths=str(tmp_path / "bands.csv"))


def test_a_lone_wavelength_unit_needs_a_format_with_units(tmp_path):
    path = tmp_path / "T33UUU_20170216T102101_B02.jp2"
    with rasterio.open(
        path, "w", driver="JP2OpenJPEG", count=1, height=64, width=64, dtype="uint16"
    ) as dataset:
        dataset.write(np.ones((1, 64, 64), "uint16"))
    with pytest.raises(SceneError, match="wavelengths="):
        open_scene(path, wavelength_unit="um")


def test_readers_are_imported_when_needed():
    code = "import sys, vitreous.scenes; print([m for m in ('torch', 'sklearn', 'h5py', 'geopandas') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
