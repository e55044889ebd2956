"""Write what the documentation says about systems and measurements from cards, settings and recorded results.

Three kinds of text are made: sections between ``<!-- generated: NAME -->`` and ``<!-- end -->`` in README.md and
docs/*.md, the page of every system in docs/systems/, and plots in docs/figures/. Run this after a card, a setting or a
result has changed; variants whose arguments have changed are counted anew (docs/costs.py). With ``--check`` nothing is
written, and the exit code is 1 where something is out of date.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import benchmark_plots
import costs
import records
import system_pages
from records import ROOT, Record, folded, inline, table, tables

from vitreous.catalog.lookup import load
from vitreous.catalog.tasks import TASKS
from vitreous.data.degradations import KINDS
from vitreous.recipe import Settings
from vitreous.scenes.products import products_table

DOCS = ROOT / "docs"
SECTION = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
WHOLE = ("systems", "figures")  # folders that hold nothing else
OWN_PAGE = {
    "leaderboard": "leaderboard.md",
    "compression": "compression.md",
    "integers": "compression.md",
    "fuzz": "scenes.md",
    "recognition": "recognition.md",
    "image_reading": "recognition.md",
}
BENCHMARK_ORDER = (
    "accuracy",
    "leaderboard",
    "dense_map",
    "map_speed",
    "token_reduction",
    "compression",
    "integers",
    "recognition",
    "image_reading",
)


def written() -> dict[Path, str]:
    """Return every file that is made here, with what it should hold."""
    files = {
        **system_pages.pages(),
        **benchmark_plots.figures(),
        "figures/cost.svg": system_pages.cost_plot(),
    }
    whole = {DOCS / name: text for name, text in files.items()}
    return {**{page: rewrite(page.read_text(encoding="utf-8")) for page in pages()}, **whole}


def pages() -> list[Path]:
    """Return the files that may hold generated sections."""
    return [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]


def rewrite(text: str) -> str:
    """Return ``text`` with every section made anew."""
    return SECTION.sub(lambda found: f"{found[1]}\n{SECTIONS[found[2]]()}\n{found[3]}", text)


def settings_table(kind: type[Settings]) -> str:
    """One table of settings per panel, from a recipe's fields."""
    panels: dict[str, list[dict[str, Any]]] = {}
    for name, field in kind.fields().items():
        extra = field.json_schema_extra
        panel = str(extra["panel"]) if isinstance(extra, dict) else "Other"
        panels.setdefault(panel, []).append(
            {
                "setting": f"`{name}`",
                "default": _default(field.default),
                "what it does": field.description,
            }
        )
    return "\n".join(f"### {panel}\n\n{table(rows)}" for panel, rows in panels.items())


def _default(value: Any) -> str:
    if value is None or value == {}:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(value) if isinstance(value, list) else f"{value}"


def degradations() -> str:
    """One line per degradation."""
    rows = []
    for name, kind in KINDS.items():
        settings = {field.name: _shown(field.default) for field in fields(kind)}
        about = str(kind.__doc__).partition("\n")[0]
        rows.append(
            {"degradation": f"`{name}`", "what it does": about, "settings": inline(settings)}
        )
    return table(rows)


def _shown(value: Any) -> str:
    """Return a setting of a degradation as one writes it."""
    if isinstance(value, tuple):
        return ",".join(_shown(part) for part in value)
    return f"{value:.3g}"


def reproductions() -> str:
    """Which claims hold, by system."""
    rows = [
        {
            "system": f"[{record.name}](systems/{record.name}.md)",
            "what was tested": record.title,
            "verdicts": record.verdicts(),
        }
        for record in records.reproductions()
    ]
    return table(rows) if rows else "Nothing has been recorded yet.\n"


def benchmarks() -> str:
    """Every benchmark: its plot first, the table behind it."""
    order = {name: place for place, name in enumerate(BENCHMARK_ORDER)}
    found = sorted(records.benchmarks(), key=lambda record: order.get(record.name, len(order)))
    return "\n".join(_benchmark(record) for record in found)


def _benchmark(record: Record) -> str:
    own = OWN_PAGE.get(record.name)
    if own:
        plot = next(iter(_plots(record)), "")
        return f"### {record.content['title']}\n\n{plot}Tables and details: [{own.removesuffix('.md')}]({own}).\n"
    return f"### {record.content['title']}\n\n{_result(record)}"


def result(name: str) -> str:
    """One benchmark for a page of its own: plots, conclusion, table."""
    record = records.benchmark(name)
    return _result(record) if record else "Nothing has been recorded yet.\n"


def _result(record: Record) -> str:
    plots = "".join(_plots(record))
    rows = tables(record.rows)
    if plots or len(record.rows) > 8:
        rows = folded("Table", rows)
    return f"{plots}{record.content['conclusion']}\n\n{rows}\n{record.made}\n"


def _plots(record: Record) -> list[str]:
    return [
        f"![{record.content['title']}: {name}](figures/benchmark-{name}.svg)\n\n"
        for name in benchmark_plots.drawn(record)
    ]


def _is_method(card: Any) -> bool:
    return bool(card.kind == "method")


SECTIONS: dict[str, Callable[[], str]] = {
    "systems_table": partial(
        system_pages.short_table, lambda card: not _is_method(card), "docs/systems/"
    ),
    "methods_table": partial(system_pages.short_table, _is_method, "docs/systems/"),
    "methods": partial(system_pages.short_table, _is_method, "systems/"),
    "systems_index": system_pages.index_table,
    **{
        f"{task.verb}_settings": partial(settings_table, load(task.recipe))
        for task in TASKS.values()
    },
    "degradations": degradations,
    "products": products_table,
    "compression": partial(result, "compression"),
    "integers": partial(result, "integers"),
    "leaderboard": partial(result, "leaderboard"),
    "fuzz": partial(result, "fuzz"),
    "recognition": partial(result, "recognition"),
    "image_reading": partial(result, "image_reading"),
    "reproductions": reproductions,
    "benchmarks": benchmarks,
}


def main(check: bool) -> int:
    """Rewrite what is out of date, or only say what is."""
    uncounted = costs.stale()
    if uncounted and check:
        print(f"docs/costs.json lacks {', '.join(uncounted)}: run docs/generate.py")
        return 1
    if uncounted:
        costs.main()
    wanted = written()
    existing = {path for folder in WHOLE for path in (DOCS / folder).glob("*.*")}
    stale = [path for path, text in wanted.items() if not _holds(path, text)]
    left_over = sorted(existing - set(wanted))
    for path in [*stale, *left_over]:
        print(
            path.relative_to(ROOT), "is out of date: run docs/generate.py" if check else "updated"
        )
    if not check:
        for path in stale:
            path.parent.mkdir(exist_ok=True)
            path.write_text(wanted[path], encoding="utf-8")
        for path in left_over:
            path.unlink()
    return int(check and bool(stale or left_over))


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
