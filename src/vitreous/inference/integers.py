"""Quantized layers in the form that runtimes have integer kernels for.

A simulated quantizer rounds floats to floats. A graph for other runtimes says instead which integers these are, by the
operators QuantizeLinear and DequantizeLinear around each product ("QDQ"), and holds weights as bytes; a runtime that sees
such a product computes it in integers. Only eight bits with one scale per tensor of activations, and at most eight bits
of a weight, can be said this way. Everything else stays what it was: simulated.

Processors without VNNI add two products of a byte and a signed byte in sixteen bits, which 255 * 127 * 2 does not fit:
the sum is cut. Weights of seven bits always fit, and are as fast. ONNX Runtime is exact with unsigned weights too, only
slower, so weights of eight bits are written so for it; OpenVINO computes those as floats, so it gets signed ones.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.layers.quantize import (
    QuantConv,
    QuantLayer,
    QuantLinear,
    QuantMatMul,
    quantized_layers,
)
from vitreous.layers.quantizers import Quantizer, UniformQuantizer
from vitreous.methods.quantize._install import fold

M = TypeVar("M", bound=nn.Module)


class Quantization(NamedTuple):
    """What an export makes of the quantized layers.

    Attributes:
        integer: names of layers whose product is written in integers.
        simulated: names of layers that round floats to floats.
    """

    integer: list[str]
    simulated: list[str]


class Activation(nn.Module):
    """Eight bits of an activation: to codes, and back to what they stand for.

    Args:
        quantizer: of eight bits, one scale, and a zero point that is a code.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, quantizer: UniformQuantizer) -> None:
        super().__init__()
        self.register_buffer("scale", quantizer.scale.reshape(()).clone())
        self.register_buffer("zero_point", quantizer.zero_point.reshape(()).to(torch.uint8))

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Round."""
        codes = _operator(
            "QuantizeLinear", (x, self.scale, self.zero_point), torch.uint8, tuple(x.shape)
        )
        return _operator(
            "DequantizeLinear", (codes, self.scale, self.zero_point), x.dtype, tuple(x.shape)
        )


class Weight(nn.Module):
    """A weight as bytes, with a scale per output.

    Args:
        codes: ``(outputs, ...)`` int8 or uint8.
        scale: ``(outputs,)``.
        zero_point: ``(outputs,)``, of the codes' type.
        axis: which axis of ``codes`` counts outputs.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, codes: Tensor, scale: Tensor, zero_point: Tensor, axis: int = 0) -> None:
        super().__init__()
        self.axis = axis
        self.register_buffer("codes", codes.contiguous())
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)

    @classmethod
    def of(cls, layer: QuantLinear | QuantConv, form: str) -> Weight:
        """Read the codes of a layer's weight, signed where a runtime computes with those as it should."""
        quantizer = layer.weight_quantizer
        assert isinstance(quantizer, UniformQuantizer)
        rounded = layer.quantized_weight().detach()
        zero, outputs = quantizer.zero_point, len(rounded)
        codes = torch.round(rounded / quantizer.scale) + zero
        scale = quantizer.scale.flatten().expand(outputs).clone()
        if quantizer.symmetric and (quantizer.bits < 8 or form == "openvino"):
            none = torch.zeros(outputs, dtype=torch.int8)
            return cls((codes - zero).to(torch.int8), scale, none)
        return cls(
            codes.to(torch.uint8), scale, zero.flatten().expand(outputs).to(torch.uint8).clone()
        )

    def transposed(self) -> Weight:
        """Return the weight of a linear layer as the second factor of a product, ``(inputs, outputs)``."""
        return Weight(self.codes.T, self.scale, self.zero_point, axis=1)

    def forward(self) -> Float[Tensor, "..."]:
        """Return what the codes stand for."""
        inputs = (self.codes, self.scale, self.zero_point)
        shape = tuple(self.codes.shape)
        return _operator("DequantizeLinear", inputs, self.scale.dtype, shape, {"axis": self.axis})


class IntegerLinear(nn.Module):
    """A linear layer between quantized numbers.

    Args:
        layer: the simulated one.
        form: of the export.
    """

    def __init__(self, layer: QuantLinear, form: str) -> None:
        super().__init__()
        assert isinstance(layer.input_quantizer, UniformQuantizer)
        self.input = Activation(layer.input_quantizer)
        self.weight = Weight.of(layer, form).transposed()
        self.bias = layer.bias

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """Apply the layer."""
        product = self.input(x) @ self.weight()
        return product if self.bias is None else product + self.bias


class IntegerConv(nn.Module):
    """A convolution between quantized numbers.

    It is written as one operator, also where a layer of ours computes it in a roundabout way that suits floats.

    Args:
        layer: the simulated one.
        form: of the export.
    """

    def __init__(self, layer: QuantConv, form: str) -> None:
        super().__init__()
        assert isinstance(layer.input_quantizer, UniformQuantizer)
        self.input = Activation(layer.input_quantizer)
        self.weight = Weight.of(layer, form)
        self.bias, self.conv = layer.bias, layer.conv

    def forward(
        self, x: Float[Tensor, "batch inputs *size"]
    ) -> Float[Tensor, "batch outputs *size"]:
        """Convolve."""
        kinds: tuple[Any, ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
        kind = next(kind for kind in kinds if isinstance(self.conv, kind))
        found: Tensor = kind._conv_forward(self.conv, self.input(x), self.weight(), self.bias)
        return found


class IntegerMatMul(nn.Module):
    """A product of two quantized activations.

    Args:
        layer: the simulated one.
    """

    def __init__(self, layer: QuantMatMul) -> None:
        super().__init__()
        assert isinstance(layer.a_quantizer, UniformQuantizer)
        assert isinstance(layer.b_quantizer, UniformQuantizer)
        self.a, self.b = Activation(layer.a_quantizer), Activation(layer.b_quantizer)

    def forward(
        self, a: Float[Tensor, "*batch n k"], b: Float[Tensor, "*batch k m"]
    ) -> Float[Tensor, "*batch n m"]:
        """Return ``a @ b``."""
        return self.a(a) @ self.b(b)


def integer_form(model: M, form: str) -> tuple[M, Quantization]:
    """Return a copy of a network as it is best exported; what it computes stays the same.

    Batch norms and adapters are folded, quantized weights are rounded once and for all, and layers that can be are
    written in integers.

    Args:
        model: a network in evaluation mode.
        form: ``onnx``, ``openvino`` or ``torch``, of which the last has no integers: there all layers stay simulated.
    """
    ready = copy.deepcopy(model)
    fold(ready)
    kinds = Quantization([], [])
    for name, layer in list(quantized_layers(ready)):
        if form != "torch" and is_integer(layer):
            ready.set_submodule(name, _integer(layer, form))
            kinds.integer.append(name)
        else:
            _settle(layer)
            kinds.simulated.append(name)
    return ready, kinds


def is_integer(layer: QuantLayer) -> bool:
    """Tell whether a quantized layer can be written in integers."""
    if isinstance(layer, QuantMatMul):
        return _is_byte(layer.a_quantizer) and _is_byte(layer.b_quantizer)
    weight = layer.weight_quantizer
    return (
        _is_byte(layer.input_quantizer)
        and isinstance(weight, UniformQuantizer)
        and weight.enabled
        and weight.bits <= 8
        and _are_codes(weight)
        and weight.scale.numel() in {1, len(layer.weight)}
    )


def _is_byte(quantizer: Quantizer) -> bool:
    """Tell whether a quantizer of activations is QuantizeLinear to uint8."""
    return (
        type(quantizer) is UniformQuantizer
        and quantizer.enabled
        and quantizer.bits == 8
        and not quantizer.symmetric
        and quantizer.scale.numel() == 1
        and _are_codes(quantizer)
    )


def _are_codes(quantizer: UniformQuantizer) -> bool:
    zero = quantizer.zero_point
    return bool(((zero >= 0) & (zero < quantizer.levels) & (zero == zero.round())).all())


def _integer(layer: QuantLayer, form: str) -> nn.Module:
    if isinstance(layer, QuantMatMul):
        return IntegerMatMul(layer)
    if isinstance(layer, QuantLinear):
        return IntegerLinear(layer, form)
    return IntegerConv(layer, form)


def _settle(layer: QuantLayer) -> None:
    """Put the rounded weight in the place of the float one."""
    if not isinstance(layer, QuantMatMul):
        layer.weight = nn.Parameter(layer.quantized_weight().clone(), requires_grad=False)
        layer.weight_quantizer.enabled = False


def _operator(
    name: str,
    inputs: tuple[Tensor, ...],
    dtype: torch.dtype,
    shape: tuple[Any, ...],
    attributes: dict[str, Any] | None = None,
) -> Tensor:
    """Put an ONNX operator into the graph; torch itself computes nothing here."""
    return torch.onnx.ops.symbolic(name, inputs, attributes, dtype=dtype, shape=shape)
