"""Readers of other packages: which files they open.

Our own stand in :mod:`vitreous.scenes.formats`; those of other packages are asked before them, because they know better
what they are made for.
"""

from __future__ import annotations

import fnmatch
import functools
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from vitreous.catalog import plugins
from vitreous.catalog.lookup import load


@dataclass(frozen=True)
class Reader:
    """What a module that reads scenes says of itself.

    Attributes:
        name: of the format or product.
        title: in words.
        patterns: shell patterns of the names of files or folders that it opens, in any case: ``*.xyz``.
        starts: bytes with which such a file begins, where that must be so too.
        writes: suffixes that its ``write`` makes.
    """

    name: str
    title: str
    patterns: list[str]
    starts: bytes = b""
    writes: list[str] = field(default_factory=list)

    def opens(self, path: Path) -> bool:
        """Tell whether a file or folder is one of those."""
        name = path.name.lower()
        if not any(fnmatch.fnmatchcase(name, pattern.lower()) for pattern in self.patterns):
            return False
        if not self.starts or path.is_dir():
            return True
        with path.open("rb") as file:
            return file.read(len(self.starts)) == self.starts


@functools.cache
def readers() -> dict[str, Reader]:
    """Return the readers of other packages by the names of their modules."""
    return {
        source.module: reader for source, reader in plugins.rows(plugins.READERS, "READER", Reader)
    }


def reader_of(path: Path) -> ModuleType | None:
    """Import the reader of another package that opens a file or folder; None where there is none."""
    found = (module for module, reader in readers().items() if reader.opens(path))
    module = next(found, None)
    return None if module is None else load(module)


def writers() -> dict[str, str]:
    """Return the suffixes that readers of other packages write, with the names of their modules."""
    return {
        suffix.lower(): module for module, reader in readers().items() for suffix in reader.writes
    }
