"""What becomes of a classifier's probabilities: refinement by the scene, calibration, uncertainty and novelty.

All of it is small and travels in the header of a trained system's file and in ``export.json``, so that every scene of the
same bands gets the same treatment, whatever computes the network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field, ValidationError, model_validator

from vitreous.catalog.arguments import in_words
from vitreous.data.contract import BandContract
from vitreous.errors import CheckpointError, ConfigError, ModelError, did_you_mean
from vitreous.files import checked
from vitreous.inference import refine
from vitreous.inference.descriptions import MOST_BANDS, MOST_CLASSES, Description
from vitreous.inference.windows import SceneClassifier, step_of

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

GUIDE_CHANNELS = 3  # principal components that guide a refinement
NOVELTY_CHANNELS = 10  # principal components in which spectra are compared
FEWEST = 2 * NOVELTY_CHANNELS  # training pixels beyond one per class that tell how they scatter
PERCENTILES = 101  # of the training pixels' distances that are kept
FLAT_BAND = 1e-7  # of the largest value: a band that varies less holds rounding
FLAT_COMPONENT = 1e-5  # of the first component's deviation, likewise
LEAST_LIKELY = 1e-12  # what a probability of 0 counts as in logarithms
HOTTEST = 100.0  # temperature that a file may name

Row: TypeAlias = Annotated[list[float], Field(min_length=1, max_length=MOST_BANDS)]
Rows: TypeAlias = Annotated[list[Row], Field(min_length=1, max_length=MOST_CLASSES)]


class Projection(Description):
    """A few combinations of bands.

    Attributes:
        mean: of each band.
        weights: ``(channels, bands)``, of the differences from the mean.
    """

    mean: Row
    weights: Rows

    @model_validator(mode="after")
    def _of_the_same_bands(self) -> Self:
        if any(len(row) != len(self.mean) for row in self.weights):
            raise ValueError(f"the weights are not those of {len(self.mean)} bands")
        return self

    def of(self, window: Floats) -> Floats:
        """Return the combinations of a window's bands.

        Args:
            window: ``(bands, height, width)``, NaN where invalid.

        Returns:
            ``(channels, height, width)``.
        """
        found = np.zeros((len(self.weights), *window.shape[1:]), np.float32)
        weights = np.asarray(self.weights, dtype=np.float32)
        # Band by band: a matrix product rounds differently in windows of other sizes.
        for band, mean, weight in zip(window, self.mean, weights.T, strict=True):
            found += weight[:, None, None] * (band - np.float32(mean))
        return found


def fit_projection(spectra: npt.NDArray[Any], channels: int) -> Projection:
    """Return the principal components of standardised bands, each scaled to a standard deviation of 1.

    Args:
        spectra: ``(pixels, bands)``, finite.
        channels: how many; fewer where the bands have fewer.
    """
    values = np.asarray(spectra, dtype=np.float64)
    mean, deviation = values.mean(axis=0), values.std(axis=0)
    inverse = _inverse(deviation, FLAT_BAND * np.abs(values).max(axis=0))
    standard = (values - mean) * inverse
    variances, vectors = np.linalg.eigh(standard.T @ standard / len(values))
    order = np.argsort(variances)[::-1][: min(channels, len(mean))]
    vectors = vectors[:, order] * np.sign(vectors[:, order].sum(axis=0) + 1e-30)
    scale = _inverse_root(variances[order])
    weights = (vectors * scale * inverse[:, None]).T
    return Projection(mean=mean.tolist(), weights=weights.tolist())


def _inverse(deviation: Doubles, least: Doubles | float) -> Doubles:
    """Return one over deviations; 0 where they are not above what says something."""
    varies = deviation > least
    return np.where(varies, 1 / np.where(varies, deviation, 1), 0)


def _inverse_root(variances: Doubles) -> Doubles:
    """Return one over the deviations of components; 0 of those that hold rounding alone."""
    deviation = np.sqrt(np.maximum(variances, 0))
    return _inverse(deviation, FLAT_COMPONENT * deviation.max(initial=0))


# -- refinement -------------------------------------------------------------------------------------------


class Refinement(Description):
    """A filter of :mod:`vitreous.inference.refine` with its settings."""

    model_config = ConfigDict(extra="forbid")

    method: str

    @property
    def reach(self) -> int:
        """How many pixels away a pixel still matters."""
        raise NotImplementedError

    def __call__(self, probabilities: Floats, guide: Floats) -> Floats:
        """Refine ``(classes, height, width)`` by a guide ``(channels, height, width)``."""
        raise NotImplementedError


class DomainTransform(Refinement):
    """See :func:`vitreous.inference.refine.domain_transform`."""

    method: Literal["domain_transform"] = "domain_transform"
    spatial: float = Field(4.0, gt=0, le=40)
    range: float = Field(6.0, ge=1e-6, le=1e6)
    iterations: int = Field(3, ge=1, le=8)

    @property
    def reach(self) -> int:
        """How many pixels away a pixel still matters."""
        return sum(int(radius) for radius in refine.radii(self.spatial, self.iterations))

    def __call__(self, probabilities: Floats, guide: Floats) -> Floats:
        """Refine."""
        settings = {"spatial": self.spatial, "range": self.range}
        return refine.domain_transform(probabilities, guide, iterations=self.iterations, **settings)


class GuidedFilter(Refinement):
    """See :func:`vitreous.inference.refine.guided_filter`."""

    method: Literal["guided"] = "guided"
    radius: int = Field(5, ge=1, le=64)
    smoothness: float = Field(1.0, ge=1e-6, le=1e6)

    @property
    def reach(self) -> int:
        """How many pixels away a pixel still matters."""
        return 2 * self.radius

    def __call__(self, probabilities: Floats, guide: Floats) -> Floats:
        """Refine."""
        return refine.guided_filter(
            probabilities, guide, radius=self.radius, smoothness=self.smoothness
        )


class Potts(Refinement):
    """See :func:`vitreous.inference.refine.potts`."""

    method: Literal["potts"] = "potts"
    strength: float = Field(2.0, gt=0, le=100)
    range: float = Field(2.0, ge=1e-3, le=1e6)
    iterations: int = Field(8, ge=1, le=64)

    @property
    def reach(self) -> int:
        """How many pixels away a pixel still matters."""
        return self.iterations

    def __call__(self, probabilities: Floats, guide: Floats) -> Floats:
        """Refine."""
        settings = {"strength": self.strength, "range": self.range}
        return refine.potts(probabilities, guide, iterations=self.iterations, **settings)


FILTERS: dict[str, type[Refinement]] = {
    "domain_transform": DomainTransform,
    "guided": GuidedFilter,
    "potts": Potts,
}
DEFAULT_REFINEMENT = "domain_transform"
AnyRefinement: TypeAlias = Annotated[
    DomainTransform | GuidedFilter | Potts, Field(discriminator="method")
]


def make_refinement(method: str, settings: dict[str, Any]) -> Refinement | None:
    """Return a filter with its settings, None for ``none``.

    Args:
        method: ``none`` or one of :data:`FILTERS`.
        settings: those that differ from its defaults.

    Raises:
        ConfigError: there is no such filter or setting, or a value is out of range.
    """
    if method == "none":
        if settings:
            raise ConfigError(
                f"refine 'none' has no setting '{next(iter(settings))}'.", "Omit --refine-args."
            )
        return None
    if method not in FILTERS:
        raise ConfigError(
            f"Unknown refinement: {method}.",
            did_you_mean(method, ["none", *FILTERS]),
        )
    kind = FILTERS[method]
    known = [name for name in kind.model_fields if name != "method"]
    for name in settings:
        if name not in known:
            raise ConfigError(
                f"The refinement '{method}' has no setting '{name}'.",
                did_you_mean(name, known),
            )
    try:
        return kind.model_validate({"method": method, **settings})
    except ValidationError as error:
        name = str(error.errors(include_url=False)[0]["loc"][0])
        raise ConfigError(
            f"{name} of the refinement '{method}' is {settings[name]!r}: {in_words(error)}.",
            f"Its default is {kind.model_fields[name].default}.",
        ) from error


class _Wrapped:
    """A scene classifier around another one."""

    def __init__(self, classifier: SceneClassifier) -> None:
        self.classifier = classifier

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.classifier.num_classes

    @property
    def contract(self) -> BandContract:
        """The bands it was trained on."""
        return self.classifier.contract

    @property
    def padding(self) -> str:
        """What lies beyond the scene's edge."""
        return getattr(self.classifier, "padding", "reflect")

    @property
    def step(self) -> int:
        """Windows begin at multiples of it."""
        return step_of(self.classifier)

    @property
    def margin(self) -> int:
        """Context in pixels on each side of a window."""
        return self.classifier.margin


class RefinedClassifier(_Wrapped):
    """A classifier whose probabilities are refined by the scene.

    Args:
        classifier: any scene classifier.
        guide: makes the guide from the classifier's bands.
        refinement: the filter.

    Raises:
        ModelError: the guide was made for another number of bands.
    """

    def __init__(
        self, classifier: SceneClassifier, guide: Projection, refinement: Refinement
    ) -> None:
        super().__init__(classifier)
        used = getattr(classifier.contract, "used", guide.mean)
        if len(used) != len(guide.mean):
            raise ModelError(
                f"The guide of the refinement has {len(guide.mean)} bands, the model {len(used)}.",
                "Train again, or use --refine none.",
            )
        self.guide, self.refinement = guide, refinement

    @property
    def around(self) -> int:
        """Context of the filter: its reach, in whole steps, so that the classifier's windows begin where they must."""
        return -(-self.refinement.reach // self.step) * self.step

    @property
    def margin(self) -> int:
        """Context in pixels on each side of a window: the classifier's and the filter's."""
        return self.classifier.margin + self.around

    def classify(self, window: Floats) -> Floats:
        """Turn ``(bands, h + 2 margin, w + 2 margin)`` into probabilities ``(classes, h, w)``; 0 where invalid."""
        return self.refined(window, self.classifier.classify(window))

    def refined(self, window: Floats, probabilities: Floats) -> Floats:
        """Refine what the classifier said of a window, as :meth:`classify` does.

        Args:
            window: ``(bands, h + 2 margin, w + 2 margin)``.
            probabilities: ``(classes, h + 2 around, w + 2 around)``.

        Returns:
            ``(classes, h, w)``; 0 where invalid.
        """
        own, around = self.classifier.margin, self.around
        probabilities = np.asarray(probabilities, dtype=np.float32)
        seen = window[:, own : window.shape[1] - own, own : window.shape[2] - own]
        valid = np.isfinite(seen).all(axis=0)
        # The filter takes nothing from invalid pixels: their probabilities are 0.
        refined = self.refinement(
            np.where(valid, probabilities, np.float32(np.nan)), self.guide.of(seen)
        )
        inner = (slice(around, seen.shape[1] - around), slice(around, seen.shape[2] - around))
        return np.ascontiguousarray(np.where(valid, refined, np.float32(0))[:, *inner])


# -- calibration ------------------------------------------------------------------------------------------


class CalibratedClassifier(_Wrapped):
    """A classifier whose probabilities are as high as it is right.

    Args:
        classifier: any scene classifier.
        temperature: see :func:`at_temperature`.
    """

    def __init__(self, classifier: SceneClassifier, temperature: float) -> None:
        super().__init__(classifier)
        self.temperature = temperature

    def classify(self, window: Floats) -> Floats:
        """Turn ``(bands, h + 2 margin, w + 2 margin)`` into probabilities ``(classes, h, w)``; 0 where invalid."""
        return at_temperature(self.classifier.classify(window), self.temperature)


def at_temperature(probabilities: npt.NDArray[Any], temperature: float) -> Floats:
    """Flatten (above 1) or sharpen (below 1) probabilities; the order of the classes stays.

    Temperature scaling (Guo et al., *On Calibration of Modern Neural Networks*, ICML 2017) of logarithms of
    probabilities, which differ from a network's scores by a constant.

    Args:
        probabilities: ``(classes, ...)``; where all are 0 they stay so.
        temperature: what the logarithms are divided by.
    """
    given = np.asarray(probabilities, dtype=np.float32)
    largest = given.max(axis=0)
    share = given / np.where(largest > 0, largest, 1)
    powers = share ** np.float32(1 / temperature)
    total = powers.sum(axis=0)
    return np.asarray(powers / np.where(total > 0, total, 1), dtype=np.float32)


# -- uncertainty and novelty ----------------------------------------------------------------------------------------------


class Uncertainty:
    """How unsure probabilities are: their entropy as a share of the largest possible, and one minus the largest."""

    bands = ("entropy", "1 - maximum probability")

    def layer(self, values: Floats, probabilities: Floats) -> Floats:
        """Return ``(2, height, width)`` from 0 to 1; NaN where probabilities are."""
        logarithms = np.log(np.maximum(probabilities, LEAST_LIKELY))
        most = np.log(max(len(probabilities), 2))
        entropy = -(probabilities * logarithms).sum(axis=0) / most
        unsure = np.stack([entropy, 1 - probabilities.max(axis=0)])
        return np.clip(unsure, 0, 1).astype(np.float32)


class Novelty(Description):
    """How far a spectrum lies from those that were trained on.

    Attributes:
        projection: to components in which the training pixels of a class have unit covariance.
        centres: ``(classes, channels)`` of the classes that have training pixels.
        distances: percentiles 0 to 100 of the training pixels' distances from the nearest centre.
    """

    projection: Projection
    centres: Rows
    distances: Annotated[list[float], Field(min_length=PERCENTILES, max_length=PERCENTILES)]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if any(len(row) != len(self.projection.weights) for row in self.centres):
            raise ValueError("the centres have other channels than the projection")
        if list(self.distances) != sorted(self.distances):
            raise ValueError("the percentiles do not ascend")
        return self

    @property
    def bands(self) -> tuple[str, ...]:
        """The name of the layer's band."""
        return ("novelty (percentile of the training pixels)",)

    def layer(self, values: Floats, probabilities: Floats) -> Floats:
        """Return ``(1, height, width)``: :meth:`of`."""
        return self.of(values)[None]

    def of(self, window: Floats) -> Floats:
        """Return the share of training pixels, in percent, that lie nearer to their nearest class.

        Args:
            window: ``(bands, height, width)``, NaN where invalid.

        Returns:
            ``(height, width)``, from 0 to 100; NaN where invalid.
        """
        nearest = _nearest(self.projection.of(window), np.asarray(self.centres, np.float32))
        ranks = np.linspace(0, 100, PERCENTILES)
        found = np.interp(nearest, self.distances, ranks)
        return np.where(np.isfinite(nearest), found, np.nan).astype(np.float32)


def fit_novelty(spectra: npt.NDArray[Any], classes: npt.NDArray[np.integer[Any]]) -> Novelty | None:
    """Measure training spectra: Mahalanobis distances from the class means, with the covariance within classes.

    Lee et al., *A Simple Unified Framework for Detecting Out-of-Distribution Samples*, NeurIPS 2018, on principal
    components of the spectra.

    Args:
        spectra: ``(pixels, bands)``, finite.
        classes: ``(pixels,)``.

    Returns:
        The measure; None where there are too few pixels, or they do not differ within their classes.
    """
    if len(spectra) - len(np.unique(classes)) < FEWEST:
        return None
    first = fit_projection(spectra, NOVELTY_CHANNELS)
    columns = np.asarray(spectra, dtype=np.float32).T[:, :, None]
    points = first.of(columns)[:, :, 0].astype(np.float64)
    known = np.unique(classes)
    means = np.stack([points[:, classes == k].mean(axis=1) for k in known])
    within = points - means[np.searchsorted(known, classes)].T
    variances, vectors = np.linalg.eigh(within @ within.T / within.shape[1])
    whiten = (vectors * _inverse_root(variances)).T
    weights = whiten @ np.asarray(first.weights)
    projection = Projection(mean=first.mean, weights=weights.tolist())
    centres = (means @ whiten.T).astype(np.float32)
    distances = _nearest(projection.of(columns), centres)
    if not distances.max() > 0:
        return None
    ranks = np.percentile(distances, np.linspace(0, 100, PERCENTILES))
    return Novelty(
        projection=projection,
        centres=centres.tolist(),
        distances=np.maximum.accumulate(ranks).tolist(),
    )


def _nearest(points: Floats, centres: Floats) -> Floats:
    """Return the distance from the nearest centre: of ``(channels, h, w)`` and ``(classes, channels)``, ``(h, w)``."""
    found = np.full(points.shape[1:], np.inf, np.float32)
    for centre in centres:
        found = np.minimum(found, np.square(points - centre[:, None, None]).sum(axis=0))
    return np.asarray(np.sqrt(found), dtype=np.float32)


# -- all of it --------------------------------------------------------------------------------------------


class Postprocess(Description):
    """What becomes of a trained system's probabilities.

    Attributes:
        guide: what a refinement is guided by.
        refine: the refinement; None where there is none.
        temperature: see :func:`at_temperature`; None where it was not measured.
        novelty: what tells how new a spectrum is; None where nobody measured it.
    """

    guide: Projection
    refine: AnyRefinement | None = None
    temperature: float | None = Field(default=None, gt=1 / HOTTEST, lt=HOTTEST)
    novelty: Novelty | None = None

    @property
    def reach(self) -> int:
        """Context in pixels that the refinement adds on each side."""
        return 0 if self.refine is None else self.refine.reach

    def refined(self, refinement: Refinement | None) -> Postprocess:
        """Return the same with another refinement; the temperature was measured with the old one and is left out."""
        if refinement == self.refine:
            return self
        return self.model_copy(update={"refine": refinement, "temperature": None})

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return self.model_dump()


def read_postprocess(
    value: Any, contract: BandContract, path: Path, fix: str
) -> Postprocess | None:
    """Return what a file says about its classifier's probabilities; None where it says nothing.

    Args:
        value: what :meth:`Postprocess.to_json` gave.
        contract: the classifier's bands.
        path: the file, for messages.
        fix: what to do about a damaged one.

    Raises:
        CheckpointError: it is damaged.
    """
    if value is None:
        return None
    found = checked(Postprocess, value, path, fix)
    parts = [found.guide, *([found.novelty.projection] if found.novelty else [])]
    if any(len(part.mean) != len(contract.used) for part in parts):
        raise CheckpointError(
            f"{path} is damaged: its post-processing is not that of {len(contract.used)} bands.",
            fix,
        )
    return found


def finished(classifier: SceneClassifier, after: Postprocess | None) -> SceneClassifier:
    """Return a classifier with its refinement and calibration.

    Args:
        classifier: as it was trained.
        after: what becomes of its probabilities; nothing where None.
    """
    if after is None:
        return classifier
    if after.refine is not None:
        classifier = RefinedClassifier(classifier, after.guide, after.refine)
    if after.temperature is not None:
        classifier = CalibratedClassifier(classifier, after.temperature)
    return classifier


def changed(
    after: Postprocess | None, method: str | None, settings: dict[str, Any] | None
) -> Postprocess | None:
    """Return what a user asks for instead of a run's own refinement.

    Args:
        after: the run's own.
        method: see :func:`make_refinement`; the run's own when None.
        settings: of the refinement.

    Raises:
        ConfigError: there is no such refinement or setting, or the run cannot be refined.
    """
    if method is None and not settings:
        return after
    if method is None:
        own = None if after is None else after.refine
        if own is None:
            raise ConfigError("The run has no refinement to change.", "Name one with --refine.")
        kept = own.model_dump(exclude={"method"})
        return changed(after, own.method, {**kept, **(settings or {})})
    refinement = make_refinement(method, settings or {})
    if after is None:
        if refinement is None:
            return None
        raise ConfigError(
            "The run holds no guide for a refinement: it was made by an older version.",
            "Train it again, or use --refine none.",
        )
    return after.refined(refinement)
