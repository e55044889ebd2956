import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitreous.errors import ModelError
from vitreous.layers.attention import attention
from vitreous.layers.drop import DropPath
from vitreous.layers.lora import LoRALinear, fold_lora
from vitreous.layers.preprocess import Preprocess
from vitreous.layers.windows import RelativePositionBias, padding_bias, partition, reverse


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 7), st.integers(1, 7))
@settings(max_examples=40, deadline=None)
def test_windows_are_undone(height, width, down, across):
    x = torch.arange(2 * height * width * 3.0).reshape(2, height, width, 3)
    windows = partition(x, (down, across))
    assert windows.shape[2] == down * across
    assert torch.equal(reverse(windows, (down, across), height, width), x)
    hidden = torch.isinf(padding_bias(height, width, (down, across), x)).sum().item()
    assert windows.shape[1] * windows.shape[2] - hidden == height * width


def test_relative_positions_of_a_smaller_window_are_the_same_offsets():
    bias = RelativePositionBias(4, 2)
    full = bias(4, 4).reshape(2, 4, 4, 4, 4)
    part = bias(2, 3).reshape(2, 2, 3, 2, 3)
    assert torch.equal(part, full[:, :2, :3, :2, :3])
    assert torch.equal(full[:, 0, 0, 1, 2], full[:, 1, 1, 2, 3])


@pytest.mark.parametrize("shape", [(2, 9, 9), (1, 4, 1, 1, 9), (3, 4, 2, 9, 9), (1, 1, 2, 9, 9)])
def test_attention_equals_its_definition(shape):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 3, 4, 2, 9, 8)
    bias = torch.randn(shape)
    expected = (q @ k.transpose(-1, -2) / 8**0.5 + bias).softmax(-1) @ v
    torch.testing.assert_close(attention(q, k, v, bias), expected, rtol=1e-5, atol=1e-5)


def test_drop_path_keeps_the_expectation():
    torch.manual_seed(0)
    drop = DropPath(0.25)
    x = torch.ones(8000, 3)
    assert abs(drop(x).mean().item() - 1) < 0.05
    assert torch.equal(drop.eval()(x), x)


def lora(**form):
    torch.manual_seed(1)
    layer = LoRALinear(6, 10, rank=3, alpha=12, **{"zero_init": False, **form})
    for p in layer.parameters():
        torch.nn.init.normal_(p)
    return layer.eval()


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_lora_equals_its_equation(gate, residual):
    layer = lora(gate=gate, residual=residual)
    x = torch.randn(5, 7, 6)
    adapted = 4.0 * (x @ layer.lora_down.T) @ layer.lora_up.T
    if gate:
        adapted = torch.sigmoid(x @ layer.lora_gate.T) * adapted
    expected = x @ layer.weight.T + layer.bias + adapted
    if residual:
        expected = expected + x @ layer.lora_residual.T
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("residual", [False, True])
def test_merged_lora_is_one_linear_layer(residual):
    layer = lora(residual=residual)
    merged = layer.merged()
    assert type(merged) is torch.nn.Linear
    x = torch.randn(5, 6)
    torch.testing.assert_close(merged(x), layer(x), rtol=1e-4, atol=1e-4)


def test_gated_lora_is_not_merged():
    with pytest.raises(ModelError, match="gate"):
        lora(gate=True).merged()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_gated_lora_folds_into_plain_layers(residual, bias):
    torch.manual_seed(1)
    layer = LoRALinear(6, 10, bias, rank=3, alpha=12, gate=True, residual=residual, zero_init=False)
    for p in layer.parameters():
        torch.nn.init.normal_(p)
    folded = layer.eval().folded()
    x = torch.randn(5, 7, 6)
    torch.testing.assert_close(folded(x), layer(x), rtol=1e-5, atol=1e-5)
    plain = [m for m in folded.modules() if not list(m.children())]
    assert {type(m) for m in plain} == {torch.nn.Linear}


def test_lora_folds_wherever_it_is():
    inner = torch.nn.Sequential(LoRALinear(10, 4, rank=2, zero_init=False))
    model = torch.nn.Sequential(lora(gate=True), torch.nn.ReLU(), inner)
    x = torch.randn(5, 6)
    before = model(x)
    fold_lora(model)
    assert not any(isinstance(m, LoRALinear) for m in model.modules())
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)


def test_gate_limits():
    open_, half, plain = lora(gate=True), lora(gate=True), lora()
    plain.load_state_dict({k: v for k, v in open_.state_dict().items() if k != "lora_gate"})
    half.load_state_dict(open_.state_dict())
    x = torch.rand(4, 6) + 0.5
    with torch.no_grad():
        open_.lora_gate.fill_(1e4)
        half.lora_gate.zero_()
        base = torch.nn.functional.linear(x, plain.weight, plain.bias)
    torch.testing.assert_close(open_(x), plain(x))
    torch.testing.assert_close(half(x) - base, (plain(x) - base) / 2, rtol=1e-4, atol=1e-4)


def test_the_cycle_scales_the_adapter_in_training_only():
    layer = lora()
    x = torch.randn(4, 6)
    base = torch.nn.functional.linear(x, layer.weight, layer.bias)
    full = layer(x)
    layer.cycle = 0.5
    assert torch.equal(layer(x), full)
    torch.testing.assert_close(layer.train()(x) - base, (full - base) / 2, rtol=1e-4, atol=1e-4)


def spectra(n=300, bands=20, seed=0):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(n, 4)) @ rng.normal(size=(4, bands)) * 100
        + 1000
        + rng.normal(size=(n, bands))
    ).astype("f4")


def apply(pre, x):
    return pre(torch.from_numpy(x.T[None, :, :, None].copy()))[0, :, :, 0].T.numpy()


@pytest.mark.parametrize("standardize", [False, True])
def test_whitened_components_equal_scikit_learns(standardize):
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    x = spectra()
    pre = Preprocess.fit(x, components=4, whiten=True, standardize=standardize)
    y = StandardScaler().fit_transform(x) if standardize else x
    expected = PCA(4, whiten=True).fit_transform(y)
    ours = apply(pre, x)
    np.testing.assert_allclose(np.abs(ours), np.abs(expected), rtol=0, atol=2e-3)
    np.testing.assert_allclose(np.cov(ours.T), np.eye(4), atol=5e-3)


def test_without_whitening_the_components_keep_their_ratios():
    x = spectra()
    white, plain = (Preprocess.fit(x, components=3, whiten=w) for w in (True, False))
    ratio = apply(plain, x).std(0) / apply(white, x).std(0)
    assert ratio[0] == pytest.approx(1, abs=1e-3)
    assert ratio[0] > ratio[1] > ratio[2]


def test_no_reduction_is_a_z_score():
    x = spectra()
    z = apply(Preprocess.fit(x, reduction="none"), x)
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(z.std(0), 1, atol=1e-3)


def test_a_change_of_unit_changes_nothing():
    x = spectra()
    a = apply(Preprocess.fit(x, components=4), x)
    b = apply(Preprocess.fit(x * 1e-4, components=4), x * 1e-4)
    np.testing.assert_allclose(a, b, atol=2e-3)


def test_invalid_pixels_become_the_mean():
    pre = Preprocess.fit(spectra(), components=4)
    x = torch.full((1, 20, 2, 2), float("nan"))
    x[0, :, 0, 0] = 1000
    x[0, 3, 1, 1] = float("inf")
    out = pre(x)
    assert torch.isfinite(out).all()
    assert not out[0, :, 1, 1].any()
    assert out[0, :, 0, 0].any()


def test_illumination_moves_along_the_dark_direction():
    x = spectra()
    pre = Preprocess.fit(x, components=4)
    z, brighter = apply(pre, x), apply(pre, x * 1.2)
    np.testing.assert_allclose(brighter, 1.2 * z - 0.2 * pre.dark().numpy(), atol=2e-2)


def test_constant_bands_carry_nothing_and_say_so():
    x = spectra()
    x[:, 3] = 5
    with pytest.warns(UserWarning, match="constant"):
        pre = Preprocess.fit(x, components=4)
    assert not pre.matrix[:, 3].any()
    assert torch.isfinite(pre.matrix).all()


def test_fewer_components_than_asked_for_says_so():
    with pytest.warns(UserWarning, match="span"):
        assert Preprocess.fit(spectra()[:3], components=15).channels == 2


@pytest.mark.parametrize(
    "bad", [np.zeros((1, 5), "f4"), np.ones((9, 5), "f4")], ids=["one", "alike"]
)
def test_spectra_that_say_nothing_are_refused(bad):
    with pytest.raises(ModelError):
        Preprocess.fit(bad)
