"""Files of splits: the roles of every scene's pixels as NumPy arrays in one zip, checked before anything is allocated."""

from __future__ import annotations

import hashlib
import json
import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitreous.data.blocks import TEST
from vitreous.errors import SplitError
from vitreous.files import atomic_path, parse_json

MAX_PIXELS = 2**31  # of a scene's roles; a compressed file that unfolds to more is not ours
MAX_META = 2**20
MOST_SCENES = 10**6
MOST_SIDE = 100_000  # pixels, of blocks and of what a prediction depends on

Roles = npt.NDArray[np.uint8]


def write_split(path: str | Path, parts: Iterable[Roles], count: int, meta: dict[str, Any]) -> None:
    """Write roles and settings to ``path`` (``.npz``, no pickle), whole or not at all.

    Args:
        path: the file.
        parts: ``(height, width)`` roles of each scene.
        count: how many scenes there are.
        meta: the split's settings, ready for JSON.
    """
    meta = {"schema": 1, **meta} | ({"scenes": count} if count > 1 else {})
    text = json.dumps(meta, allow_nan=False, sort_keys=True).encode()
    seal = hashlib.sha256()
    with (
        atomic_path(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name, roles in zip(_names(count), parts, strict=True):
            _add(archive, name, np.ascontiguousarray(roles, dtype=np.uint8))
            _seal(seal, roles)
        seal.update(text)
        _add(archive, "meta", np.frombuffer(text, dtype=np.uint8))
        _add(archive, "seal", np.frombuffer(seal.digest(), dtype=np.uint8))


def read_split(path: str | Path) -> tuple[dict[str, Any], Iterator[Roles]]:
    """Read the settings of a split, and the roles of its scenes one after the other.

    The settings are checked at once; that the roles are the ones that were written is known when the last is read.

    Raises:
        SplitError: there is no such file, it is no split, or it was changed after it was written.
    """
    parts = _parts(Path(path))
    meta = next(parts)
    assert isinstance(meta, dict)
    return meta, (part for part in parts if isinstance(part, np.ndarray))


def _parts(path: Path) -> Iterator[dict[str, Any] | Roles]:
    try:
        with zipfile.ZipFile(path) as archive:
            text = _read_member(archive, "meta", dimensions=1, limit=MAX_META).tobytes()
            known = _read_member(archive, "seal", dimensions=1, limit=64).tobytes()
            meta = parse_json(text.decode())
            _check_meta(meta)
            yield meta
            seal = hashlib.sha256()
            for name in _names(meta.get("scenes", 1)):
                roles = _read_member(archive, name, dimensions=2, limit=MAX_PIXELS)
                if int(roles.max(initial=0)) > TEST:
                    raise ValueError("it has pixels of unknown roles")
                _seal(seal, roles)
                yield roles
            seal.update(text)
            if seal.digest() != known:
                raise ValueError("its contents do not match its checksum")
    except FileNotFoundError as error:
        raise SplitError(f"The split {path} does not exist.", "Check the path.") from error
    except (
        *(OSError, zipfile.BadZipFile, zlib.error, EOFError),
        *(KeyError, TypeError, ValueError, RecursionError),
        *(NotImplementedError, RuntimeError),  # exotic compression, encryption
        *(SyntaxError, tokenize.TokenError),  # NumPy parses a member's header as Python literals
    ) as error:
        raise SplitError(
            f"{path} is not a valid split file ({error}).",
            "Create the split again with the recipe's seed.",
        ) from error


def _names(count: int) -> list[str]:
    return ["roles"] if count == 1 else [f"roles_{k}" for k in range(count)]


def _check_meta(meta: Any) -> None:
    if meta["schema"] != 1:
        raise ValueError(f"its schema {meta['schema']} is newer than this version of vitreous")
    method, params, seed = meta["method"], meta["params"], meta["seed"]
    if not (isinstance(method, str) and isinstance(params, dict) and isinstance(seed, int)):
        raise TypeError("its settings have the wrong types")
    count = meta.get("scenes", 1)
    if type(count) is not int or not 1 <= count <= MOST_SCENES:
        raise ValueError(f"it has {count!r} scenes")
    for name in ("patch_size", "block_size"):
        side = params.get(name, 1)
        if type(side) is not int or not 1 <= side <= MOST_SIDE:
            raise ValueError(f"its {name} is {side!r}")


def _seal(seal: hashlib._Hash, roles: Roles) -> None:
    seal.update(np.array(roles.shape, dtype="<i8").tobytes())
    seal.update(roles.tobytes())


def _add(archive: zipfile.ZipFile, name: str, values: Roles) -> None:
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array(member, values, version=(1, 0), allow_pickle=False)


def _read_member(
    archive: zipfile.ZipFile, name: str, *, dimensions: int, limit: int
) -> npt.NDArray[np.uint8]:
    """Read one uint8 array, having checked its header against its size before anything is allocated."""
    info = archive.getinfo(f"{name}.npy")
    if info.file_size > limit + 4096:
        raise ValueError(f"'{name}' claims {info.file_size} bytes")
    with archive.open(info) as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"'{name}' has an unknown version")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        if dtype != np.uint8 or fortran or len(shape) != dimensions or min(shape, default=0) < 1:
            raise ValueError(f"'{name}' has the type {dtype} and the shape {shape}")
        data = file.read(limit + 1)
    if len(data) != math.prod(shape):
        raise ValueError(f"'{name}' holds {len(data)} bytes for the shape {shape}")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)
