"""Learning without labels: resumed to the bit, and handed over to training with labels."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from run_folders import equal, history, stopped_after_saving, weights
from smooth_scene import pretrain_settings, smooth_cube, write_smooth_scene
from tiny_scene import BANDS, NANOMETRES, tiny_cube, tiny_labels, tiny_recipe, write_scene
from vitreous.checkpoints.model_files import load_model
from vitreous.checkpoints.tensors import load_tensors, save_tensors
from vitreous.errors import CheckpointError, ModelError, VitreousError
from vitreous.recipe import PretrainRecipe, make_recipe
from vitreous.tasks import classify, restore
from vitreous.tasks.pretrain import load_run, train

FINE_TUNED = {"model": "satmae_pp_test", "patch_size": 9, "epochs": 1}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A labelled scene."""
    return write_scene(tmp_path_factory.mktemp("scene"))


def run(folder, *, resume=False, **changes):
    recipe = make_recipe(pretrain_settings(folder, **changes), PretrainRecipe)
    return train(recipe, resume=resume, show=False)


def metrics_of(path):
    return json.loads((path / "metrics.json").read_text())


@pytest.fixture(scope="module")
def trained(tmp_path_factory, places):
    folder = tmp_path_factory.mktemp("trained")
    return run(folder, scene=places["scene"], report=True, steps=100)


def test_the_run_folder_is_complete_and_it_learns(trained):
    assert {path.name for path in trained.iterdir()} == {
        "config.json", "log.csv", "metrics.json", "model.safetensors", "preprocess.safetensors",
        "report.html",
    }  # fmt: skip
    rows = history(trained)
    assert [row["step"] for row in rows] == ["25", "50", "75", "100"]
    assert float(rows[-1]["train_loss"]) < 0.95 * float(rows[0]["train_loss"])
    metrics = metrics_of(trained)
    assert metrics["task"] == "pretrain"
    assert metrics["val_loss"] == pytest.approx(float(rows[-1]["val_loss"]))
    assert metrics["train_loss"] == pytest.approx(float(rows[-1]["train_loss"]))
    net, report = load_model(trained / "model.safetensors")
    assert report.complete
    assert metrics["parameters"] == sum(p.numel() for p in net.parameters())
    assert report.made.bands.wavelengths == pytest.approx(NANOMETRES)
    assert load_run(trained).recipe.steps == 100


def test_its_preprocessing_is_a_score_per_band(trained):
    preprocess = load_run(trained).preprocess
    pixels = torch.from_numpy(tiny_cube(tiny_labels()))
    train_part = preprocess(pixels[None, :, :, :19])[0].flatten(1)
    torch.testing.assert_close(train_part.mean(1), torch.zeros(BANDS), atol=1e-5, rtol=0)
    torch.testing.assert_close(train_part.std(1, correction=0), torch.ones(BANDS), atol=1e-4, rtol=0)  # fmt: skip


def test_stopped_after_any_epoch_it_ends_with_the_same_bits(
    tmp_path, places, monkeypatch, save_always
):
    settings = {"scene": places["scene"], "steps": 60}
    expected = run(tmp_path, **settings, name="whole")
    folder = tmp_path / "runs" / "pretrain" / "run"
    for _ in range(3):
        with stopped_after_saving(monkeypatch):
            run(tmp_path, **settings, resume=folder.exists())
    with pytest.raises(CheckpointError, match="does not hold a finished pre-training"):
        load_run(folder)
    run(tmp_path, **settings, resume=True)
    assert equal(weights(folder), weights(expected))
    same = ("epoch", "step", "learning_rate", "train_loss", "val_loss")
    assert [[row[name] for name in same] for row in history(folder)] == [
        [row[name] for name in same] for row in history(expected)
    ]
    assert {path.name for path in folder.iterdir()} == {path.name for path in expected.iterdir()}


def test_the_seed_decides(tmp_path, places):
    settings = {"scene": places["scene"], "steps": 3}
    first, again = (run(tmp_path, **settings, name=name) for name in "ab")
    assert equal(weights(first), weights(again))
    assert not equal(weights(first), weights(run(tmp_path, **settings, name="c", seed=1)))


def test_without_room_for_validation_it_trains_all_the_same(tmp_path, places):
    folder = run(tmp_path, scene=places["scene"], steps=2, val_fraction=0.1, reduction="pca", report=True, pretrainer_args={"scales": 1})  # fmt: skip
    assert metrics_of(folder)["val_loss"] is None
    assert load_run(folder).preprocess.channels < BANDS + 1
    assert load_model(folder / "model.safetensors")[1].made.bands.wavelengths is None


# -- handed over ------------------------------------------------------------------------------------------


def fine_tuned(folder, places, **changes):
    recipe = tiny_recipe(folder, **{**places, **FINE_TUNED, **changes})
    return classify.train(recipe, show=False)


def test_training_starts_from_what_was_learned_with_its_preprocessing(trained, places, tmp_path):
    after = weights(fine_tuned(tmp_path, places, init=str(trained), adapt="head_only"))
    learned = weights(trained)
    trunk = [name for name in learned if not name.startswith("head.")]
    assert len(trunk) > 20
    for name in trunk:
        assert torch.equal(after[f"net.{name}"], learned[name]), name
    kept = load_run(trained).preprocess
    assert torch.equal(after["preprocess.matrix"], kept.matrix)
    assert torch.equal(after["preprocess.mean"], kept.mean)
    assert after["net.head.weight"].shape[0] == 3


def test_a_moved_run_is_started_from_and_what_was_learned_moves(trained, places, tmp_path):
    moved = shutil.copytree(trained, tmp_path / "elsewhere")
    after = weights(fine_tuned(tmp_path, places, init=str(moved)))
    learned = weights(moved)
    assert not torch.equal(after["net.blocks.0.mlp.fc1.weight"], learned["blocks.0.mlp.fc1.weight"])


def test_other_bands_are_refused_by_the_run_and_adapted_by_the_file(trained, tmp_path):
    from vitreous.scenes import numpy_files
    from vitreous.scenes.cube import make_scene

    places = write_scene(tmp_path)
    cube = tiny_cube(tiny_labels())[:5]
    scene = make_scene(cube, wavelengths=np.linspace(440, 910, 5), unit="reflectance")
    numpy_files.write(scene, tmp_path / "scene.npy")
    with pytest.raises(ModelError, match="lacks"):
        fine_tuned(tmp_path, places, init=str(trained))
    file = str(trained / "model.safetensors")
    after = fine_tuned(tmp_path, places, init=file, reduction="none", adapt="head_only", name="b")
    net = weights(after)
    assert net["preprocess.matrix"].shape == (5, 5)
    learned = weights(trained)
    assert torch.equal(net["net.blocks.1.mlp.fc1.weight"], learned["blocks.1.mlp.fc1.weight"])


def test_further_bands_are_refused_with_the_way_to_adapt(trained, tmp_path):
    from vitreous.scenes import numpy_files
    from vitreous.scenes.cube import make_scene

    places = write_scene(tmp_path)
    cube = tiny_cube(tiny_labels())
    more = np.concatenate([cube, cube[:1]])
    scene = make_scene(more, wavelengths=[*NANOMETRES, 2000.0], unit="reflectance")
    numpy_files.write(scene, tmp_path / "scene.npy")
    with pytest.raises(ModelError, match="pre-trained on bands other than") as caught:
        fine_tuned(tmp_path, places, init=str(trained))
    assert "model.safetensors --reduction none" in caught.value.fix


def test_pretraining_goes_on_from_a_run_or_a_model_file(trained, places, tmp_path):
    still = {"scene": places["scene"], "steps": 1, "learning_rate": 1e-12, "ema": 0}
    learned = weights(trained)
    for init in (trained, trained / "model.safetensors"):
        after = weights(run(tmp_path, **still, init=str(init), name=init.stem))
        for name, tensor in learned.items():
            if not name.startswith("head."):
                torch.testing.assert_close(after[name], tensor, atol=1e-6, rtol=0)


# -- refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "vit_test"}, "does not support pre-training"),
        ({"model": "hsdt_test"}, "does not support pre-training"),
        ({"model": "satmae_pp_tst"}, "satmae_pp_test"),
        ({"model": "satmae_pp"}, "several variants"),
        ({"model_args": {"dept": 1}}, "no argument 'dept'"),
        ({"pretrainer_args": {"mask_ration": 0.5}}, "Did you mean 'mask_ratio'"),
        ({"pretrainer_args": {"mask_ratio": 2}}, "masks none or all|mask_ratio"),
        ({"pretrainer_args": {"mask_ratio": "much"}}, "mask_ratio='much': it must be a number"),
        ({"pretrainer_args": {"encoder": 3}}, "no argument 'encoder'"),
        ({"image_size": 30}, "do not fit into an area"),
        ({"val_fraction": 0.85}, "do not fit into an area"),
        ({"scene": "nowhere.tif"}, "does not exist"),
        ({"init": "nowhere.safetensors"}, "nowhere.safetensors"),
        ({"init": "nowhere"}, "nowhere"),
    ],
)
def test_what_cannot_be_pretrained_is_told_and_leaves_no_folder(tmp_path, places, changes, said):
    with pytest.raises(VitreousError, match=said) as caught:
        run(tmp_path, **{"scene": places["scene"], **changes})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_scenes_without_anything_to_learn_leave_no_folder(tmp_path):
    for name, values in (("flat", np.ones_like(smooth_cube())), ("void", smooth_cube() * np.nan)):
        place = write_smooth_scene(tmp_path / name, values)
        with pytest.raises(VitreousError):
            run(tmp_path, scene=place)
    assert not (tmp_path / "runs").exists()


def test_a_file_of_other_arguments_is_refused(trained, places, tmp_path):
    with pytest.raises(ModelError, match=r"has the model arguments \{\}"):
        run(tmp_path, scene=places["scene"], init=str(trained), model_args={"depth": 1})


def test_no_training_starts_from_a_run_that_has_not_finished(trained, places, tmp_path):
    begun = tmp_path / "begun"
    begun.mkdir()
    shutil.copy(trained / "config.json", begun)
    for start in (lambda: fine_tuned(tmp_path, places, init=str(begun)), lambda: run(tmp_path, scene=places["scene"], init=str(begun))):  # fmt: skip
        with pytest.raises(CheckpointError, match="has not finished") as caught:
            start()
        assert caught.value.fix == f"Resume it with 'vitreous pretrain {begun} --resume'."
    assert not (tmp_path / "runs").exists()


def test_training_that_cannot_begin_leaves_no_folder(trained, places, tmp_path):
    for changes in ({"model_args": {"depth": 1}}, {"model": "vit_test"}):
        with pytest.raises(ModelError, match=r"model arguments|holds 'satmae_pp_test'"):
            fine_tuned(tmp_path, places, init=str(trained), **changes)
    assert not list((tmp_path / "runs" / "classify").iterdir())


def test_runs_of_other_tasks_are_told(trained, tmp_path):
    with pytest.raises(CheckpointError, match="'pretrain' run, not a 'restore' run"):
        restore.load_run(trained)
    with pytest.raises(CheckpointError, match="does not hold a finished pre-training"):
        load_run(tmp_path)
    with pytest.raises(VitreousError, match="'pretrain' run, not a 'classify' run"):
        classify.evaluate(trained)


def edit(**changes):
    return lambda header: header.update(changes)


@pytest.mark.parametrize(
    "change",
    [
        edit(schema=2),
        edit(channels=0),
        edit(channels=10**6),
        edit(channels="many"),
        edit(contract=None),
        edit(contract={"bands": 2, "used": [7], "wavelengths": None, "unit": "dn"}),
        edit(contract={"bands": 2, "used": [0, 1], "wavelengths": None, "unit": "dn"}),
        lambda header: header.clear(),
    ],
)
def test_damaged_preprocessing_is_refused(trained, tmp_path, change):
    folder = shutil.copytree(trained, tmp_path / "run")
    tensors, header = load_tensors(folder / "preprocess.safetensors")
    change(header)
    save_tensors(folder / "preprocess.safetensors", tensors, header)
    with pytest.raises(VitreousError):
        load_run(folder)
