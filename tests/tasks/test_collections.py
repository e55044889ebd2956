"""Trainings on many scenes: whole scenes are held out, nothing is learned from them, and every product is there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from areas import labelled_area
from many_scenes import write_collection, write_pair, write_table
from tiny_scene import tiny_cube, tiny_labels, tiny_settings
from vitreous.catalog.registry import check_system, create_model
from vitreous.data.blocks import TEST, TRAIN, VAL
from vitreous.data.packed import PackedImage
from vitreous.data.provenance import Seen
from vitreous.data.regions import PixelRegions, ReducedScene, reduce_scene
from vitreous.data.roles import Splits
from vitreous.data.tiles import TilePixels
from vitreous.errors import ConfigError, ModelError, VitreousError
from vitreous.layers.bands import Bands
from vitreous.layers.preprocess import Preprocess
from vitreous.recipe import PretrainRecipe, RestoreRecipe, make_recipe
from vitreous.scenes import open_scene
from vitreous.tasks import classify, pretrain, restore, training
from vitreous.tasks.classify import evaluate
from vitreous.tasks.dispatch import predict_collection
from vitreous.tasks.division import draw_splits
from vitreous.tasks.labelled import open_data
from vitreous.tasks.runs import load_run

DENSE = {"mode": "dense", "model": "convnext_test", "tile_size": 16, "patch_size": 3}


def recipe_for(folder, scenes, **changes):
    own = {"runs": str(folder / "runs"), "name": "run", "scenes": scenes, "split": "scenes"}
    shorter = {"baselines": [], "report": False, "map": False}
    settings = tiny_settings(folder, **{**own, **shorter, **changes})
    return make_recipe(settings)


def metrics_at(run):
    return json.loads((run / "metrics.json").read_text())


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_collection(tmp_path_factory.mktemp("many"))


@pytest.fixture(scope="module")
def dense(tmp_path_factory, scenes):
    folder = tmp_path_factory.mktemp("dense")
    recipe = recipe_for(folder, scenes, **DENSE, map=True, report=True, epochs=6)
    return classify.train(recipe, show=False)


def test_whole_scenes_are_held_out_and_each_is_measured(dense, scenes):
    metrics = metrics_at(dense)
    assert metrics["split"]["method"] == "scenes"
    assert metrics["split"]["counts"] == {"train": 2 * 672, "val": 672, "test": 2 * 672}
    assert metrics["split"]["leakage"] == 0 and not metrics["split"]["optimistic"]
    (row,) = metrics["systems"]
    test = row["test"]
    assert test["miou"] > 0.5
    assert test["intervals"]["method"] == "scene bootstrap"
    assert [one["name"] for one in test["scenes"]] == ["scene 3", "scene 4"]
    confusion = np.array(test["confusion"])
    hits, support, mapped = np.diagonal(confusion), confusion.sum(1), confusion.sum(0)
    assert test["miou"] == pytest.approx(np.mean(hits / (support + mapped - hits)))
    assert test["oa"] == pytest.approx(np.mean([one["oa"] for one in test["scenes"]]))
    assert row["val"] is not None  # chose the epoch
    assert [one["test"] for one in metrics["scenes"]] == [0, 0, 0, 672, 672]
    again = evaluate(dense)
    assert again["systems"][0]["test"] == test
    assert again["split"] == metrics["split"]


def test_there_is_a_map_of_every_test_scene_and_a_report(dense):
    for k in (3, 4):
        with rasterio.open(dense / "maps" / f"scene {k}.tif") as product:
            assert product.crs.to_epsg() == 32632
            assert set(np.unique(product.read(1))) <= {1, 2, 3}
    assert len(list((dense / "maps").glob("*.tif"))) == 2
    page = (dense / "report.html").read_text()
    for words in ("Test scenes", "scene 3", "scene 4", "mIoU", "separate scenes"):
        assert words in page


def test_the_model_knows_every_scene_that_it_has_learned_from(dense):
    seen = load_run(dense).provenance
    assert all(isinstance(entry, Seen) for entry in seen)
    assert [entry.source for entry in seen] == [f"scene {k}.tif" for k in range(3)]


def test_a_product_per_scene_or_a_mosaic(dense, scenes, tmp_path):
    with pytest.raises(ConfigError, match="--mosaic"):
        predict_collection(dense, scenes, tmp_path / "out", probabilities=tmp_path / "p.tif")
    done = predict_collection(dense, scenes, tmp_path / "out")
    assert [one.map.name for one in done] == [f"scene {k}.tif" for k in range(5)]
    with pytest.raises(ConfigError, match="exists already, and 4 more"):
        predict_collection(dense, scenes, tmp_path / "out")
    (mosaic,) = predict_collection(dense, scenes, tmp_path / "all.tif", mosaic=True)
    with rasterio.open(mosaic.map) as product:
        whole = product.read(1)
    assert whole.shape == (24, 5 * 28)
    for k, one in enumerate(done):
        with rasterio.open(one.map) as product:
            np.testing.assert_array_equal(whole[:, 28 * k : 28 * (k + 1)], product.read(1))
    kept = rasterio.open(dense / "maps" / "scene 3.tif").read(1)
    np.testing.assert_array_equal(whole[:, 28 * 3 : 28 * 4], kept)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_the_mean_of_probabilities_decides_where_scenes_overlap(dense, tmp_path):
    labels = tiny_labels()
    pairs = [
        write_pair(tmp_path, "a", 0),
        write_pair(tmp_path, "b", 0, cube=tiny_cube(labels, seed=5), shift=(6, 7)),
    ]
    table = write_table(tmp_path / "t.csv", pairs)
    (mosaic,) = predict_collection(
        dense, table, tmp_path / "m.tif", mosaic=True, probabilities=tmp_path / "p.tif"
    )
    alone = []
    for pair in pairs:
        path = tmp_path / "one.tif"
        run = load_run(dense)
        from vitreous.inference.predict import predict_scene

        predict_scene(
            run.finished, open_scene(pair["scene"]), path, class_names=run.class_names,
            class_colors=run.class_colors, probabilities=tmp_path / "q.tif", png=False,
        )  # fmt: skip
        alone.append(rasterio.open(tmp_path / "q.tif").read())
    found = rasterio.open(tmp_path / "p.tif").read()
    assert found.shape == (3, 30, 35)
    np.testing.assert_allclose(found[:, :6, :28], alone[0][:, :6], atol=1e-6)
    both = (alone[0][:, 6:, 7:] + alone[1][:, :18, :21]) / 2
    np.testing.assert_allclose(found[:, 6:24, 7:28], both, atol=1e-6)
    assert np.isnan(found[:, 0, 30]).all()
    map_ = rasterio.open(mosaic.map).read(1)
    np.testing.assert_array_equal(map_[6:24, 7:28], both.argmax(0) + 1)
    assert map_[0, 30] == 0


def test_scenes_without_a_place_make_no_mosaic(dense, tmp_path):
    pair = write_pair(tmp_path, "nowhere", 0, crs=None, transform=None)
    with pytest.raises(VitreousError, match="georeference"):
        predict_collection(
            dense, write_table(tmp_path / "t.csv", [pair]), tmp_path / "m.tif", mosaic=True
        )
    assert not (tmp_path / "m.tif").exists()


def test_it_ends_the_same_when_windows_are_read_as_needed(scenes, tmp_path, monkeypatch):
    """Memory for all scenes, or for none: the same pixels in the same batches, so the same weights."""
    states = []
    for place, held in (("held", 2**31), ("read", 0)):
        monkeypatch.setattr(training, "HELD_BYTES", held)
        recipe = recipe_for(tmp_path / place, scenes, **DENSE, epochs=1)
        states.append(load_run(classify.train(recipe, show=False)).classifier.state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], rtol=0, atol=1e-6)


def test_patches_learn_from_a_share_of_each_class(scenes, tmp_path, monkeypatch):
    data = open_data(recipe_for(tmp_path, scenes))
    splits = draw_splits(recipe_for(tmp_path, scenes, train_per_class=20), data)
    counts = np.zeros((3, 4), int)
    for k, split in enumerate(splits):
        labels = data[k].labels.values
        for role in (TRAIN, VAL, TEST):
            counts[role - 1] += np.bincount(labels[split.roles == role], minlength=4)
    assert counts[0].tolist() == [0, 20, 20, 20]
    assert counts[1].tolist() == [0, 20, 20, 20]
    assert counts[2].sum() == 2 * 672
    run = classify.train(recipe_for(tmp_path, scenes, train_per_class=20, epochs=1), show=False)
    assert metrics_at(run)["split"]["counts"]["train"] == 60


def test_splits_of_many_scenes_come_back_from_their_file(scenes, tmp_path):
    recipe = recipe_for(tmp_path, scenes, train_per_class=20)
    splits = draw_splits(recipe, open_data(recipe))
    splits.save(tmp_path / "split.npz")
    again = Splits.load(tmp_path / "split.npz")
    assert again.hash == splits.hash and again.params == splits.params
    for own, other in zip(splits, again, strict=True):
        np.testing.assert_array_equal(own.roles, other.roles)


def test_scenes_without_roles_are_divided_and_shared_ground_is_told(tmp_path):
    pairs = [write_pair(tmp_path, f"s{k}", k) for k in range(5)]
    cube = tiny_cube(tiny_labels(), seed=50)
    twice = write_pair(tmp_path, "twice", 0, cube=cube)  # another date of s0
    table = write_table(tmp_path / "t.csv", [*pairs, twice])
    recipe = recipe_for(tmp_path, table, model="svm", train_fraction=0.5)
    roles = metrics_at(classify.train(recipe, show=False))["scenes"]
    own = [next(r for r in ("train", "val", "test") if one[r]) for one in roles]
    assert own[0] == own[5]
    assert set(own) == {"train", "val", "test"}
    given = [{**pair, "role": role} for pair, role in zip(pairs, ("train", "train", "val", "test", "test"), strict=True)]  # fmt: skip
    table = write_table(tmp_path / "u.csv", [*given, {**twice, "role": "test"}])
    recipe = recipe_for(tmp_path, table, model="svm", name="shared")
    split = metrics_at(classify.train(recipe, show=False))["split"]
    assert split["leakage"] == pytest.approx(1 / 3)
    assert split["optimistic"]


def test_blocks_divide_every_scene_by_itself(scenes, tmp_path):
    recipe = recipe_for(tmp_path, scenes, split="blocks", model="svm", block_size=6)
    metrics = metrics_at(classify.train(recipe, show=False))
    assert metrics["split"]["method"] == "blocks"
    assert all(one["train"] and one["test"] for one in metrics["scenes"])


def test_what_cannot_be_is_refused_in_words():
    for wrong, words in (
        ({"scenes": "a", "scene": "b"}, "not both"),
        ({"split": "scenes"}, "needs a collection"),
        ({"scenes": "a", "split": "fixed"}, "single scene"),
    ):
        with pytest.raises(ConfigError, match=words):
            make_recipe(wrong)
    assert make_recipe({"scenes": "a"}).split == "scenes"


def test_a_changed_scene_is_noticed(tmp_path):
    table = write_collection(tmp_path)
    run = classify.train(recipe_for(tmp_path, table, model="svm"), show=False)
    write_pair(tmp_path, "scene 1", 1, cube=tiny_cube(tiny_labels(), seed=77))
    with pytest.raises(ConfigError, match=r"scene of the run .* changed"):
        evaluate(run)


def test_the_command(cli, scenes, tmp_path):
    words = ["--scenes", scenes, "--model", "svm", "--baselines", "", "--name", "it"]
    done = cli("train", *words)
    assert done.returncode == 0, done.stderr
    assert "Each test scene" in done.stdout and "scene 4" in done.stdout
    run = "runs/classify/it"
    done = cli("predict", run, scenes, "-o", "maps")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "maps").glob("*.tif"))) == 5
    done = cli("predict", run, scenes)
    assert done.returncode == 2 and "-o FOLDER" in done.stderr
    (tmp_path / "bad.csv").write_text(
        "scene,labels,role\ngone.tif,x.tif,train\nlost.tif,y.tif,test\n"
    )
    done = cli("train", "--scenes", "bad.csv", "--name", "none")
    assert done.returncode == 2
    assert "gone.tif" in done.stderr and "lost.tif" in done.stderr
    assert not (tmp_path / "runs" / "classify" / "none").exists()


def test_the_commands_of_the_page(cli, tmp_path):
    """As they stand there, with a smaller network and fewer steps."""
    page = (Path(__file__).parents[2] / "docs" / "collections.md").read_text()
    write_collection(tmp_path)
    shorter = ["--epochs", "1", "--tile-size", "16", "--patch-size", "3", "--baselines", ""]
    commands = [
        line.split()[1:]
        for block in re.findall(r"```sh\n(.*?)```", page, re.S)
        for line in block.replace("\\\n", " ").strip().splitlines()
    ]
    assert {words[0] for words in commands} == {"train", "evaluate", "predict"}
    for words in commands:
        words = ["convnext_test" if word == "convnext_tiny" else word for word in words]
        done = cli(*words, *(shorter if words[0] == "train" else []), timeout=300)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "mosaic.tif").is_file()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("5 [")


# -- without labels -----------------------------------------------------------------------------------------


def test_pretraining_and_restoration_take_collections(scenes, tmp_path):
    shared = {"scenes": scenes, "runs": str(tmp_path), "name": "it", "report": False, "steps": 2}
    recipe = make_recipe({**shared, "model": "satmae_pp_test", "image_size": 6}, PretrainRecipe)
    run = pretrain.train(recipe, show=False)
    assert metrics_at(run)["val_loss"] is not None
    assert [entry.source for entry in pretrain.load_run(run).provenance] == ["scene 0.tif", "scene 1.tif"]  # fmt: skip
    own = {"model": "hsdt_test", "crop": 16, "baselines": ["low_rank"], "product": True, "report": True}  # fmt: skip
    run = restore.train(make_recipe({**shared, **own}, RestoreRecipe), show=False)
    rows = metrics_at(run)["systems"]
    for row in rows:
        each = [one["psnr"] for one in row["test"]["scenes"]]
        assert len(each) == 2
        assert row["test"]["psnr"] == pytest.approx(np.mean(each))
    assert len(list((run / "restored").glob("*.tif"))) == 2
    page = (run / "report.html").read_text()
    tested = [one["name"] for one in metrics_at(run)["scenes"] if one["role"] == "test"]
    assert len(tested) == 2 and all(name in page for name in tested)
    assert page.count("<h3>scene") == 2  # each with its pictures
    assert restore.evaluate(run)["systems"][0]["test"] == rows[0]["test"]


# -- batches from many scenes ---------------------------------------------------------------------------


@pytest.mark.parametrize("padding", ["reflect", "zero"])
def test_a_scene_that_is_read_as_needed_is_the_one_in_memory(padding):
    rng = np.random.default_rng(0)
    from vitreous.scenes.cube import make_scene

    scene = make_scene(rng.normal(size=(3, 20, 31)).astype(np.float32), unit="reflectance")
    wanted = rng.random((20, 31)) < 0.03
    preprocess = Preprocess.fit(rng.normal(size=(50, 3)), reduction="pca", components=2)
    bands, reach = np.arange(3), 4
    whole = reduce_scene(
        scene, bands, preprocess, np.flatnonzero(wanted), reach=reach, padding=padding
    )
    lazy = ReducedScene(lambda: scene, bands, preprocess, PackedImage(wanted), reach, padding)
    assert tuple(lazy.shape) == tuple(whole.shape)
    for rows, columns in ((slice(0, 28), slice(0, 39)), (slice(3, 9), slice(30, 39)), (slice(5, 6), slice(0, 2))):  # fmt: skip
        torch.testing.assert_close(lazy[:, rows, columns], whole[:, rows, columns])


def test_every_pixel_of_every_scene_once():
    cubes = [torch.full((1, 20, 24), float(k + 1)) for k in range(3)]
    pixels = [np.arange(0, 16 * 20, 7), np.arange(3), np.arange(16 * 20)]
    areas = [labelled_area(c, p, p % 3, 20) for c, p in zip(cubes, pixels, strict=True)]
    generator = torch.Generator().manual_seed(0)
    for regions in (
        PixelRegions(areas, half=1, margin=2, side=1),
        PixelRegions(areas, half=1, margin=2, side=8),
        TilePixels(areas, margin=2, side=8),
    ):
        batches = [regions.collate(g, generator) for g in regions.plan(32, generator)]
        assert sum(len(batch.classes) for batch in batches) == sum(map(len, pixels))
        values = torch.cat([batch.regions.flatten() for batch in batches])
        assert set(values.unique().tolist()) - {0.0} == {1.0, 2.0, 3.0}
        assert regions.class_counts(3).sum() == sum(map(len, pixels))


# -- wavelengths -----------------------------------------------------------------------------------------


def test_networks_are_told_their_bands(scenes, tmp_path, monkeypatch):
    known = Bands(4, (450.0, 550.0, 650.0, 850.0))
    plain = create_model("vit_test", bands=known, num_classes=2)
    assert plain.bands == 4 and plain.spectrum == known
    assert create_model("vit_test", bands=4, num_classes=2).spectrum is None
    from dataclasses import replace

    from vitreous.catalog import registry
    from vitreous.models import vit

    told = []

    def build(*, bands, **sizes):
        told.append(bands)
        return real(bands=bands.count, **sizes)

    real = vit.build
    build.stem_reach = 0
    entry = replace(registry.card("vit_test"), input="wavelengths")
    monkeypatch.setattr(registry, "_variant", lambda name, *_: entry)
    monkeypatch.setattr(registry, "card", lambda name, *_: entry)
    monkeypatch.setattr(training, "card", lambda name, *_: entry)
    monkeypatch.setattr(vit, "build", build)
    create_model("vit_test", bands=known, num_classes=2)
    assert told == [known]
    with pytest.raises(ModelError, match="wavelengths"):
        create_model("vit_test", bands=4, num_classes=2)
    check_system("vit_test", {}, image_size=9)
    recipe = recipe_for(tmp_path, scenes, epochs=1, train_per_class=10)
    run = classify.train(make_recipe({**recipe.model_dump(), "reduction": "auto"}), show=False)
    own = open_data(recipe).contract.spectrum
    assert told[-1] == own
    load_run(run)
    assert told[-1] == own


def test_defaults_follow_from_how_a_network_reads_bands():
    def found(model, bands, **changes):
        return training.reduction_of(make_recipe({"model": model, **changes}), bands)

    assert found("vit_patch", 200) == "pca"
    assert found("satmae_pp_tiny", 200) == "none"
    assert found("channelvit_patch", 12) == "none"
    assert found("channelvit_patch", 200) == "pca"  # attention over every band
    assert found("lola_specvit_tiny", 200) == "pca"  # as its authors do
    assert found("vit_patch", 200, reduction="none") == "none"
    assert found("satmae_pp_tiny", 200, reduction="pca") == "pca"
