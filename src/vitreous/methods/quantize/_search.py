"""The layers' searches: which values are one factor of which product."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.layers.quantize import (
    QuantConv,
    QuantLinear,
    QuantMatMul,
)
from vitreous.layers.quantizers import Quantizer, UniformQuantizer
from vitreous.methods.quantize._codes import AdaLogQuantizer
from vitreous.methods.quantize._fpcs import (
    TINY,
    Budget,
    Factor,
    Setting,
    alternate,
    log_start,
    uniform_start,
)

ZEROS = 16  # zero points that are tried, at most
SCALE_FLOOR = 1e-4  # of inputs, as published; less where inputs are small as a whole
POSITIONS = (
    8  # a convolution is scored on this many times as many places as a linear layer on tokens
)


def search_linear(
    layer: QuantLinear,
    x: Float[Tensor, "*batch inputs"],
    output: Float[Tensor, "*batch outputs"],
    budget: Budget,
    norm: nn.LayerNorm | None = None,
) -> None:
    """Set the quantizers of a linear layer, and before it move the scales of its channels into ``norm``.

    Args:
        layer: the layer.
        x: its float input.
        output: its float output.
        budget: how long to search.
        norm: the LayerNorm that only this layer reads.
    """
    tokens = x.reshape(-1, layer.in_features)
    if norm is not None:
        tokens = fold_channels(norm, layer, tokens, budget)
    product = output.reshape(-1, layer.out_features)
    if layer.bias is not None:
        product = product - layer.bias
    weight, own = _weight_factor(layer, layer.weight), layer.input_quantizer
    weight.search(None, None, budget)
    if isinstance(own, AdaLogQuantizer):
        inputs = Factor(tokens, (1, 1), own.bits, shift=own.shift, sampled=True)
        inputs.setting = log_start(inputs, budget.candidates)
        alternate(inputs, weight, product, budget)
    else:
        inputs = _input_factor(tokens, (1, 1), own.bits)
        inputs.search(None, None, budget)
        alternate(weight, inputs, product.mT, budget)
    _set(own, inputs)
    _set(layer.weight_quantizer, weight)


def fold_channels(
    norm: nn.LayerNorm, layer: QuantLinear, tokens: Float[Tensor, "tokens inputs"], budget: Budget
) -> Float[Tensor, "tokens inputs"]:
    """Search a scale and zero point per channel, and move what differs between channels into norm and weights.

    With s and z of the channels, s~ their mean and z~ the rounded mean, the norm's output is divided by r = s / s~
    and moved by s~ (z - z~), so that all channels fill the codes alike; the layer takes it back (RepQ-ViT, section
    3.2).

    Returns:
        The tokens as the changed norm gives them.
    """
    channels = _input_factor(tokens, (1, layer.in_features), layer.input_quantizer.bits)
    channels.covers_zero = False  # what is out of range is moved into the norm
    channels.search(None, None, budget)
    assert channels.setting is not None
    scale, zero = (field.flatten() for field in channels.setting)
    ratio = scale / scale.mean()
    offset = scale.mean() * (zero - zero.mean().round())
    norm.weight.div_(ratio)
    norm.bias.div_(ratio).add_(offset)
    layer.weight.mul_(ratio)
    layer.bias.sub_(layer.weight @ offset)
    return tokens / ratio + offset


def search_convolution(
    layer: QuantConv,
    x: Float[Tensor, "batch inputs *size"],
    output: Float[Tensor, "batch outputs *places"],
    budget: Budget,
) -> None:
    """Set the quantizers of a convolution: the input's by its range, the weight's by the error of the output.

    Args:
        layer: the layer.
        x: its float input.
        output: its float output.
        budget: how long to search.
    """
    layer.input_quantizer.calibrate(x)
    few = _items(len(x), POSITIONS * budget.rows // output[0, 0].numel())
    groups = layer.conv.groups
    right = windows(layer.conv, layer.input_quantizer.quantize(x[few]))
    product = output[few] if layer.bias is None else output[few] - _column(layer.bias, output)
    product = product.transpose(0, 1).reshape(groups, len(layer.weight) // groups, -1)
    weight = _weight_factor(layer, layer.weight.reshape(*product.shape[:2], -1))
    weight.search(None, None, budget)
    weight.search(right, product, budget)
    _set(layer.weight_quantizer, weight)


def windows(
    conv: Any, x: Float[Tensor, "batch inputs *size"]
) -> Float[Tensor, "groups window places"]:
    """Return what a convolution sees at each place, so that it is a product of matrices, one per group."""
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    x = F.pad(x, conv._reversed_padding_repeated_twice, mode=mode)
    axes = len(conv.kernel_size)
    for axis, (kernel, stride, dilation) in enumerate(
        zip(conv.kernel_size, conv.stride, conv.dilation, strict=True), start=2
    ):
        x = x.unfold(axis, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
    places = range(2, 2 + axes)
    x = x.permute(1, *range(2 + axes, 2 + 2 * axes), 0, *places)  # inputs, window, batch, places
    count = math.prod(x.shape[1 : 1 + axes]) * x.shape[0] // conv.groups
    return x.reshape(conv.groups, count, -1)


def search_product(
    layer: QuantMatMul,
    a: Float[Tensor, "*batch heads n k"],
    b: Float[Tensor, "*batch heads k m"],
    output: Float[Tensor, "*batch heads n m"],
    budget: Budget,
) -> None:
    """Set the quantizers of a product of the attention, one per head for queries, keys and values.

    Args:
        layer: the product.
        a: queries, or attention.
        b: transposed keys, or values.
        output: their product.
        budget: how long to search.
    """
    a, b, output = (tensor.flatten(0, -4) for tensor in (a, b, output))
    few = _items(len(a), budget.rows // a.shape[-2])
    own = layer.a_quantizer
    if isinstance(own, AdaLogQuantizer):
        first = Factor(a[few], (1, 1, 1, 1), own.bits, scaled=False)
        first.setting = Setting(own.scale.reshape(first.shape), own.base.reshape(first.shape))
    else:
        first = _head_factor(a[few], own, budget)
    second = _head_factor(b[few].mT, layer.b_quantizer, budget)
    alternate(first, second, output[few], budget)
    _set(own, first)
    _set(layer.b_quantizer, second)


def _weight_factor(layer: QuantLinear | QuantConv, rows: Tensor) -> Factor:
    bits = layer.weight_quantizer.bits
    return Factor(rows, (*rows.shape[:-1], 1), bits, min(ZEROS, 2 ** (bits - 1)))


def _input_factor(tokens: Tensor, shape: tuple[int, ...], bits: int) -> Factor:
    floor = min(SCALE_FLOOR, float(tokens.abs().max()) / 1000 / 2**bits)
    floor = max(floor, TINY)
    return Factor(tokens, shape, bits, min(ZEROS, 2**bits), floor=floor, sampled=True)


def _head_factor(values: Tensor, quantizer: Quantizer, budget: Budget) -> Factor:
    assert isinstance(quantizer, UniformQuantizer)
    shape = (1, quantizer.scale.numel(), 1, 1)
    factor = Factor(values, shape, quantizer.bits, min(ZEROS, 2 ** (quantizer.bits - 1)))
    factor.setting = uniform_start(factor, budget)
    return factor


def _set(quantizer: Quantizer, factor: Factor) -> None:
    assert isinstance(quantizer, UniformQuantizer | AdaLogQuantizer)
    assert factor.setting is not None
    quantizer.set_parameters(*factor.setting)


def _items(count: int, wanted: int) -> Tensor:
    """Return places of evenly spaced items, at least one."""
    return torch.linspace(0, count - 1, min(count, max(1, wanted))).long()


def _column(bias: Tensor, like: Tensor) -> Tensor:
    return bias.reshape(-1, *[1] * (like.ndim - 2))
