"""Classical analyses: equality with Spectral Python, accuracy where the truth is known, and cost.

- Equality: the same cube (Indian Pines) through our streamed analyses and through Spectral Python; the largest difference as a
  share of the largest value.
- Truth: a grey panel is implanted in pixels of Indian Pines, at some share, and looked for; abundances of Jasper Ridge are compared
  with its published ones; changes of two Landsat pairs with their ground truth.
- Cost: scenes of one width and 1 and 4 times the height, from file to file, each in a process of its own; times are those
  of the processor, one thread.

Jasper Ridge and the Landsat pairs are not part of this package: --data names the folder that holds ``jasper_ridge`` and
``landsat_change`` (Wu, Du and Zhang 2014).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from itertools import starmap
from pathlib import Path
from typing import Any

import numpy as np
from _common import RESULTS, forget_peak, in_own_process, show

import vitreous
from vitreous.analysis.abundances import fcls
from vitreous.catalog.results import write_result
from vitreous.scenes.cube import make_scene

RESULT = RESULTS / "analysis.json"
TITLE = "Classical analyses: equality, accuracy and cost"
FOLDER = Path(os.environ.get("VITREOUS_SHARED", Path(__file__).parents[2] / "shared")) / "data"
SEEDS = range(5)
TARGETS, FRACTIONS = 60, (0.05, 0.1)
PAIRS = {
    "Taizhou": ("2000TM", "2003TM"),
    "Nanjing": ("LT51200382000124BJC00_Nanjing", "LT51200382002193BJC00_Nanjing"),
}
WIDTH, BANDS, HEIGHT, TIMES = 192, 32, 256, (1, 4)
COSTS: dict[str, dict[str, Any]] = {
    "pca": {}, "mnf": {}, "rx": {}, "unmix": {"endmembers": 4},
}  # fmt: skip


def equality() -> list[dict[str, Any]]:
    """Compare with Spectral Python on Indian Pines; a row per analysis."""
    import spectral

    spectral.settings.show_progress = False
    scene = vitreous.load_sample("indian_pines").scene
    image = scene.values.transpose(1, 2, 0).astype(np.float64)
    target = image[20, 44]
    few = make_scene(np.ascontiguousarray(scene.values[::20]))
    small = image[..., ::20]
    at = {"pixels": [(20, 44)]}
    cases = {
        "PCA, 10 components": (
            lambda: vitreous.analyse("pca", scene, components=10),
            lambda: spectral.principal_components(image).transform(image)[..., :10],
        ),
        "MNF, 10 components": (
            lambda: vitreous.analyse("mnf", scene, components=10),
            lambda: spectral.mnf(
                spectral.calc_stats(image), spectral.noise_from_diffs(image)
            ).reduce(image, num=10),
        ),
        "SAM": (
            lambda: vitreous.analyse("sam", scene, **at),
            lambda: spectral.spectral_angles(image, target[None]),
        ),
        "matched filter": (
            lambda: vitreous.analyse("mf", scene, **at),
            lambda: spectral.matched_filter(image, target)[..., None],
        ),
        "ACE": (
            lambda: vitreous.analyse("ace", scene, **at),
            lambda: spectral.ace(image, target)[..., None],
        ),
        "RX, global": (
            lambda: vitreous.analyse("rx", scene),
            lambda: spectral.rx(image)[..., None],
        ),
        "RX, window 21, guard 5, 10 bands": (
            lambda: vitreous.analyse("rx", few, window=21, guard=5),
            lambda: spectral.rx(small, window=(5, 21))[..., None],
        ),
        "RX, mean of window 21, guard 5, 10 bands": (
            lambda: vitreous.analyse("rx", few, window=21, guard=5, covariance="global"),
            lambda: spectral.rx(small, window=(5, 21), cov=spectral.calc_stats(small).cov)[
                ..., None
            ],
        ),
    }
    return list(starmap(_compared, ((name, *both) for name, both in cases.items())))


def _compared(name: str, ours: Any, theirs: Any) -> dict[str, Any]:
    started = time.process_time()
    found = ours().image.values.transpose(1, 2, 0)
    middle = time.process_time()
    expected = np.asarray(theirs(), dtype=np.float64)
    ended = time.process_time()
    expected = expected * np.sign((expected * found).sum(axis=(0, 1)))  # components have no sign
    apart = np.abs(found - expected).max() / np.abs(expected).max()
    return {
        "what": "equality with Spectral Python",
        "case": name,
        "largest difference": float(f"{apart:.2g}"),
        "processor s": round(middle - started, 2),
        "processor s of Spectral Python": round(ended - middle, 2),
    }


def implanted() -> list[dict[str, Any]]:
    """Look for implanted pixels of another material; a row per share of it and analysis."""
    from sklearn.metrics import roc_auc_score

    sample = vitreous.load_sample("indian_pines")
    rng = np.random.default_rng(0)
    cube = sample.scene.values.astype(np.float32)
    panel = np.full(
        len(cube), np.percentile(cube, 95), dtype=np.float32
    )  # equally bright in all bands
    places = np.zeros(cube.shape[1:], dtype=bool)
    places.flat[rng.choice(places.size - 1, TARGETS, replace=False) + 1] = True
    nm = sample.scene["wavelength"].values
    rows = []
    for share in FRACTIONS:
        mixed = cube.copy()
        mixed[:, places] = (1 - share) * mixed[:, places] + share * panel[:, None]
        mixed[:, 0, 0] = panel
        scene = make_scene(mixed, wavelengths=nm, unit="dn")
        settings: dict[str, dict[str, Any]] = {
            "rx": {}, "rx, window 21, mean only": {"window": 21, "guard": 3, "covariance": "global"},
            "rx, window 21, 20 components": {"window": 21, "guard": 3, "components": 20},
            **{name: {"pixels": [(0, 0)]} for name in ("sam", "mf", "ace", "cem")},
        }  # fmt: skip
        for name, own in settings.items():
            started = time.process_time()
            scores = vitreous.analyse(name.partition(",")[0], scene, **own).image.values[0]
            rows.append(
                {
                    "what": "implanted targets",
                    "case": f"{share:.0%} of the material: {name}",
                    "AUC": round(
                        _auc(roc_auc_score, places, -scores if name == "sam" else scores), 4
                    ),
                    "processor s": round(time.process_time() - started, 2),
                }
            )
    return rows


def _auc(measure: Any, truth: np.ndarray, scores: np.ndarray) -> float:
    known = np.ones(truth.shape, dtype=bool)
    known[0, 0] = False  # the spectrum that is looked for
    return float(measure(truth[known], scores[known]))


def unmixing(folder: Path) -> list[dict[str, Any]]:
    """Compare abundances of Jasper Ridge with the published ones, and ours with those of a naive solver."""
    from scipy.io import loadmat
    from scipy.optimize import linear_sum_assignment, nnls

    stored = loadmat(folder / "jasper_ridge" / "jasperRidge2_R198_with_gt.mat")
    values, truth, pure = stored["Y"] / 5000.0, stored["A"], stored["M"].T
    started = time.process_time()
    found = fcls(values.T, pure)
    seconds = time.process_time() - started
    heavy = np.vstack([pure.T, 1e3 * np.ones(4)])
    naive = np.stack([nnls(heavy, np.append(one, 1e3))[0] for one in values.T])
    rows = [
        {
            "what": "unmixing of Jasper Ridge",
            "case": "FCLS, published endmembers",
            "abundance RMSE": _rounded(np.sqrt(((found.T - truth) ** 2).mean())),
            "largest difference": float(f"{np.abs(found - naive).max():.2g}"),
            "processor s": round(seconds, 2),
        }
    ]
    scene = make_scene(
        values.astype(np.float32).reshape(198, 100, 100, order="F"), unit="reflectance"
    )
    for method in ("nfindr", "vca"):
        errors, times = [], []
        for seed in SEEDS:
            started = time.process_time()
            result = vitreous.analyse("unmix", scene, endmembers=4, method=method, seed=seed)
            maps = result.image.values[:4].transpose(0, 2, 1).reshape(4, -1)
            times.append(time.process_time() - started)
            error = ((maps[:, None] - truth[None]) ** 2).mean(axis=2)
            errors.append(float(np.sqrt(error[linear_sum_assignment(error)].mean())))
        rows.append(
            {
                "what": "unmixing of Jasper Ridge",
                "case": f"{method} and FCLS, 4 endmembers, {len(errors)} seeds",
                "abundance RMSE": f"{np.mean(errors):.3f} ± {np.std(errors, ddof=1):.3f}",
                "processor s": round(float(np.mean(times)), 2),
            }
        )
    return rows


def changes(folder: Path) -> list[dict[str, Any]]:
    """Compare magnitudes of change of two Landsat pairs with their ground truth."""
    from PIL import Image
    from sklearn.metrics import roc_auc_score

    rows = []
    for place, dates in PAIRS.items():
        home = folder / "landsat_change" / place
        scenes = [vitreous.open_scene(home / date) for date in dates]
        changed, same = (
            np.asarray(Image.open(home / f"{name}.bmp").convert("L")) > 0
            for name in ("change", "unchanged")
        )
        known = changed | same
        for normalise in (False, True):
            started = time.process_time()
            result = vitreous.analyse("cva", *scenes, normalise=normalise)
            magnitude = result.image.values[0]
            above = magnitude > result.facts["threshold_otsu"]
            rows.append(
                {
                    "what": "change between two dates",
                    "case": f"{place}, {'normalised' if normalise else 'as stored'}",
                    "AUC": round(float(roc_auc_score(changed[known], magnitude[known])), 4),
                    "OA % by Otsu": round(100 * float((above == changed)[known].mean()), 2),
                    "processor s": round(time.process_time() - started, 2),
                }
            )
    return rows


def work(name: str, height: int, out: str) -> dict[str, Any]:
    """Analyse a random scene of a height from file to file, and return seconds and peak bytes."""
    from vitreous.inference.bench import peak_memory

    folder = Path(out)
    rng = np.random.default_rng(0)
    pure = rng.random((5, BANDS)).astype(np.float32)
    shares = rng.dirichlet(np.ones(5), height * WIDTH).astype(np.float32)
    values = (shares @ pure).T.reshape(BANDS, height, WIDTH)
    values += rng.normal(0, 0.01, values.shape).astype(np.float32)
    vitreous.write_scene(make_scene(values), folder / "scene.tif")
    del values, shares
    scene = vitreous.open_scene(folder / "scene.tif")
    vitreous.analyse(name, scene.isel(y=slice(0, 128)), **COSTS[name]).write(folder / "warm.tif")
    forget_peak()
    before, started = peak_memory(), time.process_time()
    vitreous.analyse(name, scene, **COSTS[name]).write(folder / "out.tif")
    return {"seconds": time.process_time() - started, "before": before, "memory": peak_memory()}


def cost(name: str) -> list[dict[str, Any]]:
    """Analyse scenes of growing height; return a row for each."""
    rows: list[dict[str, Any]] = []
    for times in TIMES:
        with tempfile.TemporaryDirectory() as folder:
            height = HEIGHT * times
            found = in_own_process(__file__, {"name": name, "height": height, "out": folder})
        rows.append(
            {
                "what": "cost from file to file",
                "case": f"{name}, {height} x {WIDTH} pixels, {BANDS} bands",
                "processor s": round(found["seconds"], 2),
                "peak memory MiB": round(found["memory"] / 2**20),
                "before MiB": round(found["before"] / 2**20),
            }
        )
    return rows


def _rounded(value: float) -> str:
    return f"{value:.3f}"


def conclude(rows: list[dict[str, Any]]) -> str:
    """Say in words what was found."""
    words = []
    equal = [row["largest difference"] for row in rows if row["what"].startswith("equality")]
    words.append(
        f"All {len(equal)} analyses that Spectral Python has too equal its own to {max(equal):.1g} of the largest value."
    )
    for row in rows:
        if row["what"] == "unmixing of Jasper Ridge":
            words.append(f"Jasper Ridge, {row['case']}: abundance RMSE {row['abundance RMSE']}.")
        if row["what"] == "change between two dates":
            words.append(f"{row['case']}: AUC {row['AUC']:.3f}.")
    best = [row for row in rows if row["case"].startswith(f"{FRACTIONS[1]:.0%}")]
    if best:
        named = ", ".join(f"{row['case'].partition(': ')[2]} {row['AUC']:.3f}" for row in best)
        words.append(
            f"AUC for {TARGETS} pixels with {FRACTIONS[1]:.0%} of another material: {named}."
        )
    spent = [row for row in rows if row["what"].startswith("cost")]
    for first, last in zip(spent[:: len(TIMES)], spent[len(TIMES) - 1 :: len(TIMES)], strict=True):
        grown = last["peak memory MiB"] - first["peak memory MiB"]
        words.append(
            f"{first['case'].partition(',')[0]}: {TIMES[-1]} times the rows take {last['processor s'] / first['processor s']:.1f} times "
            f"the time and {grown:+d} MiB of memory."
        )
    return " ".join(words)


def main() -> None:
    """Measure, show and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=FOLDER)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.worker:
        print(json.dumps(work(**json.loads(given.worker))))
        return
    rows = [*equality(), *implanted()]
    if (given.data / "jasper_ridge").is_dir():
        rows += [*unmixing(given.data), *changes(given.data)]
    rows += [row for name in COSTS for row in cost(name)]
    show(TITLE, rows)
    words = conclude(rows)
    print(words)
    write_result(
        RESULT,
        title=TITLE,
        command="python benchmarks/analysis.py",
        rows=rows,
        conclusion=words,
    )


if __name__ == "__main__":
    sys.exit(main())
