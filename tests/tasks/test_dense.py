"""Mode dense from settings to map: what it learns, what it never looks at, what comes back, what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from areas import labelled_area
from tiny_scene import tiny_cube, tiny_labels, tiny_recipe, tiny_settings, write_scene
from vitreous.checkpoints.tensors import load_tensors, save_tensors
from vitreous.data.blocks import TEST, TRAIN
from vitreous.data.roles import Split
from vitreous.data.tiles import TilePixels
from vitreous.errors import CheckpointError, ConfigError, ModelError
from vitreous.inference.dense_classifier import DenseClassifier
from vitreous.recipe import make_recipe
from vitreous.tasks import fit, loop
from vitreous.tasks.classify import evaluate, train
from vitreous.tasks.runs import load_run

DENSE = {"mode": "dense", "model": "convnext_test", "tile_size": 16, "patch_size": 3, "passes": 4}


def run(folder, *, resume=False, **changes):
    return train(tiny_recipe(folder, **{**DENSE, **changes}), resume=resume, show=False)


def weights(path):
    return load_tensors(path / "model.safetensors")[0]


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return write_scene(tmp_path_factory.mktemp("scene"))


@pytest.fixture(scope="module")
def base(tmp_path_factory, places):
    return run(tmp_path_factory.mktemp("base"), **places, epochs=8, map=True)


def test_it_learns_and_its_figures_are_those_of_its_map(base):
    metrics = json.loads((base / "metrics.json").read_text())
    (own,) = metrics["systems"]
    assert own["test"]["oa"] > 0.9
    assert own["kind"] == "model"
    assert metrics["split"]["patch_size"] == 3  # what is learned from, not what a tile spans
    again = evaluate(base)
    assert again["systems"][0]["test"] == own["test"]
    assert again["split"] == metrics["split"]


def test_it_comes_back_whole(base):
    loaded = load_run(base)
    assert isinstance(loaded.classifier, DenseClassifier)
    assert loaded.classifier.settings() == {
        "mode": "dense",
        "patch_size": 3,
        "tile_size": 16,
        "padding": "reflect",
        "decoder": "fpn",
        "width": 64,
    }
    assert equal(loaded.classifier.state_dict(), weights(base))


def test_only_what_is_near_a_training_pixel_is_learned_from(tmp_path, places, base, monkeypatch):
    split = Split.load(base / "split.npz")
    near = np.zeros(split.roles.shape, bool)
    for row, column in np.argwhere((split.roles > 0) & (split.roles < TEST)):
        near[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] = True
    assert 20 < (~near).sum() < near.size - 20
    assert (split.roles[~near] == TEST).any()
    monkeypatch.setattr("vitreous.tasks.labelled.LabelledScene.split", lambda *_: split)
    cube = tiny_cube(tiny_labels())
    few = {"epochs": 1, "val_fraction": 0.1}
    expected = weights(run(tmp_path, **places, **few, name="as it is"))
    cube[:, ~near] = np.random.default_rng(5).uniform(0, 1, (len(cube), (~near).sum()))
    far = write_scene(tmp_path / "far", cube=cube)
    assert equal(weights(run(tmp_path, **far, **few, name="far")), expected)
    row, column = np.argwhere(split.roles == TRAIN)[0]
    cube[0, row, column] += 0.01
    changed = write_scene(tmp_path / "changed", cube=cube)
    assert not equal(weights(run(tmp_path, **changed, **few, name="changed")), expected)


@pytest.mark.parametrize("decoder", ["fpn", "upernet"])
def test_interrupted_anywhere_the_rest_is_the_same(tmp_path, places, monkeypatch, decoder):
    monkeypatch.setattr(loop, "SAVE_SHARE", 0)
    settings = {**places, "epochs": 3, "passes": 1, "decoder": decoder}
    expected = weights(run(tmp_path, **settings, name="whole"))
    save = loop.StateKeeper.on_train_epoch_end

    def stop_after_saving(self, trainer, module):
        save(self, trainer, module)
        raise InterruptedError

    for _ in range(2):
        with monkeypatch.context() as patched, pytest.raises(InterruptedError):
            patched.setattr(loop.StateKeeper, "on_train_epoch_end", stop_after_saving)
            started = (tmp_path / "runs" / "classify" / "run").exists()
            run(tmp_path, **settings, resume=started)
    assert equal(weights(run(tmp_path, **settings, resume=True)), expected)


def test_an_epoch_has_as_many_steps_as_passes_over_the_tiles(tmp_path, places):
    def steps(passes):
        path = run(tmp_path, **places, epochs=1, passes=passes, flips=False, name=f"p{passes}")
        header, row = (line.split(",") for line in (path / "log.csv").read_text().splitlines())
        return int(dict(zip(header, row, strict=True))["step"])

    assert 0 < 2 * steps(1) <= steps(4)


@pytest.mark.parametrize("adapt", ["lora_only", "head_only"])
def test_a_run_is_where_another_starts(tmp_path, places, base, adapt):
    path = run(tmp_path, **places, init=str(base), adapt=adapt, epochs=1, model="convnext_test")
    before, after = weights(base), weights(path)
    moved = {n for n in after if n in before and not torch.equal(after[n], before[n])}
    assert moved == {"net.head.weight", "net.head.bias"}
    assert any("lora_" in name for name in after) == (adapt == "lora_only")
    assert load_run(path).classifier.num_classes == 3


def test_other_settings_than_those_of_the_start_are_refused(tmp_path, places, base):
    for change in ({"mode": "patch"}, {"tile_size": 20}, {"decoder": "upernet"}):
        with pytest.raises(ModelError, match="was trained with"):
            run(tmp_path, **{**places, **change}, init=str(base))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tile_size", 10**9),
        ("tile_size", 24),
        ("tile_size", -1),
        ("decoder", "none"),
        ("width", 32),
        ("width", 10**12),
        ("mode", "patch"),
    ],
)
def test_a_damaged_description_is_no_model(tmp_path, places, base, key, value):
    tensors, header = load_tensors(base / "model.safetensors")
    # The position of a ViT's tokens tells one size of tiles from another; a convolution does not care.
    if (key, value) == ("tile_size", 24):
        path = run(tmp_path, **places, model="vit_test", epochs=1)
        tensors, header = load_tensors(path / "model.safetensors")
    header["settings"][key] = value
    save_tensors(tmp_path / "model.safetensors", tensors, header)
    with pytest.raises((CheckpointError, ModelError)):
        load_run(tmp_path)


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match="tile_size must not be smaller than patch_size"):
        make_recipe({"mode": "dense", "patch_size": 33, "tile_size": 32})
    with pytest.raises(ConfigError, match="patch_norm needs mode 'patch'"):
        make_recipe({"mode": "dense", "patch_norm": True})
    with pytest.raises(ConfigError, match="decoder"):
        make_recipe({"mode": "dense", "decoder": "unet"})


def test_from_the_command_line(cli, tmp_path, places):
    settings = tiny_settings(tmp_path, **places, **{**DENSE, "decoder": "upernet", "epochs": 1})
    words = []
    for name, value in settings.items():
        option = name.replace("_", "-")
        flag = f"--{option}" if value else f"--no-{option}"
        words += [flag] if isinstance(value, bool) else [f"--{option}", value or ""]
    done = cli("train", *words)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "classify" / "run"
    mapped = cli("predict", folder, places["scene"], "-o", "map.tif", "--window", 12)
    assert mapped.returncode == 0, mapped.stderr
    assert (tmp_path / "map.tif").is_file()
    wrong = cli("train", *words, "--tile-size", 16, "--patch-size", 17)
    assert wrong.returncode == 2
    assert "tile_size must not be smaller" in wrong.stderr


@pytest.mark.parametrize("passes", [1, 3])
def test_automatic_epochs_count_steps_on_tiles(passes):
    pixels = np.arange(0, 60 * 60, 7)
    tiles = TilePixels(
        [labelled_area(torch.zeros(1, 62, 62), pixels, pixels % 3, 60)], margin=1, side=14
    )
    recipe = make_recipe({"mode": "dense", "passes": passes})
    epochs = fit.automatic_epochs(tiles, recipe)
    taken = epochs * passes * len(tiles.plan(recipe.batch_size))
    assert abs(taken / fit.STEPS - 1) < 0.05
