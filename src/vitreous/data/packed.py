"""Images of small whole numbers (classes, roles) kept compressed in memory, and read by windows.

Class images of many scenes would fill the memory that training needs. They compress a hundredfold, because most
pixels are of their neighbours' class.
"""

from __future__ import annotations

import functools
import zlib

import numpy as np
import numpy.typing as npt

BLOCK = 128  # side of the squares that are compressed by themselves: about one tile of a network
HELD = 64  # unpacked squares that an image keeps

Ints = npt.NDArray[np.int64]


class PackedImage:
    """An image of whole numbers from 0 on.

    Args:
        values: ``(height, width)``.
    """

    def __init__(self, values: npt.NDArray[np.integer] | npt.NDArray[np.bool_]) -> None:
        values = np.asarray(values)
        self.shape: tuple[int, int] = (values.shape[0], values.shape[1])
        self.dtype = np.min_scalar_type(int(values.max(initial=0)))
        self._across = -(-self.shape[1] // BLOCK)
        self._blocks = [
            zlib.compress(
                np.ascontiguousarray(
                    values[top : top + BLOCK, left : left + BLOCK], dtype=self.dtype
                ).tobytes(),
                1,
            )
            for top in range(0, self.shape[0], BLOCK)
            for left in range(0, self.shape[1], BLOCK)
        ]
        self._row_counts: Ints | None = None
        self._block = functools.lru_cache(HELD)(self._unpack)

    def _unpack(self, number: int) -> npt.NDArray[np.unsignedinteger]:
        down, across = divmod(number, self._across)
        height = min(BLOCK, self.shape[0] - down * BLOCK)
        width = min(BLOCK, self.shape[1] - across * BLOCK)
        values = np.frombuffer(zlib.decompress(self._blocks[number]), dtype=self.dtype)
        return values.reshape(height, width)

    def read(self, rows: slice, columns: slice) -> npt.NDArray[np.unsignedinteger]:
        """Return a window, ``(rows, columns)``; the slices lie within the image."""
        window = np.empty((rows.stop - rows.start, columns.stop - columns.start), dtype=self.dtype)
        for down in range(rows.start // BLOCK, -(-rows.stop // BLOCK)):
            for across in range(columns.start // BLOCK, -(-columns.stop // BLOCK)):
                block = self._block(down * self._across + across)
                top, left = down * BLOCK, across * BLOCK
                first = (max(rows.start, top), max(columns.start, left))
                last = (
                    min(rows.stop, top + block.shape[0]),
                    min(columns.stop, left + block.shape[1]),
                )
                window[
                    first[0] - rows.start : last[0] - rows.start,
                    first[1] - columns.start : last[1] - columns.start,
                ] = block[first[0] - top : last[0] - top, first[1] - left : last[1] - left]
        return window

    def whole(self) -> npt.NDArray[np.unsignedinteger]:
        """Return the image, ``(height, width)``."""
        return self.read(slice(0, self.shape[0]), slice(0, self.shape[1]))

    @property
    def row_counts(self) -> Ints:
        """``(height,)`` how many pixels of each row are not 0."""
        if self._row_counts is None:
            self._row_counts = np.count_nonzero(self.whole(), axis=1).astype(np.int64)
        return self._row_counts

    def __len__(self) -> int:
        """How many pixels are not 0."""
        return int(self.row_counts.sum())

    def place(self, number: int) -> tuple[int, int]:
        """Return row and column of the pixel with this number among those that are not 0, in row-major order.

        Raises:
            IndexError: there are not as many.
        """
        ends = np.cumsum(self.row_counts)
        if not 0 <= number < ends[-1]:
            raise IndexError(f"pixel {number} of {ends[-1]}")
        row = int(np.searchsorted(ends, number, side="right"))
        before = int(ends[row - 1]) if row else 0
        values = self.read(slice(row, row + 1), slice(0, self.shape[1]))[0]
        return row, int(np.flatnonzero(values)[number - before])

    def pixels(self) -> Ints:
        """Return the flat (row-major) indices of the pixels that are not 0, ascending."""
        return np.flatnonzero(self.whole())

    def counts(self, length: int) -> Ints:
        """Return how many pixels there are of 0, 1, ... ``length - 1``."""
        return np.bincount(self.whole().ravel(), minlength=length)
