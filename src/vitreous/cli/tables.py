"""Tables of scores, as printed by several verbs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from vitreous.catalog.tasks import Task
from vitreous.errors import listed

WIDEST = 10_000  # characters, of a line that nobody sees whole anyway
_QUALITY = {"psnr": 2, "ssim": 3, "sam": 2, "ergas": 2}  # figures and their digits


def show(table: Table, console: Console | None = None) -> None:
    """Print a table whole, in lines that are longer than a narrow screen: a figure that is cut off is no figure."""
    console = console or Console()
    width, wide = console.width, console.options.update(width=WIDEST)
    for column in table.columns:
        if column.no_wrap:  # of which rich would drop the end
            cells = (column.header, *column.cells)
            column.min_width = max(Measurement.get(console, wide, cell).maximum for cell in cells)
        else:
            column.overflow = "fold"
    console.width = max(width, Measurement.get(console, wide, table).minimum)
    try:
        console.print(table, crop=False, highlight=False)
    finally:
        console.width = width


def print_metrics(console: Console, metrics: dict[str, Any]) -> None:
    """Print the systems of a ``metrics.json`` (see docs/architecture.md) side by side, with the split's caveats."""
    start = metrics.get("start") or {}
    console.print(split_line(metrics["split"], bool(start.get("share"))), highlight=False)
    for sentence in start.get("sentences", []):
        console.print(sentence, style="yellow", highlight=False, markup=False)
    if comparison := metrics.get("comparison"):
        if comparison["rows"]:
            show(candidates_table(comparison), console)
        else:
            console.print(uncompared_line(comparison), highlight=False, markup=False)
    show(systems_table(metrics["systems"]), console)
    if untested := untestable_line(metrics.get("classes", [])):
        console.print(untested, highlight=False, markup=False)
    if scenes := metrics["systems"][0]["test"].get("scenes"):
        show(scenes_table(scenes), console)


def candidates_table(comparison: dict[str, Any]) -> Table:
    """Return what cross-validation found of each candidate, in percent; the chosen ones are marked."""
    of = " of neighbouring blocks: optimistic" if comparison.get("optimistic") else ""
    title = (
        f"Candidates in cross-validation on the training pixels ({comparison['folds']} folds{of})"
    )
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("candidate", no_wrap=True)
    for heading in ("OA", "AA", "folds", "seconds"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for row in comparison["rows"]:
        if row.get("skipped"):
            table.add_row(row["name"], "", "", "", "", row["skipped"])
            continue
        figures = [f"{100 * row[key]:.1f}" for key in ("oa", "aa")]
        told = "chosen" if row["chosen"] else "behind" if row["behind"] else ""
        table.add_row(
            row["name"], *figures, str(len(row["by_fold"])), f"{row['seconds']:.1f}", told
        )
    return table


def uncompared_line(comparison: dict[str, Any]) -> str:
    """Return one line on candidates that could not be compared, for want of labels."""
    missing = comparison.get("labels_missing")
    needed = f" (about {missing} more are needed)" if missing else ""
    return (
        f"Too few labels to compare candidates{needed}: trained {', '.join(comparison['chosen'])}."
    )


def untestable_line(classes: list[dict[str, Any]]) -> str:
    """Return one line on the classes that the test says nothing about; empty where there are none."""
    found = [f"{one['name']} ({one['why']})" for one in classes if not one.get("testable", True)]
    return f"Not testable here: {listed(found, most=20)}." if found else ""


def scenes_table(scenes: list[dict[str, Any]]) -> Table:
    """Return the accuracy of a system on each test scene of a collection, in percent."""
    table = Table(
        title="Each test scene", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    table.add_column("scene", overflow="fold")
    keys = {"mIoU": "miou", "OA": "oa", "AA": "aa", "kappa": "kappa"}
    for heading in (*keys, "pixels"):
        table.add_column(heading, justify="right", no_wrap=True)
    for scene in scenes:
        figures = (f"{100 * scene[key]:.1f}" for key in keys.values())
        table.add_row(scene["name"], *figures, f"{scene['pixels']:,}")
    return table


def split_line(split: dict[str, Any], seen_before: bool = False) -> str:
    """Return one line on how honest a split is; ``seen_before``: the weights that training started from count too."""
    counts = split["counts"]
    pixels = ", ".join(f"{counts[role]:,} {role}" for role in ("train", "val", "test"))
    line = (
        f"Split: {split['method']} ({pixels} pixels); {split['leakage']:.1%} of the test pixels lie inside the "
        f"{split['patch_size']} x {split['patch_size']} pixels around a training pixel that a prediction depends on"
        + (" or were seen by the initial weights." if seen_before else ".")
    )
    return line + (" [yellow]These accuracies are optimistic.[/]" if split["optimistic"] else "")


def systems_table(systems: list[dict[str, Any]]) -> Table:
    """Return OA, AA and kappa in percent over their 95 % intervals, one row per system, the trained one first."""
    # Narrow enough for 80 columns with the names that are usual.
    title = "Accuracy on the test pixels in percent, with 95 % confidence intervals"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("system", no_wrap=True)
    keys = {"OA": "oa", "AA": "aa", "kappa": "kappa"}
    if any("scenes" in (system["test"] or {}) for system in systems):
        keys = {"mIoU": "miou", **keys}
    for heading in (*keys, "weights", "train s", "px/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for number, system in enumerate(systems):
        table.add_row(
            system["name"],
            *(_score(system["test"], key) for key in keys.values()),
            _short(system.get("parameters")),
            _number(system.get("train_seconds"), ",.1f"),
            _number(system.get("pixels_per_second"), ",.0f"),
            style="bold" if number == 0 else "",
        )
    return table


def print_restoration(console: Console, metrics: dict[str, Any]) -> None:
    """Print the systems of a restoration run's ``metrics.json`` side by side."""
    pixels = f"{metrics['test_pixels']:,} test pixels in {metrics['bands']} bands"
    name = metrics["degradation"]["name"].replace("_", " ")
    table = Table(
        title=f"Degraded by {name}: {pixels}",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("system", no_wrap=True)
    for heading in ("PSNR dB", "SSIM", "SAM deg", "ERGAS", "weights", "train s", "px/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for number, system in enumerate(metrics["systems"]):
        test = system["test"]
        table.add_row(
            system["name"],
            *(_number(test[key], f".{digits}f") for key, digits in _QUALITY.items()),
            _short(system.get("parameters")),
            _number(system.get("train_seconds"), ",.1f"),
            _number(system.get("pixels_per_second"), ",.0f"),
            style="bold" if number == 0 else "",
        )
    show(table, console)
    for sentence in (metrics.get("start") or {}).get("sentences", []):
        console.print(sentence, style="yellow", highlight=False, markup=False)


def print_recognition(console: Console, metrics: dict[str, Any]) -> None:
    """Print the scores of a run that classifies images, with what is to be known of its test images."""
    images = metrics["images"]
    counts = ", ".join(f"{images['counts'][role]:,} {role}" for role in ("train", "val", "test"))
    line = f"Images: {counts}; {images['leakage']:.1%} of the test images are copies of training images."
    if images["optimistic"]:
        line += " [yellow]These figures are optimistic.[/]"
    console.print(line, highlight=False)
    for sentence in (metrics.get("start") or {}).get("sentences", []):
        console.print(sentence, style="yellow", highlight=False, markup=False)
    keys = {"map": "mAP", "f1": "F1"} if metrics["several"] else {"top1": "top-1", "top5": "top-5"}
    title = "Accuracy on the test images in percent, with 95 % confidence intervals"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("system", no_wrap=True)
    for heading in (*keys.values(), "ECE", "weights", "train s", "images/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for number, system in enumerate(metrics["systems"]):
        test = system["test"]
        table.add_row(
            system["name"],
            *(_score(test, key) if test.get(key) is not None else "-" for key in keys),
            f"{100 * test['ece']:.1f}",
            _short(system.get("parameters")),
            _number(system.get("train_seconds"), ",.1f"),
            _number(system.get("images_per_second"), ",.0f"),
            style="bold" if number == 0 else "",
        )
    show(table, console)


def print_pretraining(console: Console, metrics: dict[str, Any]) -> None:
    """Print the losses of a pre-training run's ``metrics.json``."""
    for name in ("train_loss", "val_loss"):
        if metrics[name] is not None:
            console.print(f"{name.replace('_', ' ')}: {metrics[name]:.4f}", highlight=False)


def print_run(console: Console, run: Path, task: Task) -> None:
    """List the products that are in a run folder, the report last."""
    products = {
        "model": "model.safetensors",
        **task.products,
        "metrics": "metrics.json",
        "report": "report.html",
    }
    for title, name in products.items():
        if (run / name).is_file():
            console.print(
                f"{title:>8}  {run / name}", soft_wrap=True, highlight=False, markup=False
            )


def _score(scores: dict[str, Any] | None, key: str) -> str:
    if scores is None:
        return "-"
    if scores.get(f"{key}_ci") is None:
        return f"{scores[key] * 100:.1f}"
    low, high = scores[f"{key}_ci"]
    return f"{scores[key] * 100:.1f}\n{low * 100:.1f}-{high * 100:.1f}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _short(count: int | None) -> str:
    if count is None:
        return "-"
    return f"{count / 1e6:.3g} M" if count >= 1e6 else f"{count / 1e3:.3g} k"


def compress_table(rows: list[dict[str, Any]]) -> Table:
    """Return what a method cost and brought: one row per figure."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("figure", no_wrap=True)
    for heading in ("before", "after", "after / before"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        before, after = row["before"], row["after"]
        ratio = f"{after / before:.2f}" if before else "-"
        table.add_row(row["figure"], f"{before:,.2f}", f"{after:,.2f}", ratio)
    return table
