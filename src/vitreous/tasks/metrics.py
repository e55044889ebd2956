"""Accuracy of a map: the confusion matrix and what remote sensing reads from it.

Overall accuracy (OA), average accuracy (AA, the mean producer's accuracy over the classes that are tested),
Cohen's kappa, and per class the producer's accuracy (recall), the user's accuracy (precision) and F1; see
Congalton & Green, *Assessing the Accuracy of Remotely Sensed Data*. A test pixel without a prediction is an
error, never left out: it has a column of its own. The mean intersection over union (mIoU) averages, over the classes
that are tested, the pixels that are of a class in truth and map by those that are in either (Everingham et al., *The Pascal
Visual Object Classes Challenge*, 2010).

Intervals are percentiles of a bootstrap. Neighbouring pixels err together, so it resamples blocks of the scene rather
than pixels, or whole scenes where there are several (the cluster bootstrap: Davison & Hinkley, *Bootstrap Methods and their Application*, 3.8; blocks in space:
Lahiri, *Resampling Methods for Dependent Data*, 12).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vitreous.data.roles import Blocks
from vitreous.errors import VitreousError

INTERVAL = (2.5, 97.5)  # percentiles of the bootstrap

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def confusion_of(
    truth: npt.NDArray[np.integer[Any]], predicted: npt.NDArray[np.integer[Any]], num_classes: int
) -> Ints:
    """Count how often each class was mapped as what.

    Args:
        truth: ``(n,)`` classes 1..K.
        predicted: ``(n,)`` classes 1..K, 0 where there is no prediction.
        num_classes: K.

    Returns:
        ``(K, K + 1)``; rows are the truth, columns the map, the last column has no prediction.

    Raises:
        ValueError: the arrays differ in length or hold other numbers.
    """
    truth, predicted = np.asarray(truth).ravel(), np.asarray(predicted).ravel()
    if truth.shape != predicted.shape:
        raise ValueError(f"{truth.size} true classes for {predicted.size} predictions")
    if truth.size and not (truth.min() >= 1 and truth.max() <= num_classes):
        raise ValueError(f"true classes from {truth.min()} to {truth.max()} of {num_classes}")
    if truth.size and not (predicted.min() >= 0 and predicted.max() <= num_classes):
        raise ValueError(
            f"predicted classes from {predicted.min()} to {predicted.max()} of {num_classes}"
        )
    cells = truth.astype(np.int64) * (num_classes + 1) + predicted - (num_classes + 1)
    counts = np.bincount(cells, minlength=num_classes * (num_classes + 1))
    return np.roll(counts.reshape(num_classes, num_classes + 1), -1, axis=1)


def oa_aa_kappa(confusion: Ints) -> tuple[float, float, float]:
    """Return OA, AA and kappa of a confusion matrix of :func:`confusion_of`, each as a fraction.

    AA averages over the classes that occur in the truth. Where chance alone would agree always (one class in
    truth and map), kappa is 0: such a map shows nothing beyond chance.

    Raises:
        VitreousError: the matrix is empty.
    """
    if confusion.sum() == 0:
        raise VitreousError(
            "There are no labelled pixels to measure accuracy on.", "Add test labels."
        )
    square = confusion[:, :-1]
    hits, rows, columns = np.diagonal(square), confusion.sum(axis=1), square.sum(axis=0)
    oa, aa, kappa, _ = _summary(hits[None], rows[None], columns[None])
    return float(oa[0]), float(aa[0]), float(kappa[0])


class Part(NamedTuple):
    """Test pixels of one scene.

    Attributes:
        truth: ``(n,)`` classes 1..K.
        predicted: ``(n,)`` classes 1..K; 0, no prediction, counts as wrong.
        blocks: the block of each pixel; None resamples pixels as if they were independent.
        name: of the scene.
    """

    truth: npt.NDArray[np.integer[Any]]
    predicted: npt.NDArray[np.integer[Any]]
    blocks: Blocks | None = None
    name: str = ""


def scores(
    truth: npt.NDArray[np.integer[Any]],
    predicted: npt.NDArray[np.integer[Any]],
    class_names: Sequence[str],
    *,
    blocks: Blocks | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure a map against test pixels of one scene; see :func:`scores_of`."""
    return scores_of([Part(truth, predicted, blocks)], class_names, bootstrap=bootstrap, seed=seed)


def scores_of(
    parts: Iterable[Part],
    class_names: Sequence[str],
    *,
    each: bool = False,
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure maps against test pixels, with 95 % bootstrap intervals.

    The intervals resample whole blocks of a scene: with as many draws as there are blocks, each draw brings all test
    pixels of a block. They say what another choice of places in this scene would give; another scene or another year
    may differ by more. Of several scenes whole scenes are resampled instead.

    Args:
        parts: the test pixels of each scene; they are counted one after the other, so memory does not grow.
        class_names: K names.
        each: also return a row of figures for each scene.
        bootstrap: number of resamples.
        seed: of the resampling.

    Returns:
        ``oa``, ``aa``, ``kappa``, ``miou`` and ``oa_ci``, ``aa_ci``, ``kappa_ci``, ``miou_ci`` as ``[low, high]``, or None where there
        is a single block, which tells nothing of others; ``intervals`` with the ``method`` (``block bootstrap``, ``scene
        bootstrap`` or ``pixel bootstrap``), ``resamples``, ``blocks`` and ``block_size``; ``per_class`` with
        ``value``, ``name``, ``producer``, ``user``, ``f1``, ``iou``, ``support`` (None where a class is not tested or,
        for ``user``, never mapped); ``confusion`` K x K, rows truth, columns map; ``unclassified``, per true
        class the pixels without a prediction. With ``each`` also ``scenes``, a row of figures for each.

    Raises:
        VitreousError: there are no test pixels.
        ValueError: see :func:`confusion_of`, or ``bootstrap`` is less than 1.
    """
    if bootstrap < 1:
        raise ValueError(f"{bootstrap} bootstrap resamples")
    counted = [_counted(part, len(class_names)) for part in parts]
    confusion = np.sum([one.confusion for one in counted], axis=0)
    confusion = confusion.reshape(len(class_names), len(class_names) + 1).astype(np.int64)
    oa, aa, kappa = oa_aa_kappa(confusion)
    several = len(counted) > 1
    units = _scene_units(counted) if several else counted[0].units(confusion)
    side = None if several else counted[0].side
    by_pixel = not several and side is None
    intervals: list[list[float] | None] = [None] * 4
    if units.number.sum() > 1 or by_pixel:
        low, high = np.percentile(_resampled(units, bootstrap, seed), INTERVAL, axis=1)
        intervals = [[float(a), float(b)] for a, b in zip(low, high, strict=True)]
    found = {
        "oa": oa,
        "aa": aa,
        "kappa": kappa,
        "miou": mean_iou(confusion),
        "oa_ci": intervals[0],
        "aa_ci": intervals[1],
        "kappa_ci": intervals[2],
        "miou_ci": intervals[3],
        "intervals": {
            "method": f"{'scene' if several else 'pixel' if by_pixel else 'block'} bootstrap",
            "resamples": bootstrap,
            "blocks": None if by_pixel else len(units.number),
            "block_size": side,
        },
        "per_class": _per_class(confusion, class_names),
        "confusion": confusion[:, :-1].tolist(),
        "unclassified": confusion[:, -1].tolist(),
    }
    return found | ({"scenes": [_scene_row(one) for one in counted]} if each else {})


def mean_iou(confusion: Ints) -> float:
    """Return the mean intersection over union of the classes that occur in the truth."""
    square = confusion[:, :-1]
    parts = (np.diagonal(square), confusion.sum(axis=1), square.sum(axis=0))
    return float(_summary(*(part[None] for part in parts))[3][0])


@dataclass(frozen=True)
class _Counted:
    """What is known of the test pixels of one scene.

    Attributes:
        name: of the scene.
        confusion: ``(K, K + 1)``.
        blocks: counts by its blocks, None where pixels are units.
        side: of a block, None where pixels are units.
    """

    name: str
    confusion: Ints
    blocks: _Units | None
    side: int | None

    def units(self, confusion: Ints) -> _Units:
        """Return what is resampled of a single scene."""
        return _pixel_units(confusion) if self.blocks is None else self.blocks


def _counted(part: Part, num_classes: int) -> _Counted:
    truth, predicted, blocks, name = part
    confusion = confusion_of(truth, predicted, num_classes)
    units = None if blocks is None else _block_units(truth, predicted, blocks)
    return _Counted(name, confusion, units, None if blocks is None else blocks.side)


def _scene_units(counted: Sequence[_Counted]) -> _Units:
    """Return whole scenes as units."""
    stacked = np.stack([one.confusion for one in counted])
    tested = stacked.sum(axis=(0, 2)) > 0
    hits = np.diagonal(stacked[:, :, :-1], axis1=1, axis2=2)[:, tested]
    support = stacked.sum(axis=2)[:, tested]
    mapped = stacked[:, :, :-1].sum(axis=1)[:, tested]
    return _Units(np.ones(len(counted), dtype=np.int64), hits, support, mapped)


def _scene_row(one: _Counted) -> dict[str, Any]:
    oa, aa, kappa = oa_aa_kappa(one.confusion)
    return {
        "name": one.name,
        "pixels": int(one.confusion.sum()),
        "oa": oa,
        "aa": aa,
        "kappa": kappa,
        "miou": mean_iou(one.confusion),
    }


def _per_class(confusion: Ints, class_names: Sequence[str]) -> list[dict[str, Any]]:
    square = confusion[:, :-1]
    support, mapped = confusion.sum(axis=1).tolist(), square.sum(axis=0).tolist()
    rows = []
    for k, (name, hits) in enumerate(zip(class_names, np.diagonal(square).tolist(), strict=True)):
        rows.append(
            {
                "value": k + 1,
                "name": name,
                "producer": hits / support[k] if support[k] else None,
                "user": hits / mapped[k] if mapped[k] else None,
                "f1": 2 * hits / (support[k] + mapped[k]) if support[k] else None,
                "iou": hits / (support[k] + mapped[k] - hits) if support[k] else None,
                "support": support[k],
            }
        )
    return rows


class _Units(NamedTuple):
    """What a bootstrap draws from.

    Attributes:
        number: ``(units,)`` how many units there are of each kind.
        hits: ``(units, classes)`` pixels that are right in a unit, by class.
        support: ``(units, classes)`` its pixels by true class.
        mapped: ``(units, classes)`` its pixels by the class on the map.
    """

    number: Ints
    hits: Ints
    support: Ints
    mapped: Ints


def _pixel_units(confusion: Ints) -> _Units:
    """Return pixels as units; all pixels of a cell of the confusion matrix are of one kind."""
    rows, columns = np.nonzero(confusion)
    of_class = np.arange(confusion.shape[0])
    truth, mapped = rows[:, None] == of_class, columns[:, None] == of_class
    parts = (part.astype(np.int64) for part in (truth & mapped, truth, mapped))
    return _Units(confusion[rows, columns], *parts)


def _block_units(
    truth: npt.NDArray[np.integer[Any]], predicted: npt.NDArray[np.integer[Any]], blocks: Blocks
) -> _Units:
    """Return blocks as units. Classes without a pixel need no column: they count nowhere."""
    names, block = np.unique(blocks.of_pixel, return_inverse=True)
    classes = np.unique(truth)
    shape = (len(names), len(classes))

    def counts(chosen: npt.NDArray[np.bool_], of: npt.NDArray[np.integer[Any]]) -> Ints:
        cells = block[chosen] * len(classes) + np.searchsorted(classes, of[chosen])
        return np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape)

    everywhere = np.ones(len(truth), dtype=bool)
    hits = counts(truth == predicted, truth)
    mapped = counts(np.isin(predicted, classes), predicted)
    return _Units(np.ones(shape[0], dtype=np.int64), hits, counts(everywhere, truth), mapped)


def _resampled(units: _Units, count: int, seed: int) -> Floats:
    """Return OA, AA, kappa and mIoU of ``count`` resamples: ``(4, count)``.

    Drawing n units with replacement and counting them is one multinomial draw of n over the kinds of units, so no
    pixel is touched.
    """
    total = units.number.sum()
    draws = np.random.default_rng(seed).multinomial(total, units.number / total, size=count)
    return np.stack(_summary(draws @ units.hits, draws @ units.support, draws @ units.mapped))


def _summary(hits: Ints, support: Ints, mapped: Ints) -> tuple[Floats, Floats, Floats, Floats]:
    """Return OA, AA, kappa and mIoU, ``(samples,)``, from counts per class ``(samples, classes)``."""
    total = support.sum(axis=1)
    oa: Floats = hits.sum(axis=1) / total
    tested = support > 0
    aa: Floats = np.divide(hits, support, where=tested, out=np.zeros(hits.shape)).sum(axis=1)
    aa = aa / tested.sum(axis=1)
    chance = (support / total[:, None] * (mapped / total[:, None])).sum(axis=1)
    kappa: Floats = np.divide(oa - chance, 1 - chance, where=chance < 1, out=np.zeros(oa.shape))
    iou: Floats = np.divide(hits, support + mapped - hits, where=tested, out=np.zeros(hits.shape))
    return oa, aa, kappa, iou.sum(axis=1) / tested.sum(axis=1)
