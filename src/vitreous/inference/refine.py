"""Edge-aware smoothing of class probabilities, guided by the scene itself.

Neighbouring pixels of one material mostly belong to one class. A filter that averages probabilities where the scene is
even, and stops at its edges, therefore corrects single pixels without blurring borders. It sees no labels.

Every filter here looks at a limited square around a pixel, in an order that does not depend on where an image begins: a
scene that is refined window by window, with as much context, is the same as one refined at once.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vitreous.errors import ConfigError

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

LEAST_PROBABILITY = 1e-6  # whose logarithm stands for that of 0


def domain_transform(
    probabilities: Floats,
    guide: Floats,
    *,
    spatial: float,
    range: float,
    iterations: int = 3,
) -> Floats:
    """Average class probabilities along rows and columns, as far as the guide is even.

    This is the domain transform with normalised convolution (Gastal and Oliveira, *Domain Transform for Edge-Aware Image
    and Video Processing*, ACM Transactions on Graphics 30(4), 2011, section 5.1): pixels of a line are set apart by how
    far they lie and by how much the guide changes between them, and those within a distance are averaged. Of the
    paper's filters this one has a limited reach.

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
    _check_sizes(probabilities, guide)
    _check_at_least_0(spatial=spatial)
    _check_positive(range=range, iterations=iterations)
    valid = _finite(guide) & _finite(probabilities)
    values = np.where(valid, probabilities, np.float32(0))
    across, down = (_steps(guide, valid, axis, spatial / range) for axis in (1, 0))
    for radius in radii(spatial, iterations):
        values = _averaged(values, across, radius, axis=1)
        values = _averaged(values, down, radius, axis=0)
    return np.where(valid, values, probabilities)


def radii(spatial: float, iterations: int) -> list[float]:
    """Return the radii of the passes of :func:`domain_transform` in pixels (equations 11 and 14)."""
    scale = 3 * spatial / np.sqrt(4.0**iterations - 1)
    return [float(scale * 2.0**k) for k in reversed(range(iterations))]


def guided_filter(
    probabilities: Floats, guide: Floats, *, radius: int, smoothness: float
) -> Floats:
    """Replace class probabilities by what is linear in the guide within squares around a pixel.

    The guided filter (He, Sun and Tang, *Guided Image Filtering*, IEEE TPAMI 35(6), 2013) for a guide of several channels.
    Negative results are set to 0. Invalid pixels stay as they are and have no weight.

    Args:
        probabilities: ``(classes, height, width)``.
        guide: ``(channels, height, width)``, of comparable scale in all channels.
        radius: half the side of the squares in pixels; 0 changes nothing.
        smoothness: variance of the guide that counts as an edge.

    Returns:
        ``(classes, height, width)``.

    Raises:
        ConfigError: a setting is out of range.
        ValueError: probabilities and guide differ in size.
    """
    _check_sizes(probabilities, guide)
    _check_at_least_0(radius=radius)
    _check_positive(smoothness=smoothness)
    valid = _finite(guide) & _finite(probabilities)
    if radius == 0 or not valid.any():
        return probabilities.copy()
    values, channels = (np.where(valid, x, 0).astype(np.float64) for x in (probabilities, guide))
    count = np.maximum(_box_sum(valid.astype(np.float64)[None], radius), 1)

    def mean(image: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        found: npt.NDArray[np.float64] = _box_sum(image * valid, radius) / count
        return found

    centre, level = mean(channels), mean(values)
    spread = np.stack([mean(channels * one) for one in channels], axis=0) - centre[:, None] * centre
    shared = np.stack([mean(values * one) for one in channels], axis=0) - centre[:, None] * level
    spread += smoothness * np.eye(len(channels))[:, :, None, None]
    slopes = np.linalg.solve(
        np.moveaxis(spread, (0, 1), (2, 3)), np.moveaxis(shared, (0, 1), (2, 3))
    )
    slopes = np.moveaxis(slopes, (2, 3), (0, 1))  # (channels, classes, height, width)
    found = mean(level - (slopes * centre[:, None]).sum(axis=0))
    for slope, channel in zip(slopes, channels, strict=True):
        found += mean(slope) * channel
    found = np.maximum(found, 0)
    total = np.where(valid, found.sum(axis=0), 1)
    return np.where(valid, found / total, probabilities).astype(np.float32)


def potts(
    probabilities: Floats, guide: Floats, *, strength: float, range: float, iterations: int = 8
) -> Floats:
    """Let neighbouring pixels agree on a class where the guide is alike: a Potts model, solved by mean-field inference.

    Potts, *Some generalized order-disorder transformations*, Proc. Cambridge Phil. Soc. 48(1), 1952, on the eight
    neighbours of a pixel; the update is that of Kraehenbuehl and Koltun, *Efficient Inference in Fully Connected CRFs with
    Gaussian Edge Potentials*, NIPS 2011, algorithm 1. Invalid pixels stay as they are and have no weight.

    Args:
        probabilities: ``(classes, height, width)``.
        guide: ``(channels, height, width)``, of comparable scale in all channels.
        strength: weight of a neighbour that looks the same; 0 changes nothing.
        range: standard deviation of the guide's difference at which a neighbour counts less.
        iterations: updates; what a pixel is told reaches one pixel further with each.

    Returns:
        ``(classes, height, width)``.

    Raises:
        ConfigError: a setting is out of range.
        ValueError: probabilities and guide differ in size.
    """
    _check_sizes(probabilities, guide)
    _check_at_least_0(strength=strength)
    _check_positive(range=range, iterations=iterations)
    valid = _finite(guide) & _finite(probabilities)
    own = np.where(valid, probabilities, np.float32(0))
    evidence = np.log(np.maximum(own, np.float32(LEAST_PROBABILITY)))
    neighbours = [
        (here, there, _likeness(guide, valid, here, there, range) * np.float32(strength / distance))
        for here, there, distance in _pairs()
    ]
    belief = own
    for _ in np.arange(iterations):
        odds = evidence.copy()
        for here, there, weight in neighbours:
            odds[:, *here] += weight * belief[:, *there]
            odds[:, *there] += weight * belief[:, *here]
        belief = np.exp(odds - odds.max(axis=0, initial=-np.inf))
        belief /= belief.sum(axis=0)
    return np.where(valid, belief if strength else own, probabilities)


def _check_sizes(probabilities: Floats, guide: Floats) -> None:
    if probabilities.shape[1:] != guide.shape[1:]:
        raise ValueError(f"probabilities of {probabilities.shape}, a guide of {guide.shape}")


def _check_at_least_0(**settings: float) -> None:
    for name, value in settings.items():
        if not 0 <= value < np.inf:
            raise ConfigError(f"{name} is {value}.", "Use a number of at least 0.")


def _check_positive(**settings: float) -> None:
    for name, value in settings.items():
        if not value > 0:
            raise ConfigError(f"{name} is {value}.", "Use a number above 0.")


def _finite(image: Floats) -> Mask:
    """Return ``(height, width)``: where all channels are finite."""
    return np.asarray(np.isfinite(image).all(axis=0))


def _steps(guide: Floats, valid: Mask, axis: int, strength: float) -> Floats:
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
    steps = np.ones(linked[1:].shape, np.float32)
    for channel in np.moveaxis(np.abs(np.diff(even, axis=0)), 1, 0):
        steps += channel * np.float32(strength)
    found: Floats = np.where(linked[1:] & linked[:-1], steps, np.float32(np.inf))
    return found


def _averaged(values: Floats, steps: Floats, radius: float, axis: int) -> Floats:
    """Average along an axis all values within ``radius`` of a pixel, for all lines and classes at once (equation 10).

    Args:
        values: ``(classes, height, width)``.
        steps: ``(n - 1, m)``, the distance of neighbours, at least 1.
        radius: how far values are taken from.
        axis: 0 down the columns, 1 along the rows.
    """
    line: Floats = np.moveaxis(values, axis + 1, 0)
    total, count = line.copy(), np.ones((len(line), *steps.shape[1:]), np.float32)
    distance = np.zeros_like(count)
    for apart in range(1, min(int(radius), len(line) - 1) + 1):
        # From a pixel to the one so many further on: always added up in the same order, wherever the window begins.
        distance = distance[:-1] + steps[apart - 1 :]
        near = (distance <= radius).astype(np.float32)
        weight = near[:, None]
        total[apart:] += weight * line[:-apart]
        total[:-apart] += weight * line[apart:]
        count[apart:] += near
        count[:-apart] += near
    total /= count[:, None]
    return np.moveaxis(total, 0, axis + 1)


def _box_sum(image: npt.NDArray[np.float64], radius: int) -> npt.NDArray[np.float64]:
    """Sum ``(n, height, width)`` over squares of side ``2 radius + 1``; there is nothing beyond the edge."""
    from scipy.ndimage import correlate1d

    # Not uniform_filter: its running sum makes a pixel depend, in the last bits, on where its window begins.
    for axis in (1, 2):
        image = correlate1d(image, np.ones(2 * radius + 1), axis=axis, mode="constant")
    return image


Part = tuple[slice, slice]


def _pairs() -> list[tuple[Part, Part, float]]:
    """Return the pairs of neighbours as two slices of an image, and how far apart they are."""
    every, first, last = slice(None), slice(None, -1), slice(1, None)
    return [
        ((every, first), (every, last), 1.0),
        ((first, every), (last, every), 1.0),
        ((first, first), (last, last), float(np.sqrt(2))),
        ((first, last), (last, first), float(np.sqrt(2))),
    ]


def _likeness(guide: Floats, valid: Mask, here: Part, there: Part, scale: float) -> Floats:
    """Return how alike two images of neighbours are, from 0 to 1; 0 where one of them is invalid."""
    even = np.where(valid, guide, np.float32(0))
    apart = np.square(even[:, *here] - even[:, *there]).sum(axis=0)
    alike: Floats = np.exp(-apart / np.float32(2 * scale**2)) * (valid[here] & valid[there])
    return alike
