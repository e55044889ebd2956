"""``vitreous methods``: what can be done to a model."""

from __future__ import annotations

from typing import Annotated

import typer


def methods(
    pattern: Annotated[
        str,
        typer.Argument(help="Name or pattern such as 'ptq*'; a single name shows its full card."),
    ] = "*",
) -> None:
    """List the methods: those of training first, then the others in the order in which they are applied."""
    from rich.table import Table

    from vitreous.catalog.registry import STAGES, TRAINING_STAGES, cards, stage
    from vitreous.cli.systems import card_table, matching
    from vitreous.cli.tables import show

    known = [entry for entry in cards() if entry.kind == "method"]
    chosen = matching(known, pattern)
    if not any(sign in pattern for sign in "*?["):
        show(card_table(chosen[0]))
        return
    table = Table("stage", "method", "settings", "serves", "description")
    table.columns[1].no_wrap = True
    order = (*TRAINING_STAGES, *STAGES)
    for entry in sorted(chosen, key=lambda e: order.index(stage(e.slug))):
        settings = "\n".join(
            ", ".join(f"{key}={value}" for key, value in own.items()) or "-"
            for own in entry.variants.values()
        )
        served = "all" if entry.models == ["*"] else "\n".join(entry.models)
        names = "\n".join(entry.variants)
        table.add_row(stage(entry.slug), names, settings, served, entry.summary, end_section=True)
    show(table)
