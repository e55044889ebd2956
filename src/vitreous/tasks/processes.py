"""Further processes that train a run with the first one, one per device.

Lightning would start the caller's script again, whatever it does before and after training. Here a further process does
nothing but train: it reads the recipe from the run folder that the first one has made, takes part, and ends. The first
one alone writes, maps and reports.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vitreous.errors import ConfigError, VitreousError

RUN_FOLDER = "VITREOUS_RUN_FOLDER"  # tells further processes which run they train
RANK = "LOCAL_RANK"
RESUME = "--resume"
FAILED = "One of the training's further processes has failed.", "See its message above."
POLL = 0.2  # seconds between two looks at them
PATIENCE = 10.0  # seconds that a further process may take to end


def is_helper() -> bool:
    """Tell whether this process was started to train a run with another one."""
    return RUN_FOLDER in os.environ and int(os.environ.get(RANK, "0")) > 0


@contextmanager
def kept_environment(**changes: str) -> Iterator[None]:
    """Set environment variables, and leave all of them as they were."""
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def helpers(count: int, *, resume: bool) -> Iterator[None]:
    """Train inside with some processes together, this one among them.

    Args:
        count: how many; of one there is nothing to do.
        resume: whether the training goes on from a state.

    Raises:
        ConfigError: there is no run folder from which further processes could learn what to do.
        VitreousError: one of them has failed.
    """
    if count == 1 or is_helper():
        yield
        return
    if RUN_FOLDER not in os.environ:
        raise ConfigError(
            f"{count} processes can only train a run.", "Use train(), or a single device."
        )
    words = [sys.executable, "-m", "vitreous.tasks.processes", *([RESUME] if resume else [])]
    # Lightning asks these, and starts no processes itself where the rank is known.
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "NODE_RANK": "0"}
    with kept_environment(**shared, **{RANK: "0"}):
        others = [
            subprocess.Popen(words, env={**os.environ, RANK: str(rank)}, stdout=subprocess.DEVNULL)
            for rank in range(1, count)
        ]
        done = threading.Event()
        threading.Thread(target=_watch, args=(others, done), daemon=True).start()
        try:
            yield
        except Exception as error:
            if any(other.poll() for other in others):
                raise VitreousError(*FAILED) from error
            raise
        finally:
            done.set()
            for other in others:
                _end(other)


def _watch(others: list[subprocess.Popen[bytes]], done: threading.Event) -> None:
    """End this process where it would wait for one that has failed.

    Mostly its next exchange with that one fails, which is an error like any other. But who waits for all to come
    together, or on a GPU, cannot be interrupted.
    """
    while not done.wait(POLL):
        if any(other.poll() for other in others):
            if not done.wait(PATIENCE):
                print(*FAILED, file=sys.stderr, flush=True)
                os._exit(2)
            return


def _end(other: subprocess.Popen[bytes]) -> None:
    """Let a process end, or end it."""
    try:
        other.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        other.kill()
        other.wait()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def main() -> None:
    """Train the run of the environment's folder with the process that made it."""
    from vitreous.catalog.lookup import load
    from vitreous.catalog.tasks import module_of, task_at
    from vitreous.tasks.runs import recipe_of

    folder = Path(os.environ[RUN_FOLDER])
    task = task_at(folder)
    recipe = recipe_of(folder, load(task.recipe))
    module_of(task).train(recipe, resume=RESUME in sys.argv, show=False)


if __name__ == "__main__":
    main()
