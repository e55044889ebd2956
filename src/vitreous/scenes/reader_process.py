"""The process in which files of others are read (see ``apart.py``): ``python -m vitreous.scenes.reader_process``."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import IO, Any

import numpy as np
import xarray as xr

from vitreous.errors import VitreousError
from vitreous.scenes.apart import described_place, placed
from vitreous.scenes.cube import LazyCube, Window, make_scene
from vitreous.scenes.formats import open_scene
from vitreous.scenes.labels import open_labels

EXTRA_MEMORY = (
    4 * 2**30
)  # bytes of address space beyond what Python and the libraries take at first
_KEPT = 8  # scenes that stay open
_COLUMNS = ("wavelength", "fwhm", "good_band", "band_name")


def main() -> None:
    """Answer requests from stdin until it ends."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no reply
    _limit()
    scenes: dict[str, xr.DataArray] = {}
    _send(replies, {})
    for line in sys.stdin.buffer:
        request = json.loads(line)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            content = b""
            try:
                reply, content = _answer(request, scenes)
            except VitreousError as error:
                reply = {"problem": error.problem, "fix": error.fix}
            except MemoryError:
                reply = {
                    "problem": f"{request['path']} needs more memory than files of others may take.",
                    "fix": "The file is damaged, or too large to be read so.",
                }
            except Exception as error:  # whatever a library raises for damaged bytes
                reply = {
                    "problem": f"{request['path']} cannot be read: {type(error).__name__}: {str(error)[:200]}.",
                    "fix": "The file is damaged; download it again.",
                }
        reply["warnings"] = [str(w.message) for w in said if w.category is UserWarning]
        _send(replies, reply, content)


def _answer(
    request: dict[str, Any], scenes: dict[str, xr.DataArray]
) -> tuple[dict[str, Any], bytes]:
    key = json.dumps([request["path"], request["hints"]])
    os.chdir(request["folder"])  # hints may name files
    if request["do"] == "labels":
        return _labels(request)
    if request["do"] == "open" or key not in scenes:  # opened anew: the file may be another
        while len(scenes) >= _KEPT:
            scenes.pop(next(iter(scenes)))
        scenes[key] = open_scene(request["path"], **request["hints"])
    scene = scenes[key]
    if request["do"] == "open":
        return _described(scene), b""
    bands, rows, columns = (slice(*part) for part in request["window"])
    values = np.ascontiguousarray(scene[bands, rows, columns].values)
    return {"dtype": values.dtype.str}, values.tobytes()


def _described(scene: xr.DataArray) -> dict[str, Any]:
    nodata = scene.attrs["nodata"]
    facts = {
        "unit": scene.attrs["unit"],
        "scale": float(scene.attrs["scale"]),
        "nodata": None if nodata is None else float(nodata),
    }
    columns = {name: scene[name].values.tolist() for name in _COLUMNS if name in scene.coords}
    return {
        "shape": scene.shape,
        "type": scene.dtype.str,
        "facts": facts,
        "columns": columns,
        "place": described_place(scene),
    }


def _labels(request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    hints, like = request["hints"], request["like"]
    if request["coded_names"]:
        hints["class_names"] = dict(hints["class_names"])
    if like is not None:
        crs, transform = placed(like)
        nothing = LazyCube((1, *like["size"]), np.uint8, _no_values)
        like = make_scene(nothing, crs=crs, transform=transform, source=like["source"])
    labels = open_labels(request["path"], like, request["attribute"], **hints)
    names = ("class_names", "class_colors", "class_codes", "source")
    reply = {
        "size": labels.shape,
        "dtype": "<i4",
        "facts": {name: labels.attrs[name] for name in names},
        "place": described_place(labels),
    }
    return reply, np.ascontiguousarray(labels.values, dtype="<i4").tobytes()


def _no_values(window: Window) -> Any:
    raise AssertionError("labels depend on a scene's place alone")


def _limit() -> None:
    """Cap the memory, and write no core of what crashes; where the system can."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[0]
        used = int(pages) * resource.getpagesize()
    except OSError:
        used = 0
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    wanted = used + EXTRA_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard < 0 else min(wanted, hard), hard))


def _send(replies: IO[bytes], reply: dict[str, Any], content: bytes = b"") -> None:
    replies.write(json.dumps(reply).encode() + b"\n" + content)
    replies.flush()


if __name__ == "__main__":
    main()
