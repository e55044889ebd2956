"""What every training here has: steps, an average of the weights, a log, a state that resumes bit for bit."""

from __future__ import annotations

import csv
import io
import logging
import math
import reprlib
import time
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from vitreous.checkpoints.headers import DAMAGES
from vitreous.checkpoints.tensors import load_state, save_state
from vitreous.errors import CheckpointError, ConfigError, VitreousError, shortened
from vitreous.files import write_text
from vitreous.layers.frozen import averaged_copy, frozen_modules, hold_frozen
from vitreous.recipe import Settings
from vitreous.tasks.hooks import Hooks
from vitreous.tasks.processes import helpers
from vitreous.tasks.progress import EpochProgress
from vitreous.tasks.runs import LOG, STATE
from vitreous.tasks.streams import stream_seed

VALIDATIONS = 20  # of one training
SAVE_SHARE = 20  # saving the state may take one part in so many of the time

MAIN = "main"
TERM = "loss_"  # what the columns of loss terms begin with

Row = dict[str, float | int]


class Task(L.LightningModule):
    """Trains a model, and keeps the average of its weights, which is what is used in the end.

    A subclass sets ``columns`` and writes ``training_step``, which calls :meth:`step` once per step, and :meth:`row`.
    Where it has several optimizers, it names them in ``optimizer_names``, returns them in that order from
    ``configure_optimizers``, and says to :meth:`step` which one moves.

    Args:
        model: what is trained.
        recipe: the settings.
        epochs: rounds of training.

    Attributes:
        columns: of ``log.csv``.
        shown: of them, what a user sees while it trains.
        kept: names of further attributes that belong to the state.
        optimizer_names: of its optimizers; the first one's learning rate is logged.
        history: a row per epoch.
        average: the model with averaged weights.
        averages: those of further modules (:meth:`add_average`), by name.
        steps: that each optimizer has taken.
        hooks: of the model's parts.
        sums: what :meth:`row` makes figures of, added up over the steps of an epoch.
    """

    columns: ClassVar[tuple[str, ...]]
    shown: ClassVar[dict[str, str]]
    kept: ClassVar[tuple[str, ...]] = ()
    optimizer_names: ClassVar[tuple[str, ...]] = (MAIN,)

    def __init__(self, model: nn.Module, recipe: Settings, epochs: int, sums: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = hold_frozen(model)
        self.average = averaged_copy(model)
        self.averages = nn.ModuleDict()
        self._averaged: dict[str, tuple[nn.Module, float, str]] = {}
        self.hooks = Hooks(model)
        self.steps = dict.fromkeys(self.optimizer_names, 0)
        self.settings, self.epochs = recipe, epochs
        self.history: list[Row] = []
        self.elapsed = 0.0
        self.sums = torch.zeros(sums, dtype=torch.float64)
        self.term_sums: dict[str, float] = {}
        self._started = time.perf_counter()

    # -- to be written by each task -----------------------------------------------------------------------

    def row(self) -> Row:
        """Return the epoch's own figures, the training loss among them as ``train_loss``."""
        raise NotImplementedError

    def judge(self, row: Row) -> None:
        """Look at a finished epoch's figures: remember weights, stop early."""

    # -- what follows from it -----------------------------------------------------------------------------

    def adamw(self, plain: Collection[str]) -> torch.optim.AdamW:
        """Return AdamW for what is trained of the model, at one learning rate.

        Args:
            plain: names of the parameters that weight decay leaves alone.
        """
        groups: dict[bool, list[Tensor]] = {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                groups.setdefault(name not in plain, []).append(parameter)
        return torch.optim.AdamW(
            [
                {"params": parts, "weight_decay": self.settings.weight_decay if decays else 0.0}
                for decays, parts in groups.items()
            ],
            lr=self.settings.learning_rate,
            betas=(0.9, 0.99),
            foreach=True,
        )

    def on_train_epoch_start(self) -> None:
        """Give the epoch its own random stream."""
        epoch = len(self.history)
        torch.manual_seed(stream_seed(self.settings.seed, epoch, 10_000 + self.global_rank))
        self.sums.zero_()
        self.term_sums = {}
        self._first = self.steps[self.optimizer_names[0]]
        self._started = time.perf_counter()

    @property
    def optimizer(self) -> LightningOptimizer:
        """The first optimizer."""
        return self.optimizer_named(self.optimizer_names[0])

    def optimizer_named(self, name: str) -> LightningOptimizer:
        """Return an optimizer by its name."""
        found = self.optimizers()
        optimizer = (found if isinstance(found, list) else [found])[
            self.optimizer_names.index(name)
        ]
        assert isinstance(optimizer, LightningOptimizer)
        return optimizer

    def add_average(
        self, name: str, module: nn.Module, decay: float, optimizer: str = MAIN
    ) -> nn.Module:
        """Keep an average of a further module, and return it; its weights are part of the state.

        Args:
            name: of the average.
            module: what is averaged; not part of it are parameters without gradients, which it shares.
            decay: of the average.
            optimizer: with whose steps it moves.
        """
        self.averages[name] = averaged_copy(module)
        self._averaged[name] = module, decay, optimizer
        return self.averages[name]

    def objective(self, loss: Tensor, *, of_front: bool = False) -> Tensor:
        """Add to a loss what parts of the model charge for their last forward pass, and note it for the log.

        Args:
            loss: the task's own.
            of_front: those parts that ran inside ``hooks.front()``, instead of all others.
        """
        for name, term in self.hooks.terms(of_front=of_front).items():
            loss = loss + term
            self.term_sums[name] = self.term_sums.get(name, 0.0) + float(term.detach())
        return loss

    def step(self, name: str | None = None) -> None:
        """Move the weights of an optimizer, the first where not named, and the averages that follow it.

        The first one moves the model's average, faster at the start, where it is far from good.
        """
        name = name or self.optimizer_names[0]
        optimizer = self.optimizer_named(name)
        self.clip_gradients(
            optimizer.optimizer,
            gradient_clip_val=self.settings.clip,
            gradient_clip_algorithm="norm",
        )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.steps[name] += 1
        if name == self.optimizer_names[0]:
            self._follow(self.average, self.model, self.settings.ema, name)
        for key, (module, decay, own) in self._averaged.items():
            if own == name:
                self._follow(self.averages[key], module, decay, name)
                for slow, fast in zip(self.averages[key].buffers(), module.buffers(), strict=True):
                    slow.copy_(fast)

    @torch.no_grad()
    def _follow(self, average: nn.Module, module: nn.Module, decay: float, optimizer: str) -> None:
        """Move an average towards the weights that it follows."""
        step = self.steps[optimizer]
        decay = min(decay, (1 + step) / (10 + step))
        for slow, fast in zip(average.parameters(), module.parameters(), strict=True):
            if slow is not fast:
                slow.lerp_(fast, 1 - decay)

    def finish_epoch(self) -> None:
        """Log the epoch and judge it.

        Raises:
            VitreousError: the loss became NaN or infinite.
        """
        self.elapsed += time.perf_counter() - self._started
        row: Row = {
            "epoch": self.current_epoch + 1,
            "step": self.steps[self.optimizer_names[0]],
            "seconds": round(self.elapsed, 3),
            "learning_rate": float(self.optimizer.param_groups[0]["lr"]),
            **self.row(),
            **self._terms(),
        }
        if not all(math.isfinite(row[key]) for key in row if key.startswith(TERM)) or (
            not math.isfinite(row["train_loss"])
        ):
            raise diverged()  # before the state is saved, so that the last good one stays
        self.history.append(row)
        if self.logger is not None:
            self.logger.log_metrics(dict(row), step=self.global_step)
        self.judge(row)

    def _terms(self) -> Row:
        """Return the mean of each part's loss term over the steps of the epoch."""
        if not self.term_sums:
            return {}
        steps = self.steps[self.optimizer_names[0]] - self._first
        names = sorted(self.term_sums)
        sums = self.total(torch.tensor([*map(self.term_sums.__getitem__, names), float(steps)]))
        row: Row = {TERM + name: sums[i] / max(sums[-1], 1) for i, name in enumerate(names)}
        self._add_columns(row)
        return row

    def _add_columns(self, row: Row) -> None:
        new = [key for key in row if key.startswith(TERM) and key not in self.columns]
        if new:
            self.columns = (*self.columns, *new)  # type: ignore[misc]  # of this training alone

    def total(self, sums: Tensor) -> list[float]:
        """Add up the sums of all processes."""
        gathered = self.all_gather(sums)
        assert isinstance(gathered, Tensor)
        return gathered.reshape(-1, len(sums)).sum(0).tolist()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is not a parameter."""
        names = ("history", "elapsed", "steps", *self.kept)
        checkpoint["vitreous"] = {name: getattr(self, name) for name in names}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it back.

        Raises:
            LookupError, TypeError: it is not what a training of this kind keeps.
        """
        kept = {"steps": {MAIN: checkpoint.get("global_step", 0)}, **checkpoint["vitreous"]}
        for name in ("history", "elapsed", "steps", *self.kept):
            value, own = kept[name], getattr(self, name)
            if own is None:  # weights, or none yet
                fits = value is None or _shapes(value) == _shapes(self.average.state_dict())
            else:
                fits = isinstance(value, (int, float) if isinstance(own, float) else type(own))
            if not fits:
                raise TypeError(f"{name} is {reprlib.repr(value)}")
            setattr(self, name, value)
        if self.steps.keys() != set(self.optimizer_names):
            raise LookupError(f"its optimizers are {sorted(self.steps)}")
        for row in self.history:
            self._add_columns(row)
            if not set(row) <= set(self.columns) or not all(
                isinstance(value, int | float) for value in row.values()
            ):
                raise LookupError(f"a row of the log is {reprlib.repr(row)}")

    @torch.no_grad()
    def refresh_statistics(self, batches: Iterable[Any]) -> None:
        """Compute the batch-norm statistics that belong to the averaged weights, and put the average in eval mode.

        Averages of the statistics seen along the way belong to other weights (Izmailov et al., 2018).

        Args:
            batches: inputs of the model; none is drawn where it has no such norms.
        """
        self.average.eval()
        frozen = frozen_modules(self.average)
        norms = [
            m
            for m in self.average.modules()
            if isinstance(m, nn.modules.batchnorm._BatchNorm) and m not in frozen
        ]
        if not norms:
            return
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum, norm.training = None, True  # None: the plain mean over all batches
        for batch in batches:
            self.average(batch)
        self.average.eval()

    def finite_average(self) -> nn.Module:
        """Return the model with averaged weights.

        Raises:
            VitreousError: they are NaN or infinite.
        """
        if not all(torch.isfinite(tensor).all() for tensor in self.average.state_dict().values()):
            raise diverged()
        return self.average.eval()


class SafetensorsIO(CheckpointIO):
    """Lets Lightning keep its training state in our format instead of pickle."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a training state."""
        save_state(path, checkpoint)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a training state."""
        return load_state(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a training state."""
        Path(path).unlink(missing_ok=True)


class StateKeeper(L.Callback):
    """Writes the training state and the log at the ends of epochs, not more often than its cost allows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.begun = False  # what fails before is the fault of the state that training goes on from
        self.next_save = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin the log, which tells that training has begun."""
        self.begun = True
        self._log(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save, if the last save is long enough ago."""
        assert isinstance(pl_module, Task)
        pl_module.finish_epoch()  # Lightning calls callbacks before the module's own hook, too late for us
        self._log(trainer, pl_module)
        # All processes must take part in a save, so the first one's clock decides.
        now = time.perf_counter()
        if trainer.strategy.broadcast(now < self.next_save):
            return
        trainer.save_checkpoint(self.folder / STATE)
        taken = time.perf_counter() - now
        self.next_save = time.perf_counter() + SAVE_SHARE * taken

    def _log(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        assert isinstance(task, Task)
        if trainer.is_global_zero:
            write_log(self.folder / LOG, task.columns, task.history)


def _shapes(weights: Mapping[str, Any]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in weights.items()}


def write_log(path: Path, columns: Sequence[str], history: list[Row]) -> None:
    """Write the learning curves as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_text(path, text.getvalue())


def fit(task: Task, folder: Path, *, resume: bool, show: bool = True) -> None:
    """Train to the end of the recipe, keeping the state in ``folder``.

    Raises:
        ConfigError: the recipe asks for what this machine or combination does not have.
        CheckpointError: the state in ``folder`` is damaged, or belongs to another training.
        VitreousError: the loss became NaN or infinite.
    """
    with helpers(task.settings.devices, resume=resume):
        _fit(task, folder, resume=resume, show=show)


def _fit(task: Task, folder: Path, *, resume: bool, show: bool) -> None:
    recipe = task.settings
    _quiet()
    keeper = StateKeeper(folder)
    trainer = L.Trainer(
        accelerator=recipe.accelerator if recipe.devices == 1 else "cpu" if not _gpus() else "auto",
        devices=recipe.devices,
        strategy=DDPStrategy(find_unused_parameters=True) if recipe.devices > 1 else "auto",
        precision="bf16-mixed" if recipe.precision == "bf16" else "32-true",
        max_epochs=task.epochs,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=max(1, task.epochs // VALIDATIONS),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=_tensorboard(folder) if recipe.tensorboard else False,
        callbacks=[keeper, EpochProgress(task.epochs, task.shown, show)],
        plugins=[SafetensorsIO()],
        default_root_dir=folder,
    )
    state = folder / STATE if resume and (folder / STATE).exists() else None
    try:
        trainer.fit(task, ckpt_path=None if state is None else str(state))
    except SystemExit:  # what Lightning makes of Ctrl-C, without a word
        if not trainer.interrupted:
            raise
    except (*DAMAGES, AssertionError) as error:
        if state is None or keeper.begun:
            raise
        raise CheckpointError(
            f"{state} does not match this training run: {shortened(repr(error), 200)}.",
            "Delete the file to start the training over with the same settings.",
        ) from error
    if trainer.interrupted:
        raise KeyboardInterrupt
    if torch.distributed.is_initialized():  # what follows, a baseline for one, waits for nobody
        torch.distributed.destroy_process_group()


def diverged() -> VitreousError:
    """Return what to say of weights that are NaN or infinite."""
    return VitreousError(
        "Training diverged: the loss became NaN or infinite.",
        "Lower --learning-rate, or use --precision 32.",
    )


def _gpus() -> int:
    return torch.cuda.device_count()


def _tensorboard(folder: Path) -> Any:
    try:
        from lightning.pytorch.loggers import TensorBoardLogger

        return TensorBoardLogger(str(folder), name="", version="tensorboard")
    except (ImportError, ModuleNotFoundError) as error:
        raise ConfigError(
            "TensorBoard is not installed.", "pip install 'vitreous[app]', or drop --tensorboard."
        ) from error


def _quiet() -> None:
    """Silence what Lightning tells every user about things we decided for them."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for text in (
        ".*num_workers.*",
        ".*does not have many workers.*",
        ".*IterableDataset.*",
        ".*TPU.*",
    ):
        warnings.filterwarnings("ignore", text)
    warnings.filterwarnings("ignore", module="lightning.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*")  # Lightning against a newer torch
