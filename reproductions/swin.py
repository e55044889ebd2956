"""Swin's claim in miniature: windows that shift let distant parts of an image meet (arXiv 2103.14030, table 4).

Scenes of 32 x 32 pixels show two letters, each in another quadrant, at random places in it: are they the same? No
letter alone tells anything. Three networks of two stages are trained by one recipe: with windows that shift, with
windows that stay (8 pixels in the first stage, a quadrant in the second), and with global attention. Windows that
stay never see two quadrants together, and a sum over quadrants does not compare them. All start with weights scaled to
their width, and each takes the best of three learning rates, chosen on validation scenes with a seed that is not
reported. With few scenes or high rates shifted windows stay at chance on some seeds, which says nothing of windows:
comparing across them is learnt late. So there are many scenes, and rates go low.

Tokens are 4 pixels and windows 2 x 2 tokens, for speed; with 2 pixels and 4 x 4 the windows would cover as much. The
scenes are a toy by design: what an ablation needs is a task that cannot be solved within a window.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vitreous.catalog.claims import Claim, claim, exact, paired
from vitreous.catalog.registry import create_model
from vitreous.catalog.results import first, percents, table_of
from vitreous.catalog.study import Study
from vitreous.data.images import Images
from vitreous.tasks.miniature import ImageTask, fit_task, scaled_init

EPOCHS, BATCH, RATES = 8, 32, (5e-4, 1e-3, 2e-3)
COUNTS = {"training": 6000, "validation": 500, "test": 1000}
SIDE, LETTERS, JITTER, NOISE = 32, "XO", 2, 0.1
NETWORK = {"dim": 32, "depths": [2, 2], "heads": [2, 4], "token_size": 4, "drop_path": 0.0}
SYSTEMS: dict[str, dict[str, Any]] = {
    "shifted windows": {"window": 2},
    "fixed windows": {"window": 2, "shift": False},
    "global attention": {"window": 1000},
}
SHIFTED, FIXED, GLOBAL = ARMS = tuple(SYSTEMS)
GAIN = 3.0  # points that the claim demands of shifting
GROWTH = 4.0  # of attention's multiply-adds at twice the side, at most


def main(quick: bool = False, full: bool = False) -> None:
    """Measure everything; a full run writes ``results/swin.json``, a quick one only checks that all of it runs."""
    study = Study(
        __file__,
        "shifted windows connect distant tokens",
        settings={
            "epochs": EPOCHS,
            "batch": BATCH,
            "rates": RATES,
            "network": NETWORK,
            "systems": SYSTEMS,
            **COUNTS,
        },
        quick=quick,
        full=full,
    )
    counts = dict.fromkeys(COUNTS, 64) if quick else COUNTS
    epochs = 1 if quick else EPOCHS
    study.compare(ARMS, RATES, partial(task, counts=counts), partial(measure, epochs=epochs))
    study.finish(summary, claims, on="toy: two letters")


def task(seed: int, counts: dict[str, int]) -> ImageTask:
    """Return the scenes of a seed."""
    images, same = scenes(sum(counts.values()), seed)
    sizes = [*counts.values()]
    parts = zip(images.split(sizes), same.split(sizes), strict=True)
    return ImageTask("toy: two letters", 2, *(Images(*part) for part in parts))


def scenes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return images ``(count, 1, 32, 32)`` of two letters on noise, and 1 where both are the same."""
    draw = np.random.default_rng(seed)
    letters = [letter(text) for text in LETTERS]
    height, width = letters[0].shape
    images = draw.normal(0, NOISE, (count, 1, SIDE, SIDE))
    same = draw.integers(2, size=count)
    half = SIDE // 2
    for image, alike in zip(images, same, strict=True):
        one = draw.integers(2)
        for which, quadrant in zip(
            (one, one if alike else 1 - one), draw.permutation(4)[:2], strict=True
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
    """Return a network with fresh weights for images of ``side`` pixels."""
    shape = {"bands": 1, "num_classes": 2, "image_size": side}
    return create_model("swin_tiny", **shape, **NETWORK, **SYSTEMS[arm])


def measure(arm: str, seed: int, images: ImageTask, rate: float, *, epochs: int) -> dict[str, Any]:
    """Train and score one network, and count what its attention costs."""
    torch.manual_seed(seed)
    model = scaled_init(build(arm, SIDE))
    record = fit_task(model, images, rate, epochs=epochs, batch_size=BATCH, seed=seed)
    return {
        **record,
        "parameters": sum(p.numel() for p in model.parameters()),
        "attention_macs": [attention_macs(arm, side) for side in (SIDE, 2 * SIDE)],
    }


def attention_macs(arm: str, side: int) -> int:
    """Count the multiply-adds of attention itself: queries with keys, and weights with values."""
    counter = FlopCounterMode(display=False)
    with torch.device("meta"), torch.no_grad(), counter:
        build(arm, side).eval()(torch.empty(1, 1, side, side))
    # Products of two batches of matrices; the linear layers multiply by one matrix.
    return int(counter.get_flop_counts()["Global"][torch.ops.aten.bmm]) // 2


def growth(record: dict[str, Any]) -> float:
    """Return how many times attention's multiply-adds a system takes at twice the side."""
    small, large = record["attention_macs"]
    return float(large / small)


def summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the table: one row per network, over its seeds."""
    return table_of(
        records,
        {
            "parameters": first("parameters"),
            "learning rate": first("learning_rate"),
            "accuracy %": percents("accuracy"),
            "attention at twice the image side": lambda own: f"x {growth(own[0]):g}",
        },
    )


def claims(records: Sequence[dict[str, Any]]) -> list[Claim]:
    """Return what the paper claims, as measured."""
    grown = {record["system"]: growth(record) for record in records}
    return [
        claim("Accuracy, shifted vs fixed windows", paired(records, SHIFTED, FIXED), at_least=GAIN),
        claim("Accuracy, shifted windows vs global attention", paired(records, SHIFTED, GLOBAL)),
        exact(
            "Growth of attention multiply-adds at twice the image side, windows",
            grown[SHIFTED],
            at_most=GROWTH,
            unit="times",
        ),
        exact(
            "Growth of attention multiply-adds at twice the image side, global attention",
            grown[GLOBAL],
            unit="times",
        ),
    ]


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:], full="--full" in sys.argv[1:])
