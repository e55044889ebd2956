"""Names and colours of classes: known schemes, tables beside a label image, and colours that suit a name.

A table is a CSV file with a column of codes (``code``, ``value``, ``class`` ...) and one of names, maybe of colours; a JSON
object of codes; or the style file of QGIS (``.qml``), whose paletted and unique-value renderers are read.
"""

from __future__ import annotations

import csv
import functools
import json
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from vitreous.errors import SceneError, did_you_mean
from vitreous.scenes.attributes import key_of
from vitreous.scenes.metadata_files import damaged, read_json, read_text, read_xml

ENDINGS = (".qml", ".csv", ".json")
_CODES = {"code", "value", "class", "classid", "id", "classcode", "gridcode", "pixel", "pixelvalue"}
_NAMES = {"name", "label", "classname", "description", "landcover"}
_COLORS = {"color", "colour", "hex", "rgb"}
_PARTS = ("red", "green", "blue")
_HEX = re.compile(r"#?([0-9a-fA-F]{6})(?:[0-9a-fA-F]{2})?")
# What a name means, the first that fits, and its colours from dark to light.
_MEANINGS = (
    (r"snow|ice\b|glacier", ("#dfe9f2", "#c3d4e6")),
    (r"wetland|marsh|swamp|bog|mangrove|flooded", ("#2a8f8a", "#57b8ae")),
    (r"water|river|lake|sea\b|ocean|pond|canal", ("#1f63b5", "#5a9be0", "#9cc4ef")),
    (r"forest|tree|wood|conifer|deciduous", ("#1b5e20", "#3c8c40", "#6fb573")),
    (r"grass|pasture|meadow|lawn|hay", ("#7cb342", "#a9cf6f", "#cde3a4")),
    (r"crop|cultivat|arable|field|corn|maize|wheat|soy|agric|vineyard|orchard", ("#e0b11c", "#f0cf5e", "#f7e3a1")),
    (r"shrub|scrub|bush|heath", ("#8a8f3c", "#b5ba6d")),
    (r"built|urban|building|roof|developed|residential|impervious|industr", ("#c62828", "#e26060", "#f09a9a")),
    (r"road|asphalt|street|rail|parking", ("#4a4a4a", "#7c7c7c")),
    (r"bare|soil|sand|rock|desert|gravel|barren", ("#9a6b3f", "#c29a6f", "#dfc7a6")),
    (r"cloud", ("#f2f2f2",)),
    (r"shadow", ("#2b2b33",)),
)  # fmt: skip


class Legend(NamedTuple):
    """Names and colours (``#rrggbb``) by class code."""

    names: dict[int, str]
    colors: dict[int, str]


@functools.cache
def schemes() -> dict[str, Legend]:
    """Return the known schemes by name."""
    return {
        name: Legend(
            {int(code): str(entry[0]) for code, entry in scheme["classes"].items()},
            {int(code): str(entry[1]) for code, entry in scheme["classes"].items()},
        )
        for name, scheme in _scheme_file().items()
    }


def _scheme_file() -> dict[str, Any]:
    text = resources.files("vitreous.scenes").joinpath("legends.json").read_text("utf-8")
    content: dict[str, Any] = json.loads(text)
    return content


def _titles() -> dict[str, str]:
    return {name: str(scheme["title"]) for name, scheme in _scheme_file().items()}


def legend(given: str | Path) -> Legend:
    """Return a known scheme, or the legend that a file holds.

    Args:
        given: ``worldcover``, ``corine``, ``nlcd``, ``dynamic_world`` ..., or a CSV, JSON or QML file.

    Raises:
        SceneError: neither a scheme nor a file with codes and names.
    """
    titled = {key_of(title): name for name, title in _titles().items()}
    named = {**titled, **{key_of(name): name for name in schemes()}}.get(key_of(str(given)))
    if named is not None and not Path(given).exists():
        return schemes()[named]
    path = Path(given).expanduser()
    if not path.is_file():
        raise SceneError(
            f"No such legend or file: {given}.",
            did_you_mean(str(given), schemes()) + " Or name a CSV, JSON or QML file.",
        )
    found = _read(path, asked=True)
    if found is None:
        raise SceneError(
            f"{path} holds no legend.",
            "A legend has codes and names: a CSV file with the columns code and name, a JSON object, or a QML file.",
        )
    return found


def legend_beside(path: Path) -> Legend | None:
    """Return the legend in a file of a label image's name, None where there is none."""
    for ending in ENDINGS:
        beside = path.with_suffix(ending)
        if beside != path and beside.is_file():
            try:
                found = _read(beside, asked=False)
            except SceneError:  # some other file of that name
                continue
            if found is not None:
                return found
    return None


def colors_of_names(names: Sequence[str], fallback: Sequence[str]) -> list[str]:
    """Return a colour per class that suits its name: forest dark green, water blue, built-up red.

    Args:
        names: of the classes.
        fallback: for names that mean nothing known.
    """
    taken: set[str] = set()
    colors = []
    for name, other in zip(names, fallback, strict=True):
        suited = next((shades for words, shades in _MEANINGS if re.search(words, name.lower())), ())
        color = next((shade for shade in suited if shade not in taken), other)
        taken.add(color)
        colors.append(color)
    return colors


def _read(path: Path, *, asked: bool) -> Legend | None:
    """Read a legend; where the user did not ask for the file, only what can hardly be anything else."""
    kind = path.suffix.lower()
    if kind == ".qml":
        return _of_qml(path)
    return _of_json(path, asked) if kind == ".json" else _of_csv(path, asked)


def _of_qml(path: Path) -> Legend | None:
    root = read_xml(path)
    names, colors = {}, {}
    for tag in ("paletteEntry", "category", "item"):
        for entry in root.iter(tag):
            code = _code(entry.get("value"))
            if code is None:
                continue
            names[code] = (entry.get("label") or "").strip() or f"class {code}"
            color = _color(entry.get("color"))
            if color:
                colors[code] = color
        if names:
            return Legend(names, colors)
    return None


def _of_json(path: Path, asked: bool) -> Legend | None:
    content = read_json(path)
    content = content.get("classes", content) if isinstance(content, dict) else content
    names, colors = {}, {}
    if isinstance(content, list):
        rows = [row for row in content if isinstance(row, dict)]
        return _of_rows([{key_of(str(k)): v for k, v in row.items()} for row in rows])
    if not isinstance(content, dict):
        return None
    for key, value in content.items():
        code, entry = _code(key), _entry(value)
        if code is None and asked:  # names with their codes
            code, entry = _code(value), {"name": key}
        if code is None or "name" not in entry:
            return None
        names[code] = str(entry["name"]).strip()
        color = _color(entry.get("color"))
        if color:
            colors[code] = color
    return Legend(names, colors) if names else None


def _entry(value: Any) -> dict[str, Any]:
    """Name and colour of a class: a name, a list of both, or an object under any of their names."""
    if isinstance(value, list) and 1 <= len(value) <= 2:
        return dict(zip(("name", "color"), value, strict=False))
    if not isinstance(value, dict):
        return {"name": value}
    found = {}
    for key in reversed(value):
        for name, known in (("name", _NAMES), ("color", _COLORS)):
            if key_of(str(key)) in known:
                found[name] = value[key]
    return found


def _of_csv(path: Path, asked: bool) -> Legend | None:
    text = read_text(path)
    first = text.partition("\n")[0]
    divider = next((mark for mark in (";", "\t") if mark in first), ",")
    try:
        rows = list(csv.DictReader(text.splitlines(), delimiter=divider))
    except csv.Error as error:
        raise damaged(path) from error
    found = _of_rows([{key_of(str(k)): v for k, v in row.items()} for row in rows])
    if found is None and asked:
        return _of_bare(list(csv.reader(text.splitlines(), delimiter=divider)))
    return found


def _of_bare(rows: Sequence[list[str]]) -> Legend | None:
    """A table without a head: codes, names, maybe colours."""
    keys = ("code", "name", "color")
    cells = [dict(zip(keys, row, strict=False)) for row in rows if row]
    return _of_rows(cells) if all(2 <= len(row) <= 3 for row in rows if row) else None


def _of_rows(rows: Sequence[dict[str, Any]]) -> Legend | None:
    names, colors = {}, {}
    for row in rows:
        code = next((_code(row[key]) for key in row if key in _CODES), None)
        name = next((str(row[key]).strip() for key in row if key in _NAMES and row[key]), "")
        if code is None or not name:
            return None
        names[code] = name
        color = next((_color(row[key]) for key in row if key in _COLORS), None)
        color = color or _color([row.get(part, row.get(part[0])) for part in _PARTS])
        if color:
            colors[code] = color
    return Legend(names, colors) if names else None


def _code(value: Any) -> int | None:
    try:
        number = float(str(value))
    except ValueError:
        return None
    return int(number) if number.is_integer() and abs(number) < 2**31 else None


def _color(value: Any) -> str | None:
    """A colour as ``#rrggbb``, also from three numbers of 0 to 255."""
    match = _HEX.fullmatch(str(value or "").strip())
    if match:
        return f"#{match[1].lower()}"
    parts = value if isinstance(value, list) else re.findall(r"\d+", str(value or ""))
    levels = [_code(part) for part in parts[:3]]
    usable = [level for level in levels if level is not None and 0 <= level <= 255]
    return "#{:02x}{:02x}{:02x}".format(*usable) if len(usable) == 3 else None
