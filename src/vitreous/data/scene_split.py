"""Splits by scene: whole scenes train, validate or test, so that accuracy is that of scenes never seen.

Roles come from the collection's table. Where it has none, scenes are divided so that every class has about the asked
share of its pixels in each part; scenes that show the same ground stay together.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vitreous.data.blocks import TEST, TRAIN, VAL, division_quality
from vitreous.data.roles import ROLE_NAMES, Splits
from vitreous.errors import SplitError, listed

TRIES = 2000  # random divisions of which the best is taken
PIXEL_CAP = 2000  # pixels of a class to train on, where patches are cut for each: more neighbours teach little

Ints = npt.NDArray[np.int64]


def divide_scenes(
    counts: Ints, together: Sequence[Sequence[int]], shares: npt.NDArray[np.float64], seed: int
) -> list[int]:
    """Give every scene a role.

    Args:
        counts: ``(scenes, classes)`` labelled pixels.
        together: scenes that share ground, in groups; every scene is in one.
        shares: of training, validation and test, which sum to one; 0 for no validation.
        seed: of the draw.

    Returns:
        The roles of the scenes.

    Raises:
        SplitError: there are too few groups for the parts.
    """
    wanted = np.flatnonzero(shares > 0)
    groups = len(together)
    if groups < 2:
        raise SplitError(
            "All scenes show the same ground, so that none is left for testing."
            if len(counts) > 1
            else "A single scene cannot be divided by scenes.",
            "Use more scenes, or --split blocks, which divides every scene by itself.",
        )
    if groups < len(wanted):  # two groups: no validation
        shares = np.array([shares[0] + shares[1], 0, shares[2]])
        wanted = np.flatnonzero(shares)
    totals = np.maximum(counts.sum(0), 1)
    held_by = np.array([counts[list(group)].sum(0) for group in together])
    rng = np.random.default_rng(seed)
    sizes = _sizes(groups, shares, wanted)
    best = -np.inf
    chosen: Ints = np.zeros(groups, dtype=np.int64)
    for _ in range(TRIES):
        part: Ints = np.repeat(wanted, sizes)[np.argsort(rng.random(groups))]
        held = np.stack([held_by[part == role].sum(0) for role in range(3)])
        quality = float(division_quality(held, totals, shares))
        if quality > best:
            best, chosen = quality, part
    roles = np.zeros(len(counts), dtype=np.int64)
    for group, part in zip(together, chosen, strict=True):
        roles[list(group)] = (TRAIN, VAL, TEST)[part]
    return roles.tolist()


def _sizes(groups: int, shares: npt.NDArray[np.float64], wanted: Ints) -> Ints:
    """Return how many groups each part gets: as the shares say, and one at least."""
    exact = shares[wanted] * groups
    sizes = np.maximum(np.floor(exact).astype(np.int64), 1)
    while sizes.sum() < groups:
        sizes[int(np.argmax(exact - sizes))] += 1
    while sizes.sum() > groups:
        over = np.where(sizes > 1, sizes - exact, -np.inf)
        sizes[int(np.argmax(over))] -= 1
    return sizes


def split_scenes(
    labels: Callable[[int], npt.NDArray[np.integer[Any]]],
    counts: Ints,
    roles: Sequence[int],
    *,
    per_class: int | None,
    seed: int,
    params: dict[str, Any],
) -> Splits:
    """Give all labelled pixels the role of their scene.

    Args:
        labels: the classes of a scene's pixels, 0 where unlabelled.
        counts: ``(scenes, classes)`` labelled pixels.
        roles: of the scenes.
        per_class: train and validate with so many pixels of each class, spread over its scenes; all when None.
        seed: of their draw.
        params: noted with the split.

    Returns:
        The splits; ``params`` also has ``scene_roles``, ``per_class`` and ``classes_without_test``.
    """
    quotas = _quotas(counts, roles, per_class)

    def parts() -> Iterator[npt.NDArray[np.uint8]]:
        for k, role in enumerate(roles):
            yield _roles_of(labels(k), role, quotas[k], np.random.default_rng([seed, k]))

    named = [ROLE_NAMES[role] for role in roles]
    tested = counts[[role == TEST for role in roles]].sum(0)
    own = {
        **params,
        "scene_roles": named,
        "per_class": per_class,
        "classes_without_test": [int(k) + 1 for k in np.flatnonzero(tested == 0)],
    }
    return Splits(parts(), "scenes", own, seed)


def _quotas(counts: Ints, roles: Sequence[int], per_class: int | None) -> Ints:
    """Return ``(scenes, classes)`` how many pixels of each scene take part; of large ones no more than of others."""
    quotas = counts.copy()
    if per_class is None:
        return quotas
    for role in (TRAIN, VAL):
        members = [k for k, own in enumerate(roles) if own == role]
        for k in range(counts.shape[1]):
            left = per_class
            few_first = sorted(members, key=counts[:, k].__getitem__)
            for position, scene in enumerate(few_first):
                quotas[scene, k] = min(counts[scene, k], -(-left // (len(few_first) - position)))
                left -= quotas[scene, k]
    return quotas


def _roles_of(
    labels: npt.NDArray[np.integer[Any]], role: int, quota: Ints, rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    roles = np.where(labels > 0, role, 0).astype(np.uint8)
    for k, most in enumerate(quota.tolist(), start=1):
        members = np.flatnonzero(labels == k)
        if len(members) > most:
            roles.flat[rng.permutation(members)[most:]] = 0
    return roles


def warn_untested(splits: Splits, names: Sequence[str]) -> None:
    """Say which classes are not tested, and that nothing validates."""
    untested = [names[k - 1] for k in splits.params.get("classes_without_test", [])]
    if untested:
        warnings.warn(f"Classes without test pixels: {listed(untested)}.", stacklevel=3)
    if not splits.scenes_with(VAL):
        warnings.warn("No scene validates; the last epoch will be kept.", stacklevel=3)
