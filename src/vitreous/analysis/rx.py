"""RX anomaly detection: how far each spectrum lies from the background, in units of the background's spread.

I. S. Reed, X. Yu (1990), IEEE Transactions on Acoustics, Speech and Signal Processing 38(10). The score is the squared
Mahalanobis distance. The background is the whole scene, or a window around the pixel without a guard window inside, which
keeps the anomaly itself out of it. At the edge of the scene both windows are shifted inwards and keep their sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.analysis.components import component_count
from vitreous.analysis.pca import sorted_eigen
from vitreous.analysis.preview import Look
from vitreous.analysis.result import Result, facts_of
from vitreous.analysis.statistics import Background, scene_moments
from vitreous.analysis.streams import (
    Floats,
    Ints,
    Mask,
    Passes,
    Progress,
    image_like,
    pixelwise,
    prepared,
    source_of,
)
from vitreous.errors import ConfigError
from vitreous.scenes.cube import read_window

FALSE_ALARMS = 1e-3
LOOK = Look("magma", "from zero")
Covariance = Literal["local", "global"]


def rx(
    scene: xr.DataArray,
    *,
    window: int | None = None,
    guard: int = 1,
    covariance: Covariance = "local",
    components: int | None = None,
    progress: Progress | None = None,
) -> Result:
    """Return the RX anomaly scores of a scene.

    Args:
        scene: the scene.
        window: side of the window around each pixel whose spectra are the background, odd; the whole scene when None.
        guard: side of the window inside of it that is left out, odd.
        covariance: of the window (``local``), or of the whole scene with the mean of the window (``global``), which is
            much faster and needs no large window.
        components: first reduce the scene to as many principal components.
        progress: called with (pixels done, pixels in all).

    Raises:
        VitreousError: windows that do not fit the scene or are too small for its bands, or no valid pixels.
    """
    scene, bands = prepared(scene)
    size = bands.size if components is None else component_count(components, scene, bands)
    around = None if window is None else _checked(scene, window, guard, covariance, size)
    passes = Passes(scene, 2, progress)
    moments = scene_moments(scene, bands, passes)
    axes = np.eye(bands.size)
    if components is not None:
        axes = sorted_eigen(moments.covariance)[1][:, :size]
    mean, spread = moments.mean @ axes, axes.T @ moments.covariance @ axes
    everywhere = Background.of(mean, spread, source_of(scene))
    if around is None:
        image = pixelwise(
            scene,
            bands,
            ["RX"],
            lambda spectra: everywhere.distances(spectra @ axes)[:, None],
            passes,
        )
    else:
        local = _Local(scene, bands, axes, everywhere, around, covariance)
        image = image_like(scene, ["RX"], local, passes)
    threshold = _chi_square(everywhere.rank)
    kind = "the whole scene" if around is None else f"{around.outer} x {around.outer} pixels around"
    return Result(
        image,
        facts_of(
            "rx",
            scene,
            bands,
            valid_pixels=moments.count,
            window=None if around is None else around.outer,
            guard=None if around is None else around.inner,
            covariance="global" if around is None else covariance,
            components=components,
            degrees_of_freedom=everywhere.rank,
            false_alarms=FALSE_ALARMS,
            threshold_of_a_normal_background=threshold,
        ),
        f"Squared Mahalanobis distances from {kind}; {FALSE_ALARMS:.1%} of a normal background would exceed {threshold:.4g}.",
        None,
        LOOK,
    )


class _Windows(NamedTuple):
    """Sides of the window around a pixel, and of the one inside of it that is left out."""

    outer: int
    inner: int

    @property
    def pixels(self) -> int:
        return self.outer**2 - self.inner**2


def _checked(
    scene: xr.DataArray, window: int, guard: int, covariance: Covariance, size: int
) -> _Windows:
    height, width = scene.sizes["y"], scene.sizes["x"]
    found = _Windows(window, guard)
    if covariance not in ("local", "global"):
        raise ConfigError(f"Unknown covariance: {covariance}.", "Choose local or global.")
    if window < 3 or guard < 1 or window % 2 == 0 or guard % 2 == 0 or guard >= window:
        raise ConfigError(
            f"A window of {window} pixels with a guard of {guard} is not possible.",
            "Both are odd sides in pixels, the guard smaller than the window, e.g. --window 21 --guard 5.",
        )
    if window > min(height, width):
        raise ConfigError(
            f"A window of {window} pixels does not fit into {source_of(scene)}, which has {height} x {width} pixels.",
            "Choose a smaller one, or omit --window to compare with the whole scene.",
        )
    if covariance == "local" and found.pixels <= size:
        raise ConfigError(
            f"A window of {window} with a guard of {guard} holds {found.pixels} pixels, too few for the covariance of {size} "
            f"{'bands' if size > 1 else 'band'}.",
            f"Choose a window of {_least(size, guard)} or more, --components {max(1, found.pixels // 4)}, or --covariance "
            "global.",
        )
    return found


def _least(size: int, guard: int) -> int:
    """The smallest odd side of a window with twice as many pixels as there are bands."""
    side = int(np.ceil(np.sqrt(2 * size + guard**2)))
    return side + (side % 2 == 0)


def _chi_square(freedom: int) -> float:
    from scipy.stats import chi2

    return float(chi2.isf(FALSE_ALARMS, freedom))


@dataclass(frozen=True)
class _Local:
    """Scores against the surroundings of each pixel.

    Attributes:
        scene: the scene.
        bands: of it.
        axes: ``(bands, components)`` that spectra are projected on.
        everywhere: the background of the whole scene, on these axes.
        windows: sides.
        covariance: ``local`` or ``global``.
    """

    scene: xr.DataArray
    bands: Ints
    axes: Floats
    everywhere: Background
    windows: _Windows
    covariance: Covariance

    def __call__(self, rows: slice, columns: slice) -> npt.NDArray[np.float32]:
        """Return the scores of some rows and columns, ``(1, rows, columns)``."""
        down = self._spans(rows, self.scene.sizes["y"])
        across = self._spans(columns, self.scene.sizes["x"])
        top, left = int(down.outer[0].min()), int(across.outer[0].min())
        bottom, right = int(down.outer[1].max()), int(across.outer[1].max())
        read = read_window(self.scene, slice(top, bottom), slice(left, right), self.bands)
        # Around the mean of the scene, so that sums of squares keep their digits.
        values = np.tensordot(read.transpose(1, 2, 0).astype(np.float64), self.axes, axes=1)
        values -= self.everywhere.mean
        down, across = down.moved(top), across.moved(left)
        score = self._by_mean if self.covariance == "global" else self._by_window
        return score(values, down, across)[None].astype(np.float32)

    def _spans(self, span: slice, size: int) -> _Spans:
        centre = np.arange(span.start, span.stop)
        firsts = [np.clip(centre - side // 2, 0, size - side) for side in self.windows]
        outer, inner = (
            (first, first + side) for first, side in zip(firsts, self.windows, strict=True)
        )
        return _Spans(centre, outer, inner)

    def _by_mean(self, values: Floats, down: _Spans, across: _Spans) -> Floats:
        """Distances from the mean of the window, in units of the whole scene's covariance."""
        valid = np.isfinite(values).all(axis=2, keepdims=True)
        table = _summed(np.concatenate([np.where(valid, values, 0), valid], axis=2))
        sums = _box(table, down.outer, across.outer) - _box(table, down.inner, across.inner)
        count = sums[..., -1:]
        with np.errstate(invalid="ignore", divide="ignore"):  # nothing valid around: NaN
            mean = sums[..., :-1] / count
        apart = values[np.ix_(down.centre, across.centre)] - mean
        found: Floats = np.einsum(
            "yxb,bc,yxc->yx", apart, self.everywhere.inverse, apart, optimize=True
        )
        return np.where(count[..., 0] > 0.5, found, np.nan)

    def _by_window(self, values: Floats, down: _Spans, across: _Spans) -> Floats:
        """Distances from the mean of the window, in units of its covariance."""
        result = np.full((down.centre.size, across.centre.size), np.nan)
        valid = np.asarray(np.isfinite(values).all(axis=2))
        for i, row in enumerate(down.centre):
            for j, column in enumerate(across.centre):
                if not valid[row, column]:
                    continue
                ring = _ring(valid, down, across, i, j)
                around = values[down.window(i), across.window(j)][ring]
                if len(around) > values.shape[2]:
                    result[i, j] = _distance(values[row, column], around)
        return result


class _Spans(NamedTuple):
    """Along one axis: pixels, and where the windows around them begin and end."""

    centre: Ints
    outer: tuple[Ints, Ints]
    inner: tuple[Ints, Ints]

    def window(self, number: int) -> slice:
        """Return the outer window of a pixel."""
        return slice(int(self.outer[0][number]), int(self.outer[1][number]))

    def moved(self, start: int) -> _Spans:
        """Count from another pixel on."""
        pairs = [(first - start, last - start) for first, last in (self.outer, self.inner)]
        return _Spans(self.centre - start, pairs[0], pairs[1])


def _ring(valid: Mask, down: _Spans, across: _Spans, i: int, j: int) -> Mask:
    """Which pixels of an outer window are valid and outside of the inner one."""
    top, left = down.outer[0][i], across.outer[0][j]
    kept = valid[down.window(i), across.window(j)].copy()
    kept[
        down.inner[0][i] - top : down.inner[1][i] - top,
        across.inner[0][j] - left : across.inner[1][j] - left,
    ] = False
    return kept


def _distance(spectrum: Floats, around: Floats) -> float:
    mean = around.mean(axis=0)
    centred, apart = around - mean, spectrum - mean
    covariance = centred.T @ centred / (len(around) - 1)
    try:
        solved = np.linalg.solve(covariance, apart)
    except np.linalg.LinAlgError:  # bands without variance there
        solved = np.linalg.pinv(covariance, hermitian=True) @ apart
    return float(apart @ solved)


def _summed(values: Floats) -> Floats:
    """Sums over all pixels above and to the left, with a row and a column of zeros in front."""
    return np.pad(values, ((1, 0), (1, 0), (0, 0))).cumsum(axis=0).cumsum(axis=1)


def _box(table: Floats, down: tuple[Ints, Ints], across: tuple[Ints, Ints]) -> Floats:
    """Sums over windows, of the table of :func:`_summed`."""
    (top, bottom), (left, right) = down, across
    found: Floats = (
        table[np.ix_(bottom, right)]
        - table[np.ix_(top, right)]
        - table[np.ix_(bottom, left)]
        + table[np.ix_(top, left)]
    )
    return found
