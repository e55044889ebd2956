"""What every report is made of: one HTML page that opens by itself, offline, in any browser.

Everything is in the file: style, figures and maps; no script, and a content security policy that allows none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
import yaml

from vitreous.report import figures, pictures
from vitreous.report.markup import Markup, data_uri, inline_svg, join, tag
from vitreous.report.record import Config, Interval, Number, plain
from vitreous.scenes.cube import wavelengths_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
MISSING = "–"
JPEG_PIXELS = 400_000  # a larger picture of a scene as PNG would make the page heavy
UNIT_WORDS = {"dn": "digital numbers", "radiance": "radiance", "reflectance": "reflectance"}

Section = tuple[str, str, Markup | None]


def document(title: str, header: Markup, sections: Sequence[Section]) -> Markup:
    """Return a complete page.

    Args:
        title: of the window.
        header: see :func:`page_header`.
        sections: anchor, title and content of each; those without content are left out.
    """
    style = resources.files("vitreous.report").joinpath("report.css").read_text(encoding="utf-8")
    shown = [section for section in sections if section[2] is not None]
    head = tag(
        "head",
        Markup('<meta charset="utf-8">'),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", title),
        tag("style", Markup(style)),
    )
    anchors = tag(
        "nav",
        *(tag("a", name, href=f"#{anchor}") for anchor, name, _ in shown),
        aria_label="Sections",
    )
    body = tag(
        "body",
        tag("div", class_="spectrum", aria_hidden="true"),
        tag("header", header, anchors),
        tag(
            "main",
            *(
                tag("section", tag("h2", name), content, id=anchor)
                for anchor, name, content in shown
            ),
        ),
        tag(
            "footer",
            "Made by vitreous. This page is self-contained: it loads no other files and runs no scripts.",
        ),
    )
    return join(Markup("<!doctype html>\n"), tag("html", head, body, lang="en"), Markup("\n"))


def page_header(eyebrow: str, title: str, lead: Markup, facts: Iterable[str]) -> Markup:
    """Return what stands at the top: what it is, of what, by what, and some facts."""
    return join(
        tag("p", eyebrow, class_="eyebrow"),
        tag("h1", title),
        lead,
        tag("ul", *(tag("li", fact) for fact in facts), class_="facts"),
    )


def scene_facts(scene: xr.DataArray) -> list[str]:
    """Say how large a scene is, what it covers, in which unit and where."""
    bands = scene.sizes["band"]
    facts = [
        f"{scene.sizes['x']:,} × {scene.sizes['y']:,} pixels",
        f"{bands:,} band" + ("s" if bands != 1 else ""),
    ]
    centres = wavelengths_of(scene)
    if centres is not None and np.isfinite(centres).any():
        facts.append(f"{np.nanmin(centres):.0f}–{np.nanmax(centres):.0f} nm")
    facts.append(UNIT_WORDS.get(str(scene.attrs.get("unit")), "unknown unit"))
    crs = scene.rio.crs
    if crs is not None:
        epsg = crs.to_epsg()
        facts.append(f"EPSG:{epsg}" if epsg else "georeferenced")
    return facts


def plate(title: str, caption: str, picture: pictures.Rgba, *, photograph: bool = False) -> Markup:
    """Return a picture with its title; ``photograph``: large ones may lose a little to be smaller."""
    height, width = picture.shape[:2]
    kind = "jpeg" if photograph and height * width > JPEG_PIXELS else "png"
    image = tag(
        "img",
        src=data_uri(picture, "jpeg" if kind == "jpeg" else "png"),
        alt=f"{title} of the scene",
        width=width,
        height=height,
    )
    words = tag("figcaption", tag("strong", title), " ", tag("span", caption))
    return tag("figure", tag("div", image, class_="frame"), words, class_="card plate")


def scene_title(scene: xr.DataArray) -> str:
    """Return the name of a scene's file."""
    from pathlib import Path

    source = str(scene.attrs.get("source") or "") or "scene"
    return plain(Path(source).name or source, 120)


def learning(curves: Iterable[tuple[str, str, Figure | None]]) -> Markup | None:
    """Return the learning curves that there are: name, description and figure of each."""
    cards = [
        tag("div", as_svg(figure, name, words), class_="card")
        for name, words, figure in curves
        if figure is not None
    ]
    return tag("div", *cards, class_="curves") if cards else None


def run_again(config: Config, scene: xr.DataArray, facts: Iterable[tuple[str, Any]]) -> Markup:
    """Return everything needed to run it again.

    Args:
        config: the run's ``config.json``.
        scene: what it was trained on.
        facts: further lines, name and value.
    """
    return settings_of(
        config, facts, "Scene", str(scene.attrs.get("source") or ""), scene.attrs.get("attribution")
    )


def settings_of(
    config: Config,
    facts: Iterable[tuple[str, Any]],
    what: str,
    source: str,
    attribution: str | None = None,
) -> Markup:
    """Return seed, versions, command and recipe of a run, and what it was trained on.

    Args:
        config: the run's ``config.json``.
        facts: further lines, name and value.
        what: the kind of data that it was trained on.
        source: its file or folder.
        attribution: of the data.
    """
    recipe = yaml.safe_dump(
        _plain_values(config.recipe), sort_keys=False, allow_unicode=True, width=100
    )
    facts = [
        ("Seed", config.recipe.get("seed", MISSING)),
        *facts,
        *((name, version) for name, version in config.versions.items()),
        (what, source or MISSING),
    ]
    if attribution:
        facts.append(("Data", attribution))
    rows = [
        tag(
            "div",
            tag("dt", plain(key, 60)),
            tag("dd", value if isinstance(value, Markup) else plain(value, 400)),
        )
        for key, value in facts
    ]
    return tag(
        "div",
        tag("div", tag("dl", *rows), class_="card"),
        tag(
            "div",
            tag("h3", "Command") if config.command else None,
            tag("pre", config.command) if config.command else None,
            tag("h3", "Recipe"),
            tag("pre", recipe.strip() if config.recipe else "No recipe was recorded.", tabindex=0),
            class_="card",
        ),
        class_="again",
    )


def _plain_values(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {plain(key, 200): _plain_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_values(item) for item in value]
    return plain(value) if isinstance(value, str) else value


# --- words and numbers ------------------------------------------------------------------------------------


def percent(value: Number) -> str:
    """Write a share as a percentage with one decimal; what is not 0 or 1 never reads 0 or 100 %."""
    if value is None:
        return MISSING
    if 0 < value < 0.0005:
        return "<0.1 %"
    if 0.9995 <= value < 1:
        return ">99.9 %"
    return f"{100 * value:.1f} %"


def ratio(value: Number) -> str:
    """Write kappa with three decimals."""
    return MISSING if value is None else f"{value:.3f}"


def quantity(value: float | None) -> str:
    """Write a count with three significant digits: 254.64 million is ``255 M``."""
    if value is None:
        return MISSING
    for size, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{float(f'{value / size:.3g}'):g}{letter}"
    return f"{float(f'{value:.3g}'):g}"


def duration(seconds: Number) -> str:
    """Write a time span as people say it."""
    if seconds is None:
        return MISSING
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def as_svg(figure: Figure, name: str, description: str) -> Markup:
    """Return a figure as part of the page."""
    return inline_svg(figure, f"{name}-", description, figures.THEME)


def as_table(caption: str, head: Iterable[str], rows: Iterable[Sequence[str]]) -> Markup:
    """Return a table; the first cell of a row is its name."""
    header = tag("tr", *(tag("th", name, scope="col") for name in head))
    body = (
        tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:]))
        for row in rows
    )
    return tag("table", tag("caption", caption), tag("thead", header), tag("tbody", *body))


# --- figures of merit --------------------------------------------------------------------------------------


def score_card(
    name: str,
    symbol: str,
    value: Number,
    interval: Interval = None,
    write: Callable[[Number], str] = percent,
) -> Markup:
    """Return a score in large figures over its 95 % interval."""
    low, high = interval or (None, None)
    drawn = None
    if low is not None and high is not None and value is not None:
        drawn = tag(
            "div",
            tag("i", style=f"left:{share_of(low):.2f}%;width:{share_of(high - low):.2f}%"),
            tag("b", style=f"left:{share_of(value):.2f}%"),
            class_="interval",
            aria_hidden="true",
        )
    words = f"95 % interval {interval_range(interval, write)}"
    return tag(
        "div",
        tag("p", name, " ", tag("abbr", symbol, title=name), class_="name"),
        tag("p", write(value), class_="value"),
        drawn,
        tag("p", words, class_="range") if interval else None,
        class_="card score",
    )


def banner(kind: str, title: str, words: str) -> Markup:
    """Return a remark that stands out: ``good``, ``caution`` or ``warning``."""
    return tag("div", tag("strong", title), words.strip(), class_=f"banner {kind}", role="note")


def bar(value: Number) -> Markup:
    """Return a share as a bar and a percentage."""
    if value is None:
        return Markup(MISSING)
    return join(
        tag(
            "span",
            tag("i", style=f"width:{share_of(value):.1f}%"),
            class_="bar",
            aria_hidden="true",
        ),
        tag("span", percent(value), class_="figure"),
    )


def interval_range(interval: Interval, write: Callable[[Number], str]) -> str:
    """Write an interval's ends."""
    low, high = interval or (None, None)
    return f"{write(low).removesuffix(' %')} – {write(high)}"


def share_of(value: float) -> float:
    """Return a fraction as a percentage that a style takes."""
    return float(np.clip(100 * value, 0, 100))
