"""Training on crops of a scene, where there are no labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from vitreous.data.crops import CropSource
from vitreous.recipe import PretrainRecipe, RestoreRecipe
from vitreous.tasks.loop import VALIDATIONS, Row, Task
from vitreous.tasks.schedules import cosine
from vitreous.tasks.streams import VALIDATED, stream

EPOCH_STEPS = 25  # after so many the state may be kept
WARMUP = 0.05  # share of the steps
STATISTICS_BATCHES = 16  # to find batch-norm statistics on
VALIDATION_CROPS = 16  # at most
DRAWN, SPOILT = 1, 20_000  # random streams


class CropBatches(IterableDataset[tuple[Tensor, int]]):
    """The batches of one epoch for one process, drawn from (seed, epoch, rank) alone."""

    def __init__(
        self, crops: CropSource, recipe: RestoreRecipe | PretrainRecipe, epoch: int, rank: int
    ) -> None:
        self.crops, self.recipe, self.epoch, self.rank = crops, recipe, epoch, rank

    def __len__(self) -> int:
        left = self.recipe.steps - self.epoch * EPOCH_STEPS
        return max(0, min(EPOCH_STEPS, left))  # none are left of a training that stopped at its end

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        """Yield crops of physical values, with the number of the step."""
        generator = stream(self.recipe.seed, self.epoch, DRAWN + self.rank)
        for step in range(len(self)):
            crops = self.crops.draw(self.recipe.batch_size, generator, self.recipe.flips)
            yield crops, self.epoch * EPOCH_STEPS + step


class CropTask(Task):
    """Trains a model on random crops; a subclass says how a batch becomes a loss, and how good the model is.

    Args:
        model: what is trained.
        recipe: the settings.
        crops: where to learn from.
        val: where the learning curve is measured, or None.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: RestoreRecipe | PretrainRecipe,
        crops: CropSource,
        val: CropSource | None,
    ) -> None:
        super().__init__(model, recipe, -(-recipe.steps // EPOCH_STEPS), sums=2)  # loss, steps
        self.recipe, self.crops, self.val = recipe, crops, val

    # -- to be written by each task -----------------------------------------------------------------------

    def loss(
        self, crops: Float[Tensor, "batch bands side side"], generator: torch.Generator
    ) -> Tensor:
        """Return the loss of a batch of physical values."""
        raise NotImplementedError

    def validate(self, crops: Float[Tensor, "batch bands side side"]) -> Row:
        """Return figures of the averaged weights on the validation crops, physical values."""
        raise NotImplementedError

    def inputs(
        self, crops: Float[Tensor, "batch bands side side"], generator: torch.Generator
    ) -> Any:
        """Return what the model is given for a batch, to find its norms' statistics on."""
        raise NotImplementedError

    # -- what follows from it -----------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """Return this epoch's batches (called anew for every epoch)."""
        batches = CropBatches(self.crops, self.recipe, len(self.history), self.global_rank)
        return DataLoader(batches, batch_size=None, generator=torch.Generator())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW, without decay where the model says so."""
        plain = cast("set[str]", self.model.no_weight_decay())  # type: ignore[operator]
        return self.adamw(plain)

    def training_step(self, batch: tuple[Tensor, int], batch_idx: int) -> None:
        """Take one step."""
        crops, step = batch
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(step)
        generator = stream(self.recipe.seed, step, SPOILT + self.global_rank)
        self.hooks.progress(step / self.recipe.steps)
        loss = self.loss(crops, generator)
        self.manual_backward(self.objective(loss))
        self.step()
        self.sums += torch.tensor([float(loss.detach()), 1.0], dtype=torch.float64)

    def rate(self, step: int) -> float:
        """Return the learning rate of a step: a linear warm-up, then a cosine to 0."""
        warm = max(1, round(WARMUP * self.recipe.steps))
        if step < warm:
            return self.recipe.learning_rate * (step + 1) / warm
        return self.recipe.learning_rate * cosine((step - warm) / max(self.recipe.steps - warm, 1))

    def row(self) -> Row:
        """Return the training loss, and the figures of the validation crops where it is their turn."""
        sums = self.total(self.sums)
        row: Row = {"train_loss": sums[0] / max(sums[1], 1)}
        done = len(self.history) + 1
        if self.val is not None and (
            done % max(1, self.epochs // VALIDATIONS) == 0 or done == self.epochs
        ):
            self.find_statistics()
            places = self.val.grid()
            kept = places[:: -(-len(places) // VALIDATION_CROPS)]
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                torch.manual_seed(VALIDATED)
                crops = torch.stack([self.val.read(*place) for place in kept])
                row |= self.validate(crops.to(self.device))
        return row

    def find_statistics(self) -> None:
        """Compute the norms' statistics of the averaged weights on training crops, the same ones each time."""

        def batches() -> Iterator[Any]:
            generator = stream(self.recipe.seed, VALIDATED)
            for _ in range(STATISTICS_BATCHES):
                crops = self.crops.draw(self.recipe.batch_size, generator, self.recipe.flips)
                yield self.inputs(crops.to(self.device), generator)

        self.refresh_statistics(batches())

    def result(self) -> nn.Module:
        """Return the model with averaged weights.

        Raises:
            VitreousError: they are NaN or infinite.
        """
        self.find_statistics()
        return self.finite_average()
