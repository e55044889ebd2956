"""The ``vitreous`` command."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from vitreous._version import __version__
from vitreous.catalog.tasks import TASKS, tasks
from vitreous.cli import (
    analyse,
    bench,
    compress,
    convert,
    degrade,
    demo,
    doctor,
    evaluate,
    export,
    info,
    methods,
    predict,
    refine,
    reproduce,
    resample,
    sensors,
    systems,
)
from vitreous.cli.boundary import BoundaryGroup, shown_warnings
from vitreous.cli.tasks import TaskCommand


class Verbs(BoundaryGroup):
    """The verbs, with those of all tasks among them, which are not made before they are called."""

    def __init__(self, *words: Any, **named: Any) -> None:
        super().__init__(*words, **named)
        own = dict(self.commands)
        self.commands.clear()
        for name, command in own.items():
            self.commands[name] = command
            if name == "info":  # training follows upon looking
                self.commands.update({task.verb: TaskCommand(task) for task in TASKS.values()})

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all verbs, those of other packages the last."""
        return [*super().list_commands(ctx), *self._foreign()]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a verb, or None."""
        return super().get_command(ctx, cmd_name) or self._foreign().get(cmd_name)

    def _foreign(self) -> dict[str, TaskCommand]:
        """Return the verbs of other packages' tasks, unless a verb is called so."""
        with shown_warnings():
            found = tasks()
        return {
            task.verb: TaskCommand(task)
            for task in found.values()
            if task.verb not in self.commands
        }


app = typer.Typer(
    name="vitreous",
    cls=Verbs,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with 'vitreous demo'. 'vitreous VERB --help' lists the options of a command.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vitreous {__version__}")
        raise typer.Exit


@app.callback()
def main(
    debug: Annotated[
        bool,
        typer.Option("--debug", envvar="VITREOUS_DEBUG", help="Show the full traceback on errors."),
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Spectral images of any bands: from a scene file to a trained model, a map and a report."""


app.command("demo")(demo.demo)
app.command("info")(info.info)
app.command("degrade")(degrade.degrade)
app.command("resample")(resample.resample)
app.add_typer(analyse.analyse, name="analyse")
app.command("evaluate")(evaluate.evaluate)
app.command("predict")(predict.predict)
app.command("refine")(refine.refine)
app.command("export")(export.export)
app.command("sensors")(sensors.sensors)
app.command("systems")(systems.systems)
app.command("compress")(compress.compress)
app.command("methods")(methods.methods)
app.command("convert")(convert.convert)
app.add_typer(bench.bench, name="bench")
app.command("reproduce")(reproduce.reproduce)
app.command("doctor")(doctor.doctor)


def run() -> None:
    """Run the command line on ``sys.argv`` and exit."""
    app(prog_name="vitreous")
