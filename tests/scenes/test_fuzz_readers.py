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
import pytest
import scipy.io
import xarray as xr
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vitreous.errors import VitreousError
from vitreous.scenes.cube import make_scene, read_window

EXTRA_MEMORY = 768 * 2**20  # address space beyond what the imports need; the scenes have 240 values
SECONDS = 5  # for one file of a few kilobytes
EXAMPLES = 60


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


SEEDS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "envi": ("envi", written_by("envi", ".dat")),
    "geotiff": ("geotiff", written_by("geotiff", ".tif")),
    "mat_5": ("matlab", mat_5),
    "mat_5_compressed": ("matlab", mat_5_compressed),
    "mat_73": ("matlab", mat_73),
    "emit": ("emit", emit_file),
    "npy": ("numpy_files", written_by("numpy_files", ".npy")),
    "npz": ("numpy_files", npz),
    "zarr": ("zarr_store", written_by("zarr_store", ".zarr")),
}

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


def open_and_read(module: str, path: Path) -> None:
    """Open and read a corner; anything but a scene or our own error escapes."""
    reader = importlib.import_module(f"vitreous.scenes.{module}")
    try:
        scene = reader.open(path)
        window = read_window(scene, slice(0, 3), slice(0, 3))
    except VitreousError as error:
        assert error.problem
        return
    assert window.dtype == np.float32


def fuzz(name: str) -> None:
    """Open mutated files of one format."""
    module, make = SEEDS[name]
    with tempfile.TemporaryDirectory() as folder:
        seed = make(Path(folder))
        open_and_read(module, seed)
        contents = {part.relative_to(folder): part.read_bytes() for part in parts_of(seed)}
        where = seed.relative_to(folder)

        @settings(
            max_examples=EXAMPLES,
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
                signal.alarm(SECONDS)
                open_and_read(module, Path(fresh) / where)
                signal.alarm(0)

        check()


@pytest.fixture(scope="module")
def held() -> str:
    """What the fuzzing process printed: one line per format that held, and what ended it early."""
    command = [sys.executable, __file__]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    return f"{done.stdout}\n{done.stderr[-6000:]}\nexit code {done.returncode}"


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the memory limit needs Linux")
@pytest.mark.parametrize("name", SEEDS)
def test_damaged_files_give_a_scene_or_a_message(name: str, held: str) -> None:
    assert f"{name}: held" in held, held


def main() -> None:
    """Fuzz every format under a memory limit and say which held."""
    warnings.simplefilter("ignore")
    for module, make in SEEDS.values():  # whatever is imported lazily comes before the limit
        with tempfile.TemporaryDirectory() as folder:
            open_and_read(module, make(Path(folder)))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + EXTRA_MEMORY, resource.RLIM_INFINITY))
    for name in SEEDS:
        fuzz(name)
        print(f"{name}: held", flush=True)


if __name__ == "__main__":
    main()
