"""Crops of a scene, to learn from without labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from vitreous.data.regions import orient
from vitreous.errors import SceneError
from vitreous.scenes.cube import read_window

TRIES = 20  # to find a crop with enough valid pixels
FEWEST_VALID = 0.5  # share of a crop's pixels
MAX_PIXELS = 2**31  # of an area in a file; a file that claims more is damaged
SAMPLED = 20_000  # pixels to learn the range of values from


class Area(NamedTuple):
    """A rectangle of a scene."""

    rows: slice
    columns: slice

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start

    def to_json(self) -> list[int]:
        """Return first and last row, first and last column."""
        return [self.rows.start, self.rows.stop, self.columns.start, self.columns.stop]

    @classmethod
    def from_json(cls, value: Any) -> Area:
        """Rebuild an area.

        Raises:
            TypeError, ValueError: the values are no rectangle of a scene.
        """
        top, bottom, left, right = (int(v) for v in value)
        if not (0 <= top < bottom and 0 <= left < right):
            raise ValueError(f"the area {value}")
        if (bottom - top) * (right - left) > MAX_PIXELS:
            raise ValueError(f"the area {value} is larger than any scene")
        return cls(slice(top, bottom), slice(left, right))

    def pixels(self, width: int) -> npt.NDArray[np.int64]:
        """Return the flat (row-major) indices of its pixels in a scene of ``width`` columns."""
        rows = np.arange(self.rows.start, self.rows.stop)[:, None] * width
        return (rows + np.arange(self.columns.start, self.columns.stop)).ravel()


def cut_scene(scene: xr.DataArray, *shares: float) -> list[Area]:
    """Cut a scene across its longer side into what is left and pieces of given shares at its end.

    Args:
        scene: the scene.
        shares: of the longer side, in the order in which the pieces follow; a share of 0 gives an empty piece.

    Returns:
        The rest first, then the pieces.
    """
    height, width = scene.sizes["y"], scene.sizes["x"]
    longer = max(height, width)
    sides = [round(longer * share) for share in shares]
    ends = np.cumsum([longer - sum(sides), *sides]).tolist()
    spans = [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    if height >= width:
        return [Area(span, slice(0, width)) for span in spans]
    return [Area(slice(0, height), span) for span in spans]


def sample_spectra(
    scene: xr.DataArray, bands: npt.NDArray[np.int64], area: Area
) -> npt.NDArray[np.float32]:
    """Return the spectra of valid pixels spread over an area, ``(pixels, bands)``."""
    height, width = area.shape
    step = max(1, int((height * width / SAMPLED) ** 0.5))
    # Row by row: a strided read of a large file would load all of it.
    lines = [
        read_window(scene, slice(row, row + 1), area.columns, bands)[:, 0, ::step].T
        for row in range(area.rows.start, area.rows.stop, step)
    ]
    spectra = np.concatenate(lines)
    return spectra[np.isfinite(spectra).all(1)]


@dataclass(frozen=True)
class Crops:
    """Squares anywhere in an area of a scene, read when they are asked for.

    Attributes:
        scene: the scene.
        bands: which bands of it.
        area: where.
        side: of a crop in pixels.

    Raises:
        SceneError: the area is smaller than a crop.
    """

    scene: xr.DataArray
    bands: npt.NDArray[np.int64]
    area: Area
    side: int

    def __post_init__(self) -> None:
        if min(self.area.shape) < self.side:
            height, width = self.area.shape
            raise SceneError(
                f"Crops of {self.side} x {self.side} pixels do not fit into an area of {height} x {width} pixels "
                f"of {self.scene.attrs.get('source') or 'the scene'}.",
                "Use smaller crops, a smaller scale, or smaller validation and test areas.",
            )

    def draw(
        self, count: int, generator: torch.Generator, flips: bool
    ) -> Float[Tensor, "count bands side side"]:
        """Draw crops of physical values, NaN where invalid.

        Args:
            count: how many.
            generator: decides which.
            flips: also turn and mirror them.

        Raises:
            SceneError: the area is next to nothing but invalid pixels.
        """
        return torch.stack([self.one(generator, flips) for _ in range(count)])

    def one(self, generator: torch.Generator, flips: bool) -> Float[Tensor, "bands side side"]:
        """Draw one crop; see :meth:`draw`."""
        height, width = self.area.shape
        for _ in range(TRIES):
            down = int(torch.randint(height - self.side + 1, (), generator=generator))
            across = int(torch.randint(width - self.side + 1, (), generator=generator))
            turn = int(torch.randint(8, (), generator=generator))
            crop = self.read(self.area.rows.start + down, self.area.columns.start + across)
            if torch.isfinite(crop[0]).float().mean() >= FEWEST_VALID:
                return orient(crop, turn) if flips else crop
        raise SceneError(
            f"{self.scene.attrs.get('source') or 'The scene'} has almost no valid pixels where crops are drawn.",
            "Check its no-data value and bad bands with 'vitreous info'.",
        )

    def read(self, *place: int) -> Float[Tensor, "bands side side"]:
        """Read the crop whose first pixel is at a row and column of the scene."""
        row, column = place
        values = read_window(
            self.scene, slice(row, row + self.side), slice(column, column + self.side), self.bands
        )
        return torch.from_numpy(np.ascontiguousarray(values))

    def grid(self) -> list[tuple[int, ...]]:
        """Return the first pixels of crops that lie side by side, in the order of the scene."""
        return [
            (row, column)
            for row in range(self.area.rows.start, self.area.rows.stop - self.side + 1, self.side)
            for column in range(
                self.area.columns.start, self.area.columns.stop - self.side + 1, self.side
            )
        ]


class CropSource(Protocol):
    """Where crops come from: one scene (:class:`Crops`) or many (:class:`ManyCrops`)."""

    @property
    def side(self) -> int:
        """Side of a crop in pixels."""

    def draw(
        self, count: int, generator: torch.Generator, flips: bool
    ) -> Float[Tensor, "count bands side side"]:
        """Draw crops of physical values, NaN where invalid."""

    def read(self, *place: int) -> Float[Tensor, "bands side side"]:
        """Read the crop at a place of :meth:`grid`."""

    def grid(self) -> list[tuple[int, ...]]:
        """Return the places of crops that lie side by side."""


class ManyCrops:
    """Crops of several scenes; a scene is drawn as often as its area is a part of all.

    Args:
        sources: the crops of each scene, of one size.
    """

    def __init__(self, sources: Sequence[Crops]) -> None:
        self.sources = list(sources)
        sizes = [math.prod(source.area.shape) for source in self.sources]
        self._shares = torch.tensor(sizes, dtype=torch.float64)

    @property
    def side(self) -> int:
        """Side of a crop in pixels."""
        return self.sources[0].side

    def draw(
        self, count: int, generator: torch.Generator, flips: bool
    ) -> Float[Tensor, "count bands side side"]:
        """Draw crops; see :meth:`Crops.draw`."""
        chosen = torch.multinomial(self._shares, count, replacement=True, generator=generator)
        return torch.stack([self.sources[k].one(generator, flips) for k in chosen.tolist()])

    def read(self, *place: int) -> Float[Tensor, "bands side side"]:
        """Read the crop at a place of :meth:`grid`: the scene's number, row and column."""
        return self.sources[place[0]].read(*place[1:])

    def grid(self) -> list[tuple[int, ...]]:
        """Return the places of crops that lie side by side, scene by scene."""
        return [(k, *place) for k, source in enumerate(self.sources) for place in source.grid()]
