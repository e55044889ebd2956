"""DHVT's claim in miniature: what convolutions and head tokens add to a ViT on small data (arXiv 2210.05958, table 5).

Two small sets: toy digits of 16 x 16 pixels with few labels, and Indian Pines, patches of 9 x 9 pixels of 6 principal
components, enlarged to 16 x 16, with a tenth of its labels at most. Five networks of about as many parameters are trained
by one recipe: a plain ViT with learned positions; the same tokens behind the overlapping convolutions (SOPE), without
positions; the same with feed-forwards that convolve (DAFF); the whole of DHVT, with tokens for its heads; and a ResNet.
All start with weights scaled to their width, and each takes the best of three learning rates, chosen on validation
images with a seed that is not reported. Pixels of the scene are drawn at random, as is usual for it: test pixels lie
inside training patches, so the accuracies compare systems and say little else.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitreous.catalog.claims import Claim, claim, paired
from vitreous.catalog.registry import create_model
from vitreous.catalog.results import first, percents, table_of
from vitreous.catalog.study import Study
from vitreous.data.images import Images
from vitreous.layers.convnorm import ConvNorm
from vitreous.tasks.miniature import (
    ImageTask,
    fit_task,
    image_task,
    in_little,
    random_task,
    scaled_init,
)

EPOCHS, BATCH, RATES = 25, 32, (1e-3, 2e-3, 4e-3)
SIDE, PATCH, COMPONENTS = 16, 9, 6
LABELS = {"digits": 300, "Indian Pines": 640}
TEST = 1500
SHAPE: dict[str, Any] = {"dim": 48, "depth": 4, "heads": 4, "token_size": 2}
PLAIN = {"mlp_ratio": 5.0}  # for as many parameters
PARTS: dict[str, dict[str, Any]] = {
    "SOPE": {"aggregation": False, "head_tokens": False, **PLAIN},
    "SOPE, DAFF": {"head_tokens": False, "mlp_ratio": 4.0},
    "DHVT": {"mlp_ratio": 4.0},
}
VIT, RESNET = "ViT with positions", "ResNet"
EMBED, FEED, OURS = PARTS
ARMS = (VIT, *PARTS, RESNET)
WIDTHS = (18, 35, 50)  # of the ResNet's stages

# What the claim demands, in points of accuracy.
GAIN = 3.0  # over the plain ViT, at least
SLACK = 1.5  # behind the ResNet, at most
SLACK_OF_EMBEDDING = 0.5  # of the convolutional embedding behind the plain ViT, at most


def main(quick: bool = False, full: bool = False) -> None:
    """Measure everything; a full run writes ``results/dhvt.json``, a quick one only checks that all of it runs."""
    study = Study(
        __file__,
        "convolutions and head tokens on small data",
        settings={
            "epochs": EPOCHS,
            "batch": BATCH,
            "rates": RATES,
            "labels": LABELS,
            "shape": SHAPE,
            "parts": PARTS,
            "resnet": WIDTHS,
        },
        quick=quick,
        full=full,
    )
    epochs = 1 if quick else EPOCHS
    systems = [named(arm, data) for data in LABELS for arm in ARMS]
    study.compare(systems, RATES, partial(tasks, quick=quick), partial(measure, epochs=epochs))
    study.finish(summary, claims, on="digits and Indian Pines")


def named(arm: str, data: str) -> str:
    """Return the name of a network on one of the sets."""
    return f"{arm}, {data}"


def tasks(seed: int, quick: bool) -> dict[str, ImageTask]:
    """Return both sets of a seed."""
    digits, pines = LABELS.values()
    found = {
        "digits": image_task(seed, SIDE, training=digits),
        "Indian Pines": enlarged(
            random_task(seed, PATCH, COMPONENTS, training=pines, validation=500, test=TEST)
        ),
    }
    return {name: in_little(task) if quick else task for name, task in found.items()}


def enlarged(task: ImageTask) -> ImageTask:
    """Return a task whose images have ``SIDE`` pixels per side."""

    def larger(part: Images) -> Images:
        return Images(F.interpolate(part.images, size=(SIDE, SIDE), mode="bilinear"), part.classes)

    return task._replace(
        train=larger(task.train), validation=larger(task.validation), test=larger(task.test)
    )


def build(arm: str, shape: dict[str, int]) -> nn.Module:
    """Return a network with fresh weights."""
    if arm == RESNET:
        return scaled_init(ResNet(shape["bands"], shape["num_classes"]))
    if arm == VIT:
        return scaled_init(create_model("vit_tiny", **shape, **SHAPE, **PLAIN))
    return scaled_init(create_model("dhvt_test", **shape, **SHAPE, **PARTS[arm]))


class ResNet(nn.Module):
    """A residual network of basic blocks (He et al., 2016), two per stage, without a first pooling."""

    def __init__(self, bands: int, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(ConvNorm(bands, WIDTHS[0], 3), nn.ReLU())
        self.blocks = nn.Sequential()
        before = WIDTHS[0]
        for stage, width in enumerate(WIDTHS):
            for stride in (2 if stage else 1, 1):
                self.blocks.append(BasicBlock(before, width, stride))
                before = width
        self.head = nn.Linear(before, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores."""
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class BasicBlock(nn.Module):
    """Two convolutions of 3 x 3 beside a shortcut."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            ConvNorm(before, width, 3, stride=stride), nn.ReLU(), ConvNorm(width, width, 3)
        )
        same = before == width and stride == 1
        self.shortcut = nn.Identity() if same else ConvNorm(before, width, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        return F.relu(self.shortcut(x) + self.branch(x))


def measure(
    system: str, seed: int, data: dict[str, ImageTask], rate: float, *, epochs: int
) -> dict[str, Any]:
    """Train and score one network on one of the sets."""
    arm, _, name = system.rpartition(", ")
    torch.manual_seed(seed)
    model = build(arm, data[name].shape)
    record = fit_task(model, data[name], rate, epochs=epochs, batch_size=BATCH, seed=seed)
    return {**record, "parameters": sum(p.numel() for p in model.parameters())}


def summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the table: one row per network and set, over its seeds."""
    return table_of(
        records,
        {
            "parameters": first("parameters"),
            "learning rate": first("learning_rate"),
            "accuracy %": percents("accuracy"),
        },
    )


def claims(records: Sequence[dict[str, Any]]) -> list[Claim]:
    """Return what the paper claims, as measured on both sets."""
    found = []
    for data in LABELS:

        def effect(ours: str, theirs: str, data: str = data) -> list[float]:
            return paired(records, named(ours, data), named(theirs, data))

        found += [
            claim(f"Accuracy on {data}, DHVT vs ViT", effect(OURS, VIT), at_least=GAIN),
            claim(f"Accuracy on {data}, DHVT vs ResNet", effect(OURS, RESNET), at_least=-SLACK),
            claim(f"Accuracy on {data}, with DAFF vs without", effect(FEED, EMBED), at_least=0.0),
            claim(
                f"Accuracy on {data}, SOPE vs ViT",
                effect(EMBED, VIT),
                at_least=-SLACK_OF_EMBEDDING,
            ),
        ]
    return found


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:], full="--full" in sys.argv[1:])
