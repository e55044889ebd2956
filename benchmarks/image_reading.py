"""How many images of a folder one core reads and changes at random per second.

Files lie in the system's cache, so that it is decoding and augmentation that is measured, in processor time of one thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _common import RESULTS, show

from vitreous.catalog.results import write_result
from vitreous.data.image_augment import Augmentation
from vitreous.data.image_batches import TrainingBatches
from vitreous.data.image_collection import ImageCollection, open_images
from vitreous.inference.bench import one_thread
from vitreous.recipe import RecognizeRecipe, make_recipe
from vitreous.tasks.fit_images import augmentation_of

RESULT = RESULTS / "image_reading.json"
TITLE = "Images read and augmented per second and core"
WANTED = 3000  # 32 x 32 JPEGs per second
ROUNDS = 5
BATCH = 64
# Folder of the data, height and width of the images.
DATA = {
    "cifar10": ("JPEG, 3 bands", (32, 32)),
    "eurosat_rgb": ("JPEG, 3 bands", (64, 64)),
    "eurosat_ms": ("GeoTIFF, 13 bands of 16 bits", (64, 64)),
}
AUGMENTATIONS: dict[str, Callable[[], Augmentation]] = {
    "none": Augmentation,
    "default": lambda: augmentation_of(make_recipe({}, RecognizeRecipe)),
    "strong": lambda: Augmentation(0.3, "horizontal", 2, 9.0, 0.25, 0.8, 1.0),
}


def rate(collection: ImageCollection, size: tuple[int, int], augmentation: Augmentation) -> float:
    """Return images per second of processor time; the best round, because other processes disturb the rest."""
    best = 0.0
    for epoch in range(ROUNDS):
        batches = TrainingBatches(collection, size, augmentation, BATCH, 0, epoch)
        began, count = time.process_time(), 0
        for batch in batches:
            count += len(batch.image)
        best = max(best, count / (time.process_time() - began))
    return best


def rows_of(data: Path) -> list[dict[str, Any]]:
    """Measure every kind of file with every augmentation, read from files each time and from memory."""
    rows = []
    for name, (kind, size) in DATA.items():
        if not (data / name).is_dir():
            continue
        collection = open_images(data / name)
        kept = dict(collection.store.kept)
        for where in ("files", "memory"):
            collection.store.kept = kept if where == "memory" else {}
            row: dict[str, Any] = {
                "data": name,
                "files": kind,
                "pixels": f"{size[0]} x {size[1]}",
                "read from": where,
            }
            for augmentation, made in AUGMENTATIONS.items():
                row[f"images/s, augmentation {augmentation}"] = round(
                    rate(collection, size, made())
                )
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", type=Path, required=True, help=f"folder that holds {', '.join(DATA)}"
    )
    given = parser.parse_args()
    with one_thread():
        torch.set_num_threads(1)
        rows = rows_of(given.data)
    found = min(v for k, v in rows[0].items() if k.startswith("images/s"))
    conclusion = (
        f"JPEG files of 32 x 32 pixels are decoded and changed at {found:,} images per second and core or more; "
        f"{WANTED:,} are wanted. Collections of up to 1 GiB are kept in memory once they have been checked."
    )
    write_result(
        RESULT,
        title=TITLE,
        command="python benchmarks/image_reading.py --data FOLDER",
        rows=rows,
        conclusion=conclusion,
    )
    show(TITLE, rows)


if __name__ == "__main__":
    main()
