"""What takes minutes: every reproduction once, the demonstration as a user runs it, and the accuracy that is promised."""

import json
import re

import pytest

from vitreous.catalog.reproduce import SCRIPTS, _load
from vitreous.recipe import make_recipe
from vitreous.tasks import classify
from vitreous.tasks.labelled import open_labelled

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
RECORDED = SCRIPTS.parent / "benchmarks" / "results" / "accuracy.json"


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("[a-z]*.py")), ids=lambda path: path.stem)
def test_quick_reproductions_run_and_record_nothing(path, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(path.parent)
    monkeypatch.chdir(tmp_path)
    script, before = _load(path), contents(SCRIPTS / "results")
    script.main(quick=True)
    assert contents(SCRIPTS / "results") == before


def test_the_demonstration_is_what_it_promises(cli, tmp_path):
    done = cli("demo", timeout=3000)
    assert done.returncode == 0, done.stderr
    assert "report.html" in done.stdout
    run = tmp_path / "runs" / "classify" / "demo"
    assert {"model.safetensors", "map.tif", "map.png", "report.html", "metrics.json"} <= {
        path.name for path in run.iterdir()
    }
    assert json.loads((run / "metrics.json").read_text())["systems"][0]["test"]["oa"] > 0.9


@pytest.mark.parametrize("system", ["lola_specvit_tiny", "vit_patch"])
def test_accuracy_is_the_recorded_one(system, tmp_path):
    """One seed lies within the recorded mean and four standard deviations (two points at least)."""
    row = next(
        row
        for row in json.loads(RECORDED.read_text())["rows"]
        if (row["split"], row["system"]) == ("fixed", system)
    )
    mean, deviation = map(float, re.match(r"([\d.]+) ± ([\d.]+)", row["OA %"]).groups())
    recipe = make_recipe({"model": system, "split": "fixed", "val_fraction": 0, "seed": 0})
    data = open_labelled(recipe)
    split = classify.draw_split(recipe, data)
    _, measured = classify.fit_and_score(recipe, data, split, tmp_path)
    assert 100 * measured["test"]["oa"] == pytest.approx(mean, abs=max(2.0, 4 * deviation))
