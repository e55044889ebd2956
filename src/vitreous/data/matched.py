"""Scenes of other sensors in the bands that a model was trained on.

Bands are found by their wavelengths. Where a sensor's bands are much narrower than the wanted ones, they are averaged by
spectral responses (``scenes/resample.py``); else the band with the nearest centre stands for the wanted one, if it lies
within half the width of either.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.data.contract import BandContract
from vitreous.errors import ModelError, VitreousError
from vitreous.scenes.cube import LazyCube, georeference, good_bands, make_scene, wavelengths_of
from vitreous.scenes.resample import resample
from vitreous.scenes.sensors import Sensor, SensorBand
from vitreous.scenes.stacks import Picked

NARROWER = 0.5  # of the wanted bands' width: narrower bands are averaged, not picked
UNKNOWN_WIDTH = 20.0  # nm, where nobody says how wide bands are

Floats = npt.NDArray[np.float64]


class Matched(NamedTuple):
    """A scene whose bands a contract takes.

    Attributes:
        scene: the scene.
        how: in words what was done to its bands; empty where they are the wanted ones.
    """

    scene: xr.DataArray
    how: str = ""


def matched(scene: xr.DataArray, contract: BandContract) -> Matched:
    """Return a scene in the bands of a contract.

    Raises:
        ModelError: its unit differs, or it lacks a band.
    """
    if _much_finer(scene, contract):
        return _averaged(scene, contract)
    try:
        contract.select(scene)
    except ModelError:
        centres = wavelengths_of(scene)
        unit = str(scene.attrs.get("unit", "dn"))
        if contract.wavelengths is None or centres is None or unit != contract.unit:
            raise
        bands = good_bands(scene)
        bands = bands[np.isfinite(centres[bands])].astype(np.int64)
        if not bands.size:
            raise
        return _picked(scene, bands, contract)
    return Matched(scene)


def _much_finer(scene: xr.DataArray, contract: BandContract) -> bool:
    """Tell whether a scene's bands are much narrower than the wanted ones: one alone would not stand for such a band."""
    if contract.fwhm is None or contract.wavelengths is None or "fwhm" not in scene.coords:
        return False
    widths = np.asarray(scene["fwhm"].values, dtype=np.float64)[good_bands(scene)]
    same_unit = str(scene.attrs.get("unit", "dn")) == contract.unit
    return same_unit and float(np.nanmedian(widths)) < NARROWER * float(np.median(contract.fwhm))


def _widths(scene: xr.DataArray, bands: npt.NDArray[np.int64], centres: Floats) -> Floats:
    """Return the widths of bands in nm; where they are unknown, as wide as they are apart."""
    if "fwhm" in scene.coords:
        widths = np.asarray(scene["fwhm"].values, dtype=np.float64)[bands]
        if (np.isfinite(widths) & (widths > 0)).all():
            return widths
    steps = np.diff(np.sort(centres))
    apart = float(np.median(steps)) if steps.size else UNKNOWN_WIDTH
    return np.full(len(bands), min(apart, UNKNOWN_WIDTH))


def _averaged(scene: xr.DataArray, contract: BandContract) -> Matched:
    """Average narrow bands into the wanted ones."""
    wanted, widths = np.asarray(contract.wavelengths), np.asarray(contract.fwhm)
    bands = [
        SensorBand(f"{centre:g} nm", float(centre), float(width))
        for centre, width in zip(wanted, widths, strict=True)
    ]
    sensor = Sensor("wanted", "the wanted bands", "", "", tuple(bands))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bands that are left out make an error here
        try:
            made = resample(scene, sensor)
        except VitreousError as reason:
            raise ModelError(
                reason.problem, "Omit the scene, or train on bands that all scenes have."
            ) from reason
    if made.sizes["band"] < len(bands):
        kept = set(np.round(made["wavelength"].values, 6))
        missing = [centre for centre in wanted if round(float(centre), 6) not in kept]
        raise _lacking(missing, len(wanted))
    return Matched(made, f"{len(bands)} bands are averaged from its own by spectral response")


def _picked(scene: xr.DataArray, bands: npt.NDArray[np.int64], contract: BandContract) -> Matched:
    """Let the band with the nearest centre stand for each wanted one."""
    centres = np.asarray(scene["wavelength"].values, dtype=np.float64)[bands]
    wanted = np.asarray(contract.wavelengths)
    widths = _widths(scene, bands, centres)
    own_widths = np.asarray(contract.fwhm or np.full(len(wanted), np.nan))
    distance = np.abs(centres[None] - wanted[:, None])
    nearest = distance.argmin(1)
    apart = distance[np.arange(len(wanted)), nearest]
    reach = np.fmax(own_widths, widths[nearest]) / 2
    close = apart <= reach
    lost = ~close | (np.bincount(nearest[close], minlength=len(bands))[nearest] > 1)
    if lost.any():
        raise _lacking(wanted[lost].tolist(), len(wanted))
    chosen = bands[nearest]
    crs, transform = georeference(scene)
    cube = LazyCube((len(chosen), *scene.shape[1:]), scene.dtype, Picked(scene.variable, chosen))
    made = make_scene(
        cube,
        wavelengths=wanted,
        fwhm=None if np.isnan(own_widths).any() else own_widths,
        unit=str(scene.attrs.get("unit", "dn")),
        scale=float(scene.attrs.get("scale", 1.0)),
        nodata=scene.attrs.get("nodata"),
        crs=crs,
        transform=transform,
        source=str(scene.attrs.get("source") or ""),
    )
    return Matched(
        made.assign_attrs({**scene.attrs, **made.attrs}),
        f"the {len(chosen)} bands nearest in wavelength (at most {apart.max():.0f} nm off)",
    )


def _lacking(missing: list[float], count: int) -> ModelError:
    shown = ", ".join(f"{nm:.0f}" for nm in missing[:4]) + (" ..." if len(missing) > 4 else "")
    return ModelError(
        f"It lacks {len(missing)} of the {count} bands ({shown} nm).",
        "Omit the scene, or train on bands that all scenes have.",
    )
