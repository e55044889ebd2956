"""Mean spectra of the classes, from as many training pixels as can be read in bounded time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.scenes.cube import good_bands, read_window

TILE = 32  # pixels on a side; with 200 bands one tile is 0.8 MB
TILES_PER_CLASS = 12


@dataclass(frozen=True)
class ClassSpectrum:
    """Mean and standard deviation ``(bands,)`` of one class in physical units, NaN at unused bands."""

    value: int
    mean: npt.NDArray[np.float64]
    deviation: npt.NDArray[np.float64]
    pixels: int


def class_spectra(
    scene: xr.DataArray, labels: npt.NDArray[Any], chosen: npt.NDArray[np.bool_], values: list[int]
) -> list[ClassSpectrum]:
    """Average the spectra of the chosen pixels of each class.

    At most 12 tiles of 32 x 32 pixels per class are read, drawn at random (always the same ones), so the cost
    does not grow with the scene; scenes of that size and smaller are used whole.

    Args:
        scene: the scene.
        labels: ``(height, width)`` class numbers.
        chosen: ``(height, width)`` the pixels to use.
        values: the classes wanted.

    Returns:
        One entry per class that has valid pixels, in the order of ``values``.
    """
    usable = good_bands(scene)
    if usable.size == 0:
        return []
    bands = scene.sizes["band"]
    sums = {value: np.zeros((2, len(usable))) for value in values}
    counts = dict.fromkeys(values, 0)
    wanted = np.where(chosen, labels, 0)
    for rows, columns in _tiles(wanted, values):
        truth = wanted[rows, columns]
        cube = read_window(scene, rows, columns, usable).astype(np.float64)
        truth = np.where(np.isfinite(cube).all(axis=0), truth, 0)
        for value in np.unique(truth[truth > 0]).tolist():
            if value in sums:
                pixels = cube[:, truth == value]
                sums[value] += pixels.sum(axis=1), np.square(pixels).sum(axis=1)
                counts[value] += pixels.shape[1]
    spectra = []
    for value in values:
        if counts[value]:
            mean, square = sums[value] / counts[value]
            full = np.full((2, bands), np.nan)
            full[:, usable] = mean, np.sqrt(np.maximum(square - mean**2, 0))
            spectra.append(ClassSpectrum(value, full[0], full[1], counts[value]))
    return spectra


def _tiles(wanted: npt.NDArray[Any], values: list[int]) -> list[tuple[slice, slice]]:
    height, width = wanted.shape
    rows, columns = np.nonzero(wanted)
    classes = wanted[rows, columns]
    across = -(-width // TILE)
    tiles = (rows // TILE) * across + columns // TILE
    random = np.random.default_rng(0)
    drawn: set[int] = set()
    for value in values:
        drawn.update(
            random.permutation(np.unique(tiles[classes == value]))[:TILES_PER_CLASS].tolist()
        )
    corners = [(tile // across * TILE, tile % across * TILE) for tile in sorted(drawn)]
    return [
        (slice(top, min(height, top + TILE)), slice(left, min(width, left + TILE)))
        for top, left in corners
    ]
