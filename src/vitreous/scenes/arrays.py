"""What formats that only hold named arrays have in common: which array is the scene, and how it lies.

MATLAB, NPZ, HDF5, NetCDF and Zarr files name their arrays freely. Here is the one rule for all of them: the cube
is the only array with three axes; ``axes.py`` says how it lies; wavelengths, nodata, scale and place are found by their
usual names in any spelling (``attributes.py``). Labels follow the same rules as scenes.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.catalog.results import physical_memory
from vitreous.errors import SceneError, did_you_mean
from vitreous.scenes.attributes import (
    CENTRES,
    GOOD,
    NODATA,
    OFFSETS,
    SCALES,
    UNITS,
    WIDTHS,
    find,
    is_named,
    key_of,
    number,
    numbers,
    stored,
)
from vitreous.scenes.axes import Axes, axes_of, image_axes
from vitreous.scenes.cube import UNITS as UNITS_OF_VALUES
from vitreous.scenes.cube import LabelImage, LazyCube, Window, check_shape, make_scene, settle
from vitreous.scenes.grids import GRID_TOLERANCE, shift
from vitreous.scenes.places import evenly
from vitreous.scenes.sensors import facts_of_names
from vitreous.scenes.values import converted
from vitreous.scenes.vectors import strange_codes
from vitreous.scenes.wavelengths import from_names, known_unit, spectral, unit_in_name

Key: TypeAlias = tuple[slice, ...]

MAX_WORDS = 1_000  # a longer list of texts names neither bands nor classes
MAX_ARRAYS = 10_000  # a file that lists more arrays than this is not a scene
DEFLATE_RATIO = 1032  # no deflate stream expands further: a header that claims more lies
_USUAL_MEMORY = 16 * 2**30  # bytes, where the system does not say
_STORED_TYPE = {*map(key_of, NODATA), "validmin", "validmax", "validrange", "flagvalues"}
_CRS_NAMES = (
    *("epsg_code", "epsg", "spatial_epsg", "crs", "projection", "proj4", "proj4text", "srs"),
    *("proj:code", "proj:wkt2"),  # GeoZarr
)
_CRS_TEXTS = ("PROJCS[", "GEOGCS[", "PROJCRS[", "GEOGCRS[", "+proj=")
_EPSG = re.compile(r"(?:epsg:+)?(\d{4,6})(?:\.0)?", re.I)
_CF_AXES = {
    **dict.fromkeys(("x", "projectionxcoordinate", "longitude", "gridlongitude"), "x"),
    **dict.fromkeys(("y", "projectionycoordinate", "latitude", "gridlatitude"), "y"),
}
_NAME_LISTS = ("class_names", "classes", "categories", "labels", "legend")
_LABEL_NAMES = {"labels", "label", "gt", "groundtruth", "classes", "classmap", "landcover"}


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
        matlab: the axes are in MATLAB's order: rows, columns, bands.
        dropped: a stored axis of length 1 (time) that ``shape`` leaves out, None for none.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    dims: tuple[str, ...] = ()
    attrs: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    matlab: bool = False
    dropped: int | None = None

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

    @property
    def attrs(self) -> Mapping[str, Any]:
        """What the file says about all of it; single numbers and words among its arrays, and lists of words, included."""

    def read(self, name: str, key: Key | None = None) -> npt.NDArray[Any]:
        """Return the values of array ``name``, or the part that ``key`` cuts out."""


def open_cube(
    file: ArrayFile,
    *,
    variable: str | None = None,
    axis_order: str | None = None,
    wavelength_unit: str | None = None,
    known: Mapping[str, Any] | None = None,
) -> xr.DataArray:
    """Make a scene of the one array in ``file`` that is a cube, or of its images where each is a band.

    Args:
        file: the file.
        variable: the array's name, or those of several images, divided by commas; needed only where several could be
            meant.
        axis_order: ``yxb``, ``byx`` or ``ybx`` (b for bands); needed only where the shape is ambiguous.
        wavelength_unit: ``nm`` or ``um``, instead of what the file says or leaves open.
        known: arguments of :func:`make_scene`, which win over what the file says.

    Raises:
        SceneError: no array is a cube, several are, or it is not clear which axis holds the bands.
    """
    from vitreous.scenes.image_variables import joined_images

    known = known or {}
    images = joined_images(file, variable, known)
    if images is not None:
        info, reader, axes = images.info, images.reader, (0, 1, 2)
        known = {**images.facts, **known}
    else:
        info = choose_cube(file, variable)
        axes = find_axes(file, info, axis_order, known)
        reader = WindowReader(file, info, axes)
    bands, height, width = check_shape([info.shape[axis] for axis in axes], file.source)
    cube = LazyCube((bands, height, width), info.dtype, reader)
    values, facts = as_measured(cube, info, known, stored(file.attrs).nodata)
    facts |= spectral_facts(file, bands, wavelength_unit, info=info, band_axis=axes[0], known=known)
    facts |= settle(
        known,
        unit=lambda: _unit(info),
        band_names=lambda: _band_names(file, info, bands, axes[0]),
    )
    if (
        facts["unit"] == "reflectance"
        and _in_percent(info)
        and not {"unit", "scale"} & known.keys()
    ):
        facts["scale"] /= 100
    if "wavelengths" not in {**facts, **known}:
        facts |= _of_names(file, facts["band_names"])
    place = _georeference(file, info, axes[1], axes[2])
    return make_scene(values, source=file.source, **{**place, **facts, **known})


def as_measured(
    cube: LazyCube,
    info: ArrayInfo,
    known: Mapping[str, Any],
    nodata_of_file: tuple[float, ...] = (),
) -> tuple[LazyCube, dict[str, Any]]:
    """Return a cube of which physical value = value x scale, and its scale and nodata.

    Offsets, several nodata values and limits of validity are applied while reading; such a cube is in floating point
    with NaN where there is no measurement.

    Args:
        cube: the stored values.
        info: the array with its attributes.
        known: arguments of :func:`make_scene` that the user gives.
        nodata_of_file: what the file says for all its arrays; counts where the array says nothing.
    """
    said = stored(info.attrs)
    scale = float(known.get("scale", 1.0 if said.scale is None else said.scale))
    scales = None if "scale" in known else _of_each_band(info, SCALES, cube.shape[0])
    offsets = _of_each_band(info, OFFSETS, cube.shape[0])
    nodata = said.nodata or nodata_of_file
    if "nodata" in known:
        nodata = () if known["nodata"] is None else (float(known["nodata"]),)
    limits = said.limits if said.limits and _cuts_off(said.limits, info.dtype) else None
    moved = said.offset != 0 or scales is not None or offsets is not None
    if not moved and len(nodata) < 2 and limits is None:
        return cube, {"scale": scale, "nodata": nodata[0] if nodata else None}
    settings: dict[str, Any] = {"nodata": nodata, "limits": limits}
    if moved:
        settings["scales"] = np.full(cube.shape[0], scale) if scales is None else scales
        settings["offsets"] = np.full(cube.shape[0], said.offset) if offsets is None else offsets
        scale = 1.0
    return converted(cube, **settings), {"scale": scale, "nodata": math.nan}


def _of_each_band(
    info: ArrayInfo, names: Sequence[str], bands: int
) -> npt.NDArray[np.float64] | None:
    """A scale or offset that an attribute lists for every band."""
    values = numbers(find(info.attrs, *names))
    return np.array(values) if values is not None and 1 < len(values) == bands else None


def open_label_image(file: ArrayFile, *, variable: str | None = None) -> LabelImage:
    """Return the one ``(rows, columns)`` image in ``file`` that can be class labels, with what is known of it.

    Args:
        file: the file.
        variable: the array's name; needed only where several could be meant.

    Raises:
        SceneError: no array is an image, or several are.
    """
    info = _choose_labels(file, variable)
    check_memory(info.nbytes, f"{file.source}: {info}")
    image = image_of(file, info)
    values = image.read(file, slice(None), slice(None))
    place = _georeference(file, info, image.row, image.column)
    said = stored(info.attrs)
    return LabelImage(
        values,
        nodata=said.nodata or stored(file.attrs).nodata,
        class_names=_flag_names(info) or _listed_names(file, info, values),
        crs=place.get("crs"),
        transform=place.get("transform"),
        valid=None
        if said.limits is None
        else (values >= said.limits[0]) & (values <= said.limits[1]),
    )


class ImageOf(NamedTuple):
    """An image and the axes of its rows and columns; all other axes have length 1."""

    info: ArrayInfo
    row: int
    column: int

    def read(self, file: ArrayFile, rows: slice, columns: slice) -> npt.NDArray[Any]:
        """Return some ``(rows, columns)``."""
        key = [slice(0, 1)] * len(self.info.shape)
        key[self.row], key[self.column] = rows, columns
        values = file.read(self.info.name, tuple(key))
        others = tuple(axis for axis in range(values.ndim) if axis not in {self.row, self.column})
        values = values.squeeze(others)
        return values.T if self.row > self.column else values


def image_of(file: ArrayFile, info: ArrayInfo) -> ImageOf:
    """Return how an image lies in its array."""
    long = [axis for axis, n in enumerate(info.shape) if n > 1 or len(info.shape) == 2]
    row, column = long
    dims = [_axis_word(file, info.dims[axis]) for axis in long] if info.dims else []
    if image_axes(dims) == (1, 0) or (image_axes(dims) is None and _lies_turned(file, info, long)):
        row, column = column, row
    return ImageOf(info, row, column)


def choose_cube(file: ArrayFile, variable: str | None = None) -> ArrayInfo:
    """Return the array with three axes: the named one, or the only one.

    A colour preview (uint8 with an axis of 3) beside a cube does not count.

    Raises:
        SceneError: the name is unknown or no cube, or the choice is not clear.
    """
    if variable is not None:
        info = _three_axes(find_array(file, variable))
        if not info.numeric or len(info.shape) != 3:
            raise SceneError(
                f"{file.source}: {info} is not a numeric cube.", _say_variable(cubes(file))
            )
        return info
    found = cubes(file)
    without_previews = [c for c in found if not (c.dtype == np.uint8 and 3 in c.shape)]
    found = without_previews or found
    if len(found) == 1:
        return found[0]
    if found:
        raise SceneError(f"{file.source} holds {len(found)} cubes.", _say_variable(found))
    listed = ", ".join(str(a) for a in file.arrays[:12]) or "no readable arrays"
    raise SceneError(
        f"{file.source} holds no three-dimensional array, only {listed}.",
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


def find_axes(
    file: ArrayFile,
    info: ArrayInfo,
    axis_order: str | None,
    known: Mapping[str, Any] | None = None,
) -> Axes:
    """Return where bands, rows and columns lie in a stored cube (see :func:`axes_of`).

    Args:
        file: the file, whose wavelengths and pictures are evidence.
        info: the cube.
        axis_order: what the user says.
        known: arguments of :func:`make_scene` that the user gives; as many wavelengths are as many bands.

    Raises:
        SceneError: ``axis_order`` makes no sense, or nothing decides.
    """
    spectra = {math.prod(a.shape) for a in _vectors(file, CENTRES)}
    spectra |= {len(values) for _, _, values in _listed(file, info, CENTRES)}
    if known and known.get("wavelengths") is not None:
        spectra = {len(known["wavelengths"])}
    images = {
        (a.shape[0], a.shape[1])
        for a in file.arrays
        if a.numeric and len(a.shape) == 2 and min(a.shape) > 1
    }
    return axes_of(
        [_axis_word(file, dim) for dim in info.dims],
        info.shape,
        axis_order=axis_order,
        spectra=spectra,
        images=images,
        matlab=info.matlab,
        what=f"{file.source}: {info.name}" if info.name else file.source,
    )


def _axis_word(file: ArrayFile, dim: str) -> str:
    """The name of a dimension, or ``x`` or ``y`` where the attributes of its coordinates say that it is one (CF)."""
    vector = next((a for a in file.arrays if dim and a.name.rpartition("/")[2] == dim), None)
    if vector is None:
        return dim
    said = (find(vector.attrs, "axis"), find(vector.attrs, "standard_name"))
    return next((_CF_AXES[word] for word in map(key_of, map(str, said)) if word in _CF_AXES), dim)


def spectral_facts(
    file: ArrayFile,
    bands: int,
    unit: str | None = None,
    *,
    info: ArrayInfo | None = None,
    band_axis: int | None = None,
    known: Mapping[str, Any] | None = None,
) -> dict[str, npt.NDArray[Any]]:
    """Find wavelengths, widths (both in nm) and the good-band mask by their usual names.

    They are arrays of the file, the coordinate of the band axis, or lists in the attributes of the cube or the file.

    Args:
        file: the file.
        bands: how many values each must have; a list of another length is left out with a warning.
        unit: of the wavelengths, which the user says.
        info: the cube, whose attributes count too.
        band_axis: of the cube.
        known: arguments of :func:`make_scene` that the user gives; those are not looked for.

    Returns:
        Arguments for :func:`make_scene`.

    Raises:
        SceneError: the unit is none, or a unit of the user's cannot be right.
    """
    known = known or {}
    facts: dict[str, npt.NDArray[Any]] = {}
    centres = None if "wavelengths" in known else _per_band(file, info, CENTRES, bands, band_axis)
    widths = None if "fwhm" in known else _per_band(file, info, WIDTHS, bands)
    if centres is not None or widths is not None:
        what = f"{file.source}: {centres[0]}" if centres else file.source
        found = spectral(
            centres[2] if centres else None,
            widths[2] if widths else None,
            unit or (centres[1] if centres else None),
            what,
            width_unit=widths[1] if widths else None,
            certain=unit is not None,
        )
        if found.centres is not None:
            facts["wavelengths"] = found.centres
        if found.widths is not None:
            facts["fwhm"] = found.widths
    good = None if "good_band" in known else _per_band(file, info, GOOD, bands)
    if good is not None:
        facts["good_band"] = good[2].astype(np.float64) == 1
    return facts


def check_memory(nbytes: int, what: str) -> None:
    """Refuse to load what would not fit: half of the machine's memory is the limit.

    Raises:
        SceneError: ``nbytes`` are more than that.
    """
    if nbytes > (physical_memory() or _USUAL_MEMORY) // 2:
        raise SceneError(
            f"{what} needs {nbytes / 2**30:.1f} GiB of memory at once, more than half of this machine's memory.",
            "Store it as ENVI, GeoTIFF or Zarr, which are read in windows.",
        )


def parse_crs(wkt: str, source: str) -> Any:
    """Return the rasterio CRS of a WKT or PROJ string.

    Raises:
        SceneError: it is none that PROJ knows.
    """
    from rasterio import Env
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    try:
        with Env():  # sends GDAL's own messages to logging instead of the terminal
            return CRS.from_string(wkt) if wkt.startswith("+proj=") else CRS.from_wkt(wkt)
    except (CRSError, UnicodeError) as error:
        raise SceneError(
            f"{source} has a coordinate system that cannot be parsed: {wkt[:80]!r}.",
            "Correct the WKT, or remove it.",
        ) from error


def as_declared(
    dtype: np.dtype[Any], attrs: Mapping[str, Any]
) -> tuple[np.dtype[Any], Mapping[str, Any]]:
    """Return the type and attributes of whole numbers that ``_Unsigned`` declares to be stored as their counterpart.

    NetCDF's classic types have no sign of choice: ``_Unsigned = "true"`` beside int8 means uint8, and then no-data values and
    limits are given in the stored type too (NetCDF Users Guide, attribute conventions).
    """
    word = str(attrs.get("_Unsigned", "")).strip().lower()
    kind = {("i", "true"): "u", ("u", "false"): "i"}.get((dtype.kind, word))
    if kind is None:
        return dtype, attrs
    declared = np.dtype(f"{dtype.byteorder}{kind}{dtype.itemsize}")
    limits, turn = np.iinfo(declared), 2 ** (8 * dtype.itemsize)

    def counterpart(value: Any) -> Any:
        if isinstance(value, list):
            return [counterpart(item) for item in value]
        given = number(value)
        if given is None or not given.is_integer() or limits.min <= given <= limits.max:
            return value
        moved = given + (turn if given < limits.min else -turn)
        return moved if limits.min <= moved <= limits.max else value

    return declared, {
        name: counterpart(value) if key_of(name) in _STORED_TYPE else value
        for name, value in attrs.items()
    }


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
    if isinstance(
        value, str
    ):  # h5py keeps bytes that are not UTF-8 as surrogates, which no library encodes
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return value if isinstance(value, str | int | float | bool) else None


class WindowReader:
    """Reads windows (band, y, x) of an array that is stored in another axis order.

    Args:
        file: the file.
        info: the array.
        axes: where bands, rows and columns lie.
    """

    def __init__(self, file: ArrayFile, info: ArrayInfo, axes: Axes) -> None:
        self._file, self._name, self._axes, self._dropped = file, info.name, axes, info.dropped

    def __call__(self, window: Window) -> npt.NDArray[Any]:
        """Read one window."""
        key = [slice(None)] * 3
        for axis, part in zip(self._axes, window, strict=True):
            key[axis] = part
        if self._dropped is not None:
            key.insert(self._dropped, slice(0, 1))
        stored_part = self._file.read(self._name, tuple(key))
        if self._dropped is not None:
            stored_part = stored_part.squeeze(self._dropped)
        return stored_part.transpose(self._axes)


def cubes(file: ArrayFile) -> list[ArrayInfo]:
    """Return the arrays with three axes, such of length 1 left out."""
    reduced = (_three_axes(a) for a in file.arrays if a.numeric)
    return [a for a in reduced if len(a.shape) == 3]


def _three_axes(info: ArrayInfo) -> ArrayInfo:
    """Leave out the axis of length 1 of an array with four, such as the time of a single scene."""
    if len(info.shape) != 4 or info.shape.count(1) != 1:
        return info
    axis = info.shape.index(1)
    shape, dims = (
        (*values[:axis], *values[axis + 1 :]) if values else ()
        for values in (info.shape, info.dims)
    )
    return replace(info, shape=shape, dims=dims, dropped=axis)


def _cuts_off(limits: tuple[float, float], dtype: np.dtype[Any]) -> bool:
    """True where some stored value can lie outside."""
    if dtype.kind not in "iu":
        return True
    kind = np.iinfo(dtype)
    return limits[0] > kind.min or limits[1] < kind.max


def is_image(info: ArrayInfo) -> bool:
    """An image of numbers; a third axis of length 1 (time, band) does not count."""
    if not info.numeric or len(info.shape) not in {2, 3}:
        return False
    return sum(n > 1 for n in info.shape) == 2


def _choose_labels(file: ArrayFile, variable: str | None) -> ArrayInfo:
    images = [a for a in file.arrays if is_image(a)]
    if variable is not None:
        info = find_array(file, variable)
        if info not in images and not (info.numeric and len(info.shape) == 2):
            raise SceneError(f"{file.source}: {info} is not a label image.", _say_variable(images))
        return info
    named = [a for a in images if is_named(a.name, _LABEL_NAMES) or a.base_name.endswith("_gt")]
    if not images:
        listed = ", ".join(str(a) for a in file.arrays[:12]) or "nothing that can be read"
        raise SceneError(
            f"{file.source} holds no label image, only {listed}.", "Labels have rows and columns."
        )
    if len(images) == 1 or len(named) == 1:
        return named[0] if len(named) == 1 else images[0]
    raise SceneError(
        f"{file.source} holds {len(images)} images that could be labels.", _say_variable(images)
    )


def _say_variable(arrays: Sequence[ArrayInfo]) -> str:
    if not arrays:
        return "Give another file."
    return f"Set variable=NAME to one of {', '.join(str(a) for a in arrays[:12])}."


def _is_vector(info: ArrayInfo) -> bool:
    """A list of numbers: one axis, or two of which one has length 1."""
    flat = len(info.shape) == 1 or (len(info.shape) == 2 and min(info.shape) == 1)
    return info.numeric and flat and math.prod(info.shape) > 0


def _vectors(file: ArrayFile, names: set[str]) -> list[ArrayInfo]:
    return [a for a in file.arrays if _is_vector(a) and is_named(a.name, names)]


Column: TypeAlias = tuple[str, str | None, npt.NDArray[Any]]  # name, unit, values


def _listed(file: ArrayFile, info: ArrayInfo, names: set[str]) -> list[Column]:
    """Lists of numbers in the attributes of the cube and of the file."""
    found: list[Column] = []
    for attrs in (info.attrs, file.attrs):
        for name, value in attrs.items():
            values = numbers(value) if is_named(name, names) else None
            if values is not None and len(values) > 1:
                unit = find(attrs, f"{name}_units", f"{name}_unit", "wavelength_units")
                unit = unit if isinstance(unit, str) else unit_in_name(name)
                found.append((name, unit, np.array(values)))
    return found


def _per_band(
    file: ArrayFile,
    info: ArrayInfo | None,
    names: set[str],
    bands: int,
    band_axis: int | None = None,
) -> Column | None:
    """The list with one value per band that belongs to the cube."""
    fitting: list[Column] = []
    for vector in _vectors(file, names) + _band_coordinate(file, info, band_axis):
        if math.prod(vector.shape) == bands:
            values = file.read(vector.name).reshape(-1)
            unit = find(vector.attrs, *UNITS)
            said = unit if isinstance(unit, str) else unit_in_name(vector.base_name)
            if said is None:
                beside = find(file.attrs, "wavelength_units", "wavelength_unit")
                said = beside if isinstance(beside, str) else None
            fitting.append((vector.name, said, values))
        elif info is None or not _of_another(file, vector):
            warnings.warn(
                f"{file.source}: {vector} does not match {bands} bands and is ignored.",
                stacklevel=4,
            )
    if info is not None:
        fitting += [column for column in _listed(file, info, names) if len(column[2]) == bands]
    if names is CENTRES:
        fitting = [column for column in fitting if not _say_zeros(column, file.source)]
    if not fitting:
        return None
    wanted = "" if info is None else info.name.lower()
    return max(fitting, key=lambda column: _kinship(column[0].lower(), wanted))


def _say_zeros(column: Column, source: str) -> bool:
    if np.any(np.nan_to_num(np.asarray(column[2], dtype=np.float64)) > 0):
        return False
    warnings.warn(f"{source}: {column[0]} holds only zeros.", stacklevel=5)
    return True


def _of_another(file: ArrayFile, vector: ArrayInfo) -> bool:
    """True where a list belongs to another cube of the file."""
    length = math.prod(vector.shape)
    return len(cubes(file)) > 1 and any(length in cube.shape for cube in cubes(file))


def _band_coordinate(
    file: ArrayFile, info: ArrayInfo | None, band_axis: int | None
) -> list[ArrayInfo]:
    """The coordinate of the band axis, where its unit is one of wavelengths."""
    if info is None or band_axis is None or len(info.dims) != 3:
        return []
    found = []
    for vector in file.arrays:
        unit = find(vector.attrs, *UNITS)
        named = vector.name.rpartition("/")[2] == info.dims[band_axis]
        if named and _is_vector(vector) and not is_named(vector.name, CENTRES):
            try:
                if isinstance(unit, str) and known_unit(unit) is not None:
                    found.append(vector)
            except SceneError:  # a coordinate in other units
                continue
    return found


def _kinship(name: str, of: str) -> tuple[int, int]:
    """How closely two names are related: shared groups, then shared words (``List_Cw_Vnir`` and ``VNIR_Cube``)."""
    pairs = zip(name.split("/")[:-1], of.split("/")[:-1], strict=False)
    groups = list(takewhile(lambda pair: pair[0] == pair[1], pairs))
    words = set(re.findall(r"[a-z]+|\d+", name)) & set(re.findall(r"[a-z]+|\d+", of))
    return len(groups), len(words)


def _unit(info: ArrayInfo) -> str:
    """Unit of the values: an attribute of ours, or what the array is called (CF: also in longer words)."""
    if info.attrs.get("unit") in UNITS_OF_VALUES:
        return str(info.attrs["unit"])
    described = (find(info.attrs, name) for name in ("standard_name", "long_name", "units"))
    texts = (info.base_name, *(text.lower() for text in described if isinstance(text, str)))
    words = {word for text in texts for word in re.findall(r"[a-zµ]+", text)}
    per_angle = "sr" in words and words & {"w", "mw", "uw", "µw"}  # W m-2 sr-1 um-1
    named = next((unit for unit in ("reflectance", "radiance") if unit in words), "dn")
    return "radiance" if named == "dn" and per_angle else named


def _band_names(file: ArrayFile, info: ArrayInfo, bands: int, band_axis: int) -> list[str] | None:
    """Names of the bands: in an attribute, or the coordinate of the band axis."""
    axis = info.dims[band_axis : band_axis + 1] if len(info.dims) == 3 else ()
    given = (
        find(info.attrs, "band_names", "long_name"),
        find(file.attrs, *filter(None, axis), "band_names", "bands"),
    )
    fitting = (names for names in given if isinstance(names, list) and len(names) == bands)
    return next((names for names in fitting if all(isinstance(n, str) for n in names)), None)


def _in_percent(info: ArrayInfo) -> bool:
    return str(find(info.attrs, "units") or "").strip().lower() in {"%", "percent"}


def _of_names(file: ArrayFile, names: Sequence[str] | None) -> dict[str, Any]:
    """Wavelengths and widths that names of bands tell (``450 nm``, ``B8A``)."""
    centres = None if names is None else from_names(names)
    if centres is not None:
        return {"wavelengths": centres}
    return dict(facts_of_names(names or (), texts(file)))


def texts(file: ArrayFile) -> list[str]:
    """Return the words that a file says about itself, such as its title and its platform."""
    return [value[:200] for value in file.attrs.values() if isinstance(value, str)]


def _flag_names(info: ArrayInfo) -> dict[int, str] | None:
    """Class names by the CF conventions: ``flag_values`` and ``flag_meanings``."""
    values, meanings = find(info.attrs, "flag_values"), find(info.attrs, "flag_meanings")
    codes = numbers(values)
    words = meanings.split() if isinstance(meanings, str) else meanings
    if codes is None or not isinstance(words, list) or len(words) != len(codes):
        return None
    return {int(code): str(word) for code, word in zip(codes, words, strict=True)}


def _listed_names(
    file: ArrayFile, info: ArrayInfo, values: npt.NDArray[Any]
) -> dict[int, str] | None:
    """Class names in a plain list, from 1 on, or from 0 on where there is one more than the greatest code."""
    given = find(info.attrs, *_NAME_LISTS) or find(file.attrs, *_NAME_LISTS)
    if isinstance(given, str):
        given = [word.strip() for word in given.split(",")]
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        return None
    nodata = (*stored(info.attrs).nodata, *stored(file.attrs).nodata)
    codes = np.unique(values)
    codes = codes[np.isfinite(codes) & ~np.isin(codes, nodata)]
    usual = codes[(codes >= 0) & ~np.isin(codes, strange_codes(codes.tolist()))]
    greatest = int(usual[-1]) if usual.size else 0
    first = {greatest: 1, greatest + 1: 0}.get(len(given))
    return None if first is None else dict(enumerate(given, start=first))


def _lies_turned(file: ArrayFile, info: ArrayInfo, axes: Sequence[int]) -> bool:
    """True where coordinates x and y say that columns come before rows."""
    x, y = (_coordinate(file, info, None, names) for names in (_X_NAMES, _Y_NAMES))
    if x is None or y is None or x.shape == y.shape:
        return False
    return (x.shape[0], y.shape[0]) == tuple(info.shape[axis] for axis in axes)


def _georeference(file: ArrayFile, info: ArrayInfo, row: int, column: int) -> dict[str, Any]:
    """CRS and transform: from regular x and y coordinates, a CF grid mapping, or what products call them."""
    from affine import Affine

    mapping = _grid_mapping(file, info)
    place: dict[str, Any] = {}
    crs = _crs_of(file, info, mapping)
    if crs is not None:
        place["crs"] = crs
    x_info, y_info = (
        _coordinate(file, info, axis, names)
        for axis, names in ((column, _X_NAMES), (row, _Y_NAMES))
    )
    x, y = (
        None
        if vector is None or vector.shape[0] != info.shape[axis]
        else _regular(file, vector, crs)
        for vector, axis in ((x_info, column), (y_info, row))
    )
    numbers_of_gdal = gdal_transform(find(mapping, "GeoTransform"))
    if x is not None and y is not None:
        # Coordinates are pixel centres, a transform starts at the corner.
        place["transform"] = Affine(x[1], 0, x[0] - x[1] / 2, 0, y[1], y[0] - y[1] / 2)
        if numbers_of_gdal is not None:
            stated = Affine.from_gdal(*numbers_of_gdal)
            size = (info.shape[row], info.shape[column])
            if shift(stated, place["transform"], size) > GRID_TOLERANCE:
                _say_stale(stated, place["transform"], size, file.source)
            else:
                place["transform"] = stated  # its digits are not rounded
        if "crs" not in place and _are_degrees(x_info, y_info, x, y, info, row, column):
            place["crs"] = epsg(4326)
    elif numbers_of_gdal is not None:
        place["transform"] = Affine.from_gdal(*numbers_of_gdal)
    elif (stated := _spatial_transform(file, info)) is not None:
        place["transform"] = stated
    else:
        place = {**_place_of_pixels(file, info, row, column), **place}
    return _product_place(file, place)


def _crs_of(file: ArrayFile, info: ArrayInfo, mapping: Mapping[str, Any]) -> Any:
    """The CRS by WKT, an EPSG code, CF's parameters of a projection, or a word such as ``EPSG:32633``."""
    wkt = find(mapping, "crs_wkt", "spatial_ref") or find(file.attrs, "crs_wkt")
    if isinstance(wkt, str) and wkt:
        return parse_crs(wkt, file.source)
    attrs = (mapping, info.attrs, file.attrs)
    words = [find(place, *_CRS_NAMES) for place in attrs]
    code = next((match for word in words if (match := _EPSG.fullmatch(str(word).strip()))), None)
    if code is not None:
        return epsg(float(code[1]))
    text = next((w for w in words if isinstance(w, str) and w.startswith(_CRS_TEXTS)), None)
    if text is not None:
        return parse_crs(text, file.source)
    return _crs_of_parameters(mapping, file.source)


def _crs_of_parameters(mapping: Mapping[str, Any], source: str) -> Any:
    if not isinstance(find(mapping, "grid_mapping_name"), str):
        return None
    from pyproj import CRS
    from pyproj.exceptions import ProjError

    try:
        return parse_crs(CRS.from_cf(dict(mapping)).to_wkt(), source)
    except (ProjError, SceneError, KeyError, TypeError, ValueError, AttributeError):
        warnings.warn(
            f"{source}: its grid mapping '{mapping.get('grid_mapping_name')}' is not known; the scene has no CRS.",
            stacklevel=6,
        )
        return None


def _grid_mapping(file: ArrayFile, info: ArrayInfo) -> Mapping[str, Any]:
    wanted = str(find(info.attrs, "grid_mapping") or "spatial_ref").rpartition("/")[2]
    names = (wanted, "spatial_ref", "crs")
    found = {a.name.rpartition("/")[2]: a.attrs for a in file.arrays}
    return next((found[name] for name in names if found.get(name)), {})


def _product_place(file: ArrayFile, place: dict[str, Any]) -> dict[str, Any]:
    """Fill in what products keep under names of their own: ENVI's map info (NEON), an EPSG code."""
    map_info = find(file.attrs, "map info")
    if isinstance(map_info, str) and "transform" not in place:
        from vitreous.scenes.envi import place_of_map_info

        crs, place["transform"] = place_of_map_info(map_info, file.source)
        place.setdefault("crs", crs)
    return {name: value for name, value in place.items() if value is not None}


def epsg(code: float) -> Any:
    """Return the rasterio CRS of an EPSG code, None where there is none."""
    if not 0 < code < 2**31:  # NaN too
        return None
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    try:
        return CRS.from_epsg(int(code))
    except CRSError:
        return None


def _spatial_transform(file: ArrayFile, info: ArrayInfo) -> Any:
    """The transform that GeoZarr's convention ``spatial:`` keeps, None where there is none."""
    from affine import Affine

    name = "spatial:transform"
    values = numbers(find(info.attrs, name)) or numbers(find(file.attrs, name))
    transform = Affine(*values) if values is not None and len(values) == 6 else None
    return transform if transform is not None and transform.determinant else None


def _place_of_pixels(file: ArrayFile, info: ArrayInfo, row: int, column: int) -> dict[str, Any]:
    """The place by a longitude and a latitude for every pixel, where these form an even grid."""
    from affine import Affine

    size = (info.shape[row], info.shape[column])
    images = [
        next(
            (a for a in file.arrays if a.numeric and a.shape == size and is_named(a.name, names)),
            None,
        )
        for names in (_LONGITUDES, _LATITUDES)
    ]
    if None in images or 1 in size:
        return {}
    first, last = slice(0, 1), tuple(slice(n - 1, n) for n in size)
    whole = tuple(slice(0, n) for n in size)
    keys = (((first, whole[1]), (last[0], whole[1])), ((whole[0], first), (whole[0], last[1])))
    lon, lat = (
        [file.read(image.name, key).reshape(-1) for key in edges]
        for image, edges in zip(images, keys, strict=True)
        if image is not None
    )
    x, y = evenly(lon[0]), evenly(lat[0])
    alike = np.array_equal(lon[0], lon[1]) and np.array_equal(lat[0], lat[1])
    if x is None or y is None or x.step is None or y.step is None or not alike:
        if images[0] is None or not _is_beside(images[0], info):
            return {}  # a swath, whose products keep its geolocation in a group of its own
        warnings.warn(
            f"{file.source}: the longitudes and latitudes of its pixels do not form an even grid; the scene has no place.",
            stacklevel=5,
        )
        return {}
    left, top = x.first - x.step / 2, y.first - y.step / 2
    return {"crs": epsg(4326), "transform": Affine(x.step, 0, left, 0, y.step, top)}


def _is_beside(one: ArrayInfo, other: ArrayInfo) -> bool:
    return one.name.rpartition("/")[0] == other.name.rpartition("/")[0]


def _say_stale(stated: Any, real: Any, size: tuple[int, int], source: str) -> None:
    warnings.warn(
        f"{source}: its GeoTransform lies {shift(stated, real, size):.3g} pixels from its x and y coordinates; the "
        "coordinates are used.",
        stacklevel=5,
    )


def _are_degrees(
    x_info: ArrayInfo | None,
    y_info: ArrayInfo | None,
    x: tuple[float, float],
    y: tuple[float, float],
    info: ArrayInfo,
    row: int,
    column: int,
) -> bool:
    """True where coordinates are longitudes and latitudes: CF tells them by name or unit."""
    if x_info is None or y_info is None:
        return False
    named = key_of(x_info.base_name) in _LONGITUDES and key_of(y_info.base_name) in _LATITUDES
    units = [str(find(v.attrs, "units") or "").lower() for v in (x_info, y_info)]
    if not (named or (units[0].startswith("degree") and units[1].startswith("degree"))):
        return False
    last_x = x[0] + x[1] * (info.shape[column] - 1)
    last_y = y[0] + y[1] * (info.shape[row] - 1)
    return max(abs(y[0]), abs(last_y)) <= 90 and max(abs(x[0]), abs(last_x)) <= 360


def gdal_transform(value: Any) -> list[float] | None:
    """Return the six numbers of a GDAL geotransform given as text or list, None if it is none."""
    try:
        values = [float(n) for n in (value.split() if isinstance(value, str) else value or [])]
    except (TypeError, ValueError):
        return None
    usable = len(values) == 6 and np.isfinite(values).all()
    return values if usable and values[1] * values[5] != values[2] * values[4] else None


_KILOMETRES = {"km", "kilometer", "kilometers", "kilometre", "kilometres"}
_LONGITUDES = {"lon", "lons", "longitude", "longitudes", "navlon"}
_LATITUDES = {"lat", "lats", "latitude", "latitudes", "navlat"}
_X_NAMES = {"x", "easting", "xcoordinates", *_LONGITUDES}
_Y_NAMES = {"y", "northing", "ycoordinates", *_LATITUDES}


def _coordinate(
    file: ArrayFile, info: ArrayInfo, axis: int | None, names: set[str]
) -> ArrayInfo | None:
    """The list of coordinates of an axis: by the name of its dimension, else by its own usual name."""
    vectors = [a for a in file.arrays if a.numeric and len(a.shape) == 1 and a.shape[0] > 1]
    if axis is not None and len(info.dims) > axis and info.dims[axis]:
        name = info.dims[axis]
        return next((a for a in vectors if a.name == name or a.base_name == name.lower()), None)
    return next((a for a in vectors if is_named(a.name, names)), None)


def _regular(file: ArrayFile, info: ArrayInfo, crs: Any) -> tuple[float, float] | None:
    """Return start and step of a list of coordinates if it is regular, in metres where it says kilometres."""
    span = evenly(file.read(info.name))
    if span is None or span.step is None:
        warnings.warn(
            f"{file.source}: {info.name} is not evenly spaced; the image has no place by it.",
            stacklevel=5,
        )
        return None
    metres = crs is None or not crs.is_projected or crs.linear_units_factor[1] == 1
    in_km = key_of(str(find(info.attrs, "units") or "")) in _KILOMETRES
    factor = 1000.0 if in_km and metres else 1.0
    return span.first * factor, span.step * factor
