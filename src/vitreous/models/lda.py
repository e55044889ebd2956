"""Linear discriminant analysis with a shrunken covariance, on spectra."""

from __future__ import annotations

from typing import Any

from vitreous.catalog.card import Card
from vitreous.data.contract import BandContract
from vitreous.errors import ConfigError
from vitreous.models._pixel_estimator import PixelEstimator

CARD = Card(
    slug="lda",
    title="Linear discriminant analysis with a shrunken covariance",
    kind="estimator",
    summary="Gaussian classes with one covariance, shrunken so that a few pixels determine it "
    "for hundreds of bands.",
    when="Very few training pixels, or many classes that differ by small shifts of the whole "
    "spectrum; trains in a fraction of a second, and its probabilities are calibrated where the "
    "classes are roughly Gaussian.",
    paper="Ledoit and Wolf, Journal of Multivariate Analysis 88(2), 365-411",
    year=2004,
    source_licence="scikit-learn: BSD-3-Clause (used as a library)",
    tasks=["classify"],
    variants={"lda": {"shrinkage": "auto"}},
    published=[
        {
            "variant": "lda",
            "protocol": "Indian Pines, fixed 695 training and 9671 test pixels",
            "oa": 0.650,
        },
    ],
    recipe={"shrinkage": "auto"},
    notes=[
        "Published figures: The published row was measured here with these settings; it is not "
        "from a paper.",
        "Usage: shrinkage 'auto' takes the intensity that Ledoit and Wolf derive from the "
        "training pixels; 0 is the plain covariance, 1 its diagonal.",
    ],
)


class LDA(PixelEstimator):
    """Linear discriminant analysis; scores are the posterior probabilities of the classes.

    Args:
        num_classes: classes 1..K.
        contract: the bands it is trained on.
        shrinkage: of the covariance towards its diagonal: ``auto``, or 0 to 1.
        spatial_window: see :class:`PixelEstimator`.
        max_pixels: see :class:`PixelEstimator`.
        seed: of the choice of training pixels beyond ``max_pixels``.

    Raises:
        ConfigError: a setting makes no sense.
    """

    slug = "lda"

    def __init__(
        self,
        *,
        num_classes: int,
        contract: BandContract,
        shrinkage: float | str = "auto",
        spatial_window: int = 1,
        max_pixels: int = 100_000,
        seed: int = 0,
    ) -> None:
        if shrinkage != "auto" and (isinstance(shrinkage, str) or not 0 <= shrinkage <= 1):
            raise ConfigError(f"shrinkage is {shrinkage}.", "Use 'auto' or a number from 0 to 1.")
        super().__init__(
            {"shrinkage": shrinkage},
            num_classes=num_classes,
            contract=contract,
            spatial_window=spatial_window,
            max_pixels=max_pixels,
            seed=seed,
        )

    def _make(self) -> Any:
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        rule = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=self.settings["shrinkage"])
        return make_pipeline(StandardScaler(), rule)


build = LDA.build
from_state = LDA.from_state
