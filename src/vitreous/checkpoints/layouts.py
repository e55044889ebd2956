"""Whose layout weights have: told by the names of their tensors.

A network's file says which names its authors and timm give its tensors (``LAYOUTS``). Here are further layouts that
people have on their disks, so that a file of them is refused by its own name.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from vitreous.catalog.registry import cards, kind_of, system_module

# A layout's patterns: each matches the name of some tensor, and those that begin with "!" match none.
Patterns = Sequence[str]

ELSEWHERE: dict[str, Patterns] = {
    "timm's TinyViT": (r"^stages\.\d+\.blocks\.\d+\.local_conv\.conv\.weight$",),
    "timm's ViTamin": (r"^patch_embed\.backbone\.stem\.",),
    "a ResNet": (r"^layer1\.0\.conv1\.weight$", r"^layer4\.0\."),
    "ConvNeXt V2": (r"\.grn\.",),
    "Swin V2": (r"\.attn\.(logit_scale|cpb_mlp\.)", r"^layers\.\d+\.blocks\."),
    "BEiT": (r"^blocks\.\d+\.attn\.q_bias$", r"^blocks\.\d+\.attn\.qkv\.weight$"),
    "a masked autoencoder": (r"^mask_token$", r"^decoder_", r"^blocks\.\d+\.attn\."),
    "Hugging Face's ViT": (r"encoder\.layer\.\d+\.attention\.attention\.query\.weight$",),
    "Hugging Face's Swin": (r"encoder\.layers\.\d+\.blocks\.\d+\.attention\.self\.query\.weight$",),
    "CLIP": (r"^(visual|vision_model)\.",),
    "an EfficientNet or MobileNet": (r"^conv_stem\.weight$", r"^blocks\.\d+\.\d+\."),
    "a U-Net": (r"^inc\.", r"^outc\."),
}


class Layout(NamedTuple):
    """What a table of weights looks like.

    Attributes:
        title: whose network in whose names, e.g. ``timm's Swin``.
        slug: the system that it belongs to; None where vitreous does not have it.
    """

    title: str
    slug: str | None


def recognise(names: Collection[str]) -> Layout | None:
    """Return whose layout the names of tensors are in, or None where they are unknown."""
    return next(
        (
            layout
            for layout, patterns in _known().items()
            if all(_holds(pattern, names) for pattern in patterns)
        ),
        None,
    )


def _holds(pattern: str, names: Collection[str]) -> bool:
    wanted = re.compile(pattern.removeprefix("!"))
    found = any(wanted.search(name) for name in names)
    return found != pattern.startswith("!")


@functools.cache
def _known() -> Mapping[Layout, Patterns]:
    """Return the patterns of all layouts: those of our systems first."""
    ours = {
        Layout(title, card.slug): patterns
        for card in cards()
        if kind_of(card.slug).gradient
        for title, patterns in getattr(system_module(card.slug), "LAYOUTS", {}).items()
    }
    return {**ours, **{Layout(title, None): patterns for title, patterns in ELSEWHERE.items()}}
