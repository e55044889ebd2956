"""Classes of some pixels against the map of the whole scene."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
from box_classifier import BoxClassifier, random_scene

from tiny_scene import tiny_classifier, tiny_cube, tiny_labels, tiny_scene
from vitreous.inference.maps import no_georeference_warning
from vitreous.inference.pixels import TILE, classify_pixels
from vitreous.inference.predict import predict_scene


def the_map(classifier, scene, folder, window):
    names = [f"class {k}" for k in range(classifier.num_classes)]
    colors = ["#112233"] * classifier.num_classes
    predict_scene(
        classifier,
        scene,
        folder / "map.tif",
        class_names=names,
        class_colors=colors,
        window=window,
        png=False,
    )
    with no_georeference_warning(), rasterio.open(folder / "map.tif") as file:
        return file.read(1).ravel()


@pytest.mark.parametrize(
    "settings",
    [
        {"mode": "scene", "padding": "reflect"},
        {"mode": "scene", "padding": "zero"},
        {"mode": "patch", "padding": "zero", "patch_norm": True},
    ],
)
def test_pixels_equal_the_map(tmp_path, settings):
    cube = tiny_cube(tiny_labels(), noise=0.1)
    cube[:, 4:7, 20:24] = np.nan
    cube[2, 15, 3] = np.nan
    scene = tiny_scene(cube)
    classifier = tiny_classifier(scene, **settings)
    expected = the_map(classifier, scene, tmp_path, window=11)
    assert len(np.unique(expected)) > 2
    assert expected[15 * 28 + 3] == 0
    rng = np.random.default_rng(0)
    for count in (1, 7, 300, expected.size):
        pixels = rng.permutation(expected.size)[:count]
        np.testing.assert_array_equal(classify_pixels(classifier, scene, pixels), expected[pixels])


def test_pixels_of_many_tiles_keep_their_order(tmp_path):
    scene = random_scene(TILE + 9, 2 * TILE + 5)
    classifier = BoxClassifier()
    expected = the_map(classifier, scene, tmp_path, window=50)
    pixels = np.random.default_rng(1).permutation(expected.size)[:500]
    pixels = np.concatenate([pixels, [0, expected.size - 1, 2 * TILE + 4], pixels[:3]])
    np.testing.assert_array_equal(classify_pixels(classifier, scene, pixels), expected[pixels])


def test_no_pixels_have_no_classes():
    scene = tiny_scene()
    assert classify_pixels(tiny_classifier(scene), scene, np.zeros(0, np.int64)).shape == (0,)
