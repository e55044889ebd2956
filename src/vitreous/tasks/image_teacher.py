"""A trained run that classifies images, asked by another one in training about the very images that it sees."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vitreous.data.image_collection import ImageCollection
from vitreous.data.provenance import Provenance
from vitreous.errors import ModelError
from vitreous.inference.recognizer import Recognizer
from vitreous.layers.answers import Answer, Targets
from vitreous.tasks.teacher import Distillation, frozen


@dataclass(frozen=True)
class ImageTeacher:
    """A teacher, and how one learns from it.

    Attributes:
        path: its run folder.
        name: of its system.
        hash: of its weights.
        recognizer: its network, frozen, with its own preprocessing.
        provenance: the images that its weights have learned from: what it says of others tells of their labels.
        distillation: what makes a loss of its answers.
    """

    path: Path
    name: str
    hash: str
    recognizer: Recognizer
    provenance: Provenance
    distillation: Distillation

    def noted(self) -> dict[str, Any]:
        """Return what a student's ``config.json`` says of it."""
        return {
            "run": str(self.path),
            "name": self.name,
            "sha256": self.hash,
            "distill": self.distillation.method,
            "settings": self.distillation.settings,
        }

    def check(self, collection: ImageCollection, size: tuple[int, int]) -> None:
        """Refuse to teach other classes, or about other images, than it has learned from.

        Args:
            collection: what the student learns from.
            size: height and width of the images that it sees.

        Raises:
            ModelError: they differ.
        """
        own = self.recognizer
        if (own.class_names, own.several) != (collection.class_names, collection.several):
            raise ModelError(
                f"The teacher {self.path} was trained on other classes.",
                "Give a teacher that was trained on the same classes.",
            )
        if own.size != size:
            raise ModelError(
                f"The teacher {self.path} sees images of {own.size[0]} x {own.size[1]} pixels, the student "
                f"{size[0]} x {size[1]}.",
                f"Use --image-size {own.size[0]}x{own.size[1]}: both see the same pixels.",
            )
        own.check_images(collection.store, collection.sample)

    def loss(
        self,
        student: Recognizer,
        scores: Any,
        images: Float[Tensor, "batch bands height width"],
        targets: Targets,
    ) -> Tensor:
        """Return the loss on labels and on what the teacher says of the same images.

        Args:
            student: what is trained.
            scores: what it says of the images.
            images: physical values, changed and mixed as the student sees them.
            targets: the labels.
        """
        frozen(self.recognizer).to(images.device)
        with torch.no_grad():
            answer = Answer(self.recognizer(images), self._levels(self.recognizer, images))
        return self.distillation.loss(
            Answer(scores, self._levels(student, images)), answer, targets
        )

    def _levels(self, recognizer: Recognizer, images: Tensor) -> list[Tensor] | None:
        if not self.distillation.reads_levels:
            return None
        made: list[Tensor] = recognizer.net.forward_levels(recognizer.preprocess(images))  # type: ignore[operator]
        return made
