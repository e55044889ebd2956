"""What the linear transforms share: the number of components, and their image."""

from __future__ import annotations

import xarray as xr

from vitreous.analysis.streams import Floats, Ints, Passes, pixelwise, source_of
from vitreous.errors import ConfigError

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
