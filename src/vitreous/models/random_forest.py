"""Random forest on spectra."""

from __future__ import annotations

from typing import Any

from vitreous.catalog.card import Card
from vitreous.data.contract import BandContract
from vitreous.errors import ConfigError
from vitreous.models._pixel_estimator import PixelEstimator

MAX_TREES = 10_000

CARD = Card(
    slug="random_forest",
    title="Random Forests",
    kind="estimator",
    summary="Averaged votes of randomised decision trees on the spectrum, optionally with the "
    "mean spectrum of the neighbourhood.",
    when="Mixed units, outliers or many labelled pixels; needs no tuning. Second to the SVM on "
    "held-out blocks.",
    paper="Breiman, Machine Learning 45, 5-32",
    year=2001,
    source_licence="scikit-learn: BSD-3-Clause (used as a library)",
    tasks=["classify"],
    variants={"random_forest": {"trees": 300}},
    published=[
        {
            "variant": "random_forest",
            "protocol": "Indian Pines, fixed 695 training and 9671 test pixels",
            "oa": 0.705,
        },
    ],
    recipe={"trees": 300},
    notes=[
        "Published figures: The published row was measured here with these settings; it is not "
        "from a paper.",
    ],
)


class RandomForest(PixelEstimator):
    """Random forest of fully grown trees; scores are the mean class shares of the leaves.

    Args:
        num_classes: classes 1..K.
        contract: the bands it is trained on.
        trees: number of trees.
        spatial_window: see :class:`PixelEstimator`.
        max_pixels: see :class:`PixelEstimator`.
        seed: of the trees, and of the choice of training pixels beyond ``max_pixels``.

    Raises:
        ConfigError: a setting makes no sense.
    """

    slug = "random_forest"

    def __init__(
        self,
        *,
        num_classes: int,
        contract: BandContract,
        trees: int = 300,
        spatial_window: int = 1,
        max_pixels: int = 100_000,
        seed: int = 0,
    ) -> None:
        if not 1 <= trees <= MAX_TREES:
            raise ConfigError(f"trees is {trees}.", f"Use a number from 1 to {MAX_TREES}.")
        super().__init__(
            {"trees": trees},
            num_classes=num_classes,
            contract=contract,
            spatial_window=spatial_window,
            max_pixels=max_pixels,
            seed=seed,
        )

    def _make(self) -> Any:
        from sklearn.ensemble import RandomForestClassifier

        return RandomForestClassifier(self.settings["trees"], random_state=self.seed)


build = RandomForest.build
from_state = RandomForest.from_state
