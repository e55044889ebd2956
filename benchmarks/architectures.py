"""Our architectures against our own unfused path, in one run on the CPU.

The unfused path is the same network with the same weights, its attention written out as the papers have it (product,
softmax, product), relative position biases expanded anew at every call, and the mixers of ``_transcriptions.py`` as their
references write them. This measures what fusing is worth; it is not
a comparison with another library, for which see ``peers.py``. Calls alternate on one thread, and the least processor
time of each counts, so that other work on the machine matters little.
"""

from __future__ import annotations

import argparse
import copy
from statistics import median
from typing import Any

import torch
from _common import RESULTS, show
from _transcriptions import transcribe
from rich.console import Console
from torch import nn

from vitreous.catalog.registry import create_model
from vitreous.catalog.results import write_result
from vitreous.inference.bench import cpu_seconds
from vitreous.layers.attention import AttentionCore
from vitreous.layers.windows import RelativePositionBias

RESULT = RESULTS / "architectures.json"
TITLE = "Architectures compared with their own unfused path"
VARIANTS = (
    "vit_small",
    "swin_tiny",
    "coswin_base",
    "crossformer_tiny",
    "sret_tiny",
    "convnext_tiny",
    "crossvit_small",
    "cvt_13",
    "t2t_vit_14",
    "tnt_small",
    "efficientvit_m4",
    "efficientformer_l1",
    "spectformer_xsmall",
    "smt_tiny",
    "hornet_tiny",
    "hornet_tiny_gf",
    "fmvit_tiny",
    "dhvt_tiny",
)
ROUNDS = 7
console = Console(stderr=True, soft_wrap=True)


def transcribed(model: nn.Module) -> nn.Module:
    """Return a copy that computes the same step by step."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, AttentionCore):
            module.explicit = True
        if isinstance(module, RelativePositionBias):
            module.forward = module._expand  # anew at every call
        transcribe(module)
    return model


def compare(name: str, batch: int, size: int, rounds: int) -> dict[str, Any]:
    """Time both, forward and forward with backward."""
    torch.manual_seed(0)
    ours = create_model(name, bands=3, num_classes=1000, image_size=size)
    plain = transcribed(ours)
    images = torch.randn(batch, 3, size, size)
    with torch.inference_mode():
        torch.testing.assert_close(ours.eval()(images), plain.eval()(images), rtol=1e-3, atol=1e-4)
    row: dict[str, Any] = {"model": name}
    for way in ("forward", "forward and backward"):
        calls = {
            "ours": lambda w=way: _call(ours, images, w),
            "plain": lambda w=way: _call(plain, images, w),
        }
        seconds = cpu_seconds(calls, rounds)
        row[f"{way}, ms"] = round(1e3 * seconds["ours"], 1)
        row[f"{way}, transcribed ms"] = round(1e3 * seconds["plain"], 1)
        row[f"{way}, times faster"] = round(seconds["plain"] / seconds["ours"], 3)
    console.print(str(row), highlight=False)
    return row


def _call(model: nn.Module, images: torch.Tensor, way: str) -> None:
    if way == "forward":
        model.eval()
        with torch.inference_mode():
            model(images)
    else:
        model.train()
        model.zero_grad(set_to_none=True)
        model(images).sum().backward()


def conclude(rows: list[dict[str, Any]]) -> str:
    """Say whether ours is slower anywhere."""
    words = []
    for way in ("forward", "forward and backward"):
        ratios = {row["model"]: row[f"{way}, times faster"] for row in rows}
        slower = [name for name, ratio in ratios.items() if ratio < 0.98]
        words.append(
            f"{way.capitalize()}: median speed-up {median(ratios.values()):.2f}, "
            + (f"slower for {', '.join(slower)}." if slower else "never slower.")
        )
    return " ".join(words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(VARIANTS))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = [compare(name, given.batch, given.image_size, given.rounds) for name in given.models]
    show(TITLE, rows)
    print(conclude(rows))
    if given.models == list(VARIANTS):
        write_result(
            RESULT,
            title=TITLE,
            command="python benchmarks/architectures.py",
            rows=rows,
            conclusion=conclude(rows),
        )


if __name__ == "__main__":
    main()
