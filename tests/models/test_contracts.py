"""Promises of every architecture beyond the conformance matrix: features instead of classes, and images of other shapes."""

from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file

from vitreous import testing
from vitreous.catalog.registry import cards, create_model
from vitreous.checkpoints.assembly import adapt
from vitreous.checkpoints.convert import count_bands
from vitreous.checkpoints.model_files import load_model, save_model
from vitreous.errors import ModelError
from vitreous.layers.backbone import Backbone, FeatureInfo
from vitreous.layers.bands import Bands

SLUGS = [entry.slug for entry in cards() if entry.kind == "model"]
TWO_HEADED = [
    ("vit_test", {"distilled": True}),
    ("efficientvit_test", {"distilled": True}),
    ("efficientformer_test", {"distilled": True}),
    ("spectformer_h_small", {"token_labels": True, "dims": [8, 8], "depths": [1, 1], "heads": [2, 2],
                             "mlp_ratios": [1, 1]}),
]  # fmt: skip
NETWORKS = [(f"{slug}_test", {}) for slug in SLUGS] + TWO_HEADED


def build(name, num_classes, changes):
    return create_model(name, bands=4, num_classes=num_classes, image_size=15, **changes).eval()


@pytest.mark.parametrize(("name", "changes"), NETWORKS)
@torch.no_grad()
def test_without_classes_a_network_returns_what_its_head_would_read(name, changes):
    x = testing.images(2, 4, 15)
    net = build(name, 0, changes)
    assert net(x).shape == (2, net.num_features)
    assert not [key for key in net.state_dict() if "head" in key.split(".")[0]]
    net.reset_head(3)
    assert net(x).shape == (2, 3)
    features = net.forward_features(x)
    net.reset_head(0)
    assert net.num_classes == 0
    assert net(x).shape == (2, net.num_features)
    for old, new in zip(
        testing._tensors(features), testing._tensors(net.forward_features(x)), strict=True
    ):
        assert torch.equal(old, new)  # fmt: skip


@torch.no_grad()
def test_features_are_those_that_the_head_reads():
    x = testing.images(2, 4, 15)
    for name in ("vit_test", "swin_test", "convnext_test", "lola_specvit_test", "cvt_test"):
        net, read = testing.make(name).eval(), []
        net.head.register_forward_pre_hook(lambda _, inputs, read=read: read.append(inputs[0]))
        net(x)
        net.reset_head(0)
        assert torch.equal(net(x), read[0])


def test_a_new_head_is_where_and_what_the_network_is():
    net = create_model("efficientvit_test", bands=4, num_classes=0, image_size=15).double().eval()
    net.reset_head(5)
    assert {(p.dtype, p.device.type) for p in net.parameters()} == {(torch.float64, "cpu")}
    assert not any(module.training for module in net.modules())
    with torch.device("meta"):
        empty = create_model("vit_test", bands=4, num_classes=0, image_size=15)
    empty.reset_head(2)
    assert all(parameter.is_meta for parameter in empty.parameters())


@pytest.mark.parametrize("slug", SLUGS)
@torch.no_grad()
def test_files_keep_networks_without_classes(tmp_path, slug):
    x, path = testing.images(2, 4, 15), tmp_path / "features.safetensors"
    net = build(f"{slug}_test", 0, {})
    save_model(net, path)
    back, report = load_model(path)
    assert torch.equal(back(x), net(x))
    assert report.complete and set(report.used) == set(load_file(path))
    back, report = load_model(path, num_classes=3)
    assert back(x).shape == (2, 3)
    assert report.reset and not set(report.reset) & set(report.used)
    save_model(back, path)
    back, report = load_model(path, num_classes=0)
    assert torch.equal(back(x), net(x))
    assert set(report.used) == set(net.state_dict())
    assert "without a head" in str(report)


@pytest.mark.slow
@pytest.mark.parametrize("slug", SLUGS)
def test_networks_without_classes_can_be_exported(slug):
    for package in ("onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    testing._compare_onnx(build(f"{slug}_test", 0, {}), slug)


@pytest.mark.parametrize("slug", SLUGS)
def test_images_for_levels_are_checked_as_those_for_scores(slug):
    net = testing.make(f"{slug}_test", image_size=15)
    wrong = [testing.images(2, 3, 15), torch.zeros(2, 4, 0, 15)]
    for x in wrong:
        told = []
        for call in (net, net.forward_levels):
            with pytest.raises(ModelError) as caught:
                call(x)
            told.append(str(caught.value))
        assert told[0] == told[1]


@pytest.mark.parametrize("slug", SLUGS)
@torch.no_grad()
def test_maps_of_oblong_images_are_as_oblong(slug):
    net = testing.make(f"{slug}_test", image_size=24).eval()
    if not net.any_size:
        with pytest.raises(ModelError, match="was built for"):
            net.forward_levels(testing.images(1, 4, 48)[..., :24])
        return
    for height, width in ((48, 24), (24, 56)):
        x = testing.images(1, 4, 56)[..., :height, :width]
        for level, info in zip(net.forward_levels(x), net.feature_info, strict=True):
            for side, cells in zip((height, width), level.shape[2:], strict=True):
                assert abs(cells - side / info.stride) < 1, (info, tuple(level.shape))


@pytest.mark.parametrize("slug", ["vit", "ggem", "satmae_pp", "channelvit", "tnt", "spectformer", "convnext"])  # fmt: skip
def test_images_smaller_than_a_token_are_refused_in_words(slug):
    net = testing.make(f"{slug}_test", image_size=15)
    assert net.least_size > 1
    small = testing.images(1, 4, 15)[..., : net.least_size - 1]
    for call in (net, net.forward_levels):
        with pytest.raises(ModelError, match=f"needs images of {net.least_size} pixels"):
            call(small)
    net(testing.images(1, 4, net.least_size))


# -- the checks themselves ----------------------------------------------------------------------------------


class Bandwise(Backbone):
    """A network whose bands are on the first axis of what it learns of them, and whose stem may stay as it was."""

    band_parameters = ("gain", "table")
    band_axes: ClassVar[dict[str, int]] = {"gain": 0, "table": 0}
    any_size = True

    def __init__(self, bands, image_size=15, frozen=()):
        super().__init__(bands, testing.CLASSES, image_size)
        self.num_features, self.frozen = 6, frozen
        self.feature_info = [FeatureInfo(6, 1)]
        self.gain = torch.nn.Parameter(torch.ones(bands))
        self.table = torch.nn.Parameter(torch.randn(bands, 6))
        self.stem_norm = torch.nn.BatchNorm2d(6)
        self.head = self.make_head(testing.CLASSES)

    def level_maps(self, x):
        return [self.stem_norm(torch.einsum("bchw,c,cd->bdhw", x, self.gain, self.table))]

    def forward_features(self, x):
        return self.level_maps(x)[0]

    def forward_head(self, features):
        return self.head(features.mean((2, 3)))


@pytest.fixture
def bandwise(monkeypatch):
    """Give the checks this network, whatever they ask for."""

    def use(**settings):
        def made(name, *, bands=4, image_size=15, seed=0):
            torch.manual_seed(seed)
            return Bandwise(bands, image_size, **settings)

        monkeypatch.setattr(testing, "network", made)

    return use


def test_the_matrix_knows_band_axes_other_than_the_second(bandwise, monkeypatch):
    bandwise()
    testing.check_bands_parameters("bandwise_test")
    monkeypatch.setattr(Bandwise, "band_axes", {"gain": 0})
    with pytest.raises(AssertionError, match=r"axes \[0\] of table"):
        testing.check_bands_parameters("bandwise_test")
    monkeypatch.setattr(Bandwise, "band_axes", {"gain": 0, "table": 0, "head.bias": 0})
    with pytest.raises(AssertionError, match="of no parameter"):
        testing.check_bands_parameters("bandwise_test")


def test_the_matrix_expects_no_gradients_of_what_is_frozen(bandwise, monkeypatch):
    bandwise(frozen=("stem_norm", "gain"))
    testing.check_gradients("bandwise_test")
    testing.check_frozen("bandwise_test")
    bandwise(frozen=("stem_nrm",))
    with pytest.raises(AssertionError, match="does not have"):
        testing.check_frozen("bandwise_test")
    bandwise(frozen=("*",))
    with pytest.raises(AssertionError, match="all of it is frozen"):
        testing.check_frozen("bandwise_test")
    bandwise(frozen=("stem_norm", "gain"))
    monkeypatch.setattr(Bandwise, "train", torch.nn.Module.train)  # which forgets what is frozen
    with pytest.raises(AssertionError, match=r"changes \['gain', 'stem_norm.*which is frozen"):
        testing.check_frozen("bandwise_test")


def test_the_matrix_finds_what_is_confused_on_oblong_images(bandwise, monkeypatch):
    bandwise()
    testing.check_oblong("bandwise_test")
    whole = Bandwise.level_maps
    for wrong, said in (
        (lambda self, x: whole(self, x.transpose(2, 3)), "cells of"),
        (lambda self, x: whole(self, x[..., : x.shape[2]]), "every column"),
        (lambda self, x: whole(self, x[:, :, : x.shape[3]]), "every row"),
    ):
        monkeypatch.setattr(Bandwise, "level_maps", wrong)
        with pytest.raises(AssertionError, match=said):
            testing.check_oblong("bandwise_test")


def test_weights_of_bands_on_the_first_axis_are_adapted():
    source, target = Bands(4, (450.0, 550.0, 650.0, 850.0)), Bands(2, (655.0, 455.0))
    model = Bandwise(2)
    weights = {key: value.clone() for key, value in Bandwise(4).state_dict().items()}
    adapted, names, how, _ = adapt(weights, model, source, target, "auto")
    assert (names, how) == (["gain", "table"], "nearest")
    assert adapted["gain"].shape == (2,) and adapted["table"].shape == (2, 6)
    probe = SimpleNamespace(build_empty=lambda: model)
    assert count_bands({"table": torch.zeros(7, 6)}, probe) == 7
