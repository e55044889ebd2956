"""The report of a restoration run: before and after, differences, spectra, and the filters beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr
from pydantic import Field

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
    document,
    duration,
    learning,
    page_header,
    plate,
    quantity,
    run_again,
    scene_facts,
    scene_title,
)
from vitreous.report.record import (
    Compression,
    Config,
    Count,
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
from vitreous.scenes.cube import rgb_bands, wavelengths_of

SHOWN_SPECTRA = 3
ERROR_SCALE = 99.0  # percentile of the input's error that is drawn brightest

Cube = npt.NDArray[np.float32]


class Quality(Record):
    """How near a restored cube comes to the clean one."""

    psnr: Number
    ssim: Number
    sam: Number
    ergas: Number
    psnr_per_band: list[Number] = Field(default_factory=list)
    scenes: list[Quality] = Field(default_factory=list)


class Restored(Record):
    """One system and what it reached."""

    name: Name
    kind: Name = ""
    parameters: int | None = None
    train_seconds: Number = None
    pixels_per_second: Number = None
    test: Quality


class Degraded(Record):
    """What was undone."""

    name: Name
    settings: dict[str, Any] = Field(default_factory=dict)


class RestorationStart(Record):
    """What the weights that training started from had seen of the test area."""

    share: float = Field(ge=0, le=1)
    sentences: list[Text] = Field(default_factory=list)


class RestorationScene(Record):
    """A scene of a collection."""

    name: Name
    role: Name


class RestorationMetrics(Record):
    """``metrics.json`` of a restoration run: the trained system first."""

    version: Literal[1] = Field(alias="schema")
    degradation: Degraded
    scale: int = Field(ge=1)
    test_pixels: Count
    start: RestorationStart | None = None
    bands: Count
    wavelengths: list[float] | None = None
    areas: dict[str, list[int]] = Field(default_factory=dict)
    scenes: list[RestorationScene] = Field(default_factory=list)
    systems: list[Restored] = Field(min_length=1)


class ShownArea(NamedTuple):
    """A further test scene of a collection.

    Attributes:
        scene: the scene.
        clean: ``(bands, height, width)`` its test area, NaN where invalid.
        degraded: ``(bands, height / scale, width / scale)``.
        restored: ``(bands, height, width)``.
    """

    scene: xr.DataArray
    clean: Cube
    degraded: Cube
    restored: Cube


@dataclass(frozen=True)
class _Page:
    metrics: RestorationMetrics
    config: Config
    log: Log | None
    scene: xr.DataArray
    clean: Cube
    degraded: Cube
    restored: Cube
    compression: Compression | None = None
    others: tuple[ShownArea, ...] = ()

    @property
    def trained(self) -> Restored:
        return self.metrics.systems[0]

    @property
    def words(self) -> str:
        settings = self.metrics.degradation.settings.items()
        parts = ", ".join(f"{plain(key, 60)} {_plain(value)}" for key, value in settings)
        return self.metrics.degradation.name.replace("_", " ") + (f" ({parts})" if parts else "")


def build_report(
    run: Path,
    scene: xr.DataArray,
    clean: Cube,
    degraded: Cube,
    restored: Cube,
    others: Sequence[ShownArea] = (),
) -> Path:
    """Write ``report.html`` into the folder of a restoration run.

    Args:
        run: folder with ``metrics.json`` and ``config.json``; ``log.csv`` is used where present.
        scene: the scene that the run was trained on, or the first test scene of a collection.
        clean: ``(bands, height, width)`` the test area, NaN where invalid.
        degraded: ``(bands, height / scale, width / scale)``.
        restored: ``(bands, height, width)``.
        others: further test scenes of a collection.

    Returns:
        The path of the page.

    Raises:
        VitreousError: the folder's records are missing or damaged.
    """
    run = Path(run)
    page = _Page(
        read_part(RestorationMetrics, run / "metrics.json"),
        read_part(Config, run / "config.json"),
        read_log(run / "log.csv"),
        scene,
        clean,
        degraded,
        restored,
        read_compression(run),
        tuple(others),
    )
    for one in _pages(page):
        _check(one)
    path = run / "report.html"
    write_text(path, _document(page))
    return path


def _pages(page: _Page) -> list[_Page]:
    """Return the page of each test scene that is shown, the first one first."""
    return [page, *(replace(page, **other._asdict(), others=()) for other in page.others)]


def _check(page: _Page) -> None:
    """Refuse cubes that are not those of which the metrics speak."""
    metrics = page.metrics
    bands, height, width = page.clean.shape
    coarse = (bands, height // metrics.scale, width // metrics.scale)
    centres = bands if metrics.wavelengths is None else len(metrics.wavelengths)
    if {bands, metrics.bands, centres} != {bands} or page.degraded.shape != coarse:
        raise VitreousError(
            f"metrics.json describes {metrics.bands} bands, {centres} wavelengths and an input {metrics.scale} times "
            f"coarser; the cubes have the shapes {page.clean.shape} and {page.degraded.shape}.",
            "Evaluate the run again to rewrite it.",
        )


def _document(page: _Page) -> Markup:
    title, trained = scene_title(page.scene), page.trained
    size = f", {quantity(trained.parameters)} parameters" if trained.parameters else ""
    lead = tag("p", "restored by ", tag("strong", trained.name), size, class_="lead")
    done = "Super-resolution" if page.metrics.scale > 1 else "Denoising"
    return document(
        f"{title} · {trained.name}",
        page_header(done, title, lead, [*scene_facts(page.scene), page.words]),
        [
            ("numbers", "Quality", _numbers(page)),
            ("compression", "Compression", compression_section(page.compression)),
            ("scenes", "Test scenes", _scenes(page)),
            ("pictures", "Before and after", _all_pictures(page)),
            ("spectra", "Spectra", _spectra(page)),
            ("systems", "Systems compared", _systems(page)),
            ("bands", "Bands", _bands(page)),
            ("learning", "Training", _learning(page)),
            ("again", "Reproduce this run", _again(page)),
        ],
    )


def _numbers(page: _Page) -> Markup:
    test = page.trained.test
    cards = [
        ("Peak signal-to-noise ratio", "dB", _write(test.psnr, "", 2)),
        ("Structural similarity", "SSIM", _write(test.ssim, "", 3)),
        ("Spectral angle", "SAM", _write(test.sam, "°", 2)),
        ("Relative global error", "ERGAS", _write(test.ergas, "", 2)),
    ]
    start = page.metrics.start
    held_out = "" if start is not None and start.share else "held-out "
    words = (
        f"Measured on {page.metrics.test_pixels:,} {held_out}pixels of the scene, degraded by {page.words}. PSNR "
        "and SSIM are means over the bands, each scaled to its range; the spectral angle and ERGAS use physical values."
    )
    return join(
        _start_banner(start),
        tag(
            "div",
            *(
                tag(
                    "div",
                    tag("p", name, " ", tag("abbr", symbol, title=name), class_="name"),
                    tag("p", shown, class_="value"),
                    class_="card score",
                )
                for name, symbol, shown in cards
            ),
            class_="scores",
        ),
        tag("p", words, class_="note"),
    )


def _start_banner(start: RestorationStart | None) -> Markup | None:
    """Say what the weights had seen of the test area before this training, where there is something to say."""
    if start is None or not start.sentences:
        return None
    kind, title = (
        ("warning", "Optimistic. ") if start.share else ("caution", "Unknown provenance. ")
    )
    words = " ".join(start.sentences)
    return banner(kind, title, words)


def _scenes(page: _Page) -> Markup | None:
    """The figures of every test scene of a collection."""
    names = [scene.name for scene in page.metrics.scenes if scene.role == "test"]
    tests = page.trained.test.scenes
    if len(tests) < 2 or len(names) != len(tests):
        return None
    rows = [
        [
            name,
            _write(test.psnr, "dB", 2),
            _write(test.ssim, "", 3),
            _write(test.sam, "°", 2),
            _write(test.ergas, "", 2),
        ]
        for name, test in zip(names, tests, strict=True)
    ]
    head = ("Scene", "PSNR", "SSIM", "SAM", "ERGAS")
    table = as_table(f"{page.trained.name} on each test scene", head, rows)
    return tag("div", table, class_="card scroll")


def _all_pictures(page: _Page) -> Markup:
    """The pictures of every test scene that is shown, under its name where there are several."""
    if not page.others:
        return _pictures(page)
    return join(*(join(tag("h3", scene_title(one.scene)), _pictures(one)) for one in _pages(page)))


def _pictures(page: _Page) -> Markup:
    """Show the test area clean, degraded and restored with one stretch, and what remains of the error."""
    bands = list(rgb_bands(_cube_scene(page)))
    clean, restored = page.clean[bands], page.restored[bands]
    degraded = page.degraded[bands].repeat(page.metrics.scale, 1).repeat(page.metrics.scale, 2)
    limits = [pictures.band_limits(band) for band in clean]
    before, after = (np.abs(cube - page.clean).mean(0) for cube in (_grown(page), page.restored))
    known = before[np.isfinite(before)]
    most = float(np.percentile(known, ERROR_SCALE)) if known.size else 1.0
    unit = UNIT_WORDS.get(str(page.scene.attrs.get("unit")), "values")
    scale = f"black 0, white {most:.3g} {unit}"
    plates = [
        plate("Reference", "original scene", pictures.rgb_picture(clean, limits)),
        plate("Degraded", page.words, pictures.rgb_picture(degraded, limits)),
        plate("Restored", f"output of {page.trained.name}", pictures.rgb_picture(restored, limits)),
        plate("Error before restoration", f"mean over the bands; {scale}", _grey(before, most)),
        plate("Error after restoration", f"mean over the bands; {scale}", _grey(after, most)),
    ]
    return tag("div", *plates, class_="plates")


def _spectra(page: _Page) -> Markup | None:
    """Draw the spectra of a few pixels of different brightness, before and after."""
    valid = np.argwhere(np.isfinite(page.clean[0]))
    if not len(valid):
        return None
    brightness = page.clean[:, valid[:, 0], valid[:, 1]].mean(0)
    order = np.argsort(brightness)
    chosen = [valid[order[round(q * (len(order) - 1))]] for q in (0.2, 0.5, 0.8)][:SHOWN_SPECTRA]
    grown = _grown(page)
    cards = []
    for number, (row, column) in enumerate(chosen):
        figure = figures.restored_spectrum_figure(
            grown[:, row, column],
            page.clean[:, row, column],
            page.restored[:, row, column],
            wavelengths_of(_cube_scene(page)),
        )
        title = tag("figcaption", f"Pixel at row {row}, column {column} of the test area")
        drawn = as_svg(figure, f"pixel-{number}", f"Spectra of the pixel at {row}, {column}")
        cards.append(tag("figure", title, drawn, class_="card"))
    words = "Grey: degraded. Dashed: original. Blue: restored."
    return join(tag("p", words, class_="note"), tag("div", *cards, class_="curves"))


def _systems(page: _Page) -> Markup | None:
    systems = page.metrics.systems
    if len(systems) < 2:
        return None
    head = ("System", "PSNR", "SSIM", "SAM", "ERGAS", "Parameters", "Training", "Pixels/s")
    rows = [
        [
            tag("strong", system.name) if index == 0 else system.name,
            _write(system.test.psnr, "dB", 2),
            _write(system.test.ssim, "", 3),
            _write(system.test.sam, "°", 2),
            _write(system.test.ergas, "", 2),
            quantity(system.parameters),
            duration(system.train_seconds),
            quantity(system.pixels_per_second),
        ]
        for index, system in enumerate(systems)
    ]
    table = as_table("Restoration quality on the same degraded test area", head, rows)
    return tag("div", table, class_="card scroll")


def _bands(page: _Page) -> Markup | None:
    """Draw the PSNR of every band, for the trained system and the others."""
    lines = [
        (system.name, np.array([np.nan if v is None else v for v in system.test.psnr_per_band]))
        for system in page.metrics.systems
        if len(system.test.psnr_per_band) == page.metrics.bands
    ]
    if not lines or page.metrics.bands < 2:
        return None
    centres = page.metrics.wavelengths
    figure = figures.bands_figure(lines, None if centres is None else np.array(centres))
    return tag("div", as_svg(figure, "bands", "PSNR per band"), class_="card wide")


def _learning(page: _Page) -> Markup | None:
    if page.log is None:
        return None
    return learning(
        [
            ("psnr", "PSNR per epoch", figures.psnr_figure(page.log)),
            ("loss", "Loss per epoch", figures.loss_figure(page.log)),
            ("rate", "Learning rate per epoch", figures.rate_figure(page.log)),
        ]
    )


def _again(page: _Page) -> Markup:
    areas = page.metrics.areas
    facts = [
        ("Degradation", page.words),
        *(
            (f"Pixels for {part}", f"rows {a[0]}–{a[1]}, columns {a[2]}–{a[3]}")
            for part, a in areas.items()
            if len(a) == 4
        ),
    ]
    return run_again(page.config, page.scene, facts)


def _cube_scene(page: _Page) -> xr.DataArray:
    """Return something with the wavelengths of the cubes."""
    coordinates = {}
    if page.metrics.wavelengths is not None:
        coordinates["wavelength"] = ("band", np.array(page.metrics.wavelengths))
    return xr.DataArray(page.clean, dims=("band", "y", "x"), coords=coordinates)


def _grown(page: _Page) -> Cube:
    """Return the degraded cube on the fine grid, each pixel repeated."""
    return page.degraded.repeat(page.metrics.scale, 1).repeat(page.metrics.scale, 2)


def _grey(values: npt.NDArray[np.float32], most: float) -> pictures.Rgba:
    return pictures.rgb_picture(np.stack([values] * 3), [(0.0, most or 1.0)] * 3)


def _write(value: Number, unit: str, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}" + (f" {unit}" if unit else "")


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_plain(part) for part in value)
    return f"{value:.3g}" if isinstance(value, float) else plain(value, 60)
