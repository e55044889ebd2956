"""LoLA-SpecViT's claim in miniature: few labels, and few trained parameters (arXiv 2506.17759).

Two questions on Indian Pines:

- labels: with 1, 2 and 10 % of the labelled pixels drawn at random, is it better than a plain ViT that has at least
  as many parameters, and the more so the fewer labels there are?
- adaptation: trained on one half of the classes, do its adapters and a new head learn the other half as well as all
  weights together do, and better than the new head alone?

Every arm chooses its learning rate and its length of training on validation pixels of a draw that is not reported,
from the same options; the longest of them is twice as long as what is mostly chosen, so that training ends where
validation has stopped rising. Networks start with weights scaled to their width.

Pixels are drawn at random, so most test pixels lie inside training patches: these are not accuracies on held-out
ground, for which see ``benchmarks/accuracy.py``.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from vitreous.catalog.claims import Claim, claim, differences, exact, paired
from vitreous.catalog.registry import create_model
from vitreous.catalog.results import first, percents, table_of
from vitreous.catalog.study import SEARCH_SEED, Study
from vitreous.checkpoints import classifiers
from vitreous.data.blocks import TEST, TRAIN, VAL
from vitreous.data.roles import Split
from vitreous.recipe import Recipe, make_recipe
from vitreous.tasks import classify, runs
from vitreous.tasks.labelled import LabelledScene, open_labelled
from vitreous.tasks.miniature import scaled_start

OURS, PLAIN = "lola_specvit_tiny", "vit_patch"
LABELS = (0.01, 0.02, 0.10)  # shares of the labelled pixels
SEARCHED_LABELS = 0.02  # on which settings are chosen
PASSES = 4  # over the pixels, per epoch
STEPS_PER_PASS = 12  # the batch size follows: as many steps with few labels as with many
RATES = (1e-3, 3e-3, 1e-2)
EPOCHS = (5, 10, 20, 40)  # of PASSES passes each
START_EPOCHS = 20  # while learning rates are compared

BASE_LABELS = 0.10  # of the first half of the classes
NEW_LABELS = 0.05  # of the second half
ADAPTATION_RATES = (3e-4, 1e-3, 3e-3)
FORMS: dict[str, dict[str, Any]] = {  # of the adapters
    "plain": {"gate": False, "residual": False},
    "gated, residual": {"gate": True, "residual": True},
}
WAYS = {"scratch": "all weights", "lora_only": "adapters and head", "head_only": "head"}

# What the claim demands, in points of overall accuracy where nothing else is said.
GAIN_AT_2 = 1.0
SLACK_OF_GAPS = 0.5
SLACK_OF_ADAPTERS = 1.5
TRAINED_SHARE = 0.20  # of the parameters


@dataclass(frozen=True)
class Setting:
    """How long and at which rate one arm trains.

    Attributes:
        rate: peak learning rate.
        epochs: of :data:`PASSES` passes over the training pixels.
    """

    rate: float
    epochs: int


@dataclass(frozen=True)
class Bench:
    """The scene, and a place for what is trained.

    Attributes:
        data: the labelled scene.
        folder: for training states and the runs to start from.
        steps: of one pass over the training pixels.
        quick: one epoch wherever there is training.
    """

    data: LabelledScene
    folder: Path
    steps: int = STEPS_PER_PASS
    quick: bool = False

    def measure(self, recipe: Recipe, data: LabelledScene, validated: bool) -> dict[str, Any]:
        """Train and score one system, on validation pixels alone if settings are chosen.

        Splits are drawn for ours, which sees the most around each pixel, so that both score the same pixels.
        """
        split = classify.draw_split(
            recipe.model_copy(update={"model": OURS, "model_args": {}}), data
        )
        if validated:
            roles = np.select([split.roles == TRAIN, split.roles == VAL], [TRAIN, TEST])
            split = Split(roles.astype(np.uint8), split.method, split.params, split.seed)
        batch = max(2, round(split.counts["train"] / self.steps))
        recipe = recipe.model_copy(update={"batch_size": batch})
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            _, row = classify.fit_and_score(recipe, data, split, Path(folder))
        found: dict[str, Any] = {
            "learning_rate": recipe.learning_rate,
            "epochs": recipe.epochs,
            **{name: row["test"][name] for name in ("oa", "aa", "kappa")},
            "parameters": row["parameters"],
            "trainable": row["trainable"],
            "train_pixels": split.counts["train"],
            "test_pixels": split.counts["test"],
            "batch_size": batch,
        }
        return found | ({"validation": found["oa"]} if validated else {})


def main(quick: bool = False, full: bool = False) -> None:
    """Measure everything; a full run writes ``results/lola_specvit.json``, a quick one only checks that all runs."""
    study = Study(
        __file__,
        "few labels, few trained parameters",
        settings={
            "labels": [LABELS, SEARCHED_LABELS],
            "training": [PASSES, STEPS_PER_PASS, RATES, EPOCHS, START_EPOCHS],
            "adaptation": [BASE_LABELS, NEW_LABELS, ADAPTATION_RATES, FORMS],
        },
        quick=quick,
        full=full,
        few=1,
    )
    data = open_labelled(make_recipe({}))
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(data, Path(folder), quick=quick)
        if quick:
            bench = replace(bench, data=_corner(data, 64), steps=2)
        setting = measure_labels(study, bench)
        measure_adaptation(study, bench, setting)
    study.finish(summary, claims, on="Indian Pines, random pixels", remarks=remarks)


def measure_labels(study: Study, bench: Bench) -> Setting:
    """Compare with the plain ViT at several amounts of labels, drawn at random; return our setting."""
    labels = LABELS[1:2] if study.quick else LABELS if study.full else (SEARCHED_LABELS,)
    chosen = {}
    for system in (OURS, PLAIN):
        chosen[system] = searched(study, partial(train, bench, system, SEARCHED_LABELS), system)
    for share in labels:
        for seed in study.seeds:
            for system in (OURS, PLAIN):
                measure = partial(train, bench, system, share, seed, chosen[system])
                study.run(measure, system=system, seed=seed, part=labels_part(share))
    return chosen[OURS]


def searched(study: Study, train: Any, system: str) -> Setting:
    """Choose a learning rate, then how long to train."""
    rates = {
        rate: partial(train, SEARCH_SEED, Setting(rate, START_EPOCHS), validated=True)
        for rate in RATES
    }
    rate = study.best(rates, system=system, part="learning rate")
    lengths = {
        epochs: partial(train, SEARCH_SEED, Setting(rate, epochs), validated=True)
        for epochs in EPOCHS
    }
    return Setting(rate, study.best(lengths, system=system, part="epochs"))


def train(
    bench: Bench, system: str, share: float, seed: int, setting: Setting, validated: bool = False
) -> dict[str, Any]:
    """Train and score one system with a share of the labels."""
    classes = len(bench.data.class_names)
    recipe = _recipe(bench, OURS, seed, setting, **drawn(share, validated))
    if system == PLAIN:
        depth = depth_of_plain_vit(classes, recipe)
        recipe = recipe.model_copy(update={"model": PLAIN, "model_args": {"depth": depth}})
    return bench.measure(scaled_start(recipe, classes, bench.folder), bench.data, validated)


def measure_adaptation(study: Study, bench: Bench, setting: Setting) -> None:
    """Train on the classes with odd numbers, then on the others: all weights, the adapters, or the head alone."""
    base_of = lru_cache(maxsize=None)(partial(base_run, bench, setting=setting))
    for form in FORMS:
        for way in WAYS:
            name = adaptation_name(form, way)
            measure = partial(adapt, bench, base_of, form, way)
            rates = {
                rate: partial(measure, SEARCH_SEED, Setting(rate, setting.epochs), validated=True)
                for rate in ADAPTATION_RATES
            }
            rate = study.best(rates, system=name, part="learning rate")
            for seed in study.seeds:
                own = partial(measure, seed, Setting(rate, setting.epochs))
                study.run(own, system=name, seed=seed, part=ADAPTED)


def base_run(bench: Bench, form: str, setting: Setting) -> Path:
    """Train on the first half of the classes, and return the folder of the run."""
    first_half = bench.data.only(range(1, len(bench.data.class_names) + 1, 2))
    folder = bench.folder / f"base {form}"
    folder.mkdir()
    own = {**drawn(BASE_LABELS, validated=False), "model_args": FORMS[form]}
    recipe = _recipe(bench, OURS, 0, setting, **own)
    recipe = scaled_start(recipe, len(first_half.class_names), bench.folder)
    split = classify.draw_split(recipe, first_half)
    batch = max(2, round(split.counts["train"] / bench.steps))
    recipe = recipe.model_copy(update={"batch_size": batch})
    trained, _ = classify.fit_and_score(recipe, first_half, split, folder)
    classifiers.save_classifier(
        folder / runs.MODEL,
        trained.classifier,
        name=OURS,
        model_args=trained.model_args,
        class_names=first_half.class_names,
        class_colors=first_half.class_colors,
    )
    return folder


def adapt(
    bench: Bench,
    base_of: Any,
    form: str,
    way: str,
    seed: int,
    setting: Setting,
    validated: bool = False,
) -> dict[str, Any]:
    """Train on the second half of the classes, from a run on the first."""
    second_half = bench.data.only(range(2, len(bench.data.class_names) + 1, 2))
    own = {**drawn(NEW_LABELS, validated), "adapt": way, "init": str(base_of(form))}
    recipe = _recipe(bench, OURS, seed, setting, **own)
    return bench.measure(recipe, second_half, validated)


ADAPTED = "second half of classes"


def drawn(share: float, validated: bool) -> dict[str, Any]:
    """Return the settings that draw a share of the pixels to train with, and as many to validate with if asked for."""
    split = {"train_fraction": 2 * share, "val_fraction": 0.5} if validated else {"val_fraction": 0}
    return {"split": "random", "train_fraction": share, **split}


def labels_part(share: float) -> str:
    """Name the part of the results for a share of labels."""
    return f"random {share:.0%}"


def adaptation_name(form: str, adapt: str) -> str:
    """Name the system that trains ``adapt`` with adapters of ``form``."""
    return f"{form} adapters: {WAYS[adapt]}"


def depth_of_plain_vit(classes: int, recipe: Recipe) -> int:
    """Return the least depth at which the plain ViT has no fewer parameters than LoLA-SpecViT."""
    shape = {"bands": recipe.components, "num_classes": classes, "image_size": recipe.patch_size}
    with torch.device("meta"):
        wanted = runs.parameter_counts(create_model(OURS, **shape))[0]
        depth = 1
        while runs.parameter_counts(create_model(PLAIN, **shape, depth=depth))[0] < wanted:
            depth += 1
    return depth


# -- from records to words --------------------------------------------------------------------------------


def summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the table: one row per part and system, over its seeds."""
    return table_of(
        records,
        {
            "training pixels": lambda own: round(mean(r["train_pixels"] for r in own)),
            "parameters": first("parameters"),
            "trained": lambda own: f"{own[0]['trainable'] / own[0]['parameters']:.1%}",
            "learning rate": first("learning_rate"),
            "epochs": first("epochs"),
            "OA %": percents("oa"),
            "AA %": percents("aa"),
            "kappa x 100": percents("kappa"),
        },
        keys={"part": "part", "system": "system"},
    )


def claims(records: Sequence[dict[str, Any]]) -> list[Claim]:
    """Return what the paper claims, as measured."""
    parts = {record["part"] for record in records}
    gaps = {
        share: dict(enumerate(paired(records, OURS, PLAIN, "oa", part=labels_part(share))))
        for share in LABELS
        if labels_part(share) in parts
    }
    found = [
        claim(
            f"OA with {share:.0%} of the labels, LoLA-SpecViT vs ViT",
            [*gap.values()],
            at_least=GAIN_AT_2 if share == SEARCHED_LABELS else None,
        )
        for share, gap in gaps.items()
    ]
    if len(gaps) == len(LABELS):
        growth = differences(gaps[LABELS[0]], gaps[LABELS[-1]], factor=1.0)
        text = f"OA gain with {LABELS[0]:.0%} of the labels minus the gain with {LABELS[-1]:.0%}"
        found.append(claim(text, growth, at_least=-SLACK_OF_GAPS))
    for form in FORMS:
        found += _adapter_claims(records, form)
    return found


def _adapter_claims(records: Sequence[dict[str, Any]], form: str) -> list[Claim]:
    full, adapters, probe = (adaptation_name(form, way) for way in WAYS)
    own = next(record for record in records if record["system"] == adapters)
    share = 100 * own["trainable"] / own["parameters"]
    return [
        claim(
            f"OA on new classes, {form} adapters vs all weights",
            paired(records, adapters, full, "oa"),
            at_least=-SLACK_OF_ADAPTERS,
        ),
        claim(
            f"OA on new classes, {form} adapters vs the head alone",
            paired(records, adapters, probe, "oa"),
            at_least=0.0,
        ),
        exact(f"Trained parameters, {form} adapters", share, at_most=100 * TRAINED_SHARE, unit="%"),
    ]


def remarks(records: Sequence[dict[str, Any]]) -> list[str]:
    """Say what these accuracies are not."""
    return [
        "Pixels are drawn at random, so most test pixels lie inside training patches; benchmarks/accuracy.py compares "
        "both networks on held-out blocks."
    ]


# -- pieces -----------------------------------------------------------------------------------------------


def _recipe(bench: Bench, model: str, seed: int, setting: Setting, **settings: Any) -> Recipe:
    epochs = 1 if bench.quick else setting.epochs
    own = {"epochs": epochs, "learning_rate": setting.rate, "passes": PASSES, "warmup_epochs": 1}
    return make_recipe({"model": model, "seed": seed, **own, **settings})


def _corner(data: LabelledScene, side: int) -> LabelledScene:
    """Return a corner of the scene, with the classes that have pixels enough to be divided."""
    part = data.cropped(slice(0, side), slice(0, side))
    pixels = [int((part.labels == k).sum()) for k in range(1, len(part.class_names) + 1)]
    return part.only([k for k, count in enumerate(pixels, start=1) if count >= 20])


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:], full="--full" in sys.argv[1:])
