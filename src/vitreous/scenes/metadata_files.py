"""Metadata that products keep in files of their own, read with care: small, local, and without entities."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar
from xml.etree import ElementTree

from vitreous.errors import SceneError

METADATA_LIMIT = 32 * 2**20
MOST_FILES = 20_000  # of a product

F = TypeVar("F")


def members(folder: Path, look: Callable[[Path], F | None]) -> list[F]:
    """Return what some of a folder's files are, in the order of their names; of a huge folder, only the first files.

    Args:
        folder: of a product.
        look: says what a file is, None for those that do not count.
    """
    files = islice(sorted(folder.iterdir()), MOST_FILES)
    return [found for file in files if (found := look(file)) is not None]


def read_text(path: Path) -> str:
    """Return the text of a metadata file.

    Raises:
        SceneError: it is too large or no text.
    """
    try:
        if path.stat().st_size > METADATA_LIMIT:
            raise damaged(path)
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise damaged(path) from error


def read_xml(path: Path) -> ElementTree.Element:
    """Return the root of an XML file, its tags without namespaces.

    Raises:
        SceneError: it is damaged, or defines entities, which could expand without end.
    """
    # A document type without definitions of its own, as in QGIS's files, can be left out.
    text = re.sub(r"<!DOCTYPE[^\[<>]*>", "", read_text(path), count=1)
    if "<!" in text.replace("<!--", "").replace("<![CDATA[", ""):
        raise damaged(path)
    try:
        root = ElementTree.fromstring(text.encode())
    except (ElementTree.ParseError, ValueError) as error:
        raise damaged(path) from error
    for item in root.iter():
        item.tag = str(item.tag).rpartition("}")[2]
    return root


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        SceneError: it is damaged.
    """
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise damaged(path) from error


def damaged(path: Path) -> SceneError:
    """Return the error for metadata that make no sense."""
    return SceneError(
        f"{path} cannot be read.", "Download the product again, or move that file away."
    )
