"""What trained runs and their exports cost to use on this machine, beside how right they are."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr

from vitreous.catalog.registry import stage
from vitreous.data.blocks import TEST
from vitreous.data.roles import Split
from vitreous.errors import ConfigError
from vitreous.inference.bench import peak_memory, run_apart, timed
from vitreous.inference.export import neighbours
from vitreous.inference.export_format import DESCRIPTION
from vitreous.inference.pixels import classify_pixels
from vitreous.inference.runtimes import Exported
from vitreous.inference.windows import Job, SceneClassifier, Window, aligned, step_of
from vitreous.report.record import Metrics, read_part
from vitreous.tasks.division import test_scene
from vitreous.tasks.export import exported_for
from vitreous.tasks.labelled import LabelledScene
from vitreous.tasks.runs import CONFIG, METRICS, MODEL, Run, load_run

SIDE = 64  # pixels of the window that is classified on the clock


@dataclass(frozen=True)
class Entry:
    """What is measured.

    Attributes:
        path: a run folder, or an export within one.
        runtime: what computes it; its own when None.
        threads: threads of the processor; 0 for all.
        repeats: calls on the clock.
        pixels: test pixels that the accuracy is measured on; 0 for all.
    """

    path: str
    runtime: str | None = None
    threads: int = 0
    repeats: int = 9
    pixels: int = 1000


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


def bench_run(
    path: str | Path,
    runtime: str | None = None,
    *,
    threads: int = 0,
    repeats: int = 9,
    pixels: int = 1000,
) -> RunFigures:
    """Measure accuracy, speed, size and memory of a trained run or an export, in a process of its own.

    Args:
        path: a run folder, or an export within one.
        runtime: ``torch``, ``onnxruntime`` or ``openvino``; its own when None.
        threads: threads of the processor; 0 for all.
        repeats: calls on the clock.
        pixels: test pixels that the accuracy is measured on; 0 for all.

    Raises:
        VitreousError: it cannot be loaded or exported, or the measurement failed.
    """
    return measure_apart(Entry(str(path), runtime, threads, repeats, pixels))


def measure_apart(entry: Entry) -> RunFigures:
    """Measure in a process of its own: peak memory belongs to a process, and so do caches and threads.

    What has to be exported first is exported here.

    Raises:
        VitreousError: it cannot be loaded or exported, or the measurement failed.
    """
    run_folder(entry.path)
    _load(entry)
    fix = "Free some memory, and try again."
    return RunFigures(**run_apart("vitreous.tasks.bench", asdict(entry), entry.path, fix))


def measure(entry: Entry) -> RunFigures:
    """Measure in this process."""
    if entry.threads:
        torch.set_num_threads(entry.threads)
    folder = run_folder(entry.path)
    loaded = _load(entry)
    classifier: SceneClassifier = loaded.classifier
    run = loaded if isinstance(loaded, Run) else load_run(folder)
    data, split = test_scene(run)
    pixels_per_second = throughput(classifier, data.scene, entry.repeats)
    latency = _seconds(classifier, data.scene, 1, entry.repeats)
    memory = peak_memory() / 2**20  # before the accuracy is measured, which reads further windows
    pixels = _chosen(split, data, entry.pixels)
    return RunFigures(
        run=folder.name,
        runtime="torch" if isinstance(loaded, Run) else loaded.runtime,
        precision=precision(loaded),
        recorded_oa=_recorded(folder) if isinstance(loaded, Run) else None,
        oa=_accuracy(classifier, data, pixels),
        tested=len(pixels),
        pixels_per_second=pixels_per_second,
        latency_ms=1e3 * latency,
        size_mib=_size(loaded) / 2**20,
        peak_memory_mib=memory,
    )


def _load(entry: Entry) -> Run | Exported:
    """Load a classifier, and refuse what is none."""
    exported = exported_for(entry.path, entry.runtime)
    if exported is None:
        return load_run(entry.path)
    assert exported.classifier
    return exported


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


def precision(loaded: Run | Exported) -> str:
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


def _size(loaded: Run | Exported) -> int:
    if isinstance(loaded, Run):
        return (loaded.path / MODEL).stat().st_size
    listed = loaded.description["files"]
    return sum((loaded.path / name).stat().st_size for name in (*listed, DESCRIPTION))


if __name__ == "__main__":
    print(json.dumps(asdict(measure(Entry(**json.loads(sys.argv[1]))))))
