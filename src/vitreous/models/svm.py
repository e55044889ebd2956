"""Support vector machine with a Gaussian kernel, on spectra or on spectra and spatial means."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from vitreous.catalog.card import Card
from vitreous.data.contract import BandContract
from vitreous.errors import ConfigError
from vitreous.models._pixel_estimator import PixelEstimator

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
    variants={"svm": {"spatial_window": 1}, "svm_spatial": {"spatial_window": 13}},
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
        max_pixels: int = 10_000,
        seed: int = 0,
    ) -> None:
        if not 0 < C < np.inf:
            raise ConfigError(f"C is {C}.", "Use a positive number.")
        if gamma not in ("scale", "auto") and (isinstance(gamma, str) or not 0 < gamma < np.inf):
            raise ConfigError(f"gamma is {gamma}.", "Use 'scale', 'auto' or a positive number.")
        super().__init__(
            {"C": C, "gamma": gamma},
            num_classes=num_classes,
            contract=contract,
            spatial_window=spatial_window,
            max_pixels=max_pixels,
            seed=seed,
        )

    def _make(self) -> Any:
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import SVC

        machine = SVC(C=self.settings["C"], gamma=self.settings["gamma"], break_ties=True)
        return make_pipeline(StandardScaler(), machine)

    def _scores(self, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        from scipy.special import softmax

        decisions = self._estimator.decision_function(rows)
        if decisions.ndim == 1:  # two classes have one decision value, positive for the second
            decisions = np.stack([np.zeros_like(decisions), decisions], axis=1)
        scores: npt.NDArray[np.float64] = softmax(decisions, axis=1)
        return scores


build = SVM.build
from_state = SVM.from_state
