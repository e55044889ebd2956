"""Restorers as graphs: what they restore is what the network restores, joined from the same tiles."""

import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from smooth_scene import restorer_of, smooth_scene
from vitreous.errors import CheckpointError, ConfigError, ModelError
from vitreous.inference import export_restorer as module
from vitreous.inference.export import Limits
from vitreous.inference.export_format import sha256
from vitreous.inference.export_restorer import RestorerProduct, compare
from vitreous.inference.restore import restored_scene
from vitreous.inference.runtimes import load_exported
from vitreous.layers.ranges import fill_invalid, fill_tiles
from vitreous.layers.restorer import Restorer
from vitreous.testing import network

BANDS, TILE = 6, 16


def holed():
    rng = np.random.default_rng(0)
    values = rng.normal(0.5, 0.2, (BANDS, 31, 50)).astype(np.float32)
    values[:, 3:6, 4:9] = np.nan
    values[:, :, 46:] = np.nan
    return smooth_scene(values)


class Sharpen(Restorer):
    """Quick to export: a convolution, and twice the pixels."""

    scale = 2

    def __init__(self, bands):
        super().__init__(bands)
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(bands, bands, 3, padding=1)

    def restore(self, x):
        return F.interpolate(x + torch.tanh(self.conv(x)), scale_factor=2.0)


def restorer(name):
    net = Sharpen(BANDS) if name == "sharpen" else network(name, bands=BANDS)
    return restorer_of(holed(), net).eval()


def write(one, folder, form="onnx"):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    return module.export_restorer(
        RestorerProduct(one, "small", "abc"), folder, form=form, scene=holed()
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    one, folder = restorer("essaformer_test"), tmp_path_factory.mktemp("exports") / "cube"
    return one, folder, write(one, folder)


def agree(one, folder, scene, runtime=None):
    loaded = load_exported(folder, runtime, trust=True)
    found = restored_scene(loaded.restorer, scene).values
    expected = restored_scene(one, scene).values
    np.testing.assert_allclose(found, expected, atol=2e-4)
    assert np.isnan(expected).any() and np.nanstd(expected) > 0.1
    return loaded


def test_tiles_are_restored_and_joined(exported):
    one, folder, parity = exported
    assert sorted(path.name for path in folder.iterdir()) == ["cube.onnx", "export.json"]
    loaded = agree(one, folder, holed())
    assert (loaded.restorer.scale, loaded.restorer.tile_size) == (2, one.tile_size)
    assert (loaded.name, loaded.runtime, loaded.class_names) == ("small", "onnxruntime", [])
    assert parity.largest < 1e-4 and parity.equal is None and parity.pixels > 500
    assert "values differ by" in str(parity) and "classes" not in str(parity)
    with pytest.raises(ModelError, match="export of a restorer"):
        _ = loaded.classifier


def test_a_classifier_is_no_restorer(shared_front):
    with pytest.raises(ModelError, match="export of a classifier"):
        _ = load_exported(shared_front[1]).restorer


@pytest.mark.parametrize("form", ["openvino", "torch"])
def test_other_formats(tmp_path, form):
    if form == "openvino":
        pytest.importorskip("openvino")
    one = restorer("sharpen")
    write(one, tmp_path / "out", form)
    agree(one, tmp_path / "out", holed())


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "openvino", "torch"])
@pytest.mark.parametrize("name", ["hsdt_test", "essaformer_test", "bicubic"])
def test_every_restorer(tmp_path, form, name):
    pytest.importorskip("openvino")
    one = restorer(name)
    write(one, tmp_path / "out", form)
    agree(one, tmp_path / "out", holed())


def test_other_bands_and_units_are_refused(exported):
    loaded = load_exported(exported[1]).restorer
    scene = holed()
    with pytest.raises(ModelError):
        restored_scene(loaded, scene.isel(band=slice(0, 4)))
    shuffled = scene.isel(band=[3, 1, 0, 5, 4, 2])
    found = restored_scene(loaded, shuffled).values
    np.testing.assert_array_equal(found, restored_scene(loaded, scene).values)


def test_a_restorer_without_operators_is_refused_and_nothing_is_left(tmp_path):
    pytest.importorskip("onnxscript")

    class Odd(Sharpen):
        def restore(self, x):
            return torch.from_numpy(np.sort(x.numpy(), 1))

    with pytest.raises(ModelError, match="small cannot be written as onnx"):
        write(restorer_of(holed(), Odd(BANDS)), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_export_that_does_not_agree_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LIMITS", Limits(-1, 1, 1, "x"))
    with pytest.raises(ModelError, match="does not agree"):
        write(restorer("sharpen"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_differences_are_shares_of_a_bands_range(exported):
    """A band that is off by a tenth of its range is, whatever its unit."""
    one = exported[0]

    class Off:
        def restore_tiles(self, tiles):
            found = one.restore_tiles(tiles).clone()
            found[:, 2] += 0.1 * one.ranges.span[2]
            return found

    parity = compare(one, Off(), holed(), "torch")
    assert abs(parity.largest - 0.1) < 1e-4 and abs(parity.mean - 0.1 / BANDS) < 1e-4
    with pytest.raises(ModelError, match="None of the tiles"):
        compare(one, Off(), holed().where(False), "torch")


@pytest.mark.parametrize(
    "edit",
    [
        lambda said: said["settings"].update(scale=1),
        lambda said: said["settings"].update(scale=0),
        lambda said: said["settings"].update(tile_size=10**6),
        lambda said: said["settings"].pop("tile_size"),
        lambda said: said["contract"].update(used=[0, 1, 2]),
        lambda said: said.update(kind="tiles"),
        lambda said: said.update(kind="cube"),
        lambda said: said["files"].clear(),
    ],
)
def test_a_description_that_does_not_fit_is_refused(exported, tmp_path, edit):
    folder = shutil.copytree(exported[1], tmp_path / "copy")
    said = json.loads((folder / "export.json").read_text())
    edit(said)
    (folder / "export.json").write_text(json.dumps(said))
    with pytest.raises((CheckpointError, ModelError, ConfigError)):
        load_exported(folder)


def test_a_graph_of_something_else_is_refused(exported, shared_front, tmp_path):
    folder = shutil.copytree(exported[1], tmp_path / "copy")
    shutil.copy(shared_front[1] / "patches.onnx", folder / "cube.onnx")
    said = json.loads((folder / "export.json").read_text())
    said["files"]["cube.onnx"]["sha256"] = sha256(folder / "cube.onnx")
    (folder / "export.json").write_text(json.dumps(said))
    with pytest.raises((CheckpointError, ModelError)):
        load_exported(folder)


def test_tiles_are_filled_as_one_by_one():
    tiles = torch.randn(4, 3, 5, 7)
    tiles[0, 1, 2, 3] = torch.nan
    tiles[1, :, :2] = torch.nan
    tiles[2] = torch.nan
    tiles[1, 0, 4, 4] = torch.inf
    expected = torch.stack([fill_invalid(tile)[0] for tile in tiles])
    torch.testing.assert_close(fill_tiles(tiles), expected)
