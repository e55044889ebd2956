"""Runs of any task: loaded, measured again and applied by the module of their task."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitreous.catalog.tasks import Product, Task, module_of, task_at, tasks
from vitreous.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    import xarray as xr

    from vitreous.inference.export import Parity


ONE_FILE = {"probabilities", "uncertainty", "novelty"}  # options that name a file beside a map


def load_run(path: str | Path) -> Any:
    """Load a run of any task.

    Args:
        path: the run folder.

    Returns:
        What the task's module says: a :class:`~vitreous.tasks.runs.Run` (``classify``), a
        :class:`~vitreous.tasks.restore.RestoreRun`, a :class:`~vitreous.tasks.recognize.RecognizeRun` or a
        :class:`~vitreous.tasks.pretrain.Pretrained`; each has ``path``, ``recipe`` and ``provenance``.

    Raises:
        CheckpointError: the folder holds no finished run, its files are damaged, or nobody here knows its task.
    """
    return module_of(_task(path)).load_run(path)


def evaluate(path: str | Path, **options: Any) -> dict[str, Any]:
    """Measure a run of any task again, on the test part of the scene that it was trained on.

    Args:
        path: the run folder.
        options: those of ``vitreous evaluate`` that the task knows; None stands for one that is not given.

    Returns:
        The metrics of ``metrics.json``.

    Raises:
        ConfigError: runs of this task have nothing to be measured by.
        CheckpointError: the folder holds no finished run.
        VitreousError: the scene or the labels have changed.
    """
    task = _task(path)
    if not task.figure:
        raise ConfigError(
            f"{path} is a '{task.name}' run, which cannot be evaluated.", _how_to_go_on(task, path)
        )
    measure = module_of(task).evaluate
    check_options(task, path, options, measure)
    given = {name: value for name, value in options.items() if value is not None}
    figures: dict[str, Any] = measure(path, **given)
    return figures


def predict(
    path: str | Path,
    scene: xr.DataArray | str | Path,
    out: str | Path | None = None,
    **options: Any,
) -> Product:
    """Apply a run of any task, or an export of one, to a scene or to images, and write what becomes of it.

    Args:
        path: a run folder, or the folder of an export.
        scene: an opened scene, or what :func:`vitreous.open_scene` opens; the path of a folder of images for a run
            that classifies images.
        out: the file to write; the task's own (``map.tif``, ``restored.tif``) in the current folder when None.
        options: those of ``vitreous predict`` that the task knows (see ``apply`` of its module); None stands for one
            that is not given.

    Returns:
        What was written, with ``paths``, ``pixels`` and ``seconds``.

    Raises:
        ConfigError: runs of this task are not applied to scenes, or an option is not for them.
        CheckpointError: the folder holds no finished run.
        VitreousError: the scene does not fit the run.
    """
    from vitreous.scenes import open_scene

    task = _task(path)
    check_product(task, path)
    check_options(task, path, options)
    given = {name: value for name, value in options.items() if value is not None}
    out = out or task.product
    if task.takes == "images":
        if not isinstance(scene, str | Path):
            raise ConfigError(
                f"{path} is a '{task.name}' run, which classifies images.",
                "Give the path of a folder of images.",
            )
        module: Any = module_of(task)
        done: Product = module.apply(path, scene, out, **given)
        return done
    opened = open_scene(scene) if isinstance(scene, str | Path) else scene
    return module_of(task).apply(path, opened, out, **given)


def export(path: str | Path, form: str, folder: str | Path, **options: Any) -> Parity:
    """Write a run of any task as graphs for other runtimes, and check them.

    Args:
        path: the run folder.
        form: ``onnx``, ``openvino`` or ``torch``.
        folder: the folder to write.
        options: those of ``vitreous export`` that the task knows; None stands for one that is not given.

    Raises:
        ConfigError: runs of this task are not exported, or an option is not for them.
        CheckpointError: the folder holds no finished run.
        VitreousError: the run cannot be written so, or not be loaded; nothing is left.
    """
    task = _task(path)
    write = getattr(module_of(task), "export", None)
    if write is None:
        raise ConfigError(
            f"{path} is a '{task.name}' run, which cannot be exported.", _how_to_go_on(task, path)
        )
    check_options(task, path, options, write)
    given = {name: value for name, value in options.items() if value is not None}
    parity: Parity = write(path, form, folder, **given)
    return parity


def predict_collection(
    path: str | Path,
    collection: str,
    out: str | Path,
    *,
    hints: dict[str, Any] | None = None,
    mosaic: bool = False,
    overwrite: bool = False,
    **options: Any,
) -> list[Product]:
    """Apply a run, or an export of one, to every scene of a collection.

    All scenes are checked before the first is computed; bands of other sensors are found by their wavelengths.

    Args:
        path: a run folder, or the folder of an export.
        collection: a folder, a pattern or a table of scenes.
        out: the folder for one product per scene, named after it; the file of a mosaic.
        hints: for the readers.
        mosaic: write one map of all scenes (:mod:`vitreous.inference.mosaic`).
        overwrite: replace products that are there.
        options: those of :func:`apply`.

    Raises:
        CollectionError: scenes that do not fit the run, or cannot be opened: all of them.
        ConfigError: products are there already, or this task makes no mosaics.
    """
    from vitreous.data.scene_set import open_collection

    task = _task(path)
    check_product(task, path)
    check_options(task, path, options)
    module: Any = module_of(task)
    given = {name: value for name, value in options.items() if value is not None}
    if mosaic:
        if not hasattr(module, "apply_mosaic"):
            raise ConfigError(
                f"Products of '{task.name}' runs are not joined into a mosaic.", "Omit --mosaic."
            )
        for name in ONE_FILE - inspect.signature(module.apply_mosaic).parameters.keys():
            if name in given:
                raise ConfigError(f"--{name} does not apply to a mosaic.", "Map scenes one by one.")
    scenes = open_collection(collection, hints or {}, module.contract_of(path))
    names = scenes.names
    if mosaic:
        return [module.apply_mosaic(path, scenes, names, out, **given)]
    for name in ONE_FILE & given.keys():
        raise ConfigError(
            f"--{name} names one file, but there is one map per scene.",
            "Add --mosaic, or map scenes one by one."
            if name == "probabilities"
            else "Map scenes one by one.",
        )
    files = [Path(out) / f"{name}{Path(task.product).suffix}" for name in names]
    taken = [file for file in files if file.exists()]
    if taken and not overwrite:
        raise ConfigError(
            f"{taken[0]} exists already" + (f", and {len(taken) - 1} more." if taken[1:] else "."),
            "Choose another folder, or add --overwrite.",
        )
    Path(out).mkdir(parents=True, exist_ok=True)
    return [
        module.apply(path, scene, file, **given) for scene, file in zip(scenes, files, strict=True)
    ]


def check_product(task: Task, path: str | Path) -> None:
    """Refuse to apply a run of a task whose runs are not applied to scenes.

    Raises:
        ConfigError: they are not.
    """
    if not task.product:
        raise ConfigError(
            f"{path} is a '{task.name}' run, which cannot be applied to a scene.",
            _how_to_go_on(task, path),
        )


def check_options(
    task: Task,
    path: str | Path,
    options: dict[str, Any],
    function: Callable[..., Any] | None = None,
) -> None:
    """Refuse options that a task does not know; None stands for one that is not given.

    Args:
        task: the task.
        path: of the run or export, for the message.
        options: by the name of the argument.
        function: what they are for; the task's ``apply`` when None.

    Raises:
        ConfigError: there is one.
    """
    known = inspect.signature(function or module_of(task).apply).parameters
    for name, value in options.items():
        if value is not None and name not in known:
            raise ConfigError(
                f"--{name.replace('_', '-')} does not apply to {path}, a '{task.name}' run.",
                "Omit it.",
            )


def _task(path: str | Path) -> Task:
    """Return the task of a run or export.

    Raises:
        CheckpointError: there is none in this folder, or its task is not known here.
    """
    folder = Path(path)
    if not folder.is_dir():
        verbs = " or ".join(f"'vitreous {task.verb}'" for task in tasks().values())
        raise CheckpointError(
            f"The run folder {folder} does not exist.", f"Create a run with {verbs}."
        )
    if not any((folder / name).is_file() for name in ("config.json", "export.json")):
        raise CheckpointError(
            f"{folder} is not a run folder: it has no config.json.",
            "Give a run folder made by vitreous, such as runs/classify/demo.",
        )
    return task_at(folder)


def _how_to_go_on(task: Task, path: str | Path) -> str:
    return task.next.format(run=shlex.quote(str(path)), model="NAME") + "." if task.next else ""
