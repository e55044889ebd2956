"""The Python API: every name is documented, has the command line's counterpart, and works on tiny runs."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import vitreous
from tiny_scene import tiny_scene, tiny_settings, write_scene
from vitreous.catalog.tasks import TASKS
from vitreous.errors import CheckpointError, ConfigError

REFERENCE = Path(__file__).parents[1] / "docs" / "api"
NAMES = [name for name in vitreous.__all__ if name != "__version__"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("api")


@pytest.fixture(scope="module")
def settings(place):
    return {**tiny_settings(place), **write_scene(place)}


@pytest.fixture(scope="module")
def classified(settings) -> Path:
    return vitreous.train(vitreous.make_recipe({**settings, "epochs": 1}), show=False)


@pytest.fixture(scope="module")
def restored(settings) -> Path:
    own = {key: settings[key] for key in ("scene", "runs", "report")}
    recipe = vitreous.make_recipe(
        {**own, "model": "low_rank", "baselines": [], "crop": 8, "product": False, "name": "run",
         "test_fraction": 0.6, "val_fraction": 0.0},
        vitreous.RestoreRecipe,
    )  # fmt: skip
    return vitreous.restore(recipe, show=False)


@pytest.fixture(scope="module")
def pretrained(settings) -> Path:
    own = {key: settings[key] for key in ("scene", "runs", "report")}
    recipe = vitreous.make_recipe(
        {**own, "model": "satmae_pp_test", "steps": 1, "batch_size": 2, "image_size": 6,
         "components": 4, "val_fraction": 0.0, "name": "run"},
        vitreous.PretrainRecipe,
    )  # fmt: skip
    return vitreous.pretrain(recipe, show=False)


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_documented(name):
    found = getattr(vitreous, name)
    text = inspect.getdoc(found) or ""
    assert text.partition("\n")[0].rstrip().endswith((".", ":"))
    if inspect.isfunction(found):
        parameters = list(inspect.signature(found).parameters.values())
        assert not parameters or "Args:" in text
        assert all(f"{p.name}: " in text for p in parameters), name


def test_every_name_is_in_the_reference():
    pages = "\n".join(page.read_text(encoding="utf-8") for page in REFERENCE.glob("*.md"))
    entries = re.findall(
        r"^::: ([\w.]+)\n    options:\n      heading: ([\w.]+)$", pages, re.MULTILINE
    )
    assert len(entries) == pages.count(":::")
    for path, heading in entries:
        home, _, name = path.rpartition(".")
        try:
            found = getattr(importlib.import_module(home), name)
        except AttributeError:
            found = importlib.import_module(path)
        if heading.partition(".")[2] in NAMES:
            assert getattr(vitreous, heading.partition(".")[2]) is found, heading
        else:
            assert heading == path
    shown = {heading.partition(".")[2] for _, heading in entries}
    assert shown & set(NAMES) == set(NAMES) - {
        "VitreousError",
        "Card",
    }  # these stand with their modules


def test_every_verb_that_trains_is_a_function():
    for task in TASKS.values():
        assert getattr(vitreous, task.verb).__module__ == task.module


@pytest.mark.parametrize("run", ["classified", "restored", "pretrained"])
def test_a_run_of_any_task_is_loaded_by_one_function(run, request):
    path = request.getfixturevalue(run)
    loaded = vitreous.load_run(path)
    assert loaded.path == path
    assert loaded.recipe.name == "run"
    assert len(loaded.provenance) == 1
    assert type(loaded).__module__.startswith("vitreous.tasks.")


def test_classified(classified, place):
    again = vitreous.evaluate(classified)
    assert 0 <= again["systems"][0]["test"]["oa"] <= 1
    done = vitreous.predict(classified, place / "scene.npy", place / "map.tif", window=8)
    assert done.pixels == 24 * 28
    assert all(path.is_file() for path in done.paths)
    loaded = vitreous.load_run(classified)
    kinds = {"class_names": loaded.class_names, "class_colors": loaded.class_colors}
    scene = vitreous.open_scene(place / "scene.npy")
    once_more = vitreous.predict_scene(loaded.classifier, scene, place / "again.tif", **kinds)
    assert (place / "map.tif").read_bytes() == (place / "again.tif").read_bytes()
    assert once_more.pixels == done.pixels


def test_compressed_exported_and_measured(classified, place):
    small = vitreous.compress(classified, "ptq_minmax", max_drop=100, show=False)
    assert vitreous.load_run(small.path).methods[0]["name"] == "ptq_minmax"
    written = vitreous.export_run(classified, "torch", place / "exported")
    assert vitreous.load_exported(written.folder, trust=True).class_names
    found = vitreous.bench_run(classified, repeats=3, pixels=20, threads=1)
    assert found.pixels_per_second > 0


def test_restored(restored, place):
    assert vitreous.evaluate(restored)["systems"][0]["test"]["psnr"] > 0
    done = vitreous.predict(restored, tiny_scene(), place / "restored.tif")
    assert done.pixels == 24 * 28
    assert done.paths == [place / "restored.tif"]
    lazy = vitreous.restored_scene(vitreous.load_run(restored).restorer, tiny_scene())
    assert lazy.shape == (8, 24, 28)


def test_what_a_task_does_not_do_is_refused_in_words(restored, pretrained, place):
    with pytest.raises(ConfigError, match="--window does not apply"):
        vitreous.predict(restored, tiny_scene(), place / "no.tif", window=3)
    with pytest.raises(ConfigError, match="cannot be evaluated") as caught:
        vitreous.evaluate(pretrained)
    assert "vitreous train" in caught.value.fix
    with pytest.raises(ConfigError, match="cannot be applied to a scene"):
        vitreous.predict(pretrained, tiny_scene(), place / "no.tif")
    for call in (vitreous.load_run, vitreous.evaluate):
        with pytest.raises(CheckpointError, match="does not exist"):
            call(place / "nowhere")
        with pytest.raises(CheckpointError, match="not a run folder"):
            call(place)
    assert not (place / "no.tif").exists()


def test_models_methods_and_files(place):
    assert "vit_test" in vitreous.list_models("vit*", kind="model")
    assert vitreous.model_card("vit_test").slug == "vit"
    net = vitreous.create_model("vit_test", bands=3, num_classes=2, image_size=6)
    changed, report = vitreous.apply(net, "lora")
    assert report.rows and changed is not net
    vitreous.save_model(net, place / "net.safetensors", bands=vitreous.Bands(3))
    back, report = vitreous.load_model(place / "net.safetensors", num_classes=4)
    assert back(torch.zeros(1, 3, 6, 6)).shape == (1, 4)
    assert report.reset
    torch.save(net.state_dict(), place / "net.pth")
    again, _ = vitreous.convert(place / "net.pth", "vit_test", image_size=6)
    assert torch.equal(again(torch.ones(1, 3, 6, 6)), net.eval()(torch.ones(1, 3, 6, 6)))
    assert vitreous.count_cost(net, 3, 6).macs > 0
    weights, how, _ = vitreous.adapt_bands(
        torch.ones(2, 3, 1, 1), vitreous.Bands(3), vitreous.Bands(5)
    )
    assert weights.shape == (2, 5, 1, 1) and how
    found = vitreous.bench_model(
        "vit_test", image_size=8, batch_size=1, repeats=3, num_classes=2, threads=1
    )
    assert found.images_per_second > 0


def test_scenes(place):
    vitreous.write_scene(tiny_scene(), place / "written.npy")
    scene = vitreous.open_scene(place / "written.npy")
    np.testing.assert_array_equal(scene.values, tiny_scene().values)
    noisy = vitreous.degraded_scene(scene, vitreous.degradation("gaussian", {"sigma": 5}))
    assert noisy.shape == scene.shape and not np.array_equal(noisy.values, scene.values)
    np.save(place / "codes.npy", np.ones((24, 28), np.uint8))
    assert vitreous.open_labels(place / "codes.npy", scene).shape == (24, 28)
