"""Cross-validation on training pixels: who is held out, and from whom."""

import warnings

import numpy as np
import pytest
from scipy.ndimage import maximum_filter

from vitreous.data.blocks import TEST, TRAIN, VAL
from vitreous.data.folds import draw_folds, near_share
from vitreous.data.roles import Split, Splits
from vitreous.data.splits import buffered_blocks, stratified_random

SIZE = 5


def fields(height=80, width=90, side=7, classes=3, seed=0):
    """Square fields of random classes."""
    draw = np.random.default_rng(seed).integers(
        1, classes + 1, (height // side + 1, width // side + 1)
    )
    return np.kron(draw, np.ones((side, side), dtype=int))[:height, :width]


def folds_of(split, labels, **changes):
    settings = {"size": SIZE, "seed": 0, **changes}
    return draw_folds(Splits.of(split), lambda _: labels, **settings).parts


@pytest.fixture(scope="module")
def labels():
    return fields()


@pytest.fixture(scope="module")
def blocks(labels):
    return buffered_blocks(labels, patch_size=SIZE, block_size=10).without_validation()


def test_held_out_pixels_lie_beyond_the_reach_of_those_that_train(blocks, labels):
    folds = folds_of(blocks, labels)
    assert len(folds) == 5
    for fold in folds:
        roles = fold[0].roles
        near = maximum_filter(roles == TRAIN, size=SIZE, mode="constant")
        assert (roles == TEST).sum() > 0 and not (near & (roles == TEST)).any()


def test_only_training_pixels_take_part(blocks, labels):
    folds = folds_of(blocks, labels)
    for fold in folds:
        taking = fold[0].roles > 0
        assert set(fold[0].roles[taking]) == {TRAIN, TEST}
        assert (blocks.roles[taking] == TRAIN).all()
    held = sum((fold[0].roles == TEST).astype(int) for fold in folds)
    assert held.max() == 1  # no pixel is held out twice


def test_validation_and_test_pixels_of_the_split_are_left_alone(labels):
    split = buffered_blocks(labels, patch_size=SIZE, block_size=10)
    assert split.counts["val"]
    for fold in folds_of(split, labels):
        assert (split.roles[fold[0].roles > 0] == TRAIN).all()
        assert not (fold[0].roles == VAL).any()


def test_whole_blocks_are_left_out(blocks, labels):
    for fold in folds_of(blocks, labels):
        parts = [set(fold[0].blocks_of(fold[0].pixels(role)).of_pixel) for role in (TRAIN, TEST)]
        assert not parts[0] & parts[1]


def test_neighbours_of_test_pixels_make_random_folds(labels):
    """A fold then has training pixels on all sides, as the test pixels have."""
    split = stratified_random(labels, train_fraction=0.1, val_fraction=0)
    assert near_share(Splits.of(split), SIZE) > 0.9
    folds = folds_of(split, labels)
    held = sum((fold[0].roles == TEST).astype(int) for fold in folds)
    assert (held[split.roles == TRAIN] == 1).all()  # nobody is dropped for being near
    shares = [
        np.bincount(labels[fold[0].roles == TEST], minlength=4)[1:] / fold.counts["test"]
        for fold in folds
    ]
    assert np.ptp(shares, axis=0).max() < 0.05


def test_classes_that_nobody_could_know_are_not_held_out():
    labels = fields()
    labels[:9, :9] = 4  # a class in a single block
    split = buffered_blocks(labels, patch_size=SIZE, block_size=10).without_validation()
    roles = split.roles.copy()
    roles[labels == 4] = TRAIN
    for fold in folds_of(Split(roles, "blocks", split.params, 0), labels):
        trained = set(labels[fold[0].roles == TRAIN])
        assert set(labels[fold[0].roles == TEST]) <= trained


def test_the_seed_decides(labels):
    split = stratified_random(labels, train_fraction=0.1, val_fraction=0)
    hashes = [[fold.hash for fold in folds_of(split, labels, seed=seed)] for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_scenes_are_left_out_where_there_are_several(labels):
    roles = [np.where(labels > 0, TRAIN if k < 4 else TEST, 0).astype(np.uint8) for k in range(5)]
    folds = draw_folds(Splits(roles, "scenes", {}, 0), lambda _: labels, size=SIZE, seed=0)
    folds = folds.parts
    assert len(folds) == 4
    for fold in folds:
        assert len(fold.scenes_with(TEST)) == 1
        assert not set(fold.scenes_with(TEST)) & set(fold.scenes_with(TRAIN))


@pytest.mark.parametrize("pixels", [0, 3])
def test_too_few_to_divide(pixels):
    labels = fields(classes=2)
    roles = np.zeros(labels.shape, dtype=np.uint8)
    roles[0, : 2 * pixels] = TRAIN
    roles[40:] = TEST
    if pixels == 0:
        roles[0, 0] = TRAIN
    assert folds_of(Split(roles, "blocks", {"block_size": 10, "patch_size": 5}, 0), labels) == []


def scattered(per_class, seed=0):
    """Single labelled pixels all over the scene."""
    truth, random = fields(seed=seed), np.random.default_rng(seed)
    found = np.zeros_like(truth)
    for code in np.unique(truth):
        chosen = random.choice(np.flatnonzero(truth == code), per_class, replace=False)
        found.flat[chosen] = code
    return found


@pytest.mark.parametrize("per_class", [30, 45, 60])
@pytest.mark.parametrize("size", [1, 21])
def test_scattered_labels_have_folds(per_class, size):
    """90 to 180 single pixels: where the reach of 21 x 21 pixels leaves nothing, blocks are divided without it."""
    labels = scattered(per_class)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        split = buffered_blocks(labels, patch_size=size, val_fraction=0)
    found = draw_folds(Splits.of(split), lambda _: labels, size=size, seed=0)
    assert found.kind == ("neighbours" if size == 21 else "apart")
    assert len(found.parts) in ((2, 3) if size == 21 else (5,))
    assert sum(fold.counts["test"] for fold in found.parts) >= 20
    for fold in found.parts:
        blocks = [set(fold[0].blocks_of(fold[0].pixels(role)).of_pixel) for role in (TRAIN, TEST)]
        assert not blocks[0] & blocks[1]
        assert (split.roles[fold[0].roles > 0] == TRAIN).all()


def test_labels_that_lie_apart_are_not_called_neighbours(blocks, labels):
    found = draw_folds(Splits.of(blocks), lambda _: labels, size=SIZE, seed=0)
    assert (found.kind, found.missing) == ("apart", 0)


def test_what_is_missing_is_counted():
    """12 training pixels in four blocks: 8 more would have to be held out."""
    labels = np.zeros((80, 90), dtype=int)
    for row, column in ((0, 0), (0, 40), (20, 0), (20, 40)):
        labels[row, column : column + 3] = (1, 1, 2)
    roles = np.where(labels > 0, TRAIN, 0).astype(np.uint8)
    roles[79, 80:] = TEST
    split = Split(roles, "blocks", {"block_size": 10, "patch_size": 21}, 0)
    found = draw_folds(Splits.of(split), lambda _: labels, size=21, seed=0)
    assert (found.parts, found.missing) == ([], 8)
