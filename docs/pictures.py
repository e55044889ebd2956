"""Make the pictures that README and site open with, from the built-in scene: docs/pictures/*.

One network is trained on the scene's own fixed split (about a minute) unless ``--run FOLDER`` names a finished run; its
scene, labels and map become one picture, the top of its report another. The report is photographed with Chromium,
which must be installed (``apt-get install chromium``). Plots are not made here but by docs/generate.py.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

PICTURES = Path(__file__).parent / "pictures"
LARGEST = 150_000  # bytes
RECIPE: dict[str, Any] = {
    "scene": "indian_pines",
    "model": "convnext_tiny",
    "model_args": {"dims": [32, 64, 96, 128], "depths": [2, 2, 2, 2]},
    "mode": "dense",
    "split": "fixed",
    "val_fraction": 0,
    "accelerator": "cpu",
}
REPORT_SIZE = (1100, 690)  # down to the accuracies
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def train(folder: Path) -> Path:
    """Train the network of the pictures and return its run."""
    import vitreous

    recipe = vitreous.make_recipe({**RECIPE, "runs": str(folder), "name": "picture"})
    return Path(vitreous.train(recipe))


def scene_and_map(run: Path, path: Path) -> None:
    """Draw the scene, its labelled pixels and the map side by side, with the classes below."""
    import rasterio
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    import vitreous
    from vitreous.files import read_json
    from vitreous.report.pictures import class_picture, scene_picture

    scene, labels, _ = vitreous.load_sample("indian_pines")
    classes = read_json(run / "metrics.json")["classes"]
    colors = {entry["value"]: entry["color"] for entry in classes}
    with rasterio.open(run / "map.tif") as raster:
        mapped = raster.read(1)
    panels = {
        "Scene (AVIRIS, 200 bands, shown in true colour)": scene_picture(scene),
        "Labelled pixels (16 classes)": class_picture(labels.values, colors),
        "Map of every pixel": class_picture(mapped, colors),
    }
    figure = Figure(figsize=(11, 4.7), dpi=110, facecolor="white")
    for place, (title, picture) in enumerate(panels.items()):
        axes = figure.add_axes((0.008 + place * 0.331, 0.165, 0.322, 0.754))
        axes.imshow(picture, interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.set_title(title, fontsize=10, color="#1f2933", loc="left")
        for spine in axes.spines.values():
            spine.set(color="#c5ccd3", linewidth=0.6)
    handles = [Patch(color=entry["color"], label=entry["name"]) for entry in classes]
    figure.legend(handles=handles, loc="lower center", ncols=6, fontsize=8.5, frameon=False)
    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder) / "drawn.png"
        figure.savefig(drawn)
        _save(drawn, path)


def report_top(run: Path, path: Path) -> None:
    """Photograph the top of the run's report."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        raise SystemExit("A picture of the report needs Chromium: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        size = ",".join(str(side) for side in REPORT_SIZE)
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        page = (run / "report.html").resolve().as_uri()
        words = [browser, *options, f"--window-size={size}", f"--screenshot={shot}", page]
        subprocess.run(words, check=True, capture_output=True, timeout=120)
        _save(shot, path)


def _save(source: Path, path: Path) -> None:
    """Write a picture as WebP, no larger than a page can bear."""
    from PIL import Image

    path.parent.mkdir(exist_ok=True)
    with Image.open(source) as picture:
        picture.convert("RGB").save(path, quality=88, method=6)
    size = path.stat().st_size
    if size > LARGEST:
        raise SystemExit(f"{path} has {size} bytes, more than {LARGEST}.")
    print(f"{path}: {size / 1000:.0f} kB")


MAKERS = {"scene-and-map.webp": scene_and_map, "report.webp": report_top}


def main() -> None:
    """Make all pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="finished run of the built-in scene to picture")
    chosen = parser.parse_args().run
    with tempfile.TemporaryDirectory() as folder:
        run = chosen or train(Path(folder))
        for name, make in MAKERS.items():
            make(run, PICTURES / name)


if __name__ == "__main__":
    main()
