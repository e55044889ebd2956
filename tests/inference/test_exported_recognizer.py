"""Recognizers as graphs: the classes of images are those of the network, and nothing is left of what does not agree."""

import json
import shutil

import numpy as np
import pytest
import torch

from tiny_images import folder_of_pictures, folder_of_rasters
from vitreous.catalog.registry import create_model
from vitreous.data.image_collection import open_images
from vitreous.errors import CheckpointError, ConfigError, ModelError
from vitreous.inference import export_recognizer as module
from vitreous.inference.export import Limits
from vitreous.inference.export_format import sha256
from vitreous.inference.export_recognizer import RecognizerProduct, export_recognizer
from vitreous.inference.recognizer import Recognizer, image_contract
from vitreous.inference.runtimes import load_exported
from vitreous.tasks.recognize import standardized

SIZE = (12, 10)


class Flat(torch.nn.Module):
    """Quick to export: the mean of each band, and how they are mixed."""

    def __init__(self, bands, classes):
        super().__init__()
        torch.manual_seed(0)
        self.head = torch.nn.Linear(bands, classes)

    def forward(self, x):
        return 3 * self.head(x.mean((2, 3)))


def recognizer(collection, net=None, *, several=False):
    bands, classes = collection.store.bands, len(collection.class_names)
    contract = image_contract(collection.store, collection.sample)
    names = collection.class_names
    net = net or Flat(bands, classes)
    made = Recognizer(net, standardized(collection), contract, names, SIZE, several=several)
    return made.eval()


def write(one, collection, folder, form="onnx"):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    numbers = np.arange(len(collection.store))
    product = RecognizerProduct(one, "small", {"nodata": 0, "mask": "m.tif"}, "abc")
    return export_recognizer(product, folder, form=form, store=collection.store, numbers=numbers)


@pytest.fixture(scope="module")
def chips(tmp_path_factory):
    return open_images(folder_of_rasters(tmp_path_factory.mktemp("chips")), hints={"nodata": 0})


@pytest.fixture(scope="module")
def exported(tmp_path_factory, chips):
    folder = tmp_path_factory.mktemp("exports") / "image"
    one = recognizer(chips)
    return one, folder, write(one, chips, folder)


def agree(one, folder, collection, runtime=None, atol=1e-5):
    loaded = load_exported(folder, runtime, trust=True)
    numbers = np.arange(len(collection.store))
    found = loaded.recognizer.predict(collection.store, numbers)
    expected = one.predict(collection.store, numbers)
    np.testing.assert_allclose(found, expected, atol=atol)
    assert expected.std() > 0.01
    return loaded


def test_images_have_the_probabilities_of_the_network(exported, chips):
    one, folder, parity = exported
    assert sorted(path.name for path in folder.iterdir()) == ["export.json", "image.onnx"]
    loaded = agree(one, folder, chips)
    assert (loaded.class_names, loaded.class_colors, loaded.name) == (
        ["field", "water"],
        [],
        "small",
    )
    assert (loaded.recognizer.size, loaded.recognizer.several) == (SIZE, False)
    torch.testing.assert_close(loaded.recognizer.fill, one.fill)
    assert loaded.recognizer.hints == {"nodata": 0} and loaded.description["source"] == "abc"
    assert parity.largest < 1e-5 and parity.equal == 1 and parity.pixels == 16
    assert "on 16 images" in str(parity) and "100.00% identical classes" in str(parity)
    with pytest.raises(ModelError, match="export of a recognizer"):
        _ = loaded.classifier
    with pytest.raises(ModelError, match="export of a recognizer"):
        _ = loaded.restorer


def test_a_graph_takes_physical_values_with_invalid_pixels(exported, chips):
    one, folder, _ = exported
    images = torch.from_numpy(chips.store.read(0)).permute(2, 0, 1)[None].repeat(3, 1, 1, 1).float()
    images[1, :, 2:5] = torch.nan
    with torch.no_grad():
        expected = one.probabilities(images)
    found = load_exported(folder).recognizer.probabilities(images)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert found.isfinite().all() and not torch.equal(found[0], found[1])


@pytest.mark.parametrize("form", ["openvino", "torch"])
def test_every_format(form, chips, tmp_path):
    pytest.importorskip("openvino")
    one = recognizer(chips)
    parity = write(one, chips, tmp_path / "x", form)
    assert parity.largest < 1e-5
    agree(one, tmp_path / "x", chips)


def test_labels_have_probabilities_of_their_own(chips, tmp_path):
    one = recognizer(chips, several=True)
    write(one, chips, tmp_path / "x")
    loaded = agree(one, tmp_path / "x", chips)
    assert loaded.recognizer.several
    sums = loaded.recognizer.predict(chips.store, np.arange(4)).sum(1)
    assert not np.allclose(sums, 1)


def test_a_vision_transformer_of_pictures(tmp_path):
    pictures = open_images(folder_of_pictures(tmp_path / "p", count=10))
    torch.manual_seed(0)
    net = create_model("vit_test", bands=3, num_classes=2, image_size=SIZE)
    torch.nn.init.normal_(net.head.weight)
    one = recognizer(pictures, net)
    parity = write(one, pictures, tmp_path / "x")
    assert parity.equal == 1
    agree(one, tmp_path / "x", pictures, atol=1e-4)


def test_what_does_not_agree_is_not_written(chips, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FLOAT_LIMITS", Limits(0, 0, 1.0, "No."))
    monkeypatch.setattr(
        module.ImageGraph, "forward", lambda self, x: self.recognizer.probabilities(x + 50)
    )
    with pytest.raises(ModelError, match="does not agree"):
        write(recognizer(chips), chips, tmp_path / "x")
    assert not list(tmp_path.iterdir())


def altered(folder, place, change):
    """Copy an export, and change what it says of itself."""
    shutil.copytree(folder, place)
    said = json.loads((place / "export.json").read_text())
    change(said)
    (place / "export.json").write_text(json.dumps(said))
    return place


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda said: said["class_names"].append("more"), "3 classes"),
        (lambda said: said["settings"]["fill"].pop(), "fills 4 of 5 bands"),
        (lambda said: said["settings"]["fill"].__setitem__(0, "x"), "fill"),
        (lambda said: said["settings"]["size"].append(3), "size"),
        (lambda said: said["settings"].update(size=[0, 4]), "size"),
        (lambda said: said["settings"].pop("several"), "several"),
        (lambda said: said["settings"]["hints"].update(mask="/etc/x"), "no mask"),
        (lambda said: said.update(kind="cubes"), "settings"),
        (lambda said: said.update(class_names=[]), "class_names"),
    ],
)
def test_damaged_descriptions_are_refused(exported, tmp_path, change, message):
    place = altered(exported[1], tmp_path / "x", change)
    with pytest.raises((CheckpointError, ModelError), match=message):
        load_exported(place)


def test_a_replaced_graph_is_refused(exported, tmp_path):
    place = shutil.copytree(exported[1], tmp_path / "x")
    with (place / "image.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(CheckpointError, match="not the file that"):
        load_exported(place)
    said = json.loads((exported[1] / "export.json").read_text())
    assert said["files"]["image.onnx"]["sha256"] == sha256(exported[1] / "image.onnx")
    with pytest.raises(ConfigError, match="Unknown export format"):
        export_recognizer(
            RecognizerProduct(exported[0], "small"), tmp_path / "y", form="x", store=None, numbers=None
        )  # fmt: skip
