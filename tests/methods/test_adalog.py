import copy

import pytest
import torch
from torch import nn

import vitreous
from fixtures_reader import load_fixture
from vitreous.errors import ModelError
from vitreous.layers.quantize import (
    QuantConv,
    QuantLinear,
    QuantMatMul,
    quantized_layers,
    set_enabled,
)
from vitreous.layers.quantizers import Log2Quantizer, LogSqrt2Quantizer, UniformQuantizer
from vitreous.methods.quantize import _fpcs
from vitreous.methods.quantize._adaround import Rounding, blocks
from vitreous.methods.quantize._codes import (
    SHIFT,
    AdaLogQuantizer,
    ShiftedLinear,
    decode_table,
    shift_and_table,
)
from vitreous.methods.quantize._fpcs import (
    Budget,
    Factor,
    Setting,
    alternate,
    uniform,
    uniform_start,
)
from vitreous.methods.quantize._search import (
    fold_channels,
    search_linear,
    search_product,
    windows,
)
from vitreous.testing import images, make

REFERENCE = Budget(published=True)
QUICK = {"rounds": 1, "steps": 2}


@pytest.fixture(scope="module")
def fixture():
    return load_fixture("adalog")


@pytest.fixture(scope="module")
def inputs(fixture):
    return fixture["input"]


@pytest.fixture(scope="module")
def calibrations(fixture):
    return fixture["output"]["calibration"]


@pytest.fixture(scope="module")
def quick():
    """A network before and after."""
    plain = make("vit_test").eval()
    return plain, vitreous.apply(plain, "adalog", calibration=[images(16, 4, 15)], **QUICK).model


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quantizer(bits, base, scale=1.0, shift=0.0):
    made = AdaLogQuantizer(bits, shift)
    made.set_parameters(torch.tensor(scale), torch.tensor(base))
    return made


def linear(weight, bias, own=None, bits=4, cls=QuantLinear):
    outputs, width = weight.shape
    made = cls(
        width, outputs, True, own or UniformQuantizer(bits), UniformQuantizer(bits, (outputs, 1))
    )
    made.weight.data.copy_(weight)
    made.bias.data.copy_(bias)
    return made.eval().requires_grad_(False)


def same(found, wanted, rtol=1e-4, atol=1e-5):
    torch.testing.assert_close(found.reshape(wanted.shape), wanted, rtol=rtol, atol=atol)


# -- codes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [3, 4, 6])
@pytest.mark.parametrize("base", [20, 37, 52, 74, 111])
def test_codes_are_the_authors(fixture, inputs, bits, base):
    wanted = fixture["output"]["quantizers"][f"adalog_b{bits}_q{base}"]
    same(quantizer(bits, base).quantize(inputs["attn"]), wanted["y"], atol=0)
    shift, table = shift_and_table(torch.tensor(base), bits)
    same(shift.float(), wanted["table1"])
    same(table, wanted["table2"])


@pytest.mark.parametrize("bits", [3, 4])
def test_shifted_codes_are_the_authors(fixture, inputs, bits):
    wanted = fixture["output"]["quantizers"][f"shift_adalog_b{bits}_q25_s3"]["y"]
    same(quantizer(bits, 25, 3.0, SHIFT).quantize(inputs["gelu"]) - SHIFT, wanted)


@pytest.mark.parametrize("bits", [3, 4, 6])
def test_log2_is_one_of_the_bases(fixture, inputs, bits):
    wanted = fixture["output"]["quantizers"]
    assert torch.equal(
        quantizer(bits, 37).quantize(inputs["attn"]), Log2Quantizer(bits).quantize(inputs["attn"])
    )
    same(Log2Quantizer(bits).quantize(inputs["attn"]), wanted[f"log2_b{bits}"]["y"])
    same(LogSqrt2Quantizer(bits).quantize(inputs["attn"]), wanted[f"logsqrt2_b{bits}"]["y"])


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_tables(bits):
    bases = torch.arange(1, 138)
    _, table = shift_and_table(bases, bits)
    values = decode_table(bases, bits)
    assert ((table >= 0.5) & (table <= 1)).all()
    assert (values.diff(dim=-1) <= 0).all()
    assert (values[:, 0] == 1).all()
    assert (values[:, -1] == 0).all()


def test_quantizing_twice_changes_nothing_and_zero_stays_zero():
    own = quantizer(4, 74, 0.7)
    once = own.quantize(random(4, 50).softmax(-1))
    assert torch.equal(own.quantize(once), once)
    assert own.quantize(torch.zeros(3)).eq(0).all()


def test_smooth_codes_have_gradients_and_differ_by_the_table_only():
    own, x = quantizer(6, 25, 0.05), random(4, 50).softmax(-1).requires_grad_()
    own.scale.requires_grad_()
    smooth = own.smooth(x)
    torch.testing.assert_close(smooth, own.quantize(x), rtol=0.01, atol=0)
    smooth.sum().backward()
    clipped = (
        x >= own.scale
    )  # only what is clipped follows the scale, and it alone does not follow the input
    torch.testing.assert_close(own.scale.grad, clipped.sum().float())
    assert torch.equal(x.grad > 0, ~clipped)


# -- search -------------------------------------------------------------------------------------------------


def test_search_of_attention_and_values_is_the_authors(inputs, calibrations):
    wanted = calibrations["attn_v_w4"]
    layer = QuantMatMul(AdaLogQuantizer(4), UniformQuantizer(4, (2, 1, 1))).eval()
    a, b = inputs["attn"], inputs["v"]
    search_product(layer, a, b, a @ b, REFERENCE)
    assert layer.a_quantizer.base == wanted["q"]
    same(layer.b_quantizer.scale, wanted["B_scale"])
    same(layer.b_quantizer.zero_point, wanted["B_zero"])
    same(layer(a, b), wanted["out"])


def test_search_of_queries_and_keys_is_the_authors(inputs, calibrations):
    wanted = calibrations["q_k_a4"]
    layer = QuantMatMul(UniformQuantizer(4, (2, 1, 1)), UniformQuantizer(4, (2, 1, 1))).eval()
    a, b = inputs["q"], inputs["k"]
    search_product(layer, a, b, a @ b, REFERENCE)
    for own, side in ((layer.a_quantizer, "A"), (layer.b_quantizer, "B")):
        same(own.scale, wanted[f"{side}_scale"])
        same(own.zero_point, wanted[f"{side}_zero"])
    same(layer(a, b), wanted["out"])


def test_search_of_a_linear_layer_is_the_authors(inputs, calibrations):
    wanted = calibrations["linear_fpcs_w4a4"]
    layer = linear(wanted["weight"], wanted["bias"])
    search_linear(layer, inputs["x"], wanted["float_out"], REFERENCE)
    same(layer.weight_quantizer.scale, wanted["w_scale"][0])
    same(layer.weight_quantizer.zero_point, wanted["w_zero"][0])
    same(layer.input_quantizer.scale, wanted["a_scale"][0])
    same(layer.input_quantizer.zero_point, wanted["a_zero"][0])
    same(layer(inputs["x"]), wanted["out"])


def test_search_behind_a_gelu_is_the_authors_and_so_is_the_folded_bias(inputs, calibrations):
    wanted = calibrations["post_gelu_w4a4"]
    layer = linear(wanted["weight"], wanted["bias"], AdaLogQuantizer(4, SHIFT), cls=ShiftedLinear)
    search_linear(layer, inputs["gelu"], wanted["float_out"], REFERENCE)
    assert layer.input_quantizer.base == wanted["q"]
    same(layer.input_quantizer.scale, wanted["a_scale"][0])
    same(layer.weight_quantizer.scale, wanted["w_scale"][0])
    same(layer.weight_quantizer.zero_point, wanted["w_zero"][0])
    same(layer(inputs["gelu"]), wanted["out_after_bias_reparam"])
    same(layer.folded_bias(layer.quantized_weight()), wanted["bias_after"])
    plain = layer.input_quantizer.quantize(inputs["gelu"]) - SHIFT
    before = nn.functional.linear(plain, layer.quantized_weight(), layer.bias)
    same(layer(inputs["gelu"]), before)


def test_search_per_channel_and_its_folding_are_the_authors(inputs, calibrations):
    wanted = calibrations["ln_qkv_reparam_w4a4"]
    norm = nn.LayerNorm(24).requires_grad_(False)
    norm.weight.copy_(wanted["ln_weight"])
    norm.bias.copy_(wanted["ln_bias"])
    layer = linear(wanted["weight"], wanted["bias"])
    search_linear(layer, norm(inputs["z"]), wanted["float_out"], REFERENCE, norm)
    # One channel's two best zero points are equally good to seven digits, and the authors take the other one.
    differ = (norm.bias - wanted["ln_bias_after"]).abs() > 1e-4
    assert differ.sum() <= 1
    same(norm.weight, wanted["ln_weight_after"])
    same(layer.weight, wanted["weight_after"])
    same(norm.bias[~differ], wanted["ln_bias_after"][~differ], atol=1e-4)
    set_enabled(layer, False)
    same(layer(norm(inputs["z"])), wanted["float_out"])


def test_search_behind_a_folded_norm_is_the_authors(inputs, calibrations):
    wanted = calibrations["ln_qkv_reparam_w4a4"]
    x = nn.functional.layer_norm(
        inputs["z"], (24,), wanted["ln_weight_after"], wanted["ln_bias_after"]
    )
    layer = linear(wanted["weight_after"], wanted["bias_after"])
    search_linear(layer, x, wanted["float_out"], REFERENCE)
    same(layer.weight_quantizer.scale, wanted["w_scale"].flatten())
    # Two zero points give one row of weights the same values, and the authors take the other one.
    differ = layer.weight_quantizer.zero_point.flatten() != wanted["w_zero"].flatten()
    assert differ.sum() <= 1
    same(layer.input_quantizer.scale, wanted["a_scale"][0])
    same(layer.input_quantizer.zero_point, wanted["a_zero"][0])
    same(layer(x), wanted["out"], atol=1e-4)


def test_folding_equal_channels_does_nothing():
    tokens = random(40, 1).expand(-1, 6).contiguous()
    norm, layer = nn.LayerNorm(6).requires_grad_(False), linear(random(4, 6), random(4))
    before = copy.deepcopy((norm.state_dict(), layer.state_dict()))
    moved = fold_channels(norm, layer, tokens, REFERENCE)
    torch.testing.assert_close(
        (norm.state_dict(), layer.state_dict()), before, rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(moved, tokens, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 1), (20, 1), (1, 6)])
@pytest.mark.parametrize("columns", [4, 50])
def test_scores_are_the_errors_of_the_product(shape, columns, monkeypatch):
    """Up to a constant, and whatever pieces they are computed in."""
    left, right = random(20, 6), random(6, columns, seed=1)
    wanted = left @ right + 0.1 * random(20, columns, seed=2)
    scale = 0.1 + 0.1 * torch.rand(7, *shape, generator=torch.Generator().manual_seed(3))
    settings = Setting(scale, torch.full_like(scale, 8.0))
    if shape[1] > 1:  # one scale per channel is only searched for the values themselves
        right, wanted = None, left
    found = []
    for chunk in (1, 2**19):
        monkeypatch.setattr(_fpcs, "CHUNK", chunk)
        found.append(_fpcs.scorer(left, right, wanted, uniform(4), shape)(settings))
    torch.testing.assert_close(*found)
    quantized = torch.stack([uniform(4)(left, *pair) for pair in zip(*settings, strict=True)])
    error = (quantized if right is None else quantized @ right) - wanted
    axes = [axis + 1 for axis, size in enumerate(shape) if size == 1]
    naive = error.square().sum(axes, keepdim=True)
    torch.testing.assert_close(found[0] - found[0][:1], naive - naive[:1], rtol=1e-3, atol=1e-3)


def test_one_search_scores_six_times_128_candidates():
    factor, scored = Factor(random(30, 5), (1, 1), 4, 8), []
    grid, step = _fpcs.uniform_grid(factor, REFERENCE)

    def score(candidates):
        scored.append(len(candidates.scale))
        return (candidates.scale - 0.123).square()

    found = _fpcs.fpcs(score, grid, step, REFERENCE, 0.0)
    assert scored == [128] * 6
    assert found.scale.shape == (1, 1)


def test_taking_turns_never_gets_worse():
    a, b = random(2, 3, 12, 8), random(2, 3, 9, 8, seed=1)
    product = a @ b.mT
    first, second = (Factor(values, (1, 3, 1, 1), 3, 4) for values in (a, b))
    first.setting, second.setting = (
        uniform_start(first, REFERENCE),
        uniform_start(second, REFERENCE),
    )
    last = float("inf")
    for _ in range(4):
        alternate(first, second, product, Budget(rounds=1, steps=2))
        error = float((first.quantized() @ second.quantized().mT - product).square().sum())
        assert error <= last * (1 + 1e-5)
        last = error


def test_values_far_from_zero_have_zero_points_that_fit():
    x, layer = random(40, 6) + 5, linear(random(4, 6), random(4), bits=8)
    output = nn.functional.linear(x, layer.weight, layer.bias)
    errors = []
    for published in (False, True):
        search_linear(layer, x, output, Budget(published=published))
        errors.append(float((layer(x) - output).square().mean()))
        assert 0 <= layer.input_quantizer.zero_point < 256
    assert errors[0] < 0.01 * errors[1]


def test_few_tokens_of_a_wide_layer_find_nearly_the_same():
    x, layer = random(600, 100), linear(random(8, 100), random(8))
    output = nn.functional.linear(x, layer.weight, layer.bias)
    errors = []
    for rows in (1000, 40):
        search_linear(layer, x, output, Budget(rows=rows, rounds=2))
        errors.append(float((layer(x) - output).square().mean()))
    assert errors[0] < errors[1] < 1.2 * errors[0]


def test_a_constant_input_is_no_reason_to_fail():
    layer = linear(random(4, 6), random(4))
    x = torch.full((10, 6), 0.5)
    search_linear(layer, x, nn.functional.linear(x, layer.weight, layer.bias), Budget(**QUICK))
    assert torch.isfinite(layer(x)).all()


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv1d(6, 4, 3, padding=1),
        nn.Conv2d(6, 4, 3, stride=2, padding=1, groups=2),
        nn.Conv2d(6, 6, 3, padding="same", dilation=2, groups=6, padding_mode="reflect"),
        nn.Conv3d(2, 4, (3, 1, 2), stride=(1, 2, 1)),
    ],
)
def test_windows_make_a_convolution_a_product(conv):
    x = random(2, conv.in_channels, *[7] * len(conv.kernel_size))
    groups, outputs = conv.groups, conv.out_channels
    found = conv.weight.reshape(groups, outputs // groups, -1) @ windows(conv, x)
    wanted = (conv(x) - conv.bias.reshape(-1, *[1] * (x.ndim - 2))).transpose(0, 1)
    torch.testing.assert_close(found.reshape(wanted.shape), wanted, rtol=1e-4, atol=1e-5)


# -- networks -----------------------------------------------------------------------------------------------


def test_switched_off_it_is_the_network_in_float(quick):
    plain, changed = quick
    changed, x = copy.deepcopy(changed), images(4, 4, 15, seed=5)
    with torch.no_grad():
        assert not torch.allclose(changed(x), plain(x), atol=1e-4)
        set_enabled(changed, False)
        torch.testing.assert_close(changed(x), plain(x), rtol=1e-4, atol=1e-5)


def test_what_is_placed_where(quick):
    _, changed = quick
    block = changed.blocks[0]
    assert isinstance(block.mlp.fc2, ShiftedLinear)
    assert isinstance(block.attn.core.matmul_av.a_quantizer, AdaLogQuantizer)
    assert block.attn.core.matmul_av.b_quantizer.scale.shape == (2, 1, 1)
    assert block.attn.core.matmul_qk.a_quantizer.scale.shape == (2, 1, 1)
    assert changed.patch_embed.input_quantizer.bits == 8
    assert changed.patch_embed.weight_quantizer.bits == 4
    assert all(
        not isinstance(layer, QuantConv) or layer.bias is not None
        for _, layer in quantized_layers(changed)
    )


def test_more_bits_lose_less():
    plain, x = make("vit_test").eval(), images(8, 4, 15, seed=5)
    errors = []
    for bits in (3, 4, 6, 8):
        changed = vitreous.apply(
            plain, "adalog", calibration=[images(16, 4, 15)], bits=(bits, bits), **QUICK
        ).model
        with torch.no_grad():
            errors.append(float((changed(x) - plain(x)).norm() / plain(x).norm()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.05


def test_reconstruction_lowers_the_error_of_blocks_and_leaves_weights_on_codes():
    plain, x = make("vit_test").eval(), images(32, 4, 15, seed=5)
    errors = []
    for iterations in (0, 200):
        changed = vitreous.apply(
            plain, "adalog", calibration=[x], bits=(4, 4), reconstruct=iterations, **QUICK
        ).model
        with torch.no_grad():
            errors.append(float((changed(x) - plain(x)).square().sum()))
    assert errors[1] < errors[0]
    for _, layer in quantized_layers(changed):
        if not isinstance(layer, QuantMatMul):
            torch.testing.assert_close(layer.weight, layer.quantized_weight())
            assert layer.weight.requires_grad
            assert not layer.input_quantizer.scale.requires_grad
    assert [name for name, _ in blocks(changed)] == ["patch_embed", "blocks.0", "blocks.1", "head"]


def test_learned_rounding_begins_at_the_weight():
    own, weight = UniformQuantizer(4, (5, 1)), random(5, 7)
    own.calibrate(weight)
    own.set_parameters(own.scale * 2, torch.full((5, 1), 8.0))  # nothing is clipped
    rounding = Rounding(weight, own)
    torch.testing.assert_close(rounding.weight(rounding.share()), weight)
    torch.testing.assert_close(rounding.hard(), own.quantize(weight))


@pytest.mark.parametrize(
    "settings",
    [
        {"bits": (4, 9)},
        {"bits": (1, 4)},
        {"conv_bits": 0},
        {"rounds": 0},
        {"steps": 0},
        {"rows": 3},
        {"reconstruct": -1},
        {"skip": ["nothing*"]},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ModelError):
        vitreous.apply(make("vit_test"), "adalog", calibration=[images(8, 4, 15)], **settings)


def test_a_network_without_attention_or_gelu_is_refused():
    network = nn.Sequential(nn.Flatten(), nn.Linear(8, 4))
    with pytest.raises(ModelError, match="neither"):
        vitreous.apply(network, "adalog", calibration=[torch.randn(8, 2, 2, 2)])


def test_an_unused_layer_is_named():
    network = make("vit_test").eval()
    network.spare = nn.Linear(4, 4)
    with pytest.raises(ModelError, match="spare"):
        vitreous.apply(network, "adalog", calibration=[images(8, 4, 15)], **QUICK)


@pytest.mark.parametrize(
    "name", ["swin_test", "convnext_test", "efficientformer_test", "lola_specvit_test"]
)
def test_other_architectures(name):
    plain, x = make(name).eval(), images(8, 4, 15)
    made = vitreous.apply(plain, "adalog", calibration=[x], bits=(8, 8), **QUICK)
    assert all(row["SQNR dB"] is None or row["SQNR dB"] > 10 for row in made.report.rows)
    with torch.no_grad():
        assert (made.model(x) - plain(x)).norm() < 0.3 * plain(x).norm()
