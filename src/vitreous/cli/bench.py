"""``vitreous bench``: what networks and trained runs cost on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitreous.cli.options import (
    RUNTIMES,
    check_run_or_export,
    check_runtime,
    read_image_size,
    split_commas,
)
from vitreous.errors import ConfigError, ModelError, did_you_mean

if TYPE_CHECKING:
    from vitreous.catalog.arguments import ImageSize
    from vitreous.inference.bench import Figures
    from vitreous.tasks.bench import Measured

LEAST_POINTS = 0.5  # of accuracy around what is drawn: less would make much of nothing

bench = typer.Typer(help="Measure speed and memory on this machine.", no_args_is_help=True)


@bench.callback()
def _group() -> None:
    """Measure speed and memory on this machine."""


@bench.command("models")
def models(
    pattern: Annotated[str, typer.Argument(help="Variant, or a pattern such as 'swin*'.")],
    bands: Annotated[int, typer.Option(min=1, max=65536, help="Number of image bands.")] = 3,
    image_size: Annotated[
        str,
        typer.Option(metavar="N|HxW", help="Image size in pixels, e.g. 224 or 96x160."),
    ] = "224",
    batch_size: Annotated[int, typer.Option(min=1, max=65536, help="Batch size.")] = 8,
    repeats: Annotated[int, typer.Option(min=3, max=100_000, help="Number of timed calls.")] = 15,
    num_classes: Annotated[int, typer.Option(min=1, max=65535, help="Number of classes.")] = 1000,
    backward: Annotated[
        bool, typer.Option("--backward", help="Time forward and backward pass, as in training.")
    ] = False,
    threads: Annotated[int, typer.Option(min=0, max=1024, help="CPU threads; 0: all.")] = 0,
    csv: Annotated[Path | None, typer.Option(help="Also write the results to this file.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw published accuracy against speed (PNG or SVG).")
    ] = None,
) -> None:
    """Compare parameters, multiply-adds, speed and memory of networks, each in a separate process."""
    from rich.console import Console
    from rich.progress import track

    from vitreous.catalog.registry import list_models
    from vitreous.cli.tables import show

    names = list_models(pattern, kind="model")
    if not names:
        raise ModelError(
            f"No classification network matches '{pattern}'.",
            did_you_mean(pattern, list_models(kind="model")),
        )
    _check_picture(plot)
    size = read_image_size(image_size)
    from vitreous.inference.bench import Setting, measure_apart, write_csv

    console = Console(stderr=True)
    settings = [
        Setting(name, bands, size, batch_size, repeats, backward, num_classes, threads)
        for name in names
    ]
    rows = [
        _row(measure_apart(setting))
        for setting in track(settings, "measuring", console=console, transient=True)
    ]
    rows.sort(key=lambda row: -row["images_per_second"])
    show(_table(rows))
    if csv is not None:
        write_csv(csv, rows)
    if plot is not None:
        _draw(plot, rows)


@bench.command("runs")
def runs(
    paths: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders, or exports inside them.")
    ],
    runtime: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Runtimes to compare: torch, onnxruntime, openvino (default: torch, or the export's own).",
        ),
    ] = None,
    pixels: Annotated[
        int, typer.Option(min=0, help="Test pixels or images to measure accuracy on; 0: all.")
    ] = 1000,
    repeats: Annotated[int, typer.Option(min=3, max=100_000, help="Number of timed calls.")] = 9,
    threads: Annotated[int, typer.Option(min=0, max=1024, help="CPU threads; 0: all.")] = 0,
    csv: Annotated[Path | None, typer.Option(help="Also write the results to this file.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw accuracy against time (PNG or SVG).")
    ] = None,
) -> None:
    """Compare accuracy, speed, size and memory of trained runs and exports, each in a separate process.

    A run is exported once into its own folder if a runtime needs that.
    """
    names = split_commas([runtime]) if runtime else [None]
    for name in names:
        check_runtime(name)
    for path in paths:
        check_run_or_export(path)
    _check_picture(plot)

    from rich.console import Console
    from rich.progress import track

    from vitreous.cli.tables import show
    from vitreous.inference.bench import write_csv
    from vitreous.tasks.bench import Entry, measure_apart, measured_by

    kinds = {measured_by(path) for path in paths}
    if len(kinds) > 1:
        raise ConfigError(
            "These are runs of different tasks, which are not compared with each other.",
            "Give runs of one task at a time.",
        )
    entries = [Entry(str(path), name, threads, repeats, pixels) for path in paths for name in names]
    console = Console(stderr=True)
    found = [
        measure_apart(entry)
        for entry in track(entries, "measuring", console=console, transient=True)
    ]
    found.sort(key=lambda one: -one.rate)
    show(_run_table(found))
    if csv is not None:
        write_csv(csv, [asdict(one) for one in found])
    if plot is not None:
        _draw_runs(plot, found)


def _check_picture(path: Path | None) -> None:
    if path is not None and path.suffix.lower() not in {".png", ".svg"}:
        raise ConfigError(f"{path} is not an image file.", "Give a name ending in .png or .svg.")


def _run_table(found: Sequence[Measured]) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    first = found[0]
    title = f"{first.figure} in percent on {first.tested:,} test {first.counted} (all: as recorded by the run)"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("run", "runtime", "precision"):
        table.add_column(heading, no_wrap=heading != "run", overflow="fold")
    for heading in (
        *(first.figure, "all", f"{first.short}/s", f"1 {first.short} ms", "disk MiB"),
        "memory MiB",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in found:
        table.add_row(
            one.run,
            one.runtime,
            one.precision,
            f"{100 * one.accuracy:.2f}",
            "-" if one.recorded is None else f"{100 * one.recorded:.2f}",
            f"{one.rate:,.0f}",
            f"{one.latency_ms:.2f}",
            f"{one.size_mib:.2f}",
            f"{one.peak_memory_mib:.0f}",
        )
    return table


def _draw_runs(path: Path, found: Sequence[Measured]) -> None:
    """Draw accuracy against time, and the front of those that nothing else beats in both."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    from vitreous.files import atomic_path
    from vitreous.report.figures import BLUE, GREEN, GRID, INK, MUTED, ORANGE, VERMILION
    from vitreous.tasks.bench import pareto

    points = [(1e6 / one.rate, 100 * one.accuracy) for one in found]
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    colors = dict(zip(RUNTIMES, (BLUE, ORANGE, GREEN), strict=True))
    front = sorted(point for point, on in zip(points, pareto(points), strict=True) if on)
    axes.step(*zip(*front, strict=True), where="post", color=VERMILION, lw=1, label="Pareto front")
    for runtime in dict.fromkeys(one.runtime for one in found):
        own = [point for point, one in zip(points, found, strict=True) if one.runtime == runtime]
        across, up = zip(*own, strict=True)
        axes.scatter(across, up, color=colors[runtime], s=36, label=runtime, zorder=3)
    named = sorted(zip(points, found, strict=True), key=lambda pair: pair[0])
    for number, (point, one) in enumerate(named):
        above = number % 2 == 0  # in turn, because neighbours on the axis are near one another
        axes.annotate(
            f"{one.run}, {one.precision}",
            point,
            (0, 7 if above else -7),
            textcoords="offset points",
            ha="center",
            va="bottom" if above else "top",
            fontsize=8,
            color=INK,
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.25)
    heights = [height for _, height in points]
    axes.set_ylim(min(heights) - LEAST_POINTS, max(heights) + LEAST_POINTS)
    axes.set_xlabel(f"µs per {found[0].counted.removesuffix('s')} on this machine", color=MUTED)
    axes.set_ylabel(
        f"{found[0].figure} on {found[0].tested:,} test {found[0].counted}, %", color=MUTED
    )
    axes.grid(color=GRID)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=150)


def _row(found: Figures) -> dict[str, Any]:
    from vitreous.layers.sizes import as_size

    setting = found.setting
    height, width = as_size(setting.image_size)
    return {
        "model": setting.model,
        "parameters": found.parameters,
        "gmacs": found.macs / 1e9,
        "batch": setting.batch,
        "image_size": setting.image_size if height == width else f"{height}x{width}",
        "bands": setting.bands,
        "milliseconds": found.milliseconds,
        "low": found.spread[0],
        "high": found.spread[1],
        "images_per_second": found.images_per_second,
        "pixels_per_second": found.images_per_second * (height * width),
        "peak_memory_mib": found.peak_memory_mib,
        "top1": _published_accuracy(setting.model, setting.image_size),
    }


def _published_accuracy(name: str, image_size: ImageSize) -> float | None:
    from vitreous.catalog.registry import card

    for row in card(name).published:
        if row.get("variant") == name and row.get("image_size", 224) == image_size:
            return row.get("top1")
    return None


def _table(rows: list[dict[str, Any]]) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("model", no_wrap=True)
    for heading in ("params M", "GMACs", "ms", "quartiles", "images/s", "MiB", "top-1"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["model"],
            f"{row['parameters'] / 1e6:.2f}",
            f"{row['gmacs']:.3g}",
            f"{row['milliseconds']:.1f}",
            f"{row['low']:.1f}-{row['high']:.1f}",
            f"{row['images_per_second']:.1f}",
            f"{row['peak_memory_mib']:.0f}",
            "-" if row["top1"] is None else f"{row['top1']:.1f}",
        )
    return table


def _draw(path: Path, rows: list[dict[str, Any]]) -> None:
    """Draw accuracy against speed where accuracy is known, multiply-adds against speed else."""
    from matplotlib.figure import Figure

    from vitreous.files import atomic_path
    from vitreous.report.figures import BLUE, GRID, INK, MUTED

    known = [row for row in rows if row["top1"] is not None]
    shown, key, label = (
        (known, "top1", "published top-1, %") if known else (rows, "gmacs", "multiply-adds, G")
    )
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for row in shown:
        at = (row["images_per_second"], row[key])
        axes.scatter(*at, s=12 + 2 * row["parameters"] / 1e6, color=BLUE, alpha=0.7, lw=0)
        axes.annotate(row["model"], at, (5, 4), textcoords="offset points", fontsize=8, color=INK)
    axes.set_xscale("log")
    axes.set_xlabel(f"images/s on this machine (batch {rows[0]['batch']})", color=MUTED)
    axes.set_ylabel(f"{label}; area: parameters", color=MUTED)
    axes.grid(color=GRID)
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=150)
