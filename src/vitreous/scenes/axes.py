"""Which axis of a stored cube holds the bands, the rows and the columns.

Files of named arrays often do not say it. The evidence counts in this order: the user, dimension names, the number
of wavelengths, a label image or another picture of the same pixels in the file, the kind of file (MATLAB stores rows,
columns, bands), and the shape where it leaves one answer. What stays open is a question.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from vitreous.errors import SceneError
from vitreous.scenes.attributes import key_of

Axes: TypeAlias = tuple[int, int, int]  # where bands, rows and columns lie in the stored array

_MANY_BANDS = 512  # imaging spectrometers stay below; longer axes are rows or columns
_BANDS = {
    *(
        "band",
        "bands",
        "nband",
        "nbands",
        "numberofbands",
        "wavelength",
        "wavelengths",
        "wl",
        "wave",
    ),
    *("channel", "channels", "spectral", "spectralbands", "spectralband", "wavelength3d", "lambda"),
    *("wavelengthnm", "banddim", "spectralchannel", "nb", "nw", "wavelengthdim", "wvl", "wls"),
}
_ROWS = {
    *("y", "row", "rows", "nrow", "nrows", "line", "lines", "nlines", "numberoflines", "height"),
    *(
        "lat",
        "latitude",
        "downtrack",
        "northing",
        "alongtrack",
        "ydim",
        "scan",
        "scanline",
        "nscans",
    ),
    *("yc", "ny", "nj", "yaxis", "ycoordinate", "ycoordinates", "rlat", "lats", "latitudes"),
    *("northings", "southnorth", "projectionycoordinate", "dimy", "ypixels", "ysize"),
}
_COLUMNS = {
    *("x", "col", "cols", "column", "columns", "ncol", "ncols", "sample", "samples", "width"),
    *("lon", "longitude", "crosstrack", "easting", "acrosstrack", "xdim", "pixel", "pixels"),
    *("pixelsperline", "nsamples"),
    *("xc", "nx", "ni", "xaxis", "xcoordinate", "xcoordinates", "rlon", "lons", "longitudes"),
    *("eastings", "westeast", "projectionxcoordinate", "dimx", "xpixels", "xsize"),
}


def axes_of(
    dims: Sequence[str],
    shape: Sequence[int],
    *,
    axis_order: str | None = None,
    spectra: Iterable[int] = (),
    images: Iterable[tuple[int, int]] = (),
    matlab: bool = False,
    what: str = "The cube",
) -> Axes:
    """Return where bands, rows and columns lie in a stored cube; what stays between rows come before columns.

    Args:
        dims: dimension names, empty where there are none.
        shape: of the stored cube.
        axis_order: what the user says (``yxb`` ...).
        spectra: how many wavelengths the file or the user gives.
        images: sizes (rows, columns) of pictures in the same file.
        matlab: the axes are in MATLAB's order.
        what: the array, for messages.

    Raises:
        SceneError: ``axis_order`` makes no sense, or nothing decides.
    """
    if axis_order is not None:
        return _parse_axis_order(str(axis_order))
    named = _named_axes(dims)
    if named is not None:
        return named
    candidates = {0, 1, 2}
    for evidence in (_matching(shape, spectra), _beside(shape, images)):
        if evidence & candidates:
            candidates &= evidence
    band = (
        candidates.pop() if len(candidates) == 1 else _band_axis_by_shape(shape, candidates, matlab)
    )
    if band is None:
        few = [axis for axis in sorted(candidates) if shape[axis] <= _MANY_BANDS]
        raise _question(shape, few if len(few) > 1 else sorted(candidates), what)
    row, column = (axis for axis in range(3) if axis != band)
    return band, row, column


def image_axes(dims: Sequence[str]) -> tuple[int, int] | None:
    """Return where rows and columns of an image lie by its dimension names, None where those do not say it."""
    rows, columns = (
        [k for k, d in enumerate(dims) if _is(d, names)] for names in (_ROWS, _COLUMNS)
    )
    return (rows[0], columns[0]) if len(rows) == 1 and len(columns) == 1 else None


def _is(dim: str, names: set[str]) -> bool:
    # HDF-EOS writes "YDim:Grid"; ours and xarray's are plain words.
    return key_of(dim.partition(":")[0]) in names


def _named_axes(dims: Sequence[str]) -> Axes | None:
    """Axes by dimension names; rows come before columns where those are not named."""
    if len(dims) != 3:
        return None
    bands, rows, columns = (
        [k for k, d in enumerate(dims) if _is(d, names)] for names in (_BANDS, _ROWS, _COLUMNS)
    )
    if not bands and len(rows) == 1 and len(columns) == 1:
        bands = [3 - rows[0] - columns[0]]
    if len(bands) != 1:
        return None
    band = bands[0]
    first, second = (axis for axis in range(3) if axis != band)
    swapped = rows == [second] or columns == [first]
    return (band, second, first) if swapped else (band, first, second)


def _matching(shape: Sequence[int], spectra: Iterable[int]) -> set[int]:
    lengths = set(spectra)
    return {axis for axis in range(3) if shape[axis] in lengths}


def _beside(shape: Sequence[int], images: Iterable[tuple[int, int]]) -> set[int]:
    """Axes that remain when the other two are those of a picture of the same pixels."""
    sizes = set(images)
    return {
        axis for axis in range(3) if (tuple(n for k, n in enumerate(shape) if k != axis)) in sizes
    }


def _band_axis_by_shape(shape: Sequence[int], candidates: set[int], matlab: bool) -> int | None:
    """The only axis that can be the bands, None where there are several."""
    first, middle, last = shape
    if len({first, middle, last}) == 1:
        return 2 if matlab and 2 in candidates else None
    odd_one_out = {first == middle: 2, first == last: 1, middle == last: 0}.get(True)
    if odd_one_out in candidates and shape[odd_one_out or 0] <= _MANY_BANDS:
        return odd_one_out
    few = {axis for axis in candidates if shape[axis] <= _MANY_BANDS}
    if len(few) == 1:
        return few.pop()
    if matlab:
        return _last_in_matlab(shape) if 2 in candidates else None
    # By far the shortest axis, where it is the last: a low scene with its bands first has a longer last axis.
    return 2 if 2 in candidates and 2 * last < min(first, middle) else None


def _last_in_matlab(shape: Sequence[int]) -> int | None:
    """The last axis, unless another looks as much like bands."""
    first, middle, last = shape
    first_is_short = 2 * first < min(middle, last) or (
        first < min(middle, last) and last < 1.5 * middle
    )
    alike = 0.8 <= first / last <= 1.25
    if first <= _MANY_BANDS and (first_is_short or alike):
        return None
    return None if 2 * middle < min(first, last) else 2


def _question(shape: Sequence[int], candidates: Sequence[int], what: str) -> SceneError:
    answers = []
    orders = {0: "byx", 1: "ybx", 2: "yxb"}
    for axis in candidates:
        rows, columns = (n for k, n in enumerate(shape) if k != axis)
        answers.append(
            f"axis_order={orders[axis]} if it is {shape[axis]} band{'s' * (shape[axis] > 1)} of {rows} x {columns} pixels"
        )
    sizes = " x ".join(str(n) for n in shape)
    return SceneError(
        f"{what}: it is unclear which of its axes ({sizes}) holds the bands.",
        f"Set {' or '.join(answers)}, or give its wavelengths.",
    )


def _parse_axis_order(axis_order: str) -> Axes:
    words = [w for w in re.split(r"[^a-z]+", axis_order.lower()) if w]
    letters = "".join(w[0] for w in words) if len(words) > 1 else "".join(words)
    if sorted(letters) != ["b", "x", "y"]:
        raise SceneError(
            f"The axis order '{axis_order}' is invalid.",
            "Give the stored order of rows (y), columns (x) and bands (b), e.g. axis_order=yxb.",
        )
    return letters.index("b"), letters.index("y"), letters.index("x")
