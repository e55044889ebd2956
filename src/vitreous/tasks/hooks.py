"""What parts of a model say to the training around them, and are told by it; no training knows which parts these are.

A module may offer

    losses() -> {name: scalar}    terms of the loss that its last forward pass left, weighted as they should count
    progress(done)                told before each step which share of the training is done, from 0 to 1
    cycle_to(share)               where the learning rate is cyclic: told which share of the cycle is done
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from vitreous.errors import ModelError


class Hooks:
    """The hooks of a model's parts.

    Args:
        model: what is trained; its parts stay the same ones.
    """

    def __init__(self, model: nn.Module) -> None:
        self._charging = list(_offering(model, "losses"))
        self._following = [module for _, module in _offering(model, "progress")]
        self._cycling = [module for _, module in _offering(model, "cycle_to")]
        self._front: set[nn.Module] = set()

    def progress(self, done: float) -> None:
        """Tell which share of the training is done."""
        for module in self._following:
            _call(module, "progress", done)

    def cycle_to(self, share: float) -> None:
        """Tell which share of the learning rate's cycle is done."""
        for module in self._cycling:
            _call(module, "cycle_to", share)

    @contextmanager
    def front(self) -> Iterator[None]:
        """Take the parts that run inside for a front-end whose one pass several steps share."""
        self._front = set()
        handles = [
            module.register_forward_hook(lambda module, *_: self._front.add(module))
            for _, module in self._charging
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def terms(self, *, of_front: bool = False) -> dict[str, Tensor]:
        """Return the loss terms of all parts but those of the front-end, or of these; equal names are added up.

        Raises:
            ModelError: a part gives something else than scalars by name.
        """
        found: dict[str, Tensor] = {}
        for name, module in self._charging:
            if (module in self._front) != of_front:
                continue
            for term, value in _call(module, "losses").items():
                if not isinstance(value, Tensor) or value.ndim or not str(term).isidentifier():
                    raise ModelError(
                        f"losses() of {name or type(module).__name__} gives {term!r}, which is not a named scalar.",
                        "Return a dictionary of scalar tensors under plain names.",
                    )
                found[term] = found[term] + value if term in found else value
        return found


def _offering(model: nn.Module, hook: str) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if callable(getattr(type(module), hook, None)):
            yield name, module


def _call(module: nn.Module, hook: str, *arguments: float) -> Any:
    function: Callable[..., Any] = getattr(module, hook)
    return function(*arguments)
