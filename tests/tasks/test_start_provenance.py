"""What weights have seen, through every way that they travel; and runs whose files changed under them."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from run_folders import equal, stopped_after_saving, weights
from smooth_scene import pretrain_settings, restore_settings, smooth_cube, write_smooth_scene
from tiny_scene import tiny_cube, tiny_labels, tiny_recipe, write_scene
from vitreous.catalog.registry import create_model
from vitreous.checkpoints.model_files import save_model
from vitreous.checkpoints.tensors import load_tensors, save_tensors
from vitreous.data.blocks import TEST, TRAIN, VAL
from vitreous.data.provenance import Seen, Unknown
from vitreous.data.roles import Split
from vitreous.errors import ConfigError, ModelError
from vitreous.recipe import PretrainRecipe, RestoreRecipe, make_recipe
from vitreous.scenes import numpy_files, open_scene
from vitreous.tasks import classify, pretrain, restore
from vitreous.tasks.compress import compress
from vitreous.tasks.provenance import start_provenance
from vitreous.tasks.runs import load_run

VIT = {"model": "vit_test", "patch_size": 5, "mode": "patch", "epochs": 1}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return write_scene(tmp_path_factory.mktemp("scene"))


def run(folder, places, show=False, **changes):
    return classify.train(tiny_recipe(folder, **places, **VIT, **changes), show=show)


def pretrained(folder, places, **changes):
    settings = pretrain_settings(folder, scene=places["scene"], steps=2, **changes)
    return pretrain.train(make_recipe(settings, PretrainRecipe), show=False)


def metrics(path):
    return json.loads((path / "metrics.json").read_text())


@pytest.fixture(scope="module")
def first(tmp_path_factory, places):
    """A run on one draw of training pixels."""
    return run(tmp_path_factory.mktemp("first"), places, name="first", seed=1, train_fraction=0.02)


@pytest.fixture(scope="module")
def learned(tmp_path_factory, places):
    """A pre-training on the left two thirds of the scene."""
    return pretrained(tmp_path_factory.mktemp("learned"), places)


FEW = {"split": "random", "train_fraction": 0.02, "val_fraction": 0.0}


# -- what is counted --------------------------------------------------------------------------------------


def test_labelled_pixels_of_an_earlier_run_count_as_leakage(tmp_path, places, first, capsys):
    """Also from a copy of the scene under another name; the naive count is written out."""
    copy = write_scene(tmp_path / "copy")
    path = run(tmp_path, copy, show=True, init=str(first), seed=2, **FEW)
    before, now = (Split.load(folder / "split.npz") for folder in (first, path))
    test = now.roles == TEST
    used = (before.roles == TRAIN) | (before.roles == VAL)
    near = Split(np.where(used, TRAIN, 0).astype(np.uint8), "random").near_training(5)
    own = now.near_training(5)
    found = metrics(path)
    assert 0 < used[test].mean() < near[test].mean() < 1
    assert found["start"]["labelled"] == pytest.approx(used[test].mean())
    assert found["start"]["patches"] == pytest.approx(near[test].mean())
    assert found["start"]["unlabelled"] == 0
    assert found["split"]["leakage"] == pytest.approx((near | own)[test].mean())
    assert found["split"]["leakage"] > now.leakage(5) == found["start"]["split_leakage"]
    printed = capsys.readouterr().err
    assert f"{near[test].mean():.0%} of the test pixels lie inside their training" in " ".join(
        printed.split()
    )
    assert classify.evaluate(path)["start"] == found["start"]
    assert classify.evaluate(path)["split"] == found["split"]
    mine = load_run(path).provenance
    assert [entry.task for entry in mine] == ["classify", "classify"]
    assert load_run(path).start == load_run(first).provenance


def test_pretraining_on_the_same_scene_is_told_apart_and_makes_it_optimistic(tmp_path, learned):
    """Blocks keep patches apart; that the start has seen the ground they do not see."""
    labels = np.kron(tiny_labels(), np.ones((2, 2), dtype=np.uint8))
    places = write_scene(tmp_path / "large", labels)
    blocks = {"split": "blocks", "block_size": 8, "train_fraction": 0.5, "report": True}
    settings = {"model": "satmae_pp_test", "patch_size": 9, "epochs": 1, **blocks}
    start = pretrained(tmp_path, places, val_fraction=0.5)
    path = classify.train(tiny_recipe(tmp_path, **places, **settings, init=str(start)), show=False)
    split = Split.load(path / "split.npz")
    test = split.pixels(TEST)
    seen = start_provenance(str(start))[0]
    inside = (test % 56 < seen.area.columns.stop).mean()
    found = metrics(path)
    assert 0 < inside < 1
    assert split.leakage(9) == 0 and not split.optimistic
    assert found["start"]["unlabelled"] == pytest.approx(inside) == found["split"]["leakage"]
    assert (found["start"]["labelled"], found["start"]["patches"]) == (0, 0)
    assert found["split"]["optimistic"]
    page = (path / "report.html").read_text()
    assert "without labels" in page and "Optimistic estimate" in page
    assert "held-out ground" not in page
    # The file alone knows it as well, and so does what is trained further.
    again = tiny_recipe(tmp_path, **places, **settings, name="file", init=str(start / "model.safetensors"), reduction="none")  # fmt: skip
    assert metrics(classify.train(again, show=False))["start"]["unlabelled"] == pytest.approx(
        inside
    )
    third = tiny_recipe(tmp_path, **places, **settings, name="third", init=str(path))
    assert metrics(classify.train(third, show=False))["start"]["unlabelled"] == pytest.approx(
        inside
    )
    # Pre-trained elsewhere, the same blocks are no less honest.
    other = tiny_recipe(tmp_path, **places, **settings, name="other", init=str(learned))
    found = metrics(classify.train(other, show=False))
    assert found["start"]["share"] == 0 and not found["split"]["optimistic"]
    assert "No leakage" in (tmp_path / "runs/classify/other/report.html").read_text()


def test_without_a_start_there_is_nothing_to_say(first):
    assert metrics(first)["start"] is None
    (own,) = load_run(first).provenance
    assert isinstance(own, Seen) and own.labelled and own.source == "scene.npy"


def test_weights_of_unknown_provenance_are_said(tmp_path, places, capsys):
    net = create_model("vit_test", bands=4, num_classes=2, image_size=5)
    file = save_model(net, tmp_path / "foreign.safetensors")
    path = run(tmp_path, places, show=True, init=str(file), report=True, **FEW)
    found = metrics(path)["start"]
    assert found["unknown"] == ["foreign.safetensors"] and found["share"] == 0
    words = "provenance of the weights in foreign.safetensors is unknown"
    assert words in " ".join(capsys.readouterr().err.split())
    assert words in (path / "report.html").read_text()
    assert load_run(path).provenance[0] == Unknown("foreign.safetensors")
    # What is known of them comes along where it is given.
    known = save_model(net, tmp_path / "known.safetensors", provenance=())
    assert start_provenance(str(known)) == ()


def test_a_run_of_an_older_version_is_unknown_where_it_could_matter(tmp_path, places, first):
    old = shutil.copytree(first, tmp_path / "old")
    tensors, header = load_tensors(old / "model.safetensors")
    del header["provenance"]
    save_tensors(old / "model.safetensors", tensors, header)
    assert load_run(old).start == ()
    assert metrics(run(tmp_path, places, init=str(old), **FEW))["start"]["unknown"] == ["old"]
    config = json.loads((old / "config.json").read_text())
    config["recipe"]["init"] = "something"
    (old / "config.json").write_text(json.dumps(config))
    assert load_run(old).start == (Unknown("old"),)


# -- how it travels ---------------------------------------------------------------------------------------


def test_compressed_adapted_and_exported_weights_keep_it(tmp_path, places, first):
    adapted = run(tmp_path, places, init=str(first), adapt="lora_only", name="adapted", **FEW)
    known = load_run(adapted).provenance
    assert len(known) == 2
    small = compress(adapted, "ptq_minmax", max_drop=100, show=False).path
    assert load_run(small).provenance == known
    assert metrics(small)["start"] == metrics(adapted)["start"]
    assert metrics(small)["split"] == metrics(adapted)["split"]
    from vitreous.tasks.export import export_run

    written = export_run(first, "torch").folder
    description = json.loads((written / "export.json").read_text())
    assert description["provenance"] == [entry.to_json() for entry in load_run(first).provenance]


def test_pretraining_goes_on_with_the_list_and_says_what_its_validation_had_seen(tmp_path, places):
    """Twice on the same scene, the second time with a part of the first's training ground to validate."""
    start = pretrained(tmp_path, places, name="one", val_fraction=0.33)
    again = pretrained(tmp_path, places, name="two", val_fraction=0.5, init=str(start), report=True)
    assert [entry.task for entry in start_provenance(str(again))] == ["pretrain", "pretrain"]
    assert metrics(start)["val_seen"] == 0
    assert metrics(again)["val_seen"] == pytest.approx(5 / 14)  # columns 14 to 18 of 14 to 27
    assert (
        "36% of that ground was seen by the initial weights" in (again / "report.html").read_text()
    )


def test_a_restorer_that_starts_from_the_test_area_is_told(tmp_path, capsys):
    scene = write_smooth_scene(tmp_path)
    base = {"scene": scene, "steps": 2, "report": True}

    def train(**changes):
        settings = restore_settings(tmp_path, **base, **changes)
        return restore.train(make_recipe(settings, RestoreRecipe), show=True)

    wide = train(name="wide", test_fraction=0.25, val_fraction=0.0)
    found = metrics(wide)
    assert found["start"] is None and found["leakage"] == 0 and not found["optimistic"]
    path = train(name="narrow", test_fraction=0.5, val_fraction=0.0, init=str(wide))
    found = metrics(path)
    assert found["start"]["unlabelled"] == pytest.approx(0.5) == found["leakage"]
    assert found["optimistic"]
    words = "50% of the test pixels lie in it"
    assert words in " ".join(capsys.readouterr().err.split())
    page = (path / "report.html").read_text()
    assert words in page and "held-out" not in page
    again = restore.evaluate(path)
    assert again["start"] == found["start"] and again["optimistic"]
    same = train(name="same", test_fraction=0.25, val_fraction=0.0, init=str(wide))
    assert metrics(same)["leakage"] == 0


def test_a_run_that_was_stopped_after_training_remembers_its_start(
    tmp_path, places, first, monkeypatch
):
    """Also where the run that it started from is gone by then."""
    start = shutil.copytree(first, tmp_path / "start")
    expected = metrics(run(tmp_path, places, name="whole", init=str(start), seed=2, **FEW))

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(classify, "_measure", stop)
        run(tmp_path, places, init=str(start), seed=2, **FEW)
    shutil.rmtree(start)
    recipe = tiny_recipe(tmp_path, **places, **VIT, init=str(start), seed=2, **FEW)
    found = metrics(classify.train(recipe, resume=True, show=False))
    assert found["start"] == expected["start"] and found["split"] == expected["split"]


# -- files that change under a run ------------------------------------------------------------------------


def interrupted(monkeypatch, folder, places, **changes):
    with stopped_after_saving(monkeypatch):
        run(folder, places, **{**FEW, **changes})
    return tiny_recipe(folder, **places, **{**VIT, **FEW, **changes})


@pytest.mark.parametrize("changed", ["labels", "classes", "test labels", "scene", "one value"])
def test_going_on_with_other_files_is_refused(tmp_path, monkeypatch, save_always, changed):
    left = tiny_labels() * (np.arange(28) < 14).astype(np.uint8)
    places = write_scene(
        tmp_path, left if changed == "test labels" else None, cube=tiny_cube(tiny_labels())
    )
    np.save(tmp_path / "test.npy", tiny_labels())
    more = {"test_labels": str(tmp_path / "test.npy"), "split": "files"}
    more = more if changed == "test labels" else {}
    recipe = interrupted(monkeypatch, tmp_path, places, **more)
    labels, cube = np.load(places["labels"]), tiny_cube(tiny_labels())
    if changed == "labels":
        labels = labels % 3 + 1
    elif changed == "classes":
        labels = np.array([0, 10, 95, 200])[labels]
    elif changed == "test labels":
        np.save(tmp_path / "test.npy", tiny_labels() % 3 + 1)
    elif changed == "scene":
        cube *= 1.01
    else:
        cube[3, 5, 7] += 0.001
    what = "scene" if changed in ("scene", "one value") else "labels"
    write_scene(tmp_path, labels, cube=cube)
    folder = tmp_path / "runs" / "classify" / "run"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ConfigError, match=f"The {what} of the run .* changed") as caught:
        classify.train(recipe, resume=True, show=False)
    assert "start a new run" in caught.value.fix
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_measuring_or_compressing_with_other_labels_is_refused(tmp_path):
    places = write_scene(tmp_path)
    path = run(tmp_path, places, **FEW)
    write_scene(tmp_path, np.array([0, 10, 95, 200])[tiny_labels()], cube=tiny_cube(tiny_labels()))
    for measure in (classify.evaluate, lambda path: compress(path, "ptq_minmax", show=False)):
        with pytest.raises(ConfigError, match="The labels of the run"):
            measure(path)


def test_a_moved_file_of_the_same_content_goes_on(tmp_path, monkeypatch, save_always, places):
    expected = run(tmp_path, places, name="whole", **FEW)
    recipe = interrupted(monkeypatch, tmp_path, places)
    moved = write_scene(tmp_path / "elsewhere")
    path = classify.train(recipe.model_copy(update=moved), resume=True, show=False)
    assert equal(weights(path), weights(expected))


def test_a_run_of_an_older_version_goes_on(tmp_path, monkeypatch, save_always, places):
    recipe = interrupted(monkeypatch, tmp_path, places)
    file = tmp_path / "runs" / "classify" / "run" / "config.json"
    config = json.loads(file.read_text())
    del config["fingerprints"]
    file.write_text(json.dumps(config))
    assert (classify.train(recipe, resume=True, show=False) / "metrics.json").is_file()


@pytest.mark.parametrize("task", ["restore", "pretrain"])
def test_trainings_without_labels_refuse_another_scene(tmp_path, monkeypatch, save_always, task):
    if task == "restore":
        scene = write_smooth_scene(tmp_path)
        settings = restore_settings(tmp_path, scene=scene, steps=30)
        kind, train = RestoreRecipe, restore.train
    else:
        scene = write_scene(tmp_path)["scene"]
        settings = pretrain_settings(tmp_path, scene=scene, steps=30)
        kind, train = PretrainRecipe, pretrain.train
    recipe = make_recipe(settings, kind)
    with stopped_after_saving(monkeypatch):
        train(recipe, show=False)
    if task == "restore":
        write_smooth_scene(tmp_path, smooth_cube(seed=1))
    else:
        write_scene(tmp_path, cube=tiny_cube(tiny_labels(), seed=1))
    with pytest.raises(ConfigError, match="The scene of the run"):
        train(recipe, resume=True, show=False)


# -- scenes in another unit or scale ----------------------------------------------------------------------


def rescaled(folder, scene, scale):
    """Write the scene as a file that says its values are to be scaled."""
    folder.mkdir()
    numpy_files.write(open_scene(scene).assign_attrs(scale=scale), folder / "scene.npy")
    return open_scene(folder / "scene.npy")


def test_runs_and_exports_refuse_a_scene_of_another_scale_and_write_nothing(
    tmp_path, places, first
):
    from vitreous.inference.predict import predict_scene
    from vitreous.tasks.export import load_for

    scene = rescaled(tmp_path / "scaled", places["scene"], 1e-4)
    for loaded in (load_run(first), load_for(_torch_export(first), trust=True)):
        given = {"class_names": loaded.class_names, "class_colors": loaded.class_colors}
        with pytest.raises(ModelError, match="100% of the scene's pixels") as caught:
            predict_scene(loaded.classifier, scene, tmp_path / "map.tif", **given)
        assert "scale=1 (now 0.0001)" in caught.value.fix
        assert not list(tmp_path.glob("map*"))
        right = open_scene(tmp_path / "scaled" / "scene.npy", scale=1)
        predict_scene(loaded.classifier, right, tmp_path / "map.tif", **given)
        for path in tmp_path.glob("map*"):
            path.unlink()


def _torch_export(path):
    from vitreous.tasks.export import export_run

    return export_run(path, "torch").folder


def test_a_start_on_a_scene_of_another_scale_is_refused(tmp_path, places, first, learned):
    rescaled(tmp_path / "scaled", places["scene"], 1e-3)
    other = {**places, "scene": str(tmp_path / "scaled" / "scene.npy")}
    with pytest.raises(ModelError, match="unit or scale"):
        run(tmp_path, other, init=str(first), **FEW)
    recipe = tiny_recipe(tmp_path, **other, model="satmae_pp_test", patch_size=9, epochs=1, init=str(learned))  # fmt: skip
    with pytest.raises(ModelError, match="unit or scale"):
        classify.train(recipe, show=False)


def test_a_restorer_refuses_a_scene_of_another_scale(tmp_path):
    from vitreous.inference.restore import restored_scene

    settings = restore_settings(tmp_path, scene=write_smooth_scene(tmp_path), steps=2)
    path = restore.train(make_recipe(settings, RestoreRecipe), show=False)
    restorer = restore.load_run(path).restorer
    scene = open_scene(tmp_path / "scene.npy")
    assert torch.isfinite(torch.from_numpy(restored_scene(restorer, scene).values)).all()
    with pytest.raises(ModelError, match="unit or scale"):
        restored_scene(restorer, scene.assign_attrs(scale=1e-4))
    again = make_recipe({**settings, "name": "again", "init": str(path), "hints": {"scale": 1e4}}, RestoreRecipe)  # fmt: skip
    with pytest.raises(ModelError, match="unit or scale"):
        restore.train(again, show=False)
