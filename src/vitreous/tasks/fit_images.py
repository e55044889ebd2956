"""Gradient descent on labelled images: the Lightning module."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader

from vitreous.data.image_augment import Augmentation
from vitreous.data.image_batches import (
    ImageBatch,
    PlainBatches,
    Sized,
    TrainingBatches,
    loader,
    step_count,
)
from vitreous.data.image_collection import ImageCollection
from vitreous.inference.recognizer import Recognizer
from vitreous.layers.answers import joined
from vitreous.recipe import RecognizeRecipe
from vitreous.tasks.image_metrics import TOP, image_score
from vitreous.tasks.image_teacher import ImageTeacher
from vitreous.tasks.loop import Row, Task
from vitreous.tasks.losses import ClassTargets, LabelTargets
from vitreous.tasks.schedules import cosine

STEPS = 1000  # of a training, where no number of epochs is given ...
FEWEST_EPOCHS = 8  # ... however many the images are
STATISTICS_BATCHES = 32  # to find batch-norm statistics on


def automatic_epochs(images: int, batch_size: int) -> int:
    """Return how many rounds over the training images make about ``STEPS`` steps."""
    return max(FEWEST_EPOCHS, round(STEPS / step_count(images, batch_size)))


class RecognizeTask(Task):
    """Trains a network on labelled images; what is evaluated is the average of its weights.

    Args:
        recognizer: its preprocessing is fitted and stays fixed.
        collection: training and validation images.
        recipe: the settings.
        class_weights: of each class in the loss.
        teacher: another run that is asked about the same images, where there is one.
    """

    model: Recognizer
    average: Recognizer
    columns = (
        *("epoch", "step", "seconds", "learning_rate", "train_loss", "train_top1"),
        *("val_loss", "val_top1", "val_top5", "val_map"),
    )
    shown: ClassVar[dict[str, str]] = {
        "train_loss": "loss",
        "train_top1": "train top-1",
        "val_top1": "val top-1",
        "val_map": "val mAP",
    }
    kept = ("best", "best_score", "best_epoch", "improved_epoch")

    def __init__(
        self,
        recognizer: Recognizer,
        collection: ImageCollection,
        recipe: RecognizeRecipe,
        class_weights: Float[Tensor, "classes"],
        teacher: ImageTeacher | None = None,
    ) -> None:
        images = len(collection.of("train"))
        epochs = recipe.epochs or automatic_epochs(images, recipe.batch_size)
        super().__init__(recognizer, recipe, epochs, sums=3)  # loss, hits, images of this epoch
        self.collection, self.recipe, self.class_weights = collection, recipe, class_weights
        self.teacher = teacher
        if teacher is not None:
            teacher.distillation.prepare(self.model)
        self.targets = torch.from_numpy(collection.targets)
        self.sized = Sized(collection.store, recognizer.size, recognizer.fill)
        self.best: dict[str, Tensor] | None = None
        self.best_score, self.best_epoch = -1.0, -1
        self.improved_epoch = -1  # the last one that was better than all before, not only as good
        self.validated = -1  # the last epoch that was
        self.scored: list[
            tuple[Tensor, Tensor]
        ] = []  # probabilities and labels of the validation images

    # -- data ---------------------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader[ImageBatch]:
        """Return this epoch's batches (called anew for every epoch)."""
        recipe = self.recipe
        batches = TrainingBatches(
            self.collection,
            self.model.size,
            augmentation_of(recipe),
            recipe.batch_size,
            recipe.seed,
            len(
                self.history
            ),  # not current_epoch: a resumed run is asked before Lightning counts on
            self.global_rank,
            self.trainer.world_size,
        )
        return loader(batches, recipe.workers)

    def val_dataloader(self) -> DataLoader[ImageBatch] | list[Any]:
        """Return the validation images, in their order; every process takes them all."""
        numbers = self.collection.of("val")
        if not len(numbers):
            return []
        size = self.recipe.batch_size
        return loader(PlainBatches(self.sized, numbers, self.targets, size), self.recipe.workers)

    # -- optimisation -------------------------------------------------------------------------------------

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW, without decay where the model says so."""
        plain = {f"net.{name}" for name in cast("set[str]", self.model.net.no_weight_decay())}  # type: ignore[operator]
        return self.adamw(plain)

    def training_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """Take one step."""
        now = self.current_epoch + batch_idx / max(int(self.trainer.num_training_batches), 1)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(now)
        self.hooks.progress(now / self.epochs)
        scores = self.model(batch.image)
        targets = self.targets_of(batch)
        if self.teacher is None:
            loss = targets.loss(joined(scores))
        else:
            loss = self.teacher.loss(self.model, scores, batch.image, targets)
        self.manual_backward(self.objective(loss))
        self.step()
        count = len(batch.label)
        hits = int((joined(scores).detach().argmax(1) == batch.label.argmax(1)).sum())
        total = float(loss.detach()) * count
        self.sums += torch.tensor([total, hits, count], dtype=torch.float64)

    def targets_of(self, batch: ImageBatch) -> ClassTargets | LabelTargets:
        """Return what scores are compared with: one class per image, or every class by itself."""
        if self.model.several:
            return LabelTargets(batch.target, self.class_weights)
        return ClassTargets(batch.target, self.class_weights, self.recipe.label_smoothing)

    def rate(self, epochs: float) -> float:
        """Return the learning rate: a linear warm-up, then what the schedule says."""
        recipe = self.recipe
        warm = min(recipe.warmup_epochs, self.epochs // 2)
        if epochs < warm:
            # A step at rate 0 would be wasted: warm-up starts one part above it.
            return recipe.learning_rate * (epochs + 0.1) / (warm + 0.1)
        if recipe.schedule == "constant":
            return recipe.learning_rate
        return recipe.learning_rate * cosine((epochs - warm) / max(self.epochs - warm, 1))

    # -- validation ---------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Forget the last scores, and fit the averaged weights' statistics."""
        self.scored = []
        self.validated = self.current_epoch
        self.find_statistics()

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """Score images with the averaged weights."""
        self.scored.append((self.average.probabilities(batch.image).cpu(), batch.label.cpu()))

    def find_statistics(self) -> None:
        """Compute the norms' statistics of the averaged weights on training images, as they are at inference."""
        numbers = self.collection.of("train")
        most = STATISTICS_BATCHES * self.recipe.batch_size
        chosen = np.random.default_rng(self.recipe.seed).permutation(numbers)[:most]
        batches = PlainBatches(self.sized, chosen, self.targets, self.recipe.batch_size)
        self.refresh_statistics(batch.image.to(self.device) for batch in loader(batches))

    # -- end of an epoch ----------------------------------------------------------------------------------

    def row(self) -> Row:
        """Return the figures of the training images, and of the validation images where it was their turn."""
        sums = self.total(self.sums)
        count = max(sums[2], 1)
        row: Row = {"train_loss": sums[0] / count}
        if not self.model.several:
            row["train_top1"] = sums[1] / count
        if self.validated == self.current_epoch:
            probabilities, labels = (torch.cat(parts) for parts in zip(*self.scored, strict=True))
            row |= validation_figures(probabilities, labels, several=self.model.several)
        return row

    def judge(self, row: Row) -> None:
        """Remember the weights that validate best, and stop where nothing improves any more."""
        if self.validated != self.current_epoch:
            return
        score = float(row["val_map" if self.model.several else "val_top1"])
        if score > self.best_score:
            self.improved_epoch = self.current_epoch
        # Ties go to the later epoch: its average has seen more.
        if score >= self.best_score:
            self.best_score, self.best_epoch = score, self.current_epoch
            self.best = {name: t.detach().clone() for name, t in self.average.state_dict().items()}
        self._stop_when_patience_ends(self.current_epoch)

    def _stop_when_patience_ends(self, epoch: int) -> None:
        if self.recipe.patience and epoch - self.improved_epoch >= self.recipe.patience:
            self.trainer.should_stop = True

    # -- state --------------------------------------------------------------------------------------------

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take back what is not a parameter."""
        super().on_load_checkpoint(checkpoint)
        if self.best is not None:  # it may have been killed after its last epoch
            self._stop_when_patience_ends(len(self.history) - 1)

    def result(self) -> Recognizer:
        """Return the recognizer with the weights to use: the average that validated best, or else the last.

        Raises:
            VitreousError: they are NaN or infinite.
        """
        if self.best is not None:
            self.average.load_state_dict(self.best)
        else:
            self.find_statistics()
        self.finite_average()
        return self.average


def augmentation_of(recipe: RecognizeRecipe) -> Augmentation:
    """Return how a recipe changes training images."""
    names = ("crop", "flip", "operations", "magnitude", "erasing", "mixup", "cutmix")
    return Augmentation(**{name: getattr(recipe, name) for name in names})


def validation_figures(probabilities: Tensor, labels: Tensor, *, several: bool) -> Row:
    """Return loss and accuracy of validation images, for the log."""
    if several:
        loss = F.binary_cross_entropy(probabilities, labels)
        score = image_score(probabilities.double().numpy(), labels.numpy(), several=True)
        return {"val_loss": float(loss), "val_map": score or 0.0}
    truth = labels.argmax(1)
    loss = F.nll_loss(probabilities.clamp(min=1e-12).log(), truth)
    best = probabilities.topk(min(TOP, probabilities.shape[1]), 1).indices == truth[:, None]
    row: Row = {"val_loss": float(loss), "val_top1": float(best[:, 0].float().mean())}
    if probabilities.shape[1] > TOP:
        row["val_top5"] = float(best.any(1).float().mean())
    return row
