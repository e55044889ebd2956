"""The commands of docs/recognition.md on tiny images, and what the verb refuses."""

import csv
import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tiny_images import folder_of_pictures
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
    assert "no interrupted run" in call("recognize", "--resume", code=2)


@pytest.mark.parametrize("verb", ["export", "compress"])
def test_verbs_that_do_not_take_such_runs_say_so(place, verb):
    folder_of_pictures(place / "p")
    call("recognize", "--images", "p", *SHORT, "--no-report", "--name", "r")
    words = ["--method", "ptq_minmax"] if verb == "compress" else ["-o", "out"]
    text = call(verb, "runs/recognize/r", *words, code=2)
    assert "recognize" in text


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
