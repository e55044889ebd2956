"""The main job on a small scene: what it learns, what it writes, what it refuses, and what it never looks at."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import rasterio
import torch

from tiny_scene import (
    NANOMETRES,
    tiny_cube,
    tiny_labels,
    tiny_recipe,
    tiny_scene,
    write_scene,
)
from vitreous.checkpoints.tensors import load_tensors
from vitreous.data.blocks import TEST, TRAIN
from vitreous.data.roles import Split
from vitreous.data.splits import buffered_blocks
from vitreous.errors import ConfigError, ModelError, SplitError, VitreousError
from vitreous.methods.reduce import evit
from vitreous.scenes import geotiff, numpy_files
from vitreous.scenes.cube import make_labels, make_scene, unlabelled_code
from vitreous.tasks import classify, training
from vitreous.tasks.classify import class_weights, evaluate, train
from vitreous.tasks.runs import load_run


def run(folder, **changes):
    return train(tiny_recipe(folder, **changes), show=False)


def weights(path):
    return load_tensors(path / "model.safetensors")[0]


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return write_scene(tmp_path_factory.mktemp("scene"))


@pytest.fixture(scope="module")
def base(tmp_path_factory, places):
    """A finished run of a network with a shared front-end, everything written."""
    return run(
        tmp_path_factory.mktemp("base"),
        **places,
        model="lola_specvit_test",
        patch_size=5,
        epochs=8,
        split="random",
        map=True,
        report=True,
        baselines=["random_forest"],
        name="base",
    )


# -- products ---------------------------------------------------------------------------------------------


def test_it_learns_and_leaves_a_whole_run_folder(base):
    files = {path.name for path in base.iterdir()}
    assert {
        *("config.json", "model.safetensors", "split.npz", "metrics.json"),
        *("log.csv", "map.tif", "map.png", "report.html"),
    } <= files
    assert "state.safetensors" not in files
    metrics = json.loads((base / "metrics.json").read_text())
    assert metrics["systems"][0]["test"]["oa"] > 0.9
    assert metrics["systems"][1]["test"]["oa"] > 0.9


def test_metrics_have_their_schema(base):
    metrics = json.loads((base / "metrics.json").read_text())
    split = Split.load(base / "split.npz")
    assert metrics["schema"] == 1
    told = {"value", "name", "color", "fields", "testable", "why"}
    assert [set(entry) for entry in metrics["classes"]] == [told] * 3
    assert metrics["split"] == {
        "method": "random",
        "params": split.params,
        "seed": 0,
        "hash": split.hash,
        "optimistic": True,
        "leakage": split.leakage(11),
        "patch_size": 11,
        "counts": split.counts,
    }
    names = [(system["name"], system["kind"]) for system in metrics["systems"]]
    assert names == [("lola_specvit_test", "model"), ("random_forest", "estimator")]
    own, forest = metrics["systems"]
    assert own["trainable"] == own["parameters"] > 1000
    assert forest["parameters"] is None and forest["val"] is None
    for scores in (own["test"], own["val"], forest["test"]):
        assert len(scores["oa_ci"]) == len(scores["aa_ci"]) == len(scores["kappa_ci"]) == 2
        assert [row["value"] for row in scores["per_class"]] == [1, 2, 3]
    assert np.sum(own["test"]["confusion"]) == split.counts["test"]
    assert np.sum(own["val"]["confusion"]) == split.counts["val"]
    assert own["refine"] is None
    assert own["calibration"]["temperature"] > 0
    assert len(own["areas"]["classes"]) == 3
    assert own["areas"]["places"] == own["test"]["intervals"]["blocks"]


def test_the_log_has_one_row_per_epoch(base):
    lines = (base / "log.csv").read_text().splitlines()
    assert lines[0] == (
        "epoch,step,seconds,learning_rate,train_loss,train_oa,val_loss,val_oa,val_aa,val_kappa"
    )
    rows = np.array([line.split(",") for line in lines[1:]], dtype=float)
    np.testing.assert_array_equal(rows[:, 0], np.arange(1, 9))
    assert (np.diff(rows[:, 1]) > 0).all()
    assert rows[-1, 4] < rows[0, 4]
    assert np.isfinite(rows).all()


def test_evaluating_again_gives_the_same_scores(base):
    first = json.loads((base / "metrics.json").read_text())
    again = evaluate(base)
    assert again["systems"][0]["test"] == first["systems"][0]["test"]
    assert again["split"] == first["split"]


def test_resuming_a_finished_run_changes_no_weight_and_no_score(base):
    before, metrics = weights(base), json.loads((base / "metrics.json").read_text())
    train(load_run(base).recipe, resume=True, show=False)
    assert equal(weights(base), before)
    again = json.loads((base / "metrics.json").read_text())
    assert again["systems"][0]["test"] == metrics["systems"][0]["test"]
    assert again["systems"][0]["train_seconds"] == metrics["systems"][0]["train_seconds"]
    assert not (base / "state.safetensors").exists()


@pytest.mark.parametrize("name", ["svm", "random_forest"])
def test_an_estimator_is_a_run_like_any_other(tmp_path, places, name):
    folder = run(tmp_path, **places, model=name, map=True)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["systems"][0]["test"]["oa"] > 0.9
    assert {"config.json", "model.safetensors", "split.npz", "map.tif"} <= {
        path.name for path in folder.iterdir()
    }
    assert evaluate(folder)["systems"][0]["test"] == metrics["systems"][0]["test"]


# -- what training may look at ----------------------------------------------------------------------------


BLOCKS = {
    "split": "blocks",
    "block_size": 8,
    "train_fraction": 0.5,
    "val_fraction": 0.2,
    "model": "lola_specvit_test",
    "patch_size": 5,
}


@pytest.fixture(scope="module")
def blocks(tmp_path_factory):
    """A scene large enough for buffered blocks, and a run on it."""
    folder = tmp_path_factory.mktemp("blocks")
    labels = np.kron(tiny_labels(), np.ones((2, 2), dtype=np.uint8))
    settings = write_scene(folder, labels)
    return labels, settings, run(folder, **settings, **BLOCKS)


def test_what_stands_in_test_pixels_changes_no_weight(tmp_path, blocks, monkeypatch):
    """Neither their spectra (they are outside every patch, and no statistic sees them) nor their labels."""
    labels, _, trained = blocks
    split = Split.load(trained / "split.npz")
    assert split.counts["val"] > 0
    assert split.leakage(11) == 0
    test = split.roles == TEST
    assert test.sum() > 50
    cube = tiny_cube(labels)
    cube[:, test] = np.random.default_rng(5).uniform(0, 1, (len(cube), test.sum()))
    garbage = labels.copy()
    garbage[test] = labels[test] % 3 + 1
    # The same split for the changed labels: it is the training that is under test.
    monkeypatch.setattr("vitreous.tasks.labelled.LabelledScene.split", lambda *_: split)
    places = write_scene(tmp_path / "changed", garbage, cube=cube)
    changed = run(tmp_path, **places, **BLOCKS)
    assert equal(weights(changed), weights(trained))
    scores = [
        json.loads((f / "metrics.json").read_text())["systems"][0] for f in (changed, trained)
    ]
    assert scores[0]["test"]["oa"] != scores[1]["test"]["oa"]
    assert scores[0]["val"] == scores[1]["val"]


def test_a_training_pixel_does_change_the_weights(tmp_path, blocks):
    """The counterpart, without which the test above would prove nothing."""
    labels, _, trained = blocks
    cube = tiny_cube(labels)
    cube[:, Split.load(trained / "split.npz").roles == TRAIN] *= 1.01
    places = write_scene(tmp_path / "changed", labels, cube=cube)
    changed = run(tmp_path, **places, **BLOCKS)
    assert Split.load(changed / "split.npz").hash == Split.load(trained / "split.npz").hash
    assert not equal(weights(changed), weights(trained))


# -- labels and pixels ------------------------------------------------------------------------------------


def test_pixels_without_a_measurement_take_no_part(tmp_path):
    """Also where only one band is missing: its NaN would spread through the preprocessing to everything."""
    cube = tiny_cube(tiny_labels())
    cube[:, 2:9, 3:12] = np.nan
    cube[5, 15:18, 20:25] = np.nan
    folder = run(tmp_path, **write_scene(tmp_path / "holes", cube=cube), map=True, epochs=6)
    invalid = np.isnan(cube).any(axis=0)
    split = Split.load(folder / "split.npz")
    assert not split.roles[invalid].any()
    assert (split.roles[~invalid] > 0).all()
    assert all(torch.isfinite(tensor).all() for tensor in weights(folder).values())
    assert json.loads((folder / "metrics.json").read_text())["systems"][0]["test"]["oa"] > 0.8


def test_a_dark_band_is_no_missing_pixel(tmp_path):
    """Where nodata is 0 a pixel is missing if all its bands are 0; one band of zeros is darkness."""
    labels = tiny_labels()
    cube = tiny_cube(labels)
    cube[0, :, :14] = 0
    scene = make_scene(cube, wavelengths=NANOMETRES, unit="reflectance", nodata=0)
    numpy_files.write(scene, tmp_path / "scene.npy")
    np.save(tmp_path / "labels.npy", labels)
    places = {name: str(tmp_path / f"{name}.npy") for name in ("scene", "labels")}
    folder = run(tmp_path, **places, epochs=1)
    assert (Split.load(folder / "split.npz").roles > 0).all()


def test_a_scene_without_measurements_is_refused(tmp_path):
    cube = np.full_like(tiny_cube(tiny_labels()), np.nan)
    with pytest.raises(VitreousError, match="No training pixel has valid data"):
        run(tmp_path, **write_scene(tmp_path / "empty", cube=cube))
    assert not list((tmp_path / "runs" / "classify").iterdir())


def test_labels_of_another_size_are_refused(tmp_path, places):
    np.save(tmp_path / "small.npy", tiny_labels()[:-1])
    with pytest.raises(VitreousError, match="23") as caught:
        run(tmp_path, scene=places["scene"], labels=str(tmp_path / "small.npy"))
    assert caught.value.fix
    assert not (tmp_path / "runs").exists()


def test_a_class_with_one_pixel(tmp_path):
    labels = tiny_labels()
    labels[10, 10] = 4
    places = write_scene(tmp_path / "single", labels)
    with pytest.raises(SplitError, match="Only one pixel is labelled as"):
        run(tmp_path, **places)
    assert not list((tmp_path / "runs" / "classify").iterdir())
    large = np.kron(tiny_labels(), np.ones((2, 2), dtype=np.uint8))
    large[20, 20] = 4
    with pytest.warns(UserWarning, match="class 4"):
        folder = run(tmp_path, **write_scene(tmp_path / "large", large), **BLOCKS | {"epochs": 1})
    scores = json.loads((folder / "metrics.json").read_text())["systems"][0]["test"]
    assert len(scores["per_class"]) == 4
    assert scores["per_class"][3]["support"] <= 1


def test_missing_labels_are_said(tmp_path, places):
    with pytest.raises(ConfigError, match="No labels are given"):
        run(tmp_path, scene=places["scene"])


def test_other_labels_than_the_run_was_made_for(tmp_path, base, places):
    """Between training and measuring, files may have been exchanged."""
    import shutil

    folder = tmp_path / "runs" / "classify" / "base"
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text())
    config["recipe"] |= write_scene(tmp_path / "other", np.tile(tiny_labels(), (2, 1)))
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(VitreousError, match=r"split was made for \(24, 28\) pixels"):
        evaluate(folder)


def test_class_weights():
    classes = torch.tensor([0] * 8 + [1] * 2)
    assert class_weights(classes, 3, "none").tolist() == [1, 1, 1]
    for kind, ratio in (("sqrt", 2.0), ("balanced", 4.0)):
        found = class_weights(classes, 3, kind)
        assert found[1] / found[0] == pytest.approx(ratio)
        assert found[classes].mean() == pytest.approx(1)
        assert torch.isfinite(found).all()


# -- starting from another run ----------------------------------------------------------------------------


START = {"model": "lola_specvit_test", "patch_size": 5, "epochs": 2}


def is_adapter_or_head(name):
    return "lora_" in name or name.startswith("net.head.")


def test_adapters_alone_train(tmp_path, places, base):
    folder = run(tmp_path, **places, **START, init=str(base), adapt="lora_only")
    before, after = weights(base), weights(folder)
    assert before.keys() == after.keys()
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    statistics = {
        n for n in after if n.endswith(("running_mean", "running_var", "num_batches_tracked"))
    }
    assert all(is_adapter_or_head(name) for name in moved - statistics)
    assert any("lora_up" in name for name in moved)
    assert any(name.startswith("net.head.") for name in moved)
    row = json.loads((folder / "metrics.json").read_text())["systems"][0]
    assert row["trainable"] == sum(t.numel() for n, t in after.items() if is_adapter_or_head(n))
    assert row["trainable"] < row["parameters"]


def test_other_classes_get_a_new_head_on_the_old_trunk(tmp_path, base):
    labels = np.where(tiny_labels() == 3, 0, tiny_labels())
    labels[:, :14] += 2 * (labels[:, :14] > 0).astype(np.uint8)
    places = write_scene(tmp_path / "four", labels)
    folder = run(tmp_path, **places, **START, init=str(base), adapt="lora_only")
    before, after = weights(base), weights(folder)
    assert load_run(folder).classifier.num_classes == 4
    assert after["net.head.weight"].shape[0] == 4
    assert torch.equal(
        before["net.levels.0.0.attn.qkv.weight"], after["net.levels.0.0.attn.qkv.weight"]
    )
    assert torch.equal(before["preprocess.matrix"], after["preprocess.matrix"])


def test_added_adapters_survive_a_second_start(tmp_path, places):
    """A plain model gets adapters in one run; the next run, with other classes, starts from that one."""
    changed = {"model_args": {"depth": 1}}
    first = run(tmp_path, **places, name="first", adapt="lora_only", **changed)
    labels = tiny_labels(classes=2)
    second = run(tmp_path, **write_scene(tmp_path / "two", labels), name="second", init=str(first))
    for path, classes in ((first, 3), (second, 2)):
        loaded = load_run(path)
        assert [entry["name"] for entry in loaded.methods] == ["lora"]
        assert loaded.model_args == {"depth": 1}
        assert loaded.classifier.num_classes == classes
        before = weights(path)
        train(loaded.recipe, resume=True, show=False)
        assert equal(weights(path), before)


@pytest.fixture(scope="module")
def plain(tmp_path_factory, places):
    """A finished run of a plain ViT."""
    return run(tmp_path_factory.mktemp("plain"), **places, name="plain")


def test_adaptformer_alone_trains(tmp_path, places, plain):
    settings = {"adapt": "adaptformer_only", "adapt_args": {"bottleneck": 3}}
    folder = run(tmp_path, **places, **settings, init=str(plain))
    before, after = weights(plain), weights(folder)
    added = after.keys() - before.keys()
    assert added == {n for n in after if ".adapter." in n}
    assert after["net.blocks.0.adapter.up.weight"].shape == (16, 3)
    assert after["net.blocks.0.adapter.up.weight"].abs().max() > 0
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    assert moved == {"net.head.weight", "net.head.bias"}
    row = json.loads((folder / "metrics.json").read_text())["systems"][0]
    assert row["trainable"] == sum(after[n].numel() for n in added | moved)
    assert evaluate(folder)["systems"][0]["test"] == row["test"]


def test_adapters_are_trained_on_for_other_classes(tmp_path, places, plain):
    settings = {"adapt": "adaptformer_only", "adapt_args": {"bottleneck": 3, "head_norm": True}}
    first = run(tmp_path, **places, **settings, init=str(plain), name="first")
    two = write_scene(tmp_path / "two", tiny_labels(classes=2))
    start = {**two, "adapt": "adaptformer_only", "init": str(first)}
    for number, given in enumerate(({}, {"bottleneck": 3})):
        second = load_run(run(tmp_path, **start, adapt_args=given, name=f"second{number}"))
        assert second.methods == load_run(first).methods
        assert second.classifier.num_classes == 2
        assert any(name.endswith("head.0.running_mean") for name in weights(second.path))
    with pytest.raises(ModelError, match="already") as caught:
        run(tmp_path, **start, adapt_args={"bottleneck": 4})
    assert "--adapt-args" in caught.value.fix
    with pytest.raises(ModelError, match="already has 'adaptformer'"):
        run(tmp_path, **{**start, "adapt": "lora_only"})


def test_settings_of_a_method_are_checked_before_anything_is_done(tmp_path, places, base):
    with pytest.raises(ModelError, match="no setting 'bottelneck'") as caught:
        run(tmp_path, **places, adapt="adaptformer_only", adapt_args={"bottelneck": 3})
    assert "bottleneck" in caught.value.fix
    assert not (tmp_path / "runs").exists()
    for value in (0, "many", [1]):
        with pytest.raises(ModelError) as caught:
            run(tmp_path, **places, adapt="lora_only", adapt_args={"rank": value})
        assert caught.value.fix
    with pytest.raises(ModelError, match="already has 'lora' adapters"):  # its architecture's own
        run(tmp_path, **places, **START, adapt="lora_only", adapt_args={"rank": 2}, init=str(base))


@pytest.mark.parametrize("adapt", ["head_only", "lora_only", "adaptformer_only"])
def test_adapting_random_weights_is_said(tmp_path, places, plain, adapt, capsys):
    for init, warned in ((None, True), (str(plain), False)):
        recipe = tiny_recipe(tmp_path, **places, adapt=adapt, init=init, epochs=1)
        train(recipe, show=True)
        assert ("keep their random" in capsys.readouterr().err) == warned


def test_a_quantized_run_is_no_start(tmp_path, places, plain, monkeypatch):
    monkeypatch.setattr(training, "has", lambda net, stage: stage == "quantize")
    with pytest.raises(ModelError, match="is quantized") as caught:
        run(tmp_path, **places, init=str(plain))
    assert caught.value.fix


def test_a_model_file_with_adapters_is_a_start(tmp_path, places):
    """Its head is new, and gets what the old one had."""
    from vitreous.catalog.registry import create_model
    from vitreous.checkpoints.model_files import save_model
    from vitreous.methods._apply import apply

    net = create_model("vit_test", bands=4, num_classes=7, image_size=3)
    path = save_model(apply(net, "lora", rank=2).model, tmp_path / "lora.safetensors")
    folder = run(tmp_path, **places, init=str(path), adapt="lora_only")
    assert load_run(folder).methods[0]["settings"]["rank"] == 2
    assert "net.head.lora_up" in weights(folder)


def test_a_start_with_other_settings_is_refused(tmp_path, base, places):
    start = {**places, **START, "init": str(base)}
    for changes, message in (
        ({"patch_size": 7}, "was trained with"),
        ({"mode": "patch"}, "was trained with"),
        ({"padding": "zero"}, "was trained with"),
        ({"model": "vit_test"}, "trained 'lola_specvit_test', not 'vit_test'"),
        ({"model_args": {"rank": 2}}, "has the model arguments"),
    ):
        with pytest.raises(ModelError, match=message) as caught:
            run(tmp_path, **{**start, **changes})
        assert caught.value.fix
    other = make_scene(tiny_scene().values, wavelengths=NANOMETRES + 30, unit="reflectance")
    numpy_files.write(other, tmp_path / "other.npy")
    with pytest.raises(ModelError, match="different bands or another unit"):
        run(tmp_path, **{**start, "scene": str(tmp_path / "other.npy")})
    with pytest.raises(VitreousError, match=r"run folder .* does not exist"):
        run(tmp_path, **{**start, "init": str(tmp_path / "none")})


@pytest.mark.parametrize(("model", "size", "warned"), [("efficientvit_test", 4, True), ("efficientvit_test", 32, False), ("vit_test", 1, False)])  # fmt: skip
def test_batches_too_small_to_normalise_over_are_told(tmp_path, places, model, size, warned):
    few = {"train_per_class": 3, "patch_size": 9, "epochs": 1, "batch_size": size}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(tmp_path, **places, **few, model=model)
    assert any("uses batch normalization" in str(found.message) for found in caught) == warned


# -- trouble ----------------------------------------------------------------------------------------------


def test_what_a_kill_left_behind_is_swept(tmp_path, places, base):
    import shutil

    folder = tmp_path / "runs" / "classify" / "base"
    shutil.copytree(base, folder)
    (folder / ".state.abc123.safetensors").write_bytes(bytes(100))
    recipe = load_run(folder).recipe.model_copy(
        update={"runs": str(tmp_path / "runs"), "report": False, "baselines": [], "map": False}
    )
    train(recipe, resume=True, show=False)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_there_must_be_something_to_resume(tmp_path, places):
    with pytest.raises(ConfigError, match="No run to resume") as caught:
        train(tiny_recipe(tmp_path, **places), resume=True, show=False)
    assert caught.value.fix


def test_a_stop_between_training_and_its_products(tmp_path, places, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    settings = {**places, "adapt": "lora_only"}
    with monkeypatch.context() as patched:
        patched.setattr(classify, "_measure", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, **settings)
    folder = tmp_path / "runs" / "classify" / "run"
    before = weights(folder)
    assert not (folder / "metrics.json").exists()
    train(tiny_recipe(tmp_path, **settings), resume=True, show=False)
    assert equal(weights(folder), before)
    row = json.loads((folder / "metrics.json").read_text())["systems"][0]
    assert row["train_seconds"] > 0
    assert row["trainable"] < row["parameters"]
    assert not (folder / "state.safetensors").exists()


def test_a_network_trains_with_fewer_and_fewer_tokens(tmp_path, places):
    """EViT keeps all patches at first; its final rate counts in use, and comes back with the run."""
    changed = {"model": "vit_test", "patch_size": 9, "mode": "patch", "epochs": 4}
    path = run(tmp_path, **places, **changed, reduce="evit", reduce_args={"keep_rate": 0.5})
    loaded = load_run(path)
    assert [entry["name"] for entry in loaded.methods] == ["evit"]
    (reducer,) = evit.reducers(loaded.classifier)
    assert reducer.keep_rate == 0.5
    again = run(tmp_path, **places, **changed, name="again", init=str(path))
    assert load_run(again).methods == loaded.methods


def test_a_network_that_labels_every_pixel_trains_with_fewer_tokens(tmp_path, places):
    changed = {"model": "vit_test", "patch_size": 9, "mode": "dense", "tile_size": 18, "epochs": 2}
    path = run(tmp_path, **places, **changed, reduce="tome", reduce_args={"r": 6})
    loaded = load_run(path)
    assert [entry["name"] for entry in loaded.methods] == ["tome"]
    layers = [name for name, part in loaded.classifier.named_modules() if hasattr(part, "restore")]
    assert layers == ["net.trunk.blocks.0.reducer", "net.trunk.blocks.1.reducer"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"reduce": "lora"}, "does not reduce tokens"),
        ({"reduce": "evit", "reduce_args": {"keep": 0.5}}, "no setting 'keep'"),
        ({"reduce_args": {"keep_rate": 0.5}}, "reduce_args needs a method"),
        ({"reduce": "evit", "model": "convnext_test"}, "plain Vision Transformer"),
    ],
)
def test_token_reduction_that_cannot_be_is_refused(tmp_path, places, settings, words):
    with pytest.raises(VitreousError, match=words):
        run(tmp_path, **places, **{"patch_size": 9, "mode": "patch", **settings})


@pytest.mark.parametrize("codes", [[1000, 2000, 3000], [0, 10, 80], [111, 312, 70_000]])
def test_the_map_and_the_metrics_keep_the_users_codes(tmp_path, codes):
    labels = tiny_labels()
    places = write_scene(tmp_path, labels)
    none = unlabelled_code(codes)
    truth = make_labels(labels, class_codes=codes[: int(labels.max())])
    geotiff.write_labels(truth, tmp_path / "truth.tif")
    settings = {**places, "labels": str(tmp_path / "truth.tif")}
    folder = run(tmp_path, **settings, model="random_forest", map=True, report=True, baselines=[])
    with rasterio.open(folder / "map.tif") as file:
        mapped = file.read(1)
        assert file.nodata == none
    assert set(np.unique(mapped)) <= {none, *codes}
    assert (mapped == np.array([none, *codes])[labels])[labels > 0].mean() > 0.8
    metrics = json.loads((folder / "metrics.json").read_text())
    assert [entry["value"] for entry in metrics["classes"]] == codes
    test = metrics["systems"][0]["test"]
    assert [row["value"] for row in test["per_class"]] == codes and test["oa"] > 0.8
    assert load_run(folder).class_codes == codes


def test_a_band_without_measurements_takes_no_pixel(tmp_path):
    """Nothing but the nodata value tells that a band is empty; all others train."""
    labels = tiny_labels()
    cube = tiny_cube(labels)
    cube[3] = -9999
    places = write_scene(tmp_path, labels, cube=cube)
    settings = {**places, "hints": {"nodata": -9999}, "model": "random_forest"}
    with pytest.warns(UserWarning, match=r"1 of \d+ bands hold no data.*: 4"):
        folder = run(tmp_path, **settings)
    used = load_run(folder).classifier.contract.used
    assert len(used) == len(cube) - 1 and 3 not in used


@pytest.mark.parametrize(("lost", "left"), [([1], 2), ([1, 2], 1)])
def test_labels_without_a_measurement_are_counted(tmp_path, lost, left):
    labels = tiny_labels()
    cube = tiny_cube(labels)
    cube[:, np.isin(labels, lost)] = np.nan
    places = write_scene(tmp_path, labels, cube=cube)
    words = rf"labelled pixels have no valid data; {left} of 3 classes remain"
    if left == 1:
        with pytest.raises(VitreousError, match=words):
            run(tmp_path, **places, model="random_forest", split="random")
    else:
        with pytest.warns(UserWarning, match=words):
            run(tmp_path, **places, model="random_forest", split="random")


def test_pixels_without_a_measurement_take_no_part_in_the_division(tmp_path):
    """They are counted before the buffer drops some, and no role is short of pixels because of them."""
    labels = np.kron(np.arange(64).reshape(8, 8) % 3 + 1, np.ones((6, 6), dtype=int)).astype(
        np.uint8
    )
    cube = tiny_cube(labels)
    cube[:, :, 10:30] = np.nan
    places = write_scene(tmp_path, labels, cube=cube)
    with pytest.warns(UserWarning, match=r"^960 of 2,304 labelled pixels have no valid data"):
        folder = run(tmp_path, **places, model="svm_spatial", split="blocks", val_fraction=0.1)
    cut = labels.copy()
    cut[:, 10:30] = 0
    split = Split.load(folder / "split.npz")
    size = split.params["patch_size"]
    expected = buffered_blocks(cut, patch_size=size, train_fraction=0.3, val_fraction=0.1)
    np.testing.assert_array_equal(split.roles, expected.roles)
    assert min(split.counts.values()) > 0


def test_label_hints_reach_the_reader(tmp_path):
    labels = tiny_labels()
    places = write_scene(tmp_path, labels)
    np.savez(tmp_path / "two.npz", train=labels, other=labels * 0)
    settings = {**places, "labels": str(tmp_path / "two.npz"), "model": "random_forest"}
    with pytest.raises(VitreousError, match="variable=NAME"):
        run(tmp_path, **settings)
    run(tmp_path, **settings, label_hints={"variable": "train"})


def test_a_mask_hides_pixels_from_training(tmp_path):
    labels = tiny_labels()
    places = write_scene(tmp_path, labels)
    hidden = np.zeros((1, *labels.shape), "uint8")
    hidden[0, :, : labels.shape[1] // 2] = 1
    with rasterio.open(
        tmp_path / "clouds.tif", "w", driver="GTiff", count=1, dtype="uint8",
        height=labels.shape[0], width=labels.shape[1],
    ) as file:  # fmt: skip
        file.write(hidden)
    settings = {**places, "mask": str(tmp_path / "clouds.tif"), "hints": {"mask_values": 1}}
    with pytest.warns(UserWarning, match="labelled pixels are masked or have no valid data"):
        folder = run(tmp_path, **settings, model="random_forest", split="random", map=True)
    assert not Split.load(folder / "split.npz").roles[hidden[0] > 0].any()
    with rasterio.open(folder / "map.tif") as file:
        assert not file.read(1)[hidden[0] > 0].any()


def test_a_class_outside_the_scene_is_not_trained(tmp_path):
    """A network with an output for it would map it, although it was never shown a pixel of it."""
    geopandas, shapely = pytest.importorskip("geopandas"), pytest.importorskip("shapely")
    place = rasterio.Affine(10, 0, 500000, 0, -10, 4000000)
    cube = tiny_cube(tiny_labels())
    scene = make_scene(cube, wavelengths=NANOMETRES, crs="EPSG:32611", transform=place)
    geotiff.write(scene, tmp_path / "scene.tif")
    fields, codes = [], [10, 40, 80, 20]
    for row in range(0, 24, 6):
        for column in range(0, 28, 7):
            left, top = 500000 + 10 * column, 4000000 - 10 * row
            fields.append(shapely.box(left, top - 60, left + 70, top))
    values = [codes[tiny_labels()[6 * (k // 4), 7 * (k % 4)] - 1] for k in range(16)]
    far = shapely.box(0, 0, 10, 10)
    frame = geopandas.GeoDataFrame(
        {"code": [*values, 20]}, geometry=[*fields, far], crs="EPSG:32611"
    )
    frame.to_file(tmp_path / "fields.gpkg")
    with pytest.warns(UserWarning, match="no pixel of the scene is labelled as class 20"):
        done = run(
            tmp_path, scene=str(tmp_path / "scene.tif"), labels=str(tmp_path / "fields.gpkg")
        )
        evaluate(done)
    trained = load_run(done)
    assert trained.classifier.num_classes == 3
    metrics = json.loads((done / "metrics.json").read_text())
    assert [entry["value"] for entry in metrics["classes"]] == [10, 40, 80]


def test_what_was_said_of_the_files_is_not_said_again(tmp_path):
    """Labels on another grid are resampled, which the training says; opening the run again does not."""
    place = rasterio.Affine(10, 0, 500000, 0, -10, 4000000)
    scene = make_scene(tiny_cube(tiny_labels()), wavelengths=NANOMETRES, crs="EPSG:32611", transform=place)  # fmt: skip
    geotiff.write(scene, tmp_path / "scene.tif")
    finer = np.kron(tiny_labels(), np.ones((2, 2), int)).astype("u1")
    codes = make_scene(finer[None], crs="EPSG:32611", transform=place * rasterio.Affine.scale(0.5))
    geotiff.write(codes, tmp_path / "labels.tif")
    places = {"scene": str(tmp_path / "scene.tif"), "labels": str(tmp_path / "labels.tif")}
    with pytest.warns(UserWarning, match="is on a different grid"):
        folder = run(tmp_path, **places, model="random_forest", split="random")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        evaluate(folder)
