"""First layers for other bands: what must stay the same, for every method."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitreous.errors import ModelError
from vitreous.layers.bands import (
    METHODS,
    Bands,
    adapt_bands,
    best_method,
    resize_kernel,
    response_overlap,
)
from vitreous.scenes.cube import make_scene

FLAT = ("overlap", "nearest", "repeat", "mean")  # methods that answer a flat spectrum as before


def _bands(count, first=400.0, last=2400.0, fwhm=30.0, seed=None):
    centres = np.linspace(first, last, count)
    if seed is not None:
        centres = np.random.default_rng(seed).permutation(centres)
    names = tuple(f"B{k}" for k in range(count))
    return Bands(count, tuple(centres.tolist()), (fwhm,) * count, names)


def _weight(bands, seed=0, kernel=(3, 2)):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(5, bands, *kernel, generator=generator, dtype=torch.float64)


def _answer(weight, spectrum):
    return torch.einsum("ob...,b->o...", weight, torch.as_tensor(spectrum, dtype=weight.dtype))


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(FLAT),
    st.integers(1, 40),
    st.integers(1, 40),
    st.floats(5, 300),
    st.integers(0, 9),
)
def test_a_flat_spectrum_is_answered_as_before(method, few, many, fwhm, seed):
    source, target = _bands(few, fwhm=fwhm, seed=seed), _bands(many, 450, 2000, fwhm=20)
    weight = _weight(few)
    adapted = adapt_bands(weight, source, target, method).weight
    assert adapted.shape == (5, many, 3, 2)
    torch.testing.assert_close(
        _answer(adapted, np.full(many, 0.3)), _answer(weight, np.full(few, 0.3))
    )


@pytest.mark.parametrize("method", METHODS)
def test_the_same_bands_keep_their_weights(method):
    bands, weight = _bands(7), _weight(7)
    if method != "mean":
        torch.testing.assert_close(adapt_bands(weight, bands, bands, method).weight, weight)
    made = adapt_bands(weight, bands, bands)
    assert made.method == "same"
    assert made.weight is weight
    assert made.unmatched == ()


@pytest.mark.parametrize("method", ["overlap", "nearest", "name"])
def test_shuffled_bands_shuffle_the_weights(method):
    bands, weight = _bands(9), _weight(9)
    order = np.random.default_rng(3).permutation(9)
    shuffled = Bands(
        9,
        tuple(bands.wavelengths[k] for k in order),
        bands.fwhm,
        tuple(bands.names[k] for k in order),
    )
    for chosen in (method, "auto"):
        adapted = adapt_bands(weight, bands, shuffled, chosen).weight
        torch.testing.assert_close(adapted, weight[:, order.tolist()])


@pytest.mark.parametrize("method", ["overlap", "nearest"])
def test_a_smooth_spectrum_is_answered_alike_on_a_finer_sensor(method):
    source, target = _bands(20, 500, 2300, fwhm=95), _bands(200, 450, 2350, fwhm=10)
    weight = _weight(20)

    def reflectance(bands):
        return 0.3 + 0.2 * np.sin(np.array(bands.wavelengths) / 700)

    before = _answer(weight, reflectance(source))
    after = _answer(adapt_bands(weight, source, target, method).weight, reflectance(target))
    assert (after - before).norm() < 0.02 * before.norm()


def test_overlap_is_the_integral_of_the_responses():
    at = torch.linspace(0, 2000, 200_001, dtype=torch.float64)

    def gaussian(centre, fwhm):
        response = torch.exp(-4 * np.log(2) * ((at - centre) / fwhm) ** 2)
        return response / response.square().sum().sqrt()

    for distance, first, second in ((0, 30, 30), (0, 10, 80), (25, 30, 40), (90, 60, 100)):
        expected = (gaussian(1000, first) * gaussian(1000 + distance, second)).sum()
        found = response_overlap(*(torch.tensor([[float(v)]]) for v in (distance, first, second)))
        assert found.item() == pytest.approx(expected.item(), rel=1e-4)


def test_bands_without_a_counterpart_are_told():
    source = Bands(3, (500.0, 600.0, 2200.0), (30.0, 30.0, 30.0))
    target = Bands(3, (500.0, 610.0, 700.0), (30.0, 30.0, 30.0))
    for method in ("overlap", "nearest"):
        made = adapt_bands(_weight(3), source, target, method)
        assert made.unmatched == (2,)
    named = adapt_bands(
        _weight(2), Bands(2, names=("red", "nir")), Bands(3, names=("blue", "green", "red"))
    )
    assert (named.method, named.unmatched) == ("name", (1,))
    torch.testing.assert_close(named.weight[:, 2], _weight(2)[:, 0])
    assert not named.weight[:, :2].any()


def test_repeat_and_zero_by_hand():
    weight = _weight(3)
    three = Bands(3)
    six = adapt_bands(weight, three, Bands(6), "repeat").weight
    torch.testing.assert_close(six, torch.cat([weight, weight], 1) / 2)
    one = adapt_bands(weight, three, Bands(1), "repeat").weight
    torch.testing.assert_close(one, weight.sum(1, keepdim=True))
    more = adapt_bands(weight, three, Bands(5), "zero").weight
    torch.testing.assert_close(more[:, :3], weight)
    assert not more[:, 3:].any()
    torch.testing.assert_close(adapt_bands(weight, three, Bands(2), "zero").weight, weight[:, :2])


@pytest.mark.parametrize(
    "drop, expected",
    [((), "overlap"), (("fwhm",), "nearest"), (("wavelengths",), "name"),
     (("wavelengths", "names"), "repeat")],
)  # fmt: skip
def test_auto_uses_what_both_sides_know(drop, expected):
    source, target = _bands(4), _bands(6)
    poorer = Bands(6, **{k: None if k in drop else getattr(target, k)
                         for k in ("wavelengths", "fwhm", "names")})  # fmt: skip
    assert best_method(source, poorer) == expected
    assert adapt_bands(_weight(4), source, poorer).method == expected
    assert adapt_bands(_weight(4), source, poorer).weight.shape[1] == 6


@pytest.mark.parametrize(
    "arguments, said",
    [
        ({"count": 0}, "cannot have 0 bands"),
        ({"count": 10**9}, "cannot have 1000000000 bands"),
        ({"count": 2, "wavelengths": (500.0,)}, "2 bands have 1 wavelengths"),
        ({"count": 2, "wavelengths": (0.49, 2.2)}, "look.* like micrometres"),
        ({"count": 1, "fwhm": (0.03,)}, "look.* like micrometres"),
        ({"count": 2, "wavelengths": (500.0, float("nan"))}, "not positive lengths"),
        ({"count": 2, "wavelengths": (500.0, -600.0)}, "not positive lengths"),
        ({"count": 2, "names": ("a", "a")}, "same name"),
    ],
)
def test_descriptions_that_make_no_sense_are_refused(arguments, said):
    with pytest.raises(ModelError, match=said):
        Bands(**arguments)


def test_what_cannot_be_adapted_is_refused():
    weight = _weight(3)
    with pytest.raises(ModelError, match="'nearest'"):
        adapt_bands(weight, Bands(3), Bands(4), "nearst")
    with pytest.raises(ModelError, match="does not read 4 bands"):
        adapt_bands(weight, Bands(4), Bands(3))
    with pytest.raises(ModelError, match="needs the wavelengths"):
        adapt_bands(weight, Bands(3), _bands(4), "nearest")
    with pytest.raises(ModelError, match="needs the widths"):
        adapt_bands(weight, Bands(3, (400.0, 500.0, 600.0)), _bands(4), "overlap")
    with pytest.raises(ModelError, match="needs the names"):
        adapt_bands(weight, Bands(3), _bands(4), "name")
    with pytest.raises(ModelError, match="None of the bands x"):
        adapt_bands(weight, Bands(3, names=("x", "y", "z")), _bands(4), "name")


def test_the_type_is_kept_and_the_weight_is_left_alone():
    weight = _weight(3).bfloat16()
    before = weight.clone()
    assert adapt_bands(weight, Bands(3), Bands(7), "mean").weight.dtype == torch.bfloat16
    assert torch.equal(weight, before)


def test_a_scene_describes_its_bands_and_json_keeps_them():
    scene = make_scene(
        np.zeros((2, 3, 4), np.float32),
        wavelengths=[490.0, 665.0],
        fwhm=[65.0, np.nan],
        band_names=["B02", "B04"],
    )
    bands = Bands.of(scene)
    assert bands == Bands(2, (490.0, 665.0), None, ("B02", "B04"))
    assert Bands.from_json(bands.to_json()) == bands


@pytest.mark.parametrize("old, new", [(4, 9), (3, 8), (16, 16)])
def test_a_larger_kernel_answers_enlarged_patches_as_before(old, new):
    weight = _weight(3, kernel=(old, old))
    patch = torch.randn(2, 3, old, old, dtype=torch.float64)
    enlarged = torch.nn.functional.interpolate(patch, (new, new), mode="bilinear", antialias=True)
    torch.testing.assert_close(
        torch.einsum("ibhw,obhw->io", enlarged, resize_kernel(weight, (new, new))),
        torch.einsum("ibhw,obhw->io", patch, weight),
    )


def test_a_smaller_kernel_answers_patches_as_if_they_were_enlarged():
    weight = _weight(3, kernel=(16, 16))
    small = resize_kernel(weight, (4, 4))
    patch = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    enlarged = torch.nn.functional.interpolate(patch, (16, 16), mode="bilinear")
    torch.testing.assert_close(
        torch.einsum("ibhw,obhw->io", patch, small),
        torch.einsum("ibhw,obhw->io", enlarged, weight),
    )


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(FLAT),
    st.integers(1, 40),
    st.integers(1, 40),
    st.floats(5, 300),
    st.integers(0, 9),
)
def test_a_constant_table_stays_constant(method, few, many, fwhm, seed):
    """Each new band's vector is a mean of old ones."""
    source, target = _bands(few, fwhm=fwhm, seed=seed), _bands(many, 450, 2000, fwhm=20)
    vector = torch.randn(5, 1, dtype=torch.float64)
    adapted = adapt_bands(vector.expand(5, few), source, target, method, table=True).weight
    torch.testing.assert_close(adapted, vector.expand(5, many))
    table = _weight(few)
    mixed = adapt_bands(table, source, target, method, table=True).weight
    assert (mixed <= table.amax(1, keepdim=True) + 1e-9).all()
    assert (mixed >= table.amin(1, keepdim=True) - 1e-9).all()


def test_a_table_is_interpolated_and_a_layer_is_shared_out():
    old, new = Bands(2, (500.0, 600.0)), Bands(4, (500.0, 510.0, 590.0, 600.0))
    table = adapt_bands(_weight(2), old, new, table=True).weight
    torch.testing.assert_close(table, _weight(2)[:, [0, 0, 1, 1]])
    torch.testing.assert_close(adapt_bands(_weight(2), old, new).weight, table / 2)
    back = adapt_bands(table, new, old, table=True).weight
    torch.testing.assert_close(back, _weight(2))
    same = adapt_bands(_weight(2), old, old, "nearest", table=True).weight
    torch.testing.assert_close(same, _weight(2))


@pytest.mark.parametrize("axis", [0, 2, 3])
@pytest.mark.parametrize("table", [False, True])
def test_bands_may_be_on_any_axis(axis, table):
    source, target, weight = _bands(7), _bands(4, seed=2), _weight(7)
    expected = adapt_bands(weight, source, target, table=table)
    found = adapt_bands(weight.movedim(1, axis), source, target, table=table, axis=axis)
    torch.testing.assert_close(found.weight.movedim(axis, 1), expected.weight)
    assert found[1:] == expected[1:]
    with pytest.raises(ModelError, match="does not read 7 bands"):
        adapt_bands(weight.movedim(1, axis), source, target, table=table)


def test_a_number_for_each_band_is_adapted_too():
    gains = torch.tensor([1.0, 2.0, 3.0])
    found = adapt_bands(gains, Bands(3), Bands(6), "repeat", table=True, axis=0)
    assert found.weight.shape == (6,)
    torch.testing.assert_close(found.weight, gains.repeat(2))
