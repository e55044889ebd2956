"""What runs of ``recognize`` and their exports cost to use on this machine, beside how right they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vitreous.data.image_batches import Sized
from vitreous.inference.bench import peak_memory, timed
from vitreous.inference.recognizer import BATCH, ImageClassifier
from vitreous.inference.runtimes import Exported
from vitreous.report.recognition import RecognitionMetrics
from vitreous.report.record import read_part
from vitreous.tasks import recognize
from vitreous.tasks.bench import Entry, precision, size_of
from vitreous.tasks.export import load_for
from vitreous.tasks.image_metrics import image_score
from vitreous.tasks.runs import METRICS


@dataclass(frozen=True)
class ImageFigures:
    """What was found.

    Attributes:
        run: name of the run.
        runtime: what computed it.
        precision: of its arithmetic, in words.
        figure: what ``accuracy`` is: ``top-1`` or ``mAP``.
        recorded: that of all test images that the run's metrics.json tells; None of other runtimes.
        accuracy: that of the test images that were classified here, as it was computed here.
        tested: how many those are.
        rate: images per second in batches of ``BATCH``, without reading and resizing.
        latency_ms: of one image by itself.
        size_mib: of its files.
        peak_memory_mib: of the process, with the runtime, the network and one batch.
    """

    run: str
    runtime: str
    precision: str
    figure: str
    recorded: float | None
    accuracy: float
    tested: int
    rate: float
    latency_ms: float
    size_mib: float
    peak_memory_mib: float

    counted: ClassVar[str] = "images"
    short: ClassVar[str] = "image"

    @classmethod
    def measured(cls, entry: Entry, folder: Path) -> Self:
        """Measure in this process.

        Args:
            entry: what; ``entry.pixels`` counts images here.
            folder: of the run.
        """
        loaded = load_for(entry.path, entry.runtime)
        run = recognize.load_run(folder)
        data = recognize.open_collection(run.recipe)
        recognize.check_unchanged(folder, data)
        own: ImageClassifier = loaded.recognizer
        numbers = np.random.default_rng(0).permutation(data.of("test"))
        numbers = np.sort(numbers[: entry.pixels or None])
        images = Sized(data.store, own.size, own.fill).images(numbers[:BATCH].tolist())
        rate = images_per_second(own, images, entry.repeats)
        latency = 1 / images_per_second(own, images[:1], entry.repeats)
        memory = peak_memory() / 2**20  # before the accuracy is measured, which reads all images
        found = own.predict(data.store, numbers)
        score = image_score(found, data.targets[numbers], several=own.several)
        exported = isinstance(loaded, Exported)
        return cls(
            run=folder.name,
            runtime=loaded.runtime if isinstance(loaded, Exported) else "torch",
            precision=precision(loaded),
            figure="mAP" if own.several else "top-1",
            recorded=None if exported else _recorded(folder, several=own.several),
            accuracy=score or 0.0,
            tested=len(numbers),
            rate=rate,
            latency_ms=1e3 * latency,
            size_mib=size_of(loaded) / 2**20,
            peak_memory_mib=memory,
        )


@torch.inference_mode()
def images_per_second(
    recognizer: ImageClassifier, images: Float[Tensor, "batch bands height width"], repeats: int
) -> float:
    """Return how many images of the network's size are classified in a second, from physical values in memory."""
    seconds = timed(lambda: recognizer.probabilities(images), repeats)
    return len(images) / float(np.median(seconds))


def _recorded(folder: Path, *, several: bool) -> float | None:
    if not (folder / METRICS).is_file():
        return None
    test = read_part(RecognitionMetrics, folder / METRICS).systems[0].test
    return test.map if several else test.top1
