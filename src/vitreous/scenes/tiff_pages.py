"""TIFF files with several images: stacks of bands, and arrays that tifffile wrote page by page.

A TIFF holds a list of images. Stacks keep one band in each; ``tifffile.imwrite`` cuts any array along its first axis
and notes its shape as JSON in the first image's description, in which case the axes are found as those of other arrays.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.errors import SceneError
from vitreous.scenes.axes import axes_of
from vitreous.scenes.cube import LazyCube, Window, check_shape, make_scene
from vitreous.scenes.gdal_files import RasterReader, known_grid, open_raster

MOST_PAGES = 10_000


def open(  # the name that every reader has
    path: Path, first: Any, *, axis_order: str | None, known: Mapping[str, Any]
) -> xr.DataArray:
    """Open a TIFF whose images are the bands of one scene, or the slices of one array.

    Args:
        path: the file.
        first: its first image, an open rasterio dataset.
        axis_order: of an array that tifffile wrote page by page, where the user says it.
        known: arguments of :func:`make_scene` that the user gives.

    Raises:
        SceneError: the images differ in size, have several bands each, or it is open what their axes are.
    """
    source = str(path)
    count = len(first.subdatasets)
    size = (first.height, first.width)
    if count > MOST_PAGES:
        raise SceneError(f"{source} holds {count} images, more than a scene can have bands.")
    if first.count != 1 or not _alike(path, count, first):
        raise SceneError(
            f"{source} holds {count} images, the first of {size[0]} x {size[1]} pixels and {first.count}"
            f" band{'s' * (first.count > 1)}, and they are not the bands of one scene.",
            f"Choose one: page=1 to page={count}.",
        )
    shape = (count, *size)
    written = written_shape(first)
    if written is not None and axis_order is None and _leading(written) > 1:
        raise SceneError(
            f"{source} holds an array of {' x '.join(map(str, written))}, of which a scene has three axes.",
            f"Choose one image with page=1 to page={count}, or set axis_order=byx if all {count} are bands of one scene.",
        )
    axes = (0, 1, 2)
    if written is not None and len(written) == 3:
        spectra = () if known.get("wavelengths") is None else (len(known["wavelengths"]),)
        axes = axes_of((), shape, axis_order=axis_order, spectra=spectra, what=source)
    bands, height, width = check_shape([shape[axis] for axis in axes], source)
    cube = LazyCube((bands, height, width), first.dtypes[0], _Pages(path, count, axes))
    crs, transform = known_grid(first) if axes == (0, 1, 2) else (None, None)
    facts = {"nodata": first.nodata, "crs": crs, "transform": transform, **known}
    return make_scene(cube, source=source, **facts)


def _leading(shape: list[int]) -> int:
    """How many axes longer than 1 lie before the rows and columns of an array's images."""
    long = [n for n in shape if n > 1]
    return max(0, len(long) - 2)


def check_whole(path: Path, dataset: Any) -> None:
    """Refuse a TIFF of which only the first slice is listed, as tifffile writes long series.

    Raises:
        SceneError: the array that it notes has more values than the image.
    """
    written = written_shape(dataset) or _stack_of_imagej(dataset)
    if written is None:
        return
    listed = dataset.count * dataset.height * dataset.width
    if math.prod(written) > listed * max(1, len(dataset.subdatasets)):
        sizes = " x ".join(str(n) for n in written)
        raise SceneError(
            f"{path} holds an array of {sizes}, but lists an image of {dataset.height} x {dataset.width} pixels only.",
            "Write it with one image per band, or as .npy.",
        )


def written_shape(dataset: Any) -> list[int] | None:
    """Return the shape of the array that tifffile noted, None where another program wrote the file."""
    text = dataset.tags().get("TIFFTAG_IMAGEDESCRIPTION", "")
    if not text.lstrip().startswith("{"):
        return None
    try:
        shape = json.loads(text).get("shape")
    except (ValueError, RecursionError):
        return None
    if not isinstance(shape, list) or not all(isinstance(n, int) and n > 0 for n in shape):
        return None
    return shape


def _stack_of_imagej(dataset: Any) -> list[int] | None:
    """ImageJ lists only the first image of a large stack, and notes how many follow."""
    text = dataset.tags().get("TIFFTAG_IMAGEDESCRIPTION", "")
    count = re.search(r"^images=(\d+)", text, re.M) if text.startswith("ImageJ=") else None
    return None if count is None else [int(count[1]), dataset.height, dataset.width]


def _alike(path: Path, count: int, first: Any) -> bool:
    for page in range(2, count + 1):
        with open_raster(path, "GTiff", page) as dataset:
            same = (dataset.count, dataset.shape, dataset.dtypes) == (1, first.shape, first.dtypes)
        if not same:
            return False
    return True


class _Pages:
    """Reads windows (band, y, x) of an array whose first axis runs over the images of a file."""

    def __init__(self, path: Path, count: int, axes: tuple[int, int, int]) -> None:
        self._readers = [RasterReader(path, "GTiff", page) for page in range(1, count + 1)]
        self._axes = axes

    def __call__(self, window: Window) -> npt.NDArray[Any]:
        key = [slice(0, 0)] * 3
        for axis, part in zip(self._axes, window, strict=True):
            key[axis] = part
        pages, rows, columns = key
        chosen = self._readers[pages] or self._readers[:1]
        parts = [reader.read([0], rows, columns) for reader in chosen]
        stored = np.concatenate(parts)[: len(self._readers[pages])]
        values: npt.NDArray[Any] = stored.transpose(self._axes)
        return values
