"""What trained runs and their exports cost to use on this machine, beside how right they are."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr

from vitreous.catalog.lookup import load
from vitreous.catalog.registry import stage
from vitreous.catalog.tasks import task_at, tasks
from vitreous.data.blocks import TEST
from vitreous.data.roles import Split
from vitreous.errors import ConfigError, listed
from vitreous.inference.bench import peak_memory, run_apart, timed
from vitreous.inference.export import neighbours
from vitreous.inference.export_format import DESCRIPTION
from vitreous.inference.pixels import classify_pixels
from vitreous.inference.postprocess import finished
from vitreous.inference.runtimes import Exported
from vitreous.inference.windows import Job, SceneClassifier, Window, aligned, step_of
from vitreous.report.record import Metrics, read_part
from vitreous.tasks.division import test_scene
from vitreous.tasks.export import load_for
from vitreous.tasks.labelled import LabelledScene
from vitreous.tasks.runs import CONFIG, METRICS, MODEL, Run, load_run

if TYPE_CHECKING:
    from vitreous.tasks.recognize import RecognizeRun

SIDE = 64  # pixels of the window that is classified on the clock


@dataclass(frozen=True)
class Entry:
    """What is measured.

    Attributes:
        path: a run folder, or an export within one.
        runtime: what computes it; its own when None.
        threads: threads of the processor; 0 for all.
        repeats: calls on the clock.
        pixels: test pixels or images that the accuracy is measured on; 0 for all.
    """

    path: str
    runtime: str | None = None
    threads: int = 0
    repeats: int = 9
    pixels: int = 1000


class Measured(Protocol):
    """What was found of one run; a dataclass of numbers and words.

    Attributes:
        counted: what is classified: ``pixels`` or ``images``.
        short: the same of one, in headings.
    """

    counted: ClassVar[str]
    short: ClassVar[str]

    @classmethod
    def measured(cls, entry: Entry, folder: Path) -> Self:
        """Measure in this process.

        Args:
            entry: what.
            folder: of its run.
        """
        ...

    @property
    def run(self) -> str:
        """Name of the run."""
        ...

    @property
    def runtime(self) -> str:
        """What computed it."""
        ...

    @property
    def precision(self) -> str:
        """Of its arithmetic, in words."""
        ...

    @property
    def figure(self) -> str:
        """What ``accuracy`` is, e.g. ``OA``."""
        ...

    @property
    def recorded(self) -> float | None:
        """The accuracy that ``metrics.json`` tells; None of other runtimes."""
        ...

    @property
    def accuracy(self) -> float:
        """The accuracy that was computed here."""
        ...

    @property
    def tested(self) -> int:
        """How many pixels or images that is of."""
        ...

    @property
    def rate(self) -> float:
        """Pixels or images per second."""
        ...

    @property
    def latency_ms(self) -> float:
        """Of one pixel or image by itself."""
        ...

    @property
    def size_mib(self) -> float:
        """Of its files."""
        ...

    @property
    def peak_memory_mib(self) -> float:
        """Of the process."""
        ...


@dataclass(frozen=True)
class RunFigures:
    """What was found.

    Attributes:
        run: name of the run.
        runtime: what computed it.
        precision: of its arithmetic, in words.
        recorded_oa: overall accuracy on all test pixels that the run's metrics.json tells; None of other runtimes.
        oa: overall accuracy on the test pixels that were classified here, as it was computed here.
        tested: how many those are.
        pixels_per_second: within a window of ``SIDE`` pixels, without reading and writing.
        latency_ms: of one pixel by itself.
        size_mib: of its files.
        peak_memory_mib: of the process, with the runtime, the network and one window.
    """

    run: str
    runtime: str
    precision: str
    recorded_oa: float | None
    oa: float
    tested: int
    pixels_per_second: float
    latency_ms: float
    size_mib: float
    peak_memory_mib: float

    counted: ClassVar[str] = "pixels"
    short: ClassVar[str] = "px"
    figure: ClassVar[str] = "OA"

    @property
    def recorded(self) -> float | None:
        """``recorded_oa``."""
        return self.recorded_oa

    @property
    def accuracy(self) -> float:
        """``oa``."""
        return self.oa

    @property
    def rate(self) -> float:
        """``pixels_per_second``."""
        return self.pixels_per_second

    @classmethod
    def measured(cls, entry: Entry, folder: Path) -> Self:
        """Measure in this process.

        Args:
            entry: what.
            folder: of its run.
        """
        loaded: Run | Exported = load_for(entry.path, entry.runtime)
        classifier = finished(loaded.classifier, loaded.postprocess)
        run = loaded if isinstance(loaded, Run) else load_run(folder)
        data, split = test_scene(run)
        pixels_per_second = throughput(classifier, data.scene, entry.repeats)
        latency = _seconds(classifier, data.scene, 1, entry.repeats)
        # Before the accuracy is measured, which reads further windows.
        memory = peak_memory() / 2**20
        pixels = _chosen(split, data, entry.pixels)
        return cls(
            run=folder.name,
            runtime="torch" if isinstance(loaded, Run) else loaded.runtime,
            precision=precision(loaded),
            recorded_oa=_recorded(folder) if isinstance(loaded, Run) else None,
            oa=_accuracy(classifier, data, pixels),
            tested=len(pixels),
            pixels_per_second=pixels_per_second,
            latency_ms=1e3 * latency,
            size_mib=size_of(loaded) / 2**20,
            peak_memory_mib=memory,
        )


def bench_run(
    path: str | Path,
    runtime: str | None = None,
    *,
    threads: int = 0,
    repeats: int = 9,
    pixels: int = 1000,
) -> Any:
    """Measure accuracy, speed, size and memory of a trained run or an export, in a process of its own.

    Args:
        path: a run folder, or an export within one.
        runtime: ``torch``, ``onnxruntime`` or ``openvino``; its own when None.
        threads: threads of the processor; 0 for all.
        repeats: calls on the clock.
        pixels: test pixels or images that the accuracy is measured on; 0 for all.

    Returns:
        The :class:`RunFigures`; of a network of images the :class:`~vitreous.tasks.bench_images.ImageFigures`.

    Raises:
        ConfigError: runs of this task are not measured so.
        VitreousError: it cannot be loaded or exported, or the measurement failed.
    """
    return measure_apart(Entry(str(path), runtime, threads, repeats, pixels))


def measure_apart(entry: Entry) -> Any:
    """Measure in a process of its own: peak memory belongs to a process, and so do caches and threads.

    What has to be exported first is exported here.

    Raises:
        VitreousError: it cannot be loaded or exported, or the measurement failed.
    """
    kind = measured_by(entry.path)
    load_for(entry.path, entry.runtime)
    fix = "Free some memory, and try again."
    return kind(**run_apart("vitreous.tasks.bench", asdict(entry), entry.path, fix))


def measure(entry: Entry) -> Any:
    """Measure in this process."""
    if entry.threads:
        torch.set_num_threads(entry.threads)
    return measured_by(entry.path).measured(entry, run_folder(entry.path))


def measured_by(path: str | Path) -> Any:
    """Return the class of what is found of a run, or of an export within one (:class:`Measured`).

    Raises:
        ConfigError: it is neither, or runs of its task are not compared so.
    """
    task = task_at(run_folder(path))
    if not task.bench:
        able = [own.name for own in tasks().values() if own.bench]
        raise ConfigError(
            f"{path} is a '{task.name}' run or the export of one, which is not compared by accuracy and speed.",
            f"Give runs of {listed(able)}.",
        )
    return load(task.bench)


def run_folder(path: str | Path) -> Path:
    """Return the run that a folder is, or that an export lies in.

    Raises:
        ConfigError: it is neither.
    """
    path = Path(path).resolve()
    for folder in (path, path.parent):
        if (folder / CONFIG).is_file():
            return folder
    raise ConfigError(
        f"{path} is neither a run nor an export inside a run folder.",
        "Accuracy is measured on the test pixels of a run: give a run, or an export inside its folder.",
    )


def precision(loaded: Run | RecognizeRun | Exported) -> str:
    """Say in words what the arithmetic of a network is."""
    if isinstance(loaded, Exported):
        kinds = loaded.description["quantization"]
        if kinds["integer"]:
            return "int8" + (" in part" if kinds["simulated"] else "")
        return "simulated" if kinds["simulated"] else "float32"
    quantized = any(stage(entry["name"]) == "quantize" for entry in loaded.methods)
    return "simulated" if quantized else "float32"


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Tell which of some (cost, gain) are on the front: none other costs no more and gains no less, and is better."""
    return [
        not any(c <= cost and g >= gain and (c, g) != (cost, gain) for c, g in points)
        for cost, gain in points
    ]


def _chosen(split: Split, data: LabelledScene, count: int) -> npt.NDArray[np.int64]:
    pixels = split.pixels(TEST)
    return neighbours(pixels, data.scene.sizes["x"], count) if count else pixels


def _accuracy(
    classifier: SceneClassifier, data: LabelledScene, pixels: npt.NDArray[np.int64]
) -> float:
    found = classify_pixels(classifier, data.scene, pixels)
    return float((found == data.classes_at(pixels)).mean())


def _recorded(folder: Path) -> float | None:
    if not (folder / METRICS).is_file():
        return None
    oa = read_part(Metrics, folder / METRICS).systems[0].test.oa
    return None if oa is None else float(oa)


def throughput(classifier: SceneClassifier, scene: xr.DataArray, repeats: int) -> float:
    """Return the pixels per second of a window in the middle of the scene, without reading and writing."""
    side = min(SIDE, scene.sizes["y"], scene.sizes["x"])
    return side**2 / _seconds(classifier, scene, side, repeats)


def _seconds(classifier: SceneClassifier, scene: xr.DataArray, side: int, repeats: int) -> float:
    """Return the median time of a window of ``side`` pixels in the middle of the scene."""
    height, width = scene.sizes["y"], scene.sizes["x"]
    middle = Window((height - side) // 2, (width - side) // 2, side, side)
    window = aligned(middle, step_of(classifier), height, width)
    job = Job(classifier, np.asarray(classifier.contract.select(scene), dtype=np.int64), False)
    values = job.read(scene, window)
    seconds = float(np.median(timed(lambda: classifier.classify(values), repeats)))
    return seconds * side**2 / window.pixels


def size_of(loaded: Run | RecognizeRun | Exported) -> int:
    """Return the bytes of the files of a network."""
    if not isinstance(loaded, Exported):
        return (loaded.path / MODEL).stat().st_size
    listed = loaded.description["files"]
    return sum((loaded.path / name).stat().st_size for name in (*listed, DESCRIPTION))


if __name__ == "__main__":
    print(json.dumps(asdict(measure(Entry(**json.loads(sys.argv[1]))))))
