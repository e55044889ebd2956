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


@pytest.mark.parametrize(
    ("gap", "expected"),
    [
        (1, [2, 1, 0]),
        (5, [2, 1, 0]),  # five pixels lie between the fields of class 1
        (7, [1, 1, 0]),
    ],
)
def test_fields_nearer_than_the_context_are_one(gap, expected):
    labels = field((1, 2, 3), (1, 2, 12), (2, 20, 20))
    np.testing.assert_array_equal(count_fields(labels, 3, gap), expected)


def test_fields_of_other_classes_between_do_not_matter():
    labels = field((1, 2, 3), (2, 2, 8), (1, 2, 30), (3, 0, 0))
    np.testing.assert_array_equal(count_fields(labels, 3, 3), [2, 1, 1])


def test_fields_at_the_corner_and_diagonal_neighbours():
    labels = np.zeros((6, 6), np.uint8)
    labels[0, 0] = labels[1, 1] = labels[5, 5] = 1
    np.testing.assert_array_equal(count_fields(labels, 1, 1), [2])


def test_the_reason_is_told():
    assert _why(3, 10, 0) == "no test pixels"
    assert _why(3, 0, 5) == "no training pixels"
    assert _why(1, 10, 5) == "one field"
    assert _why(2, 10, 5) == ""
