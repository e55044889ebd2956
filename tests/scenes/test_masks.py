"""Which mask a word stands for: that of the scene's product, or a neighbour that is named, or a question."""

import numpy as np
import pytest
import rasterio
from affine import Affine

from vitreous import open_scene, write_scene
from vitreous.errors import SceneError
from vitreous.scenes.cube import make_scene, read_window

PLACE = {"crs": "EPSG:32633", "transform": Affine(10, 0, 600000, 0, -10, 5000000)}
CLASSES = np.array([[4, 9, 4], [3, 4, 4]], "u1")
TILE = "T33UUU_20230216T102101"


def put_mask(path, classes=CLASSES):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_scene(make_scene(classes[None], **PLACE), path)
    return path


@pytest.fixture
def scene_file(tmp_path):
    path = tmp_path / f"{TILE}_reflectance.tif"
    write_scene(make_scene(np.ones((2, 2, 3), "f4"), **PLACE), path)
    return path


def hidden(path, mask="scl"):
    return np.isnan(read_window(open_scene(path, mask=mask), slice(0, 2), slice(0, 3))[0])


@pytest.mark.filterwarnings("error::UserWarning")
def test_a_mask_named_after_the_scene_is_taken(tmp_path, scene_file):
    put_mask(tmp_path / f"{TILE}_SCL_20m.tif")
    put_mask(tmp_path / "SCL.tif", np.full_like(CLASSES, 9))
    put_mask(tmp_path / "T33UUU_20240101T102101_SCL_20m.tif", np.full_like(CLASSES, 9))
    np.testing.assert_array_equal(hidden(scene_file), np.isin(CLASSES, [3, 9]))


def test_another_neighbour_is_named(tmp_path, scene_file):
    put_mask(tmp_path / "scl.tif")
    with pytest.warns(UserWarning, match=r"is masked by .*scl\.tif, which is not named after it"):
        np.testing.assert_array_equal(hidden(scene_file), np.isin(CLASSES, [3, 9]))


def test_several_others_are_asked_for(tmp_path, scene_file):
    put_mask(tmp_path / "a_SCL.tif")
    put_mask(tmp_path / "b_SCL.tif")
    with pytest.raises(SceneError, match=r"several SCL images \(a_SCL\.tif, b_SCL\.tif\).*mask=FILE"):  # fmt: skip
        open_scene(scene_file, mask="scl")
    np.testing.assert_array_equal(hidden(scene_file, tmp_path / "b_SCL.tif"), CLASSES != 4)


def test_none_is_said(tmp_path, scene_file):
    with pytest.raises(SceneError, match="has no QA image"):
        open_scene(scene_file, mask="qa")
    with pytest.raises(rasterio.errors.RasterioIOError):
        rasterio.open(tmp_path / "scl.tif")
