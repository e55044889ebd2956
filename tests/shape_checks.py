"""What tests check annotations with: shapes and dtypes of tensors, and nothing else.

Plain types are mypy's matter, and what a user may give wrongly is refused in words, which tests ask for.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import TypeVar, cast

import torch
from beartype import beartype

F = TypeVar("F", bound=Callable[..., object])
SHAPED = re.compile(r"\[\s*(Tensor|torch\.Tensor|NDArray|np\.ndarray)\s*,")


def check_shapes(function: F) -> F:
    """Check a function's arguments and result against those annotations that have shapes.

    Not while a graph is traced: sizes are symbols or tensors then, and comparing them would fix them in the graph.
    """
    if isinstance(function, type):
        return function
    notes = getattr(function, "__annotations__", {})
    shaped = {name: note for name, note in notes.items() if _has_shape(note)}
    if not shaped:
        return function
    function.__annotations__ = shaped
    checked = beartype(function)

    @functools.wraps(function)
    def call(*args: object, **kwargs: object) -> object:
        return (function if _traced() else checked)(*args, **kwargs)

    return cast(F, call)


def _traced() -> bool:
    return torch.jit.is_tracing() or torch.compiler.is_compiling() or torch.compiler.is_exporting()


def _has_shape(note: object) -> bool:
    text = note if isinstance(note, str) else repr(note)
    if "Sequence[int]" in text:  # numbers or a tensor of them, as a user likes
        return False
    return bool(SHAPED.search(text)) or "jaxtyping" in text
