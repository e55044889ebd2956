"""Opening what a recipe names: a scene, its labels, and the split between them."""

from __future__ import annotations

import functools
import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.data.blocks import TEST, TRAIN
from vitreous.data.collection import Entry, read_collection, refuse
from vitreous.data.contract import BandContract
from vitreous.data.fingerprint import Ground, labels_fingerprint, scene_fingerprint
from vitreous.data.packed import PackedImage
from vitreous.data.roles import Split
from vitreous.data.scene_set import SceneSet, checked_scenes, said_once, unique_names
from vitreous.data.splits import make_split, merged_labels
from vitreous.errors import ConfigError, VitreousError
from vitreous.recipe import Recipe
from vitreous.scenes import open_labels, open_scene
from vitreous.scenes.cube import class_codes, class_palette, georeference, make_labels
from vitreous.scenes.dead_bands import without_dead_bands
from vitreous.scenes.labels import with_common_classes, with_occurring_classes
from vitreous.scenes.samples import SAMPLES, load_sample

HELD = 4  # opened scenes with labels that are kept


@dataclass(frozen=True)
class LabelledScene:
    """A scene with the labels to learn from and to measure against.

    Attributes:
        scene: the scene.
        labels: classes from 1 on, 0 = unlabelled: the training pixels' own labels where those are given
            apart, the test labels elsewhere.
        train_labels: the scene's fixed training labels, or None.
        test_labels: separate test labels, or None.
    """

    scene: xr.DataArray
    labels: xr.DataArray
    train_labels: xr.DataArray | None = None
    test_labels: xr.DataArray | None = None

    @property
    def class_names(self) -> list[str]:
        """Names of the classes from 1 on."""
        return list(self.labels.attrs["class_names"])

    @property
    def class_colors(self) -> list[str]:
        """``#rrggbb`` of the classes from 1 on."""
        return list(self.labels.attrs["class_colors"])

    @property
    def class_codes(self) -> list[int]:
        """The label files' own numbers of the classes from 1 on."""
        return class_codes(self.labels)

    @property
    def fingerprint(self) -> str:
        """A hash of all its labels, to notice when they change."""
        return labels_fingerprint(self.labels, self.train_labels, self.test_labels)

    def classes_at(self, pixels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the classes (from 1 on) of flat pixel indices."""
        return np.asarray(self.labels.values).ravel()[pixels].astype(np.int64)

    def cropped(self, rows: slice, columns: slice) -> LabelledScene:
        """Return a rectangle of the scene with its labels."""
        parts = [
            None if image is None else image.isel(y=rows, x=columns)
            for image in (self.scene, self.labels, self.train_labels, self.test_labels)
        ]
        assert parts[0] is not None and parts[1] is not None
        return LabelledScene(parts[0], parts[1], parts[2], parts[3])

    def labelled_where(self, usable: npt.NDArray[np.bool_]) -> LabelledScene:
        """Return the scene with the labels of some pixels alone, ``(height, width)``; the classes stay."""
        if usable.all():
            return self
        labels, train, test = (
            None if image is None else image.copy(data=np.asarray(image.values) * usable)
            for image in (self.labels, self.train_labels, self.test_labels)
        )
        assert labels is not None
        return LabelledScene(self.scene, labels, train, test)

    def only(self, classes: Sequence[int]) -> LabelledScene:
        """Return the scene with the labels of some classes alone, numbered from 1 on in the given order.

        Separate training and test labels are left behind.
        """
        number = np.zeros(len(self.class_names) + 1, dtype=np.int64)
        number[list(classes)] = np.arange(1, len(classes) + 1)
        labels = self.labels.copy(data=number[np.asarray(self.labels.values)])
        labels.attrs |= {
            "class_names": [self.class_names[k - 1] for k in classes],
            "class_colors": [self.class_colors[k - 1] for k in classes],
            "class_codes": [self.class_codes[k - 1] for k in classes],
        }
        return LabelledScene(self.scene, labels)

    def split(self, recipe: Recipe, receptive_size: int) -> Split:
        """Divide the labelled pixels as the recipe says.

        Args:
            recipe: the settings.
            receptive_size: side of the square of pixels that one prediction depends on.
        """
        train, test = self.train_labels, self.test_labels
        if recipe.split == "files":
            return make_split(
                train if train is not None else self.labels, recipe, receptive_size, None, test
            )
        return make_split(self.labels, recipe, receptive_size, train_labels=train)


class LabelledScenes(Sequence[LabelledScene]):
    """The labelled scenes of a training, with one list of classes; of a single scene there is one.

    Args:
        opened: returns a scene with its labels.
        entries: the scenes.
        contract: the bands and unit that all have.
        grounds: which ground each shows.
        shapes: height and width of each.
        counts: computes ``(scenes, classes)`` labelled pixels.
        classes: names, colours and codes of the classes from 1 on.
        fingerprints: computes hashes of the ``scene`` (all scenes' values, and how they are read) and of all ``labels``,
            to notice when they change.
        source: name of the collection.
    """

    def __init__(
        self,
        opened: Callable[[int], LabelledScene],
        entries: Sequence[Entry],
        contract: BandContract,
        grounds: Callable[[int], Ground],
        shapes: Sequence[tuple[int, int]],
        counts: Callable[[], npt.NDArray[np.int64]],
        classes: Classes,
        fingerprints: Callable[[], dict[str, str | None]],
        source: str = "",
    ) -> None:
        self._opened = functools.lru_cache(HELD)(opened)
        self.entries, self.contract, self.shapes = list(entries), contract, list(shapes)
        self.ground = functools.lru_cache(None)(grounds)
        self.class_names, self.class_colors = list(classes.names), list(classes.colors)
        self.class_codes = list(classes.codes)
        self.source = source
        self._fingerprints, self._counts = fingerprints, counts

    @classmethod
    def of(cls, scene: LabelledScene, name: str = "scene") -> LabelledScenes:
        """Return a single scene."""
        labels = scene.labels
        return cls(
            lambda _: scene,
            [Entry(name, name)],
            BandContract.of(scene.scene),
            lambda _: Ground.of(scene.scene),
            [(int(labels.shape[0]), int(labels.shape[1]))],
            lambda: np.bincount(labels.values.ravel(), minlength=len(scene.class_names) + 1)[
                None, 1:
            ],
            Classes(scene.class_names, scene.class_colors, scene.class_codes),
            lambda: {"scene": scene_fingerprint(scene.scene), "labels": scene.fingerprint},
        )

    def __len__(self) -> int:
        return len(self.entries)

    @overload
    def __getitem__(self, index: int) -> LabelledScene: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[LabelledScene]: ...
    def __getitem__(self, index: int | slice) -> LabelledScene | Sequence[LabelledScene]:
        """Open a scene with its labels."""
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        return self._opened(range(len(self))[index])

    @functools.cached_property
    def names(self) -> list[str]:
        """Different names of the scenes, fit for files."""
        return unique_names(self.entries)

    @property
    def first(self) -> xr.DataArray:
        """One of the scenes."""
        return self[0].scene

    @functools.cached_property
    def fingerprints(self) -> dict[str, str | None]:
        """Hashes of the ``scene`` and the ``labels`` of all scenes."""
        return self._fingerprints()

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """``(scenes, classes)`` labelled pixels."""
        return self._counts()

    def grounds(self) -> list[Ground]:
        """Which ground each scene shows."""
        return [self.ground(k) for k in range(len(self))]


class Classes(NamedTuple):
    """Names, ``#rrggbb`` colours and the label files' own numbers of the classes from 1 on."""

    names: Sequence[str]
    colors: Sequence[str]
    codes: Sequence[int]


def open_data(recipe: Recipe, *, again: bool = False) -> LabelledScenes:
    """Open what a recipe trains on: one scene, or a collection that is checked as a whole.

    Args:
        recipe: which names it.
        again: that of a run, whose training has said all that is to say about its files.

    Raises:
        CollectionError: something in the collection does not fit.
        ConfigError: no labels are named, or labels of the two files do not agree in their classes.
    """
    if again:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return open_data(recipe)
    if recipe.scenes is None:
        return LabelledScenes.of(open_labelled(recipe), Path(recipe.scene).name)
    listing = read_collection(recipe.scenes, recipe.labels)
    with said_once():
        hints = {**recipe.scene_hints, "untrusted": recipe.untrusted}
        scenes, faults = checked_scenes(listing, hints)
        refuse(recipe.scenes, faults if scenes is None else (), len(listing.entries))
        assert scenes is not None
        images, more = _label_images(scenes, recipe)
        faults += more
    counts, classes, more = _common_classes(listing.entries, images)
    told = {where for where, _ in listing.faults}  # a role that is misspelt is not missing too
    roles = _role_faults(listing.entries, counts, classes)
    faults += more + [fault for fault in roles if fault[0] not in told]
    refuse(recipe.scenes, faults, len(listing.entries))
    return _joined(
        scenes, [image for image in images if image is not None], counts, classes, recipe.scenes
    )


@dataclass(frozen=True)
class _Labels:
    """The labels of one scene by its own class numbers."""

    image: PackedImage
    classes: Classes


def _label_images(
    scenes: SceneSet, recipe: Recipe
) -> tuple[list[_Labels | None], list[tuple[str, str]]]:
    """Read the labels of every scene once; they are kept compressed."""
    images: list[_Labels | None] = []
    faults = []
    for k, entry in enumerate(scenes.entries):
        images.append(None)
        if entry.labels is None:
            faults.append((entry.where, "it has no labels"))
            continue
        try:
            scene = scenes[k]
        except VitreousError:
            continue  # told already
        try:
            labels = _labels(entry.labels, scene, recipe)
        except VitreousError as error:
            faults.append((entry.where, str(error)))
            continue
        if not labels.attrs["class_names"]:
            faults.append((entry.where, f"no pixel of {Path(entry.labels).name} is labelled"))
            continue
        classes = Classes(
            labels.attrs["class_names"], labels.attrs["class_colors"], class_codes(labels)
        )
        images[-1] = _Labels(PackedImage(labels.values), classes)
    return images, faults


def _common_classes(
    entries: Sequence[Entry], images: Sequence[_Labels | None]
) -> tuple[npt.NDArray[np.int64], Classes, list[tuple[str, str]]]:
    """Join the classes of all scenes by their codes.

    Returns:
        ``(scenes, classes)`` labelled pixels, the classes in the order of their codes, and what does not fit.
    """
    names: dict[int, tuple[str, str]] = {}
    colors: dict[int, str] = {}
    faults = []
    known = [image for image in images if image is not None]
    # Palettes are drawn by position: the colours of the longest list tell most classes apart.
    for image in sorted(known, key=lambda image: -len(image.classes.names)):
        for code, color in zip(image.classes.codes, image.classes.colors, strict=True):
            colors.setdefault(code, color)
    for entry, own in zip(entries, images, strict=True):
        if own is None:
            continue
        for code, name in zip(own.classes.codes, own.classes.names, strict=True):
            first, where = names.setdefault(code, (name, entry.where))
            if name != first:
                faults.append(
                    (entry.where, f"class {code} is '{name}' here, but '{first}' in {where}")
                )
    codes = sorted(names)
    palette = [colors[code] for code in codes]
    if len(set(palette)) < len(palette):
        palette = class_palette(len(palette))
    counts = np.zeros((len(entries), len(codes)), dtype=np.int64)
    for row, own in zip(counts, images, strict=True):
        if own is not None:
            found = own.image.counts(len(own.classes.codes) + 1)[1:]
            row[np.searchsorted(codes, own.classes.codes)] = found
    return counts, Classes([names[code][0] for code in codes], palette, codes), faults


def _role_faults(
    entries: Sequence[Entry], counts: npt.NDArray[np.int64], classes: Classes
) -> list[tuple[str, str]]:
    """Say which roles are missing, and which classes nobody could learn."""
    faults = []
    if len(classes.codes) == 1:
        faults.append(("labels", f"all are of one class ('{classes.names[0]}')"))
    given = [entry for entry in entries if entry.role is not None]
    if not given:
        return faults
    faults += [(entry.where, "it has no role") for entry in entries if entry.role is None]
    for role, name in ((TRAIN, "train"), (TEST, "test")):
        if not any(entry.role == role for entry in entries):
            faults.append((f"role {name}", "no scene has it"))
    training = counts[[entry.role == TRAIN for entry in entries]].sum(0)
    for name, code, count, of in zip(
        classes.names, classes.codes, training, counts.sum(0), strict=True
    ):
        if not count and of:
            faults.append(
                ("role train", f"no pixel of class {code} '{name}', which other roles have")
            )
    return faults


def _joined(
    scenes: SceneSet,
    images: Sequence[_Labels],
    counts: npt.NDArray[np.int64],
    classes: Classes,
    source: str,
) -> LabelledScenes:
    """Return scenes and labels with one list of classes."""
    tables = [
        np.array([0, *(classes.codes.index(code) + 1 for code in image.classes.codes)])
        for image in images
    ]

    def opened(index: int) -> LabelledScene:
        scene = scenes[index]
        crs, transform = georeference(scene)
        labels = make_labels(
            tables[index][images[index].image.whole()],
            class_names=classes.names,
            class_colors=classes.colors,
            class_codes=classes.codes,
            crs=crs,
            transform=transform,
            source=str(scenes.entries[index].labels),
        )
        return LabelledScene(scene, labels)

    facts = [scenes.contract.to_json(), [ground.hash for ground in scenes.grounds]]
    of_scenes = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    of_labels = hashlib.sha256(json.dumps([*classes], default=list).encode())
    for image, table in zip(images, tables, strict=True):
        of_labels.update(table.tobytes())
        of_labels.update(image.image.whole().tobytes())
    return LabelledScenes(
        opened,
        scenes.entries,
        scenes.contract,
        scenes.grounds.__getitem__,
        [image.image.shape for image in images],
        lambda: counts,
        classes,
        lambda: {"scene": of_scenes, "labels": of_labels.hexdigest()},
        source,
    )


def open_labelled(recipe: Recipe) -> LabelledScene:
    """Open the scene and labels of a recipe.

    Raises:
        ConfigError: no labels are named, or labels of the two files do not agree in their classes.
    """
    if recipe.scenes is not None:
        raise ConfigError(
            f"{recipe.scenes} is a collection, and this needs a single scene.",
            "Give a run that was trained on one scene.",
        )
    if recipe.scene in SAMPLES and not Path(recipe.scene).exists():
        sample = load_sample(recipe.scene)
        if recipe.labels is not None:
            labels = _labels(recipe.labels, sample.scene, recipe)
            return _with_tests(sample.scene, labels, recipe)
        if recipe.classes is not None:
            raise ConfigError(
                f"The classes of {recipe.scene} have names already.",
                "Omit classes, or give a label file with --labels.",
            )
        if recipe.split == "fixed":
            merged = merged_labels(sample.labels, sample.train_labels)
            return LabelledScene(sample.scene, merged, train_labels=sample.train_labels)
        return _with_tests(sample.scene, sample.labels, recipe)
    if recipe.labels is None:
        raise ConfigError(
            f"No labels are given for {recipe.scene}.", "Give a label file with --labels."
        )
    scene = without_dead_bands(
        open_scene(recipe.scene, untrusted=recipe.untrusted, **recipe.scene_hints)
    )
    return _with_tests(scene, _labels(recipe.labels, scene, recipe), recipe)


def _labels(path: str, scene: xr.DataArray, recipe: Recipe) -> xr.DataArray:
    hints = recipe.label_hints
    if recipe.classes is not None:
        hints = {**hints, "classes": recipe.classes}
    labels = open_labels(path, scene, recipe.label_attribute, untrusted=recipe.untrusted, **hints)
    return with_occurring_classes(labels)


def _with_tests(scene: xr.DataArray, labels: xr.DataArray, recipe: Recipe) -> LabelledScene:
    if recipe.test_labels is None:
        return LabelledScene(scene, labels)
    test = _labels(recipe.test_labels, scene, recipe)
    labels, test = with_common_classes(labels, test)
    merged = merged_labels(test, labels)
    return LabelledScene(scene, merged, train_labels=labels, test_labels=test)
