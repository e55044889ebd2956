"""``vitreous convert``, and training from what it wrote."""

import json

import pytest
import torch
from typer.testing import CliRunner

from fixtures_reader import load_fixture
from smooth_scene import restore_settings, write_smooth_scene
from tiny_scene import tiny_recipe, write_scene
from vitreous.checkpoints.model_files import load_model
from vitreous.cli.main import app
from vitreous.errors import ModelError
from vitreous.recipe import Recipe, RestoreRecipe, make_recipe
from vitreous.tasks import restore
from vitreous.tasks.classify import train
from vitreous.tasks.runs import load_run
from vitreous.testing import make


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A plain ViT in the layout of timm, trained on three bands."""
    monkeypatch.chdir(tmp_path)
    names = {"patch_embed.": "patch_embed.proj.", "class_token": "cls_token"}
    content = {}
    for key, value in make("vit_test", bands=3).state_dict().items():
        old = next((start for start in names if key.startswith(start)), "")
        content[names.get(old, "") + key.removeprefix(old)] = value
    torch.save({"model": content}, "w.pth")
    return content


def _convert(*words):
    return CliRunner().invoke(app, ["convert", *map(str, words)], env={"COLUMNS": "160"})


def test_a_file_is_converted_and_every_tensor_told(published, tmp_path):
    done = _convert(
        "w.pth", "--model", "vit_test", "--image-size", 15, "--wavelengths", "665,560,490", "--json"
    )
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert len(report["used"]) == len(published)
    assert report["missing"] == report["left_over"] == report["misshapen"] == []
    model, loaded = load_model(report["out"])
    assert loaded.bands.wavelengths == (665.0, 560.0, 490.0)
    assert torch.equal(model.patch_embed.weight, published["patch_embed.proj.weight"])


def test_the_table_says_what_was_done(published):
    done = _convert(
        "w.pth", "--model", "vit_test", "--image-size", 33, "--bands", 5, "--num-classes", 2,
        "-o", "o.safetensors",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert lines[0] == "vit_test: 5 bands, 2 classes, images of 33 x 33"
    assert lines[1] == "found: timm's ViT, 5,445 parameters, 5 classes"
    for told in ("bands adapted by 'repeat' │ 1 │ patch_embed.weight", "resized │ 1 │ pos_embed",
                 "new head │ 2 │ head.weight, head.bias", "unexpected │ 0"):  # fmt: skip
        assert any(told in line for line in lines), told
    assert lines[-1] == "o.safetensors"


def test_what_does_not_fit_ends_with_2_and_writes_nothing(published, cli, tmp_path):
    done = cli("convert", "w.pth", "--model", "vit_tiny", timeout=250)
    assert done.returncode == 2
    assert "do not fit vit_tiny" in done.stderr
    assert "120 missing" in done.stderr
    assert "with a different shape (class_token (1, 1, 16) instead of (1, 1, 192)" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["w.pth"]


@pytest.mark.parametrize(
    "words, said",
    [
        (["--model", "vit_tst"], "Did you mean"),
        (["--model", "vit_test", "--wavelengths", "red"], "not a list of numbers"),
        (["--model", "vit_test", "--wavelengths", "0.665,0.56,0.49"], "looks like micrometres"),
        (["--model", "vit_test", "--wavelengths", "665,560"], "take 3 bands, but 2 are described"),
        (["--model", "vit_test", "--bands", "5", "--adapt-bands", "average"], "cannot be adapted"),
        (["--model", "vit_test", "--model-args", "dept=3"], "no argument 'dept'"),
        (["--model", "vit_test", "-o", "w.pth"], "is the input file"),
        (["--model", "vit_test", "-o", "o.pth"], "Use the suffix .safetensors"),
        (["--model", "svm"], "not a network"),
    ],
)
def test_mistakes_are_told_in_words(published, tmp_path, words, said):
    done = _convert("w.pth", *words)
    assert done.exit_code == 2, done.output
    assert said in " ".join(done.output.split())
    assert [path.name for path in tmp_path.iterdir()] == ["w.pth"]


def test_training_starts_from_a_model_file(published, tmp_path, capsys):
    assert _convert("w.pth", "--model", "vit_test", "--image-size", 15).exit_code == 0
    recipe = tiny_recipe(
        tmp_path, **write_scene(tmp_path), patch_size=9, epochs=1, init="vit_test.safetensors",
        adapt="head_only", ema=0,
    )  # fmt: skip
    run = load_run(train(recipe))
    said = " ".join(capsys.readouterr().err.split())
    assert "starting from" in said
    assert "bands adapted by 'repeat', 1 resized, new head with 3 classes" in said
    net = run.classifier.net
    assert torch.equal(net.blocks[1].mlp.fc1.weight, published["blocks.1.mlp.fc1.weight"])
    first = published["patch_embed.proj.weight"]
    torch.testing.assert_close(net.patch_embed.weight.sum(1), first.sum(1))
    assert net.patch_embed.weight.shape[1] == recipe.components


def test_training_refuses_a_file_of_another_model(published, tmp_path):
    assert _convert("w.pth", "--model", "vit_test", "--image-size", 15).exit_code == 0
    places = write_scene(tmp_path)
    for changes, said in (
        ({"model": "vit_patch"}, "holds 'vit_test', not 'vit_patch'"),
        ({"model_args": {"depth": 1}}, "has the model arguments {}"),
    ):
        recipe = tiny_recipe(tmp_path, **places, init="vit_test.safetensors", **changes)
        with pytest.raises(ModelError, match=said):
            train(recipe, show=False)


def test_the_help_of_init_names_both_kinds():
    assert ".safetensors" in str(Recipe.model_fields["init"].description)


def test_a_model_is_made_for_oblong_images(published):
    done = _convert("w.pth", "--model", "vit_test", "--image-size", "15x33", "-o", "o.safetensors")
    assert done.exit_code == 0, done.output
    assert "images of 15 x 33" in done.stdout
    model, report = load_model("o.safetensors")
    assert (model.size, report.made.image_size) == ((15, 33), (15, 33))
    done = _convert("w.pth", "--model", "vit_test", "--image-size", "15x", "-o", "p.safetensors")
    assert done.exit_code == 2
    assert "--image-size '15x' is not an image size" in " ".join(done.output.split())


def test_a_restorer_is_converted_and_trained_further(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fixture = load_fixture("essaformer")
    torch.save(fixture["state_dict"], "w.pth")
    arguments = {"dim": 16, "scale": 4}
    words = [w for key, value in arguments.items() for w in ("--model-args", f"{key}={value}")]
    done = _convert("w.pth", "--model", "essaformer_test", *words, "-o", "m.safetensors")
    assert done.exit_code == 0, done.output
    assert "essaformer_test: 6 bands" in done.stdout and "classes" not in done.stdout
    settings = restore_settings(
        tmp_path, scene=write_smooth_scene(tmp_path), model="essaformer_test", model_args=arguments,
        init="m.safetensors", steps=1, learning_rate=1e-9, crop=8,
    )  # fmt: skip
    folder = restore.train(make_recipe(settings, RestoreRecipe), show=False)
    trained = restore.load_run(folder).restorer.net.eval()
    with torch.no_grad():
        torch.testing.assert_close(
            trained(fixture["input"]), fixture["output"], rtol=1e-3, atol=1e-4
        )
    for changes, said in (
        ({"model": "essaformer_tiny", "model_args": {}}, "holds 'essaformer_test'"),
        ({"model_args": {"dim": 8, "scale": 4}}, "with the same arguments"),
    ):
        with pytest.raises(ModelError, match=said):
            restore.train(make_recipe({**settings, **changes}, RestoreRecipe), show=False)
