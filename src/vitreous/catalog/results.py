"""Results of benchmarks and reproductions: what was measured, by what, on what, in one JSON file each.

``docs/generate.py`` turns these files into the tables of the documentation.
"""

from __future__ import annotations

import datetime
import os
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from vitreous._version import __version__
from vitreous.files import write_json

PACKAGES = ("torch", "lightning", "numpy", "scikit-learn", "xarray", "rasterio")


def versions() -> dict[str, str]:
    """Return the versions of what decides about numbers."""
    return {
        "vitreous": __version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in PACKAGES},
    }


def machine() -> str:
    """Return the processor, the cores this process may use, and the memory, in words."""
    parts = [_processor(), f"{_cores()} cores"]
    memory = physical_memory()
    if memory:
        parts.append(f"{memory / 2**30:.0f} GiB memory")
    return ", ".join(parts)


def write_result(
    path: Path,
    *,
    title: str,
    command: str,
    rows: Sequence[dict[str, Any]],
    conclusion: str,
    **details: Any,
) -> None:
    """Write one result, atomically.

    Args:
        path: the file, named after the benchmark or the system.
        title: a heading.
        command: what measures it again.
        rows: the table; one mapping from column to value per row.
        conclusion: what the numbers say, also where a claim does not hold.
        details: everything else worth keeping, such as the numbers per seed.
    """
    write_json(
        path,
        {
            "title": title,
            "command": command,
            "machine": machine(),
            "date": datetime.date.today().isoformat(),
            "versions": versions(),
            "rows": list(rows),
            "conclusion": conclusion,
            **details,
        },
    )


def percent(values: Sequence[float]) -> str:
    """Return fractions as mean and standard deviation (of the sample) in percent: ``92.31 ± 0.40``."""
    return plus_minus([100 * value for value in values])


def plus_minus(values: Sequence[float], digits: int = 2) -> str:
    """Return values as mean and standard deviation (of the sample): ``31.20 ± 0.15``."""
    text = f"{mean(values):.{digits}f}"
    return f"{text} ± {stdev(values):.{digits}f}" if len(values) > 1 else text


def table_of(
    records: Sequence[dict[str, Any]],
    columns: Mapping[str, Callable[[list[dict[str, Any]]], Any]],
    keys: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Return one row per system over its seeds, in the order in which they were measured.

    Args:
        records: of all systems and seeds.
        columns: heading and what stands below it, made of a system's records.
        keys: headings of what tells rows apart, and its key in the records; the system alone by default.
    """
    keys = keys or {"system": "system"}
    rows: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for record in records:
        rows.setdefault(tuple(record[key] for key in keys.values()), []).append(record)
    return [
        {
            **dict(zip(keys, which, strict=True)),
            "seeds": len(own),
            **{heading: made(own) for heading, made in columns.items()},
        }
        for which, own in rows.items()
    ]


def first(key: str) -> Callable[[list[dict[str, Any]]], Any]:
    """Return a column of :func:`table_of` for what is alike on all seeds."""
    return lambda own: own[0][key]


def means(key: str, digits: int = 2) -> Callable[[list[dict[str, Any]]], str]:
    """Return a column of :func:`table_of` for a figure, as :func:`plus_minus` shows it."""
    return lambda own: plus_minus([record[key] for record in own], digits)


def percents(key: str) -> Callable[[list[dict[str, Any]]], str]:
    """Return a column of :func:`table_of` for a score, as :func:`percent` shows it."""
    return lambda own: percent([record[key] for record in own])


def _processor() -> str:
    try:
        found = re.search(
            r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE
        )
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def physical_memory() -> int | None:
    """Return the machine's memory in bytes, where the system tells."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
