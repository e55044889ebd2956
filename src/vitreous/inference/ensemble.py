"""Several trained systems as one scene classifier."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vitreous.data.contract import BandContract
from vitreous.errors import ModelError
from vitreous.inference.postprocess import Postprocess, finished
from vitreous.inference.windows import SceneClassifier, step_of

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Member:
    """A system of an ensemble.

    Attributes:
        name: of the system.
        classifier: as it was trained.
        after: what becomes of its probabilities before they are averaged.
        model_args: what differs from the variant's own arguments.
    """

    name: str
    classifier: Any
    after: Postprocess
    model_args: dict[str, Any]

    @property
    def finished(self) -> SceneClassifier:
        """The system with its refinement and calibration."""
        return finished(self.classifier, self.after)


class Ensemble:
    """The mean of the calibrated probabilities of several systems that were trained on the same bands and classes.

    Args:
        members: the systems.

    Raises:
        ModelError: there are none, or they differ in classes, bands, or what lies beyond the scene's edge.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = list(members)
        self._parts = [member.finished for member in members]
        facts = {
            (part.num_classes, part.contract.used, getattr(part, "padding", "reflect"))
            for part in self._parts
        }
        if len(facts) != 1:
            raise ModelError(
                "The members of the ensemble do not fit together.",
                "Restore the file, or train again.",
            )
        self.padding = getattr(self._parts[0], "padding", "reflect")
        self.step = math.lcm(*map(step_of, self._parts))

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self._parts[0].num_classes

    @property
    def contract(self) -> BandContract:
        """The bands that all were trained on."""
        return self._parts[0].contract

    @property
    def margin(self) -> int:
        """Context in pixels on each side of a window."""
        return max(part.margin for part in self._parts)

    @property
    def receptive_size(self) -> int:
        """Side of the square of pixels that one prediction depends on, refinements included."""
        sizes = (one.classifier.receptive_size + 2 * one.after.reach for one in self.members)
        return int(max(sizes))

    def classify(self, window: Floats) -> Floats:
        """Turn ``(bands, h + 2 margin, w + 2 margin)`` into probabilities ``(classes, h, w)``; 0 where invalid."""
        height, width = window.shape[1:]
        total: Floats | None = None
        for part in self._parts:
            cut = self.margin - part.margin
            own = part.classify(window[:, cut : height - cut, cut : width - cut])
            total = own if total is None else total + own
        assert total is not None
        return np.asarray(total / np.float32(len(self._parts)), dtype=np.float32)
