"""How much ground each class covers: the map's own count, corrected by the errors that the test pixels show.

A map that errs counts wrongly. The stratified estimator takes the map's classes as strata and the test pixels as a sample of
each (Olofsson et al., *Good practices for estimating area and assessing accuracy of land change*, Remote Sensing of
Environment 148, 2014, equations 9 to 11). It holds as far as the test pixels of a mapped class are like its other pixels.

Its published variance takes test pixels for independent. Neighbouring pixels err together, so where it is known in which
block of the scene a test pixel lies, the variance is that between blocks: the estimator is linearised, and the residuals of
a block are summed (Särndal, Swensson & Wretman, *Model Assisted Survey Sampling*, 5.5).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.scenes.cube import georeference
from vitreous.tasks.metrics import Part

NORMAL_95 = 1.96  # standard errors on each side of a 95 % interval
FEWEST = 2  # test pixels of a mapped class: of fewer there is no variance
SAME_SIZE = 1e-3  # by which pixels of one size may differ
HECTARE = 1e4  # square metres

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Placed(NamedTuple):
    """Test pixels, counted by the place where they lie, their class and that of the map.

    Attributes:
        place: ``(n,)`` numbers of blocks, or of scenes, from 0 on without gaps.
        truth: ``(n,)`` classes from 0 on.
        mapped: ``(n,)`` classes from 0 on.
        pixels: ``(n,)`` how many there are of each kind.
    """

    place: Ints
    truth: Ints
    mapped: Ints
    pixels: Ints

    @classmethod
    def of(cls, parts: Iterable[Part]) -> Placed:
        """Count the test pixels of scenes by blocks, of several scenes by scene; those without a prediction are left out."""
        found = []
        for part in parts:
            block = np.arange(len(part.truth)) if part.blocks is None else part.blocks.of_pixel
            cells = np.stack([block, part.truth, part.predicted])[:, np.asarray(part.predicted) > 0]
            found.append(np.unique(cells, axis=1, return_counts=True))
        cells = np.concatenate([own for own, _ in found], axis=1).astype(np.int64)
        pixels = np.concatenate([counts for _, counts in found]).astype(np.int64)
        if len(found) > 1:
            cells[0] = np.repeat(np.arange(len(found)), [len(counts) for _, counts in found])
        place = np.unique(cells[0], return_inverse=True)[1].astype(np.int64)
        return cls(place, cells[1] - 1, cells[2] - 1, pixels)

    @property
    def places(self) -> int:
        """How many places there are."""
        return int(self.place.max(initial=-1)) + 1

    def variance(self, share: Floats, weight: Floats) -> Floats:
        """Return the variance of a stratified estimate between places: ``(classes,)``, NaN of a single place.

        Args:
            share: ``(strata, classes)`` of a mapped class that is truly of a class.
            weight: ``(strata,)`` what a test pixel stands for, as a share of the map; 0 of strata that are left out.
        """
        if self.places < 2:
            return np.full(share.shape[1], np.nan)
        shape = (self.places, len(weight))
        seen, counts = np.zeros(shape), np.zeros(shape)
        np.add.at(seen, (self.place, self.truth), weight[self.mapped] * self.pixels)
        np.add.at(counts, (self.place, self.mapped), weight[self.mapped] * self.pixels)
        residuals = seen - counts @ share
        spread: Floats = np.square(residuals).sum(axis=0) * self.places / (self.places - 1)
        return spread


class Estimated(NamedTuple):
    """Areas of classes.

    Attributes:
        area: ``(classes,)`` in the unit of the mapped areas.
        error: ``(classes,)`` standard errors; NaN where all test pixels lie in one place.
        assessed: share of the mapped area whose class has test pixels.
    """

    area: Floats
    error: Floats
    assessed: float


def stratified_areas(
    confusion: npt.NDArray[np.integer[Any]],
    mapped: npt.NDArray[Any],
    placed: Placed | None = None,
) -> Estimated:
    """Estimate areas from a confusion matrix and the areas on the map.

    Args:
        confusion: ``(classes, classes)`` test pixels; rows are the truth, columns the map.
        mapped: ``(classes,)`` area of each class on the map.
        placed: the same test pixels by place; None takes them for independent.

    Returns:
        The areas. Mapped classes with fewer than :data:`FEWEST` test pixels tell nothing: they are left out, as if the map
        ended there, and count as not assessed.
    """
    counts = np.asarray(
        confusion, dtype=np.float64
    ).T  # rows are now the strata, the classes of the map
    own = np.asarray(mapped, dtype=np.float64)
    sampled = counts.sum(axis=1)
    known = (sampled >= FEWEST) & (own > 0)
    total, assessed = float(own.sum()), float(own[known].sum())
    if not assessed:
        nothing = np.full(len(own), np.nan)
        return Estimated(nothing, nothing, 0.0)
    weight = np.where(known, own, 0) / assessed
    share = counts / np.maximum(sampled, 1)[:, None]  # of a stratum that is truly of a class
    if placed is None:
        each = share * (1 - share) / np.maximum(sampled - 1, 1)[:, None]
        variance = (weight[:, None] ** 2 * each).sum(axis=0)
    else:
        variance = placed.variance(share, weight / np.maximum(sampled, 1))
    area = (weight[:, None] * share).sum(axis=0) * assessed
    return Estimated(area, np.sqrt(variance) * assessed, assessed / total)


def pixel_area(scene: xr.DataArray) -> float | None:
    """Return the area of a scene's pixel in square metres; None where its coordinates are no lengths."""
    crs, transform = georeference(scene)
    if crs is None or transform is None:
        return None
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    try:
        known = CRS.from_user_input(crs)
        if not known.is_projected:
            return None
        metres = float(known.linear_units_factor[1])
    except (CRSError, ValueError):
        return None
    a, b, _, d, e, _ = tuple(transform)[:6]
    area = abs(a * e - b * d) * metres**2
    return float(area) if np.isfinite(area) and area > 0 else None


def common_area(areas: Sequence[float | None]) -> float | None:
    """Return the pixel area of several scenes in square metres; None where one is unknown or they differ."""
    known = [area for area in areas if area is not None]
    if not known or len(known) < len(areas) or max(known) > (1 + SAME_SIZE) * min(known):
        return None
    return known[0]


def area_figures(
    confusion: Sequence[Sequence[int]],
    pixels: Sequence[int],
    square_metres: float | None,
    placed: Placed | None = None,
) -> dict[str, Any]:
    """Return the areas of the classes as ``metrics.json`` has them.

    Args:
        confusion: of the test pixels; rows are the truth, columns the map.
        pixels: of the map by class.
        square_metres: of a pixel; None where nobody knows.
        placed: the same test pixels by place; None takes them for independent.

    Returns:
        ``unit`` (``ha`` or ``pixels``), ``pixel`` (square metres or None), ``assessed`` (share of the map whose class has
        test pixels), ``places`` (blocks or scenes between which the intervals measure the variation, None where pixels are taken
        for independent), and ``classes`` with the area on the map (``mapped``) and its ``estimate``, ``low`` and ``high`` (95 %;
        None of a class without test pixels, which nobody could have found; without an interval where there is one place).
    """
    size = 1.0 if square_metres is None else square_metres / HECTARE
    mapped = np.asarray(pixels, dtype=np.float64) * size
    counts = np.asarray(confusion)
    found = stratified_areas(counts, mapped, placed)
    area = np.where(counts.sum(axis=1) > 0, found.area, np.nan)
    low = np.maximum(area - NORMAL_95 * found.error, 0)
    high = area + NORMAL_95 * found.error
    rows = [
        {"mapped": float(m), **_bounds(estimate, below, above)}
        for m, estimate, below, above in zip(mapped, area, low, high, strict=True)
    ]
    return {
        "unit": "pixels" if square_metres is None else "ha",
        "pixel": square_metres,
        "assessed": found.assessed,
        "places": None if placed is None else placed.places,
        "classes": rows,
    }


def _bounds(estimate: float, low: float, high: float) -> dict[str, float | None]:
    if np.isnan(estimate):
        return {"estimate": None, "low": None, "high": None}
    if np.isnan(high):
        return {"estimate": float(estimate), "low": None, "high": None}
    return {"estimate": float(estimate), "low": float(low), "high": float(high)}
