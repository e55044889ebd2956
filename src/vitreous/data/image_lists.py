"""Which images there are, of which classes and for what: read off a folder's layout or a table, no image is opened."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitreous.data.image_files import SUFFIXES
from vitreous.errors import ConfigError, VitreousError, listed

TABLES = {".csv", ".parquet"}
TABLE_BYTES = 2**28
SHOWN = 6  # names of a kind of fault; more would bury the other kinds
ROLES = ("train", "val", "test")
ROLE_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
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

    found: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, *names: str) -> None:
        """Note names that have a fault of a kind."""
        if names:
            self.found.setdefault(kind, []).extend(names)

    def refuse(self, source: str) -> None:
        """Say what was found.

        Raises:
            VitreousError: anything was.
        """
        if not self.found:
            return
        lines = [
            f"{kind} ({len(names)}): {listed(names, SHOWN)}" for kind, names in self.found.items()
        ]
        count = f"{len(lines)} kinds of faults" if len(lines) > 1 else "a fault"
        raise VitreousError(
            f"The images of {source} have {count}:\n  - " + "\n  - ".join(lines) + "\n",
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
            f"There is no folder or table {source}.",
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
        raise ConfigError(f"There is no folder of images {folder}.", "Give a folder or one image.")
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
            "images outside of class folders",
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
            found.faults.add("roles without an image", folder.name)
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
    rows = list(_rows(path))
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
        found.faults.add("rows without an image", f"line {number}")
        return
    labels = (
        _labels(row.get(several)) if several else tuple(filter(None, [_text(row.get(str(one)))]))
    )
    if not labels and not found.several:
        found.faults.add("rows without a label", f"{name} (line {number})")
    word = _text(row.get(role)).lower() if role else ""
    if word and word not in ROLE_WORDS:
        found.faults.add("unknown roles (known: train, val, test)", f"'{word}' (line {number})")
    elif role and not word:
        found.faults.add("rows without a role", f"{name} (line {number})")
    found.images.append(Listed(name, folder / name, labels, ROLE_WORDS.get(word)))


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield a table's rows by column."""
    if path.suffix.lower() not in TABLES:
        raise ConfigError(f"{path} is not a table of images.", "Give a .csv or .parquet file.")
    if path.stat().st_size > TABLE_BYTES:
        raise ConfigError(f"{path} is too large for a table of images.")
    if path.suffix.lower() == ".parquet":
        yield from _parquet_rows(path)
        return
    try:
        text = path.read_text(encoding="utf-8-sig")
        header = text.partition("\n")[0]
        # One column has no delimiter; of the others the most frequent in the header is it.
        delimiter = max(",;\t", key=header.count)
        yield from csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} cannot be read as CSV in UTF-8: {error}.") from error


def _parquet_rows(path: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(
            "Reading Parquet needs pyarrow.", "pip install 'vitreous[tables]', or give a CSV file."
        ) from error
    try:
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise ConfigError(f"{path} cannot be read as Parquet: {error}.") from error
    return rows


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _labels(value: Any) -> tuple[str, ...]:
    """Return the labels of a cell, each once, in the order given."""
    parts = value if isinstance(value, list | tuple) else SEPARATORS.split(_text(value))
    return tuple(dict.fromkeys(filter(None, map(_text, parts))))
