"""Processes that are killed at a chosen moment, or have a full disk: forks, which need not import everything anew."""

from __future__ import annotations

import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHANGES = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod"}


def _in_fork(work: Callable[[], str]) -> tuple[int, str]:
    """Run ``work`` in a fork of this process; return its wait status and what it returned or raised, as text."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(ours)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            try:
                said = work()
                status = 0
            except BaseException as error:
                said = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
            with os.fdopen(theirs, "w") as pipe:
                pipe.write(said)
        finally:
            os._exit(status)
    os.close(theirs)
    with os.fdopen(ours) as pipe:
        said = pipe.read()
    return os.waitpid(pid, 0)[1], said


def _watch(folder: Path, told: Callable[[], None]) -> None:
    """Call ``told`` before every change of a file in ``folder`` that this process makes."""
    place = str(folder.resolve())

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in CHANGES and any(
            str(word).startswith(place) for word in arguments if isinstance(word, str | Path)
        ):
            told()

    sys.addaudithook(hook)


def moments(call: Callable[[], object], folder: Path) -> int:
    """Return how many changes of files in ``folder`` a call makes, counted in a fork."""

    def work() -> str:
        count = 0

        def told() -> None:
            nonlocal count
            count += 1

        _watch(folder, told)
        call()
        return str(count)

    status, said = _in_fork(work)
    assert status == 0, said
    return int(said)


def killed_at(moment: int, call: Callable[[], object], folder: Path) -> None:
    """Run a call in a fork that is killed (SIGKILL) before its change number ``moment`` of a file in ``folder``."""

    def work() -> str:
        left = moment

        def told() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        _watch(folder, told)
        call()
        return "finished"

    status, said = _in_fork(work)
    assert os.WIFSIGNALED(status), said
    assert os.WTERMSIG(status) == signal.SIGKILL


def with_full_disk(limit: int, call: Callable[[], object]) -> str:
    """Run a call in a fork where no file may exceed ``limit`` bytes; return what it raised, as text, or ''."""

    def work() -> str:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        call()
        return ""

    return _in_fork(work)[1]


def hidden(folder: Path) -> list[str]:
    """Return the names of hidden files and folders."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(".*"))
