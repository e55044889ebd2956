"""Folders of pictures, one subfolder per class, as images in memory: real data for small classification studies."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitreous.errors import VitreousError

FORMATS = ("JPEG", "PNG")  # of which every decoder is well tested
SUFFIXES = {".jpg", ".jpeg", ".png"}
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
    divided = (folder / "train").is_dir()
    train = folder / "train" if divided else folder
    names = sorted(path.name for path in train.iterdir() if path.is_dir()) if train.is_dir() else []
    test = next((folder / name for name in ("test", "val") if (folder / name).is_dir()), None)
    found = _read(train, names, side)
    if not len(found.images):
        raise VitreousError(
            f"{folder} contains no JPEG or PNG images.",
            "Give a folder with one subfolder per class, or with train/ and test/ above those.",
        )
    return ImageFolder(found, _read(test, names, side) if divided and test else None, names)


def _read(folder: Path, names: list[str], side: int) -> Images:
    """Read the pictures of the named classes."""
    paths = [
        (path, number)
        for number, name in enumerate(names)
        for path in sorted((folder / name).glob("*"))
        if path.suffix.lower() in SUFFIXES
    ]
    if (needed := 12 * len(paths) * side**2) > LIMIT:
        raise VitreousError(
            f"{len(paths):,} images of {side} x {side} pixels need {needed / 2**30:.1f} GiB.",
            "Choose fewer images.",
        )
    values = np.empty((len(paths), side, side, 3), np.uint8)
    for row, (path, _) in enumerate(paths):
        values[row] = _picture(path, side)
    images = torch.from_numpy(values).permute(0, 3, 1, 2).float() / 255
    return Images(images, torch.tensor([number for _, number in paths], dtype=torch.long))


def _picture(path: Path, side: int) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=FORMATS) as picture:
            found = picture.convert("RGB")
            if found.size != (side, side):
                found = found.resize((side, side), Image.Resampling.BICUBIC)
            return np.asarray(found)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError) as error:
        raise VitreousError(f"{path} cannot be read as JPEG or PNG: {error}.") from error
