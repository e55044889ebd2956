"""Bad input, seen as a user sees it: one message, exit code 2, no traceback."""

import errno

import numpy as np
import pytest
from typer.testing import CliRunner

from vitreous.cli.boundary import ending_of
from vitreous.cli.main import app
from vitreous.errors import SceneError

ENVI = """ENVI
samples = 40
lines = 30
bands = 5
header offset = 0
data type = 2
interleave = bsq
byte order = 0
"""


def _assert_told(done, *words):
    said = done.stdout + done.stderr
    assert done.returncode == 2, said
    assert "Traceback" not in said
    assert done.stdout == ""
    for word in words:
        assert str(word) in said


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["trian"], "train"),
        (["train", "--learning-rte", "1"], "--learning-rate"),
        (["train", "--epochs", "many"], "--epochs"),
        (["train", "--epochs", "0"], "epochs: Input should be greater than or equal to 1"),
        (["train", "--split", "bloks"], "'blocks'"),
        (["train", "--patch-size", "14"], "odd"),
        (["train", "--hints", "variable"], "KEY=VALUE"),
        (
            ["train", "--model-args", "dims=[1, 2],depth=3"],
            "Write --model-args dims=[1, 2] --model-args depth=3.",
        ),
        (["train", "--hints", "variable=[1"], "variable"),
        (["train", "--recipe", "none.yaml"], "none.yaml"),
        (["train", "some/run"], "--resume"),
        (["train", "--resume", "some/run"], "some/run"),
        (["evaluate", "some/run"], "some/run"),
        (["predict", "some/run", "indian_pines"], "some/run"),
        (["info"], "scene"),
        (["systems", "lola_specvitt"], "lola_specvit"),
        (["reproduce", "../pyproject"], "../pyproject"),
    ],
)
def test_wrong_words(cli, words, told):
    _assert_told(cli(*words), told)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("epoch: 3\n", "'epochs'"),
        ("epochs: [1\n", "not valid YAML"),
        ("just words\n", "recipe.yaml"),
        ("epochs: three\n", "epochs"),
        ("hints: 3\n", "hints"),
    ],
)
def test_wrong_recipe(cli, tmp_path, text, told):
    (tmp_path / "recipe.yaml").write_text(text)
    _assert_told(cli("train", "--recipe", "recipe.yaml"), told)


def _truncated_envi(folder):
    (folder / "scene.hdr").write_text(ENVI)
    (folder / "scene.img").write_bytes(bytes(40 * 30 * 5 * 2 - 1))
    return "scene.hdr"


def _empty(folder):
    (folder / "empty.tif").touch()
    return "empty.tif"


def _text_as_tif(folder):
    (folder / "notes.tif").write_text("these are my notes\n")
    return "notes.tif"


def _missing(folder):
    return "nowhere.tif"


def _folder(folder):
    (folder / "holiday").mkdir()
    return "holiday"


def _unknown_kind(folder):
    (folder / "scene.docx").write_bytes(b"PK\x03\x04 no scene at all")
    return "scene.docx"


def _pickle(folder):
    np.save(folder / "scene.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return "scene.npy"


def _assert_told_here(words, *told):
    """As above in this process: importing the readers anew for every case would take most of the time."""
    done = CliRunner(env={"COLUMNS": "160", "NO_COLOR": "1"}).invoke(app, [*map(str, words)])
    assert done.exit_code == 2, done.output
    assert isinstance(done.exception, SystemExit)
    for word in told:
        assert word in done.output


@pytest.mark.parametrize("make", [_empty, _text_as_tif, _missing, _folder, _unknown_kind, _pickle])
def test_wrong_scene(tmp_path, make):
    name = make(tmp_path)
    _assert_told_here(["info", tmp_path / name], name)


def test_truncated_scene_in_a_process_of_its_own(cli, tmp_path):
    _assert_told(cli("info", _truncated_envi(tmp_path)), "scene", "11999", "12000")


def test_wrong_hint(tmp_path):
    np.save(tmp_path / "scene.npy", np.zeros((4, 5, 6), np.uint8))
    _assert_told_here(["info", tmp_path / "scene.npy", "--hints", "nodta=3"], "nodata")


def test_debug_keeps_the_traceback(cli):
    done = cli("--debug", "train", "--epochs", "0")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ConfigError" in done.stderr


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (SceneError("It is broken.", "Mend it."), 2, "It is broken. Mend it."),
        (KeyboardInterrupt("Go on with: this"), 130, "Stopped. Go on with: this"),
        (MemoryError(), 2, "not enough memory"),
        (
            RuntimeError("DefaultCPUAllocator: not enough memory: you tried ..."),
            2,
            "not enough memory",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "disk is full"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/a/b.tif"),
            2,
            "/a/b.tif: Permission denied.",
        ),
    ],
)
def test_endings(error, code, told):
    ending = ending_of(error)
    assert ending is not None
    assert ending.code == code
    assert told in f"{ending.problem} {ending.fix}"


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), KeyError("x"), OSError("odd")])
def test_bugs_of_ours_are_not_hidden(error):
    assert ending_of(error) is None
