"""Run folders: what is kept comes back, and what was tampered with does not."""

from __future__ import annotations

import json
import shutil
import time
import tracemalloc

import numpy as np
import pytest
import torch

from tiny_scene import tiny_classifier, tiny_recipe, tiny_scene, write_scene
from vitreous.checkpoints.tensors import load_tensors, save_tensors
from vitreous.errors import CheckpointError, VitreousError
from vitreous.tasks.classify import train
from vitreous.tasks.runs import load_run, publish


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Run folders of a network with its own adapters, one with added adapters, and an estimator."""
    folder = tmp_path_factory.mktemp("trained")
    places = write_scene(folder)
    settings = {
        "network": {"model": "lola_specvit_test", "patch_size": 5},
        "adapted": {"adapt": "lora_only", "model_args": {"depth": 1}},
        "estimator": {"model": "random_forest", "model_args": {"trees": 5}},
    }
    return {
        name: train(tiny_recipe(folder, name=name, epochs=1, **places, **changes), show=False)
        for name, changes in settings.items()
    }


@pytest.fixture
def copy(trained, tmp_path):
    """Return a copy of a run folder whose header ``change`` has edited."""

    def make(name, change=None, tensors=None):
        folder = tmp_path / name
        shutil.copytree(trained[name], folder)
        if change is not None or tensors is not None:
            old, header = load_tensors(folder / "model.safetensors")
            if change is not None:
                change(header)
            save_tensors(folder / "model.safetensors", tensors or old, header)
        return folder

    return make


@pytest.mark.parametrize("name", ["network", "adapted", "estimator"])
def test_a_run_comes_back_as_it_was(trained, name):
    run = load_run(trained[name])
    assert run.path == trained[name]
    assert run.class_names == ["class 1", "class 2", "class 3"]
    assert len(run.class_colors) == run.classifier.num_classes == 3
    assert run.recipe.name == name
    assert run.name == run.recipe.model
    assert run.split.counts["train"] > 0
    window = tiny_scene().values[
        :, : 2 * run.classifier.margin + 6, : 2 * run.classifier.margin + 6
    ]
    first = run.classifier.classify(window)
    np.testing.assert_array_equal(load_run(trained[name]).classifier.classify(window), first)
    assert first.shape == (3, 6, 6)


def test_what_rebuilds_the_network_is_kept(trained):
    run = load_run(trained["adapted"])
    assert run.model_args == {"depth": 1}
    assert [entry["name"] for entry in run.methods] == ["lora"]
    assert run.methods[0]["settings"]["rank"] == 8
    assert len(run.classifier.net.blocks) == 1
    assert load_run(trained["network"]).methods == []


def test_weights_are_on_the_cpu_in_evaluation(trained):
    classifier = load_run(trained["network"]).classifier
    assert not classifier.training
    assert {tensor.device.type for tensor in classifier.state_dict().values()} == {"cpu"}


def test_another_schema_is_refused(copy):
    with pytest.raises(CheckpointError, match="has format 2, but this version reads 1") as caught:
        load_run(copy("network", lambda header: header.update(schema=2)))
    assert "Update" in caught.value.fix


def edit(**changes):
    return lambda header: header.update(changes)


@pytest.mark.parametrize(
    "change",
    [
        edit(kind=None, estimator=None),
        edit(model_args={"dim": 24}),
        edit(model_args={"dim": "wide"}),
        edit(model_args={"breadth": 3}),
        edit(model_args=[1]),
        edit(model_args={"rank": 0}),
        edit(bands=5),
        edit(bands=-1),
        edit(num_classes=4),
        edit(settings={"patch_size": 7, "mode": "scene"}),
        edit(settings={"patch_size": 5, "mood": "scene"}),
        edit(settings=None),
        edit(contract={"bands": 2, "used": [7], "wavelengths": None, "unit": "dn"}),
        edit(name="lola_specvit_unknown"),
        edit(name="vit_test"),
        edit(methods=[{"name": "lora", "settings": {}}], name="vit_test"),
        edit(methods=[{"name": "svm", "settings": {}}]),
        edit(methods=[{"name": "lora", "settings": {"ranks": 8}}]),
        edit(methods=[{"name": "lora", "settings": {}}] * 4),
        edit(methods="lora"),
        lambda header: header.pop("class_names"),
        lambda header: header.pop("settings"),
    ],
)
def test_a_damaged_description_is_refused(copy, change):
    with pytest.raises(VitreousError) as caught:
        load_run(copy("network", change))
    assert caught.value.problem
    assert caught.value.fix


def test_a_description_that_is_no_mapping_is_refused(copy):
    folder = copy("network")
    for header in ([], 3, "x"):
        save_tensors(folder / "model.safetensors", {"a": torch.zeros(1)}, header)
        with pytest.raises(CheckpointError, match="damaged"):
            load_run(folder)


@pytest.mark.parametrize(
    "claim",
    [
        {"dim": 100_000},
        {"dim": 512, "heads": [1, 1], "depths": [400, 400]},
        {"depths": [10**9, 1]},
        {"depths": [10**400, 1]},
        {"dim": 1e300},
        {"stem_channels": [10**6, 10**6]},
    ],
)
def test_lies_about_sizes_cost_neither_memory_nor_time(copy, claim):
    folder = copy("network", edit(model_args=claim))
    tracemalloc.start()
    started = time.perf_counter()
    with pytest.raises(CheckpointError):
        load_run(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.perf_counter() - started < 10
    assert peak < 100 * 2**20


def test_weights_that_do_not_fit_are_refused_by_name(copy, trained):
    tensors, _ = load_tensors(trained["network"] / "model.safetensors")
    position = tensors.pop("net.pos_embed")
    folder = copy("network", tensors=tensors)
    with pytest.raises(CheckpointError, match=r"1 missing \(net\.pos_embed\)"):
        load_run(folder)
    _, header = load_tensors(folder / "model.safetensors")
    for wrong, complaint in (
        (position[:, 1:], "different shape"),
        (position.double(), "different type"),
    ):
        tensors["net.pos_embed"] = wrong
        save_tensors(folder / "model.safetensors", tensors, header)
        with pytest.raises(CheckpointError, match=rf"1 with a {complaint} \(net\.pos_embed"):
            load_run(folder)


def test_folders_without_a_finished_run(tmp_path):
    with pytest.raises(CheckpointError, match=r"run folder .* does not exist"):
        load_run(tmp_path / "none")
    with pytest.raises(CheckpointError, match=r"model\.safetensors does not exist"):
        load_run(tmp_path)
    (tmp_path / "state.safetensors").touch()
    with pytest.raises(CheckpointError, match="has not finished") as caught:
        load_run(tmp_path)
    assert "--resume" in caught.value.fix


def test_no_run_overwrites_another(tmp_path):
    names = []
    (tmp_path / "a-2").mkdir()  # an empty folder is no run
    (tmp_path / "a-3").touch()
    for number in range(4):
        made = tmp_path / "made"
        made.mkdir()
        (made / "config.json").write_text(str(number))
        names.append(publish(made, tmp_path / "a").name)
    assert names == ["a", "a-2", "a-4", "a-5"]
    assert [(tmp_path / name / "config.json").read_text() for name in names] == list("0123")


def test_the_header_is_plain_json(trained):
    _, header = load_tensors(trained["network"] / "model.safetensors")
    assert json.loads(json.dumps(header)) == header
    assert header["schema"] == 1
    assert header["settings"]["patch_size"] == 5


def test_saving_keeps_what_the_classifier_computes(tmp_path):
    from vitreous.checkpoints.classifiers import save_classifier

    classifier = tiny_classifier(tiny_scene(), mode="patch", patch_norm=True, padding="zero")
    save_classifier(
        tmp_path / "model.safetensors",
        classifier,
        name="lola_specvit_test",
        model_args={},
        class_names=["a", "b", "c"],
        class_colors=["#000000"] * 3,
    )
    back = load_run(tmp_path).classifier
    assert back.settings() == classifier.settings()
    assert back.contract == classifier.contract
    window = tiny_scene().values[:, :9, :10]
    np.testing.assert_array_equal(back.classify(window), classifier.classify(window))
