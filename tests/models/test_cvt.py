"""CvT: equality with the authors' model, and what its convolutions and its class token do and do not."""

import functools

import pytest
import torch
from torch import nn

from fixtures_reader import load_fixture
from vitreous import testing
from vitreous.catalog.registry import create_model, from_reference
from vitreous.errors import ModelError
from vitreous.layers.convnorm import ConvNorm, folded
from vitreous.models.cvt import ConvAttention, CvT, Projection, QuickGELU, resize

TINY = {"dims": [8, 16, 24], "depths": [1, 1, 2], "heads": [1, 2, 3], "mlp_ratio": 2.0}


def tiny(image_size=64, seed=0, **changes):
    torch.manual_seed(seed)
    return CvT(bands=3, num_classes=5, image_size=image_size, **{**TINY, **changes}).eval()


def attention(method="conv", key_stride=2, prefix=1, heads=2):
    """Return an attention of width 8 whose every part does something."""
    torch.manual_seed(0)
    attn = ConvAttention(8, heads, Projection(method, 3, key_stride, None, True), prefix).eval()
    for module in attn.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
        elif isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight, std=0.5)
    return attn


@pytest.fixture(scope="module")
def reference():
    return load_fixture("cvt")


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_equals_the_reference(reference):
    model = from_reference("cvt", reference["state_dict"], reference["kwargs"]).eval()
    x, expected = reference["input"], reference["output"]
    close(model(x), expected["logits"])
    levels = model.forward_levels(x)
    close(levels[0], expected["stage0"])
    close(levels[1], expected["stage1"])
    last = model.norm(expected["stage2"].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    close(levels[2], last)


@torch.no_grad()
def test_reference_of_other_arguments(reference):
    """A third block that adds nothing, and a bias less, leave the reference's scores as they are."""
    spec = {**reference["kwargs"]["spec"], "DEPTH": [1, 1, 3], "QKV_BIAS": [False, True, True]}
    weights = dict(reference["state_dict"])
    for key in [key for key in weights if key.startswith("stage2.blocks.1.")]:
        silent = ".attn.proj." in key or ".mlp.fc2." in key
        weights[key.replace("blocks.1", "blocks.2")] = weights[key] * (0 if silent else 1)
    for letter in "qkv":  # as the fixture's linear maps have a bias, take one that has none
        weights[f"stage0.blocks.0.attn.proj_{letter}.bias"] *= 0
    with_bias = from_reference(
        "cvt", weights, {**reference["kwargs"], "spec": {**spec, "QKV_BIAS": [True] * 3}}
    )
    for letter in "qkv":
        del weights[f"stage0.blocks.0.attn.proj_{letter}.bias"]
    model = from_reference("cvt", weights, {**reference["kwargs"], "spec": spec})
    found = model.eval()(reference["input"])
    close(found, with_bias.eval()(reference["input"]))
    assert len(model.stages[2].blocks) == 3


@torch.no_grad()
@pytest.mark.parametrize("method", ["avg", "linear"])
def test_reference_of_other_projections(reference, method):
    """Pooling with stride 1 and kernel 1, and no projection at all, are one and the same."""
    spec = {**reference["kwargs"]["spec"], "CLS_TOKEN": [False] * 3}
    spec |= {"QKV_PROJ_METHOD": [method] * 3, "STRIDE_KV": [1] * 3}
    spec |= {"KERNEL_QKV": [1] * 3, "PADDING_KV": [0] * 3}
    weights = {k: v for k, v in reference["state_dict"].items() if "conv_proj" not in k}
    weights.pop("stage2.cls_token")
    kwargs = {"num_classes": 5, "act_layer": QuickGELU, "spec": spec}
    model = from_reference("cvt", weights, kwargs).eval()
    x = reference["input"]
    plain = tiny(projection="linear", class_token=False)
    plain.load_state_dict(model.state_dict())
    close(model(x), plain(x))
    features = model.forward_features(x)
    close(model(x), model.head(features.mean(1)))


def naive(attn, x, height):
    """Return the attention's output, cell by cell and head by head (section 3.2 of the paper)."""
    front, cells = x[:, :1], x[:, 1:].unflatten(1, (height, -1))

    def convolve(mix, stride):
        padded = torch.nn.functional.pad(cells, (0, 0, 1, 1, 1, 1))
        rows = []
        for i in range(0, cells.shape[1], stride):
            for j in range(0, cells.shape[2], stride):
                patch = padded[:, i : i + 3, j : j + 3]
                value = torch.einsum("bijd,dij->bd", patch, mix.conv.weight[:, 0])
                norm = mix.norm
                value = (value - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
                rows.append(value * norm.weight + norm.bias)
        return torch.cat([front, torch.stack(rows, 1)], 1)

    query = attn.query(convolve(attn.mix_query, 1))
    key = attn.key(convolve(attn.mix_key, 2))
    value = attn.value(convolve(attn.mix_value, 2))
    width = x.shape[-1] // attn.heads
    heads = []
    for h in range(attn.heads):
        own = slice(h * width, (h + 1) * width)
        scores = query[..., own] @ key[..., own].mT / x.shape[-1] ** 0.5
        heads.append(scores.softmax(-1) @ value[..., own])
    return attn.proj(torch.cat(heads, -1))


@torch.no_grad()
def test_attention_equals_a_naive_one():
    attn, x = attention(), torch.randn(2, 1 + 5 * 7, 8)
    close(attn(x, 5), naive(attn, x, 5))
    attn.core.explicit = True
    close(attn(x, 5), naive(attn, x, 5))


@torch.no_grad()
def test_kernels_of_one_cell_leave_plain_attention():
    """Depth-wise kernels that only see their own cell, and norms that change nothing: attention of a ViT."""
    attn, plain = attention(key_stride=1), attention("linear")
    for mix in (attn.mix_query, attn.mix_key, attn.mix_value):
        mix.conv.weight.zero_()[:, :, 1, 1] = 1
        mix.norm.reset_running_stats()
        nn.init.constant_(mix.norm.weight, (1 + mix.norm.eps) ** 0.5)
        nn.init.zeros_(mix.norm.bias)
    linear = {k: v for k, v in attn.state_dict().items() if "mix" not in k}
    plain.load_state_dict(linear)
    x = torch.randn(2, 1 + 4 * 4, 8)
    close(attn(x, 4), plain(x, 4))
    width = 8 // plain.heads
    query, key, value = (
        f(x).unflatten(-1, (plain.heads, width)).transpose(1, 2)
        for f in (plain.query, plain.key, plain.value)
    )
    mixed = (query @ key.mT * 8**-0.5).softmax(-1) @ value
    close(plain(x, 4), plain.proj(mixed.transpose(1, 2).flatten(2)))


@torch.no_grad()
def test_number_of_queries_and_keys():
    model = tiny(224)
    seen = []
    model.stages[2].blocks[0].attn.core.register_forward_pre_hook(
        lambda _, given: seen.append([t.shape[2] for t in given])
    )
    model(torch.randn(1, 3, 224, 224))
    assert seen == [[196 + 1, 49 + 1, 49 + 1]]


@torch.no_grad()
def test_convolutions_pass_the_class_token_by():
    """In the last block, the queries' convolution changes every cell and not the class token; the keys' does both."""
    model, x = tiny(), torch.randn(2, 3, 64, 64)
    before = model.forward_features(x)
    attn = model.stages[2].blocks[-1].attn
    attn.mix_query.conv.weight.add_(3)
    after = model.forward_features(x)
    assert torch.equal(after[:, 0], before[:, 0])
    assert (after[:, 1:] != before[:, 1:]).any(-1).all()
    attn.mix_value.conv.weight.add_(3)
    assert (model.forward_features(x)[:, 0] != before[:, 0]).any()


def test_who_gets_no_gradient_with_a_class_token():
    """Only what the note on the card says; from maps, everything but class token and head gets one."""
    model = tiny().train()
    dead = {
        f"stages.2.blocks.1.attn.mix_query.{n}" for n in ("conv.weight", "norm.weight", "norm.bias")
    }

    def silent():
        return {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}

    x = torch.randn(4, 3, 64, 64)
    model(x).square().sum().backward()
    assert silent() == dead
    sum(level.square().sum() for level in model.forward_levels(x)).backward()
    assert not silent()


@pytest.mark.parametrize(
    "check",
    [c for c in testing.CHECKS if c is not testing.check_gradients],
    ids=lambda c: c.__name__,
)
def test_contract_with_class_token(check, monkeypatch):
    changed = functools.partial(create_model, class_token=True)
    monkeypatch.setattr(testing, "create_model", changed)
    assert testing.make("cvt_test").stages[2].class_token is not None
    check("cvt_test")


@torch.no_grad()
def test_interior_moves_with_the_image():
    """Shifted by the stride of two stages and of their keys, what is in the image moves as many cells."""
    model = tiny(96)
    for stage in model.stages:  # statistics of their own, so that the norms are no identity
        for norm in (m for m in stage.modules() if isinstance(m, nn.BatchNorm2d)):
            nn.init.uniform_(norm.running_var, 0.5, 2)
    x = torch.zeros(1, 3, 96, 96)
    x[:, :, 32:48, 32:48] = torch.randn(3, 16, 16)
    moved = torch.roll(x, (16, 16), (2, 3))
    for stage, (cells, edge) in enumerate([(4, 1), (2, 3)]):
        here, there = (model.forward_levels(image)[stage] for image in (x, moved))
        inner = (
            ...,
            *[slice(cells + edge, -edge)] * 2,
        )  # further out, the roll wraps or zeros were padded
        close(there[inner], torch.roll(here, (cells, cells), (2, 3))[inner])
        assert (there[inner] - here[inner]).abs().max() > 0.1


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 96), (61, 47)])
def test_images_of_any_shape(height, width):
    model = tiny()
    x = torch.randn(1, 3, height, width)
    assert model(x).shape == (1, 5)
    sizes = [tuple(level.shape[2:]) for level in model.forward_levels(x)]
    if height == 64:
        assert sizes == [(16, width // 4), (8, width // 8), (4, width // 16)]
    assert [info.stride for info in model.feature_info] == [4, 8, 16]


@pytest.mark.parametrize(
    ("size", "stride"), [(9, 1), (15, 1), (33, 2), (64, 4), (224, 4), (384, 4)]
)
def test_stem_stride_and_padding_follow_the_image(size, stride):
    conv = tiny(size).stages[0].embed.conv
    assert conv.stride == (stride, stride)
    assert conv.padding == ((2, 2) if stride == 4 else (3, 3))


@torch.no_grad()
def test_positions_are_resampled():
    small, large = tiny(36, positions=True), tiny(64, positions=True, seed=1)
    assert [s.pos_embed.shape[1] for s in small.stages] == [18**2, 9**2, 5**2]
    assert [s.pos_embed.shape[1] for s in large.stages] == [16**2, 8**2, 4**2]
    large.load_state_dict(resize(small.state_dict(), large))
    middle = large.stages[0].pos_embed[0].mean(0)
    torch.testing.assert_close(middle, small.stages[0].pos_embed[0].mean(0), rtol=0.2, atol=1e-3)
    assert small(torch.randn(1, 3, 48, 40)).shape == (1, 5)
    tables = {name for name in dict(small.named_parameters()) if "pos_embed" in name}
    assert len(tables) == 3 and tables <= small.no_weight_decay()
    assert not any("pos_embed" in name for name in tiny().state_dict())


@torch.no_grad()
def test_folded_norms_change_nothing():
    model, x = tiny(), torch.randn(2, 3, 64, 64)
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    short = folded(model)
    assert not any(isinstance(m, nn.BatchNorm2d | ConvNorm) for m in short.modules())
    torch.testing.assert_close(short(x), model(x), rtol=1e-4, atol=1e-5)


def test_drop_path_is_the_last_stages():
    model = tiny(drop_path=0.2)
    rates = [[block.drop_path.p for block in stage.blocks] for stage in model.stages]
    assert rates == [[0.0], [0.0], [0.0, 0.2]]


@pytest.mark.parametrize(
    "wrong",
    [
        {"heads": [1, 2, 5]},
        {"depths": [1, 1]},
        {"kernels": [7, 3]},
        {"projection": "dense"},
        {"qkv_kernel": 4},
        {"act": "tanh"},
        {"image_size": 3},
    ],
)
def test_refuses(wrong):
    with pytest.raises(ModelError):
        tiny(**wrong)
