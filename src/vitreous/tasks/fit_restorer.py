"""Gradient descent on degraded crops: the Lightning module of restorers."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vitreous.data.crops import CropSource
from vitreous.data.degradations import Degradation, spoil
from vitreous.layers.ranges import BandRange, fill_invalid
from vitreous.layers.restorer import Restorer
from vitreous.recipe import RestoreRecipe
from vitreous.tasks.loop import Row
from vitreous.tasks.streams import VALIDATED, stream
from vitreous.tasks.unlabelled import CropTask


class RestoreTask(CropTask):
    """Trains a network to turn degraded crops into clean ones."""

    model: Restorer
    average: Restorer
    recipe: RestoreRecipe
    columns = ("epoch", "step", "seconds", "learning_rate", "train_loss", "val_psnr")
    shown: ClassVar[dict[str, str]] = {"train_loss": "loss", "val_psnr": "val PSNR"}

    def __init__(
        self,
        model: Restorer,
        recipe: RestoreRecipe,
        crops: CropSource,
        val: CropSource | None,
        ranges: BandRange,
        degrade: Degradation,
    ) -> None:
        super().__init__(model, recipe, crops, val)
        self.ranges, self.degrade = ranges, degrade
        self.distance = {"l1": F.l1_loss, "mse": F.mse_loss}[recipe.loss]

    def clean(self, crops: Tensor) -> Tensor:
        """Scale crops of physical values; invalid pixels become their crop's mean spectrum."""
        return self.ranges(torch.stack([fill_invalid(crop)[0] for crop in crops]))

    def some_bands(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        """Return neighbouring bands of crops, where the network takes any number: it costs as much less."""
        count = self.recipe.train_bands
        if not self.model.any_bands or clean.shape[1] <= count:
            return clean
        first = int(torch.randint(clean.shape[1] - count + 1, (), generator=generator))
        return clean[:, first : first + count]

    def inputs(self, crops: Tensor, generator: torch.Generator) -> Tensor:
        """Return degraded crops."""
        clean = self.some_bands(self.clean(crops), generator)
        return spoil(self.degrade, clean, generator)

    def loss(self, crops: Tensor, generator: torch.Generator) -> Tensor:
        """Return the distance between restored and clean crops."""
        clean = self.some_bands(self.clean(crops), generator)
        return self.distance(self.model(spoil(self.degrade, clean, generator)), clean)

    def validate(self, crops: Tensor) -> Row:
        """Return the mean PSNR over crops and bands; the same bands and noise each time."""
        clean = self.some_bands(self.clean(crops), stream(VALIDATED))
        restored = self.average(spoil(self.degrade, clean, stream(VALIDATED)))
        errors = (restored - clean).square().mean((2, 3)).clamp(min=1e-10)
        return {"val_psnr": float((-10 * errors.log10()).mean())}
