"""Checkpoints: tensors in safetensors, everything else as JSON in the same file's header.

One file is written atomically, so weights and description cannot get separated, and reading it runs no code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vitreous.catalog.tensors import check_finite
from vitreous.errors import CheckpointError
from vitreous.files import atomic_path, parse_json

MAX_TENSORS = 200_000
_TENSOR = "__tensor__"
_TUPLE = "__tuple__"
_INT_KEYS = "__int_keys__"


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], header: Any) -> None:
    """Write tensors and a JSON header into one safetensors file, atomically."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        try:
            save_file(plain, temporary, metadata={"vitreous": json.dumps(header)})
        except SafetensorError as error:  # its words for what the system said, e.g. of a full disk
            code = re.search(r"os error (\d+)", str(error))
            if code is None:
                raise
            raise OSError(int(code[1]), str(error)) from error


def load_tensors(
    path: str | Path, parse: Callable[[str], Any] = parse_json
) -> tuple[dict[str, Tensor], Any]:
    """Read what :func:`save_tensors` wrote.

    Args:
        path: the file.
        parse: reads the header's text.

    Raises:
        CheckpointError: missing, truncated, not ours, or with an absurd number of tensors.
    """
    tensors, header = read_safetensors(path, parse)
    if header is None:
        raise CheckpointError(
            f"{path} was not written by vitreous.", "Give a model.safetensors of a run folder."
        )
    return tensors, header


def read_header(path: str | Path) -> Any:
    """Read our header of a safetensors file without its tensors; None where there is none.

    Raises:
        CheckpointError: missing or truncated.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist.", "Check the path.")
    try:
        with safe_open(path, framework="pt") as file:
            return parse_json((file.metadata() or {}).get("vitreous", "null"))
    except (SafetensorError, ValueError, OSError, RecursionError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path} is damaged: {error}.", "Restore the file, or train again.")


def read_safetensors(
    path: str | Path, parse: Callable[[str], Any] = parse_json
) -> tuple[dict[str, Tensor], Any]:
    """Read anybody's safetensors file: its tensors, and our header in it, or None where there is none.

    Args:
        path: the file.
        parse: reads the header's text.

    Raises:
        CheckpointError: missing, truncated, or with an absurd number of tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            f"{path} does not exist.", "Give a run folder that has finished training."
        )
    try:
        # safetensors checks its header (at most 100 MB) and every offset against the file's size.
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if len(names) > MAX_TENSORS:
                raise CheckpointError(
                    f"{path} claims {len(names)} tensors.", "It is not a vitreous checkpoint."
                )
            header = parse((file.metadata() or {}).get("vitreous", "null"))
            return {name: file.get_tensor(name) for name in names}, header
    except (SafetensorError, ValueError, OSError, RecursionError) as error:
        raise _damaged(path, error) from error


def save_state(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write a training state: nested dicts, lists and tuples of tensors and plain values."""
    tensors: dict[str, Tensor] = {}
    save_tensors(path, tensors=tensors, header=_pack(state, tensors))


def load_state(path: str | Path) -> dict[str, Any]:
    """Read what :func:`save_state` wrote.

    Raises:
        CheckpointError: the file is damaged, or no training state.
    """
    tensors, header = load_tensors(path, json.loads)  # a training may have met infinities
    try:
        state: dict[str, Any] = _unpack(header, tensors)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not a valid training state: {error!r}.", "Start the run again."
        ) from error
    return state


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Replace tensors by references, collecting them; what JSON cannot hold is an error of ours."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value
        return {_TENSOR: name}
    if isinstance(value, Mapping):
        if any(isinstance(key, int) for key in value):  # optimisers number their parameters
            return {_INT_KEYS: [[key, _pack(item, tensors)] for key, item in value.items()]}
        return {str(key): _pack(item, tensors) for key, item in value.items()}
    if isinstance(value, tuple):
        return {_TUPLE: [_pack(item, tensors) for item in value]}
    if isinstance(value, list):
        return [_pack(item, tensors) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(value).__name__} cannot be part of a checkpoint")


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if _TENSOR in value:
            return tensors[value[_TENSOR]]
        if _TUPLE in value:
            return tuple(_unpack(item, tensors) for item in value[_TUPLE])
        if _INT_KEYS in value:
            return {key: _unpack(item, tensors) for key, item in value[_INT_KEYS]}
        return {key: _unpack(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    return value


def load_exactly(model: torch.nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Load tensors into a model (on the meta device or not) and refuse anything but a perfect fit.

    Raises:
        CheckpointError: names, shapes or types differ, or a value is NaN or infinite; the message names a few.
    """
    own = model.state_dict()
    missing = [name for name in own if name not in tensors]
    left_over = [name for name in tensors if name not in own]
    shapes = [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    types = [
        f"{name} {tensors[name].dtype} instead of {own[name].dtype}"
        for name in own
        if name in tensors and tensors[name].dtype != own[name].dtype
    ]
    complaints = [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in (
            ("missing", missing),
            ("unexpected", left_over),
            ("with a different shape", shapes),
            ("with a different type", types),
        )
        if names
    ]
    if complaints:
        raise CheckpointError(
            f"The weights do not fit {what}: {'; '.join(complaints)}.",
            "They belong to a different model or other settings; nothing was loaded.",
        )
    check_finite(tensors, f"The file of {what}")
    model.load_state_dict(dict(tensors), assign=True)
    # A buffer that no file holds would stay without memory, and indexing by it gives whatever lies around.
    empty = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    assert not empty, f"{what} was built without memory and does not fill {empty}"
