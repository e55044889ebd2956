"""Polygons and points with a class attribute, burnt on a scene's grid: GeoPackage, GeoJSON and Shapefile."""

from __future__ import annotations

import codecs
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.errors import SceneError, did_you_mean
from vitreous.scenes.cube import check_bytes, georeference

CLASS_NUMBER_LIMIT = 255  # beyond, whole numbers are named by themselves ("7201"), not "class 7201"
# "Unlabelled" where they lie far beyond the classes: the greatest numbers of types, and rows of nines.
_SENTINELS = {254, 255, 9999, 32767, 65534, 65535, 99999, 999999, 2**31 - 1, 2**32 - 1}
_NO_NUMBER = re.compile(r"0|-\d+(?:\.\d+)?")  # beside names
_NUMBER = re.compile(r"-?(?:0|[1-9]\d{0,8})")
# Not "unknown" or "background", which people also map.
_NO_CLASS = re.compile(
    r"(?:un|not |non)-?(?:classified|labell?ed|assigned|defined)|no ?-?_?data|none|null|n/?a|nan|-+",
    re.I,
)
_MAGIC = {  # by content too, because GDAL would open a virtual file under any name
    ".gpkg": b"SQLite format 3\0",
    ".shp": b"\0\0\x27\x0a",
    ".geojson": b"{",
    ".json": b"{",
}
_DBF_LIMIT = 2**30
_DBF_PAGES = {  # the language driver of a .dbf, where it has one (dBASE's numbers)
    0x01: "cp437",
    0x02: "cp850",
    0x03: "cp1252",
    0x57: "cp1252",
    0x64: "cp852",
    0x65: "cp866",
    0xC8: "cp1250",
    0xC9: "cp1251",
}


class Burnt(NamedTuple):
    """Features on a grid.

    Attributes:
        values: ``(rows, columns)`` class numbers from 1 on, 0 where there is no feature.
        codes: the attribute's own number of each class, or 1, 2, ...
        names: of the classes, None where they are numbers.
    """

    values: npt.NDArray[np.int32]
    codes: list[int]
    names: list[str] | None


class _Classes(NamedTuple):
    numbers: npt.NDArray[np.int64]  # of each feature, from 1 on; 0 for none
    codes: list[int]
    names: list[str] | None


def is_vector(file: Path) -> bool:
    """Return whether a file's name is that of a vector format."""
    return file.suffix.lower() in _MAGIC and file.is_file()


def open_features(
    path: Path,
    *,
    like: xr.DataArray,
    attribute: str | None,
    unlabelled: tuple[float, ...] | None = None,
    class_names: Sequence[str] | None = None,
    layer: str | None = None,
    encoding: str | None = None,
) -> Burnt:
    """Burn the features of a file on a scene's grid.

    Args:
        path: the file.
        like: the scene, georeferenced.
        attribute: the class attribute; needed where there are several.
        unlabelled: numbers in the attribute that mean "no class"; negative ones when None.
        class_names: the order of the classes of text attributes.
        layer: of a GeoPackage; needed where there are several.
        encoding: of a Shapefile's texts, instead of what its ``.cpg`` says.

    Raises:
        SceneError: damaged, no class attribute, or no feature in the scene.
    """
    crs, transform = georeference(like)
    features = _to_crs(_read(path, layer, encoding), crs, path)
    column = _class_column(features, attribute, path)
    placed = features.geometry.notna() & ~features.geometry.is_empty
    values = [
        None if missing else v
        for v, missing in zip(
            features[column].tolist(), features[column].isna().tolist(), strict=True
        )
    ]
    classes = _classes(values, features[column].dtype.kind, unlabelled, class_names, path)
    chosen = placed.to_numpy() & (classes.numbers > 0)
    if not chosen.any():
        raise SceneError(f"{path} has no feature with a value of '{column}'.")
    blank = sum(value is None or not str(value).strip() for value in values)
    _say_lost(blank, len(features), column, path)
    features, numbers = features[chosen], classes.numbers[chosen]
    burnt = _burn(features.geometry, numbers, (like.sizes["y"], like.sizes["x"]), transform)
    _check_burnt(burnt, numbers, classes, features, like, path)
    return Burnt(burnt, classes.codes, classes.names)


def _say_lost(count: int, of: int, column: str, path: Path) -> None:
    if count:
        warnings.warn(
            f"{path}: {count:,} of {of:,} features have no value of '{column}' and are ignored.",
            stacklevel=4,
        )


def _read(path: Path, layer: str | None, encoding: str | None) -> Any:
    with path.open("rb") as file:
        head = file.read(256).removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n")
    if not head.startswith(_MAGIC[path.suffix.lower()]):
        raise SceneError(
            f"{path} is not a {path.suffix[1:]} file.", "It is damaged or has the wrong suffix."
        )
    if path.suffix.lower() == ".shp":  # GDAL takes the features that a cut file lost as empty
        words = int.from_bytes(head[24:28], "big")
        check_bytes(2 * words, path.stat().st_size, str(path), f"{words} words of 2 bytes")
        encoding = _known_encoding(encoding) or _dbf_encoding(path)
    try:
        import geopandas
        import pyogrio
    except ImportError as error:
        raise SceneError(
            "Vector labels need geopandas.", "Install it with: pip install 'vitreous[vector]'."
        ) from error
    with _foreign_errors(path):
        layers = [str(row[0]) for row in pyogrio.list_layers(path) if row[1] is not None]
        if layer is not None and layer not in layers:
            raise SceneError(f"{path} has no layer '{layer}'.", did_you_mean(str(layer), layers))
        if layer is None and len(layers) != 1:
            raise SceneError(
                f"{path} has {len(layers)} layers with geometry: {', '.join(layers)}.",
                "Choose one with layer=NAME (--label-hints layer=NAME).",
            )
        texts = {} if encoding is None else {"encoding": encoding}
        return geopandas.read_file(path, layer=layer or layers[0], engine="pyogrio", **texts)


def _known_encoding(encoding: str | None) -> str | None:
    try:
        return None if encoding is None else codecs.lookup(str(encoding)).name
    except LookupError as error:
        raise SceneError(
            f"Unknown text encoding '{encoding}'.", "Common ones are utf-8, cp1252 and latin-1."
        ) from error


def _dbf_encoding(path: Path) -> str | None:
    """Return the encoding of a Shapefile's texts where no ``.cpg`` says it; None leaves it to GDAL.

    The dBASE format keeps one byte for a code page, which many writers leave empty: UTF-8 is then told by its bytes,
    which no text in another encoding forms by chance.
    """
    siblings = {p.name.lower(): p for p in path.absolute().parent.iterdir()}
    stem = path.stem.lower()
    table = siblings.get(f"{stem}.dbf")
    if f"{stem}.cpg" in siblings or table is None or table.stat().st_size > _DBF_LIMIT:
        return None
    raw = table.read_bytes()
    # The head's size is where the first record begins; byte 29 is the language driver.
    start = int.from_bytes(raw[8:10], "little")
    records = raw[start:]
    if records.isascii():
        return None
    try:
        records.decode("utf-8")
        return "UTF-8"
    except UnicodeDecodeError:
        page = _DBF_PAGES.get(raw[29])
    if page is None:
        page = "cp1252"
        warnings.warn(
            f"{path} gives no text encoding; Windows-1252 is assumed (set encoding=... to override).",
            stacklevel=5,
        )
    return page


@contextmanager
def _foreign_errors(path: Path) -> Iterator[None]:
    # Damaged geometries, attributes and projections make these libraries raise anything, down to
    # UnboundLocalError; whatever it is, the file is the cause.
    try:
        yield
    except SceneError:
        raise
    except Exception as error:
        raise SceneError(f"{path} cannot be read: {error}.", "The file is damaged.") from error


def _to_crs(features: Any, crs: Any, path: Path) -> Any:
    if features.crs is None or crs is None:
        warnings.warn(
            f"{path} or its scene has no CRS; coordinates are assumed to be those of the scene.",
            stacklevel=5,
        )
        return features
    with _foreign_errors(path):
        return features.to_crs(crs.to_wkt())


def _class_column(features: Any, attribute: str | None, path: Path) -> str:
    columns = [str(c) for c in features.columns if c != features.geometry.name]
    if attribute is not None:
        if attribute not in columns:
            raise SceneError(
                f"{path} has no attribute '{attribute}'.", did_you_mean(attribute, columns)
            )
        return attribute
    if len(columns) == 1:
        return columns[0]
    raise SceneError(
        f"{path} has {len(columns)} attributes: {', '.join(columns)}.",
        "Choose the one that holds the classes with attribute=NAME (--label-attribute).",
    )


def strange_codes(codes: Sequence[int]) -> list[int]:
    """Return the codes that mean unlabelled by themselves: negative ones, and 255, 65535 and the like far beyond all others.

    Args:
        codes: all that occur, in ascending order.
    """
    strange = [code for code in codes if code < 0]
    usual = [code for code in codes if code >= 0]
    most = max((code for code in usual if code not in _SENTINELS), default=0)
    # A mask of 0 and 255 has two classes.
    return [*strange, *(code for code in usual if code in _SENTINELS and 0 < 2 * most < code)]


def _classes(
    values: list[Any],
    kind: str,
    unlabelled: tuple[float, ...] | None,
    class_names: Sequence[str] | None,
    path: Path,
) -> _Classes:
    """Class of each feature: its code for whole numbers, the text itself for anything else."""
    if kind in "iuf" and all(v is None or float(v) == round(float(v)) for v in values):
        codes = [None if v is None else int(v) for v in values]
        return _by_code(codes, unlabelled, class_names, path)
    texts = [
        None if v is None else unicodedata.normalize("NFC", str(v)).replace("\xa0", " ")
        for v in values
    ]
    stripped = [text.strip() for text in texts if text is not None and text.strip()]
    if class_names is None and stripped and all(map(_NUMBER.fullmatch, stripped)):
        numbers = [int(text) if text is not None and text.strip() else None for text in texts]
        return _by_code(numbers, unlabelled, class_names, path)
    if unlabelled is None and class_names is None:
        texts = _without_no_class(texts, path)
    return _by_name(texts, class_names, path)


def _by_code(
    values: list[int | None],
    unlabelled: tuple[float, ...] | None,
    class_names: Sequence[str] | None,
    path: Path,
) -> _Classes:
    found = Counter(value for value in values if value is not None)
    out = {v for v in found if v in (unlabelled or ())}
    if unlabelled is None:
        out = set(strange_codes(sorted(found)))
    if out and unlabelled is None:
        shown = ", ".join(map(str, sorted(out)))
        warnings.warn(
            f"{path}: {sum(found[v] for v in out):,} features with {shown} are treated as unlabelled; if that is a "
            "class, set nodata=none (--label-hints).",
            stacklevel=5,
        )
    codes = sorted(set(found) - out)
    if 0 in codes and unlabelled is None:
        warnings.warn(
            f"{path}: 0 ({found[0]:,} features) is treated as a class; if it means unlabelled, set zero_class=false "
            "(--label-hints).",
            stacklevel=5,
        )
    texts = [str(code) for code in codes]
    large = bool(codes) and codes[-1] > CLASS_NUMBER_LIMIT
    if class_names is not None and large and set(texts) <= set(class_names):
        return _by_name(
            [None if v is None or v in out else str(v) for v in values], class_names, path
        )
    place = {code: number for number, code in enumerate(codes, start=1)}
    numbers = np.array([place.get(v, 0) if v is not None else 0 for v in values], dtype=np.int64)
    return _Classes(numbers, codes, texts if large and class_names is None else None)


def _without_no_class(values: list[str | None], path: Path) -> list[str | None]:
    """Leave out texts that say that there is no class; among names 0 and negative numbers do."""
    texts = [v.strip() for v in values if v is not None]
    named = any(re.search(r"[^\W\d_]", text) and not _NO_CLASS.fullmatch(text) for text in texts)
    found = Counter(
        text
        for text in texts
        if _NO_CLASS.fullmatch(text) or (named and _NO_NUMBER.fullmatch(text))
    )
    if found:
        shown = ", ".join(f"'{name}'" for name in sorted(found))
        warnings.warn(
            f"{path}: {sum(found.values()):,} features with {shown} are treated as unlabelled; if that is a class, set "
            "nodata=none (--label-hints).",
            stacklevel=5,
        )
    return [None if v is not None and v.strip() in found else v for v in values]


def _by_name(values: list[str | None], class_names: Sequence[str] | None, path: Path) -> _Classes:
    names = [None if value is None else value.strip() for value in values]
    _say_blanks([v for v in values if v is not None], path)
    order = (
        list(class_names) if class_names is not None else sorted({name for name in names if name})
    )
    strange = sorted({name for name in names if name} - set(order))
    if strange:
        raise SceneError(
            f"{path} has the class '{strange[0]}', which is not among the known classes.",
            did_you_mean(strange[0], order),
        )
    place = {name: number for number, name in enumerate(order, start=1)}
    numbers = np.array([place[name] if name else 0 for name in names], dtype=np.int64)
    return _Classes(numbers, _codes_of(order), order)


def _codes_of(names: list[str]) -> list[int]:
    """The numbers that texts such as ``211`` are, where all are; 1, 2, ... otherwise."""
    if names and all(name.isascii() and name.isdigit() and len(name) < 10 for name in names):
        codes = [int(name) for name in names]
        if len(set(codes)) == len(codes):
            return codes
    return list(range(1, len(names) + 1))


def _say_blanks(values: list[str], path: Path) -> None:
    padded = Counter(
        value.strip() for value in set(values) if value != value.strip() and value.strip()
    )
    if padded:
        warnings.warn(
            f"{path}: spaces around class names are ignored ({', '.join(sorted(padded)[:6])}).",
            stacklevel=6,
        )
    capitals = Counter(
        name.lower() for name in {value.strip() for value in values if value.strip()}
    )
    twice = sorted(name for name, count in capitals.items() if count > 1)
    if twice:
        warnings.warn(
            f"{path}: class names that differ only in case are separate classes ({', '.join(twice[:6])}).",
            stacklevel=6,
        )


def _burn(
    geometry: Any, numbers: npt.NDArray[np.int64], size: tuple[int, int], transform: Any
) -> npt.NDArray[np.int32]:
    from rasterio.features import rasterize

    shapes = ((shape, int(number)) for shape, number in zip(geometry, numbers, strict=True))
    burnt: npt.NDArray[np.int32] = rasterize(
        shapes, out_shape=size, transform=transform, fill=0, dtype="int32"
    )
    return burnt


def _check_burnt(
    values: npt.NDArray[np.int32],
    numbers: npt.NDArray[np.int64],
    classes: _Classes,
    features: Any,
    like: xr.DataArray,
    path: Path,
) -> None:
    if not values.any():
        west, south, east, north = features.total_bounds
        raise SceneError(
            f"No feature of {path} lies in {like.attrs.get('source') or 'the scene'}: they span"
            f" {west:.6g}..{east:.6g}, {south:.6g}..{north:.6g} in its CRS.",
            "Check that both cover the same area.",
        )
    lost = sorted(set(np.unique(numbers)) - set(np.unique(values)))
    if lost:
        words = [classes.names[k - 1] if classes.names else str(classes.codes[k - 1]) for k in lost]
        warnings.warn(
            f"{path}: no pixel of the scene is labelled as class {', '.join(words)}.", stacklevel=4
        )
