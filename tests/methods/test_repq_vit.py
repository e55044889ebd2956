import copy

import pytest
import torch
from torch import nn

import vitreous
from fixtures_reader import load_fixture
from vitreous.errors import ModelError
from vitreous.layers.attention import AttentionCore
from vitreous.layers.quantize import (
    QuantLinear,
    quantized_layers,
    set_enabled,
)
from vitreous.layers.quantizers import LogSqrt2Quantizer, UniformQuantizer
from vitreous.methods.quantize import repq_vit
from vitreous.methods.quantize._install import fold, layers_to_quantize
from vitreous.testing import check_near, images, make

SERVED = [
    name
    for name in vitreous.list_models("*_test", kind="model")
    if name.removesuffix("_test").removesuffix("_h")
    in {pattern.removesuffix("*") for pattern in repq_vit.CARD.models}
]


@pytest.fixture(scope="module")
def fixture():
    return load_fixture("repq_vit")


@pytest.fixture(scope="module")
def vit():
    return make("vit_test").eval()


def reference_model(fixture, **settings):
    model = vitreous.from_reference("repq_vit", fixture["state_dict"], fixture["kwargs"]).eval()
    settings |= {"bits": (fixture["kwargs"]["w_bits"], fixture["kwargs"]["a_bits"])}
    settings |= {"round_zero_point": False}
    repq_vit.install(model, **settings)
    repq_vit.calibrate(model, [fixture["input"]["image"]], **settings)
    return model


def quantize(model, **settings):
    return vitreous.apply(model, "repq_vit", calibration=[images(32, 4, 15)], **settings)


def loud(model, factor=20.0, channels=3):
    """Make some channels behind every norm loud, and the layer that reads it deaf to that: nothing changes."""
    model = copy.deepcopy(model)
    names = {name for name, _ in layers_to_quantize(model)}
    with torch.no_grad():
        for norm_name, layer_name in repq_vit.pairs(model, names):
            norm, layer = model.get_submodule(norm_name), model.get_submodule(layer_name)
            norm.weight[:channels] *= factor
            norm.bias[:channels] *= factor
            layer.weight[:, :channels] /= factor
    return model


@torch.no_grad()
def test_scores_are_the_references(fixture):
    x, expected = fixture["input"]["image"], fixture["output"]
    plain = vitreous.from_reference("repq_vit", fixture["state_dict"], fixture["kwargs"]).eval()
    torch.testing.assert_close(plain(x), expected["fp_logits"], rtol=1e-5, atol=1e-5)
    before = reference_model(fixture, norm_scales="channels")
    torch.testing.assert_close(
        before(x), expected["quant_logits_before_reparam"], rtol=1e-5, atol=1e-5
    )
    after = reference_model(fixture)
    torch.testing.assert_close(
        after(x), expected["quant_logits_after_reparam"], rtol=1e-5, atol=1e-5
    )
    set_enabled(after, False)
    torch.testing.assert_close(after(x), expected["fp_logits_after_reparam"], rtol=1e-5, atol=1e-5)


NAMES = {
    "patch_embed.proj.": "patch_embed.",
    "attn.matmul1.quantizer_A": "attn.core.matmul_qk.a_quantizer",
    "attn.matmul1.quantizer_B": "attn.core.matmul_qk.b_quantizer",
    "attn.matmul2.quantizer_A": "attn.core.matmul_av.a_quantizer",
    "attn.matmul2.quantizer_B": "attn.core.matmul_av.b_quantizer",
}


@pytest.mark.parametrize(
    ("table", "norm_scales"), [("scales_before", "channels"), ("scales_after", "folded")]
)
def test_scales_and_norms_are_the_references(fixture, table, norm_scales):
    model = reference_model(fixture, norm_scales=norm_scales)
    for key, expected in fixture["output"][table].items():
        for old, new in NAMES.items():
            key = key.replace(old, new)
        quantizer, scale = model.get_submodule(key), expected["delta"].flatten()
        if key.endswith("matmul_qk.a_quantizer"):  # our queries are scaled before the product
            scale = scale * 8**-0.5
        torch.testing.assert_close(quantizer.scale.flatten(), scale, rtol=1e-4, atol=1e-6)
        if isinstance(quantizer, UniformQuantizer):
            zero = expected["zero_point"].flatten()
            torch.testing.assert_close(quantizer.zero_point.flatten(), zero, rtol=1e-5, atol=1e-5)
    if norm_scales == "folded":
        for key, expected in fixture["output"]["norm1_after"].items():
            found = model.state_dict()[key]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SERVED)
@torch.no_grad()
def test_without_quantizers_nothing_has_changed(name):
    model, x = loud(make(name).eval()), images(6, 4, 15)
    quantized, report = quantize(model)
    assert not torch.equal(quantized(x), model(x))
    set_enabled(quantized, False)
    torch.testing.assert_close(quantized(x), model(x), rtol=1e-4, atol=1e-5)
    assert any("folded" in row["activation scales"] for row in report.rows)


def test_one_range_per_tensor_is_left(vit):
    for _, layer in quantized_layers(quantize(vit).model):
        for quantizer in layer.children():
            if quantizer is not getattr(layer, "weight_quantizer", None):
                assert quantizer.scale.ndim == 0
    separate = quantize(vit, norm_scales="channels").model
    assert separate.blocks[0].attn.qkv.input_quantizer.scale.shape == (16,)


@torch.no_grad()
@pytest.mark.parametrize("round_zero_point", [False, True])
def test_folded_codes_are_those_of_the_channels(round_zero_point):
    torch.manual_seed(0)
    norm, linear = nn.LayerNorm(12), nn.Linear(12, 5)
    norm.weight.copy_(torch.rand(12) * 5 + 0.1)
    norm.bias.copy_(4 * torch.randn(12))
    x = torch.randn(40, 12)
    before = norm(x)
    quantizer = UniformQuantizer(4, (12,), covers_zero=False).eval()
    layer = QuantLinear.of(linear.eval(), quantizer, UniformQuantizer(16, (5, 1)))
    quantizer.calibrate(before)
    expected, scale, zero = quantizer(before), quantizer.scale.clone(), quantizer.zero_point.clone()
    plain = linear(before)
    repq_vit.fold_scales(norm, layer, round_zero_point)
    one = layer.input_quantizer
    back = scale / one.scale, scale * (zero - one.zero_point)
    found = one(norm(x)) * back[0] - back[1]
    if round_zero_point:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert one.zero_point in torch.arange(16.0)
    else:
        assert one.zero_point != one.zero_point.round()
        assert ((found - expected).abs() < 1.01 * scale).all()
    set_enabled(layer, False)
    torch.testing.assert_close(layer(norm(x)), plain, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_equal_channels_fold_into_themselves():
    norm, linear = nn.LayerNorm(6), nn.Linear(6, 3)
    weights = copy.deepcopy([*norm.parameters(), *linear.parameters()])
    quantizer = UniformQuantizer(4, (6,), covers_zero=False).eval()
    quantizer.set_parameters(torch.full((6,), 0.3), torch.full((6,), 7.0))
    layer = QuantLinear.of(linear, quantizer, UniformQuantizer(4, (3, 1)))
    repq_vit.fold_scales(norm, layer)
    now = [norm.weight, norm.bias, layer.weight, layer.bias]
    for before, after in zip(weights, now, strict=True):
        torch.testing.assert_close(after, before)
    assert float(layer.input_quantizer.scale) == pytest.approx(0.3)


@torch.no_grad()
def test_loud_channels_are_what_it_is_for(vit):
    model, x = loud(vit), images(40, 4, 15)
    exact = model(x)
    error = {
        scales: float((quantize(model, norm_scales=scales).model(x) - exact).norm() / exact.norm())
        for scales in repq_vit.NORM_SCALES
    }
    assert error["folded"] < 0.6 * error["tensor"]
    assert error["folded"] < 2 * error["channels"]


@torch.no_grad()
def test_codes_of_attention_are_a_choice(vit):
    kinds = {}
    for softmax in repq_vit.SOFTMAX:
        quantized = quantize(vit, softmax=softmax).model
        core = quantized.blocks[0].attn.core
        assert isinstance(core, AttentionCore)
        kinds[softmax] = type(core.matmul_av.a_quantizer)
        assert type(core.matmul_qk.a_quantizer) is UniformQuantizer
    assert kinds == repq_vit.SOFTMAX
    assert kinds["log_sqrt2"] is LogSqrt2Quantizer


def test_pairs_are_found_by_structure():
    expected = {
        "swin_test": ("stages.1.merge.norm", "stages.1.merge.reduction"),
        "convnext_test": ("stages.0.0.norm", "stages.0.0.mlp.fc1"),
        "efficientformer_test": ("token_blocks.0.norm1", "token_blocks.0.mixer.qkv"),
        "lola_specvit_test": ("levels.0.0.norm2", "levels.0.0.mlp.0.joint"),
    }
    for name, pair in expected.items():
        model = make(name)
        fold(model)
        names = {layer for layer, _ in layers_to_quantize(model)}
        found = list(repq_vit.pairs(model, names))
        assert pair in found
        assert pair not in list(repq_vit.pairs(model, names - {pair[1]}))
        assert not any(p.norm == "norm" for p in found)  # the last norm is read by the pooling


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("lola_specvit_test", {"levels.0.0.mlp.0.joint", "levels.1.0.mlp.0.joint"}),
        ("swin_test", {"stages.1.merge.reduction", *(f"stages.{s}.blocks.{b}.mlp.fc1" for s in (0, 1) for b in (0, 1))}),
    ],
)  # fmt: skip
@torch.no_grad()
def test_padding_that_attention_sees_forbids_folding(name, layers):
    model = make(name, image_size=9)
    for module in model.modules():
        if hasattr(module, "mask_padding"):
            module.mask_padding = False
    x = images(16, 4, 9)
    quantized, report = vitreous.apply(model.eval(), "repq_vit", calibration=[x])
    folded = {r["layer"] for r in report.rows if "folded" in r["activation scales"]}
    assert folded == layers  # and no attn.qkv
    set_enabled(quantized, False)
    check_near(quantized(x), model(x), 1e-3, "the folded model")


class Shared(nn.Module):
    """A block whose norm is feeds more than the layer that its names promise."""

    def __init__(self):
        super().__init__()
        self.norm2 = nn.LayerNorm(6)
        self.mlp = nn.Module()
        self.mlp.fc1 = nn.Linear(6, 6)

    def forward(self, x):
        x = self.norm2(x)
        return x + self.mlp.fc1(x)


def test_a_norm_that_others_read_is_noticed():
    torch.manual_seed(0)
    model, x = loud(Shared().eval(), channels=2), torch.randn(32, 6)
    with pytest.raises(ModelError, match="feeds more"):
        vitreous.apply(model, "repq_vit", calibration=[x])
    vitreous.apply(model, "repq_vit", calibration=[x], norm_scales="tensor")


def test_a_model_without_such_norms_is_refused():
    model = make("efficientvit_test").eval()
    with pytest.raises(ModelError, match="LayerNorm"):
        quantize(model)
    assert quantize(model, norm_scales="tensor").report.rows


def test_skipping_every_such_layer_is_fine(vit):
    _, report = quantize(vit, skip=["*.qkv", "*.fc1"])
    assert {row["layer"] for row in report.rows} >= {"blocks.0.mlp.fc2", "head"}


def test_the_image_is_read_in_eight_bits():
    for name, stem in (("vit_test", "patch_embed"), ("lola_specvit_test", "spectral.0")):
        layer = quantize(make(name).eval()).model.get_submodule(stem)
        assert (layer.input_quantizer.bits, layer.weight_quantizer.bits) == (8, 4)


@torch.no_grad()
@pytest.mark.parametrize("scales", ["folded", "channels"])
def test_files_hold_it_all(scales, tmp_path):
    quantized, x = quantize(make("swin_test").eval(), norm_scales=scales).model, images(5, 4, 15)
    loaded, _ = vitreous.load_model(vitreous.save_model(quantized, tmp_path / "m.safetensors"))
    assert torch.equal(loaded(x), quantized(x))
    plain = make("swin_test").state_dict()
    parameters = dict(loaded.named_parameters())
    added = set(parameters) - set(plain)
    assert added == ({"stages.1.merge.reduction.bias"} if scales == "folded" else set())


@pytest.mark.parametrize(
    "settings",
    [{"softmax": "log3"}, {"norm_scales": "rows"}, {"stem_bits": 1}, {"bits": (4, 4, 4)}],
)
def test_settings_that_make_no_sense_are_refused(vit, settings):
    with pytest.raises(ModelError):
        quantize(vit, **settings)
