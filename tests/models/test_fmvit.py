import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vitreous import testing
from vitreous.catalog.registry import card, create_model, system_module
from vitreous.errors import ModelError
from vitreous.inference.bench import cpu_ratios
from vitreous.inference.cost import count_cost
from vitreous.inference.integers import integer_form
from vitreous.layers.convnorm import ConvNorm, Fusable, folded
from vitreous.layers.transformer import Attention
from vitreous.methods.quantize._install import fold
from vitreous.models.fmvit import (
    FeedForward,
    FMViT,
    LightAttention,
    MapNorm,
    MultiGroupConv,
    NormedFeedForward,
    _regrouped,
)

TINY = {
    "dims": [16, 24, 40],
    "conv_blocks": [1, 2, 1],
    "fusion_blocks": [0, 1, 1],
    "repeats": [1, 2, 1],
    "pools": [4, 2, 1],
    "head_dim": 6,
}
EXACT = {torch.float32: 1e-4, torch.float64: 1e-10}


def stirred(module, seed=0):
    """Return a module in eval mode, its weights and statistics those of no fresh network."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_()
                part.running_var.uniform_(0.3, 3)
                part.weight.normal_(1, 0.3)
                part.bias.normal_(0, 0.3)
            elif isinstance(part, nn.Conv2d):
                part.weight.normal_(0, part.weight[0].numel() ** -0.5)
                if part.bias is not None:
                    part.bias.normal_(0, 0.2)
    return module.eval()


def assert_equal(found, expected, kind):
    error = float((found - expected).detach().abs().max() / expected.detach().abs().max())
    assert error < EXACT[kind], error


# -- an independent network, from the specification -----------------------------------------------------------


def twin(weights, x, model):
    """Scores and stage maps, written out with functions; the network only tells its shape."""

    def norm(at, y):
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(y, *(weights[f"{at}.{name}"] for name in names))

    def conv(at, y, stride=1, groups=1):
        weight = weights[f"{at}.weight"]
        return F.conv2d(
            y, weight, weights.get(f"{at}.bias"), stride, weight.shape[2] // 2, groups=groups
        )

    def conv_norm(at, y, stride=1):
        groups = y.shape[1] // weights[f"{at}.conv.weight"].shape[1]
        return norm(f"{at}.norm", conv(f"{at}.conv", y, stride, groups))

    def branches(at, y):
        count = len(
            {
                key.split(".")[at.count(".") + 2]
                for key in weights
                if key.startswith(f"{at}.branches.")
            }
        )
        total = sum(conv_norm(f"{at}.branches.{k}", y) for k in range(count))  # fmt: skip
        return total + norm(f"{at}.identity", y) if f"{at}.identity.weight" in weights else total

    def pooled(y, side):
        rows, columns = (-(-length // side) for length in y.shape[2:])
        return torch.stack(
            [
                torch.stack(
                    [
                        y[..., side * r : side * (r + 1), side * c : side * (c + 1)].mean((2, 3))
                        for c in range(columns)
                    ],
                    -1,
                )
                for r in range(rows)
            ],
            -2,
        )

    def attention(at, y, heads, side):
        y = norm(f"{at}.norm", y)
        keys = norm(f"{at}.pool_norm", pooled(y, side))
        split = [
            branches(f"{at}.{name}", z).flatten(2).unflatten(1, (heads, -1))
            for name, z in (("query", y), ("key", keys), ("value", keys))
        ]
        scores = torch.einsum("bgdq,bgdk->bgqk", *split[:2]) / split[0].shape[2] ** 0.5
        mixed = torch.einsum("bgqk,bgdk->bgdq", scores.softmax(-1), split[2]).flatten(1, 2)
        return conv(f"{at}.proj", mixed.unflatten(2, y.shape[2:]))

    def feed(at, y):
        if f"{at}.norm.weight" in weights:
            y = norm(f"{at}.norm", y)
        return conv(f"{at}.fc2", conv_norm(f"{at}.fc1", y).relu())

    levels = []
    for stage, blocks in enumerate(model.stages):
        at = f"embeds.{stage}"
        if stage:
            x = conv_norm(f"{at}.1", pooled(x, 2))
        else:
            first, last = {4: (2, 2), 2: (2, 1), 1: (1, 1)}[model.feature_info[0].stride]
            for k, stride in enumerate((first, 1, 1, last)):
                x = conv_norm(f"{at}.{2 * k}", x, stride).relu()
        for number, block in enumerate(blocks):
            at = f"stages.{stage}.{number}"
            if f"{at}.mixer.branches.0.conv.weight" in weights:
                x = x + conv(f"{at}.proj", branches(f"{at}.mixer", x))
            else:
                x = branches(f"{at}.reduce", x)
                if f"{at}.attn.norm.weight" in weights:
                    x = x + attention(f"{at}.attn", x, block.attn.heads, block.attn.side)
                if f"{at}.near.branches.0.conv.weight" in weights:
                    high = branches(f"{at}.high", x)
                    near = high + branches(f"{at}.near", high)
                    wide = near + branches(f"{at}.wide", near)
                    x = torch.cat([x, near + wide], 1)
            x = x + feed(f"{at}.mlp", x)
        levels.append(x)
    pooled_map = norm("norm", x).mean((2, 3))
    return F.linear(pooled_map, weights["head.weight"], weights["head.bias"]), levels


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({}, (33, 46)),
        ({"groups": [], "stem_stride": 4}, (64, 41)),
        ({"mixing": "low", "groups": [3]}, (24, 24)),
        ({"mixing": "high", "low_share": 0.5, "conv_ratio": 2.5, "fusion_ratio": 1.0}, (9, 30)),
        ({"pools": [1, 1, 1], "head_dim": 64, "stem_stride": 2}, (32, 17)),
    ],
)
@torch.no_grad()
def test_equals_an_independent_network(changes, size):
    model = stirred(FMViT(3, 5, size, **{**TINY, **changes})).double()
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    scores, levels = twin(model.state_dict(), x, model)
    for found, expected in zip(
        (model(x), *model.forward_levels(x)), (scores, *levels), strict=True
    ):
        assert_equal(found, expected, torch.float64)


# -- fusion ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize(
    ("channels", "stride", "base", "groups"),
    [
        ((16, 16), 1, 1, (2, 4, 8)),
        ((16, 24), 1, 1, (2, 4, 8)),
        ((16, 16), 2, 1, (2, 4)),
        ((24, 24), 1, 3, (2, 4, 8)),
        ((24, 12), 2, 3, (2,)),
        ((10, 10), 1, 1, (2, 4, 5)),
        ((8, 8), 1, 8, (1,)),
        ((7, 5), 1, 1, ()),
    ],
)
@torch.no_grad()
def test_branches_are_one_convolution(channels, stride, base, groups, kernel, kind):
    branches = stirred(MultiGroupConv(*channels, kernel, stride, base, groups)).to(kind)
    x = torch.randn(2, channels[0], 9, 11, dtype=kind)
    conv = branches.fused()
    assert type(conv) is nn.Conv2d and conv.weight.dtype == kind and conv.groups == base
    assert_equal(conv(x), branches(x), kind)


@torch.no_grad()
def test_one_branch_is_a_convolution_and_its_norm():
    branches = stirred(MultiGroupConv(6, 9, 3, groups=()))
    assert len(branches.branches) == 1 and branches.identity is None
    x = torch.randn(1, 6, 5, 7)
    expected = folded(nn.Sequential(branches.branches[0]))(x)
    torch.testing.assert_close(branches.fused()(x), expected)


def test_expanded_groups_are_zero_off_their_blocks():
    weight = torch.ones(8, 3, 3, 3)
    dense = _regrouped(weight, 4, 1)
    assert dense.shape == (8, 12, 3, 3)
    expected = torch.block_diag(*[torch.ones(2, 3)] * 4)
    assert torch.equal(dense[:, :, 0, 0], expected)
    within = _regrouped(weight, 4, 2)  # of two groups, each a diagonal of two blocks
    assert torch.equal(within[:4, :, 1, 1], torch.block_diag(*[torch.ones(2, 3)] * 2))
    assert torch.equal(_regrouped(weight, 4, 4), weight)


def test_groupings_that_do_not_divide_the_channels_are_left_out():
    groups = [branch.conv.groups for branch in MultiGroupConv(12, 20, groups=(2, 4, 8)).branches]
    assert groups == [1, 2, 4]


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("mixing", ["both", "low", "high"])
@torch.no_grad()
def test_a_folded_network_gives_the_same(mixing, kind):
    model = stirred(FMViT(4, 5, 32, **TINY, mixing=mixing)).to(kind)
    before = copy.deepcopy(model.state_dict())
    plain, x = folded(model), torch.randn(3, 4, 32, 43, dtype=kind)
    assert_equal(plain(x), model(x), kind)
    for level, expected in zip(plain.forward_levels(x), model.forward_levels(x), strict=True):
        assert_equal(level, expected, kind)
    assert_equal(plain.forward_features(x), model.forward_features(x), kind)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def plain_names(model):
    """Names of the parameters of a network without norms and branches: a weight and a bias for each layer."""
    layers = [f"embeds.0.{k}" for k in (0, 2, 4, 6)]
    layers += [f"embeds.{stage}.1" for stage in range(1, len(model.stages))]
    for stage, blocks in enumerate(model.stages):
        for number, block in enumerate(blocks):
            convolutional = type(block).__name__ == "ConvBlock"
            attn = [f"attn.{part}" for part in ("query", "key", "value", "proj")]
            parts = (
                ["mixer", "proj"] if convolutional else ["reduce", *attn, "high", "near", "wide"]
            )
            layers += [f"stages.{stage}.{number}.{part}" for part in (*parts, "mlp.fc1", "mlp.fc2")]
    return {f"{layer}.{part}" for layer in (*layers, "norm", "head") for part in ("weight", "bias")}


def test_no_norm_and_no_branch_is_left():
    model = stirred(FMViT(4, 5, 32, **TINY))
    plain = folded(model)
    kinds = nn.modules.batchnorm._BatchNorm | Fusable | ConvNorm
    assert not [name for name, part in plain.named_modules() if isinstance(part, kinds)]
    assert set(plain.state_dict()) == plain_names(model)
    fewer, more = (sum(p.numel() for p in net.parameters()) for net in (plain, model))
    assert fewer < more
    assert count_cost(plain, 4, 32).macs < count_cost(model, 4, 32).macs


@torch.no_grad()
def test_exports_and_quantizers_fuse_too():
    model = stirred(FMViT(4, 5, 32, **TINY))
    quantizable, x = copy.deepcopy(model), torch.randn(2, 4, 32, 32)
    fold(quantizable)
    exported, _ = integer_form(model, "onnx")
    for plain in (quantizable, exported, integer_form(exported, "torch")[0]):
        assert not [m for m in plain.modules() if isinstance(m, nn.BatchNorm2d | Fusable)]
        assert_equal(plain(x), model(x), torch.float32)


@torch.no_grad()
def test_a_folded_network_takes_less_time():
    torch.manual_seed(0)
    model = create_model("fmvit_tiny", bands=3, num_classes=10, image_size=64).eval()
    plain, x = folded(model), torch.randn(2, 3, 64, 64)
    ratios = cpu_ratios(lambda: plain(x), lambda: model(x), 5)
    assert sorted(ratios)[2] < 0.8, ratios


# -- pitfalls -------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_fusion_takes_the_running_statistics_whatever_the_mode():
    model = stirred(FMViT(4, 5, 32, **TINY))
    x = torch.randn(4, 4, 32, 32)
    expected = model(x)
    plain = folded(copy.deepcopy(model).train())
    assert not plain.training
    assert_equal(plain(x), expected, torch.float32)


@torch.no_grad()
def test_norms_behind_padded_convolutions_are_exact_at_the_border():
    """A norm before a padded convolution could not be fused: its offset would be missing in the padding."""
    for name, part in stirred(FMViT(4, 5, 32, **TINY)).named_modules():
        if isinstance(part, MultiGroupConv):
            conv = part.branches[0].conv
            x = torch.randn(1, conv.in_channels, 6, 5)
            found, expected = part.fused()(x), part(x)
            for edge in (
                found[..., 0, :] - expected[..., 0, :],
                found[..., -1] - expected[..., -1],
            ):
                assert edge.abs().max() < 1e-4 * expected.abs().max(), name


def test_the_card_claims_no_figure_for_an_assumed_design():
    ours = card("fmvit")
    assert not ours.published
    assert any("FMViT-style" in note for note in ours.notes)
    assert any("2105.08050" in note for note in ours.notes)  # the other gMLP
    assert not hasattr(system_module("fmvit_tiny"), "from_reference")


# -- identities -----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_without_pooling_and_branches_it_is_multi_head_attention():
    light = stirred(LightAttention(12, 3, 1, ()))
    for norm in (light.norm, light.pool_norm):
        norm.reset_running_stats()
        nn.init.ones_(norm.weight), nn.init.zeros_(norm.bias)
        norm.eps = 0.0
    plain, usual = light.fused(), Attention(12, 3).eval()
    parts = (plain.query, plain.key, plain.value)
    usual.qkv.weight.copy_(torch.cat([part.weight[:, :, 0, 0] for part in parts]))
    usual.qkv.bias.copy_(torch.cat([part.bias for part in parts]))
    usual.proj.weight.copy_(plain.proj.weight[:, :, 0, 0])
    usual.proj.bias.copy_(plain.proj.bias)
    x = torch.randn(2, 12, 4, 5)
    expected = usual(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, (4, 5))
    torch.testing.assert_close(light(x), expected, rtol=1e-4, atol=1e-5)


def test_pooling_divides_the_cost_of_attention_by_its_square():
    def products(pool):
        light, side = LightAttention(8, 1, pool, ()), 16
        whole = count_cost(light, 8, side).macs
        cells, keys = side**2, (side // pool) ** 2
        return whole - 2 * cells * 8 * 8 - 2 * keys * 8 * 8  # without the linear maps

    assert [products(1) / products(pool) for pool in (2, 4)] == [4, 16]


@torch.no_grad()
def test_parts_fuse_each_by_itself():
    x = torch.randn(2, 12, 5, 7)
    for part in (
        LightAttention(12, 2, 2, (2, 4)),
        NormedFeedForward(12, 2.0, norm_first=True),
        NormedFeedForward(12, 2.0, norm_first=False),
        MapNorm(12),
    ):
        plain = stirred(part).fused()
        torch.testing.assert_close(plain(x), part(x), rtol=1e-4, atol=1e-4)
    assert type(NormedFeedForward(12, 2.0, norm_first=True).fused()) is FeedForward


def test_heads_are_no_narrower_than_asked():
    for name, widths in (("fmvit_tiny", [60, 40, 40]), ("fmvit_base", [32, 32, 32])):
        with torch.device("meta"):
            model = create_model(name, bands=3, num_classes=10, image_size=224)
        blocks = [[*stage][-1] for stage in [*model.stages][1:]]
        found = [b.attn.key.branches[0].conv.out_channels // b.attn.heads for b in blocks]
        assert found == widths
        assert [b.attn.side for b in blocks] == [4, 2, 1]


@pytest.mark.parametrize(
    ("size", "stride", "cells"),
    [(224, 4, [56, 28, 14, 7]), (64, 2, [32, 16, 8, 4]), (33, 1, [33, 17, 9, 5])],
)
@torch.no_grad()
def test_maps_round_up(size, stride, cells):
    model = create_model("fmvit_tiny", bands=2, num_classes=3, image_size=size).eval()
    assert [info.stride for info in model.feature_info] == [stride * 2**k for k in range(4)]
    levels = model.forward_levels(torch.randn(1, 2, size, size))
    assert [level.shape[2] for level in levels] == cells


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"repeats": [1, 1]}, "3 widths, but 3, 3, 2, 3"),
        ({"mixing": "middle"}, "no mixing 'middle'"),
        ({"low_share": 0.01}, "share of 0.01"),
        ({"stem_stride": 8}, "stem_stride of 1, 2 or 4"),
        ({"dims": [1, 24, 40]}, "0.75"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, words):
    with pytest.raises(ModelError, match=words):
        FMViT(3, 5, 32, **{**TINY, **arguments})


def test_adapters_see_tokens_channels_last():
    model, seen = testing.make("fmvit_test").eval(), []
    for name, part in model.named_modules():
        if name.endswith(".adapter"):
            part.register_forward_pre_hook(
                lambda m, given: seen.append(given[0].shape[-1] == m.dim)
            )
    model(testing.images(1, 4, 15))
    assert len(seen) == 3 and all(seen)
