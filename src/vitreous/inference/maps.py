"""The files of a prediction: a class map as COG, and the probabilities on request.

Windows go to uncompressed tiled GeoTIFFs in a hidden folder beside the product. When all are there they are copied
into Cloud Optimized GeoTIFFs (https://docs.ogc.org/is/21-026/21-026.html), and only then do the final names appear.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.errors import VitreousError
from vitreous.files import atomic_path, hidden_folder
from vitreous.inference.windows import Scored, Window
from vitreous.scenes.cube import code_table, georeference, unlabelled_code
from vitreous.scenes.geotiff import CACHE_MB, set_classes, write_category_names

TILE = 256


@dataclass(frozen=True, slots=True)
class Grid:
    """Where a map lies.

    Attributes:
        height: rows.
        width: columns.
        crs: the coordinate system, None where unknown.
        transform: pixel corner to CRS, None where unknown.
    """

    height: int
    width: int
    crs: Any = None
    transform: Any = None

    @classmethod
    def of(cls, scene: xr.DataArray) -> Grid:
        """Return the grid of ``scene``."""
        return cls(scene.sizes["y"], scene.sizes["x"], *georeference(scene))


@dataclass(frozen=True, slots=True)
class Classes:
    """Names, ``#rrggbb`` colours and map values of the classes from 1 on.

    Attributes:
        names: one per class.
        colors: one per class.
        codes: the map's value for each class; 1, 2, ... when empty.
    """

    names: Sequence[str]
    colors: Sequence[str]
    codes: Sequence[int] = ()

    @property
    def values(self) -> list[int]:
        """The map's value for each class."""
        return [int(code) for code in self.codes] or list(range(1, len(self.names) + 1))

    @property
    def nodata(self) -> int:
        """The map's value where there is no class: 0, or a value that is no class."""
        return unlabelled_code(self.values)

    @property
    def table(self) -> npt.NDArray[Any]:
        """The map's values by class number, no data first, in the smallest type that holds them."""
        return code_table(self.values)


def class_numbers(
    values: npt.NDArray[np.integer[Any]], codes: Sequence[int]
) -> npt.NDArray[np.int64]:
    """Return class numbers from 1 on for the values of a map; 0 where a value is no class.

    Args:
        values: of any shape.
        codes: the map's value for each class, in any order.
    """
    order = np.argsort(np.asarray(codes, dtype=np.int64))
    known = np.asarray(codes, dtype=np.int64)[order]
    place = np.searchsorted(known, values).clip(max=len(known) - 1)
    return np.where(known[place] == values, order[place] + 1, 0)


class MapWriter:
    """Takes scored windows in any order; the products appear when :func:`map_products` ends."""

    def __init__(
        self,
        classes: Any,
        probabilities: Any | None,
        codes: npt.NDArray[np.integer[Any]],
        layers: Sequence[Any] = (),
    ) -> None:
        self._classes = classes
        self._probabilities = probabilities
        self._layers = layers
        self._codes = codes
        self.class_pixels: npt.NDArray[np.int64] = np.zeros(len(codes), dtype=np.int64)

    def write(self, window: Window, scored: Scored) -> None:
        """Write one window; each pixel of the scene must come exactly once."""
        from rasterio.windows import Window as RasterWindow

        place = RasterWindow(window.column, window.row, window.width, window.height)
        self._classes.write(self._codes[scored.classes], 1, window=place)
        if self._probabilities is not None:
            self._probabilities.write(scored.probabilities, window=place)
        for file, values in zip(self._layers, scored.layers, strict=True):
            file.write(values, window=place)
        self.class_pixels += np.bincount(scored.classes.ravel(), minlength=self.class_pixels.size)


@contextmanager
def map_products(
    path: Path,
    probabilities: Path | None,
    grid: Grid,
    classes: Classes,
    layers: Sequence[tuple[Path, Sequence[str]]] = (),
) -> Iterator[MapWriter]:
    """Yield a writer for windows; the finished files appear together when the block ends well.

    Args:
        path: the class map: COG of the classes' codes in the smallest type, colour table, class names.
        probabilities: COG with one float32 band per class, NaN = nodata, the class names as band descriptions.
        grid: size and place.
        classes: names, colours and codes.
        layers: further files like that of the probabilities, and the descriptions of their bands.

    Raises:
        VitreousError: the disk is full, the folder cannot be written, or GDAL fails.
    """
    import rasterio

    bands = [*([(probabilities, classes.names)] if probabilities else []), *layers]
    with ExitStack() as stack:
        map_target = stack.enter_context(atomic_path(path))
        targets = [stack.enter_context(atomic_path(file)) for file, _ in bands]
        folder = stack.enter_context(hidden_folder(path.parent, path.name))
        stack.enter_context(rasterio.Env(GDAL_CACHEMAX=CACHE_MB))
        stack.enter_context(_readable_gdal_errors(path, folder))
        with ExitStack() as open_files:
            map_file = open_files.enter_context(
                _windows_file(
                    folder / "map.tif", grid, 1, classes.table.dtype, nodata=classes.nodata
                )
            )
            set_classes(map_file, classes.names, classes.colors, classes.values)
            opened = [
                open_files.enter_context(_bands_file(folder / f"bands-{k}.tif", grid, names))
                for k, (_, names) in enumerate(bands)
            ]
            first = opened.pop(0) if probabilities else None
            writer = MapWriter(map_file, first, classes.table, opened)
            yield writer
        _copy_map(folder / "map.tif", map_target)
        _check_written(map_target, writer.class_pixels, classes, path)
        for k, target in enumerate(targets):
            _copy_bands(folder / f"bands-{k}.tif", target)
    write_category_names(path, classes.names, classes.values)


def _bands_file(path: Path, grid: Grid, names: Sequence[str]) -> Any:
    file = _windows_file(path, grid, len(names), np.dtype(np.float32), np.nan)
    file.descriptions = tuple(names)
    return file


def _windows_file(path: Path, grid: Grid, count: int, dtype: np.dtype[Any], nodata: float) -> Any:
    import rasterio

    place = {"crs": grid.crs} if grid.crs else {}
    if grid.transform is not None:
        place["transform"] = grid.transform
    with no_georeference_warning():
        return rasterio.open(
            path,
            "w",
            driver="GTiff",
            width=grid.width,
            height=grid.height,
            count=count,
            dtype=dtype,
            nodata=nodata,
            tiled=True,
            blockxsize=TILE,
            blockysize=TILE,
            interleave="band",
            BIGTIFF="IF_SAFER",
            **place,
        )


def _copy_map(source: Path, target: Path) -> None:
    import rasterio.shutil

    with no_georeference_warning():
        rasterio.shutil.copy(
            source,
            target,
            driver="COG",
            COMPRESS="DEFLATE",
            OVERVIEW_RESAMPLING="MODE",
            BIGTIFF="IF_SAFER",
        )


def _copy_bands(source: Path, target: Path) -> None:
    """Make a band-interleaved COG, which shows single bands quickly.

    The COG driver interleaves by pixel before GDAL 3.11, and takes minutes over a hundred bands. The GTiff driver
    copies a file that has overviews into the same layout: directories first, overviews before the image.
    """
    import rasterio
    import rasterio.shutil
    from rasterio.enums import Resampling

    with no_georeference_warning(), rasterio.open(source, "r+", driver="GTiff") as dataset:
        longest = max(dataset.shape)
        factors = [2**k for k in range(1, 16) if longest > TILE * 2 ** (k - 1)]
        if factors:
            dataset.build_overviews(factors, Resampling.average)
    with no_georeference_warning():
        rasterio.shutil.copy(
            source,
            target,
            driver="GTiff",
            COPY_SRC_OVERVIEWS="YES",
            TILED="YES",
            BLOCKXSIZE=TILE,
            BLOCKYSIZE=TILE,
            INTERLEAVE="BAND",
            COMPRESS="DEFLATE",
            PREDICTOR=3,
            BIGTIFF="IF_SAFER",
        )


def _check_written(
    path: Path, class_pixels: npt.NDArray[np.int64], classes: Classes, product: Path
) -> None:
    """Count the classes again: GDAL may notice a failed write only when it closes the file, and stay silent."""
    import rasterio

    found = np.zeros_like(class_pixels)
    with no_georeference_warning(), rasterio.open(path, driver="GTiff") as dataset:
        for _, window in dataset.block_windows(1):
            numbers = class_numbers(dataset.read(1, window=window).ravel(), classes.values)
            found += np.bincount(numbers, minlength=found.size)
    if (found != class_pixels).any():
        raise VitreousError(
            f"{product} was not written: the file on disk differs from what was computed.",
            "Check the disk and its free space.",
        )


@contextmanager
def _readable_gdal_errors(product: Path, folder: Path) -> Iterator[None]:
    from rasterio._err import CPLE_BaseError  # rasterio.shutil raises it and offers no public name
    from rasterio.errors import RasterioError

    try:
        yield
    except (RasterioError, CPLE_BaseError) as error:
        if shutil.disk_usage(folder).free < 2**20:
            raise VitreousError(
                f"The disk is full: {product} was not written.",
                "Free some space, or write elsewhere.",
            ) from error
        raise VitreousError(
            f"{product} was not written: GDAL says '{error.__cause__ or error}'.",
            "Check the folder, the free space and the file size that the disk allows.",
        ) from error


@contextmanager
def no_georeference_warning() -> Iterator[None]:
    """Silence rasterio's warning: a scene without CRS has a map without."""
    from rasterio.errors import NotGeoreferencedWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield
