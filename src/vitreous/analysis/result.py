"""What an analysis gives: an image, what was found, and the spectra that belong to it; and the files of all this."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from vitreous.analysis.preview import Look, write_preview
from vitreous.analysis.streams import Floats, Ints, source_of
from vitreous.errors import ConfigError
from vitreous.files import write_json
from vitreous.scenes.cube import wavelengths_of
from vitreous.scenes.formats import find_writer, open_scene, write_scene
from vitreous.scenes.overwrite import check_overwrite
from vitreous.scenes.spectra import Spectra, write_spectra

# A sidecar of an .npy scene ends in .json, and a table of labels in .csv: these are neither.
BESIDE = (".png", ".facts.json", ".spectra.csv")


@dataclass(frozen=True)
class Result:
    """What an analysis gives.

    Attributes:
        image: ``(band, y, x)`` on the scene's grid, computed when it is read; NaN where a pixel is invalid.
        facts: what was found and by which settings, JSON-ready.
        summary: the same in a sentence.
        spectra: that belong to it, in the scene's bands: loadings, targets or endmembers.
        look: how the image is shown.
    """

    image: xr.DataArray
    facts: dict[str, Any]
    summary: str
    spectra: Spectra | None = None
    look: Look = field(default_factory=Look)

    def write(self, out: str | Path) -> list[Path]:
        """Write the image, its picture, what was found, and the spectra.

        Args:
            out: the image: ``.tif`` for a COG, or another name that :func:`vitreous.write_scene` knows. The other files
                are beside it: ``out.png``, ``out.facts.json`` and ``out.spectra.csv``.

        Returns:
            The files, the image the first.

        Raises:
            VitreousError: they cannot be written there.
        """
        path = Path(out)
        picture, facts, spectra = (path.with_suffix(ending) for ending in BESIDE)
        names = [str(name) for name in self.image["band_name"].values]
        write_scene(self.image, path)
        write_json(facts, {**self.facts, "bands": names})
        if self.spectra is not None:
            write_spectra(self.spectra, spectra)
        else:  # those of another analysis of this name would be taken for this one's
            spectra.unlink(missing_ok=True)
        write_preview(open_scene(path), names, self.look, self.spectra, picture)
        return [path, picture, facts, *([spectra] if self.spectra is not None else [])]


def facts_of(name: str, scene: xr.DataArray, bands: Ints, **more: Any) -> dict[str, Any]:
    """Return what is told of every analysis, and more: its name, its scene and which wavelengths took part."""
    centres = wavelengths_of(scene)
    known = centres is not None and bool(np.isfinite(centres[bands]).all())
    return {
        "analysis": name,
        "scene": source_of(scene),
        "wavelengths_nm": centres[bands].tolist() if centres is not None and known else None,
        **more,
    }


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


def check_files(
    out: Path, scenes: Iterable[xr.DataArray], others: Iterable[str | Path] = ()
) -> None:
    """Refuse names of products that cannot be written, or are those of what is read.

    Args:
        out: the image to be written.
        scenes: that are read.
        others: further files that are read.

    Raises:
        VitreousError: a product would replace one of them, or has a suffix that no writer knows.
    """
    find_writer(out)
    products = [out, *(out.with_suffix(ending) for ending in BESIDE)]
    read = {Path(other).resolve() for other in others}
    for product in products:
        for scene in scenes:
            check_overwrite(product, scene)
        if product.resolve() in read:
            raise ConfigError(
                f"{product} would overwrite a file that is read.", "Choose another name."
            )
