"""What compression costs and brings: every method on two trained networks, and 8 bits on real runtimes, in one table.

The networks are trained on the built-in scene with its fixed split: LoLA-SpecViT's CPU variant, and a small plain ViT with
a class token and 25 patches (15 x 15 pixels, tokens of 3 x 3). Methods are applied after training, without any more of it, and with the
accuracy gate open, so that also what breaks is seen. In torch few bits are simulated, so their speed says nothing; what
8 bits bring is measured with the runtimes that have integer kernels. All times of a network are of one run on the same
threads, each in a process of its own. What is recorded of a network stays until that network is measured again.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _common import RESULTS, locked, show
from rich.console import Console

from vitreous.catalog.results import write_result
from vitreous.files import read_json
from vitreous.recipe import make_recipe
from vitreous.tasks import classify
from vitreous.tasks.bench import Entry, measure_apart
from vitreous.tasks.compress import compress

RESULT = RESULTS / "compression.json"
TITLE = "Compression of two networks on Indian Pines"
VIT = {"dim": 64, "depth": 6, "heads": 4, "token_size": 3}
SHARED: dict[str, Any] = {
    "split": "fixed",
    "val_fraction": 0,
    "baselines": [],
    "map": False,
    "report": False,
}
NETWORKS: dict[str, dict[str, Any]] = {
    "lola_specvit_tiny": {"model": "lola_specvit_tiny"},
    "vit": {"model": "vit_small", "model_args": VIT, "mode": "patch", "passes": 2},
}
REDUCERS: list[tuple[str, dict[str, Any]]] = [
    ("evit", {"keep_rate": 0.7}),
    ("random_drop", {"keep_rate": 0.7}),
    ("mctf", {"r": 4}),
    ("tome", {"r": 4}),
    ("gtp_vit", {"leaving": 4}),
]
QUANTIZERS: list[tuple[str, dict[str, Any]]] = [
    ("ptq_minmax", {"bits": [8, 8]}),
    ("ptq_minmax", {"bits": [6, 6]}),
    ("ptq_minmax", {"bits": [4, 4]}),
    ("repq_vit", {"bits": [6, 6]}),
    ("repq_vit", {"bits": [4, 4]}),
    ("adalog", {"bits": [4, 4]}),
    ("adalog", {"bits": [3, 3]}),
]
METHODS = {"lola_specvit_tiny": QUANTIZERS, "vit": [*REDUCERS, *QUANTIZERS]}
RUNTIMES = ("torch", "onnxruntime", "openvino")
console = Console(stderr=True, soft_wrap=True)


def train(name: str, folder: Path, epochs: int | None) -> Path:
    """Train a network, or take the run that is there already."""
    ready = folder / "classify" / name
    if ready.is_dir():
        return ready
    settings = {**SHARED, **NETWORKS[name], "runs": str(folder), "name": name}
    return classify.train(make_recipe(settings | ({"epochs": epochs} if epochs else {})))


def apply_all(name: str, run: Path, methods: Sequence[tuple[str, dict[str, Any]]]) -> list[Any]:
    """Apply methods to a run one by one; return a row and the new run's folder for each."""
    found = []
    for method, settings in methods:
        done = compress(run, method, settings, max_drop=100, show=False)
        figures = {row["figure"]: row for row in done.rows}
        row = {
            "network": name,
            "method": method,
            "settings": ", ".join(f"{key} {value}" for key, value in settings.items()),
            "OA %": round(figures["OA, %"]["after"], 2),
            "lost points": round(figures["OA, %"]["before"] - figures["OA, %"]["after"], 2),
            "multiply-adds M": round(figures["multiply-adds per image, M"]["after"], 1),
            "weights MiB": round(figures["weights at nominal bit width, MiB"]["after"], 2),
        }
        console.print(str(row), highlight=False)
        found.append((row, done.path))
    return found


def time_all(name: str, entries: Sequence[tuple[str, Path, str]], repeats: int) -> list[Any]:
    """Measure runs with runtimes; ``speed-up`` is against the first."""
    rows = []
    for label, path, runtime in entries:
        one = measure_apart(Entry(str(path), runtime, repeats=repeats, pixels=0))
        rows.append(
            {
                "network": name,
                "method": label,
                "runtime": runtime,
                "arithmetic": one.precision,
                "OA %": round(100 * one.oa, 2),
                "pixels/s": round(one.pixels_per_second),
                "speed-up": round(one.pixels_per_second / rows[0]["pixels/s"], 2) if rows else 1,
                "one pixel ms": round(one.latency_ms, 2),
                "files MiB": round(one.size_mib, 2),
                "peak memory MiB": round(one.peak_memory_mib),
            }
        )
        console.print(str(rows[-1]), highlight=False)
    return rows


def conclude(costs: Sequence[dict[str, Any]], speeds: Sequence[dict[str, Any]]) -> str:
    """Say in words what 8 bits and few bits come to."""
    words = []
    for name in dict.fromkeys(row["network"] for row in speeds):
        own = [row for row in speeds if row["network"] == name]
        whole = [row for row in own if row["arithmetic"].startswith("int8")]
        best = max(whole, key=lambda row: row["pixels/s"])
        words.append(
            f"{name}: speed-up of 8-bit integers on {best['runtime']} over float32 in torch {best['speed-up']} "
            f"(target: 2.5), loss of OA {own[0]['OA %'] - best['OA %']:.2f} points (target: at most 0.5)."
        )
    words += [
        f"{row['method']} ({row['settings']}) loses {row['lost points']} points of OA on {row['network']}."
        for row in costs
        if row["lost points"] > 1
    ]
    return " ".join(words)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, help="keep, and use, the trained runs here")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="one epoch; record nothing")
    given = parser.parse_args()
    costs: list[dict[str, Any]] = []
    speeds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for name in given.networks:
            run = train(name, given.runs or Path(temporary), 1 if given.quick else None)
            changed = apply_all(name, run, METHODS[name][:: 5 if given.quick else 1])
            costs += [row for row, _ in changed]
            small = [path for row, path in changed if row["method"] == "ptq_minmax"][:1]
            reduced = [
                (row["method"], path, "torch")
                for row, path in changed
                if row["method"] in dict(REDUCERS)
            ]
            entries = [
                *(("none", run, runtime) for runtime in RUNTIMES),
                *reduced,
                *(("ptq_minmax", path, runtime) for path in small for runtime in RUNTIMES[1:]),
            ]
            speeds += time_all(name, entries, given.repeats)
    show(TITLE, costs)
    show("Speed", speeds)
    if not given.quick:
        record(costs, speeds)


def record(costs: Sequence[dict[str, Any]], speeds: Sequence[dict[str, Any]]) -> None:
    """Write what was measured, and keep what is recorded of other networks."""
    measured = {row["network"] for row in costs}
    with locked(RESULTS):
        old = read_json(RESULT)["rows"] if RESULT.is_file() else []
        kept = [row for row in old if row["network"] not in measured and row["network"] in NETWORKS]
        rows = [*kept, *costs, *speeds]
        costs, speeds = (
            [row for row in rows if ("runtime" in row) is timed] for timed in (False, True)
        )
        words = conclude(costs, speeds)
        print(words)
        write_result(
            RESULT,
            title=TITLE,
            command="python benchmarks/compression.py",
            rows=[*costs, *speeds],
            conclusion=words,
        )


if __name__ == "__main__":
    main()
