"""Files that are damaged or made to harm: each kind is answered in words, without a crash, hang or traceback."""

import json
import struct
import subprocess
import sys
import time
import warnings
import zipfile

import h5py
import numpy as np
import pytest
import test_pace
from affine import Affine

import vitreous
from vitreous.errors import SceneError
from vitreous.scenes import zarr_store
from vitreous.scenes.cube import georeference, make_scene, read_window

CUBE = np.arange(240, dtype=np.int16).reshape(5, 8, 6)


def netcdf(path):
    """A cube with dimension scales, as netCDF-4 has them."""
    with h5py.File(path, "w") as file:
        file["cube"] = CUBE
        for axis, name in enumerate(("y", "x", "wavelength")):
            scale = (
                np.linspace(400, 900, 6) if name == "wavelength" else np.arange(9.0)[: 5 + 3 * axis]
            )
            file[name] = scale
            file[name].make_scale(name)
            file["cube"].dims[axis].attach_scale(file[name])
        file["wavelength"].attrs["units"] = "nm"
    return path


def test_dimension_names_are_those_of_the_scales(tmp_path):
    scene = vitreous.open_scene(netcdf(tmp_path / "scene.nc"))
    assert scene.shape == (6, 5, 8)
    assert scene["wavelength"].values[-1] == 900


def a_list(file, entries, dtype):
    values = np.empty(len(entries), dtype=object)
    for k, entry in enumerate(entries):
        values[k] = np.array(entry, dtype=dtype)
    return values


DIMENSION_LISTS = {
    "a number": lambda f: (0, None),
    "numbers": lambda f: (np.arange(3), None),
    "a word": lambda f: ("abc", None),
    "too short": lambda f: (a_list(f, [[f["y"].ref]], object), h5py.vlen_dtype(h5py.ref_dtype)),
    "lists of numbers": lambda f: (a_list(f, [[1], [2], [3]], "i4"), h5py.vlen_dtype(np.int32)),
    "plain references": lambda f: (np.array([f["y"].ref] * 3, dtype=h5py.ref_dtype), None),
    "empty references": lambda f: (
        a_list(f, [[h5py.Reference()]] * 3, h5py.ref_dtype),
        h5py.vlen_dtype(h5py.ref_dtype),
    ),
}


OPEN_ALL = """
import sys
from vitreous.scenes import open_scene
for path in sys.argv[1:]:
    print(open_scene(path).shape, flush=True)
"""


def test_dimension_attributes_of_another_kind_do_no_harm(tmp_path):
    paths = []
    for number, kind in enumerate(DIMENSION_LISTS.values()):
        for attribute in ("DIMENSION_LIST", "DIMENSION_LABELS"):
            paths.append(netcdf(tmp_path / f"{attribute}_{number}.nc"))
            with h5py.File(paths[-1], "a") as file:
                value, dtype = kind(file)
                if attribute in file["cube"].attrs:
                    del file["cube"].attrs[attribute]
                file["cube"].attrs.create(attribute, value, dtype=dtype)
    # In a process of its own, which libhdf5 used to end.
    command = [sys.executable, "-c", OPEN_ALL, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"after {done.stdout.count('(')} files: {done.stderr}"
    assert done.stdout.splitlines() == ["(6, 5, 8)"] * len(paths)


def store_of_claims(folder, shape, chunks):
    folder.mkdir()
    (folder / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    (folder / "scene").mkdir()
    grid = {"name": "regular", "configuration": {"chunk_shape": chunks}}
    array = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": "int16",
        "chunk_grid": grid,
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "attributes": {},
    }
    (folder / "scene" / "zarr.json").write_text(json.dumps(array))
    return folder


@pytest.mark.parametrize(
    ("shape", "chunks"),
    [
        ([3_000_000, 14], [3, 14]),
        ([14, 100_000, 100_000], [14, 10, 10]),
        ([10**6, 50, 6], [1, 1, 1]),
    ],
)
def test_a_store_that_claims_far_more_chunks_than_exist_is_refused_at_once(shape, chunks, tmp_path):
    store = store_of_claims(tmp_path / "scene.zarr", shape, chunks)
    for read in (vitreous.open_scene, vitreous.open_labels):
        start = time.process_time()
        with pytest.raises(SceneError, match="chunks, of which 0 exist"):
            read(store)
        assert time.process_time() - start < 5


def test_a_store_with_some_chunks_left_out_is_read(tmp_path):
    store = store_of_claims(tmp_path / "scene.zarr", [4, 240, 240], [4, 2, 2])  # 14,400 chunks
    chunk = store / "scene" / "c" / "0"
    for row in range(2):
        (chunk / str(row)).mkdir(parents=True)
        for column in range(100):
            np.full(16, 7, dtype="<i2").tofile(chunk / str(row) / str(column))
    scene = vitreous.open_scene(store, axis_order="byx")
    assert scene[0, 0, 0] == 7
    assert scene[0, 100, 0] == 0


def without_good_bands(tmp_path, kind):
    if kind == "envi":
        scene = make_scene(
            CUBE.transpose(2, 0, 1), good_band=[True] * 6, wavelengths=range(400, 1000, 100)
        )
        vitreous.write_scene(scene, tmp_path / "scene.hdr")
        header = tmp_path / "scene.hdr"
        lines = header.read_text().splitlines()
        kept = [line for line in lines if not line.startswith("bbl")]
        header.write_text("\n".join([*kept, "bbl = {0, 0, 0, 0, 0, 0}"]) + "\n")
        return header
    path = tmp_path / "scene.nc"
    with h5py.File(path, "w") as file:
        file["reflectance"] = CUBE.astype("f4")
        file["sensor_band_parameters/wavelengths"] = np.linspace(400, 900, 6)
        file["sensor_band_parameters/wavelengths"].attrs["units"] = "nm"
        file["sensor_band_parameters/good_wavelengths"] = np.zeros(6, dtype="u1")
    return path


@pytest.mark.parametrize("kind", ["envi", "emit"])
def test_a_scene_without_a_good_band_is_told_of(kind, cli, tmp_path):
    path = without_good_bands(tmp_path, kind)
    assert json.loads(cli("info", path, "--json").stdout)["bad_bands"] == [1, 2, 3, 4, 5, 6]
    words = "marks all of its 6 bands as bad"
    for verb in (
        ("info", path, "--preview", "p.png"),
        ("degrade", path, "-o", "d.tif"),
        ("resample", path, "--to", "rapideye", "-o", "r.tif"),
        ("restore", "--scene", path, "--model", "hsdt_test"),
    ):
        done = cli(*verb)
        assert done.returncode == 2, (verb, done.stderr)
        assert words in done.stderr and "bands=1-6" in done.stderr, (verb, done.stderr)
    with pytest.raises(SceneError, match=words):
        read_window(vitreous.open_scene(path), slice(0, 2), slice(0, 2))


@pytest.mark.parametrize("kind", ["envi", "emit"])
def test_bad_bands_that_the_user_names_are_used(kind, tmp_path):
    scene = vitreous.open_scene(without_good_bands(tmp_path, kind), bands="1-6")
    assert np.isfinite(read_window(scene, slice(0, 2), slice(0, 2))).all()


def test_an_archive_that_holds_a_member_twice_is_refused(tmp_path):
    np.save(tmp_path / "cube.npy", CUBE)
    np.save(tmp_path / "other.npy", CUBE[0])
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "scene.npz", "w") as archive:
        warnings.simplefilter("ignore")
        archive.write(tmp_path / "cube.npy", "cube.npy")
        archive.write(tmp_path / "other.npy", "cube.npy")
    for read in (vitreous.open_scene, vitreous.open_labels):
        with pytest.raises(SceneError, match=r"holds the member 'cube\.npy' twice"):
            read(tmp_path / "scene.npz")


@pytest.mark.parametrize("text", [b'PROJCS["Gr\xfc\xdf"]', b"\xff\xfe"])
def test_a_coordinate_system_that_is_no_text_is_told_of(text, cli, tmp_path):
    path = tmp_path / "scene.nc"
    with h5py.File(path, "w") as file:
        file["cube"] = CUBE
        file["cube"].attrs["grid_mapping"] = "crs"
        file["crs"] = 0
        file["crs"].attrs.create("crs_wkt", text, dtype=h5py.string_dtype())
    done = cli("info", path, "--hints", "axis_order=yxb")
    assert done.returncode == 2, done.stderr
    assert "coordinate system that cannot be parsed" in done.stderr


@pytest.mark.parametrize("crs", ["\udcff", 'PROJCS["Gr\udcfc"]'])
def test_a_sidecar_with_half_a_character_is_told_of(crs, tmp_path):
    np.save(tmp_path / "scene.npy", CUBE)
    (tmp_path / "scene.json").write_text(json.dumps({"format": "vitreous scene", "crs": crs}))
    with pytest.raises(SceneError, match="coordinate system that cannot be parsed"):
        vitreous.open_scene(tmp_path / "scene.npy")
    with pytest.raises(SceneError, match="coordinate system that cannot be"):
        make_scene(CUBE, crs=crs)


@pytest.mark.parametrize("text", [b'PROJCS["Gr\xfc\xdf"]', b"\xff\xfe"])
def test_an_envi_header_with_such_text_opens_with_a_warning(text, tmp_path):
    vitreous.write_scene(make_scene(CUBE.transpose(2, 0, 1)), tmp_path / "scene.hdr")
    header = tmp_path / "scene.hdr"
    header.write_bytes(header.read_bytes() + b"coordinate system string = {" + text + b"}\n")
    with pytest.warns(UserWarning, match="coordinate system string"):
        vitreous.open_scene(header)


@pytest.mark.parametrize("pixel", [(0, 0), (0, -10), (np.nan, -10), (np.inf, -10)])
def test_a_transform_without_pixel_size_is_ignored_with_a_warning(pixel):
    transform = Affine(pixel[0], 0, 600000, 0, pixel[1], 5000000)
    with pytest.warns(UserWarning, match="cannot be right"):
        scene = make_scene(CUBE, crs="EPSG:32633", transform=transform)
    assert georeference(scene)[1] is None


def test_a_zarr_chunk_that_claims_gigabytes_is_told_of(tmp_path):
    zarr_store.write(make_scene(CUBE), tmp_path / "scene.zarr", zarr_format=2)
    (chunk,) = (tmp_path / "scene.zarr" / "scene").glob("0*")
    # The head of a blosc chunk: version, flags, bytes with and without compression.
    head = struct.pack("<BBBBIII", 2, 1, 0x21, 2, 2**31 - 32, 2**18, chunk.stat().st_size)
    meta = tmp_path / "scene.zarr" / "scene" / ".zarray"
    told = json.loads(meta.read_text())
    told["compressor"] = {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1, "blocksize": 0}
    meta.write_text(json.dumps(told))
    chunk.write_bytes(head + chunk.read_bytes()[16:])
    with pytest.raises(SceneError, match=r"scene\.zarr"):
        read_window(vitreous.open_scene(tmp_path / "scene.zarr"), slice(0, 2), slice(0, 2))


def test_words_where_numbers_should_be_are_told_of(tmp_path):
    test_pace.write_level_1b(tmp_path / "PACE.nc")
    with h5py.File(tmp_path / "PACE.nc", "r+") as file:
        name = "sensor_band_parameters/blue_wavelength"
        del file[name]
        file[name] = np.array([b"nm", b"um"])
    with pytest.raises(SceneError, match="blue_wavelength does not hold numbers"):
        vitreous.open_scene(tmp_path / "PACE.nc")


def test_names_that_are_no_text_are_passed_over(tmp_path):
    path = netcdf(tmp_path / "scene.nc")
    with h5py.File(path, "r+") as file:
        file["cubf"], file["cube"].attrs["notf"] = CUBE, 3
        file["g/notf"] = 3
    content = path.read_bytes()
    path.write_bytes(content.replace(b"cubf", b"cub\xff").replace(b"notf", b"not\xff"))
    assert vitreous.open_scene(path).shape == (6, 5, 8)
