"""The kinds of input that are damaged on purpose: how an intact one is made, and how it is read (see ``fuzzing.py``)."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import PIL.Image
import rasterio
import scipy.io
import test_products
import test_spectra
import xarray as xr
from affine import Affine

from fuzzing import Kind
from vitreous import open_labels, open_scene
from vitreous.errors import VitreousError
from vitreous.scenes import zarr_store
from vitreous.scenes.cube import make_scene, read_window
from vitreous.scenes.resample import read_responses
from vitreous.scenes.spectra import read_spectra


def seed_scene() -> xr.DataArray:
    return make_scene(
        np.arange(240).reshape(6, 5, 8).astype("i2"),
        wavelengths=[450, 550, 650, 850, 1600, 2200],
        fwhm=[10.0] * 6,
        good_band=[True] * 5 + [False],
        unit="reflectance",
        scale=1e-4,
        nodata=-9999,
        crs="EPSG:32633",
        transform=Affine(10, 0, 600000, 0, -10, 5000000),
    )


def written_by(module: str, suffix: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / f"scene{suffix}"
        importlib.import_module(f"vitreous.scenes.{module}").write(seed_scene(), path)
        return path

    return write


def mat_5(folder: Path, *, compressed: bool = False) -> Path:
    values = {
        "wl": np.linspace(400, 900, 6),
        "cube": seed_scene().values.transpose(1, 2, 0),
        "s": {"a": "b"},
    }
    scipy.io.savemat(folder / "scene.mat", values, do_compression=compressed)
    return folder / "scene.mat"


def mat_5_compressed(folder: Path) -> Path:
    return mat_5(folder, compressed=True)


def mat_73(folder: Path) -> Path:
    path = folder / "scene.mat"
    with h5py.File(path, "w", userblock_size=512) as file:
        file["cube"] = seed_scene().values
        file["wavelengths"] = np.linspace(400, 900, 6)
    return path


def emit_file(folder: Path) -> Path:
    path = folder / "scene.nc"
    with h5py.File(path, "w") as file:
        file.create_dataset(
            "reflectance",
            data=seed_scene().values.transpose(1, 2, 0),
            chunks=(2, 4, 6),
            compression=4,
        )
        file["sensor_band_parameters/wavelengths"] = np.linspace(400, 900, 6)
        file["sensor_band_parameters/wavelengths"].attrs["units"] = "nm"
        file["location/glt_y"], file["location/glt_x"] = np.mgrid[1:6, 1:9].astype("i4")
        file.attrs["geotransform"] = [10, 0.1, 0, 50, 0, -0.1]
    return path


def npz(folder: Path) -> Path:
    np.savez_compressed(
        folder / "scene.npz", cube=seed_scene().values, wavelengths=np.linspace(400, 900, 6)
    )
    return folder / "scene.npz"


def zarr_2(folder: Path) -> Path:
    zarr_store.write(seed_scene(), folder / "scene.zarr", zarr_format=2)
    return folder / "scene.zarr"


def netcdf(folder: Path) -> Path:
    """Dimension scales, strings in the global heap, a grid mapping."""
    path = folder / "scene.nc"
    with h5py.File(path, "w") as file:
        file["cube"] = seed_scene().values
        for axis, (name, size) in enumerate((("band", 6), ("y", 5), ("x", 8))):
            file[name] = np.arange(1.0, size + 1)
            file[name].make_scale(name)
            file["cube"].dims[axis].attach_scale(file[name])
        file["crs"] = 0
        file["crs"].attrs["crs_wkt"] = seed_scene().rio.crs.to_wkt()
        file["cube"].attrs["grid_mapping"] = "crs"
    return path


def gain_and_bad_bands(folder: Path) -> Path:
    path = written_by("envi", ".hdr")(folder)
    gains = "data gain values = {1, 2, 3, 1, 2, 3}\ndata offset values = {0, 0, 0, 1, 1, 1}\n"
    path.write_text(path.read_text() + gains)
    return path


def masked_tiff(folder: Path) -> Path:
    with rasterio.open(
        folder / "scene.tif",
        "w",
        driver="GTiff",
        count=4,
        height=5,
        width=8,
        dtype="uint8",
        photometric="RGB",
        alpha="YES",
        compress="deflate",
    ) as file:
        file.write(seed_scene().values[:4].astype("u1"))
        file.scales, file.offsets = (0.1, 0.2, 0.3, 1.0), (1.0, 0.0, 0.0, 0.0)
    return folder / "scene.tif"


def pages(folder: Path) -> Path:
    values = [PIL.Image.fromarray(band.astype("u1")) for band in seed_scene().values]
    values[0].save(folder / "scene.tif", save_all=True, append_images=values[1:])
    return folder / "scene.tif"


def png(folder: Path) -> Path:
    PIL.Image.fromarray(seed_scene().values[:3].transpose(1, 2, 0).astype("u1")).save(
        folder / "scene.png"
    )
    return folder / "scene.png"


def jpeg(folder: Path) -> Path:
    PIL.Image.fromarray(seed_scene().values[:3].transpose(1, 2, 0).astype("u1")).save(
        folder / "scene.jpg"
    )
    return folder / "scene.jpg"


def prisma(folder: Path) -> Path:
    importlib.import_module("test_prisma").write(folder / "PRS_L2D_STD_20200101.he5")
    return folder / "PRS_L2D_STD_20200101.he5"


def landsat(folder: Path) -> Path:
    product = importlib.import_module("test_landsat")
    product.put_product(folder / "product", bands=(2, 3))
    text = product.as_text(product.mtl())
    (folder / "product" / f"{product.SCENE}_MTL.txt").write_text(text)
    return folder / "product"


def enmap(folder: Path) -> Path:
    product = importlib.import_module("test_dlr")
    xml = product.enmap_xml(product.CENTRES, [1e-4] * 8, [0] * 8)
    product.put(folder / "product", product.ENMAP, xml)
    return folder / "product"


def desis(folder: Path) -> Path:
    product = importlib.import_module("test_dlr")
    xml = product.desis_xml(product.CENTRES, [1e-4] * 8, [0] * 8)
    product.put(folder / "product", product.DESIS, xml)
    return folder / "product"


def sentinel_2(folder: Path) -> Path:
    product = importlib.import_module("test_sentinel2")
    for name in ("B02", "B8A"):
        product.put_band(folder / "product" / f"T33UUU_20170216T102101_{name}.jp2", 20)
    product.put_metadata(folder / "product", level="1C", offsets=[-1000] * 13)
    return folder / "product"


def odd_facts(folder: Path) -> Path:
    """Attributes and arrays of the usual names, in HDF5."""
    with h5py.File(folder / "scene.h5", "w") as file:
        cube = file.create_dataset("cube", data=seed_scene().values)
        cube.attrs.update(
            _FillValue=-9999, scale_factor=1e-4, add_offset=0.5, valid_range=[0, 9000]
        )
        cube.attrs["grid_mapping"], cube.attrs["units"] = "crs", "1"
        file["wavelength"], file["fwhm"] = np.linspace(400, 900, 6), np.full(6, 9.0)
        file["wavelength"].attrs["units"] = "nm"
        file["crs"] = 0
        file["crs"].attrs["GeoTransform"] = "600000 10 0 5000000 0 -10"
        file["gt"] = np.arange(40).reshape(5, 8) % 4
        file["gt"].attrs["flag_values"], file["gt"].attrs["flag_meanings"] = [1, 2, 3], "a b c"
    return folder / "scene.h5"


def _map(folder: Path) -> Path:
    place = {"crs": "EPSG:32633", "transform": Affine(10, 0, 600000, 0, -10, 5000000)}
    codes = (np.arange(40).reshape(1, 5, 8) % 4 * 10).astype("u1")
    importlib.import_module("vitreous.scenes.geotiff").write(
        make_scene(codes, **place), folder / "map.tif"
    )
    return folder / "map.tif"


def legend_file(name: str, text: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_text(text, encoding="utf-8")
        return _map(folder)

    return make


def vectors(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        import geopandas
        import shapely

        boxes = [
            shapely.box(600000, 4999970, 600030, 5000000),
            shapely.box(600040, 4999960, 600070, 4999990),
        ]
        frame = geopandas.GeoDataFrame(
            {"crop": ["maize", "wheat"]}, geometry=boxes, crs="EPSG:32633"
        )
        frame.to_file(folder / name)
        return folder / name

    return make


def text_file(name: str, text: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_text(text, encoding="utf-8")
        return folder / name

    return make


def spectral_library(folder: Path) -> Path:
    np.array([[0.1, 0.2, -1.23e34], [0.3, 0.4, 0.5]], "<f4").tofile(folder / "a.sli")
    lines = [
        "ENVI",
        "samples = 3",
        "lines = 2",
        "bands = 1",
        "header offset = 0",
        "file type = ENVI Spectral Library",
    ]
    lines += [
        "data type = 4",
        "interleave = bsq",
        "byte order = 0",
        "wavelength units = Micrometers",
    ]
    lines += [
        "spectra names = {soil, grass}",
        "wavelength = {0.4, 0.5, 0.6}",
        "data ignore value = -1.23e+034",
    ]
    (folder / "a.hdr").write_text("\n".join(lines) + "\n")
    return folder / "a.sli"


def band_files(folder: Path) -> Path:
    for band in range(3):
        part = seed_scene()[band : band + 1, :, :]
        importlib.import_module("vitreous.scenes.geotiff").write(part, folder / f"B0{band + 2}.tif")
    return folder / "B0[2-4].tif"


def masked(folder: Path) -> Path:
    _map(folder).rename(folder / "clouds.tif")
    return written_by("geotiff", ".tif")(folder)


def world_file(folder: Path) -> Path:
    (folder / "scene.pgw").write_text("10\n0\n0\n-10\n600000\n5000000\n")
    return png(folder)


def bands_of_variables(folder: Path) -> Path:
    with h5py.File(folder / "scene.nc", "w") as file:
        for name, size in (("y", 5), ("x", 8)):
            file[name] = np.arange(1.0, size + 1)
            file[name].make_scale(name)
        file.attrs["platform"] = "Sentinel-2A"
        for band in ("B02", "B8A", "B04"):
            file[band] = np.ones((5, 8), "i2")
            file[band].attrs["_Unsigned"] = "true"
            for axis, name in enumerate(("y", "x")):
                file[band].dims[axis].attach_scale(file[name])
    return folder / "scene.nc"


_SCENES: dict[str, Callable[[Path], Path]] = {
    "envi": written_by("envi", ".dat"),
    "envi_gains": gain_and_bad_bands,
    "geotiff": written_by("geotiff", ".tif"),
    "geotiff_masked": masked_tiff,
    "tiff_pages": pages,
    "mat_5": mat_5,
    "mat_5_compressed": mat_5_compressed,
    "mat_73": mat_73,
    "emit": emit_file,
    "netcdf": netcdf,
    "prisma": prisma,
    "npy": written_by("numpy_files", ".npy"),
    "npz": npz,
    "zarr_3": written_by("zarr_store", ".zarr"),
    "zarr_2": zarr_2,
    "png": png,
    "jpeg": jpeg,
    "landsat": landsat,
    "enmap": enmap,
    "desis": desis,
    "sentinel_2": sentinel_2,
    "odd_facts": odd_facts,
    "bands_of_variables": bands_of_variables,
}


def _read(scene: xr.DataArray) -> None:
    assert read_window(scene, slice(0, 3), slice(0, 3)).dtype == np.float32


def as_scene(path: Path, apart: bool) -> None:
    """Open and read a corner, as a scene and as labels; anything but those or our own error escapes."""
    failure = None
    try:
        _read(open_scene(path, untrusted=apart))
    except VitreousError as error:
        failure = error
    try:
        assert open_labels(path, untrusted=apart).ndim == 2
    except VitreousError as error:
        assert error.problem
    if failure is not None:
        raise failure


def with_masks(**hints: str) -> Callable[[Path, bool], None]:
    def use(path: Path, apart: bool) -> None:
        given = {key: path.parent / value for key, value in hints.items()}
        _read(open_scene(path, untrusted=apart, mask_values=10, **given))

    return use


def as_pattern(path: Path, apart: bool) -> None:
    _read(open_scene(path, untrusted=apart))


def as_labels(legend: str | None = None) -> Callable[[Path, bool], None]:
    def use(path: Path, apart: bool) -> None:
        classes = None if legend is None else path.parent / legend
        like = make_scene(
            np.zeros((1, 5, 8), "u1"),
            crs="EPSG:32633",
            transform=Affine(10, 0, 600000, 0, -10, 5000000),
        )
        hints = {} if classes is None else {"classes": classes}
        open_labels(path, like, untrusted=apart, **hints)

    return use


def as_spectra(path: Path, apart: bool) -> None:
    del apart
    read_spectra(path)


def as_responses(path: Path, apart: bool) -> None:
    del apart
    read_responses(path)


# libhdf5 loops without end in some damaged files.
_HDF5 = {"mat_73", "emit", "netcdf", "prisma", "odd_facts", "bands_of_variables"}
_LEGENDS = {
    "qml": ("map.qml", '<qgis><paletteEntry value="10" label="Wald" color="#006400"/><paletteEntry value="20" label="Wasser" color="#0064c8"/></qgis>'),
    "csv": ("map.csv", "value;name;color\n10;Wald;#006400\n20;Wasser;#0064c8ff\n"),
    "json": ("map.json", json.dumps({"10": {"name": "Wald", "color": "#006400"}, "20": "Wasser"})),
}  # fmt: skip
_SPECTRA = {"ecostress": test_spectra.ECOSTRESS, "sed": test_spectra.SED, "asd": test_spectra.ASD, "across": test_spectra.ACROSS}  # fmt: skip
_COLLECTIONS = {"crop": "maize"}
_GEOJSON = json.dumps(
    {
        "type": "FeatureCollection",
        "crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}},
        "features": [
            {"type": "Feature", "properties": _COLLECTIONS, "geometry": {"type": "Polygon", "coordinates": [[[600000, 5000000], [600030, 5000000], [600030, 4999970], [600000, 5000000]]]}},
        ],
    }
)  # fmt: skip


def _slug(product: str) -> str:
    return "_".join("".join(c if c.isalnum() else " " for c in product.lower()).split())


KINDS: dict[str, Kind] = {
    **{name: Kind(make, as_scene, name in _HDF5) for name, make in _SCENES.items()},
    **{f"product_{_slug(name)}": Kind(make, as_scene, True) for name, make in test_products.MAKERS.items()},
    **{f"legend_{end}": Kind(legend_file(*_LEGENDS[end]), as_labels(_LEGENDS[end][0])) for end in _LEGENDS},
    **{f"spectra_{name}": Kind(text_file("a.txt", text), as_spectra) for name, text in _SPECTRA.items()},
    "spectral_library": Kind(spectral_library, as_spectra),
    "responses": Kind(text_file("a.csv", "wavelength_nm,red,blue\n400,0,1\n500,0.5,0.5\n600,1,0\n700,0,0\n"), as_responses),
    "band_list": Kind(text_file("a.csv", "wavelength,fwhm\n450,20\n550,25\n650,30\n"), as_responses),
    "vector_geojson": Kind(text_file("a.geojson", _GEOJSON), as_labels()),
    "vector_gpkg": Kind(vectors("a.gpkg"), as_labels()),
    "vector_shp": Kind(vectors("a.shp"), as_labels()),
    "band_files": Kind(band_files, as_pattern),
    "mask": Kind(masked, with_masks(mask="clouds.tif")),
    "world_file": Kind(world_file, as_scene),
}  # fmt: skip
