"""The plots of the benchmarks. A plot whose columns are not in the record is left out, and so is its place on the page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from plots import Point, Value, scatter_plot, values_plot
from records import Record, Row, benchmarks, value

SPEED_UP = "speed-up"  # column that holds a ratio of speeds
USABLE = 80.0  # percent of OA below which a compressed network would flatten the others' plot


def leaderboard(record: Record) -> str | None:
    """Plot overall accuracy of every architecture on both splits."""
    protocols = {
        "fixed OA %": "fixed split (optimistic)",
        "blocks OA %": "spatial blocks (held-out ground)",
    }
    found = [
        value(row["architecture"], row.get(column), row.get("seeds") or 1, series)
        for row in _having(record, "architecture")
        for series, column in enumerate(protocols)
    ]
    rows = [v for v in found if v]
    axis = "OA (%), mean and 95 % interval over seeds"
    return values_plot([("", rows)], record.title, axis, list(protocols.values())) if rows else None


def accuracy(record: Record) -> str | None:
    """Plot overall accuracy by split and system."""
    names = {
        "blocks": "Spatial blocks: held-out ground",
        "fixed": "Fixed split: test pixels beside training pixels",
        "random": "Random split: test pixels beside training pixels",
    }
    groups = []
    for split, heading in names.items():
        own = [row for row in _having(record, "split", "system") if row["split"] == split]
        found = [
            value(row["system"], row.get("OA %"), row.get("seeds") or 1, int(split != "blocks"))
            for row in own
            if "," not in row["system"]
        ]
        rows = sorted((v for v in found if v), key=lambda v: -v.mean)
        if rows:
            groups.append((heading, rows))
    if not groups:
        return None
    return values_plot(groups, record.title, "OA (%), mean and 95 % interval over seeds")


def compression(record: Record) -> str | None:
    """Plot accuracy against the size of the weights."""
    rows = _having(record, "network", "method", "weights MiB", "OA %")
    rows = [row for row in rows if row["OA %"] >= USABLE]
    return _by_network(rows, "weights MiB", "weights (MiB)", record.title, log=True)


def runtimes(record: Record) -> str | None:
    """Plot accuracy against mapping speed on real runtimes."""
    rows = _having(record, "network", "method", "runtime", "arithmetic", "pixels/s", "OA %")
    return _by_network(rows, "pixels/s", "mapped pixels per second", record.title)


def _by_network(
    rows: Sequence[Row], column: str, label: str, title: str, log: bool = False
) -> str | None:
    if not rows:
        return None
    networks = list(dict.fromkeys(row["network"] for row in rows))
    points = [
        Point(_short_name(row), row[column], row["OA %"], networks.index(row["network"]))
        for row in rows
    ]
    return scatter_plot(points, title, label, "OA (%)", networks, (log, False))


def _short_name(row: Row) -> str:
    """Name a compressed network in a few letters: ``adalog W4A4``, ``int8 openvino``."""
    if row.get("runtime"):
        method = "" if row["method"] in ("none", "ptq_minmax") else row["method"]
        numbers = {"float32": "float", "int8": "int8"}.get(row["arithmetic"], row["arithmetic"])
        return method or f"{numbers} {row['runtime']}"
    bits = str(row.get("settings", "")).removeprefix("bits [").rstrip("]").split(", ")
    wide = f" W{bits[0]}A{bits[1]}" if len(bits) == 2 else ""
    return f"{row['method']}{wide}"


def integers(record: Record) -> str | None:
    """Plot the speed-up of runtimes and 8-bit integers."""
    return _speed_ups(
        record,
        ("network", "runtime", "arithmetic"),
        lambda row: f"{row['runtime']}, {row['arithmetic']}",
        "speed-up over torch, float32",
    )


def dense_map(record: Record) -> str | None:
    """Plot accuracy against mapping speed of dense prediction and of a patch per pixel."""
    rows = _having(record, "way", "pixels/s", "OA")
    if not rows:
        return None
    points = [Point(row["way"], row["pixels/s"], row["OA"]) for row in rows]
    axis = "mapped pixels per second"
    return scatter_plot(points, record.title, axis, "OA (%)", log=(True, False), height=300)


def map_speed(record: Record) -> str | None:
    """Plot the speed-up of sharing the front-end."""
    return _speed_ups(record, ("scene", "way"), lambda row: row["way"], "speed-up")


def _speed_ups(
    record: Record, columns: Sequence[str], label: Callable[[Row], str], axis: str
) -> str | None:
    """Plot ratios of speeds, grouped by the first of several columns that name a row."""
    rows = _having(record, *columns, SPEED_UP)
    groups: dict[str, list[Value]] = {}
    for row in rows:
        heading = str(row[columns[0]]) if len(columns) > 1 else ""
        ends = (row.get("rounds, from"), row.get("to"))
        groups.setdefault(heading, []).append(Value(label(row), row[SPEED_UP], *ends))
    return values_plot(list(groups.items()), record.title, axis) if groups else None


def _having(record: Record, *columns: str) -> list[Row]:
    """Return the rows in which all of some columns are filled."""
    return [row for row in record.rows if all(row.get(name) is not None for name in columns)]


def token_reduction(record: Record) -> str | None:
    """Plot measured speed-up against saved multiply-adds."""
    x, y = "multiply-adds saved, times", "speed-up, times"
    rows = _having(record, "network", "batch", x, y)
    if not rows:
        return None
    batches = sorted({row["batch"] for row in rows})
    points = [
        Point(
            row["network"] if row["batch"] == batches[0] else "",
            row[x],
            row[y],
            batches.index(row["batch"]),
        )
        for row in rows
    ]
    series = [f"batch {batch}" for batch in batches]
    return scatter_plot(
        points, record.title, "ratio of multiply-adds, dense to reduced", "speed-up", series
    )


PLOTS: dict[str, dict[str, Callable[[Record], str | None]]] = {
    "accuracy": {"accuracy": accuracy},
    "compression": {"compression": compression, "runtimes": runtimes},
    "dense_map": {"dense_map": dense_map},
    "integers": {"integers": integers},
    "leaderboard": {"leaderboard": leaderboard},
    "map_speed": {"map_speed": map_speed},
    "token_reduction": {"token_reduction": token_reduction},
}


def drawn(record: Record) -> dict[str, str]:
    """Return the plots of a benchmark by name."""
    found = {name: draw(record) for name, draw in PLOTS.get(record.name, {}).items()}
    return {name: plot for name, plot in found.items() if plot}


def figures() -> dict[str, str]:
    """Return the files of all plots."""
    every: Iterable[tuple[str, str]] = (
        (name, plot) for record in benchmarks() for name, plot in drawn(record).items()
    )
    return {f"figures/benchmark-{name}.svg": plot for name, plot in every}
