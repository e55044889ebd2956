"""Damaged and hostile files of every kind that is read, and what becomes of each: a scene, a message, or a fault.

Mutant number k of a kind is always the same. Mutants are read in a process of their own, whose memory and processor time are
limited, so that a crash inside a library, an endless loop and a huge allocation are seen and counted too:

    python tests/fuzzing.py envi:0:500 [KIND:FIRST:END ...]     one line per mutant: kind, number, outcome

``benchmarks/fuzz.py`` records many of them, ``tests/scenes/test_fuzz_readers.py`` tries a few.
"""

from __future__ import annotations

import importlib
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
EXTRA_MEMORY = 1_500_000_000  # bytes of address space beyond what the imports need
CPU_SECONDS = float(os.environ.get("FUZZING_SECONDS", 20))  # for one file of a few kilobytes
WALL_SECONDS = 300  # on a busy machine
REACH = 20_000  # bytes of a file in which mutations begin

OPENED, WORDS, APART, CRASH, HANG, MEMORY = "opened", "words", "apart", "crash", "hang", "memory"
EXCEPTION = "exception"  # followed by its name


class Outcome(NamedTuple):
    """What became of a mutant: one of the words above, and details of a fault."""

    kind: str
    number: int
    what: str
    details: str = ""


class Kind(NamedTuple):
    """A kind of input.

    Attributes:
        make: writes an intact one into a folder, and returns what is opened.
        use: opens and reads it.
        apart: libhdf5 crashes and loops without end on some damaged files; what does so must end with a message
            where it is read as ``--untrusted`` does.
    """

    make: Callable[[Path], Path]
    use: Callable[[Path, bool], None]
    apart: bool = False


def kinds() -> dict[str, Kind]:
    """Return all kinds by name."""
    sys.path[:0] = [str(HERE), str(HERE / "scenes")]
    if os.environ.get("FUZZING_FAULTS"):  # whether faults are seen
        return {"faults": Kind(_numbered, _at_fault)}
    corpus = importlib.import_module("fuzz_corpus")
    found: dict[str, Kind] = corpus.KINDS
    return found


def _numbered(folder: Path) -> Path:
    (folder / "intact").write_text("a")
    return folder / "intact"


def _at_fault(path: Path, apart: bool, calls: list[int] = []) -> None:  # noqa: B006
    """Do something else each time."""
    from vitreous.errors import SceneError

    calls.append(0)
    turn = len(calls) - 2 + int(os.environ.get("FUZZING_FIRST", 0))  # the first is the intact one
    if turn == 1:
        raise SceneError("It is damaged.", "Download it again.")
    if turn == 2:
        print(1 / 0)
    if turn == 3:
        os.kill(os.getpid(), signal.SIGSEGV)
    while turn == 4:
        pass
    if turn == 5:
        bytearray(2 * EXTRA_MEMORY)


def mutated(content: bytes, draw: random.Random) -> bytes:
    """Overwrite, cut, repeat or drop a few pieces; in text also whole words."""
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(max(1, min(len(content), REACH)))
        action = draw.choice(("bytes", "bytes", "word", "cut", "drop", "repeat"))
        if action == "bytes":
            patch = draw.choice(NASTY_BYTES) if draw.random() < 0.5 else draw.randbytes(draw.randint(1, 8))  # fmt: skip
            content = content[:at] + patch + content[at + len(patch) :]
        elif action == "word":
            ends = (k for k in range(at, min(len(content), at + 40)) if content[k : k + 1] in b' ,=]}\n<>"')  # fmt: skip
            content = content[:at] + draw.choice(NASTY_TEXT).encode() + content[next(ends, at) :]
        elif action == "cut":
            content = content[:at]
        elif action == "drop":
            content = content[:at] + content[at + draw.randint(1, 64) :]
        else:
            content = content[:at] + content[at : at + draw.randint(1, 64)] * 2 + content[at:]
    return content


NASTY_TEXT = ("", "-1", "0", "1", "nan", "1e999", str(2**31), str(2**64), "9" * 40, "{", "}", "[", '"', ",", "=", "\n", "null", "ü", "\x00", "<a>")  # fmt: skip
NASTY_BYTES = (b"\xff" * 4, b"\x00" * 8, b"\x7f" + b"\xff" * 7, b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80")  # fmt: skip


def edited_hdf5(path: Path, draw: random.Random) -> None:
    """Replace or drop attributes and arrays of an intact HDF5 file: what is wrong is well-formed."""
    import h5py
    import numpy as np

    values = (0, -1, 2**62, float("nan"), 1e300, "", "ü" * 3, b"\xff\xfe", "nm", np.zeros(0), np.zeros((2, 3)), np.full(3, np.nan), np.array([b"a", b"bc"]), h5py.Empty("f"), np.arange(6.0), np.bool_(True))  # fmt: skip
    with h5py.File(path, "r+") as file:
        for _ in range(draw.randint(1, 3)):
            names: list[str] = ["/"]
            file.visit(names.append)
            node = file[draw.choice(names)]
            keys = sorted(node.attrs)
            if keys and draw.random() < 0.6:
                key = draw.choice(keys)
                del node.attrs[key]
                if draw.random() < 0.8:
                    node.attrs[key] = draw.choice(values)
            elif node.name != "/":
                parent, name = node.parent, node.name
                del file[name]
                if draw.random() < 0.8:
                    parent[name.rpartition("/")[2]] = draw.choice(values)


def mutate(folder: Path, name: str, number: int) -> None:
    """Damage one of the files in a folder, always in the same way."""
    draw = random.Random(f"{name} {number}")
    files = sorted(
        (path for path in folder.rglob("*") if path.is_file()), key=lambda p: (p.stat().st_size, p)
    )
    victim = draw.choice(files)
    if victim.read_bytes()[:8] == b"\x89HDF\r\n\x1a\n" and draw.random() < 0.4:
        edited_hdf5(victim, draw)
    else:
        victim.write_bytes(mutated(victim.read_bytes(), draw))


def put(contents: dict[Path, bytes], folder: Path) -> None:
    """Write files."""
    for part, content in contents.items():
        (folder / part).parent.mkdir(parents=True, exist_ok=True)
        (folder / part).write_bytes(content)


def taken(folder: Path) -> dict[Path, bytes]:
    """Return the files of a folder."""
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def tried(kind: Kind, path: Path, apart: bool) -> str:
    """Use one mutant and say what came of it."""
    from vitreous.errors import VitreousError

    try:
        kind.use(path, apart)
    except VitreousError as error:
        return WORDS if error.problem else f"{EXCEPTION} an empty message"
    except MemoryError:
        return MEMORY
    except Exception as error:
        frame = error.__traceback__
        while frame and frame.tb_next:
            frame = frame.tb_next
        where = f"{Path(frame.tb_frame.f_code.co_filename).name}:{frame.tb_lineno}" if frame else ""
        return (
            f"{EXCEPTION} {type(error).__name__} in {where}: {' '.join(str(error).split())[:200]}"
        )
    return OPENED


def work(jobs: list[tuple[str, int, int]], apart: bool) -> None:
    """Try mutants, and print a line for each: first its kind and number, then what came of it."""
    every = kinds()
    warnings.simplefilter("ignore")
    seeds: dict[str, tuple[dict[Path, bytes], Path]] = {}
    for name, _, _ in jobs:
        with tempfile.TemporaryDirectory() as folder:
            opened = every[name].make(Path(folder))
            every[name].use(opened, apart)  # what is imported late comes before the limit
            seeds[name] = taken(Path(folder)), opened.relative_to(folder)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + EXTRA_MEMORY, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for name, first, end in jobs:
        os.environ["FUZZING_FIRST"] = str(first)
        contents, opened = seeds[name]
        for number in range(first, end):
            print(f"{name} {number}", end=" ", flush=True)
            with tempfile.TemporaryDirectory() as folder:
                put(contents, Path(folder))
                mutate(Path(folder), name, number)
                # The usual end of a process by these signals shows outside; handlers would wait for the library.
                signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
                signal.alarm(WALL_SECONDS)
                outcome = tried(every[name], Path(folder) / opened, apart)
                signal.setitimer(signal.ITIMER_PROF, 0)
                signal.alarm(0)
            print(outcome, flush=True)


def survey(jobs: Iterable[tuple[str, int, int]], apart: bool = False) -> Iterator[Outcome]:
    """Yield what becomes of mutants, in the order of the jobs; what ends their process is an outcome too.

    Args:
        jobs: kind, first number, and the one after the last.
        apart: read them as ``--untrusted`` does.
    """
    waiting = [job for job in jobs if job[1] < job[2]]
    while waiting:
        words = [":".join(map(str, job)) for job in waiting]
        command = [sys.executable, __file__, *(["--apart"] if apart else []), *words]
        env = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        at: tuple[str, int] | None = None
        with (
            tempfile.TemporaryFile("w+") as errors,
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, env=env
            ) as process,
        ):
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    name, number, what, *details = line.rstrip("\n").split(" ", 3) + [""] * 2
                    at = (name, int(number)) if what else (name, int(number) - 1)
                    if what:
                        yield Outcome(name, int(number), what, details[0])
            finally:
                process.kill() if process.poll() is None and at is None else None
            code = process.wait()
            errors.seek(0)
            said = errors.read()[-3000:]
        if code == 0:
            return
        if code not in {-signal.SIGPROF, -signal.SIGALRM, -signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS, -signal.SIGFPE, -signal.SIGILL}:  # fmt: skip
            raise RuntimeError(f"Fuzzing ended with {code}: {said}")
        waiting = _behind(waiting, at)
        name, number, end = waiting[0]
        waiting[0] = (name, number + 1, end)
        what = HANG if code in {-signal.SIGPROF, -signal.SIGALRM} else CRASH
        if kinds()[name].apart and not apart:
            (again,) = survey([(name, number, number + 1)], apart=True)
            what = APART if again.what in {WORDS, OPENED} else what
        yield Outcome(name, number, what, signal.Signals(-code).name)
        waiting = [job for job in waiting if job[1] < job[2]]


def _behind(
    jobs: list[tuple[str, int, int]], at: tuple[str, int] | None
) -> list[tuple[str, int, int]]:
    """The jobs that are left after the last mutant that was answered."""
    if at is None:
        return jobs
    names = [job[0] for job in jobs]
    rest = jobs[names.index(at[0]) :]
    rest[0] = (rest[0][0], at[1] + 1, rest[0][2])
    return [job for job in rest if job[1] < job[2]]


if __name__ == "__main__":
    arguments = [word for word in sys.argv[1:] if word != "--apart"]
    parsed = [word.split(":") for word in arguments]
    work([(name, int(first), int(end)) for name, first, end in parsed], "--apart" in sys.argv)
