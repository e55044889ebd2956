"""Reading some pixels of a scene, tile by tile, so that memory does not grow with the scene."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.errors import SceneError
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


@contextmanager
def reading(scene: xr.DataArray) -> Iterator[None]:
    """Say of which scene it is that values cannot be read.

    Raises:
        SceneError: they cannot.
    """
    try:
        yield
    except OSError as error:
        raise SceneError(
            f"{scene.attrs.get('source') or 'The scene'} cannot be read: {error}.",
            "The file is probably damaged or incomplete.",
        ) from error


def spread_windows(height: int, width: int, side: int, count: int) -> Iterator[tuple[slice, slice]]:
    """Yield squares spread evenly over a scene, as slices of rows and columns; they never overlap.

    Args:
        height: rows of the scene.
        width: columns of the scene.
        side: of a square in pixels.
        count: squares along each side of the scene; fewer where these cover all of it.
    """

    def spans(size: int) -> list[slice]:
        starts = list(range(0, size, side))
        if len(starts) > count:
            starts = np.linspace(0, size - side, count).astype(int).tolist()
        return [slice(start, min(start + side, size)) for start in starts]

    for rows in spans(height):
        for columns in spans(width):
            yield rows, columns


def spread_spectra(
    scene: xr.DataArray, bands: npt.NDArray[np.int64], side: int = 16, count: int = 8
) -> npt.NDArray[np.float32]:
    """Return the spectra of valid pixels in squares spread over a scene, ``(pixels, bands)``.

    Args:
        scene: the scene.
        bands: which bands.
        side: see :func:`spread_windows`.
        count: see :func:`spread_windows`.

    Raises:
        SceneError: the file breaks off.
    """
    with reading(scene):
        found = [
            read_window(scene, rows, columns, bands).reshape(len(bands), -1).T
            for rows, columns in spread_windows(scene.sizes["y"], scene.sizes["x"], side, count)
        ]
    spectra = np.concatenate(found)
    return spectra[np.isfinite(spectra).all(1)]


def spread_pairs(
    scene: xr.DataArray, bands: npt.NDArray[np.int64], side: int = 16, count: int = 8
) -> npt.NDArray[np.float32]:
    """Return the spectra of pixels and of their right or lower neighbours, in squares spread over a scene.

    Args:
        scene: the scene.
        bands: which bands.
        side: see :func:`spread_windows`.
        count: see :func:`spread_windows`.

    Returns:
        ``(pairs, 2, bands)``, all valid.

    Raises:
        SceneError: the file breaks off.
    """
    found = []
    with reading(scene):
        for rows, columns in spread_windows(scene.sizes["y"], scene.sizes["x"], side, count):
            window = read_window(scene, rows, columns, bands)
            for one, other in (
                (window[:, :, :-1], window[:, :, 1:]),
                (window[:, :-1], window[:, 1:]),
            ):
                pairs = np.stack([one, other]).reshape(2, len(bands), -1)
                found.append(pairs.transpose(2, 0, 1))
    spectra = np.concatenate(found)
    return spectra[np.isfinite(spectra).all((1, 2))]


def spectra_at(
    scene: xr.DataArray, bands: npt.NDArray[np.int64], pixels: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """Return ``(n, bands)`` physical values of some pixels; NaN where a pixel is invalid."""
    spectra = np.empty((len(pixels), len(bands)), dtype=np.float32)
    for tile in tiles(pixels, scene.sizes["x"]):
        window = read_window(scene, tile.rows, tile.columns, bands)
        spectra[tile.members] = window.reshape(len(bands), -1).T[tile.inside]
    return spectra
