"""RepQ-ViT's claim in miniature: 4 bits with one range per tensor, on a ViT whose channels differ (arXiv 2212.08254).

A small ViT is trained. Then three random channels behind every LayerNorm are made twenty times as loud, and the layer
that reads them twenty times as deaf to them: the network computes the same, but one range per tensor has to span the
loud channels, as in large trained transformers. All of it is quantized to 4 bits by 32 images, with one range per
tensor, one per channel behind norms, and one per channel folded into one per tensor (the method); besides, other codes
for attention, and ranges of true extremes and percentiles. By default the images are toy digits; ``--data FOLDER`` takes
real ones.

Separately, uniform and logarithmic codes of 4 bits are compared on random, diffuse attention (scores of spread 1).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vitreous.catalog.claims import Claim, claim, paired
from vitreous.catalog.results import percents, table_of
from vitreous.catalog.study import Study
from vitreous.layers.quantizers import LogSqrt2Quantizer, Quantizer, UniformQuantizer
from vitreous.methods._apply import apply
from vitreous.tasks.miniature import (
    FACTOR,
    LOUD,
    QUANTIZED_EPOCHS,
    QUANTIZED_VIT,
    accuracy,
    vit_with_loud_channels,
)

CALIBRATION = 32
BITS = (4, 4)

FLOAT, OURS, CHANNELS, TENSOR = "float", "folded (RepQ-ViT)", "per channel", "per tensor"
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    TENSOR: ("repq_vit", {"norm_scales": "tensor"}),
    CHANNELS: ("repq_vit", {"norm_scales": "channels"}),
    OURS: ("repq_vit", {}),
    "folded, log2 attention": ("repq_vit", {"softmax": "log2"}),
    "folded, uniform attention": ("repq_vit", {"softmax": "uniform"}),
    "folded, zero points not rounded": ("repq_vit", {"round_zero_point": False}),
    "percentiles per tensor": ("ptq_percentile", {}),
    "extremes per tensor": ("ptq_minmax", {}),
}
# Points that the claim demands of folding over one range per tensor, and allows under one per channel.
GAIN, LOSS = 10.0, 3.0


def main(quick: bool = False, full: bool = False, data: Path | None = None) -> None:
    """Measure everything; a full run writes ``results/repq_vit.json``, a quick one only checks that all of it runs."""
    study = Study(
        __file__,
        "4 bits with outlier channels",
        settings={
            "network": [QUANTIZED_VIT, QUANTIZED_EPOCHS, LOUD, FACTOR],
            "calibration": CALIBRATION,
            "bits": BITS,
            "arms": ARMS,
        },
        quick=quick,
        full=full,
        data=data,
    )
    for seed in study.seeds:
        study.group(partial(measure, seed, data, quick), seed=seed)
    errors = [attention_errors(seed) for seed in study.seeds]
    study.finish(
        summary,
        claims,
        on="toy: 8 x 8 digits" if data is None else data.name,
        attention_errors=errors,
    )


def measure(seed: int, data: Path | None, quick: bool) -> list[dict[str, Any]]:
    """Train one network, quantize it in every way, and score all of them on the same images."""
    task, model = vit_with_loud_channels(seed, data, quick)
    records: list[dict[str, Any]] = [{"system": FLOAT, "accuracy": accuracy(model, *task.test)}]
    for arm, (name, settings) in ARMS.items():
        began = time.perf_counter()
        batches = [task.train.images[:CALIBRATION]]
        quantized = apply(model, name, calibration=batches, bits=BITS, **settings).model
        records.append(
            {
                "system": arm,
                "calibration_seconds": time.perf_counter() - began,
                "accuracy": accuracy(quantized, *task.test),
            }
        )
    return records


def attention_errors(seed: int) -> dict[str, float]:
    """Return the relative squared error of attention's product with values, by the codes of attention."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(8, 4, 65, 65, generator=generator).softmax(-1)
    value = torch.randn(8, 4, 65, 16, generator=generator)
    exact = scores @ value
    found = {}
    kinds: dict[str, Quantizer] = {
        "uniform": UniformQuantizer(4),
        "log_sqrt2": LogSqrt2Quantizer(4),
    }
    for name, quantizer in kinds.items():
        quantizer.calibrate(scores)
        error = quantizer.quantize(scores) @ value - exact
        found[name] = float(error.square().sum() / exact.square().sum())
    return found


def summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the table: one row per way to quantize, over the seeds."""
    return table_of(
        records,
        {
            "bits": lambda own: "32" if own[0]["system"] == FLOAT else "W{}A{}".format(*BITS),
            "accuracy %": percents("accuracy"),
        },
        keys={"ranges after norms": "system"},
    )


def claims(
    records: Sequence[dict[str, Any]], attention_errors: Sequence[dict[str, float]]
) -> list[Claim]:
    """Return what the paper claims, as measured."""
    ratios = [errors["log_sqrt2"] / errors["uniform"] for errors in attention_errors]
    return [
        claim(
            "Accuracy, folded vs one range per tensor", paired(records, OURS, TENSOR), at_least=GAIN
        ),
        claim(
            "Accuracy, folded vs one range per channel",
            paired(records, OURS, CHANNELS),
            at_least=-LOSS,
        ),
        claim("Accuracy, folded vs floating point", paired(records, OURS, FLOAT)),
        claim(
            "Error of diffuse attention, log-sqrt2 relative to uniform codes",
            ratios,
            at_most=1.0,
            unit="",
            digits=2,
            signed=False,
        ),
    ]


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:], full="--full" in sys.argv[1:])
