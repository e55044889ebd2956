"""A smooth scene of few components, restorers that anyone can compute, and settings of quick runs without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr

from vitreous.data.contract import BandContract
from vitreous.inference.restore import SceneRestorer
from vitreous.layers.ranges import BandRange
from vitreous.layers.restorer import Restorer
from vitreous.scenes import numpy_files
from vitreous.scenes.cube import make_scene, read_window

BANDS, HEIGHT, WIDTH = 6, 40, 96
PLACE = {"crs": "EPSG:32611"}


def smooth_cube(
    bands: int = BANDS, height: int = HEIGHT, width: int = WIDTH, seed: int = 0
) -> np.ndarray:
    """``(bands, rows, columns)`` float32 around 0.5: three waves, mixed differently in every band."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 9) + np.cos(y / 7), np.sin(x / 5 + y / 11), np.cos(x / 13 - y / 6)]
    shares = np.random.default_rng(seed).uniform(0.2, 1, (bands, len(waves)))
    return (0.5 + 0.1 * np.einsum("bk,kyx->byx", shares, waves)).astype(np.float32)


def smooth_scene(cube: np.ndarray | None = None, **facts: Any) -> xr.DataArray:
    """Return the scene of a cube, with wavelengths."""
    values = smooth_cube() if cube is None else cube
    centres = np.linspace(450, 900, len(values))
    return make_scene(values, **{"wavelengths": centres, "unit": "reflectance", **facts})


def write_smooth_scene(folder: Path, cube: np.ndarray | None = None, **facts: Any) -> str:
    """Write the scene to ``folder``, and return its name."""
    folder.mkdir(parents=True, exist_ok=True)
    numpy_files.write(smooth_scene(cube, **facts), folder / "scene.npy")
    return str(folder / "scene.npy")


def run_settings(folder: Path, **changes: Any) -> dict[str, Any]:
    """Return what quick runs of every kind have in common."""
    return {
        "steps": 30,
        "batch_size": 2,
        "report": False,
        "accelerator": "cpu",
        "runs": str(folder / "runs"),
        "name": "run",
        **changes,
    }


def restore_settings(folder: Path, **changes: Any) -> dict[str, Any]:
    """Return settings of ``vitreous restore`` that take a second."""
    own = {
        "model": "hsdt_test",
        "crop": 8,
        "learning_rate": 5e-3,
        "test_fraction": 0.25,
        "baselines": [],
        "product": False,
    }
    return run_settings(folder, **{**own, **changes})


def pretrain_settings(folder: Path, **changes: Any) -> dict[str, Any]:
    """Return settings of ``vitreous pretrain`` that take a second."""
    own = {
        "model": "satmae_pp_test",
        "image_size": 9,
        "pretrainer_args": {"scales": 0},
        "val_fraction": 0.33,
    }
    return run_settings(folder, **{**own, **changes})


class Mixer(Restorer):
    """Mixes the bands of every pixel by fixed weights, adds 1, and repeats it ``scale`` times."""

    def __init__(self, bands: int, scale: int = 1) -> None:
        super().__init__(bands)
        self.scale = scale
        self.tiles = 0  # that it has seen
        mixing = torch.randn(bands, bands, generator=torch.Generator().manual_seed(1))
        self.register_buffer("mixing", mixing)

    def restore(self, x):
        self.tiles += len(x)
        mixed = torch.einsum("ij,bjhw->bihw", self.mixing, x) + 1
        return mixed.repeat_interleave(self.scale, 2).repeat_interleave(self.scale, 3)


class Blur(Restorer):
    """The mean of 3 x 3 pixels, zeros beyond the edge: tiles differ where they meet."""

    any_bands = True

    def restore(self, x):
        return F.avg_pool2d(x, 3, 1, 1)


def restorer_of(scene: xr.DataArray, net: Restorer, **settings: Any) -> SceneRestorer:
    """Return a restorer of a scene."""
    values = read_window(scene, slice(None), slice(None)).reshape(net.bands, -1).T
    ranges = BandRange.fit(values[np.isfinite(values).all(1)])
    return SceneRestorer(net, ranges, BandContract.of(scene), **{"tile_size": 16, **settings})


def untiled(restorer: SceneRestorer, values: np.ndarray) -> np.ndarray:
    """Restore physical values in one piece."""
    with torch.inference_mode():
        net, ranges = restorer.net, restorer.ranges
        return ranges.inverse(net(ranges(torch.from_numpy(values))[None])[0]).numpy()
