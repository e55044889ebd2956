"""The picture of a class map: colours, legend, and a scale bar where the map has metres."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vitreous.files import atomic_path
from vitreous.inference.maps import Classes, class_numbers, no_georeference_warning

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_PIXELS = 1600  # longest side of the map in the picture; COG overviews make reading it cheap
LONG_SIDE = 6.4  # inches
SHORT_SIDE = 0.5
DPI = 200
WIDE = 1.7  # from this width per height on, the legend goes below
LEGEND_ROWS = 24
LEGEND_ENTRIES = 72
NAME_LENGTH = 36
INK, FAINT = "#1f2933", "#6b7785"


def write_picture(
    map_path: Path, path: Path, classes: Classes, class_pixels: Sequence[int], title: str = ""
) -> None:
    """Draw a class map with its legend as PNG.

    Args:
        map_path: the map, a GeoTIFF of class codes; a large one is read through its overviews.
        path: the PNG.
        classes: names, colours and codes.
        class_pixels: pixels of class 1, 2, ..., for the shares in the legend.
        title: a line above the map.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    values, size, resolution = _read_small(map_path)
    height, width = values.shape
    inches = _map_inches(width / height)
    with rc_context({"font.family": "sans-serif", "font.size": 8.5, "text.parse_math": False}):
        figure = Figure(figsize=inches, dpi=DPI)
        axes = figure.add_axes((0, 0, 1, 1))
        numbers = class_numbers(values, classes.values)
        axes.imshow(_colored(numbers, classes.colors), interpolation="nearest", aspect="auto")
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(color="#c5ccd3", linewidth=0.6)
        _headings(axes, inches, title, size, resolution)
        legend_below = width / height >= WIDE
        bar = 0.0
        if resolution:
            bar = 0.34
            _scale_bar(axes, inches, size[1] * resolution)
        _legend(axes, inches, classes, class_pixels, below=legend_below, gap=bar)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, bbox_inches="tight", pad_inches=0.18, facecolor="white")


def _read_small(path: Path) -> tuple[npt.NDArray[Any], tuple[int, int], float | None]:
    """Return the decimated map, its full (height, width), and metres per pixel where that makes sense."""
    import rasterio
    from rasterio.enums import Resampling

    with no_georeference_warning(), rasterio.open(path, driver="GTiff") as dataset:
        shrink = max(1.0, max(dataset.shape) / MAX_PIXELS)
        shape = tuple(max(1, round(side / shrink)) for side in dataset.shape)
        values = dataset.read(1, out_shape=shape, resampling=Resampling.nearest)
        metres = None
        if dataset.crs and dataset.crs.is_projected:
            metres = dataset.crs.linear_units_factor[1] * abs(dataset.transform.determinant) ** 0.5
        return values, dataset.shape, metres


def _map_inches(aspect: float) -> tuple[float, float]:
    if aspect >= 1:
        return LONG_SIDE, max(SHORT_SIDE, LONG_SIDE / aspect)
    return max(SHORT_SIDE, LONG_SIDE * aspect), LONG_SIDE


def _colored(values: npt.NDArray[Any], colors: Sequence[str]) -> npt.NDArray[np.uint8]:
    table = np.full((len(colors) + 1, 3), 255, dtype=np.uint8)  # nodata is paper
    for value, color in enumerate(colors, start=1):
        table[value] = [int(color[k : k + 2], 16) for k in (1, 3, 5)]
    colored: npt.NDArray[np.uint8] = table[values]
    return colored


def _headings(
    axes: Axes,
    inches: tuple[float, float],
    title: str,
    size: tuple[int, int],
    resolution: float | None,
) -> None:
    facts = f"{size[1]:,} × {size[0]:,} pixels".replace(",", "\u2009")
    if resolution:
        facts += f", {resolution:.3g} m"
    above = 1 / inches[1]
    axes.text(0, 1 + 0.08 * above, facts, transform=axes.transAxes, color=FAINT, va="bottom")
    if title:
        axes.text(
            0,
            1 + 0.25 * above,
            _short(title, 60),
            transform=axes.transAxes,
            color=INK,
            fontsize=11,
            fontweight="bold",
            va="bottom",
        )


def _legend(
    axes: Axes,
    inches: tuple[float, float],
    classes: Classes,
    class_pixels: Sequence[int],
    *,
    below: bool,
    gap: float,
) -> None:
    from matplotlib.patches import Patch

    shown = _legend_classes(class_pixels)
    total = sum(class_pixels)
    handles = [
        Patch(facecolor=classes.colors[k], edgecolor="#00000040", linewidth=0.4) for k in shown
    ]
    labels = [
        f"{_short(classes.names[k], NAME_LENGTH)}  {_share(class_pixels[k], total)}" for k in shown
    ]
    if len(shown) < len(class_pixels):
        handles.append(Patch(facecolor="none"))
        labels.append(f"and {len(class_pixels) - len(shown)} more")
    columns = max(1, round(inches[0] / 2.1)) if below else -(-len(labels) // LEGEND_ROWS)
    place = (0, -(0.1 + gap) / inches[1]) if below else (1 + 0.15 / inches[0], 1)
    axes.legend(
        handles,
        labels,
        loc="upper left",
        bbox_to_anchor=place,
        borderaxespad=0,
        borderpad=0,
        frameon=False,
        ncols=columns,
        handlelength=1.1,
        handleheight=1.1,
        handletextpad=0.7,
        labelspacing=0.55,
        columnspacing=1.6,
        labelcolor=INK,
    )


def _legend_classes(class_pixels: Sequence[int]) -> list[int]:
    """Return the classes a legend can name, in their order: all, or the most frequent."""
    if len(class_pixels) <= LEGEND_ENTRIES:
        return list(range(len(class_pixels)))
    order = np.argsort(-np.asarray(class_pixels), kind="stable")[:LEGEND_ENTRIES]
    return sorted(int(k) for k in order)


def _share(pixels: int, total: int) -> str:
    percent = 100 * pixels / total if total else 0.0
    if 0 < percent < 0.1:
        return "< 0.1 %"
    return f"{percent:.1f} %" if pixels else "–"


def _short(name: str, length: int) -> str:
    text = " ".join(name.split())
    return text if len(text) <= length else text[: length - 1] + "…"


def _scale_bar(axes: Axes, inches: tuple[float, float], metres: float) -> None:
    length = round_length(metres / 3)
    share = length / metres
    y = -0.14 / inches[1]
    tick = 0.035 / inches[1]
    axes.plot(
        [0, 0, share, share],
        [y + tick, y, y, y + tick],
        transform=axes.transAxes,
        clip_on=False,
        color=INK,
        linewidth=1,
        solid_joinstyle="miter",
    )
    label = f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m"
    axes.text(
        share + 0.06 / inches[0],
        y,
        label,
        transform=axes.transAxes,
        color=INK,
        va="center",
        fontsize=8,
    )


def round_length(metres: float) -> float:
    """Return the largest 1, 2 or 5 times a power of ten that is at most ``metres``."""
    power = 10.0 ** np.floor(np.log10(metres))
    return float(max(step for step in (1, 2, 5) if step * power <= metres) * power)
