"""AdaLog's claim in miniature: a searched base for attention, and searched scales at 3 and 4 bits (arXiv 2407.12951).

First, random attention, from diffuse (scores of spread 1) to sharp (6): what 4 bits leave of its product with values,
with powers of two, of the square root of two, and of the best base. Sharp attention spreads over fewer orders of
magnitude that matter, and asks for finer steps.

Then a small ViT is trained. Three random channels behind every LayerNorm are made twenty times as loud, and the layer
that reads them as deaf to them: the network computes the same, but its channels differ as those of large trained
transformers do. It is quantized to 3, 4 and 6 bits by 32 images: with measured ranges, by RepQ-ViT, and by AdaLog with
the search as published, with ours (the best setting seen is kept, and zero points lie around the range), and at 3 bits
followed by block reconstruction. By default the images are toy digits; ``--data FOLDER`` takes real ones.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import nn

from vitreous.catalog.claims import Claim, claim, differences, paired, scores
from vitreous.catalog.results import percent
from vitreous.catalog.study import Study
from vitreous.layers.quantizers import Log2Quantizer, LogSqrt2Quantizer, Quantizer
from vitreous.methods._apply import apply
from vitreous.methods.quantize._codes import RATIO, AdaLogQuantizer
from vitreous.methods.quantize._fpcs import BASES
from vitreous.tasks.miniature import (
    FACTOR,
    LOUD,
    QUANTIZED_EPOCHS,
    QUANTIZED_VIT,
    ImageTask,
    accuracy,
    vit_with_loud_channels,
)

CALIBRATION = 32
BITS = (3, 4, 6)
ITERATIONS, RECONSTRUCTED_BITS = 300, 3  # of reconstruction, per block

FLOAT, OURS, REPQ = "float", "AdaLog", "RepQ-ViT"
RECONSTRUCTED = f"AdaLog, {ITERATIONS} iterations of reconstruction"
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "extremes per tensor": ("ptq_minmax", {}),
    REPQ: ("repq_vit", {}),
    "AdaLog, search as published": ("adalog", {"published": True}),
    OURS: ("adalog", {}),
    RECONSTRUCTED: ("adalog", {"reconstruct": ITERATIONS}),
}
SEARCHED = [arm for arm in ARMS if arm != RECONSTRUCTED]
SPREADS = (1.0, 3.0, 6.0)  # of the scores before the softmax
ATTENTION_BITS, TOKENS = 4, 65
SLACK = 1.05  # the best base's error over the better of the fixed ones
NEAR = 1.0  # points that 6 bits may cost


def main(quick: bool = False, full: bool = False, data: Path | None = None) -> None:
    """Measure everything; a full run writes ``results/adalog.json``, a quick one only checks that all of it runs."""
    study = Study(
        __file__,
        "searched logarithm bases and scales at 3 and 4 bits",
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
    maps = [attention_errors(spread, seed) for seed in study.seeds for spread in SPREADS]
    for seed in study.seeds:
        study.group(partial(measure, seed, data, quick), seed=seed)
    study.finish(
        summary,
        claims,
        on="toy: 8 x 8 digits" if data is None else data.name,
        remarks=remarks,
        attention_errors=maps,
    )


def measure(seed: int, data: Path | None, quick: bool) -> list[dict[str, Any]]:
    """Train one network, quantize it in every way, and score all of them on the same images."""
    task, model = vit_with_loud_channels(seed, data, quick)
    float_score = accuracy(model, *task.test)
    records: list[dict[str, Any]] = [{"system": FLOAT, "bits": 32, "accuracy": float_score}]
    for bits in BITS[:1] if quick else BITS:
        for arm in ARMS if bits == RECONSTRUCTED_BITS else SEARCHED:
            found = quantized(model, arm, bits, task, quick)
            records.append({"system": arm, "bits": bits, **found})
    return records


def quantized(
    model: nn.Module, arm: str, bits: int, task: ImageTask, quick: bool
) -> dict[str, float]:
    """Return what one way to quantize the model leaves of its accuracy, and how long it takes."""
    name, settings = ARMS[arm]
    if quick and name == "adalog":
        settings = settings | {"rounds": 1, "steps": 2}
        settings["reconstruct"] = min(settings.get("reconstruct", 0), 10)
    began = time.perf_counter()
    batches = [task.train.images[:CALIBRATION]]
    made = apply(model, name, calibration=batches, bits=(bits, bits), **settings)
    return {
        "calibration_seconds": time.perf_counter() - began,
        "accuracy": accuracy(made.model, *task.test),
    }


def attention_errors(spread: float, seed: int) -> dict[str, Any]:
    """Return the relative squared error of attention's product with values, by the codes of attention."""
    generator = torch.Generator().manual_seed(seed)
    scores = spread * torch.randn(8, 4, TOKENS, TOKENS, generator=generator)
    attention = scores.softmax(-1)
    value = torch.randn(8, 4, TOKENS, 16, generator=generator)
    exact = attention @ value

    def error(quantizer: Quantizer) -> float:
        lost = quantizer.quantize(attention) @ value - exact
        return float(lost.square().sum() / exact.square().sum())

    ours, found = AdaLogQuantizer(ATTENTION_BITS), {}
    for base in range(*BASES):
        ours.set_parameters(torch.ones(()), torch.tensor(base))
        found[base] = error(ours)
    best = min(found, key=lambda base: found[base])
    return {
        "spread": spread,
        "seed": seed,
        "log2": error(Log2Quantizer(ATTENTION_BITS)),
        "log_sqrt2": error(LogSqrt2Quantizer(ATTENTION_BITS)),
        "adalog": found[best],
        "q": best,
    }


def summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the table: one row per way to quantize, over the seeds."""
    rows = []
    for arm in (FLOAT, *ARMS):
        own = [r for r in records if r["system"] == arm]
        row: dict[str, Any] = {"system": arm, "seeds": len({r["seed"] for r in own})}
        for bits in BITS:
            some = [r["accuracy"] for r in own if arm == FLOAT or r["bits"] == bits]
            row[f"W{bits}A{bits} %"] = percent(some) if some else ""
        rows.append(row)
    return rows


def claims(
    records: Sequence[dict[str, Any]], attention_errors: Sequence[dict[str, Any]]
) -> list[Claim]:
    """Return what the paper claims, as measured."""
    errors = [m["adalog"] / min(m["log2"], m["log_sqrt2"]) for m in attention_errors]
    bases = {
        spread: {m["seed"]: m["q"] for m in attention_errors if m["spread"] == spread}
        for spread in SPREADS
    }
    diffuse, sharp = SPREADS[0], SPREADS[-1]
    fall = differences(bases[diffuse], bases[sharp], factor=1.0)
    settings: dict[str, Any] = {"unit": "", "signed": False, "digits": 2}
    text = "Error of attention, best base relative to the better fixed base"
    found = [
        claim(text, errors, at_most=SLACK, **settings),
        claim(
            f"q of {RATIO}, diffuse minus sharp attention", fall, at_least=0.0, unit="", digits=0
        ),
    ]
    measured = {r["bits"] for r in records}
    for bits in {3, 4} & measured:
        gains = paired(records, OURS, REPQ, bits=bits)
        found.append(claim(f"Accuracy at W{bits}A{bits}, AdaLog vs RepQ-ViT", gains, at_least=0.0))
    if 6 in measured:
        costs = differences(scores(records, OURS, bits=6), scores(records, FLOAT))
        found.append(claim("Accuracy at W6A6, AdaLog vs floating point", costs, at_least=-NEAR))
    learned = paired(records, RECONSTRUCTED, OURS, bits=RECONSTRUCTED_BITS)
    return [*found, claim("Gain from reconstruction at W3A3", learned)]


def remarks(
    records: Sequence[dict[str, Any]], attention_errors: Sequence[dict[str, Any]]
) -> list[str]:
    """Say which bases were found."""
    bases = [mean(m["q"] for m in attention_errors if m["spread"] == s) for s in SPREADS]
    return [
        f"The best q in {RATIO} is {', '.join(f'{q:.0f}' for q in bases)} for scores of spread "
        f"{', '.join(f'{s:g}' for s in SPREADS)}."
    ]


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:], full="--full" in sys.argv[1:])
