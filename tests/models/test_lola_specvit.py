import pytest
import torch
from torch import nn

import vitreous
from fixtures_reader import load_fixture
from vitreous.catalog.registry import card
from vitreous.errors import CheckpointError, ModelError
from vitreous.layers.attention import attention
from vitreous.layers.windows import padding_bias, partition
from vitreous.models.lola_specvit import BandDropout, LolaSpecViT, SpectralConv, WindowAttention

TEST = card("lola_specvit").variants["lola_specvit_test"]
BASE = card("lola_specvit").variants["lola_specvit_base"]


def small(**changes):
    torch.manual_seed(0)
    return LolaSpecViT(**{"bands": 6, "num_classes": 5, "image_size": 9, **TEST, **changes})


@pytest.fixture
def fixture():
    return load_fixture("lola_specvit")


def test_equals_the_reference(fixture):
    model = vitreous.from_reference("lola_specvit", fixture["state_dict"], fixture["kwargs"]).eval()
    with torch.no_grad():
        output = model(fixture["input"])
    torch.testing.assert_close(output, fixture["output"], rtol=1e-5, atol=1e-5)
    adapters = sum(p.numel() for n, p in model.named_parameters() if "lora_" in n)
    assert sum(p.numel() for p in model.parameters()) == 196_593
    assert adapters == 27_796


@pytest.mark.parametrize("damage", ["missing", "left over", "shape"])
def test_a_partial_reference_is_refused(fixture, damage):
    weights = dict(fixture["state_dict"])
    if damage == "missing":
        del weights["norm.weight"]
    elif damage == "left over":
        weights["extra.weight"] = torch.zeros(1)
    else:
        weights["norm.weight"] = torch.zeros(7)
    with pytest.raises(CheckpointError, match=r"norm\.weight|extra\.weight"):
        vitreous.from_reference("lola_specvit", weights, fixture["kwargs"])


@pytest.mark.parametrize(
    ("classes", "total", "trainable"),
    [
        (9, 254_639_541, 73_586_832),
        (16, 254_642_348, 73_586_944),
        (22, 254_644_754, 73_587_040),
        (6, 254_638_338, 73_586_784),
    ],
)
def test_published_parameter_counts(classes, total, trainable):
    with torch.device("meta"):
        model = LolaSpecViT(num_classes=classes, **BASE)
    assert sum(p.numel() for p in model.parameters()) == total
    assert sum(p.numel() for n, p in model.named_parameters() if "lora_" in n) == trainable
    assert [sum(hasattr(b, "attn") for b in level) for level in model.levels] == [3, 4, 19]
    assert {
        b.attn.qkv.in_features // b.attn.heads
        for lv in model.levels
        for b in lv
        if hasattr(b, "attn")
    } == {24}


def test_plain_adapters_train_a_hundredth():
    with torch.device("meta"):
        model = LolaSpecViT(num_classes=9, gate=False, residual=False, **BASE)
    total = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for n, p in model.named_parameters() if "lora_" in n)
    assert round(total / 1e6, 1) == 183.2
    assert trainable == 2_144_400


def test_grids_of_the_levels():
    model = small(
        bands=15, image_size=15, depths=[1, 1, 1], heads=[2, 4, 8], windows=[7, 7, 7]
    ).eval()
    sizes = []
    for level in model.levels:
        level[0].register_forward_pre_hook(lambda _, x: sizes.append(tuple(x[0].shape[1:3])))
    model(torch.randn(2, 15, 15, 15))
    assert sizes == [(7, 7), (4, 4), (2, 2)]


@pytest.mark.parametrize("bands", [1, 3, 13, 200])
def test_any_number_of_bands(bands):
    assert small(bands=bands).eval()(torch.randn(2, bands, 9, 9)).shape == (2, 5)


def test_a_gradient_reaches_every_parameter():
    # Adapters start at zero, where the gate and the down-projection get none: any later point has them all.
    model = small(zero_init=False, drop=0.0, drop_path=0.0)
    # One hidden unit behind a ReLU may be born dead.
    torch.nn.init.constant_(model.spectral_attention.squeeze.weight, 0.1)
    model(torch.randn(8, 6, 9, 9)).square().sum().backward()
    assert [
        n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().any()
    ] == []


def test_evaluation_does_not_depend_on_the_batch():
    model = small().eval()
    x = torch.randn(4, 6, 9, 9)
    torch.testing.assert_close(model(x)[1:2], model(x[1:2]), rtol=1e-5, atol=1e-6)


def test_the_shared_stem_differs_only_where_patches_saw_zeros():
    model = small(image_size=15).eval()
    reach, half = model.stem_reach, 7
    region = torch.randn(1, 6, 31, 33)
    shared = model.stem(region)
    row, column = 15, 16
    around = region[
        :,
        :,
        row - half - reach : row + half + reach + 1,
        column - half - reach : column + half + reach + 1,
    ]
    patch = region[:, :, row - half : row + half + 1, column - half : column + half + 1]
    window = shared[:, :, row - half : row + half + 1, column - half : column + half + 1]
    # With its full context a patch gives exactly the shared values ...
    torch.testing.assert_close(model.stem(around)[:, :, reach:-reach, reach:-reach], window)
    # ... and without it, as published, it differs in a ring of `reach` pixels and nowhere else.
    difference = (model.stem(patch) - window).abs().amax((0, 1))
    inner = difference[reach:-reach, reach:-reach]
    assert inner.max() < 1e-5
    assert difference[0].max() > 1e-4


def test_gating_after_the_mean_is_the_papers_order():
    # The paper gates the volume and then averages over the spectrum; we average first.
    model = small().eval()
    x = torch.randn(3, 6, 9, 9)
    volume = model.spectral(x[:, None])
    excite = model.spectral_attention
    gate = torch.sigmoid(excite.excite(torch.relu(excite.squeeze(volume.mean((2, 3, 4))))))
    expected = (volume * gate[:, :, None, None, None]).mean(2)
    torch.testing.assert_close(excite(model.stem(x)), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(4, 4), (7, 7), (5, 9), (2, 3)])
def test_masked_padding_equals_attention_over_the_real_cells(height, width):
    torch.manual_seed(0)
    from functools import partial

    from vitreous.layers.lora import LoRALinear

    linear = partial(LoRALinear, rank=2, alpha=4, zero_init=False)
    layer = WindowAttention(8, 2, 7, linear, mask_padding=True)
    nn.init.normal_(
        layer.qkv.bias
    )  # padded cells would have keys and values if they were not hidden
    x = torch.randn(2, height, width, 8)
    tokens = partition(x, (7, 7))
    q, k, v = layer.qkv(tokens).unflatten(-1, (3, 2, 4)).permute(3, 0, 1, 4, 2, 5)
    like = torch.zeros(())
    mixed = attention(
        q, k, v, layer.position(7, 7)[None] + padding_bias(height, width, (7, 7), like)
    )
    from vitreous.layers.windows import reverse

    expected = reverse(layer.proj(mixed.transpose(2, 3).flatten(-2)), (7, 7), height, width)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-6)


def test_band_dropout_keeps_the_expectation():
    torch.manual_seed(0)
    drop = BandDropout(0.3)
    x = torch.ones(200, 8, 20, 2, 2)
    dropped = drop(x)
    assert abs(dropped.mean().item() - 1) < 0.02
    assert torch.equal(dropped[..., :1, :1].expand_as(dropped), dropped)  # whole planes
    assert torch.equal(drop.eval()(x), x)


def test_zero_init_starts_without_effect():
    model = small().eval()
    with torch.no_grad():
        plain = model(torch.ones(1, 6, 9, 9))
        for name, p in model.named_parameters():
            if "lora_down" in name or "lora_gate" in name:
                p.normal_()
    torch.testing.assert_close(model(torch.ones(1, 6, 9, 9)), plain)


@pytest.mark.parametrize("zero_init", [True, False])
def test_the_model_wide_init_does_not_undo_the_adapters(zero_init):
    ups = [p for n, p in small(zero_init=zero_init).named_parameters() if "lora_up" in n]
    assert all(bool(p.any()) != zero_init for p in ups)


@pytest.mark.parametrize(
    "changes",
    [{"heads": [3, 4]}, {"depths": [1]}, {"image_size": 3}],
    ids=["heads", "depths", "size"],
)
def test_impossible_arguments_are_refused(changes):
    with pytest.raises(ModelError):
        small(**changes)


def test_reset_head_keeps_the_trunk():
    model = small().eval()
    x = torch.randn(1, 6, 9, 9)
    features = model.forward_features(x)
    model.reset_head(3)
    assert model(x).shape == (1, 3)
    assert torch.equal(model.forward_features(x), features)


@pytest.mark.parametrize("bands", [1, 2, 15])
@pytest.mark.parametrize("kernel", [(7, 3, 3), (5, 3, 3), (1, 1, 1), (3, 5, 1)])
def test_a_spectral_convolution_is_a_3d_convolution(bands, kernel):
    torch.manual_seed(0)
    conv = SpectralConv(1, 4, kernel)
    plain = nn.Conv3d(1, 4, kernel, padding=conv.padding)
    plain.load_state_dict(conv.state_dict())
    x = torch.randn(2, 1, bands, 6, 7)
    found, expected = (module(x).square().sum() for module in (conv, plain))
    torch.testing.assert_close(conv(x), plain(x), rtol=1e-5, atol=1e-5)
    for own, other in zip(
        torch.autograd.grad(found, conv.parameters()),
        torch.autograd.grad(expected, plain.parameters()),
        strict=True,
    ):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-3)
