"""Opening what a recipe names: a scene, its labels, and the split between them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.data.fingerprint import labels_fingerprint
from vitreous.data.splits import Split, make_split, merged_labels
from vitreous.errors import ConfigError
from vitreous.recipe import Recipe
from vitreous.scenes import open_labels, open_scene
from vitreous.scenes.cube import class_codes
from vitreous.scenes.dead_bands import without_dead_bands
from vitreous.scenes.labels import with_common_classes, with_occurring_classes
from vitreous.scenes.samples import SAMPLES, load_sample


@dataclass(frozen=True)
class LabelledScene:
    """A scene with the labels to learn from and to measure against.

    Attributes:
        scene: the scene.
        labels: classes from 1 on, 0 = unlabelled: the training pixels' own labels where those are given
            apart, the test labels elsewhere.
        train_labels: the scene's fixed training labels, or None.
        test_labels: separate test labels, or None.
    """

    scene: xr.DataArray
    labels: xr.DataArray
    train_labels: xr.DataArray | None = None
    test_labels: xr.DataArray | None = None

    @property
    def class_names(self) -> list[str]:
        """Names of the classes from 1 on."""
        return list(self.labels.attrs["class_names"])

    @property
    def class_colors(self) -> list[str]:
        """``#rrggbb`` of the classes from 1 on."""
        return list(self.labels.attrs["class_colors"])

    @property
    def class_codes(self) -> list[int]:
        """The label files' own numbers of the classes from 1 on."""
        return class_codes(self.labels)

    @property
    def fingerprint(self) -> str:
        """A hash of all its labels, to notice when they change."""
        return labels_fingerprint(self.labels, self.train_labels, self.test_labels)

    def classes_at(self, pixels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the classes (from 1 on) of flat pixel indices."""
        return np.asarray(self.labels.values).ravel()[pixels].astype(np.int64)

    def cropped(self, rows: slice, columns: slice) -> LabelledScene:
        """Return a rectangle of the scene with its labels."""
        parts = [
            None if image is None else image.isel(y=rows, x=columns)
            for image in (self.scene, self.labels, self.train_labels, self.test_labels)
        ]
        assert parts[0] is not None and parts[1] is not None
        return LabelledScene(parts[0], parts[1], parts[2], parts[3])

    def only(self, classes: Sequence[int]) -> LabelledScene:
        """Return the scene with the labels of some classes alone, numbered from 1 on in the given order.

        Separate training and test labels are left behind.
        """
        number = np.zeros(len(self.class_names) + 1, dtype=np.int64)
        number[list(classes)] = np.arange(1, len(classes) + 1)
        labels = self.labels.copy(data=number[np.asarray(self.labels.values)])
        labels.attrs |= {
            "class_names": [self.class_names[k - 1] for k in classes],
            "class_colors": [self.class_colors[k - 1] for k in classes],
            "class_codes": [self.class_codes[k - 1] for k in classes],
        }
        return LabelledScene(self.scene, labels)

    def split(self, recipe: Recipe, receptive_size: int) -> Split:
        """Divide the labelled pixels as the recipe says.

        Args:
            recipe: the settings.
            receptive_size: side of the square of pixels that one prediction depends on.
        """
        train, test = self.train_labels, self.test_labels
        if recipe.split == "files":
            return make_split(
                train if train is not None else self.labels, recipe, receptive_size, None, test
            )
        return make_split(self.labels, recipe, receptive_size, train_labels=train)


def open_labelled(recipe: Recipe, *, again: bool = False) -> LabelledScene:
    """Open the scene and labels of a recipe.

    Args:
        recipe: which names them.
        again: those of a run, whose training has said all that is to say about its files.

    Raises:
        ConfigError: no labels are named, or labels of the two files do not agree in their classes.
    """
    if again:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return open_labelled(recipe)
    if recipe.scene in SAMPLES and not Path(recipe.scene).exists():
        sample = load_sample(recipe.scene)
        if recipe.labels is not None:
            labels = _labels(recipe.labels, sample.scene, recipe)
            return _with_tests(sample.scene, labels, recipe)
        if recipe.split == "fixed":
            merged = merged_labels(sample.labels, sample.train_labels)
            return LabelledScene(sample.scene, merged, train_labels=sample.train_labels)
        return _with_tests(sample.scene, sample.labels, recipe)
    if recipe.labels is None:
        raise ConfigError(
            f"No labels are given for {recipe.scene}.", "Give a label file with --labels."
        )
    scene = without_dead_bands(
        open_scene(recipe.scene, untrusted=recipe.untrusted, **recipe.scene_hints)
    )
    return _with_tests(scene, _labels(recipe.labels, scene, recipe), recipe)


def _labels(path: str, scene: xr.DataArray, recipe: Recipe) -> xr.DataArray:
    hints = recipe.label_hints
    if recipe.classes is not None:
        hints = {**hints, "classes": recipe.classes}
    labels = open_labels(path, scene, recipe.label_attribute, untrusted=recipe.untrusted, **hints)
    return with_occurring_classes(labels)


def _with_tests(scene: xr.DataArray, labels: xr.DataArray, recipe: Recipe) -> LabelledScene:
    if recipe.test_labels is None:
        return LabelledScene(scene, labels)
    test = _labels(recipe.test_labels, scene, recipe)
    labels, test = with_common_classes(labels, test)
    merged = merged_labels(test, labels)
    return LabelledScene(scene, merged, train_labels=labels, test_labels=test)
