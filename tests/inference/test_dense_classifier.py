"""Tiles blended into windows: against the plainest way, wherever windows are cut, and whatever is in them."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
import torch
from box_classifier import BoxClassifier

from tiny_scene import BANDS, CLASSES, tiny_cube, tiny_labels, tiny_scene
from vitreous.catalog.registry import create_model
from vitreous.data.contract import BandContract
from vitreous.inference.dense_classifier import DenseClassifier, blending_weights
from vitreous.inference.maps import no_georeference_warning
from vitreous.inference.pixels import classify_pixels
from vitreous.inference.predict import predict_scene
from vitreous.inference.windows import Window, aligned, plan_windows
from vitreous.layers.decoders import DenseNet
from vitreous.layers.preprocess import Preprocess
from vitreous.scenes.cube import class_palette, make_scene

TILE = 16
OPTIONS = {"class_names": ["a", "b", "c"], "class_colors": class_palette(CLASSES), "png": False}


def classifier_of(scene, model="convnext_test", decoder="fpn", padding="reflect"):
    torch.manual_seed(0)
    pixels = tiny_cube(tiny_labels()).reshape(BANDS, -1).T
    preprocess = Preprocess.fit(pixels, components=4)
    net = DenseNet(
        create_model(model, bands=4, num_classes=CLASSES, image_size=TILE), decoder, width=8
    )
    torch.nn.init.normal_(net.head.weight, std=2.0)  # else all probabilities are about equal
    with torch.no_grad():  # and here no class is favoured
        net.head.bias -= net(torch.randn(8, 4, TILE, TILE)).mean((0, 2, 3))
    contract = BandContract.of(scene)
    own = {"patch_size": 5, "tile_size": TILE, "padding": padding}
    return DenseClassifier(net, preprocess, contract, **own).eval()


def noisy_scene(height=50, width=31, seed=3):
    labels = np.random.default_rng(seed).integers(1, CLASSES + 1, (height, width))
    return tiny_scene(tiny_cube(labels, noise=0.2))


def plainest(classifier, scene):
    """Blend over the whole scene, a pixel's weights divided by their sum; reads nothing of the classifier's tiling."""
    values = scene.values
    height, width = values.shape[1:]
    step, overlap = TILE * 3 // 4, TILE // 4
    pad = 3 * TILE
    mode = {"mode": "reflect"} if classifier.padding == "reflect" else {"constant_values": np.nan}
    padded = np.pad(values, ((0, 0), (pad, pad), (pad, pad)), **mode)
    ramp = [np.sin(np.pi / 2 * (k + 0.5) / overlap) ** 2 for k in range(overlap)]
    along = np.array([*ramp, *[1.0] * (TILE - 2 * overlap), *ramp[::-1]])
    total = np.zeros((CLASSES, *padded.shape[1:]))
    weight = np.zeros(padded.shape[1:])
    for row in range(pad - step, pad + height, step):
        for column in range(pad - step, pad + width, step):
            place = np.s_[row : row + TILE, column : column + TILE]
            tile = np.ascontiguousarray(padded[(slice(None), *place)])
            with torch.no_grad():
                scores = classifier.net(classifier.preprocess(torch.from_numpy(tile)[None]))[0]
            total[(slice(None), *place)] += scores.softmax(0).numpy() * along[:, None] * along
            weight[place] += along[:, None] * along
    inner = np.s_[pad : pad + height, pad : pad + width]
    return total[(slice(None), *inner)] / weight[inner]


def mapped(classifier, scene, folder, **options):
    predict_scene(
        classifier,
        scene,
        folder / "map.tif",
        probabilities=folder / "p.tif",
        **OPTIONS,
        **options,
    )
    with no_georeference_warning(), rasterio.open(folder / "p.tif") as file:
        return file.read()


@pytest.mark.parametrize("padding", ["reflect", "zero"])
@pytest.mark.parametrize(
    ("window", "workers"), [(None, None), (1, 1), (12, 1), (29, 2), (36, 1), (1000, 1)]
)
def test_the_map_is_the_blend_of_all_tiles_wherever_windows_are_cut(
    tmp_path, padding, window, workers
):
    scene = noisy_scene()
    classifier = classifier_of(scene, padding=padding)
    expected = plainest(classifier, scene)
    assert expected.std(axis=(1, 2)).max() > 0.05  # it tells pixels apart
    found = mapped(classifier, scene, tmp_path, window=window, workers=workers)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("decoder", ["fpn", "upernet"])
@pytest.mark.parametrize("model", ["vit_test", "swin_test"])
def test_other_networks_too(tmp_path, model, decoder):
    scene = noisy_scene(20, 30)
    classifier = classifier_of(scene, model, decoder)
    found = mapped(classifier, scene, tmp_path, window=12)
    np.testing.assert_allclose(found, plainest(classifier, scene), atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (3, 40), (17, 2)])
def test_scenes_smaller_than_a_tile(tmp_path, shape):
    scene = noisy_scene(*shape)
    classifier = classifier_of(scene)
    found = mapped(classifier, scene, tmp_path)
    np.testing.assert_allclose(found, plainest(classifier, scene), atol=1e-5)


def test_some_pixels_get_the_classes_of_the_map(tmp_path):
    scene = noisy_scene(70, 60)
    classifier = classifier_of(scene)
    classes = mapped(classifier, scene, tmp_path).argmax(0) + 1
    pixels = np.random.default_rng(0).choice(70 * 60, 25, replace=False)
    np.testing.assert_array_equal(
        classify_pixels(classifier, scene, pixels), classes.ravel()[pixels]
    )
    assert len(np.unique(classes.ravel()[pixels])) > 1


def test_invalid_pixels_are_zeros_and_count_as_the_mean(tmp_path):
    values = noisy_scene().values.copy()
    values[2, 7, 9] = np.nan  # one band is enough
    values[:, 20:45] = np.nan
    scene = tiny_scene(values)
    classifier = classifier_of(scene)
    found = mapped(classifier, scene, tmp_path, window=24)
    invalid = np.isnan(values).any(0)
    assert np.isnan(found[:, invalid]).all()
    filled = values.copy()
    filled[:, invalid] = classifier.preprocess.mean.numpy()[:, None]
    expected = plainest(classifier, tiny_scene(filled))
    np.testing.assert_allclose(found[:, ~invalid], expected[:, ~invalid], atol=1e-5)


def test_a_window_in_itself():
    classifier = classifier_of(noisy_scene())
    side = 2 * classifier.margin
    assert side == 30
    window = noisy_scene(9 + side, 7 + side).values.copy()
    window[:, classifier.margin + 2, classifier.margin + 3] = np.nan
    before = window.copy()
    weights = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    found = classifier.train().classify(window)
    assert found.shape == (CLASSES, 9, 7)
    assert not found[:, 2, 3].any()
    valid = np.ones((9, 7), bool)
    valid[2, 3] = False
    np.testing.assert_allclose(found.sum(0)[valid], 1, atol=1e-5)
    np.testing.assert_array_equal(found, classifier.classify(window))
    np.testing.assert_array_equal(window, before)
    assert all(torch.equal(weights[name], t) for name, t in classifier.state_dict().items())
    empty = np.full_like(window, np.nan)
    np.testing.assert_array_equal(classifier.classify(empty), np.zeros((CLASSES, 9, 7)))


def test_tiles_without_a_valid_pixel_are_not_computed(monkeypatch):
    classifier = classifier_of(noisy_scene())
    window = np.full((BANDS, 36 + 30, 36 + 30), np.nan, np.float32)
    window[:, 15, 15] = 0.5
    seen = []
    forward = classifier.features
    monkeypatch.setattr(classifier, "features", lambda x: seen.append(len(x)) or forward(x))
    assert classifier.classify(window)[:, 0, 0].sum() == pytest.approx(1, abs=1e-5)
    assert sum(seen) == 4  # of 16


def test_a_pixel_is_no_business_of_others_than_those_that_share_a_tile(tmp_path):
    scene = noisy_scene(60, 60)
    classifier = classifier_of(scene)
    before = mapped(classifier, scene, tmp_path)
    values = scene.values.copy()
    values[:, 30, 30] += 0.5
    changed = np.abs(mapped(classifier, tiny_scene(values), tmp_path) - before).max(0) > 1e-6
    rows, columns = np.nonzero(changed)
    assert changed[30, 30]
    # Tiles begin at 24 (the one from 12 ends before 28).
    assert {rows.min(), columns.min()} <= set(range(24, 31))
    assert max(rows.max(), columns.max()) < 24 + TILE


@pytest.mark.parametrize("size", [16, 17, 30, 64])
def test_weights_of_overlapping_tiles_sum_to_one(size):
    overlap = size // 4
    total = torch.zeros(4 * size, 4 * size)
    for row in range(0, 3 * size, size - overlap):
        for column in range(0, 3 * size, size - overlap):
            total[row : row + size, column : column + size] += blending_weights(size, overlap)
    torch.testing.assert_close(
        total[size : 2 * size, size : 2 * size], torch.ones(size, size), atol=1e-6, rtol=0
    )


def test_windows_of_a_grid():
    for size, side, step in ((145, 256, 48), (145, 50, 48), (10, 3, 7), (97, 97, 48), (96, 60, 12)):
        rows = plan_windows(size, 1, side, step)
        assert [w.row for w in rows] == [0, *(w.row + w.height for w in rows[:-1])]
        assert rows[-1].row + rows[-1].height == size
        assert all(w.row % step == 0 and w.height <= max(side, step) for w in rows)
        for row in rows:
            assert aligned(row, step, size, 1).rows == row.rows
    assert aligned(Window(13, 0, 12, 1), 12, 30, 1) == Window(12, 0, 18, 1)


def test_a_classifier_without_a_grid_gets_the_windows_it_always_got():
    scene = make_scene(np.random.default_rng(0).normal(size=(4, 90, 70)).astype(np.float32))
    classifier = BoxClassifier()
    classify_pixels(classifier, scene, np.array([0, 5, 70 * 80 + 1]))
    side = 2 * classifier.margin
    assert classifier.calls == [(4, 1 + side, 6 + side), (4, 1 + side, 1 + side)]


@pytest.mark.parametrize("tile_size", [0, 3, 4096, 10**12])
def test_absurd_tiles_are_refused(tile_size):
    whole = classifier_of(noisy_scene())
    with pytest.raises(ValueError, match="tiles of"):
        DenseClassifier(
            whole.net, whole.preprocess, whole.contract, patch_size=5, tile_size=tile_size
        )
