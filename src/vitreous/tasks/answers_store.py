"""A teacher's answers on disk: it is asked once, and students that see the same pixels read what it said.

What a student sees is drawn from (seed, epoch, process, batch) alone where there is a teacher, so an answer is found by its
epoch and number. Answers to other pixels (another seed, split, augmentation, teacher) lie in a folder of their own, named by
a hash of all that decides about them. Only the most likely classes are kept, the others share what is left (TinyViT, arXiv
2207.10666); what was just asked is rounded in the same way, so that it makes no difference who asked first.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vitreous.checkpoints.tensors import load_tensors, save_tensors
from vitreous.errors import CheckpointError
from vitreous.files import write_json


class AnswerStore:
    """The answers of one teacher to what students of one training see.

    Args:
        folder: of all such stores.
        key: what decides about the pixels and the answers, JSON-ready.
        top: most classes that are kept per image.
        rank: of the process.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any], top: int, rank: int = 0) -> None:
        full = {**key, "top": top}
        text = json.dumps(full, sort_keys=True)
        self.folder = folder / hashlib.sha256(text.encode()).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "store.json", full)
        self.top, self.rank = top, rank
        self._epoch = -1
        self._known: dict[str, Tensor] = {}
        self._new = False

    def scores(
        self, epoch: int, number: int, ask: Callable[[], Float[Tensor, "images classes"]]
    ) -> Float[Tensor, "images classes"]:
        """Return an answer as logits, from disk where it is known.

        Args:
            epoch: of the training.
            number: of the answer in the epoch.
            ask: asks the teacher.

        Raises:
            CheckpointError: what is on disk is damaged.
        """
        if epoch != self._epoch:
            self._open(epoch)
        names = [f"{number}.{part}" for part in ("classes", "logs", "shape")]
        if names[0] not in self._known:
            self._known |= dict(zip(names, _packed(ask(), self.top), strict=True))
            self._new = True
        try:
            return _unpacked(*(self._known[name] for name in names))
        except (LookupError, RuntimeError) as error:
            raise CheckpointError(
                f"The teacher's answers in {self._file(epoch)} are damaged: {error}.",
                "Delete the file; the teacher is then asked again.",
            ) from error

    def close(self) -> None:
        """Write what is new of the epoch."""
        if self._new:
            save_tensors(self._file(self._epoch), self._known, {"epoch": self._epoch})
        self._new = False

    def _open(self, epoch: int) -> None:
        self.close()
        file = self._file(epoch)
        self._known = load_tensors(file)[0] if file.is_file() else {}
        self._epoch = epoch

    def _file(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch:06d}-{self.rank}.safetensors"


def _packed(logits: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the most likely classes, the logarithms of their probabilities, and how many classes there are."""
    logs = logits.float().log_softmax(1).cpu()
    best = logs.topk(min(top, logs.shape[1]), 1)
    return best.indices.int(), best.values.half(), torch.tensor([logs.shape[1]])


def _unpacked(classes: Tensor, logs: Tensor, count: Tensor) -> Tensor:
    """Return logarithms of probabilities, what is left shared by all other classes."""
    known = logs.float()
    others = int(count) - known.shape[1]
    if others == 0:
        rest = known.new_zeros(len(known), 1)
    else:
        left = (1 - known.exp().sum(1, keepdim=True)).clamp(min=1e-6)
        rest = (left / others).log()
    return rest.repeat(1, int(count)).scatter(1, classes.long(), known)
