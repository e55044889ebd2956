"""HSDT: equality with the authors' numbers, and what guided attention across bands is and costs."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fixtures_reader import load_fixture
from vitreous.catalog.registry import create_model, from_reference
from vitreous.errors import CheckpointError, ModelError
from vitreous.models.hsdt import (
    HSDT,
    BandConv,
    FeedForward,
    PixelAttention,
    S3Conv,
    SpectralAttention,
    enlarge,
    rename,
    to_bands,
    window_starts,
)
from vitreous.testing import images


@pytest.fixture(scope="module")
def reference():
    return load_fixture("hsdt")


def small(bands=31, **changes):
    torch.manual_seed(0)
    return HSDT(bands, **{"channels": 4, "half_layers": 3, "downs": (1,), **changes}).eval()


def features(bands=31, dim=4, side=6, count=2):
    torch.manual_seed(1)
    return torch.randn(count, dim, bands, side, side)


# -- the reference ------------------------------------------------------------------------------------------


@torch.no_grad()
def test_equals_reference(reference):
    model = from_reference("hsdt", reference["state_dict"], reference["kwargs"]).eval()
    cube, expected = reference["input"].squeeze(1), reference["output"].squeeze(1)
    found = model(cube)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    # The residual alone, so that the input in the output hides nothing.
    assert (found - expected).norm() / (expected - cube).norm() < 1e-5
    model = from_reference(
        "hsdt", reference["state_dict"], {**reference["kwargs"], "flex": True}
    ).eval()
    assert not torch.allclose(model(cube), expected, atol=1e-3)


def test_reference_is_loaded_completely_or_not_at_all(reference):
    weights = dict(reference["state_dict"])
    del weights["decoder.layers.2.attn.ffn.w_3.bias"]
    with pytest.raises(CheckpointError, match=r"gate\.bias"):
        from_reference("hsdt", weights, reference["kwargs"])
    with pytest.raises(CheckpointError):
        from_reference("hsdt", reference["state_dict"], {**reference["kwargs"], "channels": 8})
    with pytest.raises(ModelError, match="num_half_layer"):
        from_reference("hsdt", reference["state_dict"], {"channels": 4, "in_channels": 1})


def their_layout(model):
    """Give our weights the authors' names and shapes."""
    found = {}
    for key, value in model.state_dict().items():
        point = key.endswith("weight") and value.ndim == 4 and value.shape[2] == 1
        if point and key != "lift.weight":
            value = value[:, :, 0, 0]
        if key.endswith("spectral.weight"):
            value = value[..., None]
        gdfn = "dwconv" in "".join(model.state_dict())
        for ours, theirs in {
            ".spatial.": ".dw_conv.",
            ".spectral.": ".pw_conv.",
            ".norm.": ".bn.",
            "coder.": "coder.layers.",
            ".proj.": ".fc.",
            ".block.0.": ".attn.attn.",
            ".block.1.": ".attn.ffn.",
            ".queries.": ".attn_proj.",
            ".value.": ".value_proj.",
            ".fc1.": ".project_in." if gdfn else ".w_1.",
            ".fc2.": ".project_out." if gdfn else ".w_2.",
            ".gate.": ".w_3.",
            "lift.": "proj.",
        }.items():
            key = key.replace(ours, theirs)
        if gdfn and (".project_in.w" in key or ".project_out.w" in key):
            value = value[..., None, None, None]
        found[key] = value
    return found


@pytest.mark.parametrize(
    "options",
    [
        {"conv": "dense"},
        {"attention": "self"},
        {"attention": "none", "conv": "dense"},
        {"attention": "pixelwise"},
        {"feed_forward": "plain"},
        {"feed_forward": "modulation"},
        {"feed_forward": "gdfn"},
        {"self_query": True},
    ],
)
@torch.no_grad()
def test_ablations_work_and_are_known_by_their_weights(options):
    model, x = small(7, queries=7, **options), images(1, 7, 8)
    kwargs = {"in_channels": 1, "channels": 4, "num_half_layer": 3, "sample_idx": [1]}
    kwargs["flex"] = options.get("self_query", False)
    kwargs["pixelwise"] = options.get("attention") == "pixelwise"
    again = from_reference("hsdt", their_layout(model), kwargs).eval()
    assert torch.equal(model(x), again(x))
    assert not torch.allclose(model(x), small(7, queries=7)(x), atol=1e-3)


# -- attention across bands ---------------------------------------------------------------------------------


@pytest.mark.parametrize("self_query", [False, True])
@pytest.mark.parametrize("bands", [1, 2, 5, 31, 32, 70])
@torch.no_grad()
def test_matrix_has_rows_that_sum_to_one(bands, self_query):
    layer = SpectralAttention(4, 31, self_query).eval()
    weights = layer.matrix(torch.randn(3, bands, 4))
    assert weights.shape == (3, bands, bands)
    assert weights.min() >= 0
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, bands))


@pytest.mark.parametrize("self_query", [False, True])
@torch.no_grad()
def test_layer_is_the_equation(self_query):
    layer, x = SpectralAttention(4, 31, self_query).eval(), features()
    mean = x.mean((3, 4))  # batch, channels, bands
    learned = mean.transpose(1, 2) @ layer.queries.weight.T + layer.queries.bias
    itself = torch.einsum("bcd,bce->bde", mean, mean)
    weights = (itself if self_query else learned).softmax(-1)
    value, proj = (part.weight[:, :, 0, 0] for part in (layer.value, layer.proj))
    expected = x + torch.einsum("oc,bde,ci,biehw->bodhw", proj, weights, value, x)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_attention_does_not_see_places():
    layer, x = SpectralAttention(4, 31).eval(), features()
    order = torch.randperm(36)
    moved = x.flatten(3)[..., order].unflatten(3, (6, 6))
    expected = layer(x).flatten(3)[..., order].unflatten(3, (6, 6))
    torch.testing.assert_close(layer(moved), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_silent_queries_give_the_mean_of_the_bands():
    layer, x = SpectralAttention(4, 31).eval(), features()
    nn.init.zeros_(layer.queries.weight)
    nn.init.zeros_(layer.queries.bias)
    mean = layer.proj(layer.value(x)).mean(2, keepdim=True)
    torch.testing.assert_close(layer(x) - x, mean.expand_as(x), rtol=1e-4, atol=1e-5)


def macs(layer, *shape):
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad(), torch.device("meta"):
        layer.to("meta").eval()(torch.empty(*shape))
    return counter.get_total_flops() // 2


def test_cost_is_linear_in_pixels():
    few, many = (macs(SpectralAttention(8, 31), 1, 8, 31, side, side) for side in (16, 32))
    matrix = 31 * 31 * 8  # scores from means: the same whatever the size
    assert (few - matrix) * 4 == many - matrix
    assert few - matrix == 31 * 256 * (2 * 8 * 8 + 31 * 8)


def test_training_takes_either_by_the_global_generator():
    layer, x = SpectralAttention(4, 31).train(), features()
    seen = []
    for seed in range(12):
        torch.manual_seed(seed)
        seen.append(layer(x))
        torch.manual_seed(seed)
        assert torch.equal(layer(x), seen[-1])
    layer.eval()
    guided = layer(x)
    layer.self_query = True
    itself = layer(x)
    drawn = [torch.equal(found, guided) for found in seen]
    assert all(g or torch.equal(found, itself) for g, found in zip(drawn, seen, strict=True))
    assert 2 <= sum(drawn) <= 10


def test_every_layer_draws_for_itself():
    model, x = small().train(), images(1, 31, 8)
    drawn = []
    for module in model.modules():
        if isinstance(module, SpectralAttention):
            module._itself = lambda own=module: drawn.append(type(own)._itself(own)) or drawn[-1]
    for _ in range(4):
        model(x)
    assert len(drawn) == 4 * 7
    assert len({tuple(drawn[k : k + 7]) for k in range(0, 28, 7)}) > 1


@torch.no_grad()
def test_pixelwise_is_attention_at_each_pixel():
    layer, x = PixelAttention(4, 31, self_query=True).eval(), features(bands=9, side=3)
    plain = SpectralAttention(4, 31, self_query=True).eval()
    plain.load_state_dict(layer.state_dict())
    for row in range(3):
        for column in range(3):
            one = x[..., row : row + 1, column : column + 1]
            found = layer(x)[..., row : row + 1, column : column + 1]
            torch.testing.assert_close(found, plain(one), rtol=1e-4, atol=1e-5)


# -- any number of bands ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bands", "width"), [(32, 31), (45, 31), (62, 31), (102, 31), (200, 31), (5, 1)]
)
def test_windows_cover_all_bands_evenly(bands, width):
    starts = window_starts(bands, width)
    gaps = [b - a for a, b in itertools.pairwise(starts)]
    assert (starts[0], starts[-1]) == (0, bands - width)
    assert max(gaps) <= max(1, width // 2)
    assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("bands", [32, 50, 102])
def test_more_bands_than_queries_average_their_windows(bands):
    weights = torch.rand(2, bands, 31).softmax(-1)
    expected = torch.zeros(2, bands, bands)
    for band in range(bands):
        inside = [s for s in window_starts(bands, 31) if s <= band < s + 31]
        for start in inside:
            expected[:, band, start : start + 31] += weights[:, band] / len(inside)
    torch.testing.assert_close(to_bands(weights), expected)


@pytest.mark.parametrize("bands", [2, 3, 16, 17, 30])
@torch.no_grad()
def test_fewer_bands_than_queries_are_those_of_the_mirrored_cube(bands):
    layer, x = SpectralAttention(4, 31).eval(), features(bands=bands)
    order = [*range(bands), *range(bands - 2, 0, -1)]
    order = (order * 31)[:31]
    mirrored = x[:, :, order]
    assert torch.equal(
        mirrored[:, :, : min(31, 2 * bands - 1)], _reflect(x, min(31, 2 * bands - 1))
    )
    # The matrix looks at one band's mean at a time, so the published layer on 31 bands, cropped, is the same.
    torch.testing.assert_close(layer(mirrored)[:, :, :bands], layer(x), rtol=1e-4, atol=1e-5)


def _reflect(x, bands):
    return F.pad(x.flatten(3), (0, 0, 0, bands - x.shape[2]), mode="reflect").unflatten(
        3, x.shape[3:]
    )


def test_as_many_bands_as_queries_are_left_alone():
    weights = torch.rand(2, 31, 31)
    assert to_bands(weights) is weights


@pytest.mark.parametrize("self_query", [False, True])
@torch.no_grad()
def test_same_weights_for_any_bands(self_query):
    model = small(self_query=self_query)
    for bands in (1, 31, 102, 200):
        assert torch.isfinite(model(images(1, bands, 8))).all()
    assert len(small(200).state_dict()) == len(model.state_dict())
    small(200).load_state_dict(model.state_dict())


# -- the other parts ----------------------------------------------------------------------------------------


@torch.no_grad()
def test_one_branch_of_s3_is_a_spectral_convolution():
    layer, x = S3Conv(3, 5), features(bands=7, dim=3)
    expected = F.conv3d(x, layer.spectral.weight[..., None], padding=(1, 0, 0))
    nn.init.zeros_(layer.spatial[2].weight)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
    layer = S3Conv(3, 5)
    nn.init.zeros_(layer.spectral.weight)
    alone = layer(x[:, :, 2:3])
    torch.testing.assert_close(layer(x)[:, :, 2:3], alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_feed_forward_is_the_sum_of_its_ablations_and_has_no_residual():
    whole, x = FeedForward(4), features(bands=5)
    plain, gate = FeedForward(4, modulation=False), FeedForward(4, plain=False)
    plain.load_state_dict({k: v for k, v in whole.state_dict().items() if "gate" not in k})
    gate.load_state_dict({k: v for k, v in whole.state_dict().items() if "gate" in k})
    torch.testing.assert_close(whole(x), plain(x) + gate(x))
    a, g = whole.gate(x).chunk(2, 1)
    torch.testing.assert_close(gate(x), a * g.sigmoid())
    for part in (whole.fc2, whole.gate):
        nn.init.zeros_(part.weight)
        nn.init.zeros_(part.bias)
    assert whole(x).eq(0).all()


@torch.no_grad()
def test_enlarging_is_trilinear_with_corners_on_corners():
    x = features(bands=5, side=3)
    expected = F.interpolate(x, scale_factor=(1, 2, 2), mode="trilinear", align_corners=True)
    torch.testing.assert_close(enlarge(x), expected)
    assert torch.equal(enlarge(x)[..., ::5, ::5], x[..., ::2, ::2])


@torch.no_grad()
def test_band_convolution_is_a_linear_layer_over_one_band():
    layer, x = BandConv(4, 6), features(bands=5)
    expected = F.linear(x.movedim(1, -1), layer.weight[:, :, 0, 0], layer.bias).movedim(-1, 1)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


# -- the whole ----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_silent_tail_returns_the_cube():
    model, x = small(), images(2, 31, 9)
    nn.init.zeros_(model.tail.weight)
    nn.init.zeros_(model.tail.bias)
    assert torch.equal(model(x), x)


@pytest.mark.parametrize("size", [(9, 13), (4, 7), (1, 1)])
@torch.no_grad()
def test_sides_are_mirrored_to_the_halvings(size):
    model = small(5, half_layers=4, downs=(1, 3))
    assert model.multiple == 4
    assert model(torch.rand(1, 5, *size)).shape == (1, 5, *size)


def test_small_is_small():
    assert sum(p.numel() for p in create_model("hsdt_small", bands=31).parameters()) <= 135_000


@torch.no_grad()
def test_noise_map_is_a_second_cube():
    model, x = small(5, noise_map=True), images(2, 5, 9)
    found = model(x, 0.1)
    assert found.shape == x.shape
    torch.testing.assert_close(found, model(x, torch.full_like(x, 0.1)))
    torch.testing.assert_close(
        found[1:], model(x, torch.tensor([0.2, 0.1]).reshape(2, 1, 1, 1))[1:]
    )
    assert not torch.allclose(found, model(x, 0.5), atol=1e-3)
    nn.init.zeros_(model.tail.weight)
    nn.init.zeros_(model.tail.bias)
    assert torch.equal(model(x, 0.3), x)
    with pytest.raises(ModelError, match="a noise map"):
        model(x)
    with pytest.raises(ModelError, match="no noise map"):
        small(5)(x, 0.1)


@torch.no_grad()
def test_spectra_from_rgb():
    model, x = small(3, outputs=31), images(2, 3, 9)
    assert model(x).shape == (2, 31, 9, 9)
    nn.init.zeros_(model.tail.weight)
    nn.init.zeros_(model.tail.bias)
    torch.testing.assert_close(model(x), F.leaky_relu(model.lift(x)))
    with pytest.raises(ModelError, match="3 bands, not 4"):
        model(images(1, 4, 9))


def test_statistics_move_once_a_step_with_checkpointing():
    found = []
    for on in (False, True):
        model = small(5).train()
        model.checkpointing = on
        torch.manual_seed(0)
        model(images(2, 5, 8)).sum().backward()
        found.append(model.head.norm.running_mean)
    assert torch.equal(*found)


def test_learns_to_denoise():
    torch.manual_seed(0)
    model = HSDT(8, channels=4, half_layers=2, downs=(1,), queries=8).train()
    clean = torch.rand(1, 8, 1, 1).expand(4, 8, 16, 16)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(40):
        error = F.mse_loss(model(clean + 0.2 * torch.randn_like(clean)), clean)
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
    assert error.item() < 0.5 * 0.2**2


def test_xavier_weights():
    model = small(xavier=True, channels=16)
    weight = model.encoder[0].conv.spatial[0].weight
    assert weight.std().item() == pytest.approx((2 / (9 * (16 + 16))) ** 0.5, rel=0.1)
    assert model.tail.bias.eq(0).all()


def test_rename_gives_shapes_of_two_dimensions(reference):
    names = rename(reference["state_dict"])
    assert names["head.conv.spectral.weight"].shape == (4, 1, 3, 1)
    assert names["encoder.1.block.1.fc1.weight"].shape == (16, 8, 1, 1)
    assert names["tail.weight"].shape == (1, 4, 3, 3, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv": "s2"}, "no conv"),
        ({"attention": "guide"}, "no attention"),
        ({"feed_forward": "gated"}, "no feed_forward"),
        ({"downs": (3,)}, "halve"),
        ({"downs": (1, 1)}, "halve"),
        ({"queries": 0}, "0 queries"),
        ({"noise_map": True, "outputs": 31}, "noise map"),
    ],
)
def test_refuses_in_words(change, message):
    with pytest.raises(ModelError, match=message) as caught:
        small(**change)
    assert caught.value.fix
