"""A search must round as the layer does that it is for: at the edge between two codes, another order of operations flips one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitreous.layers.quantizers import UniformQuantizer
from vitreous.methods.quantize._adaround import Rounding, StraightThrough
from vitreous.methods.quantize._codes import RATIO, SHIFT, AdaLogQuantizer
from vitreous.methods.quantize._fpcs import logarithmic, uniform

SEEDS = st.integers(0, 2**31)


def around(edges):
    """Return numbers and their nearest neighbours in float32."""
    up, down = torch.tensor(torch.inf), torch.tensor(-torch.inf)
    return torch.cat([edges, torch.nextafter(edges, up), torch.nextafter(edges, down)])


def uniform_edges(bits, seed):
    """Return a quantizer and numbers at the edges between its codes."""
    draw = torch.Generator().manual_seed(seed)
    own = UniformQuantizer(bits).eval()
    zero = torch.randint(0, 2**bits, (), generator=draw)
    own.set_parameters(10 ** (2 * torch.rand((), generator=draw) - 2), zero)
    codes = torch.arange(-1, 2**bits + 1) - own.zero_point
    return own, around((codes + 0.5) * own.scale)


def log_edges(bits, seed, shift):
    draw = torch.Generator().manual_seed(seed)
    own = AdaLogQuantizer(bits, shift).eval()
    base = torch.randint(5, 129, (), generator=draw)
    own.set_parameters(0.1 + 3 * torch.rand((), generator=draw), base)
    edges = torch.exp2(-(torch.arange(2**bits + 1) + 0.5) * base / RATIO) * own.scale
    return own, around(edges.clamp(min=1e-9) - shift)


@given(st.integers(2, 8), SEEDS)
@settings(max_examples=80, deadline=None)
def test_a_uniform_search_has_the_codes_of_the_layer(bits, seed):
    own, x = uniform_edges(bits, seed)
    candidates = own.scale * torch.tensor([0.9, 1.0, 1.1])[:, None]  # several at once, as in use
    searched = uniform(bits)(x, candidates, own.zero_point.expand_as(candidates))
    assert torch.equal(searched[1], own.quantize(x))


@given(st.integers(2, 8), SEEDS, st.sampled_from([0.0, SHIFT]))
@settings(max_examples=80, deadline=None)
def test_a_logarithmic_search_has_the_codes_of_the_layer(bits, seed, shift):
    own, x = log_edges(bits, seed, shift)
    scales, bases = own.scale.expand(3, 1), own.base + torch.tensor([[-1], [0], [1]])
    searched = logarithmic(bits, shift)(x, scales, bases)
    assert torch.equal(searched[1], own.quantize(x) - shift)


@given(st.integers(2, 8), SEEDS)
@settings(max_examples=40, deadline=None)
def test_codes_are_what_is_decoded(bits, seed):
    own, x = uniform_edges(bits, seed)
    assert torch.equal((own.codes(x) - own.zero_point) * own.scale, own.quantize(x))


@given(st.integers(2, 8), SEEDS)
@settings(max_examples=40, deadline=None)
def test_a_reconstruction_has_the_codes_of_the_layer(bits, seed):
    for own, x in (uniform_edges(bits, seed), log_edges(bits, seed, SHIFT)):
        assert torch.equal(StraightThrough(own)(x.requires_grad_()).detach(), own.quantize(x))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_reconstructed_weight_stays_on_its_codes(bits):
    weight = torch.randn(8, 50, generator=torch.Generator().manual_seed(0))
    own = UniformQuantizer(bits, (8, 1)).eval()
    own.calibrate(weight)
    hard = Rounding(weight, own).hard().detach()
    assert torch.equal(own.quantize(hard), hard)
