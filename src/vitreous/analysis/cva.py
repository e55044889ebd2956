"""Change vector analysis: how much each spectrum has changed between two dates, and in which direction.

W. A. Malila (1980), Proceedings of the Machine Processing of Remotely Sensed Data Symposium, Purdue; directions of more than
two bands as direction cosines (J. Chen et al. 2003, Photogrammetric Engineering & Remote Sensing 69(4)).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.analysis.preview import Look
from vitreous.analysis.result import Result, facts_of
from vitreous.analysis.statistics import Moments, Sample
from vitreous.analysis.streams import (
    Floats,
    Ints,
    Mask,
    Passes,
    Progress,
    Tile,
    image_like,
    prepared,
    source_of,
    squares,
)
from vitreous.data.contract import BandContract
from vitreous.data.matched import matched
from vitreous.data.pixels import reading
from vitreous.errors import SceneError, VitreousError
from vitreous.scenes.cube import marked_good, read_window, wavelengths_of
from vitreous.scenes.grids import Grid, pixels_at

SAMPLE = 50_000  # pixels by which the threshold is found
_LOOKED_AT = 512  # pixels along each side, to see whether scenes overlap
# Otsu's threshold of a single normal group explains 64 % of its variance (2 / pi), of evenly spread values 75 %.
TWO_GROUPS = 0.8
LOOK = Look("RdBu_r", "symmetric", first=Look("magma", "from zero"))


def cva(
    before: xr.DataArray,
    after: xr.DataArray,
    *,
    normalise: bool | None = None,
    progress: Progress | None = None,
) -> Result:
    """Return the magnitude and direction of the change of each spectrum.

    The product lies on the grid of the first date; pixels of the second are the nearest ones, and its bands are found by
    wavelength. With two bands the direction is the angle in degrees from the first band towards the second, 0 to 360; with
    more it is the cosine with the axis of each band.

    Args:
        before: the first date.
        after: the second date.
        normalise: first bring each band of each date to mean 0 and deviation 1 over the pixels that both have, which
            takes out differences of illumination and atmosphere; when None, unless the scenes hold reflectance.
        progress: called with (pixels done, pixels in all).

    Raises:
        VitreousError: no common ground, or other bands or units.
    """
    pair = _Pair.of(before, after)
    if normalise is None:
        normalise = str(pair.before.attrs.get("unit", "dn")) != "reflectance"
    passes = Passes(pair.before, 2, progress)
    first, second = Moments(pair.bands.size), Moments(pair.bands.size)
    sample = Sample(SAMPLE, pair.before.sizes["x"])
    grid = Grid.of(pair.before)
    for rows, columns in squares(slice(0, grid.size[0]), slice(0, grid.size[1])):
        old, new, pixels = pair.spectra(rows, columns)
        first.add(old)
        second.add(new)
        sample.add(np.column_stack([old, new]), pixels)
        passes.add((rows.stop - rows.start) * (columns.stop - columns.start))
    if not first.count:
        raise SceneError(
            f"{source_of(before)} and {source_of(after)} have no pixel that is valid at both dates.",
            "Check their no-data values and masks, and whether they show the same ground.",
        )
    scaling = _Scaling.of(first, second, normalise)
    old, new = np.split(sample.spectra, 2, axis=1)
    magnitudes = np.linalg.norm(scaling.change(old, new), axis=1)
    threshold = otsu(magnitudes)
    apart = separability(magnitudes, threshold)
    names = ["magnitude", *pair.direction_names()]

    def compute(rows: slice, columns: slice) -> npt.NDArray[np.float32]:
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        result = np.full((len(names), *shape), np.nan, dtype=np.float32)
        old, new, pixels = pair.spectra(rows, columns)
        if len(old):
            places = pixels - [rows.start, columns.start]
            result[:, places[:, 0], places[:, 1]] = _described(scaling.change(old, new)).T
        return result

    share = float((magnitudes > threshold).mean())
    return Result(
        image_like(pair.before, names, compute, passes),
        facts_of(
            "cva",
            pair.before,
            pair.bands,
            after=source_of(after),
            valid_at_both_dates=first.count,
            normalised=normalise,
            threshold_otsu=threshold,
            share_above_threshold=share,
            separability=apart,
        ),
        f"{first.count:,} pixels at both dates, {'normalised' if normalise else 'not normalised'}; "
        f"{_verdict(threshold, share, apart)}",
        None,
        LOOK,
    )


@dataclass(frozen=True)
class _Pair:
    """Two dates on the grid and in the bands of the first.

    Attributes:
        before: the first date.
        after: the second date.
        bands: of the first.
        others: of the second, which correspond to them.
        apart: whether the second lies on another grid.
    """

    before: xr.DataArray
    after: xr.DataArray
    bands: Ints
    others: Ints
    apart: bool

    @classmethod
    def of(cls, before: xr.DataArray, after: xr.DataArray) -> _Pair:
        """Find bands and pixels that correspond.

        Raises:
            SceneError: there are none.
        """
        old, bands = prepared(before)
        new, _ = prepared(after)
        new, others = _matched(old, new)
        kept = marked_good(new)[others]
        if not kept.any():
            raise SceneError(
                f"{source_of(after)} marks all bands as bad that {source_of(before)} has.",
                "Correct its list of bad bands.",
            )
        _check_ground(old, new)
        return cls(old, new, bands[kept], others[kept], not Grid.of(old).agrees(Grid.of(new)))

    def spectra(self, rows: slice, columns: slice) -> tuple[Floats, Floats, Ints]:
        """Return the spectra of both dates where both are valid, ``(pixels, bands)``, and ``(pixels, 2)`` their places."""
        with reading(self.before):
            old = read_window(self.before, rows, columns, self.bands)
        with reading(self.after):
            new = self._after(rows, columns)
        tile = Tile(rows, columns, np.concatenate([old, new]))
        first, second = np.split(tile.spectra, 2, axis=1)
        return first, second, tile.pixels

    def _after(self, rows: slice, columns: slice) -> npt.NDArray[np.float32]:
        if not self.apart:
            return read_window(self.after, rows, columns, self.others)
        own, wanted = Grid.of(self.after), Grid.of(self.before)
        row, column = pixels_at(
            own, wanted, np.arange(rows.start, rows.stop), np.arange(columns.start, columns.stop)
        )
        inside = _inside(own, row, column)
        values = np.full((self.others.size, *row.shape), np.nan, dtype=np.float32)
        if inside.any():
            row, column = row[inside], column[inside]
            top, left = int(row.min()), int(column.min())
            window = slice(top, int(row.max()) + 1), slice(left, int(column.max()) + 1)
            read = read_window(self.after, *window, self.others)
            values[:, inside] = read[:, row - top, column - left]
        return values

    def wavelengths(self) -> list[float] | None:
        """Band centres in nm, where they are known."""
        centres = wavelengths_of(self.before)
        return None if centres is None else centres[self.bands].tolist()

    def direction_names(self) -> list[str]:
        """Names of the bands that tell the direction."""
        if self.bands.size == 1:
            return ["difference"]
        if self.bands.size == 2:
            return ["direction in degrees"]
        centres = self.wavelengths()
        if centres is None or not np.isfinite(centres).all():
            return [f"cosine band {band + 1}" for band in self.bands]
        return [f"cosine {centre:.4g} nm" for centre in centres]


def _matched(before: xr.DataArray, after: xr.DataArray) -> tuple[xr.DataArray, Ints]:
    """Return the second date, and its bands that correspond to the good ones of the first."""
    contract = BandContract.of(before)
    unit = str(after.attrs.get("unit", "dn"))
    if unit != contract.unit:
        raise SceneError(
            f"{source_of(before)} holds {contract.unit}, {source_of(after)} holds {unit}: their difference means nothing.",
            "Open both in one unit (--hints unit=... for the first, --hints-after unit=... for the second).",
        )
    if contract.by_order(after):
        lacking = source_of(after if contract.wavelengths is not None else before)
        warnings.warn(
            f"The wavelengths of {lacking} are unknown, so that bands are matched by their order alone.",
            stacklevel=4,
        )
    try:
        found = matched(after, contract).scene
        return found, contract.select(found)
    except VitreousError as error:
        raise SceneError(
            f"{source_of(after)} does not have the bands of {source_of(before)}. {error.problem}",
            "Choose bands that both have (--hints bands=..., --hints-after bands=...), or convert one to the other's sensor "
            "with 'vitreous resample'.",
        ) from error


def _check_ground(before: xr.DataArray, after: xr.DataArray) -> None:
    """Refuse scenes that show no common ground.

    Raises:
        SceneError: they do not, or nothing says where they lie and their sizes differ.
    """
    own, wanted = Grid.of(after), Grid.of(before)
    if own.agrees(wanted):
        return
    if own.transform is None or wanted.transform is None:
        raise SceneError(
            f"{source_of(before)} has {wanted}, {source_of(after)} {own}, and nothing says how they lie to each other.",
            "Scenes without georeference must have one size.",
        )
    rows, columns = (
        np.unique(np.linspace(0, side - 1, _LOOKED_AT).round().astype(np.int64))
        for side in wanted.size
    )
    if not _inside(own, *pixels_at(own, wanted, rows, columns)).any():
        raise SceneError(
            f"{source_of(before)} and {source_of(after)} show no common ground.",
            "Compare their CRS and bounds with 'vitreous info'.",
        )


def _inside(grid: Grid, row: Ints, column: Ints) -> Mask:
    height, width = grid.size
    found: Mask = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return found


@dataclass(frozen=True)
class _Scaling:
    """What spectra of each date are brought to before they are compared."""

    means: tuple[Floats, Floats]
    deviations: tuple[Floats, Floats]

    @classmethod
    def of(cls, before: Moments, after: Moments, normalise: bool) -> _Scaling:
        if not normalise:
            zero, one = np.zeros_like(before.mean), np.ones_like(before.mean)
            return cls((zero, zero), (one, one))
        spreads = [np.sqrt(one.covariance.diagonal()) for one in (before, after)]
        first, second = (np.where(spread > 0, spread, 1.0) for spread in spreads)
        return cls((before.mean, after.mean), (first, second))

    def change(self, before: Floats, after: Floats) -> Floats:
        """Return the change vectors, ``(pixels, bands)``."""
        old, new = (
            (spectra - mean) / deviation
            for spectra, mean, deviation in zip(
                (before, after), self.means, self.deviations, strict=True
            )
        )
        difference: Floats = new - old
        return difference


def _described(change: Floats) -> Floats:
    """Magnitudes and directions of change vectors, ``(pixels, 1 + directions)``; of no change the direction is 0."""
    magnitude = np.linalg.norm(change, axis=1, keepdims=True)
    if change.shape[1] == 1:
        return np.column_stack([magnitude, change])
    if change.shape[1] == 2:
        angle = np.degrees(np.arctan2(change[:, 1], change[:, 0])) % 360
        return np.column_stack([magnitude, angle])
    cosines = np.divide(change, magnitude, out=np.zeros_like(change), where=magnitude > 0)
    return np.column_stack([magnitude, cosines])


def otsu(values: Floats) -> float:
    """Return the threshold between two groups of values whose means are farthest apart (N. Otsu 1979, IEEE TSMC 9(1)).

    Args:
        values: ``(n,)``, of which the threshold is one; it belongs to the lower group.
    """
    ordered = np.sort(values)
    below = np.arange(1, ordered.size)
    if not below.size:
        return float(ordered[0]) if ordered.size else 0.0
    sums = ordered.cumsum()
    lower, upper = sums[:-1] / below, (sums[-1] - sums[:-1]) / (ordered.size - below)
    between = below * (ordered.size - below) * (upper - lower) ** 2
    return float(ordered[int(between.argmax())])


def separability(values: Floats, threshold: float) -> float:
    """Return the share of the variance that lies between the groups below and above a threshold (Otsu's eta), 0 to 1.

    Args:
        values: ``(n,)``.
        threshold: belongs to the lower group.
    """
    above = values > threshold
    total = float(values.var()) if values.size else 0.0
    if not total or above.all() or not above.any():
        return 0.0
    share = float(above.mean())
    return share * (1 - share) * float(values[above].mean() - values[~above].mean()) ** 2 / total


def _verdict(threshold: float, share: float, apart: float) -> str:
    """Say what Otsu's threshold finds, and where it only cuts a single group in two."""
    if not share:
        return "all magnitudes are equal."
    if apart < TWO_GROUPS:
        return (
            f"the magnitudes form no two distinct groups, so that no share of changed pixels can be told (Otsu's threshold, "
            f"{threshold:.4g}, would only cut one group in two)."
        )
    return f"by Otsu's threshold ({threshold:.4g}) {share:.1%} have changed."
