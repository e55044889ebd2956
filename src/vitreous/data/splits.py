"""Drawing a split of one scene: buffered blocks, random pixels, fixed training pixels, or separate label files.

A patch classifier sees more than one pixel. Where a test pixel lies inside a training patch, its spectrum took
part in training, and the accuracy says less than it seems. :func:`buffered_blocks` keeps such pixels apart and is
the default; the other splits exist to compare with the literature, and :meth:`vitreous.data.roles.Split.leakage` says how much they
share. Model selection belongs to the validation pixels, never to the test pixels.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.data.blocks import (
    HANDFUL,
    TEST,
    TRAIN,
    VAL,
    automatic_block_size,
    buffered_roles,
    make_grid,
)
from vitreous.data.roles import UNUSED, LabelImage, Split
from vitreous.errors import SplitError
from vitreous.recipe import Recipe


def make_split(
    labels: LabelImage,
    recipe: Recipe,
    patch_size: int,
    train_labels: LabelImage | None = None,
    test_labels: LabelImage | None = None,
) -> Split:
    """Divide the labelled pixels as the recipe asks.

    Args:
        labels: ``(height, width)``, 0 = unlabelled. With ``split: files`` these are the training labels.
        recipe: its ``split``, ``train_fraction``, ``train_per_class``, ``val_fraction``, ``block_size``, ``seed``.
        patch_size: side of the region that a prediction sees, in pixels.
        train_labels: the scene's fixed training pixels (``split: fixed``).
        test_labels: the test labels (``split: files``).

    Raises:
        SplitError: the labels cannot be divided this way, or the labels that the method needs are missing.
    """
    chosen: dict[str, Any] = {"val_fraction": recipe.val_fraction, "seed": recipe.seed}
    if recipe.split == "blocks":
        return buffered_blocks(
            labels,
            patch_size=patch_size,
            train_fraction=recipe.train_fraction,
            block_size=recipe.block_size,
            **chosen,
        )
    if recipe.split == "random":
        amount: dict[str, Any] = {"train_fraction": recipe.train_fraction}
        if recipe.train_per_class is not None:
            amount = {"per_class": recipe.train_per_class}
        split = stratified_random(labels, **amount, **chosen)
    elif recipe.split == "fixed":
        if train_labels is None:
            raise SplitError(
                "This scene has no predefined training pixels.",
                "Use the split 'blocks', 'random' or 'files'.",
            )
        split = fixed_split(labels, train_labels, **chosen)
    else:
        if test_labels is None:
            raise SplitError("The split 'files' has no test labels.", "Give them with test_labels.")
        split = split_from_files(
            labels if train_labels is None else train_labels, test_labels, **chosen
        )
    split.params["patch_size"] = patch_size
    return split


def buffered_blocks(
    labels: LabelImage,
    *,
    patch_size: int,
    train_fraction: float = 0.3,
    val_fraction: float = 0.1,
    block_size: int | None = None,
    seed: int = 0,
) -> Split:
    """Divide the scene into blocks, and keep the patches of different roles apart.

    Whole blocks train, validate or test, chosen so that every class is represented in training and, where it
    can be, in testing. No test pixel lies inside a training or validation patch and no validation pixel inside a
    training patch: labelled pixels in that buffer stay unused, dropped from whichever side loses less. The
    shares are therefore approximate. ``vitreous.data.blocks`` has the method.

    Args:
        labels: ``(height, width)``, 0 = unlabelled.
        patch_size: side of the region that a prediction sees, in pixels.
        train_fraction: share of each class for training.
        val_fraction: share for validation; 0 for none. Unlike in the other splits it counts from all labelled
            pixels (but is at most half of ``train_fraction``): a tenth of a training part of whole blocks would
            be one or two fields, and its buffer would swallow them.
        block_size: side of a block in pixels; None: one patch, more in large scenes.
        seed: of the assignment.

    Returns:
        The split; ``params`` also reports ``block_size``, ``buffer_pixels`` (labelled but unused) and
        ``classes_without_test``.

    Raises:
        SplitError: too few classes, or no pixel is left to test.

    Warns:
        UserWarning: classes that could not be in both parts are trained but not tested.
    """
    values = _checked(labels)
    _check_fractions(train_fraction, val_fraction)
    if block_size is not None and block_size < 1:
        raise SplitError(f"block_size is {block_size}.", "A block must be at least one pixel wide.")
    classes = np.searchsorted(np.unique(np.append(values, 0)), values)
    shares = part_shares(train_fraction, val_fraction)
    size = block_size or automatic_block_size(values.shape[0], values.shape[1], patch_size)
    rng = np.random.default_rng(seed)
    roles = buffered_roles(classes, shares, reach=patch_size // 2, block_size=size, rng=rng)
    params: dict[str, Any] = {
        "train_fraction": train_fraction,
        "val_fraction": val_fraction,
        "patch_size": patch_size,
        "block_size": size,
        "buffer_pixels": int(((values > 0) & (roles == UNUSED)).sum()),
    }
    split = Split(roles, "blocks", params, seed)
    if split.counts["test"] == 0:
        raise _untested(classes, patch_size, size)
    return _report(split, labels, val_fraction)


def _untested(classes: npt.NDArray[np.int64], patch_size: int, block_size: int) -> SplitError:
    """Say why blocks leave no pixel to test, and what would: too few labels, too few blocks, or too wide patches."""
    sizes = np.bincount(classes[classes > 0])[1:]
    random = (
        "use the split 'random'" if sizes.min() > 1 else ""
    )  # which tests a pixel of each class
    if sizes.max() <= HANDFUL:
        return SplitError(
            f"Only {sizes.sum()} pixels are labelled, at most {sizes.max()} of a class: all of them are needed for "
            "training, and none is left to test.",
            _either(f"Label more than {HANDFUL} pixels of each class, in different places", random),
        )
    blocks = make_grid(classes, block_size, 0).counts > 0
    if patch_size == 1 or (block_size > patch_size and blocks.sum(axis=0).max() == 1):
        return SplitError(
            f"The classes lie in so few blocks of {block_size} x {block_size} pixels that all are needed for training, "
            "and none is left to test.",
            _either("Use a smaller block_size", "add labels elsewhere", random),
        )
    return SplitError(
        f"The labelled pixels are too close together for separate training and test patches of {patch_size} x "
        f"{patch_size}.",
        _either("Use a smaller patch_size or block_size", "add labels elsewhere", random),
    )


def _either(*ways: str) -> str:
    """Return a sentence of ways out; empty ones are left out."""
    *others, last = filter(None, ways)
    if not others:
        return f"{last}."
    return f"{', '.join(others)}{',' if len(others) > 1 else ''} or {last}."


def stratified_random(
    labels: LabelImage,
    *,
    train_fraction: float | None = None,
    per_class: int | None = None,
    val_fraction: float = 0.1,
    seed: int = 0,
) -> Split:
    """Draw training pixels of each class at random; accuracy on such a split is optimistic.

    Args:
        labels: ``(height, width)``, 0 = unlabelled.
        train_fraction: share of each class for training and validation together; at least one pixel trains
            and at least one tests.
        per_class: or a number of pixels per class; at most half of a class is taken.
        val_fraction: share of those kept for validation; 0 for none.
        seed: of the draw.

    Raises:
        SplitError: a class has only one pixel, or not exactly one of the two amounts is given.

    Warns:
        UserWarning: classes smaller than twice ``per_class`` give only half of their pixels.
    """
    if (train_fraction is None) == (per_class is None):
        raise SplitError(
            "A random split needs one amount.", "Give either train_fraction or per_class."
        )
    if per_class is not None and per_class < 1:
        raise SplitError(f"per_class is {per_class}.", "Use at least one pixel per class.")
    values = _checked(labels)
    _check_fractions(0.5 if train_fraction is None else train_fraction, val_fraction)
    sizes = dict(zip(*np.unique(values[values > 0], return_counts=True), strict=True))
    single = [int(k) for k, size in sizes.items() if size < 2]
    if single:
        raise SplitError(
            f"Only one pixel is labelled as {_names(labels, single)}: it cannot be in both training and test set.",
            "Label more pixels, merge the class with another, or set its pixel to 0.",
        )
    if per_class is not None:
        small = [int(k) for k, size in sizes.items() if size // 2 < per_class]
        if small:
            _warn(
                f"Fewer than {2 * per_class} pixels are labelled as {_names(labels, small)}; half of them train."
            )
    rng = np.random.default_rng(seed)
    roles = np.where(values > 0, TEST, UNUSED).astype(np.uint8)
    for k, size in sizes.items():
        wanted = (
            min(per_class, size // 2)
            if per_class is not None
            else _rounded(train_fraction or 0.0, size)
        )
        train = rng.permutation(np.flatnonzero(values == k))[: min(max(wanted, 1), size - 1)]
        roles.flat[train] = TRAIN
    params: dict[str, Any] = {"val_fraction": val_fraction}
    params |= {"train_fraction": train_fraction} if per_class is None else {"per_class": per_class}
    _keep_for_validation(roles, values, val_fraction, rng)
    return _report(Split(roles, "random", params, seed), labels, val_fraction)


def fixed_split(
    labels: LabelImage, train_labels: LabelImage, *, val_fraction: float = 0.1, seed: int = 0
) -> Split:
    """Train with the pixels of ``train_labels`` and test with all other labelled pixels.

    A training pixel need not be labelled in ``labels`` (the reference may have been revised since): look its
    class up in :func:`merged_labels`.

    Args:
        labels: ``(height, width)``, 0 = unlabelled.
        train_labels: the same for the training pixels.
        val_fraction: share of the training pixels of each class kept for validation; 0 for none.
        seed: of the validation pixels.

    Raises:
        SplitError: the images differ in size, or nothing is left to train or test.
    """
    values, train = _checked(labels), _checked(train_labels)
    _check_same_shape(values, train)
    roles = np.where(values > 0, TEST, UNUSED).astype(np.uint8)
    roles[train > 0] = TRAIN
    if not (roles == TEST).any():
        raise SplitError(
            "Every labelled pixel is a training pixel; none is left for testing.",
            "Give training labels that cover fewer pixels.",
        )
    _keep_for_validation(roles, train, val_fraction, np.random.default_rng(seed))
    split = Split(roles, "fixed", {"val_fraction": val_fraction}, seed)
    return _report(split, merged_labels(labels, train_labels), val_fraction)


def split_from_files(
    train_labels: LabelImage, test_labels: LabelImage, *, val_fraction: float = 0.1, seed: int = 0
) -> Split:
    """Train and test with the pixels of two label images; look classes up in :func:`merged_labels`.

    Args:
        train_labels: ``(height, width)``, 0 = unlabelled.
        test_labels: the same for the test pixels. A pixel labelled in both only trains.
        val_fraction: share of the training pixels of each class kept for validation; 0 for none.
        seed: of the validation pixels.

    Raises:
        SplitError: the images differ in size, or one of them is empty.

    Warns:
        UserWarning: pixels are in both images, or tested classes are never trained.
    """
    train, test = _checked(train_labels), _checked(test_labels, least=1)
    _check_same_shape(test, train)
    both = int(((train > 0) & (test > 0)).sum())
    if both == int((test > 0).sum()):
        raise SplitError(
            "Every test pixel is also a training pixel.", "Give two different label images."
        )
    if both:
        _warn(
            f"{both} pixels are in both the training and the test labels; they are used for training only."
        )
    strange = np.setdiff1d(test, train)
    if (strange > 0).any():
        _warn(
            "Classes in the test labels only, which are always misclassified: "
            f"{_names(test_labels, strange[strange > 0].tolist())}."
        )
    roles = np.where(test > 0, TEST, UNUSED).astype(np.uint8)
    roles[train > 0] = TRAIN
    _keep_for_validation(roles, train, val_fraction, np.random.default_rng(seed))
    split = Split(roles, "files", {"val_fraction": val_fraction}, seed)
    return _report(split, merged_labels(test_labels, train_labels), val_fraction)


def merged_labels(labels: LabelImage, train_labels: LabelImage) -> xr.DataArray:
    """Return ``labels`` with the classes of ``train_labels`` where those are given (names are kept).

    Args:
        labels: ``(height, width)``, 0 = unlabelled.
        train_labels: the same; they win.
    """
    train = np.asarray(train_labels)
    merged = np.where(train > 0, train, np.asarray(labels)).astype(np.int32)
    if isinstance(labels, xr.DataArray):
        return labels.copy(data=merged)
    return xr.DataArray(merged, dims=("y", "x"))


def _checked(labels: LabelImage, least: int = 2) -> npt.NDArray[np.int64]:
    """Return the labels as plain integers, or say why they cannot be split."""
    values = np.asarray(labels)
    if values.ndim != 2 or values.dtype.kind not in "iu":
        raise SplitError(
            f"Labels of shape {values.shape} and type {values.dtype} cannot be split.",
            "Labels must be one image of integers (rows, columns).",
        )
    if values.size == 0 or not (values > 0).any():
        raise SplitError(
            "No pixel is labelled.", "Classes are numbered from 1; 0 means unlabelled."
        )
    if values.min() < 0:
        raise SplitError(
            f"The smallest label is {values.min()}.",
            "Classes are numbered from 1; 0 means unlabelled.",
        )
    present = np.unique(values[values > 0])
    if present.size < least:
        raise SplitError(
            f"Only one class is labelled ({_names(labels, present.tolist())}).",
            "A classifier needs at least two classes.",
        )
    return values.astype(np.int64)


def _check_fractions(train_fraction: float, val_fraction: float) -> None:
    if not 0 < train_fraction < 1:
        raise SplitError(
            f"train_fraction is {train_fraction}.", "It must be between 0 and 1, both excluded."
        )
    if not 0 <= val_fraction < 1:
        raise SplitError(
            f"val_fraction is {val_fraction}.", "It must be at least 0 and less than 1."
        )


def part_shares(train_fraction: float, val_fraction: float) -> npt.NDArray[np.float64]:
    """Return the shares of training, validation and test in a division of blocks or scenes; they sum to one."""
    val = min(val_fraction, train_fraction / 2)
    shares = np.array([train_fraction * (1 - val_fraction), val, 1 - train_fraction])
    normalised: npt.NDArray[np.float64] = shares / shares.sum()
    return normalised


def _check_same_shape(labels: npt.NDArray[np.int64], train: npt.NDArray[np.int64]) -> None:
    if labels.shape != train.shape:
        raise SplitError(
            f"The training labels have the shape {train.shape}, the other labels {labels.shape}.",
            "Both must cover the scene.",
        )


def _keep_for_validation(
    roles: npt.NDArray[np.uint8],
    classes: npt.NDArray[np.int64],
    val_fraction: float,
    rng: np.random.Generator,
) -> None:
    """Turn a share of each class's training pixels into validation pixels, in place; one always trains."""
    _check_fractions(0.5, val_fraction)
    train = np.flatnonzero(roles == TRAIN)
    of_pixel = classes.ravel()[train]
    for k in np.unique(of_pixel):
        members = rng.permutation(train[of_pixel == k])
        count = min(_rounded(val_fraction, len(members)), len(members) - 1)
        roles.flat[members[:count]] = VAL


def _report(split: Split, labels: LabelImage, val_fraction: float) -> Split:
    """Note the classes that are not tested, and warn about them and about a missing validation part."""
    untested = split.classes_without(TEST, labels)
    split.params["classes_without_test"] = untested
    if untested:
        _warn(
            f"Classes without test pixels, because they have too few separate pixels: {_names(labels, untested)}."
        )
    if val_fraction > 0 and split.counts["val"] == 0:
        _warn("Too few training pixels for a validation set; the last epoch will be kept.")
    return split


def _names(labels: LabelImage, classes: list[int]) -> str:
    names = labels.attrs.get("class_names", []) if isinstance(labels, xr.DataArray) else []
    return ", ".join(f"{k} '{names[k - 1]}'" if k <= len(names) else f"class {k}" for k in classes)


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=4)


def _rounded(fraction: float, count: int) -> int:
    """Round half up: Python's own rounding to even would favour some class sizes."""
    return math.floor(fraction * count + 0.5)
