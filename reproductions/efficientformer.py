"""EfficientFormer's claim in miniature: a short time for one image, and slimming by measured latency (arXiv 2206.01191).

- time: efficientformer_l1, batch norms folded, on one image of 224 pixels takes at most 0.8 of the time of a plain ViT
  with at least as many multiply-adds.
- slimming (section 3.3 of the paper): a supernet whose slots choose between a block on maps, a block on tokens and
  nothing learns handwritten digits. Then, step by step, whatever costs least for the time it saves is taken away, until
  70 % of the time is left: the least important block, the first block on tokens, or 4 channels of a stage. Times come
  from a table of parts; what is lost is the rise of the loss on validation images, too few for accuracies. Trained
  anew, the result is held against the whole network narrowed uniformly to no less time.

Times are CPU time of one thread: of one image the median of 50 runs; of parts and networks, for batches large enough that
arithmetic and not calls takes the time, the smallest of 20. A machine's speed drifts, so what the table predicts and what
a network takes in the end are both held against the whole network, measured in turns with it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from sklearn.datasets import load_digits
from torch import Tensor, nn

from vitreous.catalog.registry import create_model
from vitreous.catalog.results import percent, verdict, write_result
from vitreous.inference.bench import cpu_seconds
from vitreous.inference.cost import count_cost
from vitreous.models.efficientformer import EfficientFormer, MapBlock, fuse
from vitreous.tasks.miniature import accuracy, fit_images, predict_images

SIDE, SEEDS, EPOCHS, TRAIN_IMAGES, VALIDATION_IMAGES = 16, 3, 12, 500, 300
RUNS, TABLE_RUNS, TIMED_BATCH = 50, 20, 64
FASTER, LEFT, ERROR, SLACK = 0.8, 0.7, 0.10, 0.5  # what the claim demands; the last in points
WIDTH_STEP = 4
SMALL: dict[str, Any] = {"heads": 2, "key_dim": 8, "value_dim": 16, "layer_scale": 0.1}
RESULT = Path(__file__).parent / "results" / "efficientformer.json"
Part = tuple[tuple[Any, ...], Callable[[Tensor], Tensor], Tensor]


@dataclass(frozen=True)
class Shape:
    """Widths of the stages, and what stands in each slot of each stage: ``map``, ``token`` or ``none``."""

    dims: tuple[int, ...] = (8, 16, 32, 48)
    slots: tuple[tuple[str, ...], ...] = (
        *(("map",) * 2, ("map",) * 2, ("map",) * 3),
        ("map", "map", "token", "token"),
    )

    def build(self) -> EfficientFormer:
        """Return the network of this shape."""
        depths = [sum(kind != "none" for kind in stage) for stage in self.slots]
        tokens = self.slots[3].count("token")
        shape = {"dims": self.dims, "depths": depths, "attention_blocks": tokens}
        return EfficientFormer(1, 10, SIDE, **shape, **SMALL)

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
    """A network of choices, trained on digits, that can be asked what any smaller shape of it is worth."""

    def __init__(self, digits: Digits, epochs: int, seed: int) -> None:
        torch.manual_seed(seed)
        self.digits, self.net = digits, Shape().build()
        for dim, stage in zip(Shape().dims, self.net.stages, strict=True):
            for at, block in enumerate(stage):
                stage[at] = Choice(dim, map=block)
        last, scale = Shape().dims[-1], SMALL["layer_scale"]
        for at, block in enumerate(self.net.token_blocks):
            other = MapBlock(last, 4.0, 3, scale, 0.0)
            self.net.token_blocks[at] = Choice(last, token=block, map=other)
        self.slots = [list(stage) for stage in self.net.stages]
        self.slots[3] += list(self.net.token_blocks)
        steps, done = epochs * (len(digits.train[0]) // 50), 0

        def loss(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
            nonlocal done
            done += 1
            for slot in [slot for stage in self.slots for slot in stage]:
                slot.temperature = 5.0 * 0.02 ** (done / steps)  # from 5 to 0.1
            return F.cross_entropy(model(images), classes)

        fit(self.net, digits, epochs, seed, loss=loss)

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
        images, classes = self.digits.validation
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

    runs: int
    seconds: dict[tuple[Any, ...], float] = field(default_factory=dict)

    @torch.inference_mode()
    def predict(self, shape: Shape) -> float:
        """Return the sum over the parts of a network."""
        total = 0.0
        for key, part, x in _parts(shape):
            if key not in self.seconds:
                self.seconds[key] = cpu_seconds({"": lambda p=part, x=x: p(x)}, self.runs)[""]
            total += self.seconds[key]
        return total


def narrowed(shape: Shape, runs: int) -> Shape:
    """Return the whole network, narrowed uniformly as far as it still takes no less time than ``shape``.

    Both are measured in turns, not looked up: an error of the table must not favour either.
    """
    whole = found = Shape()
    for percents in range(96, 20, -4):
        dims = tuple(2 * max(1, round(dim * percents / 200)) for dim in whole.dims)
        option = replace(whole, dims=dims)
        seconds = measured({"wanted": shape, "option": option}, runs)
        if seconds["option"] < seconds["wanted"]:
            break
        found = option
    return found


def measured(shapes: dict[str, Shape], runs: int) -> dict[str, float]:
    """Return the CPU seconds that whole networks take for a batch, batch norms folded."""
    images = torch.zeros(TIMED_BATCH, 1, SIDE, SIDE)
    nets = {name: fuse(shape.build().eval()) for name, shape in shapes.items()}
    return cpu_seconds({name: lambda net=net: net(images) for name, net in nets.items()}, runs)


def _parts(shape: Shape) -> Iterator[Part]:
    """Yield every part of a network with its input, and a key that equal parts share."""
    net, x, before = fuse(shape.build().eval()), torch.zeros(TIMED_BATCH, 1, SIDE, SIDE), 1
    chain: list[tuple[tuple[Any, ...], Callable[[Tensor], Tensor]]] = []
    chain.append((("stem", shape.dims[0]), net.patch_embed))
    for stage, dim in enumerate(shape.dims):
        if stage:
            chain.append((("down", stage, before, dim), net.downs[stage]))
        chain += [(("map", stage, dim), block) for block in net.stages[stage]]
        before = dim
    chain.append((("flatten",), lambda x: rearrange(x, "b d h w -> b (h w) d")))
    side = SIDE // 8
    for block in net.token_blocks:
        chain.append((("token", before), lambda x, block=block: block(x, side, side)))
    chain.append((("head", before), lambda x: net.forward_head(net.norm(x))))
    for key, part in chain:
        yield key, part, x
        x = part(x)


class Digits:
    """Digits enlarged to 16 x 16, divided at random into ``train``, ``validation`` and ``test``."""

    def __init__(self, seed: int) -> None:
        digits = load_digits()
        images = torch.tensor(digits.images / 16 - 0.3, dtype=torch.float32)[:, None]
        images = F.interpolate(images, (SIDE, SIDE), mode="bilinear")
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        sizes = [TRAIN_IMAGES, VALIDATION_IMAGES, len(images) - TRAIN_IMAGES - VALIDATION_IMAGES]
        self.train, self.validation, self.test = (
            (images[part], torch.tensor(digits.target)[part]) for part in order.split(sizes)
        )


def fit(net: EfficientFormer, digits: Digits, epochs: int, seed: int, **changes: Any) -> None:
    fit_images(
        net, *digits.train, epochs=epochs, batch_size=50, learning_rate=2e-3, seed=seed, **changes
    )


def main(quick: bool = False) -> None:
    """Measure all and write ``results/efficientformer.json``; ``quick`` runs it all in little and writes nothing."""
    started = time.perf_counter()
    torch.set_num_threads(1)
    seeds, epochs, runs, table_runs = (1, 1, 1, 1) if quick else (SEEDS, EPOCHS, RUNS, TABLE_RUNS)
    rows = compare_times(runs)
    table, records = Table(table_runs), []
    for seed in range(seeds):
        records += compare_slimming(table, epochs, seed)
        print(*records[-2:], sep="\n", file=sys.stderr)
    for system in ("slimmed", "narrowed"):
        own = [r for r in records if r["system"] == system]
        rows.append(
            {
                "system": f"supernet, {system}",
                "parameters": round(mean(r["parameters"] for r in own)),
                "M multiply-adds": round(mean(r["macs"] for r in own) / 1e6, 2),
                "CPU ms": round(1e3 * mean(r["seconds"] for r in own) / TIMED_BATCH, 3),
                "of the whole's time": f"{mean(r['share'] for r in own):.1%}",
                "by the table": f"{mean(r['predicted_share'] for r in own):.1%}",
                "seeds": len(own),
                "accuracy %": percent([r["accuracy"] for r in own]),
            }
        )
    conclusion = conclude(rows, records)
    if quick:
        return
    write_result(
        RESULT,
        title="efficientformer: time of one image, and latency-driven slimming (digits)",
        command="vitreous reproduce efficientformer",
        rows=rows,
        conclusion=conclusion,
        epochs=EPOCHS,
        train_images=TRAIN_IMAGES,
        seconds=time.perf_counter() - started,
        runs=records,
    )


def compare_times(runs: int) -> list[dict[str, Any]]:
    """Time l1 and a plain ViT of no fewer multiply-adds on one image."""
    shape = {"bands": 3, "num_classes": 1000, "image_size": 224}
    ours, depth = create_model("efficientformer_l1", **shape), 12
    while count_cost(create_model("vit_tiny", **shape, depth=depth), 3, 224).macs < (
        count_cost(ours, 3, 224).macs
    ):
        depth += 1
    nets = {
        "efficientformer_l1, folded": fuse(create_model("efficientformer_l1", **shape).eval()),
        "efficientformer_l1": ours.eval(),
        f"vit_tiny, {depth} blocks": create_model("vit_tiny", **shape, depth=depth).eval(),
    }
    image = torch.randn(1, 3, 224, 224)
    calls = {name: lambda net=net: net(image) for name, net in nets.items()}
    seconds = cpu_seconds(calls, runs, median)
    costs = {name: count_cost(net, 3, 224) for name, net in nets.items()}
    return [
        {
            "system": name,
            "parameters": cost.parameters,
            "M multiply-adds": round(cost.macs / 1e6, 2),
            "CPU ms": round(1e3 * seconds[name], 3),
        }
        for name, cost in costs.items()
    ]


def compare_slimming(table: Table, epochs: int, seed: int) -> list[dict[str, Any]]:
    """Train a supernet, slim it, and train the result and the narrowed network."""
    digits = Digits(seed)
    slimmed = Supernet(digits, epochs, seed).slim(table)
    records = []
    for system, shape in (("slimmed", slimmed), ("narrowed", narrowed(slimmed, table.runs))):
        torch.manual_seed(seed)
        net = shape.build()
        fit(net, digits, epochs, seed)
        cost = count_cost(net, 1, SIDE)
        records.append(
            {
                "system": system,
                "seed": seed,
                "dims": shape.dims,
                "slots": shape.slots,
                "accuracy": accuracy(net, *digits.test),
                "parameters": cost.parameters,
                "macs": cost.macs,
                "predicted_share": table.predict(shape) / table.predict(Shape()),
            }
        )
    shapes = {r["system"]: Shape(r["dims"], r["slots"]) for r in records} | {"whole": Shape()}
    seconds = measured(shapes, table.runs)
    return [
        {**r, "seconds": seconds[r["system"]], "share": seconds[r["system"]] / seconds["whole"]}
        for r in records
    ]


def conclude(rows: list[dict[str, Any]], records: list[dict[str, Any]]) -> str:
    """Say in words what the numbers say of the claim, also where it does not hold."""
    ratio = rows[0]["CPU ms"] / rows[2]["CPU ms"]
    slimmed, uniform = ([r for r in records if r["system"] == s] for s in ("slimmed", "narrowed"))
    error = max(abs(r["share"] / r["predicted_share"] - 1) for r in slimmed)
    gain = 100 * (mean(r["accuracy"] for r in slimmed) - mean(r["accuracy"] for r in uniform))
    return (
        f"efficientformer_l1 takes {ratio:.2f} of the plain ViT's time on one image, where at most {FASTER} is allowed: "
        f"{verdict(ratio <= FASTER)}. The time of the slimmed networks, {mean(r['share'] for r in slimmed):.0%} of "
        f"the whole, is at most {error:.1%} from what the table of parts predicts, where {ERROR:.0%} are allowed: "
        f"{verdict(error <= ERROR)}. They are {gain:+.2f} points of accuracy from networks narrowed uniformly to "
        f"{mean(r['share'] for r in uniform):.0%}, where at most {SLACK} behind is allowed: {verdict(gain >= -SLACK)}."
    )


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:])
