"""Block reconstruction: learn which weights to round up and which down, so that a block gives what it gave in float.

Li et al., BRECQ, 2021, with the rounding of Nagel et al., AdaRound, 2020: each weight has a number h in [0, 1] that is
added to the code below it, and a penalty that grows over the iterations drives h to one of its ends. The scales of
activations learn along, with gradients that pass straight through the rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from vitreous.layers.quantize import (
    QuantConv,
    QuantLinear,
    QuantMatMul,
    quantized_layers,
    set_enabled,
)
from vitreous.layers.quantizers import Quantizer, UniformQuantizer

BATCH = 32
PENALTY, SHARP, BLUNT, WARMUP = 0.01, 2.0, 20.0, 0.2
RATE = 1e-3  # learning rate of the rounding
SCALE_RATE = 4e-5  # peak learning rate of the scales of activations
STRETCH = (-0.1, 1.1)  # what the sigmoid is stretched to, so that it reaches 0 and 1


class Rounding:
    """The learned rounding of one weight.

    Args:
        weight: the float weight.
        quantizer: its quantizer, calibrated.
    """

    def __init__(self, weight: Tensor, quantizer: UniformQuantizer) -> None:
        self.scale, self.zero, self.top = (
            quantizer.scale,
            quantizer.zero_point,
            quantizer.levels - 1,
        )
        self.below = (weight / self.scale).floor()
        low, high = STRETCH
        rest = weight / self.scale - self.below
        self.logit = nn.Parameter(torch.logit((rest - low) / (high - low)))

    def share(self) -> Tensor:
        """Return h, 0 (down) to 1 (up)."""
        low, high = STRETCH
        return (self.logit.sigmoid() * (high - low) + low).clamp(0, 1)

    def weight(self, share: Tensor) -> Tensor:
        """Return the quantized weight with each code raised by its share."""
        return (self.below + share).clamp(-self.zero, self.top - self.zero) * self.scale

    def hard(self) -> Tensor:
        """Return the weight with each code raised or not."""
        return self.weight((self.logit >= 0).to(self.scale))


class StraightThrough(nn.Module):
    """A quantizer with gradients, for its input and its scale.

    Args:
        quantizer: the quantizer, whose scale is learned in place.
    """

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.enabled = True

    def forward(self, x: Tensor) -> Tensor:
        """Quantize."""
        own = self.quantizer
        if not isinstance(own, UniformQuantizer):
            smooth: Tensor = own.smooth(x)  # type: ignore[operator]
            return smooth
        exact = x / own.scale
        codes = exact.round().detach() + (
            exact - exact.detach()
        )  # the very code, not one ulp beside it
        return codes.clamp(-own.zero_point, own.levels - 1 - own.zero_point) * own.scale


def reconstruct_blocks(
    model: nn.Module, images: Float[Tensor, "batch bands height width"], iterations: int
) -> None:
    """Reconstruct every block from its own float inputs and outputs, and leave weights on their codes.

    Args:
        model: calibrated, in eval mode.
        images: calibration images.
        iterations: steps per block.
    """
    gradients = {name: p.requires_grad for name, p in model.named_parameters()}
    model.requires_grad_(False)
    try:
        for name, block in list(blocks(model)):
            calls = _record(model, block, images)
            if calls:
                _reconstruct(block, calls, iterations, head=name.endswith("head"))
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(gradients[name])


def blocks(model: nn.Module, at: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Iterate over the parts that are reconstructed one by one: a network's blocks, and layers outside of any."""
    for name, child in model.named_children():
        path = f"{at}.{name}" if at else name
        if not any(True for _ in quantized_layers(child)):
            continue
        lists = any(isinstance(part, nn.ModuleList) for part in child.children())
        if lists or isinstance(child, nn.ModuleList | nn.Sequential):
            yield from blocks(child, path)
        else:
            yield path, child


@torch.no_grad()
def _record(
    model: nn.Module, block: nn.Module, images: Tensor
) -> list[tuple[tuple[Any, ...], dict[str, Any], Tensor]]:
    """Return arguments and output of a block in floating point, for each batch."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any], Tensor]] = []

    def hook(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        calls.append((inputs, named, _first(output)))

    handle = block.register_forward_hook(hook, with_kwargs=True)
    set_enabled(model, False)
    try:
        for batch in images.split(BATCH):
            model(batch)
    finally:
        set_enabled(model, True)
        handle.remove()
    return calls


def _reconstruct(
    block: nn.Module,
    calls: list[tuple[tuple[Any, ...], dict[str, Any], Tensor]],
    iterations: int,
    head: bool,
) -> None:
    """Learn the rounding of a block's weights and leave them on their codes."""
    weighted = {
        f"{name}.weight" if name else "weight": layer
        for name, layer in quantized_layers(block)
        if not isinstance(layer, QuantMatMul)
    }
    roundings = {name: _rounding(layer) for name, layer in weighted.items()}
    order = torch.randint(len(calls), (iterations,), generator=torch.Generator().manual_seed(0))
    with torch.enable_grad(), _straight_through(block) as scales:
        learned: list[dict[str, Any]] = [
            {"params": [rounding.logit for rounding in roundings.values()], "lr": RATE},
            {"params": scales},
        ]
        optimizer = torch.optim.Adam(learned)
        for step, which in enumerate(order.tolist()):
            done = step / iterations
            optimizer.param_groups[1]["lr"] = SCALE_RATE * (1 + math.cos(math.pi * done)) / 2
            optimizer.zero_grad()
            _loss(block, roundings, calls[which], done, head).backward()
            optimizer.step()
    with torch.no_grad():
        for name, layer in weighted.items():
            layer.weight.copy_(roundings[name].hard())


def _loss(
    block: nn.Module,
    roundings: dict[str, Rounding],
    call: tuple[tuple[Any, ...], dict[str, Any], Tensor],
    done: float,
    head: bool,
) -> Tensor:
    """Return the error of a block with the weights that are learned, and the penalty of undecided ones."""
    inputs, named, wanted = call
    shares = {name: rounding.share() for name, rounding in roundings.items()}
    weights = {name: roundings[name].weight(share) for name, share in shares.items()}
    output = _first(functional_call(block, weights, inputs, named))
    return _error(output, wanted, head) + _penalty(list(shares.values()), done)


def _rounding(layer: QuantLinear | QuantConv) -> Rounding:
    quantizer = layer.weight_quantizer
    assert isinstance(quantizer, UniformQuantizer)
    return Rounding(layer.weight, quantizer)


@contextmanager
def _straight_through(block: nn.Module) -> Iterator[list[Tensor]]:
    """Put quantizers with gradients in the place of those of activations, and give the scales that learn."""
    replaced, scales = [], []
    for _, layer in quantized_layers(block):
        names = (
            ["a_quantizer", "b_quantizer"]
            if isinstance(layer, QuantMatMul)
            else ["input_quantizer"]
        )
        if not isinstance(layer, QuantMatMul):
            layer.weight_quantizer.enabled = False  # the weight that comes is quantized already
        for name in names:
            own = getattr(layer, name)
            replaced.append((layer, name, own))
            scales.append(own.scale.requires_grad_())
            setattr(layer, name, StraightThrough(own))
    try:
        yield scales
    finally:
        for layer, name, own in replaced:
            own.scale.requires_grad_(False)
            setattr(layer, name, own)
            if not isinstance(layer, QuantMatMul):
                layer.weight_quantizer.enabled = True


def _error(output: Tensor, wanted: Tensor, head: bool) -> Tensor:
    if head:
        return F.kl_div(output.log_softmax(-1), wanted.softmax(-1), reduction="batchmean")
    return (output - wanted).square().sum(1).mean() / 10


def _penalty(shares: list[Tensor], done: float) -> Tensor | float:
    """Return what shares between 0 and 1 cost: nothing at first, then more and more sharply."""
    if done < WARMUP:
        return 0.0
    power = BLUNT + (SHARP - BLUNT) * (done - WARMUP) / (1 - WARMUP)
    total = sum((1 - (2 * share - 1).abs().pow(power)).sum() for share in shares)
    return PENALTY * total


def _first(output: Any) -> Tensor:
    """Return the tensor that a block hands on; with it may come what token reduction carries along."""
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
    return tensor
