"""Compressing runs that classify images: what the gate looks at, what the new run holds, what is refused."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from tiny_images import folder_of_pictures, picture
from vitreous.errors import ConfigError, VitreousError
from vitreous.inference.runtimes import load_exported
from vitreous.layers.quantize import quantized_layers
from vitreous.recipe import RecognizeRecipe, make_recipe
from vitreous.tasks import compress_images, dispatch, recognize
from vitreous.tasks.compress import compress
from vitreous.tasks.export import export_run
from vitreous.tasks.image_metrics import image_score

SETTINGS = {
    "model": "vit_test",
    "epochs": 8,
    "batch_size": 16,
    "warmup_epochs": 0,
    "learning_rate": 3e-3,
    "ema": 0.5,
    "operations": 0,
}


def settings(folder, images, **others):
    words = {**SETTINGS, "images": str(images), "runs": str(folder / "runs"), **others}
    return make_recipe(words, RecognizeRecipe)


def table_of_labels(folder, count=60):
    """Write images whose first two bands are bright where they have the labels red and green."""
    draw = np.random.default_rng(0)
    lines = ["image,labels,role"]
    for k in range(count):
        values = draw.integers(60, 90, (8, 8, 3), dtype=np.uint8)
        has = draw.random(2) < 0.5
        values[..., :2] += (100 * has).astype(np.uint8)
        Image.fromarray(values).save(folder / f"{k}.png")
        labels = ";".join(name for name, own in zip(("red", "green"), has, strict=True) if own)
        lines.append(f"{k}.png,{labels},{'test' if k >= 45 else 'train'}")
    (folder / "t.csv").write_text("\n".join(lines))
    return folder / "t.csv"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return folder_of_pictures(tmp_path_factory.mktemp("pictures"), {"train": 24, "test": 6})


@pytest.fixture(scope="module")
def base(tmp_path_factory, pictures):
    folder = tmp_path_factory.mktemp("base")
    return recognize.train(settings(folder, pictures, name="base"), show=False)


@pytest.fixture(scope="module")
def quantized(base):
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    done = compress(base, "ptq_minmax", max_drop=100, show=False)
    after = {path.name: path.read_bytes() for path in base.iterdir()}
    assert after == before, "the source run was changed"
    return done


def test_the_new_run_is_a_run_like_any_other(base, quantized, pictures, tmp_path):
    run, before = recognize.load_run(quantized.path), recognize.load_run(base)
    assert [entry["name"] for entry in run.methods] == ["ptq_minmax"]
    assert run.provenance == before.provenance and run.provenance
    systems = json.loads((quantized.path / "metrics.json").read_text())["systems"]
    assert [row["name"] for row in systems] == ["vit_test + ptq_minmax", "vit_test"]
    assert systems[0]["images_per_second"] > 0
    recorded = json.loads((base / "metrics.json").read_text())["systems"][0]["test"]
    assert systems[1]["test"] == recorded
    assert dispatch.evaluate(quantized.path)["systems"][0]["test"] == systems[0]["test"]
    written = {path.name for path in quantized.path.iterdir()}
    assert {"predictions.csv", "report.html", "compress.json", "config.json"} <= written
    assert dispatch.predict(quantized.path, str(pictures), tmp_path / "x.csv").images == 60
    page = (quantized.path / "report.html").read_text()
    assert "Before and after ptq_minmax" in page and "images/s" in page
    assert "Before and after" not in (base / "report.html").read_text()


def test_the_table_tells_accuracy_and_speed(quantized):
    rows = {row["figure"]: row for row in quantized.rows}
    systems = json.loads((quantized.path / "metrics.json").read_text())["systems"]
    assert rows["top-1, %"]["after"] == pytest.approx(100 * systems[0]["test"]["top1"])
    assert rows["top-1, %"]["before"] == pytest.approx(100 * systems[1]["test"]["top1"])
    assert rows["top-1, %"]["before"] > 90
    weights = rows["weights at nominal bit width, MiB"]
    assert weights["after"] < weights["before"] / 2
    assert rows["images/s"]["after"] > 0 and rows["latency per image, ms"]["after"] > 0


def test_calibration_is_what_the_network_gets_in_training(base, pictures):
    subject = compress_images.ImagesSubject(base, 10, recognize.Console(quiet=True))
    (batch,) = subject.calibration()
    assert batch.images.shape == (10, 3, 12, 12) and abs(float(batch.images.mean())) < 0.5
    data = subject.data
    assert set(subject.calibrated) <= set(data.of("train"))
    assert batch.classes.tolist() == data.targets[subject.calibrated].argmax(1).tolist()
    expected = torch.tensor(data.store.read(int(subject.calibrated[3]))).permute(2, 0, 1)
    with torch.no_grad():
        own = subject.trained.preprocess(expected[None].float())[0]
    torch.testing.assert_close(batch.images[3], own)


def test_the_gate_never_looks_at_test_images(base, monkeypatch):
    subject = compress_images.ImagesSubject(base, 10, recognize.Console(quiet=True))
    assert subject.looked_at == "44 training images"  # four validation images say nothing
    monkeypatch.setattr(compress_images, "FEWEST_GATE_IMAGES", 4)
    subject = compress_images.ImagesSubject(base, 10, recognize.Console(quiet=True))
    assert subject.looked_at == "4 validation images"
    assert set(subject.gated) == set(subject.data.of("val"))
    assert subject.gate(subject.trained) > 90
    wrong = copy.deepcopy(subject.trained.net)
    for parameter in wrong.head.parameters():
        parameter.data.neg_()
    assert subject.gate(subject.with_net(wrong)) < 10


def test_a_loss_beyond_the_gate_writes_nothing(base, capsys):
    before = sorted(base.parent.iterdir())
    with pytest.raises(VitreousError, match=r"points of top-1.*half of the layers"):
        compress(base, "ptq_minmax", max_drop=-1, show=True)  # no network is that good
    assert "top-1 on 44 training images" in capsys.readouterr().err
    assert sorted(base.parent.iterdir()) == before


def test_prune_train_and_quantize_in_one_go(base):
    methods = ["magnitude", "ptq_minmax"]
    done = compress(
        base, methods, {"magnitude.keep": 0.5}, tune_epochs=2, tune_rate=1, max_drop=100, show=False
    )
    run = recognize.load_run(done.path)
    assert [entry["name"] for entry in run.methods] == methods
    assert list(quantized_layers(run.recognizer.net))
    rows = {row["figure"]: row for row in done.rows}
    macs = rows["multiply-adds per image, M"]
    assert macs["after"] < macs["before"] and rows["top-1, %"]["after"] > 80
    start = settings(done.path.parent, run.recipe.images, init=str(done.path), epochs=1)
    with pytest.raises(VitreousError, match="quantized"):
        recognize.train(start, show=False)


def test_images_with_several_labels_are_judged_by_map(tmp_path):
    own = settings(tmp_path, table_of_labels(tmp_path), epochs=6, report=False)
    path = recognize.train(own, show=False)
    done = compress(path, "ptq_minmax", max_drop=100, show=False)
    figures = [row["figure"] for row in done.rows]
    assert figures[:3] == ["mAP, %", "F1, %", "all labels right, %"]
    test = json.loads((done.path / "metrics.json").read_text())["systems"][0]["test"]
    assert done.rows[0]["after"] == pytest.approx(100 * test["map"])
    assert not (done.path / "report.html").exists()
    subject = compress_images.ImagesSubject(path, 8, recognize.Console(quiet=True))
    assert subject.calibration()[0].classes is None
    assert subject.gate(subject.trained) > 60


def test_other_images_than_those_of_the_run_are_refused(tmp_path, pictures):
    own = shutil.copytree(pictures, tmp_path / "own")
    path = recognize.train(settings(tmp_path, own, epochs=1, report=False), show=False)
    picture(own / "test" / "cat" / "0.png", 1, draw=np.random.default_rng(9))
    with pytest.raises(ConfigError, match="changed after it was started"):
        compress(path, "ptq_minmax", show=False)


def test_a_quantized_run_is_exported_in_integers(quantized, pictures, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    written = export_run(quantized.path, "onnx", tmp_path / "x")
    assert written.integer and written.parity.pixels == 60
    run = recognize.load_run(quantized.path)
    data = recognize.open_collection(run.recipe)
    found = load_exported(tmp_path / "x").recognizer.predict(data.store, data.of("test"))
    assert image_score(found, data.targets[data.of("test")], several=False) > 0.9
    assert json.loads((tmp_path / "x" / "export.json").read_text())["provenance"]
