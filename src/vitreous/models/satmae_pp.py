"""SatMAE++: groups of bands as tokens, pre-trained by restoring hidden tokens and then two finer scales.

The network is in ``_grouped_transformer.py``, its pre-training in ``_masked_autoencoder.py``.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vitreous.catalog.card import Card
from vitreous.errors import ModelError
from vitreous.layers.positions import resize_positions
from vitreous.layers.reference import begin, pair, rename_keys
from vitreous.models._grouped_transformer import (
    PUBLISHED_GROUPS,
    GroupedTransformer,
    Groups,
    default_groups,
)
from vitreous.models._masked_autoencoder import MaskedAutoencoder

CARD = Card(
    slug="satmae_pp",
    title="Rethinking Transformers Pre-training for Multi-Spectral Satellite Imagery",
    kind="model",
    summary="A ViT with tokens per position and group of bands, pre-trained as a masked "
    "autoencoder that also reconstructs the image at two and four times the resolution.",
    when="Multispectral images with few labels and plenty of unlabelled imagery at a finer "
    "resolution, with the encoder frozen. Fine-tuning was not better than training from scratch "
    "in our small test.",
    paper="arXiv 2403.05419; CVPR 2024; groups of bands: SatMAE, arXiv 2207.08051",
    year=2024,
    source_licence="Apache-2.0 (techmn/satmae_pp): re-implemented from the equations",
    tasks=["classify", "pretrain"],
    input="bands",
    variants={
        "satmae_pp_base": {"dim": 768, "depth": 12, "heads": 12, "group_dim": 256},
        "satmae_pp_large": {"dim": 1024, "depth": 24, "heads": 16, "group_dim": 256},
        "satmae_pp_tiny": {"dim": 96, "depth": 4, "heads": 4, "token_size": 4, "pool": "mean"},
        "satmae_pp_test": {"dim": 16, "depth": 2, "heads": 2, "token_size": 3, "mlp_ratio": 2.0},
    },
    published=[
        {
            "variant": "satmae_pp_large",
            "bands": 10,
            "image_size": 96,
            "num_classes": 62,
            "parameters_m": 303.15,
            "top1": 63.23,
            "source": "FMoW-Sentinel, pre-trained on it",
        },
    ],
    recipe={
        "pretrain": {
            "optimizer": "adamw",
            "betas": [0.9, 0.95],
            "learning_rate": "1e-4 x batch / 256",
            "batch_size": 2048,
            "weight_decay": 0.05,
            "epochs": 50,
            "warmup_epochs": 20,
            "schedule": "cosine",
            "mask_ratio": 0.75,
            "crop": "random resized, mirrored",
        },
        "classify": {
            "optimizer": "adamw",
            "learning_rate": "2e-4 x batch / 256",
            "epochs": 30,
            "drop_path": 0.2,
            "erasing": 0.25,
            "mixup": 0.8,
            "cutmix": 1.0,
            "layer_decay": 0.75,
        },
    },
    claim="Reconstructing several scales gives better features than one scale, for equal "
    "pre-training.",
    miniature="Crops of 32 x 32 pixels of a scene with 10 averaged bands in 3 groups, "
    "pre-trained with and without the finer scale. Required: a linear classifier on the features "
    "at most 0.5 points below that of one scale and at least 3 points above a random encoder; "
    "the fine reconstruction closer to the truth than the upsampled coarse one.",
    notes=[
        "Usage: satmae_pp_tiny is our variant for CPUs.",
        "Usage: Images of 10 bands use the published groups for Sentinel-2 without B1, B9 and "
        "B10; other images three groups of neighbouring bands of nearly equal size (groups).",
        "Usage: With pool='mean' the last norm, which pre-training trains, follows the mean; the "
        "authors use a new one.",
        "Usage: Quantization leaves the patch embedding in floating point.",
        "Image size: Tokens are 8 pixels at 96; on smaller images they shrink so that at least 7 "
        "x 7 positions remain (token_size).",
        "Checkpoints: The groups' projections are stored as one weight in band order, so that it "
        "can be adapted to other bands. Each band keeps its position and joins the group of that "
        "position among the new bands.",
        "Usage: Position and group embeddings are initialised with sines in the classifier "
        "too, where they are trained.",
        "Checkpoints: The published RGB autoencoder is groups=((0, 1, 2),), group_dim=0, "
        "token_size=16 and one finer scale.",
        "Differs from the reference: The authors compare the reconstruction, whose channels are "
        "in group order, with a target in band order, so that heads learn bands of other groups. "
        "Here both are in band order; group_order='published' reproduces theirs, which their "
        "checkpoints were trained with (from_reference).",
        "Differs from the reference: norm_pix normalises the target per band; with "
        "group_order='published' jointly over bands, as the authors do.",
        "Differs from the reference: Heads for finer scales have 4 x bands channels, as "
        "published, but at most the encoder's width.",
        "Published figures: Autoencoder parameters: 329.33 M (large), 111.74 M (base), 329.55 M "
        "(large, RGB at 224).",
        "Not included: Dropout, which is 0 in every published setting.",
    ],
)

build = GroupedTransformer
build_pretrainer = MaskedAutoencoder


# -- the authors' weights -----------------------------------------------------------------------------------

_ENCODER = {
    "cls_token": "class_token",
    "channel_embed": "group_embed",
    "channel_cls_embed": "class_group_embed",
    "fc_norm.": "norm.",
}
_AUTOENCODER = {
    "decoder_channel_embed": "decoder_group_embed",
    "decoder_pred.": "decoder_heads.",
    "proj_up_conv.": "finer.lift.",
    "proj_up_norm.": "finer.norm.",
}
_UPSAMPLING = {
    "up_conv": "up",
    "up_norm": "up_norm",
    "res_block.conv1": "conv1",
    "res_block.conv2": "conv2",
    "res_norm": "norm",
    "proj_out": "image",
}
# Of the autoencoder only: the classifier made of its encoder does not have them.
UNREAD = ("decoder_", "mask_token", "proj_up_", "up_block")


LAYOUTS = {
    "the authors' SatMAE++": (
        r"^(patch_embed\.0\.proj\.weight|proj_up_conv\.weight)$",
        r"^(channel_embed|mask_token)$",
    ),
}


def rename(state_dict: Mapping[str, Tensor], groups: Groups | None = None) -> dict[str, Tensor]:
    """Give the encoder's weights in the authors' layout our names; the autoencoder's own (``UNREAD``) stay as they are.

    Args:
        state_dict: of their classifier or of their autoencoder.
        groups: their groups; the default ones where not given.

    Raises:
        ModelError: the weights are of other groups.
    """
    weights, biases = _patch_names(state_dict)
    joined = {*weights, *biases}
    loose = {key: value for key, value in state_dict.items() if key not in joined}
    renamed = rename_keys(loose, partial(begin, _ENCODER))
    if not joined:
        return renamed
    bands = [state_dict[name].shape[1] for name in weights]
    groups = default_groups(sum(bands)) if groups is None else groups
    if [len(group) for group in groups] != bands:
        raise ModelError(
            f"The weights' groups have {bands} bands, not those of {groups}.",
            "Load them by from_reference, with channel_groups among its arguments.",
        )
    order = torch.tensor([band for group in groups for band in group])
    projections = torch.cat([state_dict[name] for name in weights], 1)
    renamed["patch_embed.weight"] = projections[:, order.argsort()]
    renamed["patch_embed.bias"] = torch.stack([state_dict[name] for name in biases])
    # Their classifier learns a group of the class token; their autoencoder's class token has none.
    if "mask_token" in state_dict and "channel_embed" in state_dict:
        renamed["class_group_embed"] = torch.zeros_like(state_dict["channel_embed"][:, :1])
    return renamed


def _patch_names(state_dict: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """Name the projections' weights and biases, group by group; the autoencoder of RGB images has one group."""
    bases = ["patch_embed.proj"]
    if "patch_embed.proj.weight" not in state_dict:
        numbers = itertools.takewhile(
            lambda g: f"patch_embed.{g}.proj.weight" in state_dict, itertools.count()
        )
        bases = [f"patch_embed.{number}.proj" for number in numbers]
    if not all(f"{base}.{what}" in state_dict for base in bases for what in ("weight", "bias")):
        return [], []  # told as left over
    return [f"{base}.weight" for base in bases], [f"{base}.bias" for base in bases]


def _autoencoder_name(key: str) -> str:
    if not key.startswith("up_block"):
        return begin(_AUTOENCODER, key)
    block, part = key.removeprefix("up_block").split(".", 1)
    return f"finer.blocks.{int(block) - 1}.{begin(_UPSAMPLING, part)}"


def resize(
    state_dict: Mapping[str, Tensor],
    model: GroupedTransformer,
    source: GroupedTransformer | None = None,
) -> dict[str, Tensor]:
    """Resample the table of places to the grid of ``model``."""
    old = None if source is None else source.grid
    table = resize_positions(state_dict["pos_embed"], model.grid, 1, old)
    return {**state_dict, "pos_embed": table}


def from_reference(
    state_dict: Mapping[str, Tensor], kwargs: Mapping[str, Any]
) -> GroupedTransformer | MaskedAutoencoder:
    """Build the authors' classifier or autoencoder, whichever the weights are of, and load them.

    The autoencoder's picture has the groups' order (``group_order="published"``), as its weights were trained. Their
    class normalises with 1e-5 unless told otherwise, but their named sizes with 1e-6: give ``norm_eps`` for these.
    """
    pretrained = "mask_token" in state_dict
    groups = kwargs.get("channel_groups", PUBLISHED_GROUPS)
    encoder = GroupedTransformer(
        bands=sum(map(len, groups)),
        num_classes=0 if pretrained else kwargs.get("num_classes", 1000),
        image_size=pair(kwargs.get("img_size", 224)),
        token_size=kwargs.get("patch_size", 16),
        dim=kwargs.get("embed_dim", 1024 if pretrained else 768),
        depth=kwargs.get("depth", 24 if pretrained else 12),
        heads=kwargs.get("num_heads", 16 if pretrained else 12),
        groups=groups,
        group_dim=kwargs.get("channel_embed", 256),
        mlp_ratio=kwargs.get("mlp_ratio", 4.0),
        pool="mean" if kwargs.get("global_pool", False) else "cls",
        norm_eps=kwargs.get("norm_eps", 1e-5 if pretrained else 1e-6),
        drop_path=kwargs.get("drop_path_rate", 0.0),
    )
    weights = rename(state_dict, groups)
    own = {key: weights.pop(key) for key in state_dict if pretrained and key.startswith(UNREAD)}
    encoder.load_state_dict(weights)
    if not pretrained:
        return encoder
    model = MaskedAutoencoder(
        encoder,
        decoder_width=kwargs.get("decoder_embed_dim", 512),
        decoder_depth=kwargs.get("decoder_depth", 8),
        decoder_heads=kwargs.get("decoder_num_heads", 16),
        decoder_group_dim=kwargs.get("decoder_channel_embed", 128),
        same_mask=kwargs.get("spatial_mask", False),
        scales=len({key.split(".")[0] for key in state_dict if key.startswith("up_block")}),
        scale_width=state_dict["proj_up_conv.weight"].shape[0],
        norm_pix=kwargs.get("norm_pix_loss", False),
        group_order="published",
    )
    own = {_autoencoder_name(key): value for key, value in own.items()}
    whole = {f"encoder.{key}": value for key, value in encoder.state_dict().items()}
    model.load_state_dict({**own, **whole})
    return model
