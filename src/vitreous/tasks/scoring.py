"""Measuring systems on test pixels, mapping their scenes, and what ``metrics.json`` says of both."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console

from vitreous.catalog.registry import card
from vitreous.checkpoints import classifiers
from vitreous.data.blocks import TEST
from vitreous.data.fingerprint import Ground
from vitreous.data.overlap import seen_in_training
from vitreous.data.provenance import Provenance, Tested, start_leakage_of
from vitreous.data.roles import ROLE_NAMES, Split, Splits
from vitreous.inference.maps import class_numbers, no_georeference_warning
from vitreous.inference.pixels import classify_pixels
from vitreous.inference.postprocess import Postprocess
from vitreous.inference.predict import Prediction, predict_scene
from vitreous.inference.windows import SceneClassifier
from vitreous.progress import progress_bar
from vitreous.recipe import Recipe
from vitreous.tasks.areas import common_area, pixel_area
from vitreous.tasks.division import learned_from
from vitreous.tasks.fields import testable
from vitreous.tasks.labelled import LabelledScene, LabelledScenes
from vitreous.tasks.metrics import Part, scores, scores_of
from vitreous.tasks.training import Trained

MAP = "map.tif"
MAPS = "maps"  # folder of the maps of several scenes

Ints = npt.NDArray[np.int64]
Classify = Callable[[int, Ints], Ints]  # a scene's number and flat pixels to their classes


def receptive_size(classifier: classifiers.Classifier) -> int:
    """Return the side of the square around a training pixel that is learned from."""
    return classifier.receptive_size


def context_size(classifier: classifiers.Classifier, after: Postprocess | None) -> int:
    """Return the side of the square of pixels that one prediction depends on, its refinement included."""
    return receptive_size(classifier) + (0 if after is None else 2 * after.reach)


def by_classifier(classifier: SceneClassifier, data: LabelledScenes) -> Classify:
    """Return what classifies some pixels of a scene without mapping it."""
    return lambda k, pixels: classify_pixels(classifier, data[k].scene, pixels)


def by_maps(folder: Path, data: LabelledScenes) -> Classify:
    """Return what reads the classes of some pixels from the maps in a run folder."""

    def read(k: int, pixels: Ints) -> Ints:
        return class_numbers(_read_map(map_path(folder, data, k), pixels), data.class_codes)

    return read


def score(
    classify: Classify,
    data: LabelledScenes,
    splits: Splits,
    role: int,
    class_names: list[str] | None = None,
) -> dict[str, Any]:
    """Measure predictions on the pixels with a role, with intervals that resample blocks, or scenes where there are more.

    Args:
        classify: gives the predictions.
        data: the scenes and their labels.
        splits: who tests.
        role: whose pixels are measured.
        class_names: the data's own when None.
    """
    parts = parts_of(classify, data, splits, role)
    return scores_of(parts, class_names or data.class_names, each=len(data) > 1)


def parts_of(classify: Classify, data: LabelledScenes, splits: Splits, role: int) -> Iterator[Part]:
    """Yield the predictions on the pixels with a role, scene by scene; arguments as of :func:`score`."""
    for k in splits.scenes_with(role):
        split = splits[k]
        pixels = split.pixels(role)
        truth = data[k].classes_at(pixels)
        yield Part(truth, classify(k, pixels), split.blocks_of(pixels), data.names[k])


def test_figures(
    classifier: SceneClassifier,
    data: LabelledScenes,
    splits: Splits,
    class_names: list[str] | None = None,
) -> dict[str, Any]:
    """Classify the test pixels alone, and return how fast that was and how right."""
    taken = 0.0

    def classify(k: int, pixels: Ints) -> Ints:
        nonlocal taken
        scene = data[k].scene
        started = time.perf_counter()
        found = classify_pixels(classifier, scene, pixels)
        taken += time.perf_counter() - started
        return found

    test = score(classify, data, splits, TEST, class_names)
    return {"pixels_per_second": splits.counts["test"] / taken, "test": test}


test_figures.__test__ = False  # type: ignore[attr-defined]  # for pytest, which takes the name for its own


def score_pixels(
    data: LabelledScene, split: Split, pixels: Ints, predicted: Ints, class_names: list[str]
) -> dict[str, Any]:
    """Measure predictions at flat pixel indices of one scene, with intervals that resample its blocks."""
    return scores(data.classes_at(pixels), predicted, class_names, blocks=split.blocks_of(pixels))


def system_row(name: str, trained: Trained, system: str | None = None) -> dict[str, Any]:
    """Return a system's row of ``metrics.json``, without its figures.

    Args:
        name: of the row.
        trained: the system.
        system: its name where the row has another.
    """
    return {
        "name": name,
        "kind": card(system or name).kind,
        "parameters": trained.parameters,
        "trainable": trained.trainable,
        "train_seconds": trained.seconds,
        "pixels_per_second": None,
        "val": None,
        "test": None,
    }


def map_path(folder: Path, data: LabelledScenes, index: int) -> Path:
    """Return where the map of a scene stands in a run folder."""
    return folder / MAP if len(data) == 1 else folder / MAPS / f"{data.names[index]}.tif"


@dataclass(frozen=True)
class Mapped:
    """What became of mapping a run's scenes.

    Attributes:
        pixels_per_second: reading and writing included.
        class_pixels: of all maps, by class.
        pixel_area: of a pixel in square metres; None where unknown, or scenes differ.
    """

    pixels_per_second: float
    class_pixels: list[int]
    pixel_area: float | None


def map_scenes(
    folder: Path,
    recipe: Recipe,
    classifier: SceneClassifier,
    data: LabelledScenes,
    splits: Splits,
    console: Console,
) -> Mapped:
    """Map the recipe's scene, or the test scenes of a collection, into a run folder."""
    done: list[Prediction] = []
    areas = []
    for k in splits.scenes_with(TEST):
        path = map_path(folder, data, k)
        areas.append(pixel_area(data[k].scene))
        path.parent.mkdir(exist_ok=True)
        probabilities = path.with_name(path.name.replace(path.stem, f"{path.stem}-probabilities"))
        if len(data) == 1:
            probabilities = folder / "probabilities.tif"
        with progress_bar("mapping", console) as advance:
            done.append(
                predict_scene(
                    classifier,
                    data[k].scene,
                    path,
                    check_values=len(data) > 1,  # a single one is the scene that was trained on
                    class_names=data.class_names,
                    class_colors=data.class_colors,
                    class_codes=data.class_codes,
                    probabilities=probabilities if recipe.probabilities else None,
                    progress=advance,
                )
            )
    rate = sum(one.pixels for one in done) / sum(one.seconds for one in done)
    counts = np.sum([one.class_pixels for one in done], axis=0)
    return Mapped(rate, counts.tolist(), common_area(areas))


def _read_map(path: Path, pixels: Ints) -> Ints:
    """Return the map's values at flat pixel indices, reading it in strips."""
    import rasterio
    from rasterio.windows import Window

    found = np.zeros(len(pixels), dtype=np.int64)
    with no_georeference_warning(), rasterio.open(path, driver="GTiff") as file:
        rows = pixels // file.width
        for top in range(0, file.height, 512):
            inside = (rows >= top) & (rows < top + 512)
            if inside.any():
                strip = file.read(1, window=Window(0, top, file.width, min(512, file.height - top)))
                found[inside] = strip.ravel()[pixels[inside] - top * file.width]
    return found


def metrics_of(
    data: LabelledScenes,
    splits: Splits,
    recipe: Recipe,
    patch_size: int,
    systems: list[dict[str, Any]],
    start: Provenance = (),
) -> dict[str, Any]:
    """Return what ``metrics.json`` holds: the classes, the split and the systems' rows.

    Args:
        data: the scenes and their labels.
        splits: who trained and who tests.
        recipe: the settings, which say who learned from the validation pixels (see
            :func:`vitreous.tasks.division.learned_from`).
        patch_size: side of the square of pixels that a prediction depends on.
        systems: the rows.
        start: the provenance of the weights that training started from; what they have seen of the test pixels counts
            as leakage.
    """
    entries = zip(data.class_codes, data.class_names, data.class_colors, strict=True)
    for system in systems:
        _put_codes(system, data.class_codes)
    none: dict[str, Any] = {}
    told = testable(data, splits) if systems else [none] * len(data.class_names)
    used = learned_from(recipe, splits)
    tested = splits.scenes_with(TEST)
    many = len(data) > 1
    grounds = data.grounds() if many else []
    begun, seen = start_leakage_of(
        start,
        [Tested(splits[k].pixels(TEST), _ground(data, k, start)) for k in tested],
        begun_with(recipe),
    )
    near = [mask for _, mask in seen_in_training(used, grounds, patch_size)]
    own = near
    if used.params.get("patch_size") != patch_size:
        side = int(used.params.get("patch_size", 3))
        own = [mask for _, mask in seen_in_training(used, grounds, side)]
    either = [a | b for a, b in zip(near, seen, strict=True)]
    found: dict[str, Any] = {
        "schema": 1,
        "classes": [
            {"value": code, "name": name, "color": color, **places}
            for (code, name, color), places in zip(entries, told, strict=True)
        ],
        "split": {
            "method": splits.method,
            "params": splits.params,
            "seed": splits.seed,
            "hash": splits.hash,
            "optimistic": used.method == "random" or _share(own) > 0 or begun.share > 0,
            "leakage": _share(either),
            "patch_size": patch_size,
            "counts": splits.counts,
        },
        "start": {**begun.to_json(), "split_leakage": _share(near)} if start else None,
        "systems": systems,
    }
    return found | ({"scenes": _scene_rows(data, splits)} if many else {})


def begun_with(recipe: Recipe) -> str:
    """Return, in words, whose knowledge a training begins with."""
    parts = {"the initial weights": recipe.init, "the weights of the teacher": recipe.teacher}
    return " and ".join(name for name, given in parts.items() if given) or "the initial weights"


def _ground(data: LabelledScenes, index: int, start: Provenance) -> Ground:
    """Return the ground of a scene; its values are only read where it is compared with that of a start."""
    return data.ground(index) if start else Ground("", *data.shapes[index])


def _share(masks: list[npt.NDArray[np.bool_]]) -> float:
    """Return the share of pixels that are marked."""
    count = sum(len(mask) for mask in masks)
    return float(sum(int(mask.sum()) for mask in masks) / count) if count else 0.0


def _scene_rows(data: LabelledScenes, splits: Splits) -> list[dict[str, Any]]:
    """Return a row for each scene of a collection: what it is, and how many pixels have which role."""
    totals = {name: splits.totals(role).tolist() for role, name in ROLE_NAMES.items()}
    return [
        {
            "name": name,
            "source": entry.scene,
            "date": entry.date,
            "sensor": entry.sensor,
            **{role: counts[k] for role, counts in totals.items()},
        }
        for k, (name, entry) in enumerate(zip(data.names, data.entries, strict=True))
    ]


def _put_codes(system: dict[str, Any], codes: list[int]) -> None:
    """Let the rows of a system's classes carry the label file's own numbers."""
    for figures in (system.get("val"), system.get("test")):
        for row, code in zip(figures["per_class"] if figures else [], codes, strict=False):
            row["value"] = code
