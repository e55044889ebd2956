"""Edge-aware smoothing of probabilities: against plain loops, and what must hold whatever the numbers are."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vitreous.errors import ConfigError
from vitreous.inference.refine import domain_transform, widths

SETTINGS = {"spatial": 4.0, "range": 0.8, "iterations": 3}


def random_case(seed=0, classes=3, height=9, width=12, channels=2, holes=True):
    rng = np.random.default_rng(seed)
    odds = rng.random((classes, height, width))
    probabilities = (odds / odds.sum(axis=0)).astype(np.float32)
    guide = rng.normal(size=(channels, height, width)).astype(np.float32)
    if holes:
        guide[0, 2, 3:6] = np.nan
        probabilities[:, 6, 0] = np.nan
        guide[:, -1, -1] = np.inf
    return probabilities, guide


def naive(probabilities, guide, spatial, range, iterations):
    """The filter pixel by pixel, as the paper's equations read."""
    classes, height, width = probabilities.shape
    out = probabilities.astype(np.float64)
    valid = np.isfinite(guide).all(axis=0) & np.isfinite(probabilities).all(axis=0)

    def sweep(places, sigma):
        for here, before in places:
            if not (valid[here] and valid[before]):
                continue
            change = sum(abs(float(channel[here]) - float(channel[before])) for channel in guide)
            distance = 1 + spatial / range * change
            weight = math.exp(-math.sqrt(2) / sigma) ** distance
            for k in np.arange(classes):
                out[k][here] = (1 - weight) * out[k][here] + weight * out[k][before]

    rows, columns = np.arange(height), np.arange(width)
    for i in np.arange(1, iterations + 1):
        sigma = spatial * math.sqrt(3) * 2 ** (iterations - i) / math.sqrt(4**iterations - 1)
        for y in rows:
            sweep([((y, x), (y, x - 1)) for x in columns[1:]], sigma)
            sweep([((y, x), (y, x + 1)) for x in columns[-2::-1]], sigma)
        for x in columns:
            sweep([((y, x), (y - 1, x)) for y in rows[1:]], sigma)
            sweep([((y, x), (y + 1, x)) for y in rows[-2::-1]], sigma)
    return out


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("holes", [False, True])
def test_it_equals_the_paper_pixel_by_pixel(iterations, holes):
    probabilities, guide = random_case(holes=holes)
    settings = {**SETTINGS, "iterations": iterations}
    found = domain_transform(probabilities, guide, **settings)
    expected = naive(probabilities, guide, **settings)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert np.nanmax(np.abs(found - probabilities)) > 0.05


def test_probabilities_still_sum_to_one():
    probabilities, guide = random_case(seed=1, classes=7)
    found = domain_transform(probabilities, guide, **SETTINGS)
    valid = np.isfinite(found[0])
    np.testing.assert_allclose(found[:, valid].sum(axis=0), 1, atol=1e-6)
    assert found.dtype == np.float32
    assert (found[:, valid] >= 0).all()


def test_an_even_guide_smooths_by_distance_alone():
    probabilities, _ = random_case(holes=False)
    even = np.full((1, *probabilities.shape[1:]), 7, np.float32)
    found = domain_transform(probabilities, even, **SETTINGS)
    other = domain_transform(probabilities, np.zeros((5, *even.shape[1:]), np.float32), **SETTINGS)
    unguided = domain_transform(probabilities, even, spatial=4, range=np.inf, iterations=3)
    np.testing.assert_array_equal(found, other)
    np.testing.assert_array_equal(found, unguided)


def test_its_spread_is_the_one_asked_for():
    impulse = np.zeros((1, 1, 401), np.float32)
    impulse[0, 0, 200] = 1
    found = domain_transform(impulse, np.zeros_like(impulse), spatial=9, range=1, iterations=3)[
        0, 0
    ]
    places = np.arange(401) - 200
    assert math.sqrt((found * places**2).sum() / found.sum()) == pytest.approx(9, rel=0.02)
    np.testing.assert_allclose(np.square(widths(9, 3)).sum(), 81)


@pytest.mark.parametrize("change", [{"spatial": 0}, {"range": 1e-6}])
def test_no_strength_changes_nothing(change):
    probabilities, guide = random_case()
    found = domain_transform(probabilities, guide, **{**SETTINGS, **change})
    np.testing.assert_allclose(found, probabilities, atol=1e-7)


def test_nothing_passes_an_edge_or_invalid_pixels():
    probabilities = np.zeros((2, 6, 20), np.float32)
    probabilities[0, :, :10], probabilities[1, :, 10:] = 1, 1
    edge = np.where(np.arange(20) < 10, 0, 100).astype(np.float32) * np.ones((1, 6, 1), np.float32)
    found = domain_transform(probabilities, edge, spatial=8, range=0.5, iterations=3)
    np.testing.assert_allclose(found, probabilities, atol=1e-6)
    wall = np.zeros((1, 6, 20), np.float32)
    wall[0, :, 9] = np.nan
    found = domain_transform(probabilities, wall, spatial=8, range=0.5, iterations=3)
    np.testing.assert_array_equal(found[:, :, :9], probabilities[:, :, :9])


def test_what_invalid_pixels_hold_does_not_matter():
    probabilities, guide = random_case()
    invalid = ~np.isfinite(guide).all(axis=0)
    other = np.where(invalid, np.float32(1e30), probabilities)
    found, again = (domain_transform(p, guide, **SETTINGS) for p in (probabilities, other))
    np.testing.assert_array_equal(found[:, ~invalid], again[:, ~invalid])
    np.testing.assert_array_equal(again[:, invalid], other[:, invalid])


def test_a_transposed_scene_gives_a_transposed_result_where_the_guide_is_even():
    """Rows come before columns; without edges that order does not matter."""
    probabilities, _ = random_case(holes=False)
    even = np.zeros((1, *probabilities.shape[1:]), np.float32)
    found = domain_transform(probabilities, even, **SETTINGS)
    turned = domain_transform(probabilities.transpose(0, 2, 1), even.transpose(0, 2, 1), **SETTINGS)
    np.testing.assert_allclose(turned.transpose(0, 2, 1), found, atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"spatial": -1},
        {"spatial": math.nan},
        {"spatial": math.inf},
        {"range": 0},
        {"iterations": 0},
    ],
)
def test_settings_out_of_range_are_named(change):
    probabilities, guide = random_case()
    with pytest.raises(ConfigError, match=f"{next(iter(change))} is"):
        domain_transform(probabilities, guide, **{**SETTINGS, **change})


@pytest.mark.parametrize("shape", [(3, 1, 1), (3, 1, 5), (3, 5, 1), (3, 0, 4)])
def test_small_windows(shape):
    found = domain_transform(
        np.ones(shape, np.float32), np.zeros((1, *shape[1:]), np.float32), **SETTINGS
    )
    np.testing.assert_array_equal(found, np.ones(shape))
