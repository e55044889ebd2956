"""Fingerprints of scenes and labels: whether two files hold the same, wherever they lie and however they are named."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.data.pixels import reading, spread_windows
from vitreous.scenes.cube import georeference, good_bands, wavelengths_of

WHOLE = 2**26  # values: scenes up to this size are hashed whole (256 MiB, less than a second) ...
GRID, SIDE, BANDS = (
    16,
    8,
    32,
)  # ... larger ones in GRID x GRID squares of SIDE pixels, in so many bands
STRIP = 2**22  # values read at a time
_FAR = 2**40  # pixels: where a projection has no place for a point


@dataclass(frozen=True)
class Ground:
    """Which ground a scene shows.

    Attributes:
        hash: SHA-256 of the scene's size and stored values (see :func:`values_hash`).
        rows: rows of the scene.
        columns: columns of the scene.
        crs: its coordinate system, or None where unknown.
        transform: pixel corner to CRS, six numbers as GDAL and affine order them by row, or None where unknown.
    """

    hash: str
    rows: int
    columns: int
    crs: str | None = None
    transform: tuple[float, ...] | None = None

    @classmethod
    def of(cls, scene: xr.DataArray) -> Ground:
        """Describe the ground of a scene; some of its values are read."""
        crs, transform = georeference(scene)
        return cls(
            values_hash(scene),
            int(scene.sizes["y"]),
            int(scene.sizes["x"]),
            None if crs is None else str(crs.to_string()),
            None if transform is None else tuple(float(v) for v in transform[:6]),
        )

    def locate(
        self, pixels: npt.NDArray[np.int64], other: Ground, *, reproject: bool = False
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None:
        """Return rows and columns in this scene of pixels of another, or None where it cannot be told.

        Scenes of the same values have the same pixels. Others are compared where both know their place in the same
        coordinate system, so that a clipping, another resolution or another date of the same ground is found.

        Args:
            pixels: flat (row-major) indices in ``other``.
            other: the other scene.
            reproject: also compare scenes of different coordinate systems.

        Returns:
            Rows and columns, which can lie outside of this scene.
        """
        rows, columns = np.divmod(pixels, other.columns)
        if self.hash == other.hash:
            return rows, columns
        if self.crs != other.crs and not reproject:
            return None
        place = self.at(rows + 0.5, columns + 0.5, other)
        if place is None:
            return None
        down, across = (np.clip(np.nan_to_num(part, nan=-_FAR), -_FAR, _FAR) for part in place)
        return np.floor(down).astype(np.int64), np.floor(across).astype(np.int64)

    def at(
        self, rows: npt.NDArray[np.float64], columns: npt.NDArray[np.float64], other: Ground
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None:
        """Return where points of another scene lie in this one, or None where it cannot be told.

        Args:
            rows: ``(n,)`` distances from the upper edge of ``other`` in its pixels.
            columns: ``(n,)`` distances from its left edge.
            other: the other scene.

        Returns:
            The same distances in this scene; infinite where a projection has no place for a point.
        """
        if self.hash == other.hash:
            return rows, columns
        if self.crs is None or other.crs is None:
            return None
        if self.transform is None or other.transform is None:
            return None
        points = np.stack([columns, rows, np.ones(len(rows))])
        own, others = _matrix(self.transform), _matrix(other.transform)
        if self.crs == other.crs:
            across, down, _ = np.linalg.inv(own) @ others @ points
            return down, across
        from pyproj import Transformer
        from pyproj.exceptions import ProjError

        try:
            x, y = Transformer.from_crs(other.crs, self.crs, always_xy=True).transform(
                *(others @ points)[:2]
            )
        except ProjError:
            return None
        with np.errstate(invalid="ignore"):
            across, down, _ = np.linalg.inv(own) @ np.stack([x, y, points[2]])
        return down, across

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "hash": self.hash,
            "rows": self.rows,
            "columns": self.columns,
            "crs": self.crs,
            "transform": None if self.transform is None else list(self.transform),
        }

    @classmethod
    def from_json(cls, value: Any) -> Ground:
        """Rebuild it.

        Raises:
            LookupError, TypeError, ValueError: the values describe no ground (LinAlgError is a ValueError).
        """
        place = value["transform"]
        transform = None if place is None else tuple(float(v) for v in place)
        crs = value["crs"]
        if transform is not None:
            np.linalg.inv(_matrix(transform))
        if not isinstance(value["hash"], str) or not (crs is None or isinstance(crs, str)):
            raise TypeError("its names are not text")
        return cls(value["hash"], int(value["rows"]), int(value["columns"]), crs, transform)


def _matrix(transform: tuple[float, ...]) -> npt.NDArray[np.float64]:
    return np.array([*transform, 0.0, 0.0, 1.0]).reshape(3, 3)


def values_hash(scene: xr.DataArray) -> str:
    """Return the SHA-256 of a scene's size and stored values.

    Numbers are hashed as float32, so a copy in another format or type has the same hash. Scenes of more than
    ``WHOLE`` values are sampled on a regular grid, so that the cost does not grow with the file.

    Raises:
        SceneError: the file breaks off.
    """
    found = hashlib.sha256(b"vitreous scene" + np.array(scene.shape, dtype="<i8").tobytes())
    with reading(scene):
        for values in _samples(scene):
            # -0 becomes 0 and every NaN the same one; neither tells scenes apart.
            plain = np.where(np.isnan(values), np.float32(np.nan), values) + np.float32(0)
            found.update(np.ascontiguousarray(plain, dtype="<f4").tobytes())
    return found.hexdigest()


def scene_fingerprint(scene: xr.DataArray) -> str:
    """Return a hash of all that a training takes from a scene: its values, and how they are to be read."""
    centres = wavelengths_of(scene)
    nodata = scene.attrs.get("nodata")
    facts = [
        values_hash(scene),
        str(scene.attrs.get("unit")),
        float(scene.attrs.get("scale", 1.0)),
        None if nodata is None else repr(float(nodata)),
        good_bands(scene).tolist(),
        None if centres is None else [repr(float(c)) for c in centres],
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def labels_fingerprint(*images: xr.DataArray | None) -> str:
    """Return a hash of label images and the names of their classes; None stands for an image that there is not."""
    found = hashlib.sha256(b"vitreous labels")
    for image in images:
        values = None if image is None else np.asarray(image.values).astype("<i4")
        names = [] if image is None else list(image.attrs.get("class_names", []))
        found.update(json.dumps([None if values is None else values.shape, names]).encode())
        found.update(b"" if values is None else values.tobytes())
    return found.hexdigest()


def _samples(scene: xr.DataArray) -> Iterator[npt.NDArray[np.float32]]:
    bands, height, width = scene.shape
    if bands * height * width <= WHOLE:
        strip = max(1, STRIP // (bands * width))
        for top in range(0, height, strip):
            yield np.asarray(scene[:, top : top + strip].values).astype(np.float32)
        return
    chosen = slice(0, bands, -(-bands // BANDS))
    for rows, columns in spread_windows(height, width, SIDE, GRID):
        yield np.asarray(scene[chosen, rows, columns].values).astype(np.float32)
