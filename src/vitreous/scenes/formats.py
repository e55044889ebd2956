"""Which reader opens a path, and the hints that every reader shares.

A path is a local file or folder; its format follows from its suffix and, where that says little or is wrong, from
its first bytes. Readers are imported when they are needed.
"""

from __future__ import annotations

import csv
import importlib
import inspect
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.catalog.lookup import load
from vitreous.catalog.readers import reader_of, writers
from vitreous.errors import SceneError, did_you_mean, listed, shortened
from vitreous.scenes.attributes import number_of, numbers
from vitreous.scenes.cube import UNITS, BandCountError, LazyCube, make_scene, marked_good
from vitreous.scenes.sensors import Sensor, banded
from vitreous.scenes.stacks import Picked
from vitreous.scenes.wavelengths import known_unit, say_odd_widths, spectral, unit_in_name

COMMON_HINTS = (
    *("unit", "scale", "nodata", "wavelengths", "fwhm", "wavelength_unit"),
    *("sensor", "bands", "mask", "mask_values"),
)
TABLE_LIMIT = 8 * 2**20
LONGEST_NAME = 500  # characters of a path in a message

SUFFIXES = {
    ".hdr": "envi",
    ".tif": "geotiff",
    ".tiff": "geotiff",
    ".gtiff": "geotiff",
    ".mat": "matlab",
    ".nc": "emit",
    ".nc4": "emit",
    ".h5": "emit",
    ".hdf5": "emit",
    ".he5": "emit",
    ".npy": "numpy_files",
    ".npz": "numpy_files",
    ".jp2": "sentinel2",
    ".png": "pictures",
    ".jpg": "pictures",
    ".jpeg": "pictures",
}
_CONTENT = (  # first bytes, reader
    (b"ENVI", "envi"),
    (b"II*\0", "geotiff"),
    (b"MM\0*", "geotiff"),
    (b"II+\0", "geotiff"),
    (b"MM\0+", "geotiff"),
    (b"MATLAB ", "matlab"),
    (b"\x89HDF\r\n\x1a\n", "emit"),
    (b"\x93NUMPY", "numpy_files"),
    (b"\x89PNG\r\n\x1a\n", "pictures"),
    (b"\xff\xd8\xff", "pictures"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "sentinel2"),
)
_REFUSED = (  # first bytes, what it is, what to do
    (
        b"<VRTDataset",
        "a virtual raster, which can point at any other file",
        "Open the files behind it.",
    ),
    (
        b"<OGRVRT",
        "a virtual vector file, which can point at any other",
        "Open the files behind it.",
    ),
    (b"CDF\x01", "a netCDF-3 file", "Convert it to netCDF-4."),
    (b"CDF\x02", "a netCDF-3 file", "Convert it to netCDF-4."),
    (
        b"\x0e\x03\x13\x01",
        "an HDF4 file",
        "Convert it to HDF5; of Hyperion take the GeoTIFFs of Level 1T.",
    ),
    (b"EHFA_HEADER_TAG", "an ERDAS Imagine file", "Convert it to GeoTIFF."),
)
_KNOWN = (
    "Supported formats: ENVI (.hdr with its data), GeoTIFF, MATLAB .mat, EMIT and other NetCDF-4/HDF5,"
    " .npy and .npz, PNG, JPEG, Zarr folders; products by their folders (docs/scenes.md); patterns such as B0[2-8].tif."
)


def open_scene(
    path: str | Path | Sequence[str | Path], *, untrusted: bool = False, **hints: Any
) -> xr.DataArray:
    """Open a scene of any known format; nothing is read before a window is asked for.

    Args:
        path: a local file or folder, a list of files with one band each, or a pattern that names them
            (``B0[2-8].tif``, see :mod:`vitreous.scenes.band_files`).
        untrusted: read the file in a process of its own under limits of memory and time, so that whatever it does to a
            library ends with a message (:mod:`vitreous.scenes.apart`).
        **hints: what the file does not say or says wrongly; they replace what it says before that is looked at. Every
            format takes ``unit`` (``dn``, ``radiance``, ``reflectance``), ``scale`` (physical value = stored value x
            scale), ``nodata``, ``wavelengths`` and ``fwhm`` (lists, or a CSV file with a column ``wavelength``),
            ``wavelength_unit`` (``nm``, ``um``), ``sensor`` (``sentinel2a``: names, centres and widths of a scene with as
            many bands, see :mod:`vitreous.scenes.sensors`; ``sentinel2a:B02,B03`` for some of them), ``bands`` (which to
            keep, by number from 1 on or by name: ``1-10,15``), ``mask`` (an image of clouds and the like, see :mod:`vitreous.scenes.masks`) and ``mask_values``; the
            readers' own are in their ``open``.

    Returns:
        The scene, see :mod:`vitreous.scenes.cube`.

    Raises:
        SceneError: no such file, none of a known kind, a damaged one, or a hint that does not exist.
    """
    if untrusted:
        from vitreous.scenes.apart import open_apart

        return open_apart(path, hints)
    file, reader = _reader_of(path)
    common = {name: value for name, value in hints.items() if name in COMMON_HINTS}
    own = {name: value for name, value in hints.items() if name not in COMMON_HINTS}
    if isinstance(own.get("variable"), (list, tuple)):  # one image per band
        own["variable"] = ",".join(map(str, own["variable"]))
    if "wavelength_unit" in common:
        known_unit(str(common["wavelength_unit"]))
    if "wavelength_unit" in common and "wavelength_unit" in _parameters(reader.open):
        own["wavelength_unit"] = common["wavelength_unit"]
    elif "wavelength_unit" in common and "wavelengths" not in common:
        raise SceneError(
            f"wavelength_unit alone has no effect for {file.name}.", "Pass wavelengths= as well."
        )
    if "mask_values" in common and "mask" not in common:
        raise SceneError("mask_values alone has no effect.", "Pass mask= as well.")
    known = _known_facts(common, file)
    try:
        scene: xr.DataArray = call_reader(reader.open, file, own, known, extra=COMMON_HINTS)
    except BandCountError as error:
        if "sensor" not in common:
            raise
        raise _of_another_sensor(error, banded(common["sensor"])) from error
    if "wavelength" in scene.coords and "fwhm" in scene.coords:
        say_odd_widths(scene["fwhm"].values, scene["wavelength"].values, file.name)
    # Others reopen a scene by its source, maybe from another folder; ENVI names its data, given its header.
    source = file.absolute().parent / Path(scene.attrs["source"]).name
    scene = scene.assign_attrs(source=str(source))
    if "bands" in common:
        scene = _with_bands(scene, common["bands"])
    if "mask" in common:
        from vitreous.scenes.masks import with_mask

        scene = with_mask(scene, common["mask"], common.get("mask_values"), file)
    return scene


def _reader_of(path: str | Path | Sequence[str | Path]) -> tuple[Path, ModuleType]:
    """Return the path, maybe a pattern for several files, and the module that reads it."""
    from vitreous.scenes import band_files

    if not isinstance(path, (str, os.PathLike)):
        path = band_files.pattern_of(path)
    if not band_files.is_pattern(path):
        file = local_path(path)
        return file, find_reader(file)
    found = band_files.matching(path)
    if len(found) == 1:
        return _reader_of(found[0])
    return Path(path).expanduser(), band_files


def local_path(path: str | os.PathLike[str]) -> Path:
    """Return ``path`` if it is a readable, non-empty local file or a folder.

    Raises:
        SceneError: it is an address or GDAL connection string, does not exist, or is empty.
    """
    text = os.fspath(path)
    if text.startswith("/vsi") or re.match(r"[A-Za-z][A-Za-z0-9+._-]+:/", text) or "\0" in text:
        raise SceneError(
            f"{text!r} is not a local file.",
            "Download or unpack it first; only local files are supported.",
        )
    file = Path(text).expanduser()
    name = shortened(str(file), LONGEST_NAME)
    try:
        if not file.exists():
            near = [p.name for p in file.parent.iterdir()] if file.parent.is_dir() else []
            advice = did_you_mean(file.name, near) if near else "Check the path."
            raise SceneError(
                f"{name} does not exist.", advice if "Did" in advice else "Check the path."
            )
        if file.is_dir():
            return file
        if not file.is_file():
            raise SceneError(f"{name} is neither a file nor a folder.")
        if file.stat().st_size == 0:
            raise SceneError(f"{name} is empty.", "Download it again.")
    except OSError as error:
        raise SceneError(f"{name} cannot be read: {error.strerror}.") from error
    return file


def find_reader(file: Path, products: bool = True) -> ModuleType:
    """Return the reader module for a checked path.

    The first bytes win over the suffix, except that a file with an ENVI header beside it is ENVI whatever its
    pixels look like, and MATLAB's and NetCDF's suffixes say which use of HDF5 it is.

    Args:
        file: the path.
        products: False asks for the reader of the format, whatever product the file is a part of.

    Raises:
        SceneError: no reader knows this kind.
    """
    if products and (other := reader_of(file)) is not None:
        return other
    name = _product_of(file) if products else None
    name = name or (_reader_of_folder(file) if file.is_dir() else _reader_of_file(file))
    return importlib.import_module(f"vitreous.scenes.{name}")


def call_reader(
    function: Callable[..., Any],
    file: Path,
    hints: Mapping[str, Any],
    facts: Mapping[str, Any] | None = None,
    extra: tuple[str, ...] = (),
) -> Any:
    """Call a reader with hints that it knows.

    Args:
        function: ``open`` or ``open_labels`` of a reader.
        file: a checked path.
        hints: the reader's own.
        facts: arguments of :func:`make_scene` that win over what the file says.
        extra: hints that its caller handles, for the advice in messages.

    Raises:
        SceneError: an unknown hint, or the operating system refuses the file.
    """
    known = _parameters(function)
    for name in hints:
        if name not in known:
            kind = function.__module__.rpartition(".")[2]
            raise SceneError(
                f"Unknown hint '{name}' for {kind} files.",
                did_you_mean(name, {*known, *extra}),
            )
    try:
        return function(file, **hints, **(facts or {}))
    except OSError as error:
        raise SceneError(f"{file} cannot be read: {error.strerror or error}.") from error


def _parameters(function: Callable[..., Any]) -> set[str]:
    every = inspect.signature(function).parameters.values()
    return {p.name for p in every if p.kind is not inspect.Parameter.VAR_KEYWORD} - {"path"}


def _product_of(path: Path) -> str | None:
    """The product that a folder or file belongs to by its name and what lies beside it."""
    from vitreous.scenes import dlr, hyperion, landsat, planet, sentinel1, sentinel2

    if _is_zarr(path):  # maybe a folder of very many files
        return None
    readers: tuple[ModuleType, ...] = (landsat, dlr, planet)
    if path.is_dir():
        readers += (hyperion, sentinel2, sentinel1)
    found = (reader for reader in readers if reader.is_product(path))
    return next((reader.__name__.rpartition(".")[2] for reader in found), None)


def _is_zarr(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("zarr.json", ".zgroup", ".zarray"))


def _reader_of_folder(folder: Path) -> str:
    if _is_zarr(folder):
        return "zarr_store"
    raise SceneError(f"{folder} is a folder, but no Zarr store or product that is known.", _KNOWN)


def _reader_of_file(file: Path) -> str:
    from vitreous.scenes import envi

    by_suffix = SUFFIXES.get(file.suffix.lower())
    try:
        with file.open("rb") as handle:
            head = handle.read(64)
    except OSError as error:
        raise SceneError(f"{file} cannot be read: {error.strerror}.") from error
    if by_suffix is None and envi.has_header(file):
        return "envi"
    for magic, what, fix in _REFUSED:
        if head.lstrip().startswith(magic):
            raise SceneError(f"{file} is {what}.", fix)
    by_content = next((reader for magic, reader in _CONTENT if head.startswith(magic)), None)
    if by_suffix == "matlab" and by_content == "emit":
        return "matlab"
    found = by_content or by_suffix
    if found is not None:
        return found
    if file.suffix.lower() in envi.DATA_SUFFIXES:
        return "envi"  # its complaint about the missing header is the right one
    raise SceneError(f"{file} has an unknown format.", _KNOWN)


def _known_facts(hints: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Return the hints that say what a file should, checked and typed, as arguments of :func:`make_scene`."""
    facts: dict[str, Any] = {}
    if "unit" in hints:
        if hints["unit"] not in UNITS:
            raise SceneError(
                f"Unknown unit '{hints['unit']}'.", did_you_mean(str(hints["unit"]), UNITS)
            )
        facts["unit"] = hints["unit"]
    if "scale" in hints:
        facts["scale"] = number_of("scale", hints["scale"])
        if not (math.isfinite(facts["scale"]) and facts["scale"] > 0):
            raise SceneError(f"scale is {hints['scale']}.", "It must be a positive number.")
    if "nodata" in hints:
        none = hints["nodata"] is None or str(hints["nodata"]).lower() == "none"
        facts["nodata"] = None if none else number_of("nodata", hints["nodata"])
    of_sensor = banded(hints["sensor"]).facts() if "sensor" in hints else {}
    return {**facts, **of_sensor, **_spectral_hints(hints, file)}


def _of_another_sensor(error: BandCountError, named: Sensor) -> SceneError:
    first = ",".join(band.name for band in named.bands[: min(3, error.bands)])
    return SceneError(
        f"{error.source} has {error.bands} bands, but {named.title} has {len(named.bands)}:"
        f" {listed([band.name for band in named.bands])}.",
        f"Name those that the file has, in its order: sensor={named.name}:{first},...",
    )


def _spectral_hints(hints: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Band centres and widths in nm from the hints, or from the tables that they name."""
    tables = [
        read_table(_beside(hints[name], file), name)
        if name in hints and _is_table(hints[name])
        else None
        for name in ("wavelengths", "fwhm")
    ]
    given = [
        _list_hint(name, hints[name]) if name in hints and not _is_table(hints[name]) else None
        for name in ("wavelengths", "fwhm")
    ]
    unit = hints.get("wavelength_unit")
    stated = next((table.unit for table in tables if table), None)
    centres = tables[0].centres if tables[0] else given[0]
    widths = tables[1].widths if tables[1] else given[1]
    if widths is None and tables[0]:
        widths = tables[0].widths
    if centres is None and widths is None:
        return {}
    numbers_given = np.array([*(centres or ()), *(widths or ())])
    if not np.all(np.isfinite(numbers_given) & (numbers_given >= 0)) or not numbers_given.any():
        raise SceneError("The given wavelengths are invalid.", "They must be positive numbers.")
    found = spectral(
        centres, widths, unit or stated, "The hint wavelengths", certain=unit is not None
    )
    facts = {"wavelengths": found.centres, "fwhm": found.widths}
    return {name: value for name, value in facts.items() if value is not None}


def _is_table(given: Any) -> bool:
    """True for the name of a file: ``450,550`` is a list."""
    return isinstance(given, (str, os.PathLike)) and numbers(os.fspath(given)) is None


def _beside(given: Any, file: Path) -> Path:
    """Return a table named by the user: from the current folder, or else from that of the scene."""
    path = Path(given).expanduser()
    there = file.absolute().parent / path
    return there if not path.exists() and there.is_file() else local_path(given)


def _list_hint(name: str, given: Any) -> list[float]:
    if isinstance(given, (str, os.PathLike)):
        return numbers(os.fspath(given)) or []
    try:
        return [float(value) for value in given]
    except (TypeError, ValueError) as error:
        raise SceneError(
            f"{name} is not a list of numbers.", "Give one number per band, or a CSV file."
        ) from error


class BandTable(NamedTuple):
    """Band centres, widths and the unit that their column names."""

    centres: list[float]
    widths: list[float] | None
    unit: str | None


def csv_rows(path: Path) -> list[list[str]]:
    """Return the cells of a CSV file.

    Columns are divided by commas, semicolons or tabs; beside semicolons and tabs commas may be decimal points, and
    are points in what is returned.

    Raises:
        SceneError: it cannot be read, or is too large for a table of bands.
    """
    try:
        if path.stat().st_size > TABLE_LIMIT:
            raise SceneError(f"{path} is too large for a table of bands.")
        text = path.read_text(encoding="utf-8-sig")
        first = text.partition("\n")[0]
        divider = next((mark for mark in (";", "\t") if mark in first), ",")
        cells = [row for row in csv.reader(text.splitlines(), delimiter=divider) if any(row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SceneError(f"{path} cannot be read as CSV: {error}.") from error
    point = "," if divider == "," else "."
    return [[cell.strip().replace(",", point) for cell in row] for row in cells]


def read_table(path: Path, wanted: str) -> BandTable:
    """Return band centres, widths and their unit from a CSV file: its only column, or those named so.

    Args:
        path: the file.
        wanted: ``wavelengths``, or ``fwhm``, of which there must be a column then.

    Raises:
        SceneError: it cannot be read, or has no single column of wavelengths.
    """
    rows = csv_rows(path)
    head = [cell.lower() for cell in rows[0]] if rows else []
    named = [k for k, cell in enumerate(head) if re.match("wavelength|cent(er|re)|wl|wvl", cell)]
    spans = [k for k, cell in enumerate(head) if re.match("fwhm|(band)?width", cell)]
    if not (len(named) == 1 or len(head) == 1) or (wanted == "fwhm" and len(spans) != 1):
        raise SceneError(
            f"{path} has no single column of wavelengths.",
            "Name one column 'wavelength', or keep a single column.",
        )
    column, body = (named or [0])[0], rows[1:] if named else rows

    def values(k: int) -> list[float]:
        try:
            return [float(row[k]) for row in body]
        except (ValueError, IndexError) as error:
            raise SceneError(f"{path} has rows without a wavelength ({error}).") from error

    unit = unit_in_name(head[column]) if named else None
    return BandTable(values(column), values(spans[0]) if len(spans) == 1 else None, unit)


def _with_bands(scene: xr.DataArray, given: Any) -> xr.DataArray:
    """Keep some bands of a scene, in the given order, by number from 1 on or by name."""
    index = _band_indices(scene, given)
    if not marked_good(scene)[index].any():  # the user names them all the same
        scene = scene.drop_vars("good_band")
    steps = set(np.diff(index))
    if steps <= {1}:
        return scene.isel(band=slice(int(index[0]), int(index[-1]) + 1))
    # Not isel: of a mapped file it would load everything at once.
    cube = LazyCube((index.size, *scene.shape[1:]), scene.dtype, Picked(scene.variable, index))
    picked = make_scene(cube, source=str(scene.attrs["source"]))
    coordinates = {
        name: ("band", column.values[index])
        for name, column in scene.coords.items()
        if column.dims == ("band",)
    }
    place = {name: c for name, c in scene.coords.items() if "band" not in c.dims}
    return picked.assign_coords({**place, **coordinates}).assign_attrs(scene.attrs)


def _band_indices(scene: xr.DataArray, given: Any) -> npt.NDArray[np.int64]:
    names = [str(n) for n in scene["band_name"].values] if "band_name" in scene.coords else []
    words = given if isinstance(given, (list, tuple)) else re.split(r"[,;\s]+", str(given).strip())
    count = scene.sizes["band"]
    index: list[int] = []
    for word in (str(word) for word in words):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", word)
        if word in names:
            index.append(names.index(word))
        elif match is not None:
            first, last = int(match[1]), int(match[2] or match[1])
            if not 1 <= first <= last <= count:
                raise SceneError(
                    f"bands={word} is not within the scene's {count} bands.",
                    "Bands are counted from 1.",
                )
            index += range(first - 1, last)
        else:
            advice = did_you_mean(word, names) if names else "Write numbers from 1, e.g. 1-10,15."
            raise SceneError(f"The scene has no band '{word}'.", advice)
    if len(set(index)) < len(index):
        raise SceneError(f"bands={given} lists a band twice.", "List each band once.")
    return np.array(index, dtype=np.int64)


WRITERS = {
    ".tif": "geotiff",
    ".tiff": "geotiff",
    ".hdr": "envi",
    ".img": "envi",
    ".dat": "envi",
    ".npy": "numpy_files",
    ".zarr": "zarr_store",
}


def find_writer(path: str | Path) -> ModuleType:
    """Return the module that writes scenes of the kind that a file's name ends for.

    Raises:
        SceneError: scenes are not written so.
    """
    suffix = Path(path).suffix.lower()
    ours = {known: f"vitreous.scenes.{name}" for known, name in WRITERS.items()}
    known = {**writers(), **ours}
    if suffix not in known:
        raise SceneError(
            f"{path} does not have the suffix of a writable format.", f"Use one of {list(known)}."
        )
    module: ModuleType = load(known[suffix])
    return module


def write_scene(scene: xr.DataArray, path: str | Path) -> None:
    """Write a scene with everything that is known of it, in strips of rows, so that it may be larger than memory.

    Args:
        scene: the scene.
        path: the file; its ending decides: ``.tif`` (Cloud Optimized GeoTIFF), ``.hdr``, ``.img``, ``.dat``
            (ENVI), ``.npy`` (with a sidecar) or ``.zarr``.

    Raises:
        SceneError: scenes are not written so, or this one cannot be.
        VitreousError: the disk is full or the folder cannot be written.
    """
    find_writer(path).write(scene, Path(path))
