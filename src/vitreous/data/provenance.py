"""Which ground weights have learned from: a record that travels with them, and what it says about test pixels.

A run that starts from other weights knows some ground before it begins. Its test pixels are only unseen if none of the
runs behind it has learned from them. Each training adds a :class:`Seen` to the list in its model file's header; what
came before stays in front. Files of others have no such list, which is said as well (:class:`Unknown`).
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from vitreous.data.blocks import TRAIN, VAL
from vitreous.data.crops import Area
from vitreous.data.fingerprint import Ground
from vitreous.data.roles import Split
from vitreous.errors import CheckpointError

MASK_BYTES = 2**17  # of a packed mask; a larger one is kept coarser, and covers more than was seen
MOST_REACH = 2**12  # pixels; no model sees so far
MOST_DIGESTS = 2**14  # of images in a header

Mask: TypeAlias = npt.NDArray[np.bool_]
Ints: TypeAlias = npt.NDArray[np.int64]
Digests: TypeAlias = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Seen:
    """Ground that one training has learned from.

    Attributes:
        task: ``classify``, ``pretrain`` or ``restore``.
        labelled: whether labels were learned from, rather than values alone.
        source: the scene's name, for messages.
        ground: which ground that is.
        area: rectangle of the scene that holds all pixels below.
        reach: how far around a pixel its surroundings were learned from.
        pixels: the pixels with labels, see :func:`pack`; None for every pixel of the area.
        cell: side of the squares that are marked in ``pixels`` as a whole.
    """

    task: str
    labelled: bool
    source: str
    ground: Ground
    area: Area
    reach: int = 0
    pixels: str | None = None
    cell: int = 1

    @classmethod
    def values(cls, task: str, source: str, ground: Ground, area: Area) -> Seen:
        """Record a rectangle that was learned from without labels."""
        return cls(task, False, source, ground, area)

    @classmethod
    def labels(cls, source: str, ground: Ground, split: Split, patch_size: int) -> Seen:
        """Record the training and validation pixels of a split: the former trained, the latter chose.

        Args:
            source: the scene's name.
            ground: of the scene.
            split: who trained.
            patch_size: side of the square around a pixel that was learned from.
        """
        used = (split.roles == TRAIN) | (split.roles == VAL)
        rows, columns = (np.flatnonzero(used.any(axis)) for axis in (1, 0))
        area = Area(
            slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
        )
        pixels, cell = pack(used[area])
        return cls("classify", True, source, ground, area, patch_size // 2, pixels, cell)

    def holds(self, pixels: Ints, ground: Ground, reach: int = 0) -> Mask:
        """Tell which pixels of a scene were learned from, or lie within ``reach`` pixels of those.

        Args:
            pixels: flat (row-major) indices.
            ground: of their scene.
            reach: in pixels of the scene that was learned from.
        """
        found = self.ground.locate(pixels, ground)
        if found is None:
            return np.zeros(len(pixels), dtype=bool)
        rows = found[0] - self.area.rows.start + reach
        columns = found[1] - self.area.columns.start + reach
        height, width = (side + 2 * reach for side in self.area.shape)
        held = np.asarray((rows >= 0) & (rows < height) & (columns >= 0) & (columns < width))
        if self.pixels is not None:
            mask = unpack(self.pixels, self.area.shape, self.cell)
            held[held] = _dilated(np.pad(mask, reach), reach)[rows[held], columns[held]]
        return held

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "task": self.task,
            "labelled": self.labelled,
            "source": self.source,
            "ground": self.ground.to_json(),
            "area": self.area.to_json(),
            "reach": self.reach,
            "pixels": self.pixels,
            "cell": self.cell,
        }


@dataclass(frozen=True)
class Unknown:
    """Weights of which nobody recorded what they have learned from.

    Attributes:
        source: the file, for messages.
    """

    source: str

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {"task": "unknown", "source": self.source}


@dataclass(frozen=True)
class SeenImages:
    """Images that one training has learned from, or chosen an epoch by, known by hashes of their pixels.

    Of many images only those are kept whose hash is a multiple of ``step``, which is a random part of them.

    Attributes:
        task: ``recognize``.
        labelled: whether labels were learned from.
        source: the collection's name, for messages.
        step: 1, or a power of two.
        digests: the hashes, packed.
    """

    task: str
    labelled: bool
    source: str
    step: int
    digests: str

    @classmethod
    def of(cls, task: str, source: str, digests: Digests) -> SeenImages:
        """Record labelled images by the hashes of their pixels."""
        step, kept = 1, np.unique(digests)
        while len(kept) > MOST_DIGESTS:
            step *= 2
            kept = kept[kept % np.uint64(step) == 0]
        text = base64.b64encode(zlib.compress(kept.astype("<u8").tobytes(), 9)).decode()
        return cls(task, True, source, step, text)

    @property
    def known(self) -> Digests:
        """The hashes.

        Raises:
            ValueError: they are damaged.
        """
        try:
            unfolding = zlib.decompressobj()
            packed = base64.b64decode(self.digests, validate=True)
            data = unfolding.decompress(packed, 8 * MOST_DIGESTS + 1)
        except (binascii.Error, zlib.error) as error:
            raise ValueError(f"its hashes cannot be read: {error}") from error
        if len(data) % 8 or len(data) > 8 * MOST_DIGESTS:
            raise ValueError(f"its hashes have {len(data)} bytes")
        return np.frombuffer(data, dtype="<u8").astype(np.uint64)

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {"images": True, **vars(self)}


Provenance: TypeAlias = tuple[Seen | SeenImages | Unknown, ...]


def provenance_from_json(value: Any, source: str) -> Provenance:
    """Rebuild what a model file's header says of its provenance.

    Args:
        value: the list; None where a file has none, whose provenance is unknown.
        source: the file, for messages.

    Raises:
        CheckpointError: the values are no such list.
    """
    if value is None:
        return (Unknown(source),)
    try:
        if not isinstance(value, list):
            raise TypeError("it is not a list")
        return tuple(_entry(item) for item in value)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CheckpointError(
            f"The record in {source} of its training ground is damaged: {error!r}.",
            "Restore the file, or train again.",
        ) from error


def provenance_to_json(provenance: Provenance | None) -> list[dict[str, Any]] | None:
    """Return JSON-ready values; None where nobody knows the provenance."""
    return None if provenance is None else [entry.to_json() for entry in provenance]


def _seen_images(value: Any) -> SeenImages:
    step = int(value["step"])
    if not (0 < step < 2**63 and step & (step - 1) == 0):
        raise ValueError(f"its step is {step}")
    made = SeenImages(
        str(value["task"]),
        bool(value["labelled"]),
        str(value["source"]),
        step,
        str(value["digests"]),
    )
    made.known  # noqa: B018  # refuses damaged hashes
    return made


def _entry(value: Any) -> Seen | SeenImages | Unknown:
    if value["task"] == "unknown":
        return Unknown(str(value["source"]))
    if value.get("images") is True:
        return _seen_images(value)
    area = Area.from_json(value["area"])
    cell, reach, pixels = int(value["cell"]), int(value["reach"]), value["pixels"]
    if cell < 1 or not 0 <= reach <= MOST_REACH or not isinstance(pixels, str | None):
        raise ValueError("its pixels are described incorrectly")
    ground = Ground.from_json(value["ground"])
    if pixels is not None:
        unpack(pixels, area.shape, cell)
    return Seen(
        str(value["task"]),
        bool(value["labelled"]),
        str(value["source"]),
        ground,
        area,
        reach,
        pixels,
        cell,
    )


def pack(mask: Mask) -> tuple[str, int]:
    """Return a mask as text of at most about ``MASK_BYTES`` characters, and the side of its cells.

    A mask that does not fit is stored coarser: a cell is marked where any of its pixels is, so the ground that was
    seen is never understated.
    """
    cell = 1
    while True:
        coarse = _coarser(mask, cell)
        text = base64.b64encode(zlib.compress(np.packbits(coarse).tobytes(), 9)).decode()
        if len(text) <= MASK_BYTES or max(coarse.shape) == 1:
            return text, cell
        cell *= 2


def unpack(text: str, shape: tuple[int, int], cell: int) -> Mask:
    """Return what :func:`pack` was given, or a mask that covers it.

    Raises:
        ValueError: the text is no mask of this size.
    """
    height, width = (-(-side // cell) for side in shape)
    expected = -(-height * width // 8)
    try:
        unfolding = zlib.decompressobj()
        data = unfolding.decompress(base64.b64decode(text, validate=True), expected + 1)
    except (binascii.Error, zlib.error) as error:
        raise ValueError(f"its mask cannot be read: {error}") from error
    if len(data) != expected:
        raise ValueError(f"its mask holds {len(data)} bytes instead of {expected}")
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8), count=height * width)
    coarse = bits.reshape(height, width).astype(bool)
    return coarse.repeat(cell, 0).repeat(cell, 1)[: shape[0], : shape[1]]


def _coarser(mask: Mask, cell: int) -> Mask:
    height, width = mask.shape
    padded = np.pad(mask, ((0, -height % cell), (0, -width % cell)))
    cells = padded.reshape(padded.shape[0] // cell, cell, padded.shape[1] // cell, cell)
    return np.asarray(cells.any(axis=(1, 3)))


def _dilated(mask: Mask, reach: int) -> Mask:
    from scipy.ndimage import maximum_filter

    if reach == 0:
        return mask
    return np.asarray(maximum_filter(mask, size=2 * reach + 1, mode="constant", cval=False))


# -- what it says about test pixels -----------------------------------------------------------------------


@dataclass(frozen=True)
class StartLeakage:
    """What the weights that a training starts from have seen of its test pixels; shares from 0 to 1.

    Attributes:
        labelled: test pixels whose own labels were used, to train or to choose an epoch.
        patches: test pixels inside training patches of labelled pixels, those above among them.
        unlabelled: test pixels in ground that was learned from without labels.
        share: test pixels of any of these kinds.
        sources: where that ground is known from, as ``task of scene``.
        unknown: files whose provenance is unknown.
        who: has seen it, in words.
    """

    labelled: float
    patches: float
    unlabelled: float
    share: float
    sources: tuple[str, ...]
    unknown: tuple[str, ...]
    who: str = "the initial weights"

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "labelled": self.labelled,
            "patches": self.patches,
            "unlabelled": self.unlabelled,
            "share": self.share,
            "sources": list(self.sources),
            "unknown": list(self.unknown),
            "sentences": self.sentences,
        }

    @property
    def sentences(self) -> list[str]:
        """What a user should be told, in sentences; none where nothing was seen and all is known."""
        told = []
        who = self.who[0].upper() + self.who[1:]
        if self.patches:
            told.append(
                f"{who} were trained with labels on this ground: {self.patches:.0%} of "
                f"the test pixels lie inside their training patches, {self.labelled:.0%} are pixels whose labels were "
                "used."
            )
        if self.unlabelled:
            told.append(
                f"{who} were pre-trained on this ground without labels: "
                f"{self.unlabelled:.0%} of the test pixels lie in it."
            )
        if self.unknown:
            told.append(
                f"The provenance of the weights in {', '.join(self.unknown)} is unknown: they may have seen the "
                "test pixels."
            )
        return told


class Tested(NamedTuple):
    """Test pixels of a scene.

    Attributes:
        pixels: flat indices.
        ground: of the scene.
    """

    pixels: Ints
    ground: Ground


def start_leakage(
    start: Provenance, pixels: Ints, ground: Ground, who: str = "the initial weights"
) -> tuple[StartLeakage, Mask]:
    """Say what a training's start has seen of its test pixels in one scene; see :func:`start_leakage_of`."""
    found, seen = start_leakage_of(start, [Tested(pixels, ground)], who)
    return found, seen[0]


def start_leakage_of(
    start: Provenance, tested: Sequence[Tested], who: str = "the initial weights"
) -> tuple[StartLeakage, list[Mask]]:
    """Say what a training's start has seen of its test pixels.

    Args:
        start: the provenance of the weights that it starts from.
        tested: the test pixels of each scene.
        who: has learned from it, in words.

    Returns:
        The shares of all of them, and of each scene the test pixels that were seen, in the order of its pixels.
    """
    counts = np.zeros(4, dtype=np.int64)  # own labels, patches, unlabelled, any
    seen, sources = [], []
    for pixels, ground in tested:
        own, near, unlabelled = (np.zeros(len(pixels), dtype=bool) for _ in range(3))
        for entry in (entry for entry in start if isinstance(entry, Seen)):
            held = entry.holds(pixels, ground, entry.reach)
            if entry.labelled:
                near |= held
                own |= entry.holds(pixels, ground)
            else:
                unlabelled |= held
            if held.any():
                sources.append(f"{entry.task} of {entry.source}")
        seen.append(near | unlabelled)
        counts += [int(mask.sum()) for mask in (own, near, unlabelled, seen[-1])]
    total = max(sum(len(pixels) for pixels, _ in tested), 1)
    labelled, patches, unseen, share = (counts / total).tolist()
    unknown = tuple(dict.fromkeys(entry.source for entry in start if isinstance(entry, Unknown)))
    found = StartLeakage(
        labelled, patches, unseen, share, tuple(dict.fromkeys(sources)), unknown, who
    )
    return found, seen


@dataclass(frozen=True)
class ImageLeakage:
    """What the weights that a training starts from have seen of its test images.

    Attributes:
        share: of the test images, 0 to 1, that they have learned from.
        sources: where those are known from, as ``task of collection``.
        scenes: scenes that they have learned from, whose ground cannot be compared with image files.
        unknown: files whose provenance is unknown.
    """

    share: float
    sources: tuple[str, ...]
    scenes: tuple[str, ...]
    unknown: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        parts = {name: list(getattr(self, name)) for name in ("sources", "scenes", "unknown")}
        return {"share": self.share, **parts, "sentences": self.sentences}

    @property
    def sentences(self) -> list[str]:
        """What a user should be told, in sentences; none where nothing was seen and all is known."""
        told = []
        if self.share:
            told.append(
                f"The initial weights or the teacher were trained on {self.share:.0%} of the test images "
                f"({', '.join(self.sources)})."
            )
        if self.scenes:
            told.append(
                f"The initial weights have learned from {', '.join(self.scenes)}; whether the test images show that "
                "ground is not known."
            )
        if self.unknown:
            told.append(
                f"The provenance of the weights in {', '.join(self.unknown)} is unknown: they may have seen the "
                "test images."
            )
        return told


def image_leakage(start: Provenance, digests: Digests) -> ImageLeakage:
    """Say what a training's start has seen of its test images.

    Args:
        start: the provenance of the weights that it starts from.
        digests: hashes of the test images' pixels.
    """
    seen, looked_at = np.zeros((2, len(digests)), dtype=bool)
    sources = []
    for entry in (entry for entry in start if isinstance(entry, SeenImages)):
        held = np.isin(digests, entry.known)
        seen |= held
        looked_at |= digests % np.uint64(entry.step) == 0
        if held.any():
            sources.append(f"{entry.task} of {entry.source}")
    share = float(seen.sum() / max(looked_at.sum(), 1))
    scenes = dict.fromkeys(f"{e.task} of {e.source}" for e in start if isinstance(e, Seen))
    unknown = dict.fromkeys(e.source for e in start if isinstance(e, Unknown))
    return ImageLeakage(share, tuple(dict.fromkeys(sources)), tuple(scenes), tuple(unknown))
