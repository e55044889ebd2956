"""How much ground each class covers: the map's own count, corrected by the errors that the test pixels show.

A map that errs counts wrongly. The stratified estimator takes the map's classes as strata and the test pixels as a sample of
each (Olofsson et al., *Good practices for estimating area and assessing accuracy of land change*, Remote Sensing of
Environment 148, 2014, equations 9 to 11). It holds as far as the test pixels of a mapped class are like its other pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.scenes.cube import georeference

NORMAL_95 = 1.96  # standard errors on each side of a 95 % interval
FEWEST = 2  # test pixels of a mapped class: of fewer there is no variance
SAME_SIZE = 1e-3  # by which pixels of one size may differ
HECTARE = 1e4  # square metres

Floats = npt.NDArray[np.float64]


class Estimated(NamedTuple):
    """Areas of classes.

    Attributes:
        area: ``(classes,)`` in the unit of the mapped areas.
        error: ``(classes,)`` standard errors.
        assessed: share of the mapped area whose class has test pixels.
    """

    area: Floats
    error: Floats
    assessed: float


def stratified_areas(
    confusion: npt.NDArray[np.integer[Any]], mapped: npt.NDArray[Any]
) -> Estimated:
    """Estimate areas from a confusion matrix and the areas on the map.

    Args:
        confusion: ``(classes, classes)`` test pixels; rows are the truth, columns the map.
        mapped: ``(classes,)`` area of each class on the map.

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
    weight = own[known] / assessed
    share = counts[known] / sampled[known, None]  # of a stratum that is truly of a class
    variance = (weight[:, None] ** 2 * share * (1 - share) / (sampled[known, None] - 1)).sum(axis=0)
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
    confusion: Sequence[Sequence[int]], pixels: Sequence[int], square_metres: float | None
) -> dict[str, Any]:
    """Return the areas of the classes as ``metrics.json`` has them.

    Args:
        confusion: of the test pixels; rows are the truth, columns the map.
        pixels: of the map by class.
        square_metres: of a pixel; None where nobody knows.

    Returns:
        ``unit`` (``ha`` or ``pixels``), ``pixel`` (square metres or None), ``assessed`` (share of the map whose class has
        test pixels), and ``classes`` with the area on the map (``mapped``) and its ``estimate``, ``low`` and ``high`` (95 %;
        None of a class without test pixels, which nobody could have found).
    """
    size = 1.0 if square_metres is None else square_metres / HECTARE
    mapped = np.asarray(pixels, dtype=np.float64) * size
    counts = np.asarray(confusion)
    found = stratified_areas(counts, mapped)
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
        "classes": rows,
    }


def _bounds(estimate: float, low: float, high: float) -> dict[str, float | None]:
    if np.isnan(estimate):
        return {"estimate": None, "low": None, "high": None}
    return {"estimate": float(estimate), "low": float(low), "high": float(high)}
