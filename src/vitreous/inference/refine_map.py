"""An existing map, refined by a scene: its probabilities, from whatever made them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.data.pixels import spread_spectra
from vitreous.errors import SceneError
from vitreous.inference.postprocess import (
    GUIDE_CHANNELS,
    Projection,
    RefinedClassifier,
    Refinement,
    fit_projection,
)
from vitreous.inference.predict import Prediction, predict_scene
from vitreous.scenes.cube import (
    LazyCube,
    Window,
    class_palette,
    good_bands,
    make_scene,
    read_window,
)
from vitreous.scenes.grids import Grid, nearest_window, overlap

MISSING = 1e9  # stands for a guide that there is none of
SUM_TOLERANCE = 0.01  # by which probabilities may miss a sum of 1

Floats = npt.NDArray[np.float32]


def refine_map(
    probabilities: xr.DataArray,
    scene: xr.DataArray,
    out: str | Path,
    refinement: Refinement,
    *,
    refined: str | Path | None = None,
    window: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Prediction:
    """Refine the class probabilities of a map within the edges of a scene, and write the map that they decide.

    Args:
        probabilities: one band per class, as ``vitreous predict --probabilities`` writes them.
        scene: the guide; on another grid its nearest pixels count, and where it has none the map stays as it was.
        out: the map, ``.tif``; classes are numbered from 1 in the order of the bands, whose names they get.
        refinement: the filter.
        refined: also write the refined probabilities here, ``.tif``.
        window: largest side of a window in pixels.
        progress: called with (pixels done, pixels in all).

    Raises:
        SceneError: these are no probabilities, or the scene does not overlap with them.
        VitreousError: the products cannot be written.
    """
    check_probabilities(probabilities)
    own, wanted = Grid.of(scene), Grid.of(probabilities)
    placed = own.transform is not None and wanted.transform is not None
    if not placed and own.size != wanted.size:
        raise SceneError(
            f"The map has {wanted}, the scene {own}.",
            "Give a scene with one pixel per pixel of the map, or georeference both.",
        )
    if not overlap(own, wanted):
        raise SceneError(
            f"The scene ({own}) does not overlap with the map ({wanted}).",
            "Give the scene that the map was made from, or another one of the same ground.",
        )
    bands = good_bands(scene)
    spectra = spread_spectra(scene, bands)
    if not len(spectra):
        raise SceneError(
            f"{scene.attrs.get('source') or 'The scene'} has no valid pixel.",
            "Check its no-data value with 'vitreous info'.",
        )
    guide = fit_projection(spectra, GUIDE_CHANNELS)
    count, channels = probabilities.sizes["band"], len(guide.weights)
    both = LazyCube(
        (count + channels, *wanted.size),
        np.float32,
        _Both(probabilities, scene, bands, guide, own, wanted),
    )
    source = str(probabilities.attrs.get("source") or "")
    names = class_names(probabilities)
    return predict_scene(
        RefinedClassifier(_Known(count), _last(count, channels), refinement),
        make_scene(both, crs=wanted.crs, transform=wanted.transform, source=source),
        out,
        class_names=names,
        class_colors=class_palette(count),
        probabilities=refined,
        window=window,
        check_values=False,
        progress=progress,
    )


def check_probabilities(image: xr.DataArray) -> None:
    """Refuse what cannot be class probabilities, by some of its pixels.

    Raises:
        SceneError: it has one band, no valid pixel, values below 0 or above 1, or sums other than 1.
    """
    name = str(image.attrs.get("source") or "The image")
    advice = "Give the file that 'vitreous predict --probabilities' wrote."
    if image.sizes["band"] < 2:
        raise SceneError(f"{name} has one band, and probabilities have one per class.", advice)
    every = np.arange(image.sizes["band"])
    some = spread_spectra(image, every)
    if not len(some):
        raise SceneError(f"{name} has no valid pixel.", advice)
    if some.min() < 0 or some.max() > 1 + SUM_TOLERANCE:
        raise SceneError(
            f"{name} has values from {some.min():g} to {some.max():g}, and probabilities lie between 0 and 1.",
            advice,
        )
    if np.abs(some.sum(axis=1) - 1).max() > SUM_TOLERANCE:
        raise SceneError(f"The bands of {name} do not sum to 1, as probabilities do.", advice)


def class_names(probabilities: xr.DataArray) -> list[str]:
    """Return the names of the bands, or ``class 1`` and so on where they have none."""
    if "band_name" in probabilities.coords:
        return [str(name) for name in probabilities["band_name"].values]
    return [f"class {k + 1}" for k in range(probabilities.sizes["band"])]


class _Last(Projection):
    """Takes the last bands as they are: they are a guide already."""

    def of(self, window: Floats) -> Floats:
        """Return the guide, NaN where there is none: such pixels stay as they are."""
        found = super().of(window)
        return np.where(found > MISSING / 2, np.float32(np.nan), found)


def _last(first: int, count: int) -> _Last:
    """Return what takes the last ``count`` of ``first + count`` bands."""
    rows = np.eye(count, first + count, k=first)
    return _Last(mean=[0.0] * (first + count), weights=rows.tolist())


@dataclass(frozen=True)
class _Every:
    """Asks for all bands."""

    levels = None

    def select(self, scene: xr.DataArray) -> npt.NDArray[np.int64]:
        return np.arange(scene.sizes["band"])


@dataclass(frozen=True)
class _Known:
    """A scene classifier whose probabilities are the first bands of the scene.

    Attributes:
        num_classes: how many.
    """

    num_classes: int
    margin: int = 0

    @property
    def contract(self) -> Any:
        return _Every()

    def classify(self, window: Floats) -> Floats:
        return np.nan_to_num(window[: self.num_classes])


@dataclass(frozen=True)
class _Both:
    """Reads probabilities and, on their grid, the guide.

    Attributes:
        probabilities: the image that is refined.
        scene: the guide's.
        bands: of the scene.
        guide: makes the guide from them.
        own: the scene's grid.
        wanted: that of the probabilities.
    """

    probabilities: xr.DataArray
    scene: xr.DataArray
    bands: npt.NDArray[np.int64]
    guide: Projection
    own: Grid
    wanted: Grid

    def __call__(self, window: Window) -> Floats:
        """Read one window."""
        bands, rows, columns = window
        every = np.arange(self.probabilities.sizes["band"])
        first = read_window(self.probabilities, rows, columns, every)
        # A pixel without a guide has probabilities all the same, so it is not invalid.
        guide = np.nan_to_num(self._guide(rows, columns), nan=MISSING)
        parts: Sequence[Floats] = (first, guide)
        return np.concatenate(parts)[bands]

    def _guide(self, rows: slice, columns: slice) -> Floats:
        if self.own.agrees(self.wanted):
            return self.guide.of(read_window(self.scene, rows, columns, self.bands))
        return np.stack([self._channel(k, rows, columns) for k in range(len(self.guide.weights))])

    def _channel(self, number: int, rows: slice, columns: slice) -> Floats:
        one = Projection(mean=self.guide.mean, weights=[self.guide.weights[number]])
        values, inside = nearest_window(
            lambda r, c: one.of(read_window(self.scene, r, c, self.bands))[0],
            self.own,
            self.wanted,
            rows,
            columns,
        )
        return np.where(inside, values, np.float32(np.nan)).astype(np.float32)
