"""Classifying some pixels of a scene, for measuring accuracy without mapping everything."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.data.pixels import tiles
from vitreous.inference.windows import Job, SceneClassifier, Scored, Window, aligned, step_of

TILE = 64  # side of the tiles that are read: large enough to share context, small enough to skip empty ground
STEPS = 4  # the same, in steps of a classifier whose windows begin on a grid
CELL = 8  # side of tiles for a few pixels that lie together


def classify_pixels(
    classifier: SceneClassifier, scene: xr.DataArray, pixels: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return the classes of some pixels, equal to what a map of the whole scene would hold there.

    Args:
        classifier: a trained system.
        scene: the scene.
        pixels: flat (row-major) indices.

    Returns:
        Classes from 1 on, 0 where a pixel is invalid, in the order of ``pixels``.
    """
    found = np.zeros(len(pixels), dtype=np.int64)
    step = step_of(classifier)
    side = TILE if step == 1 else STEPS * step
    for members, scored, at in _scored(classifier, scene, pixels, side):
        found[members] = scored.classes[at]
    return found


def probabilities_at(
    classifier: SceneClassifier,
    scene: xr.DataArray,
    pixels: npt.NDArray[np.int64],
    side: int = CELL,
) -> npt.NDArray[np.float32]:
    """Return the probabilities of some pixels, equal to what a map of the whole scene would hold there.

    Args:
        classifier: a trained system.
        scene: the scene.
        pixels: flat (row-major) indices.
        side: of the tiles that are computed; larger ones than the default where the pixels are many.

    Returns:
        ``(n, classes)`` in the order of ``pixels``, NaN where a pixel is invalid.
    """
    found = np.full((len(pixels), classifier.num_classes), np.nan, dtype=np.float32)
    for members, scored, at in _scored(classifier, scene, pixels, side, probabilities=True):
        assert scored.probabilities is not None
        found[members] = scored.probabilities[:, *at].T
    return found


def _scored(
    classifier: SceneClassifier,
    scene: xr.DataArray,
    pixels: npt.NDArray[np.int64],
    side: int,
    *,
    probabilities: bool = False,
) -> Iterator[tuple[npt.NDArray[np.int64], Scored, tuple[npt.NDArray[Any], npt.NDArray[Any]]]]:
    """Score the windows that hold the pixels: which pixels, the window's scores, and rows and columns in it."""
    bands = np.asarray(classifier.contract.select(scene), dtype=np.int64)
    job = Job(classifier, bands, probabilities)
    step = step_of(classifier)
    for tile in tiles(pixels, scene.sizes["x"], side):
        height, width = tile.rows.stop - tile.rows.start, tile.columns.stop - tile.columns.start
        wanted = Window(tile.rows.start, tile.columns.start, height, width)
        window = aligned(wanted, step, scene.sizes["y"], scene.sizes["x"])
        rows, columns = np.divmod(tile.inside, width)
        at = (rows + wanted.row - window.row, columns + wanted.column - window.column)
        yield tile.members, job.score(job.read(scene, window)), at
