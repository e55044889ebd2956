"""What became of every tensor of a file that was loaded."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from vitreous.checkpoints.blueprints import Blueprint
from vitreous.errors import CheckpointError
from vitreous.layers.bands import Bands


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor. Names are the model's own.

    Attributes:
        source: the file.
        part: where in the file its weights were (``model_ema``, ...); empty where they were all of it.
        made: what the model is now.
        used: filled from the file, the resized and adapted ones among them.
        resized: resampled for another image size.
        adapted: made for other bands.
        method: how (see :func:`~vitreous.layers.bands.adapt_bands`); None where the bands are the same.
        unmatched: bands of the file that no band of the model resembles.
        reset: of a new head.
        missing: of the model, not in the file: fresh.
        left_over: in the file, without a place in the model.
        misshapen: in both, but of another shape, in words.
        derived: in the file, but following from the model's sizes.
        unread: of what is left over, what does not belong to the network: a decoder of its pre-training, or what stood
            beside the network in its wrapper (a counter of steps, a loss). A load is complete without it.
        rewritten: names in the file of tensors that were joined, split or turned to become the model's.
        layout: whose network in whose names the file held, e.g. ``timm's Swin``; empty where that is unknown.
        parameters: of the network in the file.
        classes: that it told apart; None without a head.
        read: arguments that the variant leaves open and the weights decided.
    """

    source: str
    part: str
    made: Blueprint
    used: tuple[str, ...] = ()
    resized: tuple[str, ...] = ()
    adapted: tuple[str, ...] = ()
    method: str | None = None
    unmatched: tuple[int, ...] = ()
    reset: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    left_over: tuple[str, ...] = ()
    misshapen: tuple[str, ...] = ()
    derived: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    rewritten: tuple[str, ...] = ()
    layout: str = ""
    parameters: int = 0
    classes: int | None = None
    read: dict[str, Any] = field(default_factory=dict)

    @property
    def found(self) -> str:
        """What was in the file, in words: ``timm's Swin, 28.3 M parameters, 1000 classes``."""
        if self.made.num_classes is None:
            return sized(self.layout, self.parameters)
        classes = "no head" if self.classes is None else f"{self.classes} classes"
        return f"{sized(self.layout, self.parameters)}, {classes}"

    @property
    def complete(self) -> bool:
        """Whether every tensor found its place and every place its tensor."""
        return not any(self.complaints.values())

    @property
    def complaints(self) -> dict[str, tuple[str, ...]]:
        """What keeps a load from being complete."""
        return {
            "missing": self.missing,
            "unexpected": tuple(name for name in self.left_over if name not in self.unread),
            "with a different shape": self.misshapen,
        }

    @property
    def bands(self) -> Bands:
        """The bands that the model reads now."""
        return self.made.bands

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)

    def __str__(self) -> str:
        """Say in one line what was done."""
        parts = [f"{len(self.used)} tensors of {self.source}"]
        if self.method is not None:
            parts.append(f"bands adapted by '{self.method}'")
        if self.unmatched:
            parts.append(f"{len(self.unmatched)} bands without a counterpart")
        if self.resized:
            parts.append(f"{len(self.resized)} resized")
        if self.reset:
            parts.append(f"new head with {self.made.num_classes} classes")
        elif self.made.num_classes == 0:
            parts.append("without a head")
        parts += [f"{len(names)} {what}" for what, names in self.complaints.items() if names]
        return ", ".join(parts)


def sized(layout: str, parameters: int) -> str:
    """Return whose layout weights have, and how many there are, in words."""
    size = f"{parameters / 1e6:.1f} M" if parameters >= 1e6 else f"{parameters:,}"
    return f"{layout or 'an unknown layout'}, {size} parameters"


class PartialLoadError(CheckpointError):
    """Weights that do not fill their model; ``report`` says which, ``advice`` what else they may be."""

    def __init__(self, report: LoadReport, advice: str = "") -> None:
        complaints = [
            f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for what, names in report.complaints.items()
            if names
        ]
        super().__init__(
            f"The weights in {report.source} do not fit {report.made.name}: {'; '.join(complaints)}. "
            "Nothing was loaded.",
            advice
            or "Give the variant, arguments and image size they belong to, or allow a partial load.",
        )
        self.report = report
