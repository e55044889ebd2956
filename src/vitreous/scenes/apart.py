"""Files from others, read in a process of their own: what a library does with damaged bytes ends that process, not ours.

libhdf5, GDAL and codecs are C and C++: a damaged file can crash them, make them loop without end, or ask for all memory.
A reader process (``vitreous.scenes.reader_process``) opens and reads such files under limits of memory and time. It is
started once and used for all files, so that only the first one waits for it; after a crash or a hang the next request
starts another. What it says is JSON and bare numbers: nothing of it is unpickled.

A request is a line of JSON; a reply is a line of JSON and, of a window or of labels, its bytes.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import os
import select
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.errors import SceneError
from vitreous.scenes.arrays import check_memory
from vitreous.scenes.band_files import pattern_of
from vitreous.scenes.cube import LazyCube, Window, georeference, make_labels, make_scene

SECONDS = 20.0  # for a file to be opened, or a window to be read
BYTES_PER_SECOND = 4 * 2**20  # of a window, beyond which it may take longer
START_SECONDS = 120.0  # for the process to be ready, on a busy machine
LONGEST_LINE = 64 * 2**20  # bytes of a reply: a file of as many band names is no scene


def open_apart(path: str | Path | Sequence[str | Path], hints: dict[str, Any]) -> xr.DataArray:
    """Open a scene in the reader process; so are its windows read.

    Args:
        path: as for :func:`vitreous.scenes.open_scene`.
        hints: as for :func:`vitreous.scenes.open_scene`.

    Raises:
        SceneError: as there, or the file crashes its reader, takes too long or too much memory.
    """
    name = str(path) if isinstance(path, (str, os.PathLike)) else pattern_of(path)
    absolute = str(Path(name).expanduser().absolute())
    reply, _ = _reader().ask({"do": "open", "path": absolute, "hints": hints}, absolute, SECONDS)
    crs, transform = placed(reply["place"])
    cube = LazyCube(tuple(reply["shape"]), np.dtype(reply["type"]), _WindowsApart(absolute, hints))
    source = reply["place"]["source"]
    scene = make_scene(cube, crs=crs, transform=transform, source=source, **reply["facts"])
    for name, values in reply["columns"].items():  # as they are: NaN stands for an unused band
        scene = scene.assign_coords({name: ("band", np.asarray(values))})
    return scene


def open_labels_apart(
    path: Path, like: xr.DataArray | None, attribute: str | None, hints: dict[str, Any]
) -> xr.DataArray:
    """Open labels in the reader process.

    Args:
        path: as for :func:`vitreous.scenes.open_labels`, as the other arguments are.
        like: of this scene, only the place counts.
        attribute: the class attribute of vector features.
        hints: all others.

    Raises:
        SceneError: as there, or the file crashes its reader, takes too long or too much memory.
    """
    absolute = str(path.absolute())
    names = hints.get("class_names")
    if isinstance(names, Mapping):  # JSON has no numbers as keys
        hints = {**hints, "class_names": [[int(code), str(name)] for code, name in names.items()]}
    request = {
        "do": "labels",
        "path": absolute,
        "attribute": attribute,
        "hints": hints,
        "coded_names": isinstance(names, Mapping),
        "like": None if like is None else described_place(like),
    }
    pixels = 0 if like is None else like.sizes["y"] * like.sizes["x"]
    seconds = SECONDS + 8 * float(pixels) / BYTES_PER_SECOND
    reply, content = _reader().ask(request, absolute, seconds)
    values = np.frombuffer(content, dtype=np.int32).reshape(reply["size"])
    if like is not None:  # its place is exact, and shared
        crs, transform = georeference(like)
    else:
        crs, transform = placed(reply["place"])
    return make_labels(values, crs=crs, transform=transform, **reply["facts"])


def described_place(image: xr.DataArray) -> dict[str, Any]:
    """Return size, CRS, transform and source of a scene or labels as JSON has them."""
    crs, transform = georeference(image)
    return {
        "size": [int(image.sizes["y"]), int(image.sizes["x"])],
        "crs": None if crs is None else crs.to_wkt(),
        "transform": None if transform is None else list(transform)[:6],
        "source": str(image.attrs.get("source") or ""),
    }


def placed(place: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return CRS and transform of what :func:`described_place` gives."""
    from affine import Affine

    return place["crs"], None if place["transform"] is None else Affine(*place["transform"])


class _WindowsApart:
    """Reads windows of a scene in the reader process; knows the path only, so that it can be pickled."""

    def __init__(self, path: str, hints: dict[str, Any]) -> None:
        self._path, self._hints = path, hints

    def __call__(self, window: Window) -> npt.NDArray[Any]:
        request = {
            "do": "read",
            "path": self._path,
            "hints": self._hints,
            "window": [[int(part.start), int(part.stop), int(part.step)] for part in window],
        }
        pixels = [len(range(part.start, part.stop, part.step)) for part in window]
        seconds = SECONDS + 8 * float(np.prod(pixels)) / BYTES_PER_SECOND
        reply, content = _reader().ask(request, self._path, seconds, pixels)
        values: npt.NDArray[Any] = np.frombuffer(content, dtype=reply["dtype"]).reshape(pixels)
        return values


class _Reader:
    """The reader process, started when it is first asked and again after it has ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._pending = bytearray()

    def ask(
        self, request: dict[str, Any], path: str, seconds: float, pixels: list[int] | None = None
    ) -> tuple[dict[str, Any], bytes]:
        """Send a request and return the reply, and the bytes of a window of ``pixels``, or of labels.

        Raises:
            SceneError: what the reader says is wrong with the file, or that it ended or took too long.
        """
        text = json.dumps({**request, "folder": str(Path.cwd())}, default=_plain)
        with self._lock:
            process = self._running()
            try:
                _pipe(process.stdin).write(text.encode() + b"\n")
                _pipe(process.stdin).flush()
                reply, content = self._answer(process, time.monotonic() + seconds, pixels)
            except TimeoutError as error:
                self.stop()
                raise SceneError(
                    f"{path} was not read within {seconds:.0f} s.",
                    "The file is damaged, or made to harm; download it again.",
                ) from error
            except (OSError, EOFError, ValueError, TypeError) as error:
                self.stop()
                raise SceneError(
                    f"{path} ended the process that read it.",
                    "The file is damaged, or made to harm; download it again.",
                ) from error
        for message in reply.get("warnings", ()):
            warnings.warn(str(message), stacklevel=5)
        if "problem" in reply:
            raise SceneError(str(reply["problem"]), str(reply.get("fix", "")))
        return reply, content

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(OSError):
                    _pipe(pipe).close()
        self._process, self._pending = None, bytearray()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.stop()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "vitreous.scenes.reader_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        try:
            self._line(self._process, time.monotonic() + START_SECONDS)  # that it is ready
        except (TimeoutError, OSError, EOFError) as error:
            self.stop()
            raise SceneError(
                "The process that reads files of others does not start.",
                "Free some memory, or read the file without --untrusted.",
            ) from error
        return self._process

    def _answer(
        self, process: subprocess.Popen[bytes], until: float, pixels: list[int] | None
    ) -> tuple[dict[str, Any], bytes]:
        reply = json.loads(self._line(process, until))
        if not isinstance(reply, dict):
            raise ValueError("no reply")
        if "dtype" not in reply:
            return reply, b""
        pixels = [int(n) for n in reply["size"]] if pixels is None else pixels  # labels say theirs
        check_memory(math.prod(pixels) * np.dtype(reply["dtype"]).itemsize, "The file")
        size = int(np.prod(pixels, dtype=object)) * np.dtype(reply["dtype"]).itemsize
        while len(self._pending) < size:
            self._pending += self._some(process, until, size - len(self._pending))
        content = bytes(self._pending[:size])
        del self._pending[:size]
        return reply, content

    def _line(self, process: subprocess.Popen[bytes], until: float) -> bytes:
        while b"\n" not in self._pending:
            if len(self._pending) > LONGEST_LINE:
                raise ValueError("no end")
            self._pending += self._some(process, until, 2**16)
        end = self._pending.index(b"\n")
        line = bytes(self._pending[:end])
        del self._pending[: end + 1]
        return line

    def _some(self, process: subprocess.Popen[bytes], until: float, most: int) -> bytes:
        pipe = _pipe(process.stdout)
        ready, _, _ = select.select([pipe], [], [], max(0.0, until - time.monotonic()))
        if not ready:
            raise TimeoutError
        content = os.read(pipe.fileno(), min(most, 2**24))
        if not content:
            raise EOFError
        return content


def _plain(hint: Any) -> Any:
    return hint.tolist() if isinstance(hint, np.ndarray | np.generic) else str(hint)


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise EOFError
    return pipe


_READERS: dict[int, _Reader] = {}  # by process: what was forked shares no pipe with its parent


def _reader() -> _Reader:
    process = os.getpid()
    if process not in _READERS:
        _READERS.clear()
        _READERS[process] = _Reader()
        atexit.register(_READERS[process].stop)
    return _READERS[process]
