"""Putting reducers of tokens into the blocks of a network whose tokens may lose their places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar, cast

from torch import nn

from vitreous.errors import ModelError
from vitreous.layers.decoders import DenseNet
from vitreous.layers.trunk import Trunk

T = TypeVar("T")


def trunk(model: nn.Module, method: str, *, class_token: bool = False) -> Trunk:
    """Return the model, or what stands before its decoder, if its tokens can be reduced.

    Args:
        model: any network.
        method: who asks, for the message.
        class_token: the method reads the class token's attention.

    Raises:
        ModelError: its tokens cannot be reduced (``reducible``), or it lacks the class token.
    """
    model = model.trunk if isinstance(model, DenseNet) else model
    bound = getattr(getattr(model, "positions", None), "bound", "")
    if bound:
        raise ModelError(
            f"'{method}' does not support {bound}: tokens lose their places in the grid.",
            "Use a model with learned or sincos positions.",
        )
    if not getattr(model, "reducible", False):
        raise ModelError(
            f"'{method}' reduces the tokens of a plain Vision Transformer; {type(model).__name__} needs all of its own.",
            "Use a model of the vit family.",
        )
    network = cast("Trunk", model)
    if class_token and getattr(network, "class_token", None) is None:
        raise ModelError(
            f"'{method}' needs the attention of a class token, but this model pools by '{network.pool}'.",
            "Use a model with pool='class', or another method.",
        )
    return network


def quarters(depth: int) -> list[int]:
    """Return the blocks at which a quarter, half and three quarters of the depth are done: 3, 6 and 9 of 12."""
    return sorted({number for k in (1, 2, 3) if (number := k * depth // 4)}) or [depth - 1]


def check_blocks(blocks: Sequence[int], depth: int, method: str) -> None:
    """Refuse blocks that are not there, or not in order.

    Raises:
        ModelError: says which.
    """
    if (
        not blocks
        or list(blocks) != sorted(set(blocks))
        or not 0 <= blocks[0] <= blocks[-1] < depth
    ):
        raise ModelError(
            f"'{method}' cannot reduce tokens in blocks {list(blocks)} of a model with {depth} blocks.",
            f"Give increasing block indices from 0 to {depth - 1}.",
        )


def per_block(value: T | Sequence[T], count: int, method: str, what: str) -> list[T]:
    """Return a setting for each of ``count`` blocks: the one given for all, or one each.

    Raises:
        ModelError: as many as there are blocks were not given.
    """
    values: list[T] = list(value) if isinstance(value, list | tuple) else [value] * count  # type: ignore[list-item]
    if len(values) != count:
        raise ModelError(
            f"'{method}' got {len(values)} values of '{what}' for {count} blocks.",
            "Give one for all, or one per block.",
        )
    return values


def budget(
    keep_rate: float | Sequence[float],
    tokens: int | Sequence[int] | None,
    blocks: int,
    method: str,
) -> list[tuple[float, int | None]]:
    """Return the keep rate and, where given, the number of patches to keep of each block.

    Raises:
        ModelError: out of range, or not one per block.
    """
    rates = per_block(keep_rate, blocks, method, "keep_rate")
    counts: list[int | None] = per_block(tokens, blocks, method, "tokens")
    for rate in rates:
        if not 0 < rate <= 1:
            raise ModelError(
                f"'{method}' cannot keep the fraction {rate:g} of the tokens.",
                "Use a value above 0, at most 1.",
            )
    for count in counts:
        if count is not None and count < 1:
            raise ModelError(f"'{method}' cannot keep {count} tokens.", "Keep at least 1.")
    return list(zip(rates, counts, strict=True))


def put(model: Trunk, reducers: Mapping[int, nn.Module]) -> None:
    """Set the reducer of each block named by its number."""
    for number, reducer in reducers.items():
        model.blocks[number].reducer = reducer.train(model.training)


class Counting(Protocol):
    """A reducer that can tell what it will leave."""

    def after(self, patches: int) -> int:
        """Return how many of so many patches there are behind the block."""
        ...


def rows(
    model: nn.Module, network: Trunk, reducers: Mapping[int, Counting]
) -> list[dict[str, Any]]:
    """Return the lines of a report: how many tokens each block takes in and hands on, at the model's image size."""
    at = "trunk.blocks" if isinstance(model, DenseNet) else "blocks"
    lines, patches = [], network.patches
    for number, reducer in reducers.items():
        before, patches = patches, reducer.after(patches)
        counts = {
            "tokens before": network.prefix + before,
            "tokens after": network.prefix + patches,
        }
        lines.append({"layer": f"{at}.{number}", **counts})
    return lines
