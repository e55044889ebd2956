"""TNT's claim in miniature: words inside patches see what a plain ViT's patches do not (arXiv 2103.00112).

Three networks with tokens of 8 x 8 pixels are trained by one recipe: TNT with 4 x 4 words per patch, TNT without
attention among the words, and a plain ViT of the same width whose feed-forwards are widened until it has no fewer
parameters than TNT. All start with weights scaled to their width, and each takes the best of three learning rates,
chosen on validation images with a seed that is not reported. By default the images are toy digits of 16 x 16 pixels: a
patch is a quarter of the digit, so that what decides lies inside the patches, and random shifts in training move it about
in them. ``--data FOLDER`` takes real images of 32 x 32, shifted and mirrored.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vitreous.catalog.claims import Claim, claim, exact, paired
from vitreous.catalog.registry import create_model
from vitreous.catalog.results import first, percents, table_of
from vitreous.catalog.study import Study
from vitreous.inference.cost import count_cost
from vitreous.tasks.miniature import (
    ImageTask,
    fit_task,
    image_task,
    scaled_init,
    shifted,
    shifted_and_mirrored,
)

EPOCHS, BATCH, RATES = {"toy": 30, "real": 12}, 32, (1e-3, 2e-3, 4e-3)
OUTER = {"dim": 48, "depth": 3, "heads": 3, "token_size": 8}
INNER = {"inner_dim": 12, "inner_heads": 2, "inner_stride": 2, "mlp_ratio": 4.0}
OURS, SILENT, PLAIN = ARMS = ("TNT", "TNT without word attention", "ViT")

# What the claim demands: points of accuracy, and the inner path's share of TNT-S in percent.
GAIN, SLACK = 1.0, 0.3
SHARE = 25.0


def main(quick: bool = False, full: bool = False, data: Path | None = None) -> None:
    """Measure everything; a full run writes ``results/tnt.json``, a quick one only checks that all of it runs."""
    epochs = EPOCHS["toy" if data is None else "real"]
    study = Study(
        __file__,
        "attention within patches",
        settings={"epochs": epochs, "batch": BATCH, "rates": RATES, "outer": OUTER, "inner": INNER},
        quick=quick,
        full=full,
        data=data,
    )
    augment = shifted if data is None else shifted_and_mirrored
    measured = partial(measure, epochs=1 if quick else epochs, augment=augment)
    study.compare(ARMS, RATES, partial(task, data=data), measured)
    study.finish(summary, claims, on=task(0, data).name, inner_share=inner_share())


def task(seed: int, data: Path | None) -> ImageTask:
    """Return the images of a seed."""
    if data is None:
        return image_task(seed, 16, training=1000)
    return image_task(seed, 32, data=data, validation=500)


def build(arm: str, shape: dict[str, int]) -> torch.nn.Module:
    """Return a network with fresh weights."""
    if arm != PLAIN:
        ours = create_model("tnt_test", **shape, **OUTER, **INNER, word_attention=arm == OURS)
        return scaled_init(ours)
    wanted, ratio = parameters(build(OURS, shape)), 4.0
    while parameters(model := create_model("vit_test", **shape, **OUTER, mlp_ratio=ratio)) < wanted:
        ratio += 0.25
    return scaled_init(model)


def parameters(model: torch.nn.Module) -> int:
    """Return the number of weights."""
    return sum(p.numel() for p in model.parameters())


def measure(
    arm: str, seed: int, images: ImageTask, rate: float, *, epochs: int, augment: Any
) -> dict[str, Any]:
    """Train and score one network."""
    torch.manual_seed(seed)
    model = build(arm, images.shape)
    record = fit_task(
        model, images, rate, epochs=epochs, batch_size=BATCH, seed=seed, augment=augment
    )
    bands, side = images.train.images.shape[1:3]
    return {
        **record,
        "parameters": parameters(model),
        "macs": count_cost(model, bands, side).macs,
    }


def inner_share() -> float:
    """Return the share of TNT-S's multiply-adds that a plain ViT of its width and depth does without."""
    shape = {"bands": 3, "num_classes": 1000, "image_size": 224}
    with torch.device("meta"):
        macs = [
            count_cost(create_model(name, **shape), 3, 224).macs
            for name in ("vit_small", "tnt_small")
        ]
    return 1 - macs[0] / macs[1]


def summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the table: one row per network, over its seeds."""
    return table_of(
        records,
        {
            "parameters": first("parameters"),
            "multiply-adds, M": lambda own: round(own[0]["macs"] / 1e6, 2),
            "learning rate": first("learning_rate"),
            "accuracy %": percents("accuracy"),
        },
    )


def claims(records: Sequence[dict[str, Any]], inner_share: float) -> list[Claim]:
    """Return what the paper claims, as measured."""
    return [
        claim("Accuracy, TNT vs ViT", paired(records, OURS, PLAIN), at_least=GAIN),
        claim("Gain from word attention", paired(records, OURS, SILENT), at_least=-SLACK),
        exact(
            "Additional multiply-adds of TNT-S over a ViT",
            100 * inner_share,
            at_most=SHARE,
            unit="%",
        ),
    ]


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:], full="--full" in sys.argv[1:])
