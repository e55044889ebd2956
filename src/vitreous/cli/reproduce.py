"""``vitreous reproduce``: a paper's claim in miniature."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def reproduce(
    slug: Annotated[str, typer.Argument(help="System (see 'vitreous systems').")],
    quick: Annotated[
        bool, typer.Option("--quick", help="Only check that it runs (takes seconds).")
    ] = False,
    full: Annotated[
        bool,
        typer.Option(
            "--full",
            help="Run all seeds, however long that takes, and record the result. Resumes where it was stopped.",
        ),
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(help="Test the claim on a folder of real images, one subfolder per class."),
    ] = None,
) -> None:
    """Test the main claim of a system's paper at small scale, in about ten minutes on two cores.

    Without --full, only a few seeds are trained and nothing is recorded.
    """
    from vitreous.catalog import reproduce as reproductions

    result = reproductions.reproduce(slug, quick=quick, full=full, data=data)
    if full:
        typer.echo(str(result))
