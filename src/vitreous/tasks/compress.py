"""Making a trained run smaller or faster, and telling what that cost: a new run beside the old one.

What is done is the same for runs of every task. What belongs to one, its calibration data, the figure that its gate looks
at, its files, is a :class:`Subject`, which the task's row in ``catalog/tasks.py`` names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from vitreous.catalog.lookup import load
from vitreous.catalog.registry import TRAINING_STAGES, card, stage
from vitreous.catalog.results import versions
from vitreous.catalog.tasks import task_at, tasks
from vitreous.errors import ConfigError, VitreousError, listed
from vitreous.files import hidden_folder, write_json
from vitreous.inference.bench import timed
from vitreous.inference.cost import count_cost
from vitreous.layers.quantize import QuantMatMul, quantized_layers, set_enabled
from vitreous.methods._apply import Calibration, Report, apply, complete_settings
from vitreous.tasks import runs

TABLE = "compress.json"
LATENCY_CALLS = 30
ROUNDS = 2  # of measuring the speed of both in turn
GAIN = 1.05  # speed-up below which there is no gain to speak of
TUNE_RATE = 0.1  # of the run's own learning rate


@dataclass(frozen=True)
class Compressed:
    """What came of it.

    Attributes:
        path: the new run folder.
        rows: the table, one row per figure: ``figure``, ``before``, ``after``.
        layers: what the methods say of each part they touched.
        backed_off: layers that were left as they are, to keep the accuracy.
        notes: what a user should know, in sentences.
    """

    path: Path
    rows: list[dict[str, Any]]
    layers: list[dict[str, Any]]
    backed_off: list[str]
    notes: list[str]


class Subject(Protocol):
    """A run that is compressed, and its data. ``trained`` is whatever has a network in ``net``.

    Attributes:
        path: of the run.
        name: of its system.
        trained: what it trained.
        label: name and unit of the task's figure, e.g. ``OA, %``.
        looked_at: what the gate looks at, in words, e.g. ``412 validation pixels``.
        rate: what its throughput counts, e.g. ``pixels/s``.
        report: whether a report is written.
    """

    path: Path
    name: str
    trained: Any
    label: str
    looked_at: str
    rate: str
    report: bool

    def calibration(self) -> list[Calibration]:
        """Return inputs of its network, from training data."""
        ...

    def with_net(self, net: nn.Module) -> Any:
        """Return what was trained around another network."""
        ...

    def gate(self, trained: Any) -> float:
        """Return the task's figure on validation data, or on training data where there is too little of it."""
        ...

    def tuned(self, trained: Any, epochs: int, rate: float, folder: Path, show: bool) -> Any:
        """Train for some more epochs at a share of the run's learning rate."""
        ...

    def test(self, trained: Any) -> dict[str, Any]:
        """Return the scores of test data, as ``metrics.json`` holds them."""
        ...

    def figures(self, scores: Mapping[str, Any]) -> dict[str, float]:
        """Return the rows of the table that come from such scores, the task's own figure first."""
        ...

    def throughput(self, trained: Any) -> float:
        """Return how many pixels or images a second it computes."""
        ...

    def write(self, folder: Path, trained: Any, rows: list[dict[str, Any]], command: str) -> None:
        """Write the files of the new run but for its ``config.json``; ``rows`` are those of its metrics."""
        ...

    def write_report(self, folder: Path) -> None:
        """Write the report of the new run."""
        ...


@dataclass
class _Job:
    """A run, and what is to be done to it."""

    subject: Subject
    methods: list[str]
    settings: list[dict[str, Any]]
    batches: list[Calibration]
    tune_epochs: int
    tune_rate: float
    console: Console
    show: bool

    @property
    def figure(self) -> str:
        """The figure's name, e.g. ``OA``."""
        return self.subject.label.rpartition(", ")[0]

    @property
    def unit(self) -> str:
        """Its unit, e.g. ``%`` or ``dB``."""
        return self.subject.label.rpartition(", ")[2]

    def lost(self, drop: float) -> str:
        """Say how much of the figure is lost."""
        return f"{drop:.2f} {'points' if self.unit == '%' else self.unit} of {self.figure}"


def compress(
    path: str | Path,
    method: str | Sequence[str],
    settings: dict[str, Any] | None = None,
    *,
    images: int = 64,
    max_drop: float = 0.5,
    tune_epochs: int = 0,
    tune_rate: float = TUNE_RATE,
    command: str = "",
    show: bool = True,
) -> Compressed:
    """Apply one or more methods to a trained run, and write a new run with what they cost and brought.

    Methods are calibrated on training data. With ``tune_epochs`` the network is trained further behind each method that
    leaves it trainable, so that one call prunes, fine-tunes and quantizes. The gate compares the first and the last
    network by the task's own figure on validation data, or on training data where there is too little, never on test
    data: that only tells the result.

    Args:
        path: the run's folder, which is left as it is.
        method: a method's name, or several in the order of their stages (``prune``, ``reduce``, ``robust``, ``quantize``).
        settings: the methods' settings that differ from their variants'; where two methods have a setting, it is
            named ``METHOD.setting``.
        images: training pixels, tiles, crops or images to calibrate on.
        max_drop: how much of the task's figure may be lost (OA, top-1 and mAP in points, PSNR in dB).
        tune_epochs: epochs of training behind each method but quantization; 0: none.
        tune_rate: learning rate of that training, as a share of the run's.
        command: the command line, kept for the report.
        show: print progress.

    Raises:
        ModelError: a method cannot serve the model.
        ConfigError: methods that cannot be applied so, or a task whose runs cannot be compressed.
        VitreousError: the figure cannot be kept, even with the sensitive half of the layers left as they are.
    """
    methods = [method] if isinstance(method, str) else list(method)
    own = _settings_of(methods, settings or {})
    _check_methods(methods, tune_epochs)
    job = _open(Path(path), methods, own, images, tune_epochs, tune_rate, show)
    after, reports, backed_off = _within(job, max_drop)
    rows, metrics = _compare(job, after)
    notes = _notes(job, rows, backed_off)
    source = job.subject.path.resolve()
    folder = source.with_name("-".join([source.name, *methods]))
    # Under its own name when everything is there: a run that looks finished is.
    with hidden_folder(folder.parent, folder.name) as made:
        _write(job, made, after, reports, metrics, command)
        rows += _sizes(job, made)
        layers = [row for report in reports for row in report.rows]
        table = {
            "schema": 1,
            "from": str(job.subject.path),
            "method": " + ".join(methods),
            "settings": _noted(reports),
            "rows": rows,
            "layers": layers,
            "backed_off": backed_off,
            "notes": notes,
        }
        write_json(made / TABLE, table)
        if job.subject.report:
            job.subject.write_report(made)
        folder = runs.publish(made, folder)
    return Compressed(folder, rows, layers, backed_off, notes)


# -- what is asked for --------------------------------------------------------------------------------------


def _settings_of(methods: list[str], given: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the settings of each method, refusing what is no method and unknown settings.

    Raises:
        ModelError: there is no such method or setting.
        ConfigError: a setting that several methods have.
    """
    own: list[dict[str, Any]] = [{} for _ in methods]
    known = [complete_settings(name, {}) for name in methods]
    for key, value in given.items():
        owner, dot, plain = key.partition(".")
        if dot and owner in methods:
            own[methods.index(owner)][plain] = value
            continue
        owners = [number for number, settings in enumerate(known) if key in settings]
        if len(owners) > 1:
            names = [f"{methods[number]}.{key}" for number in owners]
            raise ConfigError(f"Several methods have a setting '{key}'.", f"Give {listed(names)}.")
        own[owners[0] if owners else -1][key] = value
    for name, settings in zip(methods, own, strict=True):
        complete_settings(name, settings)
    return own


def _check_methods(methods: list[str], tune_epochs: int) -> None:
    """Refuse methods that are not applied to finished runs, and training that would come too late.

    Raises:
        ConfigError: says which.
    """
    for name in methods:
        if stage(name) in {"adapt", *TRAINING_STAGES}:
            does = "adapts a model" if stage(name) == "adapt" else "acts"
            raise ConfigError(
                f"'{name}' {does} during training.",
                f"Use it with 'vitreous train --{stage(name)}'.",
            )
    if tune_epochs and all(stage(name) == "quantize" for name in methods):
        raise ConfigError(
            "Quantized weights are not trained further.",
            "Omit --tune-epochs, or prune or reduce first.",
        )


def _open(
    path: Path,
    methods: list[str],
    settings: list[dict[str, Any]],
    images: int,
    tune_epochs: int,
    tune_rate: float,
    show: bool,
) -> _Job:
    """Open the run.

    Raises:
        ConfigError: runs of its task cannot be compressed.
    """
    task = task_at(path)
    if not task.subject:
        able = [own.name for own in tasks().values() if own.subject]
        raise ConfigError(
            f"{path} is a '{task.name}' run, which cannot be compressed.",
            f"Give a run of {listed(able)}.",
        )
    console = Console(stderr=True, quiet=not show)
    subject: Subject = load(task.subject)(path, images, console)
    batches = subject.calibration()
    return _Job(subject, methods, settings, batches, tune_epochs, tune_rate, console, show)


# -- the gate -----------------------------------------------------------------------------------------------


def _within(job: _Job, max_drop: float) -> tuple[Any, list[Report], list[str]]:
    """Apply the methods, backing off layer by layer from the last one until the figure holds.

    Raises:
        VitreousError: it does not hold.
    """
    trained, reports = job.subject.trained, []
    for name, settings in zip(job.methods[:-1], job.settings[:-1], strict=True):
        trained, report = _changed(job, trained, name, settings)
        reports.append(report)
    start, last, settings = trained, job.methods[-1], job.settings[-1]
    trained, report = _changed(job, start, last, settings)
    before = job.subject.gate(job.subject.trained)
    drop = before - job.subject.gate(trained)
    unit = f" {job.unit}"
    job.console.print(
        f"{job.figure} on {job.subject.looked_at}: {before:.2f}{unit} → {before - drop:.2f}{unit} ({signed(-drop)})",
        highlight=False,
    )
    if drop <= max_drop:
        return trained, [*reports, report], []
    if stage(last) != "quantize":
        raise VitreousError(
            f"{' + '.join(job.methods)} costs {job.lost(drop)}, more than {max_drop:g}.",
            "Choose less aggressive settings, train further with --tune-epochs, or raise --max-drop.",
        )
    order = sensitivity(trained, [batch.images for batch in job.batches])
    count = 1
    while 2 * count <= len(order):
        left = order[:count]
        skip = [*settings.get("skip", []), *left]
        trained, report = _changed(job, start, last, {**settings, "skip": skip})
        drop = before - job.subject.gate(trained)
        job.console.print(
            f"with {count} of {len(order)} layers unquantized: {signed(-drop)} "
            f"{'points' if job.unit == '%' else job.unit}",
            highlight=False,
        )
        if drop <= max_drop:
            return trained, [*reports, report], left
        count *= 2
    raise VitreousError(
        f"{' + '.join(job.methods)} costs {job.lost(drop)} even with half of the layers unquantized; {max_drop:g} "
        "are allowed.",
        "Use more bits, or raise --max-drop.",
    )


def signed(change: float) -> str:
    """Write a change with its sign and two digits; what rounds to nothing has none of its own, so it is +0.00."""
    return f"{round(change, 2) + 0.0:+.2f}"


def _changed(job: _Job, trained: Any, method: str, settings: dict[str, Any]) -> tuple[Any, Report]:
    """Apply a method, and train further where that is asked for and possible."""
    job.console.print(f"applying {method}", highlight=False)
    net, report = apply(trained.net, method, calibration=job.batches, **settings)
    changed = job.subject.with_net(net)
    if job.tune_epochs and stage(method) != "quantize":
        job.console.print(f"training for {job.tune_epochs} epochs", highlight=False)
        with TemporaryDirectory(prefix="vitreous-tune-") as folder:
            changed = job.subject.tuned(
                changed, job.tune_epochs, job.tune_rate, Path(folder), job.show
            )
    return changed, report


@torch.inference_mode()
def sensitivity(trained: Any, batches: Sequence[Tensor]) -> list[str]:
    """Name the quantized layers, the one first that by itself changes the network's output most.

    Args:
        trained: with a quantized network.
        batches: its inputs, ``(batch, channels, side, side)``.
    """
    net = trained.net
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


def _compare(job: _Job, after: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Measure both; return the table, and the rows of both for ``metrics.json``, the new one first."""
    job.console.print("measuring accuracy and speed before and after", highlight=False)
    subject, both = job.subject, {"before": job.subject.trained, "after": after}
    image = job.batches[0].images[:1]
    tests = {key: subject.test(one) for key, one in both.items()}
    figures = {key: subject.figures(scores) for key, scores in tests.items()}
    speed = _in_turns(both, subject.throughput, max)
    latency = _in_turns(both, lambda one: _latency(one.net, image), min)
    macs = {key: count_cost(one.net, *image.shape[1:]).macs for key, one in both.items()}
    rows = [
        *(
            {"figure": label, **{key: figures[key][label] for key in both}}
            for label in figures["before"]
        ),
        {
            "figure": "weights at nominal bit width, MiB",
            **{key: _weights(one) for key, one in both.items()},
        },
        {"figure": "multiply-adds per image, M", **{k: v / 1e6 for k, v in macs.items()}},
        {"figure": subject.rate, **speed},
        {"figure": "latency per image, ms", **{k: 1e3 * v for k, v in latency.items()}},
    ]
    names = {"before": subject.name, "after": " + ".join([subject.name, *job.methods])}
    metrics = [
        {
            "name": names[key],
            "kind": card(subject.name).kind,
            "parameters": sum(p.numel() for p in both[key].parameters()),
            "trainable": None,
            "train_seconds": None,
            subject.rate.replace("/s", "_per_second"): speed[key],
            "val": None,
            "test": tests[key],
        }
        for key in ("after", "before")
    ]
    return rows, metrics


def _in_turns(
    both: dict[str, Any],
    measure: Callable[[Any], float],
    best: Callable[[list[float]], float],
) -> dict[str, float]:
    """Measure both in turn, so that whatever else the machine does hits both alike."""
    found: dict[str, list[float]] = {key: [] for key in both}
    for _ in range(ROUNDS):
        for key, one in both.items():
            found[key].append(measure(one))
    return {key: best(values) for key, values in found.items()}


def _latency(net: nn.Module, image: Tensor) -> float:
    """Return the median seconds of one image through a network."""
    with torch.inference_mode():
        return float(np.median(timed(lambda: net(image), LATENCY_CALLS)))


def _weights(trained: nn.Module) -> float:
    """Return what the weights take in MiB when each is stored in as many bits as it was rounded to."""
    bits = 32 * sum(p.numel() for p in trained.parameters())
    for _, layer in quantized_layers(trained):
        if not isinstance(layer, QuantMatMul):
            bits -= (32 - layer.weight_quantizer.bits) * layer.weight.numel()
    return bits / 8 / 2**20


def _sizes(job: _Job, folder: Path) -> list[dict[str, Any]]:
    """Return the row of the table that says how large the model files are."""
    sizes = [(path / runs.MODEL).stat().st_size / 2**20 for path in (job.subject.path, folder)]
    return [{"figure": "model file, MiB", "before": sizes[0], "after": sizes[1]}]


def _notes(job: _Job, rows: list[dict[str, Any]], backed_off: list[str]) -> list[str]:
    """Say in words what the figures mean for a user."""
    notes = []
    speed = next(row for row in rows if row["figure"] == job.subject.rate)
    gain = speed["after"] / speed["before"]
    if stage(job.methods[-1]) == "quantize":
        notes.append(
            "PyTorch only simulates low-bit arithmetic: "
            + (
                "this run is neither smaller nor faster"
                if len(job.methods) == 1
                else "quantization makes this run neither smaller nor faster"
            )
            + ". 'vitreous export' writes 8-bit models with real integer arithmetic."
        )
    elif gain < GAIN:
        notes.append(f"No speed-up on this machine ({gain:.2f}x).")
    else:
        notes.append(f"Speed-up on this machine: {gain:.2f}x.")
    if job.tune_epochs:
        notes.append(f"Trained for {job.tune_epochs} epochs behind each method but quantization.")
    if backed_off:
        notes.append(f"Not quantized, to preserve accuracy: {', '.join(backed_off)}.")
    return notes


def _noted(reports: Sequence[Report]) -> dict[str, Any]:
    """Return the methods' settings, of several each under its name."""
    if len(reports) == 1:
        return reports[0].settings
    return {report.method: report.settings for report in reports}


def _write(
    job: _Job,
    folder: Path,
    after: Any,
    reports: Sequence[Report],
    rows: list[dict[str, Any]],
    command: str,
) -> None:
    """Write the new run: what it was made from, the model, and its metrics and products."""
    config = runs.config_at(job.subject.path)
    config |= {"versions": versions(), "command": command, "finished": True}
    config["compressed"] = {
        "from": str(job.subject.path),
        "method": " + ".join(job.methods),
        "settings": _noted(reports),
        "tune_epochs": job.tune_epochs,
    }
    write_json(folder / runs.CONFIG, config)
    job.subject.write(folder, after, rows, command)
