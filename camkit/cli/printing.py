"""How commands print: names and paths as they are, and tables that a pipe does not cut."""

import inspect
import os
import sys

from rich import box
from rich.console import Console
from rich.table import Table

_WIDTH_OF_PIPES = 160


def console(*, stderr: bool = False) -> Console:
    """Where a command prints: what it is given is text, in which brackets and colons mean themselves."""
    stream = sys.stderr if stderr else sys.stdout
    # a pipe has no width; the 80 columns that rich assumes would break long names
    width = None if stream.isatty() or "COLUMNS" in os.environ else _WIDTH_OF_PIPES
    return Console(file=stream, width=width, markup=False, emoji=False, highlight=False)


def line(text: str, *, label: str = "", style: str = "", stderr: bool = False) -> None:
    """Prints a sentence or a path as one line, however long, so that it can be searched for and copied."""
    out = console(stderr=stderr)
    if label:
        out.print(f"{label}: ", style=style, end="")
    out.print(text, soft_wrap=True)


def paragraphs(text: str | None) -> str:
    """A docstring with each paragraph on one line, which a help page then breaks where the screen ends."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in inspect.cleandoc(text or "").split("\n\n"))


def table(*columns: str, title: str | None = None) -> Table:
    """A table in which long values go on in the next line instead of being cut."""
    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold")
    return made
