"""Docstrings as the API reference shows them: references of Sphinx become code."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:func|class|mod|meth|data|attr):`~?(?:[\w.]*\.)?([\w]+)`")


class PlainReferences(griffe.Extension):
    """Writes :func:`module.name` as `name`."""

    def on_instance(self, *, obj: griffe.Object, **others: Any) -> None:
        """Change the docstring of whatever was loaded."""
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(r"`\1`", obj.docstring.value)
