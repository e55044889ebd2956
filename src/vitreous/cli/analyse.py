"""``vitreous analyse``: the classical analyses of spectral images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from vitreous.analysis.table import ANALYSES, Analysis
from vitreous.cli.options import Hints, Mask, Untrusted, key_values, scene_hints, split_commas
from vitreous.errors import ConfigError

analyse = typer.Typer(
    help="Compute component images, indices, target maps, anomalies, abundances or changes.",
    no_args_is_help=True,
)

Scene = Annotated[str, typer.Argument(help="Scene file, or the name of a built-in sample.")]
Out = Annotated[
    Path,
    typer.Option(
        "-o",
        "--out",
        metavar="OUT.tif",
        help="Image to write (a COG); a picture, facts and spectra are written alongside.",
    ),
]
Components = Annotated[
    int | None, typer.Option(metavar="N", help="Number of components (default: 10 at most).")
]
LibraryFile = Annotated[
    Path | None,
    typer.Option(
        "--library",
        metavar="FILE",
        help="Spectral library: ENVI .sli, or a text (USGS, ECOSTRESS, CSV).",
    ),
]
Spectrum = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME", help="Spectrum of the library, or a pattern; repeatable (default: all)."
    ),
]
Pixel = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ROW,COLUMN", help="Take the spectrum of this pixel, counted from 0; repeatable."
    ),
]
LibraryWavelengths = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Text with the wavelengths of a library without (USGS)."),
]
WavelengthUnit = Annotated[
    str | None,
    typer.Option(metavar="nm|um", help="Unit of the library's wavelengths, if its file is wrong."),
]
LibraryScale = Annotated[
    float, typer.Option(metavar="X", help="Factor for the library's values, e.g. 0.0001.")
]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Random seed.")]


def _components(analysis: Analysis) -> Callable[..., None]:
    def command(
        scene: Scene,
        out: Out,
        components: Components = None,
        hints: Hints = None,
        mask: Mask = None,
        untrusted: Untrusted = False,
    ) -> None:
        opened = _open(scene, hints, mask, untrusted)
        _run(analysis, [opened], out, components=components)

    return command


def _targets(analysis: Analysis) -> Callable[..., None]:
    def command(
        scene: Scene,
        out: Out,
        library: LibraryFile = None,
        spectrum: Spectrum = None,
        pixel: Pixel = None,
        library_wavelengths: LibraryWavelengths = None,
        wavelength_unit: WavelengthUnit = None,
        library_scale: LibraryScale = 1.0,
        hints: Hints = None,
        mask: Mask = None,
        untrusted: Untrusted = False,
    ) -> None:
        opened = _open(scene, hints, mask, untrusted)
        wanted = _spectra(
            library, spectrum, pixel, library_wavelengths, wavelength_unit, library_scale
        )
        _run(analysis, [opened], out, **wanted)

    return command


for _analysis in ANALYSES.values():
    _make = {"components": _components, "targets": _targets}.get(_analysis.takes)
    if _make is not None:
        analyse.command(_analysis.name, help=_analysis.description)(_make(_analysis))


@analyse.command("indices", help=ANALYSES["indices"].description)
def indices(
    scene: Annotated[
        str | None, typer.Argument(help="Scene file, or the name of a built-in sample.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            metavar="OUT.tif",
            help="Image to write (a COG), one band per index; a picture and facts are written alongside.",
        ),
    ] = None,
    index: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Index, or several with commas; 'all' that the bands allow."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Constant of a formula, e.g. L=0.5 of SAVI."
        ),
    ] = None,
    list_: Annotated[
        bool, typer.Option("--list", help="List the indices with their bands and formulas.")
    ] = False,
    hints: Hints = None,
    mask: Mask = None,
    untrusted: Untrusted = False,
) -> None:
    """Compute spectral indices by wavelength."""
    if list_:
        _list_indices()
        return
    if scene is None or out is None:
        raise ConfigError(
            "A scene and a file to write are needed.",
            "Write: vitreous analyse indices SCENE --index NDVI,NBR -o OUT.tif; --list shows the indices.",
        )
    opened = _open(scene, hints, mask, untrusted)
    names = split_commas(index or ["all"])
    _run(
        ANALYSES["indices"],
        [opened],
        out,
        names=names,
        constants=key_values(settings or [], "--set"),
    )


@analyse.command("rx", help=ANALYSES["rx"].description)
def rx(
    scene: Scene,
    out: Out,
    window: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Compare with a window of N pixels (default: the whole scene)."
        ),
    ] = None,
    guard: Annotated[
        int, typer.Option(metavar="N", help="Inner window that is left out of the background.")
    ] = 1,
    covariance: Annotated[
        str,
        typer.Option(
            metavar="local|global", help="Covariance of the window, or (faster) of the whole scene."
        ),
    ] = "local",
    components: Annotated[
        int | None,
        typer.Option(metavar="N", help="First reduce the scene to N principal components."),
    ] = None,
    hints: Hints = None,
    mask: Mask = None,
    untrusted: Untrusted = False,
) -> None:
    """Find anomalies."""
    opened = _open(scene, hints, mask, untrusted)
    _run(
        ANALYSES["rx"],
        [opened],
        out,
        window=window,
        guard=guard,
        covariance=covariance,
        components=components,
    )


@analyse.command("unmix", help=ANALYSES["unmix"].description)
def unmix(
    scene: Scene,
    out: Out,
    endmembers: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Endmembers to find (default: as many as HySime tells apart)."
        ),
    ] = None,
    method: Annotated[
        str, typer.Option(metavar="nfindr|vca", help="How endmembers are found.")
    ] = "nfindr",
    library: LibraryFile = None,
    spectrum: Spectrum = None,
    pixel: Pixel = None,
    library_wavelengths: LibraryWavelengths = None,
    wavelength_unit: WavelengthUnit = None,
    library_scale: LibraryScale = 1.0,
    seed: Seed = 0,
    hints: Hints = None,
    mask: Mask = None,
    untrusted: Untrusted = False,
) -> None:
    """Unmix a scene."""
    opened = _open(scene, hints, mask, untrusted)
    wanted = _spectra(library, spectrum, pixel, library_wavelengths, wavelength_unit, library_scale)
    _run(
        ANALYSES["unmix"], [opened], out, endmembers=endmembers, method=method, seed=seed, **wanted
    )


@analyse.command("cva", help=ANALYSES["cva"].description)
def cva(
    before: Annotated[
        str, typer.Argument(help="Scene of the first date; the product has its grid.")
    ],
    after: Annotated[str, typer.Argument(help="Scene of the second date.")],
    out: Out,
    normalise: Annotated[
        bool | None,
        typer.Option(
            "--normalise/--no-normalise",
            help="First bring each band of both dates to mean 0 and deviation 1 (default: unless they hold reflectance).",
        ),
    ] = None,
    hints: Hints = None,
    hints_after: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE", help="Reader option for the second scene (default: as --hints)."
        ),
    ] = None,
    mask: Mask = None,
    mask_after: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|scl|qa", help="Mask of pixels to exclude from the second scene."
        ),
    ] = None,
    untrusted: Untrusted = False,
) -> None:
    """Compare two dates."""
    scenes = [
        _open(before, hints, mask, untrusted),
        _open(after, hints_after if hints_after is not None else hints, mask_after, untrusted),
    ]
    _run(ANALYSES["cva"], scenes, out, normalise=normalise)


def _open(scene: str, hints: list[str] | None, mask: str | None, untrusted: bool) -> Any:
    from vitreous.scenes.samples import open_named

    return open_named(scene, scene_hints(hints, mask), untrusted=untrusted).scene


def _spectra(
    library: Path | None,
    names: list[str] | None,
    pixels: list[str] | None,
    wavelengths: Path | None,
    wavelength_unit: str | None,
    scale: float,
) -> dict[str, Any]:
    """Return which spectra are meant, as settings of an analysis.

    Raises:
        ConfigError: options of a library without one, or a pixel that is not ROW,COLUMN.
    """
    from vitreous.analysis.target_spectra import Library

    if library is None and (names or wavelengths or wavelength_unit or scale != 1.0):
        raise ConfigError(
            "--spectrum and the options of a library need --library FILE.", "Give the library."
        )
    chosen = (
        None
        if library is None
        else Library(library, tuple(names or ()), wavelengths, wavelength_unit, scale)
    )
    return {"library": chosen, "pixels": [_pixel(word) for word in pixels or ()]}


def _pixel(word: str) -> tuple[int, int]:
    try:
        row, column = (int(part) for part in word.split(","))
    except ValueError as error:
        raise ConfigError(
            f"--pixel '{word}' is not of the form ROW,COLUMN.", "Write e.g. --pixel 120,48."
        ) from error
    return row, column


def _run(analysis: Analysis, scenes: list[Any], out: Path, **settings: Any) -> None:
    """Compute an analysis, write its files and say what was found."""
    from vitreous.analysis.result import check_files
    from vitreous.analysis.table import analyse as compute
    from vitreous.progress import progress_bar

    library = settings.get("library")
    check_files(out, scenes, [] if library is None else [library.path])
    with progress_bar(analysis.name) as progress:
        result = compute(analysis.name, *scenes, progress=progress, **settings)
        written = result.write(out)
    typer.echo(result.summary)
    for path in written:
        typer.echo(str(path))


def _list_indices() -> None:
    from rich.table import Table

    from vitreous.analysis.indices import known_indices
    from vitreous.cli.tables import show

    table = Table("index", "name", "bands (nm)", "formula")
    for index in sorted(known_indices().values(), key=lambda one: one.name.lower()):
        broad = [f"{name} {first:.0f}-{last:.0f}" for name, (first, last) in index.ranges.items()]
        narrow = [f"{where:.0f}" for where in index.points.values()]
        table.add_row(index.name, index.title, ", ".join([*broad, *narrow]), index.formula)
    show(table)
