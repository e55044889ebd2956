"""Random changes to training images: crop, flip, RandAugment, erasing, and mixtures of two images.

What is drawn for an image depends on (seed, epoch, its number) alone, whatever batch or process it is in. Operations on
colours are kornia's and are meant for pictures in red, green and blue. Images of other bands get operations per band
instead, whose strengths are relative to each band's deviation over the training images; geometry is the same for all.

Sources: random resized crops, Szegedy et al., 2015; RandAugment, Cubuk et al., 2020 (with the signs drawn); random
erasing, Zhong et al., 2020; mixup, Zhang et al., 2018; CutMix, Yun et al., 2019.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

WHITE = 255.0  # of a picture of 8 bits
ASPECT = 4 / 3  # how much wider or narrower than the image itself a crop may be
ERASED_AREA, ERASED_ASPECT = (0.02, 0.33), 10 / 3
ROTATION, SHEAR, SHIFT = 30.0, 0.3, 10 / 32  # degrees; share of the side: strongest, as published
ENHANCEMENT = 0.9  # likewise, of brightness, contrast, saturation and sharpness
MOST_OPERATIONS = 8
STRONGEST = 10.0  # magnitude
# Columns of what is drawn per image, each uniform in [0, 1).
CROP, FLIP, ERASE, OPERATIONS = slice(0, 4), slice(4, 6), slice(6, 11), 11
DRAWN = OPERATIONS + 3 * MOST_OPERATIONS
MIXED = 50_000  # random stream

Draws = npt.NDArray[np.float64]
Images = Float[Tensor, "batch bands height width"]


@dataclass(frozen=True)
class Augmentation:
    """Which changes, and how strong.

    Attributes:
        crop: least share of the image's area in a random crop; 1: the whole image.
        flip: ``horizontal``, ``all`` (the eight orientations of a square, as in images from above) or ``none``.
        operations: of RandAugment per image.
        magnitude: of these, 0 to 10.
        erasing: share of the images in which a rectangle is erased.
        mixup: alpha of mixup; 0: none.
        cutmix: alpha of CutMix; with both, each image gets either.
    """

    crop: float = 1.0
    flip: str = "none"
    operations: int = 0
    magnitude: float = 0.0
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0


@dataclass(frozen=True)
class Palette:
    """What operations on values have to know of a collection.

    Attributes:
        color: whether they are pictures of 8 bits in red, green and blue.
        mean: ``(bands,)`` of the training images, what erased pixels become.
        deviation: ``(bands,)`` likewise.
    """

    color: bool
    mean: Float[Tensor, "bands"]
    deviation: Float[Tensor, "bands"]


class ImageDraws:
    """The random numbers of some images in one epoch.

    Args:
        seed: of the training.
        epoch: from 0 on.
        numbers: of the images in their collection.

    Attributes:
        table: ``(images, DRAWN)`` uniform numbers.
    """

    def __init__(self, seed: int, epoch: int, numbers: Sequence[int]) -> None:
        self._generators = [np.random.default_rng((seed, epoch, number)) for number in numbers]
        self.table: Draws = np.stack([own.random(DRAWN) for own in self._generators])

    def normal(self, rows: Sequence[int], shape: tuple[int, ...]) -> Tensor:
        """Return normal numbers ``(rows, *shape)``, from the streams of these images."""
        drawn = [self._generators[row].standard_normal(shape, dtype=np.float32) for row in rows]
        return torch.from_numpy(np.stack(drawn))


def crop_box(
    image: tuple[int, int], size: tuple[int, int], least: float, drawn: Draws
) -> tuple[float, float, float, float]:
    """Return the rectangle of an image to take: top, left, height, width in pixels.

    Args:
        image: height and width.
        size: that it becomes; its sides' ratio is that of the rectangle, but for ``ASPECT``.
        least: share of the largest such rectangle.
        drawn: four uniform numbers: area, ratio, place down, place to the right.
    """
    height, width = covering_box(image, size)[2:]
    area = least + (1 - least) * drawn[0]
    ratio = ASPECT ** (2 * drawn[1] - 1) if least < 1 else 1.0
    height = min(height * math.sqrt(area / ratio), image[0])
    width = min(width * math.sqrt(area * ratio), image[1])
    return drawn[2] * (image[0] - height), drawn[3] * (image[1] - width), height, width


def covering_box(
    image: tuple[int, int], size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """Return the largest rectangle in the middle of an image that has the ratio of ``size``: top, left, height, width."""
    scale = min(image[0] / size[0], image[1] / size[1])
    height, width = scale * size[0], scale * size[1]
    return (image[0] - height) / 2, (image[1] - width) / 2, height, width


def changed(
    images: Images, augmentation: Augmentation, palette: Palette, draws: ImageDraws
) -> Images:
    """Flip, change and erase images of one size; crops are made when they are read.

    Args:
        images: physical values, finite.
        augmentation: which changes.
        palette: of their collection.
        draws: their random numbers.
    """
    images = flipped(images, augmentation.flip, draws.table[:, FLIP])
    for number in range(augmentation.operations):
        first = OPERATIONS + 3 * number
        images = _operated(images, augmentation, palette, draws, slice(first, first + 3))
    if augmentation.erasing:
        images = erased(images, augmentation.erasing, palette.mean, draws.table[:, ERASE])
    return images


def flipped(images: Images, flip: str, drawn: Draws) -> Images:
    """Mirror half of the images left to right; with ``all``, turn them to one of eight orientations as well."""
    if flip == "none":
        return images
    mirror = torch.from_numpy(drawn[:, 0] < 0.5)[:, None, None, None]
    images = torch.where(mirror, images.flip(3), images)
    if flip != "all":
        return images
    # Only squares keep their size when they are turned by 90 degrees.
    turns = (1, 2, 3) if images.shape[2] == images.shape[3] else (2,)
    chosen = np.floor(drawn[:, 1] * (len(turns) + 1)).astype(int)
    images = images.clone()
    for number, turn in enumerate(turns, start=1):
        rows = torch.from_numpy(np.flatnonzero(chosen == number))
        images[rows] = torch.rot90(images[rows], turn, (2, 3))
    return images


def erased(images: Images, share: float, fill: Float[Tensor, "bands"], drawn: Draws) -> Images:
    """Replace a rectangle by the training images' mean, in a share of the images."""
    height, width = images.shape[2:]
    images = images.clone()
    low, high = ERASED_AREA
    for row in np.flatnonzero(drawn[:, 0] < share):
        area = (low + (high - low) * drawn[row, 1]) * height * width
        ratio = ERASED_ASPECT ** (2 * drawn[row, 2] - 1)
        rows = min(max(round(math.sqrt(area / ratio)), 1), height)
        columns = min(max(round(math.sqrt(area * ratio)), 1), width)
        top = int(drawn[row, 3] * (height - rows + 1))
        left = int(drawn[row, 4] * (width - columns + 1))
        images[row, :, top : top + rows, left : left + columns] = fill[:, None, None]
    return images


# -- RandAugment --------------------------------------------------------------------------------------------

Rows = Float[Tensor, "rows"]
Operation = Callable[[Images, Rows, "ImageDraws", list[int], Palette], Images]


def _operated(
    images: Images,
    augmentation: Augmentation,
    palette: Palette,
    draws: ImageDraws,
    columns: slice,
) -> Images:
    """Apply one operation to every image: which, its sign and its strength are drawn; images of one operation together."""
    table = draws.table[:, columns]
    operations = OPERATIONS_ON_COLORS if palette.color else OPERATIONS_PER_BAND
    count = len(GEOMETRY) + len(operations)
    chosen = np.floor(table[:, 0] * count).astype(int)
    sign = np.where(table[:, 1] < 0.5, -1.0, 1.0)
    # Half to all of the magnitude: what is always as strong is soon learned as a class of its own.
    strength = augmentation.magnitude / STRONGEST * (0.5 + 0.5 * table[:, 2])
    signed = torch.from_numpy((sign * strength).astype(np.float32))
    images = images.clone()
    moved = np.flatnonzero(chosen < len(GEOMETRY))
    if len(moved):
        rows = torch.from_numpy(moved)
        images[rows] = _moved(images[rows], chosen[moved], signed[rows])
    for number, operation in enumerate(operations, start=len(GEOMETRY)):
        own = np.flatnonzero(chosen == number)
        if len(own):
            rows = torch.from_numpy(own)
            images[rows] = operation(images[rows], signed[rows], draws, own.tolist(), palette)
    return images


GEOMETRY = ("none", "rotate", "shear_x", "shear_y", "shift_x", "shift_y")


def _moved(images: Images, chosen: npt.NDArray[np.int_], strength: Rows) -> Images:
    """Rotate, shear or shift images about their middle; what comes in from outside is mirrored."""
    from kornia.geometry.transform import warp_affine

    height, width = images.shape[2:]
    matrix = torch.eye(2).repeat(len(images), 1, 1)
    shift = torch.zeros(len(images), 2)
    kind = torch.from_numpy(chosen)
    angle = torch.deg2rad(ROTATION * strength)
    turn = torch.stack([angle.cos(), angle.sin(), -angle.sin(), angle.cos()], 1).view(-1, 2, 2)
    matrix = torch.where((kind == 1)[:, None, None], turn, matrix)
    matrix[:, 0, 1] += torch.where(kind == 2, SHEAR * strength, 0.0)
    matrix[:, 1, 0] += torch.where(kind == 3, SHEAR * strength, 0.0)
    shift[:, 0] = torch.where(kind == 4, SHIFT * width * strength, 0.0)
    shift[:, 1] = torch.where(kind == 5, SHIFT * height * strength, 0.0)
    middle = torch.tensor([(width - 1) / 2, (height - 1) / 2])
    offset = middle + shift - matrix @ middle
    return warp_affine(
        images,
        torch.cat([matrix, offset[:, :, None]], 2),
        (height, width),
        padding_mode="reflection",
    )


def _on_colors(change: Callable[[Images, Rows], Images]) -> Operation:
    """Return an operation on values from 0 to 1."""

    def operation(
        images: Images, strength: Rows, draws: ImageDraws, rows: list[int], palette: Palette
    ) -> Images:
        return WHITE * change((images / WHITE).clamp(0, 1), strength).clamp(0, 1)

    return operation


def _autocontrast(images: Images, strength: Rows) -> Images:
    low, high = (part[:, :, None, None] for part in images.flatten(2).aminmax(dim=2))
    return torch.where(high > low, (images - low) / (high - low).clamp(min=1e-6), images)


def _equalize(images: Images, strength: Rows) -> Images:
    from kornia.enhance import equalize

    return equalize(images)


def _posterize(images: Images, strength: Rows) -> Images:
    from kornia.enhance import posterize

    return posterize(images, (8 - 4 * strength.abs()).round().int())


def _solarize(images: Images, strength: Rows) -> Images:
    threshold = (1 - strength.abs())[:, None, None, None]
    return torch.where(images < threshold, images, 1 - images)


def _brightness(images: Images, strength: Rows) -> Images:
    return images * _factor(strength)


def _contrast(images: Images, strength: Rows) -> Images:
    from kornia.enhance import adjust_contrast_with_mean_subtraction

    return adjust_contrast_with_mean_subtraction(images, _factor(strength).flatten())


def _saturation(images: Images, strength: Rows) -> Images:
    from kornia.enhance import adjust_saturation_with_gray_subtraction

    return adjust_saturation_with_gray_subtraction(images, _factor(strength).flatten())


def _sharpness(images: Images, strength: Rows) -> Images:
    from kornia.enhance import sharpness

    return sharpness(images, _factor(strength).flatten())


def _factor(strength: Rows) -> Float[Tensor, "rows 1 1 1"]:
    return (1 + ENHANCEMENT * strength)[:, None, None, None]


OPERATIONS_ON_COLORS: tuple[Operation, ...] = tuple(
    _on_colors(change)
    for change in (
        _autocontrast,
        _equalize,
        _posterize,
        _solarize,
        _brightness,
        _contrast,
        _saturation,
        _sharpness,
    )
)


def _gain(
    images: Images, strength: Rows, draws: ImageDraws, rows: list[int], palette: Palette
) -> Images:
    """Change the illumination, and a little that of each band."""
    own = draws.normal(rows, (images.shape[1], 1, 1)) * 0.1 * strength.abs()[:, None, None, None]
    return images * (1 + 0.3 * strength[:, None, None, None] + own)


def _offset(
    images: Images, strength: Rows, draws: ImageDraws, rows: list[int], palette: Palette
) -> Images:
    """Add something to each band, as haze and path radiance do."""
    own = draws.normal(rows, (images.shape[1], 1, 1)) * 0.3 + 0.5
    return images + strength[:, None, None, None] * own * palette.deviation[:, None, None]


def _band_contrast(
    images: Images, strength: Rows, draws: ImageDraws, rows: list[int], palette: Palette
) -> Images:
    """Stretch or flatten each band about its mean."""
    middle = images.mean((2, 3), keepdim=True)
    return middle + (images - middle) * (1 + 0.5 * strength[:, None, None, None])


def _noise(
    images: Images, strength: Rows, draws: ImageDraws, rows: list[int], palette: Palette
) -> Images:
    """Add noise to every pixel."""
    noise = draws.normal(rows, tuple(images.shape[1:])) * palette.deviation[:, None, None]
    return images + 0.2 * strength.abs()[:, None, None, None] * noise


def _blurred_or_sharpened(
    images: Images, strength: Rows, draws: ImageDraws, rows: list[int], palette: Palette
) -> Images:
    """Take details away, or add to them."""
    from kornia.filters import gaussian_blur2d

    rows_of, columns_of = (min(5, side - 1 + side % 2) for side in images.shape[2:])
    smooth = gaussian_blur2d(images, (rows_of, columns_of), torch.ones(len(images), 2))
    return images + strength[:, None, None, None] * (images - smooth)


def _band_dropped(
    images: Images, strength: Rows, draws: ImageDraws, rows: list[int], palette: Palette
) -> Images:
    """Replace one band by the training images' mean."""
    dropped = draws.normal(rows, (images.shape[1],)).argmax(1)
    images = images.clone()
    images[torch.arange(len(images)), dropped] = palette.mean[dropped][:, None, None]
    return images


OPERATIONS_PER_BAND: tuple[Operation, ...] = (
    _gain,
    _offset,
    _band_contrast,
    _noise,
    _blurred_or_sharpened,
    _band_dropped,
)


# -- mixtures -----------------------------------------------------------------------------------------------


def mixed(
    images: Images,
    targets: Float[Tensor, "batch classes"],
    augmentation: Augmentation,
    key: tuple[int, int, int],
) -> tuple[Images, Float[Tensor, "batch classes"]]:
    """Mix every image with another of its batch, whole (mixup) or a rectangle of it (CutMix), and their targets alike.

    Args:
        images: of one batch.
        targets: their classes.
        augmentation: how.
        key: seed, epoch and number of the batch; what is drawn depends on it alone.
    """
    if not (augmentation.mixup or augmentation.cutmix) or len(images) < 2:
        return images, targets
    generator = np.random.default_rng((MIXED, *key))
    count, (height, width) = len(images), images.shape[2:]
    order = generator.permutation(count)
    partner = torch.from_numpy(order[np.argsort(order) - 1])  # a cycle: none is its own partner
    cut = generator.random(count) < (0.5 if augmentation.mixup else 1.0) * bool(augmentation.cutmix)
    alphas = np.where(cut, augmentation.cutmix or 1.0, augmentation.mixup or 1.0)
    share = generator.beta(alphas, alphas)
    share = np.maximum(
        share, 1 - share
    )  # the own image stays the larger part, for the figures shown
    down, right = generator.random((2, count))
    result = images.clone()
    for row in np.flatnonzero(cut):
        side = math.sqrt(1 - share[row])
        rows, columns = round(side * height), round(side * width)
        top, left = int(down[row] * (height - rows + 1)), int(right[row] * (width - columns + 1))
        place = (slice(None), slice(top, top + rows), slice(left, left + columns))
        result[(row, *place)] = images[(int(partner[row]), *place)]
        share[row] = 1 - rows * columns / (height * width)
    shares = torch.from_numpy(share.astype(np.float32))
    whole = torch.from_numpy(np.flatnonzero(~cut))
    weight = shares[whole][:, None, None, None]
    result[whole] = weight * images[whole] + (1 - weight) * images[partner[whole]]
    return result, shares[:, None] * targets + (1 - shares)[:, None] * targets[partner]
