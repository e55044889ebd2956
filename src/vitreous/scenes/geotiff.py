"""GeoTIFF and Cloud Optimized GeoTIFF, through GDAL's GTiff driver alone.

Formats: OGC GeoTIFF 1.1 (19-008r4) and OGC Cloud Optimized GeoTIFF 1.0 (21-026). Wavelengths are read from
band tags as written by ENVI-minded software (``wavelength``, ``wavelength_units``, ``fwhm``, ``bbl``), from
GDAL's IMAGERY domain (``CENTRAL_WAVELENGTH_UM``, ``FWHM_UM``), or from band descriptions; both kinds of tags
are written. Scenes are written band-interleaved, which keeps single bands of deep cubes quick to view.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.errors import SceneError, VitreousError
from vitreous.files import atomic_path, write_text
from vitreous.scenes.cube import (
    UNITS,
    LabelImage,
    LazyCube,
    Window,
    check_shape,
    class_codes,
    code_table,
    georeference,
    make_scene,
    to_nanometres,
    unlabelled_code,
)
from vitreous.scenes.gdal_files import RasterReader, known_grid, open_raster

TILE = 256
STRIP_BYTES = 32 * 2**20  # written at a time
CACHE_MB = 64  # of GDAL while it writes; it would take 5 % of the machine's memory
SIDECAR_LIMIT = 2**20
LABEL_PIXELS_LIMIT = 2**30  # labels are held in memory
CATEGORY_LIMIT = 4096  # GDAL's category names are a list from 0 on

_CLASS_NAMES_TAG = "CLASS_NAMES"
_IN_DESCRIPTION = re.compile(
    r"(\d+(?:\.\d+)?)\s*(nm|um|µm|μm|nanomet\w+|micromet\w+|microns?)\b", re.I
)
Tags = dict[str, str]


def open(path: Path, *, wavelength_unit: str | None = None) -> xr.DataArray:
    """Open a GeoTIFF lazily.

    Scale factors that are the same for every band become the scene's ``scale``. Offsets, or factors that differ,
    are applied while reading: such a scene is float32 with NaN for nodata.

    Args:
        path: the file.
        wavelength_unit: ``nm`` or ``um``, instead of what the tags say.

    Raises:
        SceneError: the file cannot be read as GeoTIFF, or holds complex numbers.
    """
    source = str(path)
    with open_raster(path, "GTiff") as dataset:
        shape = check_shape((dataset.count, dataset.height, dataset.width), source)
        dtype = np.result_type(*dataset.dtypes)
        if dtype.kind == "c":
            raise SceneError(
                f"{source} holds complex numbers.", "Convert them to intensities first."
            )
        crs, transform = known_grid(dataset)
        scales, offsets = np.array(dataset.scales), np.array(dataset.offsets)
        unit = next((u for u in UNITS if set(dataset.units) == {u}), "dn")
        nodata = dataset.nodata
        spectral = _spectral_coordinates(dataset, wavelength_unit, source)
    reader = RasterReader(path, "GTiff")
    scale = float(scales[0])
    if offsets.any() or (scales != scale).any():
        cube = LazyCube(shape, np.float32, _Rescaled(reader, scales, offsets, nodata))
        scale, nodata = 1.0, np.nan if nodata is not None else None
    else:
        cube = LazyCube(shape, dtype, _Stored(reader))
    return make_scene(
        cube,
        unit=unit,
        scale=scale,
        nodata=nodata,
        crs=crs,
        transform=transform,
        source=source,
        **spectral,
    )


def open_labels(path: Path) -> LabelImage:
    """Read a label image with its class names (GDAL category names) and colour table, where it has them.

    Raises:
        SceneError: more than one band, too many pixels, or values that are no class numbers.
    """
    source = str(path)
    with open_raster(path, "GTiff") as dataset:
        if dataset.count != 1:
            raise SceneError(f"{source} has {dataset.count} bands.", "A label image has one band.")
        if dataset.width * dataset.height > LABEL_PIXELS_LIMIT:
            raise SceneError(
                f"{source} has {dataset.height} x {dataset.width} pixels, too many for labels in memory.",
                "Cut it to the area that has labels.",
            )
        crs, transform = known_grid(dataset)
        names = _stored_class_names(dataset) or read_category_names(path)
        colors = _color_table(dataset)
        nodata = dataset.nodata
    rows, columns = slice(0, dataset.height, 1), slice(0, dataset.width, 1)
    values = RasterReader(path, "GTiff").read([0], rows, columns)[0]
    return LabelImage(values, nodata, names, colors, crs, transform)


def write(scene: xr.DataArray, path: str | Path) -> None:
    """Write a scene as Cloud Optimized GeoTIFF: band-interleaved tiles, overviews, everything known in tags.

    Reopening gives the same scene. Values are written as stored, in strips of rows.

    Args:
        scene: the scene.
        path: the file to write.

    Raises:
        SceneError: values of a type that TIFF lacks.
        VitreousError: the disk is full or the folder cannot be written.
    """
    dtype = np.dtype("u1") if scene.dtype == bool else scene.dtype
    if dtype.kind not in "uif" or dtype == np.float16:
        raise SceneError(
            f"{path}: TIFF has no type for {dtype} values.", "Convert them, e.g. to float32."
        )
    nodata = scene.attrs.get("nodata")
    if nodata is not None and not _holds(dtype, nodata):
        nodata = None  # a value that cannot occur marks nothing
    with _cog(Path(path), scene, dtype, nodata, "average") as dataset:
        bands, height, width = scene.shape
        strip = max(TILE, STRIP_BYTES // (bands * width * dtype.itemsize) // TILE * TILE)
        for row in range(0, height, strip):
            values = scene[:, row : row + strip].values.astype(dtype, copy=False)
            dataset.write(values, window=((row, row + values.shape[1]), (0, width)))
        _describe(dataset, scene)


def write_labels(labels: xr.DataArray, path: str | Path) -> None:
    """Write a label image as Cloud Optimized GeoTIFF: the classes' codes with their names and colours.

    The names are in the file itself (a tag of ours) and, for GDAL and QGIS, in ``<path>.aux.xml`` beside it.

    Args:
        labels: ``(y, x)``, see :func:`vitreous.scenes.cube.make_labels`.
        path: the file to write.

    Raises:
        VitreousError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    names, colors = labels.attrs["class_names"], labels.attrs["class_colors"]
    codes = class_codes(labels)
    table = code_table(codes)
    with _cog(path, labels, table.dtype, unlabelled_code(codes), "mode") as dataset:
        set_classes(dataset, names, colors, codes)
        dataset.write(table[labels.values], 1)
    write_category_names(path, names, codes)


def set_classes(
    dataset: Any, class_names: Sequence[str], class_colors: Sequence[str], codes: Sequence[int]
) -> None:
    """Give a one-band rasterio dataset, just opened for writing, its class names and colour table.

    Call it before any pixel is written: TIFF fixes its colour table with the first block. The names go into a
    tag, because TIFF itself has no place for GDAL's category names; :func:`write_category_names` adds those
    once the file has its final name.

    Args:
        dataset: open for writing.
        class_names: one per class.
        class_colors: one ``#rrggbb`` per class.
        codes: the value that stands for each class.
    """
    table = {unlabelled_code(codes): (0, 0, 0, 0)}
    for value, color in zip(codes, class_colors, strict=True):
        red, green, blue = bytes.fromhex(color.removeprefix("#"))
        table[value] = (red, green, blue, 255)
    if dataset.dtypes[0] in {"uint8", "uint16"}:  # TIFF colours no others
        dataset.write_colormap(1, table)
    named = {str(code): name for code, name in zip(codes, class_names, strict=True)}
    dataset.update_tags(1, **{_CLASS_NAMES_TAG: json.dumps(named, ensure_ascii=False)})


def write_category_names(
    path: str | Path, class_names: Sequence[str], codes: Sequence[int]
) -> None:
    """Write GDAL's category names into ``<path>.aux.xml``, where GDAL and QGIS look for them.

    The list runs from 0 to the greatest code; where that would be endless, or codes are negative, none is written.

    Args:
        path: the finished label image.
        class_names: one per class.
        codes: the value that stands for each class.
    """
    if min(codes) < 0 or max(codes) > CATEGORY_LIMIT:
        Path(f"{path}.aux.xml").unlink(missing_ok=True)
        return
    named = dict(zip(codes, class_names, strict=True))
    entries = "".join(
        f"<Category>{escape(_printable(named.get(code, '')))}</Category>"
        for code in range(max(codes) + 1)
    )
    write_text(
        f"{path}.aux.xml",
        f'<PAMDataset><PAMRasterBand band="1"><CategoryNames>{entries}</CategoryNames>'
        "</PAMRasterBand></PAMDataset>\n",
    )


def read_category_names(path: str | Path) -> dict[int, str] | None:
    """Return the names by value in ``<path>.aux.xml``, or None where there are none."""
    sidecar = Path(f"{path}.aux.xml")
    try:
        if sidecar.stat().st_size > SIDECAR_LIMIT:
            return None
        text = sidecar.read_text(encoding="utf-8")
        if "<!" in text:  # no GDAL sidecar has a DOCTYPE; entities in one could expand without end
            return None
        root = ElementTree.fromstring(text)
    except (OSError, UnicodeDecodeError, ElementTree.ParseError):
        return None  # a sidecar is an extra; the image reads without it
    names = [(item.text or "").strip() for item in root.findall(".//CategoryNames/Category")]
    return {value: name for value, name in enumerate(names) if name} or None


class _Stored:
    """Reads stored values."""

    def __init__(self, reader: RasterReader) -> None:
        self.reader = reader

    def __call__(self, window: Window) -> npt.NDArray[Any]:
        bands, rows, columns = window
        return self.reader.read(range(bands.start, bands.stop, bands.step), rows, columns)


class _Rescaled:
    """Reads stored value x scale + offset as float32, NaN where there is no data."""

    def __init__(
        self,
        reader: RasterReader,
        scales: npt.NDArray[Any],
        offsets: npt.NDArray[Any],
        nodata: float | None,
    ) -> None:
        self.stored = _Stored(reader)
        self.scales = scales
        self.offsets = offsets
        self.nodata = nodata

    def __call__(self, window: Window) -> npt.NDArray[np.float32]:
        stored = self.stored(window)
        scales, offsets = (v[window[0], None, None] for v in (self.scales, self.offsets))
        values: npt.NDArray[np.float32] = (stored * scales + offsets).astype(np.float32)
        if self.nodata is not None:
            values[stored == self.nodata] = np.nan
        return values


def _spectral_coordinates(dataset: Any, unit: str | None, source: str) -> dict[str, Any]:
    tags = [_band_tags(dataset, band) for band in dataset.indexes]
    descriptions = [text or "" for text in dataset.descriptions]
    spectral: dict[str, Any] = {"band_names": descriptions if any(descriptions) else None}
    spectral["wavelengths"] = _per_band(tags, "wavelength", unit, source)
    spectral["fwhm"] = _per_band(tags, "fwhm", unit, source)
    flags = [tag.get("bbl", "") for tag in tags]
    if all(flags):
        spectral["good_band"] = [flag.strip() not in {"0", "0.0", "false"} for flag in flags]
    if spectral["wavelengths"] is None:
        spectral |= _from_descriptions(descriptions)
    return spectral


def _band_tags(dataset: Any, band: int) -> Tags:
    """Tags of one band in lower case, the IMAGERY domain turned into the names of the others."""
    tags = {key.lower(): value for key, value in dataset.tags(band).items()}
    imagery = dataset.tags(band, ns="IMAGERY")
    for key, name in (("CENTRAL_WAVELENGTH_UM", "wavelength"), ("FWHM_UM", "fwhm")):
        if name not in tags and key in imagery:
            tags[name] = imagery[key]
            tags["wavelength_units"] = "um"
    return tags


def _per_band(
    tags: list[Tags], key: str, unit: str | None, source: str
) -> npt.NDArray[np.float64] | None:
    if not all(key in tag for tag in tags):
        return None
    units = {tag.get("wavelength_units", "") for tag in tags}
    try:
        values = [float(tag[key]) for tag in tags]
        stated = unit or (units.pop() if len(units) == 1 else None)
        return to_nanometres(values, stated, source)
    except (ValueError, SceneError) as error:
        warnings.warn(
            f"{source} has unusable {key} tags ({error}); they are left out.", stacklevel=2
        )
        return None


def _from_descriptions(descriptions: list[str]) -> dict[str, Any]:
    """Wavelengths out of names such as ``482.5 nm`` or, for Sentinel-2, ``B8A``."""
    from vitreous.scenes.sentinel2 import BANDS

    found = [_IN_DESCRIPTION.search(text) for text in descriptions]
    if descriptions and all(found):
        return {"wavelengths": [float(to_nanometres([float(m[1])], m[2])[0]) for m in found if m]}
    # "B8A" gives Sentinel-2 away; "B05" and the like also name quite different bands of Landsat.
    if "B8A" in descriptions and set(descriptions) <= set(BANDS):
        bands = [BANDS[name] for name in descriptions]
        return {"wavelengths": [b.centre for b in bands], "fwhm": [b.width for b in bands]}
    return {}


def _describe(dataset: Any, scene: xr.DataArray) -> None:
    columns = {
        name: scene[name].values
        for name in ("wavelength", "fwhm", "good_band", "band_name")
        if name in scene.coords
    }
    for index, band in enumerate(dataset.indexes):
        facts = {name: column[index] for name, column in columns.items()}
        dataset.update_tags(band, **_tags_of(facts))
        dataset.update_tags(band, ns="IMAGERY", **_imagery_of(facts))
        if facts.get("band_name"):
            dataset.set_band_description(band, str(facts["band_name"]))
    dataset.scales = [float(scene.attrs.get("scale", 1.0))] * dataset.count
    dataset.units = [str(scene.attrs.get("unit", "dn"))] * dataset.count


def _holds(dtype: np.dtype[Any], value: float) -> bool:
    if dtype.kind == "f":
        return True
    limits = np.iinfo(dtype)
    return float(value).is_integer() and limits.min <= value <= limits.max


def _tags_of(facts: Mapping[str, Any]) -> Tags:
    tags = {name: repr(float(facts[name])) for name in ("wavelength", "fwhm") if name in facts}
    if tags:
        tags["wavelength_units"] = "Nanometers"
    if "good_band" in facts:
        tags["bbl"] = str(int(facts["good_band"]))
    return tags


def _imagery_of(facts: Mapping[str, Any]) -> Tags:
    keys = {"wavelength": "CENTRAL_WAVELENGTH_UM", "fwhm": "FWHM_UM"}
    return {key: f"{facts[name] / 1000:.6g}" for name, key in keys.items() if name in facts}


def _stored_class_names(dataset: Any) -> dict[int, str] | None:
    """Names by value; older files of ours list them from 1 on."""
    try:
        names = json.loads(dataset.tags(1).get(_CLASS_NAMES_TAG, "null"))
        if isinstance(names, list):
            names = dict(enumerate(names, start=1))
        return {int(value): str(name) for value, name in names.items()} if names else None
    except (ValueError, AttributeError, RecursionError):
        return None


def _color_table(dataset: Any) -> dict[int, str] | None:
    """Colours by value."""
    try:
        table = dataset.colormap(1)
    except ValueError:  # rasterio's way to say that there is none
        return None
    return {value: "#{:02x}{:02x}{:02x}".format(*color[:3]) for value, color in table.items()}


def _printable(text: str) -> str:
    """``text`` without the control characters that XML forbids."""
    return "".join(c for c in text if c.isprintable())


@contextmanager
def _cog(
    path: Path, image: xr.DataArray, dtype: np.dtype[Any], nodata: float | None, resampling: str
) -> Iterator[Any]:
    """Yield a plain tiled TIFF to fill; then add overviews and copy it into a COG that replaces ``path``.

    GDAL's COG driver interleaves by pixel before version 3.11. The GTiff driver, copying a file with its
    overviews, puts all directories first and the overviews before the image: the layout that makes a COG.
    """
    import rasterio
    import rasterio.shutil
    from rasterio.enums import Resampling
    from rasterio.errors import RasterioError

    bands, (height, width) = image.sizes.get("band", 1), image.shape[-2:]
    check_shape((bands, height, width), str(path))
    crs, transform = georeference(image)
    tile = min(TILE, -(-max(height, width) // 16) * 16)
    layout = {"tiled": True, "blockxsize": tile, "blockysize": tile, "interleave": "band"}
    _check_space(path, bands * height * width * dtype.itemsize)
    cache = rasterio.Env(GDAL_CACHEMAX=CACHE_MB)
    with atomic_path(path) as final, _scratch(path.parent) as scratch, cache:
        plain = scratch / "plain.tif"
        try:
            with _quiet(
                rasterio.open,
                plain,
                "w",
                driver="GTiff",
                count=bands,
                height=height,
                width=width,
                dtype=dtype,
                nodata=nodata,
                crs=crs,
                transform=transform,
                bigtiff="IF_SAFER",
                **layout,
            ) as dataset:
                yield dataset
            with _quiet(rasterio.open, plain, "r+", driver="GTiff") as dataset:
                factors = [2**k for k in range(1, 12) if max(height, width) > TILE * 2 ** (k - 1)]
                if factors:
                    dataset.build_overviews(factors, Resampling[resampling])
            _quiet(
                rasterio.shutil.copy,
                plain,
                final,
                driver="GTiff",
                copy_src_overviews=True,
                compress="deflate",
                predictor=3 if dtype.kind == "f" else 2,
                bigtiff="IF_SAFER",
                **layout,
            )
        except RasterioError as error:
            _check_space(path, 0)
            raise VitreousError(f"{path} could not be written: {error}.") from error
        finally:
            # GDAL's copy may leave a sidecar under the temporary name.
            Path(f"{final}.aux.xml").unlink(missing_ok=True)


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A temporary folder on the same disk as the product, where there is room if anywhere."""
    with tempfile.TemporaryDirectory(prefix=".vitreous-", dir=folder) as name:
        yield Path(name)


def _quiet(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    from rasterio.errors import NotGeoreferencedWarning

    with warnings.catch_warnings():  # a scene without a place is no mishap
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return call(*args, **kwargs)


def _check_space(path: Path, size: int) -> None:
    # GDAL reports a full disk late and vaguely, some versions not at all: ask before writing.
    folder = next(p for p in path.absolute().parents if p.exists())
    if shutil.disk_usage(folder).free < size + 2**20:
        raise VitreousError(
            f"The disk is full: {path} was not written.", "Free some space, or write elsewhere."
        )
