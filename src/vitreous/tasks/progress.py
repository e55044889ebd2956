"""What a user sees while a network trains."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

LINE_SECONDS = 10.0  # between lines where there is no terminal to draw a bar on


class EpochProgress(L.Callback):
    """A bar over the epochs with the figures that matter; plain lines where output is not a terminal.

    Args:
        epochs: how many there will be.
        figures: columns of the log to show, and what to call them.
        show: False for silence (baselines, tests).
    """

    def __init__(self, epochs: int, figures: dict[str, str], show: bool = True) -> None:
        self.epochs, self.figures, self.show = epochs, figures, show
        self.console = Console(stderr=True)
        self.bar: Progress | None = None
        self.task = TaskID(0)
        self.last_line = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the bar where the run stands."""
        self.show = self.show and trainer.is_global_zero
        if self.show and self.console.is_terminal:
            columns = (
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.description}"),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns, console=self.console)
            self.task = self.bar.add_task("", total=self.epochs, completed=trainer.current_epoch)
            self.bar.start()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the epoch's figures."""
        row: dict[str, Any] = pl_module.history[-1]  # type: ignore[index,assignment]
        text = "  ".join(f"{v} {row[k]:.3f}" for k, v in self.figures.items() if k in row)
        if self.bar is not None:
            self.bar.update(self.task, completed=row["epoch"], description=text)
        elif self.show and (
            time.monotonic() - self.last_line > LINE_SECONDS or row["epoch"] == self.epochs
        ):
            self.last_line = time.monotonic()
            self.console.print(f"epoch {row['epoch']}/{self.epochs}  {text}", highlight=False)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the finished bar standing."""
        self._stop()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Give the terminal back."""
        self._stop()

    def _stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
