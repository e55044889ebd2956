"""What 8-bit integers bring on this machine, image by image: whole networks with torch, ONNX Runtime and OpenVINO.

DeiT-S at 224 pixels and LoLA-SpecViT's CPU variant on patches of 15 x 15 pixels of 15 components, with random weights,
which do not change the cost: floats in eager torch, floats as exported, and 8 bits as exported, as docs/compression.md
advises for processors without VNNI: weights of seven bits, and the attention's products left in floats. All take turns
on the same images, so that whatever else the machine does hits all alike; each round's times are divided by eager
torch's of the same round. The integers are compared with their simulation in torch too. Asked for: a speed-up of 2.5 over
floats in eager torch.

What 8 bits bring to a whole map, and cost in accuracy, is in ``compression.py``.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from _common import RESULTS, show
from rich.console import Console
from torch import nn

from vitreous.catalog.registry import create_model
from vitreous.catalog.results import write_result
from vitreous.inference.bench import by_turns
from vitreous.inference.export import Part, write_graph
from vitreous.inference.export_format import file_names
from vitreous.inference.integers import integer_form
from vitreous.inference.runtimes import Graph
from vitreous.methods._apply import apply

RESULT = RESULTS / "integers.json"
TITLE = "8-bit integer inference: throughput"
# Bands, classes, side and images of a batch.
NETWORKS: dict[str, tuple[int, int, int, int]] = {
    "vit_small": (3, 1000, 224, 8),
    "lola_specvit_tiny": (15, 16, 15, 64),
}
QUANTIZED = {"bits": (7, 8), "skip": ["*.matmul_*"]}
RUNTIMES = ("onnxruntime", "openvino")
FORM = "onnx"  # both read it, and weights of seven bits are the same in it for either
FLOATS, INTEGERS = "float32", "int8"
ROUNDS = 11
ASKED = 2.5
EAGER = ("torch", FLOATS)
Array = npt.NDArray[np.float32]
console = Console(stderr=True, soft_wrap=True)


def exported(model: nn.Module, images: torch.Tensor) -> list[bytes]:
    """Return the files of a network's graph."""
    ready, _ = integer_form(model, FORM)
    with tempfile.TemporaryDirectory() as folder:
        write_graph(Part(ready, images[:2], (0,)), Path(folder) / "graph", FORM, "the network")
        return [(Path(folder) / name).read_bytes() for name in file_names("graph", FORM)]


def eager(model: nn.Module) -> Callable[[Array], Array]:
    """Return a network as torch computes it."""

    def compute(values: Array) -> Array:
        with torch.inference_mode():
            found: Array = model(torch.from_numpy(values)).numpy()
        return found

    return compute


def measure(name: str, rounds: int) -> list[dict[str, Any]]:
    """Build a network in all ways, and time them interleaved."""
    bands, classes, side, batch = NETWORKS[name]
    torch.manual_seed(0)
    dense = create_model(name, bands=bands, num_classes=classes, image_size=side).eval()
    images = torch.randn(batch, bands, side, side)
    small = apply(dense, "ptq_minmax", calibration=[images], **QUANTIZED).model.eval()
    ways: dict[tuple[str, str], Callable[[Array], Array]] = {EAGER: eager(dense)}
    for arithmetic, model in ((FLOATS, dense), (INTEGERS, small)):
        files = exported(model, images)
        for runtime in RUNTIMES:
            ways[runtime, arithmetic] = Graph(files, FORM, runtime, torch.get_num_threads())
    values = images.numpy()
    expected = {FLOATS: eager(dense)(values), INTEGERS: eager(small)(values)}
    off = {way: deviation(call(values), expected[way[1]]) for way, call in ways.items()}
    seconds = by_turns(
        {way: partial(call, values) for way, call in ways.items()}, rounds, warm_up=1
    )
    rows = [row_of(name, way, seconds, off[way]) for way in ways]
    for row in rows:
        console.print(str(row), highlight=False)
    return rows


def deviation(found: Array, expected: Array) -> float:
    """Return the root mean square difference in units of the scores' own spread."""
    return float(np.sqrt(np.mean((found - expected) ** 2)) / expected.std())


def row_of(
    name: str, way: tuple[str, str], seconds: Mapping[tuple[str, str], list[float]], off: float
) -> dict[str, Any]:
    """Return a row of the table."""
    batch, (runtime, arithmetic) = NETWORKS[name][3], way
    ratios = [a / b for a, b in zip(seconds[EAGER], seconds[way], strict=True)]
    return {
        "network": name,
        "runtime": runtime,
        "arithmetic": arithmetic,
        "images/s": round(batch / median(seconds[way]), 1),
        "speed-up": round(median(ratios), 2),
        "rounds, from": round(min(ratios), 2),
        "to": round(max(ratios), 2),
        "scores off by, deviations": round(off, 4),
    }


def conclude(rows: list[dict[str, Any]]) -> str:
    """Say whether what was asked for is reached, and where not."""
    words = []
    for name in dict.fromkeys(row["network"] for row in rows):
        own = [row for row in rows if row["network"] == name]
        best = max((r for r in own if r["arithmetic"] == INTEGERS), key=lambda r: r["speed-up"])
        alike = next(r for r in own if (r["runtime"], r["arithmetic"]) == (best["runtime"], FLOATS))
        reached = "reached" if best["speed-up"] >= ASKED else "not reached"
        words.append(
            f"{name}: best speed-up of 8-bit integers over float32 in eager torch {best['speed-up']} "
            f"({best['runtime']}; its float32 reaches {alike['speed-up']}); required: {ASKED}, {reached}."
        )
    return " ".join(words)


def main() -> None:
    """Measure, show and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args()
    rows = [row for name in given.networks for row in measure(name, given.rounds)]
    show(TITLE, rows)
    print(conclude(rows))
    if (given.networks, given.rounds) == (list(NETWORKS), ROUNDS):
        write_result(
            RESULT,
            title=TITLE,
            command="python benchmarks/integers.py",
            rows=rows,
            conclusion=conclude(rows),
            threads=torch.get_num_threads(),
        )


if __name__ == "__main__":
    main()
