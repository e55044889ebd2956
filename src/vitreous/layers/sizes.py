"""Heights and widths of images."""

from __future__ import annotations

from collections.abc import Sequence

from vitreous.catalog.arguments import ImageSize
from vitreous.errors import ModelError


def as_size(image_size: int | Sequence[int]) -> tuple[int, int]:
    """Return height and width of an image size that is a side, or both."""
    if isinstance(image_size, int):
        return image_size, image_size
    height, width = image_size
    return int(height), int(width)


def size_name(image_size: int | Sequence[int]) -> str:
    """Return a size as people write it: ``24 x 36``."""
    height, width = as_size(image_size)
    return f"{height} x {width}"


def plain_size(size: Sequence[int]) -> ImageSize:
    """Return what ``create_model`` takes for a height and width: the side where they are equal, else both."""
    height, width = size
    return height if height == width else (height, width)


def in_words(size: Sequence[int]) -> str:
    """Return a size as messages give it: the side, or height and width where they differ."""
    height, width = size
    return str(height) if height == width else f"{height} x {width}"


def whole_cells(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Return how many rows and columns of square cells fit into an image; what fills none is left out."""
    return size[0] // side, size[1] // side


def check_tokens(slug: str, size: tuple[int, int], side: int) -> None:
    """Refuse an image that holds no token of ``side`` pixels.

    Raises:
        ModelError: it is smaller, in height or width.
    """
    if min(size) < side:
        raise ModelError(
            f"{slug} cuts tokens of {side} pixels; an image of {in_words(size)} has none.",
            "Give a smaller token_size.",
        )
