"""The options of ``vitreous train`` are the recipe's fields, and only given ones count."""

import json
import sys
from types import SimpleNamespace

import pytest
import yaml
from typer.testing import CliRunner

import vitreous.tasks
from vitreous.catalog.registry import cards, stage, system_module
from vitreous.cli.main import app
from vitreous.recipe import Recipe

# Another value than the default for every setting, as words and as the recipe should have it.
CHANGES = {
    "scene": ("a.hdr", "a.hdr"),
    "scenes": ("scenes.csv", "scenes.csv"),
    "labels": ("l.tif", "l.tif"),
    "label_attribute": ("crop", "crop"),
    "hints": ("variable=cube", {"variable": "cube"}),
    "mask": ("scl", "scl"),
    "label_hints": ("layer=fields", {"layer": "fields"}),
    "classes": ("worldcover", "worldcover"),
    "model_args": ("depths=[1, 2]", {"depths": [1, 2]}),
    "baselines": ("svm,vit_tiny", ["svm", "vit_tiny"]),
    "split": ("random", "random"),
    "mode": ("patch", "patch"),
    "decoder": ("upernet", "upernet"),
    "adapt": ("lora_only", "lora_only"),
    "adapt_args": ("bottleneck=8", {"bottleneck": 8}),
    "reduce": ("evit", "evit"),
    "reduce_args": ("keep_rate=0.5", {"keep_rate": 0.5}),
    "teacher": ("runs/classify/t", "runs/classify/t"),
    "distill": ("deit_soft", "deit_soft"),
    "teacher_store": ("answers", "answers"),
    "distill_args": ("weight=0.5", {"weight": 0.5}),
    "refine": ("guided", "guided"),
    "refine_args": ("radius=3", {"radius": 3}),
    "spectra": ("snv", "snv"),
    "budget": ("90s", "90s"),
    "candidates": ("lda,svm_snv", ["lda", "svm_snv"]),
    "reduction": ("none", "none"),
    "padding": ("zero", "zero"),
    "schedule": ("cyclic", "cyclic"),
    "class_weights": ("none", "none"),
    "accelerator": ("cpu", "cpu"),
    "precision": ("bf16", "bf16"),
    "model": ("svm", "svm"),
    "init": ("runs/classify/a", "runs/classify/a"),
    "name": ("mine", "mine"),
    "runs": ("elsewhere", "elsewhere"),
    "train_fraction": ("0.25", 0.25),
    "val_fraction": ("0.25", 0.25),
    "label_smoothing": ("0.25", 0.25),
    "gain": ("0.25", 0.25),
    "offset": ("0.25", 0.25),
    "background": ("0.25", 0.25),
    "band_dropout": ("0.25", 0.25),
    "ema": ("0.25", 0.25),
}
IMPLIED = {"model": {"refine": "none"}}  # a named system is refined where that is asked for
TOGETHER = {
    "scenes": ["--split", "scenes"],  # their default
    "patch_norm": ["--mode", "patch"],
    "test_labels": ["--split", "files"],
    "adapt_args": ["--adapt", "adaptformer_only"],
    "reduce_args": ["--reduce", "evit"],
    "refine_args": ["--refine", "guided"],
    "teacher": ["--distill", "deit_hard"],
    "distill": ["--teacher", "runs/t"],
    "teacher_store": ["--teacher", "runs/t", "--distill", "deit_hard"],
    "distill_args": ["--teacher", "runs/t", "--distill", "deit_hard"],
}


def _run(*words):
    return CliRunner().invoke(app, ["train", *map(str, words)])


def _dry(*words):
    done = _run("--dry-run", *words)
    assert done.exit_code == 0, done.output
    return yaml.safe_load(done.output)


def _change(name):
    field = Recipe.model_fields[name]
    option = "--" + name.replace("_", "-")
    if isinstance(field.default, bool):
        return [f"--no-{option[2:]}" if field.default else option], not field.default
    word, value = CHANGES.get(name, ("21", 21))
    return [option, word], value


@pytest.mark.parametrize("name", Recipe.model_fields)
def test_an_option_sets_its_setting_and_no_other(name):
    words, value = _change(name)
    if name == "test_labels":
        words, value = ["--test-labels", "t.tif"], "t.tif"
    others = TOGETHER.get(name, [])
    resolved = _dry(*words, *others)
    assert resolved.pop(name) == value
    expected = Recipe().model_dump() | IMPLIED.get(name, {})
    expected.update(
        {word[2:]: other for word, other in zip(others[::2], others[1::2], strict=True)}
    )
    del expected[name]
    assert resolved == expected


def test_every_method_that_adapts_can_be_trained():
    adapting = {
        card.slug for card in cards() if card.kind == "method" if stage(card.slug) == "adapt"
    }
    assert {"lora", "adaptformer"} <= adapting
    for slug in adapting:
        recipe = Recipe(adapt=f"{slug}_only")
        assert recipe.adapt_method == slug
        assert not system_module(slug).trainable("net.head.weight")
        later = Recipe(adapt=f"pretrain_then_{slug}")
        assert later.adapt_method == slug and later.adapts_later and not recipe.adapts_later


@pytest.mark.parametrize("adapt", ["lora", "only", "Scratch", "pretrain_then_", ""])
def test_an_unknown_way_to_adapt_is_refused_with_the_known_ones(adapt):
    done = _run("--dry-run", "--adapt", adapt)
    assert done.exit_code == 2
    assert "METHOD_only" in done.output


@pytest.mark.parametrize("adapt", ["scratch", "head_only"])
def test_settings_of_no_method(adapt):
    done = _run("--dry-run", "--adapt", adapt, "--adapt-args", "rank=2")
    assert done.exit_code == 2
    assert f"adapt '{adapt}' uses no method" in done.output


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("passes: 7\nmap: false\nbaselines: [svm]\nbatch_size: 9\n")
    default = Recipe().passes
    resolved = _dry("--recipe", recipe, "--passes", default, "--map", "--baselines", "")
    # Flags that repeat a default win over the file, too: they were given.
    assert (resolved["passes"], resolved["map"], resolved["baselines"]) == (default, True, [])
    assert resolved["batch_size"] == 9


def test_lists_may_be_repeated():
    assert _dry("--baselines", "svm", "--baselines", "vit_tiny,random_forest")["baselines"] == [
        "svm",
        "vit_tiny",
        "random_forest",
    ]


def test_a_dry_run_is_a_recipe(tmp_path):
    first = _dry("--epochs", 3, "--hints", "scale=0.1", "--name", "x")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(first))
    assert _dry("--recipe", recipe) == first


def test_help_shows_every_setting_in_its_panel():
    text = (
        CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, ["train", "--help"]).output
    )
    for name, field in Recipe.model_fields.items():
        assert "--" + name.replace("_", "-") in text
        assert f"─ {field.json_schema_extra['panel']} ─" in text


def _unfinished(folder, **settings):
    folder.mkdir(parents=True)
    (folder / "state.safetensors").touch()
    recipe = Recipe(**settings).model_dump()
    (folder / "config.json").write_text(json.dumps({"recipe": recipe}))
    return folder


def test_resume_takes_the_settings_of_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _unfinished(tmp_path / "runs/classify/a", name="a", epochs=5)
    expected = Recipe(name="a", epochs=5).model_dump()
    assert _dry("--resume") == expected
    assert _dry("--resume", "runs/classify/a") == expected
    assert _dry("--resume", "--name", "a", "--epochs", 5) == expected


def test_resume_of_a_moved_run_goes_on_where_it_is_now(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = _unfinished(tmp_path / "old/classify/b", name="a", runs="runs")
    resolved = _dry("--resume", run)
    assert (resolved["name"], resolved["runs"]) == ("b", str(tmp_path / "old"))


def test_resume_by_name_finds_the_numbered_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _unfinished(tmp_path / "runs/classify/a-2", name="a")
    _unfinished(tmp_path / "runs/classify/another", name="another")
    assert _dry("--resume", "--name", "a")["name"] == "a-2"
    assert _run("--resume", "--name", "[a-z]*").exit_code == 2


def test_resume_refuses_other_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _unfinished(tmp_path / "runs/classify/a", name="a", epochs=5)
    done = _run("--resume", "--epochs", 6)
    assert done.exit_code == 2
    assert "other settings: epochs" in done.output


def test_resume_passes_over_finished_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (_unfinished(tmp_path / "runs/classify/done", name="done") / "state.safetensors").unlink()
    done = _run("--resume")
    assert done.exit_code == 2
    assert "No interrupted run" in done.output


@pytest.mark.parametrize("config", ["[]", "{}", '{"recipe": 3}', "{", '{"recipe": {"epoch": 3}}'])
def test_resume_of_a_damaged_run(tmp_path, monkeypatch, config):
    monkeypatch.chdir(tmp_path)
    run = _unfinished(tmp_path / "runs/classify/a")
    (run / "config.json").write_text(config)
    assert _run("--resume").exit_code == 2


def test_stopping_says_how_to_go_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def train(recipe, *, resume, command):
        _unfinished(tmp_path / "runs/classify/a b")
        raise KeyboardInterrupt

    fake = SimpleNamespace(train=train)
    monkeypatch.setattr(vitreous.tasks, "classify", fake, raising=False)
    monkeypatch.setitem(sys.modules, "vitreous.tasks.classify", fake)
    done = _run("--name", "a b")
    assert done.exit_code == 130
    assert "vitreous train --resume 'runs/classify/a b'" in done.output


def test_a_finished_run_is_not_resumed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = _unfinished(tmp_path / "runs/classify/a b", name="a b", model="svm")
    (run / "state.safetensors").unlink()
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "finished": True}))
    done = _run("--resume", run)
    assert done.exit_code == 2
    assert "has finished: there is nothing to resume" in " ".join(done.output.split())
    (run / "config.json").write_text(json.dumps({**config, "finished": False}))
    assert _dry("--resume", run)["model"] == "svm"


def test_a_second_setting_needs_its_option_again():
    done = _run("--model", "svm", "--hints", "scale=0.1", "--model-args", "a=1", "b=2")
    assert done.exit_code == 2
    said = " ".join(done.output.split())
    assert "'b=2' does not belong to an option" in said
    assert "--model-args b=2" in said
