"""The perceptron on single spectra: every pixel by itself, at any size down to one pixel."""

import pytest
import torch

from vitreous.catalog.registry import create_model
from vitreous.errors import VitreousError
from vitreous.testing import images, make


def test_one_pixel_is_an_image():
    net = make("spectral_mlp_test", bands=6, image_size=1).eval()
    x = images(4, 6, 1)
    first, second = (layer[0] for layer in net.layers)
    spectra = x[:, :, 0, 0]
    hidden = torch.nn.functional.gelu(spectra @ first.weight.T + first.bias)
    hidden = torch.nn.functional.gelu(hidden @ second.weight.T + second.bias)
    torch.testing.assert_close(net(x), hidden @ net.head.weight.T + net.head.bias)


def test_pixels_do_not_see_each_other():
    net = make("spectral_mlp_test", bands=6, image_size=5).eval()
    x = images(1, 6, 5)
    changed = x.clone()
    changed[:, :, 2, 3] += 1
    differs = (net.forward_features(x) != net.forward_features(changed)).any(1)[0]
    assert differs.nonzero().tolist() == [[2, 3]]
    shuffled = x.flatten(2)[:, :, torch.randperm(25)].reshape(x.shape)
    torch.testing.assert_close(net(x), net(shuffled))


def test_every_hidden_layer_is_a_level():
    net = create_model("spectral_mlp", bands=3, num_classes=2, image_size=4, width=8, depth=3)
    assert [tuple(level.shape) for level in net.forward_levels(torch.zeros(2, 3, 4, 5))] == [
        (2, 8, 4, 5)
    ] * 3
    assert [(info.channels, info.stride) for info in net.feature_info] == [(8, 1)] * 3


def test_no_hidden_layer_is_refused():
    with pytest.raises(VitreousError, match="depth"):
        create_model("spectral_mlp", bands=3, num_classes=2, image_size=1, depth=0)
