"""Windows of a patch classifier against each pixel's own crop, classified by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tiny_scene import BANDS, CLASSES, tiny_classifier, tiny_cube, tiny_labels, tiny_scene
from vitreous.scenes.cube import make_scene

MODES = [
    {"mode": "scene"},
    {"mode": "patch"},
    {"mode": "patch", "patch_norm": True},
]


def a_window(classifier, height=6, width=9):
    side = 2 * classifier.margin
    cube = tiny_cube(tiny_labels(), noise=0.2)
    return np.ascontiguousarray(cube[:, 3 : 3 + height + side, 2 : 2 + width + side])


def naive(classifier, window):
    """Every pixel's own crop through the parts of the network, one at a time, as the equations say."""
    margin, radius = classifier.margin, classifier.patch_size // 2
    height, width = (side - 2 * margin for side in window.shape[1:])
    output = np.zeros((CLASSES, height, width), np.float32)
    for row in range(height):
        for column in range(width):
            if np.isnan(window[:, row + margin, column + margin]).any():
                continue
            crop = window[:, row : row + 2 * margin + 1, column : column + 2 * margin + 1]
            channels = classifier.preprocess(torch.tensor(crop)[None])
            with torch.no_grad():
                if classifier.mode == "scene":
                    stem = classifier.net.stem(channels)
                    reach = margin - radius
                    inner = slice(reach, reach + classifier.patch_size)
                    logits = classifier.net.forward_patches(stem[:, :, inner, inner])
                else:
                    if classifier.patch_norm:
                        spread = channels.std((2, 3), keepdim=True, correction=0)
                        channels = channels - channels.mean((2, 3), keepdim=True)
                        channels = channels / (spread + 1e-8)
                    logits = classifier.net(channels)
            output[:, row, column] = logits.softmax(1)[0].numpy()
    return output


@pytest.mark.parametrize("model", ["lola_specvit_test", "vit_test"])
@pytest.mark.parametrize("settings", MODES)
def test_a_window_equals_its_pixels_crops(model, settings):
    classifier = tiny_classifier(tiny_scene(), model, **settings)
    window = a_window(classifier)
    window[:, classifier.margin + 1, classifier.margin + 2] = np.nan  # a pixel of the window itself
    window[:, 0, 0] = np.nan  # one of its context
    window[:, classifier.margin + 4, classifier.margin - 1] = np.nan
    expected = naive(classifier, window)
    assert expected.std(axis=(1, 2)).max() > 0.01  # the classifier tells pixels apart
    probabilities = classifier.classify(window)
    # Scores of this network span twenty units, which magnifies rounding (float64 tells); dividing by the spread of a
    # nearly constant patch does so even more.
    tolerance = 3e-3 if classifier.patch_norm else 5e-4
    np.testing.assert_allclose(probabilities, expected, atol=tolerance)
    assert not probabilities[:, 1, 2].any()
    valid = np.ones((6, 9), bool)
    valid[1, 2] = False
    np.testing.assert_allclose(probabilities.sum(0)[valid], 1, atol=1e-5)


def test_one_missing_band_makes_a_pixel_invalid():
    classifier = tiny_classifier(tiny_scene())
    window = a_window(classifier)
    window[BANDS - 1, classifier.margin, classifier.margin] = np.nan
    probabilities = classifier.classify(window)
    assert not probabilities[:, 0, 0].any()
    assert np.isfinite(probabilities).all()


def test_a_window_without_a_valid_pixel_is_zeros():
    classifier = tiny_classifier(tiny_scene())
    window = np.full_like(a_window(classifier), np.nan)
    np.testing.assert_array_equal(classifier.classify(window), np.zeros((CLASSES, 6, 9)))


@pytest.mark.parametrize("settings", MODES)
def test_halves_of_a_window_make_the_whole(settings, monkeypatch):
    classifier = tiny_classifier(tiny_scene(), **settings)
    window = a_window(classifier, 8, 7)
    side = 2 * classifier.margin
    whole = classifier.classify(window)
    halves = [classifier.classify(window[:, :, : 3 + side]), classifier.classify(window[:, :, 3:])]
    np.testing.assert_allclose(np.concatenate(halves, axis=2), whole, atol=5e-4)
    monkeypatch.setattr("vitreous.inference.patch_classifier.CHUNK", 5)
    np.testing.assert_allclose(classifier.classify(window), whole, atol=5e-4)


def test_modes_differ_only_through_the_patch_borders():
    """Where everything beyond a patch is the mean (zero channels), its borders show no difference."""
    scene = tiny_scene()
    shared, alone = (tiny_classifier(scene, mode=mode) for mode in ("scene", "patch"))
    assert shared.margin == alone.margin + shared.net.stem_reach
    window = a_window(shared, 1, 1)
    reach = shared.margin - alone.margin
    inner = np.ascontiguousarray(window[:, reach:-reach, reach:-reach])
    assert np.abs(shared.classify(window) - alone.classify(inner)).max() > 1e-3
    patch = torch.tensor(inner)[None]
    channels = torch.zeros(1, 4, 2 * shared.margin + 1, 2 * shared.margin + 1)
    channels[:, :, reach:-reach, reach:-reach] = shared.preprocess(patch)
    with torch.no_grad():
        stem = shared.net.stem(channels)[:, :, reach:-reach, reach:-reach]
        # Only zeros *between* the stem's layers remain: one convolution sees none of them.
        first = shared.net.spectral[0]
        inside = first(channels[:, None])[:, :, :, reach:-reach, reach:-reach]
        torch.testing.assert_close(inside, first(shared.preprocess(patch)[:, None]))
        border = (stem - shared.net.stem(shared.preprocess(patch))).abs().amax((0, 1))
    assert (
        border[2, 2] < 1e-5 < border[0, 0]
    )  # the middle of a 5 x 5 patch is two pixels from zeros


def test_stored_digits_with_a_scale_are_the_same_scene():
    from vitreous.inference.pixels import classify_pixels

    digits = np.round(tiny_cube(tiny_labels(), noise=0.1).clip(0.01, 1) * 1e4).astype(np.uint16)
    wavelengths = np.linspace(450, 900, BANDS)
    stored = make_scene(digits, wavelengths=wavelengths, unit="reflectance", scale=1e-4)
    plain = make_scene(
        digits.astype(np.float32) * np.float32(1e-4), wavelengths=wavelengths, unit="reflectance"
    )
    classifier = tiny_classifier(plain)
    pixels = np.arange(tiny_labels().size)
    found = classify_pixels(classifier, stored, pixels)
    assert len(np.unique(found)) > 1
    np.testing.assert_array_equal(found, classify_pixels(classifier, plain, pixels))


def test_classifying_leaves_no_trace():
    classifier = tiny_classifier(tiny_scene())
    window = a_window(classifier)
    weights = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    values = window.copy()
    first = classifier.train().classify(window)
    np.testing.assert_array_equal(first, classifier.classify(window))
    np.testing.assert_array_equal(window, values)
    assert all(torch.equal(weights[name], t) for name, t in classifier.state_dict().items())
