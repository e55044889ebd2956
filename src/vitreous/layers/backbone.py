"""What every architecture offers the rest of the house."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitreous.catalog.arguments import ImageSize
from vitreous.errors import ModelError
from vitreous.layers.answers import Heads
from vitreous.layers.bands import Bands
from vitreous.layers.frozen import hold_frozen
from vitreous.layers.sizes import as_size, plain_size


def check_floating(x: Tensor, who: str) -> None:
    """Refuse images of whole numbers, which torch refuses in words of its own.

    Args:
        x: the images.
        who: takes them, for the message.

    Raises:
        ModelError: they are not in floating point.
    """
    if not x.is_floating_point():
        raise ModelError(
            f"{who} takes floating-point images, not {str(x.dtype).removeprefix('torch.')}.",
            "Convert them with .float(), scaled as in training.",
        )


@dataclass(frozen=True)
class FeatureInfo:
    """One level of a network's features.

    Attributes:
        channels: width of its map.
        stride: side of one of its cells in pixels of the image.
    """

    channels: int
    stride: int


class Backbone(nn.Module):
    """A network from an image of any number of bands to features, and from features to class scores.

    A subclass calls ``super().__init__(bands, num_classes, image_size)``, sets ``num_features`` and
    ``feature_info``, builds its head with :meth:`make_head`, and writes :meth:`forward_features`,
    :meth:`forward_head` and :meth:`level_maps`. Everything else is here.

    Args:
        bands: channels of the input.
        num_classes: classes of the head; with 0 it is left out, and the network returns the features it would read.
        image_size: side of the image in pixels that the network is built for, or its height and width.

    Attributes:
        size: height and width of that image.
        num_features: width of the features that the head reads.
        feature_info: the levels of :meth:`forward_levels`, fine to coarse.
        head: the classifier.
        classifiers: names of the heads, of which all but ``head`` may be None.
        any_size: whether other image sizes than ``image_size`` are accepted.
        least_size: height and width in pixels that an image must at least have to leave a token, or a cell on the last map.
        checkpointing: compute activations again in the backward pass instead of keeping them.
        band_parameters: names of the parameters that have an axis that counts bands (see ``layers/bands.py``).
        band_axes: that axis by name, from 0, where it is not the second.
        band_tables: those of them that are tables of vectors, one per band.
        band_arguments: constructor arguments that say something about each band.
        frozen: shell patterns of the names of modules or parameters that training leaves as they were loaded.
        variant: the name that it was made by, and
        arguments: what differs from that variant's own; ``create_model`` sets both.
        spectrum: what ``create_model`` was told of its bands, None where it was their number alone.
        methods: what was applied to it (``methods/_apply.py``).
        distilling: whether a network with a distillation head returns both heads' scores in training (``Heads``).
        head_scale: factor of a new classifier's first weights.
        stem_reach: how far a front-end shared by overlapping patches looks around a pixel (``docs/architecture.md``).
    """

    num_features: int
    feature_info: list[FeatureInfo]
    head: nn.Module
    classifiers: ClassVar[tuple[str, ...]] = ("head",)
    any_size = False
    least_size = 1
    head_scale = 1.0
    stem_reach = 0
    band_parameters: tuple[str, ...] = ()
    band_axes: ClassVar[Mapping[str, int]] = {}
    band_tables: ClassVar[tuple[str, ...]] = ()
    band_arguments: ClassVar[tuple[str, ...]] = ()
    frozen: tuple[str, ...] = ()
    distilling = False
    undecayed: ClassVar[
        tuple[str, ...]
    ] = ()  # ends of further names that weight decay leaves alone

    def __init__(self, bands: int, num_classes: int, image_size: ImageSize) -> None:
        super().__init__()
        self.bands, self.num_classes, self.size = bands, num_classes, as_size(image_size)
        self.checkpointing = False
        self.variant: str | None = None
        self.arguments: dict[str, Any] = {}
        self.spectrum: Bands | None = None
        self.methods: list[dict[str, Any]] = []

    @property
    def image_size(self) -> ImageSize:
        """What ``create_model`` takes for ``size``: a side, or height and width where they differ."""
        return plain_size(self.size)

    # -- to be written by each architecture ---------------------------------------------------------------

    def forward_features(self, x: Float[Tensor, "batch bands height width"]) -> Any:
        """Return what the head reads: ``(batch, tokens, dim)`` or ``(batch, dim, height, width)``."""
        raise NotImplementedError

    def forward_head(self, features: Any) -> Any:  # Float[Tensor, "batch classes"] or Heads
        """Pool the features and classify."""
        raise NotImplementedError

    def level_maps(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> list[Float[Tensor, "batch channels h w"]]:
        """Return what :meth:`forward_levels` does, of images that fit."""
        raise NotImplementedError

    def new_head(self, num_classes: int) -> nn.Module:
        """Return a new classifier of one class or more; a linear layer unless an architecture says otherwise."""
        head = nn.Linear(self.num_features, num_classes)
        nn.init.trunc_normal_(head.weight, std=0.02)
        with torch.no_grad():
            head.weight.mul_(self.head_scale)
        nn.init.zeros_(head.bias)
        return head

    # -- what follows from it -----------------------------------------------------------------------------

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation; what is frozen stays in evaluation mode, without gradients."""
        super().train(mode)
        return hold_frozen(self)

    def stem(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> Float[Tensor, "batch bands height width"]:
        """Return the image: nothing is shared between overlapping patches unless an architecture says so."""
        return x

    def forward_patches(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> Any:  # Float[Tensor, "batch classes"] or Heads
        """Classify patches of the stem's output."""
        return self.forward_head(self.forward_features(x))

    def forward(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> Any:  # Float[Tensor, "batch classes"] or Heads
        """Classify images; in a training that treats two heads apart, return the scores of both.

        Raises:
            ModelError: images of other bands, or of a size that the network was not built for.
        """
        self.check(x)
        return self.forward_patches(self.stem(x))

    def forward_levels(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> list[Float[Tensor, "batch channels h w"]]:
        """Return the maps that ``feature_info`` describes: ``h`` is the height over the stride, rounded up or down.

        Raises:
            ModelError: images of other bands, or of a size that the network was not built for.
        """
        self.check(x)
        return self.level_maps(x)

    def check(self, x: Tensor) -> None:
        """Refuse images that do not fit, in words."""
        self.check_bands(x)
        self.check_size(x.shape[2], x.shape[3])

    def check_bands(self, x: Tensor) -> None:
        """Refuse what is no batch of images of the network's bands."""
        if x.ndim != 4 or x.shape[1] != self.bands:
            raise ModelError(
                f"{type(self).__name__} takes (batch, {self.bands} bands, height, width), not {tuple(x.shape)}.",
                "Select the bands it was built for, or build it with bands=.",
            )
        check_floating(x, type(self).__name__)

    def check_size(self, height: int, width: int) -> None:
        """Refuse images of a size that the network was not built for, or too small to leave anything of them."""
        if not self.any_size and (height, width) != self.size:
            rows, columns = self.size
            raise ModelError(
                f"{type(self).__name__} was built for images of {rows} x {columns}, not {height} x {width}.",
                "Build it with image_size=, or resize the images.",
            )
        if min(height, width) < self.least_size:
            raise ModelError(
                f"This {type(self).__name__} needs images of {self.least_size} pixels or more, not {height} x {width}.",
                "Give larger images, or build it with a smaller stem (token_size, stem_stride).",
            )

    def band_axis(self, name: str) -> int:
        """Return which axis of a parameter counts bands."""
        return self.band_axes.get(name, 1)

    def run(self, block: nn.Module, *inputs: Any) -> Any:
        """Call a block, computing its activations again in the backward pass where that is asked for."""
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def join_heads(
        self, labels: Float[Tensor, "batch classes"], teacher: Float[Tensor, "batch classes"]
    ) -> Float[Tensor, "batch classes"] | Heads:
        """Return the mean of the two heads' scores, or both in a training that treats them apart (``distilling``)."""
        both = Heads(labels, teacher)
        return both if self.distilling and self.training else both.mean

    def make_head(self, num_classes: int) -> nn.Module:
        """Return a new classifier, or for 0 classes what hands its input on."""
        return self.new_head(num_classes) if num_classes else nn.Identity()

    def reset_head(self, num_classes: int) -> None:
        """Replace the classifiers by new ones; with 0 classes the network returns features."""
        self.num_classes = num_classes
        like = next(self.parameters())
        for name in self.classifiers:
            if getattr(self, name) is not None:
                head = self.make_head(num_classes).to(like.device, like.dtype)
                setattr(self, name, head.train(self.training))

    def no_weight_decay(self) -> set[str]:
        """Name the parameters that weight decay should leave alone: vectors, and what ``undecayed`` ends."""
        return {
            name
            for name, parameter in self.named_parameters()
            if parameter.ndim <= 1 or name.endswith(self.undecayed or ("\0",))
        }


def stem_stride(image_size: ImageSize, published: int, later: int = 1, cells: int = 4) -> int:
    """Return the stride of a stem for images of any size.

    Networks are published for images of 224 pixels, whose last map has 7 x 7 cells or more. A patch of 15 pixels
    would be one cell, or none. So the stem's stride is halved as often as it takes to leave ``cells`` cells per
    side on the last map, along the shorter side of the image.

    Args:
        image_size: side of the image in pixels, or its height and width.
        published: the stem's stride in the paper.
        later: stride of everything behind the stem.
        cells: cells per side that the last map should have.
    """
    stride, shorter = published, min(as_size(image_size))
    while stride > 1 and shorter < stride * later * cells:
        stride //= 2
    return stride


def linear_rates(last: float, blocks: int) -> list[float]:
    """Return the stochastic depth of each block, growing linearly from 0 to ``last``."""
    return [last * block / max(blocks - 1, 1) for block in range(blocks)]


def init_linear(module: nn.Module, std: float = 0.02) -> None:
    """Give every linear layer in ``module`` truncated normal weights and no bias."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=std)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
