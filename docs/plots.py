"""Plots of recorded results as small SVG files that follow a reader's light or dark theme.

They are written by hand rather than by a plotting library: the same results give the same bytes everywhere, so
``docs/generate.py --check`` can compare them, and a plot is a few kilobytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from xml.sax.saxutils import escape

WIDTH = 640
FONT = 13
MARGIN = 14
STYLE = """<style>
text{font:13px system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;fill:#1c2127}
.muted{fill:#5c6672}.small{font-size:11.5px}.bold{font-weight:600}
.grid{stroke:#dfe3e8;stroke-width:1}.axis{stroke:#9aa4af;stroke-width:1}
.required{stroke:#b87b03;stroke-width:1.5;stroke-dasharray:4 3}.requiredtext{fill:#8a5c00}
.c0{fill:#0b6bb5;stroke:#0b6bb5}.c1{fill:#b87b03;stroke:#b87b03}.c2{fill:#04855f;stroke:#04855f}
.c3{fill:#c4520a;stroke:#c4520a}.c4{fill:#5c6672;stroke:#5c6672}
.holds{fill:#04855f;stroke:#04855f}.fails{fill:#c4520a;stroke:#c4520a}.open{fill:#5c6672;stroke:#5c6672}
text.holds,text.fails,text.open,text.c0,text.c1,text.c2,text.c3,text.c4{stroke:none}
.line{stroke-width:2}
@media (prefers-color-scheme:dark){text{fill:#e3e7eb}.muted{fill:#a3adb8}.grid{stroke:#3a424b}
.axis{stroke:#6b7785}.required{stroke:#e0a733}.requiredtext{fill:#e0a733}
.c0{fill:#5cadf0;stroke:#5cadf0}.c1{fill:#e0a733;stroke:#e0a733}.c2{fill:#3fc79b;stroke:#3fc79b}
.c3{fill:#f0884a;stroke:#f0884a}.c4{fill:#a3adb8;stroke:#a3adb8}
.holds{fill:#3fc79b;stroke:#3fc79b}.fails{fill:#f0884a;stroke:#f0884a}.open{fill:#a3adb8;stroke:#a3adb8}}
</style>"""
SIGNED = {"points", "dB"}  # units of differences; others are of ratios and sizes
VERDICTS = {"holds": "holds", "does not hold": "fails", "not decided": "open"}


@dataclass(frozen=True)
class Value:
    """A number with its interval, where one is known."""

    label: str
    mean: float
    low: float | None = None
    high: float | None = None
    series: int = 0

    @property
    def ends(self) -> list[float]:
        """Everything that must lie on the axis."""
        return [v for v in (self.mean, self.low, self.high) if v is not None]


@dataclass(frozen=True)
class Point:
    """A labelled point of a scatter plot."""

    label: str
    x: float
    y: float
    series: int = 0
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Claim:
    """An effect with its interval and, where something is required of it, the required value and the verdict."""

    text: str
    effect: float
    interval: tuple[float, ...] = ()  # low and high, where there is one
    required: float | None = None
    at_least: bool = True
    unit: str = ""
    verdict: str = ""
    signed: bool | None = None  # None: by the unit
    digits: int | None = None  # None: by the size of the numbers


def claims_plot(claims: Sequence[Claim], title: str) -> str:
    """Draw one strip per claim: effect, 95 % interval and required margin, each on an axis of its own."""
    body, y = [], 0.0
    for claim in claims:
        strip, y = _claim(claim, y + 6)
        body += strip
    return _document(body, y + 8, title)


def _claim(claim: Claim, top: float) -> tuple[list[str], float]:
    left, right = MARGIN + 8, WIDTH - 210
    lines = _wrap(claim.text, WIDTH - 2 * MARGIN)
    out = [_text(MARGIN, top + 16 + 17 * n, line) for n, line in enumerate(lines)]
    y = top + 16 + 17 * len(lines) + 14
    required = [] if claim.required is None else [claim.required]
    axis = _Axis.around([*claim.interval, claim.effect, *required, 0.0], left, right)
    out += axis.drawn(y - 12, y + 12)
    for at in map(axis, required):
        place = f'x1="{at:.1f}" x2="{at:.1f}" y1="{y - 15}" y2="{y + 12}"'
        out.append(f'<line class="required" {place}/>')
    kind = VERDICTS.get(claim.verdict, "c0")
    if claim.interval:
        out.append(_bar(axis(claim.interval[0]), axis(claim.interval[1]), y, kind))
    out.append(f'<circle class="{kind}" cx="{axis(claim.effect):.1f}" cy="{y}" r="5"/>')
    said = _said(claim)
    out += [
        _text(right + 26, y - 10 + 16 * n, words, style or f"{kind} bold")
        for n, (words, style) in enumerate(said)
    ]
    return out, y + 16 * max(len(said), 3) - 8


def _said(claim: Claim) -> list[tuple[str, str]]:
    """Return the lines beside a claim's strip, with their styles (the verdict's own where it is empty)."""
    values = [claim.effect, *claim.interval, *([] if claim.required is None else [claim.required])]
    digits = _digits(max(map(abs, values))) if claim.digits is None else claim.digits
    signed = claim.unit in SIGNED if claim.signed is None else claim.signed

    def shown(value: float) -> str:
        value = round(value, digits) + 0.0  # no minus before a zero
        return f"{value:{'+' if signed and value else ''},.{digits}f}".replace("-", "−")

    lines = [(f"{shown(claim.effect)} {claim.unit}".strip(), "bold")]
    if len(set(claim.interval)) > 1:
        low, high = map(shown, claim.interval)
        lines.append((f"95 %: {low} to {high}", "muted small"))
    if claim.required is not None:
        bound = "at least" if claim.at_least else "at most"
        lines.append((f"required: {bound} {shown(claim.required)}", "requiredtext small"))
    return [*lines, (claim.verdict, "")] if claim.verdict else lines


def values_plot(
    groups: Sequence[tuple[str, Sequence[Value]]],
    title: str,
    label: str,
    series: Sequence[str] = (),
) -> str:
    """Draw a dot and an interval per value, all on one axis; neighbours of the same label share a row.

    Args:
        groups: heading (may be empty) and values.
        title: for readers who cannot see the plot.
        label: of the axis.
        series: names of the colours, for a legend.
    """
    values = [value for _, group in groups for value in group]
    left = MARGIN + 14 + max(_width(value.label) for value in values)
    left = min(left, WIDTH * 0.55)
    axis = _Axis.around([end for value in values for end in value.ends], left, WIDTH - 130)
    body, y = _legend(series), 26.0 if series else 8.0
    top = y
    for heading, group in groups:
        if heading:
            y += 22 if y == top else 30
            body.append(_text(MARGIN, y, heading, "bold"))
        for name, row in groupby(group, key=lambda value: value.label):
            y += 22
            own = list(row)
            body.append(_text(left - 10, y + 4, name, anchor="end"))
            body += [_interval(value, axis, y) for value in own if value.low is not None]
            body += [_dot(value, axis, y) for value in own]
            body.append(_text(WIDTH - 116, y + 4, _means(own), "muted small"))
    return _document([*axis.drawn(top + 6, y + 14, label), *body], y + 54, title)


def _interval(value: Value, axis: _Axis, y: float) -> str:
    low, high = value.ends[1:]
    return _bar(axis(low), axis(high), y, f"c{value.series}")


def _dot(value: Value, axis: _Axis, y: float) -> str:
    return f'<circle class="c{value.series}" cx="{axis(value.mean):.1f}" cy="{y}" r="4.5"/>'


def _means(values: Sequence[Value]) -> str:
    """Return what stands behind a row: a mean with its interval, or several means."""
    if len(values) > 1:
        return " / ".join(_number(value.mean) for value in values)
    (value,) = values
    if value.low is None or value.high is None or value.low == value.high:
        return _number(value.mean)
    half = (value.high - value.low) / 2
    return f"{_number(value.mean)} ± {half:.{_digits(abs(value.mean))}f}"


def scatter_plot(
    points: Sequence[Point],
    title: str,
    x_label: str,
    y_label: str,
    series: Sequence[str] = (),
    log: tuple[bool, bool] = (False, False),
    height: int = 400,
) -> str:
    """Draw labelled points, with intervals in y where they are known."""
    top, bottom = (34 if series else 18), height - 46
    xs = [point.x for point in points]
    ys = [v for point in points for v in (point.y, point.low, point.high) if v is not None]
    x_axis = _Axis.around(xs, 64, WIDTH - 90, log=log[0])
    y_axis = _Axis.around(ys, bottom, top, log=log[1])
    body = [*_legend(series), *x_axis.drawn(top, bottom, x_label), *y_axis.rows(64, WIDTH - 90)]
    body.append(_text(MARGIN, top - 8 if not series else top - 4, y_label, "muted small"))
    taken: list[tuple[float, float, float, float]] = [
        (x_axis(p.x) - 5, y_axis(p.y) - 5, x_axis(p.x) + 5, y_axis(p.y) + 5) for p in points
    ]
    for point in points:
        x, y = x_axis(point.x), y_axis(point.y)
        if point.low is not None and point.high is not None:
            a, b = y_axis(point.low), y_axis(point.high)
            kind = f"c{point.series} line"
            line = f'x1="{x:.1f}" x2="{x:.1f}" y1="{a:.1f}" y2="{b:.1f}"'
            body.append(f'<line class="{kind}" style="stroke-width:1;opacity:.45" {line}/>')
        body.append(f'<circle class="c{point.series}" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>')
    body.extend(
        _placed(point.label, x_axis(point.x), y_axis(point.y), taken)
        for point in points
        if point.label
    )
    return _document(body, height, title)


def _placed(label: str, x: float, y: float, taken: list[tuple[float, float, float, float]]) -> str:
    """Write a label beside its point, where nothing is written yet if there is such a place."""
    wide = _width(label, 11.5)
    places = [
        (x + 8, y + 4, "start"),
        (x - 8, y + 4, "end"),
        (x, y - 9, "middle"),
        (x, y + 18, "middle"),
        (x + 8, y - 8, "start"),
        (x + 8, y + 16, "start"),
        (x - 8, y - 8, "end"),
        (x - 8, y + 16, "end"),
        (x, y - 22, "middle"),
        (x, y + 31, "middle"),
    ]
    best: tuple[int, tuple[float, float, str], tuple[float, float, float, float]] | None = None
    for place in places:
        at = place[0] - {"start": 0, "end": wide, "middle": wide / 2}[place[2]]
        box = (at, place[1] - 10, at + wide, place[1] + 2)
        hidden = sum(_meet(box, other) for other in taken) + 3 * (at < 60 or at + wide > WIDTH - 4)
        if best is None or hidden < best[0]:
            best = (hidden, place, box)
    assert best is not None
    taken.append(best[2])
    return _text(best[1][0], best[1][1], label, "small", anchor=best[1][2])


def _meet(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


class _Axis:
    """A linear or logarithmic scale from values to pixels, with ticks at round numbers."""

    def __init__(self, low: float, high: float, start: float, end: float, log: bool) -> None:
        self.low, self.high, self.start, self.end, self.log = low, high, start, end, log

    @classmethod
    def around(cls, values: Sequence[float], start: float, end: float, log: bool = False) -> _Axis:
        low, high = min(values), max(values)
        if log:
            return cls(low / 1.3, high * 1.3, start, end, log)
        room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
        return cls(low - room, high + room, start, end, log)

    def __call__(self, value: float) -> float:
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        at = math.log(value) if self.log else value
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            steps = (1, 2, 5) if last - first < 4 else (1,)
            every = [step * 10.0**power for power in range(first, last + 1) for step in steps]
        else:
            rough = (self.high - self.low) / 5
            power = 10.0 ** math.floor(math.log10(rough))
            step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= rough)
            first = math.ceil(self.low / step)
            every = [n * step for n in range(first, math.floor(self.high / step) + 1)]
        return [tick for tick in every if self.low <= tick <= self.high]

    def drawn(self, top: float, bottom: float, label: str = "") -> list[str]:
        """Return vertical grid lines, and the numbers below them."""
        out = []
        for tick in self.ticks():
            x = self(tick)
            kind = "axis" if tick == 0 else "grid"
            line = f'x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"'
            out.append(f'<line class="{kind}" {line}/>')
            out.append(_text(x, bottom + 15, _tick(tick), "muted small", anchor="middle"))
        if label:
            middle = (self.start + self.end) / 2
            out.append(_text(middle, bottom + 34, label, "muted small", anchor="middle"))
        return out

    def rows(self, left: float, right: float) -> list[str]:
        """Return horizontal grid lines, and the numbers left of them."""
        out = []
        for tick in self.ticks():
            y = self(tick)
            line = f'x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"'
            out.append(f'<line class="grid" {line}/>')
            out.append(_text(left - 8, y + 4, _tick(tick), "muted small", anchor="end"))
        return out


def _legend(series: Sequence[str]) -> list[str]:
    out, x = [], WIDTH - MARGIN - sum(_width(name) + 34 for name in series)
    for number, name in enumerate(series):
        out.append(f'<circle class="c{number}" cx="{x + 8:.1f}" cy="14" r="4.5"/>')
        out.append(_text(x + 18, 18, name, "small"))
        x += _width(name) + 34
    return out


def _bar(low: float, high: float, y: float, kind: str) -> str:
    return f'<line class="{kind} line" x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}"/>'


def _text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    style = f' class="{kind}"' if kind else ""
    place = f' text-anchor="{anchor}"' if anchor != "start" else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{style}{place}>{escape(words)}</text>'


def _document(body: Sequence[str], height: float, title: str) -> str:
    size = f'viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" height="{height:.0f}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
    return "\n".join([head, f"<title>{escape(title)}</title>", STYLE, *body, "</svg>"]) + "\n"


def _width(words: str, size: float = FONT) -> float:
    return 0.56 * size * len(words)


def _wrap(words: str, width: float) -> list[str]:
    lines = [""]
    for word in words.split():
        longer = f"{lines[-1]} {word}".strip()
        if _width(longer) > width and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _tick(value: float) -> str:
    return f"{value:,.10g}".replace("-", "−")


def _number(value: float) -> str:
    return f"{value:,.{_digits(abs(value))}f}"


def _digits(size: float) -> int:
    """Return the decimals that numbers of this size are written with."""
    return 0 if size >= 1000 else 1 if size >= 10 else 2 if size >= 0.095 else 3
