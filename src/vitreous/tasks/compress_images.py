"""Runs of ``recognize`` that are compressed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import nn

from vitreous.catalog.tasks import TASKS
from vitreous.data.image_batches import Sized
from vitreous.data.provenance import image_leakage
from vitreous.files import write_json
from vitreous.inference.recognizer import BATCH, Recognizer
from vitreous.methods._apply import Calibration
from vitreous.tasks import recognize, runs
from vitreous.tasks.bench_images import images_per_second
from vitreous.tasks.image_metrics import image_score

GATE_IMAGES = 2000  # the gate looks at no more
FEWEST_GATE_IMAGES = 100  # of validation images that can say something about a point
TIMED = 5  # passes over a batch on the clock
_OTHERS = {"top5": "top-5, %", "f1": "F1, %", "exact": "all labels right, %"}


class ImagesSubject:
    """A network that classifies whole images (``tasks/compress.py: Subject``).

    Args:
        path: the run folder.
        images: training images to calibrate on.
        console: where to say what is done.

    Raises:
        VitreousError: the run cannot be loaded, or its images have changed.
    """

    rate = "images/s"

    def __init__(self, path: Path, images: int, console: Console) -> None:
        self.run = recognize.load_run(path)
        console.print(f"reading {self.run.recipe.images}", highlight=False, markup=False)
        self.path, self.name, self.report = path, self.run.name, self.run.recipe.report
        self.trained: Recognizer = self.run.recognizer
        self.label = "mAP, %" if self.trained.several else "top-1, %"
        self.data = recognize.open_collection(self.run.recipe, console)
        recognize.check_unchanged(path, self.data)
        self.sized = Sized(self.data.store, self.trained.size, self.trained.fill)
        val = self.data.of("val")
        few = len(val) < FEWEST_GATE_IMAGES or not self.data.targets[val].any()
        self.calibrated = self._some("train", images)
        self.gated = self._some("train" if few else "val", GATE_IMAGES)
        self.looked_at = f"{len(self.gated)} {'training' if few else 'validation'} images"

    def _some(self, role: str, count: int) -> recognize.Numbers:
        """Return the numbers of at most ``count`` images of a role, drawn at random."""
        draw = np.random.default_rng(self.run.recipe.seed)
        return np.sort(draw.permutation(self.data.of(role))[:count])

    def calibration(self) -> list[Calibration]:
        """Return training images as the network gets them at inference, with their classes where each has one."""
        own = self.trained
        classes = torch.from_numpy(self.data.targets[self.calibrated]).argmax(1)
        made = []
        for first in range(0, len(self.calibrated), BATCH):
            part = slice(first, first + BATCH)
            with torch.no_grad():
                inputs = own.preprocess(self.sized.images(self.calibrated[part].tolist()))
            made.append(Calibration(inputs, None if own.several else classes[part]))
        return made

    def with_net(self, net: nn.Module) -> Recognizer:
        """Return the same recognizer around another network."""
        own = self.trained
        names, size, several = own.class_names, own.size, own.several
        made = Recognizer(net, own.preprocess, own.contract, names, size, several=several)
        return made.eval()

    def gate(self, trained: Recognizer) -> float:
        """Return the top-1 accuracy or the mean average precision of the gate's images, in percent."""
        found = trained.predict(self.data.store, self.gated)
        score = image_score(found, self.data.targets[self.gated], several=trained.several)
        return TASKS[recognize.TASK].figure_scale * (score or 0.0)

    def tuned(
        self, trained: Recognizer, epochs: int, rate: float, folder: Path, show: bool
    ) -> Recognizer:
        """Train for some more epochs on the run's training images."""
        return recognize.train_further(
            trained, self.run.recipe, self.data, folder, epochs=epochs, rate=rate, show=show
        )

    def test(self, trained: Recognizer) -> dict[str, Any]:
        """Return the scores of the test images."""
        numbers = self.data.of("test")
        return recognize.scores_of(self.data, numbers, trained.predict(self.data.store, numbers))

    def figures(self, scores: Mapping[str, Any]) -> dict[str, float]:
        """Return top-1 and top-5, or mAP, F1 and the share of images with all labels right."""
        row = TASKS[recognize.TASK]
        labels = {row.figure: self.label, **_OTHERS}
        return {
            label: row.figure_scale * scores[name]
            for name, label in labels.items()
            if scores.get(name) is not None
        }

    def throughput(self, trained: Recognizer) -> float:
        """Return images a second, from physical values in memory to probabilities."""
        images = self.sized.images(self.gated[:BATCH].tolist())
        return images_per_second(trained, images, TIMED)

    def write(
        self, folder: Path, trained: Recognizer, rows: list[dict[str, Any]], command: str
    ) -> None:
        """Write model, predictions of the test images and metrics."""
        run, numbers = self.run, self.data.of("test")
        found = trained.predict(self.data.store, numbers)
        recognize.write_tested(folder, self.data, numbers, found)
        begun = image_leakage(run.start, self.data.store.digests[numbers]) if run.start else None
        metrics = recognize.metrics_of(self.data, trained.size, rows, begun)
        write_json(folder / runs.METRICS, metrics)
        recognize.save_recognizer(folder, trained, run.name, run.provenance)

    def write_report(self, folder: Path) -> None:
        """Write the report."""
        recognize.write_report(folder, self.data)
