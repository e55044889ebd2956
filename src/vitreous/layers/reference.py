"""What models share in taking the arguments and weights of reference implementations (``from_reference``, ``rename``)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vitreous.errors import CheckpointError, ModelError


def refuse_others(
    slug: str, kwargs: Mapping[str, Any], offered: Mapping[str, Sequence[Any]]
) -> None:
    """Refuse constructor arguments that would change what is computed in a way that ours does not offer.

    Args:
        slug: the system.
        kwargs: the reference's constructor arguments; those that are not in ``offered`` are not checked.
        offered: the values of an argument that change nothing, or that we know.

    Raises:
        ModelError: an argument has another value.
    """
    for name, known in offered.items():
        if name in kwargs and not any(_same(kwargs[name], value) for value in known):
            raise ModelError(
                f"{slug} does not offer {name}={kwargs[name]!r:.80} of the reference.",
                f"It has {' or '.join(repr(value) for value in known)}.",
            )


def refuse_eps(slug: str, kwargs: Mapping[str, Any], own: float) -> None:
    """Refuse normalisations that add something else to variances than ours do.

    Raises:
        ModelError: they do.
    """
    given = norm_eps(kwargs, own)
    if given != own:
        raise ModelError(
            f"{slug} normalises with eps={own:g}, not {given:g}.", "Use its default norm_layer."
        )


def _same(given: Any, value: Any) -> bool:
    if isinstance(given, str) and isinstance(value, str):
        return given.lower() == value.lower()
    if isinstance(given, list | tuple) and isinstance(value, list | tuple):
        return [*given] == [*value]
    # False does not equal a size of 0, nor True one of 1.
    return isinstance(given, bool) == isinstance(value, bool) and bool(given == value)


def rename_keys(weights: Mapping[str, Tensor], our_name: Callable[[str], str]) -> dict[str, Tensor]:
    """Give tensors our names.

    Raises:
        CheckpointError: two tensors would have one name, so that one of them would be lost.
    """
    renamed: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    for key, value in weights.items():
        name = our_name(key)
        if name in renamed:
            raise CheckpointError(
                f"The tensors {origin[name]} and {key} both map to {name}.",
                "The checkpoint mixes two models or two layouts; keep one of the two tensors.",
            )
        renamed[name], origin[name] = value, key
    return renamed


def substitute(rules: Sequence[tuple[str, Any]], key: str) -> str:
    """Return a name after all replacements ``(pattern, text or function)``, one after the other."""
    for old, new in rules:
        key = re.sub(old, new, key)
    return key


def begin(names: Mapping[str, str], key: str) -> str:
    """Return a name with its beginning replaced, by the first entry that fits."""
    for old, new in names.items():
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key


def join(
    weights: Mapping[str, Tensor],
    parts: Sequence[str],
    whole: str,
    shares: Sequence[int] | None = None,
) -> dict[str, Tensor]:
    """Join tensors that are one of ours, row by row, at the first one's place.

    Where one of them is missing or does not fit the others, all keep their names, and are reported as left over.

    Args:
        weights: tensors by name.
        parts: what the names of those that belong together differ in, e.g. ``.attn.wk.`` and ``.attn.wv.``.
        whole: what stands there in ours.
        shares: how the rows are divided among them; equally where not given.
    """
    joined: dict[str, Tensor] = {}
    taken: set[str] = set()
    for key in weights:
        group = [key.replace(parts[0], part) for part in parts]
        if parts[0] in key and _fit_together(weights, group, shares or [1] * len(parts)):
            joined[key.replace(parts[0], whole)] = torch.cat([weights[name] for name in group])
            taken.update(group)
        else:
            joined[key] = weights[key]
    return {key: value for key, value in joined.items() if key not in taken}


def _fit_together(
    weights: Mapping[str, Tensor], names: Sequence[str], shares: Sequence[int]
) -> bool:
    if not all(name in weights and weights[name].ndim for name in names):
        return False
    first, *others = (weights[name].shape for name in names)
    return all(
        shape[1:] == first[1:] and shape[0] * shares[0] == first[0] * share
        for shape, share in zip(others, shares[1:], strict=True)
    )


def pair(size: int | Sequence[int]) -> tuple[int, int]:
    """Return rows and columns of a size that a reference gives as one side, or as both."""
    if isinstance(size, int):
        return size, size
    rows, columns = size if len(size) == 2 else (size[0], size[0])
    return int(rows), int(columns)


def one_side(slug: str, size: int | Sequence[int], what: str) -> int:
    """Return the side of something square.

    Raises:
        ModelError: it is not square.
    """
    rows, columns = pair(size)
    if rows != columns:
        raise ModelError(
            f"{slug} is built for square {what}, not {rows} x {columns}.",
            "Give one size for both sides.",
        )
    return rows


def norm_eps(kwargs: Mapping[str, Any], default: float) -> float:
    """Return what a reference adds to variances: ``norm_eps``, or the eps of ``norm_layer``.

    Args:
        kwargs: its arguments; ``norm_layer`` may be a partial of a class, or a description such as ``LayerNorm eps=1e-6``.
        default: of the reference.
    """
    if kwargs.get("norm_eps") is not None:
        return float(kwargs["norm_eps"])
    stated = re.search(r"eps=([\d.e+-]+)", str(kwargs.get("norm_layer")))
    return float(stated[1]) if stated else default
