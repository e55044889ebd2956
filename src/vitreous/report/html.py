"""The report of a classification run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.errors import VitreousError
from vitreous.files import write_text
from vitreous.report import figures, pictures
from vitreous.report.certainty import areas_section, calibration_section
from vitreous.report.compression import compression_section
from vitreous.report.markup import Markup, join, tag
from vitreous.report.page import (
    MISSING,
    UNIT_WORDS,
    as_svg,
    as_table,
    banner,
    bar,
    document,
    duration,
    interval_range,
    learning,
    page_header,
    percent,
    plate,
    quantity,
    ratio,
    run_again,
    scene_facts,
    scene_title,
    score_card,
)
from vitreous.report.record import (
    ClassEntry,
    Comparison,
    Interval,
    Metrics,
    Number,
    RefineEntry,
    RunRecord,
    Scores,
    SplitEntry,
    System,
    plain,
    read_record,
)
from vitreous.report.spectra import class_spectra
from vitreous.scenes.cube import wavelengths_of

SPECTRA_SHOWN = 48
LEGEND_IN_GRID = 20  # a longer legend gets the page's whole width
MATRIX_SCALE = 98  # pixels per inch of a confusion matrix
SPLIT_WORDS = {
    "blocks": "separate spatial blocks",
    "random": "random pixels",
    "fixed": "the scene's predefined split",
    "files": "separate label files",
    "scenes": "separate scenes",
}


class SplitRoles(Protocol):
    """All that a report needs of a split: the role of every pixel."""

    @property
    def roles(self) -> npt.NDArray[np.uint8]:
        """``(height, width)``: 0 unused, 1 train, 2 validation, 3 test."""


class Shown(NamedTuple):
    """A scene that is shown.

    Attributes:
        name: of the scene, for headings.
        scene: the scene (read thinned, and in small tiles for the spectra).
        labels: its labels ``(y, x)``, from 1 on.
        roles: ``(height, width)``: 0 unused, 1 train, 2 validation, 3 test.
        map_path: its map, None where there is none.
    """

    name: str
    scene: xr.DataArray
    labels: xr.DataArray
    roles: npt.NDArray[np.uint8]
    map_path: Path | None = None


class ShownCollection(NamedTuple):
    """What is shown of a collection.

    Attributes:
        title: its name.
        shown: some of its test scenes.
        learned: one of its training scenes, for the spectra.
        training: ``(classes + 1,)`` training pixels by class number, of all scenes.
    """

    title: str
    shown: Sequence[Shown]
    learned: Shown
    training: npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Place:
    """A scene on the page, with its labels as an array."""

    name: str
    scene: xr.DataArray
    labels: npt.NDArray[Any]
    roles: npt.NDArray[np.uint8]
    map_path: Path | None


@dataclass(frozen=True)
class _Page:
    """What the sections are made of."""

    record: RunRecord
    title: str
    places: list[_Place]
    learned: _Place
    training: npt.NDArray[np.int64]

    @property
    def scene(self) -> xr.DataArray:
        """The scene that the page is about, or one of them."""
        return self.places[0].scene

    @property
    def classes(self) -> list[ClassEntry]:
        return self.record.metrics.classes

    @property
    def numbered(self) -> list[tuple[int, ClassEntry]]:
        """The classes with their numbers in ``labels``, from 1 on."""
        return list(enumerate(self.classes, start=1))

    @property
    def codes(self) -> list[int]:
        return [entry.value for entry in self.classes]

    @property
    def colors(self) -> dict[int, str]:
        return {number: entry.color for number, entry in self.numbered}

    @property
    def trained(self) -> System:
        return self.record.metrics.systems[0]


def build_report(
    run: Path,
    scene: xr.DataArray,
    labels: xr.DataArray,
    split: SplitRoles,
    *,
    collection: ShownCollection | None = None,
) -> Path:
    """Write ``report.html`` into a run folder.

    Args:
        run: folder with ``metrics.json`` and ``config.json``; ``log.csv`` and ``map.tif`` are used where present.
        scene: the scene that the run was trained on (read thinned, and in small tiles for the spectra).
        labels: its labels ``(y, x)``.
        split: the split that the run was trained and tested with.
        collection: of a run on several scenes, what is shown of them; the arguments above are of one of them.

    Returns:
        The path of the page.

    Raises:
        VitreousError: the folder's records are missing or damaged, or scene, labels, split and map are of
            different sizes.
    """
    run = Path(run)
    record = read_record(run)
    if collection is None:
        own = _place(Shown("", scene, labels, np.asarray(split.roles), record.map_path))
        chosen = own.labels[(own.roles == pictures.TRAIN) & (own.labels > 0)]
        counts = np.bincount(chosen.ravel(), minlength=len(record.metrics.classes) + 1)
        page = _Page(record, scene_title(scene), [own], own, counts)
    else:
        places = [_place(one) for one in collection.shown]
        learned = _place(collection.learned)
        page = _Page(record, collection.title, places, learned, collection.training)
    path = run / "report.html"
    write_text(path, _document(page))
    return path


def _place(shown: Shown) -> _Place:
    """Return a scene on the page, if all that is known of it is of one size.

    Raises:
        VitreousError: it is not.
    """
    truth, roles = np.asarray(shown.labels.values), np.asarray(shown.roles)
    shape = (shown.scene.sizes["y"], shown.scene.sizes["x"])
    if truth.shape != shape or roles.shape != shape:
        raise VitreousError(
            f"The scene has {shape[0]} x {shape[1]} pixels, but its labels have {truth.shape} and its split "
            f"{roles.shape}.",
            "Build the report with the labels and the split of the same scene.",
        )
    path = shown.map_path
    return _Place(
        shown.name, shown.scene, truth, roles, path if path is not None and path.is_file() else None
    )


def _document(page: _Page) -> Markup:
    trained = page.trained
    lead = tag("p", "mapped by ", tag("strong", trained.name), _model_size(trained), class_="lead")
    facts = [*scene_facts(page.scene), f"{len(page.classes)} classes"]
    return document(
        f"{page.title} · {trained.name}",
        page_header("Land-cover classification", page.title, lead, facts),
        [
            ("numbers", "Accuracy", _numbers(page)),
            ("compression", "Compression", compression_section(page.record.compression)),
            ("scenes", "Test scenes", _scenes(page)),
            ("maps", "Maps", _maps(page)),
            ("candidates", "How the system was chosen", _candidates(page)),
            ("systems", "Comparison of systems", _systems(page)),
            ("classes", "Classes", _classes(page)),
            ("areas", "Area estimates", areas_section(page.classes, trained.areas)),
            ("calibration", "Calibration", calibration_section(trained)),
            ("learning", "Training", _learning(page)),
            ("spectra", "Spectra", _spectra(page)),
            ("again", "Reproduce this run", _again(page)),
        ],
    )


def _model_size(system: System) -> str:
    if not system.parameters:
        return ""
    size = f", {quantity(system.parameters)} parameters"
    if system.trainable is not None and system.trainable < system.parameters:
        size += f" ({quantity(system.trainable)} trained)"
    return size


# --- accuracy ---------------------------------------------------------------------------------------------


def _numbers(page: _Page) -> Markup:
    test = page.trained.test
    cards = [
        score_card("Overall accuracy", "OA", test.oa, test.oa_ci),
        score_card("Average accuracy", "AA", test.aa, test.aa_ci),
        score_card("Cohen's kappa", "κ", test.kappa, test.kappa_ci, ratio),
    ]
    if test.miou is not None:
        name = "Mean intersection over union"
        cards.append(score_card(name, "mIoU", test.miou, test.miou_ci, percent))
    return join(
        _leakage_banner(page.record.metrics),
        tag("div", *cards, class_="scores"),
        tag("p", _protocol(page), class_="note"),
    )


def _leakage_banner(metrics: Metrics) -> Markup:
    """Say what the test pixels are worth: seen in training, by the weights it started from, or by neither."""
    split, start = metrics.split, metrics.start
    side = f"{split.patch_size} × {split.patch_size}"
    own = split.leakage if start is None else start.split_leakage
    share = f"{percent(own)} of the test pixels lie inside a {side} training patch"
    if own == 0:
        share = f"No test pixel lies inside a {side} training patch"
    told = " ".join(start.sentences) if start else ""
    if split.optimistic:
        neighbours = split.method == "random" or own > 0
        words = f"{share}. "
        if neighbours:
            words = (
                f"Training and test pixels are neighbours in this split ({_method(split)}). {share}, so their "
                "surroundings were seen in training. "
            )
        words += f"{told} Expect lower accuracy on unseen ground"
        words += "; a block split shows by how much." if neighbours else "."
        return banner("warning", "Optimistic estimate. ", words)
    if split.leakage > 0:
        words = f"{share}: their surroundings were seen in training, so the accuracy is slightly optimistic. {told}"
        return banner("caution", "Some leakage. ", words)
    if start is not None and start.unknown:
        return banner("caution", "Unknown provenance. ", f"{share}. {told}")
    words = f"{share}: the accuracy applies to held-out ground in this scene."
    return banner("good", "No leakage. ", words)


def _protocol(page: _Page) -> str:
    split, system = page.record.metrics.split, page.trained
    counts = split.counts
    words = (
        f"Protocol: {_method(split)}; {counts.get('train', 0):,} training, {counts.get('val', 0):,} validation "
        f"and {counts.get('test', 0):,} test pixels; leakage {percent(split.leakage)}. "
        f"All accuracies are measured on the test pixels. {_interval_words(system.test)}"
    )
    if system.refine is not None:
        words += (
            f" The class probabilities are smoothed within the edges of the scene ({_filter_name(system.refine)}), which "
            f"looks {system.refine.reach} pixels further around and uses no labels."
        )
    untested = [score.name for score in system.test.per_class if score.support == 0]
    if untested:
        words += f" Classes without test pixels (not part of AA): {', '.join(untested)}."
    chosen = page.record.config.model.chosen
    if chosen is not None:
        refit = (
            "; the network was then retrained on training and validation pixels for as many epochs"
        )
        words += (
            f" Epoch {chosen.epoch} of {chosen.epochs} was chosen by its OA on the validation pixels "
            f"({percent(chosen.val_oa)}){refit if page.record.config.recipe.get('refit') else ''}."
        )
    elif system.val is not None:
        words += (
            f" On the validation pixels: OA {percent(system.val.oa)}, κ {ratio(system.val.kappa)}."
        )
    return words


def _filter_name(found: RefineEntry) -> str:
    return found.method.replace("_", " ")


def _interval_words(test: Scores) -> str:
    """Say how the intervals were found, and what they leave out."""
    found = test.intervals
    if found is not None and found.method == "scene bootstrap":
        return (
            f"The confidence intervals resample the {found.blocks or 0:,} test scenes, because errors of one scene "
            "are correlated."
        )
    if found is None or found.blocks is None or found.block_size is None:
        return (
            "The confidence intervals treat test pixels as independent, although neighbours are correlated: another "
            "field or another year may differ by more."
        )
    side = f"{found.block_size} × {found.block_size}"
    if test.oa_ci is None:
        return f"They all lie in one block of {side} pixels, too few for confidence intervals."
    return (
        f"The confidence intervals resample the {found.blocks:,} blocks of {side} pixels that contain them, because "
        "errors "
        "of neighbours are correlated; another scene or another year may differ by more."
    )


def _method(split: SplitEntry) -> str:
    return SPLIT_WORDS.get(split.method, plain(split.method, 60))


# --- maps -------------------------------------------------------------------------------------------------


def _maps(page: _Page) -> Markup:
    legend = _legend(page)
    if len(page.places) > 1:
        rows = [
            join(tag("h3", place.name), tag("div", *_plates(page, place), class_="plates"))
            for place in page.places
        ]
        return join(*rows, legend)
    plates = _plates(page, page.places[0])
    if len(page.classes) <= LEGEND_IN_GRID:
        return tag("div", *plates, legend, class_="plates")
    return join(tag("div", *plates, class_="plates"), legend)


def _plates(page: _Page, place: _Place) -> list[Markup]:
    """Return the pictures of a scene."""
    height, width = place.labels.shape
    step = pictures.stride_for(height, width)
    scene = pictures.scene_picture(place.scene)
    thinned = "" if step == 1 else f" One pixel in {step} is shown."
    truth, roles = pictures.thin(place.labels, step), pictures.thin(place.roles, step)
    plates = [
        plate("Scene", f"{pictures.scene_colours(place.scene)}.{thinned}", scene, photograph=True),
        plate("Ground truth", "The labelled pixels.", pictures.class_picture(truth, page.colors)),
    ]
    map_path = place.map_path
    if map_path is not None:
        mapped = pictures.read_map(map_path, (height, width), page.codes)
        plates.append(
            plate(
                "Map",
                f"Predicted by {page.trained.name}.",
                pictures.class_picture(mapped, page.colors),
            )
        )
    plates.append(
        plate(
            "Split",
            _key(
                {"train": pictures.TRAIN, "validation": pictures.VALIDATION, "test": pictures.TEST},
                roles,
            ),
            pictures.overlay_picture(roles, pictures.ROLE_COLORS, scene),
        )
    )
    if map_path is not None:
        outcomes = pictures.read_outcomes(map_path, place.labels, place.roles, page.codes)
        plates.append(
            plate(
                "Errors",
                _outcome_key(),
                pictures.overlay_picture(outcomes, pictures.OUTCOME_COLORS, scene),
            )
        )
    return plates


def _key(names: Mapping[str, int], roles: npt.NDArray[np.uint8]) -> Markup:
    present = set(np.unique(roles).tolist())
    return join(
        *(
            _chip(name, pictures.ROLE_COLORS[role])
            for name, role in names.items()
            if role in present
        )
    )


def _outcome_key() -> Markup:
    return join(
        _chip("right", pictures.OUTCOME_COLORS[pictures.CORRECT]),
        _chip("misclassified test pixels", pictures.OUTCOME_COLORS[pictures.WRONG]),
    )


def _chip(name: str, color: str) -> Markup:
    return tag("span", _swatch(color), name, class_="chip")


def _swatch(color: str) -> Markup:
    return tag("i", class_="swatch", style=f"background:{color}", aria_hidden="true")


def _legend(page: _Page) -> Markup:
    counts = np.sum(
        [
            np.bincount(place.labels[place.labels > 0], minlength=len(page.classes) + 1)
            for place in page.places
        ],
        axis=0,
    )
    rows = [
        tag(
            "li",
            _swatch(entry.color),
            tag("span", entry.name, class_="label"),
            tag("small", f"{counts[number]:,}"),
        )
        for number, entry in page.numbered
    ]
    words = tag("p", tag("strong", "Classes"), " and their labelled pixels", class_="caption")
    return tag("div", words, tag("ul", *rows), class_="card legend")


# --- scenes -----------------------------------------------------------------------------------------------


def _scenes(page: _Page) -> Markup | None:
    """Show how accuracy differs from scene to scene."""
    found = page.trained.test.scenes
    if not found:
        return None
    head = ("Scene", "mIoU", "OA", "AA", "κ", "Test pixels")
    rows = [
        [
            one.name,
            bar(one.miou),
            percent(one.oa),
            percent(one.aa),
            ratio(one.kappa),
            f"{one.pixels:,}",
        ]
        for one in found
    ]
    table = as_table(f"Accuracy of {page.trained.name} on each test scene", head, rows)
    return tag("div", table, class_="card scroll")


# --- candidates -------------------------------------------------------------------------------------------


def _how_divided(found: Comparison) -> str:
    """Say how held-out pixels of a comparison lie to those that trained."""
    if found.optimistic:
        return "neighbouring blocks, because the labels are too few for folds that lie apart: figures are optimistic"
    how = (
        "whole blocks left out, and what lies near the others" if found.spatial else "random folds"
    )
    return f"{how}, as test pixels lie to training pixels"


def _candidates(page: _Page) -> Markup | None:
    """Show what cross-validation found of every candidate."""
    found = page.record.metrics.comparison
    if found is None:
        return None
    if not found.rows:
        words = (
            f"{found.training:,} training pixels are too few to compare candidates by cross-validation: "
            f"{', '.join(found.chosen)} was trained, the first of those that were allowed."
        )
        if found.labels_missing:
            words += f" About {found.labels_missing} more labels in other places would allow it."
        return tag("p", words, class_="note")
    tested = sorted(
        (row for row in found.rows if row.oa is not None), key=lambda row: -(row.oa or 0)
    )
    head = ("Candidate", "OA", "Without refinement", "AA", "κ", "Folds", "Seconds")
    rows = [
        [
            join(
                tag("strong", row.name) if row.chosen else row.name,
                tag(
                    "small",
                    f" {row.words}{'; given up, behind after a fold' if row.behind else ''}",
                ),
            ),
            _with_interval(row.oa, row.oa_ci, percent, tested[0].oa),
            percent(row.oa_plain) if row.refined else MISSING,
            percent(row.aa),
            ratio(row.kappa),
            str(len(row.by_fold)),
            duration(row.seconds),
        ]
        for row in tested
    ]
    words = (
        f"Cross-validation in {found.folds} folds of the {found.training:,} training pixels ({_how_divided(found)}); "
        f"{found.held_out:,} held-out pixels of classes that also train. No test pixel took part. "
        f"Budget: {found.budget}. Trained: {' and '.join(found.chosen)}"
    )
    if found.ensemble is not None:
        words += f", whose calibrated probabilities are averaged (OA in cross-validation {percent(found.ensemble.oa)})"
    left_out = [f"{row.name} ({row.skipped})" for row in found.rows if row.skipped]
    words += "." + (f" Not compared: {'; '.join(left_out)}." if left_out else "")
    figure = figures.candidates_figure(tested)
    told = f"OA of {len(tested)} candidates in cross-validation, with 95 % intervals and the single folds"
    return join(
        tag("p", words, class_="note"),
        tag("div", as_svg(figure, "candidates", told), class_="card wide"),
        tag(
            "div",
            as_table("Candidates in cross-validation on training pixels", head, rows),
            class_="card scroll",
        ),
    )


# --- systems ----------------------------------------------------------------------------------------------


def _systems(page: _Page) -> Markup | None:
    systems = page.record.metrics.systems
    if len(systems) < 2:
        return None
    figure = figures.systems_figure(systems)
    words = (
        f"OA, AA and kappa of {len(systems)} systems on the same test pixels with 95 % intervals"
    )
    best = {
        key: max(
            (value for s in systems if (value := getattr(s.test, key)) is not None), default=None
        )
        for key in ("oa", "aa", "kappa")
    }
    head = ("System", "OA", "AA", "κ", "Parameters", "Training", "Pixels/s")
    rows = [
        [
            tag("strong", system.name) if index == 0 else system.name,
            _with_interval(system.test.oa, system.test.oa_ci, percent, best["oa"]),
            _with_interval(system.test.aa, system.test.aa_ci, percent, best["aa"]),
            _with_interval(system.test.kappa, system.test.kappa_ci, ratio, best["kappa"]),
            quantity(system.parameters),
            duration(system.train_seconds),
            quantity(system.pixels_per_second),
        ]
        for index, system in enumerate(systems)
    ]
    return join(
        tag("div", as_svg(figure, "systems", words), class_="card wide"),
        tag(
            "div",
            as_table("Accuracy of all systems on the same test pixels", head, rows),
            class_="card scroll",
        ),
    )


def _with_interval(value: Number, interval: Interval, write: Any, best: float | None) -> Markup:
    shown = write(value)
    number = tag("b", shown) if value is not None and value == best else Markup(shown)
    return join(number, tag("small", interval_range(interval, write)) if interval else None)


# --- classes ----------------------------------------------------------------------------------------------


def _classes(page: _Page) -> Markup | None:
    test = page.trained.test
    parts: list[Markup] = []
    if test.per_class:
        parts.append(tag("div", _class_table(page, test), class_="card scroll"))
    if untested := [entry for entry in page.classes if not entry.testable]:
        told = ", ".join(f"{entry.name} ({entry.why})" for entry in untested)
        words = (
            f"† Not testable here: {told}. What is labelled of these classes lies in one place, or only on one side of the "
            "split: their accuracy says nothing about other ground."
        )
        parts.append(tag("p", words, class_="note"))
    if test.confusion:
        parts.append(_confusion(page, test))
    return join(*parts) if parts else None


def _class_table(page: _Page, test: Scores) -> Markup:
    trained = {code: int(count) for code, count in zip(page.codes, page.training[1:], strict=False)}
    colors = {entry.value: entry.color for entry in page.classes}
    untested = {entry.value for entry in page.classes if not entry.testable}
    head = (
        "Class",
        "Producer's accuracy",
        "User's accuracy",
        "F1",
        "IoU",
        "Training pixels",
        "Test pixels",
    )
    rows = [
        [
            join(
                _swatch(colors.get(score.value, "#808080")),
                score.name,
                tag("small", " †") if score.value in untested else None,
            ),
            bar(score.producer),
            bar(score.user),
            bar(score.f1),
            bar(score.iou),
            f"{trained.get(score.value, 0):,}",
            f"{score.support:,}",
        ]
        for score in test.per_class
    ]
    return as_table(f"Accuracy of {page.trained.name} for each class", head, rows)


def _confusion(page: _Page, test: Scores) -> Markup:
    entries = test.per_class if len(test.per_class) == len(test.confusion) else page.classes
    if len(entries) == len(test.confusion):
        names, values = [entry.name for entry in entries], [entry.value for entry in entries]
    else:
        values = list(range(1, len(test.confusion) + 1))
        names = [""] * len(values)
    figure = figures.confusion_figure(test, names, values)
    caption = (
        "Rows are the ground truth, columns the prediction; cells count test pixels. A stronger colour marks a larger "
        "share of the true class: blue for correct, orange for misclassified."
    )
    if sum(test.unclassified):
        caption += f" {sum(test.unclassified):,} test pixels have no prediction and count as wrong."
    width = figure.get_size_inches()[0] * MATRIX_SCALE
    drawn = tag(
        "div",
        as_svg(figure, "confusion", f"Confusion matrix of {len(values)} classes"),
        style=f"max-width:{width:.0f}px;min-width:{min(width, 560):.0f}px",
    )
    return tag("figure", drawn, tag("figcaption", caption), class_="card scroll matrix")


# --- learning ---------------------------------------------------------------------------------------------


def _learning(page: _Page) -> Markup | None:
    log = page.record.log
    if log is None:
        return None
    return learning(
        [
            ("accuracy", "OA, AA and kappa per epoch", figures.accuracy_figure(log)),
            ("loss", "Loss per epoch", figures.loss_figure(log)),
            ("rate", "Learning rate per epoch", figures.rate_figure(log)),
        ]
    )


# --- spectra ----------------------------------------------------------------------------------------------


def _spectra(page: _Page) -> Markup | None:
    learned = page.learned
    training = learned.roles == pictures.TRAIN
    counts = page.training
    # The commonest classes, where there are more than anybody would look through.
    common = sorted(range(1, len(page.classes) + 1), key=lambda number: -counts[number])
    chosen = sorted(common[:SPECTRA_SHOWN])
    spectra = class_spectra(learned.scene, learned.labels, training, chosen)
    if not spectra:
        return None
    overall = np.mean([spectrum.mean for spectrum in spectra], axis=0)
    low = min(float(np.nanmin(s.mean - s.deviation)) for s in spectra)
    high = max(float(np.nanmax(s.mean + s.deviation)) for s in spectra)
    margin = 0.04 * (high - low) or 1.0
    cards = []
    for spectrum in spectra:
        entry = page.classes[spectrum.value - 1]
        figure = figures.spectrum_figure(
            spectrum,
            entry.color,
            wavelengths_of(page.scene),
            overall,
            (low - margin, high + margin),
        )
        title = tag(
            "figcaption",
            _swatch(entry.color),
            entry.name,
            " ",
            tag("small", f"{spectrum.pixels:,} px"),
        )
        drawn = as_svg(figure, f"spectrum-{spectrum.value}", f"Mean spectrum of {entry.name}")
        cards.append(tag("figure", title, drawn, class_="card"))
    unit = UNIT_WORDS.get(str(page.scene.attrs.get("unit")), "values")
    words = (
        f"Mean of the training pixels in {unit}, ±1 standard deviation in the colour of the class; dashed: mean of all "
        "classes. Lines are interrupted at bands that are not used."
    )
    return join(tag("p", words, class_="note"), tag("div", *cards, class_="spectra"))


# --- run it again -----------------------------------------------------------------------------------------


def _again(page: _Page) -> Markup:
    split = page.record.metrics.split
    facts = [
        ("Split", f"{_method(split)}" + (f", seed {split.seed}" if split.seed is not None else "")),
        *((f"Split: {str(key).replace('_', ' ')}", value) for key, value in split.params.items()),
        ("Split hash", tag("code", split.hash) if split.hash else MISSING),
    ]
    return run_again(page.record.config, page.scene, facts)
