"""GGeM's claim in miniature: how the patches of a ViT are best pooled (arXiv 2212.04114).

Indian Pines in twelve principal components, patches of 9 x 9 pixels cut into 3 x 3 tokens, one small ViT. The same
trunk with the same first weights, pixels and order of training is read out in five ways: by a class token, or by the
mean, the maximum, a generalised mean (GeM), or one generalised mean per head (GGeM) of its tokens; the last norm
follows the pooling in all of them. All start with weights scaled to their width, and each takes the best of three
learning rates, chosen on validation pixels with a seed that is not reported. Besides accuracy: how often the training
pixel whose pooled vector is nearest to that of a test pixel has the same class.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from statistics import mean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from vitreous.catalog.claims import Claim, claim, paired, scores
from vitreous.catalog.results import first, percents, table_of
from vitreous.catalog.study import Study
from vitreous.data.splits import stratified_random
from vitreous.models.vit import VisionTransformer
from vitreous.tasks.miniature import (
    ImageTask,
    fit_task,
    pixel_task,
    sample_cube,
    scaled_init,
)

EPOCHS, BATCH, RATES = 50, 32, (1e-3, 2e-3, 4e-3)
LABELS = 0.05  # share of the labelled pixels to train with; as many are for validation
TEST_PIXELS = 3000
COMPONENTS, SIDE = 12, 9
NETWORK: dict[str, Any] = {"dim": 48, "depth": 4, "heads": 6, "token_size": 3, "mlp_ratio": 2.0}
CLASS, MEAN, MAX, GEM, GGEM = POOLS = ("class", "mean", "max", "gem", "ggem")

# What the claim demands.
SLACK_OF_MEAN = 0.3  # points below mean pooling
SPREAD = 0.1  # of the exponents


def main(quick: bool = False, full: bool = False) -> None:
    """Measure everything; a full run writes ``results/ggem.json``, a quick one only checks that all of it runs."""
    study = Study(
        __file__,
        "one generalised mean per head",
        settings={
            "epochs": EPOCHS,
            "batch": BATCH,
            "rates": RATES,
            "labels": LABELS,
            "test": TEST_PIXELS,
            "network": NETWORK,
        },
        quick=quick,
        full=full,
    )
    most = 50 if quick else TEST_PIXELS
    epochs = 1 if quick else EPOCHS
    study.compare(POOLS, RATES, partial(task, test=most), partial(measure, epochs=epochs))
    study.finish(summary, claims, remarks=remarks, on="Indian Pines")


def task(seed: int, test: int) -> ImageTask:
    """Return the patches of a seed, around pixels drawn at random."""
    _, labels = sample_cube()
    split = stratified_random(
        labels.numpy(), train_fraction=2 * LABELS, val_fraction=0.5, seed=seed
    )
    return pixel_task(split, SIDE, COMPONENTS, test=test)


def build(pool: str, shape: dict[str, int]) -> VisionTransformer:
    """Return the network with one of the pools and fresh weights, the same for every pool but ``class``."""
    norm_last = None if pool == CLASS else True
    model = VisionTransformer(**shape, pool=pool, norm_last=norm_last, **NETWORK)
    scaled_init(model)
    return model


def measure(
    pool: str, seed: int, patches: ImageTask, rate: float, *, epochs: int
) -> dict[str, Any]:
    """Train a network; return accuracies, recall of the nearest neighbour, and the exponents."""
    torch.manual_seed(seed)
    model = build(pool, patches.shape)
    record = fit_task(model, patches, rate, epochs=epochs, batch_size=BATCH, seed=seed)
    return {
        **record,
        "recall": recall(model, patches),
        "exponents": model.state_dict()["pooling.p"].tolist() if pool == GGEM else [],
        "parameters": sum(p.numel() for p in model.parameters()),
        "train_pixels": len(patches.train.images),
    }


@torch.inference_mode()
def recall(model: VisionTransformer, patches: ImageTask) -> float:
    """Return how often the training pixel with the nearest pooled vector has a test pixel's class."""
    gallery, queries = (
        F.normalize(model.pool_tokens(model.forward_features(part.images)), dim=1)
        for part in (patches.train, patches.test)
    )
    nearest = patches.train.classes[(queries @ gallery.T).argmax(1)]
    return float((nearest == patches.test.classes).float().mean())


def summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the table: one row per pool, over its seeds."""
    return table_of(
        records,
        {
            "training pixels": first("train_pixels"),
            "parameters": first("parameters"),
            "learning rate": first("learning_rate"),
            "OA %": percents("accuracy"),
            "recall@1 %": percents("recall"),
        },
        keys={"pool": "system"},
    )


def claims(records: Sequence[dict[str, Any]]) -> list[Claim]:
    """Return what the paper claims, as measured."""
    spreads = [float(np.std(own)) for own in scores(records, GGEM, "exponents").values()]
    return [
        claim("OA, GGeM vs mean", paired(records, GGEM, MEAN), at_least=-SLACK_OF_MEAN),
        claim("OA, GGeM vs maximum", paired(records, GGEM, MAX), at_least=0.0),
        claim("OA, GGeM vs GeM", paired(records, GGEM, GEM)),
        claim("Recall@1, GGeM vs mean", paired(records, GGEM, MEAN, "recall"), at_least=0.0),
        claim(
            "Standard deviation of GGeM's exponents over heads",
            spreads,
            at_least=SPREAD,
            unit="",
            digits=2,
            signed=False,
        ),
    ]


def remarks(records: Sequence[dict[str, Any]]) -> list[str]:
    """Return the order of the pools, and what it is measured on."""
    oa = {pool: 100 * mean(r["accuracy"] for r in records if r["system"] == pool) for pool in POOLS}
    order = " > ".join(f"{pool} {oa[pool]:.1f}" for pool in sorted(POOLS, key=oa.__getitem__)[::-1])
    return [
        f"Mean OA: {order}.",
        "Pixels are drawn at random, so test patches overlap training patches, equally for all poolings.",
    ]


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:], full="--full" in sys.argv[1:])
