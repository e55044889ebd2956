"""Verdicts know their uncertainty."""

import numpy as np
import pytest

from vitreous.catalog.claims import claim, conclusion, exact, interval, paired, scores


def test_interval_covers_the_mean_as_often_as_it_says():
    draw = np.random.default_rng(0)
    inside = 0
    for _ in range(1000):
        low, high = interval([*draw.normal(3, 2, 5)])
        inside += low <= 3 <= high
    assert 0.93 < inside / 1000 < 0.97


def test_interval_by_hand():
    # Mean 2, deviation 1, 3 seeds; t(0.975, 2) = 4.3027
    low, high = interval([1.0, 2.0, 3.0])
    assert (low, high) == (pytest.approx(2 - 2.4841, abs=1e-3), pytest.approx(2 + 2.4841, abs=1e-3))
    assert interval([1.0]) == (None, None)


@pytest.mark.parametrize(
    ("effects", "bounds", "expected"),
    [
        ([2.0, 2.1, 1.9], {"at_least": 1.0}, "holds"),
        ([0.5, 0.6, 0.4], {"at_least": 1.0}, "does not hold"),
        ([0.0, 1.0, 2.0], {"at_least": 1.0}, "not decided"),
        ([5.0], {"at_least": 1.0}, "not decided"),  # one seed knows nothing of its spread
        ([0.5, 0.6, 0.4], {"at_most": 1.0}, "holds"),
        ([2.0, 2.1, 1.9], {"at_most": 1.0}, "does not hold"),
        ([0.0, 1.0, 2.0], {"at_most": 1.0}, "not decided"),
        ([0.0, 1.0, 2.0], {}, None),
        ([1.0, 1.0, 1.0], {"at_least": 1.0}, "holds"),
        ([1.0, 1.0, 1.0], {"at_most": 1.0}, "holds"),
    ],
)
def test_verdict(effects, bounds, expected):
    assert claim("x", effects, **bounds).verdict == expected


def test_exact_values_need_no_seeds():
    assert exact("x", 1.0, at_least=1.0).verdict == "holds"
    assert exact("x", 1.01, at_most=1.0).verdict == "does not hold"
    assert exact("Share of the weights", 3.4, at_most=2, unit="%").sentence == (
        "Share of the weights: 3.4 % (required: at most 2.0): does not hold."
    )


def test_sentence():
    found = claim("PSNR, ours vs bicubic", [0.6, 0.7, 0.8], at_least=0.5, unit="dB", digits=2)
    assert found.sentence == (
        "PSNR, ours vs bicubic: +0.70 dB (95 % CI +0.45 to +0.95, 3 seeds; required: at least +0.50): "
        "not decided."
    )
    assert claim("x", [0.1]).sentence == "x: +0.1 points (1 seed)."
    assert conclusion([claim("x", [0.1])], "And this.") == "x: +0.1 points (1 seed). And this."


def test_pairs_meet_on_the_same_seed_whatever_the_order():
    records = [
        {"system": "a", "seed": 0, "labels": 5, "oa": 0.8},
        {"system": "b", "seed": 1, "labels": 5, "oa": 0.5},
        {"system": "b", "seed": 0, "labels": 5, "oa": 0.7},
        {"system": "a", "seed": 1, "labels": 5, "oa": 0.9},
        {"system": "a", "seed": 1, "labels": 10, "oa": 0.0},
    ]
    assert paired(records, "a", "b", "oa", labels=5) == pytest.approx([10, 40])
    with pytest.raises(ValueError, match="more than once"):
        scores(records, "a", "oa")
    with pytest.raises(ValueError, match="not paired"):
        paired(records, "a", "b", "oa", labels=10)
    with pytest.raises(ValueError):
        paired([], "a", "b")


def test_pairing_removes_what_seeds_share():
    draw = np.random.default_rng(0)
    luck = draw.normal(0, 10, 5)
    records = [
        {
            "system": system,
            "seed": seed,
            "accuracy": (luck[seed] + gain + draw.normal(0, 0.1)) / 100,
        }
        for system, gain in (("ours", 1.0), ("theirs", 0.0))
        for seed in range(5)
    ]
    assert claim("x", paired(records, "ours", "theirs"), at_least=0.0).verdict == "holds"
