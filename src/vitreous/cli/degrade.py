"""``vitreous degrade``: make test data from a scene of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitreous.cli.options import Hints, Mask, Untrusted, key_values, scene_hints


def degrade(
    scene: Annotated[str, typer.Argument(help="Scene file, or the name of a built-in sample.")],
    out: Annotated[
        Path,
        typer.Option("-o", "--out", metavar="OUT", help="Output scene: .tif, .hdr, .npy or .zarr."),
    ],
    degradation: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Degradation: gaussian, blind, band_noise, stripes, deadlines, impulse, ...",
        ),
    ] = "gaussian",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Settings of the degradation, e.g. sigma=30 (of 255).",
        ),
    ] = None,
    per: Annotated[
        str,
        typer.Option(
            "--range",
            metavar="band|scene",
            help="Scale to 0..1 first, per band or over the whole scene.",
        ),
    ] = "band",
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Random seed.")] = 0,
    hints: Hints = None,
    mask: Mask = None,
    untrusted: Untrusted = False,
) -> None:
    """Add noise, stripes, dead columns or impulses to a scene, drop bands, or reduce its resolution."""
    from vitreous.data import degradations
    from vitreous.scenes import write_scene
    from vitreous.scenes.formats import find_writer
    from vitreous.scenes.overwrite import check_overwrite
    from vitreous.scenes.samples import open_named

    find_writer(out)
    chosen = degradations.degradation(degradation, key_values(settings or [], "--set"))
    opened = open_named(scene, scene_hints(hints, mask), untrusted=untrusted)
    check_overwrite(out, opened.scene)
    write_scene(degradations.degraded_scene(opened.scene, chosen, per=per, seed=seed), out)
    typer.echo(str(out))
