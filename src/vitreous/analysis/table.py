"""The analyses: what they are called, what they give and where they are.

This is the only place that lists them: the command line, the Python API and the tests read it. It is a table of plain values:
paths are strings ``module:name`` (:func:`vitreous.catalog.lookup.load`), so that reading it imports nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from vitreous.catalog.lookup import load
from vitreous.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    import xarray as xr

    from vitreous.analysis.result import Result

Takes = Literal["components", "indices", "targets", "anomalies", "mixture", "two dates"]


@dataclass(frozen=True)
class Analysis:
    """One analysis.

    Attributes:
        name: also the command.
        description: what it gives, in a sentence.
        function: path of what does it; it takes a scene (or two) and settings, and returns a
            :class:`~vitreous.analysis.result.Result`.
        takes: which settings it has; those of one kind have the same.
    """

    name: str
    description: str
    function: str
    takes: Takes


ANALYSES = {
    analysis.name: analysis
    for analysis in (
        Analysis(
            "pca",
            "Principal components: uncorrelated images, those of the largest variance first.",
            "vitreous.analysis.pca:pca",
            "components",
        ),
        Analysis(
            "mnf",
            "Minimum noise fraction: images in the order of their signal-to-noise ratio.",
            "vitreous.analysis.mnf:mnf",
            "components",
        ),
        Analysis(
            "ica",
            "Independent components: images whose values are far from a normal distribution.",
            "vitreous.analysis.ica:ica",
            "components",
        ),
        Analysis(
            "indices",
            "Spectral indices such as NDVI, NDWI, NBR or PRI, their bands found by wavelength.",
            "vitreous.analysis.indices:indices",
            "indices",
        ),
        Analysis(
            "sam",
            "Spectral angle mapper: angles to spectra of a library or of pixels, in radians.",
            "vitreous.analysis.targets:sam",
            "targets",
        ),
        Analysis(
            "mf",
            "Matched filter: 0 for the scene's mean, 1 for the spectrum that is looked for.",
            "vitreous.analysis.targets:matched_filter",
            "targets",
        ),
        Analysis(
            "ace",
            "Adaptive coherence estimator: 0 to 1, whatever the brightness of the target.",
            "vitreous.analysis.targets:ace",
            "targets",
        ),
        Analysis(
            "cem",
            "Constrained energy minimisation: 1 for the spectrum that is looked for, little else.",
            "vitreous.analysis.targets:cem",
            "targets",
        ),
        Analysis(
            "rx",
            "RX anomalies: how far each spectrum is from the scene's, or from its surroundings.",
            "vitreous.analysis.rx:rx",
            "anomalies",
        ),
        Analysis(
            "unmix",
            "Linear unmixing: endmembers (N-FINDR, VCA or given) and their abundances (FCLS).",
            "vitreous.analysis.unmix:unmix",
            "mixture",
        ),
        Analysis(
            "cva",
            "Change vector analysis: magnitude and direction of the change between two dates.",
            "vitreous.analysis.cva:cva",
            "two dates",
        ),
    )
}


def analyse(name: str, scene: xr.DataArray, *more: Any, **settings: Any) -> Result:
    """Analyse a scene.

    Args:
        name: ``pca``, ``mnf``, ``ica``, ``indices``, ``sam``, ``mf``, ``ace``, ``cem``, ``rx``, ``unmix`` or ``cva``.
        scene: the scene; of ``cva`` the first date.
        *more: of ``cva`` the second date; of ``indices`` their names.
        **settings: those of the function that the table names, and ``progress``, called with (pixels done, in all).

    Returns:
        A lazy image on the scene's grid with what was found; ``result.write("out.tif")`` writes it.

    Raises:
        ConfigError: there is no such analysis.
        VitreousError: the scene or the settings do not allow it.
    """
    if name not in ANALYSES:
        raise ConfigError(f"Unknown analysis: {name}.", did_you_mean(name, ANALYSES))
    result: Result = load(ANALYSES[name].function)(scene, *more, **settings)
    return result
