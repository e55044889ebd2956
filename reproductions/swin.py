"""Swin's claim in miniature: windows that shift let distant parts of an image meet (arXiv 2103.14030, table 4).

Scenes of 32 x 32 pixels show two letters, each in another quadrant, at random places in it: are they the same? No
letter alone tells anything. Three networks of two stages are trained by one recipe: with windows that shift, with
windows that stay (8 pixels in the first stage, a quadrant in the second), and with global attention. Windows that
stay never see two quadrants together, and a sum over quadrants does not compare them.

Tokens are 4 pixels and windows 2 x 2 tokens, for speed; with 2 pixels and 4 x 4 the windows would cover as much.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vitreous.catalog.registry import create_model
from vitreous.catalog.results import percent, verdict, write_result
from vitreous.layers.backbone import init_linear
from vitreous.tasks.miniature import accuracy, fit_images

SEEDS, EPOCHS, TRAIN, TEST = 3, 8, 2000, 1000
SIDE, LETTERS, JITTER, NOISE = 32, "XO", 2, 0.1
RATE, BATCH = 2e-3, 32
INIT = 0.15  # spread of the first weights; narrow networks are nearly silent with 0.02
NETWORK = {"dim": 32, "depths": [2, 2], "heads": [2, 4], "token_size": 4, "drop_path": 0.0}
SHIFTED, FIXED, GLOBAL = "shifted windows", "fixed windows", "global attention"
ARMS: dict[str, dict[str, Any]] = {
    SHIFTED: {"window": 2},
    FIXED: {"window": 2, "shift": False},
    GLOBAL: {"window": 1000},
}
GAIN = 3.0  # points that the claim demands of shifting

RESULT = Path(__file__).parent / "results" / "swin.json"


def main(quick: bool = False) -> None:
    """Measure everything and write ``results/swin.json``; ``quick`` runs it all in little and writes nothing."""
    started = time.perf_counter()
    train, test, epochs = (64, 32, 1) if quick else (TRAIN, TEST, EPOCHS)
    records = []
    for seed in range(1 if quick else SEEDS):
        images, same = scenes(train + test, seed)
        for arm in ARMS:
            torch.manual_seed(seed)
            model, began = build(arm, SIDE), time.perf_counter()
            init_linear(model, INIT)
            fit_images(
                model,
                images[:train],
                same[:train],
                epochs=epochs,
                batch_size=BATCH,
                learning_rate=RATE,
                seed=seed,
            )
            record = {
                "system": arm,
                "seed": seed,
                "accuracy": accuracy(model, images[train:], same[train:]),
                "parameters": sum(p.numel() for p in model.parameters()),
                "attention_macs": [attention_macs(arm, side) for side in (SIDE, 2 * SIDE)],
                "seconds": time.perf_counter() - began,
            }
            records.append(record)
            print(record, file=sys.stderr)
    if quick:
        return
    write_result(
        RESULT,
        title="swin: shifted windows compare what lies apart (two letters)",
        command="vitreous reproduce swin",
        rows=summary(records),
        conclusion=conclude(records),
        epochs=EPOCHS,
        training_images=TRAIN,
        seconds=time.perf_counter() - started,
        runs=records,
    )


def scenes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return images ``(count, 1, 32, 32)`` of two letters on noise, and 1 where both are the same."""
    draw = np.random.default_rng(seed)
    letters = [letter(text) for text in LETTERS]
    height, width = letters[0].shape
    images = draw.normal(0, NOISE, (count, 1, SIDE, SIDE))
    same = draw.integers(2, size=count)
    half = SIDE // 2
    for image, alike in zip(images, same, strict=True):
        first = draw.integers(2)
        for which, quadrant in zip(
            (first, first if alike else 1 - first), draw.permutation(4)[:2], strict=True
        ):
            down, across = draw.integers(JITTER + 1, size=2)
            row = half * (quadrant // 2) + (half - height - JITTER) // 2 + down
            column = half * (quadrant % 2) + (half - width - JITTER) // 2 + across
            image[0, row : row + height, column : column + width] += letters[which]
    return torch.as_tensor(images, dtype=torch.float32), torch.as_tensor(same)


def letter(text: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return a letter rendered on 10 x 8 pixels, from 0 to 1."""
    picture = Image.new("L", (8, 10))
    font = ImageFont.load_default(size=12)
    ImageDraw.Draw(picture).text((4, 5), text, fill=255, font=font, anchor="mm")
    return np.asarray(picture) / 255


def build(arm: str, side: int) -> torch.nn.Module:
    """Return a system with fresh weights for images of ``side`` pixels."""
    return create_model(
        "swin_tiny", bands=1, num_classes=2, image_size=side, **NETWORK, **ARMS[arm]
    )


def attention_macs(arm: str, side: int) -> int:
    """Count the multiply-adds of attention itself: queries with keys, and weights with values."""
    counter = FlopCounterMode(display=False)
    with torch.device("meta"), torch.no_grad(), counter:
        build(arm, side).eval()(torch.empty(1, 1, side, side))
    # Products of two batches of matrices; the linear layers multiply by one matrix.
    return int(counter.get_flop_counts()["Global"][torch.ops.aten.bmm]) // 2


def summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the table: one row per system, over its seeds."""
    rows = []
    for arm in ARMS:
        own = [r for r in records if r["system"] == arm]
        small, large = own[0]["attention_macs"]
        rows.append(
            {
                "system": arm,
                "seeds": len(own),
                "parameters": own[0]["parameters"],
                "accuracy %": percent([r["accuracy"] for r in own]),
                "attention at twice the side": f"x {large / small:g}",
            }
        )
    return rows


def conclude(records: Sequence[dict[str, Any]]) -> str:
    """Say in words what the numbers say of the claim, also where it does not hold."""
    points = {arm: 100 * mean(r["accuracy"] for r in records if r["system"] == arm) for arm in ARMS}
    growth = {r["system"]: r["attention_macs"][1] / r["attention_macs"][0] for r in records}
    gain = points[SHIFTED] - points[FIXED]
    linear = growth[SHIFTED] <= 4 < growth[GLOBAL]
    return (
        f"Shifting the windows is worth {gain:+.1f} points, where the claim demands {GAIN:+.1f}: "
        f"{verdict(gain >= GAIN)}. Shifted windows are {points[SHIFTED] - points[GLOBAL]:+.1f} points from global "
        f"attention. At twice the side, attention in windows costs {growth[SHIFTED]:g} times the multiply-adds, "
        f"global attention {growth[GLOBAL]:g} times; that the cost is linear in the image's size: {verdict(linear)}."
    )


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:])
