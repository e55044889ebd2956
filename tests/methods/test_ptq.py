import copy

import pytest
import torch
from torch import nn

import vitreous
from vitreous.errors import ModelError
from vitreous.layers.attention import AttentionCore
from vitreous.layers.quantize import (
    QuantConv,
    QuantLinear,
    QuantMatMul,
    quantized_layers,
    set_enabled,
)
from vitreous.layers.quantizers import UniformQuantizer
from vitreous.methods.quantize import ptq
from vitreous.methods.quantize._install import fold
from vitreous.testing import check_near, check_near_quantized, images, make, spread

MODELS = vitreous.list_models("*_test", kind="model")


def quantize(model, name="ptq_minmax", **settings):
    return vitreous.apply(model, name, calibration=[images(32, 4, 15)], **settings)


@pytest.fixture(scope="module")
def vit():
    return make("vit_test").eval()


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_eight_bits_cost_little_and_none_nothing(name):
    model, x = make(name).eval(), images(40, 4, 15)
    quantized, report = quantize(model)
    exact = model(x)
    noise = quantized(x) - exact
    assert 0 < noise.square().mean().sqrt() < 0.4 * spread(exact)
    set_enabled(quantized, False)
    check_near(quantized(x), exact, 1e-3, f"{name}: all quantizers off")
    assert all(row["SQNR dB"] > 25 for row in report.rows)
    # Every product with weights is quantized, but those that an architecture computes without a layer.
    kinds = nn.Conv1d | nn.Conv2d | nn.Conv3d
    left = [m for m in quantized.modules() if type(m) is nn.Linear or isinstance(m, kinds)]
    assert not left


@pytest.mark.parametrize("name", MODELS)
def test_folding_changes_nothing(name):
    model, x = make(name).eval(), images(3, 4, 15)
    for norm in model.modules():  # statistics that are not those of a fresh network
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    folded = copy.deepcopy(model)
    fold(folded)
    with torch.no_grad():
        check_near(folded(x), model(x), 1e-3, f"{name}: folded")


def test_batch_norms_behind_convolutions_are_gone():
    for name in ("lola_specvit_test", "efficientformer_test"):
        model = make(name).eval()
        fold(model)
        assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


def test_rows_say_what_was_done(vit):
    quantized, report = quantize(vit)
    layers = dict(quantized_layers(quantized))
    assert [row["layer"] for row in report.rows] == list(layers)
    kinds = {"linear": QuantLinear, "convolution": QuantConv, "product": QuantMatMul}
    assert all(isinstance(layers[row["layer"]], kinds[row["kind"]]) for row in report.rows)
    score = next(row for row in report.rows if row["layer"] == "blocks.0.attn.core.matmul_qk")
    assert score["input"] == "2 x 26 x 8 @ 2 x 8 x 26"
    assert all(m.explicit for m in quantized.modules() if isinstance(m, AttentionCore))


def test_the_ratio_is_that_of_a_layer_to_itself_in_floating_point(vit):
    quantized, report = quantize(vit, bits=(4, 4))
    seen = []
    layer = quantized.patch_embed
    layer.register_forward_hook(lambda module, inputs, output: seen.extend([*inputs, output]))
    with torch.no_grad():
        quantized(images(32, 4, 15))
        exact = vit.patch_embed(seen[0])
    expected = 10 * torch.log10(exact.square().sum() / (seen[1] - exact).square().sum())
    row = next(row for row in report.rows if row["layer"] == "patch_embed")
    assert row["SQNR dB"] == pytest.approx(float(expected), abs=0.06)


def test_defaults_are_what_integer_kernels_take(vit):
    for _, layer in quantized_layers(quantize(vit).model):
        for quantizer in layer.children():
            if isinstance(quantizer, UniformQuantizer):
                assert quantizer.bits == 8
                zero = quantizer.zero_point
                assert torch.equal(zero, zero.round()) and (zero >= 0).all() and (zero <= 255).all()
        if isinstance(layer, QuantLinear):
            assert (layer.weight_quantizer.zero_point == 128).all()
            assert layer.input_quantizer.scale.ndim == 0


def test_skipped_layers_stay(vit):
    quantized, report = quantize(vit, skip=["head", "blocks.0.*", "*.matmul_av"])
    names = {row["layer"] for row in report.rows}
    assert names == {
        "patch_embed",
        "blocks.1.attn.qkv",
        "blocks.1.attn.core.matmul_qk",
        "blocks.1.attn.proj",
        "blocks.1.mlp.fc1",
        "blocks.1.mlp.fc2",
    }
    assert type(quantized.head) is nn.Linear
    assert not quantized.blocks[0].attn.core.explicit


def test_more_bits_are_less_noise(vit):
    x = images(40, 4, 15)
    with torch.no_grad():
        noise = [
            float((quantize(vit, bits=(bits, bits)).model(x) - vit(x)).norm()) for bits in (4, 6, 8)
        ]
    assert noise[0] > 2 * noise[1] > 4 * noise[2]


def test_percentiles_leave_outliers_out(vit):
    x = images(32, 4, 15)
    x[0, 0, 0, 0] = 1e4
    scales = [
        float(vitreous.apply(vit, name, calibration=[x]).model.patch_embed.input_quantizer.scale)
        for name in ("ptq_minmax", "ptq_percentile")
    ]
    assert scales[0] == pytest.approx(1e4 / 255, rel=0.01)
    assert scales[1] < scales[0] / 100


def test_asymmetric_weights_use_all_codes(vit):
    shifted = copy.deepcopy(vit)
    with torch.no_grad():
        shifted.blocks[0].mlp.fc1.weight.add_(0.5)
    rows = [
        {
            row["layer"]: row["SQNR dB"]
            for row in quantize(shifted, symmetric=s, bits=(4, 8))[1].rows
        }
        for s in (True, False)
    ]
    assert rows[1]["blocks.0.mlp.fc1"] > rows[0]["blocks.0.mlp.fc1"] + 3


@torch.no_grad()
@pytest.mark.parametrize("name", ["swin_test", "lola_specvit_test"])
def test_files_batches_and_copies(name, tmp_path):
    plain, x = make(name).eval(), images(5, 4, 15)
    quantized = quantize(plain).model
    expected = quantized(x)
    loaded, _ = vitreous.load_model(vitreous.save_model(quantized, tmp_path / "m.safetensors"))
    assert torch.equal(loaded(x), expected)
    assert torch.equal(copy.deepcopy(quantized)(x), expected)
    alone = torch.cat([quantized(image[None]) for image in x])
    check_near_quantized(alone, expected, plain(x), f"{name}: alone and in a batch")


def test_the_original_is_untouched(vit):
    before = copy.deepcopy(vit.state_dict())
    quantize(vit)
    after = vit.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_batches_are_one(vit):
    x = images(32, 4, 15)
    whole = quantize(vit).model.state_dict()
    parts = vitreous.apply(vit, "ptq_minmax", calibration=list(x.split(10))).model.state_dict()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_after_adapters_and_token_reduction(vit):
    x = images(32, 4, 15)
    adapted = vitreous.apply(vit, "lora_gated", rank=2).model
    quantized, report = quantize(adapted)
    assert {"blocks.0.attn.qkv.joint", "blocks.0.attn.qkv.up"} <= {r["layer"] for r in report.rows}
    with torch.no_grad():
        assert (quantized(x) - vit(x)).norm() < 0.05 * vit(x).norm()
    reduced = vitreous.apply(adapted, "evit").model
    both = quantize(reduced).model
    with torch.no_grad():
        assert (both(x) - reduced(x)).norm() < 0.05 * reduced(x).norm()


@pytest.mark.parametrize(
    "settings",
    [
        {"bits": (1, 8)},
        {"bits": (8, 40)},
        {"bits": 8},
        {"bits": (8,)},
        {"percentile": 40},
        {"percentile": 101},
        {"skip": ["haed"]},
        {"skip": "head"},
        {"skip": ["*"]},
    ],
)
def test_settings_that_make_no_sense_are_refused(vit, settings):
    with pytest.raises(ModelError):
        quantize(vit, **settings)


def test_calibration_images_of_two_sizes_are_refused(vit):
    batches = [images(8, 4, 15), images(8, 4, 18)]
    with pytest.raises(ModelError, match="shape"):
        vitreous.apply(vit, "ptq_minmax", calibration=batches)


def test_nothing_to_quantize_is_refused():
    with pytest.raises(ModelError, match="nothing"):
        ptq.install(nn.Sequential(nn.ReLU()))


def test_a_quantized_model_is_not_trained(vit):
    quantized = quantize(vit).model.train()
    with pytest.raises(ModelError, match="trained"):
        quantized(images(2, 4, 15))
