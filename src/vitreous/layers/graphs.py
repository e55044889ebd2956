"""Whether a network is being recorded as a graph, which must show how everything is made."""

from __future__ import annotations

import torch


def recording() -> bool:
    """Tell whether a compiler, an exporter or ``torch.jit.trace`` is looking: what was kept from before is no part of it."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
