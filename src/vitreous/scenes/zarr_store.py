"""Zarr scenes: our own and those that xarray writes, format 2 and 3.

Format: Zarr specification, version 2 and 3; names and attributes as xarray and rioxarray write them (dimension
names, ``wavelength`` along ``band``, pixel centres ``x`` and ``y``, a ``spatial_ref`` variable with ``crs_wkt`` and ``GeoTransform``), so that
``xarray.open_zarr`` opens our files and we open its.

Chunks are decoded by codecs that the store itself names. One of them unpickles, which runs code: only codecs from
an allow-list are used.
"""

from __future__ import annotations

import itertools
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.errors import SceneError, VitreousError
from vitreous.scenes import arrays
from vitreous.scenes.arrays import (
    MAX_ARRAYS,
    MAX_WORDS,
    ArrayInfo,
    Key,
    as_declared,
    check_memory,
    plain,
)
from vitreous.scenes.attributes import NODATA, find
from vitreous.scenes.cube import LabelImage, georeference
from vitreous.scenes.places import PLAIN

_CHUNK = (
    64  # pixels: a chunk holds all bands of 64 x 64 pixels, what training and mapping read together
)
_DIMS = ("band", "y", "x")
_COORDINATES = ("wavelength", "fwhm", "good_band")  # along the bands
_MAX_DEPTH = 4
_SMALL_CHUNK = 64 * 2**20  # bytes that a machine has left
_MANY_CHUNKS = 10_000  # looked for in no time
_CHUNKS_PER_FILE = 100  # a scene of which less is there was not copied whole
_METADATA = {"zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata"}
_CODECS = {
    *("bytes", "transpose", "sharding_indexed", "crc32c", "vlen-utf8"),
    *("gzip", "zlib", "zstd", "blosc", "lz4", "bz2", "lzma"),
    *("shuffle", "delta", "fixedscaleoffset", "bitround"),
}


def open(  # the name that every reader has
    path: Path,
    *,
    variable: str | None = None,
    axis_order: str | None = None,
    wavelength_unit: str | None = None,
    **known: Any,
) -> xr.DataArray:
    """Open the cube of a Zarr folder.

    Args:
        path: the folder.
        variable: the array's name; needed only where several could be meant.
        axis_order: ``byx``, ``yxb`` or ``ybx``; needed only where dimension names and shape leave it open.
        wavelength_unit: ``nm`` or ``um``, instead of what the file says or leaves open.
        **known: arguments of :func:`make_scene` that win over what the file says.

    Raises:
        SceneError: the store is damaged, holds no cube or several, uses codecs that are not allowed, or its axes
            are ambiguous.
    """
    return arrays.open_cube(
        ZarrFile(path),
        variable=variable,
        axis_order=axis_order,
        wavelength_unit=wavelength_unit,
        known=known,
    )


def open_labels(path: Path, *, variable: str | None = None) -> LabelImage:
    """Return the label image of a Zarr folder.

    Args:
        path: the folder.
        variable: the array's name; needed only where several could be meant.

    Raises:
        SceneError: the store is damaged, or holds no image or several.
    """
    return arrays.open_label_image(ZarrFile(path), variable=variable)


def write(scene: xr.DataArray, path: Path, *, zarr_format: int = 3) -> None:
    """Write a scene's stored values and all that it knows as a Zarr folder, one row of chunks at a time.

    Args:
        scene: the scene.
        path: the folder; one that is there already is replaced when the new one is complete.
        zarr_format: 2 or 3.

    Raises:
        VitreousError: the folder cannot be written, or something that is no Zarr store is in its place.
    """
    import zarr

    path = Path(path)
    if path.exists() and not _is_store(path):
        raise VitreousError(f"{path} exists and is not a Zarr store.", "Choose another name.")
    with _atomic_folder(path) as folder:
        group = zarr.open_group(folder, mode="w", zarr_format=zarr_format)
        chunks = (scene.shape[0], min(_CHUNK, scene.shape[1]), min(_CHUNK, scene.shape[2]))
        values = _create(
            group, "scene", scene.shape, scene.dtype, _DIMS, _attributes(scene), chunks
        )
        for top in range(0, scene.shape[1], _CHUNK):
            values[:, top : top + _CHUNK] = scene[:, top : top + _CHUNK].values
        _write_coordinates(group, scene)


class ZarrFile:
    """The arrays of a Zarr folder, read in windows.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.source = path.name

    @cached_property
    def arrays(self) -> list[ArrayInfo]:
        """What the store holds, from its metadata alone."""
        with self._reading():
            return [
                _describe(name, array, self.path, inherited)
                for name, array, inherited in _arrays(self._root())
            ]

    @cached_property
    def attrs(self) -> dict[str, Any]:
        """The root group's attributes, and lists of words among the arrays."""
        with self._reading():
            root = self._root()
            words = {
                name.rpartition("/")[2]: plain(np.asarray(array[...]).astype(str))
                for name, array, _ in _arrays(root)
                if _holds_words(array)
            }
            return {**words, **{key: plain(value) for key, value in dict(root.attrs).items()}}

    def read(self, name: str, key: Key | None = None) -> npt.NDArray[Any]:
        """Return all of array ``name``, or the part that ``key`` cuts out."""
        with self._reading():
            root = self._root()
            array = root[name] if name else root
            # A shard may be opened piecewise, but a hostile store can make both the same.
            nbytes = math.prod(array.shards or array.chunks) * array.dtype.itemsize
            check_memory(nbytes, f"One chunk of {name or self.source}")
            try:
                values = np.asarray(array[... if key is None else key])
                declared, _ = as_declared(values.dtype, dict(array.attrs))
                return values.view(declared)
            except MemoryError as error:  # blosc allocates what the head of a chunk says
                if nbytes > _SMALL_CHUNK:
                    raise
                raise SceneError(
                    f"{self.source}: a chunk of {name or 'the array'} claims more than its {nbytes:,} bytes.",
                    "The store is damaged; download it again.",
                ) from error

    def _root(self) -> Any:
        import zarr

        return zarr.open(str(self.path), mode="r")

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (VitreousError, MemoryError):
            raise
        except Exception as error:  # zarr and its codecs raise many kinds for damaged bytes
            raise SceneError(
                f"{self.source} cannot be read as a Zarr store: {str(error)[:200]}.",
                "The store is damaged, incomplete or not Zarr.",
            ) from error


def _arrays(
    item: Any,
    prefix: str = "",
    depth: int = 0,
    inherited: Mapping[str, Any] = MappingProxyType({}),
) -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """Yield arrays with their names and the attributes of the groups below the root that they lie in."""
    import zarr

    if isinstance(item, zarr.Array):
        yield prefix, item, inherited
        return
    if depth:
        inherited = {**inherited, **{key: plain(value) for key, value in dict(item.attrs).items()}}
    members = list(item.members())
    if len(members) > MAX_ARRAYS:
        raise SceneError(
            f"The group '{prefix or '/'}' has {len(members)} members, too many for a scene."
        )
    for name, member in members:
        if isinstance(member, zarr.Array) or depth < _MAX_DEPTH:
            path = f"{prefix}/{name}" if prefix else name
            yield from _arrays(member, path, depth + 1, inherited)


def _holds_words(array: Any) -> bool:
    """A short list of words, such as the names of the bands."""
    try:
        kind = np.dtype(array.dtype).kind
    except TypeError:
        return False
    return (
        kind in "UT"
        and array.ndim == 1
        and 0 < array.shape[0] <= MAX_WORDS
        and not set(_codecs(array.metadata)) - _CODECS
    )


def _describe(name: str, array: Any, store: Path, inherited: Mapping[str, Any]) -> ArrayInfo:
    forbidden = sorted(set(_codecs(array.metadata)) - _CODECS)
    own = {key: plain(value) for key, value in dict(array.attrs).items()}
    attrs = {**inherited, **own}
    # Format 2 has no other place for xarray's _FillValue; 0 is what every array has that was given none, and in
    # format 3 NaN too.
    if find(attrs, *NODATA) is None and array.fill_value:
        attrs["_FillValue"] = plain(np.asarray(array.fill_value))
    dims = getattr(array.metadata, "dimension_names", None) or attrs.get("_ARRAY_DIMENSIONS") or ()
    note = ""
    if forbidden:
        note = f"encoded with {', '.join(forbidden)}, which is not allowed"
    elif array.dtype.kind not in "iufb":
        note = f"{array.dtype} values"
    else:
        note = _missing_chunks(array, store / name)
    dtype, declared = (
        (np.dtype(object), attrs) if note else as_declared(np.dtype(array.dtype), attrs)
    )
    shape = tuple(int(n) for n in array.shape)
    return ArrayInfo(name, shape, dtype, tuple(str(d) for d in dims), declared, note)


def _missing_chunks(array: Any, folder: Path) -> str:
    """What is wrong with an array of which hardly a chunk exists; "" where enough do, or it is small.

    Chunks that are not stored hold the fill value, which is lawful. But a few bytes of metadata can claim millions,
    and every one would be looked for.
    """
    chunks = array.shards or array.chunks
    claimed = math.prod(-(-n // size) for n, size in zip(array.shape, chunks, strict=True) if size)
    if claimed <= _MANY_CHUNKS:
        return ""
    needed = claimed // _CHUNKS_PER_FILE
    present = sum(1 for _ in itertools.islice(_files(folder), needed))
    return "" if present >= needed else f"{claimed:,} chunks, of which {present:,} exist"


def _files(folder: Path) -> Iterator[str]:
    for _, _, names in os.walk(folder):
        yield from (name for name in names if name not in _METADATA)


def _codecs(metadata: Any) -> Iterator[str]:
    """Yield the names of all codecs that decode an array, those inside shards too."""
    if metadata.zarr_format == 2:
        for codec in (*(metadata.filters or ()), *filter(None, [metadata.compressor])):
            yield str(codec.codec_id)
        return
    waiting: list[Any] = [codec.to_dict() for codec in metadata.codecs]
    while waiting:
        codec = waiting.pop()
        configuration = codec.get("configuration") or {} if isinstance(codec, Mapping) else {}
        yield str(codec.get("name") if isinstance(codec, Mapping) else codec).removeprefix(
            "numcodecs."
        )
        waiting += [*configuration.get("codecs", ()), *configuration.get("index_codecs", ())]


def _attributes(scene: xr.DataArray) -> dict[str, Any]:
    coordinates = [name for name in _COORDINATES if name in scene.coords]
    nodata = scene.attrs.get("nodata")
    return {
        "unit": scene.attrs.get("unit", "dn"),
        "scale": float(scene.attrs.get("scale", 1.0)),
        **({} if nodata is None else {"nodata": "nan" if math.isnan(nodata) else float(nodata)}),
        # An attribute, because format 3 has no settled array of words.
        **({"band_names": scene.band_name.values.tolist()} if "band_name" in scene.coords else {}),
        "grid_mapping": "spatial_ref",
        "coordinates": " ".join([*coordinates, "spatial_ref"]),
    }


def _write_coordinates(group: Any, scene: xr.DataArray) -> None:
    for name in _COORDINATES:
        if name in scene.coords:
            values = scene[name].values
            attributes = {} if name == "good_band" else {"units": "nm"}
            _create(group, name, values.shape, values.dtype, ("band",), attributes, values.shape)[
                :
            ] = values
    for name in PLAIN:  # xarray selects by them
        if name in scene.coords and scene[name].dims == (name,):
            values = scene[name].values
            _create(group, name, values.shape, values.dtype, (name,), {}, values.shape)[:] = values
    mapping = {}
    crs, transform = georeference(scene)
    if crs is not None:
        mapping["crs_wkt"] = crs.to_wkt()
    if transform is not None:
        mapping["GeoTransform"] = " ".join(repr(float(n)) for n in transform.to_gdal())
    _create(group, "spatial_ref", (), np.dtype(np.int64), (), mapping, ())[...] = 0


def _create(
    group: Any,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    dims: tuple[str, ...],
    attributes: dict[str, Any],
    chunks: tuple[int, ...],
) -> Any:
    # Format 2 keeps dimension names in an attribute, format 3 in the array's own metadata.
    own = {"_ARRAY_DIMENSIONS": list(dims)} if group.metadata.zarr_format == 2 else {}
    named = {} if own else {"dimension_names": list(dims)}
    return group.create_array(
        name, shape=shape, dtype=dtype, chunks=chunks, attributes={**attributes, **own}, **named
    )


def _is_store(path: Path) -> bool:
    return any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zarray"))


@contextmanager
def _atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path`` that takes its place when the block ends well."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(
            tempfile.mkdtemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
        )
    except OSError as error:
        raise VitreousError(
            f"{path} cannot be written: {error.strerror}.", "Choose another folder."
        ) from error
    old = temporary.with_name(f"{temporary.name}.old")
    try:
        temporary.chmod(0o755)
        yield temporary
        if path.exists():
            path.replace(old)
        temporary.replace(path)
    except OSError as error:
        raise VitreousError(
            f"{path} was not written: {error.strerror or error}.",
            "Free some space, or write elsewhere.",
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
