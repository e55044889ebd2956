"""Changelog entries are files of their own until they are joined for a release."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))

import changelog  # noqa: E402

TEXT = """# Changelog

## [Unreleased]

### Added

- One.

### Fixed

- Two,
  on two lines.

## [0.1.0] - 2020-01-01

### Added

- Old.
"""


def entry(folder, name, text):
    (folder / name).write_text(text)
    return folder / name


def test_the_entries_of_this_version_can_be_joined():
    files = sorted(changelog.ENTRIES.glob("*"))
    assert all(path.suffix == ".md" for path in files)
    entries = changelog.read_entries(files)
    text = changelog.CHANGELOG.read_text(encoding="utf-8")
    made = changelog.joined(text, entries)
    assert all(item in made for items in entries.values() for item in items)
    assert changelog.joined(text, {}) == text  # what stands there stays as it is


def test_items_go_below_their_headings(tmp_path):
    files = [
        entry(tmp_path, "a-one.md", "- Three,\n  longer.\n- Four.\n"),
        entry(tmp_path, "b-two.md", "### Changed\n\n- Five.\n\n### Fixed\n\n- Six.\n"),
    ]
    made = changelog.joined(TEXT, changelog.read_entries(files))
    assert (
        made
        == """# Changelog

## [Unreleased]

### Added

- One.
- Three,
  longer.
- Four.

### Fixed

- Two,
  on two lines.
- Six.

### Changed

- Five.

## [0.1.0] - 2020-01-01

### Added

- Old.
"""
    )


def test_a_release_names_the_section(tmp_path):
    entries = changelog.read_entries([entry(tmp_path, "a-one.md", "- Three.\n")])
    made = changelog.joined(TEXT, entries, "0.2.0", "2026-01-02")
    assert "## [Unreleased]\n\n## [0.2.0] - 2026-01-02\n\n### Added\n\n- One.\n- Three.\n" in made
    with pytest.raises(ValueError, match=r"0\.1\.0 is in the changelog already"):
        changelog.joined(TEXT, entries, "0.1.0", "2026-01-02")


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a-one.md", "Three.\n", "does not belong to a list item"),
        ("a-one.md", "", "has no list item"),
        ("a-one.md", "### Better\n- Three.\n", "'Better' is not one of Added"),
        ("a-one.md", "  indented\n- Three.\n", "does not belong"),
        ("one.md", "- Three.\n", "is not called <branch>-<topic>.md"),
    ],
)
def test_what_is_no_entry_is_named(tmp_path, name, text, told):
    with pytest.raises(ValueError, match=told):
        changelog.read_entries([entry(tmp_path, name, text)])


def test_joining_empties_the_folder_and_a_mistake_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(changelog, "ENTRIES", tmp_path)
    monkeypatch.setattr(changelog, "CHANGELOG", tmp_path / "CHANGELOG.md")
    (tmp_path / "CHANGELOG.md").write_text(TEXT)
    monkeypatch.setattr(changelog, "ENTRIES", tmp_path / "d")
    (tmp_path / "d").mkdir()
    bad = entry(tmp_path / "d", "b-bad.md", "nothing\n")
    good = entry(tmp_path / "d", "a-one.md", "- Three.\n")
    assert changelog.main([]) == 1
    assert (tmp_path / "CHANGELOG.md").read_text() == TEXT and good.exists()
    bad.unlink()
    assert changelog.main(["--check"]) == 0
    assert good.exists()
    assert changelog.main(["0.2.0"]) == 0
    assert not list((tmp_path / "d").iterdir())
    assert "- Three." in (tmp_path / "CHANGELOG.md").read_text()
