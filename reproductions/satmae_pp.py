"""SatMAE++'s claim in miniature: restoring the image at a finer scale too makes better features (arXiv 2403.05419).

Indian Pines, 10 averages of neighbouring bands in 3 groups. Crops of 32 x 32 pixels are reduced to 16 x 16, three
quarters of their tokens are hidden, and two encoders are pre-trained for as many steps on the same crops with the same
masks: restoring what is hidden (SatMAE), and besides it the crop at its own resolution (SatMAE++). Then the class of a
crop's centre pixel is told from few labels, 5 % of the labelled pixels: by a linear classifier on the features as they
are, and by training everything on. A fresh encoder goes through the same: its features as drawn, and training from
scratch, for as many steps.

Pre-training sees the whole scene without labels. Pixels with labels are drawn at random, and their crops overlap those
of test pixels, alike for all: these are not accuracies on ground that a network has not seen. The head for the finer
scale has 20 channels instead of 40, for speed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitreous.catalog.registry import create_model
from vitreous.catalog.results import percent, plus_minus, verdict, write_result
from vitreous.layers.backbone import Backbone
from vitreous.models.satmae_pp import MaskedAutoencoder
from vitreous.tasks.miniature import (
    accuracy,
    band_averages,
    fit_images,
    fit_steps,
    patches_at,
    random_crops,
    sample_cube,
    turned,
)

SEEDS, STEPS, BATCH, RATE = 3, 450, 32, 2e-3
TUNING_EPOCHS, TUNING_BATCH, TUNING_RATE = 18, 16, 1e-3
BANDS, CLASSES, CROP, SIDE = 10, 16, 32, 16
SHAPE: dict[str, Any] = {"dim": 64, "depth": 4, "heads": 4, "token_size": 4, "pool": "mean"}
SCALE_WIDTH = 20
LABELLED, TEST_PIXELS, CHECKED = (
    0.05,
    2000,
    64,
)  # share of the labels; test pixels; crops to restore
FRESH, SINGLE, OURS = "not pre-trained", "one scale (SatMAE)", "two scales (SatMAE++)"
SCALES = {SINGLE: 0, OURS: 1}
ARMS = (FRESH, *SCALES)

# What the claim demands of a linear classifier, in points: so many may be lost to one scale; over a fresh encoder.
SLACK, GAIN = 0.5, 3.0

RESULT = Path(__file__).parent / "results" / "satmae_pp.json"


class Data(NamedTuple):
    """What one seed works on.

    Attributes:
        image: the scene, z-scored, ``(10, 145, 145)``.
        images: reduced crops around the pixels with labels, ``(count, 10, 16, 16)``.
        classes: from 0.
        test_images: around other pixels.
        test_classes: from 0.
    """

    image: Tensor
    images: Tensor
    classes: Tensor
    test_images: Tensor
    test_classes: Tensor


def main(quick: bool = False) -> None:
    """Measure everything and write ``results/satmae_pp.json``; ``quick`` runs it all in little, writes nothing."""
    started = time.perf_counter()
    records = [
        record
        for seed in range(1 if quick else SEEDS)
        for record in measure(
            divided(seed, 100 if quick else TEST_PIXELS),
            seed,
            *((1, 1) if quick else (STEPS, TUNING_EPOCHS)),
        )
    ]
    if quick:
        return
    write_result(
        RESULT,
        title="satmae_pp: restoring a finer scale too makes better features (Indian Pines)",
        command="vitreous reproduce satmae_pp",
        rows=summary(records),
        conclusion=conclude(records),
        steps=STEPS,
        tuning_epochs=TUNING_EPOCHS,
        seconds=time.perf_counter() - started,
        runs=records,
    )


def divided(seed: int, test: int) -> Data:
    """Draw pixels with labels and pixels to test with, and cut the crops around them."""
    cube, labels = sample_cube()
    image = band_averages(cube, BANDS)
    deviation, average = torch.std_mean(image, (1, 2), keepdim=True)
    image = (image - average) / deviation
    known = labels.flatten().nonzero()[:, 0]
    known = known[torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))]
    count = round(LABELLED * len(known))
    parts = known[:count], known[count : count + test]
    found = [(reduced(patches_at(image, own, CROP)), labels.flatten()[own] - 1) for own in parts]
    return Data(image, *found[0], *found[1])


def reduced(crops: Tensor) -> Tensor:
    """Return crops at the encoder's resolution: means of 2 x 2 pixels."""
    return F.avg_pool2d(crops, CROP // SIDE)


def measure(data: Data, seed: int, steps: int, epochs: int) -> list[dict[str, Any]]:
    """Pre-train and fine-tune with one seed in all ways."""
    records = []
    for arm in ARMS:
        began = time.perf_counter()
        encoder, error = fresh(seed), None
        if arm in SCALES:
            autoencoder = pretrained(data.image, encoder, arm, seed, steps)
            encoder, error = autoencoder.trained_encoder(), finer_error(autoencoder, data.image)
        records.append(
            {
                "system": arm,
                "seed": seed,
                "probe": probe(encoder, data),
                "fine_tuned": fine_tuned(encoder, data, seed, epochs),
                "finer_l1": error,
                "seconds": time.perf_counter() - began,
            }
        )
        print(records[-1], file=sys.stderr)
    return records


def fresh(seed: int) -> Backbone:
    """Return the encoder with its first weights."""
    torch.manual_seed(seed)
    model = create_model(
        "satmae_pp_tiny", bands=BANDS, num_classes=CLASSES, image_size=SIDE, **SHAPE
    )
    assert isinstance(model, Backbone)
    return model


def pretrained(
    image: Tensor, encoder: Backbone, arm: str, seed: int, steps: int
) -> MaskedAutoencoder:
    """Pre-train an encoder on crops of the scene at the arm's scales."""
    model = MaskedAutoencoder(encoder, scales=SCALES[arm], scale_width=SCALE_WIDTH)

    def next_loss(generator: torch.Generator) -> Tensor:
        crops = random_crops(image, CROP, BATCH, generator)
        noise = torch.rand(BATCH, tokens(model), generator=generator)
        return model.step([reduced(crops), crops][: 1 + model.scales], noise).loss

    fit_steps(model, next_loss, steps=steps, learning_rate=RATE, seed=seed)
    return model


def tokens(model: MaskedAutoencoder) -> int:
    """Return the number of tokens of which some are hidden."""
    return len(model.encoder.groups) * model.encoder.grid**2


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
        places = mask.unflatten(1, (model.encoder.grid, -1))[:, None]
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


def probe(encoder: Backbone, data: Data) -> float:
    """Return the accuracy of a linear classifier on the features."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    classifier.fit(features(encoder, data.images), data.classes.numpy())
    return float(classifier.score(features(encoder, data.test_images), data.test_classes.numpy()))


def fine_tuned(encoder: Backbone, data: Data, seed: int, epochs: int) -> float:
    """Train everything, with a new head, on the pixels with labels; the encoder is changed."""
    torch.manual_seed(seed)
    encoder.reset_head(CLASSES)
    fit_images(
        encoder,
        data.images,
        data.classes,
        epochs=epochs,
        batch_size=TUNING_BATCH,
        learning_rate=TUNING_RATE,
        seed=seed,
        augment=turned,
    )
    return accuracy(encoder, data.test_images, data.test_classes)


def summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the table: one row per system, over its seeds."""
    rows = []
    for arm in ARMS:
        own = [r for r in records if r["system"] == arm]
        errors = [r["finer_l1"] for r in own if r["finer_l1"] is not None]
        rows.append(
            {
                "pre-training": arm,
                "seeds": len(own),
                "OA % of a linear classifier": percent([r["probe"] for r in own]),
                "OA % fine-tuned": percent([r["fine_tuned"] for r in own]),
                "L1 at the finer scale": plus_minus(errors, 3) if errors else None,
            }
        )
    return rows


def conclude(records: Sequence[dict[str, Any]]) -> str:
    """Say in words what the numbers say of the claim, also where it does not hold."""
    linear, tuned = (
        {arm: 100 * mean(r[what] for r in records if r["system"] == arm) for arm in ARMS}
        for what in ("probe", "fine_tuned")
    )
    error = {arm: mean(r["finer_l1"] for r in records if r["system"] == arm) for arm in SCALES}
    over, gain = linear[OURS] - linear[SINGLE], linear[OURS] - linear[FRESH]
    scratch, single = tuned[OURS] - tuned[FRESH], tuned[OURS] - tuned[SINGLE]
    return (
        f"A linear classifier on the features of two scales is {over:+.1f} points from that on one, and may be {SLACK} "
        f"behind: {verdict(over >= -SLACK)}; and {gain:+.1f} points from that on a fresh encoder, where the claim "
        f"demands {GAIN:+.0f}: {verdict(gain >= GAIN)}. Fine-tuned, two scales are {scratch:+.1f} points from training "
        f"from scratch; that they are ahead: {verdict(scratch > 0)}; and {single:+.1f} points from one scale; that they "
        f"are ahead: {verdict(single > 0)}. The finer picture is off by {error[OURS]:.3f} deviations on average, the "
        f"enlarged one of one scale by {error[SINGLE]:.3f}; that it is nearer: {verdict(error[OURS] < error[SINGLE])}."
    )


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:])
