"""Checkpoints that others wrote: tensors out of them, and nothing else.

PyTorch's own format is a pickle, which could hold a program. It is read by PyTorch's restricted unpickler, which
knows tensors and plain containers and refuses everything else; there is no way around it here.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vitreous.catalog.tensors import WRAPPERS, without_prefix
from vitreous.checkpoints.tensors import MAX_TENSORS, read_safetensors
from vitreous.errors import CheckpointError

PICKLED = (".pth", ".pt", ".bin", ".ckpt", ".tar")
MOST_BYTES = 64 * 2**30
MOST_PICKLE_BYTES = (
    64 * 2**20
)  # the description without the tensors' values; a few hundred KB are usual
# Where trainers keep the weights among optimisers and counters. Averaged weights first: they are the published ones.
PARTS = ("model_ema", "state_dict_ema", "ema_state_dict", "model", "state_dict", "module", "net")
PREFIXES = (*WRAPPERS, "model.", "backbone.", "net.")  # trainers' modules hold a network, too


class Foreign(NamedTuple):
    """The tensors of a file.

    Attributes:
        tensors: by name, without the prefixes of wrappers.
        beside: names of those that stood beside the network in its wrapper, and had no such prefix.
        part: where in the file they were, e.g. ``model_ema``; empty where they were the whole file.
        header: what vitreous wrote beside them, or None in a file of others.
    """

    tensors: dict[str, Tensor]
    beside: tuple[str, ...]
    part: str
    header: Any


def read_foreign(path: str | Path) -> Foreign:
    """Read the weights of a ``.pth``, ``.pt``, ``.bin``, ``.ckpt``, ``.pth.tar`` or ``.safetensors`` file.

    Raises:
        CheckpointError: no such file, one of another kind, a damaged one, one that claims more than it holds, or
            one with Python objects in it.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"No such file: {path}.", "Check its name.")
    if path.suffix == ".safetensors":
        tensors, header = read_safetensors(path)
        return _unwrapped(tensors, "", header)
    if path.suffix not in PICKLED:
        raise CheckpointError(
            f"{path} has the suffix '{path.suffix}', which is not a weight file's.",
            f"Give a .safetensors file, or one of {', '.join(PICKLED)}.",
        )
    _check_archive(path)
    tensors, part = _weights_in(_unpickle(path), path)
    _check_claims(tensors, path)
    return _unwrapped(tensors, part, None)


def _unwrapped(tensors: Mapping[str, Tensor], part: str, header: Any) -> Foreign:
    bare = without_prefix(tensors, PREFIXES)
    beside = tuple(key for key in bare if key in tensors) if len(bare.keys() - tensors) else ()
    return Foreign(bare, beside, part, header)


def _check_archive(path: Path) -> None:
    """Do the sums on sizes before anything is unpacked."""
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise CheckpointError(f"{path} has {size / 2**30:.0f} GiB, more than any supported model.")
    if not zipfile.is_zipfile(path):  # PyTorch before 1.6; its values lie in the file as they are
        return
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(f"{path} is damaged: {error}.", "Download it again.") from error
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointError(
            f"{path} is compressed, which PyTorch never does.",
            "Unpack it first if it is an archive.",
        )
    if sum(entry.file_size for entry in entries) > size or any(
        entry.filename.endswith("data.pkl") and entry.file_size > MOST_PICKLE_BYTES
        for entry in entries
    ):
        raise CheckpointError(f"{path} declares more data than it holds.", "Download it again.")


def _unpickle(path: Path) -> Any:
    mapped = zipfile.is_zipfile(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # on storages of old versions; nothing a user can act on
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except UnpicklingError as error:
        raise _refusal(path, str(error)) from error
    # A damaged pickle makes the unpickler fail in any of these ways.
    except (
        RuntimeError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        AssertionError,
        EOFError,
        OSError,
        RecursionError,
        OverflowError,
    ) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path} is damaged: {reason}.", "Download it again.") from error


def _refusal(path: Path, message: str) -> CheckpointError:
    """Say what PyTorch found in a file, without its advice to read it all the same."""
    found = re.search(r"(?:GLOBAL|global:?|class|function|type)\s+`?([\w.]+\.[\w.]+)", message)
    if found is None:
        return CheckpointError(
            f"{path} is not a weight file, or is damaged.",
            "Download it again, preferably as safetensors.",
        )
    return CheckpointError(
        f"{path} holds more than tensors: the Python object {found[1]}, which could run code. Nothing was read.",
        "Get a safetensors file, or, if you trust this file, save only its state_dict.",
    )


def _weights_in(content: Any, path: Path) -> tuple[dict[str, Tensor], str]:
    """Find the state dict in what a trainer saved."""
    part = ""
    for _ in range(4):
        if not isinstance(content, Mapping):
            break
        tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
        inner = next((name for name in PARTS if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            if not tensors or len(tensors) > MAX_TENSORS:
                break
            return tensors, part
        content, part = content[inner], f"{part}.{inner}".strip(".")
    raise CheckpointError(
        f"{path} does not contain a state_dict.",
        f"The file must be a state_dict, or hold one under {PARTS}.",
    )


def _check_claims(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that are larger than the file: views that repeat a few values without end."""
    size = path.stat().st_size
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise CheckpointError(
                f"The tensor {name} in {path} is sparse, quantised or empty.",
                "Save it as a dense tensor.",
            )
        if tensor.numel() * tensor.element_size() > size:
            raise CheckpointError(
                f"The tensor {name} in {path} declares the shape {tuple(tensor.shape)}, more than the file holds.",
                "Download it again.",
            )
