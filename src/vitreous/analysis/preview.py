"""The picture of an analysis: its bands side by side with their scales, and the spectra that belong to them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.files import atomic_path
from vitreous.scenes.cube import read_window
from vitreous.scenes.spectra import Spectra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LONGEST = 800  # pixels of a panel
PANELS = 12
ACROSS = 4
PANEL = 2.6  # inches, the longer side
PLOT = 2.4  # inches, the height of the spectra
LEAST_WIDTH = 5.0  # inches, of a picture with spectra
DPI = 150
INK, FAINT = "#1f2933", "#6b7785"
STRETCH = (2.0, 98.0)  # percentiles that colours range over

Scale: TypeAlias = Literal["stretched", "shares", "symmetric", "from zero"]


@dataclass(frozen=True)
class Look:
    """How an image is shown.

    Attributes:
        colors: a colour map of matplotlib.
        scale: ``stretched`` from the 2nd to the 98th percentile, ``shares`` from 0 to 1, ``symmetric`` around 0, or ``from
            zero`` to the 99.9th percentile.
        composite: also show the first three bands as red, green and blue.
        first: how the first band is shown, where it differs from the others.
        last: likewise the last one.
        title: of the axis of values of the spectra.
    """

    colors: str = "viridis"
    scale: Scale = "stretched"
    composite: bool = False
    first: Look | None = None
    last: Look | None = None
    title: str = ""

    def of(self, band: int, bands: int) -> Look:
        """Return how one of the bands is shown."""
        special = self.first if band == 0 else self.last if band == bands - 1 else None
        return special or self


def write_preview(
    image: xr.DataArray, names: list[str], look: Look, spectra: Spectra | None, path: Path
) -> None:
    """Write the picture of an image of some bands as PNG.

    Args:
        image: of any size.
        names: of its bands.
        look: how it is shown.
        spectra: drawn below it, where there are any.
        path: the PNG.
    """
    from matplotlib import rc_context

    bands = min(image.sizes["band"], PANELS)
    values = decimated(image, bands)
    with rc_context({"font.size": 7.5, "text.parse_math": False}):
        figure = _drawn(values, names, look, spectra)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, facecolor="white")


def _drawn(
    values: npt.NDArray[np.float32], names: list[str], look: Look, spectra: Spectra | None
) -> Figure:
    """Panels of the first bands, and below them the spectra."""
    from matplotlib.figure import Figure

    bands = len(values)
    composite = look.composite and bands >= 3
    panels = bands + composite
    across = min(panels, ACROSS)
    down = -(-panels // across)
    width, height = _panel(values.shape[2] / values.shape[1])
    upper_height, lower_height = down * (height + 0.35), 0.0 if spectra is None else PLOT
    wide = max(across * (width + 0.7), 0.0 if spectra is None else LEAST_WIDTH)
    figure = Figure(figsize=(wide, upper_height + lower_height), dpi=DPI, layout="constrained")
    upper: Any = figure
    if spectra is not None:
        parts: Any = figure.subfigures(2, 1, height_ratios=[upper_height, lower_height])
        upper = parts[0]
        _plot(parts[1].subplots(), spectra, look.title)
    grid = upper.subplots(down, across, squeeze=False).ravel()
    for axes in grid[panels:]:
        axes.set_axis_off()
    if composite:
        _show_composite(grid[0], values[:3], names[:3])
    for k in range(bands):
        _show(upper, grid[k + composite], values[k], names[k], look.of(k, len(names)))
    if len(names) > bands:
        figure.supxlabel(f"and {len(names) - bands} more bands", color=FAINT, fontsize=7.5)
    return figure


def decimated(image: xr.DataArray, bands: int) -> npt.NDArray[np.float32]:
    """Return every n-th pixel of the first bands, ``(bands, rows, columns)``, at most ``LONGEST`` a side."""
    height, width = image.sizes["y"], image.sizes["x"]
    step = max(1, -(-max(height, width) // LONGEST))
    # Every step-th row on its own: a strided read of a big file would otherwise load all of it. Band by band, because
    # read_window takes a pixel for invalid where one of its bands is, and an index may be undefined alone.
    picture = np.empty((bands, -(-height // step), -(-width // step)), dtype=np.float32)
    for k, row in enumerate(range(0, height, step)):
        for band in range(bands):
            line = read_window(image, slice(row, row + 1), slice(0, width), np.array([band]))
            picture[band, k] = line[0, 0, ::step]
    return picture


def limits(values: npt.NDArray[np.float32], scale: Scale) -> tuple[float, float]:
    """Return which values the ends of the colour map stand for."""
    if scale == "shares":
        return 0.0, 1.0
    valid = values[np.isfinite(values)]
    if not valid.size:
        return 0.0, 1.0
    if scale == "from zero":
        low, high = 0.0, float(np.percentile(valid, 99.9))
    elif scale == "symmetric":
        high = float(np.percentile(np.abs(valid), STRETCH[1]))
        low = -high
    else:
        low, high = (float(v) for v in np.percentile(valid, STRETCH))
    return low, high if high > low else low + 1e-12


def _panel(aspect: float) -> tuple[float, float]:
    """Width and height of a panel in inches; very long scenes are squeezed."""
    aspect = min(max(aspect, 0.25), 4.0)
    return (PANEL, PANEL / aspect) if aspect >= 1 else (PANEL * aspect, PANEL)


def _show(figure: Any, axes: Axes, values: npt.NDArray[np.float32], name: str, look: Look) -> None:
    low, high = limits(values, look.scale)
    shown = axes.imshow(
        values, cmap=look.colors, vmin=low, vmax=high, interpolation="nearest", aspect="auto"
    )
    bar = figure.colorbar(shown, ax=axes, fraction=0.05, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=6, length=2, colors=FAINT)
    _frame(axes, name)


def _show_composite(axes: Axes, values: npt.NDArray[np.float32], names: list[str]) -> None:
    valid = np.isfinite(values).all(axis=0)
    picture = np.ones((*values.shape[1:], 3))
    for k, band in enumerate(values):
        low, high = limits(band, "stretched")
        picture[..., k] = np.where(valid, np.clip((band - low) / (high - low), 0, 1), 1)
    axes.imshow(picture, interpolation="nearest", aspect="auto")
    _frame(axes, f"{', '.join(names)} as RGB")


def _frame(axes: Axes, name: str) -> None:
    text = " ".join(name.split())
    axes.set_title(text if len(text) <= 34 else f"{text[:33]}…", color=INK, fontsize=8)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color="#c5ccd3", linewidth=0.6)


def _plot(axes: Axes, spectra: Spectra, title: str) -> None:
    known = np.isfinite(spectra.wavelengths).all()
    across = spectra.wavelengths if known else np.arange(1, spectra.values.shape[1] + 1)
    for name, values in list(zip(spectra.names, spectra.values, strict=True))[:PANELS]:
        axes.plot(*_with_gaps(across, values), linewidth=1, label=name[:40])
    axes.set_xlabel("wavelength (nm)" if known else "band")
    axes.set_ylabel(title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=6.5)


def _with_gaps(
    across: npt.NDArray[Any], values: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Break the line where bands are left out: more than five times further apart than usual."""
    order = np.argsort(across, kind="stable")
    across, values = np.asarray(across, dtype=np.float64)[order], values[order]
    steps = np.diff(across)
    if not steps.size:
        return across, values
    after = np.flatnonzero(steps > 5 * np.median(steps)) + 1
    return np.insert(across, after, across[after - 1]), np.insert(values, after, np.nan)
