"""CoSwin: equality with the authors' numbers, Swin where the convolutions are silent, and what these see and hold."""

import pytest
import torch
import torch.nn.functional as F

from fixtures_reader import load_fixture
from vitreous.catalog.registry import create_model, from_reference
from vitreous.checkpoints.layouts import recognise
from vitreous.errors import CheckpointError, ModelError
from vitreous.layers.windows import window_grid, window_mask
from vitreous.models.coswin import ConvBranch, CoSwin
from vitreous.models.swin import SwinTransformer
from vitreous.testing import enliven, images

SMALL = {"dim": 8, "depths": (2, 1), "heads": (2, 4), "window": 4, "token_size": 2}


@pytest.fixture(scope="module")
def reference():
    return load_fixture("coswin")


def small(**changes):
    torch.manual_seed(0)
    model = CoSwin(**{"bands": 3, "num_classes": 5, "image_size": 32, **SMALL, **changes})
    enliven(model)
    return model.eval()


def theirs(model):
    """Give our weights the authors' names."""
    names = {
        "stages.1.merge.": "layers.0.downsample.",
        "stages.": "layers.",
        "position.table": "relative_position_bias_table",
        "pos_embed": "absolute_pos_embed",
        "patch_embed.": "patch_embed.proj.",
        "patch_norm.": "patch_embed.norm.",
        "branch.conv1": "conv.conv.0",
        "branch.conv2": "conv.conv.2",
        "influence": "convInfluenceWeight",
    }
    found = {}
    for key, value in model.state_dict().items():
        for ours, name in names.items():
            key = key.replace(ours, name)
        found[key] = value
    return found


# -- the reference ------------------------------------------------------------------------------------------


@torch.no_grad()
def test_equals_reference(reference):
    model = from_reference("coswin", reference["state_dict"], reference["kwargs"]).eval()
    expected, x = reference["output"], reference["input"]
    torch.testing.assert_close(model(x), expected["logits"], rtol=1e-5, atol=1e-6)
    first, last = model.pyramid(x)
    merged = model.stages[1].merge(first)
    torch.testing.assert_close(merged.flatten(1, 2), expected["layer0"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(last.flatten(1, 2), expected["layer1"], rtol=1e-5, atol=1e-5)
    # The branch reads the input of the block as it is, not normalised.
    plan = [*model.stages[0].plan(model.embed(x))]
    entering = plan[0][0](model.embed(x), None)
    torch.testing.assert_close(entering.flatten(1, 2), expected["conv_in"], rtol=1e-5, atol=1e-5)
    branch = model.stages[0].blocks[1].branch(entering)
    torch.testing.assert_close(branch.flatten(1, 2), expected["conv_out"], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_options_of_the_reference_are_honoured():
    kwargs = {
        "img_size": (24, 24), "patch_size": 3, "in_chans": 5, "num_classes": 0, "embed_dim": 12,
        "depths": [1, 3], "num_heads": [3, 6], "window_size": 2, "mlp_ratio": 3.0, "qkv_bias": False,
        "qk_scale": 0.7, "ape": True, "patch_norm": False,
    }  # fmt: skip
    model = small(
        bands=5, num_classes=0, image_size=24, token_size=3, dim=12, depths=(1, 3), heads=(3, 6), window=2,
        mlp_ratio=3.0, qkv_bias=False, scale=0.7, absolute_positions=True, stem_norm=False,
    )  # fmt: skip
    x = images(2, 5, 24)
    assert torch.equal(from_reference("coswin", theirs(model), kwargs).eval()(x), model(x))
    changed = from_reference("coswin", theirs(model), {**kwargs, "qk_scale": None}).eval()(x)
    assert not torch.allclose(changed, model(x), atol=1e-4)
    with pytest.raises(CheckpointError, match="do not fit"):
        from_reference("coswin", theirs(model), {**kwargs, "window_size": 4})
    with pytest.raises(ModelError, match="eps"):
        from_reference("coswin", theirs(model), {**kwargs, "norm_layer": "LayerNorm eps=1e-3"})


def test_the_authors_layout_is_told_from_swins():
    assert recognise([*theirs(small())]).slug == "coswin"
    names = [name for name in theirs(small()) if "conv" not in name]
    assert recognise(names).slug == "swin"


@torch.no_grad()
def test_oblong_maps_are_convolved_row_by_row_and_as_squares_only_as_the_authors_do():
    x = torch.randn(2, 4, 16, 6)
    branch = ConvBranch(6, 6, square=False)
    maps = x.permute(0, 3, 1, 2)
    expected = branch.conv2(F.relu(branch.conv1(maps))).permute(0, 2, 3, 1)
    torch.testing.assert_close(branch(x), expected)
    branch.square = True
    folded = x.reshape(2, 8, 8, 6).permute(0, 3, 1, 2)
    expected = branch.conv2(F.relu(branch.conv1(folded))).permute(0, 2, 3, 1)
    torch.testing.assert_close(branch(x), expected.reshape(2, 4, 16, 6))
    model = small(image_size=(16, 64))
    kwargs = {
        "img_size": (16, 64), "patch_size": 2, "num_classes": 5, "embed_dim": 8, "depths": [2, 1],
        "num_heads": [2, 4], "window_size": 4, "mlp_ratio": 2,
    }  # fmt: skip
    again = from_reference("coswin", theirs(model), kwargs).eval()
    image = images(2, 3, (16, 64))
    assert again.stages[0].blocks[0].branch.square
    assert not torch.allclose(again(image), model(image), atol=1e-3)


@torch.no_grad()
def test_maps_that_are_no_square_are_refused_where_squares_are_made():
    model = small(square_branch=True)
    with pytest.raises(ModelError, match="square number of cells, not 16 x 12"):
        model(images(1, 3, (32, 24)))


# -- what is added to swin ----------------------------------------------------------------------------------


@torch.no_grad()
def test_silent_convolutions_leave_swin():
    model = small()
    swin = SwinTransformer(3, 5, 32, **SMALL, mlp_ratio=2.0).eval()
    swin.load_state_dict(
        {k: v for k, v in model.state_dict().items() if "branch" not in k and "influence" not in k}
    )
    x = images(2, 3, 32)
    assert not torch.allclose(model(x), swin(x), atol=1e-2)
    for name, weight in model.named_parameters():
        if name.endswith("influence"):
            weight.fill_(-50.0)
    torch.testing.assert_close(model(x), swin(x), rtol=0, atol=1e-6)


@torch.no_grad()
def test_weight_of_the_sum_starts_at_the_sigmoid_of_a_half():
    model = create_model("coswin_base", bands=3, num_classes=10, image_size=32)
    weights = [p for n, p in model.named_parameters() if n.endswith("influence")]
    assert len(weights) == 12
    assert all(float(weight.sigmoid()) == pytest.approx(0.6225, abs=1e-4) for weight in weights)


def test_stochastic_depth_drops_attention_and_convolutions_together():
    block = small(drop_path=0.5).stages[0].blocks[1].train()
    block.mlp = torch.nn.Identity()
    block.norm2 = torch.nn.Identity()
    block.drop_path.p = 0.9999999
    x = torch.randn(4, 8, 8, 8)
    torch.manual_seed(0)
    assert torch.equal(block(x, window_mask(x, block.window, block.shifted)), x)


@torch.no_grad()
def test_convolutions_see_five_by_five_cells_and_move_with_the_map():
    branch = ConvBranch(4, 4, square=False)
    torch.nn.init.ones_(branch.conv1.bias)  # nothing is cut off by the ReLU
    x = 0.01 * torch.randn(1, 12, 12, 4)
    changed = x.clone()
    changed[0, 6, 6] += 1
    seen = (branch(changed) - branch(x)).abs().sum(-1)[0].nonzero()
    assert (seen.amin(0).tolist(), seen.amax(0).tolist()) == ([4, 4], [8, 8])
    moved = branch(x.roll((1, 2), (1, 2)))
    torch.testing.assert_close(moved[:, 3:-2, 4:-2], branch(x).roll((1, 2), (1, 2))[:, 3:-2, 4:-2])


def test_parameters_of_the_convolutions():
    with torch.device("meta"):
        model = create_model("coswin_base", bands=3, num_classes=10, image_size=32)
        swin = create_model(
            "swin_tiny", bands=3, num_classes=10, image_size=32, dim=96, depths=[2, 6, 4], heads=[3, 6, 12],
            window=4, mlp_ratio=2.0,
        )  # fmt: skip
    blocks = [stage.blocks[0].branch for stage in model.stages]
    assert [block.conv1.out_channels for block in blocks] == [105, 211, 422]  # 1.1 C, rounded down
    assert sum(p.numel() for p in blocks[0].parameters()) == 9 * 96 * 105 * 2 + 105 + 96 == 181_641
    assert all(conv.groups == 1 for block in blocks for conv in (block.conv1, block.conv2))
    branches = sum(p.numel() for n, p in model.named_parameters() if ".branch." in n)
    assert branches / 1e6 == pytest.approx(16.41, abs=0.01)
    assert sum(p.numel() for p in swin.parameters()) / 1e6 == pytest.approx(7.05, abs=0.01)
    total = sum(p.numel() for p in model.parameters())
    assert total == branches + 12 + sum(p.numel() for p in swin.parameters())


def test_tokens_and_windows_are_as_published():
    with torch.device("meta"):
        sizes = {
            side: create_model("coswin_base", bands=3, num_classes=10, image_size=side).grid
            for side in (32, 64)
        }
    assert sizes == {32: (16, 16), 64: (16, 16)}
    assert window_grid(4, 4, 4, True) == ((4, 4), (0, 0))  # the last stage is one window
    assert window_mask(torch.zeros(1, 4, 4, 2), 4, True) is None


def test_refuses_in_words():
    with pytest.raises(ModelError, match="no channels"):
        small(expansion=0.1)
    with pytest.raises(ModelError, match="coswin's stage 1 has width 8"):
        small(heads=(3, 4))
