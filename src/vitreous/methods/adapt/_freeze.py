"""Training a method's own parameters alone: which they are, and freezing all others.

Every method of this stage says in its file which parameters are its own: ``trainable(name) -> bool``, asked with the
dotted name of a parameter.
"""

from __future__ import annotations

from torch import nn

from vitreous.catalog.registry import cards, stage, system_module
from vitreous.errors import ModelError


def is_adapter(name: str, method: str | None = None) -> bool:
    """Tell from its dotted name whether a parameter belongs to an adapter.

    Args:
        name: of the parameter.
        method: whose adapters; those of any method when None.
    """
    methods = adapting() if method is None else [method]
    return any(system_module(one).trainable(name) for one in methods)


def adapting() -> list[str]:
    """Return the methods that adapt a model, by slug."""
    return [
        entry.slug for entry in cards() if entry.kind == "method" and stage(entry.slug) == "adapt"
    ]


def freeze_base(model: nn.Module, method: str | None = None, *, also_train: str = "") -> None:
    """Let only adapters train (and parameters whose name begins with ``also_train``, such as a new head).

    Args:
        model: changed in place.
        method: whose adapters; those of any method when None.
        also_train: beginning of further names.

    Raises:
        ModelError: the model carries no such adapter.
    """
    own = {name for name, _ in model.named_parameters() if is_adapter(name, method)}
    if not own:
        raise ModelError(
            "The model has no such adapters to train.",
            "Apply an adaptation method first, such as 'lora'.",
        )
    for name, parameter in model.named_parameters():
        chosen = name in own or (bool(also_train) and name.startswith(also_train))
        parameter.requires_grad_(chosen)
        if not chosen:
            parameter.grad = None  # so that the optimiser skips it
