"""Learning-rate schedules as plain functions of training progress."""

from __future__ import annotations

import math


def cosine(progress: float) -> float:
    """Return ½(1 + cos(π progress)): from 1 at the start to 0 at the end."""
    return 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))


def cycle_progress(time: float, first: float, growth: int) -> float:
    """Return how far ``time`` is through its cycle (0 at a restart), cycles growing by ``growth`` each.

    With first = 10 and growth = 2 the restarts are at 10, 30, 70 (SGDR, Loshchilov and Hutter, 2017).
    """
    length = float(first)
    while time >= length:
        time -= length
        length *= growth
    return time / length


def cyclic_rate(
    time: float, peak: float, *, first: float, growth: int, factor: float = 1.0
) -> float:
    """Return the rate of LoLA-SpecViT's cyclic schedule.

    rate = eta_min + factor (peak - eta_min) ½(1 + cos(π T_cur/T_i)), eta_min = 1e-6; adapters have factor 2.
    """
    floor = 1e-6
    return floor + factor * (peak - floor) * cosine(cycle_progress(time, first, growth))
