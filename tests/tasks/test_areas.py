"""Areas of classes: a published example, a naive estimator, and what must hold whatever the numbers are."""

from __future__ import annotations

import math

import numpy as np
import pytest
from rasterio.transform import Affine

from tiny_scene import NANOMETRES, tiny_cube, tiny_labels
from vitreous.data.roles import Blocks
from vitreous.scenes.cube import make_scene
from vitreous.tasks.areas import (
    Placed,
    area_figures,
    common_area,
    pixel_area,
    stratified_areas,
)
from vitreous.tasks.metrics import Part, confusion_of

# Olofsson et al. (2014), section 5: rows are the map, columns the reference; pixels of 30 m.
SAMPLE = [[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]]
PIXELS = [200_000, 150_000, 3_200_000, 6_450_000]


def test_the_papers_example():
    found = area_figures(np.transpose(SAMPLE).tolist(), PIXELS, 900.0)
    assert (found["unit"], found["assessed"]) == ("ha", 1.0)
    estimates = [row["estimate"] for row in found["classes"]]
    margins = [row["high"] - row["estimate"] for row in found["classes"]]
    np.testing.assert_allclose(estimates, [21_158, 11_686, 285_770, 581_386], atol=1)
    np.testing.assert_allclose(margins, [6_158, 3_756, 15_510, 16_282], atol=2)
    assert [row["mapped"] for row in found["classes"]] == [18_000, 13_500, 288_000, 580_500]


def naive(confusion, mapped):
    """The estimator class by class and stratum by stratum; every stratum has test pixels."""
    total = sum(mapped)
    areas, errors = [], []
    for k in range(len(mapped)):
        share = variance = 0.0
        for i in range(len(mapped)):
            n = sum(confusion[j][i] for j in range(len(mapped)))
            p = confusion[k][i] / n
            share += mapped[i] / total * p
            variance += (mapped[i] / total) ** 2 * p * (1 - p) / (n - 1)
        areas.append(share * total)
        errors.append(math.sqrt(variance) * total)
    return areas, errors


def test_it_equals_the_formula_written_out():
    rng = np.random.default_rng(0)
    confusion = rng.integers(1, 40, (5, 5))
    mapped = rng.integers(100, 10_000, 5)
    found = stratified_areas(confusion, mapped)
    areas, errors = naive(confusion.tolist(), mapped.tolist())
    np.testing.assert_allclose(found.area, areas)
    np.testing.assert_allclose(found.error, errors)
    assert found.area.sum() == pytest.approx(mapped.sum())


def test_a_perfect_map_is_its_own_estimate():
    found = stratified_areas(np.diag([10, 20, 30]), [5.0, 6.0, 7.0])
    np.testing.assert_allclose(found.area, [5, 6, 7])
    np.testing.assert_array_equal(found.error, 0)


@pytest.mark.parametrize("column", [[0, 0, 0], [0, 1, 0]])
def test_mapped_classes_without_test_pixels_are_not_assessed(column):
    confusion = np.diag([10, 20, 0])
    confusion[:, 2] = column
    found = stratified_areas(confusion, [30.0, 60.0, 10.0])
    assert found.assessed == pytest.approx(0.9)
    np.testing.assert_allclose(found.area, [30, 60, 0])


def test_nothing_tested_estimates_nothing():
    found = area_figures([[0, 0], [0, 0]], [4, 5], None)
    assert found["assessed"] == 0
    assert found["classes"][0] == {"mapped": 4.0, "estimate": None, "low": None, "high": None}


def test_a_class_that_is_not_tested_is_not_estimated_at_nothing():
    found = area_figures([[9, 0, 1], [0, 8, 0], [0, 0, 0]], [50, 40, 10], None)
    assert found["classes"][2]["estimate"] is None
    assert found["classes"][1]["estimate"] is not None


def test_areas_are_never_negative():
    found = area_figures([[9, 1], [1, 9]], [1, 10_000], None)
    assert min(row["low"] for row in found["classes"]) >= 0


def scene_on(crs, *sides):
    place = {} if crs is None else {"crs": crs, "transform": Affine(*sides)}
    return make_scene(tiny_cube(tiny_labels()), wavelengths=NANOMETRES, unit="reflectance", **place)


@pytest.mark.parametrize(
    ("crs", "sides", "expected"),
    [
        ("EPSG:32633", (20, 0, 4e5, 0, -10, 5e6), 200.0),
        ("EPSG:32633", (12, -16, 4e5, -16, -12, 5e6), 400.0),  # rotated: 20 m
        ("EPSG:2277", (10, 0, 3e6, 0, -10, 1e7), 100 * 0.3048006096012192**2),  # feet
        ("EPSG:4326", (1e-4, 0, 15, 0, -1e-4, 45), None),  # degrees have no size
        (None, (), None),
    ],
)
def test_the_area_of_a_pixel_follows_from_its_crs(crs, sides, expected):
    assert pixel_area(scene_on(crs, *sides)) == (
        None if expected is None else pytest.approx(expected)
    )


def test_scenes_of_different_pixels_have_no_common_area():
    assert common_area([100.0, 100.00001]) == 100.0
    assert common_area([100.0, 400.0]) is None
    assert common_area([100.0, None]) is None
    assert common_area([]) is None


def sampled(places, together, side=20):
    """Test pixels: truth, map and block of each. Together, a block is a field of one class that errs as a whole or not."""
    rng = np.random.default_rng(0)
    block = np.repeat(np.arange(places), side)
    if together:
        truth = rng.integers(1, 4, places)[block]
        wrong = (rng.random(places) < 0.2)[block]
    else:
        truth = rng.integers(1, 4, block.size)
        wrong = rng.random(block.size) < 0.2
    return truth, np.where(wrong, truth % 3 + 1, truth), block


def bootstrapped(truth, mapped, block, pixels, count=800):
    """The deviation of the estimates of resampled blocks: ``(classes,)``."""
    rng = np.random.default_rng(1)
    whole = np.array(
        [confusion_of(truth[block == b], mapped[block == b], 3)[:, :3] for b in np.unique(block)]
    )
    drawn = rng.integers(0, len(whole), (count, len(whole)))
    return np.std([stratified_areas(whole[own].sum(axis=0), pixels).area for own in drawn], axis=0)


@pytest.mark.parametrize("together", [True, False])
def test_intervals_measure_the_variation_between_blocks(together):
    pixels = np.array([500.0, 300.0, 200.0])
    truth, mapped, block = sampled(200, together)
    confusion = confusion_of(truth, mapped, 3)[:, :3]
    placed = Placed.of([Part(truth, mapped, Blocks(block, 8))])
    found = stratified_areas(confusion, pixels, placed)
    independent = stratified_areas(confusion, pixels)
    np.testing.assert_allclose(found.area, independent.area)
    np.testing.assert_allclose(found.error, bootstrapped(truth, mapped, block, pixels), rtol=0.15)
    ratio = found.error / independent.error
    assert (ratio > 3).all() if together else np.allclose(ratio, 1, atol=0.2)


def test_blocks_of_one_pixel_are_independent_pixels():
    truth, mapped, _ = sampled(100, together=False)
    confusion, pixels = confusion_of(truth, mapped, 3)[:, :3], np.array([5.0, 3.0, 2.0])
    placed = Placed.of([Part(truth, mapped)])
    assert placed.places == 2000
    expected = stratified_areas(confusion, pixels).error
    np.testing.assert_allclose(
        stratified_areas(confusion, pixels, placed).error, expected, rtol=1e-2
    )


def test_one_place_tells_nothing_and_scenes_are_places():
    truth, mapped, block = sampled(2, together=False)
    parts = [
        Part(truth[block == b], mapped[block == b], Blocks(block[block == b], 8)) for b in (0, 1)
    ]
    confusion = confusion_of(truth, mapped, 3)[:, :3].tolist()
    both = area_figures(confusion, [5, 3, 2], None, Placed.of(parts))
    assert both["places"] == 2
    assert all(row["low"] <= row["estimate"] <= row["high"] for row in both["classes"])
    one = Placed.of([Part(truth, mapped, Blocks(np.zeros_like(block), 8))])
    alone = area_figures(confusion, [5, 3, 2], None, one)
    assert alone["places"] == 1
    assert [row["high"] for row in alone["classes"]] == [None] * 3
    assert alone["classes"][0]["estimate"] == pytest.approx(both["classes"][0]["estimate"])


def test_pixels_without_a_prediction_are_in_no_stratum():
    part = Part(np.array([1, 2, 2]), np.array([1, 0, 2]), Blocks(np.array([4, 5, 6]), 8))
    placed = Placed.of([part])
    assert (placed.places, placed.pixels.tolist()) == (2, [1, 1])
