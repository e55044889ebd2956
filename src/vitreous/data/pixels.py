"""Reading some pixels of a scene, tile by tile, so that memory does not grow with the scene."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.scenes.cube import read_window

TILE = 128  # side: tens of megabytes at hundreds of bands


@dataclass(frozen=True)
class Tile:
    """A rectangle of the scene around some of the pixels that were asked for.

    Attributes:
        members: which of the pixels these are.
        rows: rows of the rectangle.
        columns: columns of the rectangle.
        inside: flat positions of the members within the rectangle.
    """

    members: npt.NDArray[np.int64]
    rows: slice
    columns: slice
    inside: npt.NDArray[np.int64]


def tiles(pixels: npt.NDArray[np.int64], width: int, side: int = TILE) -> Iterator[Tile]:
    """Divide pixels among the tiles they lie in, each shrunk to what its pixels need.

    Args:
        pixels: flat (row-major) indices.
        width: width of the scene.
        side: largest side of a tile.
    """
    rows, columns = np.divmod(np.asarray(pixels, dtype=np.int64), width)
    number = rows // side * (width // side + 1) + columns // side
    order = np.argsort(number, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(number[order])) + 1):
        if len(members) == 0:
            continue
        top, left = int(rows[members].min()), int(columns[members].min())
        bottom, right = int(rows[members].max()) + 1, int(columns[members].max()) + 1
        inside = (rows[members] - top) * (right - left) + columns[members] - left
        yield Tile(members, slice(top, bottom), slice(left, right), inside)


def spectra_at(
    scene: xr.DataArray, bands: npt.NDArray[np.int64], pixels: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """Return ``(n, bands)`` physical values of some pixels; NaN where a pixel is invalid."""
    spectra = np.empty((len(pixels), len(bands)), dtype=np.float32)
    for tile in tiles(pixels, scene.sizes["x"]):
        window = read_window(scene, tile.rows, tile.columns, bands)
        spectra[tile.members] = window.reshape(len(bands), -1).T[tile.inside]
    return spectra
