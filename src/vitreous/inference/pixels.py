"""Classifying some pixels of a scene, for measuring accuracy without mapping everything."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.data.pixels import tiles
from vitreous.inference.windows import Job, SceneClassifier, Window, aligned, step_of

TILE = 64  # side of the tiles that are read: large enough to share context, small enough to skip empty ground
STEPS = 4  # the same, in steps of a classifier whose windows begin on a grid


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
    job = Job(classifier, np.asarray(classifier.contract.select(scene), dtype=np.int64), False)
    found = np.zeros(len(pixels), dtype=np.int64)
    step = step_of(classifier)
    for tile in tiles(pixels, scene.sizes["x"], TILE if step == 1 else STEPS * step):
        height, width = tile.rows.stop - tile.rows.start, tile.columns.stop - tile.columns.start
        wanted = Window(tile.rows.start, tile.columns.start, height, width)
        window = aligned(wanted, step, scene.sizes["y"], scene.sizes["x"])
        classes = job.score(job.read(scene, window)).classes
        top, left = wanted.row - window.row, wanted.column - window.column
        inner = classes[top : top + height, left : left + width]
        found[tile.members] = inner.ravel()[tile.inside]
    return found
