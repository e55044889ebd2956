"""A classifier whose answer depends on every pixel of its context, and scenes for it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from vitreous.errors import ModelError
from vitreous.scenes.cube import LazyCube, class_palette, make_scene


@dataclass(frozen=True)
class Bands:
    """Asks for as many bands as it knows."""

    count: int

    def select(self, scene):
        if scene.sizes["band"] != self.count:
            raise ModelError(f"The model needs {self.count} bands.", "Choose another scene.")
        return np.arange(self.count)


@dataclass
class BoxClassifier:
    """Softmax of fixed weights times the mean over the square context, NaN counting as 0."""

    bands: int = 4
    num_classes: int = 5
    margin: int = 3
    padding: str = "reflect"
    calls: list = field(default_factory=list)

    @property
    def contract(self):
        return Bands(self.bands)

    @property
    def options(self):
        names = [f"class {k}" for k in range(1, self.num_classes + 1)]
        return {"class_names": names, "class_colors": class_palette(self.num_classes)}

    def classify(self, window):
        self.calls.append(window.shape)
        side = 2 * self.margin + 1
        patches = sliding_window_view(np.nan_to_num(window), (side, side), axis=(1, 2))
        means = patches.mean(axis=(3, 4))
        weights = np.random.default_rng(0).normal(size=(self.num_classes, self.bands))
        scores = np.einsum("kb,bij->kij", weights, means).astype(np.float32)
        odds = np.exp(scores - scores.max(axis=0))
        return odds / odds.sum(axis=0)


def random_scene(height=40, width=33, bands=4, **facts):
    values = np.random.default_rng(1).normal(size=(bands, height, width)).astype(np.float32)
    return make_scene(values, **facts)


def endless_scene(height, width, bands):
    """A scene that is made while it is read, so it takes no memory itself."""

    def read(key):
        band, rows, columns = (np.arange(s.start, s.stop, s.step) for s in key)
        return ((band[:, None, None] * 7 + rows[:, None] * 3 + columns) % 101).astype(np.float32)

    return make_scene(LazyCube((bands, height, width), np.float32, read))


def expected_map(classifier, scene, mode="reflect"):
    """The map by the plainest way: pad the whole scene, classify it in one piece."""
    margin = classifier.margin
    around = ((0, 0), (margin, margin), (margin, margin))
    values = scene.values * np.float32(scene.attrs["scale"])
    padded = np.pad(values, around, mode="reflect") if mode == "reflect" else np.pad(values, around)
    probabilities = classifier.classify(padded)
    return probabilities.argmax(axis=0) + 1, probabilities
