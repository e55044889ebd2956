"""From stored values to physical ones where a scale alone does not do: offsets, several nodata values, masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from vitreous.scenes.cube import LazyCube, ReadWindow, Window, is_nodata

# Rows and columns with explicit bounds and positive steps to an image of booleans, False where invalid.
Validity: TypeAlias = Callable[[slice, slice], npt.NDArray[np.bool_]]


@dataclass
class Converted:
    """Reads stored value x scale + offset in floating point, NaN where there is no measurement.

    Attributes:
        read: reads stored values.
        dtype: of the result.
        scales: ``(bands,)``.
        offsets: ``(bands,)``.
        nodata: stored values of any band that mean "no measurement".
        nodata_of: ``(bands,)`` likewise, where bands have their own; NaN for none.
        limits: smallest and largest valid stored value.
        valid: masks for all bands.
    """

    read: ReadWindow
    dtype: np.dtype[Any]
    scales: npt.NDArray[np.float64] | None = None
    offsets: npt.NDArray[np.float64] | None = None
    nodata: tuple[float, ...] = ()
    nodata_of: npt.NDArray[np.float64] | None = None
    limits: tuple[float, float] | None = None
    valid: tuple[Validity, ...] = ()

    def __call__(self, window: Window) -> npt.NDArray[Any]:
        """Read and convert one window."""
        bands, rows, columns = window
        stored = self.read(window)
        invalid = np.zeros(stored.shape, dtype=bool)
        for value in self.nodata:
            missing = is_nodata(stored, value)
            # A single 0 is a legitimate dark count, as in read_window.
            invalid |= missing.all(axis=0) if value == 0 else missing
        if self.nodata_of is not None:
            invalid |= stored == self.nodata_of[bands][:, None, None]
        if self.limits is not None:
            invalid |= (stored < self.limits[0]) | (stored > self.limits[1])
        for mask in self.valid:
            invalid |= ~mask(rows, columns)
        values: npt.NDArray[Any] = stored
        if self.scales is not None:
            values = values * self.scales[bands][:, None, None]
        if self.offsets is not None:
            values = values + self.offsets[bands][:, None, None]
        values = values.astype(self.dtype)
        values[invalid] = np.nan
        return values


def nodata_values(nodata: float | None) -> tuple[float, ...]:
    """Return the one value that a file names, or none, as several are given."""
    return () if nodata is None else (nodata,)


def converted(cube: LazyCube, **settings: Any) -> LazyCube:
    """Return a cube whose values are converted as :class:`Converted` says.

    Args:
        cube: the stored values.
        settings: of :class:`Converted`.
    """
    scaled = settings.get("scales") is not None or settings.get("offsets") is not None
    # Whole numbers of 8 and 16 bits are exact in float32.
    dtype = np.dtype(np.float32) if scaled else np.result_type(cube.dtype, np.float32)
    return LazyCube(cube.shape, dtype, Converted(cube.read, dtype, **settings))
