"""Labelled areas for tests: a cube with its border, and the pixels that take part with their classes."""

from __future__ import annotations

import numpy as np
import torch

from vitreous.data.packed import PackedImage
from vitreous.data.regions import LabelledArea


def labelled_area(cube, pixels, classes, width, height=None) -> LabelledArea:
    """Return an area of flat pixel indices with classes from 0 on; the scene's height follows from the cube."""
    border = cube.shape[2] - width
    image = np.zeros((height or cube.shape[1] - border, width), np.int64)
    image.flat[pixels] = np.asarray(classes) + 1
    return LabelledArea(torch.as_tensor(cube), PackedImage(image))


def packed(pixels, shape) -> PackedImage:
    """Return an image that is 1 at some flat pixel indices."""
    image = np.zeros(shape, np.uint8)
    image.flat[pixels] = 1
    return PackedImage(image)
