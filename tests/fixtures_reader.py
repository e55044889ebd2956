"""Parity fixtures: what references computed, kept in the repository as safetensors and JSON.

``NAME.json`` holds the structure (dicts, lists, numbers, texts); where a tensor belongs stands ``{"$tensor": key}``,
and ``NAME.safetensors`` holds the tensor under that key. ``tests/fixtures/README.md`` says where the numbers come from.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

FOLDER = Path(__file__).with_name("fixtures")


def load_fixture(name: str, folder: Path = FOLDER) -> dict:
    """Return a fixture: ``repo``, ``commit``, ``class``, ``kwargs``, ``state_dict``, ``input``, ``output``, ``note``.

    Args:
        name: a slug, such as ``swin``, or of timm's layouts ``timm/swin``.
        folder: where it lies.
    """
    tree = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return _with_tensors(tree, load_file(folder / f"{name}.safetensors"))


def save_fixture(fixture: dict, path: Path) -> None:
    """Write a fixture as ``path.json`` and ``path.safetensors``; values are kept bit for bit."""
    tensors: dict[str, Tensor] = {}
    tree = _without_tensors(fixture, "", tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path.with_name(f"{path.name}.safetensors"))
    text = json.dumps(tree, indent=1, ensure_ascii=False)
    path.with_name(f"{path.name}.json").write_text(text + "\n", encoding="utf-8")


def _without_tensors(value: object, where: str, tensors: dict[str, Tensor]) -> object:
    """Return a value that JSON can hold; its tensors go to ``tensors``, each with memory of its own."""
    if isinstance(value, Tensor):
        assert where not in tensors, f"two tensors are called {where}"
        tensors[where] = value.detach().clone().contiguous()
        return {"$tensor": where}
    if isinstance(value, dict):
        assert all(isinstance(key, str) and not key.startswith("$") for key in value), where
        return {
            key: _without_tensors(part, f"{where}/{key}".lstrip("/"), tensors)
            for key, part in value.items()
        }
    if isinstance(value, list | tuple):
        parts = [_without_tensors(p, f"{where}/{i}", tensors) for i, p in enumerate(value)]
        return {"$tuple": parts} if isinstance(value, tuple) else parts
    assert value is None or isinstance(value, str | bool | int | float), f"{where}: {type(value)}"
    return value


def _with_tensors(value: object, tensors: dict[str, Tensor]) -> object:
    """Undo :func:`_without_tensors`."""
    if isinstance(value, list):
        return [_with_tensors(part, tensors) for part in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"$tensor"}:
        return tensors[value["$tensor"]]
    if set(value) == {"$tuple"}:
        return tuple(_with_tensors(part, tensors) for part in value["$tuple"])
    return {key: _with_tensors(part, tensors) for key, part in value.items()}
