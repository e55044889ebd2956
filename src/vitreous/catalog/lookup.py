"""What a path in a table stands for."""

from __future__ import annotations

import importlib
from typing import Any


def load(path: str) -> Any:
    """Import what a table names.

    Args:
        path: ``package.module:name``, or ``package.module`` for the module itself.
    """
    home, _, name = path.partition(":")
    module = importlib.import_module(home)
    return getattr(module, name) if name else module
