"""RepQ-ViT's claim in miniature: 4 bits with one range per tensor, on a ViT whose channels differ (arXiv 2212.08254).

A small ViT learns handwritten digits. Then three random channels behind every LayerNorm are made twenty times as loud,
and the layer that reads them twenty times as deaf to them: the network computes the same, but one range per tensor has
to span the loud channels, as large trained transformers make it do. All of it is quantized to 4 bits by 32 images,
with one range per tensor, one per channel behind norms, and one per channel folded into one per tensor (the method);
the other codes for attention, and ranges of true extremes and percentiles, are beside them.

Apart from it, uniform and logarithmic codes of 4 bits are compared on random, diffuse attention (scores of spread 1).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from vitreous.catalog.registry import create_model
from vitreous.catalog.results import percent, verdict, write_result
from vitreous.layers.quantize import LogSqrt2Quantizer, Quantizer, UniformQuantizer
from vitreous.methods._apply import apply
from vitreous.tasks.miniature import accuracy, divided_digits, fit_images, with_loud_channels

SEEDS, EPOCHS, BATCH, TRAIN, CALIBRATION = 3, 30, 32, 1000, 32
NETWORK = {"dim": 48, "depth": 4, "heads": 4, "token_size": 2, "mlp_ratio": 4.0}
LOUD, FACTOR = 3, 20.0
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

RESULT = Path(__file__).parent / "results" / "repq_vit.json"


def main(quick: bool = False) -> None:
    """Measure everything and write ``results/repq_vit.json``; ``quick`` runs it all in little and writes nothing."""
    started = time.perf_counter()
    records = []
    for seed in range(1 if quick else SEEDS):
        train, train_classes, test, classes = divided_digits(seed, side=8, training=TRAIN)
        train, test = 2 * train - 1, 2 * test - 1
        torch.manual_seed(seed)
        model = create_model("vit_test", bands=1, num_classes=10, image_size=8, **NETWORK)
        fit_images(
            model, train, train_classes, epochs=1 if quick else EPOCHS, batch_size=BATCH, seed=seed
        )
        model = with_loud_channels(model, seed, LOUD, FACTOR)
        records.append({"system": FLOAT, "seed": seed, "accuracy": accuracy(model, test, classes)})
        for arm, (name, settings) in ARMS.items():
            began = time.perf_counter()
            batches = [train[:CALIBRATION]]
            quantized = apply(model, name, calibration=batches, bits=BITS, **settings).model
            record = {
                "system": arm,
                "seed": seed,
                "calibration_seconds": time.perf_counter() - began,
                "accuracy": accuracy(quantized, test, classes),
            }
            records.append(record)
            print(record, file=sys.stderr)
    errors = [attention_errors(seed) for seed in range(1 if quick else SEEDS)]
    print(errors, file=sys.stderr)
    if quick:
        return
    write_result(
        RESULT,
        title="repq_vit: 4 bits where channels differ (digits)",
        command="vitreous reproduce repq_vit",
        rows=summary(records),
        conclusion=conclude(records, errors),
        bits=BITS,
        epochs=EPOCHS,
        calibration_images=CALIBRATION,
        attention_errors=errors,
        seconds=time.perf_counter() - started,
        runs=records,
    )


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
    rows = []
    for arm in (FLOAT, *ARMS):
        own = [r for r in records if r["system"] == arm]
        rows.append(
            {
                "ranges behind norms": arm,
                "bits": "32" if arm == FLOAT else "W{}A{}".format(*BITS),
                "seeds": len(own),
                "accuracy %": percent([r["accuracy"] for r in own]),
            }
        )
    return rows


def conclude(records: Sequence[dict[str, Any]], errors: Sequence[dict[str, float]]) -> str:
    """Say in words what the numbers say of the claim, also where it does not hold."""
    points = {
        arm: 100 * mean(r["accuracy"] for r in records if r["system"] == arm)
        for arm in (FLOAT, *ARMS)
    }
    gain, loss = points[OURS] - points[TENSOR], points[CHANNELS] - points[OURS]
    uniform, root = (mean(e[name] for e in errors) for name in ("uniform", "log_sqrt2"))
    better = all(e["log_sqrt2"] < e["uniform"] for e in errors)
    return (
        f"Folded ranges are {gain:+.1f} points from one range per tensor, where the claim demands {GAIN:+.1f}: "
        f"{verdict(gain >= GAIN)}. They are {-loss:+.1f} from one range per channel, where {-LOSS:+.1f} is allowed: "
        f"{verdict(loss <= LOSS)}; and {points[OURS] - points[FLOAT]:+.1f} from floating point. On diffuse attention "
        f"log-sqrt2 codes leave {root:.3f} of the product's square, uniform ones {uniform:.3f}; that they leave less: "
        f"{verdict(better)}."
    )


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:])
