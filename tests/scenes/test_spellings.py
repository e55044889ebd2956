"""What files of other writers say in words of their own is read, or told of."""

import json
import re
import time

import h5py
import numpy as np
import pytest
import rasterio
import scipy.io
import tifffile
import xarray as xr
import zarr
from rasterio.transform import from_origin

import vitreous
from vitreous.errors import SceneError
from vitreous.scenes.cube import georeference, read_window
from vitreous.scenes.legends import legend
from vitreous.scenes.vectors import strange_codes

CUBE = np.arange(4 * 6 * 7, dtype=np.int16).reshape(4, 6, 7)
LABELS = np.repeat(np.array([1, 1, 2, 2, 3, 3], np.uint8)[:, None], 7, 1)
CENTRES = [450.0, 550.0, 650.0, 850.0]
X, Y = 500_005 + 10.0 * np.arange(7), 4_000_055 - 10.0 * np.arange(6)
HEADER = "ENVI\nsamples = 7\nlines = 6\nbands = 4\ndata type = 2\ninterleave = bsq\n"


def envi(folder, more, cube=CUBE):
    (folder / "a.dat").write_bytes(cube.tobytes())
    (folder / "a.hdr").write_text(HEADER + more)
    return folder / "a.dat"


def tiff(path, cube=CUBE, **more):
    with rasterio.open(
        path, "w", driver="GTiff", count=len(cube), height=6, width=7, dtype=cube.dtype, **more
    ) as file:
        file.write(cube)
    return path


def whole(scene):
    return read_window(scene, slice(0, 6), slice(0, 7))


def placed(values, dims=("y", "x"), **attrs):
    return xr.DataArray(values, dims=dims, coords={"y": Y, "x": X}, attrs=attrs)


@pytest.mark.parametrize("key", ["nodata", "no data value", "missing_value", "data ignore values"])
def test_nodata_of_envi_in_other_words(tmp_path, key):
    scene = vitreous.open_scene(envi(tmp_path, f"{key} = 5\n"))
    assert scene.attrs["nodata"] == 5
    assert np.isnan(whole(scene)[:, 0, 5]).all()


@pytest.mark.parametrize("key", ["Missing_Data_Value", "invalid_value", "bad value"])
def test_nodata_of_hdf5_in_other_words(tmp_path, key):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["cube"], file["wavelength"] = CUBE, CENTRES
        file["cube"].attrs[key] = 5
    with pytest.warns(UserWarning, match="gives no wavelength unit"):
        assert vitreous.open_scene(tmp_path / "a.h5").attrs["nodata"] == 5


def test_a_fill_value_of_zarr_3_is_nodata(tmp_path):
    store = zarr.open_array(
        tmp_path / "a.zarr", mode="w", shape=CUBE.shape, dtype="i2", chunks=CUBE.shape, zarr_format=3, fill_value=5
    )  # fmt: skip
    store[:] = CUBE
    assert vitreous.open_scene(tmp_path / "a.zarr", axis_order="byx").attrs["nodata"] == 5


def test_single_numbers_of_a_matlab_file_count(tmp_path):
    scipy.io.savemat(
        tmp_path / "a.mat", {"cube": CUBE.transpose(1, 2, 0), "Data_Ignore_Value": 5.0}
    )
    assert vitreous.open_scene(tmp_path / "a.mat").attrs["nodata"] == 5


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_the_largest_numbers_of_a_type_are_no_measurement(tmp_path, dtype):
    cube = CUBE.astype(dtype)
    cube[:, 0, 0] = np.finfo(dtype).min
    values = whole(vitreous.open_scene(tiff(tmp_path / "a.tif", cube)))
    assert np.isnan(values[:, 0, 0]).all()
    assert not np.isnan(values[:, 0, 1:]).any()


@pytest.mark.parametrize(
    "more",
    [
        "wavelengths = {450, 550, 650, 850}\nwavelength unit = nm\n",
        "wavelength\n= {450, 550, 650, 850}\nwavelength units = nm\n",
        'band names = {"450 nm, blue", "550 nm", "650 nm", "850 nm"}\n',
    ],
)
def test_wavelengths_of_envi_in_other_words(tmp_path, more):
    np.testing.assert_array_equal(
        vitreous.open_scene(envi(tmp_path, more)).wavelength.values, CENTRES
    )


@pytest.mark.parametrize("unit", ["", "Nanometers", "Unknown"])
def test_numbers_of_bands_are_no_wavelengths(tmp_path, unit):
    more = f"wavelength = {{1, 2, 3, 4}}\nwavelength units = {unit}\n"
    with pytest.warns(UserWarning, match="only counts the bands"):
        assert "wavelength" not in vitreous.open_scene(envi(tmp_path, more)).coords


def test_micrometres_that_count_are_wavelengths(tmp_path):
    more = "wavelength = {1, 2, 3, 4}\nwavelength units = Micrometers\n"
    scene = vitreous.open_scene(envi(tmp_path, more))
    np.testing.assert_array_equal(scene.wavelength.values, [1000, 2000, 3000, 4000])


def test_a_reflectance_scale_factor_below_1_multiplies(tmp_path):
    path = envi(tmp_path, "reflectance scale factor = 0.0001\n")
    with pytest.warns(UserWarning, match="assumed to be a multiplier"):
        assert vitreous.open_scene(path).attrs["scale"] == pytest.approx(1e-4)


def test_a_scale_of_the_users_replaces_faulty_gains(tmp_path):
    path = envi(tmp_path, "data gain values = {a, b, c, d}\ndata offset values = {1, 1, 1, 1}\n")
    scene = vitreous.open_scene(path, scale=0.5)
    np.testing.assert_allclose(whole(scene), (CUBE + 2) / 2)


@pytest.mark.parametrize("order", ["1", 1])
def test_the_byte_order_may_come_from_the_command_line(tmp_path, order):
    scene = vitreous.open_scene(
        envi(tmp_path, "byte order = 7\n", CUBE.astype(">i2")), byte_order=order
    )
    np.testing.assert_array_equal(scene.values, CUBE)


@pytest.mark.parametrize(("half", "code"), [("N", 32633), ("S", 32733), ("North", 32633)])
def test_halves_of_utm_by_a_letter(tmp_path, half, code):
    more = f"map info = {{UTM, 1, 1, 500000, 4000060, 10, 10, 33, {half}, WGS-84}}\n"
    crs, transform = georeference(vitreous.open_scene(envi(tmp_path, more)))
    assert crs.to_epsg() == code
    assert transform == from_origin(500_000, 4_000_060, 10, 10)


def test_a_header_beside_a_tiff_gives_its_place(tmp_path):
    path = tiff(tmp_path / "a.tif")
    (tmp_path / "a.hdr").write_text(
        HEADER + "map info = {UTM, 1, 1, 500000, 4000060, 10, 10, 33, North, WGS-84}\n"
    )
    crs, transform = georeference(vitreous.open_scene(path))
    assert (crs.to_epsg(), transform.c, transform.f) == (32633, 500_000, 4_000_060)


def test_names_of_bands_in_the_tags_of_a_tiff(tmp_path):
    path = tiff(tmp_path / "a.tif")
    with rasterio.open(path, "r+") as file:
        file.update_tags(**{f"Band_{k}": f"{nm} Nanometers" for k, nm in enumerate(CENTRES, 1)})
    np.testing.assert_array_equal(vitreous.open_scene(path).wavelength.values, CENTRES)


def test_attributes_of_a_group_count_for_its_arrays(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["g/cube"] = CUBE
        file["g"].attrs.update(
            {"wavelengths": CENTRES, "fwhm": [10.0] * 4, "wavelength_units": "nm"}
        )
        file["g/cube"].attrs["long_name"] = "surface reflectance"
    scene = vitreous.open_scene(tmp_path / "a.h5")
    np.testing.assert_array_equal(scene.wavelength.values, CENTRES)
    np.testing.assert_array_equal(scene.fwhm.values, [10] * 4)
    assert scene.attrs["unit"] == "reflectance"


def test_scales_and_offsets_of_each_band(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["cube"] = CUBE
        file["cube"].attrs.update(
            {"scale_factor": [1.0, 2, 3, 4], "add_offset": [0.0, 0, 0, 10], "wavelength": CENTRES}
        )
    with pytest.warns(UserWarning, match="gives no wavelength unit"):
        values = whole(vitreous.open_scene(tmp_path / "a.h5"))
    np.testing.assert_allclose(values[:, 2, 3], CUBE[:, 2, 3] * [1.0, 2, 3, 4] + [0, 0, 0, 10])


@pytest.mark.parametrize(
    ("attrs", "expected"),
    [({"slope": 0.5, "intercept": 1.0}, 0.5), ({"gain": 0.5, "offset": 1.0}, 0.5), ({"gain": 0.5}, 1)],
)  # fmt: skip
def test_gains_of_arrays(tmp_path, attrs, expected):
    xr.DataArray(CUBE, dims=("band", "y", "x"), attrs=attrs).to_dataset(name="v").to_netcdf(
        tmp_path / "a.nc"
    )
    offset = 1 if len(attrs) == 2 else 0
    np.testing.assert_allclose(
        whole(vitreous.open_scene(tmp_path / "a.nc")), CUBE * expected + offset
    )


@pytest.mark.parametrize(
    "dims", [("wl", "yc", "xc"), ("nb", "ny", "nx"), ("bands", "south_north", "west_east")]
)
def test_other_names_of_axes(tmp_path, dims):
    turned = xr.DataArray(CUBE, dims=dims).transpose(*reversed(dims))
    turned.to_dataset(name="v").to_netcdf(tmp_path / "a.nc")
    np.testing.assert_array_equal(vitreous.open_scene(tmp_path / "a.nc").values, CUBE)


def test_attributes_of_coordinates_tell_the_axes(tmp_path):
    cube = xr.DataArray(
        CUBE.transpose(2, 1, 0),
        dims=("u", "v", "w"),
        coords={"u": ("u", X, {"axis": "X"}), "v": ("v", Y, {"standard_name": "projection_y_coordinate"})},
    )  # fmt: skip
    cube.to_dataset(name="c").to_netcdf(tmp_path / "a.nc")
    scene = vitreous.open_scene(tmp_path / "a.nc")
    np.testing.assert_array_equal(scene.values, CUBE)
    assert georeference(scene)[1] == from_origin(500_000, 4_000_060, 10, 10)


@pytest.mark.parametrize(
    ("mapping", "attrs"),
    [
        ({"grid_mapping_name": "transverse_mercator", "epsg_code": "EPSG:32633"}, {}),
        ({"spatial_epsg": 32633}, {}),
        ({}, {"crs": "EPSG:32633"}),
        ({}, {"proj4": "+proj=utm +zone=33 +datum=WGS84 +units=m"}),
    ],
)
def test_other_words_for_the_crs(tmp_path, mapping, attrs):
    dataset = placed(CUBE, ("band", "y", "x"), grid_mapping="utm").to_dataset(name="v")
    if mapping:
        dataset["utm"] = ((), 0, mapping)
    dataset.attrs = attrs
    dataset.to_netcdf(tmp_path / "a.nc")
    assert georeference(vitreous.open_scene(tmp_path / "a.nc"))[0].to_epsg() == 32633


def test_parameters_of_a_projection_by_cf(tmp_path):
    dataset = placed(CUBE, ("band", "y", "x"), grid_mapping="utm").to_dataset(name="v")
    dataset["utm"] = ((), 0, {"grid_mapping_name": "transverse_mercator", "longitude_of_central_meridian": 15.0, "latitude_of_projection_origin": 0.0, "scale_factor_at_central_meridian": 0.9996, "false_easting": 5e5, "false_northing": 0.0})  # fmt: skip
    dataset.to_netcdf(tmp_path / "a.nc")
    crs, _ = georeference(vitreous.open_scene(tmp_path / "a.nc"))
    assert "Transverse_Mercator" in crs.to_wkt()


@pytest.mark.parametrize("even", [True, False])
def test_longitudes_and_latitudes_of_every_pixel(tmp_path, even):
    lon, lat = np.meshgrid(10 + 0.01 * np.arange(7), 50 - 0.01 * np.arange(6))
    cube = xr.DataArray(
        CUBE,
        dims=("band", "y", "x"),
        coords={"lon": (("y", "x"), lon if even else lon + lat), "lat": (("y", "x"), lat)},
    )
    cube.to_dataset(name="v").to_netcdf(tmp_path / "a.nc")
    if not even:
        with pytest.warns(UserWarning, match="do not form an even grid"):
            assert georeference(vitreous.open_scene(tmp_path / "a.nc")) == (None, None)
        return
    crs, transform = georeference(vitreous.open_scene(tmp_path / "a.nc"))
    assert crs.to_epsg() == 4326
    np.testing.assert_allclose(transform[:6], [0.01, 0, 9.995, 0, -0.01, 50.005], atol=1e-12)


def test_an_array_with_four_axes_in_a_tiff_is_a_question(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((2, 5, 6, 7), np.uint16))
    with pytest.raises(SceneError, match=r"page=1 to page=10, or set axis_order=byx if all 10"):
        vitreous.open_scene(tmp_path / "a.tif")
    assert vitreous.open_scene(tmp_path / "a.tif", axis_order="byx").shape == (10, 6, 7)
    assert vitreous.open_scene(tmp_path / "a.tif", page="2").shape == (1, 6, 7)
    with pytest.raises(SceneError, match=r"has no page 11. Choose page=1 to page=10"):
        vitreous.open_scene(tmp_path / "a.tif", page=11)


def test_transparency_of_0_and_1_in_labels(tmp_path):
    shown = np.ones_like(LABELS)
    shown[:, 0] = 0
    path = tiff(
        tmp_path / "a.tif", np.stack([LABELS, shown]), photometric="minisblack", alpha="yes"
    )
    labels = vitreous.open_labels(path)
    assert (labels.values[:, 0] == 0).all()
    assert (labels.values[:, 1:] > 0).all()


def test_ranges_of_mask_values(tmp_path):
    scene = tiff(tmp_path / "s.tif")
    mask = tiff(tmp_path / "m.tif", np.arange(42, dtype=np.uint8).reshape(1, 6, 7))
    values = whole(vitreous.open_scene(scene, mask=str(mask), mask_values="3,8-10"))
    assert sorted(np.flatnonzero(np.isnan(values[0]))) == [3, 8, 9, 10]
    np.save(tmp_path / "m.npy", LABELS)
    with pytest.raises(SceneError, match="not a GeoTIFF, JPEG 2000 or PNG"):
        vitreous.open_scene(scene, mask=str(tmp_path / "m.npy"))


def test_every_nodata_value_and_the_valid_range_of_labels(tmp_path):
    values = LABELS.astype(np.int16)
    values[0, :3] = 77, 99, 9
    dataset = placed(values, missing_value=np.int16(99), valid_max=np.int16(50)).to_dataset(
        name="lc"
    )
    dataset.to_netcdf(tmp_path / "l.nc", encoding={"lc": {"_FillValue": np.int16(9)}})
    labels = vitreous.open_labels(tmp_path / "l.nc")
    assert labels.attrs["class_codes"] == [1, 2, 3]
    assert (labels.values[0, :3] == 0).all()


@pytest.mark.parametrize(
    ("names", "expected"),
    [(["a", "b", "c"], ["a", "b", "c"]), ("none,a,b,c", ["a", "b", "c"]), (["a"], ["class 1", "class 2", "class 3"])],
)  # fmt: skip
def test_class_names_in_a_list(tmp_path, names, expected):
    with h5py.File(tmp_path / "l.h5", "w") as file:
        file["labels"] = LABELS
        file["labels"].attrs["class_names"] = names
    assert vitreous.open_labels(tmp_path / "l.h5").attrs["class_names"] == expected


@pytest.mark.parametrize(
    ("codes", "strange"),
    [
        ([1, 2, 3, 9999], [9999]),
        ([1, 2, 254, 255], [254, 255]),
        ([-9999, 0, 1], [-9999]),
        ([0, 255], []),
        ([1, 200, 255], []),
        ([1, 2, 65535], [65535]),
        ([7201, 7202, 9999], []),
    ],
)
def test_codes_that_mean_unlabelled(codes, strange):
    assert strange_codes(codes) == strange


@pytest.mark.parametrize(
    ("values", "codes", "names"),
    [
        (["1", "2", "-9999"], [1, 2], ["class 1", "class 2"]),
        (["corn", "0", "wheat"], [1, 2], ["corn", "wheat"]),
        (["c\u00f6rn", "co\u0308rn", "corn\u00a0"], [1, 2], ["corn", "c\u00f6rn"]),
    ],
)
def test_texts_of_an_attribute(tmp_path, values, codes, names):
    geopandas = pytest.importorskip("geopandas")
    from shapely.geometry import box

    scene = vitreous.open_scene(
        tiff(tmp_path / "s.tif", crs="EPSG:32633", transform=from_origin(500_000, 4_000_060, 10, 10))
    )  # fmt: skip
    fields = [box(500_000 + 20 * k, 4_000_000, 500_020 + 20 * k, 4_000_060) for k in range(3)]
    geopandas.GeoDataFrame({"crop": values}, geometry=fields, crs="EPSG:32633").to_file(
        tmp_path / "l.gpkg"
    )
    with pytest.warns(UserWarning):
        labels = vitreous.open_labels(tmp_path / "l.gpkg", like=scene)
    assert (labels.attrs["class_codes"], labels.attrs["class_names"]) == (codes, names)


def test_an_unknown_encoding_is_told_of(tmp_path):
    geopandas = pytest.importorskip("geopandas")
    from shapely.geometry import box

    scene = vitreous.open_scene(
        tiff(tmp_path / "s.tif", crs="EPSG:32633", transform=from_origin(500_000, 4_000_060, 10, 10))
    )  # fmt: skip
    field = box(500_000, 4_000_000, 500_020, 4_000_060)
    geopandas.GeoDataFrame({"crop": ["a"]}, geometry=[field], crs="EPSG:32633").to_file(
        tmp_path / "l.shp"
    )
    with pytest.raises(SceneError, match="Unknown text encoding 'utf-88'"):
        vitreous.open_labels(tmp_path / "l.shp", like=scene, encoding="utf-88")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "Value,Label,Red,Green,Blue\n1,Corn,255,0,0\n2,Wheat,0,255,0\n"),
        ("a.csv", "code;name;color\n1;Corn;rgb(255, 0, 0)\n2;Wheat;0 255 0\n"),
        ("a.csv", "1,Corn,#ff0000\n2,Wheat,#00ff00\n"),
        (
            "a.json",
            json.dumps({"1": ["Corn", "#ff0000"], "2": {"label": "Wheat", "colour": [0, 255, 0]}}),
        ),
    ],
)
def test_legends_in_other_forms(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    found = legend(tmp_path / name)
    assert found.names == {1: "Corn", 2: "Wheat"}
    assert found.colors == {1: "#ff0000", 2: "#00ff00"}


def test_what_a_legend_leaves_without_a_name_is_said(tmp_path):
    path = tiff(tmp_path / "l.tif", LABELS[None])
    with pytest.warns(UserWarning, match="has no name for the codes 1, 2, 3"):
        vitreous.open_labels(path, classes="ESA WorldCover")
    (tmp_path / "l.json").write_text('{"epoch": 1, "seed": 2}')  # is no legend, asked for or not
    assert vitreous.open_labels(path).attrs["class_names"] == ["class 1", "class 2", "class 3"]


def test_files_of_bands_that_lie_elsewhere_are_refused(tmp_path):
    here = from_origin(500_000, 4_000_060, 10, 10)
    tiff(tmp_path / "a_B02.tif", CUBE[:1], crs="EPSG:32633", transform=here)
    tiff(tmp_path / "a_B03.tif", CUBE[:1], crs="EPSG:32634", transform=here)
    with pytest.raises(SceneError, match="does not overlap with other bands"):
        vitreous.open_scene(tmp_path / "a_B*.tif")
    with pytest.raises(SceneError, match="does not overlap with the scene"):
        vitreous.open_scene(tmp_path / "a_B02.tif", mask=str(tmp_path / "a_B03.tif"), mask_values=1)


@pytest.mark.parametrize("ending", ["nc", "zarr", "zarr2"])
@pytest.mark.filterwarnings("ignore:.*specification.*")
def test_names_of_bands_in_their_coordinate(tmp_path, ending):
    names = ["B02", "B03", "B04", "B8A"]
    cube = xr.DataArray(CUBE, dims=("band", "y", "x"), coords={"band": names})
    if ending == "nc":
        cube.to_dataset(name="v").to_netcdf(tmp_path / "a.nc")
    else:
        written = 2 if ending == "zarr2" else 3
        cube.to_dataset(name="v").to_zarr(
            tmp_path / f"a.{ending[:4]}", zarr_format=written, consolidated=False
        )
    scene = vitreous.open_scene(tmp_path / f"a.{ending[:4]}")
    assert scene.band_name.values.tolist() == names
    assert scene.wavelength.values[-1] == 864.7


@pytest.mark.parametrize("inside", ["", "group"])
def test_the_place_by_the_conventions_of_geozarr(tmp_path, inside):
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=3)
    group = group.create_group(inside) if inside else group
    array = group.create_array(
        "v", shape=CUBE.shape, dtype="i2", dimension_names=["band", "y", "x"]
    )
    array[:] = CUBE
    said = {"proj:code": "EPSG:32633", "spatial:transform": [10, 0, 500_000, 0, -10, 4_000_060]}
    (group if inside else array).attrs.update(said)
    crs, transform = georeference(vitreous.open_scene(tmp_path / "a.zarr"))
    assert crs.to_epsg() == 32633
    assert transform == from_origin(500_000, 4_000_060, 10, 10)


@pytest.mark.parametrize("ending", ["h5", "npz"])
def test_class_names_in_an_array_beside_the_labels(tmp_path, ending):
    names = ["corn", "wheat", "water"]
    if ending == "npz":
        np.savez(tmp_path / "l.npz", labels=LABELS, class_names=np.array(names))
    else:
        with h5py.File(tmp_path / "l.h5", "w") as file:
            file["labels"] = LABELS
            file["class_names"] = np.array(names, dtype=h5py.string_dtype())
    labels = vitreous.open_labels(tmp_path / f"l.{ending}")
    assert labels.attrs["class_names"] == names


@pytest.mark.parametrize(
    ("hints", "said"),
    [
        ({"fwhm": "0.01,0.01,0.01,0.01"}, "they would match in um"),
        ({"fwhm": "9000,9000,9000,9000"}, r"set fwhm=\.\.\."),
        ({"fwhm": "10,10,10,10"}, None),
    ],
)
def test_widths_and_centres_of_two_sources_are_compared(tmp_path, hints, said, recwarn):
    path = envi(tmp_path, "wavelength = {450, 550, 650, 850}\nwavelength units = nm\n")
    scene = vitreous.open_scene(path, **hints)
    found = [str(w.message) for w in recwarn if "do not match its wavelengths" in str(w.message)]
    assert scene.fwhm.values.tolist() == [float(n) for n in hints["fwhm"].split(",")]
    assert bool(found) == (said is not None)
    if said:
        assert re.search(said, found[0])


@pytest.mark.parametrize("order", [1, -1])
def test_a_key_of_envi_wins_over_the_words_of_others(tmp_path, order):
    lines = ["data ignore value = 5", "missing value = 7", "bandwidths = {9, 9, 9, 9}"][::order]
    scene = vitreous.open_scene(envi(tmp_path, "\n".join(lines) + "\n"))
    assert scene.attrs["nodata"] == 5
    assert scene.fwhm.values.tolist() == [9] * 4


@pytest.mark.parametrize("unit", ["km", "kilometers", "m"])
def test_coordinates_in_kilometres(tmp_path, unit):
    factor = 1 if unit == "m" else 1000
    cube = xr.DataArray(
        CUBE,
        dims=("band", "y", "x"),
        coords={"y": ("y", Y / factor, {"units": unit}), "x": ("x", X / factor, {"units": unit})},
        attrs={"crs": "EPSG:32633"},
    )
    cube.to_dataset(name="v").to_netcdf(tmp_path / "a.nc")
    _, transform = georeference(vitreous.open_scene(tmp_path / "a.nc"))
    assert transform.almost_equals(from_origin(500_000, 4_000_060, 10, 10), 1e-6)


@pytest.mark.parametrize(
    ("attrs", "unit", "scale"),
    [
        ({"units": "W m-2 sr-1 um-1"}, "radiance", 1),
        ({"units": "mW/(m^2*sr*nm)"}, "radiance", 1),
        ({"units": "%", "long_name": "surface reflectance"}, "reflectance", 0.01),
        ({"units": "percent", "standard_name": "surface_reflectance", "scale_factor": 0.1}, "reflectance", 0.001),
        ({"units": "1", "long_name": "reflectance factor"}, "reflectance", 1),
        ({"units": "DN"}, "dn", 1),
    ],
)  # fmt: skip
def test_units_of_values_by_their_attributes(tmp_path, attrs, unit, scale):
    xr.DataArray(CUBE, dims=("band", "y", "x"), attrs=attrs).to_dataset(name="v").to_netcdf(
        tmp_path / "a.nc"
    )
    scene = vitreous.open_scene(tmp_path / "a.nc")
    assert scene.attrs["unit"] == unit
    assert scene.attrs["scale"] == pytest.approx(scale)


def test_a_header_of_nothing_but_quotes_takes_no_time(tmp_path):
    path = envi(tmp_path, "band names = {" + '"a", ' * 300_000 + "}\n")
    begun = time.process_time()
    with pytest.warns(UserWarning, match="band names"):
        vitreous.open_scene(path)
    assert time.process_time() - begun < 5


def test_pages_are_counted_once(tmp_path, monkeypatch):
    """Of a stack with hundreds of images every one is opened, and none of them lists all."""
    from vitreous.scenes import gdal_files

    opened = []
    usual = gdal_files._open
    monkeypatch.setattr(gdal_files, "_open", lambda *args: opened.append(args) or usual(*args))
    tifffile.imwrite(tmp_path / "a.tif", CUBE, metadata=None)
    assert vitreous.open_scene(tmp_path / "a.tif").shape == CUBE.shape
    assert len(opened) <= len(CUBE) + 1
