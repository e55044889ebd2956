"""Commands that are killed at any moment, or meet a full disk: whole results or none, and a way to go on."""

from __future__ import annotations

import errno
import json
import random
import shutil

import numpy as np
import pytest

from killed import hidden, killed_at, moments, with_full_disk
from run_folders import equal, weights
from tiny_scene import tiny_labels, tiny_recipe, write_scene
from vitreous.cli.recipes import latest_unfinished, resumed_recipe
from vitreous.errors import ConfigError, VitreousError
from vitreous.files import is_unfinished, locked
from vitreous.recipe import PretrainRecipe, Recipe, RestoreRecipe, make_recipe
from vitreous.tasks import classify, pretrain, restore
from vitreous.tasks.compress import compress
from vitreous.tasks.export import export_run
from vitreous.tasks.runs import load_run

KILLS = 4  # of each command, at moments drawn with a seed

SHORT = {
    "epochs": 3, "batch_size": 64, "map": True, "report": False, "baselines": [],
}  # fmt: skip


def drawn(count):
    """Return the first moment, the last one, and some between."""
    between = random.Random(0).sample(range(2, count), min(KILLS - 2, count - 2))
    return [1, *sorted(between), count]


def visible(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return write_scene(tmp_path_factory.mktemp("scene"), np.tile(tiny_labels(), (2, 2)))


def restorer(folder, places, **changes):
    values = {
        "scene": places["scene"], "model": "hsdt_test", "steps": 30, "crop": 4, "batch_size": 2,
        "test_fraction": 0.6, "val_fraction": 0.0, "baselines": [], "report": False,
        "accelerator": "cpu", "runs": str(folder / "runs"), "name": "run", **changes,
    }  # fmt: skip
    return make_recipe(values, RestoreRecipe)


def pretrained(folder, places):
    values = {
        "scene": places["scene"], "model": "satmae_pp_test", "steps": 30, "image_size": 8,
        "batch_size": 2, "val_fraction": 0.0, "report": False, "accelerator": "cpu",
        "runs": str(folder / "runs"), "name": "run",
    }  # fmt: skip
    return make_recipe(values, PretrainRecipe)


COMMANDS = {
    "network": (
        classify,
        Recipe,
        lambda folder, places: tiny_recipe(folder, **places, **SHORT),
    ),
    "estimator": (
        classify,
        Recipe,
        lambda folder, places: tiny_recipe(
            folder, **places, **SHORT | {"model": "random_forest", "model_args": {"trees": 3}}
        ),
    ),
    "restorer": (restore, RestoreRecipe, restorer),
    "filter": (
        restore,
        RestoreRecipe,
        lambda folder, places: restorer(folder, places, model="low_rank"),
    ),
    "pretrainer": (pretrain, PretrainRecipe, pretrained),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_killed_training_goes_on_without_being_named(
    name, places, tmp_path, monkeypatch, save_always
):
    """Whenever it was killed: ``--resume`` finds it, or it never began; its name is free or its own."""
    task, kind, make = COMMANDS[name]
    monkeypatch.chdir(tmp_path)
    whole = task.train(make(tmp_path / "whole", places), show=False)
    counted = tmp_path / "counted"
    count = moments(lambda: task.train(make(counted, places), show=False), counted)
    for moment in drawn(count):
        folder = tmp_path / str(moment)
        recipe = make(folder, places)
        killed_at(moment, lambda recipe=recipe: task.train(recipe, show=False), folder)
        runs = folder / "runs" / task.TASK
        run = runs / "run"
        if not run.exists():  # it had not begun: the command is given again
            assert task.train(recipe, show=False) == run
        elif is_unfinished(run):
            assert latest_unfinished(runs) == run
            resumed = resumed_recipe(None, {"runs": recipe.runs}, kind, task.TASK)
            assert task.train(resumed, resume=True, show=False) == run
        else:
            assert moment == count
        assert visible(runs) == ["run"]
        assert visible(run) == visible(whole)
        assert hidden(runs) == []
        assert not is_unfinished(run)
        assert equal(weights(run), weights(whole)), f"killed at {moment} of {count}"


@pytest.fixture(scope="module")
def base(tmp_path_factory, places):
    settings = {**places, **SHORT, "patch_size": 9, "mode": "patch"}
    return classify.train(tiny_recipe(tmp_path_factory.mktemp("base"), **settings), show=False)


@pytest.fixture
def run(base, tmp_path):
    """A copy of a finished run in a folder of its own."""
    return shutil.copytree(base, tmp_path / "runs" / "classify" / "run")


def test_a_killed_compression_leaves_a_whole_run_or_none(run, tmp_path):
    def call():
        return compress(run, "ptq_minmax", images=8, max_drop=100, show=False)

    count = moments(call, tmp_path)
    shutil.rmtree(run.parent / "run-ptq_minmax")
    for moment in drawn(count):
        killed_at(moment, call, tmp_path)
        assert visible(run.parent) == ["run"]
        assert latest_unfinished(run.parent) is None  # nothing that a resume could take for its own
    # What the last one was building is cleared away by the next.
    assert hidden(run.parent)
    done = call()
    assert visible(run.parent) == ["run", "run-ptq_minmax"]
    assert hidden(run.parent) == []
    assert {"compress.json", "metrics.json", "map.tif"} <= set(visible(done.path))
    assert load_run(done.path).methods[0]["name"] == "ptq_minmax"


def test_a_killed_export_leaves_a_whole_export_or_none(run, tmp_path):
    pytest.importorskip("onnx")
    folder = run / "export-onnx"
    parts = {"export.json", "window.onnx", "patches.onnx"}

    def call():
        return export_run(run, "onnx")

    count = moments(call, run)
    for moment in drawn(count)[2:3]:
        killed_at(moment, call, run)  # the older export is there until the new one takes its place
        assert not folder.exists() or set(visible(folder)) == parts
    call()
    assert set(visible(folder)) == parts
    assert hidden(run) == []


LIMITS = (300, 9000)  # bytes that a file may have


@pytest.mark.parametrize("form", ["onnx", "openvino", "torch"])
def test_an_export_to_a_full_disk_says_so(form, run):
    for package in ("onnx", "onnxscript", form):
        pytest.importorskip(package)
    before = visible(run)
    for limit in LIMITS:
        said = with_full_disk(limit, lambda: export_run(run, form))
        assert said.startswith("VitreousError"), said
        assert "was not written" in said.splitlines()[0]
        assert "disk" in said.splitlines()[0]
        assert "--format" not in said.splitlines()[0]
        assert visible(run) == before
        assert hidden(run) == []


def test_a_full_disk_behind_an_exporter_s_own_error_is_named(run, monkeypatch):
    """Exporters wrap the system's error into their own words."""
    from vitreous.inference import export

    def full(part, stem):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("serialization failed") from error

    monkeypatch.setattr(export, "_write_torch", full)
    with pytest.raises(VitreousError, match="The disk is full") as caught:
        export_run(run, "torch")
    assert caught.value.fix == "Free some space, or write elsewhere."
    assert hidden(run) == []


def test_a_compression_on_a_full_disk_leaves_nothing(run):
    for limit in LIMITS:
        said = with_full_disk(
            limit, lambda: compress(run, "ptq_minmax", images=8, max_drop=100, show=False)
        )
        assert said.startswith("VitreousError"), said
        assert visible(run.parent) == ["run"]
        assert hidden(run.parent) == []


def test_resuming_clears_away_what_was_half_written(run):
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "finished": False}))
    for name in (".map.x1y2", "baselines/vit_test/.map.z"):
        (run / name).mkdir(parents=True)
        (run / name / "map.tif").touch()
    (run / ".metrics.abc.json").touch()
    recipe = resumed_recipe(run, {}, Recipe, "classify")
    classify.train(recipe, resume=True, show=False)
    assert hidden(run) == []
    assert not is_unfinished(run)


def test_a_run_that_is_being_trained_is_left_alone(run, tmp_path):
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "finished": False}))
    recipe = resumed_recipe(run, {}, Recipe, "classify")
    (run / ".map.half.tif").touch()
    assert latest_unfinished(run.parent) == run
    with locked(run):
        assert latest_unfinished(run.parent) is None
        with pytest.raises(ConfigError, match="Another process is training"):
            classify.train(recipe, resume=True, show=False)
        assert hidden(run) == [".map.half.tif"]
    classify.train(recipe, resume=True, show=False)
    assert hidden(run) == []
