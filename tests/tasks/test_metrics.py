"""Metrics: against scikit-learn, and the bootstrap against resampling pixels one by one."""

import json
import time
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from vitreous.data.roles import Blocks
from vitreous.errors import VitreousError
from vitreous.tasks.metrics import confusion_of, oa_aa_kappa, scores


def maps(seed: int, count: int = 400, num_classes: int = 5, missing: float = 0.0):
    """Truth and a map that is right about two times in three."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(1, num_classes + 1, count)
    guess = rng.integers(1, num_classes + 1, count)
    predicted = np.where(rng.random(count) < 0.66, truth, guess)
    return truth, np.where(rng.random(count) < missing, 0, predicted)


def names(num_classes: int) -> list[str]:
    return [f"class {k}" for k in range(1, num_classes + 1)]


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(2, 60),
    num_classes=st.integers(2, 7),
    missing=st.sampled_from([0.0, 0.3]),
)
def test_agrees_with_scikit_learn(seed, count, num_classes, missing):
    truth, predicted = maps(seed, count, num_classes, missing)
    result = scores(truth, predicted, names(num_classes), bootstrap=1)
    labels = np.arange(1, num_classes + 1)
    assert result["oa"] == pytest.approx(reference.accuracy_score(truth, predicted))
    present = np.unique(truth)
    recalls = reference.recall_score(
        truth, predicted, labels=present, average=None, zero_division=0
    )
    assert result["aa"] == pytest.approx(recalls.mean())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # undefined where there is one class: nan, and a warning
        kappa = reference.cohen_kappa_score(truth, predicted)
    assert result["kappa"] == pytest.approx(np.nan_to_num(kappa), abs=1e-12)
    square = reference.confusion_matrix(truth, predicted, labels=np.append(labels, 0))
    np.testing.assert_array_equal(result["confusion"], square[:-1, :-1])
    np.testing.assert_array_equal(result["unclassified"], square[:-1, -1])
    producer, user, f1, _ = reference.precision_recall_fscore_support(
        predicted, truth, labels=labels, zero_division=np.nan
    )
    # precision and recall of the roles exchanged are the producer's and the user's accuracy
    for k, row in enumerate(result["per_class"]):
        assert (row["value"], row["name"]) == (k + 1, f"class {k + 1}")
        assert row["support"] == (truth == k + 1).sum()
        for key, expected in (("producer", producer[k]), ("user", user[k])):
            assert (row[key] is None) == np.isnan(expected)
            assert row[key] is None or row[key] == pytest.approx(expected)
        if row["support"]:
            assert row["f1"] == pytest.approx(f1[k])


def test_perfect_and_hopeless_maps():
    truth = np.repeat([1, 2, 3], [10, 20, 30])
    perfect = scores(truth, truth, names(3))
    for key in ("oa", "aa", "kappa"):
        assert perfect[key] == 1
        assert perfect[f"{key}_ci"] == [1, 1]
    constant = scores(truth, np.full(60, 3), names(3))
    assert constant["oa"] == 0.5
    assert constant["aa"] == pytest.approx(1 / 3)
    assert constant["kappa"] == 0
    nothing = scores(truth, np.zeros(60, dtype=int), names(3))
    assert (nothing["oa"], nothing["aa"], nothing["kappa"]) == (0, 0, 0)
    assert nothing["unclassified"] == [10, 20, 30]


def test_missing_predictions_are_errors():
    truth, predicted = maps(0)
    right = np.flatnonzero(truth == predicted)[:40]
    fewer = predicted.copy()
    fewer[right] = 0
    full, partial = scores(truth, predicted, names(5)), scores(truth, fewer, names(5))
    assert partial["oa"] == pytest.approx(full["oa"] - 40 / 400)
    assert partial["kappa"] < full["kappa"]
    assert [c["support"] for c in partial["per_class"]] == [c["support"] for c in full["per_class"]]


def test_renumbering_classes_and_shuffling_pixels_change_nothing():
    truth, predicted = maps(1)
    order = np.random.default_rng(0).permutation(400)
    to = np.array([0, 3, 5, 1, 2, 4])
    one = scores(truth, predicted, names(5))
    other = scores(to[truth][order], to[predicted][order], names(5))
    for key in ("oa", "aa", "kappa"):
        assert other[key] == pytest.approx(one[key])


def test_untested_classes_do_not_count():
    truth, predicted = maps(2)
    without = scores(truth, predicted, names(5))
    more = scores(truth, predicted, names(9))
    for key in ("oa", "aa", "kappa", "oa_ci", "aa_ci", "kappa_ci"):
        assert more[key] == pytest.approx(without[key])
    absent = more["per_class"][8]
    assert (absent["producer"], absent["user"], absent["f1"], absent["support"]) == (
        None,
        None,
        None,
        0,
    )
    json.dumps(more, allow_nan=False)


def test_one_class_in_truth_and_map_shows_nothing_beyond_chance():
    assert oa_aa_kappa(confusion_of(np.ones(5, int), np.ones(5, int), 2)) == (1, 1, 0)


def test_bootstrap_equals_resampling_pixels():
    truth, predicted = maps(3, 300, 4, missing=0.05)
    result = scores(truth, predicted, names(4), bootstrap=4000)
    rng = np.random.default_rng(1)
    naive = []
    for _ in range(1500):
        draw = rng.integers(0, truth.size, truth.size)
        naive.append(oa_aa_kappa(confusion_of(truth[draw], predicted[draw], 4)))
    expected = np.percentile(naive, [2.5, 97.5], axis=0).T
    width = expected[:, 1] - expected[:, 0]
    for key, interval, scale in zip(("oa", "aa", "kappa"), expected, width, strict=True):
        assert result[f"{key}_ci"] == pytest.approx(interval, abs=0.08 * scale)
        assert result[f"{key}_ci"][0] < result[key] < result[f"{key}_ci"][1]


def test_intervals_shrink_with_the_square_root_of_pixels():
    truth, predicted = maps(4)
    few = scores(truth, predicted, names(5))["oa_ci"]
    many = scores(np.tile(truth, 16), np.tile(predicted, 16), names(5))["oa_ci"]
    assert (few[1] - few[0]) / (many[1] - many[0]) == pytest.approx(4, rel=0.15)


def test_seed_reproduces_the_intervals():
    truth, predicted = maps(5)
    one, again, other = (scores(truth, predicted, names(5), seed=s) for s in (1, 1, 2))
    assert one == again
    assert one["oa_ci"] != other["oa_ci"]


def test_bootstrap_takes_a_moment_whatever_the_number_of_pixels():
    truth, predicted = maps(6, 200_000, 20)
    start = time.process_time()
    scores(truth, predicted, names(20))
    assert time.process_time() - start < 1.0  # measured 0.1


@pytest.mark.parametrize(
    ("truth", "predicted", "message"),
    [
        ([1, 2], [1], "2 true classes for 1"),
        ([0, 1], [1, 1], "true classes from 0"),
        ([1, 4], [1, 1], "to 4 of 3"),
        ([1, 2], [1, 4], "predicted classes"),
        ([1, 2], [-1, 2], "predicted classes from -1"),
    ],
)
def test_impossible_classes_are_refused(truth, predicted, message):
    with pytest.raises(ValueError, match=message):
        scores(np.array(truth), np.array(predicted), names(3))


def test_no_test_pixels_is_said():
    with pytest.raises(VitreousError, match="no labelled pixels"):
        scores(np.array([], dtype=int), np.array([], dtype=int), names(3))
    with pytest.raises(ValueError, match="0 bootstrap"):
        scores(np.array([1]), np.array([1]), names(3), bootstrap=0)


# -- intervals that resample blocks -----------------------------------------------------------------------


def blocks_of(numbers, side=5):
    return Blocks(np.asarray(numbers), side)


def width(found, key="oa"):
    low, high = found[f"{key}_ci"]
    return high - low


def test_blocks_of_one_pixel_each_give_the_interval_of_pixels():
    truth, predicted = maps(3, 600, 4, missing=0.05)
    pixels = scores(truth, predicted, names(4), bootstrap=4000)
    single = scores(truth, predicted, names(4), blocks=blocks_of(np.arange(600)), bootstrap=4000)
    for key in ("oa", "aa", "kappa"):
        assert single[f"{key}_ci"] == pytest.approx(pixels[f"{key}_ci"], abs=0.1 * width(pixels))


def test_pixels_in_random_blocks_are_independent_in_the_limit():
    truth, predicted = maps(5, 20_000, 4)
    random = np.random.default_rng(0).integers(0, 400, 20_000)
    pixels = scores(truth, predicted, names(4))
    found = scores(truth, predicted, names(4), blocks=blocks_of(random))
    assert width(found) == pytest.approx(width(pixels), rel=0.15)


def test_duplicated_pixels_do_not_narrow_the_interval():
    truth, predicted = maps(4, 200)
    one = scores(truth, predicted, names(5), blocks=blocks_of(np.arange(200)))
    many = scores(
        np.repeat(truth, 16), np.repeat(predicted, 16), names(5),
        blocks=blocks_of(np.repeat(np.arange(200), 16)),
    )  # fmt: skip
    for key in ("oa_ci", "aa_ci", "kappa_ci"):
        assert many[key] == pytest.approx(one[key])


def test_blocks_equal_resampling_them_one_by_one():
    """Fields that are right or wrong as a whole, of different sizes, some pixels without a prediction."""
    rng = np.random.default_rng(0)
    block = np.sort(rng.integers(0, 30, 900))
    truth, wrong = rng.integers(1, 4, 30)[block], (rng.random(30) < 0.3)[block]
    predicted = np.where(wrong, truth % 3 + 1, truth)
    predicted[rng.random(900) < 0.03] = 0
    found = scores(truth, predicted, names(3), blocks=blocks_of(block * 7), bootstrap=4000)
    naive = []
    members = [np.flatnonzero(block == k) for k in np.unique(block)]
    for _ in range(1500):
        draw = np.concatenate([members[k] for k in rng.integers(0, len(members), len(members))])
        naive.append(oa_aa_kappa(confusion_of(truth[draw], predicted[draw], 3)))
    expected = np.percentile(naive, [2.5, 97.5], axis=0).T
    for key, interval in zip(("oa", "aa", "kappa"), expected, strict=True):
        assert found[f"{key}_ci"] == pytest.approx(interval, abs=0.08 * np.ptp(interval))
    assert width(found) > 3 * width(scores(truth, predicted, names(3)))


def test_the_method_is_recorded_and_one_block_gives_no_interval():
    truth, predicted = maps(0, 100)
    found = scores(truth, predicted, names(5), blocks=blocks_of(np.arange(100) // 10, 15))
    assert found["intervals"] == {
        "method": "block bootstrap", "resamples": 1000, "blocks": 10, "block_size": 15,
    }  # fmt: skip
    single = scores(truth, predicted, names(5), blocks=blocks_of(np.zeros(100, int)))
    assert [single[f"{key}_ci"] for key in ("oa", "aa", "kappa")] == [None] * 3
    assert single["oa"] == found["oa"]
    assert scores(truth, predicted, names(5))["intervals"]["method"] == "pixel bootstrap"


def test_many_blocks_and_classes_take_a_moment():
    truth, predicted = maps(6, 200_000, 60)
    blocks = blocks_of(np.sort(np.random.default_rng(0).integers(0, 4096, 200_000)))
    start = time.process_time()
    scores(truth, predicted, names(60), blocks=blocks)
    assert time.process_time() - start < 3.0
