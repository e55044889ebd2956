"""Edge-aware smoothing of class probabilities, guided by the scene itself.

Neighbouring pixels of one material mostly belong to one class. A filter that averages probabilities where the scene is
even, and stops at its edges, therefore corrects single pixels without blurring borders. It sees no labels.

The filter is the recursive one of the domain transform (Gastal and Oliveira, *Domain Transform for Edge-Aware Image and
Video Processing*, ACM Transactions on Graphics 30(4), 2011): pixels of a row are set apart by how far they lie and by how
much the guide changes between them, and are averaged along this curve; then those of a column, and again with a finer
kernel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from vitreous.errors import ConfigError

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


def domain_transform(
    probabilities: Floats,
    guide: Floats,
    *,
    spatial: float,
    range: float,
    iterations: int = 3,
) -> Floats:
    """Smooth class probabilities within the edges of a guide.

    Every result is a weighted mean of probabilities, so that they still sum to one. Invalid pixels, where the guide or
    the probabilities are not finite, stay as they are, and nothing passes through them.

    Args:
        probabilities: ``(classes, height, width)``.
        guide: ``(channels, height, width)``, of comparable scale in all channels.
        spatial: standard deviation of the smoothing where the guide is even, in pixels; 0 changes nothing.
        range: how much the guide must change, summed over its channels, to weigh as much as ``spatial`` pixels.
        iterations: passes along rows and columns, each with half the width of the one before.

    Returns:
        ``(classes, height, width)``.

    Raises:
        ConfigError: a setting is out of range.
        ValueError: probabilities and guide differ in size.
    """
    if probabilities.shape[1:] != guide.shape[1:]:
        raise ValueError(f"probabilities of {probabilities.shape}, a guide of {guide.shape}")
    _check(spatial, range, iterations)
    if spatial == 0 or not probabilities.size:
        return probabilities.copy()
    valid = _finite(guide) & _finite(probabilities)
    values = np.where(valid, probabilities, np.float32(0))
    across, down = (_distances(guide, valid, axis, spatial / range) for axis in (1, 0))
    for sigma in widths(spatial, iterations):
        rate = np.float32(-np.sqrt(2) / sigma)
        values = _along(values, np.exp(rate * across), axis=1)
        values = _along(values, np.exp(rate * down), axis=0)
    return np.where(valid, values, probabilities)


def widths(spatial: float, iterations: int) -> list[float]:
    """Return the standard deviations of the single passes, which together have that of ``spatial`` (equation 14)."""
    scale = spatial * np.sqrt(3) / np.sqrt(4.0**iterations - 1)
    return [float(scale * 2.0**k) for k in reversed(range(iterations))]


def _check(spatial: float, range_: float, iterations: int) -> None:
    if not 0 <= spatial < np.inf:
        raise ConfigError(f"spatial is {spatial}.", "Use a number of pixels of at least 0.")
    if not range_ > 0:
        raise ConfigError(f"range is {range_}.", "Use a positive number.")
    if iterations < 1:
        raise ConfigError(f"iterations is {iterations}.", "It must be at least 1.")


def _finite(image: Floats) -> Mask:
    """Return ``(height, width)``: where all channels are finite."""
    return np.asarray(np.isfinite(image).all(axis=0))


def _distances(guide: Floats, valid: Mask, axis: int, strength: float) -> Floats:
    """Return the distance of each pixel from the next one of its row or column; infinite at invalid pixels.

    Args:
        guide: ``(channels, height, width)``.
        valid: ``(height, width)``.
        axis: 0 down the columns, 1 along the rows.
        strength: weight of the guide's changes.

    Returns:
        ``(n - 1, m)``, the axis first.
    """
    even = np.moveaxis(np.where(valid, guide, 0), axis + 1, 0)
    linked = np.moveaxis(valid, axis, 0)
    steps = np.abs(np.diff(even, axis=0)).sum(axis=1) * np.float32(strength) + np.float32(1)
    found: Floats = np.where(linked[1:] & linked[:-1], steps, np.float32(np.inf))
    return found


def _along(values: Floats, weights: npt.NDArray[Any], axis: int) -> Floats:
    """Run the recursive filter forth and back along an axis, for all lines and classes at once (equation 21).

    Args:
        values: ``(classes, height, width)``.
        weights: ``(n - 1, m)``, how much of its neighbour's value a pixel takes.
        axis: 0 down the columns, 1 along the rows.
    """
    line = np.array(np.moveaxis(values, axis + 1, 0), order="C")
    for k in range(1, len(line)):
        line[k] += weights[k - 1] * (line[k - 1] - line[k])
    for k in range(len(line) - 2, -1, -1):
        line[k] += weights[k] * (line[k + 1] - line[k])
    return np.moveaxis(line, 0, axis + 1)
