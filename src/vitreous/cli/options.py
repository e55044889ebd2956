"""What several verbs share about their arguments."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitreous.errors import CheckpointError, ConfigError
from vitreous.files import read_yaml

if TYPE_CHECKING:
    from vitreous.catalog.arguments import ImageSize

# What makes one value of several words, and the comma before what looks like a second setting.
ENCLOSED = re.compile(r"""\[.*?\]|\{.*?\}|'.*?'|".*?\"""")
NEXT = re.compile(r",(?=\s*\w+=)")
Hints = Annotated[
    list[str] | None,
    typer.Option(
        "--hints",
        metavar="KEY=VALUE",
        help="Reader option for the scene, e.g. unit=dn.",
    ),
]
Mask = Annotated[
    str | None,
    typer.Option(
        "--mask",
        metavar="FILE|scl|qa",
        help="Mask of pixels to exclude, e.g. clouds: a file, 'scl' or 'qa'.",
    ),
]
Untrusted = Annotated[
    bool,
    typer.Option(
        "--untrusted", help="Read the file in a separate process with limits on memory and time."
    ),
]
Refine = Annotated[
    str | None,
    typer.Option(
        "--refine",
        metavar="none|domain_transform|guided|potts",
        help="Smooth the class probabilities within the edges of the scene (default: as the run was trained).",
    ),
]
RefineArgs = Annotated[
    list[str] | None,
    typer.Option(
        "--refine-args", metavar="KEY=VALUE", help="Setting of the refinement, e.g. spatial=5."
    ),
]
RUNTIMES = ("torch", "onnxruntime", "openvino")


def key_values(pairs: Iterable[str], option: str) -> dict[str, Any]:
    """Read repeated ``key=value`` words; values are YAML, so that ``3`` is a number and ``a`` a word.

    Args:
        pairs: the words.
        option: the option they belong to, for messages.

    Raises:
        ConfigError: a word without ``=``, several settings in one word, or a value that is no YAML.
    """
    import yaml

    values = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            raise ConfigError(
                f"{option} '{pair}' is not of the form KEY=VALUE.",
                f"Write it as {option} key=value.",
            )
        if NEXT.search(ENCLOSED.sub("", text)):
            each = " ".join(f"{option} {setting.strip()}" for setting in NEXT.split(pair))
            raise ConfigError(f"{option} '{pair}' contains several settings.", f"Write {each}.")
        try:
            values[key.strip()] = read_yaml(text)
        except yaml.YAMLError as error:
            raise ConfigError(
                f"{option} {key}: '{text}' cannot be parsed.",
                "Quote it; write lists as [a, b].",
            ) from error
    return values


def scene_hints(pairs: Iterable[str] | None, mask: str | None) -> dict[str, Any]:
    """Return the hints for a scene's reader: those of ``--hints``, and ``--mask``."""
    hints = key_values(pairs or [], "--hints")
    return hints if mask is None else {**hints, "mask": mask}


def refinement_settings(pairs: Iterable[str] | None) -> dict[str, Any] | None:
    """Return the settings of ``--refine-args``; None where there are none."""
    return None if pairs is None else key_values(pairs, "--refine-args")


def read_image_size(text: str, option: str = "--image-size") -> ImageSize:
    """Read a side, or height and width: ``24``, ``24x36`` or ``24,36``.

    Raises:
        ConfigError: it is neither.
        ModelError: a side is out of range.
    """
    from vitreous.catalog.arguments import checked_image_size

    sides = re.split(r"\s*[x×,]\s*", text.strip())
    if len(sides) > 2 or not all(re.fullmatch(r"[0-9]{1,9}", side) for side in sides):
        raise ConfigError(
            f"{option} '{text}' is not an image size.",
            "Give one side in pixels, or height and width: 24 or 24x36.",
        )
    return checked_image_size(option, tuple(map(int, sides)) if sides[1:] else int(sides[0]))


def split_commas(words: Iterable[str]) -> list[str]:
    """Return the words of a repeatable, comma-separated option; empty ones are dropped."""
    return [part.strip() for word in words for part in word.split(",") if part.strip()]


def check_run(run: Path) -> None:
    """Refuse a folder that is no run, before anything heavy is imported for it.

    Raises:
        CheckpointError: there is no such folder, or it has no ``config.json``.
    """
    if not run.is_dir():
        raise CheckpointError(
            f"The run folder {run} does not exist.",
            "Check its path; runs are written to runs/<task>/<name>.",
        )
    if not (run / "config.json").is_file():
        raise CheckpointError(
            f"{run} is not a run folder: it has no config.json.",
            "Give a run folder made by vitreous, such as runs/classify/demo.",
        )


def free_output(out: Path | None, default: str, overwrite: bool) -> Path:
    """Return what to write: the file that was named, or one of a default name that is not there yet.

    Raises:
        ConfigError: the default name, or that of a file that is written beside it, is taken.
    """
    if out is not None:
        return out
    path = Path(default)
    taken = [file for file in (path, path.with_suffix(".png")) if file.exists()]
    if taken and not overwrite:
        raise ConfigError(
            f"{taken[0]} already exists.",
            "Choose another file with -o, or replace it with --overwrite.",
        )
    return path


def check_run_or_export(path: Path) -> bool:
    """Refuse a folder that is neither a run nor an export, and tell whether it is an export.

    Raises:
        CheckpointError: it has neither ``config.json`` nor ``export.json``.
    """
    exported = (path / "export.json").is_file()
    if not exported:
        check_run(path)
    return exported


def check_runtime(name: str | None) -> None:
    """Refuse a runtime that there is not; None stands for the one that comes with what is computed.

    Raises:
        ConfigError: there is no such runtime.
    """
    if name not in (None, *RUNTIMES):
        raise ConfigError(f"Unknown runtime: {name}.", f"Choose {', '.join(RUNTIMES)}.")
