"""Training: reproducible to the bit, whatever kills it; its schedules, freezing, stops and failures."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from run_folders import command, equal, history, stopped_after_saving, weights
from tiny_scene import tiny_recipe, tiny_settings, write_scene
from vitreous.checkpoints.tensors import load_state
from vitreous.data.roles import Split, Splits
from vitreous.errors import ConfigError, VitreousError
from vitreous.methods.adapt import lora
from vitreous.tasks import classify, fit, loop
from vitreous.tasks.classify import train
from vitreous.tasks.division import measured_contract
from vitreous.tasks.labelled import open_data
from vitreous.tasks.runs import load_run
from vitreous.tasks.schedules import cosine, cycle_progress, cyclic_rate
from vitreous.tasks.scoring import test_figures
from vitreous.tasks.training import fit_estimator

LOLA = {"model": "lola_specvit_test", "patch_size": 5}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return write_scene(tmp_path_factory.mktemp("scene"))


def run(folder, *, resume=False, **changes):
    return train(tiny_recipe(folder, **changes), resume=resume, show=False)


# -- reproducible -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["scene", "patch"])
def test_the_same_seed_gives_the_same_bits_and_another_does_not(tmp_path, places, mode):
    settings = {**places, **LOLA, "mode": mode, "gain": 0.1}
    first, second = (run(tmp_path, **settings, name=name) for name in ("first", "second"))
    assert equal(weights(first), weights(second))
    other = run(tmp_path, **settings, name="other", seed=1)
    assert not equal(weights(first), weights(other))


def test_killed_and_resumed_it_ends_with_the_same_bits(tmp_path, places):
    """SIGKILL at random moments, whatever is being computed or written then."""
    settings = tiny_settings(tmp_path, **places, **LOLA, epochs=10)
    expected = run(tmp_path, **{**settings, "name": "whole"})
    folder = tmp_path / "runs" / "classify" / "run"
    state = folder / "state.safetensors"
    chance = random.Random(7)
    words, kills = command("train", settings), 0
    while kills < 2:
        started = time.time()
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        while process.poll() is None and not (state.exists() and state.stat().st_mtime > started):
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.4))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        words = [sys.executable, "-m", "vitreous", "train", str(folder), "--resume"]
    assert kills >= 1
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert equal(weights(folder), weights(expected))
    same = ("epoch", "step", "learning_rate", "train_loss", "train_oa", "val_loss", "val_oa")
    assert [[row[name] for name in same] for row in history(folder)] == [
        [row[name] for name in same] for row in history(expected)
    ]
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]
    assert not state.exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"adapt": "pretrain_then_lora"},
        {**LOLA, "schedule": "cyclic", "cycle_epochs": 1, "val_fraction": 0.0},
    ],
)
def test_interrupted_anywhere_the_rest_is_the_same(
    tmp_path, places, monkeypatch, save_always, settings
):
    """In one process, at chosen epochs: before and after the base freezes, within and between cycles."""
    settings = {**places, **settings, "epochs": 4}
    expected = weights(run(tmp_path, **settings, name="whole"))
    for _ in range(3):
        with stopped_after_saving(monkeypatch):
            started = (tmp_path / "runs" / "classify" / "run").exists()
            run(tmp_path, **settings, resume=started)
    folder = run(tmp_path, **settings, resume=True)
    assert [row["epoch"] for row in history(folder)] == ["1", "2", "3", "4"]
    assert equal(weights(folder), expected)


def test_two_processes_train_one_run(tmp_path, places):
    """Few validation pixels: fewer batches than processes. A network as baseline trains afterwards, alone."""
    settings = tiny_settings(tmp_path, **places, **LOLA, devices=2, epochs=4, baselines="vit_test")
    done = subprocess.run(command("train", settings), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr
    runs = list((tmp_path / "runs" / "classify").iterdir())
    assert [path.name for path in runs] == ["run"]
    assert [row["epoch"] for row in history(runs[0])] == ["1", "2", "3", "4"]
    assert all(torch.isfinite(tensor).all() for tensor in weights(runs[0]).values())
    metrics = json.loads((runs[0] / "metrics.json").read_text())
    assert [system["name"] for system in metrics["systems"]] == ["lola_specvit_test", "vit_test"]
    assert metrics["systems"][0]["test"]["oa"] > 0.6
    window = np.full((8, 20, 20), 0.5, np.float32)
    assert np.isfinite(load_run(runs[0]).classifier.classify(window)).all()


SCRIPT = """
import json, os, sys
import vitreous

before = dict(os.environ)
recipe = vitreous.make_recipe(json.loads(sys.argv[1]))
names = [vitreous.train(recipe, show=False).name for _ in range(2)]
assert dict(os.environ) == before, os.environ.keys() ^ before.keys()
with open(sys.argv[2], "a") as said:
    said.write(" ".join(names))
"""


def test_a_script_runs_once_however_many_processes_train(tmp_path, places):
    """Not once per process, and it goes on after training, with the environment as it was."""
    settings = tiny_settings(tmp_path, **places, devices=2, epochs=1)
    (tmp_path / "script.py").write_text(SCRIPT)
    words = [sys.executable, tmp_path / "script.py", json.dumps(settings), tmp_path / "said.txt"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "said.txt").read_text() == "run run-2"


def test_a_further_process_that_fails_is_an_error_and_no_hang(tmp_path, places):
    code = """
import json, sys
from vitreous.tasks import processes
import vitreous

processes.PATIENCE = 1.0
sys.executable = "/bin/false"
vitreous.train(vitreous.make_recipe(json.loads(sys.argv[1])), show=False)
"""
    settings = tiny_settings(tmp_path, **places, devices=2, epochs=1)
    words = [sys.executable, "-c", code, json.dumps(settings)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert "further processes has failed" in done.stderr


def test_training_leaves_the_environment_as_it_was(tmp_path, places, monkeypatch):
    monkeypatch.setenv("VITREOUS_RUN_FOLDER", "of somebody else")
    before = dict(os.environ)
    run(tmp_path, **places, epochs=1)
    assert dict(os.environ) == before
    with pytest.raises(ConfigError, match="No run to resume"):
        run(tmp_path, **places, name="nowhere", resume=True)
    assert dict(os.environ) == before


def test_every_process_takes_as_many_steps(places):
    """Also where there are fewer batches than processes."""
    from areas import labelled_area
    from vitreous.data.regions import PixelRegions

    pixels = np.arange(40)
    area = labelled_area(torch.zeros(1, 12, 12), pixels, pixels % 2, 10)
    regions = PixelRegions([area], half=1, margin=1, side=1)
    for world in (1, 2, 3, 7):
        recipe = tiny_recipe(Path(), **places, batch_size=16)
        parts = [fit.EpochBatches(regions, recipe, 0, rank, world) for rank in range(world)]
        assert len({len(part) for part in parts}) == 1
        seen = torch.cat([batch.regions.classes for part in parts for batch in part])
        assert len(seen) >= 40
        drawn = sorted(
            int(m) for part in parts for group in part.plan for *_, ms in group for m in ms
        )
        assert set(drawn) == set(range(40))


def test_streams_differ_by_every_part_of_their_key():
    keys = [(seed, epoch, rank) for seed in range(6) for epoch in range(6) for rank in range(6)]
    assert len({loop.stream_seed(*key) for key in keys}) == len(keys)


# -- what moves, and how fast -----------------------------------------------------------------------------


def test_the_base_freezes_half_way(tmp_path, places, monkeypatch):
    states = []
    finish = fit.ClassifyTask.finish_epoch

    def record(task):
        states.append({n: t.detach().clone() for n, t in task.model.named_parameters()})
        finish(task)

    monkeypatch.setattr(fit.ClassifyTask, "finish_epoch", record)
    run(tmp_path, **places, adapt="pretrain_then_lora", epochs=4)

    def moved(before, after):
        return {name for name in before if not torch.equal(before[name], after[name])}

    base = {name for name in states[0] if "lora_" not in name}
    assert base <= moved(states[0], states[1])
    for before, after in ((states[1], states[2]), (states[2], states[3])):
        assert not moved(before, after) & base
        assert any("lora_up" in name for name in moved(before, after))


def test_freezing_half_way_is_for_one_process(tmp_path, places):
    with pytest.raises(ConfigError, match="pretrain_then_lora"):
        run(tmp_path, **places, adapt="pretrain_then_lora", devices=2)


def test_the_cyclic_schedule_moves_rates_and_adapters(tmp_path, places, monkeypatch):
    seen = []
    step = fit.ClassifyTask.step

    def record(task):
        rates = {group["adapter"]: group["lr"] for group in task.optimizer.param_groups}
        cycles = {layer.cycle for _, layer in lora.adapters(task.model)}
        seen.append((task.current_epoch, rates, cycles))
        step(task)

    monkeypatch.setattr(fit.ClassifyTask, "step", record)
    run(
        tmp_path,
        **places,
        **LOLA,
        schedule="cyclic",
        cycle_epochs=2,
        warmup_epochs=0,
        epochs=4,
        base_rate_factor=0.5,
        learning_rate=1e-3,
    )
    per_epoch = sum(epoch == 0 for epoch, *_ in seen)
    assert len(seen) == 4 * per_epoch
    for number, (_, rates, cycles) in enumerate(seen):
        now = number / per_epoch
        assert rates[True] == pytest.approx(cyclic_rate(now, 1e-3, first=2, growth=2, factor=2))
        assert rates[False] == pytest.approx(cyclic_rate(now, 5e-4, first=2, growth=2))
        factor = 0.5 + 0.5 * cosine(cycle_progress(now, 2, 2))
        assert list(cycles) == [pytest.approx(factor)]
    assert seen[0][1][True] == pytest.approx(2e-3, rel=1e-3)
    assert seen[2 * per_epoch][1][True] == pytest.approx(2e-3, rel=1e-3)  # the restart


def test_warm_up_starts_low_and_cosine_ends_low(tmp_path, places):
    folder = run(tmp_path, **places, epochs=8, warmup_epochs=3, schedule="cosine")
    rates = [float(row["learning_rate"]) for row in history(folder)]
    assert rates[0] < rates[1] < rates[2] <= 1e-2
    assert rates[3] > rates[4] > rates[5] > rates[6] > rates[7]
    assert rates[7] < 0.1 * max(rates)


def test_patience_counts_epochs_without_progress(tmp_path, places, monkeypatch, save_always):
    """A standstill is no progress; and a run that was killed as it stopped does not go on when resumed."""
    settings = {**places, "epochs": 30, "learning_rate": 1e-12, "patience": 3}

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(classify, "_keep", stop)
        run(tmp_path, **settings)
    folder = tmp_path / "runs" / "classify" / "run"
    assert len(history(folder)) == 4
    run(tmp_path, **settings, resume=True)
    assert len(history(folder)) == 4
    whole = run(tmp_path, **{**settings, "name": "whole"})
    assert len(history(whole)) == 4
    assert equal(weights(folder), weights(whole))


# -- what validation pixels are for -----------------------------------------------------------------------


def test_the_epoch_that_validates_best_is_kept_also_without_patience(tmp_path, places, monkeypatch):
    """Epoch 3 of 5 is made the best; its averaged weights are what the run keeps."""
    averages = []
    judge = fit.ClassifyTask.judge

    def record(task, row):
        row["val_oa"] = [0.2, 0.6, 0.8, 0.5, 0.7][task.current_epoch]
        averages.append({n: t.clone() for n, t in task.average.state_dict().items()})
        judge(task, row)

    monkeypatch.setattr(fit.ClassifyTask, "judge", record)
    folder = run(tmp_path, **places, **LOLA, epochs=5, report=True)
    kept = weights(folder)
    assert all(torch.equal(kept[name], averages[2][name]) for name in kept)
    assert not all(torch.equal(kept[name], averages[4][name]) for name in kept)
    config = json.loads((folder / "config.json").read_text())
    assert config["model"]["chosen"] == {"epoch": 3, "epochs": 5, "val_oa": 0.8}
    assert "Epoch 3 of 5 was chosen by its OA" in (folder / "report.html").read_text()
    assert len(history(folder)) == 5  # it trains to the end


def test_of_equal_epochs_the_later_one_is_kept(tmp_path, places):
    folder = run(tmp_path, **places, epochs=4, learning_rate=1e-12)
    config = json.loads((folder / "config.json").read_text())
    assert config["model"]["chosen"]["epoch"] == 4


@pytest.fixture
def third_of_five(monkeypatch):
    """Let epoch 3 validate best of the first training."""
    judge = fit.ClassifyTask.judge

    def decide(task, row):
        if "val_oa" in row:
            row["val_oa"] = [0.2, 0.6, 0.8, 0.5, 0.7][task.current_epoch]
        judge(task, row)

    monkeypatch.setattr(fit.ClassifyTask, "judge", decide)


REFIT = {**LOLA, "epochs": 5, "refit": True, "val_fraction": 0.3, "map": False}


def test_refitting_trains_on_all_labels_for_as_many_epochs(tmp_path, places, third_of_five):
    """It is the training of three epochs that has no validation pixels and the same training pixels."""
    folder = run(tmp_path, **places, **REFIT, report=True)
    assert [row["epoch"] for row in history(folder / "refit")] == ["1", "2", "3"]
    assert len(history(folder)) == 5
    split = Split.load(folder / "split.npz")
    recipe = tiny_recipe(tmp_path, **places, **{**REFIT, "epochs": 3, "refit": False})
    data = classify.open_labelled(recipe)
    plain, _ = classify.fit_and_score(recipe, data, split.without_validation(), tmp_path / "plain")
    assert equal(weights(folder), dict(plain.classifier.state_dict()))
    assert not list(folder.rglob("state.safetensors"))
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["split"]["hash"] == split.hash
    assert metrics["split"]["counts"]["val"] > 0
    assert metrics["split"]["leakage"] == split.without_validation().leakage(11)
    assert metrics["systems"][0]["val"] is None  # they were trained on
    assert "retrained on training and validation pixels" in (folder / "report.html").read_text()
    assert classify.evaluate(folder)["split"] == metrics["split"]


def test_refitting_is_resumed_to_the_same_bits(
    tmp_path, places, monkeypatch, save_always, third_of_five
):
    """Stopped after every epoch of both trainings."""
    expected = weights(run(tmp_path, **places, **REFIT, name="whole"))
    folder = tmp_path / "runs" / "classify" / "run"
    for _ in range(8):
        with stopped_after_saving(monkeypatch):
            run(tmp_path, **places, **REFIT, resume=folder.exists())
    assert len(history(folder / "refit")) == 3
    assert not (folder / "model.safetensors").exists()
    run(tmp_path, **places, **REFIT, resume=True)
    assert equal(weights(folder), expected)


@pytest.mark.parametrize("changes", [{"val_fraction": 0.0}, {"devices": 2}])
def test_a_refit_that_cannot_be_is_refused(tmp_path, places, changes):
    with pytest.raises(ConfigError, match="refit"):
        run(tmp_path, **places, **{**REFIT, **changes})


def test_estimators_have_nothing_to_choose_and_learn_from_validation_pixels_too(tmp_path, places):
    """As a baseline beside a network, and as a run of their own."""
    split = {"val_fraction": 0.4, "train_fraction": 0.1}
    beside = run(tmp_path, **places, **split, baselines=["svm"], epochs=1, name="beside")
    alone = run(tmp_path, **places, **split, model="svm", name="alone")
    recipe = tiny_recipe(tmp_path, **places, **split, model="svm")
    data = open_data(recipe)
    drawn = Splits.load(alone / "split.npz")
    contract = measured_contract(data, drawn)
    by_hand = fit_estimator("svm", recipe, data, drawn.without_validation(), contract)
    known = test_figures(by_hand.classifier, data, drawn)["test"]
    figures = [json.loads((path / "metrics.json").read_text())["systems"] for path in (beside, alone)]  # fmt: skip
    assert figures[0][1]["test"] == figures[1][0]["test"] == known
    assert figures[1][0]["val"] is None
    assert load_run(alone).classifier.state()[0].keys() == by_hand.classifier.state()[0].keys()


@pytest.mark.parametrize("kind", ["none", "balanced"])
def test_class_weights_reach_the_loss(tmp_path, places, monkeypatch, kind):
    from tiny_scene import tiny_labels

    labels = tiny_labels()
    labels[(labels == 3) & (np.indices(labels.shape)[1] % 5 > 0)] = 0
    rare = write_scene(tmp_path / "rare", labels)
    seen = []
    loss = fit.F.cross_entropy

    def record(*arguments, weight=None, **more):
        seen.append(weight)
        return loss(*arguments, weight=weight, **more)

    monkeypatch.setattr(fit.F, "cross_entropy", record)
    run(tmp_path, **rare, class_weights=kind, epochs=1)
    given = next(weight for weight in seen if weight is not None)
    assert (given.max() / given.min() > 3) == (kind == "balanced")


# -- options ----------------------------------------------------------------------------------------------


def test_tensorboard_gets_the_curves(tmp_path, places):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = run(tmp_path, **places, tensorboard=True, epochs=3)
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert {"train_loss", "val_oa", "learning_rate"} <= set(events.Tags()["scalars"])
    losses = [event.value for event in events.Scalars("train_loss")]
    assert losses == pytest.approx([float(row["train_loss"]) for row in history(folder)], rel=1e-5)


def test_half_precision_learns_and_keeps_whole_weights(tmp_path, places):
    folder = run(tmp_path, **places, **LOLA, precision="bf16", epochs=6)
    assert {t.dtype for n, t in weights(folder).items() if "num_batches" not in n} == {
        torch.float32
    }
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["systems"][0]["test"]["oa"] > 0.7


def test_without_validation_the_last_average_is_kept(tmp_path, places):
    folder = run(tmp_path, **places, **LOLA, val_fraction=0.0, epochs=6)
    assert {row["val_oa"] for row in history(folder)} == {""}
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["systems"][0]["val"] is None
    assert metrics["systems"][0]["test"]["oa"] > 0.7


# -- failures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("val_fraction", [0.0, 0.2])
def test_divergence_is_said_and_leaves_no_product(tmp_path, places, val_fraction):
    with pytest.raises(VitreousError, match="diverged") as caught:
        run(
            tmp_path,
            **places,
            learning_rate=1e3,
            warmup_epochs=0,
            epochs=30,
            val_fraction=val_fraction,
            map=True,
        )
    assert "--learning-rate" in caught.value.fix
    folder = tmp_path / "runs" / "classify" / "run"
    assert not {"model.safetensors", "map.tif", "metrics.json"} & {
        path.name for path in folder.iterdir()
    }
    if (folder / "state.safetensors").exists():
        state = load_state(folder / "state.safetensors")
        assert all(np.isfinite(row["train_loss"]) for row in state["vitreous"]["history"])


def test_a_full_disk_keeps_the_previous_state(tmp_path, places, monkeypatch, save_always):
    settings = {**places, "epochs": 4}
    expected = weights(run(tmp_path, **settings, name="whole"))
    replace = Path.replace

    def full(self, target):
        if Path(target).name == "state.safetensors" and Path(target).exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(self, target)

    with monkeypatch.context() as patched, pytest.raises(VitreousError, match="disk is full"):
        patched.setattr(Path, "replace", full)
        run(tmp_path, **settings)
    folder = tmp_path / "runs" / "classify" / "run"
    state = load_state(folder / "state.safetensors")
    assert len(state["vitreous"]["history"]) == 1
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]
    assert equal(weights(run(tmp_path, **settings, resume=True)), expected)


def test_a_damaged_state_is_said(tmp_path, places, monkeypatch, save_always):
    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(classify, "_keep", stop)
        run(tmp_path, **places)
    state = tmp_path / "runs" / "classify" / "run" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(VitreousError, match=r"state\.safetensors is damaged"):
        run(tmp_path, **places, resume=True)
