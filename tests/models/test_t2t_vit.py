"""T2T-ViT: equality with the authors' numbers, soft splits, and random features."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from fixtures_reader import load_fixture
from vitreous.catalog.registry import create_model, from_reference
from vitreous.errors import CheckpointError, ModelError
from vitreous.models.t2t_vit import (
    NeighbourhoodLinear,
    RandomFeatureCore,
    T2TViT,
    TokenLayer,
    rename,
    resize,
    sinusoids,
    soft_split,
    split_size,
)


@pytest.fixture(scope="module")
def fixture():
    whole = load_fixture("t2t_vit")
    return {
        "performer": {k: whole[k] for k in ("kwargs", "state_dict", "input", "output")},
        "transformer": {**whole["extra"], "input": whole["input"]},
    }


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("kind", ["performer", "transformer"])
@torch.no_grad()
def test_equals_the_reference(fixture, kind):
    given = fixture[kind]
    model = from_reference("t2t_vit", given["state_dict"], given["kwargs"]).eval()
    merged = model.tokenizer(given["input"]).flatten(2).mT
    torch.testing.assert_close(merged, given["output"]["tokens"], rtol=1e-5, atol=1e-5)
    scores = model(given["input"])
    torch.testing.assert_close(scores, given["output"]["logits"], rtol=1e-5, atol=1e-5)


def test_every_weight_of_the_reference_is_used(fixture):
    given = fixture["performer"]
    for lost in ("pos_embed", "tokens_to_token.attention1.w", "blocks.1.attn.qkv.weight"):
        fewer = {k: v for k, v in given["state_dict"].items() if k != lost}
        with pytest.raises(CheckpointError):
            from_reference("t2t_vit", fewer, given["kwargs"])


@torch.no_grad()
def test_reference_scale_of_old_weights(fixture):
    given = fixture["performer"]
    models = {
        scale: from_reference(
            "t2t_vit", given["state_dict"], {**given["kwargs"], "qk_scale": scale}
        ).eval()
        for scale in (None, 8**-0.5, 24**-0.5)
    }
    plain, same, old = (model(given["input"]) for model in models.values())
    torch.testing.assert_close(same, plain, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(old, plain, rtol=1e-3)


def test_reference_order_is_keys_queries_values():
    kqv = torch.cat([torch.full((2, 147), float(k)) for k in range(3)])
    renamed = rename({"tokens_to_token.attention1.kqv.weight": kqv})
    weight = renamed["tokenizer.layers.0.qkv.weight"]
    assert weight.shape == (6, 3, 7, 7)
    assert weight[:, 0, 0, 0].tolist() == [1, 1, 0, 0, 2, 2]


@torch.no_grad()
def test_token_counts_of_the_paper():
    model = create_model("t2t_vit_7", bands=3, num_classes=2, image_size=224)
    assert model.tokenizer.strides == (4, 2, 2)
    sides, side = [], 224
    for stride in model.tokenizer.strides:
        side = split_size(side, stride)
        sides.append(side**2)
    assert sides == [3136, 784, 196]
    assert model.positions.shape == (1, 197, 256)


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("side", [9, 15, 16, 33])
def test_soft_split_and_linear_are_a_convolution(stride, side):
    linear = NeighbourhoodLinear(3, 2 * stride - 1, 5, bias=True)
    x = torch.randn(2, 3, side, side + 1)
    expected = F.conv2d(x, linear.weight, linear.bias, stride, padding=stride // 2)
    assert expected.shape[2:] == (split_size(side, stride), split_size(side + 1, stride))
    torch.testing.assert_close(linear(soft_split(x, stride)), expected.flatten(2).mT)


@pytest.mark.parametrize("kind", ["performer", "transformer"])
@torch.no_grad()
def test_token_layer_by_hand(kind):
    """Section 3.1 written out token by token, with the values as residual and scores scaled by the input's width."""
    layer = TokenLayer(4, 3, 6, kind).eval()
    for parameter in layer.parameters():
        parameter.normal_(std=0.3)
    x = torch.randn(1, 5, 36)
    normed = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    normed = normed * layer.norm1.weight.flatten() + layer.norm1.bias.flatten()
    bias = 0 if kind == "transformer" else layer.qkv.bias
    query, key, value = (normed @ layer.qkv.weight.flatten(1).T + bias)[0].split(6, -1)
    mixed = torch.empty(5, 6)
    for token in range(5):
        if kind == "transformer":
            weights = ((key @ query[token]) / math.sqrt(36)).softmax(0)
        else:
            kernel = layer.core.features(key) @ layer.core.features(query[token : token + 1])[0]
            weights = kernel / (kernel.sum() + 1e-8)
        mixed[token] = weights @ value
    y = value + layer.proj(mixed)
    torch.testing.assert_close(layer(x)[0], y + layer.mlp(layer.norm2(y)))


@pytest.mark.parametrize("rows", [32, 16])
@torch.no_grad()
def test_random_features_estimate_the_exponential(rows):
    """With as many rows as channels the mean of phi(q) phi(k) is exp(q k); with fewer, directions are shorter."""
    query, key = 0.1 * torch.randn(4, 32), 0.1 * torch.randn(5, 32)
    found = torch.zeros(4, 5)
    for _ in range(200):
        core = RandomFeatureCore(32, rows)
        found += core.features(query) @ core.features(key).T / 200
    squares = query.square().sum(1)[:, None] + key.square().sum(1)
    share = rows / 32
    expected = (share * (query @ key.T) - (1 - share) / 2 * squares).exp()
    torch.testing.assert_close(found, expected, rtol=0.03, atol=0)


@torch.no_grad()
def test_random_feature_weights_are_positive_and_sum_to_one():
    core = RandomFeatureCore(8, 4)
    query, key = 0.3 * torch.randn(2, 1, 6, 8), 0.3 * torch.randn(2, 1, 9, 8)
    weights = core(query, key, torch.eye(9).expand(2, 1, 9, 9))
    assert (weights > 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 1, 6))


@torch.no_grad()
def test_random_features_of_nothing_average_the_values():
    core, value = RandomFeatureCore(8, 4), torch.randn(2, 1, 9, 8)
    nothing = torch.zeros(2, 1, 9, 8)
    torch.testing.assert_close(core(nothing, nothing, value), value.mean(2, keepdim=True) + nothing)


@torch.no_grad()
def test_random_features_stay_finite_and_exact_under_autocast():
    """No exponent exceeds half the squared length of a direction, so float32 holds it; bfloat16 would round it."""
    core = RandomFeatureCore(64, 32)
    x = 50 * torch.randn(1, 1, 7, 64)
    plain = core(x, x, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(core(x, x, x), plain)
    assert torch.isfinite(plain).all()
    torch.testing.assert_close(core.directions @ core.directions.T, 32 * torch.eye(32))


def test_random_features_are_linear_in_the_tokens():
    core, costs = RandomFeatureCore(16, 8).to("meta"), []
    for tokens in (100, 200):
        x = torch.empty(1, 1, tokens, 16, device="meta")
        with FlopCounterMode(display=False) as counter:
            core(x, x, x)
        costs.append(counter.get_total_flops())
    assert costs[1] == 2 * costs[0]


def test_fixed_parts_are_saved_but_not_trained():
    model = create_model("t2t_vit_test", bands=3, num_classes=2, image_size=32)
    fixed = {
        "positions",
        "tokenizer.layers.0.core.directions",
        "tokenizer.layers.1.core.directions",
    }
    assert fixed == set(model.state_dict()) - set(dict(model.named_parameters()))


def test_sinusoids_by_hand():
    table = sinusoids(7, 6)
    for position in range(7):
        for channel in range(6):
            angle = position / 10000 ** (2 * (channel // 2) / 6)
            expected = math.cos(angle) if channel % 2 else math.sin(angle)
            assert table[position, channel].item() == pytest.approx(expected, abs=1e-6)


@torch.no_grad()
def test_positions_count_from_the_class_token_and_can_be_resampled():
    small, large = (
        create_model("t2t_vit_test", bands=3, num_classes=2, image_size=size) for size in (16, 24)
    )
    torch.testing.assert_close(small.positions[0], sinusoids(1 + math.prod(small.grid), 16))
    large.load_state_dict(resize(small.state_dict(), large))
    torch.testing.assert_close(large.positions[:, :1], small.positions[:, :1])
    # What one model does on a larger image is what the resized one does.
    x = torch.randn(2, 3, 24, 24)
    torch.testing.assert_close(small.eval()(x), large.eval()(x))


@torch.no_grad()
def test_images_need_not_be_square():
    model = create_model("t2t_vit_test", bands=3, num_classes=2, image_size=16).eval()
    levels = model.forward_levels(torch.randn(1, 3, 16, 28))
    assert [level.shape[2:] for level in levels] == [(4, 7)] * 2


def test_spared_from_weight_decay():
    spared = create_model("t2t_vit_test", bands=3, num_classes=2).no_weight_decay()
    assert {"class_token", "tokenizer.layers.0.norm1.weight"} <= spared
    assert "tokenizer.layers.0.qkv.weight" not in spared


@pytest.mark.parametrize(
    "wrong",
    [
        {"heads": 5},
        {"token_attention": "convolution"},
        {"later_strides": ()},
        {"later_strides": (2, 0)},
        {"later_strides": (16, 16), "stem_stride": 4},
    ],
)
def test_wrong_arguments_are_refused(wrong):
    with pytest.raises(ModelError, match="t2t_vit"):
        T2TViT(3, 2, 16, dim=16, **{"heads": 2, **wrong})
