"""Exporting, mapping with exports, and comparing them: on a run of a second's training."""

import csv
import json
import shutil

import numpy as np
import pytest
import rasterio
from PIL import Image
from typer.testing import CliRunner

import vitreous.tasks.export
from smooth_scene import pretrain_settings, restore_settings, write_smooth_scene
from tiny_scene import tiny_recipe, write_scene
from vitreous.cli.main import app
from vitreous.errors import ModelError
from vitreous.recipe import PretrainRecipe, RestoreRecipe, make_recipe
from vitreous.tasks import classify, pretrain, restore
from vitreous.tasks.bench import pareto

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def run_cli(*words):
    return CliRunner(env={"COLUMNS": "160", "NO_COLOR": "1"}).invoke(app, [*map(str, words)])


def class_map(path):
    with rasterio.open(path) as dataset:
        return dataset.read(1)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a scene and two runs on it: a network and a random forest."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("place")
    settings = write_scene(folder)
    classify.train(tiny_recipe(folder, **settings, mode="patch"), show=False)
    classify.train(
        tiny_recipe(folder, **settings, model="random_forest", name="forest"), show=False
    )
    return folder


@pytest.fixture
def run(place, tmp_path):
    return shutil.copytree(place / "runs/classify/run", tmp_path / "run")


def refuse(*words):
    raise ModelError("exported again")


def test_export_map_and_compare(place, run, tmp_path, monkeypatch):
    scene = place / "scene.npy"
    assert run_cli("predict", run, scene, "-o", tmp_path / "torch.tif").exit_code == 0
    done = run_cli("predict", run, scene, "-o", tmp_path / "a.tif", "--runtime", "onnxruntime")
    assert done.exit_code == 0, done.output
    np.testing.assert_array_equal(class_map(tmp_path / "a.tif"), class_map(tmp_path / "torch.tif"))

    # What was exported for it is used again, until the model changes.
    exported = run / "export-onnx"
    stamp = (exported / "export.json").stat().st_mtime_ns
    words = ("predict", run, scene, "-o", tmp_path / "b.tif", "--runtime", "onnxruntime")
    assert run_cli(*words).exit_code == 0
    assert (exported / "export.json").stat().st_mtime_ns == stamp
    said = json.loads((exported / "export.json").read_text())
    (exported / "export.json").write_text(json.dumps({**said, "source": "another model"}))
    monkeypatch.setattr(vitreous.tasks.export, "export_run", refuse)
    done = run_cli(*words)
    assert "exported again" in done.output
    (exported / "export.json").write_text(json.dumps(said))

    table, picture = tmp_path / "t.csv", tmp_path / "p.png"
    measured = ("--repeats", 3, "--threads", 1, "--csv", table, "--plot", picture)
    done = run_cli("bench", "runs", run, exported, *measured)
    assert done.exit_code == 0, done.output
    rows = {row["runtime"]: row for row in csv.DictReader(table.open())}
    assert set(rows) == {"torch", "onnxruntime"}
    metrics = json.loads((run / "metrics.json").read_text())
    assert float(rows["torch"]["recorded_oa"]) == metrics["systems"][0]["test"]["oa"]
    assert rows["torch"]["oa"] == rows["onnxruntime"]["oa"]  # all test pixels: there are few
    assert float(rows["torch"]["oa"]) == pytest.approx(float(rows["torch"]["recorded_oa"]))
    size = sum(path.stat().st_size for path in exported.iterdir()) / 2**20
    assert float(rows["onnxruntime"]["size_mib"]) == pytest.approx(size)
    assert Image.open(picture).size[0] > 500

    # The export is enough by itself.
    alone = shutil.move(exported, tmp_path / "alone")
    shutil.rmtree(run)
    done = run_cli("predict", alone, scene, "-o", tmp_path / "c.tif")
    assert done.exit_code == 0, done.output
    np.testing.assert_array_equal(class_map(tmp_path / "c.tif"), class_map(tmp_path / "torch.tif"))
    done = run_cli("bench", "runs", alone)
    assert done.exit_code == 2
    assert "test pixels" in done.output


def restored(path):
    with rasterio.open(path) as dataset:
        return dataset.read()


def test_a_restorer_is_exported_and_restores(tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    scene = write_smooth_scene(tmp_path)
    settings = restore_settings(tmp_path, scene=scene, steps=2, model="essaformer_test", crop=8)
    run = restore.train(make_recipe(settings, RestoreRecipe), show=False)
    done = run_cli("export", run)
    assert done.exit_code == 0, done.output
    assert "cube.onnx" in done.output and "values differ by" in done.output
    assert run_cli("predict", run, scene, "-o", tmp_path / "torch.tif").exit_code == 0
    for number, words in enumerate([(run / "export-onnx",), (run, "--runtime", "onnxruntime")]):
        out = tmp_path / f"{number}.tif"
        done = run_cli("predict", words[0], scene, "-o", out, *words[1:])
        assert done.exit_code == 0, done.output
        np.testing.assert_allclose(restored(out), restored(tmp_path / "torch.tif"), atol=1e-4)
    for words, told in (
        (("export", run, "--single"), "--single does not apply"),
        (("predict", run / "export-onnx", scene, "--window", 9), "--window does not apply"),
        (("predict", run, scene, "--runtime", "tflite"), "Unknown runtime: tflite"),
        (("bench", "runs", run / "export-onnx"), "a 'restore' run or the export of one"),
    ):
        done = run_cli(*words)
        assert done.exit_code == 2, done.output
        assert told in " ".join(done.output.split())
    alone = shutil.move(run / "export-onnx", tmp_path / "alone")
    shutil.rmtree(run)
    assert run_cli("predict", alone, scene, "-o", tmp_path / "c.tif").exit_code == 0
    np.testing.assert_array_equal(restored(tmp_path / "c.tif"), restored(tmp_path / "0.tif"))


def test_a_pre_trained_run_is_not_exported(tmp_path):
    scene = write_smooth_scene(tmp_path)
    settings = pretrain_settings(tmp_path, scene=scene, steps=2)
    run = pretrain.train(make_recipe(settings, PretrainRecipe), show=False)
    done = run_cli("export", run)
    assert done.exit_code == 2
    assert "is a 'pretrain' run, which cannot be exported" in " ".join(done.output.split())


def test_export_says_what_it_wrote(place, run, tmp_path):
    done = run_cli("export", run, "--format", "torch", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "patches.pt2" in done.output
    assert "100.00% identical classes" in done.output
    refused = run_cli("predict", tmp_path / "out", place / "scene.npy", "-o", tmp_path / "m.tif")
    assert refused.exit_code == 2
    assert "--trust" in refused.output
    words = ("predict", tmp_path / "out", place / "scene.npy", "-o", tmp_path / "m.tif")
    assert run_cli(*words, "--trust").exit_code == 0


def test_what_makes_no_sense_is_refused(place, run, tmp_path):
    scene = place / "scene.npy"
    forest = place / "runs/classify/forest"
    for words, message in (
        (("export", forest), "'random_forest' is not a network"),
        (("export", run, "--format", "tflite"), "Unknown format: tflite"),
        (("export", tmp_path), "is not a run folder"),
        (("export", run, "--out", place), "is not an export"),
        (("predict", run, scene, "--runtime", "tensorrt"), "Unknown runtime: tensorrt"),
        (("predict", forest, scene, "--runtime", "onnxruntime"), "is not a network"),
        (("bench", "runs", run, "--runtime", "torch,tensorrt"), "Unknown runtime: tensorrt"),
        (("bench", "runs", run, "--plot", "x.doc"), ".png"),
    ):
        done = run_cli(*words)
        assert done.exit_code == 2, done.output
        assert message in done.output
    assert sorted(p.name for p in run.iterdir() if "export" in p.name) == []


def test_the_front_is_what_nothing_else_beats():
    points = [(1.0, 90.0), (2.0, 95.0), (2.0, 94.0), (3.0, 95.0), (0.5, 80.0), (2.0, 95.0)]
    assert pareto(points) == [True, True, False, False, True, True]
