"""The commands of docs/recognition.md on tiny images, and what the verb refuses."""

import csv
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tiny_images import folder_of_pictures, folder_of_rasters
from vitreous.cli.main import app

RUNNER = CliRunner(env={"COLUMNS": "120", "NO_COLOR": "1"})
PAGE = Path(__file__).parents[2] / "docs" / "recognition.md"
SHORT = ["--epochs", "1", "--batch-size", "16", "--model", "convnext_test"]


def commands(number):
    """Return the commands of a block of the page, as lists of words."""
    block = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[number]
    return [shlex.split(line) for line in block.replace("\\\n", " ").strip().splitlines()]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*words, code=0):
    done = RUNNER.invoke(app, words)
    assert done.exit_code == code, done.output
    return done.output


def test_the_first_commands_of_the_page_run(place):
    folder_of_pictures(place / "eurosat", {"train": 8, "test": 3})
    folder_of_pictures(place / "new_images", count=2)
    train, evaluate, predict = commands(0)
    assert train[0] == evaluate[0] == predict[0] == "vitreous"
    text = call(*train[1:], *SHORT)
    assert "top-1" in text and "runs/recognize/first" in text and "vitreous predict" in text
    assert "top-1" in call(*evaluate[1:])
    metrics = json.loads(call(*evaluate[1:], "--json"))
    assert metrics["systems"][0]["test"]["images"] == 6
    assert "4 images in" in call(*predict[1:])
    with (place / "classes.csv").open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 4
    assert {path.name for path in (place / "runs/recognize/first").iterdir()} == {
        *("config.json", "model.safetensors", "metrics.json", "log.csv", "predictions.csv"),
        "report.html",
    }


def test_the_table_of_the_page_is_read(place):
    text = re.search(
        r"```\n(image,labels,role\n.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL
    )[1]
    folder_of_pictures(place / "chips")
    lines = text.strip().splitlines()[:1]
    for k in range(12):
        lines += [f"cat/{k}.png,forest;water,{'test' if k > 8 else 'train'}"]
        lines += [f"dog/{k}.png,,{'test' if k > 8 else 'train'}"]
    (place / "chips" / "labels.csv").write_text("\n".join(lines))
    train = [word for word in commands(1)[0][1:] if "sensor" not in word and word != "--hints"]
    assert "mAP" in call(*train, *SHORT, "--no-report")


def test_an_interrupted_run_is_named_and_options_are_the_recipe(place):
    folder_of_pictures(place / "p")
    words = ["recognize", "--images", "p", "--image-size", "8x12", "--cutmix", "1"]
    text = call(*words, "--dry-run")
    assert "image_size: 8x12" in text and "cutmix: 1.0" in text
    for size in ("8y12", "8x", "x8", "8 x 12"):
        text = " ".join(call(*words[:3], "--image-size", size, code=2).split())
        assert "image_size" in text and "48x64 (height x width)" in text
    assert "No interrupted run" in call("recognize", "--resume", code=2)


def test_a_run_is_compressed(place):
    folder_of_pictures(place / "p")
    call("recognize", "--images", "p", *SHORT, "--no-report", "--name", "r")
    text = call("compress", "runs/recognize/r", "--method", "magnitude", "--max-drop", "100")
    assert "images/s" in text and "top-1" in text and "runs/recognize/r-magnitude" in text
    call("evaluate", "runs/recognize/r-magnitude")


def classes_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_is_exported_and_classifies(place):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    folder_of_pictures(place / "p")
    folder_of_pictures(place / "new", count=2)
    call("recognize", "--images", "p", *SHORT, "--no-report", "--name", "r")
    run = place / "runs" / "recognize" / "r"
    text = call("export", str(run))
    assert "image.onnx" in text and "on 24 images" in text and "identical classes" in text
    call("predict", str(run), "new", "-o", "torch.csv")
    expected = classes_of(place / "torch.csv")
    kept = (run / "export-onnx" / "export.json").stat().st_mtime_ns
    ways = [(run / "export-onnx",), (run, "--runtime", "onnxruntime")]
    for number, (path, *words) in enumerate(ways):
        text = call("predict", str(path), "new", "-o", f"{number}.csv", *words)
        assert "4 images in" in text
        found = classes_of(place / f"{number}.csv")
        assert [row["file"] for row in found] == [row["file"] for row in expected]
        for one, other in zip(found, expected, strict=True):
            assert float(one["probability"]) == pytest.approx(float(other["probability"]), abs=2e-4)
    assert (run / "export-onnx" / "export.json").stat().st_mtime_ns == kept  # not written twice
    for words, told in (
        (("export", run, "--single"), "--single does not apply"),
        (("predict", run / "export-onnx", "new", "--window", 9), "--window does not apply"),
        (("predict", run, "new", "--runtime", "tflite"), "Unknown runtime: tflite"),
        (("export", run, "--format", "torch", "-o", place / "p"), "not an export"),
    ):
        assert told in " ".join(call(*map(str, words), code=2).split())
    call("export", str(run), "--format", "torch", "-o", "program")
    assert "--trust" in call("predict", "program", "new", "-o", "t.csv", code=2)
    call("predict", "program", "new", "-o", "t.csv", "--trust")
    shutil.move(run / "export-onnx", place / "alone")
    shutil.rmtree(run)
    call("predict", "alone", "new", "-o", "alone.csv")
    assert (place / "alone.csv").read_text() == (place / "0.csv").read_text()
    assert "trained on 3 bands" in call(
        "predict", "alone", str(folder_of_rasters(place / "chips")), "-o", "n.csv", code=2
    )
    assert not (place / "n.csv").exists()


def test_runs_and_exports_are_compared_by_accuracy_and_speed(place):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    folder_of_pictures(place / "p")
    call("recognize", "--images", "p", *SHORT, "--no-report", "--name", "r")
    run = "runs/recognize/r"
    words = ["--runtime", "torch,onnxruntime", "--repeats", "3", "--threads", "1"]
    text = call(*("bench", "runs", run, *words, "--csv", "b.csv", "--plot", "b.svg"))
    assert "top-1 in percent on 4 test images" in text and "image/s" in text
    recorded = json.loads((place / run / "metrics.json").read_text())["systems"][0]["test"]["top1"]
    rows = {row["runtime"].split()[0]: row for row in classes_of(place / "b.csv")}
    assert set(rows) == {"torch", "onnxruntime"}
    for row in rows.values():
        assert float(row["accuracy"]) == recorded and row["tested"] == "4"
        assert float(row["rate"]) > 0 and float(row["peak_memory_mib"]) > 0
        assert row["precision"] == "float32" and float(row["size_mib"]) > 0
    assert float(rows["torch"]["recorded"]) == recorded and not rows["onnxruntime"]["recorded"]
    assert "images" in (place / "b.svg").read_text()
    (place / "scene").mkdir()
    (place / "scene" / "config.json").write_text('{"task": "classify"}')
    assert "different tasks" in call("bench", "runs", run, "scene", code=2)
    (place / "p" / "cat" / "0.png").unlink()
    assert "changed after it was started" in call("bench", "runs", run, code=2)


def test_other_images_than_those_of_the_run_are_not_exported(place):
    folder_of_pictures(place / "p")
    call("recognize", "--images", "p", *SHORT, "--no-report", "--name", "r")
    (place / "p" / "cat" / "0.png").unlink()
    assert "changed after it was started" in call("export", "runs/recognize/r", code=2)
    assert not (place / "runs/recognize/r/export-onnx").exists()


def test_an_export_opens_images_as_the_training_did(place):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    folder_of_rasters(place / "chips")
    words = ["--hints", "scale=0.0001", "--hints", "unit=reflectance", "--no-report", "--name", "r"]
    call("recognize", "--images", "chips", *SHORT, *words)
    call("export", "runs/recognize/r", "-o", "e")
    call("predict", "runs/recognize/r", "chips", "-o", "a.csv")
    call("predict", "e", "chips", "-o", "b.csv")
    a, b = classes_of(place / "a.csv"), classes_of(place / "b.csv")
    assert [row["class"] for row in a] == [row["class"] for row in b]
    assert "trained on" in call(
        "predict", "e", "chips", "-o", "c.csv", "--hints", "unit=dn", code=2
    )


def test_the_commands_that_compress_and_export_run(place):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    folder_of_pictures(place / "eurosat", {"train": 8, "test": 3})
    folder_of_pictures(place / "new_images", count=2)
    call(*commands(0)[0][1:], *SHORT, "--no-report")
    compress, export, predict = commands(4)
    assert "images/s" in call(*compress[1:], "--max-drop", "100")
    call(*export[1:])
    assert "4 images in" in call(*predict[1:])


@pytest.mark.parametrize("verb", ["evaluate", "predict", "export", "compress"])
def test_a_run_that_does_not_exist_is_called_so(place, verb):
    words = {"predict": ["x"], "export": ["-o", "out"], "compress": ["--method", "ptq_minmax"]}
    text = call(verb, "runs/recognize/gone", *words.get(verb, []), code=2)
    assert "runs/recognize/gone does not exist" in " ".join(text.split())


def test_the_next_command_can_be_copied_whatever_the_name_of_the_run(place):
    folder_of_pictures(place / "p")
    text = call("recognize", "--images", "p", *SHORT, "--no-report", "--name", "my run")
    command = next(line for line in text.splitlines() if "vitreous predict" in line)
    assert shlex.split(command.partition("vitreous ")[2])[:2] == [
        "predict",
        "runs/recognize/my run",
    ]


def test_options_of_scenes_are_refused_for_images_before_anything_is_written(place):
    folder_of_pictures(place / "p")
    call("recognize", "--images", "p", *SHORT, "--no-report", "--name", "r")
    for words in (["--mosaic"], ["--probabilities", "p.tif"], ["--window", "64"]):
        text = call("predict", "runs/recognize/r", "p", "-o", "out.csv", *words, code=2)
        assert words[0] in text and "does not apply" in text
    assert not (place / "out.csv").exists()
