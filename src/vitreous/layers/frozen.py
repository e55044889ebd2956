"""Parts of a network that stay as they were loaded: without gradients, in evaluation mode, shared by its copies."""

from __future__ import annotations

import copy
import fnmatch
from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def hold_frozen(model: M) -> M:
    """Take the gradients from what parts of a model name in ``frozen``, and put it in evaluation mode.

    ``frozen`` are shell patterns of the names of modules, whose parts are then frozen with them, or of parameters.
    """
    for owner in model.modules():
        patterns: tuple[str, ...] = getattr(owner, "frozen", ())
        if not patterns:
            continue
        for name, module in owner.named_modules():
            if name and _named(name, patterns):
                nn.Module.train(module.requires_grad_(False), False)
        for name, parameter in owner.named_parameters():
            if _named(name, patterns):
                parameter.requires_grad_(False)
    return model


def frozen_modules(model: nn.Module) -> set[nn.Module]:
    """Return the modules that :func:`hold_frozen` keeps in evaluation mode."""
    return {
        part
        for owner in model.modules()
        for name, module in owner.named_modules()
        if name and _named(name, getattr(owner, "frozen", ()))
        for part in module.modules()
    }


def averaged_copy(model: M) -> M:
    """Return a copy to average the weights in; parameters without gradients never move and are shared, not copied."""
    shared = {id(p): p for p in model.parameters() if not p.requires_grad}
    return copy.deepcopy(model, shared).requires_grad_(False)


def _named(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
