"""The small verbs: systems, doctor, reproduce, and the tables that train and evaluate print."""

import importlib.metadata
import json

import pytest
from rich.console import Console
from typer.testing import CliRunner

from vitreous.catalog.registry import cards
from vitreous.catalog.reproduce import reproduce
from vitreous.catalog.tasks import TASKS
from vitreous.cli import doctor
from vitreous.cli.main import app
from vitreous.cli.tables import print_metrics, print_run
from vitreous.errors import ModelError, VitreousError

RUNNER = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})


def _run(*words):
    done = RUNNER.invoke(app, words)
    assert done.exit_code == 0, done.output
    return done.output


def test_systems_lists_every_card():
    text = _run("systems")
    listed = json.loads(_run("systems", "--json"))
    assert [one["slug"] for one in listed] == [card.slug for card in cards()]
    for card in cards():
        assert card.slug in text


def test_systems_pattern_finds_variants():
    assert [one["slug"] for one in json.loads(_run("systems", "*specvit_tiny", "--json"))] == [
        "lola_specvit"
    ]


def test_systems_shows_one_card_by_slug_or_variant():
    for name in ("lola_specvit", "lola_specvit_tiny"):
        assert "2506.17759" in _run("systems", name)


def test_systems_pattern_without_match():
    done = RUNNER.invoke(app, ["systems", "zzz*"])
    assert done.exit_code == 2
    assert "zzz*" in done.output


def test_doctor_reports_versions_and_holds_the_allow_list():
    facts = json.loads(_run("doctor", "--json"))
    assert facts["packages"]["torch"] == importlib.metadata.version("torch")
    assert None not in facts["packages"].values()
    assert set(facts["extras"]) >= {"vector", "scale", "deploy", "app", "dev", "docs"}
    assert facts["raster"]["vrt_refused"] is True
    assert facts["machine"]["cores"] >= 1


def test_doctor_advises_on_what_is_amiss():
    facts = {
        "machine": {
            "cores": 2, "threads": "16", "memory": 2e9, "disk_free": 1e9, "temporary_free": 9e9,
        },
        "raster": {"drivers": {"GTiff": True, "COG": False}, "vrt_refused": False},
        "gpus": [],
        "extras": {"vector": {"geopandas": None}, "scale": {"dask": "1"}, "dev": {"ruff": None}},
    }  # fmt: skip
    said = "\n".join(doctor.advice(facts))
    for words in (
        "4 GB of memory",
        "disk space",
        "OMP_NUM_THREADS is 16",
        "COG",
        "VRT",
        "No GPU",
        "pip install -e '.[vector]'",
    ):
        assert words in said
    assert "scale" not in said
    assert "dev" not in said


def test_doctor_has_nothing_to_say_on_a_good_machine():
    facts = {
        "machine": {
            "cores": 8, "threads": None, "memory": 64e9, "disk_free": 1e12, "temporary_free": 1e12,
        },
        "raster": {"drivers": {"GTiff": True}, "vrt_refused": True},
        "gpus": ["a GPU"],
        "extras": {"vector": {"geopandas": "1"}},
    }  # fmt: skip
    assert doctor.advice(facts) == []


def test_reproduce_runs_the_script_and_names_the_result(tmp_path):
    (tmp_path / "svm.py").write_text(
        "from pathlib import Path\n"
        "def main(quick):\n"
        "    Path(__file__).with_name('ran').write_text(str(quick))\n"
    )
    assert reproduce("svm", quick=True, scripts=tmp_path) == tmp_path / "results" / "svm.json"
    assert (tmp_path / "ran").read_text() == "True"


def test_reproduce_hands_on_what_the_script_takes(tmp_path):
    (tmp_path / "svm.py").write_text(
        "from pathlib import Path\n"
        "def main(quick=False, full=False, data=None):\n"
        "    Path(__file__).with_name('ran').write_text(f'{quick} {full} {data}')\n"
    )
    photos = tmp_path / "photos"
    photos.mkdir()
    result = reproduce("svm", full=True, data=photos, scripts=tmp_path)
    assert result == tmp_path / "results" / "svm.photos.json"
    assert (tmp_path / "ran").read_text() == f"False True {photos}"
    with pytest.raises(VitreousError, match="exclude each other"):
        reproduce("svm", quick=True, full=True, scripts=tmp_path)
    with pytest.raises(VitreousError, match="not a folder of images"):
        reproduce("svm", data=tmp_path / "missing", scripts=tmp_path)
    (tmp_path / "svm.py").write_text("def main(quick=False): raise AssertionError")
    with pytest.raises(ModelError, match="has no --data"):
        reproduce("svm", data=photos, scripts=tmp_path)


@pytest.mark.parametrize("slug", ["svn", "../svm", "svm.py", ""])
def test_reproduce_takes_names_only(tmp_path, slug):
    (tmp_path / "svm.py").write_text("raise AssertionError('must not be run')")
    with pytest.raises(ModelError, match="No such reproduction"):
        reproduce(slug, scripts=tmp_path)


def test_reproduce_needs_a_checkout(tmp_path):
    with pytest.raises(VitreousError, match="checkout"):
        reproduce("svm", scripts=tmp_path / "nothing")


def _scores(oa):
    return {
        "oa": oa, "oa_ci": [oa - 0.01, oa + 0.01], "aa": 0.5, "aa_ci": [0.4, 0.6],
        "kappa": 0.25, "kappa_ci": [0.2, 0.3], "per_class": [], "confusion": [],
    }  # fmt: skip


@pytest.mark.parametrize("optimistic", [True, False])
def test_scores_are_printed_with_intervals_and_the_split_with_its_leakage(optimistic):
    metrics = {
        "split": {
            "method": "random", "leakage": 0.987, "patch_size": 15, "optimistic": optimistic,
            "counts": {"train": 1024, "val": 10, "test": 9000},
        },
        "systems": [
            {
                "name": "lola_specvit_tiny", "parameters": 1_650_000, "train_seconds": 61.23,
                "pixels_per_second": None, "test": _scores(0.95),
            },
            {
                "name": "svm", "parameters": None, "train_seconds": None, "pixels_per_second": 12345.6,
                "test": None,
            },
        ],
    }  # fmt: skip
    console = Console(width=80, record=True, no_color=True)
    print_metrics(console, metrics)
    text = console.export_text()
    for words in (
        "1,024 train",
        "98.7%",
        "95.0",
        "94.0-96.0",
        "20.0-30.0",
        "1.65 M",
    ):
        assert words in text
    assert ("optimistic" in text) is optimistic


def test_products_are_listed_where_they_exist(tmp_path):
    (tmp_path / "map.tif").touch()
    (tmp_path / "report.html").touch()
    console = Console(width=300, record=True)
    print_run(console, tmp_path, TASKS["classify"])
    text = console.export_text()
    assert str(tmp_path / "report.html") in text
    assert "map.png" not in text
