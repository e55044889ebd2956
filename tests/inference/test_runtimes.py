import json
import pickle
import shutil
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest

from tiny_scene import tiny_scene
from vitreous.errors import CheckpointError, ConfigError, ModelError
from vitreous.inference.export_format import sha256
from vitreous.inference.predict import predict_scene
from vitreous.inference.runtimes import (
    check_onnx,
    check_openvino,
    load_exported,
)


@pytest.fixture
def folder(shared_front, tmp_path):
    return shutil.copytree(shared_front[1], tmp_path / "copy")


def change(folder, edit):
    said = json.loads((folder / "export.json").read_text())
    edit(said)
    (folder / "export.json").write_text(json.dumps(said))


def exchange(folder, name, contents):
    """Put another file in, with a description that knows of it."""
    (folder / name).write_bytes(contents)
    change(folder, lambda said: said["files"][name].update(sha256=sha256(folder / name)))


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_maps_are_those_of_the_network(shared_front, holed_scene, tmp_path, runtime):
    rasterio = pytest.importorskip("rasterio")
    pytest.importorskip(runtime)
    classifier, folder, _ = shared_front
    exported = load_exported(folder, runtime)
    maps = []
    for name, one, options in (
        ("a", classifier, {}),
        ("b", exported.classifier, {"window": 9, "workers": 2}),
    ):
        predict_scene(
            one,
            holed_scene,
            tmp_path / f"{name}.tif",
            class_names=exported.class_names,
            class_colors=exported.class_colors,
            png=False,
            **options,
        )
        with rasterio.open(tmp_path / f"{name}.tif") as dataset:
            maps.append(dataset.read(1))
    np.testing.assert_array_equal(*maps)


def test_a_classifier_travels_to_other_processes(shared_front):
    classifier, folder, _ = shared_front
    window = np.random.default_rng(0).random((8, 20, 22), dtype=np.float32)
    exported = load_exported(folder).classifier
    again = pickle.loads(pickle.dumps(exported))
    np.testing.assert_array_equal(again.classify(window), exported.classify(window))
    np.testing.assert_allclose(again.classify(window), classifier.classify(window), atol=1e-5)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_threads_do_not_disturb_one_another(shared_front, runtime):
    pytest.importorskip(runtime)
    exported = load_exported(shared_front[1], runtime).classifier
    windows = np.random.default_rng(1).random((6, 8, 14, 14), dtype=np.float32)
    expected = [exported.classify(window) for window in windows]
    found = [None] * len(windows)

    def work(number):
        for _ in range(3):
            found[number] = exported.classify(windows[number])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(windows))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(np.stack(found), np.stack(expected))


def test_a_window_without_valid_pixels_costs_nothing(shared_front):
    exported = load_exported(shared_front[1]).classifier
    exported.graphs = {}
    side = 2 * exported.margin
    window = np.full((8, side + 3, side + 4), np.nan, dtype=np.float32)
    np.testing.assert_array_equal(exported.classify(window), np.zeros((3, 3, 4)))


def test_other_bands_are_refused_by_the_graph(shared_front):
    exported = load_exported(shared_front[1]).classifier
    with pytest.raises(ModelError, match="onnxruntime cannot compute"):
        exported.classify(np.zeros((5, 20, 20), dtype=np.float32))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda said: said.update(schema=99), "format 99"),
        (lambda said: said.pop("contract"), "damaged"),
        (lambda said: said.update(kind="songs"), "damaged"),
        (lambda said: said.update(kind="tiles"), "damaged"),
        (lambda said: said.update(format="pickle"), "damaged"),
        (lambda said: said["settings"].update(margin=10**9), "damaged"),
        (lambda said: said["settings"].update(margin=0), "damaged"),
        (lambda said: said["settings"].update(patch_size="5"), "damaged"),
        (lambda said: said["settings"].update(padding="wrap"), "damaged"),
        (lambda said: said.update(class_names=[1, 2, 3]), "damaged"),
        (lambda said: said["files"].clear(), "damaged"),
    ],
)
def test_damaged_descriptions(folder, edit, message):
    change(folder, edit)
    with pytest.raises(CheckpointError, match=message):
        load_exported(folder)


def test_damaged_and_missing_files(folder, tmp_path):
    file = folder / "patches.onnx"
    contents = file.read_bytes()
    file.write_bytes(contents[:-20])
    with pytest.raises(CheckpointError, match="is not the file"):
        load_exported(folder)
    file.unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        load_exported(folder)
    with pytest.raises(CheckpointError, match="is not an export"):
        load_exported(tmp_path)
    exchange(folder, "patches.onnx", b"no model at all")
    with pytest.raises(CheckpointError, match="not an ONNX model"):
        load_exported(folder)


def test_runtimes_that_do_not_fit(shared_front):
    with pytest.raises(ConfigError, match="torch does not read exports of the format onnx"):
        load_exported(shared_front[1], "torch")
    with pytest.raises(ConfigError, match="Unknown runtime: tensorrt"):
        load_exported(shared_front[1], "tensorrt")


def test_operators_of_others_and_data_elsewhere_are_refused(shared_front, folder):
    onnx = pytest.importorskip("onnx")
    contents = (shared_front[1] / "patches.onnx").read_bytes()
    check_onnx(contents, folder)

    foreign = onnx.load_model_from_string(contents)
    foreign.graph.node[0].domain = "com.evil"
    outside = onnx.load_model_from_string(contents)
    tensor = outside.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    tensor.external_data.add(key="location", value="../../etc/passwd")
    hidden = onnx.load_model_from_string(contents)
    inner = onnx.GraphProto()
    inner.initializer.append(tensor)
    hidden.graph.node.append(
        onnx.helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
    )
    for model, message in (
        (foreign, "not ONNX's own"),
        (outside, "in other files"),
        (hidden, "in other files"),
    ):
        exchange(folder, "patches.onnx", model.SerializeToString())
        with pytest.raises(CheckpointError, match=message):
            load_exported(folder)


@pytest.mark.parametrize(
    "text",
    [
        b'<!DOCTYPE x [<!ENTITY a "aaaa">]><net><layers/></net>',
        b'<net><layers><layer id="0" version="extension" type="Own"/></layers></net>',
        b'<net><layers><layer id="0" type="Own"/></layers></net>',
        b"<net></net>",
    ],
)
def test_foreign_openvino_files_are_refused(text, tmp_path):
    with pytest.raises(CheckpointError):
        check_openvino(text, tmp_path / "x.xml")
    check_openvino(b'<layer id="0" name="x" type="Parameter" version="opset1">', tmp_path / "x.xml")


def test_nothing_but_the_scene_of_its_bands(shared_front, tmp_path):
    exported = load_exported(shared_front[1])
    scene = tiny_scene()[:4]
    with pytest.raises(ModelError, match="lacks 4 of the 8 bands"):
        predict_scene(
            exported.classifier,
            scene,
            tmp_path / "map.tif",
            class_names=exported.class_names,
            class_colors=exported.class_colors,
        )
    assert list(tmp_path.iterdir()) == []


def test_maps_of_an_export_keep_the_users_codes(folder, holed_scene, tmp_path):
    rasterio = pytest.importorskip("rasterio")
    pytest.importorskip("onnxruntime")
    codes = {}

    def edit(said):
        codes.update({k: 1000 * k for k in range(1, len(said["class_names"]) + 1)})
        said["class_codes"] = list(codes.values())

    change(folder, edit)
    exported = load_exported(folder)
    predict_scene(
        exported.classifier,
        holed_scene,
        tmp_path / "map.tif",
        class_names=exported.class_names,
        class_colors=exported.class_colors,
        class_codes=exported.class_codes,
        png=False,
    )
    with rasterio.open(tmp_path / "map.tif") as dataset:
        assert set(np.unique(dataset.read(1))) <= {0, *codes.values()}


def test_a_process_survives_the_end_of_a_child_after_models_of_openvino_have_gone(shared_front):
    """In a process of its own: at fault, it is killed by a segmentation fault."""
    pytest.importorskip("openvino")
    code = """
        import signal, subprocess, sys
        from pathlib import Path
        from vitreous.inference.runtimes import openvino_model

        graph = [Path(sys.argv[1]).read_bytes()]
        first, second = openvino_model(graph, 1), openvino_model(graph, 1)
        del first
        del second
        told = []
        signal.signal(signal.SIGCHLD, lambda *_: told.append(1))  # as data loaders with processes do
        subprocess.run([sys.executable, "-c", ""], check=True)
        assert told
        """
    graph = next(shared_front[1].glob("*.onnx"))
    command = [sys.executable, "-c", textwrap.dedent(code), str(graph)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done
