"""The two ways to make a map: every pixel's patch through a network, or all pixels of a tile at once.

The same trunk is trained both ways on the fixed split of the built-in scene (695 training pixels) and maps it. Each way
has a process of its own and one thread, and is timed in seconds of the processor, which do not depend on who else
uses the machine. All settings but the mode are the defaults of ``vitreous train``; both ways take about 1000 steps.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from _common import RESULTS, in_own_process, show
from rich.console import Console

from vitreous.catalog.results import write_result

RESULT = RESULTS / "dense_map.json"
TITLE = "Mapping a scene: dense tiles compared with one patch per pixel"
TRUNK = {
    "model": "convnext_tiny",
    "model_args": {"dims": [32, 64, 96, 128], "depths": [2, 2, 2, 2]},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "patch": {"mode": "patch"},
    "dense, fpn": {"mode": "dense", "decoder": "fpn"},
    "dense, upernet": {"mode": "dense", "decoder": "upernet"},
}
REPEATS = 3
console = Console(stderr=True, soft_wrap=True)


def work(way: str, seed: int, repeats: int, epochs: int | None) -> dict[str, Any]:
    """Train one way, score it on the test pixels and map the scene.

    Returns:
        ``oa``, ``aa``, ``kappa``, ``parameters``, the processor's seconds for training (``train``) and for each map
        (``maps``), and the scene's ``pixels``.
    """
    import torch

    from vitreous.recipe import make_recipe
    from vitreous.tasks import classify
    from vitreous.tasks.labelled import open_labelled

    torch.set_num_threads(1)
    shortened = {"epochs": epochs} if epochs else {}
    fixed = {"split": "fixed", "val_fraction": 0, "seed": seed, "accelerator": "cpu"}
    recipe = make_recipe({**TRUNK, **fixed, **SETTINGS[way], **shortened})
    data = open_labelled(recipe)
    split = classify.draw_split(recipe, data)
    with tempfile.TemporaryDirectory() as name:
        started = time.process_time()
        trained, row = classify.fit_and_score(recipe, data, split, Path(name))
        seconds = time.process_time() - started  # scoring included: a small part
        maps = [time_map(trained.classifier, data, Path(name) / "map.tif") for _ in range(repeats)]
    figures = {key: row["test"][key] for key in ("oa", "aa", "kappa")}
    pixels = data.scene.sizes["y"] * data.scene.sizes["x"]
    facts = {"parameters": trained.parameters, "train": seconds, "maps": maps, "pixels": pixels}
    return {**figures, **facts}


def time_map(classifier: Any, data: Any, path: Path) -> float:
    """Return the processor's seconds from the scene to the finished map file."""
    from vitreous.inference.predict import predict_scene

    started = time.process_time()
    names = {"class_names": data.class_names, "class_colors": data.class_colors}
    predict_scene(classifier, data.scene, path, png=False, **names)
    return time.process_time() - started


def summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the table; ``speed-up`` compares with patches."""
    speeds = {r["way"]: r["pixels"] / median(r["maps"]) for r in records}
    return [
        {
            "way": r["way"],
            "OA": round(100 * r["oa"], 2),
            "AA": round(100 * r["aa"], 2),
            "kappa": round(100 * r["kappa"], 2),
            "parameters": r["parameters"],
            "training s": round(r["train"]),
            "pixels/s": round(speeds[r["way"]]),
            "speed-up": round(speeds[r["way"]] / speeds["patch"], 1),
        }
        for r in records
    ]


def conclude(rows: Sequence[dict[str, Any]]) -> str:
    """Say in words how the ways compare."""
    patch = next(row for row in rows if row["way"] == "patch")
    words = [
        f"{row['way'].capitalize()}: {row['speed-up']} times the throughput of one patch per pixel, "
        f"OA {row['OA'] - patch['OA']:+.2f} points."
        for row in rows
        if row is not patch
    ]
    return " ".join(
        [
            *words,
            "One run each: differences of up to one point may be due to the seed. The split is optimistic: nearly "
            "all test pixels lie inside a training patch, so this says nothing about held-out ground.",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="one epoch, one map; record nothing")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        print(json.dumps(work(**given.worker)))
        return
    records = []
    for way in SETTINGS:
        arguments = {"way": way, "seed": given.seed, "repeats": 1 if given.quick else REPEATS}
        arguments["epochs"] = 1 if given.quick else None
        records.append({"way": way, **in_own_process(__file__, arguments)})
        console.print(records[-1], highlight=False)
    rows = summary(records)
    show(TITLE, rows)
    print(conclude(rows))
    if not given.quick:
        write_result(
            RESULT,
            title=TITLE,
            command="python benchmarks/dense_map.py",
            rows=rows,
            conclusion=conclude(rows),
            trunk=TRUNK,
            runs=records,
        )


if __name__ == "__main__":
    sys.exit(main())
