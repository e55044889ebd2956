"""Recorded results as the pages need them: figures, tables and verdicts of benchmarks and reproductions.

A record, ``reproductions/results/<slug>.json`` (``<slug>.<data>.json`` where it was measured on other data than the
built-in ones) or ``benchmarks/results/<name>.json``, is one object:

    {"title": "...", "command": "what made it", "machine": "...", "date": "YYYY-MM-DD", "versions": {...},
     "rows": [{"column": value, ...}, ...], "conclusion": "in words, also where a claim does not hold",
     "claims": [{"text", "effect", "low", "high", "required", "at_least", "unit", "verdict", ...}, ...],  where there are
         any: see src/vitreous/catalog/claims.py; "required" and "verdict" are null where nothing is claimed
     "runs": [...]}                                                                  what each seed gave, for other plots
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from plots import Claim, Value, claims_plot, values_plot

ROOT = Path(__file__).resolve().parents[1]
REPRODUCTIONS = ROOT / "reproductions" / "results"
BENCHMARKS = ROOT / "benchmarks" / "results"
BUILT_IN_SCENE = "Indian Pines"
MEAN_AND_SPREAD = re.compile(r"^(-?[\d.]+) ± ([\d.]+)$")
MOST_VALUES = 32  # rows of one plot
Row = dict[str, Any]


@dataclass(frozen=True)
class Record:
    """One recorded result.

    Attributes:
        name: the file's name without its suffix.
        data: what it was measured on where that is not built in, from the file's name.
        content: the object in the file.
    """

    name: str
    data: str
    content: dict[str, Any]

    @property
    def rows(self) -> list[Row]:
        """The table that sums up the runs."""
        return list(self.content["rows"])

    @property
    def toy(self) -> bool:
        """Whether it was measured on small synthetic images or digits rather than on real scenes or photographs."""
        return not self.data and BUILT_IN_SCENE not in self.content["title"]

    @property
    def title(self) -> str:
        """What was asked, without the system's name; toy data are named as such."""
        title = str(self.content["title"]).removeprefix(f"{self.name.partition('.')[0]}: ")
        if self.data and self.data.lower() not in title.lower():
            title = f"{title} ({self.data})"
        if self.toy:
            return f"Toy data: {title.replace('(toy: ', '(')}"
        return title[:1].upper() + title[1:]

    @property
    def claims(self) -> list[Claim]:
        """Effects with what was required of them, where they were recorded."""
        return [
            Claim(
                text=claim["text"],
                effect=claim["effect"],
                required=claim.get("required"),
                at_least=claim.get("at_least", True),
                interval=_interval(claim),
                unit=claim.get("unit") or "",
                verdict=claim.get("verdict") or "",
                signed=claim.get("signed"),
                digits=claim.get("digits"),
            )
            for claim in self.content.get("claims", [])
        ]

    @property
    def made(self) -> str:
        """What measured it, where and when."""
        content = self.content
        made = f"Recorded with `{content['command']}` on {content['machine']}, {content['date']}."
        if content["command"].startswith("vitreous reproduce") and not self.claims:
            made += (
                " An earlier record: one setting per arm, few seeds, and verdicts without intervals. It will be replaced"
                " by a full run."
            )
        return made

    def plot(self) -> str | None:
        """Return the figure of a reproduction: its claims, or what each arm reached; None where there is nothing to draw."""
        if self.claims:
            return claims_plot(self.claims, f"{self.title}: measured effects and what is required")
        return arms_plot(self.rows, self.title)

    def verdicts(self) -> str:
        """Count what holds, in words."""
        if self.claims:
            found = [claim.verdict for claim in self.claims]
        else:
            found = re.findall(r"\b(does not hold|not decided|holds)\b", self.content["conclusion"])
        counts = {word: found.count(word) for word in ("holds", "does not hold", "not decided")}
        words = {"holds": "hold", "does not hold": "do not hold", "not decided": "not decided"}
        return ", ".join(
            f"{count} {word if count == 1 else words[word]}"
            for word, count in counts.items()
            if count
        )


def _interval(claim: Row) -> tuple[float, ...]:
    low, high = claim.get("low"), claim.get("high")
    return () if low is None or high is None else (low, high)


@cache
def read(path: Path) -> Record:
    """Read a record."""
    name, _, data = path.stem.partition(".")
    return Record(name, data, json.loads(path.read_text(encoding="utf-8")))


def reproductions(slug: str | None = None) -> list[Record]:
    """Return the reproductions of a system, or all; those on real data that are not built in come first."""
    every = (read(path) for path in REPRODUCTIONS.glob("*.json"))
    own = [record for record in every if slug in (None, record.name)]
    return sorted(own, key=lambda record: (record.name, not record.data, record.toy, record.data))


def benchmark(name: str) -> Record | None:
    """Return a benchmark, None where it is not recorded."""
    path = BENCHMARKS / f"{name}.json"
    return read(path) if path.is_file() else None


def benchmarks() -> list[Record]:
    """Return all benchmarks."""
    return [read(path) for path in sorted(BENCHMARKS.glob("*.json"))]


def mean_and_spread(cell: Any) -> tuple[float, float] | None:
    """Read a cell such as ``82.60 ± 1.20``; None where it is another."""
    found = MEAN_AND_SPREAD.match(str(cell))
    return (float(found[1]), float(found[2])) if found else None


def half_interval(spread: float, count: int) -> float | None:
    """Return half the width of the 95 % t interval of a mean; None for a single run."""
    if count < 2:
        return None
    from scipy.special import stdtrit

    return float(stdtrit(count - 1, 0.975)) * spread / math.sqrt(count)


def value(label: str, cell: Any, count: int, series: int = 0) -> Value | None:
    """Return a row of a plot from a cell over ``count`` seeds; None where it holds no number."""
    found = mean_and_spread(cell)
    if found is None:
        try:
            return Value(label, float(cell), series=series)
        except (TypeError, ValueError):
            return None
    half = half_interval(found[1], count)
    if half is None:
        return Value(label, found[0], series=series)
    return Value(label, found[0], found[0] - half, found[0] + half, series)


def arms_plot(rows: Sequence[Row], title: str) -> str | None:
    """Plot the first column of means over the arms, with 95 % t intervals where several seeds were run."""
    columns = [key for row in rows for key, cell in row.items() if mean_and_spread(cell)]
    if not columns:
        return None
    column = columns[0]
    own = [row for row in rows if row.get(column) is not None][:MOST_VALUES]
    places = list(own[0])
    named = (
        [key for key in places[: places.index("seeds")] if key != column]
        if "seeds" in places
        else places[:1]
    )
    first, last = named[0], named[-1]
    groups: dict[str, list[Value]] = {}
    grouped = len(named) > 1 and _runs_of(own, first) < len(own)
    for row in own:
        rest = named[1:] if grouped else named
        label = ", ".join(
            _words(key, row[key], key == last) for key in rest if row.get(key) not in (None, "")
        )
        found = value(label, row[column], int(row.get("seeds") or 1))
        if found:
            groups.setdefault(_heading(first, row[first]) if grouped else "", []).append(found)
    drawn = list(groups.items())
    return values_plot(drawn, title, f"{column.replace(' %', ' (%)')}, mean and 95 % interval")


def _runs_of(rows: Sequence[Row], column: str) -> int:
    return len({str(row.get(column)) for row in rows})


def _heading(column: str, cell: Any) -> str:
    return str(cell) if isinstance(cell, str) else f"{column}: {cell}"


def _words(column: str, cell: Any, last: bool) -> str:
    return str(cell) if isinstance(cell, str) else f"{cell} {column}"


def table(rows: Iterable[Row]) -> str:
    """Return ``rows`` as a Markdown table; its columns are all keys, in the order of their first use."""
    rows = list(rows)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [
        columns,
        ["---"] * len(columns),
        *([_cell(row.get(key)) for key in columns] for row in rows),
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def tables(rows: Iterable[Row]) -> str:
    """Return rows as one table, or as several where they begin to be about something else."""
    parts: list[list[Row]] = []
    for row in rows:
        if not parts or 2 * len(row.keys() & parts[-1][0].keys()) < len(row):
            parts.append([])
        parts[-1].append(row)
    return "\n".join(table(part) for part in parts)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:g}" if abs(value) < 10_000 else f"{value:,.0f}"
    if isinstance(value, dict):
        return inline(value)
    return str(value).replace("|", "\\|").replace("\n", " ")


def inline(arguments: dict[str, Any]) -> str:
    """Return arguments as one writes them."""
    return ", ".join(f"{name}={value}" for name, value in arguments.items())


def folded(summary: str, text: str) -> str:
    """Return text that is shown on demand, on GitHub and on the site."""
    return f'<details markdown="1">\n<summary>{summary}</summary>\n\n{text.strip()}\n\n</details>\n'
