"""The report of a network that classifies images: scores, pictures that it got right and wrong, classes, curves."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from vitreous.data.image_collection import ImageCollection
from vitreous.errors import VitreousError
from vitreous.files import write_text
from vitreous.report import figures, pictures
from vitreous.report.compression import compression_section
from vitreous.report.markup import Markup, join, tag
from vitreous.report.page import (
    UNIT_WORDS,
    as_svg,
    as_table,
    banner,
    bar,
    document,
    duration,
    learning,
    page_header,
    percent,
    plate,
    quantity,
    score_card,
    settings_of,
)
from vitreous.report.record import (
    LOG_LIMIT,
    ClassEntry,
    Compression,
    Config,
    Count,
    Interval,
    Log,
    Name,
    Number,
    Record,
    Text,
    plain,
    read_compression,
    read_log,
    read_part,
)

SHOWN = 12  # pictures that are right, and as many that are wrong
SIDE = 150  # pixels of a picture, at least
MATRIX_SCALE = 98  # pixels per inch of a confusion matrix


class RecognizedClass(Record):
    """Accuracies of one class; None where it has no images to tell."""

    name: Name
    recall: Number = None
    precision: Number = None
    f1: Number = None
    ap: Number = None
    support: Count = 0


class Recognized(Record):
    """Accuracies on some images."""

    top1: Number = None
    top1_ci: Interval = None
    top5: Number = None
    top5_ci: Interval = None
    map: Number = None
    map_ci: Interval = None
    f1: Number = None
    exact: Number = None
    loss: Number = None
    ece: Number = None
    per_class: list[RecognizedClass] = Field(default_factory=list)
    confusion: list[list[Count]] = Field(default_factory=list)
    unclassified: list[Count] = Field(default_factory=list)


class RecognizedSystem(Record):
    """The trained network and what it reached."""

    name: Name
    parameters: int | None = None
    train_seconds: Number = None
    images_per_second: Number = None
    val: Recognized | None = None
    test: Recognized


class ImagesEntry(Record):
    """The images that it was trained and tested on."""

    source: Text
    counts: dict[str, Count] = Field(default_factory=dict)
    drawn: list[Text] = Field(default_factory=list)
    bands: Count
    size: tuple[Count, Count]
    leakage: float = Field(ge=0, le=1)
    optimistic: bool
    notes: list[Text] = Field(default_factory=list)


class ImageStart(Record):
    """What the weights that training started from had seen of the test images."""

    share: float = Field(ge=0, le=1)
    sentences: list[Text] = Field(default_factory=list)


class RecognitionMetrics(Record):
    """``metrics.json`` of a run that classifies images."""

    version: Literal[1] = Field(alias="schema")
    classes: list[ClassEntry] = Field(min_length=1)
    several: bool
    images: ImagesEntry
    start: ImageStart | None = None
    systems: list[RecognizedSystem] = Field(min_length=1)


@dataclass(frozen=True)
class _Page:
    """Everything that the report shows."""

    metrics: RecognitionMetrics
    config: Config
    log: Log | None
    tested: list[dict[str, str]]
    collection: ImageCollection
    compression: Compression | None = None

    @property
    def trained(self) -> RecognizedSystem:
        return self.metrics.systems[0]


def build_report(run: Path, collection: ImageCollection) -> Path:
    """Write ``report.html`` into the folder of a run that classifies images.

    Args:
        run: folder with ``metrics.json``, ``config.json`` and ``predictions.csv``; ``log.csv`` is used where present.
        collection: the images that it was trained and tested on.

    Returns:
        The path of the page.

    Raises:
        VitreousError: the folder's records are missing or damaged.
    """
    run = Path(run)
    page = _Page(
        read_part(RecognitionMetrics, run / "metrics.json"),
        read_part(Config, run / "config.json"),
        read_log(run / "log.csv"),
        _predictions(run / "predictions.csv"),
        collection,
        read_compression(run),
    )
    path = run / "report.html"
    write_text(path, _document(page))
    return path


def _predictions(path: Path) -> list[dict[str, str]]:
    """Return the rows of the test images.

    Raises:
        VitreousError: the file is missing or is no such table.
    """
    try:
        if path.stat().st_size > LOG_LIMIT:
            raise VitreousError(f"{path} is too large for a report.")
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, restkey="", restval=""))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise VitreousError(
            f"{path} cannot be read: {error}.", "Train the run again to write it."
        ) from error
    if rows and not {"file", "truth"} <= set(rows[0]):
        raise VitreousError(f"{path} lists no test images.", "Train the run again to write it.")
    return rows


def _document(page: _Page) -> Markup:
    trained, images = page.trained, page.metrics.images
    title = plain(images.source, 120)
    size = f", {quantity(trained.parameters)} parameters" if trained.parameters else ""
    lead = tag("p", "classified by ", tag("strong", trained.name), size, class_="lead")
    kind = "Images with several labels" if page.metrics.several else "Image classification"
    unit = UNIT_WORDS.get(page.collection.store.unit, "unknown unit")
    facts = [
        f"{sum(images.counts.values()):,} images",
        f"{images.bands:,} band" + ("s" if images.bands != 1 else ""),
        f"{len(page.metrics.classes):,} classes",
        f"{images.size[0]} × {images.size[1]} pixels to the network",
        unit,
    ]
    return document(
        f"{title} · {trained.name}",
        page_header(kind, title, lead, facts),
        [
            ("numbers", "Accuracy", _numbers(page)),
            ("compression", "Compression", compression_section(page.compression)),
            ("pictures", "Test images", _pictures(page)),
            ("classes", "Classes", _classes(page)),
            ("learning", "Training", _learning(page)),
            ("again", "Reproduce this run", _again(page)),
        ],
    )


# --- accuracy ----------------------------------------------------------------------------------------------


def _numbers(page: _Page) -> Markup:
    test = page.trained.test
    if page.metrics.several:
        cards = [
            score_card("Mean average precision", "mAP", test.map, test.map_ci),
            score_card("F1 of all labels", "F1", test.f1),
            score_card("All labels right", "exact", test.exact),
        ]
    else:
        cards = [score_card("Top-1 accuracy", "top-1", test.top1, test.top1_ci)]
        if test.top5 is not None:
            cards.append(score_card("Top-5 accuracy", "top-5", test.top5, test.top5_ci))
    cards.append(score_card("Calibration error", "ECE", test.ece))
    return join(
        _leakage_banner(page.metrics),
        tag("div", *cards, class_="scores"),
        tag("p", _protocol(page), class_="note"),
    )


def _leakage_banner(metrics: RecognitionMetrics) -> Markup:
    """Say what the test images are worth."""
    images, start = metrics.images, metrics.start
    told = " ".join(start.sentences) if start else ""
    if images.leakage:
        copies = f"{percent(images.leakage)} of the test images are copies of training or validation images. "
        return banner("warning", "Optimistic estimate. ", copies + told)
    if start is not None and start.share:
        return banner("warning", "Optimistic estimate. ", told)
    if told:
        return banner("caution", "Unknown provenance. ", told)
    words = (
        "No test image has the same pixels as a training or validation image. Overlapping crops and other views of one "
        "place are not recognised as such."
    )
    return banner("good", "No copies. ", words)


def _protocol(page: _Page) -> str:
    images, trained = page.metrics.images, page.trained
    counts = images.counts
    drawn = f", drawn at random within classes ({', '.join(images.drawn)})" if images.drawn else ""
    words = (
        f"Protocol: {counts.get('train', 0):,} training, {counts.get('val', 0):,} validation and "
        f"{counts.get('test', 0):,} test images{drawn}; all figures are of the test images. Intervals resample the test "
        "images. The calibration error (ECE) says by how much probabilities and accuracy differ."
    )
    chosen = page.config.model.chosen
    if chosen is not None:
        words += (
            f" Epoch {chosen.epoch} of {chosen.epochs} was chosen by the validation images "
            f"({percent(chosen.score)})."
        )
    if trained.images_per_second:
        words += (
            f" Trained for {duration(trained.train_seconds)}; {trained.images_per_second:,.0f} images per second were "
            "read and classified."
        )
    return " ".join([words, *images.notes])


# --- pictures ----------------------------------------------------------------------------------------------


def _pictures(page: _Page) -> Markup | None:
    """Show test images that were predicted rightly and wrongly."""
    known = {name: number for number, name in enumerate(page.collection.store.names)}
    rows = [row for row in page.tested if row["file"] in known]
    if not rows:
        return None
    draw = _Drawer(page.collection)
    found = "labels" if page.metrics.several else "class"
    right = [row for row in rows if _same(row["truth"], row.get(found, ""))]
    wrong = [row for row in rows if not _same(row["truth"], row.get(found, ""))]
    # Those that the network was most certain of are those that say most about it.
    wrong.sort(key=lambda row: -_number(row.get("probability", "")))
    parts: list[Markup] = []
    for title, words, chosen in (
        (
            "Right",
            f"{len(right):,} of {len(rows):,} test images; a few, evenly spread.",
            _spread(right),
        ),
        (
            "Wrong",
            f"{len(wrong):,} of {len(rows):,} test images; "
            + (
                "a few, evenly spread."
                if page.metrics.several
                else "those with the highest probability."
            ),
            _spread(wrong) if page.metrics.several else wrong[:SHOWN],
        ),
    ):
        if chosen:
            plates = [
                plate(_title(row, found), _caption(row, found), draw(known[row["file"]]))
                for row in chosen
            ]
            parts += [
                tag("h3", title),
                tag("p", words, class_="note"),
                tag("div", *plates, class_="samples"),
            ]
    return join(*parts)


def _spread(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return a few rows from everywhere in the list."""
    return (
        [rows[k] for k in np.unique(np.linspace(0, len(rows) - 1, SHOWN).astype(int))]
        if rows
        else []
    )


def _same(truth: str, found: str) -> bool:
    return set(truth.split(";")) == set(found.split(";"))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _title(row: dict[str, str], found: str) -> str:
    return plain(row.get(found, "").replace(";", ", ") or "none", 80)


def _caption(row: dict[str, str], found: str) -> str:
    words = [f"probability {percent(_number(row['probability']))}"] if "probability" in row else []
    if not _same(row["truth"], row.get(found, "")):
        words.insert(0, f"truth: {plain(row['truth'].replace(';', ', ') or 'none', 80)}")
    return "; ".join(words)


class _Drawer:
    """Draws images of a collection, all with one stretch."""

    def __init__(self, collection: ImageCollection) -> None:
        from vitreous.scenes.cube import make_scene, rgb_bands

        self.store = collection.store
        count = self.store.bands
        if self.store.is_color:
            self.shown, self.limits = [0, 1, 2], [(0.0, 255.0)] * 3
            return
        like = make_scene(np.zeros((count, 1, 1)), wavelengths=self.store.wavelengths)
        self.shown = [*rgb_bands(like)] if count > 1 else [0, 0, 0]
        self.limits = [pictures.band_limits(collection.sample[:, band]) for band in self.shown]

    def __call__(self, number: int) -> pictures.Rgba:
        """Return a picture of an image, large enough to be seen."""
        values = self.store.read(number)[:, :, self.shown].astype(np.float32)
        cube: npt.NDArray[np.float32] = values.transpose(2, 0, 1)
        drawn = pictures.rgb_picture(cube, self.limits)
        step = max(1, max(drawn.shape[:2]) // (2 * SIDE))
        times = max(1, round(SIDE / max(drawn.shape[:2])))
        return drawn[::step, ::step].repeat(times, 0).repeat(times, 1)


# --- classes -----------------------------------------------------------------------------------------------


def _classes(page: _Page) -> Markup | None:
    test = page.trained.test
    if not test.per_class:
        return None
    several = page.metrics.several
    head = (
        "Class",
        *(["Average precision"] if several else []),
        "Recall",
        "Precision",
        "F1",
        "Test images",
    )
    rows = [
        [
            own.name,
            *([bar(own.ap)] if several else []),
            bar(own.recall),
            bar(own.precision),
            bar(own.f1),
            f"{own.support:,}",
        ]
        for own in test.per_class
    ]
    table = as_table(f"Accuracy of {page.trained.name} for each class", head, rows)
    matrix = None if several or not test.confusion else _confusion(test)
    return join(tag("div", table, class_="card scroll"), matrix)


def _confusion(test: Recognized) -> Markup:
    names = [own.name for own in test.per_class]
    values = list(range(1, len(names) + 1))
    figure = figures.confusion_figure(test, names, values, "prediction")
    caption = (
        "Rows are the true class, columns the prediction; cells count test images. A stronger colour marks a larger share "
        "of the true class: blue for correct, orange for misclassified."
    )
    width = figure.get_size_inches()[0] * MATRIX_SCALE
    drawn = tag(
        "div",
        as_svg(figure, "confusion", f"Confusion matrix of {len(values)} classes"),
        style=f"max-width:{width:.0f}px;min-width:{min(width, 560):.0f}px",
    )
    return tag("figure", drawn, tag("figcaption", caption), class_="card scroll matrix")


def _learning(page: _Page) -> Markup | None:
    log = page.log
    if log is None:
        return None
    return learning(
        [
            ("accuracy-curve", "Accuracy over the epochs", figures.recognition_figure(log)),
            ("loss-curve", "Loss over the epochs", figures.loss_figure(log)),
            ("rate-curve", "Learning rate over the epochs", figures.rate_figure(log)),
        ]
    )


def _again(page: _Page) -> Markup:
    chosen = page.config.model.chosen
    facts = [("Epoch", f"{chosen.epoch} of {chosen.epochs}")] if chosen else []
    return settings_of(page.config, facts, "Images", str(page.collection.source))
