import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vitreous
from fixtures_reader import load_fixture
from vitreous.errors import CheckpointError, ModelError
from vitreous.models.efficientformer import (
    Attention,
    DistanceBias,
    EfficientFormer,
    MapBlock,
    Pooling,
    TokenBlock,
    fuse,
    resize,
)
from vitreous.testing import enliven

TINY = {
    "dims": [8, 12, 16, 24],
    "depths": [1, 1, 1, 2],
    "heads": 2,
    "key_dim": 4,
    "value_dim": 6,
    "mlp_ratio": 2.0,
}


@pytest.fixture
def fixture():
    return load_fixture("efficientformer")


def lively(model):
    """Return the model in eval mode with branches, biases and statistics that are not nearly silent."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith(("gamma", "table", "running_mean")):
                tensor.normal_(0.3, 0.5)
            elif name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
    return model.eval()


def small(image_size=64, **changes):
    torch.manual_seed(0)
    return lively(EfficientFormer(3, 5, image_size, **{"stem_stride": 4, **TINY, **changes}))


def test_equals_the_reference(fixture):
    model = vitreous.from_reference("efficientformer", fixture["state_dict"], fixture["kwargs"])
    with torch.no_grad():
        output = model.eval()(fixture["input"])
        both = model.forward_heads(model.forward_features(fixture["input"]))
    torch.testing.assert_close(output, fixture["output"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close((both[0] + both[1]) / 2, output)
    assert (both[0] - both[1]).abs().max() > 1e-3
    assert model.image_size == 64 and model.grid == (2, 2)


@pytest.mark.parametrize("stated", [{"resolution": (2, 8)}, {"img_size": (64, 256)}])
def test_oblong_attention_of_a_reference(stated):
    """As many biases as a square map of 4 x 4 has: what is stated tells that it is one of 2 x 8."""
    ours = small((64, 256))
    enliven(ours)
    weights = in_the_authors_layout(ours, [1, 1, 1, 2], 1)
    kwargs = {
        "layers": [1, 1, 1, 2], "embed_dims": TINY["dims"], "vit_num": 1, "num_classes": 5, "mlp_ratios": 2,
    }  # fmt: skip
    model = vitreous.from_reference("efficientformer", weights, {**kwargs, **stated}).eval()
    x = torch.randn(2, 3, 64, 256)
    with torch.no_grad():
        assert torch.equal(model(x), ours(x))
        square = vitreous.from_reference("efficientformer", weights, kwargs).eval()
        assert not torch.allclose(square(x), ours(x), atol=1e-4)
    assert (model.size, model.grid, square.grid) == ((64, 256), (2, 8), (4, 4))
    weights = in_the_authors_layout(small((64, 96)), [1, 1, 1, 2], 1)
    with pytest.raises(CheckpointError, match="7 x 7 cells"):
        vitreous.from_reference("efficientformer", weights, kwargs)


def test_a_partial_reference_is_refused(fixture):
    weights = dict(fixture["state_dict"])
    del weights["network.6.2.token_mixer.attention_biases"]
    with pytest.raises(ModelError, match="attention_biases"):
        vitreous.from_reference("efficientformer", weights, fixture["kwargs"])
    weights = dict(fixture["state_dict"], extra=torch.zeros(1))
    with pytest.raises(CheckpointError, match="extra"):
        vitreous.from_reference("efficientformer", weights, fixture["kwargs"])


def in_the_authors_layout(model, depths, attention_blocks):
    """Write our weights under the authors' names, from the description of their layout."""
    names = {
        "table": "attention_biases",
        "ls1.gamma": "layer_scale_1",
        "ls2.gamma": "layer_scale_2",
    }
    flat = depths[3] - attention_blocks  # the flattening's number in the last stage
    weights = {}
    for key, value in model.state_dict().items():
        if key.endswith("bias.table"):
            key, value = key.replace("bias.table", "table"), value.T
        for old, new in names.items():
            key = key.replace(old, new)
        part, _, rest = key.replace("mixer.", "token_mixer.").partition(".")
        if part == "downs":
            stage, layer, rest = rest.split(".", 2)
            key = f"network.{2 * int(stage) - 1}.{['proj', 'norm'][int(layer)]}.{rest}"
        elif part == "stages":
            stage, rest = rest.split(".", 1)
            key = f"network.{2 * int(stage)}.{rest}"
        elif part == "token_blocks":
            block, rest = rest.split(".", 1)
            key = f"network.6.{flat + 1 + int(block)}.{rest}"
        elif part == "distillation_head":
            key = f"dist_head.{rest}"
        weights[key] = value
    return weights


@pytest.mark.parametrize(
    ("depths", "attention_blocks", "changes", "kwargs"),
    [
        ([1, 1, 1, 3], 3, {}, {}),
        ([2, 1, 1, 3], 2, {"layer_scale": None}, {"use_layer_scale": False}),
        ([1, 1, 2, 2], 1, {"distilled": False}, {"distillation": False}),
        ([1, 1, 1, 2], 1, {"pool_size": 5, "mlp_ratio": 3}, {"pool_size": 5, "mlp_ratios": 3}),
    ],
)
def test_other_shapes_of_the_reference(depths, attention_blocks, changes, kwargs):
    model = small(96, depths=depths, attention_blocks=attention_blocks, **changes)
    weights = in_the_authors_layout(model, depths, attention_blocks)
    kwargs = {
        "layers": depths,
        "embed_dims": TINY["dims"],
        "downsamples": [True] * 4,
        "vit_num": attention_blocks,
        "num_classes": 5,
        "mlp_ratios": 2,
        **kwargs,
    }
    other = vitreous.from_reference("efficientformer", weights, kwargs).eval()
    x = torch.randn(2, 3, 96, 96)
    assert torch.equal(other(x), model(x))


@pytest.mark.parametrize(
    "kwargs", [{"down_stride": 4}, {"downsamples": [True, False, True, True]}, {"fork_feat": True}]
)
def test_arguments_that_we_do_not_offer_are_refused(fixture, kwargs):
    with pytest.raises(ModelError, match=next(iter(kwargs))):
        vitreous.from_reference(
            "efficientformer", fixture["state_dict"], {**fixture["kwargs"], **kwargs}
        )


def test_pooling_of_a_constant_is_zero_up_to_the_border():
    x = torch.randn(2, 4, 1, 1).expand(-1, -1, 5, 7)
    torch.testing.assert_close(Pooling(3)(x), torch.zeros_like(x))


def test_pooling_is_the_mean_of_the_neighbours_there_are():
    x = torch.randn(1, 2, 4, 5)
    expected = torch.empty_like(x)
    for row, column in itertools.product(range(4), range(5)):
        near = x[:, :, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
        expected[:, :, row, column] = near.mean((2, 3)) - x[:, :, row, column]
    torch.testing.assert_close(Pooling(3)(x), expected)


def test_blocks_without_scale_are_the_identity():
    maps, tokens = torch.randn(2, 8, 3, 4), torch.randn(2, 12, 8)
    assert torch.equal(MapBlock(8, 2.0, 3, 0.0, 0.0)(maps), maps)
    block = TokenBlock(8, Attention(8, 2, 4, 6, 4), 2.0, 0.0, 0.0)
    assert torch.equal(block(tokens, 3, 4), tokens)


def test_attention_equals_loops():
    """Eqs. 5 and 6, one head, one query and one key at a time; tokens lie row by row."""
    torch.manual_seed(0)
    attention, (height, width) = lively(Attention(8, 2, 3, 5, 4)), (3, 4)
    x = torch.randn(1, 12, 8)
    table = attention.bias.table
    mixed = []
    for head, qkv in enumerate(attention.qkv(x)[0].split(11, 1)):
        query, key, value = qkv.split([3, 3, 5], 1)
        scores = torch.empty(12, 12)
        for i, j in itertools.product(range(12), range(12)):
            down, across = abs(i // width - j // width), abs(i % width - j % width)
            scores[i, j] = query[i] @ key[j] / 3**0.5 + table[down * 4 + across, head]
        mixed.append(scores.softmax(1) @ value)
    expected = attention.proj(torch.cat(mixed, 1))[None]
    torch.testing.assert_close(attention(x, height, width), expected, rtol=1e-5, atol=1e-5)


def test_bias_depends_on_distances_alone():
    bias = DistanceBias(4, 2)
    nn.init.normal_(bias.table)
    whole = bias(4, 4).reshape(2, 4, 4, 4, 4)  # heads, then row and column of both cells
    assert torch.equal(whole, whole.flip((1, 3))) and torch.equal(whole, whole.flip((2, 4)))
    assert torch.equal(whole, whole.permute(0, 3, 4, 1, 2))
    assert not torch.equal(whole, whole.permute(0, 2, 1, 4, 3))  # down is not across
    larger = bias(6, 6).reshape(2, 6, 6, 6, 6)
    assert torch.equal(larger[:, 1:5, 2:, 1:5, 2:], whole)
    assert torch.equal(larger[:, 0, 0, 5, 5], whole[:, 0, 0, 3, 3])


def test_a_bias_that_changes_is_seen():
    """The reference keeps an expanded bias that goes stale when weights are loaded in eval mode."""
    model, x = small(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = model(x)
        weights = {k: v.clone() for k, v in model.state_dict().items()}
        weights["token_blocks.0.mixer.bias.table"][1] += 5
        model.load_state_dict(weights)
        assert not torch.allclose(model(x), before)


def test_other_distances_change_nothing_on_the_same_images():
    model, x = small(64), torch.randn(1, 3, 64, 64)
    larger = small(128)
    larger.load_state_dict(resize(model.state_dict(), larger))
    back = small(64)
    back.load_state_dict(resize(larger.state_dict(), back))
    with torch.no_grad():
        assert torch.equal(larger(x), model(x)) and torch.equal(back(x), model(x))
        wide = torch.randn(1, 3, 96, 160)
        assert torch.equal(larger(wide), model(wide))


def test_dimensions_change_once():
    """Maps, then tokens, and never back."""
    ranks = []
    model = small(depths=[2, 1, 2, 3], attention_blocks=2)
    blocks = [b for stage in model.stages for b in stage] + list(model.token_blocks)
    for block in blocks:
        block.register_forward_hook(lambda m, x, y: ranks.append(y.ndim))
    with torch.no_grad():
        model(torch.randn(1, 3, 64, 64))
    assert ranks == [4] * 6 + [3] * 2


def test_without_attention_the_head_reads_cells():
    model, x = small(attention_blocks=0), torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        features, level = model.forward_features(x), model.forward_levels(x)[-1]
    assert features.shape == (2, 6, 24)
    torch.testing.assert_close(level.flatten(2).mT, features)


def test_fused_equals_unfused():
    model, x = small(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        fuse(model)
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    with pytest.raises(ModelError, match="eval"):
        fuse(small().train())


def test_attention_blocks_have_the_same_shapes_wherever_the_flattening_is():
    one, all_ = (small(attention_blocks=n, depths=[1, 1, 1, 3]) for n in (1, 3))
    shapes = [[tuple(p.shape) for p in m.token_blocks[-1].parameters()] for m in (one, all_)]
    assert shapes[0] == shapes[1] and len(all_.token_blocks) == 3 and len(all_.stages[3]) == 0


def test_maps_are_rounded_up():
    model, x = small(), torch.randn(1, 3, 70, 97)
    with torch.no_grad():
        shapes = [tuple(level.shape[2:]) for level in model.forward_levels(x)]
    assert shapes == [(18, 25), (9, 13), (5, 7), (3, 4)]


def test_stem_written_out():
    model, x = small(), torch.randn(1, 3, 20, 21)
    expected = x
    for conv, norm in ((0, 1), (3, 4)):
        conv, norm = model.patch_embed[conv], model.patch_embed[norm]
        y = F.conv2d(expected, conv.weight, conv.bias, stride=2, padding=1)
        y = (y - norm.running_mean[:, None, None]) / (norm.running_var + 1e-5).sqrt()[:, None, None]
        expected = F.relu(y * norm.weight[:, None, None] + norm.bias[:, None, None])
    torch.testing.assert_close(model.patch_embed(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("size", "strides"), [(224, (2, 2)), (64, (2, 1)), (15, (1, 1))])
def test_stem_shrinks_on_small_images_only(size, strides):
    model = EfficientFormer(3, 5, size, **TINY)
    assert tuple(model.patch_embed[k].stride[0] for k in (0, 3)) == strides


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"dims": [8, 16]}, "four stages"),
        ({"attention_blocks": 3}, "2 blocks, not 3"),
        ({"pool_size": 2}, "odd pool_size"),
        ({"stem_stride": 8}, "1, 2 or 4"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, words):
    with pytest.raises(ModelError, match=words):
        small(**arguments)
