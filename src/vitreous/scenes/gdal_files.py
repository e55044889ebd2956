"""Local raster files through GDAL: one named driver, never a guess, safe in threads and forked workers.

GDAL opens much more than files: network addresses, archives, and virtual rasters that point at any other file.
Every raster here is therefore a checked local path opened with the one driver its reader names.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitreous.errors import SceneError
from vitreous.scenes.places import usable

DRIVERS = ("GTiff", "JP2OpenJPEG", "PNG", "JPEG")
BLOCK_LIMIT = 256 * 2**20  # bytes that GDAL may have to decode to give a single pixel


def gdal_errors(*more: type[Exception]) -> tuple[type[Exception], ...]:
    """Return what rasterio raises for damaged files: its own errors, GDAL's that it hands on as they are, and ``more``."""
    from rasterio._err import CPLE_BaseError
    from rasterio.errors import RasterioError

    return RasterioError, CPLE_BaseError, *more


@contextmanager
def open_raster(path: Path, driver: str, page: int | None = None) -> Iterator[Any]:
    """Open a local file for reading and close it again.

    Args:
        path: an existing file.
        driver: one of :data:`DRIVERS`.
        page: of a TIFF with several images, from 1 on.

    Yields:
        the rasterio dataset.

    Raises:
        SceneError: the driver cannot make sense of the file.
    """
    import rasterio
    from rasterio.errors import CRSError

    with rasterio.Env():  # sends GDAL's own messages to logging instead of the terminal
        dataset = _open(path, driver, page)
        with dataset:
            try:
                yield dataset
            except gdal_errors(CRSError, UnicodeError) as error:
                raise SceneError(
                    f"{path} has metadata that cannot be read: {error}.",
                    "The file is damaged; download it again.",
                ) from error


def known_grid(dataset: Any) -> tuple[Any, Any]:
    """Return the dataset's CRS and transform, each None where the file does not say.

    GDAL's identity transform stands for "unknown".
    """
    transform = None if dataset.transform.is_identity else dataset.transform
    return dataset.crs, usable(transform, Path(dataset.name).name)


class RasterReader:
    """Reads windows of one raster file, with one open handle per thread and process.

    A GDAL handle must not be shared between threads, nor survive a fork; keeping one open per thread keeps
    its cache of decoded blocks. Pickling keeps the path only.

    Args:
        path: an existing file.
        driver: one of :data:`DRIVERS`.
        page: of a TIFF with several images, from 1 on.
    """

    def __init__(self, path: Path, driver: str, page: int | None = None) -> None:
        self.path = path
        self.driver = driver
        self.page = page
        self._handles = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "driver": self.driver, "page": self.page}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]  # the state is exactly the arguments

    def read(self, bands: Sequence[int], rows: slice, columns: slice) -> npt.NDArray[Any]:
        """Read stored values.

        Args:
            bands: band indices from 0.
            rows: explicit bounds, positive step.
            columns: as ``rows``.

        Returns:
            ``(bands, rows, columns)`` in the file's type.

        Raises:
            SceneError: the pixels cannot be decoded.
        """
        import rasterio
        from rasterio.windows import Window

        height, width = max(0, rows.stop - rows.start), max(0, columns.stop - columns.start)
        with rasterio.Env():
            dataset = self._dataset()
            if not (len(bands) and height and width):
                empty = np.empty((len(bands), height, width), dtype=dataset.dtypes[0])
                return empty[:, :: rows.step, :: columns.step]
            try:
                values: npt.NDArray[Any] = dataset.read(
                    [band + 1 for band in bands],
                    window=Window(columns.start, rows.start, width, height),
                )
            except gdal_errors() as error:
                raise SceneError(
                    f"{self.path} cannot be decoded at rows {rows.start}-{rows.stop}.",
                    "The file is truncated or damaged; download it again.",
                ) from error
        return values[:, :: rows.step, :: columns.step]

    def read_mask(self, rows: slice, columns: slice) -> npt.NDArray[np.bool_]:
        """Read the mask that the file keeps for all its bands, inside or in a ``.msk`` beside it.

        Args:
            rows: explicit bounds, positive step.
            columns: as ``rows``.

        Returns:
            ``(rows, columns)``, False where a pixel is hidden.

        Raises:
            SceneError: it cannot be decoded.
        """
        import rasterio
        from rasterio.windows import Window

        height, width = max(0, rows.stop - rows.start), max(0, columns.stop - columns.start)
        if not (height and width):
            return np.ones((height, width), dtype=bool)[:: rows.step, :: columns.step]
        with rasterio.Env():
            try:
                mask = self._dataset().read_masks(
                    1, window=Window(columns.start, rows.start, width, height)
                )
            except gdal_errors() as error:
                raise SceneError(
                    f"{self.path}: its mask cannot be decoded.", "The file is damaged."
                ) from error
        shown: npt.NDArray[np.bool_] = mask[:: rows.step, :: columns.step] > 0
        return shown

    def _dataset(self) -> Any:
        handles: dict[int, Any] = self._handles.__dict__.setdefault("by_process", {})
        process = os.getpid()  # a handle inherited through a fork is left alone, not even closed
        if process not in handles:
            handles[process] = _open(self.path, self.driver, self.page)
        return handles[process]


def _open(path: Path, driver: str, page: int | None = None) -> Any:
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    if driver not in DRIVERS:
        raise ValueError(f"{driver} is not an allowed driver")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            # An absolute path cannot be mistaken for a connection string such as GTIFF_DIR:1:x.
            name = path.resolve() if page is None else f"GTIFF_DIR:{page:d}:{path.resolve()}"
            dataset = rasterio.open(name, driver=driver)
    except gdal_errors(ValueError) as error:
        raise SceneError(
            f"{path} cannot be read as {driver}: {error}.",
            "The file is damaged or not of the type its name suggests.",
        ) from error
    _check_blocks(dataset, path)
    return dataset


def _check_blocks(dataset: Any, path: Path) -> None:
    # A header may claim one block of many gigabytes, which GDAL would allocate for the first pixel.
    size = path.stat().st_size
    per_block = dataset.count if dataset.profile.get("interleave") == "pixel" else 1
    for (height, width), dtype in zip(dataset.block_shapes, dataset.dtypes, strict=True):
        itemsize = 16 if dtype.startswith("complex") else np.dtype(dtype).itemsize
        block = height * width * per_block * itemsize
        if block > max(BLOCK_LIMIT, size):
            dataset.close()
            raise SceneError(
                f"{path} has blocks of {block} bytes in a file of {size} bytes.",
                "Its header is probably damaged; if not, rewrite it with tiles of 256 x 256 pixels.",
            )
