"""``torch.jit.trace``: the recorded graph gives what the network gives, for another batch too."""

import warnings

import jaxtyping
import pytest
import torch

from vitreous import testing
from vitreous.catalog.registry import cards, create_model

NETWORKS = [f"{entry.slug}_test" for entry in cards() if entry.kind in {"model", "restorer"}]
OPTIONS = [
    ("vit_test", {"positions": "sincos"}),
    ("vit_test", {"positions": "rotary"}),
    ("swin_test", {"absolute_positions": True}),
    ("cvt_test", {"positions": True}),
    ("t2t_vit_test", {"token_attention": "transformer"}),
    ("channelvit_test", {"published_positions": True}),
]


@pytest.fixture(autouse=True)
def without_shape_checks(monkeypatch):
    """A traced size is a tensor, not an int, and the checks' own variables would name nodes of the graph."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@torch.no_grad()
def check_traced(model):
    x, other = testing.images(2, 4, 15), testing.images(5, 4, 15, seed=3)
    model(x)  # what is kept between calls must not end up in the graph as a constant
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # shapes become constants, which is meant: a graph is for one size
        traced = torch.jit.trace(model, x)
    for images in (x, other):
        torch.testing.assert_close(traced(images), model(images))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_can_be_traced(name):
    check_traced(testing.network(name).eval())


@pytest.mark.parametrize(("name", "changes"), OPTIONS)
def test_options_can_be_traced(name, changes):
    model = create_model(name, bands=4, num_classes=3, image_size=15, **changes)
    check_traced(model.eval())


@pytest.mark.parametrize("method", ["tome", "mctf", "gtp_vit", "evit", "ptq_minmax"])
def test_what_methods_change_can_be_traced(method):
    check_traced(testing.changed(method, "vit_test").model.eval())
