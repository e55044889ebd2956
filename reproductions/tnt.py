"""TNT's claim in miniature: words inside patches see what a plain ViT's patches do not (arXiv 2103.00112).

Digits of 16 x 16 pixels in patches of 8 x 8: a patch is a quarter of the digit, so that what decides lies inside the
patches, and random shifts in training move it about in them; digits that stay in place are soon learnt by heart.
Three networks are trained by one recipe: TNT with 4 x 4 words per patch, TNT without attention among the words, and a
plain ViT of the same width whose feed-forwards are widened until it has no fewer parameters than TNT. The digits are
scikit-learn's (8 x 8, enlarged); each seed draws another division of them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

from vitreous.catalog.registry import create_model
from vitreous.catalog.results import percent, verdict, write_result
from vitreous.inference.cost import count_cost
from vitreous.tasks.miniature import accuracy, fit_images

SEEDS, EPOCHS, BATCH, TRAIN = 3, 20, 32, 1000
SHIFT = 2  # pixels, at most
SIZE = {"bands": 1, "num_classes": 10, "image_size": 16}
OUTER = {"dim": 48, "depth": 3, "heads": 3, "token_size": 8}
INNER = {"inner_dim": 12, "inner_heads": 2, "inner_stride": 2, "mlp_ratio": 4.0}
OURS, SILENT, PLAIN = ARMS = ("TNT", "TNT without word attention", "ViT")

# What the claim demands: points of accuracy, and the inner path's share of TNT-S.
GAIN, SLACK = 1.0, 0.3
SHARE = 0.25

RESULT = Path(__file__).parent / "results" / "tnt.json"


def main(quick: bool = False) -> None:
    """Measure everything and write ``results/tnt.json``; ``quick`` runs it all in little and writes nothing."""
    started = time.perf_counter()
    records = []
    for seed in range(1 if quick else SEEDS):
        data = digits(seed)
        for arm in ARMS:
            records.append(measure(arm, seed, data, epochs=1 if quick else EPOCHS))
            print(records[-1], file=sys.stderr)
    share = inner_share()
    if quick:
        return
    write_result(
        RESULT,
        title="tnt: words inside patches (digits)",
        command="vitreous reproduce tnt",
        rows=summary(records),
        conclusion=conclude(records, share),
        epochs=EPOCHS,
        inner_share=share,
        seconds=time.perf_counter() - started,
        runs=records,
    )


def digits(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return images ``(count, 1, 16, 16)`` around 0 and classes: to train with, then to test with."""
    loaded = load_digits()
    images = torch.as_tensor(loaded.images, dtype=torch.float32)[:, None] / 8 - 1
    images = F.interpolate(images, scale_factor=2, mode="bilinear")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    classes = torch.as_tensor(loaded.target)
    train, test = order[:TRAIN], order[TRAIN:]
    return images[train], classes[train], images[test], classes[test]


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Move each image up, down, left or right; what enters is empty."""
    padded = F.pad(images, (SHIFT,) * 4, value=-1.0)
    places = padded.unfold(2, images.shape[2], 1).unfold(3, images.shape[3], 1)
    down, right = torch.randint(0, 2 * SHIFT + 1, (2, len(images)), generator=generator)
    return places[torch.arange(len(images)), :, down, right]


def build(arm: str) -> torch.nn.Module:
    """Return a network with fresh weights."""
    if arm != PLAIN:
        return create_model("tnt_test", **SIZE, **OUTER, **INNER, word_attention=arm == OURS)
    wanted, ratio = parameters(build(OURS)), 4.0
    while parameters(model := create_model("vit_test", **SIZE, **OUTER, mlp_ratio=ratio)) < wanted:
        ratio += 0.25
    return model


def parameters(model: torch.nn.Module) -> int:
    """Return the number of weights."""
    return sum(p.numel() for p in model.parameters())


def measure(
    arm: str, seed: int, data: tuple[Tensor, Tensor, Tensor, Tensor], epochs: int
) -> dict[str, Any]:
    """Train and score one network."""
    torch.manual_seed(seed)
    model, started = build(arm), time.perf_counter()
    fit_images(model, *data[:2], epochs=epochs, batch_size=BATCH, seed=seed, augment=shifted)
    return {
        "system": arm,
        "seed": seed,
        "seconds": time.perf_counter() - started,
        "accuracy": accuracy(model, *data[2:]),
        "parameters": parameters(model),
        "macs": count_cost(model, 1, 16).macs,
    }


def inner_share() -> float:
    """Return the share of TNT-S's multiply-adds that a plain ViT of its width and depth does without."""
    shape = {"bands": 3, "num_classes": 1000, "image_size": 224}
    with torch.device("meta"):
        macs = [
            count_cost(create_model(name, **shape), 3, 224).macs
            for name in ("vit_small", "tnt_small")
        ]
    return 1 - macs[0] / macs[1]


def summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the table: one row per network, over its seeds."""
    rows = []
    for arm in dict.fromkeys(r["system"] for r in records):
        own = [r for r in records if r["system"] == arm]
        rows.append(
            {
                "network": arm,
                "seeds": len(own),
                "parameters": own[0]["parameters"],
                "multiply-adds, M": round(own[0]["macs"] / 1e6, 2),
                "accuracy %": percent([r["accuracy"] for r in own]),
            }
        )
    return rows


def conclude(records: Sequence[dict[str, Any]], share: float) -> str:
    """Say in words what the numbers say of the claim, also where it does not hold."""
    points = {arm: [100 * r["accuracy"] for r in records if r["system"] == arm] for arm in ARMS}
    ours, silent, plain = (mean(points[arm]) for arm in ARMS)
    gains = [a - b for a, b in zip(points[OURS], points[PLAIN], strict=True)]
    spread = "less" if abs(mean(gains)) < stdev(gains) else "more"
    return (
        f"TNT is {ours - plain:+.1f} points from the plain ViT, where the claim demands {GAIN:+.1f}: "
        f"{verdict(ours >= plain + GAIN)}. Seed by seed it is {', '.join(f'{gain:+.1f}' for gain in gains)}: the mean "
        f"is {spread} than its spread. It is {ours - silent:+.1f} from itself without attention among words; that it "
        f"is at most {SLACK} behind: {verdict(ours >= silent - SLACK)}. Of TNT-S's multiply-adds a plain ViT of its "
        f"width does without {share:.0%}, less than {SHARE:.0%}: {verdict(share < SHARE)}."
    )


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:])
