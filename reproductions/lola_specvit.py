"""LoLA-SpecViT's claim in miniature: few labels, and few trained parameters (arXiv 2506.17759).

Two questions on Indian Pines, each with systems trained for the same number of steps by the same recipe:

- labels: with 1, 2 and 10 % of the labelled pixels drawn at random, is it better than a plain ViT that has at least
  as many parameters, and the more so the fewer labels there are?
- adaptation: trained on one half of the classes, do its adapters and a new head learn the other half as well as all
  weights together do, and better than the new head alone?

Training is short so that the whole takes minutes on two cores: these are not the accuracies of a full training,
for which (also on blocks, where no test pixel lies inside a training patch) see ``benchmarks/accuracy.py``.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console

from vitreous.catalog.registry import create_model
from vitreous.catalog.results import percent, verdict, write_result
from vitreous.data.splits import Split
from vitreous.recipe import Recipe, make_recipe
from vitreous.tasks import classify, runs
from vitreous.tasks.labelled import LabelledScene, open_labelled

OURS, PLAIN = "lola_specvit_tiny", "vit_patch"
LABELS = (0.01, 0.02, 0.10)  # shares of the labelled pixels
EPOCHS = 4  # of every training here, ours and the baseline's
PASSES = 4  # over the pixels, per epoch
STEPS_PER_EPOCH = 12  # times the recipe's passes; the batch size follows: as many steps with few labels as with many
SEEDS = 3
ADAPTATION_SEEDS = 1

BASE_LABELS = 0.10  # of the first half of the classes
NEW_LABELS = 0.05  # of the second half
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

RESULT = Path(__file__).parent / "results" / "lola_specvit.json"
TITLE = "lola_specvit: few labels, few trained parameters (Indian Pines)"


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        labels: shares of the labelled pixels that train.
        seeds: repetitions with other splits and weights.
        adaptation_seeds: the same for the adaptation, which takes longest.
        epochs: of every training.
        steps: of one pass over the training pixels.
        side: only this many rows and columns of the scene; None for all.
    """

    labels: tuple[float, ...] = LABELS
    seeds: int = SEEDS
    adaptation_seeds: int = ADAPTATION_SEEDS
    epochs: int = EPOCHS
    steps: int = STEPS_PER_EPOCH
    side: int | None = None


QUICK = Plan(labels=(0.02,), seeds=1, epochs=1, steps=2, side=64)


@dataclass
class Bench:
    """The scene, the plan, and a place for what is trained.

    Attributes:
        data: the labelled scene.
        plan: how much is measured.
        folder: for training states and the runs to start from.
        console: where progress goes.
        records: one row per training, in the order they were made.
    """

    data: LabelledScene
    plan: Plan
    folder: Path
    console: Console
    records: list[dict[str, Any]]

    def measure(
        self, part: str, system: str, recipe: Recipe, data: LabelledScene, split: Split
    ) -> classify.Trained:
        """Train and score one system, and record it."""
        counts = split.counts
        batch = max(2, round(counts["train"] / self.plan.steps))
        recipe = recipe.model_copy(update={"batch_size": batch})
        started = time.perf_counter()
        trained, row = classify.fit_and_score(
            recipe, data, split, self.folder / f"training-{len(self.records)}"
        )
        record = {
            "part": part,
            "system": system,
            "seed": recipe.seed,
            "oa": row["test"]["oa"],
            "aa": row["test"]["aa"],
            "kappa": row["test"]["kappa"],
            "parameters": row["parameters"],
            "trainable": row["trainable"],
            "train_pixels": counts["train"],
            "test_pixels": counts["test"],
            "batch_size": batch,
            "seconds": time.perf_counter() - started,
        }
        self.records.append(record)
        self.console.print(
            f"{part:24} {system:42} seed {recipe.seed}  OA {100 * record['oa']:6.2f}  "
            f"{record['seconds']:5.1f} s",
            highlight=False,
        )
        return trained


def main(quick: bool = False) -> None:
    """Measure everything and write ``results/lola_specvit.json``; ``quick`` runs it all in little and writes nothing."""
    started = time.perf_counter()
    plan = QUICK if quick else Plan()
    data = open_labelled(_recipe(plan, OURS, 0))
    if plan.side:
        data = _corner(data, plan.side)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(data, plan, Path(folder), Console(stderr=True, soft_wrap=True), [])
        measure_labels(bench)
        measure_adaptation(bench)
    if quick:
        return
    write_result(
        RESULT,
        title=TITLE,
        command="vitreous reproduce lola_specvit",
        rows=summary(bench.records),
        conclusion=conclude(bench.records),
        epochs=plan.epochs,
        steps_per_epoch=plan.steps,
        seconds=time.perf_counter() - started,
        runs=bench.records,
    )


def measure_labels(bench: Bench) -> None:
    """Compare with the plain ViT at several amounts of labels, drawn at random."""
    for share in bench.plan.labels:
        for seed in range(bench.plan.seeds):
            settings = {"split": "random", "train_fraction": share, "val_fraction": 0}
            _compare(bench, labels_part(share), seed, settings)


def measure_adaptation(bench: Bench) -> None:
    """Train on the classes with odd numbers, then on the others: all weights, the adapters, or the head alone."""
    count = len(bench.data.class_names)
    first = bench.data.only(range(1, count + 1, 2))
    second = bench.data.only(range(2, count + 1, 2))
    drawn = {"split": "random", "val_fraction": 0}
    for form, model_args in FORMS.items():
        base = bench.folder / f"base {form}"
        base.mkdir()
        settings = {**drawn, "train_fraction": BASE_LABELS, "model_args": model_args}
        recipe = _recipe(bench.plan, OURS, 0, **settings)
        split = classify.draw_split(recipe, first)
        trained = bench.measure("first half of classes", form, recipe, first, split)
        runs.save_run_model(
            base,
            trained.classifier,
            name=OURS,
            model_args=trained.model_args,
            class_names=first.class_names,
            class_colors=first.class_colors,
        )
        for seed in range(bench.plan.adaptation_seeds):
            for adapt in WAYS:
                settings = {**drawn, "train_fraction": NEW_LABELS, "init": str(base)}
                recipe = _recipe(bench.plan, OURS, seed, adapt=adapt, **settings)
                split = classify.draw_split(recipe, second)
                name = adaptation_name(form, adapt)
                bench.measure("second half of classes", name, recipe, second, split)


def labels_part(share: float) -> str:
    """Name the part of the results for a share of labels."""
    return f"random {share:.0%}"


def adaptation_name(form: str, adapt: str) -> str:
    """Name the system that trains ``adapt`` with adapters of ``form``."""
    return f"{form} adapters: {WAYS[adapt]}"


def depth_of_plain_vit(classes: int, recipe: Recipe) -> int:
    """Return the least depth at which the plain ViT has no fewer parameters than LoLA-SpecViT."""
    shape = {
        "bands": recipe.components,
        "num_classes": classes,
        "image_size": recipe.patch_size,
    }
    wanted = runs.parameter_counts(create_model(OURS, **shape))[0]
    depth = 1
    while runs.parameter_counts(create_model(PLAIN, **shape, depth=depth))[0] < wanted:
        depth += 1
    return depth


# -- from records to words --------------------------------------------------------------------------------


def summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the table: one row per part and system, over its seeds."""
    rows = []
    for part, system in dict.fromkeys((r["part"], r["system"]) for r in records):
        own = _of(records, part, system)
        rows.append(
            {
                "part": part,
                "system": system,
                "seeds": len(own),
                "training pixels": round(mean(r["train_pixels"] for r in own)),
                "parameters": own[0]["parameters"],
                "trained": f"{own[0]['trainable'] / own[0]['parameters']:.1%}",
                "OA %": percent([r["oa"] for r in own]),
                "AA %": percent([r["aa"] for r in own]),
                "kappa x 100": percent([r["kappa"] for r in own]),
            }
        )
    return rows


def conclude(records: Sequence[dict[str, Any]]) -> str:
    """Say in words what the numbers say of the claim, also where it does not hold."""
    words = [_conclude_labels(records)]
    words += [_conclude_adapters(records, form) for form in FORMS]
    return " ".join(words)


def _conclude_labels(records: Sequence[dict[str, Any]]) -> str:
    gaps = {share: _gap(records, labels_part(share)) for share in LABELS}
    few, two, many = (gaps[share] for share in LABELS)
    return (
        f"At 2 % labels it is {two:+.1f} points of OA from the plain ViT, where the claim demands "
        f"{GAIN_AT_2:+.1f}: {verdict(two >= GAIN_AT_2)}. The gap is {few:+.1f} at 1 % and {many:+.1f} at 10 %; "
        f"that it grows, or shrinks by at most {SLACK_OF_GAPS} points, with fewer labels: "
        f"{verdict(few >= many - SLACK_OF_GAPS)}. Both draw pixels at random, so most test pixels lie inside "
        "training patches; benchmarks/accuracy.py compares both on blocks."
    )


def _conclude_adapters(records: Sequence[dict[str, Any]], form: str) -> str:
    part = "second half of classes"
    full, adapters, probe = (_points(records, part, adaptation_name(form, way)) for way in WAYS)
    record = _of(records, part, adaptation_name(form, "lora_only"))[0]
    share = record["trainable"] / record["parameters"]
    holds = adapters >= full - SLACK_OF_ADAPTERS and adapters > probe and share <= TRAINED_SHARE
    return (
        f"With {form} adapters, adapters and head ({share:.1%} of the parameters) learn the other half of the "
        f"classes {adapters - full:+.1f} points from all weights and {adapters - probe:+.1f} from the head alone; "
        f"that it is at most {SLACK_OF_ADAPTERS} points behind, above the head alone, and trains at most "
        f"{TRAINED_SHARE:.0%}: {verdict(holds)}."
    )


def _gap(records: Sequence[dict[str, Any]], part: str) -> float:
    return _points(records, part, OURS) - _points(records, part, PLAIN)


def _points(records: Sequence[dict[str, Any]], part: str, system: str) -> float:
    """Return the mean overall accuracy in percent."""
    return 100 * mean(r["oa"] for r in _of(records, part, system))


def _of(records: Sequence[dict[str, Any]], part: str, system: str) -> list[dict[str, Any]]:
    return [r for r in records if (r["part"], r["system"]) == (part, system)]


# -- pieces -----------------------------------------------------------------------------------------------


def _compare(bench: Bench, part: str, seed: int, settings: dict[str, Any]) -> None:
    """Train both systems on one split; it is drawn for ours, which sees more pixels around each."""
    recipe = _recipe(bench.plan, OURS, seed, **settings)
    split = classify.draw_split(recipe, bench.data)
    bench.measure(part, OURS, recipe, bench.data, split)
    depth = depth_of_plain_vit(len(bench.data.class_names), recipe)
    plain = recipe.model_copy(update={"model": PLAIN, "model_args": {"depth": depth}})
    bench.measure(part, PLAIN, plain, bench.data, split)


def _recipe(plan: Plan, model: str, seed: int, **settings: Any) -> Recipe:
    own = {"epochs": plan.epochs, "passes": PASSES, "warmup_epochs": 1}
    return make_recipe({"model": model, "seed": seed, **own, **settings})


def _corner(data: LabelledScene, side: int) -> LabelledScene:
    """Return a corner of the scene, with the classes that have pixels enough to be divided."""
    part = data.cropped(slice(0, side), slice(0, side))
    pixels = [int((part.labels == k).sum()) for k in range(1, len(part.class_names) + 1)]
    return part.only([k for k, count in enumerate(pixels, start=1) if count >= 20])


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:])
