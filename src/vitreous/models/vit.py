"""The plain Vision Transformer: the baseline that every other architecture must beat."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.catalog.card import Card
from vitreous.errors import ModelError
from vitreous.layers.attention import attention
from vitreous.layers.drop import DropPath

CARD = Card(
    slug="vit",
    title="An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale",
    kind="model",
    summary="Non-overlapping patches as tokens, global attention, GELU feed-forward, mean pooling.",
    when="As a baseline, or as the plainest trunk for methods.",
    paper="arXiv 2010.11929",
    year=2021,
    source_licence="Apache-2.0 (google-research/vision_transformer): re-implemented from the equations",
    tasks=["classify"],
    variants={
        "vit_patch": {
            "dim": 128,
            "depth": 8,
            "heads": 4,
            "token_size": 3,
            "mlp_ratio": 4.0,
            "drop_path": 0.1,
        },
        "vit_test": {"dim": 16, "depth": 2, "heads": 2, "token_size": 3, "mlp_ratio": 2.0},
    },
    notes=[
        "vit_patch is ours: sized like lola_specvit_tiny, tokens of 3 x 3 pixels for small scene patches.",
    ],
)


class Block(nn.Module):
    """Global attention and a GELU feed-forward, each on a normalised residual branch."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.heads = heads
        hidden = int(dim * mlp_ratio)
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Apply the block."""
        x = x + self.drop_path(self._attend(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor) -> Tensor:
        query, key, value = rearrange(self.qkv(x), "b t (c h d) -> c b h t d", c=3, h=self.heads)
        return self.proj(rearrange(attention(query, key, value), "b h t d -> b t (h d)"))


class VisionTransformer(nn.Module):
    """A plain ViT with learned positions and mean pooling (arXiv 2010.11929).

    Args:
        bands: channels of the input.
        num_classes: classes.
        image_size: side of the image in pixels; what does not fill a token at the end is left out.
        dim: token width.
        depth: number of blocks.
        heads: attention heads.
        token_size: side of a token in pixels.
        mlp_ratio: hidden width of the feed-forward over the token width.
        drop_path: stochastic depth of the last block, growing linearly from 0.

    Raises:
        ModelError: an image smaller than a token, or heads that do not divide the width.
    """

    stem_reach = 0

    def __init__(
        self,
        bands: int,
        num_classes: int,
        image_size: int,
        *,
        dim: int = 192,
        depth: int = 12,
        heads: int = 3,
        token_size: int = 16,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if image_size < token_size:
            raise ModelError(
                f"vit cuts tokens of {token_size} pixels; an image of {image_size} has none."
            )
        if dim % heads:
            raise ModelError(f"vit has width {dim}, not divisible by {heads} heads.")
        self.bands, self.num_classes, self.image_size = bands, num_classes, image_size
        self.num_features = dim
        self.patch_embed = nn.Conv2d(bands, dim, token_size, stride=token_size)
        self.pos_embed = nn.Parameter(torch.empty(1, (image_size // token_size) ** 2, dim))
        self.blocks = nn.Sequential(
            *(Block(dim, heads, mlp_ratio, drop_path * i / max(depth - 1, 1)) for i in range(depth))
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)
        self._init_weights()

    def _init_weights(self) -> None:
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def stem(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> Float[Tensor, "batch bands height width"]:
        """Return the image itself: a plain ViT shares nothing between overlapping patches."""
        return x

    def forward_features(
        self, x: Float[Tensor, "batch bands size size"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Return the normalised tokens."""
        tokens = rearrange(self.patch_embed(x), "b d h w -> b (h w) d")
        return self.norm(self.blocks(tokens + self.pos_embed))

    def forward_patches(
        self, x: Float[Tensor, "batch bands size size"]
    ) -> Float[Tensor, "batch classes"]:
        """Classify images."""
        return self.head(self.forward_features(x).mean(1))

    def forward(self, x: Float[Tensor, "batch bands size size"]) -> Float[Tensor, "batch classes"]:
        """Classify images."""
        return self.forward_patches(self.stem(x))

    def reset_head(self, num_classes: int) -> None:
        """Replace the classifier by a new one."""
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def no_weight_decay(self) -> set[str]:
        """Name the parameters that weight decay should leave alone."""
        return {name for name, p in self.named_parameters() if p.ndim == 1 or name == "pos_embed"}


build = VisionTransformer
