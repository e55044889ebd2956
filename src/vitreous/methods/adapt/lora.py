"""LoRA: train low-rank adapters beside frozen linear layers."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from vitreous.catalog.card import Card
from vitreous.errors import ModelError
from vitreous.layers.lora import LoRALinear

CARD = Card(
    slug="lora",
    title="LoRA: Low-Rank Adaptation of Large Language Models",
    kind="method",
    summary="Adds a trainable low-rank product parallel to selected linear layers of a frozen "
    "model; optionally gated and with a full-rank residual, as in LoLA-SpecViT.",
    when="Fine-tuning a trained model for new classes or another scene with few trainable "
    "parameters; on par with adaptformer at equal size here.",
    paper="arXiv 2106.09685; gate and residual: arXiv 2506.17759",
    year=2021,
    source_licence="MIT (microsoft/LoRA): re-implemented from the equations",
    tasks=["classify"],
    models=["*"],
    variants={
        "lora": {},
        "lora_gated": {"gate": True},
        "lora_residual": {"residual": True},
        "lora_gated_residual": {"gate": True, "residual": True},
    },
    recipe={"rank": 8, "alpha": 16.0},
    claim="Low-rank adapters reach the accuracy of full fine-tuning with a small fraction of the "
    "trainable parameters.",
    notes=[
        "Usage: Without the gate an adapted model can be merged back into plain linear layers, "
        "exactly.",
    ],
)


def trainable(name: str) -> bool:
    """Tell whether a parameter belongs to an adapter."""
    return any(part.startswith("lora_") for part in name.split("."))


def install(
    model: nn.Module,
    *,
    rank: int = 8,
    alpha: float = 16.0,
    gate: bool = False,
    residual: bool = False,
    targets: str = "*",
) -> list[dict[str, Any]]:
    """Give the matching linear layers of ``model`` adapters; its outputs stay the same.

    Args:
        model: any model; layers that carry adapters already are left as they are.
        rank: r of the adapters.
        alpha: the adapters are scaled by alpha / rank.
        gate: gated adapters (these cannot be merged).
        residual: adapters with a full-rank residual.
        targets: shell pattern of the names of layers to adapt, e.g. ``*.attn.*``.

    Returns:
        The layers' names and how many weights each adapter has.

    Raises:
        ModelError: no linear layer matches, or the rank makes no adapter.
    """
    if rank < 1:
        raise ModelError(
            f"LoRA needs a rank of at least 1, not {rank}.", "Use 1 or more; 4 to 16 is common."
        )
    found = [
        name
        for name, layer in model.named_modules()
        if type(layer) is nn.Linear and fnmatch.fnmatch(name, targets)
    ]
    if not found and not any(isinstance(layer, LoRALinear) for layer in model.modules()):
        raise ModelError(
            f"No linear layer matches '{targets}'.", "Choose another pattern for 'targets'."
        )
    rows = []
    for name in found:
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        adapted = _adapt(layer, rank, alpha, gate, residual)
        model.set_submodule(name, adapted)
        own = sum(p.numel() for key, p in adapted.named_parameters() if key.startswith("lora_"))
        rows.append({"layer": name, "weights added": own})
    return rows


def merge(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` with every adapter folded into a plain linear layer.

    Raises:
        ModelError: an adapter is gated.
    """
    merged = copy.deepcopy(model)
    for name, layer in list(adapters(merged)):
        merged.set_submodule(name, layer.merged())
    return merged


def adapters(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    """Iterate over the adapted layers and their names."""
    for name, layer in model.named_modules():
        if isinstance(layer, LoRALinear):
            yield name, layer


def _adapt(layer: nn.Linear, rank: int, alpha: float, gate: bool, residual: bool) -> LoRALinear:
    adapted = LoRALinear(
        layer.in_features,
        layer.out_features,
        layer.bias is not None,
        rank=rank,
        alpha=alpha,
        gate=gate,
        residual=residual,
    ).to(layer.weight.device, layer.weight.dtype)
    with torch.no_grad():
        adapted.weight.copy_(layer.weight)
        if layer.bias is not None:
            adapted.bias.copy_(layer.bias)
    return adapted.train(layer.training)
