"""Label images of any format, and polygons or points rasterised on a scene's grid."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.errors import SceneError, did_you_mean
from vitreous.scenes.cube import LabelImage, check_bytes, georeference, make_labels
from vitreous.scenes.formats import call_reader, find_reader, local_path, number_hint

GRID_TOLERANCE = 0.01  # of a pixel: grids that agree this well are the same grid
CLASS_NUMBER_LIMIT = 255  # whole numbers up to here are class numbers, beyond they are codes

_VECTOR_MAGIC = {  # by content too, because GDAL would open a virtual file under any name
    ".gpkg": b"SQLite format 3\0",
    ".shp": b"\0\0\x27\x0a",
    ".geojson": b"{",
    ".json": b"{",
}


def open_labels(
    path: str | Path,
    like: xr.DataArray | None = None,
    attribute: str | None = None,
    *,
    nodata: float | None = None,
    class_names: Sequence[str] | None = None,
    **hints: Any,
) -> xr.DataArray:
    """Read labels: an image of any known format, or polygons and points with a class attribute.

    Vector features are brought to the CRS of ``like`` and burnt where a pixel's centre lies inside (points: the
    pixel they fall in); of overlapping features the last one stays. Whole numbers from 0 to 255 in the attribute
    are class numbers as they are; any other values are sorted and numbered from 1, and become the class names.

    Args:
        path: a label image, GeoPackage, GeoJSON or Shapefile.
        like: the scene the labels belong to; needed for vectors, checked for images.
        attribute: the class attribute of vector features; needed where there are several.
        nodata: a value of an image that means unlabelled, besides 0 and what the file says.
        class_names: names of the classes from 1 on; for vectors with text attributes also their order, so that
            several files get the same numbers.
        **hints: the reader's own, e.g. ``variable`` (MATLAB), ``layer`` (GeoPackage).

    Returns:
        Labels, see :mod:`vitreous.scenes.cube`.

    Raises:
        SceneError: unreadable, no labels, labels that do not fit ``like``, or an unknown hint.
    """
    file = local_path(path)
    if isinstance(class_names, str):  # as the command line gives it
        class_names = [name.strip() for name in class_names.split(",")]
    if file.suffix.lower() in _VECTOR_MAGIC and file.is_file():
        arguments = {"like": like, "attribute": attribute, "class_names": class_names, **hints}
        labels: xr.DataArray = call_reader(_open_vector, file, arguments)
        return labels
    if attribute is not None:
        raise SceneError(
            f"{file} is an image and has no attributes.", "Leave out attribute (--label-attribute)."
        )
    reader = find_reader(file)
    if not hasattr(reader, "open_labels"):
        raise SceneError(
            f"{file} is a scene, not a label image.", "Give an image of class numbers."
        )
    image = call_reader(reader.open_labels, file, hints, extra=("nodata", "class_names"))
    if not isinstance(image, LabelImage):
        image = LabelImage(image)
    labels = _make(image, nodata, class_names, str(file))
    return labels if like is None else _fit(labels, like)


def _make(
    image: LabelImage, nodata: float | None, class_names: Sequence[str] | None, source: str
) -> xr.DataArray:
    values = image.values
    for value in (image.nodata, None if nodata is None else number_hint("nodata", nodata)):
        if value is not None:
            values = np.where(np.isnan(values) if np.isnan(value) else values == value, 0, values)
    names = class_names
    if names is None and image.class_names:
        highest = min(int(np.nan_to_num(values).max()), 65535)
        unnamed = range(len(image.class_names) + 1, highest + 1)
        names = [*image.class_names, *(f"class {k}" for k in unnamed)]
    colors = image.class_colors
    if colors is not None:
        count = len(names) if names is not None else int(np.nan_to_num(values).max())
        colors = colors[:count] if len(colors) >= count else None
    return make_labels(
        values,
        class_names=names,
        class_colors=colors,
        crs=image.crs,
        transform=image.transform,
        source=source,
    )


def _fit(labels: xr.DataArray, like: xr.DataArray) -> xr.DataArray:
    """Check that labels lie on the scene's grid, and give them its place where they have none."""
    of_labels, of_scene = labels.attrs["source"], like.attrs.get("source") or "the scene"
    size, wanted = labels.shape, (like.sizes["y"], like.sizes["x"])
    if size != wanted:
        raise SceneError(
            f"{of_labels} has {size[0]} x {size[1]} pixels (rows x columns),"
            f" but {of_scene} has {wanted[0]} x {wanted[1]}.",
            "Labels need one value per pixel of the scene.",
        )
    (crs, transform), (scene_crs, scene_transform) = georeference(labels), georeference(like)
    if crs is not None and scene_crs is not None and crs != scene_crs:
        raise SceneError(
            f"{of_labels} is in {_name(crs)}, but {of_scene} in {_name(scene_crs)}.",
            "Reproject the labels to the scene's grid.",
        )
    if (
        transform is not None
        and scene_transform is not None
        and _shift(transform, scene_transform, wanted) > GRID_TOLERANCE
    ):
        raise SceneError(
            f"{of_labels} lies on another grid than {of_scene}: their corners are"
            f" {_shift(transform, scene_transform, wanted):.3g} pixels apart.",
            "Resample the labels to the scene's grid.",
        )
    if scene_crs is not None:
        labels = labels.rio.write_crs(scene_crs)
    if scene_transform is not None:
        labels = labels.rio.write_transform(scene_transform)
    return labels


def _name(crs: Any) -> str:
    return str(crs.to_string()) if crs.to_epsg() else "a CRS without EPSG code"


def _shift(first: Any, second: Any, size: tuple[int, int]) -> float:
    """Largest distance in pixels of ``second`` between the corners of two grids."""
    corners = [(0, 0), (size[1], 0), (0, size[0]), (size[1], size[0])]
    pairs = [(~second * (first * corner), corner) for corner in corners]
    return max(max(abs(x - c), abs(y - r)) for (x, y), (c, r) in pairs)


def _open_vector(
    path: Path,
    *,
    like: xr.DataArray | None,
    attribute: str | None,
    class_names: Sequence[str] | None,
    layer: str | None = None,
) -> xr.DataArray:
    if like is None:
        raise SceneError(
            f"{path} holds features, not pixels.", "Pass like=scene to rasterise them on its grid."
        )
    crs, transform = georeference(like)
    if transform is None:
        raise SceneError(
            f"{like.attrs.get('source') or 'The scene'} has no georeference, so {path} cannot be placed on it.",
            "Use a georeferenced scene, or a label image.",
        )
    features = _to_crs(_read_features(path, layer), crs, path)
    column = _class_column(features, attribute, path)
    features = features[
        features[column].notna() & ~features.geometry.is_empty & features.geometry.notna()
    ]
    if features.empty:
        raise SceneError(f"{path} has no feature with a value of '{column}'.")
    numbers, names = _number_classes(features[column].to_numpy(), class_names, path)
    values = _burn(features.geometry, numbers, (like.sizes["y"], like.sizes["x"]), transform)
    _check_burnt(values, numbers, names, features, like, path)
    return make_labels(values, class_names=names, crs=crs, transform=transform, source=str(path))


def _read_features(path: Path, layer: str | None) -> Any:
    with path.open("rb") as file:
        head = file.read(256).removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n")
    if not head.startswith(_VECTOR_MAGIC[path.suffix.lower()]):
        raise SceneError(
            f"{path} is no {path.suffix[1:]} file.", "It is damaged or of another kind."
        )
    if path.suffix.lower() == ".shp":  # GDAL takes the features that a cut file lost as empty
        words = int.from_bytes(head[24:28], "big")
        check_bytes(2 * words, path.stat().st_size, str(path), f"{words} words of 2 bytes")
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
            raise SceneError(f"{path} has no layer '{layer}'.", did_you_mean(layer, layers))
        if layer is None and len(layers) != 1:
            raise SceneError(
                f"{path} has {len(layers)} layers with geometry: {', '.join(layers)}.",
                "Pass layer=NAME.",
            )
        return geopandas.read_file(path, layer=layer or layers[0], engine="pyogrio")


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
            f"{path} or its scene names no CRS; coordinates are taken as those of the scene.",
            stacklevel=4,
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
        "Say which one holds the classes with attribute=NAME (--label-attribute).",
    )


def _number_classes(
    values: npt.NDArray[Any], class_names: Sequence[str] | None, path: Path
) -> tuple[npt.NDArray[np.int64], list[str] | None]:
    """Class number of each feature, and the names where the values are not numbers already."""
    numeric = values.dtype.kind in "iufb"
    if numeric:
        numbers = values.astype(np.float64)
        whole = bool(np.all(numbers == np.round(numbers)))
        if whole and numbers.min() >= 0 and numbers.max() <= CLASS_NUMBER_LIMIT:
            return numbers.astype(np.int64), None if class_names is None else list(class_names)
        texts = [str(int(v)) if whole else str(v) for v in numbers]
        order = [str(int(v)) if whole else str(v) for v in np.unique(numbers)]
    else:
        texts = [str(value) for value in values]
        order = sorted(set(texts))
    names = list(class_names) if class_names is not None else order
    strange = sorted(set(texts) - set(names))
    if strange:
        raise SceneError(
            f"{path} has the class '{strange[0]}', which is not among the known classes.",
            did_you_mean(strange[0], names),
        )
    place = {name: number for number, name in enumerate(names, start=1)}
    return np.array([place[text] for text in texts]), names


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
    names: list[str] | None,
    features: Any,
    like: xr.DataArray,
    path: Path,
) -> None:
    if not values.any():
        west, south, east, north = features.total_bounds
        raise SceneError(
            f"No feature of {path} lies in {like.attrs.get('source') or 'the scene'}: they span"
            f" {west:.6g}..{east:.6g}, {south:.6g}..{north:.6g} in its CRS.",
            "Check that both show the same place.",
        )
    lost = sorted(set(np.unique(numbers)) - set(np.unique(values)) - {0})
    if lost:
        words = [names[k - 1] if names else str(k) for k in lost]
        warnings.warn(
            f"{path}: no pixel of the scene shows class {', '.join(words)}.", stacklevel=4
        )
