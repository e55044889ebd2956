"""DeiT's claim in miniature: a convolutional teacher and a token to learn from it (arXiv 2012.12877, table 3).

Small ViTs are trained by one recipe, with flips and shifts: without a teacher, with soft distillation, and with hard
distillation, of an EfficientFormer that was trained on the same images (its first stages are convolutions, its last
one attends); hard distillation also without the token, on the only head. All arms with a distillation token are the same network; without a teacher, both of its heads learn from labels. All
start with weights scaled to their width, and each takes the best of three learning rates, chosen on validation images with
a seed that is not reported; so does the teacher. By default the images are toy digits of 16 x 16 pixels; ``--data FOLDER``
takes real ones of 32 x 32.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitreous.catalog.claims import Claim, claim, paired
from vitreous.catalog.registry import create_model
from vitreous.catalog.results import first, percents, table_of
from vitreous.catalog.study import SEARCH_SEED, Study
from vitreous.layers.answers import Answer, joined
from vitreous.tasks.losses import ClassTargets
from vitreous.tasks.miniature import (
    ImageTask,
    fit_task,
    image_task,
    in_little,
    scaled_init,
    shifted,
)
from vitreous.tasks.teacher import Distillation, frozen

EPOCHS, RATES = 12, (1e-3, 2e-3, 4e-3)
SMALL: dict[str, Any] = {"dim": 48, "depth": 3, "heads": 2, "token_size": 4, "mlp_ratio": 2.0}
CONVOLUTIONS: dict[str, Any] = {
    "dims": [32, 64, 96, 160],
    "depths": [1, 1, 2, 2],
    "heads": 4,
    "key_dim": 16,
    "value_dim": 32,
    "stem_stride": 2,
    "drop_path": 0.0,
}
TEACHER = "EfficientFormer (the teacher)"
ALONE, SOFT, HARD, BARE = ARMS = (
    "ViT without a teacher",
    "ViT, soft distillation",
    "ViT, hard distillation",
    "ViT, hard distillation without the token",
)
METHODS = {SOFT: "deit_soft", HARD: "deit_hard", BARE: "deit_hard"}


def main(quick: bool = False, full: bool = False, data: Path | None = None) -> None:
    """Measure everything; a full run writes ``results/deit.json``, a quick one only checks that all of it runs."""
    study = Study(
        __file__,
        "distillation from a convolutional teacher",
        settings={"epochs": EPOCHS, "rates": RATES, "vit": SMALL, "teacher": CONVOLUTIONS},
        quick=quick,
        full=full,
        data=data,
    )
    images = lru_cache(maxsize=1)(partial(task, data=data, quick=quick))
    epochs = 1 if quick else EPOCHS

    @lru_cache(maxsize=2)
    def taught(seed: int, rate: float) -> tuple[nn.Module, dict[str, Any]]:
        return teacher(images(seed), seed, rate, epochs)

    ways = {rate: lambda rate=rate: taught(SEARCH_SEED, rate)[1] for rate in RATES}
    rate = study.best(ways, system=TEACHER)
    for seed in study.seeds:
        study.run(lambda seed=seed: taught(seed, rate)[1], system=TEACHER, seed=seed)
    study.compare(
        ARMS,
        RATES,
        images,
        lambda arm, seed, own, option: measure(
            arm, seed, own, option, lambda: taught(seed, rate)[0], epochs=epochs
        ),
    )
    study.finish(summary, claims, on=images(0).name)


def task(seed: int, data: Path | None, quick: bool) -> ImageTask:
    """Return the images of a seed."""
    found = image_task(seed, 16 if data is None else 32, data=data)
    return in_little(found) if quick else found


def teacher(
    images: ImageTask, seed: int, rate: float, epochs: int
) -> tuple[nn.Module, dict[str, Any]]:
    """Train a teacher; return it, frozen, and its record."""
    torch.manual_seed(seed)
    model = scaled_init(create_model("efficientformer_l1", **images.shape, **CONVOLUTIONS))
    record = fit_task(model, images, rate, epochs=epochs, seed=seed, augment=changed)
    return frozen(model), {**record, "parameters": sum(p.numel() for p in model.parameters())}


def build(arm: str, shape: dict[str, int]) -> nn.Module:
    """Return a student with fresh weights."""
    name = "vit_tiny" if arm == BARE else "vit_tiny_distilled"
    return scaled_init(create_model(name, **shape, **SMALL))


def changed(images: Tensor, generator: torch.Generator) -> Tensor:
    """Move images, and mirror half of them, as all arms and the teacher see them."""
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    moved = shifted(images, generator)
    return torch.where(mirrored[:, None, None, None], moved.flip(-1), moved)


def measure(
    arm: str,
    seed: int,
    images: ImageTask,
    rate: float,
    of_seed: Any,
    *,
    epochs: int,
) -> dict[str, Any]:
    """Train and score one student.

    Args:
        arm: its name.
        seed: of weights and order.
        images: to learn from.
        rate: learning rate.
        of_seed: returns the teacher of this seed.
        epochs: of training.
    """
    torch.manual_seed(seed)
    model = build(arm, images.shape)
    distillation = Distillation.of(METHODS[arm], {}) if arm in METHODS else None
    if distillation is not None:
        distillation.prepare(model)
    guide = None if distillation is None else of_seed()

    def loss(student: nn.Module, batch: Tensor, classes: Tensor) -> Tensor:
        scores, targets = student(batch), ClassTargets(classes)
        if distillation is None or guide is None:
            return targets.loss(joined(scores))
        with torch.no_grad():
            said = guide(batch)
        return distillation.loss(Answer(scores), Answer(said), targets)

    record = fit_task(model, images, rate, epochs=epochs, seed=seed, loss=loss, augment=changed)
    return {**record, "parameters": sum(p.numel() for p in model.parameters())}


def summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the table: one row per system, over its seeds."""
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
        claim("Accuracy, teacher vs ViT alone", paired(records, TEACHER, ALONE), at_least=0.0),
        claim("Gain from hard distillation", paired(records, HARD, ALONE), at_least=0.0),
        claim("Hard vs soft distillation", paired(records, HARD, SOFT), at_least=0.0),
        claim("With vs without the token", paired(records, HARD, BARE), at_least=0.0),
    ]


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:], full="--full" in sys.argv[1:])
