"""The command ``camkit``: commands are entry points of the group ``camkit.commands``, loaded when they are called."""

import sys
import warnings
from importlib.metadata import EntryPoint
from typing import Annotated, Any

import typer
import typer.core

from camkit.cli.printing import line, paragraphs
from camkit.errors import CamkitError, CamkitWarning, unknown
from camkit.registry import FIRST_PARTY, commands
from camkit.version import __version__

EXIT_BAD_INPUT = 2

# An installed package keeps its entry points in alphabetical order, which is not the order in which people meet them.
_ORDER = (
    "demo",
    "explain",
    "attack",
    "evaluate",
    "robustness",
    "export",
    "verify",
    "serve",
    "plugins",
    "new-plugin",
    "adapters",
    "doctor",
    "summary",
)


class Commands(typer.core.TyperGroup):
    """A group whose commands are found through entry points."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of the installed commands, in the order in which the help shows them."""
        installed = _installed(ctx)
        return [name for name in _ORDER if name in installed] + [name for name in installed if name not in _ORDER]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, imported now."""
        installed = _installed(ctx)
        if cmd_name not in installed:
            raise unknown("command", cmd_name, self.list_commands(ctx))
        entry = installed[cmd_name]
        # a stranger's command may be broken, or import torch and make the help slow
        if _is_listed(ctx) and _distribution(entry) != FIRST_PARTY:
            return typer.core.TyperCommand(name=cmd_name, help=f"From {_distribution(entry)}.")
        # of a command that is only listed, the options need not be built
        return typer.core.TyperCommand(name=cmd_name, help=_help(entry)) if _is_listed(ctx) else _command(entry)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The help page, for which only camkit's own commands are imported."""
        ctx.meta["camkit.listing"] = True
        super().format_help(ctx, formatter)


app = typer.Typer(
    cls=Commands,
    name="camkit",
    help="Explain what an image model looked at.",
    invoke_without_command=True,
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
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Explain what an image model looked at."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """Runs the command line; a mistake of the user is one sentence on standard error and exit code 2."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", CamkitWarning)
        warnings.showwarning = _show_warning
        try:
            sys.exit(app(standalone_mode=False))
        except CamkitError as error:
            line(str(error), label="Error", style="bold red", stderr=True)
            sys.exit(EXIT_BAD_INPUT)
        except typer.TyperException as error:
            line(error.format_message(), label="Error", style="bold red", stderr=True)
            sys.exit(error.exit_code)


def _installed(context: Any) -> dict[str, EntryPoint]:
    """The installed commands, looked for once: that reads the metadata of every distribution."""
    if "camkit.commands" not in context.meta:
        context.meta["camkit.commands"] = commands()
    found: dict[str, EntryPoint] = context.meta["camkit.commands"]
    return found


def _is_listed(context: Any) -> bool:
    return bool(context.meta.get("camkit.listing"))


def _help(entry: EntryPoint) -> str:
    function = entry.load()
    callback = function.registered_callback if isinstance(function, typer.Typer) else None
    return str(callback.help) if callback else paragraphs(function.__doc__)


def _command(entry: EntryPoint) -> Any:
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    try:
        function = entry.load()
        # a command that has commands of its own is an app already
        if isinstance(function, typer.Typer):
            return typer.main.get_command(function)
        alone.command(entry.name, help=paragraphs(function.__doc__))(function)
        return typer.main.get_command(alone)
    except (Exception, SystemExit) as error:
        raise CamkitError(
            f"The command '{entry.name}' of {_distribution(entry)} cannot be loaded: {type(error).__name__}: {error}."
        ) from None


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "unknown"


def _show_warning(message: Any, *_: Any, **__: Any) -> None:
    line(str(message), label="Note", style="bold yellow", stderr=True)
