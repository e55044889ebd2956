"""Packed images: whatever is read from them is what was put in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitreous.data.packed import BLOCK, PackedImage


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 2 * BLOCK + 3), st.integers(1, 2 * BLOCK + 3), st.integers(0, 2**31), st.data()
)
def test_windows_places_and_counts(height, width, seed, data):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 300, (height, width)) * (rng.random((height, width)) < 0.3)
    image = PackedImage(values)
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    bottom, right = data.draw(st.integers(top, height)), data.draw(st.integers(left, width))
    window = image.read(slice(top, bottom), slice(left, right))
    np.testing.assert_array_equal(window, values[top:bottom, left:right])
    np.testing.assert_array_equal(image.whole(), values)
    pixels = np.flatnonzero(values)
    assert len(image) == len(pixels)
    np.testing.assert_array_equal(image.pixels(), pixels)
    np.testing.assert_array_equal(image.counts(301), np.bincount(values.ravel(), minlength=301))
    for number in range(0, len(pixels), 97):
        assert image.place(number) == tuple(divmod(int(pixels[number]), width))


def test_classes_of_fields_take_little_memory():
    fields = np.kron(np.arange(64).reshape(8, 8), np.ones((256, 256), int))
    image = PackedImage(fields)
    assert sum(map(len, image._blocks)) < fields.size / 100
    assert image.dtype == np.uint8


def test_the_largest_number_is_held():
    assert PackedImage(np.array([[0, 65535]])).whole().tolist() == [[0, 65535]]
    with pytest.raises(IndexError):
        PackedImage(np.zeros((3, 3), int)).place(0)
