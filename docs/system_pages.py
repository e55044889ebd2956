"""The page of every system, from its card and from what was recorded of it, and the tables that lead to them."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import costs
from plots import Point, scatter_plot
from records import Record, Row, benchmark, folded, inline, reproductions, table, tables

from vitreous.catalog.card import Card
from vitreous.catalog.kinds import KINDS
from vitreous.catalog.lookup import load
from vitreous.catalog.registry import STAGES, TRAINING_STAGES, cards, stage
from vitreous.catalog.tasks import TASKS

IMAGE_SIDE = costs.IMAGE["image_size"]
NOTE_HEADINGS = (
    "Usage",
    "Image size",
    "Checkpoints",
    "Differs from the reference",
    "As in the reference",
    "Not specified in the paper",
    "Published figures",
    "Not included",
)
Files = dict[str, str]  # below docs/, by their names


def pages() -> Files:
    """Return all pages of systems and the figures on them."""
    files: Files = {}
    for card in cards():
        figures = _figures(card)
        files.update(figures)
        files[f"systems/{card.slug}.md"] = page(card)
    return files


def _figures(card: Card) -> Files:
    drawn = {_figure_name(record): record.plot() for record in reproductions(card.slug)}
    return {f"figures/{name}": plot for name, plot in drawn.items() if plot}


def _figure_name(record: Record) -> str:
    return f"{'.'.join(part for part in (record.name, record.data) if part)}.svg"


def page(card: Card) -> str:
    """Return the page of a system."""
    parts = [_head(card), _use(card)]
    for heading, text in (
        ("Variants", _variants(card)),
        ("Claim", _claim(card)),
        ("Measured here", _measured(card)),
        ("Notes", _notes(card)),
        ("Source", _source(card)),
    ):
        if text:
            parts.append(f"## {heading}\n\n{text.strip()}\n")
    return (
        "<!-- Made by docs/generate.py: change the card or the recorded results instead. -->\n\n"
        + "\n".join(parts)
    )


STAGE_TITLES = {
    "distill": "distillation",
    "pretrain": "pre-training",
    "adapt": "adaptation",
    "prune": "pruning",
    "reduce": "token reduction",
    "robust": "robustness",
    "quantize": "quantization",
}


def kind_of(card: Card) -> str:
    """Return the kind of a system as readers call it; of a method its stage."""
    return STAGE_TITLES[stage(card.slug)] if card.kind == "method" else KINDS[card.kind].title


def tasks_of(card: Card) -> str:
    """Return what a system can be trained for."""
    return ", ".join(card.tasks)


def _head(card: Card) -> str:
    paper = f" · {linked(card.paper)}" if card.paper else ""
    return (
        f"# {card.slug}\n\n**{card.title}**{paper}\n\n"
        f"{kind_of(card).capitalize()} · {tasks_of(card)} · [all systems](../systems.md)\n\n"
        f"{card.summary}\n\n**When to pick it.** {card.when}\n"
    )


def linked(paper: str) -> str:
    """Return a reference with links to arXiv and to its DOI."""
    paper = re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", paper)
    return re.sub(r"(?<!/)\b(10\.\d{4,}/[\w.()-]+)", r"[doi:\1](https://doi.org/\1)", paper)


def _use(card: Card) -> str:
    variant = _smallest(card)
    if card.kind == "method":
        train = "vitreous train --scene scene.hdr --labels fields.gpkg \\\n   "
        if stage(card.slug) == "adapt":
            command = f"{train} --init RUN --adapt {card.slug}_only"
        elif stage(card.slug) == "distill":
            command = f"{train} --model vit_tiny_distilled --teacher RUN --distill {variant}"
        else:
            command = f"vitreous compress RUN --method {variant}"
    else:
        task = TASKS[card.tasks[0]]
        labels = " --labels fields.gpkg \\\n   " if "labels" in load(task.recipe).fields() else ""
        command = f"vitreous {task.verb} --scene scene.hdr{labels} --model {variant}"
    served = ""
    if card.kind == "method":
        served = f"\nApplies to {serves(card)}.\n"
    return f"```sh\n{command}\n```\n{served}"


def serves(card: Card) -> str:
    """Return the systems that a method can be applied to, linked."""
    if card.models == ["*"]:
        return "every architecture"
    slugs = [
        entry.slug
        for entry in cards()
        if entry.kind == "model"
        and any(fnmatch.fnmatch(name, p) for name in entry.variants for p in card.models)
    ]
    return ", ".join(f"[{slug}]({slug}.md)" for slug in slugs)


def _smallest(card: Card) -> str:
    counted = costs.recorded()
    names = [name for name in card.variants if not name.endswith("_test")]
    return min(names, key=lambda name: counted.get(name, {}).get("parameters", 0))


def _variants(card: Card) -> str:
    names = [name for name in card.variants if not name.endswith("_test")]
    arguments = [
        {"variant": f"`{name}`", "arguments": inline(card.variants[name]) or "defaults"}
        for name in names
    ]
    counted = costs.recorded()
    if not set(names) & set(counted):
        return table(arguments)
    own = {name: counted[name] for name in names if name in counted}
    inputs = {(c["bands"], c["image_size"], c.get("num_classes")) for c in own.values()}
    rows = [_cost_row(card, name, cost, len(inputs) > 1) for name, cost in own.items()]
    about = "Counted by `docs/costs.py` without building weights"
    about += (
        f", for {_shape(next(iter(own.values())))}"
        if len(inputs) == 1
        else "; input: bands x rows x columns"
    )
    return f"{table(rows)}\n{about}.\n\n{folded('Constructor arguments', table(arguments))}"


def _cost_row(card: Card, name: str, cost: dict[str, Any], with_input: bool) -> Row:
    row: Row = {
        "variant": f"`{name}`",
        "parameters": short(cost["parameters"]),
        "multiply-adds": short(cost["macs"]),
    }
    if with_input:
        row["input"] = "\u00a0x\u00a0".join(
            str(cost[key]) for key in ("bands", "image_size", "image_size")
        )
    found = [
        p["top1"]
        for p in card.published
        if p.get("variant") == name
        and "top1" in p
        and not {"arguments", "source"} & set(p)
        and p.get("image_size", cost["image_size"]) == cost["image_size"]
    ]
    if found:
        row["ImageNet top-1 % (published)"] = found[0]
    return row


def _shape(cost: dict[str, Any]) -> str:
    side = cost["image_size"]
    classes = f", {cost['num_classes']} classes" if cost.get("num_classes") else ""
    return f"{cost['bands']} bands, {side} x {side} pixels{classes}"


def short(count: float) -> str:
    """Return a count with a unit: 28.6 M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}\u00a0{unit}"
    return str(count)


def _claim(card: Card) -> str:
    parts = []
    if card.claim:
        parts.append(f"**The paper's claim.** {card.claim}\n")
    if card.miniature:
        parts.append(f"**Tested here.** {card.miniature}\n")
    parts += [_reproduction(record) for record in reproductions(card.slug)]
    return "\n".join(parts)


def _reproduction(record: Record) -> str:
    text = f"### {record.title}\n\n"
    if record.plot():
        text += f"![{record.title}](../figures/{_figure_name(record)})\n\n"
    table_and_words = f"{tables(record.rows)}\n{record.content['conclusion']}\n\n{record.made}"
    summary = record.verdicts()
    if summary:
        text += f"Verdicts: {summary}.\n\n"
    return text + folded("Table and conclusion", table_and_words)


def _measured(card: Card) -> str:
    """Return what the benchmarks say of a system."""
    parts: list[str] = []
    for name, rows_of, page in (
        ("leaderboard", _leaderboard_rows, "../leaderboard.md"),
        ("accuracy", _accuracy_rows, "../measured.md"),
        ("compression", _compression_rows, "../compression.md"),
    ):
        record = benchmark(name)
        rows = rows_of(card, record.rows) if record else []
        if record and rows:
            link = page.removeprefix("../").removesuffix(".md")
            parts.append(f"### {record.title}\n\n{tables(rows)}\nAll systems: [{link}]({page}).\n")
    return "\n".join(parts)


def _leaderboard_rows(card: Card, rows: Iterable[Row]) -> list[Row]:
    wanted = ("variant", "fixed OA %", "blocks OA %", "seeds", "weights M", "pixels/s")
    return [
        {key: row[key] for key in wanted if key in row}
        for row in rows
        if row.get("architecture") == card.slug
    ]


def _accuracy_rows(card: Card, rows: Iterable[Row]) -> list[Row]:
    wanted = ("split", "system", "seeds", "training pixels", "OA %", "AA %", "kappa x 100")
    return [
        {key: row.get(key) for key in wanted}
        for row in rows
        if str(row.get("system", "")).partition(",")[0] in card.variants
    ]


def _compression_rows(card: Card, rows: Iterable[Row]) -> list[Row]:
    if card.kind != "method":
        return []
    return [row for row in rows if row.get("method") in card.variants]


def _notes(card: Card) -> str:
    by_heading: dict[str, list[str]] = {}
    for note in card.notes:
        heading, colon, text = note.partition(": ")
        if not (colon and heading in NOTE_HEADINGS):
            heading, text = "", note
        if text.split()[0].isalpha():  # the name of an argument keeps its spelling
            text = text[:1].upper() + text[1:]
        by_heading.setdefault(heading, []).append(text)
    order = ("", *NOTE_HEADINGS)
    parts = []
    for heading in sorted(by_heading, key=order.index):
        lines = "\n".join(f"- {text}" for text in by_heading[heading])
        parts.append(f"### {heading}\n\n{lines}\n" if heading else f"{lines}\n")
    return "\n".join(parts)


def _source(card: Card) -> str:
    parts = []
    if card.paper:
        year = f" ({card.year})" if card.year and str(card.year) not in card.paper else ""
        parts.append(f"- Paper: {linked(card.paper)}{year}\n")
    if card.source_licence:
        parts.append(f"- Licence of the authors' code: {card.source_licence}\n")
    if card.recipe:
        rows = [{"setting": key, "value": value} for key, value in card.recipe.items()]
        parts.append("\n" + folded("The paper's training settings", table(rows)))
    if card.published:
        parts.append("\n" + folded("Published figures", table(card.published)))
    return "".join(parts)


def short_table(kinds: Callable[[Card], bool], folder: str) -> str:
    """Return two columns: the system, linked to its page, and what it is."""
    rows = [
        {"system": f"[`{card.slug}`]({folder}{card.slug}.md)", "what it is": card.summary}
        for card in sorted(cards(), key=_order)
        if kinds(card)
    ]
    return table(rows)


def _order(card: Card) -> tuple[int, int, str]:
    kinds = list(KINDS)
    return (
        kinds.index(card.kind),
        (*TRAINING_STAGES, *STAGES).index(stage(card.slug)) if card.kind == "method" else 0,
        card.slug,
    )


def index_table() -> str:
    """Return all systems with what readers filter by."""
    counted = costs.recorded()
    rows = []
    for card in sorted(cards(), key=_order):
        sizes = [counted[name]["parameters"] for name in card.variants if name in counted]
        span = "" if not sizes else short(min(sizes))
        if sizes and min(sizes) != max(sizes):
            span += f"–{short(max(sizes))}"
        rows.append(
            {
                "system": f"[{card.slug}](systems/{card.slug}.md)",
                "kind": kind_of(card),
                "task": tasks_of(card),
                "when to pick it": card.when,
                "parameters": span,
            }
        )
    return table(rows)


def cost_plot() -> str:
    """Plot multiply-adds against parameters of every architecture that takes ordinary images."""
    counted = costs.recorded()
    points: list[Point] = []
    named: list[tuple[float, float]] = []
    for card in (card for card in cards() if card.kind == "model"):
        own = [
            (counted[name]["parameters"] / 1e6, counted[name]["macs"] / 1e9)
            for name in card.variants
            if counted.get(name, {}).get("image_size") == IMAGE_SIDE
        ]
        if own:
            spot = max(own, key=lambda at: min((_apart(at, other) for other in named), default=0))
            named.append(spot)
            points += [Point("", *at, series=4) for at in own if at != spot]
            points.append(Point(card.slug, *spot))
    return scatter_plot(
        points,
        "Multiply-adds against parameters of all architectures",
        "parameters (millions)",
        f"multiply-adds (billions), {IMAGE_SIDE} x {IMAGE_SIDE} pixels, 3 bands",
        log=(True, True),
    )


def _apart(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Return how far two points of a plot with logarithmic axes are apart."""
    return math.hypot(*(math.log(x / y) for x, y in zip(a, b, strict=True)))
