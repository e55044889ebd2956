"""The tasks: what systems are trained for, and where everything that belongs to one stands.

This is the only place that lists them: the command line, run folders, ``predict``, ``evaluate``, the Python API and the
documentation read it. It is a table of plain values: paths are strings ``module:name``
(:func:`vitreous.catalog.lookup.load`), so that reading it imports nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from vitreous.catalog import plugins
from vitreous.catalog.lookup import load
from vitreous.errors import CheckpointError
from vitreous.files import task_of

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: also the folder of its runs.
        verb: of the command line, which trains for it.
        description: what the verb does, for its help.
        deed: what its systems do, for "which does not ...".
        recipe: path of the class of its settings.
        module: path of the module that does it (:class:`TaskModule`).
        kinds: of systems that it trains.
        like: another task, whose systems all serve this one as well; empty where cards name those that do.
        takes: what its runs are applied to: a ``scene``, or ``images`` in a folder.
        baselines: kinds of systems that it compares them with.
        starts_from: further tasks whose runs a training can start from.
        report: path of the function that writes the report of a run.
        shown: path of the function that prints its ``metrics.json`` on a console.
        product: file name of what its runs make of a scene; empty where they are not applied to scenes.
        products: files of this task in a run folder, by what they are.
        figure: the score that it is judged by, a key of ``test`` in ``metrics.json``; empty where a run cannot be
            measured again.
        figure_label: the score's name and unit, for tables.
        figure_scale: what it is multiplied with for that unit.
        subject: path of the class that opens its runs to compress them (``tasks/compress.py: Subject``); empty where they
            cannot be compressed.
        bench: path of the class of what ``vitreous bench runs`` finds of its runs (``tasks/bench.py: Measured``); empty where
            they are not compared so.
        next: what to do with a finished run; ``{run}`` and ``{model}`` stand for its folder and model.
    """

    name: str
    verb: str
    description: str
    deed: str
    recipe: str
    module: str
    kinds: tuple[str, ...]
    like: str = ""
    takes: str = "scene"
    baselines: tuple[str, ...] = ()
    starts_from: tuple[str, ...] = ()
    report: str = ""
    shown: str = ""
    product: str = ""
    products: dict[str, str] = field(default_factory=dict)
    figure: str = ""
    figure_label: str = ""
    figure_scale: float = 1.0
    subject: str = ""
    bench: str = ""
    next: str = ""

    def serves(self, task_names: Collection[str]) -> bool:
        """Tell whether a system whose card names these tasks can be trained or compared for this one."""
        return (self.like or self.name) in task_names


class Product(Protocol):
    """What became of a scene, or of images."""

    @property
    def paths(self) -> list[Path]:
        """The files that were written."""

    @property
    def pixels(self) -> int:
        """Pixels that were computed."""

    @property
    def seconds(self) -> float:
        """From the call to the finished files."""


class TaskModule(Protocol):
    """What the module of a task offers.

    ``evaluate`` stands only where the task has a ``figure``, ``apply`` only where it has a ``product``. Keyword
    arguments of ``apply`` are the options of ``vitreous predict`` that are known to the task; others are refused. A
    module whose runs can be written for other runtimes also offers ``export(path, form, folder, **options)``, which
    returns the :class:`~vitreous.inference.export.Parity`; its options are those of ``vitreous export``.
    """

    def train(
        self, recipe: Any, *, resume: bool = False, command: str = "", show: bool = True
    ) -> Path:
        """Train as a recipe says, and return the run folder."""

    def load_run(self, path: str | Path) -> Any:
        """Return what was trained, with ``path``, ``recipe`` and ``provenance``."""

    def evaluate(self, path: str | Path) -> dict[str, Any]:
        """Measure a run again, and return what ``metrics.json`` holds."""

    def apply(
        self, path: str | Path, scene: xr.DataArray, out: str | Path, **options: Any
    ) -> Product:
        """Apply a run or an export of one to a scene, or to the path of a folder of images (``Task.takes``)."""


TASKS = {
    task.name: task
    for task in (
        Task(
            "classify",
            verb="train",
            description="Train a system on a labelled scene and write a run folder with map and report.",
            deed="classify",
            recipe="vitreous.recipe:Recipe",
            module="vitreous.tasks.classify",
            kinds=("model", "estimator", "choice"),
            baselines=("model", "estimator"),
            starts_from=("pretrain",),
            report="vitreous.report.html:build_report",
            shown="vitreous.cli.tables:print_metrics",
            product="map.tif",
            products={"split": "split.npz", "map": "map.tif", "picture": "map.png"},
            figure="oa",
            figure_label="OA, %",
            figure_scale=100,
            subject="vitreous.tasks.compress_scene:SceneSubject",
            bench="vitreous.tasks.bench:RunFigures",
        ),
        Task(
            "restore",
            verb="restore",
            description="Train a denoiser or super-resolver on a scene, evaluate it on held-out ground, and restore "
            "the scene.",
            deed="restore",
            recipe="vitreous.recipe:RestoreRecipe",
            module="vitreous.tasks.restore",
            kinds=("restorer", "filter"),
            baselines=("filter",),
            report="vitreous.report.restoration:build_report",
            shown="vitreous.cli.tables:print_restoration",
            product="restored.tif",
            products={"scene": "restored.tif"},
            figure="psnr",
            figure_label="PSNR, dB",
            subject="vitreous.tasks.compress_restorer:RestorerSubject",
        ),
        Task(
            "recognize",
            verb="recognize",
            description="Train a network on images with one or several labels each, and evaluate it on held-out "
            "images.",
            deed="classify images",
            recipe="vitreous.recipe:RecognizeRecipe",
            module="vitreous.tasks.recognize",
            kinds=("model",),
            like="classify",
            takes="images",
            starts_from=("pretrain",),
            report="vitreous.report.recognition:build_report",
            shown="vitreous.cli.tables:print_recognition",
            product="predictions.csv",
            products={"tested": "predictions.csv"},
            figure="score",
            figure_label="top-1 or mAP, %",
            figure_scale=100,
            subject="vitreous.tasks.compress_images:ImagesSubject",
            bench="vitreous.tasks.bench_images:ImageFigures",
            next="Classify other images with: vitreous predict {run} FOLDER -o classes.csv",
        ),
        Task(
            "pretrain",
            verb="pretrain",
            description="Pre-train a network on a scene without labels; fine-tune it with 'vitreous train --init RUN'.",
            deed="support pre-training",
            recipe="vitreous.recipe:PretrainRecipe",
            module="vitreous.tasks.pretrain",
            kinds=("model",),
            report="vitreous.report.pretraining:build_report",
            shown="vitreous.cli.tables:print_pretraining",
            next="Fine-tune it with: vitreous train --model {model} --init {run}",
        ),
    )
}


@functools.cache
def tasks() -> dict[str, Task]:
    """Return every task by its name: ours, then those of other packages."""
    found = dict(TASKS)
    for source, task in plugins.rows(plugins.TASKS, "TASK", Task):
        taken = {word for other in found.values() for word in (other.name, other.verb)}
        clash = {task.name, task.verb} & taken
        if clash:
            why = f"there is a task or verb '{min(clash)}' already"
            plugins.leave_out(source.package, source.module, why)
        else:
            found[task.name] = task
    return found


def module_of(task: Task) -> TaskModule:
    """Import the module of a task."""
    return cast("TaskModule", load(task.module))


def build_report_of(name: str) -> Callable[..., Path]:
    """Import what writes the report of a task."""
    return cast("Callable[..., Path]", load(tasks()[name].report))


def task_at(folder: Path) -> Task:
    """Return the task of a run, or of an export of one.

    Raises:
        CheckpointError: nobody here knows it.
    """
    name = task_of(folder)
    known = tasks()
    if name not in known:
        raise CheckpointError(
            f"{folder} is a '{name}' run, a task that is not installed here (there are {', '.join(known)}).",
            "Install the package that provides it, or update vitreous.",
        )
    return known[name]


def verb_of(name: str) -> str:
    """Return the command that trains for a task."""
    return f"vitreous {tasks()[name].verb}"
