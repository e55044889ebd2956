"""``vitreous systems``: what there is to train."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
from typing import TYPE_CHECKING, Annotated

import typer

from vitreous.errors import ModelError, did_you_mean

if TYPE_CHECKING:
    from rich.table import Table

    from vitreous.catalog.card import Card


def systems(
    pattern: Annotated[
        str,
        typer.Argument(help="Name or pattern such as 'lola*'; a single name shows its full card."),
    ] = "*",
    as_json: Annotated[bool, typer.Option("--json", help="Print the cards as JSON.")] = False,
) -> None:
    """List the systems, or show the full card of one."""
    from vitreous.catalog.registry import card, cards
    from vitreous.cli.tables import show

    exact = not any(sign in pattern for sign in "*?[")
    chosen = [card(pattern)] if exact else matching(cards(), pattern)
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(one) for one in chosen], indent=1))
    elif exact:
        show(card_table(chosen[0]))
    else:
        show(list_table(chosen))


def matching(cards: list[Card], pattern: str) -> list[Card]:
    """Return the cards of which the slug or a variant matches ``pattern``.

    Raises:
        ModelError: none does.
    """
    chosen = [
        card
        for card in cards
        if any(fnmatch.fnmatch(name, pattern) for name in (card.slug, *card.variants))
    ]
    if not chosen:
        raise ModelError(
            f"No system matches '{pattern}'.", did_you_mean(pattern, [card.slug for card in cards])
        )
    return chosen


def list_table(cards: list[Card]) -> Table:
    """Return one row per system."""
    from rich.table import Table

    table = Table("system", "kind", "year", "variants", "description")
    table.columns[3].no_wrap = True  # a name broken over two lines cannot be copied
    for card in cards:
        table.add_row(
            card.slug,
            card.kind,
            str(card.year or ""),
            "\n".join(card.variants),
            card.summary,
            end_section=True,
        )
    return table


def card_table(card: Card) -> Table:
    """Return everything on one card."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(card.title), show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column()
    for name, value in dataclasses.asdict(card).items():
        if name == "title" or not value:
            continue
        table.add_row(name.replace("_", " "), escape(_text(value)))
    return table


def _text(value: object) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{key}: {_inline(part)}" for key, part in value.items())
    if isinstance(value, list):
        return "\n".join(_inline(part) for part in value)
    return str(value)


def _inline(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={part}" for key, part in value.items())
    return str(value)
