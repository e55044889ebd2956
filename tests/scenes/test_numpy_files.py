import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st

from vitreous.errors import SceneError
from vitreous.scenes import arrays, numpy_files
from vitreous.scenes.cube import LazyCube, make_scene, read_window

ROTATED = Affine(16.9, 3.1, 579717.18, 3.1, -16.9, 3714550.7)


def full_scene(dtype: str = "int16", nodata: float | None = -9999) -> xr.DataArray:
    values = np.arange(5 * 4 * 7).reshape(5, 4, 7).astype(dtype)
    return make_scene(
        values,
        wavelengths=[450.5, 550, 650, 950, 1400],
        fwhm=[9, 9, 9.5, 10, 11],
        good_band=[True, True, True, True, False],
        unit="reflectance",
        scale=1e-4,
        nodata=nodata,
        crs="EPSG:32611",
        transform=ROTATED,
        source="scene.npy",
    )


def assert_same_scene(read: xr.DataArray, written: xr.DataArray) -> None:
    np.testing.assert_array_equal(read.values, written.values)
    assert read.dtype == written.dtype
    for name in ("wavelength", "fwhm", "good_band"):
        np.testing.assert_array_equal(read[name].values, written[name].values)
    for name in ("unit", "scale"):
        assert read.attrs[name] == written.attrs[name]
    np.testing.assert_equal(read.attrs["nodata"], written.attrs["nodata"])
    assert read.rio.crs == written.rio.crs
    assert read.rio.transform(recalc=False) == written.rio.transform(recalc=False)


@pytest.mark.parametrize(
    ("dtype", "nodata"), [("int16", -9999), ("float64", float("nan")), (">u2", None)]
)
def test_npy_round_trip_keeps_everything(tmp_path: Path, dtype: str, nodata: float | None) -> None:
    scene = full_scene(dtype, nodata)
    numpy_files.write(scene, tmp_path / "scene.npy")
    assert_same_scene(numpy_files.open(tmp_path / "scene.npy"), scene)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["scene.json", "scene.npy"]


def test_a_scene_without_anything_known_round_trips(tmp_path: Path) -> None:
    numpy_files.write(make_scene(np.ones((3, 4, 5), np.float32)), tmp_path / "bare.npy")
    scene = numpy_files.open(tmp_path / "bare.npy")
    assert scene.rio.crs is None
    assert set(scene.coords) == set()


def test_written_strips_do_not_depend_on_their_height(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = full_scene()
    numpy_files.write(scene, tmp_path / "whole.npy")
    monkeypatch.setattr(numpy_files, "_STRIP", 1)
    numpy_files.write(scene, tmp_path / "strips.npy")
    assert (tmp_path / "whole.npy").read_bytes() == (tmp_path / "strips.npy").read_bytes()


def test_a_failing_write_leaves_the_old_files(tmp_path: Path) -> None:
    path = tmp_path / "scene.npy"
    numpy_files.write(full_scene(), path)
    before = path.read_bytes()

    def fail(window: object) -> np.ndarray:
        raise SceneError("the source broke")

    with pytest.raises(SceneError, match="broke"):
        numpy_files.write(make_scene(LazyCube((3, 4, 5), "u1", fail)), path)
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["scene.json", "scene.npy"]


def test_a_file_larger_than_memory_opens_and_gives_a_window(tmp_path: Path) -> None:
    path = tmp_path / "large.npy"
    shape = (300_000, 200_000, 5)  # 279 GiB; the disk keeps only what was written
    header = header_of(shape, "|u1")
    with path.open("wb") as file:
        file.write(header)
        file.seek(len(header) + 5 * 200_000 * 299_999)
        file.write(bytes([7, 8, 9, 10, 11]))
        file.truncate(len(header) + 5 * 200_000 * 300_000)
    scene = numpy_files.open(path)
    assert scene.shape == (5, 300_000, 200_000)
    window = read_window(scene, slice(299_999, 300_000), slice(0, 2))
    assert window[:, 0].tolist() == [[7, 0], [8, 0], [9, 0], [10, 0], [11, 0]]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((145, 145, 20), (20, 145, 145)),
        ((20, 145, 145), (20, 145, 145)),
        ((145, 20, 145), (20, 145, 145)),
        ((61, 34, 10), (10, 61, 34)),
        ((51, 56, 22), (22, 51, 56)),
        ((1216, 66, 1208), (66, 1216, 1208)),
        ((426, 655, 640), (426, 655, 640)),
        ((610, 340, 103), (103, 610, 340)),
        ((4, 600, 601), (4, 600, 601)),
    ],
)
def test_the_band_axis_by_shape(tmp_path: Path, shape: tuple, expected: tuple) -> None:
    np.save(tmp_path / "a.npy", np.zeros(shape, "u1"))
    assert numpy_files.open(tmp_path / "a.npy").shape == expected


def test_an_ambiguous_shape_asks_and_the_answer_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(
        path, np.zeros((48, 105, 210), "u1")
    )  # bands-first files of this kind exist, and so do low scenes
    with pytest.raises(SceneError, match="axis_order=byx"):
        numpy_files.open(path)
    assert numpy_files.open(path, axis_order="byx").shape == (48, 105, 210)
    assert numpy_files.open(path, axis_order="y, x, band").shape == (210, 48, 105)
    with pytest.raises(SceneError, match="is invalid"):
        numpy_files.open(path, axis_order="xyz")


@settings(max_examples=30, deadline=None, derandomize=True)
@given(order=st.permutations("byx"), shape=st.tuples(*[st.integers(1, 6)] * 3))
def test_every_axis_order_gives_the_same_scene(
    order: list[str], shape: tuple[int, int, int]
) -> None:
    import tempfile

    cube = np.random.default_rng(0).integers(0, 99, shape)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.npy"
        np.save(path, cube.transpose(["byx".index(letter) for letter in order]))
        np.testing.assert_array_equal(
            numpy_files.open(path, axis_order="".join(order)).values, cube
        )


def test_npz_finds_the_cube_its_wavelengths_and_its_labels(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    cube = np.random.default_rng(0).integers(0, 999, (3, 8, 9)).astype("u2")
    labels = np.arange(72).reshape(8, 9)
    np.savez_compressed(
        path,
        cube=cube,
        wavelengths=[450.0, 550, 650],
        good_band=[1, 1, 0],
        labels=labels,
        mean=np.ones(3),
    )
    with pytest.warns(UserWarning, match="assumed to be nm"):
        scene = numpy_files.open(path)
    np.testing.assert_array_equal(
        scene.values, cube
    )  # three wavelengths: so the first axis is the bands
    assert scene.wavelength.values.tolist() == [450, 550, 650]
    assert scene.good_band.values.tolist() == [True, True, False]
    np.testing.assert_array_equal(numpy_files.open_labels(path).values, labels)


def test_npz_with_several_cubes_asks_which(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, before=np.zeros((8, 9, 3)), after=np.ones((8, 9, 3)))
    with pytest.raises(SceneError, match=r"variable=NAME.*before.*after"):
        numpy_files.open(path)
    assert numpy_files.open(path, variable="after").values.min() == 1
    with pytest.raises(SceneError, match="Did you mean 'after'"):
        numpy_files.open(path, variable="aftr")


def test_wavelengths_of_another_length_are_left_out_with_a_warning(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", cube=np.zeros((8, 9, 3)), wavelengths=np.arange(400.0, 405))
    with pytest.warns(UserWarning, match="does not match 3 bands"):
        assert "wavelength" not in numpy_files.open(tmp_path / "a.npz").coords


class Evil:
    def __reduce__(self) -> tuple:
        return (pytest.fail, ("a pickle was loaded",))


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_pickled_objects_are_never_loaded(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    evil = np.empty((2, 2, 2), object)
    evil[:] = Evil()
    (np.save if suffix == "npy" else np.savez)(path, evil, allow_pickle=True)
    with pytest.raises(SceneError, match="pickled objects"):
        numpy_files.open(path)
    (tmp_path / "bare.npy").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(SceneError, match="not an NPY file"):
        numpy_files.open(tmp_path / "bare.npy")


def header_of(shape: tuple, dtype: str = "<f8") -> bytes:
    import io

    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": dtype, "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue()


@pytest.mark.parametrize(
    "shape", [(10**6, 10**6, 50), (2**62, 4, 4), (5, 4, 3), (-5, -4, 3), (0, 4, 4)]
)
def test_npy_headers_that_lie_are_refused(tmp_path: Path, shape: tuple) -> None:
    (tmp_path / "a.npy").write_bytes(header_of(shape) + bytes(100))
    with pytest.raises(SceneError):
        numpy_files.open(tmp_path / "a.npy")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_npz_members_that_lie_are_refused(tmp_path: Path, method: int) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("cube.npy", header_of((10**5, 10**5, 50)) + bytes(100_000))
    with pytest.raises(SceneError):
        numpy_files.open(path)


def test_what_does_not_fit_into_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez_compressed(tmp_path / "a.npz", cube=np.zeros((300, 301, 50)))
    scene = numpy_files.open(tmp_path / "a.npz")
    monkeypatch.setattr(arrays, "physical_memory", lambda: 10**6)  # a machine with a megabyte
    with pytest.raises(SceneError, match="more than half of this machine's"):
        scene[0].values.sum()


@pytest.mark.parametrize(
    "broken",
    [
        {"scale": "x"},
        {"transform": [1, 2]},
        {"unit": "furlong"},
        {"wavelengths": [1.0]},
        {"crs": "nowhere"},
        {"scale": -1.0},
    ],
)
def test_a_broken_sidecar_is_a_clear_error(tmp_path: Path, broken: dict) -> None:
    numpy_files.write(full_scene(), tmp_path / "scene.npy")
    sidecar = tmp_path / "scene.json"
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), **broken}))
    with pytest.raises(SceneError):
        numpy_files.open(tmp_path / "scene.npy")


def test_a_foreign_json_beside_the_file_is_ignored(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((6, 6, 4)))
    (tmp_path / "a.json").write_text('{"author": "somebody"}')
    assert numpy_files.open(tmp_path / "a.npy").shape == (4, 6, 6)
