"""Gradient descent on labelled pixels: the Lightning module and its trainer."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from torchmetrics.classification import MulticlassConfusionMatrix

from vitreous.data.regions import Group, PixelRegions, RegionBatch, gather_patches, orient
from vitreous.data.spectral_augment import SpectralAugment, brightened
from vitreous.errors import ConfigError
from vitreous.inference.dense_classifier import DenseClassifier
from vitreous.inference.patch_classifier import PatchClassifier
from vitreous.layers.answers import Answer, Heads, joined
from vitreous.methods.adapt._freeze import freeze_base, is_adapter
from vitreous.recipe import Recipe
from vitreous.tasks.answers_store import AnswerStore
from vitreous.tasks.loop import Row, Task
from vitreous.tasks.losses import ClassTargets, Mixed
from vitreous.tasks.metrics import oa_aa_kappa
from vitreous.tasks.schedules import cosine, cycle_progress, cyclic_rate
from vitreous.tasks.streams import own_stream, stream
from vitreous.tasks.teacher import Distillation, SceneTeacher, mixed_patches

COLUMNS = (
    "epoch",
    "step",
    "seconds",
    "learning_rate",
    "train_loss",
    "train_oa",
    "val_loss",
    "val_oa",
    "val_aa",
    "val_kappa",
)
PARTS = 16  # most steps of a network on one pass of its front-end
STEPS = 1000  # of a training, where no number of epochs is given ...
FEWEST_EPOCHS = 8  # ... however many the pixels are
AUGMENTED = 40_000  # random streams of augmentation where a teacher sees it, too


@dataclass(frozen=True)
class Choice:
    """The epoch whose weights are kept.

    Attributes:
        epoch: its number, from 1 on.
        epochs: how many were trained.
        val_oa: overall accuracy of its averaged weights on the validation pixels.
    """

    epoch: int
    epochs: int
    val_oa: float


@dataclass
class TrainingData:
    """What a network is trained on.

    Attributes:
        train: training pixels.
        val: validation pixels, or None.
        dark: channels of a pixel without light, the direction of illumination changes; None where these change nothing.
        class_weights: weight of each class in the loss.
        augment: changes of the spectra, illumination apart.
        lesson: where a teacher is asked, whose channels follow the student's in those pixels.
    """

    train: PixelRegions
    val: PixelRegions | None
    dark: Float[Tensor, "channels"] | None
    class_weights: Float[Tensor, "classes"]
    augment: SpectralAugment
    lesson: Lesson | None = None


@dataclass
class Lesson:
    """A teacher, how one learns from it, and how what is done to the student's channels is done to its own.

    Attributes:
        teacher: what is asked.
        distillation: what makes a loss of it.
        dark: its channels of a pixel without light; None where brighter light changes nothing.
        lift: noise on the student's channels to noise on its own.
        store: where its answers are kept; None asks it each time.
    """

    teacher: SceneTeacher
    distillation: Distillation
    dark: Float[Tensor, "channels"] | None
    lift: Float[Tensor, "channels student_channels"]
    store: AnswerStore | None = None


class Batch(NamedTuple):
    """Labelled pixels of a training or validation step.

    Attributes:
        regions: the crops in the student's channels, and the pixels in them.
        parts: how many steps to take on them, one after the other.
        taught: the same crops in the teacher's channels; None without a teacher.
    """

    regions: RegionBatch
    parts: int
    taught: Float[Tensor, "regions channels side side"] | None = None


class Draw(NamedTuple):
    """What is drawn for one step: an orientation of all patches (None: as they are), and how they are mixed."""

    turn: int | None
    mixed: Mixed | None


class EpochBatches(IterableDataset[Batch]):
    """The batches of one epoch for one process; every epoch and process has its own random stream.

    What is drawn depends on (seed, epoch, rank) alone, so a run resumed at an epoch's start draws the same.

    Args:
        regions: the pixels.
        recipe: the settings.
        epoch: its number from 0; None for the pixels in their order, as they are.
        rank: of the process.
        world: processes.
        channels: of the student, where a teacher's follow them in ``regions``.
    """

    def __init__(
        self,
        regions: PixelRegions,
        recipe: Recipe,
        epoch: int | None,
        rank: int,
        world: int,
        channels: int | None = None,
    ) -> None:
        self.channels = channels
        self.regions, self.epoch, self.rank = regions, epoch, rank
        self.flips = recipe.flips and epoch is not None
        self.seed = recipe.seed
        generator = None if epoch is None else stream(recipe.seed, epoch)
        plan = regions.plan(batch_pixels(regions, recipe), generator)
        if epoch is not None:
            if (
                not regions.shared
            ):  # regions pass several times over each pixel; all others as often
                for _ in range(recipe.passes - 1):
                    plan += regions.plan(batch_pixels(regions, recipe), generator)
            # Every process takes as many steps.
            plan += list(itertools.islice(itertools.cycle(plan), -len(plan) % world))
        self.plan = plan[rank::world]
        together = [plan[start : start + world] for start in range(0, len(plan), world)]
        self.parts = [
            max(steps_on(regions, group, recipe) for group in groups) for groups in together
        ]

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches, each with the number of parts to train on one after the other."""
        generator = stream(self.seed, self.epoch or 0, 1 + self.rank) if self.flips else None
        for group, parts in zip(self.plan, self.parts, strict=False):
            regions, taught = self.regions.collate(group, generator), None
            if self.channels is not None:
                both = regions.regions
                regions.regions, taught = both[:, : self.channels], both[:, self.channels :]
            yield Batch(regions, parts, taught)


def _loader(batches: EpochBatches) -> DataLoader[Batch]:
    # A loader draws a number when it starts, which a resumed run does at another moment: from its own stream.
    return DataLoader(batches, batch_size=None, generator=torch.Generator())


def batch_pixels(regions: PixelRegions, recipe: Recipe) -> int:
    """Return how many pixels may share one pass of the front-end."""
    return recipe.batch_size * (PARTS if regions.shared else 1)


def steps_on(regions: PixelRegions, group: Group, recipe: Recipe) -> int:
    """Return how many steps one batch is good for: one, unless its pixels share a front-end.

    No step is left with a single pixel, of which batch norms can make nothing, unless that is what was asked for.
    """
    if not regions.shared:
        return 1
    pixels = sum(len(region.members) for region in group)
    steps = -(-pixels // recipe.batch_size)
    alone = pixels // steps < 2 <= recipe.batch_size
    return max(1, steps - alone)


def automatic_epochs(regions: PixelRegions, recipe: Recipe) -> int:
    """Return how many rounds over the pixels of ``regions`` make about ``STEPS`` steps."""
    return max(FEWEST_EPOCHS, round(STEPS / (regions.steps(recipe.batch_size) * recipe.passes)))


class ClassifyTask(Task):
    """Trains a network on labelled pixels; what is evaluated is the average of its weights.

    Args:
        classifier: the classifier; its preprocessing is fitted and stays fixed.
        data: training and validation pixels.
        recipe: the settings.

    Raises:
        ConfigError: several processes cannot train so.
    """

    model: PatchClassifier | DenseClassifier
    average: PatchClassifier | DenseClassifier
    columns = COLUMNS
    shown: ClassVar[dict[str, str]] = {
        "train_loss": "loss",
        "train_oa": "train OA",
        "val_oa": "val OA",
    }
    kept = ("best", "best_score", "best_epoch", "improved_epoch")

    def __init__(
        self, classifier: PatchClassifier | DenseClassifier, data: TrainingData, recipe: Recipe
    ) -> None:
        if recipe.devices > 1 and recipe.adapts_later:
            raise ConfigError(
                f"{recipe.adapt} does not support several devices, because it freezes weights during training.",
                f"Train two runs: --adapt scratch, then --adapt {recipe.adapt_method}_only --init RUN.",
            )
        epochs = recipe.epochs or automatic_epochs(data.train, recipe)
        super().__init__(classifier, recipe, epochs, sums=3)  # loss, hits, pixels of this epoch
        self.data, self.recipe = data, recipe
        self.lesson = data.lesson
        if self.lesson is not None:
            self.lesson.distillation.prepare(self.model)
        self.best: dict[str, Tensor] | None = None
        self.best_score, self.best_epoch = -1.0, -1
        self.improved_epoch = -1  # the last one that was better than all before, not only as good
        self.validated = -1  # the last epoch that was
        self.confusion = MulticlassConfusionMatrix(classifier.num_classes)
        self.val_sums = torch.zeros(2, dtype=torch.float64)  # loss, pixels

    # -- data ---------------------------------------------------------------------------------------------

    @property
    def _channels(self) -> int | None:
        return None if self.lesson is None else self.model.preprocess.channels

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return this epoch's batches (called anew for every epoch)."""
        # Not current_epoch: when a run is resumed, Lightning asks for the batches before it counts on.
        batches = EpochBatches(
            self.data.train,
            self.recipe,
            len(self.history),
            self.global_rank,
            self.trainer.world_size,
            self._channels,
        )
        return _loader(batches)

    def val_dataloader(self) -> DataLoader[Batch] | list[Any]:
        """Return the validation pixels, in the order of the scene."""
        if self.data.val is None:
            return []
        # Every process takes them all: they are few, and may be fewer batches than there are processes.
        return _loader(EpochBatches(self.data.val, self.recipe, None, 0, 1, self._channels))

    # -- optimisation -------------------------------------------------------------------------------------

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW with groups for adapters and others, with and without weight decay."""
        plain = {f"net.{name}" for name in self.model.net.no_weight_decay()}  # type: ignore[operator]
        groups: dict[tuple[bool, bool], list[Tensor]] = {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                groups.setdefault((is_adapter(name), name not in plain), []).append(parameter)
        return torch.optim.AdamW(
            [
                {
                    "params": parameters,
                    "weight_decay": self.recipe.weight_decay if decays else 0.0,
                    "peak": self.recipe.learning_rate
                    * (1 if adapter else self.recipe.base_rate_factor),
                    "adapter": adapter,
                }
                for (adapter, decays), parameters in groups.items()
            ],
            lr=self.recipe.learning_rate,
            betas=(0.9, 0.99),
            foreach=True,
        )

    def on_train_epoch_start(self) -> None:
        """Give the epoch its own random stream, and freeze the base when its time has come."""
        super().on_train_epoch_start()
        self._asked = 0  # of the teacher
        if self.lesson is not None and self.lesson.store is not None:
            self.lesson.store.rank = self.global_rank
        if self.recipe.adapts_later and self.current_epoch >= self.epochs // 2:
            freeze_base(self.model, self.recipe.adapt_method)

    def _rate(self, epochs: float, peak: float, adapter: bool) -> float:
        recipe = self.recipe
        warm = recipe.warmup_epochs
        if epochs < warm:
            # A step at rate 0 would be wasted: warm-up starts one part above it.
            return peak * (epochs + 0.1) / (warm + 0.1)
        if recipe.schedule == "constant":
            return peak
        if recipe.schedule == "cosine":
            return peak * cosine((epochs - warm) / max(self.epochs - warm, 1))
        return cyclic_rate(
            epochs - warm,
            peak,
            first=recipe.cycle_epochs,
            growth=recipe.cycle_growth,
            factor=2.0 if adapter else 1.0,
        )

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Train on one batch of regions.

        The front-end runs once. The rest of the network takes a step on each part of the pixels, collecting the
        gradient of the front-end's output, with which the front-end then takes its own: the mean over the parts.
        Where there is one part (single patches always), that is an ordinary step.
        """
        regions = batch.regions
        with self._drawing(batch_idx, 0):
            regions.regions, taught = self._augment(regions.regions, batch.taught)
        seen = None if taught is None else functools.cache(functools.partial(self._look, taught))
        with self.hooks.front():
            image = self.model.features(regions.regions)
        leaf = image.detach().requires_grad_(image.requires_grad)
        with self._drawing(batch_idx, 1):
            steps = self._parts(len(regions.classes), batch.parts)
        for number, pixels in enumerate(steps):
            self._set_rates(batch_idx, number / len(steps))
            with self._drawing(batch_idx, 2 + number):
                draw = self._draw(len(pixels), image.device)
            loss = self._loss(leaf, regions, pixels.to(image.device), draw, seen)
            self.manual_backward(self.objective(loss))
            if number < len(steps) - 1:
                self.step()
        self._backward_front(image, None if leaf.grad is None else leaf.grad / len(steps))
        self.step()

    def _backward_front(self, image: Tensor, gradient: Tensor | None) -> None:
        """Hand the gradient of the front-end's output on to its weights, and that of the terms of its parts."""
        terms = self.objective(image.new_zeros(()), of_front=True)
        if not terms.requires_grad:
            if gradient is not None:
                self.manual_backward(image, gradient=gradient)
            return
        output = 0.0 if gradient is None else (image * gradient).sum()
        self.manual_backward(output + terms)

    def _parts(self, count: int, parts: int) -> list[Tensor]:
        """Divide ``count`` pixels at random into ``parts``, once for each pass over a shared region."""
        steps = []
        for _ in range(self.recipe.passes if self.data.train.shared else 1):
            order = torch.randperm(count)
            # Another process may have more pixels in this step: the last parts then repeat some.
            steps += [
                order[torch.arange(p, max(count, p + 1), parts) % count] for p in range(parts)
            ]
        return steps

    def _drawing(self, batch_idx: int, purpose: int) -> AbstractContextManager[Any]:
        """Give what a teacher sees a stream of its own, whatever else the student draws (``tasks/answers_store.py``)."""
        if self.lesson is None:
            return nullcontext()
        seed, rank = self.recipe.seed, AUGMENTED + self.global_rank
        return own_stream(seed, self.current_epoch, rank, batch_idx, purpose)

    def _draw(self, count: int, device: torch.device) -> Draw:
        """Draw how the patches of ``count`` pixels are turned, and mixed in pairs where asked for."""
        # The front-end is not symmetric, so this differs from turning the region.
        turn = int(torch.randint(8, ())) if self.recipe.flips else None
        if self.recipe.mixup == 0 or self.recipe.mode == "dense":  # these are scores, not patches
            return Draw(turn, None)
        share = float(torch.distributions.Beta(self.recipe.mixup, self.recipe.mixup).sample())
        share = max(share, 1 - share)  # the own class stays the larger part, for the figures shown
        return Draw(turn, Mixed(torch.randperm(count, device=device), share))

    def _loss(
        self,
        image: Tensor,
        regions: RegionBatch,
        pixels: Tensor,
        draw: Draw,
        seen: Callable[[], tuple[Tensor, Tensor]] | None,
    ) -> Tensor:
        """Return the loss of some pixels, of labels and where there is a teacher of what it says.

        Args:
            image: what patches are read from.
            regions: the batch.
            pixels: which of its pixels.
            draw: how their patches are turned and mixed.
            seen: returns the teacher's channels, and what it reads of them.
        """
        classes = regions.classes[pixels]
        index = regions.index[pixels]
        if draw.turn is not None:
            index = orient(index, draw.turn)
        patches = mixed_patches(self.model.read_patches(image, index), draw.mixed)
        scores = self.model.score(patches)
        weights, smoothing = self.data.class_weights, self.recipe.label_smoothing
        targets = ClassTargets(classes, weights, smoothing, draw.mixed)
        if seen is None:
            loss = targets.loss(joined(scores))
        else:
            loss = self._distilled(scores, targets, regions, index, draw, seen)
        hits = int((joined(scores).detach().argmax(1) == classes).sum())
        total = float(loss.detach()) * len(classes)
        self.sums += torch.tensor([total, hits, len(classes)], dtype=torch.float64)
        return loss

    def _look(self, taught: Tensor) -> tuple[Tensor, Tensor]:
        assert self.lesson is not None
        self.lesson.teacher.to(taught.device)
        return taught, self.lesson.teacher.look(taught)

    def _distilled(
        self,
        scores: Tensor | Heads,
        targets: ClassTargets,
        regions: RegionBatch,
        index: Tensor,
        draw: Draw,
        seen: Callable[[], tuple[Tensor, Tensor]],
    ) -> Tensor:
        """Ask the teacher about the patches at ``index``, and return the loss on labels and its answer."""
        assert self.lesson is not None
        teacher, distillation = self.lesson.teacher, self.lesson.distillation
        middle = index.shape[-1] // 2
        own = None
        if distillation.reads_levels:
            assert isinstance(self.model, PatchClassifier)  # the teacher refuses others
            raw = self.model.normalise(gather_patches(regions.regions, index))
            own = self.model.net.forward_levels(mixed_patches(raw, draw.mixed))  # type: ignore[operator]

        def ask() -> Answer:
            return teacher.answer(
                *seen(),
                index[:, middle, middle],
                turn=draw.turn or 0,
                mixed=draw.mixed,
                levels=distillation.reads_levels,
            )

        store = self.lesson.store
        if store is None:
            answer = ask()
        else:
            known = store.scores(self.current_epoch, self._asked, lambda: ask().scores)
            answer = Answer(known.to(index.device))
            self._asked += 1
        return distillation.loss(Answer(scores, own), answer, targets)

    def _set_rates(self, batch_idx: int, within: float) -> None:
        """Set the learning rate, and tell the parts of the model how far the training is."""
        batches = max(int(self.trainer.num_training_batches), 1)
        now = self.current_epoch + (batch_idx + within) / batches
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(now, group["peak"], group["adapter"])
        if self.recipe.schedule == "cyclic":
            first, growth = self.recipe.cycle_epochs, self.recipe.cycle_growth
            self.hooks.cycle_to(cycle_progress(now, first, growth))
        self.hooks.progress(now / self.epochs)

    def _augment(self, regions: Tensor, taught: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Change the spectra of whole regions (``data/spectral_augment.py``); what a teacher reads is changed alike."""
        lesson = self.lesson if taught is not None else None
        if self.recipe.gain:
            gain = torch.randn(len(regions), 1, 1, 1, device=regions.device) * self.recipe.gain
            regions = brightened(regions, gain, self.data.dark)
            if taught is not None and lesson is not None:
                taught = brightened(taught, gain, lesson.dark)
        difference = self.data.augment.difference(regions)
        if difference is None:
            return regions, taught
        if taught is not None and lesson is not None:
            lift = lesson.lift.to(taught.device)[:, :, None, None]
            taught = taught + F.conv2d(difference, lift)
        return regions + difference, taught

    # -- validation ---------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Forget the last counts, and fit the averaged weights' statistics."""
        self.confusion.reset()
        self.val_sums.zero_()
        self.validated = self.current_epoch
        self._refresh_statistics()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count hits of the averaged weights."""
        regions = batch.regions
        logits = self.average(regions)
        self.confusion.update(logits.argmax(1), regions.classes)
        loss = float(F.cross_entropy(logits, regions.classes, reduction="sum"))
        self.val_sums += torch.tensor([loss, len(regions.classes)], dtype=torch.float64)

    def _refresh_statistics(self) -> None:
        """Compute the statistics of the averaged weights on all training pixels, mixed as in training."""
        batches = EpochBatches(self.data.train, self.recipe, 0, 0, 1, self._channels)
        self.refresh_statistics(batch.regions.to(self.device) for batch in batches)

    # -- end of an epoch ----------------------------------------------------------------------------------

    def judge(self, row: Row) -> None:
        """Remember the weights that validate best, and stop where nothing improves any more."""
        if self.lesson is not None and self.lesson.store is not None:
            self.lesson.store.close()
        if self.validated != self.current_epoch:
            return
        if row["val_oa"] > self.best_score:
            self.improved_epoch = self.current_epoch
        # Ties go to the later epoch: its average has seen more.
        if row["val_oa"] >= self.best_score:
            self.best_score, self.best_epoch = float(row["val_oa"]), self.current_epoch
            self.best = {name: t.detach().clone() for name, t in self.average.state_dict().items()}
        self._stop_when_patience_ends(self.current_epoch)

    def _stop_when_patience_ends(self, epoch: int) -> None:
        if self.recipe.patience and epoch - self.improved_epoch >= self.recipe.patience:
            self.trainer.should_stop = True

    def row(self) -> Row:
        """Return loss and OA of the training pixels, and of the validation pixels where it was their turn."""
        sums = self.total(self.sums)
        count = max(sums[2], 1)
        row: Row = {"train_loss": sums[0] / count, "train_oa": sums[1] / count}
        if self.validated == self.current_epoch:
            val = self.total(self.val_sums)
            confusion = F.pad(
                self.confusion.compute().cpu(), (0, 1)
            )  # no pixel is left unclassified
            oa, aa, kappa = oa_aa_kappa(confusion.numpy())
            row |= {
                "val_loss": val[0] / max(val[1], 1),
                "val_oa": oa,
                "val_aa": aa,
                "val_kappa": kappa,
            }
        return row

    @property
    def choice(self) -> Choice | None:
        """Which epoch validated best, or None where there are no validation pixels."""
        if self.best is None:
            return None
        return Choice(self.best_epoch + 1, len(self.history), self.best_score)

    # -- state --------------------------------------------------------------------------------------------

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take back what is not a parameter."""
        super().on_load_checkpoint(checkpoint)
        if self.best is not None:  # it may have been killed after its last epoch
            self._stop_when_patience_ends(len(self.history) - 1)

    def result(self) -> PatchClassifier | DenseClassifier:
        """Return the classifier with the weights to use: the average that validated best, or else the last.

        Raises:
            VitreousError: they are NaN or infinite.
        """
        if self.best is not None:
            self.average.load_state_dict(self.best)
        else:
            self._refresh_statistics()
        self.finite_average()
        return self.average
