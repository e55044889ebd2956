"""Rewrite the generated sections of README.md and docs/*.md from what the code and the results say.

A section stands between ``<!-- generated: NAME -->`` and ``<!-- end -->``. Run this after a card, a setting or a
result has changed; with ``--check`` nothing is written, and the exit code is 1 where a section is out of date.

A result, ``reproductions/results/<slug>.json`` or ``benchmarks/results/<name>.json``, is one object:

    {"title": "...", "command": "what made it", "machine": "...", "date": "YYYY-MM-DD",
     "rows": [{"column": value, ...}, ...], "conclusion": "in words, also where a claim does not hold"}
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from vitreous.catalog.card import Card
from vitreous.catalog.registry import STAGES, cards, stage
from vitreous.data.degradations import KINDS
from vitreous.recipe import PretrainRecipe, Recipe, RestoreRecipe, Settings

ROOT = Path(__file__).resolve().parents[1]
SECTION = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def pages() -> list[Path]:
    """Return the files that may hold generated sections."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def rewrite(text: str) -> str:
    """Return ``text`` with every section made anew."""
    return SECTION.sub(lambda found: f"{found[1]}\n{SECTIONS[found[2]]()}\n{found[3]}", text)


def methods_table() -> str:
    """One line per method, in the order of the stages."""
    own = [card for card in cards() if card.kind == "method"]
    rows = [
        {
            "stage": stage(card.slug),
            "method": f"`{card.slug}`",
            "what it does": card.summary,
            "when to pick it": card.when,
            "serves": "all" if card.models == ["*"] else ", ".join(f"`{m}`" for m in card.models),
            "variants": ", ".join(f"`{name}`" for name in card.variants),
        }
        for card in sorted(own, key=lambda card: STAGES.index(stage(card.slug)))
    ]
    return table(rows)


def systems_table() -> str:
    """One line per system that is trained."""
    rows = [
        {
            "system": f"`{card.slug}`",
            "kind": card.kind,
            "what it is": card.summary,
            "when to pick it": card.when,
            "variants": ", ".join(f"`{name}`" for name in card.variants),
        }
        for card in cards()
        if card.kind != "method"
    ]
    return table(rows)


def system_pages() -> str:
    """Everything on every card."""
    return "\n".join(_page(card) for card in cards())


def _page(card: Card) -> str:
    about = [f"## {card.slug}\n", f"**{card.title}**\n", f"{card.summary} {card.when}\n"]
    if card.paper:
        about.append(f"- Paper: {card.paper}" + (f" ({card.year})" if card.year else ""))
    if card.source_licence:
        about.append(f"- Licence of the authors' code: {card.source_licence}")
    if card.tasks:
        about.append(f"- Tasks: {', '.join(card.tasks)}")
    if card.claim:
        about.append(f"- Claim: {card.claim}")
    if card.miniature:
        about.append(f"- Held up to measurement here: {card.miniature}")
    about += [f"- {note}" for note in card.notes]
    if card.variants:
        variants = [
            {"variant": f"`{name}`", "arguments": _inline(kw)} for name, kw in card.variants.items()
        ]
        about.append("\n" + table(variants))
    if card.published:
        about.append("\n" + table(card.published))
    return "\n".join(about) + "\n"


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


def degradations() -> str:
    """One line per degradation."""
    rows = []
    for name, kind in KINDS.items():
        settings = {field.name: _shown(field.default) for field in fields(kind)}
        about = str(kind.__doc__).partition("\n")[0]
        rows.append(
            {"degradation": f"`{name}`", "what it does": about, "settings": _inline(settings)}
        )
    return table(rows)


def _shown(value: Any) -> str:
    """Return a setting of a degradation as one writes it."""
    if isinstance(value, tuple):
        return ",".join(_shown(part) for part in value)
    return f"{value:.3g}"


def reproductions() -> str:
    """What the reproductions measured."""
    return results(ROOT / "reproductions" / "results")


def benchmarks(names: str = "*.json") -> str:
    """What the benchmarks measured."""
    return results(ROOT / "benchmarks" / "results", names)


def results(folder: Path, names: str = "*.json") -> str:
    """Return results of a folder as tables with the command that made them."""
    parts = []
    for path in sorted(folder.glob(names)):
        result = json.loads(path.read_text(encoding="utf-8"))
        made = f"Made by `{result['command']}` on {result['machine']}, {result['date']}."
        rows = "\n".join(table(part) for part in _alike(result["rows"]))
        parts.append(f"### {result['title']}\n\n{rows}\n{result['conclusion']}\n\n{made}\n")
    return "\n".join(parts) or "Nothing has been measured yet.\n"


def _alike(rows: Iterable[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Divide rows where they begin to be about something else: less than half of their columns stay."""
    parts: list[list[dict[str, Any]]] = []
    for row in rows:
        if not parts or 2 * len(row.keys() & parts[-1][0].keys()) < len(row):
            parts.append([])
        parts[-1].append(row)
    return parts


def table(rows: Iterable[dict[str, Any]]) -> str:
    """Return ``rows`` as a Markdown table; its columns are all keys, in the order of their first use."""
    rows = list(rows)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [
        columns,
        ["---"] * len(columns),
        *([_cell(row.get(key)) for key in columns] for row in rows),
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:g}" if abs(value) < 10_000 else f"{value:,.0f}"
    return str(value).replace("|", "\\|").replace("\n", " ")


def _inline(arguments: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in arguments.items())


def _default(value: Any) -> str:
    if value is None or value == {}:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(value) if isinstance(value, list) else f"{value}"


SECTIONS: dict[str, Callable[[], str]] = {
    "methods_table": methods_table,
    "systems_table": systems_table,
    "system_pages": system_pages,
    "settings_table": partial(settings_table, Recipe),
    "restore_settings": partial(settings_table, RestoreRecipe),
    "pretrain_settings": partial(settings_table, PretrainRecipe),
    "degradations": degradations,
    "compression": partial(benchmarks, "compression.json"),
    "integers": partial(benchmarks, "integers.json"),
    "leaderboard": partial(benchmarks, "leaderboard.json"),
    "reproductions": reproductions,
    "benchmarks": benchmarks,
}


def main(check: bool) -> int:
    """Rewrite all pages, or only say which are out of date."""
    stale = []
    for page in pages():
        text = page.read_text(encoding="utf-8")
        fresh = rewrite(text)
        if fresh == text:
            continue
        stale.append(page)
        if not check:
            page.write_text(fresh, encoding="utf-8")
    for page in stale:
        print(
            page.relative_to(ROOT), "is out of date: run docs/generate.py" if check else "rewritten"
        )
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
