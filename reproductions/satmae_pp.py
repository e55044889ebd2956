"""SatMAE++'s claim in miniature: restoring the image at a finer scale too makes better features (arXiv 2403.05419).

Indian Pines, 10 averages of neighbouring bands in 3 groups. Crops of 32 x 32 pixels are reduced to 16 x 16, three
quarters of their tokens are hidden, and two encoders are pre-trained for as many steps on the same crops with the same
masks: restoring what is hidden (SatMAE), and besides it the crop at its own resolution (SatMAE++). Then the class of a
crop's centre pixel is told from few labels, 5 % of the labelled pixels: by a linear classifier on the features as they
are, and by training everything on. A fresh encoder goes through the same: its features as drawn, and training from
scratch, for as many steps.

All networks start with Xavier weights, which are scaled to their width, as masked autoencoders do; after few steps the
features of both were as good as from ``scaled_init``, or better. On validation pixels and a seed that is not reported,
pre-training takes the best of three learning rates by the linear classifier, and fine-tuning the best of three for
every encoder.

Pre-training sees the whole scene without labels. Pixels with labels are drawn at random, and their crops overlap those
of test pixels, alike for all: these are not accuracies on ground that a network has not seen. The head for the finer
scale has 20 channels instead of 40, for speed.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitreous.catalog.claims import Claim, claim, paired
from vitreous.catalog.registry import create_model
from vitreous.catalog.results import first, means, percents, table_of
from vitreous.catalog.study import SEARCH_SEED, Study
from vitreous.data.images import Images
from vitreous.layers.backbone import Backbone
from vitreous.models._masked_autoencoder import MaskedAutoencoder
from vitreous.tasks.miniature import (
    ImageTask,
    accuracy,
    band_averages,
    fit_images,
    fit_steps,
    patches_at,
    random_crops,
    sample_cube,
    turned,
)

STEPS, BATCH, RATES = 800, 32, (1e-3, 2e-3, 4e-3)
TUNING_EPOCHS, TUNING_BATCH, TUNING_RATES = 18, 16, (5e-4, 1e-3, 2e-3)
BANDS, CLASSES, CROP, SIDE = 10, 16, 32, 16
SHAPE: dict[str, Any] = {"dim": 64, "depth": 4, "heads": 4, "token_size": 4, "pool": "mean"}
SCALE_WIDTH = 20
LABELLED, VALIDATION_PIXELS, TEST_PIXELS = 0.05, 1000, 2000  # the first as a share of the labels
CHECKED = 64  # crops to restore
FRESH, SINGLE, OURS = ARMS = ("not pre-trained", "one scale (SatMAE)", "two scales (SatMAE++)")
SCALES = {SINGLE: 0, OURS: 1}

# What the claim demands of a linear classifier, in points: so many may be lost to one scale; over a fresh encoder.
SLACK, GAIN = 0.5, 3.0


class Data(NamedTuple):
    """What one seed works on.

    Attributes:
        image: the scene, z-scored, ``(10, 145, 145)``.
        task: reduced crops around the pixels with labels, ``(count, 10, 16, 16)``.
    """

    image: Tensor
    task: ImageTask


class Rates(NamedTuple):
    """Learning rates of one arm; the first is None where nothing is pre-trained."""

    pretraining: float | None
    tuning: float


class Length(NamedTuple):
    """How long is trained: steps of pre-training, epochs of fine-tuning."""

    steps: int
    epochs: int


def main(quick: bool = False, full: bool = False) -> None:
    """Measure everything; a full run writes ``results/satmae_pp.json``, a quick one only checks that all of it runs."""
    study = Study(
        __file__,
        "restoring a finer scale too makes better features",
        settings={
            "pretraining": [STEPS, BATCH, RATES],
            "tuning": [TUNING_EPOCHS, TUNING_BATCH, TUNING_RATES],
            "pixels": [LABELLED, VALIDATION_PIXELS, TEST_PIXELS],
            "network": {**SHAPE, "scale_width": SCALE_WIDTH},
        },
        quick=quick,
        full=full,
        few=1,
    )
    length = Length(1, 1) if quick else Length(STEPS, TUNING_EPOCHS)
    data = cache(partial(divided, most=100 if quick else TEST_PIXELS))
    rates = searched(study, partial(data, SEARCH_SEED), length)
    for seed in study.seeds:
        for arm in ARMS:
            measured = partial(measure, arm, seed, partial(data, seed), rates[arm], length)
            study.run(measured, system=arm, seed=seed)
    study.finish(summary, claims, remarks=remarks, on="Indian Pines")


def searched(study: Study, data: Callable[[], Data], length: Length) -> dict[str, Rates]:
    """Return each arm's learning rates: the best of three each, on the validation pixels of the search's seed."""

    @cache
    def encoder(arm: str, rate: float | None) -> Backbone:
        return encoded(arm, SEARCH_SEED, data().image, rate, length.steps)[0]

    def probed(arm: str, rate: float) -> dict[str, Any]:
        task = data().task
        return {"validation": probe(encoder(arm, rate), task.train, task.validation)}

    def tuned(arm: str, rates: Rates) -> dict[str, Any]:
        task = data().task
        own = copy.deepcopy(encoder(arm, rates.pretraining))
        tune(own, task.train, SEARCH_SEED, rates.tuning, length.epochs)
        return {"validation": accuracy(own, *task.validation)}

    found = {}
    for arm in ARMS:
        first_rate = None
        if arm in SCALES:
            ways = {rate: partial(probed, arm, rate) for rate in RATES}
            first_rate = study.best(ways, system=arm, stage="pre-training")
        options = {rate: partial(tuned, arm, Rates(first_rate, rate)) for rate in TUNING_RATES}
        found[arm] = Rates(first_rate, study.best(options, system=arm, stage="fine-tuning"))
    return found


def divided(seed: int, most: int) -> Data:
    """Draw pixels with labels, pixels to validate and ``most`` to test with, and cut the crops around them."""
    cube, labels = sample_cube()
    image = band_averages(cube, BANDS)
    deviation, average = torch.std_mean(image, (1, 2), keepdim=True)
    image = (image - average) / deviation
    known = labels.flatten().nonzero()[:, 0]
    known = known[torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))]
    counts = (round(LABELLED * len(known)), min(VALIDATION_PIXELS, most), most)
    parts = [
        Images(reduced(patches_at(image, own, CROP)), labels.flatten()[own] - 1)
        for own in known[: sum(counts)].split(counts)
    ]
    return Data(image, ImageTask("Indian Pines", CLASSES, *parts))


def reduced(crops: Tensor) -> Tensor:
    """Return crops at the encoder's resolution: means of 2 x 2 pixels."""
    return F.avg_pool2d(crops, CROP // SIDE)


def measure(
    arm: str, seed: int, data: Callable[[], Data], rates: Rates, length: Length
) -> dict[str, Any]:
    """Pre-train an encoder, classify by its features, and fine-tune it."""
    image, task = data()
    encoder, error = encoded(arm, seed, image, rates.pretraining, length.steps)
    by_features = probe(encoder, task.train, task.test)
    tune(encoder, task.train, seed, rates.tuning, length.epochs)
    return {
        "probe": by_features,
        "fine_tuned": accuracy(encoder, *task.test),
        "finer_l1": error,
        **rates._asdict(),
    }


def encoded(
    arm: str, seed: int, image: Tensor, rate: float | None, steps: int
) -> tuple[Backbone, float | None]:
    """Return an arm's encoder, and how far off its finer picture is; a fresh encoder makes none."""
    encoder = fresh(seed)
    if rate is None:
        return encoder, None
    model = pretrained(image, encoder, arm, seed, rate, steps)
    return model.trained_encoder(), finer_error(model, image)


def fresh(seed: int) -> Backbone:
    """Return the encoder with its first weights."""
    torch.manual_seed(seed)
    model = create_model(
        "satmae_pp_tiny", bands=BANDS, num_classes=CLASSES, image_size=SIDE, **SHAPE
    )
    assert isinstance(model, Backbone)
    return model


def pretrained(
    image: Tensor, encoder: Backbone, arm: str, seed: int, rate: float, steps: int
) -> MaskedAutoencoder:
    """Pre-train an encoder on crops of the scene at the arm's scales."""
    model = MaskedAutoencoder(encoder, scales=SCALES[arm], scale_width=SCALE_WIDTH)

    def next_loss(generator: torch.Generator) -> Tensor:
        crops = random_crops(image, CROP, BATCH, generator)
        noise = torch.rand(BATCH, tokens(model), generator=generator)
        return model.step([reduced(crops), crops][: 1 + model.scales], noise).loss

    fit_steps(model, next_loss, steps=steps, learning_rate=rate, seed=seed)
    return model


def tokens(model: MaskedAutoencoder) -> int:
    """Return the number of tokens of which some are hidden."""
    return len(model.encoder.groups) * math.prod(model.encoder.grid)


@torch.inference_mode()
def finer_error(model: MaskedAutoencoder, image: Tensor) -> float:
    """Return the mean absolute error at the crops' own resolution, with three quarters of the tokens hidden.

    One scale is enlarged bilinearly, what is visible put into its place before.
    """
    generator = torch.Generator().manual_seed(0)
    crops = random_crops(image, CROP, CHECKED, generator)
    noise = torch.rand(CHECKED, tokens(model), generator=generator)
    coarse = reduced(crops)
    found = model.predict(coarse, noise)
    if found.finer:
        return float((found.finer[0] - crops).abs().mean())
    groups = model.encoder.groups
    hidden = torch.empty_like(coarse)
    for group, mask in zip(groups, found.mask.unbind(1), strict=True):
        places = mask.unflatten(1, model.encoder.grid)[:, None]
        hidden[:, list(group)] = F.interpolate(places, size=(SIDE, SIDE))
    whole = torch.where(hidden > 0, found.image, coarse)
    return float((F.interpolate(whole, size=(CROP, CROP), mode="bilinear") - crops).abs().mean())


@torch.inference_mode()
def features(encoder: Backbone, images: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return what the head reads."""
    head, encoder.head = encoder.head, nn.Identity()
    encoder.eval()
    found = torch.cat([encoder(part) for part in images.split(250)])
    encoder.head = head
    return found.double().numpy()


def probe(encoder: Backbone, known: Images, asked: Images) -> float:
    """Return the accuracy of a linear classifier on the features."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    classifier.fit(features(encoder, known.images), known.classes.numpy())
    return float(classifier.score(features(encoder, asked.images), asked.classes.numpy()))


def tune(encoder: Backbone, known: Images, seed: int, rate: float, epochs: int) -> None:
    """Train everything, with a new head, on the pixels with labels."""
    torch.manual_seed(seed)
    encoder.reset_head(CLASSES)
    fit_images(
        encoder,
        *known,
        epochs=epochs,
        batch_size=TUNING_BATCH,
        learning_rate=rate,
        seed=seed,
        augment=turned,
    )


def summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the table: one row per system, over its seeds."""
    finer = means("finer_l1", 3)
    return table_of(
        records,
        {
            "rate of pre-training": first("pretraining"),
            "rate of fine-tuning": first("tuning"),
            "OA % of a linear classifier": percents("probe"),
            "OA % fine-tuned": percents("fine_tuned"),
            "L1 at the finer scale": lambda own: finer(own) if own[0]["finer_l1"] else None,
        },
        keys={"pre-training": "system"},
    )


def claims(records: Sequence[dict[str, Any]]) -> list[Claim]:
    """Return what the paper claims, as measured."""
    linear, tuned = (partial(paired, records, OURS, score=key) for key in ("probe", "fine_tuned"))
    return [
        claim("OA of a linear classifier, two scales vs one", linear(SINGLE), at_least=-SLACK),
        claim("The same, two scales vs no pre-training", linear(FRESH), at_least=GAIN),
        claim("OA fine-tuned, two scales vs training from scratch", tuned(FRESH), at_least=0.0),
        claim("OA fine-tuned, two scales vs one", tuned(SINGLE), at_least=0.0),
        claim(
            "L1 error at the finer scale, two scales vs one enlarged",
            paired(records, OURS, SINGLE, "finer_l1", factor=1.0),
            at_most=0.0,
            unit="standard deviations",
            digits=3,
        ),
    ]


def remarks(records: Sequence[dict[str, Any]]) -> list[str]:
    """Return what the accuracies are measured on."""
    return [
        "Pixels are drawn at random and pre-training sees the whole scene, so test crops overlap training crops, alike "
        "for all."
    ]


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:], full="--full" in sys.argv[1:])
