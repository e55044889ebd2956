"""ChannelViT's claim in miniature: tokens per channel, and channels sampled in training (arXiv 2309.16108).

Indian Pines, patches of 8 x 8 pixels of 8 averages of neighbouring bands, tokens of 4 x 4 pixels. A ViT and a
ChannelViT of the same size are trained by one recipe, each with and without hierarchical channel sampling, and tested
on random subsets of the channels, the same for all. What is missing is 0 for the ViT, the channel's mean; the sampled
one gets it as in its training, scaled by channels over given channels; ChannelViT reads the tokens that there are.

Training and test pixels are drawn at random from the labelled ones, so test patches overlap training patches, alike
for all four: these are not accuracies on ground that a network has not seen.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitreous.catalog.results import percent, verdict, write_result
from vitreous.layers.backbone import Backbone, init_linear
from vitreous.models.channelvit import ChannelViT, SampledInput
from vitreous.models.vit import VisionTransformer
from vitreous.tasks.miniature import band_averages, fit_images, patches_at, sample_cube, turned

SEEDS, EPOCHS, BATCH, RATE = 2, 32, 32, 1e-3
TRAIN_PIXELS, TEST_PIXELS = 2000, 1500
BANDS, CLASSES, SIDE = 8, 16, 8
SHAPE: dict[str, Any] = {"dim": 64, "depth": 4, "heads": 4, "token_size": 4}
INIT = 0.1  # spread of the first weights; narrow networks are nearly silent with 0.02
SIZES, SUBSETS = (
    (8, 6, 4, 2, 1),
    6,
)  # channels that are given, and random subsets of each size but all
VIT, VIT_HCS, CHANNELVIT, OURS = "ViT", "ViT, sampled", "ChannelViT", "ChannelViT, sampled"
ARMS = (VIT, VIT_HCS, CHANNELVIT, OURS)

# What the claim demands, in points of OA: on 4 channels and fewer over ViT, sampled; of sampling on 2 channels; and so
# many may be lost with all channels.
FEW, GAIN, SAMPLING, SLACK = 4, 1.0, 10.0, 1.0

RESULT = Path(__file__).parent / "results" / "channelvit.json"


class Data(NamedTuple):
    """Patches ``(count, 8, 8, 8)`` and classes from 0: to train with, then to test with."""

    images: Tensor
    classes: Tensor
    test_images: Tensor
    test_classes: Tensor


def main(quick: bool = False) -> None:
    """Measure everything and write ``results/channelvit.json``; ``quick`` runs it all in little, writes nothing."""
    started = time.perf_counter()
    epochs, *pixels = (1, 64, 64) if quick else (EPOCHS, TRAIN_PIXELS, TEST_PIXELS)
    records = []
    for seed in range(1 if quick else SEEDS):
        data = divided(seed, *pixels)
        for arm in ARMS:
            records.append(measure(arm, seed, data, epochs))
            print(records[-1], file=sys.stderr)
    if quick:
        return
    write_result(
        RESULT,
        title="channelvit: tokens per channel, and sampled channels (Indian Pines)",
        command="vitreous reproduce channelvit",
        rows=summary(records),
        conclusion=conclude(records),
        epochs=EPOCHS,
        training_pixels=TRAIN_PIXELS,
        seconds=time.perf_counter() - started,
        runs=records,
    )


def divided(seed: int, train: int, test: int) -> Data:
    """Draw pixels to train and to test with, and cut their patches; channels are z-scored on the former."""
    cube, labels = sample_cube()
    image = band_averages(cube, BANDS)
    known = labels.flatten().nonzero()[:, 0]
    known = known[torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))]
    parts = known[:train], known[train : train + test]
    spectra = image.flatten(1)[:, parts[0]]
    deviation, average = torch.std_mean(spectra, 1)
    image = (image - average[:, None, None]) / deviation[:, None, None]
    found = [(patches_at(image, own, SIDE), labels.flatten()[own] - 1) for own in parts]
    return Data(*found[0], *found[1])


def build(arm: str) -> Backbone:
    """Return a network with fresh weights."""
    model: Backbone
    if arm in {VIT, VIT_HCS}:
        model = VisionTransformer(BANDS, CLASSES, SIDE, **SHAPE)
    else:
        model = ChannelViT(BANDS, CLASSES, SIDE, **SHAPE, sampling=arm == OURS)
    init_linear(model, INIT)
    return model


def measure(arm: str, seed: int, data: Data, epochs: int) -> dict[str, Any]:
    """Train one network, and score it on all sizes of subsets."""
    torch.manual_seed(seed)
    model, began = build(arm), time.perf_counter()
    # In training mode, whatever the network that it wraps is in.
    sampled = SampledInput(model) if arm == VIT_HCS else None

    def loss(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
        return F.cross_entropy((sampled or model)(images), classes)

    fit_images(
        model,
        data.images,
        data.classes,
        epochs=epochs,
        batch_size=BATCH,
        learning_rate=RATE,
        seed=seed,
        loss=loss,
        augment=turned,
    )
    reader = sampled.eval() if sampled else model
    return {
        "system": arm,
        "seed": seed,
        "oa": [mean(score(reader, data, subset) for subset in subsets(size)) for size in SIZES],
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": time.perf_counter() - began,
    }


def subsets(size: int) -> list[list[int]]:
    """Return random subsets of the channels, the same ones each time; all channels are a single one."""
    generator = torch.Generator().manual_seed(size)
    count = 1 if size == BANDS else SUBSETS
    drawn = [torch.randperm(BANDS, generator=generator)[:size] for _ in range(count)]
    return [chosen.sort().values.tolist() for chosen in drawn]


@torch.inference_mode()
def score(reader: nn.Module, data: Data, subset: list[int]) -> float:
    """Return the share of the test pixels that are classified right from some of the channels."""
    images = data.test_images[:, subset]
    if isinstance(reader, VisionTransformer):
        whole = torch.zeros_like(data.test_images)
        whole[:, subset] = images
        scores = reader(whole)
    else:
        scores = torch.cat([reader(part, channels=subset) for part in images.split(250)])
    return float((scores.argmax(1) == data.test_classes).float().mean())


def summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the table: one row per system, over its seeds."""
    rows = []
    for arm in ARMS:
        own = [r for r in records if r["system"] == arm]
        rows.append(
            {
                "system": arm,
                "seeds": len(own),
                "parameters": own[0]["parameters"],
                **{
                    f"OA %, {size} channel{'s' * (size > 1)}": percent([r["oa"][k] for r in own])
                    for k, size in enumerate(SIZES)
                },
            }
        )
    return rows


def conclude(records: Sequence[dict[str, Any]]) -> str:
    """Say in words what the numbers say of the claim, also where it does not hold."""
    oa = {
        (arm, size): 100 * mean(r["oa"][k] for r in records if r["system"] == arm)
        for arm in ARMS
        for k, size in enumerate(SIZES)
    }
    few = [size for size in SIZES if size <= FEW]
    gain = mean(oa[OURS, size] - oa[VIT_HCS, size] for size in few)
    sampling = oa[OURS, 2] - oa[CHANNELVIT, 2]
    whole = oa[OURS, BANDS] - oa[VIT, BANDS]
    lost = {arm: oa[arm, BANDS] - oa[arm, BANDS // 2] for arm in ARMS}
    return (
        f"On {FEW} channels and fewer, sampled ChannelViT is {gain:+.1f} points from sampled ViT, where the claim demands "
        f"{GAIN:+.0f}: {verdict(gain >= GAIN)}. Sampling is worth {sampling:+.1f} points to ChannelViT on 2 channels, "
        f"where it demands {SAMPLING:+.0f}: {verdict(sampling >= SAMPLING)}, and {oa[VIT_HCS, 2] - oa[VIT, 2]:+.1f} to "
        f"ViT. With all channels it is {whole:+.1f} points from plain ViT, and may be {SLACK:.0f} behind: "
        f"{verdict(whole >= -SLACK)}. Without half of the channels ViT loses {lost[VIT]:.1f} points and ChannelViT "
        f"{lost[CHANNELVIT]:.1f}; that it loses less: {verdict(lost[CHANNELVIT] < lost[VIT])}. Sampled, they lose "
        f"{lost[VIT_HCS]:.1f} and {lost[OURS]:.1f}; that ChannelViT loses less: {verdict(lost[OURS] < lost[VIT_HCS])}."
    )


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:])
