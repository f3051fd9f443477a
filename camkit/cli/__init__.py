"""The command ``camkit``: commands are entry points of the group ``camkit.commands``, loaded when they are called."""

import sys
import warnings
from importlib.metadata import EntryPoint
from typing import Annotated, Any

import typer
import typer.core
from rich.console import Console

from camkit.errors import CamkitError, CamkitWarning
from camkit.registry import FIRST_PARTY, commands
from camkit.version import __version__

EXIT_BAD_INPUT = 2


class Commands(typer.core.TyperGroup):
    """A group whose commands are found through entry points."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of the installed commands."""
        return list(dict.fromkeys(entry.name for entry in commands()))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, imported now; None when there is none."""
        entry = next((entry for entry in commands() if entry.name == cmd_name), None)
        if entry is None:
            return None
        if not ctx.meta.get("camkit.listing"):
            return _command(entry)
        # a stranger's command may import torch, which would make the help slow
        if _distribution(entry) != FIRST_PARTY:
            return typer.core.TyperCommand(cmd_name, help=f"From {_distribution(entry)}.")
        try:
            return _command(entry)
        except CamkitError as error:
            return typer.core.TyperCommand(cmd_name, help=f"Broken: {error}")

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The help page, for which only camkit's own commands are imported."""
        ctx.meta["camkit.listing"] = True
        super().format_help(ctx, formatter)


app = typer.Typer(
    cls=Commands,
    name="camkit",
    help="Explain what an image model looked at.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"camkit {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Explain what an image model looked at."""


def main() -> None:
    """Runs the command line; a mistake of the user is one sentence on standard error and exit code 2."""
    warnings.simplefilter("ignore")
    warnings.simplefilter("always", CamkitWarning)
    warnings.showwarning = _show_warning
    try:
        app()
    except CamkitError as error:
        _print_plainly("Error", "red", str(error))
        sys.exit(EXIT_BAD_INPUT)
    except KeyboardInterrupt:
        sys.exit(130)


def _command(entry: EntryPoint) -> Any:
    try:
        function = entry.load()
    except Exception as error:
        distribution = _distribution(entry)
        raise CamkitError(
            f"The command '{entry.name}' of {distribution} cannot be loaded: {type(error).__name__}: {error}."
        ) from None
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    alone.command(entry.name)(function)
    return typer.main.get_command(alone)


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "unknown"


def _show_warning(message: Any, *_: Any, **__: Any) -> None:
    _print_plainly("Note", "yellow", str(message))


def _print_plainly(label: str, colour: str, text: str) -> None:
    # soft_wrap: a sentence stays one line, so that it can be searched for and piped
    Console(stderr=True, highlight=False).print(f"[bold {colour}]{label}:[/] ", end="")
    Console(stderr=True, highlight=False, markup=False).print(text, soft_wrap=True)
