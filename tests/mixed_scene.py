"""Scenes of mixed smooth spectra with noise, of any size, for tests of analyses."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from vitreous.scenes.cube import make_scene

PLACE = {"crs": "EPSG:32611", "transform": None}


def smooth_spectra(count: int, bands: int, seed: int = 0) -> np.ndarray:
    """``(count, bands)`` reflectances between 0.05 and 0.95 that change slowly from band to band."""
    rng = np.random.default_rng(seed)
    walks = rng.normal(0, 1, (count, bands)).cumsum(axis=1)
    low, high = walks.min(axis=1, keepdims=True), walks.max(axis=1, keepdims=True)
    return 0.05 + 0.9 * (walks - low) / np.maximum(high - low, 1e-9)


def mixed_cube(
    endmembers: np.ndarray, height: int = 40, width: int = 50, noise: float = 0.005, seed: int = 0
) -> np.ndarray:
    """``(bands, rows, columns)`` float32: random mixtures, the first pixels of the first row pure."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.ones(len(endmembers)), height * width)
    shares[: len(endmembers)] = np.eye(len(endmembers))
    values = shares @ endmembers + rng.normal(0, noise, (height * width, endmembers.shape[1]))
    return values.T.reshape(-1, height, width).astype(np.float32)


def mixed_scene(
    bands: int = 12, height: int = 40, width: int = 50, count: int = 4, **facts: Any
) -> xr.DataArray:
    """Return a scene of reflectance in bands from 450 to 2300 nm."""
    cube = facts.pop("cube", None)
    if cube is None:
        cube = mixed_cube(smooth_spectra(count, bands), height, width)
    centres = np.linspace(450, 2300, len(cube))
    known = {"wavelengths": centres, "unit": "reflectance", "source": "mixed", **facts}
    return make_scene(cube, **known)


def rows(scene: xr.DataArray) -> np.ndarray:
    """``(rows, columns, bands)`` float64, as other packages take it."""
    return scene.values.transpose(1, 2, 0).astype(np.float64)
