"""Nothing is overwritten that nobody named, and no figure is cut off on a narrow screen."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from tiny_scene import tiny_recipe, write_scene
from vitreous.cli.main import app
from vitreous.cli.tables import compress_table, show, systems_table
from vitreous.recipe import PretrainRecipe, Recipe, RestoreRecipe
from vitreous.tasks import classify

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def run_cli(*words, columns=160):
    runner = CliRunner(env={"COLUMNS": str(columns), "NO_COLOR": "1"})
    return runner.invoke(app, [*map(str, words)])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    places = write_scene(folder)
    settings = {**places, "model": "random_forest", "model_args": {"trees": 3}}
    return classify.train(tiny_recipe(folder, **settings), show=False), places["scene"]


@pytest.mark.parametrize("taken", ["map.tif", "map.png"])
def test_predict_overwrites_nothing_that_was_not_named(taken, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run, scene = place
    (tmp_path / taken).write_text("the user's own")
    done = run_cli("predict", run, scene)
    assert done.exit_code == 2, done.output
    assert f"{taken} already exists" in done.output
    assert "--overwrite" in done.output
    assert (tmp_path / taken).read_text() == "the user's own"
    assert [path.name for path in tmp_path.iterdir()] == [taken]
    for words in (("--overwrite",), ("-o", "map.tif"), ("-o", "other.tif")):
        assert run_cli("predict", run, scene, *words).exit_code == 0
    assert (tmp_path / "map.tif").stat().st_size > 100


def test_predict_writes_a_map_where_there_is_none(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_cli("predict", *place).exit_code == 0
    assert {"map.tif", "map.png"} <= {path.name for path in tmp_path.iterdir()}


def numbers(text):
    return re.findall(r"\d[\d,.]*", text)


def scores():
    test = dict.fromkeys(("oa", "aa", "kappa"), 0.98765)
    test |= {f"{key}_ci": [0.1234, 0.9999] for key in ("oa", "aa", "kappa")}
    return [
        {
            "name": "a_system_of_a_rather_long_name_with_variant", "parameters": 123_456_789,
            "train_seconds": 12345.6, "pixels_per_second": 1234567.8, "test": test,
        }
    ]  # fmt: skip


@pytest.mark.parametrize("width", [20, 40, 80])
@pytest.mark.parametrize(
    "make",
    [
        lambda: systems_table(scores()),
        lambda: compress_table([{"figure": "pixels/s", "before": 1234567.89, "after": 2345678.9}]),
    ],
)
def test_figures_are_whole_on_narrow_screens(make, width):
    def printed(columns):
        console = Console(width=columns, record=True, no_color=True, file=io.StringIO())
        show(make(), console)
        assert console.width == columns
        return console.export_text()

    narrow = printed(width)
    assert sorted(numbers(narrow)) == sorted(numbers(printed(1000)))
    assert "…" not in narrow


def test_verbs_print_whole_tables_into_pipes(place):
    run, scene = place
    for words in (
        ("evaluate", run),
        ("systems",),
        ("systems", "lola_specvit"),
        ("methods",),
        ("info", scene),
    ):
        done = run_cli(*words, columns=30)
        assert done.exit_code == 0, done.output
        assert "…" not in done.output
    wide, narrow = (run_cli("evaluate", run, columns=n).output for n in (200, 30))
    assert "random_forest" in narrow
    assert len(numbers(wide)) == len(numbers(narrow))


@pytest.mark.parametrize("name", ["../../x", "..", ".hidden", "a/b", "", "x" * 300, "a\nb"])
@pytest.mark.parametrize("verb", ["train", "restore", "pretrain"])
def test_a_name_stays_in_the_folder_of_runs(verb, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run_cli(verb, "--name", name)
    assert done.exit_code == 2, done.output
    assert done.output.startswith("Error: name: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["train", "restore", "pretrain"])
def test_every_number_has_bounds(verb, tmp_path, monkeypatch):
    """Absurd numbers in any option are refused in words, before anything is read or written."""
    monkeypatch.chdir(tmp_path)
    recipe = {"train": Recipe, "restore": RestoreRecipe, "pretrain": PretrainRecipe}[verb]
    tried = 0
    for name, field in recipe.model_fields.items():
        kind = str(field.annotation)
        if "int" not in kind and "float" not in kind:
            continue
        for word in ("100000000000000000000", "-1e300", "nan"):
            done = run_cli(verb, "--" + name.replace("_", "-"), word)
            assert done.exit_code == 2, (name, word, done.output)
            assert "Traceback" not in done.output
            tried += 1
    assert tried > 20
    assert list(tmp_path.iterdir()) == []


def test_numbers_of_yaml_recipes_have_bounds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text in ("epochs: 1.0e+20", "epochs: .inf", "model_args: {dim: 1.0e+300}", "seed: .nan"):
        (tmp_path / "r.yaml").write_text(text)
        done = run_cli("train", "--recipe", "r.yaml")
        assert done.exit_code == 2, (text, done.output)
    assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]


def test_hints_that_are_no_numbers_are_kept(tmp_path):
    """JSON has no NaN, and a run's settings are kept as JSON."""
    places = write_scene(tmp_path)
    hints = {"nodata": float("nan")}
    recipe = tiny_recipe(tmp_path, **places, model="svm", hints=hints)
    run = classify.train(recipe, show=False)
    assert classify.load_run(run).recipe.hints == {"nodata": "nan"}
    assert np.isfinite(classify.evaluate(run)["systems"][0]["test"]["oa"])


def test_an_option_has_one_name_in_all_verbs_and_one_meaning():
    from typer.main import get_command

    names: dict[str, set[tuple[str, ...]]] = {}
    meanings: dict[str, set[str]] = {}

    def collect(command):
        for below in getattr(command, "commands", {}).values():
            collect(below)
        for option in command.params:
            if option.param_type_name == "option" and not hasattr(command, "commands"):
                names.setdefault(option.name, set()).add(tuple(option.opts))
                for word in option.opts:
                    meanings.setdefault(word, set()).add(option.name)

    collect(get_command(app))
    assert len(names) > 80
    assert {name: words for name, words in names.items() if len(words) > 1} == {}
    meanings["--range"].discard("per")  # 'range' is a word of Python
    assert {word: found for word, found in meanings.items() if len(found) > 1} == {}
    assert names["out"] == {("-o", "--out")}
    assert names["settings"] == {("--set",)}
    assert names["hints"] == {("--hints",)}
    # What the same thing was called in some verbs.
    assert not {"--output", "--hint", "--args", "--kind", "--batch", "--runtimes"} & set(meanings)
