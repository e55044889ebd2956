"""Classes that live in one place cannot be tested on other ground."""

from __future__ import annotations

import numpy as np
import pytest

from vitreous.tasks.fields import _why, count_fields


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
    np.testing.assert_array_equal(count_fields(labels, 1), [2])


def test_the_reason_is_told():
    assert _why(3, 10, 0) == "no test pixels"
    assert _why(3, 0, 5) == "no training pixels"
    assert _why(1, 10, 5) == "one field"
    assert _why(2, 10, 5) == ""
