"""Every file that is read from a run or export, damaged: said in words when it is loaded, and never anything else."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from damage import changed, drawn, mutate_header, mutate_json, only_told
from tiny_scene import tiny_labels, tiny_recipe, tiny_scene, write_scene
from vitreous.checkpoints.model_files import load_model
from vitreous.checkpoints.tensors import load_tensors, save_tensors
from vitreous.cli.recipes import resumed_recipe
from vitreous.data import split_files
from vitreous.data.roles import Split
from vitreous.errors import CheckpointError, VitreousError
from vitreous.files import is_unfinished, task_of
from vitreous.inference.restore import restored_scene
from vitreous.inference.runtimes import load_exported
from vitreous.recipe import PretrainRecipe, Recipe, RestoreRecipe, make_recipe
from vitreous.report.record import read_record
from vitreous.tasks import bench, classify, loop, pretrain, restore
from vitreous.tasks.compress import compress
from vitreous.tasks.export import export_run
from vitreous.tasks.runs import load_run

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
COUNT = 80  # mutations of one file

SYSTEMS = {
    "patch": {"mode": "patch", "patch_size": 9},
    "scene": {"model": "lola_specvit_test", "patch_size": 5},
    "dense": {"model": "swin_test", "mode": "dense", "tile_size": 16},
    "adapted": {"adapt": "lora_only", "model_args": {"depth": 1}},
    "reduced": {"reduce": "evit", "patch_size": 9, "mode": "patch"},
    "svm": {"model": "svm"},
    "random_forest": {"model": "random_forest", "model_args": {"trees": 3}},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a function that makes a run once and hands out copies of it."""
    folder = tmp_path_factory.mktemp("made")
    places = write_scene(folder, np.tile(tiny_labels(), (2, 2)))
    runs = {}

    def make(name):
        if name in SYSTEMS:
            settings = {**places, "name": name, "epochs": 1, **SYSTEMS[name]}
            return classify.train(tiny_recipe(folder, **settings), show=False)
        if name == "quantized":
            return compress(get("patch"), "ptq_minmax", images=8, max_drop=100, show=False).path
        common = {
            "scene": places["scene"], "steps": 1, "batch_size": 2, "val_fraction": 0.0,
            "report": False, "accelerator": "cpu", "runs": str(folder / "runs"),
        }  # fmt: skip
        if name == "pretrained":
            values = {**common, "model": "satmae_pp_test", "image_size": 8}
            return pretrain.train(make_recipe(values, PretrainRecipe), show=False)
        values = {
            **common, "model": "hsdt_test", "crop": 4, "test_fraction": 0.5, "baselines": [],
            "product": False,
        }  # fmt: skip
        return restore.train(make_recipe(values, RestoreRecipe), show=False)

    def get(name):
        if name not in runs:
            runs[name] = make(name)
        return runs[name]

    return get


@pytest.fixture
def copied(made, tmp_path):
    return lambda name: shutil.copytree(made(name), tmp_path / "runs" / "task" / name)


def classified(classifier):
    side = 2 * classifier.margin + 4
    window = np.pad(tiny_scene().values, ((0, 0), (0, side), (0, side)), mode="wrap")
    return classifier.classify(window[:, :side, :side])


@pytest.mark.parametrize("name", [*SYSTEMS, "quantized"])
def test_model_files_of_runs(name, copied):
    run = copied(name)

    def call():
        loaded = load_run(run)
        found = classified(loaded.classifier)
        assert len(found) == len(loaded.class_names) == len(loaded.class_colors)

    mutate_header(run / "model.safetensors", COUNT, call)


def test_model_files_of_restorers(copied):
    run = copied("restored")
    mutate_header(
        run / "model.safetensors",
        COUNT,
        lambda: restored_scene(restore.load_run(run).restorer, tiny_scene()).values,
    )


def test_model_files_of_architectures(copied):
    run = copied("pretrained")
    mutate_header(run / "model.safetensors", COUNT, lambda: load_model(run / "model.safetensors"))
    mutate_header(run / "preprocess.safetensors", COUNT, lambda: pretrain.load_run(run))


@pytest.mark.parametrize(
    ("name", "kind", "evaluate"),
    [
        ("patch", Recipe, classify.evaluate),
        ("svm", Recipe, classify.evaluate),
        ("restored", RestoreRecipe, restore.evaluate),
        ("pretrained", PretrainRecipe, None),
    ],
)
def test_what_a_run_was_started_with(name, kind, evaluate, copied):
    run = copied(name)

    def measured():
        task_of(run)
        is_unfinished(run)
        if evaluate is not None:
            evaluate(run)

    def resumed():
        resumed_recipe(run, {}, kind, task_of(run))

    if evaluate is not None:
        mutate_json(run / "config.json", COUNT, measured)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "finished": False}))
    mutate_json(run / "config.json", COUNT, resumed)


@pytest.mark.parametrize("name", ["patch", "svm", "quantized"])
def test_figures_of_a_run(name, copied):
    run = copied(name)

    def call():
        bench._recorded(run)
        read_record(run)

    mutate_json(run / "metrics.json", COUNT, call)
    if name == "quantized":
        mutate_json(run / "compress.json", COUNT, call)


def test_splits(copied, monkeypatch):
    """The checksum of a split tells damage; who writes a new checksum is refused all the same, or understood."""
    run = copied("svm")
    path = run / "split.npz"
    split = Split.load(path)
    content = path.read_bytes()
    for length in range(0, len(content), 37):
        path.write_bytes(content[:length])
        assert only_told(lambda: Split.load(path), f"cut to {length}")
    told = {"schema": 1, "method": split.method, "params": split.params, "seed": 0, "hash": "x"}
    for what, value in drawn(told, COUNT):
        monkeypatch.setattr(split_files.json, "dumps", lambda *_, value=value, **__: _dumped(value))
        split.save(path)
        monkeypatch.undo()
        only_told(lambda: classify.evaluate(run), f"split {what}")


_dumped = json.dumps


@pytest.fixture(scope="module")
def exported(made):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    return export_run(made("scene"), "onnx").folder


def test_descriptions_of_exports(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "export")

    def call():
        loaded = load_exported(folder)
        found = classified(loaded.classifier)
        assert len(found) == len(loaded.class_names) == len(loaded.class_colors)

    mutate_json(folder / "export.json", COUNT, call)


@pytest.mark.parametrize(
    ("path", "new", "told"),
    [
        (("name",), None, "name"),
        (("contract", "bands"), float("inf"), "not valid JSON: Infinity"),
        (("class_names",), ["one", "two"], "classes"),
        (("class_colors",), ["#000000"], "colours"),
        (("class_colors", 0), "red", "class_colors"),
        (("settings", "margin"), "2", "margin"),
        (("settings", "patch_size"), 1e300, "patch_size"),
        (("quantization",), [], "quantization"),
    ],
)
def test_known_damages_of_exports(path, new, told, exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "export")
    file = folder / "export.json"
    file.write_text(json.dumps(changed(json.loads(file.read_text()), path, new)))
    with pytest.raises(VitreousError) as caught:
        load_exported(folder)
    assert told in caught.value.problem
    assert caught.value.fix


def test_fewer_classes_than_the_graph_gives(exported, tmp_path):
    """Names and colours agree, the graph has one more: known when it is loaded, not when a map is half made."""
    folder = shutil.copytree(exported, tmp_path / "export")
    file = folder / "export.json"
    value = json.loads(file.read_text())
    file.write_text(
        json.dumps({**value, **{k: value[k][:2] for k in ("class_names", "class_colors")}})
    )
    with pytest.raises(CheckpointError, match="2 classes"):
        load_exported(folder)


@pytest.mark.parametrize(
    ("name", "setting", "new"),
    [
        ("quantized", "bits", "eight"),
        ("quantized", "skip", 3),
        ("quantized", "bits", [8.5, 8]),
        ("reduced", "keep_rate", ["x"]),
        ("adapted", "rank", [8]),
    ],
)
def test_settings_of_methods_have_their_type(name, setting, new, copied):
    run = copied(name)
    tensors, header = load_tensors(run / "model.safetensors")
    assert setting in header["methods"][-1]["settings"]
    header["methods"][-1]["settings"][setting] = new
    save_tensors(run / "model.safetensors", tensors, header)
    with pytest.raises(VitreousError) as caught:
        load_run(run)
    assert setting in caught.value.problem


STATES = 25  # mutations of a training state: each may cost an epoch


def test_training_states(made, tmp_path, monkeypatch):
    """A damaged state is refused before training goes on, or does no harm."""

    own = load_run(made("patch")).recipe

    class Stopped(VitreousError):
        pass

    def stop(*_, **__):
        raise Stopped("stopped after training")

    monkeypatch.setattr(classify, "_keep", stop)
    monkeypatch.setattr(loop, "SAVE_SHARE", 0)
    recipe = own.model_copy(update={"epochs": 2, "runs": str(tmp_path), "patience": 1})

    def call():
        with pytest.raises(Stopped):
            classify.train(recipe, resume=state.exists(), show=False)

    state = tmp_path / "classify" / "patch" / "state.safetensors"
    call()
    content = state.read_bytes()
    tensors, header = load_tensors(state, json.loads)
    refused = 0
    for what, value in drawn(header, STATES):
        save_tensors(state, tensors, value)
        refused += only_told(call, f"state {what}")
        state.write_bytes(content)
    assert refused > STATES / 4
    assert not only_told(call, "the state itself")
    tensors.popitem()
    save_tensors(state, tensors, header)
    assert only_told(call, "a tensor less")
