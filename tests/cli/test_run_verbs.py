"""The verbs that train, measure and map, with a stand-in for the part that takes long."""

import json
import shlex
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
from typer.testing import CliRunner

import vitreous.tasks
from vitreous.cli.demo import DEMO
from vitreous.cli.main import app
from vitreous.errors import ModelError
from vitreous.recipe import make_recipe

METRICS = {
    "split": {
        "method": "fixed", "leakage": 0.5, "patch_size": 15, "optimistic": True,
        "counts": {"train": 1, "val": 2, "test": 3},
    },
    "systems": [
        {
            "name": "svm", "train_seconds": 1.5, "parameters": None, "pixels_per_second": 10.0,
            "test": {f"{key}{end}": value for key in ("oa", "aa", "kappa")
                     for end, value in (("", 0.5), ("_ci", [0.4, 0.6]))},
        }
    ],
}  # fmt: skip


class Brightest:
    """A classifier whose class is the brightest band."""

    margin = 0
    num_classes = 3
    padding = "reflect"

    @property
    def contract(self):
        return self

    def select(self, scene):
        if scene.sizes["band"] != 3:
            raise ModelError("The model takes 3 bands.", "Give it such a scene.")
        return np.arange(3)

    def classify(self, window):
        return (window == window.max(axis=0)).astype(np.float32)


def _stand_in(monkeypatch, name, **members):
    module = SimpleNamespace(**members)
    monkeypatch.setattr(vitreous.tasks, name, module, raising=False)
    monkeypatch.setitem(sys.modules, f"vitreous.tasks.{name}", module)


def _run(*words):
    return CliRunner(env={"COLUMNS": "160", "NO_COLOR": "1"}).invoke(app, [*map(str, words)])


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    return tmp_path / "run"


@pytest.fixture
def trained(monkeypatch):
    run = SimpleNamespace(
        classifier=Brightest(),
        class_names=["red", "green", "blue"],
        class_colors=["#ff0000", "#00ff00", "#0000ff"],
        class_codes=[1, 2, 3],
        postprocess=None,
    )
    monkeypatch.setattr("vitreous.tasks.export.load_for", lambda path, runtime, **how: run)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_predict_writes_the_map(trained, folder, tmp_path):
    values = np.random.default_rng(0).integers(0, 200, (3, 11, 17), dtype=np.int16)
    np.save(tmp_path / "scene.npy", values)
    out = tmp_path / "out.tif"
    probabilities = tmp_path / "p.tif"
    hints = ("--hints", "axis_order=byx")
    done = _run(
        "predict", folder, tmp_path / "scene.npy", "-o", out, "--probabilities", probabilities,
        "--window", 5, *hints,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "187 pixels" in done.output
    with rasterio.open(out) as written:
        truth = values == values.max(axis=0)
        chosen = np.take_along_axis(truth, written.read(1)[None].astype(int) - 1, axis=0)
        assert chosen.all()
    with rasterio.open(probabilities) as written:
        assert written.count == 3


def test_predict_of_a_scene_with_other_bands_leaves_nothing(trained, folder, tmp_path):
    np.save(tmp_path / "scene.npy", np.zeros((4, 20, 30), np.int16))
    out = tmp_path / "out.tif"
    done = _run("predict", folder, tmp_path / "scene.npy", "-o", out, "--hints", "axis_order=byx")
    assert done.exit_code == 2
    assert "takes 3 bands" in done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "scene.npy"]


def test_evaluate_prints_a_table_or_json(monkeypatch, folder):
    _stand_in(monkeypatch, "classify", evaluate=lambda run: METRICS)
    text = _run("evaluate", folder).output
    assert "40.0-60.0" in text
    assert "optimistic" in text
    assert json.loads(_run("evaluate", folder, "--json").output) == METRICS


def test_demo_is_the_main_job_on_the_fixed_split(monkeypatch, tmp_path):
    asked = []

    def train(recipe, *, resume, command):
        asked.append(recipe)
        run = tmp_path / "runs" / "classify" / "demo"
        run.mkdir(parents=True)
        (run / "metrics.json").write_text(json.dumps(METRICS))
        (run / "report.html").touch()
        return run

    _stand_in(monkeypatch, "classify", train=train)
    done = _run("demo", "--runs", tmp_path / "runs")
    assert done.exit_code == 0, done.output
    assert asked == [make_recipe({**DEMO, "runs": str(tmp_path / "runs")})]
    assert (asked[0].scene, asked[0].split) == ("indian_pines", "fixed")
    assert (tmp_path / "runs/classify/demo/report.html").as_uri() in done.output


def test_ctrl_c_keeps_the_run_and_says_how_to_go_on(tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "scene.npy", rng.integers(0, 999, (24, 26, 5), dtype=np.int16))
    np.save(tmp_path / "labels.npy", rng.integers(1, 3, (24, 26), dtype=np.uint8))
    words = shlex.split(
        "train --scene scene.npy --labels labels.npy --hints axis_order=yxb --split random --name long "
        "--model lola_specvit_test --patch-size 5 --components 3 --epochs 100000"
    )
    started = subprocess.Popen(
        [sys.executable, "-m", "vitreous", *words],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        # Who runs the tests in the background has told all of them to ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    state = tmp_path / "runs/classify/long/state.safetensors"
    limit = time.monotonic() + 120
    while not state.exists() and started.poll() is None and time.monotonic() < limit:
        time.sleep(0.05)
    started.send_signal(signal.SIGINT)
    said = started.communicate(timeout=60)[1]
    assert started.returncode == 130, said
    assert "Traceback" not in said
    assert "vitreous train --resume runs/classify/long" in said
    assert state.is_file()
