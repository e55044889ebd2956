"""Cross-validation on training pixels, divided as the split divides all pixels.

Where test pixels lie apart from training pixels, folds do too: whole blocks, or whole scenes, are left out, and of a block
only what lies beyond the reach of the pixels that still train. Where they are neighbours, as in a random split, folds are
random. So what a fold says of a system is what the test pixels will say. Held-out pixels of a class that has no other
pixels are left out too.

A few scattered labels leave nothing beyond that reach. They are divided by blocks that may be neighbours: systems can be
compared on those, but the figures are better than the test pixels will be.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from vitreous.data.blocks import TEST, TRAIN
from vitreous.data.roles import UNUSED, Splits

FOLDS = 5
FOLDS_OF_NEIGHBOURS = (
    3  # at most, where blocks have no buffer: each fold then has labels of most classes
)
FEWEST_HELD_OUT = 20  # pixels of all folds together: fewer tell nothing
FEWEST_APART = (
    50  # of folds that lie apart, unless half of the pixels are fewer: else neighbours tell more
)
FEWEST_SCENES = 3  # from which on whole scenes are left out
MOSTLY_NEAR = 0.5  # share of test pixels near training pixels, from which on folds are random

Ints = npt.NDArray[np.int64]
Labels = Callable[[int], npt.NDArray[np.integer]]
FoldKind: TypeAlias = Literal["apart", "neighbours", "random"]


@dataclass(frozen=True)
class Folds:
    """Training pixels divided for cross-validation.

    Attributes:
        parts: for each fold a split of the training pixels: those that train, and those held out, which have the role of
            test pixels. Empty where there are too few to divide.
        kind: how held-out pixels lie to those that train: ``apart``, in blocks that may be ``neighbours``, or ``random``.
        missing: how many more pixels would have to be held out, where there are no parts.
    """

    parts: list[Splits]
    kind: FoldKind
    missing: int = 0


@dataclass(frozen=True)
class _Pixels:
    """The training pixels: their scenes, flat indices by scene, and all their classes."""

    splits: Splits
    where: list[int]
    pixels: list[Ints]
    classes: Ints


def draw_folds(
    splits: Splits, labels: Labels, *, size: int, seed: int, count: int = FOLDS
) -> Folds:
    """Divide training pixels for cross-validation.

    Args:
        splits: who trains; other pixels take no part.
        labels: the classes of a scene's pixels, ``(height, width)``.
        size: side of the square of pixels that a prediction may depend on.
        seed: of the division.
        count: folds at most.
    """
    where = splits.scenes_with(TRAIN)
    pixels = [splits[k].pixels(TRAIN) for k in where]
    classes = [
        labels(k).ravel()[own].astype(np.int64) for k, own in zip(where, pixels, strict=True)
    ]
    every = _Pixels(splits, where, pixels, np.concatenate(classes))
    if near_share(splits, size) >= MOSTLY_NEAR:
        return _folds(every, None, "random", 0, count, seed)
    whole = _groups(every, by_scene=len(where) >= FEWEST_SCENES)
    found = _folds(every, whole, "apart", size // 2, count, seed)
    enough = min(FEWEST_APART, len(every.classes) // 2)
    if found.parts and sum(fold.counts["test"] for fold in found.parts) >= enough:
        return found
    blocks = _groups(every, by_scene=False)
    return _folds(every, blocks, "neighbours", 0, min(count, FOLDS_OF_NEIGHBOURS), seed)


def _folds(
    every: _Pixels, groups: Ints | None, kind: FoldKind, reach: int, count: int, seed: int
) -> Folds:
    """Divide pixels so that groups stay together; held-out ones within ``reach`` of one that trains are left out."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    classes = every.classes
    most = np.bincount(classes).max() if groups is None else len(np.unique(groups))
    count = min(count, int(most))
    if count < 2:
        return Folds([], kind, FEWEST_HELD_OUT)
    divide = (StratifiedKFold if groups is None else StratifiedGroupKFold)(
        count, shuffle=True, random_state=seed
    )
    ends = np.cumsum([len(own) for own in every.pixels])[:-1]
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
        fold = _fold(every, np.split(role, ends), reach)
        if fold.scenes_with(TEST):
            folds.append(fold)
    held_out = sum(fold.counts["test"] for fold in folds)
    if len(folds) < 2 or held_out < FEWEST_HELD_OUT:
        return Folds([], kind, max(FEWEST_HELD_OUT - held_out, 1))
    return Folds(folds, kind)


def near_share(splits: Splits, size: int) -> float:
    """Return the share of test pixels inside the square of ``size`` around some training pixel of their scene."""
    near = total = 0
    for k in splits.scenes_with(TEST):
        test = splits[k].roles == TEST
        near += int(splits[k].near_training(size)[test].sum())
        total += int(test.sum())
    return near / total if total else 0.0


def _groups(every: _Pixels, *, by_scene: bool) -> Ints:
    """Return what stays together: the pixels of a scene, or of a block."""
    if by_scene:
        scenes = zip(every.where, every.pixels, strict=True)
        return np.concatenate([np.full(len(own), k) for k, own in scenes])
    found: list[Ints] = []
    for k, own in zip(every.where, every.pixels, strict=True):
        blocks = every.splits[k].blocks_of(own).of_pixel
        found.append(blocks + (int(found[-1].max()) + 1 if found else 0))
    return np.concatenate(found)


def _fold(every: _Pixels, roles: list[npt.NDArray[np.uint8]], reach: int) -> Splits:
    """Return a fold; held-out pixels within ``reach`` of one that trains are left out."""
    from scipy.ndimage import maximum_filter

    splits = every.splits
    images = [np.zeros(shape, dtype=np.uint8) for shape in splits.shapes]
    for k, own, role in zip(every.where, every.pixels, roles, strict=True):
        images[k].flat[own] = role
        if reach:
            near = maximum_filter(images[k] == TRAIN, size=2 * reach + 1, mode="constant")
            images[k][near & (images[k] == TEST)] = UNUSED
    return Splits(images, splits.method, splits.params, splits.seed)
