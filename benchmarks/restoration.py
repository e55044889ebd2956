"""Cost of restoring: time against the size of a scene, memory against its height, attention against tokens.

- Scenes of one width and 1, 4 and 16 times the height are restored from file to file as ``vitreous predict`` does, each
  in a process of its own. Time should grow with the pixels, and memory should not grow with the height.
- ESSA attention is timed on 24 x 24, 48 x 48 and 96 x 96 tokens beside ordinary attention of the same width, in turns.
  Its time should grow with the tokens, not with their square.

Weights are random: they do not change the cost.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from _common import RESULTS, forget_peak, in_own_process, show
from rich.console import Console

from vitreous.catalog.results import write_result

RESULT = RESULTS / "restoration.json"
TITLE = "Cost of restoring a scene"
NETWORKS = {"hsdt_c4": (31, 1), "essaformer_tiny": (8, 2), "low_rank": (31, 1)}  # bands, scale
WIDTH, HEIGHT, TIMES = 96, 96, (1, 4, 16)
SIDES, DIM, REPEATS = (24, 48, 96), 64, 15
console = Console(stderr=True, soft_wrap=True)


def work(network: str, height: int, out: str) -> dict[str, Any]:
    """Restore a random scene of a height from file to file, and return seconds and peak bytes."""
    import torch

    from vitreous.catalog.registry import create_model
    from vitreous.data.contract import BandContract
    from vitreous.inference.bench import peak_memory
    from vitreous.inference.restore import SceneRestorer, restored_scene
    from vitreous.layers.ranges import BandRange
    from vitreous.scenes import open_scene, write_scene
    from vitreous.scenes.cube import make_scene

    torch.manual_seed(0)
    bands, scale = NETWORKS[network]
    folder = Path(out)
    values = np.random.default_rng(0).random((bands, height, WIDTH), dtype=np.float32)
    write_scene(make_scene(values), folder / "scene.tif")
    del values
    scene = open_scene(folder / "scene.tif")
    net: Any = create_model(network, bands=bands, **({"scale": scale} if scale > 1 else {}))
    restorer = SceneRestorer(net.eval(), BandRange(bands), BandContract.of(scene))
    write_scene(restored_scene(restorer, scene.isel(y=slice(0, 64))), folder / "warm.tif")
    forget_peak()
    before, started = peak_memory(), time.perf_counter()
    write_scene(restored_scene(restorer, scene), folder / "restored.tif")
    return {"seconds": time.perf_counter() - started, "before": before, "memory": peak_memory()}


def restoring(network: str) -> list[dict[str, Any]]:
    """Restore scenes of growing height; return a row for each."""
    rows: list[dict[str, Any]] = []
    for times in TIMES:
        with tempfile.TemporaryDirectory() as folder:
            height = HEIGHT * times
            found = in_own_process(__file__, {"network": network, "height": height, "out": folder})
        seconds = found["seconds"]
        rows.append(
            {
                "network": network,
                "scene": f"{height} x {WIDTH} x {NETWORKS[network][0]} bands",
                "seconds": round(seconds, 2),
                "pixels/s": round(height * WIDTH / seconds),
                "times as long": round(seconds / rows[0]["seconds"], 2) if rows else 1,
                "times as high": times,
                "peak memory MiB": round(found["memory"] / 2**20),
                "before MiB": round(found["before"] / 2**20),
            }
        )
        console.print(str(rows[-1]), highlight=False)
    return rows


def attending() -> list[dict[str, Any]]:
    """Time both kinds of attention at several sizes, interleaved; processor time."""
    import torch

    from vitreous.inference.bench import cpu_seconds
    from vitreous.models.essaformer import Attention

    torch.manual_seed(0)
    kinds = {kind: Attention(DIM, kind).eval() for kind in ("essa", "softmax")}
    tokens = {side: torch.randn(1, side * side, DIM) for side in SIDES}
    calls = {
        (kind, side): partial(module, tokens[side])
        for side in SIDES
        for kind, module in kinds.items()
    }
    with torch.inference_mode():
        seconds = cpu_seconds(calls, REPEATS, typical=median)
    return [
        {
            "attention": kind,
            "tokens": side * side,
            "milliseconds": round(1000 * seconds[kind, side], 3),
            "times the one before": None
            if side == SIDES[0]
            else round(seconds[kind, side] / seconds[kind, side // 2], 2),
        }
        for kind in kinds
        for side in SIDES
    ]


def conclude(scenes: list[dict[str, Any]], tokens: list[dict[str, Any]]) -> str:
    """Say in words whether time and memory grow as they should."""
    words = []
    for network in NETWORKS:
        first, *_, last = (row for row in scenes if row["network"] == network)
        grown = last["peak memory MiB"] - first["peak memory MiB"]
        words.append(
            f"{network}: {last['times as high']} times the rows take {last['times as long']} times the time and "
            f"{grown:+d} MiB of memory."
        )
    for kind in ("essa", "softmax"):
        steps = [
            str(row["times the one before"])
            for row in tokens
            if row["attention"] == kind and row["times the one before"] is not None
        ]
        words.append(
            f"Four times the tokens take {kind} {' and then '.join(steps)} times the time."
        )
    return " ".join(words)


def main() -> None:
    """Measure, show and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        print(json.dumps(work(**json.loads(given.worker))))
        return
    tokens = attending()
    show("Attention", tokens)
    scenes = [row for network in NETWORKS for row in restoring(network)]
    show(TITLE, scenes)
    words = conclude(scenes, tokens)
    print(words)
    write_result(
        RESULT,
        title=TITLE,
        command="python benchmarks/restoration.py",
        rows=[*scenes, *tokens],
        conclusion=words,
    )


if __name__ == "__main__":
    sys.exit(main())
