"""Masks of cloud and the like from a file beside the scene, brought to its grid while a window is read.

Known by their names: Sentinel-2's scene classification (SCL, Level-2A products), the QA_PIXEL band of Landsat
Collection 2, and Planet's usable data mask (UDM2). For any other image the values that hide a pixel must be given.

Sources: ESA, Sentinel-2 Level-2A Algorithm Theoretical Basis Document (classes of the SCL); USGS, Landsat 8-9
Collection 2 Level 2 Science Product Guide (bits of QA_PIXEL, the same for all Landsats); Planet, Usable Data Masks (its
first band is 1 where a pixel is clear).
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.errors import SceneError
from vitreous.scenes.cube import LazyCube, make_scene
from vitreous.scenes.gdal_files import RasterReader, known_grid, open_raster
from vitreous.scenes.grids import Grid, nearest_window, overlap
from vitreous.scenes.metadata_files import MOST_FILES
from vitreous.scenes.stacks import Values
from vitreous.scenes.values import Converted

SCL_HIDDEN = (
    0,
    1,
    3,
    8,
    9,
    10,
)  # no data, defective, cloud shadow, clouds of medium and high probability, cirrus
QA_HIDDEN = 0b11111  # bits of fill, dilated cloud, cirrus, cloud, cloud shadow
_SCL = re.compile(r"(?P<product>(?:.*_)?)SCL(?:_\d\dm)?\.(?:jp2|tiff?)", re.I)
_QA = re.compile(r"(?P<product>.*)QA_PIXEL\.tiff?", re.I)
_UDM = re.compile(r"(?P<product>.*_)udm2(?:_clip)?\.tiff?", re.I)
_MOST_VALUES = 65536
_DRIVERS = {".tif": "GTiff", ".tiff": "GTiff", ".jp2": "JP2OpenJPEG", ".png": "PNG"}
_WORDS = {"scl": _SCL, "qa": _QA, "qa_pixel": _QA, "udm2": _UDM}


@dataclass
class Mask:
    """Reads a mask image on the scene's grid, False where a pixel is hidden.

    Attributes:
        reader: of the mask image.
        own: its grid.
        wanted: the scene's grid.
        hidden: values that hide a pixel.
        bits: bits any of which hides a pixel.
    """

    reader: RasterReader
    own: Grid
    wanted: Grid
    hidden: tuple[int, ...] = ()
    bits: int = 0

    def __call__(self, rows: slice, columns: slice) -> npt.NDArray[np.bool_]:
        """Read the part of the mask that covers some rows and columns of the scene."""
        values, inside = nearest_window(
            lambda r, c: self.reader.read([0], r, c)[0], self.own, self.wanted, rows, columns
        )
        # Nothing is known of what lies beyond the mask.
        shown: npt.NDArray[np.bool_] = inside & ~(
            np.isin(values, self.hidden) | ((values & self.bits) != 0)
        )
        return shown


def with_mask(scene: xr.DataArray, mask: Any, values: Any, near: Path) -> xr.DataArray:
    """Return a scene whose pixels are invalid where a mask hides them.

    Args:
        scene: the scene.
        mask: the mask's file, or ``scl``, ``qa`` or ``udm2`` for the one of the scene's product.
        values: the values that hide a pixel (``8,9,10``), instead of those of the product; needed for other masks.
        near: the scene's file or folder, in which those are looked for.

    Raises:
        SceneError: no such mask, one of another grid, or one of which nobody knows what hides a pixel.
    """
    path = _find(str(mask), near)
    driver = _DRIVERS.get(path.suffix.lower())
    if driver is None:
        raise SceneError(
            f"The mask {path} is not a GeoTIFF, JPEG 2000 or PNG image.", "Convert it to GeoTIFF."
        )
    with open_raster(path, driver) as dataset:
        if dataset.count != 1 and not _UDM.fullmatch(path.name):
            raise SceneError(
                f"The mask {path} has {dataset.count} bands.", "A mask must have one band."
            )
        if np.dtype(dataset.dtypes[0]).kind not in "iu":
            raise SceneError(
                f"The mask {path} holds non-integer values.", "A mask must hold integers."
            )
        own = Grid((dataset.height, dataset.width), *known_grid(dataset))
    wanted = Grid.of(scene)
    placed = own.transform is not None and wanted.transform is not None
    if not placed and own.size != wanted.size:
        raise SceneError(
            f"The mask {path} has {own}, the scene {wanted}.",
            "Give a mask with one value per pixel of the scene, or georeference both.",
        )
    if not overlap(own, wanted):
        raise SceneError(
            f"The mask {path} ({own}) does not overlap with the scene ({wanted}).",
            "Give the mask of this scene.",
        )
    reads = Mask(RasterReader(path, driver), own, wanted, **_rule(path, values))
    nodata = scene.attrs["nodata"]
    keeps = nodata is not None and np.isfinite(nodata)
    stored = LazyCube(scene.shape, scene.dtype, Values(scene))
    dtype = np.result_type(scene.dtype, np.float32)
    cube = LazyCube(
        scene.shape,
        dtype,
        Converted(stored.read, dtype, nodata=(nodata,) if keeps else (), valid=(reads,)),
    )
    again = make_scene(cube, source=str(scene.attrs["source"]))
    return scene.copy(data=again.variable._data).assign_attrs({**scene.attrs, "nodata": np.nan})


def _rule(path: Path, values: Any) -> dict[str, Any]:
    """What hides a pixel, as arguments of :class:`Mask`."""
    if values is not None:
        hidden: list[int] = []
        for word in re.split(r"[,;\s]+", str(values).strip("[]() ")):
            match = re.fullmatch(r"(\d+)(?:-(\d+))?", word)
            if match is None or int(match[2] or match[1]) - int(match[1]) > _MOST_VALUES:
                raise SceneError(
                    f"mask_values is '{values}'.", "Give integers, e.g. mask_values=3,8-10."
                )
            hidden += range(int(match[1]), int(match[2] or match[1]) + 1)
        return {"hidden": tuple(hidden)}
    if _SCL.fullmatch(path.name):
        return {"hidden": SCL_HIDDEN}
    if _QA.fullmatch(path.name):
        return {"bits": QA_HIDDEN}
    if _UDM.fullmatch(path.name):
        return {"hidden": (0,)}
    raise SceneError(
        f"{path} is not Sentinel-2 SCL, Landsat QA_PIXEL or Planet UDM2: it is unknown which of its values mask a pixel.",
        "Set mask_values=0 if 0 masks a pixel, or mask_values=1 if 1 does.",
    )


def _find(mask: str, near: Path) -> Path:
    from vitreous.scenes.formats import local_path

    pattern = _WORDS.get(mask.lower())
    if pattern is None or Path(mask).exists():
        return local_path(mask)
    folder = near if near.is_dir() else near.parent
    if not near.is_dir() and re.fullmatch(r"R\d\dm", folder.name):
        folder = folder.parent
    files = islice(folder.rglob("*"), MOST_FILES)
    found = {path: match["product"] for path in files if (match := pattern.fullmatch(path.name))}
    if not found:
        raise SceneError(
            f"{folder} has no {mask.upper()} image.", "Give the mask's file: mask=FILE."
        )
    if near.is_dir():
        return min(found)  # SCL_20m before SCL_60m
    own = [path for path, product in found.items() if product and near.name.startswith(product)]
    if own:
        return min(own)
    if len(set(found.values())) > 1:
        some = ", ".join(str(path.relative_to(folder)) for path in sorted(found)[:4])
        raise SceneError(
            f"{folder} has several {mask.upper()} images ({some}), and none is named after {near.name}.",
            "Give the mask's file: mask=FILE.",
        )
    taken = min(found)
    warnings.warn(
        f"{near.name} is masked by {taken}, which is not named after it (if it belongs to another scene, set "
        "mask=FILE).",
        stacklevel=5,
    )
    return taken
