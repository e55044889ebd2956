import pickle
import struct
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csc_matrix

from vitreous.errors import SceneError
from vitreous.scenes import matlab
from vitreous.scenes.cube import read_window

CUBE = np.random.default_rng(0).integers(0, 4000, (12, 9, 20)).astype("u2")


def save_73(path: Path, **variables: np.ndarray) -> None:
    """Save as MATLAB 7.3 does: HDF5 behind a user block that names the version, axes reversed."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, values in variables.items():
            file[name] = np.asarray(values).T
            file[name].attrs["MATLAB_class"] = np.bytes_("double")
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")


def save_5(path: Path, **variables: np.ndarray) -> None:
    scipy.io.savemat(path, variables, do_compression=True)


@pytest.fixture(params=[save_5, save_73], ids=["v5", "v7.3"])
def save(request: pytest.FixtureRequest):
    return request.param


@pytest.mark.filterwarnings("ignore:.*names no unit")
def test_both_versions_give_the_same_scene(tmp_path: Path, save) -> None:
    save(
        tmp_path / "a.mat",
        cube=CUBE,
        wavelengths=np.linspace(400, 2500, 20)[None],
        bbl=np.arange(20)[None] > 2,
    )
    scene = matlab.open(tmp_path / "a.mat")
    np.testing.assert_array_equal(scene.values, CUBE.transpose(2, 0, 1))
    np.testing.assert_allclose(scene.wavelength, np.linspace(400, 2500, 20))
    assert scene.good_band.values.sum() == 17
    window = read_window(scene, slice(3, 7), slice(1, 9, 3))
    np.testing.assert_array_equal(window, CUBE[3:7, 1:9:3, 3:].transpose(2, 0, 1))


def test_labels_and_their_orientation(tmp_path: Path, save) -> None:
    labels = np.arange(12 * 9).reshape(12, 9).astype("f8")
    save(tmp_path / "a.mat", indian_pines_gt=labels)
    np.testing.assert_array_equal(matlab.open_labels(tmp_path / "a.mat").values, labels)


def test_wavelengths_tell_the_band_axis(tmp_path: Path, save) -> None:
    save(tmp_path / "a.mat", cube=CUBE, wl=np.linspace(0.4, 1.0, 12)[None])
    with pytest.warns(UserWarning, match="assumed to be um"):
        scene = matlab.open(tmp_path / "a.mat")
    assert scene.shape == (12, 9, 20)
    np.testing.assert_allclose(scene.wavelength, np.linspace(400, 1000, 12))


def test_a_stated_unit_needs_no_guess(
    tmp_path: Path, save, recwarn: pytest.WarningsRecorder
) -> None:
    save(
        tmp_path / "a.mat",
        cube=CUBE,
        wl=np.linspace(400, 2500, 20)[None],
        fwhm=np.full((1, 20), 10.0),
    )
    scene = matlab.open(tmp_path / "a.mat", wavelength_unit="nm")
    assert (scene.wavelength[0], scene.fwhm[0]) == (400, 10)
    assert not [w for w in recwarn if "unit" in str(w.message)]


def test_a_scene_travels_to_other_processes_without_its_values(tmp_path: Path, save) -> None:
    save(tmp_path / "a.mat", cube=np.random.default_rng(0).random((50, 60, 20)))
    scene = matlab.open(tmp_path / "a.mat")
    expected = scene.values
    travelled = pickle.dumps(matlab.open(tmp_path / "a.mat"))
    assert len(travelled) < expected.nbytes / 10
    np.testing.assert_array_equal(pickle.loads(travelled).values, expected)


def test_several_cubes_ask_and_previews_do_not_count(tmp_path: Path, save) -> None:
    path = tmp_path / "a.mat"
    save(path, cube=CUBE, rgb=np.zeros((12, 9, 3), "u1"))
    assert matlab.open(path).shape == (20, 12, 9)
    save(path, cube=CUBE, other=CUBE[..., :5])
    with pytest.raises(SceneError, match="variable=NAME"):
        matlab.open(path)
    assert matlab.open(path, variable="other").shape == (5, 12, 9)
    with pytest.raises(SceneError, match="Did you mean"):
        matlab.open(path, variable="othr")


def test_bands_by_pixels_is_folded_down_the_columns(tmp_path: Path, save) -> None:
    path = tmp_path / "a.mat"
    pixels = CUBE.reshape(-1, 20, order="F").T  # MATLAB: reshape(cube, [], 20)'
    save(path, Y=pixels, M=np.ones((20, 4)), nRow=np.array([[12]]), nCol=np.array([[9]]))
    np.testing.assert_array_equal(matlab.open(path).values, CUBE.transpose(2, 0, 1))
    save(path, Y=pixels.T)
    with pytest.raises(SceneError, match="no three-dimensional array"):
        matlab.open(path)
    np.testing.assert_array_equal(matlab.open(path, shape="12, 9").values, CUBE.transpose(2, 0, 1))
    with pytest.raises(SceneError, match="7 x 7 = 49 pixels"):
        matlab.open(path, shape=(7, 7))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"cube": CUBE}, "struct"),
        (np.array([[CUBE, 1]], dtype=object), "cell"),
        (csc_matrix(np.eye(4)), "sparse"),
        ("some text", "text"),
        (CUBE * 1j, "complex"),
    ],
)
def test_what_is_no_plain_array_is_refused_and_named(
    tmp_path: Path, value: object, said: str
) -> None:
    save_5(tmp_path / "a.mat", thing=value)
    for hints in ({}, {"variable": "thing"}):
        with pytest.raises(SceneError, match=said):
            matlab.open(tmp_path / "a.mat", **hints)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    dtype=st.sampled_from(["u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8", "u8"]),
    shape=st.tuples(*[st.integers(1, 5)] * 3),
    compressed=st.booleans(),
    name=st.sampled_from(["c", "cube", "a_cube_with_a_long_name"]),
)
def test_our_scan_agrees_with_scipy(dtype: str, shape: tuple, compressed: bool, name: str) -> None:
    """Referee: scipy's own account of the variables, and its values."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.mat"
        values = {name: np.arange(np.prod(shape)).reshape(shape).astype(dtype), "more": np.eye(2)}
        scipy.io.savemat(path, values, do_compression=compressed)
        ours = {a.name: a.shape for a in matlab.Matlab5File(path).arrays}
        assert ours == {n: s for n, s, _ in scipy.io.whosmat(path)}
        read = matlab.Matlab5File(path).read(name)
        np.testing.assert_array_equal(read, values[name])
        assert read.dtype == values[name].dtype


def matrix(dims: tuple, data: bytes, announced: int | None = None, order: str = "<") -> bytes:
    """One uncompressed double matrix called x, as the format lays it out."""
    head = struct.pack(f"{order}IIIIII", 6, 8, 6, 0, 5, 4 * len(dims))
    head += struct.pack(f"{order}{len(dims)}i", *dims) + bytes(-4 * len(dims) % 8)
    head += struct.pack(f"{order}I", 1 << 16 | 1) + b"x\x00\x00\x00"
    return head + struct.pack(f"{order}II", 9, len(data) if announced is None else announced) + data


def mat_5(kind: int, payload: bytes, count: int | None = None, order: str = "<") -> bytes:
    header = b"MATLAB 5.0 MAT-file".ljust(124) + (b"\x00\x01IM" if order == "<" else b"\x01\x00MI")
    return (
        header + struct.pack(f"{order}II", kind, len(payload) if count is None else count) + payload
    )


@pytest.mark.parametrize("order", ["<", ">"])
def test_both_byte_orders_as_the_format_lays_them_out(tmp_path: Path, order: str) -> None:
    content = matrix((2, 3, 2), np.arange(12.0).astype(f"{order}f8").tobytes(), order=order)
    (tmp_path / "a.mat").write_bytes(mat_5(14, content, order=order))
    scene = matlab.open(tmp_path / "a.mat", axis_order="yxb")
    expected = np.arange(12.0).reshape(2, 3, 2, order="F").transpose(2, 0, 1)
    np.testing.assert_array_equal(scene.values, expected)


def test_scipy_is_given_nothing_that_was_not_checked(tmp_path: Path) -> None:
    """A zero among the first bytes makes scipy read the whole file as version 4, with its own sizes."""
    content = mat_5(14, matrix((2, 3, 2), np.arange(12.0).tobytes()))
    (tmp_path / "a.mat").write_bytes(b"\x00" + content[1:])
    assert matlab.open(tmp_path / "a.mat", axis_order="yxb").values.sum() == 66


BOMB = matrix((20000, 20000, 5), b"", 8 * 20000 * 20000 * 5 % 2**32)


@pytest.mark.parametrize(
    "content",
    [
        mat_5(14, matrix((2, 3, 2), bytes(96)), count=2**31),
        mat_5(14, matrix((2000, 3000, 200), bytes(96))),
        mat_5(14, matrix((2, 3, 2), bytes(96), announced=2**32 - 8)),
        mat_5(14, matrix((-2, -3, 2), bytes(96))),
        mat_5(15, zlib.compress(struct.pack("<II", 14, 2**30) + BOMB)),
        mat_5(
            15,
            zlib.compress(
                struct.pack("<II", 14, 2**30) + matrix((2**15, 2**12, 3), b"", 2**30 * 3)
            ),
        ),
        mat_5(14, matrix((2, 3, 2), bytes(96)))[:-20],
        mat_5(15, b"not zlib at all"),
        mat_5(99, b"12345678"),
        b"MATLAB 5.0 MAT-file",
        b"",
        b"\x89HDF\r\n\x1a\n" + bytes(200),
    ],
)
def test_files_that_lie_or_break_off_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.mat").write_bytes(content)
    with pytest.raises(SceneError):
        matlab.open(tmp_path / "a.mat").values.sum()


def test_real_scenes(shared_data: Path) -> None:
    cave = matlab.open(shared_data / "cave_crop" / "testMSI_2.mat")
    assert cave.shape == (31, 256, 256)
    reference = scipy.io.loadmat(shared_data / "cave_crop" / "testMSI_2.mat")["Omsi"]
    np.testing.assert_array_equal(cave.values, reference.transpose(2, 0, 1))
    jasper = matlab.open(shared_data / "jasper_ridge" / "jasperRidge2_R198_with_gt.mat")
    assert jasper.shape == (198, 100, 100)
    assert int(jasper.max()) == 5437
    paris = shared_data / "paris_hyperion_ali" / "paris_data_hs_ms.mat"
    with pytest.raises(SceneError, match=r"HSim.*MSim"):
        matlab.open(paris)
    assert matlab.open(paris, variable="MSim").shape == (9, 72, 72)
    pavia = matlab.open_labels(shared_data / "label_maps" / "PaviaU_gt.mat").values
    assert np.bincount(pavia.ravel())[1:].tolist() == [
        6631,
        18649,
        2099,
        3064,
        1345,
        5029,
        1330,
        3682,
        947,
    ]


def test_salton_sea_reads_valid_pixels_although_bad_bands_are_nan(shared_data: Path) -> None:
    with pytest.warns(UserWarning, match="assumed to be um"):
        scene = matlab.open(shared_data / "salton_sea" / "salton_sea_roi.mat")
    assert scene.shape == (224, 51, 56)
    np.testing.assert_allclose(scene.wavelength[[0, -1]], [365.9136593, 2496.2236593])
    assert (~scene.good_band.values).sum() == 20
    assert np.isfinite(read_window(scene, slice(0, 51), slice(0, 56))).all()
    bad = np.flatnonzero(~scene.good_band.values)
    assert np.isnan(read_window(scene, slice(0, 51), slice(0, 56), bad)).all()
