"""Windows of a scene: planned, read with their context, classified."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.data.contract import BandContract
from vitreous.errors import ModelError, SceneError
from vitreous.scenes.cube import Padding, read_with_context

# Beyond this side the context around a window is a small share of the work, and larger windows only cost memory.
MAX_SIDE = 256
MIN_SIDE = 32
WINDOW_BYTES = (
    256 * 2**20
)  # what reading and scoring one window may take, the classifier's own needs aside


class SceneClassifier(Protocol):
    """What a trained system offers to map a scene (see docs/architecture.md).

    A classifier may also have an attribute ``padding``: ``reflect`` (the default) mirrors the scene at its
    edge, ``zero`` leaves NaN there, which the classifier treats as "nothing". Where it has an attribute ``step``,
    its windows begin at multiples of that many pixels of the scene, and end there or at the scene's edge.
    """

    @property
    def margin(self) -> int:
        """Context in pixels on each side of a window."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""

    @property
    def contract(self) -> BandContract:
        """The bands it was trained on."""

    def classify(self, window: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Turn ``(bands, h + 2 margin, w + 2 margin)`` into probabilities ``(classes, h, w)``."""


class Layer(Protocol):
    """A further layer of a map, such as its uncertainty, written as bands of float32."""

    @property
    def bands(self) -> Sequence[str]:
        """What the bands are called."""

    def layer(
        self, values: npt.NDArray[np.float32], probabilities: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        """Return ``(bands of the layer, h, w)`` from a window ``(bands, h, w)`` and its probabilities; NaN where invalid."""


@dataclass(frozen=True, slots=True)
class Window:
    """A rectangle of pixels within a scene."""

    row: int
    column: int
    height: int
    width: int

    @property
    def pixels(self) -> int:
        """Number of pixels."""
        return self.height * self.width

    @property
    def rows(self) -> slice:
        """Its rows of the scene."""
        return slice(self.row, self.row + self.height)

    @property
    def columns(self) -> slice:
        """Its columns of the scene."""
        return slice(self.column, self.column + self.width)


@dataclass(frozen=True, slots=True)
class Job:
    """Everything but the place that is needed to score a window of a scene."""

    classifier: SceneClassifier
    bands: npt.NDArray[np.int64]
    probabilities: bool
    layers: tuple[Layer, ...] = ()

    def read(self, scene: xr.DataArray, window: Window) -> npt.NDArray[np.float32]:
        """Read ``window`` of ``scene`` with the context that the classifier needs."""
        padding: Padding = getattr(self.classifier, "padding", "reflect")
        try:
            return read_with_context(
                scene, window.rows, window.columns, self.bands, self.classifier.margin, padding
            )
        except OSError as error:
            raise SceneError(
                f"{scene.attrs.get('source') or 'The scene'} cannot be read at row {window.row}, "
                f"column {window.column}: {error}.",
                "The file is probably damaged or incomplete.",
            ) from error

    def score(self, values: npt.NDArray[np.float32]) -> Scored:
        """Classify one window that :meth:`read` returned."""
        keep = self.probabilities or bool(self.layers)
        scored = score(self.classifier, values, keep_probabilities=keep)
        if not self.layers:
            return scored
        assert scored.probabilities is not None
        inner = slice(self.classifier.margin, -self.classifier.margin or None)
        seen = values[:, inner, inner]
        layers = tuple(one.layer(seen, scored.probabilities) for one in self.layers)
        kept = scored.probabilities if self.probabilities else None
        return Scored(scored.classes, kept, layers)


@dataclass(frozen=True, slots=True)
class Scored:
    """The result of one window.

    Attributes:
        classes: ``(h, w)`` uint8, or uint16 beyond 255 classes; 0 where the pixel is invalid.
        probabilities: ``(classes, h, w)`` float32, NaN where the pixel is invalid; None unless asked for.
        layers: ``(bands, h, w)`` float32 of each layer that was asked for.
    """

    classes: npt.NDArray[Any]
    probabilities: npt.NDArray[np.float32] | None
    layers: tuple[npt.NDArray[np.float32], ...] = ()


def class_dtype(num_classes: int) -> np.dtype[Any]:
    """Return the smallest type of a map with ``num_classes`` classes and 0 for nodata."""
    return np.dtype(np.uint8 if num_classes <= 255 else np.uint16)


def window_side(bands: int, num_classes: int, margin: int) -> int:
    """Return the side of a square window whose values fit :data:`WINDOW_BYTES`."""
    # Stored values and two float copies while reading; probabilities and one copy without invalid pixels.
    bytes_per_pixel = 4 * (3 * bands + 2 * num_classes)
    side = int((WINDOW_BYTES / bytes_per_pixel) ** 0.5) - 2 * margin
    return min(MAX_SIDE, max(MIN_SIDE, side))


def plan_windows(height: int, width: int, side: int, step: int = 1) -> list[Window]:
    """Divide a scene into windows, nearly equal ones, row by row.

    Args:
        height: rows of the scene.
        width: columns of the scene.
        side: largest side of a window; where it is smaller than ``step``, a window has ``step``.
        step: windows begin at multiples of it.
    """
    return [
        Window(row, column, row_end - row, column_end - column)
        for row, row_end in _cuts(height, side, step)
        for column, column_end in _cuts(width, side, step)
    ]


def aligned(window: Window, step: int, height: int, width: int) -> Window:
    """Return the smallest window around ``window`` that begins at multiples of ``step``, and ends so or with the scene.

    Args:
        window: a rectangle of the scene.
        step: see :class:`SceneClassifier`.
        height: rows of the scene.
        width: columns of the scene.
    """
    row, column = window.row // step * step, window.column // step * step
    below = min(height, -(-window.rows.stop // step) * step)
    after = min(width, -(-window.columns.stop // step) * step)
    return Window(row, column, below - row, after - column)


def step_of(classifier: SceneClassifier) -> int:
    """Return the distance of the places where a classifier's windows may begin."""
    return int(getattr(classifier, "step", 1))


def _cuts(size: int, side: int, step: int) -> list[tuple[int, int]]:
    cells = -(-size // step)
    count = -(-cells // max(1, side // step))
    edges = [min(size, cells * k // count * step) for k in range(count + 1)]
    return list(itertools.pairwise(edges))


def score(
    classifier: SceneClassifier, values: npt.NDArray[np.float32], *, keep_probabilities: bool
) -> Scored:
    """Classify one window that was read with its context.

    Args:
        classifier: the trained system.
        values: ``(bands, h + 2 margin, w + 2 margin)``.
        keep_probabilities: also return the probabilities.

    Raises:
        ModelError: the classifier gives no numbers for a valid pixel, or an array of another shape.
    """
    margin, count = classifier.margin, classifier.num_classes
    height, width = values.shape[1] - 2 * margin, values.shape[2] - 2 * margin
    # One band is enough: read_window makes all bands of an invalid pixel NaN.
    valid = ~np.isnan(values[0, margin : margin + height, margin : margin + width])
    classes = np.zeros((height, width), class_dtype(count))
    if not valid.any():  # scenes on a map grid are nodata in large parts: nothing to compute there
        empty = np.full((count, height, width), np.nan, np.float32) if keep_probabilities else None
        return Scored(classes, empty)
    probabilities = np.asarray(classifier.classify(values), dtype=np.float32)
    if probabilities.shape != (count, height, width):
        raise ModelError(
            f"The model gave an array of shape {probabilities.shape}, expected {(count, height, width)}.",
            "This is a bug in the model.",
        )
    if not np.isfinite(probabilities[:, valid]).all():
        raise ModelError(
            "The model outputs NaN or infinity for valid pixels.",
            "Its training diverged: train again with a lower learning rate.",
        )
    classes[valid] = probabilities.argmax(axis=0)[valid] + 1
    if not keep_probabilities:
        return Scored(classes, None)
    return Scored(classes, np.where(valid, probabilities, np.float32(np.nan)))
