"""Verbs whose options are the settings of a recipe."""

from __future__ import annotations

import glob
import inspect
import shlex
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
import yaml
from pydantic.fields import FieldInfo

from vitreous.cli.options import key_values, split_commas
from vitreous.errors import ConfigError
from vitreous.files import is_locked, is_unfinished, read_json
from vitreous.recipe import R, Settings, make_recipe, read_recipe


def recipe_verb(
    verb: str, kind: type[R], task: str, run_and_show: Callable[..., Path], description: str
) -> Callable[..., None]:
    """Return a verb's function, with one option per setting of a recipe.

    The options are generated, so a setting has the same name, default, limits and help everywhere.

    Args:
        verb: its name.
        kind: the recipe.
        task: the folder of its runs.
        run_and_show: called with a complete recipe and ``resume``.
        description: what the verb does, for its help.
    """

    def function(
        ctx: typer.Context,
        run: Annotated[
            Path | None,
            typer.Argument(help="Run folder to resume (with --resume; default: the latest)."),
        ] = None,
        recipe: Annotated[
            Path | None,
            typer.Option(
                "--recipe",
                metavar="FILE",
                help="YAML recipe; options on the command line override it.",
            ),
        ] = None,
        resume: Annotated[
            bool,
            typer.Option("--resume", help="Resume an interrupted run from its last checkpoint."),
        ] = False,
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="Print the complete recipe as YAML and exit.")
        ] = False,
        **settings: Any,
    ) -> None:
        given = {
            **(read_recipe(recipe) if recipe else {}),
            **given_settings(ctx, settings, kind),
        }
        if run is not None and not resume:
            raise _stray_word(run, given, kind)
        complete = resumed_recipe(run, given, kind, task) if resume else make_recipe(given, kind)
        if dry_run:
            typer.echo(yaml.safe_dump(complete.model_dump(), sort_keys=False), nl=False)
            return
        with hint_to_resume(verb, task, complete):
            run_and_show(complete, resume=resume)

    own = list(inspect.signature(function, eval_str=True).parameters.values())[:-1]
    generated = [_parameter(name, field) for name, field in kind.fields().items()]
    function.__signature__ = inspect.Signature([*own, *generated])  # type: ignore[attr-defined]
    function.__name__ = verb
    function.__doc__ = (
        f"{description}\n\nEvery option below is also a key of a YAML recipe (with _ for -)."
    )
    return function


def _stray_word(word: Path, given: dict[str, Any], kind: type[Settings]) -> ConfigError:
    """What is wrong with a word that is neither an option nor its value: a run without --resume, or a second setting."""
    if "=" not in str(word) or word.exists():
        return ConfigError(f"A run folder ({word}) needs --resume.", "Add --resume.")
    tables = [name for name in given if get_origin(_plain_type(kind.model_fields[name])) is dict]
    option = _option_name(tables[-1]) if tables else "--model-args"
    return ConfigError(
        f"'{word}' does not belong to an option.",
        f"Repeat the option for every setting: {option} {shlex.quote(str(word))}.",
    )


@contextmanager
def hint_to_resume(verb: str, task: str, recipe: Settings) -> Iterator[None]:
    """Say with which command a run goes on that is interrupted inside."""
    try:
        yield
    except KeyboardInterrupt as stop:
        latest = latest_unfinished(Path(recipe.runs) / task, recipe.name)
        hint = f"Resume with: vitreous {verb} --resume {shlex.quote(str(latest))}" if latest else ""
        raise KeyboardInterrupt(hint) from stop


def command_line() -> str:
    """Return the command as it was given, for the run's report."""
    return shlex.join(["vitreous", *sys.argv[1:]])


def given_settings(
    ctx: typer.Context, settings: dict[str, Any], recipe: type[Settings]
) -> dict[str, Any]:
    """Return the settings that stand on the command line, as the recipe wants them (defaults are left out)."""
    given = {}
    for name, value in settings.items():
        source = ctx.get_parameter_source(name)
        if source is None or source.name == "DEFAULT":
            continue
        kind = get_origin(_plain_type(recipe.model_fields[name]))
        if kind is dict:
            value = key_values(value, _option_name(name))
        elif kind is list:
            value = split_commas(value)
        given[name] = value
    return given


def resumed_recipe(run: Path | None, given: dict[str, Any], kind: type[R], task: str) -> R:
    """Return the recipe of the run to go on with.

    Args:
        run: its folder; the one of the given name, or the latest unfinished one, when None.
        given: settings repeated on the command line or in a recipe file; they must be the run's own.
        kind: the recipe.
        task: the folder of its runs.

    Raises:
        ConfigError: there is no such run, or other settings are asked for than it was started with.
    """
    make_recipe(given, kind)
    runs = Path(given.get("runs", kind.model_fields["runs"].default)) / task
    folder = run or latest_unfinished(runs, given.get("name"))
    if folder is None or not (folder / "config.json").is_file():
        where = folder or runs / str(given.get("name") or "")
        raise ConfigError(
            f"No interrupted run in {where}.",
            "Give its folder: --resume FOLDER.",
        )
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or not isinstance(config.get("recipe"), dict):
        raise ConfigError(
            f"{folder / 'config.json'} does not hold a recipe.", "Start the run again."
        )
    if "compressed" in config:
        raise ConfigError(
            f"The run {folder} was made by 'vitreous compress', which cannot be resumed.",
            "Compress the original run again.",
        )
    if (made_for := config.get("task", task)) != task:
        raise ConfigError(
            f"{folder} is a '{made_for}' run, not a '{task}' run.",
            "Resume it with the command that it was started with.",
        )
    if config.get("finished") is True and not is_unfinished(folder):
        raise ConfigError(
            f"The run {folder} has finished: there is nothing to resume.",
            f"Measure it again with 'vitreous evaluate {shlex.quote(str(folder))}', or train anew with another --name.",
        )
    recipe = make_recipe(config["recipe"], kind)
    # The folder may have been moved since: where it is now is what counts.
    place = {"name": folder.resolve().name, "runs": str(folder.parent.parent)}
    kept = {**recipe.model_dump(), **place}
    changed = [name for name in given if given[name] != kept[name] and name not in place]
    if changed:
        raise ConfigError(
            f"The run {folder} was started with other settings: {', '.join(changed)}.",
            "Resume it without these options, or start a new run with another --name.",
        )
    return make_recipe(kept, kind)


def latest_unfinished(runs: Path, name: str | None = None) -> Path | None:
    """Return the run that was interrupted last, or None; one that is being trained is not interrupted.

    Args:
        runs: the folder of all runs of a task.
        name: only runs of this name, or of this name with a number (``name-2``).
    """
    # A name is a word to be found as it stands, not a pattern.
    patterns = [glob.escape(name), glob.escape(name) + "-[0-9]*"] if name else ["[!.]*"]
    found = [
        run
        for pattern in patterns
        for run in runs.glob(pattern)
        if is_unfinished(run) and not is_locked(run)
    ]
    return max(found, key=_last_written, default=None)


def _last_written(run: Path) -> float:
    """Return when one of a run's own files was written last."""
    return max(file.stat().st_mtime for file in run.iterdir() if file.is_file())


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    """Return the function parameter from which typer makes the option of one setting."""
    plain = _plain_type(field)
    kind = get_origin(plain) or plain
    declaration, metavar, annotation = _option_name(name), None, plain
    default, description = field.default, field.description or ""
    if kind is Literal:
        annotation, metavar = str, "|".join(get_args(plain))
    elif kind is bool:
        declaration = f"{declaration}/--no-{declaration.removeprefix('--')}"
    elif kind is dict:
        annotation, metavar, default = list[str], "KEY=VALUE", []
    elif kind is list:
        metavar = "NAME,..."
        description += " '' for none."
    extra = field.json_schema_extra
    panel = extra.get("panel") if isinstance(extra, dict) else None
    option = typer.Option(
        declaration, metavar=metavar, help=description, rich_help_panel=str(panel)
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[annotation if default is not None else annotation | None, option],
    )


def _plain_type(field: FieldInfo) -> Any:
    """Return a setting's type without ``| None``."""
    annotation = field.annotation
    if get_origin(annotation) in (Union, types.UnionType):
        return next(part for part in get_args(annotation) if part is not types.NoneType)
    return annotation


def _option_name(name: str) -> str:
    return "--" + name.replace("_", "-")
