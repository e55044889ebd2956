"""Safe access to HDF5 files, for MATLAB 7.3, EMIT and other NetCDF-4 files.

Format: HDF5 File Format Specification (The HDF Group); dimension names by the NetCDF-4 conventions. Links that
leave the file, virtual and external datasets are never followed: they could pull any other file of the reader's
machine into a scene.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitreous.errors import SceneError, VitreousError
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

_MAX_DEPTH = 8
_BARE_DIMENSION = "This is a netCDF dimension but not a netCDF variable"
_WORD_BYTES = 2**20
_MAX_ATTRIBUTE = 2**20


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Yield the open ``h5py.File``; whatever HDF5 finds wrong with the bytes becomes a SceneError."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            yield file
    except (VitreousError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise SceneError(f"{path} does not exist.") from error
    except Exception as error:  # h5py raises a dozen kinds for damaged bytes
        raise SceneError(
            f"{path.name} cannot be read as HDF5: {str(error)[:200]}.",
            "The file is damaged, truncated or not HDF5; convert NetCDF-3 files to NetCDF-4 first.",
        ) from error


class Hdf5File:
    """The numeric arrays of an HDF5 or NetCDF-4 file, read in windows; the file is open only while reading.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.source = path.name

    @cached_property
    def arrays(self) -> list[ArrayInfo]:
        """What the file holds, from its metadata alone."""
        with opened(self.path) as file:
            return [self.describe(name, dataset) for name, dataset in _datasets(file)]

    @cached_property
    def attrs(self) -> dict[str, Any]:
        """The file's global attributes, and the single numbers and words that products keep as datasets."""
        with opened(self.path) as file:
            words = {
                name.rpartition("/")[2]: plain(dataset[()])
                for name, dataset in _datasets(file)
                if _is_word(dataset)
            }
            return {**words, **_attributes(file)}

    def group_attrs(self, name: str) -> dict[str, Any]:
        """Return the attributes of a group and its subgroups; empty where there is none."""
        import h5py

        with opened(self.path) as file:
            group = file.get(name)
            if not isinstance(group, h5py.Group):
                return {}
            within = [
                group[key]
                for key in group
                if isinstance(key, str) and isinstance(group.get(key, getlink=True), h5py.HardLink)
            ]
            found: dict[str, Any] = {}
            for item in (*(g for g in within if isinstance(g, h5py.Group)), group):
                found |= _attributes(item)
            return found

    def describe(self, name: str, dataset: Any) -> ArrayInfo:
        """Return what is known about one dataset."""
        note = ""
        if dataset.shape is None or dataset.dtype.kind not in "iufb":
            note = "non-numeric values"
        elif dataset.is_virtual or dataset.external:
            note = "kept in other files, which is not allowed"
        attributes = {**_of_groups(dataset), **_attributes(dataset)}
        if not note and dataset.fillvalue and find(attributes, *NODATA) is None:
            attributes["_FillValue"] = plain(np.asarray(dataset.fillvalue))
        if str(attributes.get("NAME", "")).startswith(_BARE_DIMENSION):
            note = "a dimension without values"
        dtype, declared = (
            (np.dtype(object), attributes) if note else as_declared(dataset.dtype, attributes)
        )
        dims = _dimension_names(dataset)
        shape = tuple(int(n) for n in dataset.shape or ())
        return ArrayInfo(name, shape, dtype, dims, declared, note)

    def read(self, name: str, key: Key | None = None) -> npt.NDArray[Any]:
        """Return all of array ``name``, or the part that ``key`` cuts out."""
        with opened(self.path) as file:
            dataset = file[name]
            if dataset.shape is None or dataset.dtype.kind not in "iufb":
                raise SceneError(
                    f"{self.source}: {name} does not hold numbers.",
                    "The file is damaged; download it again.",
                )
            chunk = int(np.prod(dataset.chunks or (1,), dtype=object)) * dataset.dtype.itemsize
            check_memory(chunk, f"One chunk of {name} in {self.source}")
            values = np.asarray(dataset[() if key is None else key])
            declared, _ = as_declared(values.dtype, _attributes(dataset))
            return values.view(declared)


def _datasets(group: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    import h5py

    if len(group) > MAX_ARRAYS:
        raise SceneError(
            f"The group '{prefix or '/'}' has {len(group)} members, too many for a scene."
        )
    for key in group:
        # h5py gives names that are not UTF-8 as bytes: damage, and no name of ours.
        if not isinstance(key, str) or not isinstance(group.get(key, getlink=True), h5py.HardLink):
            continue
        member = group[key]
        if isinstance(member, h5py.Dataset):
            yield f"{prefix}{key}", member
        elif isinstance(member, h5py.Group) and depth < _MAX_DEPTH:
            yield from _datasets(member, f"{prefix}{key}/", depth + 1)


def _attributes(item: Any) -> dict[str, Any]:
    """The attributes that are plain values; long ones and references are left out."""
    import h5py

    found: dict[str, Any] = {}
    for name in item.attrs:
        if not isinstance(name, str):
            continue
        attribute = item.attrs.get_id(name)
        if (
            attribute.get_storage_size() > _MAX_ATTRIBUTE
            or h5py.check_ref_dtype(attribute.dtype) is not None
        ):
            continue
        if attribute.dtype.kind in "iufbSU" or h5py.check_string_dtype(attribute.dtype) is not None:
            found[name] = plain(item.attrs[name])
    return found


def _is_word(dataset: Any) -> bool:
    """A single number or text, or a short list of texts, kept in the file itself."""
    import h5py

    if dataset.shape is None or dataset.is_virtual or dataset.external:
        return False
    text = h5py.check_string_dtype(dataset.dtype) is not None
    several = text and len(dataset.shape) == 1 and 0 < dataset.size <= MAX_WORDS
    usable = dataset.dtype.itemsize < _WORD_BYTES and (text or dataset.dtype.kind in "iufb")
    return usable and (dataset.size == 1 or several)


def _of_groups(dataset: Any) -> dict[str, Any]:
    """The attributes of the groups that a dataset lies in; those of the file itself count for all its arrays."""
    found: dict[str, Any] = {}
    group = dataset.parent
    while group.name not in {"/", None}:
        found = {**_attributes(group), **found}
        group = group.parent
    return found


def _dimension_names(dataset: Any) -> tuple[str, ...]:
    """The name of each axis: its label, else its first dimension scale, else nothing.

    Not by ``dataset.dims``: libhdf5 takes both attributes for what they should be, and dies of others.
    """
    import h5py

    rank = len(dataset.shape or ())
    labels = _per_axis(dataset, "DIMENSION_LABELS", lambda dtype: h5py.check_string_dtype(dtype))
    scales = _per_axis(dataset, "DIMENSION_LIST", _are_lists_of_references)
    names = []
    for axis in range(rank):
        label = plain(labels[axis]) if labels is not None else ""
        scale: Any = [] if scales is None else scales[axis]
        if not label and len(scale) and scale[0]:
            label = str(dataset.file[scale[0]].name or "").rpartition("/")[2]
        names.append(str(label or ""))
    return tuple(names)


def _per_axis(dataset: Any, name: str, fits: Callable[[Any], Any]) -> Any:
    """An attribute with one entry per axis; None where there is none of this shape and type."""
    if not dataset.shape or name not in dataset.attrs:
        return None
    attribute = dataset.attrs.get_id(name)
    if attribute.shape != (len(dataset.shape),) or not fits(attribute.dtype):
        return None
    return dataset.attrs[name]


def _are_lists_of_references(dtype: Any) -> bool:
    import h5py

    base = h5py.check_vlen_dtype(dtype)
    return base is not None and h5py.check_ref_dtype(base) is h5py.Reference
