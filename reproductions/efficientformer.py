"""EfficientFormer's claim in miniature: a short time for one image, and slimming by measured latency (arXiv 2206.01191).

- time: efficientformer_l1, batch norms folded, on one image of 224 pixels takes at most 0.8 of the time of a plain ViT
  with at least as many multiply-adds.
- slimming (section 3.3 of the paper): a supernet whose slots choose between a block on maps, a block on tokens and
  nothing learns to classify. Then, step by step, whatever costs least for the time it saves is taken away, until 70 % of
  the time is left: the least important block, the first block on tokens, or 4 channels of a stage. Times come from a table
  of parts; what is lost is the rise of the loss on validation images, too few for accuracies. The result is compared with
  the whole network narrowed uniformly to no less time. Both are trained anew, start with weights scaled to their width,
  and take the best of three learning rates, chosen on validation images with a seed that is not reported.

By default the images are toy digits of 16 x 16 pixels; ``--data FOLDER`` takes real ones of 32 x 32, shifted and mirrored
in training, whose first convolution halves them.

Times are processor times of one thread: of one image the median of 20 ratios; of parts and networks, for batches large
enough that arithmetic and not calls takes the time, the smallest of 20. A machine's speed drifts, so what the table
predicts and what a network takes in the end are both divided by the time of the whole network, measured in turns with it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vitreous.catalog.claims import Claim, claim, paired
from vitreous.catalog.registry import create_model
from vitreous.catalog.results import first, percents, table_of
from vitreous.catalog.study import Study
from vitreous.inference.bench import cpu_ratios, cpu_seconds, one_thread
from vitreous.inference.cost import count_cost
from vitreous.models.efficientformer import EfficientFormer, MapBlock, fuse
from vitreous.tasks.miniature import (
    ImageTask,
    fit_images,
    fit_task,
    image_task,
    predict_images,
    scaled_init,
    shifted_and_mirrored,
)

TOY, REAL = {"epochs": 40, "training": 500}, {"epochs": 15}
BATCH, RATES, SUPERNET_RATE = 50, (1e-3, 2e-3, 4e-3), 2e-3
RUNS, TIMED_BATCH = 20, 64
FASTER, LEFT = 0.8, 0.7  # of the ViT's time, at most; of the whole network's
ERROR, SLACK = 10.0, 0.5  # of the table in percent, at most; points of accuracy
WIDTH_STEP, FIRST_SIDE = 4, 16
SMALL: dict[str, Any] = {"heads": 2, "key_dim": 8, "value_dim": 16, "layer_scale": 0.1}
SLIMMED, NARROWED = ARMS = "slimmed", "narrowed"
SUPERNET, TIME = "supernet", "time of one image"
Part = tuple[tuple[Any, ...], Callable[[Tensor], Tensor], Tensor]


@dataclass(frozen=True)
class Shape:
    """Widths of the stages, and what stands in each slot of each stage: ``map``, ``token`` or ``none``."""

    dims: tuple[int, ...] = (8, 16, 32, 48)
    slots: tuple[tuple[str, ...], ...] = (
        *(("map",) * 2, ("map",) * 2, ("map",) * 3),
        ("map", "map", "token", "token"),
    )

    def build(self, data: dict[str, int]) -> EfficientFormer:
        """Return the network of this shape; its first map has 16 cells per side, whatever the images."""
        depths = [sum(kind != "none" for kind in stage) for stage in self.slots]
        tokens = self.slots[3].count("token")
        shape = {"dims": self.dims, "depths": depths, "attention_blocks": tokens}
        stride = data["image_size"] // FIRST_SIDE
        net = EfficientFormer(**data, **shape, stem_stride=stride, **SMALL)
        scaled_init(net)
        return net

    def put(self, stage: int, slot: int, kind: str) -> Shape:
        """Return this shape with something else in one slot."""
        slots = [list(kinds) for kinds in self.slots]
        slots[stage][slot] = kind
        return replace(self, slots=tuple(map(tuple, slots)))


class Choice(nn.Module):
    """A slot of the supernet: a mixture of blocks and nothing, drawn by Gumbel-softmax, until one is picked."""

    def __init__(self, dim: int, **blocks: nn.Module) -> None:
        super().__init__()
        self.blocks, self.kinds = nn.ModuleDict(blocks), [*blocks, "none"]
        self.logits = nn.Parameter(torch.zeros(len(self.kinds)))
        self.temperature = 1.0
        self.pick: str | None = None
        self.register_buffer("keep", torch.ones(dim))

    def weight(self, kind: str) -> float:
        """Return the logarithm of a block's weight over that of nothing."""
        logits = self.logits.detach()
        return float(logits[self.kinds.index(kind)] - logits[-1])

    def forward(self, x: Tensor, *size: int) -> Tensor:
        """Apply the picked block to the channels that are kept, or the mixture."""
        if self.pick is not None:
            keep = self.keep if size else self.keep[:, None, None]
            return self._apply(self.pick, x * keep, size) * keep
        weights = F.gumbel_softmax(self.logits, tau=self.temperature)
        parts = [self._apply(kind, x, size) for kind in self.kinds]
        return torch.stack([w * part for w, part in zip(weights, parts, strict=True)]).sum(0)

    def _apply(self, kind: str, x: Tensor, size: tuple[int, ...]) -> Tensor:
        if kind == "none":
            return x
        if kind == "map" and size:  # a block on maps in a slot on tokens
            cells = rearrange(x, "b (h w) d -> b d h w", h=size[0])
            return rearrange(self.blocks[kind](cells), "b d h w -> b (h w) d")
        return self.blocks[kind](x, *size)


class Supernet:
    """A network of choices, trained on images, that can be asked what any smaller shape of it is worth."""

    def __init__(self, images: ImageTask, epochs: int, seed: int, augment: Any) -> None:
        torch.manual_seed(seed)
        self.images, self.net = images, Shape().build(images.shape)
        for dim, stage in zip(Shape().dims, self.net.stages, strict=True):
            for at, block in enumerate(stage):
                stage[at] = Choice(dim, map=block)
        last, scale = Shape().dims[-1], SMALL["layer_scale"]
        for at, block in enumerate(self.net.token_blocks):
            other = MapBlock(last, 4.0, 3, scale, 0.0)
            self.net.token_blocks[at] = Choice(last, token=block, map=scaled_init(other))
        self.slots = [list(stage) for stage in self.net.stages]
        self.slots[3] += list(self.net.token_blocks)
        steps, done = epochs * (len(images.train.images) // BATCH), 0

        def loss(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
            nonlocal done
            done += 1
            for slot in [slot for stage in self.slots for slot in stage]:
                slot.temperature = 5.0 * 0.02 ** (done / steps)  # from 5 to 0.1
            return F.cross_entropy(model(images), classes)

        fit_images(
            self.net,
            *images.train,
            epochs=epochs,
            batch_size=BATCH,
            learning_rate=SUPERNET_RATE,
            seed=seed,
            augment=augment,
            loss=loss,
        )

    def first_shape(self) -> Shape:
        """Return the whole network; in a slot for tokens stands what weighs more, maps only before tokens."""
        shape = Shape()
        for at in (2, 3):
            slot = self.slots[3][at]
            if slot.weight("token") >= slot.weight("map"):
                break
            shape = shape.put(3, at, "map")
        return shape

    def smaller(self, shape: Shape) -> Iterator[Shape]:
        """Yield the shapes that one step of slimming may lead to."""
        filled = [
            (self.slots[stage][at].weight(kind), stage, at)
            for stage, kinds in enumerate(shape.slots)
            for at, kind in enumerate(kinds)
            if kind != "none"
        ]
        if filled:
            yield shape.put(*min(filled)[1:], "none")
        if "token" in shape.slots[3]:
            yield shape.put(3, shape.slots[3].index("token"), "none")
        for stage, dim in enumerate(shape.dims):
            if dim > WIDTH_STEP:
                dims = [*shape.dims]
                dims[stage] -= WIDTH_STEP
                yield replace(shape, dims=tuple(dims))

    def loss(self, shape: Shape) -> float:
        """Return the validation loss of a shape, with the supernet's weights."""
        for stage, (dim, kinds) in enumerate(zip(shape.dims, shape.slots, strict=True)):
            norm = self.net.downs[stage][1] if stage else self.net.patch_embed[4]
            strongest = norm.weight.detach().abs().argsort(descending=True)[:dim]
            for slot, kind in zip(self.slots[stage], kinds, strict=True):
                slot.pick = kind
                slot.keep.zero_()[strongest] = 1
        images, classes = self.images.validation
        return float(F.cross_entropy(predict_images(self.net, images), classes))

    def slim(self, table: Table) -> Shape:
        """Take away what costs least for the time it saves, until the wanted share of time is left."""
        shape = self.first_shape()
        while (now := table.predict(shape)) > LEFT * table.predict(Shape()):
            loss = self.loss(shape)
            steps = [(option, now - table.predict(option)) for option in self.smaller(shape)]
            steps = [(option, saved) for option, saved in steps if saved > 0]
            shape = min(steps, key=lambda step: (self.loss(step[0]) - loss) / step[1])[0]
        return shape


@dataclass
class Table:
    """CPU seconds of a network's parts for a batch, measured when they are first asked for."""

    data: dict[str, int]
    runs: int
    seconds: dict[tuple[Any, ...], float] = field(default_factory=dict)

    @torch.inference_mode()
    def predict(self, shape: Shape) -> float:
        """Return the sum over the parts of a network."""
        total = 0.0
        for key, part, x in _parts(shape, self.data):
            if key not in self.seconds:
                self.seconds[key] = cpu_seconds({"": lambda p=part, x=x: p(x)}, self.runs)[""]
            total += self.seconds[key]
        return total


def narrowed(shape: Shape, table: Table) -> Shape:
    """Return the whole network, narrowed uniformly as far as it still takes no less time than ``shape``.

    Both are measured in turns, not looked up: an error of the table must not favour either.
    """
    whole = found = Shape()
    for share in range(96, 20, -4):
        dims = tuple(2 * max(1, round(dim * share / 200)) for dim in whole.dims)
        option = replace(whole, dims=dims)
        seconds = measured({"wanted": shape, "option": option}, table)
        if seconds["option"] < seconds["wanted"]:
            break
        found = option
    return found


def measured(shapes: dict[str, Shape], table: Table) -> dict[str, float]:
    """Return the CPU seconds that whole networks take for a batch, batch norms folded."""
    images = _batch(table.data)
    nets = {name: fuse(shape.build(table.data).eval()) for name, shape in shapes.items()}
    return cpu_seconds(
        {name: lambda net=net: net(images) for name, net in nets.items()}, table.runs
    )


def _batch(data: dict[str, int]) -> Tensor:
    return torch.zeros(TIMED_BATCH, data["bands"], data["image_size"], data["image_size"])


def _parts(shape: Shape, data: dict[str, int]) -> Iterator[Part]:
    """Yield every part of a network with its input, and a key that equal parts share."""
    net, x, before = fuse(shape.build(data).eval()), _batch(data), 1
    chain: list[tuple[tuple[Any, ...], Callable[[Tensor], Tensor]]] = []
    chain.append((("stem", shape.dims[0]), net.patch_embed))
    for stage, dim in enumerate(shape.dims):
        if stage:
            chain.append((("down", stage, before, dim), net.downs[stage]))
        chain += [(("map", stage, dim), block) for block in net.stages[stage]]
        before = dim
    chain.append((("flatten",), lambda x: rearrange(x, "b d h w -> b (h w) d")))
    side = FIRST_SIDE // 8
    for block in net.token_blocks:
        chain.append((("token", before), lambda x, block=block: block(x, side, side)))
    chain.append((("head", before), lambda x: net.forward_head(net.norm(x))))
    for key, part in chain:
        yield key, part, x
        x = part(x)


class Slimming(NamedTuple):
    """The images of a seed, and the shapes that its supernet was slimmed to and compared with."""

    images: ImageTask
    shapes: dict[str, Shape]


def main(quick: bool = False, full: bool = False, data: Path | None = None) -> None:
    """Measure all; a full run writes ``results/efficientformer.json``, a quick one only checks that all of it runs."""
    settings = TOY if data is None else REAL
    study = Study(
        __file__,
        "latency and latency-driven slimming",
        settings={**settings, "batch": BATCH, "rates": RATES, "supernet": SUPERNET_RATE, **SMALL},
        quick=quick,
        full=full,
        data=data,
    )
    epochs, runs = (1, 1) if quick else (settings["epochs"], RUNS)
    augment = None if data is None else shifted_and_mirrored
    table = Table(task(0, data).shape, runs)

    def slimming(seed: int) -> Slimming:
        images = task(seed, data)
        found = partial(slim, images, table, seed, epochs=epochs, augment=augment)
        shapes = study.run(found, system=SUPERNET, seed=seed)["shapes"]
        return Slimming(images, {arm: Shape(**shape) for arm, shape in shapes.items()})

    study.compare(ARMS, RATES, slimming, partial(measure, epochs=epochs, augment=augment))
    for seed in study.seeds:
        study.run(partial(one_image, seed, runs), system=TIME, seed=seed)
    study.finish(summary, claims, on=task(0, data).name)


def task(seed: int, data: Path | None) -> ImageTask:
    """Return the images of a seed."""
    if data is None:
        return image_task(seed, FIRST_SIDE, training=TOY["training"], validation=300)
    return image_task(seed, 2 * FIRST_SIDE, data=data, validation=500)


def slim(
    images: ImageTask, table: Table, seed: int, *, epochs: int, augment: Any
) -> dict[str, Any]:
    """Train a supernet and slim it; return both shapes and their shares of the whole network's time."""
    supernet = Supernet(images, epochs, seed, augment)
    with one_thread():
        slimmed = supernet.slim(table)
        shapes = {SLIMMED: slimmed, NARROWED: narrowed(slimmed, table)}
        seconds = measured({**shapes, "whole": Shape()}, table)
        whole = table.predict(Shape())
        predicted = {arm: table.predict(shape) / whole for arm, shape in shapes.items()}
    return {
        "shapes": {arm: asdict(shape) for arm, shape in shapes.items()},
        "shares": {arm: seconds[arm] / seconds["whole"] for arm in shapes},
        "predicted_shares": predicted,
    }


def measure(
    arm: str, seed: int, drawn: Slimming, rate: float, *, epochs: int, augment: Any
) -> dict[str, Any]:
    """Train and score the slimmed or the narrowed network."""
    images = drawn.images
    torch.manual_seed(seed)
    net = drawn.shapes[arm].build(images.shape)
    record = fit_task(
        net, images, rate, epochs=epochs, batch_size=BATCH, seed=seed, augment=augment
    )
    cost = count_cost(net, images.shape["bands"], images.shape["image_size"])
    return {
        **record,
        "parameters": cost.parameters,
        "macs": cost.macs,
    }


@torch.inference_mode()
def one_image(seed: int, runs: int) -> dict[str, Any]:
    """Return, run by run, the time of l1 over that of a plain ViT of no fewer multiply-adds, on one image."""
    torch.manual_seed(seed)
    shape = {"bands": 3, "num_classes": 1000, "image_size": 224}
    ours, depth = create_model("efficientformer_l1", **shape), 12
    while count_cost(create_model("vit_tiny", **shape, depth=depth), 3, 224).macs < (
        count_cost(ours, 3, 224).macs
    ):
        depth += 1
    folded = fuse(ours.eval())
    plain = create_model("vit_tiny", **shape, depth=depth).eval()
    image = torch.randn(1, 3, 224, 224)
    return {
        "ratios": cpu_ratios(lambda: folded(image), lambda: plain(image), runs),
        "vit_blocks": depth,
    }


def summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the table: one row per network, over its seeds."""
    supernets = {r["seed"]: r for r in records if r["system"] == SUPERNET}

    def shares(key: str) -> Callable[[list[dict[str, Any]]], str]:
        return lambda own: f"{mean(supernets[r['seed']][key][r['system']] for r in own):.1%}"

    return table_of(
        [record for record in records if record["system"] in ARMS],
        {
            "parameters": lambda own: round(mean(r["parameters"] for r in own)),
            "multiply-adds, M": lambda own: round(mean(r["macs"] for r in own) / 1e6, 2),
            "share of the full latency": shares("shares"),
            "predicted by the latency table": shares("predicted_shares"),
            "learning rate": first("learning_rate"),
            "accuracy %": percents("accuracy"),
        },
    )


def claims(records: Sequence[dict[str, Any]]) -> list[Claim]:
    """Return what the paper claims, as measured."""
    reported = {r["seed"] for r in records if r["system"] == SLIMMED}
    supernets = [r for r in records if r["system"] == SUPERNET and r["seed"] in reported]
    errors = [
        100 * abs(r["shares"][SLIMMED] / r["predicted_shares"][SLIMMED] - 1) for r in supernets
    ]
    times = [median(r["ratios"]) for r in records if r["system"] == TIME]
    return [
        claim(
            "Latency per image (processor time of one thread), efficientformer_l1 over a plain ViT",
            times,
            at_most=FASTER,
            unit="times",
            digits=2,
            signed=False,
        ),
        claim(
            "Error of the latency predicted by the table of parts",
            errors,
            at_most=ERROR,
            unit="%",
            signed=False,
        ),
        claim(
            "Accuracy, latency-driven slimming vs uniform narrowing at equal or higher latency",
            paired(records, SLIMMED, NARROWED),
            at_least=-SLACK,
        ),
    ]


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:], full="--full" in sys.argv[1:])
