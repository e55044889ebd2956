"""The files of a prediction: place, names, colours, overviews, the picture."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import rasterio
from affine import Affine
from box_classifier import BoxClassifier, random_scene
from rasterio.enums import ColorInterp

from vitreous.errors import VitreousError
from vitreous.inference.maps import Classes, Grid, map_products, no_georeference_warning
from vitreous.inference.picture import round_length, write_picture
from vitreous.inference.predict import predict_scene
from vitreous.inference.windows import Scored, Window, class_dtype, plan_windows
from vitreous.scenes import open_labels, open_scene
from vitreous.scenes.cube import class_palette

ROTATED = Affine.from_gdal(500_000.0, 13.3, 8.9, 4_000_000.0, 8.9, -13.3)
ODD_NAMES = ["Wald & Wiese", "água", "<script>", "$x^2", "_under"]


def write_map(path, values, names, probabilities=None, **place):
    grid = Grid(*values.shape, **place)
    with map_products(path, None, grid, Classes(names, class_palette(len(names)))) as writer:
        for window in plan_windows(*values.shape, 100):
            rows = slice(window.row, window.row + window.height)
            columns = slice(window.column, window.column + window.width)
            writer.write(window, Scored(values[rows, columns], None))
    return writer


def test_the_map_lies_where_the_scene_lies_with_names_and_colours(tmp_path):
    classifier = BoxClassifier()
    scene = random_scene(crs="EPSG:32611", transform=ROTATED)
    colors = classifier.options["class_colors"]
    result = predict_scene(
        classifier, scene, tmp_path / "map.tif", class_names=ODD_NAMES, class_colors=colors
    )
    with rasterio.open(result.map) as dataset:
        assert dataset.crs.to_epsg() == 32611
        assert dataset.transform.almost_equals(ROTATED)
        assert (dataset.nodata, dataset.dtypes, dataset.shape) == (0, ("uint8",), (40, 33))
        assert dataset.colorinterp == (ColorInterp.palette,)
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        table = dataset.colormap(1)
    assert ["#{:02x}{:02x}{:02x}".format(*table[k][:3]) for k in range(1, 6)] == colors
    assert open_labels(result.map).attrs["class_names"] == ODD_NAMES
    # GDAL itself must find the names: it carries them along when it copies a file.
    rasterio.shutil.copy(result.map, tmp_path / "copy.tif", driver="GTiff")
    copied = (tmp_path / "copy.tif.aux.xml").read_text(encoding="utf-8")
    assert all(name in copied for name in ("Wald &amp; Wiese", "água", "&lt;script&gt;"))
    assert sorted(result.paths) == sorted(
        tmp_path / name for name in ("map.tif", "map.tif.aux.xml", "map.png")
    )


def test_a_map_without_a_place_has_none_and_nobody_is_warned(tmp_path, recwarn):
    predict_scene(BoxClassifier(), random_scene(), tmp_path / "map.tif", **BoxClassifier().options)
    assert not [w for w in recwarn if "Georeferenced" in w.category.__name__]
    with no_georeference_warning(), rasterio.open(tmp_path / "map.tif") as dataset:
        assert dataset.crs is None
        assert dataset.transform.is_identity


def test_probabilities_are_named_bands(tmp_path):
    classifier = BoxClassifier()
    scene = random_scene(700, 30, crs="EPSG:32611", transform=ROTATED)
    predict_scene(
        classifier,
        scene,
        tmp_path / "map.tif",
        probabilities=tmp_path / "p.tif",
        png=False,
        **classifier.options,
    )
    with rasterio.open(tmp_path / "p.tif") as dataset:
        assert dataset.descriptions == tuple(classifier.options["class_names"])
        assert dataset.dtypes == ("float32",) * 5
        assert np.isnan(dataset.nodata)
        assert dataset.transform.almost_equals(ROTATED)
        assert dataset.tags(ns="IMAGE_STRUCTURE")["INTERLEAVE"] == "BAND"
        assert dataset.overviews(1) == [2, 4]
        probabilities = dataset.read()
    np.testing.assert_allclose(probabilities.sum(axis=0), 1, rtol=1e-5)
    with rasterio.open(tmp_path / "map.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(1), probabilities.argmax(axis=0) + 1)
    assert open_scene(tmp_path / "p.tif").shape == (5, 700, 30)


def test_more_than_255_classes(tmp_path):
    assert class_dtype(255) == np.uint8
    assert class_dtype(256) == np.uint16
    names = [f"class {k}" for k in range(1, 301)]
    values = np.arange(900, dtype=np.uint16).reshape(30, 30) % 301
    writer = write_map(tmp_path / "map.tif", values, names)
    assert writer.class_pixels.sum() == 900
    labels = open_labels(tmp_path / "map.tif")
    np.testing.assert_array_equal(labels.values, values)
    assert labels.attrs["class_names"] == names
    assert labels.attrs["class_colors"][:300] == class_palette(300)
    write_picture(
        tmp_path / "map.tif",
        tmp_path / "map.png",
        Classes(names, class_palette(300)),
        writer.class_pixels[1:],
    )
    assert (tmp_path / "map.png").stat().st_size > 1000


def test_overviews_show_the_class_of_most_pixels(tmp_path):
    values = np.ones((1024, 1024), np.uint8)
    values[::4, ::4] = 2  # one pixel in sixteen
    write_map(tmp_path / "map.tif", values, ["field", "tree"])
    with no_georeference_warning(), rasterio.open(tmp_path / "map.tif", overview_level=0) as small:
        assert small.shape == (512, 512)
        assert (small.read(1) == 1).all()


def test_a_missing_window_is_noticed(tmp_path):
    grid = Grid(20, 20)
    window = Window(0, 0, 10, 20)
    with (
        pytest.raises(VitreousError, match="differs from what was computed"),
        map_products(tmp_path / "m.tif", None, grid, Classes(["a"], ["#000000"])) as writer,
    ):
        writer.write(window, Scored(np.ones((10, 20), np.uint8), None))
    assert list(tmp_path.iterdir()) == []


def pictured(tmp_path: Path, values, crs=None, resolution=20.0, names=("a", "b")):
    transform = Affine(resolution, 0, 0, 0, -resolution, 0) if crs else None
    path = tmp_path / "map.tif"
    writer = write_map(path, values, list(names), crs=crs, transform=transform)
    classes = Classes(list(names), ["#e69f00", "#0072b2"])
    write_picture(path, tmp_path / "map.png", classes, writer.class_pixels[1:], title="A scene")
    return matplotlib.image.imread(tmp_path / "map.png")


def near(picture, color):
    wanted = np.array([int(color[k : k + 2], 16) for k in (1, 3, 5)]) / 255
    return (np.abs(picture[..., :3] - wanted) < 0.01).all(axis=-1)


@pytest.mark.parametrize("shape", [(1, 1), (100, 100), (5, 400), (400, 5), (3000, 2000)])
def test_pictures_of_all_shapes_are_whole(tmp_path, shape):
    values = np.ones(shape, np.uint8)
    values[:, shape[1] // 2 :] = 2
    picture = pictured(
        tmp_path, values, names=("meadow", "a name as long as names ever get, or more")
    )
    height, width = picture.shape[:2]
    assert 0.1 < height / width < 10
    border = np.concatenate([picture[:8].reshape(-1, 4), picture[:, -8:].reshape(-1, 4)])
    assert (border == 1).all()  # nothing is cut off
    assert near(picture, "#0072b2").any()


def test_nodata_is_paper(tmp_path):
    values = np.ones((60, 60), np.uint8)
    full = near(pictured(tmp_path, values), "#e69f00").sum()
    values[:30] = 0
    half = near(pictured(tmp_path, values), "#e69f00").sum()
    assert 0.45 < half / full < 0.55


def test_only_maps_in_metres_have_a_scale_bar(tmp_path):
    values = np.ones((60, 60), np.uint8)
    plain = pictured(tmp_path, values).shape[0]
    assert pictured(tmp_path, values, crs="EPSG:4326", resolution=0.01).shape[0] == plain
    assert pictured(tmp_path, values, crs="EPSG:32633").shape[0] > plain


@pytest.mark.parametrize(
    ("metres", "length"), [(7, 5), (10, 10), (1999, 1000), (2000, 2000), (0.03, 0.02)]
)
def test_round_lengths(metres, length):
    assert round_length(metres) == pytest.approx(length)
