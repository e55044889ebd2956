"""Spectral preprocessing as settings of every system: trained, kept in the file, and rebuilt from it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tiny_scene import NANOMETRES, tiny_labels, tiny_recipe, write_scene
from vitreous.checkpoints.tensors import load_tensors, save_tensors
from vitreous.errors import CheckpointError, ModelError
from vitreous.inference.pixels import probabilities_at
from vitreous.recipe import PretrainRecipe, make_recipe
from vitreous.scenes import numpy_files
from vitreous.scenes.cube import make_scene, read_window
from vitreous.tasks import pretrain
from vitreous.tasks.classify import train
from vitreous.tasks.runs import load_run

PIXELS = np.arange(0, 24 * 28, 5)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return write_scene(tmp_path_factory.mktemp("scene"))


def run(folder, **changes):
    return train(tiny_recipe(folder, **changes), show=False)


def of_spectra(cube):
    """Return the scene of a cube of the tiny scene's bands."""
    return make_scene(
        np.ascontiguousarray(cube, dtype="f4"), wavelengths=NANOMETRES, unit="reflectance"
    )


@pytest.mark.parametrize(
    ("model", "kind"),
    [("svm", "snv"), ("svm", "derivative"), ("vit_test", "continuum"), ("vit_test", "brightness")],
)
def test_a_run_keeps_what_is_done_to_its_spectra(tmp_path, places, kind, model):
    found = load_run(run(tmp_path, **places, model=model, spectra=kind)).classifier
    assert found.preprocess.spectra.kind == kind
    scene = numpy_files.open(Path(places["scene"]))
    cube = read_window(scene, slice(0, 24), slice(0, 28))
    plain = probabilities_at(found, of_spectra(cube), PIXELS)
    assert np.isfinite(plain).all()
    if kind != "derivative":
        brighter = probabilities_at(found, of_spectra(1.5 * cube), PIXELS)
        np.testing.assert_allclose(brighter, plain, atol=2e-3)


@pytest.mark.parametrize(
    ("model", "reduction"), [("svm", "mnf"), ("vit_test", "mnf"), ("random_forest", "pca")]
)
def test_every_system_takes_components(tmp_path, places, model, reduction):
    found = load_run(
        run(tmp_path, **places, model=model, reduction=reduction, components=3, train_fraction=0.5)
    ).classifier
    assert found.preprocess.channels == 3


def test_estimators_read_physical_values_by_default(tmp_path, places):
    assert load_run(run(tmp_path, **places, model="svm")).classifier.preprocess is None


def test_baselines_get_the_same_spectra(tmp_path, places, monkeypatch):
    from vitreous.tasks import training

    seen = []
    fit = training.fit_preprocess

    def watched(recipe, data, splits):
        seen.append((recipe.model, recipe.spectra))
        return fit(recipe, data, splits)

    monkeypatch.setattr(training, "fit_preprocess", watched)
    run(tmp_path, **places, spectra="snv", baselines=["svm"])
    assert seen == [("vit_test", "snv"), ("svm", "snv")]


def test_a_start_brings_its_own_spectra(tmp_path, places):
    start = run(tmp_path, **places, spectra="snv", name="start")
    again = run(tmp_path, **places, spectra="snv", init=str(start), name="again")
    assert load_run(again).classifier.preprocess.spectra.kind == "snv"
    with pytest.raises(ModelError, match="spectra 'snv', not 'derivative'"):
        run(tmp_path, **places, spectra="derivative", init=str(start), name="other")


def test_pretraining_hands_its_spectra_on(tmp_path, places):
    recipe = make_recipe(
        {
            "scene": places["scene"], "model": "satmae_pp_test", "steps": 2, "batch_size": 4,
            "image_size": 8, "spectra": "derivative", "report": False, "accelerator": "cpu",
            "pretrainer_args": {"scales": 1}, "runs": str(tmp_path), "name": "learned",
        },
        PretrainRecipe,
    )  # fmt: skip
    learned = pretrain.train(recipe, show=False)
    assert pretrain.load_run(learned).preprocess.spectra.kind == "derivative"
    tuned = run(
        tmp_path, **places, model="satmae_pp_test", patch_size=9, mode="patch", init=str(learned)
    )
    preprocess = load_run(tuned).classifier.preprocess
    torch.testing.assert_close(
        preprocess.spectra.slopes, pretrain.load_run(learned).preprocess.spectra.slopes
    )


@pytest.mark.parametrize("said", ["continuum", "log", 3, None])
def test_a_header_that_says_other_spectra_is_refused(tmp_path, places, said):
    folder = run(tmp_path, **places, spectra="snv")
    tensors, header = load_tensors(folder / "model.safetensors")
    save_tensors(folder / "model.safetensors", tensors, {**header, "spectra": said})
    with pytest.raises(CheckpointError):
        load_run(folder)


def test_one_band_has_no_shape(tmp_path):
    labels = tiny_labels()
    scene = make_scene(labels[None].astype("f4") / 10)
    numpy_files.write(scene, tmp_path / "scene.npy")
    np.save(tmp_path / "labels.npy", labels)
    places = {"scene": str(tmp_path / "scene.npy"), "labels": str(tmp_path / "labels.npy")}
    for kind in ("snv", "continuum", "derivative"):
        with pytest.raises(ModelError, match="bands or more, not 1"):
            run(tmp_path, **places, model="svm", spectra=kind)
