"""The figures of a report: small functions that return matplotlib figures and touch no global state.

Colours come from :data:`THEME`. In the page each is written as a CSS variable, so a figure is light or dark as
its reader likes; saved as an image it has the light colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from vitreous.report.record import (
    AreaEntry,
    CandidateEntry,
    Log,
    Number,
    Reliability,
    System,
    plain,
)
from vitreous.report.spectra import ClassSpectrum

INK, MUTED, GRID = "#1c2127", "#5c6672", "#dfe3e8"
BLUE, ORANGE, GREEN, VERMILION = "#0b6bb5", "#b87b03", "#04855f", "#c4520a"

THEME = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    BLUE: "var(--blue)",
    ORANGE: "var(--orange)",
    GREEN: "var(--green)",
    VERMILION: "var(--vermilion)",
}

LABELLED_CLASSES = 60  # more names than this cannot be read beside a matrix
NUMBERED_CLASSES = 24  # nor more counts than this inside one
NAME_LENGTH = 30


def loss_figure(log: Log) -> Figure | None:
    """Plot training and validation loss over the epochs; None where the log holds neither."""
    return _curves(
        log,
        "Loss",
        [("train_loss", "training", BLUE, "-"), ("val_loss", "validation", ORANGE, "-")],
    )


def accuracy_figure(log: Log) -> Figure | None:
    """Plot OA, AA and kappa over the epochs; None where the log holds none."""
    return _curves(
        log,
        "Accuracy",
        [
            ("train_oa", "training OA", BLUE, "-"),
            ("val_oa", "validation OA", ORANGE, "-"),
            ("val_aa", "validation AA", GREEN, (0, (4, 1.5))),
            ("val_kappa", "validation κ", VERMILION, (0, (1, 1))),
        ],
    )


def recognition_figure(log: Log) -> Figure | None:
    """Plot the accuracy on images over the epochs; None where the log holds none."""
    return _curves(
        log,
        "Accuracy",
        [
            ("train_top1", "training top-1", BLUE, "-"),
            ("val_top1", "validation top-1", ORANGE, "-"),
            ("val_top5", "validation top-5", GREEN, (0, (4, 1.5))),
            ("val_map", "validation mAP", ORANGE, "-"),
        ],
    )


def psnr_figure(log: Log) -> Figure | None:
    """Plot the PSNR of the validation crops over the epochs; None where the log holds none."""
    return _curves(log, "PSNR (dB)", [("val_psnr", "validation", ORANGE, "-")])


def rate_figure(log: Log) -> Figure | None:
    """Plot the learning rate over the epochs; None where the log does not hold it."""
    return _curves(log, "Learning rate", [("learning_rate", "learning rate", MUTED, "-")])


def _row_name(name: str, value: int) -> str:
    """Return a class's name and number, the number once where the name is nothing else."""
    shown = plain(name, NAME_LENGTH)
    return shown if name in (str(value), f"class {value}") else f"{shown}  {value}"


class Confused(Protocol):
    """Scores with a confusion matrix."""

    @property
    def confusion(self) -> list[list[int]]:
        """Rows are the truth, columns what was predicted."""

    @property
    def unclassified(self) -> list[int]:
        """Per class what has no prediction; may be empty."""


def confusion_figure(
    scores: Confused, names: Sequence[str], values: Sequence[int], predicted: str = "map"
) -> Figure:
    """Draw the confusion matrix: colours are shares of the true class, numbers are pixels or images.

    Args:
        scores: holds the matrix, rows truth, columns map.
        names: of the classes in the matrix' order.
        values: their numbers.
        predicted: what the columns are called.
    """
    matrix = np.array(scores.confusion, dtype=np.int64)
    count = len(matrix)
    tested = matrix.sum(axis=1) + np.array(scores.unclassified or np.zeros(count), dtype=np.int64)
    share = matrix / np.maximum(tested, 1)[:, None]
    size = float(np.clip(150 / count, 4.2, 8))
    rows = [_row_name(name, value) for name, value in zip(names, values, strict=True)]
    side, left = float(np.clip(0.36 * count, 2.4, 6.6)), _text_width(rows, size) + 0.35
    figure, axes = _placed(side, side, left=left, right=0.35, top=0.45, bottom=0.1)
    # Transparency instead of a colour scale: a light share is the page's own background in either theme.
    colors = np.zeros((count, count, 4))
    colors[..., :3] = _rgb(VERMILION)
    np.fill_diagonal(colors[..., 0], _rgb(BLUE)[0])
    np.fill_diagonal(colors[..., 1], _rgb(BLUE)[1])
    np.fill_diagonal(colors[..., 2], _rgb(BLUE)[2])
    colors[..., 3] = np.where(matrix > 0, 0.06 + 0.94 * share, 0)
    axes.imshow(colors, interpolation="none", aspect="equal")
    if count <= NUMBERED_CLASSES:
        _write_counts(axes, matrix, share)
    _style(axes, grid=False)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xlabel(predicted, color=MUTED, fontsize=8)
    axes.set_ylabel("truth", color=MUTED, fontsize=8)
    if count <= LABELLED_CLASSES:
        axes.set_yticks(range(count), rows, fontsize=size, color=INK, parse_math=False)
        axes.set_xticks(range(count), [str(value) for value in values], fontsize=size, color=INK)
    axes.tick_params(length=0)
    axes.set_xticks(np.arange(count + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(count + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=GRID, linewidth=0.6 if count <= NUMBERED_CLASSES else 0.2)
    axes.tick_params(which="minor", length=0)
    return figure


def systems_figure(systems: Sequence[System]) -> Figure:
    """Compare systems: a dot for each accuracy on the test pixels, a line for its 95 % interval."""
    names = [plain(system.name, NAME_LENGTH) for system in systems]
    left, height = _text_width(names, 8.5) + 0.15, 0.3 * len(systems)
    figure = Figure(figsize=(7.6, height + 0.65))
    panels = figure.subplots(1, 3, sharey=True)
    figure.subplots_adjust(
        left=left / 7.6,
        right=0.98,
        bottom=0.3 / (height + 0.65),
        top=1 - 0.35 / (height + 0.65),
        wspace=0.14,
    )
    measures = ("OA", "AA", "κ")
    for axes, title, key in zip(panels, measures, ("oa", "aa", "kappa"), strict=True):
        _style(axes, grid=False)
        axes.grid(axis="x", color=GRID, linewidth=0.7)
        axes.spines["left"].set_visible(False)
        axes.spines["bottom"].set_visible(False)
        for row, system in enumerate(systems):
            _interval(
                axes,
                row,
                getattr(system.test, key),
                getattr(system.test, f"{key}_ci"),
                first=row == 0,
            )
        axes.set_title(title, fontsize=8.5, color=INK, fontweight="bold", loc="left")
        axes.xaxis.set_major_locator(MaxNLocator(3))
        low, high = axes.get_xlim()
        decimals = 0 if high - low > 0.04 else 1
        if key != "kappa":
            axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=decimals))
        axes.margins(x=0.1)
        axes.tick_params(length=0)
    panels[0].set_yticks(range(len(names)), names, fontsize=8.5, color=INK, parse_math=False)
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    return figure


def candidates_figure(rows: Sequence[CandidateEntry]) -> Figure:
    """Compare candidates: a dot for each accuracy in cross-validation with its interval, a tick for each fold."""
    names = [plain(row.name, NAME_LENGTH) for row in rows]
    height, left = 0.3 * len(rows), _text_width(names, 8.5) + 0.15
    figure, axes = _placed(7.4 - left, height, left=left, right=0.2, top=0.35, bottom=0.3)
    _style(axes, grid=False)
    axes.grid(axis="x", color=GRID, linewidth=0.7)
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_visible(False)
    for place, row in enumerate(rows):
        folds = [value for value in row.by_fold if value is not None]
        axes.plot(folds, [place] * len(folds), "|", color=MUTED, markersize=8, alpha=0.7)
        _interval(axes, place, row.oa, row.oa_ci, first=row.chosen)
    axes.set_title("OA in cross-validation", fontsize=8.5, color=INK, fontweight="bold", loc="left")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.margins(x=0.05)
    axes.tick_params(length=0)
    axes.set_yticks(range(len(names)), names, fontsize=8.5, color=INK, parse_math=False)
    axes.set_ylim(len(names) - 0.4, -0.6)
    return figure


def spectrum_figure(
    spectrum: ClassSpectrum,
    color: str,
    centres: npt.NDArray[np.float64] | None,
    overall: npt.NDArray[np.float64],
    limits: tuple[float, float],
) -> Figure:
    """Plot a class's mean spectrum with one standard deviation on each side.

    Args:
        spectrum: mean and deviation over the bands, NaN at unused ones.
        color: of the class.
        centres: ``(bands,)`` in nm; band numbers are used when None.
        overall: ``(bands,)`` mean over all classes, drawn as a thin line to compare with.
        limits: of the vertical axis, common to all classes.
    """
    figure, axes = _placed(2.46, 1.33, left=0.39, right=0.05, top=0.07, bottom=0.35)
    position = centres if centres is not None else np.arange(1.0, len(spectrum.mean) + 1)
    columns = np.stack([spectrum.mean, spectrum.deviation, overall])
    position, (mean, deviation, common) = with_gaps(position, columns, np.isfinite(spectrum.mean))
    marker = "o" if np.isfinite(mean).sum() <= 16 else None
    axes.fill_between(
        position, mean - deviation, mean + deviation, color=color, alpha=0.55, linewidth=0
    )
    axes.plot(position, common, color=MUTED, linewidth=0.8, linestyle=(0, (2, 1.5)))
    axes.plot(position, mean, color=INK, linewidth=1.3, marker=marker, markersize=3)
    axes.set_ylim(limits)
    _style(axes)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.ticklabel_format(axis="y", scilimits=(-2, 5))
    axes.yaxis.get_offset_text().set(fontsize=6.5, color=MUTED)
    axes.set_xlabel("nm" if centres is not None else "band", fontsize=7.5, color=MUTED, labelpad=1)
    return figure


def restored_spectrum_figure(
    degraded: npt.NDArray[np.floating],
    clean: npt.NDArray[np.floating],
    restored: npt.NDArray[np.floating],
    centres: npt.NDArray[np.float64] | None,
) -> Figure:
    """Plot one pixel's spectrum as it was, as it was spoilt, and as it was restored.

    Args:
        degraded: ``(bands,)``.
        clean: ``(bands,)``.
        restored: ``(bands,)``.
        centres: ``(bands,)`` in nm; band numbers are used when None.
    """
    figure, axes = _placed(3.4, 2.0, left=0.5, right=0.08, top=0.1, bottom=0.4)
    position = centres if centres is not None else np.arange(1.0, len(clean) + 1)
    columns = np.stack([degraded, clean, restored]).astype(np.float64)
    position, (spoilt, true, made) = with_gaps(position, columns, np.isfinite(clean))
    axes.plot(position, spoilt, color=MUTED, linewidth=0.7, alpha=0.7)
    axes.plot(position, made, color=BLUE, linewidth=1.4)
    axes.plot(position, true, color=INK, linewidth=1.0, linestyle=(0, (3, 1.5)))
    _style(axes)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("nm" if centres is not None else "band", fontsize=7.5, color=MUTED)
    return figure


def bands_figure(
    lines: Sequence[tuple[str, npt.NDArray[np.float64]]], centres: npt.NDArray[np.float64] | None
) -> Figure:
    """Plot the PSNR of every band, one line per system, the trained one first.

    Args:
        lines: name and ``(bands,)`` PSNR in dB of each.
        centres: ``(bands,)`` in nm; band numbers are used when None.
    """
    figure, axes = _placed(7.2, 2.3, left=0.5, right=0.08, top=0.28, bottom=0.62)
    colors = [BLUE, MUTED, ORANGE, GREEN, VERMILION]
    for number, (name, values) in enumerate(lines):
        position = centres if centres is not None else np.arange(1.0, len(values) + 1)
        position, (shown,) = with_gaps(position, values[None], np.isfinite(values))
        axes.plot(
            position,
            shown,
            color=colors[number % len(colors)],
            linewidth=1.6 if number == 0 else 1.0,
            linestyle="-" if number < len(colors) else (0, (2, 1)),
            label=plain(name, NAME_LENGTH),
        )
    _style(axes)
    axes.set_title("PSNR (dB)", fontsize=9, color=INK, fontweight="bold", loc="left")
    axes.set_xlabel("nm" if centres is not None else "band", fontsize=8, color=MUTED)
    axes.legend(
        frameon=False,
        fontsize=8,
        labelcolor=INK,
        ncols=6,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.13),
    )
    return figure


def areas_figure(
    areas: Sequence[AreaEntry], names: Sequence[str], colors: Sequence[str], unit: str
) -> Figure:
    """Plot the area of each class: a bar on the map, and the estimate with its 95 % interval.

    Args:
        areas: of the classes.
        names: of the classes.
        colors: of the classes.
        unit: of the areas.
    """
    shown = [plain(name, NAME_LENGTH) for name in names]
    height, left = 0.27 * len(areas), _text_width(shown, 8.5) + 0.15
    figure, axes = _placed(5.6, height, left=left, right=0.25, top=0.1, bottom=0.45)
    for row, (area, color) in enumerate(zip(areas, colors, strict=True)):
        axes.barh(row, area.mapped or 0, height=0.62, color=color, alpha=0.55, linewidth=0)
        if area.low is not None and area.high is not None:
            axes.plot([area.low, area.high], [row, row], color=INK, linewidth=1.6)
        if area.estimate is not None:
            axes.plot([area.estimate], [row], marker="o", color=INK, markersize=4.5)
    _style(axes, grid=False)
    axes.grid(axis="x", color=GRID, linewidth=0.7)
    axes.tick_params(length=0)
    axes.set_yticks(range(len(shown)), shown, fontsize=8.5, color=INK, parse_math=False)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    words = f"bar: area on the map; point and line: estimate and 95 % interval ({unit})"
    axes.set_xlabel(words, fontsize=8, color=MUTED)
    return figure


def reliability_figure(found: Reliability) -> Figure:
    """Plot accuracy over the largest probability, a point for each range; larger points hold more pixels."""
    figure, axes = _placed(2.8, 2.8, left=0.55, right=0.12, top=0.12, bottom=0.45)
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (3, 2)))
    known = [(b.confidence, b.accuracy, b.pixels) for b in found.bins if b.pixels]
    points = [(c, a, n) for c, a, n in known if c is not None and a is not None]
    sizes = [12 + 150 * n / max(found.pixels, 1) for _, _, n in points]
    axes.plot([c for c, _, _ in points], [a for _, a, _ in points], color=BLUE, linewidth=1.0)
    axes.scatter([c for c, _, _ in points], [a for _, a, _ in points], s=sizes, color=BLUE)
    _style(axes)
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("largest probability", fontsize=8, color=MUTED)
    axes.set_ylabel("right", fontsize=8, color=MUTED)
    return figure


def with_gaps(
    position: npt.NDArray[np.float64], columns: npt.NDArray[np.float64], used: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Order bands by wavelength and put a NaN where a line must break.

    A line breaks at bands that are not used, and where bands were removed before: where a step is more than
    three times the usual one (detectors that overlap make small steps back, which ordering mends).

    Args:
        position: ``(bands,)`` wavelengths or band numbers.
        columns: ``(n, bands)`` values.
        used: ``(bands,)`` False at unused bands.

    Returns:
        Positions ``(m,)`` and values ``(n, m)``, NaN between separate stretches.
    """
    known = np.isfinite(position)
    order = np.flatnonzero(known)[np.argsort(position[known], kind="stable")]
    position, columns, used = position[order], columns[:, order], used[order]
    skipped = np.cumsum(~used)[used]
    position, columns = position[used], columns[:, used]
    if len(position) < 2:
        return position, columns
    steps = np.diff(position)
    breaks = np.flatnonzero((np.diff(skipped) > 0) | (steps > 3 * np.median(steps))) + 1
    if (
        len(position) <= 16
    ):  # a handful of broad bands: their spacing says nothing about removed ones
        breaks = np.flatnonzero(np.diff(skipped) > 0) + 1
    middle = (position[breaks - 1] + position[breaks]) / 2
    return np.insert(position, breaks, middle), np.insert(columns, breaks, np.nan, axis=1)


def _curves(log: Log, title: str, lines: Sequence[tuple[str, str, str, Any]]) -> Figure | None:
    drawn = [
        (log[name], label, color, dashes)
        for name, label, color, dashes in lines
        if name in log and np.isfinite(log[name]).any()
    ]
    if not drawn:
        return None
    figure, axes = _placed(3.1, 1.8, left=0.52, right=0.08, top=0.28, bottom=0.42)
    epochs = log["epoch"]
    for values, label, color, dashes in drawn:
        known = np.isfinite(values) & np.isfinite(epochs)
        marker = "o" if known.sum() < 3 else None
        axes.plot(
            epochs[known],
            values[known],
            color=color,
            linestyle=dashes,
            linewidth=1.6,
            marker=marker,
            markersize=4,
            label=label,
        )
    _style(axes)
    axes.set_title(title, fontsize=9, color=INK, fontweight="bold", loc="left")
    axes.set_xlabel("epoch", fontsize=8, color=MUTED)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    if title == "Accuracy":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    if len(drawn) > 1:
        axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    return figure


def _placed(
    width: float, height: float, *, left: float, right: float, top: float, bottom: float
) -> tuple[Figure, Axes]:
    # Everything in inches. An automatic layout measures every label twice: half of a report's time.
    full = (left + width + right, bottom + height + top)
    figure = Figure(figsize=full)
    return figure, figure.add_axes(
        (left / full[0], bottom / full[1], width / full[0], height / full[1])
    )


def _text_width(lines: Sequence[str], size: float) -> float:
    return max(map(len, lines), default=0) * size * 0.55 / 72


def _interval(axes: Axes, row: int, value: Number, interval: Any, *, first: bool) -> None:
    color = BLUE if first else MUTED
    low, high = interval or (None, None)
    if low is not None and high is not None:
        axes.plot(
            [low, high], [row, row], color=color, linewidth=2.4, alpha=0.55, solid_capstyle="round"
        )
    if value is not None:
        axes.plot([value], [row], marker="o", color=color, markersize=6.5 if first else 5)


def _write_counts(
    axes: Axes, matrix: npt.NDArray[np.int64], share: npt.NDArray[np.float64]
) -> None:
    size = 8.0 if len(matrix) <= 12 else 7.0
    for row, column in zip(*np.nonzero(matrix), strict=True):
        count = int(matrix[row, column])
        axes.text(
            column,
            row,
            _compact(count),
            ha="center",
            va="center",
            fontsize=size,
            color="#ffffff" if share[row, column] > 0.45 else INK,
        )


def _compact(count: int) -> str:
    if count < 10_000:
        return str(count)
    return f"{count / 1000:.0f}k" if count < 1_000_000 else f"{count / 1e6:.1f}M"


def _style(axes: Axes, *, grid: bool = True) -> None:
    axes.tick_params(colors=MUTED, labelsize=7.5, length=3, width=0.6)
    for side, spine in axes.spines.items():
        spine.set_visible(side in {"left", "bottom"} and grid)
        spine.set_color(GRID)
    if grid:
        axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)


def _rgb(color: str) -> tuple[float, float, float]:
    red, green, blue = (int(color[k : k + 2], 16) / 255 for k in (1, 3, 5))
    return red, green, blue
