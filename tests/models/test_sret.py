"""SReT: equality with the authors' numbers, slices, and weights that several passes share."""

import copy

import pytest
import torch

from fixtures_reader import load_fixture
from vitreous.catalog.registry import card, create_model, from_reference
from vitreous.checkpoints.layouts import recognise
from vitreous.errors import CheckpointError, ModelError
from vitreous.inference.cost import count_cost
from vitreous.layers.transformer import Attention
from vitreous.models.sret import RecursiveBlock, SlicedAttention, SReT, rename
from vitreous.testing import enliven, images

SMALL = {
    "head_dim": 8, "depths": (2, 4), "heads": (1, 2), "groups": (4, 2), "groups_again": (2, 1), "mlp_ratio": 2.0,
    "stem_stride": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def reference():
    return load_fixture("sret")


def small(**changes):
    torch.manual_seed(0)
    model = SReT(**{"bands": 3, "num_classes": 5, "image_size": 32, **SMALL, **changes})
    enliven(model)
    return model.eval()


def attention(dim=16):
    torch.manual_seed(0)
    layer = SlicedAttention(dim, 2).eval()
    enliven(layer)
    return layer


def theirs(model):
    """Give our weights the authors' names: each shared block once per pass."""
    found = {}
    for key, value in model.state_dict().items():
        parts = key.split(".")
        if key == "pos_embed":
            found[key] = value.mT.unflatten(2, model.grid)
        elif parts[0] == "convs":
            kind, number = ("conv", "bn")[int(parts[1]) % 3], int(parts[1]) // 3 + 1
            found[f"patch_embed.{kind}{number}.{parts[2]}"] = value
        elif parts[0] == "stages" and parts[2] == "reduce":
            found[f"pools.{int(parts[1]) - 1}.conv.{parts[3]}"] = value
        elif parts[0] == "stages":
            loops = model.stages[int(parts[1])].loops
            at = int(parts[3])
            places = (
                [2 * at + 1]
                if parts[2] == "links"
                else [2 * (at * loops + turn) for turn in range(loops)]
            )
            rest = ".".join(parts[4:]).replace("norm.", "norm1.")
            for place in places:
                start = f"transformers.{parts[1]}.blocks.{place}."
                if rest == "weights":
                    for number, one in enumerate(value):
                        found[f"{start}coefficient{number + 1}.bias"] = one[None].clone()
                else:
                    found[start + rest] = value
        else:
            found[key] = value
    return found


# -- the reference ------------------------------------------------------------------------------------------


@torch.no_grad()
def test_equals_reference(reference):
    model = from_reference("sret", reference["state_dict"], reference["kwargs"]).eval()
    torch.testing.assert_close(model(reference["input"]), reference["output"], rtol=1e-5, atol=1e-5)
    assert [len(stage.blocks) for stage in model.stages] == [1, 2, 1]
    assert [len(stage.links) for stage in model.stages] == [2, 4, 2]


@pytest.mark.parametrize("loops", [(2, 2), (1, 4), (3, 2)])
@torch.no_grad()
def test_options_of_the_reference_are_honoured(loops):
    distinct = (2, 1)
    depths = tuple(own * times for own, times in zip(distinct, loops, strict=True))
    model = small(
        bands=5, num_classes=0, head_dim=(6, 8), heads=(2, 3), depths=depths, loops=loops,
        groups_again=(1, 1), mlp_ratio=1.5, link_ratio=2.0, stem_stride=8, alternate_passes=True,
    )  # fmt: skip
    kwargs = {
        "image_size": 32, "patch_size": 16, "stride": 8, "base_dims": [6, 8], "depth": [*depths],
        "recursive_num": [*distinct], "heads": [2, 3], "groups1": [4, 2], "groups2": [1, 1], "mlp_ratio": 1.5,
        "np_mlp_ratio": 2.0, "num_classes": 0, "in_chans": 5,
    }  # fmt: skip
    x = images(2, 5, 32)
    weights = theirs(model)
    found = from_reference("sret", weights, kwargs).eval()
    torch.testing.assert_close(found(x), model(x), rtol=1e-5, atol=1e-5)
    without = {key: value for key, value in kwargs.items() if "groups" not in key}
    assert not torch.allclose(
        from_reference("sret", weights, without).eval()(x), model(x), atol=1e-4
    )


def test_copies_of_a_block_are_kept_once_and_must_agree(reference):
    weights = reference["state_dict"]
    assert recognise([*weights]).slug == "sret"
    names = rename(weights)
    assert sum(name.endswith("attn.qkv.weight") for name in names) == 4
    assert sum(name.endswith("attn.qkv.weight") for name in weights) == 8
    assert names["stages.0.blocks.0.weights"].shape == (4,)
    assert names["stages.0.links.1.weights"].shape == (2,)
    changed = dict(weights)
    changed["transformers.0.blocks.2.mlp.fc1.bias"] = torch.ones(16)
    with pytest.raises(CheckpointError, match="differs from the copy"):
        rename(changed)


def test_passes_are_counted_per_block_unless_the_authors_rule_is_wanted():
    own, published = small(depths=(3, 4), loops=(3, 1)), small(
        depths=(3, 4), loops=(3, 1), alternate_passes=True
    )  # fmt: skip
    ours, theirs_ = (
        [[again for _, again, _ in stage.plan()] for stage in model.stages]
        for model in (own, published)
    )
    assert ours == [[False, True, True], [False] * 4]
    assert theirs_ == [[False, True, False], [False, True, False, True]]
    usual = [
        [[again for _, again, _ in stage.plan()] for stage in small(alternate_passes=rule).stages]
        for rule in (False, True)
    ]
    assert usual[0] == usual[1] == [[False, True], [False, True, False, True]]


# -- slices ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [16, 13, 5, 2])
@pytest.mark.parametrize("groups", [1, 2, 4, 8])
@torch.no_grad()
def test_slices_are_attention_with_a_mask_of_blocks(tokens, groups):
    layer, x = attention(), torch.randn(2, tokens, 16)
    length = -(-tokens // groups)
    number = torch.arange(tokens) // length
    apart = number[:, None] != number
    mask = torch.zeros(tokens, tokens).masked_fill(apart, float("-inf"))
    expected = layer.mix(layer.project(x), mask[None, None])
    torch.testing.assert_close(layer.slice(x, groups), expected, rtol=1e-5, atol=1e-5)
    if groups == 1:
        torch.testing.assert_close(
            layer.slice(x, 1), Attention.forward(layer, x), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("tokens", [1, 2, 7, 16, 49])
@pytest.mark.parametrize("training", [False, True])
@torch.no_grad()
def test_another_order_changes_slices_and_is_undone(tokens, training):
    layer, x = attention().train(training), torch.randn(2, tokens, 16)
    torch.testing.assert_close(layer.slice(x, 1, shuffle=True), layer.slice(x, 1))
    order = layer._order(tokens, x.device)
    assert sorted(order.tolist()) == [*range(tokens)]
    if tokens > 2:
        assert not torch.allclose(
            layer.slice(x, 2, shuffle=True), layer.slice(x, 2), atol=1e-3
        ) or torch.equal(order, torch.arange(tokens))


@torch.no_grad()
def test_evaluation_is_the_same_from_call_to_call_and_training_is_not():
    model, x = small(), images(2, 3, 32)
    assert torch.equal(model(x), model(x))
    layer, tokens = attention().train(), torch.randn(2, 49, 16)
    first, second = (layer.slice(tokens, 4, shuffle=True) for _ in range(2))
    assert not torch.allclose(first, second, atol=1e-4)


def test_products_of_attention_fall_by_the_number_of_slices():
    def macs(groups):
        model = small(groups=(groups, 1), groups_again=(groups, 1), depths=(2, 2))
        return count_cost(model, 3, 32).macs

    products = 2 * 64**2 * 8 * 2  # tokens squared, width, queries by keys and by values, two passes
    assert macs(1) - macs(2) == products // 2
    assert macs(1) - macs(8) == products * 7 // 8


# -- shared weights ---------------------------------------------------------------------------------------------


def test_more_passes_add_links_alone():
    few, many = small(), small(depths=(20, 40), loops=20)
    counts = [
        [sum(p.numel() for p in getattr(stage, kind).parameters()) for stage in model.stages]
        for model in (few, many)
        for kind in ("blocks", "links")
    ]
    blocks, links, more_blocks, more_links = counts
    assert (more_blocks, more_links) == (blocks, [10 * count for count in links])
    assert len({id(p) for p in many.parameters()}) == len([*many.named_parameters()])


def test_gradients_of_a_shared_block_are_the_sum_over_its_passes():
    model, x = small(groups_again=(1, 1)), images(2, 3, 32)
    model(x).square().sum().backward()
    unshared = copy.deepcopy(model)
    unshared.zero_grad()
    for stage in unshared.stages:
        blocks = [copy.deepcopy(block) for block in stage.blocks for _ in range(stage.loops)]
        stage.plan = lambda blocks=blocks, stage=stage: zip(
            blocks, [False, True] * len(stage.blocks), stage.links, strict=True
        )
        stage.copies = blocks
    unshared(x).square().sum().backward()
    for stage, other in zip(model.stages, unshared.stages, strict=True):
        for number, block in enumerate(stage.blocks):
            for name, parameter in block.named_parameters():
                parts = [
                    other.copies[stage.loops * number + turn].get_parameter(name).grad
                    for turn in range(stage.loops)
                ]
                torch.testing.assert_close(parameter.grad, sum(parts), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_weights_of_one_are_ordinary_sums():
    torch.manual_seed(0)
    block, x = RecursiveBlock(16, 2, 2.0, (1, 1), 0.0).eval(), torch.randn(2, 9, 16)
    expected = x + block.attn.slice(block.norm1(x), 1)
    expected = expected + block.mlp(block.norm2(expected))
    torch.testing.assert_close(block(x), expected)
    block.weights.copy_(torch.tensor([2.0, 3.0, 5.0, 7.0]))
    middle = 2 * x + 3 * block.attn.slice(block.norm1(x), 1)
    expected = 5 * middle + 7 * block.mlp(block.norm2(middle))
    torch.testing.assert_close(block(x), expected)


def test_both_passes_of_a_block_share_a_rate_of_stochastic_depth():
    model = small(drop_path=0.6)
    rates = [block.drop_path.p for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0.0, 0.6 * 2 / 6, 0.6 * 3 / 6])


def test_published_multiply_adds_up_to_their_rounding():
    for row in card("sret").published:
        if "readme_gmacs" in row:
            with torch.device("meta"):
                model = create_model(
                    row["variant"], bands=3, num_classes=1000, image_size=224, **row.get("arguments", {})
                )  # fmt: skip
            assert round(count_cost(model, 3, 224).macs / 1e9, 1) == row["readme_gmacs"], row


def test_stem_is_as_published_at_224_and_finer_below():
    with torch.device("meta"):
        found = {
            side: create_model("sret_tiny", bands=3, num_classes=2, image_size=side).grid
            for side in (224, 64, 33, 15)
        }
    assert found == {224: (28, 28), 64: (16, 16), 33: (17, 17), 15: (15, 15)}


@pytest.mark.parametrize("size", [(9, 40), (64, 64), (33, 17)])
@torch.no_grad()
def test_takes_other_sizes_than_it_was_built_for(size):
    maps = small().forward_levels(torch.randn(1, 3, *size))
    assert maps[0].shape[2:] == tuple(-(-n // 4) for n in size)
    assert all(torch.isfinite(m).all() for m in maps)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depths": (3, 4)}, "does not divide 3 applications"),
        ({"groups": (4,)}, "different lengths"),
        ({"stem_stride": 3}, "no stride 3"),
    ],
)
def test_refuses_in_words(change, message):
    with pytest.raises(ModelError, match=message):
        small(**change)
