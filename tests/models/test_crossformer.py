"""CrossFormer: equality with the authors' numbers, groups one by one, and what the options of the reference do."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fixtures_reader import load_fixture
from vitreous.catalog.registry import create_model, from_reference
from vitreous.checkpoints.layouts import recognise
from vitreous.errors import ModelError
from vitreous.models.crossformer import CrossFormer, CrossFormerBlock, rename
from vitreous.testing import enliven, images

SMALL = {
    "dim": 16, "depths": (2, 2), "heads": (2, 4), "group": 3, "token_size": 2, "mlp_ratio": 2.0,
    "position_divisor": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def reference():
    return load_fixture("crossformer")


def small(**changes):
    torch.manual_seed(0)
    model = CrossFormer(**{"bands": 3, "num_classes": 5, "image_size": 32, **SMALL, **changes})
    enliven(model)
    return model.eval()


def block_of(group=(3, 3), dilated=True, interval=None, dim=16, heads=2):
    torch.manual_seed(0)
    block = CrossFormerBlock(
        dim, heads, group, dilated, interval, position_divisor=2, mlp_ratio=2.0, drop_path=0.0, qkv_bias=True,
        scale=None,
    )  # fmt: skip
    enliven(block)
    return block.eval()


def theirs(model):
    """Give our weights the authors' names."""
    found = {}
    for key, value in model.state_dict().items():
        for stage in range(1, 4):
            key = key.replace(f"stages.{stage}.merge.", f"layers.{stage - 1}.downsample.")
        for ours, name in {
            "stages.": "layers.",
            "downsample.embed.projs": "downsample.reductions",
            "position.embed": "pos.pos_proj",
            "position.layers.0": "pos.pos1",
            "position.layers.1": "pos.pos2",
            "position.layers.2": "pos.pos3",
            "pos_embed": "absolute_pos_embed",
            "patch_norm": "patch_embed.norm",
        }.items():
            key = key.replace(ours, name)
        found[key] = value
    return found


# -- the reference ------------------------------------------------------------------------------------------


@torch.no_grad()
def test_equals_reference(reference):
    model = from_reference("crossformer", reference["state_dict"], reference["kwargs"]).eval()
    torch.testing.assert_close(model(reference["input"]), reference["output"], rtol=1e-5, atol=1e-6)
    blocks = [block for stage in model.stages for block in stage.blocks]
    assert [block.cut(16, 16) for block in blocks[:2]] == [((3, 3), (1, 1)), ((3, 3), (4, 4))]
    assert [block.cut(8, 8) for block in blocks[2:]] == [((3, 3), (1, 1)), ((3, 3), (2, 2))]
    # Both kinds of padding: 16 to 18 and 24, 8 to 9 and 12.
    assert [m.shape[0] for m in _masks(model)] == [36, 64, 9, 16]


def _masks(model):
    maps = [torch.zeros(1, side, side, 2) for side in (16, 8)]
    for stage, x in zip(model.stages, maps, strict=True):
        for _, mask in stage.plan(x):
            yield mask


@torch.no_grad()
def test_options_of_the_reference_are_honoured():
    kwargs = {
        "img_size": (32, 48), "patch_size": [2, 4], "in_chans": 5, "num_classes": 0, "embed_dim": 16,
        "depths": [1, 3, 1], "num_heads": [2, 4, 8], "group_size": [3, 2, 5], "crs_interval": [2, 3, 4],
        "mlp_ratio": [2.0, 1.0, 3.0], "qkv_bias": False, "qk_scale": 0.7, "ape": True, "patch_norm": False,
        "merge_size": [[2, 4], [2]],
    }  # fmt: skip
    model = small(
        bands=5, num_classes=0, image_size=(32, 48), kernels=(2, 4), depths=(1, 3, 1), heads=(2, 4, 8),
        group=(3, 2, 4), intervals=(2, 3, 1), mlp_ratio=(2.0, 1.0, 3.0), qkv_bias=False, scale=0.7,
        absolute_positions=True, stem_norm=False, merge_kernels=((2, 4), 2), position_divisor=16,
    )  # fmt: skip
    x = images(2, 5, (32, 48))
    assert torch.equal(from_reference("crossformer", theirs(model), kwargs).eval()(x), model(x))
    for option, other in (
        ("qk_scale", None),
        ("crs_interval", [2, 4, 4]),
        ("group_size", [4, 2, 5]),
    ):
        changed = from_reference("crossformer", theirs(model), {**kwargs, option: other}).eval()(x)
        if option == "group_size":  # a stage of one block has neighbours alone, in other windows
            assert changed.shape == (2, 64)
        assert not torch.allclose(changed, model(x), atol=1e-4), option


@torch.no_grad()
def test_maps_no_longer_than_a_group_are_cut_into_squares_of_neighbours_as_by_the_authors():
    kwargs = {
        "img_size": (16, 32), "patch_size": [4], "num_classes": 5, "embed_dim": 16, "depths": [2],
        "num_heads": [2], "group_size": 5, "crs_interval": [2], "mlp_ratio": [2.0], "merge_size": [],
    }  # fmt: skip
    model = small(
        image_size=(16, 32), token_size=4, kernels=(4,), depths=(2,), heads=(2,), group=4, intervals=(1,),
        position_divisor=16,
    )  # fmt: skip
    found = from_reference("crossformer", theirs(model), kwargs)
    assert [block.cut(4, 8) for block in found.stages[0].blocks] == [((4, 4), (1, 1))] * 2
    x = images(2, 3, (16, 32))
    assert torch.equal(found.eval()(x), model(x))


@pytest.mark.parametrize(
    "option",
    [{"use_acl": True}, {"use_cpe": True}, {"use_extra_conv": True}, {"group_type": "linear"}],
)
def test_crossformer_plus_plus_is_refused(reference, option):
    with pytest.raises(ModelError, match="does not offer"):
        from_reference("crossformer", reference["state_dict"], {**reference["kwargs"], **option})


def test_layout_is_known_and_what_follows_from_the_size_is_left_out(reference):
    weights = dict(reference["state_dict"])
    assert recognise([*weights]).slug == "crossformer"
    weights["layers.0.blocks.0.attn.biases"] = torch.zeros(25, 2)
    weights["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(9, 9)
    assert set(rename(weights)) == set(rename(reference["state_dict"]))


# -- groups ---------------------------------------------------------------------------------------------------


def one_by_one(block, x):
    """Attend in the groups of a map one by one, of real cells alone."""
    (rows, columns), (down, across) = block.cut(*x.shape[1:3])
    attn, out = block.attn, torch.empty_like(x)
    heads, width = attn.heads, x.shape[-1] // attn.heads
    bias = attn.position(rows, columns)
    for tile in _product(x.shape[1], rows * down, x.shape[2], columns * across):
        for residue in _product(down, 1, across, 1):
            cells = [
                (row, column, number)
                for number, (row, column) in enumerate(
                    (tile[0] + residue[0] + r * down, tile[1] + residue[1] + c * across)
                    for r in range(rows)
                    for c in range(columns)
                )
                if row < x.shape[1] and column < x.shape[2]
            ]
            if not cells:
                continue
            at = [[row for row, _, _ in cells], [column for _, column, _ in cells]]
            own = torch.tensor([number for _, _, number in cells])
            query, key, value = (
                attn.qkv(x[:, at[0], at[1]]).unflatten(-1, (3, heads, width)).unbind(2)
            )
            scores = torch.einsum("bqhd,bkhd->bhqk", query, key) * width**-0.5
            weights = (scores + bias[:, own][:, :, own]).softmax(-1)
            mixed = torch.einsum("bhqk,bkhd->bqhd", weights, value).flatten(2)
            out[:, at[0], at[1]] = attn.proj(mixed)
    return out


def _product(rows, down, columns, across):
    return [(r, c) for r in range(0, rows, down) for c in range(0, columns, across)]


@pytest.mark.parametrize("size", [(9, 9), (8, 8), (7, 13), (2, 10), (20, 5)])
@pytest.mark.parametrize("group", [(3, 3), (2, 4)])
@pytest.mark.parametrize(("dilated", "interval"), [(False, None), (True, None), (True, (2, 2))])
@torch.no_grad()
def test_equals_attention_among_real_cells_one_group_at_a_time(size, group, dilated, interval):
    block, x = block_of(group, dilated, interval), torch.randn(2, *size, 16)
    expected = one_by_one(block, x)
    torch.testing.assert_close(block.attend(x, block.mask_of(x)), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_an_interval_of_one_is_attention_to_neighbours():
    x = torch.randn(2, 9, 6, 16)
    near, far = block_of(dilated=False), block_of(dilated=True, interval=(1, 1))
    assert torch.equal(near(x, None), far(x, None))
    wide = block_of(dilated=True)
    assert not torch.allclose(near(x, None), wide(x, None), atol=1e-3)


@torch.no_grad()
def test_groups_span_the_map_whatever_its_size_unless_intervals_are_given():
    model, fixed = small(), small(intervals=(2, 1))
    for side in (16, 11, 40):
        group, interval = model.stages[0].blocks[1].cut(side, 2 * side)
        assert interval == (-(-side // 3), -(-2 * side // 3))
        assert all(g * i >= n for g, i, n in zip(group, interval, (side, 2 * side), strict=True))
        assert fixed.stages[0].blocks[1].cut(side, side) == ((3, 3), (2, 2))
    published = create_model_of("crossformer_small", 224)
    found = [
        stage.blocks[1].cut(56 // 2**k, 56 // 2**k) for k, stage in enumerate(published.stages)
    ]
    assert found == [((7, 7), (step, step)) for step in (8, 4, 2, 1)]


def create_model_of(name, side):
    with torch.device("meta"):
        return create_model(name, bands=3, num_classes=5, image_size=side)


def test_only_distant_groups_reach_the_far_corner_in_one_stage():
    for dilated, reached in ((False, False), (True, True)):
        model = small(depths=(2,), heads=(2,), kernels=(2,), dilated=dilated)
        x = images(1, 3, 32).requires_grad_()
        model.forward_levels(x)[0][0, :, 0, 0].sum().backward()
        assert bool(x.grad[..., -6:, -6:].any()) == reached


def test_cost_of_attention_grows_with_the_number_of_cells():
    def macs(side):
        block = block_of((4, 4)).to("meta")
        x = torch.empty(1, side, side, 16, device="meta")
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            block.attend(x, None)
        return counter.get_total_flops() // 2

    position = (
        2 * 8 * 49 + 2 * 8 * 8 * 49 + 8 * 2 * 49
    )  # the network that scores offsets, once per block
    tokens = 16**2
    assert macs(16) - position == 4 * tokens * 16**2 + 2 * 16 * tokens * 16
    assert macs(32) - position == 4 * (macs(16) - position)


def test_network_of_positions_is_as_wide_as_in_the_authors_code():
    with torch.device("meta"):
        widths = [
            create_model("crossformer_tiny", bands=3, num_classes=5, image_size=224, **more)
            .stages[0].blocks[0].attn.position.embed.out_features
            for more in ({}, {"position_divisor": 4})
        ]  # fmt: skip
    assert widths == [64 // 16, 64 // 4]


@pytest.mark.parametrize("size", [(9, 40), (64, 64), (33, 17)])
@torch.no_grad()
def test_takes_other_sizes_than_it_was_built_for(size):
    model = small(absolute_positions=True)
    maps = model.forward_levels(torch.randn(1, 3, *size))
    assert maps[0].shape[2:] == tuple(-(-n // 2) for n in size)
    assert all(torch.isfinite(m).all() for m in maps)


@torch.no_grad()
def test_groups_of_padding_alone_are_finite_in_training_and_bfloat16():
    block, x = block_of((3, 3), True, (4, 4)), torch.randn(1, 2, 13, 16)
    mask = block.mask_of(x)
    assert mask.isinf().any()
    assert not mask.isinf().all(-1).any()
    assert torch.isfinite(block(x, mask)).all()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(block(x, mask)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": (3, 4)}, "not divisible"),
        ({"heads": (2,)}, "heads for 1"),
        ({"group": (3, 3, 3)}, "3 values of group for 2 stages"),
        ({"intervals": (3,)}, "1 values of intervals for 2 stages"),
        ({"mlp_ratio": [2.0]}, "1 values of mlp_ratio for 2 stages"),
        ({"kernels": (1, 2)}, "no smaller than the stride"),
        ({"dim": 12, "kernels": (2, 4, 8, 16)}, "cannot divide 12 channels among 4 kernels"),
        ({"merge_kernels": [[2, 4]], "depths": (1, 1, 1), "heads": (2, 4, 8)}, "merge_kernels"),
    ],
)  # fmt: skip
def test_refuses_in_words(change, message):
    with pytest.raises(ModelError, match=message):
        small(**change)
