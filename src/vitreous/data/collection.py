"""Collections: many scenes, maybe with labels, named by a folder, a pattern or a table.

A table is a CSV, GeoParquet or GeoPackage file with a row per scene, or a JSON file of STAC items. Its columns are
``scene``, and where they are known ``labels``, ``role`` (train, val, test), ``date`` and ``sensor``. Paths count from the
table's folder. In a folder, or among the files that a pattern names, labels are found by their names.
"""

from __future__ import annotations

import glob
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vitreous.data.blocks import TEST, TRAIN, VAL
from vitreous.data.tables import ROLE_WORDS, TABLE_LIMIT, csv_rows, parquet_rows
from vitreous.errors import CollectionError, ConfigError, VitreousError, listed
from vitreous.files import parse_json

MOST_SCENES = 10**6
DEEPEST = 6  # folders within a folder
TABLES = (".csv", ".tsv", ".txt", ".parquet", ".geoparquet", ".gpkg", ".json", ".geojson")
_NUMBERS = {"train": TRAIN, "val": VAL, "test": TEST}
ROLES = {word: _NUMBERS[role] for word, role in ROLE_WORDS.items()}
COLUMNS = {
    "scene": ("scene", "image", "path", "file", "filename"),
    "labels": ("labels", "label", "mask"),
    "role": ("role", "split", "set", "subset"),
    "date": ("date", "datetime", "time", "acquired"),
    "sensor": ("sensor", "platform"),
}
_LABEL_WORDS = (
    *("label", "labels", "mask", "masks", "gt", "truth", "groundtruth", "ground_truth"),
    *("annot", "annotation", "annotations", "seg", "segmentation", "classes"),
)
_OURS = ("config.json", "export.json")  # runs and exports of ours may lie in a folder of scenes
_ROLES_SHOWN = "train, val, test"


@dataclass(frozen=True)
class Entry:
    """A scene of a collection, not yet opened.

    Attributes:
        where: its row or name, for messages.
        scene: the file, folder or pattern.
        labels: its labels, None where there are none.
        role: :data:`TRAIN`, :data:`VAL` or :data:`TEST`, None where nobody says.
        date: as the table has it.
        sensor: as the table has it.
    """

    where: str
    scene: str
    labels: str | None = None
    role: int | None = None
    date: str | None = None
    sensor: str | None = None

    @property
    def name(self) -> str:
        """The scene's name without folder and suffix."""
        return Path(self.scene).stem


class Listed(NamedTuple):
    """What a folder, pattern or table names, and what is wrong with it.

    Attributes:
        entries: the scenes.
        faults: where, and what.
    """

    entries: list[Entry]
    faults: list[tuple[str, str]]


def is_collection(path: str) -> bool:
    """Return whether a path names a table of scenes, or a folder that is neither a product nor a store."""
    from vitreous.scenes.formats import find_reader

    file = Path(path).expanduser()
    try:
        if file.is_file():
            return file.suffix.lower() in TABLES
        if not file.is_dir():
            return False
        find_reader(file)
    except VitreousError:
        return True
    except OSError:
        return False
    return False


def read_collection(path: str, labels: str | None = None, *, labelled: bool = True) -> Listed:
    """List the scenes of a collection; none is opened.

    Args:
        path: a folder, a pattern (``scenes/*.tif``), or a table.
        labels: folder or pattern of the labels' files, or one vector file for all scenes; where a table does not name
            them, and in a folder where they do not lie beside the scenes.
        labelled: whether labels are wanted; what is wrong with them is not told otherwise.

    Raises:
        ConfigError: nothing of that name, an empty one, or a table without a column of scenes.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        found, beside = _of_folder(place)
        known = (beside or _near(found)) if labels is None and labelled else None
        listed_ = _paired(found, known, labels, place)
    elif place.is_file() and place.suffix.lower() in TABLES:
        listed_ = _of_table(place, labels)
    elif glob.has_magic(path) and not place.exists():
        found, beside = _divided(_matching(place))
        known = (beside or _near(found)) if labels is None and labelled else None
        listed_ = _paired(found, known, labels, None)
    else:
        raise ConfigError(
            f"{path} is not a collection: neither a folder, a pattern such as scenes/*.tif, nor a table.",
            f"Tables end in {listed(TABLES)}.",
        )
    if not listed_.entries and not listed_.faults:
        raise ConfigError(
            f"{path} holds no scenes.", "Check the path; 'vitreous info' shows what can be opened."
        )
    if len(listed_.entries) > MOST_SCENES:
        raise ConfigError(f"{path} names {len(listed_.entries):,} scenes.", "Divide it.")
    return listed_


def refuse(path: str, faults: Sequence[tuple[str, str]], count: int) -> None:
    """Refuse a collection with everything that is wrong with it, if anything is.

    Raises:
        CollectionError: something is.
    """
    if faults:
        word = "thing does" if len(faults) == 1 else "things do"
        raise CollectionError(
            f"{len(faults)} {word} not fit in {path} ({count} scenes):",
            faults,
            "Correct or remove these rows or files; nothing was trained or written.",
        )


# -- folders and patterns -----------------------------------------------------------------------------------


def _matching(pattern: Path) -> list[Path]:
    return [Path(name) for name in sorted(glob.glob(str(pattern)))]  # noqa: PTH207  (of any folder)


def _of_folder(folder: Path) -> tuple[list[Path], list[Path]]:
    return _divided(_walk(folder, 0))


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    """Yield everything in a folder that a reader may open, in the order of its names."""
    from vitreous.scenes.formats import SUFFIXES, find_reader

    try:
        children = sorted(folder.iterdir())
    except OSError as error:
        raise ConfigError(f"{folder} cannot be read: {error.strerror}.") from error
    for child in children:
        if child.name.startswith(".") or any((child / name).is_file() for name in _OURS):
            continue
        if child.is_dir():
            try:
                find_reader(child)
            except VitreousError:
                if depth < DEEPEST:
                    yield from _walk(child, depth + 1)
            else:
                yield child
        elif child.suffix.lower() in SUFFIXES and child.is_file():
            yield child


def _divided(files: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Divide files into scenes and labels by their names and those of their folders."""
    scenes: list[Path] = []
    labels: list[Path] = []
    for file in files:
        (labels if _is_label(file) else scenes).append(file)
    if not scenes:  # whoever names label images alone means them as scenes
        return labels, []
    return scenes, labels


def _near(scenes: Iterable[Path]) -> list[Path]:
    """Return the labels beside scenes, and those in folders of labels in or beside theirs (``images/``, ``masks/``)."""
    from vitreous.scenes.formats import SUFFIXES

    own = dict.fromkeys(scene.absolute().parent for scene in scenes)
    files: list[Path] = []
    for folder in dict.fromkeys(place for one in own for place in (one, one.parent)):
        for child in sorted(folder.iterdir()):
            if child.is_dir() and _is_label_word(child.name):
                files += _walk(child, 1)
            elif folder in own and child.suffix.lower() in SUFFIXES and _is_label(child):
                files.append(child)
    return list(dict.fromkeys(files))


def _is_label(file: Path) -> bool:
    return _is_label_word(_last_word(file.stem)) or _is_label_word(file.parent.name)


def _is_label_word(word: str) -> bool:
    word = word.lower()
    return word in _LABEL_WORDS or word.endswith("annot")


def _last_word(stem: str) -> str:
    return stem.replace("-", "_").rpartition("_")[2]


def _without_last(stem: str) -> str:
    word = _last_word(stem)
    return stem[: -len(word) - 1] if len(word) < len(stem) else stem


def _paired(
    scenes: list[Path], labels: list[Path] | None, given: str | None, root: Path | None
) -> Listed:
    """Find the labels of scenes by their names."""
    if given is not None and Path(given).expanduser().is_file():  # features for all scenes
        pairs: dict[Path, Path | None] = dict.fromkeys(scenes, Path(given).expanduser())
        return Listed([_entry_of(scene, pairs[scene], root) for scene in scenes], [])
    faults = []
    if given is not None:
        place = Path(given).expanduser()
        labels = list(_walk(place, 0)) if place.is_dir() else _matching(place)
        if not labels:
            raise ConfigError(f"{given} holds no labels.", "Check --labels.")
    known = labels or []
    tables: list[dict[str, list[Path]]] = [{}, {}]
    for file in known:
        for table, key in zip(tables, (file.stem, _without_last(file.stem)), strict=True):
            table.setdefault(key, []).append(file)
    entries = []
    for scene in scenes:
        found = _labels_of(scene, tables)
        if len(found) > 1:
            faults.append((scene.name, f"several labels fit it: {listed(f.name for f in found)}"))
        elif not found and known:
            faults.append((scene.name, "no labels of its name"))
        entries.append(_entry_of(scene, found[0] if found else None, root))
    return Listed(entries, faults)


def _labels_of(scene: Path, tables: list[dict[str, list[Path]]]) -> list[Path]:
    """Return the labels named like a scene: the same name, or with another last word (``a_rgb`` and ``a_mask``)."""
    whole, shorter = tables
    for found in (whole.get(scene.stem), shorter.get(scene.stem)):
        if found:
            return _nearest(scene, found)
    begun = _without_last(scene.stem)
    if begun == scene.stem or _last_word(scene.stem).isdigit():
        return []
    found = whole.get(begun) or [
        file for file in shorter.get(begun, []) if not _last_word(file.stem).isdigit()
    ]
    return _nearest(scene, found)


def _nearest(scene: Path, found: list[Path]) -> list[Path]:
    """Of labels of one name in several folders (train/, test/) keep those that share most of the scene's folders."""
    if len(found) < 2:
        return found

    def shared(file: Path) -> int:
        return sum(
            sum(
                1
                for _ in itertools.takewhile(
                    lambda pair: pair[0] == pair[1], zip(own, other, strict=False)
                )
            )
            for own, other in zip(scene.parent.parts, file.parent.parts, strict=False)
        )

    most = max(map(shared, found))
    return [file for file in found if shared(file) == most]


def _entry_of(scene: Path, labels: Path | None, root: Path | None) -> Entry:
    """Return the entry of a file; a folder on its way that is named after a role gives it one."""
    parts = scene.parent.parts if root is None else scene.relative_to(root).parent.parts
    roles = [ROLES[part.lower()] for part in parts if part.lower() in ROLES]
    where = str(scene if root is None else scene.relative_to(root))
    return Entry(
        where,
        str(scene),
        None if labels is None else str(labels),
        roles[-1] if roles and root is not None else None,
    )


# -- tables -------------------------------------------------------------------------------------------------


def _of_table(path: Path, labels: str | None) -> Listed:
    rows = _rows(path)
    head = list(dict.fromkeys(key for row in rows for key in row))
    columns = {
        name: next((key for alias in aliases for key in head if key.lower() == alias), None)
        for name, aliases in COLUMNS.items()
    }
    if rows and columns["scene"] is None:
        raise ConfigError(f"{path} has no column of scenes: {listed(head)}.", "Name it 'scene'.")
    entries, faults = [], []
    for number, row in enumerate(rows, start=1):
        cells = {name: _cell(row.get(key)) if key else None for name, key in columns.items()}
        where = f"row {number}"
        if cells["scene"] is None:
            faults.append((where, "no scene is named"))
            continue
        where = f"{where}, {Path(cells['scene']).name}"
        role = None
        if cells["role"] is not None:
            role = ROLES.get(cells["role"].lower())
            if role is None:
                faults.append((where, f"the role '{cells['role']}' is none of {_ROLES_SHOWN}"))
        entries.append(
            Entry(
                where,
                _beside(cells["scene"], path.parent),
                None if cells["labels"] is None else _beside(cells["labels"], path.parent),
                role,
                cells["date"],
                cells["sensor"],
            )
        )
    if labels is not None and columns["labels"] is None:
        pairs = _paired([Path(entry.scene) for entry in entries], None, labels, None)
        own = {entry.scene: entry.labels for entry in pairs.entries}
        entries = [
            Entry(e.where, e.scene, own.get(e.scene), e.role, e.date, e.sensor) for e in entries
        ]
        faults += pairs.faults
    return Listed(entries, faults)


def _cell(value: Any) -> str | None:
    """Return a cell as text, None where it is empty."""
    if value is None or value != value:  # NaN
        return None
    text = str(value).strip()
    return text if text and text not in {"None", "nan", "NaT", "<NA>"} else None


def _beside(name: str, folder: Path) -> str:
    """Return a path that counts from the table's folder."""
    path = Path(name).expanduser()
    return str(path if path.is_absolute() else folder / path)


def _rows(path: Path) -> list[Mapping[str, Any]]:
    """Return the rows of a table.

    Raises:
        ConfigError: it is damaged, too large, or of no known kind.
    """
    if path.stat().st_size > TABLE_LIMIT:
        raise ConfigError(f"{path} is too large for a table of scenes.")
    suffix = path.suffix.lower()
    try:
        if suffix in {".parquet", ".geoparquet"}:
            return parquet_rows(path)
        if suffix == ".gpkg":
            return _geopackage_rows(path)
        if suffix in {".json", ".geojson"}:
            return _stac_rows(path)
        return csv_rows(path)
    except ConfigError:
        raise
    # What libraries say of damaged files is of many kinds.
    except Exception as error:
        raise ConfigError(
            f"{path} cannot be read as a table: {str(error).rstrip('.')}.",
            "Check the file, or write it again.",
        ) from error


def _geopackage_rows(path: Path) -> list[Mapping[str, Any]]:
    with path.open("rb") as file:
        if not file.read(16).startswith(b"SQLite format 3\0"):
            raise ConfigError(f"{path} is not a GeoPackage.", "Check the file, or write it again.")
    try:
        import pyogrio
    except ImportError as error:
        raise ConfigError(
            f"{path} is a GeoPackage, which needs the package pyogrio.",
            "Install it with: pip install 'vitreous[vector]', or write a CSV file.",
        ) from error
    layers = [str(name) for name, _ in pyogrio.list_layers(path)]
    named = set(COLUMNS["scene"])
    for layer in layers:
        fields = {str(name).lower() for name in pyogrio.read_info(path, layer=layer)["fields"]}
        if fields & named or len(layers) == 1:
            table = pyogrio.read_dataframe(path, layer=layer, read_geometry=False)
            rows: list[Mapping[str, Any]] = table.to_dict("records")
            return rows
    raise ConfigError(
        f"{path} has no layer with a column of scenes: {listed(layers)}.",
        "Name the column 'scene'.",
    )


def _stac_rows(path: Path) -> list[Mapping[str, Any]]:
    """Return a row per STAC item: its data and label assets, and what its properties say of role, date and sensor."""
    content = parse_json(path.read_text(encoding="utf-8"))
    items = content.get("features", [content]) if isinstance(content, dict) else content
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ConfigError(f"{path} holds no STAC items.", "Give a feature collection of items.")
    return [_stac_row(item, path) for item in items]


def _stac_row(item: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    assets, facts = item.get("assets"), item.get("properties") or {}
    if not isinstance(assets, dict) or not assets or not isinstance(facts, dict):
        raise ConfigError(
            f"{path}: the item {json.dumps(item.get('id'))} has no assets.",
            "Give STAC items with an asset of the role 'data'.",
        )
    role = facts.get("role", facts.get("split", facts.get("ml:split")))
    return {
        "scene": _asset(assets, "data", ("data", "scene", "image", "analytic", "visual")),
        "labels": _asset(assets, "labels", _LABEL_WORDS),
        "role": role,
        "date": facts.get("datetime"),
        "sensor": facts.get("sensor", facts.get("platform")),
    }


def _asset(assets: Mapping[str, Any], role: str, names: Sequence[str]) -> str | None:
    """Return the reference of an asset by its role, or else by its key."""
    roles = {role, role.removesuffix("s")}
    known = {key: asset for key, asset in assets.items() if isinstance(asset, dict)}
    by_role = [a for a in known.values() if roles & set(a.get("roles") or ())]
    by_name = [asset for name in names for key, asset in known.items() if key.lower() == name]
    found = next(iter(by_role or by_name), None)
    href = None if found is None else found.get("href")
    return href.removeprefix("file://") if isinstance(href, str) else None
