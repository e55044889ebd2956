"""Layers that compute with quantized numbers, and what is done to all of them in a model.

What rounds is in ``layers/quantizers.py``. Every weight is rounded once and kept beside the float weight that files hold.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.errors import ModelError
from vitreous.layers.attention import MatMul
from vitreous.layers.graphs import recording
from vitreous.layers.quantizers import Quantizer

Convolution: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d
L = TypeVar("L", bound="QuantLinear")


class _QuantWeight(nn.Module):
    """A layer whose weight is quantized once and kept, beside the float weight that files hold."""

    weight: Tensor
    input_quantizer: Quantizer
    weight_quantizer: Quantizer

    def _place(self, input_quantizer: Quantizer, weight_quantizer: Quantizer) -> None:
        self.input_quantizer, self.weight_quantizer = input_quantizer, weight_quantizer
        self._quantized: tuple[tuple[Any, ...], Tensor] | None = None

    def calibrate_weight(self) -> None:
        """Set the weight's scales; needed again whenever the weight changes."""
        with torch.no_grad():
            self.weight_quantizer.calibrate(self.weight)

    def quantized_weight(self) -> Tensor:
        """Return the rounded weight, computed once for as long as weight and scales stay what they are."""
        if not self.weight_quantizer.enabled:
            return self.weight
        learning = self.weight_quantizer.trainable and torch.is_grad_enabled()
        if learning or recording():  # an exported graph shows how its weight was made
            return self.weight_quantizer(self.weight)
        key = tuple(_mark(t) for t in (self.weight, *self.weight_quantizer.buffers()))
        if self._quantized is None or self._quantized[0] != key:
            with torch.no_grad():
                self._quantized = key, self.weight_quantizer(self.weight)
        return self._quantized[1]

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self._quantized = None

    def _apply(self, *arguments: Any, **options: Any) -> Any:
        self._quantized = None
        return super()._apply(*arguments, **options)

    def __getstate__(self) -> dict[str, Any]:
        """Copy and pickle without the rounded weight."""
        return {**super().__getstate__(), "_quantized": None}


class QuantLinear(_QuantWeight, nn.Linear):
    """A linear layer on quantized inputs with a quantized weight; its bias stays a float.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        bias: whether there is a bias.
        input_quantizer: of the input.
        weight_quantizer: of the weight ``(outputs, inputs)``; one scale per output in the shape ``(outputs, 1)``.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool,
        input_quantizer: Quantizer,
        weight_quantizer: Quantizer,
    ) -> None:
        nn.Linear.__init__(self, in_features, out_features, bias)
        self._place(input_quantizer, weight_quantizer)

    @classmethod
    def of(
        cls: type[L],
        linear: nn.Linear,
        input_quantizer: Quantizer,
        weight_quantizer: Quantizer,
        *,
        bias: bool = False,
    ) -> L:
        """Return a quantized layer with the parameters of ``linear``; ``bias`` adds one of zeros where it has none."""
        with torch.device("meta"):  # its own parameters are replaced at once
            layer = cls(
                linear.in_features, linear.out_features, False, input_quantizer, weight_quantizer
            )
        layer.weight, layer.bias = linear.weight, linear.bias
        if bias and layer._parameters["bias"] is None:
            layer.bias = nn.Parameter(linear.weight.new_zeros(linear.out_features))
        for quantizer in (input_quantizer, weight_quantizer):
            quantizer.to(linear.weight.device)
        return layer.train(linear.training)

    def forward(self, input: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """Apply the layer."""
        return F.linear(self.input_quantizer(input), self.quantized_weight(), self.bias)


class QuantConv(_QuantWeight):
    """A convolution of any number of axes on quantized inputs with a quantized weight; its bias stays a float.

    The convolution's own way to compute is kept, also that of a subclass, as long as it is in ``_conv_forward``.

    Args:
        conv: the convolution, whose parameters move here under the same names.
        input_quantizer: of the input.
        weight_quantizer: of the weight ``(outputs, inputs, *kernel)``; one scale per output in the shape
            ``(outputs, 1, ...)``.
    """

    bias: Tensor | None

    def __init__(
        self, conv: Convolution, input_quantizer: Quantizer, weight_quantizer: Quantizer
    ) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self._place(input_quantizer.to(self.weight.device), weight_quantizer.to(self.weight.device))
        bare = copy.copy(conv)  # shares nothing that is changed here
        bare._parameters = {"weight": None, "bias": None}
        self._bare = (bare,)  # in a tuple it is no part of the model, whose weights are here
        self.train(conv.training)

    @property
    def conv(self) -> Convolution:
        """The convolution without its weights: stride, padding and the way to compute it."""
        return self._bare[0]

    def forward(
        self, input: Float[Tensor, "batch inputs *size"]
    ) -> Float[Tensor, "batch outputs *cells"]:
        """Convolve."""
        x = self.input_quantizer(input)
        return self.conv._conv_forward(x, self.quantized_weight(), self.bias)

    def extra_repr(self) -> str:
        """Show what the convolution shows."""
        return self.conv.extra_repr()


class QuantMatMul(MatMul):
    """A product of two quantized matrices: the place of ``matmul_qk`` or ``matmul_av`` in an ``AttentionCore``.

    Args:
        a_quantizer: of the first factor.
        b_quantizer: of the second factor.
    """

    def __init__(self, a_quantizer: Quantizer, b_quantizer: Quantizer) -> None:
        super().__init__()
        self.a_quantizer, self.b_quantizer = a_quantizer, b_quantizer

    def forward(
        self, a: Float[Tensor, "*batch n k"], b: Float[Tensor, "*batch k m"]
    ) -> Float[Tensor, "*batch n m"]:
        """Return ``a @ b``."""
        return self.a_quantizer(a) @ self.b_quantizer(b)


QuantLayer: TypeAlias = QuantLinear | QuantConv | QuantMatMul


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, QuantLayer]]:
    """Iterate over the quantized layers and their names."""
    for name, module in model.named_modules():
        if isinstance(module, QuantLinear | QuantConv | QuantMatMul):
            yield name, module


def set_enabled(model: nn.Module, on: bool) -> None:
    """Switch every quantizer on, or off: then the model computes with its float weights, as before."""
    for module in model.modules():
        if isinstance(module, Quantizer):
            module.enabled = on


def set_trainable(model: nn.Module, on: bool) -> None:
    """Let gradients pass straight through every quantizer, or not; weights are then rounded anew in every pass."""
    for module in model.modules():
        if isinstance(module, Quantizer):
            module.trainable = on


@contextmanager
def observing(model: nn.Module) -> Iterator[None]:
    """Let the quantizers of activations set themselves by what comes; those of weights are left alone.

    Raises:
        ModelError: at the end, if nothing came to one of them.
    """
    weights = {id(layer.weight_quantizer) for _, layer in _weighted(model)}
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, Quantizer) and id(module) not in weights
    }
    for quantizer in found.values():
        quantizer.observing = quantizer.fresh = True
    try:
        yield
        missed = [name.rpartition(".")[0] for name, quantizer in found.items() if quantizer.fresh]
    finally:
        for quantizer in found.values():
            quantizer.observing = quantizer.fresh = False
    if missed:
        raise ModelError(
            f"Inference does not use {', '.join(dict.fromkeys(missed))}, so these layers cannot be calibrated.",
            "List them in 'skip'.",
        )


def calibrate_weights(model: nn.Module) -> None:
    """Set the scales of every weight."""
    for _, layer in _weighted(model):
        layer.calibrate_weight()


def _weighted(model: nn.Module) -> Iterator[tuple[str, QuantLinear | QuantConv]]:
    for name, layer in quantized_layers(model):
        if not isinstance(layer, QuantMatMul):
            yield name, layer


def _mark(tensor: Tensor) -> tuple[Any, ...]:
    """Return what changes when a tensor is replaced, moved or written to."""
    # The version counts changes in place.
    version = 0 if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), tensor.device, tensor.dtype, version
