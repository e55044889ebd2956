"""In how many places each class lives: a class of a single field cannot be tested on ground that nobody has seen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from vitreous.data.blocks import TEST, TRAIN, VAL
from vitreous.data.roles import Split, Splits
from vitreous.tasks.labelled import LabelledScenes

PATH = 2  # pixels between two parts of a field, at most: a path does not divide it
MOST_CELLS = 2**26  # of all classes
# Test pixels, and blocks that hold them, from which on a single field is large enough to be tested away from its training
# pixels.
LARGE, SEVERAL = 500, 4

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def count_fields(
    labels: npt.NDArray[np.integer[Any]], num_classes: int, cells: int = MOST_CELLS
) -> Ints:
    """Count the fields of each class: groups of labelled pixels that are connected along rows and columns.

    Pixels that touch at corners are different fields; a gap of up to :data:`PATH` pixels along a row or column divides
    none.

    Args:
        labels: ``(height, width)`` classes from 1 on, 0 where unlabelled.
        num_classes: how many classes there are.
        cells: of the images that are looked at, one per class; in larger scenes squares of pixels stand for pixels, so that
            time and memory do not grow with them.

    Returns:
        ``(num_classes,)``.
    """
    side = _side(labels, num_classes, cells)
    return np.array([int(ids.max()) for ids in _fields(labels, num_classes, side)], dtype=np.int64)


def _side(labels: npt.NDArray[np.integer[Any]], num_classes: int, cells: int) -> int:
    """Return the side of the squares of pixels in which fields are looked for."""
    return max(1, int(np.ceil(np.sqrt(labels.size * (num_classes + 1) / cells))))


def _fields(
    labels: npt.NDArray[np.integer[Any]], num_classes: int, side: int
) -> Iterator[npt.NDArray[np.int32]]:
    """Yield for each class the number of the field that each square of the scene lies in, 0 where the class is not."""
    from scipy.ndimage import label

    present = _present(labels, num_classes, side)
    for own in present[1:]:
        yield label(_without_paths(own))[0] if own.any() else np.zeros(own.shape, np.int32)


def _without_paths(own: Mask) -> Mask:
    """Return a class with the gaps closed that are no wider than a path, along rows and columns."""
    from scipy.ndimage import binary_closing

    padded = np.pad(own, PATH)
    closed = padded.copy()
    for shape in ((1, PATH + 1), (PATH + 1, 1)):
        closed |= binary_closing(padded, structure=np.ones(shape, dtype=bool))
    return np.asarray(closed[PATH:-PATH, PATH:-PATH], dtype=bool)


def _present(labels: npt.NDArray[np.integer[Any]], num_classes: int, side: int) -> Mask:
    """Return where each class is, in squares of the scene: ``(num_classes + 1, rows, columns)``."""
    height, width = labels.shape
    present = np.zeros((num_classes + 1, -(-height // side), -(-width // side)), dtype=bool)
    columns = np.arange(width) // side
    for row, line in enumerate(labels):
        present[line, row // side, columns] = True
    return present


def testable(data: LabelledScenes, splits: Splits) -> list[dict[str, Any]]:
    """Return for each class whether the test says anything about ground that nobody has seen.

    A class whose training and test pixels come from one field cannot be tested, unless that field is so large that at least
    :data:`LARGE` test pixels in :data:`SEVERAL` blocks lie apart from all training patches.

    Args:
        data: the scenes and their labels.
        splits: who trained and who tests.

    Returns:
        ``fields``, in how many places the class is labelled, ``testable``, and ``why`` not (empty where it is).
    """
    places = [
        _places(np.asarray(scene.labels.values), len(data.class_names), split)
        for scene, split in zip(data, splits, strict=True)
    ]
    rows: Ints = np.sum(places, axis=0)
    return [
        {"fields": row[0], "testable": not why, "why": why}
        for row, why in ((row, _why(*row[1:])) for row in rows.tolist())
    ]


def _places(labels: npt.NDArray[np.integer[Any]], num_classes: int, split: Split) -> Ints:
    """Count where the classes of a scene are.

    Returns:
        ``(num_classes, 6)``: fields, those with training, validation or test pixels, training and validation pixels, test
        pixels, those apart from training patches, and the blocks that hold these.
    """
    side = _side(labels, num_classes, MOST_CELLS)
    pixels = np.flatnonzero((split.roles > 0) & (labels > 0))
    pixels = pixels[np.argsort(labels.ravel()[pixels], kind="stable")]
    ends = np.searchsorted(labels.ravel()[pixels], np.arange(1, num_classes + 2))
    near = split.near_training(int(split.params.get("patch_size", 3))).ravel()
    found = np.zeros((num_classes, 6), dtype=np.int64)
    for k, ids in enumerate(_fields(labels, num_classes, side)):
        own = pixels[ends[k] : ends[k + 1]]
        rows, columns = np.divmod(own, labels.shape[1])
        roles = split.roles.ravel()[own]
        apart = own[(roles == TEST) & ~near[own]]
        found[k] = (
            ids.max(),
            len(np.unique(ids[rows // side, columns // side])),
            np.isin(roles, (TRAIN, VAL)).sum(),
            (roles == TEST).sum(),
            len(apart),
            len(np.unique(split.blocks_of(apart).of_pixel)),
        )
    return found


def _why(fields: int, learned: int, tested: int, apart: int, blocks: int) -> str:
    """Return why a class cannot be tested, empty where it can; see :func:`_places`."""
    if not tested:
        return "no test pixels"
    if not learned:
        return "no training pixels"
    large = apart >= LARGE and blocks >= SEVERAL
    return "one field" if fields == 1 and not large else ""
