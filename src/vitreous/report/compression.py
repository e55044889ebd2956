"""The part of a report that tells what compression cost and brought."""

from __future__ import annotations

from typing import Any

from vitreous.report.markup import Markup, join, tag
from vitreous.report.page import MISSING, as_table
from vitreous.report.record import Compression, Number, plain


def compression_section(done: Compression | None) -> Markup | None:
    """Show what a method cost and brought, and every layer it touched; None of a run that was not compressed."""
    if done is None:
        return None
    rows = [
        [row.figure, _figure(row.before), _figure(row.after), _times(row.before, row.after)]
        for row in done.rows
    ]
    head = ("", "Before", "After", "After / before")
    settings = ", ".join(
        f"{plain(key, 60)} = {plain(value, 200)}"
        for key, value in done.settings.items()
        if value not in (None, [])
    )
    parts = [
        tag(
            "p",
            tag("strong", done.method),
            f" applied to {done.source}",
            f" ({settings})" if settings else "",
        ),
        *(tag("p", note) for note in done.notes),
        as_table(f"Before and after {done.method}", head, rows),
    ]
    cards = [tag("div", *parts, class_="card scroll")]
    if done.layers:
        keys = list(dict.fromkeys(key for layer in done.layers for key in layer))
        cells = [[_cell(layer.get(key)) for key in keys] for layer in done.layers]
        table = as_table("Modified layers", [plain(key, 60) for key in keys], cells)
        cards.append(
            tag(
                "details",
                tag("summary", f"{len(cells)} modified layers"),
                table,
                class_="card scroll",
            )
        )
    return join(*cards)


def _figure(value: Number) -> str:
    return MISSING if value is None else f"{value:,.2f}"


def _times(before: Number, after: Number) -> str:
    return f"{after / before:.2f}" if before and after is not None else MISSING


def _cell(value: Any) -> str:
    if value is None:
        return MISSING
    return f"{value:.4g}" if isinstance(value, float) else plain(value, 200)
