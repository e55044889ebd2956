"""CrossFormer's claims in miniature: kernels of several sizes, and attention at long distance (arXiv 2108.00154).

Networks of two stages are trained by one recipe. All start with weights scaled to their width, and each takes the best of
three learning rates, chosen on validation data with a seed that is not reported.

- Indian Pines in six principal components (the paper's other data, Salinas, is not here), patches of 16 pixels, tokens of
  2: one kernel per embedding and attention to neighbours alone; several kernels; several kernels and, in every second
  block, groups of cells far apart. Several kernels have more weights, which the table gives. Pixels are drawn at random, as
  is usual for this scene: test pixels lie inside training patches, so the accuracies compare systems and say little else.
- A toy: noise of 32 x 32 pixels with one of two marks in each of two opposite quadrants; are they the same? Groups of
  neighbours never reach from one to the other, and a sum over the quadrants does not compare them. Groups of cells far
  apart are required to gain 5 points here. Kernels are small, so that no embedding sees both marks.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vitreous.catalog.claims import Claim, claim, paired
from vitreous.catalog.registry import create_model
from vitreous.catalog.results import first, percents, table_of
from vitreous.catalog.study import Study
from vitreous.data.images import Images
from vitreous.data.splits import stratified_random
from vitreous.tasks.miniature import (
    ImageTask,
    fit_task,
    in_little,
    pixel_task,
    sample_cube,
    scaled_init,
    turned,
)

BATCH, RATES = 32, (1e-3, 2e-3, 4e-3)
EPOCHS = {"patches": 20, "marks": 10}
COMPONENTS, SIDE, TOKEN = 6, 16, 2  # of the patches
PIXELS = {"training": 512, "validation": 512, "test": 1500}
MARKED, MARK = 32, 4  # sides of the toy's images and tokens in pixels
COUNTS = {"training": 3000, "validation": 300, "test": 1000}
NETWORK: dict[str, Any] = {
    "dim": 32,
    "depths": [2, 2],
    "heads": [2, 4],
    "group": 2,
    "mlp_ratio": 2.0,
    "position_divisor": 4,
    "drop_path": 0.0,
}
SEVERAL: dict[str, Any] = {"kernels": [2, 4, 8, 16], "merge_kernels": [2, 4]}
ON_PATCHES: dict[str, dict[str, Any]] = {
    "one kernel, neighbours": {"kernels": [2], "merge_kernels": [2], "dilated": False},
    "several kernels, neighbours": {**SEVERAL, "dilated": False},
    "several kernels, near and far": SEVERAL,
}
SMALL: dict[str, Any] = {"kernels": [4, 8], "merge_kernels": [2, 4]}
ON_MARKS: dict[str, dict[str, Any]] = {
    "marks, neighbours": {**SMALL, "dilated": False},
    "marks, near and far": SMALL,
}
ONE, KERNELS, FAR = ON_PATCHES
NEAR_MARKS, FAR_MARKS = ON_MARKS
GAIN = 5.0  # points of distant groups, where a label depends on two cells far apart


def main(quick: bool = False, full: bool = False) -> None:
    """Measure everything; a full run writes ``results/crossformer.json``, a quick one only checks that all of it runs."""
    study = Study(
        __file__,
        "tokens of several scales, and attention at long distance",
        settings={
            "epochs": EPOCHS,
            "batch": BATCH,
            "rates": RATES,
            "network": NETWORK,
            "patches": ON_PATCHES,
            "marks": ON_MARKS,
            "pixels": PIXELS,
            "counts": COUNTS,
        },
        quick=quick,
        full=full,
    )
    epochs = dict.fromkeys(EPOCHS, 1) if quick else EPOCHS
    study.compare(
        [*ON_PATCHES],
        RATES,
        partial(patches, quick=quick),
        partial(measure, epochs=epochs["patches"], augment=turned),
    )
    study.compare(
        [*ON_MARKS],
        RATES,
        partial(marks, quick=quick),
        partial(measure, epochs=epochs["marks"], augment=None),
    )
    study.finish(summary, claims, on="Indian Pines; toy: two marks")


def patches(seed: int, quick: bool) -> ImageTask:
    """Return patches around pixels of Indian Pines drawn at random."""
    _, labels = sample_cube()
    split = stratified_random(labels.numpy(), train_fraction=0.1, val_fraction=0.5, seed=seed)
    return pixel_task(split, SIDE, COMPONENTS, **(dict.fromkeys(PIXELS, 64) if quick else PIXELS))


def marks(seed: int, quick: bool) -> ImageTask:
    """Return the toy's images of a seed."""
    images, same = marked(sum(COUNTS.values()), seed)
    sizes = [*COUNTS.values()]
    parts = zip(images.split(sizes), same.split(sizes), strict=True)
    found = ImageTask("toy: two marks", 2, *(Images(*part) for part in parts))
    return in_little(found) if quick else found


def marked(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return images ``(count, 1, 32, 32)`` with a mark in two opposite quadrants, and 1 where both are the same.

    A mark fills a token, somewhere in the outer 3 x 3 of its quadrant's 4 x 4.
    """
    generator = torch.Generator().manual_seed(seed)
    images = 0.3 * torch.randn(count, 1, MARKED, MARKED, generator=generator)
    kinds = torch.randint(2, (count, 2), generator=generator)
    places = torch.randint(3, (count, 4), generator=generator)
    rows = torch.arange(MARK)
    shapes = torch.stack([rows % 2 * 2.0 - 1, (rows // 2) * 2.0 - 1])  # fine and coarse stripes
    flipped = torch.rand(count, generator=generator) < 0.5
    for image, own, place in zip(images, kinds, places.tolist(), strict=True):
        for which, (row, column) in enumerate((place[:2], place[2:])):
            if which:  # counted from the far corner
                row, column = MARKED // MARK - 1 - row, MARKED // MARK - 1 - column
            mark = shapes[own[which]][None].expand(MARK, MARK)
            image[0, row * MARK : (row + 1) * MARK, column * MARK : (column + 1) * MARK] += mark
    images[flipped] = images[flipped].flip(3)  # the other two quadrants
    return images, (kinds[:, 0] == kinds[:, 1]).long()


def build(arm: str, images: ImageTask) -> nn.Module:
    """Return a network with fresh weights."""
    token = TOKEN if arm in ON_PATCHES else MARK
    own = {**NETWORK, **(ON_PATCHES | ON_MARKS)[arm], "token_size": token}
    return scaled_init(create_model("crossformer_tiny", **images.shape, **own))


def measure(
    arm: str, seed: int, images: ImageTask, rate: float, *, epochs: int, augment: Any
) -> dict[str, Any]:
    """Train and score one network."""
    torch.manual_seed(seed)
    model = build(arm, images)
    record = fit_task(
        model, images, rate, epochs=epochs, batch_size=BATCH, seed=seed, augment=augment
    )
    return {**record, "parameters": sum(p.numel() for p in model.parameters())}


def summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the table: one row per network, over its seeds."""
    return table_of(
        records,
        {
            "parameters": first("parameters"),
            "learning rate": first("learning_rate"),
            "accuracy %": percents("accuracy"),
        },
    )


def claims(records: Sequence[dict[str, Any]]) -> list[Claim]:
    """Return what the paper claims, as measured."""
    return [
        claim("Accuracy, several kernels vs one", paired(records, KERNELS, ONE), at_least=0.0),
        claim(
            "Accuracy, near and far groups vs neighbours",
            paired(records, FAR, KERNELS),
            at_least=0.0,
        ),
        claim(
            "Accuracy where two distant marks decide, near and far groups vs neighbours",
            paired(records, FAR_MARKS, NEAR_MARKS),
            at_least=GAIN,
        ),
    ]


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:], full="--full" in sys.argv[1:])
