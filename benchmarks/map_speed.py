"""Speed and memory of mapping a scene: ours against the usual way, with the same weights.

- ours: ``vitreous predict``: windows, the front-end once per window, patches read from its output; from the scene to
  the finished map file.
- usual: every patch of the scene cut out into one array, batches of 128 through the whole network, front-end included;
  from the scene to the classes in memory.

The two alternate, each in a process of its own, on the scene and on it tiled 4 and 16 times. Where the usual way would
take too long, it cuts out all patches but classifies only the first ones; its time is then extrapolated, and the
table says so.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
from _common import RESULTS, forget_peak, in_own_process, show
from rich.console import Console

from vitreous.catalog.results import write_result

RESULT = RESULTS / "map_speed.json"
TITLE = "Mapping a scene: shared front-end compared with patch-by-patch inference"
BATCH = 128
PART = 2**15  # patches that the usual way classifies at most
TILES = (1, 2, 4)  # along each side
REPEATS = 3
MEMORY_SHARE = 0.8  # of what is free, that the patches may take
PER_BAND = ("wavelength", "fwhm", "good_band")
console = Console(stderr=True, soft_wrap=True)


# -- one measurement, in a process of its own ---------------------------------------------------------------


def work(way: str, run: str, scene: str, part: int, out: str) -> dict[str, Any]:
    """Map a scene file with a run, and keep the classes in ``out``.

    Returns:
        ``seconds``, ``pixels``, ``classified`` (fewer than pixels where the time is extrapolated), and the peak of
        ``memory`` in bytes while it maps, with ``before``, what it has taken when mapping begins.
    """
    from vitreous.inference.bench import peak_memory
    from vitreous.scenes import open_scene
    from vitreous.tasks.runs import load_run

    trained, opened = load_run(run), open_scene(scene)
    forget_peak()
    before = peak_memory()
    found = {"ours": map_ours, "usual": map_usual}[way](trained, opened, part, Path(out))
    pixels = opened.sizes["y"] * opened.sizes["x"]
    return {**found, "pixels": pixels, "before": before, "memory": peak_memory()}


def write_tiled(run: Path, tiles: int, path: Path) -> None:
    """Write the run's scene, repeated along both sides, as a file."""
    from vitreous.scenes import geotiff
    from vitreous.scenes.cube import make_scene
    from vitreous.tasks.labelled import open_labelled
    from vitreous.tasks.runs import load_run

    scene = open_labelled(load_run(run).recipe).scene
    per_band = {name: scene[name].values for name in PER_BAND if name in scene.coords}
    if "wavelength" in per_band:
        per_band["wavelengths"] = per_band.pop("wavelength")
    attributes = {key: scene.attrs[key] for key in ("unit", "scale", "nodata")}
    geotiff.write(
        make_scene(np.tile(scene.values, (1, tiles, tiles)), **per_band, **attributes), path
    )


def map_ours(trained: Any, scene: Any, part: int, out: Path) -> dict[str, Any]:
    """Map as ``vitreous predict`` does."""
    import rasterio

    from vitreous.inference.maps import no_georeference_warning
    from vitreous.inference.predict import predict_scene

    path = out.with_suffix(".tif")
    prediction = predict_scene(
        trained.classifier,
        scene,
        path,
        class_names=trained.class_names,
        class_colors=trained.class_colors,
        png=False,
    )
    with no_georeference_warning(), rasterio.open(path) as file:
        np.save(out, file.read(1).ravel())
    return {"seconds": prediction.seconds, "classified": prediction.pixels}


def map_usual(trained: Any, scene: Any, part: int, out: Path) -> dict[str, Any]:
    """Cut out all patches, then classify them batch by batch."""
    import torch

    from vitreous.scenes.cube import read_window

    classifier = trained.classifier
    height, width = scene.sizes["y"], scene.sizes["x"]
    started = time.perf_counter()
    with torch.inference_mode():
        raw = read_window(
            scene, slice(0, height), slice(0, width), classifier.contract.select(scene)
        )
        channels = classifier.preprocess(torch.from_numpy(raw)[None])[0].numpy()
        patches = cut_patches(channels, classifier.radius, part)
        prepared = time.perf_counter() - started
        classes = []
        for first in range(0, min(part, len(patches)), BATCH):
            batch = torch.from_numpy(patches[first : min(first + BATCH, part)])
            classes.append(classifier.net(batch).argmax(1).numpy() + 1)
    done = np.concatenate(classes)
    np.save(out, done.astype(np.uint8))
    classifying = time.perf_counter() - started - prepared
    return {
        "seconds": prepared * height * width / len(patches)
        + classifying * height * width / len(done),
        "classified": len(done),
        "patches_held": len(patches),
    }


def cut_patches(
    channels: npt.NDArray[np.float32], radius: int, part: int
) -> npt.NDArray[np.float32]:
    """Return the patches around all pixels, ``(pixels, channels, side, side)``; the first ``part`` where memory ends."""
    from numpy.lib.stride_tricks import sliding_window_view

    side = 2 * radius + 1
    around = ((0, 0), (radius, radius), (radius, radius))
    views = sliding_window_view(np.pad(channels, around, mode="reflect"), (side, side), (1, 2))
    views = views.transpose(1, 2, 0, 3, 4)
    width = views.shape[1]
    if views.size * 4 > MEMORY_SHARE * free_memory():
        views = views[: -(-part // width)]
    return np.ascontiguousarray(views).reshape(-1, *views.shape[2:])


def free_memory() -> int:
    """Return the memory in bytes that is free or soon would be."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


# -- all measurements ---------------------------------------------------------------------------------------


def measure(
    run: Path, tiles: Sequence[int], repeats: int, part: int, folder: Path
) -> list[dict[str, Any]]:
    """Let both ways map the scene in turn; return one record per measurement."""
    records = []
    for times in tiles:
        scene = folder / f"scene-{times}.tif"
        write_tiled(run, times, scene)
        for repeat in range(repeats):
            for way in ("ours", "usual"):
                arguments = {"way": way, "run": str(run), "scene": str(scene), "part": part}
                arguments["out"] = str(folder / f"{way}-{times}.npy")
                record = {"way": way, "tiles": times**2, "repeat": repeat}
                record |= in_own_process(__file__, arguments)
                records.append(record)
                console.print(
                    f"{times**2:2} x  {way:6} {record['pixels'] / record['seconds']:9.0f} pixels/s  "
                    f"{record['memory'] / 2**20:7.0f} MiB",
                    highlight=False,
                )
    return records


def summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the table: medians per size and way, and the speed-up of ours."""
    rows = []
    for times in dict.fromkeys(r["tiles"] for r in records):
        ours, usual = (medians(records, times, way) for way in ("ours", "usual"))
        for way, own in (("ours", ours), ("usual", usual)):
            rows.append(
                {
                    "scene": f"{times} x" if times > 1 else "as it is",
                    "pixels": own["pixels"],
                    "way": way,
                    "pixels/s": round(own["speed"]),
                    "speed-up": round(own["speed"] / usual["speed"], 1),
                    "peak memory MiB": round(own["memory"] / 2**20),
                    "of it for mapping MiB": round((own["memory"] - own["before"]) / 2**20),
                    "extrapolated from": None
                    if own["classified"] == own["pixels"]
                    else f"{own['classified']} pixels",
                }
            )
    return rows


def medians(records: Sequence[dict[str, Any]], times: int, way: str) -> dict[str, Any]:
    """Return the medians over the repeats."""
    own = [r for r in records if (r["tiles"], r["way"]) == (times, way)]
    return {
        "pixels": own[0]["pixels"],
        "classified": own[0]["classified"],
        "speed": median(r["pixels"] / r["seconds"] for r in own),
        "memory": median(r["memory"] for r in own),
        "before": median(r["before"] for r in own),
    }


def agreement(run: Path, folder: Path) -> dict[str, float] | None:
    """Compare both maps of the scene as it is; None where one is incomplete.

    Returns:
        Overall accuracy of both on the run's test pixels (``ours``, ``usual``), and the share of ``all`` and of the
        ``labelled`` pixels where they agree.
    """
    from vitreous.data.blocks import TEST
    from vitreous.tasks.labelled import open_labelled
    from vitreous.tasks.runs import load_run

    ours, usual = (np.load(folder / f"{way}-1.npy") for way in ("ours", "usual"))
    if len(ours) != len(usual):
        return None
    trained = load_run(run)
    data, pixels = open_labelled(trained.recipe), trained.split.pixels(TEST)
    truth = data.classes_at(pixels)
    labelled = np.asarray(data.labels.values).ravel() > 0
    return {
        "ours": float((ours[pixels] == truth).mean()),
        "usual": float((usual[pixels] == truth).mean()),
        "all": float((ours == usual).mean()),
        "labelled": float((ours == usual)[labelled].mean()),
    }


def conclude(rows: Sequence[dict[str, Any]], agreed: dict[str, float] | None) -> str:
    """Say in words how the two ways compare."""
    ours = [row for row in rows if row["way"] == "ours"]
    fastest = " and ".join(f"{row['speed-up']} ({row['scene']})" for row in ours)
    words = [f"The throughput of ours is {fastest} times that of the usual way."]
    if len(ours) > 1:
        grown = ours[-1]["peak memory MiB"] - ours[0]["peak memory MiB"]
        usual = [row["peak memory MiB"] for row in rows if row["way"] == "usual"]
        words.append(
            f"From the original scene to {ours[-1]['scene']} its peak memory grows by {grown} MiB, that of the usual "
            f"way by {usual[-1] - usual[0]} MiB."
        )
    if agreed:
        words.append(
            f"On the test pixels ours has {100 * agreed['ours']:.2f} % OA and the usual way {100 * agreed['usual']:.2f} "
            f"({100 * (agreed['ours'] - agreed['usual']):+.2f} points); the maps agree on {agreed['labelled']:.1%} of the "
            f"labelled and {agreed['all']:.1%} of all pixels. They are different functions: on an extracted patch "
            "the front-end sees zero padding beyond the edge, in the scene it sees the neighbouring pixels."
        )
    return " ".join(words)


def quick_run(folder: Path, epochs: int | None = None) -> Path:
    """Train a run to map with, on the fixed split with default settings."""
    from vitreous.recipe import make_recipe
    from vitreous.tasks import classify

    settings: dict[str, Any] = {"split": "fixed", "runs": str(folder), "baselines": []}
    settings |= {"map": False, "report": False} | ({"epochs": epochs} if epochs else {})
    return classify.train(make_recipe(settings))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "run",
        nargs="?",
        type=Path,
        help="run of a network on the built-in scene (trained when none)",
    )
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument(
        "--part", type=int, default=PART, help="patches that the usual way classifies at most"
    )
    parser.add_argument("--quick", action="store_true", help="little of everything; record nothing")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        print(json.dumps(work(**given.worker)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = given.run or quick_run(folder, epochs=1 if given.quick else None)
        tiles, repeats, part = (
            ((1, 2), 1, 512) if given.quick else (TILES, given.repeats, given.part)
        )
        records = measure(run, tiles, repeats, part, folder)
        rows, agreed = summary(records), agreement(run, folder)
    show(TITLE, rows)
    print(conclude(rows, agreed))
    if not given.quick:
        write_result(
            RESULT,
            title=TITLE,
            command=f"python benchmarks/map_speed.py --repeats {given.repeats}",
            rows=rows,
            conclusion=conclude(rows, agreed),
            agreement=agreed,
            runs=records,
        )


if __name__ == "__main__":
    sys.exit(main())
