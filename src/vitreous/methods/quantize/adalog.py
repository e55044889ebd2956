"""AdaLog: logarithms whose base is found by search, for attention and for what leaves a GELU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.catalog.card import Card
from vitreous.errors import ModelError
from vitreous.layers.quantize import (
    QuantConv,
    QuantLayer,
    QuantLinear,
    QuantMatMul,
    quantized_layers,
    set_enabled,
)
from vitreous.layers.quantizers import Quantizer, UniformQuantizer, check_bits
from vitreous.methods.quantize._adaround import reconstruct_blocks
from vitreous.methods.quantize._codes import RATIO, SHIFT, AdaLogQuantizer, ShiftedLinear
from vitreous.methods.quantize._fpcs import Budget
from vitreous.methods.quantize._install import (
    Choice,
    check_pair,
    check_same,
    float_scores,
    fold,
    join,
    layers_to_quantize,
    measure,
    place_quantizers,
)
from vitreous.methods.quantize._search import search_convolution, search_linear, search_product
from vitreous.methods.quantize.repq_vit import pairs

CARD = Card(
    slug="adalog",
    title="AdaLog: Post-Training Quantization for Vision Transformers with Adaptive Logarithm Quantizer",
    kind="method",
    summary="Logarithmic quantizers with a searched base for attention and GELU outputs, uniform "
    "ones elsewhere; all scales, zero points and bases minimise the error of the layer's output.",
    when="3 and 4 bits: the most accurate of the quantization methods here. Calibration takes "
    "minutes instead of seconds; at 6 bits and more repq_vit or ptq is enough.",
    paper="arXiv 2407.12951, ECCV 2024",
    year=2024,
    source_licence="Apache-2.0 (GoatWu/AdaLog): re-implemented from the equations",
    tasks=["classify"],
    models=[
        "vit*",
        "channelvit*",
        "satmae_pp*",
        "ggem*",
        "swin*",
        "coswin*",
        "crossformer*",
        "convnext*",
        "efficientformer*",
        "efficientvit*",
        "lola_specvit*",
        "crossvit*",
        "cvt*",
        "spectformer*",
        "sret*",
        "smt*",
        "hornet*",
        "fmvit*",
        "dhvt*",
        "t2t_vit*",
        "tnt*",
    ],
    variants={"adalog": {}},
    published=[
        {"model": "ViT-S", "float": 81.39, "W3A3": 13.88, "W4A4": 72.75, "W6A6": 80.91},
        {"model": "ViT-B", "float": 84.54, "W3A3": 37.91, "W4A4": 79.68, "W6A6": 84.80},
        {"model": "DeiT-T", "float": 72.21, "W3A3": 31.56, "W4A4": 63.52, "W6A6": 71.38},
        {"model": "DeiT-S", "float": 79.85, "W3A3": 24.47, "W4A4": 72.06, "W6A6": 79.39},
        {"model": "DeiT-B", "float": 81.80, "W3A3": 57.45, "W4A4": 78.03, "W6A6": 81.55},
        {"model": "Swin-S", "float": 83.23, "W3A3": 64.41, "W4A4": 80.77, "W6A6": 83.19},
        {"model": "Swin-B", "float": 85.27, "W3A3": 69.75, "W4A4": 82.47, "W6A6": 85.09},
        {"model": "ViT-S", "reconstructed": True, "W3A3": 62.50, "W4A4": 77.25},
        {"model": "ViT-B", "reconstructed": True, "W3A3": 76.73, "W4A4": 83.13},
        {"model": "DeiT-T", "reconstructed": True, "W3A3": 48.78, "W4A4": 67.14},
        {"model": "DeiT-S", "reconstructed": True, "W3A3": 63.24, "W4A4": 76.36},
        {"model": "DeiT-B", "reconstructed": True, "W3A3": 74.99, "W4A4": 80.20},
        {"model": "Swin-S", "reconstructed": True, "W3A3": 76.01, "W4A4": 81.99},
        {"model": "Swin-B", "reconstructed": True, "W3A3": 78.82, "W4A4": 83.82},
    ],
    recipe={"bits": [4, 4], "calibration images": 32, "reconstruct": 20000},
    claim="At W4A4 from RepQ-ViT's 57.43 to 63.52 % (DeiT-T) and from 65.05 to 72.75 % (ViT-S); "
    "at W3A3, where RepQ-ViT is at chance, large networks keep most of their accuracy.",
    miniature="On random attention, diffuse to sharp: the error with the best base at most 1.05 "
    "times that of log2 and log-sqrt2, and the base decreasing as attention sharpens. A small "
    "ViT on handwritten digits: at least as accurate as with RepQ-ViT at W4A4, and more accurate "
    "at W3A3.",
    notes=[
        "Usage: Block reconstruction (AdaRound) is off by default: set reconstruct to the "
        "iterations per block (20000 on 1024 images in the paper; a few hundred on 32 images "
        "help a little). It uses all calibration images, the search the first 128, and "
        "permanently moves the weights onto their codes.",
        "Usage: Layers are searched on inputs of the floating-point network, collected in one "
        "pass.",
        "Differs from the reference: A published search round leaves out the setting that it "
        "refines, so that it can end worse than it started; zero points are searched within 8 of "
        "the middle code, which from 5 bits on misses distributions that are not centred on "
        "zero; and bases are 2^(q / 37) with q from 10 to 137, too coarse from 6 bits on. Here "
        "the best setting so far is kept, zero points are searched around the one that fits the "
        "range, and q is 1 to 128. published=True reproduces theirs.",
        "Differs from the reference: Output errors of products are exact, but computed after a "
        "QR factorisation on the smaller side of the layer; tokens, and inputs of very wide "
        "layers, are subsampled evenly beyond 'rows' (the reference uses all).",
        "Differs from the reference: Inputs of layers after a GELU are shifted by 0.17 to be "
        "positive, which the layer's bias compensates at run time, so that files keep the "
        "original bias and disabled quantizers change nothing.",
        "Differs from the reference: Channels are folded with a rounded zero point at any bit "
        "width (the reference: only where weights and activations have equal bits). Pairs of "
        "norm and layer are those of repq_vit.",
        "Differs from the reference: Inputs of convolutions have conv_bits = 8 with measured "
        "ranges (the reference leaves 8-bit inputs in floating point); their weights are "
        "searched like those of linear layers.",
    ],
)

MOST_BITS = 8
SEARCHED = 128  # images that the search sees at once; reconstruction sees all


def install(
    model: nn.Module,
    *,
    bits: Sequence[int] = (4, 4),
    conv_bits: int = 8,
    rounds: int = 3,
    steps: int = 6,
    rows: int = 512,
    published: bool = False,
    reconstruct: int = 0,
    skip: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Put quantizers in front of, and on the weights of, every layer.

    Args:
        model: a network with attention, or with feed-forwards (``fc1``, ``act``, ``fc2``) whose activation is a GELU.
        bits: of weights and of activations, 2 to 8 each.
        conv_bits: of the inputs of convolutions, 2 to 16.
        rounds: how often the two factors of a product are searched in turns.
        steps: rounds from coarse to fine of each search, of 128 candidates.
        rows: tokens that a candidate is scored on, evenly spaced over all calibration images; see the card's notes.
        published: search exactly as published; see the card's notes.
        reconstruct: iterations per block of learning which weights to round up; 0: round to the nearest.
        skip: shell patterns of names of layers that stay in floating point, e.g. ``["head", "*.matmul_qk"]``.

    Returns:
        A row per layer.

    Raises:
        ModelError: a setting out of range, a pattern without a layer, or a network without any part that these
            codes are made for.
    """
    weight_bits, input_bits = _check(bits, rounds, steps, rows, reconstruct)
    check_bits(conv_bits)
    fold(model)
    layers = dict(layers_to_quantize(model, skip))
    shifted = behind_gelu(model) & set(layers)
    if not shifted and not any(name.endswith("matmul_av") for name in layers):
        raise ModelError(
            "adalog needs attention or GELU outputs; this network has neither.",
            "Use ptq_percentile.",
        )

    def inputs(name: str) -> Quantizer:
        if name in shifted:
            return AdaLogQuantizer(input_bits, SHIFT)
        if isinstance(layers[name], nn.Linear):
            return UniformQuantizer(input_bits)
        return UniformQuantizer(conv_bits, quantiles=(1.0,))

    def products(name: str) -> QuantMatMul:
        first: Quantizer = AdaLogQuantizer(input_bits)
        heads = _heads(model, name)
        if name.endswith("matmul_qk"):
            first = UniformQuantizer(input_bits, heads)
        return QuantMatMul(first, UniformQuantizer(input_bits, heads))

    choice = Choice(
        inputs=inputs,
        weights=lambda shape: UniformQuantizer(weight_bits, shape),
        products=products,
        biased=frozenset(layer for _, layer in pairs(model, layers)),
    )
    rows_of_report = place_quantizers(model, choice, skip)
    for name in shifted:
        layer = _linear(model, name)
        made = ShiftedLinear.of(layer, layer.input_quantizer, layer.weight_quantizer)
        model.set_submodule(name, made)
    return rows_of_report


def calibrate(
    model: nn.Module,
    batches: Sequence[Tensor],
    *,
    rounds: int = 3,
    steps: int = 6,
    rows: int = 512,
    published: bool = False,
    reconstruct: int = 0,
    **_: Any,
) -> list[dict[str, Any]]:
    """Search all scales, zero points and bases in one pass over all images at once, and measure each layer.

    Args:
        model: after :func:`install`, in eval mode.
        batches: images of one size.
        rounds: as the rest, as for :func:`install`.
        steps: likewise.
        rows: likewise.
        published: likewise.
        reconstruct: likewise.

    Raises:
        ModelError: images of several sizes, a layer that predictions do not use, or a norm that something else reads
            than the layer it was taken for.
    """
    images = join(batches)
    budget = Budget(rounds=rounds, steps=steps, rows=rows, published=published)
    paired = {layer: norm for norm, layer in pairs(model, dict(quantized_layers(model)))}
    before = float_scores(model, images)
    search(model, images[:SEARCHED], paired, budget)
    check_same(before, float_scores(model, images))
    if reconstruct:
        reconstruct_blocks(model, images, reconstruct)
    return [_told(row, model, paired) for row in measure(model, images)]


@torch.no_grad()
def search(
    model: nn.Module,
    images: Float[Tensor, "batch bands height width"],
    paired: Mapping[str, str],
    budget: Budget,
) -> None:
    """Set every quantizer while the images pass through the network in floating point.

    Args:
        model: with quantizers in place.
        images: all calibration images.
        paired: the norm in front of a layer, by names, where it is to take the channels' scales.
        budget: how long to search.

    Raises:
        ModelError: a layer that predictions do not use.
    """
    layers = dict(quantized_layers(model))
    missing = dict(layers)

    def watch(name: str, layer: QuantLayer) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if missing.pop(name, None) is None:
                return  # called before in this pass
            if isinstance(layer, QuantMatMul):
                search_product(layer, inputs[0], inputs[1], output, budget)
            elif isinstance(layer, QuantConv):
                search_convolution(layer, inputs[0], output, budget)
            else:
                norm = model.get_submodule(paired[name]) if name in paired else None
                assert norm is None or isinstance(norm, nn.LayerNorm)
                search_linear(layer, inputs[0], output, budget, norm)

        return layer.register_forward_hook(hook)

    handles = [watch(name, layer) for name, layer in layers.items()]
    set_enabled(model, False)
    try:
        model(images)
    finally:
        set_enabled(model, True)
        for handle in handles:
            handle.remove()
    if missing:
        raise ModelError(
            f"Inference does not use {', '.join(missing)}, so these layers cannot be calibrated.",
            "List them in 'skip'.",
        )


def behind_gelu(model: nn.Module) -> set[str]:
    """Return the names of the linear layers ``fc2`` that read what a GELU, ``act`` beside them, gives."""
    found = set()
    for at, module in model.named_modules():
        gelu = isinstance(getattr(module, "act", None), nn.GELU)
        if gelu and isinstance(getattr(module, "fc2", None), nn.Linear):
            found.add(f"{at}.fc2" if at else "fc2")
    return found


def _heads(model: nn.Module, product: str) -> tuple[int, ...]:
    """Return the shape of a scale per head, for the heads that the owner of an attention's core declares."""
    owner = model.get_submodule(product.rpartition(".")[0].rpartition(".")[0])
    heads = getattr(owner, "heads", 1)
    return (heads, 1, 1) if heads > 1 else ()


def _linear(model: nn.Module, name: str) -> QuantLinear:
    layer = model.get_submodule(name)
    assert isinstance(layer, QuantLinear)
    return layer


def _told(row: dict[str, Any], model: nn.Module, paired: Mapping[str, str]) -> dict[str, Any]:
    """Add to a layer's row which base was found, or where channels were folded."""
    layer = model.get_submodule(row["layer"])
    if row["layer"] in paired:
        row["activation scales"] = f"one, channels folded into {paired[row['layer']]}"
    own = layer.a_quantizer if isinstance(layer, QuantMatMul) else layer.input_quantizer
    if isinstance(own, AdaLogQuantizer):
        row["base"] = f"2^({int(own.base)}/{RATIO})"
    return row


def _check(
    bits: Sequence[int], rounds: int, steps: int, rows: int, reconstruct: int
) -> tuple[int, int]:
    """Refuse settings out of range, and return the bits of weights and of activations."""
    both = check_pair(bits)
    if max(both) > MOST_BITS:
        raise ModelError(
            f"adalog supports at most {MOST_BITS} bits, not {max(both)}.",
            "Use ptq_percentile for more.",
        )
    least = {"rounds": (rounds, 1), "steps": (steps, 1), "rows": (rows, 16)}
    least["reconstruct"] = (reconstruct, 0)
    for setting, (value, minimum) in least.items():
        if value < minimum:
            raise ModelError(
                f"adalog does not support {setting}={value}.", f"Give at least {minimum}."
            )
    return both
