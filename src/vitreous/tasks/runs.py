"""Run folders: where they are, what is in them, and how a trained system comes back from one."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from torch import nn

from vitreous.catalog.registry import kind_of
from vitreous.catalog.results import versions
from vitreous.catalog.tasks import tasks, verb_of
from vitreous.checkpoints.classifiers import (
    Classifier,
    Network,
    build_classifier,
    build_postprocess,
)
from vitreous.checkpoints.headers import PROVENANCE, readable_header
from vitreous.checkpoints.tensors import load_tensors
from vitreous.data.fingerprint import scene_fingerprint
from vitreous.data.provenance import (
    Provenance,
    Seen,
    SeenImages,
    provenance_from_json,
)
from vitreous.data.roles import Split, Splits
from vitreous.errors import CheckpointError, ConfigError, VitreousError
from vitreous.files import checked, hidden_folder, locked, read_json, task_of, write_json
from vitreous.inference.postprocess import Postprocess, finished
from vitreous.inference.windows import SceneClassifier
from vitreous.methods._apply import applied
from vitreous.recipe import R, Recipe, SceneSettings, Settings, make_recipe
from vitreous.tasks.processes import RUN_FOLDER, is_helper, kept_environment

MOST_OF_A_NAME = 10_000  # runs that only differ in the number behind their name
MODEL, STATE, SPLIT, CONFIG, METRICS, LOG = (
    "model.safetensors",
    "state.safetensors",
    "split.npz",
    "config.json",
    "metrics.json",
    "log.csv",
)
PREPROCESS = "preprocess.safetensors"  # of a pre-trained run, beside its model file


@dataclass(frozen=True)
class Run:
    """A trained system and what it was trained for.

    Attributes:
        path: its folder.
        classifier: fulfils the scene classifier's contract.
        class_names: names of the classes from 1 on.
        class_colors: their ``#rrggbb``.
        class_codes: the numbers that stand for them in a map.
        name: the system's name.
        model_args: what differs from the variant's own arguments.
        provenance: the ground that its weights have learned from, its own training last.
        postprocess: what becomes of the classifier's probabilities; None of older runs.
    """

    path: Path
    classifier: Classifier
    class_names: list[str]
    class_colors: list[str]
    class_codes: list[int]
    name: str
    model_args: dict[str, Any]
    provenance: Provenance
    postprocess: Postprocess | None = None

    @property
    def finished(self) -> SceneClassifier:
        """The classifier with its refinement and calibration, as it maps scenes."""
        return finished(self.classifier, self.postprocess)

    @property
    def methods(self) -> list[dict[str, Any]]:
        """What was applied to its network, first to last."""
        return applied(self.classifier.net) if isinstance(self.classifier, Network) else []

    @property
    def start(self) -> Provenance:
        """The provenance of the weights that its training started from."""
        return before(self.provenance, self.recipe)

    @property
    def recipe(self) -> Recipe:
        """The settings it was trained with; where a comparison chose the system, with those that it settled."""
        asked = recipe_of(self.path, Recipe)
        settled = config_at(self.path).get("settled")
        return (
            make_recipe({**asked.model_dump(), **settled}) if isinstance(settled, dict) else asked
        )

    @property
    def split(self) -> Split:
        """The split of the single scene that it was trained on."""
        return Split.load(self.path / SPLIT)

    @property
    def splits(self) -> Splits:
        """The splits of all scenes that it was trained on."""
        return Splits.load(self.path / SPLIT)


def before(provenance: Provenance, recipe: Settings) -> Provenance:
    """Return what a run's weights had learned from before it was trained.

    Args:
        provenance: what they have learned from now, the run's own training last.
        recipe: its settings.
    """
    if not provenance or isinstance(provenance[-1], Seen | SeenImages):
        return provenance[:-1]
    # A run of a version that recorded nothing; whether it started from nothing is known all the same.
    return () if recipe.init is None else provenance


@contextmanager
def started_folder(
    recipe: Settings, config: dict[str, Any], name: str, *, resume: bool
) -> Iterator[tuple[Path, bool]]:
    """Yield the folder of a run, and whether this process is the one that writes it.

    A fresh one appears with its ``config.json`` in it, so that a run which is killed can always be resumed, and is
    removed again where the block fails before training has begun. At the end the run is noted as finished.

    A further process of a training on several devices (:mod:`vitreous.tasks.processes`) gets the folder that the first
    one has made.

    Args:
        recipe: the settings.
        config: what :func:`config_of` returns for a fresh run.
        name: of the run, where the recipe gives none.
        resume: go on with the run that the recipe names; what a kill left half-written is deleted.

    Raises:
        ConfigError: there is no such run, or another process is training in its folder.
        VitreousError: the folder cannot be made.
    """
    if is_helper():
        yield Path(os.environ[RUN_FOLDER]), False
        return
    folder = Path(recipe.runs) / config["task"] / (recipe.name or name.lstrip("."))
    if resume:
        if not (folder / CONFIG).is_file():
            raise ConfigError(f"No run to resume in {folder}.", "Check --runs and --name.")
    else:
        with hidden_folder(folder.parent, folder.name) as made:
            write_json(made / CONFIG, config)
            folder = publish(made, folder)
    with _alone(folder), kept_environment(**{RUN_FOLDER: str(folder.resolve())}):
        if resume:
            _remove_leftovers(folder)
        try:
            yield folder, True
        except Exception:
            if not resume and not any((folder / made).is_file() for made in (LOG, MODEL)):
                shutil.rmtree(folder, ignore_errors=True)
            raise
        write_json(folder / CONFIG, {**read_json(folder / CONFIG), "finished": True})


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Be the only process that trains in a run folder.

    Raises:
        ConfigError: another one does.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder))
        except BlockingIOError as error:
            raise ConfigError(
                f"Another process is training in {folder}.",
                "Wait for it, stop it, or start a run with another --name.",
            ) from error
        yield


def publish(made: Path, folder: Path) -> Path:
    """Rename a complete folder to ``folder``, numbered where that name is taken: no run overwrites another.

    An empty folder of that name is no run, and gives its place.

    Raises:
        VitreousError: too many runs have this name.
    """
    for number in range(1, MOST_OF_A_NAME):
        candidate = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        try:
            made.rename(candidate)
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
                raise
            continue
        return candidate
    raise VitreousError(
        f"{folder.parent} is full of runs named {folder.name}.", "Choose another --name."
    )


def _remove_leftovers(folder: Path) -> None:
    """Delete what a killed process left half-written; every finished file has a name without a dot."""
    for leftover in list(folder.rglob(".*")):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def prepared(recipe: R, console: Console, *, trained: bool, networks: bool) -> R:
    """Return the recipe as this machine can train it, and say which of its settings change nothing.

    Args:
        recipe: the settings.
        console: where to say it.
        trained: whether the system itself is trained by gradient descent.
        networks: whether it or any of its baselines is.

    Raises:
        ConfigError: a GPU is asked for, and there is none.
    """
    gpus = torch.cuda.device_count()
    if recipe.accelerator == "gpu" and not (gpus or torch.backends.mps.is_available()):
        raise ConfigError(
            "torch finds no usable GPU on this machine.",
            "Omit --accelerator, or see 'vitreous doctor'.",
        )
    if networks:
        most, what = (gpus, "GPUs") if gpus and recipe.accelerator != "cpu" else (cores(), "cores")
        if recipe.devices > most:
            console.print(
                f"[yellow]{recipe.devices} processes on {most} {what} would compete: "
                f"starting {most}[/yellow]",
                highlight=False,
            )
            recipe = recipe.model_copy(update={"devices": most})
    idle = recipe.without_effect(trained=trained, networks=networks)
    if idle:
        told = "; ".join(f"{name} ({reason})" for name, reason in idle.items())
        console.print(f"[yellow]settings without effect: {told}[/yellow]", highlight=False)
    return recipe


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_start(init: str | None, task: str) -> None:
    """Refuse, before anything is made, to start from a run that has not finished, or that this task cannot start from.

    Args:
        init: a run folder; what is none is left to its reader, and None starts from nothing.
        task: what is trained now.

    Raises:
        CheckpointError: the run cannot be started from.
    """
    if init is None or not (Path(init) / CONFIG).is_file():
        return
    path = Path(init)
    found = task_of(path)
    _check_task(path, found if found in tasks()[task].starts_from else task)
    _check_finished(path, found)


def _check_task(path: Path, task: str) -> None:
    if (other := task_of(path)) != task:
        raise CheckpointError(
            f"{path} is a '{other}' run, not a '{task}' run.",
            f"Give a run made by '{verb_of(task)}'.",
        )


def _check_finished(path: Path, task: str) -> None:
    if (path / MODEL).is_file():
        return
    if (path / CONFIG).is_file() and "compressed" in config_at(path):
        raise CheckpointError(
            f"The run {path} is incomplete: 'vitreous compress' was stopped while writing it.",
            "Delete it and compress the original run again.",
        )
    raise CheckpointError(
        f"The run {path} has not finished.",
        f"Resume it with '{verb_of(task)} {path} --resume'.",
    )


def config_of(
    task: str,
    recipe: SceneSettings,
    scene: xr.DataArray,
    command: str,
    fingerprints: Mapping[str, str | None],
) -> dict[str, Any]:
    """Return what ``config.json`` holds: what it takes to do the run again, and to notice that it would be another one.

    Args:
        task: what is trained.
        recipe: the settings.
        scene: what it is trained on; of a collection any scene.
        command: the command line.
        fingerprints: of what it learns from, see :func:`fingerprints_of`.
    """
    return {
        "schema": 1,
        "task": task,
        "finished": False,
        "command": command,
        "recipe": recipe.model_dump(),
        "scene": {
            "source": recipe.scenes or str(scene.attrs.get("source", "")),
            "shape": list(scene.shape),
            "unit": scene.attrs.get("unit"),
        },
        "fingerprints": dict(fingerprints),
        "versions": versions(),
    }


def name_of(recipe: SceneSettings) -> str:
    """Return the name of a run where its recipe gives none: what it is trained on, and what is trained."""
    source = re.sub(r"[*?\[\]]+", "", Path(recipe.source).stem).strip()  # of a pattern
    return f"{source or 'scenes'}-{recipe.model}"


def fingerprints_of(scene: xr.DataArray) -> dict[str, str | None]:
    """Return the fingerprints of a scene without labels."""
    return {"scene": scene_fingerprint(scene), "labels": None}


def config_at(folder: Path) -> dict[str, Any]:
    """Return a run's ``config.json``.

    Raises:
        VitreousError: it is missing or damaged.
    """
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict) or not isinstance(config.get("recipe"), dict):
        raise ConfigError(f"{folder / CONFIG} does not hold a recipe.", "Start the run again.")
    return config


def check_unchanged(folder: Path, fingerprints: Mapping[str, str | None]) -> None:
    """Refuse to go on with a run, or to measure it again, where its scene or labels are others than when it began.

    Args:
        folder: of the run.
        fingerprints: of what it learns from, as it is now.

    Raises:
        ConfigError: they have changed. Runs of versions that kept no fingerprints are let through.
    """
    known = config_at(folder).get("fingerprints")
    if not isinstance(known, dict):
        return
    for name, found in fingerprints.items():
        if known.get(name, found) != found:
            raise ConfigError(
                f"The {name} of the run {folder} changed after it was started.",
                "Restore the original file, or start a new run: results from two versions must not be mixed.",
            )


def check_same_teacher(folder: Path, teacher: Path, digest: str) -> None:
    """Refuse to go on with another teacher than the training in ``folder`` began with.

    Args:
        folder: of the run that learns.
        teacher: folder of the run that it learns from.
        digest: SHA-256 of the teacher's weights.

    Raises:
        ConfigError: its weights have changed.
    """
    known = config_at(folder).get("teacher")
    if (known or {}).get("sha256") != digest:
        raise ConfigError(
            f"The teacher {teacher} changed after the run {folder} was started.",
            "Restore its model.safetensors, or start a new run.",
        )


def recipe_of(folder: Path, kind: type[R]) -> R:
    """Return the settings that a run was trained with.

    Raises:
        VitreousError: its ``config.json`` is missing or damaged.
    """
    return make_recipe(config_at(folder)["recipe"], kind)


class TeacherNote(BaseModel):
    """What ``config.json`` notes of the teacher that a run has learned from."""

    receptive_size: int = Field(1, ge=1, le=2**13)


def teacher_size(folder: Path) -> int:
    """Return the side of the square around a pixel that a run's teacher has seen; 1 where it had none.

    Raises:
        VitreousError: ``config.json`` is missing or damaged.
    """
    value = config_at(folder).get("teacher") or {}
    note = checked(TeacherNote, value, folder / CONFIG, "Start the run again.")
    return note.receptive_size


class TrainingFigures(BaseModel):
    """What ``config.json`` notes of a finished training."""

    model_config = ConfigDict(allow_inf_nan=False)

    train_seconds: float = Field(0.0, ge=0)
    parameters: int | None = Field(None, ge=0)
    trainable: int | None = Field(None, ge=0)


def figures_of(folder: Path) -> TrainingFigures:
    """Return the figures of a run's training.

    Raises:
        VitreousError: ``config.json`` is missing or damaged.
    """
    value = config_at(folder).get("model", {})
    return checked(TrainingFigures, value, folder / CONFIG, "Start the run again.")


def load_run(path: str | Path) -> Run:
    """Load a trained run.

    Raises:
        CheckpointError: the folder holds no finished run, or its checkpoint is damaged or made for a newer
            version.
    """
    path = Path(path)
    with checkpoint(path, "classify") as (tensors, header):
        return Run(
            path,
            build_classifier(path / MODEL, tensors, header),
            header["class_names"],
            header["class_colors"],
            # Older runs only knew classes that are numbered from 1.
            header.get("class_codes") or list(range(1, len(header["class_names"]) + 1)),
            header["name"],
            header.get("model_args", {}),
            provenance_from_json(header.get(PROVENANCE), path.name),
            build_postprocess(path / MODEL, header),
        )


@contextmanager
def checkpoint(path: Path, task: str) -> Iterator[tuple[dict[str, torch.Tensor], Any]]:
    """Yield the tensors and the header of a finished run; what fails inside is the fault of a damaged header.

    Raises:
        CheckpointError: the folder holds no finished run of this task, or its checkpoint is damaged or made for a
            newer version.
    """
    if not path.is_dir():
        raise CheckpointError(
            f"The run folder {path} does not exist.", f"Create one with '{verb_of(task)}'."
        )
    if (path / CONFIG).is_file():
        _check_task(path, task)
    if (path / CONFIG).is_file() or (path / STATE).is_file():
        _check_finished(path, task)
    tensors, header = load_tensors(path / MODEL)
    with readable_header(path / MODEL, header):
        yield tensors, header


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """Return the number of parameters, and of trainable ones."""
    return (
        sum(p.numel() for p in model.parameters()),
        sum(p.numel() for p in model.parameters() if p.requires_grad),
    )


def is_network(name: str) -> bool:
    """Tell whether a system is trained by gradient descent."""
    return kind_of(name).gradient
