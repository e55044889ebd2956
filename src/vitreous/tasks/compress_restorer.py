"""Runs of ``restore`` that are compressed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from vitreous.catalog.tasks import TASKS
from vitreous.data.blocks import TRAIN, VAL
from vitreous.data.degradations import spoil
from vitreous.errors import ModelError
from vitreous.files import write_json
from vitreous.inference.restore import SceneRestorer
from vitreous.layers.ranges import fill_invalid
from vitreous.layers.restorer import Restorer
from vitreous.methods._apply import Calibration
from vitreous.tasks import restore, runs
from vitreous.tasks.quality import FEWEST
from vitreous.tasks.streams import VALIDATED, stream

BATCH = 8  # crops of one calibration batch
TIMED = 3  # passes over the gate's area on the clock
_OTHERS = {"ssim": "SSIM", "sam": "SAM, degrees", "ergas": "ERGAS"}


class RestorerSubject:
    """A network that restores a scene (``tasks/compress.py: Subject``).

    Args:
        path: the run folder.
        images: crops of the training area to calibrate on.
        console: where to say what is done.

    Raises:
        ModelError: the run holds no network.
        VitreousError: it cannot be loaded, or its scene has changed.
    """

    label = TASKS[restore.TASK].figure_label
    rate = "pixels/s"

    def __init__(self, path: Path, images: int, console: Console) -> None:
        self.run = restore.load_run(path)
        if not runs.is_network(self.run.name):
            raise ModelError(
                f"{path} holds '{self.run.name}', which is not a network.",
                "Compress a run of a network.",
            )
        console.print(f"reading {self.run.recipe.source}", highlight=False)
        self.console, self.images = console, images
        self.path, self.name, self.report = path, self.run.name, self.run.recipe.report
        self.trained: SceneRestorer = self.run.restorer
        self.opened = restore.reopened(self.run)
        val = self.opened.sources.pieces[VAL]
        few = not val or min(min(piece.area.shape) for piece in val) < FEWEST
        self.gated = self.opened.cubes(self.trained, TRAIN if few else VAL)
        self.tested = self.opened.cubes(self.trained)
        count = sum(cube.clean[0].numel() for cube in self.gated)
        self.looked_at = f"{count} {'training' if few else 'validation'} pixels"

    def calibration(self) -> list[Calibration]:
        """Return degraded crops of the training areas, as training sees them."""
        generator = stream(self.run.recipe.seed, VALIDATED)
        degrade = self.opened.degrade
        sources = replace(self.opened.sources, contract=self.trained.contract)
        source = sources.crops(TRAIN, self.run.recipe.crop * degrade.factor)
        assert source is not None  # it has trained on them
        crops = source.draw(self.images, generator, self.run.recipe.flips)
        clean = self.trained.ranges(torch.stack([fill_invalid(crop)[0] for crop in crops]))
        spoilt: Tensor = spoil(degrade, clean, generator)
        return [Calibration(part) for part in spoilt.split(BATCH)]

    def with_net(self, net: nn.Module) -> SceneRestorer:
        """Return the same restorer around another network."""
        assert isinstance(net, Restorer)
        own = self.trained
        return SceneRestorer(net, own.ranges, own.contract, **own.settings()).eval()

    def gate(self, trained: SceneRestorer) -> float:
        """Return the PSNR of the validation area, in dB."""
        row = restore.measured(trained, self.name, self.gated)
        return float(row["test"][TASKS[restore.TASK].figure])

    def tuned(
        self, trained: SceneRestorer, epochs: int, rate: float, folder: Path, show: bool
    ) -> SceneRestorer:
        """Train for some more epochs of 25 steps on the training area."""
        return restore.train_further(
            trained, self.opened, folder, epochs=epochs, rate=rate, show=show
        )

    def test(self, trained: SceneRestorer) -> dict[str, Any]:
        """Return the quality of the test area."""
        scores: dict[str, Any] = restore.measured(trained, self.name, self.tested)["test"]
        return scores

    def figures(self, scores: Mapping[str, Any]) -> dict[str, float]:
        """Return PSNR, SSIM, SAM and ERGAS."""
        labels = {TASKS[restore.TASK].figure: self.label, **_OTHERS}
        return {label: scores[name] for name, label in labels.items() if scores[name] is not None}

    def throughput(self, trained: SceneRestorer) -> float:
        """Return pixels a second."""
        pixels = sum(cube.clean[0].numel() for cube in self.gated)
        started = time.perf_counter()
        for _ in range(TIMED):
            restore.measured(trained, self.name, self.gated)
        return TIMED * pixels / (time.perf_counter() - started)

    def write(
        self, folder: Path, trained: SceneRestorer, rows: list[dict[str, Any]], command: str
    ) -> None:
        """Write model, metrics and the restored scenes."""
        run, opened = self.run, self.opened
        own = rows if opened.degrade.factor > 1 else [*rows, restore.untouched(self.tested)]
        write_json(folder / runs.METRICS, opened.metrics(run, self.tested, own))
        if run.recipe.product:
            restore.write_products(folder, trained, opened.sources, self.console)
        restore.save_restorer(folder, trained, run.name, run.model_args, run.provenance)

    def write_report(self, folder: Path) -> None:
        """Write the report."""
        written = restore.load_run(folder).restorer
        shown = self.tested[: restore.SHOWN]
        restored = [restore.measure(written, self.name, cube)[1] for cube in shown]
        restore.write_report(folder, self.opened.sources, shown, restored)
