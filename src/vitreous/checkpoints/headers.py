"""What the header of every checkpoint says: its format, and which ground its weights have learned from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from vitreous.errors import CheckpointError

SCHEMA = 1
PROVENANCE = "provenance"  # in the header of every model file
SPECTRA = (
    "spectra"  # in that of preprocessing: what is done to each spectrum; older files did nothing
)
LARGEST_ARGUMENT = 256  # of a model, unless a tensor in its file is that large

# What building or restoring from a damaged description can fail in.
DAMAGES = (
    LookupError,
    TypeError,
    AttributeError,
    ValueError,
    ArithmeticError,
    RuntimeError,
)


@contextmanager
def readable_header(path: Path, header: Any) -> Iterator[None]:
    """Take what fails inside for the fault of a damaged header.

    Raises:
        CheckpointError: something does, or the file was made for a newer version.
    """
    try:
        if header["schema"] != SCHEMA:
            raise CheckpointError(
                f"{path} has format {header['schema']}, but this version reads {SCHEMA}.",
                "Update vitreous.",
            )
        yield
    except DAMAGES as error:
        raise CheckpointError(
            f"The description in {path} is damaged: {error!r}.",
            "Restore the file, or train again.",
        ) from error


def check_counts(model_args: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Refuse more layers than the file could hold, before they are made one by one."""
    most = max([LARGEST_ARGUMENT, *(max(tensor.shape, default=0) for tensor in tensors.values())])
    for key, value in model_args.items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int | float) and not abs(number) <= most:
                raise ValueError(f"{key} = {value}, more than its tensors can hold")
