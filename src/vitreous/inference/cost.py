"""What a network costs: parameters and multiply-adds, counted without computing anything."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Cost:
    """Cost of one image.

    Attributes:
        parameters: number of weights.
        macs: multiply-adds of convolutions, linear layers and products of matrices (attention included).
    """

    parameters: int
    macs: int


def count_cost(model: nn.Module, bands: int, height: int, width: int | None = None) -> Cost:
    """Count parameters and multiply-adds of one image.

    The network runs on tensors without content, where fused attention is done step by step, so nothing is missed.
    Element-wise work, normalisations and Fourier transforms are not counted, as is usual.

    Args:
        model: a network that takes ``(batch, bands, height, width)``.
        bands: channels of the image.
        height: rows of the image.
        width: columns; as many as rows where not given.
    """
    parameters = sum(p.numel() for p in model.parameters())
    empty = copy.deepcopy(model).to("meta").eval()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        empty(torch.empty(1, bands, height, width or height, device="meta"))
    return Cost(parameters, counter.get_total_flops() // 2)
