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
from vitreous.layers.transforms import SpectralGate, interpolate_filter
from vitreous.models.hornet import (
    Block,
    GlobalLocalFilter,
    HorNet,
    LocalFilter,
    RecursiveGate,
    read_image_size,
    rename,
    resize,
)

GF = "GlobalLocalFilter"


@pytest.fixture
def fixture():
    return load_fixture("hornet")


def lively(module, seed=0):
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.4)
    return module.eval()


def local(kernel=7):
    return lambda dim: LocalFilter(dim, kernel)


@torch.no_grad()
def test_equals_the_reference(fixture):
    model = vitreous.from_reference("hornet", fixture["state_dict"], fixture["kwargs"]).eval()
    output = fixture["output"]
    torch.testing.assert_close(model(fixture["input"]), output["logits"], rtol=1e-4, atol=1e-4)
    for stage, level in enumerate(model.forward_levels(fixture["input"])):
        torch.testing.assert_close(level, output[f"stage{stage}"], rtol=1e-4, atol=1e-4)


def test_a_partial_reference_is_refused(fixture):
    weights = dict(fixture["state_dict"])
    del weights["stages.2.0.gnconv.dwconv.complex_weight"]
    with pytest.raises(CheckpointError, match=r"stages\.2\.0\.mixer\.convolve\.gate"):
        vitreous.from_reference("hornet", weights, fixture["kwargs"])


def test_other_filters_of_a_reference_are_refused(fixture):
    gate = {"order": 2, "gflayer": "HaarFilter"}
    with pytest.raises(ModelError, match="gflayer='HaarFilter'"):
        vitreous.from_reference("hornet", {}, {**fixture["kwargs"], "gnconv": gate})


# -- the authors' code, naively, with all its options ---------------------------------------------------------


def in_the_authors_layout(model):
    """Undo ``rename``."""
    names = {"downs.": "downsample_layers.", "mlp.fc": "pwconv", ".mixer.widen": ".gnconv.pws"}
    names |= {".convolve.gate.weight": ".dwconv.complex_weight", ".convolve.local": ".dwconv.dw"}
    names |= {".convolve.conv.": ".dwconv.", ".convolve.": ".dwconv.", ".mixer.": ".gnconv."}
    names |= {".ls1.gamma": ".gamma1", ".ls2.gamma": ".gamma2"}
    weights = {}
    for key, value in model.state_dict().items():
        if ".mixer." in key and key.endswith("gate.weight"):
            value = value.permute(2, 0, 1, 3)
        elif ".mixer." in key and value.ndim == 2:
            value = value[..., None, None]
        for old, new in names.items():
            key = key.replace(old, new)
        weights[key] = value
    return weights


def naive(weights, x, kwargs):
    """Logits and stage maps, from the sheet's equations; ``gnconv`` is a list."""

    def conv(at, y, **how):
        return F.conv2d(y, weights[f"{at}.weight"], weights.get(f"{at}.bias"), **how)

    def norm(at, y):  # of channels that come first
        mean, variance = y.mean(1, keepdim=True), y.var(1, keepdim=True, unbiased=False)
        y = (y - mean) / (variance + 1e-6).sqrt()
        return y * weights[f"{at}.weight"][:, None, None] + weights[f"{at}.bias"][:, None, None]

    def over_all(at, y):
        near, far = norm(f"{at}.pre_norm", y).chunk(2, 1)
        near = conv(f"{at}.dw", near, padding=1, groups=near.shape[1])
        spectrum = torch.fft.rfft2(far, norm="ortho")
        parts = [
            F.interpolate(part[None], spectrum.shape[2:], mode="bilinear", align_corners=True)[0]
            for part in weights[f"{at}.complex_weight"].unbind(-1)
        ]
        far = torch.fft.irfft2(spectrum * torch.complex(*parts), s=y.shape[2:], norm="ortho")
        joined = torch.empty_like(y)
        joined[:, 0::2], joined[:, 1::2] = near, far
        return norm(f"{at}.post_norm", joined)

    def gated(at, y, order=5, s=1.0, gflayer=None, **grid):
        dim = y.shape[1]
        widths = [dim // 2 ** (order - 1 - k) for k in range(order)]
        y = conv(f"{at}.proj_in", y)
        first, rest = y[:, : widths[0]], y[:, widths[0] :]
        if gflayer is None:
            rest = conv(f"{at}.dwconv", rest, padding=3, groups=rest.shape[1])
        else:
            rest = over_all(f"{at}.dwconv", rest)
        parts = (s * rest).split(widths, 1)
        y = first * parts[0]
        for k in range(order - 1):
            y = conv(f"{at}.pws.{k}", y) * parts[k + 1]
        return conv(f"{at}.proj_out", y)

    levels = []
    for stage, depth in enumerate(kwargs["depths"]):
        at = f"downsample_layers.{stage}"
        if stage == 0:
            x = norm(f"{at}.1", conv(f"{at}.0", x, stride=4))
        else:
            x = conv(f"{at}.1", norm(f"{at}.0", x), stride=2)
        for block in range(depth):
            at = f"stages.{stage}.{block}"
            gammas = [weights.get(f"{at}.gamma{k}", torch.ones(1))[:, None, None] for k in (1, 2)]
            mixed = gated(f"{at}.gnconv", norm(f"{at}.norm1", x), **kwargs["gnconv"][stage])
            x = x + gammas[0] * mixed
            hidden = norm(f"{at}.norm2", x).permute(0, 2, 3, 1)
            for k in (1, 2):
                weight, bias = weights[f"{at}.pwconv{k}.weight"], weights[f"{at}.pwconv{k}.bias"]
                hidden = F.linear(F.gelu(hidden) if k == 2 else hidden, weight, bias)
            x = x + gammas[1] * hidden.permute(0, 3, 1, 2)
        levels.append(x)
    pooled = F.layer_norm(
        x.mean((2, 3)), x.shape[1:2], weights["norm.weight"], weights["norm.bias"], 1e-6
    )
    return F.linear(pooled, weights["head.weight"], weights["head.bias"]), levels  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({"gnconv": [{"order": k + 1, "s": 0.3 + k} for k in range(4)]}, (64, 96)),
        ({"gnconv": [{"order": 3, "s": 0.5, "h": 4, "w": 3, "gflayer": GF}] * 4, "depths": [1, 0, 2, 1]}, (70, 101)),
        ({"gnconv": [{}, {"order": 2, "gflayer": GF, "h": 5, "w": 1}, {"gflayer": GF}, {"order": 1}],
          "layer_scale_init_value": 0}, (96, 64)),
        ({"gnconv": [{"order": 2}, {"order": 2, "gflayer": GF, "h": 3, "w": 6}], "depths": [2, 2], "base_dim": 4},
         (33, 40)),
    ],
)  # fmt: skip
@torch.no_grad()
def test_equals_a_naive_network_with_all_options(changes, size):
    kwargs = {"num_classes": 5, "depths": [1, 1, 1, 1], "base_dim": 16, **changes}
    gates = kwargs["gnconv"]
    model = lively(
        HorNet(
            3,
            5,
            64,
            dim=kwargs["base_dim"],
            depths=kwargs["depths"],
            orders=[gate.get("order", 5) for gate in gates],
            spectral=["gflayer" in gate for gate in gates],
            filter_grids=[(gate.get("h", 14), max(2 * gate.get("w", 8) - 2, 1)) for gate in gates],
            scales=[gate.get("s", 1.0) for gate in gates],
            layer_scale=None if changes.get("layer_scale_init_value") == 0 else 1.0,
            stem_stride=4,
        )
    )
    weights = in_the_authors_layout(model)
    assert set(rename(weights)) == set(model.state_dict())
    ours = vitreous.from_reference("hornet", weights, kwargs).eval()
    x = torch.randn(2, 3, *size)
    logits, levels = naive(weights, x, kwargs)
    torch.testing.assert_close(ours(x), logits, rtol=1e-3, atol=1e-3)
    for level, expected in zip(ours.forward_levels(x), levels, strict=True):
        scale = float(expected.abs().max())
        torch.testing.assert_close(level / scale, expected / scale, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_one_description_of_gates_serves_all_stages():
    given = {"num_classes": 3, "depths": [1, 1], "base_dim": 16}
    for gnconv, order, scale in (({}, 5, 1.0), ({"order": 2, "s": 0.5}, 2, 0.5)):
        described = {"gnconv": gnconv} if gnconv else {}
        model = HorNet(3, 3, dim=16, depths=[1, 1], orders=[order] * 2, scales=[scale] * 2)
        weights = in_the_authors_layout(lively(model))
        ours = vitreous.from_reference("hornet", weights, {**given, **described})
        assert [stage[0].mixer.scale for stage in ours.stages] == [scale] * 2
        assert [len(stage[0].mixer.widths) for stage in ours.stages] == [order] * 2


# -- identities of the paper ----------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_parts_are_two_times_as_many_channels(order):
    mixer = RecursiveGate(16, order, local(), 1.0)
    assert mixer.widths[0] + sum(mixer.widths) == 32 == mixer.proj_in.out_features
    assert mixer.widths[-1] == 16 and len(mixer.widen) == order - 1


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
@torch.no_grad()
def test_an_order_is_a_degree(order):
    mixer = lively(RecursiveGate(16, order, local(), 1 / 3)).double()
    mixer.convolve.conv.bias.zero_()
    for widen in mixer.widen:
        widen.bias.zero_()
    x = torch.randn(1, 5, 6, 32, dtype=torch.float64)
    torch.testing.assert_close(mixer.interact(1.5 * x), 1.5 ** (order + 1) * mixer.interact(x))


@torch.no_grad()
def test_order_one_is_simple_gating():
    mixer, x = lively(RecursiveGate(8, 1, local(3), 0.5)), torch.randn(2, 6, 5, 8)
    features, others = mixer.proj_in(x).chunk(2, -1)
    expected = mixer.proj_out(features * 0.5 * mixer.convolve(others))
    torch.testing.assert_close(mixer(x), expected)
    mixer.convolve = nn.Identity()
    torch.testing.assert_close(mixer(x), mixer.proj_out(features * 0.5 * others))


@torch.no_grad()
def test_a_filter_of_ones_changes_nothing():
    block = lively(GlobalLocalFilter(8, (6, 5), False))
    block.gate.weight.copy_(torch.tensor([1.0, 0.0]).expand_as(block.gate.weight))
    x = torch.randn(1, 6, 5, 8)
    far = block.pre_norm(x).chunk(2, -1)[1]
    torch.testing.assert_close(block.gate(far), far, rtol=1e-5, atol=1e-5)


def test_a_block_without_scale_is_the_identity():
    block = Block(8, RecursiveGate(8, 3, local(), 1.0), 4.0, 0.0, 0.0)
    x = torch.randn(1, 5, 5, 8)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize(("dim", "order"), [(64, 2), (128, 3), (512, 5)])
def test_the_cost_stays_below_the_papers_bound(dim, order):
    model = nn.Sequential(RecursiveGate(dim, order, local(), 1.0))

    class OnMaps(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(x.permute(0, 2, 3, 1))

    cells = 12 * 10
    macs = count_cost(OnMaps(), dim, 12, 10).macs
    assert macs <= cells * dim * (2 * 49 + 11 / 3 * dim + 2)
    assert macs >= cells * dim * 3 * dim


@pytest.mark.parametrize(("spectral", "reach"), [(False, 3), (True, 9)])
def test_what_a_gate_sees(spectral, reach):
    made = (lambda dim: GlobalLocalFilter(dim, (9, 9), False)) if spectral else local()
    mixer = lively(RecursiveGate(8, 3, made, 1.0))
    x = torch.randn(1, 9, 9, 8, requires_grad=True)
    mixer(x)[0, 4, 4].square().sum().backward()
    seen = x.grad.abs().amax((0, 3)) > 0
    rows, columns = seen.any(1), seen.any(0)
    expected = min(9, 2 * reach + 1)
    assert rows.sum() == columns.sum() == expected


# -- pitfalls -------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_channels_of_the_two_halves_alternate():
    block = lively(GlobalLocalFilter(8, (5, 4), False))
    block.post_norm = nn.Identity()
    x = torch.randn(1, 5, 4, 8)
    near, far = block.pre_norm(x).chunk(2, -1)
    found = block(x)
    torch.testing.assert_close(found[..., 1::2], block.gate(far))
    convolved = F.conv2d(near.permute(0, 3, 1, 2), block.local.weight, None, 1, 1, groups=4)
    torch.testing.assert_close(found[..., 0::2], convolved.permute(0, 2, 3, 1))


@torch.no_grad()
def test_what_is_convolved_is_scaled_behind_its_bias():
    mixer, x = lively(RecursiveGate(8, 1, local(3), 0.25)), torch.randn(1, 4, 4, 16)
    mixer.convolve.conv.weight.zero_()
    torch.testing.assert_close(mixer.interact(x), x[..., :8] * 0.25 * mixer.convolve.conv.bias)


def test_filters_are_interpolated_with_aligned_corners():
    weight = torch.randn(4, 3, 2, 2)
    wider = interpolate_filter(weight, (7, 8))
    assert wider.shape == (7, 5, 2, 2)
    for row, column in ((0, 0), (-1, 0), (0, -1), (-1, -1)):
        torch.testing.assert_close(wider[row, column], weight[row, column])
    torch.testing.assert_close(wider[0, 1], (weight[0, 0] + weight[0, 1]) / 2)
    assert interpolate_filter(weight, (4, 4)) is weight
    assert interpolate_filter(weight, (4, 5)) is weight  # half of its columns are as many


def test_nothing_is_printed(capsys):
    HorNet(3, 5, 64, dim=16, depths=[1, 1], spectral=[False, True])
    assert capsys.readouterr() == ("", "")


# -- sizes and arguments --------------------------------------------------------------------------------------


@pytest.mark.parametrize("interpolate", [False, True])
@torch.no_grad()
def test_filters_are_carried_to_other_sizes(interpolate):
    settings = {"dim": 8, "depths": [1, 1], "spectral": [True, True], "stem_stride": 2}
    made = {**settings, "interpolate_filters": interpolate}
    model = lively(HorNet(3, 5, (32, 40), **made))
    other = HorNet(3, 5, (48, 36), **made).eval()
    other.load_state_dict(resize(model.state_dict(), other, model))
    x = torch.randn(1, 3, 48, 36)
    torch.testing.assert_close(other(x), model(x), rtol=1e-4, atol=1e-4)
    assert other.stages[1][0].mixer.convolve.gate.weight.shape == (12, 5, 14, 2)


@torch.no_grad()
def test_a_carried_filter_keeps_its_kernel_and_an_interpolated_one_does_not():
    gates = [SpectralGate(1, (8, 8), interpolate) for interpolate in (False, True)]
    kernel = torch.zeros(8, 8, 1)
    kernel[0, 1] = 1  # a cell to the right
    for gate in gates:
        gate.weight.copy_(torch.view_as_real(torch.fft.rfft2(kernel, dim=(0, 1))))
    impulse = torch.zeros(1, 12, 12, 1)
    impulse[0, 5, 5] = 1
    assert gates[0](impulse)[0, 5, 6, 0] == pytest.approx(1, abs=1e-5)
    assert gates[1](impulse)[0, 5, 6, 0] < 0.97


def test_published_filters_are_those_of_their_grids():
    with torch.device("meta"):
        for size, grids in ((224, [(14, 8), (7, 4)]), (384, [(24, 13), (12, 7)])):
            model = create_model("hornet_large_gf", bands=3, num_classes=5, image_size=size)
            found = [model.stages[k][0].mixer.convolve.gate.weight.shape[:2] for k in (2, 3)]
            assert [tuple(one) for one in found] == grids
            assert not [m for m in model.stages[1].modules() if isinstance(m, SpectralGate)]


@pytest.mark.parametrize(("size", "stride"), [(224, 4), (64, 2), (15, 1), ((16, 200), 1)])
def test_the_stem_shrinks_on_small_images_only(size, stride):
    model = HorNet(3, 5, size, dim=16)
    assert model.downs[0][0].stride == (stride, stride)
    assert model.feature_info[-1].stride == 8 * stride


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"orders": [2]}, "2 depths, but 1, 2, 2, 2"),
        ({"orders": [2, 7]}, "halve 32 channels 6 times"),
        ({"dim": 2, "orders": [2, 2], "spectral": [True, True]}, "3 convolved channels"),
        ({"kernel": 4}, "odd kernel"),
        ({"filter_grids": [[4], [4, 4]]}, "not two numbers"),
        ({"stem_stride": 64}, "128 pixels or more"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, words):
    with pytest.raises(ModelError, match=words):
        HorNet(3, 5, 64, **{"dim": 16, "depths": [1, 1], **arguments})


def test_first_weights_are_as_published():
    torch.manual_seed(0)
    model = HorNet(3, 400, 64, dim=16, depths=[1, 1], spectral=[False, True], head_scale=0.01)
    linear = model.stages[0][0].mlp.fc1
    assert linear.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not linear.bias.any()
    assert model.head.weight.std().item() == pytest.approx(2e-4, rel=0.1)
    gate = model.stages[1][0].mixer.convolve.gate.weight
    assert gate.std().item() == pytest.approx(0.02, rel=0.1)
    assert math.isclose(float(model.stages[0][0].ls1.gamma.detach()[0]), 1e-6, rel_tol=1e-3)


def test_filters_tell_the_size_of_images():
    settings = {"dim": 8, "depths": [1, 1, 1], "stem_stride": 4}
    model = HorNet(3, 5, 96, **settings, spectral=[False, False, True])
    assert read_image_size(model.state_dict()) == 96
    assert read_image_size(HorNet(3, 5, 96, **settings).state_dict()) is None
