"""ChannelViT's claim in miniature: tokens per channel, and channels sampled in training (arXiv 2309.16108).

Indian Pines, patches of 8 x 8 pixels of 8 averages of neighbouring bands, tokens of 4 x 4 pixels. A ViT and a
ChannelViT of the same size are trained by one recipe, each with and without hierarchical channel sampling, and tested
on random subsets of the channels, the same for all. What is missing is 0 for the ViT, the channel's mean; the sampled
one gets it as in its training, scaled by channels over given channels; ChannelViT reads the tokens that there are.
All start with weights scaled to their width, and each takes the best of three learning rates by the accuracy with all
channels on validation pixels, with a seed that is not reported.

Pixels are drawn at random from the labelled ones, so test patches overlap training patches, alike for all four: these
are not accuracies on ground that a network has not seen.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitreous.catalog.claims import Claim, claim, paired
from vitreous.catalog.results import first, percents, table_of
from vitreous.catalog.study import Study
from vitreous.data.images import Images
from vitreous.layers.backbone import Backbone
from vitreous.models.channelvit import ChannelViT, SampledInput
from vitreous.models.vit import VisionTransformer
from vitreous.tasks.miniature import (
    ImageTask,
    band_averages,
    fit_images,
    in_little,
    patches_at,
    sample_cube,
    scaled_init,
    turned,
)

EPOCHS, BATCH, RATES = 32, 32, (1e-3, 2e-3, 4e-3)
TRAIN_PIXELS, VALIDATION_PIXELS, TEST_PIXELS = 2000, 1000, 1500
BANDS, SIDE = 8, 8
SHAPE: dict[str, Any] = {"dim": 64, "depth": 4, "heads": 4, "token_size": 4}
SIZES = (8, 6, 4, 2, 1)  # how many channels are given
SUBSETS = 6  # random ones of each size but all
VIT, VIT_HCS, CHANNELVIT, OURS = ARMS = (
    "ViT",
    "ViT, sampled",
    "ChannelViT",
    "ChannelViT, sampled",
)

# What the claim demands, in points of OA: on 4 channels and fewer over ViT, sampled; of sampling on 2 channels; and so
# many may be lost with all channels.
FEW, GAIN, SAMPLING, SLACK = 4, 1.0, 10.0, 1.0


def main(quick: bool = False, full: bool = False) -> None:
    """Measure everything; a full run writes ``results/channelvit.json``, a quick one only checks that all of it runs."""
    study = Study(
        __file__,
        "tokens per channel, and sampled channels",
        settings={
            "epochs": EPOCHS,
            "batch": BATCH,
            "rates": RATES,
            "pixels": [TRAIN_PIXELS, VALIDATION_PIXELS, TEST_PIXELS],
            "network": SHAPE,
            "sizes": SIZES,
            "subsets": SUBSETS,
        },
        quick=quick,
        full=full,
        few=1,
    )
    epochs = 1 if quick else EPOCHS
    study.compare(ARMS, RATES, partial(task, quick=quick), partial(measure, epochs=epochs))
    study.finish(summary, claims, remarks=remarks, on="Indian Pines")


def task(seed: int, quick: bool) -> ImageTask:
    """Draw pixels to train, validate and test with, and cut their patches; channels are z-scored on the first."""
    cube, labels = sample_cube()
    image = band_averages(cube, BANDS)
    known = labels.flatten().nonzero()[:, 0]
    known = known[torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))]
    counts = (TRAIN_PIXELS, VALIDATION_PIXELS, TEST_PIXELS)
    pixels = known[: sum(counts)].split(counts)
    deviation, average = torch.std_mean(image.flatten(1)[:, pixels[0]], 1)
    image = (image - average[:, None, None]) / deviation[:, None, None]
    parts = [Images(patches_at(image, own, SIDE), labels.flatten()[own] - 1) for own in pixels]
    found = ImageTask("Indian Pines", int(labels.max()), *parts)
    return in_little(found) if quick else found


def build(arm: str, shape: dict[str, Any]) -> Backbone:
    """Return a network with fresh weights."""
    if arm in {VIT, VIT_HCS}:
        return scaled_init(VisionTransformer(**shape, **SHAPE))
    return scaled_init(ChannelViT(**shape, **SHAPE, sampling=arm == OURS))


def measure(arm: str, seed: int, patches: ImageTask, rate: float, *, epochs: int) -> dict[str, Any]:
    """Train one network, and score it on all sizes of subsets."""
    torch.manual_seed(seed)
    model = build(arm, patches.shape)
    # In training mode, whatever the network that it wraps is in.
    sampled = SampledInput(model) if arm == VIT_HCS else None

    def loss(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
        return F.cross_entropy((sampled or model)(images), classes)

    fit_images(
        model,
        *patches.train,
        epochs=epochs,
        batch_size=BATCH,
        learning_rate=rate,
        seed=seed,
        loss=loss,
        augment=turned,
    )
    reader = sampled.eval() if sampled else model
    return {
        "learning_rate": rate,
        "validation": oa_given(reader, patches.validation, BANDS),
        "oa": [oa_given(reader, patches.test, size) for size in SIZES],
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def oa_given(reader: nn.Module, part: Images, size: int) -> float:
    """Return the mean OA where some number of the channels is given."""
    return mean(score(reader, part, subset) for subset in subsets(size))


def subsets(size: int) -> list[list[int]]:
    """Return random subsets of the channels, the same ones each time; all channels are a single one."""
    generator = torch.Generator().manual_seed(size)
    count = 1 if size == BANDS else SUBSETS
    drawn = [torch.randperm(BANDS, generator=generator)[:size] for _ in range(count)]
    return [chosen.sort().values.tolist() for chosen in drawn]


@torch.inference_mode()
def score(reader: nn.Module, part: Images, subset: list[int]) -> float:
    """Return the share of the pixels that are classified right from some of the channels."""
    images = part.images[:, subset]
    if isinstance(reader, VisionTransformer):
        whole = torch.zeros_like(part.images)
        whole[:, subset] = images
        scores = reader(whole)
    else:
        scores = torch.cat([reader(some, channels=subset) for some in images.split(250)])
    return float((scores.argmax(1) == part.classes).float().mean())


def by_size(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the records with a score per number of channels, and what the claims are made of.

    ``few`` is the mean over all sizes of :data:`FEW` channels and fewer, ``kept`` what remains of the OA without half
    of the channels, as a difference.
    """
    found = []
    for record in records:
        oa = dict(zip(SIZES, record["oa"], strict=True))
        few = mean(oa[size] for size in SIZES if size <= FEW)
        named = {_heading(size): value for size, value in oa.items()}
        kept = oa[BANDS // 2] - oa[BANDS]
        found.append({**record, **named, "all": oa[BANDS], "two": oa[2], "few": few, "kept": kept})
    return found


def summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the table: one row per system, over its seeds."""
    headings = map(_heading, SIZES)
    return table_of(
        by_size(records),
        {
            "parameters": first("parameters"),
            "learning rate": first("learning_rate"),
            **{f"OA %, {heading}": percents(heading) for heading in headings},
        },
    )


def claims(records: Sequence[dict[str, Any]]) -> list[Claim]:
    """Return what the paper claims, as measured."""
    scored = by_size(records)
    return [
        claim(
            f"OA on {FEW} channels and fewer, sampled ChannelViT vs sampled ViT",
            paired(scored, OURS, VIT_HCS, "few"),
            at_least=GAIN,
        ),
        claim(
            "Gain of ChannelViT from sampling, OA on 2 channels",
            paired(scored, OURS, CHANNELVIT, "two"),
            at_least=SAMPLING,
        ),
        claim(
            "OA with all channels, sampled ChannelViT vs ViT",
            paired(scored, OURS, VIT, "all"),
            at_least=-SLACK,
        ),
        claim(
            "Change of OA without half of the channels, ChannelViT vs ViT",
            paired(scored, CHANNELVIT, VIT, "kept"),
            at_least=0.0,
        ),
        claim(
            "The same with sampling",
            paired(scored, OURS, VIT_HCS, "kept"),
            at_least=0.0,
        ),
        claim("Gain of ViT from sampling, OA on 2 channels", paired(scored, VIT_HCS, VIT, "two")),
        claim(
            "OA with all channels, ChannelViT vs ViT, both without sampling",
            paired(scored, CHANNELVIT, VIT, "all"),
        ),
    ]


def remarks(records: Sequence[dict[str, Any]]) -> list[str]:
    """Return what the accuracies are measured on."""
    return ["Pixels are drawn at random, so test patches overlap training patches, alike for all."]


def _heading(size: int) -> str:
    return f"{size} channel{'s' * (size > 1)}"


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:], full="--full" in sys.argv[1:])
