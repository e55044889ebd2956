"""Time and peak memory of ``vitreous demo``: training, baselines, map and report."""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _common import RESULTS, show

from vitreous.catalog.results import write_result
from vitreous.files import read_json

RESULT = RESULTS / "demo.json"
TITLE = "The demo"
MINUTES, GIB = 4, 4  # what it may take on two cores
VITREOUS = [sys.executable, "-m", "vitreous"]
QUICK = ["train", "--model", "lola_specvit_test", "--epochs", "1", "--baselines", "", "--no-report"]


def measure(words: list[str], folder: str) -> dict[str, Any]:
    """Run vitreous in an empty folder and return what it took and what its system reached."""
    started = time.perf_counter()
    subprocess.run([*VITREOUS, *words], cwd=folder, stdout=subprocess.DEVNULL, check=True)
    seconds = time.perf_counter() - started
    # Of the largest process; this small one, whose size it includes, does not matter.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    (metrics,) = Path(folder).glob("runs/*/*/metrics.json")
    system = read_json(metrics)["systems"][0]
    return {
        "command": "vitreous " + " ".join(words),
        "seconds": round(seconds, 1),
        "of it training": round(system["train_seconds"], 1),
        "peak memory GiB": round(peak / 2**30, 2),
        "OA %": round(100 * system["test"]["oa"], 2),
        "AA %": round(100 * system["test"]["aa"], 2),
    }


def conclude(row: dict[str, Any]) -> str:
    """Say whether it stays within what it may take."""
    within = row["seconds"] < 60 * MINUTES and row["peak memory GiB"] < GIB
    return (
        f"{row['seconds'] / 60:.1f} minutes and {row['peak memory GiB']} GiB; under {MINUTES} minutes and {GIB} GiB: "
        f"{'yes' if within else 'no'}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="a tiny training instead; record nothing"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        row = measure(QUICK if given.quick else ["demo"], folder)
    show(TITLE, [row])
    print(conclude(row))
    if not given.quick:
        write_result(
            RESULT,
            title=TITLE,
            command="python benchmarks/demo.py",
            rows=[row],
            conclusion=conclude(row),
        )


if __name__ == "__main__":
    main()
