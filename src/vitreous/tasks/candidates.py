"""What ``--model auto`` compares, and what a fold of each costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vitreous.errors import ConfigError, did_you_mean
from vitreous.inference.postprocess import DEFAULT_REFINEMENT, Refinement, make_refinement
from vitreous.recipe import Recipe
from vitreous.tasks import runs
from vitreous.tasks.division import own_size

TYPICAL_PIXELS, TYPICAL_BANDS = 1000, 200  # what the seconds of a candidate are for
NARROWER = (
    4.0,
    3.0,
    2.0,
    1.0,
)  # of a domain transform: the first that a receptive field has room for


@dataclass(frozen=True)
class Candidate:
    """A system with the settings that it is compared with.

    Attributes:
        name: of the candidate.
        words: what it is, for the report.
        changes: of the recipe.
        seconds: that one fold takes on two cores, of :data:`TYPICAL_PIXELS` and :data:`TYPICAL_BANDS`.
        growth: power of the number of training pixels that the time grows with.
    """

    name: str
    words: str
    seconds: float
    growth: float
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def settled(self) -> dict[str, Any]:
        """The settings that a comparison settles: nothing validates, and nothing was learned before."""
        alone = {"val_fraction": 0.0, "refit": False, "devices": 1, "init": None}
        return {**alone, **self.changes}

    def recipe(self, asked: Recipe) -> Recipe:
        """Return the settings of its training."""
        return asked.model_copy(update=self.settled)

    def fold_seconds(self, pixels: int, bands: int) -> float:
        """Return what a fold of so many training pixels takes on two cores, roughly."""
        times = max(pixels / TYPICAL_PIXELS, 0.1) ** self.growth
        return self.seconds * times * max(bands / TYPICAL_BANDS, 0.25)


_MNF = {"spectra": "none", "reduction": "mnf", "components": 20, "whiten": True}
_BANDS = {"reduction": "none"}

CANDIDATES = {
    candidate.name: candidate
    for candidate in (
        Candidate(
            "ls_svm_mnf",
            "least-squares SVM, noise fraction",
            1.2,
            0.7,
            {"model": "ls_svm", "model_args": {}, **_MNF},
        ),
        Candidate(
            "lda",
            "LDA, SNV",
            1.6,
            0.5,
            {"model": "lda", "model_args": {}, "spectra": "snv", **_BANDS},
        ),
        Candidate(
            "svm_mnf",
            "SVM with balanced classes, noise fraction",
            2.0,
            1.5,
            {"model": "svm", "model_args": {"balanced": True}, **_MNF},
        ),
        Candidate(
            "ls_svm_mnf_9x9",
            "least-squares SVM, noise fraction of the pixel and of 9 x 9 pixels",
            1.5,
            1.5,
            {"model": "ls_svm", "model_args": {"spatial_window": 9}, **_MNF},
        ),
        Candidate(
            "random_forest",
            "random forest, noise fraction",
            4.0,
            1.0,
            {"model": "random_forest", "model_args": {}, **_MNF},
        ),
        Candidate(
            "svm_snv",
            "SVM, SNV",
            7.0,
            1.5,
            {"model": "svm", "model_args": {}, "spectra": "snv", **_BANDS},
        ),
        Candidate(
            "gradient_boosting",
            "gradient boosting, noise fraction",
            5.0,
            0.7,
            {"model": "gradient_boosting", "model_args": {}, **_MNF},
        ),
        Candidate(
            "spectral_mlp",
            "perceptron on single spectra, noise fraction",
            15.0,
            0.3,
            {
                "model": "spectral_mlp",
                "model_args": {},
                "patch_size": 1,
                "mode": "patch",
                "patch_norm": False,
                # It is small and sees little: held back any further, it learns too little in so many steps.
                "mixup": 0.0,
                "noise": 0.0,
                "label_smoothing": 0.0,
                "class_weights": "balanced",
                **_MNF,
            },
        ),
        Candidate(
            "dense_fpn",
            "ConvNeXt and FPN, all pixels of a tile at once",
            110.0,
            0.3,
            {
                "model": "convnext_tiny",
                "model_args": {"dims": [32, 64, 96, 128], "depths": [2, 2, 2, 2]},
                "mode": "dense",
                "decoder": "fpn",
                "spectra": "none",
                "reduction": "pca",
                "components": 15,
                "whiten": False,
                "patch_norm": False,
            },
        ),
    )
}


def chosen_candidates(recipe: Recipe) -> list[Candidate]:
    """Return what a recipe compares, the quickest first.

    Raises:
        ConfigError: it names a candidate that does not exist.
    """
    for name in recipe.candidates:
        if name not in CANDIDATES:
            raise ConfigError(
                f"Unknown candidate: {name}. 'auto' compares {', '.join(CANDIDATES)}.",
                did_you_mean(name, CANDIDATES),
            )
    names = dict.fromkeys(recipe.candidates or CANDIDATES)
    return sorted((CANDIDATES[name] for name in names), key=lambda one: one.seconds)


def first_of(candidates: Sequence[Candidate]) -> Candidate:
    """Return the candidate that is trained where nothing could compare them: the first in the table."""
    order = list(CANDIDATES)
    return min(candidates, key=lambda one: order.index(one.name))


def has_networks(candidates: list[Candidate]) -> bool:
    """Tell whether any candidate learns by gradient descent."""
    return any(runs.is_network(one.changes["model"]) for one in candidates)


def refinement_for(candidate: Candidate, recipe: Recipe, room: float) -> Refinement | None:
    """Return the refinement that a candidate is compared with, None where none is asked for or fits.

    Args:
        candidate: the candidate.
        recipe: the settings; a refinement that they name is taken as it is.
        room: side of the square of pixels that a prediction may depend on.
    """
    if recipe.refine != "auto":
        return make_refinement(recipe.refine, recipe.refine_args)
    if recipe.refine_args:
        return make_refinement(DEFAULT_REFINEMENT, recipe.refine_args)
    settings = candidate.recipe(recipe)
    own = own_size(settings, settings.model)
    for spatial in NARROWER:
        found = make_refinement(DEFAULT_REFINEMENT, {"spatial": spatial})
        assert found is not None
        if found.reach > 0 and own + 2 * found.reach <= room:
            return found
    return None
