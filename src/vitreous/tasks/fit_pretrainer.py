"""Gradient descent without labels: the Lightning module of pre-training."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from vitreous.data.crops import CropSource
from vitreous.layers.preprocess import Preprocess
from vitreous.layers.pretrainer import Pretrainer
from vitreous.recipe import PretrainRecipe
from vitreous.tasks.loop import Row
from vitreous.tasks.unlabelled import CropTask


class PretrainTask(CropTask):
    """Trains an architecture together with what it takes to learn without labels."""

    model: Pretrainer
    average: Pretrainer
    columns = ("epoch", "step", "seconds", "learning_rate", "train_loss", "val_loss")
    shown: ClassVar[dict[str, str]] = {"train_loss": "loss", "val_loss": "val loss"}

    def __init__(
        self,
        model: Pretrainer,
        recipe: PretrainRecipe,
        crops: CropSource,
        val: CropSource | None,
        preprocess: Preprocess,
    ) -> None:
        super().__init__(model, recipe, crops, val)
        self.preprocess = preprocess

    def inputs(self, crops: Tensor, generator: torch.Generator) -> Tensor:
        """Return channels; invalid pixels are 0."""
        return self.preprocess(crops)

    def loss(self, crops: Tensor, generator: torch.Generator) -> Tensor:
        """Return the loss of a batch; what is random in it comes from the epoch's global stream."""
        return self.model(self.preprocess(crops)).loss

    def validate(self, crops: Tensor) -> Row:
        """Return the loss of the averaged weights; the same masks each time."""
        return {"val_loss": float(self.average(self.preprocess(crops)).loss)}
