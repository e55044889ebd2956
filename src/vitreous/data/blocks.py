"""Buffered spatial blocks: which labelled pixel may train, validate or test when patches must stay apart.

The scene is cut into square blocks and every block gets one role. Where blocks of different roles meet, a buffer
opens: the pixels of one side that lie inside the other side's patches are dropped. Both decisions serve one
quality, the cross-entropy between the shares that were asked for and those that are obtained, summed over classes

    quality = sum_k sum_r share_r * log(pixels_rk / pixels_k)

which is largest when every class is divided exactly as asked, and which loses about 1 / pixels_k for every
dropped pixel of class k: balance and buffer are weighed in the same unit, and rare classes count as much as
frequent ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

TRAIN, VAL, TEST = 1, 2, 3

RESTARTS = 12  # the search is greedy; a hundred starts gain less than seeds differ
MAX_BLOCKS = 1024  # keeps the search at seconds on a scene of any size
MIN_BLOCK = 8  # smaller blocks would be a random split under another name
HANDFUL = 5  # training pixels that every class gets where it has them ...
UNTRAINED = 1e4  # ... because a class that nobody learns is worse than any imbalance
HALF_PIXEL = 0.5  # keeps the logarithm of an empty share finite

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Roles = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Box:
    """A rectangle of pixels, ends excluded."""

    top: int
    bottom: int
    left: int
    right: int

    def near(self, other: Box, reach: int) -> Box:
        """Return the part of this box within ``reach`` pixels of ``other``."""
        return Box(
            max(self.top, other.top - reach),
            min(self.bottom, other.bottom + reach),
            max(self.left, other.left - reach),
            min(self.right, other.right + reach),
        )

    def within(self, image: npt.NDArray[Any], frame: Box) -> npt.NDArray[np.bool_]:
        """Return where ``frame`` of ``image`` is not 0 and inside this box."""
        cut = np.zeros((frame.bottom - frame.top, frame.right - frame.left), dtype=bool)
        rows = slice(self.top - frame.top, self.bottom - frame.top)
        columns = slice(self.left - frame.left, self.right - frame.left)
        cut[rows, columns] = image[self.top : self.bottom, self.left : self.right] > 0
        return cut


@dataclass(frozen=True)
class Grid:
    """The blocks that hold labelled pixels.

    Attributes:
        boxes: their rectangles.
        counts: ``(blocks, classes)`` labelled pixels.
        pairs: neighbours close enough for a patch of one to reach into the other.
    """

    boxes: list[Box]
    counts: Ints
    pairs: list[tuple[int, int]]


def automatic_block_size(height: int, width: int, patch_size: int) -> int:
    """Return one patch, but at least :data:`MIN_BLOCK`, and no more than :data:`MAX_BLOCKS` blocks in the scene.

    Larger blocks would lose fewer pixels to the buffer, but train on fewer places of the scene.
    """
    return max(patch_size, MIN_BLOCK, math.ceil(math.sqrt(height * width / MAX_BLOCKS)))


def buffered_roles(
    classes: Ints, shares: Floats, *, reach: int, block_size: int, rng: np.random.Generator
) -> Roles:
    """Give every labelled pixel a role such that no role's pixels lie inside another role's patches.

    Args:
        classes: ``(height, width)``, 0 unlabelled, classes 1..K without gaps.
        shares: share of training, validation and test pixels asked for; they sum to 1.
        reach: pixels that a patch extends on each side of its centre.
        block_size: side of the blocks in pixels.
        rng: where the seed went.

    Returns:
        ``(height, width)`` roles: 0 unlabelled or dropped, 1 train, 2 validation, 3 test.
    """
    grid = make_grid(classes, block_size, reach)
    touching = _touching(grid, _border_costs(grid, classes, reach))
    totals = grid.counts.sum(axis=0)
    best, best_value = np.zeros(classes.shape, dtype=np.uint8), -np.inf
    for _ in range(RESTARTS):
        start = rng.choice(3, size=len(grid.boxes), p=shares).astype(np.int64)
        roles_of_blocks = _improve(start, grid.counts, touching, shares, rng)
        roles, held = _open_buffer(classes, grid, roles_of_blocks, shares, reach)
        value = float(division_quality(held, totals, shares))
        if value > best_value:
            best, best_value = roles, value
    return best


def make_grid(classes: Ints, block_size: int, reach: int) -> Grid:
    """Cut the scene into blocks and keep those with labelled pixels (arguments as in :func:`buffered_roles`)."""
    height, width = classes.shape
    rows, columns = np.nonzero(classes)
    across = -(-width // block_size)
    cell = (rows // block_size) * across + columns // block_size
    cells, block = np.unique(cell, return_inverse=True)
    num_classes = int(classes.max())
    counts = np.bincount(
        block * num_classes + classes[rows, columns] - 1, minlength=len(cells) * num_classes
    ).reshape(len(cells), num_classes)
    boxes = []
    for down, right in zip(*np.divmod(cells, across), strict=True):
        top, left = int(down) * block_size, int(right) * block_size
        boxes.append(Box(top, min(top + block_size, height), left, min(left + block_size, width)))
    return Grid(boxes, counts, list(_neighbours(cells, across, -(-reach // block_size))))


def _neighbours(cells: Ints, across: int, steps: int) -> Iterator[tuple[int, int]]:
    """Yield each pair of blocks at most ``steps`` blocks apart once."""
    number = {int(cell): index for index, cell in enumerate(cells)}
    for cell, index in number.items():
        down, right = divmod(cell, across)
        for i in range(steps + 1):
            for j in range(-steps, steps + 1):
                if (i, j) > (0, 0) and 0 <= right + j < across:
                    other = number.get((down + i) * across + right + j)
                    if other is not None:
                        yield index, other


def _contested(
    live: npt.NDArray[Any], a: Box, b: Box, reach: int
) -> tuple[tuple[Ints, Ints], tuple[Ints, Ints]]:
    """Return the (rows, columns) of a's live (not 0) pixels inside b's patches, and of b's inside a's."""
    from scipy.ndimage import maximum_filter

    near_a, near_b = a.near(b, reach), b.near(a, reach)
    frame = Box(
        min(near_a.top, near_b.top),
        max(near_a.bottom, near_b.bottom),
        min(near_a.left, near_b.left),
        max(near_a.right, near_b.right),
    )
    in_a, in_b = near_a.within(live, frame), near_b.within(live, frame)
    hits = []
    for mine, theirs in ((in_a, in_b), (in_b, in_a)):
        patches = maximum_filter(theirs, size=2 * reach + 1, mode="constant", cval=False)
        rows, columns = np.nonzero(mine & patches)
        hits.append((rows + frame.top, columns + frame.left))
    return hits[0], hits[1]


def _border_costs(grid: Grid, classes: Ints, reach: int) -> Floats:
    """Return what a buffer between each pair of neighbours would cost, in units of quality: ``(pairs,)``."""
    worth = np.zeros(grid.counts.shape[1] + 1)
    worth[1:] = 1.0 / grid.counts.sum(axis=0)
    costs = np.zeros(len(grid.pairs))
    for index, (first, second) in enumerate(grid.pairs):
        sides = _contested(classes, grid.boxes[first], grid.boxes[second], reach)
        costs[index] = min(worth[classes[side]].sum() for side in sides)
    return costs


def _touching(grid: Grid, costs: Floats) -> list[tuple[Ints, Floats]]:
    """Return for every block its neighbours and what a buffer to each of them costs."""
    pairs = np.array(grid.pairs, dtype=np.int64).reshape(-1, 2)
    mine, other = np.concatenate([pairs, pairs[:, ::-1]]).T
    both = np.concatenate([costs, costs])
    order = np.argsort(mine, kind="stable")
    ends = np.searchsorted(mine[order], np.arange(1, len(grid.boxes)))
    return list(zip(np.split(other[order], ends), np.split(both[order], ends), strict=True))


def _improve(
    roles: Ints,
    counts: Ints,
    touching: list[tuple[Ints, Floats]],
    shares: Floats,
    rng: np.random.Generator,
) -> Ints:
    """Change one block's role (0 train, 1 validation, 2 test) after the other while that helps.

    A class with hardly any training pixels is never stable: giving another of its blocks to training takes
    none from any class's training, and :data:`UNTRAINED` outweighs everything else.
    """
    totals = counts.sum(axis=0)
    needed = np.minimum(totals, HANDFUL)
    held = np.stack([counts[roles == role].sum(axis=0) for role in range(3)])
    moved = True
    while moved:
        moved = False
        for block in rng.permutation(len(roles)):
            old, size, (near, costs) = roles[block], counts[block], touching[block]
            held[old] -= size
            gain = shares * np.log((held + size + HALF_PIXEL) / (held + HALF_PIXEL)).sum(axis=1)
            gain[0] += UNTRAINED * np.minimum(size, np.maximum(needed - held[0], 0)).sum()
            # A neighbour of the same role needs no buffer.
            gain += np.bincount(roles[near], weights=costs, minlength=3)
            gain[shares == 0] = -np.inf
            new = int(np.argmax(gain))
            if gain[new] > gain[old] + 1e-6:  # not for a rounding error's sake: would never end
                roles[block], moved = new, True
            held[roles[block]] += size
    return roles


def _open_buffer(
    classes: Ints, grid: Grid, roles_of_blocks: Ints, shares: Floats, reach: int
) -> tuple[Roles, Ints]:
    """Drop pixels until no role's pixels lie inside another's patches, each time from the cheaper side.

    Returns:
        The roles of the pixels, and the pixels left per role and class ``(3, classes)``.
    """
    roles = np.zeros(classes.shape, dtype=np.uint8)
    for box, role in zip(grid.boxes, roles_of_blocks, strict=True):
        roles[box.top : box.bottom, box.left : box.right] = role + TRAIN
    roles[classes == 0] = 0
    totals = grid.counts.sum(axis=0)
    held = _count(roles, classes, len(totals))
    for first, second in grid.pairs:
        if roles_of_blocks[first] == roles_of_blocks[second]:
            continue
        sides = _contested(roles, grid.boxes[first], grid.boxes[second], reach)
        outcomes = []
        for side, block in zip(sides, (first, second), strict=True):
            left = held.copy()
            left[roles_of_blocks[block]] -= np.bincount(classes[side] - 1, minlength=len(totals))
            outcomes.append(left)
        keep = int(np.argmax(division_quality(np.stack(outcomes), totals, shares)))
        roles[sides[keep]] = 0
        held = outcomes[keep]
    return roles, held


def _count(roles: Roles, classes: Ints, num_classes: int) -> Ints:
    """Return the pixels of each role and class: ``(3, classes)``."""
    used = roles > 0
    flat = (roles[used].astype(np.int64) - TRAIN) * num_classes + classes[used] - 1
    return np.bincount(flat, minlength=3 * num_classes).reshape(3, num_classes)


def division_quality(held: Ints, totals: Ints, shares: Floats) -> Floats:
    """Return the quality of ``held`` pixels ``(..., 3, classes)`` of ``totals`` ``(classes,)``."""
    obtained = np.log((held + HALF_PIXEL) / totals)
    missing = np.maximum(np.minimum(totals, HANDFUL) - held[..., 0, :], 0).sum(axis=-1)
    value: Floats = np.einsum("r,...rk->...", shares, obtained) - UNTRAINED * missing
    return value
