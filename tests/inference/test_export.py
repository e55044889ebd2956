import json

import numpy as np
import pytest
import torch
from small_exports import Small, make_export, small_classifier

from tiny_scene import CLASSES, tiny_classifier, tiny_cube, tiny_labels, tiny_scene
from vitreous.catalog.registry import create_model
from vitreous.data.contract import BandContract
from vitreous.errors import ConfigError, ModelError
from vitreous.inference.dense_classifier import DenseClassifier
from vitreous.inference.export import (
    FLOAT_LIMITS,
    Limits,
    Parity,
    Product,
    check_parity,
    export,
    neighbours,
)
from vitreous.inference.integers import integer_form
from vitreous.inference.pixels import classify_pixels, probabilities_at
from vitreous.inference.runtimes import load_exported
from vitreous.layers.decoders import DenseNet
from vitreous.layers.preprocess import Preprocess
from vitreous.methods._apply import apply

ALL = np.arange(24 * 28)


def agree(classifier, exported, scene, atol=1e-5):
    ours = probabilities_at(classifier, scene, ALL)
    found = probabilities_at(exported.classifier, scene, ALL)
    np.testing.assert_allclose(found, ours, atol=atol)
    assert len(set(ours[np.isfinite(ours).all(1)].argmax(1))) > 1  # not all of one class
    return ours


def test_a_shared_front_end_is_exported_apart(shared_front, holed_scene):
    classifier, folder, parity = shared_front
    assert sorted(p.name for p in folder.iterdir()) == [
        "export.json", "patches.onnx", "window.onnx",
    ]  # fmt: skip
    assert parity.largest < 1e-5
    assert parity.equal == 1
    assert 100 < parity.pixels <= 256
    exported = load_exported(folder)
    ours = agree(classifier, exported, holed_scene)
    assert np.isnan(ours).all(1).sum() == 10
    # Another window gives the same: its size is free.
    np.testing.assert_array_equal(
        classify_pixels(exported.classifier, holed_scene, ALL),
        classify_pixels(classifier, holed_scene, ALL),
    )


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        ("snv", "onnx"),
        ("continuum", "onnx"),
        ("continuum", "openvino"),
        ("derivative", "openvino"),
        ("brightness", "openvino"),
    ],
)
def test_what_is_done_to_spectra_is_part_of_the_graphs(tmp_path, holed_scene, form, kind):
    pytest.importorskip("openvino" if form == "openvino" else "onnxruntime")
    pytest.importorskip("onnxscript")
    classifier = small_classifier()
    pixels = tiny_cube(tiny_labels()).reshape(8, -1).T
    own = {"spectra": kind, "wavelengths": classifier.contract.wavelengths}
    classifier.preprocess = Preprocess.fit(pixels, components=4, **own)
    make_export(classifier, tmp_path / "out", form)
    agree(classifier, load_exported(tmp_path / "out"), holed_scene, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "openvino", "torch"])
def test_lola_specvit(tmp_path, holed_scene, form):
    pytest.importorskip("openvino")
    pytest.importorskip("onnxruntime")
    classifier = tiny_classifier(tiny_scene(), "lola_specvit_test", mode="scene")
    make_export(classifier, tmp_path / "out", form)
    agree(classifier, load_exported(tmp_path / "out", trust=True), holed_scene, atol=2e-3)


def test_the_description_says_what_a_map_needs(shared_front):
    classifier, folder, parity = shared_front
    said = json.loads((folder / "export.json").read_text())
    assert BandContract.from_json(said["contract"]) == classifier.contract
    assert said["class_names"] == ["a", "b", "c"]
    assert said["settings"]["margin"] == classifier.margin
    assert said["parity"]["largest"] == parity.largest
    assert said["quantization"] == {"integer": [], "simulated": []}
    text = b"".join(p.read_bytes() for p in folder.iterdir())
    assert b"/layers/" not in text  # no path of the machine it was made on


def test_other_software_gets_one_graph(tmp_path, holed_scene):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    classifier = tiny_classifier(
        tiny_scene(), "vit_test", mode="patch", patch_norm=True, padding="zero"
    )
    make_export(classifier, tmp_path / "one", single=True)
    agree(classifier, load_exported(tmp_path / "one"), holed_scene)
    session = runtime.InferenceSession(tmp_path / "one" / "pixel.onnx")
    cube = tiny_cube(tiny_labels())
    patches = np.stack([cube[:, 3:8, 4:9], cube[:, 9:14, 11:16], cube[:, 5:10, 5:10]])
    (found,) = session.run(None, {"input": patches})
    expected = probabilities_at(classifier, tiny_scene(), np.array([5 * 28 + 6, 11 * 28 + 13]))
    np.testing.assert_allclose(found[:2], expected, atol=1e-5)
    assert found.shape == (3, CLASSES)


def test_tiles_are_labelled_and_blended(tmp_path, holed_scene):
    pytest.importorskip("openvino")
    pytest.importorskip("onnxscript")
    scene = tiny_scene()
    torch.manual_seed(0)
    net = DenseNet(create_model("vit_test", bands=4, num_classes=CLASSES, image_size=12), width=8)
    preprocess = Preprocess.fit(tiny_cube(tiny_labels()).reshape(8, -1).T, components=4)
    classifier = DenseClassifier(
        net, preprocess, BandContract.of(scene), patch_size=3, tile_size=12
    ).eval()
    make_export(classifier, tmp_path / "tiles", "openvino")
    exported = load_exported(tmp_path / "tiles")
    assert exported.runtime == "openvino"
    agree(classifier, exported, holed_scene)
    with pytest.raises(ConfigError, match="labels whole tiles"):
        make_export(classifier, tmp_path / "single", single=True)
    assert not (tmp_path / "single").exists()


def quantized(**settings):
    classifier = tiny_classifier(tiny_scene(), "vit_test", mode="patch")
    cube = torch.from_numpy(tiny_cube(tiny_labels()))[None]
    channels = classifier.preprocess(cube)[0]
    patches = torch.stack([channels[:, r : r + 5, c : c + 5] for r in range(8) for c in range(8)])
    classifier.net = apply(classifier.net, "ptq_minmax", calibration=[patches], **settings).model
    return classifier.eval()


def test_eight_bits_become_integers(tmp_path):
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    classifier = quantized(bits=(7, 8))
    parity = make_export(classifier, tmp_path / "int8")
    assert parity.equal > 0.97
    exported = load_exported(tmp_path / "int8")
    assert not exported.description["quantization"]["simulated"]
    assert "blocks.0.mlp.fc1" in " ".join(exported.description["quantization"]["integer"])
    # Rounding can fall to the other side where a value lies between two steps, rarely.
    ours, theirs = (
        probabilities_at(one, tiny_scene(), ALL) for one in (classifier, exported.classifier)
    )
    assert np.median(np.abs(ours - theirs)) < 2e-3
    # The weights are bytes, and ONNX Runtime multiplies integers.
    file = tmp_path / "int8" / "patches.onnx"
    weights = onnx.load(file).graph.initializer
    matrices = [w for w in weights if len(w.dims) == 2 and min(w.dims) > 1]
    assert matrices
    assert {w.data_type for w in matrices} == {onnx.TensorProto.INT8}
    options = runtime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    runtime.InferenceSession(file, options)
    kernels = {node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node}
    assert kernels & {"MatMulIntegerToFloat", "QLinearMatMul", "QGemm"}


@pytest.mark.parametrize(
    ("bits", "form", "kind"),
    [(7, "onnx", torch.int8), (8, "onnx", torch.uint8), (8, "openvino", torch.int8)],
)
def test_bytes_stand_for_the_rounded_weights(bits, form, kind):
    classifier = quantized(bits=(bits, 8))
    ready, kinds = integer_form(classifier, form)
    assert not kinds.simulated
    for name in ("net.blocks.0.attn.qkv", "net.patch_embed"):
        expected = classifier.get_submodule(name).quantized_weight()
        weight = ready.get_submodule(name).weight
        codes = weight.codes if weight.axis == 0 else weight.codes.T
        assert codes.dtype == kind
        each = (-1, *[1] * (codes.ndim - 1))
        meant = (codes.float() - weight.zero_point.view(each)) * weight.scale.view(each)
        torch.testing.assert_close(meant, expected, rtol=1e-6, atol=0)
    if bits == 7:  # two products with the largest byte fit into 16 bits
        assert codes.abs().max() * 2 * 255 <= 2**15


def test_other_bits_stay_simulated():
    classifier = quantized(bits=(4, 6))
    expected = probabilities_at(classifier, tiny_scene(), ALL)
    ready, kinds = integer_form(classifier, "onnx")
    assert not kinds.integer
    assert len(kinds.simulated) > 5
    np.testing.assert_array_equal(probabilities_at(ready, tiny_scene(), ALL), expected)


def test_an_export_that_disagrees_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("vitreous.inference.export.FLOAT_LIMITS", Limits(-1, 1, 1, ""))
    classifier = small_classifier(mode="patch")
    with pytest.raises(ModelError, match="does not agree"):
        make_export(classifier, tmp_path / "run" / "out", "torch")
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize(
    "found", [(1e-2, 1e-6, 1.0), (1e-6, 1e-6, 0.9), (float("inf"), float("nan"), 1.0)]
)
def test_disagreement_is_refused(found):
    check_parity(Parity("torch", 9, 1e-6, 1e-7, 1.0), FLOAT_LIMITS)
    with pytest.raises(ModelError):
        check_parity(Parity("torch", 9, *found), FLOAT_LIMITS)


def test_what_cannot_be_written_is_said(tmp_path):
    class Odd(Small):
        def forward(self, x):
            return super().forward(x) * (2.0 if x.sum() > 0 else 1.0)

    classifier = small_classifier(mode="patch")
    classifier.net = Odd()
    with pytest.raises(ModelError, match="cannot be written as torch"):
        make_export(classifier, tmp_path / "odd", "torch")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_export_is_not_replaced(tmp_path):
    classifier = small_classifier(mode="patch")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="is not an export"):
        make_export(classifier, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").exists()
    with pytest.raises(ConfigError, match="Unknown export format: tflite"):
        make_export(classifier, tmp_path / "new", "tflite")


def test_exporting_changes_nothing_and_replaces_older_exports(tmp_path):
    classifier = small_classifier(mode="patch")
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    make_export(classifier, tmp_path / "out", "torch")
    (tmp_path / "out" / "left over").touch()
    make_export(classifier, tmp_path / "out", "torch")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    assert not (tmp_path / "out" / "left over").exists()
    for name, value in classifier.state_dict().items():
        assert torch.equal(value, before[name])
    with pytest.raises(ConfigError, match="run arbitrary code"):
        load_exported(tmp_path / "out")
    agree(classifier, load_exported(tmp_path / "out", trust=True), tiny_scene())


def test_pixels_for_the_check_lie_together():
    pixels = np.random.default_rng(0).choice(1000 * 1000, 50_000, replace=False)
    chosen = neighbours(pixels, 1000)
    assert len(chosen) == len(set(chosen)) == 256
    assert set(chosen) <= set(pixels)
    cells = {(p // 1000 // 8, p % 1000 // 8) for p in chosen}
    assert len(cells) < 150
    assert len(neighbours(np.array([5, 7]), 1000)) == 2


def test_no_valid_pixel(tmp_path):
    classifier = small_classifier(mode="patch")
    cube = tiny_cube(tiny_labels())
    cube[:, :2] = np.nan
    product = Product(classifier, "tiny", list("abc"), ["#000000"] * 3)
    with pytest.raises(ModelError, match="has valid data"):
        export(
            product, tmp_path / "x", form="torch", scene=tiny_scene(cube), pixels=np.array([3, 9])
        )
