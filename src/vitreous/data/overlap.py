"""Scenes that show the same ground: which of them do, and which test pixels training has seen there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vitreous.data.blocks import TEST, TRAIN
from vitreous.data.fingerprint import Ground
from vitreous.data.roles import Splits

BORDER = (
    17  # points along each side of a footprint: its edges are bent in another coordinate system
)
SLACK = 0.5  # pixels; neighbours on one grid share an edge, not ground

Mask = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


def overlapping(grounds: Sequence[Ground]) -> list[list[int]]:
    """Return for each scene the others that show some of its ground, by their places or because they are equal."""
    boxes = np.array([_box(ground) for ground in grounds]).reshape(len(grounds), 4)
    found: list[list[int]] = []
    for k, ground in enumerate(grounds):
        west, south, east, north = boxes[k]
        near = (
            (boxes[:, 0] < east)
            & (boxes[:, 2] > west)
            & (boxes[:, 1] < north)
            & (boxes[:, 3] > south)
        )
        near |= np.array([other.hash == ground.hash for other in grounds])
        others = [other for other in np.flatnonzero(near).tolist() if other != k]
        found.append([other for other in others if _overlap(ground, grounds[other])])
    return found


def groups(grounds: Sequence[Ground]) -> list[list[int]]:
    """Return the scenes in groups: those of different groups share no ground."""
    near = overlapping(grounds)
    left, found = set(range(len(grounds))), []
    for start in range(len(grounds)):
        if start not in left:
            continue
        left.discard(start)
        group, waiting = [], [start]
        while waiting:
            one = waiting.pop()
            group.append(one)
            reached = [other for other in near[one] if other in left]
            left.difference_update(reached)
            waiting += reached
        found.append(sorted(group))
    return found


def seen_in_training(
    splits: Splits, grounds: Sequence[Ground], patch_size: int
) -> list[tuple[int, Mask]]:
    """Say which test pixels lie inside the patch around a training pixel, of their own scene or of another one.

    Args:
        splits: the roles of all pixels.
        grounds: of the scenes; empty for a single scene of unknown ground.
        patch_size: side of the region that a prediction sees, in pixels.

    Returns:
        For each scene with test pixels its number and ``(test pixels,)``, in their order.
    """
    training = set(splits.scenes_with(TRAIN))
    near = overlapping(grounds) if len(grounds) > 1 else [[] for _ in splits.shapes]
    found = []
    for k in splits.scenes_with(TEST):
        split = splits[k]
        pixels = split.pixels(TEST)
        seen = split.near_training(patch_size).ravel()[pixels]
        for other in training.intersection(near[k]):
            seen = seen | _seen_there(splits, grounds, k, other, pixels, patch_size)
        found.append((k, seen))
    return found


def _seen_there(
    splits: Splits,
    grounds: Sequence[Ground],
    own: int,
    other: int,
    pixels: Ints,
    patch_size: int,
) -> Mask:
    """Say which pixels of a scene lie inside a training patch of another scene."""
    place = grounds[other].locate(pixels, grounds[own], reproject=True)
    if place is None:
        return np.zeros(len(pixels), dtype=bool)
    near = splits[other].near_training(patch_size)
    rows, columns = place
    inside = (rows >= 0) & (rows < near.shape[0]) & (columns >= 0) & (columns < near.shape[1])
    inside[inside] = near[rows[inside], columns[inside]]
    return inside


def _overlap(first: Ground, second: Ground) -> bool:
    """Tell whether two footprints overlap: seen from each of them, the other's lies in its pixels."""
    return _reaches(first, second) and _reaches(second, first)


def _reaches(own: Ground, other: Ground) -> bool:
    if own.hash == other.hash:
        return True
    along = np.linspace(0, 1, BORDER)
    edge = np.concatenate([np.zeros(BORDER), np.ones(BORDER), along, along])
    across = np.concatenate([along, along, np.zeros(BORDER), np.ones(BORDER)])
    place = own.at(edge * other.rows, across * other.columns, other)
    if place is None:
        return False
    rows, columns = place
    if not (np.isfinite(rows).all() and np.isfinite(columns).all()):
        return True  # a projection that cannot place all of it: told by its pixels
    return bool(
        rows.min() < own.rows - SLACK
        and rows.max() > SLACK
        and columns.min() < own.columns - SLACK
        and columns.max() > SLACK
    )


def _box(ground: Ground) -> tuple[float, float, float, float]:
    """Return longitudes and latitudes around a scene; of a scene without a place nothing overlaps."""
    nowhere = (np.inf, np.inf, -np.inf, -np.inf)
    if ground.crs is None or ground.transform is None:
        return nowhere
    from pyproj import Transformer
    from pyproj.exceptions import ProjError

    a, b, c, d, e, f = ground.transform
    corners = [(0, 0), (ground.columns, 0), (0, ground.rows), (ground.columns, ground.rows)]
    x = [a * column + b * row + c for column, row in corners]
    y = [d * column + e * row + f for column, row in corners]
    try:
        to_degrees = Transformer.from_crs(ground.crs, "EPSG:4326", always_xy=True)
        box = to_degrees.transform_bounds(min(x), min(y), max(x), max(y), densify_pts=BORDER)
    except ProjError:
        return (-np.inf, -np.inf, np.inf, np.inf)
    west, south, east, north = (float(v) for v in box)
    if not np.isfinite([west, south, east, north]).all() or west > east:  # over the date line
        return (-np.inf, -np.inf, np.inf, np.inf)
    return west, south, east, north
