import csv
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tiny_images import folder_of_pictures, folder_of_rasters, picture
from vitreous.catalog.registry import create_model
from vitreous.checkpoints.model_files import save_model
from vitreous.data.provenance import SeenImages
from vitreous.errors import ConfigError, ModelError, VitreousError
from vitreous.layers.bands import Bands
from vitreous.recipe import PretrainRecipe, RecognizeRecipe, make_recipe
from vitreous.tasks import dispatch, pretrain, recognize

SETTINGS = {
    "model": "convnext_test",
    "epochs": 4,
    "batch_size": 8,
    "warmup_epochs": 0,
    "learning_rate": 5e-3,
    "ema": 0.5,
    "report": False,
}


def settings(folder, images, **others):
    return make_recipe(
        {**SETTINGS, "images": str(images), "runs": str(folder / "runs"), **others}, RecognizeRecipe
    )


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return folder_of_pictures(tmp_path_factory.mktemp("pictures"), {"train": 24, "test": 6})


@pytest.fixture(scope="module")
def run(tmp_path_factory, pictures):
    folder = tmp_path_factory.mktemp("run")
    return recognize.train(settings(folder, pictures, name="first", report=True), show=False)


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_learns_and_says_how_well(run):
    metrics = json.loads((run / "metrics.json").read_text())
    test = metrics["systems"][0]["test"]
    assert test["top1"] == test["score"] == 1.0 and test["confusion"] == [[6, 0], [0, 6]]
    assert metrics["images"]["counts"] == {"train": 44, "val": 4, "test": 12}
    assert metrics["images"]["leakage"] == 0 and not metrics["images"]["optimistic"]
    assert [entry["name"] for entry in metrics["classes"]] == ["cat", "dog"]
    assert dispatch.evaluate(run)["systems"][0]["test"] == test
    log = rows_of(run / "log.csv")
    assert len(log) == 4 and float(log[-1]["val_top1"]) == 1.0
    page = (run / "report.html").read_text()
    assert "Top-1 accuracy" in page and page.count("data:image/png") == 13 and "<script" not in page
    assert not (run / "state.safetensors").exists()
    assert json.loads((run / "config.json").read_text())["finished"]


def test_predictions_of_the_test_images_are_kept(run):
    rows = rows_of(run / "predictions.csv")
    assert len(rows) == 12 and list(rows[0]) == ["file", "truth", "class", "probability"]
    assert all(row["truth"] == row["class"] == row["file"].split("/")[1] for row in rows)


def test_predict_classifies_any_folder(run, pictures, tmp_path):
    folder = folder_of_pictures(tmp_path / "new ñ", count=3)
    Image.fromarray(np.full((30, 20, 3), 90, np.uint8)).save(folder / "other size.jpg")
    out = tmp_path / "classes of.csv"
    done = dispatch.predict(run, str(folder), out, top=1)
    rows = rows_of(out)
    assert done.images == len(rows) == 7 and done.paths == [out]
    assert {row["file"]: row["class"] for row in rows}["cat/0.png"] == "cat"
    dispatch.predict(run, folder, out)  # replaced as a whole
    assert list(rows_of(out)[0]) == ["file", "class", "probability", "class_2", "probability_2"]
    (folder / "broken.png").write_bytes(b"none")
    with pytest.raises(VitreousError, match=r"broken\.png"):
        dispatch.predict(run, folder, tmp_path / "never.csv")
    assert not (tmp_path / "never.csv").exists()
    with pytest.raises(ConfigError, match=r"\.csv"):
        dispatch.predict(run, folder, tmp_path / "x.tif")
    with pytest.raises(ConfigError, match="window"):
        dispatch.predict(run, folder, out, window=8)
    with pytest.raises(ModelError, match="trained on 3 bands"):
        dispatch.predict(run, folder_of_rasters(tmp_path / "rasters"), out)


def test_images_of_another_scale_are_refused(tmp_path):
    folder = folder_of_rasters(tmp_path / "chips")
    path = recognize.train(settings(tmp_path, folder, epochs=1), show=False)
    with pytest.raises(ModelError, match="unit or scale differs"):
        dispatch.predict(path, folder, tmp_path / "x.csv", hints={"scale": 0.0001})


class Stop(Exception):
    pass


def test_a_resumed_run_ends_with_the_same_weights(run, pictures, tmp_path, monkeypatch):
    from vitreous.tasks.fit_images import RecognizeTask

    whole = RecognizeTask.judge

    def stopped(self, row):
        whole(self, row)
        if row["epoch"] == 3:
            raise Stop

    strong = {"operations": 2, "mixup": 0.2, "cutmix": 1.0, "erasing": 0.3, "flip": "all"}
    recipe = settings(tmp_path, pictures, name="whole", **strong)
    expected = load_file(recognize.train(recipe, show=False) / "model.safetensors")
    monkeypatch.setattr(RecognizeTask, "judge", stopped)
    recipe = settings(tmp_path, pictures, name="parts", **strong)
    with pytest.raises(Stop):
        recognize.train(recipe, show=False)
    monkeypatch.setattr(RecognizeTask, "judge", whole)
    found = load_file(recognize.train(recipe, resume=True, show=False) / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert len(rows_of(tmp_path / "runs" / "recognize" / "parts" / "log.csv")) == 4


def test_a_run_of_other_images_is_not_resumed_or_measured(tmp_path, pictures):
    own = shutil.copytree(pictures, tmp_path / "own")
    path = recognize.train(settings(tmp_path, own, epochs=1), show=False)
    picture(own / "test" / "cat" / "0.png", 1, draw=np.random.default_rng(9))
    with pytest.raises(ConfigError, match="changed after it was started"):
        recognize.evaluate(path)


def test_several_labels(tmp_path):
    draw = np.random.default_rng(0)
    lines = ["image,labels,role"]
    for k in range(60):
        values = draw.integers(60, 90, (8, 8, 3), dtype=np.uint8)
        has = draw.random(2) < 0.5
        values[..., :2] += (100 * has).astype(np.uint8)
        Image.fromarray(values).save(tmp_path / f"{k}.png")
        labels = "|".join(name for name, own in zip(("red", "green"), has, strict=True) if own)
        lines.append(f"{k}.png,{labels},{'test' if k >= 45 else 'train'}")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    recipe = settings(tmp_path, tmp_path / "t.csv", epochs=12, report=True, operations=0)
    path = recognize.train(recipe, show=False)
    test = json.loads((path / "metrics.json").read_text())["systems"][0]["test"]
    assert test["map"] > 0.95 and "top1" not in test
    assert "Mean average precision" in (path / "report.html").read_text()
    out = tmp_path / "out.csv"
    dispatch.predict(path, tmp_path, out)
    row = rows_of(out)[0]
    assert list(row) == ["file", "labels", "green", "red"]
    assert set(filter(None, row["labels"].split(";"))) == {c for c in ("green", "red") if float(row[c]) >= 0.5}  # fmt: skip
    assert float(rows_of(path / "log.csv")[-1]["val_map"]) > 0.8


def test_a_run_is_tuned_on_other_classes(run, tmp_path):
    folder = folder_of_pictures(tmp_path / "p", {"train": 8, "test": 8}, ("a", "b", "c"))
    path = recognize.train(settings(tmp_path, folder, init=str(run), epochs=1), show=False)
    tuned = recognize.load_run(path)
    assert tuned.recognizer.class_names == ["a", "b", "c"]
    before = recognize.load_run(run).recognizer
    assert torch.equal(tuned.recognizer.preprocess.mean, before.preprocess.mean)
    assert [type(entry) for entry in tuned.provenance] == [SeenImages, SeenImages]
    with pytest.raises(ModelError, match="Use --model convnext_test"):
        recognize.train(settings(tmp_path, folder, init=str(run), model="vit_test"), show=False)
    with pytest.raises(ModelError, match="--image-size 12x12"):
        recognize.train(settings(tmp_path, folder, init=str(run), image_size="16"), show=False)


def test_test_images_that_the_start_has_seen_are_told(run, pictures, tmp_path):
    other = tmp_path / "turned"
    for part, new in (("train", "test"), ("test", "train")):
        shutil.copytree(pictures / part, other / new)
    path = recognize.train(settings(tmp_path, other, init=str(run), epochs=1), show=False)
    metrics = json.loads((path / "metrics.json").read_text())
    assert metrics["start"]["share"] == 1.0 and metrics["images"]["optimistic"]
    assert "100% of the test images" in metrics["start"]["sentences"][0]
    assert recognize.evaluate(path)["start"] == metrics["start"]


def test_weights_of_other_bands_and_of_a_pretraining_are_adapted(tmp_path):
    chips = folder_of_rasters(tmp_path / "chips")
    net = create_model("convnext_test", bands=3, num_classes=4, image_size=16)
    file = save_model(net, tmp_path / "m.safetensors", bands=Bands(3, (640.0, 550.0, 470.0)))
    path = recognize.train(settings(tmp_path, chips, init=str(file), epochs=1), show=False)
    tuned = recognize.load_run(path)
    assert tuned.recognizer.net.bands == 5 and tuned.recognizer.size == (12, 10)
    metrics = json.loads((path / "metrics.json").read_text())
    assert "unknown" in metrics["start"]["sentences"][0]

    values = np.random.default_rng(0).random((5, 40, 60)).astype(np.float32)
    np.save(tmp_path / "scene.npy", values)
    words = {
        "scene": str(tmp_path / "scene.npy"),
        "model": "satmae_pp_test",
        "image_size": 8,
        "steps": 2,
        "runs": str(tmp_path / "runs"),
        "report": False,
        "hints": {"axis_order": "byx"},
    }
    start = pretrain.train(make_recipe(words, PretrainRecipe), show=False)
    own = {"model": "satmae_pp_test", "image_size": "8", "epochs": 1, "init": str(start)}
    path = recognize.train(settings(tmp_path, chips, **own), show=False)
    sentences = json.loads((path / "metrics.json").read_text())["start"]["sentences"]
    assert "pretrain of scene.npy" in sentences[0]


def test_oblong_images_and_sizes_in_words(tmp_path):
    assert make_recipe({"image_size": "48x64"}, RecognizeRecipe).size == (48, 64)
    assert make_recipe({"image_size": 32}, RecognizeRecipe).size == (32, 32)
    for wrong in ("48x", "x", "-3", "1.5", "2"):
        with pytest.raises(ConfigError, match="image_size"):
            make_recipe({"image_size": wrong}, RecognizeRecipe)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"images": ""}, "--images"),
        ({"model": "hsdt_test"}, "does not classify images"),
        ({"model": "svm"}, "does not classify images"),
        ({"model": "convnext"}, "several variants"),
        ({"model_args": {"depths": 3}}, "depths"),
        ({"init": "nowhere.safetensors"}, "nowhere"),
    ],
)
def test_what_cannot_be_trained_leaves_nothing_behind(tmp_path, pictures, wrong, message):
    recipe = settings(tmp_path, **{"images": pictures, **wrong})
    with pytest.raises(VitreousError, match=message):
        recognize.train(recipe, show=False)
    assert not any((tmp_path / "runs").rglob("*.json"))


def test_faults_end_the_command_with_code_2(tmp_path, pictures):
    own = shutil.copytree(pictures, tmp_path / "o w n")
    (own / "train" / "cat" / "a b.jpg").write_bytes(b"\xff\xd8\xff")
    (own / "test" / "dog" / "c.png").write_bytes(b"\x89PNG")
    words = [
        "recognize",
        "--images",
        str(own),
        "--model",
        "vit_test",
        "--runs",
        str(tmp_path / "r"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "vitreous", *words], capture_output=True, text=True
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "a b.jpg" in done.stderr and "c.png" in done.stderr
    assert not (tmp_path / "r").exists()


def test_a_network_learns_from_a_teacher(run, pictures, tmp_path):
    taught = {"teacher": str(run), "distill": "deit_soft", "distill_args": {"weight": 0.9}}
    path = recognize.train(settings(tmp_path, pictures, name="a", **taught), show=False)
    alone = recognize.train(settings(tmp_path, pictures, name="b"), show=False)
    noted = json.loads((path / "config.json").read_text())["teacher"]
    assert noted["distill"] == "deit_soft" and noted["settings"]["weight"] == 0.9
    one, two = (load_file(folder / "model.safetensors") for folder in (path, alone))
    assert any(not torch.equal(one[name], two[name]) for name in one)
    metrics = json.loads((path / "metrics.json").read_text())
    assert metrics["systems"][0]["test"]["top1"] == 1.0 and metrics["start"]["share"] == 0
    assert recognize.evaluate(path)["start"] == metrics["start"]


def test_a_teacher_sees_what_the_student_sees(run, pictures):
    """On the teacher's own weights, soft answers have no divergence from themselves."""
    from vitreous.layers.answers import Answer
    from vitreous.tasks.losses import ClassTargets

    words = {"teacher": str(run), "distill": "deit_soft", "distill_args": {"weight": 1.0}}
    teacher = recognize.open_teacher(
        make_recipe({**words, "images": str(pictures)}, RecognizeRecipe)
    )
    images = torch.rand(4, 3, 12, 12) * 255
    targets = ClassTargets(torch.tensor([[0.3, 0.7]] * 4))
    scores = teacher.recognizer(images)
    same = teacher.loss(teacher.recognizer, scores, images, targets)
    other = teacher.loss(teacher.recognizer, scores.flip(1), images, targets)
    assert same.item() == pytest.approx(0, abs=1e-5) and other.item() > 0.01
    assert Answer(scores).scores is scores


def test_a_teacher_of_other_classes_or_sizes_is_refused(run, pictures, tmp_path):
    other = folder_of_pictures(tmp_path / "p", {"train": 6, "test": 2}, ("a", "b"))
    taught = {"teacher": str(run), "distill": "deit_hard"}
    with pytest.raises(ModelError, match="other classes"):
        recognize.train(settings(tmp_path, other, **taught), show=False)
    with pytest.raises(ModelError, match="--image-size 12x12"):
        recognize.train(settings(tmp_path, pictures, image_size="16", **taught), show=False)
    with pytest.raises(ConfigError, match="does not distil"):
        recognize.train(settings(tmp_path, pictures, **{**taught, "distill": "evit"}), show=False)
    with pytest.raises(ConfigError, match="together"):
        settings(tmp_path, pictures, teacher=str(run))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"teacher": "nowhere", "distill": "deit_hard"}, "does not exist"),
        ({"distill": "deit_hrad"}, "Unknown method"),
        ({"distill": "deit_hard", "distill_args": {"wieght": 1}}, "no setting 'wieght'"),
        ({"model": "efficientvit_test", "batch_size": 1}, "cannot be trained with --batch-size 1"),
    ],
)
def test_wrong_settings_are_refused_before_images_are_read(
    run, pictures, tmp_path, monkeypatch, words, said
):
    def reading(*_):
        raise AssertionError("images are read")

    monkeypatch.setattr(recognize, "open_collection", reading)
    if "distill" in words:
        words = {"teacher": str(run), **words}
    with pytest.raises(VitreousError, match=said):
        recognize.train(settings(tmp_path, pictures, **words), show=False)
