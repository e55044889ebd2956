"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vitreous.errors import VitreousError

JSON_LIMIT = 64 * 2**20  # no JSON of ours comes near this; a larger one is not ours


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path`` that takes its place when the block ends well.

    The file appears complete or not at all: a crash, a full disk or Ctrl-C leaves what was there before. The
    temporary name keeps the suffix, because GDAL chooses its driver by it.

    Raises:
        VitreousError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent
        )
        os.close(handle)
        temporary = Path(name)
        yield temporary
        # Afterwards, because mkstemp and some writers make files that only their owner can read.
        temporary.chmod(0o666 & ~_umask())
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise VitreousError(
                f"The disk is full: {path} was not written.", "Free some space, or write elsewhere."
            ) from error
        if error.errno == errno.EFBIG:
            raise VitreousError(
                f"{path} was not written: no file may be so large there.",
                "Write it to another disk.",
            ) from error
        if error.errno in {errno.EACCES, errno.EROFS, errno.EPERM}:
            raise VitreousError(
                f"No permission to write {path}.", "Choose a folder that you may write to."
            ) from error
        if error.errno in {errno.EEXIST, errno.ENOTDIR}:
            raise VitreousError(
                f"{path} was not written: {path.parent} is no folder.", "Choose another name."
            ) from error
        raise
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` (UTF-8) atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file of ours.

    Raises:
        VitreousError: the file is missing, far too large, or not JSON.
    """
    path = Path(path)
    try:
        if path.stat().st_size > JSON_LIMIT:
            raise VitreousError(f"{path} is larger than any file of this kind should be.")
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise VitreousError(f"{path} does not exist.") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise VitreousError(f"{path} is not valid JSON: {error}.") from error


def task_of(run: Path) -> str:
    """Return what a run was trained for: ``classify``, ``restore`` or ``pretrain``."""
    config = read_json(run / "config.json")
    return str(config.get("task", "classify")) if isinstance(config, dict) else "classify"


def _umask() -> int:
    # The umask can only be read by setting it; mkstemp's 0600 would make products unreadable for others.
    mask = os.umask(0)
    os.umask(mask)
    return mask
