"""Magnitude pruning: cut the hidden units of feed-forwards whose weights are smallest (arXiv 1608.08710)."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vitreous.catalog.card import Card
from vitreous.errors import ModelError
from vitreous.layers.mlp import Mlp

CARD = Card(
    slug="magnitude",
    title="Pruning Filters for Efficient ConvNets",
    kind="method",
    summary="In every feed-forward, removes the hidden units whose incoming weights have the "
    "smallest sum of absolute values.",
    when="A smaller and faster network where it can be trained for a few more epochs afterwards "
    "(vitreous compress --tune-epochs). Not measured here yet.",
    paper="arXiv 1608.08710",
    year=2017,
    source_licence="no code was published by the authors; implemented from the paper",
    tasks=["classify"],
    models=[
        "vit_*",
        "channelvit_*",
        "satmae_pp_*",
        "ggem_*",
        "swin_*",
        "coswin_*",
        "crossformer_*",
        "crossvit_*",
        "cvt_*",
        "t2t_vit_*",
        "tnt_*",
        "spectformer_*",
        "hornet_*",
        "sret_*",
        "convnext_*",
        "efficientformer_*",
    ],
    variants={"magnitude": {}},
    recipe={
        "keep": "chosen per layer by sensitivity",
        "retraining": "20 epochs at a constant rate",
    },
    claim="Removing whole filters with small weights shortens VGG-16 and ResNet on CIFAR-10 by 34 "
    "and 38 % of their arithmetic, and retraining regains nearly the original accuracy.",
    miniature="Not tested as a claim; the method is here to prune before quantization.",
    notes=[
        "Usage: vitreous compress RUN --method magnitude --method ptq_minmax --tune-epochs 5 prunes, "
        "fine-tunes and quantizes. The kept units are noted in the file, which is really smaller.",
        "Differs from the reference: The filters of a transformer are the hidden units of its "
        "feed-forwards. Every layer keeps the same share; the paper chooses shares by hand.",
        "As in the reference: The criterion is the sum of absolute incoming weights; their biases "
        "are not counted.",
    ],
)


def decide(
    model: nn.Module, *, keep: float, targets: str, kept: Mapping[str, list[int]] | None
) -> dict[str, Any]:
    """Return which hidden units stay, where the settings do not say so already.

    Raises:
        ModelError: a share out of range, or nothing to prune.
    """
    if not 0 < keep <= 1:
        raise ModelError(f"keep = {keep:g} is out of range.", "Use a share above 0, at most 1.")
    if kept is not None:
        return {"kept": dict(kept)}
    found = {name: _strongest(mlp.fc1.weight, keep) for name, mlp in _layers(model, targets)}
    if not found:
        raise ModelError(
            f"{type(model).__name__} has no feed-forward '{targets}' of plain linear layers to prune.",
            "Use another model, or another pattern for 'targets'.",
        )
    return {"kept": found}


def install(
    model: nn.Module,
    *,
    keep: float = 0.5,
    targets: str = "*",
    kept: dict[str, list[int]] | None = None,
) -> list[dict[str, Any]]:
    """Cut the hidden units of feed-forwards.

    Args:
        model: a network with feed-forwards of two linear layers.
        keep: share of each one's hidden units that stay, rounded up.
        targets: shell pattern of the names of feed-forwards to prune, e.g. ``blocks.1?.mlp``.
        kept: numbers of the units that stay, by the name of the feed-forward; None decides by ``keep``.

    Returns:
        The feed-forwards, and how many units they had and have.

    Raises:
        ModelError: a feed-forward or a unit that is not there.
    """
    layers = dict(_layers(model, "*"))
    rows = []
    for name, units in (kept or {}).items():
        mlp = layers.get(name)
        width = 0 if mlp is None else mlp.fc1.out_features
        if mlp is None or not units or units != sorted(set(units)):
            raise ModelError(
                f"The units of '{name}' cannot be kept: {units!r:.60}.",
                "Give increasing numbers of the hidden units of a feed-forward.",
            )
        if width == len(units):  # all of them, or cut already
            continue
        if not 0 <= units[0] <= units[-1] < width:
            raise ModelError(
                f"'{name}' has {width} hidden units, not one of number {units[-1]}.",
                f"Give numbers from 0 to {width - 1}.",
            )
        index = torch.tensor(units, device=mlp.fc1.weight.device)
        mlp.fc1 = _cut(mlp.fc1, index, 0)
        mlp.fc2 = _cut(mlp.fc2, index, 1)
        rows.append({"layer": name, "units before": width, "units after": len(units)})
    return rows


def _layers(model: nn.Module, targets: str) -> Iterator[tuple[str, Mlp]]:
    for name, mlp in model.named_modules():
        plain = isinstance(mlp, Mlp) and type(mlp.fc1) is type(mlp.fc2) is nn.Linear
        if plain and fnmatch.fnmatch(name, targets):
            assert isinstance(mlp, Mlp)
            yield name, mlp


def _strongest(weight: Tensor, keep: float) -> list[int]:
    """Return the numbers of the rows with the largest sums of absolute values, in order."""
    strength = weight.detach().abs().sum(1)
    units: list[int] = strength.topk(math.ceil(keep * len(strength))).indices.sort().values.tolist()
    return units


def _cut(layer: nn.Linear, units: Tensor, axis: int) -> nn.Linear:
    """Return a layer with some of its outputs (axis 0) or inputs (axis 1)."""
    with torch.no_grad():
        weight = layer.weight.index_select(axis, units)
        made = {"device": weight.device, "dtype": weight.dtype}
        cut = nn.Linear(weight.shape[1], weight.shape[0], layer.bias is not None, **made)
        cut.weight.copy_(weight)
        if layer.bias is not None:
            cut.bias.copy_(layer.bias[units] if axis == 0 else layer.bias)
    cut.requires_grad_(layer.weight.requires_grad)
    return cut.train(layer.training)
