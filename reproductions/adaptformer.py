"""AdaptFormer's claim in miniature: other classes from few labels and few trained parameters (arXiv 2205.13535).

A small ViT is trained on patches of Indian Pines of the classes with odd numbers. Then it is adapted to the others,
with five or ten labelled pixels of each, by training everything, the head alone (linear probe), or the head and
adapters: AdaptFormer's beside the feed-forwards, and LoRA's of about as many weights in the attention. All take the
same steps on the same images in the same order; the learning rate of each is the best of four on a seed that is not
measured. AdamW moves every weight by about its rate, so AdaptFormer's branch is scaled by 1 here; with the paper's SGD
it is 0.1.

Pixels are drawn at random, alike for all: these are not accuracies on ground that a network has not seen.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitreous.catalog.results import percent, verdict, write_result
from vitreous.layers.backbone import init_linear
from vitreous.layers.preprocess import Preprocess
from vitreous.methods._apply import apply
from vitreous.methods.adapt._freeze import freeze_base
from vitreous.models.vit import VisionTransformer
from vitreous.scenes.samples import load_sample
from vitreous.tasks.miniature import accuracy, fit_images

SEEDS, CHOICE = 3, 100  # repetitions, and the seed on which learning rates are chosen
COMPONENTS, SIDE, HALF = (
    15,
    9,
    8,
)  # spectral components, pixels of a patch's side, classes of a half
BASE_SHARE, BASE_EPOCHS, BASE_RATE = 0.5, 20, 1e-3  # of the first half's pixels
LABELS, TEST_IMAGES = (5, 10), 2000  # per class of the second half; of all its classes
STEPS, BATCH = 240, 20
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
INIT = 0.1  # spread of the first weights; narrow networks are nearly silent with 0.02
NETWORK: dict[str, Any] = {"dim": 96, "depth": 4, "heads": 4, "token_size": 3}
FULL, PROBE, LORA, OURS = "all weights", "head alone (linear probe)", "LoRA and head", "AdaptFormer"
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    LORA: ("lora", {"rank": 4, "targets": "*.qkv"}),
    OURS: ("adaptformer", {"bottleneck": 8, "scale": 1.0}),
}
ARMS = (FULL, PROBE, LORA, OURS)

# What the claim demands: points of overall accuracy, and the largest share of the parameters that may train.
GAIN, SLACK, SHARE = 3.0, 1.0, 0.02

RESULT = Path(__file__).parent / "results" / "adaptformer.json"


class Part(NamedTuple):
    """Patches ``(count, components, side, side)`` and their classes from 0."""

    images: Tensor
    classes: Tensor


class Bench(NamedTuple):
    """What one seed trains and tests on, and the network that is adapted.

    Attributes:
        train: of every class the most that are labelled, class after class.
        test: pixels of the same classes.
        base: trained on the other classes.
    """

    train: Part
    test: Part
    base: VisionTransformer


def main(quick: bool = False) -> None:
    """Measure everything and write ``results/adaptformer.json``; ``quick`` runs it all in little and writes nothing."""
    started = time.perf_counter()
    bench = prepare(CHOICE, quick)
    tried = [
        measure(bench, arm, labels, CHOICE, rate, quick)
        for labels in LABELS
        for arm in ARMS
        for rate in (RATES[:1] if quick else RATES)
    ]
    records = []
    for seed in range(1 if quick else SEEDS):
        bench = prepare(seed, quick)
        for labels in LABELS:
            for arm in ARMS:
                best = max(_of(tried, labels, arm), key=lambda r: float(r["accuracy"]))
                rate = best["learning_rate"]
                records.append(measure(bench, arm, labels, seed, rate, quick))
    if quick:
        return
    write_result(
        RESULT,
        title="adaptformer: other classes with few trained parameters (Indian Pines)",
        command="vitreous reproduce adaptformer",
        rows=summary(records),
        conclusion=conclude(records),
        steps=STEPS,
        seconds=time.perf_counter() - started,
        runs=records,
        choice_of_rates=tried,
    )


def prepare(seed: int, quick: bool) -> Bench:
    """Draw pixels, and train the network on the first half of the classes."""
    sample = load_sample("indian_pines")
    cube, labels = np.asarray(sample.scene.values, np.float32), np.asarray(sample.labels.values)
    draw = np.random.default_rng(seed)
    pixels = [draw.permutation(np.flatnonzero(labels.ravel() == k)) for k in range(1, 2 * HALF + 1)]
    first, second = pixels[0::2], pixels[1::2]
    known = [own[: int(len(own) * BASE_SHARE)] for own in first]
    spectra = cube.reshape(len(cube), -1).T[np.concatenate(known)]
    with torch.no_grad():
        image = Preprocess.fit(spectra, components=COMPONENTS)(torch.from_numpy(cube)[None])
    windows = (
        F.pad(image, (SIDE // 2,) * 4, mode="reflect")[0].unfold(1, SIDE, 1).unfold(2, SIDE, 1)
    )
    base = cut(windows, known)
    train, test = (
        cut(windows, [own[rows] for own in second])
        for rows in (slice(max(LABELS)), slice(max(LABELS), None))
    )
    some = draw.permutation(len(test.images))[: 50 if quick else TEST_IMAGES]
    torch.manual_seed(seed)
    model = VisionTransformer(COMPONENTS, HALF, SIDE, **NETWORK)
    init_linear(model, INIT)
    epochs = 1 if quick else BASE_EPOCHS
    fit_images(model, *base, epochs=epochs, learning_rate=BASE_RATE, seed=seed, augment=turned)
    return Bench(train, Part(test.images[some], test.classes[some]), model)


def cut(windows: Tensor, pixels: Sequence[np.ndarray[Any, np.dtype[np.int64]]]) -> Part:
    """Cut the patches of each class's pixels from ``(components, rows, columns, side, side)``."""
    rows, columns = np.divmod(np.concatenate(pixels), windows.shape[2])
    classes = torch.arange(len(pixels)).repeat_interleave(
        torch.tensor([len(own) for own in pixels])
    )
    return Part(windows[:, rows, columns].transpose(0, 1).contiguous(), classes)


def turned(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror and turn a batch by one of the square's eight symmetries."""
    which = int(torch.randint(8, (), generator=generator))
    return torch.rot90(images.flip(-1) if which > 3 else images, which % 4, (2, 3))


def adapting(base: VisionTransformer, arm: str) -> nn.Module:
    """Return the network as one system adapts it: with a new head, and only what it trains unfrozen."""
    model: nn.Module = copy.deepcopy(base)
    if arm in METHODS:
        name, settings = METHODS[arm]
        model = apply(base, name, **settings).model
        freeze_base(model, also_train="head.")
    elif arm == PROBE:
        model.requires_grad_(False)
    assert isinstance(model, VisionTransformer)
    model.reset_head(HALF)
    return model


def measure(
    bench: Bench, arm: str, labels: int, seed: int, rate: float, quick: bool
) -> dict[str, Any]:
    """Adapt the network in one way to some labels of each class, and score it."""
    began = time.perf_counter()
    train = Part(*(own.unflatten(0, (HALF, -1))[:, :labels].flatten(0, 1) for own in bench.train))
    epochs = STEPS // (len(train.images) // BATCH)
    torch.manual_seed(seed)
    model = adapting(bench.base, arm)
    fit_images(
        model,
        *train,
        epochs=1 if quick else epochs,
        batch_size=BATCH,
        learning_rate=rate,
        seed=seed,
        augment=turned,
    )
    record = {
        "system": arm,
        "labels": labels,
        "seed": seed,
        "learning_rate": rate,
        "accuracy": accuracy(model, *bench.test),
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "seconds": time.perf_counter() - began,
    }
    print(record, file=sys.stderr)
    return record


def summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the table: one row per system and number of labels, over its seeds."""
    rows = []
    for labels in LABELS:
        for arm in ARMS:
            own = _of(records, labels, arm)
            rows.append(
                {
                    "labels per class": labels,
                    "trained": arm,
                    "seeds": len(own),
                    "trained parameters": own[0]["trained"],
                    "share": f"{_share(own):.1%}",
                    "learning rate": own[0]["learning_rate"],
                    "OA %": percent([r["accuracy"] for r in own]),
                }
            )
    return rows


def conclude(records: Sequence[dict[str, Any]]) -> str:
    """Say in words what the numbers say of the claim, also where it does not hold."""
    share = _share(_of(records, LABELS[0], OURS))
    words = [_conclude_accuracy(records, labels) for labels in LABELS]
    return (
        f"{' '.join(words)} It trains {share:.1%} of the parameters, head included, of at most {SHARE:.0%}: "
        f"{verdict(share <= SHARE)}."
    )


def _conclude_accuracy(records: Sequence[dict[str, Any]], labels: int) -> str:
    points = {arm: 100 * mean(r["accuracy"] for r in _of(records, labels, arm)) for arm in ARMS}
    gain, behind = points[OURS] - points[PROBE], points[OURS] - points[FULL]
    return (
        f"With {labels} labels per class AdaptFormer is {gain:+.1f} points of OA from the linear probe, where the "
        f"claim demands {GAIN:+.1f}: {verdict(gain >= GAIN)}; {behind:+.1f} points from full fine-tuning, and may be "
        f"{SLACK:.1f} below: {verdict(behind >= -SLACK)}; and {points[OURS] - points[LORA]:+.1f} points from LoRA of "
        "its size."
    )


def _of(records: Sequence[dict[str, Any]], labels: int, arm: str) -> list[dict[str, Any]]:
    return [r for r in records if (r["labels"], r["system"]) == (labels, arm)]


def _share(records: Sequence[dict[str, Any]]) -> float:
    """Return the share of the parameters that train."""
    return float(records[0]["trained"] / records[0]["parameters"])


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:])
