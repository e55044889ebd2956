"""PNG and JPEG: photographs as scenes, and PNG masks as labels.

Formats: W3C, Portable Network Graphics (third edition); ISO/IEC 10918 (JPEG). The place is that of a world file
(``.pgw``, ``.jgw``, ``.wld`` ...) or of GDAL's ``.aux.xml``; the CRS that of the latter or of a ``.prj`` file.
"""

from __future__ import annotations

import struct
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.errors import SceneError
from vitreous.scenes import arrays, geotiff
from vitreous.scenes.cube import LabelImage, LazyCube, Window, check_shape, make_scene
from vitreous.scenes.gdal_files import RasterReader, known_grid, open_raster
from vitreous.scenes.values import converted, nodata_values

MOST_COLORS = 256  # of a colour-coded mask; with more it is a photograph
_PRJ_LIMIT = 2**16
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_NAMES = {1: ["grey"], 3: ["red", "green", "blue"]}


def open(path: Path, **known: Any) -> xr.DataArray:
    """Open a picture lazily; a palette is replaced by its colours, transparency hides pixels.

    Args:
        path: the file.
        **known: arguments of :func:`make_scene` that win over what the file says.

    Raises:
        SceneError: the file cannot be read.
    """
    source, driver = str(path), _driver(path)
    with open_raster(path, driver) as dataset:
        alpha = geotiff.alpha_band(dataset, source)
        bands = [band for band in range(dataset.count) if band != alpha]
        palette = _palette(dataset) if dataset.count == 1 else None
        count = len(bands) if palette is None else 3
        shape = check_shape((count, dataset.height, dataset.width), source)
        dtype = dataset.dtypes[0]
        crs, transform = _grid(path, dataset)
        nodata = dataset.nodata if palette is None else None
    reader = RasterReader(path, driver)
    read = geotiff.Stored(reader, bands) if palette is None else _Colors(reader, palette)
    cube = LazyCube(shape, dtype, read)
    facts: dict[str, Any] = {"nodata": nodata, "crs": crs, "transform": transform, **known}
    if count in _NAMES:
        facts.setdefault("band_names", _NAMES[count])
    if alpha is not None:
        kept = nodata_values(facts["nodata"])
        cube = converted(cube, valid=(geotiff.Alpha(reader, alpha),), nodata=kept)
        facts["nodata"] = float("nan")
    return make_scene(cube, source=source, **facts)


def open_labels(path: Path) -> LabelImage:
    """Read a PNG mask: numbers of a palette or of a grey image, or one class per colour.

    Colours of a palette become those of the classes. In a colour-coded image black means unlabelled; the other colours
    are numbered in the order of their hexadecimal names, which become the classes' names.

    Raises:
        SceneError: a JPEG, whose compression changes class numbers, or a photograph.
    """
    source = str(path)
    if _driver(path) == "JPEG":
        raise SceneError(
            f"{path} is a JPEG, whose compression mixes class numbers at every edge.",
            "Save labels as PNG or GeoTIFF.",
        )
    with open_raster(path, "PNG") as dataset:
        if dataset.width * dataset.height > geotiff.LABEL_PIXELS_LIMIT:
            raise SceneError(
                f"{source} has {dataset.height} x {dataset.width} pixels, too many for labels in memory.",
                "Cut it to the area that has labels.",
            )
        alpha = geotiff.alpha_band(dataset, source)
        bands = [band for band in range(dataset.count) if band != alpha]
        palette = _palette(dataset) if dataset.count == 1 else None
        crs, transform = _grid(path, dataset)
        nodata = dataset.nodata if palette is None else None
    reader = RasterReader(path, "PNG")
    rows, columns = slice(0, dataset.height, 1), slice(0, dataset.width, 1)
    values = reader.read(bands, rows, columns)
    valid = None if alpha is None else geotiff.Alpha(reader, alpha)(rows, columns)
    names = geotiff.read_category_names(path)
    if len(values) == 1 or (values == values[:1]).all():
        colors = None if palette is None else {k: _hexadecimal(c) for k, c in enumerate(palette)}
        return LabelImage(values[0], nodata_values(nodata), names, colors, crs, transform, valid)
    codes, colors = _coded(values, source)
    return LabelImage(codes, (), colors, colors, crs, transform, valid)


def _coded(values: npt.NDArray[Any], source: str) -> tuple[npt.NDArray[Any], dict[int, str]]:
    """Class numbers of a colour-coded image, and the colour of each."""
    if len(values) != 3 or values.dtype != np.uint8:
        raise SceneError(
            f"{source} has {len(values)} bands of {values.dtype}.", "A label image has one band."
        )
    packed = (values[0].astype(np.int64) << 16) | (values[1].astype(np.int64) << 8) | values[2]
    found, index = np.unique(packed, return_inverse=True)
    if found.size > MOST_COLORS:
        raise SceneError(
            f"{source} has {found.size:,} colours: a photograph, not labels.",
            "Give an image of class numbers, or one colour per class.",
        )
    kinds = found[found != 0]
    numbers = np.where(found == 0, 0, np.searchsorted(kinds, found) + 1)
    colors = {k: f"#{int(color):06x}" for k, color in enumerate(kinds, start=1)}
    black = "; black means unlabelled" if kinds.size < found.size else ""
    warnings.warn(
        f"{source} is colour-coded: its {kinds.size} colours are numbered from 1 on as classes{black}"
        " (class_names=... names them).",
        stacklevel=5,
    )
    return numbers[index].reshape(packed.shape), colors


def _driver(path: Path) -> str:
    with path.open("rb") as handle:
        if handle.read(2) == b"\xff\xd8":
            return "JPEG"
        _check_chunks(path, handle)
    return "PNG"


def _check_chunks(path: Path, handle: BinaryIO) -> None:
    """Refuse a PNG that ends before its last chunk: GDAL fills what is missing with zeros and says nothing."""
    position, size = len(_SIGNATURE), path.stat().st_size
    while position + 12 <= size:  # length, name and checksum of a chunk
        handle.seek(position)
        length, name = struct.unpack(">I4s", handle.read(8))
        position += 12 + length
        if name == b"IEND" and position <= size:
            return
    raise SceneError(
        f"{path} ends before its image does.", "The file is truncated; download it again."
    )


def _grid(path: Path, dataset: Any) -> tuple[Any, Any]:
    """CRS and transform, the former also from a ``.prj`` file beside a world file."""
    crs, transform = known_grid(dataset)
    projection = path.with_suffix(".prj")
    if crs is None and transform is not None and projection.is_file():
        try:
            small = projection.stat().st_size <= _PRJ_LIMIT
            text = projection.read_text(encoding="utf-8") if small else ""
        except UnicodeDecodeError:
            text = ""
        crs = arrays.parse_crs(text, str(projection))
    return crs, transform


def _palette(dataset: Any) -> npt.NDArray[np.uint8] | None:
    """Colours ``(entries, 3)``, None for an image without a palette."""
    try:
        table = dataset.colormap(1)
    except ValueError:  # rasterio's way to say that there is none
        return None
    colors = np.zeros((256, 3), dtype=np.uint8)
    for value, color in table.items():
        if 0 <= value < len(colors):
            colors[value] = color[:3]
    return colors


def _hexadecimal(color: npt.NDArray[np.uint8]) -> str:
    return "#" + "".join(f"{int(part):02x}" for part in color)


class _Colors:
    """Reads the colours that a palette gives to the values."""

    def __init__(self, reader: RasterReader, palette: npt.NDArray[np.uint8]) -> None:
        self._reader, self._palette = reader, palette

    def __call__(self, window: Window) -> npt.NDArray[Any]:
        bands, rows, columns = window
        values = self._reader.read([0], rows, columns)[0]
        colors: npt.NDArray[Any] = self._palette[values][:, :, bands]
        return colors.transpose(2, 0, 1)
