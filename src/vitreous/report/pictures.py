"""Pictures of scenes and maps as 8-bit RGBA, thinned so that a scene of any size costs little."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.errors import VitreousError
from vitreous.inference.maps import class_numbers
from vitreous.scenes.cube import RGB_NM, read_window, rgb_bands, wavelengths_of

MAX_PIXELS = 800  # of a picture's longer side
STRIP_BYTES = 32 * 2**20
TRAIN, VALIDATION, TEST = 1, 2, 3

# Okabe & Ito's palette (jfly.uni-koeln.de/color), chosen to stay apart for every kind of colour vision.
ROLE_COLORS = {TRAIN: "#e69f00", VALIDATION: "#cc79a7", TEST: "#0072b2"}
CORRECT, WRONG = 1, 2
OUTCOME_COLORS = {CORRECT: "#56b4e9", WRONG: "#d55e00"}

Rgba = npt.NDArray[np.uint8]
Limits = tuple[float, float]  # what is drawn black, and what white


def stride_for(height: int, width: int) -> int:
    """Return the step between the pixels that are shown."""
    return max(1, -(-max(height, width) // MAX_PIXELS))


def band_limits(band: npt.NDArray[np.floating]) -> Limits:
    """Return the values of a band that are drawn black and white: its 2nd and 98th percentile."""
    finite = band[np.isfinite(band)]
    if finite.size == 0:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(finite, (2, 98)))
    return low, high if high > low else low + 1.0


def rgb_picture(cube: npt.NDArray[np.floating], limits: Sequence[Limits]) -> Rgba:
    """Picture three bands with given limits, so that several cubes can be compared.

    Args:
        cube: ``(3, height, width)``; pixels that are NaN in any band are transparent.
        limits: of each band.
    """
    picture = np.zeros((*cube.shape[1:], 4), dtype=np.uint8)
    picture[..., :3] = np.stack(
        [_stretched(band, within) for band, within in zip(cube, limits, strict=True)], axis=-1
    )
    picture[np.isfinite(cube).all(0), 3] = 255
    return picture


def scene_picture(scene: xr.DataArray) -> Rgba:
    """Picture the scene in the bands of :func:`rgb_bands`, each stretched from its 2nd to 98th percentile.

    Returns:
        ``(height, width, 4)``; invalid pixels are transparent.
    """
    height, width = scene.sizes["y"], scene.sizes["x"]
    step = stride_for(height, width)
    rows, columns = slice(0, height, step), slice(0, width, step)
    bands = rgb_bands(scene)
    read = {
        band: read_window(scene, rows, columns, np.array([band]))[0] for band in sorted(set(bands))
    }
    rgb = np.stack([read[band] for band in bands], axis=-1)
    picture = np.zeros((*rgb.shape[:2], 4), dtype=np.uint8)
    # A single band that equals nodata 0 is a legitimate dark count: a pixel is invalid where all are.
    valid = np.isfinite(rgb).any(axis=-1)
    picture[..., :3] = np.stack(
        [_stretched(rgb[..., k], band_limits(rgb[..., k])) for k in range(3)], axis=-1
    )
    picture[valid, 3] = 255
    picture[~valid] = 0
    return picture


def scene_colours(scene: xr.DataArray) -> str:
    """Say in words which bands :func:`scene_picture` shows."""
    bands = rgb_bands(scene)
    if len(set(bands)) == 1:
        return f"Band {bands[0] + 1} in grey"
    numbers = ", ".join(str(band + 1) for band in bands)
    centres = wavelengths_of(scene)
    if centres is None or not np.isfinite(centres[list(bands)]).all():
        return f"False colour: bands {numbers}"
    shown = centres[list(bands)]
    # Within 40 nm of red, green and blue the picture looks as the eye would see it.
    kind = "True" if np.abs(shown - RGB_NM).max() <= 40 else "False"
    return f"{kind} colour: {', '.join(f'{nm:.0f}' for nm in shown)} nm (bands {numbers})"


def class_picture(values: npt.NDArray[Any], colors: dict[int, str]) -> Rgba:
    """Paint class numbers ``(height, width)`` in their colours; every other value stays transparent."""
    known = {value: color for value, color in colors.items() if value > 0}
    table = np.zeros((max(known, default=0) + 2, 4), dtype=np.uint8)
    for value, color in known.items():
        table[value] = _rgba(color)
    top = len(table) - 1  # a transparent entry for whatever is no class
    indices = np.where((values >= 0) & (values < top), values, top).astype(np.int64)
    return table[indices]


def overlay_picture(values: npt.NDArray[Any], colors: dict[int, str], scene: Rgba) -> Rgba:
    """Paint ``values`` over a pale grey version of the scene's picture."""
    grey = scene[..., :3].astype(np.float32) @ np.array([0.3, 0.59, 0.11], dtype=np.float32)
    picture = np.empty_like(scene)
    picture[..., :3] = (150 + grey * (95 / 255))[..., None].astype(np.uint8)
    picture[..., 3] = scene[..., 3]
    painted = class_picture(values, colors)
    return np.where(painted[..., 3:] > 0, painted, picture)


def thin(values: npt.NDArray[Any], stride: int) -> npt.NDArray[Any]:
    """Thin an image ``(height, width)``, keeping one marked pixel of every cell that has any.

    Plain striding would lose most of the scattered training pixels of a large scene.

    Returns:
        ``(ceil(height / stride), ceil(width / stride))``: the first value of each cell that is not 0, else 0.
    """
    if stride == 1:
        return values
    return np.stack(
        [_thin_strip(values[top : top + stride], stride) for top in range(0, len(values), stride)]
    )


def read_map(path: Path, shape: tuple[int, int], codes: Sequence[int]) -> npt.NDArray[np.int64]:
    """Read the class numbers of a map, thinned as :func:`scene_picture` thins its scene.

    Args:
        path: a GeoTIFF of class codes.
        shape: ``(height, width)`` that the map must have.
        codes: the map's value for each class from 1 on.

    Raises:
        VitreousError: it cannot be read or has another size.
    """
    with _open_map(path, shape) as dataset:
        step = stride_for(*shape)
        thinned = tuple(-(-side // step) for side in shape)
        return class_numbers(_read(dataset, path, out_shape=thinned), codes)


def read_outcomes(
    path: Path, labels: npt.NDArray[Any], roles: npt.NDArray[np.uint8], codes: Sequence[int]
) -> npt.NDArray[np.uint8]:
    """Compare a class map with the truth at the test pixels, strip by strip.

    Args:
        path: as in :func:`read_map`.
        labels: ``(height, width)`` true classes.
        roles: ``(height, width)`` roles of the pixels in the split.
        codes: as in :func:`read_map`.

    Returns:
        Thinned image: 0 no test pixel, 1 correct, 2 wrong.

    Raises:
        VitreousError: as in :func:`read_map`.
    """
    height, width = labels.shape
    step = stride_for(height, width)
    rows = step * max(1, STRIP_BYTES // (width * step * 8))
    strips = []
    with _open_map(path, (height, width)) as dataset:
        for top in range(0, height, rows):
            part = slice(top, min(height, top + rows))
            mapped = class_numbers(
                _read(dataset, path, window=((part.start, part.stop), (0, width))), codes
            )
            outcome = np.where(mapped == labels[part], CORRECT, WRONG)
            outcome[roles[part] != TEST] = 0
            strips.append(thin(outcome.astype(np.uint8), step))
    return np.concatenate(strips)


def _open_map(path: Path, shape: tuple[int, int]) -> Any:
    import warnings

    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioIOError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            dataset = rasterio.open(path, driver="GTiff")
    except RasterioIOError as error:
        raise VitreousError(
            f"{path} cannot be read as a GeoTIFF.", "Predict the scene again to rewrite the map."
        ) from error
    if dataset.shape != shape:
        dataset.close()
        raise VitreousError(
            f"{path} has {dataset.shape[0]} x {dataset.shape[1]} pixels, the labels have {shape[0]} x {shape[1]}.",
            "The report needs the map of the scene that the run was trained on.",
        )
    return dataset


def _read(dataset: Any, path: Path, **options: Any) -> npt.NDArray[Any]:
    from rasterio.errors import RasterioError

    try:
        values: npt.NDArray[Any] = dataset.read(1, **options)
    except RasterioError as error:
        raise VitreousError(
            f"{path} is damaged.", "Predict the scene again to rewrite the map."
        ) from error
    return values


def _thin_strip(strip: npt.NDArray[Any], stride: int) -> npt.NDArray[Any]:
    rows, width = strip.shape
    cells_across = -(-width // stride)
    padded = np.pad(strip, ((0, 0), (0, cells_across * stride - width)))
    cells = padded.reshape(rows, cells_across, stride).transpose(1, 0, 2).reshape(cells_across, -1)
    return cells[np.arange(cells_across), (cells != 0).argmax(axis=1)]


def _stretched(band: npt.NDArray[np.floating], limits: Limits) -> npt.NDArray[np.uint8]:
    low, high = limits
    share = np.clip((np.nan_to_num(band, nan=low) - low) / (high - low), 0, 1)
    return (255 * share).round().astype(np.uint8)


def _rgba(color: str) -> tuple[int, int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16), 255
