"""What tests ask of run folders, and how they start and stop runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from vitreous.checkpoints.tensors import load_tensors
from vitreous.tasks import loop


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a run's model file."""
    return load_tensors(run / "model.safetensors")[0]


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Tell whether two sets of tensors are the same, to the bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def history(run: Path) -> list[dict[str, str]]:
    """Return the rows of ``log.csv``."""
    lines = (run / "log.csv").read_text().splitlines()
    return [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]


def command(verb: str, settings: dict[str, Any]) -> list[str]:
    """Return the command line that runs a verb with some settings."""
    words = [sys.executable, "-m", "vitreous", verb]
    for name, value in settings.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", "" if value == [] else str(value)]
    return words


@contextmanager
def stopped_after_saving(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a training inside end like a killed one, as soon as its state is saved."""
    save = loop.StateKeeper.on_train_epoch_end

    def stop(self: Any, trainer: Any, module: Any) -> None:
        save(self, trainer, module)
        raise InterruptedError

    with monkeypatch.context() as patched, pytest.raises(InterruptedError):
        patched.setattr(loop.StateKeeper, "on_train_epoch_end", stop)
        yield
