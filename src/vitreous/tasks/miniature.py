"""Small trainings on images in memory, for claims in miniature: the same few lines for every system compared.

For scenes there is ``tasks/classify.py``. This is for everything else a paper's claim may need: rendered glyphs,
digits, patches with known answers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vitreous.catalog.registry import create_model
from vitreous.layers.backbone import init_linear
from vitreous.methods.quantize._install import layers_to_quantize
from vitreous.methods.quantize.repq_vit import pairs
from vitreous.tasks.schedules import cosine

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def cross_entropy(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Return the loss of a classifier on one batch."""
    return F.cross_entropy(model(images), classes)


def fit_images(
    model: nn.Module,
    images: Float[Tensor, "count bands height width"],
    classes: Int[Tensor, "count"],
    *,
    epochs: int,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.05,
    warmup: float = 0.1,
    clip: float = 1.0,
    seed: int = 0,
    loss: Loss = cross_entropy,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
) -> None:
    """Train in place with AdamW, linear warm-up and a cosine to zero.

    Args:
        model: the network; left in eval mode.
        images: all training images.
        classes: their classes from 0.
        epochs: rounds over the images.
        batch_size: images per step; a last batch of fewer is left out of the round.
        learning_rate: its peak.
        weight_decay: of all parameters but vectors and those that the model spares.
        warmup: share of the steps.
        clip: gradient norm limit.
        seed: of the order, of dropout, and of ``augment``.
        loss: of (model, images, classes).
        augment: changes a batch of images, drawing from the generator it is given.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(_groups(model, weight_decay), lr=learning_rate, foreach=True)
    batch_size = min(batch_size, len(images))
    steps = epochs * (len(images) // batch_size)
    step = 0
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=generator)
        for start in range(0, len(images) - batch_size + 1, batch_size):
            part = order[start : start + batch_size]
            batch = images[part] if augment is None else augment(images[part], generator)
            rate = learning_rate * _rate(step / steps, warmup)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad(set_to_none=True)
            loss(model, batch, classes[part]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            step += 1
    model.eval()


@torch.inference_mode()
def predict_images(
    model: nn.Module, images: Float[Tensor, "count bands height width"], batch_size: int = 256
) -> Float[Tensor, "count classes"]:
    """Return the scores of all images."""
    model.eval()
    return torch.cat([model(part) for part in images.split(batch_size)])


def accuracy(
    model: nn.Module,
    images: Float[Tensor, "count bands height width"],
    classes: Int[Tensor, "count"],
) -> float:
    """Return the share of images classified right."""
    return float((predict_images(model, images).argmax(1) == classes).float().mean())


def _rate(done: float, warmup: float) -> float:
    if done < warmup:
        return (done + 0.01) / (warmup + 0.01)
    return cosine((done - warmup) / max(1 - warmup, 1e-9))


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    spared: set[str] = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()  # type: ignore[operator]
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    plain = [p for n, p in named if n in spared or p.ndim <= 1]
    decayed = [p for n, p in named if n not in spared and p.ndim > 1]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]


# -- digits: small images, plain or on a ground where few tokens matter ---------------------------------------

DIGIT, GROUND = 16, 32  # sides in pixels, of a digit that is put on a ground, and of the ground
GROUND_VIT: dict[str, Any] = {
    "dim": 48,
    "depth": 6,
    "heads": 4,
    "token_size": 4,
    "mlp_ratio": 4.0,
}
SHIFT = 2  # how far digits lie from the middle at most, in pixels
TEXTURE = 0.4  # the ground's standard deviation


def divided_digits(
    seed: int, side: int = DIGIT, training: int = 1200
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return scikit-learn's digits, ``(count, 1, side, side)`` from 0 to 1, and their classes.

    Args:
        seed: each draws another division.
        side: in pixels; they have 8 and are enlarged.
        training: how many to train with.

    Returns:
        Digits and classes to train with, then to test with.
    """
    from sklearn.datasets import load_digits

    loaded = load_digits()
    digits = torch.as_tensor(loaded.images, dtype=torch.float32)[:, None] / 16
    if side != digits.shape[-1]:
        digits = F.interpolate(digits, size=(side, side), mode="bilinear")
    classes = torch.as_tensor(loaded.target)
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(seed))
    train, test = order[:training], order[training:]
    return digits[train], classes[train], digits[test], classes[test]


def trained_on_ground(
    seed: int, digits: Float[Tensor, "count 1 16 16"], classes: Int[Tensor, "count"], epochs: int
) -> nn.Module:
    """Train a plain ViT of 8 x 8 tokens on digits on a ground: what fewer tokens are compared with."""
    torch.manual_seed(seed)
    network = create_model("vit_test", bands=1, num_classes=10, image_size=GROUND, **GROUND_VIT)
    init_linear(network, 0.15)  # narrow networks are nearly silent with 0.02
    fit_images(
        network,
        digits,
        classes,
        epochs=epochs,
        batch_size=32,
        learning_rate=2e-3,
        seed=seed,
        augment=on_ground,
    )
    return network


def on_ground(
    digits: Float[Tensor, "count 1 16 16"], generator: torch.Generator
) -> Float[Tensor, "count 1 32 32"]:
    """Put each digit somewhere on a rough texture of its own; fits ``augment`` of :func:`fit_images`."""
    count = len(digits)
    coarse = torch.randn(count, 1, GROUND // 2, GROUND // 2, generator=generator)
    images = TEXTURE * F.interpolate(coarse, size=(GROUND, GROUND), mode="bilinear")
    first = (GROUND - DIGIT - SHIFT) // 2
    corners = first + torch.randint(SHIFT + 1, (count, 2), generator=generator)
    for image, digit, (row, column) in zip(images, digits, corners.tolist(), strict=True):
        image[:, row : row + DIGIT, column : column + DIGIT] += 2 * digit
    return images


# -- networks that are hard to quantize ---------------------------------------------------------------------


@torch.no_grad()
def with_loud_channels(
    model: nn.Module, seed: int, channels: int = 3, factor: float = 20.0
) -> nn.Module:
    """Return a model that computes the same, with some channels behind every norm many times as loud.

    Large networks come to have such channels by themselves; the layer behind the norm divides them again.

    Args:
        model: its LayerNorms that one linear layer reads are changed.
        seed: draws the channels.
        channels: how many of each norm.
        factor: how much louder.
    """
    changed = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    names = {name for name, _ in layers_to_quantize(changed)}
    for norm_name, layer_name in pairs(changed, names):
        norm, layer = changed.get_submodule(norm_name), changed.get_submodule(layer_name)
        assert isinstance(norm, nn.LayerNorm)
        assert isinstance(layer, nn.Linear)
        chosen = torch.randperm(layer.in_features, generator=generator)[:channels]
        norm.weight[chosen] *= factor
        norm.bias[chosen] *= factor
        layer.weight[:, chosen] /= factor
    return changed
