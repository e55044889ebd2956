"""What every restoration network offers the rest of the house."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitreous.errors import ModelError
from vitreous.layers.backbone import check_floating
from vitreous.layers.bands import Bands


class Restorer(nn.Module):
    """A network from a degraded cube to a clean one, of the same bands and of ``scale`` times the size.

    Values are those of a scene divided by its declared range: mostly between 0 and 1, and neither clipped on the
    way in nor on the way out. A subclass calls ``super().__init__(bands)``, sets ``scale``, and writes
    :meth:`restore` for sides that are multiples of ``multiple``. Everything else is here.

    Args:
        bands: channels of the input; with ``any_bands``, of the cubes that it was made for.

    Attributes:
        scale: how many times finer the output is.
        any_bands: whether cubes of other band counts are accepted.
        multiple: what a side must be a multiple of; :meth:`forward` mirrors and crops.
        reach: pixels of context on each side beyond which the network sees next to nothing: the overlap of tiles.
        size_matters: whether it works best on tiles as large as those that it was trained on.
        checkpointing: compute activations again in the backward pass instead of keeping them.
        band_parameters: names of the parameters that have an axis that counts bands (see ``layers/bands.py``).
        band_axes: that axis by name, from 0, where it is not the second.
        band_tables: those of them that hold a vector or a number for each band, as what makes the output does.
        spectrum: what ``create_model`` was told of its bands, None where it was their number alone.
        variant: the name that it was made by, and
        arguments: what differs from that variant's own; ``create_model`` sets both.
        methods: what was applied to it (``methods/_apply.py``).
    """

    scale = 1
    any_bands = False
    multiple = 1
    reach = 16
    size_matters = False
    band_parameters: tuple[str, ...] = ()
    band_axes: ClassVar[Mapping[str, int]] = {}
    band_tables: ClassVar[tuple[str, ...]] = ()

    def __init__(self, bands: int) -> None:
        super().__init__()
        self.bands = bands
        self.spectrum: Bands | None = None
        self.checkpointing = False
        self.variant: str | None = None
        self.arguments: dict[str, Any] = {}
        self.methods: list[dict[str, Any]] = []

    def restore(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> Float[Tensor, "batch restored {self.scale}*height {self.scale}*width"]:
        """Restore cubes whose sides are multiples of ``multiple``."""
        raise NotImplementedError

    def forward(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> Float[Tensor, "batch restored {self.scale}*height {self.scale}*width"]:
        """Restore cubes of any size.

        Raises:
            ModelError: cubes of other bands than the network takes.
        """
        self.check(x)
        height, width = x.shape[2:]
        restored = self.restore(pad_to_multiple(x, self.multiple))
        return restored[..., : height * self.scale, : width * self.scale]

    def check(self, x: Tensor) -> None:
        """Refuse cubes that do not fit, in words."""
        if x.ndim != 4 or (x.shape[1] != self.bands and not self.any_bands):
            raise ModelError(
                f"{type(self).__name__} takes (batch, {self.bands} bands, height, width), not {tuple(x.shape)}.",
                "Select the bands it was built for, or build it with bands=.",
            )
        check_floating(x, type(self).__name__)

    def band_axis(self, name: str) -> int:
        """Return which axis of a parameter counts bands."""
        return self.band_axes.get(name, 1)

    def run(self, block: nn.Module, *inputs: Any) -> Any:
        """Call a block, computing its activations again in the backward pass where that is asked for."""
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def no_weight_decay(self) -> set[str]:
        """Name the parameters that weight decay should leave alone: vectors."""
        return {name for name, parameter in self.named_parameters() if parameter.ndim <= 1}


def pad_to_multiple(
    x: Float[Tensor, "batch bands height width"], multiple: int
) -> Float[Tensor, "batch bands height2 width2"]:
    """Mirror a cube at its lower and right edges until its sides are multiples of ``multiple``.

    Cubes too small to be mirrored so far repeat their last row and column.
    """
    down, right = -x.shape[2] % multiple, -x.shape[3] % multiple
    if not down and not right:
        return x
    mirrored = down < x.shape[2] and right < x.shape[3]
    return F.pad(x, (0, right, 0, down), mode="reflect" if mirrored else "replicate")
