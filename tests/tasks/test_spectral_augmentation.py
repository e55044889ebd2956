"""Changes of training spectra as settings of a training."""

import numpy as np
import pytest

from tiny_scene import tiny_labels, tiny_recipe, write_scene
from vitreous.data.blocks import TEST, TRAIN, VAL
from vitreous.data.roles import Splits
from vitreous.errors import ConfigError
from vitreous.tasks.classify import draw_split, train
from vitreous.tasks.division import unlabelled_spectra
from vitreous.tasks.labelled import LabelledScenes, open_labelled
from vitreous.tasks.runs import load_run

ALL = {"gain": 0.1, "offset": 0.1, "background": 0.3, "band_dropout": 0.3, "noise": 0.05}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    labels = tiny_labels()
    labels[:, ::4] = 0
    return write_scene(tmp_path_factory.mktemp("scene"), labels)


def weights(path):
    return load_run(path).classifier.state_dict()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mode": "patch", "model": "spectral_mlp_test", "patch_size": 1},
        {"mode": "dense", "model": "convnext_test", "tile_size": 16},
    ],
    ids=["scene", "pixels", "dense"],
)
def test_every_change_takes_effect_and_is_reproducible(tmp_path, places, settings):
    def run(name, **changes):
        recipe = tiny_recipe(tmp_path, **places, **settings, **changes, name=name)
        return weights(train(recipe, show=False))

    plain = run("plain")
    for name, value in ALL.items():
        changed = run(name, **{name: 2 * value})
        assert any((changed[key] != plain[key]).any() for key in plain), name
    first, second = run("first", **ALL), run("second", **ALL)
    assert all((first[key] == second[key]).all() for key in first)


def test_the_background_has_no_labelled_pixel(tmp_path, places):
    recipe = tiny_recipe(tmp_path, **places)
    data = open_labelled(recipe)
    splits = Splits.of(draw_split(recipe, data))
    found = unlabelled_spectra(LabelledScenes.of(data), splits, 1000)
    labels = np.asarray(data.labels.values)
    spectra = data.scene.values[:, labels == 0].T
    np.testing.assert_allclose(found, spectra)
    some = unlabelled_spectra(LabelledScenes.of(data), splits, 10)
    assert 5 <= len(some) <= 10 and (some[:, None] == spectra).all(2).any(1).all()
    assert not np.isin(splits[0].roles[labels == 0], (TRAIN, VAL, TEST)).any()


def test_without_an_unlabelled_pixel_there_is_nothing_to_mix_with(tmp_path):
    recipe = tiny_recipe(tmp_path, **write_scene(tmp_path / "scene"), background=0.3)
    with pytest.raises(ConfigError, match="Omit --background"):
        train(recipe, show=False)


@pytest.mark.parametrize(
    ("kind", "names"),
    [("none", set()), ("derivative", {"offset"}), ("snv", {"gain", "offset"})],
)
def test_what_spectra_hide_has_no_effect(tmp_path, kind, names):
    recipe = tiny_recipe(tmp_path, **ALL, spectra=kind)
    told = recipe.without_effect(trained=True, networks=True)
    assert set(told) & {"gain", "offset"} == names
