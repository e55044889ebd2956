"""What the classical baselines share: features of a pixel, and scikit-learn behind the scene classifier's contract.

An estimator sees a pixel's spectrum and, with a spatial window, the mean spectrum around it, as its preprocessing
leaves them. It is saved as its training features and settings and fitted again when loaded: scikit-learn's own format
is pickle, which runs whatever a file tells it to, while a fit is deterministic and takes seconds.
"""

from __future__ import annotations

import abc
import inspect
import warnings
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr

from vitreous.data.contract import BandContract
from vitreous.data.pixels import tiles
from vitreous.errors import CheckpointError, ConfigError, ModelError, VitreousError, did_you_mean
from vitreous.layers.preprocess import Preprocess
from vitreous.scenes.cube import read_with_context

MAX_WINDOW = 129
MAX_CLASSES = 65535  # of a label image
PREPROCESS = (
    "preprocess."  # names of the preprocessing's tensors in a saved estimator begin with it
)
BATCH = 8192  # pixels scored at a time, because scikit-learn works in float64

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class PixelEstimator(abc.ABC):
    """A scikit-learn classifier on pixel features that maps scenes.

    ``preprocess`` turns spectra into what it learns from; None leaves physical values. It must be set before features
    are made.

    Subclasses name their settings in ``__init__`` and pass them on; that is also what a saved estimator is
    rebuilt from.

    Args:
        settings: every setting of the subclass, by its name in ``__init__``.
        num_classes: classes 1..K; some may be without training pixels and are never predicted.
        contract: the bands it is trained on.
        spatial_window: side of the square whose mean spectrum is appended to the pixel's own; 1 appends none.
        max_pixels: training pixels used at most; beyond, a seeded share of each class.
        seed: of everything random.

    Raises:
        ConfigError: a setting makes no sense.
    """

    slug: ClassVar[str]

    def __init__(
        self,
        settings: dict[str, Any],
        *,
        num_classes: int,
        contract: BandContract,
        spatial_window: int,
        max_pixels: int,
        seed: int,
    ) -> None:
        if not 1 <= spatial_window <= MAX_WINDOW or spatial_window % 2 == 0:
            raise ConfigError(
                f"spatial_window is {spatial_window}.", f"Use an odd number from 1 to {MAX_WINDOW}."
            )
        if not 1 <= num_classes <= MAX_CLASSES:
            raise ConfigError(
                f"num_classes is {num_classes}.", f"Use a number from 1 to {MAX_CLASSES}."
            )
        if max_pixels < 2:
            raise ConfigError(f"max_pixels is {max_pixels}.", "Training needs at least two pixels.")
        self.settings = {
            **settings,
            "spatial_window": spatial_window,
            "max_pixels": max_pixels,
            "seed": seed,
        }
        self.num_classes = num_classes
        self.contract = contract
        self.margin = spatial_window // 2
        self.max_pixels = max_pixels
        self.seed = seed
        self.preprocess: Preprocess | None = None
        self._estimator: Any = None
        self._features: Floats = np.empty((0, 0), dtype=np.float32)
        self._classes: Ints = np.empty(0, dtype=np.int64)

    @property
    def receptive_size(self) -> int:
        """Side of the square of pixels that one prediction depends on."""
        return 2 * self.margin + 1

    @abc.abstractmethod
    def _make(self) -> Any:
        """Return the scikit-learn estimator, not yet fitted."""

    def _scores(self, rows: Floats) -> npt.NDArray[np.float64]:
        """Return ``(n, trained classes)`` non-negative scores that sum to 1; the largest is the prediction."""
        scores: npt.NDArray[np.float64] = self._estimator.predict_proba(rows)
        return scores

    def fit(self, features: Floats, classes: npt.NDArray[Any], blocks: Ints | None = None) -> Self:
        """Train on pixels.

        Args:
            features: ``(n, f)`` as :meth:`features_at` returns them; rows that are not finite (pixels without a
                measurement) are left out.
            classes: ``(n,)`` from 1 to K.
            blocks: ``(n,)`` the block of the scene that each pixel lies in, for estimators that choose settings by
                cross-validation: pixels of one block are never on both sides.

        Raises:
            ModelError: fewer than two classes have measured pixels.
        """
        classes = np.asarray(classes, dtype=np.int64)
        if (
            len(classes) != len(features)
            or (classes < 1).any()
            or (classes > self.num_classes).any()
        ):
            raise ValueError(f"{len(features)} pixels need classes from 1 to {self.num_classes}")
        measured = np.flatnonzero(np.isfinite(features).all(axis=1))
        if len(np.unique(classes[measured])) < 2:
            raise ModelError(
                "Fewer than two classes have training pixels with valid data.",
                "Check the labels and the scene's no-data value with 'vitreous info'.",
            )
        rows = measured[self._share(classes[measured])]
        self._features = np.ascontiguousarray(features[rows], dtype=np.float32)
        self._classes = classes[rows]
        self._choose_settings(None if blocks is None else blocks[rows])
        self._estimator = self._make().fit(self._features, self._classes)
        return self

    def _choose_settings(self, blocks: Ints | None) -> None:  # noqa: B027
        """Choose what was left open by cross-validation on the training pixels; nothing by default."""

    def features(self, window: Floats) -> Floats:
        """Return the features of a window's inner pixels.

        Args:
            window: ``(bands, h + 2 margin, w + 2 margin)``, NaN where invalid.

        Returns:
            ``(h * w, f)``, row by row: the preprocessed spectrum, then the mean of those of the valid pixels around it
            where there is a spatial window; NaN for an invalid pixel.

        Raises:
            ModelError: the preprocessing was fitted on other bands.
        """
        valid: npt.NDArray[np.bool_] = np.all(np.isfinite(window), axis=0)
        values = self._preprocessed(window)
        channels, height, width = values.shape
        m = self.margin
        inner = values[:, m : height - m, m : width - m].reshape(channels, -1).T
        features = np.empty((len(inner), channels * (1 if m == 0 else 2)), dtype=np.float32)
        features[:, :channels] = inner
        if m > 0:
            count = _box_sum(valid, m).ravel()
            for channel in range(channels):
                total = _box_sum(np.where(valid, values[channel], 0), m).ravel()
                features[:, channels + channel] = total / np.maximum(count, 1)
        features[~valid[m : height - m, m : width - m].ravel()] = np.nan
        return features

    def _preprocessed(self, window: Floats) -> Floats:
        """Return ``(channels, rows, columns)`` of a window."""
        if self.preprocess is None:
            return window
        if len(window) != self.preprocess.bands:
            raise self._other_bands(self.preprocess.bands, len(window), "bands")
        with torch.no_grad():
            found: Floats = self.preprocess(torch.from_numpy(np.ascontiguousarray(window))[None])[
                0
            ].numpy()
        return found

    def _other_bands(self, wanted: int, found: int, what: str) -> ModelError:
        return ModelError(
            f"The estimator '{self.slug}' was trained on {wanted} {what}, but the scene has {found}.",
            "Use a scene with the bands of the training scene.",
        )

    def features_at(self, scene: xr.DataArray, flat_pixels: Ints) -> Floats:
        """Return the features of some pixels of a scene, ``(n, f)``, in the order of ``flat_pixels``.

        Tiles with such pixels are read one after the other, so memory does not grow with the scene. Beyond the
        edge the scene is mirrored as by ``numpy.pad(mode="reflect")``.

        Args:
            scene: the scene.
            flat_pixels: row-major indices ``row * width + column``.
        """
        bands = np.asarray(self.contract.select(scene), dtype=np.int64)
        channels = len(bands) if self.preprocess is None else self.preprocess.channels
        width = channels * (1 if self.margin == 0 else 2)
        features = np.empty((len(flat_pixels), width), dtype=np.float32)
        for tile in tiles(flat_pixels, scene.sizes["x"]):
            window = read_with_context(scene, tile.rows, tile.columns, bands, self.margin)
            features[tile.members] = self.features(window)[tile.inside]
        return features

    def classify(self, window: Floats) -> Floats:
        """Score every pixel of a window.

        Args:
            window: ``(bands, h + 2 margin, w + 2 margin)``, NaN where invalid.

        Returns:
            ``(classes, h, w)`` scores that sum to 1 and whose argmax + 1 is scikit-learn's prediction; zeros
            where the pixel is invalid.

        Raises:
            ModelError: the estimator is not trained, or was trained on other bands.
        """
        if self._estimator is None:
            raise ModelError(
                f"The estimator '{self.slug}' has not been trained.", "Train it first."
            )
        height, width = window.shape[1] - 2 * self.margin, window.shape[2] - 2 * self.margin
        rows = self.features(window)
        if rows.shape[1] != self._features.shape[1]:
            raise self._other_bands(self._features.shape[1], rows.shape[1], "features")
        scores = np.zeros((len(rows), self.num_classes), dtype=np.float32)
        measured = np.flatnonzero(np.isfinite(rows).all(axis=1))
        trained = np.unique(self._classes) - 1
        for start in range(0, len(measured), BATCH):
            some = measured[start : start + BATCH]
            scores[np.ix_(some, trained)] = self._scores(rows[some])
        return np.ascontiguousarray(scores.T).reshape(self.num_classes, height, width)

    def state(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        """Return the training features as arrays and the rest as JSON-ready settings."""
        import sklearn

        tensors: dict[str, npt.NDArray[Any]] = {
            "features": self._features,
            "classes": self._classes,
        }
        meta = {
            "schema": 1,
            "estimator": self.slug,
            "num_classes": self.num_classes,
            "settings": self.settings,
            "sklearn": sklearn.__version__,
        }
        if self.preprocess is not None:
            meta["spectra"] = self.preprocess.spectra.kind
            tensors |= {
                PREPROCESS + name: value.numpy()
                for name, value in self.preprocess.state_dict().items()
            }
        return tensors, meta

    @classmethod
    def from_state(
        cls, tensors: dict[str, npt.NDArray[Any]], meta: dict[str, Any], contract: BandContract
    ) -> Self:
        """Rebuild a trained estimator from what :meth:`state` gave, by fitting it again.

        Raises:
            CheckpointError: the state is not one of this estimator.

        Warns:
            UserWarning: another version of scikit-learn made it, so single pixels may differ.
        """
        import sklearn

        try:
            if meta["schema"] != 1 or meta["estimator"] != cls.slug:
                raise ValueError(f"it is a '{meta['estimator']}' of schema {meta['schema']}")
            features, classes = tensors["features"], tensors["classes"]
            if features.ndim != 2 or features.dtype != np.float32 or classes.dtype.kind != "i":
                raise ValueError("its arrays have the wrong types")
            estimator = cls(num_classes=meta["num_classes"], contract=contract, **meta["settings"])
            if "spectra" in meta:
                estimator.preprocess = _loaded(meta["spectra"], tensors)
            estimator.fit(features, classes)
        except (
            *(KeyError, TypeError, ValueError, AttributeError, RuntimeError),
            VitreousError,
        ) as error:
            raise CheckpointError(
                f"This is not a saved '{cls.slug}' ({error}).", "Train the estimator again."
            ) from error
        if meta.get("sklearn") != sklearn.__version__:
            warnings.warn(
                f"'{cls.slug}' was trained with scikit-learn {meta.get('sklearn')} and is refitted with "
                f"{sklearn.__version__}; individual pixels may differ.",
                stacklevel=2,
            )
        return estimator

    @classmethod
    def build(
        cls, *, num_classes: int, contract: BandContract, seed: int = 0, **settings: Any
    ) -> Self:
        """Make an untrained estimator; what :meth:`__init__` takes, with unknown settings refused by name.

        Raises:
            ConfigError: a setting is unknown or makes no sense.
        """
        known = set(inspect.signature(cls).parameters) - {"num_classes", "contract", "seed"}
        for name in settings:
            if name not in known:
                raise ConfigError(
                    f"'{cls.slug}' has no setting '{name}'.", did_you_mean(name, known)
                )
        try:
            return cls(num_classes=num_classes, contract=contract, seed=seed, **settings)
        except TypeError as error:  # comparing a word with a number
            raise ConfigError(f"A setting of '{cls.slug}' has the wrong type: {error}.") from error

    def _share(self, classes: Ints) -> Ints:
        """Return the rows to train on: all, or the same share of every class (at least one pixel)."""
        if len(classes) <= self.max_pixels:
            return np.arange(len(classes))
        warnings.warn(
            f"'{self.slug}' trains on {self.max_pixels} of {len(classes)} pixels (max_pixels).",
            stacklevel=3,
        )
        rng = np.random.default_rng(self.seed)
        share = self.max_pixels / len(classes)
        kept = []
        for k in np.unique(classes):
            members = rng.permutation(np.flatnonzero(classes == k))
            kept.append(members[: max(1, int(share * len(members)))])
        return np.sort(np.concatenate(kept))


def _loaded(spectra: str, tensors: dict[str, npt.NDArray[Any]]) -> Preprocess:
    """Rebuild the preprocessing of a saved estimator."""
    own = {
        name.removeprefix(PREPROCESS): torch.from_numpy(np.ascontiguousarray(value))
        for name, value in tensors.items()
        if name.startswith(PREPROCESS)
    }
    channels, bands = own["matrix"].shape
    with torch.device("meta"):
        preprocess = Preprocess(bands, channels, spectra)
    preprocess.load_state_dict(own, assign=True)
    return preprocess


def _box_sum(image: npt.NDArray[Any], margin: int) -> npt.NDArray[np.float64]:
    """Sum squares of side ``2 margin + 1``, where they fit into the image."""
    from scipy.ndimage import correlate1d

    # Not uniform_filter: its running sum makes a pixel depend, in the last bits, on where its window begins.
    sums: npt.NDArray[np.float64] = image.astype(np.float64)
    for axis in (0, 1):
        sums = correlate1d(sums, np.ones(2 * margin + 1), axis=axis, mode="constant")
    return sums[margin : sums.shape[0] - margin, margin : sums.shape[1] - margin]
