"""What the benchmark scripts share."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from vitreous.catalog.results import write_result

RESULTS = Path(__file__).parent / "results"
# Variants cut to about a million weights or fewer: the wiring is the paper's, widths and depths are ours.
SMALL: dict[str, dict[str, Any]] = {
    "smt_tiny": {
        "dims": [48, 96, 160],
        "depths": [1, 2, 2],
        "mlp_ratios": [4.0, 4.0, 2.0],
        "attention_heads": [1, 3, 5],
    },
    "hornet_tiny_gf": {
        "dim": 48,
        "depths": [1, 1, 1],
        "orders": [2, 3, 4],
        "spectral": [False, True, True],
    },
    "fmvit_tiny": {
        "dims": [48, 96, 144],
        "conv_blocks": [1, 1, 1],
        "repeats": [1, 1, 1],
    },
}


def show(title: str, rows: Iterable[dict[str, Any]]) -> None:
    """Print rows as a table; its columns are all keys, in the order of their first use."""
    rows = list(rows)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*("" if row.get(key) is None else str(row[key]) for key in columns))
    Console().print(table)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one process at a time change the files of a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def add_record(
    path: Path,
    record: dict[str, Any],
    *,
    recorded: Callable[[], dict[str, dict[str, Any]]],
    summary: Callable[[list[dict[str, Any]]], list[dict[str, Any]]],
    conclude: Callable[[list[dict[str, Any]]], str],
    title: str,
    command: str,
) -> None:
    """Add a record to a result file, whatever another process has added meanwhile.

    Args:
        path: the file.
        record: with its ``key``.
        recorded: returns what is in the file, by key.
        summary: makes the rows of the table.
        conclude: says in words what they tell.
        title: of the table.
        command: that makes the file.
    """
    with locked(path.parent):
        records = [*(recorded() | {record["key"]: record}).values()]
        write_result(
            path,
            title=title,
            command=command,
            rows=summary(records),
            conclusion=conclude(records),
            runs=records,
        )


def in_own_process(script: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Run ``script --worker ARGUMENTS`` by itself and return the JSON object on its last line.

    Peak memory is a property of a process: what one way has held would hide what the next one needs.
    """
    done = subprocess.run(
        [sys.executable, script, "--worker", json.dumps(arguments)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def digest(recipe: dict[str, Any], *more: Any) -> str:
    """Name everything that decides about a measurement's outcome.

    Settings that are not set, or switched off, do not count: what a recipe learns to do later changes nothing that was
    measured before. A budget only counts where systems are compared.
    """
    told = {key: value for key, value in recipe.items() if value not in (None, {}, [], "none", 0)}
    if told.get("model") != "auto":
        told.pop("budget", None)
    return hashlib.sha256(json.dumps([told, *more], sort_keys=True).encode()).hexdigest()[:12]


def forget_peak() -> None:
    """Begin the measurement of ``inference.bench.peak_memory`` anew."""
    Path("/proc/self/clear_refs").write_text("5")
