"""Every architecture on the built-in scene, small and of comparable size, trained alike.

Two ways to choose the training pixels: ``fixed``, the literature's 695, and ``blocks``, where no test pixel lies
inside a training patch. Every network gets the same pixels (splits are drawn for LoLA-SpecViT, which sees the most
around each), patches of 15 x 15 pixels, 15 components, first weights scaled to its width, no stochastic depth, the same
augmentation and the same small number of steps. This compares architectures at little cost; it does not rank what each
could reach, and times are not compared: ``vitreous bench models`` measures them.

What is already recorded is kept unless its settings have changed; a stopped run resumes where it stopped.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from _common import RESULTS, SMALL, add_record, digest, show
from rich.console import Console

from vitreous.catalog.registry import card
from vitreous.catalog.results import percent
from vitreous.files import read_json
from vitreous.recipe import Recipe, make_recipe
from vitreous.tasks import classify
from vitreous.tasks.labelled import open_labelled
from vitreous.tasks.miniature import scaled_start

RESULT = RESULTS / "leaderboard.json"
TITLE = "Small architectures on Indian Pines, trained identically"
SEEDS = 5
WIDEST = "lola_specvit_tiny"  # sees the most pixels around each: splits are drawn for it
STEPS = 120
START = "scaled to the width"  # first weights
BUDGET: dict[str, Any] = {
    "mode": "scene",
    "passes": 1,
}  # the usual way; patch by patch but for a shared stem
PROTOCOLS: dict[str, dict[str, Any]] = {
    "fixed": {"split": "fixed", "val_fraction": 0},
    "blocks": {"split": "blocks"},
}
# Variants cut to about a million weights: the wiring is the paper's, widths and depths are ours.
ENTRIES: dict[str, dict[str, Any]] = {
    "vit_small": {"dim": 128, "depth": 4, "heads": 4},
    "ggem_vit_small": {"dim": 128, "depth": 4, "heads": 4},
    "swin_tiny": {"dim": 48, "depths": [2, 4], "heads": [2, 4]},
    "coswin_base": {"dim": 32, "depths": [2, 4], "heads": [2, 4]},
    "crossformer_tiny": {"dim": 48, "depths": [2, 4], "heads": [2, 4]},
    "sret_tiny": {
        "depths": [2, 4],
        "heads": [2, 4],
        "groups": [4, 1],
        "groups_again": [2, 1],
    },
    "convnext_tiny": {"dims": [48, 96, 192], "depths": [1, 1, 2]},
    "crossvit_small": {"dims": [64, 128], "depths": [[1, 2, 1], [1, 1, 1]], "heads": [2, 4]},
    "cvt_13": {"dims": [48, 96, 160], "depths": [1, 1, 2], "heads": [1, 2, 4]},
    "t2t_vit_7": {"dim": 160, "depth": 4, "heads": 4, "token_dim": 32},
    "tnt_small": {"dim": 128, "inner_dim": 12, "depth": 4, "heads": 4, "inner_heads": 2},
    "efficientvit_m0": {"dims": [64, 96, 128], "depths": [1, 1, 2]},
    "efficientformer_l1": {
        "dims": [32, 64, 96, 160],
        "depths": [1, 1, 2, 2],
        "heads": 4,
        "key_dim": 16,
        "value_dim": 32,
    },
    "spectformer_tiny": {
        "dims": [128],
        "depths": [4],
        "heads": [4],
        "mlp_ratios": [4.0],
        "alpha": 2,
    },
    "smt_tiny": SMALL["smt_tiny"],
    "hornet_tiny_gf": SMALL["hornet_tiny_gf"],
    "fmvit_tiny": SMALL["fmvit_tiny"],
    "dhvt_small": {"dim": 128, "depth": 4, "heads": 4},
    "lola_specvit_tiny": {},
}
console = Console(stderr=True, soft_wrap=True)


def recipe_of(name: str, protocol: str, seed: int) -> Recipe:
    """Return the settings of one training, without the number of epochs, which follows from the split."""
    arguments = {"drop_path": 0.0, **ENTRIES[name]}  # 120 steps are too few for stochastic depth
    own = {"model": name, "model_args": arguments, "seed": seed, "reduction": "pca"}
    return make_recipe({**BUDGET, **PROTOCOLS[protocol], **own})


def key(name: str, protocol: str, seed: int) -> str:
    """Name a training together with everything that decides about its outcome."""
    recipe = recipe_of(name, protocol, seed).model_dump()
    return f"{protocol}/{seed}/{name}/{digest(recipe, card(name).variants[name], STEPS, START)}"


def measure(name: str, protocol: str, seed: int) -> dict[str, Any]:
    """Train and score one network."""
    recipe = recipe_of(name, protocol, seed)
    data = open_labelled(recipe)
    split = classify.draw_split(recipe_of(WIDEST, protocol, seed), data)
    per_epoch = max(1, round(split.counts["train"] / recipe.batch_size))
    recipe = recipe.model_copy(update={"epochs": max(1, round(STEPS / per_epoch))})
    with tempfile.TemporaryDirectory() as folder:
        recipe = scaled_start(recipe, len(data.class_names), Path(folder))
        _, row = classify.fit_and_score(recipe, data, split, Path(folder) / "training")
    test = row["test"]
    console.print(
        f"{protocol:7} seed {seed}  {name:20} OA {100 * test['oa']:6.2f}", highlight=False
    )
    return {
        "key": key(name, protocol, seed),
        "protocol": protocol,
        "seed": seed,
        "system": name,
        "oa": test["oa"],
        "aa": test["aa"],
        "kappa": test["kappa"],
        "parameters": row["parameters"],
        "test_pixels": split.counts["test"],
        "split": split.hash,
    }


def summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per architecture, the best on blocks first."""
    rows = []
    for name in dict.fromkeys(r["system"] for r in records):
        own = [r for r in records if r["system"] == name]
        row: dict[str, Any] = {
            "architecture": card(name).slug,
            "variant": name,
            "weights M": round(own[0]["parameters"] / 1e6, 2),
        }
        for protocol in PROTOCOLS:
            runs = [r for r in own if r["protocol"] == protocol]
            if runs:
                row |= {
                    f"{protocol} OA %": percent([r["oa"] for r in runs]),
                    f"{protocol} AA %": percent([r["aa"] for r in runs]),
                    f"{protocol} kappa x 100": percent([r["kappa"] for r in runs]),
                }
        row["seeds"] = len({r["seed"] for r in own})
        rows.append((_mean_oa(own, "blocks"), row))
    return [row for _, row in sorted(rows, key=lambda pair: -pair[0])]


def conclude(records: Sequence[dict[str, Any]]) -> str:
    """Say how far apart they are."""
    words = [
        f"Mean and standard deviation over seeds; {STEPS} steps of 64 patches each, no hyperparameter search."
    ]
    for protocol in PROTOCOLS:
        names = {r["system"] for r in records if r["protocol"] == protocol}
        if names:
            means = {n: _mean_oa([r for r in records if r["system"] == n], protocol) for n in names}
            best, worst = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
            words.append(
                f"{protocol.capitalize()}: from {100 * means[worst]:.1f} % OA ({worst}) to "
                f"{100 * means[best]:.1f} % ({best})."
            )
    return " ".join(words)


def _mean_oa(records: Sequence[dict[str, Any]], protocol: str) -> float:
    found = [r["oa"] for r in records if r["protocol"] == protocol]
    return mean(found) if found else 0.0


def recorded() -> dict[str, dict[str, Any]]:
    """Return what is recorded, by key, without what was made with other settings."""
    if not RESULT.is_file():
        return {}
    return {
        r["key"]: r
        for r in read_json(RESULT)["runs"]
        if r["system"] in ENTRIES and r["key"] == key(r["system"], r["protocol"], r["seed"])
    }


def add(record: dict[str, Any]) -> None:
    """Add a record to the file, whatever another process has added meanwhile."""
    add_record(
        RESULT,
        record,
        recorded=recorded,
        summary=summary,
        conclude=conclude,
        title=TITLE,
        command="python benchmarks/leaderboard.py",
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=PROTOCOLS, help="one protocol")
    parser.add_argument("--systems", nargs="+", choices=ENTRIES, default=list(ENTRIES))
    parser.add_argument("--seeds", type=int, default=SEEDS, help="seeds 0 to SEEDS - 1")
    given = parser.parse_args()
    for seed in range(given.seeds):  # all systems once before any twice
        for protocol in [given.only] if given.only else PROTOCOLS:
            for name in given.systems:
                if key(name, protocol, seed) not in recorded():
                    add(measure(name, protocol, seed))
    show(TITLE, summary([*recorded().values()]))


if __name__ == "__main__":
    main()
