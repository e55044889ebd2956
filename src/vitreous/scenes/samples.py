"""Scenes that come with the package: real data for a first run, for tests and for benchmarks."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.errors import SceneError, did_you_mean
from vitreous.scenes.cube import make_labels, make_scene

SAMPLES: tuple[str, ...] = ("indian_pines",)


class Sample(NamedTuple):
    """A labelled scene and the training pixels that its literature uses.

    Attributes:
        scene: ``(band, y, x)``.
        labels: the ground truth, ``(y, x)``.
        train_labels: the fixed training pixels, ``(y, x)``, 0 elsewhere. Test pixels are those of ``labels`` where
            this is 0. The values of the training pixels are here and not in ``labels``: a fixed training set can
            be older than the ground truth and contain pixels that the latter leaves unlabelled.
    """

    scene: xr.DataArray
    labels: xr.DataArray
    train_labels: xr.DataArray


def load_sample(name: str) -> Sample:
    """Load a built-in scene.

    ``indian_pines``: AVIRIS, 12 June 1992, fields and woods in Indiana; 145 x 145 pixels, 200 bands from 400 to
    2489 nm (the 220 of the sensor less its water bands), digital numbers, 16 classes in 10249 pixels. Data: M. F.
    Baumgardner, L. L. Biehl, D. A. Landgrebe (2015), doi:10.4231/R7RX991C, CC BY 3.0, as packaged by TensorLy. The
    data come without a georeference, so the scene has none. The wavelengths are the sensor file's own: they step
    back where two detectors overlap (696.5 to 686.9 nm, 1282.6 to 1273.0 nm).

    The fixed split has 695 training pixels (50 per class, 15 of the three smallest). It was drawn from an older
    ground truth: 26 of them are unlabelled in today's, the other 669 agree with it. 9580 pixels are left to test.

    Args:
        name: one of ``SAMPLES``.

    Raises:
        SceneError: there is no such sample, or the package that ships its data is missing or has changed.
    """
    if name not in SAMPLES:
        raise SceneError(f"No such built-in scene: {name}.", did_you_mean(name, SAMPLES))
    facts = json.loads(
        resources.files("vitreous.scenes").joinpath(f"{name}.json").read_text("utf-8")
    )
    values, truth = _tensorly_arrays(facts)
    return Sample(
        _scene(values, facts), _labels(truth, facts), _labels(_training_image(facts), facts)
    )


class NamedScene(NamedTuple):
    """A scene, and its labels where it is a built-in sample."""

    scene: xr.DataArray
    labels: xr.DataArray | None


def open_named(scene: str, hints: dict[str, Any], *, untrusted: bool = False) -> NamedScene:
    """Open a scene file, or a built-in sample by its name; an existing path wins over a sample's name.

    Args:
        scene: the path or name.
        hints: for the reader.
        untrusted: as for :func:`vitreous.scenes.open_scene`.

    Raises:
        SceneError: nothing of that name, or a file that cannot be read.
    """
    from vitreous.scenes.formats import open_scene

    if scene in SAMPLES and not Path(scene).exists():
        sample = load_sample(scene)
        return NamedScene(sample.scene, sample.labels)
    return NamedScene(open_scene(scene, untrusted=untrusted, **hints), None)


def _tensorly_arrays(facts: dict[str, Any]) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint8]]:
    """Return TensorLy's cube ``(rows, columns, bands)`` and ground truth."""
    try:
        from tensorly.datasets import load_indian_pines
    except ImportError as error:
        raise SceneError(
            f"The built-in scene '{facts['name']}' comes with the package tensorly, which is not installed.",
            "Install it with: pip install tensorly",
        ) from error
    bundle = load_indian_pines()
    cube, truth = np.asarray(bundle.tensor), np.asarray(bundle.ticks[0])
    # TensorLy turns the digital numbers into floats; anything but whole numbers would not be this scene.
    values = cube.astype(np.uint16)
    if (
        cube.shape != tuple(facts["shape"])
        or truth.shape != cube.shape[:2]
        or not np.array_equal(values, cube)
    ):
        raise SceneError(
            f"The installed tensorly has a different version of the scene '{facts['name']}'.",
            "Install it with: pip install 'tensorly>=0.9,<0.11'",
        )
    return values, truth


def _scene(values: npt.NDArray[np.uint16], facts: dict[str, Any]) -> xr.DataArray:
    scene = make_scene(
        np.ascontiguousarray(values.transpose(2, 0, 1)),
        wavelengths=facts["wavelengths"],
        fwhm=facts["fwhm"],
        unit="dn",
        source=facts["name"],
    )
    scene.attrs["attribution"] = f"{facts['citation']} ({facts['license']})"
    return scene


def _labels(values: npt.NDArray[Any], facts: dict[str, Any]) -> xr.DataArray:
    return make_labels(
        values,
        class_names=[c["name"] for c in facts["classes"]],
        class_colors=[c["color"] for c in facts["classes"]],
        source=facts["name"],
    )


def _training_image(facts: dict[str, Any]) -> npt.NDArray[np.uint8]:
    image = np.zeros(tuple(facts["shape"][:2]), dtype=np.uint8)
    for value, pixels in facts["training_pixels"].items():
        image.flat[pixels] = int(value)
    return image
