"""What every way to learn without labels offers the rest of the house."""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor, nn

from vitreous.layers.backbone import Backbone


@dataclass
class Pretext:
    """What a pretraining step gives.

    Attributes:
        loss: to be minimised.
        parts: the terms that it is made of, by name, detached.
    """

    loss: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


class Pretrainer(nn.Module):
    """An architecture, and what it takes to train it on images without labels.

    What is kept in the end is ``encoder``, an ordinary architecture. A subclass calls ``super().__init__(encoder)``
    and writes :meth:`forward` and :meth:`reconstruct`. What is random comes from torch's global generator.

    Args:
        encoder: the architecture to be pre-trained.

    Attributes:
        finest: how many times finer than the encoder's images the images are that it is trained on: crops have
            ``encoder.image_size * finest`` pixels on a side, and the encoder's own images are made from them.
    """

    finest = 1

    def __init__(self, encoder: Backbone) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Float[Tensor, "batch bands side side"]) -> Pretext:
        """Return the loss on a batch."""
        raise NotImplementedError

    def reconstruct(
        self, images: Float[Tensor, "batch bands side side"]
    ) -> dict[str, Float[Tensor, "batch bands _ _"]]:
        """Return what to look at, by name and in order: the input, what was hidden, what was made of it."""
        raise NotImplementedError

    def trained_encoder(self) -> Backbone:
        """Return the architecture with what it has learned, ready to be fine-tuned."""
        return self.encoder

    def no_weight_decay(self) -> set[str]:
        """Name the parameters that weight decay should leave alone: vectors, and the encoder's own choice."""
        vectors = {name for name, parameter in self.named_parameters() if parameter.ndim <= 1}
        return vectors | {f"encoder.{name}" for name in self.encoder.no_weight_decay()}
