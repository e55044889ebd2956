"""Small folders of images whose classes are easily told apart."""

import numpy as np
import rasterio
from PIL import Image


def picture(path, number, *, draw, size=(12, 12)):
    """Write a PNG or JPEG whose first band tells its class."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = draw.integers(60, 120, (*size, 3), dtype=np.uint8)
    values[..., 0] = 20 + 110 * number
    Image.fromarray(values).save(path)


def folder_of_pictures(folder, parts=None, classes=("cat", "dog"), count=12, suffix=".png"):
    """Write ``<part>/<class>/<k>.png``, or without parts ``<class>/<k>.png``."""
    draw = np.random.default_rng(0)
    for part, images in (parts or {"": count}).items():
        for number, name in enumerate(classes):
            for k in range(images):
                picture(folder / part / name / f"{k}{suffix}", number, draw=draw)
    return folder


def raster(path, values, **profile):
    """Write ``(bands, height, width)`` as GeoTIFF."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bands, height, width = values.shape
    shape = {"count": bands, "height": height, "width": width, "dtype": values.dtype}
    with rasterio.open(path, "w", driver="GTiff", **shape, **profile) as file:
        file.write(values)


def folder_of_rasters(folder, bands=5, classes=("field", "water"), count=8, size=(12, 10)):
    """Write chips of 16 bits; a class is brighter in one band."""
    draw = np.random.default_rng(0)
    for number, name in enumerate(classes):
        for k in range(count):
            values = draw.integers(500, 900, (bands, *size)).astype(np.uint16)
            values[number] += 1500
            raster(folder / name / f"{k}.tif", values, crs="EPSG:32633")
    return folder
