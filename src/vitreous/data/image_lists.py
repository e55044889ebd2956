"""Which images there are, of which classes and for what: read off a folder's layout or a table, no image is opened."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitreous.data.image_files import SUFFIXES
from vitreous.data.tables import ROLE_WORDS, TABLE_LIMIT, csv_rows, parquet_rows
from vitreous.errors import CollectionError, ConfigError, listed

TABLES = {".csv", ".parquet"}
SHOWN = 6  # names in a sentence
MOST_FAULTS = 20  # lines of a kind; more would bury the other kinds
ROLES = ("train", "val", "test")
IMAGE_COLUMNS = ("image", "file", "filename", "path")
LABEL_COLUMNS = ("label", "class")
LABELS_COLUMNS = ("labels", "classes")
ROLE_COLUMNS = ("role", "split", "set")
SEPARATORS = re.compile(r"[;|,]")


@dataclass(frozen=True)
class Listed:
    """One image of a list.

    Attributes:
        name: as a user knows it: relative to the folder, or as in the table.
        path: of the file.
        labels: names of its classes; one of them, unless images have several labels.
        role: ``train``, ``val`` or ``test``; None where it is to be drawn.
    """

    name: str
    path: Path
    labels: tuple[str, ...]
    role: str | None


@dataclass
class Faults:
    """What is wrong with a list of images, by kind, so that a user is told all of it at once."""

    found: dict[str, list[tuple[str, str]]] = field(default_factory=dict)

    def add(self, kind: str, *names: str) -> None:
        """Note names that have a fault of a kind."""
        for name in names:
            self.note(kind, name, kind)

    def note(self, kind: str, name: str, what: str) -> None:
        """Note a fault of a kind that says more than its kind."""
        self.found.setdefault(kind, []).append((name, what))

    def refuse(self, source: str) -> None:
        """Say what was found, of every kind the first ones.

        Raises:
            CollectionError: anything was.
        """
        if not self.found:
            return
        lines = []
        for kind, own in self.found.items():
            lines += own[:MOST_FAULTS]
            if len(own) > MOST_FAULTS:
                lines.append((f"... and {len(own) - MOST_FAULTS:,} more", kind))
        count = sum(map(len, self.found.values()))
        raise CollectionError(
            f"{count:,} {'fault' if count == 1 else 'faults'} in the images of {source}:",
            lines,
            "Correct all of this, then start again; nothing has been written.",
        )


@dataclass
class ImageList:
    """What a folder or a table lists.

    Attributes:
        source: the folder or table.
        images: in the order of the table, or of roles, classes and names.
        several: whether an image may have several labels, or none.
        skipped: files that are no images, and folders that were not looked into.
        faults: what is wrong already.
        warned: what readers warned of.
    """

    source: Path
    images: list[Listed]
    several: bool = False
    skipped: list[str] = field(default_factory=list)
    faults: Faults = field(default_factory=Faults)
    warned: list[str] = field(default_factory=list)


def list_images(source: str | Path, root: str | Path | None = None) -> ImageList:
    """List the images of a folder or a table.

    Args:
        source: a folder ``<class>/<image>`` or ``train|val|test/<class>/<image>``, a table, or a folder of images with
            one table in it.
        root: the folder that the paths in a table are relative to; the table's own where None.

    Raises:
        VitreousError: there is no such folder or table, or it lists no image.
    """
    source = Path(source)
    if source.is_file():
        return read_table(source, root)
    if root is not None:
        raise ConfigError(f"{source} is not a table, so no folder belongs to it.", "Omit --root.")
    if not source.is_dir():
        raise ConfigError(
            f"No such folder or table: {source}.",
            "Give a folder of images in class folders, or a CSV or Parquet table.",
        )
    inside = sorted(source.iterdir())
    folders = [path for path in inside if path.is_dir()]
    tables = [path for path in inside if path.is_file() and path.suffix.lower() in TABLES]
    roles = {
        path: ROLE_WORDS[path.name.lower()] for path in folders if path.name.lower() in ROLE_WORDS
    }
    if "train" in roles.values():
        return _with_roles(source, inside, roles)
    classes = [folder for folder in folders if _images_in(folder)]
    if classes:
        return _classes(source, inside, classes)
    if len(tables) == 1:
        return read_table(tables[0])
    if tables:
        raise ConfigError(
            f"{source} holds several tables: {listed(path.name for path in tables)}.",
            "Name the one that lists the images.",
        )
    raise ConfigError(
        f"{source} contains no images in class folders, and no table.",
        "Give a folder with one subfolder per class, with train/, val/ and test/ above those, or with a table of "
        "images and labels.",
    )


def find_images(folder: Path) -> tuple[list[Path], list[str]]:
    """Return all images below a folder, sorted, and the names of what is none.

    Raises:
        ConfigError: there is no such folder, or no image in it.
    """
    if folder.is_file() and folder.suffix.lower() in SUFFIXES:
        return [folder], []
    if not folder.is_dir():
        raise ConfigError(f"No such folder of images: {folder}.", "Give a folder or one image.")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    images = [path for path in files if path.suffix.lower() in SUFFIXES]
    if not images:
        raise ConfigError(
            f"{folder} contains no images.", f"Images are {listed(sorted(SUFFIXES))}."
        )
    skipped = [str(path.relative_to(folder)) for path in files if path not in set(images)]
    return images, skipped


# -- folders ----------------------------------------------------------------------------------------------


def _images_in(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file()
    )


def _with_roles(source: Path, inside: Sequence[Path], roles: Mapping[Path, str]) -> ImageList:
    """List ``<role>/<class>/<image>``."""
    found = ImageList(source, [])
    found.skipped += [path.name for path in inside if path not in roles]
    for folder, role in sorted(roles.items(), key=lambda item: ROLES.index(item[1])):
        below = sorted(folder.iterdir())
        found.faults.add(
            "lies outside of the class folders",
            *(str(path.relative_to(source)) for path in below if path.suffix.lower() in SUFFIXES),
        )
        classes = [path for path in below if path.is_dir()]
        found.skipped += [
            str(path.relative_to(source))
            for path in below
            if path not in classes and path.suffix.lower() not in SUFFIXES
        ]
        own = _of_classes(found, classes, role)
        if not own:
            found.faults.add("has no image in a class folder", f"{folder.name}/")
        found.skipped += [str(path.relative_to(source)) for path in classes if not _images_in(path)]
        found.images += own
    return found


def _classes(source: Path, inside: Sequence[Path], classes: Sequence[Path]) -> ImageList:
    """List ``<class>/<image>``."""
    found = ImageList(source, [])
    found.skipped += [path.name for path in inside if path not in classes]
    found.images += _of_classes(found, classes, None)
    return found


def _of_classes(found: ImageList, classes: Iterable[Path], role: str | None) -> list[Listed]:
    images = []
    for folder in classes:
        own = _images_in(folder)
        others = set(folder.iterdir()) - set(own)
        found.skipped += sorted(str(path.relative_to(found.source)) for path in others)
        images += [
            Listed(str(path.relative_to(found.source)), path, (folder.name,), role) for path in own
        ]
    return images


# -- tables -----------------------------------------------------------------------------------------------


def read_table(path: Path, root: str | Path | None = None) -> ImageList:
    """List the rows of a table: columns ``image``, ``label`` or ``labels``, and where it has roles ``role``.

    Several labels of an image are separated by ``;``, ``|`` or ``,`` (in CSV in quotes), or a list in Parquet.

    Args:
        path: the CSV or Parquet file.
        root: the folder that paths in it are relative to; the table's own where None.

    Raises:
        ConfigError: it is no such table, or has no rows.
    """
    rows = _rows(path)
    if not rows:
        raise ConfigError(f"{path} has no rows.", "List one image per row.")
    names = {str(name).strip().lower(): name for name in rows[0]}

    def column(words: Sequence[str]) -> str | None:
        return next((names[word] for word in words if word in names), None)

    image, role = column(IMAGE_COLUMNS), column(ROLE_COLUMNS)
    one, several = column(LABEL_COLUMNS), column(LABELS_COLUMNS)
    if image is None or (one is None) == (several is None):
        raise ConfigError(
            f"{path} needs a column 'image' and either 'label' or 'labels'; it has {listed(names)}.",
            "Name the columns of paths and classes so; 'labels' holds several, separated by ';'.",
        )
    folder = Path(root) if root is not None else path.parent
    found = ImageList(path, [], several=several is not None)
    for number, row in enumerate(rows, start=2):
        _add_row(found, folder, row, number, (image, one, several, role))
    return found


def _add_row(
    found: ImageList,
    folder: Path,
    row: Mapping[str, Any],
    number: int,
    columns: tuple[str, str | None, str | None, str | None],
) -> None:
    """Take one row into the list, or note what is wrong with it."""
    image, one, several, role = columns
    name = _text(row.get(image))
    if not name:
        found.faults.add("names no image", f"line {number}")
        return
    labels = (
        _labels(row.get(several)) if several else tuple(filter(None, [_text(row.get(str(one)))]))
    )
    if not labels and not found.several:
        found.faults.add("has no label", f"line {number}: {name}")
    word = _text(row.get(role)).lower() if role else ""
    if word and word not in ROLE_WORDS:
        found.faults.note(
            "unknown role",
            f"line {number}: {name}",
            f"has the unknown role '{word}' (known: train, val, test)",
        )
    elif role and not word:
        found.faults.add("has no role, unlike other rows", f"line {number}: {name}")
    found.images.append(Listed(name, folder / name, labels, ROLE_WORDS.get(word)))


def _rows(path: Path) -> list[Mapping[str, Any]]:
    """Return a table's rows by column."""
    suffix = path.suffix.lower()
    if suffix not in TABLES:
        raise ConfigError(f"{path} is not a table of images.", "Give a .csv or .parquet file.")
    if path.stat().st_size > TABLE_LIMIT:
        raise ConfigError(f"{path} is too large for a table of images.")
    try:
        return parquet_rows(path) if suffix == ".parquet" else csv_rows(path)
    except ConfigError:
        raise
    except Exception as error:  # what libraries say of damaged files is of many kinds
        raise ConfigError(
            f"{path} cannot be read as a table (CSV in UTF-8, or Parquet): {str(error).rstrip('.')}.",
            "Check the file, or write it again.",
        ) from error


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _labels(value: Any) -> tuple[str, ...]:
    """Return the labels of a cell, each once, in the order given."""
    parts = value if isinstance(value, list | tuple) else SEPARATORS.split(_text(value))
    return tuple(dict.fromkeys(filter(None, map(_text, parts))))
