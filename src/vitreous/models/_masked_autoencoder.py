"""How SatMAE++ is pre-trained: an autoencoder that restores hidden tokens, and then finer scales of the image."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from vitreous.catalog.arguments import Count, Depth, Size
from vitreous.errors import ModelError
from vitreous.layers.backbone import Backbone
from vitreous.layers.channelnorm import ChannelNorm
from vitreous.layers.pretrainer import Pretext, Pretrainer
from vitreous.layers.tokens import gather_tokens
from vitreous.layers.transformer import Block
from vitreous.models._grouped_transformer import (
    GroupedTransformer,
    check_width,
    init_linear,
    join,
    quarter,
    set_norms,
    sine_tables,
)

LEAST_WIDTH = 16  # of the decoder: one head


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
        fallback = quarter(width) if encoder.group_dim else 0
        group_dim = fallback if decoder_group_dim is None else decoder_group_dim
        check_width("satmae_pp's decoder", width, heads, group_dim)
        self.decoder_embed = nn.Linear(dim, width)
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        # The group behind the last one is the class token's.
        place, group = sine_tables(width, group_dim, encoder.grid, len(groups) + 1)
        self.decoder_pos_embed = nn.Parameter(place, requires_grad=False)
        self.decoder_group_embed = nn.Parameter(group, requires_grad=False)
        self.decoder_blocks = nn.ModuleList(
            Block(width, heads, encoder.mlp_ratio)
            for _ in range(decoder_depth or max(1, min(8, depth * 2 // 3)))
        )
        self.decoder_norm = nn.LayerNorm(width, eps=encoder.norm.eps)
        self.decoder_heads = nn.ModuleList(
            nn.Linear(width, len(group) * encoder.token_size**2) for group in groups
        )
        for part in (self.decoder_embed, self.decoder_blocks, self.decoder_heads):
            init_linear(part)
        set_norms(self.decoder_blocks, encoder.norm.eps)
        features = scale_width or min(4 * encoder.bands, dim)
        self.finer = FinerScales(encoder.bands, features, scales) if scales else None
        self._freeze()

    # -- images, losses, pictures ---------------------------------------------------------------------------

    def forward(self, images: Float[Tensor, "batch bands height width"]) -> Pretext:
        """Return the loss on images of the finest scale."""
        return self.step(self.pyramid(images))

    def pyramid(self, images: Float[Tensor, "batch bands height width"]) -> list[Tensor]:
        """Return the images at all scales, the encoder's own first; what does not fill a token is left out.

        Raises:
            ModelError: images of another size or of other bands.
        """
        encoder = self.encoder
        height, width = (side * self.finest for side in encoder.size)
        if images.ndim != 4 or images.shape[1:] != (encoder.bands, height, width):
            raise ModelError(
                f"This autoencoder takes (batch, {encoder.bands} bands, {height}, {width}), not {tuple(images.shape)}.",
                "Use crops of that size, or build it with other scales.",
            )
        rows, columns = (cells * encoder.token_size * self.finest for cells in encoder.grid)
        made = [images[..., :rows, :columns]]
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
        self, images: Float[Tensor, "batch bands height width"]
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
        places, groups = math.prod(self.encoder.grid), len(self.encoder.groups)
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
        tokens = gather_tokens(self.encoder.embed_cells(image), visible)
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
        """Put the pixels of the tokens of an image together again."""
        side, (rows, _) = self.encoder.token_size, self.encoder.grid
        return rearrange(pixels, "b c (h w) (p q) -> b c (h p) (w q)", h=rows, p=side)

    def _visible(self, count: int) -> int:
        return int((1 - self.mask_ratio) * count)

    def _mask(self, visible: Int[Tensor, "batch visible"]) -> Float[Tensor, "batch groups places"]:
        groups, places = len(self.encoder.groups), math.prod(self.encoder.grid)
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
        places, groups = math.prod(self.encoder.grid), len(self.encoder.groups)
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
