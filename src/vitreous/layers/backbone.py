"""What every architecture offers the rest of the house."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitreous.errors import ModelError


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
    :meth:`forward_head` and :meth:`forward_levels`. Everything else is here.

    Args:
        bands: channels of the input.
        num_classes: classes of the head.
        image_size: side of the image in pixels that the network is built for.

    Attributes:
        num_features: width of the features that the head reads.
        feature_info: the levels of :meth:`forward_levels`, fine to coarse.
        head: the classifier.
        any_size: whether other image sizes than ``image_size`` are accepted.
        checkpointing: compute activations again in the backward pass instead of keeping them.
        band_parameters: names of the parameters whose second axis counts bands (see ``layers/bands.py``).
        band_tables: those of them that are tables of vectors, one per band.
        variant: the name that it was made by, and
        arguments: what differs from that variant's own; ``create_model`` sets both.
        methods: what was applied to it (``methods/_apply.py``).
        stem_reach: how far a front-end shared by overlapping patches looks around a pixel (``docs/architecture.md``).
    """

    num_features: int
    feature_info: list[FeatureInfo]
    head: nn.Module
    any_size = False
    stem_reach = 0
    band_parameters: ClassVar[tuple[str, ...]] = ()
    band_tables: ClassVar[tuple[str, ...]] = ()
    undecayed: ClassVar[
        tuple[str, ...]
    ] = ()  # ends of further names that weight decay leaves alone

    def __init__(self, bands: int, num_classes: int, image_size: int) -> None:
        super().__init__()
        self.bands, self.num_classes, self.image_size = bands, num_classes, image_size
        self.checkpointing = False
        self.variant: str | None = None
        self.arguments: dict[str, Any] = {}
        self.methods: list[dict[str, Any]] = []

    # -- to be written by each architecture ---------------------------------------------------------------

    def forward_features(self, x: Float[Tensor, "batch bands height width"]) -> Any:
        """Return what the head reads: ``(batch, tokens, dim)`` or ``(batch, dim, height, width)``."""
        raise NotImplementedError

    def forward_head(self, features: Any) -> Float[Tensor, "batch classes"]:
        """Pool the features and classify."""
        raise NotImplementedError

    def forward_levels(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> list[Float[Tensor, "batch channels h w"]]:
        """Return the maps that ``feature_info`` describes: ``h`` is the height over the stride, rounded up or down."""
        raise NotImplementedError

    def make_head(self, num_classes: int) -> nn.Module:
        """Return a new classifier; a linear layer unless an architecture says otherwise."""
        head = nn.Linear(self.num_features, num_classes)
        nn.init.trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        return head

    # -- what follows from it -----------------------------------------------------------------------------

    def stem(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> Float[Tensor, "batch bands height width"]:
        """Return the image: nothing is shared between overlapping patches unless an architecture says so."""
        return x

    def forward_patches(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Classify patches of the stem's output."""
        return self.forward_head(self.forward_features(x))

    def forward(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Classify images.

        Raises:
            ModelError: images of other bands, or of a size that the network was not built for.
        """
        self.check(x)
        return self.forward_patches(self.stem(x))

    def check(self, x: Tensor) -> None:
        """Refuse images that do not fit, in words."""
        name = type(self).__name__
        if x.ndim != 4 or x.shape[1] != self.bands:
            raise ModelError(
                f"{name} takes (batch, {self.bands} bands, height, width), not {tuple(x.shape)}.",
                "Select the bands it was built for, or build it with bands=.",
            )
        size = (self.image_size, self.image_size)
        if not self.any_size and tuple(x.shape[2:]) != size:
            raise ModelError(
                f"{name} was built for images of {size[0]} x {size[1]}, not {x.shape[2]} x {x.shape[3]}.",
                "Build it with image_size=, or resize the images.",
            )

    def run(self, block: nn.Module, *inputs: Any) -> Any:
        """Call a block, computing its activations again in the backward pass where that is asked for."""
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def reset_head(self, num_classes: int) -> None:
        """Replace the classifier by a new one."""
        old = next(self.head.parameters(), None)
        self.num_classes = num_classes
        self.head = self.make_head(num_classes)
        if old is not None:
            self.head.to(old.device, old.dtype)

    def no_weight_decay(self) -> set[str]:
        """Name the parameters that weight decay should leave alone: vectors, and what ``undecayed`` ends."""
        return {
            name
            for name, parameter in self.named_parameters()
            if parameter.ndim <= 1 or name.endswith(self.undecayed or ("\0",))
        }


def stem_stride(image_size: int, published: int, later: int = 1, cells: int = 4) -> int:
    """Return the stride of a stem for images of any size.

    Networks are published for images of 224 pixels, whose last map has 7 x 7 cells or more. A patch of 15 pixels
    would be one cell, or none. So the stem's stride is halved as often as it takes to leave ``cells`` cells per
    side on the last map.

    Args:
        image_size: side of the image in pixels.
        published: the stem's stride in the paper.
        later: stride of everything behind the stem.
        cells: cells per side that the last map should have.
    """
    stride = published
    while stride > 1 and image_size < stride * later * cells:
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
