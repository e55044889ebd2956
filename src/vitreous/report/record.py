"""What a run folder says about its run, checked before anything is drawn."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from matplotlib.colors import to_hex
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from vitreous.errors import VitreousError
from vitreous.files import read_json

TEXT_LIMIT = 4000
LOG_LIMIT = 32 * 2**20

Log: TypeAlias = dict[str, npt.NDArray[np.float64]]


def plain(value: Any, limit: int = TEXT_LIMIT) -> str:
    """Return ``value`` as one line of printable text, at most ``limit`` characters long.

    Control characters, lone surrogates and direction overrides come from damaged or hostile files; they would
    break the page or show something else than they say.
    """
    text = "".join(
        c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}"
        for c in str(value)
    )
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _color(value: Any) -> str:
    try:
        return to_hex(value)
    except (ValueError, TypeError):
        return "#808080"  # a name that no browser knows must not reach a style attribute


def _name(value: Any) -> str:
    return plain(value, 200)


Name: TypeAlias = Annotated[str, BeforeValidator(_name)]
Text: TypeAlias = Annotated[
    str, BeforeValidator(lambda value: plain(value))
]  # pydantic would fill further arguments
Color: TypeAlias = Annotated[str, BeforeValidator(_color)]
Number: TypeAlias = Annotated[float | None, BeforeValidator(_finite)]
Interval: TypeAlias = tuple[Number, Number] | None
Count: TypeAlias = Annotated[int, Field(ge=0)]


class Record(BaseModel):
    """One object of a file; what is not known of it is ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


class ClassEntry(Record):
    """One class: its code in the label file and the map, its name and colour (``#rrggbb``), and whether it can be tested."""

    value: int = Field(ge=-(2**31), le=2**31 - 1)
    name: Name
    color: Color
    fields: Count | None = None
    testable: bool = True
    why: Text = ""


class ClassScore(Record):
    """Accuracies of one class; None where it has no pixels to tell."""

    value: int
    name: Name
    producer: Number = None
    user: Number = None
    f1: Number = None
    iou: Number = None
    support: Count = 0


class SceneScore(Record):
    """Accuracies of one test scene of a collection."""

    name: Name
    pixels: Count = 0
    oa: Number = None
    aa: Number = None
    kappa: Number = None
    miou: Number = None


class Intervals(Record):
    """How the intervals of accuracy were found."""

    method: Text
    resamples: Count = 0
    blocks: int | None = None
    block_size: int | None = None


class Scores(Record):
    """Accuracies of one system on one part of the split, with 95 % intervals."""

    oa: Number
    aa: Number
    kappa: Number
    miou: Number = None
    oa_ci: Interval = None
    aa_ci: Interval = None
    kappa_ci: Interval = None
    miou_ci: Interval = None
    intervals: Intervals | None = None
    per_class: list[ClassScore] = []
    confusion: list[list[Count]] = []
    unclassified: list[Count] = []
    scenes: list[SceneScore] = []

    @model_validator(mode="after")
    def _square(self) -> Scores:
        if any(len(row) != len(self.confusion) for row in self.confusion):
            raise ValueError("the confusion matrix is not square")
        if self.unclassified and len(self.unclassified) != len(self.confusion):
            raise ValueError("unclassified pixels are not given per class")
        return self


class Bin(Record):
    """Pixels of similar probability."""

    pixels: Count
    confidence: Number = None
    accuracy: Number = None


class Reliability(Record):
    """How sure a classifier was, and how often it was right."""

    pixels: Count
    ece: Number
    bins: list[Bin] = []


class Calibration(Record):
    """How well probabilities are calibrated, and by which temperature."""

    temperature: Number = None
    ece_before: Number = None
    test: Reliability | None = None


class AreaEntry(Record):
    """The area of a class: on the map, and estimated with a 95 % interval."""

    mapped: Number
    estimate: Number = None
    low: Number = None
    high: Number = None


class Areas(Record):
    """The areas of all classes."""

    unit: Literal["ha", "pixels"]
    assessed: float = Field(ge=0, le=1)
    places: Count | None = None
    classes: list[AreaEntry] = []


class RefineEntry(Record):
    """How probabilities were refined."""

    method: Name
    reach: Count = 0


class System(Record):
    """One trained system and what it reached."""

    name: Name
    kind: Text = ""
    parameters: int | None = None
    trainable: int | None = None
    train_seconds: Number = None
    pixels_per_second: Number = None
    val: Scores | None = None
    test: Scores
    refine: RefineEntry | None = None
    calibration: Calibration | None = None
    areas: Areas | None = None


class SplitEntry(Record):
    """How the labelled pixels were divided."""

    method: Text
    params: dict[str, Any] = {}
    seed: int | None = None
    hash: Text = ""
    optimistic: bool
    leakage: float = Field(ge=0, le=1)
    patch_size: int = Field(ge=1)
    counts: dict[str, Count] = {}


class StartEntry(Record):
    """What the weights that training started from had seen of the test pixels."""

    share: float = Field(ge=0, le=1)
    split_leakage: float = Field(ge=0, le=1)
    unknown: list[Text] = []
    sentences: list[Text] = []


class CandidateEntry(Record):
    """What cross-validation found of one candidate, or why it did not take part."""

    name: Name
    words: Text = ""
    refined: bool = False
    oa: Number = None
    oa_ci: Interval = None
    oa_plain: Number = None
    aa: Number = None
    kappa: Number = None
    by_fold: list[Number] = []
    seconds: Number = None
    behind: bool = False
    chosen: bool = False
    skipped: Text = ""


class EnsembleEntry(Record):
    """What cross-validation found of the mean of several candidates."""

    oa: Number = None
    oa_ci: Interval = None
    aa: Number = None
    kappa: Number = None


class Comparison(Record):
    """How a system was chosen (``vitreous/tasks/auto.py``)."""

    chosen: list[Name] = Field(min_length=1)
    folds: Count = 0
    spatial: bool = True
    optimistic: bool = False
    labels_missing: Count = 0
    budget: Text = ""
    held_out: Count = 0
    training: Count = 0
    ensemble: EnsembleEntry | None = None
    rows: list[CandidateEntry] = []


class Metrics(Record):
    """``metrics.json``: the classes, the split and the systems (the trained one first)."""

    version: Literal[1] = Field(alias="schema")
    classes: list[ClassEntry] = Field(min_length=1)
    split: SplitEntry
    start: StartEntry | None = None
    systems: list[System] = Field(min_length=1)
    comparison: Comparison | None = None


class ChosenEntry(Record):
    """The epoch that validation pixels or images chose."""

    epoch: int
    epochs: int
    val_oa: Number = None
    score: Number = None


class ModelEntry(Record):
    """The trained model in ``config.json``."""

    name: Name = ""
    parameters: int | None = None
    trainable: int | None = None
    chosen: ChosenEntry | None = None


class Config(Record):
    """``config.json``: everything needed to run it again."""

    recipe: dict[str, Any] = {}
    versions: dict[str, Any] = {}
    command: Text = ""
    model: ModelEntry = ModelEntry()


class Figure(Record):
    """One figure before and after compression."""

    figure: Text
    before: Number
    after: Number


class Compression(Record):
    """``compress.json``: what was done to the run that this one was made from."""

    version: Literal[1] = Field(alias="schema")
    source: Text = Field(alias="from")
    method: Name
    settings: dict[str, Any] = {}
    rows: list[Figure] = []
    layers: list[dict[str, Any]] = []
    notes: list[Text] = []


@dataclass(frozen=True)
class RunRecord:
    """A run folder as read; what the run does not have is None."""

    metrics: Metrics
    config: Config
    log: Log | None
    map_path: Path | None
    compression: Compression | None = None


def read_record(run: Path) -> RunRecord:
    """Read what a run folder says about its run.

    Raises:
        VitreousError: ``metrics.json`` or ``config.json`` is missing or says impossible things.
    """
    map_path = run / "map.tif"
    return RunRecord(
        metrics=read_part(Metrics, run / "metrics.json"),
        config=read_part(Config, run / "config.json"),
        log=read_log(run / "log.csv"),
        map_path=map_path if map_path.is_file() else None,
        compression=read_compression(run),
    )


def read_compression(run: Path) -> Compression | None:
    """Read what was done to the run that a folder's was made from; None where it was trained.

    Raises:
        VitreousError: ``compress.json`` says impossible things.
    """
    path = run / "compress.json"
    return read_part(Compression, path) if path.is_file() else None


_T = TypeVar("_T", bound=Record)


def read_part(kind: type[_T], path: Path) -> _T:
    """Read one JSON file of a run folder.

    Raises:
        VitreousError: it is missing or says impossible things.
    """
    try:
        return kind.model_validate(read_json(path))
    except ValidationError as error:
        issue = error.errors()[0]
        where = ".".join(str(part) for part in issue["loc"]) or "its content"
        raise VitreousError(
            f"{path} is not a valid run record: {plain(where, 80)}: {issue['msg']}.",
            "Train or evaluate the run again to rewrite it.",
        ) from error


def read_log(path: Path) -> Log | None:
    """Read a training log into one column of numbers per name, NaN where a cell is empty.

    Returns:
        ``(epochs,)`` per column, or None where there is no log or no ``epoch`` in it.

    Raises:
        VitreousError: the file is no table of text, or far too large for one.
    """
    if not path.is_file():
        return None
    if path.stat().st_size > LOG_LIMIT:
        raise VitreousError(f"{path} is too large for a training log.")
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, restkey="", restval=""))
    except (UnicodeDecodeError, csv.Error) as error:
        raise VitreousError(f"{path} is not a table of comma-separated values: {error}.") from error
    if not rows or "epoch" not in rows[0]:
        return None
    return {name: _column(rows, name) for name in rows[0] if name}


def _column(rows: list[dict[str, str]], name: str) -> npt.NDArray[np.float64]:
    return np.array([_number(row, name) for row in rows], dtype=np.float64)


def _number(row: Mapping[str, str], name: str) -> float:
    try:
        return float(row[name])
    except ValueError:
        return math.nan
