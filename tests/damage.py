"""Files from outside, damaged in every way that a seed draws: what reads them must say so, and say nothing else."""

from __future__ import annotations

import copy
import json
import random
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vitreous.checkpoints.tensors import load_tensors, save_tensors
from vitreous.errors import VitreousError

NOTHING = object()
VALUES = (
    NOTHING, None, True, False, -1, 0, 1, 3, 10**6, 10**18, 0.5, -2.5, 1e300, float("nan"),
    float("inf"), "", "x", "3", [], [3], [None], ["x"], {}, {"x": 1}, [[1, 2], [3]],
)  # fmt: skip
SEED = int(__import__("os").environ.get("FZ", "0"))
SECONDS = 5.0  # of one file; a sound one takes a fraction
MEBIBYTES = 400  # that reading a damaged file may add to this process


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every part of a JSON value; of lists the first and last items."""
    yield path
    if isinstance(value, dict):
        for key, part in value.items():
            yield from places(part, (*path, key))
    elif isinstance(value, list):
        for index in sorted({0, len(value) - 1} if value else ()):
            yield from places(value[index], (*path, index))


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """Return a copy with one part exchanged, or left out where ``new`` is ``NOTHING``."""
    if not path:
        return {} if new is NOTHING else new
    made = copy.deepcopy(value)
    parent = made
    for key in path[:-1]:
        parent = parent[key]
    if new is NOTHING:
        del parent[path[-1]]
    else:
        parent[path[-1]] = new
    return made


def drawn(value: Any, count: int, seed: int = 0) -> list[tuple[str, Any]]:
    """Return mutations of a JSON value, each with what was changed: every part at least once, then at random."""
    rng = random.Random(seed)
    paths = list(places(value))
    every = [(path, new) for path in paths for new in VALUES]
    chosen = [(path, rng.choice(VALUES)) for path in paths]
    chosen = rng.sample(chosen, min(len(chosen), count))
    chosen += rng.sample(every, min(len(every), max(0, count - len(chosen))))
    return [
        (f"{path} -> {'nothing' if new is NOTHING else repr(new)}", changed(value, path, new))
        for path, new in chosen
    ]


def only_told(call: Callable[[], object], what: str) -> bool:
    """Call; tell whether it was refused. Anything but a VitreousError, much time or much memory fails the test."""
    started = time.process_time()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        call()
        refused = False
    except VitreousError as error:
        assert error.problem, what
        refused = True
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
    assert time.process_time() - started < SECONDS, what
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < MEBIBYTES * 1024, f"{what}: {grown / 1024:.0f} MiB"
    return refused


def mutate_json(path: Path, count: int, call: Callable[[], object]) -> None:
    """Try mutations of a JSON file, and truncations of it."""
    text = path.read_text()
    refused = 0
    try:
        for what, value in drawn(json.loads(text), count, SEED):
            path.write_text(json.dumps(value))
            refused += only_told(call, f"{path.name} {what}")
        for length in (0, 1, len(text) // 2, len(text) - 2):
            path.write_text(text[:length])
            assert only_told(call, f"{path.name} cut to {length}")
    finally:
        path.write_text(text)
    assert refused > count / 20, f"{refused} of {count} mutations of {path.name} were noticed"
    assert not only_told(call, path.name)


def mutate_header(path: Path, count: int, call: Callable[[], object]) -> None:
    """Try mutations of the header of a safetensors file, and truncations of the file."""
    content = path.read_bytes()
    tensors, header = load_tensors(path, json.loads)
    refused = 0
    try:
        for what, value in drawn(header, count, SEED):
            save_tensors(path, tensors, value)
            refused += only_told(call, f"{path.name} {what}")
        for length in (0, 7, 100, len(content) - 1):
            path.write_bytes(content[:length])
            assert only_told(call, f"{path.name} cut to {length}")
    finally:
        path.write_bytes(content)
    assert refused > count / 4, f"{refused} of {count} mutations of {path.name} were noticed"
    assert not only_told(call, path.name)
