"""Where tasks without labels learn, validate and test: parts of one scene, or whole scenes of a collection."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.data.blocks import TEST, TRAIN, VAL
from vitreous.data.contract import BandContract
from vitreous.data.crops import Area, Crops, CropSource, ManyCrops, cut_scene, sample_spectra
from vitreous.data.fingerprint import Ground
from vitreous.data.overlap import groups
from vitreous.data.scene_set import SceneSet, open_collection
from vitreous.data.scene_split import divide_scenes
from vitreous.errors import CollectionError
from vitreous.recipe import PretrainRecipe, RestoreRecipe
from vitreous.scenes.dead_bands import without_dead_bands
from vitreous.scenes.samples import open_named
from vitreous.tasks import runs

SPECTRA = 200_000  # to fit ranges and components on, from all scenes together


class Piece(NamedTuple):
    """A part of a scene.

    Attributes:
        open: opens the scene.
        area: the part.
        name: of the scene.
        ground: describes the ground of the scene; its values are read.
    """

    open: Callable[[], xr.DataArray]
    area: Area
    name: str
    ground: Callable[[], Ground]


@dataclass(frozen=True)
class Sources:
    """What a task without labels is given.

    Attributes:
        contract: the bands and unit of all scenes.
        pieces: by role.
        first: one of the scenes, the only one where there is one.
        fingerprints: of all scenes.
        many: whether it is a collection.
    """

    contract: BandContract
    pieces: dict[int, list[Piece]]
    first: xr.DataArray
    fingerprints: dict[str, str | None]
    many: bool = False

    def spectra(self, role: int = TRAIN) -> npt.NDArray[np.float32]:
        """Return the spectra of valid pixels spread over the pieces of a role: ``(pixels, bands)``."""
        found = []
        for piece in self.pieces[role]:
            scene = piece.open()
            found.append(sample_spectra(scene, self.contract.select(scene), piece.area))
        spectra = np.concatenate(found)
        return spectra[:: -(-len(spectra) // SPECTRA) or 1]

    def crops(self, role: int, side: int) -> CropSource | None:
        """Return crops of the pieces of a role, None where none is large enough.

        Args:
            role: the role.
            side: of a crop in pixels.
        """
        fitting = [piece for piece in self.pieces[role] if min(piece.area.shape) >= side]
        made = []
        for piece in fitting:
            scene = piece.open()
            made.append(Crops(scene, self.contract.select(scene), piece.area, side))
        if not made:
            return None
        return made[0] if len(made) == 1 else ManyCrops(made)


def open_sources(recipe: PretrainRecipe | RestoreRecipe, side: int = 1) -> Sources:
    """Open the scene of a recipe, cut into parts, or a collection, whose scenes are divided among the roles.

    Args:
        recipe: the settings.
        side: least side of a scene of a collection, in pixels.

    Raises:
        CollectionError: something in the collection does not fit.
        SceneError: the scene cannot be opened.
    """
    test = getattr(recipe, "test_fraction", 0.0)
    if recipe.scenes is None:
        scene = without_dead_bands(
            open_named(recipe.scene, recipe.scene_hints, untrusted=recipe.untrusted).scene
        )
        shares = (recipe.val_fraction, test) if test else (recipe.val_fraction,)
        areas = cut_scene(scene, *shares)
        name = Path(recipe.scene).name

        def piece(area: Area) -> list[Piece]:
            return [Piece(lambda: scene, area, name, lambda: Ground.of(scene))]

        pieces = dict(zip((TRAIN, VAL, TEST), map(piece, areas), strict=False))
        return Sources(BandContract.of(scene), pieces, scene, runs.fingerprints_of(scene))
    scenes = open_collection(recipe.scenes, {**recipe.scene_hints, "untrusted": recipe.untrusted})
    return _of_collection(scenes, recipe, test, side)


def _of_collection(
    scenes: SceneSet, recipe: PretrainRecipe | RestoreRecipe, test: float, side: int
) -> Sources:
    roles = [entry.role for entry in scenes.entries]
    small = [
        (entry.where, f"{ground.rows} x {ground.columns} pixels; crops have {side}")
        for entry, ground in zip(scenes.entries, scenes.grounds, strict=True)
        if min(ground.rows, ground.columns) < side
    ]
    if small:
        raise CollectionError(
            f"{len(small)} of {len(scenes)} scenes of {recipe.scenes} are smaller than a crop:",
            small,
            "Omit them, or use smaller crops.",
        )
    if None in roles:
        shares = np.array([1 - recipe.val_fraction - test, recipe.val_fraction, test])
        sizes = np.array([[ground.rows * ground.columns] for ground in scenes.grounds])
        together = groups(scenes.grounds)
        parts = int((shares > 0).sum())
        roles = (
            list(divide_scenes(sizes, together, shares, recipe.seed))
            if parts > 1 and len(together) > 1
            else [TRAIN] * len(scenes)
        )
    wanted = {TRAIN: "train", **({TEST: "test"} if test else {})}
    missing = [
        (f"role {name}", "no scene has it") for role, name in wanted.items() if role not in roles
    ]
    if missing:
        raise CollectionError(
            f"{recipe.scenes} does not serve this task:",
            missing,
            "Add scenes, or set the column role (train, val, test).",
        )
    pieces: dict[int, list[Piece]] = {TRAIN: [], VAL: [], TEST: []}
    for k, (entry, role, ground) in enumerate(
        zip(scenes.entries, roles, scenes.grounds, strict=True)
    ):
        assert role is not None
        area = Area(slice(0, ground.rows), slice(0, ground.columns))
        pieces[role].append(
            Piece(_opener(scenes, k), area, Path(entry.scene).name, _constant(ground))
        )
    facts = [scenes.contract.to_json(), [ground.hash for ground in scenes.grounds]]
    told: dict[str, str | None] = {
        "scene": hashlib.sha256(json.dumps(facts).encode()).hexdigest(),
        "labels": None,
    }
    return Sources(scenes.contract, pieces, pieces[TRAIN][0].open(), told, many=True)


def _opener(scenes: Sequence[xr.DataArray], index: int) -> Callable[[], xr.DataArray]:
    return lambda: scenes[index]


def _constant(ground: Ground) -> Callable[[], Ground]:
    return lambda: ground
