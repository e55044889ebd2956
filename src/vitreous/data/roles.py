"""The roles of pixels: which of them train, which choose the model, and which are only ever measured."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, overload

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.data.blocks import TEST, TRAIN, VAL, automatic_block_size
from vitreous.data.packed import PackedImage
from vitreous.data.split_files import read_split, write_split
from vitreous.errors import SplitError

UNUSED = 0
ROLE_NAMES = {TRAIN: "train", VAL: "val", TEST: "test"}

MOST_BLOCKS = 4096  # that intervals are computed from; where there are more, larger ones
HELD_SPLITS = 2  # unpacked roles that are kept

LabelImage: TypeAlias = "npt.NDArray[np.integer[Any]] | xr.DataArray"


class Blocks(NamedTuple):
    """Squares of a scene that pixels lie in.

    Attributes:
        of_pixel: ``(n,)`` the number of each pixel's square.
        side: of a square in pixels.
    """

    of_pixel: npt.NDArray[np.int64]
    side: int


@dataclass(frozen=True, eq=False)
class Split:
    """One role per pixel of a scene.

    Attributes:
        roles: ``(height, width)`` uint8, read-only: 0 unused, 1 train, 2 validation, 3 test.
        method: ``blocks``, ``random``, ``fixed`` or ``files``.
        params: what the method was asked for and what it reports, ready for JSON.
        seed: of the random choices.
    """

    roles: npt.NDArray[np.uint8]
    method: str
    params: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        roles = np.array(self.roles, dtype=np.uint8, order="C")
        roles.setflags(write=False)
        object.__setattr__(self, "roles", roles)

    def pixels(self, role: int) -> npt.NDArray[np.int64]:
        """Return the flat (row-major) indices of the pixels with ``role``, ascending."""
        return np.flatnonzero(self.roles == role)

    @property
    def counts(self) -> dict[str, int]:
        """Pixels per role: ``{"train": ..., "val": ..., "test": ...}``."""
        return {name: int((self.roles == role).sum()) for role, name in ROLE_NAMES.items()}

    @property
    def hash(self) -> str:
        """SHA-256 of the image of roles: equal roles have equal hashes, however they were drawn."""
        shape = np.array(self.roles.shape, dtype="<i8").tobytes()
        return hashlib.sha256(b"vitreous split" + shape + self.roles.tobytes()).hexdigest()

    @property
    def optimistic(self) -> bool:
        """Whether accuracy on this split flatters: drawn at random, or test pixels lie in training patches.

        Patches have the size that the split was made for; where none was given, 3 x 3 (direct neighbours).
        """
        return self.method == "random" or self.leakage(int(self.params.get("patch_size", 3))) > 0

    def leakage(self, patch_size: int) -> float:
        """Return the share of test pixels that lie inside the patch around some training pixel.

        Args:
            patch_size: side of the region that a prediction sees, in pixels. An even patch is taken as one
                pixel larger, because it may extend either way.
        """
        test = self.roles == TEST
        return float(self.near_training(patch_size)[test].mean()) if test.any() else 0.0

    def near_training(self, patch_size: int) -> npt.NDArray[np.bool_]:
        """Return ``(height, width)``: which pixels lie inside the patch around some training pixel.

        Args:
            patch_size: as in :meth:`leakage`.
        """
        from scipy.ndimage import maximum_filter

        side = 2 * (patch_size // 2) + 1
        near = maximum_filter(self.roles == TRAIN, size=side, mode="constant", cval=False)
        return np.asarray(near, dtype=bool)

    def blocks_of(self, pixels: npt.NDArray[np.int64]) -> Blocks:
        """Return the blocks that pixels lie in, to resample: pixels of one block err together.

        A split by blocks has its own. For any other split the scene is cut as that would: into squares of one patch,
        more in large scenes (``vitreous.data.blocks.automatic_block_size``).

        Args:
            pixels: flat (row-major) indices.
        """
        height, width = self.roles.shape
        own = self.params.get("block_size")
        side = int(
            own or automatic_block_size(height, width, int(self.params.get("patch_size", 1)))
        )
        rows, columns = np.divmod(pixels, width)
        while True:
            numbers = rows // side * (width // side + 1) + columns // side
            if len(np.unique(numbers)) <= MOST_BLOCKS:
                return Blocks(numbers, side)
            side *= 2  # twice as large, each is still a union of the split's own

    def without_validation(self) -> Split:
        """Return the split with its validation pixels among the training pixels."""
        roles = np.where(self.roles == VAL, TRAIN, self.roles)
        return Split(roles.astype(np.uint8), self.method, self.params, self.seed)

    def classes_without(self, role: int, labels: LabelImage) -> list[int]:
        """Return the classes of ``labels`` that have no pixel with ``role``."""
        values = np.asarray(labels)
        present = set(np.unique(values[self.roles == role]).tolist())
        return [int(k) for k in np.unique(values[values > 0]) if k not in present]

    def save(self, path: str | Path) -> None:
        """Write the split to ``path`` (``.npz``, no pickle), whole or not at all."""
        Splits.of(self).save(path)

    @classmethod
    def load(cls, path: str | Path) -> Split:
        """Read the split of a single scene that :meth:`save` wrote.

        Raises:
            SplitError: there is no such file, it is no split of one scene, or it was changed after it was written.
        """
        splits = Splits.load(path)
        if len(splits) > 1:
            raise SplitError(
                f"{path} holds the split of {len(splits)} scenes.", "Read it with Splits.load."
            )
        return splits[0]


class Splits(Sequence[Split]):
    """The splits of all scenes of a training, drawn together; of a single scene there is one.

    Args:
        parts: ``(height, width)`` roles of each scene.
        method: as of :class:`Split`.
        params: what the method was asked for and what it reports, ready for JSON.
        seed: of the random choices.
    """

    def __init__(
        self,
        parts: Iterable[npt.NDArray[np.uint8]],
        method: str,
        params: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        self._parts = [PackedImage(roles) for roles in parts]
        self._counts = np.stack([part.counts(TEST + 1) for part in self._parts])
        self.method, self.params, self.seed = method, params or {}, seed
        self._part = functools.lru_cache(HELD_SPLITS)(self._unpack)

    @classmethod
    def of(cls, split: Split) -> Splits:
        """Return the splits of a single scene."""
        return cls([split.roles], split.method, split.params, split.seed)

    def __len__(self) -> int:
        return len(self._parts)

    def __iter__(self) -> Iterator[Split]:
        return (self[k] for k in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> Split: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Split]: ...
    def __getitem__(self, index: int | slice) -> Split | Sequence[Split]:
        """Return the split of a scene."""
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        return self._part(range(len(self))[index])

    def _unpack(self, index: int) -> Split:
        roles = self._parts[index].whole().astype(np.uint8)
        return Split(roles, self.method, self.params, self.seed)

    def roles(self, index: int) -> PackedImage:
        """Return the roles of a scene's pixels."""
        return self._parts[index]

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Height and width of the scenes."""
        return [part.shape for part in self._parts]

    def totals(self, role: int) -> npt.NDArray[np.int64]:
        """Return how many pixels of each scene have a role."""
        counts: npt.NDArray[np.int64] = self._counts[:, role]
        return counts

    def scenes_with(self, role: int) -> list[int]:
        """Return the scenes that have pixels with a role."""
        return np.flatnonzero(self.totals(role)).tolist()

    @property
    def counts(self) -> dict[str, int]:
        """Pixels per role: ``{"train": ..., "val": ..., "test": ...}``."""
        return {name: int(self.totals(role).sum()) for role, name in ROLE_NAMES.items()}

    @property
    def hash(self) -> str:
        """SHA-256 of all images of roles: equal roles have equal hashes, however they were drawn."""
        hashes = [split.hash for split in self]
        if len(hashes) == 1:
            return hashes[0]
        return hashlib.sha256(b"vitreous splits" + "".join(hashes).encode()).hexdigest()

    def without_validation(self) -> Splits:
        """Return the splits with their validation pixels among the training pixels."""
        parts = (split.without_validation().roles for split in self)
        return Splits(parts, self.method, self.params, self.seed)

    def some(
        self, role: int, most: int, seed: int | None = None
    ) -> list[tuple[int, npt.NDArray[np.int64]]]:
        """Return at most so many of the pixels with a role, by scene.

        Args:
            role: the role.
            most: how many at most, of all scenes together.
            seed: of the draw; None takes every n-th.

        Returns:
            Scenes that have any, and flat indices of the pixels within them, ascending.
        """
        ends = np.cumsum(self.totals(role))
        total = int(ends[-1])
        if seed is None:
            chosen = np.arange(0, total, -(-total // most) or 1)
        elif total <= most:
            chosen = np.arange(total)
        else:
            chosen = np.sort(np.random.default_rng(seed).choice(total, most, replace=False))
        found = []
        for k, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            inside = chosen[(chosen >= start) & (chosen < end)] - start
            if len(inside):
                found.append((k, self[k].pixels(role)[inside]))
        return found

    def save(self, path: str | Path) -> None:
        """Write the splits to ``path`` (``.npz``, no pickle), whole or not at all."""
        meta = {
            "method": self.method,
            "params": self.params,
            "seed": self.seed,
            "hash": self.hash,
        }
        write_split(path, (split.roles for split in self), len(self), meta)

    @classmethod
    def load(cls, path: str | Path) -> Splits:
        """Read splits that :meth:`save` wrote.

        Raises:
            SplitError: there is no such file, it is no split, or it was changed after it was written.
        """
        meta, parts = read_split(path)
        return cls(parts, meta["method"], meta["params"], meta["seed"])
