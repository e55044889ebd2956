"""ChannelViT: the authors' numbers, subsets of channels, and what is drawn in training."""

import pytest
import torch
from torch import nn

import vitreous
from fixtures_reader import load_fixture
from vitreous.catalog.registry import create_model, from_reference
from vitreous.errors import CheckpointError, ModelError
from vitreous.layers.bands import adapt_bands
from vitreous.models.channelvit import ChannelViT, SampledInput, draw_channels, rename, resize
from vitreous.models.vit import VisionTransformer
from vitreous.testing import images


@pytest.fixture(scope="module")
def reference():
    return load_fixture("channelvit")


def small(**changes):
    torch.manual_seed(0)
    shape = {"bands": 5, "num_classes": 4, "image_size": 12, "token_size": 4, "dim": 16}
    model = ChannelViT(**{"depth": 2, "heads": 2, "mlp_ratio": 2.0, **shape, **changes}).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)  # so that channels and places matter
    return model


# -- the reference ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [lambda n: n, lambda n: n[0], lambda n: n[0].tolist()])
@torch.no_grad()
def test_equals_reference(reference, form):
    model = from_reference("channelvit", reference["state_dict"], reference["kwargs"]).eval()
    found = model(reference["input"]["x"], form(reference["input"]["channels"]))
    torch.testing.assert_close(found, reference["output"]["cls"], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_stretches_positions_as_the_reference_only_when_asked(reference):
    model = from_reference("channelvit", reference["state_dict"], reference["kwargs"])
    table = model.position_table((4, 4), 3)
    whole = torch.cat([table[:, :1], table[:, 1:].repeat(1, 3, 1)], 1)
    torch.testing.assert_close(whole, reference["output"]["pos"], rtol=1e-6, atol=1e-6)
    assert torch.equal(model.position_table((4, 4), 1), model.pos_embed)
    model.published_positions = False
    assert torch.equal(model.position_table((4, 4), 3), model.pos_embed)
    assert (table - model.pos_embed).abs().max() > 0


@torch.no_grad()
def test_reference_without_query_bias_is_one_with_zeros(reference):
    state = {k: v for k, v in reference["state_dict"].items() if "qkv.bias" not in k}
    kwargs = {k: v for k, v in reference["kwargs"].items() if k != "qkv_bias"}
    model = from_reference("channelvit", state, kwargs)
    assert all(not block.attn.qkv.bias.any() for block in model.blocks)


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_reference_that_lacks_some_is_refused(reference, part):
    state = {k: v for k, v in reference["state_dict"].items() if k != f"blocks.1.attn.qkv.{part}"}
    kwargs = {k: v for k, v in reference["kwargs"].items() if k != "qkv_bias"}
    with pytest.raises(CheckpointError, match=rf"blocks\.1\.attn\.qkv\.{part}"):
        from_reference("channelvit", state, kwargs)


def test_rename_loses_nothing(reference):
    renamed = rename(reference["state_dict"])
    assert renamed["channel_embed"].shape == (1, 5, 32)
    assert renamed["patch_embed.weight"].shape == (32, 1, 4, 4)
    assert sum(v.numel() for v in renamed.values()) == sum(
        v.numel() for v in reference["state_dict"].values()
    )


# -- what it costs ------------------------------------------------------------------------------------------


def count(name, bands, size):
    with torch.device("meta"):
        model = create_model(name, bands=bands, num_classes=0, image_size=size)
    return sum(p.numel() for p in model.parameters())


def test_a_channel_costs_one_vector():
    assert count("channelvit_small", 8, 224) == 21_472_128
    assert count("channelvit_small", 18, 224) - count("channelvit_small", 8, 224) == 10 * 384


@torch.no_grad()
def test_tokens_are_channels_times_places():
    model, x = small(), images(2, 5, 14)
    assert model.forward_features(x).shape == (2, 1 + 5 * 9, 16)
    assert model.forward_features(x[:, :2], [3, 1]).shape == (2, 1 + 2 * 9, 16)


# -- channels -----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_order_of_channels_does_not_matter_if_their_numbers_go_with_them():
    model, x, order = small(), images(2, 5, 12), [3, 0, 4, 2, 1]
    torch.testing.assert_close(model(x[:, order], order), model(x), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model(x[:, order]), model(x), rtol=1e-2)
    own = torch.tensor([order, [1, 0, 3, 4, 2]])
    mixed = torch.stack([image[numbers] for image, numbers in zip(x, own, strict=True)])
    torch.testing.assert_close(model(mixed, own), model(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_without_vectors_equal_channels_are_the_same():
    model = small()
    x = images(2, 1, 12).expand(-1, 3, -1, -1)
    assert not torch.allclose(model(x, [0, 1, 2]), model(x, [4, 2, 1]), rtol=1e-2)
    model.channel_embed.zero_()
    torch.testing.assert_close(model(x, [0, 1, 2]), model(x, [4, 2, 1]))


@torch.no_grad()
def test_a_subset_is_attention_that_sees_no_other_channels():
    model, x, given = small(), images(2, 5, 12), [1, 4]
    found = model.forward_features(x[:, given], given)
    tokens = model.embed(x).tokens
    seen = torch.zeros(5, 9, dtype=torch.bool)
    seen[given] = True
    seen = torch.cat([torch.ones(1, dtype=torch.bool), seen.flatten()])
    hide = torch.zeros(len(seen)).masked_fill(~seen, float("-inf"))[None, None, None]
    for block in model.blocks:
        mixed = block.attn.mix(block.attn.project(block.norm1(tokens)), hide)
        tokens = block.add(tokens, mixed)
        tokens = tokens + block.mlp(block.norm2(tokens))
    expected = model.norm(tokens)[:, seen]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_one_channel_is_a_plain_vit():
    model = small(bands=1)
    plain = VisionTransformer(
        1, 4, 12, dim=16, depth=2, heads=2, token_size=4, mlp_ratio=2.0
    ).eval()
    state = model.state_dict()
    state["patch_embed.bias"] = state["patch_embed.bias"] + state.pop("channel_embed")[0, 0]
    plain.load_state_dict(state)
    x = images(3, 1, 12)
    torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_map_is_the_mean_over_channels():
    model, x = small(), images(2, 5, 12)
    (found,) = model.forward_levels(x)
    tokens = model.forward_features(x)[:, 1:].reshape(2, 5, 3, 3, 16).mean(1)
    torch.testing.assert_close(found, tokens.permute(0, 3, 1, 2))


# -- sampling -----------------------------------------------------------------------------------------------


def test_numbers_of_channels_are_uniform_and_so_are_channels():
    torch.manual_seed(0)
    draws = [draw_channels(6) for _ in range(3000)]
    counts = torch.bincount(torch.tensor([len(d) for d in draws]), minlength=7)
    assert counts[0] == 0
    # 500 expected, standard deviation 20
    assert (counts[1:] - 500).abs().max() < 90
    pairs = torch.bincount(torch.cat([d for d in draws if len(d) == 2]), minlength=6)
    assert (pairs / pairs.sum() - 1 / 6).abs().max() < 0.05
    assert all(d.tolist() == sorted(set(d.tolist())) for d in draws)


def test_samples_in_training_only():
    model, x = small(sampling=True), images(2, 5, 12)
    torch.manual_seed(0)
    with torch.no_grad():
        assert {model.forward_features(x).shape[1] for _ in range(5)} == {46}
        found = {model.train().forward_features(x).shape[1] for _ in range(60)}
        given = {model.forward_features(x[:, :2], [4, 0]).shape[1] for _ in range(20)}
    assert found == {1 + 9 * m for m in range(1, 6)}
    assert given == {10, 19}


def test_a_drawn_subset_is_that_subset():
    model, x = small(sampling=True).train(), images(2, 5, 12)
    torch.manual_seed(3)
    drawn = draw_channels(5)
    assert 0 < len(drawn) < 5
    torch.manual_seed(3)
    found = model(x)
    torch.testing.assert_close(found, model.eval()(x[:, drawn], drawn))
    found.sum().backward()
    used = model.channel_embed.grad[0].abs().amax(1) > 0
    assert used.nonzero()[:, 0].tolist() == drawn.tolist()


class Seen(nn.Module):
    """Keep what it is called with."""

    bands = 4

    def forward(self, x):
        """Return the input."""
        return x


def test_sampled_input_zeroes_and_rescales():
    wrapped, x = SampledInput(Seen()).train(), images(2, 4, 5).abs() + 1
    torch.manual_seed(0)
    found = []
    for _ in range(40):
        y = wrapped(x)
        kept = (y != 0).all((0, 2, 3))
        assert torch.equal(kept, (y != 0).any(3).any(2).any(0))
        torch.testing.assert_close(y[:, kept], x[:, kept] * 4 / kept.sum())
        found.append(int(kept.sum()))
    assert set(found) == {1, 2, 3, 4}
    assert torch.equal(wrapped.eval()(x), x)
    y = wrapped(x[:, [2, 0]], [2, 0])
    torch.testing.assert_close(y[:, [0, 2]], 2 * x[:, [0, 2]])
    assert not y[:, [1, 3]].any()


def test_sampled_input_serves_any_architecture():
    model = create_model("vit_test", bands=4, num_classes=3)
    wrapped, x = SampledInput(model), images(2, 4, 15)
    wrapped.train()(x).sum().backward()
    with torch.no_grad():
        torch.testing.assert_close(wrapped.eval()(x), model.eval()(x))
        assert wrapped(x[:, 1:3], [1, 2]).shape == (2, 3)


# -- weights for other bands and sizes, refusals ------------------------------------------------------------


def test_weights_serve_other_bands_and_sizes(tmp_path):
    model = create_model("channelvit_test", bands=4, num_classes=3)
    path = vitreous.save_model(model, tmp_path / "model.safetensors")
    other, report = vitreous.load_model(path, bands=8, image_size=33)
    assert report.adapted == ("channel_embed",)
    assert report.resized == ("pos_embed",)
    made = adapt_bands(
        model.channel_embed.data, vitreous.Bands(4), vitreous.Bands(8), table=True
    ).weight
    assert torch.equal(other.channel_embed, made)
    assert other(images(1, 8, 33)).shape == (1, 3)


def test_weights_serve_other_tokens():
    large, little = small(), small(token_size=2)
    state = large.state_dict()
    little.load_state_dict(resize(state, little))
    assert little.pos_embed.shape == (1, 37, 16)


@pytest.mark.parametrize("numbers", [[0, 5], [0], [-1, 2], [0.0, 1.0], [], [[0, 1]] * 3])
def test_unknown_channels_are_refused(numbers):
    with pytest.raises(ModelError, match="channels"):
        small()(images(2, 2, 12), numbers)
    if numbers != [0.0, 1.0]:
        with pytest.raises(ModelError, match="Channels"):
            SampledInput(small())(images(2, 2, 12), numbers)
    with pytest.raises(ModelError, match="do not have all 5 bands"):
        SampledInput(small())(images(2, 2, 12))


@pytest.mark.parametrize(
    ("change", "message"), [({"heads": 3}, "not divisible"), ({"token_size": 20}, "has none")]
)
def test_refuses_in_words(change, message):
    with pytest.raises(ModelError, match=message):
        small(**change)
    with pytest.raises(ModelError, match="5 bands"):
        small()(images(1, 4, 12))


def test_no_decay_on_tables():
    spared = small().no_weight_decay()
    assert {"channel_embed", "pos_embed", "class_token"} <= spared
    assert "patch_embed.weight" not in spared
