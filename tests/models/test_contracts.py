"""Promises of every architecture beyond the conformance matrix: features instead of classes, and images of other shapes."""

import pytest
import torch
from safetensors.torch import load_file

from vitreous import testing
from vitreous.catalog.registry import cards, create_model
from vitreous.errors import ModelError
from vitreous.tasks.weights import load_model, save_model

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
