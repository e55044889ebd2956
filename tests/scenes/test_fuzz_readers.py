"""Damaged and hostile files of every format: a reader answers with a scene or with a message, and nothing else.

The files are mutated in a process of its own, whose memory is limited: a crash inside a library, an endless loop
and a huge allocation are failures too.
"""

import importlib
import resource
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import PIL.Image
import pytest
import rasterio
import scipy.io
import xarray as xr
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vitreous import open_labels, open_scene
from vitreous.errors import VitreousError
from vitreous.scenes import apart, zarr_store
from vitreous.scenes.cube import make_scene, read_window

EXTRA_MEMORY = 768 * 2**20  # address space beyond what the imports need; the scenes have 240 values
SECONDS = 5  # for one file of a few kilobytes
EXAMPLES = 25


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


SEEDS: dict[str, Callable[[Path], Path]] = {
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
}
# libhdf5 loops without end in some damaged files: those are read as --untrusted does.
APART = {"mat_73", "emit", "netcdf", "prisma"}

NASTY_TEXT = st.sampled_from(
    [
        "",
        "-1",
        "0",
        "1",
        "nan",
        "1e999",
        str(2**31),
        str(2**64),
        "9" * 40,
        "{",
        "}",
        "[",
        '"',
        ",",
        "=",
        "\n",
        "null",
        "ü",
        "\x00",
    ]
)
NASTY_BYTES = st.one_of(
    st.binary(min_size=1, max_size=8),
    st.sampled_from(
        [b"\xff" * 4, b"\x00" * 8, b"\x7f" + b"\xff" * 7, b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80"]
    ),
)


@st.composite
def mutated(draw: st.DrawFn, content: bytes) -> bytes:
    """Overwrite, cut, repeat or drop a few pieces; in text also whole words."""
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, min(len(content), 20_000) - 1)))
        kind = draw(st.sampled_from(["bytes", "bytes", "word", "cut", "drop", "repeat"]))
        if kind == "bytes":
            patch = draw(NASTY_BYTES)
            content = content[:at] + patch + content[at + len(patch) :]
        elif kind == "word":
            end = next(
                (
                    k
                    for k in range(at, min(len(content), at + 40))
                    if content[k : k + 1] in b" ,=]}\n"
                ),
                at,
            )
            content = content[:at] + draw(NASTY_TEXT).encode() + content[end:]
        elif kind == "cut":
            content = content[:at]
        elif kind == "drop":
            content = content[:at] + content[at + draw(st.integers(1, 64)) :]
        else:
            content = content[:at] + content[at : at + draw(st.integers(1, 64))] * 2 + content[at:]
    return content


def parts_of(path: Path) -> list[Path]:
    """All files that make up the scene, metadata first: that is where most can go wrong."""
    files = [p for p in path.parent.rglob("*") if p.is_file()]
    return sorted(files, key=lambda p: (p.suffix not in {".json", ".hdr"}, str(p)))


def open_and_read(name: str, path: Path) -> None:
    """Open and read a corner, as a scene and as labels; anything but those or our own error escapes."""
    try:
        scene = open_scene(path, untrusted=name in APART)
        window = read_window(scene, slice(0, 3), slice(0, 3))
    except VitreousError as error:
        assert error.problem
    else:
        assert window.dtype == np.float32
    if name not in APART:
        try:
            assert open_labels(path).ndim == 2
        except VitreousError as error:
            assert error.problem


def fuzz(name: str, examples: int) -> None:
    """Open mutated files of one format."""
    with tempfile.TemporaryDirectory() as folder:
        seed = SEEDS[name](Path(folder))
        open_and_read(name, seed)
        contents = {part.relative_to(folder): part.read_bytes() for part in parts_of(seed)}
        where = seed.relative_to(folder)

        @settings(
            max_examples=examples,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(data=st.data())
        def check(data: st.DataObject) -> None:
            victim = data.draw(st.sampled_from(sorted(contents, key=lambda p: len(contents[p]))))
            with tempfile.TemporaryDirectory() as fresh:
                for part, content in contents.items():
                    target = Path(fresh) / part
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(data.draw(mutated(content)) if part == victim else content)
                # A reader process has its own limit for each request.
                signal.alarm(SECONDS * (6 if name in APART else 1))
                open_and_read(name, Path(fresh) / where)
                signal.alarm(0)

        check()


def fuzzed(examples: int, timeout: float) -> str:
    """What a fuzzing process printed: one line per format that held, and what ended it early."""
    command = [sys.executable, __file__, str(examples)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    return f"{done.stdout}\n{done.stderr[-6000:]}\nexit code {done.returncode}"


@pytest.fixture(scope="module")
def held() -> str:
    return fuzzed(EXAMPLES, timeout=280)


LIMITED = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="the memory limit needs Linux"
)


@LIMITED
@pytest.mark.parametrize("name", SEEDS)
def test_damaged_files_give_a_scene_or_a_message(name: str, held: str) -> None:
    assert f"{name}: held" in held, held


@LIMITED
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_thousand_damaged_files_give_a_scene_or_a_message() -> None:
    printed = fuzzed(-(-10_000 // len(SEEDS)), timeout=3500)
    assert [name for name in SEEDS if f"{name}: held" not in printed] == [], printed


def main(examples: int) -> None:
    """Fuzz every format under a memory limit and say which held."""
    warnings.simplefilter("ignore")
    apart.SECONDS = float(SECONDS)
    for name, make in SEEDS.items():  # whatever is imported lazily comes before the limit
        with tempfile.TemporaryDirectory() as folder:
            open_and_read(name, make(Path(folder)))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + EXTRA_MEMORY, resource.RLIM_INFINITY))
    for name in SEEDS:
        fuzz(name, examples)
        print(f"{name}: held", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else EXAMPLES)
