"""What a path in a table stands for."""

from __future__ import annotations

import importlib
from typing import Any

from vitreous.errors import VitreousError

OURS = __name__.partition(".")[0]


def load(path: str) -> Any:
    """Import what a table names.

    Args:
        path: ``package.module:name``, or ``package.module`` for the module itself.

    Raises:
        VitreousError: it stands in another package, and importing that fails.
    """
    home, _, name = path.partition(":")
    try:
        module = importlib.import_module(home)
        return getattr(module, name) if name else module
    except Exception as error:  # of somebody else's code: anything
        package = home.partition(".")[0]
        if package == OURS:
            raise
        raise VitreousError(
            f"The package '{package}' cannot be used: loading {path} fails with {error!r}.",
            "Repair or uninstall it.",
        ) from error
