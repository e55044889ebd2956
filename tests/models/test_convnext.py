import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vitreous
from fixtures_reader import load_fixture
from vitreous.errors import CheckpointError, ModelError
from vitreous.layers.channelnorm import ChannelNorm
from vitreous.models.convnext import Block, ConvNeXt, rename

TINY = {"dims": [8, 12, 16, 24], "depths": [1, 1, 2, 1]}


@pytest.fixture
def fixture():
    return load_fixture("convnext")


def lively(model):
    """Return the model in eval mode with branches that are not nearly silent."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gamma") or parameter.ndim == 1:
                parameter.normal_(0.3, 0.5)
    return model.eval()


def small(image_size=32, **changes):
    torch.manual_seed(0)
    return lively(ConvNeXt(3, 5, image_size, **{**TINY, **changes}))


def test_equals_the_reference(fixture):
    model = vitreous.from_reference("convnext", fixture["state_dict"], fixture["kwargs"]).eval()
    with torch.no_grad():
        output = model(fixture["input"])
    torch.testing.assert_close(output, fixture["output"], rtol=1e-5, atol=1e-6)


def test_a_partial_reference_is_refused(fixture):
    weights = dict(fixture["state_dict"])
    del weights["stages.2.1.gamma"]
    with pytest.raises(CheckpointError, match=r"stages\.2\.1"):
        vitreous.from_reference("convnext", weights, fixture["kwargs"])


def in_the_authors_layout(model, isotropic):
    names = {"mlp.fc1.": "pwconv1.", "mlp.fc2.": "pwconv2.", "scale.": "", ".conv.": ".dwconv."}
    weights, numbers = {}, {}
    for key, value in model.state_dict().items():
        for old, new in names.items():
            key = key.replace(old, new)
        if isotropic and key.startswith("stages."):
            _, stage, block, rest = key.split(".", 3)
            key = f"blocks.{numbers.setdefault((stage, block), len(numbers))}.{rest}"
        key = key.replace("downs.0.0.", "stem.") if isotropic else key
        weights[key.replace("downs.", "downsample_layers.")] = value
    return weights


@pytest.mark.parametrize("depth", [1, 3, 6])
def test_isotropic_reference_is_cut_in_parts(depth):
    parts = {1: [1], 3: [1, 1, 1], 6: [1, 2, 1, 2]}[depth]
    model = lively(
        ConvNeXt(4, 5, dims=[8] * len(parts), depths=parts, isotropic=True, layer_scale=None)
    )
    weights = in_the_authors_layout(model, isotropic=True)
    assert "stem.weight" in weights and f"blocks.{depth - 1}.pwconv2.bias" in weights
    other = vitreous.from_reference(
        "convnext", weights, {"in_chans": 4, "num_classes": 5, "depth": depth, "dim": 8}
    ).eval()
    x = torch.randn(2, 4, 48, 48)
    assert torch.equal(other(x), model(x))


def test_reference_without_layer_scale():
    model = small(layer_scale=None, image_size=64, stem_stride=4)
    weights = in_the_authors_layout(model, isotropic=False)
    assert set(rename(weights)) == set(model.state_dict())
    kwargs = {"num_classes": 5, "layer_scale_init_value": 0, "drop_path_rate": 0.1, **TINY}
    other = vitreous.from_reference("convnext", weights, kwargs).eval()
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(other(x), model(x))
    assert other.stages[3][0].drop_path.p == pytest.approx(0.1)


def test_equals_the_form_with_convolutions():
    """Fig. 4 with channels first: 1 x 1 convolutions, and the norm written out."""
    torch.manual_seed(0)
    block = lively(Block(12, 7, 4.0, 0.5, 0.0))
    x = torch.randn(2, 12, 9, 11)
    mixed = torch.stack(
        [  # channel c only sees channel c
            F.conv2d(x[:, c : c + 1], block.conv.weight[c : c + 1], block.conv.bias[c, None], 1, 3)
            for c in range(12)
        ],
        1,
    )[:, :, 0]
    mean, var = mixed.mean(1, keepdim=True), mixed.var(1, keepdim=True, unbiased=False)
    mixed = (mixed - mean) / (var + 1e-6).sqrt()
    mixed = mixed * block.norm.weight[:, None, None] + block.norm.bias[:, None, None]
    mixed = F.conv2d(mixed, block.mlp.fc1.weight[:, :, None, None], block.mlp.fc1.bias)
    mixed = 0.5 * mixed * (1 + torch.erf(mixed / 2**0.5))
    mixed = F.conv2d(mixed, block.mlp.fc2.weight[:, :, None, None], block.mlp.fc2.bias)
    expected = x + block.scale.gamma[:, None, None] * mixed
    torch.testing.assert_close(block(x), expected, rtol=1e-5, atol=1e-5)


def test_block_without_scale_is_the_identity():
    block = Block(8, 7, 4.0, 0.0, 0.0)
    x = torch.randn(2, 8, 6, 5)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("dim", [8, 96])
def test_parameters_of_a_block(dim):
    count = sum(p.numel() for p in Block(dim, 7, 4.0, 1e-6, 0.0).parameters())
    assert count == 49 * dim + dim + 2 * dim + 8 * dim**2 + 5 * dim + dim


def test_translation_by_a_cell_translates_the_last_map():
    model = small(128)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.padding[0]:
            module.padding_mode = "circular"
            module._reversed_padding_repeated_twice = [3] * 4
    x = torch.randn(1, 3, 128, 160)
    with torch.no_grad():
        levels = model.forward_levels(x)
        moved = model.forward_levels(x.roll((32, 64), (2, 3)))
    assert [info.stride for info in model.feature_info] == [4, 8, 16, 32]
    for level, other, info in zip(levels, moved, model.feature_info, strict=True):
        assert level.shape[2:] == (128 // info.stride, 160 // info.stride)
        rolled = level.roll((32 // info.stride, 64 // info.stride), (2, 3))
        torch.testing.assert_close(other, rolled, rtol=1e-4, atol=1e-4)


def test_what_fills_no_cell_is_left_out():
    model = small(32, stem_stride=4)
    x = torch.randn(1, 3, 45, 38)
    with torch.no_grad():
        assert model.forward_levels(x)[-1].shape[2:] == (1, 1)
        torch.testing.assert_close(model(x), model(F.pad(x, (0, 1, 0, 2))))


def test_blocks_get_their_memory_channels_last():
    seen = []
    model = small(64)
    for block in [b for stage in model.stages for b in stage]:
        block.norm.register_forward_pre_hook(lambda _, x: seen.append(x[0].is_contiguous()))
    with torch.no_grad():
        model(torch.randn(2, 3, 64, 64))
    assert len(seen) == 5 and all(seen)


@pytest.mark.parametrize(
    ("size", "isotropic", "stride"),
    [(224, False, 4), (128, False, 4), (64, False, 2), (15, False, 1), (224, True, 16)],
)
def test_stem_shrinks_on_small_images_only(size, isotropic, stride):
    dims = [8] * 4
    model = ConvNeXt(3, 5, size, dims=dims, depths=[1] * 4, isotropic=isotropic)
    assert model.downs[0][0].stride == (stride, stride)
    assert isinstance(model.downs[0][1], nn.Identity if isotropic else ChannelNorm)


def test_new_heads_are_scaled():
    torch.manual_seed(0)
    whole = ConvNeXt(3, 500, 32, **TINY).head.weight.std().item()
    model = ConvNeXt(3, 500, 32, head_scale=0.001, **TINY)
    for _ in range(2):
        assert model.head.weight.std().item() == pytest.approx(whole / 1000, rel=0.1)
        model.reset_head(400)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"depths": [1, 1]}, "4 widths for 2 depths"),
        ({"kernel": 4}, "odd kernel"),
        ({"isotropic": True}, "one width"),
        ({"stem_stride": 8}, "64 pixels or more"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, words):
    with pytest.raises(ModelError, match=words):
        small(**arguments)


def test_images_without_a_cell_are_refused():
    with pytest.raises(ModelError, match="32 pixels or more, not 40 x 31"):
        small(32, stem_stride=4)(torch.zeros(1, 3, 40, 31))
