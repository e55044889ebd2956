"""What a trained model expects of a scene: which bands, in which unit."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.data.levels import FACTOR, Levels
from vitreous.data.pixels import spread_spectra
from vitreous.errors import CheckpointError, ModelError
from vitreous.layers.bands import Bands
from vitreous.scenes.cube import good_bands, wavelengths_of

TOLERANCE_NM = 2.0  # the same band of one sensor drifts less; neighbouring bands are further apart
REFUSED, TOLD = 0.5, 0.01  # share of a scene's pixels far outside the training pixels' brightness
NEARLY_ALL = 0.9  # a scale is wrong for every pixel; where some are right, something else is


@dataclass(frozen=True)
class BandContract:
    """The bands and unit that a model was trained on.

    Attributes:
        bands: number of bands of the training scene, bad ones included.
        used: indices of the bands that the model takes, in its order.
        wavelengths: centres of the used bands in nm, or None where the training scene did not know them.
        unit: ``dn``, ``radiance`` or ``reflectance``.
        levels: how bright its training pixels were, or None where nobody measured it.
        fwhm: widths of the used bands in nm, or None where the training scene did not know them.
    """

    bands: int
    used: tuple[int, ...]
    wavelengths: tuple[float, ...] | None
    unit: str
    levels: Levels | None = None
    fwhm: tuple[float, ...] | None = None

    @classmethod
    def of(cls, scene: xr.DataArray) -> BandContract:
        """Describe a training scene: its good bands, their wavelengths, its unit."""
        used = good_bands(scene).astype(np.int64)
        if used.size == 0:
            raise ModelError("The scene has no good bands left.", "Check its good_band list.")
        centres = wavelengths_of(scene)
        if centres is not None and not np.isfinite(centres[used]).all():
            centres = None  # bands that are only partly known can only be told by position
        return cls(
            bands=int(scene.sizes["band"]),
            used=tuple(int(b) for b in used),
            wavelengths=None if centres is None else tuple(float(c) for c in centres[used]),
            unit=str(scene.attrs.get("unit", "dn")),
            fwhm=_widths(scene, used) if centres is not None else None,
        )

    def measured(self, spectra: npt.NDArray[np.float32]) -> BandContract:
        """Return the contract with the brightness of training pixels, ``(pixels, bands)`` of the used bands."""
        return replace(self, levels=Levels.fit(spectra))

    @property
    def spectrum(self) -> Bands:
        """The used bands, with all that is known of them."""
        return Bands(len(self.used), self.wavelengths, self.fwhm)

    def select(self, scene: xr.DataArray) -> npt.NDArray[np.int64]:
        """Return the scene's bands that the model takes, in the model's order.

        Bands are found by wavelength where both sides know them, so a scene with shuffled or further bands
        serves as well; by position otherwise.

        Raises:
            ModelError: a band is missing, or the unit differs.
        """
        unit = str(scene.attrs.get("unit", "dn"))
        if unit != self.unit:
            raise ModelError(
                f"The model was trained on {self.unit}, the scene holds {unit}.",
                f"Convert the scene, or open it with {self._hint(scene)} if those are its actual units.",
            )
        return self._bands_of(scene)

    def by_order(self, scene: xr.DataArray) -> bool:
        """Tell whether bands are matched by their order although one side, the contract or the scene, knows wavelengths."""
        return (self.wavelengths is None) != (wavelengths_of(scene) is None)

    def check_values(self, scene: xr.DataArray) -> None:
        """Look at the values of some pixels, whatever unit the scene or its user names.

        Raises:
            ModelError: most pixels are far brighter or far darker than any training pixel, or a band is missing.

        Warns:
            UserWarning: some are, or bands are matched by their order though one side knows wavelengths.
        """
        bands = self.select(scene)
        if self.by_order(scene):
            named = str(scene.attrs.get("source") or "the scene")
            lacking = named if self.wavelengths is not None else "the model's training scene"
            warnings.warn(
                f"The wavelengths of {lacking} are unknown, so that bands are matched by their order alone.",
                stacklevel=2,
            )
        if self.levels is None:
            return
        spectra = _measured_spectra(scene, bands)
        darker, brighter = self.levels.share_outside(spectra)
        share, how = max((darker, "darker"), (brighter, "brighter"))
        if share < TOLD:
            return
        problem = (
            f"{share:.0%} of the scene's pixels are more than {FACTOR:g} times {how} in nearly all bands than any "
            "pixel "
            "that the model was trained on"
        )
        if share < REFUSED:
            warnings.warn(f"{problem}; their predicted classes are meaningless.", stacklevel=2)
            return
        factor = self.levels.scale_that_fits(spectra) if share >= NEARLY_ALL else None
        fix = "Check the scene's unit, scale and no-data value with 'vitreous info'."
        if factor is not None:
            scale = float(scene.attrs.get("scale", 1.0))
            fix = f"With the hint scale={scale * factor:g} (now {scale:g}) it would be about as bright as in training."
        raise ModelError(f"{problem}: its unit or scale differs.", fix)

    def _hint(self, scene: xr.DataArray) -> str:
        """Return the hints under which a scene of another unit would be read as this model expects."""
        scale = float(scene.attrs.get("scale", 1.0))
        if self.levels is not None:
            factor = self.levels.scale_that_fits(_measured_spectra(scene, self._bands_of(scene)))
            wanted = scale if factor is None else scale * factor
        else:  # digital numbers are what is stored
            wanted = 1.0 if self.unit == "dn" else scale
        return f"unit={self.unit}" + ("" if wanted == scale else f" scale={wanted:g}")

    def _bands_of(self, scene: xr.DataArray) -> npt.NDArray[np.int64]:
        centres = wavelengths_of(scene)
        if self.wavelengths is not None and centres is not None:
            return self._by_wavelength(centres)
        if scene.sizes["band"] != self.bands:
            raise ModelError(
                f"The model was trained on {self.bands} bands, the scene has {scene.sizes['band']}.",
                "Give the scene with the same bands, or with wavelengths so that they can be matched.",
            )
        return np.asarray(self.used, dtype=np.int64)

    def _by_wavelength(self, centres: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        wanted = np.asarray(self.wavelengths)
        # The same sensor in the same order: keep positions, because detector overlaps can repeat a wavelength.
        if (
            len(centres) == self.bands
            and np.abs(centres[list(self.used)] - wanted).max() <= TOLERANCE_NM
        ):
            return np.asarray(self.used, dtype=np.int64)
        nearest, distances = _nearest_once(wanted, centres)
        missing = wanted[distances > TOLERANCE_NM]
        if missing.size:
            shown = ", ".join(f"{nm:.1f}" for nm in missing[:4]) + (
                " ..." if missing.size > 4 else ""
            )
            raise ModelError(
                f"The scene lacks {missing.size} of the {len(wanted)} bands the model was trained on ({shown} nm).",
                "Resample the scene to the training bands, or train on this sensor.",
            )
        return nearest

    def to_json(self) -> dict[str, Any]:
        """Return the contract as JSON-ready values."""
        levels = None if self.levels is None else self.levels.to_json()
        return {**asdict(self), "levels": levels}

    @classmethod
    def from_json(cls, value: Any) -> BandContract:
        """Rebuild a contract.

        Raises:
            CheckpointError: the values are no contract.
        """
        try:
            centres, levels = value["wavelengths"], value.get("levels")
            widths = value.get("fwhm")
            contract = cls(
                bands=int(value["bands"]),
                used=tuple(int(b) for b in value["used"]),
                wavelengths=None if centres is None else tuple(float(c) for c in centres),
                unit=str(value["unit"]),
                levels=None if levels is None else Levels.from_json(levels),
                fwhm=None if widths is None else tuple(float(w) for w in widths),
            )
            for what, values in (("wavelengths", centres), ("widths", widths)):
                if values is not None and len(values) != len(contract.used):
                    raise ValueError(f"{len(contract.used)} bands have {len(values)} {what}")
            if contract.levels and len(contract.levels.typical) != len(contract.used):
                raise ValueError(f"{len(contract.used)} bands have other levels")
            if (
                not contract.used
                or not 0 <= min(contract.used) <= max(contract.used) < contract.bands
            ):
                raise ValueError(f"it uses bands that {contract.bands} bands do not have")
            return contract
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise CheckpointError(
                f"The checkpoint's band description is damaged: {error}.",
                "Restore the file, or train again.",
            ) from error


def _widths(scene: xr.DataArray, used: npt.NDArray[np.int64]) -> tuple[float, ...] | None:
    """Return the widths of bands in nm, None where not all are known."""
    if "fwhm" not in scene.coords:
        return None
    widths = np.asarray(scene["fwhm"].values, dtype=np.float64)[used]
    known = bool((np.isfinite(widths) & (widths > 0)).all())
    return tuple(float(w) for w in widths) if known else None


def _measured_spectra(scene: xr.DataArray, bands: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Return some of the scene's spectra, ``(pixels, bands)``, without those that are 0 in every band.

    These are the margin of a scene on a map grid, which not every file marks as nodata.
    """
    spectra = spread_spectra(scene, bands)
    return spectra[spectra.any(1)]


def _nearest_once(
    wanted: npt.NDArray[np.float64], centres: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return the band nearest to each wanted wavelength and how far it is; no band serves twice."""
    distance = np.nan_to_num(np.abs(centres[None, :] - wanted[:, None]), nan=np.inf)
    nearest = np.zeros(len(wanted), dtype=np.int64)
    distances = np.zeros(len(wanted))
    for row, own in enumerate(distance):
        nearest[row] = own.argmin()
        distances[row] = own[nearest[row]]
        if distances[row] <= TOLERANCE_NM:
            distance[:, nearest[row]] = np.inf
    return nearest, distances
