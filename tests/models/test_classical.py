"""Classical baselines: the scene classifier's contract, exact reload, and the figures on Indian Pines."""

import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from vitreous.data.pixels import spectra_at, tiles
from vitreous.data.splits import merged_labels, split_from_files
from vitreous.errors import CheckpointError, ConfigError, ModelError
from vitreous.layers.preprocess import Preprocess
from vitreous.models import gradient_boosting, lda, ls_svm, random_forest, svm
from vitreous.scenes.cube import make_scene, read_window
from vitreous.tasks.metrics import scores

BANDS = 6
SYSTEMS = {
    "svm": (svm, {}),
    "svm_spatial": (svm, {"spatial_window": 5}),
    "random_forest": (random_forest, {"trees": 12}),
    "random_forest_spatial": (random_forest, {"trees": 12, "spatial_window": 3}),
    "lda": (lda, {}),
    "ls_svm": (ls_svm, {}),
    "gradient_boosting": (gradient_boosting, {"rounds": 4, "leaves": 5}),
}


@dataclass
class Bands:
    """A contract that takes the same bands of every scene."""

    indices: tuple[int, ...]

    def select(self, scene):
        return np.array(self.indices)


CONTRACT = Bands(tuple(range(BANDS)))


def striped_scene(seed: int = 0, height: int = 21, width: int = 26):
    """Three classes in stripes with overlapping spectra, and an invalid corner."""
    rng = np.random.default_rng(seed)
    classes = np.broadcast_to(np.arange(width) // 3 % 3 + 1, (height, width)).astype(np.int32)
    spectra = rng.uniform(200, 900, (4, BANDS))
    cube = spectra[classes].transpose(2, 0, 1) + rng.normal(0, 150, (BANDS, height, width))
    cube = cube.clip(1, 5000).astype(np.uint16)
    cube[:, :3, :4] = 0
    return make_scene(cube, nodata=0, scale=1e-4), classes


def trained(name: str, num_classes: int = 5, contract=CONTRACT, preprocess=None, **changes):
    module, settings = SYSTEMS[name]
    scene, classes = striped_scene()
    estimator = module.build(
        num_classes=num_classes, contract=contract, seed=3, **{**settings, **changes}
    )
    estimator.preprocess = preprocess
    pixels = np.arange(0, classes.size, 3)
    return estimator.fit(estimator.features_at(scene, pixels), classes.ravel()[pixels])


def padded_window(scene, margin: int):
    """Read the whole scene, mirrored at its edge."""
    cube = read_window(scene, slice(0, scene.sizes["y"]), slice(0, scene.sizes["x"]))
    return np.pad(cube, ((0, 0), (margin, margin), (margin, margin)), mode="reflect")


@pytest.mark.parametrize("name", SYSTEMS)
def test_argmax_is_the_prediction_of_scikit_learn(name):
    estimator = trained(name)
    scene, _ = striped_scene(seed=7)
    window = padded_window(scene, estimator.margin)
    result = estimator.classify(window)
    assert result.shape == (5, 21, 26)
    assert result.dtype == np.float32
    valid = np.isfinite(read_window(scene, slice(0, 21), slice(0, 26))).all(axis=0)
    assert not valid[:3, :4].any()
    assert not result[:, ~valid].any()
    np.testing.assert_allclose(result.sum(axis=0)[valid], 1, atol=1e-5)
    assert not result[3:].any()  # classes without training pixels
    rows = estimator.features(window)[valid.ravel()]
    np.testing.assert_array_equal(
        result[:, valid].argmax(axis=0) + 1, estimator._estimator.predict(rows)
    )


def test_search_leaves_whole_blocks_out():
    draw = np.random.default_rng(0)
    classes, blocks = draw.integers(1, 4, 300), draw.integers(0, 12, 300)
    folds = svm._folds(classes, blocks, seed=0)
    assert len(folds) == svm.FOLDS
    for train, test in folds:
        assert not set(blocks[train]) & set(blocks[test])
    assert np.array_equal(np.sort(np.concatenate([test for _, test in folds])), np.arange(300))
    shared = [
        set(blocks[train]) & set(blocks[test]) for train, test in svm._folds(classes, None, 0)
    ]
    assert all(shared)  # without blocks, pixels are divided one by one


def test_search_finds_what_the_data_ask_for_and_keeps_it():
    """Rings need a narrow kernel, which a fixed wide one is not."""
    draw = np.random.default_rng(0)
    radius = draw.uniform(0, 4, 400)
    angle = draw.uniform(0, 2 * np.pi, 400)
    classes = 1 + (radius.astype(int) % 2)
    features = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).astype(np.float32)
    contract, blocks = Bands((0, 1)), draw.integers(0, 8, 400)
    searched = svm.build(num_classes=2, contract=contract, search=True)
    searched.fit(features[:300], classes[:300], blocks[:300])
    wide = svm.build(num_classes=2, contract=contract, C=1.0, gamma=0.05)
    wide.fit(features[:300], classes[:300])

    def right(estimator):
        return float((estimator._estimator.predict(features[300:]) == classes[300:]).mean())

    assert right(searched) > 0.9 > right(wide)
    # A saved estimator is fitted again without a search.
    again = svm.from_state(*searched.state(), contract)
    assert again.settings == searched.settings and not again.settings["search"]


def test_search_without_anything_to_choose_from_keeps_the_settings():
    features = np.array([[0.0, 1], [1, 0], [0, 1.1], [1.1, 0]], np.float32)
    one_block = svm.build(num_classes=2, contract=Bands((0, 1)), search=True)
    one_block.fit(features, np.array([1, 2, 1, 2]), np.zeros(4, np.int64))
    assert one_block.settings["C"] == 100.0


@pytest.mark.parametrize(("module", "own"), [(svm, {"C": 1.0}), (ls_svm, {"ridge": 3.0})])
def test_balance_lets_rare_classes_keep_their_ground(module, own):
    """Where two classes overlap, an even prior gives half of the overlap to the rare one."""
    draw = np.random.default_rng(0)
    features = np.concatenate([draw.normal(0, 1, (400, 2)), draw.normal(1, 1, (20, 2))])
    classes = np.repeat([1, 2], [400, 20])
    tested = np.concatenate([draw.normal(0, 1, (300, 2)), draw.normal(1, 1, (300, 2))])
    recall = {}
    for balanced in (False, True):
        estimator = module.build(num_classes=2, contract=Bands((0, 1)), **own, balanced=balanced)
        estimator.fit(features.astype("f4"), classes)
        recall[balanced] = (estimator._estimator.predict(tested)[300:] == 2).mean()
    assert recall[False] < 0.4 < 0.6 < recall[True]


def test_shrinkage_lets_few_pixels_tell_many_bands():
    draw = np.random.default_rng(0)
    means = draw.normal(0, 0.5, (2, 60))
    classes = np.repeat([1, 2], 15)
    tested = np.repeat([0, 1], 200)
    smooth = np.linalg.cholesky(0.9 * np.ones((60, 60)) + 0.1 * np.eye(60)).T
    right = {}
    for shrinkage in (0.0, "auto"):
        estimator = lda.build(num_classes=2, contract=Bands(()), shrinkage=shrinkage)
        rows = means[classes - 1] + draw.normal(size=(30, 60)) @ smooth
        estimator.fit(rows.astype("f4"), classes)
        found = estimator._estimator.predict(means[tested] + draw.normal(size=(400, 60)) @ smooth)
        right[shrinkage] = (found == tested + 1).mean()
    assert right["auto"] > 0.95 > right[0.0] + 0.05


@pytest.mark.parametrize("name", ["svm", "random_forest", "lda", "gradient_boosting", "ls_svm"])
def test_two_classes(name):
    module, settings = SYSTEMS[name]
    scene, classes = striped_scene()
    estimator = module.build(num_classes=3, contract=CONTRACT, **settings)
    pixels = np.flatnonzero(classes.ravel() != 2)
    estimator.fit(estimator.features_at(scene, pixels), classes.ravel()[pixels])
    window = padded_window(scene, 0)
    result = estimator.classify(window)
    rows = estimator.features(window)
    valid = np.isfinite(rows).all(axis=1)
    predicted = result.argmax(axis=0).ravel() + 1
    np.testing.assert_array_equal(predicted[valid], estimator._estimator.predict(rows[valid]))
    assert set(predicted[valid]) == {1, 3}


@pytest.mark.parametrize("name", SYSTEMS)
def test_windows_do_not_change_the_map(name):
    estimator = trained(name)
    scene, _ = striped_scene(seed=8)
    m = estimator.margin
    window = padded_window(scene, m)
    whole = estimator.classify(window)
    for rows, columns in (
        (slice(0, 5), slice(3, 26)),
        (slice(7, 8), slice(11, 12)),
        (slice(4, 21), slice(0, 9)),
    ):
        part = window[:, rows.start : rows.stop + 2 * m, columns.start : columns.stop + 2 * m]
        np.testing.assert_array_equal(estimator.classify(part), whole[:, rows, columns])


@pytest.mark.parametrize("spatial_window", [1, 3, 7, 61])
def test_features_at_equals_the_window_of_the_whole_scene(spatial_window, monkeypatch):
    """Also where the margin is larger than the scene, and across the borders of tiles."""
    monkeypatch.setattr("vitreous.models._pixel_estimator.tiles", partial(tiles, side=8))
    scene, classes = striped_scene()
    estimator = svm.build(num_classes=3, contract=CONTRACT, spatial_window=spatial_window)
    expected = estimator.features(padded_window(scene, estimator.margin))
    pixels = np.random.default_rng(0).permutation(classes.size)[:200]
    np.testing.assert_array_equal(estimator.features_at(scene, pixels), expected[pixels])
    assert estimator.features_at(scene, pixels[:0]).shape == (0, expected.shape[1])


def test_a_scene_of_one_pixel():
    scene = make_scene(np.full((BANDS, 1, 1), 7.0))
    estimator = svm.build(num_classes=2, contract=CONTRACT, spatial_window=5)
    np.testing.assert_array_equal(
        estimator.features_at(scene, np.array([0])), np.full((1, 2 * BANDS), 7.0)
    )


def test_spatial_means_are_means_of_the_valid_neighbours():
    scene, _ = striped_scene()
    estimator = svm.build(num_classes=3, contract=CONTRACT, spatial_window=5)
    cube = read_window(scene, slice(0, 21), slice(0, 26))
    features = estimator.features_at(scene, np.arange(21 * 26)).reshape(21, 26, -1)
    assert np.isnan(features[:3, :4]).all()
    for row, column in ((3, 4), (2, 5), (10, 12), (5, 3)):
        np.testing.assert_array_equal(features[row, column, :BANDS], cube[:, row, column])
        around = cube[:, row - 2 : row + 3, column - 2 : column + 3].reshape(BANDS, -1)
        np.testing.assert_allclose(
            features[row, column, BANDS:], np.nanmean(around, axis=1), rtol=1e-6
        )


def test_features_follow_the_contract():
    scene, _ = striped_scene()
    estimator = svm.build(num_classes=3, contract=Bands((4, 1)))
    pixels = np.array([100, 7, 500])
    cube = read_window(scene, slice(0, 21), slice(0, 26)).reshape(BANDS, -1)
    np.testing.assert_array_equal(estimator.features_at(scene, pixels), cube[[4, 1]][:, pixels].T)


@pytest.mark.parametrize("name", SYSTEMS)
def test_reloaded_estimator_is_the_same(name):
    estimator = trained(name)
    tensors, meta = estimator.state()
    again = SYSTEMS[name][0].from_state(tensors, meta, CONTRACT)
    assert again.settings == estimator.settings
    assert again.margin == estimator.margin
    scene, _ = striped_scene(seed=9)
    window = padded_window(scene, estimator.margin)
    np.testing.assert_array_equal(again.classify(window), estimator.classify(window))


def fitted(**settings):
    """Return preprocessing of the striped scene."""
    scene, _ = striped_scene()
    pixels = spectra_at(scene, np.arange(BANDS), np.arange(5 * 26, 10 * 26))
    return Preprocess.fit(pixels, **settings)


@pytest.mark.parametrize("name", ["svm", "svm_spatial"])
@pytest.mark.parametrize(
    "settings",
    [
        {"spectra": "snv", "reduction": "none"},
        {"spectra": "derivative", "reduction": "none"},
        {"spectra": "continuum", "components": 3},
    ],
    ids=str,
)
def test_preprocessing_is_part_of_an_estimator(name, settings):
    """What it learned from is what it sees in a window, at pixels and when it is loaded again."""
    preprocess = fitted(**settings)
    estimator = trained(name, preprocess=preprocess)
    scene, _ = striped_scene(seed=9)
    window = padded_window(scene, estimator.margin)
    channels = preprocess(torch.from_numpy(window)[None])[0].numpy()
    m = estimator.margin
    inner = channels[:, m : m + 21, m : m + 26].reshape(len(channels), -1).T
    rows = estimator.features(window)
    valid = np.isfinite(rows).all(axis=1)
    assert not valid.reshape(21, 26)[:3, :4].any() and valid.sum() == 21 * 26 - 12
    np.testing.assert_array_equal(rows[valid, : len(channels)], inner[valid])
    np.testing.assert_allclose(
        estimator.features_at(scene, np.arange(21 * 26))[valid], rows[valid], atol=1e-5
    )
    again = SYSTEMS[name][0].from_state(*estimator.state(), CONTRACT)
    np.testing.assert_array_equal(again.classify(window), estimator.classify(window))


def test_a_scene_of_other_bands_than_the_preprocessing_is_refused():
    estimator = trained("svm", preprocess=fitted(spectra="snv", reduction="none"))
    with pytest.raises(ModelError, match="trained on 6 bands, but the scene has 4"):
        estimator.classify(np.ones((4, 3, 3), dtype=np.float32))


@pytest.mark.parametrize(
    ("tensors", "meta"),
    [
        ({"preprocess.matrix": None}, {}),
        ({"preprocess.matrix": np.ones((2, 3, 4), dtype=np.float32)}, {}),
        ({"preprocess.mean": np.ones(2, dtype=np.float32)}, {}),
        ({}, {"spectra": "derivative"}),  # whose slopes are missing
        ({}, {"spectra": "log"}),
        ({}, {"spectra": ["snv"]}),
    ],
)
def test_changed_preprocessing_is_refused(tensors, meta):
    state = trained("svm", preprocess=fitted(spectra="snv", reduction="none")).state()
    with pytest.raises(CheckpointError):
        svm.from_state(changed(state[0], **tensors), changed(state[1], **meta), CONTRACT)


@pytest.mark.parametrize("name", ["svm", "random_forest"])
def test_unit_does_not_matter_to_the_map(name):
    """Scaling all values by a power of two scales the features exactly; the classes stay."""
    module, settings = SYSTEMS[name]
    scene, classes = striped_scene()
    scaled = scene.copy()
    scaled.attrs = {**scene.attrs, "scale": scene.attrs["scale"] * 4}
    maps = []
    for each in (scene, scaled):
        estimator = module.build(num_classes=3, contract=CONTRACT, **settings)
        pixels = np.arange(0, classes.size, 3)
        estimator.fit(estimator.features_at(each, pixels), classes.ravel()[pixels])
        maps.append(estimator.classify(padded_window(each, 0)).argmax(axis=0))
    assert (maps[0] == maps[1]).mean() > 0.995


def test_unmeasured_training_pixels_are_left_out():
    estimator = trained("svm")
    scene, classes = striped_scene()
    pixels = np.arange(0, classes.size, 3)
    features = estimator.features_at(scene, pixels)
    measured = np.isfinite(features).all(axis=1)
    assert not measured.all()
    assert len(estimator.state()[0]["classes"]) == measured.sum()
    with pytest.raises(ModelError, match="Fewer than two classes"):
        estimator.fit(np.full((6, BANDS), np.nan, dtype=np.float32), np.array([1, 2, 3] * 2))


def test_many_pixels_are_thinned_by_class():
    with pytest.warns(UserWarning, match="trains on 60 of"):
        estimator = trained("svm", max_pixels=60)
    kept = np.bincount(estimator.state()[0]["classes"])[1:]
    assert kept.sum() <= 60
    assert kept.min() > 15
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svm.from_state(*estimator.state(), CONTRACT)


def test_another_number_of_bands_is_refused():
    estimator = trained("svm")
    with pytest.raises(ModelError, match="trained on 6 features"):
        estimator.classify(np.ones((4, 3, 3), dtype=np.float32))
    untrained = svm.build(num_classes=2, contract=CONTRACT)
    with pytest.raises(ModelError, match="not been trained"):
        untrained.classify(np.ones((BANDS, 3, 3), dtype=np.float32))


@pytest.mark.parametrize(
    ("module", "settings", "message"),
    [
        (svm, {"spatial_window": 4}, "odd"),
        (svm, {"spatial_window": 1001}, "odd"),
        (svm, {"C": 0}, "positive"),
        (svm, {"C": float("nan")}, "positive"),
        (svm, {"C": "large"}, "wrong type"),
        (svm, {"gamma": "wide"}, "gamma is wide"),
        (svm, {"gamma": -1.0}, "gamma is -1"),
        (svm, {"max_pixels": 1}, "max_pixels"),
        (svm, {"spatial_windo": 3}, "Did you mean 'spatial_window'"),
        (random_forest, {"trees": 0}, "trees is 0"),
        (random_forest, {"trees": 10**9}, "trees is"),
        (random_forest, {"C": 1}, "no setting 'C'"),
        (ls_svm, {"ridge": 0.0}, "ridge is 0"),
        (ls_svm, {"width": -1.0}, "width is -1"),
        (lda, {"shrinkage": 1.5}, "shrinkage is 1.5"),
        (lda, {"shrinkage": "much"}, "shrinkage is much"),
        (gradient_boosting, {"rounds": 0}, "rounds is 0"),
        (gradient_boosting, {"learning_rate": 0.0}, "learning_rate is 0"),
        (gradient_boosting, {"leaves": 1}, "leaves is 1"),
    ],
)
def test_impossible_settings_are_refused(module, settings, message):
    with pytest.raises(ConfigError, match=message):
        module.build(num_classes=2, contract=CONTRACT, **settings)


def changed(part: dict, **changes) -> dict:
    return {key: value for key, value in {**part, **changes}.items() if value is not None}


@pytest.mark.parametrize(
    ("tensors", "meta"),
    [
        ({"features": None}, {}),
        ({"features": np.ones(4, dtype=np.float32)}, {}),
        ({"classes": np.array([0, 1, 2])}, {}),
        ({"classes": np.zeros((182, 2))}, {}),
        ({}, {"estimator": "random_forest"}),
        ({}, {"schema": 2}),
        ({}, {"settings": {"C": -1}}),
        ({}, {"settings": {"unheard_of": 1}}),
        ({}, {"settings": [1]}),
        ({}, {"num_classes": 10**12}),
        ({}, {"num_classes": 1}),
        ({}, {"num_classes": None}),
    ],
)
def test_a_changed_state_is_refused(tensors, meta):
    good_tensors, good_meta = trained("svm").state()
    with pytest.raises(CheckpointError):
        svm.from_state(changed(good_tensors, **tensors), changed(good_meta, **meta), CONTRACT)


def test_another_version_of_scikit_learn_is_said():
    tensors, meta = trained("svm").state()
    with pytest.warns(UserWarning, match="scikit-learn 0.1"):
        svm.from_state(tensors, {**meta, "sklearn": "0.1"}, CONTRACT)


@pytest.fixture(scope="module")
def indian_pines(shared_data: Path):
    """The scene with the literature's fixed split on its own, older reference."""
    import rasterio
    from tensorly.datasets import load_indian_pines

    cube = np.asarray(load_indian_pines().tensor).astype(np.uint16).transpose(2, 0, 1)
    order = np.array([0, 2, 3, 4, 5, 6, 8, 10, 11, 12, 13, 14, 15, 16, 1, 7, 9])
    images = []
    for part in ("TR", "TE"):
        path = shared_data / "indian_pines" / f"Indian{part}123_temp123.tif"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the files have no georeference
            file = rasterio.open(path)
        with file:
            images.append(order[file.read(1)])
    return make_scene(cube), images[0], images[1]


@pytest.mark.parametrize(
    ("variant", "module", "expected"),
    [
        ("svm", svm, 0.735),
        ("svm_spatial", svm, 0.881),
        ("random_forest", random_forest, 0.705),
        ("lda", lda, 0.650),
        ("ls_svm", ls_svm, 0.731),
        ("gradient_boosting", gradient_boosting, 0.676),
    ],
)
def test_figures_on_the_cards(variant, module, expected, indian_pines):
    scene, train, test = indian_pines
    split = split_from_files(train, test, val_fraction=0)
    assert split.counts == {"train": 695, "val": 0, "test": 9671}
    classes = merged_labels(test, train).values.ravel()
    contract = Bands(tuple(range(200)))
    estimator = module.build(num_classes=16, contract=contract, **module.CARD.variants[variant])
    pixels = split.pixels(1)
    estimator.fit(estimator.features_at(scene, pixels), classes[pixels])
    tested = split.pixels(3)[::2]
    window = padded_window(scene, estimator.margin)
    rows = estimator.features(window)[tested]
    result = scores(
        classes[tested], estimator._estimator.predict(rows), [str(k) for k in range(1, 17)]
    )
    published = {row["variant"]: row["oa"] for row in module.CARD.published}
    assert published[variant] == expected
    assert result["oa"] == pytest.approx(expected, abs=0.01)
