"""Folders of pictures, one subfolder per class, as images in memory: real data for small classification studies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitreous.data.image_batches import resized
from vitreous.data.image_files import PICTURES, read_picture
from vitreous.data.image_lists import Listed, list_images
from vitreous.errors import VitreousError

LIMIT = 2 * 2**30  # bytes of all images together, as float32


class Images(NamedTuple):
    """Images ``(count, bands, height, width)`` and their classes from 0."""

    images: Float[Tensor, "count bands height width"]
    classes: Int[Tensor, "count"]


class ImageFolder(NamedTuple):
    """A folder's images, 0 to 1, of one size.

    Attributes:
        train: those of ``train/``, or all where the folder is not divided.
        test: those of ``test/`` (or ``val/``); None where the folder is not divided.
        names: of the classes, in the order of their numbers.
    """

    train: Images
    test: Images | None
    names: list[str]


def read_image_folder(folder: Path, side: int) -> ImageFolder:
    """Read pictures in three bands and resize them to squares.

    Args:
        folder: ``<class>/<picture>``, or ``train/<class>/<picture>`` and ``test/<class>/<picture>``.
        side: of the images, in pixels; pictures of another size are resized (bicubic, antialiased).

    Raises:
        VitreousError: no class has a picture, one cannot be read, or they do not fit into memory.
    """
    listing = list_images(folder)
    listing.faults.refuse(str(folder))
    pictures = [image for image in listing.images if image.path.suffix.lower() in PICTURES]
    train = [image for image in pictures if image.role in (None, "train")]
    if not train:
        raise VitreousError(
            f"{folder} contains no JPEG or PNG images.",
            "Give a folder with one subfolder per class, or with train/ and test/ above those.",
        )
    names = sorted({image.labels[0] for image in train})
    held_out = {image.role for image in pictures if image.role in ("test", "val")}
    role = "test" if "test" in held_out else "val"
    tested = [image for image in pictures if image.role == role]
    known = [image for image in tested if image.labels[0] in names]
    return ImageFolder(
        _read(train, names, side), _read(known, names, side) if held_out else None, names
    )


def _read(pictures: Sequence[Listed], names: list[str], side: int) -> Images:
    """Read the pictures of the named classes."""
    if (needed := 12 * len(pictures) * side**2) > LIMIT:
        raise VitreousError(
            f"{len(pictures):,} images of {side} x {side} pixels need {needed / 2**30:.1f} GiB.",
            "Choose fewer images.",
        )
    values = np.empty((len(pictures), side, side, 3), np.uint8)
    for row, picture in enumerate(pictures):
        found = read_picture(picture.path, color=True)
        values[row] = resized(found, (0, 0, *found.shape[:2]), (side, side))
    images = torch.from_numpy(values).permute(0, 3, 1, 2).float() / 255
    numbers = [names.index(picture.labels[0]) for picture in pictures]
    return Images(images, torch.tensor(numbers, dtype=torch.long))
