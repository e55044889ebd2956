import itertools
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio import Affine

from vitreous import open_labels, open_scene
from vitreous.errors import SceneError, VitreousError
from vitreous.scenes import envi
from vitreous.scenes.cube import georeference, make_scene, read_window

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

KINDS = {1: "u1", 2: "i2", 3: "i4", 4: "f4", 5: "f8", 12: "u2", 13: "u4", 14: "i8", 15: "u8"}
AXES = {"bsq": (0, 1, 2), "bil": (1, 0, 2), "bip": (1, 2, 0)}
SALTON_SEA = (
    "{ UTM , 1 , 1 , 579717.180 , 3714550.700 , 16.900 , 16.900 , 11 , North , WGS-84 ,"
    " units=Meters , rotation=34.0000 }"
)


def cube(dtype="i2", shape=(3, 4, 5)):
    return np.random.default_rng(0).integers(0, 100, shape).astype(dtype)


def put(
    folder: Path, values, interleave="bsq", code=2, order=0, name="x.dat", header="x.hdr", **extra
):
    """Write a pair by the letter of the format, independently of our writer."""
    bands, height, width = values.shape
    stored = values.astype(values.dtype.newbyteorder("<>"[order])).transpose(AXES[interleave])
    (folder / name).write_bytes(stored.tobytes())
    fields = {
        "samples": width,
        "lines": height,
        "bands": bands,
        "header offset": 0,
        "file type": "ENVI Standard",
        "data type": code,
        "interleave": interleave,
        "byte order": order,
        **{key.replace("_", " "): value for key, value in extra.items()},
    }
    lines = [f"{key} = {value}" for key, value in fields.items() if value is not None]
    (folder / header).write_text("ENVI\n" + "\n".join(lines) + "\n")
    return folder / name


@pytest.mark.parametrize(
    ("interleave", "code", "order"), itertools.product(AXES, sorted(KINDS), (0, 1))
)
def test_every_layout_reads_as_gdal_reads_it(tmp_path, interleave, code, order):
    values = cube(KINDS[code])
    path = put(tmp_path, values, interleave, code, order)
    scene = open_scene(path)
    assert scene.dtype.itemsize == values.dtype.itemsize
    np.testing.assert_array_equal(scene.values, values)
    with rasterio.open(path, driver="ENVI") as referee:
        np.testing.assert_array_equal(scene.values, referee.read())
    np.testing.assert_array_equal(scene[1:, 2, ::-2].values, values[1:, 2, ::-2])


@pytest.mark.parametrize(
    "map_info",
    [
        SALTON_SEA,
        "{UTM, 2.5, 3, 579717.18, 3714550.7, 16.9, 10, 11, South, WGS-84, units=Meters}",
        "{UTM, 1.5, 1.5, 579717.18, 3714550.7, 30, 30, 11, North, North America 1927}",
        "{UTM, 1, 1, 579717.18, 3714550.7, 30, 30, 51, North, WGS-84, units=Meters, rotation=-12.5}",
        "{Geographic Lat/Lon, 1.5, 1.5, 10, 50, 0.1, 0.2, WGS-84, units=Degrees}",
    ],
)
def test_place_is_where_gdal_puts_it(tmp_path, map_info):
    path = put(tmp_path, cube(), map_info=map_info)
    crs, transform = georeference(open_scene(path))
    with rasterio.open(path, driver="ENVI") as referee:
        assert crs == referee.crs
        assert transform.almost_equals(referee.transform, precision=1e-9 * abs(transform.f))


def test_rotation_turns_about_the_tie_point(tmp_path):
    # Pixels that are not square, tied to an inner pixel: GDAL shears these; the grid must stay rectangular.
    info = "{UTM, 2.5, 3, 500000, 4000000, 20, 10, 11, North, WGS-84, units=Meters, rotation=30}"
    _, t = georeference(open_scene(put(tmp_path, cube(), map_info=info)))
    assert np.allclose(t * (1.5, 2), (500000, 4000000))
    assert math.isclose(math.hypot(t.a, t.d), 20) and math.isclose(math.hypot(t.b, t.e), 10)
    assert abs(t.a * t.b + t.d * t.e) < 1e-9
    assert math.isclose(math.degrees(math.atan2(t.d, t.a)), 30)


def test_corner_and_centre_tie_points_are_half_a_pixel_apart(tmp_path):
    info = "{{UTM, {0}, {0}, 500000, 4000000, 30, 30, 11, North, WGS-84}}"
    _, corner = georeference(open_scene(put(tmp_path, cube(), map_info=info.format(1))))
    _, centre = georeference(open_scene(put(tmp_path, cube(), map_info=info.format(1.5))))
    assert corner * (0, 0) == (500000, 4000000)
    assert centre * (0.5, 0.5) == (500000, 4000000)


def test_arbitrary_grid_has_a_transform_but_no_crs(tmp_path):
    path = put(tmp_path, cube(), map_info="{Arbitrary, 1, 1, 100, 200, 2, 2, 0, North}")
    assert georeference(open_scene(path)) == (None, Affine(2, 0, 100, 0, -2, 200))


def test_real_landsat_pair(shared_data):
    header = shared_data / "landsat_change" / "Taizhou" / "2000TM.HDR"
    scene, same = open_scene(header), open_scene(header.with_suffix(""))
    crs, transform = georeference(scene)
    with rasterio.open(header.with_suffix(""), driver="ENVI") as referee:
        np.testing.assert_array_equal(scene.values, referee.read())
        assert (crs, transform) == (referee.crs, referee.transform)
    np.testing.assert_allclose(scene.wavelength, [482.5, 565, 660, 825, 1650, 2220])
    assert scene.identical(same) and scene.source.endswith("2000TM")
    assert crs.to_epsg() == 32651


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("x.dat", "x.dat.hdr"),
        ("x", "x.hdr"),
        ("X.IMG", "X.HDR"),
        ("x.bil", "x.hdr"),
        ("x.y.raw", "x.y.hdr"),
        ("x", "x.HDR"),
    ],
)
def test_header_and_data_find_each_other(tmp_path, name, header):
    values = cube()
    put(tmp_path, values, name=name, header=header)
    for path in (tmp_path / name, tmp_path / header):
        np.testing.assert_array_equal(open_scene(path).values, values)


def test_header_of_several_data_files_asks(tmp_path):
    put(tmp_path, cube(), name="x.dat")
    put(tmp_path, cube(), name="x.img")
    with pytest.raises(SceneError, match=r"x\.dat or x\.img"):
        open_scene(tmp_path / "x.hdr")


def test_offset_and_trailing_bytes(tmp_path):
    values = cube()
    path = put(tmp_path, values, header_offset=7)
    path.write_bytes(b"1234567" + path.read_bytes() + b"tail")
    np.testing.assert_array_equal(open_scene(path).values, values)


def test_wavelength_units_agree(tmp_path):
    um = put(
        tmp_path,
        cube(),
        wavelength="{0.4, 0.5, 2.5}",
        wavelength_units="Micrometers",
        fwhm="{.01,.01,.02,}",
    )
    scene = open_scene(um)
    np.testing.assert_allclose(scene.wavelength, [400, 500, 2500])
    np.testing.assert_allclose(scene.fwhm, [10, 10, 20])
    nm = put(
        tmp_path,
        cube(),
        wavelength="{400, 500, 2500}",
        wavelength_units="Nanometers",
        fwhm="{10,10,20}",
    )
    np.testing.assert_allclose(open_scene(nm).wavelength, scene.wavelength)
    with pytest.warns(UserWarning, match="assumed to be um"):
        guess = open_scene(
            put(tmp_path, cube(), wavelength="{0.4, 0.5, 2.5}", fwhm="{.01,.01,.02}")
        )
    np.testing.assert_allclose(guess.fwhm, scene.fwhm)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        told = open_scene(tmp_path / "x.dat", wavelength_unit="um")
    np.testing.assert_allclose(told.wavelength, scene.wavelength)


def test_wavenumbers_become_wavelengths_and_frequencies_are_left_out(tmp_path):
    path = put(tmp_path, cube(), wavelength="{1000, 800, 625}", wavelength_units="Wavenumber")
    np.testing.assert_allclose(open_scene(path).wavelength, [10_000, 12_500, 16_000])
    path = put(tmp_path, cube(), wavelength="{1, 2, 3}", wavelength_units="GHz")
    with pytest.warns(UserWarning, match="GHz"):
        assert "wavelength" not in open_scene(path).coords


def test_values_are_physical(tmp_path):
    values = cube("i2") + 1
    values[:, 1, 2] = -9
    path = put(
        tmp_path,
        values,
        reflectance_scale_factor=10000,
        data_ignore_value=-9,
        bbl="{1, 0, 1}",
        band_names="{a, b, c}",
    )
    scene = open_scene(path)
    assert (scene.unit, scene.scale, scene.nodata) == ("reflectance", 1e-4, -9)
    window = read_window(scene, slice(0, 4), slice(0, 5))
    assert window.shape == (2, 4, 5)
    assert np.isnan(window[:, 1, 2]).all() and np.isfinite(window).sum() == 2 * 19
    assert window[0, 0, 0] == np.float32(values[0, 0, 0]) * np.float32(1e-4)
    assert list(scene.band_name.values) == ["a", "b", "c"]


def test_nothing_is_read_on_opening(tmp_path):
    # A sparse file of 40 GB: opening and reading a corner must not touch the rest.
    path = put(tmp_path, cube(), samples=100000, lines=100000, bands=2)
    with path.open("r+b") as file:
        file.truncate(100000 * 100000 * 2 * 2)
    scene = open_scene(path)
    assert scene.shape == (2, 100000, 100000)
    assert scene[1, 99990:, 99990:].values.sum() == 0


BAD = {
    "no header word": ("ENVI\n", "", "first line"),
    "unterminated brace": ("bands = 3", "bands = 3\nwavelength = {1, 2", "wavelength"),
    "silly byte order": ("byte order = 0", "byte order = 3", "byte order"),
    "negative offset": ("header offset = 0", "header offset = -5", "offset"),
    "negative size": ("lines = 4", "lines = -4", "-4"),
    "zero bands": ("bands = 3", "bands = 0", "empty"),
    "huge size": ("samples = 5", "samples = 9999999", "truncated"),
    "overflowing size": ("samples = 5", f"samples = {2**63}", "more than any"),
    "endless number": ("samples = 5", f"samples = {'9' * 6000}", "samples"),
    "not a number": ("samples = 5", "samples = five", "samples"),
    "fraction": ("samples = 5", "samples = 5.5", "samples"),
    "missing size": ("lines = 4", "", "lines"),
    "too long": ("lines = 4", "lines = 5", "truncated"),
    "complex": ("data type = 2", "data type = 6", "complex"),
    "unknown type": ("data type = 2", "data type = 99", "99"),
    "unknown interleave": ("= bsq", "= bqs", "bqs"),
    "twice": ("bands = 3", "bands = 3\nbands = 2", "twice"),
    "library": ("ENVI Standard", "ENVI Spectral Library", "library"),
    "another file": ("ENVI Standard", "TIFF", "TIFF"),
    "compressed": ("bands = 3", "bands = 3\nfile compression = 1", "compressed"),
    "wavelength words": ("bands = 3", "bands = 3\nwavelength = {a, b, c}", "wavelength"),
    "wavelength count": (
        "bands = 3",
        "bands = 3\nwavelength units = nm\nwavelength = {400, 500}",
        "3 bands but 2",
    ),
    "zero factor": ("bands = 3", "bands = 3\nreflectance scale factor = 0", "factor"),
}


@pytest.mark.parametrize("case", BAD)
def test_lying_headers_are_explained(tmp_path, case):
    old, new, message = BAD[case]
    path = put(tmp_path, cube())
    header = tmp_path / "x.hdr"
    header.write_text(header.read_text().replace(old, new))
    with pytest.raises(SceneError, match=message):
        open_scene(tmp_path / "x.hdr")
    assert path.exists()


def test_size_complaint_shows_its_arithmetic(tmp_path):
    path = put(tmp_path, cube())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        SceneError, match=r"119 bytes.*120.*4 lines x 5 samples x 3 bands x 2 bytes"
    ):
        open_scene(path)


def test_byte_order_can_be_supplied(tmp_path):
    values = cube()
    path = put(tmp_path, values, order=1)
    header = tmp_path / "x.hdr"
    header.write_text(header.read_text().replace("byte order = 1", ""))
    np.testing.assert_array_equal(open_scene(path, byte_order=1).values, values)


def test_giant_header_is_not_read(tmp_path):
    path = put(tmp_path, cube())
    with (tmp_path / "x.hdr").open("r+b") as file:
        file.truncate(envi.HEADER_LIMIT + 1)
    with pytest.raises(SceneError, match="too many"):
        open_scene(path)


def test_useless_map_info_warns_and_is_ignored(tmp_path):
    for info in ("{UTM}", "{UTM, 1, 1, a, b, 1, 1}", "{UTM, 1, 1, 0, 0, 0, 0, 11, North, WGS-84}"):
        path = put(tmp_path, cube(), map_info=info)
        with pytest.warns(UserWarning, match="map info"):
            assert georeference(open_scene(path)) == (None, None)


def full_scene(dtype="i2", transform=None, crs="EPSG:32611", unit="reflectance", scale=1e-4):
    return make_scene(
        cube(dtype, (4, 7, 6)),
        wavelengths=[365.9136593, 400.1, 1000 / 3, 2500],
        fwhm=[9.8521, 10, 11.1, 1 / 3],
        good_band=[True, False, True, True],
        unit=unit,
        scale=scale,
        nodata=-9999,
        crs=crs,
        transform=transform or Affine(16.9, 0, 579717.18, 0, -16.9, 3714550.7),
        band_names=["a", "b", "c", "d"],
    )


@pytest.mark.parametrize("interleave", AXES)
@pytest.mark.parametrize("dtype", ["u1", ">i2", "f4", "f8", "u8"])
def test_write_and_reopen_is_the_same_scene(tmp_path, interleave, dtype):
    scene = full_scene(dtype)
    envi.write(scene, tmp_path / "y.img", interleave)
    again = open_scene(tmp_path / "y.hdr")
    again.attrs["source"] = scene.attrs["source"]
    assert again.identical(scene)
    with rasterio.open(tmp_path / "y.img", driver="ENVI") as referee:
        np.testing.assert_array_equal(referee.read(), scene.values)
        assert (referee.crs, referee.transform) == georeference(scene)


@pytest.mark.parametrize("unit", ["dn", "radiance", "reflectance"])
def test_unit_and_scale_survive(tmp_path, unit):
    envi.write(full_scene(unit=unit, scale=1 / 3), tmp_path / "y.img")
    again = open_scene(tmp_path / "y.img")
    assert (again.unit, again.scale) == (unit, 1 / 3)


@pytest.mark.parametrize("crs", [None, "EPSG:4326", "EPSG:3035", "EPSG:32733", "EPSG:2056"])
@pytest.mark.parametrize("angle", [0, 34, -160])
def test_grids_survive(tmp_path, crs, angle):
    grid = Affine.translation(1234.5, 77.25) * Affine.rotation(angle) * Affine.scale(0.5, -0.25)
    envi.write(full_scene(transform=grid, crs=crs), tmp_path / "y.dat")
    crs_again, again = georeference(open_scene(tmp_path / "y.dat"))
    assert again.almost_equals(grid, precision=1e-12)
    assert crs_again == (None if crs is None else rasterio.crs.CRS.from_string(crs))


def test_scene_without_place_or_bands_survives(tmp_path):
    scene = make_scene(cube("f4"))
    envi.write(scene, tmp_path / "y.dat")
    again = open_scene(tmp_path / "y.dat").assign_attrs(source="")
    assert again.identical(scene)


def test_strips_write_the_same_file(tmp_path, monkeypatch):
    for interleave in AXES:
        envi.write(full_scene(), tmp_path / "whole.dat", interleave)
        monkeypatch.setattr(envi, "STRIP_BYTES", 100)
        envi.write(full_scene(), tmp_path / "strips.dat", interleave)
        monkeypatch.undo()
        assert (tmp_path / "strips.dat").read_bytes() == (tmp_path / "whole.dat").read_bytes()


@pytest.mark.parametrize("grid", [Affine(1, 0, 0, 0, 1, 0), Affine(1, 0.5, 0, 0, -1, 0)])
def test_mirrored_and_sheared_grids_are_refused_before_writing(tmp_path, grid):
    with pytest.raises(SceneError, match="mirrored or sheared"):
        envi.write(full_scene(transform=grid), tmp_path / "y.dat")
    assert not list(tmp_path.iterdir())


def test_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(envi, "_write_values", full)
    with pytest.raises(VitreousError, match="disk is full"):
        envi.write(full_scene(), tmp_path / "y.dat")
    assert not list(tmp_path.iterdir())


def test_names_cannot_break_the_header(tmp_path):
    scene = make_scene(cube(), band_names=["a, b}", "c\nsamples = 1", "{d"])
    envi.write(scene, tmp_path / "y.dat")
    again = open_scene(tmp_path / "y.dat")
    assert again.shape == scene.shape
    assert again.sizes["band"] == again.band_name.size == 3


def test_classification_keeps_names_and_colours(tmp_path):
    values = np.array([[[0, 1, 2], [2, 2, 1]]], dtype="u1")
    path = put(
        tmp_path,
        values,
        code=1,
        file_type="ENVI Classification",
        classes=3,
        class_names="{Unclassified, water, dry soil}",
        class_lookup="{0, 0, 0, 0, 0, 255, 139, 69, 19}",
    )
    labels = open_labels(path)
    np.testing.assert_array_equal(labels, values[0])
    assert labels.class_names == ["water", "dry soil"]
    assert labels.class_colors == ["#0000ff", "#8b4513"]


def test_upside_down_as_gdal_writes_it(tmp_path: Path) -> None:
    place = rasterio.Affine(30, 0, 500000, 0, 20, 4000000)
    settings = {"driver": "ENVI", "count": 1, "height": 4, "width": 5, "dtype": "uint8"}
    with rasterio.open(tmp_path / "s.img", "w", transform=place, crs="EPSG:32632", **settings) as f:
        f.write(np.arange(20, dtype="u1").reshape(1, 4, 5))
    assert "rotation=180" in (tmp_path / "s.hdr").read_text()
    with pytest.warns(UserWarning, match="first row is the southernmost"):
        scene = envi.open(tmp_path / "s.hdr")
    assert georeference(scene)[1] == place


@pytest.mark.parametrize(
    "info",
    [
        "{UTM, 1, 1, 500000, 7000000, 30, 30, 33, South, units=Meters}",
        "{State Plane (NAD 83), 1, 1, 1000, 5000, 3, 3, 1234, North America 1983, units=Feet}",
    ],
)
def test_a_projection_that_is_not_known_is_said(tmp_path: Path, info: str) -> None:
    text = (
        "ENVI\nsamples = 3\nlines = 2\nbands = 1\ndata type = 1\ninterleave = bsq\nbyte order = 0\n"
    )
    (tmp_path / "x.hdr").write_text(f"{text}map info = {info}\n")
    (tmp_path / "x.img").write_bytes(bytes(6))
    with pytest.warns(UserWarning, match="coordinate system of its map info .* is not known"):
        crs, transform = georeference(envi.open(tmp_path / "x.hdr"))
    assert crs is None and transform is not None
