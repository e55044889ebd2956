"""What a student and its teacher say of the same images, as distillation losses read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from jaxtyping import Float
from torch import Tensor


class Heads(NamedTuple):
    """Class scores of a network that learns from labels with one head and from a teacher with another.

    Networks with a distillation head return them in training where ``distilling`` is set, otherwise their mean.
    """

    labels: Float[Tensor, "images classes"]
    teacher: Float[Tensor, "images classes"]

    @property
    def mean(self) -> Float[Tensor, "images classes"]:
        """What counts at inference."""
        return (self.labels + self.teacher) / 2


def joined(scores: Tensor | Heads) -> Float[Tensor, "images classes"]:
    """Return the scores that count at inference."""
    return scores.mean if isinstance(scores, Heads) else scores


@dataclass(frozen=True)
class Answer:
    """What a classifier says of some images.

    Attributes:
        logits: class scores; of a student with a distillation head both heads'.
        levels: the maps of ``forward_levels``, ``(images, channels, h, w)``, fine to coarse; None unless a method asks for them.
    """

    logits: Float[Tensor, "images classes"] | Heads
    levels: list[Tensor] | None = None

    @property
    def scores(self) -> Float[Tensor, "images classes"]:
        """The scores that count at inference."""
        return joined(self.logits)


class Targets(Protocol):
    """What some images should be classified as: one class or several, mixed in pairs or not."""

    def loss(self, scores: Float[Tensor, "images classes"]) -> Tensor:
        """Return the loss of scores against the labels, as the recipe asks for."""
        ...

    def as_decided(
        self, scores: Float[Tensor, "images classes"], teacher: Float[Tensor, "images classes"]
    ) -> Tensor:
        """Return the loss of scores against what a teacher decides, instead of the labels."""
        ...

    def divergence(
        self,
        scores: Float[Tensor, "images classes"],
        teacher: Float[Tensor, "images classes"],
        temperature: float,
    ) -> Tensor:
        """Return how far the probabilities are from a teacher's, both softened by a temperature."""
        ...
