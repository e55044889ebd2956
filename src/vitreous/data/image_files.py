"""One image file as an array: pictures of 8 bits through Pillow, everything else through the scene readers.

A picture that stores colours is read in three bands, a grey one in one; transparency is left out. What the scene
readers open (TIFF, PNG of 16 bits) has physical values in all its good bands, NaN where a pixel is invalid.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from vitreous.errors import SceneError, VitreousError, shortened

PICTURES = {".jpg", ".jpeg", ".png"}
RASTERS = {".tif", ".tiff"}
SUFFIXES = PICTURES | RASTERS
FORMATS = ("JPEG", "PNG")  # that Pillow may decode
MOST_PIXELS = 2**26  # of an image; what is larger is a scene, and is mapped in windows
GREY_MODES = {"1", "L", "LA"}
DIGEST_BYTES = 8
_DEEP_PNG = 16  # bits per channel, of which Pillow keeps 8

Values: TypeAlias = npt.NDArray[np.uint8] | npt.NDArray[np.float32]


@dataclass(frozen=True)
class ImageFacts:
    """What one file holds, as far as images of a collection must agree in it.

    Attributes:
        bands: how many it has.
        kind: type of its stored values, e.g. ``uint8``.
        unit: ``dn``, ``radiance`` or ``reflectance``.
        wavelengths: centres of its bands in nm, where they are known.
        size: height and width in pixels.
        digest: of its values; the same for copies of one image, whatever their names and formats.
    """

    bands: int
    kind: str
    unit: str
    wavelengths: tuple[float, ...] | None
    size: tuple[int, int]
    digest: int


def read_image(path: Path, hints: dict[str, Any] | None = None) -> tuple[Values, ImageFacts]:
    """Read one image.

    Args:
        path: the file.
        hints: reader options, for files that are opened as scenes.

    Returns:
        ``(height, width, bands)``: uint8 as stored, or float32 physical values with NaN where invalid; and its facts.

    Raises:
        VitreousError: it cannot be read, is too large, or has no valid pixel.
    """
    if path.suffix.lower() in PICTURES and not _is_deep(path):
        values: Values = read_picture(path)
        kind, unit, centres = "uint8", "dn", None
    else:
        values, kind, unit, centres = _read_scene(path, hints or {})
    digest = hashlib.blake2b(repr(values.shape).encode(), digest_size=DIGEST_BYTES)
    digest.update(np.ascontiguousarray(values).tobytes())
    height, width, bands = values.shape
    number = int.from_bytes(digest.digest(), "little")
    return values, ImageFacts(bands, kind, unit, centres, (height, width), number)


def read_picture(path: Path, *, color: bool = False) -> npt.NDArray[np.uint8]:
    """Decode a JPEG or PNG of 8 bits.

    Args:
        path: the file.
        color: read a grey picture in three equal bands as well.

    Returns:
        ``(height, width, 3)``, or with one band where it is grey.

    Raises:
        SceneError: it is damaged, of another format, or too large.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=FORMATS) as picture:
            _check_size(path, picture.height, picture.width)
            mode = "L" if picture.mode in GREY_MODES and not color else "RGB"
            found = picture if picture.mode == mode else picture.convert(mode)
            values: npt.NDArray[np.uint8] = np.asarray(found)
    except UnidentifiedImageError as error:
        raise SceneError(
            f"{path} cannot be read as JPEG or PNG: its content is neither."
        ) from error
    except (OSError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
        raise SceneError(
            f"{path} cannot be read as JPEG or PNG: {shortened(str(error), 200)}."
        ) from error
    return values[:, :, None] if values.ndim == 2 else values


def in_color(values: Values) -> Values:
    """Return a grey picture in three equal bands."""
    height, width = values.shape[:2]
    return np.ascontiguousarray(np.broadcast_to(values, (height, width, 3)))


def _is_deep(path: Path) -> bool:
    """Tell whether a file is a PNG of 16 bits per channel (W3C, PNG, 11.2.1: the byte after width and height)."""
    try:
        with path.open("rb") as file:
            start = file.read(25)
    except OSError:
        return False  # its reader says why
    return start[:4] == b"\x89PNG" and len(start) == 25 and start[24] == _DEEP_PNG


def _read_scene(
    path: Path, hints: dict[str, Any]
) -> tuple[Values, str, str, tuple[float, ...] | None]:
    from vitreous.data.contract import BandContract
    from vitreous.scenes.cube import read_window
    from vitreous.scenes.formats import open_scene

    scene = open_scene(path, **hints)
    height, width = scene.sizes["y"], scene.sizes["x"]
    _check_size(path, height, width)
    contract = BandContract.of(scene)
    cube = read_window(scene, slice(0, height), slice(0, width), np.array(contract.used))
    if not np.isfinite(cube).any():
        raise SceneError(f"{path} has no valid pixel.", "Check its no-data value.")
    values = np.ascontiguousarray(cube.transpose(1, 2, 0))
    plain = scene.dtype == np.uint8 and scene.attrs.get("scale", 1.0) == 1.0
    if plain and np.isfinite(values).all():
        return values.astype(np.uint8), "uint8", contract.unit, contract.wavelengths
    return values, str(scene.dtype), contract.unit, contract.wavelengths


def _check_size(path: Path, height: int, width: int) -> None:
    if height * width > MOST_PIXELS:
        raise SceneError(
            f"{path} has {height:,} x {width:,} pixels, more than an image may have.",
            "Cut it into images, or map it as a scene with 'vitreous train'.",
        )
    if min(height, width) < 1:
        raise VitreousError(f"{path} has no pixels.")
