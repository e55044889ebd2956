"""Small georeferenced scenes with labels, side by side on one map, for tests of collections."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine

from tiny_scene import NANOMETRES, tiny_cube, tiny_labels
from vitreous.scenes import geotiff
from vitreous.scenes.cube import make_labels, make_scene

SIDE = (24, 28)
WEST, NORTH, PIXEL = 500_000, 5_000_000, 10


def write_pair(
    folder: Path,
    name: str,
    place: int = 0,
    *,
    labels: np.ndarray | None = None,
    cube: np.ndarray | None = None,
    shift: tuple[int, int] = (0, 0),
    **facts: Any,
) -> dict[str, str]:
    """Write a scene as GeoTIFF and its labels beside it, at the ``place``-th position from west to east.

    Args:
        folder: where to.
        name: of the scene; its labels end in ``_label``.
        place: also seeds the noise.
        labels: classes; the tiny scene's when None.
        cube: values; drawn from the labels when None.
        shift: rows and columns that it lies off its place.
        facts: of ``make_scene``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    labels = tiny_labels() if labels is None else labels
    values = tiny_cube(labels, seed=place + 1) if cube is None else cube
    left = WEST + PIXEL * (place * SIDE[1] + shift[1])
    given = {
        "wavelengths": NANOMETRES[: len(values)],
        "unit": "reflectance",
        "crs": "EPSG:32632",
        "transform": Affine(PIXEL, 0, left, 0, -PIXEL, NORTH - PIXEL * shift[0]),
        **facts,
    }
    paths = {"scene": folder / f"{name}.tif", "labels": folder / f"{name}_label.tif"}
    geotiff.write(make_scene(values, **given), paths["scene"])
    place_of = {key: given[key] for key in ("crs", "transform")}
    image = make_labels(labels, **place_of).astype(np.uint8)
    geotiff.write(make_scene(image.values[None], unit="dn", nodata=0, **place_of), paths["labels"])
    return {key: str(path) for key, path in paths.items()}


def write_table(path: Path, rows: list[dict[str, str]]) -> str:
    """Write a table of scenes."""
    head = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, head)
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def write_collection(folder: Path, roles: str = "train train val test test") -> str:
    """Write scenes side by side, and a table that gives them roles."""
    rows = [
        {**write_pair(folder, f"scene {k}", k), "role": role}
        for k, role in enumerate(roles.split())
    ]
    return write_table(folder / "scenes.csv", rows)
