"""Whatever is cut out of a scene keeps its place: every pixel of a product lies where it lay in the whole."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import rasterio
import xarray as xr
from affine import Affine
from rasterio.windows import Window

from smooth_scene import Mixer, restorer_of, smooth_scene
from vitreous.data.fingerprint import Ground
from vitreous.errors import SceneError
from vitreous.inference.restore import restored_scene
from vitreous.scenes import open_labels, open_scene, write_scene
from vitreous.scenes.cube import LazyCube, georeference, make_labels, make_scene, read_window
from vitreous.scenes.grids import Grid
from vitreous.scenes.resample import resample
from vitreous.tasks.labelled import LabelledScene

HEIGHT, WIDTH = 20, 30
GRIDS = {
    "metres": ("EPSG:32611", Affine(30, 0, 500015, 0, -30, 4_000_005)),
    "degrees": ("EPSG:4326", Affine(0.000542232520, 0, -118.3, 0, -0.000542232520, 34.1)),
    "oblong pixels": ("EPSG:32611", Affine(4.7, 0, 5e5, 0, -2.9, 4e6)),
    "upside down": ("EPSG:32611", Affine(30, 0, 5e5, 0, 30, 4e6)),
    "rotated": ("EPSG:32611", Affine(2.4, 1.8, 5e5, 1.8, -2.4, 4e6)),
    "quarter turn": ("EPSG:32611", Affine(0, 10, 5e5, 10, 0, 4e6)),
    "sheared": ("EPSG:32611", Affine(3, 1, 5e5, 0.5, -2, 4e6)),
    "no CRS": (None, Affine(30, 0, 500015, 0, -30, 4_000_005)),
}
CUTS = {
    "whole": (slice(None), slice(None)),
    "crop": (slice(4, 13), slice(7, 17)),
    "rows only": (slice(6, None), slice(None)),
    "strided": (slice(1, None, 3), slice(2, None, 4)),
    "reversed": (slice(None, None, -1), slice(None, None, -1)),
    "reversed, strided": (slice(17, 3, -3), slice(None, None, -2)),
    "one pixel": (slice(5, 6), slice(8, 9)),
    "one column": (slice(None), slice(8, 9)),
    "even list": ([3, 5, 7], [9, 8, 7]),
}


def scene_on(grid: str):
    """Every pixel of band 0 holds its row, of band 1 its column."""
    crs, transform = GRIDS[grid]
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return make_scene(np.stack([rows, columns]).astype(np.float32), crs=crs, transform=transform)


def assert_in_place(image, transform: Affine, whole: Affine) -> None:
    """Compare every pixel's centre by ``transform`` with that of the whole scene's pixel whose values it has."""
    rows, columns = np.mgrid[: image.shape[1], : image.shape[2]] + 0.5
    x, y = transform.c + transform.a * columns + transform.b * rows, transform.f + transform.d * columns + transform.e * rows  # fmt: skip
    row, column = np.asarray(image, dtype=np.float64) + 0.5
    np.testing.assert_allclose(x, whole.c + whole.a * column + whole.b * row, rtol=1e-12)
    np.testing.assert_allclose(y, whole.f + whole.d * column + whole.e * row, rtol=1e-12)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("grid", GRIDS)
def test_a_part_knows_its_place(grid, cut):
    whole = scene_on(grid)
    part = whole.isel(y=CUTS[cut][0], x=CUTS[cut][1])
    crs, transform = georeference(part)
    assert crs == whole.rio.crs
    assert_in_place(part.values, transform, GRIDS[grid][1])
    if cut == "whole":
        assert transform == GRIDS[grid][1]  # bit for bit: fingerprints of the ground hold it


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("grid", GRIDS)
def test_rioxarray_knows_it_too(grid, cut):
    part = scene_on(grid).isel(y=CUTS[cut][0], x=CUTS[cut][1])
    if 1 in part.shape[1:]:
        pytest.skip("nothing says how large the only row or column is")
    # To a micrometre, and 1e-13 degrees: it computes the pixels' size from the coordinates.
    size = max(abs(GRIDS[grid][1].a), abs(GRIDS[grid][1].b))
    assert part.rio.transform().almost_equals(georeference(part)[1], 1e-9 * size)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", ["r.tif", "r.hdr", "r.npy", "r.zarr"])
def test_a_part_is_written_in_its_place(tmp_path, name, grid, cut):
    whole = scene_on(grid)
    part = whole[:, CUTS[cut][0], CUTS[cut][1]]
    transform = georeference(part)[1]
    half_turned = transform.a < 0 and not transform.d
    if name == "r.hdr" and (transform.determinant > 0 or grid == "sheared" or half_turned):
        with pytest.raises(SceneError, match="cannot express a mirrored or sheared grid"):
            write_scene(part, tmp_path / name)
        return
    write_scene(part, tmp_path / name)
    again = open_scene(tmp_path / name)
    np.testing.assert_array_equal(again.values, part.values)
    assert_in_place(again.values, georeference(again)[1], GRIDS[grid][1])
    # GDAL exchanges widths and heights of a rotated ENVI image whose pixels are oblong.
    oblong = not np.isclose(np.hypot(transform.a, transform.d), np.hypot(transform.b, transform.e))
    if name == "r.tif" or (name == "r.hdr" and not (oblong and transform.b)):  # others read it so
        with rasterio.open(again.attrs["source"]) as file:
            assert_in_place(part.values, file.transform, GRIDS[grid][1])


@pytest.mark.parametrize("grid", ["metres", "rotated"])
def test_parts_of_parts(grid):
    part = scene_on(grid)[:, 2:18, 3:28][:, ::-2, 4:][:, 1:5, 2:9:3]
    assert_in_place(part.values, georeference(part)[1], GRIDS[grid][1])
    last = part[:, 3:4, 2:3]
    row, column = last.values.ravel()
    x, y = georeference(last)[1] @ (0.5, 0.5)
    assert (x, y) == pytest.approx(GRIDS[grid][1] @ (column + 0.5, row + 0.5))


def test_coordinates_are_pixel_centres_and_select():
    scene = scene_on("metres")
    assert scene.x.values[:2].tolist() == [500030, 500060]
    assert scene.y.values[:2].tolist() == [3999990, 3999960]
    part = scene.sel(x=slice(500100, 500200), y=slice(3_999_900, 3_999_700))
    assert_in_place(part.values, georeference(part)[1], GRIDS["metres"][1])
    assert part.values[1, 0].tolist() == [3, 4, 5]
    nearest = scene.sel(x=500101, y=3999932, method="nearest")
    assert nearest.values.tolist() == [2, 2]


def test_rows_and_columns_of_a_rotated_grid_are_counted():
    scene = scene_on("rotated")
    assert {"x", "y"}.isdisjoint(scene.coords)  # no column has a single x
    assert scene["column"].values[:2].tolist() == [0.5, 1.5]
    assert scene[:, 5:]["row"].values[0] == 5.5
    assert scene.rio.transform() == GRIDS["rotated"][1]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.filterwarnings("ignore:Transform that is non-rectilinear")
def test_windows_by_rioxarray(grid, recwarn):
    part = scene_on(grid).rio.isel_window(Window(7, 4, 10, 9))
    assert_in_place(part.values, georeference(part)[1], GRIDS[grid][1])
    again = part[:, 2:, ::-1]
    assert_in_place(again.values, georeference(again)[1], GRIDS[grid][1])
    assert not [w for w in recwarn if "contradicts" in str(w.message)]


@pytest.mark.parametrize("grid", ["metres", "rotated"])
def test_means_of_neighbours(grid):
    coarse = scene_on(grid).coarsen(x=3, y=4).mean()
    assert georeference(coarse)[1].almost_equals(GRIDS[grid][1] @ Affine.scale(3, 4), 1e-9)


@pytest.mark.parametrize("grid", ["metres", "rotated"])
def test_uneven_rows_have_no_place(grid):
    part = scene_on(grid).isel(y=[1, 2, 9])
    with pytest.warns(UserWarning, match="not evenly spaced"):
        assert georeference(part)[1] is None


@pytest.mark.parametrize("grid", ["metres", "rotated"])
def test_a_transform_that_contradicts_the_coordinates_is_said(grid):
    scene = scene_on(grid)
    moved = scene.rio.write_transform(GRIDS[grid][1] @ Affine.translation(0.3, 0))
    with pytest.warns(UserWarning, match="contradicts its coordinates"):
        assert georeference(moved)[1] == GRIDS[grid][1]
    names = [name for name in ("x", "y", "column", "row") if name in moved.coords]
    there = GRIDS[grid][1] @ Affine.translation(0.3, 0)
    assert georeference(moved.drop_vars(names))[1].almost_equals(there, 1e-9)


def test_a_place_that_others_gave_counts():
    scene = make_scene(np.zeros((2, 3, 4), np.float32))
    assert georeference(scene) == (None, None)
    stated = scene.rio.write_crs("EPSG:32611").rio.write_transform(GRIDS["metres"][1])
    assert georeference(stated)[1] == GRIDS["metres"][1]
    coordinates = scene.assign_coords(x=[10.0, 12, 14, 16], y=[7.0, 6, 5])
    assert georeference(coordinates)[1] == Affine(2, 0, 9, 0, -1, 7.5)
    assert georeference(coordinates[:, 1:2, 2:3])[1] is None  # one pixel of unknown size
    shifted = scene_on("metres").assign_coords(x=lambda s: s.x + 100)
    assert georeference(shifted)[1] == Affine(30, 0, 500115, 0, -30, 4_000_005)


def test_what_is_computed_of_a_part_lies_there():
    crs, transform = GRIDS["metres"]
    values = np.random.default_rng(0).uniform(0.2, 0.8, (6, 40, 60)).astype(np.float32)
    scene = smooth_scene(values, fwhm=[60] * 6, crs=crs, transform=transform)
    part = scene[:, 8:32, 16:48]
    there = transform @ Affine.translation(16, 8)
    finer = restored_scene(restorer_of(part, Mixer(6, 2)), part)
    assert georeference(finer)[1] == there @ Affine.scale(0.5)
    assert georeference(finer[:, 4:, 6:])[1] == there @ Affine.translation(3, 2) @ Affine.scale(0.5)
    with pytest.warns(UserWarning, match="left out"):
        assert georeference(resample(part, "sentinel2a"))[1] == there
    assert Grid.of(part) == Grid((24, 32), scene.rio.crs, there)
    assert Ground.of(part).transform == tuple(there[:6])
    assert Ground.of(scene).transform == tuple(transform[:6])


def test_labels_are_brought_to_a_part(tmp_path):
    scene = scene_on("metres")
    codes = np.arange(HEIGHT * WIDTH).reshape(1, HEIGHT, WIDTH) % 7 + 1
    write_scene(make_scene(codes.astype(np.uint8), **dict(zip(("crs", "transform"), GRIDS["metres"], strict=True))), tmp_path / "labels.tif")  # fmt: skip
    with pytest.warns(UserWarning, match="resampled to it"):
        labels = open_labels(tmp_path / "labels.tif", like=scene[:, 4:13, 17:7:-1])
    np.testing.assert_array_equal(labels.values, codes[0, 4:13, 17:7:-1])
    assert georeference(labels) == georeference(scene[:, 4:13, 17:7:-1])


def test_a_cropped_scene_and_its_labels_lie_together():
    crs, transform = GRIDS["metres"]
    labels = make_labels(np.ones((HEIGHT, WIDTH), int), crs=crs, transform=transform)
    part = LabelledScene(scene_on("metres"), labels).cropped(slice(3, 9), slice(5, 20))
    there = transform @ Affine.translation(5, 3)
    assert georeference(part.scene)[1] == there
    assert georeference(part.labels)[1] == there


def test_a_part_is_read_when_it_is_asked_for():
    read = []

    def values(window):
        read.append(window)
        return np.zeros(tuple(len(range(s.start, s.stop, s.step)) for s in window), np.float32)

    crs, transform = GRIDS["metres"]
    scene = make_scene(LazyCube((3, 500, 400), np.float32, values), crs=crs, transform=transform)
    part = scene[:, 100:300, 50:350]
    assert georeference(part)[1] is not None and not read
    assert read_window(part, slice(0, 8), slice(4, 9)).shape == (3, 8, 5)
    assert read == [(slice(0, 3, 1), slice(100, 108, 1), slice(54, 59, 1))]


@pytest.mark.filterwarnings("ignore:.*resampled")
def test_pixels_of_size_0_are_no_place(tmp_path):
    """In a scene, a mask and labels alike."""
    flat = Affine(10, 0, 500015, 0, 0, 4_000_005)
    with pytest.warns(UserWarning, match="pixels of size 0"):
        scene = make_scene(np.zeros((1, 4, 5), np.uint8), crs="EPSG:32611", transform=flat)
    assert georeference(scene)[1] is None
    placed = make_scene(np.ones((1, 4, 5), np.uint8), crs="EPSG:32611", transform=GRIDS["metres"][1])  # fmt: skip
    write_scene(placed, tmp_path / "scene.tif")
    settings = {"driver": "GTiff", "count": 1, "height": 4, "width": 5, "dtype": "uint8"}
    with rasterio.open(tmp_path / "flat.tif", "w", crs="EPSG:32611", transform=flat, **settings) as file:  # fmt: skip
        file.write(np.full((1, 4, 5), 2, np.uint8))
    with pytest.warns(UserWarning, match=r"flat\.tif has a transform that cannot be right"):
        masked = open_scene(tmp_path / "scene.tif", mask=tmp_path / "flat.tif", mask_values=2)
    assert np.isnan(read_window(masked, slice(0, 4), slice(0, 5))).all()
    with pytest.warns(UserWarning, match="pixels of size 0"):
        assert open_labels(tmp_path / "flat.tif", like=placed).values.min() == 1


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_coordinates_are_as_even_as_their_type_can_say(tmp_path, dtype):
    """Degrees of 30 m in float32 are rounded to 3 % of a pixel."""
    step = 0.000269494585
    x = (-118.3 + step * (np.arange(3000) + 0.5)).astype(dtype)
    y = (34.1 - step * (np.arange(200) + 0.5)).astype(dtype)
    with h5py.File(tmp_path / "a.nc", "w") as file:
        for name, values in (("lat", y), ("lon", x)):
            file[name] = values
            file[name].make_scale(name)
        file["band"] = np.array([450.0, 550.0])
        file["band"].make_scale("band")
        file["cube"] = np.ones((2, 200, 3000), "u1")
        for axis, name in enumerate(("band", "lat", "lon")):
            file["cube"].dims[axis].attach_scale(file[name])
    crs, transform = georeference(open_scene(tmp_path / "a.nc"))
    assert crs.to_epsg() == 4326
    whole = Affine(step, 0, -118.3, 0, -step, 34.1)
    for corner in ((0, 0), (3000, 200)):
        there = ~whole @ (transform @ corner)
        np.testing.assert_allclose(there, corner, atol=0.1)


def test_uneven_coordinates_of_a_file_are_said(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["cube"] = np.ones((2, 4, 5))
        file["x"], file["y"] = np.arange(5.0), np.array([0, 1, 2, 4.0])
    with pytest.warns(UserWarning, match="y is not evenly spaced"):
        scene = open_scene(tmp_path / "a.h5", axis_order="byx")
    assert georeference(scene)[1] is None


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_others_make_of_a_scene_keeps_its_place(tmp_path):
    crs, transform = GRIDS["metres"]
    scene = scene_on("metres")
    joined = xr.concat([scene[:, :7], scene[:, 7:]], "y")
    for image in (joined, scene[0] - scene[1], scene.where(scene > 5), scene.mean("band"), scene.transpose("y", "x", "band")):  # fmt: skip
        assert georeference(image) == (scene.rio.crs, transform)
    clipped = scene.rio.clip_box(500015 + 95, 4_000_005 - 295, 500015 + 400, 4_000_005 - 100)
    assert georeference(clipped)[1] == transform @ Affine.translation(3, 3)
    degrees = scene.rio.reproject("EPSG:4326")
    assert georeference(degrees)[1].almost_equals(degrees.rio.transform(), 1e-12)
    scene[:, 3:9, ::2].rio.to_raster(tmp_path / "a.tif")
    assert georeference(open_scene(tmp_path / "a.tif"))[1] == transform @ Affine(
        2, 0, -0.5, 0, 1, 3
    )
    assert crs == "EPSG:32611"
