import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fixtures_reader import load_fixture
from vitreous.errors import ModelError
from vitreous.layers import quantizers
from vitreous.layers.quantize import (
    QuantConv,
    QuantLinear,
    QuantMatMul,
    calibrate_weights,
    observing,
    set_enabled,
    set_trainable,
)
from vitreous.layers.quantizers import Log2Quantizer, LogSqrt2Quantizer, UniformQuantizer, quantiles
from vitreous.models.lola_specvit import SpectralConv


@pytest.fixture(scope="module")
def fixture():
    return load_fixture("repq_vit")


def values(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ready(quantizer, x):
    quantizer.eval().calibrate(x)
    return quantizer


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize(
    ("case", "key", "shape", "covers_zero"),
    [
        ("x_channelwise", "x", (16,), False),
        ("x_layerwise", "x", (), True),
        ("w_channelwise", "w", (12, 1), True),
    ],
)
def test_uniform_codes_are_the_references(fixture, bits, case, key, shape, covers_zero):
    x, expected = fixture["input"][key], fixture["output"]["quantizers"][f"{case}_{bits}"]
    quantizer = ready(UniformQuantizer(bits, shape, covers_zero=covers_zero), x)
    torch.testing.assert_close(quantizer.scale.flatten(), expected["delta"].flatten())
    assert torch.equal(quantizer.zero_point.flatten(), expected["zero_point"].flatten())
    torch.testing.assert_close(quantizer(x), expected["y"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [3, 4, 6])
def test_logarithmic_codes_are_the_references(fixture, bits):
    x, expected = fixture["input"]["attn"], fixture["output"]["quantizers"][f"attn_logsqrt2_{bits}"]
    quantizer = ready(LogSqrt2Quantizer(bits), x)
    torch.testing.assert_close(quantizer.scale, expected["delta"])
    torch.testing.assert_close(quantizer(x), expected["y"])


@given(
    st.integers(2, 10),
    st.floats(-50, 50),
    st.floats(0.01, 50),
    st.sampled_from([(), (5,), (6, 1), (6, 5)]),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_rounding_twice_is_rounding_once(bits, centre, spread, shape, covers_zero, symmetric):
    x = centre + spread * values(7, 6, 5)
    options = {"covers_zero": covers_zero, "symmetric": symmetric}
    quantizer = ready(UniformQuantizer(bits, shape, quantiles=(1.0,), **options), x)
    once = quantizer(x)
    size = float(x.abs().max())
    torch.testing.assert_close(quantizer(once), once, rtol=1e-5, atol=1e-5 * size)
    # True ranges clip nothing: every value is at most half a step away, but at the ends of a rounded zero point.
    step = quantizer.scale.expand_as(x) if shape else quantizer.scale
    assert ((once - x).abs() <= 1.001 * step + 1e-5 * size).all()


def test_codes_and_values_belong_together():
    x = 3 + values(40, 6)
    for options in ({}, {"symmetric": True}, {"covers_zero": False}):
        quantizer = ready(UniformQuantizer(4, (6,), quantiles=(1.0,), **options), x)
        codes = quantizer.codes(x)
        assert torch.equal(codes, codes.round())
        assert codes.min() >= quantizer.lowest and codes.max() <= 15
        torch.testing.assert_close(
            (codes - quantizer.zero_point) * quantizer.scale, quantizer(x), rtol=1e-5, atol=1e-5
        )


def test_a_range_that_covers_zero_has_a_code_for_it():
    x = 5 + values(100).abs()
    covering = ready(UniformQuantizer(4), x)
    assert covering.zero_point == 0
    assert covering(torch.zeros(1)) == 0
    fine = ready(UniformQuantizer(4, covers_zero=False), x)
    assert fine.zero_point < 0
    assert (fine(x) - x).square().mean() < (covering(x) - x).square().mean() / 4


def test_symmetric_codes_have_no_zero_point_to_speak_of():
    weight = values(6, 30) + 0.5
    quantizer = ready(UniformQuantizer(8, (6, 1), quantiles=(1.0,), symmetric=True), weight)
    assert (quantizer.zero_point == 128).all()
    signed = quantizer.codes(weight) - 128
    assert signed.abs().amax(1).tolist() == [127] * 6
    torch.testing.assert_close(-quantizer(weight), quantizer(-weight))


def test_six_decibels_are_one_bit():
    x = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    noise = []
    for bits in (4, 6, 8):
        quantizer = ready(UniformQuantizer(bits, quantiles=(1.0,)), x)
        noise.append(float((quantizer(x) - x).square().mean()))
    assert 10 * math.log10(noise[0] / noise[1]) == pytest.approx(12.04, abs=1)
    assert 10 * math.log10(noise[1] / noise[2]) == pytest.approx(12.04, abs=1)


def test_constant_and_empty_channels_are_kept():
    x = torch.stack([torch.zeros(9), torch.full((9,), 3.0), torch.full((9,), -2.0)], 1)
    for covers_zero in (True, False):
        quantizer = ready(UniformQuantizer(4, (3,), covers_zero=covers_zero), x)
        torch.testing.assert_close(quantizer(x), x)
    assert torch.equal(ready(UniformQuantizer(4), torch.zeros(8))(torch.zeros(8)), torch.zeros(8))
    assert torch.equal(ready(LogSqrt2Quantizer(4), torch.zeros(8))(torch.zeros(8)), torch.zeros(8))


def test_quantiles_are_those_of_sorting():
    rows, shares = values(3, 997), [0.0, 0.001, 0.25, 0.9999, 1.0]
    torch.testing.assert_close(
        quantiles(rows, shares), torch.quantile(rows, torch.tensor(shares), dim=1)
    )
    assert torch.equal(quantiles(rows, [1.0, 0.0]), torch.stack([rows.amax(1), rows.amin(1)]))
    single = values(2, 1)
    assert torch.equal(quantiles(single, [0.3])[0], single[:, 0])


def test_very_many_values_are_sampled_evenly(monkeypatch):
    x = values(500, 16) * torch.arange(1, 17)  # channels differ in size
    whole = ready(UniformQuantizer(8), x).scale
    monkeypatch.setattr(quantizers, "MOST", 1000)
    assert quantizers.rows_of(x, ()).numel() <= 1000
    assert ready(UniformQuantizer(8), x).scale == pytest.approx(float(whole), rel=0.15)
    channels = ready(UniformQuantizer(8, (16,)), x).scale
    assert channels[15] > 4 * channels[0]


def test_more_values_than_torch_can_sort_quantiles_of():
    x = torch.linspace(0, 1, 2**24 + 2)
    quantizer = ready(UniformQuantizer(8, quantiles=(1.0,)), x)
    assert float(quantizer.scale) == pytest.approx(1 / 255, rel=1e-4)


def test_powers_of_two():
    x = torch.cat([torch.rand(500, generator=torch.Generator().manual_seed(0)), torch.zeros(1)])
    two, root = (ready(kind(4, quantiles=(1.0,)), x) for kind in (Log2Quantizer, LogSqrt2Quantizer))
    scale = x.max()
    for quantizer, steps in ((two, 1), (root, 2)):
        allowed = torch.cat([scale * 2 ** (-torch.arange(16.0) / steps), torch.zeros(1)])
        rounded = quantizer(x)
        assert ((rounded[:, None] - allowed).abs() < 1e-6).any(1).all()
        assert quantizer(scale) == scale
        assert quantizer(2 * scale) == scale
        assert quantizer(scale * 2 ** (-16 / steps)) == 0
        assert rounded[-1] == 0
    even = scale * 2 ** -torch.arange(8.0)
    torch.testing.assert_close(root(even), two(even))


def test_half_steps_suit_diffuse_attention():
    scores = values(4, 3, 65, 65).softmax(-1)
    value = values(4, 3, 65, 16, seed=1)
    exact = scores @ value
    error = {
        type(q): float((ready(q, scores)(scores) @ value - exact).square().mean())
        for q in (UniformQuantizer(4), Log2Quantizer(4), LogSqrt2Quantizer(4))
    }
    assert error[LogSqrt2Quantizer] < error[UniformQuantizer] / 2
    assert error[LogSqrt2Quantizer] < error[Log2Quantizer] / 3


def test_a_second_tensor_widens_the_range():
    low, high = -torch.rand(50), 3 * torch.rand(50)
    for quantizer in (
        UniformQuantizer(8, quantiles=(1.0,)),
        UniformQuantizer(8, (), symmetric=True),
    ):
        with observing(quantizer.eval()):
            quantizer(low), quantizer(high)
        for x in (low, high):
            assert (quantizer(x) - x).abs().max() < 2 * quantizer.scale
    logarithm = LogSqrt2Quantizer(8, quantiles=(1.0,)).eval()
    with observing(logarithm):
        logarithm(high), logarithm(high / 2)
    assert logarithm.scale == high.max()


def linear(bits=8, **options):
    torch.manual_seed(0)
    plain = nn.Linear(6, 4, **options).eval()
    return plain, QuantLinear.of(plain, UniformQuantizer(bits), UniformQuantizer(bits, (4, 1)))


def calibrated(layer, *inputs):
    calibrate_weights(layer)
    with torch.no_grad(), observing(layer):
        layer(*inputs)
    return layer


def test_a_quantized_linear_layer_multiplies_rounded_factors():
    plain, layer = linear()
    x = values(5, 6)
    calibrated(layer, x)
    expected = F.linear(layer.input_quantizer(x), layer.weight_quantizer(plain.weight), plain.bias)
    assert torch.equal(layer(x), expected)
    assert not torch.equal(layer(x), plain(x))
    torch.testing.assert_close(layer(x), plain(x), rtol=0.05, atol=0.05)
    assert set(plain.state_dict()) < set(layer.state_dict())
    set_enabled(layer, False)
    assert torch.equal(layer(x), plain(x))


def test_a_bias_is_made_where_one_is_needed():
    plain, _ = linear(bias=False)
    quantizers = UniformQuantizer(8), UniformQuantizer(8, (4, 1))
    assert QuantLinear.of(plain, *quantizers).bias is None
    assert torch.equal(QuantLinear.of(plain, *quantizers, bias=True).bias, torch.zeros(4))


def test_weights_are_rounded_once_and_again_when_they_change():
    _, layer = linear()
    calibrated(layer, values(5, 6))
    first = layer.quantized_weight()
    assert layer.quantized_weight() is first
    assert copy.deepcopy(layer)._quantized is None
    with torch.no_grad():
        layer.weight.mul_(0.5)
    halved = layer.quantized_weight()
    assert not torch.equal(halved, first)
    layer.calibrate_weight()
    torch.testing.assert_close(layer.quantized_weight(), first / 2)
    state = {key: torch.zeros_like(value) for key, value in layer.state_dict().items()}
    layer.load_state_dict({**state, "weight_quantizer.scale": torch.ones(4, 1)})
    assert not layer.quantized_weight().any()


@pytest.mark.parametrize(
    ("conv", "shape"),
    [
        (nn.Conv1d(3, 4, 3, padding=1), (2, 3, 9)),
        (nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=4, bias=False), (2, 4, 9, 9)),
        (nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), (2, 3, 9, 9)),
        (nn.Conv3d(2, 4, (3, 1, 1)), (2, 2, 5, 4, 4)),
        (SpectralConv(1, 4, (7, 3, 3)), (2, 1, 9, 5, 5)),
    ],
)
def test_a_quantized_convolution_keeps_its_own_way(conv, shape):
    conv = conv.eval()
    plain = copy.deepcopy(conv)
    weights = UniformQuantizer(8, (conv.out_channels, *[1] * (conv.weight.ndim - 1)))
    layer = QuantConv(conv, UniformQuantizer(8), weights)
    x = values(*shape)
    calibrated(layer, x)
    assert set(plain.state_dict()) < set(layer.state_dict())
    with torch.no_grad():
        rounded = copy.deepcopy(plain)
        rounded.weight.copy_(layer.weight_quantizer(plain.weight))
        torch.testing.assert_close(layer(x), rounded(layer.input_quantizer(x)))
        set_enabled(layer, False)
        torch.testing.assert_close(layer(x), plain(x))


def test_products_take_scales_per_head():
    product = QuantMatMul(
        UniformQuantizer(8, (3, 1, 1), quantiles=(1.0,)), UniformQuantizer(8, quantiles=(1.0,))
    ).eval()
    a = values(2, 3, 5, 4) * torch.tensor([0.01, 1.0, 100.0])[:, None, None]
    b = values(2, 3, 4, 6, seed=1)
    calibrated(product, a, b)
    scales = product.a_quantizer.scale.flatten()
    assert scales[2] > 50 * scales[1] > 2500 * scales[0]
    error = (product(a, b) - a @ b).square().sum((0, 2, 3)) / (a @ b).square().sum((0, 2, 3))
    assert (error < 1e-3).all()


def test_training_through_a_quantizer_is_refused():
    _, layer = linear()
    x = values(5, 6)
    calibrated(layer, x)
    layer.train()
    with pytest.raises(ModelError, match="trained"):
        layer(x)
    with torch.no_grad():
        layer(x)
    set_enabled(layer, False)
    layer(x).sum().backward()


def test_what_was_not_observed_is_named():
    model = nn.ModuleDict({"used": linear()[1], "idle": linear()[1]})
    with pytest.raises(ModelError, match="idle"), observing(model):
        model["used"](values(5, 6))
    assert not any(getattr(module, "observing", False) for module in model.modules())


@pytest.mark.parametrize("bits", [0, 1, 17, 4.0, "4", None])
def test_bits_out_of_range_are_refused(bits):
    with pytest.raises(ModelError, match="bits"):
        UniformQuantizer(bits)


def test_gradients_pass_straight_through_where_asked_for_and_not_where_values_are_clipped():
    x = torch.linspace(-1, 1, 9)
    quantizer = ready(UniformQuantizer(4, quantiles=[1]), x).train()
    quantizer.trainable = True
    further = torch.cat([x, torch.tensor([-2.0, 2.0])]).requires_grad_()
    rounded = quantizer(further)
    assert torch.equal(rounded, quantizer.quantize(further.detach()))
    rounded.sum().backward()
    assert further.grad.tolist() == [1.0] * 9 + [0.0] * 2
    quantizer.trainable = False
    with pytest.raises(ModelError, match="cannot be trained"):
        quantizer(further)


def test_a_trainable_quantized_layer_learns_its_rounded_weight():
    torch.manual_seed(0)
    linear = nn.Linear(6, 4)
    layer = QuantLinear.of(
        linear, UniformQuantizer(4, quantiles=[1]), UniformQuantizer(3, (4, 1), quantiles=[1])
    )
    x, target = values(64, 6), values(64, 4, seed=1)
    calibrate_weights(layer)
    with observing(layer.eval()):
        layer(x)
    set_trainable(layer.train(), True)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    losses = []
    for _ in range(30):
        loss = F.mse_loss(layer(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    set_trainable(layer.eval(), False)
    assert float(F.mse_loss(layer(x), target).detach()) < 0.9 * losses[0]
