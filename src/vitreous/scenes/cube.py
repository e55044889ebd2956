"""The labelled cube that every reader returns and every other room takes.

A scene is an ``xarray.DataArray`` with

- dims ``(band, y, x)``,
- coordinates along ``band``: ``wavelength`` and ``fwhm`` in nanometres and ``good_band`` (bool), where known,
- where its place is known: coordinates ``x`` and ``y`` of the pixel centres, the CRS (``scene.rio.crs``), and from both its
  transform (:func:`georeference`), also after indexing (see :mod:`vitreous.scenes.places`),
- attributes ``unit`` (``dn``, ``radiance`` or ``reflectance``), ``scale`` (physical value = stored value x scale),
  ``nodata`` (a stored value, or None), ``source`` (where it came from).

Values are lazy: nothing is read before a window is asked for. Labels are ``(y, x)`` integers, 0 = unlabelled,
with the attributes ``class_names``, ``class_colors`` (``#rrggbb``) and ``class_codes`` (the file's own numbers, which
maps keep), one entry per class from 1 on.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from vitreous.errors import SceneError
from vitreous.scenes.places import georeference as georeference
from vitreous.scenes.places import with_place

Unit: TypeAlias = Literal["dn", "radiance", "reflectance"]
Padding: TypeAlias = Literal["reflect", "zero"]
RGB_NM = (650, 550, 480)  # blue of Sentinel-2 and Landsat, not their coastal band at 443 nm
UNITS: tuple[Unit, ...] = ("dn", "radiance", "reflectance")
Window: TypeAlias = tuple[
    slice, slice, slice
]  # band, y, x: slices with explicit bounds and positive steps
ReadWindow: TypeAlias = Callable[[Window], npt.NDArray[Any]]

# No real scene comes near these; a header that claims more is broken or hostile.
MAX_BANDS = 100_000
MAX_SIDE = 10_000_000
MOST_NM = 1e6  # a millimetre
HUGE = 1e30  # no measurement is as large; such numbers mark missing values


class BandCountError(SceneError):
    """A list with one value per band that has another length.

    Args:
        source: the file's name.
        bands: how many it has.
        name: of the list.
        values: how many it has.
    """

    def __init__(self, source: str, bands: int, name: str, values: int) -> None:
        self.source, self.bands = source, bands
        super().__init__(
            f"{source} has {bands} bands but {values} values of {name}.",
            "Give one value per band, or omit the list.",
        )


class LazyCube(BackendArray):
    """An array that reads windows when they are asked for.

    Args:
        shape: ``(bands, height, width)``.
        dtype: of the stored values.
        read: called with three slices (band, y, x) that have explicit bounds and positive steps; returns
            the window as an array of that shape.
    """

    def __init__(self, shape: tuple[int, ...], dtype: npt.DTypeLike, read: ReadWindow) -> None:
        self.shape = tuple(int(n) for n in shape)
        self.dtype = np.dtype(dtype)
        self._read = read

    def read(self, window: Window) -> npt.NDArray[Any]:
        """Read ``window``: three slices (band, y, x) with explicit bounds and positive steps."""
        return self._read(window)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> npt.NDArray[Any]:
        """Read ``key``; fancy indices become the enclosing slices plus a selection in memory."""
        result: npt.NDArray[Any] = indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.BASIC, self._basic
        )
        return result

    def _basic(self, key: tuple[int | slice, ...]) -> npt.NDArray[Any]:
        slices, squeeze, flip = [], [], []
        for axis, (item, size) in enumerate(zip(key, self.shape, strict=True)):
            if isinstance(item, slice):
                start, stop, step = item.indices(size)
                if step < 0:  # readers only know forward steps
                    count = len(range(start, stop, step))
                    last = start + (count - 1) * step
                    start, stop, step = last, start + 1, -step
                    flip.append(axis)
                slices.append(slice(start, max(start, stop), step))
            else:
                index = int(item) % size
                slices.append(slice(index, index + 1, 1))
                squeeze.append(axis)
        window = self.read((slices[0], slices[1], slices[2]))
        if flip:
            window = np.flip(window, tuple(flip))
        return np.squeeze(window, tuple(squeeze)) if squeeze else window


def make_scene(
    data: npt.NDArray[Any] | LazyCube,
    *,
    wavelengths: Sequence[float] | npt.NDArray[Any] | None = None,
    fwhm: Sequence[float] | npt.NDArray[Any] | None = None,
    good_band: Sequence[bool] | npt.NDArray[Any] | None = None,
    unit: str = "dn",
    scale: float = 1.0,
    nodata: float | None = None,
    crs: Any = None,
    transform: Any = None,
    source: str = "",
    band_names: Sequence[str] | None = None,
) -> xr.DataArray:
    """Assemble a scene from its values and what is known about them.

    Args:
        data: ``(bands, height, width)``: an array (a memmap stays one) or a :class:`LazyCube`.
        wavelengths: band centres in nm; 0 for a band that is not used.
        fwhm: band widths in nm.
        good_band: False where a band should not be used (water vapour, detector overlap).
        unit: ``dn``, ``radiance`` or ``reflectance``.
        scale: physical value = stored value x scale.
        nodata: the stored value that means "no measurement".
        crs: anything rasterio understands as a CRS.
        transform: an affine transform (pixel corner to CRS).
        source: the file's name, for messages and reports.
        band_names: names such as ``B8A``, kept as a coordinate.

    Raises:
        SceneError: the pieces contradict each other.
    """
    shape = check_shape(data.shape, source)
    if unit not in UNITS:
        raise SceneError(
            f"{source or 'The scene'} has the unknown unit '{unit}'.", f"Use one of {UNITS}."
        )
    if not np.isfinite(scale) or scale <= 0:
        raise SceneError(
            f"{source or 'The scene'} has the scale {scale}.", "A scale must be positive."
        )
    values = indexing.LazilyIndexedArray(data) if isinstance(data, LazyCube) else data
    scene = xr.DataArray(xr.Variable(("band", "y", "x"), values), name="scene")
    for name, per_band, dtype in (
        ("wavelength", wavelengths, np.float64),
        ("fwhm", fwhm, np.float64),
        ("good_band", good_band, np.bool_),
        ("band_name", band_names, np.str_),
    ):
        if per_band is None:
            continue
        column = np.asarray(per_band, dtype=dtype)
        if column.shape != (shape[0],):
            raise BandCountError(source or "The scene", shape[0], name, column.size)
        scene = scene.assign_coords({name: ("band", column)})
    if "wavelength" in scene.coords:
        scene = _check_wavelengths(scene, source or "The scene")
    scene = with_place(scene, crs, transform, source or "The scene")
    scene.attrs = {"unit": unit, "scale": float(scale), "nodata": nodata, "source": source}
    return scene


def settle(known: Mapping[str, Any], **readings: Callable[[], Any]) -> dict[str, Any]:
    """Return facts of a file, each from the user where he gives it, and read from the file otherwise.

    What the user says is never read from the file, so a faulty value there is no obstacle.

    Args:
        known: arguments of :func:`make_scene` that the user gives.
        **readings: how to read each from the file.
    """
    return {name: known[name] if name in known else read() for name, read in readings.items()}


def like_scene(
    scene: xr.DataArray,
    data: npt.NDArray[np.float32] | LazyCube,
    bands: npt.NDArray[np.int64],
    finer: float = 1.0,
) -> xr.DataArray:
    """Return physical values that were made of some bands of a scene, as a scene in its place.

    Args:
        scene: what they were made of.
        data: ``(bands, height, width)`` physical values, NaN where invalid.
        bands: which bands of ``scene`` they are.
        finer: how many times smaller the pixels are.
    """
    crs, transform = georeference(scene)
    if transform is not None:
        transform = transform * transform.scale(1 / finer)
    facts: dict[str, Any] = {
        name: scene[coordinate].values[bands]
        for name, coordinate in (
            ("wavelengths", "wavelength"),
            ("fwhm", "fwhm"),
            ("band_names", "band_name"),
        )
        if coordinate in scene.coords
    }
    return make_scene(
        data,
        unit=str(scene.attrs.get("unit", "dn")),
        nodata=float("nan"),
        crs=crs,
        transform=transform,
        source=str(scene.attrs.get("source") or ""),
        **facts,
    )


class LabelImage(NamedTuple):
    """A label image as a file holds it, before :func:`vitreous.scenes.open_labels` makes labels of it.

    Attributes:
        values: ``(rows, columns)``.
        nodata: the values that mark unlabelled pixels, where the file names any.
        class_names: by value, where the file names them.
        class_colors: ``#rrggbb`` by value, where the file has them.
        crs: the coordinate system, where known.
        transform: pixel corner to CRS, where known.
        valid: ``(rows, columns)``, False where a mask of the file hides a pixel.
    """

    values: npt.NDArray[Any]
    nodata: tuple[float, ...] = ()
    class_names: Mapping[int, str] | None = None
    class_colors: Mapping[int, str] | None = None
    crs: Any = None
    transform: Any = None
    valid: npt.NDArray[np.bool_] | None = None


def make_labels(
    values: npt.NDArray[Any],
    *,
    class_names: Sequence[str] | None = None,
    class_colors: Sequence[str] | None = None,
    class_codes: Sequence[int] | None = None,
    crs: Any = None,
    transform: Any = None,
    source: str = "",
) -> xr.DataArray:
    """Assemble a label image ``(y, x)``, 0 = unlabelled, classes from 1 on.

    Args:
        values: ``(height, width)`` whole numbers, none negative, at most 65535.
        class_names: one name per class from 1 on; numbered names when None.
        class_colors: one ``#rrggbb`` per class from 1 on; a palette when None.
        class_codes: the file's own number of each class, which maps keep; 1, 2, ... when None.
        crs: as in :func:`make_scene`.
        transform: as in :func:`make_scene`.
        source: the file's name, for messages and reports.

    Raises:
        SceneError: the values are no class numbers, or names and classes disagree.
    """
    where = source or "The label image"
    values = np.asarray(values)
    if values.ndim != 2 or 0 in values.shape:
        raise SceneError(
            f"{where} has the shape {values.shape}.", "Labels must be one image (rows, columns)."
        )
    if values.dtype.kind == "f":
        values = np.where(np.isfinite(values), values, 0)
        if np.any(values != np.round(values)):
            raise SceneError(
                f"{where} holds non-integer values.",
                "Class labels must be integers; 0 means unlabelled.",
            )
    if values.dtype.kind not in "fiub":
        raise SceneError(f"{where} holds {values.dtype} values.", "Class labels must be integers.")
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise SceneError(
            f"{where} holds values from {low} to {high}.",
            "Class labels range from 0 (unlabelled) to 65535.",
        )
    names = (
        list(class_names) if class_names is not None else [f"class {k}" for k in range(1, high + 1)]
    )
    if high > len(names):
        raise SceneError(
            f"{where} uses class {high} but names only {len(names)} classes.", "Name them all."
        )
    if class_colors is None:
        from vitreous.scenes.legends import colors_of_names

        class_colors = colors_of_names(names, class_palette(len(names)))
    colors = list(class_colors)
    if len(colors) != len(names):
        raise SceneError(f"{where} has {len(names)} class names but {len(colors)} colours.")
    labels = xr.DataArray(values.astype(np.int32), dims=("y", "x"), name="labels")
    labels = with_place(labels, crs, transform, where)
    codes = [int(k) for k in class_codes] if class_codes is not None else range(1, len(names) + 1)
    if len(set(codes)) != len(names):
        raise SceneError(f"{where} has {len(names)} class names but the codes {list(codes)}.")
    labels.attrs = {
        "class_names": names,
        "class_colors": colors,
        "class_codes": list(codes),
        "source": source,
    }
    return labels


def class_codes(labels: xr.DataArray) -> list[int]:
    """Return the label file's own numbers of the classes from 1 on."""
    names = labels.attrs["class_names"]
    return list(labels.attrs.get("class_codes") or range(1, len(names) + 1))


def unlabelled_code(codes: Sequence[int]) -> int:
    """Return the number that means "no class" beside ``codes``: 0, or one that is no class.

    Where 0 is a class it is the greatest value of the smallest type that has room for it.
    """
    if 0 not in codes:
        return 0
    if min(codes) < 0:
        return int(np.iinfo(np.int32).min)
    lowest = int(np.iinfo(np.int32).min)
    return next((most for most in (255, 65535, 2**31 - 1) if max(codes) < most), lowest)


def code_table(codes: Sequence[int]) -> npt.NDArray[Any]:
    """Return the codes by class number, "no class" first, in the smallest of uint8, uint16 and int32.

    Raises:
        SceneError: a code that none of them holds.
    """
    every = [unlabelled_code(codes), *codes]
    for kind in (np.uint8, np.uint16, np.int32):
        limits = np.iinfo(kind)
        if limits.min <= min(every) and max(every) <= limits.max:
            return np.array(every, dtype=kind)
    raise SceneError(
        f"Class codes from {min(codes)} to {max(codes)} do not fit into a map.",
        "Use smaller numbers.",
    )


def class_palette(count: int) -> list[str]:
    """Return ``count`` clearly different ``#rrggbb`` colours (golden-angle hues, alternating lightness)."""
    import colorsys

    colors = []
    for k in range(count):
        red, green, blue = colorsys.hls_to_rgb(
            (k * 0.618034) % 1.0, (0.45, 0.62, 0.33)[k % 3], 0.65
        )
        colors.append(f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}")
    return colors


def marked_good(scene: xr.DataArray) -> npt.NDArray[np.bool_]:
    """Return which bands may be used by what the file says (all, where it says nothing)."""
    if "good_band" in scene.coords:
        return np.asarray(scene["good_band"].values, dtype=bool)
    return np.ones(scene.sizes["band"], dtype=bool)


def good_bands(scene: xr.DataArray) -> npt.NDArray[np.int64]:
    """Return the indices of the bands that may be used (all, where nothing is said).

    Raises:
        SceneError: all are marked as bad.
    """
    good = np.flatnonzero(marked_good(scene))
    if good.size == 0:
        raise SceneError(
            f"{scene.attrs.get('source') or 'The scene'} marks all of its {scene.sizes['band']} bands as bad.",
            "Correct its list of bad bands (bbl, good_wavelengths), or name bands to use them all the same: bands=1-"
            f"{scene.sizes['band']} (--hints).",
        )
    return good


def wavelengths_of(scene: xr.DataArray) -> npt.NDArray[np.float64] | None:
    """Return the band centres in nm, or None where they are unknown."""
    if "wavelength" not in scene.coords:
        return None
    return np.asarray(scene["wavelength"].values, dtype=np.float64)


def read_window(
    scene: xr.DataArray,
    rows: slice,
    columns: slice,
    bands: npt.NDArray[np.int64] | None = None,
) -> npt.NDArray[np.float32]:
    """Read one window in physical units, NaN where a pixel has no valid measurement.

    A pixel is invalid when a used band is not finite or beyond all measurements (:data:`HUGE`), when every used band
    equals nodata, or when any does and nodata is not 0 (a single 0 is a legitimate dark count).

    Args:
        scene: the scene.
        rows: rows within the scene.
        columns: columns within the scene.
        bands: which bands to read, in this order; the good ones when None.

    Returns:
        ``(bands, rows, columns)`` float32, stored value x scale; all bands of an invalid pixel are NaN.
    """
    index = good_bands(scene) if bands is None else bands
    first, last = int(index.min()), int(index.max()) + 1
    # Not the scene itself: cutting its coordinates takes longer than reading a small window.
    stored = np.asarray(scene.variable[first:last, rows, columns].values)[index - first]
    with np.errstate(over="ignore"):  # of float64, what float32 cannot hold becomes infinite
        cube = stored.astype(np.float32)
    # The largest numbers of a type mark missing values, whether the file says so or not; NaN fails too.
    invalid = ~(np.abs(cube) < HUGE).all(axis=0)
    nodata = scene.attrs.get("nodata")
    if nodata is not None and np.isfinite(nodata):
        # In float32, whole numbers of 32 bits are no longer apart from their neighbours.
        exact = stored.dtype.kind in "iu" and stored.dtype.itemsize >= 4
        equal = is_nodata(stored if exact else cube, nodata)
        invalid |= equal.all(axis=0) if nodata == 0 else equal.any(axis=0)
    cube *= np.float32(scene.attrs.get("scale", 1.0))
    cube[:, invalid] = np.nan
    return cube


def is_nodata(values: npt.NDArray[Any], nodata: float) -> npt.NDArray[np.bool_]:
    """Return where stored values are the one that means "no measurement".

    Texts round the largest numbers of a type (``-3.40282e+38``), so of a nodata value beyond all measurements the
    first five digits count.
    """
    if values.dtype.kind not in "iuf" or not np.isfinite(nodata):
        return np.isnan(values) if values.dtype.kind == "f" else np.zeros(values.shape, dtype=bool)
    if abs(nodata) >= HUGE:
        beyond: npt.NDArray[np.bool_] = values * np.sign(nodata) >= abs(nodata) * (1 - 1e-5)
        return beyond
    equal: npt.NDArray[np.bool_] = (
        values == values.dtype.type(nodata) if (values.dtype.kind == "f") else values == nodata
    )
    return equal


def read_with_context(
    scene: xr.DataArray,
    rows: slice,
    columns: slice,
    bands: npt.NDArray[np.int64],
    margin: int,
    padding: Padding = "reflect",
) -> npt.NDArray[np.float32]:
    """Read a window and ``margin`` pixels around it.

    Beyond the scene's edge ``reflect`` continues as ``numpy.pad(mode="reflect")`` of the whole scene would, also
    where the scene is smaller than the margin; ``zero`` gives NaN, which preprocessing turns into the mean.

    Args:
        scene: the scene.
        rows: rows within the scene.
        columns: columns within the scene.
        bands: which bands to read, in this order.
        margin: context in pixels.
        padding: ``reflect`` or ``zero``.

    Returns:
        ``(bands, rows + 2 margin, columns + 2 margin)`` as :func:`read_window` gives them.
    """
    height, width = scene.sizes["y"], scene.sizes["x"]
    down = np.arange(rows.start - margin, rows.stop + margin)
    across = np.arange(columns.start - margin, columns.stop + margin)
    inner_down, inner_across = _mirror(down, height), _mirror(across, width)
    top, left = int(inner_down.min()), int(inner_across.min())
    values = read_window(
        scene,
        slice(top, int(inner_down.max()) + 1),
        slice(left, int(inner_across.max()) + 1),
        bands,
    )
    if values.shape[1] != down.size or (inner_down != down).any():
        values = values[:, inner_down - top]
    if values.shape[2] != across.size or (inner_across != across).any():
        values = values[:, :, inner_across - left]
    if padding == "zero":
        values[:, (down < 0) | (down >= height)] = np.nan
        values[:, :, (across < 0) | (across >= width)] = np.nan
    # Fancy indexing leaves odd strides, in which sums differ in the last bit from those over a copy.
    return np.ascontiguousarray(values)


def _mirror(positions: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64]:
    if size == 1:
        return np.zeros_like(positions)
    period = 2 * (size - 1)
    phase = positions % period
    return np.minimum(phase, period - phase)


def rgb_bands(scene: xr.DataArray) -> tuple[int, int, int]:
    """Return the bands for a picture: nearest to :data:`RGB_NM` where the scene has visible bands.

    Without wavelengths the names red, green and blue count. Scenes without visible light get a false colour of three evenly spread good bands; a single band is grey.
    """
    usable = good_bands(scene)
    centres = wavelengths_of(scene)
    if centres is not None and ((centres > 400) & (centres < 700)).sum() >= 3:
        red, green, blue = (int(usable[np.argmin(np.abs(centres[usable] - nm))]) for nm in RGB_NM)
        return red, green, blue
    names = (
        [str(name).lower() for name in scene["band_name"].values]
        if "band_name" in scene.coords
        else []
    )
    if centres is None and all(name in names for name in ("red", "green", "blue")):
        return names.index("red"), names.index("green"), names.index("blue")
    spread = usable[np.linspace(len(usable) - 1, 0, 5).round().astype(int)]
    return int(spread[1]), int(spread[2]), int(spread[3])


def check_shape(shape: Sequence[int], source: str = "") -> tuple[int, int, int]:
    """Return ``(bands, height, width)`` as plain ints, or say what is impossible about them.

    Raises:
        SceneError: not three dimensions, or sizes that no scene has.
    """
    where = source or "The scene"
    if len(shape) != 3:
        raise SceneError(
            f"{where} has the shape {tuple(shape)}.", "A scene has bands, rows and columns."
        )
    bands, height, width = (int(n) for n in shape)
    if min(bands, height, width) < 1:
        raise SceneError(f"{where} is empty: {bands} bands of {height} x {width} pixels.")
    if bands > MAX_BANDS or max(height, width) > MAX_SIDE:
        raise SceneError(
            f"{where} claims {bands} bands of {height} x {width} pixels, more than any real scene has.",
            "Its header is probably damaged.",
        )
    return bands, height, width


def check_bytes(expected: int, actual: int, source: str, arithmetic: str) -> None:
    """Refuse a file that is shorter than its header says, before anything is allocated.

    Args:
        expected: bytes that the header asks for (Python ints: no overflow).
        actual: bytes that the file has.
        source: the file's name.
        arithmetic: how ``expected`` came about, for the message.

    Raises:
        SceneError: the file is too short.
    """
    if actual < expected:
        raise SceneError(
            f"{source} has {actual} bytes, but its header needs {expected} ({arithmetic}).",
            "The file is truncated or the header describes another file.",
        )


def _check_wavelengths(scene: xr.DataArray, where: str) -> xr.DataArray:
    """Refuse impossible wavelengths; bands with the wavelength 0 are not used, and marked so."""
    centres = np.asarray(scene["wavelength"].values, dtype=np.float64)
    finite = centres[np.isfinite(centres) & (centres != 0)]
    if finite.size == 0 or finite.min() <= 0 or finite.max() > MOST_NM:
        raise SceneError(
            f"{where} has impossible wavelengths.",
            "They must be positive numbers in nm; set wavelengths=... to override.",
        )
    unused = centres == 0
    if not unused.any():
        return scene
    good = marked_good(scene)
    newly = np.flatnonzero(unused & good) + 1
    if newly.size:
        warnings.warn(
            f"{where} gives the wavelength 0 for bands {', '.join(map(str, newly[:12]))}: treated as unused.",
            stacklevel=3,
        )
    return scene.assign_coords(
        wavelength=("band", np.where(unused, np.nan, centres)),
        good_band=("band", good & ~unused),
    )
