"""What all quantization methods do to a model: fold what can be folded, place quantizers, set them, and measure.

A method says which quantizers it wants (:class:`Choice`); which layers there are is found here, whatever the
architecture: linear layers, convolutions, and the two products of every ``AttentionCore``. Softmax, norms and
activation functions stay in floating point.
"""

from __future__ import annotations

import fnmatch
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from vitreous.errors import ModelError, did_you_mean
from vitreous.layers.attention import AttentionCore
from vitreous.layers.convnorm import fuse
from vitreous.layers.lora import fold_lora
from vitreous.layers.quantize import (
    Convolution,
    QuantConv,
    QuantLayer,
    QuantLinear,
    QuantMatMul,
    calibrate_weights,
    observing,
    quantized_layers,
    set_enabled,
)
from vitreous.layers.quantizers import Quantizer, check_bits

MEASURED = 32  # images that the table's ratios are measured on
CHECKED = 8  # images on which folding scales into norms is checked
SLACK = 1e-4  # of the scores' size: rounding of floats stays below a tenth of it
PRODUCTS = ("matmul_qk", "matmul_av")
# Where outside of a Sequential a convolution is followed by its batch norm at once.
NORMED = {("fc1", "norm1"), ("fc2", "norm2"), ("conv", "norm")}


@dataclass(frozen=True)
class Choice:
    """The quantizers that a method wants.

    Attributes:
        inputs: makes that of the input of the layer of a name.
        weights: makes that of a weight, from the shape of its scales: ``(outputs, 1, ...)``.
        products: makes the quantized product of a name, which ends in ``matmul_qk`` or ``matmul_av``.
        biased: names of linear layers that must have a bias, also where they have none.
    """

    inputs: Callable[[str], Quantizer]
    weights: Callable[[tuple[int, ...]], Quantizer]
    products: Callable[[str], QuantMatMul]
    biased: frozenset[str] = frozenset()


def place_quantizers(
    model: nn.Module, choice: Choice, skip: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Put quantized layers in the place of the float ones.

    Args:
        model: after :func:`fold`.
        choice: which quantizers.
        skip: shell patterns of the names of layers that stay in floating point.

    Returns:
        A row per layer.

    Raises:
        ModelError: a pattern matches no layer, or none is left to quantize.
    """
    found = dict(layers_to_quantize(model, skip))
    for name, layer in found.items():
        if isinstance(layer, nn.Linear):
            weights = choice.weights((layer.out_features, 1))
            made: QuantLayer = QuantLinear.of(
                layer, choice.inputs(name), weights, bias=name in choice.biased
            )
        elif isinstance(layer, Convolution):
            weights = choice.weights((layer.out_channels, *[1] * (layer.weight.ndim - 1)))
            made = QuantConv(layer, choice.inputs(name), weights)
        else:
            made = choice.products(name).train(layer.training)
            core = model.get_submodule(name.rpartition(".")[0])
            assert isinstance(core, AttentionCore)
            core.explicit = True
        model.set_submodule(name, made)
    return [describe(name, layer) for name, layer in quantized_layers(model)]


def layers_to_quantize(model: nn.Module, skip: Sequence[str] = ()) -> list[tuple[str, nn.Module]]:
    """Return all layers that can be quantized, and their names, but those that match ``skip``.

    Raises:
        ModelError: a pattern matches no layer, or none is left to quantize.
    """
    if isinstance(skip, str):
        raise ModelError(
            f"'skip' must be a list of patterns, not the string '{skip}'.", f"Give ['{skip}']."
        )
    found: list[tuple[str, nn.Module]] = []
    for name, module in model.named_modules():
        if _is_layer(module):
            found.append((name, module))
        elif isinstance(module, AttentionCore):
            at = f"{name}." if name else ""
            found += [(f"{at}{part}", module.get_submodule(part)) for part in PRODUCTS]
    names = [name for name, _ in found]
    for pattern in skip:
        if not fnmatch.filter(names, pattern):
            raise ModelError(
                f"The 'skip' pattern '{pattern}' matches no layer.", did_you_mean(pattern, names)
            )
    left = [entry for entry in found if not any(fnmatch.fnmatch(entry[0], p) for p in skip)]
    if not left:
        raise ModelError(
            "There is nothing to quantize.",
            "Use a network with linear layers, and skip fewer of them.",
        )
    return left


def _is_layer(module: nn.Module) -> bool:
    """Tell whether a module is a linear layer or convolution that nothing has been added to."""
    if isinstance(module, nn.Linear):
        return type(module) is nn.Linear
    return isinstance(module, Convolution) and type(module).forward in {
        nn.Conv1d.forward,
        nn.Conv2d.forward,
        nn.Conv3d.forward,
    }


def fold(model: nn.Module) -> None:
    """Fuse branches, and fold batch norms into the convolutions before them and adapters into plain layers, in place.

    In use the model computes the same. What is folded is quantized with the layer, and costs nothing.
    """
    fold_lora(model)
    fuse(model)
    for parent in list(model.modules()):
        children = list(parent.named_children())
        for (first, before), (second, norm) in itertools.pairwise(children):
            if isinstance(parent, nn.Sequential) or (first, second) in NORMED:
                conv = before[-1] if isinstance(before, nn.Sequential) and len(before) else before
                if _foldable(conv, norm):
                    _fold_norm(conv, norm)
                    parent.set_submodule(second, nn.Identity())


def _foldable(conv: nn.Module, norm: nn.Module) -> bool:
    return (
        _is_layer(conv)
        and isinstance(conv, Convolution)
        and isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
        and norm.running_mean is not None
        and norm.num_features == conv.out_channels
    )


def _fold_norm(conv: Any, norm: Any) -> None:
    conv.weight, conv.bias = fuse_conv_bn_weights(
        *(conv.weight, conv.bias),
        *(norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias),
    )


def calibrate_quantizers(model: nn.Module, images: Float[Tensor, "batch ..."]) -> None:
    """Set all scales, in the order in which the layers compute: each sees inputs that are quantized already.

    Raises:
        ModelError: the model's predictions do not use a layer.
    """
    calibrate_weights(model)
    with torch.no_grad(), observing(model):
        model(images)


def join(batches: Sequence[Tensor]) -> Float[Tensor, "batch ..."]:
    """Return all calibration images as one batch.

    Raises:
        ModelError: they differ in size.
    """
    shapes = {tuple(batch.shape[1:]) for batch in batches}
    if len(shapes) > 1:
        raise ModelError(
            f"The calibration images have different shapes: {sorted(shapes)}.",
            "Give images of equal size.",
        )
    return torch.cat(list(batches))


@torch.no_grad()
def float_scores(
    model: nn.Module, images: Float[Tensor, "batch ..."]
) -> Float[Tensor, "checked classes"]:
    """Return the scores of the first few images with all quantizers switched off."""
    set_enabled(model, False)
    scores: Tensor = model(images[:CHECKED])
    set_enabled(model, True)
    return scores


def check_same(before: Tensor, after: Tensor) -> None:
    """Refuse a network whose float scores have changed while scales were folded into its norms.

    Raises:
        ModelError: they have.
    """
    if (after - before).norm() > SLACK * before.norm():
        raise ModelError(
            "A norm of this model feeds more than one layer, so scales cannot be folded into it.",
            "Use repq_vit with norm_scales='tensor', or ptq_percentile.",
        )


@torch.no_grad()
def measure(model: nn.Module, images: Float[Tensor, "batch ..."]) -> list[dict[str, Any]]:
    """Return a row per quantized layer, with what quantization costs at its output.

    The signal-to-quantization-noise ratio (SQNR) compares a layer with itself in floating point on the same inputs,
    those that quantized layers before it have made: 10 log10(sum y^2 / sum (y^ - y)^2) decibels. About 6 dB are one
    bit.
    """
    sums: dict[str, list[float]] = {}
    shapes: dict[str, str] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            set_enabled(layer, False)
            exact = layer.forward(*inputs)
            set_enabled(layer, True)
            total = sums.setdefault(name, [0.0, 0.0])
            total[0] += float(exact.square().sum())
            total[1] += float((output - exact).square().sum())
            shapes[name] = " @ ".join(" x ".join(map(str, x.shape[1:])) for x in inputs)

        return hook

    layers = dict(quantized_layers(model))
    handles = [layer.register_forward_hook(watch(name)) for name, layer in layers.items()]
    try:
        model(images[:MEASURED])
    finally:
        for handle in handles:
            handle.remove()
    return [
        {
            **describe(name, layer),
            "input": shapes.get(name, ""),
            "SQNR dB": _decibels(*sums.get(name, [0.0, 0.0])),
        }
        for name, layer in layers.items()
    ]


def _decibels(signal: float, noise: float) -> float | None:
    """Return a ratio in decibels, or None where there is no noise (or nothing but noise)."""
    return round(10 * math.log10(signal / noise), 1) if signal > 0 and noise > 0 else None


def describe(name: str, layer: QuantLayer) -> dict[str, Any]:
    """Return the part of a layer's row that is known before anything is measured."""
    if isinstance(layer, QuantMatMul):
        kind, weight = "product", None
        scales = [layer.a_quantizer, layer.b_quantizer]
    else:
        kind = "linear" if isinstance(layer, QuantLinear) else "convolution"
        weight = layer.weight_quantizer.bits
        scales = [layer.input_quantizer]
    return {
        "layer": name,
        "kind": kind,
        "weight bits": weight,
        "activation bits": max(quantizer.bits for quantizer in scales),
        "activation scales": " @ ".join(_scales(quantizer) for quantizer in scales),
    }


def _scales(quantizer: Quantizer) -> str:
    """Say in words how many scales a quantizer has."""
    scale = getattr(quantizer, "scale", None)
    count = scale.numel() if isinstance(scale, Tensor) else 1
    return "one" if count == 1 else f"{count}"


def check_pair(bits: Sequence[int]) -> tuple[int, int]:
    """Return the bits of weights and of activations.

    Raises:
        ModelError: they are not two, or out of range.
    """
    if isinstance(bits, int) or len(bits) != 2:
        raise ModelError(
            f"'bits' needs one value for weights and one for activations, not {bits!r}.",
            "Give e.g. (8, 8).",
        )
    for number in bits:
        check_bits(number)
    return bits[0], bits[1]
