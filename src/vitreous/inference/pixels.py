"""Classifying some pixels of a scene, for measuring accuracy without mapping everything."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.data.pixels import tiles
from vitreous.inference.windows import Job, SceneClassifier, Window

TILE = 64  # side of the tiles that are read: large enough to share context, small enough to skip empty ground


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
    for tile in tiles(pixels, scene.sizes["x"], TILE):
        height, width = tile.rows.stop - tile.rows.start, tile.columns.stop - tile.columns.start
        window = Window(tile.rows.start, tile.columns.start, height, width)
        found[tile.members] = job.score(job.read(scene, window)).classes.ravel()[tile.inside]
    return found
