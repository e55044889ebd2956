"""``vitreous refine``: smooth an existing map within the edges of a scene."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitreous.cli.options import (
    Hints,
    Mask,
    RefineArgs,
    Untrusted,
    free_output,
    refinement_settings,
    scene_hints,
)
from vitreous.errors import ConfigError


def refine(
    given: Annotated[
        Path,
        typer.Argument(
            metavar="PROBABILITIES",
            help="Class probabilities, one band per class, as 'vitreous predict --probabilities' writes them.",
        ),
    ],
    scene: Annotated[
        str, typer.Argument(help="Scene that shows the edges, or the name of a built-in sample.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", metavar="OUT", help="Map to write (default: map.tif, unless it exists)."
        ),
    ] = None,
    refine: Annotated[
        str,
        typer.Option("--refine", metavar="domain_transform|guided|potts", help="The refinement."),
    ] = "domain_transform",
    refine_args: RefineArgs = None,
    probabilities: Annotated[
        Path | None,
        typer.Option(
            "--probabilities", metavar="FILE.tif", help="Also write the refined probabilities."
        ),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(
            min=1, max=65536, metavar="N", help="Window size in pixels (default: automatic)."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Without -o: replace an existing map.tif.")
    ] = False,
    hints: Hints = None,
    mask: Mask = None,
    untrusted: Untrusted = False,
) -> None:
    """Smooth the class probabilities of a map within the edges of a scene; no labels and no model are needed."""
    from vitreous.inference.postprocess import FILTERS, make_refinement
    from vitreous.inference.refine_map import refine_map
    from vitreous.progress import progress_bar
    from vitreous.scenes import open_scene
    from vitreous.scenes.samples import open_named

    refinement = make_refinement(refine, refinement_settings(refine_args) or {})
    if refinement is None:
        raise ConfigError("--refine none changes nothing.", f"Choose {', '.join(FILTERS)}.")
    out = free_output(out, "map.tif", overwrite)
    for file in (out, probabilities):
        if file is not None and file.resolve() == given.resolve():
            raise ConfigError(f"{file} would overwrite what is refined.", "Choose another name.")
    source = open_scene(given, untrusted=untrusted)
    opened = open_named(scene, scene_hints(hints, mask), untrusted=untrusted)
    with progress_bar("refining") as advance:
        done = refine_map(
            source,
            opened.scene,
            out,
            refinement,
            refined=probabilities,
            window=window,
            progress=advance,
        )
    for path in done.paths:
        typer.echo(str(path))
