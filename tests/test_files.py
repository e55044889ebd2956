"""Files and folders appear whole or not at all; JSON from outside is JSON."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time

import pytest

from killed import hidden, killed_at, moments, with_full_disk
from vitreous.errors import VitreousError
from vitreous.files import (
    atomic_path,
    check_room,
    disk_errors,
    hidden_folder,
    parse_json,
    read_json,
    read_yaml,
    whole_folder,
    write_text,
)


def fill(folder, mark):
    """Replace a folder by one of three files that belong together."""
    with whole_folder(folder) as made:
        for name in "abc":
            (made / name).write_text(mark)


def marks(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_folder_is_replaced_whole(tmp_path):
    folder = tmp_path / "made" / "it"
    fill(folder, "1")
    fill(folder, "2")
    assert marks(folder) == dict.fromkeys("abc", "2")
    with pytest.raises(ZeroDivisionError), whole_folder(folder) as made:
        (made / "a").write_text("3")
        raise ZeroDivisionError
    assert marks(folder) == dict.fromkeys("abc", "2")
    assert hidden(tmp_path) == []


def test_a_killed_replacement_leaves_one_of_both_and_is_cleared_away(tmp_path):
    folder = tmp_path / "it"
    count = moments(lambda: fill(folder, "2"), tmp_path)
    assert count > 5
    for moment in range(1, count + 1):
        if not folder.exists():
            fill(folder, "1")
        killed_at(moment, lambda: fill(folder, "2"), tmp_path)
        # Between two renames there is a moment without either; what is there is whole.
        assert not folder.exists() or marks(folder) in (
            dict.fromkeys("abc", "1"),
            dict.fromkeys("abc", "2"),
        )
    fill(folder, "3")
    assert hidden(tmp_path) == []
    assert marks(folder) == dict.fromkeys("abc", "3")


def test_folders_of_living_processes_are_left_alone(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from vitreous.files import hidden_folder\n"
        "with hidden_folder(Path(sys.argv[1]), 'it') as made:\n"
        "    (made / 'x').touch(); print('ready', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "ready\n"
        with hidden_folder(tmp_path, "it"), hidden_folder(tmp_path, "it"):
            assert len(list(tmp_path.glob(".it.*"))) == 3
        (theirs,) = tmp_path.glob(".it.*")
        assert (theirs / "x").exists()
        other.kill()
        other.wait()
        time.sleep(0.05)
    with hidden_folder(tmp_path, "it"):
        assert not theirs.exists()
    assert list(tmp_path.iterdir()) == []


def test_only_its_own_folders_are_cleared_away(tmp_path):
    for name in (".it.0123abcd", ".it.0123abcd.tif", ".its.0123abcd", ".it.keep", "it.0123abcd"):
        (tmp_path / name).mkdir()
    with hidden_folder(tmp_path, "it"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".it.0123abcd.tif", ".it.keep", ".its.0123abcd", "it.0123abcd",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "disk is full"),
        (errno.EFBIG, "exceeds the file size limit"),
        (errno.EACCES, "No permission"),
        (errno.EROFS, "No permission"),
        (errno.ENOTDIR, "is not a folder"),
        (errno.ENAMETOOLONG, "too long"),
    ],
)
def test_errors_of_the_disk_are_put_into_words(tmp_path, code, told):
    with pytest.raises(VitreousError, match=told) as caught, atomic_path(tmp_path / "x.txt"):
        raise OSError(code, os.strerror(code))
    assert caught.value.fix
    assert hidden(tmp_path) == []


def test_other_errors_stay_what_they_are(tmp_path):
    for error in (OSError(errno.EIO, "odd"), KeyError("x"), ModuleNotFoundError("y")):
        with pytest.raises(type(error)), atomic_path(tmp_path / "x.txt"):
            raise error
        with pytest.raises(type(error)), disk_errors(tmp_path / "x", tmp_path):
            raise error
    # Reading something else while a folder is filled is no trouble of the folder.
    with pytest.raises(PermissionError), disk_errors(tmp_path / "x", tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied", "/another/file")


def test_a_writer_that_is_silent_about_a_full_disk_is_noticed(tmp_path):
    def write():
        with (tmp_path / "x").open("wb", buffering=0) as file:
            file.write(bytes(100))  # cut short without an error
        check_room(tmp_path)

    assert "OSError: [Errno 27]" in with_full_disk(60, write)
    assert with_full_disk(6000, write) == ""
    assert "exceeds the file size limit" in with_full_disk(
        60, lambda: write_text(tmp_path / "y", "z" * 100)
    )
    assert not (tmp_path / "y").exists()


@pytest.mark.parametrize(
    "text",
    [
        "NaN", "[Infinity]", '{"a": -Infinity}', "1e999", "[-1e400]", "1" * 21, "1" * 5000, "{",
        "", "[" * 100_000, "nul", "\x00", "01",
    ],
)  # fmt: skip
def test_what_is_no_json_is_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(VitreousError, match=r"x\.json is not valid JSON") as caught:
        read_json(tmp_path / "x.json")
    assert len(caught.value.problem) < 300
    assert caught.value.fix


def test_json_is_read():
    assert parse_json('{"a": [1, -2.5, 1e300, null, true, 18446744073709551615]}') == {
        "a": [1, -2.5, 1e300, None, True, 2**64 - 1]
    }


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "b.json").write_bytes(b"\xff\xfe{}")
    (tmp_path / "d.json").mkdir()
    for name, told in (("a.json", "does not exist"), ("b.json", "valid JSON"), ("d.json", "read")):
        with pytest.raises(VitreousError, match=told):
            read_json(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e9", 1e9),
        ("1e-3", 1e-3),
        ("-2.5E4", -2.5e4),
        (".5e1", 5.0),
        ("[1e-3, 2]", [1e-3, 2]),
        ("'1e9'", "1e9"),
        ("e9", "e9"),
        ("1e9x", "1e9x"),
        ("3", 3),
        ("true", True),
    ],
)
def test_numbers_with_an_exponent_are_numbers(text, expected):
    found = read_yaml(text)
    assert found == expected
    assert type(found) is type(expected)
