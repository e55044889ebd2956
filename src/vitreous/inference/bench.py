"""How fast a network is on this machine, and how much memory it takes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from vitreous.catalog.arguments import ImageSize, checked_image_size
from vitreous.catalog.registry import create_model
from vitreous.errors import VitreousError
from vitreous.inference.cost import count_cost
from vitreous.layers.sizes import as_size

WARM_UP = 2  # calls before the clock runs: allocation, choice of kernels
ENOUGH_SECONDS = 20.0  # of measuring one setting: slow networks repeat less often ...
FEWEST = 5  # ... but never less than this
K = TypeVar("K")


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Attributes:
        model: name of a variant.
        bands: channels of the image.
        image_size: side of the image in pixels, or height and width.
        batch: images per call.
        repeats: calls on the clock.
        backward: also the gradients, as in training.
        num_classes: classes of the head.
        threads: threads of the processor; 0 for all.
    """

    model: str
    bands: int = 3
    image_size: ImageSize = 224
    batch: int = 8
    repeats: int = 15
    backward: bool = False
    num_classes: int = 1000
    threads: int = 0


@dataclass(frozen=True)
class Figures:
    """What was found.

    Attributes:
        setting: what was measured.
        parameters: weights of the network.
        macs: multiply-adds of one image, forward.
        milliseconds: median time of a call.
        spread: quartiles of it.
        images_per_second: of the median.
        peak_memory_mib: what the calls added to the process's memory, weights included.
    """

    setting: Setting
    parameters: int
    macs: int
    milliseconds: float
    spread: tuple[float, float]
    images_per_second: float
    peak_memory_mib: float


def bench_model(
    model: str,
    *,
    bands: int = 3,
    image_size: ImageSize = 224,
    batch_size: int = 8,
    repeats: int = 15,
    backward: bool = False,
    num_classes: int = 1000,
    threads: int = 0,
) -> Figures:
    """Measure what a network with fresh weights costs on this machine, in a process of its own.

    Args:
        model: name of a variant.
        bands: channels of the image.
        image_size: side of the image in pixels, or ``(height, width)``.
        batch_size: images per call.
        repeats: calls on the clock.
        backward: also time the gradients, as in training.
        num_classes: classes of the head.
        threads: threads of the processor; 0 for all.

    Raises:
        VitreousError: the measurement failed, for want of memory perhaps.
    """
    size = checked_image_size(f"image_size of {model}", image_size)
    return measure_apart(
        Setting(model, bands, size, batch_size, repeats, backward, num_classes, threads)
    )


def measure_apart(setting: Setting) -> Figures:
    """Measure in a process of its own: peak memory belongs to a process, and so do caches.

    Raises:
        VitreousError: the measurement failed, for want of memory perhaps.
    """
    found = run_apart(
        "vitreous.inference.bench", asdict(setting), setting.model, "Try a smaller --batch-size."
    )
    return Figures(**{**found, "setting": setting, "spread": tuple(found["spread"])})


def run_apart(module: str, argument: dict[str, Any], what: str, fix: str) -> dict[str, Any]:
    """Run a module in a process of its own, and return the JSON that it prints last.

    Args:
        module: takes one word, the argument as JSON.
        argument: what to measure.
        what: its name, for the message of a failure.
        fix: what to do then.

    Raises:
        VitreousError: the process failed.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, json.dumps(argument)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it was killed"])[-1]
        raise VitreousError(f"{what} could not be measured: {last}.", fix)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def measure(setting: Setting) -> Figures:
    """Measure in this process; calls on random images, after a warm-up."""
    if setting.threads:
        torch.set_num_threads(setting.threads)
    torch.manual_seed(0)
    before = peak_memory()
    model = create_model(
        setting.model,
        bands=setting.bands,
        num_classes=setting.num_classes,
        image_size=setting.image_size,
    )
    height, width = as_size(setting.image_size)
    cost = count_cost(model, setting.bands, height, width)
    images = torch.randn(setting.batch, setting.bands, height, width)
    model.train(setting.backward)

    def call() -> None:
        if setting.backward:
            model.zero_grad(set_to_none=True)
            model(images).sum().backward()
        else:
            with torch.inference_mode():
                model(images)

    seconds = timed(call, setting.repeats)
    low, middle, high = np.percentile(seconds, [25, 50, 75])
    return Figures(
        setting,
        cost.parameters,
        cost.macs,
        1e3 * float(middle),
        (1e3 * float(low), 1e3 * float(high)),
        setting.batch / float(middle),
        (peak_memory() - before) / 2**20,
    )


def timed(call: Callable[[], object], repeats: int) -> list[float]:
    """Return the seconds of each of ``repeats`` calls, fewer where they are slow."""
    started = time.perf_counter()
    for _ in range(WARM_UP):
        call()
        if time.perf_counter() - started > ENOUGH_SECONDS:  # slow calls are warm after one
            break
    seconds: list[float] = []
    while len(seconds) < repeats and (sum(seconds) < ENOUGH_SECONDS or len(seconds) < FEWEST):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return seconds


def cpu_seconds(
    calls: Mapping[K, Callable[[], object]],
    runs: int,
    typical: Callable[[list[float]], float] = min,
) -> dict[K, float]:
    """Return the processor's time for each call, its smallest or another typical one; the calls take turns.

    Unlike the time on the clock it does not count what other programs do meanwhile.
    """
    found = by_turns(calls, runs, clock=time.process_time)
    return {name: typical(seconds) for name, seconds in found.items()}


def cpu_ratios(ours: Callable[[], object], theirs: Callable[[], object], runs: int) -> list[float]:
    """Return, run by run, one call's processor time over another's; they take turns, on one thread."""
    with one_thread():
        found = by_turns({"ours": ours, "theirs": theirs}, runs, clock=time.process_time)
    return [a / b for a, b in zip(found["ours"], found["theirs"], strict=True)]


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread of the processor meanwhile."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def by_turns(
    calls: Mapping[K, Callable[[], object]],
    runs: int,
    *,
    warm_up: int = WARM_UP,
    clock: Callable[[], float] = time.perf_counter,
    told: Callable[[int], object] | None = None,
) -> dict[K, list[float]]:
    """Return the seconds of each call, run by run; the calls take turns, so that what else happens hits all alike.

    Args:
        calls: by name.
        runs: how often each is timed.
        warm_up: runs before that.
        clock: what is read.
        told: called after each timed run with its number, from 1.
    """
    found: dict[K, list[float]] = {name: [] for name in calls}
    for number in range(1 - warm_up, runs + 1):
        for name, call in calls.items():
            started = clock()
            call()
            if number > 0:
                found[name].append(clock() - started)
        if told and number > 0:
            told(number)
    return found


def write_csv(path: Path, rows: list[dict[str, object]]) -> None:
    """Write rows of equal keys."""
    import csv
    import io

    from vitreous.files import write_text

    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def peak_memory() -> int:
    """Return the largest resident size of this process so far, in bytes.

    Where Linux tells it, not by ``getrusage``: that begins with the size of the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE)
        if found is not None:
            return int(found[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    print(json.dumps(asdict(measure(Setting(**json.loads(sys.argv[1]))))))
