"""Learning from a trained run: the teacher, frozen, and how a method makes a loss of what it says.

A teacher brings its own contract, preprocessing and network. It is asked about the pixels that the student sees, before
the student's preprocessing: cut, turned, mixed, brightened and made noisy alike (:class:`SceneTeacher`; teachers of
images are networks from pixels to scores, and :class:`Teacher` is all they need). What it says may be kept on disk
(``tasks/answers_store.py``).

A method of the stage ``distill`` is a file with its card and

    loss(student, teacher, targets, **settings) -> scalar    of two ``Answer`` and the labels (``layers/answers.py``)
    prepare(model)             changes the student before it is trained (optional)
    check(**settings)          refuses settings that make no loss (optional)
    LEVELS = True              where it reads feature levels, too (optional)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor, nn

from vitreous.catalog.registry import stage, system_module
from vitreous.checkpoints import classifiers
from vitreous.data.provenance import Provenance
from vitreous.data.regions import gather_patches, orient, patch_index
from vitreous.errors import ConfigError, ModelError
from vitreous.inference.dense_classifier import DenseClassifier
from vitreous.inference.export_format import sha256
from vitreous.layers.answers import Answer, Targets
from vitreous.methods._apply import complete_settings
from vitreous.recipe import Recipe
from vitreous.tasks import runs
from vitreous.tasks.labelled import LabelledScenes


@dataclass(frozen=True)
class Distillation:
    """How a student learns from a teacher.

    Attributes:
        method: a method of the stage ``distill``.
        settings: all of its settings.
    """

    method: str
    settings: dict[str, Any]

    @classmethod
    def of(cls, method: str, changes: dict[str, Any]) -> Distillation:
        """Look a method up, and refuse what is none or cannot have these settings.

        Raises:
            ModelError: no such method or setting.
            ConfigError: a method of another stage.
        """
        settings = complete_settings(method, changes, "distill")
        if stage(method) != "distill":
            raise ConfigError(
                f"'{method}' does not distil a teacher.", "'vitreous methods' lists what does."
            )
        check = getattr(system_module(method), "check", None)
        if check is not None:
            check(**settings)
        return cls(method, settings)

    @property
    def reads_levels(self) -> bool:
        """Whether it compares feature levels."""
        return bool(getattr(system_module(self.method), "LEVELS", False))

    def prepare(self, model: nn.Module) -> None:
        """Change a student before it is trained."""
        prepare = getattr(system_module(self.method), "prepare", None)
        if prepare is not None:
            prepare(model)

    def loss(self, student: Answer, teacher: Answer, targets: Targets) -> Tensor:
        """Return the loss on labels and teacher."""
        loss: Tensor = system_module(self.method).loss(student, teacher, targets, **self.settings)
        return loss


def frozen(network: nn.Module) -> nn.Module:
    """Return a teacher's network in evaluation mode, without gradients."""
    return network.eval().requires_grad_(False)


class SceneTeacher:
    """A finished run of ``classify`` that is asked about the training pixels of a student.

    Args:
        path: its run folder.
        recipe: of the student.

    Raises:
        VitreousError: it is no finished run of a network that classifies, or of a mode that cannot teach this student.
    """

    def __init__(self, path: str | Path, recipe: Recipe) -> None:
        self.path = Path(path)
        self.run = runs.load_run(self.path)
        if not isinstance(self.run.classifier, classifiers.Network):
            raise ModelError(
                f"The teacher {path} holds '{self.run.name}', which is not a network.",
                "Give a run of a network.",
            )
        self.classifier: classifiers.Network = self.run.classifier
        frozen(self.classifier)
        self.hash = sha256(self.path / runs.MODEL)
        if isinstance(self.classifier, DenseClassifier) and (
            recipe.mode != "dense" or recipe.tile_size != self.classifier.tile_size
        ):
            raise ConfigError(
                f"The teacher {path} labels tiles of {self.classifier.tile_size} pixels, and the student learns "
                + (
                    f"from tiles of {recipe.tile_size}."
                    if recipe.mode == "dense"
                    else f"in mode '{recipe.mode}'."
                ),
                f"Use --mode dense --tile-size {self.classifier.tile_size}, or a teacher of patches.",
            )

    @property
    def provenance(self) -> Provenance:
        """The ground that its weights have learned from: what it says of other pixels tells of that ground's labels."""
        return self.run.provenance

    @property
    def reach(self) -> int:
        """How far around a pixel it looks; within a tile as far as it has learned from."""
        dense = isinstance(self.classifier, DenseClassifier)
        return self.classifier.radius if dense else self.classifier.margin

    def noted(self, distillation: Distillation) -> dict[str, Any]:
        """Return what a student's ``config.json`` says of it."""
        return {
            "run": str(self.path),
            "name": self.run.name,
            "sha256": self.hash,
            "receptive_size": self.classifier.receptive_size,
            "distill": distillation.method,
            "settings": distillation.settings,
        }

    def check(self, data: LabelledScenes) -> None:
        """Refuse to teach other classes, or about bands without its own, than it has learned itself.

        Raises:
            ModelError: says which differ.
        """
        own, wanted = (
            (self.run.class_codes, self.run.class_names),
            (
                data.class_codes,
                data.class_names,
            ),
        )
        if own != wanted:
            theirs, ours = (
                [f"{code} ({name})" for code, name in zip(*both, strict=True)]
                for both in (own, wanted)
            )
            only = [
                f"{len(more)} only in {where}, such as {more[0]}"
                for where, more in (
                    ("the teacher", [one for one in theirs if one not in ours]),
                    ("the labels", [one for one in ours if one not in theirs]),
                )
                if more
            ]
            raise ModelError(
                f"The teacher {self.path} was trained on other classes: {'; '.join(only) or 'in another order'}.",
                "Give a teacher that was trained on the same classes.",
            )
        try:
            self.classifier.contract.check_values(data.first)
        except ModelError as error:
            raise ModelError(
                f"The teacher {self.path} cannot read {data.first.attrs.get('source', 'the scene')}: {error.problem}",
                "Give a teacher that was trained on this sensor, in this unit.",
            ) from error

    def lift(
        self, student: classifiers.Network, scene: xr.DataArray
    ) -> Float[Tensor, "channels student_channels"]:
        """Return what turns noise on the student's channels into noise on its own.

        The noise on the pixels themselves is the smallest that the student sees so; bands that the student does not read
        have none, and neither have spectra that the two change in different ways.
        """
        if student.preprocess.spectra.kind != self._preprocess().spectra.kind:
            return torch.zeros(self._preprocess().channels, student.preprocess.channels)
        own, theirs = (one.contract.select(scene) for one in (self.classifier, student))
        shared = torch.from_numpy(own[:, None] == theirs).double()
        raw = torch.linalg.pinv(student.preprocess.matrix.double().cpu())
        return (self._preprocess().matrix.double() @ shared @ raw).float()

    def dark(self) -> Float[Tensor, "channels"] | None:
        """Return the channels of a pixel without light; None where brighter light changes nothing."""
        return self._preprocess().dark()

    def _preprocess(self) -> Any:
        return self.classifier.preprocess.cpu()

    def to(self, device: torch.device) -> None:
        """Move its network to a device."""
        self.classifier.net.to(device)

    @torch.no_grad()
    def look(self, regions: Float[Tensor, "regions channels side side"]) -> Tensor:
        """Return what :meth:`answer` reads of some regions."""
        return self.classifier.features(regions)

    @torch.no_grad()
    def answer(
        self,
        regions: Float[Tensor, "regions channels side side"],
        seen: Tensor,
        centres: Int[Tensor, "pixels"],
        *,
        turn: int = 0,
        mixed: tuple[Tensor, float] | None = None,
        levels: bool = False,
    ) -> Answer:
        """Say what the classes of some pixels are.

        Args:
            regions: its channels.
            seen: what :meth:`look` returned of them.
            centres: positions of the pixels in the flattened ``(region, row, column)`` grid.
            turn: orientation of the patches (``orient``).
            mixed: which pixel is mixed into each, and the share of its own.
            levels: also return the feature levels of the patches.
        """
        if isinstance(self.classifier, DenseClassifier):
            if levels:
                raise ModelError(
                    "Feature levels of a teacher in mode 'dense' are not supported.",
                    "Use another method to distil it, or a teacher of patches.",
                )
            index = centres[:, None, None]
            return Answer(self.classifier.score(self.classifier.read_patches(seen, index)))
        radius, width = self.classifier.radius, regions.shape[-1]
        index = orient(patch_index(torch.zeros_like(centres), centres, width, radius), turn)
        patches = mixed_patches(self.classifier.read_patches(seen, index), mixed)
        maps = None
        if levels:
            raw = mixed_patches(self.classifier.normalise(gather_patches(regions, index)), mixed)
            maps = self.classifier.net.forward_levels(raw)  # type: ignore[operator]
        scores = self.classifier.score(patches)
        return Answer(scores, maps)


def mixed_patches(patches: Tensor, mixed: tuple[Tensor, float] | None) -> Tensor:
    """Return patches mixed in pairs, where asked for."""
    if mixed is None:
        return patches
    other, share = mixed
    return share * patches + (1 - share) * patches[other]
