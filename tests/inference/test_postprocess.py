"""Refined, calibrated and judged probabilities: windows that fit together, settings, files, and spectra never seen."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import rasterio
from box_classifier import BoxClassifier, random_scene
from test_dense_classifier import classifier_of

from tiny_scene import BANDS, CLASSES, tiny_classifier, tiny_cube, tiny_labels, tiny_scene
from vitreous.errors import CheckpointError, ConfigError, ModelError
from vitreous.inference.maps import no_georeference_warning
from vitreous.inference.pixels import classify_pixels
from vitreous.inference.postprocess import (
    FILTERS,
    CalibratedClassifier,
    Postprocess,
    Projection,
    RefinedClassifier,
    at_temperature,
    changed,
    finished,
    fit_novelty,
    fit_projection,
    make_refinement,
    read_postprocess,
)
from vitreous.inference.predict import predict_scene
from vitreous.scenes.cube import class_palette

OPTIONS = {"class_names": ["a", "b", "c"], "class_colors": class_palette(CLASSES), "png": False}
SMALL = {
    "domain_transform": {"spatial": 2.0},
    "guided": {"radius": 3},
    "potts": {"iterations": 5, "strength": 0.7},
}


def holed_scene(height=40, width=31):
    labels = np.random.default_rng(3).integers(1, CLASSES + 1, (height, width))
    cube = tiny_cube(np.kron(labels[::5, ::5], np.ones((5, 5), int))[:height, :width], noise=0.15)
    cube[:, 7:9, 12:20] = np.nan
    cube[2, 30, 3] = np.nan
    return tiny_scene(cube)


def guide_of(scene):
    spectra = scene.values.reshape(BANDS, -1).T
    return fit_projection(spectra[np.isfinite(spectra).all(1)], 3)


def mapped(classifier, scene, folder, window):
    paths = folder / "map.tif", folder / "p.tif"
    predict_scene(classifier, scene, paths[0], probabilities=paths[1], window=window, **OPTIONS)
    with no_georeference_warning(), rasterio.open(paths[0]) as file, rasterio.open(paths[1]) as p:
        return file.read(1), p.read()


# -- windows ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", FILTERS)
@pytest.mark.parametrize("kind", ["scene", "zero", "dense", "box"])
def test_a_map_does_not_depend_on_its_windows(tmp_path, method, kind):
    scene = holed_scene()
    classifier = {
        "scene": lambda: tiny_classifier(scene),
        "zero": lambda: tiny_classifier(scene, padding="zero"),
        "dense": lambda: classifier_of(scene),
        "box": lambda: BoxClassifier(bands=BANDS, num_classes=CLASSES),
    }[kind]()
    refined = RefinedClassifier(classifier, guide_of(scene), make_refinement(method, SMALL[method]))
    whole, expected = mapped(refined, scene, tmp_path, 64)
    _, plain = mapped(classifier, scene, tmp_path, 64)
    assert np.nanmax(np.abs(plain - expected)) > 0.03
    assert (whole[np.isnan(scene.values).any(axis=0)] == 0).all()
    ordered = np.sort(np.nan_to_num(expected), axis=0)
    clear = ordered[-1] - ordered[-2] > 1e-4
    for window in (7, 13):
        classes, probabilities = mapped(refined, scene, tmp_path, window)
        np.testing.assert_allclose(probabilities, expected, atol=1e-5)
        np.testing.assert_array_equal(classes[clear], whole[clear])
    pixels = np.random.default_rng(0).permutation(whole.size)[:60]
    found = classify_pixels(refined, scene, pixels)
    np.testing.assert_array_equal(
        found[clear.ravel()[pixels]], whole.ravel()[pixels][clear.ravel()[pixels]]
    )


def test_a_context_that_is_too_small_would_be_seen(tmp_path):
    """The test above can fail: windows with less context than the filter reaches differ."""
    scene = holed_scene()
    refinement = make_refinement("domain_transform", {"spatial": 4, "range": 50})
    refined = RefinedClassifier(
        BoxClassifier(bands=BANDS, num_classes=CLASSES), guide_of(scene), refinement
    )
    _, expected = mapped(refined, scene, tmp_path, 64)
    short = type("Short", (RefinedClassifier,), {"around": 5})
    _, found = mapped(short(refined.classifier, refined.guide, refinement), scene, tmp_path, 7)
    assert np.nanmax(np.abs(found - expected)) > 1e-3


@pytest.mark.parametrize("method", FILTERS)
def test_nothing_beyond_the_reach_matters(method):
    refinement = make_refinement(method, SMALL[method])
    rng = np.random.default_rng(0)
    side, middle = 4 * refinement.reach + 1, 2 * refinement.reach
    probabilities = rng.dirichlet(np.ones(3), (side, side)).transpose(2, 0, 1).astype(np.float32)
    guide = rng.normal(size=(2, side, side)).astype(np.float32)
    guide *= 0.01  # nearly even: the filter reaches as far as it can
    expected = refinement(probabilities, guide)[:, middle, middle]
    for image in (probabilities, guide):
        changed_image = image.copy()
        keep = np.s_[:, middle - refinement.reach : middle + refinement.reach + 1]
        outside = np.ones((side, side), bool)
        outside[keep[1], keep[1]] = False
        changed_image[:, outside] = rng.permutation(changed_image[:, outside], axis=1)
        pair = (changed_image, guide) if image is probabilities else (probabilities, changed_image)
        np.testing.assert_array_equal(refinement(*pair)[:, middle, middle], expected)


def test_the_guide_is_the_same_in_every_window():
    scene = random_scene(bands=BANDS)
    guide = guide_of(scene)
    values = scene.values
    whole = guide.of(values)
    np.testing.assert_array_equal(guide.of(values[:, 5:12, 3:20]), whole[:, 5:12, 3:20])
    np.testing.assert_allclose(whole.std(axis=(1, 2)), 1, rtol=1e-3)
    np.testing.assert_allclose(np.corrcoef(whole.reshape(3, -1)), np.eye(3), atol=1e-3)


def test_constant_bands_do_not_disturb_a_guide():
    spectra = np.random.default_rng(0).normal(size=(500, 4))
    spectra[:, 2] = 7
    spectra[:, 3] = spectra[:, 0]
    guide = fit_projection(spectra, 4)
    weights = np.asarray(guide.weights)
    assert np.isfinite(weights).all()
    assert np.abs(weights[:, 2]).max() == 0
    # Three bands of two different contents: what a third component would hold is rounding, not edges.
    channels = guide.of(spectra.T[:, :, None].astype(np.float32))[:, :, 0]
    np.testing.assert_allclose(channels.std(axis=1), [1, 1, 0, 0], atol=1e-3)


@pytest.mark.parametrize("spectra", [np.full((30, 3), 5.0), np.ones((1, 3)), np.ones((2, 1))])
def test_even_ground_has_an_even_guide(spectra):
    guide = fit_projection(spectra, 3)
    found = guide.of(spectra.T[:, :, None].astype(np.float32))
    np.testing.assert_array_equal(found, 0)


def test_bands_of_very_different_units_all_count():
    rng = np.random.default_rng(0)
    spectra = rng.normal(size=(400, 3)) * [1e-9, 1, 1e9] + [1e-8, 3, 2e9]
    channels = fit_projection(spectra, 3).of(spectra.T[:, :, None].astype(np.float32))
    np.testing.assert_allclose(channels[:, :, 0].std(axis=1), 1, rtol=1e-2)


@pytest.mark.parametrize("spectra", [np.eye(6, 4), np.ones((300, 4))])
def test_too_few_or_equal_pixels_tell_nothing_of_novelty(spectra):
    assert fit_novelty(spectra, np.arange(len(spectra)) % 3 + 1) is None


def test_another_number_of_bands_is_refused():
    scene = tiny_scene()
    guide = Projection(mean=[0.0], weights=[[1.0]])
    with pytest.raises(ModelError, match="guide of the refinement has 1 bands, the model 8"):
        RefinedClassifier(tiny_classifier(scene), guide, make_refinement("potts", {}))


# -- settings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        ("domain", {}, "Unknown refinement: domain.*Did you mean 'domain_transform'"),
        ("domain_transform", {"spacial": 3}, "no setting 'spacial'.*'spatial'"),
        ("domain_transform", {"spatial": 0}, "spatial .* is 0"),
        ("domain_transform", {"spatial": "wide"}, "spatial .* is 'wide'"),
        ("domain_transform", {"spatial": float("nan")}, "spatial .* is nan"),
        ("domain_transform", {"iterations": 2.5}, "iterations .* is 2.5"),
        ("domain_transform", {"range": -1}, "range .* is -1"),
        ("guided", {"radius": 1000}, "radius .* is 1000"),
        ("guided", {"smoothness": 0}, "smoothness .* is 0"),
        ("potts", {"strength": True}, "strength .* is True"),
        ("potts", {"method": "guided"}, "no setting 'method'"),
        ("none", {"spatial": 3}, "'none' has no setting 'spatial'"),
    ],
)
def test_unknown_names_and_values_out_of_range_are_told(method, settings, words):
    with pytest.raises(ConfigError, match=words):
        make_refinement(method, settings)


def test_a_run_is_refined_as_asked():
    after = Postprocess(
        guide=Projection(mean=[0.0], weights=[[1.0]]),
        refine=make_refinement("guided", {"radius": 4}),
        temperature=2.0,
    )
    assert changed(after, None, None) == after
    assert changed(after, "none", None).refine is None
    more = changed(after, None, {"smoothness": 3.0})
    assert (more.refine.radius, more.refine.smoothness) == (4, 3.0)
    assert more.temperature is None  # it was measured with the old one
    assert changed(after, "guided", {"radius": 4}).temperature == 2.0
    assert changed(None, None, None) is changed(None, "none", None) is None
    with pytest.raises(ConfigError, match="no guide"):
        changed(None, "guided", None)
    with pytest.raises(ConfigError, match="no refinement to change"):
        changed(after.refined(None), None, {"radius": 3})


# -- calibration ------------------------------------------------------------------------------------------


def test_temperatures_keep_classes_and_sums():
    probabilities = np.random.default_rng(0).dirichlet(np.ones(4), (5, 6)).transpose(2, 0, 1)
    probabilities[:, 0, 0] = 0  # an invalid pixel
    for temperature in (0.3, 1, 4):
        found = at_temperature(probabilities, temperature)
        np.testing.assert_array_equal(found.argmax(0), probabilities.argmax(0))
        np.testing.assert_allclose(found.sum(0)[0, 1:], 1, atol=1e-6)
        assert not found[:, 0, 0].any()
    np.testing.assert_allclose(at_temperature(probabilities, 1), probabilities, atol=1e-6)


def test_a_temperature_is_that_of_scores():
    scores = np.random.default_rng(0).normal(size=(4, 50)) * 3
    softmax = [np.exp(scores / t) / np.exp(scores / t).sum(0) for t in (1, 2.5)]
    np.testing.assert_allclose(at_temperature(softmax[0], 2.5), softmax[1], atol=1e-6)


def test_a_calibrated_classifier_is_the_same_map(tmp_path):
    scene = holed_scene()
    classifier = tiny_classifier(scene)
    plain, before = mapped(classifier, scene, tmp_path, 20)
    warm, after = mapped(CalibratedClassifier(classifier, 3.0), scene, tmp_path, 20)
    np.testing.assert_array_equal(plain, warm)
    np.testing.assert_allclose(after, at_temperature(before, 3.0), atol=1e-6)


# -- novelty ----------------------------------------------------------------------------------------------


def test_novelty_is_a_percentile_of_the_training_pixels():
    rng = np.random.default_rng(0)
    classes = np.repeat([1, 2], 2000)
    spectra = rng.normal(size=(4000, 6)) @ rng.normal(size=(6, 6)) + 40 * classes[:, None]
    novelty = fit_novelty(spectra, classes)
    own = novelty.of(spectra.T[:, :, None].astype(np.float32))[:, 0]
    assert np.abs(np.sort(own) - np.linspace(0, 100, 4000)).max() < 2
    others = rng.normal(size=(1000, 6)) @ rng.normal(size=(6, 6)) + 400
    assert novelty.of(others.T[:, :, None].astype(np.float32)).min() == 100
    window = spectra.T[:, :60].reshape(6, 6, 10).astype(np.float32)
    window[3, 2, 2] = np.nan
    assert np.isnan(novelty.of(window)).nonzero() == (2, 2)


def test_between_two_classes_is_new():
    rng = np.random.default_rng(0)
    classes = np.repeat([1, 2], 500)
    spectra = rng.normal(size=(1000, 4)) + 30 * classes[:, None]
    novelty = fit_novelty(spectra, classes)
    assert novelty.of(np.full((4, 1, 1), 45, np.float32)) == 100
    assert novelty.of(np.full((4, 1, 1), 30, np.float32)) < 50


# -- files ------------------------------------------------------------------------------------------------


def whole_postprocess():
    spectra = tiny_scene().values.reshape(BANDS, -1).T
    return Postprocess(
        guide=fit_projection(spectra, 3),
        refine=make_refinement("potts", {"iterations": 2}),
        temperature=1.5,
        novelty=fit_novelty(spectra, tiny_labels().ravel()),
    )


def test_it_comes_back_from_json(tmp_path):
    after = whole_postprocess()
    contract = tiny_classifier(tiny_scene()).contract
    again = read_postprocess(json.loads(json.dumps(after.to_json())), contract, tmp_path, "Again.")
    assert again == after
    assert read_postprocess(None, contract, tmp_path, "Again.") is None
    outer = finished(tiny_classifier(tiny_scene()), again)
    assert isinstance(outer, CalibratedClassifier)
    assert isinstance(outer.classifier, RefinedClassifier)
    assert outer.margin == outer.classifier.classifier.margin + 2


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("temperature",), 0),
        (("temperature",), "hot"),
        (("refine", "method"), "magic"),
        (("refine", "iterations"), 10**9),
        (("guide", "mean"), [0.0]),
        (("guide", "weights"), []),
        (("novelty", "distances"), [1.0]),
        (("novelty", "distances"), [-float(k) for k in range(101)]),
        (("novelty", "centres"), [[1.0]]),
    ],
)
def test_damaged_ones_are_refused(tmp_path, place, value):
    said = copy.deepcopy(whole_postprocess().to_json())
    part = said
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    contract = tiny_classifier(tiny_scene()).contract
    with pytest.raises(CheckpointError, match="is damaged"):
        read_postprocess(said, contract, tmp_path / "model.safetensors", "Again.")
