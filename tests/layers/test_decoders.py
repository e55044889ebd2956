"""Decoders: every size and kind of levels, geometry that stays in place, and norms that look at one cell."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitreous.catalog.registry import create_model, list_models
from vitreous.errors import ModelError
from vitreous.layers.backbone import FeatureInfo
from vitreous.layers.decoders import DECODERS, CellNorm, DenseNet, resize, zoomed

BANDS, CLASSES = 3, 4


def dense(model="vit_test", size=18, decoder="fpn", **changes):
    torch.manual_seed(0)
    trunk = create_model(model, bands=BANDS, num_classes=CLASSES, image_size=size, **changes)
    return DenseNet(trunk, decoder, width=8).eval()


def images(size, count=2):
    return torch.randn(count, BANDS, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("decoder", "model", "size"),
    [
        *(("fpn", model, 17) for model in list_models("*_test", kind="model")),
        *(("upernet", model, 30) for model in ("vit_test", "convnext_test")),
    ],
)
def test_every_pixel_is_scored_whatever_the_strides(decoder, model, size):
    net, x = dense(model, size, decoder), images(size)
    with torch.no_grad():
        scores = net(x)
        alone = net(x[:1])
    assert scores.shape == (2, CLASSES, size, size)
    assert torch.isfinite(scores).all()
    torch.testing.assert_close(scores[:1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_gradient_reaches_all_of_the_decoder(decoder):
    net = dense("convnext_test", 32, decoder).train()
    net(images(32)).square().sum().backward()
    silent = [
        name
        for name, parameter in net.named_parameters()
        if not name.startswith("trunk.") and (parameter.grad is None or not parameter.grad.any())
    ]
    assert silent == []


@pytest.mark.parametrize("decoder", DECODERS)
def test_coarse_levels_reach_the_finest_map(decoder):
    levels = [FeatureInfo(5, 2), FeatureInfo(6, 4), FeatureInfo(7, 16)]
    merge = DECODERS[decoder](levels, 8).eval()
    maps = [torch.randn(1, i.channels, 33 // i.stride, 33 // i.stride) for i in levels]
    with torch.no_grad():
        before = merge(maps)
        assert before.shape == (1, 8, 16, 16)
        for number, level in enumerate(maps):
            changed = [*maps[:number], level + torch.randn(level.shape), *maps[number + 1 :]]
            assert (merge(changed) - before).abs().max() > 1e-3


def test_a_pixel_keeps_its_place():
    """A map of cell centres, enlarged, is the map of pixel centres, also where the last cell is incomplete."""
    for stride, cells, size in ((2, 8, 16), (3, 5, 17), (4, 4, 14), (1.5, 8, 12)):
        centres = ((torch.arange(cells) + 0.5) * stride)[None, None, None].expand(1, 1, cells, -1)
        found = resize(centres, stride, (size, size))[0, 0, 0]
        expected = torch.arange(size) + 0.5
        inside = slice(int(stride), int(stride * (cells - 1)))  # between the outer cells' centres
        torch.testing.assert_close(found[inside], expected[inside])


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([0.5, 1, 1.5, 2, 3, 8]),
    st.integers(1, 40),
    st.integers(1, 40),
)
def test_a_constant_map_stays_constant_at_every_size(h, w, ratio, height, width):
    found = resize(torch.full((1, 2, 2 * h, 2 * w), 3.0), ratio, (height, width))
    torch.testing.assert_close(found, torch.full((1, 2, height, width), 3.0))


def test_zooming_out_is_the_mean_and_keeps_an_incomplete_cell():
    x = torch.arange(25.0).view(1, 1, 5, 5)
    half = zoomed(x, 0.5)
    assert half.shape == (1, 1, 3, 3)
    assert half[0, 0, 0, 0] == x[0, 0, :2, :2].mean()
    assert half[0, 0, 2, 2] == x[0, 0, 4, 4]
    assert zoomed(x, 2).shape == (1, 1, 10, 10)


def test_levels_of_one_stride_become_a_pyramid():
    net = dense("vit_test", 24, depth=4)
    assert net.decoder.pyramid.strides == [1.5, 3, 6, 12]
    same = dense("convnext_test", 64)
    assert same.decoder.pyramid.strides == [float(i.stride) for i in same.trunk.feature_info]


def test_the_norm_looks_at_one_cell():
    norm, x = CellNorm(6), torch.randn(2, 6, 4, 5)
    before = norm(x)
    x[:, :, 0] += 7 * torch.randn(2, 6, 5)
    torch.testing.assert_close(norm(x)[:, :, 1:], before[:, :, 1:])
    torch.testing.assert_close(before.mean(1), torch.zeros(2, 4, 5), atol=1e-5, rtol=0)


def test_a_new_head_leaves_the_rest_alone():
    net = dense()
    weights = {n: t.clone() for n, t in net.state_dict().items() if not n.startswith("head.")}
    net.reset_head(7)
    assert net(images(18)).shape[1] == net.num_classes == 7
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in weights.items())


def test_weight_decay_spares_vectors_and_what_the_trunk_spares():
    net = dense()
    names = dict(net.named_parameters())
    spared = net.no_weight_decay()
    assert spared <= set(names)
    assert {name for name, parameter in names.items() if parameter.ndim <= 1} <= spared
    assert "trunk.pos_embed" in spared
    assert "decoder.smooth.0.weight" not in spared


def test_bad_input_is_refused_in_words():
    trunk = create_model("vit_test", bands=BANDS, num_classes=CLASSES, image_size=18)
    with pytest.raises(ModelError, match=r"Unknown decoder: fpm\. Did you mean .fpn."):
        DenseNet(trunk, "fpm")
    with pytest.raises(ModelError, match="Linear has no feature maps"):
        DenseNet(torch.nn.Linear(3, 3))
    with pytest.raises(ModelError, match="3 bands"):
        dense()(torch.zeros(1, BANDS + 1, 18, 18))


def test_without_classes_every_pixel_has_its_features():
    trunk = create_model("swin_test", bands=3, num_classes=0, image_size=16)
    net, x = DenseNet(trunk, width=8).eval(), torch.randn(1, 3, 16, 16)
    assert net(x).shape == (1, 8, 16, 16)
    net.reset_head(2)
    assert net(x).shape == (1, 2, 16, 16)
    net.reset_head(0)
    assert net(x).shape == (1, 8, 16, 16)
