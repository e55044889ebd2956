"""Small trainings on images in memory, for claims in miniature: the same few lines for every system compared.

For scenes there is ``tasks/classify.py``. This is for everything else a paper's claim may need: rendered glyphs,
digits, patches with known answers.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vitreous.catalog.registry import create_model
from vitreous.checkpoints.model_files import save_model
from vitreous.data.blocks import TEST, TRAIN, VAL
from vitreous.data.images import Images, read_image_folder
from vitreous.data.regions import orient
from vitreous.data.roles import Split
from vitreous.data.splits import buffered_blocks, stratified_random
from vitreous.layers.backbone import Backbone
from vitreous.layers.preprocess import Preprocess
from vitreous.layers.ranges import BandRange
from vitreous.methods.quantize._install import layers_to_quantize
from vitreous.methods.quantize.repq_vit import pairs
from vitreous.recipe import Recipe
from vitreous.scenes.samples import load_sample
from vitreous.tasks.quality import quality
from vitreous.tasks.schedules import cosine

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
Net = TypeVar("Net", bound=nn.Module)


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
    batch_size = min(batch_size, len(images))
    rounds = len(images) // batch_size
    waiting: list[Tensor] = []

    def next_loss(generator: torch.Generator) -> Tensor:
        if not waiting:
            order = torch.randperm(len(images), generator=generator)
            waiting.extend(order.split(batch_size)[:rounds])
        part = waiting.pop(0)
        batch = images[part] if augment is None else augment(images[part], generator)
        return loss(model, batch, classes[part])

    fit_steps(
        model,
        next_loss,
        steps=epochs * rounds,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        warmup=warmup,
        clip=clip,
        seed=seed,
    )


def fit_steps(
    model: nn.Module,
    next_loss: Callable[[torch.Generator], Tensor],
    *,
    steps: int,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.05,
    warmup: float = 0.1,
    clip: float = 1.0,
    seed: int = 0,
) -> None:
    """Train in place with AdamW, linear warm-up and a cosine to zero, whatever a step learns from.

    Args:
        model: the network; left in eval mode.
        next_loss: draws a batch from the generator that it is given, and returns the loss on it.
        steps: how often.
        learning_rate: its peak.
        weight_decay: of all parameters but vectors and those that the model spares.
        warmup: share of the steps.
        clip: gradient norm limit.
        seed: of batches and of dropout.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(_groups(model, weight_decay), lr=learning_rate, foreach=True)
    model.train()
    for step in range(steps):
        rate = learning_rate * _rate(step / steps, warmup)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        next_loss(generator).backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    model.eval()


def fit_task(
    model: nn.Module, task: ImageTask, learning_rate: float, **settings: Any
) -> dict[str, float]:
    """Train on a task in place, and return the record of it: rate, validation and test accuracy.

    Args:
        model: the network; left in eval mode.
        task: what to learn.
        learning_rate: its peak.
        settings: further ones of :func:`fit_images`.
    """
    fit_images(model, *task.train, learning_rate=learning_rate, **settings)
    return {
        "learning_rate": learning_rate,
        "validation": accuracy(model, *task.validation),
        "accuracy": accuracy(model, *task.test),
    }


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


# -- fair starts ---------------------------------------------------------------------------------------------


@torch.no_grad()
def scaled_init(model: Net) -> Net:
    """Scale the first weights of every layer to what its width asks for, and return the network.

    Published networks draw weights with a deviation of 0.02, which suits widths of many hundreds; the narrow networks of
    a miniature are nearly silent with it, some architectures more than others. Here the weights of every linear layer and
    convolution get a deviation of ``fan_in ** -0.5``, so that every arm of a comparison starts alike. Layers that start
    at zero by design stay at zero. A layer whose weights are not ``(outputs, inputs, ...)`` says its ``fan_in`` itself.
    """
    for part in model.modules():
        weight = getattr(part, "weight", None)
        if isinstance(part, nn.Embedding) or not isinstance(weight, nn.Parameter):
            continue
        if weight.ndim < 2 or not weight.any():
            continue
        inputs = weight[0].numel() if not _transposed(part) else weight.numel() // weight.shape[1]
        fan_in = getattr(part, "fan_in", inputs)
        weight.mul_(fan_in**-0.5 / weight.square().mean().sqrt())
    return model


def scaled_start(recipe: Recipe, classes: int, folder: Path) -> Recipe:
    """Return a recipe whose network starts from weights of :func:`scaled_init`, which are written into a folder."""
    torch.manual_seed(recipe.seed)
    shape = {"bands": recipe.components, "num_classes": classes, "image_size": recipe.patch_size}
    model = scaled_init(create_model(recipe.model, **shape, **recipe.model_args))
    assert isinstance(model, Backbone)
    path = folder / f"start-{recipe.model}.safetensors"
    save_model(model, path)
    return recipe.model_copy(update={"init": str(path)})


def _transposed(part: nn.Module) -> bool:
    return isinstance(part, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)


# -- small images: real ones, digits, digits on a ground where few tokens matter ------------------------------


class ImageTask(NamedTuple):
    """Images to classify, each band with mean 0 and deviation 1 over the training images.

    Attributes:
        name: of the data, for headings; toy data is called a toy.
        num_classes: how many there are.
        train: to learn from.
        validation: to choose settings by, never to report.
        test: to report.
    """

    name: str
    num_classes: int
    train: Images
    validation: Images
    test: Images

    @property
    def shape(self) -> dict[str, int]:
        """What ``create_model`` has to know about the data."""
        bands, side = self.train.images.shape[1:3]
        return {"bands": bands, "num_classes": self.num_classes, "image_size": side}


def image_task(
    seed: int,
    side: int,
    *,
    data: Path | None = None,
    training: int = 1200,
    validation: int = 200,
) -> ImageTask:
    """Return scikit-learn's digits, enlarged, or the pictures of a folder.

    Args:
        seed: draws the division; where a folder has test images of its own, these are the same for every seed.
        side: of an image in pixels.
        data: the folder, see ``data/images.py``; the toy digits without.
        training: how many digits to train with; of a folder, all that are left are trained with.
        validation: how many images to choose settings by.
    """
    generator = torch.Generator().manual_seed(seed)
    if data is None:
        name, everything, test = "toy: 8 x 8 digits, enlarged", _digits(side), None
        names = [str(number) for number in range(10)]
    else:
        name = data.name
        everything, test, names = read_image_folder(data, side)
    order = torch.randperm(len(everything.images), generator=generator)
    held_out = 0 if test else len(order) // 5 if data else len(order) - training - validation
    parts = [order[:held_out], order[held_out:][:validation], order[held_out + validation :]]
    tested, chosen, trained = (Images(*(values[part] for values in everything)) for part in parts)
    deviation, average = torch.std_mean(trained.images, dim=(0, 2, 3), keepdim=True)

    def standardised(part: Images) -> Images:
        return Images((part.images - average) / deviation, part.classes)

    return ImageTask(
        name,
        len(names),
        standardised(trained),
        standardised(chosen),
        standardised(tested if test is None else test),
    )


Task = TypeVar("Task", "ImageTask", "TokenTask")


def in_little(task: Task, count: int = 64) -> Task:
    """Return a task of few images, to check that something runs."""

    def few(part: Images) -> Images:
        return Images(part.images[:count], part.classes[:count])

    return task._replace(
        train=few(task.train), validation=few(task.validation), test=few(task.test)
    )


def _digits(side: int) -> Images:
    """Return all of scikit-learn's digits from 0 to 1, enlarged from 8 pixels."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    digits = torch.as_tensor(loaded.images, dtype=torch.float32)[:, None] / 16
    if side != digits.shape[-1]:
        digits = F.interpolate(digits, size=(side, side), mode="bilinear")
    return Images(digits, torch.as_tensor(loaded.target))


def shifted(
    images: Float[Tensor, "count bands side side"], generator: torch.Generator
) -> Float[Tensor, "count bands side side"]:
    """Move every image by up to an eighth of its side; its border is mirrored. Fits ``augment`` of :func:`fit_images`."""
    most = images.shape[-1] // 8
    padded = F.pad(images, (most,) * 4, mode="reflect")
    places = padded.unfold(2, images.shape[2], 1).unfold(3, images.shape[3], 1)
    down, right = torch.randint(2 * most + 1, (2, len(images)), generator=generator)
    return places[torch.arange(len(images)), :, down, right]


def shifted_and_mirrored(
    images: Float[Tensor, "count bands side side"], generator: torch.Generator
) -> Float[Tensor, "count bands side side"]:
    """Move every image as :func:`shifted` does and mirror half of them left to right, as is usual for natural images."""
    mirror = torch.rand(len(images), generator=generator) < 0.5
    return shifted(torch.where(mirror[:, None, None, None], images.flip(3), images), generator)


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
    digits, classes = _digits(side)
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(seed))
    train, test = order[:training], order[training:]
    return digits[train], classes[train], digits[test], classes[test]


class TokenTask(NamedTuple):
    """Images of 32 x 32 pixels in 8 x 8 patches, for methods that let a ViT compute with fewer of them.

    Attributes:
        name: of the data, for headings.
        num_classes: how many there are.
        train: to learn from, before ``augment``.
        validation: to choose settings by.
        test: to report.
        augment: makes training images of a batch of ``train``.
    """

    name: str
    num_classes: int
    train: Images
    validation: Images
    test: Images
    augment: Callable[[Tensor, torch.Generator], Tensor]


def token_task(seed: int, data: Path | None = None) -> TokenTask:
    """Return toy digits on a rough texture, on which most patches tell nothing, or the pictures of a folder.

    Digits lie near the middle; every epoch and image has another place and texture, and each test digit two.
    """
    if data is not None:
        task = image_task(seed, GROUND, data=data, validation=500)
        return TokenTask(*task, augment=shifted_and_mirrored)
    train, train_classes, rest, classes = divided_digits(seed)
    generator = torch.Generator().manual_seed(1000 + seed)

    def placed(part: slice, times: int) -> Images:
        images = torch.cat([on_ground(rest[part], generator) for _ in range(times)])
        return Images(images, classes[part].repeat(times))

    test, known = placed(slice(200, None), 2), placed(slice(200), 3)
    return TokenTask(
        "toy: digits on texture", 10, Images(train, train_classes), known, test, on_ground
    )


def trained_vit(seed: int, task: TokenTask, epochs: int) -> nn.Module:
    """Train a plain ViT of 8 x 8 tokens: what fewer tokens are compared with."""
    torch.manual_seed(seed)
    shape = {"bands": task.test.images.shape[1], "num_classes": task.num_classes}
    network = create_model("vit_test", **shape, image_size=GROUND, **GROUND_VIT)
    scaled_init(network)
    tune_vit(network, seed, task, epochs, learning_rate=2e-3, warmup=0.1)
    return network


def tune_vit(
    network: nn.Module,
    seed: int,
    task: TokenTask,
    epochs: int,
    *,
    learning_rate: float = 2e-4,
    warmup: float = 0.0,
    loss: Loss = cross_entropy,
) -> None:
    """Train such a network on, in place; the arguments are those of :func:`fit_images`."""
    fit_images(
        network,
        *task.train,
        epochs=epochs,
        batch_size=32,
        learning_rate=learning_rate,
        warmup=warmup,
        seed=seed,
        loss=loss,
        augment=task.augment,
    )


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


# -- the built-in scene: averages of bands, crops, patches around pixels -------------------------------------

HELD_OUT = 48  # rows of the scene that no network learns from
VALIDATION_ROWS = 24  # the last of the others, where settings are chosen


class Strips(NamedTuple):
    """A scene in two parts, scaled to mostly 0 to 1, ``(bands, height, width)``.

    Attributes:
        train: the rows to learn from.
        test: the rows below them, with a width that is a multiple of 16.
        ranges: what both are scaled by, found on the first part.
    """

    train: Tensor
    test: Tensor
    ranges: BandRange


def sample_cube() -> tuple[Float[Tensor, "bands height width"], Int[Tensor, "height width"]]:
    """Return Indian Pines in digital numbers, and its classes from 1, 0 where there is no label."""
    sample = load_sample("indian_pines")
    cube = torch.from_numpy(np.asarray(sample.scene.values, np.float32))
    return cube, torch.from_numpy(np.asarray(sample.labels.values, np.int64))


def band_averages(
    cube: Float[Tensor, "bands height width"], count: int
) -> Float[Tensor, "count height width"]:
    """Average runs of neighbouring bands, whose lengths differ by 1 at most."""
    return torch.stack([run.mean(0) for run in cube.tensor_split(count)])


def scaled_strips(cube: Float[Tensor, "bands height width"]) -> Strips:
    """Divide a scene into rows to learn from and the :data:`HELD_OUT` rows held out, and scale every band."""
    return _divided(cube, HELD_OUT)


def validation_strips(cube: Float[Tensor, "bands height width"]) -> Strips:
    """Divide the rows that :func:`scaled_strips` learns from once more: to choose settings on rows that are not reported."""
    return _divided(cube[:, :-HELD_OUT], VALIDATION_ROWS)


def _divided(cube: Tensor, held_out: int) -> Strips:
    train, test = cube[:, :-held_out], cube[:, -held_out:, : cube.shape[2] // 16 * 16]
    ranges = BandRange.fit(train.flatten(1).T.numpy())
    return Strips(ranges(train), ranges(test), ranges)


def strip_quality(
    strips: Strips, restored: Float[Tensor, "bands height width"], scale: int = 1
) -> dict[str, float]:
    """Return PSNR, SSIM and SAM of ``strips.test``, as something restored it, see ``tasks/quality.py``.

    Args:
        strips: the scene.
        restored: scaled as they are.
        scale: how many times finer it was made.
    """
    ranges = strips.ranges
    made, clean = ranges.inverse(restored), ranges.inverse(strips.test)
    found = quality(made, clean, ranges, scale)
    return {name: found[name] for name in ("psnr", "ssim", "sam")}


def random_crops(
    cube: Float[Tensor, "bands height width"], side: int, count: int, generator: torch.Generator
) -> Float[Tensor, "count bands side side"]:
    """Draw squares from anywhere, turned and mirrored at random."""
    crops = []
    for _ in range(count):
        row, column = (
            int(torch.randint(length - side + 1, (), generator=generator))
            for length in cube.shape[1:]
        )
        turn = int(torch.randint(8, (), generator=generator))
        crops.append(orient(cube[:, row : row + side, column : column + side], turn))
    return torch.stack(crops)


def patches_at(
    image: Float[Tensor, "bands height width"], pixels: Int[Tensor, "count"], side: int
) -> Float[Tensor, "count bands side side"]:
    """Cut the patches around pixels, given by their flat index; beyond the edge the image is mirrored."""
    rows, columns = pixels // image.shape[2], pixels % image.shape[2]
    padded = F.pad(image[None], (side // 2,) * 4, mode="reflect")[0]
    windows = padded.unfold(1, side, 1).unfold(2, side, 1)
    return windows[:, rows, columns].transpose(0, 1).contiguous()


def pixel_task(
    split: Split,
    side: int,
    components: int,
    *,
    training: int | None = None,
    validation: int | None = None,
    test: int | None = None,
) -> ImageTask:
    """Return patches around the labelled pixels of the built-in scene, in principal components of unit variance.

    Args:
        split: of the scene's pixels; its seed draws which of them are taken.
        side: of a patch in pixels.
        components: how many; they are found on the training pixels.
        training: how many pixels to train with at most, and likewise
        validation: to choose settings by,
        test: to report.
    """
    cube, labels = sample_cube()
    draw = np.random.default_rng(split.seed)
    most = {TRAIN: training, VAL: validation, TEST: test}
    pixels = {role: draw.permutation(split.pixels(role))[:count] for role, count in most.items()}
    learned = Preprocess.fit(
        cube.flatten(1).T[pixels[TRAIN]].numpy(), components=components, standardize=True
    )
    with torch.no_grad():
        image = learned(cube[None])[0]
    train, chosen, tested = (
        Images(patches_at(image, part, side), labels.flatten()[part] - 1)
        for part in map(torch.from_numpy, pixels.values())
    )
    return ImageTask("Indian Pines", int(labels.max()), train, chosen, tested)


def random_task(seed: int, side: int, components: int, **most: int) -> ImageTask:
    """Return a :func:`pixel_task` of pixels drawn at random: test pixels lie inside training patches, as in many papers.

    Args:
        seed: of the pixels.
        side: of a patch in pixels.
        components: as in :func:`pixel_task`, like
        most: how many pixels to take at most, by ``training``, ``validation`` and ``test``.
    """
    _, labels = sample_cube()
    split = stratified_random(labels.numpy(), train_fraction=0.1, val_fraction=0.5, seed=seed)
    return pixel_task(split, side, components, **most)


def block_task(
    seed: int, side: int, components: int, *, train_fraction: float = 0.3, **most: int
) -> ImageTask:
    """Return a :func:`pixel_task` of which no test pixel lies inside a training patch; each seed draws other blocks.

    Args:
        seed: of the blocks and pixels.
        side: of a patch in pixels.
        components: as in :func:`pixel_task`, like
        train_fraction: share of the labelled pixels in blocks to train with.
        most: how many pixels to take at most, by ``training``, ``validation`` and ``test``.
    """
    _, labels = sample_cube()
    with warnings.catch_warnings():
        # Some classes fill one block only: they are trained, not tested.
        warnings.simplefilter("ignore", UserWarning)
        split = buffered_blocks(
            labels.numpy(), patch_size=side, train_fraction=train_fraction, seed=seed
        )
    return pixel_task(split, side, components, **most)


def turned(
    images: Float[Tensor, "count bands side side"], generator: torch.Generator
) -> Float[Tensor, "count bands side side"]:
    """Mirror and turn a batch by one of the square's eight symmetries; fits ``augment`` of :func:`fit_images`."""
    return orient(images, int(torch.randint(8, (), generator=generator)))


# -- networks that are hard to quantize ---------------------------------------------------------------------


QUANTIZED_VIT: dict[str, Any] = {"dim": 48, "depth": 4, "heads": 4, "mlp_ratio": 4.0}
QUANTIZED_EPOCHS, LOUD, FACTOR = 30, 3, 20.0


def vit_with_loud_channels(
    seed: int, data: Path | None = None, quick: bool = False
) -> tuple[ImageTask, nn.Module]:
    """Train a small ViT, and make some of its channels loud, see :func:`with_loud_channels`.

    Args:
        seed: of images, weights and channels.
        data: folder of real images of 32 x 32 pixels; toy digits of 8 x 8 without.
        quick: only check that it runs.
    """
    side, token = (8, 2) if data is None else (32, 4)
    task = image_task(seed, side, data=data, training=1000)
    task = in_little(task) if quick else task
    torch.manual_seed(seed)
    model = create_model("vit_test", **task.shape, **QUANTIZED_VIT, token_size=token)
    epochs = 1 if quick else QUANTIZED_EPOCHS
    fit_images(scaled_init(model), *task.train, epochs=epochs, batch_size=32, seed=seed)
    return task, with_loud_channels(model, seed, LOUD, FACTOR)


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
