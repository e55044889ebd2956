"""Faults of real files, by kind: each is read right, asked about with the answers, or refused in words."""

import json
import re
import warnings

import h5py
import numpy as np
import pytest
import rasterio
import scipy.io
import xarray as xr
import zarr
from rasterio import Affine
from rasterio.enums import ColorInterp

from vitreous import open_labels, open_scene
from vitreous.errors import SceneError
from vitreous.scenes import geotiff
from vitreous.scenes.cube import georeference, make_scene, read_window

tifffile = pytest.importorskip("tifffile")
pytestmark = pytest.mark.filterwarnings("ignore")

GRID = Affine(10, 0, 500000, 0, -10, 5000000)
TRUTH = np.repeat(np.repeat([[1, 2], [3, 4]], 4, 0), 5, 1).astype("uint8")  # 8 rows, 10 columns
X, Y = 500005.0 + 10 * np.arange(10), 4999995.0 - 10 * np.arange(8)
NM = [450.0, 550.0, 650.0]


def cube(bands=3, rows=8, columns=10, dtype="int16"):
    """Every value tells where it is: 1000 x band + 10 x row + column."""
    b, y, x = np.meshgrid(range(bands), range(rows), range(columns), indexing="ij")
    return (1000 * b + 10 * y + x + 1).astype(dtype)


def scene():
    return make_scene(cube(), crs="EPSG:32632", transform=GRID)


def window(scene):
    return read_window(scene, slice(0, scene.sizes["y"]), slice(0, scene.sizes["x"]))


def said(call, *arguments, **settings):
    """Return what a call gives, and its warnings in one text."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = call(*arguments, **settings)
    return result, " ".join(str(w.message) for w in caught if w.category is UserWarning)


# -- 1. labels in files of arrays -------------------------------------------------------------------------


def labels_array(values=TRUTH, x=X, y=Y, dims=("y", "x"), **attrs):
    return xr.DataArray(values, dims=dims, coords={"y": y, "x": x}, name="labels", attrs=attrs)


def put_netcdf(array, path, **encoding):
    array.to_netcdf(path, engine="h5netcdf", encoding={"labels": encoding})


def put_zarr(zarr_format):
    def put(array, path, **encoding):
        array.to_dataset().to_zarr(path, zarr_format=zarr_format, encoding={"labels": encoding})

    return put


KEEPERS = {"nc": put_netcdf, "zarr2": put_zarr(2), "zarr3": put_zarr(3)}


@pytest.mark.parametrize("kind", KEEPERS)
@pytest.mark.parametrize(
    "change",
    ["as it is", "south up", "columns first", "south up, columns first", "time axis", "mirrored"],
)
def test_labels_lie_where_their_coordinates_say(tmp_path, kind, change):
    array = labels_array()
    if "south up" in change:
        array = array[::-1]
    if "columns first" in change:
        array = array.T
    if "time" in change:
        array = array.expand_dims("time")
    if "mirrored" in change:
        array = array[:, ::-1]
    KEEPERS[kind](array, tmp_path / f"gt.{kind[:4].strip('23')}")
    labels = open_labels(next(tmp_path.glob("gt.*")), scene())
    np.testing.assert_array_equal(labels, TRUTH)
    assert georeference(labels)[1] == GRID


@pytest.mark.parametrize("kind", KEEPERS)
@pytest.mark.parametrize(
    ("stored", "encoding", "attrs"),
    [
        ("float32", {"dtype": "uint8", "_FillValue": 255}, {}),
        ("float32", {"dtype": "int16", "_FillValue": -9999}, {}),
        ("float32", {"_FillValue": -9999.0}, {}),
        ("int16", {}, {"missing_value": np.int16(-1)}),
        ("int16", {}, {"nodata": np.int16(99)}),
    ],
)
def test_labels_know_their_nodata(tmp_path, kind, stored, encoding, attrs):
    values = TRUTH.astype(stored)
    values[0] = np.nan if stored == "float32" else next(iter(attrs.values()))
    KEEPERS[kind](
        labels_array(values, **attrs), tmp_path / f"gt.{kind[:4].strip('23')}", **encoding
    )
    labels = open_labels(next(tmp_path.glob("gt.*")), scene())
    np.testing.assert_array_equal(labels, np.where(np.arange(8)[:, None] == 0, 0, TRUTH))


@pytest.mark.parametrize("kind", KEEPERS)
def test_labels_of_another_place_are_refused(tmp_path, kind):
    KEEPERS[kind](labels_array(x=X + 5000), tmp_path / f"gt.{kind[:4].strip('23')}")
    with pytest.raises(SceneError, match="do not overlap"):
        open_labels(next(tmp_path.glob("gt.*")), scene())


def test_labels_in_npz_have_coordinates_and_nodata_too(tmp_path):
    np.savez(tmp_path / "a.npz", labels=TRUTH[::-1].T, x=X, y=Y[::-1], nodata=4)
    labels, words = said(open_labels, tmp_path / "a.npz", scene())
    np.testing.assert_array_equal(labels, np.where(TRUTH == 4, 0, TRUTH))
    assert "resampled" in words


def test_class_names_of_cf_flags(tmp_path):
    attrs = {"flag_values": np.array([1, 2, 3, 4], "i1"), "flag_meanings": "water soil corn wood"}
    put_netcdf(labels_array(**attrs), tmp_path / "gt.nc")
    assert open_labels(tmp_path / "gt.nc", scene()).class_names == ["water", "soil", "corn", "wood"]


# -- 2. units of wavelengths ------------------------------------------------------------------------------


def put_tiff(path, values=None, band_tags=None, imagery=None, tags=None, ns=None, **profile):
    values = cube() if values is None else values
    with rasterio.open(
        path, "w", driver="GTiff", count=len(values), height=values.shape[1],
        width=values.shape[2], dtype=values.dtype, **profile,
    ) as file:  # fmt: skip
        file.write(values)
        for band in file.indexes:
            for space, wanted in ((None, band_tags), ("IMAGERY", imagery)):
                if wanted:
                    file.update_tags(band, ns=space, **{k: v[band - 1] for k, v in wanted.items()})
        if tags:
            file.update_tags(ns=ns, **tags)
    return path


@pytest.mark.parametrize(
    ("band_tags", "imagery"),
    [
        ({"wavelength": NM, "wavelength_units": ["nm"] * 3}, {"FWHM_UM": [0.01] * 3}),
        (
            {"fwhm": [10] * 3, "wavelength_units": ["nm"] * 3},
            {"CENTRAL_WAVELENGTH_UM": [0.45, 0.55, 0.65]},
        ),
        ({}, {"CENTRAL_WAVELENGTH_UM": [0.45, 0.55, 0.65], "FWHM_UM": [0.01] * 3}),
        (
            {
                "wavelength": [0.45, 0.55, 0.65],
                "fwhm": [0.01] * 3,
                "wavelength_units": ["Micrometers"] * 3,
            },
            {},
        ),
        (
            {
                "wavelength": [0.45, 0.55, 0.65],
                "fwhm": [0.01] * 3,
                "wavelength_units": ["Nanometers"] * 3,
            },
            {},
        ),
        ({"wavelength": NM, "fwhm": [10] * 3}, {}),
        ({"wavelength": NM, "fwhm": [0.01] * 3, "wavelength_units": ["nm"] * 3}, {}),
        ({"wavelength": [0.45, 0.55, 0.65], "fwhm": [10] * 3, "wavelength_units": ["um"] * 3}, {}),
    ],
)
def test_every_source_keeps_its_own_unit(tmp_path, band_tags, imagery):
    opened = open_scene(put_tiff(tmp_path / "x.tif", band_tags=band_tags, imagery=imagery))
    np.testing.assert_allclose(opened.wavelength, NM)
    np.testing.assert_allclose(opened.fwhm, 10)


@pytest.mark.parametrize(
    ("values", "unit", "expected", "words"),
    [
        (NM, "nm", NM, ""),
        (NM, "um", NM, "outside the optical range; assumed to be"),
        ([0.45, 0.55, 0.65], "Nanometers", NM, "outside the optical range; assumed to be"),
        ([4.5e-7, 5.5e-7, 6.5e-7], "m", NM, ""),
        ([4.5e-7, 5.5e-7, 6.5e-7], "nm", NM, "outside the optical range; assumed to be"),
        ([4500, 5500, 6500], "Angstrom", NM, ""),
        ([40, 60, 90], "nm", [40, 60, 90], "outside the optical range in any unit"),
        (NM, "", NM, "gives no wavelength unit"),
        ([0.45, 0.55, 0.65], "unknown", NM, "gives no wavelength unit"),
        ([8.5, 10.5, 12.5], "um", [8500, 10500, 12500], ""),
        ([1, 2, 3], "", None, "only counts the bands"),
    ],
)
@pytest.mark.parametrize("kind", ["nc", "mat", "npz"])
def test_units_are_compared_with_the_numbers(tmp_path, kind, values, unit, expected, words):
    values = np.asarray(values, "float64")
    path = tmp_path / f"a.{kind}"
    if kind == "nc":
        with h5py.File(path, "w") as file:
            file["cube"] = cube(3, 8, 12)
            file["wavelength"] = values
            file["wavelength"].attrs["Units"] = unit
    elif unit:
        return  # no place for a unit
    elif kind == "mat":
        scipy.io.savemat(path, {"cube": cube(3, 8, 12).transpose(1, 2, 0), "wavelength": values})
    else:
        np.savez(path, cube=cube(3, 8, 12), wavelength=values)
    order = {} if expected is not None else {"axis_order": "yxb" if kind == "mat" else "byx"}
    opened, found = said(open_scene, path, **order)
    if expected is None:
        assert "wavelength" not in opened.coords
    else:
        np.testing.assert_allclose(opened.wavelength, expected)
    assert words in found and bool(words) == bool(found)


def test_a_unit_of_the_users_that_cannot_be_right_is_refused(tmp_path):
    path = put_tiff(tmp_path / "x.tif", band_tags={"wavelength": [0.45, 0.55, 0.65]})
    with pytest.raises(SceneError, match="use --hints wavelength_unit=um"):
        open_scene(path, wavelength_unit="nm")
    np.testing.assert_allclose(open_scene(path, wavelength_unit="um").wavelength, NM)
    with pytest.raises(SceneError, match="outside the optical range"):
        open_scene(path, wavelengths="450,550,650", wavelength_unit="um")


def test_the_wavelength_0_means_not_used(tmp_path):
    path = put_tiff(
        tmp_path / "x.tif", band_tags={"wavelength": [0, 550, 650], "wavelength_units": ["nm"] * 3}
    )
    opened, words = said(open_scene, path)
    assert opened.good_band.values.tolist() == [False, True, True]
    assert "wavelength 0 for bands 1" in words
    assert np.isfinite(window(opened)).all() and window(opened).shape[0] == 2


# -- 3. axes ----------------------------------------------------------------------------------------------


def put_h5(path, shape=None, values=None, attrs=None, of_file=None, matlab=False, **more):
    with h5py.File(path, "w") as file:
        if values is None:
            data = file.create_dataset("cube", shape=shape, dtype="u1", chunks=True)
        else:
            data = file.create_dataset("cube", data=values)
        data.attrs.update(attrs or {})
        file.attrs.update(of_file or {})
        for name, value in more.items():
            file[name] = value
        if matlab:
            data.attrs["MATLAB_class"] = np.bytes_("uint8")
    return path


@pytest.mark.parametrize(
    ("shape", "answers"),
    [
        ((224, 512, 217), ["byx", "yxb"]),
        ((103, 150, 160), ["byx", "yxb"]),
        ((610, 103, 340), ["ybx", "yxb"]),
        ((60, 66, 58), ["byx", "ybx", "yxb"]),
        ((64, 64, 64), ["byx", "ybx", "yxb"]),
        ((9, 30, 200), ["byx", "yxb"]),
    ],
)
@pytest.mark.parametrize("kind", ["h5", "npy", "npz", "zarr"])
def test_open_axes_are_a_question_with_the_answers(tmp_path, shape, answers, kind):
    path = tmp_path / f"a.{kind}"
    if kind == "h5":
        put_h5(path, shape)
    elif kind == "npy":
        np.lib.format.open_memmap(path, "w+", "u1", shape)
    elif kind == "npz":
        np.savez_compressed(path, cube=np.zeros(shape, "u1"))
    else:
        zarr.open_group(path, mode="w").create_array("cube", shape=shape, dtype="u1")
    with pytest.raises(SceneError) as caught:
        open_scene(path)
    for answer in answers:
        assert f"axis_order={answer} if it is {shape[answer.index('b')]} bands" in str(caught.value)
        assert open_scene(path, axis_order=answer).sizes["band"] == shape[answer.index("b")]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((1216, 66, 1208), (66, 1216, 1208)),
        ((426, 655, 640), (426, 655, 640)),
        ((610, 340, 103), (103, 610, 340)),
        ((145, 145, 200), (200, 145, 145)),
        ((200, 145, 145), (200, 145, 145)),
    ],
)
def test_one_possible_axis_is_no_question(tmp_path, shape, expected):
    assert open_scene(put_h5(tmp_path / "a.h5", shape)).shape == expected
    assert open_scene(put_h5(tmp_path / "a.mat", shape)).shape == expected  # by h5py, not MATLAB


def test_attributes_decide(tmp_path):
    shape, listed = (60, 66, 58), np.linspace(400, 1000, 58)
    for place in ("attrs", "of_file"):
        for name in ("wavelengths", "List_Cw_Vnir", "Center_Wavelengths"):
            path = put_h5(tmp_path / "a.h5", shape, **{place: {name: listed}})
            opened = open_scene(path)
            assert opened.shape == (58, 60, 66)
            np.testing.assert_allclose(opened.wavelength, listed)


def test_the_nearer_of_two_lists_belongs_to_a_cube(tmp_path):
    near, far = np.linspace(400, 1000, 66), np.linspace(920, 2500, 66)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["G/VNIR_Cube"] = np.zeros((60, 66, 58), "u1")
        file["G/SWIR_Cube"] = np.zeros((60, 66, 58), "u1")
        file.attrs["List_Cw_Vnir"], file.attrs["List_Cw_Swir"] = near, far
    with pytest.raises(SceneError, match="2 cubes"):
        open_scene(tmp_path / "a.h5")
    for name, listed in (("G/VNIR_Cube", near), ("G/SWIR_Cube", far)):
        np.testing.assert_allclose(open_scene(tmp_path / "a.h5", variable=name).wavelength, listed)


def test_a_label_image_in_the_file_decides(tmp_path):
    for name in ("map", "gt", "slope"):
        path = put_h5(tmp_path / "a.h5", (60, 66, 58), **{name: np.zeros((60, 66), "u1")})
        assert open_scene(path).shape == (58, 60, 66)
        path = put_h5(tmp_path / "a.h5", (60, 66, 58), **{name: np.zeros((60, 58), "u1")})
        assert open_scene(path).shape == (66, 60, 58)


def test_as_many_wavelengths_as_bands_decide(tmp_path):
    path = put_h5(tmp_path / "a.h5", (60, 66, 58))
    assert open_scene(path, wavelengths=np.linspace(400, 900, 58)).shape == (58, 60, 66)
    assert open_scene(path, wavelengths=np.linspace(400, 900, 60)).shape == (60, 66, 58)


@pytest.mark.parametrize(
    "dims",
    [("y", "x", "wavelength"), ("wavelength", "x", "y"), ("lon", "lat", "bands"), ("rows", "nbands", "cols"),
     ("number_of_lines", "pixels_per_line", "number_of_bands"), ("time", "y", "x")],
)  # fmt: skip
def test_names_of_dimensions_decide(tmp_path, dims):
    stored = cube(60, 66, 58, "float32")
    letters = {
        "w": "b",
        "b": "b",
        "t": "b",
        "y": "y",
        "l": "y",
        "r": "y",
        "x": "x",
        "c": "x",
        "p": "x",
    }
    order = [
        "b"
        if "band" in d
        else "x"
        if d == "lon"
        else "y"
        if d.startswith("number")
        else letters[d[0]]
        for d in dims
    ]
    array = xr.DataArray(stored.transpose(["byx".index(k) for k in order]), dims=dims, name="r")
    array.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    np.testing.assert_array_equal(open_scene(tmp_path / "a.nc").values, stored)


def test_matlab_stores_rows_columns_bands(tmp_path):
    """The file's kind decides where MATLAB wrote it; what looks as much like bands first is asked."""
    for shape in ((512, 217, 224), (610, 340, 103), (51, 56, 224)):
        scipy.io.savemat(tmp_path / "a.mat", {"cube": np.zeros(shape, "u1")})
        assert open_scene(tmp_path / "a.mat").shape == (shape[2], *shape[:2])
    for shape in ((224, 512, 217), (103, 150, 160)):
        scipy.io.savemat(tmp_path / "a.mat", {"cube": np.zeros(shape, "u1")})
        with pytest.raises(SceneError, match=r"axis_order=byx.*axis_order=yxb"):
            open_scene(tmp_path / "a.mat")
        gt = np.zeros(shape[1:], "u1")
        scipy.io.savemat(tmp_path / "a.mat", {"cube": np.zeros(shape, "u1"), "gt": gt})
        assert open_scene(tmp_path / "a.mat").shape == shape


# -- 4. nodata by any spelling ----------------------------------------------------------------------------

SPELLINGS = (
    *("_FillValue", "missing_value", "Data_Ignore_Value", "data ignore value", "DATA_IGNORE_VALUE"),
    *("nodata", "NoData", "no_data", "nodata_value", "NoDataValue", "fill_value", "FillValue"),
)


@pytest.mark.parametrize("name", SPELLINGS)
def test_nodata_in_attributes_has_any_spelling(tmp_path, name):
    values = cube(3, 8, 12)
    values[:, 0, 0] = -9999
    path = put_h5(
        tmp_path / "a.h5",
        values=values,
        attrs={name: np.float64(-9999), "DIMENSION_LABELS": ["band", "y", "x"]},
    )
    opened = open_scene(path)
    assert opened.nodata == -9999
    assert np.isnan(window(opened)[:, 0, 0]).all() and np.isfinite(window(opened)).sum() == 3 * 95


def test_two_nodata_values_and_valid_ranges_all_count(tmp_path):
    values = cube(3, 8, 12)
    values[0, 0, 0], values[1, 0, 1], values[2, 0, 2], values[2, 0, 3] = -9999, -32767, -5, 20_000
    attrs = {"_FillValue": -9999, "missing_value": [-32767, -9999], "valid_range": [0, 10_000]}
    path = put_h5(
        tmp_path / "a.h5", values=values, attrs={**attrs, "DIMENSION_LABELS": ["band", "y", "x"]}
    )
    invalid = np.isnan(window(open_scene(path))[0])
    assert invalid[0, :4].all() and invalid.sum() == 4


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("dtype", ["int16", "float32", "float64"])
def test_nodata_of_xarray_in_zarr(tmp_path, zarr_format, dtype):
    values = cube(3, 8, 12, "float32")
    values[:, 0, 0] = np.nan
    array = xr.DataArray(values, dims=("band", "y", "x"), name="r").to_dataset()
    encoding = {"r": {"_FillValue": -9999.0 if dtype[0] == "f" else -9999, "dtype": dtype}}
    array.to_zarr(tmp_path / "a.zarr", zarr_format=zarr_format, encoding=encoding)
    opened = open_scene(tmp_path / "a.zarr")
    assert opened.nodata == -9999
    assert np.isnan(window(opened)[:, 0, 0]).all() and np.isfinite(window(opened)).sum() == 3 * 95


def test_zeros_are_no_nodata_because_zarr_fills_with_them(tmp_path):
    values = cube(3, 8, 12)
    values[:, 0, 0] = 0
    array = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2).create_array(
        "c", data=values
    )
    array.attrs["_ARRAY_DIMENSIONS"] = ["band", "y", "x"]
    assert open_scene(tmp_path / "a.zarr").nodata is None


def header(path, values, kind="h", suffix=".img", interleave="bsq", **keys):
    bands, lines, samples = values.shape
    code = {"int16": 2, "float32": 4, "float64": 5, "uint8": 1}[str(values.dtype)]
    values.astype(values.dtype.newbyteorder("<")).tofile(path.with_suffix(suffix))
    every = {
        "samples": samples,
        "lines": lines,
        "bands": bands,
        "data type": code,
        "interleave": interleave,
        **keys,
    }
    path.with_suffix(".hdr").write_text(
        "ENVI\n" + "\n".join(f"{k} = {v}" for k, v in every.items()) + "\n"
    )
    return path.with_suffix(".hdr")


@pytest.mark.parametrize(
    "key", ["data ignore value", "data_ignore_value", "Data_Ignore_Value", "DATA IGNORE VALUE"]
)
def test_keys_of_envi_have_any_spelling(tmp_path, key):
    names = {
        "wavelength_units": "nm",
        "Wavelength": "{450, 550, 650}",
        "band_names": "{a, b, c}",
        "bbl": "{1, 0, 1}",
    }
    opened = open_scene(header(tmp_path / "x", cube(), **{key: -99}, **names))
    assert opened.nodata == -99 and opened.band_name.values.tolist() == ["a", "b", "c"]
    assert opened.wavelength.values.tolist() == NM and opened.good_band.values.tolist() == [
        True,
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("text", "value", "dtype"),
    [
        ("-3.40282e+38", np.finfo("f4").min, "float32"),
        ("-3.4028235e+38", np.finfo("f4").min, "float32"),
        ("3.402823e+38", np.finfo("f4").max, "float32"),
        ("-1.79769e+308", np.finfo("f8").min, "float64"),
        ("-1.23e+34", -1.23e34, "float32"),
        ("1e20", 1e20, "float32"),
        ("nan", np.nan, "float32"),
    ],
)
def test_rounded_texts_of_nodata_still_match(tmp_path, text, value, dtype):
    values = cube(dtype=dtype)
    values[:, 0, 0] = value
    opened = open_scene(header(tmp_path / "x", values, **{"data ignore value": text}))
    assert np.isnan(window(opened)[:, 0, 0]).all()
    assert np.isfinite(window(opened)).sum() == 3 * 79


def test_neon_keeps_the_divisor_the_place_and_the_nodata_in_words_of_its_own(tmp_path):
    values = cube(20, 8, 10).transpose(1, 2, 0)
    values[0, 0] = -9999
    with h5py.File(tmp_path / "NEON.h5", "w") as file:
        data = file.create_dataset("SITE/Reflectance/Reflectance_Data", data=values)
        data.attrs["Data_Ignore_Value"], data.attrs["Scale_Factor"] = -9999.0, 10000.0
        spectral = file.create_group("SITE/Reflectance/Metadata/Spectral_Data")
        spectral["Wavelength"] = np.linspace(0.38, 2.5, 20)
        spectral["Wavelength"].attrs["Units"] = "micrometers"
        spectral["FWHM"] = np.full(20, 5.0)
        spectral["FWHM"].attrs["Units"] = "nanometers"
        place = file.create_group("SITE/Reflectance/Metadata/Coordinate_System")
        place["Map_Info"] = (
            "UTM, 1.000, 1.000, 257000.00, 4112000.00,1.0,1.0,11,North,WGS-84,units=Meters, 0"
        )
        place["EPSG Code"] = "32611"
    opened = open_scene(tmp_path / "NEON.h5")
    assert (opened.nodata, opened.scale, opened.unit) == (-9999, 1e-4, "reflectance")
    crs, transform = georeference(opened)
    assert (crs.to_epsg(), transform) == (32611, Affine(1, 0, 257000, 0, -1, 4112000))
    np.testing.assert_allclose(opened.wavelength, np.linspace(380, 2500, 20))
    np.testing.assert_allclose(opened.fwhm, 5)


# -- 5. validity is more than nodata ----------------------------------------------------------------------


def put_mask(path, where, values=None, *, external=False, **profile):
    settings = {"GDAL_TIFF_INTERNAL_MASK": not external}
    with rasterio.Env(**settings):
        values = cube(dtype="uint8") if values is None else values
        with rasterio.open(
            path, "w", driver="GTiff", count=len(values), height=values.shape[1],
            width=values.shape[2], dtype=values.dtype, **profile,
        ) as file:  # fmt: skip
            file.write(values)
            file.write_mask(where)
    return path


HOLE = np.arange(80).reshape(8, 10) % 7 != 0


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_masks_hide_pixels(tmp_path, external, dtype):
    path = put_mask(tmp_path / "x.tif", HOLE, cube(dtype=dtype), external=external)
    values = window(open_scene(path))
    np.testing.assert_array_equal(np.isfinite(values), np.broadcast_to(HOLE, values.shape))
    np.testing.assert_array_equal(values[:, HOLE], cube(dtype=dtype)[:, HOLE])
    part = read_window(open_scene(path), slice(2, 7), slice(3, 9))
    np.testing.assert_array_equal(np.isfinite(part[0]), HOLE[2:7, 3:9])


@pytest.mark.parametrize("external", [False, True])
def test_masks_hide_labels(tmp_path, external):
    labels = open_labels(put_mask(tmp_path / "x.tif", HOLE, TRUTH[None], external=external))
    np.testing.assert_array_equal(labels, np.where(HOLE, TRUTH, 0))


@pytest.mark.parametrize(("dtype", "full"), [("uint8", 255), ("uint16", 65535)])
@pytest.mark.parametrize("position", [0, 3])
def test_an_alpha_band_is_a_mask(tmp_path, dtype, full, position):
    measured = cube(dtype=dtype)
    values = np.insert(measured, position, np.where(HOLE, full, 0), axis=0)
    kinds = [ColorInterp.gray] * 3
    kinds.insert(position, ColorInterp.alpha)
    path = put_tiff(tmp_path / "x.tif", values, photometric="minisblack")
    with rasterio.open(path, "r+") as file:
        file.colorinterp = kinds
    opened = open_scene(path)
    assert opened.shape == (3, 8, 10)
    np.testing.assert_array_equal(window(opened), np.where(HOLE, measured, np.nan))
    geotiff.write(opened, tmp_path / "again.tif")
    np.testing.assert_array_equal(window(open_scene(tmp_path / "again.tif")), window(opened))


def test_near_infrared_declared_as_alpha_stays_a_band(tmp_path):
    values = np.random.default_rng(0).integers(0, 255, (4, 30, 30)).astype("uint8")
    path = put_tiff(tmp_path / "x.tif", values)  # GDAL calls the fourth of four 8-bit bands alpha
    opened, words = said(open_scene, path)
    np.testing.assert_array_equal(opened.values, values)
    assert "band 4 is declared as transparency, but holds measurements" in words


def test_bands_with_nodata_values_of_their_own(tmp_path):
    path = tmp_path / "x.vrt.tif"
    put_tiff(path, cube(dtype="float32"), nodata=1)
    assert np.isnan(window(open_scene(path))[:, 0, 0]).all()


def test_bands_are_selected_by_number_and_name(tmp_path):
    tags = {"wavelength": [400, 500, 600, 700, 800], "wavelength_units": ["nm"] * 5}
    path = put_tiff(tmp_path / "x.tif", cube(5), tags and tags, crs="EPSG:32632", transform=GRID)
    for given, index in (("1-2,5", [0, 1, 4]), ("2-4", [1, 2, 3]), ([3, 1], [2, 0]), (2, [1])):
        opened = open_scene(path, bands=given)
        np.testing.assert_array_equal(opened.values, cube(5)[index])
        np.testing.assert_array_equal(opened.wavelength, np.array(tags["wavelength"])[index])
        assert georeference(opened)[1] == GRID
    for wrong, words in (
        ("6", "5 bands"),
        ("0", "5 bands"),
        ("a", "no band 'a'"),
        ("1,1", "twice"),
    ):
        with pytest.raises(SceneError, match=words):
            open_scene(path, bands=wrong)
    named = open_scene(
        header(tmp_path / "y", cube(), **{"band names": "{B02, B03, B8A}"}), bands="B8A,B02"
    )
    np.testing.assert_array_equal(named.values, cube()[[2, 0]])


def test_quality_bands_of_landsat_hide_clouds(tmp_path):
    path = put_tiff(tmp_path / "LC08_SR.tif", crs="EPSG:32632", transform=GRID)
    quality = np.full((8, 10), 21824, "uint16")  # clear
    quality[1, 1], quality[2, 2], quality[3, 3], quality[4, 4], quality[5, 5] = (
        1,
        22280,
        23888,
        21826,
        54596,
    )
    put_tiff(tmp_path / "LC08_QA_PIXEL.TIF", quality[None], crs="EPSG:32632", transform=GRID)
    for mask in ("qa", str(tmp_path / "LC08_QA_PIXEL.TIF")):
        hidden = np.isnan(window(open_scene(path, mask=mask))[0])
        assert hidden[[1, 2, 3, 4, 5], [1, 2, 3, 4, 5]].all() and hidden.sum() == 5
    put_tiff(tmp_path / "cloud.tif", (quality != 21824).astype("uint8")[None])
    with pytest.raises(SceneError, match=r"mask_values=0.*mask_values=1"):
        open_scene(path, mask=tmp_path / "cloud.tif")
    assert (
        np.isnan(window(open_scene(path, mask=tmp_path / "cloud.tif", mask_values=1))[0]).sum() == 5
    )
    put_tiff(tmp_path / "small.tif", np.zeros((1, 4, 4), "uint8"))
    with pytest.raises(SceneError, match="4 x 4 pixels"):
        open_scene(path, mask=tmp_path / "small.tif", mask_values=1)


# -- 6. several images in one file ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_one_band_a_page(tmp_path, dtype):
    with tifffile.TiffWriter(tmp_path / "x.tif") as file:
        for band in cube(12, dtype=dtype):
            file.write(band, photometric="minisblack", metadata=None, contiguous=False)
    opened = open_scene(tmp_path / "x.tif")
    np.testing.assert_array_equal(opened.values, cube(12, dtype=dtype))
    np.testing.assert_array_equal(
        opened[3:9:2, 1:5, ::3].values, cube(12, dtype=dtype)[3:9:2, 1:5, ::3]
    )
    np.testing.assert_array_equal(
        open_scene(tmp_path / "x.tif", page=5).values[0], cube(12, dtype=dtype)[4]
    )


@pytest.mark.parametrize(
    "shape", [(12, 20, 24), (20, 24, 12), (145, 145, 20), (20, 145, 145), (61, 34, 10)]
)
def test_arrays_of_tifffile_are_right_or_a_question(tmp_path, shape):
    values = np.arange(np.prod(shape)).reshape(shape).astype("uint16")
    tifffile.imwrite(tmp_path / "x.tif", values, photometric="minisblack")
    band = {12: None, 20: 20, 10: 10}[min(shape)]
    try:
        opened = open_scene(tmp_path / "x.tif")
    except SceneError as error:
        assert "axis_order" in str(error)
        for order in re.findall(r"axis_order=(\w+)", str(error)):
            given = open_scene(tmp_path / "x.tif", axis_order=order)
            np.testing.assert_array_equal(
                given.values, values.transpose([order.index(k) for k in "byx"])
            )
    else:
        axis = shape.index(band)
        np.testing.assert_array_equal(opened.values, np.moveaxis(values, axis, 0))


def test_images_of_different_sizes_are_a_question(tmp_path):
    with tifffile.TiffWriter(tmp_path / "x.tif") as file:
        file.write(cube()[0], photometric="minisblack", metadata=None)
        file.write(cube()[0, :4], photometric="minisblack", metadata=None)
    with pytest.raises(SceneError, match="page=1 to page=2"):
        open_scene(tmp_path / "x.tif")
    np.testing.assert_array_equal(open_scene(tmp_path / "x.tif", page="2").values, cube()[:1, :4])
    with pytest.raises(SceneError):
        open_labels(tmp_path / "x.tif")


# -- 8. stray lines and unknown keys ----------------------------------------------------------------------


def envi_text(tmp_path, more):
    path = header(tmp_path / "x", cube())
    path.write_text(path.read_text() + more)
    return path


@pytest.mark.parametrize(
    "more",
    [
        "wavelength units = nm\nwavelength =\n{450,\n550, 650}\n",
        "wavelength units = nm\nwavelength = \n\n  {450, 550,\n650\n}\n",
        "wavelength units = nm\nwavelength={450,550,650,}\n",
        "wavelength units = nm\nwavelength = {450;550;650}\n",
        "wavelength units = nm\nwavelength = {450 550\n 650}\n",
        "description = {made {by} hand}\nwavelength units = nm\nwavelength = {450, 550, 650}\n",
        "description = {\n  a {x}\n  bands = 9 of {y}\n}\nwavelength units = nm\nwavelength = {450, 550, 650}\n",
        "description = {half { open}\nwavelength units = nm\nwavelength = {450, 550, 650}\n",
        "band names = {Band 1 (450.0 Nanometers), Band 2 (550.0 Nanometers), Band 3 (650.0 Nanometers)}\n",
        "band names = {450 nm, 0.55 um, 650.0 nm: red}\n",
        "wavelength units = nm\nband names = {450.0, 550.0, 650.0}\n",
        "band names = {a {1, 2}, b (3, 4), c}\nwavelength units = nm\nwavelength = {450, 550, 650}\n",
    ],
)
def test_lists_of_envi_in_every_form(tmp_path, more):
    opened = open_scene(envi_text(tmp_path, more))
    assert opened.wavelength.values.tolist() == NM
    assert opened.shape == (3, 8, 10)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("450, 550, 650\n", "1 lines do not belong to a key"),
        ("wavelenght = {450, 550, 650}\n", "did you mean 'wavelength'"),
        ("data ignor value = 3\n", "did you mean 'data ignore value'"),
    ],
)
def test_what_is_skipped_is_said(tmp_path, more, words):
    assert words in said(open_scene, envi_text(tmp_path, more))[1]


# -- 9. hints come first ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "hints"),
    [
        ("wavelength units = nm\nwavelength = {0, -1, x}\n", {"wavelengths": "450,550,650"}),
        ("wavelength = {1, 2}\n", {"wavelengths": "{450, 550, 650}"}),
        (
            "wavelength units = furlong\nwavelength = {1, 2, 3}\n",
            {"wavelengths": [0.45, 0.55, 0.65], "wavelength_unit": "um"},
        ),
        ("data ignore value = x\n", {"nodata": "-9", "wavelengths": (450, 550, 650)}),
        (
            "reflectance scale factor = 0\n",
            {"scale": "1e-4", "unit": "reflectance", "wavelengths": "450 550 650"},
        ),
    ],
)
def test_a_hint_replaces_a_faulty_value(tmp_path, more, hints):
    path = envi_text(tmp_path, more)
    opened = open_scene(path, **hints)
    np.testing.assert_allclose(opened.wavelength, NM)
    if "nodata" in hints:
        assert opened.nodata == -9


@pytest.mark.parametrize(
    "faulty", [{"wavelength": [0.0, -5.0, 1e9]}, {"wavelength": NM, "_": "furlong"}]
)
def test_a_hint_replaces_a_faulty_list_of_an_array_file(tmp_path, faulty):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["cube"] = cube(3, 8, 12)
        file["wavelength"] = faulty["wavelength"]
        file["wavelength"].attrs["units"] = faulty.get("_", "nm")
    with pytest.raises(SceneError):
        open_scene(tmp_path / "a.h5")
    assert open_scene(tmp_path / "a.h5", wavelengths="450,550,650").wavelength.values.tolist() == NM


@pytest.mark.parametrize(
    "text",
    [
        "wavelength;fwhm\n450,0;10\n550,0;10\n650,0;10\n",
        "Band;Wavelength (nm);FWHM\n1;450;10\n2;550;10\n3;650;10\n",
        "Band\tWavelength (um)\tFWHM\n1\t0,45\t0,01\n2\t0,55\t0,01\n3\t0,65\t0,01\n",
        "wavelength,fwhm\n450,10\n550,10\n650,10\n",
    ],
)
def test_tables_of_any_spreadsheet(tmp_path, text):
    (tmp_path / "wl.csv").write_text(text, encoding="utf-8-sig")
    opened = open_scene(put_tiff(tmp_path / "x.tif"), wavelengths="wl.csv")  # beside the scene
    assert opened.wavelength.values.tolist() == NM
    np.testing.assert_allclose(opened.fwhm, 10)


# -- 10. headers and data find each other -----------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".rfl", ".img", "", ".RFL", ".bsq", ".dat", ".rad", ".corr"])
@pytest.mark.parametrize("asked", ["header", "data"])
def test_header_and_data_of_any_ending(tmp_path, suffix, asked):
    path = header(tmp_path / "x", cube())
    data = tmp_path / f"x{suffix}"
    (tmp_path / "x.img").rename(data)
    (tmp_path / "x.txt").write_text("notes")
    (tmp_path / "x.xml").write_text("<x/>")
    np.testing.assert_array_equal(open_scene(path if asked == "header" else data).values, cube())


def test_a_header_named_after_the_data(tmp_path):
    header(tmp_path / "x", cube()).rename(tmp_path / "x.img.hdr")
    np.testing.assert_array_equal(open_scene(tmp_path / "x.img").values, cube())
    np.testing.assert_array_equal(open_scene(tmp_path / "x.img.hdr").values, cube())


@pytest.mark.parametrize("name", ["x.hdr", "x.tif.hdr"])
@pytest.mark.parametrize("asked", ["x.tif", "header"])
def test_a_header_beside_a_tiff(tmp_path, name, asked):
    put_tiff(tmp_path / "x.tif", crs="EPSG:32632", transform=GRID)
    facts = "wavelength units = nm\nwavelength = {450, 550, 650}\nfwhm = {9, 9, 9}\nbbl = {1, 0, 1}\ndata ignore value = 1\n"
    sizes = (
        "samples = 10\nlines = 8\nbands = 3\ndata type = 2\ninterleave = bsq\nfile type = TIFF\n"
    )
    (tmp_path / name).write_text("ENVI\n" + sizes + facts)
    opened = open_scene(tmp_path / (name if asked == "header" else asked))
    np.testing.assert_array_equal(opened.values, cube())
    assert opened.wavelength.values.tolist() == NM and opened.fwhm.values.tolist() == [9] * 3
    assert opened.good_band.values.tolist() == [True, False, True] and opened.nodata == 1
    assert georeference(opened)[1] == GRID
    (tmp_path / name).write_text("ENVI\n" + sizes.replace("bands = 3", "bands = 4") + facts)
    assert "wavelength" not in open_scene(tmp_path / "x.tif").coords  # another image's


def test_the_envi_domain_of_a_tiff(tmp_path):
    tags = {
        "wavelength": "{450.0, 550.0, 650.0}",
        "wavelength_units": "nanometers",
        "fwhm": "{9,9,9}",
        "bbl": "{1, 0, 1}",
    }
    opened = open_scene(put_tiff(tmp_path / "x.tif", tags=tags, ns="ENVI"))
    assert opened.wavelength.values.tolist() == NM and opened.fwhm.values.tolist() == [9] * 3
    assert opened.good_band.values.tolist() == [True, False, True]
    opened = open_scene(
        put_tiff(tmp_path / "x.tif", tags={**tags, "wavelength": "{0.45, 0.55, 0.65}"}, ns="ENVI")
    )
    assert opened.wavelength.values.tolist() == NM  # the unit contradicts the numbers


def test_gains_and_offsets_are_applied(tmp_path):
    values = cube(dtype="int16")
    values[:, 0, 0] = -9
    keys = {
        "data gain values": "{0.5, 2, 1}",
        "data offset values": "{1, 0, -3}",
        "data ignore value": -9,
    }
    physical = window(open_scene(header(tmp_path / "x", values, **keys)))
    expected = values * np.array([0.5, 2, 1])[:, None, None] + np.array([1, 0, -3])[:, None, None]
    assert np.isnan(physical[:, 0, 0]).all()
    np.testing.assert_allclose(physical[:, 1:], expected[:, 1:])


def test_latitude_and_longitude_need_no_crs(tmp_path):
    y, x = 50 - 0.1 * np.arange(8), 8 + 0.1 * np.arange(10)
    for dims in (("lat", "lon"), ("latitude", "longitude"), ("y", "x")):
        array = xr.DataArray(
            cube(), dims=("band", *dims), coords={dims[0]: y, dims[1]: x}, name="r"
        )
        if dims == ("y", "x"):
            array["y"].attrs["units"], array["x"].attrs["units"] = "degrees_north", "degrees_east"
        array.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
        crs, transform = georeference(open_scene(tmp_path / "a.nc"))
        assert crs.to_epsg() == 4326
        np.testing.assert_allclose(list(transform)[:6], [0.1, 0, 7.95, 0, -0.1, 50.05])
    array = xr.DataArray(cube(), dims=("band", "y", "x"), coords={"y": Y, "x": X}, name="r")
    array.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    assert georeference(open_scene(tmp_path / "a.nc")) == (None, GRID)


def test_coordinates_win_over_a_stale_geotransform(tmp_path):
    whole = xr.DataArray(cube(), dims=("band", "y", "x"), coords={"y": Y, "x": X}, name="r")
    whole = whole.rio.write_crs("EPSG:32632").rio.write_transform(GRID)
    whole[:, 2:, 3:].to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    opened, words = said(open_scene, tmp_path / "a.nc")
    assert georeference(opened)[1] == GRID * Affine.translation(3, 2)
    assert "the coordinates are used" in words


def test_a_dark_count_is_no_missing_pixel_under_a_mask_either(tmp_path):
    values = cube(dtype="uint8")
    values[1, 3, 3] = 0
    values[:, 4, 4] = 0
    opened = open_scene(put_mask(tmp_path / "x.tif", np.ones((8, 10), bool), values, nodata=None))
    assert np.isfinite(window(opened)).all()
    opened = open_scene(tmp_path / "x.tif", nodata=0)
    assert np.isnan(window(opened)).sum() == 3 and np.isnan(window(opened)[:, 4, 4]).all()


def test_the_fill_value_of_hdf5_itself_counts(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset(
            "cube", shape=(3, 8, 12), dtype="i2", fillvalue=-9999, chunks=(3, 4, 4)
        )
        data[:, 4:] = cube(3, 4, 12)
        file["wavelength"], file.attrs["wavelength_units"] = [0.45, 0.55, 0.65], "Micrometers"
    opened, words = said(open_scene, tmp_path / "a.h5")
    assert opened.nodata == -9999 and np.isnan(window(opened)[:, :4]).all() and not words
    assert opened.wavelength.values.tolist() == NM


def test_a_stack_of_which_one_image_is_listed_is_refused(tmp_path):
    path = tmp_path / "x.tif"
    tifffile.imwrite(
        path, cube()[0], description="ImageJ=1.53\nimages=12\nslices=12", metadata=None
    )
    with pytest.raises(SceneError, match="12 x 8 x 10"):
        open_scene(path)
    tifffile.imwrite(path, cube()[0], description=json.dumps({"shape": [12, 8, 10]}), metadata=None)
    with pytest.raises(SceneError, match="12 x 8 x 10"):
        open_scene(path)


def test_what_a_file_says_for_all_its_arrays(tmp_path):
    values = cube(3, 8, 12)
    values[:, 0, 0] = -9999
    path = put_h5(tmp_path / "a.h5", values=values, of_file={"Data_Ignore_Value": -9999})
    opened = open_scene(path, axis_order="byx")
    assert opened.nodata == -9999
    path = put_h5(
        tmp_path / "a.h5", values=values, attrs={"_FillValue": -1}, of_file={"nodata": -9999}
    )
    assert open_scene(path, axis_order="byx").nodata == -1


@pytest.mark.parametrize("place", [0, 1, 3])
def test_a_single_time_is_no_axis(tmp_path, place):
    dims = ["band", "y", "x"]
    dims.insert(place, "time")
    array = xr.DataArray(
        np.expand_dims(cube(), place), dims=dims, coords={"y": Y, "x": X}, name="r"
    )
    array.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    opened = open_scene(tmp_path / "a.nc")
    np.testing.assert_array_equal(opened.values, cube())
    np.testing.assert_array_equal(opened[1:, 2:5, ::2].values, cube()[1:, 2:5, ::2])
    assert georeference(opened)[1] == GRID
