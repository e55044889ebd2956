"""Read damaged files of every kind, and count what becomes of them: a scene, a message, or a fault.

Mutants are numbered (``tests/fuzzing.py``): a run goes on where the last one ended, and ``--again`` tries the faulty ones
once more. A thousand take about 20 seconds of one core, a hundred thousand about half an hour.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from _common import RESULTS, show

from vitreous.catalog.results import write_result
from vitreous.files import read_json

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import fuzzing
from fuzzing import Outcome

TOTAL = 100_000
PIECE = 200  # mutants of a kind between two records
COLUMNS = {
    fuzzing.OPENED: "opened",
    fuzzing.WORDS: "answered in words",
    fuzzing.APART: "in words only with --untrusted",
    fuzzing.EXCEPTION: "other exceptions",
    fuzzing.CRASH: "crashes",
    fuzzing.HANG: "over 20 s",
    fuzzing.MEMORY: "over 1.5 GB",
}
WELL = (fuzzing.OPENED, fuzzing.WORDS, fuzzing.APART)


class Tally:
    """Counts by kind and outcome, and the mutants at fault.

    Args:
        path: where they are recorded.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        recorded = read_json(path) if path.is_file() else {"counts": {}, "faults": []}
        self.counts: dict[str, dict[str, int]] = recorded["counts"]
        self.faults: list[list[Any]] = recorded["faults"]

    def tried(self, kind: str) -> int:
        """Return how many mutants of a kind are counted; they are the first ones."""
        return sum(self.counts.get(kind, {}).values())

    def add(self, outcome: Outcome) -> None:
        """Count an outcome."""
        row = self.counts.setdefault(outcome.kind, dict.fromkeys(COLUMNS, 0))
        row[outcome.what] += 1
        if outcome.what not in WELL:
            self.faults.append([*outcome])
            print(*outcome, flush=True)

    def forget(self, fault: list[Any]) -> None:
        """Take back a fault that is tried again."""
        self.counts[fault[0]][fault[2]] -= 1
        self.faults.remove(fault)

    def rows(self) -> list[dict[str, Any]]:
        """Return the table, with the sums in its last row."""
        named = [("all", self._sums()), *self.counts.items()]
        return [
            {"kind": kind, "tried": sum(row.values()), **{COLUMNS[k]: n for k, n in row.items()}}
            for kind, row in [*named[1:], named[0]]
        ]

    def _sums(self) -> dict[str, int]:
        return {what: sum(row[what] for row in self.counts.values()) for what in COLUMNS}

    def save(self) -> None:
        """Record what is known so far."""
        sums = self._sums()
        tried, faults = sum(sums.values()), sum(sums[what] for what in COLUMNS if what not in WELL)
        apart = f" ({sums[fuzzing.APART]:,} only with --untrusted)" if sums[fuzzing.APART] else ""
        write_result(
            self.path,
            title="Damaged files",
            command="python benchmarks/fuzz.py",
            rows=self.rows(),
            conclusion=f"{tried:,} damaged inputs of {len(self.counts)} kinds: {sums[fuzzing.OPENED]:,} opened, "
            f"{sums[fuzzing.WORDS] + sums[fuzzing.APART]:,} answered in words{apart}, {faults:,} at fault.",
            counts=self.counts,
            faults=self.faults,
        )


def rounds(tally: Tally, total: int) -> Iterable[list[tuple[str, int, int]]]:
    """Yield jobs, a piece of every kind at a time, until so many mutants are counted."""
    kinds = fuzzing.kinds()
    each = -(-total // len(kinds))
    for end in range(PIECE, each + PIECE, PIECE):
        jobs = [(name, tally.tried(name), min(end, each)) for name in kinds]
        yield [job for job in jobs if job[1] < job[2]]


def main() -> None:
    """Count, and record after every kind's piece."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--total", type=int, default=TOTAL, help="mutants of all kinds together")
    parser.add_argument("--again", action="store_true", help="try the faulty ones again")
    parser.add_argument("--out", type=Path, default=RESULTS / "fuzz.json")
    chosen = parser.parse_args()
    tally = Tally(chosen.out)
    if chosen.again:
        before = list(tally.faults)
        for outcome in fuzzing.survey([(kind, number, number + 1) for kind, number, *_ in before]):
            tally.forget(next(f for f in before if f[:2] == [outcome.kind, outcome.number]))
            tally.add(outcome)
        tally.save()
    for jobs in rounds(tally, chosen.total):
        for job in jobs:
            for outcome in fuzzing.survey([job]):
                tally.add(outcome)
            tally.save()
    show("Damaged files", tally.rows())


if __name__ == "__main__":
    main()
