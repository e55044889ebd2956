"""``vitreous bench``: what networks cost on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitreous.errors import ConfigError, ModelError, did_you_mean

if TYPE_CHECKING:
    from vitreous.inference.bench import Figures

bench = typer.Typer(help="Measure speed and memory on this machine.", no_args_is_help=True)


@bench.callback()
def _group() -> None:
    """Measure speed and memory on this machine."""


@bench.command("models")
def models(
    pattern: Annotated[str, typer.Argument(help="Variant, or a pattern such as 'swin*'.")],
    bands: Annotated[int, typer.Option(min=1, help="Bands of the image.")] = 3,
    image_size: Annotated[int, typer.Option(min=1, help="Side of the image in pixels.")] = 224,
    batch: Annotated[int, typer.Option(min=1, help="Images per call.")] = 8,
    repeats: Annotated[int, typer.Option(min=3, help="Calls on the clock.")] = 15,
    num_classes: Annotated[int, typer.Option(min=1, help="Classes of the head.")] = 1000,
    backward: Annotated[
        bool, typer.Option("--backward", help="Also the gradients, as in training.")
    ] = False,
    threads: Annotated[int, typer.Option(min=0, help="Threads of the CPU; 0: all.")] = 0,
    csv: Annotated[Path | None, typer.Option(help="Also write the table to this file.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw published accuracy against speed (PNG or SVG).")
    ] = None,
) -> None:
    """Compare parameters, multiply-adds, speed and memory of networks, each in a process of its own."""
    from rich.console import Console
    from rich.progress import track

    from vitreous.catalog.registry import list_models

    names = list_models(pattern, kind="model")
    if not names:
        raise ModelError(
            f"No network matches '{pattern}'.", did_you_mean(pattern, list_models(kind="model"))
        )
    if plot is not None and plot.suffix.lower() not in {".png", ".svg"}:
        raise ConfigError(f"{plot} is no picture.", "Name a .png or .svg file.")
    from vitreous.inference.bench import Setting, measure_apart, write_csv

    console = Console(stderr=True)
    settings = [
        Setting(name, bands, image_size, batch, repeats, backward, num_classes, threads)
        for name in names
    ]
    rows = [
        _row(measure_apart(setting))
        for setting in track(settings, "measuring", console=console, transient=True)
    ]
    rows.sort(key=lambda row: -row["images_per_second"])
    Console().print(_table(rows))
    if csv is not None:
        write_csv(csv, rows)
    if plot is not None:
        _draw(plot, rows)


def _row(found: Figures) -> dict[str, Any]:
    setting = found.setting
    return {
        "model": setting.model,
        "parameters": found.parameters,
        "gmacs": found.macs / 1e9,
        "batch": setting.batch,
        "image_size": setting.image_size,
        "bands": setting.bands,
        "milliseconds": found.milliseconds,
        "low": found.spread[0],
        "high": found.spread[1],
        "images_per_second": found.images_per_second,
        "pixels_per_second": found.images_per_second * setting.image_size**2,
        "peak_memory_mib": found.peak_memory_mib,
        "top1": _published_accuracy(setting.model, setting.image_size),
    }


def _published_accuracy(name: str, image_size: int) -> float | None:
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
