"""``vitreous sensors``: which bands sensors have."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from vitreous.scenes.sensors import Sensor


def sensors(
    name: Annotated[
        str | None, typer.Argument(help="A sensor, such as sentinel2a, to show its bands.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the sensors that hints and 'vitreous resample' know by name, or show the bands of one."""
    from vitreous.cli.tables import show
    from vitreous.scenes.sensors import sensor
    from vitreous.scenes.sensors import sensors as known

    chosen = list(known().values()) if name is None else [sensor(name)]
    if as_json:
        typer.echo(json.dumps([describe(one) for one in chosen], indent=1))
    else:
        show(list_table(chosen) if name is None else bands_table(chosen[0]))


def describe(sensor: Sensor) -> dict[str, Any]:
    """Return a sensor as plain values."""
    return {
        **sensor._asdict(),
        "bands": [band._asdict() for band in sensor.bands],
        "ranges": [span._asdict() for span in sensor.ranges],
    }


def list_table(sensors: list[Sensor]) -> Table:
    """Return one row per sensor."""
    from rich.table import Table

    table = Table("sensor", "what it is", "platform", "bands", "nm")
    table.columns[0].no_wrap = True
    table.columns[3].justify = table.columns[4].justify = "right"
    for one in sensors:
        count = len(one.bands) or sum(span.bands for span in one.ranges)
        note = "" if one.bands else " (centres in the files)"
        table.add_row(one.name, one.title + note, one.platform, str(count), _span(one))
    return table


def bands_table(sensor: Sensor) -> Table:
    """Return one row per band, or per range where only those are known."""
    from rich.markup import escape
    from rich.table import Table

    title = f"{sensor.title}\nSource: {sensor.source}"
    if sensor.bands:
        table = Table("band", "centre nm", "fwhm nm", title=escape(title), title_justify="left")
        rows = [(band.name, f"{band.centre:g}", f"{band.fwhm:g}") for band in sensor.bands]
    else:
        table = Table("from nm", "to nm", "bands", title=escape(title), title_justify="left")
        rows = [(f"{r.low:g}", f"{r.high:g}", str(r.bands)) for r in sensor.ranges]
    for row in rows:
        table.add_row(*row)
    return table


def _span(sensor: Sensor) -> str:
    centres = [band.centre for band in sensor.bands]
    edges = centres or [edge for span in sensor.ranges for edge in (span.low, span.high)]
    return f"{min(edges):.0f}-{max(edges):.0f}"
