import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vitreous
from fixtures_reader import load_fixture
from vitreous.catalog.registry import create_model
from vitreous.errors import CheckpointError, ModelError
from vitreous.inference.cost import count_cost
from vitreous.models import tnt
from vitreous.models.tnt import TransformerInTransformer
from vitreous.models.vit import VisionTransformer

SMALL = {"dim": 12, "inner_dim": 4, "depth": 2, "heads": 3, "inner_heads": 2, "token_size": 4}


def small(**changes):
    torch.manual_seed(0)
    shape = {"bands": 3, "num_classes": 5, "image_size": 12}
    model = TransformerInTransformer(**{**shape, **SMALL, **changes}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def fixture():
    return load_fixture("tnt")


@torch.no_grad()
def test_equals_the_reference(fixture):
    model = vitreous.from_reference("tnt", fixture["state_dict"], fixture["kwargs"]).eval()
    words, sentences = model.blocks[0](*model.embed(fixture["input"]))
    output = {"logits": model(fixture["input"]), "inner0": words, "outer0": sentences}
    torch.testing.assert_close(output, fixture["output"], rtol=1e-5, atol=1e-5)


# -- a naive implementation, in the authors' layout ---------------------------------------------------------


def reference_weights(model):
    """Return the model's weights as the authors' code would have saved them."""
    weights = {"outer_tokens": torch.zeros(1, math.prod(model.grid), model.num_features)}
    for key, value in model.state_dict().items():
        key = key.replace("class_token", "cls_token").replace("word_embed", "patch_embed.proj")
        key = key.replace("sentence_embed.norm", "proj_norm").replace("sentence_embed.", "")
        key = key.replace("fold.norm", "proj_norm").replace("fold.", "")
        key = key.replace("outer.excite", "se_layer")
        for part in ("inner", "outer"):
            for layer in ("norm", "attn", "mlp"):
                key = key.replace(f"{part}.{layer}", f"{part}_{layer}")
        if ".qkv." in key:
            width = len(value) // 3
            weights[key.replace("qkv", "qk")] = value[: 2 * width]
            weights[key.replace("qkv", "v")] = value[2 * width :]
        else:
            weights[key] = value
    return weights


def linear(weights, name, x):
    return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def norm(weights, name, x):
    weight = weights[f"{name}.weight"]
    return F.layer_norm(x, weight.shape, weight, weights[f"{name}.bias"])


def naive_attention(weights, name, x, heads, scale):
    query, key = linear(weights, f"{name}.qk", x).chunk(2, -1)
    value = linear(weights, f"{name}.v", x)
    parts = []
    for q, k, v in zip(*(t.chunk(heads, -1) for t in (query, key, value)), strict=True):
        parts.append((q @ k.mT * (scale or q.shape[-1] ** -0.5)).softmax(-1) @ v)
    return linear(weights, f"{name}.proj", torch.cat(parts, -1))


def naive_mlp(weights, name, x):
    return linear(weights, f"{name}.fc2", F.gelu(linear(weights, f"{name}.fc1", x)))


def naive_fold(weights, prefix, words):
    flat = norm(weights, f"{prefix}proj_norm1", words.flatten(-2))
    return norm(weights, f"{prefix}proj_norm2", linear(weights, f"{prefix}proj", flat))


def naive(weights, x, kwargs):
    """Classify one image: each patch by itself, one after the other."""
    side, stride = kwargs["patch_size"], kwargs["inner_stride"]
    scale = kwargs.get("qk_scale")
    words = []
    for top in range(0, x.shape[1] - side + 1, side):
        for left in range(0, x.shape[2] - side + 1, side):
            patch = F.pad(x[:, top : top + side, left : left + side], (3, 3, 3, 3))
            kernel, bias = (weights[f"patch_embed.proj.{part}"] for part in ("weight", "bias"))
            words.append(F.conv2d(patch, kernel, bias, stride).flatten(1).T)
    words = torch.stack(words) + weights["inner_pos"]
    tokens = torch.cat([weights["cls_token"][0], naive_fold(weights, "", words)])
    tokens = tokens + weights["outer_pos"][0]
    for number in range(kwargs["depth"]):
        at = f"blocks.{number}."
        x = norm(weights, at + "inner_norm1", words)
        heads = kwargs["inner_num_heads"]
        words = words + naive_attention(weights, at + "inner_attn", x, heads, scale)
        x = norm(weights, at + "inner_norm2", words)
        words = words + naive_mlp(weights, at + "inner_mlp", x)
        tokens = torch.cat([tokens[:1], tokens[1:] + naive_fold(weights, at, words)])
        x = norm(weights, at + "outer_norm1", tokens)
        heads = kwargs["outer_num_heads"]
        tokens = tokens + naive_attention(weights, at + "outer_attn", x, heads, scale)
        x = naive_mlp(weights, at + "outer_mlp", norm(weights, at + "outer_norm2", tokens))
        if kwargs.get("se"):
            gate = norm(weights, at + "se_layer.fc.0", x.mean(0))
            gate = linear(weights, at + "se_layer.fc.1", gate).relu()
            x = x + linear(weights, at + "se_layer.fc.3", gate).tanh() * x
        tokens = tokens + x
    return linear(weights, "head", norm(weights, "norm", tokens[0]))


@pytest.mark.parametrize(
    ("kwargs", "changes"),
    [
        ({}, {}),
        ({"qkv_bias": True, "se": 1}, {"qkv_bias": True, "excite": True}),
        ({"inner_stride": 3, "patch_size": 5}, {"inner_stride": 3, "token_size": 5}),
        ({"qk_scale": 0.3, "mlp_ratio": 3.0}, {"qk_scale": 0.3, "mlp_ratio": 3.0}),
        ({"in_chans": 6, "img_size": 14}, {"bands": 6, "image_size": 14}),
    ],
)
@torch.no_grad()
def test_every_configuration_of_the_reference(kwargs, changes):
    kwargs = {
        "img_size": 12,
        "patch_size": 4,
        "num_classes": 5,
        "outer_dim": 12,
        "inner_dim": 4,
        "depth": 2,
        "outer_num_heads": 3,
        "inner_num_heads": 2,
        "inner_stride": 1,
        **kwargs,
    }
    original = small(**changes)
    weights = reference_weights(original)
    model = vitreous.from_reference("tnt", weights, kwargs).eval()
    x = torch.randn(2, model.bands, kwargs["img_size"], kwargs["img_size"])
    expected = torch.stack([naive(weights, image, kwargs) for image in x])
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(x), original(x), rtol=0, atol=0)


@pytest.mark.parametrize("part", ["qk", "v"])
def test_a_partial_reference_is_refused(part):
    weights = reference_weights(small())
    del weights[f"blocks.1.inner_attn.{part}.weight"]
    kwargs = {"img_size": 12, "patch_size": 4, "num_classes": 5, "outer_dim": 12, "inner_dim": 4}
    kwargs |= {"depth": 2, "outer_num_heads": 3, "inner_num_heads": 2, "inner_stride": 1}
    with pytest.raises(CheckpointError, match=r"inner_attn|inner\.attn"):
        vitreous.from_reference("tnt", weights, kwargs)


# -- what the paper says ------------------------------------------------------------------------------------


@torch.no_grad()
def test_words_never_see_another_patch():
    model, x = small(depth=3), torch.randn(1, 3, 12, 12)
    other = x.clone()
    other[:, :, 4:8, 8:12] += 1  # patch 5 of 3 x 3
    (words, sentences, _), (words2, sentences2, _) = model.embed(x), model.embed(other)
    for block in model.blocks:
        words, sentences = block(words, sentences)
        words2, sentences2 = block(words2, sentences2)
        changed = (words != words2).flatten(1).any(1)
        assert changed.nonzero().flatten().tolist() == [5]
    assert (sentences != sentences2).any(-1).all()  # sentences do


@torch.no_grad()
def test_convolution_pads_patches_not_the_image():
    model, x = small(inner_stride=1), torch.randn(1, 3, 12, 12)
    whole = model.word_embed(x)[0, :, 4:8, 4:8].flatten(1).T
    words = model.embed(x)[0][4]
    torch.testing.assert_close(words, model.embed(x[:, :, 4:8, 4:8])[0][0])
    words = words - model.inner_pos[0]
    assert not torch.allclose(words, whole, atol=1e-2)


@torch.no_grad()
def test_without_words_it_is_a_plain_vit():
    model = small(qkv_bias=True)
    plain = VisionTransformer(3, 5, 12, dim=12, depth=2, heads=3, token_size=4).eval()
    for block, other in zip(model.blocks, plain.blocks, strict=True):
        nn.init.zeros_(block.fold.norm2.weight)
        nn.init.zeros_(block.fold.norm2.bias)
        other.load_state_dict(
            {k: v for k, v in block.outer.state_dict().items() if not k.startswith("excite")}
        )
    for module in plain.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5
    plain.norm.load_state_dict(model.norm.state_dict())
    x = torch.randn(2, 3, 12, 12)
    tokens = model.embed(x)[1]
    for block in plain.blocks:
        tokens, _ = block(tokens)
    torch.testing.assert_close(model.forward_features(x), plain.norm(tokens))


@torch.no_grad()
def test_words_leave_the_class_token_alone():
    model = small(depth=1)
    words, sentences, _ = model.embed(torch.randn(2, 3, 12, 12))
    seen = []
    model.blocks[0].outer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.blocks[0](words, sentences)
    assert torch.equal(seen[0][:, 0], sentences[:, 0])
    assert (seen[0][:, 1:] != sentences[:, 1:]).any(-1).all()


@torch.no_grad()
def test_patches_may_move_with_their_positions():
    model, x = small(), torch.randn(2, 3, 12, 12)
    before = model(x)
    order = torch.randperm(9)
    patches = F.unfold(x, 4, stride=4)[:, :, order]
    moved = F.fold(patches, (12, 12), 4, stride=4)
    assert not torch.allclose(model(moved), before, atol=1e-3)
    model.outer_pos[:, 1:] = model.outer_pos[:, 1:][:, order]
    torch.testing.assert_close(model(moved), before)


# -- cost and sizes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "reference"),
    [("tnt_small", 23_843_848), ("tnt_base", 65_554_120)],
)
def test_parameters_of_the_reference(variant, reference):
    with torch.device("meta"):
        model = create_model(variant, bands=3, num_classes=1000, image_size=224)
    unused = 14 * 14 * model.num_features  # outer_tokens
    assert sum(p.numel() for p in model.parameters()) + unused == reference


def test_cost_of_the_inner_path():
    full, without = small(), small(word_attention=False)
    patches, words, c, dim = 9, 16, 4, 12
    attention = words * 4 * c**2 + 2 * words**2 * c  # four linear layers, two products
    spent = count_cost(full, 3, 12).macs - count_cost(without, 3, 12).macs
    assert spent == 2 * patches * attention  # in two blocks
    fold = sum(p.numel() for p in full.blocks[0].fold.parameters())
    assert fold == words * c * dim + 2 * (words * c + dim)
    inner = sum(p.numel() for p in full.blocks[0].inner.parameters())
    assert inner == 12 * c**2 + c + 5 * c + 4 * c  # matrices, biases of proj and mlp, norms


@pytest.mark.parametrize(
    ("size", "side", "stride", "words"),
    [(224, 16, 4, 16), (64, 8, 2, 16), (33, 4, 1, 16), (15, 2, 1, 4), (9, 2, 1, 4)],
)
def test_patches_shrink_with_the_image(size, side, stride, words):
    model = TransformerInTransformer(3, 5, size, dim=12, inner_dim=4, depth=1, heads=3)
    assert (model.token_size, model.word_embed.stride[0]) == (side, stride)
    assert model.inner_pos.shape[1] == words
    assert model.embed(torch.zeros(1, 3, size, size))[1].shape[1] == 1 + (size // side) ** 2


@torch.no_grad()
def test_weights_move_to_another_size():
    model, larger = small(), small(image_size=20)
    larger.load_state_dict(tnt.resize(model.state_dict(), larger))
    x = torch.randn(1, 3, 20, 20)
    assert model.any_size
    torch.testing.assert_close(model(x), larger(x))
    assert torch.equal(larger.outer_pos[:, 0], model.outer_pos[:, 0])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"heads": 5}, "5 heads"),
        ({"inner_heads": 3}, "3 heads"),
        ({"image_size": 3}, "needs images of 4 pixels"),
    ],
)
def test_bad_arguments(changes, words):
    with pytest.raises(ModelError, match=words):
        small(**changes)


def test_an_image_without_a_patch_is_refused():
    with pytest.raises(ModelError, match="needs images of 4 pixels"):
        small()(torch.zeros(1, 3, 12, 3))
