"""Files that hold every band as a variable of its own (``B02``, ``B03``, ``Rrs_443``): the images as one cube.

Which variables are bands, and in which order, follows from what the user names, from the sensor that he names, or from
band centres in attributes and names, in rising order. Where nothing says a centre, the user is asked.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vitreous.errors import SceneError, listed
from vitreous.scenes import arrays
from vitreous.scenes.arrays import ArrayFile, ArrayInfo
from vitreous.scenes.attributes import NODATA, find, is_named, key_of, number, stored
from vitreous.scenes.cube import MAX_BANDS, Window
from vitreous.scenes.sensors import facts_of_names
from vitreous.scenes.values import Converted
from vitreous.scenes.wavelengths import from_names, spectral

_CENTRES = ("radiation_wavelength", "central_wavelength", "center_wavelength", "centre_wavelength", "band_wavelength", "wavelength", "wavelength_nm")  # fmt: skip
_WIDTHS = ("radiation_wavelength_width", "fwhm", "bandwidth")
_NO_BAND = {"lat", "latitude", "lon", "longitude", "x", "y", "elevation", "altitude", "dem", "height"}  # fmt: skip
_CONVERSION = {*map(key_of, NODATA), "scale", "scalefactor", "reflectancescalefactor", "offset", "addoffset", "validmin", "validmax", "validrange"}  # fmt: skip
_SHOWN = 12


class Images(NamedTuple):
    """Images of a file as one cube ``(bands, rows, columns)``.

    Attributes:
        info: the cube; its attributes are those that all images share.
        reader: of its stored values, which are physical ones where the images are stored differently.
        facts: arguments for :func:`vitreous.scenes.cube.make_scene` that follow from the names.
    """

    info: ArrayInfo
    reader: Any
    facts: dict[str, Any]


def joined_images(file: ArrayFile, variable: str | None, known: Mapping[str, Any]) -> Images | None:
    """Return the images that are the bands of a scene; None where the file has a cube, or no two images.

    Args:
        file: the file.
        variable: what the user names: a single name asks for a cube, several, divided by commas, for these images in this order.
        known: arguments of :func:`make_scene` that the user gives.

    Raises:
        SceneError: there are images, but nothing says which are bands or in which order.
    """
    names = several_names(file, variable)
    if names is not None:
        images = [_image(file, name) for name in names]
        return _joined(file, images, _known_centres(file, images) or {})
    cubes = arrays.cubes(file)
    if variable is not None or len(cubes) == 1 or not all(map(arrays.is_image, cubes)):
        return None
    candidates = _candidates(file)
    if len(candidates) < 2:
        return None
    by_name = {info.name.rpartition("/")[2]: info for info in candidates}
    wanted = [str(name) for name in known.get("band_names", ())]
    if wanted and by_name.keys() >= set(wanted):
        return _joined(file, [by_name[name] for name in wanted], {})
    if len(known.get("wavelengths", ())) == len(candidates):
        return _joined(file, candidates, {})
    bands, facts = candidates, _known_centres(file, candidates)
    if facts is None:
        bands = [info for info in candidates if _described(info)]
        facts = _known_centres(file, bands) if len(bands) > 1 else None
    if facts is None:
        raise _question(file, candidates)
    _say_left_out(file, [info for info in candidates if info not in bands])
    order = np.argsort(facts["wavelengths"], kind="stable")
    facts = {name: np.asarray(column)[order] for name, column in facts.items()}
    return _joined(file, [bands[k] for k in order], facts)


def several_names(file: ArrayFile, variable: str | None) -> list[str] | None:
    """Return the names of several images that a hint gives, None where it gives one or none."""
    if variable is None or "," not in variable:
        return None
    if any(info.name == variable for info in file.arrays):
        return None
    return [name.strip() for name in variable.split(",") if name.strip()]


def _image(file: ArrayFile, name: str) -> ArrayInfo:
    info = arrays.find_array(file, name)
    if not arrays.is_image(info):
        raise SceneError(f"{file.source}: {info} is not an image.", "Name images of one size.")
    return info


def _candidates(file: ArrayFile) -> list[ArrayInfo]:
    """Images of the most common size that can be bands, in the order of people."""
    images = [
        info
        for info in file.arrays
        if arrays.is_image(info)
        and not is_named(info.name, _NO_BAND)
        and find(info.attrs, "flag_values", "flag_masks") is None
    ]
    sizes = [_size(info) for info in images]
    usual = max(set(sizes), key=lambda size: (sizes.count(size), size), default=None)
    chosen = [info for info, size in zip(images, sizes, strict=True) if size == usual]
    return sorted(chosen, key=lambda info: _natural(info.name))


def _natural(name: str) -> list[tuple[int, int, str]]:
    return [
        (0, int(part), "") if part.isdecimal() and len(part) < 9 else (1, 0, part.lower())
        for part in re.split(r"(\d+)", name)
    ]


def _size(info: ArrayInfo) -> tuple[int, ...]:
    return tuple(n for n in info.shape if n > 1)


def _described(info: ArrayInfo) -> bool:
    name = info.name.rpartition("/")[2]
    return _own_centre(info) is not None or re.fullmatch(r"B\d?\d|B8A", name, re.I) is not None


def _known_centres(file: ArrayFile, images: Sequence[ArrayInfo]) -> dict[str, Any] | None:
    """Wavelengths and widths from attributes or names, None where one has none."""
    own = [_own_centre(info) for info in images]
    if all(centre is not None for centre in own):
        widths = [number(find(info.attrs, *_WIDTHS)) for info in images]
        known = None if any(width is None for width in widths) else widths
        unit = find(images[0].attrs, "radiation_wavelength_unit", "wavelength_units", "wavelength_unit")  # fmt: skip
        said = unit if isinstance(unit, str) else "nm" if _named_centre(images[0]) else None
        found = spectral([c for c in own if c is not None], known, said, file.source)  # type: ignore[arg-type]
        return {"wavelengths": found.centres, **({} if found.widths is None else {"fwhm": found.widths})}  # fmt: skip
    names = [info.name.rpartition("/")[2] for info in images]
    facts = facts_of_names(names, arrays.texts(file))
    return {name: np.array(column) for name, column in facts.items()} or None


def _own_centre(info: ArrayInfo) -> float | None:
    stated = number(find(info.attrs, *_CENTRES))
    if stated is not None and np.isfinite(stated) and stated > 0:
        return stated
    return _named_centre(info)


def _named_centre(info: ArrayInfo) -> float | None:
    """The centre in nm that a name holds (``Rrs_443``, ``refl_450nm``)."""
    name = info.name.rpartition("/")[2]
    found = from_names([re.sub(r"[_-]", " ", name)])
    return None if found is None else float(found[0])


def _question(file: ArrayFile, images: Sequence[ArrayInfo]) -> SceneError:
    names = [info.name for info in images]
    first = ",".join(names[:3]) + (",..." if names[3:] else "")
    return SceneError(
        f"{file.source} holds {len(images)} images ({listed(names[:_SHOWN])}{' ...' if names[_SHOWN:] else ''}), and"
        " nothing says the wavelengths of any.",
        f"If they are bands, name them in their order: variable={first} and wavelengths=..., or the sensor: "
        "sensor=sentinel2a:B02,B03,... (--hints).",
    )


def _say_left_out(file: ArrayFile, images: Sequence[ArrayInfo]) -> None:
    names = [info.name for info in images]
    if names:
        warnings.warn(
            f"{file.source}: images without a known wavelength are left out: {listed(names[:_SHOWN])}"
            f"{' ...' if names[_SHOWN:] else ''} (name the bands with variable=A,B,...).",
            stacklevel=6,
        )


def _joined(file: ArrayFile, images: Sequence[ArrayInfo], facts: dict[str, Any]) -> Images:
    sizes = {_size(info) for info in images}
    if len(sizes) > 1 or len(images) > MAX_BANDS:
        raise SceneError(
            f"{file.source}: {', '.join(map(str, images[:4]))} do not have one size.",
            "Name images of one size with variable=...",
        )
    parts = [arrays.image_of(file, info) for info in images]
    rows, columns = parts[0].row, parts[0].column
    first = images[0]
    dims = ("band", first.dims[rows], first.dims[columns]) if first.dims else ()
    shape = (len(images), first.shape[rows], first.shape[columns])
    common = {
        name: value
        for name, value in first.attrs.items()
        if all(str(info.attrs.get(name)) == str(value) for info in images)
    }
    dtype = np.result_type(*(info.dtype for info in images))
    said = [stored(info.attrs) for info in images]
    alike = all(str(one) == str(said[0]) for one in said)
    if not alike:
        common = {name: value for name, value in common.items() if key_of(name) not in _CONVERSION}
        dtype = np.dtype(np.float32)
    info = ArrayInfo(_common_name(images), shape, dtype, dims, common)
    reader = _Stack(file, parts, dtype, convert=not alike)
    names = [image.name.rpartition("/")[2] for image in images]
    return Images(info, reader, {"band_names": names, **facts})


def _common_name(images: Sequence[ArrayInfo]) -> str:
    """The words that all names share, by which values are told to be reflectance."""
    words = [re.findall(r"[a-z]+", info.base_name) for info in images]
    return "_".join(word for word in words[0] if all(word in other for other in words)) or "bands"


class _Stack:
    """Reads windows of several images."""

    def __init__(
        self,
        file: ArrayFile,
        parts: Sequence[arrays.ImageOf],
        dtype: np.dtype[Any],
        *,
        convert: bool,
    ) -> None:
        self._file, self._parts, self._dtype, self._convert = file, parts, dtype, convert

    def __call__(self, window: Window) -> npt.NDArray[Any]:
        """Read one window, in physical values where the images are stored differently."""
        bands, rows, columns = window
        images = [self._read(part, rows, columns) for part in self._parts[bands]]
        if not images:
            count = [len(range(part.start, part.stop, part.step)) for part in (rows, columns)]
            return np.zeros((0, *count), dtype=self._dtype)
        return np.stack(images).astype(self._dtype, copy=False)

    def _read(self, part: arrays.ImageOf, rows: slice, columns: slice) -> npt.NDArray[Any]:
        values = part.read(self._file, rows, columns)
        if not self._convert:
            return values
        said = stored(part.info.attrs)
        conversion = Converted(
            lambda _: values[None],
            self._dtype,
            scales=np.array([1.0 if said.scale is None else said.scale]),
            offsets=np.array([said.offset]),
            nodata=said.nodata,
            limits=said.limits,
        )
        converted: npt.NDArray[Any] = conversion((slice(0, 1), rows, columns))[0]
        return converted
