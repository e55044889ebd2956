"""What the scores of images are compared with: classes, shares of classes, several labels, a teacher's answers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


class Mixed(NamedTuple):
    """Images mixed in pairs (Zhang et al., mixup, 2018): which image was added to each, and its own share."""

    other: Int[Tensor, "images"]
    share: float


def cross_entropy(
    scores: Float[Tensor, "images classes"],
    targets: Int[Tensor, "images"] | Float[Tensor, "images classes"],
    weights: Float[Tensor, "classes"] | None = None,
    smoothing: float = 0.0,
) -> Tensor:
    """Return the mean cross-entropy; soft targets that are 0 and 1 give the same as class numbers.

    Args:
        scores: logits.
        targets: class numbers, or shares of all classes that sum to one.
        weights: of the classes; the mean is weighted by what they give each image.
        smoothing: share of each target that is spread over all classes.
    """
    if not targets.is_floating_point():
        return F.cross_entropy(scores, targets, weight=weights, label_smoothing=smoothing)
    weights = scores.new_ones(scores.shape[1]) if weights is None else weights
    surprise = -scores.log_softmax(1) * weights
    own = (targets * surprise).sum()
    spread = surprise.sum() / scores.shape[1]
    return ((1 - smoothing) * own + smoothing * spread) / (targets * weights).sum()


@dataclass(frozen=True)
class ClassTargets:
    """One class per image.

    Attributes:
        classes: numbers from 0, or shares of all classes (soft targets).
        weights: of the classes in the loss.
        smoothing: of the targets.
        mixed: how the images were mixed in pairs; None where they were not.
    """

    classes: Int[Tensor, "images"] | Float[Tensor, "images classes"]
    weights: Float[Tensor, "classes"] | None = None
    smoothing: float = 0.0
    mixed: Mixed | None = None

    def loss(self, scores: Float[Tensor, "images classes"]) -> Tensor:
        """Return the cross-entropy against the labels; of mixed images the mean of both, by their shares."""
        if self.mixed is None:
            return self._cross_entropy(scores, self.classes)
        other, share = self.mixed
        own = share * self._cross_entropy(scores, self.classes)
        return own + (1 - share) * self._cross_entropy(scores, self.classes[other])

    def as_decided(
        self, scores: Float[Tensor, "images classes"], teacher: Float[Tensor, "images classes"]
    ) -> Tensor:
        """Return the cross-entropy against the class that a teacher finds most likely in each image as it is."""
        return replace(self, classes=teacher.argmax(1), mixed=None).loss(scores)

    def divergence(
        self,
        scores: Float[Tensor, "images classes"],
        teacher: Float[Tensor, "images classes"],
        temperature: float,
    ) -> Tensor:
        """Return tau^2 KL(teacher || student), a mean over the images (Hinton et al., 2015)."""
        own = (scores / temperature).log_softmax(1)
        wanted = (teacher / temperature).log_softmax(1)
        return temperature**2 * F.kl_div(own, wanted, reduction="batchmean", log_target=True)

    def _cross_entropy(self, scores: Tensor, classes: Tensor) -> Tensor:
        weights = None if self.weights is None else self.weights.to(scores.device)
        return cross_entropy(scores, classes, weights, self.smoothing)


@dataclass(frozen=True)
class LabelTargets:
    """Any number of labels per image, each there or not.

    Attributes:
        labels: 1 where a label is given, else 0; shares in between are soft targets.
        weights: of the labels.
        mixed: how the images were mixed in pairs; None where they were not.
    """

    labels: Float[Tensor, "images labels"]
    weights: Float[Tensor, "labels"] | None = None
    mixed: Mixed | None = None

    def loss(self, scores: Float[Tensor, "images labels"]) -> Tensor:
        """Return the mean binary cross-entropy over images and labels."""
        labels = self.labels
        if self.mixed is not None:
            other, share = self.mixed
            labels = share * labels + (1 - share) * labels[other]
        return self._entropy(scores, labels)

    def as_decided(
        self, scores: Float[Tensor, "images labels"], teacher: Float[Tensor, "images labels"]
    ) -> Tensor:
        """Return the same against the labels that a teacher finds more likely than not."""
        return self._entropy(scores, (teacher > 0).to(scores.dtype))

    def divergence(
        self,
        scores: Float[Tensor, "images labels"],
        teacher: Float[Tensor, "images labels"],
        temperature: float,
    ) -> Tensor:
        """Return tau^2 times the divergence of each label's two probabilities, summed up as classes are."""
        own, wanted = (
            torch.stack([F.logsigmoid(one / temperature), F.logsigmoid(-one / temperature)], -1)
            for one in (scores, teacher)
        )
        total = F.kl_div(own, wanted, reduction="sum", log_target=True)
        return temperature**2 * total / len(scores)

    def _entropy(self, scores: Tensor, labels: Tensor) -> Tensor:
        weights = None if self.weights is None else self.weights.to(scores.device)
        return F.binary_cross_entropy_with_logits(scores, labels, weight=weights)
