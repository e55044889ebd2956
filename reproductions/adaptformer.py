"""AdaptFormer's claim in miniature: other classes from few labels and few trained parameters (arXiv 2205.13535).

A small ViT is trained on patches of Indian Pines of the classes with odd numbers. Then it is adapted to the others,
with five or ten labelled pixels of each, by training everything, the head alone (linear probe), or the head and
adapters: AdaptFormer's beside the feed-forwards, and LoRA's of about as many weights in the attention. All take the
same steps on the same images in the same order; the learning rate of each is the best of six on a seed that is not
reported. AdamW moves every weight by about its rate, so AdaptFormer's branch is scaled by 1 here; with the paper's SGD
it is 0.1.

Pixels are drawn at random, alike for all: these are not accuracies on held-out ground.
"""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vitreous.catalog.claims import Claim, claim, exact, paired
from vitreous.catalog.results import first, percents, table_of
from vitreous.catalog.study import SEARCH_SEED, Study
from vitreous.layers.preprocess import Preprocess
from vitreous.methods._apply import apply
from vitreous.methods.adapt._freeze import freeze_base
from vitreous.models.vit import VisionTransformer
from vitreous.tasks.miniature import (
    Images,
    accuracy,
    fit_images,
    patches_at,
    sample_cube,
    scaled_init,
    turned,
)

COMPONENTS, SIDE, HALF = (
    15,
    9,
    8,
)  # spectral components, pixels of a patch's side, classes of a half
BASE_SHARE, BASE_EPOCHS, BASE_RATE = 0.5, 20, 1e-3  # of the first half's pixels
LABELS, TEST_IMAGES = (5, 10), 2000  # per class of the second half; of all its classes
STEPS, BATCH = 240, 20
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
NETWORK: dict[str, Any] = {"dim": 96, "depth": 4, "heads": 4, "token_size": 3}
FULL, PROBE, LORA, OURS = "all weights", "head alone (linear probe)", "LoRA and head", "AdaptFormer"
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    LORA: ("lora", {"rank": 4, "targets": "*.qkv"}),
    OURS: ("adaptformer", {"bottleneck": 8, "scale": 1.0}),
}
ARMS = (FULL, PROBE, LORA, OURS)

# What the claim demands: points of overall accuracy, and the largest share of the parameters that may train.
GAIN, SLACK, SHARE = 3.0, 1.0, 0.02


class Bench(NamedTuple):
    """What one seed trains and tests on, and the network that is adapted.

    Attributes:
        train: of every class the most that are labelled, class after class.
        test: pixels of the same classes.
        base: trained on the other classes.
    """

    train: Images
    test: Images
    base: VisionTransformer


def main(quick: bool = False, full: bool = False) -> None:
    """Measure everything; a full run writes ``results/adaptformer.json``, a quick one only checks that all of it runs."""
    study = Study(
        __file__,
        "transfer to new classes with few trained parameters",
        settings={
            "base": [COMPONENTS, SIDE, BASE_SHARE, BASE_EPOCHS, BASE_RATE],
            "network": NETWORK,
            "methods": METHODS,
            "adaptation": [STEPS, BATCH, RATES],
        },
        quick=quick,
        full=full,
        few=3,
    )
    bench = functools.lru_cache(maxsize=1)(partial(prepare, quick=quick))
    rates = {}
    for labels in LABELS:
        for arm in ARMS:
            ways = {
                rate: partial(adapt, bench, arm, labels, SEARCH_SEED, rate, quick) for rate in RATES
            }
            rates[arm, labels] = study.best(ways, system=arm, score="accuracy", labels=labels)
    for seed in study.seeds:
        for labels in LABELS:
            for arm in ARMS:
                measure = partial(adapt, bench, arm, labels, seed, rates[arm, labels], quick)
                study.run(measure, system=arm, seed=seed, labels=labels)
    study.finish(summary, claims, on="Indian Pines, random pixels")


def prepare(seed: int, quick: bool) -> Bench:
    """Draw pixels, and train the network on the first half of the classes."""
    cube, labels = sample_cube()
    draw = np.random.default_rng(seed)
    pixels = [
        torch.from_numpy(draw.permutation(np.flatnonzero(labels.ravel() == k)))
        for k in range(1, 2 * HALF + 1)
    ]
    known = [own[: int(len(own) * BASE_SHARE)] for own in pixels[0::2]]
    spectra = cube.flatten(1).T[torch.cat(known)]
    with torch.no_grad():
        image = Preprocess.fit(spectra.numpy(), components=COMPONENTS)(cube[None])[0]
    base, train, test = (
        cut(image, part)
        for part in (
            known,
            [own[: max(LABELS)] for own in pixels[1::2]],
            [tested(own[max(LABELS) :], seed) for own in pixels[1::2]],
        )
    )
    some = draw.permutation(len(test.images))[: 50 if quick else TEST_IMAGES]
    torch.manual_seed(seed)
    model = VisionTransformer(COMPONENTS, HALF, SIDE, **NETWORK)
    scaled_init(model)
    epochs = 1 if quick else BASE_EPOCHS
    fit_images(model, *base, epochs=epochs, learning_rate=BASE_RATE, seed=seed, augment=turned)
    return Bench(train, Images(test.images[some], test.classes[some]), model)


def tested(pixels: Tensor, seed: int) -> Tensor:
    """Keep a fifth of the pixels for choosing learning rates, and report on the others."""
    return pixels[(pixels % 5 == 0) == (seed == SEARCH_SEED)]


def cut(image: Tensor, pixels: Sequence[Tensor]) -> Images:
    """Cut the patches around each class's pixels."""
    classes = torch.arange(len(pixels)).repeat_interleave(torch.tensor([len(p) for p in pixels]))
    return Images(patches_at(image, torch.cat([*pixels]), SIDE), classes)


def adapting(base: VisionTransformer, arm: str) -> nn.Module:
    """Return the network as one system adapts it: with a new head, and only what it trains unfrozen."""
    model: nn.Module = copy.deepcopy(base)
    if arm in METHODS:
        name, settings = METHODS[arm]
        model = apply(base, name, **settings).model
        freeze_base(model, also_train="head.")
    elif arm == PROBE:
        model.requires_grad_(False)
    assert isinstance(model, VisionTransformer)
    model.reset_head(HALF)
    return model


def adapt(
    bench_of: Any, arm: str, labels: int, seed: int, rate: float, quick: bool
) -> dict[str, Any]:
    """Adapt the network in one way to some labels of each class, and score it."""
    bench: Bench = bench_of(seed)
    train = Images(*(own.unflatten(0, (HALF, -1))[:, :labels].flatten(0, 1) for own in bench.train))
    epochs = STEPS // (len(train.images) // BATCH)
    torch.manual_seed(seed)
    model = adapting(bench.base, arm)
    fit_images(
        model,
        *train,
        epochs=1 if quick else epochs,
        batch_size=BATCH,
        learning_rate=rate,
        seed=seed,
        augment=turned,
    )
    return {
        "learning_rate": rate,
        "accuracy": accuracy(model, *bench.test),
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }


def summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the table: one row per system and number of labels, over its seeds."""
    return table_of(
        sorted(records, key=lambda record: record["labels"]),
        {
            "trained parameters": first("trained"),
            "share": lambda own: f"{share(own):.1%}",
            "learning rate": first("learning_rate"),
            "OA %": percents("accuracy"),
        },
        keys={"labels per class": "labels", "trained": "system"},
    )


def claims(records: Sequence[dict[str, Any]]) -> list[Claim]:
    """Return what the paper claims, as measured."""
    found = []
    for labels in LABELS:
        over = partial(paired, records, OURS, labels=labels)
        where = f"OA with {labels} labels per class, AdaptFormer vs"
        found += [
            claim(f"{where} linear probe", over(PROBE), at_least=GAIN),
            claim(f"{where} full fine-tuning", over(FULL), at_least=-SLACK),
            claim(f"{where} LoRA of equal size", over(LORA)),
        ]
    ours = [record for record in records if record["system"] == OURS]
    text = "Trained parameters, head included"
    return [*found, exact(text, 100 * share(ours), at_most=100 * SHARE, unit="%")]


def share(records: Sequence[dict[str, Any]]) -> float:
    """Return the share of the parameters that train."""
    return float(records[0]["trained"] / records[0]["parameters"])


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:], full="--full" in sys.argv[1:])
