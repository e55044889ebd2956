"""MATLAB scenes and labels: MAT files of version 5 to 7 and of version 7.3.

Formats: "MAT-File Format" (The MathWorks, R2023) for version 5; 7.3 is HDF5 with reversed axes. The elements of a
version-5 file are checked here, against each other and against the size of the file, before scipy may read one.
Such a file is compressed as a whole, so the cube is loaded on its first read; 7.3 is read in windows.

Nothing but plain numeric arrays is read: structs, cells, objects, sparse matrices and functions are refused.
Coordinates hidden in a struct (an ENVI header kept as text) are not used: nothing says that they belong to the
cube beside them.
"""

from __future__ import annotations

import io
import math
import re
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.errors import SceneError
from vitreous.scenes import arrays
from vitreous.scenes.arrays import (
    DEFLATE_RATIO,
    MAX_ARRAYS,
    ArrayFile,
    ArrayInfo,
    Key,
    check_memory,
    plain,
)
from vitreous.scenes.cube import LabelImage
from vitreous.scenes.hdf5 import Hdf5File
from vitreous.scenes.image_variables import several_names

_HEADER = 128
_PREFIX = 4096  # bytes of a variable that surely contain its flags, sizes, name and data tag
_COMPRESSED, _MATRIX = 15, 14
_STORED = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
}
_NUMERIC_CLASSES = range(6, 16)
_OTHER_CLASSES = {
    1: "a cell array",
    2: "a struct",
    3: "an object",
    4: "text",
    5: "a sparse matrix",
    16: "a function handle",
}
_OPAQUE = 17
_ROWS = {"nrow", "nrows", "rows", "height", "lines"}
_COLUMNS = {"ncol", "ncols", "cols", "columns", "width", "samples"}


def open(  # the name that every reader has
    path: Path,
    *,
    variable: str | None = None,
    axis_order: str | None = None,
    wavelength_unit: str | None = None,
    shape: Sequence[int] | str | None = None,
    **known: Any,
) -> xr.DataArray:
    """Open the cube of a MAT file.

    Args:
        path: the file.
        variable: the array's name; needed only where several could be meant.
        axis_order: ``yxb`` or ``byx``; needed only where the shape is ambiguous (see ``arrays.find_axes``).
        wavelength_unit: ``nm`` or ``um``, instead of what the file says or leaves open.
        shape: rows and columns (also as text, ``100,120``) of a ``(bands, pixels)`` matrix whose file has no ``nRow`` and ``nCol``; its pixels
            run down the columns, as MATLAB stores images.
        **known: arguments of :func:`make_scene` that win over what the file says.

    Raises:
        SceneError: the file is damaged, holds no cube or several, or its axes are ambiguous.
    """
    file = _open_file(path)
    folded = _fold(file, variable, _parse_shape(shape))
    if folded is not None:
        return arrays.open_cube(
            folded,
            variable=folded.matrix.name,
            axis_order="yxb",
            wavelength_unit=wavelength_unit,
            known=known,
        )
    return arrays.open_cube(
        file,
        variable=variable,
        axis_order=axis_order,
        wavelength_unit=wavelength_unit,
        known=known,
    )


def open_labels(path: Path, *, variable: str | None = None) -> LabelImage:
    """Return the label image of a MAT file.

    Args:
        path: the file.
        variable: the array's name; needed only where several could be meant.

    Raises:
        SceneError: the file is damaged, or holds no image or several.
    """
    return arrays.open_label_image(_open_file(path), variable=variable)


def _open_file(path: Path) -> ArrayFile:
    import h5py

    return Matlab73File(path) if h5py.is_hdf5(path) else Matlab5File(path)


class Matlab73File(Hdf5File):
    """A version-7.3 file, its axes in MATLAB's order.

    MATLAB writes a file's axes in reverse, and marks every variable with its class. What has no such mark in a file
    without MATLAB's head was written by something else (h5py), and its axes are as they are.
    """

    @cached_property
    def _by_matlab(self) -> bool:
        with self.path.open("rb") as file:
            return file.read(10) == b"MATLAB 7.3"

    @cached_property
    def _turned(self) -> dict[str, bool]:
        return {a.name: a.matlab for a in self.arrays}

    @cached_property
    def arrays(self) -> list[ArrayInfo]:
        """The file's variables."""
        return [a for a in super().arrays if not a.name.startswith("#")]

    def describe(self, name: str, dataset: Any) -> ArrayInfo:
        """Return what is known about one variable."""
        info = super().describe(name, dataset)
        kind = info.attrs.get("MATLAB_class", "")
        note = info.note
        if kind in {"char", "cell", "struct", "function_handle"} or "MATLAB_empty" in info.attrs:
            note = f"MATLAB {kind}"
        if "/" in name:  # fields of a struct and the parts of a sparse matrix are no variables
            note = "inside a struct"
        if not kind and not self._by_matlab:
            return replace(info, note=note)
        return replace(info, shape=info.shape[::-1], dims=(), note=note, matlab=True)

    def read(self, name: str, key: Key | None = None) -> npt.NDArray[Any]:
        """Return all of a variable, or the part that ``key`` cuts out."""
        if not self._turned.get(name, False):
            return super().read(name, key)
        return super().read(name, None if key is None else key[::-1]).T


class Matlab5File:
    """A version-5 file; each variable is loaded whole when it is first read.

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
    def attrs(self) -> dict[str, Any]:
        """Single numbers among the variables, such as ``nodata``."""
        single = (a for a in self.arrays if a.numeric and math.prod(a.shape) == 1)
        return {info.name: plain(self.read(info.name)) for info in single}

    @cached_property
    def arrays(self) -> list[ArrayInfo]:
        """What the file holds, from the heads of its elements."""
        # Functions leave an unnamed one.
        return [replace(info, matlab=True) for info, _, _ in self._elements if info.name]

    def read(self, name: str, key: Key | None = None) -> npt.NDArray[Any]:
        """Return all of a variable, or the part that ``key`` cuts out."""
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        values = self._loaded[name]
        return values if key is None else values[key]

    @cached_property
    def _elements(self) -> list[tuple[ArrayInfo, int, int]]:
        return list(_scan(self.path))

    def _load(self, name: str) -> npt.NDArray[Any]:
        import scipy.io

        info = arrays.find_array(self, name)
        check_memory(info.nbytes, f"{self.source}: {info}")
        try:
            # scipy gets nothing but the element that has been checked, behind a header of our own.
            values = scipy.io.loadmat(io.BytesIO(self._element_as_file(name)))[name]
        except MemoryError:
            raise
        except Exception as error:  # scipy raises many kinds for damaged bytes
            raise SceneError(
                f"{self.source}: the variable '{name}' cannot be read: {str(error)[:200]}.",
                "The file is damaged.",
            ) from error
        if (
            not isinstance(values, np.ndarray)
            or values.shape != info.shape
            or values.dtype.kind not in "iufb"
        ):
            raise SceneError(f"{self.source}: the variable '{name}' does not match its header.")
        return values.astype(info.dtype, copy=False)

    def _element_as_file(self, name: str) -> bytes:
        start, size = next(
            (start, size) for info, start, size in self._elements if info.name == name
        )
        with self.path.open("rb") as file:
            file.seek(_HEADER - 4)
            version_and_order = file.read(4)
            file.seek(start)
            return b"MATLAB 5.0 MAT-file".ljust(_HEADER - 4) + version_and_order + file.read(size)


@dataclass(frozen=True)
class _Folded:
    """A file seen as the one cube that folding its ``(bands, pixels)`` matrix gives."""

    file: ArrayFile
    matrix: ArrayInfo
    rows: int
    columns: int
    pixel_axis: int

    @property
    def source(self) -> str:
        return self.file.source

    @property
    def attrs(self) -> Mapping[str, Any]:
        return self.file.attrs

    @property
    def arrays(self) -> list[ArrayInfo]:
        bands = self.matrix.shape[1 - self.pixel_axis]
        others = [a for a in self.file.arrays if a.name != self.matrix.name]
        return [replace(self.matrix, shape=(self.rows, self.columns, bands)), *others]

    def read(self, name: str, key: Key | None = None) -> npt.NDArray[Any]:
        if name != self.matrix.name:
            return self.file.read(name, key)
        check_memory(self.matrix.nbytes, f"{self.source}: {self.matrix}")
        values = self.file.read(name)
        by_pixel = values.T if self.pixel_axis == 1 else values
        cube = by_pixel.reshape(self.columns, self.rows, -1).transpose(1, 0, 2)
        return cube if key is None else cube[key]


def _fold(file: ArrayFile, variable: str | None, shape: tuple[int, int] | None) -> _Folded | None:
    """See a ``(bands, pixels)`` matrix as a cube, if the file has one and no real cube is meant."""
    if several_names(file, variable) is not None:
        return None
    named = None if variable is None else arrays.find_array(file, variable)
    is_cube = named is not None and len(named.shape) == 3
    if is_cube or (named is None and any(a.numeric and len(a.shape) == 3 for a in file.arrays)):
        return None
    rows, columns = shape if shape is not None else (_scalar(file, _ROWS), _scalar(file, _COLUMNS))
    if rows is None or columns is None or rows < 1 or columns < 1:
        return None
    candidates = [named] if named is not None else file.arrays
    matrices = [
        a for a in candidates if a.numeric and len(a.shape) == 2 and rows * columns in a.shape
    ]
    if not matrices:
        raise SceneError(
            f"{file.source} does not hold a matrix of {rows} x {columns} = {rows * columns} pixels.",
            "Give the scene's size as shape=ROWS,COLUMNS.",
        )
    matrix = max(
        matrices, key=lambda a: a.nbytes
    )  # abundances and labels are the small ones beside it
    return _Folded(file, matrix, rows, columns, 1 if matrix.shape[1] == rows * columns else 0)


def _parse_shape(shape: Sequence[int] | str | None) -> tuple[int, int] | None:
    if shape is None:
        return None
    try:
        rows, columns = (
            int(n) for n in (re.findall(r"\d+", shape) if isinstance(shape, str) else shape)
        )
    except (TypeError, ValueError) as error:
        raise SceneError(
            f"The shape '{shape}' is invalid.", "Give it as shape=ROWS,COLUMNS."
        ) from error
    return rows, columns


def _scalar(file: ArrayFile, names: set[str]) -> int | None:
    for info in file.arrays:
        if info.numeric and info.base_name in names and math.prod(info.shape) == 1:
            value = float(file.read(info.name).reshape(-1)[0])
            return int(value) if math.isfinite(value) else None
    return None


def _scan(path: Path) -> Iterator[tuple[ArrayInfo, int, int]]:
    """Yield each element of a version-5 file, checked against its size, with its first byte and its length."""
    size = path.stat().st_size
    with path.open("rb") as file:
        order = _byte_order(file.read(_HEADER), path)
        position = _HEADER
        for _ in range(MAX_ARRAYS):
            head = file.read(8)
            if not head:
                return
            kind, count = struct.unpack(f"{order}II", head) if len(head) == 8 else (0, 0)
            if kind not in {_COMPRESSED, _MATRIX} or position + 8 + count > size:
                raise SceneError(
                    f"{path.name} is truncated at byte {position} of {size}: an element of {count} bytes does not fit.",
                    "The file is truncated or damaged.",
                )
            info = _describe(_prefix(file, kind, count, path), order, kind, count, path)
            yield info, position, 8 + count
            position += 8 + count
            file.seek(position)
    raise SceneError(f"{path.name} has more than {MAX_ARRAYS} variables.", "This is not a scene.")


def _byte_order(header: bytes, path: Path) -> str:
    order = {b"IM": "<", b"MI": ">"}.get(header[126:128])
    if len(header) < _HEADER or order is None:
        raise SceneError(
            f"{path.name} is not a MAT file of version 5, 7 or 7.3.",
            "Save it in MATLAB with save(..., '-v7') or '-v7.3'.",
        )
    return order


def _prefix(file: BinaryIO, kind: int, count: int, path: Path) -> bytes:
    """Return the head of a matrix element's content, decompressed if need be."""
    raw = file.read(min(count, _PREFIX))
    if kind == _MATRIX:
        return raw
    try:
        return zlib.decompressobj().decompress(raw, _PREFIX + 8)[8:]
    except zlib.error as error:
        raise SceneError(
            f"{path.name}: a variable cannot be decompressed.", "The file is damaged."
        ) from error


def _describe(content: bytes, order: str, kind: int, count: int, path: Path) -> ArrayInfo:
    """Return what one matrix element holds, its sizes checked against each other."""
    damaged = SceneError(
        f"{path.name} has a variable with an invalid header.", "The file is damaged."
    )
    try:
        flags, at = _element(content, 0, order)
        class_and_flags = struct.unpack_from(f"{order}I", flags)[0]
        matlab_class, is_complex = class_and_flags & 0xFF, bool(class_and_flags & 0x800)
        if matlab_class == _OPAQUE:  # has no sizes
            return _refused(_element(content, at, order)[0], (), "an object")
        dims, at = _element(content, at, order)
        shape = struct.unpack(f"{order}{len(dims) // 4}i", dims)
        name, at = _element(content, at, order)
        if matlab_class in _OTHER_CLASSES:
            return _refused(name, shape, _OTHER_CLASSES[matlab_class])
        if is_complex:
            return _refused(name, shape, "complex numbers")
        stored, nbytes, start = _tag(content, at, order)
    except (struct.error, IndexError) as error:
        raise damaged from error
    if matlab_class not in _NUMERIC_CLASSES or stored not in _STORED or any(n < 0 for n in shape):
        raise damaged
    info = ArrayInfo(name.decode("latin-1"), shape, np.dtype(_STORED[stored]))
    limit = count - start if kind == _MATRIX else DEFLATE_RATIO * (count + 1)
    if info.nbytes != nbytes or nbytes > limit:
        raise SceneError(
            f"{path.name}: {info} needs {info.nbytes} bytes, but {nbytes} are declared and at most "
            f"{limit} are possible.",
            "The file is damaged.",
        )
    return info


def _refused(name: bytes, shape: tuple[int, ...], note: str) -> ArrayInfo:
    return ArrayInfo(name.decode("latin-1"), shape, np.dtype(object), note=note)


def _tag(content: bytes, at: int, order: str) -> tuple[int, int, int]:
    """Return type, byte count and start of the data of the element at ``at``."""
    first, second = struct.unpack_from(f"{order}II", content, at)
    if first >> 16:  # the small form keeps its count and up to four bytes in the tag itself
        return first & 0xFFFF, first >> 16, at + 4
    return first, second, at + 8


def _element(content: bytes, at: int, order: str) -> tuple[bytes, int]:
    """Return the data of the element at ``at`` and where the next one begins."""
    _, nbytes, start = _tag(content, at, order)
    if start + nbytes > len(content):
        raise IndexError("the element does not end within the header")
    end = at + 8 if start == at + 4 else start + (nbytes + 7) // 8 * 8
    return content[start : start + nbytes], end
