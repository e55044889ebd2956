"""Post-training quantization as everybody does it first: one range per tensor of activations, measured."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from vitreous.catalog.card import Card
from vitreous.errors import ModelError
from vitreous.layers.quantize import QuantMatMul
from vitreous.layers.quantizers import UniformQuantizer
from vitreous.methods.quantize._install import (
    Choice,
    calibrate_quantizers,
    check_pair,
    fold,
    join,
    measure,
    place_quantizers,
)

CARD = Card(
    slug="ptq",
    title="Post-training quantization with measured ranges",
    kind="method",
    summary="Uniform quantizers with one range per tensor for activations and per output channel "
    "for weights, from the extremes or percentiles of the calibration data.",
    when="8 bits, for integer kernels, and the baseline of other quantization methods. Not at 4 "
    "bits, where it lost 29 and 78 points here.",
    paper="Nagel et al., A White Paper on Neural Network Quantization, arXiv 2106.08295, sections 2 and 3",
    year=2021,
    source_licence="none: written from the equations",
    tasks=["classify"],
    models=["*"],
    variants={
        "ptq_minmax": {},
        "ptq_percentile": {"percentile": 99.99},
    },
    recipe={"bits": [8, 8], "calibration images": 32},
    claim="8 bits cost almost nothing where no channel has outliers; at 4 bits one range per "
    "tensor is not enough.",
    notes=[
        "Usage: Weights are symmetric int8 per output channel, activations uint8 with a zero "
        "point per tensor: the format of the integer kernels of ONNX Runtime and OpenVINO. "
        "symmetric=False uses the full range of weight codes.",
        "Usage: Every range includes zero, so that zero points are codes and padding is exact.",
        "Usage: Batch norms are folded into the preceding convolutions, LoRA adapters into their "
        "linear layers.",
        "Usage: Quantized are inputs and weights of all linear layers and convolutions, and both "
        "operands of both attention products; softmax, norms, activation functions, residuals "
        "and biases stay in floating point.",
        "Usage: Percentiles apply to activations; ranges of weights are never clipped.",
    ],
)


def install(
    model: nn.Module,
    *,
    bits: Sequence[int] = (8, 8),
    percentile: float = 100.0,
    symmetric: bool = True,
    skip: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Put quantizers in front of, and on the weights of, every layer.

    Args:
        model: any network.
        bits: of weights and of activations, 2 to 16 each.
        percentile: of a tensor's values below the upper end of its range, above 50; as many are above the lower one.
        symmetric: weights around zero, without zero point.
        skip: shell patterns of names of layers that stay in floating point, e.g. ``["head", "*.matmul_qk"]``.

    Returns:
        A row per layer.

    Raises:
        ModelError: bits or a percentile out of range, or a pattern without a layer.
    """
    weight_bits, input_bits = check_pair(bits)
    if not 50 < percentile <= 100:
        raise ModelError(f"The percentile {percentile:g} is out of range.", "Use 99.9 to 100.")
    fold(model)
    activation = partial(UniformQuantizer, input_bits, quantiles=(percentile / 100,))
    choice = Choice(
        inputs=lambda name: activation(),
        weights=lambda shape: UniformQuantizer(
            weight_bits, shape, quantiles=(1.0,), symmetric=symmetric
        ),
        products=lambda name: QuantMatMul(activation(), activation()),
    )
    return place_quantizers(model, choice, skip)


def calibrate(model: nn.Module, batches: Sequence[Tensor], **_: Any) -> list[dict[str, Any]]:
    """Set the ranges in one pass over all images at once, and measure each layer.

    Args:
        model: after :func:`install`, in eval mode.
        batches: images of one size.

    Raises:
        ModelError: images of several sizes, or a layer that predictions do not use.
    """
    images = join(batches)
    calibrate_quantizers(model, images)
    return measure(model, images)
