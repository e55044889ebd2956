"""Linear unmixing: each spectrum as a mixture of a few pure ones, by shares that are not negative and sum to one."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import xarray as xr

from vitreous.analysis.abundances import MOST, fcls
from vitreous.analysis.endmembers import largest_simplex, purest, signal_dimensions
from vitreous.analysis.preview import Look
from vitreous.analysis.result import Result, facts_of, in_bands
from vitreous.analysis.statistics import scene_moments
from vitreous.analysis.streams import (
    Floats,
    Passes,
    Progress,
    pixelwise,
    prepared,
    source_of,
)
from vitreous.analysis.target_spectra import Library, Targets, find_targets
from vitreous.analysis.targets import Pixels
from vitreous.errors import ConfigError, SceneError

Method = Literal["nfindr", "vca"]
# Statistics, the height of a parallel projection, the product; and up to three for each endmember.
_PASSES = 3
_SAME = 1e-6  # of the endmembers' spread: what is flatter is a mixture of the others


def unmix(
    scene: xr.DataArray,
    *,
    endmembers: int | None = None,
    library: Library | str | Path | None = None,
    pixels: Pixels = (),
    method: Method = "nfindr",
    seed: int = 0,
    progress: Progress | None = None,
) -> Result:
    """Return the abundances of endmembers in a scene, and the root mean square error of each mixture.

    Endmembers are pixels of the scene, unless a library or pixels give them. The number of endmembers that the scene tells
    apart is that of HySime.

    Args:
        scene: the scene.
        endmembers: how many to find; as many as the scene tells apart when None.
        library: spectra to use instead.
        pixels: ``(row, column)`` of pixels to use instead, counted from 0.
        method: how to find them: ``nfindr``, the pixels that span the largest volume, beginning with those of vertex component
            analysis, or ``vca``, the latter alone, with fewer passes over the scene.
        seed: of the directions of vertex component analysis.
        progress: called with (pixels done, pixels in all).

    Raises:
        VitreousError: more endmembers than the scene tells apart, endmembers that are mixtures of others, or spectra
            that do not fit the scene.
    """
    scene, bands = prepared(scene)
    if method not in ("nfindr", "vca"):
        raise ConfigError(f"Unknown method: {method}.", "Choose nfindr or vca.")
    given = library is not None or bool(pixels)
    if given and endmembers is not None:
        raise ConfigError(
            "The number of endmembers follows from the spectra that are given.",
            "Omit --endmembers, or omit --library and --pixel.",
        )
    targets = find_targets(scene, bands, library, pixels) if given else None
    bands = bands if targets is None else targets.bands
    passes = Passes(scene, 2 if given else _PASSES + 3 * (endmembers or 0), progress)
    moments = scene_moments(scene, bands, passes)
    told = signal_dimensions(moments.correlation)
    facts = facts_of("unmix", scene, bands, valid_pixels=moments.count, endmembers_told_apart=told)
    if targets is None:
        count = _checked(endmembers, told, scene)
        passes.count = _PASSES + 3 * count
        pure_pixels = purest(scene, bands, moments, count, seed, passes)
        if method == "nfindr":
            pure_pixels = largest_simplex(scene, bands, moments, pure_pixels, passes)
        names = [f"endmember {k}" for k in range(1, count + 1)]
        targets = Targets(names, pure_pixels.spectra, bands)
        facts |= {"method": method, "seed": seed, "pixels": pure_pixels.pixels.tolist()}
        passes.last()
    else:
        _check_given(targets, told, scene)
    _check_different(targets)
    pure = targets.values

    def shares(spectra: Floats) -> Floats:
        found = fcls(spectra, pure)
        error = np.sqrt(((spectra - found @ pure) ** 2).mean(axis=1))
        return np.column_stack([found, error])

    return Result(
        pixelwise(scene, bands, [*targets.names, "RMSE"], shares, passes),
        {**facts, "endmembers": targets.names},
        f"Abundances of {len(pure)} endmembers; by HySime the scene tells {told} apart.",
        in_bands(scene, bands, pure, targets.names),
        Look(
            "viridis",
            "shares",
            last=Look("magma", "from zero"),
            title=str(scene.attrs.get("unit", "")),
        ),
    )


def _checked(endmembers: int | None, told: int, scene: xr.DataArray) -> int:
    """Return how many endmembers will be looked for.

    Raises:
        VitreousError: fewer than two, or more than the scene tells apart.
    """
    if told < 2:
        raise SceneError(
            f"{source_of(scene)} shows {told} endmember{'' if told == 1 else 's'} above its noise, so there is nothing to unmix.",
            "Check its values with 'vitreous info --preview', or give endmembers (--library or --pixel).",
        )
    count = min(told, MOST) if endmembers is None else endmembers
    if count < 2:
        raise ConfigError(f"A mixture needs two endmembers, not {count}.", "Choose two or more.")
    if count > min(told, MOST):
        raise ConfigError(
            f"{count} endmembers are more than {source_of(scene)} tells apart: {told} by HySime "
            "(directions with more signal than noise).",
            f"Choose at most {min(told, MOST)}, or omit --endmembers.",
        )
    return count


def _check_given(targets: Targets, told: int, scene: xr.DataArray) -> None:
    count = len(targets.values)
    if count < 2:
        raise ConfigError(
            f"A mixture needs two endmembers, not {count}.", "Give two spectra or more."
        )
    if count > told:
        warnings.warn(
            f"{count} endmembers are more than {source_of(scene)} tells apart ({told} by HySime): some abundances are "
            "arbitrary.",
            stacklevel=3,
        )


def _check_different(targets: Targets) -> None:
    """Refuse endmembers of which one is a mixture of others: no shares would be the only ones."""
    values = targets.values
    spread = np.linalg.svd(values[1:] - values[0], compute_uv=False)
    if len(spread) < len(values) - 1 or spread[-1] <= _SAME * spread[0]:
        raise ConfigError(
            f"Of the {len(values)} endmembers in {targets.bands.size} bands one is a weighted mean of others, so that "
            "abundances are not unique.",
            "Give fewer, or more different ones.",
        )
