"""Least-squares support vector machine with a Gaussian kernel, on spectra or their components."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import numpy.typing as npt

from vitreous.catalog.card import Card
from vitreous.data.contract import BandContract
from vitreous.errors import ConfigError
from vitreous.models._pixel_estimator import PixelEstimator

SHARPNESS = 8.0  # of the softmax: answers lie between 0 and 1

CARD = Card(
    slug="ls_svm",
    title="Least squares support vector machine classifiers",
    kind="estimator",
    summary="A Gaussian-kernel machine whose every training pixel pulls by its squared error, "
    "solved as one system of linear equations, with equal weight for all classes.",
    when="A few thousand training pixels at most, from fields whose sizes say little about the "
    "scene: on minimum-noise-fraction components it was the best pixel classifier on held-out "
    "blocks.",
    paper="Suykens and Vandewalle, Neural Processing Letters 9(3), 293-300",
    year=1999,
    source_licence="scikit-learn: BSD-3-Clause (used as a library)",
    tasks=["classify"],
    variants={"ls_svm": {"ridge": 0.01}},
    published=[
        {
            "variant": "ls_svm",
            "protocol": "Indian Pines, fixed 695 training and 9671 test pixels",
            "oa": 0.731,
        },
    ],
    recipe={"ridge": 0.01, "gamma": "1 / features", "balanced": True},
    notes=[
        "Usage: Best with --reduction mnf --components 20 --whiten.",
        "Differs from the reference: No bias term: the mean of the class indicators is subtracted "
        "instead, which makes it kernel ridge regression on them (Saunders, Gammerman and Vovk, "
        "ICML 1998).",
        "Usage: Scores are a softmax of the answers; they rank the classes, and a temperature "
        "calibrates them.",
        "Published figures: The published row was measured here with these settings; it is not "
        "from a paper.",
    ],
)


class LeastSquaresSVM(PixelEstimator):
    """Kernel ridge regression on class indicators; the largest answer wins.

    Args:
        num_classes: classes 1..K.
        contract: the bands it is trained on.
        ridge: how much of the kernel's diagonal is added to it: more is smoother.
        width: of the kernel: its gamma is this over the number of features, which are standardised.
        balanced: let every class weigh the same, however many pixels it has.
        spatial_window: see :class:`PixelEstimator`.
        max_pixels: see :class:`PixelEstimator`; memory grows with the square of this, and time with its cube.
        seed: of the choice of training pixels beyond ``max_pixels``.

    Raises:
        ConfigError: a setting makes no sense.
    """

    slug = "ls_svm"

    def __init__(
        self,
        *,
        num_classes: int,
        contract: BandContract,
        ridge: float = 0.01,
        width: float = 1.0,
        balanced: bool = True,
        spatial_window: int = 1,
        max_pixels: int = 5000,
        seed: int = 0,
    ) -> None:
        for name, value in (("ridge", ridge), ("width", width)):
            if not 0 < value < np.inf:
                raise ConfigError(f"{name} is {value}.", "Use a positive number.")
        super().__init__(
            {"ridge": ridge, "width": width, "balanced": balanced},
            num_classes=num_classes,
            contract=contract,
            spatial_window=spatial_window,
            max_pixels=max_pixels,
            seed=seed,
        )

    def _make(self) -> Any:
        return _Machine(self.settings)

    def _scores(self, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        from scipy.special import softmax

        answers = self._estimator.answers(rows)
        scores: npt.NDArray[np.float64] = softmax(SHARPNESS * answers, axis=1)
        return scores


class _Machine:
    """Kernel ridge regression of class indicators on standardised features."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings

    def fit(self, rows: npt.NDArray[Any], classes: npt.NDArray[np.int64]) -> Self:
        from sklearn.kernel_ridge import KernelRidge
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        self.classes_, numbers, counts = np.unique(classes, return_inverse=True, return_counts=True)
        weights = None
        if self.settings["balanced"]:
            weights = len(classes) / len(counts) / counts[numbers]
        gamma = self.settings["width"] / rows.shape[1]
        wanted = np.eye(len(counts))[numbers] - 1 / len(counts)
        machine = KernelRidge(alpha=self.settings["ridge"], kernel="rbf", gamma=gamma)
        self._machine = make_pipeline(StandardScaler(), machine)
        self._machine.fit(rows, wanted, kernelridge__sample_weight=weights)
        return self

    def answers(self, rows: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return ``(n, classes)``: near ``1 - 1 / classes`` for the right one, ``-1 / classes`` for others."""
        found: npt.NDArray[np.float64] = self._machine.predict(rows)
        return found

    def predict(self, rows: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Return the classes with the largest answers."""
        found: npt.NDArray[np.int64] = self.classes_[self.answers(rows).argmax(1)]
        return found


build = LeastSquaresSVM.build
from_state = LeastSquaresSVM.from_state
