"""A bar for what takes longer than two seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn


@contextmanager
def progress_bar(
    title: str, console: Console | None = None
) -> Iterator[Callable[[int, int], None]]:
    """Show a bar while the block runs; what is yielded is called with (done, in all).

    Args:
        title: what is being done.
        console: where to draw it (standard error); nothing is drawn where it is no terminal.
    """
    console = console or Console(stderr=True)
    columns = (TextColumn(title), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
