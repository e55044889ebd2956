"""ESSAformer: super-resolution that goes up and down in size, with attention by squared spectral correlation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.catalog.arguments import Share, Size
from vitreous.catalog.card import Card
from vitreous.errors import ModelError, did_you_mean
from vitreous.layers.attention import AttentionCore
from vitreous.layers.reference import rename_keys, substitute
from vitreous.layers.restorer import Restorer

CARD = Card(
    slug="essaformer",
    title="ESSAformer: Efficient Transformer for Hyperspectral Image Super-resolution",
    kind="restorer",
    summary="Super-resolution by iterative refinement at both resolutions with shared weights, "
    "and attention whose cost is linear in the number of pixels.",
    when="Super-resolution of hyperspectral cubes by 2, 3, 4 or 8: better than bicubic here, by "
    "less than 1 dB. The tiny and small variants are meant for CPUs.",
    paper="arXiv 2307.14010; ICCV 2023",
    year=2023,
    source_licence="Unlicense (Rexzhan/ESSAformer): re-implemented from the equations",
    tasks=["restore"],
    input="bands",
    variants={
        "essaformer": {"dim": 256, "scale": 4},
        "essaformer_x2": {"dim": 256, "scale": 2},
        "essaformer_x8": {"dim": 256, "scale": 8},
        "essaformer_small": {"dim": 64, "scale": 4, "global_skip": True},
        "essaformer_tiny": {"dim": 32, "scale": 4, "global_skip": True},
        "essaformer_test": {"dim": 8, "scale": 2},
    },
    published=[
        {
            "variant": "essaformer",
            "bands": 128,
            "image_size": 8,
            "parameters_m": 11.64,
            "gmacs": 13.0,
        },
        {"variant": "essaformer_x2", "bands": 128, "parameters_m": 9.13},
        {"variant": "essaformer_x8", "bands": 128, "parameters_m": 14.15},
        {"variant": "essaformer", "bands": 31, "parameters_m": 11.19},
        {"variant": "essaformer", "bands": 102, "parameters_m": 11.52},
    ],
    recipe={
        "data": "not published; usual: bicubic reduction, input patches of 16 to 32 pixels",
        "loss": "l1",
        "optimizer": "adamw",
        "learning_rate": 2e-4,
        "schedule": "cosine",
    },
    claim="Higher PSNR and lower spectral angle than SSPSR, MCNet and transformers on Chikusei, "
    "Pavia, CAVE and Harvard at 4x and 8x, without pre-training, at a cost linear in the number "
    "of pixels.",
    miniature="16 bands of a real scene, 4x, 32 features, the same seeds for all networks. "
    "Required: PSNR at least 0.5 dB above bicubic and at most 0.05 dB below the same network "
    "with attention reduced to its values, spectral angle below bicubic; faster per step than "
    "softmax attention at 48 x 48 pixels, and at most 2.5x the time for twice the pixels.",
    notes=[
        "Usage: Features must be divisible by 4 for scales 2, 4 and 8, by 9 for scale 3.",
        "Usage: attention='value' and 'softmax' are the baselines of the claim: the values "
        "alone, and single-head softmax attention.",
        "Usage: global_skip adds the bicubic upsampling of the input to the output and "
        "zero-initialises the last convolution, so training starts from bicubic interpolation. "
        "It is our addition: short training does not reach that from scratch.",
        "Usage: essaformer_small and essaformer_tiny are our variants, with the global skip.",
        "Usage: reach covers the convolutions only; attention averages over the whole tile.",
        "Not specified in the paper: The training recipe is not public; the one on this card is "
        "ours.",
        "As in the reference: Units apply dropout of 0.2 at three places.",
        "As in the reference: The second attention term is divided by the root of the number of "
        "tokens. It does not vanish for large images, because the keys are normalised over the "
        "tokens and both roots cancel (tested).",
    ],
)

SCALES = (2, 3, 4, 8)
_ATTENTIONS = ("essa", "value", "softmax")


def correlate(
    query: Float[Tensor, "*batch tokens dim"],
    key: Float[Tensor, "*batch tokens dim"],
    value: Float[Tensor, "*batch tokens dim"],
) -> Float[Tensor, "*batch tokens dim"]:
    """Return q (k^T v) / sqrt(tokens): the second-order term of the kernel of squared correlations.

    q and k are the channels' shares of each token's variance, then of unit length: q over the channels of a token,
    k over the tokens of a channel. In this order the cost is linear in the tokens.
    """
    context = variance_shares(key).transpose(-2, -1)
    lengths = torch.linalg.vector_norm(context, dim=-1, keepdim=True).clamp(min=1e-12)
    # The keys' lengths divide the small matrix of dim x dim rather than the tokens.
    context = context @ value / (lengths * math.sqrt(value.shape[-2]))
    return F.normalize(variance_shares(query), dim=-1) @ context


def variance_shares(x: Float[Tensor, "*batch tokens dim"]) -> Float[Tensor, "*batch tokens dim"]:
    """Return the share of each channel in the sum of squares of a token less its mean."""
    squares = (x - x.mean(-1, keepdim=True)).square()
    return squares / (squares.sum(-1, keepdim=True) + 1e-7)


class Attention(nn.Module):
    """Spectral-correlation attention (ESSA): W_o (v + q (k^T v) / sqrt(N)).

    Args:
        dim: token width.
        kind: ``essa``; or a baseline, ``value`` (W_o v) or ``softmax`` (one head).
    """

    def __init__(self, dim: int, kind: str = "essa") -> None:
        super().__init__()
        self.kind = kind
        self.qkv = nn.Linear(dim, dim if kind == "value" else 3 * dim)
        self.core = AttentionCore() if kind == "softmax" else None
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Attend."""
        if self.kind == "value":
            return self.proj(self.qkv(x))
        query, key, value = self.qkv(x).chunk(3, -1)
        if self.core is None:
            return self.proj(value + correlate(query, key, value))
        return self.proj(self.core(query[:, None], key[:, None], value[:, None])[:, 0])


class Refine(nn.Module):
    """Attention and convolutions on a residual branch: x + F([ESSA(LN(x)), x]).

    Args:
        dim: channels.
        kind: of attention, see :class:`Attention`.
        drop: share of features dropped in training, at three places.
    """

    def __init__(self, dim: int, kind: str, drop: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attn = Attention(dim, kind)
        self.drop = nn.Dropout2d(drop)
        self.convs = nn.Sequential(
            nn.Conv2d(2 * dim, 2 * dim, 1),
            nn.LeakyReLU(0.2),
            nn.Dropout2d(drop),
            nn.Conv2d(2 * dim, 2 * dim, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Dropout2d(drop),
            nn.Conv2d(2 * dim, dim, 1),
        )

    def forward(
        self, x: Float[Tensor, "batch dim height width"]
    ) -> Float[Tensor, "batch dim height width"]:
        """Refine a map."""
        tokens = self.attn(self.norm(rearrange(x, "b c h w -> b (h w) c")))
        mixed = rearrange(tokens, "b (h w) c -> b c h w", h=x.shape[2])
        return x + self.convs(torch.cat([self.drop(mixed), x], 1))


def upsample(dim: int, scale: int) -> nn.Sequential:
    """Return convolutions whose channels become pixels, in steps of 2, or of 3."""
    step, times = _steps(scale)
    return nn.Sequential(
        *(
            part
            for _ in range(times)
            for part in (nn.Conv2d(dim, step**2 * dim, 3, padding=1), nn.PixelShuffle(step))
        )
    )


def downsample(dim: int, scale: int) -> nn.Sequential:
    """Return convolutions whose pixels become channels, in steps of 2, or of 3."""
    step, times = _steps(scale)
    return nn.Sequential(
        *(
            part
            for _ in range(times)
            for part in (nn.Conv2d(dim, dim // step**2, 3, padding=1), nn.PixelUnshuffle(step))
        )
    )


def _steps(scale: int) -> tuple[int, int]:
    return (3, 1) if scale == 3 else (2, scale.bit_length() - 1)


class ESSAformer(Restorer):
    """ESSAformer (arXiv 2307.14010).

    From f = conv(x), with U and D going up and down in size and E_u and E_d refining,

    x1 = E_u(U f), x2 = E_d(D x1 + f), x3 = E_u(U x2 + x1), x4 = E_d(D x3 + x2), x5 = E_u(U x4 + x3),
    and the output is conv(x5). U, D, E_u and E_d have one set of weights each.

    Args:
        bands: channels of the input.
        dim: features.
        scale: how many times finer the output is: 2, 3, 4 or 8.
        attention: ``essa``, ``value`` or ``softmax``, see :class:`Attention`.
        drop: share of features dropped in training.
        global_skip: add the bicubic enlargement of the input to the output, which begins as that alone.

    Raises:
        ModelError: another scale or attention, or features that cannot be divided among pixels.
    """

    reach = 12
    band_parameters = ("first.weight", "last.weight", "last.bias")
    band_axes: ClassVar[dict[str, int]] = {"last.weight": 0, "last.bias": 0}
    band_tables = ("last.weight", "last.bias")

    def __init__(
        self,
        bands: int,
        *,
        dim: Size = 256,
        scale: Size = 4,
        attention: str = "essa",
        drop: Share = 0.2,
        global_skip: bool = False,
    ) -> None:
        super().__init__(bands)
        _check(dim, scale, attention)
        self.scale, self.global_skip = scale, global_skip
        self.first = nn.Conv2d(bands, dim, 3, padding=1)
        self.up, self.down = upsample(dim, scale), downsample(dim, scale)
        self.refine_up = Refine(dim, attention, drop)
        self.refine_down = Refine(dim, attention, drop)
        self.last = nn.Conv2d(dim, bands, 3, padding=1)
        if global_skip:
            for parameter in self.last.parameters():
                nn.init.zeros_(parameter)

    def restore(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> Float[Tensor, "batch bands {self.scale}*height {self.scale}*width"]:
        """Enlarge cubes."""
        coarse = self.first(x)
        fine = self.run(self.refine_up, self.up(coarse))
        for _ in range(2):
            coarse = self.run(self.refine_down, self.down(fine) + coarse)
            fine = self.run(self.refine_up, self.up(coarse) + fine)
        larger = self.last(fine)
        if self.global_skip:
            larger = larger + F.interpolate(x, scale_factor=self.scale, mode="bicubic")
        return larger


def _check(dim: int, scale: int, attention: str) -> None:
    if attention not in _ATTENTIONS:
        raise ModelError(
            f"essaformer has no attention '{attention}'.", did_you_mean(attention, _ATTENTIONS)
        )
    if scale not in SCALES:
        raise ModelError(f"essaformer has no scale {scale}.", "Choose 2, 3, 4 or 8.")
    parts = _steps(scale)[0] ** 2
    if dim < 1 or dim % parts:
        raise ModelError(
            f"essaformer cannot divide {dim} features among {parts} pixels.",
            f"For scale {scale}, choose a multiple of {parts}: dim={max(1, round(dim / parts)) * parts}.",
        )


build = ESSAformer

_NAMES = [
    (r"^conv_(first|last)\.", r"\1."),
    (r"^blockup\.convupsample\.", "up."),
    (r"^blockup\.convdownsample\.", "down."),
    (r"^blockup\.conv(up|down)\.", r"refine_\1."),
    (r"\.conv[ud]\.", ".convs."),
    (r"\.lnqkv\.", ".qkv."),
    (r"\.ln\.", ".proj."),
]


LAYOUTS = {"the authors' ESSAformer": (r"^blockup\.conv(up|down)",)}


def rename(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give weights in the authors' layout our names."""
    return rename_keys(state_dict, partial(substitute, _NAMES))


def from_reference(state_dict: Mapping[str, Tensor], kwargs: Mapping[str, Any]) -> ESSAformer:
    """Build the network from the authors' arguments and load their weights."""
    model = ESSAformer(bands=kwargs["inch"], dim=kwargs["dim"], scale=kwargs["upscale"])
    model.load_state_dict(rename(state_dict))
    return model
