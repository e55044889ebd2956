"""What is refused before a scene is opened, and batches of a single sample."""

import warnings

import numpy as np
import pytest
import torch

from areas import labelled_area
from tiny_scene import tiny_recipe, write_scene
from vitreous.catalog.registry import card, cards
from vitreous.data.regions import PixelRegions
from vitreous.errors import ConfigError, ModelError, SplitError, VitreousError
from vitreous.recipe import PATCH_SIZES, PretrainRecipe, Recipe, make_recipe
from vitreous.tasks import pretrain
from vitreous.tasks.classify import train
from vitreous.tasks.division import draw_splits, recipe_receptive_size
from vitreous.tasks.fit import EpochBatches
from vitreous.tasks.labelled import open_data

NORMED = {  # some variant
    "lola_specvit",
    "efficientvit",
    "efficientformer",
    "spectformer",
    "cvt",
    "dhvt",
    "fmvit",
    "smt",
    "sret",
}
NOWHERE = {"scene": "nowhere.tif", "labels": "nowhere.npy"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_args": {"dept": 3}}, "no argument 'dept'.* Did you mean 'depth'"),
        ({"model_args": {"depth": "three"}}, "depth='three': it must be a whole number"),
        ({"model_args": {"heads": 5}}, "divisible by 5"),
        ({"model_args": {"token_size": 4}}, "has none"),
        ({"model": "svm", "model_args": {"C": -1}}, "C is -1"),
        ({"model": "svm", "model_args": {"gamma": [1]}}, "gamma"),
        ({"model": "svm", "model_args": {"c": 1}}, "no setting 'c'"),
        ({"baselines": ["lola_specvit_test"]}, "lola_specvit needs patches of at least 4 x 4"),
    ],
)
def test_bad_arguments_are_found_before_the_scene_is_opened(tmp_path, changes, words):
    recipe = tiny_recipe(tmp_path, **NOWHERE, **{"patch_size": 3, **changes})
    with pytest.raises((ModelError, ConfigError), match=words):
        train(recipe, show=False)
    assert not (tmp_path / "runs").exists()


def test_arguments_of_a_pretraining_are_found_as_early(tmp_path):
    settings = {"scene": "nowhere.tif", "runs": str(tmp_path / "runs"), "model": "satmae_pp_test"}
    for changes, words in (
        ({"model_args": {"dim": 0}}, "dim=0"),
        ({"pretrainer_args": {"mask_ratio": "most"}}, "mask_ratio='most'"),
        ({"pretrainer_args": {"masked": 0.5}}, "no argument 'masked'"),
    ):
        with pytest.raises(ModelError, match=words):
            pretrain.train(make_recipe({**settings, **changes}, PretrainRecipe), show=False)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("slug", [entry.slug for entry in cards() if entry.kind == "model"])
def test_batch_norms_are_not_trained_on_single_samples(tmp_path, slug):
    """Before the scene is opened; a network without them is only told that there is no such scene."""
    changes = {"model": f"{slug}_test", "patch_size": 15, "batch_size": 1}
    normed = slug in NORMED and slug not in {"spectformer"}  # of which the smallest has none
    with pytest.raises(VitreousError) as caught:
        train(tiny_recipe(tmp_path, **NOWHERE, **changes), show=False)
    assert ("--batch-size 1" in str(caught.value)) == normed
    assert ("nowhere" in str(caught.value)) != normed


def test_baselines_and_larger_families_count_too(tmp_path):
    for changes in (
        {"model": "spectformer_h_small"},
        {"model": "vit_test", "baselines": ["efficientvit_test"]},
    ):
        recipe = tiny_recipe(tmp_path, **NOWHERE, batch_size=1, **{"patch_size": 15, **changes})
        with pytest.raises(ConfigError, match="batch normalization"):
            train(recipe, show=False)
    dense = {"mode": "dense", "tile_size": 16, "model": "efficientvit_test"}
    with pytest.raises(VitreousError, match="nowhere"):  # a tile has many pixels
        train(tiny_recipe(tmp_path, **NOWHERE, batch_size=1, **dense), show=False)


def regions(count, side):
    pixels = np.arange(count) * 3
    cube = torch.zeros(2, 12, 90)
    classes = np.arange(count) % 2
    return PixelRegions([labelled_area(cube, pixels, classes, 84)], half=1, margin=3, side=side)


@pytest.mark.parametrize("side", [1, 16, 84])
@pytest.mark.parametrize("batch", [2, 3, 7, 16, 32])
def test_no_step_is_left_with_a_single_pixel(tmp_path, batch, side):
    """Whatever the number of pixels; every pixel is still in one batch, and none has more than one over."""
    recipe = tiny_recipe(tmp_path, **NOWHERE, batch_size=batch, passes=1)
    for count in range(2, 2 * batch + 3):
        data = regions(count, side)
        steps = []
        for group, parts in zip(*planned(data, recipe), strict=True):
            pixels = sum(len(region.members) for region in group)
            steps += [-(-(pixels - part) // parts) for part in range(parts)]
        assert sum(steps) == count
        assert min(steps) >= 2, (count, steps)
        assert max(steps) <= batch + 1, (count, steps)


def test_single_pixels_are_left_to_who_asks_for_them(tmp_path):
    for side in (1, 16):
        recipe = tiny_recipe(tmp_path, **NOWHERE, batch_size=1, passes=1)
        plan, parts = planned(regions(7, side), recipe)
        assert sum(parts) == 7 or len(plan) == 7


def planned(data, recipe):
    batches = EpochBatches(data, recipe, 0, 0, 1)
    return batches.plan, batches.parts


def test_an_error_says_where_the_size_of_its_patch_comes_from(tmp_path):
    """A front-end looks further than the patch; labels too close together for that, not for the patch."""
    labels = np.zeros((24, 28), dtype=np.uint8)
    labels[10:14, 10:18] = np.arange(8) % 2 + 1
    places = write_scene(tmp_path, labels=labels)
    settings = {**places, "split": "blocks", "model": "lola_specvit_test", "val_fraction": 0.0}
    with pytest.raises(SplitError) as caught:
        train(tiny_recipe(tmp_path, **settings, patch_size=15, mode="scene"), show=False)
    assert "21 x 21 comes from --patch-size 15 and 3 pixels on each side" in str(caught.value)
    with pytest.raises(SplitError) as caught:
        train(tiny_recipe(tmp_path, **settings, patch_size=15, mode="patch"), show=False)
    assert "15 x 15" in str(caught.value) and "comes from" not in str(caught.value)


@pytest.mark.parametrize(("model", "settings", "size"), [("svm_spatial", {}, 13), ("svm", {"spatial_window": 7}, 7), ("svm", {}, 1)])  # fmt: skip
def test_the_window_of_an_estimator_may_be_a_setting(model, settings, size):
    recipe = make_recipe(
        {"scene": "s", "model": model, "model_args": settings, "baselines": []}, Recipe
    )
    assert recipe_receptive_size(recipe) == size


def scattered(per_class, classes=4, shape=(60, 80), seed=0):
    """Single labelled pixels at random places."""
    found = np.zeros(shape, dtype=np.uint8)
    places = np.random.default_rng(seed).choice(found.size, per_class * classes, replace=False)
    found.flat[places] = np.arange(len(places)) % classes + 1
    return found


@pytest.mark.parametrize("settings", [{"model": "svm"}, {"model": "auto"}, {"model": "auto", "candidates": ["lda"]}, {"model": "vit_test"}])  # fmt: skip
@pytest.mark.parametrize("single", [False, True])
def test_too_few_labels_are_not_called_too_close(tmp_path, settings, single):
    labels = scattered(3)
    if single:
        labels.flat[np.flatnonzero(labels == 4)[1:]] = 0
    data = open_data(make_recipe(write_scene(tmp_path, labels)))
    with pytest.raises(SplitError) as caught:
        draw_splits(make_recipe({"baselines": [], **settings}), data)
    count = 10 if single else 12
    assert f"Only {count} pixels are labelled, at most 3 of a class" in str(caught.value)
    assert "too close" not in str(caught.value) and "patch_size" not in str(caught.value)
    assert "Label more than 5 pixels of each class" in caught.value.fix
    assert ("random" in caught.value.fix) != single  # which needs two pixels of each class
    if not single:
        draw_splits(make_recipe({"baselines": [], "split": "random", **settings}), data)
    more = open_data(make_recipe(write_scene(tmp_path / "more", scattered(20))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert draw_splits(make_recipe({"baselines": [], **settings}), more).counts["test"]


def test_classes_in_a_block_each_need_smaller_blocks(tmp_path):
    labels = np.zeros((40, 40), dtype=np.uint8)
    labels[:8, :8], labels[16:24, 16:24] = 1, 2
    data = open_data(make_recipe(write_scene(tmp_path, labels)))
    settings = {"model": "svm", "baselines": [], "val_fraction": 0}
    with pytest.raises(SplitError, match="in so few blocks of 8 x 8 pixels") as caught:
        draw_splits(make_recipe(settings), data)
    assert "Use a smaller block_size" in caught.value.fix
    assert draw_splits(make_recipe({**settings, "block_size": 4}), data).counts["test"]


CLOSE = np.zeros((40, 60), dtype=np.uint8)
CLOSE[16:24, 28:36] = np.arange(8) % 2 + 1


@pytest.mark.parametrize(
    ("settings", "origin", "advice"),
    [
        ({}, "which 'auto' compares", {"model": "svm"}),
        ({"patch_size": 3}, "which 'auto' compares", {"model": "svm"}),
        (
            {"candidates": ["lda"]},
            "'lda' (1 x 1) with a refinement, which 'auto' compares",
            {"candidates": ["lda"], "refine": "none"},
        ),
        ({"model": "svm", "refine": "auto"}, "the reach of --refine auto", {"model": "svm"}),
        ({"model": "svm_spatial"}, "the spatial_window of 'svm_spatial'", {"model": "svm"}),
        (
            {"model": "svm", "baselines": ["svm_spatial"]},
            "the spatial_window of 'svm_spatial'",
            {"model": "svm"},
        ),
    ],
)
def test_what_is_advised_for_close_labels_works(tmp_path, settings, origin, advice):
    data = open_data(make_recipe(write_scene(tmp_path, CLOSE)))
    with pytest.raises(SplitError) as caught:
        draw_splits(make_recipe({"baselines": [], **settings}), data)
    assert origin in caught.value.problem
    assert "smaller patch_size" not in caught.value.fix
    option = "--refine none" if "refine" in {**settings, **advice} else "--model svm"
    if settings.get("model") == "svm_spatial":
        option = "a smaller spatial_window"
    if "baselines" in settings:
        option = "--baselines without 'svm_spatial'"
    assert option in caught.value.fix
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert draw_splits(make_recipe({"baselines": [], **advice}), data).counts["test"]


@pytest.mark.parametrize("name", ["spectral_mlp", "spectral_mlp_test"])
def test_a_perceptron_on_single_spectra_reads_a_pixel(name):
    recipe = make_recipe({"model": name, "baselines": []})
    assert recipe.patch_size == recipe_receptive_size(recipe) == 1
    assert make_recipe({"model": name, "patch_size": 3}).patch_size == 3
    assert make_recipe({"model": "vit_test"}).patch_size == 15


def test_patch_sizes_are_those_of_the_cards():
    for slug, size in PATCH_SIZES.items():
        assert card(slug).recipe["patch_size"] == size
