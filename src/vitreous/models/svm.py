"""Support vector machine with a Gaussian kernel, on spectra or on spectra and spatial means."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from vitreous.catalog.card import Card
from vitreous.data.contract import BandContract
from vitreous.errors import ConfigError
from vitreous.models._pixel_estimator import Ints, PixelEstimator

COSTS = (1.0, 10.0, 100.0, 1000.0)  # C, of which a search chooses
WIDTHS = (0.1, 1.0, 10.0)  # gamma, times 1 / (features x variance)
FOLDS, SEARCHED = 5, 2000  # of cross-validation; training pixels that it takes at most

CARD = Card(
    slug="svm",
    title="Support vector machine with a radial basis function kernel",
    kind="estimator",
    summary="SVM with a Gaussian kernel on standardised spectra, optionally with the mean "
    "spectrum of the neighbourhood.",
    when="First choice where the area to be mapped lies away from the labelled fields: on "
    "spectra alone it was the most accurate system on held-out blocks, and trains in seconds. "
    "svm_spatial is better only next to training pixels.",
    paper="Melgani and Bruzzone, IEEE TGRS 42(8), 1778-1790",
    year=2004,
    source_licence="scikit-learn: BSD-3-Clause (used as a library)",
    tasks=["classify"],
    variants={
        "svm": {"spatial_window": 1},
        "svm_search": {"spatial_window": 1, "search": True},
        "svm_spatial": {"spatial_window": 13},
    },
    published=[
        {
            "variant": "svm",
            "protocol": "Indian Pines, fixed 695 training and 9671 test pixels",
            "oa": 0.735,
        },
        {
            "variant": "svm_spatial",
            "protocol": "Indian Pines, fixed 695 training and 9671 test pixels",
            "oa": 0.881,
        },
    ],
    recipe={"C": 100.0, "gamma": "scale"},
    notes=[
        "Usage: svm_search chooses C from 1, 10, 100, 1000 and gamma from 0.1, 1, 10 times "
        "1 / (features x variance) by five-fold cross-validation, with whole blocks of the scene "
        "left out, on 2000 training pixels at most.",
        "Usage: Scores are a softmax of the one-vs-rest decision values: they rank the classes "
        "but are not calibrated.",
        "Published figures: The published rows were measured here with these settings; they are "
        "not from a paper.",
    ],
)


class SVM(PixelEstimator):
    """Gaussian-kernel SVM; ties between one-vs-one votes are broken by the decision values.

    Args:
        num_classes: classes 1..K.
        contract: the bands it is trained on.
        spatial_window: see :class:`PixelEstimator`.
        C: penalty of a training pixel on the wrong side of the margin.
        gamma: inverse kernel width: ``scale`` (1 / (features x variance)), ``auto`` or a positive number.
        search: choose both by cross-validation over blocks of the scene instead.
        balanced: let pixels of rare classes cost more, so that every class costs as much as the others: where training
            pixels were drawn from a few fields, their shares say little about the scene's.
        max_pixels: see :class:`PixelEstimator`; the fit grows with the square of this.
        seed: of the choice of training pixels beyond ``max_pixels``.

    Raises:
        ConfigError: a setting makes no sense.
    """

    slug = "svm"

    def __init__(
        self,
        *,
        num_classes: int,
        contract: BandContract,
        spatial_window: int = 1,
        C: float = 100.0,
        gamma: float | str = "scale",
        search: bool = False,
        balanced: bool = False,
        max_pixels: int = 10_000,
        seed: int = 0,
    ) -> None:
        if not 0 < C < np.inf:
            raise ConfigError(f"C is {C}.", "Use a positive number.")
        if gamma not in ("scale", "auto") and (isinstance(gamma, str) or not 0 < gamma < np.inf):
            raise ConfigError(f"gamma is {gamma}.", "Use 'scale', 'auto' or a positive number.")
        super().__init__(
            {"C": C, "gamma": gamma, "search": search, "balanced": balanced},
            num_classes=num_classes,
            contract=contract,
            spatial_window=spatial_window,
            max_pixels=max_pixels,
            seed=seed,
        )

    def _choose_settings(self, blocks: Ints | None) -> None:
        """Choose C and gamma on the training pixels; a saved estimator keeps what was chosen."""
        if not self.settings["search"]:
            return
        from sklearn.model_selection import GridSearchCV

        draw = np.random.default_rng(self.seed)
        some = draw.permutation(len(self._classes))[:SEARCHED]
        rows, classes = self._features[some], self._classes[some]
        # After standardisation the features' variance is 1, so 'scale' is 1 / features.
        grid = {"svc__C": COSTS, "svc__gamma": [w / rows.shape[1] for w in WIDTHS]}
        folds = _folds(classes, None if blocks is None else blocks[some], self.seed)
        if folds:
            found = GridSearchCV(self._make(), grid, cv=folds, scoring="accuracy").fit(
                rows, classes
            )
            self.settings |= {name: found.best_params_[f"svc__{name}"] for name in ("C", "gamma")}
        self.settings["search"] = False

    def _make(self) -> Any:
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import SVC

        machine = SVC(
            C=self.settings["C"],
            gamma=self.settings["gamma"],
            class_weight="balanced" if self.settings["balanced"] else None,
            break_ties=True,
        )
        return make_pipeline(StandardScaler(), machine)

    def _scores(self, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        from scipy.special import softmax

        decisions = self._estimator.decision_function(rows)
        if decisions.ndim == 1:  # two classes have one decision value, positive for the second
            decisions = np.stack([np.zeros_like(decisions), decisions], axis=1)
        scores: npt.NDArray[np.float64] = softmax(decisions, axis=1)
        return scores


def _folds(classes: Ints, blocks: Ints | None, seed: int) -> list[tuple[Ints, Ints]]:
    """Divide pixels for cross-validation, whole blocks apart where there are several; empty where none can be made."""
    from sklearn.model_selection import StratifiedGroupKFold

    groups = np.arange(len(classes)) if blocks is None else blocks
    count = min(FOLDS, len(np.unique(groups)))
    if count < 2:
        return []
    divided = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes with fewer pixels than folds
        folds = list(divided.split(classes, classes, groups))
    return [(train, test) for train, test in folds if len(np.unique(classes[train])) > 1]


build = SVM.build
from_state = SVM.from_state
