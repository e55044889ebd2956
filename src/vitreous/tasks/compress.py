"""Making a trained run smaller or faster, and telling what that cost: a new run beside the old one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from torch import Tensor, nn

from vitreous.catalog.registry import card, stage
from vitreous.catalog.results import versions
from vitreous.checkpoints import classifiers
from vitreous.data.blocks import TEST, TRAIN, VAL
from vitreous.data.regions import reduce_scene
from vitreous.data.roles import Splits
from vitreous.errors import ConfigError, ModelError, VitreousError
from vitreous.files import hidden_folder, write_json
from vitreous.inference.bench import timed
from vitreous.inference.cost import count_cost
from vitreous.inference.pixels import classify_pixels
from vitreous.layers.quantize import (
    QuantMatMul,
    quantized_layers,
    set_enabled,
)
from vitreous.methods._apply import Report, apply, complete_settings
from vitreous.tasks import classify, runs, scoring
from vitreous.tasks.bench import throughput
from vitreous.tasks.labelled import LabelledScenes

TABLE = "compress.json"
BATCH = 32  # images of one calibration batch
GATE_PIXELS = 2000  # the accuracy gate looks at no more
FEWEST_GATE_PIXELS = 100  # of a validation part that can say something about half a point
LATENCY_CALLS = 30
ROUNDS = 2  # of measuring the speed of both in turn
WINDOWS = 3  # classified on the clock in each round
GAIN = 1.05  # speed-up below which there is no gain to speak of


@dataclass(frozen=True)
class Compressed:
    """What came of it.

    Attributes:
        path: the new run folder.
        rows: the table, one row per figure: ``figure``, ``before``, ``after``.
        layers: what the method says of each part it touched.
        backed_off: layers that were left as they are, to keep the accuracy.
        notes: what a user should know, in sentences.
    """

    path: Path
    rows: list[dict[str, Any]]
    layers: list[dict[str, Any]]
    backed_off: list[str]
    notes: list[str]


@dataclass
class _Job:
    """One run, its data, and what is to be done to it."""

    run: runs.Run
    data: LabelledScenes
    splits: Splits
    method: str
    settings: dict[str, Any]
    batches: list[Tensor]
    console: Console
    gate: list[tuple[int, npt.NDArray[np.int64]]] = field(default_factory=list)  # by scene
    role: Literal["training", "validation"] = "validation"  # of the gate's pixels

    @property
    def classifier(self) -> classifiers.Network:
        """The trained classifier."""
        assert isinstance(self.run.classifier, classifiers.Network)
        return self.run.classifier

    def accuracy(self, classifier: classifiers.Network) -> float:
        """Return the share of the gate's pixels that are right, in percent."""
        right = [
            classify_pixels(classifier, self.data[k].scene, pixels)
            == self.data[k].classes_at(pixels)
            for k, pixels in self.gate
        ]
        return 100 * float(np.concatenate(right).mean())

    def changed(self, **more: Any) -> tuple[classifiers.Network, Report]:
        """Return the classifier with the method applied."""
        net, report = apply(
            self.classifier.net, self.method, calibration=self.batches, **self.settings, **more
        )
        return with_net(self.classifier, net), report


def compress(
    path: str | Path,
    method: str,
    settings: dict[str, Any] | None = None,
    *,
    images: int = 64,
    max_drop: float = 0.5,
    command: str = "",
    show: bool = True,
) -> Compressed:
    """Apply a method to a trained run, and write a new run with what it cost and brought.

    The method is calibrated on training pixels. The gate compares both networks on the run's validation pixels, on
    training pixels where there are too few, never on test pixels: those only tell the result.

    Args:
        path: the run's folder, which is left as it is.
        method: a method's name, of the stage ``reduce`` or ``quantize``.
        settings: the method's settings that differ from its variant's.
        images: training pixels (or tiles, in mode ``dense``) to calibrate on.
        max_drop: points of overall accuracy that may be lost on the gate's pixels.
        command: the command line, kept for the report.
        show: print progress.

    Raises:
        ModelError: the method cannot serve the model.
        VitreousError: the accuracy cannot be kept, even with the sensitive half of the layers left as they are.
    """
    complete_settings(method, settings or {})  # refuses what is no method, and unknown settings
    if stage(method) == "adapt":
        raise ConfigError(
            f"'{method}' adapts a model during training.", "Use it with 'vitreous train --adapt'."
        )
    job = _open(Path(path), method, settings or {}, images, Console(stderr=True, quiet=not show))
    after, report, backed_off = _within(job, max_drop)
    rows, row_before, row_after = _compare(job, after)
    notes = _notes(job, rows, backed_off)
    own = job.run.path.resolve()
    folder = own.with_name(f"{own.name}-{method}")
    # Under its own name when everything is there: a run that looks finished is.
    with hidden_folder(folder.parent, folder.name) as made:
        _write(job, made, after, report, [row_after, row_before], command)
        rows += _sizes(job, made)
        table = {
            "schema": 1,
            "from": str(job.run.path),
            "method": method,
            "settings": report.settings,
            "rows": rows,
            "layers": report.rows,
            "backed_off": backed_off,
            "notes": notes,
        }
        write_json(made / TABLE, table)
        if job.run.recipe.report:
            classify.write_report(made, job.data, job.splits)
        folder = runs.publish(made, folder)
    return Compressed(folder, rows, report.rows, backed_off, notes)


def with_net(classifier: classifiers.Network, net: nn.Module) -> classifiers.Network:
    """Return the same classifier around another network."""
    own = classifiers.make_classifier(
        net, classifier.preprocess, classifier.contract, classifier.settings()
    )
    return own.eval()


# -- calibration --------------------------------------------------------------------------------------------


def _open(path: Path, method: str, settings: dict[str, Any], images: int, console: Console) -> _Job:
    run = runs.load_run(path)
    if not isinstance(run.classifier, classifiers.Network):
        raise ModelError(
            f"{path} holds '{run.name}', which is not a network.", "Compress a run of a network."
        )
    console.print(f"reading {run.recipe.source}", highlight=False)
    data, splits = classify.reopened(run)
    batches = calibration_batches(run.classifier, data, splits, images, run.recipe.seed)
    few = splits.counts["val"] < FEWEST_GATE_PIXELS
    gate = splits.some(TRAIN if few else VAL, GATE_PIXELS, run.recipe.seed)
    role: Literal["training", "validation"] = "training" if few else "validation"
    return _Job(run, data, splits, method, settings, batches, console, gate, role)


def calibration_batches(
    classifier: classifiers.Network, data: LabelledScenes, splits: Splits, images: int, seed: int
) -> list[Tensor]:
    """Return batches of what the network is given in training: images around some of the training pixels.

    Returns:
        ``(batch, channels, side, side)`` each: patches, or in mode ``dense`` tiles.
    """
    side = classifiers.image_size(classifier.settings())
    crops = []
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
        crops += [
            cube[:, r : r + side, c : c + side]
            for r, c in zip(rows.tolist(), columns.tolist(), strict=True)
        ]
    return list(torch.stack(crops).split(BATCH))


# -- the gate -----------------------------------------------------------------------------------------------


def _within(job: _Job, max_drop: float) -> tuple[classifiers.Network, Report, list[str]]:
    """Apply the method, backing off layer by layer until the accuracy holds.

    Raises:
        VitreousError: it does not hold.
    """
    job.console.print(f"applying {job.method}", highlight=False)
    classifier, report = job.changed()
    before = job.accuracy(job.classifier)
    drop = before - job.accuracy(classifier)
    job.console.print(
        f"OA on {sum(len(pixels) for _, pixels in job.gate)} {job.role} pixels: {before:.2f} % → {before - drop:.2f} % ({-drop:+.2f})",
        highlight=False,
    )
    if drop <= max_drop:
        return classifier, report, []
    if stage(job.method) != "quantize":
        raise VitreousError(
            f"{job.method} costs {drop:.2f} points of OA, more than {max_drop:g}.",
            "Choose less aggressive settings, or raise --max-drop.",
        )
    order = sensitivity(classifier, job.batches)
    count = 1
    while 2 * count <= len(order):
        left = order[:count]
        skip = [*job.settings.get("skip", []), *left]
        classifier, report = job.changed(skip=skip)
        drop = before - job.accuracy(classifier)
        job.console.print(
            f"with {count} of {len(order)} layers unquantized: {-drop:+.2f} points", highlight=False
        )
        if drop <= max_drop:
            return classifier, report, left
        count *= 2
    raise VitreousError(
        f"{job.method} costs {drop:.2f} points of OA even with half of the layers unquantized; {max_drop:g} are "
        "allowed.",
        "Use more bits, or raise --max-drop.",
    )


@torch.inference_mode()
def sensitivity(classifier: classifiers.Network, batches: Sequence[Tensor]) -> list[str]:
    """Name the quantized layers, the one first that by itself changes the network's output most.

    Args:
        classifier: with a quantized network.
        batches: its inputs, ``(batch, channels, side, side)``.
    """
    net = classifier.net
    layers = dict(quantized_layers(net))
    set_enabled(net, False)
    plain = [net(batch) for batch in batches]
    errors = {}
    for name, layer in layers.items():
        set_enabled(layer, True)
        found = zip(batches, plain, strict=True)
        errors[name] = sum(float((net(batch) - logits).square().sum()) for batch, logits in found)
        set_enabled(layer, False)
    set_enabled(net, True)
    return sorted(errors, key=errors.__getitem__, reverse=True)


# -- before and after ---------------------------------------------------------------------------------------


def _compare(
    job: _Job, after: classifiers.Network
) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]:
    """Measure both; return the table, and the rows of both for ``metrics.json``."""
    job.console.print("measuring accuracy and speed before and after", highlight=False)
    both = {"before": job.classifier, "after": after}
    tests = {
        key: scoring.score(
            scoring.by_classifier(one, job.data), job.data, job.splits, TEST, job.run.class_names
        )
        for key, one in both.items()
    }
    speed = _in_turns(both, lambda one: throughput(one, job.data.first, WINDOWS), max)
    latency = _in_turns(both, lambda one: _latency(one, job.batches[0][:1]), min)
    macs = {key: _macs(one, job.batches[0]) for key, one in both.items()}
    shares = {name: {key: 100 * tests[key][name] for key in both} for name in ("oa", "aa", "kappa")}
    rows = [
        *({"figure": f"{label}", **shares[name]} for name, label in _SHARES.items()),
        {
            "figure": "weights at nominal bit width, MiB",
            **{k: _weights(v) for k, v in both.items()},
        },
        {"figure": "multiply-adds per image, M", **{k: v / 1e6 for k, v in macs.items()}},
        {"figure": "pixels/s", **speed},
        {"figure": "latency per image, ms", **{k: 1e3 * v for k, v in latency.items()}},
    ]
    parameters = {key: runs.parameter_counts(one)[0] for key, one in both.items()}
    names = {"before": job.run.name, "after": f"{job.run.name} + {job.method}"}
    row_before, row_after = (
        {
            "name": names[key],
            "kind": card(job.run.name).kind,
            "parameters": parameters[key],
            "trainable": None,
            "train_seconds": None,
            "pixels_per_second": speed[key],
            "val": None,
            "test": tests[key],
        }
        for key in both
    )
    return rows, row_before, row_after


_SHARES = {"oa": "OA, %", "aa": "AA, %", "kappa": "kappa x 100"}


def _in_turns(
    both: dict[str, classifiers.Network],
    measure: Callable[[classifiers.Network], float],
    best: Callable[[list[float]], float],
) -> dict[str, float]:
    """Measure both in turn, so that whatever else the machine does hits both alike."""
    found: dict[str, list[float]] = {key: [] for key in both}
    for _ in range(ROUNDS):
        for key, one in both.items():
            found[key].append(measure(one))
    return {key: best(values) for key, values in found.items()}


def _latency(classifier: classifiers.Network, image: Tensor) -> float:
    """Return the median seconds of one image through the network."""
    with torch.inference_mode():
        return float(np.median(timed(lambda: classifier.net(image), LATENCY_CALLS)))


def _weights(classifier: classifiers.Network) -> float:
    """Return what the weights take in MiB when each is stored in as many bits as it was rounded to."""
    bits = 32 * sum(p.numel() for p in classifier.parameters())
    for _, layer in quantized_layers(classifier):
        if not isinstance(layer, QuantMatMul):
            bits -= (32 - layer.weight_quantizer.bits) * layer.weight.numel()
    return bits / 8 / 2**20


def _macs(classifier: classifiers.Network, batch: Tensor) -> int:
    return count_cost(classifier.net, *batch.shape[1:]).macs


def _sizes(job: _Job, folder: Path) -> list[dict[str, Any]]:
    """Return the row of the table that says how large the model files are."""
    sizes = [(path / runs.MODEL).stat().st_size / 2**20 for path in (job.run.path, folder)]
    return [{"figure": "model file, MiB", "before": sizes[0], "after": sizes[1]}]


def _notes(job: _Job, rows: list[dict[str, Any]], backed_off: list[str]) -> list[str]:
    """Say in words what the figures mean for a user."""
    notes = []
    speed = next(row for row in rows if row["figure"] == "pixels/s")
    gain = speed["after"] / speed["before"]
    if stage(job.method) == "quantize":
        notes.append(
            "PyTorch only simulates low-bit arithmetic: this run is neither smaller nor faster. "
            "'vitreous export' writes 8-bit models with real integer arithmetic."
        )
    elif gain < GAIN:
        notes.append(f"No speed-up on this machine ({gain:.2f}x).")
    else:
        notes.append(f"Speed-up on this machine: {gain:.2f}x.")
    if backed_off:
        notes.append(f"Not quantized, to preserve accuracy: {', '.join(backed_off)}.")
    return notes


def _write(
    job: _Job,
    folder: Path,
    after: classifiers.Network,
    report: Report,
    rows: list[dict[str, Any]],
    command: str,
) -> None:
    """Write the new run: the model, what it was made from, and its metrics and map."""
    recipe = job.run.recipe
    config = runs.config_at(job.run.path)
    config |= {"versions": versions(), "command": command, "finished": True}
    config["compressed"] = {
        "from": str(job.run.path),
        "method": job.method,
        "settings": report.settings,
    }
    write_json(folder / runs.CONFIG, config)
    job.splits.save(folder / runs.SPLIT)
    if recipe.map:
        rows[0]["pixels_per_second"] = scoring.map_scenes(
            folder, recipe, after, job.data, job.splits, job.console
        )
    metrics = scoring.metrics_of(
        job.data,
        job.splits,
        recipe,
        classify.learned_size(job.run),
        rows,
        job.run.start,
    )
    write_json(folder / runs.METRICS, metrics)
    classifiers.save_classifier(
        folder / runs.MODEL,
        after,
        name=job.run.name,
        model_args=job.run.model_args,
        class_names=job.run.class_names,
        class_colors=job.run.class_colors,
        provenance=job.run.provenance,
        class_codes=job.run.class_codes,
    )
