import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS

from vitreous.errors import SceneError
from vitreous.scenes import emit
from vitreous.scenes.cube import georeference, make_scene, read_window

HEIGHT, WIDTH, BANDS = 40, 30, 12
GEOTRANSFORM = [-62.5120945, 0.000542232520, 0.0, -39.306759, 0.0, -0.000542232520]


def a_lookup_table() -> tuple[np.ndarray, np.ndarray]:
    """The map grid of a measured grid that is turned by 33 degrees; indices from 1, 0 outside."""
    turn = np.deg2rad(33)
    y, x = np.mgrid[0:52, 0:50]
    rows = np.round(np.cos(turn) * (y - 26) + np.sin(turn) * (x - 25) + HEIGHT / 2).astype(int)
    columns = np.round(-np.sin(turn) * (y - 26) + np.cos(turn) * (x - 25) + WIDTH / 2).astype(int)
    inside = (rows >= 1) & (rows <= HEIGHT) & (columns >= 1) & (columns <= WIDTH)
    return np.where(inside, rows, 0).astype("i4"), np.where(inside, columns, 0).astype("i4")


def write_emit(path: Path, name: str = "reflectance") -> np.ndarray:
    """Write a file in EMIT's layout and return its cube (downtrack, crosstrack, bands)."""
    cube = np.random.default_rng(1).random((HEIGHT, WIDTH, BANDS)).astype("f4")
    cube[3, 4] = -9999
    glt_y, glt_x = a_lookup_table()
    with h5py.File(path, "w") as file:
        values = file.create_dataset(name, data=cube, chunks=(8, 8, BANDS), compression="gzip")
        values.attrs["_FillValue"] = np.float32([-9999])
        for axis, dimension in enumerate(("downtrack", "crosstrack", "bands")):
            values.dims[axis].label = dimension
        bands = file.create_group("sensor_band_parameters")
        bands["wavelengths"] = np.linspace(381, 2493, BANDS, dtype="f4")
        bands["wavelengths"].attrs["units"] = "nm"
        bands["fwhm"] = np.full(BANDS, 8.5, "f4")
        bands["good_wavelengths"] = (np.arange(BANDS) != 7).astype("f4")
        file["location/glt_y"], file["location/glt_x"] = glt_y, glt_x
        file["location/lat"] = np.zeros((HEIGHT, WIDTH))
        file.attrs["geotransform"] = GEOTRANSFORM
        file.attrs["spatial_ref"] = CRS.from_epsg(4326).to_wkt()
    return cube


def naive_ortho(cube: np.ndarray) -> np.ndarray:
    """Look every pixel up, one after the other."""
    glt_y, glt_x = a_lookup_table()
    result = np.full((BANDS, *glt_y.shape), -9999, "f4")
    for y, x in np.ndindex(glt_y.shape):
        if glt_y[y, x] and glt_x[y, x]:
            result[:, y, x] = cube[glt_y[y, x] - 1, glt_x[y, x] - 1]
    return result


@pytest.fixture(scope="module")
def emit_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    path = tmp_path_factory.mktemp("emit") / "EMIT_L2A_RFL.nc"
    return path, write_emit(path)


def test_map_grid_equals_the_naive_lookup(
    emit_file: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emit, "_TILE", 16)
    path, cube = emit_file
    scene = emit.open(path)
    np.testing.assert_array_equal(scene.values, naive_ortho(cube))
    assert scene.rio.crs.to_epsg() == 4326
    assert list(georeference(scene)[1].to_gdal()) == GEOTRANSFORM
    assert scene.rio.transform().almost_equals(Affine.from_gdal(*GEOTRANSFORM), 1e-12)
    assert scene.attrs["unit"] == "reflectance"
    np.testing.assert_allclose(scene.wavelength, np.linspace(381, 2493, BANDS), rtol=1e-6)
    np.testing.assert_allclose(scene.fwhm, 8.5)
    assert np.flatnonzero(~scene.good_band.values).tolist() == [7]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_window_of_the_map_grid_is_part_of_the_whole(
    emit_file: tuple, data: st.DataObject
) -> None:
    path, cube = emit_file
    scene, whole = emit.open(path), naive_ortho(cube)
    cut = tuple(
        slice(
            data.draw(st.integers(0, n - 1)),
            data.draw(st.integers(1, n)),
            data.draw(st.integers(1, 3)),
        )
        for n in whole.shape
    )
    np.testing.assert_array_equal(scene[cut].values, whole[cut])


def test_pixels_without_a_measurement_are_invalid(emit_file: tuple) -> None:
    window = read_window(emit.open(emit_file[0]), slice(0, 52), slice(0, 50))
    glt_y, glt_x = a_lookup_table()
    expected = (glt_y == 0) | ((glt_y == 4) & (glt_x == 5))
    np.testing.assert_array_equal(np.isnan(window).all(axis=0), expected)


@pytest.mark.parametrize("ortho", [False, "false", "no"])
def test_measured_grid_has_no_map(emit_file: tuple, ortho) -> None:
    scene = emit.open(emit_file[0], ortho=ortho)
    np.testing.assert_array_equal(scene.values, emit_file[1].transpose(2, 0, 1))
    assert scene.rio.crs is None


def test_infilled_pixels_count(tmp_path: Path) -> None:
    cube = write_emit(tmp_path / "a.nc")
    with h5py.File(tmp_path / "a.nc", "r+") as file:
        for name in emit.GLT:
            file[name][...] = -file[name][...]
    np.testing.assert_array_equal(emit.open(tmp_path / "a.nc").values, naive_ortho(cube))


def test_a_lookup_table_that_points_outside_is_a_clear_error(tmp_path: Path) -> None:
    write_emit(tmp_path / "a.nc")
    with h5py.File(tmp_path / "a.nc", "r+") as file:
        file["location/glt_y"][20, 20] = HEIGHT + 1
    scene = emit.open(tmp_path / "a.nc")
    with pytest.raises(SceneError, match="points outside"):
        read_window(scene, slice(15, 25), slice(15, 25))
    assert np.isfinite(emit.open(tmp_path / "a.nc", ortho=False)[0].values).all()


def test_radiance_and_a_file_without_lookup_table(tmp_path: Path) -> None:
    write_emit(tmp_path / "a.nc", "radiance")
    with h5py.File(tmp_path / "a.nc", "r+") as file:
        del file["location"]
    assert emit.open(tmp_path / "a.nc").attrs["unit"] == "radiance"
    with pytest.raises(SceneError, match="no geometry lookup table"):
        emit.open(tmp_path / "a.nc", ortho=True)


def test_netcdf_that_xarray_wrote(tmp_path: Path) -> None:
    scene = make_scene(
        np.arange(60).reshape(3, 4, 5).astype("i2"),
        wavelengths=[450, 550, 650],
        crs="EPSG:32633",
        scale=0.1,
    )
    scene.wavelength.attrs["units"] = "nm"
    scene = scene.assign_coords(x=600005.0 + 10 * np.arange(5), y=5000035.0 - 10 * np.arange(4))
    del scene.attrs["nodata"]
    scene.to_dataset(name="rfl").to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    read = emit.open(tmp_path / "a.nc")
    np.testing.assert_array_equal(read.values, scene.values)
    assert read.rio.crs.to_epsg() == 32633
    assert read.rio.transform(recalc=False).to_gdal() == (600000, 10, 0, 5000040, 0, -10)
    assert read.attrs["scale"] == 0.1
    assert read.wavelength.values.tolist() == [450, 550, 650]


def test_a_stored_offset_is_applied(tmp_path: Path) -> None:
    stored = np.arange(60).reshape(3, 4, 5).astype("i2")
    attrs = {"add_offset": 5.0, "scale_factor": 0.5, "missing_value": np.int16(7)}
    values = xr.DataArray(stored, dims=("band", "y", "x"), attrs=attrs)
    values.to_dataset(name="a").to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    physical = read_window(emit.open(tmp_path / "a.nc"), slice(0, 4), slice(0, 5))
    assert np.isnan(physical[:, 1, 2]).all() and np.isnan(physical).sum() == 3
    expected = np.where((stored == 7).any(axis=0), np.nan, stored * 0.5 + 5)
    np.testing.assert_allclose(physical, expected)


def test_other_files_are_never_pulled_in(tmp_path: Path) -> None:
    """External storage, external links and virtual datasets could read anything on the machine."""
    secret = tmp_path / "secret.bin"
    secret.write_bytes(os.urandom(60))
    with h5py.File(tmp_path / "inner.h5", "w") as file:
        file["cube"] = np.zeros((3, 4, 5), "u1")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("external", (3, 4, 5), "u1", external=[(str(secret), 0, 60)])
        file["linked"] = h5py.ExternalLink("inner.h5", "/cube")
        layout = h5py.VirtualLayout((3, 4, 5), "u1")
        layout[...] = h5py.VirtualSource("inner.h5", "cube", (3, 4, 5))
        file.create_virtual_dataset("virtual", layout)
    for name in ("external", "linked", "virtual", None):
        with pytest.raises(SceneError):
            emit.open(tmp_path / "a.h5", variable=name)


def test_a_netcdf_3_file_is_told_to_be_converted(shared_data: Path) -> None:
    with pytest.raises(SceneError, match="NetCDF-4 first"):
        emit.open(shared_data / "era5" / "era5.3d.198001.nc")
