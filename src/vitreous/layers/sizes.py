"""Heights and widths of images."""

from __future__ import annotations

from collections.abc import Sequence

from vitreous.catalog.arguments import ImageSize


def as_size(image_size: int | Sequence[int]) -> tuple[int, int]:
    """Return height and width of an image size that is a side, or both."""
    if isinstance(image_size, int):
        return image_size, image_size
    height, width = image_size
    return int(height), int(width)


def plain_size(size: Sequence[int]) -> ImageSize:
    """Return what ``create_model`` takes for a height and width: the side where they are equal, else both."""
    height, width = size
    return height if height == width else (height, width)
