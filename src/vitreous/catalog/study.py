"""A reproduction while it runs: which seeds it takes, what has been measured already, and where the result goes.

``vitreous reproduce SLUG`` takes a few seeds and at most ten minutes on two cores, and records nothing. ``--full``
takes all of them and is what is recorded. Every run of a full reproduction is kept as soon as it ends, in
``results/unfinished/``: a stopped one resumes there, as long as its settings are the same.
"""

from __future__ import annotations

import inspect
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from vitreous.catalog.claims import Claim, conclusion
from vitreous.catalog.results import write_result
from vitreous.files import read_json, write_json

SEARCH_SEED = 100  # on which settings are chosen; never one that is reported
Option = TypeVar("Option")
Data = TypeVar("Data")
Record = dict[str, Any]


class Study:
    """The runs of one reproduction.

    Args:
        script: the reproduction's file; its name is the system's slug.
        title: what is shown, in a few words.
        settings: everything that decides about the outcome of a run; recorded runs are kept while it is the same.
        quick: only check that everything runs: one seed, nothing is kept.
        full: all seeds; the result is recorded.
        data: folder of real images, where the reproduction takes one.
        seeds: how many of them a full reproduction takes.
        few: how many of them one takes that is neither quick nor full.

    Attributes:
        quick: as given; scripts make their networks, images and epochs few then.
        full: as given.
        seeds: the seeds to measure.
        records: all runs so far, of this and of an earlier start.
        searched: likewise those that settings were chosen by.
    """

    def __init__(
        self,
        script: str | Path,
        title: str,
        *,
        settings: Mapping[str, Any],
        quick: bool = False,
        full: bool = False,
        data: Path | None = None,
        seeds: int = 5,
        few: int = 2,
    ) -> None:
        self.slug = Path(script).stem
        self.quick, self.full = quick, full
        self.title, self.data = title, data
        self.seeds = range(1 if quick else seeds if full else few)
        # As JSON gives it back, so that it can be compared.
        self.settings: Record = json.loads(json.dumps(settings, sort_keys=True))
        name = self.slug if data is None else f"{self.slug}.{data.name}"
        folder = Path(script).parent / "results"
        self.result = folder / f"{name}.json"
        self._unfinished = folder / "unfinished" / f"{name}.json"
        self.records: list[Record] = []
        self.searched: list[Record] = []
        self._known = self._kept() if full else []

    def compare(
        self,
        systems: Sequence[str],
        options: Sequence[Option],
        data: Callable[[int], Data],
        measure: Callable[[str, int, Data, Option], Record],
    ) -> dict[str, Option]:
        """Choose an option for every system on validation data, then measure all of them on every seed.

        Args:
            systems: names, as in tables.
            options: what each may choose from, such as learning rates; nothing is searched where there is one.
            data: draws what a seed trains and tests on.
            measure: trains and scores a system, with the seed's data and an option; its record has the score
                ``validation`` where there is more than one option.

        Returns:
            The option of each system.
        """
        # Drawn when first needed: a study that goes on may need nothing of a seed.
        drawn = lru_cache(maxsize=1)(data)

        def measured(system: str, seed: int, option: Option) -> Record:
            return measure(system, seed, drawn(seed), option)

        chosen = dict.fromkeys(systems, options[0])
        if len(options) > 1:
            for system in systems:
                ways = {
                    option: partial(measured, system, SEARCH_SEED, option) for option in options
                }
                chosen[system] = self.best(ways, system=system)
        for seed in self.seeds:
            for system in systems:
                self.run(partial(measured, system, seed, chosen[system]), system=system, seed=seed)
        return chosen

    def run(self, measure: Callable[[], Record], *, system: str, seed: int, **which: Any) -> Record:
        """Measure one system on one seed, unless that is known from an earlier start.

        Args:
            measure: trains and scores it; what it returns is recorded.
            system: its name in tables.
            seed: of data, weights and order.
            which: what else tells runs apart, such as ``labels=5``.
        """
        record = self._once(measure, {"system": system, "seed": seed, **which})
        self.records.append(record)
        return record

    def group(self, measure: Callable[[], list[Record]], *, seed: int) -> list[Record]:
        """Measure all systems of a seed together, such as those that are made of one trained network.

        Args:
            measure: returns a record per system, named in ``system``.
            seed: of data, weights and order.
        """
        records = [record for record in self._known if record["seed"] == seed]
        if not records:
            began = time.perf_counter()
            records = [{"seed": seed, **record} for record in measure()]
            share = round((time.perf_counter() - began) / len(records), 2)
            self._keep([{**record, "seconds": share} for record in records])
            records = self._known[-len(records) :]
        self.records += records
        return records

    def best(
        self,
        options: Mapping[Option, Callable[[], Record]],
        *,
        system: str,
        score: str = "validation",
        **which: Any,
    ) -> Option:
        """Return the option with the highest score; every system is to be given as many.

        Args:
            options: what there is to choose from, and what trains with it and scores it on validation data, on a seed
                that is not reported; a quick reproduction takes the first.
            system: its name in tables.
            score: the name of the score.
            which: what else tells runs apart.
        """
        found: dict[Option, Record] = {}
        for option, measure in [*options.items()][: 1 if self.quick else None]:
            key = {"system": system, "seed": SEARCH_SEED, "option": option, **which}
            found[option] = self._once(measure, key)
        self.searched += found.values()
        return max(found, key=lambda option: float(found[option][score]))

    def finish(
        self,
        summary: Callable[..., list[Record]],
        claims: Callable[..., list[Claim]],
        *,
        on: str = "",
        remarks: Callable[..., list[str]] | None = None,
        **details: Any,
    ) -> None:
        """Say what was found, and record it where the reproduction is a full one.

        Args:
            summary: makes the table's rows of the records.
            claims: makes what the paper claims, as measured, of the records.
            on: the data, for the heading.
            remarks: makes sentences of what else is to be said.
            details: what else was measured. It is recorded, and given to the three functions where they have an
                argument of its name.
        """
        said = statement(summary, claims, remarks, self.records, details)
        title = f"{self.slug}: {self.title}" + (f" ({on})" if on else "")
        if self.full:
            data = f" --data {self.data.name}" if self.data else ""
            write_result(
                self.result,
                title=title,
                command=f"vitreous reproduce {self.slug} --full{data}",
                **said,
                settings=self.settings,
                seconds=round(sum(r["seconds"] for r in [*self.searched, *self.records]), 1),
                runs=self.records,
                searched=self.searched,
                **details,
            )
            self._unfinished.unlink(missing_ok=True)
        if not self.quick:
            _show(title, said["rows"], said["conclusion"])

    def _once(self, measure: Callable[[], Record], key: Record) -> Record:
        key = json.loads(json.dumps(key))
        for known in self._known:
            if key.items() <= known.items():
                return known
        began = time.perf_counter()
        record = {**key, **measure()}
        self._keep([{**record, "seconds": round(time.perf_counter() - began, 2)}])
        return self._known[-1]

    def _keep(self, records: list[Record]) -> None:
        """Remember what has been measured, in a full reproduction also for a later start."""
        for record in records:
            print(json.dumps(record), file=sys.stderr, flush=True)
        self._known += records
        if self.full:
            write_json(self._unfinished, {"settings": self.settings, "runs": self._known})

    def _kept(self) -> list[Record]:
        """Return the runs that were recorded with these settings, the unfinished ones and those of the result."""
        kept: list[Record] = []
        for path in (self._unfinished, self.result):
            recorded = read_json(path) if path.is_file() else {}
            if recorded.get("settings") == self.settings:
                kept += [*recorded["runs"], *recorded.get("searched", [])]
        return kept


def statement(
    summary: Callable[..., list[Record]],
    claims: Callable[..., list[Claim]],
    remarks: Callable[..., list[str]] | None,
    records: Sequence[Record],
    details: Mapping[str, Any],
) -> Record:
    """Return the table, the claims and the words that follow from what was measured; arguments as of ``finish``."""

    def made(function: Callable[..., Any]) -> Any:
        names = [*inspect.signature(function).parameters][1:]
        return function(records, **{name: details[name] for name in names})

    found = made(claims)
    return {
        "rows": made(summary),
        "claims": [claim.record() for claim in found],
        "conclusion": conclusion(found, *(made(remarks) if remarks else [])),
    }


def restate(script: ModuleType, result: Path) -> None:
    """Make a recorded result's table, claims and words again, from its runs, after the script has changed them."""
    recorded = read_json(result)
    said = statement(
        script.summary, script.claims, getattr(script, "remarks", None), recorded["runs"], recorded
    )
    write_json(result, {**recorded, **said})


def _show(title: str, rows: Sequence[Record], words: str) -> None:
    from rich.console import Console
    from rich.table import Table

    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*("" if row.get(key) is None else str(row[key]) for key in columns))
    console = Console()
    console.print(table)
    console.print(words, highlight=False, markup=False, soft_wrap=True)
