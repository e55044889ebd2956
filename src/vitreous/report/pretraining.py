"""The report of a pre-training run: what was hidden, what was made of it, and the learning curve."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import xarray as xr
from pydantic import Field

from vitreous.files import write_text
from vitreous.report import figures, pictures
from vitreous.report.markup import Markup, join, tag
from vitreous.report.page import (
    as_svg,
    document,
    duration,
    page_header,
    plate,
    quantity,
    run_again,
    scene_facts,
    scene_title,
)
from vitreous.report.record import Config, Number, Record, plain, read_log, read_part
from vitreous.scenes.cube import good_bands, rgb_bands

SIDE = 128  # pixels of a crop's picture, at least
TITLES = {
    "input": "Given",
    "visible": "Visible input",
    "reconstruction": "Completed",
    "x2": "2x finer",
    "x4": "4x finer",
}


class PretrainingMetrics(Record):
    """``metrics.json`` of a pre-training run."""

    version: Literal[1] = Field(alias="schema")
    parameters: int | None = None
    train_seconds: Number = None
    train_loss: Number = None
    val_loss: Number = None
    val_seen: Number = None


def build_report(
    run: Path, scene: xr.DataArray, crops: Mapping[str, npt.NDArray[np.float32]]
) -> Path:
    """Write ``report.html`` into the folder of a pre-training run.

    Args:
        run: folder with ``metrics.json`` and ``config.json``; ``log.csv`` is used where present.
        scene: the scene that was learned from.
        crops: pictures by name, each ``(count, channels, side, side)``.

    Returns:
        The path of the page.

    Raises:
        VitreousError: the folder's records are missing or damaged.
    """
    run = Path(run)
    metrics = read_part(PretrainingMetrics, run / "metrics.json")
    config = read_part(Config, run / "config.json")
    log = read_log(run / "log.csv")
    title = scene_title(scene)
    name = plain(config.recipe.get("model", "network"), 200)
    size = f", {quantity(metrics.parameters)} parameters" if metrics.parameters else ""
    words = f"Trained for {duration(metrics.train_seconds)} without labels. "
    words += f"Loss: {metrics.train_loss or 0:.3f} on training crops"
    if metrics.val_loss is not None:
        words += f", {metrics.val_loss:.3f} on held-out crops{_unseen(metrics.val_seen)}"
    words += "."
    curves = (
        [
            figure
            for figure in (figures.loss_figure(log), figures.rate_figure(log))
            if figure is not None
        ]
        if log is not None
        else []
    )
    cards = [
        tag("div", as_svg(figure, f"curve-{k}", "Training curve"), class_="card")
        for k, figure in enumerate(curves)
    ]
    page = document(
        f"{title} · {name}",
        page_header(
            "Pre-training without labels",
            title,
            tag("p", "learned by ", tag("strong", name), size, class_="lead"),
            scene_facts(scene),
        ),
        [
            ("numbers", "Result", tag("p", words, class_="note")),
            ("pictures", "Masked and reconstructed crops", _pictures(scene, crops)),
            ("learning", "Training", tag("div", *cards, class_="curves") if cards else None),
            ("again", "Reproduce this run", run_again(config, scene, [])),
        ],
    )
    path = run / "report.html"
    write_text(path, page)
    return path


def _unseen(seen: Number) -> str:
    """Say whether the validation ground was new, given the share of it that the start had learned from."""
    if not seen:
        return ""
    return f" ({seen:.0%} of that ground was seen by the initial weights)"


def _pictures(scene: xr.DataArray, crops: Mapping[str, npt.NDArray[np.float32]]) -> Markup | None:
    """Draw each crop as given, as shown, completed, and at finer scales."""
    given = crops.get("input")
    if given is None:
        return None
    shown = _shown_channels(scene, given.shape[1])
    rows = []
    for number in range(len(given)):
        limits = [pictures.band_limits(given[number, k]) for k in shown]
        plates = [
            plate(TITLES.get(name, name), "", _picture(images[number, shown], limits))
            for name, images in crops.items()
        ]
        rows += [tag("h3", f"Crop {number + 1}"), tag("div", *plates, class_="plates")]
    words = "Held-out crops, if any were held out. Masked parts are grey."
    return join(tag("p", words, class_="note"), *rows)


def _shown_channels(scene: xr.DataArray, channels: int) -> list[int]:
    usable = good_bands(scene)
    if channels == len(usable):
        return [int(np.flatnonzero(usable == band)[0]) for band in rgb_bands(scene)]
    return [0, min(1, channels - 1), min(2, channels - 1)]


def _picture(crop: npt.NDArray[np.float32], limits: list[pictures.Limits]) -> pictures.Rgba:
    times = max(1, SIDE // crop.shape[1])
    picture = pictures.rgb_picture(crop, limits)
    picture[(crop == 0).all(0), :3] = 128
    return picture.repeat(times, 0).repeat(times, 1)
