"""CrossViT: equality with the authors' numbers, and what crosses between the branches."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from fixtures_reader import load_fixture
from vitreous.catalog.registry import create_model, from_reference
from vitreous.errors import CheckpointError, ModelError
from vitreous.models.crossvit import (
    STEM_STRIDES,
    CrossAttention,
    CrossViT,
    Details,
    Fusion,
    MultiScaleBlock,
    default_branch_sizes,
    default_token_sizes,
    rename,
    resize,
    to_cells,
)

DETAILS = Details(qkv_bias=True, cross_scale=None, lone_class_token=False, norm_eps=1e-6)


@pytest.fixture(scope="module")
def fixture():
    return load_fixture("crossvit")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def loud(module):
    """Give every matrix and vector of a module weights that matter."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)
    return module.eval()


@torch.no_grad()
def test_equals_the_reference(fixture):
    model = from_reference("crossvit", fixture["state_dict"], fixture["kwargs"]).eval()
    small, large = model.forward_features(fixture["input"])
    expected = fixture["output"]
    torch.testing.assert_close(small[:, 0], expected["cls_small"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(large[:, 0], expected["cls_large"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(fixture["input"]), expected["logits"], rtol=1e-5, atol=1e-5)


def test_every_weight_of_the_reference_is_used(fixture):
    for lost in ("head.1.weight", "blocks.0.fusion.0.attn.wk.weight", "pos_embed.0"):
        fewer = {k: v for k, v in fixture["state_dict"].items() if k != lost}
        with pytest.raises(CheckpointError):
            from_reference("crossvit", fewer, fixture["kwargs"])
    values = sum(v.numel() for v in fixture["state_dict"].values())
    assert sum(v.numel() for v in rename(fixture["state_dict"]).values()) == values


@torch.no_grad()
def test_reference_defaults_and_scale(fixture):
    """Arguments that are left out mean what they mean in the authors' code."""
    given = dict(fixture["kwargs"])
    expected = from_reference("crossvit", fixture["state_dict"], given).eval()(fixture["input"])
    coarse = from_reference(
        "crossvit", fixture["state_dict"], {k: v for k, v in given.items() if k != "norm_layer"}
    )
    assert {m.eps for m in coarse.modules() if isinstance(m, torch.nn.LayerNorm)} == {1e-5}
    old = from_reference("crossvit", fixture["state_dict"], {**given, "qk_scale": 16**-0.5})
    assert not torch.allclose(old.eval()(fixture["input"]), expected, rtol=1e-3)
    same = from_reference("crossvit", fixture["state_dict"], {**given, "qk_scale": 8**-0.5})
    torch.testing.assert_close(same.eval()(fixture["input"]), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_fusion_by_hand():
    """Section 3.3 written out, one head after the other."""
    dim, other, heads = 6, 8, 2
    fusion = loud(Fusion(dim, other, heads, 1, 0.0, DETAILS))
    token, patches = torch.randn(3, 1, dim), torch.randn(3, 5, other)
    norm, _, linear = fusion.proj
    asking = F.linear(F.gelu(norm(token)), linear.weight, linear.bias)
    block = fusion.blocks[0]
    tokens = block.norm(torch.cat([asking, patches], 1))
    key, value = block.key_value(tokens).split(other, -1)
    query = block.query(tokens)[:, :1]
    parts = []
    for part in range(heads):
        own = slice(part * other // heads, (part + 1) * other // heads)
        scores = query[..., own] @ key[..., own].mT / math.sqrt(other / heads)
        parts.append(scores.softmax(-1) @ value[..., own])
    visited = asking + block.proj(torch.cat(parts, -1))
    norm, _, linear = fusion.back
    expected = F.linear(F.gelu(norm(visited)), linear.weight, linear.bias)
    torch.testing.assert_close(fusion(token, patches), expected)


@torch.no_grad()
def test_fusion_changes_only_class_tokens():
    block = loud(MultiScaleBlock((6, 8), (2, 2), (2, 2), (1, 2, 1), [0.0, 0.0], DETAILS))
    small, large = torch.randn(2, 10, 6), torch.randn(2, 5, 8)
    before = block.branches[0](small), block.branches[1](large)
    for old, new in zip(before, block(small, large), strict=True):
        assert torch.equal(old[:, 1:], new[:, 1:])
        assert not torch.allclose(old[:, 0], new[:, 0], atol=0.1)


@torch.no_grad()
def test_both_directions_start_from_the_same_tokens():
    """The large class token does not see what the small one has just learned."""
    block = loud(MultiScaleBlock((6, 8), (2, 2), (2, 2), (0, 0, 1), [], DETAILS))
    small, large = torch.randn(2, 10, 6), torch.randn(2, 5, 8)
    _, before = block(small, large)
    for parameter in block.fusions[0].parameters():
        parameter.normal_()
    assert torch.equal(block(small, large)[1], before)


@torch.no_grad()
def test_order_of_the_other_branchs_patches_does_not_matter():
    fusion = loud(Fusion(6, 8, 2, 2, 0.0, DETAILS))
    token, patches = torch.randn(2, 1, 6), torch.randn(2, 7, 8)
    turned = fusion(token, patches[:, torch.randperm(7)])
    torch.testing.assert_close(turned, fusion(token, patches))
    assert not torch.allclose(fusion(token, patches[:, :6]), turned)


@torch.no_grad()
def test_no_identity_path_around_fusion():
    """Without attention a class token comes back as back(proj(token)), not as itself."""
    fusion = loud(Fusion(6, 8, 2, 1, 0.0, DETAILS))
    for parameter in fusion.blocks[0].proj.parameters():
        parameter.zero_()
    token, patches = torch.randn(2, 1, 6), torch.randn(2, 7, 8)
    torch.testing.assert_close(fusion(token, patches), fusion.back(fusion.proj(token)))
    assert not torch.allclose(fusion(token, patches), token, atol=0.1)


@torch.no_grad()
def test_repeated_cross_attention_keeps_its_patches_unless_told():
    ours, theirs = (
        Fusion(6, 8, 2, 2, 0.0, DETAILS._replace(lone_class_token=alone)) for alone in (False, True)
    )
    loud(ours)
    theirs.load_state_dict(ours.state_dict())
    theirs.eval()
    token, patches = torch.randn(2, 1, 6), torch.randn(2, 7, 8)
    once = ours.blocks[0](torch.cat([ours.proj(token), patches], 1))
    again = ours.blocks[1](torch.cat([once, patches], 1))
    torch.testing.assert_close(ours(token, patches), ours.back(again))
    torch.testing.assert_close(theirs(token, patches), theirs.back(ours.blocks[1](once)))


def test_cross_attention_is_linear_in_the_tokens():
    block = CrossAttention(16, 4, 0.0, DETAILS).to("meta")
    costs = []
    for tokens in (64, 128, 256):
        with FlopCounterMode(display=False) as counter:
            assert block(torch.empty(2, tokens, 16, device="meta")).shape == (2, 1, 16)
        costs.append(counter.get_total_flops())
    assert costs[2] - costs[1] == 2 * (costs[1] - costs[0])


@torch.no_grad()
def test_scores_are_the_mean_of_two_heads():
    model = create_model("crossvit_test", bands=4, num_classes=5, image_size=15).eval()
    x = torch.randn(2, 4, 15, 15)
    small, large = model.forward_features(x)
    scores = torch.stack([model.head[0](small[:, 0]), model.head[1](large[:, 0])])
    torch.testing.assert_close(model(x), scores.mean(0))


def test_branch_sizes_are_the_published_ones():
    assert default_token_sizes(224) == default_token_sizes(384) == (12, 16)
    assert default_branch_sizes(224, (12, 16)) == (240, 224)
    assert default_branch_sizes(384, (12, 16)) == (408, 384)


@pytest.mark.parametrize("token", STEM_STRIDES)
def test_convolutional_stem_gives_whole_tokens(token):
    model = CrossViT(
        3, 2, 48, dims=(8, 8), depths=(), heads=(1, 1), token_sizes=(token, token),
        branch_sizes=(48, 48), conv_stem=True,
    )  # fmt: skip
    assert math.prod(STEM_STRIDES[token]) == token
    assert [level.shape[-1] for level in model.forward_levels(torch.zeros(1, 3, 48, 48))] == [
        48 // token
    ] * 2


@torch.no_grad()
def test_images_are_resampled_to_each_branch():
    """An image that already has a branch's size goes in untouched; others as bicubic interpolation makes them."""
    model = CrossViT(
        3, 2, 24, dims=(8, 8), depths=((1, 1, 1),), heads=(1, 1), mlp_ratio=(1, 1),
        token_sizes=(6, 8), branch_sizes=(30, 24),
    ).eval()  # fmt: skip
    x = torch.randn(1, 3, 24, 20)
    squared = F.interpolate(x, (24, 24), mode="bicubic", align_corners=False)
    wide = F.interpolate(x, (30, 30), mode="bicubic", align_corners=False)
    assert torch.equal(model.branches[1](x), model.branches[1](squared))
    assert torch.equal(model.branches[0](x), model.branches[0](wide))


@torch.no_grad()
def test_resize_keeps_positions_that_fit():
    small, large = (
        create_model("crossvit_test", bands=3, num_classes=2, image_size=size) for size in (16, 32)
    )
    large.load_state_dict(resize(small.state_dict(), large))
    state = small.state_dict()
    assert all(torch.equal(state[k], v) for k, v in resize(state, small).items())
    torch.testing.assert_close(
        large.branches[1].pos_embed[:, :1], small.branches[1].pos_embed[:, :1]
    )


def test_stochastic_depth_grows_along_the_large_branch():
    model = create_model("crossvit_15", bands=3, num_classes=2, image_size=32, drop_path=0.14)
    rates = [block.drop_path.p for stage in model.blocks for block in stage.branches[1]]
    assert rates == pytest.approx([0.01 * k for k in range(15)])
    assert [stage.fusions[0].blocks[0].drop_path.p for stage in model.blocks] == rates[4::5]


@pytest.mark.parametrize(
    "wrong",
    [
        {"dims": (8,)},
        {"heads": (3, 4)},
        {"depths": ((1, 2),)},
        {"depths": ((1, 2, 0),)},
        {"token_sizes": (12,)},
        {"token_sizes": (12, 64)},
        {"token_sizes": (5, 8), "conv_stem": True},
        {"branch_sizes": (30, 33), "token_sizes": (6, 8), "conv_stem": True},
    ],
)
def test_wrong_arguments_are_refused(wrong):
    with pytest.raises(ModelError, match="crossvit"):
        CrossViT(3, 2, 32, **{"dims": (8, 16), "heads": (2, 2), **wrong})


@pytest.mark.parametrize(
    ("height", "width", "cells", "stride"), [(15, 15, 10, 1), (64, 32, 11, 5), (30, 61, 7, 4)]
)
def test_maps_lie_where_their_stride_says(height, width, cells, stride):
    """A grid that covers the image, holding the place of each cell's centre in pixels, is resampled to such places."""
    rows, columns = (((torch.arange(cells) + 0.5) * side / cells) for side in (height, width))
    grid = torch.stack([rows[:, None].expand(cells, cells), columns.expand(cells, cells)])[None]
    found = to_cells(grid, (height, width), stride)[0]
    for axis, (side, ends) in enumerate(((height, rows), (width, columns))):
        wanted = (torch.arange(-(-side // stride)) + 0.5) * stride
        along = found[axis].movedim(axis, 0)
        assert len(along) == len(wanted)
        expected = wanted.clamp(ends[0], ends[-1])[:, None].expand_as(along)
        torch.testing.assert_close(along, expected)


def test_maps_of_whole_cells_are_left_alone():
    x = torch.randn(1, 2, 8, 8)
    assert to_cells(x, (32, 32), 4) is x
