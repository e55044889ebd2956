import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vitreous
from fixtures_reader import load_fixture
from vitreous import testing
from vitreous.catalog.registry import create_model
from vitreous.errors import CheckpointError, ModelError
from vitreous.models.dhvt import (
    DHVT,
    AggregationFeedForward,
    ChannelAffine,
    HeadInteraction,
    OverlappingEmbed,
    rename,
)


@pytest.fixture
def fixture():
    return load_fixture("dhvt")


def lively(module):
    torch.manual_seed(0)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_()
                part.running_var.uniform_(0.5, 2)
        for parameter in module.parameters():
            parameter.normal_(0, 0.4)
    return module.eval()


@torch.no_grad()
def test_equals_the_reference(fixture):
    model = vitreous.from_reference("dhvt", fixture["state_dict"], fixture["kwargs"]).eval()
    torch.testing.assert_close(model(fixture["input"]), fixture["output"], rtol=1e-5, atol=1e-5)


def test_a_partial_reference_is_refused(fixture):
    weights = dict(fixture["state_dict"])
    del weights["blocks.1.attn.ht_norm.bias"]
    with pytest.raises(CheckpointError, match=r"blocks\.1\.interaction\.norm\.bias"):
        vitreous.from_reference("dhvt", weights, fixture["kwargs"])


@pytest.mark.parametrize(
    "changes",
    [{"apply_dhvt": False}, {"distilled": True}, {"representation_size": 8}, {"patch_size": 8}],
)
def test_what_we_do_not_offer_of_a_reference_is_refused(fixture, changes):
    with pytest.raises(ModelError, match=next(iter(changes))):
        vitreous.from_reference("dhvt", fixture["state_dict"], {**fixture["kwargs"], **changes})


# -- the authors' code, naively, with all its options ---------------------------------------------------------


def in_the_authors_layout(model):
    """Undo ``rename``."""
    names = {"class_token": "cls_token", "embed.layers": "patch_embed.proj", ".conv.": ".0."}
    names |= {"embed.before": "patch_embed.pre_affine", "embed.after": "patch_embed.post_affine"}
    names |= {".norm.weight": ".1.weight"}
    parts = {"interaction.positions": "attn.pos_embed", "interaction.describe": "attn.ht_proj"}
    parts |= {"interaction.norm": "attn.ht_norm", "interaction": "attn", "excite": "excitation"}
    parts |= {"expand.0": "conv1", "expand.1": "bn1", "mix.0": "conv2", "mix.1": "bn2"}
    parts |= {"reduce.0": "conv3", "reduce.1": "bn3"}
    weights = {}
    for key, value in model.state_dict().items():
        if key.startswith("embed.layers."):
            key = key.replace(".conv.", ".0.").replace(".norm.", ".1.")
        for old, new in {**names, **parts}.items() if not key.startswith("norm.") else ():
            key = key if old == ".norm.weight" else key.replace(old, new)
        weights[key] = value
    return weights


def naive(weights, x, kwargs):
    """Scores of the authors' network, from the sheet's equations."""

    def linear(at, y):
        return F.linear(y, weights[f"{at}.weight"], weights.get(f"{at}.bias"))

    def norm(at, y, eps):
        return F.layer_norm(y, y.shape[-1:], weights[f"{at}.weight"], weights[f"{at}.bias"], eps)

    def batch_norm(at, y):
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(y, *(weights[f"{at}.{name}"] for name in names))

    def conv(at, y, **how):
        return F.conv2d(y, weights[f"{at}.weight"], weights.get(f"{at}.bias"), **how)

    def affine(at, y):
        return y * weights[f"{at}.alpha"] + weights[f"{at}.beta"]

    dim, heads, side = kwargs["embed_dim"], kwargs["num_heads"], kwargs["patch_size"]
    count = {16: 4, 4: 2, 2: 1}[side]
    y = affine("patch_embed.pre_affine", x)
    for k in range(count):
        at = f"patch_embed.proj.{2 * k}"
        y = batch_norm(f"{at}.1", conv(f"{at}.0", y, stride=2, padding=1))
        if k < count - 1 or count == 1:
            y = F.gelu(y)
    y = affine("patch_embed.post_affine", y)
    grid = y.shape[2:]
    y = torch.cat([weights["cls_token"].expand(len(x), 1, dim), y.flatten(2).transpose(1, 2)], 1)
    for block in range(kwargs["depth"]):
        at = f"blocks.{block}.attn"
        z = norm(f"blocks.{block}.norm1", y, kwargs.get("eps", 1e-6))
        width = dim // heads
        described = []
        for head in range(heads):
            mean = z[..., head * width : (head + 1) * width].mean(1)
            parts = linear(f"{at}.ht_proj", mean).unflatten(1, (heads, width))
            described.append(F.gelu(norm(f"{at}.ht_norm", parts, 1e-5)).flatten(1))
        described = torch.stack(described, 1) + weights[f"{at}.pos_embed"]
        tokens = torch.cat([z, described], 1)
        query, key, value = linear(f"{at}.qkv", tokens).unflatten(2, (3, heads, width)).unbind(2)
        scores = torch.einsum("bqhd,bkhd->bhqk", query, key) * (
            kwargs.get("qk_scale") or width**-0.5
        )
        mixed = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value).flatten(2)
        mixed = linear(f"{at}.proj", mixed)
        z, described = mixed[:, : z.shape[1]].clone(), mixed[:, z.shape[1] :]
        z[:, 0] += described.mean(1)
        y = y + z
        at = f"blocks.{block}.mlp"
        z = norm(f"blocks.{block}.norm2", y, kwargs.get("eps", 1e-6))
        cells = z[:, 1:].transpose(1, 2).unflatten(2, grid)
        hidden = F.gelu(batch_norm(f"{at}.bn1", conv(f"{at}.conv1", cells)))
        near = conv(f"{at}.conv2", hidden, padding=1, groups=hidden.shape[1])
        hidden = F.gelu(batch_norm(f"{at}.bn2", near)) + hidden
        cells = batch_norm(f"{at}.bn3", conv(f"{at}.conv3", hidden)).flatten(2)
        weight = linear(f"{at}.excitation", F.gelu(linear(f"{at}.compress", cells.mean(2))))
        y = y + torch.cat([z[:, :1] * weight[:, None], cells.transpose(1, 2)], 1)
    return linear("head", norm("norm", y, kwargs.get("eps", 1e-6))[:, 0])


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({}, 16),
        ({"patch_size": 2, "num_heads": 2, "qkv_bias": False}, 12),
        ({"patch_size": 16, "embed_dim": 32, "num_heads": 8, "mlp_ratio": 3.5, "depth": 1}, 48),
        ({"qk_scale": 0.3, "norm_layer": "LayerNorm eps=0.001", "eps": 1e-3, "in_chans": 3}, 20),
    ],
)
@torch.no_grad()
def test_equals_a_naive_network_with_all_options(changes, size):
    kwargs = {"img_size": size, "patch_size": 4, "num_classes": 5, "embed_dim": 16, "depth": 2}
    kwargs |= {"num_heads": 4, "mlp_ratio": 2.0, **changes}
    model = lively(
        DHVT(
            3,
            5,
            size,
            token_size=kwargs["patch_size"],
            dim=kwargs["embed_dim"],
            depth=kwargs["depth"],
            heads=kwargs["num_heads"],
            mlp_ratio=kwargs["mlp_ratio"],
            qkv_bias=kwargs.get("qkv_bias", True),
        )
    )
    weights = in_the_authors_layout(model)
    assert {"blocks.0.attn.ht_norm.weight", "patch_embed.proj.0.1.running_var"} <= set(weights)
    assert set(rename(weights)) == set(model.state_dict())
    ours = vitreous.from_reference("dhvt", weights, kwargs).eval()
    x = torch.randn(2, 3, size, size)
    torch.testing.assert_close(ours(x), naive(weights, x, kwargs), rtol=1e-4, atol=1e-4)


# -- identities of the paper ----------------------------------------------------------------------------------


@torch.no_grad()
def test_heads_have_a_token_each_inside_attention_only():
    mixer, seen = lively(HeadInteraction(16, 4, True, None)), []
    mixer.qkv.register_forward_pre_hook(lambda m, given: seen.append(given[0].shape[1]))
    assert mixer(torch.randn(2, 10, 16)).shape == (2, 10, 16)
    assert seen == [14]


@torch.no_grad()
def test_silent_descriptions_still_take_a_share():
    mixer, x = lively(HeadInteraction(16, 4, True, None)), torch.randn(2, 10, 16)
    for silent in (mixer.describe.weight, mixer.describe.bias, mixer.norm.bias, mixer.positions):
        silent.zero_()
    assert not mixer.describe_heads(x).any()
    query, key, value = mixer.project(x)
    own, own_value = mixer.qkv.bias[16:32].view(1, 4, 1, 4), mixer.qkv.bias[32:].view(1, 4, 1, 4)
    keys = torch.cat([key, own.expand(2, -1, 4, -1)], 2)
    values = torch.cat([value, own_value.expand(2, -1, 4, -1)], 2)
    mixed = mixer.join((query @ keys.transpose(2, 3) / 2).softmax(-1) @ values)
    torch.testing.assert_close(mixer(x)[:, 1:], mixed[:, 1:], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_moved_patches_change_the_feed_forward_and_not_the_attention():
    x, order = torch.randn(1, 13, 16), torch.randperm(12) + 1
    moved = torch.cat([x[:, :1], x[:, order]], 1)
    mixer = lively(HeadInteraction(16, 4, True, None))
    expected = mixer(x)
    torch.testing.assert_close(mixer(moved)[:, 1:], expected[:, order], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mixer(moved)[:, 0], expected[:, 0], rtol=1e-4, atol=1e-5)
    feed = lively(AggregationFeedForward(16, 32))
    assert (feed(moved, (3, 4))[:, 1:] - feed(x, (3, 4))[:, order]).abs().max() > 0.01


@torch.no_grad()
def test_an_excitation_of_one_leaves_the_class_token():
    feed, x = lively(AggregationFeedForward(16, 32)), torch.randn(2, 13, 16)
    feed.excite.weight.zero_(), feed.excite.bias.fill_(1)
    assert torch.equal(feed(x, (3, 4))[:, 0], x[:, 0])


@torch.no_grad()
def test_without_a_depthwise_convolution_the_shortcut_passes_alone():
    feed, x = lively(AggregationFeedForward(16, 32)), torch.randn(2, 13, 16)
    feed.mix[0].weight.zero_(), feed.mix[0].bias.zero_(), feed.mix[1].running_mean.zero_()
    feed.mix[1].bias.zero_()
    cells = x[:, 1:].transpose(1, 2).unflatten(2, (3, 4))
    expected = feed.reduce(feed.expand(cells)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(feed(x, (3, 4))[:, 1:], expected)


def test_affine_maps_begin_as_identities():
    x = torch.randn(1, 5, 3, 4)
    assert torch.equal(ChannelAffine(5)(x), x)


@torch.no_grad()
def test_other_sizes_need_no_resizing():
    model = lively(DHVT(3, 5, 32, token_size=4, dim=16, depth=2, heads=4))
    other = DHVT(3, 5, 48, token_size=4, dim=16, depth=2, heads=4).eval()
    other.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 48, 48)
    assert torch.equal(other(x), model(x))


# -- pitfalls -------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_descriptions_count_the_class_token():
    mixer, x = lively(HeadInteraction(16, 4, True, None)), torch.randn(1, 5, 16)
    before = mixer.describe_heads(x)
    assert (mixer.describe_heads(x[:, 1:]) - before).abs().max() > 1e-3
    means = x.mean(1).view(1, 4, 4)
    parts = mixer.norm(mixer.describe(means).view(1, 4, 4, 4))
    torch.testing.assert_close(before, F.gelu(parts).flatten(2) + mixer.positions)


@torch.no_grad()
def test_what_heads_gathered_is_projected_before_it_is_added():
    mixer, x = lively(HeadInteraction(16, 4, True, None)), torch.randn(1, 5, 16)
    whole = mixer.join(mixer.core(*mixer.project(torch.cat([mixer.describe_heads(x), x], 1))))
    expected = whole[:, 4] + whole[:, :4].mean(1)
    torch.testing.assert_close(mixer(x)[:, 0], expected)


@torch.no_grad()
def test_the_class_token_is_weighed_by_what_the_feed_forward_gives():
    feed, x = lively(AggregationFeedForward(16, 32)), torch.randn(2, 13, 16)
    out = feed(x, (3, 4))
    weight = feed.excite(F.gelu(feed.compress(out[:, 1:].mean(1))))
    assert weight.min() < 0  # no sigmoid
    torch.testing.assert_close(out[:, 0], x[:, 0] * weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("side", "convolutions", "gelus"), [(16, 4, 3), (8, 3, 2), (4, 2, 1), (2, 1, 1), (1, 1, 1)])  # fmt: skip
@torch.no_grad()
def test_only_a_stem_of_one_convolution_ends_with_a_gelu(side, convolutions, gelus):
    embed = OverlappingEmbed(5, 32, side)
    assert sum(isinstance(part, nn.Conv2d) for part in embed.modules()) == convolutions
    assert sum(isinstance(part, nn.GELU) for part in embed.modules()) == gelus
    assert embed.eval()(torch.randn(1, 5, 32, 33)).shape == (1, 32, -(-32 // side), -(-33 // side))


def test_norms_of_the_stem_need_no_other_processes():
    kinds = {
        type(m) for m in testing.make("dhvt_test").modules() if "BatchNorm" in type(m).__name__
    }
    assert kinds == {nn.BatchNorm2d}


@torch.no_grad()
def test_any_bands_and_oblong_grids():
    model = lively(DHVT(7, 5, (24, 41), token_size=4, dim=16, depth=2, heads=4))
    assert model.embed.before.alpha.shape == (1, 7, 1, 1)
    levels = model.forward_levels(torch.randn(1, 7, 24, 41))
    assert [tuple(level.shape[2:]) for level in levels] == [(6, 11)] * 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"token_size": 3}, "no tokens of 3 pixels"),
        ({"heads": 3}, "not divisible by 3 heads"),
        ({"dim": 18, "heads": 2}, "18 by 4"),
        ({"dim": 20, "token_size": 16}, "20 by 8"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, words):
    with pytest.raises(ModelError, match=words):
        DHVT(3, 5, 32, **{"token_size": 4, "dim": 16, "depth": 1, "heads": 4, **arguments})


def test_ablations_have_none_of_the_parts():
    model = create_model(
        "dhvt_test", bands=3, num_classes=5, image_size=16, head_tokens=False, aggregation=False
    )
    assert not [
        m for m in model.modules() if isinstance(m, HeadInteraction | AggregationFeedForward)
    ]
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 5)
