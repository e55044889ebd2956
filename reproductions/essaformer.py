"""ESSAformer's claim in miniature: attention by squared spectral correlation, linear in the pixels (arXiv 2307.14010).

Indian Pines, 16 averages of neighbouring bands, each scaled to 0 to 1. Crops of 48 x 48 pixels of the upper two thirds
are made 4 times coarser, and three networks of 32 features learn to undo it: with ESSA, with the values alone instead
of it, and with softmax attention. All start with weights scaled to their width, and each takes the best of three
learning rates: by PSNR on the last 24 of these rows, which the search does not train on, with a seed that is not
reported. They are compared on the rows held out, with each other and with bicubic interpolation.

All networks have the bicubic enlargement added to their output (``global_skip``), which the published one has not, and
begin as bicubic interpolation: from nothing, so few steps do not reach it.
Features are dropped nowhere: in a short training that only delays.

What attention costs is measured apart, forward and backward, as processor time of one thread, interleaved: ESSA over
softmax attention on 48 x 48 tokens, and both at twice the tokens over themselves.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitreous.catalog.claims import Claim, claim, paired
from vitreous.catalog.registry import create_model
from vitreous.catalog.results import means, table_of
from vitreous.catalog.study import SEARCH_SEED, Study
from vitreous.data.degradations import Downsample, spoil
from vitreous.inference.bench import cpu_ratios
from vitreous.models.essaformer import Attention
from vitreous.tasks.miniature import (
    Strips,
    band_averages,
    fit_steps,
    random_crops,
    sample_cube,
    scaled_init,
    scaled_strips,
    strip_quality,
    validation_strips,
)

STEPS, BATCH, RATES = 400, 2, (5e-4, 1e-3, 2e-3)
BANDS, DIM, SCALE, CROP = 16, 32, 4, 48
BICUBIC, OURS, VALUE, SOFTMAX = "bicubic", "ESSA", "values alone", "softmax attention"
NETWORKS = {OURS: "essa", VALUE: "value", SOFTMAX: "softmax"}
TOKENS, ROUNDS = 48 * 48, 20  # that attention is timed on; of timing, per seed
FASTER, GROWN, SOFTMAX_GROWN = "time", "time at twice the tokens", "softmax at twice the tokens"
# Whose time is divided by whose: kind of attention and number of tokens.
TIMES = {
    FASTER: (("essa", TOKENS), ("softmax", TOKENS)),
    GROWN: (("essa", 2 * TOKENS), ("essa", TOKENS)),
    SOFTMAX_GROWN: (("softmax", 2 * TOKENS), ("softmax", TOKENS)),
}

# What the claim demands: dB over bicubic; dB that it may be behind the values alone; times slower at twice the tokens.
GAIN, SLACK, GROWTH = 0.5, 0.05, 2.5


def main(quick: bool = False, full: bool = False) -> None:
    """Measure everything; a full run writes ``results/essaformer.json``, a quick one only checks that all of it runs."""
    study = Study(
        __file__,
        "spectral correlation at a linear cost, 4 times finer",
        settings={
            "steps": STEPS,
            "batch": BATCH,
            "rates": RATES,
            "crop": CROP,
            "dim": DIM,
            "times": TIMES,
            "rounds": ROUNDS,
        },
        quick=quick,
        full=full,
        few=1,
    )
    cube = band_averages(sample_cube()[0], BANDS)
    searched, reported = validation_strips(cube), scaled_strips(cube)
    steps, rounds = (1, 2) if quick else (STEPS, ROUNDS)
    rates: dict[str, float] = {}
    for arm in NETWORKS:
        ways = {rate: partial(measure, arm, SEARCH_SEED, searched, rate, steps) for rate in RATES}
        rates[arm] = study.best(ways, system=arm, score="psnr")
    for seed in study.seeds:
        bicubic = create_model("bicubic", bands=BANDS, scale=SCALE)
        study.run(partial(score, bicubic, reported), system=BICUBIC, seed=seed)
        for arm, rate in rates.items():
            measured = partial(measure, arm, seed, reported, rate, steps)
            study.run(measured, system=arm, seed=seed)
        for comparison in TIMES:
            study.run(partial(pace, comparison, rounds), system=comparison, seed=seed)
    study.finish(summary, claims, on="Indian Pines")


def measure(arm: str, seed: int, strips: Strips, rate: float, steps: int) -> dict[str, Any]:
    """Train one network to make crops finer, and score it on the rows that it has not seen."""
    torch.manual_seed(seed)
    model = create_model(
        "essaformer_tiny",
        bands=BANDS,
        dim=DIM,
        scale=SCALE,
        attention=NETWORKS[arm],
        drop=0.0,
    )
    scaled_init(model)

    def next_loss(generator: torch.Generator) -> Tensor:
        crops = random_crops(strips.train, CROP, BATCH, generator)
        return F.l1_loss(model(spoil(Downsample(SCALE), crops, generator)), crops)

    fit_steps(model, next_loss, steps=steps, learning_rate=rate, weight_decay=0.0, seed=seed)
    return {"learning_rate": rate, **score(model, strips)}


@torch.no_grad()
def score(model: nn.Module, strips: Strips) -> dict[str, Any]:
    """Return how well a network makes the coarser test rows finer."""
    coarse = Downsample(SCALE)(strips.test, torch.Generator())
    return {
        **strip_quality(strips, model.eval()(coarse[None])[0], SCALE),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def pace(comparison: str, rounds: int) -> dict[str, Any]:
    """Return, round by round, one attention's processor time over another's, forward and backward, on one thread."""
    ours, theirs = TIMES[comparison]

    def call(kind: str, tokens: int) -> Callable[[], object]:
        module = Attention(DIM, kind)
        values = torch.randn(1, tokens, DIM, generator=torch.Generator().manual_seed(0))
        return lambda: module(values).sum().backward()

    return {"ratios": cpu_ratios(call(*ours), call(*theirs), rounds)}


def summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the table: one row per system, over its seeds."""
    return table_of(
        [record for record in records if record["system"] not in TIMES],
        {
            "parameters": lambda own: own[0]["parameters"] or None,
            "learning rate": lambda own: own[0].get("learning_rate"),  # bicubic has none
            "PSNR, dB": means("psnr"),
            "SSIM": means("ssim", 3),
            "SAM, degrees": means("sam", 3),
        },
    )


def claims(records: Sequence[dict[str, Any]]) -> list[Claim]:
    """Return what the paper claims, as measured."""
    psnr = partial(paired, records, OURS, score="psnr", factor=1.0)
    times = {
        comparison: [median(r["ratios"]) for r in records if r["system"] == comparison]
        for comparison in TIMES
    }
    decibels: dict[str, Any] = {"unit": "dB", "digits": 2}
    ratio: dict[str, Any] = {"unit": "times", "digits": 2, "signed": False}
    return [
        claim("PSNR, ESSA vs bicubic", psnr(BICUBIC), at_least=GAIN, **decibels),
        claim("PSNR, ESSA vs the values alone", psnr(VALUE), at_least=-SLACK, **decibels),
        claim("PSNR, ESSA vs softmax attention", psnr(SOFTMAX), **decibels),
        claim(
            "Spectral angle, ESSA vs bicubic",
            paired(records, OURS, BICUBIC, "sam", factor=1.0),
            at_most=0.0,
            unit="degrees",
            digits=3,
        ),
        claim(
            f"Processor time of one thread on {TOKENS} tokens, ESSA over softmax attention",
            times[FASTER],
            at_most=1.0,
            **ratio,
        ),
        claim("Growth of ESSA's time at twice the tokens", times[GROWN], at_most=GROWTH, **ratio),
        claim("The same of softmax attention", times[SOFTMAX_GROWN], **ratio),
    ]


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:], full="--full" in sys.argv[1:])
