"""A network, its preprocessing and its bands as one scene classifier."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vitreous.data.contract import BandContract
from vitreous.data.regions import RegionBatch, gather_patches, patch_index
from vitreous.layers.answers import Heads, joined
from vitreous.layers.preprocess import Preprocess

CHUNK = (
    512  # patches per forward pass: enough to keep two cores busy, little enough to stay in cache
)


class PatchClassifier(nn.Module):
    """Classifies every pixel of a window by the patch around it.

    In mode ``scene`` the network's front-end runs once over the window and patches are read from its output, so a
    pixel sees ``stem_reach`` pixels beyond its patch; in mode ``patch`` it runs on every patch by itself, as
    published, and sees zeros there.

    Args:
        net: a network with ``stem``, ``forward_patches`` and ``stem_reach``.
        preprocess: fitted preprocessing.
        contract: the bands and unit it takes.
        patch_size: side of a patch, odd.
        mode: ``scene`` or ``patch``.
        patch_norm: z-score every channel within each patch (mode ``patch`` only).
        padding: ``reflect`` or ``zero``: what lies beyond a scene's edge.
    """

    def __init__(
        self,
        net: nn.Module,
        preprocess: Preprocess,
        contract: BandContract,
        *,
        patch_size: int,
        mode: str = "scene",
        patch_norm: bool = False,
        padding: str = "reflect",
    ) -> None:
        super().__init__()
        self.net, self.preprocess, self.contract = net, preprocess, contract
        self.patch_size, self.mode, self.patch_norm, self.padding = (
            patch_size,
            mode,
            patch_norm,
            padding,
        )

    @property
    def radius(self) -> int:
        """Half the patch side, rounded down."""
        return self.patch_size // 2

    @property
    def margin(self) -> int:
        """Context in pixels that a window needs on each side."""
        return self.radius + (int(self.net.stem_reach) if self.mode == "scene" else 0)  # type: ignore[arg-type]

    @property
    def receptive_size(self) -> int:
        """Side of the square of pixels that one prediction depends on."""
        return 2 * self.margin + 1

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return int(self.net.num_classes)  # type: ignore[arg-type]

    def settings(self) -> dict[str, Any]:
        """Return the constructor's plain arguments, JSON-ready."""
        return {
            "patch_size": self.patch_size,
            "mode": self.mode,
            "patch_norm": self.patch_norm,
            "padding": self.padding,
        }

    def features(
        self, regions: Float[Tensor, "regions channels h w"]
    ) -> Float[Tensor, "regions dim h w"]:
        """Return what patches are read from: the front-end's output, or the channels themselves."""
        return self.net.stem(regions) if self.mode == "scene" else regions  # type: ignore[operator]

    def classify_patches(
        self, image: Float[Tensor, "regions dim h w"], index: Int[Tensor, "pixels patch patch"]
    ) -> Float[Tensor, "pixels classes"]:
        """Read patches by index from :meth:`features` and return their logits."""
        return joined(self.score(self.read_patches(image, index)))

    def read_patches(
        self, image: Float[Tensor, "regions dim h w"], index: Int[Tensor, "pixels patch patch"]
    ) -> Float[Tensor, "pixels dim patch patch"]:
        """Read patches by index from :meth:`features`."""
        return self.normalise(gather_patches(image, index))

    def score(
        self, patches: Float[Tensor, "pixels dim size size"]
    ) -> Float[Tensor, "pixels classes"] | Heads:
        """Return the logits of patches, read from :meth:`features` and normalised; in distillation of both heads."""
        if self.mode == "scene":
            return self.net.forward_patches(patches)  # type: ignore[operator]
        return self.net(patches)

    def forward(self, batch: RegionBatch) -> Float[Tensor, "pixels classes"]:
        """Classify the pixels of a batch of regions of reduced channels, some at a time."""
        image = self.features(batch.regions)
        return torch.cat([self.classify_patches(image, part) for part in batch.index.split(CHUNK)])

    @torch.inference_mode()
    def classify(self, window: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Classify every pixel of a window of raw physical values.

        Args:
            window: ``(bands, height + 2 margin, width + 2 margin)``, NaN where invalid.

        Returns:
            ``(classes, height, width)`` probabilities; zeros where the pixel itself is invalid.
        """
        self.eval()
        device = self.preprocess.mean.device
        raw = torch.from_numpy(np.ascontiguousarray(window)).to(device)[None]
        height, width = (side - 2 * self.margin for side in window.shape[1:])
        image = self.features(self.preprocess(raw)).contiguous(memory_format=torch.channels_last)
        inner = slice(self.margin, -self.margin or None)
        valid = torch.isfinite(raw[0, :, inner, inner]).all(0).flatten()
        rows, columns = torch.nonzero(valid.view(height, width), as_tuple=True)
        output = torch.zeros(height * width, self.num_classes, device=device)
        found = [
            self.classify_patches(image, patch_index(r, c, raw.shape[3], self.radius)).softmax(-1)
            for r, c in zip(
                (rows + self.margin).split(CHUNK), (columns + self.margin).split(CHUNK), strict=True
            )
        ]
        if found:
            output[valid] = torch.cat(found)
        return output.view(height, width, -1).permute(2, 0, 1).contiguous().cpu().numpy()

    def normalise(
        self, patches: Float[Tensor, "pixels dim size size"]
    ) -> Float[Tensor, "pixels dim size size"]:
        """z-score each channel of each patch, where that is asked for."""
        if not self.patch_norm:
            return patches
        mean = patches.mean((2, 3), keepdim=True)
        deviation = patches.std((2, 3), keepdim=True, correction=0)
        return (patches - mean) / (deviation + 1e-8)
