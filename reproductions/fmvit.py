"""FMViT's claim in miniature: both frequencies against one of them, and what fused branches save (after arXiv 2311.05707).

The networks are FMViT-style: the authors have published no code, and the wiring is assumed (see the card). Crops of
32 x 32 pixels of three textures of scikit-image lie under one of four slow patterns of light; the class is the pair of
both, so that high and low frequencies are needed. Crops to train with, to choose by and to test on come from different
parts of the textures. Four networks are trained by one recipe: the whole one, one whose fusion blocks only attend, one
whose fusion blocks only convolve, and the whole one with a single branch in each convolution. All start with weights
scaled to their width, and each takes the best of three learning rates, chosen on validation crops with a seed that is
not reported. Each trained network is fused then: scores, parameters, and the processor time of one thread, interleaved.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from vitreous.catalog.claims import Claim, claim, exact, paired
from vitreous.catalog.registry import create_model
from vitreous.catalog.results import first, percents, table_of
from vitreous.catalog.study import Study
from vitreous.data.images import Images
from vitreous.errors import VitreousError
from vitreous.inference.bench import cpu_ratios
from vitreous.layers.convnorm import folded
from vitreous.tasks.miniature import ImageTask, fit_task, scaled_init, turned

EPOCHS, BATCH, RATES = 10, 32, (1e-3, 2e-3, 4e-3)
CROPS = {"training": 720, "validation": 360, "test": 1200}
SIDE, ROUNDS = 32, 15
TEXTURES = "brick", "grass", "gravel"
LIGHT, NOISE = 0.5, 0.5  # standard deviations, as shares of the textures'
SHAPE: dict[str, Any] = {
    "dims": [24, 48],
    "conv_blocks": [1, 1],
    "fusion_blocks": [0, 1],
    "repeats": [1, 2],
    "pools": [4, 2],
    "groups": [2, 4, 8],
    "head_dim": 12,
    "stem_stride": 2,
}
SYSTEMS: dict[str, dict[str, Any]] = {
    "both": {},
    "attention only": {"mixing": "low"},
    "convolutions only": {"mixing": "high"},
    "single branches": {"groups": []},
}
OURS, LOW, HIGH, SINGLE = ARMS = tuple(SYSTEMS)
SLACK = 0.5  # points that ours may be behind the better of attention and convolutions
MOST_ERROR = 1e-4  # of fused scores, as a share of the largest
MOST_TIME = 0.8  # of the fused network, over the unfused one's


def main(quick: bool = False, full: bool = False) -> None:
    """Measure everything; a full run writes ``results/fmvit.json``, a quick one only checks that all of it runs."""
    study = Study(
        __file__,
        "attention and convolutions side by side, and fused branches",
        settings={
            "epochs": EPOCHS,
            "batch": BATCH,
            "rates": RATES,
            "light": LIGHT,
            "noise": NOISE,
            "shape": SHAPE,
            "systems": SYSTEMS,
            **CROPS,
        },
        quick=quick,
        full=full,
    )
    crops = dict.fromkeys(CROPS, 48) if quick else CROPS
    epochs = 1 if quick else EPOCHS
    rounds = 3 if quick else ROUNDS
    measured = partial(measure, epochs=epochs, rounds=rounds)
    study.compare(ARMS, RATES, partial(task, crops=crops), measured)
    study.finish(summary, claims, on="textures under light")


def task(seed: int, crops: dict[str, int]) -> ImageTask:
    """Return crops of the three thirds of the textures, from left to right, and the pairs of texture and light."""
    try:
        from skimage import data
    except ImportError as error:
        raise VitreousError(
            "scikit-image, whose textures this needs, is not installed.",
            "pip install 'vitreous[filters]'.",
        ) from error
    generator = torch.Generator().manual_seed(seed)
    textures = torch.stack([torch.from_numpy(getattr(data, name)()) for name in TEXTURES]).float()
    textures -= textures.mean((1, 2), keepdim=True)
    textures /= textures.std((1, 2), keepdim=True)
    parts = textures.tensor_split((textures.shape[2] // 2, 2 * textures.shape[2] // 3), 2)
    drawn = [
        draw(part, count, generator) for part, count in zip(parts, crops.values(), strict=True)
    ]
    return ImageTask("textures under light", len(TEXTURES) * 4, *drawn)


def draw(textures: Tensor, count: int, generator: torch.Generator) -> Images:
    """Draw crops, put each under a pattern of light of random strength, and add noise."""
    classes = torch.randint(4 * len(textures), (count,), generator=generator)
    corners = [
        torch.randint(length - SIDE + 1, (count,), generator=generator)
        for length in textures.shape[1:]
    ]
    images = torch.stack(
        [
            textures[kind // 4, row : row + SIDE, column : column + SIDE]
            for kind, row, column in zip(
                classes.tolist(), *map(Tensor.tolist, corners), strict=True
            )
        ]
    )
    strength = LIGHT * (0.5 + torch.rand(count, generator=generator))
    noise = NOISE * torch.randn(images.shape, generator=generator)
    lit = images + strength[:, None, None] * light()[classes % 4] + noise
    return Images(lit[:, None], classes)


def light() -> Tensor:
    """Return the four patterns, of unit variance and the same when turned: a dark or bright middle, a dark or bright cross."""
    at = torch.linspace(-1, 1, SIDE)
    far = (at[:, None] ** 2 + at**2).sqrt()
    across = at[:, None] * at
    patterns = torch.stack([far, -far, across.abs(), -across.abs()])
    patterns -= patterns.mean((1, 2), keepdim=True)
    return patterns / patterns.std((1, 2), keepdim=True)


def measure(
    arm: str, seed: int, crops: ImageTask, rate: float, *, epochs: int, rounds: int
) -> dict[str, Any]:
    """Train and score one network, and compare it with its fused form."""
    torch.manual_seed(seed)
    model = scaled_init(create_model("fmvit_test", **crops.shape, **{**SHAPE, **SYSTEMS[arm]}))
    record = fit_task(
        model, crops, rate, epochs=epochs, batch_size=BATCH, seed=seed, augment=turned
    )
    return {**record, **compare_fused(model, crops.test.images[:64], rounds)}


@torch.inference_mode()
def compare_fused(model: nn.Module, images: Tensor, rounds: int) -> dict[str, Any]:
    """Return parameters of a network and of its fused form, how far their scores differ, and the ratio of their times."""
    fused = folded(model)
    scores = model(images)
    return {
        "parameters": _count(model),
        "fused_parameters": _count(fused),
        "error": float((fused(images) - scores).abs().max() / scores.abs().max()),
        "ratios": cpu_ratios(lambda: fused(images), lambda: model(images), rounds),
    }


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the table: one row per network, over its seeds."""
    return table_of(
        records,
        {
            "parameters": first("parameters"),
            "fused": first("fused_parameters"),
            "fused time": lambda own: f"{median(median(r['ratios']) for r in own):.2f} x",
            "learning rate": first("learning_rate"),
            "accuracy %": percents("accuracy"),
        },
    )


def claims(records: Sequence[dict[str, Any]]) -> list[Claim]:
    """Return what the paper claims, as measured."""
    ours = [record for record in records if record["system"] == OURS]
    saved = max(record["fused_parameters"] - record["parameters"] for record in ours)
    return [
        claim("Accuracy, both vs attention only", paired(records, OURS, LOW), at_least=-SLACK),
        claim("Accuracy, both vs convolutions only", paired(records, OURS, HIGH), at_least=-SLACK),
        claim("Accuracy, several branches vs one", paired(records, OURS, SINGLE)),
        exact(
            "Largest difference of fused scores, over the largest score",
            max(record["error"] for record in ours),
            at_most=MOST_ERROR,
            digits=7,
        ),
        exact("Parameters, fused vs unfused", saved, at_most=-1, digits=0, signed=True),
        claim(
            "Processor time of one thread, fused over unfused",
            [median(record["ratios"]) for record in ours],
            at_most=MOST_TIME,
            unit="times",
            digits=2,
            signed=False,
        ),
    ]


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:], full="--full" in sys.argv[1:])
