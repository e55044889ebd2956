"""Cross-validation on training pixels, divided as the split divides all pixels.

Where test pixels lie apart from training pixels, folds do too: whole blocks, or whole scenes, are left out, and of a block
only what lies beyond the reach of the pixels that still train. Where they are neighbours, as in a random split, folds are
random. So what a fold says of a system is what the test pixels will say. Held-out pixels of a class that has no other
pixels are left out too.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from vitreous.data.blocks import TEST, TRAIN
from vitreous.data.roles import UNUSED, Splits

FOLDS = 5
FEWEST_HELD_OUT = 30  # pixels of all folds together: fewer tell nothing
FEWEST_SCENES = 3  # from which on whole scenes are left out
MOSTLY_NEAR = 0.5  # share of test pixels near training pixels, from which on folds are random

Ints = npt.NDArray[np.int64]
Labels = Callable[[int], npt.NDArray[np.integer]]


def draw_folds(
    splits: Splits, labels: Labels, *, size: int, seed: int, count: int = FOLDS
) -> list[Splits]:
    """Divide training pixels for cross-validation.

    Args:
        splits: who trains; other pixels take no part.
        labels: the classes of a scene's pixels, ``(height, width)``.
        size: side of the square of pixels that a prediction may depend on.
        seed: of the division.
        count: folds at most.

    Returns:
        For each fold a split of the training pixels: those that train, and those held out, which have the role of test
        pixels. Empty where there are too few to divide.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    where = splits.scenes_with(TRAIN)
    pixels = [splits[k].pixels(TRAIN) for k in where]
    classes = np.concatenate(
        [labels(k).ravel()[own].astype(np.int64) for k, own in zip(where, pixels, strict=True)]
    )
    apart = near_share(splits, size) < MOSTLY_NEAR
    groups = _groups(splits, where, pixels) if apart else np.arange(len(classes))
    count = min(count, len(np.unique(groups)))
    if not apart:
        count = min(count, int(np.bincount(classes).max()))
    if count < 2:
        return []
    divide = (StratifiedGroupKFold if apart else StratifiedKFold)(
        count, shuffle=True, random_state=seed
    )
    ends = np.cumsum([len(own) for own in pixels])[:-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes with fewer pixels than folds
        parts = list(divide.split(classes, classes, groups))
    folds = []
    for train, held in parts:
        if len(np.unique(classes[train])) < 2:
            continue
        role = np.full(len(classes), UNUSED, dtype=np.uint8)
        role[train] = TRAIN
        role[held[np.isin(classes[held], classes[train])]] = TEST  # of others nobody could know
        fold = _fold(splits, where, pixels, np.split(role, ends), size // 2 if apart else 0)
        if fold.scenes_with(TEST):
            folds.append(fold)
    held_out = sum(fold.counts["test"] for fold in folds)
    return folds if len(folds) > 1 and held_out >= FEWEST_HELD_OUT else []


def near_share(splits: Splits, size: int) -> float:
    """Return the share of test pixels inside the square of ``size`` around some training pixel of their scene."""
    near = total = 0
    for k in splits.scenes_with(TEST):
        test = splits[k].roles == TEST
        near += int(splits[k].near_training(size)[test].sum())
        total += int(test.sum())
    return near / total if total else 0.0


def _groups(splits: Splits, where: list[int], pixels: list[Ints]) -> Ints:
    """Return what stays together: scenes where there are several, else blocks."""
    if len(where) >= FEWEST_SCENES:
        return np.concatenate([np.full(len(own), k) for k, own in zip(where, pixels, strict=True)])
    found: list[Ints] = []
    for k, own in zip(where, pixels, strict=True):
        blocks = splits[k].blocks_of(own).of_pixel
        found.append(blocks + (int(found[-1].max()) + 1 if found else 0))
    return np.concatenate(found)


def _fold(
    splits: Splits,
    where: list[int],
    pixels: list[Ints],
    roles: list[npt.NDArray[np.uint8]],
    reach: int,
) -> Splits:
    """Return a fold; held-out pixels within ``reach`` of one that trains are left out."""
    from scipy.ndimage import maximum_filter

    images = [np.zeros(shape, dtype=np.uint8) for shape in splits.shapes]
    for k, own, role in zip(where, pixels, roles, strict=True):
        images[k].flat[own] = role
        if reach:
            near = maximum_filter(images[k] == TRAIN, size=2 * reach + 1, mode="constant")
            images[k][near & (images[k] == TEST)] = UNUSED
    return Splits(images, splits.method, splits.params, splits.seed)
