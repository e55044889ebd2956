"""Restorers: trained, measured, resumed to the bit, and refused in words before anything is left behind."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from run_folders import command, equal, history, stopped_after_saving, weights
from smooth_scene import restore_settings, smooth_cube, write_smooth_scene
from vitreous.checkpoints.tensors import load_tensors, save_tensors
from vitreous.errors import CheckpointError, ModelError, VitreousError
from vitreous.inference.restore import restored_scene
from vitreous.recipe import RestoreRecipe, make_recipe
from vitreous.scenes import open_scene
from vitreous.scenes.cube import read_window
from vitreous.tasks import restore, runs
from vitreous.tasks.restore import evaluate, load_run, train


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return write_smooth_scene(tmp_path_factory.mktemp("scene"))


def run(folder, *, resume=False, **changes):
    recipe = make_recipe(restore_settings(folder, **changes), RestoreRecipe)
    return train(recipe, resume=resume, show=False)


def metrics_of(path):
    return json.loads((path / "metrics.json").read_text())


@pytest.fixture(scope="module")
def trained(tmp_path_factory, place):
    """A run with all its products, of an easy task."""
    whole = {"steps": 120, "crop": 16, "batch_size": 4, "baselines": None, "val_fraction": 0.2}
    shown = {"product": True, "report": True}
    return run(tmp_path_factory.mktemp("trained"), scene=place, **whole, **shown)


# -- what it leaves ---------------------------------------------------------------------------------------


def test_the_run_folder_is_complete_and_nothing_else(trained):
    names = {path.name for path in trained.iterdir()}
    assert names == {
        "config.json", "log.csv", "metrics.json", "model.safetensors", "report.html", "restored.tif"
    }  # fmt: skip
    config = json.loads((trained / "config.json").read_text())
    assert (config["task"], config["recipe"]["steps"]) == ("restore", 120)
    assert make_recipe(config["recipe"], RestoreRecipe) == load_run(trained).recipe


def test_it_learns_and_beats_what_it_was_given(trained):
    rows = history(trained)
    assert [row["step"] for row in rows] == ["25", "50", "75", "100", "120"]
    losses = [float(row["train_loss"]) for row in rows]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] / 2
    assert float(rows[-1]["val_psnr"]) > float(rows[0]["val_psnr"]) + 3
    metrics = metrics_of(trained)
    names = [system["name"] for system in metrics["systems"]]
    assert names[:3] == ["hsdt_test", "degraded", "low_rank"]
    psnr = {system["name"]: system["test"]["psnr"] for system in metrics["systems"]}
    assert psnr["hsdt_test"] > psnr["degraded"] + 6
    assert psnr["low_rank"] > psnr["degraded"]
    # Noise of 50 of 255 on values of a range of 1 has 20 log10(255 / 50) dB.
    assert psnr["degraded"] == pytest.approx(14.15, abs=0.1)


def test_areas_share_no_pixel(trained):
    areas = metrics_of(trained)["areas"]
    assert areas == {"train": [0, 40, 0, 53], "val": [0, 40, 53, 72], "test": [0, 40, 72, 96]}


def test_it_is_measured_again_as_it_was(trained):
    again, before = evaluate(trained), metrics_of(trained)
    for one in (*again["systems"], *before["systems"]):
        one.pop("pixels_per_second"), one.pop("train_seconds")
    before["systems"] = before["systems"][:2]
    assert json.loads(json.dumps(again)) == before


def test_the_product_is_the_scene_restored_and_the_run_may_be_moved(trained, place, tmp_path):
    moved = shutil.copytree(trained, tmp_path / "moved")
    product = open_scene(moved / "restored.tif")
    found = restored_scene(load_run(moved).restorer, open_scene(place))
    np.testing.assert_array_equal(found.values, product.values)
    np.testing.assert_allclose(product["wavelength"], found["wavelength"])
    assert evaluate(moved)["systems"][0]["test"] == metrics_of(trained)["systems"][0]["test"]


def test_the_same_seed_gives_the_same_bits_and_another_does_not(tmp_path, place):
    first, second = (run(tmp_path, scene=place, name=name, steps=3) for name in "ab")
    assert equal(weights(first), weights(second))
    assert metrics_of(first)["systems"][0]["test"] == metrics_of(second)["systems"][0]["test"]
    assert not equal(weights(first), weights(run(tmp_path, scene=place, name="c", seed=1, steps=3)))


# -- stopped and resumed ----------------------------------------------------------------------------------


def test_stopped_after_any_epoch_it_ends_with_the_same_bits(
    tmp_path, place, monkeypatch, save_always
):
    """Of three epochs, the last one shorter; stopped after the last one, too, where nothing is left to train."""
    settings = {"scene": place, "steps": 60}
    expected = run(tmp_path, **settings, name="whole")
    folder = tmp_path / "runs" / "restore" / "run"
    for _ in range(3):
        with stopped_after_saving(monkeypatch):
            run(tmp_path, **settings, resume=folder.exists())
    assert len(history(folder)) == 3
    assert not (folder / "model.safetensors").exists()
    with pytest.raises(CheckpointError, match="has not finished") as caught:
        load_run(folder)
    assert "vitreous restore" in caught.value.fix
    run(tmp_path, **settings, resume=True)
    assert equal(weights(folder), weights(expected))
    same = ("epoch", "step", "learning_rate", "train_loss", "val_psnr")
    assert [[row[name] for name in same] for row in history(folder)] == [
        [row[name] for name in same] for row in history(expected)
    ]
    assert {path.name for path in folder.iterdir()} == {path.name for path in expected.iterdir()}


def test_stopped_at_its_products_it_trains_no_more(tmp_path, place, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(restore, "write_scene", stop)
        run(tmp_path, scene=place, product=True)
    folder = tmp_path / "runs" / "restore" / "run"
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert not (folder / "restored.tif").exists()
    run(tmp_path, scene=place, product=True, resume=True)
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert (folder / "restored.tif").is_file()
    assert metrics_of(folder)["systems"][0]["train_seconds"] > 0
    assert not (folder / "state.safetensors").exists()


def test_killed_and_resumed_it_ends_with_the_same_bits(tmp_path, place):
    """SIGKILL at a random moment, whatever is being computed or written then."""
    settings = restore_settings(tmp_path, scene=place, steps=100)
    expected = run(tmp_path, **{**settings, "name": "whole"})
    folder = tmp_path / "runs" / "restore" / "run"
    process = subprocess.Popen(command("restore", settings), stderr=subprocess.DEVNULL)
    while process.poll() is None and not (folder / "state.safetensors").exists():
        time.sleep(0.01)
    time.sleep(random.Random(7).uniform(0, 0.3))
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    words = [sys.executable, "-m", "vitreous", "restore", "--resume"]
    done = subprocess.run(
        [*words, "--runs", str(tmp_path / "runs")], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert equal(weights(folder), weights(expected))
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


# -- other ways to train ----------------------------------------------------------------------------------


def test_super_resolution_is_held_against_bicubic(tmp_path, place):
    settings = {"model": "essaformer_test", "steps": 2, "product": True, "baselines": None}
    folder = run(tmp_path, scene=place, **settings, report=True)
    metrics = metrics_of(folder)
    assert metrics["degradation"]["name"] == "downsample"
    assert metrics["scale"] == metrics["degradation"]["settings"]["scale"] == 2
    assert [system["name"] for system in metrics["systems"]] == ["essaformer_test", "bicubic"]
    assert metrics["systems"][1]["test"]["psnr"] > 30  # the scene is smooth
    assert open_scene(folder / "restored.tif").shape == (6, 80, 192)
    assert (folder / "report.html").is_file()
    again = evaluate(folder)["systems"]
    assert again[0]["test"] == metrics["systems"][0]["test"]
    assert again[1]["test"]["psnr"] > 30


@pytest.mark.parametrize("name", ["low_rank", "wavelet"])
def test_a_filter_needs_no_training(tmp_path, place, name):
    folder = run(tmp_path, scene=place, model=name, product=True, report=True)
    assert not (folder / "log.csv").exists()
    rows = metrics_of(folder)["systems"]
    assert rows[0]["test"]["psnr"] > rows[1]["test"]["psnr"] + 2
    assert load_run(folder).restorer.net.variant == name
    assert {path.name for path in folder.iterdir()} >= {"restored.tif", "report.html"}


def test_training_goes_on_from_another_run(trained, place, tmp_path):
    start = {"scene": place, "init": str(trained), "steps": 3}
    after = run(tmp_path, **start, learning_rate=1e-12, ema=0, seed=5)
    learned = weights(trained)
    for name, tensor in weights(after).items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(tensor, learned[name], atol=1e-6, rtol=0)
    moved = run(tmp_path, **start, name="moved")
    assert not equal(weights(moved), learned)
    assert equal(weights(trained), learned)  # what it began with is as it was
    first = float(history(moved)[0]["train_loss"])
    assert first < float(history(trained)[0]["train_loss"]) / 2


@pytest.mark.parametrize("change", ["shuffled", "more", "others"])
def test_training_goes_on_with_a_scene_of_other_bands(trained, place, tmp_path, change):
    """Bands that are the same come in the order of the run and with its ranges; others come with their own."""
    cube, centres = smooth_cube(), np.linspace(450, 900, 6)
    if change == "shuffled":
        order = [3, 0, 5, 1, 4, 2]
        cube, centres = cube[order], centres[order]
    elif change == "more":
        cube, centres = np.concatenate([cube, cube[:1] * 3]), [*centres, 2000]
    else:
        cube, centres = 1000 * smooth_cube(4), [1000, 1100, 1200, 1300]
    other = write_smooth_scene(tmp_path / "other", cube, wavelengths=centres)
    folder = run(tmp_path, scene=other, init=str(trained), steps=2, product=True)
    restorer = load_run(folder).restorer
    known = {"shuffled": 6, "more": 6, "others": 4}[change]
    assert open_scene(folder / "restored.tif").sizes["band"] == known
    kept = torch.equal(restorer.ranges.low, weights(trained)["ranges.low"])
    assert kept == (change != "others")
    rows = metrics_of(folder)["systems"]
    assert rows[0]["test"]["psnr"] > rows[1]["test"]["psnr"] + 6  # as good as it had been
    if change == "shuffled":
        scene = open_scene(place)
        one, two = (restored_scene(restorer, open_scene(path)) for path in (place, other))
        np.testing.assert_array_equal(one.values, two.values)
        np.testing.assert_array_equal(one["wavelength"], scene["wavelength"])


def test_invalid_pixels_are_neither_learned_from_nor_counted(tmp_path):
    cube = smooth_cube()
    cube[:, 10:20, ::3] = np.nan
    place = write_smooth_scene(tmp_path, cube)
    folder = run(tmp_path, scene=place, product=True, baselines=["low_rank"], steps=3)
    metrics = metrics_of(folder)
    valid = np.isfinite(read_window(open_scene(place), slice(0, 40), slice(72, 96))[0])
    assert metrics["test_pixels"] == valid.sum() < 40 * 24
    product = open_scene(folder / "restored.tif").values
    np.testing.assert_array_equal(np.isnan(product[0]), np.isnan(cube[0]))


def test_dark_bands_and_pixels_leave_figures_that_can_be_written(tmp_path):
    cube = smooth_cube()
    cube[2] = 0
    cube[:, 4:8, 80:84] = 0
    with pytest.warns(UserWarning, match="1 bands are constant"):
        folder = run(tmp_path, scene=write_smooth_scene(tmp_path, cube), steps=3)
    for system in metrics_of(folder)["systems"]:
        assert all(np.isfinite(system["test"][name]) for name in ("psnr", "ssim", "sam", "ergas"))


# -- refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "hsdt_tst"}, "hsdt_test"),
        ({"model": "hsdt"}, "several variants"),
        ({"model": "vit_test"}, "an architecture, which does not restore"),
        ({"model": "svm"}, "a classical classifier, which does not restore"),
        ({"model_args": {"chanels": 4}}, "no argument 'chanels'"),
        ({"model": "low_rank", "model_args": {"rank": 0}}, "rank"),
        ({"degradation": "gausian"}, "Did you mean 'gaussian'"),
        ({"degradation": "gaussian", "degradation_args": {"sigmas": 3}}, "sigma"),
        ({"degradation": "impulse", "degradation_args": {"shares": []}}, "at least 1"),
        ({"degradation": "blind", "degradation_args": {"sigmas": [float("nan")]}}, "negative"),
        ({"degradation": "downsample"}, "is 1, but"),
        ({"degradation": "downsample", "degradation_args": {"scale": 4.0}}, "one of"),
        ({"model": "essaformer_test", "degradation": "gaussian"}, "is 2, but"),
        ({"model": "essaformer_test", "model_args": {"scale": 5}}, "scale"),
        ({"baselines": ["bicubic"]}, "does not work at scale 1"),
        ({"model": "essaformer_test", "baselines": ["low_rank"]}, "does not work at scale 2"),
        ({"baselines": ["hsdt_small"]}, "needs training"),
        ({"baselines": ["svm"]}, "a classical classifier, which does not restore"),
        ({"baselines": ["lowrank"]}, "low_rank"),
        ({"crop": 41}, "Crops of 41 x 41 pixels do not fit"),
        ({"test_fraction": 0.8}, "Crops of 8 x 8 pixels do not fit|test_fraction and val_fraction"),
        ({"test_fraction": 0.1}, "test area would have 40 x 10 pixels"),
        ({"test_fraction": 0.5, "val_fraction": 0.45}, "leave nothing to train on"),
        ({"scene": "nowhere.tif"}, "does not exist"),
        ({"hints": {"nodta": 3}}, "nodata"),
        ({"init": "nowhere"}, "run folder nowhere does not exist"),
        ({"steps": 0}, "steps"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_told_and_leaves_no_folder(tmp_path, place, changes, said):
    with pytest.raises(VitreousError, match=said) as caught:
        run(tmp_path, **{"scene": place, **changes})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs" / "restore").exists()


def test_scenes_that_cannot_be_learned_from_leave_no_folder(tmp_path):
    cube = smooth_cube()
    flat, void, dark = np.ones_like(cube), np.full_like(cube, np.nan), cube.copy()
    dark[:, :, 60:] = np.nan
    for name, values, said in (
        ("flat", flat, "same spectrum"),
        ("void", void, "valid pixels"),
        ("dark", dark, "test area has almost no valid pixels"),
    ):
        place = write_smooth_scene(tmp_path / name, values)
        with pytest.raises(VitreousError, match=said):
            run(tmp_path, scene=place)
    assert not (tmp_path / "runs").exists()


def test_a_start_from_another_model_is_refused(trained, place, tmp_path):
    for changes in ({"model": "low_rank"}, {"model_args": {"channels": 8}}):
        with pytest.raises(ModelError, match="holds 'hsdt_test' with its own arguments"):
            run(tmp_path, scene=place, init=str(trained), **changes)
    assert not (tmp_path / "runs").exists()


def edit(**changes):
    return lambda header: header.update(changes)


@pytest.mark.parametrize(
    "change",
    [
        edit(schema=2),
        edit(kind=None, name=None),
        edit(name="vit_test"),
        edit(name="hsdt_small"),
        edit(name="hsdt_unknown"),
        edit(model_args={"channels": 8}),
        edit(model_args={"chanels": 8}),
        edit(model_args={"channels": 10**9}),
        edit(model_args=[1]),
        edit(settings={"tile_size": 0, "per": "band"}),
        edit(settings={"tile_size": 10**9, "per": "band"}),
        edit(settings={"tile_size": "64", "per": "band"}),
        edit(settings={"tile_size": 64, "per": "pixel"}),
        edit(settings={"tile_size": 64, "par": "band"}),
        edit(settings=None),
        edit(contract={"bands": 2, "used": [7], "wavelengths": None, "unit": "dn"}),
        edit(contract=None),
        lambda header: header.pop("contract"),
        lambda header: header.clear(),
    ],
)  # fmt: skip
def test_a_damaged_description_is_refused(trained, tmp_path, change):
    folder = shutil.copytree(trained, tmp_path / "run")
    tensors, header = load_tensors(folder / "model.safetensors")
    change(header)
    save_tensors(folder / "model.safetensors", tensors, header)
    with pytest.raises(VitreousError) as caught:
        load_run(folder)
    assert caught.value.problem
    assert caught.value.fix


@pytest.mark.parametrize("config", ["[]", "{}", '{"task": "restore"}', '{"task": "restore", "recipe": [1]}', '{"task": "restore", "recipe": {"step": 3}}', "{"])  # fmt: skip
def test_a_damaged_record_is_refused(trained, tmp_path, config):
    folder = shutil.copytree(trained, tmp_path / "run")
    (folder / "config.json").write_text(config)
    with pytest.raises(VitreousError):
        evaluate(folder)


def test_runs_of_other_tasks_are_told(trained, tmp_path):
    with pytest.raises(CheckpointError, match="'restore' run, not a 'classify' run") as caught:
        runs.load_run(trained)
    assert "vitreous train" in caught.value.fix
    other = shutil.copytree(trained, tmp_path / "run")
    (other / "config.json").write_text('{"task": "classify"}')
    with pytest.raises(CheckpointError, match="'classify' run, not a 'restore' run") as caught:
        load_run(other)
    assert "vitreous restore" in caught.value.fix
    with pytest.raises(CheckpointError, match=r"run folder .* does not exist"):
        load_run(Path(tmp_path) / "nowhere")
