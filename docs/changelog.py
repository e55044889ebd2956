"""Join the entries in changelog.d/ into CHANGELOG.md, for a release.

An entry is a file ``changelog.d/<branch>-<topic>.md`` of list items (``- ...``), below a heading (``### Changed``) where they
are not additions. With ``--check`` nothing is written, and the exit code is 1 where a file is not so. Without, every entry
is moved below ``## [Unreleased]``; with a version, that heading becomes the version's, of today.
"""

from __future__ import annotations

import datetime
import re
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENTRIES, CHANGELOG = ROOT / "changelog.d", ROOT / "CHANGELOG.md"
HEADINGS = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")  # Keep a Changelog
UNRELEASED = "## [Unreleased]"
VERSION = re.compile(r"\d+\.\d+\.\d+")
NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)+\.md")


def read_entries(files: Iterable[Path]) -> dict[str, list[str]]:
    """Return the items of entries by their headings.

    Raises:
        ValueError: a file is not made of items; the message names it.
    """
    found: dict[str, list[str]] = {heading: [] for heading in HEADINGS}
    for file in files:
        if not NAME.fullmatch(file.name):
            raise ValueError(f"{file.name} is not called <branch>-<topic>.md")
        heading, own = HEADINGS[0], 0
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.startswith("### "):
                heading = line.removeprefix("### ").strip()
                if heading not in HEADINGS:
                    raise ValueError(
                        f"{file.name}: '{heading}' is not one of {', '.join(HEADINGS)}"
                    )
            elif line.startswith("- "):
                found[heading].append(line)
                own += 1
            elif line.startswith("  ") and own:
                found[heading][-1] += f"\n{line}"
            elif line.strip():
                raise ValueError(
                    f"{file.name}: '{line[:60]}' does not belong to a list item (- ...)"
                )
        if not own:
            raise ValueError(f"{file.name} has no list item")
    return found


def joined(text: str, entries: dict[str, list[str]], version: str = "", day: str = "") -> str:
    """Return the changelog with the entries in its unreleased section.

    Args:
        text: the changelog.
        entries: items by their headings.
        version: what the section becomes; it stays unreleased when empty.
        day: of the release.

    Raises:
        ValueError: the changelog has no unreleased section, or knows the version already.
    """
    before, mark, rest = text.partition(UNRELEASED + "\n")
    if not mark:
        raise ValueError(f"the changelog has no section {UNRELEASED}")
    if f"## [{version}]" in text:
        raise ValueError(f"version {version} is in the changelog already")
    section, later = re.match(r"(.*?)((?:^## |^\[).*|\Z)", rest, re.DOTALL | re.MULTILINE).groups()
    for heading, items in entries.items():
        if items:
            section = _with_items(section, heading, items)
    title = f"{UNRELEASED}\n\n## [{version}] - {day}\n" if version else mark
    return f"{before}{title}{section.rstrip()}\n" + (f"\n{later}" if later else "")


def _with_items(section: str, heading: str, items: list[str]) -> str:
    """Return a section with items at the end of what stands below a heading, which is made where it lacks."""
    lines = "\n".join(items)
    own = re.search(rf"^### {heading}\n(.*?)(?=^### |\Z)", section, re.DOTALL | re.MULTILINE)
    if own is None:
        return f"{section.rstrip()}\n\n### {heading}\n\n{lines}\n"
    return f"{section[: own.end()].rstrip()}\n{lines}\n\n{section[own.end() :]}"


def main(words: list[str]) -> int:
    """Check or join the entries."""
    files = sorted(ENTRIES.glob("*.md"))
    version = next((word for word in words if VERSION.fullmatch(word)), "")
    try:
        entries = read_entries(files)
        if "--check" not in words:
            text = CHANGELOG.read_text(encoding="utf-8")
            made = joined(text, entries, version, f"{datetime.date.today():%Y-%m-%d}")
            CHANGELOG.write_text(made, encoding="utf-8")
            for file in files:
                file.unlink()
    except ValueError as error:
        print(f"changelog.d: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
