"""What formats that only hold named arrays have in common: which array is the scene, and how it lies.

MATLAB, NPZ, HDF5, NetCDF and Zarr files name their arrays freely. Here is the one rule for all of them: the cube
is the only array with three axes; the band axis is said by the caller, by dimension names, by the length of the
wavelengths, or by the shape; wavelengths and the like are found by their usual names.
"""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.errors import SceneError, did_you_mean
from vitreous.scenes.cube import UNITS, LazyCube, Window, check_shape, make_scene, to_nanometres

Key: TypeAlias = tuple[slice, ...]
Axes: TypeAlias = tuple[int, int, int]  # where bands, rows and columns lie in the stored array

MAX_ARRAYS = 10_000  # a file that lists more arrays than this is no scene
DEFLATE_RATIO = 1032  # no deflate stream expands further: a header that claims more lies
_MANY_BANDS = 512  # imaging spectrometers stay below; longer axes are rows or columns
_WAVELENGTH_NAMES = {"wavelength", "wavelengths", "wl", "wavelength_nm", "lambda", "band_centers"}
_FWHM_NAMES = {"fwhm", "bandwidth", "bandwidths"}
_GOOD_NAMES = {"good_band", "good_bands", "good_wavelengths", "bbl"}
_LABEL_NAMES = {"labels", "label", "gt", "ground_truth", "groundtruth"}
_DIMENSIONS = (
    {"band", "bands", "wavelength", "wavelengths", "wl", "channel", "channels", "spectral"},
    {"y", "row", "rows", "line", "lines", "lat", "latitude", "downtrack", "northing"},
    {
        "x",
        "col",
        "column",
        "columns",
        "sample",
        "samples",
        "lon",
        "longitude",
        "crosstrack",
        "easting",
    },
)


@dataclass(frozen=True)
class ArrayInfo:
    """What a file says about one of its arrays, without reading it.

    Args:
        name: as in the file, groups separated by ``/``.
        shape: as the file's own users see it.
        dtype: of the stored values; ``object`` for what is no plain array.
        dims: dimension names, where the format has them.
        attrs: attributes as plain Python values.
        note: for what cannot be read, what it is ("a struct").
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    dims: tuple[str, ...] = ()
    attrs: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def numeric(self) -> bool:
        """True for real numbers in an array."""
        return not self.note and self.dtype.kind in "iufb"

    @property
    def base_name(self) -> str:
        """The name without its groups, in lower case."""
        return self.name.rpartition("/")[2].lower()

    @property
    def nbytes(self) -> int:
        """Bytes of all values (Python ints: no overflow)."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        size = " x ".join(str(n) for n in self.shape)
        return f"{self.name} ({self.note or f'{size} {self.dtype.name}'})"


class ArrayFile(Protocol):
    """A file of named arrays."""

    @property
    def source(self) -> str:
        """The file's name, for messages."""

    @property
    def arrays(self) -> Sequence[ArrayInfo]:
        """What the file holds."""

    def read(self, name: str, key: Key | None = None) -> npt.NDArray[Any]:
        """Return the values of array ``name``, or the part that ``key`` cuts out."""


def open_cube(
    file: ArrayFile,
    *,
    variable: str | None = None,
    axis_order: str | None = None,
    wavelength_unit: str | None = None,
    **known: Any,
) -> xr.DataArray:
    """Make a scene of the one array in ``file`` that is a cube.

    Args:
        file: the file.
        variable: the array's name; needed only where several could be meant.
        axis_order: ``yxb``, ``byx`` or ``ybx`` (b for bands); needed only where the shape is ambiguous.
        wavelength_unit: ``nm`` or ``um``, instead of what the file says or leaves open.
        known: further arguments of :func:`make_scene`, which win over what the file says.

    Raises:
        SceneError: no array is a cube, several are, or it is not clear which axis holds the bands.
    """
    info = choose_cube(file, variable)
    axes = find_axes(file, info, axis_order)
    bands, height, width = check_shape([info.shape[axis] for axis in axes], file.source)
    facts = {
        **spectral_facts(file, bands, wavelength_unit),
        "band_names": _band_names(info, bands),
        **_value_facts(info, file.source),
        **_georeference(file, info, axes),
        **known,
    }
    cube = LazyCube((bands, height, width), info.dtype, _WindowReader(file, info.name, axes))
    return make_scene(cube, source=file.source, **facts)


def open_label_image(file: ArrayFile, *, variable: str | None = None) -> npt.NDArray[Any]:
    """Return the one ``(rows, columns)`` image in ``file`` that can be class labels.

    Args:
        file: the file.
        variable: the array's name; needed only where several could be meant.

    Raises:
        SceneError: no array is an image, or several are.
    """
    info = _choose_labels(file, variable)
    check_memory(info.nbytes, f"{file.source}: {info}")
    return file.read(info.name)


def choose_cube(file: ArrayFile, variable: str | None = None) -> ArrayInfo:
    """Return the array with three axes: the named one, or the only one.

    A colour preview (uint8 with an axis of 3) beside a cube does not count.

    Raises:
        SceneError: the name is unknown or no cube, or the choice is not clear.
    """
    if variable is not None:
        info = find_array(file, variable)
        if not info.numeric or len(info.shape) != 3:
            raise SceneError(
                f"{file.source}: {info} is no cube of numbers.", _say_variable(_cubes(file))
            )
        return info
    cubes = _cubes(file)
    without_previews = [c for c in cubes if not (c.dtype == np.uint8 and 3 in c.shape)]
    cubes = without_previews or cubes
    if len(cubes) == 1:
        return cubes[0]
    if cubes:
        raise SceneError(f"{file.source} holds {len(cubes)} cubes.", _say_variable(cubes))
    listed = ", ".join(str(a) for a in file.arrays[:12]) or "nothing that can be read"
    raise SceneError(
        f"{file.source} holds no array with three axes, only {listed}.",
        "A scene has rows, columns and bands.",
    )


def find_array(file: ArrayFile, name: str) -> ArrayInfo:
    """Return the array called ``name``.

    Raises:
        SceneError: there is none.
    """
    for info in file.arrays:
        if info.name == name:
            return info
    raise SceneError(
        f"{file.source} has no variable '{name}'.",
        did_you_mean(str(name), (a.name for a in file.arrays)),
    )


def find_axes(file: ArrayFile, info: ArrayInfo, axis_order: str | None) -> Axes:
    """Return where bands, rows and columns lie in a stored cube.

    In this order: ``axis_order`` where given; dimension names; the axis as long as the file's wavelengths; the
    one axis that differs where the other two are equal; the first axis where it is by far the shortest and the
    last is too long for bands; otherwise the last, as MATLAB scenes have it. What stays between rows come before
    columns.

    Raises:
        SceneError: ``axis_order`` makes no sense, or the shape fits both ``yxb`` and ``byx``.
    """
    if axis_order is not None:
        return _parse_axis_order(str(axis_order))
    named = _named_axes(info.dims)
    if named is not None:
        return named
    lengths = {a.shape[_long_axis(a)] for a in _vectors(file, _WAVELENGTH_NAMES)}
    matching = [axis for axis in range(3) if info.shape[axis] in lengths]
    band = matching[0] if len(matching) == 1 else _band_axis_by_shape(info, file.source)
    row, column = (axis for axis in range(3) if axis != band)
    return band, row, column


def spectral_facts(
    file: ArrayFile, bands: int, unit: str | None = None
) -> dict[str, npt.NDArray[Any]]:
    """Find wavelengths, widths (both in nm) and the good-band mask by their usual names.

    Args:
        file: the file.
        bands: how many values each must have; a list of another length is left out with a warning.
        unit: of the wavelengths, instead of what the file says; where neither says it, numbers below 100 are
            taken as µm, with a warning.

    Returns:
        Arguments for :func:`make_scene`.

    Raises:
        SceneError: the unit is none of nm and µm.
    """
    facts: dict[str, npt.NDArray[Any]] = {}
    centres = _per_band(file, _WAVELENGTH_NAMES, bands)
    if centres is not None:
        values = file.read(centres.name).reshape(-1)
        unit = unit or _unit_of(centres) or _guess_unit(values, f"{file.source}: {centres.name}")
        facts["wavelengths"] = to_nanometres(values, unit, file.source)
    widths = _per_band(file, _FWHM_NAMES, bands)
    if widths is not None:
        # Widths are small numbers in any unit: where they name none, it is that of the centres.
        width_unit = _unit_of(widths) or unit or "nm"
        facts["fwhm"] = to_nanometres(file.read(widths.name).reshape(-1), width_unit, file.source)
    good = _per_band(file, _GOOD_NAMES, bands)
    if good is not None:
        facts["good_band"] = file.read(good.name).reshape(-1).astype(np.float64) == 1
    return facts


def check_memory(nbytes: int, what: str) -> None:
    """Refuse to load what would not fit: half of the machine's memory is the limit.

    Raises:
        SceneError: ``nbytes`` are more than that.
    """
    try:
        limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):  # not on Windows
        limit = 8 * 2**30
    if nbytes > limit:
        raise SceneError(
            f"{what} needs {nbytes / 2**30:.1f} GiB of memory at once, more than half of this machine's.",
            "Store it as ENVI, GeoTIFF or Zarr, which are read in windows.",
        )


def parse_crs(wkt: str, source: str) -> Any:
    """Return the rasterio CRS of a WKT string.

    Raises:
        SceneError: it is no WKT that PROJ knows.
    """
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    try:
        return CRS.from_wkt(wkt)
    except CRSError as error:
        raise SceneError(
            f"{source} has a coordinate system that cannot be understood: {wkt[:80]!r}.",
            "Correct the WKT text, or leave it out.",
        ) from error


def plain(value: Any) -> Any:
    """Return an attribute as Python numbers, strings and lists; None for anything else."""
    if isinstance(value, np.ndarray):
        value = value.tolist() if value.size > 1 else value.reshape(-1)[0] if value.size else None
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool) else None


class _WindowReader:
    """Reads windows (band, y, x) of an array that is stored in another axis order."""

    def __init__(self, file: ArrayFile, name: str, axes: Axes) -> None:
        self._file, self._name, self._axes = file, name, axes

    def __call__(self, window: Window) -> npt.NDArray[Any]:
        key = [slice(None)] * 3
        for axis, part in zip(self._axes, window, strict=True):
            key[axis] = part
        return self._file.read(self._name, tuple(key)).transpose(self._axes)


def _cubes(file: ArrayFile) -> list[ArrayInfo]:
    return [a for a in file.arrays if a.numeric and len(a.shape) == 3]


def _choose_labels(file: ArrayFile, variable: str | None) -> ArrayInfo:
    images = [a for a in file.arrays if a.numeric and len(a.shape) == 2 and min(a.shape) > 1]
    if variable is not None:
        info = find_array(file, variable)
        if not info.numeric or len(info.shape) != 2:
            raise SceneError(f"{file.source}: {info} is no label image.", _say_variable(images))
        return info
    named = [a for a in images if a.base_name in _LABEL_NAMES or a.base_name.endswith("_gt")]
    if len(images) == 1 or len(named) == 1:
        return named[0] if len(named) == 1 else images[0]
    raise SceneError(
        f"{file.source} holds {len(images)} images that could be labels.", _say_variable(images)
    )


def _say_variable(arrays: Sequence[ArrayInfo]) -> str:
    if not arrays:
        return "Give another file."
    return f"Say variable=NAME with one of {', '.join(str(a) for a in arrays[:12])}."


def _vectors(file: ArrayFile, names: set[str]) -> list[ArrayInfo]:
    """Numeric arrays with one of ``names`` that are lists: one axis, or two of which one has length 1."""
    return [
        a
        for a in file.arrays
        if a.numeric
        and a.base_name in names
        and (len(a.shape) == 1 or (len(a.shape) == 2 and min(a.shape) == 1))
        and math.prod(a.shape) > 0
    ]


def _per_band(file: ArrayFile, names: set[str], bands: int) -> ArrayInfo | None:
    fitting = None
    for info in _vectors(file, names):
        if math.prod(info.shape) == bands:
            fitting = fitting or info
        else:
            warnings.warn(
                f"{file.source}: {info} does not fit {bands} bands and is left out.", stacklevel=4
            )
    return fitting


def _unit_of(info: ArrayInfo) -> str | None:
    unit = info.attrs.get("units", info.attrs.get("unit"))
    return unit if isinstance(unit, str) else None


def _guess_unit(values: npt.NDArray[Any], what: str) -> str:
    unit = "um" if (values < 100).all() else "nm"
    warnings.warn(f"{what} names no unit; taken as {unit} (wavelength_unit says it).", stacklevel=4)
    return unit


def _long_axis(info: ArrayInfo) -> int:
    return int(np.argmax(info.shape))


def _parse_axis_order(axis_order: str) -> Axes:
    words = [w for w in re.split(r"[^a-z]+", axis_order.lower()) if w]
    letters = "".join(w[0] for w in words) if len(words) > 1 else "".join(words)
    if sorted(letters) != ["b", "x", "y"]:
        raise SceneError(
            f"The axis order '{axis_order}' makes no sense.",
            "Give the stored order of rows (y), columns (x) and bands (b), e.g. axis_order=yxb.",
        )
    return letters.index("b"), letters.index("y"), letters.index("x")


def _named_axes(dims: Sequence[str]) -> Axes | None:
    """Axes by dimension names, if bands are named; rows come before columns where those are not."""
    found = [[k for k, d in enumerate(dims) if d.lower() in names] for names in _DIMENSIONS]
    if len(dims) != 3 or len(found[0]) != 1:
        return None
    band = found[0][0]
    first, second = (axis for axis in range(3) if axis != band)
    swapped = found[1] == [second] and found[2] == [first]
    return (band, second, first) if swapped else (band, first, second)


def _band_axis_by_shape(info: ArrayInfo, source: str) -> int:
    first, middle, last = info.shape
    odd_one_out = {first == middle: 2, first == last: 1, middle == last: 0}.get(True)
    if first == middle == last:
        return 2
    if odd_one_out is not None and info.shape[odd_one_out] <= _MANY_BANDS:
        return odd_one_out
    if 2 * first < min(middle, last):
        if last > _MANY_BANDS:
            return 0
        raise SceneError(
            f"{source}: {info} could be {first} bands of {middle} x {last} pixels or {last} bands of "
            f"{first} x {middle} pixels.",
            "Say axis_order=byx (bands first) or axis_order=yxb (bands last).",
        )
    return 2


def _value_facts(info: ArrayInfo, source: str) -> dict[str, Any]:
    """Unit, scale and nodata as our own writers, xarray and the CF conventions name them."""
    if info.attrs.get("add_offset"):
        raise SceneError(
            f"{source}: {info.name} is stored with an offset (add_offset).",
            "Convert it first: a scene's physical values are stored values x scale.",
        )
    facts: dict[str, Any] = {}
    if info.attrs.get("unit") in UNITS:
        facts["unit"] = info.attrs["unit"]
    elif info.base_name in UNITS:
        facts["unit"] = info.base_name
    for argument, names in (
        ("scale", ("scale", "scale_factor")),
        ("nodata", ("nodata", "_FillValue")),
    ):
        for name in names:
            number = _number(info.attrs.get(name))
            if number is not None:
                facts.setdefault(argument, number)
    return facts


def _band_names(info: ArrayInfo, bands: int) -> list[str] | None:
    """Names of the bands as our own Zarr writer keeps them."""
    names = info.attrs.get("band_names")
    if not isinstance(names, list) or len(names) != bands:
        return None
    return names if all(isinstance(name, str) for name in names) else None


def _number(value: Any) -> float | None:
    try:
        return None if value is None or isinstance(value, list) else float(value)
    except ValueError:
        return None


def _georeference(file: ArrayFile, info: ArrayInfo, axes: Axes) -> dict[str, Any]:
    """CRS and transform from a CF grid mapping, the transform otherwise from regular x and y coordinates."""
    from affine import Affine

    wanted = str(info.attrs.get("grid_mapping", "spatial_ref")).rpartition("/")[2]
    mapping: Mapping[str, Any] = next(
        (a.attrs for a in file.arrays if a.name.rpartition("/")[2] == wanted), {}
    )
    place: dict[str, Any] = {}
    wkt = mapping.get("crs_wkt") or mapping.get("spatial_ref")
    if isinstance(wkt, str) and wkt:
        place["crs"] = parse_crs(wkt, file.source)
    numbers = gdal_transform(mapping.get("GeoTransform"))
    if numbers is not None:
        place["transform"] = Affine.from_gdal(*numbers)
    elif len(info.dims) == 3:
        x, y = (_regular(file, info.dims[axis]) for axis in (axes[2], axes[1]))
        if x is not None and y is not None:
            # Coordinates are pixel centres, a transform starts at the corner.
            place["transform"] = Affine(x[1], 0, x[0] - x[1] / 2, 0, y[1], y[0] - y[1] / 2)
    return place


def gdal_transform(value: Any) -> list[float] | None:
    """Return the six numbers of a GDAL geotransform given as text or list, None if it is none."""
    try:
        numbers = [float(n) for n in (value.split() if isinstance(value, str) else value or [])]
    except (TypeError, ValueError):
        return None
    usable = len(numbers) == 6 and np.isfinite(numbers).all()
    return numbers if usable and numbers[1] * numbers[5] != numbers[2] * numbers[4] else None


def _regular(file: ArrayFile, name: str) -> tuple[float, float] | None:
    """Return start and step of the coordinate ``name`` if it is a regular list of numbers."""
    for info in file.arrays:
        if info.name == name and info.numeric and len(info.shape) == 1 and info.shape[0] > 1:
            values = file.read(info.name).astype(np.float64)
            steps = np.diff(values)
            if (
                np.isfinite(values).all()
                and steps[0] != 0
                and np.allclose(steps, steps[0], rtol=1e-3)
            ):
                return float(values[0]), float((values[-1] - values[0]) / (len(values) - 1))
    return None
