"""Bands without a single measurement, which some products carry along (EnMAP's between its two spectrometers)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.scenes.cube import good_bands, is_nodata, wavelengths_of

_SIDE = 32  # pixels of a window that is looked at
_ACROSS = 5  # windows in each direction
_SENTINELS = (
    -9999.0,
    -999.0,
    -99999.0,
    -32768.0,
    -32767.0,
    65535.0,
)  # what files mean by "no measurement" without saying so
_NAMED = 12  # bands in a message


def without_dead_bands(scene: xr.DataArray) -> xr.DataArray:
    """Return a scene whose bands without any measurement are marked as not good, and say which.

    A pixel is valid only where all its used bands are, so one such band would take the whole scene. Small windows
    all over the scene are looked at, most often one: a band with a measurement there is alive. Values that look like
    an unsaid nodata value are told of too.

    Args:
        scene: the scene.
    """
    bands = good_bands(scene)
    nodata = scene.attrs.get("nodata")
    suspects = np.ones(bands.size, dtype=bool)
    seen = False
    for stored in _windows(scene, bands):
        valid = np.isfinite(stored)
        if nodata is not None and np.isfinite(nodata) and nodata != 0:  # a 0 may be a dark count
            valid &= ~is_nodata(stored, float(nodata))
        alive = valid.any(axis=(1, 2))
        if not alive.any():
            continue  # beyond the edge of the measured area
        if not seen and nodata is None:
            _say_sentinel(stored, scene)
        seen = True
        suspects &= ~alive
        if not suspects.any():
            return scene
    if not seen:
        return scene
    dead = bands[suspects]
    words = ", ".join(_band_words(scene, int(band)) for band in dead[:_NAMED])
    more = f" and {dead.size - _NAMED} more" if dead.size > _NAMED else ""
    warnings.warn(
        f"{scene.attrs.get('source') or 'The scene'}: {dead.size} of {scene.sizes['band']} bands hold no data and "
        f"are excluded: {words}{more}.",
        stacklevel=2,
    )
    good = np.isin(np.arange(scene.sizes["band"]), bands[~suspects])
    return scene.assign_coords(good_band=("band", good))


def _windows(
    scene: xr.DataArray, bands: npt.NDArray[np.int64]
) -> Iterator[npt.NDArray[np.float64]]:
    """Yield stored values ``(bands, rows, columns)``, of the middle first."""
    height, width = scene.sizes["y"], scene.sizes["x"]
    places = {
        tuple(max(0, (n - _SIDE) * k // (_ACROSS - 1)) for n, k in ((height, row), (width, column)))
        for row in range(_ACROSS)
        for column in range(_ACROSS)
    }
    middle = np.array([(height - _SIDE) / 2, (width - _SIDE) / 2])
    first, last = int(bands.min()), int(bands.max()) + 1
    for top, left in sorted(
        places, key=lambda place: float(np.abs(np.array(place) - middle).sum())
    ):
        part = scene[first:last, top : top + _SIDE, left : left + _SIDE].values
        yield np.asarray(part)[bands - first].astype(np.float64)


def _say_sentinel(stored: npt.NDArray[np.float64], scene: xr.DataArray) -> None:
    for value in _SENTINELS:
        share = float((stored == value).all(axis=0).mean())
        if share > 0:
            warnings.warn(
                f"{scene.attrs.get('source') or 'The scene'}: {share:.0%} of the sampled pixels hold {value:g} in every"
                f" band, and no no-data value is given; if that means no data, set nodata={value:g} (--hints).",
                stacklevel=3,
            )


def _band_words(scene: xr.DataArray, band: int) -> str:
    centres = wavelengths_of(scene)
    if centres is None or not np.isfinite(centres[band]):
        return str(band + 1)
    return f"{band + 1} ({centres[band]:.0f} nm)"
