"""What the linear transforms share: settings, loadings and the image of their components."""

from __future__ import annotations

import numpy as np
import xarray as xr

from vitreous.analysis.streams import Floats, Ints, Passes, pixelwise, source_of
from vitreous.errors import ConfigError
from vitreous.scenes.cube import wavelengths_of
from vitreous.scenes.spectra import Spectra

USUAL = 10  # components, where nobody says how many


def component_count(components: int | None, scene: xr.DataArray, bands: Ints) -> int:
    """Return how many components there will be: those asked for, or ten at most.

    Raises:
        ConfigError: less than one, or more than the scene has good bands.
    """
    if components is None:
        return min(USUAL, bands.size)
    if not 1 <= components <= bands.size:
        raise ConfigError(
            f"{components} components cannot be had of {source_of(scene)}, which has {bands.size} good bands.",
            f"Choose 1 to {bands.size}.",
        )
    return components


def projected(
    scene: xr.DataArray,
    bands: Ints,
    names: list[str],
    mean: Floats,
    weights: Floats,
    passes: Passes | None,
) -> xr.DataArray:
    """Return the lazy image of (x - mean) · weights.

    Args:
        scene: the scene.
        bands: of it.
        names: of the components.
        mean: ``(bands,)``.
        weights: ``(bands, components)``.
        passes: what counts the pixels.
    """
    return pixelwise(scene, bands, names, lambda spectra: (spectra - mean) @ weights, passes)


def in_bands(scene: xr.DataArray, bands: Ints, values: Floats, names: list[str]) -> Spectra:
    """Return ``(spectra, bands)`` with the wavelengths of the scene's bands, NaN where these are unknown."""
    centres = wavelengths_of(scene)
    widths = scene["fwhm"].values[bands] if "fwhm" in scene.coords else None
    return Spectra(
        values,
        np.full(bands.size, np.nan) if centres is None else centres[bands],
        names,
        widths,
        str(scene.attrs.get("unit", "dn")),
    )
