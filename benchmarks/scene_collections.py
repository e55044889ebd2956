"""Training on collections of scenes: all pixels of tiles at once, measured on scenes that nobody has learned from.

Two collections of real pairs of scene and mask: crops of a dense city in red, green and blue with four classes (scenes are
drawn for each seed), and Landsat-8 patches with near infrared and a cloud mask (each scene is tested on once). A small
ConvNeXt with a decoder is compared with the classical classifiers, which see a pixel, or a pixel and its surroundings; all
learn from the same scenes. Everything but the settings below is the default of ``vitreous train``.

What is already recorded is kept unless its settings have changed; a stopped run resumes where it stopped.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from _common import RESULTS, add_record, digest, show
from rich.console import Console

from vitreous.catalog.registry import card
from vitreous.catalog.results import percent
from vitreous.data.collection import Entry, read_collection
from vitreous.files import read_json
from vitreous.inference.bench import one_thread
from vitreous.recipe import Recipe, make_recipe
from vitreous.tasks import classify
from vitreous.tasks.dispatch import predict_collection

RESULT = RESULTS / "scene_collections.json"
TITLE = "Collections of scenes: accuracy on held-out scenes"
NETWORK = "convnext_tiny"
BASELINES = (
    "random_forest",
)  # an SVM would take longer to classify the test scenes than the network to train
COMMON: dict[str, Any] = {
    "mode": "dense",
    "model": NETWORK,
    "model_args": {"dims": [32, 64, 96, 128], "depths": [2, 2, 2, 2]},
    "tile_size": 64,
    "baselines": list(BASELINES),
    "report": False,
    "accelerator": "cpu",
}
QUICK = 4  # scenes of a quick run
console = Console(stderr=True, soft_wrap=True)


@dataclass(frozen=True)
class Scenes:
    """One collection.

    Attributes:
        folder: of the data.
        pattern: of the scenes in it.
        labels: pattern of the labels.
        seeds: how many trainings there are.
        roles: writes who trains, validates and tests, of the scenes and a seed.
        words: what it is, for the conclusion.
        settings: of the training.
    """

    folder: str
    pattern: str
    labels: str
    seeds: int
    roles: Callable[[Sequence[Entry], int], list[str]]
    words: str
    settings: dict[str, Any] = field(default_factory=dict)


def drawn(entries: Sequence[Entry], seed: int) -> list[str]:
    """Leave the roles to ``vitreous train``, which draws them for each seed."""
    return ["" for _ in entries]


def one_each(entries: Sequence[Entry], seed: int) -> list[str]:
    """Test on one scene and validate on the next."""
    count = len(entries)
    return [
        "test" if k == seed else "val" if k == (seed + 1) % count else "train" for k in range(count)
    ]


COLLECTIONS: dict[str, Scenes] = {
    "city": Scenes(
        "urban_tiles_seg",
        "images/*",
        "masks/*",
        5,
        drawn,
        "25 crops of 256 x 256 pixels in red, green and blue; four classes of land cover",
        {"train_fraction": 0.6, "val_fraction": 0.15, "epochs": 3, "warmup_epochs": 1},
    ),
    "clouds": Scenes(
        "cloud38",
        "*_rgbn.tif",
        "*_mask.png",
        5,
        one_each,
        "5 Landsat-8 patches of 384 x 384 pixels with near infrared; cloud or not",
        {"label_hints": {"zero_class": True}, "epochs": 5, "warmup_epochs": 1},
    ),
}


def table(data: str, seed: int, folder: Path, work: Path, most: int | None = None) -> Path:
    """Write the table of a training: scenes, labels and, where they are not drawn, roles."""
    scenes = COLLECTIONS[data]
    place = folder / scenes.folder
    entries = read_collection(str(place / scenes.pattern), str(place / scenes.labels)).entries
    entries = entries[:most]
    path = work / f"{data}-{seed}.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("scene", "labels", "role"))
        for entry, role in zip(entries, scenes.roles(entries, seed), strict=True):
            assert entry.labels is not None
            writer.writerow((Path(entry.scene).resolve(), Path(entry.labels).resolve(), role))
    return path


def recipe_of(data: str, seed: int) -> Recipe:
    """Return the settings of one training, without its scenes."""
    return make_recipe({**COMMON, **COLLECTIONS[data].settings, "seed": seed})


def key(data: str, seed: int) -> str:
    """Name a training together with everything that decides about its outcome."""
    scenes = COLLECTIONS[data]
    recipe = recipe_of(data, seed).model_dump()
    more = (card(NETWORK).variants[NETWORK], scenes.roles.__name__, scenes.pattern)
    return f"{data}/{seed}/{digest(recipe, *more)}"


def measure(
    data: str, seed: int, scenes: Path, *, quick: bool = False, maps: Path | None = None
) -> dict[str, Any]:
    """Train on a collection and score everything on its test scenes.

    Args:
        data: which collection.
        seed: of the training.
        scenes: table of the scenes.
        quick: a single epoch instead, without baselines.
        maps: also write maps of the test scenes here, by ``vitreous predict``.
    """
    shorter = {"epochs": 1, "passes": 1, "baselines": [], "warmup_epochs": 0} if quick else {}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given = {"scenes": str(scenes), "runs": folder, "name": "run", "map": False}
        own = {**COMMON, **COLLECTIONS[data].settings, "seed": seed, **shorter, **given}
        run = classify.train(make_recipe(own), show=False)
        metrics = read_json(run / "metrics.json")
        if maps is not None:
            tested = [row["source"] for row in metrics["scenes"] if row["test"]]
            listing = Path(folder) / "tested.csv"
            listing.write_text("scene\n" + "\n".join(tested) + "\n", encoding="utf-8")
            predict_collection(run, str(listing), maps / f"{data}-{seed}", overwrite=True)
    best = metrics["systems"][0]
    console.print(
        f"{data:8} seed {seed}  mIoU {100 * best['test']['miou']:6.2f}",
        highlight=False,
    )
    return {
        "key": key(data, seed),
        "data": data,
        "seed": seed,
        "counts": metrics["split"]["counts"],
        "leakage": metrics["split"]["leakage"],
        "scenes": [
            {"name": row["name"], "role": next(r for r in ("train", "val", "test") if row[r])}
            for row in metrics["scenes"]
            if any(row[r] for r in ("train", "val", "test"))
        ],
        "systems": [
            {
                "name": row["name"],
                "parameters": row["parameters"],
                **{name: row["test"][name] for name in ("miou", "oa", "aa", "kappa")},
                "scenes": {one["name"]: one["miou"] for one in row["test"]["scenes"]},
            }
            for row in metrics["systems"]
        ],
    }


def summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per collection and system, the best of a collection first."""
    rows = []
    for data in COLLECTIONS:
        found: dict[str, list[dict[str, Any]]] = {}
        for record in records:
            if record["data"] == data:
                for row in record["systems"]:
                    found.setdefault(row["name"], []).append(row)
        order = sorted(found, key=lambda name: -mean(row["miou"] for row in found[name]))
        rows += [_row(data, name, found[name]) for name in order]
    return rows


def _row(data: str, name: str, own: Sequence[dict[str, Any]]) -> dict[str, Any]:
    weights = own[0]["parameters"]
    return {
        "scenes": data,
        "system": name,
        "mIoU, %": percent([row["miou"] for row in own]),
        "OA, %": percent([row["oa"] for row in own]),
        "AA, %": percent([row["aa"] for row in own]),
        "weights M": None if weights is None else round(weights / 1e6, 2),
        "trainings": len(own),
    }


def conclude(records: Sequence[dict[str, Any]]) -> str:
    """Say what was compared, and how far apart they are."""
    words = [
        "Mean and standard deviation over trainings, on scenes that none of them has learned from; no hyperparameter "
        "search."
    ]
    rows = summary(records)
    for data, scenes in COLLECTIONS.items():
        own = [row for row in rows if row["scenes"] == data]
        if own:
            figures = ", ".join(f"{row['mIoU, %']} ({row['system']})" for row in own)
            words.append(f"{data.capitalize()} ({scenes.words}): mIoU {figures}.")
    return " ".join(words)


def recorded() -> dict[str, dict[str, Any]]:
    """Return what is recorded, by key, without what was made with other settings."""
    if not RESULT.is_file():
        return {}
    return {
        r["key"]: r
        for r in read_json(RESULT)["runs"]
        if r["data"] in COLLECTIONS and r["key"] == key(r["data"], r["seed"])
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
        command="benchmarks/scene_collections.py --data DATA",
    )


def trainings(names: Sequence[str], quick: bool) -> Iterator[tuple[str, int]]:
    """Yield every training, those of one seed after the other."""
    most = max(COLLECTIONS[name].seeds for name in names)
    for seed in range(1 if quick else most):
        for name in names:
            if seed < COLLECTIONS[name].seeds:
                yield name, seed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    folders = ", ".join(scenes.folder for scenes in COLLECTIONS.values())
    parser.add_argument("--data", type=Path, required=True, help=f"folder that holds {folders}")
    parser.add_argument("--only", choices=COLLECTIONS, help="one collection")
    parser.add_argument("--maps", type=Path, help="folder for maps of the test scenes of seed 0")
    parser.add_argument(
        "--quick", action="store_true", help="check that everything runs; record nothing"
    )
    given = parser.parse_args()
    names = [given.only] if given.only else list(COLLECTIONS)
    quick: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as work, one_thread():
        for data, seed in trainings(names, given.quick):
            if not given.quick and key(data, seed) in recorded():
                continue
            scenes = table(data, seed, given.data, Path(work), QUICK if given.quick else None)
            maps = given.maps if seed == 0 else None
            record = measure(data, seed, scenes, quick=given.quick, maps=maps)
            if given.quick:
                quick.append(record)
            else:
                add(record)
    show(TITLE, summary(quick or [*recorded().values()]))


if __name__ == "__main__":
    main()
