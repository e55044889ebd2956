"""``vitreous resample``: a scene in the bands of another sensor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitreous.cli.options import Hints, Mask, Untrusted, scene_hints


def resample(
    scene: Annotated[str, typer.Argument(help="Scene file, or the name of a built-in sample.")],
    to: Annotated[
        str,
        typer.Option(
            metavar="SENSOR|FILE.csv",
            help="A sensor (see 'vitreous sensors'), or a CSV file of band centres or response curves.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option("-o", "--out", metavar="OUT", help="Scene to write: .tif, .hdr, .npy, .zarr."),
    ],
    hints: Hints = None,
    mask: Mask = None,
    untrusted: Untrusted = False,
) -> None:
    """Compute a scene as another sensor would have measured it, by the spectral responses of its bands."""
    from vitreous.scenes import write_scene
    from vitreous.scenes.formats import find_writer
    from vitreous.scenes.overwrite import check_overwrite
    from vitreous.scenes.resample import resample as resampled
    from vitreous.scenes.samples import open_named

    find_writer(out)
    opened = open_named(scene, scene_hints(hints, mask), untrusted=untrusted)
    check_overwrite(out, opened.scene)
    write_scene(resampled(opened.scene, to), out)
    typer.echo(str(out))
