"""GeoTIFF and Cloud Optimized GeoTIFF, through GDAL's GTiff driver alone.

Formats: OGC GeoTIFF 1.1 (19-008r4) and OGC Cloud Optimized GeoTIFF 1.0 (21-026). Wavelengths are read from
band tags as written by ENVI-minded software (``wavelength``, ``wavelength_units``, ``fwhm``, ``bbl``), from
GDAL's IMAGERY domain (``CENTRAL_WAVELENGTH_UM``, ``FWHM_UM``), from an ENVI header in a domain of the file or beside
it, or from band descriptions; both kinds of band tags are written. Scenes are written band-interleaved, which keeps single bands of deep cubes quick to view.
"""

from __future__ import annotations

import json
import math
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
from vitreous.scenes import envi, tiff_pages
from vitreous.scenes.attributes import number_of
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
    settle,
    unlabelled_code,
)
from vitreous.scenes.gdal_files import RasterReader, known_grid, open_raster
from vitreous.scenes.sensors import facts_of_names
from vitreous.scenes.values import Validity, converted, nodata_values
from vitreous.scenes.wavelengths import from_names, numbers_as_names, spectral

TILE = 256
STRIP_BYTES = 32 * 2**20  # written at a time
CACHE_MB = 64  # of GDAL while it writes; it would take 5 % of the machine's memory
SIDECAR_LIMIT = 2**20
LABEL_PIXELS_LIMIT = 2**30  # labels are held in memory
CATEGORY_LIMIT = 4096  # GDAL's category names are a list from 0 on

_CLASS_NAMES_TAG = "CLASS_NAMES"
ALPHA_SAMPLE = 512  # pixels a side by which an alpha band is judged
ALPHA_BETWEEN = 0.05  # of its values may be half transparent, at edges
_DOMAIN_KEYS = {"wavelength", "wavelength units", "fwhm", "bbl", "band names"} | {
    "data ignore value",
    "reflectance scale factor",
}
Tags = dict[str, str]


def open(
    path: Path,
    *,
    wavelength_unit: str | None = None,
    page: int | None = None,
    axis_order: str | None = None,
    **known: Any,
) -> xr.DataArray:
    """Open a GeoTIFF lazily.

    Scale factors that are the same for every band become the scene's ``scale``. Offsets, factors or nodata values that
    differ, masks and alpha bands are applied while reading: such a scene is in floating point with NaN for nodata. What
    the tags do not say is taken from an ENVI header beside the file. Of several images of one size each is a band.

    Args:
        path: the file.
        wavelength_unit: ``nm`` or ``um``, instead of what the tags say.
        page: which image, from 1 on, of a file with several.
        axis_order: ``byx``, ``yxb`` or ``ybx``, of an array that tifffile wrote page by page.
        **known: arguments of :func:`make_scene` that win over what the file says.

    Raises:
        SceneError: the file cannot be read as GeoTIFF, holds complex numbers, or several images of different sizes.
    """
    source = str(path)
    page = _existing_page(path, page)
    with open_raster(path, "GTiff", page) as dataset:
        if page is None and len(dataset.subdatasets) > 1:
            return tiff_pages.open(path, dataset, axis_order=axis_order, known=known)
        tiff_pages.check_whole(path, dataset)
        check_shape((dataset.count, dataset.height, dataset.width), source)
        dtype = np.result_type(*dataset.dtypes)
        if dtype.kind == "c":
            raise SceneError(
                f"{source} holds complex numbers.", "Convert them to intensities first."
            )
        alpha = alpha_band(dataset, source)
        bands = [band for band in range(dataset.count) if band != alpha]
        shape = (len(bands), dataset.height, dataset.width)
        header = _header_beside(path, dataset)
        facts = _facts(dataset, bands, wavelength_unit, header, known, source)
        settings = _conversion(dataset, bands, facts, known)
        crs, transform = known_grid(dataset)
        if crs is None and transform is None and header is not None:
            crs, transform = envi.place_of(header, source)
        masked = _has_mask(dataset, bands[0])
    reader = RasterReader(path, "GTiff", page)
    cube = LazyCube(shape, dtype, Stored(reader, bands))
    valid: list[Validity] = []
    if alpha is not None:
        valid.append(Alpha(reader, alpha))
    if masked:
        valid.append(reader.read_mask)
    if settings or valid:
        cube = converted(
            cube, **settings, valid=tuple(valid), nodata=nodata_values(facts["nodata"])
        )
        facts["scale"] = 1.0 if "scales" in settings else facts["scale"]
        facts["nodata"] = math.nan
    return make_scene(cube, **{"crs": crs, "transform": transform, **known, **facts}, source=source)


def open_labels(path: Path, *, page: int | None = None) -> LabelImage:
    """Read a label image with its class names (GDAL category names) and colour table, where it has them.

    Raises:
        SceneError: more than one band, too many pixels, or values that are no class numbers.
    """
    source = str(path)
    page = _existing_page(path, page)
    with open_raster(path, "GTiff", page) as dataset:
        pages = len(dataset.subdatasets)
        if page is None and pages > 1:
            raise SceneError(
                f"{source} holds {pages} images.",
                f"Choose the one with the labels: page=1 to {pages}.",
            )
        alpha = alpha_band(dataset, source) if dataset.count == 2 else None
        if dataset.count - (alpha is not None) != 1:
            raise SceneError(
                f"{source} has {dataset.count} bands.", "A label image must have one band."
            )
        if dataset.width * dataset.height > LABEL_PIXELS_LIMIT:
            raise SceneError(
                f"{source} has {dataset.height} x {dataset.width} pixels, too many to hold labels in memory.",
                "Crop it to the labelled area.",
            )
        crs, transform = known_grid(dataset)
        names = _stored_class_names(dataset) or read_category_names(path)
        colors = _color_table(dataset)
        nodata = nodata_values(dataset.nodata)
        masked = _has_mask(dataset, 0)
    rows, columns = slice(0, dataset.height, 1), slice(0, dataset.width, 1)
    reader = RasterReader(path, "GTiff", page)
    values = reader.read([0], rows, columns)[0]
    valid = reader.read_mask(rows, columns) if masked else None
    if alpha is not None:
        valid = Alpha(reader, alpha)(rows, columns)
    return LabelImage(values, nodata, names, colors, crs, transform, valid)


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
            f"{path}: TIFF does not support {dtype} values.", "Convert them, e.g. to float32."
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
    if not codes or min(codes) < 0 or max(codes) > CATEGORY_LIMIT:
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


class Stored:
    """Reads stored values of some bands.

    Args:
        reader: of the file.
        bands: their indices.
    """

    def __init__(self, reader: RasterReader, bands: Sequence[int]) -> None:
        self.reader = reader
        self.bands = list(bands)

    def __call__(self, window: Window) -> npt.NDArray[Any]:
        """Read one window."""
        bands, rows, columns = window
        return self.reader.read(self.bands[bands], rows, columns)


class Alpha:
    """Reads an alpha band as a mask: 0 hides a pixel.

    Args:
        reader: of the file.
        band: the index of the alpha band.
    """

    def __init__(self, reader: RasterReader, band: int) -> None:
        self.reader = reader
        self.band = band

    def __call__(self, rows: slice, columns: slice) -> npt.NDArray[np.bool_]:
        """Read one window, False where a pixel is hidden."""
        shown: npt.NDArray[np.bool_] = self.reader.read([self.band], rows, columns)[0] > 0
        return shown


def _existing_page(path: Path, page: Any) -> int | None:
    """The number of an image that a file has, None where none is asked for."""
    if page is None:
        return None
    wanted = int(number_of("page", page))
    with open_raster(path, "GTiff") as dataset:
        count = max(1, len(dataset.subdatasets))
    if not 1 <= wanted <= count:
        raise SceneError(f"{path} has no page {wanted}.", f"Choose page=1 to page={count}.")
    return wanted


def _has_mask(dataset: Any, band: int) -> bool:
    """True where the file keeps a mask for all bands, inside or in a ``.msk`` beside it; alpha bands do not count."""
    from rasterio.enums import MaskFlags

    flags = dataset.mask_flag_enums[band]
    return MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags


def alpha_band(dataset: Any, source: str) -> int | None:
    """Return the band that says where the others are transparent, None where there is none.

    Some writers declare any fourth band so, near infrared too. A transparency is 0 or full nearly everywhere.
    """
    from rasterio.enums import ColorInterp

    declared = [k for k, kind in enumerate(dataset.colorinterp) if kind == ColorInterp.alpha]
    if len(declared) != 1 or dataset.count < 2:
        return None
    band = declared[0]
    if "wavelength" in _band_tags(dataset, band + 1) or dataset.descriptions[band]:
        return None  # GDAL takes the fourth of four 8-bit bands for one, whatever it is
    shrink = max(1, max(dataset.shape) // ALPHA_SAMPLE)
    shape = tuple(max(1, side // shrink) for side in dataset.shape)
    sample = dataset.read(band + 1, out_shape=shape)
    full = sample.max(initial=0)  # 255 mostly, in other files 1
    if ((sample != 0) & (sample != full)).mean() <= ALPHA_BETWEEN:
        return band
    warnings.warn(
        f"{source}: band {band + 1} is declared as transparency, but holds measurements; it is kept as a band.",
        stacklevel=4,
    )
    return None


def _header_beside(path: Path, dataset: Any) -> envi.Header | None:
    """The ENVI header beside a TIFF, if it describes an image of this size."""
    header = envi.beside(path)
    sizes = [(header or {}).get(key, "") for key in ("bands", "lines", "samples")]
    return header if sizes == [str(n) for n in (dataset.count, *dataset.shape)] else None


def _facts(
    dataset: Any,
    bands: Sequence[int],
    unit: str | None,
    header: envi.Header | None,
    known: Mapping[str, Any],
    source: str,
) -> dict[str, Any]:
    """What tags, the ENVI domain, a header beside the file and band names say, in this order."""
    facts: dict[str, Any] = settle(
        known,
        unit=lambda: next((u for u in UNITS if set(dataset.units) == {u}), "dn"),
        scale=lambda: float(dataset.scales[bands[0]]),
        nodata=lambda: dataset.nodatavals[bands[0]],
    )
    in_tags = _spectral_tags(dataset, bands, unit, known, source)
    domain = envi_domain(dataset)
    facts |= {name: value for name, value in in_tags.items() if value is not None}
    for text in (domain, header):
        for name, value in _of_header(text, dataset, {**facts, **known}, unit, source).items():
            if value is not None and name not in facts:
                facts[name] = np.asarray(value)[list(bands)]
    if "wavelengths" not in facts:
        descriptions = [dataset.descriptions[band] or "" for band in bands]
        facts |= _from_descriptions(descriptions, unit, known, source)
    for text in filter(None, (domain, header)):
        if facts["nodata"] is None and "nodata" not in known:
            facts["nodata"] = envi.nodata_of(text, source)
        if (facts["unit"], facts["scale"]) == ("dn", 1.0):
            said = dict(zip(("unit", "scale"), envi.radiometry(text, source), strict=True))
            facts |= {name: value for name, value in said.items() if name not in known}
    return facts


def _of_header(
    header: envi.Header | None,
    dataset: Any,
    known: Mapping[str, Any],
    unit: str | None,
    source: str,
) -> dict[str, Any]:
    """What an ENVI header says about the bands; one that does not fit is left out with a warning."""
    if not header:
        return {}
    wanted = ("wavelengths", "fwhm", "good_band", "band_names")
    try:
        found = envi.band_facts(header, dataset.count, source, unit, known)
    except SceneError as error:
        if unit is not None:
            raise
        warnings.warn(f"{error} It is ignored.", stacklevel=5)
        return {}
    return {name: found[name] for name in wanted if name not in known}


def envi_domain(dataset: Any) -> envi.Header:
    """Return the ENVI header that GDAL and EnMAP-Box keep in a domain of a file's tags, if any."""
    text = {**dataset.tags(), **dataset.tags(ns="ENVI")}
    lists = {
        envi.canonical_key(key): value.strip().strip("{}[]()").strip()
        for key, value in text.items()
    }
    listed = _listed_bands(text, dataset.count)
    if listed and "band names" not in lists:
        lists["band names"] = listed
    return {key: value for key, value in lists.items() if key in _DOMAIN_KEYS}


def _listed_bands(tags: Tags, count: int) -> str:
    """The tags ``Band_1``, ``Band_2`` ... in which GDAL keeps ENVI's names of bands, as a list; "" where one is missing."""
    names = [tags.get(f"Band_{k}", "") for k in range(1, count + 1)]
    return ", ".join(name.replace(",", " ") for name in names) if all(names) else ""


def _conversion(
    dataset: Any, bands: Sequence[int], facts: Mapping[str, Any], known: Mapping[str, Any]
) -> dict[str, Any]:
    """What differs between bands, for :class:`Converted`."""
    pick = list(bands)
    scales, offsets = np.array(dataset.scales)[pick], np.array(dataset.offsets)[pick]
    if "scale" in known:
        scales = np.full(len(pick), facts["scale"])
    settings: dict[str, Any] = {}
    if offsets.any() or (scales != scales[0]).any():
        settings |= {"scales": scales, "offsets": offsets}
    own = np.array([np.nan if v is None else v for v in dataset.nodatavals])[pick]
    if "nodata" not in known and not np.array_equal(
        own, np.full(len(pick), own[0]), equal_nan=True
    ):
        settings["nodata_of"] = own
    return settings


def _spectral_tags(
    dataset: Any, bands: Sequence[int], unit: str | None, known: Mapping[str, Any], source: str
) -> dict[str, Any]:
    """Wavelengths, widths and good bands in tags of the bands; each kind of tags has its own unit."""
    tags = [_band_tags(dataset, band + 1) for band in bands]
    found = {
        key: None if name in known else _column(tags, key, source)
        for key, name in (("wavelength", "wavelengths"), ("fwhm", "fwhm"))
    }
    centres, widths = found["wavelength"], found["fwhm"]
    facts: dict[str, Any] = {}
    if centres is not None or widths is not None:
        try:
            result = spectral(
                centres[0] if centres else None,
                widths[0] if widths else None,
                unit or (centres[1] if centres else None),
                source,
                width_unit=widths[1] if widths else None,
                certain=unit is not None,
            )
            facts = {"wavelengths": result.centres, "fwhm": result.widths}
        except SceneError as error:
            if unit is not None:
                raise
            warnings.warn(
                f"{source} has unusable wavelength tags ({error}); they are ignored.", stacklevel=4
            )
    flags = [tag.get("bbl", ("", ""))[0] for tag in tags]
    if all(flags) and "good_band" not in known:
        facts["good_band"] = [flag.strip() not in {"0", "0.0", "false"} for flag in flags]
    descriptions = [dataset.descriptions[band] or "" for band in bands]
    if any(descriptions) and "band_names" not in known:
        facts["band_names"] = descriptions
    return facts


def _band_tags(dataset: Any, band: int) -> dict[str, tuple[str, str]]:
    """Tags of one band in lower case, each with the unit of its own source."""
    own = {key.lower(): value for key, value in dataset.tags(band).items()}
    unit = own.get("wavelength_units") or own.get("wavelength_unit") or ""
    imagery = dataset.tags(band, ns="IMAGERY")
    tags = {}
    for name, key in (("wavelength", "CENTRAL_WAVELENGTH_UM"), ("fwhm", "FWHM_UM")):
        if key in imagery:
            tags[name] = (imagery[key], "um")
        if name in own:
            tags[name] = (own[name], own.get(f"{name}_units", unit))
    if "bbl" in own:
        tags["bbl"] = (own["bbl"], "")
    return tags


def _column(
    tags: list[dict[str, tuple[str, str]]], key: str, source: str
) -> tuple[list[float], str | None] | None:
    """The values of a tag and their unit, where every band has it."""
    if not all(key in tag for tag in tags):
        return None
    units = {tag[key][1] for tag in tags}
    try:
        return [float(tag[key][0]) for tag in tags], units.pop() if len(units) == 1 else None
    except ValueError as error:
        warnings.warn(
            f"{source} has unusable {key} tags ({error}); they are ignored.", stacklevel=5
        )
        return None


def _from_descriptions(
    descriptions: list[str], unit: str | None, known: Mapping[str, Any], source: str
) -> dict[str, Any]:
    """Wavelengths out of names such as ``482.5 nm`` or ``450.5``, or of a sensor that names or the file's name give away."""
    if "wavelengths" in known:
        return {}
    centres = from_names(descriptions)
    if centres is not None:
        return {"wavelengths": centres}
    bare = numbers_as_names(descriptions)
    if bare is not None:
        found = spectral(
            bare, None, unit, f"{source} (names of its bands)", certain=unit is not None
        )
        return {"wavelengths": found.centres}
    # "B8A" gives Sentinel-2 away; "B05" and the like also name quite different bands of Landsat.
    return facts_of_names(descriptions, [Path(source).stem])


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
    # Else GDAL declares three bands of 8 bits red, green and blue, and a fourth transparency.
    kind = {"photometric": "minisblack"} if bands > 1 else {}
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
                **kind,
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
