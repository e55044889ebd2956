"""Accuracy of classified images: top-1 and top-5, average precision for several labels, and calibration.

Average precision is the area below the steps of precision over recall (Everingham et al., 2015, without interpolation);
the expected calibration error has 15 bins of equal width (Guo et al., 2017). Intervals are percentiles of a bootstrap
over images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vitreous.inference.recognizer import THRESHOLD
from vitreous.tasks.metrics import INTERVAL

BINS = 15
TOP = 5
RESAMPLES = 1000
LEAST = 1e-12  # of a probability, in logarithms
CHUNK = 2**22  # numbers of a resampling at a time

Floats = npt.NDArray[np.floating[Any]]


def image_scores(
    probabilities: Floats,
    targets: Floats,
    class_names: Sequence[str],
    *,
    several: bool,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure predicted classes against true ones.

    Args:
        probabilities: ``(images, classes)``.
        targets: ``(images, classes)``, 1 where an image has a class.
        class_names: of the classes.
        several: whether images may have several labels.
        seed: of the intervals.

    Returns:
        With one label ``top1``, ``top5`` (None of five classes or fewer), ``top1_ci``, ``top5_ci``, ``confusion`` (rows
        truth, columns predictions); with several ``map``, ``map_ci``, ``f1`` (micro, at a probability of 0.5),
        ``exact`` (share of images with all labels right) and ``confusion`` (per class the images that are right with
        it, wrong with it, wrong without it, right without it). Both have ``loss``, ``ece``, ``images``, ``intervals``,
        ``per_class``, and ``score``, which is ``top1`` or ``map``.
    """
    targets = np.asarray(targets, dtype=np.float64)
    probabilities = np.asarray(probabilities, dtype=np.float64)
    made = _several if several else _single
    figures = made(probabilities, targets, list(class_names), seed)
    return {
        "score": figures["map" if several else "top1"],
        **figures,
        "images": len(targets),
        "intervals": {"method": "image bootstrap", "resamples": RESAMPLES},
    }


def _single(probabilities: Floats, targets: Floats, names: list[str], seed: int) -> dict[str, Any]:
    truth, predicted = targets.argmax(1), probabilities.argmax(1)
    rank = _ranks(probabilities, truth)
    count, classes = targets.shape
    hits = {1: int((rank < 1).sum()), TOP: int((rank < TOP).sum())}
    generator = np.random.default_rng(seed)
    # Drawing images anew and counting hits is a binomial draw.
    intervals = {
        top: _interval(generator.binomial(count, hit / count, RESAMPLES) / count)
        for top, hit in hits.items()
    }
    confusion = np.bincount(truth * classes + predicted, minlength=classes**2)
    confusion = confusion.reshape(classes, classes)
    has_top = classes > TOP
    chosen = probabilities[np.arange(count), truth]
    return {
        "top1": hits[1] / count,
        "top1_ci": intervals[1],
        "top5": hits[TOP] / count if has_top else None,
        "top5_ci": intervals[TOP] if has_top else None,
        "loss": float(-np.log(np.maximum(chosen, LEAST)).mean()),
        "ece": calibration_error(probabilities.max(1), predicted == truth),
        "per_class": [
            _class_row(
                name, tp=confusion[k, k], found=confusion[:, k].sum(), support=confusion[k].sum()
            )
            for k, name in enumerate(names)
        ],
        "confusion": confusion.tolist(),
    }


def _several(probabilities: Floats, targets: Floats, names: list[str], seed: int) -> dict[str, Any]:
    present, found = targets > 0.5, probabilities >= THRESHOLD
    tp, fp, fn = (present & found).sum(0), (~present & found).sum(0), (present & ~found).sum(0)
    precisions = [average_precision(probabilities[:, k], present[:, k]) for k in range(len(names))]
    inside = np.clip(probabilities, LEAST, 1 - LEAST)
    loss = -(targets * np.log(inside) + (1 - targets) * np.log(1 - inside)).mean()
    return {
        "map": mean_of(precisions),
        "map_ci": _map_interval(probabilities, present, seed),
        "f1": float(2 * tp.sum() / max(2 * tp.sum() + fp.sum() + fn.sum(), 1)),
        "exact": float((present == found).all(1).mean()),
        "loss": float(loss),
        "ece": calibration_error(probabilities.ravel(), present.ravel()),
        "per_class": [
            {
                **_class_row(name, tp=tp[k], found=found[:, k].sum(), support=present[:, k].sum()),
                "ap": precisions[k],
            }
            for k, name in enumerate(names)
        ],
        "confusion": np.stack([tp, fp, fn, len(targets) - tp - fp - fn], 1).tolist(),
    }


def image_score(probabilities: Floats, targets: Floats, *, several: bool) -> float | None:
    """Return the ``score`` of :func:`image_scores` alone: top-1 accuracy, or mean average precision.

    Args:
        probabilities: ``(images, classes)``.
        targets: ``(images, classes)``, 1 where an image has a class.
        several: whether images may have several labels; the score is None where none of them has any.
    """
    if not several:
        return float((probabilities.argmax(1) == targets.argmax(1)).mean())
    columns = zip(probabilities.T, targets.T > 0.5, strict=True)
    return mean_of([average_precision(own, present) for own, present in columns])


def mean_of(values: Sequence[float | None]) -> float | None:
    """Return the mean of those values that there are; None of none."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _ranks(probabilities: Floats, truth: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return how many classes stand before the true one, which of equal ones are those with smaller numbers."""
    own = probabilities[np.arange(len(truth)), truth][:, None]
    before = np.arange(probabilities.shape[1]) < truth[:, None]
    return ((probabilities > own) | ((probabilities == own) & before)).sum(1)


def _class_row(name: str, *, tp: int, found: int, support: int) -> dict[str, Any]:
    return {
        "name": name,
        "recall": int(tp) / int(support) if support else None,
        "precision": int(tp) / int(found) if found else None,
        "f1": 2 * int(tp) / (int(support) + int(found)) if support else None,
        "support": int(support),
    }


def calibration_error(confidence: Floats, right: npt.NDArray[np.bool_]) -> float:
    """Return the expected calibration error: by how much confidence and accuracy differ in bins of confidence."""
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    sums = np.bincount(bins, weights=confidence - right, minlength=BINS)
    return float(np.abs(sums).sum() / max(len(confidence), 1))


def average_precision(scores: Floats, present: npt.NDArray[np.bool_]) -> float | None:
    """Return the average precision of a class; None where no image has it."""
    if not present.any():
        return None
    return float(_weighted_precision(scores, present, np.ones((1, len(scores))))[0])


def _weighted_precision(
    scores: Floats, present: npt.NDArray[np.bool_], weights: Floats
) -> npt.NDArray[np.float64]:
    """Return the average precision in each row of weights ``(samples, images)``; NaN where none is present."""
    order = np.argsort(-scores, kind="stable")
    ends = np.append(
        scores[order][1:] != scores[order][:-1], True
    )  # equal scores are found together
    hits = np.cumsum(weights[:, order] * present[order], 1)[:, ends]
    found = np.cumsum(weights[:, order], 1)[:, ends]
    gained = np.diff(hits, axis=1, prepend=0)
    total = hits[:, -1]
    area = (gained * hits / np.maximum(found, 1)).sum(1)
    return np.divide(area, total, where=total > 0, out=np.full(len(total), np.nan))


def _map_interval(
    probabilities: Floats, present: npt.NDArray[np.bool_], seed: int
) -> list[float] | None:
    """Return the interval of the mean average precision over images drawn anew."""
    count = len(present)
    tested = np.flatnonzero(present.any(0))
    if not len(tested):
        return None
    generator = np.random.default_rng(seed)
    means = []
    rows = max(1, CHUNK // count)
    for first in range(0, RESAMPLES, rows):
        size = min(rows, RESAMPLES - first)
        weights = generator.multinomial(count, np.full(count, 1 / count), size=size).astype(float)
        own = [_weighted_precision(probabilities[:, k], present[:, k], weights) for k in tested]
        drawn = np.stack(own)
        # A resample of few images may have none of a class, or of any.
        means.append(np.nanmean(drawn[:, ~np.isnan(drawn).all(0)], 0))
    return _interval(np.concatenate(means))


def _interval(values: Floats) -> list[float]:
    low, high = np.percentile(values, INTERVAL)
    return [float(low), float(high)]
