"""In how many places each class lives: a class of a single field cannot be tested on ground that nobody has seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from vitreous.data.blocks import TEST, TRAIN, VAL
from vitreous.data.roles import Splits
from vitreous.tasks.labelled import LabelledScenes

SAME_FIELD = (
    3  # pixels from one to the next of a field: a path or a missing pixel does not divide it
)

Ints = npt.NDArray[np.int64]


def count_fields(
    labels: npt.NDArray[np.integer[Any]], num_classes: int, gap: int = SAME_FIELD
) -> Ints:
    """Count the connected groups of labelled pixels of each class.

    Args:
        labels: ``(height, width)`` classes from 1 on, 0 where unlabelled.
        num_classes: how many classes there are.
        gap: pixels at most so far apart, along rows and columns, are of one group.

    Returns:
        ``(num_classes,)``.
    """
    from scipy.ndimage import find_objects, label, maximum_filter

    counts = np.zeros(num_classes, dtype=np.int64)
    half = max(gap, 1) // 2
    places = find_objects(np.asarray(labels, dtype=np.int32), max_label=num_classes)
    for k, place in enumerate(places):
        if place is None:
            continue
        own = np.pad(labels[place] == k + 1, half)
        near = maximum_filter(own, size=2 * half + 1, mode="constant")
        counts[k] = label(near, structure=np.ones((3, 3)))[1]
    return counts


def testable(data: LabelledScenes, splits: Splits) -> list[dict[str, Any]]:
    """Return for each class whether the test says anything about ground that nobody has seen.

    Args:
        data: the scenes and their labels.
        splits: who trained and who tests.

    Returns:
        ``fields``, in how many places the class is labelled, ``testable``, and ``why`` not (empty where it is).
    """
    count = len(data.class_names)
    fields = np.zeros(count, dtype=np.int64)
    pixels = {role: np.zeros(count + 1, dtype=np.int64) for role in (TRAIN, VAL, TEST)}
    for scene, split in zip(data, splits, strict=True):
        labels = np.asarray(scene.labels.values)
        fields += count_fields(labels, count)
        for role, totals in pixels.items():
            totals += np.bincount(labels[split.roles == role], minlength=count + 1)
    learned, tested = pixels[TRAIN] + pixels[VAL], pixels[TEST]
    return [
        {"fields": int(n), "testable": not why, "why": why}
        for n, why in (
            (fields[k], _why(int(fields[k]), int(learned[k + 1]), int(tested[k + 1])))
            for k in range(count)
        )
    ]


def _why(fields: int, learned: int, tested: int) -> str:
    """Return why a class cannot be tested; empty where it can."""
    if not tested:
        return "no test pixels"
    if not learned:
        return "no training pixels"
    return "one field" if fields == 1 else ""
