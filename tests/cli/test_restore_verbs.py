"""``restore``, ``pretrain``, ``degrade``, and what predict and evaluate make of a restorer."""

import json
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

import vitreous.tasks
from smooth_scene import pretrain_settings, restore_settings, write_smooth_scene
from vitreous.cli.main import app
from vitreous.cli.recipes import latest_unfinished
from vitreous.inference.restore import restored_scene
from vitreous.recipe import PretrainRecipe, RestoreRecipe, make_recipe
from vitreous.scenes import open_scene
from vitreous.scenes.cube import read_window
from vitreous.tasks import restore

VERBS = {
    "restore": (RestoreRecipe, restore_settings),
    "pretrain": (PretrainRecipe, pretrain_settings),
}


def run(*words):
    return CliRunner(env={"COLUMNS": "160", "NO_COLOR": "1"}).invoke(app, [*map(str, words)])


def said(*words):
    done = run(*words)
    assert done.exit_code == 0, done.output
    return done.output


def refused(*words):
    done = run(*words)
    assert done.exit_code == 2, done.output
    assert isinstance(done.exception, SystemExit)
    return " ".join(done.output.split())


def options(settings):
    """Return the words that give settings on the command line."""
    words = []
    for name, value in settings.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        elif isinstance(value, dict):
            for key, item in value.items():
                words += [f"--{option}", f"{key}={item}"]
        else:
            words += [f"--{option}", ",".join(value) if isinstance(value, list) else value]
    return words


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return write_smooth_scene(tmp_path_factory.mktemp("scene"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, place):
    folder = tmp_path_factory.mktemp("trained")
    settings = restore_settings(folder, scene=place, steps=2)
    return restore.train(make_recipe(settings, RestoreRecipe), show=False)


# -- recipes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_a_dry_run_is_a_recipe(verb, tmp_path, place):
    kind, settings = VERBS[verb]
    given = settings(tmp_path, scene=place)
    first = yaml.safe_load(said(verb, "--dry-run", *options(given)))
    assert first == make_recipe(given, kind).model_dump()
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(first))
    assert yaml.safe_load(said(verb, "--dry-run", "--recipe", tmp_path / "recipe.yaml")) == first
    changed = said(verb, "--dry-run", "--recipe", tmp_path / "recipe.yaml", "--steps", 7)
    assert yaml.safe_load(changed) == {**first, "steps": 7}
    assert yaml.safe_load(said(verb, "--dry-run")) == kind().model_dump()


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_every_setting(verb):
    text = said(verb, "--help")
    for name in VERBS[verb][0].model_fields:
        assert f"--{name.replace('_', '-')}"[:20] in text


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["restore", "--stepss", 3], "--steps"),
        (["restore", "--steps", 0], "steps: Input should be greater than or equal to 1"),
        (["restore", "--loss", "l2"], "'l1'"),
        (["restore", "--degradation-args", "sigma=3"], "degradation_args needs a degradation"),
        (["restore", "--model", "vit_tiny"], "does not restore"),
        (["restore", "--model", "low_rank", "--degradation", "gausian"], "gaussian"),
        (["restore", "some/run"], "--resume"),
        (["restore", "some/run", "--resume"], "some/run"),
        (["restore", "--recipe", "none.yaml"], "none.yaml"),
        (["restore", "--scene", "nowhere.tif", "--model", "low_rank"], "nowhere.tif"),
        (["pretrain", "--model", "vit_tiny"], "does not support pre-training"),
        (["pretrain", "--epochs", 3], "--epochs"),
        (["pretrain", "--resume", "some/run"], "some/run"),
        (["degrade", "nowhere.tif", "-o", "o.tif"], "nowhere.tif"),
        (
            ["degrade", "indian_pines", "-o", "o.png"],
            "does not have the suffix of a writable format",
        ),
        (["degrade", "indian_pines", "-o", "o.tif", "--degradation", "gausian"], "gaussian"),
        (["degrade", "indian_pines", "-o", "o.tif", "--set", "sigma"], "KEY=VALUE"),
        (["degrade", "indian_pines", "-o", "o.tif", "--set", "sigma=-1"], "negative"),
        (["degrade", "indian_pines", "-o", "o.tif", "--range", "bnd"], "'band'"),
    ],
)
def test_mistakes_are_told_in_words_and_leave_nothing(tmp_path, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    assert told in refused(*words)
    assert not list(tmp_path.iterdir())


# -- running ----------------------------------------------------------------------------------------------


def test_restore_prints_figures_and_products(tmp_path, place):
    words = options(restore_settings(tmp_path, scene=place, model="low_rank", product=True))
    text = said("restore", *words)
    for part in ("low_rank", "degraded", "PSNR dB", "960 test pixels in 6 bands", "restored.tif"):
        assert part in text
    folder = tmp_path / "runs" / "restore" / "run"
    psnr = json.loads((folder / "metrics.json").read_text())["systems"][0]["test"]["psnr"]
    assert f"{psnr:.2f}" in text
    config = json.loads((folder / "config.json").read_text())
    assert config["recipe"]["model"] == "low_rank"


def test_pretrain_prints_losses_and_what_comes_next(tmp_path, place):
    text = said("pretrain", *options(pretrain_settings(tmp_path, scene=place, steps=2)))
    folder = tmp_path / "runs" / "pretrain" / "run"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert f"train loss: {metrics['train_loss']:.4f}" in text
    assert f"val loss: {metrics['val_loss']:.4f}" in text
    assert f"vitreous train --model satmae_pp_test --init {folder}" in text.replace("\n", " ")
    assert "is a 'pretrain' run, which cannot be evaluated" in refused("evaluate", folder)
    assert "is a 'pretrain' run, which cannot be applied to a scene" in refused(
        "predict", folder, place
    )


def test_evaluate_measures_a_restorer_again(trained):
    metrics = json.loads((trained / "metrics.json").read_text())
    again = json.loads(said("evaluate", trained, "--json"))
    assert again["systems"][0]["test"] == metrics["systems"][0]["test"]
    assert f"{metrics['systems'][0]['test']['psnr']:.2f}" in said("evaluate", trained)


@pytest.mark.parametrize("name", ["o.tif", "o.npy"])
def test_predict_restores_a_scene(trained, place, tmp_path, name):
    text = said("predict", trained, place, "-o", tmp_path / name)
    assert "3,840 pixels" in text
    assert text.split()[-1].endswith(name)
    expected = restored_scene(restore.load_run(trained).restorer, open_scene(place))
    np.testing.assert_array_equal(open_scene(tmp_path / name).values, expected.values)


def test_predict_writes_to_restored_tif_where_nothing_is_said(
    trained, place, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    said("predict", trained, place)
    assert [path.name for path in tmp_path.iterdir()] == ["restored.tif"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--window", 64], "--window does not apply to"),
        (["--probabilities", "p.tif"], "--probabilities does not apply to"),
        (["--workers", 2], "--workers does not apply to"),
        (["--dask", "local"], "--dask does not apply to"),
        (["--runtime", "tflite"], "Unknown runtime: tflite"),
        (["-o", "o.png"], "suffix of a writable format"),
        (["--hints", "unit=radiance"], "trained on reflectance, the scene holds radiance"),
        (["--hints", "unt=radiance"], "unit"),
    ],
)
def test_predict_refuses_what_is_not_for_restorers(trained, place, tmp_path, monkeypatch, words, told):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert told in refused("predict", trained, place, *words)
    assert not list(tmp_path.iterdir())


def test_nothing_writes_over_the_scene_that_it_reads(trained, place, tmp_path):
    """Also where only the header would be the same: ENVI's pixels are nothing without it."""
    said("degrade", place, "-o", tmp_path / "envi.img")
    shutil.copy(place, tmp_path / "scene.npy")
    shutil.copy(place.replace(".npy", ".json"), tmp_path / "scene.json")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for scene, out in (
        ("scene.npy", "scene.npy"), ("envi.img", "envi.img"), ("envi.hdr", "envi.hdr"),
        ("envi.hdr", "envi.img"), ("envi.img", "envi.dat"),
    ):  # fmt: skip
        for words in (("degrade", tmp_path / scene), ("predict", trained, tmp_path / scene)):
            assert "would overwrite the scene" in refused(*words, "-o", tmp_path / out)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    said("degrade", tmp_path / "scene.npy", "-o", tmp_path / "scene.tif")  # beside it is fine


# -- degrade ----------------------------------------------------------------------------------------------


def test_degrade_writes_a_spoilt_scene_of_the_same_place(tmp_path, place):
    out, again, other = (tmp_path / name for name in ("a.tif", "b.npy", "c.tif"))
    assert said("degrade", place, "-o", out, "--set", "sigma=25").strip() == str(out)
    said("degrade", place, "-o", again, "--set", "sigma=25")
    said("degrade", place, "-o", other, "--set", "sigma=25", "--seed", 1)
    clean, spoilt = open_scene(place), open_scene(out)
    np.testing.assert_array_equal(spoilt.values, open_scene(again).values)
    assert not np.array_equal(spoilt.values, open_scene(other).values)
    np.testing.assert_array_equal(spoilt["wavelength"], clean["wavelength"])
    noise = (spoilt.values - clean.values).std((1, 2)) / np.ptp(clean.values, (1, 2))
    np.testing.assert_allclose(noise, 25 / 255, rtol=0.05)
    per_scene = tmp_path / "d.tif"
    said("degrade", place, "-o", per_scene, "--set", "sigma=25", "--range", "scene")
    levels = (open_scene(per_scene).values - clean.values).std((1, 2))
    np.testing.assert_allclose(levels, levels.mean(), rtol=0.05)


def test_degrade_makes_coarser_scenes_without_inventing_pixels(tmp_path, place):
    cube = open_scene(place).values.copy()
    cube[:, 9, 10] = np.nan
    holed = write_smooth_scene(tmp_path, cube)
    for kind, factor in (("gaussian", 1), ("downsample", 4)):
        out = tmp_path / f"{kind}.tif"
        said("degrade", holed, "-o", out, "--degradation", kind)
        scene = open_scene(out)
        assert scene.shape == (6, 40 // factor, 96 // factor)
        invalid = np.isnan(read_window(scene, slice(None), slice(None))[0])
        assert np.argwhere(invalid).tolist() == [[9 // factor, 10 // factor]]
    assert "coarser" in refused("degrade", write_smooth_scene(tmp_path / "tiny", cube[:, :3]), "-o", out, "--degradation", "downsample")  # fmt: skip


# -- going on ---------------------------------------------------------------------------------------------


def unfinished(folder, kind, **settings):
    folder.mkdir(parents=True)
    (folder / "state.safetensors").touch()
    recipe = kind(**settings).model_dump()
    (folder / "config.json").write_text(json.dumps({"recipe": recipe}))
    return folder


@pytest.mark.parametrize("verb", VERBS)
def test_resume_without_a_folder_takes_the_latest_run_of_its_own_task(verb, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kind, _ = VERBS[verb]
    other = next(name for name in VERBS if name != verb)
    unfinished(tmp_path / "runs" / other / "b", VERBS[other][0])
    assert "No interrupted run" in refused(verb, "--resume", "--dry-run")
    unfinished(tmp_path / "runs" / verb / "a", kind, steps=5)
    resolved = yaml.safe_load(said(verb, "--resume", "--dry-run"))
    assert (resolved["name"], resolved["steps"], resolved["runs"]) == ("a", 5, "runs")
    assert "other settings: steps" in refused(verb, "--resume", "--steps", 6)
    assert latest_unfinished(tmp_path / "runs" / verb).name == "a"


def test_resume_of_a_run_of_another_task_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = unfinished(tmp_path / "runs/pretrain/a", PretrainRecipe)
    assert "image_size" in refused("restore", folder, "--resume")


@pytest.mark.parametrize("verb", VERBS)
def test_stopping_says_how_to_go_on(verb, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def train(recipe, *, resume, command):
        unfinished(tmp_path / "runs" / verb / "a b", VERBS[verb][0])
        raise KeyboardInterrupt

    stand_in = SimpleNamespace(train=train)
    monkeypatch.setattr(vitreous.tasks, verb, stand_in, raising=False)
    monkeypatch.setitem(sys.modules, f"vitreous.tasks.{verb}", stand_in)
    done = run(verb, "--name", "a b")
    assert done.exit_code == 130
    assert f"vitreous {verb} --resume 'runs/{verb}/a b'" in done.output
