import numpy as np
import pytest
from sklearn import metrics as reference

from vitreous.tasks.image_metrics import average_precision, calibration_error, image_scores


def drawn(count=400, classes=7, seed=0):
    draw = np.random.default_rng(seed)
    truth = draw.integers(classes, size=count)
    scores = draw.normal(size=(count, classes))
    scores[np.arange(count), truth] += 1.2
    probabilities = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    return probabilities, truth, np.eye(classes)[truth]


def test_top_1_and_top_5_are_those_of_scikit_learn():
    probabilities, truth, targets = drawn()
    found = image_scores(probabilities, targets, list("abcdefg"), several=False)
    assert (
        found["top1"] == found["score"] == reference.top_k_accuracy_score(truth, probabilities, k=1)
    )
    assert found["top5"] == reference.top_k_accuracy_score(truth, probabilities, k=5)
    assert np.isclose(found["loss"], reference.log_loss(truth, probabilities))
    matrix = reference.confusion_matrix(truth, probabilities.argmax(1))
    assert found["confusion"] == matrix.tolist()
    rows = reference.precision_recall_fscore_support(truth, probabilities.argmax(1))
    for k, row in enumerate(found["per_class"]):
        assert np.allclose([row["precision"], row["recall"], row["f1"], row["support"]], [part[k] for part in rows])  # fmt: skip
    low, high = found["top1_ci"]
    assert low < found["top1"] < high and 0.06 < high - low < 0.13  # 2 x 1.96 sqrt(p (1 - p) / n)


def test_five_classes_have_no_top_5():
    probabilities, _, targets = drawn(classes=5)
    found = image_scores(probabilities, targets, list("abcde"), several=False)
    assert found["top5"] is None and found["top5_ci"] is None


def test_equal_probabilities_do_not_count_as_hits():
    found = image_scores(
        np.full((4, 6), 1 / 6), np.eye(6)[[5, 5, 5, 0]], list("abcdef"), several=False
    )
    assert found["top1"] == 0.25 and found["top5"] == 0.25


@pytest.mark.parametrize("ties", [False, True])
def test_average_precision_is_that_of_scikit_learn(ties):
    draw = np.random.default_rng(0)
    present = draw.random(300) < 0.2
    scores = draw.random(300) + 0.3 * present
    scores = scores.round(1) if ties else scores
    assert np.isclose(average_precision(scores, present), reference.average_precision_score(present, scores))  # fmt: skip
    assert average_precision(scores, np.zeros(300, bool)) is None


def test_several_labels():
    draw = np.random.default_rng(0)
    targets = (draw.random((250, 4)) < (0.5, 0.2, 0.1, 0.0)).astype(float)
    probabilities = np.clip(draw.random((250, 4)) * 0.6 + 0.4 * targets, 0, 1)
    found = image_scores(probabilities, targets, list("abcd"), several=True)
    own = [reference.average_precision_score(targets[:, k], probabilities[:, k]) for k in range(3)]
    assert np.isclose(found["map"], np.mean(own)) and found["score"] == found["map"]
    assert found["per_class"][3]["ap"] is None  # no image has it: it is left out of the mean
    guessed = probabilities >= 0.5
    assert np.isclose(found["f1"], reference.f1_score(targets, guessed, average="micro"))
    assert np.isclose(found["exact"], reference.accuracy_score(targets, guessed))
    tp, fp, fn, tn = found["confusion"][0]
    assert (tn, fp, fn, tp) == tuple(reference.confusion_matrix(targets[:, 0], guessed[:, 0]).ravel())  # fmt: skip
    low, high = found["map_ci"]
    assert low < found["map"] < high


def test_calibration_error_of_known_cases():
    right = np.array([True] * 8 + [False] * 2)
    assert np.isclose(calibration_error(np.full(10, 0.8), right), 0.0)
    assert np.isclose(calibration_error(np.full(10, 1.0), right), 0.2)
    mixed = np.array([0.9] * 5 + [0.3] * 5)
    assert np.isclose(calibration_error(mixed, np.array([True] * 5 + [False] * 5)), 0.5 * 0.1 + 0.5 * 0.3)  # fmt: skip


def test_few_images_have_finite_intervals():
    targets = np.array([[1, 0], [0, 0], [0, 0]])
    found = image_scores(np.full((3, 2), 0.3), targets, ["a", "b"], several=True)
    assert np.isfinite(found["map_ci"]).all()
