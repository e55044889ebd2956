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
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.errors import SceneError, did_you_mean
from vitreous.scenes.cube import UNITS, to_nanometres

COMMON_HINTS = ("unit", "scale", "nodata", "wavelengths", "wavelength_unit")
TABLE_LIMIT = 8 * 2**20

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
    (b"\x0e\x03\x13\x01", "an HDF4 file", "Convert it to HDF5."),
    (b"EHFA_HEADER_TAG", "an ERDAS Imagine file", "Convert it to GeoTIFF."),
)
_KNOWN = (
    "Known kinds: ENVI (.hdr with its data), GeoTIFF, MATLAB .mat, EMIT and other NetCDF-4/HDF5,"
    " .npy and .npz, Zarr folders, Sentinel-2 products."
)


def open_scene(path: str | Path, **hints: Any) -> xr.DataArray:
    """Open a scene of any known format; nothing is read before a window is asked for.

    Args:
        path: a local file or folder.
        **hints: what the file does not say or says wrongly. Every format takes ``unit`` (``dn``, ``radiance``,
            ``reflectance``), ``scale`` (physical value = stored value x scale), ``nodata``, ``wavelengths`` (a list,
            or a CSV file with a column ``wavelength``) and ``wavelength_unit`` (``nm``, ``um``); the readers' own
            are in their ``open``.

    Returns:
        The scene, see :mod:`vitreous.scenes.cube`.

    Raises:
        SceneError: no such file, none of a known kind, a damaged one, or a hint that does not exist.
    """
    file = local_path(path)
    reader = find_reader(file)
    common = {name: value for name, value in hints.items() if name in COMMON_HINTS}
    own = {name: value for name, value in hints.items() if name not in COMMON_HINTS}
    if "wavelength_unit" in common:
        to_nanometres([], str(common["wavelength_unit"]), "The hint wavelength_unit")
    if "wavelength_unit" in common and "wavelength_unit" in _parameters(reader.open):
        own["wavelength_unit"] = common["wavelength_unit"]
    elif "wavelength_unit" in common and "wavelengths" not in common:
        raise SceneError(
            f"wavelength_unit alone means nothing for {file.name}.", "Pass wavelengths= as well."
        )
    scene: xr.DataArray = call_reader(reader.open, file, own, extra=COMMON_HINTS)
    # Others reopen a scene by its source, maybe from another folder; ENVI names its data, given its header.
    source = file.absolute().parent / Path(scene.attrs["source"]).name
    return _apply(common, scene).assign_attrs(source=str(source))


def local_path(path: str | os.PathLike[str]) -> Path:
    """Return ``path`` if it is a readable, non-empty local file or a folder.

    Raises:
        SceneError: it is an address or GDAL connection string, does not exist, or is empty.
    """
    text = os.fspath(path)
    if text.startswith("/vsi") or re.match(r"[A-Za-z][A-Za-z0-9+._-]+:/", text) or "\0" in text:
        raise SceneError(
            f"{text!r} is no local file.", "Fetch or unpack it first; only local files are read."
        )
    file = Path(text).expanduser()
    try:
        if not file.exists():
            near = [p.name for p in file.parent.iterdir()] if file.parent.is_dir() else []
            advice = did_you_mean(file.name, near) if near else "Check the path."
            raise SceneError(
                f"{file} does not exist.", advice if "Did" in advice else "Check the path."
            )
        if file.is_dir():
            return file
        if not file.is_file():
            raise SceneError(f"{file} is neither a file nor a folder.")
        if file.stat().st_size == 0:
            raise SceneError(f"{file} is empty.", "Fetch it again.")
    except OSError as error:
        raise SceneError(f"{file} cannot be read: {error.strerror}.") from error
    return file


def find_reader(file: Path) -> ModuleType:
    """Return the reader module for a checked path.

    The first bytes win over the suffix, except that a file with an ENVI header beside it is ENVI whatever its
    pixels look like, and MATLAB's and NetCDF's suffixes say which use of HDF5 it is.

    Raises:
        SceneError: no reader knows this kind.
    """
    name = _reader_of_folder(file) if file.is_dir() else _reader_of_file(file)
    return importlib.import_module(f"vitreous.scenes.{name}")


def call_reader(
    function: Callable[..., Any], file: Path, hints: Mapping[str, Any], extra: tuple[str, ...] = ()
) -> Any:
    """Call a reader with hints that it knows.

    Args:
        function: ``open`` or ``open_labels`` of a reader.
        file: a checked path.
        hints: the reader's own.
        extra: hints that its caller handles, for the advice in messages.

    Raises:
        SceneError: an unknown hint, or the operating system refuses the file.
    """
    known = _parameters(function)
    for name in hints:
        if name not in known:
            kind = function.__module__.rpartition(".")[2]
            raise SceneError(
                f"Unknown hint '{name}' for a file of kind {kind}.",
                did_you_mean(name, {*known, *extra}),
            )
    try:
        return function(file, **hints)
    except OSError as error:
        raise SceneError(f"{file} cannot be read: {error.strerror or error}.") from error


def _parameters(function: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(function).parameters) - {"path"}


def _reader_of_folder(folder: Path) -> str:
    from vitreous.scenes import sentinel2

    if any((folder / name).is_file() for name in ("zarr.json", ".zgroup", ".zarray")):
        return "zarr_store"
    if sentinel2.is_product(folder):
        return "sentinel2"
    raise SceneError(
        f"{folder} is a folder, but neither a Zarr store nor a Sentinel-2 product.", _KNOWN
    )


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
    raise SceneError(f"{file} is of no known kind.", _KNOWN)


def _apply(hints: Mapping[str, Any], scene: xr.DataArray) -> xr.DataArray:
    """Overrule what the file says about units, nodata and wavelengths."""
    changes: dict[str, Any] = {}
    if "unit" in hints:
        if hints["unit"] not in UNITS:
            raise SceneError(
                f"Unknown unit '{hints['unit']}'.", did_you_mean(str(hints["unit"]), UNITS)
            )
        changes["unit"] = hints["unit"]
    if "scale" in hints:
        changes["scale"] = number_hint("scale", hints["scale"])
        if not (math.isfinite(changes["scale"]) and changes["scale"] > 0):
            raise SceneError(f"scale is {hints['scale']}.", "It must be a positive number.")
    if "nodata" in hints:
        none = hints["nodata"] is None or str(hints["nodata"]).lower() == "none"
        changes["nodata"] = None if none else number_hint("nodata", hints["nodata"])
    if "wavelengths" in hints:
        centres = _wavelengths(hints["wavelengths"], hints.get("wavelength_unit"))
        if centres.size != scene.sizes["band"]:
            raise SceneError(
                f"There are {centres.size} wavelengths for {scene.sizes['band']} bands.",
                "Give one per band.",
            )
        scene = scene.assign_coords(wavelength=("band", centres))
    return scene.assign_attrs(changes)


def number_hint(name: str, value: Any) -> float:
    """Return the number that a hint gives, also as text.

    Raises:
        SceneError: it is no number.
    """
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise SceneError(f"{name} is '{value}'.", "It must be a number.") from error


def _wavelengths(given: Any, unit: str | None) -> npt.NDArray[np.float64]:
    if isinstance(given, (str, os.PathLike)):
        numbers, stated = _read_table(local_path(given))
        unit = unit or stated
    else:
        try:
            numbers = [float(value) for value in given]
        except (TypeError, ValueError) as error:
            raise SceneError(
                "wavelengths is no list of numbers.", "Give one number per band, or a CSV file."
            ) from error
    centres = to_nanometres(numbers, unit, "The hint wavelengths")
    if not np.all(np.isfinite(centres) & (centres > 0)):
        raise SceneError(
            "There are impossible wavelengths in the hint.", "They must be positive numbers."
        )
    return centres


def _read_table(path: Path) -> tuple[list[float], str | None]:
    """Band centres and their unit from a CSV file: its only column, or the one named for wavelengths."""
    try:
        if path.stat().st_size > TABLE_LIMIT:
            raise SceneError(f"{path} is too large for a list of wavelengths.")
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [[cell.strip() for cell in row] for row in csv.reader(file) if any(row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SceneError(f"{path} cannot be read as CSV: {error}.") from error
    head = [cell.lower() for cell in rows[0]] if rows else []
    named = [k for k, cell in enumerate(head) if re.match("wavelength|cent(er|re)", cell)]
    if len(named) == 1 or len(head) == 1:
        column, body = (named or [0])[0], rows[1:] if named else rows
        unit = next((u for u in ("nm", "um") if re.search(rf"\b{u}\b|_{u}$", head[column])), None)
        try:
            return [float(row[column]) for row in body], unit
        except (ValueError, IndexError) as error:
            raise SceneError(f"{path} has rows without a wavelength ({error}).") from error
    raise SceneError(
        f"{path} has no single column of wavelengths.",
        "Name one column 'wavelength', or keep only one.",
    )


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
    if suffix not in WRITERS:
        raise SceneError(
            f"{path} does not end like a scene that can be written.", f"Use one of {list(WRITERS)}."
        )
    return importlib.import_module(f"vitreous.scenes.{WRITERS[suffix]}")


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
