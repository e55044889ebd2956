"""Label images of any format, and polygons or points rasterised on a scene's grid.

Only values that occur are classes. They are numbered from 1 on in the labels, and keep their own numbers as
``class_codes``, which maps are written with. What is taken as unlabelled, and what is lost, is said in one line each.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.errors import SceneError
from vitreous.scenes import vectors
from vitreous.scenes.attributes import flag_of, number_of
from vitreous.scenes.cube import (
    HUGE,
    LabelImage,
    class_codes,
    class_palette,
    georeference,
    is_nodata,
    make_labels,
)
from vitreous.scenes.formats import call_reader, find_reader, local_path
from vitreous.scenes.grids import Grid, nearest, shift
from vitreous.scenes.legends import Legend, legend, legend_beside
from vitreous.scenes.places import usable

MOST_CLASSES = 1000  # no legend is longer: an image with more values is a measurement
_OWN_HINTS = ("nodata", "zero_class", "class_names", "classes")
_CODE_LIMIT = 2**31 - 1  # maps hold no greater number
_NO_CLASS = re.compile(
    r"(un|not |non)?-?(classified|labell?ed|assigned|defined|known)|background|no ?-?_?data|"
    r"none|null|void|ignored?|outside|fill|masked|n/?a|-*",
    re.I,
)


def open_labels(
    path: str | Path,
    like: xr.DataArray | None = None,
    attribute: str | None = None,
    *,
    untrusted: bool = False,
    nodata: Any = None,
    zero_class: bool | None = None,
    class_names: Sequence[str] | Mapping[int, str] | str | None = None,
    classes: str | Path | None = None,
    **hints: Any,
) -> xr.DataArray:
    """Read labels: an image of any known format, or polygons and points with a class attribute.

    **Images.** 0 means unlabelled, unless the file's nodata value is another number or a name is given to 0: then 0 is a
    class. Negative numbers, and a 255 or 65535 far beyond all classes, are taken as unlabelled, and said. An image
    on another grid or in another CRS than ``like`` is resampled to it (nearest pixel).

    **Features** are brought to the CRS of ``like`` and burnt where a pixel's centre lies inside (points: the pixel they
    fall in); of overlapping features the last one stays. Whole numbers in the attribute are class codes, 0 too; any
    other values are sorted and numbered from 1, and become the class names. Blanks around names do not count.

    Args:
        path: a label image, GeoPackage, GeoJSON or Shapefile.
        like: the scene the labels belong to; needed for vectors.
        attribute: the class attribute of vector features; needed where there are several.
        untrusted: read the file in a process of its own under limits of memory and time (:mod:`vitreous.scenes.apart`).
        nodata: the value or values that mean unlabelled besides 0, instead of what the file says (``255``,
            ``"254,255"``), or ``"none"``: then every value is a class, 0 too.
        zero_class: whether 0 is a class, where the rule above is wrong.
        class_names: names of the classes by code, or in ascending order of their codes; for vectors with text attributes
            also their order, so that several files get the same numbers.
        classes: a known scheme (``worldcover``, ``corine``, ``nlcd``, ``dynamic_world``) or a CSV, JSON or QML file with the
            names and colours of an image's codes, see :mod:`vitreous.scenes.legends`. A file of the image's name is
            found by itself.
        **hints: the reader's own, e.g. ``variable`` (MATLAB), ``layer`` (GeoPackage).

    Returns:
        Labels, see :mod:`vitreous.scenes.cube`.

    Raises:
        SceneError: unreadable, no labels, labels that do not fit ``like``, or an unknown hint.
    """
    file = local_path(path)
    if untrusted:
        from vitreous.scenes.apart import open_labels_apart

        own = {
            "nodata": nodata,
            "zero_class": zero_class,
            "class_names": class_names,
            "classes": classes,
        }
        given_hints = {name: value for name, value in own.items() if value is not None}
        return open_labels_apart(file, like, attribute, {**given_hints, **hints})
    zero_class = flag_of("zero_class", zero_class)
    unlabelled = parse_unlabelled(nodata)
    names = _parse_names(class_names)
    if vectors.is_vector(file):
        if classes is not None:
            raise SceneError(
                f"{file} holds features, whose names are in their attributes.",
                "Set class_names instead of classes.",
            )
        if zero_class is False:
            unlabelled = (*(unlabelled or ()), 0.0)
        return _of_features(file, like, attribute, unlabelled, names, hints)
    if attribute is not None:
        raise SceneError(
            f"{file} is an image and has no attributes.", "Omit attribute (--label-attribute)."
        )
    reader = find_reader(file)
    if not hasattr(reader, "open_labels"):
        raise SceneError(
            f"{file} is a scene, not a label image.", "Give an image of class numbers."
        )
    image: LabelImage = call_reader(reader.open_labels, file, hints, extra=_OWN_HINTS)
    given = None if classes is None else legend(classes)
    found = given or (None if image.class_names else legend_beside(file))
    if given is not None:
        _say_unnamed(image, given, classes, str(file))
    if found is not None:
        image = image._replace(
            class_names={**(image.class_names or {}), **found.names},
            class_colors={**(image.class_colors or {}), **found.colors},
        )
    coded = _coded(image, unlabelled, zero_class, str(file))
    return _numbered(coded if like is None else _fit(coded, like), names)


def _say_unnamed(image: LabelImage, given: Legend, classes: Any, source: str) -> None:
    """Say which codes of an image the user's legend leaves without a name."""
    values, labelled = _whole_numbers(image.values, source)
    codes = {int(code) for code in np.unique(values[labelled])}
    unnamed = sorted(codes - given.names.keys() - set(image.nodata) - {0})
    unnamed = [code for code in unnamed if code not in vectors.strange_codes(sorted(codes))]
    if unnamed:
        warnings.warn(
            f"{classes} has no name for the codes {', '.join(map(str, unnamed[:8]))} of {source}"
            f"{' ...' if unnamed[8:] else ''}.",
            stacklevel=3,
        )


def parse_unlabelled(nodata: Any) -> tuple[float, ...] | None:
    """Return the values that mean unlabelled: None where nothing is said, () for ``none``.

    Raises:
        SceneError: something else than numbers.
    """
    if nodata is None:
        return None
    if isinstance(nodata, str):
        if nodata.strip().lower() == "none":
            return ()
        nodata = [part for part in re.split(r"[,;\s]+", nodata.strip("[] ")) if part]
    if not isinstance(nodata, Iterable):
        nodata = [nodata]
    return tuple(number_of("nodata", value) for value in nodata)


def with_occurring_classes(labels: xr.DataArray) -> xr.DataArray:
    """Return a label image whose classes are those of its pixels, numbered anew from 1 on.

    A vector file may name classes that lie outside the scene: nothing can be trained for them.
    """
    present = np.unique(labels.values)
    kept = present[present > 0] - 1
    if kept.size == len(labels.attrs["class_names"]):
        return labels
    number = np.zeros(len(labels.attrs["class_names"]) + 1, dtype=np.int32)
    number[kept + 1] = np.arange(1, kept.size + 1)
    again = labels.copy(data=number[labels.values])
    again.attrs = dict(labels.attrs)
    for key in ("class_names", "class_colors"):
        again.attrs[key] = [labels.attrs[key][k] for k in kept]
    again.attrs["class_codes"] = [class_codes(labels)[k] for k in kept]
    return again


def with_common_classes(
    first: xr.DataArray, second: xr.DataArray
) -> tuple[xr.DataArray, xr.DataArray]:
    """Return two label images with one list of classes: all that occur in either.

    Classes are the same where their codes are.

    Raises:
        SceneError: a code has different names.
    """
    tables: list[dict[int, tuple[str, str]]] = [
        dict(
            zip(
                class_codes(labels),
                zip(labels.attrs["class_names"], labels.attrs["class_colors"], strict=True),
                strict=True,
            )
        )
        for labels in (first, second)
    ]
    for code in tables[0].keys() & tables[1].keys():
        own, other = tables[0][code][0], tables[1][code][0]
        if own != other:
            raise SceneError(
                f"Training and test labels have different names for class {code}: '{own}' and '{other}'.",
                "Give both files the same classes (set their order with --label-hints class_names=...).",
            )
    # The longer list's colours win: palettes are drawn by position.
    few, many = sorted(tables, key=len)
    joint = {**few, **many}
    codes = sorted(joint)
    colors = [joint[code][1] for code in codes]
    if len(set(colors)) < len(colors):
        colors = class_palette(len(colors))
    attrs = {"class_names": [joint[c][0] for c in codes], "class_colors": colors}
    both = []
    for labels in (first, second):
        number = np.array([0, *(codes.index(code) + 1 for code in class_codes(labels))])
        again = labels.copy(data=number[labels.values].astype(np.int32))
        again.attrs = {**labels.attrs, **attrs, "class_codes": codes}
        both.append(again)
    return both[0], both[1]


@dataclass(frozen=True)
class _Coded:
    """A label image by its own numbers.

    Attributes:
        values: ``(rows, columns)`` codes.
        labelled: ``(rows, columns)``.
        grid: size and place.
        names: by code, where the file gives them.
        colors: by code, where the file gives them.
        source: the file's name.
        asked: False where the user has said which values mean unlabelled.
    """

    values: npt.NDArray[np.int64]
    labelled: npt.NDArray[np.bool_]
    grid: Grid
    names: Mapping[int, str]
    colors: Mapping[int, str]
    source: str
    asked: bool


def _coded(
    image: LabelImage, given: tuple[float, ...] | None, zero_class: bool | None, source: str
) -> _Coded:
    values, finite = _whole_numbers(image.values, source)
    labelled = finite if image.valid is None else finite & image.valid
    stated = image.nodata
    names = {code: name.strip() for code, name in (image.class_names or {}).items()}
    for value in stated if given is None else given:
        labelled = labelled & ~is_nodata(np.asarray(image.values), value)
    if zero_class is None:
        zero_class = _zero_is_class(given, stated, names)
        if given is None:
            _say_zero(values, labelled, stated, names, source, taken=zero_class)
    if not zero_class:
        labelled = labelled & (values != 0)
    if given is None:
        labelled = _without_sentinels(values, labelled, source)
    return _Coded(
        values,
        labelled,
        Grid((values.shape[0], values.shape[1]), image.crs, usable(image.transform, source)),
        names,
        image.class_colors or {},
        source,
        asked=given is None,
    )


def _whole_numbers(
    values: npt.NDArray[Any], source: str
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return the values as integers, and where they are numbers at all."""
    values = np.asarray(values)
    if values.ndim != 2 or 0 in values.shape:
        raise SceneError(
            f"{source} has the shape {values.shape}.", "Labels must be one image (rows, columns)."
        )
    if values.dtype.kind not in "fiub":
        raise SceneError(f"{source} holds {values.dtype} values.", "Class codes must be integers.")
    # Infinite and the largest numbers of a type mark missing values in floating-point files, as NaN does.
    finite = (
        np.abs(values) < HUGE if values.dtype.kind == "f" else np.ones(values.shape, dtype=bool)
    )
    known = np.where(finite, values, 0)
    if values.dtype.kind == "f" and np.any(known != np.round(known)):
        raise SceneError(
            f"{source} holds non-integer values.",
            "Class codes must be integers; 0 means unlabelled.",
        )
    return np.clip(known, -(2**62), 2**62).astype(np.int64), finite


def _zero_is_class(
    given: tuple[float, ...] | None, stated: tuple[float, ...], names: Mapping[int, str]
) -> bool:
    if given is not None:
        return not given  # "none"
    if 0 in names:
        return not stated.count(0) and not _NO_CLASS.fullmatch(names[0])
    return bool(stated) and 0 not in stated


def _say_zero(
    values: npt.NDArray[np.int64],
    labelled: npt.NDArray[np.bool_],
    stated: tuple[float, ...],
    names: Mapping[int, str],
    source: str,
    *,
    taken: bool,
) -> None:
    count = int((labelled & (values == 0)).sum())
    if taken and count:
        why = (
            f"it has the name '{names[0]}'" if 0 in names else f"the no-data value is {stated[0]:g}"
        )
        warnings.warn(
            f"{source}: 0 ({count:,} pixels) is treated as a class, because {why}; if it means unlabelled, set "
            "zero_class=false (--label-hints).",
            stacklevel=4,
        )


def _without_sentinels(
    values: npt.NDArray[np.int64], labelled: npt.NDArray[np.bool_], source: str
) -> npt.NDArray[np.bool_]:
    """Leave out negative numbers, and the greatest number of a type where it is far beyond all classes."""
    strange = vectors.strange_codes(np.unique(values[labelled]).tolist())
    if not strange:
        return labelled
    out = np.isin(values, strange) & labelled
    shown = ", ".join(map(str, strange[:4])) + (" ..." if len(strange) > 4 else "")
    zeros = int(((values == 0) & ~labelled).sum())
    also = f"; so are {zeros:,} with 0, unless zero_class=true is given" if zeros else ""
    warnings.warn(
        f"{source}: {int(out.sum()):,} pixels with {shown} are treated as unlabelled{also}; if that is a class, set "
        "nodata=none (--label-hints).",
        stacklevel=4,
    )
    return labelled & ~out


def _fit(coded: _Coded, like: xr.DataArray) -> _Coded:
    """Bring labels to the scene's grid, and give them its place where they have none."""
    own, wanted = coded.grid, Grid.of(like)
    of_scene = like.attrs.get("source") or "the scene"
    if own.agrees(wanted):
        return replace(coded, grid=wanted)
    if own.transform is None or wanted.transform is None:
        turned = own.size == wanted.size[::-1]
        raise SceneError(
            f"{coded.source} has {own.size[0]} x {own.size[1]} pixels (rows x columns),"
            f" but {of_scene} has {wanted.size[0]} x {wanted.size[1]}.",
            "Rows and columns seem to be swapped: transpose one of them."
            if turned
            else "Labels need one value per pixel of the scene, or both need a georeference.",
        )
    before = int(coded.labelled.sum())
    labelled = nearest(coded.labelled, own, wanted, False)
    if before and not labelled.any():
        raise SceneError(
            f"{coded.source} ({own}) and {of_scene} ({wanted}) do not overlap where there are labels.",
            "Check that both cover the same area.",
        )
    moved = ""
    if str(own) == str(wanted):
        moved = f", {shift(own.transform, wanted.transform, wanted.size):.3g} pixels away"
    warnings.warn(
        f"{coded.source} is on a different grid ({own}{moved}) than {of_scene} ({wanted}): resampled to it (nearest "
        "neighbour);"
        f" {before:,} labelled pixels became {int(labelled.sum()):,}.",
        stacklevel=3,
    )
    values = nearest(coded.values, own, wanted, 0)
    return replace(coded, values=values, labelled=labelled, grid=wanted)


def _numbered(coded: _Coded, given: Sequence[str] | Mapping[int, str] | None) -> xr.DataArray:
    """Number the codes that occur from 1 on."""
    codes = np.unique(coded.values[coded.labelled])
    _check_codes(codes, coded)
    numbers = np.zeros(coded.values.shape, dtype=np.int32)
    numbers[coded.labelled] = np.searchsorted(codes, coded.values[coded.labelled]) + 1
    own = [int(code) for code in codes]
    return make_labels(
        numbers,
        class_names=_names_of(own, given, coded.names, coded.source),
        class_colors=_colors_of(own, coded.colors),
        class_codes=own,
        crs=coded.grid.crs,
        transform=coded.grid.transform,
        source=coded.source,
    )


def _check_codes(codes: npt.NDArray[np.int64], coded: _Coded) -> None:
    if codes.size > MOST_CLASSES:
        raise SceneError(
            f"{coded.source} holds {codes.size:,} different values from {codes[0]} to {codes[-1]}.",
            f"This looks like measurements; a label image has at most {MOST_CLASSES} classes.",
        )
    if codes.size and (codes[-1] > _CODE_LIMIT or codes[0] < -_CODE_LIMIT):
        raise SceneError(
            f"{coded.source} holds values from {codes[0]} to {codes[-1]}.",
            f"Class codes go up to {_CODE_LIMIT}; set nodata=VALUE if one means unlabelled.",
        )
    if coded.asked and codes.size == 1 and (coded.values[~coded.labelled] == 0).any():
        warnings.warn(
            f"{coded.source} has a single class ({codes[0]}), because 0 means unlabelled; if 0 is a class too, set "
            "zero_class=true (--label-hints).",
            stacklevel=4,
        )


def _names_of(
    codes: list[int],
    given: Sequence[str] | Mapping[int, str] | None,
    named: Mapping[int, str],
    source: str,
) -> list[str]:
    """Names of the codes: the user's, or the file's, or their numbers."""
    if isinstance(given, Mapping):
        named = {**named, **{int(code): str(name) for code, name in given.items()}}
    elif given is not None:
        if len(given) == len(codes):
            return list(given)
        if codes and (max(codes) > len(given) or min(codes) < 1):
            raise SceneError(
                f"{source} has {len(codes)} classes, but {len(given)} names are given.",
                "Name them all, in ascending order of their codes.",
            )
        return [given[code - 1] for code in codes]
    return [named.get(code) or f"class {code}" for code in codes]


def _colors_of(codes: list[int], table: Mapping[int, str]) -> list[str] | None:
    """The file's colours, where it tells all classes apart."""
    colors = [table[code] for code in codes if code in table]
    usable = len(colors) == len(codes) and len(set(colors)) > min(1, len(codes) - 1)
    return colors if colors and usable else None


def _parse_names(
    given: Sequence[str] | Mapping[int, str] | str | None,
) -> list[str] | Mapping[int, str] | None:
    if isinstance(given, str):  # as the command line gives it
        return [name.strip() for name in given.split(",")]
    return given if given is None or isinstance(given, Mapping) else [str(name) for name in given]


def _of_features(
    file: Path,
    like: xr.DataArray | None,
    attribute: str | None,
    unlabelled: tuple[float, ...] | None,
    names: Sequence[str] | Mapping[int, str] | None,
    hints: dict[str, Any],
) -> xr.DataArray:
    if like is None:
        raise SceneError(
            f"{file} holds features, not pixels.", "Pass like=scene to rasterize them on its grid."
        )
    if georeference(like)[1] is None:
        raise SceneError(
            f"{like.attrs.get('source') or 'The scene'} has no georeference, so {file} cannot be placed on it.",
            "Use a georeferenced scene, or a label image.",
        )
    arguments = {"like": like, "attribute": attribute, "unlabelled": unlabelled, **hints}
    order = None if names is None or isinstance(names, Mapping) else names
    burnt: vectors.Burnt = call_reader(
        vectors.open_features,
        file,
        {**arguments, "class_names": order},
        extra=_OWN_HINTS,
    )
    own = burnt.names or _names_of(burnt.codes, names, {}, str(file))
    if isinstance(names, Mapping):
        own = _names_of(burnt.codes, names, dict(zip(burnt.codes, own, strict=True)), str(file))
    crs, transform = georeference(like)
    return make_labels(
        burnt.values,
        class_names=own,
        class_codes=burnt.codes,
        crs=crs,
        transform=transform,
        source=str(file),
    )
