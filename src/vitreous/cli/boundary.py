"""The error boundary: what a user sees when something ends a command early."""

from __future__ import annotations

import errno
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TextIO

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from vitreous.errors import VitreousError, shortened

USER_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, what shells expect


class Ending(NamedTuple):
    """How a command ends: what to say, and the exit code."""

    label: str
    problem: str
    fix: str
    code: int


class BoundaryGroup(TyperGroup):
    """The command group that turns errors a user can mend into one message.

    Usage errors (unknown commands and options) are left to typer, which words them well and exits with 2 too.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen verb; with ``--debug`` every error keeps its traceback."""
        debug = ctx.params.get("debug")
        try:
            with shown_warnings(debug):
                return super().invoke(ctx)
        except (VitreousError, KeyboardInterrupt, MemoryError, OSError, RuntimeError) as error:
            ending = None if debug else ending_of(error)
            if ending is None:
                raise
            say(ending)
            raise typer.Exit(ending.code) from error


@contextmanager
def shown_warnings(debug: bool = False) -> Iterator[None]:
    """Print warnings as one line each, unless somebody looks for the cause."""
    with warnings.catch_warnings():
        if not debug:
            warnings.showwarning = _show_warning
        yield


def ending_of(error: BaseException) -> Ending | None:
    """Return what to tell the user about ``error``, or None where it is a bug of ours."""
    if isinstance(error, VitreousError):
        return Ending("Error", error.problem, error.fix, USER_ERROR)
    if isinstance(error, KeyboardInterrupt):
        return Ending("Stopped", "Stopped.", str(error), INTERRUPTED)
    if _is_out_of_memory(error):
        return Ending(
            "Error",
            "There is not enough memory.",
            "Try a smaller --window or --batch-size, or close other programs.",
            USER_ERROR,
        )
    if isinstance(error, OSError):
        return _ending_of_os_error(error)
    return None


def _is_out_of_memory(error: BaseException) -> bool:
    # torch reports a failed CPU allocation as a plain RuntimeError, and must not be imported only to ask.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "not enough memory" in str(error))
    )


def _ending_of_os_error(error: OSError) -> Ending | None:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return Ending(
            "Error", "The disk is full.", "Free some space, or write elsewhere.", USER_ERROR
        )
    if error.errno == errno.EPIPE or error.filename is None:
        return None  # a closed pipe is typer's to end quietly; without a file it is no one's fault but ours
    problem = f"{error.filename}: {error.strerror}."
    return Ending("Error", problem, "Check the path and its permissions.", USER_ERROR)


def say(ending: Ending) -> None:
    """Print ``ending`` on stderr: the problem, then the way out."""
    message = Text()
    if ending.label == "Error":
        message.append("Error: ", style="bold red")
    message.append(ending.problem)
    if ending.fix:
        message.append("\n" + ending.fix, style="cyan")
    # Soft wrap: a path broken over two lines can be neither copied nor searched for.
    Console(stderr=True).print(message, soft_wrap=True, highlight=False)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning of ours as one line; libraries' own kinds of warnings are for developers."""
    if category is UserWarning:
        text = Text.assemble(("Warning: ", "bold yellow"), shortened(str(message)))
        Console(stderr=True).print(text, soft_wrap=True, highlight=False)
