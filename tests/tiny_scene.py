"""A small labelled scene, and classifiers with random weights, for tests of everything that learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from vitreous.catalog.registry import create_model
from vitreous.data.contract import BandContract
from vitreous.inference.patch_classifier import PatchClassifier
from vitreous.layers.preprocess import Preprocess
from vitreous.recipe import Recipe, make_recipe
from vitreous.scenes import numpy_files
from vitreous.scenes.cube import make_scene

HEIGHT, WIDTH, BANDS, CLASSES = 24, 28, 8, 3
NANOMETRES = np.linspace(450, 900, BANDS)


def tiny_labels(classes: int = CLASSES) -> np.ndarray:
    """Fields of 6 x 7 pixels, classes in turn."""
    fields = np.arange(16).reshape(4, 4) % classes + 1
    return np.kron(fields, np.ones((6, 7), dtype=int)).astype(np.uint8)


def tiny_cube(labels: np.ndarray, noise: float = 0.02, seed: int = 0) -> np.ndarray:
    """``(bands, rows, columns)`` float32: one reflectance spectrum per class, with noise."""
    spectra = np.random.default_rng(99).uniform(0.2, 0.8, (int(labels.max()) + 1, BANDS))
    cube = spectra[labels] + np.random.default_rng(seed).normal(0, noise, (*labels.shape, BANDS))
    return np.ascontiguousarray(cube.transpose(2, 0, 1), dtype=np.float32)


def tiny_scene(cube: np.ndarray | None = None) -> xr.DataArray:
    """Return the scene of a cube, with wavelengths."""
    values = tiny_cube(tiny_labels()) if cube is None else cube
    return make_scene(values, wavelengths=NANOMETRES, unit="reflectance")


def write_scene(folder: Path, labels: np.ndarray | None = None, **changes: Any) -> dict[str, str]:
    """Write scene and labels to ``folder``; return the settings that name them."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = tiny_labels() if labels is None else labels
    cube = changes.pop("cube", None)
    numpy_files.write(tiny_scene(tiny_cube(labels) if cube is None else cube), folder / "scene.npy")
    np.save(folder / "labels.npy", labels)
    return {"scene": str(folder / "scene.npy"), "labels": str(folder / "labels.npy")}


def tiny_settings(folder: Path, **changes: Any) -> dict[str, Any]:
    """Return settings of a training that takes a second or two."""
    return {
        "model": "vit_test",
        "patch_size": 3,
        "components": 4,
        "epochs": 2,
        "batch_size": 32,
        "learning_rate": 1e-2,
        "split": "random",
        "baselines": [],
        "map": False,
        "report": False,
        "accelerator": "cpu",
        "runs": str(folder / "runs"),
        "name": "run",
        **changes,
    }


def tiny_recipe(folder: Path, **changes: Any) -> Recipe:
    """Return the recipe of :func:`tiny_settings`."""
    return make_recipe(tiny_settings(folder, **changes))


def tiny_classifier(scene: xr.DataArray, model: str = "lola_specvit_test", **settings: Any) -> Any:
    """Return a classifier of ``scene`` with random weights."""
    settings = {"patch_size": 5, **settings}
    torch.manual_seed(0)
    contract = BandContract.of(scene)
    pixels = tiny_cube(tiny_labels()).reshape(BANDS, -1).T
    preprocess = Preprocess.fit(pixels, components=4)
    net = create_model(model, bands=4, num_classes=CLASSES, image_size=settings["patch_size"])
    for name, parameter in net.named_parameters():  # small weights would give equal probabilities
        if parameter.ndim > 1 and "pos" not in name:
            torch.nn.init.normal_(parameter, std=2 * parameter[0].numel() ** -0.5)
    return PatchClassifier(net, preprocess, contract, **settings).eval()
