"""In how many places each class lives: a class of a single field cannot be tested on ground that nobody has seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from vitreous.data.blocks import TEST, TRAIN, VAL
from vitreous.data.roles import Splits
from vitreous.tasks.labelled import LabelledScenes

SAME_FIELD = 3  # pixels from one to the next of a field, at most: a path does not divide it
MOST_CELLS = 2**26  # of all classes

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def count_fields(
    labels: npt.NDArray[np.integer[Any]], num_classes: int, cells: int = MOST_CELLS
) -> Ints:
    """Count the connected groups of labelled pixels of each class; pixels that are :data:`SAME_FIELD` apart still touch.

    Args:
        labels: ``(height, width)`` classes from 1 on, 0 where unlabelled.
        num_classes: how many classes there are.
        cells: of the images that are looked at, one per class; in larger scenes squares of pixels stand for pixels, so that
            time and memory do not grow with them.

    Returns:
        ``(num_classes,)``.
    """
    from scipy.ndimage import label, maximum_filter

    present = _present(labels, num_classes, cells)
    counts = np.zeros(num_classes, dtype=np.int64)
    for k, own in enumerate(present[1:]):
        if own.any():
            near = maximum_filter(np.pad(own, 1), size=SAME_FIELD, mode="constant")
            counts[k] = label(near, structure=np.ones((3, 3)))[1]
    return counts


def _present(labels: npt.NDArray[np.integer[Any]], num_classes: int, cells: int) -> Mask:
    """Return where each class is, in squares of the scene: ``(num_classes + 1, rows, columns)``."""
    height, width = labels.shape
    side = max(1, int(np.ceil(np.sqrt(height * width * (num_classes + 1) / cells))))
    present = np.zeros((num_classes + 1, -(-height // side), -(-width // side)), dtype=bool)
    columns = np.arange(width) // side
    for row, line in enumerate(labels):
        present[line, row // side, columns] = True
    return present


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
