"""Tables of files: rows by column from CSV and Parquet, and the words for what a row is for."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitreous.errors import ConfigError, listed

TABLE_LIMIT = 2**28  # bytes
SHOWN = 6  # lines in a sentence
ROLE_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def csv_rows(path: Path) -> list[Mapping[str, Any]]:
    """Return the rows of a CSV table in UTF-8, divided by commas, semicolons or tabs; empty ones are left out.

    Raises:
        ConfigError: columns share a name, or a row has more cells than there are columns.
        OSError, UnicodeDecodeError, csv.Error: it cannot be read.
    """
    text = path.read_text(encoding="utf-8-sig")
    first = text.partition("\n")[0]
    divider = max(",;\t", key=first.count)
    reader = csv.DictReader(text.splitlines(), delimiter=divider, skipinitialspace=True)
    names = [name.strip() for name in reader.fieldnames or []]
    _check_names(path, names)
    rows: list[Mapping[str, Any]] = []
    longer = []
    for cells in reader:
        beyond: Any = cells.pop(None, None)
        if any(cell.strip() for cell in beyond or []):
            longer.append(f"line {reader.line_num}")
        row = dict(zip(names, cells.values(), strict=True))
        if any(value and value.strip() for value in row.values()):
            rows.append(row)
    if longer:
        raise ConfigError(
            f"{path} has more cells than its {len(names)} columns in {listed(longer[:SHOWN])}"
            + (f", and in {len(longer) - SHOWN} more lines." if longer[SHOWN:] else "."),
            f"Put cells that contain '{divider}' in quotes.",
        )
    return rows


def _check_names(path: Path, names: Sequence[str]) -> None:
    """Refuse columns of one name, of which only one would be read."""
    counts = Counter(name.lower() for name in names if name)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise ConfigError(
            f"{path} has several columns named {listed(twice)}.", "Rename or remove all but one."
        )


def parquet_rows(path: Path) -> list[Mapping[str, Any]]:
    """Return the rows of a Parquet table, without geometries.

    Raises:
        ConfigError: pyarrow is not installed.
        OSError, pyarrow.ArrowException: it cannot be read.
    """
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigError(
            f"{path} is a Parquet table, which needs the package pyarrow.",
            "pip install 'vitreous[tables]', or write a CSV file.",
        ) from error
    file = parquet.ParquetFile(path)
    names = [name for name in file.schema_arrow.names if name not in {"geometry", "bbox"}]
    rows: list[Mapping[str, Any]] = file.read(columns=names).to_pylist()
    return rows
