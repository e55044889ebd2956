"""How long a user waits for the first sign of life: medians over fresh processes, files already in the disk cache."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from _common import RESULTS, show

from vitreous.catalog.results import write_result

RESULT = RESULTS / "startup.json"
TITLE = "Start-up times"
REPEATS = 5
PYTHON = [sys.executable]
VITREOUS = [*PYTHON, "-m", "vitreous"]


def to_end(command: Sequence[str]) -> float:
    """Return the seconds that a command takes."""
    started = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def to_line(command: Sequence[str], word: str) -> float:
    """Return the seconds until a command prints a line that begins with ``word``; then stop it.

    Raises:
        RuntimeError: it ended without such a line.
    """
    started = time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            command,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "NO_COLOR": "1"},
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith(word):
                    return time.perf_counter() - started
        finally:
            process.kill()
    raise RuntimeError(f"{' '.join(command)} printed no line that begins with '{word}'")


CASES: dict[str, Callable[[], float]] = {
    "python -c pass": lambda: to_end([*PYTHON, "-c", "pass"]),
    "import vitreous": lambda: to_end([*PYTHON, "-c", "import vitreous"]),
    "vitreous --help": lambda: to_end([*VITREOUS, "--help"]),
    "vitreous train: first line": lambda: to_line([*VITREOUS, "train"], "reading"),
    "vitreous train: first epoch": lambda: to_line([*VITREOUS, "train"], "epoch"),
    "vitreous demo: first line": lambda: to_line([*VITREOUS, "demo"], ""),
    "vitreous demo: first epoch": lambda: to_line([*VITREOUS, "demo"], "epoch"),
}


def summary(seconds: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Return the table."""
    return [
        {
            "what": what,
            "median s": round(median(times), 2),
            "least": round(min(times), 2),
            "most": round(max(times), 2),
        }
        for what, times in seconds.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="each once; record nothing")
    given = parser.parse_args()
    repeats = 1 if given.quick else REPEATS
    for case in list(CASES.values())[:3]:
        case()  # fills the disk cache
    seconds = {what: [case() for _ in range(repeats)] for what, case in CASES.items()}
    rows = summary(seconds)
    show(TITLE, rows)
    if not given.quick:
        medians = {row["what"]: row["median s"] for row in rows}
        write_result(
            RESULT,
            title=TITLE,
            command="python benchmarks/startup.py",
            rows=rows,
            conclusion=f"Importing takes {medians['import vitreous']} s (Python alone "
            f"{medians['python -c pass']} s), and training shows its first epoch after "
            f"{medians['vitreous train: first epoch']} s.",
            runs=seconds,
        )


if __name__ == "__main__":
    main()
