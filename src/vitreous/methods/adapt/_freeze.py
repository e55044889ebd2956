"""Training a method's own parameters alone: which they are, and freezing all others."""

from __future__ import annotations

from torch import nn

from vitreous.errors import ModelError

# A method of this stage either puts its module into the seam ``adapter`` or names its parameters ``lora_*``.
MARKS = ("lora_", "adapter")


def is_adapter(name: str, marks: str | tuple[str, ...] = MARKS) -> bool:
    """Tell from its dotted name whether a parameter belongs to an adapter.

    Args:
        name: of the parameter.
        marks: what a part of the name begins with; of any method where not given.
    """
    return any(part.startswith(marks) for part in name.split("."))


def freeze_base(
    model: nn.Module, marks: str | tuple[str, ...] = MARKS, *, also_train: str = ""
) -> None:
    """Let only adapters train (and parameters whose name begins with ``also_train``, such as a new head).

    Args:
        model: changed in place.
        marks: the adapters' (``MARK`` of a method's file); those of any method where not given.
        also_train: beginning of further names.

    Raises:
        ModelError: the model carries no such adapter.
    """
    if not any(is_adapter(name, marks) for name, _ in model.named_parameters()):
        raise ModelError(
            "The model has no such adapters to train.",
            "Apply an adaptation method first, such as 'lora'.",
        )
    for name, parameter in model.named_parameters():
        chosen = is_adapter(name, marks) or (bool(also_train) and name.startswith(also_train))
        parameter.requires_grad_(chosen)
        if not chosen:
            parameter.grad = None  # so that the optimiser skips it
