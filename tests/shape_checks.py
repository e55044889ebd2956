"""What tests check annotations with: shapes and dtypes of tensors, and nothing else.

Plain types are mypy's matter, and what a user may give wrongly is refused in words, which tests ask for.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from types import GenericAlias
from typing import TypeVar, get_args, get_origin

from beartype import beartype

F = TypeVar("F", bound=Callable[..., object])
SHAPED = re.compile(r"\[\s*(Tensor|torch\.Tensor|NDArray|np\.ndarray)\s*,")


def check_shapes(function: F) -> F:
    """Check a function's arguments and result against those annotations that have shapes."""
    if isinstance(function, type):
        return function
    notes = getattr(function, "__annotations__", {})
    shaped = {name: _without_sizes(note) for name, note in notes.items() if _has_shape(note)}
    if not shaped:
        return function
    function.__annotations__ = shaped
    return beartype(function)


def _has_shape(note: object) -> bool:
    text = note if isinstance(note, str) else repr(note)
    if "Sequence[int]" in text:  # numbers or a tensor of them, as a user likes
        return False
    return bool(SHAPED.search(text)) or "jaxtyping" in text


def _without_sizes(note: object) -> object:
    """Leave numbers next to tensors in a tuple unchecked: while a graph is traced, sizes are tensors."""
    if get_origin(note) is tuple:
        return GenericAlias(tuple, tuple(_without_sizes(part) for part in get_args(note)))
    return object if note is int else note
