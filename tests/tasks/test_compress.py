"""Compressing a run: what comes of it, what is left alone, what is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

import vitreous
from tiny_scene import tiny_labels, tiny_recipe, write_scene
from vitreous.checkpoints.tensors import load_tensors, save_tensors
from vitreous.data.blocks import TRAIN
from vitreous.errors import ConfigError, ModelError, VitreousError
from vitreous.inference.pixels import classify_pixels
from vitreous.layers.quantize import quantized_layers
from vitreous.recipe import RestoreRecipe, make_recipe
from vitreous.tasks import restore
from vitreous.tasks.classify import evaluate, train
from vitreous.tasks.compress import compress, sensitivity, signed
from vitreous.tasks.compress_scene import calibration_batches
from vitreous.tasks.labelled import open_data
from vitreous.tasks.runs import load_run

VIT = {"model": "vit_test", "patch_size": 9, "mode": "patch"}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return write_scene(tmp_path_factory.mktemp("scene"))


@pytest.fixture(scope="module")
def base(tmp_path_factory, places):
    settings = {**VIT, **places, "epochs": 12, "map": True, "report": True}
    return train(tiny_recipe(tmp_path_factory.mktemp("base"), **settings), show=False)


def folders(base):
    return sorted(path.name for path in base.parent.iterdir())


def content(path):
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def quantized(base):
    before = content(base)
    done = compress(base, "ptq_minmax", max_drop=100, show=False)
    assert content(base) == before, "the source run was changed"
    return done


def test_the_new_run_is_a_run_like_any_other(base, quantized):
    run = load_run(quantized.path)
    assert [entry["name"] for entry in run.methods] == ["ptq_minmax"]
    assert run.split.hash == load_run(base).split.hash
    own = json.loads((quantized.path / "metrics.json").read_text())["systems"]
    assert [row["name"] for row in own] == ["vit_test + ptq_minmax", "vit_test"]
    assert evaluate(quantized.path)["systems"][0]["test"] == own[0]["test"]
    assert own[1]["test"] == json.loads((base / "metrics.json").read_text())["systems"][0]["test"]
    assert {"map.tif", "map.png", "report.html"} <= set(content(quantized.path))


def test_the_table_says_what_the_run_holds(base, quantized):
    rows = {row["figure"]: row for row in quantized.rows}
    own = json.loads((quantized.path / "metrics.json").read_text())["systems"]
    assert rows["OA, %"]["after"] == pytest.approx(100 * own[0]["test"]["oa"])
    assert rows["OA, %"]["before"] == pytest.approx(100 * own[1]["test"]["oa"])
    size = (quantized.path / "model.safetensors").stat().st_size / 2**20
    assert rows["model file, MiB"]["after"] == pytest.approx(size)
    assert rows["pixels/s"]["after"] > 0
    saved = json.loads((quantized.path / "compress.json").read_text())
    assert saved["rows"] == quantized.rows
    assert saved["settings"]["bits"] == [8, 8]
    assert any("simulates" in note for note in saved["notes"])


def test_the_report_shows_it(quantized):
    page = (quantized.path / "report.html").read_text()
    assert "Compression" in page
    assert "Before and after ptq_minmax" in page
    assert "blocks.1.mlp.fc2" in page


def test_calibration_is_what_training_sees(base):
    run = load_run(base)
    data = open_data(run.recipe)
    ((batch, classes),) = calibration_batches(run.classifier, data, run.splits, 20, seed=0)
    assert batch.shape == (20, run.classifier.preprocess.channels, 9, 9)
    # The middle of each image is the preprocessed spectrum of a training pixel.
    bands = run.classifier.contract.select(data[0].scene)
    spectra = torch.from_numpy(data[0].scene.values[bands].astype(np.float32))[None]
    channels = run.classifier.preprocess(spectra)[0].flatten(1).T
    training = channels[torch.from_numpy(run.split.pixels(1))]
    distance = torch.cdist(batch[:, :, 4, 4], training).min(1).values
    assert distance.max() < 1e-3
    every = torch.cdist(batch[:, :, 4, 4], channels).argmin(1)
    assert torch.equal(classes, torch.from_numpy(data[0].classes_at(every.numpy()) - 1))


def test_too_few_bits_lose_accuracy(base):
    broken = compress(base, "ptq_minmax", {"bits": [2, 2]}, max_drop=100, show=False)
    rows = {row["figure"]: row for row in broken.rows}
    assert rows["OA, %"]["before"] - rows["OA, %"]["after"] > 10
    assert broken.backed_off == []


@pytest.mark.parametrize("spoilt", [["head"], ["head", "patch_embed"]])
def test_the_gate_backs_off_from_the_layers_that_do_not_bear_it(base, monkeypatch, spoilt):
    """Where quantization ruins one layer, or two, these stay in floating point, and no others do."""

    def apply(*arguments, **settings):
        changed = vitreous.apply(*arguments, **settings)
        for name, layer in quantized_layers(changed.model):
            if name in spoilt:
                layer.input_quantizer.scale.mul_(1e6)  # every input rounds to zero
        return changed

    monkeypatch.setattr("vitreous.tasks.compress.apply", apply)
    mended = compress(base, "ptq_minmax", max_drop=3, show=False)
    assert sorted(mended.backed_off) == spoilt
    saved = json.loads((mended.path / "compress.json").read_text())
    assert saved["backed_off"] == mended.backed_off
    left = {name for name, _ in quantized_layers(load_run(mended.path).classifier.net)}
    healthy = compress(base, "ptq_minmax", max_drop=100, show=False)
    assert left | set(spoilt) == {row["layer"] for row in healthy.layers}
    rows = {row["figure"]: row for row in mended.rows}
    assert rows["OA, %"]["after"] > rows["OA, %"]["before"] - 10


def test_sensitivity_finds_the_layer_that_matters(base, quantized):
    run = load_run(quantized.path)
    data = open_data(run.recipe)
    batches = [b.images for b in calibration_batches(run.classifier, data, run.splits, 16, seed=0)]
    with torch.no_grad():
        before = [run.classifier.net(batch) for batch in batches]
        layer = run.classifier.net.get_submodule("blocks.0.mlp.fc1")
        layer.input_quantizer.scale.mul_(50)
        first, *_ = sensitivity(run.classifier, batches)
        layer.input_quantizer.scale.div_(50)
        assert first == "blocks.0.mlp.fc1"
        for batch, logits in zip(batches, before, strict=True):  # all quantizers are on again
            torch.testing.assert_close(run.classifier.net(batch), logits)


def test_the_gate_says_on_which_pixels_it_measures(base, capsys):
    compress(base, "ptq_minmax", max_drop=100)
    count = len(load_run(base).split.pixels(TRAIN))  # fewer than a hundred are for validation
    assert f"OA on {count} training pixels: " in capsys.readouterr().err


def test_a_loss_beyond_the_gate_writes_nothing(base):
    known = folders(base)
    with pytest.raises(VitreousError, match="half of the layers") as caught:
        compress(base, "ptq_minmax", {"bits": [2, 2]}, max_drop=0.5, show=False)
    assert "more bits" in caught.value.fix
    assert folders(base) == known


@pytest.mark.parametrize(
    ("method", "settings", "kind", "words"),
    [
        ("lora", {}, ConfigError, "adapts a model during training"),
        ("ptq_minmax", {"bit": [8, 8]}, ModelError, "no setting 'bit'"),
        ("ptq_minmax", {"bits": [1, 8]}, ModelError, "1 bits"),
        ("ptq_minmax", {"bits": [33, 8]}, ModelError, "33 bits"),
        ("ptq", {}, ModelError, "several variants"),
        ("vit_test", {}, ModelError, "not a method"),
        ("shrink", {}, ModelError, "shrink"),
    ],
)
def test_what_cannot_be_done_is_refused(base, method, settings, kind, words):
    known = folders(base)
    with pytest.raises(kind, match=words) as caught:
        compress(base, method, settings, show=False)
    assert caught.value.fix
    assert folders(base) == known


def test_a_second_time_is_refused(quantized):
    with pytest.raises(ModelError, match="already"):
        compress(quantized.path, "ptq_percentile", show=False)


def test_an_estimator_is_refused(tmp_path, places):
    settings = {**places, "model": "svm"}
    path = train(tiny_recipe(tmp_path, **settings), show=False)
    with pytest.raises(ModelError, match="not a network"):
        compress(path, "ptq_minmax", show=False)


def test_dense_and_scene_runs_compress_too(tmp_path, places):
    dense = {"mode": "dense", "model": "convnext_test", "tile_size": 16, "patch_size": 3}
    scene = {"mode": "scene", "model": "lola_specvit_test", "patch_size": 5}
    for settings in (dense, scene):
        recipe = tiny_recipe(tmp_path, **settings, **places, epochs=6)
        done = compress(train(recipe, show=False), "ptq_minmax", max_drop=100, show=False)
        rows = {row["figure"]: row for row in done.rows}
        assert rows["OA, %"]["after"] > rows["OA, %"]["before"] - 5


def test_the_command(base, cli):
    done = cli(
        "compress", base, "--method", "ptq_minmax", "--set", "bits=[8, 8]", "--max-drop", "50"
    )
    assert done.returncode == 0, done.stderr
    assert "OA, %" in done.stdout
    assert "after / before" in done.stdout
    refused = cli("compress", base, "--method", "ptq_minmax", "--set", "bits=[8, 99]")
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr


# -- several methods, with training between them ----------------------------------------------------------


@pytest.fixture(scope="module")
def wide(tmp_path_factory, places):
    """A run with wide feed-forwards, which half of their units can do without."""
    settings = {**VIT, **places, "model_args": {"mlp_ratio": 8.0}, "epochs": 12}
    return train(tiny_recipe(tmp_path_factory.mktemp("wide"), **settings), show=False)


def test_prune_train_and_quantize_in_one_go(wide):
    before = content(wide)
    done = compress(
        wide,
        ["magnitude", "ptq_minmax"],
        {"keep": 0.25, "bits": [6, 8]},
        tune_epochs=2,
        max_drop=100,
        show=False,
    )
    assert content(wide) == before
    run = load_run(done.path)
    assert [entry["name"] for entry in run.methods] == ["magnitude", "ptq_minmax"]
    assert run.methods[1]["settings"]["bits"] == [6, 8]
    assert done.path.name == f"{wide.name}-magnitude-ptq_minmax"
    old = load_run(wide).classifier.net.blocks[0].mlp.fc1.out_features
    assert run.classifier.net.blocks[0].mlp.fc1.out_features == old // 4
    rows = {row["figure"]: row for row in done.rows}
    assert rows["model file, MiB"]["after"] < rows["model file, MiB"]["before"]
    assert (
        rows["multiply-adds per image, M"]["after"] < rows["multiply-adds per image, M"]["before"]
    )
    saved = json.loads((done.path / "compress.json").read_text())
    assert saved["settings"].keys() == {"magnitude", "ptq_minmax"}
    assert any("Trained for 2 epochs" in note for note in saved["notes"])
    assert {row["layer"] for row in done.layers} >= {"blocks.0.mlp", "blocks.0.mlp.fc1"}
    own = json.loads((done.path / "metrics.json").read_text())["systems"][0]
    assert evaluate(done.path)["systems"][0]["test"] == own["test"]


def test_training_regains_what_pruning_lost(wide):
    """The same pruning, with and without further training, judged on training pixels."""
    found = {}
    for epochs in (0, 6):
        done = compress(
            wide,
            "magnitude",
            {"keep": 0.05},
            tune_epochs=epochs,
            max_drop=100,
            tune_rate=0.5,
            show=False,
        )
        run = load_run(done.path)
        data = open_data(run.recipe)
        pixels = run.split.pixels(TRAIN)
        found[epochs] = (
            classify_pixels(run.classifier, data[0].scene, pixels) == data[0].classes_at(pixels)
        ).mean()
    assert found[6] > found[0]


def test_a_pruned_run_can_be_trained_from(wide, tmp_path, places):
    pruned = compress(wide, "magnitude", {"keep": 0.5}, max_drop=100, show=False).path
    settings = {**VIT, **places, "model_args": {"mlp_ratio": 8.0}, "init": str(pruned)}
    again = train(tiny_recipe(tmp_path, **settings), show=False)
    assert [entry["name"] for entry in load_run(again).methods] == ["magnitude"]


@pytest.mark.parametrize(
    ("methods", "settings", "more", "words"),
    [
        (["ptq_minmax", "magnitude"], {}, {}, "cannot be applied after"),
        (["magnitude", "magnitude"], {"magnitude.keep": 0.9}, {}, "already has"),
        (["repq_vit", "magnitude"], {"kepe": 1}, {}, "no setting 'kepe'"),
        (["evit", "random_drop"], {"keep_rate": 0.5}, {}, "Several methods have a setting"),
        ("ptq_minmax", {}, {"tune_epochs": 2}, "not trained further"),
        ("deit_hard", {}, {}, "during training"),
    ],
)
def test_methods_that_do_not_fit_together_are_refused(wide, methods, settings, more, words):
    known = folders(wide)
    with pytest.raises(VitreousError, match=words) as caught:
        compress(wide, methods, settings, max_drop=100, show=False, **more)
    assert caught.value.fix
    assert folders(wide) == known


# -- runs of other tasks ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def restorer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("restorer")
    labels = np.kron(tiny_labels(), np.ones((2, 2), dtype=np.uint8))
    settings = {
        "scene": write_scene(folder / "scene", labels)["scene"],
        "runs": str(folder / "runs"),
        "name": "run",
        "model": "hsdt_test",
        "steps": 60,
        "crop": 8,
        "batch_size": 4,
        "val_fraction": 0.3,
        "test_fraction": 0.3,
        "degradation": "gaussian",
        "degradation_args": {"sigma": 30},
        "accelerator": "cpu",
        "baselines": [],
    }
    return restore.train(make_recipe(settings, RestoreRecipe), show=False)


def test_the_gate_of_a_restorer_looks_at_its_psnr(restorer, capsys):
    before = content(restorer)
    done = compress(restorer, "ptq_minmax", max_drop=20)
    assert content(restorer) == before
    said = capsys.readouterr().err
    assert "PSNR on" in said and "validation pixels" in said and "dB" in said
    rows = {row["figure"]: row for row in done.rows}
    own = json.loads((done.path / "metrics.json").read_text())["systems"]
    assert [row["name"] for row in own] == ["hsdt_test + ptq_minmax", "hsdt_test", "degraded"]
    assert rows["PSNR, dB"]["after"] == own[0]["test"]["psnr"] != own[1]["test"]["psnr"]
    run = restore.load_run(done.path)
    assert [entry["name"] for entry in run.restorer.net.methods] == ["ptq_minmax"]
    again = restore.evaluate(done.path)["systems"][0]["test"]
    assert again["psnr"] == pytest.approx(own[0]["test"]["psnr"], abs=1e-3)
    assert {"restored.tif", "report.html", "compress.json"} <= set(content(done.path))
    assert "Before and after ptq_minmax" in (done.path / "report.html").read_text()
    with pytest.raises(VitreousError, match=r"dB of PSNR|half of the layers"):
        compress(restorer, "ptq_minmax", {"bits": [2, 2]}, max_drop=0.01, show=False)


def test_an_old_restorers_file_has_no_methods(restorer, tmp_path):
    tensors, header = load_tensors(restorer / "model.safetensors")
    assert header.pop("methods") == []
    old = tmp_path / "old"
    shutil.copytree(restorer, old)
    save_tensors(old / "model.safetensors", tensors, header)
    assert restore.load_run(old).restorer.net.methods == []


def test_runs_that_cannot_be_compressed_are_refused(tmp_path, restorer):
    other = tmp_path / "pretrained"
    shutil.copytree(restorer, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "task": "pretrain"}))
    with pytest.raises(ConfigError, match="cannot be compressed") as caught:
        compress(other, "ptq_minmax", show=False)
    assert "classify" in caught.value.fix and "restore" in caught.value.fix


def test_the_command_takes_several_methods(wide, cli):
    done = cli(
        *("compress", wide, "--method", "magnitude", "--method", "ptq_minmax"),
        *("--set", "magnitude.keep=0.5", "--tune-epochs", "1", "--max-drop", "100"),
    )
    assert done.returncode == 0, done.stderr
    assert "training for 1 epochs" in done.stderr


@pytest.mark.parametrize(
    ("change", "text"),
    [(0.0, "+0.00"), (-0.0, "+0.00"), (-0.004, "+0.00"), (0.004, "+0.00"), (-0.006, "-0.01")],
)
def test_no_change_has_no_negative_sign(change, text):
    assert signed(change) == text
