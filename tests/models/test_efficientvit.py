"""EfficientViT: equality with the authors' model, and the identities of its cascade, windows and sandwich."""

import pytest
import torch
from einops import rearrange
from torch import nn

from fixtures_reader import load_fixture
from vitreous.catalog.registry import create_model, from_reference
from vitreous.errors import ModelError
from vitreous.layers.convnorm import ConvNorm, folded
from vitreous.models.efficientvit import (
    Block,
    CascadedGroupAttention,
    EfficientViT,
    HeadNorm,
    WindowAttention,
    rename,
    resize,
)

TINY = {"dims": [16, 24, 32], "depths": [1, 1, 1], "heads": [2, 3, 4], "key_dim": 4, "window": 4}


def stir(module, seed=0):
    """Give every norm factors and statistics that are no identity, and every table entries."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d | nn.BatchNorm1d):
                part.running_mean.normal_()
                part.running_var.uniform_(0.5, 2)
                part.weight.normal_()
                part.bias.normal_()
        for name, parameter in module.named_parameters():
            if name.endswith("position.table"):
                parameter.normal_()
    return module.eval()


def tiny(image_size=64, **changes):
    torch.manual_seed(0)
    return EfficientViT(bands=3, num_classes=5, image_size=image_size, **{**TINY, **changes})


def attention(window=4, heads=3):
    torch.manual_seed(0)
    return stir(CascadedGroupAttention(24, heads, 4, window, [5, 3, 3, 3]))


@pytest.fixture(scope="module")
def reference():
    return load_fixture("efficientvit")


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_equals_the_reference(reference):
    model = from_reference("efficientvit", reference["state_dict"], reference["kwargs"]).eval()
    close(model(reference["input"]), reference["output"])
    sizes = [tuple(level.shape) for level in model.forward_levels(reference["input"])]
    assert sizes == [(1, 16, 10, 10), (1, 24, 5, 5), (1, 32, 3, 3)]


@torch.no_grad()
@pytest.mark.parametrize(
    ("stage", "last"), [(1, "blocks1.0."), (2, "blocks2.3."), (3, "blocks3.3.")]
)
def test_reference_of_other_arguments(reference, stage, last):
    """One more block whose branches add nothing, and a second head equal to the first, change no score."""
    weights = dict(reference["state_dict"])
    number = int(last.split(".")[1])
    for key in [key for key in weights if key.startswith(last)]:
        ends = (".m.bn.weight", ".m.bn.bias", "pw2.bn.weight", "pw2.bn.bias")
        silent = key.endswith((*ends, "proj.1.bn.weight", "proj.1.bn.bias"))
        new = key.replace(last, f"{last.split('.')[0]}.{number + 1}.")
        weights[new] = weights[key] * (0 if silent else 1)
    for key in [key for key in weights if key.startswith("head.")]:
        weights[key.replace("head.", "head_dist.")] = weights[key]
    depth = [1 + (i == stage) for i in (1, 2, 3)]
    kwargs = {**reference["kwargs"], "depth": depth, "distillation": True}
    model = from_reference("efficientvit", weights, kwargs).eval()
    close(model(reference["input"]), reference["output"])
    assert [sum(isinstance(m, Block) for m in s) for s in model.stages] == depth


def test_published_files_hold_matrices(reference):
    weights = dict(reference["state_dict"])
    flat = {k: v.flatten(1) if v.shape[2:] == (1, 1) else v for k, v in weights.items()}
    assert any(v.ndim == 2 and "pw1.c" in k for k, v in flat.items())
    for (name, expected), found in zip(rename(weights).items(), rename(flat).values(), strict=True):
        assert torch.equal(expected, found), name


def naive(attn, x):
    """Return the output of cascaded group attention, one query cell at a time (eqs. 2-4 of the paper)."""
    side, heads = x.shape[-1], len(attn.qkv)
    width = x.shape[1] // heads
    outs = []
    for i in range(heads):
        given = x[:, i * width : (i + 1) * width]
        if i:
            given = given + outs[-1]
        query, key, value = attn.qkv[i](given).split([4, 4, width], 1)
        query = attn.mix_query[i](query)
        out = torch.zeros_like(given)
        for a in range(side):
            for b in range(side):
                scores = torch.einsum("bc,bchw->bhw", query[:, :, a, b], key) / 2
                for c in range(side):
                    for d in range(side):
                        table = attn.position.table[abs(a - c) * side + abs(b - d), i]
                        scores[:, c, d] += table
                weights = scores.flatten(1).softmax(1).view_as(scores)
                out[:, :, a, b] = torch.einsum("bhw,bchw->bc", weights, value)
        outs.append(out)
    return attn.proj(torch.cat(outs, 1).relu())


@torch.no_grad()
def test_attention_equals_a_naive_one():
    attn, x = attention(), torch.randn(2, 24, 4, 4)
    close(attn(x), naive(attn, x))
    attn.core.explicit = True
    close(attn(x), naive(attn, x))


@torch.no_grad()
def test_cascade_runs_one_way():
    """A head's output depends on its own slice of channels and those before it, and on no later one."""
    attn, x = attention(), torch.randn(1, 24, 4, 4)
    outs = []
    attn.core.register_forward_hook(lambda _, given, out: outs.append(out))
    attn(x)
    for part in range(3):
        changed = x.clone()
        changed[:, part * 8 : (part + 1) * 8] += 1
        attn(changed)
        after = outs[-3:]
        assert [torch.equal(a, b) for a, b in zip(outs[:3], after, strict=True)] == [
            head < part for head in range(3)
        ]


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_parameters_of_queries_keys_and_values(heads):
    """About one part in ``heads`` of what heads that see all channels would take."""
    convolutions = [qkv.conv.weight.numel() for qkv in attention(heads=heads).qkv]
    assert sum(convolutions) == 24 // heads * (2 * 4 + 24 // heads) * heads


def test_bias_has_one_entry_per_distance():
    attn = attention()
    assert attn.position.table.shape == (16, 3)
    bias = attn.position(4, 4)
    close(bias, bias.mT)
    turned = rearrange(bias, "n (a b) (c d) -> n a b c d", a=4, c=4).flip((1, 2, 3, 4))
    close(turned.flatten(3).flatten(1, 2), bias)
    # A smaller map has the nearer distances of the same table.
    inner = rearrange(bias, "n (a b) (c d) -> n a b c d", a=4, c=4)[:, :2, :3, :2, :3]
    close(attn.position(2, 3), inner.flatten(3).flatten(1, 2))


@torch.no_grad()
def test_windows_are_apart():
    """A map of four windows is four maps; a map no larger than a window is one."""
    attn, x = attention(), torch.randn(2, 24, 8, 8)
    windows = WindowAttention(attn, 4, True)
    parts = [[attn(x[:, :, i : i + 4, j : j + 4]) for j in (0, 4)] for i in (0, 4)]
    close(windows(x), torch.cat([torch.cat(row, 3) for row in parts], 2))
    close(windows(x[:, :, :3, :4]), attn(x[:, :, :3, :4]))


@torch.no_grad()
@pytest.mark.parametrize("seed", range(3))
def test_hidden_padding_leaves_attention_among_real_cells(seed):
    attn, x = stir(attention(), seed), torch.randn(2, 24, 6, 5)
    found = WindowAttention(attn, 4, True)(x)
    close(found[:, :, :4, :4], attn(x[:, :, :4, :4]))
    close(found[:, :, 4:, :4], attn(x[:, :, 4:, :4]))
    close(found[:, :, 4:, 4:], attn(x[:, :, 4:, 4:]))
    open_ = WindowAttention(attn, 4, False)(x)
    close(open_[:, :, :4, :4], found[:, :, :4, :4])
    assert (open_ - found)[:, :, 4:].abs().max() > 0.01


@torch.no_grad()
def test_windows_are_cut_along_each_axis():
    """A map of 3 x 8 cells has windows of 3 x 4: each answers as attention on it alone."""
    attn = stir(CascadedGroupAttention(24, 3, 4, (3, 4), [5, 3, 3, 3]))
    x = torch.randn(2, 24, 3, 8)
    mixed = WindowAttention(attn, (3, 4), True)(x)
    close(mixed, torch.cat([attn(x[..., :4]), attn(x[..., 4:])], -1))
    model = tiny((64, 256), window=4, total_stride=8, dims=(24, 24), depths=(1, 1), heads=(2, 2))
    assert [b.attn.branch.window for b in model.stages[1] if hasattr(b, "attn")] == [(4, 4)]
    model = tiny((32, 256), window=7, total_stride=8, dims=(24, 24), depths=(1, 1), heads=(2, 2))
    tables = [b.attn.branch for s in model.stages for b in s if hasattr(b, "attn")]
    assert [(t.window, len(t.attn.position.table)) for t in tables] == [((4, 7), 28), ((2, 7), 14)]


@torch.no_grad()
def test_padding_does_not_matter_where_windows_fit():
    x = torch.randn(1, 3, 128, 128)
    hidden, shown = (stir(tiny(128, mask_padding=given)) for given in (True, False))
    close(hidden(x), shown(x))


@torch.no_grad()
def test_sandwich_begins_as_the_identity():
    model, x = tiny().eval(), torch.randn(2, 16, 4, 4)
    block = model.stages[0][0]
    assert torch.equal(block(x), x)
    stir(block)
    assert (block(x) - x).abs().max() > 0.1
    for part in (model.stages[1][0].before, model.stages[1][0].after):
        x = torch.randn(2, part[0].branch.conv.weight.shape[0], 4, 4)
        assert torch.equal(part(x), x)


@torch.no_grad()
def test_folded_norms_change_nothing():
    model, x = stir(tiny(96)), torch.randn(2, 3, 96, 96)
    short = folded(model)
    assert not any(isinstance(m, ConvNorm | nn.BatchNorm2d) for m in short.modules())
    torch.testing.assert_close(short(x), model(x), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_biases_are_never_stale():
    x = torch.randn(2, 3, 64, 64)
    model, other = stir(tiny(), 0), stir(tiny(), 1)
    before = model(x)
    model.load_state_dict(other.state_dict())
    assert (model(x) - before).abs().max() > 0.01
    assert torch.equal(model(x), other(x))


@torch.no_grad()
@pytest.mark.parametrize(
    ("size", "stride", "grids"),
    [
        (224, 16, (14, 7, 4)),
        (96, 8, (12, 6, 3)),
        (33, 2, (17, 9, 5)),
        (15, 1, (15, 8, 4)),
        (9, 1, (9, 5, 3)),
    ],
)
def test_stages_halve_and_round_up(size, stride, grids):
    model = tiny(size).eval()
    assert [info.stride for info in model.feature_info] == [stride, 2 * stride, 4 * stride]
    levels = model.forward_levels(torch.randn(1, 3, size, size))
    assert tuple(level.shape[-1] for level in levels) == grids
    assert [s[-1].attn.branch.window[0] for s in model.stages] == [min(4, grid) for grid in grids]


def test_a_single_image_leaves_the_heads_statistics_alone():
    torch.manual_seed(0)
    norm = stir(HeadNorm(6)).train()
    known, x = norm.running_mean.clone(), torch.randn(5, 6)
    single = norm(x[:1])
    assert torch.equal(norm.running_mean, known)
    close(single, norm.eval()(x[:1]))
    norm.train()(x)
    assert not torch.equal(norm.running_mean, known)


@torch.no_grad()
def test_two_heads_are_averaged_and_replaced():
    model, x = stir(tiny(distilled=True)), torch.randn(2, 3, 64, 64)
    pooled = model.forward_features(x).mean((2, 3))
    close(model(x), (model.head(pooled) + model.distillation_head(pooled)) / 2)
    model.reset_head(3)
    assert model(x).shape == (2, 3)


@torch.no_grad()
def test_biases_fit_other_windows():
    """Maps that shrink below a window keep the nearer distances."""
    large, small = stir(tiny(128)), tiny(48).eval()
    tables = [
        m["stages.2.1.attn.branch.attn.position.table"]
        for m in (large.state_dict(), small.state_dict())
    ]
    assert [len(table) for table in tables] == [16, 9]
    small.load_state_dict(resize(large.state_dict(), small))
    old, new = (m.stages[2][-1].attn.branch.attn.position for m in (large, small))
    assert torch.equal(new(3, 3), old(3, 3))
    large.load_state_dict(resize(small.state_dict(), large))
    assert torch.equal(old(3, 3), new(3, 3))
    assert torch.equal(old.table[3], old.table[2])


def test_spared_from_weight_decay():
    model = create_model("efficientvit_m0", bands=3, num_classes=5, image_size=224)
    tables = {n for n in dict(model.named_parameters()) if n.endswith("position.table")}
    assert len(tables) == 6 and tables <= model.no_weight_decay()


@pytest.mark.parametrize(
    "wrong",
    [
        {"heads": [2, 5, 4]},
        {"depths": [1, 1]},
        {"kernels": [3, 3]},
        {"kernels": [3, 3, 3, 4]},
        {"total_stride": 3},
        {"dims": [4, 24, 32]},
    ],
)
def test_refuses(wrong):
    with pytest.raises(ModelError):
        tiny(**wrong)
