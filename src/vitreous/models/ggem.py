"""GGeM: a Vision Transformer whose patches are pooled by one generalised mean per attention head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitreous.catalog.card import Card
from vitreous.errors import ModelError
from vitreous.layers.pooling import GroupGeneralizedMean
from vitreous.models.vit import VisionTransformer
from vitreous.models.vit import resize as resize  # a trunk for other image sizes, as of any ViT

CARD = Card(
    slug="ggem",
    title="Group Generalized Mean Pooling for Vision Transformer",
    kind="model",
    summary="A plain ViT without class token: each head's channels are pooled by a generalised mean whose exponent "
    "is learned.",
    when="In place of a class token or a mean over patches, where a few patches decide.",
    paper="arXiv 2212.04114",
    year=2022,
    source_licence="no code published: re-implemented from the equations",
    tasks=["classify"],
    variants={
        "ggem_vit_tiny": {"dim": 192, "depth": 12, "heads": 3, "pool": "ggem"},
        "ggem_vit_small": {"dim": 384, "depth": 12, "heads": 6, "pool": "ggem"},
        "ggem_vit_base": {"dim": 768, "depth": 12, "heads": 12, "pool": "ggem"},
        "ggem_vit_large": {"dim": 1024, "depth": 24, "heads": 16, "pool": "ggem"},
        "ggem_test": {
            "dim": 16,
            "depth": 2,
            "heads": 2,
            "token_size": 3,
            "mlp_ratio": 2.0,
            "pool": "ggem",
        },
    },
    published=[
        {
            "variant": "ggem_vit_base",
            "parameters": 86_566_132,
            "source": "ViT-B/16 without class token, and 12 exponents",
        },
        {
            "variant": "ggem_vit_large",
            "parameters": 304_324_600,
            "source": "ViT-L/16 without class token, and 16 exponents",
        },
    ],
    recipe={"exponent_weight_decay": 0.0, "exponent_learning_rate": "that of the head"},
    claim="0.1 to 0.7 points above class token and mean on ImageNet-1K, for several pre-trainings of ViT-B and "
    "ViT-L, and above mean, max and GeM pooling on image retrieval.",
    miniature="Indian Pines, patches of 9 x 9 pixels, a ViT of width 48 with 6 heads: mean accuracy not more than "
    "0.3 points below mean pooling and not below max pooling; the exponents spread (standard deviation over "
    "heads above 0.1); nearest neighbour on the pooled vectors right at least as often as with mean pooling.",
    notes=[
        "The trunk is models/vit.py with pool='ggem', the pooling is layers/pooling.py.",
        "Groups are the heads of attention: channel c belongs to head c // (dim / heads).",
        "The exponents start at 3, as in GeM; the paper's value is not known to us. To fine-tune a model with mean "
        "pooling set model.pooling.p to 1, which changes nothing but that negative values count as 0.",
        "The pooling reads the trunk's values, and the last norm follows it, as in MAE's mean pooling; the paper "
        "does not say where the norm is.",
        "Negative values are clamped to 1e-6 before the power: that loss is part of the definition.",
        "The tiny and small sizes are ours; the paper has ViT-B and ViT-L.",
    ],
)

build = VisionTransformer


def from_reference(
    state_dict: Mapping[str, Tensor], kwargs: Mapping[str, Any]
) -> GroupGeneralizedMean:
    """Build the pooling layer alone from its channels ``C``, groups ``G`` and ``eps``, and load its exponents ``p``.

    There are no published networks; the layer takes ``(batch, tokens, C)``.

    Raises:
        ModelError: groups that do not divide the channels.
    """
    channels, groups = kwargs["C"], kwargs["G"]
    if channels % groups:
        raise ModelError(
            f"ggem cannot divide {channels} channels into {groups} groups.", "Change C or G."
        )
    layer = GroupGeneralizedMean(channels, groups, eps=kwargs.get("eps", 1e-6))
    layer.load_state_dict(dict(state_dict))
    return layer
