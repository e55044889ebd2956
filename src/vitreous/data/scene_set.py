"""The scenes of a collection: checked as a whole, in the bands of the first, opened when they are needed."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xarray as xr

from vitreous.data.blocks import TRAIN
from vitreous.data.collection import Entry, Listed, read_collection, refuse
from vitreous.data.contract import BandContract
from vitreous.data.fingerprint import Ground
from vitreous.data.matched import matched
from vitreous.errors import ModelError, VitreousError, listed
from vitreous.scenes.dead_bands import without_dead_bands
from vitreous.scenes.formats import open_scene
from vitreous.scenes.sensors import banded

HELD = 16  # opened scenes that are kept

Fault = tuple[str, str]


class SceneSet(Sequence[xr.DataArray]):
    """Scenes of a collection in the bands of one contract.

    Args:
        entries: the scenes.
        hints: for their readers.
        contract: the bands and unit that all have.
        grounds: which ground each shows.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        hints: dict[str, Any],
        contract: BandContract,
        grounds: Sequence[Ground],
    ) -> None:
        self.entries, self.hints = list(entries), hints
        self.contract, self.grounds = contract, list(grounds)
        self._open = functools.lru_cache(HELD)(self._opened)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: Any) -> Any:
        """Open a scene; no value is read."""
        return self._open(range(len(self))[index])

    def _opened(self, index: int) -> xr.DataArray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they were said when the collection was checked
            return matched(open_entry(self.entries[index], self.hints), self.contract).scene

    @property
    def names(self) -> list[str]:
        """Different names of the scenes, fit for files."""
        return unique_names(self.entries)


def unique_names(entries: Sequence[Entry]) -> list[str]:
    """Return the scenes' names; what would be the same name carries a number."""
    found: list[str] = []
    taken: set[str] = set()
    for entry in entries:
        name, number = entry.name, 1
        while name.casefold() in taken:
            number += 1
            name = f"{entry.name}-{number}"
        taken.add(name.casefold())
        found.append(name)
    return found


def open_entry(entry: Entry, hints: dict[str, Any]) -> xr.DataArray:
    """Open the scene of an entry; a sensor that it names says its bands' wavelengths where the file does not.

    Raises:
        SceneError: it cannot be opened.
    """
    scene = open_scene(entry.scene, **hints)
    if entry.sensor is None or "wavelength" in scene.coords or "sensor" in hints:
        return scene
    try:
        bands = banded(entry.sensor).bands
    except VitreousError:
        return scene  # a word for people
    if len(bands) != scene.sizes["band"]:
        warnings.warn(
            f"{entry.scene}: the sensor '{entry.sensor}' has {len(bands)} bands and the file {scene.sizes['band']}, whose "
            "wavelengths stay unknown; name those that it has: landsat8:B4,B3,B2,B5.",
            stacklevel=2,
        )
        return scene
    return open_scene(entry.scene, **{**hints, "sensor": entry.sensor})


def open_collection(
    path: str, hints: dict[str, Any], contract: BandContract | None = None
) -> SceneSet:
    """Open a collection without labels, checked as a whole.

    Args:
        path: see :func:`vitreous.data.collection.read_collection`.
        hints: for the readers.
        contract: the bands that all shall have; those of the first scene when None.

    Raises:
        CollectionError: something does not fit.
        ConfigError: there is no such collection.
    """
    listing = read_collection(path, labelled=False)
    with said_once():
        scenes, faults = checked_scenes(listing, hints, contract)
    refuse(path, faults, len(listing.entries))
    assert scenes is not None
    return scenes


def checked_scenes(
    listing: Listed, hints: dict[str, Any], contract: BandContract | None = None
) -> tuple[SceneSet | None, list[Fault]]:
    """Open every scene once, and say all that does not fit.

    Args:
        listing: the scenes.
        hints: for their readers.
        contract: the bands and unit that they should have; those of the first training scene when None.

    Returns:
        The scenes, None where none can be opened, and the faults.
    """
    faults = list(listing.faults)
    if contract is None:
        contract = _first_contract(listing.entries, hints)
    grounds: list[Ground] = []
    seen: dict[str, str] = {}
    told: dict[str, list[str]] = {}
    for entry in listing.entries:
        try:
            scene = open_entry(entry, hints)
            if contract is not None:
                scene, how = matched(scene, contract)
                if how:
                    told.setdefault(how, []).append(Path(entry.scene).name)
            ground = Ground.of(scene)
        except VitreousError as error:
            faults.append((entry.where, _in_short(error)))
            continue
        if ground.hash in seen:
            faults.append((entry.where, f"it is the same scene as {seen[ground.hash]}"))
            continue
        seen[ground.hash] = entry.where
        grounds.append(ground)
    for how, names in told.items():
        warnings.warn(
            f"{len(names)} of {len(listing.entries)} scenes are of another sensor: {how} ({listed(names, 3)}).",
            stacklevel=2,
        )
    if contract is None:
        return None, faults
    return SceneSet(listing.entries, hints, contract, grounds), faults


def _first_contract(entries: Sequence[Entry], hints: dict[str, Any]) -> BandContract | None:
    """Return the bands of the first training scene that can be opened, or of the first at all."""
    for entry in sorted(entries, key=lambda entry: entry.role not in {TRAIN, None}):
        try:
            return BandContract.of(without_dead_bands(open_entry(entry, hints)))
        except VitreousError:
            continue  # told with all others
    return None


def _in_short(error: VitreousError) -> str:
    words = error.problem if isinstance(error, ModelError) else str(error)
    return words.replace("The model was trained on", "The collection has")


@contextmanager
def said_once() -> Iterator[None]:
    """Say a warning about many files once, with the number of the others of its kind."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    kinds: dict[str, list[str]] = {}
    for warning in caught:
        if issubclass(warning.category, UserWarning):
            text = str(warning.message)
            kinds.setdefault(_without_names(text), []).append(text)
    for texts in kinds.values():
        more = f" ({len(texts) - 1} more files likewise)" if len(texts) > 1 else ""
        warnings.warn(f"{texts[0]}{more}", stacklevel=3)


def _without_names(text: str) -> str:
    """Return what a warning says, without the paths and numbers in it."""
    words = (word for word in text.split() if "/" not in word and "\\" not in word)
    return " ".join("".join(c for c in word if not c.isdigit()) for word in words)
