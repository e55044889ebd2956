"""Systems, methods, tasks, kinds and readers of other packages, found without importing them.

A package declares an entry point per module in one of the ``GROUPS``. What stands in the module is a literal, ``CARD =
Card(...)``, ``TASK = Task(...)``, ``KIND = Kind(...)`` or ``READER = Reader(...)``, which is read from its source text, as
the cards of our own systems are. A package whose entry cannot be read is left out with one warning: it must not keep
anything else from working.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from importlib.machinery import PathFinder
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

SYSTEMS, TASKS, KINDS, READERS = (
    "vitreous.systems",
    "vitreous.tasks",
    "vitreous.kinds",
    "vitreous.readers",
)
T = TypeVar("T")


class Source(NamedTuple):
    """A module that nobody has imported yet.

    Attributes:
        module: its name.
        path: its file.
        package: the distribution that it came with.
    """

    module: str
    path: Path
    package: str


class Unreadable(Exception):
    """Why a module does not hold what its package declares."""


def sources(group: str) -> Iterator[Source]:
    """Yield the modules that installed packages declare for a group, each file of a folder one by one."""
    for entry in sorted(_entries(group), key=lambda entry: (entry.name, entry.value)):
        package = entry.dist.name if entry.dist else entry.module
        try:
            path = locate(entry.module)
        except Unreadable as error:
            leave_out(package, f"{group}: {entry.name}", error)
            continue
        if path.name != "__init__.py":
            yield Source(entry.module, path, package)
            continue
        for file in system_files(path.parent):
            below = file.relative_to(path.parent).with_suffix("").parts
            yield Source(".".join((entry.module, *below)), file, package)


def rows(group: str, name: str, make: Callable[..., T]) -> Iterator[tuple[Source, T]]:
    """Yield what the modules of a group hold, with where it stands; what cannot be read is left out with a warning."""
    for source in sources(group):
        try:
            yield source, read_literal(source.path, name, make)
        except Unreadable as error:
            leave_out(source.package, source.module, error)


def installed() -> dict[str, list[str]]:
    """Return what other packages declare, in words by their names: ``systems: my_package.my_model``."""
    found: dict[str, list[str]] = {}
    for group in (SYSTEMS, TASKS, KINDS, READERS):
        for source in sources(group):
            found.setdefault(source.package, []).append(f"{group.split('.')[1]}: {source.module}")
    return found


def system_files(folder: Path) -> list[Path]:
    """Return the files of a folder that hold a system each: those whose names do not begin with an underscore."""
    return [path for path in sorted(folder.rglob("*.py")) if not path.stem.startswith("_")]


def read_literal(path: Path, name: str, make: Callable[..., T]) -> T:
    """Evaluate ``NAME = Class(...)`` of a source file, without running it.

    Args:
        path: the file.
        name: of the variable.
        make: the class; its arguments are literals.

    Raises:
        Unreadable: the file cannot be read or parsed, or has no such literal.
    """
    try:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if (
                isinstance(node, ast.Assign)
                and isinstance(node.targets[0], ast.Name)
                and node.targets[0].id == name
                and isinstance(node.value, ast.Call)
            ):
                words = [ast.literal_eval(value) for value in node.value.args]
                named = {str(k.arg): ast.literal_eval(k.value) for k in node.value.keywords}
                return make(*words, **named)
    except (OSError, SyntaxError, ValueError, TypeError, RecursionError) as error:
        raise Unreadable(f"{path} cannot be read: {error}") from error
    raise Unreadable(f"{path} has no literal {name} = {getattr(make, '__name__', '')}(...)")


def locate(module: str) -> Path:
    """Return the file of a module, without importing it or what it lies in.

    Raises:
        Unreadable: there is no such module, or none that is Python source.
    """
    top, *below = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
        for end in range(1, len(below) + 1):
            inside = None if spec is None else spec.submodule_search_locations
            spec = PathFinder.find_spec(".".join((top, *below[:end])), inside) if inside else None
    except (ImportError, ValueError, AttributeError) as error:
        raise Unreadable(f"the module {module} cannot be found: {error}") from error
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise Unreadable(f"no Python source of the module {module} was found")
    return Path(spec.origin)


def leave_out(package: str, what: str, why: object) -> None:
    """Warn that something of another package is not used."""
    warnings.warn(
        f"The package '{package}' provides {what}, which is ignored: {why}.", stacklevel=2
    )


@functools.cache
def _entries(group: str) -> list[EntryPoint]:
    """Return the entry points of a group, once where a package is found in two places."""
    found: dict[Any, EntryPoint] = {
        (entry.name, entry.value): entry for entry in entry_points(group=group)
    }
    return list(found.values())
