"""``vitreous convert``: others' published weights as a model file of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitreous.cli.options import key_values, read_image_size, split_commas
from vitreous.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from vitreous.checkpoints.load_report import LoadReport
    from vitreous.layers.bands import Bands

SHOWN = 12  # names of tensors in a cell


def convert(
    file: Annotated[
        str,
        typer.Argument(
            help="Weights: .pth, .pt, .bin, .ckpt or .safetensors, or hf://user/name/file."
        ),
    ],
    model: Annotated[
        str,
        typer.Option(
            "--model",
            metavar="NAME",
            help="Variant that the weights belong to (see 'vitreous systems').",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            metavar="OUT.safetensors",
            help="Output model file (default: NAME.safetensors).",
        ),
    ] = None,
    model_args: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE", help="Overrides for the variant that the weights require."
        ),
    ] = None,
    image_size: Annotated[
        str | None,
        typer.Option(
            metavar="N|HxW",
            help="Image size of the model, e.g. 224 or 96x160 (default: as trained).",
        ),
    ] = None,
    bands: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Number of input bands of the model (default: as in the weights).",
        ),
    ] = None,
    wavelengths: Annotated[
        str | None,
        typer.Option(
            metavar="NM,NM,...",
            help="Centre wavelengths in nm of the bands they were trained on, e.g. 665,560,490.",
        ),
    ] = None,
    num_classes: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Number of classes of a new head (default: keep the head of the weights).",
        ),
    ] = None,
    adapt_bands: Annotated[
        str,
        typer.Option(metavar="METHOD", help="How to adapt the first layer to other bands."),
    ] = "auto",
    partial: Annotated[
        bool,
        typer.Option(
            "--partial", help="Accept weights that leave parts of the model uninitialised."
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report of all tensors as JSON.")
    ] = False,
) -> None:
    """Convert published weights (of the authors or timm) to a model file, and report on every tensor.

    No code in the file is executed. Weights that leave parts of the model uninitialised are refused.
    """
    from vitreous.catalog.registry import card

    card(model)  # an unknown name is told at once, before PyTorch is loaded
    place = out or Path(f"{model}.safetensors")
    if place.resolve() == Path(file).resolve():
        raise ConfigError(f"{place} is the input file.", "Give another name with --out.")

    from rich.console import Console

    from vitreous.checkpoints import convert as others
    from vitreous.checkpoints.load_report import PartialLoadError
    from vitreous.checkpoints.model_files import save_model

    try:
        net, report = others.convert(
            file,
            model,
            bands=bands,
            num_classes=num_classes,
            image_size=None if image_size is None else read_image_size(image_size),
            model_args=key_values(model_args or [], "--model-args"),
            source_bands=described_bands(wavelengths),
            method=adapt_bands,
            partial=partial,
        )
    except PartialLoadError as error:
        Console(stderr=True).print(report_table(error.report))
        raise
    save_model(net, place, bands=report.bands, origin=Path(file).name)
    if as_json:
        told = {"found": report.found, **report.to_json(), "out": str(place)}
        typer.echo(json.dumps(told, indent=1))
    else:
        Console().print(report_table(report))
        typer.echo(str(place))


def described_bands(wavelengths: str | None) -> Bands | None:
    """Read the centres of bands from ``NM,NM,...``.

    Raises:
        ConfigError: a word that is not a number.
    """
    if wavelengths is None:
        return None

    from vitreous.layers.bands import Bands

    try:
        centres = tuple(float(word) for word in split_commas([wavelengths]))
    except ValueError as error:
        raise ConfigError(
            f"--wavelengths '{wavelengths}' is not a list of numbers.", "Write it as 665,560,490."
        ) from error
    return Bands(len(centres), centres)


def report_table(report: LoadReport) -> Table:
    """Return one row per fate that tensors of a file met, with their number and their names."""
    from rich.markup import escape
    from rich.table import Table

    from vitreous.layers.sizes import size_name

    made = report.made
    known = "" if made.bands.wavelengths is None else " (wavelengths known)"
    about = f"{made.name}: {made.bands.count} bands{known}"
    if made.num_classes is not None:
        about += f", {made.num_classes} classes"
    if made.image_size is not None:
        about += f", images of {size_name(made.image_size)}"
    about += f"\nfound: {report.found}"
    if report.read:
        options = ", ".join(f"{key}={json.dumps(value)}" for key, value in report.read.items())
        about += f"\nread from the checkpoint: {options}"
    table = Table("tensors", "number", "names", title=escape(about), title_justify="left")
    table.columns[1].justify = "right"
    fates = {
        "used": report.used,
        f"of them, bands adapted by '{report.method}'": report.adapted,
        "of them, resized": report.resized,
        "of them, merged or split": report.rewritten,
        "new head": report.reset,
        **{f"[yellow]{what}[/]": names for what, names in report.complaints.items()},
        "not needed": report.derived,
        "unexpected (not part of the network)": report.unread,
    }
    for fate, names in fates.items():
        if names or fate in ("[yellow]missing[/]", "[yellow]unexpected[/]"):
            table.add_row(fate, str(len(names)), escape(listed(names)))
    return table


def listed(names: tuple[str, ...]) -> str:
    """Return the first names, and how many more there are."""
    more = f", and {len(names) - SHOWN} more (--json)" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
