"""Runs of ``classify`` that are compressed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from torch import Tensor, nn

from vitreous.catalog.tasks import TASKS
from vitreous.checkpoints import classifiers
from vitreous.data.blocks import TEST, TRAIN, VAL
from vitreous.data.regions import reduce_scene
from vitreous.data.roles import Splits
from vitreous.errors import ModelError
from vitreous.files import write_json
from vitreous.inference.pixels import classify_pixels
from vitreous.inference.postprocess import finished
from vitreous.methods._apply import Calibration
from vitreous.tasks import classify, runs, scoring
from vitreous.tasks.bench import throughput
from vitreous.tasks.labelled import LabelledScenes
from vitreous.tasks.training import train_further

BATCH = 32  # images of one calibration batch
GATE_PIXELS = 2000  # the accuracy gate looks at no more
FEWEST_GATE_PIXELS = 100  # of a validation part that can say something about half a point
WINDOWS = 3  # classified on the clock in each round
_SHARES = {"aa": "AA, %", "kappa": "kappa x 100"}


class SceneSubject:
    """A network that classifies the pixels of a scene (``tasks/compress.py: Subject``).

    Args:
        path: the run folder.
        images: training pixels (or tiles, in mode ``dense``) to calibrate on.
        console: where to say what is done.

    Raises:
        ModelError: the run holds no network.
        VitreousError: it cannot be loaded, or its data have changed.
    """

    label = TASKS[classify.TASK].figure_label
    rate = "pixels/s"

    def __init__(self, path: Path, images: int, console: Console) -> None:
        self.run = runs.load_run(path)
        if not isinstance(self.run.classifier, classifiers.Network):
            raise ModelError(
                f"{path} holds '{self.run.name}', which is not a network.",
                "Compress a run of a network.",
            )
        console.print(f"reading {self.run.recipe.source}", highlight=False)
        self.console, self.images = console, images
        self.path, self.name, self.report = path, self.run.name, self.run.recipe.report
        self.trained: classifiers.Network = self.run.classifier
        self.data, self.splits = classify.reopened(self.run)
        few = self.splits.counts["val"] < FEWEST_GATE_PIXELS
        role, seed = TRAIN if few else VAL, self.run.recipe.seed
        self.pixels = list(self.splits.some(role, GATE_PIXELS, seed))  # by scene
        count = sum(len(pixels) for _, pixels in self.pixels)
        self.looked_at = f"{count} {'training' if few else 'validation'} pixels"

    def calibration(self) -> list[Calibration]:
        """Return what the network is given in training, around some of the training pixels."""
        seed = self.run.recipe.seed
        return calibration_batches(self.trained, self.data, self.splits, self.images, seed)

    def with_net(self, net: nn.Module) -> classifiers.Network:
        """Return the same classifier around another network."""
        own = self.trained
        made = classifiers.make_classifier(net, own.preprocess, own.contract, own.settings())
        return made.eval()

    def gate(self, trained: classifiers.Network) -> float:
        """Return the share of the gate's pixels that are right, in percent."""
        right = [
            classify_pixels(trained, self.data[k].scene, pixels) == self.data[k].classes_at(pixels)
            for k, pixels in self.pixels
        ]
        return 100 * float(np.concatenate(right).mean())

    def tuned(
        self, trained: classifiers.Network, epochs: int, rate: float, folder: Path, show: bool
    ) -> classifiers.Network:
        """Train for some more epochs on the run's training pixels."""
        recipe = self.run.recipe
        changes = {
            "epochs": epochs,
            "learning_rate": rate * recipe.learning_rate,
            "warmup_epochs": 0,
            "patience": 0,
            "adapt": "scratch",
            "teacher": None,
            "distill": None,
            "devices": 1,
        }
        own = recipe.model_copy(update=changes)
        return train_further(own, self.data, self.splits, trained, folder, show=show)

    def test(self, trained: classifiers.Network) -> dict[str, Any]:
        """Return the scores of the test pixels."""
        found = scoring.by_classifier(finished(trained, self.run.postprocess), self.data)
        return scoring.score(found, self.data, self.splits, TEST, self.run.class_names)

    def figures(self, scores: Mapping[str, Any]) -> dict[str, float]:
        """Return OA, AA and kappa."""
        labels = {TASKS[classify.TASK].figure: self.label, **_SHARES}
        return {label: 100 * scores[name] for name, label in labels.items()}

    def throughput(self, trained: classifiers.Network) -> float:
        """Return pixels a second."""
        return throughput(trained, self.data.first, WINDOWS)

    def write(
        self, folder: Path, trained: classifiers.Network, rows: list[dict[str, Any]], command: str
    ) -> None:
        """Write model, split, map and metrics."""
        run = self.run
        self.splits.save(folder / runs.SPLIT)
        if run.recipe.map:
            whole = finished(trained, run.postprocess)
            mapped = scoring.map_scenes(
                folder, run.recipe, whole, self.data, self.splits, self.console
            )
            rows[0]["pixels_per_second"] = mapped.pixels_per_second
        size = classify.learned_size(run)
        metrics = scoring.metrics_of(self.data, self.splits, run.recipe, size, rows, run.start)
        write_json(folder / runs.METRICS, metrics)
        classifiers.save_classifier(
            folder / runs.MODEL,
            trained,
            name=run.name,
            model_args=run.model_args,
            class_names=run.class_names,
            class_colors=run.class_colors,
            provenance=run.provenance,
            class_codes=run.class_codes,
            postprocess=run.postprocess,
        )

    def write_report(self, folder: Path) -> None:
        """Write the report."""
        classify.write_report(folder, self.data, self.splits)


def calibration_batches(
    classifier: classifiers.Network, data: LabelledScenes, splits: Splits, images: int, seed: int
) -> list[Calibration]:
    """Return batches of what the network is given in training: images around some of the training pixels.

    Returns:
        Images ``(batch, channels, side, side)``, patches with their class or in mode ``dense`` tiles with the classes of
        their training pixels.
    """
    settings = classifier.settings()
    side = classifiers.image_size(settings)
    crops, classes = [], []
    for k, pixels in splits.some(TRAIN, images, seed):
        scene = data[k].scene
        cube = reduce_scene(
            scene,
            classifier.contract.select(scene),
            classifier.preprocess,
            pixels,
            reach=side // 2,
            padding=classifier.padding,
        )
        # Also where the crops begin: the border shifts both.
        rows, columns = np.divmod(pixels, scene.sizes["x"])
        crops.append(_crops(cube, rows, columns, side))
        if settings["mode"] != "dense":
            classes.append(torch.from_numpy(data[k].classes_at(pixels) - 1))
            continue
        labels = np.asarray(data[k].labels.values).astype(np.int64)
        known = np.where(splits[k].roles == TRAIN, labels, 0) - 1
        padded = torch.from_numpy(np.pad(known, side // 2, constant_values=-1))[None]
        classes.append(_crops(padded, rows, columns, side)[:, 0])
    parts = zip(torch.cat(crops).split(BATCH), torch.cat(classes).split(BATCH), strict=True)
    return [Calibration(*part) for part in parts]


def _crops(
    cube: Tensor, rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64], side: int
) -> Tensor:
    corners = zip(rows.tolist(), columns.tolist(), strict=True)
    return torch.stack([cube[:, r : r + side, c : c + side] for r, c in corners])
