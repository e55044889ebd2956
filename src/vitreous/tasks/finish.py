"""What becomes of a trained system's probabilities: the guide of a refinement, the refinement, calibration, novelty.

All of it is measured on what the system was trained with: the guide on valid pixels of the training scenes without their
labels, novelty on training spectra, and what is chosen or calibrated on validation pixels that it has not learned from.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from vitreous.data.blocks import TEST, TRAIN, VAL
from vitreous.data.pixels import spectra_at, spread_spectra
from vitreous.data.roles import Splits
from vitreous.inference.pixels import TILE, probabilities_at
from vitreous.inference.postprocess import (
    GUIDE_CHANNELS,
    LEAST_LIKELY,
    Novelty,
    Postprocess,
    Projection,
    at_temperature,
    finished,
    fit_novelty,
    fit_projection,
)
from vitreous.inference.windows import SceneClassifier
from vitreous.recipe import Recipe
from vitreous.tasks.division import learned_from, recipe_refinements, training_spectra
from vitreous.tasks.image_metrics import BINS, calibration_error
from vitreous.tasks.labelled import LabelledScenes

GUIDE_SCENES = 16  # training scenes that the guide is made from, at most
NOVELTY_PIXELS = 20_000  # training pixels, at most
JUDGED_PIXELS = 5_000  # validation or test pixels whose probabilities are looked at, at most
COLDEST, WARMEST = 0.02, 50.0  # temperatures that are looked at

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.int64]


def fit_postprocess(
    recipe: Recipe, data: LabelledScenes, splits: Splits, classifier: SceneClassifier
) -> Postprocess:
    """Return what becomes of the probabilities of a trained system.

    Args:
        recipe: the settings.
        data: the scenes and their labels.
        splits: who trained and who validates.
        classifier: what was trained.
    """
    after = Postprocess(guide=fit_guide(data, splits), novelty=fit_novelty_of(data, splits))
    held_out = learned_from(recipe, splits)
    candidates = [after.refined(one) for one in recipe_refinements(recipe)]
    if not held_out.scenes_with(VAL):
        if recipe.refine == "auto":
            warnings.warn(
                "Nothing could choose a refinement, because no validation pixels are left, and the map is not refined: name "
                "one, e.g. --refine domain_transform.",
                stacklevel=2,
            )
        return candidates[0]
    answers = [
        probabilities_of(finished(classifier, one), data, held_out, VAL) for one in candidates
    ]
    right = [float((found.argmax(axis=1) == truth).mean()) for found, truth in answers]
    best = int(np.argmax(right))  # none, where the refinement brings nothing
    return candidates[best].model_copy(update={"temperature": fit_temperature(*answers[best])})


def fit_guide(data: LabelledScenes, splits: Splits) -> Projection:
    """Return what guides a refinement: a few principal components of the training scenes.

    They are those of pixels spread over the scenes; of scenes with next to no valid ground, those of the training pixels.
    """
    chosen = splits.scenes_with(TRAIN)
    scenes = [data[k].scene for k in chosen[:: -(-len(chosen) // GUIDE_SCENES)]]
    spectra = [spread_spectra(scene, data.contract.select(scene)) for scene in scenes]
    found = np.concatenate(spectra)
    if len(found) <= GUIDE_CHANNELS:
        found = training_spectra(data, splits, NOVELTY_PIXELS)
    return fit_projection(found, GUIDE_CHANNELS)


def fit_novelty_of(data: LabelledScenes, splits: Splits) -> Novelty | None:
    """Return what tells how new a spectrum is to those of the training pixels; None where they are too few."""
    spectra, classes = [], []
    for k, pixels in splits.some(TRAIN, NOVELTY_PIXELS):
        scene = data[k].scene
        spectra.append(spectra_at(scene, data.contract.select(scene), pixels))
        classes.append(data[k].classes_at(pixels))
    return fit_novelty(np.concatenate(spectra), np.concatenate(classes))


def probabilities_of(
    classifier: SceneClassifier, data: LabelledScenes, splits: Splits, role: int
) -> tuple[Floats, Ints]:
    """Return the probabilities of some pixels with a role, and which column is the true class: ``(n, classes)``, ``(n,)``.

    Pixels without a prediction are left out.
    """
    found, truth = [], []
    for k, pixels in splits.some(role, JUDGED_PIXELS):
        found.append(probabilities_at(classifier, data[k].scene, pixels, TILE))
        truth.append(data[k].classes_at(pixels) - 1)
    probabilities, classes = np.concatenate(found), np.concatenate(truth)
    valid = np.isfinite(probabilities).all(axis=1)
    return probabilities[valid], classes[valid]


# -- calibration ------------------------------------------------------------------------------------------


def fit_temperature(probabilities: Floats, truth: Ints) -> float | None:
    """Return the temperature at which the true classes are most likely (Guo et al., ICML 2017).

    Args:
        probabilities: ``(n, classes)``.
        truth: ``(n,)`` columns of the true classes.

    Returns:
        What the logarithms of the probabilities are divided by; None without a pixel.
    """
    from scipy.optimize import minimize_scalar

    if not len(truth):
        return None

    def loss(logarithm: float) -> float:
        found = at_temperature(probabilities.T, float(np.exp(logarithm)))
        likely = found[truth, np.arange(len(truth))].astype(np.float64)
        return float(-np.log(np.maximum(likely, LEAST_LIKELY)).mean())

    bounds = (float(np.log(COLDEST)), float(np.log(WARMEST)))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))


def reliability(probabilities: Floats, truth: Ints) -> dict[str, Any]:
    """Compare how sure a classifier was with how often it was right.

    Args:
        probabilities: ``(n, classes)``.
        truth: ``(n,)`` columns of the true classes.

    Returns:
        ``pixels``, ``ece`` (the expected calibration error) and ``bins`` of equal width of the largest probability, with
        ``pixels``, mean ``confidence`` and ``accuracy`` (None in an empty one).
    """
    sure, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    place = np.minimum((sure * BINS).astype(int), BINS - 1)
    count = np.bincount(place, minlength=BINS)

    def means(values: Floats | npt.NDArray[np.bool_]) -> list[float | None]:
        sums = np.bincount(place, weights=values, minlength=BINS)
        return [float(s / n) if n else None for s, n in zip(sums, count, strict=True)]

    rows = zip(count.tolist(), means(sure), means(right), strict=True)
    return {
        "pixels": len(truth),
        "ece": calibration_error(sure, right),
        "bins": [{"pixels": n, "confidence": c, "accuracy": a} for n, c, a in rows],
    }


def calibration_figures(
    after: Postprocess | None, classifier: SceneClassifier, data: LabelledScenes, splits: Splits
) -> dict[str, Any]:
    """Return how well probabilities are calibrated on test pixels, as ``metrics.json`` has it.

    Args:
        after: what becomes of the classifier's probabilities.
        classifier: as it was trained.
        data: the scenes and their labels.
        splits: who tests.

    Returns:
        ``temperature`` (None where there was nothing to fit it on) and the :func:`reliability` of the ``test`` pixels;
        with a temperature also their ``ece_before``.
    """
    temperature = None if after is None else after.temperature
    plain = None if after is None else after.model_copy(update={"temperature": None})
    found, truth = probabilities_of(finished(classifier, plain), data, splits, TEST)
    if not len(truth):
        return {"temperature": temperature, "test": None}
    before = reliability(found, truth)
    if temperature is None:
        return {"temperature": None, "test": before}
    measured = reliability(at_temperature(found.T, temperature).T, truth)
    return {"temperature": temperature, "ece_before": before["ece"], "test": measured}
