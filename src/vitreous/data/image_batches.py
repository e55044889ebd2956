"""Images of a collection as batches of one size, for training with random changes and for measuring without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vitreous.data.image_augment import (
    CROP,
    Augmentation,
    ImageDraws,
    Palette,
    changed,
    covering_box,
    crop_box,
    mixed,
)
from vitreous.data.image_collection import ImageCollection, ImageStore
from vitreous.data.image_files import Values

Ints = npt.NDArray[np.int64]


@dataclass
class ImageBatch:
    """Some images, as a network is trained on them.

    Attributes:
        image: physical values, changed at random in training.
        target: classes from 0 to 1; shares of two images' where they are mixed.
        label: of the image itself, 0 or 1.
        number: of the image in its collection.
    """

    image: Float[Tensor, "batch bands height width"]
    target: Float[Tensor, "batch classes"]
    label: Float[Tensor, "batch classes"]
    number: Int[Tensor, "batch"]

    def to(self, device: torch.device | str, **options: Any) -> Self:
        """Return the batch on a device."""
        return type(self)(
            *(
                part.to(device, **options)
                for part in (self.image, self.target, self.label, self.number)
            )
        )


class Sized:
    """Reads images in one size.

    An image is enlarged or reduced until it covers the size, with its sides' ratio kept, and what is over on two sides
    is cut off; both by bicubic interpolation with antialiasing. Invalid pixels become the training images' mean.

    Args:
        store: the images.
        size: height and width.
        fill: ``(bands,)`` what invalid pixels become.
    """

    def __init__(
        self, store: ImageStore, size: tuple[int, int], fill: Float[Tensor, "bands"]
    ) -> None:
        self.store, self.size, self.fill = store, size, fill.numpy().astype(np.float32)

    def images(
        self,
        numbers: Sequence[int],
        crop: float = 1.0,
        drawn: npt.NDArray[np.float64] | None = None,
    ) -> Float[Tensor, "batch bands height width"]:
        """Return images in physical values.

        Args:
            numbers: of the images.
            crop: least share of their area that is kept.
            drawn: ``(images, 4)`` random numbers of the crops, where there are any.
        """
        made = []
        for row, number in enumerate(numbers):
            values = self.store.read(int(number))
            whole = values.shape[:2]
            box = (
                covering_box(whole, self.size)
                if drawn is None
                else crop_box(whole, self.size, crop, drawn[row])
            )
            made.append(resized(self._valid(values), box, self.size))
        stacked = torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2)
        return stacked.float().contiguous()

    def _valid(self, values: Values) -> Values:
        if values.dtype == np.uint8:
            return values
        valid = np.isfinite(values).all(axis=2, keepdims=True)
        return values if valid.all() else np.where(valid, values, self.fill)


def resized(
    values: Values, box: tuple[float, float, float, float], size: tuple[int, int]
) -> Values:
    """Return a rectangle of an image in another size.

    Args:
        values: ``(height, width, bands)``.
        box: top, left, height and width in pixels; whole pixels where values are not pictures of 8 bits.
        size: height and width.
    """
    top, left, height, width = box
    if list(box) == [0, 0, *values.shape[:2]] and list(size) == [*values.shape[:2]]:
        return values
    if values.dtype == np.uint8 and values.shape[2] in (1, 3):
        from PIL import Image

        picture = Image.fromarray(values[:, :, 0] if values.shape[2] == 1 else values)
        place = (left, top, left + width, top + height)
        made = np.asarray(picture.resize(size[::-1], Image.Resampling.BICUBIC, box=place))
        return made.reshape(*size, values.shape[2])
    first, second = (
        min(round(start), side - 1)
        for start, side in zip((top, left), values.shape[:2], strict=True)
    )
    rows = slice(first, first + max(1, round(height)))
    columns = slice(second, second + max(1, round(width)))
    part = torch.from_numpy(np.ascontiguousarray(values[rows, columns], dtype=np.float32))
    if part.shape[:2] != size:
        part = F.interpolate(
            part.permute(2, 0, 1)[None], size=size, mode="bicubic", antialias=True
        )[0].permute(1, 2, 0)
    return part.numpy()


class TrainingBatches(Dataset[ImageBatch]):
    """The batches of one epoch for one process; what is drawn depends on (seed, epoch, image) alone.

    Args:
        collection: the images.
        size: height and width that the network takes.
        augmentation: how they are changed.
        batch_size: most images of a batch.
        seed: of the training.
        epoch: from 0 on.
        rank: of the process.
        world: how many processes there are.
    """

    def __init__(
        self,
        collection: ImageCollection,
        size: tuple[int, int],
        augmentation: Augmentation,
        batch_size: int,
        seed: int,
        epoch: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        mean = torch.from_numpy(collection.mean).float()
        deviation = torch.from_numpy(collection.deviation).float()
        self.sized = Sized(collection.store, size, mean)
        self.palette = Palette(collection.store.is_color, mean, deviation)
        self.augmentation, self.seed, self.epoch = augmentation, seed, epoch
        self.targets = torch.from_numpy(collection.targets)
        numbers = collection.of("train")
        order = np.random.default_rng((seed, epoch)).permutation(numbers)
        steps = step_count(len(order), batch_size)
        steps += -steps % world  # every process takes as many steps
        # Of nearly equal sizes: no batch is left with a single image, of which batch norms can make nothing.
        self.plan = [*enumerate(np.array_split(order, min(steps, len(order))))][rank::world]

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, position: int) -> ImageBatch:
        """Return a batch of changed images."""
        if not 0 <= position < len(self.plan):
            raise IndexError(position)
        step, numbers = self.plan[position]
        draws = ImageDraws(self.seed, self.epoch, numbers.tolist())
        images = self.sized.images(numbers.tolist(), self.augmentation.crop, draws.table[:, CROP])
        images = changed(images, self.augmentation, self.palette, draws)
        labels = self.targets[numbers]
        key = (self.seed, self.epoch, step)
        images, targets = mixed(images, labels, self.augmentation, key)
        return ImageBatch(images, targets, labels, torch.from_numpy(numbers))


class PlainBatches(Dataset[ImageBatch]):
    """Batches of some images, unchanged, in their order.

    Args:
        sized: reads them.
        numbers: which.
        targets: ``(count, classes)`` of all images of the collection; of no classes where they are unknown.
        batch_size: most images of a batch.
    """

    def __init__(
        self,
        sized: Sized,
        numbers: Ints,
        targets: Float[Tensor, "count classes"],
        batch_size: int,
    ) -> None:
        self.sized, self.targets = sized, targets
        self.plan = np.array_split(numbers, step_count(len(numbers), batch_size))

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, position: int) -> ImageBatch:
        """Return a batch."""
        if not 0 <= position < len(self.plan):
            raise IndexError(position)
        numbers = self.plan[position]
        labels = self.targets[numbers]
        images = self.sized.images(numbers.tolist())
        return ImageBatch(images, labels, labels, torch.from_numpy(numbers))


def step_count(images: int, batch_size: int) -> int:
    """Return in how many batches images are taken."""
    return max(1, -(-images // batch_size))


def loader(batches: Dataset[ImageBatch], workers: int = 0) -> DataLoader[ImageBatch]:
    """Return what yields the batches in their order, made in further processes where asked for."""
    # A loader draws a number when it starts, which a resumed run does at another moment: from its own stream.
    return DataLoader(
        batches, batch_size=None, shuffle=False, num_workers=workers, generator=torch.Generator()
    )
