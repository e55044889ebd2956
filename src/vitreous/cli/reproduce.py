"""``vitreous reproduce``: a paper's claim in miniature."""

from __future__ import annotations

from typing import Annotated

import typer


def reproduce(
    slug: Annotated[str, typer.Argument(help="System (see 'vitreous systems').")],
    quick: Annotated[
        bool, typer.Option("--quick", help="Only check that it runs; nothing is recorded.")
    ] = False,
) -> None:
    """Run the claim of a system's paper in miniature on real data, and record what was measured."""
    from vitreous.catalog import reproduce as reproductions

    typer.echo(str(reproductions.reproduce(slug, quick=quick)))
