import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vitreous
from fixtures_reader import load_fixture
from vitreous import testing
from vitreous.catalog.registry import create_model
from vitreous.errors import CheckpointError, ModelError
from vitreous.inference.cost import count_cost
from vitreous.layers.convmix import ConvMlp
from vitreous.models.smt import SMT, LocalAttention, Modulation, rename

TINY = {
    "dims": [8, 12, 16],
    "depths": [1, 1, 2],
    "mlp_ratios": [2.0] * 3,
    "mixers": ["modulation", "alternate", "attention"],
    "modulation_heads": [2, 3, 1],
    "attention_heads": [1, 2, 4],
}


@pytest.fixture
def fixture():
    return load_fixture("smt")


def lively(module, size=None):
    torch.manual_seed(0)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_()
                part.running_var.uniform_(0.5, 2)
        for parameter in module.parameters():
            parameter.normal_(0, 0.5)
    return module.eval()


def tokens(level):
    return level.flatten(2).transpose(1, 2)


@torch.no_grad()
def test_equals_the_reference(fixture):
    model = vitreous.from_reference("smt", fixture["state_dict"], fixture["kwargs"]).eval()
    output = fixture["output"]
    torch.testing.assert_close(model(fixture["input"]), output["logits"], rtol=1e-5, atol=1e-5)
    for stage, level in enumerate(model.forward_levels(fixture["input"])):
        torch.testing.assert_close(tokens(level), output[f"stage{stage}"], rtol=1e-5, atol=1e-4)


def test_a_partial_reference_is_refused(fixture):
    weights = dict(fixture["state_dict"])
    del weights["block3.1.attn.local_conv.bias"]
    with pytest.raises(CheckpointError, match=r"stages\.2\.1\.mixer\.local\.bias"):
        vitreous.from_reference("smt", weights, fixture["kwargs"])
    weights = {**fixture["state_dict"], "block1.0.attn.local_conv_5.bias": torch.zeros(2)}
    with pytest.raises(CheckpointError, match=r"heads\.4"):
        vitreous.from_reference("smt", weights, fixture["kwargs"])


# -- the authors' code, naively, with all its options ---------------------------------------------------------


def in_the_authors_layout(model):
    """Undo ``rename``: its inverse on the names of a model of ours."""
    stem = {"pixels": "conv.0", "hidden.0": "conv.1", "reduce": "conv.3", "norm": "norm"}
    parts = {"value": "v", "source": "s", "aggregate.0": "proj0", "aggregate.1": "bn"}
    parts |= {"aggregate.3": "proj1", "local": "local_conv", "proj": "proj"}
    numbered = {"embeds": "patch_embed", "stages": "block", "norms": "norm"}
    weights = {}
    for key, value in model.state_dict().items():
        first, number, *rest = key.split(".")
        name, (last, path) = first, (rest[-1] if rest else "", ".".join(rest[:-1]))
        if first in numbered:
            name = f"{numbered[first]}{int(number) + 1}"
        else:
            last, path = number, ""
        if key.startswith("embeds.0."):
            path = stem[path]
        if ".mixer." in f".{path}.":
            at, _, part = path.partition(".mixer.")
            part = f"local_conv_{int(part[6:]) + 1}" if part.startswith("heads.") else part
            path = f"{at}.attn.{parts.get(part, part)}"
        path = path.replace(".dwconv", ".dwconv.dwconv")
        if last == "gamma":
            path, last = path.rpartition(".ls")[0], f"gamma_{path[-1]}"
        name = ".".join(filter(None, (name, path, last)))
        if ".qkv." in name:
            third = len(value) // 3
            weights[name.replace(".qkv.", ".q.")] = value[:third]
            weights[name.replace(".qkv.", ".kv.")] = value[third:]
        else:
            weights[name] = value
    return weights


def naive(weights, x, kwargs):
    """Logits and stage outputs of the authors' network, from the sheet's equations."""

    def linear(at, y):
        return F.linear(y, weights[f"{at}.weight"], weights.get(f"{at}.bias"))

    def norm(at, y, eps=1e-6):
        return F.layer_norm(y, y.shape[-1:], weights[f"{at}.weight"], weights[f"{at}.bias"], eps)

    def batch_norm(at, y):
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(y, *(weights[f"{at}.{name}"] for name in names))

    def conv(at, y, **how):
        return F.conv2d(y, weights[f"{at}.weight"], weights.get(f"{at}.bias"), **how)

    def to_map(y, size):
        return y.transpose(1, 2).reshape(len(y), -1, *size)

    def modulation(at, y, size, heads):
        source = to_map(linear(f"{at}.s", y), size)
        width = source.shape[1] // heads
        mixed = torch.empty_like(source)
        for head in range(heads):
            part = source[:, head * width : (head + 1) * width]
            seen = conv(f"{at}.local_conv_{head + 1}", part, padding=1 + head, groups=width)
            for channel in range(width):
                mixed[:, channel * heads + head] = seen[:, channel]
        mixed = F.gelu(batch_norm(f"{at}.bn", conv(f"{at}.proj0", mixed, groups=width)))
        return linear(f"{at}.proj", tokens(conv(f"{at}.proj1", mixed)) * linear(f"{at}.v", y))

    def attention(at, y, size, heads):
        batch, count, dim = y.shape
        query = linear(f"{at}.q", y).reshape(batch, count, heads, -1)
        key, value = linear(f"{at}.kv", y).reshape(batch, count, 2, heads, -1).unbind(2)
        scale = kwargs.get("qk_scale") or (dim // heads) ** -0.5
        scores = torch.einsum("bqhd,bkhd->bhqk", query, key) * scale
        mixed = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value).flatten(2)
        local = conv(f"{at}.local_conv", to_map(value.flatten(2), size), padding=1, groups=dim)
        return linear(f"{at}.proj", mixed + tokens(local))

    levels, y, size = [], x, x.shape[2:]
    for stage in range(kwargs.get("num_stages", 4)):
        at = f"patch_embed{stage + 1}"
        if stage == 0:
            y = conv(f"{at}.conv.0", x, stride=2, padding=3 if kwargs["head_conv"] == 7 else 1)
            y = conv(f"{at}.conv.3", batch_norm(f"{at}.conv.1", y).relu(), stride=2)
        else:
            y = conv(f"{at}.proj", to_map(y, size), stride=2, padding=1)
        size = y.shape[2:]
        y = norm(f"{at}.norm", tokens(y), 1e-5)
        for block in range(kwargs["depths"][stage]):
            at = f"block{stage + 1}.{block}"
            modulates = kwargs["ca_attentions"][stage] == 1 and not (stage == 2 and block % 2)
            mix = modulation if modulates else attention
            heads = kwargs["ca_num_heads" if modulates else "sa_num_heads"][stage]
            mixed = mix(f"{at}.attn", norm(f"{at}.norm1", y), size, heads)
            y = y + weights.get(f"{at}.gamma_1", 1.0) * mixed
            hidden = linear(f"{at}.mlp.fc1", norm(f"{at}.norm2", y))
            near = conv(
                f"{at}.mlp.dwconv.dwconv", to_map(hidden, size), padding=1, groups=hidden.shape[2]
            )
            hidden = F.gelu(hidden + tokens(near))
            y = y + weights.get(f"{at}.gamma_2", 1.0) * linear(f"{at}.mlp.fc2", hidden)
        y = norm(f"norm{stage + 1}", y)
        levels.append(y)
    return linear("head", y.mean(1)), levels


PUBLISHED = {
    "embed_dims": [8, 16, 24, 32],
    "ca_num_heads": [4, 4, 4, -1],
    "sa_num_heads": [-1, -1, 3, 4],
    "mlp_ratios": [2, 2, 2, 2],
    "depths": [1, 1, 2, 1],
    "ca_attentions": [1, 1, 1, 0],
    "head_conv": 3,
    "expand_ratio": 2,
    "num_classes": 5,
    "qkv_bias": True,
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"head_conv": 7, "use_layerscale": True, "layerscale_value": 0.3, "expand_ratio": 3},
        {"qkv_bias": False, "qk_scale": 0.7, "depths": [0, 1, 3, 2], "ca_num_heads": [2, 8, 1, -1]},
        {"ca_attentions": [0, 1, 0, 1], "sa_num_heads": [2, -1, 4, -1], "ca_num_heads": [-1, 2, -1, 4]},
        {"num_stages": 3, "mlp_ratios": [1, 3, 2.5, 2], "in_chans": 3, "drop_path_rate": 0.2},
    ],
)  # fmt: skip
@torch.no_grad()
def test_equals_a_naive_network_with_all_options(changes):
    kwargs = {**PUBLISHED, **changes}
    stages = kwargs.get("num_stages", 4)
    mixers = [
        "attention" if own != 1 else "alternate" if stage == 2 else "modulation"
        for stage, own in enumerate(kwargs["ca_attentions"][:stages])
    ]
    model = lively(
        SMT(
            3,
            5,
            dims=kwargs["embed_dims"][:stages],
            depths=kwargs["depths"][:stages],
            mlp_ratios=kwargs["mlp_ratios"][:stages],
            mixers=mixers,
            modulation_heads=[max(n, 1) for n in kwargs["ca_num_heads"][:stages]],
            attention_heads=[max(n, 1) for n in kwargs["sa_num_heads"][:stages]],
            expand=kwargs["expand_ratio"],
            qkv_bias=kwargs["qkv_bias"],
            layer_scale=0.3 if "use_layerscale" in kwargs else None,
            stem_kernel=kwargs["head_conv"],
            stem_stride=4,
        )
    )
    weights = in_the_authors_layout(model)
    assert {"block2.0.mlp.fc1.weight", "patch_embed2.proj.weight"} <= set(weights)
    assert set(rename(weights)) == set(model.state_dict())
    ours = vitreous.from_reference("smt", weights, kwargs).eval()
    x = torch.randn(2, 3, 41, 62)
    logits, levels = naive(weights, x, kwargs)
    torch.testing.assert_close(ours(x), logits, rtol=1e-4, atol=1e-4)
    for level, expected in zip(ours.forward_levels(x), levels, strict=True):
        torch.testing.assert_close(tokens(level), expected, rtol=1e-4, atol=1e-4)


def test_a_kernel_that_the_reference_pads_otherwise_is_refused(fixture):
    with pytest.raises(ModelError, match="head_conv=5"):
        vitreous.from_reference("smt", {}, {**fixture["kwargs"], "head_conv": 5})


# -- identities of the paper ----------------------------------------------------------------------------------


@torch.no_grad()
def test_a_modulator_of_one_leaves_two_linear_maps():
    mixer, x = lively(Modulation(12, 3, 2, 2, True)), torch.randn(2, 7, 5, 12)
    mixer.modulator = torch.ones_like
    torch.testing.assert_close(mixer(x), mixer.proj(mixer.value(x)))


@torch.no_grad()
def test_each_head_sees_two_cells_more_than_the_one_before():
    mixer = lively(Modulation(16, 4, 2, 0, True))
    impulse = torch.zeros(1, 16, 16)
    impulse[0, 7, 8] = 1
    for head, conv in enumerate(mixer.heads):
        seen = conv(impulse.expand(4, -1, -1)) - conv(torch.zeros(4, 16, 16))
        for channel in seen:
            rows, columns = channel.abs().sum(1) > 0, channel.abs().sum(0) > 0
            assert (rows.sum(), columns.sum()) == (3 + 2 * head, 3 + 2 * head)
            assert rows[6 - head] and rows[8 + head] and columns[7 - head] and columns[9 + head]


@torch.no_grad()
def test_a_group_aggregates_one_channel_of_each_head():
    dim, heads = 12, 3
    mixer, x = lively(Modulation(dim, heads, 2, 1, True)), torch.randn(1, 5, 5, dim)
    groups = nn.Sequential(*mixer.aggregate[:3])  # all but the last convolution, which mixes all
    mixer.aggregate = groups
    before = mixer.modulator(x).unflatten(-1, (dim // heads, -1))
    for channel in range(dim):
        other = lively(Modulation(dim, heads, 2, 1, True))
        other.aggregate = groups
        other.source.bias[channel] += 1
        moved = (other.modulator(x).unflatten(-1, (dim // heads, -1)) != before).flatten(0, 2)
        changed = moved.any(2).any(0).nonzero().flatten().tolist()
        assert changed == [channel % (dim // heads)]


def test_modulation_costs_by_the_cell_and_attention_by_its_square():
    def macs(mixer, side):
        plain = SMT(4, 5, side, dims=[16], depths=[1], mlp_ratios=[1.0], mixers=[mixer],
                    modulation_heads=[4], attention_heads=[2], stem_stride=1)  # fmt: skip
        return count_cost(plain, 4, side).macs

    modulated = macs("modulation", 32) / macs("modulation", 16)
    attended = macs("attention", 64) / macs("attention", 32)
    assert modulated == pytest.approx(4, rel=0.01)
    assert 8 < attended < 16


def test_blocks_of_the_published_third_stage_take_turns():
    with torch.device("meta"):
        model = create_model("smt_tiny", bands=3, num_classes=10, image_size=224)
    kinds = [type(block.mixer) for block in model.stages[2]]
    assert kinds == [Modulation, LocalAttention] * 4
    assert {type(b.mixer) for s in (0, 1) for b in model.stages[s]} == {Modulation}
    assert {type(block.mixer) for block in model.stages[3]} == {LocalAttention}
    assert [block.mixer.heads for block in model.stages[2]][1] == 8
    assert model.stages[3][0].mixer.heads == 16


@torch.no_grad()
def test_a_feed_forward_may_add_what_its_convolution_reads():
    torch.manual_seed(0)
    x, plain, residual = torch.randn(1, 6, 5, 8), ConvMlp(8, 16), ConvMlp(8, 16, residual=True)
    residual.load_state_dict(plain.state_dict())
    for mlp in (plain, residual):
        mlp.dwconv.weight.zero_(), mlp.dwconv.bias.zero_()
    torch.testing.assert_close(residual(x), plain.fc2(F.gelu(plain.fc1(x))))
    torch.testing.assert_close(plain(x), plain.fc2.bias.expand_as(x))


# -- pitfalls -------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_values_are_convolved_in_their_own_order():
    """A value of head h, channel d is channel h * width + d of the map, whatever lies how in memory."""
    mixer, x = lively(LocalAttention(12, 3, True, None)), torch.randn(2, 4, 7, 12)
    mixer.core.forward = lambda query, key, value, grid: torch.zeros_like(value)
    mixer.proj = nn.Identity()
    value = F.linear(x, mixer.qkv.weight[24:], mixer.qkv.bias[24:])
    expected = mixer.local(value.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(mixer(x), expected)
    strided = torch.randn(2, 12, 7, 4).permute(0, 3, 2, 1)
    torch.testing.assert_close(mixer(strided), mixer(strided.contiguous()))


@pytest.mark.parametrize("heads", ["modulation_heads", "attention_heads"])
def test_heads_that_do_not_divide_the_width_are_refused(heads):
    counts = [TINY[heads][0], 5, TINY[heads][2]]
    with pytest.raises(ModelError, match="width 12, not divisible by 5 heads"):
        SMT(3, 5, 32, **{**TINY, heads: counts})
    unused = {"modulation_heads": [2, 3, 7], "attention_heads": [5, 2, 4]}
    SMT(3, 5, 32, **{**TINY, heads: unused[heads]})  # of stages without such heads


@torch.no_grad()
def test_scores_follow_the_statistics_of_the_modulators_norm():
    model, x = testing.make("smt_test").eval(), testing.images(4, 4, 15)
    before = model(x)
    torch.testing.assert_close(model(x[:1]), before[:1], rtol=1e-4, atol=1e-5)
    model.stages[0][0].mixer.aggregate[1].running_mean += 1
    assert (model(x) - before).abs().max() > 1e-3


def test_no_map_is_kept_behind_a_forward_pass():
    model = testing.make("smt_test").eval()
    names = [set(vars(module)) for module in model.modules()]
    model(testing.images(1, 4, 15))
    assert [set(vars(module)) for module in model.modules()] == names


# -- sizes and arguments --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "stride", "cells"),
    [
        (224, 4, [(56, 56), (28, 28), (14, 14), (7, 7)]),
        (64, 2, [(32, 32), (16, 16), (8, 8), (4, 4)]),
        (15, 1, [(15, 15), (8, 8), (4, 4), (2, 2)]),
        ((24, 37), 1, [(24, 37), (12, 19), (6, 10), (3, 5)]),
    ],
)
def test_the_stem_shrinks_on_small_images_only(size, stride, cells):
    model = create_model("smt_test", bands=2, num_classes=3, image_size=size)
    assert model.feature_info[0].stride == stride
    height, width = model.size
    levels = model.eval().forward_levels(torch.randn(1, 2, height, width))
    assert [tuple(level.shape[2:]) for level in levels] == cells


def test_images_without_a_cell_are_refused():
    model = SMT(3, 5, 64, **TINY, stem_stride=4)
    with pytest.raises(ModelError, match="3 pixels or more, not 40 x 2"):
        model(torch.zeros(1, 3, 40, 2))
    model.eval()(torch.zeros(1, 3, 3, 40))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"depths": [1, 1]}, "different lengths"),
        ({"mixers": ["modulation", "convolution", "attention"]}, "no mixer 'convolution'"),
        ({"kernel_step": 1}, "even kernel_step"),
        ({"stem_kernel": 5}, "stem_kernel of 3 or 7"),
        ({"stem_stride": 8}, "stem_stride of 1, 2 or 4"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, words):
    with pytest.raises(ModelError, match=words):
        SMT(3, 5, 32, **{**TINY, **arguments})
