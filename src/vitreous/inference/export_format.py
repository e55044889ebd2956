"""What an export consists of: the folder that ``inference/export.py`` writes and ``inference/runtimes.py`` reads."""

from __future__ import annotations

import hashlib
from pathlib import Path

SCHEMA = 1
DESCRIPTION = "export.json"
RUNTIMES = {
    "onnx": "onnxruntime",
    "openvino": "openvino",
    "torch": "torch",
}  # made for which format
READS = {"onnxruntime": ("onnx",), "openvino": ("openvino", "onnx"), "torch": ("torch",)}
SUFFIXES = {"onnx": (".onnx",), "openvino": (".xml", ".bin"), "torch": (".pt2",)}
PACKAGES = {"onnx": ("onnx", "onnxscript"), "openvino": ("onnx", "onnxscript", "openvino")}
# By what the graphs take: patches of a window's features, the surroundings of a pixel, tiles to label or to restore,
# whole images.
GRAPHS = {
    "patches": ("window", "patches"),
    "pixels": ("pixel",),
    "tiles": ("tile",),
    "cubes": ("cube",),
    "images": ("image",),
}
LARGEST_GRAPH = 2**31 - 1  # bytes; what one ONNX file can hold


def is_export(path: str | Path) -> bool:
    """Tell whether a folder holds an export."""
    return (Path(path) / DESCRIPTION).is_file()


def file_names(graph: str, form: str) -> list[str]:
    """Return the names of the files that hold a graph."""
    return [graph + suffix for suffix in SUFFIXES[form]]


def sha256(path: Path) -> str:
    """Return the hash of a file's contents."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, or its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
