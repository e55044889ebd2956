"""What cannot be trained is refused before anything is read, in words, and without a run folder."""

from __future__ import annotations

import os

import pytest
import torch

from tiny_scene import tiny_recipe, tiny_settings, write_scene
from vitreous.catalog.registry import cards
from vitreous.errors import VitreousError
from vitreous.recipe import PretrainRecipe, Recipe, RestoreRecipe, make_recipe
from vitreous.tasks import classify, pretrain, restore, runs
from vitreous.tasks.compress import compress

KINDS = {
    "classify": {"model", "estimator", "choice"},
    "restore": {"restorer", "filter"},
    "filters": {"filter"},
    "method": {"method"},
}


def names_but(*kinds):
    """Return every slug and variant of the systems of other kinds."""
    allowed = set().union(*(KINDS[kind] for kind in kinds))
    return sorted(
        {
            name
            for card in cards()
            if card.kind not in allowed
            for name in (card.slug, *card.variants)
        }
    )


def refused(call, folder):
    """Run a call that must be refused; nothing may be read (the scene is not there) or written."""
    with pytest.raises(VitreousError) as caught:
        call()
    assert "nowhere.npy" not in caught.value.problem
    assert not list(folder.rglob("*"))
    return caught.value


@pytest.fixture
def settings(tmp_path):
    values = tiny_settings(tmp_path, scene=str(tmp_path / "nowhere.npy"), labels="l.npy")
    return lambda **changes: make_recipe({**values, **changes})


@pytest.mark.parametrize("place", ["model", "baselines"])
def test_only_classifiers_are_trained_by_train(place, settings, tmp_path):
    for name in names_but("classify"):
        recipe = settings(**{place: [name] if place == "baselines" else name})
        error = refused(lambda recipe=recipe: classify.train(recipe, show=False), tmp_path)
        assert f"'{name}'" in error.problem
        assert "does not classify" in error.problem
        assert "vitreous systems" in error.fix


def test_a_restorer_names_the_verb_that_trains_it(settings, tmp_path):
    for name, verb in (("hsdt_test", "vitreous restore"), ("lora", "--adapt")):
        recipe = settings(model=name)
        error = refused(lambda recipe=recipe: classify.train(recipe, show=False), tmp_path)
        assert verb in error.fix


@pytest.mark.parametrize("place", ["model", "baselines"])
def test_only_restorers_are_trained_by_restore(place, tmp_path):
    for name in names_but("restore" if place == "model" else "filters"):
        changes = {place: [name] if place == "baselines" else name}
        values = {"scene": str(tmp_path / "nowhere.npy"), "runs": str(tmp_path / "runs"), **changes}
        recipe = make_recipe(values, RestoreRecipe)
        error = refused(lambda recipe=recipe: restore.train(recipe, show=False), tmp_path)
        assert f"'{name}'" in error.problem


def test_only_what_learns_without_labels_is_pretrained(tmp_path):
    able = {name for card in cards() if "pretrain" in card.tasks for name in card.variants}
    for name in {name for card in cards() for name in (card.slug, *card.variants)} - able:
        values = {"scene": str(tmp_path / "nowhere.npy"), "runs": str(tmp_path / "runs")}
        recipe = make_recipe({**values, "model": name}, PretrainRecipe)
        error = refused(lambda recipe=recipe: pretrain.train(recipe, show=False), tmp_path)
        assert f"'{name}'" in error.problem


def test_only_methods_compress_and_reduce(settings, tmp_path):
    for name in names_but("method"):
        error = refused(lambda name=name: compress(tmp_path / "no run", name), tmp_path)
        assert f"'{name}'" in error.problem
        recipe = settings(reduce=name)
        refused(lambda recipe=recipe: classify.train(recipe, show=False), tmp_path)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_args": {"dpeth": 3}}, "depth"),
        ({"model_args": {"dim": 7}}, "width 7"),
        ({"model_args": {"dim": 10**8}}, "65536 or less"),
        ({"model_args": {"depth": [3]}}, "whole number"),
        ({"model": "efficientvit_test", "mode": "dense", "model_args": {"heads": 0}}, "heads"),
        ({"model": "svm", "model_args": {"C": -1}}, "C is -1"),
        ({"model": "svm", "model_args": {"D": 1}}, "no setting 'D'"),
        ({"adapt": "lora_only", "adapt_args": {"ranks": 1}}, "rank"),
    ],
)
def test_arguments_that_make_no_system(changes, told, settings, tmp_path):
    recipe = settings(**changes)
    error = refused(lambda: classify.train(recipe, show=False), tmp_path)
    assert told in str(error)


@pytest.mark.parametrize(
    ("train", "kind"),
    [
        (classify.train, Recipe),
        (restore.train, RestoreRecipe),
        (pretrain.train, PretrainRecipe),
    ],
)
def test_a_gpu_that_is_not_there(train, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    values = {"scene": str(tmp_path / "nowhere.npy"), "runs": str(tmp_path), "accelerator": "gpu"}
    recipe = make_recipe(values, kind)
    assert "no usable GPU" in refused(lambda: train(recipe, show=False), tmp_path).problem


def test_no_more_processes_than_cores(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, "cores", lambda: 1)
    places = write_scene(tmp_path)
    run = classify.train(tiny_recipe(tmp_path, **places, devices=99, epochs=1))
    assert runs.load_run(run).recipe.devices == 1
    assert "99 processes on 1 cores" in " ".join(capsys.readouterr().err.split())
    assert runs.cores() <= (os.cpu_count() or 1)


def test_settings_without_effect_are_said(tmp_path, capsys):
    places = write_scene(tmp_path)
    changes = {"mode": "dense", "decoder": "upernet", "model": "svm", "train_per_class": 3}
    classify.train(tiny_recipe(tmp_path, **places, **changes, block_size=4))
    said = " ".join(capsys.readouterr().err.split())
    for name in ("mode", "decoder", "epochs"):
        assert f"{name} (no network is trained)" in said
    assert "components (nothing is reduced)" in said
    assert "block_size (split is not 'blocks')" in said
    assert "train_per_class (" not in said
    assert "learning_rate (no" in said


def test_what_has_an_effect_is_not_said():
    assert Recipe().without_effect(trained=True, networks=True) == {}
    assert Recipe(model="svm", patch_size=9).without_effect(trained=False, networks=True) == {}
    spectral = Recipe(model="svm", spectra="snv", reduction="mnf", components=5)
    assert spectral.without_effect(trained=False, networks=False) == {}
    assert list(Recipe(model="svm", budget="1m").without_effect(trained=False, networks=True)) == [
        "budget"
    ]
    assert RestoreRecipe(steps=5).without_effect(trained=True, networks=True) == {}
    assert PretrainRecipe(steps=5).without_effect(trained=True, networks=True) == {}
    dense = Recipe(mode="dense", tile_size=32, mixup=0.1)
    assert list(dense.without_effect(trained=True, networks=True)) == ["mixup"]
    filtered = RestoreRecipe(model="low_rank", steps=5, crop=8)
    assert list(filtered.without_effect(trained=False, networks=False)) == ["steps"]
