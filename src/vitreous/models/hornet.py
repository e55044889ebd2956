"""HorNet: features are multiplied again and again by convolved ones, so that interactions of high order appear."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.catalog.arguments import (
    Amount,
    Depths,
    ImageSize,
    Positive,
    Positives,
    Share,
    Size,
    Sizes,
)
from vitreous.catalog.card import Card
from vitreous.errors import ModelError
from vitreous.layers import backbone
from vitreous.layers.adapter import AdapterSeam
from vitreous.layers.backbone import Backbone, FeatureInfo, linear_rates
from vitreous.layers.channelnorm import ChannelNorm
from vitreous.layers.drop import DropPath
from vitreous.layers.mlp import Mlp
from vitreous.layers.reference import rename_keys, substitute
from vitreous.layers.scale import LayerScale
from vitreous.layers.sizes import whole_cells
from vitreous.layers.transforms import SpectralGate, resize_gates

CARD = Card(
    slug="hornet",
    title="HorNet: Efficient High-Order Spatial Interactions with Recursive Gated Convolutions",
    kind="model",
    summary="A pyramid with the layout of a transformer whose attention is replaced by recursively "
    "gated convolutions, over 7 x 7 cells or, with Fourier filters, over the whole map.",
    when="A convolutional pyramid in place of convnext, or with global filters (gf) where the "
    "surroundings of a pixel matter at small cost.",
    paper="arXiv 2207.14284 (NeurIPS 2022)",
    year=2022,
    source_licence="MIT (raoyongming/HorNet): re-implemented from the equations",
    tasks=["classify"],
    variants={
        "hornet_tiny": {"dim": 64, "drop_path": 0.2},
        "hornet_tiny_gf": {
            "dim": 64,
            "spectral": [False, False, True, True],
            "drop_path": 0.2,
        },
        "hornet_small": {"dim": 96, "drop_path": 0.4},
        "hornet_small_gf": {
            "dim": 96,
            "spectral": [False, False, True, True],
            "drop_path": 0.4,
        },
        "hornet_base": {"dim": 128, "drop_path": 0.5},
        "hornet_base_gf": {
            "dim": 128,
            "spectral": [False, False, True, True],
            "drop_path": 0.5,
        },
        "hornet_large": {"dim": 192, "drop_path": 0.2},
        "hornet_large_gf": {
            "dim": 192,
            "spectral": [False, False, True, True],
            "drop_path": 0.2,
        },
        "hornet_test": {
            "dim": 8,
            "depths": [1, 1],
            "orders": [2, 3],
            "spectral": [False, True],
            "kernel": 3,
        },
    },
    published=[
        {"variant": "hornet_tiny", "parameters_m": 22.41, "gmacs": 3.97, "top1": 82.8},
        {"variant": "hornet_tiny_gf", "parameters_m": 22.99, "gmacs": 3.89, "top1": 83.0},
        {"variant": "hornet_small", "parameters_m": 49.53, "gmacs": 8.81, "top1": 83.8},
        {"variant": "hornet_small_gf", "parameters_m": 50.40, "gmacs": 8.69, "top1": 84.0},
        {"variant": "hornet_base", "parameters_m": 87.26, "gmacs": 15.57, "top1": 84.2},
        {"variant": "hornet_base_gf", "parameters_m": 88.42, "gmacs": 15.41, "top1": 84.3},
        {"variant": "hornet_large", "parameters_m": 194.54, "gmacs": 34.80},
        {"variant": "hornet_large", "num_classes": 10450, "parameters_m": 209},
        {"variant": "hornet_large_gf", "parameters_m": 196.29, "gmacs": 34.56},
        {"variant": "hornet_large_gf", "num_classes": 10450, "parameters_m": 211},
        {
            "variant": "hornet_large_gf",
            "image_size": 384,
            "parameters_m": 201.81,
            "gmacs": 101.55,
            "top1_from_22k": 87.7,
        },
        {
            "variant": "hornet_large_gf",
            "image_size": 384,
            "num_classes": 10450,
            "parameters_m": 216,
        },
    ],
    recipe={
        "optimizer": "AdamW",
        "epochs": 300,
        "learning_rate": 4e-3,
        "batch_size": 4096,
        "schedule": "cosine to 1e-6, 20 epochs warm-up",
        "weight_decay": 0.05,
        "clip": "7x7: 100 (T), 5 (others); GF: 1",
        "augmentation": "RandAugment m9 (S-GF m12, B-GF m15), mixup 0.8, cutmix 1, erasing 0.25, label "
        "smoothing 0.1; EMA 0.9999",
    },
    claim="83.0, 84.0 and 84.3 % ImageNet top-1 (T, S, B with GF), Swin 81.3, 83.0 and 83.5 %, "
    "ConvNeXt 82.1, 83.1 and 83.8 % at like cost.",
    miniature="Indian Pines, three stages. Required: recursive gating at least as accurate as "
    "ConvNeXt blocks of as many parameters, at most 0.5 points below gating once, at multiply-adds "
    "that grow by less than 10 % from order 2 to order 4.",
    notes=[
        "Usage: LayerScale starts at 1e-6, so an untrained network is close to a stack of "
        "downsampling layers. For short training from scratch a larger layer_scale learns faster.",
        "Usage: The claim is measured on Indian Pines; Salinas and Pavia University are not available here.",
        "Image size: Below 128 pixels the stem's stride of 4 shrinks so that 4 x 4 cells remain "
        "where possible (stem_stride). Every downsampling rounds down, as in the reference.",
        "Image size: A filter belongs to a grid. For another grid its spatial kernel is zero-padded or "
        "cropped around its origin, so that it keeps its shape in cells. The authors interpolate the "
        "filter between frequencies instead, corners aligned: interpolate_filters=True, which "
        "from_reference sets.",
        "Checkpoints: The authors' checkpoints load, with either operator.",
        "As in the reference: Behind a global filter, the channels of its two halves alternate; "
        "what is convolved is scaled after its bias.",
        "Differs from the reference: Convolutions of one cell are linear layers.",
        "Published figures: Parameters and gmacs are those of the authors' code at 1000 classes; "
        "Fourier transforms are not counted. Their README counts L with a head of 10450 classes.",
    ],
)


class GlobalLocalFilter(nn.Module):
    """Half of the channels are convolved over 3 x 3 cells, the others filtered over the whole map (GF).

    Args:
        dim: channels, even.
        grid: rows and columns of the map that the filter is made for.
        interpolate: how the filter is carried to other grids (:class:`SpectralGate`).
    """

    def __init__(self, dim: int, grid: tuple[int, int], interpolate: bool) -> None:
        super().__init__()
        self.pre_norm = nn.LayerNorm(dim, eps=1e-6)
        self.local = nn.Conv2d(dim // 2, dim // 2, 3, padding=1, groups=dim // 2, bias=False)
        self.gate = SpectralGate(dim // 2, grid, interpolate)
        self.post_norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Float[Tensor, "batch h w dim"]) -> Float[Tensor, "batch h w dim"]:
        """Look around each cell, near and far; the halves' channels alternate in the output."""
        near, far = self.pre_norm(x).chunk(2, -1)
        near = self.local(near.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.post_norm(torch.stack([near, self.gate(far)], -1).flatten(-2))


class RecursiveGate(nn.Module):
    """Recursive gated convolution g^n (section 3.1): features times convolved ones, widened and multiplied anew.

    Args:
        dim: channels, a multiple of ``2 ** (order - 1)``.
        order: how often features are multiplied.
        convolve: makes what looks around each cell, of the channels that are convolved together.
        scale: factor of what was convolved.
    """

    def __init__(
        self, dim: int, order: int, convolve: Callable[[int], nn.Module], scale: float
    ) -> None:
        super().__init__()
        self.widths = [dim // 2 ** (order - 1 - step) for step in range(order)]
        self.scale = scale
        self.proj_in = nn.Linear(dim, self.widths[0] + sum(self.widths))
        self.convolve = convolve(sum(self.widths))
        self.widen = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(self.widths))
        self.proj_out = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "batch h w dim"]) -> Float[Tensor, "batch h w dim"]:
        """Mix the cells of each map."""
        return self.proj_out(self.interact(self.proj_in(x)))

    def interact(self, x: Float[Tensor, "batch h w wide"]) -> Float[Tensor, "batch h w dim"]:
        """Multiply the first channels by the convolved others, part by part."""
        features, others = x.split([self.widths[0], sum(self.widths)], -1)
        first, *gates = (self.convolve(others) * self.scale).split(self.widths, -1)
        features = features * first
        for widen, gate in zip(self.widen, gates, strict=True):
            features = widen(features) * gate
        return features


class LocalFilter(nn.Module):
    """A depthwise convolution of a map whose channels come last.

    Args:
        dim: channels.
        kernel: side of the kernel, odd.
    """

    def __init__(self, dim: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)

    def forward(self, x: Float[Tensor, "batch h w dim"]) -> Float[Tensor, "batch h w dim"]:
        """Convolve."""
        return self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Block(nn.Module):
    """Recursive gate and feed-forward, each on a normalised residual branch.

    Args:
        dim: channels.
        mixer: among the cells.
        mlp_ratio: hidden width of the feed-forward over the channels.
        layer_scale: first value of the branches' factors; None leaves them out.
        drop_path: stochastic depth.
    """

    def __init__(
        self,
        dim: int,
        mixer: nn.Module,
        mlp_ratio: float,
        layer_scale: float | None,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.mixer = mixer
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.adapter = AdapterSeam(dim)
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "batch h w dim"]) -> Float[Tensor, "batch h w dim"]:
        """Apply both branches."""
        x = x + self.drop_path(self.ls1(self.mixer(self.norm1(x))))
        return x + self.adapter(x, self.drop_path(self.ls2(self.mlp(self.norm2(x)))))


class HorNet(Backbone):
    """HorNet (arXiv 2207.14284).

    Args:
        bands: channels of the input.
        num_classes: classes.
        image_size: side of the image in pixels, or height and width. Other sizes are accepted too; what does not fill a
            cell at the end is left out at every step.
        dim: channels of the first stage; each further one has twice as many.
        depths: blocks of each stage.
        orders: how often features are multiplied, of each stage; 2, 3, ... where not given.
        spectral: of each stage, whether it looks over the whole map (GF) instead of a kernel's cells; nowhere where not given.
        kernel: side of the depthwise kernels, odd.
        scales: factor of what is convolved, of each stage; a third where not given.
        filter_grids: rows and columns of the maps that global filters are made for, of each stage; those of
            ``image_size`` where not given.
        interpolate_filters: carry filters to other grids by interpolation between frequencies, as the authors do.
        mlp_ratio: hidden width of the feed-forwards over the channels.
        layer_scale: first value of LayerScale; None leaves it out.
        stem_stride: side of the stem's patches in pixels; 4, or less on small images.
        head_scale: factor of the classifier's first weights.
        drop_path: stochastic depth of the last block, growing linearly from 0.

    Raises:
        ModelError: an image too small for its last map, lists of different lengths, widths that cannot be halved as
            often as the order asks for, or an even kernel.
    """

    any_size = True
    band_parameters = ("downs.0.0.weight",)

    def __init__(
        self,
        bands: int,
        num_classes: int,
        image_size: ImageSize = 224,
        *,
        dim: Size = 64,
        depths: Depths = (2, 3, 18, 2),
        orders: Sizes | None = None,
        spectral: Sequence[bool] | None = None,
        kernel: Size = 7,
        scales: Positives | None = None,
        filter_grids: Sequence[Sequence[Size]] | None = None,
        interpolate_filters: bool = False,
        mlp_ratio: Positive = 4.0,
        layer_scale: Amount | None = 1e-6,
        stem_stride: Size | None = None,
        head_scale: Amount = 1.0,
        drop_path: Share = 0.0,
    ) -> None:
        super().__init__(bands, num_classes, image_size)
        stages = len(depths)
        dims = [dim * 2**stage for stage in range(stages)]
        orders = orders or [stage + 2 for stage in range(stages)]
        spectral = spectral or [False] * stages
        scales = scales or [1 / 3] * stages
        stride = stem_stride or backbone.stem_stride(image_size, 4, later=2 ** (stages - 1))
        strides = [stride * 2**stage for stage in range(stages)]
        grids = filter_grids or [whole_cells(self.size, step) for step in strides]
        _check(dims, orders, spectral, scales, grids, kernel)
        self.num_features, self.head_scale = dims[-1], head_scale
        self.least_size = strides[-1]
        self.check_size(*self.size)
        self.feature_info = [FeatureInfo(*level) for level in zip(dims, strides, strict=True)]
        self.downs = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(bands, dim, stride, stride), ChannelNorm(dim))]
        )
        for before, after in itertools.pairwise(dims):
            self.downs.append(nn.Sequential(ChannelNorm(before), nn.Conv2d(before, after, 2, 2)))
        rates = iter(linear_rates(drop_path, sum(depths)))
        self.stages = nn.ModuleList()
        for stage, width in enumerate(dims):
            rows, columns = grids[stage]
            convolve: Callable[[int], nn.Module] = partial(LocalFilter, kernel=kernel)
            if spectral[stage]:
                convolve = partial(
                    GlobalLocalFilter, grid=(rows, columns), interpolate=interpolate_filters
                )
            mixers = (
                RecursiveGate(width, orders[stage], convolve, scales[stage])
                for _ in range(depths[stage])
            )
            self.stages.append(
                nn.ModuleList(
                    Block(width, mixer, mlp_ratio, layer_scale, next(rates)) for mixer in mixers
                )
            )
        self.norm = nn.LayerNorm(dims[-1], eps=1e-6)
        self.head = self.make_head(num_classes)
        self._init_weights()

    def _init_weights(self) -> None:
        for module in [*self.downs.modules(), *self.stages.modules()]:
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward_features(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> Float[Tensor, "batch dim h w"]:
        """Return the last stage's map."""
        return self.level_maps(x)[-1]

    def forward_head(self, features: Float[Tensor, "batch dim h w"]) -> Float[Tensor, "batch c"]:
        """Classify the mean of the cells, normalised."""
        return self.head(self.norm(features.mean((2, 3))))

    def level_maps(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> list[Float[Tensor, "batch dim h w"]]:
        """Return the map behind each stage, not normalised; heights and widths are floored."""
        levels = []
        for down, blocks in zip(self.downs, self.stages, strict=True):
            x = down(x).permute(0, 2, 3, 1)
            for block in blocks.children():
                x = self.run(block, x)
            x = x.permute(0, 3, 1, 2)
            levels.append(x)
        return levels


def _check(
    dims: Sequence[int],
    orders: Sequence[int],
    spectral: Sequence[bool],
    scales: Sequence[float],
    grids: Sequence[Sequence[int]],
    kernel: int,
) -> None:
    lengths = [len(one) for one in (dims, orders, spectral, scales, grids)]
    if len(set(lengths)) > 1:
        raise ModelError(
            f"hornet has {lengths[0]} depths, but {', '.join(map(str, lengths[1:]))} orders, spectral, scales and "
            "filter_grids.",
            "Give one value per stage in each.",
        )
    if any(len(grid) != 2 for grid in grids):
        raise ModelError(
            "A grid of filter_grids is not two numbers.", "Give rows and columns for each stage."
        )
    if kernel % 2 == 0:
        raise ModelError(f"hornet cannot centre a kernel of {kernel} cells.", "Give an odd kernel.")
    for dim, order, over_all in zip(dims, orders, spectral, strict=True):
        least = 2 ** (order - 1)
        if dim % least:
            raise ModelError(
                f"hornet cannot halve {dim} channels {order - 1} times, as order {order} asks for.",
                f"Give a multiple of {least} channels, or a lower order.",
            )
        if over_all and (2 * dim - dim // least) % 2:
            raise ModelError(
                f"hornet cannot divide the {2 * dim - dim // least} convolved channels of order {order} in halves.",
                f"Give a multiple of {2 * least} channels, or a lower order.",
            )


build = HorNet

LAYOUTS = {
    "the authors' HorNet": (r"^stages\.\d+\.\d+\.gnconv\.proj_in\.weight$",),
}
_NAMES = (
    (r"^downsample_layers\.", "downs."),
    (r"\.gamma([12])$", r".ls\1.gamma"),
    (r"\.pwconv([12])\.", r".mlp.fc\1."),
    (r"\.gnconv\.dwconv\.complex_weight$", ".mixer.convolve.gate.weight"),
    (r"\.gnconv\.dwconv\.dw\.", ".mixer.convolve.local."),
    (r"\.gnconv\.dwconv\.(pre_norm|post_norm)\.", r".mixer.convolve.\1."),
    (r"\.gnconv\.dwconv\.", ".mixer.convolve.conv."),
    (r"\.gnconv\.pws\.", ".mixer.widen."),
    (r"\.gnconv\.", ".mixer."),
)


def rename(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give weights in the authors' layout our names; their convolutions of one cell are linear layers here."""
    renamed = rename_keys(state_dict, partial(substitute, _NAMES))
    return {key: _as_ours(key, value) for key, value in renamed.items()}


def _as_ours(key: str, value: Tensor) -> Tensor:
    if ".mixer." not in key or value.ndim != 4:
        return value
    if key.endswith(".gate.weight"):
        return value.permute(1, 2, 0, 3).contiguous()  # channels come behind frequencies
    return value[:, :, 0, 0] if value.shape[2:] == (1, 1) and "convolve" not in key else value


def read_settings(
    weights: Mapping[str, Tensor], image_size: ImageSize | None = None
) -> dict[str, Any]:
    """Return what weights under our names say about options that a variant leaves open."""
    scaled = "stages.0.0.ls1.gamma" in weights or "stages.0.0.norm1.weight" not in weights
    return {} if scaled else {"layer_scale": None}


def read_image_size(weights: Mapping[str, Tensor]) -> int | None:
    """Return the side of the images that global filters under our names are for; None where there are none."""
    for key, value in weights.items():
        found = re.match(r"stages\.(\d+)\.\d+\.mixer\.convolve\.gate\.weight$", key)
        if found and value.ndim == 4:
            return int(value.shape[0]) * 4 * 2 ** int(found[1])
    return None


def resize(
    state_dict: Mapping[str, Tensor], model: HorNet, source: HorNet | None = None
) -> dict[str, Tensor]:
    """Carry global filters to the grids of ``model``; of weights of unknown grids, from those of a square."""
    return resize_gates(state_dict, model, source)


def from_reference(state_dict: Mapping[str, Tensor], kwargs: Mapping[str, Any]) -> HorNet:
    """Build the model from the arguments of the authors' HorNet and load their weights.

    ``gnconv`` describes the recursive gates by their arguments (``order``, ``s``, and with ``gflayer`` the filter's ``h`` and
    ``w``), in one mapping or in one per stage.

    Raises:
        ModelError: an argument that we do not offer.
    """
    depths = kwargs.get("depths", [3, 3, 9, 3])
    given = kwargs.get("gnconv", {})
    gates = [given] * len(depths) if isinstance(given, Mapping) else list(given)
    for gate in gates:
        _check_gate(gate)
    spectral = [gate.get("gflayer") is not None for gate in gates]
    # Half a spectrum has one column more than half a map; maps of odd widths are interpolated like those of even ones.
    grids = [(gate.get("h", 14), max(2 * (gate.get("w", 8) - 1), 1)) for gate in gates]
    sizes = [
        (rows * 4 * 2**stage, columns * 4 * 2**stage)
        for stage, (rows, columns) in enumerate(grids)
        if spectral[stage]
    ]
    least = 4 * 2 ** (len(depths) - 1)
    scale = kwargs.get("layer_scale_init_value", 1e-6)
    model = HorNet(
        bands=kwargs.get("in_chans", 3),
        num_classes=kwargs.get("num_classes", 1000),
        image_size=(max(sizes[0][0], least), max(sizes[0][1], least)) if sizes else 224,
        dim=kwargs.get("base_dim", 96),
        depths=depths,
        orders=[gate.get("order", 5) for gate in gates],
        spectral=spectral,
        scales=[gate.get("s", 1.0) for gate in gates],
        filter_grids=grids,
        interpolate_filters=True,
        layer_scale=scale if scale > 0 else None,
        stem_stride=4,
        head_scale=kwargs.get("head_init_scale", 1.0),
        drop_path=kwargs.get("drop_path_rate", 0.0),
    )
    model.load_state_dict(rename(state_dict))
    return model


def _check_gate(gate: Mapping[str, Any]) -> None:
    """Refuse a description of a recursive gate that we do not offer."""
    layer = gate.get("gflayer")
    if layer is not None and "GlobalLocalFilter" not in str(layer):
        raise ModelError(
            f"hornet does not offer gflayer={layer!r:.80} of the reference.",
            "It has None or GlobalLocalFilter.",
        )
