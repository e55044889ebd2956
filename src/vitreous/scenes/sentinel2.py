"""Sentinel-2 products: one JP2 file per band, in three resolutions, stacked to one grid.

Format: ESA, Sentinel-2 Products Specification Document (S2-PDGS-TAS-DI-PSD): ``MTD_MSIL1C.xml`` or ``MTD_MSIL2A.xml``
says which unit measured, its band centres, the offset and the scale of the counts. Where that file is missing they are
taken from names and dates, with a warning. Band widths, and the centres of 2A and 2B, are those of ``sensors.py``.
Coarse bands are brought to the grid while a window is read; a 60 m
pixel covers exactly 6 x 6 pixels of 10 m.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.errors import SceneError
from vitreous.scenes.cube import LazyCube, Window, check_shape, make_scene
from vitreous.scenes.gdal_files import RasterReader, known_grid, open_raster
from vitreous.scenes.metadata_files import damaged, read_xml
from vitreous.scenes.sensors import sensor
from vitreous.scenes.values import converted


class Band(NamedTuple):
    """One band of the instrument: centre and width in nm, native resolution in m."""

    centre: float
    width: float
    resolution: int


_METRES = {10: ("B02", "B03", "B04", "B08"), 60: ("B01", "B09", "B10")}  # all others: 20


def _band_table(unit: str) -> dict[str, Band]:
    metres = {name: size for size, names in _METRES.items() for name in names}
    return {b.name: Band(b.centre, b.fwhm, metres.get(b.name, 20)) for b in sensor(unit).bands}


BANDS = _band_table("sentinel2a")
_BANDS_OF = {"S2A": BANDS, "S2B": _band_table("sentinel2b")}
_BY_ID = tuple(sorted(BANDS, key=lambda name: 8.5 if name == "B8A" else int(name[1:])))
SCALE = 1e-4  # reflectance per count
RESOLUTIONS = (10, 20, 60)
FILES_LIMIT = 20_000

_BAND_FILE = re.compile(
    r"(?P<tile>.*)_(?P<band>B(?:0[1-9]|8A|1[0-2]))(?:_(?P<resolution>10|20|60)m)?\.jp2", re.I
)
_PRODUCT = re.compile(r"(?P<craft>S2[A-D])_MSIL\w+?_\d{8}T\d{6}_N(?P<baseline>\d{4})_", re.I)
_SENSED = re.compile(r"_(\d{8})T\d{6}")
_OFFSET = -1000  # added to counts since processing baseline 04.00
_OFFSET_BASELINE = 400
_OFFSET_DAY = "20220125"  # the day that baseline became operational


class _File(NamedTuple):
    path: Path
    resolution: int
    height: int
    width: int


class _Grid(NamedTuple):
    crs: Any
    transform: Any
    shape: tuple[int, int, int]


def open(
    path: Path,
    *,
    resolution: int = 10,
    resampling: str = "nearest",
    offset: int | None = None,
    **known: Any,
) -> xr.DataArray:
    """Open a Sentinel-2 product (Level-1C or 2A) lazily, bands in order of the instrument.

    Finer bands are averaged to a coarser grid. The offset that counts carry since processing baseline 04.00 is part of
    the stored values, so reflectance is stored value x scale.

    Args:
        path: the product folder, any folder of it that holds band files, or one of its JP2 files.
        resolution: of the grid in m: 10, 20 or 60.
        resampling: how coarse bands reach a finer grid: ``nearest`` keeps their pixels, ``bilinear`` smooths.
        offset: added to the counts, instead of what the product says.
        **known: arguments of :func:`make_scene` that win over what the product says.

    Raises:
        SceneError: no bands, several tiles, bands that do not share a grid, or an impossible hint.
    """
    resolution = _whole("resolution", resolution)
    if resolution not in RESOLUTIONS:
        raise SceneError(f"Sentinel-2 has no resolution of {resolution} m.", "Use 10, 20 or 60.")
    if resampling not in {"nearest", "bilinear"}:
        raise SceneError(f"Unknown resampling '{resampling}'.", "Use nearest or bilinear.")
    found = _choose(find_bands(path), resolution)
    files = {name: found[name] for name in BANDS if name in found}
    return _open(
        files,
        path,
        source=str(path),
        resolution=resolution,
        bilinear=resampling == "bilinear",
        offset=offset,
        known=known,
    )


def _open(
    files: Mapping[str, Path],
    path: Path,
    *,
    source: str,
    resolution: int,
    bilinear: bool = False,
    offset: int | None = None,
    known: Mapping[str, Any],
) -> xr.DataArray:
    """Stack bands in the order of ``files``; what they mean is looked for in the product of ``path``."""
    names = list(files)
    chosen = [_inspect(files[name], name) for name in names]
    grid = _common_grid(chosen, resolution)
    said = _metadata(path)
    if offset is not None:
        shifts = [_whole("offset", offset)] * len(names)
    elif said is None:
        shifts = [_offset_of(path, files[names[0]])] * len(names)
    else:
        shifts = [said.offsets.get(name, 0) for name in names]
    stack = _Stack(chosen, resolution, bilinear, shifts)
    cube, nodata = LazyCube(grid.shape, stack.dtype, stack), float(shifts[0])
    if len(set(shifts)) > 1:
        cube = converted(cube, nodata_of=np.array(shifts, dtype=np.float64))
        nodata = float("nan")
    table = _bands_of(path, said, names)
    facts = {
        "wavelengths": [table[name].centre for name in names],
        "fwhm": [table[name].width for name in names],
        "unit": "reflectance",
        "scale": SCALE if said is None else said.scale,
        "nodata": nodata,
        "crs": grid.crs,
        "transform": grid.transform,
        "band_names": names,
        **known,
    }
    return make_scene(cube, source=source, **facts)


def find_bands(path: Path) -> dict[str, list[Path]]:
    """Return the band files of a product by band name, all resolutions.

    Args:
        path: as in :func:`open`.

    Raises:
        SceneError: no band files, or those of several tiles.
    """
    tile = None
    folder = path
    if path.is_file():
        match = _BAND_FILE.fullmatch(path.name)
        if match is None:
            raise SceneError(
                f"{path} is not a band of a Sentinel-2 product.",
                "Band files end in _B02.jp2, _B8A_20m.jp2 and so on.",
            )
        tile = match["tile"].lower()
        # Level-2A keeps each resolution in a folder of its own.
        folder = path.parent.parent if re.fullmatch(r"R\d\dm", path.parent.name) else path.parent
    tiles: dict[str, dict[str, list[Path]]] = {}
    for file in _jp2_files(folder):
        match = _BAND_FILE.fullmatch(file.name)
        if match is not None and tile in {None, match["tile"].lower()}:
            bands = tiles.setdefault(match["tile"].lower(), {})
            bands.setdefault(match["band"].upper(), []).append(file)
    if not tiles:
        raise SceneError(
            f"{path} holds no Sentinel-2 bands.",
            "Band files end in _B02.jp2, _B8A_20m.jp2 and so on.",
        )
    if len(tiles) > 1:
        raise SceneError(
            f"{path} holds {len(tiles)} tiles: {', '.join(sorted(tiles))}.",
            "Open one granule folder, or one JP2 file of the tile you want.",
        )
    return tiles.popitem()[1]


def band_of(path: Path) -> str | None:
    """Return the band that a file holds, None where it is no band file of Sentinel-2."""
    match = _BAND_FILE.fullmatch(path.name)
    return match["band"].upper() if match else None


def open_files(files: Sequence[Path], path: Path, known: Mapping[str, Any]) -> xr.DataArray:
    """Open some bands of one product, on the grid of the finest, in the given order.

    Args:
        files: band files.
        path: what the user asked for, for messages.
        known: arguments of :func:`make_scene`.

    Raises:
        SceneError: they are of several tiles or do not share a grid.
    """
    bands: dict[str, Path] = {}
    tiles = set()
    for file in files:
        match = _BAND_FILE.fullmatch(file.name)
        if match is None:
            raise SceneError(f"{file} is not a band of a Sentinel-2 product.")
        tiles.add(match["tile"].lower())
        if bands.setdefault(match["band"].upper(), file) != file:
            raise SceneError(f"{path} holds {match['band']} twice.", "Name each band once.")
    if len(tiles) > 1:
        raise SceneError(f"{path} holds {len(tiles)} tiles.", "Name the bands of one.")
    finest = min(_inspect(file, name)[0].resolution for name, file in bands.items())
    return _open(bands, files[0], source=str(path), resolution=finest, known=known)


def is_product(folder: Path) -> bool:
    """Return whether a folder holds band files of Sentinel-2."""
    return any(_BAND_FILE.fullmatch(file.name) for file in _jp2_files(folder))


def _jp2_files(folder: Path) -> list[Path]:
    found: list[Path] = []
    seen = 0
    for root, folders, names in os.walk(folder):
        folders.sort()
        seen += len(names)
        found += [Path(root, name) for name in sorted(names) if name.lower().endswith(".jp2")]
        if seen > FILES_LIMIT:  # somebody's whole archive rather than a product
            break
    return found


def _choose(bands: dict[str, list[Path]], resolution: int) -> dict[str, Path]:
    """One file per band: at the wanted resolution, or else the finest there is."""

    def order(name: str, path: Path) -> tuple[bool, int]:
        match = _BAND_FILE.fullmatch(path.name)
        stated = match["resolution"] if match else None
        actual = int(stated) if stated else BANDS[name].resolution
        return actual != resolution, actual

    return {name: min(paths, key=lambda p: order(name, p)) for name, paths in bands.items()}


def _inspect(path: Path, name: str) -> tuple[_File, Any, Any]:
    with open_raster(path, "JP2OpenJPEG") as dataset:
        crs, transform = known_grid(dataset)
        if dataset.count != 1:
            raise SceneError(
                f"{path} has {dataset.count} bands.",
                "A band file holds one band; this may be a preview.",
            )
        size = BANDS[name].resolution if transform is None else abs(transform.a)
        return _File(path, round(size), dataset.height, dataset.width), crs, transform


def _common_grid(chosen: Sequence[tuple[_File, Any, Any]], resolution: int) -> _Grid:
    """The grid that all bands share, or a complaint about the first that does not."""
    from rasterio import Affine

    first, crs, transform = chosen[0]
    extent = first.height * first.resolution, first.width * first.resolution
    for file, other_crs, other in chosen:
        if file.resolution not in RESOLUTIONS:
            raise SceneError(
                f"{file.path} has pixels of {file.resolution} m.", "Expected 10, 20 or 60 m."
            )
        same_corner = (other is None and transform is None) or (
            other is not None
            and transform is not None
            and (other.c, other.f) == (transform.c, transform.f)
        )
        covered = file.height * file.resolution, file.width * file.resolution
        if other_crs != crs or not same_corner or covered != extent:
            raise SceneError(
                f"{file.path} does not cover the same area as {first.path}.",
                "Its product is damaged or mixed.",
            )
    if extent[0] % resolution or extent[1] % resolution:
        raise SceneError(
            f"The width of {first.path} is not a multiple of {resolution} m.",
            "Use a finer resolution.",
        )
    height, width = extent[0] // resolution, extent[1] // resolution
    shape = check_shape((len(chosen), height, width), str(first.path))
    if transform is not None:
        transform = Affine(resolution, 0, transform.c, 0, -resolution, transform.f)
    return _Grid(crs, transform, shape)


def _product_part(path: Path, part: str) -> str | None:
    for name in (path.name, *(p.name for p in path.absolute().parents)):
        match = _PRODUCT.match(name)
        if match is not None:
            return match[part].upper()
    return None


class _Metadata(NamedTuple):
    """What ``MTD_MSIL*.xml`` says."""

    unit: str | None
    scale: float
    offsets: dict[str, int]
    centres: dict[str, float]


def _metadata(path: Path) -> _Metadata | None:
    """Read the product's metadata, from its folder or from one of those above; None where there are none."""
    folders = [path, *path.absolute().parents][:6] if path.is_dir() else path.absolute().parents[:6]
    found = [file for folder in folders for file in sorted(folder.glob("MTD_MSIL*.xml"))]
    if not found:
        return None
    try:
        return _parsed(read_xml(found[0]))
    except (ValueError, IndexError) as error:
        raise damaged(found[0]) from error


def _parsed(root: ElementTree.Element) -> _Metadata:
    craft = (root.findtext(".//SPACECRAFT_NAME") or "").strip()
    unit = f"S2{craft[-1]}" if craft.startswith("Sentinel-2") and craft[-1].isalpha() else None
    factor = next(
        (
            float(text)
            for name in ("BOA_QUANTIFICATION_VALUE", "QUANTIFICATION_VALUE")
            if (text := root.findtext(f".//{name}"))
        ),
        1 / SCALE,
    )
    if not factor > 0:
        raise ValueError(f"a quantification value of {factor}")
    offsets = {
        _BY_ID[int(item.get("band_id", ""))]: round(float(item.text or ""))
        for name in ("BOA_ADD_OFFSET", "RADIO_ADD_OFFSET")
        for item in root.iter(name)
    }
    centres = {}
    for item in root.iter("Spectral_Information"):
        centre = item.findtext(".//CENTRAL")
        if centre:
            centres[_BY_ID[int(item.get("bandId", ""))]] = float(centre)
    return _Metadata(unit, 1 / factor, offsets, centres)


def _bands_of(path: Path, said: _Metadata | None, names: Sequence[str]) -> dict[str, Band]:
    """Centres and widths of the unit that measured: the product's own centres, else those of 2A and 2B."""
    unit = (said.unit if said else None) or _product_part(path, "craft")
    table = _BANDS_OF.get(unit or "", BANDS)
    centres = said.centres if said else {}
    if unit not in _BANDS_OF and not set(names) <= centres.keys():
        warnings.warn(
            f"{path} does not say {'its band centres' if unit else 'which Sentinel-2 measured it'}; those of "
            "Sentinel-2A are assumed, which differ by a few nm (up to 17 nm in B12).",
            stacklevel=3,
        )
    return {
        name: table[name]._replace(centre=centres.get(name, table[name].centre)) for name in names
    }


def _offset_of(path: Path, band_file: Path) -> int:
    """The offset of the counts where the product's metadata are missing: by its name, or by the day."""
    baseline = _product_part(path, "baseline") or _product_part(band_file, "baseline")
    if baseline is not None:
        offset = _OFFSET if int(baseline) >= _OFFSET_BASELINE else 0
        _say_guess(path, offset, f"its processing baseline {baseline}")
        return offset
    sensed = _SENSED.search(band_file.name)
    if sensed is None:
        warnings.warn(
            f"{path} does not give its processing date; counts are read without offset. Set offset=-1000 for "
            "products since January 2022.",
            stacklevel=3,
        )
        return 0
    offset = _OFFSET if sensed[1] >= _OFFSET_DAY else 0
    _say_guess(
        path, offset, f"the day it was sensed, {sensed[1]}; older days processed again differ"
    )
    return offset


def _say_guess(path: Path, offset: int, why: str) -> None:
    warnings.warn(
        f"{path} has no MTD_MSIL*.xml: counts are read with offset {offset}, given {why} (set offset=... to override).",
        stacklevel=4,
    )


def _whole(name: str, value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError) as error:
        raise SceneError(f"{name} is '{value}'.", "It must be an integer.") from error


class _Stack:
    """Reads windows of the common grid from files of several resolutions."""

    def __init__(
        self,
        chosen: Sequence[tuple[_File, Any, Any]],
        resolution: int,
        bilinear: bool,
        shifts: Sequence[int],
    ) -> None:
        self.files = [file for file, _, _ in chosen]
        self.readers = [RasterReader(file.path, "JP2OpenJPEG") for file in self.files]
        self.resolution = resolution
        self.bilinear = bilinear
        self.dtype = np.dtype(np.int32 if any(shifts) else np.uint16)
        self.shifts = np.array(shifts, dtype=self.dtype)

    def __call__(self, window: Window) -> npt.NDArray[Any]:
        bands, rows, columns = window
        picked = range(bands.start, bands.stop, bands.step)
        height, width = max(0, rows.stop - rows.start), max(0, columns.stop - columns.start)
        values = np.empty((len(picked), height, width), dtype=self.dtype)
        if values.size:
            for k, band in enumerate(picked):
                values[k] = self._read(band, rows, columns)
        return values[:, :: rows.step, :: columns.step] + self.shifts[bands][:, None, None]

    def _read(self, band: int, rows: slice, columns: slice) -> npt.NDArray[Any]:
        file, reader = self.files[band], self.readers[band]
        if file.resolution < self.resolution:
            factor = self.resolution // file.resolution
            fine = reader.read([0], _times(rows, factor), _times(columns, factor))[0]
            return _average(fine, factor)
        factor = file.resolution // self.resolution
        if self.bilinear and factor > 1:
            return _bilinear(reader, (file.height, file.width), rows, columns, factor)
        top, left = rows.start // factor, columns.start // factor
        coarse = reader.read(
            [0], slice(top, -(-rows.stop // factor), 1), slice(left, -(-columns.stop // factor), 1)
        )[0]
        row_index = np.arange(rows.start, rows.stop) // factor - top
        column_index = np.arange(columns.start, columns.stop) // factor - left
        repeated: npt.NDArray[Any] = coarse[np.ix_(row_index, column_index)]
        return repeated


def _times(rows: slice, factor: int) -> slice:
    return slice(rows.start * factor, rows.stop * factor, 1)


def _average(fine: npt.NDArray[Any], factor: int) -> npt.NDArray[Any]:
    """Mean of blocks, no data (0) where any pixel of the block has none."""
    height, width = fine.shape[0] // factor, fine.shape[1] // factor
    blocks = fine.reshape(height, factor, width, factor)
    mean: npt.NDArray[Any] = np.rint(blocks.mean(axis=(1, 3)))
    mean[(blocks == 0).any(axis=(1, 3))] = 0
    return mean


def _bilinear(
    reader: RasterReader, size: tuple[int, int], rows: slice, columns: slice, factor: int
) -> npt.NDArray[Any]:
    """Interpolate between pixel centres; no data (0) where a pixel that takes part has none.

    Every pixel depends on its four neighbours in the file only, so windows agree where they overlap.
    """
    r0, r1, r_weight = _neighbours(rows, size[0], factor)
    c0, c1, c_weight = _neighbours(columns, size[1], factor)
    top, left = int(r0.min()), int(c0.min())
    coarse = reader.read([0], slice(top, int(r1.max()) + 1, 1), slice(left, int(c1.max()) + 1, 1))[
        0
    ]
    total = np.zeros((len(r0), len(c0)))
    missing = np.zeros(total.shape, dtype=bool)
    for row, row_weight in ((r0, 1 - r_weight), (r1, r_weight)):
        for column, column_weight in ((c0, 1 - c_weight), (c1, c_weight)):
            corner = coarse[np.ix_(row - top, column - left)]
            weight = np.outer(row_weight, column_weight)
            total += weight * corner
            missing |= (corner == 0) & (weight > 0)
    total[missing] = 0
    rounded: npt.NDArray[Any] = np.rint(total)
    return rounded


def _neighbours(
    span: slice, size: int, factor: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Coarse pixels before and after each fine pixel's centre, and the weight of the second."""
    position = (np.arange(span.start, span.stop) + 0.5) / factor - 0.5
    lower = np.floor(position).astype(np.int64)
    weight = position - lower
    return np.clip(lower, 0, size - 1), np.clip(lower + 1, 0, size - 1), weight
