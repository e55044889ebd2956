"""SatMAE++: groups of bands as tokens, pre-trained by restoring hidden tokens and then two finer scales."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from jaxtyping import Float, Int
from torch import Tensor, nn

from vitreous.catalog.arguments import Count, Depth, Positive, Share, Size
from vitreous.catalog.card import Card
from vitreous.errors import ModelError
from vitreous.layers.backbone import Backbone, FeatureInfo, linear_rates, stem_stride
from vitreous.layers.positions import resize_positions, sincos_2d
from vitreous.layers.pretrainer import Pretext, Pretrainer
from vitreous.layers.reference import begin, rename_keys
from vitreous.layers.tokens import gather_tokens
from vitreous.models.convnext import ChannelNorm
from vitreous.models.vit import Block

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

PUBLISHED_GROUPS = ((0, 1, 2, 6), (3, 4, 5, 7), (8, 9))
GROUPS = 3
LEAST_WIDTH = 16  # of a decoder: one head

Groups: TypeAlias = Sequence[Sequence[int]]


def default_groups(bands: int) -> tuple[tuple[int, ...], ...]:
    """Return the published groups of 10 bands; of others, three runs of neighbours whose sizes differ by 1 at most.

    Fewer than three bands are a group each.
    """
    if bands == sum(map(len, PUBLISHED_GROUPS)):
        return PUBLISHED_GROUPS
    count = min(GROUPS, bands)
    cuts = [-(-bands * k // count) for k in range(count + 1)]
    return tuple(tuple(range(cuts[k], cuts[k + 1])) for k in range(count))


# -- the classifier -----------------------------------------------------------------------------------------


class GroupEmbed(nn.Module):
    """Cut the bands of each group into patches, and project each group's by a weight of its own.

    Args:
        groups: numbers of bands; every band is in one group.
        dim: token width.
        size: side of a patch in pixels.
    """

    def __init__(self, groups: Groups, dim: int, size: int) -> None:
        super().__init__()
        self.order = [band for group in groups for band in group]
        self.sizes = [len(group) for group in groups]
        self.size = size
        # One tensor, its second axis counting bands, is what layers/bands.py makes for other bands.
        self.weight = nn.Parameter(torch.empty(dim, len(self.order), size, size))
        self.bias = nn.Parameter(torch.zeros(len(groups), dim))
        with torch.no_grad():
            for group in groups:  # Xavier, as of one linear layer per group
                bound = (6 / (dim + len(group) * size**2)) ** 0.5
                self.weight[:, list(group)] = torch.empty(dim, len(group), size, size).uniform_(
                    -bound, bound
                )

    def forward(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> Float[Tensor, "batch groups dim h w"]:
        """Return a map of tokens per group; what does not fill a patch is left out."""
        parts = zip(self._grouped(x), self._grouped(self.weight), self.bias, strict=True)
        return torch.stack([F.conv2d(*part, stride=self.size) for part in parts], 1)

    def _grouped(self, x: Float[Tensor, "any bands *size"]) -> tuple[Tensor, ...]:
        in_order = self.order == sorted(self.order)
        return (x if in_order else x[:, self.order]).split(self.sizes, 1)


class GroupedTransformer(Backbone):
    """ViT over places and groups of bands (SatMAE, arXiv 2207.08051, section 3.3; SatMAE++, section 3).

    Args:
        bands: channels of the input.
        num_classes: classes; with 0 the pooled features are returned.
        image_size: side of the image in pixels; what does not fill a token at the end is left out.
        dim: token width.
        depth: number of blocks.
        heads: attention heads.
        groups: numbers of bands, every band in one group; :func:`default_groups` where not given.
        group_dim: how many of a token's channels tell its group, the others its place; a quarter where not given,
            and with 0 nothing tells the groups apart.
        token_size: side of a token in pixels; 8, or on small images what leaves 7 x 7 places.
        mlp_ratio: hidden width of the feed-forward over the token width.
        pool: ``cls`` (class token) or ``mean`` (over the other tokens, the last norm after it).
        norm_eps: of the normalisations.
        drop_path: stochastic depth of the last block, growing linearly from 0.

    Raises:
        ModelError: an image smaller than a token, a width that heads or positions do not divide, groups that miss or
            repeat a band, or no such pool.
    """

    any_size = True
    band_parameters = ("patch_embed.weight",)
    band_arguments = ("groups",)
    undecayed = ("pos_embed", "group_embed", "class_group_embed", "class_token", "patch_embed.bias")

    def __init__(
        self,
        bands: int,
        num_classes: int,
        image_size: int = 96,
        *,
        dim: Size = 768,
        depth: Depth = 12,
        heads: Size = 12,
        groups: Groups | None = None,
        group_dim: Count | None = None,
        token_size: Size | None = None,
        mlp_ratio: Positive = 4.0,
        pool: str = "cls",
        norm_eps: Positive = 1e-6,
        drop_path: Share = 0.0,
    ) -> None:
        super().__init__(bands, num_classes, image_size)
        self.groups = tuple(map(tuple, default_groups(bands) if groups is None else groups))
        self.token_size = token_size or stem_stride(image_size, 8, cells=7)
        self.num_features, self.mlp_ratio, self.pool = dim, mlp_ratio, pool
        self.group_dim = _quarter(dim) if group_dim is None else group_dim
        self.grid, self.least_size = image_size // self.token_size, self.token_size
        self._check(heads)
        self.feature_info = [FeatureInfo(dim, self.token_size)]
        self.patch_embed = GroupEmbed(self.groups, dim, self.token_size)
        self.class_token = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        place, group = sine_tables(dim, self.group_dim, self.grid, len(self.groups))
        self.pos_embed, self.group_embed = nn.Parameter(place), nn.Parameter(group)
        self.class_group_embed = nn.Parameter(torch.zeros(1, 1, self.group_dim))
        self.blocks = nn.ModuleList(
            Block(dim, heads, mlp_ratio, rate, None) for rate in linear_rates(drop_path, depth)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        _init_linear(self.blocks)
        _set_norms(self, norm_eps)
        self.head = self.make_head(num_classes)

    @property
    def tables(self) -> dict[str, nn.Parameter]:
        """The tables of places and groups, which pre-training leaves as they are."""
        names = ("pos_embed", "group_embed", "class_group_embed")
        return {name: self.get_parameter(name) for name in names}

    def embed(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Return the tokens with their places and groups: all places of one group after another, no class token."""
        maps = self.patch_embed(x)
        size = (maps.shape[3], maps.shape[4])
        places = resize_positions(self.pos_embed, size, 1)[:, 1:]
        return rearrange(maps, "b g d h w -> b (g h w) d") + join(places, self.group_embed)

    def encode(
        self, tokens: Float[Tensor, "batch tokens dim"]
    ) -> Float[Tensor, "batch tokens+1 dim"]:
        """Put the class token before embedded tokens, in whatever order, and apply the blocks; not normalised."""
        front = torch.cat([self.pos_embed[:, :1], self.class_group_embed], -1) + self.class_token
        tokens = torch.cat([front.expand(tokens.shape[0], -1, -1), tokens], 1)
        for block in self.blocks:
            tokens, _ = self.run(block, tokens)
        return tokens

    def forward_features(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Return the last block's tokens, the class token first; normalised unless they are pooled by their mean."""
        tokens = self.encode(self.embed(x))
        return tokens if self.pool == "mean" else self.norm(tokens)

    def forward_head(
        self, features: Float[Tensor, "batch tokens dim"]
    ) -> Float[Tensor, "batch classes"]:
        """Classify the class token, or the mean of the others."""
        if self.pool == "mean":
            return self.head(self.norm(features[:, 1:].mean(1)))
        return self.head(features[:, 0])

    def level_maps(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> list[Float[Tensor, "batch dim h w"]]:
        """Return one map, the mean over the groups' normalised tokens."""
        height, width = (side // self.token_size for side in x.shape[2:])
        tokens = self.norm(self.encode(self.embed(x))[:, 1:])
        return [reduce(tokens, "b (g h w) d -> b d h w", "mean", h=height, w=width)]

    def _check(self, heads: int) -> None:
        if self.grid < 1:
            raise ModelError(
                f"satmae_pp cuts tokens of {self.token_size} pixels; an image of {self.image_size} has none.",
                "Give a smaller token_size.",
            )
        if sorted(band for group in self.groups for band in group) != [*range(self.bands)]:
            raise ModelError(
                f"The groups {self.groups} do not hold each of the bands 0 to {self.bands - 1} once.",
                "Put every band into one group.",
            )
        if not all(self.groups):
            raise ModelError("A channel group has no bands.", "Omit it.")
        if self.pool not in {"cls", "mean"}:
            raise ModelError(f"satmae_pp cannot pool by '{self.pool}'.", "Choose cls or mean.")
        _check_width("satmae_pp", self.num_features, heads, self.group_dim)


# -- pre-training -------------------------------------------------------------------------------------------


class UpsampleBlock(nn.Module):
    """From features to features at twice the resolution, and the image that they show (fig. 3).

    Args:
        width: channels of the features.
        bands: of the image.
    """

    def __init__(self, width: int, bands: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(width, width, 4, stride=2, padding=1)
        self.up_norm = ChannelNorm(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.norm = ChannelNorm(width)
        self.image = nn.Conv2d(width, bands, 3, padding=1)

    def forward(
        self, x: Float[Tensor, "batch width h w"]
    ) -> tuple[Float[Tensor, "batch width h*2 w*2"], Float[Tensor, "batch bands h*2 w*2"]]:
        """Return the features and the image."""
        x = F.leaky_relu(self.up_norm(self.up(x)))
        x = self.norm(x + 0.5 * self.conv2(F.relu(self.conv1(x))))
        return x, self.image(x)


class FinerScales(nn.Module):
    """From the decoder's image to images of 2, 4, ... times its resolution (section 3.2).

    Args:
        bands: of the images.
        width: channels of the features.
        scales: how often to double.
    """

    def __init__(self, bands: int, width: int, scales: int) -> None:
        super().__init__()
        self.lift = nn.Conv2d(bands, width, 1)
        self.norm = ChannelNorm(width)
        self.blocks = nn.ModuleList(UpsampleBlock(width, bands) for _ in range(scales))
        for part in self.modules():
            if isinstance(part, nn.Conv2d):  # transposed ones keep their own start, as published
                nn.init.xavier_uniform_(part.weight)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)

    def forward(
        self, image: Float[Tensor, "batch bands height width"]
    ) -> list[Float[Tensor, "batch bands finer_height finer_width"]]:
        """Return the images, coarse to fine."""
        features = self.norm(F.gelu(self.lift(image)))
        images = []
        for block in self.blocks:
            features, finer = block(features)
            images.append(finer)
        return images


class Prediction(NamedTuple):
    """What the autoencoder makes of an image.

    Attributes:
        image: the decoder's, ``(batch, bands, height, width)``.
        finer: images of 2, 4, ... times its resolution.
        mask: 1 for hidden tokens, ``(batch, groups, places)``.
    """

    image: Tensor
    finer: list[Tensor]
    mask: Tensor


class MaskedAutoencoder(Pretrainer):
    """Masked autoencoder with images at several scales (arXiv 2403.05419, section 3).

    The loss is ``(1 - ms_weight) MSE + ms_weight L1``: the squared error of hidden tokens at the encoder's own
    resolution, and the mean over the finer scales of the absolute error of all pixels (eqs. 3 to 5). Without finer
    scales it is the MSE alone: SatMAE.

    Args:
        encoder: a fresh one has its tables of places and groups filled with sines; whatever they hold is left so.
        decoder_width: token width of the decoder; two thirds of the encoder's, 512 at most, where not given.
        decoder_depth: blocks of the decoder; two thirds of the encoder's, 8 at most, where not given.
        decoder_heads: attention heads of the decoder; one per 16 channels, 16 at most, where not given.
        decoder_group_dim: how many of the decoder's channels tell the group; a quarter where not given.
        mask_ratio: share of the tokens that are hidden.
        same_mask: hide the same places in all groups.
        scales: how many finer scales there are, each of twice the resolution.
        scale_width: channels of their features; four per band where not given, but no more than the encoder's width.
        ms_weight: weight of the finer scales in the loss.
        norm_pix: let hidden tokens be predicted with mean 0 and variance 1, per band.
        group_order: ``natural``, or ``published``: the picture's channels stay in the groups' order, though they are
            compared with bands in their own.

    Raises:
        ModelError: another encoder, a share that hides nothing or all, a width that heads or positions do not divide,
            or an order that is not listed.
    """

    encoder: GroupedTransformer

    def __init__(
        self,
        encoder: Backbone,
        *,
        decoder_width: Size | None = None,
        decoder_depth: Depth | None = None,
        decoder_heads: Size | None = None,
        decoder_group_dim: Count | None = None,
        mask_ratio: float = 0.75,
        same_mask: bool = False,
        scales: int = 2,
        scale_width: Size | None = None,
        ms_weight: float = 0.4,
        norm_pix: bool = False,
        group_order: str = "natural",
    ) -> None:
        if not isinstance(encoder, GroupedTransformer):
            raise ModelError(
                f"satmae_pp does not pre-train a {type(encoder).__name__}.",
                "Give one of the satmae_pp variants.",
            )
        super().__init__(encoder)
        self.mask_ratio, self.same_mask, self.ms_weight = mask_ratio, same_mask, ms_weight
        self.norm_pix, self.group_order = norm_pix, group_order
        self.scales, self.finest = scales, 2**scales
        self._check()
        dim, depth, groups = encoder.num_features, len(encoder.blocks), encoder.groups
        width = decoder_width or max(LEAST_WIDTH, min(512, dim * 2 // 3 // 16 * 16))
        heads = decoder_heads or max(1, min(16, width // 16))
        fallback = _quarter(width) if encoder.group_dim else 0
        group_dim = fallback if decoder_group_dim is None else decoder_group_dim
        _check_width("satmae_pp's decoder", width, heads, group_dim)
        self.decoder_embed = nn.Linear(dim, width)
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        # The group behind the last one is the class token's.
        place, group = sine_tables(width, group_dim, encoder.grid, len(groups) + 1)
        self.decoder_pos_embed = nn.Parameter(place, requires_grad=False)
        self.decoder_group_embed = nn.Parameter(group, requires_grad=False)
        self.decoder_blocks = nn.ModuleList(
            Block(width, heads, encoder.mlp_ratio, 0.0, None)
            for _ in range(decoder_depth or max(1, min(8, depth * 2 // 3)))
        )
        self.decoder_norm = nn.LayerNorm(width, eps=encoder.norm.eps)
        self.decoder_heads = nn.ModuleList(
            nn.Linear(width, len(group) * encoder.token_size**2) for group in groups
        )
        for part in (self.decoder_embed, self.decoder_blocks, self.decoder_heads):
            _init_linear(part)
        _set_norms(self.decoder_blocks, encoder.norm.eps)
        features = scale_width or min(4 * encoder.bands, dim)
        self.finer = FinerScales(encoder.bands, features, scales) if scales else None
        self._freeze()

    # -- images, losses, pictures ---------------------------------------------------------------------------

    def forward(self, images: Float[Tensor, "batch bands side side"]) -> Pretext:
        """Return the loss on images of the finest scale."""
        return self.step(self.pyramid(images))

    def pyramid(self, images: Float[Tensor, "batch bands side side"]) -> list[Tensor]:
        """Return the images at all scales, the encoder's own first; what does not fill a token is left out.

        Raises:
            ModelError: images of another size or of other bands.
        """
        encoder = self.encoder
        side = encoder.image_size * self.finest
        if images.ndim != 4 or images.shape[1:] != (encoder.bands, side, side):
            raise ModelError(
                f"This autoencoder takes (batch, {encoder.bands} bands, {side}, {side}), not {tuple(images.shape)}.",
                "Use crops of that size, or build it with other scales.",
            )
        whole = encoder.grid * encoder.token_size * self.finest
        made = [images[..., :whole, :whole]]
        for _ in range(self.scales):
            # Halving bilinearly is the mean of 2 x 2 pixels.
            made.insert(0, F.avg_pool2d(made[0], 2))
        return made

    def step(
        self,
        pictures: Sequence[Float[Tensor, "batch bands _ _"]],
        noise: Float[Tensor, "batch draws"] | None = None,
    ) -> Pretext:
        """Return the loss on images that are given at all scales, coarse to fine.

        Args:
            pictures: one image per scale.
            noise: what is masked by (see :meth:`draw`).
        """
        found = self.predict(pictures[0], noise)
        masked = self.masked_error(found, pictures[0])
        if not found.finer:
            return Pretext(masked, {"masked": masked.detach()})
        pairs = zip(found.finer, pictures[1:], strict=True)
        finer = torch.stack([F.l1_loss(made, wanted) for made, wanted in pairs]).mean()
        loss = (1 - self.ms_weight) * masked + self.ms_weight * finer
        return Pretext(loss, {"masked": masked.detach(), "multiscale": finer.detach()})

    def masked_error(
        self, found: Prediction, image: Float[Tensor, "batch bands height width"]
    ) -> Float[Tensor, ""]:
        """Return the mean squared error of hidden tokens; all tokens count alike, whatever their group's size."""
        made, wanted = self.patchify(found.image), self.patchify(image)
        if self.norm_pix:
            mean, deviation = self._pixel_statistics(wanted)
            wanted = (wanted - mean) / deviation
        errors = (made - wanted).square().mean(-1)
        per_group = [errors[:, list(group)].mean(1) for group in self.encoder.groups]
        return (torch.stack(per_group, 1) * found.mask).sum() / found.mask.sum()

    @torch.no_grad()
    def reconstruct(
        self, images: Float[Tensor, "batch bands side side"]
    ) -> dict[str, Float[Tensor, "batch bands _ _"]]:
        """Return the input, its visible part (0 elsewhere), that part completed, and the finer images.

        Returns:
            ``input``, ``visible``, ``reconstruction``, and where there are finer scales ``x2``, ``x4``, ...
        """
        image = self.pyramid(images)[0]
        found = self.predict(image)
        hidden = self._per_band(found.mask)[..., None]
        wanted, made = self.patchify(image), self.patchify(found.image)
        if self.norm_pix:
            mean, deviation = self._pixel_statistics(wanted)
            made = made * deviation + mean
        return {
            "input": image,
            "visible": self.unpatchify(wanted * (1 - hidden)),
            "reconstruction": self.unpatchify(torch.where(hidden > 0, made, wanted)),
            **{f"x{2 ** (k + 1)}": finer for k, finer in enumerate(found.finer)},
        }

    def trained_encoder(self) -> Backbone:
        """Return a copy of the encoder whose tables and head can be trained; pre-training may go on."""
        encoder = copy.deepcopy(self.encoder)
        for name in self._frozen:
            encoder.get_parameter(name).requires_grad_(True)
        return encoder

    def no_weight_decay(self) -> set[str]:
        """Name the parameters that weight decay should leave alone: the encoder's, vectors, and the mask token."""
        vectors = {name for name, value in self.named_parameters() if value.ndim <= 1}
        encoder = {f"encoder.{name}" for name in self.encoder.no_weight_decay()}
        return {*vectors, *encoder, "mask_token"}

    # -- the network ----------------------------------------------------------------------------------------

    def predict(
        self,
        image: Float[Tensor, "batch bands height width"],
        noise: Float[Tensor, "batch draws"] | None = None,
    ) -> Prediction:
        """Hide tokens of an image at the encoder's scale, and restore it at all scales."""
        visible = self.draw(image.shape[0], noise).to(image.device)
        tokens = self.decode(self.encode(image, visible), visible)
        picture = self.unpatchify(self._to_pixels(tokens))
        finer = [] if self.finer is None else self.finer(picture)
        return Prediction(picture, finer, self._mask(visible).to(image.dtype))

    def draw(
        self, batch: int, noise: Float[Tensor, "batch draws"] | None = None
    ) -> Int[Tensor, "batch visible"]:
        """Choose the tokens that stay visible, by their numbers.

        Args:
            batch: number of images.
            noise: uniform numbers, one per token, or with ``same_mask`` one per place; those of the least stay.
        """
        places, groups = self.encoder.grid**2, len(self.encoder.groups)
        count = places if self.same_mask else groups * places
        noise = torch.rand(batch, count) if noise is None else noise
        kept = noise.argsort(1)[:, : self._visible(count)]
        if not self.same_mask:
            return kept
        first = places * torch.arange(groups, device=kept.device)
        return rearrange(first[:, None] + kept[:, None], "b g n -> b (g n)")

    def encode(
        self,
        image: Float[Tensor, "batch bands height width"],
        visible: Int[Tensor, "batch visible"],
    ) -> Float[Tensor, "batch visible+1 dim"]:
        """Return the encoder's tokens of what is visible, the class token first, normalised."""
        tokens = gather_tokens(self.encoder.embed(image), visible)
        return self.encoder.norm(self.encoder.encode(tokens))

    def decode(
        self, tokens: Float[Tensor, "batch given dim"], visible: Int[Tensor, "batch given-1"]
    ) -> Float[Tensor, "batch tokens width"]:
        """Put tokens back to their places among mask tokens, and apply the decoder."""
        tokens = self.decoder_embed(tokens)
        places, groups = self.decoder_pos_embed, self.decoder_group_embed
        table = join(places[:, 1:], groups[:, :-1])
        # Under autocast the projection's type is not the mask token's.
        masked = self.mask_token.to(tokens.dtype).expand(len(tokens), table.shape[1], -1)
        where = visible[..., None].expand(-1, -1, tokens.shape[-1])
        restored = masked.scatter(1, where, tokens[:, 1:]) + table
        front = tokens[:, :1] + torch.cat([places[:, :1], groups[:, -1:]], -1)
        x = torch.cat([front, restored], 1)
        for block in self.decoder_blocks:
            x, _ = self.encoder.run(block, x)
        return self.decoder_norm(x)[:, 1:]

    def _to_pixels(
        self, tokens: Float[Tensor, "batch tokens width"]
    ) -> Float[Tensor, "batch bands places pixels"]:
        """Return the pixels of every token, in the bands' order or in the groups'."""
        encoder = self.encoder
        parts = [
            rearrange(head(part), "b n (c p) -> b c n p", p=encoder.token_size**2)
            for head, part in zip(
                self.decoder_heads, tokens.chunk(len(encoder.groups), 1), strict=True
            )
        ]
        pixels = torch.cat(parts, 1)
        order = encoder.patch_embed.order
        if self.group_order == "published" or order == sorted(order):
            return pixels
        return pixels[:, [order.index(band) for band in range(encoder.bands)]]

    def patchify(
        self, image: Float[Tensor, "batch bands height width"]
    ) -> Float[Tensor, "batch bands places pixels"]:
        """Cut an image into the pixels of its tokens."""
        side = self.encoder.token_size
        return rearrange(image, "b c (h p) (w q) -> b c (h w) (p q)", p=side, q=side)

    def unpatchify(
        self, pixels: Float[Tensor, "batch bands places pixels"]
    ) -> Float[Tensor, "batch bands height width"]:
        """Put the pixels of the tokens of a square image together again."""
        side, rows = self.encoder.token_size, self.encoder.grid
        return rearrange(pixels, "b c (h w) (p q) -> b c (h p) (w q)", h=rows, p=side)

    def _visible(self, count: int) -> int:
        return int((1 - self.mask_ratio) * count)

    def _mask(self, visible: Int[Tensor, "batch visible"]) -> Float[Tensor, "batch groups places"]:
        groups, places = len(self.encoder.groups), self.encoder.grid**2
        mask = torch.ones(len(visible), groups * places, device=visible.device)
        return mask.scatter(1, visible, 0.0).unflatten(1, (groups, places))

    def _per_band(
        self, mask: Float[Tensor, "batch groups places"]
    ) -> Float[Tensor, "batch bands places"]:
        """Return the mask of each band's group."""
        owners = {band: g for g, group in enumerate(self.encoder.groups) for band in group}
        return mask[:, [owners[band] for band in range(self.encoder.bands)]]

    def _pixel_statistics(
        self, pixels: Float[Tensor, "batch bands places pixels"]
    ) -> tuple[Tensor, Tensor]:
        """Return mean and deviation of each token's pixels: per band, or as published over all bands."""
        axes = (1, 3) if self.group_order == "published" else (3,)
        mean = pixels.mean(axes, keepdim=True)
        return mean, (pixels.var(axes, keepdim=True) + 1e-6).sqrt()

    def _freeze(self) -> None:
        """Fix the tables, and the head, which takes no part."""
        head = {f"head.{name}": value for name, value in self.encoder.head.named_parameters()}
        fixed = {**self.encoder.tables, **head}
        self._frozen = [name for name, value in fixed.items() if value.requires_grad]
        for name in self._frozen:
            fixed[name].requires_grad_(False)

    def _check(self) -> None:
        places, groups = self.encoder.grid**2, len(self.encoder.groups)
        count = places if self.same_mask else groups * places
        if not 0 < self.mask_ratio < 1 or not 0 < self._visible(count) < count:
            raise ModelError(
                f"mask_ratio = {self.mask_ratio:g} masks none or all of {count} tokens.",
                "Change mask_ratio, or give larger images or smaller tokens.",
            )
        if not 0 <= self.scales <= 4:
            raise ModelError(f"scales = {self.scales} is out of range.", "Use 0 to 4.")
        if not 0 <= self.ms_weight <= 1:
            raise ModelError(f"ms_weight = {self.ms_weight:g} is out of range.", "Use 0 to 1.")
        if self.group_order not in {"natural", "published"}:
            raise ModelError(
                f"satmae_pp has no group_order '{self.group_order}'.",
                "Choose natural or published.",
            )


def sine_tables(
    dim: int, group_dim: int, grid: int, groups: int
) -> tuple[Float[Tensor, "1 class_and_places place_dim"], Float[Tensor, "1 groups group_dim"]]:
    """Return fixed tables: of places, the class token's first, which is 0, and of groups.

    Args:
        dim: token width.
        group_dim: channels that tell the group; the others tell the place.
        grid: places per side.
        groups: how many.
    """
    places = F.pad(sincos_2d(dim - group_dim, grid, grid), (0, 0, 1, 0))
    # Groups stand in a row: of a grid's channels, the first half tells the column.
    return places[None], sincos_2d(2 * group_dim, 1, groups)[None, :, :group_dim].contiguous()


def join(
    places: Float[Tensor, "1 places place_dim"], groups: Float[Tensor, "1 groups group_dim"]
) -> Float[Tensor, "1 groups*places dim"]:
    """Return a vector per group and place, both parts side by side."""
    sizes = (-1, groups.shape[1], places.shape[1], -1)
    parts = [places[:, None].expand(sizes), groups[:, :, None].expand(sizes)]
    return torch.cat(parts, -1).flatten(1, 2)


def _quarter(width: int) -> int:
    """Return a quarter of a width, so that both it and the rest can hold sines."""
    return width // 16 * 4


def _init_linear(module: nn.Module) -> None:
    """Give linear layers the weights that MAE starts from."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)


def _set_norms(module: nn.Module, eps: float) -> None:
    for part in module.modules():
        if isinstance(part, nn.LayerNorm):
            part.eps = eps


def _check_width(what: str, width: int, heads: int, group_dim: int) -> None:
    if width % heads:
        raise ModelError(f"{what} has width {width}, not divisible by {heads} heads.")
    if group_dim % 2 or not 0 <= group_dim < width or (width - group_dim) % 4:
        raise ModelError(
            f"{what} cannot tell groups by {group_dim} of {width} channels.",
            "Give an even number that leaves a multiple of 4.",
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


def resize(state_dict: Mapping[str, Tensor], model: GroupedTransformer) -> dict[str, Tensor]:
    """Resample the table of places to the grid of ``model``."""
    table = resize_positions(state_dict["pos_embed"], (model.grid, model.grid), 1)
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
        image_size=kwargs.get("img_size", 224),
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
