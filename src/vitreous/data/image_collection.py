"""Images with classes and roles: checked as a whole before anything is computed, read one by one afterwards."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitreous.data.image_files import PICTURES, ImageFacts, Values, in_color, read_image
from vitreous.data.image_lists import ROLES, SHOWN, ImageList, Listed, find_images, list_images
from vitreous.errors import VitreousError, listed, shortened

KEPT_BYTES = 2**30  # of all images, as they are stored: so many are read once and kept in memory
SAMPLED, SAMPLED_IMAGES = (
    64,
    500,
)  # pixels per image, and images, that tell how bright a collection is
SPLIT_STREAM = 40_000  # of random numbers
PROGRESS = 64  # images between two reports

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Reading:
    """What the check learned from one image.

    Attributes:
        facts: see :class:`~vitreous.data.image_files.ImageFacts`.
        count: valid pixels.
        sums: over them, per band.
        squares: sums of squares, per band.
        sample: ``(pixels, bands)`` some of them.
        values: the image itself, where it is kept.
    """

    facts: ImageFacts
    count: int
    sums: npt.NDArray[np.float64]
    squares: npt.NDArray[np.float64]
    sample: npt.NDArray[np.float32]
    values: Values | None


@dataclass
class ImageStore:
    """Image files, read when they are needed; a small collection is kept in memory.

    Attributes:
        paths: the files.
        names: as a user knows them.
        hints: reader options for files that are opened as scenes.
        bands: of every image.
        sizes: ``(count, 2)`` height and width.
        digests: ``(count,)`` of their values.
        unit: of their values.
        kind: type of the stored values.
        wavelengths: in nm, where known.
        kept: images in memory.
    """

    paths: list[Path]
    names: list[str]
    hints: dict[str, Any]
    bands: int
    sizes: Ints
    digests: npt.NDArray[np.uint64]
    unit: str
    kind: str
    wavelengths: tuple[float, ...] | None
    kept: dict[int, Values] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, number: int) -> Values:
        """Return an image ``(height, width, bands)``: uint8, or float32 with NaN where it is invalid.

        Raises:
            VitreousError: the file is gone, or is another one than was checked.
        """
        if number in self.kept:
            return self.kept[number]
        values, facts = read_image(self.paths[number], self.hints)
        if facts.digest != self.digests[number]:
            raise VitreousError(
                f"{self.paths[number]} has changed since it was checked.", "Start again."
            )
        return fitting(values, self.bands)

    @property
    def is_color(self) -> bool:
        """Whether they are ordinary colour pictures, for which colour operations are meant."""
        return self.bands == 3 and self.kind == "uint8"


@dataclass(frozen=True)
class ImageCollection:
    """Images with classes and roles.

    Attributes:
        source: the folder or table.
        store: the images.
        targets: ``(count, classes)`` 1 where an image has a class.
        roles: ``(count,)`` index in ``ROLES``.
        class_names: in the order of their numbers.
        several: whether an image may have several labels, or none.
        drawn: names of the roles that were drawn, not given.
        notes: what a user should be told, in sentences.
        mean: ``(bands,)`` over the valid pixels of the training images.
        deviation: likewise.
        sample: ``(pixels, bands)`` some of those pixels.
    """

    source: Path
    store: ImageStore
    targets: npt.NDArray[np.float32]
    roles: Ints
    class_names: list[str]
    several: bool
    drawn: tuple[str, ...]
    notes: tuple[str, ...]
    mean: npt.NDArray[np.float64]
    deviation: npt.NDArray[np.float64]
    sample: npt.NDArray[np.float32]

    def of(self, *roles: str) -> Ints:
        """Return the numbers of the images that have any of these roles."""
        return np.flatnonzero(np.isin(self.roles, [ROLES.index(role) for role in roles]))

    @property
    def counts(self) -> dict[str, int]:
        """How many images there are of each role."""
        return {role: len(self.of(role)) for role in ROLES}

    @property
    def leaked(self) -> npt.NDArray[np.bool_]:
        """Which test images, in the order of ``of("test")``, are copies of training or validation images."""
        known = self.store.digests[self.of("train", "val")]
        return np.isin(self.store.digests[self.of("test")], known)

    @property
    def fingerprint(self) -> str:
        """A hash of names, pixels, labels and roles: what a run was trained and measured on."""
        made = hashlib.sha256()
        parts = zip(self.store.names, self.store.digests, self.targets, self.roles, strict=True)
        for name, digest, target, role in sorted(
            (name, int(digest), target.tobytes(), int(role)) for name, digest, target, role in parts
        ):
            made.update(f"{name}\0{digest}\0{role}\0".encode())
            made.update(target)
        return made.hexdigest()[:32]


def open_images(
    source: str | Path,
    *,
    root: str | Path | None = None,
    hints: dict[str, Any] | None = None,
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> ImageCollection:
    """Open a folder or table of images and check all of it.

    Args:
        source: see :func:`~vitreous.data.image_lists.list_images`.
        root: the folder that the paths in a table are relative to.
        hints: reader options for files that are opened as scenes.
        val_fraction: share of the images that are not for testing to validate on, where no role says so.
        test_fraction: share of all images to test on, where no role says so.
        seed: of the division.
        progress: called with (done, in all).

    Raises:
        VitreousError: anything is wrong with any image, label or role; one message says all of it.
    """
    listing = list_images(source, root)
    _check_rows(listing)
    readings = _readings(listing, hints or {}, progress)
    _check_alike(listing, readings)
    names = _class_names(listing)
    _check_classes(listing, names)
    listing.faults.refuse(str(source))
    sound = [reading for reading in readings if reading is not None]
    targets = _targets(listing.images, names)
    digests = np.array([reading.facts.digest for reading in sound], dtype=np.uint64)
    fractions = (val_fraction, test_fraction)
    roles, drawn, divided = _roles(listing, targets, digests, fractions, seed)
    store = _store(listing.images, sound, digests, hints or {})
    statistics = _statistics(sound, np.flatnonzero(roles == 0), store.bands)
    made = ImageCollection(
        Path(source), store, targets, roles, names, listing.several, drawn, (), *statistics
    )
    return replace(made, notes=(*_notes(listing, sound, store), *divided, *_copies(made)))


def open_unlabelled(
    folder: str | Path,
    hints: dict[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
    *,
    bands: int | None = None,
) -> tuple[ImageStore, tuple[str, ...], npt.NDArray[np.float32]]:
    """Open all images below a folder, to predict their classes.

    Args:
        folder: the folder, or one image.
        hints: reader options for files that are opened as scenes.
        progress: called with (done, in all).
        bands: of the images that a network was trained on: where these are three, grey pictures are read so as well.

    Returns:
        The images, what a user should be told, and some of their pixels, ``(pixels, bands)``.

    Raises:
        VitreousError: anything is wrong with any of them; one message says all of it.
    """
    folder = Path(folder)
    paths, skipped = find_images(folder)
    base = folder if folder.is_dir() else folder.parent
    images = [Listed(str(path.relative_to(base)), path, (), None) for path in paths]
    listing = ImageList(folder, images, skipped=skipped)
    readings = _readings(listing, hints or {}, progress)
    _check_alike(listing, readings)
    listing.faults.refuse(str(folder))
    sound = [reading for reading in readings if reading is not None]
    digests = np.array([reading.facts.digest for reading in sound], dtype=np.uint64)
    store = _store(images, sound, digests, hints or {}, color=bands == 3)
    everything = np.arange(len(sound))
    sample = _statistics(sound, everything, store.bands)[2]
    return store, tuple(_notes(listing, sound, store)), sample


def fitting(values: Values, bands: int) -> Values:
    """Return an image in the bands of its collection: grey pictures among coloured ones have three equal ones."""
    return in_color(values) if values.shape[2] == 1 < bands == 3 else values


# -- checks -----------------------------------------------------------------------------------------------


def _check_rows(listing: ImageList) -> None:
    """Note files that are listed twice, under whatever name, and files that are missing."""
    paths = [(image.name, image.path.resolve()) for image in listing.images]
    counts = Counter(path for _, path in paths)
    twice = dict.fromkeys(name for name, path in paths if counts[path] > 1)
    listing.faults.add("is listed more than once", *twice)
    others = [(name, path.exists()) for name, path in paths if not path.is_file()]
    listing.faults.add("does not exist", *(name for name, there in others if not there))
    listing.faults.add("is a folder", *(name for name, there in others if there))


def _readings(
    listing: ImageList,
    hints: dict[str, Any],
    progress: Callable[[int, int], None] | None,
) -> list[Reading | None]:
    """Read every image once; None stands for those that cannot be.

    Images that are kept are read only here. What readers warn of is told once, not for every image.
    """
    images = listing.images
    memory = _Memory()

    def read(image: Listed) -> Reading | str | None:
        if not image.path.is_file():
            return None  # noted already
        try:
            return memory.keep(_measured(*read_image(image.path, hints)))
        except VitreousError as error:
            return error.problem.replace(f"{image.path} ", "").rstrip(".")

    readings: list[Reading | None] = []
    plain = all(image.path.suffix.lower() in PICTURES for image in images)
    with warnings.catch_warnings(record=True) as told, ThreadPoolExecutor(_cores()) as pool:
        # Pillow decodes outside the interpreter's lock; the scene readers are not made for threads.
        found = pool.map(read, images) if plain else map(read, images)
        for done, (image, reading) in enumerate(zip(images, found, strict=True), start=1):
            if isinstance(reading, str):
                listing.faults.note("cannot be read", image.name, reading)
            readings.append(None if isinstance(reading, str) else reading)
            if progress is not None and done % PROGRESS == 0:
                progress(done, len(images))
    listing.warned += [shortened(str(warning.message), 300) for warning in told]
    return readings if memory.enough else [r and replace(r, values=None) for r in readings]


class _Memory:
    """Keeps images while all of them fit."""

    def __init__(self) -> None:
        self.used = 0

    @property
    def enough(self) -> bool:
        return self.used <= KEPT_BYTES

    def keep(self, reading: Reading) -> Reading:
        """Return what was read, without the image where memory has run out."""
        assert reading.values is not None
        self.used += reading.values.nbytes
        return reading if self.enough else replace(reading, values=None)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _measured(values: Values, facts: ImageFacts) -> Reading:
    """Return the statistics of an image's valid pixels."""
    spectra = values.reshape(-1, facts.bands)
    if values.dtype != np.uint8:
        spectra = spectra[np.isfinite(spectra).all(1)]
    exact = spectra.astype(np.float64)
    step = max(1, len(spectra) // SAMPLED)
    sample = spectra[step // 2 :: step][:SAMPLED].astype(np.float32)
    return Reading(facts, len(spectra), exact.sum(0), np.square(exact).sum(0), sample, values)


def _check_alike(listing: ImageList, readings: Sequence[Reading | None]) -> None:
    """Note images that differ from most others in what all must have in common."""
    known = [
        (image.name, reading.facts)
        for image, reading in zip(listing.images, readings, strict=True)
        if reading is not None
    ]
    if not known:
        return
    color = any(facts.bands == 3 and facts.kind == "uint8" for _, facts in known)
    questions: dict[str, Callable[[ImageFacts], Any]] = {
        "bands": lambda facts: 3 if color and _is_grey(facts) else facts.bands,
        "type of values": lambda facts: facts.kind,
        "unit": lambda facts: facts.unit,
    }
    for what, ask in questions.items():
        usual = _usual(ask(facts) for _, facts in known)
        for name, facts in known:
            if ask(facts) != usual:
                listing.faults.note(
                    what, name, f"differs from most images in its {what}: {ask(facts)}, not {usual}"
                )
    centres = [(name, f.wavelengths) for name, f in known if f.wavelengths is not None]
    if centres:
        usual = _usual(own for _, own in centres)
        others = [name for name, own in centres if own != usual and len(own) == len(usual)]
        listing.faults.add("has other wavelengths than most images", *others)


def _usual(answers: Iterable[Any]) -> Any:
    return Counter(answers).most_common(1)[0][0]


def _is_grey(facts: ImageFacts) -> bool:
    return facts.bands == 1 and facts.kind == "uint8"


def _class_names(listing: ImageList) -> list[str]:
    """Return the names of the classes, numbers in the order of numbers, others in that of letters."""
    names = {label for image in listing.images for label in image.labels}
    return sorted(names, key=int if all(name.isdecimal() for name in names) else None)


def _check_classes(listing: ImageList, names: Sequence[str]) -> None:
    """Note classes that cannot be learned or tested, and roles without images."""
    faults, images = listing.faults, listing.images
    if len(names) < (1 if listing.several else 2):
        faults.add("is the only class; a classifier needs at least two", *names)
        if not names:
            faults.add("names no class in any row", "the column of labels")
        return
    given = {image.role for image in images if image.role is not None}
    of_role = {
        role: Counter(label for image in images if image.role == role for label in image.labels)
        for role in ROLES
    }
    if given and "train" not in given:
        faults.add("has no image", "train")
    if given - {"train"} or not given:
        for role in given & ({"train"} if listing.several else set(ROLES)):
            missing = [name for name in names if not of_role[role][name]]
            faults.add(f"is a class without an image in '{role}'", *missing)
    if {"test", "val"}.isdisjoint(given):  # some are drawn of every class
        everywhere = Counter(label for image in images for label in image.labels)
        few = [name for name in names if everywhere[name] < 2]
        faults.add("is a class with a single image, which cannot both train and test", *few)


def _targets(images: Sequence[Listed], names: Sequence[str]) -> npt.NDArray[np.float32]:
    number = {name: k for k, name in enumerate(names)}
    targets = np.zeros((len(images), len(names)), dtype=np.float32)
    for row, image in enumerate(images):
        targets[row, [number[label] for label in image.labels]] = 1
    return targets


# -- who trains, who tests ----------------------------------------------------------------------------------


def _roles(
    listing: ImageList,
    targets: npt.NDArray[np.float32],
    digests: npt.NDArray[np.uint64],
    fractions: tuple[float, float],
    seed: int,
) -> tuple[Ints, tuple[str, ...], list[str]]:
    """Return the role of every image, which of the roles were drawn, and what a user should know of them."""
    val_fraction, test_fraction = fractions
    given = [image.role for image in listing.images]
    roles = np.array([ROLES.index(role or "train") for role in given])
    drawn: list[str] = []
    notes: list[str] = []
    if "val" in given and "test" not in given:
        roles[roles == ROLES.index("val")] = ROLES.index("test")
        notes.append("No test images: accuracy is measured on the validation images.")
    generator = np.random.default_rng([seed, SPLIT_STREAM])
    for role, fraction in (("test", test_fraction), ("val", val_fraction)):
        if (roles == ROLES.index(role)).any() or fraction == 0:
            continue
        free = np.flatnonzero(roles == 0)
        chosen = draw_part(targets[free], digests[free], fraction, generator)
        roles[free[chosen]] = ROLES.index(role)
        drawn.append(role)
    return roles, tuple(drawn), notes


def draw_part(
    targets: npt.NDArray[np.float32],
    digests: npt.NDArray[np.uint64],
    fraction: float,
    generator: np.random.Generator,
) -> npt.NDArray[np.bool_]:
    """Draw a share of images, of every class alike; copies of an image are drawn together or not at all.

    An image with several labels counts for the rarest of them. A class keeps one image that is not drawn, and gives
    one where it has two or more.

    Args:
        targets: ``(count, classes)``.
        digests: ``(count,)``, the same for copies.
        fraction: of each class.
        generator: draws.
    """
    frequency = np.where(targets > 0, targets.sum(0), np.inf)
    group = np.where(targets.any(1), frequency.argmin(1), targets.shape[1])
    _, first, copy_of = np.unique(digests, return_index=True, return_inverse=True)
    chosen = np.zeros(len(first), dtype=bool)
    for label in np.unique(group[first]):
        own = generator.permutation(np.flatnonzero(group[first] == label))
        count = min(max(round(fraction * len(own)), 1), len(own) - 1)
        chosen[own[: max(count, 0)]] = True
    return chosen[copy_of]


# -- what the collection is made of -------------------------------------------------------------------------


def _store(
    images: Sequence[Listed],
    readings: Sequence[Reading],
    digests: npt.NDArray[np.uint64],
    hints: dict[str, Any],
    *,
    color: bool = False,
) -> ImageStore:
    facts = max((reading.facts for reading in readings), key=lambda facts: facts.bands)
    bands = 3 if color and _is_grey(facts) else facts.bands
    kept = {
        number: fitting(reading.values, bands)
        for number, reading in enumerate(readings)
        if reading.values is not None
    }
    return ImageStore(
        [image.path for image in images],
        [image.name for image in images],
        hints,
        bands,
        np.array([reading.facts.size for reading in readings], dtype=np.int64),
        digests,
        facts.unit,
        facts.kind,
        facts.wavelengths,
        kept,
    )


def _statistics(
    readings: Sequence[Reading], chosen: Ints, bands: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float32]]:
    """Return mean and deviation of the chosen images' pixels per band, and some of these pixels."""
    own = [readings[number] for number in chosen]
    count = sum(reading.count for reading in own)
    mean = np.sum([np.broadcast_to(reading.sums, bands) for reading in own], 0) / count
    square = np.sum([np.broadcast_to(reading.squares, bands) for reading in own], 0) / count
    few = own[:: -(-len(own) // SAMPLED_IMAGES)]
    sample = np.concatenate([np.broadcast_to(r.sample, (len(r.sample), bands)) for r in few])
    return mean, np.sqrt(np.maximum(square - np.square(mean), 0)), sample


def _notes(listing: ImageList, readings: Sequence[Reading], store: ImageStore) -> list[str]:
    """Say what was left out, and what images were made to be."""
    notes = []
    if listing.skipped:
        count = len(listing.skipped)
        what = (
            "1 file or folder that is not an image"
            if count == 1
            else f"{count} files or folders that are not images"
        )
        notes.append(f"Skipped {what}: {listed(listing.skipped, SHOWN)}.")
    if store.hints and all(path.suffix.lower() in PICTURES for path in store.paths):
        notes.append(
            f"Reader options have no effect on pictures of 8 bits: {listed(store.hints, SHOWN)}."
        )
    grey = sum(reading.facts.bands == 1 < store.bands for reading in readings)
    if grey:
        notes.append(f"{grey} grey pictures among coloured ones are read in three equal bands.")
    if listing.warned:
        more = (
            f" ({len(listing.warned) - 1} more warnings of readers)" if listing.warned[1:] else ""
        )
        notes.append(f"{listing.warned[0]}{more}")
    return notes


def _copies(collection: ImageCollection) -> list[str]:
    """Say which images are copies of each other: across roles, or with other labels."""
    notes = []
    leaked = collection.leaked
    if leaked.any():
        names = [collection.store.names[k] for k in collection.of("test")[leaked]]
        notes.append(
            f"{len(names)} of {len(leaked)} test images are copies of training or validation images (same pixels), so "
            f"the figures are optimistic: {listed(names, SHOWN)}."
        )
    _, copy_of = np.unique(collection.store.digests, return_inverse=True)
    apart = _labelled_apart(copy_of, collection.targets)
    if len(apart):
        names = [collection.store.names[k] for k in apart]
        notes.append(
            f"{len(names)} images are copies of others with different labels: {listed(names, SHOWN)}."
        )
    return notes


def _labelled_apart(copy_of: Ints, targets: npt.NDArray[np.float32]) -> Ints:
    """Return the numbers of images of which there is a copy with other labels."""
    order = np.argsort(copy_of, kind="stable")
    first = order[np.searchsorted(copy_of[order], np.arange(copy_of.max() + 1))]
    differs = (targets != targets[first[copy_of]]).any(1)
    return np.flatnonzero(np.isin(copy_of, copy_of[differs]))
