"""Classes that live in one place cannot be tested on other ground."""

from __future__ import annotations

import numpy as np
import pytest

from tiny_scene import NANOMETRES, tiny_cube
from vitreous.data.roles import Split, Splits
from vitreous.scenes.cube import make_labels, make_scene
from vitreous.tasks import fields
from vitreous.tasks.fields import _why, count_fields
from vitreous.tasks.labelled import LabelledScene, LabelledScenes


def field(*corners, size=4, shape=(40, 60)):
    labels = np.zeros(shape, np.uint8)
    for k, row, column in corners:
        labels[row : row + size, column : column + size] = k
    return labels


@pytest.mark.parametrize(("column", "expected"), [(20, 2), (10, 2), (9, 1), (8, 1), (7, 1)])
def test_a_path_does_not_divide_a_field(column, expected):
    """The first field ends at column 6: up to three pixels further on the next one is the same."""
    np.testing.assert_array_equal(count_fields(field((1, 2, 3), (1, 2, column)), 2), [expected, 0])


def test_in_large_scenes_squares_stand_for_pixels():
    labels = field((1, 2, 3), (1, 2, 40), (2, 30, 5))
    np.testing.assert_array_equal(count_fields(labels, 2, cells=3 * 600), [2, 1])  # 2 x 2 pixels
    np.testing.assert_array_equal(count_fields(labels, 2, cells=3), [1, 1])


def test_fields_of_other_classes_between_do_not_matter():
    labels = field((1, 2, 3), (2, 2, 8), (1, 2, 30), (3, 0, 0))
    np.testing.assert_array_equal(count_fields(labels, 3), [2, 1, 1])


def test_fields_at_the_corner_and_diagonal_neighbours():
    labels = np.zeros((6, 6), np.uint8)
    labels[0, 0] = labels[1, 1] = labels[5, 5] = 1
    np.testing.assert_array_equal(count_fields(labels, 1), [3])


def told(labels, roles, **params):
    """What is told of the classes of one scene that was split so."""
    scene = make_scene(tiny_cube(labels), wavelengths=NANOMETRES, unit="reflectance")
    data = LabelledScenes.of(LabelledScene(scene, make_labels(labels)))
    splits = Splits.of(Split(roles, "blocks", {"patch_size": 3, "block_size": 12, **params}))
    return fields.testable(data, splits)


def halves(labels, border=20, end=60):
    """Training pixels on the left, test pixels on the right, and a buffer of one pixel between them."""
    roles = np.zeros(labels.shape, np.uint8)
    roles[:, :border], roles[:, border + 1 : end] = 1, 3
    return np.where(labels > 0, roles, 0).astype(np.uint8)


def test_large_blocks_that_touch_at_corners_are_several_fields():
    rows, columns = np.indices((48, 60)) // 12
    labels = (1 + (rows + columns) % 2).astype(np.uint8)
    np.testing.assert_array_equal(count_fields(labels, 2), [10, 10])
    assert [row["why"] for row in told(labels, halves(labels))] == ["", ""]


def test_one_small_field_cannot_be_tested():
    labels = field((1, 2, 15), (2, 20, 5), (2, 20, 40), size=12)
    rows = told(labels, halves(labels))
    assert [row["why"] for row in rows] == ["one field", ""]
    assert [row["fields"] for row in rows] == [1, 2]


def test_a_second_field_that_neither_trains_nor_tests_does_not_help():
    labels = field((1, 2, 15), (2, 20, 5), (2, 20, 40), (1, 24, 25), size=10)
    roles = halves(labels)
    roles[24:34, 25:35] = 0
    rows = told(labels, roles)
    assert (rows[0]["fields"], rows[0]["why"]) == (2, "one field")


@pytest.mark.parametrize(
    ("end", "patch_size", "expected"),
    [(60, 3, ""), (60, 79, "one field"), (32, 3, "one field")],
    ids=["large", "everything inside training patches", "few test pixels"],
)
def test_one_large_field_is_tested_in_blocks_apart_from_training(end, patch_size, expected):
    labels = np.ones((40, 60), np.uint8)
    labels[0, ::2] = 2
    assert told(labels, halves(labels, end=end), patch_size=patch_size)[0]["why"] == expected


def test_the_reason_is_told():
    assert _why(3, 10, 0, 0, 0) == "no test pixels"
    assert _why(3, 0, 5, 5, 1) == "no training pixels"
    assert _why(1, 10, 5, 5, 1) == "one field"
    assert _why(1, 10, 499, 499, 9) == "one field"
    assert _why(1, 10, 500, 500, 3) == "one field"
    assert _why(1, 10, 500, 500, 4) == ""
    assert _why(2, 10, 5, 5, 1) == ""
