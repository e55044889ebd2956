"""NumPy scenes and labels: NPY files, read in windows, and NPZ archives.

Formats: NEP 1 and ``numpy.lib.format`` for NPY; NPZ is a ZIP archive of NPY files. Both can carry pickled objects,
which run code when they are read: those are always refused.

An NPY file knows no wavelengths. :func:`write` keeps what the scene knows in ``<name>.json`` beside it, and
:func:`open` reads it back. An NPZ file may hold ``wavelengths``, ``fwhm`` and ``good_band`` beside its cube.
"""

from __future__ import annotations

import math
import zipfile
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vitreous.errors import SceneError, VitreousError
from vitreous.files import atomic_path, read_json, write_json
from vitreous.scenes import arrays
from vitreous.scenes.arrays import (
    DEFLATE_RATIO,
    MAX_ARRAYS,
    MAX_WORDS,
    ArrayInfo,
    Key,
    check_memory,
    plain,
)
from vitreous.scenes.cube import LabelImage, check_bytes, georeference

if TYPE_CHECKING:
    from collections.abc import Iterator

_STRIP = 64 * 2**20  # bytes written at a time
_WORD = 2**16  # bytes of a member that may be a single word
_NPY_HEADER = 10_000  # longer headers only occur in structured arrays


class Sidecar(BaseModel):
    """What ``<name>.json`` says about the scene in ``<name>.npy``."""

    model_config = ConfigDict(extra="ignore", strict=True)

    format: Literal["vitreous scene"] = "vitreous scene"
    axis_order: Literal["yxb", "byx", "ybx"] = "yxb"
    wavelengths: list[float] | None = None
    fwhm: list[float] | None = None
    good_band: list[bool] | None = None
    band_names: list[str] | None = None
    unit: str = "dn"
    scale: float = 1.0
    nodata: float | Literal["nan"] | None = None
    crs: str | None = None
    transform: list[float] | None = Field(default=None, min_length=6, max_length=6)


def open(  # the name that every reader has
    path: Path,
    *,
    variable: str | None = None,
    axis_order: str | None = None,
    wavelength_unit: str | None = None,
    **known: Any,
) -> xr.DataArray:
    """Open the cube of an NPY or NPZ file.

    Args:
        path: the file.
        variable: NPZ only: the array's name; needed only where several could be meant.
        axis_order: ``yxb``, ``byx`` or ``ybx``; needed only where the shape is ambiguous.
        wavelength_unit: ``nm`` or ``um``, instead of what the file says or leaves open.
        **known: arguments of :func:`make_scene` that win over what the file says.

    Raises:
        SceneError: the file is damaged, holds objects, holds no cube or several, or its axes are ambiguous.
    """
    if zipfile.is_zipfile(path):
        return arrays.open_cube(
            NpzFile(path),
            variable=variable,
            axis_order=axis_order,
            wavelength_unit=wavelength_unit,
            known=known,
        )
    file = NpyFile(path)
    sidecar = _read_sidecar(path)
    if sidecar is not None:
        known = {**_facts(sidecar, file.source), **known}
        axis_order = axis_order or sidecar.axis_order
    return arrays.open_cube(
        file,
        variable=variable,
        axis_order=axis_order,
        wavelength_unit=wavelength_unit,
        known=known,
    )


def open_labels(path: Path, *, variable: str | None = None) -> LabelImage:
    """Return the label image of an NPY or NPZ file.

    Args:
        path: the file.
        variable: NPZ only: the array's name; needed only where several could be meant.

    Raises:
        SceneError: the file is damaged, holds objects, or holds no image or several.
    """
    file = NpzFile(path) if zipfile.is_zipfile(path) else NpyFile(path)
    return arrays.open_label_image(file, variable=variable)


def write(scene: xr.DataArray, path: Path) -> None:
    """Write a scene's stored values as NPY, ``(rows, columns, bands)``, and what it knows as JSON beside it.

    The values are streamed in strips of rows; both files appear complete or not at all.

    Args:
        scene: the scene.
        path: the file, ending in ``.npy``.

    Raises:
        VitreousError: the disk is full or the folder cannot be written.
    """
    bands, height, width = scene.shape
    dtype = scene.dtype
    rows = max(1, _STRIP // (bands * width * dtype.itemsize))
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": (height, width, bands),
    }
    path = Path(path)
    with atomic_path(path) as values, atomic_path(_sidecar_path(path)) as sidecar:
        write_json(sidecar, _describe(scene).model_dump())
        with values.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for top in range(0, height, rows):
                strip = np.asarray(scene[:, top : top + rows].values, dtype=dtype)
                file.write(np.ascontiguousarray(strip.transpose(1, 2, 0)).data)


class NpyFile:
    """An NPY file as a file of one array.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.source = path.name

    @cached_property
    def arrays(self) -> list[ArrayInfo]:
        """The one array, its header checked against the size of the file."""
        with self.path.open("rb") as file:
            info = _read_header(file, self.path.stem, self.source)
            start = file.tell()
        if not info.note:
            arithmetic = f"{start} + {' x '.join(map(str, info.shape))} x {info.dtype.itemsize}"
            check_bytes(start + info.nbytes, self.path.stat().st_size, self.source, arithmetic)
        return [info]

    @property
    def attrs(self) -> dict[str, Any]:
        """Nothing: the format has none."""
        return {}

    def read(self, name: str, key: Key | None = None) -> npt.NDArray[Any]:
        """Return the array, or the part that ``key`` cuts out."""
        values = np.load(self.path, mmap_mode="r", allow_pickle=False)
        return np.array(values if key is None else values[key])


class NpzFile:
    """An NPZ archive; each array is loaded whole when it is first read.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.source = path.name
        self._loaded: dict[str, npt.NDArray[Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": {}}  # other processes load for themselves

    @cached_property
    def arrays(self) -> list[ArrayInfo]:
        """What the archive holds, from its directory and the heads of its members."""
        with self._opened() as archive:
            members = [m for m in archive.infolist() if m.filename.endswith(".npy")]
            if len(members) > MAX_ARRAYS:
                raise SceneError(f"{self.source} has {len(members)} members, too many for a scene.")
            names = [member.filename for member in members]
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise SceneError(
                    f"{self.source} holds the member '{twice}' twice.",
                    "Write it again with numpy.savez, each array once.",
                )
            return [self._describe(archive, member) for member in members]

    def read(self, name: str, key: Key | None = None) -> npt.NDArray[Any]:
        """Return all of an array, or the part that ``key`` cuts out."""
        if name not in self._loaded:
            info = arrays.find_array(self, name)
            check_memory(info.nbytes, f"{self.source}: {info}")
            with self._opened() as archive, archive.open(f"{name}.npy") as member:
                self._loaded[name] = np.lib.format.read_array(member, allow_pickle=False)
        values = self._loaded[name]
        return values if key is None else values[key]

    @cached_property
    def attrs(self) -> dict[str, Any]:
        """Single numbers and words among the members, such as ``nodata`` or ``crs_wkt``, and lists of words."""
        with self._opened() as archive:
            return {
                info.name: plain(self.read(info.name))
                for info in (
                    self._describe(archive, m)
                    for m in archive.infolist()
                    if m.filename.endswith(".npy") and m.file_size < _WORD
                )
                if (info.shape == () and info.dtype.kind in "iufbU")
                or (len(info.shape) == 1 and info.dtype.kind == "U" and info.shape[0] <= MAX_WORDS)
            }

    @contextmanager
    def _opened(self) -> Iterator[zipfile.ZipFile]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                yield archive
        except (VitreousError, MemoryError):
            raise
        except Exception as error:  # zipfile and zlib raise many kinds for damaged bytes
            raise SceneError(
                f"{self.source} cannot be read as an NPZ archive: {str(error)[:200]}.",
                "The file is damaged.",
            ) from error

    def _describe(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> ArrayInfo:
        name = member.filename.removesuffix(".npy")
        if member.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            return ArrayInfo(
                name, (), np.dtype(object), note="compressed in a way that NumPy never uses"
            )
        with archive.open(member) as file:
            info = _read_header(file, name, self.source)
            start = file.tell()
        if not info.note:
            # The directory's sizes can lie too, but no deflate stream expands further than this.
            announced = min(member.file_size, DEFLATE_RATIO * (member.compress_size + 1))
            arithmetic = f"{start} + {' x '.join(map(str, info.shape))} x {info.dtype.itemsize}"
            check_bytes(start + info.nbytes, announced, f"{self.source}: {name}", arithmetic)
        return info


def _read_header(file: IO[bytes], name: str, source: str) -> ArrayInfo:
    """Read the head of an NPY stream; what is no plain array of numbers gets a note."""
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        version = np.lib.format.read_magic(file)
        if (
            version not in readers
        ):  # version 3 exists for field names, so for structured arrays only
            return ArrayInfo(
                name, (), np.dtype(object), note=f"NPY version {version[0]}.{version[1]}"
            )
        shape, _, dtype = readers[version](file, max_header_size=_NPY_HEADER)
    except MemoryError:
        raise
    except Exception as error:  # numpy's parser raises many kinds for damaged bytes
        raise SceneError(
            f"{source} is not an NPY file, or its header is damaged: {str(error)[:200]}.",
            "Save it again with numpy.save or numpy.savez.",
        ) from error
    if any(n < 0 for n in shape):
        raise SceneError(f"{source}: {name} has the shape {shape}.", "The header is damaged.")
    if dtype.hasobject:
        return ArrayInfo(name, shape, np.dtype(object), note="pickled objects, which may run code")
    note = "" if dtype.kind in "iufb" else f"{dtype} values"
    return ArrayInfo(name, tuple(shape), dtype, note=note)


def _sidecar_path(path: Path) -> Path:
    return path.with_suffix(".json")


def _read_sidecar(path: Path) -> Sidecar | None:
    """Return what is known about the scene in ``path``; None if a JSON file beside it is not ours."""
    beside = _sidecar_path(path)
    if not beside.is_file():
        return None
    try:
        content = read_json(beside)
    except VitreousError as error:
        raise SceneError(
            error.problem, f"Repair or remove it; it describes {path.name}."
        ) from error
    if not isinstance(content, dict) or content.get("format") != Sidecar().format:
        return None
    try:
        return Sidecar.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SceneError(
            f"{beside.name} has a wrong value at '{where}': {first['msg']}.",
            f"Repair or remove it; it describes {path.name}.",
        ) from error


def _describe(scene: xr.DataArray) -> Sidecar:
    def column(name: str) -> list[Any] | None:
        return scene[name].values.tolist() if name in scene.coords else None

    nodata = scene.attrs.get("nodata")
    crs, transform = georeference(scene)
    centres = column("wavelength")
    return Sidecar(
        # JSON has no NaN; 0 stands for a band that is not used.
        wavelengths=None if centres is None else [0.0 if nm != nm else nm for nm in centres],
        fwhm=column("fwhm"),
        good_band=column("good_band"),
        band_names=column("band_name"),
        unit=scene.attrs.get("unit", "dn"),
        scale=float(scene.attrs.get("scale", 1.0)),
        nodata=None if nodata is None else "nan" if math.isnan(nodata) else float(nodata),
        crs=None if crs is None else crs.to_wkt(),
        transform=None if transform is None else list(transform)[:6],
    )


def _facts(sidecar: Sidecar, source: str) -> dict[str, Any]:
    """Return the sidecar as arguments for :func:`make_scene`."""
    from affine import Affine

    return {
        **sidecar.model_dump(exclude={"format", "axis_order", "crs", "transform", "nodata"}),
        "nodata": float("nan") if sidecar.nodata == "nan" else sidecar.nodata,
        "crs": None if sidecar.crs is None else arrays.parse_crs(sidecar.crs, source),
        "transform": None if sidecar.transform is None else Affine(*sidecar.transform),
    }
