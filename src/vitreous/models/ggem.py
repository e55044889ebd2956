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
    summary="A plain ViT without class token whose patch tokens are pooled by a generalised mean "
    "per head, with learned exponents.",
    when="Fine-tuning with learned pooling, as in the paper. On Indian Pines no pooling was "
    "measurably better than another (vit with pool='mean' is the simplest), and the "
    "learned exponents hardly differed.",
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
    claim="0.1 to 0.7 points above class token and mean pooling on ImageNet-1K for several "
    "pre-trainings of ViT-B and ViT-L, and above mean, max and GeM pooling in image retrieval.",
    miniature="Indian Pines, patches of 9 x 9 pixels, a ViT of width 48 with 6 heads. Required: "
    "accuracy at most 0.3 points below mean pooling and not below max pooling; standard "
    "deviation of the exponents over heads above 0.1; nearest-neighbour accuracy on the pooled "
    "vectors at least that of mean pooling.",
    notes=[
        "Usage: To fine-tune a model with mean pooling, set model.pooling.p to 1: the model is "
        "then unchanged, except that negative values count as 0.",
        "Usage: The tiny and small sizes are ours; the paper uses ViT-B and ViT-L.",
        "Usage: The backbone is models/vit.py with pool='ggem'; the pooling is in "
        "layers/pooling.py. Groups are attention heads: channel c belongs to head c // (dim / "
        "heads).",
        "Not specified in the paper: The exponents start at 3, as in GeM.",
        "Not specified in the paper: Pooling comes before the last norm, as in MAE's mean pooling.",
        "Not specified in the paper: Negative values are clamped to 1e-6 before the power, which "
        "loses their sign by definition.",
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
