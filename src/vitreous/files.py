"""Files and folders that are written whole or not at all, and JSON from outside."""

from __future__ import annotations

import errno
import glob
import json
import math
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vitreous.errors import CheckpointError, VitreousError, shortened

if TYPE_CHECKING:
    from pydantic import BaseModel

M = TypeVar("M", bound="BaseModel")

JSON_LIMIT = 64 * 2**20  # no JSON of ours comes near this; a larger one is not ours
NO_ROOM = 2**20  # bytes: a disk with less left is full
DIGITS = 20  # of a whole number in JSON: more than 64 bits are no count and no size
EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CODE = 8  # characters that make the name of a hidden folder unique


def read_yaml(text: str) -> Any:
    """Return the value of a YAML text; ``1e-3`` is a number, which YAML 1.1 only takes ``1.0e-3`` for.

    Raises:
        yaml.YAMLError: it is no YAML.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """The safe loader with one more notation of numbers."""

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT, list("+-.0123456789"))
    return yaml.load(text, Loader)


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
        with disk_errors(path):
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
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def hidden_folder(parent: Path, name: str) -> Iterator[Path]:
    """Yield a new hidden folder in ``parent`` to build something in that is then renamed to its own name.

    What is still there at the end is removed, and so are the folders that killed processes left behind.

    Args:
        parent: where it is made; a folder can only be renamed within one file system.
        name: what it is for; the hidden folder is called ``.NAME.CODE``.

    Raises:
        VitreousError: the disk is full or the folder cannot be made.
    """
    folder = parent / f".{name}.{secrets.token_hex(_CODE // 2)}"
    with disk_errors(parent / name):
        parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(parent, name)
        folder.mkdir()
    try:
        with locked(folder), disk_errors(parent / name, folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a hidden folder beside ``folder`` that takes its place when the block ends well.

    Raises:
        VitreousError: the disk is full or the folder cannot be made.
    """
    with hidden_folder(folder.parent, folder.name) as made:
        yield made
        with hidden_folder(folder.parent, folder.name) as old:
            if folder.exists():  # a folder cannot replace one that is not empty
                folder.replace(old / folder.name)
            made.replace(folder)


@contextmanager
def disk_errors(path: Path, folder: Path | None = None) -> Iterator[None]:
    """Say in words what keeps ``path`` from being written.

    Args:
        path: what is written.
        folder: where files are built first, by writers that have words of their own for a full disk. Whatever they
            raise while the disk has no room is taken for that.

    Raises:
        VitreousError: the disk is full, or the folder cannot be written.
    """
    try:
        yield
    except Exception as error:
        code = _system_code(error)
        if folder is not None and code not in _FULL:
            code = _lack_of_room(folder) or code
        told = _trouble(path, code) if folder is None or code in _FULL else None
        if told is None:
            raise
        raise told from error


def check_room(folder: Path) -> None:
    """Refuse what a writer that is silent about a full disk has left in ``folder``.

    Raises:
        OSError: the disk is full, or a file has reached the size that files may have.
    """
    code = _lack_of_room(folder)
    if code is not None:
        raise OSError(code, os.strerror(code), str(folder))


def _system_code(error: BaseException) -> int | None:
    """Return the code of an error of the system, also of a full disk behind a library's own error."""
    if isinstance(error, OSError):
        return error.errno
    behind = error.__cause__ or error.__context__
    code = None if behind is None else _system_code(behind)
    return code if code in _FULL else None


def _trouble(path: Path, code: int | None) -> VitreousError | None:
    """Return what to tell of an error of the system, or None where the error says it best."""
    if code in {errno.ENOSPC, errno.EDQUOT}:
        return VitreousError(
            f"The disk is full: {path} was not written.", "Free some space, or write elsewhere."
        )
    if code == errno.EFBIG:
        return VitreousError(
            f"{path} was not written: it exceeds the file size limit there.",
            "Write it to another disk, or raise the limit (ulimit -f).",
        )
    if code in {errno.EACCES, errno.EROFS, errno.EPERM}:
        return VitreousError(
            f"No permission to write {path}.", "Choose a folder that you may write to."
        )
    if code in {errno.EEXIST, errno.ENOTDIR}:
        return VitreousError(
            f"{path} was not written: {path.parent} is not a folder.", "Choose another name."
        )
    if code == errno.ENAMETOOLONG:
        return VitreousError(f"The name of {path} is too long.", "Choose a shorter one.")
    return None


def _lack_of_room(folder: Path) -> int | None:
    """Return the error code of a full disk, or of a file that reached the size that files may have; else None."""
    try:
        if shutil.disk_usage(folder).free < NO_ROOM:
            return errno.ENOSPC
        largest = max((p.stat().st_size for p in folder.rglob("*") if p.is_file()), default=0)
    except OSError:
        return None
    return errno.EFBIG if largest >= _size_limit() else None


def _size_limit() -> float:
    """Return how large a file of this process may become."""
    try:
        import resource
    except ImportError:  # Windows
        return math.inf
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return math.inf if limit == resource.RLIM_INFINITY else limit


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder that they would lock, too; a lock ends with its process.

    Raises:
        BlockingIOError: another process has it.
    """
    handle = _lock(folder)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def is_locked(folder: Path) -> bool:
    """Tell whether a process is working in a folder."""
    try:
        with locked(folder):
            return False
    except BlockingIOError:
        return True


def _remove_abandoned(parent: Path, name: str) -> None:
    """Remove hidden folders of this name whose process has ended; those of living ones are locked."""
    for folder in parent.glob(f".{glob.escape(name)}.{'[0-9a-f]' * _CODE}"):
        if not folder.is_dir():
            continue
        try:
            handle = _lock(folder)
        except BlockingIOError:
            continue
        if handle is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(handle)


def _lock(folder: Path) -> int | None:
    """Lock a folder for as long as the handle is open; return None where there are no locks.

    Raises:
        BlockingIOError: another process has it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        if isinstance(error, BlockingIOError):
            raise
        return None  # a file system without locks
    return handle


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
            raise VitreousError(
                f"{path} is too large for a file of this kind.", "Restore the file."
            )
        return parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise VitreousError(f"{path} does not exist.", "Check the folder's name.") from error
    except OSError as error:
        raise VitreousError(
            f"{path} cannot be read: {error.strerror}.", "Check the path and its permissions."
        ) from error
    except (ValueError, RecursionError) as error:
        raise VitreousError(f"{path} is not valid JSON: {error}.", "Restore the file.") from error


def parse_json(text: str) -> Any:
    """Read JSON as its standard has it: without NaN and infinities, and without numbers that are none for us.

    Raises:
        ValueError: it is no such JSON.
        RecursionError: it is nested too deeply.
    """
    return json.loads(
        text, parse_constant=_constant, parse_float=_finite_number, parse_int=_whole_number
    )


def _constant(text: str) -> float:
    raise ValueError(f"{text} is not a valid JSON number")


def _finite_number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:30]} is too large")
    return value


def _whole_number(text: str) -> int:
    if len(text.lstrip("-")) > DIGITS:
        raise ValueError(f"the number {text[:30]}... is too large")
    return int(text)


def checked(kind: type[M], value: Any, path: Path, fix: str) -> M:
    """Return what was read from ``path``, checked against a description of its parts.

    Args:
        kind: the description.
        value: what was read.
        path: the file, for the message.
        fix: what to do about a damaged one.

    Raises:
        VitreousError: a part is missing, of another type or out of its range; the message names the first.
    """
    from pydantic import ValidationError

    try:
        return kind.model_validate(value)
    except ValidationError as error:
        issue = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in issue["loc"]) or "its content"
        raise CheckpointError(
            f"{path} is damaged: {shortened(where, 80)}: {shortened(issue['msg'], 200)}.", fix
        ) from error


def task_of(folder: Path) -> str:
    """Return the name of the task that a run, or the run behind an export, was trained for."""
    exported = folder / "export.json"
    said = read_json(exported if exported.is_file() else folder / "config.json")
    # Exports, and runs of the first versions, only knew one task.
    return str(said.get("task", "classify")) if isinstance(said, dict) else "classify"


def is_unfinished(run: Path) -> bool:
    """Tell whether a run was interrupted: its training state is there, or its ``config.json`` says so."""
    if not (run / "config.json").is_file():
        return False
    if (run / "state.safetensors").is_file():
        return True
    try:
        config = read_json(run / "config.json")
    except VitreousError:
        return False
    return isinstance(config, dict) and config.get("finished") is False


def _umask() -> int:
    # The umask can only be read by setting it; mkstemp's 0600 would make products unreadable for others.
    mask = os.umask(0)
    os.umask(mask)
    return mask
