"""Edge-aware smoothing of probabilities: against plain loops, and what must hold whatever the numbers are."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vitreous.errors import ConfigError
from vitreous.inference.refine import domain_transform, guided_filter, potts, radii

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
    """The filter pixel by pixel, as the paper's equations read: a mean over all within a distance along the line."""
    classes, height, width = probabilities.shape
    valid = np.isfinite(guide).all(axis=0) & np.isfinite(probabilities).all(axis=0)
    out = probabilities.astype(np.float64)

    def distance(line, i, j):
        total = 0.0
        for k in np.arange(min(i, j), max(i, j)):
            here, after = line[k], line[k + 1]
            if not (valid[here] and valid[after]):
                return math.inf
            change = sum(abs(float(channel[after]) - float(channel[here])) for channel in guide)
            total += 1 + spatial / range * change
        return total

    rows, columns = np.arange(height), np.arange(width)
    lines = (
        [[(y, x) for x in columns] for y in rows],
        [[(y, x) for y in rows] for x in columns],
    )
    for i in np.arange(1, iterations + 1):
        sigma = spatial * math.sqrt(3) * 2 ** (iterations - i) / math.sqrt(4**iterations - 1)
        for direction in lines:
            before = out.copy()
            for line in direction:
                for k, place in enumerate(line):
                    near = [
                        other
                        for j, other in enumerate(line)
                        if valid[place] and distance(line, k, j) <= sigma * math.sqrt(3)
                    ]
                    for c in np.arange(classes):
                        if near:
                            out[c][place] = sum(before[c][other] for other in near) / len(near)
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
    # Whole pixels: a box of radius 13.6 has the pixels of one of radius 13.
    assert math.sqrt((found * places**2).sum() / found.sum()) == pytest.approx(9, rel=0.06)
    np.testing.assert_allclose(np.square(radii(9, 3)).sum() / 3, 81)


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


def naive_guided(probabilities, guide, radius, smoothness):
    """The guided filter square by square; a pixel takes the mean of what the squares around it say."""
    classes, height, width = probabilities.shape
    valid = np.isfinite(guide).all(axis=0) & np.isfinite(probabilities).all(axis=0)
    said = np.zeros((height, width, classes))
    count = np.zeros((height, width))
    for y, x in np.ndindex(height, width):
        rows = slice(max(0, y - radius), y + radius + 1)
        columns = slice(max(0, x - radius), x + radius + 1)
        inside = valid[rows, columns]
        if not valid[y, x] or not inside.any():
            continue
        signal = guide[:, rows, columns][:, inside].astype(np.float64)
        values = probabilities[:, rows, columns][:, inside].astype(np.float64)
        centre, level = signal.mean(axis=1), values.mean(axis=1)
        spread = np.cov(signal, bias=True).reshape(len(guide), -1) + smoothness * np.eye(len(guide))
        shared = (signal - centre[:, None]) @ (values - level[:, None]).T / inside.sum()
        slope = np.linalg.solve(spread, shared)
        whole = np.nan_to_num(guide[:, rows, columns], posinf=0).transpose(1, 2, 0)
        said[rows, columns] += level + (whole - centre) @ slope
        count[rows, columns] += 1
    found = np.maximum(said / np.maximum(count, 1)[..., None], 0).transpose(2, 0, 1)
    return np.where(valid, found / np.where(valid, found.sum(axis=0), 1), probabilities)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_guided_filter_equals_the_paper_square_by_square(channels):
    probabilities, guide = random_case(channels=channels)
    found = guided_filter(probabilities, guide, radius=2, smoothness=0.3)
    expected = naive_guided(probabilities, guide, radius=2, smoothness=0.3)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def naive_potts(probabilities, guide, strength, range, iterations):
    """Mean-field updates pixel by pixel."""
    height, width = guide.shape[1:]
    valid = np.isfinite(guide).all(axis=0) & np.isfinite(probabilities).all(axis=0)
    belief = probabilities.astype(np.float64)
    for _ in np.arange(iterations):
        before = belief.copy()
        for y, x in np.ndindex(height, width):
            if not valid[y, x]:
                continue
            odds = np.log(np.maximum(probabilities[:, y, x].astype(np.float64), 1e-6))
            for dy, dx in np.ndindex(3, 3):
                there = (y + dy - 1, x + dx - 1)
                inside = 0 <= there[0] < height and 0 <= there[1] < width
                if there == (y, x) or not inside or not valid[there]:
                    continue
                apart = sum((float(c[y, x]) - float(c[there])) ** 2 for c in guide)
                weight = math.exp(-apart / (2 * range**2)) / math.hypot(dy - 1, dx - 1)
                odds += strength * weight * before[:, there[0], there[1]]
            powers = np.exp(odds - odds.max())
            belief[:, y, x] = powers / powers.sum()
    return belief


def test_potts_equals_mean_field_updates_pixel_by_pixel():
    probabilities, guide = random_case()
    settings = {"strength": 1.5, "range": 1.2, "iterations": 3}
    found = potts(probabilities, guide, **settings)
    np.testing.assert_allclose(found, naive_potts(probabilities, guide, **settings), atol=5e-6)


@pytest.mark.parametrize(
    ("refine", "settings"),
    [(guided_filter, {"radius": 0, "smoothness": 1}), (potts, {"strength": 0, "range": 1})],
)
def test_filters_without_strength_change_nothing(refine, settings):
    probabilities, guide = random_case()
    np.testing.assert_allclose(refine(probabilities, guide, **settings), probabilities, atol=1e-6)


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
