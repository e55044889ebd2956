"""ENVI: a flat binary file beside a text header.

Format: NV5 Geospatial, "ENVI Header Files" (https://www.nv5geospatialsoftware.com/docs/ENVIHeaderFiles.html).

The pixels stay in the file: a scene is a memory map turned to ``(band, y, x)``, so a window costs its own bytes
whatever the interleave.
"""

from __future__ import annotations

import difflib
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.errors import SceneError, did_you_mean
from vitreous.files import atomic_path, write_text
from vitreous.scenes.attributes import NODATA, divided, key_of, number_of, numbers
from vitreous.scenes.cube import (
    UNITS,
    LabelImage,
    LazyCube,
    Window,
    check_bytes,
    check_shape,
    georeference,
    make_scene,
    settle,
)
from vitreous.scenes.values import converted, nodata_values
from vitreous.scenes.wavelengths import Spectral, from_names, numbers_as_names, spectral

HEADER_LIMIT = 8 * 2**20
STRIP_BYTES = 32 * 2**20  # written at a time
DATA_SUFFIXES = (".dat", ".img", ".bsq", ".bil", ".bip", ".raw", ".bin", ".cub", ".sli")

_TYPES = {1: "u1", 2: "i2", 3: "i4", 4: "f4", 5: "f8", 12: "u2", 13: "u4", 14: "i8", 15: "u8"}
_CODES = {kind: code for code, kind in _TYPES.items()}
_WIDENED = {
    "b1": "u1",
    "i1": "i2",
    "f2": "f4",
}  # types that ENVI lacks, in the next that holds them
_LAYOUTS = {  # axes as stored, and how to bring them to (band, y, x)
    "bsq": ("byx", (0, 1, 2)),
    "bil": ("ybx", (1, 0, 2)),
    "bip": ("yxb", (2, 0, 1)),
}
_NO_CRS = {"arbitrary", "pixel", ""}  # map infos without a projection
_NO_WAVELENGTHS = {"index", "unknown index"}
_NO_DATA = {  # endings of what lies beside an image and is none
    *(
        ".hdr",
        ".txt",
        ".xml",
        ".json",
        ".csv",
        ".md",
        ".pdf",
        ".html",
        ".log",
        ".enp",
        ".sta",
        ".prj",
    ),
    *(".shp", ".shx", ".dbf", ".cpg", ".gpkg", ".geojson", ".png", ".jpg", ".jpeg", ".glt", ".roi"),
}
_SYNONYMS = {  # what other writers call ENVI's keys
    "wavelengths": "wavelength",
    "wavelength unit": "wavelength units",
    "fwhms": "fwhm",
    "bandwidth": "fwhm",
    "bandwidths": "fwhm",
    "band widths": "fwhm",
    "band name": "band names",
    "bad bands list": "bbl",
    "coordinate system": "coordinate system string",
}
_NODATA_KEYS = {key_of(name) for name in NODATA}
_KEYS = {  # ENVI's own and ours
    *("description", "samples", "lines", "bands", "header offset", "file type", "data type"),
    *("interleave", "byte order", "sensor type", "wavelength units", "wavelength", "fwhm", "bbl"),
    *("band names", "map info", "projection info", "coordinate system string", "pixel size"),
    *("default bands", "default stretch", "z plot range", "z plot average", "z plot titles"),
    *("reflectance scale factor", "data gain values", "data offset values", "data ignore value"),
    *("data reflectance gain values", "data reflectance offset values", "data units"),
    *("class names", "class lookup", "classes", "x start", "y start", "geo points", "rpc info"),
    *("acquisition time", "cloud cover", "solar irradiance", "sun azimuth", "sun elevation"),
    *("file compression", "major frame offsets", "minor frame offsets", "product type"),
    *(
        "security tag",
        "spectra names",
        "read procedures",
        "complex function",
        "dem band",
        "dem file",
    ),
    *("timestamp", "vitreous unit", "vitreous scale"),
}
_OR_HINT = {"wavelength": ", or set wavelengths=....", "fwhm": ", or set fwhm=...."}
_FLOATS = {"4", "5"}  # data types
# AVIRIS, AVIRIS-NG and AVIRIS-3 (ang..._rdn_v2_img), Specim IQ (REFLECTANCE_2018-09-11_001.dat).
_NAMED_UNIT = re.compile(
    r"(?:(?:ang\d{8}|av3\d{8}|f\d{6})t\w*?_(?P<kind>rdn|rfl|corr|refl)(?:[_.-].*)?|REFLECTANCE_\S+)",
    re.I,
)
_UTM_BASE = {  # EPSG code = base + zone
    ("wgs84", "north"): 32600,
    ("wgs84", "south"): 32700,
    ("nad83", "north"): 26900,
    ("nad27", "north"): 26700,
}
_GEOGRAPHIC = {"wgs84": 4326, "nad83": 4269, "nad27": 4267}
_DATUMS = {
    "wgs-84": "wgs84",
    "wgs84": "wgs84",
    "wgs 84": "wgs84",
    "wgs_1984": "wgs84",
    "north america 1983": "nad83",
    "nad83": "nad83",
    "north america 1927": "nad27",
    "nad27": "nad27",
}

Header = dict[str, str]
T = TypeVar("T")


class _Mapped:
    """Reads windows of a flat file; the file is mapped when it is read, so that this can be sent to other processes."""

    def __init__(self, data_path: Path, header: Header, byte_order: int | None) -> None:
        self._arguments = (header, data_path, byte_order)

    def __call__(self, window: Window) -> npt.NDArray[Any]:
        return np.array(_map_cube(*self._arguments)[window])


class _Layout(NamedTuple):
    shape: tuple[int, int, int]  # bands, height, width
    dtype: np.dtype[Any]
    interleave: str
    offset: int


def open(
    path: Path,
    *,
    byte_order: int | None = None,
    wavelength_unit: str | None = None,
    **known: Any,
) -> xr.DataArray:
    """Open an ENVI image lazily.

    ``reflectance scale factor`` declares reflectance = stored value / factor; without it values are ``dn``.
    ``data gain values`` and ``data offset values`` are applied while reading.

    Args:
        path: the header or the data file; the other one is found beside it.
        byte_order: 0 (little-endian) or 1 (big-endian), instead of what the header says; 0 where it says nothing.
        wavelength_unit: ``nm`` or ``um``, instead of what the header says.
        **known: arguments of :func:`make_scene` that win over what the header says.

    Returns:
        The scene, a memory map of the file.

    Raises:
        SceneError: no such pair of files, or a header that is incomplete, contradictory or no match for the data.
    """
    header_path, data_path = find_pair(path)
    header = read_header(header_path)
    source = str(data_path)
    if _is_tiff(data_path):
        from vitreous.scenes import geotiff

        return geotiff.open(data_path, wavelength_unit=wavelength_unit, **known)
    cube = _map_cube(header, data_path, byte_order)
    bands = cube.shape[0]
    facts = settle(
        known,
        unit=lambda: radiometry(header, source)[0],
        scale=lambda: radiometry(header, source)[1],
        nodata=lambda: nodata_of(header, source),
    )
    crs, transform = place_of(header, source)
    facts |= band_facts(header, bands, source, wavelength_unit, known)
    gains = _gains(header, bands, source, known)
    values: npt.NDArray[Any] | LazyCube = cube
    if gains is not None:
        nodata = nodata_values(facts["nodata"])
        stored = LazyCube(cube.shape, cube.dtype, _Mapped(data_path, header, byte_order))
        scales = gains[0] * facts["scale"]
        offsets = gains[1] * (1.0 if "scale" in known else facts["scale"])
        values = converted(stored, scales=scales, offsets=offsets, nodata=nodata)
        facts |= {"scale": 1.0, "nodata": math.nan}
    return make_scene(values, crs=crs, transform=transform, source=source, **{**known, **facts})


class Library(NamedTuple):
    """What an ENVI spectral library holds.

    Attributes:
        values: ``(spectra, bands)`` as stored.
        names: of the spectra, where the header has them.
        facts: wavelengths, widths and good bands, as arguments of :func:`make_scene`.
        unit: as of a scene.
        scale: likewise.
        nodata: likewise.
    """

    values: npt.NDArray[Any]
    names: list[str] | None
    facts: dict[str, Any]
    unit: str
    scale: float
    nodata: float | None


def open_library(path: Path, wavelength_unit: str | None = None) -> Library:
    """Read a spectral library (``.sli``): samples are its bands, lines its spectra.

    Args:
        path: the header or the library.
        wavelength_unit: ``nm`` or ``um``, instead of what the header says.

    Raises:
        SceneError: no such pair of files, or a header that is no match for the data.
    """
    header_path, data_path = find_pair(path)
    header = read_header(header_path)
    source = str(data_path)
    image = {key: value for key, value in header.items() if key not in {"file type", "band names"}}
    cube = _map_cube(image, data_path, None)
    if cube.shape[0] != 1:
        raise SceneError(
            f"{source} has {cube.shape[0]} bands, which no spectral library has.", "It is an image."
        )
    bands = cube.shape[2]
    unit, scale = radiometry(image, source)
    facts = band_facts(image, bands, source, wavelength_unit, {})
    names = _names(header, "spectra names")
    if names is not None and len(names) != cube.shape[1]:
        warnings.warn(
            f"{source} has {cube.shape[1]} spectra but {len(names)} names; they are left out.",
            stacklevel=3,
        )
        names = None
    return Library(np.asarray(cube[0]), names, facts, unit, scale, nodata_of(image, source))


def band_facts(
    header: Header, bands: int, source: str, unit: str | None, known: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what a header says about the bands, as arguments of :func:`make_scene`.

    Band centres are those of ``wavelength``, or else of names such as ``Band 1 (402.4 Nanometers)``.

    Args:
        header: the header.
        bands: of the data.
        source: the file's name, for messages.
        unit: of the wavelengths, which the user says.
        known: arguments that the user gives.
    """
    facts = settle(
        known,
        good_band=lambda: _good_bands(header, bands, source),
        band_names=lambda: _band_names(header, bands, source),
    )
    wanted = [name for name in ("wavelengths", "fwhm") if name not in known]
    found = _spectral(header, bands, facts["band_names"], unit, source, wanted)
    facts |= settle(known, wavelengths=lambda: found.centres, fwhm=lambda: found.widths)
    return facts


def beside(path: Path) -> Header | None:
    """Return the ENVI header beside a file of another format (``x.hdr`` or ``x.tif.hdr`` beside ``x.tif``), if any."""
    names = (f"{name}{end}" for name in (path.name, path.stem) for end in (".hdr", ".HDR"))
    # Not find_pair, which lists the folder: of ten thousand image chips each would list all.
    header_path = next(
        (path.with_name(name) for name in names if path.with_name(name).is_file()), None
    )
    try:
        return None if header_path is None else read_header(header_path)
    except (SceneError, OSError):
        return None


def open_labels(path: Path, *, byte_order: int | None = None) -> LabelImage:
    """Read a label image, an ``ENVI Classification`` with its names and colours or any single-band image.

    Args:
        path: the header or the data file.
        byte_order: as in :func:`open`.

    Raises:
        SceneError: as in :func:`open`, or more than one band.
    """
    header_path, data_path = find_pair(path)
    header = read_header(header_path)
    source = str(data_path)
    if _is_tiff(data_path):
        from vitreous.scenes import geotiff

        return geotiff.open_labels(data_path)
    cube = _map_cube(header, data_path, byte_order)
    if cube.shape[0] != 1:
        raise SceneError(
            f"{source} has {cube.shape[0]} bands.", "A label image must have one band."
        )
    names, colors = _classes(header, source)
    nodata = nodata_values(nodata_of(header, source))
    return LabelImage(np.array(cube[0]), nodata, names, colors, *place_of(header, source))


def write(scene: xr.DataArray, path: str | Path, interleave: str = "bsq") -> None:
    """Write a scene as ENVI data with its header beside it (``x.dat`` and ``x.hdr``).

    Values are written as stored, in strips; the header comes last, so a pair is never half there. Unit and
    scale beyond what ENVI knows are kept under keys of our own, which other readers skip.

    Args:
        scene: the scene.
        path: the data file, or the header ``x.hdr`` (the data become ``x.dat``).
        interleave: ``bsq``, ``bil`` or ``bip``.

    Raises:
        SceneError: a type or a grid that ENVI cannot express.
        VitreousError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    data_path = path.with_suffix(".dat") if path.suffix.lower() == ".hdr" else path
    if interleave not in _LAYOUTS:
        raise SceneError(f"Unknown interleave '{interleave}'.", did_you_mean(interleave, _LAYOUTS))
    dtype = _stored_type(scene.dtype, str(path))
    header = _compose_header(scene, dtype, interleave, str(path))
    header_path = data_path.with_suffix(".hdr")
    with atomic_path(data_path) as temporary:
        with temporary.open("wb") as file:
            _write_values(scene, file, dtype, interleave)
        header_path.unlink(missing_ok=True)  # an older header must not describe the new data
    write_text(header_path, header)


def find_pair(path: Path) -> tuple[Path, Path]:
    """Return the header and the data file that belong together, given either.

    Knows ``x.hdr`` beside ``x``, ``x.dat``, ``x.img`` and so on, and ``x.dat.hdr``, in any capitals; of other
    endings (``x.rfl``, ``x.tif``) the only one there is.

    Raises:
        SceneError: the other half is missing, or there are several.
    """
    siblings = {p.name.lower(): p for p in path.absolute().parent.iterdir() if p.is_file()}
    name = path.name.lower()
    if not name.endswith(".hdr"):
        for candidate in (f"{name}.hdr", f"{Path(name).stem}.hdr"):
            if candidate in siblings:
                return siblings[candidate], path
        raise SceneError(
            f"{path} has no ENVI header.", f"Put {path.name}.hdr or {path.stem}.hdr next to it."
        )
    stem = name.removesuffix(".hdr")
    if stem in siblings:
        return path, siblings[stem]
    found = [siblings[stem + suffix] for suffix in DATA_SUFFIXES if stem + suffix in siblings]
    if not found:
        others = (p for n, p in siblings.items() if Path(n).stem == stem)
        found = [p for p in others if p.suffix.lower() not in _NO_DATA]
    if not found:
        raise SceneError(
            f"{path} is a header without data.",
            f"Put its data file next to it, e.g. {path.stem} or {path.stem}.dat.",
        )
    if len(found) > 1:
        raise SceneError(
            f"{path} could belong to {' or '.join(p.name for p in found)}.",
            "Open the data file instead.",
        )
    return path, found[0]


def _is_tiff(path: Path) -> bool:
    """Products keep an ENVI header beside a GeoTIFF; its pixels are not flat, whatever the header says."""
    if path.suffix.lower() not in {".tif", ".tiff", ".gtiff"}:
        return False
    with path.open("rb") as file:
        return file.read(4) in {b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"}


def has_header(path: Path) -> bool:
    """Return whether an ENVI header lies beside a data file."""
    try:
        header, _ = find_pair(path)
        with header.open("rb") as file:
            return file.read(4) == b"ENVI"
    except (SceneError, OSError):
        return False


def read_header(path: Path) -> Header:
    """Read an ENVI header into lower-case keys and the text of their values (without braces).

    Raises:
        SceneError: no ENVI header, too large, braces that never end, a key given twice with different values.
    """
    size = path.stat().st_size
    if size > HEADER_LIMIT:
        raise SceneError(f"{path} has {size} bytes, too many for an ENVI header.")
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:  # older software writes the names in its own code page
        text = raw.decode("latin-1")
    lines = iter(text.splitlines())
    if next(lines, "").strip().upper() != "ENVI":
        raise SceneError(
            f"{path} is not an ENVI header: its first line is not 'ENVI'.",
            "Other formats also use .hdr; check what wrote this file.",
        )
    header: Header = {}
    others: Header = {}  # under names of other writers, which count where ENVI's own are missing
    stray: list[str] = []
    for key, value in _entries(_joined(list(lines)), path, stray):
        key = _spelled(key)
        known = canonical_key(key)
        if known != key:
            others.setdefault(known, value)
            continue
        if header.get(key, value) != value:
            raise SceneError(f"{path} gives '{key}' twice.", "Delete the wrong one.")
        header[key] = value
    header = {**others, **header}
    _say_skipped(header, stray, path)
    return header


def canonical_key(key: str) -> str:
    """Return ENVI's own name for a key in another spelling: plural, with underscores, or a word for no data."""
    key = _spelled(key)
    return "data ignore value" if key_of(key) in _NODATA_KEYS else _SYNONYMS.get(key, key)


def _spelled(key: str) -> str:
    """A key in ENVI's spelling: lower case, words divided by one blank."""
    return " ".join(key.lower().replace("_", " ").split())


def _joined(lines: list[str]) -> list[str]:
    """Put a key and its equals sign on one line, where the sign begins the next."""
    joined: list[str] = []
    for line in lines:
        if (
            line.lstrip().startswith("=")
            and joined
            and joined[-1].strip()
            and "=" not in joined[-1]
        ):
            joined[-1] += line
        else:
            joined.append(line)
    return joined


def _entries(lines: list[str], path: Path, stray: list[str]) -> Iterator[tuple[str, str]]:
    """Yield keys and values; lines that are neither are added to ``stray``."""
    at = 0
    while at < len(lines):
        line = lines[at]
        at += 1
        if not line.strip() or line.lstrip().startswith(";"):
            continue
        key, equals, value = line.partition("=")
        if not equals:
            stray.append(line.strip())
            continue
        value = value.strip()
        following = next((k for k in range(at, len(lines)) if lines[k].strip()), None)
        if not value and following is not None and lines[following].lstrip().startswith("{"):
            value, at = lines[following].strip(), following + 1
        if not value.startswith("{"):
            yield key, value
            continue
        last = _end_of_list(value, lines, at)
        if last is None:
            raise SceneError(
                f"{path} has an unclosed brace at '{key}'.",
                "The header is truncated; restore it or add the missing '}'.",
            )
        text = " ".join([value, *(part.strip() for part in lines[at:last])])
        at = last
        yield key, text[1 : text.rindex("}")].strip()


def _end_of_list(first: str, lines: list[str], at: int) -> int | None:
    """Return the line after a list that opens with ``first``, which is followed by ``lines[at:]``.

    Braces inside a list belong to it where they are balanced. Where they are not (a description may hold anything), the
    list ends with the first line that ends with a brace, or else at the first one.
    """
    depth = 0
    for end, line in enumerate([first, *lines[at:]], start=at):
        depth += line.count("{") - line.count("}")
        if depth <= 0:
            return end
    numbered = list(enumerate([first, *lines[at:]], start=at))
    ends = [k for k, line in numbered if line.rstrip().endswith("}")]
    inside = [k for k, line in numbered if "}" in line]
    return next(iter(ends or inside), None)


def _say_skipped(header: Header, stray: list[str], path: Path) -> None:
    """Say what of a header is not understood and might have mattered."""
    if stray:
        shown = stray[0] if len(stray[0]) <= 40 else f"{stray[0][:40]} ..."
        warnings.warn(
            f"{path}: {len(stray)} lines do not belong to a key and are skipped, starting with '{shown}'.",
            stacklevel=4,
        )
    for key in header.keys() - _KEYS:
        near = difflib.get_close_matches(key, _KEYS - header.keys(), n=1, cutoff=0.88)
        if near:
            warnings.warn(f"{path}: unknown key '{key}'; did you mean '{near[0]}'?", stacklevel=4)


def _map_cube(header: Header, data_path: Path, byte_order: int | None) -> npt.NDArray[Any]:
    layout = _layout(header, str(data_path), byte_order)
    bands, height, width = layout.shape
    expected = layout.offset + bands * height * width * layout.dtype.itemsize
    check_bytes(
        expected,
        data_path.stat().st_size,
        str(data_path),
        f"{layout.offset} + {height} lines x {width} samples x {bands} bands"
        f" x {layout.dtype.itemsize} bytes",
    )
    axes, order = _LAYOUTS[layout.interleave]
    sizes = {"b": bands, "y": height, "x": width}
    stored = np.memmap(
        data_path,
        dtype=layout.dtype,
        mode="r",
        offset=layout.offset,
        shape=tuple(sizes[axis] for axis in axes),
    )
    return stored.transpose(order)


def _layout(header: Header, source: str, byte_order: int | None) -> _Layout:
    _refuse_unsupported(header, source)
    shape = check_shape(
        [_required(header, key, source) for key in ("bands", "lines", "samples")], source
    )
    interleave = header.get("interleave", "").lower()
    if interleave not in _LAYOUTS:
        raise SceneError(
            f"{source} has the interleave '{interleave}' in its header.",
            "It must be bsq, bil or bip.",
        )
    code = _required(header, "data type", source)
    if code not in _TYPES:
        reason = "complex numbers are not spectra" if code in {6, 9} else "unknown ENVI data type"
        raise SceneError(
            f"{source} has data type {code}: {reason}.", f"Known types are {sorted(_TYPES)}."
        )
    offset = _number(header, "header offset", int, source) or 0
    if offset < 0:
        raise SceneError(f"{source} has the header offset {offset}.", "It must be 0 or more.")
    return _Layout(shape, _dtype(header, code, byte_order, source), interleave, offset)


def _dtype(header: Header, code: int, byte_order: int | None, source: str) -> np.dtype[Any]:
    dtype = np.dtype(_TYPES[code])
    order = None if byte_order is None else int(number_of("byte_order", byte_order))
    if order is None:
        order = _number(header, "byte order", int, source)
    if order is None:  # ENVI's default
        order = 0
    if order not in {0, 1}:
        raise SceneError(f"{source} has the byte order {order}.", "It must be 0 or 1.")
    return dtype.newbyteorder("<" if order == 0 else ">")


def _refuse_unsupported(header: Header, source: str) -> None:
    kind = header.get("file type", "ENVI Standard").lower()
    if kind == "envi spectral library":
        raise SceneError(
            f"{source} is a spectral library.",
            "A scene has rows and columns; vitreous.scenes.spectra.read_spectra reads libraries.",
        )
    if kind not in {"envi standard", "envi classification", "envi", ""}:
        raise SceneError(
            f"{source} has the file type '{header['file type']}' in its header.",
            "Only flat binary images are supported through an ENVI header; open the file itself.",
        )
    if header.get("file compression", "0") not in {"", "0"}:
        raise SceneError(
            f"{source} is compressed.", "Decompress it and set 'file compression = 0'."
        )
    for key in ("major frame offsets", "minor frame offsets"):
        if re.search("[1-9]", header.get(key, "")):
            raise SceneError(
                f"{source} has {key}, which are not supported.", "Rewrite it without them."
            )


def _required(header: Header, key: str, source: str) -> int:
    value = _number(header, key, int, source)
    if value is None:
        raise SceneError(f"{source} has no '{key}' in its header.", f"Add the line '{key} = ...'.")
    return value


def nodata_of(header: Header, source: str) -> float | None:
    """Return the stored value that means "no measurement", None where the header names none."""
    text = header.get("data ignore value", "")
    if text.strip().lower() in {"none", "null", "n/a"}:
        return None
    return _number(header, "data ignore value", float, source)


def _number(header: Header, key: str, kind: Callable[[str], T], source: str) -> T | None:
    text = header.get(key, "")
    if not text:
        return None
    try:
        return kind(text)
    except ValueError as error:
        raise SceneError(
            f"{source} has '{key} = {text[:40]}' in its header, which is not a number.",
            "Correct the header.",
        ) from error


def _names(header: Header, key: str) -> list[str] | None:
    items = [item.strip().strip('"').strip() for item in _split(header.get(key, ""))]
    while items and not items[-1]:  # some writers end their lists with a comma
        items.pop()
    return items or None


def _split(text: str) -> list[str]:
    """Split a list at its commas; those inside of braces, brackets, parentheses and quotes belong to an item."""
    items, depth, start, quoted = [], 0, 0, False
    in_pairs = text.count('"') % 2 == 0
    for at, letter in enumerate(text):
        if letter == '"' and in_pairs:
            quoted = not quoted
        elif quoted:
            continue
        elif letter in "{[(":
            depth += 1
        elif letter in "}])":
            depth = max(0, depth - 1)
        elif letter == "," and not depth:
            items.append(text[start:at])
            start = at + 1
    return [*items, text[start:]]


def _band_names(header: Header, bands: int, source: str) -> list[str] | None:
    names = _names(header, "band names")
    if names is not None and len(names) != bands:  # a comma inside a name is enough
        plain = [item.strip() for item in header["band names"].rstrip(", ").split(",")]
        if len(plain) == bands:
            return plain
        warnings.warn(f"{source} has {bands} bands but {len(names)} band names.", stacklevel=3)
        return None
    return names


def _numbers(header: Header, key: str, source: str) -> npt.NDArray[np.float64] | None:
    items = _names(header, key)
    if items is None:
        return None
    try:
        return np.array([float(item) for item in items])
    except ValueError as error:
        divided_otherwise = numbers(header[key])  # by blanks or semicolons
        if divided_otherwise is not None:
            return np.array(divided_otherwise)
        raise SceneError(
            f"{source} has non-numeric values in '{key}' of its header ({error}).",
            "Correct the header" + _OR_HINT.get(key, "."),
        ) from error


def _spectral(
    header: Header,
    bands: int,
    names: Sequence[str] | None,
    unit: str | None,
    source: str,
    wanted: Sequence[str],
) -> Spectral:
    """Band centres and widths in nm; a list that makes no sense is left out with a warning."""
    stated = header.get("wavelength units")
    if unit is None and (stated or "").lower() in _NO_WAVELENGTHS:
        return Spectral(None, None)
    lists = {
        name: _per_band(header, key, bands, source) if name in wanted else None
        for name, key in (("wavelengths", "wavelength"), ("fwhm", "fwhm"))
    }
    if lists["wavelengths"] is None and "wavelengths" in wanted and names is not None:
        centres = from_names(names)
        bare = numbers_as_names(names) if centres is None else None
        if centres is not None or bare is not None:
            # Names carry their own unit; the header's is that of the widths.
            found = spectral(bare, lists["fwhm"], unit or stated, source)
            return Spectral(centres if centres is not None else found.centres, found.widths)
    try:
        return spectral(
            lists["wavelengths"], lists["fwhm"], unit or stated, source, certain=unit is not None
        )
    except SceneError as error:
        if unit is not None:
            raise
        warnings.warn(f"{source}: {error} The wavelengths are ignored.", stacklevel=4)
        return Spectral(None, None)


def _per_band(header: Header, key: str, bands: int, source: str) -> npt.NDArray[np.float64] | None:
    values = _numbers(header, key, source)
    if values is not None and values.size != bands:
        raise SceneError(
            f"{source} has {bands} bands but {values.size} values in '{key}' of its header.",
            "Correct the header" + _OR_HINT.get(key, "."),
        )
    return values


def _good_bands(header: Header, bands: int, source: str) -> npt.NDArray[np.bool_] | None:
    bbl = _per_band(header, "bbl", bands, source)
    return None if bbl is None else bbl != 0


def _gains(
    header: Header, bands: int, source: str, known: Mapping[str, Any]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None:
    """Gains and offsets of the bands, None where they change nothing; a scale of the user's replaces the gains."""
    gains = None if "scale" in known else _per_band(header, "data gain values", bands, source)
    offsets = _per_band(header, "data offset values", bands, source)
    gains = np.ones(bands) if gains is None else gains
    offsets = np.zeros(bands) if offsets is None else offsets
    changes = (gains != 1).any() or offsets.any()
    return (gains, offsets) if changes else None


def _said_unit(header: Header, source: str) -> str:
    """What ``data units`` or the name of a product say of values that are no counts."""
    stated = header.get("data units", "").strip().lower()
    if stated in UNITS:
        return stated
    match = _NAMED_UNIT.fullmatch(Path(source).name)
    if match is None:
        return "dn"
    return "radiance" if (match["kind"] or "").lower() == "rdn" else "reflectance"


def radiometry(header: Header, source: str) -> tuple[str, float]:
    """Return the unit of the values and their scale."""
    unit, scale = "dn", 1.0
    factor = _number(header, "reflectance scale factor", float, source)
    if factor is not None:
        if not (math.isfinite(factor) and factor > 0):
            raise SceneError(
                f"{source} has the reflectance scale factor {factor}.",
                "It must be a positive number.",
            )
        if factor < 1:
            warnings.warn(
                f"{source} has the reflectance scale factor {factor:g}, by which ENVI divides; below 1 it is assumed to be a "
                "multiplier (set scale=... to override).",
                stacklevel=3,
            )
        unit, scale = "reflectance", float(divided(factor) or 1.0)
    elif header.get("data type", "").strip() in _FLOATS:
        unit = _said_unit(header, source)
    own_unit = header.get("vitreous unit", "")
    own_scale = _number(header, "vitreous scale", float, source)
    return (own_unit if own_unit in UNITS else unit), scale if own_scale is None else own_scale


def _classes(header: Header, source: str) -> tuple[dict[int, str] | None, dict[int, str] | None]:
    """Names and colours by value."""
    names = _names(header, "class names")
    lookup = _numbers(header, "class lookup", source)
    if names is None:
        return None, None
    if lookup is None or lookup.size != 3 * len(names) or lookup.min() < 0 or lookup.max() > 255:
        return dict(enumerate(names)), None
    colors = [f"#{int(r):02x}{int(g):02x}{int(b):02x}" for r, g, b in lookup.reshape(-1, 3)]
    return dict(enumerate(names)), dict(enumerate(colors))


def place_of_map_info(text: str, source: str) -> tuple[Any, Any]:
    """Return CRS and transform of an ENVI map info, which other formats (NEON's HDF5) keep as text."""
    return place_of({"map info": text.strip().strip("{}")}, source)


def place_of(header: Header, source: str) -> tuple[Any, Any]:
    """Return CRS and transform of a header, each None where it does not say."""
    fields = _names(header, "map info")
    transform, crs = None, None
    if fields is not None:
        try:
            transform = _transform(fields)
            crs = _crs_of_map_info(fields)
            if transform.e > 0 and not transform.d:
                _say_south_up(source)
        except (ValueError, IndexError):
            warnings.warn(f"{source} has an invalid map info; it is ignored.", stacklevel=2)
    stated = _crs_of_wkt(header.get("coordinate system string", ""), source)
    crs = stated if stated is not None else crs
    if crs is None and transform is not None and fields and fields[0].lower() not in _NO_CRS:
        warnings.warn(
            f"{source}: the coordinate system of its map info ({', '.join(fields[:1] + fields[7:])}) is not known; the "
            "scene has none. Give the header a coordinate system string.",
            stacklevel=3,
        )
    return crs, transform


def _say_south_up(source: str) -> None:
    warnings.warn(
        f"{source} is turned by 180 degrees, which is how GDAL writes images whose first row is the southernmost; it is "
        "read so. If both rows and columns are turned, correct its map info.",
        stacklevel=4,
    )


def _options(fields: list[str]) -> dict[str, str]:
    pairs = (field.partition("=") for field in fields if "=" in field)
    return {key.strip().lower(): value.strip() for key, _, value in pairs}


def _transform(fields: list[str]) -> Any:
    """Affine transform of a map info: tie pixel (1, 1 = the corner), tie point, pixel sizes, rotation.

    A positive rotation turns the image counter-clockwise about the tie point; 180 degrees mean upside down.
    """
    from rasterio import Affine

    column, row, easting, northing, width, height = (float(field) for field in fields[1:7])
    options = _options(fields)
    rotation = float(options.get("rotation", 0))
    numbers = (column, row, easting, northing, width, height, rotation)
    if not all(map(math.isfinite, numbers)) or width <= 0 or height <= 0:
        raise ValueError("not a grid")
    if options.get("units", "").lower() == "seconds" and fields[0].lower().startswith("geographic"):
        easting, northing, width, height = (
            value / 3600 for value in (easting, northing, width, height)
        )
    sine, cosine = math.sin(math.radians(rotation)), math.cos(math.radians(rotation))
    if rotation % 90 == 0:  # the sines are not exact, and a grid that is not turned stays plain
        sine, cosine = round(sine), round(cosine)
    a, b, d, e = width * cosine, height * sine, width * sine, -height * cosine
    if abs(rotation) == 180:
        a = width  # see _say_south_up
    left = easting - (column - 1) * a - (row - 1) * b
    top = northing - (column - 1) * d - (row - 1) * e
    return Affine(a, b, left, d, e, top)


def _crs_of_map_info(fields: list[str]) -> Any:
    from rasterio.crs import CRS

    words = [field.lower() for field in fields]
    units = _options(fields).get("units", "").lower()
    datum = next((_DATUMS[word] for word in words[7:] if word in _DATUMS), None)
    code = None
    if words[0] == "utm" and units in {"", "meters", "metres"}:
        zone = int(fields[7])
        half = {"n": "north", "s": "south"}.get(words[8], words[8])
        base = _UTM_BASE.get((datum or "", half))
        code = base + zone if base is not None and 1 <= zone <= 60 else None
    elif words[0].startswith("geographic"):
        code = _GEOGRAPHIC.get(datum or "")
    return None if code is None else CRS.from_epsg(code)


def _crs_of_wkt(wkt: str, source: str) -> Any:
    if not wkt:
        return None
    import rasterio
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    try:
        with rasterio.Env():
            crs = CRS.from_wkt(wkt, morph_from_esri_dialect=True)
            code = crs.to_epsg()  # ESRI's names for the same system would compare as different
            return crs if code is None else CRS.from_epsg(code)
    except (CRSError, UnicodeError):
        warnings.warn(f"{source} has an unreadable coordinate system string.", stacklevel=3)
        return None


def _stored_type(dtype: np.dtype[Any], where: str) -> np.dtype[Any]:
    kind = f"{dtype.kind}{dtype.itemsize}"
    kind = _WIDENED.get(kind, kind)
    if kind not in _CODES:
        raise SceneError(
            f"{where}: ENVI does not support {dtype} values.", "Convert them, e.g. to float32."
        )
    return np.dtype(kind).newbyteorder("<")


def _write_values(
    scene: xr.DataArray, file: BinaryIO, dtype: np.dtype[Any], interleave: str
) -> None:
    bands, height, width = scene.shape
    axes, _ = _LAYOUTS[interleave]
    to_stored = tuple("byx".index(axis) for axis in axes)
    line = width * dtype.itemsize
    strip = max(1, STRIP_BYTES // (bands * line))
    for row in range(0, height, strip):
        values = scene[:, row : row + strip].values.astype(dtype, copy=False)
        if interleave != "bsq":
            file.write(np.ascontiguousarray(values.transpose(to_stored)).data)
            continue
        for band in range(bands):
            file.seek((band * height + row) * line)
            file.write(np.ascontiguousarray(values[band]).data)


def _compose_header(scene: xr.DataArray, dtype: np.dtype[Any], interleave: str, where: str) -> str:
    bands, height, width = scene.shape
    lines = [
        "ENVI",
        f"samples = {width}",
        f"lines = {height}",
        f"bands = {bands}",
        "header offset = 0",
        "file type = ENVI Standard",
        f"data type = {_CODES[f'{dtype.kind}{dtype.itemsize}']}",
        f"interleave = {interleave}",
        "byte order = 0",
        *_grid_lines(scene, where),
        *_band_lines(scene),
    ]
    nodata = scene.attrs.get("nodata")
    if nodata is not None:
        lines.append(f"data ignore value = {_plain(nodata)}")
    unit, scale = scene.attrs.get("unit", "dn"), float(scene.attrs.get("scale", 1.0))
    if unit == "reflectance":
        lines.append(f"reflectance scale factor = {_plain(1.0 / scale)}")
    lines += [f"vitreous unit = {unit}", f"vitreous scale = {scale!r}"]
    return "\n".join(lines) + "\n"


def _band_lines(scene: xr.DataArray) -> Iterator[str]:
    if "wavelength" in scene.coords or "fwhm" in scene.coords:
        yield "wavelength units = Nanometers"
    for key, coordinate in (("wavelength", "wavelength"), ("fwhm", "fwhm"), ("bbl", "good_band")):
        if coordinate in scene.coords:
            values = scene[coordinate].values
            items = (str(int(v)) if values.dtype == bool else _plain(v) for v in values)
            yield f"{key} = {{{', '.join(items)}}}"
    if "band_name" in scene.coords:
        names = (re.sub(r"[\s,{}=]+", " ", str(name)).strip() for name in scene["band_name"].values)
        yield f"band names = {{{', '.join(names)}}}"


def _grid_lines(scene: xr.DataArray, where: str) -> Iterator[str]:
    crs, transform = georeference(scene)
    if transform is not None:
        yield f"map info = {{{', '.join(_map_info(crs, transform, where))}}}"
    if crs is not None:
        # ENVI reads ESRI's dialect; one line, because lists of ours end at the first closing brace.
        yield f"coordinate system string = {{{crs.to_wkt(version='WKT1_ESRI')}}}"


def _map_info(crs: Any, transform: Any, where: str) -> list[str]:
    width, height = math.hypot(transform.a, transform.d), math.hypot(transform.b, transform.e)
    skew = abs(transform.a * transform.b + transform.d * transform.e)
    # A rotation of 180 degrees is what GDAL writes for a mirrored grid.
    half_turned = transform.a < 0 and not transform.d
    if transform.determinant >= 0 or skew > 1e-6 * width * height or half_turned:
        raise SceneError(
            f"{where}: ENVI cannot express a mirrored or sheared grid, or one turned by 180 degrees.",
            "Write a GeoTIFF, or resample the scene to a plain grid first.",
        )
    code = crs.to_epsg() if crs is not None else None
    utm = next((b for b in (32600, 32700) if code and b < code <= b + 60), None)
    name, tail = "Arbitrary", ["units=Meters"]
    if code is not None and utm is not None:
        name = "UTM"
        tail = [str(code - utm), "North" if utm == 32600 else "South", "WGS-84", "units=Meters"]
    elif code == 4326:
        name, tail = "Geographic Lat/Lon", ["WGS-84", "units=Degrees"]
    if transform.d:
        tail.append(f"rotation={math.degrees(math.atan2(transform.d, transform.a))!r}")
    corner = [_plain(v) for v in (transform.c, transform.f, width, height)]
    return [name, "1", "1", *corner, *tail]


def _plain(value: Any) -> str:
    """Shortest text that reads back as the same number."""
    number = float(value)
    return str(int(number)) if number.is_integer() and abs(number) < 2**53 else repr(number)
