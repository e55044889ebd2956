"""A list of files with one band each as one scene, or a pattern that names them: ``B0[2-8].tif``.

Patterns are those of a shell: ``*``, ``?``, ``[2-8]``, and ``{B04,B03}`` for a given order. What a pattern finds is
sorted as people count (B2 before B10). Band centres come from the files, from names such as ``450nm``, or from those
of Sentinel-2, Landsat and HLS; where only numbers of bands are left, a warning says that they are unknown.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from vitreous.errors import SceneError
from vitreous.scenes import hyperion, landsat, sentinel2
from vitreous.scenes.cube import LazyCube, Window, georeference, make_scene, wavelengths_of
from vitreous.scenes.gdal_files import RasterReader, known_grid, open_raster
from vitreous.scenes.sensors import SensorBand, sensor_of_names, sensors
from vitreous.scenes.stacks import stacked
from vitreous.scenes.values import converted
from vitreous.scenes.wavelengths import from_names

MOST_FILES = 2000
_BRACES = re.compile(r"\{([^{}]*)\}")
_WILD = re.compile(r"[*?\[{]")
_BAND = re.compile(r"(?:^|.*[^A-Za-z0-9])(B\d?\d|B8A)(?:_(?:10|20|60)m)?", re.I)
_POLARISATION = re.compile(r"(?:.*[-_])?(VV|VH|HH|HV)(?:[-_.].*)?", re.I)


def pattern_of(paths: Sequence[str | os.PathLike[str]]) -> str:
    """Return one pattern for a list of files, which keeps their order.

    Raises:
        SceneError: the list is empty, or a name cannot be part of a pattern.
    """
    files = [Path(path).expanduser().absolute() for path in paths]
    if not files:
        raise SceneError("The list of files is empty.", "Name one file per band.")
    for file in files:
        if re.search(r"[{},*?\[\]]", str(file)):
            raise SceneError(
                f"{file} cannot be part of a list: its name has a comma, bracket or star.",
                "Rename it.",
            )
    if len(files) == 1:
        return str(files[0])
    folder = Path(os.path.commonpath([file.parent for file in files]))
    return str(folder / f"{{{','.join(str(file.relative_to(folder)) for file in files)}}}")


def is_pattern(path: str | os.PathLike[str]) -> bool:
    """True for a path with wildcards that is no file of this name."""
    text = os.fspath(path)
    return _WILD.search(text) is not None and not os.path.lexists(text)


def matching(pattern: str | os.PathLike[str]) -> list[Path]:
    """Return the files that a pattern means, in its order and else as people count.

    Raises:
        SceneError: there are none, one twice, or far too many.
    """
    found: list[Path] = []
    for part in _alternatives(os.fspath(pattern)):
        file = Path(part).expanduser()
        if not _WILD.search(part):
            found.append(file)
            continue
        names = Path(file.anchor).glob(str(file.relative_to(file.anchor)))
        found += sorted(islice(names, MOST_FILES + 1), key=lambda name: _natural(str(name)))
    if len(found) > MOST_FILES:
        raise SceneError(f"{pattern} means more than {MOST_FILES} files.", "Make it narrower.")
    if not found:
        raise SceneError(f"No file matches {pattern}.", "Check the folder and the pattern.")
    missing = [file for file in found if not file.exists()]
    if missing:
        raise SceneError(f"{missing[0]} does not exist.", "Check the list of files.")
    if len(set(found)) < len(found):
        raise SceneError(f"{pattern} names a file twice.", "Name each once.")
    return found


def open(path: Path, **known: Any) -> xr.DataArray:
    """Open files with one band each as one scene.

    Bands of one Sentinel-2, Landsat or Hyperion product are opened as part of it, with its scale and offset. Other files keep
    what their tags say; where it differs, the scene is in floating point with NaN for nodata.

    Args:
        path: a pattern, see :func:`matching`.
        **known: arguments of :func:`make_scene` that win over what the files say.

    Raises:
        SceneError: a file has several bands, is no image, or the files contradict each other.
    """
    files = matching(path)
    folders = [file for file in files if file.is_dir()]
    if folders:
        raise SceneError(f"{folders[0]} is a folder.", "A list holds files of one band each.")
    source = str(path)
    of_landsat = [file for file in map(landsat.band_of, files) if file is not None]
    if len(of_landsat) == len(files):
        return landsat.open_files(of_landsat, path, known)
    of_hyperion = [file for file in map(hyperion.band_of, files) if file is not None]
    if len(of_hyperion) == len(files):
        return hyperion.open_files(of_hyperion, path, known)
    if all(sentinel2.band_of(file) for file in files):
        return sentinel2.open_files(files, path, known)
    images = [_open_one(file) for file in files]
    cube, grid = stacked(images, source)
    facts = {
        "crs": grid.crs,
        "transform": grid.transform,
        "band_names": [_name(image, file) for image, file in zip(images, files, strict=True)],
        **_spectral(images, files, source, known),
    }
    cube, values = _common_values(cube, images, source, known)
    return make_scene(cube, source=source, **{**facts, **known, **values})


def _alternatives(pattern: str) -> list[str]:
    """Spell out ``{a,b}`` as a shell does."""
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    spelt = []
    for word in match[1].split(","):
        spelt += _alternatives(pattern[: match.start()] + word + pattern[match.end() :])
        if len(spelt) > MOST_FILES:
            break
    return spelt


def _natural(name: str) -> list[tuple[int, int, str]]:
    """A key by which B2 comes before B10, and B8 before B8A."""
    return [
        (0, int(part), "") if part.isdigit() else (1, 0, part.lower())
        for part in re.split(r"(\d+)", name)
    ]


def _open_one(file: Path) -> xr.DataArray:
    if file.suffix.lower() != ".jp2":
        from vitreous.scenes.formats import find_reader, local_path

        reader = find_reader(local_path(file))
        image: xr.DataArray = reader.open(file)
        return image.assign_attrs(source=str(file))
    driver = "JP2OpenJPEG"
    with open_raster(file, driver) as dataset:
        shape = (dataset.count, dataset.height, dataset.width)
        crs, transform = known_grid(dataset)
        dtype, nodata = dataset.dtypes[0], dataset.nodata
    cube = LazyCube(shape, dtype, _Jp2(RasterReader(file, driver)))
    return make_scene(cube, nodata=nodata, crs=crs, transform=transform, source=str(file))


class _Jp2:
    """Reads windows of a JPEG 2000 file."""

    def __init__(self, reader: RasterReader) -> None:
        self._reader = reader

    def __call__(self, window: Window) -> Any:
        bands, rows, columns = window
        return self._reader.read(range(bands.start, bands.stop, bands.step), rows, columns)


def _name(image: xr.DataArray, file: Path) -> str:
    said = str(image["band_name"].values[0]) if "band_name" in image.coords else ""
    match = _BAND.fullmatch(file.stem)
    polarisation = _POLARISATION.fullmatch(file.stem)
    match = match or polarisation
    return said or (match[1].upper() if match else file.stem)


def _spectral(
    images: Sequence[xr.DataArray], files: Sequence[Path], source: str, known: Mapping[str, Any]
) -> dict[str, Any]:
    """Band centres and widths from the files, or from their names."""
    if "wavelengths" in known:
        return {}
    centres = [wavelengths_of(image) for image in images]
    if all(centre is not None for centre in centres):
        facts: dict[str, Any] = {"wavelengths": [c[0] for c in centres if c is not None]}
        if all("fwhm" in image.coords for image in images):
            facts["fwhm"] = [float(image["fwhm"].values[0]) for image in images]
        return facts
    in_names = from_names([file.stem.replace("_", " ").replace("-", " ") for file in files])
    if in_names is not None:
        return {"wavelengths": in_names}
    table = _table(images, files, source)
    bands = [match[1].upper() if (match := _BAND.fullmatch(f.stem)) else "" for f in files]
    if set(bands) <= table.keys():
        return {
            "wavelengths": [table[band].centre for band in bands],
            "fwhm": [table[band].fwhm for band in bands],
        }
    if all(_POLARISATION.fullmatch(file.stem) for file in files):
        return {}  # radar
    warnings.warn(
        f"{source}: nothing says the band centres of {', '.join(f.name for f in files[:4])}{' ...' if files[4:] else ''}"
        " (set wavelengths=...).",
        stacklevel=4,
    )
    return {}


def _table(
    images: Sequence[xr.DataArray], files: Sequence[Path], source: str
) -> dict[str, SensorBand]:
    """The bands of the sensor that names or pixels of 10 and 20 m give away."""
    stems = [file.stem for file in files]
    bands = [match[1].upper() for stem in stems if (match := _BAND.fullmatch(stem))]
    found = sensor_of_names(bands, stems)
    if found is not None:
        return found
    padded = all(re.search(r"B(0\d|1[0-2])$", stem, re.I) for stem in stems)
    places = [georeference(image) for image in images]
    sides = {round(abs(grid.a)) for crs, grid in places if crs is not None and grid is not None}
    if padded and sides and sides <= {10, 20}:
        warnings.warn(
            f"{source}: pixels of 10 and 20 m and names such as {stems[0]} are treated as Sentinel-2"
            " (if not, set wavelengths=...).",
            stacklevel=5,
        )
        return {band.name: band for band in sensors()["sentinel2a"].bands}
    return {}


def _common_values(
    cube: LazyCube, images: Sequence[xr.DataArray], source: str, known: Mapping[str, Any]
) -> tuple[LazyCube, dict[str, Any]]:
    """One unit, scale and nodata for all bands; values are converted where theirs differ."""
    units = {str(image.attrs["unit"]) for image in images}
    if len(units) > 1 and "unit" not in known:
        raise SceneError(
            f"{source} mixes {' and '.join(sorted(units))}.",
            "Set unit=..., or exclude some files.",
        )
    scales = np.array([known.get("scale", image.attrs["scale"]) for image in images], dtype=float)
    given = [known.get("nodata", image.attrs["nodata"]) for image in images]
    nodata = np.array([np.nan if value is None else float(value) for value in given])
    same_scale = bool((scales == scales[0]).all())
    facts: dict[str, Any] = {
        "unit": known.get("unit", units.pop()),
        "scale": float(scales[0]),
        "nodata": given[0],
    }
    if same_scale and np.array_equal(nodata, np.full(len(nodata), nodata[0]), equal_nan=True):
        return cube, facts
    settings: dict[str, Any] = {"nodata_of": nodata}
    if not same_scale:
        settings["scales"] = scales
        facts["scale"] = 1.0
    return converted(cube, **settings), {**facts, "nodata": float("nan")}
