"""A network that tells the class, or the classes, of whole images, with all that it takes to give it raw ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.data.contract import TOLERANCE_NM, BandContract
from vitreous.data.image_batches import PlainBatches, Sized, loader
from vitreous.data.image_collection import ImageStore
from vitreous.data.levels import FACTOR
from vitreous.errors import ModelError
from vitreous.layers.answers import joined
from vitreous.layers.preprocess import Preprocess

BATCH = 64
THRESHOLD = 0.5  # probability from which an image has a label
REFUSED = 0.5  # share of pixels far outside the training images' brightness


class ImageClassifier:
    """What a trained recognizer and an export of one share.

    Attributes:
        contract: bands and unit of the training images, and how bright they were.
        class_names: in the order of the probabilities.
        size: height and width of the images that the network takes.
        several: whether an image may have several labels.
    """

    contract: BandContract
    class_names: list[str]
    size: tuple[int, int]
    several: bool

    @property
    def fill(self) -> Float[Tensor, "bands"]:
        """What invalid pixels are given: the training images' mean."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where images are expected."""
        return torch.device("cpu")

    def probabilities(
        self, images: Float[Tensor, "batch bands height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Return the classes' probabilities: of one among them, or of each by itself."""
        raise NotImplementedError

    def check_images(self, store: ImageStore, sample: npt.NDArray[np.float32]) -> None:
        """Refuse images of other bands, units or brightness than it was trained on.

        Args:
            store: the images.
            sample: ``(pixels, bands)`` some of their pixels.

        Raises:
            ModelError: they differ.
        """
        own = self.contract
        if (store.bands, store.unit) != (own.bands, own.unit):
            raise ModelError(
                f"The network was trained on {own.bands} bands in {own.unit}; these images have {store.bands} in "
                f"{store.unit}.",
                "Give images of the same sensor and unit.",
            )
        if own.wavelengths is not None and store.wavelengths is not None:
            apart = np.abs(np.subtract(own.wavelengths, store.wavelengths))
            if apart.max() > TOLERANCE_NM:
                raise ModelError(
                    f"{int((apart > TOLERANCE_NM).sum())} of the {own.bands} bands have other wavelengths than those "
                    "that the network was trained on.",
                    "Give images with the same bands in the same order.",
                )
        if own.levels is None:
            return
        darker, brighter = own.levels.share_outside(sample)
        share, how = max((darker, "darker"), (brighter, "brighter"))
        if share >= REFUSED:
            raise ModelError(
                f"{share:.0%} of the pixels are more than {FACTOR:g} times {how} than any that the network was trained "
                "on: their unit or scale differs.",
                "Check the images' unit and scale with 'vitreous info'.",
            )

    @torch.no_grad()
    def predict(
        self,
        store: ImageStore,
        numbers: npt.NDArray[np.int64],
        progress: Callable[[int, int], None] | None = None,
    ) -> npt.NDArray[np.float64]:
        """Return the probabilities of images, ``(images, classes)``, in their order.

        Args:
            store: the images.
            numbers: which of them.
            progress: called with (done, in all).
        """
        unknown = torch.zeros(len(store), 0)
        batches = PlainBatches(Sized(store, self.size, self.fill), numbers, unknown, BATCH)
        found, done = [], 0
        for batch in loader(batches):
            found.append(self.probabilities(batch.image.to(self.device)).double().cpu().numpy())
            done += len(found[-1])
            if progress is not None:
                progress(done, len(numbers))
        return np.concatenate(found)


class Recognizer(ImageClassifier, nn.Module):
    """From raw images to a score per class.

    Args:
        net: a backbone.
        preprocess: scales physical values.
        contract: bands and unit of the training images, and how bright they were.
        class_names: in the order of the scores.
        size: height and width of the images that the network takes.
        several: whether an image may have several labels.
    """

    def __init__(
        self,
        net: nn.Module,
        preprocess: Preprocess,
        contract: BandContract,
        class_names: list[str],
        size: tuple[int, int],
        *,
        several: bool,
    ) -> None:
        super().__init__()
        self.net, self.preprocess, self.contract = net, preprocess, contract
        self.class_names, self.size, self.several = class_names, size, several

    def forward(
        self, images: Float[Tensor, "batch bands height width"]
    ) -> Any:  # Float[Tensor, "batch classes"], or in distillation Heads
        """Return the scores (logits) of images of the network's size in physical values."""
        return self.net(self.preprocess(images))

    def probabilities(
        self, images: Float[Tensor, "batch bands height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Return the classes' probabilities: of one among them, or of each by itself."""
        scores = joined(self(images)).float()
        return scores.sigmoid() if self.several else scores.softmax(1)

    @property
    def fill(self) -> Float[Tensor, "bands"]:
        """What invalid pixels are given: the training images' mean."""
        return self.preprocess.mean.cpu()

    @property
    def device(self) -> torch.device:
        """Where images are expected."""
        return self.preprocess.mean.device


def image_contract(store: ImageStore, sample: npt.NDArray[np.float32]) -> BandContract:
    """Return what a network trained on these images expects: all their bands, in this unit, as bright as this sample."""
    used = tuple(range(store.bands))
    return BandContract(store.bands, used, store.wavelengths, store.unit).measured(sample)


def decided(
    probabilities: npt.NDArray[np.floating[Any]], *, several: bool
) -> npt.NDArray[np.int64] | npt.NDArray[np.bool_]:
    """Return what images are classified as: ``(images,)`` numbers, or ``(images, classes)`` whether each has a label."""
    return probabilities >= THRESHOLD if several else probabilities.argmax(1)
