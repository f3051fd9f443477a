"""Commands that work through images: a bar while they run, a line for each result, a table of what came out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress
from rich.table import Table

from camkit.cli import printing

Images = Annotated[
    list[Path], typer.Argument(metavar="IMAGE|FOLDER", help="Images, or folders of images.", show_default=False)
]

EngineName = Annotated[str, typer.Option("--engine", metavar="NAME", help="Who does the work: local, ray …")]
EngineOptions = Annotated[
    list[str] | None, typer.Option("--engine-option", metavar="name=value", help="An option of it; repeatable.")
]

LONGEST_TABLE = 60
# what a shell gives for Ctrl-C
INTERRUPTED = 130


@contextmanager
def recording(what: str, images: int, lines: Sequence[Mapping[str, Any]], path: Path) -> Iterator[Callable[..., None]]:
    """Shows a bar over so many images, and writes the lines into the JSON lines at `path`, by their pictures.

    What is given is called after each image, or with how many are done. What was drawn before an interruption has its
    line too.
    """
    from camkit.output import update_lines

    try:
        with showing(what, images) as advance:
            yield advance
    finally:
        if lines:
            update_lines(path, lines, key="picture")


@contextmanager
def showing(what: str, steps: int) -> Iterator[Callable[..., None]]:
    """Shows a bar over so many steps on a terminal; what is given is called after each, or with how many are done."""
    from camkit.progress import shown_in

    screen = printing.console(stderr=True)
    progress = Progress(console=screen, transient=True, disable=not screen.is_terminal)
    with progress, shown_in(progress):
        task = progress.add_task(what, total=steps)
        yield lambda steps=1: progress.advance(task, steps)


def show(table: Table) -> None:
    """Prints a table that somebody would read."""
    if table.row_count <= LONGEST_TABLE:
        printing.console().print(table)
