"""Random streams of their own for every purpose, so that what is drawn depends on nothing that was drawn before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

VALIDATED = 30_000  # the stream of what is measured


def stream(*key: int) -> torch.Generator:
    """Return a random generator of its own for a key such as (seed, epoch, rank)."""
    return torch.Generator().manual_seed(stream_seed(*key))


def stream_seed(*key: int) -> int:
    """Mix numbers into one seed; neighbouring keys give unrelated streams."""
    seed = 0
    for part in key:
        seed = (seed * 6364136223846793005 + (part + 1) * 1442695040888963407) % 2**63
    return seed


@contextmanager
def own_stream(*key: int) -> Iterator[None]:
    """Draw what is drawn inside from the stream of a key, and go on outside as if nothing had been drawn."""
    with torch.random.fork_rng():
        torch.manual_seed(stream_seed(*key))
        yield
