"""Tables of files: rows by column from CSV and Parquet, and the words for what a row is for."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitreous.errors import ConfigError

TABLE_LIMIT = 2**28  # bytes
ROLE_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def csv_rows(path: Path) -> list[Mapping[str, Any]]:
    """Return the rows of a CSV table in UTF-8, divided by commas, semicolons or tabs; empty ones are left out.

    Raises:
        OSError, UnicodeDecodeError, csv.Error: it cannot be read.
    """
    text = path.read_text(encoding="utf-8-sig")
    first = text.partition("\n")[0]
    divider = max(",;\t", key=first.count)
    reader = csv.DictReader(text.splitlines(), delimiter=divider, skipinitialspace=True)
    rows = [
        {(key or "").strip(): value for key, value in row.items() if isinstance(value, str | None)}
        for row in reader
    ]
    return [row for row in rows if any(value and value.strip() for value in row.values())]


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
