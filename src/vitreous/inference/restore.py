"""A trained restorer, and a scene of any size as it restores it: computed when it is read, in overlapping tiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.data.contract import BandContract
from vitreous.data.crops import Area, sample_spectra
from vitreous.errors import ModelError
from vitreous.inference.dense_classifier import OVERLAP, blending_weights
from vitreous.layers.ranges import SCOPES, BandRange, fill_invalid
from vitreous.layers.restorer import Restorer
from vitreous.scenes.cube import (
    LazyCube,
    Window,
    good_bands,
    like_scene,
    read_with_context,
)

TILE = 64  # pixels, of networks that do not care
LARGEST_TILE = 1024
KEPT = 2  # rows of tiles in memory: those that blend into each other
AT_ONCE = 2**14  # pixels of the tiles of one pass


class TileRestorer(Protocol):
    """What restores a scene tile by tile: a network with its ranges, or an export of one.

    Attributes:
        contract: the bands and unit that it was trained on.
        tile_size: side of the tiles that it works on.
    """

    contract: BandContract
    tile_size: int

    @property
    def scale(self) -> int:
        """How many times finer its products are."""

    def fitted(self, scene: xr.DataArray) -> tuple[TileRestorer, npt.NDArray[np.int64]]:
        """Return the restorer for a scene, and the bands that it takes of it."""

    def restore_tiles(
        self, tiles: Float[Tensor, "tiles bands size size"]
    ) -> Float[Tensor, "tiles bands size*scale size*scale"]:
        """Restore tiles of raw physical values, NaN where invalid."""


class SceneRestorer(nn.Module):
    """Restores raw physical values of a scene.

    Args:
        net: the network, or a filter.
        ranges: what its values are scaled by.
        contract: the bands and unit that it was trained on.
        tile_size: side of the tiles that it works on.
        per: how ranges are found on a scene with other bands, see :meth:`BandRange.fit`.

    Raises:
        ValueError: tiles of no sensible size, or no such way to find ranges.
    """

    def __init__(
        self,
        net: Restorer,
        ranges: BandRange,
        contract: BandContract,
        *,
        tile_size: int = TILE,
        per: str = "band",
    ) -> None:
        super().__init__()
        if not isinstance(tile_size, int) or not OVERLAP <= tile_size <= LARGEST_TILE:
            raise ValueError(f"tiles of {tile_size} pixels")
        if per not in SCOPES:
            raise ValueError(f"ranges per {per}")
        self.net, self.ranges, self.contract = net, ranges, contract
        self.tile_size, self.per = tile_size, per

    @property
    def scale(self) -> int:
        """How many times finer its products are."""
        return self.net.scale

    def settings(self) -> dict[str, Any]:
        """Return what it is rebuilt from, JSON-ready."""
        return {"tile_size": self.tile_size, "per": self.per}

    def fitted(self, scene: xr.DataArray) -> tuple[SceneRestorer, npt.NDArray[np.int64]]:
        """Return the restorer for a scene, and the bands that it takes of it.

        A network of any bands takes all good bands of a scene that does not have those of its training, and finds
        their ranges in the scene itself.

        Raises:
            ModelError: a band is missing, or the unit differs.
        """
        own = BandContract.of(scene)
        if not self.net.any_bands or own.unit != self.contract.unit:
            return self, self.contract.select(scene)
        try:
            return self, self.contract.select(scene)
        except ModelError:
            bands = good_bands(scene).astype(np.int64)
        whole = Area(slice(0, scene.sizes["y"]), slice(0, scene.sizes["x"]))
        ranges = BandRange.fit(sample_spectra(scene, bands, whole), self.per)
        return SceneRestorer(self.net, ranges, own, **self.settings()), bands

    @torch.inference_mode()
    def restore_tiles(
        self, tiles: Float[Tensor, "tiles bands size size"]
    ) -> Float[Tensor, "tiles bands size*scale size*scale"]:
        """Restore tiles of raw physical values; invalid pixels (NaN) are given the tile's mean spectrum before.

        Raises:
            ModelError: the network gives no numbers.
        """
        self.eval()
        filled = torch.stack([fill_invalid(tile)[0] for tile in tiles])
        return check_restored(self.ranges.inverse(self.net(self.ranges(filled))))


def check_restored(tiles: Tensor) -> Tensor:
    """Return what a restorer gave, or refuse it.

    Raises:
        ModelError: not all of it are numbers.
    """
    if not torch.isfinite(tiles).all():
        raise ModelError(
            "The model outputs NaN or infinity for valid pixels.",
            "Its training diverged: train again with a lower learning rate.",
        )
    return tiles


def restored_scene(
    restorer: TileRestorer,
    scene: xr.DataArray,
    progress: Callable[[int, int], None] | None = None,
    *,
    check_values: bool = True,
) -> xr.DataArray:
    """Return a scene as a restorer makes it: lazy, so that a writer can stream it with flat memory.

    Tiles overlap by a quarter of their side and are blended with weights that sum to one. Two rows of tiles are kept,
    so a scene that is read from top to bottom, strip by strip, is computed once.

    Args:
        restorer: the trained restorer.
        scene: the scene.
        progress: called with (tiles done, tiles in all) as they are computed.
        check_values: first compare some pixels with those that the restorer was trained on, and refuse a scene in
            another unit or scale. A network of any bands that finds its ranges in the scene itself takes any.

    Returns:
        float32 in the scene's unit, the bands that the restorer takes with their wavelengths, on a grid that is
        ``restorer.scale`` times finer; invalid pixels are NaN.

    Raises:
        ModelError: the scene does not fit the restorer.
    """
    fitted, bands = restorer.fitted(scene)
    if check_values:
        fitted.contract.check_values(scene)
    rows = _TileRows(fitted, scene, bands, progress)
    cube = LazyCube(rows.shape, np.float32, rows.read)
    return like_scene(scene, cube, bands, fitted.scale)


class _TileRows:
    """Rows of tiles across a scene, computed in need.

    Tile ``k`` covers the pixels from ``k * step - overlap`` to ``(k + 1) * step``: the first ones begin outside, so
    that weights sum to one everywhere.
    """

    def __init__(
        self,
        restorer: TileRestorer,
        scene: xr.DataArray,
        bands: npt.NDArray[np.int64],
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.restorer, self.scene, self.bands = restorer, scene, bands
        self.size = restorer.tile_size
        self.overlap = self.size // OVERLAP
        self.step = self.size - self.overlap
        self.height, self.width = scene.sizes["y"], scene.sizes["x"]
        self.scale = restorer.scale
        self.weights = blending_weights(self.size * self.scale, self.overlap * self.scale)
        self.rows: dict[int, npt.NDArray[np.float32]] = {}
        self.progress, self.done = progress, 0
        if progress:
            progress(0, self.tiles)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the restored scene."""
        return len(self.bands), self.height * self.scale, self.width * self.scale

    @property
    def tiles(self) -> int:
        """Tiles of the whole scene."""
        return self._count(self.height) * self._count(self.width)

    def _count(self, side: int) -> int:
        return (side - 1 + self.overlap) // self.step + 1

    def read(self, window: Window) -> npt.NDArray[np.float32]:
        """Return a window of the restored scene."""
        bands, rows, columns = window
        side, step = self.size * self.scale, self.step * self.scale
        total = np.zeros((len(self.bands), rows.stop - rows.start, self.shape[2]), np.float32)
        for k in range(rows.start // step, (rows.stop - 1 + self.overlap * self.scale) // step + 1):
            top = k * step - self.overlap * self.scale
            first, last = max(top, rows.start), min(top + side, rows.stop)
            if first < last:
                part = self._row(k)[:, first - top : last - top]
                total[:, first - rows.start : last - rows.start] += part
        return total[bands, :: rows.step, columns]

    def _row(self, k: int) -> npt.NDArray[np.float32]:
        """Return the weighted sum of one row of tiles, ``(bands, size * scale, width * scale)``, NaN where invalid."""
        if k not in self.rows:
            while len(self.rows) >= KEPT:
                del self.rows[next(iter(self.rows))]
            self.rows[k] = self._compute(k)
        return self.rows[k]

    def _compute(self, k: int) -> npt.NDArray[np.float32]:
        top = k * self.step - self.overlap
        count = self._count(self.width)
        stop = (count - 1) * self.step + self.step
        strip = torch.from_numpy(self._strip(top, stop))
        scale, size = self.scale, self.size
        total = torch.zeros(len(self.bands), size * scale, strip.shape[2] * scale)
        at_once = max(1, AT_ONCE // size**2)
        for first in range(0, count, at_once):
            places = [i * self.step for i in range(first, min(first + at_once, count))]
            tiles = torch.stack([strip[:, :, left : left + size] for left in places])
            seen = torch.isfinite(tiles[:, 0]).flatten(1).any(1)
            if seen.any():  # scenes on a map grid are nodata in large parts
                restored = self.restorer.restore_tiles(tiles[seen]) * self.weights
                for left, part in zip(
                    [p for p, s in zip(places, seen, strict=True) if s], restored, strict=True
                ):
                    total[:, :, left * scale : (left + size) * scale] += part
            self.done += len(places)
            if self.progress:
                self.progress(min(self.done, self.tiles), self.tiles)
        invalid = ~torch.isfinite(strip[0])
        invalid = invalid.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
        total[:, invalid] = torch.nan
        inner = slice(self.overlap * scale, (self.overlap + self.width) * scale)
        return total[:, :, inner].numpy()

    def _strip(self, top: int, stop: int) -> npt.NDArray[np.float32]:
        """Read the pixels of a row of tiles, mirrored where they lie outside of the scene."""
        return read_with_context(
            self.scene,
            slice(top, top + self.size),
            slice(-self.overlap, stop),
            self.bands,
            0,
        )
