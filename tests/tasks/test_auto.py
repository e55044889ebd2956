"""The automatic choice: what it compares, what it keeps, what it never looks at, and what it refuses."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from tiny_scene import tiny_cube, tiny_labels, tiny_recipe, write_scene
from vitreous.checkpoints.tensors import load_tensors, save_tensors
from vitreous.cli.main import app
from vitreous.cli.tables import print_metrics
from vitreous.data.blocks import TEST
from vitreous.data.roles import Split
from vitreous.errors import CheckpointError, ConfigError, ModelError
from vitreous.inference.ensemble import Ensemble
from vitreous.inference.pixels import probabilities_at
from vitreous.recipe import make_recipe, seconds_of
from vitreous.tasks import auto, candidates, classify
from vitreous.tasks.candidates import Candidate
from vitreous.tasks.division import draw_splits
from vitreous.tasks.labelled import open_data
from vitreous.tasks.runs import load_run

PIXELS = np.arange(0, 24 * 28, 5)
QUICK = {
    one.name: one
    for one in (
        Candidate("lda", "LDA", 0.01, 0, {"model": "lda", "model_args": {}, "reduction": "none"}),
        Candidate(
            "svm",
            "SVM",
            0.02,
            0,
            {"model": "svm", "model_args": {}, "spectra": "snv", "reduction": "none"},
        ),
        Candidate(
            "dense",
            "a network",
            0.03,
            0,
            {
                "model": "convnext_test",
                "model_args": {},
                "mode": "dense",
                "tile_size": 16,
                "reduction": "none",
                "epochs": 1,
            },
        ),
    )
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return write_scene(tmp_path_factory.mktemp("scene"))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Compare a few quick candidates."""
    for module in (candidates, auto):
        monkeypatch.setattr(module, "CANDIDATES", dict(QUICK))


def recipe_of(folder, **changes):
    return tiny_recipe(folder, **{"model": "auto", "candidates": ["lda", "svm"], **changes})


def run(folder, **changes):
    return classify.train(recipe_of(folder, **changes), show=False)


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


@pytest.fixture(scope="module")
def _chosen():
    return {}


@pytest.fixture
def chosen(_chosen, places, tmp_path_factory):
    """A finished run with map and report, made once."""
    if "run" not in _chosen:
        _chosen["run"] = run(
            tmp_path_factory.mktemp("auto"), **places, map=True, report=True, baselines=["svm"]
        )
    return _chosen["run"]


def test_the_best_is_trained_and_the_comparison_told(chosen):
    metrics = metrics_of(chosen)
    told = metrics["comparison"]
    assert [row["name"] for row in told["rows"]] == ["lda", "svm"]
    assert sum(row["chosen"] for row in told["rows"]) == len(told["chosen"])
    for row in told["rows"]:
        assert row["oa"] > 0.9 and len(row["by_fold"]) == told["folds"] and row["seconds"] > 0
    assert metrics["systems"][0]["name"] == " + ".join(told["chosen"])
    page = (chosen / "report.html").read_text()
    assert "How the system was chosen" in page and "Cross-validation in" in page
    assert not (chosen / "candidates").exists()
    skipped = {"name": "slow", "words": "", "skipped": "would take long", "chosen": False}
    metrics["comparison"]["rows"].append(skipped)
    console = Console(file=io.StringIO(), width=100)
    print_metrics(console, metrics)
    printed = console.file.getvalue()
    assert "Candidates in cross-validation" in printed and "would take long" in printed


def test_a_chosen_run_is_a_run_like_any_other(chosen, tmp_path):
    loaded = load_run(chosen)
    told = metrics_of(chosen)["comparison"]
    assert loaded.name == told["chosen"][0]
    assert loaded.recipe.model == loaded.name and loaded.recipe.seed == 0
    again = classify.evaluate(chosen)
    assert again["systems"][0]["test"] == metrics_of(chosen)["systems"][0]["test"]
    data = open_data(loaded.recipe)
    done = classify.apply(chosen, data.first, tmp_path / "map.tif")
    assert done.pixels == 24 * 28


def test_no_pixels_are_withheld_and_test_pixels_take_no_part(places, tmp_path, monkeypatch, capsys):
    seen = []
    fit = auto.fit_system

    def watched(recipe, data, splits, *others, **options):
        seen.append(splits[0].roles)
        return fit(recipe, data, splits, *others, **options)

    monkeypatch.setattr(auto, "fit_system", watched)
    folder = classify.train(recipe_of(tmp_path, **places, val_fraction=0.2))
    printed = " ".join(capsys.readouterr().err.split())
    assert " 0 validation, " in printed
    assert "val_fraction (model is 'auto', which withholds no validation pixels)" in printed
    split = Split.load(folder / "split.npz")
    assert metrics_of(folder)["split"]["counts"] == split.counts
    assert split.counts["val"] == 0
    for roles in seen[:-1]:
        assert not (roles[split.roles == TEST] > 0).any()
    assert (seen[-1] == split.roles).all()
    held = [(roles == TEST) for roles in seen[:-1]]
    assert len(held) == 2 * 5 and all(part.any() for part in held)


@pytest.mark.parametrize("split", ["blocks", "random"])
def test_only_a_comparison_has_no_validation_pixels(places, split):
    data = open_data(make_recipe(places))
    settings = {**places, "split": split, "patch_size": 3, "baselines": []}
    drawn = [draw_splits(make_recipe({**settings, "model": name}), data).counts["val"] for name in ("auto", "vit_test")]  # fmt: skip
    assert drawn[0] == 0 < drawn[1]


def test_equal_seeds_choose_alike(places, tmp_path):
    rows = []
    for name in ("a", "b"):
        told = metrics_of(run(tmp_path, **places, name=name))["comparison"]
        rows.append(
            [(row["name"], row["oa"], row["by_fold"], row["chosen"]) for row in told["rows"]]
        )
    assert rows[0] == rows[1]


def test_candidates_that_were_scored_are_kept(places, tmp_path, monkeypatch):
    tried = []
    answer = auto._Comparison._answer

    def stopping(self, scored, fold):
        tried.append((scored.candidate.name, fold))
        if (scored.candidate.name == "svm" and "stop" in tried[0:1]) or len(tried) == 7:
            raise KeyboardInterrupt
        return answer(self, scored, fold)

    monkeypatch.setattr(auto._Comparison, "_answer", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, **places)
    assert {name for name, _ in tried[:5]} == {"lda"}
    folder = tmp_path / "runs" / "classify" / "run"
    assert (folder / "candidates" / "lda.npz").is_file()
    tried.clear()
    tried.extend(["resumed"] * 20)
    classify.train(recipe_of(tmp_path, **places), resume=True, show=False)
    assert {entry[0] for entry in tried[20:]} == {"svm"}
    whole = metrics_of(run(tmp_path, **places, name="whole"))["comparison"]
    again = metrics_of(folder)["comparison"]
    assert [row["by_fold"] for row in again["rows"]] == [row["by_fold"] for row in whole["rows"]]


def test_damaged_answers_are_found_again(places, tmp_path, monkeypatch):
    keep = auto._Comparison._keep

    def damaging(self, scored):
        keep(self, scored)
        (self.folder / f"{scored.candidate.name}.npz").write_bytes(b"no archive")
        raise KeyboardInterrupt

    monkeypatch.setattr(auto._Comparison, "_keep", damaging)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, **places)
    monkeypatch.setattr(auto._Comparison, "_keep", keep)
    folder = classify.train(recipe_of(tmp_path, **places), resume=True, show=False)
    assert len(metrics_of(folder)["comparison"]["rows"]) == 2


def test_a_network_is_compared_and_can_be_trained(places, tmp_path):
    folder = run(tmp_path, **places, candidates=["dense"])
    assert load_run(folder).name == "convnext_test"
    assert load_run(folder).recipe.mode == "dense"
    assert metrics_of(folder)["comparison"]["rows"][0]["name"] == "dense"
    assert classify.evaluate(folder)["systems"][0]["test"]["oa"] >= 0


def ensemble_of(folder, places, monkeypatch):
    monkeypatch.setattr(auto._Comparison, "_ahead", lambda self, one, other, count: True)
    return run(folder, **places, candidates=["lda", "svm"], map=True)


def test_an_ensemble_is_a_classifier_like_any_other(places, tmp_path, monkeypatch):
    folder = ensemble_of(tmp_path, places, monkeypatch)
    loaded = load_run(folder)
    assert loaded.name == "auto" and isinstance(loaded.classifier, Ensemble)
    metrics = metrics_of(folder)
    assert metrics["systems"][0]["name"] == " + ".join(metrics["comparison"]["chosen"])
    assert set(metrics["comparison"]["chosen"]) == {"lda", "svm"}
    assert metrics["comparison"]["ensemble"]["oa"] > 0.9
    data = open_data(loaded.recipe)
    ours = probabilities_at(loaded.classifier, data.first, PIXELS)
    members = [
        probabilities_at(one.finished, data.first, PIXELS) for one in loaded.classifier.members
    ]
    np.testing.assert_allclose(ours, np.mean(members, axis=0), atol=1e-6)
    assert (
        classify.evaluate(folder)["systems"][0]["test"]["oa"] == metrics["systems"][0]["test"]["oa"]
    )
    done = classify.apply(folder, data.first, tmp_path / "map.tif")
    assert done.pixels == 24 * 28
    with pytest.raises(ModelError, match="not a network"):
        classify.export(folder, "onnx", tmp_path / "out")


def test_a_damaged_ensemble_is_refused(places, tmp_path, monkeypatch):
    folder = ensemble_of(tmp_path, places, monkeypatch)
    tensors, header = load_tensors(folder / "model.safetensors")
    broken = [
        {"members": []},
        {"members": [{**header["members"][0], "kind": "ensemble"}]},
        {"members": [{**header["members"][0], "kind": "other"}]},
        {"members": [{k: v for k, v in header["members"][0].items() if k != "postprocess"}]},
        {"members": "lda"},
        {"members": [*header["members"], header["members"][0]]},  # whose tensors are missing
    ]
    for change in broken:
        save_tensors(folder / "model.safetensors", tensors, {**header, **change})
        with pytest.raises(CheckpointError):
            load_run(folder)
    fewer = {k: v for k, v in tensors.items() if not k.startswith("1.")}
    save_tensors(folder / "model.safetensors", fewer, header)
    with pytest.raises(CheckpointError):
        load_run(folder)


def test_windows_of_members_lie_where_the_ensembles_do():
    """Members of different context see the pixels that they would see alone."""

    class Shift:
        num_classes, padding = 2, "reflect"

        def __init__(self, margin, contract):
            self.margin, self.contract, self.receptive_size = margin, contract, 2 * margin + 1

        def classify(self, window):
            m = self.margin
            inner = window[0, : window.shape[1] - 2 * m, : window.shape[2] - 2 * m]
            return np.stack([inner, 1 - inner]).astype(np.float32)

    class Contract:
        used = (0,)

    parts = [Shift(margin, Contract()) for margin in (0, 3)]
    ensemble = Ensemble.__new__(Ensemble)
    ensemble._parts = parts
    window = np.random.default_rng(0).random((1, 12, 13)).astype("f4")
    found = ensemble.classify(window)
    expected = (window[0, 3:9, 3:10] + window[0, :6, :7]) / 2
    np.testing.assert_allclose(found[0], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("allowed", "trained"), [([], "lda"), (["svm"], "svm"), (["dense", "svm"], "svm")]
)
def test_too_few_labels_train_the_first_that_is_allowed(allowed, trained, tmp_path, capsys):
    labels = np.zeros_like(tiny_labels())
    labels[:3, :4] = 1
    labels[:3, 7:11] = 2
    places = write_scene(tmp_path / "scene", labels)
    recipe = recipe_of(
        tmp_path, **places, split="random", train_per_class=4, candidates=allowed, report=True
    )
    folder = classify.train(recipe, show=True)
    told = " ".join(capsys.readouterr().err.split())
    assert "too few labels to cross-validate: about 36 more, in other places, are needed" in told
    assert f"training {trained} (refined by domain_transform)" in told
    assert load_run(folder).name == trained
    assert load_run(folder).postprocess.refine is not None
    metrics = metrics_of(folder)
    assert metrics["comparison"]["rows"] == []
    assert metrics["systems"][0]["name"] == trained
    console = Console(file=io.StringIO(), width=200)
    print_metrics(console, metrics)
    printed = console.file.getvalue()
    assert f"Too few labels to compare candidates (about 36 more are needed): trained {trained}." in printed  # fmt: skip
    assert "Candidates in cross-validation" not in printed
    assert "About 36 more labels" in (folder / "report.html").read_text()


def test_the_table_begins_with_what_is_trained_without_a_comparison():
    import importlib

    real = importlib.reload(candidates)
    assert real.first_of(real.chosen_candidates(make_recipe({}))).name == "ls_svm_mnf"


def test_scattered_labels_are_compared_and_it_is_said_that_they_are_neighbours(tmp_path, capsys):
    truth = np.kron(np.random.default_rng(0).integers(1, 4, (10, 12)), np.ones((8, 8), dtype=int))
    labels = np.zeros_like(truth)
    chosen = np.random.default_rng(1).choice(truth.size, 150, replace=False)
    labels.flat[chosen] = truth.flat[chosen]
    places = write_scene(tmp_path / "scene", labels, cube=tiny_cube(truth))
    folder = classify.train(recipe_of(tmp_path, **places, split="blocks", report=True))
    assert "folds of neighbouring blocks: figures are optimistic" in " ".join(
        capsys.readouterr().err.split()
    )
    told = metrics_of(folder)["comparison"]
    assert told["optimistic"] and told["folds"] in (2, 3) and told["labels_missing"] == 0
    assert all(row["oa"] > 0.9 for row in told["rows"]) and len(told["rows"]) == 2
    console = Console(file=io.StringIO(), width=200)
    print_metrics(console, metrics_of(folder))
    printed = " ".join(console.file.getvalue().split())
    assert "folds of neighbouring blocks: optimistic" in printed
    assert (
        "neighbouring blocks, because the labels are too few"
        in (folder / "report.html").read_text()
    )


def test_a_slow_candidate_that_is_behind_is_given_up(places, tmp_path, monkeypatch):
    monkeypatch.setattr(auto, "SLOW", 0.0)
    monkeypatch.setattr(auto, "BEHIND", -1.0)
    told = metrics_of(run(tmp_path, **places))["comparison"]
    assert told["rows"][1]["behind"] and len(told["rows"][1]["by_fold"]) == 1
    assert told["chosen"] == ["lda"]


def test_what_the_budget_does_not_reach_for_is_named(places, tmp_path, monkeypatch):
    slow = replace(QUICK["svm"], seconds=1000.0)
    for module in (candidates, auto):
        monkeypatch.setattr(module, "CANDIDATES", {**QUICK, "svm": slow})
    told = metrics_of(run(tmp_path, **places, budget="5m"))["comparison"]
    assert "would take about" in told["rows"][1]["skipped"]
    assert told["chosen"] == ["lda"]


def test_a_budget_too_small_for_any_is_refused(places, tmp_path, monkeypatch):
    slow = {"lda": replace(QUICK["lda"], seconds=100.0)}
    for module in (candidates, auto):
        monkeypatch.setattr(module, "CANDIDATES", slow)
    with pytest.raises(ConfigError, match="budget of 2s is too small for a single candidate"):
        run(tmp_path, **places, candidates=[], budget="2s")
    assert not list((tmp_path / "runs" / "classify").glob("*"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--budget", "soon"], "'soon' is not a time"),
        (["--budget", "0s"], "'0s' is not a time"),
        (["--budget", "-5m"], "is not a time"),
        (["--budget", "10"], "'10' is not a time"),
        (["--candidates", "svn"], "Unknown candidate: svn"),
        (["--model-args", "C=1"], "'auto' has no arguments"),
        (["--baselines", "auto"], "cannot be a baseline"),
    ],
)
def test_impossible_wishes_are_refused(places, tmp_path, words, told):
    place = ["--scene", places["scene"], "--labels", places["labels"], "--runs", str(tmp_path)]
    done = CliRunner().invoke(app, ["train", *place, *words])
    assert done.exit_code == 2
    assert told in " ".join(done.output.split())
    assert not list(tmp_path.glob("*"))


@pytest.mark.parametrize(
    ("time", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400), ("2 m", 120), ("m", None)]
)
def test_times(time, seconds):
    assert seconds_of(time) == seconds


def test_a_comparison_refines_unless_it_is_told_otherwise():
    assert make_recipe({}).model == "auto" and make_recipe({}).refine == "auto"
    assert make_recipe({"model": "svm"}).refine == "none"
    assert make_recipe({"refine": "none"}).refine == "none"


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({"baselines": []}, 21),
        ({"baselines": [], "refine": "domain_transform", "refine_args": {"spatial": 8}}, 57),
        ({"baselines": [], "refine": "none"}, 15),
        ({"baselines": [], "refine": "none", "candidates": ["lda"]}, 1),
        ({"baselines": [], "candidates": ["lda"]}, 21),
        ({"model": "svm", "baselines": []}, 1),
        ({"model": "svm", "baselines": ["svm_spatial"]}, 13),
        ({"model": "svm", "baselines": ["lola_specvit_tiny"]}, 21),
        ({"model": "svm", "model_args": {"spatial_window": 7}, "baselines": []}, 7),
    ],
)
def test_one_split_for_all_that_are_compared(settings, size):
    import importlib

    from vitreous.tasks.division import recipe_receptive_size

    importlib.reload(candidates)
    assert recipe_receptive_size(make_recipe(settings)) == size


def test_the_page_lists_every_candidate():
    import importlib

    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    table = page.partition("| candidate |")[2].partition("\n\n")[0]
    real = importlib.reload(candidates)
    assert set(re.findall(r"`(\w+)`", table)) == set(real.CANDIDATES)
    assert re.findall(r"`(\w+)`", table)[0] == next(iter(real.CANDIDATES))


def test_every_candidate_fits_the_split_that_it_is_compared_on():
    """Where test pixels lie apart, no candidate sees further than the buffer; the table is the real one."""
    import importlib

    real = importlib.reload(candidates)
    recipe = make_recipe({})
    for one in real.CANDIDATES.values():
        refinement = real.refinement_for(one, recipe, 21)
        reach = 0 if refinement is None else refinement.reach
        settings = one.recipe(recipe)
        assert real.own_size(settings, settings.model) + 2 * reach <= 21
        assert real.refinement_for(one, recipe, np.inf).reach == 10
